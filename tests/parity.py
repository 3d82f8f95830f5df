"""Every public method, trained by two processes and by one that has the joined batch.

The one process sees the images of both ranks, interleaved as they share a block of the data, and
draws the random numbers that the ranks would have drawn.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from imgsynth import losses, seeding
from imgsynth.augment import RandomTranslation
from imgsynth.callbacks import Checkpoint, GracefulStop, Samples, newest_checkpoint, quiet
from imgsynth.data import Digits
from imgsynth.likelihoods import LearnedGaussian, Likelihood, OptimalGaussian
from imgsynth.methods import (
    GAN,
    IWAE,
    LSGAN,
    VAE,
    VQVAE,
    WGANGP,
    AdversarialMethod,
    Classifier,
    HingeGAN,
    Method,
    MinimaxGAN,
    NonFiniteError,
)
from imgsynth.networks import (
    CodeTransformer,
    DCGANDiscriminator,
    DCGANGenerator,
    MLPDecoder,
    MLPDiscriminator,
    MLPEncoder,
    MLPGenerator,
    SpatialDecoder,
    SpatialEncoder,
    VectorQuantizer,
)
from imgsynth.optim import SGD

RANKS = 2
BATCH = 12  # of a rank
UPDATES = 10
_STEP = SGD(lr=0.02)


def _networks() -> tuple[nn.Module, nn.Module]:
    shape, classes = (1, 8, 8), 10
    return (
        MLPGenerator(shape, classes, latent_dim=4, width=16, depth=1),
        MLPDiscriminator(shape, classes, width=16, depth=1),
    )


def _plain(method: type[GAN]) -> Callable[..., Method]:
    def make(**options: Any) -> Method:
        optimizers = {"generator_optimizer": _STEP, "discriminator_optimizer": _STEP}
        return method(*_networks(), **{"ema_half_life": 100, **optimizers, **options})

    return make


def _classifier(**options: Any) -> Method:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    return Classifier(network, **{"ema_half_life": 100, "optimizer": _STEP, **options})


def _vae(
    method: type[VAE], likelihood: type[Likelihood] = OptimalGaussian, **given: Any
) -> Callable[..., Method]:
    def make(**options: Any) -> Method:
        networks = (
            cls((1, 8, 8), 10, latent_dim=4, width=16, class_dim=4)
            for cls in (MLPEncoder, MLPDecoder)
        )
        # a nat an image is the sum over its pixels
        plain = {"ema_half_life": 100, "optimizer": SGD(lr=2e-4), **given, **options}
        return method(*networks, **{"likelihood": likelihood(), **plain})

    return make


def _vqvae(**options: Any) -> Method:
    spatial = {"image_shape": (1, 8, 8), "code_dim": 4, "downsamplings": 1, "width": 8}
    return VQVAE(
        SpatialEncoder(**spatial),
        # restarted codes are drawn from other images by two ranks
        VectorQuantizer(num_codes=8, code_dim=4, restart_below=0.0),
        SpatialDecoder(**spatial),
        CodeTransformer(8, 16, 10, width=8, depth=1, heads=2, dropout=0.0),
        **{"ema_half_life": 100, "optimizer": _STEP, **options},
    )


class R1GAN(HingeGAN):
    """R1 on real images at every second update: a term that is absent on some steps."""

    def discriminator_loss(self, batch, fakes):
        terms = super().discriminator_loss(batch, fakes)
        if self.updates % 2 == 0:
            images = batch["image"].requires_grad_()
            logits = self.critic(images, self.labels_of(batch))
            terms["r1"] = 0.1 * losses.zero_centred_penalty(logits, images).mean()
        return terms


class LopsidedGAN(HingeGAN):
    """A term, and a parameter that only it uses, on the first rank alone."""

    def __init__(self, *networks: nn.Module, **options: Any) -> None:
        super().__init__(*networks, **options)
        self.discriminator.extra = nn.Linear(64, 1)
        self.discriminator.never = nn.Parameter(torch.ones(3))
        self.joined = False

    def discriminator_loss(self, batch, fakes):
        terms = super().discriminator_loss(batch, fakes)
        if self.global_rank == 0:
            images = batch["image"][::RANKS] if self.joined else batch["image"]
            extra = self.discriminator.extra(images.flatten(1)).square().mean()
            terms["extra"] = extra / RANKS if self.joined else extra
        return terms


METHODS: dict[str, Callable[..., Method]] = {
    "GAN": _plain(GAN),
    "MinimaxGAN": _plain(MinimaxGAN),
    "HingeGAN": _plain(HingeGAN),
    "LSGAN": _plain(LSGAN),
    "WGANGP": _plain(WGANGP),
    "Classifier": _classifier,
    "VAE": _vae(VAE),
    "IWAE": _vae(IWAE, LearnedGaussian, num_samples=3),
    "VQVAE": _vqvae,
}
"""A new method joins by a line here: how it is made small, by SGD, without batch statistics."""

CASES: dict[str, tuple[Callable[..., Method], dict[str, Any]]] = {
    **{name: (make, {}) for name, make in METHODS.items()},
    "all at once": (
        _plain(WGANGP),
        {
            "discriminator_steps": 2,
            "accumulate": 3,
            "generator_clip": 0.05,
            "discriminator_clip": 0.05,
            "augment": RandomTranslation(1),
        },
    ),
    "free bits": (_vae(VAE, LearnedGaussian), {"free_bits": 0.02, "kl_warmup": 100}),
    "one backward": (_vae(IWAE, LearnedGaussian), {"one_backward": True, "num_samples": 3}),
    "R1": (_plain(R1GAN), {"discriminator_steps": 2}),
    "absent": (
        _plain(LopsidedGAN),
        {"discriminator_optimizer": SGD(lr=0.02, momentum=0.9, weight_decay=0.1)},
    ),
}

TWO_PLAYERS = [name for name, (make, _) in CASES.items() if isinstance(make(), AdversarialMethod)]


def trainer(updates: int, ranks: int, **options: Any) -> Trainer:
    return Trainer(
        devices=ranks,
        max_steps=updates,
        max_epochs=-1,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=UPDATES,
        **{"accelerator": "cpu", "enable_checkpointing": "callbacks" in options, **options},
    )


def fresh(name: str) -> Method:
    make, options = CASES[name]
    torch.manual_seed(5)
    return make(**options)


def images_of_update(name: str) -> int:
    return RANKS * BATCH * CASES[name][1].get("discriminator_steps", fresh(name).batches_per_step)


def outcome(method: Method) -> dict[str, Any]:
    return {
        "state": {k: v.to("cpu", copy=True) for k, v in method.state_dict().items()},
        "images": method.images_seen,
        "terms": dict(method.latest),
    }


def on_ranks(accelerator: str = "cpu") -> dict[str, Any]:
    """Train all cases as one of several ranks."""
    quiet()
    results = {}
    for name in CASES:
        method = fresh(name)
        with Counted(method) as counted:
            trainer(UPDATES, RANKS, accelerator=accelerator).fit(
                method, Digits(batch_size=BATCH, seed=3)
            )
        results[name] = {**outcome(method), "reduced": counted.updates}
    return results


def synchronised(folder: str) -> dict[str, Any]:
    """Train with ``sync_batchnorm`` on two GPUs, and return the statistics of this one."""
    quiet()
    method = _batch_norm_gan()
    trainer(5, RANKS, accelerator="gpu", sync_batchnorm=True, default_root_dir=folder).fit(
        method, Digits(batch_size=BATCH, seed=3)
    )
    return {k: v.cpu() for k, v in statistics(method).items()}


def with_batch_norm(folder: str) -> dict[str, Any]:
    """Train networks with batch statistics, evaluate, and save after further updates."""
    quiet()
    look = Look(Path(folder))
    samples = Samples(every=4 * RANKS * BATCH, gif=False)
    trainer(
        5,
        RANKS,
        callbacks=[look, samples],
        default_root_dir=folder,
        val_check_interval=3,
        num_sanity_val_steps=0,
    ).fit(_batch_norm_gan(), Digits(batch_size=BATCH, seed=3))
    return look.seen


class Meets(Callback):
    """Something that happens to one rank at one update."""

    def __init__(self, what: str, rank: int, update: int) -> None:
        self.what, self.rank, self.update = what, rank, update

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_rank == self.rank and trainer.global_step == self.update:
            if self.what == "nan":
                with torch.no_grad():
                    next(p for p in module.parameters() if p.requires_grad).fill_(torch.nan)
            elif self.what == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            elif self.what == "minute":
                clock = time.monotonic
                time.monotonic = lambda: clock() + 61


def faults(folder: str) -> dict[str, dict[str, Any]]:
    """Let each method meet each fault on one rank, and return what this rank saw of it."""
    quiet()
    seen = {}
    for name, make in METHODS.items():
        place = Path(folder, name)
        seen[name] = {
            "nan": _nan(make, place / "nan"),
            "stop": _stopped(make, place / "stop"),
            "minute": _late(make, place / "late"),
        }
    return seen


def _run(make: Callable[..., Method], folder: Path, *callbacks: Any, **options: Any) -> Method:
    torch.manual_seed(5)
    method = make()
    fit = {"ckpt_path": options.pop("ckpt_path", None), "weights_only": True}
    training = trainer(8, RANKS, callbacks=list(callbacks), default_root_dir=folder, **options)
    training.log_every_n_steps = 2
    data = Digits(batch_size=BATCH, seed=3)
    training.fit(method, data, **fit)
    return method


def _nan(make: Callable[..., Method], folder: Path) -> str:
    try:
        _run(make, folder, Meets("nan", 1, 3), Checkpoint(every=1, keep=0))
    except NonFiniteError as error:
        return str(error)
    return ""


def _stopped(make: Callable[..., Method], folder: Path) -> dict[str, Any]:
    stop = GracefulStop()
    before = _run(make, folder, stop, Meets("signal", 1, 3), Checkpoint()).updates
    newest = newest_checkpoint(folder)
    after = _run(make, folder, Checkpoint(keep=0), ckpt_path=newest)
    whole = _run(make, folder / "whole", Checkpoint())
    states = (after.state_dict(), whole.state_dict())
    same = all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    return {"signal": stop.signal, "updates": (before, after.updates), "same": same}


def ends() -> dict[str, Any]:
    """Signals and loaders that could make the ranks part at the end of a run."""
    quiet()
    make = METHODS["GAN"]
    folder = Path(tempfile.mkdtemp())
    torch.manual_seed(5)
    method, stop = make(), GracefulStop()
    # 54 updates an epoch: the signal comes after the ranks agreed for the last time
    late = trainer(
        -1, RANKS, callbacks=[stop, Meets("signal", 1, 54), Samples()], default_root_dir=folder
    )
    late.fit_loop.max_epochs = 1
    late.fit(method, Digits(batch_size=BATCH, seed=3))
    seen: dict[str, Any] = {"late": {"signal": stop.signal, "updates": method.updates}}
    images = 20 + torch.distributed.get_rank()
    uneven = [
        {"image": torch.zeros(n, 1, 8, 8), "label": torch.zeros(n).long()} for n in [8, images]
    ]
    try:
        trainer(2, RANKS, callbacks=[Checkpoint(every="1M")], default_root_dir=folder / "b").fit(
            make(), DataLoader(uneven, batch_size=None)
        )
    except ValueError as error:
        seen["uneven"] = str(error)
    seen["half"] = _half_means(folder)
    return seen


def _half_means(folder: Path) -> dict[str, float]:
    """Report a window of bf16-true that is longer than bfloat16 can count."""
    method = METHODS["GAN"]()
    fit = trainer(300, RANKS, precision="bf16-true", default_root_dir=folder)
    fit.log_every_n_steps = 299
    own: dict[str, float] = {}
    share = method._share_window

    def watched() -> None:
        if method.updates == 299:
            own.update(method.meter.means())
        share()

    method._share_window = watched
    fit.fit(method, Digits(batch_size=BATCH, seed=3))
    return {
        "own": own["train/discriminator/real"],
        "all": method.latest["train/discriminator/real"],
    }


def _late(make: Callable[..., Method], folder: Path) -> list[str]:
    clock = time.monotonic
    try:
        _run(make, folder, Meets("minute", 0, 3), Checkpoint(every="1M", minutes=1, keep=0))
    finally:
        time.monotonic = clock
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def _batch_norm_gan() -> "Evaluated":
    shape = (1, 8, 8)
    return Evaluated(
        DCGANGenerator(shape, latent_dim=4, width=4), DCGANDiscriminator(shape, width=4)
    )


class Evaluated(GAN):
    """Looks at its buffers when it is evaluated."""

    def validation_step(self, batch, batch_index):
        self.evaluated = statistics(self)

    def pictures(self, batch=None):
        self.shown = statistics(self)
        return super().pictures(batch)


class Look(Callback):
    def __init__(self, folder: Path) -> None:
        self.path = folder / "saved.ckpt"
        self.seen: dict[str, Any] = {}

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 4:
            self.seen["drawn"] = statistics(module)  # before the sheet is
        if trainer.global_step == 5:
            self.seen["shown"] = getattr(module, "shown", {})
            self.seen["evaluated"] = module.evaluated
            self.seen["own"] = statistics(module)
            trainer.save_checkpoint(self.path)
            self.seen["saved"] = statistics(module)
            saved = torch.load(self.path, weights_only=True)["state_dict"]
            self.seen["file"] = {k: saved[k] for k in self.seen["saved"]}
            self.seen["parameters"] = {k: p.detach().clone() for k, p in module.named_parameters()}


def statistics(method: Method) -> dict[str, Tensor]:
    buffers = method.named_buffers()
    return {k: b.clone() for k, b in buffers if k.endswith(("running_mean", "running_var"))}


class Counted:
    """Notes the elements of each all-reduce, update by update, and what each player has."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.updates: list[list[int]] = []

    def __enter__(self) -> "Counted":
        self.raw = torch.distributed.all_reduce
        self.step = self.method.training_step

        def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.updates and self.open:
                self.updates[-1].append(tensor.numel())
            return self.raw(tensor, *args, **kwargs)

        def updated(images: int) -> None:
            self.open = False  # reports are no part of the update
            type(self.method)._updated(self.method, images)

        def training_step(*args: Any) -> Any:
            self.updates.append([])
            self.open = True
            return self.step(*args)

        torch.distributed.all_reduce = all_reduce
        self.method.training_step = training_step
        self.method._updated = updated
        return self

    def __exit__(self, *_: object) -> None:
        torch.distributed.all_reduce = self.raw
        del self.method.training_step, self.method._updated


