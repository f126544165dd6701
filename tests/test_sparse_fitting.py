"""A hypothesis fitted through inducing images against the same one fitted exactly."""

import math
from dataclasses import replace

import pytest
import torch

from pyro_invariance import sparse_fitting, zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.sparse_fitting import Search, SparseFit, fit_sparse
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

N = 150
subset = Dataset.subset


@pytest.fixture(scope="module")
def data(float64: None) -> Dataset:
    return zoo.load("orbit_gp").data("SO2", 0, size=N, test=100, side=10)


def rotation(data: Dataset) -> Hypothesis:
    return next(h for h in zoo.load("orbit_gp").hypotheses(data) if h.name == "SO2")


@pytest.fixture(scope="module")
def exact(data: Dataset) -> Fit:
    return fit(rotation(data), data)


@pytest.fixture(scope="module")
def through(data: Dataset) -> dict[int, SparseFit]:
    return {size: fit_sparse(rotation(data), data, size) for size in (10, 40, N)}


def test_bound_is_below_the_upper_side_and_rises_with_the_inducing_images(exact, through):
    found = [through[size].evidence for size in (10, 40, N)]
    assert all(e.bound == "lower" for e in found)
    assert all(e.value < exact.upper + 3 * e.std_error for e in found)
    assert found[0].value < found[1].value < found[2].value


def test_all_images_make_it_nearly_exact(exact, through):
    whole = through[N]
    assert whole.inducing == N
    error = 3 * math.hypot(whole.evidence.std_error, exact.evidence.std_error)
    assert whole.evidence.value < exact.evidence.value + (exact.evidence.looseness or 0.0) + error
    assert whole.evidence.value > exact.evidence.value - 2 - error
    assert torch.corrcoef(torch.stack([whole.test_mean[:, 0], exact.test_mean[:, 0]]))[0, 1] > 0.99


def test_predictions_know_how_wrong_they_are(data, through):
    truth = data.encode(data.y_test)[:, 0]
    for found in through.values():
        assert found.test_mean.shape == (100, 1)
        z = (found.test_mean[:, 0] - truth) / found.test_variance.sqrt()
        assert 0.6 < float(z.square().mean().sqrt()) < 1.6
    errors = [float((f.test_mean[:, 0] - truth).square().mean()) for f in through.values()]
    assert errors[0] > errors[1] > errors[2]


def test_the_seed_decides(data, through):
    again, other = (fit_sparse(rotation(data), data, 10, seed) for seed in (0, 1))
    assert again.evidence == through[10].evidence
    assert other.evidence != through[10].evidence


def test_bound_rises_while_it_is_searched(through):
    path = through[40].path
    assert len(path) > 1
    assert path[-1] > path[0]
    assert 0 <= through[40].evidence.drift < 1.0


def test_hyperparameters_that_stay_are_caught(data, through, monkeypatch):
    monkeypatch.setattr(Search, "top", lambda self, z, width: (z, torch.ones(1)))  # where a few images put them
    few = replace(data, x=data.x[:20], y=data.y[:20])
    monkeypatch.setattr(
        Dataset, "subset", lambda self, n, seed: few if n == sparse_fitting.FEW else subset(self, n, seed)
    )
    assert fit_sparse(rotation(data), data, 10).evidence.value < through[10].evidence.value - 1


def test_large_data_are_searched_in_part_first(data, through, monkeypatch):
    monkeypatch.setattr(sparse_fitting, "SOME", 70)
    found = fit_sparse(rotation(data), data, 40)
    assert len(found.path) <= len(through[40].path)
    assert found.evidence.value == pytest.approx(through[40].evidence.value, abs=1.0)


def test_bad_input_is_named(data):
    null = next(h for h in zoo.load("orbit_gp").hypotheses(data) if h.kind == "null")
    summed = next(h for h in zoo.load("orbit_gp").hypotheses(data) if h.name == "composition")
    for other in (null, summed):
        with pytest.raises(BadInput, match=f"'{other.label}' is no single Gaussian process"):
            fit_sparse(other, data, 10)
    for size in (1, 0, -3):
        with pytest.raises(BadInput, match=f"size: got {size}; two inducing images or more"):
            fit_sparse(rotation(data), data, size)


def test_features_of_sampled_views_are_carried_as_they_are_ranked(float64):
    data = zoo.load("augmentation_gp").data("mirror", 0, size=120, test=60)
    mirror = next(h for h in zoo.load("augmentation_gp").hypotheses(data) if h.name == "mirror")
    ranked, carried = fit(mirror, data), fit_sparse(mirror, data, len(data.y))
    error = 3 * math.hypot(ranked.evidence.std_error, carried.evidence.std_error)
    assert carried.evidence.value == pytest.approx(ranked.evidence.value, abs=1.5 + error)
    assert torch.corrcoef(torch.stack([carried.test_mean[:, 0], ranked.test_mean[:, 0]]))[0, 1] > 0.99


def test_no_test_images_are_no_matter(data, through):
    bare = replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])
    found = fit_sparse(rotation(bare), bare, 10)
    assert found.evidence == through[10].evidence
    assert found.test_mean.shape == (0, 1)
