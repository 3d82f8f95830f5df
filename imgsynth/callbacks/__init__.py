"""What happens around training: length, progress, sheets of samples, checkpoints, stopping."""

from imgsynth.callbacks.checkpoint import Checkpoint, best_checkpoint, newest_checkpoint
from imgsynth.callbacks.evaluate import Evaluate
from imgsynth.callbacks.length import Length
from imgsynth.callbacks.profiler import StepProfiler
from imgsynth.callbacks.progress import Progress
from imgsynth.callbacks.quiet import quiet
from imgsynth.callbacks.samples import Samples
from imgsynth.callbacks.stop import GracefulStop
from imgsynth.callbacks.watchdog import Watchdog

__all__ = [
    "Checkpoint",
    "Evaluate",
    "GracefulStop",
    "Length",
    "Progress",
    "Samples",
    "StepProfiler",
    "Watchdog",
    "best_checkpoint",
    "newest_checkpoint",
    "quiet",
]
