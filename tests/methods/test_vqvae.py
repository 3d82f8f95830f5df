"""VQ-VAE: its terms by hand, where gradients go, what is held out, samples, collapse, errors."""

import math
import warnings

import pytest
import torch
from classifying import trainer
from ranks import together
from torch import nn
from torch.nn import functional as F

from imgsynth.data import Digits
from imgsynth.images import from_uint8
from imgsynth.likelihoods import Bernoulli, Gaussian, OptimalGaussian
from imgsynth.loggers.record import Record, read_rows
from imgsynth.methods import vqvae
from imgsynth.methods.vqvae import VQVAE
from imgsynth.networks.quantizer import FiniteScalarQuantizer, VectorQuantizer
from imgsynth.networks.spatial import SpatialDecoder, SpatialEncoder
from imgsynth.networks.transformer import CodeTransformer
from imgsynth.optim import SGD
from imgsynth.testing import check_method


def _networks(quantizer=None):
    quantizer = quantizer or VectorQuantizer(8, 3, restart_below=0)
    sizes = {"image_shape": (1, 8, 8), "code_dim": quantizer.code_dim, "downsamplings": 2}
    return (
        SpatialEncoder(**sizes, width=6, num_res_blocks=1),
        quantizer,
        SpatialDecoder(**sizes, width=6, num_res_blocks=1),
    )


def small(quantizer=None, num_classes=10, prior=True, **options) -> VQVAE:
    """Return one with 2x2 codes an image."""
    torch.manual_seed(5)
    encoder, quantizer, decoder = _networks(quantizer)
    with torch.no_grad():  # features that differ enough for several codes to be chosen
        for layer in encoder.layers.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(2.5)
                layer.bias.zero_()
    network = CodeTransformer(quantizer.num_codes, 4, num_classes, width=8, depth=1, heads=2)
    return VQVAE(encoder, quantizer, decoder, network if prior else None, **options)


def _batch(num=6):
    generator = torch.Generator().manual_seed(2)
    return {
        "image": torch.rand(num, 1, 8, 8, generator=generator) * 2 - 1,
        "label": torch.arange(num) % 10,
    }


# -- training -------------------------------------------------------------------------------------


def test_the_terms_are_those_of_the_paper_by_hand():
    method, batch = small(likelihood=Gaussian(sigma=0.7), commitment_weight=0.3), _batch()
    method.quantizer.eval()
    images = batch["image"]
    terms = method.losses(batch)
    features = method.encoder(images)
    distances = (features[:, None] - method.quantizer.codebook.view(1, 8, 3, 1, 1)).square().sum(2)
    indices = distances.argmin(1)
    assert len(indices.unique()) > 2
    codes = method.quantizer.codebook[indices].permute(0, 3, 1, 2)
    error = (method.decoder(codes) - images).square().mean()
    expected = error / (2 * 0.49) + math.log(0.7) + 0.5 * math.log(2 * math.pi)  # nats a value
    torch.testing.assert_close(terms["reconstruction"], expected)
    torch.testing.assert_close(terms["commitment"], 0.3 * (features - codes).square().mean())
    p = method.prior(indices.flatten(1), batch["label"]).softmax(2)
    own = p.gather(2, indices.flatten(1)[..., None])
    torch.testing.assert_close(terms["prior"], -own.log().mean())
    counts = torch.bincount(indices.flatten(), minlength=8) / 24
    entropy = -(counts[counts > 0] * counts[counts > 0].log()).sum()
    means = method.meter.means()
    assert means["train/perplexity"] == pytest.approx(entropy.exp().item(), rel=1e-5)
    assert means["train/usage"] == pytest.approx((counts > 0).float().mean().item())


def _gradients(method, term):
    method.zero_grad()
    method.losses(_batch())[term].backward()
    return {
        name: sum(p.grad.abs().sum().item() for p in network.parameters() if p.grad is not None)
        for name, network in method.named_children()
    }


