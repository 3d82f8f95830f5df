"""Scores of images that ranks share are those of one process that has them all."""

import pytest
from feature_metrics import METRICS, SPLITS, flat, on_ranks, whole
from ranks import together

pytestmark = [pytest.mark.ddp, pytest.mark.xdist_group("ddp")]  # one server of processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of three ranks computed, by metric and split."""
    return together(tmp_path_factory.mktemp("ranks"), on_ranks, ranks=3)


@pytest.fixture(scope="module")
def alone():
    """What one process computes."""
    return {name: flat(whole(make()).compute()) for name, make in METRICS.items()}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", METRICS)
def test_any_split_over_ranks_gives_the_score_of_one_process(ranks, alone, name, split):
    for rank in ranks:
        assert rank[name][split] == pytest.approx(alone[name], rel=1e-12, abs=0)
        assert rank[name][split] == ranks[0][name][split]  # to the last digit


@pytest.mark.parametrize("name", ["KernelDistance", "InceptionScore"])
def test_draws_do_not_depend_on_how_ranks_share_the_images(ranks, alone, name):
    assert all(ranks[0][name][split] == alone[name] for split in SPLITS)


@pytest.mark.parametrize("name", METRICS)
def test_an_error_on_all_ranks_leaves_each_its_own_images(ranks, alone, name):
    for rank in ranks:
        assert "No fake images were seen" in rank[name]["again"]["said"]
        for score in rank[name]["again"]["scores"]:
            assert score == pytest.approx(alone[name], rel=1e-12, abs=0)
