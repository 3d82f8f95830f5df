import json
from copy import deepcopy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import nn

from imgsynth.describe import build
from imgsynth.ema import averaging_weight
from imgsynth.methods import GAN, LSGAN, WGANGP, HingeGAN, Method, NonFiniteError
from imgsynth.methods.sampler import Sampler
from imgsynth.networks import MLPDiscriminator, MLPGenerator
from imgsynth.optim import Adam, LinearDecay, Schedule

SEED = 7
LATENT = 3
SHAPE = (1, 4, 4)


@pytest.fixture(autouse=True)
def _run_seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED))


class Generator(nn.Module):
    """Batch norm, dropout and labels: all that a careless framework gets wrong."""

    latent_dim = LATENT

    def __init__(self, num_classes=3, dropout=0.3):
        super().__init__()
        self.num_classes = num_classes
        self.embedding = nn.Embedding(max(1, num_classes), 2)
        self.hidden = nn.Linear(LATENT + 2, 12)
        self.norm = nn.BatchNorm1d(12)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(12, 16)

    def forward(self, z, labels=None):
        labels = z.new_zeros(len(z), dtype=torch.int64) if labels is None else labels
        features = self.hidden(torch.cat([z, self.embedding(labels)], 1))
        return self.out(self.dropout(self.norm(features).relu())).tanh().unflatten(1, SHAPE)


class Discriminator(nn.Module):
    def __init__(self, num_classes=3, dropout=0.3):
        super().__init__()
        self.num_classes = num_classes
        self.embedding = nn.Embedding(max(1, num_classes), 10)
        self.hidden = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 10))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(10, 1)

    def forward(self, images, labels=None):
        features = self.dropout(self.hidden(images.flatten(1)).relu())
        labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
        return self.out(features)[:, 0] + (self.embedding(labels) * features).sum(1)


def _gan(cls=HingeGAN, num_classes=3, **kwargs):
    torch.manual_seed(1)
    return cls(Generator(num_classes), Discriminator(num_classes), **kwargs)


