"""Variational autoencoders."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from imgsynth import seeding
from imgsynth.describe import describe
from imgsynth.likelihoods import Gaussian, Likelihood, OptimalGaussian, off_levels
from imgsynth.losses import bits_per_dimension, importance_weighted, normal_kl
from imgsynth.methods.collapse import ACTIVE, Posterior, collapse
from imgsynth.methods.latent_space import LatentSpace
from imgsynth.methods.one_player import OnePlayerMethod, Protocols
from imgsynth.methods.sampler import latent_dim_of, stated
from imgsynth.ranks import mean_over_ranks
from imgsynth.types import Batch, Count, Losses, parse_count

_BLOCK = 64  # images whose latents are drawn together: part of what a seed means
_PIXELS = 2**22  # decoded at a time


class VAE(LatentSpace, OnePlayerMethod):
    """A variational autoencoder: encoder, decoder, a likelihood, and the ELBO.

    Conditional if its networks have ``num_classes``. Terms are in nats an image: the sum over
    pixels and channels, the mean over the batch. Reports ``train/reconstruction``, ``train/kl``
    (as it is weighted) and ``train/elbo`` (unweighted); after each validation, of averaged weights
    and over all images, ``val/elbo`` with its parts ``val/reconstruction`` (a log probability) and
    ``val/kl``, ``val/bpd`` (bits per dimension), ``val/mse`` and ``val/active_units``. In
    validation every likelihood gives probabilities of the discrete images, so that values of
    different families may be compared; training maximises what the family itself states.

    Args:
        encoder: ``forward(images, labels=None)`` to ``(mu, logvar)``, each ``(B, latent_dim)``, or
            to both side by side ``(B, 2 * latent_dim)``.
        decoder: ``forward(latents, labels=None)`` to outputs ``(B, C, H, W)`` without activation;
            the likelihood says what they mean.
        likelihood: See :mod:`imgsynth.likelihoods`; None is ``OptimalGaussian``.
        beta: Weight of the KL; 1 is the ELBO.
        kl_warmup: Images over which that weight rises linearly from 0. About a quarter of the run
            keeps latents in use that are otherwise given up early.
        free_bits: Nats that each latent may carry at no cost, on average over a batch.
        corruption: Applied to the images that the encoder sees, in training and validation, while
            the decoder is to make the clean ones: a denoising VAE. Its reconstructions are
            restored images.
        latent_dim: Length of a latent; None takes the decoder's own.
        **kwargs: To :class:`~imgsynth.methods.OnePlayerMethod`.

    Raises:
        ValueError: If the networks disagree, or a number is out of range.

    Source:
        Kingma & Welling 2014, "Auto-Encoding Variational Bayes", eq. 10; Higgins et al. 2017,
        "beta-VAE"; Sønderby et al. 2016, "Ladder Variational Autoencoders", section 2.3 (warm-up);
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        appendix C.8 (free bits); Im et al. 2017, "Denoising Criterion for Variational
        Auto-Encoding Framework".

    Example:
        >>> from imgsynth.networks import MLPDecoder, MLPEncoder
        >>> shape = (1, 8, 8)
        >>> vae = VAE(MLPEncoder(shape, latent_dim=4), MLPDecoder(shape, latent_dim=4))
        >>> vae.sample(3, seed=1).shape, vae.reconstruct(torch.zeros(5, *shape)).shape
        (torch.Size([3, 1, 8, 8]), torch.Size([5, 1, 8, 8]))
    """

    averaged = ("encoder", "decoder", "likelihood")
    reports: tuple[str, ...] = (
        "val/elbo", "val/reconstruction", "val/kl", "val/bpd", "val/mse", "val/active_units"
    )  # fmt: skip

    rising = ("val/elbo", "val/reconstruction", "val/active_units", "val/psnr")

    likelihood: Likelihood

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        likelihood: Likelihood | None = None,
        beta: float = 1.0,
        kl_warmup: Count = 0,
        free_bits: float = 0.0,
        corruption: nn.Module | None = None,
        latent_dim: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        if likelihood is not None and not isinstance(likelihood, Likelihood):
            raise ValueError(
                "likelihood must be a Likelihood such as imgsynth.likelihoods.Bernoulli(), got "
                f"{likelihood!r}."
            )
        for name, value in (("beta", beta), ("free_bits", free_bits)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0, got {value}.")
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood if likelihood is not None else OptimalGaussian()
        self.beta = beta
        self.free_bits = free_bits
        self.corruption = corruption
        self._kl_warmup = parse_count(kl_warmup, "kl_warmup")
        self.latent_dim = latent_dim_of(decoder, latent_dim, "decoder")
        self.num_classes = stated(decoder, "num_classes") or 0
        for attribute in ("image_shape", "latent_dim", "num_classes"):
            ours, theirs = (stated(network, attribute) for network in (encoder, decoder))
            if attribute == "num_classes":  # an encoder may do without the labels of its decoder
                ours, theirs = ours or None, theirs or 0
            if ours is not None and theirs is not None and ours != theirs:
                raise ValueError(
                    f"The encoder has {attribute} = {ours}, the decoder {theirs}; they must agree."
                )
        if corruption is not None:
            self.reports = (*self.reports, "val/psnr", "val/psnr_input")
        self._sums: dict[str, Tensor] = {}  # of validation batches
        self._is_told = self._is_checked = False

    def setup(self, stage: str) -> None:
        """Begin a run: its warning is still to come."""
        super().setup(stage)
        self._is_told = self._is_checked = False

    # -- the model ----------------------------------------------------------------------------

    def posterior(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(mu, logvar)`` of q(z | x), each ``(B, latent_dim)`` in float32.

        Raises:
            ValueError: If the encoder returns something else.
        """
        given = () if labels is None or not stated(self.encoder, "num_classes") else (labels,)
        made = self.encoder(images, *given)
        pair = made.chunk(2, 1) if isinstance(made, Tensor) and made.ndim == 2 else made
        expected = (len(images), self.latent_dim)
        if not isinstance(pair, tuple) or [tuple(t.shape) for t in pair] != [expected] * 2:
            raise ValueError(
                f"The encoder must return mu and logvar, each of shape {expected}, or both side "
                f"by side, got {_shapes(made)}."
            )
        mu, logvar = pair
        return (mu.float(), logvar.float()) if mu.dtype.itemsize < 4 else (mu, logvar)

    def outputs(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the decoder's outputs ``(B, C, H, W)``, what :attr:`likelihood` understands."""
        given = () if labels is None or not self.num_classes else (labels,)
        made: Tensor = self.decoder(latents.to(self.dtype), *given)
        return made

    def divergence(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """Return KL(q(z | x) || p(z)) of each latent, ``(B, latent_dim)`` in nats.

        Another prior than the standard normal is this, :meth:`log_prior` and :meth:`latents`.
        """
        return normal_kl(mu, logvar)

    def log_prior(self, latents: Tensor) -> Tensor:
        """Return log p(z) of latents ``(..., latent_dim)``, in nats, the last dimension summed."""
        return -0.5 * (latents.square() + math.log(2 * math.pi)).sum(-1)

    def log_ratio(self, latents: Tensor, noise: Tensor, logvar: Tensor) -> Tensor:
        """Return ``log q(z | x) - log p(z)`` of ``z = mu + exp(logvar / 2) noise``."""
        log_q = -0.5 * (noise.square() + logvar + math.log(2 * math.pi)).sum(-1)
        return log_q - self.log_prior(latents)

    # -- the step -----------------------------------------------------------------------------

    @property
    def kl_weight(self) -> float:
        """The weight of the KL in the present update: beta, or less while it warms up."""
        if not self._kl_warmup:
            return self.beta
        return self.beta * min(1.0, self.images_seen / self._kl_warmup)

    def losses(self, batch: Batch) -> Losses:
        """Return the negative ELBO of the batch, its KL weighted."""
        images, labels = batch["image"], self.labels_of(batch)
        mu, logvar = self.posterior(self._seen(images), labels)
        noise = torch.randn(mu.shape, device=mu.device, dtype=mu.dtype)
        z = torch.addcmul(mu, (0.5 * logvar).exp(), noise)
        log_prob = self.likelihood.log_prob(images, self.outputs(z, labels)).mean()
        kl = self.divergence(mu, logvar).mean(0)  # of each latent
        self.meter.add("train", {"elbo": log_prob - kl.sum()})
        return {"reconstruction": -log_prob, "kl": self.kl_weight * self._beyond_free(kl).sum()}

    def _beyond_free(self, kl: Tensor) -> Tensor:
        """Return the latents' KL, where it is less than is free as a constant."""
        if not self.free_bits:
            return kl
        return torch.where(mean_over_ranks(kl) > self.free_bits, kl, self.free_bits)

    def _seen(self, images: Tensor) -> Tensor:
        return images if self.corruption is None else self.corruption(images)

    # -- held-out images ----------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self._sums = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up what the averaged weights say of a batch."""
        images, labels = batch["image"], self.labels_of(batch)
        seeding.seed_default_generators(0, "validation", self.global_rank, batch_idx)
        with self.ema_weights():
            seen = self._seen(images)
            log_mass, kl, mu, outputs = self._bound(images, seen, labels)
            means = self.likelihood.mean(outputs).float()
        sums = {
            "num": mu.new_tensor(len(images)),
            "reconstruction": log_mass.sum(),
            "kl": kl.sum(),
            "mu": mu.sum(0),
            "mu2": mu.square().sum(0),
            "images": images.float().sum(0),
            "images2": images.float().square().sum(0),
            "off": off_levels(images, self.likelihood.levels),
            "between": off_levels(images, 2),
            "mse": _mse(means, images).sum(),
        }
        if self.corruption is not None:
            sums |= {"psnr": _psnr(means, images).sum(), "psnr_input": _psnr(seen, images).sum()}
        for name, value in sums.items():
            wide = value.to(self.device, torch.float64 if self.device.type != "mps" else None)
            self._sums[name] = self._sums[name] + wide if name in self._sums else wide

    def _bound(
        self, images: Tensor, seen: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log mass ``(B,)`` at a random latent, KL ``(B, latent_dim)``, mu and outputs."""
        mu, logvar = self.posterior(seen, labels)
        noise = torch.randn(mu.shape, device=mu.device, dtype=mu.dtype)
        z = torch.addcmul(mu, (0.5 * logvar).exp(), noise)
        log_mass = self.likelihood.log_mass(images, self.outputs(z, labels))
        return log_mass, self.divergence(mu, logvar), mu, self.outputs(mu, labels)

    def on_validation_epoch_end(self) -> None:
        """Report the means over the images of all devices, and tell of a collapse."""
        sums = {k: self._over_ranks(v, "sum") for k, v in self._sums.items()}
        self._sums = {}
        if self.trainer.sanity_checking or not sums:
            return
        means = {k: v / sums["num"] for k, v in sums.items()}
        variance = means["mu2"] - means["mu"].square()
        active = int((variance > ACTIVE).sum())
        elbo = means["reconstruction"] - means["kl"]
        names = ("reconstruction", "kl", "mse")
        scores = {"val/elbo": float(elbo), **{f"val/{n}": float(means[n]) for n in names}}
        scores["val/active_units"] = float(active)
        is_discrete = float(means["off"]) == 0
        if is_discrete:
            scores["val/bpd"] = float(bits_per_dimension(elbo, means["images"].numel()))
        if self.corruption is not None:
            scores |= {f"val/{n}": float(means[n]) for n in ("psnr", "psnr_input")}
        self._check_levels(is_discrete, means)
        self.report_scores(scores, self._protocols(scores, is_discrete, int(sums["num"])))
        spread = (means["images2"] - means["images"].square()).mean().clamp_min(0).sqrt()
        self._tell(float(means["kl"]), active, float(spread))

    def _protocols(self, scores: dict[str, float], is_discrete: bool, num: int) -> Protocols:
        own: dict[str, Any] = {"given": "labels" if self.num_classes else "nothing"}
        if self.corruption is not None:
            own["corruption"] = describe(self.corruption)
        bound = {
            "bound": "ELBO, one latent an image, KL in closed form",
            "probability": measure_of(self.likelihood, is_discrete),
        }
        bounds = {"val/elbo", "val/reconstruction", "val/kl", "val/bpd"}
        facts = {key: {**own, **bound} if key in bounds else own for key in scores}
        return self.protocols_of(facts, num)

    def _check_levels(self, is_discrete: bool, means: dict[str, Tensor]) -> None:
        """Warn, once, of images that are not what the likelihood is about."""
        if self._is_checked:
            return
        self._is_checked = True
        name, levels = type(self.likelihood).__name__, self.likelihood.levels
        if levels == 2 and not is_discrete:
            rank_zero_warn(
                f"The images are gray, and {name} is a likelihood of black and white ones: the "
                "ELBO is a cross-entropy, and there are no bits per dimension. --data.binarise "
                "true draws black and white images; OptimalGaussian and DiscretisedLogistic are "
                "for gray ones.",
                stacklevel=2,
            )
        elif levels > 2 and is_discrete and not float(means["between"]):
            rank_zero_warn(
                f"The images are black and white only, but {name} spreads over {levels} levels; "
                "Bernoulli is the likelihood of such images.",
                stacklevel=2,
            )

    def _tell(self, kl: float, active: int, spread: float) -> None:
        """Warn, once, of a posterior that has collapsed; not while latents are still to come."""
        early = self.total_images // 5 if self.total_images else 100_000
        if self._is_told or self.images_seen < max(early, self._kl_warmup):
            return
        fixed = self.likelihood if isinstance(self.likelihood, Gaussian) else None
        found = Posterior(
            kl=kl,
            active=active,
            latent_dim=self.latent_dim,
            spread=spread,
            sigma=None if fixed is None else float(fixed.sigma),
            beta=self.beta,
            warmup=self._kl_warmup,
            conditional=bool(self.num_classes),
        )
        told = collapse(found)
        if told is not None:
            self._is_told = True
            rank_zero_warn(told, stacklevel=2)

    # -- what it is for -----------------------------------------------------------------------

    def latents(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(num, latent_dim)`` standard normal latents, on the CPU from ``generator``."""
        return torch.randn(num, self.latent_dim, generator=generator)

    def generate(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Turn latents ``(B, latent_dim)`` into the expected images ``(B, C, H, W)``."""
        return self.likelihood.mean(self.outputs(latents, labels))

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(mu, logvar)`` of the posterior, by averaged weights in evaluation mode.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].
            labels: ``(B,)`` int64, exactly if the networks are conditional.
        """
        with self._using(images, labels):
            return self.posterior(images, labels)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the expected images ``(B, C, H, W)``, by averaged weights in evaluation mode."""
        with self._using(latents, labels):
            return self.generate(latents, labels)

    def log_likelihood(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        num_samples: int = 50,
        seed: int = 0,
        chunk: int | None = None,
    ) -> Tensor:
        """Estimate log P(x) of discrete images by importance sampling, with averaged weights.

        The expectation is a lower bound, which rises with ``num_samples``; at 1 it is the ELBO.
        The result does not depend on ``chunk``; the first samples of more are those of fewer.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].
            labels: ``(B,)`` int64, exactly if the networks are conditional.
            num_samples: Latents an image.
            seed: Chooses them.
            chunk: Images decoded at a time; only memory and speed depend on it. None chooses by
                their size.

        Returns:
            ``(B,)`` in nats, see ``Likelihood.log_mass``.

        Raises:
            ValueError: If a number is below 1.

        Source:
            Burda et al. 2016, "Importance Weighted Autoencoders", eq. 8.
        """
        if num_samples < 1 or (chunk is not None and chunk < 1):
            raise ValueError(
                f"num_samples and chunk must be at least 1, got {num_samples} and {chunk}."
            )
        if not len(images):
            return images.new_zeros(0)
        chunk = chunk or max(1, min(512, _PIXELS // max(1, images[:1].numel())))
        found = []
        with self._using(images, labels):
            for number, block in enumerate(torch.split(torch.arange(len(images)), _BLOCK)):
                for part in torch.split(block, chunk):
                    given = None if labels is None else labels[part]
                    places = part - block[0]
                    log_weights = []
                    for ks in torch.split(torch.arange(num_samples), max(1, chunk // len(part))):
                        noise = self._noise(seed, number, ks)[:, places].to(images.device)
                        log_weights.append(self._log_weights(images[part], given, noise))
                    found.append(importance_weighted(torch.cat(log_weights)))
        return torch.cat(found)

    def _noise(self, seed: int, block: int, samples: Tensor) -> Tensor:
        """Return the noise of some samples of a block of images, ``(K, 64, latent_dim)``."""
        drawn = []
        for k in samples.tolist():
            generator = seeding.generator(seed, "importance", block, k)
            drawn.append(torch.randn(_BLOCK, self.latent_dim, generator=generator))
        return torch.stack(drawn)

    def _log_weights(self, images: Tensor, labels: Tensor | None, noise: Tensor) -> Tensor:
        """Return ``log P(x, z) / q(z | x)``, ``(K, B)``, of latents given by their noise."""
        k = len(noise)
        mu, logvar = self.posterior(images, labels)
        z = torch.addcmul(mu, (0.5 * logvar).exp(), noise.to(mu.dtype))
        outputs = self.outputs(z.flatten(0, 1), None if labels is None else labels.repeat(k))
        log_mass = self.likelihood.log_mass(images.repeat(k, 1, 1, 1), outputs)
        return log_mass.view(k, -1) - self.log_ratio(z, noise, logvar)

    def anomaly_score(
        self, images: Tensor, labels: Tensor | None = None, *, num_samples: int = 10, seed: int = 0
    ) -> Tensor:
        """Return how unlikely images are: ``-log P(x)`` in nats, ``(B,)``; high is anomalous.

        Smooth, dark or empty images are likely under most models of images: compare with the
        scores of held-out images of the same kind (Nalisnick et al. 2019, "Do Deep Generative
        Models Know What They Don't Know?").

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].
            labels: ``(B,)`` int64, exactly if the networks are conditional.
            num_samples: Latents an image, see :meth:`log_likelihood`.
            seed: Chooses them.
        """
        return -self.log_likelihood(images, labels, num_samples=num_samples, seed=seed)

    @contextmanager
    def _using(self, images: Tensor, labels: Tensor | None) -> Iterator[None]:
        if not images.is_floating_point():
            raise ValueError(
                f"Images must be float in [-1, 1], got {images.dtype}; imgsynth.images.from_uint8 "
                "makes them so."
            )
        if bool(self.num_classes) != (labels is not None):
            num = self.num_classes
            needs = f"conditional on {num} classes" if num else "unconditional"
            given = "were given" if labels is not None else "are missing"
            raise ValueError(f"This {type(self).__name__} is {needs}, but labels {given}.")
        with self.evaluating():
            yield


def measure_of(likelihood: Likelihood, is_discrete: bool = True) -> str:
    """Say what ``log_mass`` is a probability of."""
    if not is_discrete:
        return "none: cross-entropy of gray images"
    return f"of {likelihood.levels} levels a pixel"


def _shapes(made: Any) -> str:  # noqa: ANN401
    if isinstance(made, Tensor):
        return f"a tensor of shape {tuple(made.shape)}"
    if isinstance(made, tuple | list):
        return ", ".join(_shapes(m) for m in made)
    return type(made).__name__


def _mse(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).float().square().flatten(1).mean(1)


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return ``(B,)`` in dB, for intensities from -1 to 1."""
    return 10 * torch.log10(4 / _mse(a, b).clamp_min(1e-10))
