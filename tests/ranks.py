"""Processes that train together: one gloo group, forked from the server that knows Lightning."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import processes
import torch

context = multiprocessing.get_context("forkserver")


def _main(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    folder: str,
    rank: int,
    ranks: int,
    backend: str,
) -> None:
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # else Lightning takes its share of the processors
    if backend == "nccl":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        backend,
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )
    try:
        result = function(*arguments)
    except BaseException:
        Path(folder, f"error-{rank}.txt").write_text(traceback.format_exc())
        raise
    torch.save(result, Path(folder, f"result-{rank}.pt"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def together(
    folder: Path,
    function: Callable[..., Any],
    *arguments: Any,
    ranks: int = 2,
    backend: str = "gloo",
) -> list[Any]:
    """Call a function in several processes at once and return what each returned.

    The function and its arguments must be importable and picklable; inside it
    ``Trainer(devices=ranks)`` finds its peers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = [
        context.Process(target=_main, args=(function, arguments, str(folder), rank, ranks, backend))
        for rank in range(ranks)
    ]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(180)
        errors = [path.read_text() for path in sorted(folder.glob("error-*.txt"))]
        assert not errors, "\n".join(errors)
        assert [p.exitcode for p in started] == [0] * ranks
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
                process.join()
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(ranks)]


assert context is processes._context  # one server for all tests
