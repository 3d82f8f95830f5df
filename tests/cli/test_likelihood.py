import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import imgsynth
from imgsynth.cli import main
from imgsynth.cli.likelihood import bounds, lie_on_levels
from imgsynth.data import Digits
from imgsynth.images import from_uint8
from imgsynth.likelihoods import DiscretisedLogistic
from imgsynth.methods import VAE

RECIPE = """\
images: 6400
model:
  class_path: VAE
  init_args:
    encoder: {class_path: MLPEncoder, init_args: {width: 16, latent_dim: 2}}
    decoder: {class_path: MLPDecoder, init_args: {width: 16, latent_dim: 2}}
    likelihood: {class_path: Gaussian, init_args: {sigma: 0.5}}
    kl_warmup: 3200
    optimizer: {class_path: Adam, init_args: {lr: 0.01}}
data: {class_path: Digits}
trainer: {accelerator: cpu, log_every_n_steps: 50, enable_progress_bar: false}
samples: {gif: false}
"""
BERNOULLI = RECIPE.replace("Gaussian, init_args: {sigma: 0.5}", "Bernoulli")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with small runs: a conditional VAE, one of gray Bernoullis, a GAN."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("vae.yaml").write_text(RECIPE)
        Path("bernoulli.yaml").write_text(BERNOULLI)
        assert main(["fit", "-c", "vae.yaml"]) == 0
        assert main(["fit", "-c", "bernoulli.yaml", "--images", "128"]) == 0
    return folder / "runs"


def written(out):
    return json.loads(Path(out.splitlines()[-1].removeprefix("Written to ")).read_text())


def measured(run, path, *options):
    code, out, err = run("likelihood", str(path), *options)
    assert code == 0, err
    return written(out)


def means(report):
    return {name: row["mean"] for name, row in report["scores"].items()}


def images_of(num):
    images, labels = next(iter(Digits().reference("test", num)))
    return from_uint8(images), labels


