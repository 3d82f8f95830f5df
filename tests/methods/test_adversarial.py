import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F

from imgsynth.methods import WGANGP, AdversarialMethod, HingeGAN, NonFiniteError
from imgsynth.optim import SGD, Adam, CosineDecay, LinearDecay, Optimizer, Schedule
from imgsynth.seeding import seed_default_generators

SEED = 7
LATENT = 3
SHAPE = (1, 4, 4)


@pytest.fixture(autouse=True)
def _run_seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED))


class Generator(nn.Module):
    latent_dim = LATENT

    def __init__(self, dropout=0.0):
        super().__init__()
        self.hidden = nn.Linear(LATENT, 12)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(12, 16)

    def forward(self, z):
        return self.out(self.dropout(self.hidden(z).tanh())).tanh().unflatten(1, SHAPE)


class Discriminator(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.hidden = nn.Linear(16, 10)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(10, 1)

    def forward(self, images):
        return self.out(self.dropout(F.leaky_relu(self.hidden(images.flatten(1)), 0.2)))[:, 0]


def _networks(dropout=0.0):
    torch.manual_seed(1)
    return Generator(dropout), Discriminator(dropout)


class Loader:
    """Batches in a row (Lightning takes a list for several loaders)."""

    def __init__(self, num, size):
        generator = torch.Generator().manual_seed(2)
        self.batches = [
            {"image": torch.rand(size, *SHAPE, generator=generator) * 2 - 1} for _ in range(num)
        ]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def _fit(method, loader, updates=None, **kwargs):
    kwargs.setdefault("max_steps", len(loader) if updates is None else updates)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(method, loader)
    return trainer


def _adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01, betas=(0.5, 0.999))


def _sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def _play(networks, loader, *, steps=1, clips=(None, None), rates=(), order=(1, 0), make=_adam):
    """The hinge game by hand: Miyato et al. 2018, eqs. 16 and 17, in the loop of Goodfellow."""
    generator, discriminator = networks
    optimizers = [make(network.parameters()) for network in networks]
    losses = (
        lambda real, fake: -discriminator(fake).mean(),
        lambda real, fake: (
            torch.relu(1 - discriminator(real)).mean()
            + torch.relu(1 + discriminator(fake.detach())).mean()
        ),
    )

    def move(player, real, fake):
        optimizers[player].zero_grad()
        losses[player](real, fake).backward()
        if clips[player]:
            nn.utils.clip_grad_norm_(networks[player].parameters(), clips[player])
        optimizers[player].step()

    for update, batch in enumerate(loader):
        seed_default_generators(SEED, 0, update)
        for optimizer, rate in zip(optimizers, rates, strict=False):
            optimizer.param_groups[0]["lr"] = rate(update)
        *others, last = batch["image"].chunk(steps)
        for real in others:
            move(1, real, generator(torch.randn(len(real), LATENT)))
        fake = generator(torch.randn(len(last), LATENT))
        for player in order:
            move(player, last, fake)
    return networks


def _assert_equal(method, networks):
    for ours, expected in zip((method.generator, method.discriminator), networks, strict=True):
        theirs = expected.state_dict()
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs[name]), f"{type(expected).__name__}: {name}"


# -- the loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 3])
def test_training_equals_a_hand_written_loop_to_the_bit(steps, dropout):
    loader = Loader(8, 4 * steps)
    expected = _play(_networks(dropout), loader, steps=steps)
    adam = Adam(lr=0.01)
    method = HingeGAN(
        *_networks(dropout),
        generator_optimizer=adam,
        discriminator_optimizer=adam,
        discriminator_steps=steps,
    )
    _fit(method, loader)
    _assert_equal(method, expected)


class GeneratorFirst(HingeGAN):
    generator_first = True


def test_the_generator_moves_first_where_the_class_says_so():
    loader = Loader(6, 8)
    expected = _play(_networks(), loader, steps=2, order=(0, 1))
    adam = Adam(lr=0.01)
    method = GeneratorFirst(
        *_networks(),
        generator_optimizer=adam,
        discriminator_optimizer=adam,
        discriminator_steps=2,
    )
    _fit(method, loader)
    _assert_equal(method, expected)
    with pytest.raises(AssertionError, match="Generator"):
        _assert_equal(method, _play(_networks(), loader, steps=2))