class Loader:
    """Labelled batches in a row, from where the last state was saved."""

    def __init__(self, num, size):
        generator = torch.Generator().manual_seed(2)
        self.batches = [
            {
                "image": torch.rand(size, *SHAPE, generator=generator) * 2 - 1,
                "label": torch.randint(3, (size,), generator=generator),
            }
            for _ in range(num)
        ]
        self.position = 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for _ in range(len(self)):
            batch = self.batches[self.position]
            self.position = (self.position + 1) % len(self)
            yield batch

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Rows(Logger):
    """Keeps the rows it is given."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name, version = "rows", 0

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


def _fit(method, loader, updates=None, *, logger=False, ckpt_path=None, **kwargs):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=len(loader) if updates is None else updates,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(method, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def _differences(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


# -- averaged weights ------------------------------------------------------------------------------


def test_the_average_after_training_equals_one_made_by_hand():
    class Shadow(Callback):
        """A hand-written average of the generator's state."""

        def on_fit_start(self, trainer, method):
            self.state = deepcopy(method.generator.state_dict())

        def on_train_batch_end(self, trainer, method, *args):
            seen = 6 * (1 + args[-1])
            weight = averaging_weight(6, seen, 40, 0.5)
            for name, value in method.generator.state_dict().items():
                old = self.state[name]
                moved = value if not value.is_floating_point() else old + weight * (value - old)
                self.state[name] = moved.clone()

    shadow = Shadow()
    method = _gan(ema_half_life=40, ema_ramp_up=0.5)
    _fit(method, Loader(20, 6), callbacks=[shadow])
    own = method.ema["generator"].state_dict()
    assert own.keys() == shadow.state.keys()
    for name, value in own.items():
        torch.testing.assert_close(value, shadow.state[name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(own["out.weight"], method.generator.out.weight, atol=1e-4)


def test_the_optimisers_and_gradients_never_touch_the_average():
    method = _gan()
    trainer = _fit(method, Loader(2, 6))
    averages = set(method.ema.parameters())
    for optimizer in trainer.optimizers:
        assert averages.isdisjoint(optimizer.param_groups[0]["params"])
    assert all(p.grad is None and not p.requires_grad for p in averages)


def test_without_a_half_life_there_is_no_average():
    method = _gan(ema_half_life=0)
    _fit(method, Loader(2, 6))
    assert method.ema is None
    assert not any(name.startswith("ema") for name in method.state_dict())
    with method.ema_weights():
        assert torch.equal(method.sample(2), method.sample(2, ema=False))


def test_making_the_model_twice_makes_one_average():
    method = _gan()
    method.configure_model()
    first = method.ema
    method.configure_model()
    assert method.ema is first


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_wrong_ramp_up_is_refused(bad):
    with pytest.raises(ValueError, match="ema_ramp_up must be above 0, or None"):
        _gan(ema_ramp_up=bad)


def test_a_half_life_that_is_no_count_is_refused_by_name():
    with pytest.raises(ValueError, match="ema_half_life: expected a number"):
        _gan(ema_half_life="ten")


@pytest.fixture(scope="module")
def trained():
    patch = pytest.MonkeyPatch()
    patch.setenv("PL_GLOBAL_SEED", str(SEED))
    fast = Adam(lr=0.02)
    method = _gan(
        ema_half_life=200, ema_ramp_up=None, generator_optimizer=fast, discriminator_optimizer=fast
    )
    _fit(method, Loader(6, 6))
    patch.undo()
    return method


def test_ema_weights_exchanges_the_modules_and_puts_them_back(trained):
    live, average = trained.generator, trained.ema["generator"]
    with trained.ema_weights():
        assert trained.generator is average
        assert trained.get_submodule("generator") is average
        with trained.ema_weights():  # nested
            assert trained.generator is average
        assert trained.generator is average
    assert trained.generator is live


def test_ema_weights_puts_the_modules_back_after_an_exception(trained):
    live = trained.generator
    with pytest.raises(RuntimeError, match="deliberate"), trained.ema_weights():
        raise RuntimeError("deliberate")
    assert trained.generator is live
    with trained.ema_weights():
        assert trained.generator is trained.ema["generator"]


def test_an_authors_own_code_sees_the_average_through_self(trained):
    class Author(HingeGAN):
        def first(self):
            return self.generator.out.weight

    method = Author(deepcopy(trained.generator), deepcopy(trained.discriminator))
    method.configure_model()
    with torch.no_grad():
        method.generator.out.weight.add_(1.0)
    with method.ema_weights():
        assert method.first() is method.ema["generator"].out.weight
    assert method.first() is not method.ema["generator"].out.weight


def test_an_update_inside_ema_weights_would_still_follow_the_live_weights(trained):
    method = deepcopy(trained)
    with method.ema_weights():
        assert method._live_modules()["generator"] is not method.generator


def test_a_state_dict_holds_the_live_and_the_averaged_weights_apart(trained):
    state = trained.state_dict()
    live = {k for k in state if k.startswith("generator.")}
    assert {k for k in state if k.startswith("ema.")} == {f"ema.{k}" for k in live}
    assert torch.equal(state["generator.out.weight"], trained.generator.out.weight)
    assert not torch.equal(state["generator.out.weight"], state["ema.generator.out.weight"])


def test_evaluating_restores_every_modules_mode_also_after_an_exception():
    method = _gan()
    method.configure_model()
    method.train()
    method.generator.norm.eval()  # an author's choice
    method.discriminator.dropout.eval()
    before = {name: module.training for name, module in method.named_modules()}
    with method.evaluating():
        assert not any(module.training for module in method.modules())
        assert not torch.is_grad_enabled()
        assert method.generator is method.ema["generator"]
    assert {name: module.training for name, module in method.named_modules()} == before
    with pytest.raises(RuntimeError, match="deliberate"), method.evaluating():
        raise RuntimeError("deliberate")
    assert {name: module.training for name, module in method.named_modules()} == before
    assert torch.is_grad_enabled()
    assert method.generator is not method.ema["generator"]


def test_evaluating_works_inside_ema_weights(trained):
    trained.train()
    live = trained.generator
    with trained.ema_weights(), trained.evaluating():
        assert trained.generator is trained.ema["generator"]
    assert trained.generator is live
    assert live.training
    assert live.norm.training


def test_a_deepcopy_of_a_trained_method_trains_on_alone(trained):
    before = deepcopy(trained.state_dict())
    method = deepcopy(trained)
    _fit(method, Loader(2, 6))
    assert "generator.out.weight" in _differences(method, trained)
    assert "ema.generator.out.weight" in _differences(method, trained)
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())


# -- samples ---------------------------------------------------------------------------------------


def test_image_i_does_not_depend_on_how_many_are_asked_for(trained):
    hundred = trained.sample(100, seed=3)
    assert hundred.shape == (100, *SHAPE)
    assert torch.equal(trained.sample(10, seed=3), hundred[:10])
    assert torch.equal(trained.sample(1, seed=3), hundred[:1])
    assert torch.equal(trained.sample(64, seed=3), hundred[:64])
    assert torch.equal(trained.sample(65, seed=3), hundred[:65])


def test_image_i_does_not_depend_on_the_labels_of_others(trained):
    labels = torch.arange(100) % 3
    other = (labels + 1) % 3
    other[[0, 7, 70]] = labels[[0, 7, 70]]
    first, second = trained.sample(100, labels), trained.sample(100, other)
    assert torch.equal(first[[0, 7, 70]], second[[0, 7, 70]])
    assert not torch.equal(first[1], second[1])


def test_image_i_does_not_depend_on_the_random_state_or_the_mode(trained):
    first = trained.sample(5)
    torch.manual_seed(99)
    trained.train(mode=not trained.training)
    assert torch.equal(trained.sample(5), first)


def test_samples_equal_the_generators_answer_to_the_chunks_latents(trained):
    from imgsynth.seeding import generator as stream

    latents = trained.latents(64, stream(5, "latents", 1))
    average = trained.ema["generator"]
    with torch.no_grad():
        expected = average(latents, (64 + torch.arange(64)) % 3)
    torch.testing.assert_close(trained.sample(100, seed=5)[64:], expected[:36])


class NoisyGenerator(Generator):
    """Draws noise of its own at every layer, as StyleGAN does."""

    def forward(self, z, labels=None):
        images = super().forward(z, labels)
        return (images + 0.1 * torch.randn_like(images)).clamp(-1, 1)


def test_a_generator_that_draws_noise_is_sampled_repeatably_and_leaves_the_stream_alone():
    torch.manual_seed(1)
    method = HingeGAN(NoisyGenerator(), Discriminator())
    before = torch.get_rng_state()
    images = method.sample(70, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(images[:3], method.sample(3, seed=3))
    assert not torch.equal(images, method.sample(70, seed=4))
    assert not torch.equal(images[0] - images[64], torch.zeros(SHAPE))


def test_labels_are_every_class_in_turn_by_default(trained):
    turn = torch.arange(70) % 3
    assert torch.equal(trained.sample(70), trained.sample(70, turn))
    assert torch.equal(trained.sample(4, 2), trained.sample(4, torch.full((4,), 2)))


def test_seeds_and_images_differ(trained):
    images = trained.sample(128, 0)
    assert not torch.equal(images[:64], images[64:])
    assert not torch.equal(images, trained.sample(128, 0, seed=1))
    assert len({tuple(image.flatten().tolist()) for image in images}) == 128


def test_samples_of_the_average_and_of_the_live_weights_differ(trained):
    average, live = trained.sample(4), trained.sample(4, ema=False)
    assert not torch.equal(average, live)
    with trained.ema_weights():
        assert torch.equal(trained.sample(4), average)
    assert not average.requires_grad
    assert not live.requires_grad


def test_chunks_are_the_samples(trained):
    chunks = list(trained.sample_chunks(130, seed=2))
    assert [len(chunk) for chunk in chunks] == [64, 64, 2]
    assert torch.equal(torch.cat(chunks), trained.sample(130, seed=2))


def test_nothing_is_left_exchanged_between_chunks(trained):
    live = trained.generator
    trained.train()
    for _ in trained.sample_chunks(130):
        assert trained.generator is live
        assert trained.generator.training
        assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("num", "labels", "message"),
    [
        (0, None, "at least 1, got 0"),
        (-3, None, "at least 1, got -3"),
        (4, 3, "between 0 and 2, got 3"),
        (4, -1, "between 0 and 2, got -1"),
        (2, torch.tensor([0, 5]), "between 0 and 2, got 5"),
        (3, torch.tensor([0, 1]), r"int64 of shape \(3,\), got torch.int64 of shape \(2,\)"),
        (2, torch.tensor([0.0, 1.0]), r"int64 of shape \(2,\), got torch.float32"),
        (2, [0, 5], "between 0 and 2, got 5"),
        (2, [0.5, 1.0], r"int64 of shape \(2,\), got torch.float32"),
        (1, torch.tensor(1), r"int64 of shape \(1,\), got torch.int64 of shape \(\)"),
    ],
)
def test_wrong_numbers_and_labels_are_refused(trained, num, labels, message):
    with pytest.raises(ValueError, match=message):
        trained.sample(num, labels)


def test_an_unconditional_generator_takes_no_labels():
    method = _gan(num_classes=0)
    assert method.sample(2).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match="unconditional: it takes no labels"):
        method.sample(2, 1)


