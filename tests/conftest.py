"""What tests of several parts share."""

import pytest
import torch

from imgsynth.data import Digits

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """Real handwritten digits, 8x8."""
    return Digits(batch_size=16)
