"""Other priors by reweighting: as good as fitting again."""

import math
from dataclasses import replace

import pytest

from pyro_invariance import sensitivity, zoo
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.sensitivity import prior_sensitivity

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def reweighted(run, label: str, factor: float) -> float:
    """Evidence of a hypothesis under scaled priors, by reweighting."""
    entry, data = zoo.load("orbit_gp"), run.data
    scaled = next(h for h in entry.hypotheses(data, scale=factor) if h.label == label)
    plain = next(h for h in run.hypotheses if h.label == label)
    old = next(f for f in run.fits if f.label == label)
    return sensitivity._reweighted(old, plain, scaled, data.subset(20, 0)).evidence.value


def again(run, label: str, factor: float) -> Fit:
    """The same, fitted anew."""
    scaled = next(h for h in zoo.load("orbit_gp").hypotheses(run.data, scale=factor) if h.label == label)
    return fit(scaled, run.data, seed=0)


def agree(found: float, expected: Fit) -> bool:
    """Whether an evidence is that of a fit, up to what its bound is loose by and four standard errors."""
    slack = 4 * math.hypot(expected.evidence.std_error, 0.1) + (expected.evidence.looseness or 0.0)
    return abs(found - expected.evidence.value) < slack


@pytest.mark.parametrize("factor", sensitivity.FACTORS)
@pytest.mark.parametrize("label", ["null", "mirror", "rotation"])
def test_reweighting_is_fitting_again(label, factor, run):
    assert agree(reweighted(run, label, factor), again(run, label, factor))


def test_mutant_without_weights_is_noticed(run):
    old = next(f for f in run.fits if f.label == "mirror")
    assert not all(agree(old.evidence.value, again(run, "mirror", factor)) for factor in sensitivity.FACTORS)


def test_verdicts_of_scaled_priors(run):
    found = prior_sensitivity(run)
    assert set(found) == {0.5, 2.0}
    assert all(verdicts.keys() == run.verdicts.keys() for verdicts in found.values())
    gaps = {factor: verdicts["mirror"].gap for factor, verdicts in found.items()}
    assert gaps[0.5] != run.verdicts["mirror"].gap != gaps[2.0]


def test_models_of_ones_own_have_no_scale(run):
    assert prior_sensitivity(replace(run, entry="custom")) == {}