def test_each_term_moves_the_networks_it_is_about():
    method = small()
    moved = _gradients(method, "reconstruction")
    assert moved["encoder"] > 0
    assert moved["decoder"] > 0
    assert moved["prior"] == 0
    moved = _gradients(method, "commitment")
    assert moved["encoder"] > 0
    assert moved["decoder"] == moved["prior"] == 0
    moved = _gradients(method, "prior")
    assert moved["prior"] > 0
    assert moved["encoder"] == moved["decoder"] == 0


def test_the_reconstruction_moves_the_encoder_by_the_gradient_at_the_codes():
    method, batch = small(), _batch()
    method.quantizer.eval()
    method.losses(batch)["reconstruction"].backward()
    found = [p.grad.clone() for p in method.encoder.parameters()]
    features = method.encoder(batch["image"])
    codes = method.quantizer(features)[0].detach().requires_grad_()
    log_prob = method.likelihood.log_prob(batch["image"], method.decoder(codes))
    (-log_prob.mean() / 64).backward()
    expected = torch.autograd.grad(features, list(method.encoder.parameters()), codes.grad)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_finite_scalars_have_nothing_to_commit_to():
    method = small(FiniteScalarQuantizer((5, 3)), prior=False)
    assert method.losses(_batch()).keys() == {"reconstruction"}


CASES = {
    "codebook": lambda: small(VectorQuantizer(8, 3)),
    "finite scalars": lambda: small(FiniteScalarQuantizer((5, 3)), likelihood=OptimalGaussian()),
    "without classes": lambda: small(num_classes=0, likelihood=Bernoulli()),
    "without a prior": lambda: small(prior=False),
}


@pytest.mark.parametrize("case", [name for name in CASES if name != "without a prior"])
def test_a_vqvae_keeps_the_contract(case, digits):
    check_method(CASES[case], digits)


def test_without_a_prior_it_learns_too(digits):
    method = CASES["without a prior"]()
    trainer(3).fit(method, digits)
    assert set(method.ema) == {"encoder", "quantizer", "decoder"}
    assert method.updates == 3


def test_the_codebook_is_averaged_with_what_it_belongs_to(digits):
    method = small(VectorQuantizer(8, 3), ema_half_life=100, ema_ramp_up=None)
    trainer(8).fit(method, digits)
    average, live = method.ema["quantizer"].codebook, method.quantizer.codebook
    assert not torch.equal(average, live)
    indices = method.encode(_batch()["image"])
    with method.evaluating():
        features = method.ema["encoder"](_batch()["image"])
        distances = (features[:, None] - average.view(1, 8, 3, 1, 1)).square().sum(2)
    assert torch.equal(indices, distances.argmin(1))


# -- held-out images ------------------------------------------------------------------------------


def validated(devices: int, batch_size: int) -> dict[str, torch.Tensor]:
    """Train for a few updates, validate, and return what is reported and the weights."""
    method, data = small(optimizer=SGD(lr=0.02)), Digits(batch_size=batch_size, seed=3)
    run = trainer(4, devices, val_check_interval=4)
    run.fit(method, data)
    scores = {k: v.float() for k, v in run.callback_metrics.items() if k.startswith("val/")}
    return {**scores, **method.state_dict()}


def test_the_validation_is_that_of_the_averaged_weights_over_all_images(tmp_path):
    method, data = small(), Digits(batch_size=64, seed=3)  # 500 = 7 * 64 + 52
    trainer(4, val_check_interval=2, logger=Record(tmp_path / "run")).fit(method, data)
    images, labels = next(data.reference("test", 500))
    images = from_uint8(images)
    with torch.no_grad():
        codes, indices, _ = method.ema["quantizer"](method.ema["encoder"](images))
        outputs = method.ema["decoder"](codes).clamp(-1, 1)
        logits = method.ema["prior"](indices.flatten(1), labels)
    p = torch.bincount(indices.flatten(), minlength=8) / 2000
    expected = {
        "val/reconstruction": (outputs - images).square().mean().item(),
        "val/prior": F.cross_entropy(logits.flatten(0, 1), indices.flatten()).item(),
        "val/perplexity": torch.special.entr(p).sum().exp().item(),
        "val/usage": (p > 0).float().mean().item(),
    }
    rows = [row for row in read_rows(tmp_path / "run") if "val/prior" in row]
    assert [row["updates"] for row in rows] == [2, 4]  # the trial before training is not reported
    for key, value in expected.items():
        assert rows[-1][key] == pytest.approx(value, rel=1e-4)
    assert 1 < expected["val/perplexity"] < 8