def test_a_sampler_without_its_two_parts_is_told_which():
    class Half(Sampler, Method):
        pass

    with pytest.raises(TypeError, match=r"Half must define latents\("):
        Half().sample(1)

    class More(Half):
        def latents(self, num, generator=None):
            return torch.zeros(num, 1)

    with pytest.raises(TypeError, match=r"More must define generate\("):
        More().sample(1)


class Looks(Callback):
    """Samples after every update, as a user who cannot wait."""

    def on_train_batch_end(self, trainer, method, *args):
        torch.randn(5)
        method.sample(3, seed=trainer.global_step)
        method.sample(3, ema=False)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_sampling_between_updates_works_in_every_precision(precision):
    method = _gan()
    _fit(method, Loader(2, 6), callbacks=[Looks()], precision=precision)
    dtype = {"64": torch.float64, "bf16": torch.bfloat16}.get(precision.removesuffix("-true"))
    assert method.sample(3).dtype == (dtype or torch.float32)
    assert method.sample(3).isfinite().all()


def test_sampling_between_updates_does_not_change_training():
    quiet, watched = _gan(), _gan()
    _fit(quiet, Loader(5, 6))
    _fit(watched, Loader(5, 6), callbacks=[Looks()])
    assert _differences(quiet, watched) == []


