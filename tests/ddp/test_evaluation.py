"""Scores by several processes are those of one, whatever each of them has to do."""

import pytest
from ranks import together
from scoring import METRICS, scores

pytestmark = [pytest.mark.ddp, pytest.mark.xdist_group("ddp")]  # one server of processes


@pytest.mark.parametrize(
    ("num", "metrics"),
    [
        (1_100, METRICS),  # 18 chunks, the last one of 12 images
        (130, ["fd", "cls_score", "coverage"]),  # 3 chunks: one rank has one more
        (40, ["fd", "recall", "swd"]),  # one chunk: one rank has no images
    ],
)
def test_two_processes_score_exactly_what_one_does(tmp_path, num, metrics):
    alone = scores(str(tmp_path / "alone"), num, metrics)
    one, other = together(tmp_path, scores, str(tmp_path / "both"), num, metrics)
    assert one == other
    assert one == alone
