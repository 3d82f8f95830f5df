"""What happens around training: length, progress, sheets of samples, checkpoints, stopping."""

from imgsynth.callbacks.checkpoint import Checkpoint, newest_checkpoint
from imgsynth.callbacks.length import Length
from imgsynth.callbacks.progress import Progress
from imgsynth.callbacks.quiet import quiet
from imgsynth.callbacks.samples import Samples
from imgsynth.callbacks.stop import GracefulStop

__all__ = [
    "Checkpoint",
    "GracefulStop",
    "Length",
    "Progress",
    "Samples",
    "newest_checkpoint",
    "quiet",
]
