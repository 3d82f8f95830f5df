import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.nn import functional as F

from imgsynth.methods import GAN, LSGAN, WGANGP, HingeGAN, MinimaxGAN
from imgsynth.networks import DCGANDiscriminator, DCGANGenerator, MLPDiscriminator, MLPGenerator
from imgsynth.optim import SGD, Adam
from imgsynth.seeding import seed_default_generators

SEED = 7
LATENT = 3
SHAPE = (1, 4, 4)


@pytest.fixture(autouse=True)
def _run_seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED))


class Generator(nn.Module):
    def __init__(self, num_classes=0):
        super().__init__()
        self.num_classes = num_classes
        self.embedding = nn.Embedding(num_classes, 2) if num_classes else None
        self.latent_dim = LATENT
        self.hidden = nn.Linear(LATENT + 2 * bool(num_classes), 12)
        self.out = nn.Linear(12, 16)

    def forward(self, z, labels=None):
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], 1)
        return self.out(self.hidden(z).tanh()).tanh().unflatten(1, SHAPE)


class Discriminator(nn.Module):
    def __init__(self, num_classes=0):
        super().__init__()
        self.embedding = nn.Embedding(num_classes, 10) if num_classes else None
        self.hidden = nn.Linear(16, 10)
        self.out = nn.Linear(10, 1)

    def forward(self, images, labels=None):
        features = F.leaky_relu(self.hidden(images.flatten(1)), 0.2)
        logits = self.out(features)[:, 0]
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * features).sum(1)
        return logits


def _networks(num_classes=0):
    torch.manual_seed(1)
    return Generator(num_classes), Discriminator(num_classes)


def _batches(num, size, num_classes=0):
    torch.manual_seed(2)
    batches = [{"image": torch.rand(size, *SHAPE) * 2 - 1} for _ in range(num)]
    if num_classes:
        batches = [{**b, "label": torch.randint(num_classes, (size,))} for b in batches]
    return batches


class Loader:
    """Batches in a row (Lightning takes a list for several loaders)."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def _fit(method, batches, **kwargs):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=len(batches),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(method, Loader(batches))
    return trainer


# -- the objectives, as their papers have them, with torch alone -----------------------------------


def _cross_entropy(critic, real, fake):
    # Goodfellow et al. 2014, eq. 1: maximise log D(x) + log(1 - D(G(z)))
    return -torch.log(critic(real).sigmoid()).mean() - torch.log(1 - critic(fake).sigmoid()).mean()


def _hinge(critic, real, fake):
    # Miyato et al. 2018, eq. 16
    zero = torch.zeros(())
    return -torch.minimum(zero, -1 + critic(real)).mean() - (
        torch.minimum(zero, -1 - critic(fake)).mean()
    )


def _least_squares(critic, real, fake):
    # Mao et al. 2017, eq. 9
    return 0.5 * ((critic(real) - 1) ** 2).mean() + 0.5 * (critic(fake) ** 2).mean()


def _gradient_penalty(critic, real, fake):
    # Gulrajani et al. 2017, algorithm 1, lines 4 to 8, image by image
    shares = torch.rand(len(real))
    total = torch.zeros(())
    for x, x_tilde, epsilon in zip(real, fake, shares, strict=True):
        x_hat = (epsilon * x + (1 - epsilon) * x_tilde).requires_grad_()
        (slope,) = torch.autograd.grad(critic(x_hat[None]).sum(), x_hat, create_graph=True)
        total = total + 10 * (slope.square().sum().sqrt() - 1) ** 2
    return critic(fake).mean() - critic(real).mean() + total / len(real)


GENERATOR_LOSSES = {
    GAN: lambda logits: -torch.log(logits.sigmoid()).mean(),
    HingeGAN: lambda logits: -logits.mean(),
    LSGAN: lambda logits: 0.5 * ((logits - 1) ** 2).mean(),
    WGANGP: lambda logits: -logits.mean(),
}
DISCRIMINATOR_LOSSES = {
    GAN: _cross_entropy,
    HingeGAN: _hinge,
    LSGAN: _least_squares,
    WGANGP: _gradient_penalty,
}


def _play(cls, networks, batches, steps, lr=0.01):
    """Algorithm 1 of Goodfellow et al. 2014; the last fakes serve both players."""
    generator, discriminator = networks
    judges = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=(0.5, 0.9))
    makers = torch.optim.Adam(generator.parameters(), lr=lr, betas=(0.5, 0.9))
    for update, batch in enumerate(batches):
        seed_default_generators(SEED, 0, update)
        size = len(batch["image"]) // steps
        for step in range(steps):
            part = slice(step * size, (step + 1) * size)
            labels = batch["label"][part] if "label" in batch else None
            fake = generator(torch.randn(size, LATENT), labels)
            critic = partial(discriminator, labels=labels)
            loss = DISCRIMINATOR_LOSSES[cls](critic, batch["image"][part], fake.detach())
            judges.zero_grad()
            loss.backward()
            judges.step()
        makers.zero_grad()
        GENERATOR_LOSSES[cls](critic(fake)).backward()
        makers.step()
    return networks


def _assert_close(ours, reference, **kwargs):
    for module, expected in zip(ours, reference, strict=True):
        for (name, value), other in zip(
            module.named_parameters(), expected.parameters(), strict=True
        ):
            torch.testing.assert_close(
                value, other, msg=lambda m, n=name: f"{n}: {m}", check_stride=False, **kwargs
            )


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("cls", [GAN, HingeGAN, LSGAN, WGANGP])
def test_training_equals_the_papers_algorithm_written_by_hand(cls, steps):
    batches = _batches(6, 4 * steps)
    expected = _play(cls, _networks(), batches, steps)
    optimizer = Adam(lr=0.01, beta1=0.5, beta2=0.9)
    method = cls(
        *_networks(),
        generator_optimizer=optimizer,
        discriminator_optimizer=optimizer,
        discriminator_steps=steps,
    )
    _fit(method, batches)
    _assert_close((method.generator, method.discriminator), expected, rtol=2e-4, atol=2e-6)
    untrained = _networks()
    assert not torch.allclose(method.generator.out.weight, untrained[0].out.weight, atol=1e-2)


def test_conditional_training_equals_the_papers_algorithm_written_by_hand():
    batches = _batches(5, 8, num_classes=3)
    expected = _play(HingeGAN, _networks(3), batches, 2)
    optimizer = Adam(lr=0.01, beta1=0.5, beta2=0.9)
    method = HingeGAN(
        *_networks(3),
        generator_optimizer=optimizer,
        discriminator_optimizer=optimizer,
        discriminator_steps=2,
    )
    _fit(method, batches)
    _assert_close((method.generator, method.discriminator), expected, rtol=1e-5, atol=1e-6)


def _loss_of(method, logits_real, logits_fake):
    """Both players' terms for given logits."""

    class Given(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, 0]

    method.discriminator = Given()
    real, fake = ({"image": t.reshape(-1, 1, 1, 1)} for t in (logits_real, logits_fake))
    return method.discriminator_loss(real, fake), method.generator_loss(real, fake)