def test_without_a_prior_the_other_figures_are_reported(digits):
    run = trainer(2, val_check_interval=2)
    method = small(prior=False)
    run.fit(method, digits)
    found = {key for key in run.callback_metrics if key.startswith("val/")}
    assert found == {"val/reconstruction", "val/perplexity", "val/usage"} == set(method.reports)
    assert set(small().reports) == found | {"val/prior"}


@pytest.mark.ddp
@pytest.mark.xdist_group("ddp")
def test_two_ranks_learn_and_report_what_one_process_does(tmp_path):
    one = validated(1, 24)
    assert {"val/prior", "val/perplexity", "quantizer.codebook"} < one.keys()
    for rank in together(tmp_path, validated, 2, 12):
        for key, value in one.items():
            torch.testing.assert_close(rank[key], value, rtol=1e-3, atol=1e-5)


# -- use ------------------------------------------------------------------------------------------


def test_an_image_is_encoded_decoded_and_reconstructed_by_its_codes():
    method, images = small(), _batch()["image"]
    indices = method.encode(images)
    assert indices.shape == (6, 2, 2)
    codes = method.quantizer.codebook[indices].permute(0, 3, 1, 2)
    expected = method.decoder(codes).clamp(-1, 1)
    torch.testing.assert_close(method.decode_codes(indices), expected)
    torch.testing.assert_close(method.reconstruct(images), expected)
    assert method.training
    assert not method.reconstruct(images).requires_grad


@pytest.mark.parametrize("num_classes", [0, 10])
def test_a_sample_depends_on_its_place_alone(num_classes):
    method = small(num_classes=num_classes)
    ten, many = method.sample(10, seed=1), method.sample(70, seed=1)
    assert torch.equal(ten, many[:10])
    assert not torch.equal(ten, method.sample(10, seed=2))
    assert len(many.unique(dim=0)) > 30


def test_samples_are_what_the_prior_draws_from_uniform_latents():
    method = small()
    latents = method.latents(200, torch.Generator().manual_seed(0))
    assert latents.shape == (200, 4)
    assert latents.min() >= 0
    assert latents.max() < 1
    labels = torch.arange(200) % 10
    method.eval()
    with torch.no_grad():
        images = method.generate(latents, labels)
        indices = method.prior.sample(latents, labels).view(200, 2, 2)
    assert torch.equal(images, method.decode_codes(indices))


def test_codes_are_drawn_as_often_as_the_prior_says():
    method = small(num_classes=2)
    with torch.no_grad():
        method.prior.head.weight.mul_(40)
        p = method.prior(torch.zeros(2, 4, dtype=torch.int64), torch.arange(2)).softmax(2)[:, 0]
    assert (p[0] - p[1]).abs().max() > 0.05
    decoded = []
    method._decoded = lambda indices: decoded.append(indices) or torch.zeros(len(indices))
    method.sample(6400, labels=1)
    counts = torch.bincount(torch.cat(decoded)[:, 0, 0], minlength=8)
    assert (counts / 6400 - p[1]).abs().max() < 5 * math.sqrt(0.25 / 6400)


def test_real_images_stand_above_their_reconstructions():
    method, batch = small(), _batch(19)
    shown = method.pictures(batch)
    assert set(shown) == {"samples", "reconstructions"}
    sheet = shown["reconstructions"]
    assert sheet.shape == (1, 4 * 50 + 2, 8 * 50 + 2)  # 16 images of 48 pixels with their own
    rows = [sheet[:, 2 + 50 * row : 50 + 50 * row, 2:50][:, ::6, ::6] for row in range(4)]
    made = method.reconstruct(batch["image"])
    shown_first = [batch["image"][0], made[0], batch["image"][8], made[8]]
    for row, image in zip(rows, shown_first, strict=True):
        assert torch.equal(row, image)
    assert method.pictures(_batch(3))["reconstructions"].shape == (1, 2 * 50 + 2, 3 * 50 + 2)
    assert set(method.pictures()) == {"samples"}


