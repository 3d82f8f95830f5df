from types import SimpleNamespace

import pytest

from imgsynth.callbacks.cadence import Cadence


def due_at(cadence: Cadence, start: int, end: int, step: int, total: int | None) -> list[int]:
    method = SimpleNamespace(images_seen=start, total_images=total)
    cadence.start(method)
    found = []
    for images in range(start + step, end + 1, step):
        method.images_seen = images
        if cadence.due(method):
            found.append(images)
    return found


@pytest.mark.parametrize(("every", "step"), [(10, 4), (10, 10), (3, 7), ("1k", 64), (7, 1)])
def test_is_due_at_the_first_boundary_at_or_beyond_each_multiple(every, step):
    number = 1000 if every == "1k" else every
    expected = sorted({-(-multiple // step) * step for multiple in range(number, 5001, number)})
    assert due_at(Cadence(every, 1), 0, 5000 // step * step, step, None) == [
        images for images in expected if images <= 5000 // step * step
    ]


def test_a_resumed_run_is_due_where_the_whole_one_was():
    whole = due_at(Cadence(10, 1), 0, 400, 4, None)
    for point in range(0, 400, 4):
        rest = due_at(Cadence(10, 1), point, 400, 4, None)
        assert rest == [images for images in whole if images > point]


def test_without_a_number_it_divides_the_length():
    assert due_at(Cadence(None, 4), 0, 100, 1, 100) == [25, 50, 75, 100]
    assert len(due_at(Cadence(None, 20), 0, 1999, 1, 1999)) == 19  # each 100
    assert due_at(Cadence(None, 20), 0, 8, 4, 8) == [4, 8]


def test_without_number_and_length_it_takes_100k():
    assert due_at(Cadence(None, 20), 0, 250_000, 50_000, None) == [100_000, 200_000]


def test_zero_is_refused():
    with pytest.raises(ValueError, match="every must be at least 1 image"):
        Cadence(0, 1)