def test_the_terms_of_each_objective_have_their_values():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    ours, theirs = _loss_of(HingeGAN(*_networks()), real, fake)
    assert {k: v.item() for k, v in ours.items()} == {"real": 0.25, "fake": 1.0}
    assert {k: v.item() for k, v in theirs.items()} == {"adversarial": 1.0}
    ours, theirs = _loss_of(LSGAN(*_networks()), real, fake)
    assert {k: v.item() for k, v in ours.items()} == {"real": 0.3125, "fake": 2.5}
    assert {k: v.item() for k, v in theirs.items()} == {"adversarial": 4.0}
    ours, theirs = _loss_of(GAN(*_networks()), real, fake)
    expected = F.binary_cross_entropy_with_logits(real, torch.ones(2))
    torch.testing.assert_close(ours["real"], expected)
    torch.testing.assert_close(
        ours["fake"], F.binary_cross_entropy_with_logits(fake, torch.zeros(2))
    )
    torch.testing.assert_close(
        theirs["adversarial"], F.binary_cross_entropy_with_logits(fake, torch.ones(2))
    )


def test_least_squares_takes_the_papers_three_labels():
    # Mao et al. 2017, eq. 8: a = -1, b = 1, c = 0
    method = LSGAN(*_networks(), real_label=1.0, fake_label=-1.0, generator_label=0.0)
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    ours, theirs = _loss_of(method, real, fake)
    assert {k: v.item() for k, v in ours.items()} == {"real": 0.5, "fake": 2.0}
    assert {k: v.item() for k, v in theirs.items()} == {"adversarial": 2.5}


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 4), (5, 3)])
def test_images_of_any_number_of_channels_have_pictures(channels, shown):
    shape = (channels, 8, 8)
    gan = GAN(MLPGenerator(shape, latent_dim=4), MLPDiscriminator(shape))
    picture = gan.pictures()["samples"]
    assert picture.shape[0] == shown
    assert torch.equal(picture[:, 2:50:6, 2:50:6], gan.sample(1)[0, :shown])  # 6-fold, 2 around


