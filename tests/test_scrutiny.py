"""Upper sides that a dense search finds, posteriors held against NUTS, both kept in the run folder."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_invariance import from_arrays, scrutiny
from pyro_invariance.cli import describe
from pyro_invariance.datasets import Dataset
from pyro_invariance.report import report
from pyro_invariance.results import load
from pyro_invariance.runs import read_json
from pyro_invariance.scrutiny import posterior_agreement, upper_side
from pyro_invariance.selection import select
from pyro_invariance.zoo import Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

TALL = math.log(0.5 / 0.3) - 0.5 * math.log(2 * math.pi)  # density of a narrow half at its top


def prepare(data: Dataset) -> tuple[Tensor]:
    return (data.targets[:1, 0],)


def two_tops(y: Tensor) -> None:
    """A broad top of the likelihood below zero, where the start is, and a narrow, taller one far above."""
    place = pyro.sample("place", dist.Normal(torch.tensor(0.0), 3.0))
    shape = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-1.0, 5.0]), torch.tensor([1.0, 0.3]))
    )
    pyro.factor("shape", shape.log_prob(place))
    pyro.sample("y", dist.Normal(torch.zeros(1), 1.0).to_event(1), obs=y)


@pytest.fixture(scope="module")
def two(float64: None) -> tuple[Hypothesis, Dataset]:
    data = from_arrays("two", np.eye(4), np.arange(4.0))
    return Hypothesis("two", "none", "plain", two_tops, prepare, ({"place": -1.5},)), data


def test_upper_side_is_the_tallest_top(two):
    hypothesis, data = two
    of_data = float(dist.Normal(0.0, 1.0).log_prob(prepare(data)[0]).sum())
    assert upper_side(hypothesis, data, 0) == pytest.approx(TALL + of_data, abs=1e-3)


def test_search_from_the_declared_starts_alone_is_the_mutant(two, monkeypatch):
    monkeypatch.setattr(scrutiny, "prior_draws", lambda log_joint, count, seed: torch.zeros(0, log_joint.size))
    with pytest.raises(AssertionError):
        test_upper_side_is_the_tallest_top(two)


def normal(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ weight, 0.5).to_event(1), obs=y)


@pytest.fixture(scope="module")
def line(float64: None) -> tuple[Hypothesis, Dataset]:
    x = np.random.default_rng(0).normal(size=(30, 2))
    starts = ({"weight": [0.0, 0.0]},)
    hypothesis = Hypothesis("line", "none", "plain", normal, lambda d: (d.x, d.targets[:, 0]), starts)
    return hypothesis, from_arrays("line", x, x @ [1.0, -0.5])


def test_a_right_posterior_agrees_with_nuts(line):
    (agreement,) = posterior_agreement(*line, 0).values()
    assert agreement.agrees
    assert agreement.rhat < 1.05
    assert agreement.ess > 100


def test_a_wrong_posterior_does_not(line, monkeypatch):
    real = scrutiny.nuts
    monkeypatch.setattr(scrutiny, "nuts", lambda *a, **k: {n: 1.5 * v for n, v in real(*a, **k).items()})
    (agreement,) = posterior_agreement(*line, 0).values()
    assert not agreement.agrees


@pytest.fixture(scope="module")
def checked(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scrutiny") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scrutiny, "nuts", partial(scrutiny.nuts, draws=40, warmup=20))
        patch.setattr(scrutiny, "STARTS", 3)
        yield select(tiny, hypotheses=["mirror"], seed=0, out=folder, jobs=1, check=True), folder


def test_a_checked_run_has_upper_sides_and_agreements(checked):
    run, _ = checked
    for f in run.fits:
        assert f.evidence.upper == f.upper > f.evidence.value
    assert run.scrutiny.agreement.keys() == {run.best.label}
    assert run.scrutiny.agreement[run.best.label].keys() == run.best.draws.keys()
    assert "against NUTS" in describe(run)


def test_an_unchecked_run_certifies_nothing(run):
    assert not any(v.certified for v in run.verdicts.values())
    assert all(f.evidence.upper is None for f in run.fits)
    assert "NUTS" not in describe(run)


def test_a_checked_run_is_read_back_and_not_repeated(checked, tiny, monkeypatch):
    run, folder = checked
    assert load(folder).scrutiny == run.scrutiny
    assert read_json(folder / "selection.json")["scrutiny"]["items"] == 40

    def again(*args: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(scrutiny, "upper_side", again)
    monkeypatch.setattr(scrutiny, "posterior_agreement", again)
    resumed = select(tiny, hypotheses=["mirror"], seed=0, out=folder, jobs=1, check=True)
    assert resumed.scrutiny == run.scrutiny
    assert [f.evidence for f in resumed.fits] == [f.evidence for f in run.fits]


def test_the_report_shows_the_agreement(checked, run, tmp_path):
    text = report(checked[0], tmp_path).read_text(encoding="utf-8")
    assert "held against chains" in text
    plain = report(run, tmp_path).read_text(encoding="utf-8")
    assert "held against chains" not in plain
    assert "nothing is certified" in plain
