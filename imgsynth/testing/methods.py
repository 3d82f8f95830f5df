"""Checks of methods: a few updates watched from inside, and resumed."""

import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from imgsynth import seeding
from imgsynth.callbacks.quiet import quiet
from imgsynth.data.base import ImageDataModule, Split
from imgsynth.describe import MARKER, build, describe
from imgsynth.loading import load
from imgsynth.methods.adversarial import AdversarialMethod
from imgsynth.methods.base import Method
from imgsynth.methods.sampler import Sampler
from imgsynth.testing.contract import ContractError, first_difference, require
from imgsynth.types import Batch, Losses


def check_method(
    make: Callable[[], Method], data: ImageDataModule | None = None, *, seed: int = 0
) -> None:
    """Check that a method can be trained, sampled, saved and resumed.

    On the CPU, in about a second for small networks. Three updates are watched from inside, then
    four updates are compared with two, a checkpoint, and two more.

    Args:
        make: Builds the method, afresh each time; with the same seed it must build the same.
        data: What to train on; None makes 16 noise images a class that fit the generator.
        seed: The run's seed.

    Raises:
        ContractError: At the first thing that is wrong. Checked are: the terms are named scalars
            that depend on what they judge; each player's step changes all of its own parameters
            and none of the other's; gradients are finite and pass ``manual_backward``;
            ``global_step`` counts updates; the average moves and differs from the live weights;
            the same seed gives the same result; a checkpoint gives the same samples to the bit;
            2 + 2 resumed updates equal 4; the dumped description rebuilds the method.

    Example:
        >>> from imgsynth.methods import HingeGAN
        >>> from imgsynth.networks import MLPDiscriminator, MLPGenerator
        >>> shape = (1, 8, 8)
        >>> check_method(lambda: HingeGAN(MLPGenerator(shape), MLPDiscriminator(shape)))
    """
    quiet()

    def fresh() -> Method:
        torch.manual_seed(seed)
        return make()

    method = fresh()
    _check_static(method, fresh())
    data = data if data is not None else _noise(method)
    with tempfile.TemporaryDirectory() as name, _seeded(seed):
        folder = Path(name)
        _check_updates(method, data)
        _check_average(method)
        _check_description(method, fresh)
        _check_resume(fresh, data, folder)
        _check_reload(folder / "4.ckpt", fresh())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give every fit inside the same seed, whatever the process did before."""
    before = os.environ.get("PL_GLOBAL_SEED")
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PL_GLOBAL_SEED"]
        else:
            os.environ["PL_GLOBAL_SEED"] = before


def _check_static(method: Method, again: Method) -> None:
    name = type(method).__name__
    require(isinstance(method, Method), f"{name} does not inherit imgsynth's Method.")
    for module in method.averaged:
        require(
            isinstance(method._modules.get(module), nn.Module),
            f"{name}.averaged names {module!r}, but there is no such submodule.",
        )
    first = first_difference(method.state_dict(), again.state_dict())
    require(
        first is None,
        f"Built twice with the same seed, {name} has other initial weights ({first}): draw them "
        "from torch's default generator.",
    )


def _trainer(steps: int, *callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


class _Noise(ImageDataModule):
    splits = ("train",)

    def __init__(self, shape: tuple[int, int, int], classes: int, batch_size: int) -> None:
        super().__init__(batch_size=batch_size)
        self._shape, self._num = shape, classes

    def load_split(self, split: str) -> Split:
        generator = seeding.generator(0, split)
        count = 16 * max(1, self._num)
        images = torch.randint(0, 256, (count, *self._shape), generator=generator)
        labels = torch.arange(count) % self._num if self._num else None
        return images.to(torch.uint8), labels


def _noise(method: Method) -> ImageDataModule:
    networks = [getattr(method, name) for name in method.averaged]
    shapes = [getattr(network, "image_shape", None) for network in networks]
    shape = next((shape for shape in shapes if shape is not None), None)
    names = ", ".join(method.averaged)
    names = ", ".join(method.averaged) or "what it averages"
    require(
        shape is not None,
        f"{type(method).__name__}: {names} states no image_shape (channels, height, width); state "
        "it, or pass data=...",
    )
    classes = getattr(method, "num_classes", 0)
    size = 2 * getattr(method, "accumulate", 1)
    return _Noise(cast(tuple[int, int, int], shape), classes, size)


def _check_updates(method: Method, data: ImageDataModule) -> None:
    name = type(method).__name__
    watch = _Watch(method)
    trainer = _trainer(3, watch)
    with watch:
        trainer.fit(method, data)
    require(
        trainer.global_step == method.updates == 3,
        f"In 3 training steps {name} counted {method.updates} updates and Lightning "
        f"{trainer.global_step} optimiser steps; all three must agree, or schedules, checkpoints "
        "and plots mean different things. Let the engine step the optimisers, and call "
        "self._updated(images) exactly once after each update.",
    )
    require(method.images_seen > 0, f"{name}.images_seen is still 0 after 3 updates.")
    watch.check_changed()


class _Watch(Callback):
    """Looks into each update: who changed what, along which gradients."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.name = type(method).__name__
        self.inside = False
        self.changed: set[str] = set()
        self.connected: set[str] = set()
        self.pushed: set[str] = set()
        if isinstance(method, AdversarialMethod):
            self.players = {
                "generator": dict(method.generator.named_parameters(prefix="generator")),
                "discriminator": dict(
                    method.discriminator.named_parameters(prefix="discriminator")
                ),
            }
        else:
            skip = ("ema.",)
            named = method.named_parameters()
            self.players = {"method": {k: p for k, p in named if not k.startswith(skip)}}

    def __enter__(self) -> None:
        method, raw = self.method, Tensor.backward

        def backward(tensor: Tensor, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            require(
                self.inside,
                f"{self.name} calls loss.backward() itself: on several devices gradients would not "
                "be synchronised, and ranks drift apart without an error. Use "
                "self.manual_backward(loss), or return the loss as a named term.",
            )
            raw(tensor, *args, **kwargs)  # type: ignore[no-untyped-call]

        def allowed(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            self.inside = True
            try:
                LightningModule.backward(method, *args, **kwargs)
            finally:
                self.inside = False

        self._raw = raw
        Tensor.backward = backward  # type: ignore[method-assign,assignment]
        method.backward = allowed  # type: ignore[method-assign]
        if isinstance(method, AdversarialMethod):
            update = method._update
            method._update = lambda *args: self._watched_update(update, *args)  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        Tensor.backward = self._raw  # type: ignore[method-assign]
        for attribute in ("backward", "_update"):
            self.method.__dict__.pop(attribute, None)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:  # noqa: ANN401
        """Require that every parameter has an optimiser."""
        stepped = {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
        for key, parameter in self.method.named_parameters():
            require(
                id(parameter) in stepped or not parameter.requires_grad,
                f"{key!r} would never learn: no optimiser has it. Make it a part of a player, give "
                "it to an optimiser in configure_optimizers, or freeze it by "
                "requires_grad_(False).",
            )

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:  # noqa: ANN401
        """Remember the parameters before the step."""
        self.before = {k: p.detach().clone() for p_ in self.players.values() for k, p in p_.items()}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        module: Any,  # noqa: ANN401
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Note what changed, and whether a gradient asked for it."""
        for player in self.players.values():
            for key, parameter in player.items():
                if not torch.equal(self.before[key], parameter):
                    self.changed.add(key)
            self._note_gradients(player)

    def _note_gradients(self, player: dict[str, nn.Parameter]) -> None:
        for key, parameter in player.items():
            if parameter.grad is not None:
                self.connected.add(key)
                if bool(parameter.grad.any()):
                    self.pushed.add(key)

    def _watched_update(
        self,
        update: Callable[..., None],
        player: str,
        loss: Callable[[Batch, Batch], Losses],
        *rest: Any,  # noqa: ANN401
    ) -> None:
        other = "generator" if player == "discriminator" else "discriminator"
        own_parameters, others = self.players[player], self.players[other]
        for parameter in others.values():
            parameter.grad = None
        before = {k: p.detach().clone() for k, p in others.items()}

        def checked(batch: Batch, fake: Batch) -> Losses:
            return self._check_terms(player, loss, batch, fake)

        update(player, checked, *rest)
        self._note_gradients(own_parameters)
        for key, parameter in others.items():
            require(
                parameter.grad is None,
                f"In the {player}'s update the gradient reaches {key!r} of the {other}, which "
                "must not learn from it.",
            )
            require(
                torch.equal(before[key], parameter),
                f"The {player}'s update changes {key!r} of the {other}.",
            )
        for key, parameter in own_parameters.items():
            require(
                parameter.grad is None or bool(parameter.grad.isfinite().all()),
                f"The gradient of {key!r} is not finite in the {player}'s update.",
            )

    def _check_terms(
        self,
        player: str,
        loss: Callable[[Batch, Batch], Losses],
        batch: Batch,
        fakes: Batch,
    ) -> Losses:
        real_inputs = _track(batch)
        fake_inputs = _track(fakes)
        terms = loss({**batch, **real_inputs}, {**fakes, **fake_inputs})
        where = f"{self.name}.{player}_loss"
        require(
            isinstance(terms, Mapping) and len(terms) > 0,
            f"{where} must return a dict of named terms, got {type(terms).__name__}.",
        )
        for key, term in terms.items():
            require(
                isinstance(term, Tensor) and term.ndim == 0,
                f"{where}: the term {key!r} must be a scalar tensor, got "
                f"{tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__}.",
            )
            require(
                term.requires_grad,
                f"{where}: the term {key!r} has no graph, so nothing learns from it; do not detach "
                "it or call .item().",
            )
        total = torch.stack([term.float() for term in terms.values()]).sum()
        if player == "discriminator":
            require(
                not _depends(total, dict(self.players["generator"])),
                f"{where}: the gradient reaches the generator. Use the fakes that it receives; "
                "they are detached.",
            )
        require(
            _depends(total, fake_inputs),
            f"{where} does not depend on the fakes: is a term forgotten?",
        )
        require(
            player == "generator" or _depends(total, real_inputs),
            f"{where} does not depend on the real images: is a term forgotten?",
        )
        return terms

    def check_changed(self) -> None:
        """Require that every parameter that should have moved has moved."""
        for player in self.players.values():
            for key in (k for k, p in player.items() if p.requires_grad):
                require(
                    key in self.connected,
                    f"{key!r} got no gradient in 3 updates: it has no part in any term. Leave it "
                    "out, or freeze it by requires_grad_(False).",
                )
                require(  # a gradient may well be zero: the bias of a hinge inside its margin
                    key in self.changed or key not in self.pushed,
                    f"{key!r} got gradients, but did not change in 3 updates: is its learning "
                    "rate 0?",
                )


def _track(batch: Batch) -> Batch:
    """Return the float tensors of a batch, made to carry gradients; those of a graph stay in it."""
    return {
        k: v if v.requires_grad else v.detach().clone().requires_grad_()
        for k, v in batch.items()
        if v.is_floating_point()
    }


def _depends(total: Tensor, inputs: Batch) -> bool:
    tracked = [tensor for tensor in inputs.values() if tensor.requires_grad]
    grads = torch.autograd.grad(total, tracked, retain_graph=True, allow_unused=True)
    return any(g is not None for g in grads)


def _check_average(method: Method) -> None:
    if method.ema is None:
        return
    for name in method.averaged:
        live = dict(method._modules[name].named_parameters())  # type: ignore[union-attr]
        average = dict(method.ema[name].named_parameters())
        moving = [k for k, p in live.items() if p.requires_grad]
        equal = [k for k in moving if torch.equal(live[k], average[k])]
        require(
            len(equal) < len(moving) or not moving,
            f"The average of {name!r} equals the live weights after 3 updates: is it averaged?",
        )
        with method.ema_weights():
            shown = dict(getattr(method, name).named_parameters())
            require(
                all(shown[k] is average[k] for k in shown),
                f"Inside ema_weights(), self.{name} is not the average.",
            )


def _check_description(method: Method, fresh: Callable[[], Method]) -> None:
    name = type(method).__name__
    try:
        plain = json.loads(json.dumps(method.describe()))
    except TypeError as error:
        raise ContractError(f"The description of {name} is not plain data: {error}.") from error
    given = {k: v for k, v in fresh()._arguments.items() if MARKER in json.dumps(describe(v))}
    package = type(method).__module__.partition(".")[0]
    try:
        rebuilt: Method = build(plain, trusted=(package,), **given)
    except (TypeError, ValueError) as error:
        raise ContractError(f"The description of {name} does not rebuild it: {error}") from error
    require(
        json.loads(json.dumps(rebuilt.describe())) == plain,
        f"{name} rebuilt from its description describes itself otherwise.",
    )
    rebuilt.configure_model()
    shapes = {k: v.shape for k, v in method.state_dict().items()}
    require(
        {k: v.shape for k, v in rebuilt.state_dict().items()} == shapes,
        f"{name} rebuilt from its description has other weights.",
    )


class _SaveAt(Callback):
    def __init__(self, step: int, path: Path, *, stop: bool = False) -> None:
        self.step, self.path, self.stop = step, path, stop

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = self.stop


def _check_resume(fresh: Callable[[], Method], data: ImageDataModule, folder: Path) -> None:
    name = type(fresh()).__name__
    _trainer(4, _SaveAt(2, folder / "2.ckpt"), _SaveAt(4, folder / "4.ckpt")).fit(fresh(), data)
    _trainer(4, _SaveAt(2, folder / "2-again.ckpt", stop=True)).fit(fresh(), data)
    first = first_difference(_read(folder / "2.ckpt"), _read(folder / "2-again.ckpt"))
    require(
        first is None,
        f"Two runs of {name} with the same seed differ after 2 updates (first in {first}): a "
        "random number does not come from torch's default generator, which the step seeds.",
    )
    resumed = _trainer(4, _SaveAt(4, folder / "4-resumed.ckpt"))
    resumed.fit(fresh(), data, ckpt_path=folder / "2.ckpt", weights_only=True)
    first = first_difference(_read(folder / "4.ckpt"), _read(folder / "4-resumed.ckpt"))
    require(
        first is None,
        f"{name}: 2 updates, a checkpoint and 2 more differ from 4 updates (first in {first}). It "
        "has state that is not in the checkpoint: make it a buffer, or save it in "
        "on_save_checkpoint.",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ContractError(
            "A checkpoint holds objects that only pickle can read, so nobody could resume from it: "
            "on_save_checkpoint must add numbers, strings, lists, dicts and tensors only."
        ) from error
    if "imgsynth" not in checkpoint:
        raise ContractError(
            "A checkpoint lacks the counters and the seed: on_save_checkpoint must call "
            "super().on_save_checkpoint(checkpoint)."
        )
    return {k: checkpoint[k] for k in ("imgsynth", "state_dict", "optimizer_states")}


def _check_reload(path: Path, fresh: Method) -> None:
    name = type(fresh).__name__
    checkpoint = _read(path)
    marked = {k: v for k, v in fresh._arguments.items() if MARKER in json.dumps(describe(v))}
    package = type(fresh).__module__.partition(".")[0]
    loaded = load(path, trusted=(package,), **marked)
    first = first_difference(checkpoint["state_dict"], loaded.state_dict())
    require(first is None, f"Loaded again, {name} has other weights ({first}).")
    if not isinstance(loaded, Sampler) or loaded.why_no_samples():
        return
    fresh.configure_model()
    fresh.load_state_dict(checkpoint["state_dict"])
    for ema in (True, False):
        ours = cast(Sampler, fresh).sample(5, seed=3, ema=ema)
        require(
            torch.equal(ours, loaded.sample(5, seed=3, ema=ema)),
            f"Loaded again, {name} gives other samples for the same seed.",
        )
        require(
            torch.equal(ours[:2], loaded.sample(2, seed=3, ema=ema)),
            f"{name}: sample i depends on how many are asked for.",
        )