def test_minimax_warns_and_minimises_the_discriminators_gain():
    with pytest.warns(UserWarning, match="MinimaxGAN: the generator's gradient vanishes"):
        method = MinimaxGAN(*_networks())
    fake = torch.tensor([-3.0, 1.0])
    _, theirs = _loss_of(method, torch.zeros(2), fake)
    torch.testing.assert_close(theirs["adversarial"], torch.log(1 - fake.sigmoid()).mean())


def test_no_other_construction_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cls in (GAN, HingeGAN, LSGAN, WGANGP):
            cls(*_networks())


def test_wgangp_defaults_are_those_of_algorithm_1():
    method = WGANGP(*_networks())
    assert method.batches_per_step == 5
    assert method.penalty_weight == 10.0
    for optimizer in method.configure_optimizers():
        (group,) = optimizer.param_groups
        assert (group["lr"], group["betas"]) == (1e-4, (0.0, 0.9))


def test_the_critic_augments_real_and_fake_alike_and_nothing_else():
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, images):
            self.seen.append((images.detach().clone(), images.requires_grad))
            return images * 0.5

    recorder = Recorder()
    method = HingeGAN(*_networks(), augment=recorder)
    (batch,) = _batches(1, 4)
    _fit(method, [batch])
    (real, _), (fake, graph_d), (again, graph_g) = recorder.seen
    assert torch.equal(real, batch["image"])
    assert torch.equal(fake, again)
    assert (graph_d, graph_g) == (False, True)
    method.sample(2)
    assert len(recorder.seen) == 3


def test_the_penalty_of_a_conditional_critic_gets_the_labels():
    batches = _batches(2, 6, num_classes=3)
    method = WGANGP(*_networks(3), discriminator_steps=2)
    trainer = _fit(method, batches, log_every_n_steps=1)
    assert set(trainer.callback_metrics) == {
        "train/discriminator/real",
        "train/discriminator/fake",
        "train/discriminator/penalty",
        "train/generator/adversarial",
    }


# -- what networks a method accepts ----------------------------------------------------------------


def test_networks_of_other_image_shapes_are_refused():
    with pytest.raises(ValueError, match=r"image_shape = \(1, 8, 8\), the discriminator \(3, 8, 8"):
        GAN(MLPGenerator((1, 8, 8)), MLPDiscriminator((3, 8, 8)))


def test_networks_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="num_classes = 10, the discriminator 0"):
        HingeGAN(MLPGenerator((1, 8, 8), 10), MLPDiscriminator((1, 8, 8)))


def test_a_shape_given_as_a_list_is_the_same_shape():
    generator, discriminator = _networks()
    generator.image_shape, discriminator.image_shape = [1, 4, 4], (1, 4, 4)
    HingeGAN(generator, discriminator)


@pytest.mark.parametrize("silent", ["generator", "discriminator"])
def test_one_network_that_says_nothing_of_classes_follows_the_other(silent):
    networks = dict(zip(("generator", "discriminator"), _networks(3), strict=True))
    for network in networks.values():
        network.num_classes = 3
    del networks[silent].num_classes
    assert HingeGAN(**networks).num_classes == 3


def test_a_discriminator_with_batch_norm_is_refused_by_wgangp_only():
    generator = DCGANGenerator((1, 16, 16), width=4)
    discriminator = DCGANDiscriminator((1, 16, 16), width=4, batch_norm=True)
    with pytest.raises(ValueError, match=r"batch normalisation.*batch_norm=False"):
        WGANGP(generator, discriminator)
    HingeGAN(generator, discriminator)
    WGANGP(generator, DCGANDiscriminator((1, 16, 16), width=4, batch_norm=False))


def test_a_negative_penalty_weight_is_refused():
    with pytest.raises(ValueError, match="penalty_weight must be at least 0, got -1"):
        WGANGP(*_networks(), penalty_weight=-1)


def test_the_length_of_a_latent_is_stated_or_read_from_the_first_dense_layer():
    _, discriminator = _networks()
    plain = nn.Sequential(nn.Linear(6, 16), nn.Unflatten(1, SHAPE))
    assert GAN(plain, discriminator).latent_dim == 6
    assert GAN(plain, discriminator, latent_dim=5).latent_dim == 5
    assert GAN(Generator(), discriminator).latent_dim == LATENT


def test_a_length_of_a_latent_that_contradicts_the_generators_is_refused():
    with pytest.raises(ValueError, match=r"latent_dim = 3.*got latent_dim = 5"):
        GAN(*_networks(), latent_dim=5)


def test_an_unknown_length_of_a_latent_is_asked_for():
    _, discriminator = _networks()
    plain = nn.Sequential(nn.Unflatten(1, (5, 1, 1)), nn.ConvTranspose2d(5, 1, 4))
    with pytest.raises(ValueError, match=r"How long is a latent of Sequential.*latent_dim=\.\.\."):
        GAN(plain, discriminator)
    assert GAN(plain, discriminator, latent_dim=5).sample(2).shape == (2, 1, 4, 4)


