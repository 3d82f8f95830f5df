"""VQ-VAE: images as small maps of whole numbers, and a prior that makes new ones."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgsynth.likelihoods import Gaussian, Likelihood
from imgsynth.methods.one_player import OnePlayerMethod
from imgsynth.methods.reconstructor import Reconstructor
from imgsynth.methods.sampler import Sampler
from imgsynth.types import Batch, Losses

_SETTLED = 200
"""Updates before the codebook is judged: the averages that it follows remember about 100."""


class VQVAE(Sampler, Reconstructor, OnePlayerMethod):
    """Vector-quantised variational autoencoder, with a prior of its codes if it is to sample.

    The terms are means, not sums over an image. ``reconstruction`` is the negative log
    probability of an image divided by its number of values (channels times pixels), in nats a
    value, and ``commitment`` is the mean over the values of the map of features, as in the
    official implementation. ``commitment_weight`` then does not depend on the size of images, but
    it does depend on how narrow the likelihood is: ``Gaussian(sigma)`` weighs the squared error
    by ``1 / (2 sigma**2)``, and the official implementation by 1 over the variance of the data,
    which for CIFAR-10 in [-1, 1] is a sigma of 0.36.

    The prior is trained along, on the codes as they are; no gradient passes from it to the
    encoder. Its term ``prior`` is the cross-entropy in nats a code. It follows codes that still
    change, so a run should go on for a while after ``reconstruction`` has settled.

    Reports ``train/<term>``, and of the training batches ``train/perplexity`` and
    ``train/usage``. After each validation, of averaged weights over all held-out images:
    ``val/reconstruction`` (mean squared error of a value in [-1, 1]), ``val/perplexity``,
    ``val/usage`` (share of the codes in use) and ``val/prior``. If hardly any codes are in use
    there, it warns once a run and names the cause as measured.

    Args:
        encoder: ``forward(images)`` to features ``(B, D, h, w)``.
        quantizer: A :class:`~imgsynth.networks.VectorQuantizer`,
            :class:`~imgsynth.networks.FiniteScalarQuantizer` or another with their interface.
        decoder: ``forward(codes)`` to outputs ``(B, C, H, W)``, any real numbers. It or the
            encoder states ``code_shape`` (D, h, w), which a prior needs.
        prior: ``forward(indices (B, h * w), labels=None)`` to logits ``(B, h * w, num_codes)``
            and ``sample(uniforms, labels=None)`` to indices, such as
            :class:`~imgsynth.networks.CodeTransformer`. Conditional if it has ``num_classes``.
            None: reconstructs, but does not sample.
        likelihood: What the outputs mean; None is ``Gaussian(sigma=0.5)``.
        commitment_weight: The paper's beta; it found little difference from 0.1 to 2.
        **kwargs: To :class:`~imgsynth.methods.OnePlayerMethod`.

    Raises:
        ValueError: If the networks disagree about the shape or the number of codes, or
            ``commitment_weight`` is negative.

    Source:
        Van den Oord et al. 2017, "Neural Discrete Representation Learning", eq. 3; its third term
        is replaced by the averages of appendix A.1.

    Example:
        >>> from imgsynth.networks import CodeTransformer, SpatialDecoder, SpatialEncoder
        >>> from imgsynth.networks import VectorQuantizer
        >>> sizes = {"image_shape": (1, 8, 8), "code_dim": 4, "downsamplings": 1, "width": 8}
        >>> method = VQVAE(
        ...     SpatialEncoder(**sizes),
        ...     VectorQuantizer(num_codes=16, code_dim=4),
        ...     SpatialDecoder(**sizes),
        ...     CodeTransformer(num_codes=16, num_tokens=16, width=16, depth=1),
        ... )
        >>> method.encode(torch.zeros(3, 1, 8, 8)).shape, method.sample(2).shape
        (torch.Size([3, 4, 4]), torch.Size([2, 1, 8, 8]))
    """

    averaged: tuple[str, ...] = ("encoder", "quantizer", "decoder")
    reports: tuple[str, ...] = ("val/reconstruction", "val/perplexity", "val/usage")

    rising = ("val/perplexity", "val/usage")
    latents_dtype = torch.float32  # uniform numbers, of which half precision would round some to 1

    encoder: nn.Module
    quantizer: Any  # modules with more than forward(), see the arguments
    decoder: nn.Module
    prior: Any

    def __init__(
        self,
        encoder: nn.Module,
        quantizer: nn.Module,
        decoder: nn.Module,
        prior: nn.Module | None = None,
        *,
        likelihood: Likelihood | None = None,
        commitment_weight: float = 0.25,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= commitment_weight < math.inf:
            raise ValueError(f"commitment_weight must be at least 0, got {commitment_weight}.")
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder
        self.prior = prior
        self.likelihood = likelihood if likelihood is not None else Gaussian(sigma=0.5)
        self.commitment_weight = commitment_weight
        self._code_shape = _agreed(encoder, quantizer, decoder)
        if prior is not None:
            _check_prior(prior, quantizer, self._code_shape)
            self.num_classes = getattr(prior, "num_classes", 0) or 0
            self.averaged = (*self.averaged, "prior")
            self.reports = (*self.reports, "val/prior")
        self._sums = self._counts = torch.zeros(0)  # of validation batches
        self._features: Tensor | None = None
        self._warned = False

    def setup(self, stage: str) -> None:
        """Begin a run: its warning is still to come."""
        super().setup(stage)
        self._warned = False

    # -- training -----------------------------------------------------------------------------

    def losses(self, batch: Batch) -> Losses:
        """Return the terms of eq. 3, and the prior's cross-entropy."""
        images = batch["image"]
        codes, indices, figures = self.quantizer(self.encoder(images))
        log_prob = self.likelihood.log_prob(images, self.decoder(codes))
        terms = {"reconstruction": -log_prob.mean() / images[0].numel()}
        if "commitment" in figures:
            terms["commitment"] = self.commitment_weight * figures["commitment"]
        if self.prior is not None:
            terms["prior"] = self._cross_entropy(indices, self.labels_of(batch)).mean()
        self.meter.add("train", {k: v for k, v in figures.items() if k != "commitment"})
        return terms

    def _cross_entropy(self, indices: Tensor, labels: Tensor | None) -> Tensor:
        """Return what each code costs under the prior, ``(B, h * w)`` in nats."""
        indices = indices.flatten(1)
        logits = self.prior(indices, *(() if labels is None else (labels,)))
        return F.cross_entropy(logits.float().mT, indices, reduction="none")

    # -- held-out images ----------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self._sums = torch.zeros(5, device=self.device, dtype=torch.float32)
        self._counts = self._sums.new_zeros(self.quantizer.num_codes)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sum what the averaged weights make of held-out images."""
        images = batch["image"]
        with self.ema_weights():
            self._features = self.encoder(images)
            codes, indices, _ = self.quantizer(self._features)
            error = (self.likelihood.mean(self.decoder(codes)) - images).float().square()
            nats = torch.zeros(1, device=self.device)
            if self.prior is not None:
                nats = self._cross_entropy(indices, self.labels_of(batch))
        self._sums[0] += error.sum()
        self._sums[1] += error.numel()
        self._sums[2] += nats.sum()
        self._sums[3] += nats.numel()
        self._sums[4] += len(images)
        self._counts += self.quantizer.count(indices)

    def on_validation_epoch_end(self) -> None:
        """Report the means over the images of all devices, and look at the codes in use."""
        error, num, nats, places, images = self._over_ranks(self._sums, "sum").tolist()
        counts = self._over_ranks(self._counts, "sum")
        if self.trainer.sanity_checking:
            return
        figures = self.quantizer.figures(counts)
        scores = {f"val/{name}": float(value) for name, value in figures.items()}
        if self.prior is not None:
            scores["val/prior"] = nats / places
        scores["val/reconstruction"] = error / num
        given = {"given": "labels" if self.num_classes else "nothing"}
        facts = {key: given if key == "val/prior" else {} for key in scores}
        self.report_scores(scores, self.protocols_of(facts, int(images)))
        if self.global_rank == 0 and self.updates >= _SETTLED and not self._warned:
            with self.ema_weights():
                message = self.quantizer.collapse(self._features, counts)
            if message is not None:
                self._warned = True
                warnings.warn(message, stacklevel=2)
        self._features = None

    # -- what it is for -----------------------------------------------------------------------

    def encode(self, images: Tensor) -> Tensor:
        """Return the indices ``(B, h, w)`` int64 of images, by averaged weights.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].
        """
        with self.evaluating():
            indices: Tensor = self.quantizer(self.encoder(images))[1]
        return indices

    def decode_codes(self, indices: Tensor) -> Tensor:
        """Return the images ``(B, C, H, W)`` in [-1, 1] of indices, by averaged weights.

        Args:
            indices: ``(B, h, w)`` int64, as of :meth:`encode`.
        """
        with self.evaluating():
            return self._decoded(indices)

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return what the codes keep of images, by averaged weights.

        Args:
            images: ``(B, C, H, W)`` in [-1, 1].
            labels: Not looked at: only the prior knows classes.
        """
        return self.decode_codes(self.encode(images))

    def latents(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(num, h * w)`` uniform numbers, one for each code to choose.

        Raises:
            ValueError: If there is no prior.
        """
        return torch.rand(num, self._sampling_prior().num_tokens, generator=generator)

    def generate(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Let the prior choose codes one after another, and decode them.

        Args:
            latents: ``(B, h * w)`` as of :meth:`latents`.
            labels: ``(B,)`` int64, exactly if the prior is conditional.

        Returns:
            Images ``(B, C, H, W)`` in [-1, 1].

        Raises:
            ValueError: If there is no prior.
        """
        indices = self._sampling_prior().sample(latents, *(() if labels is None else (labels,)))
        return self._decoded(indices.view(-1, *self._code_shape[1:]))

    def pictures(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """Show samples if there is a prior, and real images above their reconstructions."""
        made = {}
        if self.prior is not None:
            made["samples"] = self.sample_sheet()
        if batch is not None:
            made["reconstructions"] = self.reconstruction_sheet(batch["image"])
        return made

    def _decoded(self, indices: Tensor) -> Tensor:
        codes: Tensor = self.quantizer.codes(indices)
        return self.likelihood.mean(self.decoder(codes.to(self.dtype)))

    def why_no_samples(self) -> str | None:
        """Say that there is no prior, if there is none."""
        if self.prior is not None:
            return None
        return (
            "This VQVAE has no prior, so it reconstructs but does not sample; train it with "
            f"prior=CodeTransformer(num_codes={self.quantizer.num_codes}, num_tokens=h * w)."
        )

    def _sampling_prior(self) -> Any:  # noqa: ANN401
        if self.prior is None:
            raise ValueError(self.why_no_samples())
        return self.prior


def _agreed(encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module) -> tuple[int, ...]:
    """Return the shape of a map of codes, () if nobody states it; refuse what does not fit."""
    made, taken = (tuple(getattr(net, "code_shape", ())) for net in (encoder, decoder))
    if made and taken and made != taken:
        raise ValueError(
            f"The encoder makes maps of shape {made} (code_dim, h, w), the decoder takes {taken}; "
            "build both with the same image_shape, code_dim and downsamplings."
        )
    shape = made or taken
    if shape and shape[0] != quantizer.code_dim:
        raise ValueError(
            f"The encoder makes features of {shape[0]} channels, but the codes have "
            f"{quantizer.code_dim}; build encoder and decoder with code_dim={quantizer.code_dim}."
        )
    return shape


def _check_prior(prior: nn.Module, quantizer: nn.Module, shape: tuple[int, ...]) -> None:
    if not shape:
        raise ValueError(
            "A prior needs to know the shape of a map of codes; let the encoder or the decoder "
            "state code_shape = (code_dim, h, w)."
        )
    wanted = {"num_codes": quantizer.num_codes, "num_tokens": shape[1] * shape[2]}
    for name, value in wanted.items():
        if getattr(prior, name, value) != value:
            raise ValueError(
                f"The prior has {name} = {getattr(prior, name)}, but images have {value}; build "
                f"it with {', '.join(f'{k}={v}' for k, v in wanted.items())}."
            )