@pytest.mark.parametrize("clips", [(0.05, None), (None, 0.02), (0.03, 0.2)])
def test_each_player_is_clipped_to_its_own_norm(clips):
    loader = Loader(6, 4)
    expected = _play(_networks(), loader, make=_sgd, clips=clips)
    method = HingeGAN(
        *_networks(),
        generator_optimizer=SGD(lr=0.1),
        discriminator_optimizer=SGD(lr=0.1),
        generator_clip=clips[0],
        discriminator_clip=clips[1],
    )
    _fit(method, loader)
    _assert_equal(method, expected)


def test_both_schedules_follow_the_images_seen_before_each_update():
    loader = Loader(8, 6)  # two discriminator steps of 3 images: 6 images an update, 48 in all
    rates = (
        lambda update: 0.1 * min(1.0, 6 * update / 12),
        lambda update: 0.2 * (1.0 if update < 4 else 1 - (6 * update - 24) / 24),
    )
    expected = _play(_networks(), loader, steps=2, make=_sgd, rates=rates)
    method = HingeGAN(
        *_networks(),
        generator_optimizer=SGD(lr=0.1),
        discriminator_optimizer=SGD(lr=0.2),
        generator_schedule=Schedule(warmup=12),
        discriminator_schedule=LinearDecay(start=24),
        discriminator_steps=2,
    )
    _fit(method, loader)
    assert method.total_images == 48
    _assert_equal(method, expected)


class Steps(Callback):
    """Notes who steps, with which learning rate and gradient norm, before clipping."""

    def __init__(self):
        self.seen = []
        self.norms = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        names = {p: name for name, p in pl_module.named_parameters()}
        player = names[parameters[0]].partition(".")[0]
        self.seen.append((player, optimizer.param_groups[0]["lr"]))
        self.norms.append((player, nn.utils.get_total_norm([p.grad for p in parameters]).item()))


@pytest.mark.parametrize(("limits", "total"), [
    ({"max_steps": 5}, 20), ({"max_epochs": 2, "max_steps": -1}, 24),
])  # fmt: skip
def test_the_length_of_the_run_follows_from_the_trainers_limit(limits, total):
    steps = Steps()
    method = HingeGAN(*_networks(), generator_schedule=CosineDecay())
    trainer = _fit(method, Loader(3, 4), callbacks=[steps], **limits)
    updates = total // 4
    assert method.total_images == total
    assert trainer.global_step == method.updates == updates
    rates = [lr for player, lr in steps.seen if player == "generator"]
    expected = [2e-4 * CosineDecay(end=total).factor(4 * u, None) for u in range(updates)]
    assert rates == pytest.approx(expected)


def test_a_decay_to_the_end_of_an_endless_run_is_refused():
    method = HingeGAN(*_networks(), generator_schedule=LinearDecay())
    with pytest.raises(ValueError, match=r"no length in images; give end="):
        _fit(method, Loader(3, 4), max_steps=-1, max_time="00:00:00:05")


@pytest.mark.parametrize("steps", [1, 3])
def test_one_update_of_the_generator_is_one_global_step(steps):
    seen = Steps()
    method = HingeGAN(*_networks(), discriminator_steps=steps)
    trainer = _fit(method, Loader(4, 6), updates=10, callbacks=[seen])  # three epochs
    assert trainer.global_step == method.updates == 10
    assert method.images_seen == 10 * 6
    assert [player for player, _ in seen.seen] == 10 * (["discriminator"] * steps + ["generator"])


