import io

import pytest
import torch

from imgsynth.methods.meter import Meter


def _term(value, dtype=torch.float32):
    return torch.tensor(value, dtype=dtype)


def test_means_equal_those_computed_by_hand():
    meter = Meter()
    for real, fake in [(1.0, 10.0), (2.0, 20.0), (6.0, 0.0)]:
        meter.add("train/discriminator", {"real": _term(real), "fake": _term(fake)})
    meter.add("train/generator", {"adversarial": _term(-4.0)})
    assert meter.means() == {
        "train/discriminator/real": 3.0,
        "train/discriminator/fake": 10.0,
        "train/generator/adversarial": -4.0,
    }


def test_a_lazy_term_is_averaged_over_its_occurrences_and_the_others_over_all():
    meter = Meter()
    for step in range(8):
        losses = {"real": _term(float(step))}
        if step % 4 == 0:
            losses["penalty"] = _term(100.0 + step)
        meter.add("train/discriminator", losses)
    means = meter.means()
    assert means["train/discriminator/real"] == sum(range(8)) / 8
    assert means["train/discriminator/penalty"] == (100 + 104) / 2


def test_the_order_of_a_steps_terms_does_not_matter():
    meter = Meter()
    meter.add("train", {"a": _term(1.0), "b": _term(10.0)})
    meter.add("train", {"b": _term(30.0), "a": _term(5.0)})
    assert meter.means() == {"train/a": 3.0, "train/b": 20.0}


def test_parts_of_an_accumulated_batch_count_by_their_share():
    meter = Meter()
    meter.add("train", {"a": _term(1.0)}, 0.5)
    meter.add("train", {"a": _term(3.0)}, 0.5)  # one batch with the mean 2
    meter.add("train", {"a": _term(8.0)})  # another batch
    assert meter.means() == {"train/a": (2.0 + 8.0) / 2}


def test_reset_starts_a_new_window():
    meter = Meter()
    meter.add("train", {"a": _term(1.0), "gone": _term(1.0)})
    meter.reset()
    assert meter.means() == {}
    meter.add("train", {"a": _term(7.0)})
    assert meter.means() == {"train/a": 7.0}


def test_an_empty_meter_has_no_means_and_an_empty_state():
    meter = Meter()
    names, totals = meter.totals()
    assert (names, totals.shape, meter.means(), meter.state_dict()) == ([], (0, 2), {}, [])


def test_the_same_term_of_two_players_stays_apart():
    meter = Meter()
    meter.add("train/generator", {"r": _term(1.0)})
    meter.add("train/discriminator", {"r": _term(2.0)})
    assert meter.means() == {"train/generator/r": 1.0, "train/discriminator/r": 2.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_terms_of_any_precision_are_summed_in_float32(dtype):
    meter = Meter()
    for _ in range(4096):  # a sum in half precision would stop growing at 2048 (at 256 in bf16)
        meter.add("train", {"a": _term(1.0, dtype), "b": _term(0.5)}, 0.5)
    assert meter.means() == {"train/a": 1.0, "train/b": 0.5}
    assert meter.totals()[1].tolist() == [[2048.0, 2048.0], [1024.0, 2048.0]]


def test_adding_neither_keeps_the_graph_nor_changes_the_term():
    meter = Meter()
    leaf = torch.tensor(2.0, requires_grad=True)
    loss = leaf * 3
    meter.add("train", {"a": loss})
    meter.add("train", {"a": loss})
    assert not meter.totals()[1].requires_grad
    assert loss.item() == 6.0
    loss.backward()
    assert leaf.grad.item() == 3.0


def test_a_term_that_is_changed_in_place_afterwards_was_counted_as_it_was():
    meter = Meter()
    value = _term(1.0)
    meter.add("train", {"a": value})
    value.add_(100.0)
    assert meter.means() == {"train/a": 1.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_value_shows_in_its_term_and_in_no_other(bad):
    meter = Meter()
    for value in (1.0, bad, 1.0):
        meter.add("train", {"a": _term(value), "b": _term(1.0)})
    means = meter.means()
    assert means["train/b"] == 1.0
    assert not torch.tensor(means["train/a"]).isfinite()


def test_an_open_window_survives_a_file_without_pickle_to_the_bit():
    torch.manual_seed(0)
    whole, first = Meter(), Meter()
    terms = [{"a": torch.randn(()), "b": torch.randn(())} for _ in range(6)]
    lazy = {**terms[2], "penalty": torch.randn(())}
    for losses in [*terms[:3], lazy]:
        whole.add("train/discriminator", losses, 1 / 3)
        first.add("train/discriminator", losses, 1 / 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Meter()
    second.add("train", {"forgotten": _term(1.0)})
    second.load_state_dict(torch.load(file, weights_only=True), torch.device("cpu"))
    for losses in terms[3:]:
        whole.add("train/discriminator", losses, 1 / 3)
        second.add("train/discriminator", losses, 1 / 3)
    assert second.means() == whole.means()
    assert len(whole.means()) == 3


def test_a_loaded_state_is_not_changed_by_going_on():
    meter = Meter()
    meter.add("train", {"a": _term(1.0)})
    state = meter.state_dict()
    other = Meter()
    other.load_state_dict(state, torch.device("cpu"))
    other.add("train", {"a": _term(5.0)})
    meter.add("train", {"a": _term(9.0)})
    assert state[0]["sums"].tolist() == [1.0]
    assert other.means() == {"train/a": 3.0}
    assert meter.means() == {"train/a": 5.0}
