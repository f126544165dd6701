"""Classes under a softmax, by minibatch SVI: what they say against class codes, noise and values."""

import math
from dataclasses import replace

import pytest
import torch

from pyro_invariance import sparse_classes, zoo
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.sparse_classes import fit_classes
from pyro_invariance.sparse_fitting import SparseFit, fit_sparse
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

SIZE, STEPS = 30, 80


@pytest.fixture(scope="module")
def data(float64: None) -> Dataset:
    values = zoo.load("orbit_gp").data("SO2", 0, size=200, test=150, side=10)
    y, y_test = ((v > values.y.median()).long().numpy() for v in (values.y, values.y_test))
    x, x_test = (v[:, 0].numpy() for v in (values.x, values.x_test))
    return from_arrays("halves", x, y, x_test, y_test)


def turns(data: Dataset) -> Hypothesis:
    return next(h for h in zoo.load("orbit_gp").hypotheses(data) if h.name == "SO2")


@pytest.fixture(scope="module")
def fitted(data: Dataset) -> SparseFit:
    return fit_classes(turns(data), data, SIZE, steps=STEPS)


def log_probability(fit: SparseFit, data: Dataset) -> float:
    return float(fit.test_log_density.log_softmax(1).gather(1, data.y_test[:, None]).mean())


def test_bound_is_of_labels_and_better_than_guessing(fitted, data):
    assert fitted.evidence.bound == "lower"
    assert -len(data.y) * math.log(2) + 20 < fitted.evidence.value < 0
    assert fitted.count == 200
    assert set(fitted.sites) == {"lengthscale", "variance"}


def test_probabilities_are_normalised_and_no_worse_than_those_of_codes(fitted, data):
    torch.testing.assert_close(fitted.test_log_density.exp().sum(1), torch.ones(150, dtype=torch.float64))
    codes = fit_sparse(turns(data), data, SIZE)
    assert log_probability(fitted, data) > log_probability(codes, data) - 0.02
    assert log_probability(fitted, data) > -0.8 * math.log(2)


def test_bound_rises(fitted):
    path = torch.tensor(fitted.path)
    assert len(path) == STEPS
    assert float(path[-20:].mean()) > float(path[:3].mean()) + 0.05


def test_labels_that_mean_nothing_are_worth_a_guess(data):
    shuffled = replace(data, y=data.y[torch.randperm(len(data.y), generator=torch.Generator().manual_seed(0))])
    found = fit_classes(turns(data), shuffled, SIZE, steps=STEPS)
    assert found.evidence.value / len(data.y) < -0.95 * math.log(2)


def test_a_guide_that_does_not_follow_is_caught(data, fitted, monkeypatch):
    monkeypatch.setattr(sparse_classes.SparseProcess, "follow", lambda self, rate: None)
    assert fit_classes(turns(data), data, SIZE, steps=STEPS).evidence.value < fitted.evidence.value - 10


def test_ten_classes_in_one_batch():
    digits = zoo.load_data("digits", 0).subset(300, 0)
    trivial = next(h for h in zoo.load("orbit_gp").hypotheses(digits) if h.label == "trivial-polar")
    found = fit_classes(trivial, digits, 60, steps=STEPS)
    assert found.evidence.value / 300 > -0.6 * math.log(10)
    assert float((found.test_log_density.argmax(1) == digits.y_test).double().mean()) > 0.85


def test_bad_input_is_named(data):
    values = zoo.load("orbit_gp").data("SO2", 0, size=50, test=10, side=10)
    with pytest.raises(BadInput, match="has values, not classes"):
        fit_classes(turns(values), values, SIZE)
    with pytest.raises(BadInput, match="size: got 1"):
        fit_classes(turns(data), data, 1)


def test_no_test_images_are_no_matter(data, fitted):
    bare = replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])
    found = fit_classes(turns(bare), bare, SIZE, steps=STEPS)
    assert found.evidence == fitted.evidence
    assert found.test_log_density.shape == (0, 2)