@pytest.mark.parametrize("steps", [1, 2])
def test_accumulation_over_two_parts_equals_the_full_batch_on_the_same_fakes(steps):
    loader = Loader(5, 8 * steps)
    generator, discriminator = _networks()
    makers = torch.optim.SGD(generator.parameters(), lr=0.1)
    judges = torch.optim.SGD(discriminator.parameters(), lr=0.1)
    for update, batch in enumerate(loader):
        for step, real in enumerate(batch["image"].chunk(steps)):
            parts = []
            for part in range(2):
                seed_default_generators(SEED, 0, update, "fakes", step, part)
                parts.append(torch.randn(4, LATENT))
            fake = generator(torch.cat(parts))
            judges.zero_grad()
            loss = torch.relu(1 - discriminator(real)).mean()
            (loss + torch.relu(1 + discriminator(fake.detach())).mean()).backward()
            judges.step()
        makers.zero_grad()
        (-discriminator(fake).mean()).backward()
        makers.step()
    method = HingeGAN(
        *_networks(),
        generator_optimizer=SGD(lr=0.1),
        discriminator_optimizer=SGD(lr=0.1),
        discriminator_steps=steps,
        accumulate=2,
    )
    trainer = _fit(method, loader)
    for module, expected in [
        (method.generator, generator),
        (method.discriminator, discriminator),
    ]:
        for ours, theirs in zip(module.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert trainer.global_step == 5
    assert method.images_seen == 5 * 8 * steps


class Noted(HingeGAN):
    """Notes the images that the players' losses were given."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.notes = []

    def _note(self, player, batch, fakes):
        self.notes.append((player, batch["image"].clone(), fakes["image"]))

    def discriminator_loss(self, batch, fakes):
        self._note("discriminator", batch, fakes)
        return super().discriminator_loss(batch, fakes)

    def generator_loss(self, batch, fakes):
        self._note("generator", batch, fakes)
        return super().generator_loss(batch, fakes)


@pytest.mark.parametrize("first", [False, True])
def test_under_accumulation_both_players_see_the_same_fakes_also_with_dropout(first):
    method = Noted(*_networks(0.5), discriminator_steps=2, accumulate=2)
    method.generator_first = first
    loader = Loader(1, 8)
    _fit(method, loader)
    judged = [n for n in method.notes if n[0] == "discriminator"]
    made = [n for n in method.notes if n[0] == "generator"]
    assert [len(n[1]) for n in method.notes] == [2] * 6
    assert torch.equal(torch.cat([n[1] for n in judged]), loader.batches[0]["image"])
    for (_, real, fake), (_, real_d, fake_d) in zip(made, judged[2:], strict=True):
        assert torch.equal(real, real_d)
        assert torch.equal(fake, fake_d)
    assert not torch.equal(judged[0][2], judged[1][2])
    assert not torch.equal(judged[0][2], judged[2][2])


def test_the_discriminators_fakes_are_detached_and_the_generators_are_not():
    method = Noted(*_networks(), discriminator_steps=2)
    _fit(method, Loader(1, 4))
    graphs = [(player, fake.requires_grad) for player, _, fake in method.notes]
    assert graphs == [("discriminator", False), ("discriminator", False), ("generator", True)]
    assert torch.equal(method.notes[1][2], method.notes[2][2])


# -- freezing --------------------------------------------------------------------------------------


class Frozen(HingeGAN):
    """Looks at the discriminator's gradients in the generator's turn."""

    fail = False

    def discriminator_loss(self, batch, fakes):
        self.thawed = [p.requires_grad for p in self.discriminator.parameters()]
        return super().discriminator_loss(batch, fakes)

    def generator_loss(self, batch, fakes):
        self.frozen = [p.requires_grad for p in self.discriminator.parameters()]
        self.own = [p.requires_grad for p in self.generator.parameters()]
        self.before = [_copy(p.grad) for p in self.discriminator.parameters()]
        if self.fail:
            raise RuntimeError("deliberate")
        return super().generator_loss(batch, fakes)

    def on_train_batch_end(self, *args):
        self.after = [_copy(p.grad) for p in self.discriminator.parameters()]


def _copy(gradient):
    return None if gradient is None else gradient.clone()


def test_the_discriminator_gets_no_gradient_in_the_generators_turn():
    method = Frozen(*_networks())
    _fit(method, Loader(2, 4))
    assert (any(method.frozen), all(method.own), all(method.thawed)) == (False, True, True)
    assert all(torch.equal(a, b) for a, b in zip(method.before, method.after, strict=True))
    assert all(p.requires_grad for p in method.discriminator.parameters())


def test_the_discriminator_is_thawed_when_the_generators_loss_raises():
    method = Frozen(*_networks())
    method.fail = True
    with pytest.raises(RuntimeError, match="deliberate"):
        _fit(method, Loader(2, 4))
    assert not any(method.frozen)
    assert all(p.requires_grad for p in method.discriminator.parameters())
    assert method.updates == 0
    method.fail = False
    _fit(method, Loader(2, 4))
    assert method.updates == 2


def test_what_an_author_froze_stays_frozen_and_unchanged():
    generator, discriminator = _networks()
    generator.hidden.requires_grad_(requires_grad=False)
    discriminator.hidden.requires_grad_(requires_grad=False)
    method = Frozen(generator, discriminator)
    _fit(method, Loader(3, 4))
    before = _networks()
    for network, start in zip((generator, discriminator), before, strict=True):
        for name in ("hidden.weight", "hidden.bias", "out.weight"):
            parameter = network.get_parameter(name)
            same = torch.equal(parameter, start.get_parameter(name))
            assert same == name.startswith("hidden"), name
            assert parameter.requires_grad is not name.startswith("hidden")
        assert network.hidden.weight.grad is None
    assert method.thawed == [False, False, True, True]


def test_a_player_without_anything_to_train_is_refused():
    generator, discriminator = _networks()
    discriminator.requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="discriminator has no parameter that requires a grad"):
        _fit(HingeGAN(generator, discriminator), Loader(1, 4))


def test_each_turn_changes_its_own_player_only():
    class Watch(Callback):
        def __init__(self):
            self.changes = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.note(pl_module)

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.note(pl_module)

        def note(self, method):
            self.changes.append(
                [
                    torch.cat([p.detach().flatten() for p in m.parameters()]).clone()
                    for m in (method.generator, method.discriminator)
                ]
            )

    watch = Watch()
    _fit(HingeGAN(*_networks()), Loader(1, 4), callbacks=[watch])
    start, judged, end = watch.changes
    assert torch.equal(start[0], judged[0])
    assert not torch.equal(start[1], judged[1])
    assert not torch.equal(judged[0], end[0])
    assert torch.equal(judged[1], end[1])


# -- mixed precision -------------------------------------------------------------------------------


class Clipped(HingeGAN):
    """Notes each player's gradient norm after clipping, and what was passed to it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norms = {"generator": [], "discriminator": []}

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        index = next(i for i, o in enumerate(self.optimizers()) if o.optimizer is optimizer)
        player = ("generator", "discriminator")[index]
        gradients = [p.grad for p in getattr(self, player).parameters()]
        self.norms[player].append(nn.utils.get_total_norm(gradients).item())


def _half():
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    return MixedPrecision("16-mixed", "cpu", scaler)


def test_clipping_in_half_precision_reaches_the_norm_not_the_norm_over_the_scale():
    method = Clipped(*_networks(), generator_clip=0.01, discriminator_clip=0.02)
    steps = Steps()
    _fit(method, Loader(3, 8), plugins=[_half()], callbacks=[steps])
    assert method.norms["generator"] == pytest.approx([0.01] * 3, rel=1e-3)
    assert method.norms["discriminator"] == pytest.approx([0.02] * 3, rel=1e-3)
    assert all(norm < 5 for _, norm in steps.norms)  # unscaled before the hooks


def test_gradients_in_half_precision_equal_those_in_full_precision_nearly():
    half, full = Steps(), Steps()
    _fit(HingeGAN(*_networks()), Loader(2, 8), plugins=[_half()], callbacks=[half])
    _fit(HingeGAN(*_networks()), Loader(2, 8), callbacks=[full])
    for (player, ours), (same, theirs) in zip(half.norms, full.norms, strict=True):
        assert player == same
        assert ours == pytest.approx(theirs, rel=2e-2)


class Overflowing(HingeGAN):
    """The discriminator's gradient overflows in the first update."""

    def discriminator_loss(self, batch, fakes):
        losses = super().discriminator_loss(batch, fakes)
        factor = float("inf") if self.updates == 0 else 1.0
        return {name: loss * factor for name, loss in losses.items()}


def test_an_overflow_of_one_player_does_not_scale_the_others_gradient():
    steps, reference = Steps(), Steps()
    method = Overflowing(*_networks())
    with pytest.raises(NonFiniteError, match="discriminator/real became inf"):
        _fit(method, Loader(1, 8), plugins=[_half()], callbacks=[steps])
    # the skipped step left the discriminator as it was, so the generator's gradient is that
    # of an untrained discriminator
    same = HingeGAN(*_networks(), discriminator_optimizer=SGD(lr=0.0))
    _fit(same, Loader(1, 8), plugins=[_half()], callbacks=[reference])
    for ours, theirs in zip(
        method.discriminator.parameters(), _networks()[1].parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert dict(steps.norms)["generator"] == pytest.approx(dict(reference.norms)["generator"])


class Darker(nn.Module):
    """Notes in which precision it is asked to compute."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, images):
        weight = torch.full((images.shape[-1],) * 2, 1e-3)
        self.seen.add((images.dtype, (images @ weight).dtype))
        return images * 0.999


def test_augmentation_computes_in_float32_under_mixed_precision():
    augment = Darker()
    _fit(HingeGAN(*_networks(), augment=augment), Loader(2, 8), precision="bf16-mixed")
    assert augment.seen == {(torch.float32, torch.float32)}  # autocast would multiply in bfloat16


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_augmentation_computes_in_the_precision_of_the_whole_model(precision):
    augment = Darker()
    _fit(HingeGAN(*_networks(), augment=augment), Loader(2, 8), precision=precision)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float64
    assert augment.seen == {(dtype, dtype)}


def test_gradients_of_gradients_pass_the_augmentation_under_mixed_precision():
    method = WGANGP(*_networks(), augment=Darker(), discriminator_steps=1)
    _fit(method, Loader(2, 8), precision="bf16-mixed", log_every_n_steps=1)
    assert 0 < method.latest["train/discriminator/penalty"] < 20


# -- terms and NaN ---------------------------------------------------------------------------------


class Lazy(HingeGAN):
    """A term every third update, as lazy regularisation has them."""

    def discriminator_loss(self, batch, fakes):
        losses = super().discriminator_loss(batch, fakes)
        if self.updates % 3 == 0:
            losses["penalty"] = 0 * losses["real"] + 10.0 + self.updates
        return losses


def test_the_trainers_metrics_are_the_windows_means_under_their_names():
    method = Lazy(*_networks(), discriminator_optimizer=SGD(lr=0.0), generator_optimizer=SGD(lr=0))
    loader = Loader(7, 4)
    trainer = _fit(method, loader, log_every_n_steps=6)
    generator, discriminator = _networks()
    real, fake = [], []
    for update, batch in enumerate(loader.batches[:6]):
        seed_default_generators(SEED, 0, update)
        with torch.no_grad():
            real.append(discriminator(batch["image"]))
            fake.append(discriminator(generator(torch.randn(4, LATENT))))
    real, fake = torch.cat(real), torch.cat(fake)
    expected = {
        "train/discriminator/real": torch.relu(1 - real).mean().item(),
        "train/discriminator/fake": torch.relu(1 + fake).mean().item(),
        "train/discriminator/penalty": (10 + 13) / 2,
        "train/generator/adversarial": -fake.mean().item(),
    }
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert method.latest == pytest.approx(
        {**expected, "progress/images": 24, "progress/updates": 6}, rel=1e-5
    )


def test_an_accumulated_batch_counts_as_one_in_the_means():
    frozen = {"discriminator_optimizer": SGD(lr=0.0), "generator_optimizer": SGD(lr=0.0)}
    whole, parts = (
        _fit(
            HingeGAN(*_networks(), accumulate=n, **frozen), Loader(3, 8), log_every_n_steps=3
        ).callback_metrics["train/discriminator/real"]
        for n in (1, 4)
    )
    torch.testing.assert_close(whole, parts)


class Poisoned(HingeGAN):
    def generator_loss(self, batch, fakes):
        losses = super().generator_loss(batch, fakes)
        bad = float("nan") if self.updates == 2 else 0.0
        return {**losses, "extra": losses["adversarial"] * 0 + bad}


def test_a_loss_that_becomes_nan_is_named_at_the_next_report():
    method = Poisoned(*_networks(), discriminator_clip=1.0)
    with pytest.raises(NonFiniteError, match=r"train/generator/extra became nan.*update 4"):
        _fit(method, Loader(8, 4), log_every_n_steps=2)
    assert method.updates == 4


def test_a_report_before_the_loss_becomes_nan_passes():
    method = Poisoned(*_networks())
    _fit(method, Loader(2, 4), log_every_n_steps=2)
    assert method.latest["progress/updates"] == 2


# -- what authors and users do wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("discriminator_steps", 0),
        ("accumulate", 0),
        ("accumulate", -1),
        ("generator_clip", 0.0),
        ("discriminator_clip", -1.0),
    ],
)
def test_a_number_out_of_range_is_refused_at_construction(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be .*got {value}"):
        HingeGAN(*_networks(), **{argument: value})


@pytest.mark.parametrize(
    ("steps", "accumulate", "size", "named"),
    [
        (3, 1, 8, "discriminator_steps = 3"),
        (1, 3, 8, "accumulate = 3"),
        (2, 2, 6, "accumulate = 2"),
        (3, 3, 12, "accumulate = 3"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused_with_the_setting(steps, accumulate, size, named):
    method = HingeGAN(*_networks(), discriminator_steps=steps, accumulate=accumulate)
    with pytest.raises(ValueError, match=f"cannot be cut into {named} equal parts"):
        _fit(method, Loader(1, size))


@pytest.mark.parametrize("missing", ["fakes", "discriminator_loss", "generator_loss"])
def test_a_method_without_one_of_its_three_parts_is_told_which(missing):
    parts = {
        "fakes": lambda self, batch: HingeGAN.fakes(self, batch),
        "discriminator_loss": lambda self, b, f: HingeGAN.discriminator_loss(self, b, f),
        "generator_loss": lambda self, b, f: HingeGAN.generator_loss(self, b, f),
    }
    names = ("labels_of", "latents", "generate", "critic")
    helpers = {name: getattr(HingeGAN, name) for name in names}
    del parts[missing]
    cls = type("Partial", (AdversarialMethod,), {**parts, **helpers, "latent_dim": LATENT})
    cls.num_classes = 0
    with pytest.raises(TypeError, match=rf"Partial must define {missing}\("):
        _fit(cls(*_networks()), Loader(1, 4))


class Returning(HingeGAN):
    made: object = None

    def generator_loss(self, batch, fakes):
        loss = super().generator_loss(batch, fakes)["adversarial"]
        return {"none": {}, "vector": {"vector": loss[None]}, "number": {"number": 1.0}}[self.made]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("none", r"Returning.generator_loss returned no terms"),
        ("vector", r"Returning.generator_loss.*'vector'.*scalar.*\(1,\)"),
        ("number", r"Returning.generator_loss.*'number'.*scalar.*float"),
    ],
)
def test_terms_that_are_no_scalars_are_refused_by_name(made, message):
    method = Returning(*_networks())
    method.made = made
    with pytest.raises(ValueError, match=message):
        _fit(method, Loader(1, 4))


def test_a_batch_that_is_a_pair_is_refused_with_what_is_expected():
    loader = Loader(1, 4)
    loader.batches = [[loader.batches[0]["image"], torch.zeros(4)]]
    with pytest.raises((TypeError, ValueError), match=r"dict.*image"):
        _fit(HingeGAN(*_networks()), loader)


def test_an_optimiser_of_ones_own_is_used():
    class Own(Optimizer):
        def __call__(self, params):
            return torch.optim.Adagrad(params, lr=0.5)

    method = HingeGAN(*_networks(), generator_optimizer=Own())
    _fit(method, Loader(1, 4))
    assert type(method.optimizers()[0].optimizer) is torch.optim.Adagrad
