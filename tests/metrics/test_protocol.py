import pytest

from imgsynth.metrics.protocol import Protocol, name_of

GIVEN = {
    "extractor": {"name": "inception-2015", "weights": "6726825d", "resize": "tf1-bilinear"},
    "real": {"split": "train", "fingerprint": "ab", "num": 50_000, "resolution": [32, 32]},
    "num_generated": 50_000,
}


def make(**changes) -> Protocol:
    return Protocol("fid", **{**GIVEN, **changes})


def test_the_hash_does_not_depend_on_the_order_of_entries():
    turned = {name: dict(reversed(GIVEN[name].items())) for name in ("extractor", "real")}
    assert make(**turned).hash == make().hash
    assert len(make().hash) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"extractor": {**GIVEN["extractor"], "resize": "pil-bicubic"}},
        {"extractor": {**GIVEN["extractor"], "weights": "6726825e"}},
        {"real": {**GIVEN["real"], "split": "test"}},
        {"real": {**GIVEN["real"], "fingerprint": "ac"}},
        {"real": {**GIVEN["real"], "resolution": [64, 64]}},
        {"num_generated": 10_000},
        {"labels": "those of the real images"},
        {"weights": "live"},
        {"quantisation": "none"},
        {"truncation": 0.7},
        {"parameters": {"neighbours": 5}},
    ],
    ids=str,
)
def test_whatever_changes_a_score_changes_the_hash_and_is_named(changes):
    other = make(**changes)
    assert other.hash != make().hash
    (said,) = make().differences(other)
    assert said.startswith(next(iter(changes)))


def test_another_score_is_another_protocol():
    assert Protocol("kid", **GIVEN).hash != make().hash


def test_equal_protocols_do_not_differ():
    assert make().differences(make()) == []


@pytest.mark.parametrize(
    ("num", "name"), [(50_000, "fid"), (2_000, "fid2k"), (2_500, "fid2500"), (100, "fid100"),
                      (100_000, "fid100k")]
)  # fmt: skip
def test_a_score_of_another_number_of_images_has_another_name(num, name):
    assert name_of("fid", num, 50_000) == name
