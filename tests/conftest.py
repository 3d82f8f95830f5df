"""What tests of several parts share."""

import os

import pytest
import torch

from imgsynth.data import Digits

torch.set_num_threads(1)
# Also for processes that tests start; a developer's own account is not for tests.
os.environ["WANDB_MODE"] = "disabled"


@pytest.fixture(scope="session")
def digits():
    """Real handwritten digits, 8x8."""
    return Digits(batch_size=16)
