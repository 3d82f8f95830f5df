"""Checks of networks."""

import json
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from imgsynth.describe import MARKER, build, describe
from imgsynth.testing.contract import require


def check_network(make: Callable[[], nn.Module], *, seed: int = 0) -> None:
    """Check a generator or a discriminator.

    A network with a ``latent_dim`` is taken for a generator.

    Args:
        make: Builds the network, afresh each time.
        seed: For the weights and the inputs.

    Raises:
        ContractError: At the first thing that is wrong. Checked are: ``image_shape`` and
            ``num_classes`` are stated; shapes and range of the outputs; gradients reach the input
            and every parameter; in evaluation mode an image's result depends on nothing but
            itself; labels matter exactly if there are classes; weights and description
            rebuild the network.

    Example:
        >>> from imgsynth.networks import MLPGenerator
        >>> check_network(lambda: MLPGenerator((1, 8, 8), num_classes=3, latent_dim=4))
    """
    torch.manual_seed(seed)
    network = make()
    name = type(network).__name__
    shape = getattr(network, "image_shape", None)
    require(
        isinstance(shape, tuple) and len(shape) == 3,
        f"{name}.image_shape must be (channels, height, width), got {shape!r}.",
    )
    classes = getattr(network, "num_classes", None)
    require(isinstance(classes, int), f"{name}.num_classes must be an int, 0 for none.")
    generates = hasattr(network, "latent_dim")
    size = (network.latent_dim,) if generates else shape
    inputs = torch.randn(4, *cast(tuple[int, ...], size)).requires_grad_()
    labels = (torch.arange(4) % classes,) if classes else ()
    outputs = network(inputs, *labels)
    if generates:
        _check_images(name, outputs, shape)
    else:
        require(
            outputs.shape[:1] == (4,) and (outputs.ndim == 1 or outputs.shape[1] == 1),
            f"{name} must return logits (B,), or (B, 1, H', W') for patches, got "
            f"{tuple(outputs.shape)} for 4 images.",
        )
    _check_gradients(network, inputs, outputs)
    _check_evaluation(network, inputs.detach(), labels)
    _check_rebuild(network, make, inputs.detach(), labels)


def _check_images(name: str, images: Tensor, shape: Any) -> None:  # noqa: ANN401
    require(
        tuple(images.shape) == (4, *shape),
        f"{name} states image_shape {shape} but makes {tuple(images.shape[1:])}.",
    )
    low, high = images.min().item(), images.max().item()
    require(
        low >= -1 and high <= 1,
        f"{name} makes values from {low:.2f} to {high:.2f}; images are in [-1, 1] (end with tanh).",
    )


def _check_gradients(network: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    name = type(network).__name__
    (outputs * torch.randn_like(outputs)).sum().backward()  # type: ignore[no-untyped-call]
    require(
        inputs.grad is not None and bool((inputs.grad != 0).any()),
        f"No gradient passes {name} to its input.",
    )
    for key, parameter in network.named_parameters():
        require(
            not parameter.requires_grad or parameter.grad is not None,
            f"{name}: the parameter {key!r} has no part in the output.",
        )


def _check_evaluation(network: nn.Module, inputs: Tensor, labels: tuple[Tensor, ...]) -> None:
    name = type(network).__name__
    network.eval()
    with torch.no_grad():
        together = network(inputs, *labels)
        alone = network(inputs[:1], *(y[:1] for y in labels))
        require(
            torch.equal(together, network(inputs, *labels)),
            f"{name} gives two results for one input in evaluation mode.",
        )
        require(
            torch.allclose(together[:1], alone, atol=1e-5, rtol=1e-4),
            f"{name}: in evaluation mode the result for an image depends on the rest of its batch.",
        )
        if labels:
            other = tuple((y + 1) % cast(int, network.num_classes) for y in labels)
            require(
                cast(int, network.num_classes) == 1
                or not torch.equal(together, network(inputs, *other)),
                f"{name} takes labels, but they change nothing.",
            )


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
            torch.equal(network(inputs, *labels), again(inputs, *labels)),
            f"{name} rebuilt with the same weights gives another output.",
        )
