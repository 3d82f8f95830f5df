"""Seeds as pure functions of what is asked for."""

import hashlib

import pytest
import torch

from imgsynth import seeding

FROZEN = (7210762507766007076, 703164981476084889)


def test_a_folded_seed_is_the_documented_hash():
    digest = hashlib.blake2b(b"(7, 'latents', 3)", digest_size=8).hexdigest()
    assert seeding.fold(7, "latents", 3) == int(digest, 16) // 2


def test_seeds_are_frozen_so_that_old_checkpoints_give_old_images():
    assert seeding.fold(0) == FROZEN[0]
    assert seeding.fold(0, "latents", 3) == FROZEN[1]


def test_folded_seeds_differ_by_seed_tag_order_and_type():
    seeds = [
        seeding.fold(*arguments)
        for arguments in [(0,), (1,), (0, 0), (0, 1), (0, "1"), (0, 1, 2), (0, 2, 1), (0, "a", 1)]
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_the_bits_of_neighbouring_seeds_look_independent():
    bits = [f"{seeding.fold(s, 'x') ^ seeding.fold(s + 1, 'x'):063b}" for s in range(2000)]
    for position in range(63):
        share = sum(b[position] == "1" for b in bits) / len(bits)
        assert share == pytest.approx(0.5, abs=0.06)


def test_a_generator_gives_the_same_numbers_whatever_was_drawn_before():
    first = torch.randn(5, generator=seeding.generator(0, "a"))
    torch.randn(100)
    assert torch.equal(first, torch.randn(5, generator=seeding.generator(0, "a")))
    assert not torch.equal(first, torch.randn(5, generator=seeding.generator(0, "b")))
    assert not torch.equal(first, torch.randn(5, generator=seeding.generator(1, "a")))


def test_a_generator_leaves_the_default_one_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(9, generator=seeding.generator(0))
    assert torch.equal(torch.rand(3), expected)


def test_the_default_generators_give_the_same_numbers_after_the_same_seed():
    seeding.seed_default_generators(3, "step", 1)
    first = torch.rand(4)
    seeding.seed_default_generators(3, "step", 2)
    other = torch.rand(4)
    seeding.seed_default_generators(3, "step", 1)
    assert torch.equal(torch.rand(4), first)
    assert not torch.equal(other, first)


def test_seeding_the_default_generators_does_what_torch_does():
    seeding.seed_default_generators(3, "step", 1)
    ours = torch.randn(4)
    torch.manual_seed(seeding.fold(3, "step", 1))
    assert torch.equal(torch.randn(4), ours)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpus_generator_is_seeded_too():
    torch.zeros(1, device="cuda")
    seeding.seed_default_generators(3, "step", 1)
    first = torch.rand(4, device="cuda")
    seeding.seed_default_generators(3, "step", 1)
    assert torch.equal(torch.rand(4, device="cuda"), first)


def test_a_runs_seed_is_torchs_unless_lightning_set_one(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(7)
    assert seeding.run_seed() == 7
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert seeding.run_seed() == 3
