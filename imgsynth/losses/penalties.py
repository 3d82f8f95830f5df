"""Gradient penalties: functions of the discriminator's slope at given images, per image."""

from collections.abc import Callable

import torch
from torch import Tensor


def _slopes(logits: Tensor, images: Tensor) -> Tensor:
    """Gradient of each image's logits with respect to that image, ``(B, C * H * W)``."""
    if not logits.requires_grad:
        raise ValueError(
            "A gradient penalty needs logits with a graph, got requires_grad=False of shape "
            f"{tuple(logits.shape)}; run the critic outside torch.no_grad() and do not detach."
        )
    total = logits.sum(dtype=torch.float32) if logits.dtype.itemsize < 4 else logits.sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "A gradient penalty needs logits computed from the images, but these logits do not "
            "depend on them; pass the very tensor that was given to the critic."
        )
    gradient = gradient.flatten(1)
    return gradient.float() if gradient.dtype.itemsize < 4 else gradient


def zero_centred_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared gradient norm of the discriminator at ``images``, per image.

    R1 when the images are real, R2 when they are generated. Multiply the mean by
    ``gamma / 2``: the factor one half is left to the caller, as papers differ.

    Args:
        logits: ``(B,)`` or ``(B, 1, H', W')`` (patches), before any activation.
        images: ``(B, C, H, W)`` in [-1, 1], the tensor that produced ``logits``,
            with ``requires_grad=True``. Augmentation may lie between the two.

    Returns:
        ``(B,)`` in squared logits per squared intensity, summed (not averaged)
        over pixels: it grows with resolution, so ``gamma`` is tuned for one.

    Raises:
        ValueError: If ``images`` does not require grad, or ``logits`` do not depend on it.

    Source:
        Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", eq. 9.

    Example:
        >>> x = torch.ones(2, 1, 2, 2, requires_grad=True)
        >>> zero_centred_penalty((3 * x).sum((1, 2, 3)), x).tolist()
        [36.0, 36.0]
    """
    if not images.requires_grad:
        raise ValueError(
            "A zero-centred penalty needs images that require grad, got requires_grad=False of "
            f"shape {tuple(images.shape)}; call images.requires_grad_() before the critic."
        )
    return _slopes(logits, images).square().sum(1)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    interpolation: Tensor | None = None,
    target: float = 1.0,
) -> Tensor:
    """Squared distance of the critic's gradient norm to ``target``, per interpolated image.

    The images between real and generated ones and the critic's answer to them are computed in
    float32 with autocast disabled, also within mixed precision: squared slopes of half precision
    overflow or vanish. Multiply the mean by lambda (10 in the paper): no weight is applied here.

    Args:
        critic: Maps images to logits ``(B,)``; a conditional critic is passed with its labels
            bound. Must treat the images of a batch independently (no batch normalisation).
        real: ``(B, C, H, W)`` in [-1, 1]; detached here.
        fake: Generated images of the same shape; detached here.
        interpolation: ``(B,)`` in [0, 1], the share of the real image (the paper's epsilon);
            drawn uniformly from the images' device if None.
        target: The norm wanted, 1 in the paper.

    Returns:
        ``(B,)``, differentiable with respect to the critic's parameters.

    Raises:
        ValueError: If the two sets of images differ in shape, ``interpolation`` is not ``(B,)``,
            or the critic's logits do not depend on its images.

    Source:
        Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", eq. 3.

    Example:
        >>> x = torch.ones(2, 1, 2, 2)
        >>> gradient_penalty(lambda x: (3 * x).sum((1, 2, 3)), x, -x).tolist()
        [25.0, 25.0]
    """
    if real.shape != fake.shape:
        raise ValueError(
            "A gradient penalty interpolates real and generated images of one shape, got "
            f"{tuple(real.shape)} and {tuple(fake.shape)}; use equally many of equal size."
        )
    if interpolation is None:
        interpolation = torch.rand(len(real), device=real.device)
    if interpolation.shape != real.shape[:1]:
        raise ValueError(
            f"interpolation: expected one share per image, shape {tuple(real.shape[:1])}, got "
            f"{tuple(interpolation.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(real.dtype, fake.dtype), torch.float32)
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        share = interpolation.to(dtype).reshape(-1, *[1] * (real.ndim - 1))
        between = torch.lerp(fake.detach().to(dtype), real.detach().to(dtype), share)
        between.requires_grad_()
        slopes = _slopes(critic(between), between)
        norms: Tensor = torch.linalg.vector_norm(slopes, dim=1)
        return (norms - target).square()