def by_quadrature(method, num):
    """log P(x), the expected log P(x | z) and the KL of the first images, by sums over a grid."""
    images, labels = images_of(num)
    line = torch.linspace(-7, 7, 141, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    log_area = 2 * math.log(14 / 140)
    mu, logvar = (t.double() for t in method.encode(images, labels))
    found = []
    method.double()
    with method.evaluating():
        for image, label, m, v in zip(images.double(), labels, mu, logvar, strict=True):
            outputs = method.outputs(z, label.expand(len(z)))
            log_mass = method.likelihood.log_mass(image.expand_as(outputs), outputs)
            prior = Normal(torch.zeros_like(m), torch.ones_like(m))
            posterior = Normal(m, (0.5 * v).exp())
            joint = log_mass + prior.log_prob(z).sum(1)
            weight = (posterior.log_prob(z).sum(1) + log_area).exp()
            found.append([
                torch.logsumexp(joint + log_area, 0).item(),
                (weight * log_mass).sum().item(),
                kl_divergence(posterior, prior).sum().item(),
            ])  # fmt: skip
    return np.array(found).mean(0)


def test_the_numbers_are_those_of_a_sum_over_all_latents(here, run, runs):
    exact, reconstruction, kl = by_quadrature(imgsynth.load(runs / "vae"), 10)
    tight = measured(run, runs / "vae", "--num", "10", "--num-samples", "5000")
    loose = measured(run, runs / "vae", "--num", "10", "--num-samples", "1", "--seeds", "20")
    assert means(tight)["iwae5000"] == pytest.approx(exact, abs=0.05)
    assert loose["parts"]["kl"] == pytest.approx(kl, abs=1e-3)
    assert loose["parts"]["reconstruction"] == pytest.approx(reconstruction, abs=0.2)
    assert means(loose)["elbo"] == pytest.approx(reconstruction - kl, abs=0.2)
    assert reconstruction - kl < exact - 0.5


def test_bits_per_dimension_are_nats_over_pixels_and_log_two(here, run, runs):
    report = measured(run, runs / "vae", "--num", "70", "--num-samples", "3")
    assert list(report["scores"]) == ["elbo", "iwae3"]
    for row in report["scores"].values():
        expected = -row["mean"] / (64 * math.log(2))
        assert row["bits_per_dimension"] == pytest.approx(expected, rel=1e-5)


def test_more_latents_are_closer_and_all_images_of_the_split_are_taken(here, run, runs):
    few = measured(run, runs / "vae", "--num-samples", "2")
    many = measured(run, runs / "vae", "--num-samples", "50")
    assert means(few)["iwae2"] < means(many)["iwae50"]
    assert means(few)["elbo"] == means(many)["elbo"]
    assert few["scores"]["elbo"]["protocol"]["real"]["num"] == 500
    assert few["images"] == "500 images of Digits, split test"


def test_numbers_depend_on_neither_chunk_nor_how_many_images_follow(here, run, runs):
    whole = means(measured(run, runs / "vae", "--num", "64"))
    chunked = means(measured(run, runs / "vae", "--num", "64", "--chunk", "7"))
    assert chunked == pytest.approx(whole, abs=1e-3)
    assert means(measured(run, runs / "vae", "--num", "64")) == whole
    both = means(measured(run, runs / "vae", "--num", "128"))["iwae50"]
    method = imgsynth.load(runs / "vae")
    images, labels = images_of(128)
    rest = method.log_likelihood(images[64:], labels[64:], num_samples=50).mean().item()
    assert 2 * both - whole["iwae50"] == pytest.approx(rest, abs=0.3)


class Ray(nn.Module):
    """Latents that are narrow around 0.3, and images of one gray level, the latent."""

    image_shape, latent_dim = (1, 2, 2), 1

    def forward(self, given):
        if given.ndim == 4:
            return given.new_full((len(given), 1), 0.3), given.new_full((len(given), 1), -3.0)
        return given.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def test_a_narrow_posterior_gives_what_a_sum_over_its_latents_gives():
    method = VAE(Ray(), Ray(), likelihood=DiscretisedLogistic(scale=0.1)).eval()
    image = from_uint8(torch.full((1, 2, 2), 200, dtype=torch.uint8))
    images = image.expand(64, -1, -1, -1)
    found = bounds(method, images, None, num_samples=1000, seed=0, start=0)
    z = torch.linspace(-6, 6, 4001)
    log_mass = method.likelihood.log_mass(image.expand(len(z), -1, -1, -1), Ray()(z[:, None]))
    posterior, prior = Normal(0.3, math.exp(-1.5)), Normal(0.0, 1.0)
    step = 12 / 4000
    exact = torch.logsumexp(log_mass + prior.log_prob(z), 0) + math.log(step)
    expected = (posterior.log_prob(z).exp() * step * log_mass).sum()
    assert found.log_likelihood.mean().item() == pytest.approx(exact.item(), abs=0.02)
    assert found.reconstruction.mean().item() == pytest.approx(expected.item(), abs=0.5)
    assert found.kl[0].item() == pytest.approx(kl_divergence(posterior, prior).item(), rel=1e-5)
    assert torch.equal(found.elbo, found.reconstruction - found.kl)
    wide = Normal(0.3, math.exp(-3.0))  # what a variance for a deviation would give
    assert abs((wide.log_prob(z).exp() * step * log_mass).sum() - expected) > 1


def test_each_block_and_seed_has_latents_of_its_own():
    method = VAE(Ray(), Ray(), likelihood=DiscretisedLogistic(scale=0.1)).eval()
    images = torch.zeros(3, 1, 2, 2)

    def found(seed, start, num=3):
        made = bounds(method, images[:num], None, num_samples=2, seed=seed, start=start)
        return made.elbo, made.log_likelihood

    usual = found(0, 0)
    assert all(map(torch.equal, usual, found(0, 0)))
    assert all(torch.equal(a[:2], b) for a, b in zip(usual, found(0, 0, 2), strict=True))
    for other in (found(0, 64), found(1, 0)):
        assert not any(map(torch.equal, usual, other))
    assert len(set(usual[0].tolist())) == len(set(usual[1].tolist())) == 3


def test_the_seeds_give_the_mean_and_the_range(here, run, runs):
    code, out, _ = run("likelihood", str(runs / "vae"), "--num", "30", "--seeds", "3")
    row = written(out)["scores"]["iwae50"]
    assert code == 0
    assert len(set(row["values"])) == 3
    assert row["mean"] == pytest.approx(np.mean(row["values"]))
    assert f"{min(row['values']):.2f} to {max(row['values']):.2f}" in out
    assert "range, 3 seeds" in out


def test_the_error_is_that_of_the_mean_over_images(here, run, runs):
    report = measured(run, runs / "vae", "--num", "50")
    images, labels = images_of(50)
    log = imgsynth.load(runs / "vae").log_likelihood(images, labels, num_samples=50).numpy()
    expected = log.std(ddof=1) / np.sqrt(50)
    assert report["scores"]["iwae50"]["standard_error"] == pytest.approx(expected, rel=0.05)


def test_active_units_are_counted_by_the_variance_of_their_means(here, run, runs):
    report = measured(run, runs / "vae")
    images, labels = images_of(500)
    mu = imgsynth.load(runs / "vae").encode(images, labels)[0].numpy()
    assert report["active_units"] == (mu.var(0) > 0.01).sum() > 0
    assert report["latent_dim"] == 2


def test_equal_protocols_have_equal_hashes_and_others_have_not(here, run, runs):
    def hashes(*options):
        scores = measured(run, runs / "vae", "--num", "64", *options)["scores"]
        return [row["protocol"]["hash"] for row in scores.values()]

    usual = hashes()
    assert hashes("--chunk", "9", "--seeds", "2") == usual
    more = hashes("--num-samples", "51")
    assert more[0] == usual[0]  # the ELBO does not depend on it
    assert more[1] != usual[1]
    for options in (["--raw"], ["--split", "train"], ["--num", "63"], ["--data.size", "8"]):
        same = hashes(*options) == usual
        assert same is (options[0] == "--data.size"), options


def test_live_weights_give_other_numbers(here, run, runs):
    live = measured(run, runs / "vae", "--num", "64", "--raw")
    assert live["scores"]["elbo"]["protocol"]["weights"] == "live"
    averaged = measured(run, runs / "vae", "--num", "64")
    assert means(live) != pytest.approx(means(averaged), abs=1e-3)


def test_the_same_call_writes_the_same_file_again(here, run, runs):
    first = run("likelihood", str(runs / "vae"), "--num", "5").out
    again = run("likelihood", str(runs / "vae"), "--num", "5").out
    assert first == again
    name = Path(first.splitlines()[-1].removeprefix("Written to "))
    assert name.parent == runs / "vae" / "evaluations"
    assert name.name.startswith("likelihood-images-000000006400-")
    assert not list(name.parent.glob(".*"))


def test_a_checkpoint_is_as_good_as_its_run(here, run, runs):
    newest = max((runs / "vae" / "checkpoints").iterdir())
    by_run, by_file = (measured(run, p, "--num", "5") for p in (runs / "vae", newest))
    assert means(by_run) == means(by_file)


def test_cross_entropies_of_gray_images_are_called_no_likelihood(here, run, runs):
    code, out, _ = run("likelihood", str(runs / "bernoulli"), "--num", "20")
    assert code == 0
    assert "No likelihoods: Bernoulli gives probabilities of black and white images" in out
    assert "--data.binarise true" in out
    row = written(out)["scores"]["elbo"]
    assert row["bits_per_dimension"] is None
    assert row["protocol"]["probability"].startswith("none")


def test_drawn_black_and_white_they_have_bits_per_dimension(here, run, runs):
    options = ("--num", "20", "--data.binarise", "true")
    code, out, _ = run("likelihood", str(runs / "bernoulli"), *options)
    assert code == 0
    assert "No likelihoods" not in out
    row = written(out)["scores"]["elbo"]
    assert row["bits_per_dimension"] == pytest.approx(-row["mean"] / 64 / math.log(2), rel=1e-5)
    assert row["protocol"]["probability"] == "of 2 levels a pixel"


def test_images_lie_on_levels_if_all_their_values_do():
    levels = from_uint8(torch.arange(256, dtype=torch.uint8))
    assert lie_on_levels(levels, 256)
    assert not lie_on_levels(levels[:2], 2)
    assert lie_on_levels(levels[[0, 255]], 2)
    assert not lie_on_levels(levels + 1 / 2550, 256)
    deep = from_uint8(torch.arange(65536, dtype=torch.int32).to(torch.uint16))
    assert lie_on_levels(deep, 65536)
    assert not lie_on_levels(deep, 256)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--num-samples", "0"], "--num-samples must be at least 1, got 0"),
        (["--num-samples", "many"], "--num-samples expects a whole number, got 'many'"),
        (["--num", "0"], "--num must be at least 1, got 0"),
        (["--num", "few"], "got 'few'"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--chunk", "0"], "--chunk must be at least 1, got 0"),
        (["--split", "tset"], "Did you mean --split test?"),
        (["--split", "val"], "Digits has no such split"),
        (["--checkpoint", "first"], "There is no checkpoint 'first'"),
        (["--checkpoint", "best"], "keeps no best checkpoint"),
        (["--device", "tpu"], "Expected auto, cpu, cuda"),
        (["--data.size", "9"], "The model takes images of shape (1, 8, 8)"),
        (["--nun", "3"], "Did you mean --num?"),
        (["stray"], "Unexpected 'stray'"),
    ],
)
def test_mistakes_are_told_in_three_lines(here, run, runs, options, said):
    code, _, err = run("likelihood", str(runs / "vae"), *options)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) <= 3


def test_a_method_without_a_likelihood_names_those_that_have_one(here, run):
    assert run("fit", "-c", "tiny.yaml").code == 0
    code, _, err = run("likelihood", "runs/tiny")
    assert code == 2
    assert "HingeGAN has no likelihood" in err
    assert "VAE" in err.splitlines()[1]


def test_a_checkpoint_without_its_run_has_no_data(here, run, runs):
    newest = max((runs / "vae" / "checkpoints").iterdir())
    Path("alone.ckpt").write_bytes(newest.read_bytes())
    code, _, err = run("likelihood", "alone.ckpt")
    assert code == 2
    assert "it has no config.yaml" in err