def test_a_batch_without_labels_is_refused_by_a_conditional_method():
    method = HingeGAN(*_networks(3))
    with pytest.raises(ValueError, match=r"conditional \(num_classes = 3\).*only \['image'\]"):
        _fit(method, _batches(1, 4))


class Data(LightningDataModule):
    def __init__(self, image_shape=SHAPE, num_classes=0):
        super().__init__()
        self.image_shape = image_shape
        self.num_classes = num_classes

    def train_dataloader(self):
        size, classes = 4, max(1, self.num_classes)
        image, label = torch.zeros(size, *self.image_shape), torch.zeros(size, dtype=torch.int64)
        return Loader([{"image": image, "label": label % classes}])


def _fit_data(method, data):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, datamodule=data)


def test_data_of_another_shape_is_refused_before_the_first_step():
    method = HingeGAN(MLPGenerator((1, 8, 8), width=4), MLPDiscriminator((1, 8, 8), width=4))
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\).*data holds \(3, 8, 8\)"):
        _fit_data(method, Data((3, 8, 8)))
    assert method.updates == 0


@pytest.mark.parametrize(("classes", "has"), [(0, "no labels"), (5, "5 classes")])
def test_data_of_other_classes_is_refused_before_the_first_step(classes, has):
    method = HingeGAN(MLPGenerator((1, 8, 8), 3, width=4), MLPDiscriminator((1, 8, 8), 3, width=4))
    with pytest.raises(ValueError, match=rf"conditional on 3 classes, but the data has {has}"):
        _fit_data(method, Data((1, 8, 8), classes))


def test_an_unconditional_method_ignores_labels():
    method = HingeGAN(MLPGenerator((1, 8, 8), width=4), MLPDiscriminator((1, 8, 8), width=4))
    _fit_data(method, Data((1, 8, 8), 3))
    assert method.updates == 1


def test_a_foreign_datamodule_that_says_less_is_accepted():
    data = Data()
    del data.num_classes
    data.train_dataloader = lambda: Loader(_batches(1, 4, num_classes=3))
    method = HingeGAN(*_networks(3))
    _fit_data(method, data)
    assert method.updates == 1


def test_the_picture_has_a_class_a_column():
    method = HingeGAN(*_networks(3))
    (picture,) = method.pictures().values()
    samples = method.sample(24, labels=torch.arange(24) % 3, seed=0)
    cell = (picture.shape[1] - 2) // 8  # 8 rows, 2 pixels between
    for i in (0, 1, 2, 5, 23):
        row, column = divmod(i, 3)
        top, left = 2 + row * cell, 2 + column * cell
        tile = picture[0, top : top + cell - 2, left : left + cell - 2]
        scale = len(tile) // 4
        assert torch.equal(tile[::scale, ::scale], samples[i, 0])


@pytest.mark.parametrize("cls", [GAN, HingeGAN, LSGAN])
def test_with_plain_sgd_training_equals_the_papers_algorithm_closely(cls):
    batches = _batches(4, 6)
    generator, discriminator = _networks()
    for update, batch in enumerate(batches):
        seed_default_generators(SEED, 0, update)
        fake = generator(torch.randn(6, LATENT))
        loss = DISCRIMINATOR_LOSSES[cls](discriminator, batch["image"], fake.detach())
        for p, g in zip(
            discriminator.parameters(),
            torch.autograd.grad(loss, list(discriminator.parameters())),
            strict=True,
        ):
            p.data -= 0.1 * g
        loss = GENERATOR_LOSSES[cls](discriminator(fake))
        for p, g in zip(
            generator.parameters(),
            torch.autograd.grad(loss, list(generator.parameters())),
            strict=True,
        ):
            p.data -= 0.05 * g
    method = cls(
        *_networks(), generator_optimizer=SGD(lr=0.05), discriminator_optimizer=SGD(lr=0.1)
    )
    _fit(method, batches)
    _assert_close(
        (method.generator, method.discriminator), (generator, discriminator), rtol=1e-5, atol=1e-7
    )


class Uniform(HingeGAN):
    """Has latents of its own."""

    def latents(self, num, generator=None):
        return torch.rand(num, self.latent_dim, generator=generator)

    def generate(self, latents, labels=None):
        assert latents.min() >= 0
        assert latents.max() < 1
        return super().generate(latents, labels)


def test_a_method_is_trained_on_the_latents_that_it_samples_from():
    method = Uniform(*_networks())
    _fit(method, _batches(2, 16))
    assert method.updates == 2
