"""What every datamodule promises."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from torch import Tensor

from imgsynth.data import ImageDataModule, Split
from imgsynth.data.base import resize
from imgsynth.describe import describe


class Ramp(ImageDataModule):
    """Image i has the value i; its label is i modulo 3."""

    def load_split(self, split: str) -> Split:
        num = 30 if split == "train" else 7
        images = torch.arange(num, dtype=torch.uint8)[:, None, None, None].expand(num, 2, 4, 4)
        return images, torch.arange(num) % 3


class Deep(ImageDataModule):
    """Unlabelled 16-bit images without a test split."""

    splits = ("train",)

    def load_split(self, split: str) -> Split:
        images = torch.arange(0, 64000, 1000, dtype=torch.int32).to(torch.uint16)
        return images.view(4, 1, 4, 4), None


def made(
    train: Callable[[], Split], test: Callable[[], Split] | None = None, names: tuple[str, ...] = ()
) -> ImageDataModule:
    """Make a datamodule of these splits."""

    class Made(ImageDataModule):
        splits = ("train", "test") if test else ("train",)

        def load_split(self, split: str) -> Split:
            return train() if split == "train" or test is None else test()

    Made.names = names
    return Made()


def as_trainer(**attributes: Any) -> Any:
    module = SimpleNamespace(**attributes)
    strategy = SimpleNamespace(broadcast=lambda x: x, root_device=torch.device("cpu"))
    return SimpleNamespace(
        reload_dataloaders_every_n_epochs=0,
        global_rank=0,
        world_size=1,
        lightning_module=module,
        strategy=strategy,
    )


def test_the_data_is_loaded_when_it_is_asked_for_first() -> None:
    data = Ramp()
    assert data.image_shape == (2, 4, 4)
    assert data.num_classes == 3
    assert data.class_names == ("0", "1", "2")
    assert data.class_counts == (10, 10, 10)
    assert data.splits == ("train", "test")
    assert (data.num_images("train"), data.num_images("test")) == (30, 7)


def test_unlabelled_data_has_no_classes_and_no_labels_in_its_batches() -> None:
    data = Deep(batch_size=2)
    assert (data.num_classes, data.class_names, data.class_counts) == (0, (), ())
    assert set(next(iter(data.train_dataloader()))) == {"image"}
    assert [labels for _, labels in data.reference("train")] == [None, None]
    assert data.val_dataloader() == data.test_dataloader() == []


def test_the_reference_yields_the_real_images_in_order_in_their_own_dtype() -> None:
    batches = list(Ramp().reference("test", batch_size=3))
    assert [len(images) for images, _ in batches] == [3, 3, 1]
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    labels = [label for _, part in batches if part is not None for label in part.tolist()]
    assert labels == [0, 1, 2, 0, 1, 2, 0]


def test_images_become_floats_in_minus_one_to_one_after_the_transfer() -> None:
    data = Ramp()
    for dtype, largest in ((torch.uint8, 255), (torch.uint16, 65535)):
        pixels = torch.tensor([0, largest // 5, largest], dtype=torch.int32).to(dtype)
        batch = {"image": pixels.view(3, 1, 1, 1), "label": torch.arange(3)}
        moved = data.on_after_batch_transfer(batch, 0)
        torch.testing.assert_close(moved["image"].flatten(), torch.tensor([-1.0, -0.6, 1.0]))
        assert moved["label"].dtype == torch.int64


def test_a_training_batch_holds_the_micro_batches_of_a_step() -> None:
    data = Ramp(batch_size=4)
    data.trainer = as_trainer(batches_per_step=3)
    assert [len(b["image"]) for b in data.train_dataloader()] == [12, 12]


def test_the_seed_is_the_own_one_then_the_runs_then_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "30")
    assert Ramp(batch_size=2).train_dataloader().seed == 30
    data = Ramp(seed=10, batch_size=2)
    data.trainer = as_trainer(seed=20)
    assert data.train_dataloader().seed == 10
    data.seed = None
    assert data.train_dataloader().seed == 20
    data.trainer = as_trainer(seed=None)
    assert data.train_dataloader().seed == 30
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert data.train_dataloader().seed == torch.initial_seed()


def test_reloading_the_loader_is_refused_because_it_would_repeat_the_order() -> None:
    data = Ramp()
    trainer = data.trainer = as_trainer()
    trainer.reload_dataloaders_every_n_epochs = 1
    with pytest.raises(ValueError, match="reload_dataloaders_every_n_epochs must stay 0, got 1"):
        data.train_dataloader()


def test_a_subset_trains_on_its_images_only_and_keeps_the_rest() -> None:
    data = Ramp(batch_size=2)
    part = data.subset([4, 1, 7, 10])
    images, labels = next(part.reference("train", 10))
    assert images[:, 0, 0, 0].tolist() == [4, 1, 7, 10]
    assert labels is not None
    assert labels.tolist() == [1, 1, 1, 1]
    assert (part.num_classes, part.class_counts) == (3, (0, 4, 0))
    assert part.num_images("test") == 7
    assert data.num_images("train") == 30
    seen = [i for b in part.train_dataloader() for i in b["image"][:, 0, 0, 0].tolist()]
    assert sorted(seen) == [1, 4, 7, 10]


def test_a_subset_of_a_subset_is_described_by_its_places_in_the_whole() -> None:
    part = Ramp(batch_size=1).subset(torch.tensor([4, 1, 7])).subset([2, 0])
    assert part.train_indices == [7, 4]
    described = describe(part)["init_args"]
    assert described["batch_size"] == 1
    assert described["train_indices"] == [7, 4]
    rebuilt = Ramp(train_indices=[7, 4])
    assert rebuilt.fingerprint("train").tolist() == part.fingerprint("train").tolist()


def test_a_limit_keeps_the_shares_of_the_classes_and_grows_by_adding() -> None:
    class Uneven(Ramp):
        def load_split(self, split: str) -> Split:
            images, _ = super().load_split(split)
            return images, (torch.arange(len(images)) % 10 == 0).long()

    few, more = Uneven(limit=10), Uneven().limit(20)
    assert few.class_counts == (9, 1)
    assert more.class_counts == (18, 2)
    assert set(few.fingerprint("train").tolist()) < set(more.fingerprint("train").tolist())
    assert few.num_images("test") == 7
    assert Uneven(limit=99).num_images() == 30
    assert (
        Uneven(limit=10, seed=5).fingerprint("train").tolist() == few.fingerprint("train").tolist()
    )


@pytest.mark.parametrize(
    "choose",
    [
        lambda data: data.limit(12),
        lambda data: data.limit(12).limit(5),
        lambda data: data.limit(12).subset([3, 1]),
        lambda data: data.subset(range(20)).limit(6),
        lambda data: data.subset(range(20)).limit(9).limit(6).subset([2]),
    ],
)
def test_whatever_was_chosen_is_described_by_what_rebuilds_it(choose: Any) -> None:
    part = choose(Ramp(batch_size=1))
    again = Ramp(**describe(part)["init_args"])
    assert again.fingerprint("train").tolist() == part.fingerprint("train").tolist()


def test_a_wrong_choice_is_told_each_time() -> None:
    data = Ramp(train_indices=[40])
    for _ in range(2):
        with pytest.raises(ValueError, match="at least one index from 0 to 29"):
            data.num_images()
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        Ramp().limit(0)


@pytest.mark.parametrize("indices", [[], [30], [-1]])
def test_a_subset_outside_the_split_is_refused(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one index from 0 to 29"):
        Ramp().subset(indices)


@pytest.mark.parametrize(("kind", "pixel"), [(Ramp, "|u1"), (Deep, "<u2")])
def test_a_fingerprint_is_the_hash_of_dtype_shape_and_pixels(kind: Any, pixel: str) -> None:
    data = kind()
    images = next(data.reference("train", 100))[0]
    head = f"{images.dtype} {tuple(images.shape[1:])}".encode()
    raw = images.numpy().astype(np.dtype(pixel))
    expected = [xxhash.xxh3_64_intdigest(head + i.tobytes()) for i in raw]
    assert data.fingerprint("train").dtype == np.uint64
    assert data.fingerprint("train").tolist() == expected
    assert len(set(expected)) == len(images)


def test_the_fingerprint_of_a_split_tells_order_and_labels_apart() -> None:
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)
    labels = torch.arange(8) % 2
    splits = [(images, labels), (images.flip(0), labels), (images, 1 - labels), (images, None)]
    prints = {made(lambda s=s: s).fingerprint_of("train") for s in splits}  # type: ignore[misc]
    assert len(prints) == 4
    assert made(lambda: splits[0]).fingerprint_of("train") in prints


def test_a_missing_split_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="Ramp has the splits train, test; got 'val'"):
        next(Ramp().reference("val"))


PIXELS = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
LABELS = torch.arange(6) % 3


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((PIXELS[:0], None), "there are no images"),
        ((PIXELS.float(), None), r"uint8 .* got torch.float32; convert floats"),
        ((torch.full((2, 1, 4, 4), float("nan")), None), "got torch.float32; convert floats"),
        ((PIXELS.long(), None), "got torch.int64"),
        ((PIXELS[:, 0], None), r"\(N, C, H, W\), got \(6, 4, 4\)"),
        ((PIXELS, LABELS[:5]), r"one label per image, shape \(6,\), got \(5,\)"),
        ((PIXELS, LABELS[:, None]), r"one label per image, shape \(6,\), got \(6, 1\)"),
        ((PIXELS, LABELS.float()), "whole numbers .* got torch.float32"),
        ((PIXELS, LABELS - 1), "labels from -1 to 1, expected 0 to 1"),
    ],
)
def test_wrong_data_is_refused_with_what_was_expected(train: Split, message: str) -> None:
    with pytest.raises(ValueError, match=f"Made, split 'train': .*{message}"):
        made(lambda: train).setup()


def test_arrays_from_load_split_are_refused_with_the_conversion() -> None:
    with pytest.raises(ValueError, match=r"return tensors, got ndarray; .* torch.from_numpy"):
        made(lambda: (PIXELS.numpy(), None)).setup()  # type: ignore[arg-type, return-value]


def test_a_class_without_images_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="no image has the label 0; labels should count from 0"):
        made(lambda: (PIXELS, LABELS + 1)).setup()


def test_class_names_must_cover_the_labels_and_need_them() -> None:
    with pytest.raises(ValueError, match=r"labels from 0 to 2, expected 0 to 1 \(2 class names\)"):
        made(lambda: (PIXELS, LABELS), names=("a", "b")).setup()
    with pytest.raises(ValueError, match="2 class names but no labels"):
        made(lambda: (PIXELS, None), names=("a", "b")).setup()
    assert made(lambda: (PIXELS, LABELS), names=("a", "b", "c", "d")).class_counts == (2, 2, 2, 0)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ((PIXELS, LABELS + 1), "labels from 1 to 3, expected 0 to 2 .3 classes to train on"),
        ((PIXELS, None), "no labels, unlike the training split"),
        ((PIXELS[:, :, :2], LABELS), r"shape \(1, 2, 4\), but those to train on have \(1, 4, 4\)"),
    ],
)
def test_the_test_split_must_fit_the_training_split(test: Split, message: str) -> None:
    with pytest.raises(ValueError, match=f"Made, split 'test': .*{message}"):
        made(lambda: (PIXELS, LABELS), lambda: test).setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must not be negative, got -1"),
        ({"device_resident": True, "num_workers": 2}, "device_resident=True needs no worker"),
    ],
)
def test_wrong_settings_are_refused_at_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ramp(**settings)


@pytest.mark.parametrize(
    ("device", "resident", "free", "workers", "expected"),
    [
        ("cuda", None, 4000, 0, "cuda"),
        ("cuda", None, 3000, 0, "cpu"),
        ("cuda", None, 4000, 1, "cpu"),
        ("cuda", False, 4000, 0, "cpu"),
        ("cuda", True, 0, 0, "cuda"),
        ("meta", None, 4000, 0, "cpu"),
        ("meta", True, 4000, 0, "meta"),
    ],
)
def test_images_move_to_the_device_if_they_take_a_quarter_of_its_free_memory(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    resident: bool | None,
    free: int,
    workers: int,
    expected: str,
) -> None:
    data = Ramp(device_resident=resident, num_workers=workers)
    trainer = data.trainer = as_trainer()
    trainer.strategy.root_device = torch.device(device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**9))
    images = torch.zeros(1000, dtype=torch.uint8)
    assert data._residence(images).type == expected


def test_a_constant_image_stays_constant_when_resized() -> None:
    images = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    assert torch.equal(resize(images, 32), torch.full((2, 3, 32, 32), 200, dtype=torch.uint8))
    assert resize(images, 8) is resize(images, None) is images
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        resize(images, 0)


def test_resizing_to_half_averages_like_a_triangle_filter() -> None:
    row = torch.tensor([0, 0, 0, 0, 80, 0, 0, 0], dtype=torch.uint8)
    images: Tensor = row.expand(1, 1, 8, 8).contiguous()
    # The weights of an antialiased bilinear filter at half size: 1/8, 3/8, 3/8, 1/8.
    expected = torch.tensor([0, 10, 30, 0], dtype=torch.uint8).expand(1, 1, 4, 4)
    assert torch.equal(resize(images, 4), expected)


def test_images_take_the_type_of_the_method() -> None:
    data = Ramp()
    data.trainer = as_trainer(dtype=torch.bfloat16)
    batch = data.on_after_batch_transfer({"image": torch.zeros(1, 1, 1, 1, dtype=torch.uint8)}, 0)
    assert batch["image"].dtype == torch.bfloat16
