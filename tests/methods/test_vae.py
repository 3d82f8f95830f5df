"""The ELBO by hand, bounds in closed form, validation, what latents are for, errors."""

import math
import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from imgsynth import seeding
from imgsynth.augment import GaussianNoise, RandomFlip
from imgsynth.callbacks import Checkpoint
from imgsynth.data import Digits
from imgsynth.images import grid
from imgsynth.likelihoods import Bernoulli, Gaussian, LearnedGaussian, OptimalGaussian
from imgsynth.loggers.record import Record, read_rows
from imgsynth.losses import bits_per_dimension
from imgsynth.methods import IWAE, VAE
from imgsynth.networks import MLPDecoder, MLPEncoder
from imgsynth.optim import SGD
from imgsynth.testing import check_method

SHAPE = (1, 4, 4)


class LinearDecoder(nn.Module):
    """x = W z + b: with normal noise, the likelihood of an image is known in closed form."""

    latent_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 16)

    def forward(self, z):
        return self.linear(z).view(-1, *SHAPE)


class ExactEncoder(nn.Module):
    """A normal posterior with free mean and variance, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, images):
        return self.linear(images.flatten(1))


def linear_vae(cls=VAE, **options):
    torch.manual_seed(0)
    return cls(
        ExactEncoder(), LinearDecoder(), **{"likelihood": Gaussian(sigma=0.5), **options}
    ).double()


def mlp_vae(cls=VAE, classes=0, shape=SHAPE, **options):
    torch.manual_seed(0)
    arguments = {"latent_dim": 3, "width": 8, "num_classes": classes}
    networks = MLPEncoder(shape, **arguments), MLPDecoder(shape, **arguments)
    return cls(*networks, **{"ema_half_life": 100, **options})


def images_of(num, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(num, *SHAPE, generator=generator) * 2 - 1).to(dtype)


def evidence(vae, images):
    """log p(x) of x = W z + b + 0.5 e, which is normal."""
    w, b = vae.decoder.linear.weight, vae.decoder.linear.bias
    covariance = w @ w.T + 0.25 * torch.eye(16, dtype=w.dtype)
    return torch.distributions.MultivariateNormal(b, covariance).log_prob(images.flatten(1))


def test_the_terms_are_the_negative_elbo_of_the_papers_equation_10():
    vae = linear_vae()
    images = images_of(3, torch.float64)
    torch.manual_seed(7)
    terms = vae.losses({"image": images})
    torch.manual_seed(7)
    mu, logvar = vae.encoder(images).chunk(2, 1)
    z = mu + (0.5 * logvar).exp() * torch.randn(3, 2, dtype=torch.float64)
    squares = ((images - vae.decoder(z)) / 0.5).square().flatten(1).sum(1)
    log_prob = -0.5 * squares - 16 * math.log(0.5 * math.sqrt(2 * math.pi))
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
    assert list(terms) == ["reconstruction", "kl"]
    torch.testing.assert_close(terms["reconstruction"], -log_prob.mean())
    torch.testing.assert_close(terms["kl"], kl.mean())
    means = vae.meter.means()
    assert means["train/elbo"] == pytest.approx((log_prob - kl).mean().item(), rel=1e-6)


def test_the_elbo_is_below_the_evidence_and_meets_it_at_the_true_posterior():
    vae = linear_vae()
    images = images_of(4, torch.float64)
    log_p = evidence(vae, images)
    # the exact posterior of a linear model, which has no correlations if W's columns are orthogonal
    with torch.no_grad():
        vae.decoder.linear.weight.copy_(torch.linalg.qr(vae.decoder.linear.weight)[0])
    log_p = evidence(vae, images)

    def elbo():
        torch.manual_seed(0)
        with torch.no_grad():
            found = [vae.losses({"image": images}) for _ in range(2000)]
        return -torch.stack([sum(terms.values()) for terms in found]).mean()

    assert elbo() < log_p.mean() - 0.1
    with torch.no_grad():
        w, b = vae.decoder.linear.weight, vae.decoder.linear.bias
        precision = 1 + 1 / 0.25  # W^T W is the identity
        vae.encoder.linear.weight[:2] = w.T / 0.25 / precision
        vae.encoder.linear.bias[:2] = -(w.T @ b) / 0.25 / precision
        vae.encoder.linear.weight[2:] = 0
        vae.encoder.linear.bias[2:] = -math.log(precision)
    assert (elbo() - log_p.mean()).abs() < 0.06  # 2000 samples of a standard deviation of 1


class Density(Gaussian):
    """The density in place of the probability of levels, as it is known in closed form."""

    def log_mass(self, images, outputs):
        return self.log_prob(images, outputs)


def test_importance_sampling_finds_the_evidence_that_is_known_in_closed_form():
    vae = linear_vae(likelihood=Density(sigma=0.5))
    images = images_of(3, torch.float64)
    found = vae.log_likelihood(images, num_samples=20_000)
    assert (found - evidence(vae, images)).abs().max() < 0.05


def test_the_bound_rises_with_the_number_of_samples_from_the_elbo_at_one():
    vae = linear_vae(likelihood=Density(sigma=0.5))
    images = images_of(400, torch.float64)
    means = [vae.log_likelihood(images, num_samples=k).mean().item() for k in (1, 2, 5, 20, 100)]
    assert means == sorted(means)
    assert means[-1] < evidence(vae, images).mean() + 0.02
    with torch.no_grad():
        trials = []
        for seed in range(30):
            torch.manual_seed(seed)
            terms = vae.losses({"image": images})
            trials.append(-(terms["reconstruction"] + terms["kl"]))
    trials = torch.stack(trials)
    one = torch.stack([vae.log_likelihood(images, num_samples=1, seed=s).mean() for s in range(30)])
    error = (trials.var() / 30 + one.var() / 30).sqrt()
    assert (trials.mean() - one.mean()).abs() < 4 * error


def test_the_likelihood_depends_neither_on_chunks_nor_on_how_many_samples_follow():
    vae = mlp_vae().double()
    images = images_of(70, torch.float64)
    whole = vae.log_likelihood(images, num_samples=6)
    for chunk in (1, 7, 64, 1000):
        parts = vae.log_likelihood(images, num_samples=6, chunk=chunk)
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(vae.log_likelihood(images[:66], num_samples=6), whole[:66])
    assert not torch.equal(vae.log_likelihood(images, num_samples=6, seed=1), whole)


def test_the_kl_warms_up_over_images_to_beta():
    vae = mlp_vae(beta=4.0, kl_warmup=1000)
    weights = []
    for seen in (0, 250, 1000, 5000):
        vae.images_seen = seen
        weights.append(vae.kl_weight)
    assert weights == [0, 1, 4, 4]
    images = {"image": images_of(2)}
    vae.images_seen = 250
    torch.manual_seed(0)
    part = vae.losses(images)["kl"]
    vae.images_seen = 5000
    torch.manual_seed(0)
    torch.testing.assert_close(4 * part, vae.losses(images)["kl"])


def test_free_bits_cost_nothing_and_have_no_gradient():
    vae = linear_vae(free_bits=0.2)
    with torch.no_grad():  # one latent below, one above
        vae.encoder.linear.weight.zero_()
        vae.encoder.linear.bias.copy_(torch.tensor([0.1, 2.0, 0.0, 0.0]))
    kl = vae.losses({"image": images_of(3, torch.float64)})["kl"]
    assert kl.item() == pytest.approx(0.2 + 2.0)  # lambda, and 2 squared over 2
    kl.backward()
    assert vae.encoder.linear.bias.grad[0] == 0
    assert vae.encoder.linear.bias.grad[1] == pytest.approx(2.0)


def fitted(vae, data, steps=4, **options):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"logger": False, "enable_checkpointing": False, **options},
    )
    trainer.fit(vae, data)
    return trainer


def validated(vae, data, record=None):
    trainer = fitted(vae, data, 2, val_check_interval=2, logger=record or False)
    return {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")}


def test_validation_reports_the_bound_of_the_probabilities_of_all_held_out_images(tmp_path):
    vae = mlp_vae(shape=(1, 8, 8), likelihood=LearnedGaussian(sigma=0.5))
    data = Digits(batch_size=300)
    found = validated(vae, data, Record(tmp_path))
    assert set(found) == set(VAE.reports)
    assert found["val/elbo"] == pytest.approx(found["val/reconstruction"] - found["val/kl"])
    assert found["val/bpd"] == pytest.approx(-found["val/elbo"] / (64 * math.log(2)))
    images, _ = next(data.reference("test", 500))
    images = images.float() / 127.5 - 1
    mu, logvar = vae.encode(images)
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1).mean()
    assert found["val/kl"] == pytest.approx(kl.item(), rel=1e-4)
    mse = (vae.reconstruct(images) - images).square().mean()
    assert found["val/mse"] == pytest.approx(mse.item(), rel=1e-4)
    trials = torch.stack([vae.log_likelihood(images, num_samples=1, seed=s) for s in range(20)])
    assert found["val/elbo"] == pytest.approx(trials.mean().item(), rel=0.01)
    row = next(r for r in read_rows(tmp_path) if "val/elbo" in r)
    assert set(row["protocols"]) == set(found)
    assert len(set(row["protocols"].values())) == len(found)


def test_the_bits_of_a_vae_that_knows_nothing_are_those_of_its_likelihood():
    vae = mlp_vae(shape=(1, 8, 8), likelihood=Gaussian(sigma=1e3), optimizer=SGD(lr=0.0))
    found = validated(vae, Digits(batch_size=300))
    # a flat distribution: all mass is on the two outer levels, as if it were beyond the range
    log_mass = vae.likelihood.log_mass(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    assert log_mass.item() == pytest.approx(
        64 * math.log(2 / 255 / 1e3 / math.sqrt(2 * math.pi)), rel=1e-3
    )
    assert found["val/bpd"] > bits_per_dimension(torch.tensor(-64 * math.log(256)), 64)


def test_gray_images_have_no_bits_under_bernoulli_but_binary_ones_have():
    gray = validated(mlp_vae(shape=(1, 8, 8), likelihood=Bernoulli()), Digits(batch_size=300))
    assert "val/bpd" not in gray
    data = Digits(batch_size=300, binarise=True)
    binary = validated(mlp_vae(shape=(1, 8, 8), likelihood=Bernoulli()), data)
    assert 0.5 < binary["val/bpd"] < 1.5


def test_active_units_are_the_latents_whose_mean_varies_with_the_image():
    vae = mlp_vae(shape=(1, 8, 8), optimizer=SGD(lr=0.0))
    with torch.no_grad():
        vae.encoder.heads.weight.zero_()
        vae.encoder.heads.bias.zero_()
        vae.encoder.heads.weight[1].normal_()
    found = validated(vae, Digits(batch_size=300))
    assert found["val/active_units"] == 1


def dead(**options):
    vae = mlp_vae(shape=(1, 8, 8), optimizer=SGD(lr=0.0), **options)
    with torch.no_grad():
        vae.encoder.heads.weight.zero_()
        vae.encoder.heads.bias.zero_()
    return vae


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"likelihood": Gaussian(sigma=2.0)}, "sigma of 2 is larger than the spread"),
        ({"beta": 8.0, "likelihood": Gaussian(sigma=0.1)}, "beta = 8 makes a nat"),
        ({"likelihood": Bernoulli()}, "full weight from the first image"),
        ({"likelihood": Bernoulli(), "kl_warmup": 10}, "explains the images without latents"),
    ],
)
def test_a_collapsed_posterior_is_told_with_its_cause_once(options, cause):
    vae = dead(**options)
    data = Digits(batch_size=300)
    with pytest.warns(UserWarning, match=f"(?s)0 of 3 latents are active.*{cause}") as told:
        validated(vae, data)
    assert len([w for w in told if "Posterior collapse" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        vae._tell(0.0, 0, 0.4)


def test_no_collapse_is_told_during_warm_up_or_of_a_vae_that_uses_its_latents():
    data = Digits(batch_size=300)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        validated(dead(kl_warmup="1M"), data)
        vae = mlp_vae(shape=(1, 8, 8))
        fitted(vae, Digits(batch_size=64), 60, limit_val_batches=0)
        validated(vae, data)
    assert not [w for w in told if "collapse" in str(w.message)]


class Noise(nn.Module):
    def forward(self, images):
        return images + 0.5 * torch.randn(images.shape, dtype=images.dtype)


def test_a_denoising_vae_sees_corrupted_images_and_is_to_make_clean_ones():
    vae = linear_vae(corruption=Noise())
    images = images_of(3, torch.float64)
    torch.manual_seed(7)
    terms = vae.losses({"image": images})
    torch.manual_seed(7)
    seen = Noise()(images)
    mu, logvar = vae.encoder(seen).chunk(2, 1)
    z = mu + (0.5 * logvar).exp() * torch.randn(3, 2, dtype=torch.float64)
    expected = -vae.likelihood.log_prob(images, vae.decoder(z)).mean()
    torch.testing.assert_close(terms["reconstruction"], expected)


def test_a_denoising_vae_reports_how_much_nearer_it_comes():
    vae = mlp_vae(shape=(1, 8, 8), corruption=Noise())
    found = validated(vae, Digits(batch_size=300))
    # noise of 0.5, images from -1 to 1: 10 log10(4 / 0.25)
    assert found["val/psnr_input"] == pytest.approx(12.04, abs=0.1)
    assert 0 < found["val/psnr"] < 30
    assert vae.corrupted(images_of(2)).equal(vae.corrupted(images_of(2)))


def test_interpolation_starts_and_ends_at_the_reconstructions():
    vae = mlp_vae()
    a, b = images_of(3), images_of(3, seed=2)
    way = vae.interpolate(a, b, steps=5)
    assert way.shape == (3, 5, *SHAPE)
    torch.testing.assert_close(way[:, 0], vae.reconstruct(a))
    torch.testing.assert_close(way[:, -1], vae.reconstruct(b))
    middle = 0.5 * (vae.encode(a)[0] + vae.encode(b)[0])
    torch.testing.assert_close(way[:, 2], vae.decode(middle))


def test_a_traversal_changes_one_latent_at_a_time():
    vae = mlp_vae()
    image = images_of(1)[0]
    made = vae.traverse(image, dimensions=torch.tensor([2, 0]), values=torch.tensor([-1.0, 2.0]))
    assert made.shape == (2, 2, *SHAPE)
    z = vae.encode(image[None])[0].clone()
    z[0, 2] = 2.0
    torch.testing.assert_close(made[0, 1], vae.decode(z)[0])


def test_an_image_of_another_kind_is_more_anomalous():
    torch.manual_seed(0)
    vae = mlp_vae(shape=(1, 8, 8), likelihood=OptimalGaussian())
    fitted(vae, Digits(batch_size=64), 60)
    images, _ = next(Digits().reference("test", 100))
    digits = images.float() / 127.5 - 1
    scores, others = vae.anomaly_score(digits), vae.anomaly_score(-digits)
    assert scores.shape == (100,)
    assert (others > scores).all()
    assert torch.equal(scores, -vae.log_likelihood(digits, num_samples=10))


def test_pictures_are_the_same_each_time_and_move_no_random_state():
    vae = mlp_vae(classes=10, corruption=Noise(), shape=(1, 8, 8))
    batch = {"image": torch.rand(11, 1, 8, 8) * 2 - 1, "label": torch.arange(11) % 10}
    state = torch.get_rng_state()
    first, second = vae.pictures(batch), vae.pictures(batch)
    assert list(first) == ["samples", "reconstructions", "traversal", "interpolation"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(picture.ndim == 3 for picture in first.values())
    assert list(vae.pictures(None)) == ["samples"]


def test_two_channels_are_shown_as_gray():
    vae = mlp_vae(shape=(2, 4, 4))
    pictures = vae.pictures({"image": torch.rand(4, 2, 4, 4) * 2 - 1})
    assert {len(picture) for picture in pictures.values()} == {1}


def test_training_raises_the_elbo_of_digits():
    vae = mlp_vae(shape=(1, 8, 8), classes=10)
    before = validated(vae, Digits(batch_size=64))["val/elbo"]
    fitted(vae, Digits(batch_size=64), 100)
    assert validated(vae, Digits(batch_size=64))["val/elbo"] > before + 10


def test_images_between_the_levels_have_no_bits():
    vae = mlp_vae(likelihood=LearnedGaussian())
    loader = DataLoader([{"image": images_of(4)}], batch_size=None)
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(vae, loader, loader)
    assert "val/elbo" in vae.scored
    assert "val/bpd" not in vae.scored


def protocols_of(tmp_path, vae, data, **options):
    record = Record(tmp_path)
    fitted(vae, data, 2, val_check_interval=2, logger=record, **options)
    rows = [r for r in read_rows(tmp_path) if "val/elbo" in r]
    return rows[-1]["protocols"]


def test_protocols_differ_exactly_where_scores_may_not_be_compared(tmp_path):
    def of(name, data=None, classes=0, **options):
        trainer = options.pop("trainer", {})
        vae = mlp_vae(shape=(1, 8, 8), classes=classes, **options)
        return protocols_of(tmp_path / name, vae, data or Digits(batch_size=300), **trainer)

    base = of("base", likelihood=LearnedGaussian())
    assert of("same", likelihood=OptimalGaussian(), beta=3.0) == base
    levels = of("levels", likelihood=LearnedGaussian(levels=16))
    assert levels["val/elbo"] != base["val/elbo"]
    assert levels["val/mse"] == base["val/mse"]
    binary = of("binary", data=Digits(batch_size=300, binarise=True))
    labels = of("labels", classes=10)
    weak, strong = (of(f"noise{s}", corruption=GaussianNoise(s)) for s in (0.1, 1.0))
    few = of("few", trainer={"limit_val_batches": 1})
    others = [base, binary, labels, weak, strong, few]
    for key in base:
        assert len({protocols[key] for protocols in others}) == len(others), key


def test_a_learned_prior_is_three_methods_and_every_figure_follows():
    class Shifted(VAE):
        """A prior around 1."""

        def latents(self, num, generator=None):
            return 1 + super().latents(num, generator)

        def divergence(self, mu, logvar):
            return super().divergence(mu - 1, logvar)

        def log_prior(self, latents):
            return super().log_prior(latents - 1)

    vae = linear_vae(Shifted, likelihood=Density(sigma=0.5))
    images = images_of(3, torch.float64)
    w, b = vae.decoder.linear.weight, vae.decoder.linear.bias
    covariance = w @ w.T + 0.25 * torch.eye(16, dtype=w.dtype)
    exact = torch.distributions.MultivariateNormal(b + w.sum(1), covariance)
    log_p = exact.log_prob(images.flatten(1))
    assert (vae.log_likelihood(images, num_samples=20_000) - log_p).abs().max() < 0.05
    mu, logvar = vae.posterior(images)
    terms = vae.losses({"image": images})
    expected = 0.5 * ((mu - 1).square() + logvar.exp() - 1 - logvar).sum(1).mean()
    torch.testing.assert_close(terms["kl"], expected)


@pytest.mark.parametrize("cls", [VAE, IWAE])
def test_labels_stay_with_their_images_among_many_samples(cls):
    """A decoder that draws its label alone: the likelihood is a sum over labels that is known."""

    class Drawn(nn.Module):
        image_shape, latent_dim, num_classes = SHAPE, 2, 3

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, z, labels):
            value = self.scale * (labels.double() - 1) / 2
            return value.view(-1, 1, 1, 1).expand(-1, *SHAPE)

    torch.manual_seed(0)
    vae = cls(ExactEncoder(), Drawn(), likelihood=Gaussian(sigma=0.5)).double()
    with torch.no_grad():  # the posterior is the prior, so that all weights are equal
        vae.encoder.linear.weight.zero_()
        vae.encoder.linear.bias.zero_()
    images = images_of(70, torch.float64)
    labels = torch.arange(70) % 3
    outputs = vae.decoder(torch.zeros(70, 2), labels)
    exact = vae.likelihood.log_mass(images, outputs)
    for chunk in (None, 5):
        found = vae.log_likelihood(images, labels, num_samples=4, chunk=chunk)
        torch.testing.assert_close(found, exact)
    terms = vae.losses({"image": images, "label": labels})
    expected = -vae.likelihood.log_prob(images, outputs).mean()
    torch.testing.assert_close(sum(terms.values()), expected)


def test_the_importance_weighted_bound_is_tempered_while_the_kl_warms_up():
    iwae = linear_vae(IWAE, num_samples=1, kl_warmup=100)
    vae = linear_vae(VAE)
    images = {"image": images_of(3, torch.float64)}
    iwae.images_seen = 0
    torch.manual_seed(3)
    found = iwae.losses(images)["iwae"]
    torch.manual_seed(3)
    torch.testing.assert_close(found, vae.losses(images)["reconstruction"])


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("cls", [VAE, IWAE])
def test_it_trains_and_samples_in_other_precisions(cls, precision):
    vae = mlp_vae(cls, shape=(1, 8, 8), classes=10)
    fitted(vae, Digits(batch_size=32), 3, precision=precision)
    assert vae.sample(3).isfinite().all()
    images, labels = next(Digits().reference("test", 4))
    assert vae.reconstruct((images / 127.5 - 1).to(vae.dtype), labels).isfinite().all()


def test_a_collapse_is_not_told_before_a_fifth_of_the_run():
    vae = dead(likelihood=Bernoulli())
    vae.total_images, vae.images_seen = 1000, 100
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        vae._tell(0.0, 0, 0.4)
    vae.images_seen = 300
    with pytest.warns(UserWarning, match="Posterior collapse"):
        vae._tell(0.0, 0, 0.4)


@pytest.mark.parametrize("num_samples", [1, 7])
def test_the_importance_weighted_loss_is_the_papers_equation_8(num_samples):
    iwae = linear_vae(IWAE, num_samples=num_samples)
    images = images_of(3, torch.float64)
    torch.manual_seed(7)
    found = iwae.losses({"image": images})["iwae"]
    torch.manual_seed(7)
    mu, logvar = iwae.encoder(images).chunk(2, 1)
    noise = torch.randn(3, num_samples, 2, dtype=torch.float64)
    std = (0.5 * logvar).exp()
    prior, log_w = torch.distributions.Normal(0.0, 1.0), []
    for k in range(num_samples):
        z = mu + std * noise[:, k]
        log_q = torch.distributions.Normal(mu, std).log_prob(z).sum(1)
        log_p = prior.log_prob(z).sum(1) + iwae.likelihood.log_prob(images, iwae.decoder(z))
        log_w.append(log_p - log_q)
    expected = torch.stack(log_w).exp().mean(0).log().mean()
    torch.testing.assert_close(found, -expected)


def test_one_backward_has_the_same_value_and_on_average_the_same_gradient():
    images = {"image": images_of(2, torch.float64)}
    torch.manual_seed(3)
    full = linear_vae(IWAE, num_samples=4)
    one = linear_vae(IWAE, num_samples=4, one_backward=True)

    def gradient(method, seed):
        method.zero_grad()
        torch.manual_seed(seed)
        loss = method.losses(images)["iwae"]
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in method.parameters()])

    pairs = [(gradient(full, s), gradient(one, s)) for s in range(3000)]
    assert all(a[0] == pytest.approx(b[0]) for a, b in pairs)
    differences = torch.stack([b[1] - a[1] for a, b in pairs])
    error = differences.std(0) / len(pairs) ** 0.5
    assert (differences.mean(0).abs() < 5 * error + 1e-9).all()
    assert (error > 0).any()


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("cls", [VAE, IWAE])
def test_the_contract_holds(cls, classes):
    check_method(lambda: mlp_vae(cls, classes=classes))


def test_the_contract_holds_with_everything_at_once():
    check_method(
        lambda: mlp_vae(
            kl_warmup=20, free_bits=0.1, beta=2.0, corruption=RandomFlip(), likelihood=Bernoulli()
        )
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp_vae(beta=-1.0), "beta must be at least 0, got -1.0"),
        (lambda: mlp_vae(free_bits=math.nan), "free_bits must be at least 0, got nan"),
        (lambda: mlp_vae(kl_warmup="soon"), "kl_warmup: expected a number such as"),
        (lambda: mlp_vae(IWAE, num_samples=0), "num_samples must be at least 1, got 0"),
        (lambda: mlp_vae(IWAE, free_bits=0.1), "IWAE has no KL in closed form"),
        (lambda: mlp_vae(IWAE, likelihood=OptimalGaussian()), "use LearnedGaussian"),
        (lambda: mlp_vae(likelihood="Bernoulli"), "must be a Likelihood such as"),
        (
            lambda: VAE(MLPEncoder(SHAPE, num_classes=3, latent_dim=2), LinearDecoder()),
            "encoder has num_classes = 3, the decoder 0",
        ),
        (
            lambda: VAE(ExactEncoder(), nn.Linear(2, 16)).losses({"image": images_of(3)}),
            r"images have the shape \(3, 1, 4, 4\), the decoder's outputs \(3, 16\)",
        ),
        (
            lambda: VAE(MLPEncoder(SHAPE, latent_dim=3), MLPDecoder(SHAPE, latent_dim=4)),
            "encoder has latent_dim = 3, the decoder 4; they must agree",
        ),
        (
            lambda: VAE(MLPEncoder((1, 8, 8)), MLPDecoder(SHAPE)),
            r"encoder has image_shape = \(1, 8, 8\), the decoder \(1, 4, 4\)",
        ),
        (
            lambda: VAE(MLPEncoder(SHAPE, num_classes=3), MLPDecoder(SHAPE)),
            "encoder has num_classes = 3, the decoder 0",
        ),
        (
            lambda: VAE(nn.Identity(), nn.Conv2d(1, 1, 1)),
            "no attribute latent_dim",
        ),
        (
            lambda: VAE(nn.Identity(), LinearDecoder()).posterior(images_of(3)),
            r"must return mu and logvar, each of shape \(3, 2\).*a tensor of shape \(3, 1, 4, 4\)",
        ),
        (lambda: mlp_vae().reconstruct(images_of(2), torch.zeros(2).long()), "unconditional, but"),
        (lambda: mlp_vae(classes=2).encode(images_of(2)), "conditional on 2 classes, but labels"),
        (lambda: mlp_vae(classes=2).losses({"image": images_of(2)}), "the batch has no 'label'"),
        (lambda: mlp_vae().interpolate(images_of(1), images_of(1), steps=1), "steps must be at"),
        (lambda: mlp_vae().log_likelihood(images_of(1), num_samples=0), "got 0 and None"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_encoder_may_do_without_the_labels_of_its_decoder():
    vae = VAE(MLPEncoder(SHAPE), MLPDecoder(SHAPE, num_classes=3))
    labels = torch.tensor([0, 1])
    assert vae.reconstruct(images_of(2), labels).shape == (2, *SHAPE)
    assert vae.sample(4).shape == (4, *SHAPE)


def test_networks_built_for_other_data_are_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"encoder has image_shape = \(1, 4, 4\), but the data"):
        fitted(mlp_vae(), Digits())
    vae = mlp_vae(classes=3, shape=(1, 8, 8))
    with pytest.raises(ValueError, match="num_classes = 3, but the data has 10 classes"):
        fitted(vae, Digits())


def test_plain_loaders_are_validated_without_protocols():
    on_levels = (images_of(4) * 127.5).round() / 127.5 + 1 / 255
    batches = [{"image": on_levels.clamp(-1, 1)}]
    vae = mlp_vae()
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(batches, batch_size=None)
    trainer.fit(vae, loader, loader)
    assert set(vae.scored) >= {"val/elbo", "val/bpd"}
    assert {hash_ for _, hash_ in vae.scored.values()} == {""}


def test_validation_does_not_disturb_training():
    def weights(**options):
        with_seed = seeding.fold(1)
        torch.manual_seed(with_seed)
        vae = mlp_vae(shape=(1, 8, 8))
        fitted(vae, Digits(batch_size=64, seed=1), 4, **options)
        return vae.state_dict()

    often, never = weights(val_check_interval=1), weights(limit_val_batches=0)
    assert all(torch.equal(often[key], never[key]) for key in never)


def test_images_that_are_not_what_the_likelihood_is_about_are_told_once():
    vae = mlp_vae(shape=(1, 8, 8), likelihood=Bernoulli())
    with pytest.warns(UserWarning, match="images are gray, and Bernoulli is a likelihood of black"):
        validated(vae, Digits(batch_size=300))
    vae = mlp_vae(shape=(1, 8, 8))
    with pytest.warns(UserWarning, match="black and white only, but OptimalGaussian spreads"):
        validated(vae, Digits(batch_size=300, binarise=True))


def test_who_reports_a_score_says_which_way_is_better(tmp_path):
    for monitor, mode in (("val/elbo", "max"), ("val/bpd", "min"), ("val/mse", "min")):
        checkpoint = Checkpoint(every="1M", monitor=monitor)
        vae = mlp_vae(shape=(1, 8, 8))
        folder = tmp_path / mode / monitor[4:]
        fitted(vae, Digits(batch_size=300), 1, callbacks=[checkpoint],
               default_root_dir=folder, enable_checkpointing=True)  # fmt: skip
        assert checkpoint.mode == mode
    assert set(VAE.rising) <= {*VAE.reports, "val/psnr"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, x: v.encode((x * 255).byte()), "Images must be float in .* got torch.uint8"),
        (lambda v, x: v.interpolate(x[:2], x[:3]), "to one of as many others"),
        (
            lambda v, x: v.traverse(x[0], dimensions=[7]),
            r"dimensions must be from 0 to 2, got \[7\]",
        ),
    ],
)
def test_what_latents_are_not_for_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(mlp_vae(), images_of(4))


def test_a_traversal_takes_lists_and_no_images_have_no_likelihood():
    vae = mlp_vae()
    assert vae.traverse(images_of(1)[0], dimensions=[0, 1], values=[-1, 0, 1.0]).shape[:2] == (2, 3)
    assert vae.log_likelihood(images_of(0), num_samples=3).shape == (0,)


def test_interpolations_join_images_of_one_class():
    vae = mlp_vae(classes=3)
    images, labels = images_of(6), torch.tensor([0, 1, 2, 0, 1, 2])
    sheet = vae.interpolation_sheet(images, labels, steps=3)
    way = vae.interpolate(images[:3], images[3:], labels[:3], steps=3)
    assert torch.equal(sheet, grid(way.flatten(0, 1), columns=3))
