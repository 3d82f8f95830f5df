"""A package: else the one called tests that torch-fidelity brings would be found instead."""
