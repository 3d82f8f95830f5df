"""Generative adversarial networks: one class an objective."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from imgsynth import losses
from imgsynth.methods.adversarial import AdversarialMethod
from imgsynth.methods.sampler import Sampler, latent_dim_of, stated
from imgsynth.optim import Adam, Optimizer
from imgsynth.types import Batch, Losses


class GAN(Sampler, AdversarialMethod):
    """The original GAN with the non-saturating generator loss.

    Conditional if its networks have ``num_classes``: the fakes of a batch then bear the labels
    of its real images.

    Args:
        generator: ``forward(latents, labels=None)`` to images ``(B, C, H, W)`` in [-1, 1].
        discriminator: ``forward(images, labels=None)`` to logits.
        latent_dim: Length of a latent; None takes the generator's own.
        **kwargs: To :class:`~imgsynth.methods.AdversarialMethod`.

    Raises:
        ValueError: If the networks disagree about images or classes, or the length of a latent
            is unknown.

    Source:
        Goodfellow et al. 2014, "Generative Adversarial Nets", algorithm 1 and section 3.

    Example:
        >>> from imgsynth.networks import MLPDiscriminator, MLPGenerator
        >>> gan = GAN(MLPGenerator((1, 8, 8), latent_dim=4), MLPDiscriminator((1, 8, 8)))
        >>> gan.sample(3, seed=1).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        latent_dim: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(generator, discriminator, **kwargs)
        self.latent_dim = latent_dim_of(generator, latent_dim)
        self.num_classes = (
            stated(generator, "num_classes") or stated(discriminator, "num_classes") or 0
        )
        for attribute in ("image_shape", "num_classes"):
            ours, theirs = (stated(network, attribute) for network in (generator, discriminator))
            if ours is not None and theirs is not None and ours != theirs:
                raise ValueError(
                    f"The generator has {attribute} = {ours}, the discriminator {theirs}; "
                    "they must agree."
                )

    def setup(self, stage: str) -> None:
        """Compare what the generator makes with what the data holds, before the first step."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or data is None or not hasattr(data, "image_shape"):
            return
        made = tuple(getattr(self.generator, "image_shape", data.image_shape))
        if made != tuple(data.image_shape):
            raise ValueError(
                f"The generator makes images of shape {made} (channels, height, width), but the "
                f"data holds {tuple(data.image_shape)}; build the networks with the data's shape."
            )
        classes = getattr(data, "num_classes", self.num_classes)
        if self.num_classes and classes != self.num_classes:
            has = f"{classes} classes" if classes else "no labels"
            raise ValueError(
                f"The generator is conditional on {self.num_classes} classes, but the data has "
                f"{has}; build the networks with num_classes={classes}."
            )

    def latents(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(num, latent_dim)`` standard normal latents.

        On the CPU from ``generator``; without one, on torch's default device (in training that of
        the images) from its default generator.
        """
        return torch.randn(num, self.latent_dim, generator=generator)

    def generate(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Turn latents ``(B, latent_dim)`` into images ``(B, C, H, W)`` in [-1, 1]."""
        made: Tensor = self.generator(latents, *(() if labels is None else (labels,)))
        return made

    def critic(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the discriminator's logits of augmented images.

        The one place where augmentation meets the discriminator: real and fake images pass it
        alike, and gradients reach the images.
        """
        images = self.augmented(images)
        logits: Tensor = self.discriminator(images, *(() if labels is None else (labels,)))
        return logits

    def fakes(self, batch: Batch) -> Batch:
        """Generate as many images as the batch has real ones, with the same labels."""
        labels = self.labels_of(batch)
        images = batch["image"]
        with images.device:  # drawn where they are needed: copying them would stall the GPU
            latents = self.latents(len(images))
        made = {"image": self.generate(latents, labels)}
        return made if labels is None else {**made, "label": labels}

    def discriminator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Binary cross-entropy: real images are 1, fakes are 0."""
        return {
            "real": losses.nonsaturating_d_real(self.critic(batch["image"], self.labels_of(batch))),
            "fake": losses.nonsaturating_d_fake(self.critic(fakes["image"], fakes.get("label"))),
        }

    def generator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Maximise log D(G(z))."""
        logits = self.critic(fakes["image"], fakes.get("label"))
        return {"adversarial": losses.nonsaturating_g(logits)}

    def pictures(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """Show samples from fixed latents, a class a column if there are classes."""
        return {"samples": self.sample_sheet()}


class MinimaxGAN(GAN):
    """The original GAN with the generator loss of eq. 1, kept for comparison.

    Warns: the generator's gradient vanishes as soon as the discriminator wins. :class:`GAN` does
    not have this fault.

    Args:
        generator: ``forward(latents, labels=None)`` to images ``(B, C, H, W)`` in [-1, 1].
        discriminator: ``forward(images, labels=None)`` to logits.
        **kwargs: To :class:`GAN`.

    Source:
        Goodfellow et al. 2014, eq. 1; section 3 on why not to use it.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(generator, discriminator, **kwargs)
        warnings.warn(
            "MinimaxGAN: the generator's gradient vanishes as soon as the discriminator wins "
            "(Goodfellow et al. 2014, section 3); GAN does not have this fault.",
            stacklevel=2,
        )

    def generator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Minimise log(1 - D(G(z)))."""
        logits = self.critic(fakes["image"], fakes.get("label"))
        return {"adversarial": losses.minimax_g(logits)}


class HingeGAN(GAN):
    """GAN with the hinge loss.

    Args:
        generator: ``forward(latents, labels=None)`` to images ``(B, C, H, W)`` in [-1, 1].
        discriminator: ``forward(images, labels=None)`` to logits.
        **kwargs: To :class:`GAN`.

    Source:
        Lim & Ye 2017, "Geometric GAN"; Miyato et al. 2018, "Spectral Normalization for GANs",
        eqs. 16 and 17.
    """

    def discriminator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Real logits beyond 1 and fake logits beyond -1 are good enough."""
        return {
            "real": losses.hinge_d_real(self.critic(batch["image"], self.labels_of(batch))),
            "fake": losses.hinge_d_fake(self.critic(fakes["image"], fakes.get("label"))),
        }

    def generator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Raise the logits of fakes."""
        logits = self.critic(fakes["image"], fakes.get("label"))
        return {"adversarial": losses.hinge_g(logits)}


class LSGAN(GAN):
    """GAN with least squares: logits are regressed on labels.

    Args:
        generator: ``forward(latents, labels=None)`` to images ``(B, C, H, W)`` in [-1, 1].
        discriminator: ``forward(images, labels=None)`` to logits.
        real_label: The paper's b, for real images.
        fake_label: The paper's a, for fakes.
        generator_label: The paper's c: what the generator wants its fakes to be taken for.
        **kwargs: To :class:`GAN`.

    Source:
        Mao et al. 2017, "Least Squares Generative Adversarial Networks", eq. 2; the default
        labels are its eq. 9 (a = 0, b = c = 1).
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        real_label: float = 1.0,
        fake_label: float = 0.0,
        generator_label: float = 1.0,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(generator, discriminator, **kwargs)
        self.real_label = real_label
        self.fake_label = fake_label
        self.generator_label = generator_label

    def discriminator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Half the squared distances to the two labels."""
        real = self.critic(batch["image"], self.labels_of(batch))
        fake = self.critic(fakes["image"], fakes.get("label"))
        return {
            "real": losses.least_squares_d_real(real, self.real_label),
            "fake": losses.least_squares_d_fake(fake, self.fake_label),
        }

    def generator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Half the squared distance of fakes to the generator's label."""
        logits = self.critic(fakes["image"], fakes.get("label"))
        return {"adversarial": losses.least_squares_g(logits, self.generator_label)}


class WGANGP(GAN):
    """Wasserstein GAN with gradient penalty.

    The critic must not use batch statistics: the penalty is about single images.

    Args:
        generator: ``forward(latents, labels=None)`` to images ``(B, C, H, W)`` in [-1, 1].
        discriminator: ``forward(images, labels=None)`` to critic values.
        penalty_weight: The paper's lambda.
        discriminator_steps: The paper's n_critic.
        generator_optimizer: As in algorithm 1: Adam with 1e-4, beta1 0, beta2 0.9.
        discriminator_optimizer: Likewise.
        **kwargs: To :class:`GAN`.

    Source:
        Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", algorithm 1.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        penalty_weight: float = 10.0,
        discriminator_steps: int = 5,
        generator_optimizer: Optimizer = Adam(lr=1e-4, beta1=0.0, beta2=0.9),
        discriminator_optimizer: Optimizer = Adam(lr=1e-4, beta1=0.0, beta2=0.9),
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(
            generator,
            discriminator,
            discriminator_steps=discriminator_steps,
            generator_optimizer=generator_optimizer,
            discriminator_optimizer=discriminator_optimizer,
            **kwargs,
        )
        if penalty_weight < 0:
            raise ValueError(f"penalty_weight must be at least 0, got {penalty_weight}.")
        self.penalty_weight = penalty_weight
        for name, module in discriminator.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"WGANGP penalises the gradient of single images, but the discriminator has "
                    f"batch normalisation ({name!r}); build it without (batch_norm=False)."
                )

    def discriminator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Estimate the Wasserstein distance, with gradients of norm 1 between real and fake."""
        labels = self.labels_of(batch)
        penalty = losses.gradient_penalty(
            lambda images: self.critic(images, labels), batch["image"], fakes["image"]
        )
        return {
            "real": losses.wasserstein_d_real(self.critic(batch["image"], labels)),
            "fake": losses.wasserstein_d_fake(self.critic(fakes["image"], fakes.get("label"))),
            "penalty": self.penalty_weight * penalty.mean(),
        }

    def generator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        """Raise the critic's values of fakes."""
        logits = self.critic(fakes["image"], fakes.get("label"))
        return {"adversarial": losses.wasserstein_g(logits)}
