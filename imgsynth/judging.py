"""The judge of a data set: a classifier of its own labels, in whose features scores compare."""

import contextlib
import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from imgsynth.callbacks import Length, Progress, quiet
from imgsynth.data.base import ImageDataModule
from imgsynth.describe import MARKER, build, describe
from imgsynth.folders import default_folder
from imgsynth.images import from_uint8, to_uint8
from imgsynth.loading import load, trained_on
from imgsynth.methods.classifier import Classifier
from imgsynth.metrics.classifier import ClassifierExtractor
from imgsynth.networks import ResNet18, SmallCNN
from imgsynth.optim import AdamW, CosineDecay
from imgsynth.seeding import generator, seed_default_generators
from imgsynth.types import Count, parse_count

VERSION = 1
"""Raised when the training changes: what older versions trained is then not found any more."""

SHIPPED = Path(__file__).parent / "metrics" / "judges"
_SEED = 0
_BATCH = 128
_LR = 2e-3
_SECONDS_UNTIL_TOLD = 5.0


class _Judge(Classifier):
    """Trained from a seed of its own, whatever the seed of the run it happens in."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.seed = _SEED


def judge(
    data: ImageDataModule,
    *,
    network: nn.Module | None = None,
    images: Count | None = None,
    device: str | torch.device = "auto",
    folder: str | Path | None = None,
) -> ClassifierExtractor:
    """Return the classifier of a data set's own labels: shipped, from the cache, or trained now.

    Training is short, on one device, and always the same: it depends on the training images, the
    network and ``images``, not on the run's seed. Of several processes one trains, the others
    wait. The caller's random numbers and datamodule stay as they are.

    Args:
        data: Labelled images. Its training split, subset and limit included, is learnt, without
            its transforms; ``val``, ``test`` or a tenth kept out of training gives the accuracy.
        network: Another architecture, built like :class:`~imgsynth.networks.SmallCNN`; it is
            trained from scratch. None takes SmallCNN up to 64 pixels, ResNet18 above.
        images: Training images to see; None takes 20 passes, at least 20k and at most 1M.
        device: Where it is trained and returned: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        folder: Where trained ones are kept; None takes ``judges`` in the cache folder.

    Raises:
        ValueError: If the data has no labels, or one class; if the network does not fit the
            images, or does not record how it was built.
        OSError: If the folder cannot be written.

    Example:
        >>> from imgsynth.data import Digits
        >>> judge(Digits(), device="cpu").accuracy > 0.98
        True
    """
    _check_labels(data)
    place = _device(device)
    # Tensors made in inference mode cannot learn, and stay so; leaving it turns gradients on.
    with torch.inference_mode(False):
        found = _shipped(data) if network is None and images is None else None
        if found is None:
            network = _default_network(data) if network is None else network
            num = _length(data) if images is None else parse_count(images, "images")
            where = default_folder() / "judges" if folder is None else Path(folder).expanduser()
            found = _kept(data, network, num, place, where)
        return found.to(place)


def export(run: str | Path, data: ImageDataModule, path: str | Path) -> ClassifierExtractor:
    """Turn a run of :class:`~imgsynth.methods.Classifier` into a file that scores can use.

    Args:
        run: Run folder (its newest checkpoint) or checkpoint; the averaged weights are taken.
        data: What it was trained on.
        path: The file to write.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it is not of a Classifier, or was trained on other images.
        OSError: If the file cannot be written.

    Example:
        >>> # export("runs/digits", Digits(), "digits.pt").accuracy
        >>> # 0.994
    """
    _check_labels(data)
    method = load(run)
    if not isinstance(method, Classifier):
        raise ValueError(
            f"Expected a run of Classifier, {str(run)!r} is of {type(method).__name__}."
        )
    seen = trained_on(run)
    if not np.array_equal(seen, np.unique(data.fingerprint("train"))):
        raise ValueError(
            f"{str(run)!r} was trained on other images than {type(data).__name__} holds; give the "
            "data of the run, with the same subset and size."
        )
    heldout = _heldout(data)
    if heldout is None:
        raise ValueError(
            f"{type(data).__name__} has no images that were held out from the run (val or test), "
            "so the accuracy cannot be told; judge(data) keeps a tenth out."
        )
    with method.ema_weights():
        made = _measured(method, data, heldout, f"{method.images_seen} images, exported")
    made.save(path)
    return made


def _shipped(data: ImageDataModule) -> ClassifierExtractor | None:
    found = (ClassifierExtractor.load(path) for path in sorted(SHIPPED.glob("*.pt")))
    fingerprint = data.fingerprint_of("train")
    return next((f for f in found if f.fingerprint == fingerprint), None)


def _kept(
    data: ImageDataModule, network: nn.Module, num: int, device: torch.device, folder: Path
) -> ClassifierExtractor:
    """Load the judge that all this gives, after training it if nobody has."""
    description = describe(network)
    if MARKER in str(description):
        raise ValueError(
            f"{type(network).__name__} does not record how it was built, so no judge can be made "
            "of it; let it, and what it is given, inherit imgsynth.describe.Described."
        )
    fingerprints = [data.fingerprint_of("train"), _fingerprint_of_heldout(data)]
    recipe = [VERSION, *fingerprints, description, num]
    key = hashlib.blake2b(json.dumps(recipe).encode(), digest_size=16).hexdigest()
    path = folder / f"{key}.pt"
    trusted = (type(network).__module__.partition(".")[0],)
    if not path.exists():
        with _one_at_a_time(path, type(data).__name__):
            if not path.exists():
                _train(data, description, trusted, num, device).save(path)
    return ClassifierExtractor.load(path, trusted=trusted)


def _check_labels(data: ImageDataModule) -> None:
    name = type(data).__name__
    instead = (
        "Scores without labels: give Inception weights or another trained network as the "
        "extractor, or take the score swd, which needs none."
    )
    if not data.num_classes:
        raise ValueError(f"{name} has no labels, so no classifier can judge it. {instead}")
    if data.num_classes == 1:
        raise ValueError(f"{name} has one class only: nothing to tell apart. {instead}")


def _device(device: str | torch.device) -> torch.device:
    wanted = str(device)
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda":  # the present one, by its number
        wanted = f"cuda:{torch.cuda.current_device()}"
    return torch.device(wanted)


def _default_network(data: ImageDataModule) -> nn.Module:
    shape, classes = data.image_shape, data.num_classes
    small = min(shape[1:]) <= 64
    with torch.random.fork_rng(devices=[]):
        return SmallCNN(shape, classes) if small else ResNet18(shape, classes)


def _length(data: ImageDataModule) -> int:
    return min(max(20 * data.num_images("train"), 20_000), 1_000_000)


def _fingerprint_of_heldout(data: ImageDataModule) -> str:
    split = next((s for s in ("val", "test") if s in data.splits), None)
    return "" if split is None else data.fingerprint_of(split)


def _train(
    data: ImageDataModule,
    description: dict[str, Any],
    trusted: tuple[str, ...],
    num: int,
    device: torch.device,
) -> ClassifierExtractor:
    """Train a classifier apart from whatever the caller is doing."""
    heldout, train = _heldout(data), torch.arange(data.num_images("train"))
    if heldout is None:
        order = torch.randperm(len(train), generator=generator(_SEED, "held out"))
        kept = max(1, len(order) // 10)
        heldout, train = data.subset(order[:kept]).reference("train", _BATCH), order[kept:]
    part = data.subset(train)  # a datamodule of its own
    part.batch_size, part.num_workers = min(_BATCH, len(train)), 0
    part.seed, part.device_resident, part.transforms = _SEED, None, []
    tqdm.write(
        f"Training a classifier of {type(data).__name__} ({len(train):,} images, "
        f"{data.num_classes} classes), in whose features scores compare images.",
        file=sys.stderr,
    )
    with _apart(device):
        seed_default_generators(_SEED)
        method = _Judge(
            build(description, trusted=trusted),
            optimizer=AdamW(lr=_LR, weight_decay=1e-2),
            schedule=CosineDecay(warmup=num // 20),
            ema_half_life=max(1, num // 50),
        )
        Trainer(
            accelerator=device.type,
            devices=1,
            strategy=SingleDeviceStrategy(device),
            plugins=[LightningEnvironment()],  # not that of a run on several devices around it
            callbacks=[Length(num), Progress()],
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        ).fit(method, datamodule=part)
        with method.to(device).ema_weights():
            return _measured(method, data, heldout, f"judge {VERSION}, {num} images")


@contextlib.contextmanager
def _apart(device: torch.device) -> Iterator[None]:
    """Keep random streams, autocast, filters and device of the caller."""
    cuda = [device.index] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        torch.autocast(device.type, enabled=False),
        warnings.catch_warnings(),
        torch.cuda.device(device) if cuda else contextlib.nullcontext(),
    ):
        quiet()
        yield


def _heldout(data: ImageDataModule) -> Iterator[tuple[Tensor, Tensor | None]] | None:
    split = next((s for s in ("val", "test") if s in data.splits), None)
    return None if split is None else data.reference(split, _BATCH)


def _measured(
    method: Classifier,
    data: ImageDataModule,
    heldout: Iterator[tuple[Tensor, Tensor | None]],
    training: str,
) -> ClassifierExtractor:
    """Make the extractor, and find out how many held-out images it reads rightly."""
    made = ClassifierExtractor(
        method.network,
        accuracy=0.0,
        num_heldout=0,
        data=type(data).__name__,
        fingerprint=data.fingerprint_of("train"),
        training=training,
    )
    right = num = 0
    for images, labels in heldout:
        assert labels is not None
        whole = images if images.dtype == torch.uint8 else to_uint8(from_uint8(images))
        logits = made(whole)[1]
        assert logits is not None
        right += int((logits.argmax(1).cpu() == labels).sum())
        num += len(labels)
    made.accuracy, made.num_heldout = right / num, num
    return made


@contextlib.contextmanager
def _one_at_a_time(path: Path, what: str) -> Iterator[None]:
    """Let one process train a judge; the others wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=_SECONDS_UNTIL_TOLD)
        except Timeout:
            tqdm.write(
                f"Waiting for another process that trains a classifier of {what}.", file=sys.stderr
            )
            lock.acquire()
    except OSError as error:
        raise OSError(
            f"The folder {path.parent} cannot be written ({error.strerror or error}); name another "
            "one with $IMGSYNTH_CACHE."
        ) from error
    try:
        yield
    finally:
        lock.release()
