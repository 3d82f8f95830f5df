import math
import pickle
from copy import deepcopy

import numpy as np
import pairs_on_ranks
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from ranks import together
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.datasets import load_sample_image

from imgsynth.images import to_uint8
from imgsynth.metrics.pairs import PSNR, SSIM

METRICS = [PSNR, SSIM]


def tensor(array):
    """(H, W, 3) or (H, W) to (1, C, H, W)."""
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None]


def noisy(target, sigma, seed=0):
    """What a denoiser might have left, in the target's type."""
    limits = np.iinfo(target.dtype)
    noise = np.random.default_rng(seed).normal(0, sigma, target.shape)
    return (target + noise).round().clip(limits.min, limits.max).astype(target.dtype)


def photo(dtype=np.uint8):
    crop = load_sample_image("flower.jpg")[150:230, 250:350]  # not square
    # all 16 bits are used, and the lower ones are no copy of the upper ones
    return crop if dtype == np.uint8 else (crop.astype(np.float64) * 251.7).astype(dtype)


def pairs(num=5):
    target = np.stack([photo()] * num)
    restored = np.stack([noisy(photo(), 3.0 * (seed + 1), seed) for seed in range(num)])
    return [torch.from_numpy(images).permute(0, 3, 1, 2) for images in (restored, target)]


def value_of(metric, restored, target):
    metric.update(restored, target)
    return metric.compute().item()


def scikit_image_ssim(restored, target, data_range, border=0):
    """Mean of the map where the window of 11 pixels lies within the image."""
    inside = slice(border, -border or None)
    _, per_pixel = structural_similarity(
        restored[inside, inside].astype(np.float64),
        target[inside, inside].astype(np.float64),
        data_range=data_range,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return per_pixel[5:-5, 5:-5].mean()


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize(("dtype", "data_range"), [(np.uint8, 255), (np.uint16, 65535)])
def test_psnr_is_that_of_scikit_image(dtype, data_range, border):
    target = photo(dtype)
    restored = noisy(target, 0.04 * data_range)
    inside = slice(border, -border or None)
    wanted = peak_signal_noise_ratio(
        target[inside, inside], restored[inside, inside], data_range=data_range
    )
    metric = PSNR(crop_border=border, data_range=data_range)
    assert value_of(metric, tensor(restored), tensor(target)) == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize(("dtype", "data_range"), [(np.uint8, 255), (np.uint16, 65535)])
def test_ssim_is_that_of_scikit_image(dtype, data_range, border):
    target = photo(dtype)
    restored = noisy(target, 0.04 * data_range)
    wanted = scikit_image_ssim(restored, target, data_range, border)
    metric = SSIM(crop_border=border, data_range=data_range)
    assert value_of(metric, tensor(restored), tensor(target)) == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize(("dtype", "data_range"), [(np.uint8, 255), (np.uint16, 65535)])
def test_y_is_that_of_scikit_image(dtype, data_range):
    target = photo(dtype)
    restored = noisy(target, 0.04 * data_range)
    # its Y is in 16 to 235, as a float
    y_target, y_restored = (rgb2ycbcr(i)[..., :1] * data_range / 255 for i in (target, restored))
    error = ((y_target - y_restored) ** 2).mean()
    psnr = value_of(PSNR("y", data_range=data_range), tensor(restored), tensor(target))
    assert psnr == pytest.approx(10 * np.log10(data_range**2 / error), abs=1e-9)
    ssim = value_of(SSIM("y", data_range=data_range), tensor(restored), tensor(target))
    assert ssim == pytest.approx(scikit_image_ssim(y_restored, y_target, data_range), abs=1e-9)


def test_black_and_white_are_219_steps_apart_in_y():
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert value_of(PSNR(), white, 0 * white) == 0
    y = value_of(PSNR("y"), white, 0 * white)
    assert y == pytest.approx(20 * math.log10(255 / 219), abs=1e-12)
    # the full range of Pillow, which is not what papers use, has 255 steps
    full = np.array(Image.fromarray(np.full((1, 1, 3), 255, np.uint8)).convert("YCbCr"))[..., 0]
    assert full == 255


def test_a_gray_image_is_compared_as_it_is():
    restored, target = pairs(1)
    gray = restored[:, :1], target[:, :1]
    for metric in METRICS:
        assert value_of(metric("y"), *gray) == value_of(metric("rgb"), *gray)
    as_rgb = [images.expand(-1, 3, -1, -1) for images in gray]
    gain = value_of(PSNR("y"), *as_rgb) - value_of(PSNR("y"), *gray)
    assert gain == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)


MATLAB_BICUBIC = {  # RGB, Y
    "astronaut": (25.34, 26.84),
    "chelsea": (30.05, 31.48),
    "coffee": (25.80, 27.29),
    "rocket": (27.49, 29.99),
}
"""PSNR of MATLAB's bicubic x4, 4 pixels left out, computed once by another program."""


