import pytest
import torch
from ranks import together

from imgsynth.ranks import mean_over_ranks, summed_over_ranks

pytestmark = [pytest.mark.ddp, pytest.mark.xdist_group("ddp")]  # one server of processes


def figures():
    own = torch.tensor([1.0, 2.0 + torch.distributed.get_rank()]).requires_grad_()
    return {
        "sum": summed_over_ranks(own),
        "mean": mean_over_ranks(own),
        "own": own.detach(),
    }


def test_sums_and_means_are_over_all_processes_and_leave_their_own_alone(tmp_path):
    for rank, found in enumerate(together(tmp_path, figures)):
        assert found["sum"].tolist() == [2, 5]
        assert found["mean"].tolist() == [1, 2.5]
        assert found["own"].tolist() == [1, 2 + rank]
        assert not found["sum"].requires_grad


def test_without_other_processes_they_are_the_tensor_itself():
    own = torch.ones(2)
    assert torch.equal(summed_over_ranks(own), own)
    assert torch.equal(mean_over_ranks(own), own)
