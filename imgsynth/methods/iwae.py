"""The importance-weighted autoencoder."""

from typing import Any

import torch
from torch import Tensor, nn

from imgsynth.likelihoods import LearnedGaussian, Likelihood, OptimalGaussian
from imgsynth.losses import importance_weighted
from imgsynth.methods.vae import VAE
from imgsynth.types import Batch, Losses


class IWAE(VAE):
    """A VAE trained on the importance-weighted bound, which is tighter than the ELBO.

    Reports ``train/iwae``, the negative bound in nats an image; validation is that of
    :class:`VAE`. While the KL warms up, or with a ``beta`` other than 1, the logarithms of
    ``q(z | x) / p(z)`` have its weight.

    Args:
        encoder: As of :class:`VAE`.
        decoder: As of :class:`VAE`.
        likelihood: See :mod:`imgsynth.likelihoods`; None is ``LearnedGaussian``.
        num_samples: Latents an image, the paper's k. The decoder's work grows with it.
        one_backward: Differentiate only one of them, drawn by its importance weight: an unbiased
            estimate of the same gradient, with more variance, for about a third of the time.
        **kwargs: To :class:`VAE`, except ``free_bits``.

    Raises:
        ValueError: If ``num_samples`` is below 1, or ``free_bits`` or ``OptimalGaussian`` are
            asked for.

    Source:
        Burda et al. 2016, "Importance Weighted Autoencoders", eqs. 8 and 14.

    Example:
        >>> from imgsynth.networks import MLPDecoder, MLPEncoder
        >>> shape = (1, 8, 8)
        >>> iwae = IWAE(MLPEncoder(shape), MLPDecoder(shape), num_samples=5)
        >>> list(iwae.losses({"image": torch.zeros(2, *shape)}))
        ['iwae']
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        likelihood: Likelihood | None = None,
        num_samples: int = 5,
        one_backward: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        likelihood = likelihood if likelihood is not None else LearnedGaussian()
        super().__init__(encoder, decoder, likelihood=likelihood, **kwargs)
        if isinstance(likelihood, OptimalGaussian):
            raise ValueError(
                "OptimalGaussian's variance maximises the ELBO, not the importance-weighted bound; "
                "use LearnedGaussian."
            )
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
        if self.free_bits:
            raise ValueError(
                f"{type(self).__name__} has no KL in closed form that free_bits could spare; use "
                "kl_warmup, or VAE."
            )
        self.num_samples = num_samples
        self.one_backward = one_backward

    def losses(self, batch: Batch) -> Losses:
        """Return the negative importance-weighted bound of the batch."""
        images, labels = batch["image"], self.labels_of(batch)
        mu, logvar = self.posterior(self._seen(images), labels)
        # (B, K, ...): the images of a batch come first, as everywhere
        shape = (len(images), self.num_samples, self.latent_dim)
        noise = torch.randn(shape, device=mu.device, dtype=mu.dtype)
        if not self.one_backward:
            bound = importance_weighted(self._weights(images, labels, mu, logvar, noise).T)
            return {"iwae": -bound.mean()}
        with torch.no_grad():
            log_weights = self._weights(images, labels, mu, logvar, noise)
            bound = importance_weighted(log_weights.T)
            drawn = torch.rand(len(images), 1, device=mu.device)
            below = log_weights.softmax(1).cumsum(1) < drawn
            chosen = below.sum(1, keepdim=True).clamp_max(self.num_samples - 1)
        noise = noise.gather(1, chosen[..., None].expand(-1, 1, self.latent_dim))
        one = self._weights(images, labels, mu, logvar, noise)[:, 0]
        # the value of the bound, the gradient of the one
        return {"iwae": -(bound + one - one.detach()).mean()}

    def _weights(
        self, images: Tensor, labels: Tensor | None, mu: Tensor, logvar: Tensor, noise: Tensor
    ) -> Tensor:
        """Return the log weights ``(B, K)`` of latents given by their noise ``(B, K, D)``."""
        num = noise.shape[1]
        mu, logvar = mu[:, None], logvar[:, None]
        z = torch.addcmul(mu, (0.5 * logvar).exp(), noise)
        given = None if labels is None else labels.repeat_interleave(num)
        outputs = self.outputs(z.flatten(0, 1), given)
        log_prob = self.likelihood.log_prob(images.repeat_interleave(num, 0), outputs)
        return log_prob.view(-1, num) - self.kl_weight * self.log_ratio(z, noise, logvar)
