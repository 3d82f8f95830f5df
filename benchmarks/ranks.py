"""What two processes cost: our strategy against Lightning's DDP, both training the same method.

A DCGAN (32 px, batch 32 a rank) trained by ``GAN`` on two processes of one thread each, connected
by gloo: ``PlayerDDP``, which synchronises the player who steps, against
``DDPStrategy(find_unused_parameters=True)``. CPU time of both processes together, in interleaved
rounds of one pair of processes; and the elements that an update reduces.

Run: ``python benchmarks/ranks.py [--rounds 9] [--steps 20] [--size 32]``
"""

import argparse
import os
import tempfile
import warnings
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from overhead import WARM_UP, Endless, Stopwatch, networks, rounds, spread
from torch import distributed, multiprocessing
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from imgsynth.callbacks import quiet
from imgsynth.methods import GAN
from imgsynth.strategies import PlayerDDP

RANKS = 2
BATCH = 32
GOAL = 1.0


class Reduced(Callback):
    """Elements that an update reduces; DDP's buckets too, once they use ``all_reduce``."""

    def __init__(self) -> None:
        self.elements = 0

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, allreduce_hook)

    def on_train_batch_start(self, *args: Any) -> None:
        self.elements, self.all_reduce = 0, distributed.all_reduce
        distributed.all_reduce = self.count

    def on_train_batch_end(self, *args: Any) -> None:
        distributed.all_reduce = self.all_reduce

    def count(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.elements += tensor.numel()
        return self.all_reduce(tensor, *args, **kwargs)


def fit(strategy: Strategy, size: int, loader: Endless, steps: int, callback: Callback) -> None:
    """Train the GAN for some steps after the warm-up."""
    trainer = Trainer(
        accelerator="cpu", devices=RANKS, strategy=strategy, max_steps=steps + WARM_UP,
        max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(GAN(*networks(size)), loader)


def compare(rank: int, folder: str, options: argparse.Namespace) -> None:
    """One of the processes: time both strategies in turn; the first prints."""
    quiet()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(RANKS))
    address = f"file://{folder}/group"
    distributed.init_process_group("gloo", address, rank=rank, world_size=RANKS)
    loader = Endless(torch.rand(512, 3, options.size, options.size) * 2 - 1, BATCH)

    def seconds(strategy: Strategy) -> float:
        watch = Stopwatch()
        fit(strategy, options.size, loader, options.steps, watch)
        return watch.seconds / options.steps

    ours, theirs = Reduced(), Reduced()
    fit(PlayerDDP(), options.size, loader, 1, ours)
    fit(DDPStrategy(find_unused_parameters=True), options.size, loader, 1, theirs)
    times = torch.tensor(
        rounds(
            options.rounds,
            lambda: seconds(PlayerDDP()),
            lambda: seconds(DDPStrategy(find_unused_parameters=True)),
        )
    )
    distributed.all_reduce(times)
    if rank == 0:
        ratio = spread([a / b for a, b in times.tolist()])
        ms = [median(t) * 1e3 for t in times.T.tolist()]
        print(
            f"DCGAN {options.size} px, batch {BATCH} on each of {RANKS} ranks: PlayerDDP / DDP = "
            f"{ratio} (goal: {GOAL:.2f}; {ms[0]:.0f} and {ms[1]:.0f} ms of CPU an update)\n"
            f"elements reduced an update: {ours.elements:,} and {theirs.elements:,}"
        )
    distributed.destroy_process_group()


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="steps a round")
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # else Lightning takes its share of the processors
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(compare, (folder, options), RANKS)


if __name__ == "__main__":
    main()