def test_without_a_prior_sampling_says_so_and_reconstructions_are_shown():
    method = small(prior=False)
    with pytest.raises(ValueError, match=r"no prior.*prior=CodeTransformer\(num_codes=8, num_tok"):
        method.sample(3)
    with pytest.raises(ValueError, match="no prior"):
        method.generate(torch.rand(3, 4))
    assert set(method.pictures(_batch())) == {"reconstructions"}
    assert method.pictures() == {}


# -- collapse -------------------------------------------------------------------------------------


def _collapsing():
    method = small(prior=False)
    method.quantizer.codebook[1:] += 1000
    method.quantizer.sums[1:] += 1000
    return method


def test_a_collapsed_codebook_is_told_once_a_run_with_its_cause(monkeypatch, digits):
    monkeypatch.setattr(vqvae, "_SETTLED", 3)
    method = _collapsing()
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(8, val_check_interval=2).fit(method, digits)
        told = [str(w.message) for w in caught if "codes are in use" in str(w.message)]
        assert len(told) == 1
        assert told[0].startswith("Only 1 of 8 codes are in use (perplexity 1.0): the others are f")
        assert "restart_below=0.05" in told[0]


@pytest.mark.parametrize("make", [_collapsing, lambda: small(VectorQuantizer(8, 3))])
def test_nothing_is_told_before_the_codes_settle_or_if_they_are_in_use(make, monkeypatch, digits):
    settled = 1 if make is not _collapsing else 3
    monkeypatch.setattr(vqvae, "_SETTLED", settled)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(2, val_check_interval=2).fit(make(), digits)
    assert not [w for w in caught if "codes are in use" in str(w.message)]


# -- errors ---------------------------------------------------------------------------------------


def test_networks_that_do_not_fit_are_refused():
    encoder, quantizer, decoder = _networks()
    other = SpatialDecoder((1, 8, 8), code_dim=3, downsamplings=1, width=4)
    with pytest.raises(ValueError, match=r"makes maps of shape \(3, 2, 2\).* takes \(3, 4, 4\)"):
        VQVAE(encoder, quantizer, other)
    with pytest.raises(ValueError, match="features of 3 channels, but the codes have 5"):
        VQVAE(encoder, VectorQuantizer(8, 5), decoder)
    for numbers, says in [((9, 4), "num_codes = 9, but images have 8"), ((8, 5), "num_tokens = 5")]:
        with pytest.raises(ValueError, match=says + r".*num_codes=8, num_tokens=4"):
            VQVAE(encoder, quantizer, decoder, CodeTransformer(*numbers))
    plain = nn.Sequential(encoder), quantizer, nn.Sequential(decoder)
    with pytest.raises(ValueError, match="state code_shape"):
        VQVAE(*plain, CodeTransformer(8, 4))
    assert VQVAE(*plain).reconstruct(_batch()["image"]).shape == (6, 1, 8, 8)


def test_a_weight_below_zero_is_refused():
    with pytest.raises(ValueError, match="commitment_weight must be at least 0, got -1"):
        small(commitment_weight=-1)


def test_a_batch_without_labels_is_refused_by_a_conditional_prior():
    with pytest.raises(ValueError, match=r"num_classes = 10\), but the batch has no 'label'"):
        small().losses({"image": torch.zeros(2, 1, 8, 8)})
    assert "prior" in small(num_classes=0).losses({"image": torch.zeros(2, 1, 8, 8)})


def test_data_of_another_size_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"encoder has image_shape = \(1, 8, 8\)"):
        trainer(1).fit(small(), Digits(size=16, batch_size=16))