def test_training_depends_on_the_seed_and_on_nothing_else_random(monkeypatch):
    first, again, other = _gan(), _gan(), _gan()
    _fit(first, Loader(3, 6))
    torch.manual_seed(12345)
    _fit(again, Loader(3, 6))
    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    _fit(other, Loader(3, 6))
    assert _differences(first, again) == []
    assert (first.seed, other.seed) == (SEED, 8)
    assert _differences(first, other)


def test_without_a_seed_everything_torch_manual_seed_decides(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED")
    methods = []
    for seed in (5, 5, 6):
        method = _gan()
        torch.manual_seed(seed)
        _fit(method, Loader(2, 6))
        methods.append(method)
        assert method.seed == seed
    assert _differences(methods[0], methods[1]) == []
    assert _differences(methods[0], methods[2])


# -- resuming --------------------------------------------------------------------------------------


class Save(Callback):
    """Saves once, after some update."""

    def __init__(self, path, at):
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer, method, *args):
        if trainer.global_step == self.at:
            trainer.save_checkpoint(self.path)


def _hard_gan(cls=HingeGAN):
    return _gan(
        cls,
        generator_optimizer=Adam(lr=0.01),
        discriminator_optimizer=Adam(lr=0.02),
        generator_schedule=LinearDecay(),
        discriminator_schedule=Schedule(warmup=20),
        discriminator_steps=2,
        accumulate=2,
        discriminator_clip=0.5,
        ema_half_life=30,
    )


@pytest.mark.parametrize(("num", "at"), [(6, 2), (3, 3), (3, 4), (2, 1)])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path, num, at):
    path, rows = tmp_path / "checkpoint.ckpt", Rows()
    whole = _hard_gan()
    first = _fit(
        whole, Loader(num, 8), 6, logger=rows, callbacks=[Save(path, at)], log_every_n_steps=3
    )
    torch.manual_seed(4321)
    rest, resumed = Rows(), _hard_gan()
    with torch.no_grad():
        resumed.generator.out.weight.zero_()  # whatever it was, the checkpoint counts
    second = _fit(resumed, Loader(num, 8), 6, logger=rest, ckpt_path=path, log_every_n_steps=3)
    assert _differences(whole, resumed) == []
    assert (resumed.updates, resumed.images_seen) == (whole.updates, whole.images_seen) == (6, 48)
    assert second.global_step == first.global_step == 6
    assert resumed.seed == whole.seed
    assert resumed.total_images == whole.total_images
    assert rest.rows == [row for row in rows.rows if row[0] > at]
    assert [step for step, _ in rows.rows] == [3, 6]
    for ours, theirs in zip(second.optimizers, first.optimizers, strict=True):
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        for mine, yours in zip(
            ours.state_dict()["state"].values(), theirs.state_dict()["state"].values(), strict=True
        ):
            assert all(torch.equal(mine[key], yours[key]) for key in yours)


