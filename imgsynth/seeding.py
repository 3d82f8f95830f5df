"""Random numbers that depend on what is asked for, never on what was asked before.

Every stream is a pure function of (seed, tags), so nothing random has to be saved: a resumed run
computes the same seeds again.
"""

import hashlib
import os

import torch


def fold(seed: int, *tags: int | str) -> int:
    """Mix a seed with tags into a new seed below 2**63.

    The first eight bytes of BLAKE2b over the seed and the tags: well mixed, and the same on
    every machine and Python version.

    Example:
        >>> fold(0, "latents", 3) == fold(0, "latents", 3)
        True
        >>> fold(0, "latents", 3) == fold(0, "latents", 4)
        False
    """
    digest = hashlib.blake2b(repr((int(seed), *tags)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *tags: int | str) -> torch.Generator:
    """Make a CPU generator for one purpose.

    Latents are always drawn on the CPU, so that a seed gives the same images on every device.

    Example:
        >>> generator(0, "a").initial_seed() == fold(0, "a")
        True
    """
    return torch.Generator().manual_seed(fold(seed, *tags))


def seed_default_generators(seed: int, *tags: int | str) -> None:
    """Seed torch's default generators: the CPU's and, once CUDA is in use, the current device's.

    ``torch.manual_seed`` does the same and costs over a hundred times as much, too much for
    something done at every step.
    """
    mixed = fold(seed, *tags)
    torch.default_generator.manual_seed(mixed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # is_available() would ask the driver each time
        torch.cuda.manual_seed(mixed)


def run_seed() -> int:
    """Return the seed of a run: of Lightning's ``seed_everything``, else of ``torch.manual_seed``.

    Example:
        >>> _ = torch.manual_seed(7)
        >>> run_seed() if "PL_GLOBAL_SEED" not in os.environ else 7
        7
    """
    given = os.environ.get("PL_GLOBAL_SEED")
    return int(given) if given is not None else torch.initial_seed()
