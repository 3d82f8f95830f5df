"""Precision, recall, density and coverage against their authors' and torch-fidelity's."""

import pytest
import torch
from feature_metrics import FAKE, REAL, features
from prdc import compute_prdc
from sklearn.neighbors import NearestNeighbors
from torch_fidelity.metric_prc import prc_features_to_metric

from imgsynth.metrics import neighbours
from imgsynth.metrics.neighbours import density_coverage, precision_recall, radii


@pytest.fixture(params=[2048, 64], autouse=True)
def _tiles(request, monkeypatch):
    """Everything in one tile, and in many with a rest."""
    monkeypatch.setattr(neighbours, "_TILE", request.param)


@pytest.fixture(scope="module")
def sets():
    return features(300, 1, 20), features(230, 3, 20)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_four_are_those_of_prdc(sets, k, capsys):
    real, fake = sets
    theirs = compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=k)
    assert precision_recall(real, fake, k) == (theirs["precision"], theirs["recall"])
    assert density_coverage(real, fake, k) == pytest.approx(
        (theirs["density"], theirs["coverage"]), rel=1e-14
    )
    assert all(0.1 < theirs[name] < 0.99 for name in ("precision", "recall", "coverage"))


def test_precision_and_recall_are_those_of_torch_fidelity(sets):
    real, fake = (rows.double() for rows in sets)
    theirs = prc_features_to_metric(fake, real, verbose=False)
    assert precision_recall(real, fake) == pytest.approx(
        (theirs["precision"], theirs["recall"]),
        abs=1e-7,  # theirs are means in float32
    )


def test_radii_are_the_distances_to_the_kth_neighbour(sets):
    real, fake = sets
    rows = real.double().numpy()
    for k in (1, 4):
        distances, _ = NearestNeighbors(n_neighbors=k + 1).fit(rows).kneighbors(rows)
        torch.testing.assert_close(radii(real, k), torch.from_numpy(distances[:, -1]))
    assert precision_recall(real, fake, 3, radii(real, 3)) == precision_recall(real, fake, 3)
    assert density_coverage(real, fake, 4, radii(real, 4)) == density_coverage(real, fake, 4)


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_copies_lie_on_the_edge_of_their_neighbours_balls_and_count(far):
    """Each image is in its own ball, and on the edge of those whose k-th neighbour it is."""
    real = (features(200, 1, 20) + far).double()
    copies = real[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert precision_recall(real, copies) == (1.0, 1.0)
    distances = torch.linalg.vector_norm(real[:, None] - real, dim=2)
    inside = distances <= distances.kthvalue(6, 1).values[:, None] + 1e-9
    assert inside.sum() == 6 * 200  # itself and five others, in every ball
    assert density_coverage(real, copies) == (6 / 5, 1.0)


def test_sets_of_one_image_each_cover_each_other_only_where_they_meet():
    real, fake = torch.zeros(10, 3), torch.ones(10, 3)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, fake) == (0.0, 0.0)
    assert density_coverage(real, fake) == (0.0, 0.0)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match=r"number 3 needs .* more than k images, got 3 images"):
        precision_recall(REAL, FAKE[:3])
    with pytest.raises(ValueError, match=r"number 5 needs .* got 5 images"):
        density_coverage(REAL[:5], FAKE)
    with pytest.raises(ValueError, match="at least 1 fake image, got none"):
        density_coverage(REAL, FAKE[:0])
    with pytest.raises(ValueError, match="k of at least 1"):
        radii(REAL, 0)
    with pytest.raises(ValueError, match=r"shape \(120,\), got \(101,\); it is radii\(real, k=3\)"):
        precision_recall(REAL, FAKE, real_radii=radii(FAKE, 3))
