"""What the data path costs: our loader against PIL and a DataLoader as torchvision users write it.

In process CPU time on one thread (no worker processes on either side), in interleaved rounds of
one run, each giving float batches in [-1, 1] ready for a network:

1. 32x32 images with a random crop (padding 4) and a random flip: CIFAR-10 in memory;
2. a folder of JPEG photographs at 256x256: the first pass, which decodes into the cache and then
   trains from it, and a pass from the cache;
3. memory: what is held for a folder of 100,000 files, and what worker processes add.

Photographs are cut from those that scikit-image carries. Run: ``python benchmarks/data.py
[--rounds 9] [--cifar FOLDER]`` (a folder with ``train_images.npy``; random pixels without it).
"""

import argparse
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import skimage
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from imgsynth.augment import RandomFlip, RandomTranslation
from imgsynth.data import Arrays, ImageDataModule, ImageFolder
from imgsynth.data.scan import scan

PHOTOGRAPHS = ("astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


class Stored(Dataset[Any]):
    """Arrays as torchvision's CIFAR10 serves them: a Pillow image each."""

    def __init__(self, images: np.ndarray[Any, Any], transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.images[index])), 0


class Trainer:
    """As much of one as a datamodule asks for."""

    def __init__(self) -> None:
        self.training, self.reload_dataloaders_every_n_epochs = True, 0
        self.global_rank, self.world_size, self.lightning_module = 0, 1, None
        self.strategy = self
        self.root_device = torch.device("cpu")

    def broadcast(self, value: Any) -> Any:
        return value


def ours(data: ImageDataModule) -> int:
    """Run one epoch of a datamodule; return its number of images."""
    data.trainer = Trainer()  # type: ignore[assignment]
    num = 0
    for batch in data.train_dataloader():
        num += len(data.on_after_batch_transfer(batch, 0)["image"])
    return num


def theirs(data: Dataset[Any], batch_size: int) -> int:
    """Run one epoch of a DataLoader."""
    return sum(
        len(batch) for batch, _ in DataLoader(data, batch_size, shuffle=True, drop_last=True)
    )


def rate(epoch: Callable[[], int]) -> float:
    """Return images a CPU second."""
    start = time.process_time()
    num = epoch()
    return num / (time.process_time() - start)


def compare(rounds: int, title: str, **ways: Callable[[], int]) -> None:
    """Time the ways in turn; print each relative to the first."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds):
        for name in list(ways) if i % 2 else reversed(list(ways)):
            rates[name].append(rate(ways[name]))
    base, *others = rates
    print(f"{title}: {base} {median(rates[base]):,.0f} images/s")
    for name in others:
        ratios = [a / b for a, b in zip(rates[name], rates[base], strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        print(
            f"  {name}: {middle:.2f} [{low:.2f}, {high:.2f}] times as fast, "
            f"{median(rates[name]):,.0f} images/s"
        )


def small(rounds: int, images: np.ndarray[Any, Any]) -> None:
    """32x32 with crop and flip."""
    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(0.5, 0.5),
    ]
    stored = Stored(images, transforms.Compose(steps))
    data = Arrays(images, batch_size=128, transforms=[RandomTranslation(4), RandomFlip()])
    compare(
        rounds,
        "32x32, crop and flip",
        PIL=lambda: theirs(stored, 128),
        imgsynth=lambda: ours(data),
    )


def write_photographs(folder: Path, num: int) -> None:
    """Cut 500x375 photographs, as JPEG of quality 90."""
    carried = Path(skimage.__file__).parent / "data"
    pictures = [Image.open(carried / name).convert("RGB") for name in PHOTOGRAPHS]
    random = np.random.default_rng(0)
    (folder / "photographs").mkdir(parents=True)
    for i in range(num):
        picture = pictures[i % len(pictures)]
        x, y = (
            int(random.integers(0, s - t + 1))
            for s, t in zip(picture.size, (500, 375), strict=True)
        )
        picture.crop((x, y, x + 500, y + 375)).save(folder / "photographs" / f"{i}.jpg", quality=90)


def large(rounds: int, folder: Path, num: int) -> None:
    """JPEG at 256x256."""
    write_photographs(folder / "jpeg", num)
    steps = [
        transforms.Resize(256),
        transforms.CenterCrop(256),
        transforms.ToTensor(),
        transforms.Normalize(0.5, 0.5),
    ]
    stored = datasets.ImageFolder(str(folder / "jpeg"), transforms.Compose(steps))

    def first() -> int:
        shutil.rmtree(folder / "first", ignore_errors=True)
        return ours(ImageFolder(folder / "jpeg", 256, cache=folder / "first", batch_size=32))

    cached = ImageFolder(folder / "jpeg", 256, cache=folder / "cache", batch_size=32)
    cached.setup()
    compare(
        rounds,
        "500x375 JPEG at 256x256",
        PIL=lambda: theirs(stored, 32),
        **{"imgsynth, first pass": first, "imgsynth, from the cache": lambda: ours(cached)},
    )


def memory(folder: Path, num: int) -> None:
    """A folder of many files: what the process holds, and what workers do not share."""
    root = folder / "many"
    for group in range(num // 1000):
        (root / f"{group:04d}").mkdir(parents=True)
        for i in range(1000):
            Image.new("L", (2, 2), i % 256).save(root / f"{group:04d}" / f"image_{i:06d}.png")
    before = _kilobytes("Rss")
    listing = scan(root)
    print(f"{len(listing):,} files: the list of them {(_kilobytes('Rss') - before) / 1e3:.1f} MB")
    data = ImageFolder(
        root, 8, channels=1, bits=8, cache=folder / "many-cache", batch_size=64, num_workers=2
    )
    data.setup()
    listing = None  # type: ignore[assignment]
    print(f"  datamodule and list: {(_kilobytes('Rss') - before) / 1e3:.1f} MB more than before")
    loader = data.train_dataloader()
    iterator = iter(loader)
    for _ in range(200):
        next(iterator)
    for child in _children():
        print(f"  a worker of its own: {_kilobytes('Private_Dirty', child) / 1e3:.1f} MB")
    loader.close()


def _kilobytes(what: str, process: int | str = "self") -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{what}:")))


def _children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return [int(p) for task in tasks for p in (task / "children").read_text().split()]


def main() -> None:
    """Print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=1024, help="photographs")
    parser.add_argument("--files", type=int, default=100_000, help="files for the memory; 0: none")
    parser.add_argument("--cifar", type=Path, help="folder with train_images.npy")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.cifar:
        images = np.load(options.cifar / "train_images.npy", allow_pickle=False)[:10_000]
    else:
        images = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        if options.files:
            memory(Path(folder), options.files)  # first: nothing is freed meanwhile
        small(options.rounds, images)
        large(options.rounds, Path(folder), options.images)


if __name__ == "__main__":
    main()
