"""The capability to give images back from what a method has understood of them."""

import torch
from torch import Tensor, nn

from imgsynth import seeding
from imgsynth.images import grid
from imgsynth.methods.sampler import shown


class Reconstructor:
    """Capability of methods that encode images and decode them again.

    A class has it by inheriting it next to :class:`Method` and writing :meth:`reconstruct`. One
    that learns to remove a corruption of its input has it as the submodule ``corruption``.
    """

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images ``(B, C, H, W)`` in [-1, 1], by averaged weights in evaluation mode.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].
            labels: ``(B,)`` int64, exactly if the method is conditional.
        """
        raise TypeError(f"{type(self).__name__} must define reconstruct(images, labels).")

    def corrupted(self, images: Tensor, *, seed: int = 0) -> Tensor:
        """Return images as ``corruption`` makes them; images themselves if there is none.

        No random state is moved.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].
            seed: Chooses what is random.
        """
        corruption: nn.Module | None = getattr(self, "corruption", None)
        if corruption is None:
            return images
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            seeding.seed_default_generators(seed, "corruption")
            made: Tensor = corruption(images)
        return made

    def reconstruction_sheet(
        self, images: Tensor, labels: Tensor | None = None, *, columns: int = 8, rows: int = 4
    ) -> Tensor:
        """Return a grid ``(C, H, W)``: images above, their reconstructions below.

        Of a denoising VAE three rows: clean, corrupted and restored.
        """
        columns = min(columns, len(images))
        num = columns * min(rows, len(images) // columns)
        images, labels = images[:num], None if labels is None else labels[:num]
        seen = self.corrupted(images)
        made = self.reconstruct(seen, labels).to(images)
        lines = [images, made] if seen is images else [images, seen, made]
        blocks = [
            torch.cat(row) for row in zip(*(torch.split(t, columns) for t in lines), strict=True)
        ]
        return grid(shown(torch.cat(blocks)), columns=columns)
