"""Each resize against the pixels of the tool it stands for."""

import cleanfid.resize
import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid.inception import InceptionV3
from sklearn.datasets import load_digits, load_sample_image
from torch import nn
from torch.nn import functional as F
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as torch_fidelity_resize,
)

from imgsynth.metrics.resize import (
    RESIZES,
    check_resize,
    pil_bicubic,
    pil_bilinear,
    tf1_bilinear,
    torch_antialias,
    torch_bilinear,
)

SIZES = {"small": 32, "odd": 75, "near": 301, "large": 384}


def _photographs(size):
    pictures = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    cut = np.stack([picture[20 : 20 + size, 100 : 100 + size] for picture in pictures])
    return torch.from_numpy(cut).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(params=SIZES)
def photographs(request):
    return _photographs(SIZES[request.param])


def _digits():
    images = torch.from_numpy(load_digits().images[:3] * 15.9375).round().to(torch.uint8)
    return images[:, None].expand(-1, 3, -1, -1)


def _clean_fid(images, mode):
    resizer = cleanfid.resize.build_resizer(mode)
    resized = [resizer(image.permute(1, 2, 0).numpy()) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def _stylegan2_ada(images):
    """Its published definition: a sampling grid moved by the difference of two half pixels."""
    num, channels, height, width = images.shape
    theta = torch.tensor([[1.0, 0, 1 / width - 1 / 299], [0, 1.0, 1 / height - 1 / 299]])
    grid = F.affine_grid(theta.expand(num, 2, 3), [num, channels, 299, 299], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def _pillow(image, method):
    """StudioGAN's definition of "friendly": each channel as a float image of Pillow."""
    channels = [Image.fromarray(channel.numpy().astype(np.float32)) for channel in image]
    return torch.from_numpy(np.stack([c.resize((299, 299), method) for c in channels]))


def test_tf1_bilinear_is_torch_fidelitys_bit_by_bit(photographs):
    for images in (photographs, photographs[:, :, :-7], _digits()):
        expected = torch_fidelity_resize(images.float(), (299, 299), align_corners=False)
        assert torch.equal(tf1_bilinear(images, 299), expected)


def test_tf1_bilinear_is_stylegan2_adas_up_to_the_rounding_of_its_grid(photographs):
    for images in (photographs, photographs[:, :, :, :-7], _digits()):
        expected = _stylegan2_ada(images)
        torch.testing.assert_close(tf1_bilinear(images, 299), expected, rtol=0, atol=0.02)


def test_tf1_bilinear_has_no_half_pixels():
    images = torch.tensor([[[[0, 100], [0, 100]]]], dtype=torch.uint8)
    assert tf1_bilinear(images, 4)[0, 0, 0].tolist() == [0, 50, 100, 100]
    assert torch_bilinear(images, 4)[0, 0, 0].tolist() == [0, 25, 75, 100]


def test_torch_bilinear_is_pytorch_fids(photographs):
    network = InceptionV3.__new__(InceptionV3)  # its forward pass without its weights
    nn.Module.__init__(network)
    network.resize_input, network.normalize_input = True, True
    network.blocks, network.output_blocks = nn.ModuleList([nn.Identity()]), [0]
    network.last_needed_block = 0
    for images in (photographs, _digits()):
        (expected,) = network(images.float() / 255)
        ours = torch_bilinear(images, 299) / 127.5 - 1
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_torch_bilinear_is_clean_fids_legacy_and_so_studiogans(photographs):
    expected = _clean_fid(photographs, "legacy_pytorch")
    torch.testing.assert_close(torch_bilinear(photographs, 299), expected, rtol=0, atol=1e-4)


def test_torch_antialias_is_pillows_bilinear_filter(photographs):
    for images in (photographs, _digits()):
        expected = torch.stack([_pillow(i, Image.Resampling.BILINEAR) for i in images])
        torch.testing.assert_close(torch_antialias(images, 299), expected, rtol=0, atol=0.01)


def test_smoothing_changes_nothing_where_images_grow():
    images = _photographs(32)
    torch.testing.assert_close(
        torch_antialias(images, 299), torch_bilinear(images, 299), rtol=0, atol=0.001
    )


def test_pil_bicubic_is_clean_fids_bit_by_bit(photographs):
    for images in (photographs, photographs[:, :, :-7], _digits()):
        assert torch.equal(pil_bicubic(images, 299), _clean_fid(images, "clean"))


def test_pil_bicubic_neither_rounds_nor_leaves_the_range():
    edges = torch.tensor([[0, 255, 0, 255]], dtype=torch.uint8).expand(1, 3, 4, 4)
    resized = pil_bicubic(edges, 299)
    assert resized.min() == 0
    assert resized.max() == 255
    assert (resized != resized.round()).any()


def test_pil_bilinear_is_studiogans_friendly(photographs):
    expected = torch.stack([_pillow(i, Image.Resampling.BILINEAR) for i in photographs])
    assert torch.equal(pil_bilinear(photographs, 299), expected)


@pytest.mark.parametrize("name", RESIZES)
def test_images_of_the_right_size_stay_as_they_are(name):
    images = _photographs(64)
    assert torch.equal(RESIZES[name](images, 64), images.float())


@pytest.mark.parametrize("name", RESIZES)
def test_an_images_pixels_do_not_depend_on_its_neighbours(name):
    images = _photographs(48)
    alone = torch.cat([RESIZES[name](image[None], 75) for image in images])
    assert torch.equal(RESIZES[name](images, 75), alone)
    assert alone.dtype == torch.float32
    assert alone.shape == (2, 3, 75, 75)


@pytest.mark.parametrize("name", RESIZES)
def test_images_are_left_alone(name):
    images = _photographs(32)
    before = images.clone()
    RESIZES[name](images, 32).sub_(1)
    RESIZES[name](images, 40).sub_(1)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", RESIZES)
def test_gray_images_may_be_repeated_without_being_copied(name):
    gray = _photographs(32)[:, :1]
    assert torch.equal(
        RESIZES[name](gray.expand(-1, 3, -1, -1), 50), RESIZES[name](gray.repeat(1, 3, 1, 1), 50)
    )


def test_resizes_that_stand_for_different_scores_differ_where_images_shrink():
    images = _photographs(384)
    different = (tf1_bilinear, torch_bilinear, torch_antialias, pil_bicubic)
    resized = [resize(images, 299) for resize in different]
    for i, one in enumerate(resized):
        for other in resized[:i]:
            assert (one - other).abs().mean() > 0.3


def test_an_unknown_resize_is_refused_by_name():
    with pytest.raises(ValueError, match="no resize 'bicubic'; choose one of tf1-bilinear, torch"):
        check_resize("bicubic")
