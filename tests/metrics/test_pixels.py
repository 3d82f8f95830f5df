import pytest
import torch

from imgsynth.metrics.pixels import PixelExtractor


def test_small_images_are_their_pixels():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    features, logits = PixelExtractor()(images)
    assert torch.equal(features, images.flatten(1) / 255)
    assert logits is None


def test_large_images_are_averaged_down_in_their_proportions():
    images = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    images[..., :2, :2] = 255
    features, _ = PixelExtractor(size=4)(images)
    assert features.view(2, 4).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


def test_the_identity_does_not_depend_on_what_was_seen():
    extractor = PixelExtractor()
    before = extractor.identity()
    extractor(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    assert extractor.identity() == before != PixelExtractor(size=8).identity()


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size must be at least 1"):
        PixelExtractor(size=0)
