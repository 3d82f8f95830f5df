"""What tests of several parts share."""

import os

import pytest
import torch

from imgsynth.data import Digits

torch.set_num_threads(1)
# Also for processes that tests start; a developer's own account is not for tests.
os.environ["WANDB_MODE"] = "disabled"


@pytest.fixture(scope="session", autouse=True)
def _cache_of_tests(tmp_path_factory):
    """Keep decoded images away from the developer's own."""
    os.environ["IMGSYNTH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def digits():
    """Real handwritten digits, 8x8."""
    return Digits(batch_size=16)
