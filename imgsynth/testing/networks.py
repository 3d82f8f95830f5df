"""Checks of networks."""

import json
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from imgsynth.describe import MARKER, build, describe
from imgsynth.testing.contract import require

Kind: TypeAlias = Literal["generator", "discriminator", "encoder", "decoder"]


def check_network(
    make: Callable[[], nn.Module], *, kind: Kind | None = None, seed: int = 0
) -> None:
    """Check a network by the contract of its kind.

    Args:
        make: Builds the network, afresh each time.
        kind: What the network is: a ``"generator"`` makes images in [-1, 1] of latents, a
            ``"decoder"`` any numbers of an image's shape, a ``"discriminator"`` logits of images,
            an ``"encoder"`` the mean and the log variance of a latent. None takes a network with
            a ``latent_dim`` for a generator, any other for a discriminator.
        seed: For the weights and the inputs.

    Raises:
        ContractError: At the first thing that is wrong. Checked are: ``image_shape``,
            ``num_classes`` and, but for a discriminator, ``latent_dim`` are stated; shapes and
            range of the outputs; gradients reach the input from each output, and every
            parameter; in evaluation mode an image's result depends on nothing but itself; labels
            matter exactly if there are classes; weights and description rebuild the network.
        ValueError: If ``kind`` is none of these.

    Example:
        >>> from imgsynth.networks import MLPGenerator
        >>> check_network(lambda: MLPGenerator((1, 8, 8), num_classes=3, latent_dim=4))
    """
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}, got {kind!r}.")
    torch.manual_seed(seed)
    network = make()
    if kind is None:
        kind = "generator" if hasattr(network, "latent_dim") else "discriminator"
    _check_statements(network, kind)
    size = (network.latent_dim,) if kind in {"generator", "decoder"} else network.image_shape
    inputs = torch.randn(4, *cast(tuple[int, ...], size)).requires_grad_()
    classes = cast(int, network.num_classes)
    labels = (torch.arange(4) % classes,) if classes else ()
    outputs = network(inputs, *labels)
    if kind == "encoder":
        _check_posterior(network, outputs)
    elif kind == "discriminator":
        _check_logits(network, outputs)
    else:
        _check_images(network, outputs, bounded=kind == "generator")
    _check_gradients(network, inputs, _tensors(outputs))
    _check_evaluation(network, inputs.detach(), labels)
    _check_rebuild(network, make, inputs.detach(), labels)


def _check_statements(network: nn.Module, kind: Kind) -> None:
    name = type(network).__name__
    shape = getattr(network, "image_shape", None)
    require(
        isinstance(shape, tuple) and len(shape) == 3,
        f"{name}.image_shape must be (channels, height, width), got {shape!r}.",
    )
    classes = getattr(network, "num_classes", None)
    require(isinstance(classes, int), f"{name}.num_classes must be an int, 0 for none.")
    latent_dim = getattr(network, "latent_dim", None)
    require(
        kind == "discriminator" or isinstance(latent_dim, int),
        f"{name}.latent_dim must be the length of a latent, got {latent_dim!r}.",
    )


def _tensors(outputs: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _check_posterior(network: nn.Module, outputs: Any) -> None:  # noqa: ANN401
    wanted = (4, cast(int, network.latent_dim))
    several = isinstance(outputs, tuple)
    got = [tuple(t.shape) for t in outputs] if several else type(outputs).__name__
    require(
        got == [wanted, wanted],
        f"{type(network).__name__} must return a tuple of mean and log variance, each of shape "
        f"{wanted} for 4 images, got {got}.",
    )


def _check_logits(network: nn.Module, outputs: Tensor) -> None:
    require(
        outputs.shape[:1] == (4,) and (outputs.ndim == 1 or outputs.shape[1] == 1),
        f"{type(network).__name__} must return logits (B,), or (B, 1, H', W') for patches, got "
        f"{tuple(outputs.shape)} for 4 images.",
    )


def _check_images(network: nn.Module, images: Tensor, bounded: bool) -> None:
    name, shape = type(network).__name__, cast(tuple[int, ...], network.image_shape)
    require(
        tuple(images.shape) == (4, *shape),
        f"{name} states image_shape {shape} but makes {tuple(images.shape[1:])}.",
    )
    low, high = images.min().item(), images.max().item()
    require(
        not bounded or (low >= -1 and high <= 1),
        f"{name} makes values from {low:.2f} to {high:.2f}; images are in [-1, 1] (end with tanh).",
    )


def _check_gradients(network: nn.Module, inputs: Tensor, outputs: tuple[Tensor, ...]) -> None:
    name = type(network).__name__
    totals = [(output * torch.randn_like(output)).sum() for output in outputs]
    for n, total in enumerate(totals, 1):
        gradient = None
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
        which = f" from output {n} of {len(totals)}" if len(totals) > 1 else ""
        require(
            gradient is not None and bool((gradient != 0).any()),
            f"No gradient passes {name}{which} to its input.",
        )
    torch.stack(totals).sum().backward()  # type: ignore[no-untyped-call]
    for key, parameter in network.named_parameters():
        require(
            not parameter.requires_grad or parameter.grad is not None,
            f"{name}: the parameter {key!r} has no part in the output.",
        )


def _check_evaluation(network: nn.Module, inputs: Tensor, labels: tuple[Tensor, ...]) -> None:
    name = type(network).__name__
    network.eval()
    with torch.no_grad():
        together = _tensors(network(inputs, *labels))
        alone = _tensors(network(inputs[:1], *(y[:1] for y in labels)))
        require(
            _equal(together, _tensors(network(inputs, *labels))),
            f"{name} gives two results for one input in evaluation mode.",
        )
        require(
            all(
                torch.allclose(a[:1], b, atol=1e-5, rtol=1e-4)
                for a, b in zip(together, alone, strict=True)
            ),
            f"{name}: in evaluation mode the result for an image depends on the rest of its batch.",
        )
        if labels:
            other = tuple((y + 1) % cast(int, network.num_classes) for y in labels)
            require(
                cast(int, network.num_classes) == 1
                or not _equal(together, _tensors(network(inputs, *other))),
                f"{name} takes labels, but they change nothing.",
            )


def _equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _check_rebuild(
    network: nn.Module, make: Callable[[], nn.Module], inputs: Tensor, labels: tuple[Tensor, ...]
) -> None:
    name = type(network).__name__
    description = json.loads(json.dumps(describe(network)))
    if MARKER in description:
        again = make()
    else:
        package = type(network).__module__.partition(".")[0]
        again = build(description, trusted=(package,))
    again.load_state_dict(network.state_dict())
    again.eval()
    with torch.no_grad():
        require(
            _equal(_tensors(network(inputs, *labels)), _tensors(again(inputs, *labels))),
            f"{name} rebuilt with the same weights gives another output.",
        )