def test_a_resumed_run_keeps_its_own_seed(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.ckpt"
    whole = _hard_gan()
    _fit(whole, Loader(4, 8), callbacks=[Save(path, 2)])
    monkeypatch.setenv("PL_GLOBAL_SEED", "99")
    resumed = _hard_gan()
    _fit(resumed, Loader(4, 8), ckpt_path=path)
    assert resumed.seed == SEED
    assert _differences(whole, resumed) == []


def test_a_checkpoint_holds_tensors_and_plain_data_only(tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    trainer = _fit(_hard_gan(), Loader(2, 8))
    trainer.save_checkpoint(path)
    section = torch.load(path, weights_only=True)["imgsynth"]
    assert (section["updates"], section["images_seen"], section["seed"]) == (2, 16, SEED)
    assert section["method"]["class_path"] == "imgsynth.methods.HingeGAN"
    json.dumps(section["method"])
    assert section["meter"]


def test_a_negative_or_large_seed_is_saved_and_restored(tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED")
    torch.manual_seed(-1)
    seed = torch.initial_seed()
    assert seed > 2**63
    path, method = tmp_path / "checkpoint.ckpt", _hard_gan()
    torch.manual_seed(-1)
    _fit(method, Loader(4, 8), callbacks=[Save(path, 2)])
    resumed = _hard_gan()
    _fit(resumed, Loader(4, 8), ckpt_path=path)
    assert resumed.seed == method.seed == seed
    assert _differences(method, resumed) == []


def test_a_checkpoint_of_another_class_is_refused_and_both_are_named(tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    _fit(_hard_gan(), Loader(1, 8)).save_checkpoint(path)
    method = _hard_gan(LSGAN)
    before = deepcopy(method.state_dict())
    with pytest.raises(
        ValueError, match=r"holds imgsynth.methods.HingeGAN.*trains imgsynth.*LSGAN"
    ):
        _fit(method, Loader(1, 8), ckpt_path=path)
    assert all(torch.equal(method.state_dict()[key], value) for key, value in before.items())
    assert method.updates == 0


def test_a_foreign_checkpoint_is_refused(tmp_path):
    class Foreign(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            return self.layer.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    path = tmp_path / "checkpoint.ckpt"
    _fit(Foreign(), Loader(1, 8)).save_checkpoint(path)
    with pytest.raises(ValueError, match="no 'imgsynth' section: it was not saved by a method"):
        _fit(_hard_gan(), Loader(1, 8), ckpt_path=path)


class Constant(HingeGAN):
    value = 1.0

    def generator_loss(self, batch, fakes):
        (loss,) = super().generator_loss(batch, fakes).values()
        return {"constant": 0 * loss + self.value}


def test_a_second_fit_of_the_same_method_starts_a_new_window():
    method = _gan(Constant)
    _fit(method, Loader(2, 6), log_every_n_steps=100)
    method.value, rows = 5.0, Rows()
    _fit(method, Loader(4, 6), log_every_n_steps=2, logger=rows)
    assert [row["train/generator/constant"] for _, row in rows.rows] == [5.0, 5.0]


def test_the_window_of_a_fit_that_failed_does_not_reach_the_next():
    method = _gan(Constant)
    method.value = float("nan")
    with pytest.raises(NonFiniteError, match="constant"):
        _fit(method, Loader(2, 6), log_every_n_steps=2)
    method.value = 5.0
    trainer = _fit(method, Loader(4, 6), log_every_n_steps=2)
    assert trainer.callback_metrics["train/generator/constant"] == 5.0


def test_a_second_fit_counts_from_zero_and_has_a_length_of_its_own():
    schedule = LinearDecay(start=0)  # to the end of the run, whichever it is
    method = _gan(generator_schedule=schedule)
    _fit(method, Loader(2, 6))
    trainer = _fit(method, Loader(4, 6))
    assert method.updates == trainer.global_step == 4
    assert method.images_seen == method.total_images == 24
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(2e-4 * (1 - 18 / 24))


def test_a_loaded_method_is_trained_in_training_mode():
    method = _gan().eval()
    _fit(method, Loader(2, 6))
    assert method.discriminator.dropout.training
    assert method.generator.norm.num_batches_tracked == 2
    assert not method.ema.training


def test_nan_between_the_last_report_and_the_end_is_noticed():
    method = _gan(Constant)
    method.value = float("nan")
    with pytest.raises(NonFiniteError, match="train/generator/constant became nan by update 2"):
        _fit(method, Loader(2, 6), log_every_n_steps=50)


def test_a_checkpoint_inside_ema_weights_is_refused(tmp_path):
    class SaveInside(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            with pl_module.ema_weights():
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    with pytest.raises(RuntimeError, match="would lose the live ones"):
        _fit(_gan(), Loader(1, 6), callbacks=[SaveInside()])


# -- reports ---------------------------------------------------------------------------------------


def test_every_logger_gets_a_row_at_the_cadence_with_the_images_seen():
    first, second = Rows(), Rows()
    _fit(_gan(), Loader(7, 6), logger=[first, second], log_every_n_steps=3)
    assert first.rows == second.rows
    assert [step for step, _ in first.rows] == [3, 6]
    assert [row["progress/images"] for _, row in first.rows] == [18, 36]
    assert [row["progress/updates"] for _, row in first.rows] == [3, 6]
    assert set(first.rows[0][1]) == {
        "progress/images",
        "progress/updates",
        "train/discriminator/real",
        "train/discriminator/fake",
        "train/generator/adversarial",
    }
    assert all(type(value) in {int, float} for _, row in first.rows for value in row.values())


def test_check_finite_names_the_parameter():
    method = _gan()
    _fit(method, Loader(1, 6))
    method.check_finite()
    with torch.no_grad():
        method.discriminator.out.weight[0, 3] = float("inf")
    with pytest.raises(NonFiniteError, match=r"'discriminator.out.weight' is not finite.*update 1"):
        method.check_finite()


def test_check_finite_names_a_buffer():
    method = _gan()
    _fit(method, Loader(1, 4))
    method.generator.norm.running_var[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'generator\.norm\.running_var' is not finite"):
        method.check_finite()


def test_check_finite_names_a_term_of_the_open_window():
    method = _gan()
    _fit(method, Loader(1, 6))
    method.meter.add("train/generator", {"adversarial": torch.tensor(float("nan"))})
    with pytest.raises(NonFiniteError, match="train/generator/adversarial became nan"):
        method.check_finite()


def test_check_finite_looks_at_the_average_too():
    method = _gan()
    _fit(method, Loader(1, 6))
    with torch.no_grad():
        method.ema["generator"].out.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'ema\.generator\.out\.bias' is not finite"):
        method.check_finite()


def test_check_finite_before_any_training_passes():
    _gan().check_finite()


# -- descriptions ----------------------------------------------------------------------------------


def test_a_method_of_described_parts_is_rebuilt_from_plain_data():
    method = WGANGP(
        MLPGenerator((1, 8, 8), 3, latent_dim=5, width=6),
        discriminator=MLPDiscriminator((1, 8, 8), 3, width=7),
        penalty_weight=2.0,
        generator_optimizer=Adam(lr=3e-4, beta1=0.1),
        discriminator_schedule=LinearDecay(start="1k", end="2k"),
        ema_half_life="5k",
    )
    description = json.loads(json.dumps(method.describe()))
    rebuilt = build(description)
    assert type(rebuilt) is WGANGP
    assert rebuilt.describe() == method.describe()
    assert rebuilt.penalty_weight == 2.0
    assert rebuilt.batches_per_step == 5
    assert (rebuilt._ema_half_life, rebuilt.latent_dim, rebuilt.num_classes) == (5000, 5, 3)
    for ours, theirs in zip(
        rebuilt.configure_optimizers(), method.configure_optimizers(), strict=True
    ):
        for key in ("lr", "betas", "weight_decay"):
            assert ours.param_groups[0][key] == theirs.param_groups[0][key]
    assert rebuilt._schedules == method._schedules
    rebuilt.load_state_dict(method.state_dict())
    assert _differences(rebuilt, method) == []


def test_an_argument_that_cannot_be_described_is_asked_for_by_name():
    method = GAN(MLPGenerator((1, 4, 4), latent_dim=LATENT), Discriminator(0))
    description = json.loads(json.dumps(method.describe()))
    with pytest.raises(
        ValueError, match=r"'discriminator'.*Discriminator.*pass it: discriminator="
    ):
        build(description)
    mine = Discriminator(0)
    rebuilt = build(description, discriminator=mine)
    assert rebuilt.discriminator is mine


def test_a_description_does_not_hold_the_networks_twice():
    method = _gan()
    names = [name for name, _ in method.named_modules()]
    assert len(names) == len(set(names))
    assert not any("_arguments" in name for name in names)
    ids = [id(module) for module in method.modules()]
    assert len(ids) == len(set(ids))
