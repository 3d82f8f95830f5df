import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from ranks import together

from imgsynth.strategies import PlayerDDP, adopt, average_gradients

INFINITE = float("inf")


def broadcast():
    """Start from the first rank's values, also where tensors are not dense."""
    rank = torch.distributed.get_rank()
    module = torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    storage = torch.full((4, 2), float(rank))
    module.register_buffer("column", storage[:, 0])
    module.register_buffer("kernel", torch.full((1, 3), float(rank)).expand(2, 3))
    module.register_buffer("count", torch.tensor(rank))
    strategy = PlayerDDP()
    strategy._model = module
    strategy.configure_ddp()
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert module.kernel.stride(0) == 0
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    return {**state, "beside": storage[:, 1].clone()}


@pytest.mark.ddp
def test_all_ranks_start_from_the_first_ones_tensors_and_nothing_else_changes(tmp_path):
    first, second = together(tmp_path, broadcast)
    assert first.pop("beside").eq(0).all()
    assert second.pop("beside").eq(1).all()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert first["kernel"].eq(0).all()


def averaged(gradients):
    """Average the gradients that this rank has; None where there is none, before and after."""
    rank = torch.distributed.get_rank()
    parameters = []
    for gradient in (of_ranks[rank] for of_ranks in gradients):
        parameter = torch.zeros(1, 2, requires_grad=True)
        parameter.grad = None if gradient is None else torch.tensor([gradient])
        parameters.append(parameter)
    half = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    half.grad = torch.full((3,), 2.0 * rank, dtype=torch.bfloat16)
    rare = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    rare.grad = torch.ones(1, dtype=torch.float64) if rank == 0 else None
    empty = torch.zeros(0, requires_grad=True)
    average_gradients([*parameters, half, rare, empty, torch.ones(2)])  # the last one is frozen
    assert rare.grad.item() == 0.5
    return [p.grad for p in parameters], half.grad


@pytest.mark.ddp
def test_gradients_become_means_and_what_no_rank_has_stays_absent(tmp_path):
    gradients_and_means = [
        ([1.0, 2.0], [3.0, -2.0], [2.0, 0.0]),
        ([4.0, 1.0], None, [2.0, 0.5]),  # absent on the second rank: zeros there
        (None, [0.0, 6.0], [0.0, 3.0]),
        (None, None, None),
        (None, [-0.0, -0.0], [0.0, 0.0]),  # there is one, however empty it looks
        ([-0.0, 5.0], [-0.0, 5.0], [0.0, 5.0]),
        ([-1e-45, 8.0], None, [0.0, 4.0]),  # its half is -0.0
        ([1.0, 1.0], [-1.0, INFINITE], [0.0, INFINITE]),  # one rank's overflow is everybody's
    ]
    for got, half in together(tmp_path, averaged, [row[:2] for row in gradients_and_means]):
        means = [None if g is None else g[0].tolist() for g in got]
        assert means == [mean for *_, mean in gradients_and_means]
        assert half.dtype == torch.bfloat16
        assert half.tolist() == [1.0] * 3


def test_a_plain_ddp_becomes_ours_for_two_players_only():
    plain, automatic = DDPStrategy(), DDPStrategy()
    adopt(plain, "GAN", automatic=False)
    adopt(automatic, "VAE", automatic=True)
    assert type(plain) is PlayerDDP
    assert type(automatic) is DDPStrategy


@pytest.mark.parametrize(
    "strategy", [SingleDeviceStrategy(), PlayerDDP(), DDPStrategy(find_unused_parameters=True)]
)
def test_other_strategies_that_serve_stay_as_they_are(strategy):
    before = type(strategy)
    adopt(strategy, "GAN", automatic=False)
    assert type(strategy) is before


def test_a_strategy_of_ours_becomes_plain_for_an_automatic_method():
    strategy = PlayerDDP()
    adopt(strategy, "VAE", automatic=True)
    assert type(strategy) is DDPStrategy


@pytest.mark.parametrize(
    "options", [{"static_graph": True}, {"ddp_comm_hook": print}, {"model_averaging_period": 2}]
)
def test_what_only_the_wrapper_can_do_is_refused(options):
    with pytest.raises(ValueError, match=r"players of GAN step in turn.*find_unused_parameters"):
        adopt(DDPStrategy(**options), "GAN", automatic=False)


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy])
@pytest.mark.parametrize("automatic", [False, True])
def test_sharding_is_refused_with_the_reason(strategy, automatic):
    sharding = strategy.__new__(strategy)  # without what its constructor asks of the machine
    with pytest.raises(ValueError, match=rf"{strategy.__name__} cannot train GAN: it .*ddp"):
        adopt(sharding, "GAN", automatic=automatic)