def in_one_process(name: str) -> dict[str, Any]:
    """Train a case on the joined batch, with the ranks' own random numbers."""
    quiet()
    method = fresh(name)
    method.joined = True
    with RandomNumbersOfRanks(BATCH // getattr(method, "accumulate", 1)):
        trainer(UPDATES, 1).fit(method, Digits(batch_size=RANKS * BATCH, seed=3))
    return outcome(method)


class RandomNumbersOfRanks(TorchFunctionMode):
    """Draws for a joined batch what each rank would draw for its own, interleaved like images.

    Args:
        batch: Images that a rank draws for at once.
    """

    DRAWS = (torch.rand, torch.randn, torch.randint)

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.ranks: list[torch.Tensor] = []

    def __enter__(self) -> "RandomNumbersOfRanks":
        self._seed = seeding.seed_default_generators
        seeding.seed_default_generators = self._seed_ranks
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        seeding.seed_default_generators = self._seed
        super().__exit__(*error)

    def _seed_ranks(self, seed: int, rank: int | str, *tags: int | str) -> None:
        self.ranks = []
        if isinstance(rank, str):  # no step: validation, pictures
            self._seed(seed, rank, *tags)
            return
        assert rank == 0
        for each in range(RANKS):
            self._seed(seed, each, *tags)
            self.ranks.append(torch.default_generator.get_state())

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in self.DRAWS or kwargs.get("generator") is not None or not self.ranks:
            return function(*args, **kwargs)
        *bounds, size = self._bounds_and_size(function, args)
        axis = size.index(RANKS * self.batch)
        own = [n // RANKS if i == axis else n for i, n in enumerate(size)]
        drawn = []
        for rank, state in enumerate(self.ranks):
            torch.default_generator.set_state(state)
            drawn.append(function(*bounds, tuple(own), **kwargs))
            self.ranks[rank] = torch.default_generator.get_state()
        return torch.stack(drawn, axis + 1).reshape(size)

    @staticmethod
    def _bounds_and_size(function, args):
        if function is torch.randint:
            return args
        return (args if isinstance(args[0], int) else tuple(args[0]),)
