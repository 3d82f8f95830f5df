"""The capability to encode images as latent vectors, and to walk among them."""

import torch
from torch import Tensor

from imgsynth.images import grid
from imgsynth.losses import normal_kl
from imgsynth.methods.reconstructor import Reconstructor
from imgsynth.methods.sampler import Sampler, shown
from imgsynth.types import Batch


class LatentSpace(Sampler, Reconstructor):
    """Capability of methods whose latents are vectors with a standard normal prior.

    A class has it by inheriting it next to :class:`Method` and writing :meth:`encode` and
    :meth:`decode`.

    Attributes:
        latent_dim: Length of a latent.
    """

    latent_dim: int

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(mu, logvar)`` of the posterior, by averaged weights in evaluation mode.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].
            labels: ``(B,)`` int64, exactly if the method is conditional.

        Returns:
            Each ``(B, latent_dim)``.
        """
        raise TypeError(f"{type(self).__name__} must define encode(images, labels).")

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images ``(B, C, H, W)`` in [-1, 1], by averaged weights in evaluation mode."""
        raise TypeError(f"{type(self).__name__} must define decode(latents, labels).")

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the expected images at the posterior's mean; see :class:`Reconstructor`.

        Of a denoising VAE: restored images. Nothing is corrupted here.
        """
        return self.decode(self.encode(images, labels)[0], labels)

    def interpolate(
        self, first: Tensor, last: Tensor, labels: Tensor | None = None, *, steps: int = 8
    ) -> Tensor:
        """Walk in a straight line from the latents of some images to those of others.

        Args:
            first: ``(B, C, H, W)`` in [-1, 1].
            last: Of the same shape.
            labels: ``(B,)`` int64 of both, exactly if the networks are conditional.
            steps: Images on the way, the two reconstructions included; at least 2.

        Returns:
            ``(B, steps, C, H, W)`` in [-1, 1].
        """
        if first.shape != last.shape:
            raise ValueError(
                "interpolate walks from each of some images to one of as many others, got "
                f"{tuple(first.shape)} and {tuple(last.shape)}."
            )
        if steps < 2:
            raise ValueError(f"steps must be at least 2, got {steps}.")
        a, b = (self.encode(images, labels)[0] for images in (first, last))
        shares = torch.linspace(0, 1, steps, device=a.device).view(1, -1, 1)
        way = torch.lerp(a[:, None], b[:, None], shares)
        repeated = None if labels is None else labels.repeat_interleave(steps)
        made = self.decode(way.flatten(0, 1), repeated)
        return made.view(len(a), steps, *made.shape[1:])

    def traverse(
        self,
        image: Tensor,
        label: Tensor | None = None,
        *,
        dimensions: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """Change one latent of an image at a time.

        Args:
            image: ``(C, H, W)`` in [-1, 1].
            label: A scalar, exactly if the networks are conditional.
            dimensions: ``(D,)`` int64, the latents to change; None all.
            values: ``(V,)``, what to set them to, in standard deviations of the prior; None nine
                from -3 to 3.

        Returns:
            ``(D, V, C, H, W)`` in [-1, 1].
        """
        labels = None if label is None else label.reshape(1)
        mu = self.encode(image[None], labels)[0]
        if dimensions is None:
            dimensions = torch.arange(self.latent_dim)
        dimensions = torch.as_tensor(dimensions).cpu()
        if (
            len(dimensions)
            and not 0 <= int(dimensions.min()) <= int(dimensions.max()) < self.latent_dim
        ):
            raise ValueError(
                f"dimensions must be from 0 to {self.latent_dim - 1}, got {dimensions.tolist()}."
            )
        values = torch.linspace(-3, 3, 9) if values is None else torch.as_tensor(values)
        shape = (len(dimensions), len(values))
        latents = mu.expand(*shape, -1).clone()
        rows = torch.arange(len(dimensions))
        latents[rows, :, dimensions] = values.to(latents)
        repeated = None if labels is None else labels.expand(shape[0] * shape[1])
        made = self.decode(latents.flatten(0, 1), repeated)
        return made.view(*shape, *made.shape[1:])

    def pictures(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """Show samples, reconstructions, what single latents do, and ways between images."""
        made = {"samples": self.sample_sheet()}
        if batch is None:
            return made
        images, labels = batch["image"], self.labels_of(batch)
        made["reconstructions"] = self.reconstruction_sheet(images, labels)
        made["traversal"] = self.traversal_sheet(images, labels)
        if len(images) > 1:
            made["interpolation"] = self.interpolation_sheet(images, labels)
        return made

    def traversal_sheet(
        self, images: Tensor, labels: Tensor | None = None, *, rows: int = 8
    ) -> Tensor:
        """Return a grid ``(C, H, W)``: a row a latent, from -3 to 3, of the first image.

        The latents with the largest KL over the images given, largest first.
        """
        kl = normal_kl(*self.encode(images, labels)).mean(0)
        best = kl.argsort(descending=True)[:rows]
        made = self.traverse(images[0], None if labels is None else labels[0], dimensions=best)
        return grid(shown(made.flatten(0, 1)), columns=made.shape[1])

    def interpolation_sheet(
        self, images: Tensor, labels: Tensor | None = None, *, rows: int = 8, steps: int = 9
    ) -> Tensor:
        """Return a grid ``(C, H, W)``: a row leads from the latent of an image to another's.

        With labels a row joins two images of one class, as far as there are such.
        """
        num = len(images) // 2
        pairs = torch.arange(2 * num).view(2, num).T
        if labels is not None:  # of one class first
            pairs = labels.cpu().argsort(stable=True)[: 2 * num].view(num, 2)
            differ = (labels.cpu()[pairs[:, 0]] != labels.cpu()[pairs[:, 1]]).long()
            pairs = pairs[differ.argsort(stable=True)]
        first, last = pairs[:rows].T
        given = None if labels is None else labels[first]
        made = self.interpolate(images[first], images[last], given, steps=steps)
        return grid(shown(made.flatten(0, 1)), columns=steps)