@pytest.mark.parametrize("name", MATLAB_BICUBIC)
def test_bicubic_super_resolution_of_photographs_scores_what_it_should(name):
    target = tensor(getattr(skimage.data, name)())
    height, width = (4 * (side // 4) for side in target.shape[2:])
    target = target[..., :height, :width]

    def resize(images, scale, margin):
        images = np.pad(images.double(), [(0, 0)] * 2 + [(margin, margin)] * 2, "symmetric")
        images = torch.from_numpy(images)
        # antialias=True chooses the kernel of MATLAB, a = -0.5, when enlarging too
        images = F.interpolate(images, scale_factor=scale, mode="bicubic", antialias=True)
        out = int(margin * scale)
        return images[..., out:-out, out:-out].round().clamp(0, 255).byte()

    restored = resize(resize(target, 0.25, 16), 4, 4)
    scores = [value_of(PSNR(which, crop_border=4), restored, target) for which in ("rgb", "y")]
    assert scores == pytest.approx(MATLAB_BICUBIC[name], abs=0.0055)


def test_equal_images_are_infinitely_alike():
    _, target = pairs(2)
    target[1] //= 2
    restored = target.clone()
    restored[1] += 1
    psnr = PSNR()
    assert value_of(psnr, restored, target) == math.inf
    assert psnr.per_image.tolist() == [math.inf, pytest.approx(20 * math.log10(255))]
    assert value_of(SSIM(), target, target) == 1


def test_ssim_of_black_images_is_one():
    black = torch.zeros(1, 3, 11, 11, dtype=torch.uint8)
    assert value_of(SSIM(), black, black) == 1


# -- brightness ------------------------------------------------------------------------------------


def test_gt_mean_forgives_a_factor():
    target = pairs(1)[1] // 4 * 2  # even, and twice of it is white at most
    for metric in METRICS:
        forgiven = metric(gt_mean=True)
        assert value_of(forgiven, target // 2, target) == (math.inf if metric is PSNR else 1)
        assert value_of(metric(), target // 2, target) < (30 if metric is PSNR else 0.95)


def test_gt_mean_scales_each_image_by_its_luma_and_clips():
    restored, target = pairs(2)
    restored[0] //= 3
    restored[1, 0] = 250  # red: luma and the plain mean differ, and red is clipped
    restored[1, 1:] //= 4
    wanted = []
    for one, other in zip(restored.double().numpy(), target.double().numpy(), strict=True):
        luma = [np.tensordot(i.mean((1, 2)), [0.299, 0.587, 0.114], 1) for i in (one, other)]
        bright = np.minimum(one * luma[1] / luma[0], 255)
        wanted.append(10 * np.log10(255**2 / ((bright - other) ** 2).mean()))
    metric = PSNR(gt_mean=True)
    metric.update(restored, target)
    assert metric.per_image.tolist() == pytest.approx(wanted, abs=1e-9)


def test_gt_mean_leaves_a_black_image_black():
    _, target = pairs(1)
    black = torch.zeros_like(target)
    assert value_of(PSNR(gt_mean=True), black, target) == value_of(PSNR(), black, target)


# -- means -----------------------------------------------------------------------------------------


def test_the_mean_is_over_images_not_over_errors():
    restored, target = pairs()
    metric = PSNR()
    mean = value_of(metric, restored, target)
    each = [
        peak_signal_noise_ratio(t, r, data_range=255)
        for r, t in zip(restored.numpy(), target.numpy(), strict=True)
    ]
    assert metric.per_image.tolist() == pytest.approx(each, abs=1e-10)
    assert mean == pytest.approx(np.mean(each), abs=1e-10)
    pooled = peak_signal_noise_ratio(target.numpy(), restored.numpy(), data_range=255)
    assert mean > pooled + 1


@pytest.mark.parametrize("make", METRICS)
def test_batches_and_their_order_do_not_matter(make):
    restored, target = pairs()
    whole = value_of(make(), restored, target)
    parts = make()
    for start, end in ((3, 5), (2, 3), (0, 2)):
        parts.update(restored[start:end], target[start:end])
    assert parts.compute().item() == whole
    assert parts.compute().dtype == torch.float64


def test_images_of_different_sizes_count_the_same():
    metric = PSNR()
    for side, off in ((8, 1), (32, 16)):
        target = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        metric.update(target + off, target)
    wanted = 20 * (math.log10(255) + math.log10(255 / 16)) / 2
    assert metric.compute().item() == pytest.approx(wanted, abs=1e-12)


def test_a_batch_has_its_own_value_and_a_new_start_forgets():
    restored, target = pairs(2)
    metric = PSNR()
    first, second = (metric(restored[i : i + 1], target[i : i + 1]).item() for i in range(2))
    assert metric.per_image.tolist() == [first, second]
    metric.reset()
    assert metric.per_image.shape == (0,)
    assert value_of(metric, restored[1:], target[1:]) == second


def test_a_metric_can_be_copied_and_pickled_and_is_kept_in_float64():
    restored, target = pairs(1)
    metric = SSIM(channels="y", crop_border=1)
    metric.update(restored, target)
    for copy in (deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert copy.compute() == metric.compute()
        assert copy.protocol == metric.protocol
        assert copy.half().compute().dtype == torch.float64
    assert metric.state_dict() == {}


@pytest.mark.ddp
@pytest.mark.xdist_group("ddp")  # one server of processes
def test_two_ranks_have_the_value_of_one_also_where_one_has_no_images(tmp_path):
    restored, target = pairs()
    ranks = together(tmp_path, pairs_on_ranks.scores, restored, target)
    for make in METRICS:
        one = make()
        wanted = value_of(one, restored, target)
        for name, shares in (("uneven", (3, 2)), ("empty", (5, 0))):
            for rank, share in zip(ranks, shares, strict=True):
                mean, table, own = rank[f"{name}.{make.__name__}"]
                assert mean.item() == wanted
                assert torch.equal(table, one.per_image)
                assert own == share


# -- protocol --------------------------------------------------------------------------------------


def test_the_protocol_says_all_that_changes_the_score():
    assert PSNR(channels="y", crop_border=4).protocol == {
        "metric": "psnr",
        "channels": "y",
        "crop_border": 4,
        "data_range": 255,
        "gt_mean": False,
        "mean_over": "images",
    }
    assert SSIM(data_range=65535, gt_mean=True).protocol == {
        "metric": "ssim",
        "channels": "rgb",
        "crop_border": 0,
        "data_range": 65535,
        "gt_mean": True,
        "mean_over": "images",
        "window": "gaussian 11, sigma 1.5, inside the image",
    }


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, t: (r / 255, t), r"restored is torch.float32, .* whole numbers.*to_uint8"),
        (lambda r, t: (r, t / 255), r"target is torch.float32"),
        (lambda r, t: (r.long(), t), r"restored is torch.int64, but must be torch.uint8"),
        (lambda r, t: (r.to(torch.uint16), t), r"uint16, but data_range=255.*=65535\) takes"),
        (lambda r, t: (r[0], t[0]), r"as \(N, C, H, W\), got restored: \(3, 80, 100\)"),
        (lambda r, t: (r.numpy(), t), r"got restored: ndarray"),
        (lambda r, t: (r[:0], t[:0]), r"at least one image .* got restored: \(0, 3, 80, 100\)"),
        (lambda r, t: (r[:1], t), r"one shape, got restored \(1, 3.* target \(2, 3, 80, 100\)"),
        (lambda r, t: (r[..., 1:], t), r"one shape"),
    ],
)
def test_images_that_do_not_fit_are_refused(make, change, message):
    metric = make()
    with pytest.raises(ValueError, match=message):
        metric.update(*change(*pairs(2)))
    assert not len(metric.per_image)


def test_the_way_out_that_an_error_names_works():
    restored = torch.rand(1, 3, 16, 16) * 2 - 1
    target = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"imgsynth\.images\.to_uint8"):
        PSNR().update(restored, target)
    PSNR().update(to_uint8(restored), target)
    with pytest.raises(ValueError, match=r"PSNR\(data_range=65535\)"):
        PSNR().update(target.to(torch.uint16), target.to(torch.uint16))
    PSNR(data_range=65535).update(target.to(torch.uint16), target.to(torch.uint16))


def test_a_border_must_leave_something():
    restored, target = pairs(1)
    PSNR(crop_border=39).update(restored, target)  # 2 rows of 80
    with pytest.raises(ValueError, match=r"1 pixels each way inside crop_border=40, got .* 80 x 1"):
        PSNR(crop_border=40).update(restored, target)
    SSIM(crop_border=34).update(restored, target)  # 12 rows
    with pytest.raises(ValueError, match=r"11 pixels each way inside crop_border=35"):
        SSIM(crop_border=35).update(restored, target)
    with pytest.raises(ValueError, match=r"11 pixels .* crop_border=0, got images of 80 x 10"):
        SSIM().update(restored[..., :10], target[..., :10])


@pytest.mark.parametrize("make", METRICS)
def test_luma_needs_rgb_or_gray(make):
    restored, target = (images.repeat(1, 2, 1, 1)[:, :4] for images in pairs(1))
    make().update(restored, target)  # all channels, whatever they are
    with pytest.raises(ValueError, match=r"channels='y' is defined for RGB and gray .* 4 channels"):
        make("y").update(restored, target)
    with pytest.raises(ValueError, match=r"gt_mean is defined for RGB and gray"):
        make(gt_mean=True).update(restored, target)


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_images_have_no_score(make):
    with pytest.raises(ValueError, match=rf"{make.__name__} has seen no images; call update"):
        make().compute()


@pytest.mark.parametrize("make", METRICS)
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"channels must be 'rgb' or 'y', got 'Y'"):
        make(channels="Y")
    with pytest.raises(ValueError, match=r"crop_border must be at least 0, got -1"):
        make(crop_border=-1)
    with pytest.raises(ValueError, match=r"255 \(uint8\) or 65535 \(uint16\), got 1\.0"):
        make(data_range=1.0)
