"""Where a loader fetches from."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from imgsynth.data.source import MappedSource, TensorSource, hash_images

PIXELS = torch.arange(5 * 2 * 3 * 4, dtype=torch.uint8).view(5, 2, 3, 4)
LABELS = torch.tensor([3, 1, 4, 1, 5])


@pytest.fixture(params=[torch.uint8, torch.uint16])
def mapped(request: pytest.FixtureRequest, tmp_path: Path) -> MappedSource:
    kind = "u1" if request.param == torch.uint8 else "<u2"
    PIXELS.numpy().astype(kind).tofile(tmp_path / "pixels.raw")
    return MappedSource(tmp_path / "pixels.raw", (5, 2, 3, 4), request.param, LABELS)


def test_a_mapped_source_serves_what_is_in_the_file(mapped: MappedSource) -> None:
    batch = mapped.fetch(torch.tensor([4, 0]))
    assert batch["image"].dtype == mapped.images.dtype
    assert torch.equal(batch["image"].int(), PIXELS[[4, 0]].int())
    assert batch["label"].tolist() == [5, 3]
    assert (len(mapped), mapped.nbytes) == (5, PIXELS.numel() * mapped.images.element_size())


def test_rows_choose_without_a_copy_and_compose(mapped: MappedSource) -> None:
    part = mapped.at(torch.tensor([4, 2, 0])).at(torch.tensor([2, 1]))
    assert part.rows is not None
    assert part.rows.tolist() == [0, 2]
    assert torch.equal(part.fetch(torch.tensor([1]))["image"][0].int(), PIXELS[2].int())
    assert part.fetch(torch.tensor([0, 1]))["label"].tolist() == [3, 4]
    assert part.hashes().tolist() == mapped.hashes()[[0, 2]].tolist()
    assert len(mapped) == 5


def test_a_batch_is_a_copy_that_may_be_written(mapped: MappedSource) -> None:
    batch = mapped.fetch(torch.tensor([0]))["image"]
    batch.zero_()
    assert mapped.fetch(torch.tensor([0]))["image"].int().sum() == PIXELS[0].int().sum()


def test_another_process_gets_the_place_of_the_file_and_not_its_pixels(
    mapped: MappedSource,
) -> None:
    part = mapped.at(torch.tensor([3, 1]))
    sent = pickle.dumps(part)
    assert PIXELS[3].numpy().tobytes() not in sent
    for again in (pickle.loads(sent), copy.copy(part)):
        assert torch.equal(again.fetch(torch.tensor([0]))["image"][0].int(), PIXELS[3].int())


def test_moving_to_a_device_takes_the_chosen_rows_along(mapped: MappedSource) -> None:
    part = mapped.at(torch.tensor([3, 1]))
    assert part.to(torch.device("cpu")) is part
    moved = part.to(torch.device("meta"))
    assert moved.images.shape == (2, 2, 3, 4)
    assert moved.rows is None
    assert moved.labels is not None
    assert moved.labels.device.type == "meta"


def test_hashes_are_the_same_wherever_images_are(mapped: MappedSource) -> None:
    expected = hash_images(PIXELS.to(mapped.images.dtype))
    assert expected.dtype == np.uint64
    assert mapped.hashes().tolist() == expected.tolist()
    assert TensorSource(mapped.images.flip(0)).hashes().tolist() == expected[::-1].tolist()
    changed = PIXELS.clone()
    changed[2, 1, 2, 3] += 1
    assert (hash_images(changed) != hash_images(PIXELS)).tolist() == [False] * 2 + [True] + [
        False
    ] * 2
    assert hash_images(PIXELS.view(5, 2, 4, 3))[0] != hash_images(PIXELS)[0]
