"""Simulation-based calibration: right posteriors stay within the band, wrong ones do not."""

import pickle
from collections.abc import Callable
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

from pyro_invariance import calibration, fitting, modes, plotting, zoo
from pyro_invariance.calibration import DRAWS, Calibration, calibrate, simulated
from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import Fit
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ALPHA = 1e-3  # of each statistical check


def plane(x: Tensor, y: Tensor, noise: float = 0.5) -> None:
    """Normal prior and noise: the posterior is normal, as the guide is."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    level = pyro.sample("level", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.deterministic("height", level + slope.sum())
    pyro.sample("y", dist.Normal(level + x @ slope, noise).to_event(1), obs=y)


def noisy(x: Tensor, y: Tensor) -> None:
    plane(x, y, noise=1.5)


def prepare(data: Dataset) -> tuple[Tensor, Tensor]:
    return data.x, data.targets[:, 0]


def own(model: Callable) -> Hypothesis:
    return Hypothesis("plane", "none", "own", model, prepare, starts=({"slope": torch.zeros(3), "level": 0.0},))


# The band.


def false_alarms(families: int, sites: int, size: int, seed: int = 0) -> int:
    """How many of the families of uniform ranks leave the band."""
    ranks = np.random.default_rng(seed).integers(DRAWS + 1, size=(families, sites, size))
    return sum(not Calibration({str(k): row for k, row in enumerate(family)}).passed for family in ranks)


@pytest.mark.parametrize(("sites", "size"), [(1, 30), (1, 200), (4, 200)])
def test_band_holds_for_all_ranks_and_sites_at_once(sites, size):
    wrong = false_alarms(4000, sites, size)
    assert stats.binomtest(wrong, 4000, 0.01, alternative="greater").pvalue > ALPHA
    assert stats.binomtest(wrong, 4000, 0.005, alternative="less").pvalue > ALPHA  # nor is it wide for safety


def test_pointwise_band_is_caught(monkeypatch):
    monkeypatch.setattr(calibration, "_inside", lambda *counts: 1.0)
    calibration._band.cache_clear()
    wrong = false_alarms(500, sites=1, size=200)
    calibration._band.cache_clear()
    assert stats.binomtest(wrong, 500, 0.01, alternative="greater").pvalue < ALPHA


def ranks(centre: float, width: float) -> Calibration:
    """Rank standard normal truths among draws of posteriors that are off by `centre` and `width` times as wide."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        draws = torch.tensor(centre + width * rng.normal(size=1000))
        found.append(calibration._ranks({"site": torch.tensor(rng.normal())}, {"site": draws}, rng)["site"])
    return Calibration({"site": np.array(found)})


def test_right_posteriors_pass():
    assert ranks(0.0, 1.0).passed


@pytest.mark.parametrize(("centre", "width"), [(0.0, 0.5), (0.0, 2.0), (0.5, 1.0), (-0.5, 1.0)])
def test_wrong_posteriors_are_caught(centre, width):
    found = ranks(centre, width)
    assert found.outside == {"site": True}
    assert not found.passed


def test_ranks_of_ties_are_uniform():
    rng = np.random.default_rng(0)
    truth, draws = {"site": torch.zeros(2)}, {"site": torch.zeros(DRAWS, 2)}
    rows = [calibration._ranks(truth, draws, rng) for _ in range(200)]
    found = Calibration({name: np.array([row[name] for row in rows]) for name in rows[0]})
    assert list(found.ranks) == ["site[0]", "site[1]"]
    assert found.passed


# Simulations.


def test_simulation_depends_on_the_seed_only(line):
    (made, truth), (again, same), (_, other) = (simulated(own(plane), line, seed) for seed in (1, 1, 2))
    assert list(truth) == ["slope", "level"]  # what follows from them is no site of its own
    assert all(torch.equal(truth[name], same[name]) for name in truth)
    assert not any(torch.equal(truth[name], other[name]) for name in truth)
    args = prepare(line)
    y, repeated = (poutine.trace(h.model).get_trace(*args).nodes["y"]["value"] for h in (made, again))
    assert torch.equal(y, repeated)
    assert not torch.equal(y, args[1])
    residual = y - truth["level"] - args[0] @ truth["slope"]
    assert stats.kstest(residual.numpy() / 0.5, "norm").pvalue > ALPHA


def test_simulation_can_be_sent_and_leaves_the_random_numbers_alone(line):
    pyro.set_rng_seed(3)
    expected = torch.rand(1)
    pyro.set_rng_seed(3)
    data = zoo.load("orbit_gp").data("rotation", size=20, test=2, side=8)
    hypothesis = next(h for h in zoo.load("orbit_gp").hypotheses(data) if h.label == "rotation")
    made, truth = simulated(hypothesis, data, 0)
    assert torch.rand(1) == expected
    assert truth.keys() == {"noise", "lengthscale", "variance", "rotation"}
    assert 0 < float(truth["rotation"]) < hypothesis.extents["rotation"].upper
    args = made.prepare(data)
    model = pickle.loads(pickle.dumps(made.model))
    models = made.model, model, hypothesis.model
    values = [poutine.trace(m).get_trace(*args).nodes["targets"]["value"] for m in models]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_discrete_sites_are_drawn_and_not_ranked(line):
    def two(x: Tensor, y: Tensor) -> None:
        side = pyro.sample("side", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
        level = pyro.sample("level", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("items", len(y)):
            pyro.sample("y", dist.Normal(level + 100 * side, 1.0), obs=y)

    made, truth = simulated(own(two), line, 0)
    assert list(truth) == ["level"]
    y = poutine.trace(made.model).get_trace(*prepare(line)).nodes["y"]["value"]
    assert float(y.std()) < 3


def test_what_cannot_be_simulated_is_refused(line):
    def factor(x: Tensor, y: Tensor) -> None:
        plane(x, y)
        pyro.factor("more", torch.tensor(1.0))

    def unseen(x: Tensor, y: Tensor) -> None:
        pyro.sample("level", dist.Normal(torch.tensor(0.0), 1.0))

    for model in (factor, unseen):
        with pytest.raises(BadInput, match="can be drawn"):
            simulated(own(model), line, 0)
    many = replace(line, y=torch.zeros(modes.SCOUT + 1))
    with pytest.raises(BadInput, match="301 items"):
        calibrate(own(plane), many, simulations=1, jobs=1)


# Fits.


def test_exact_posteriors_pass(line):
    found = calibrate(own(plane), line, simulations=40, jobs=1)
    assert list(found.ranks) == ["slope[0]", "slope[1]", "slope[2]", "level"]
    assert found.simulations == 40
    assert found.passed, found.outside


def test_wrong_noise_is_caught(line, monkeypatch):
    def mutant(hypothesis: Hypothesis, data: Dataset, seed: int) -> tuple[Hypothesis, dict[str, Tensor]]:
        made, truth = simulated(own(noisy), data, seed)
        drawn = poutine.trace(made.model).get_trace(*prepare(data)).nodes["y"]["value"]
        return replace(made, model=poutine.condition(hypothesis.model, data={"y": drawn})), truth

    monkeypatch.setattr(calibration, "simulated", mutant)
    found = calibrate(own(plane), line, simulations=20, jobs=1)
    assert found.outside["level"]
    assert not found.passed


def test_failures_are_named_and_counted(line, monkeypatch):
    calls = []

    def fails(hypothesis: Hypothesis, data: Dataset, seed: int) -> Fit:
        calls.append(seed)
        if len(calls) == 2:
            raise FloatingPointError("the bound is nan")
        return fitting.fit(hypothesis, data, seed)

    monkeypatch.setattr(calibration, "fit", fails)
    found = calibrate(own(plane), line, simulations=3, jobs=1)
    assert found.failed == ("simulation 1: FloatingPointError: the bound is nan",)
    assert found.simulations == 2
    assert not any(found.outside.values())
    assert not found.passed
    assert len(set(calls)) == 3
    even = {"site": np.arange(99)}
    assert Calibration(even, failed=("one",)).passed  # one of a hundred
    assert not Calibration(even, failed=("one", "two")).passed
    assert not Calibration({}, failed=("all",)).passed


def test_processes_make_no_difference(line):
    alone, together = (calibrate(own(plane), line, simulations=3, seed=5, jobs=jobs) for jobs in (1, 2))
    assert all((alone.ranks[name] == together.ranks[name]).all() for name in alone.ranks)


def test_ranks_are_drawn():
    for found, words in ((ranks(0.0, 1.0), "posteriors are calibrated"), (ranks(0.5, 1.0), "not calibrated: site")):
        axes = plotting.ranks(found)
        assert words in axes.get_title()
        assert plotting.ranks(found, axes) is axes
        _, y = axes.lines[0].get_data()
        assert y[1:-1] == pytest.approx(found.ecdf["site"] - np.arange(1, DRAWS + 1) / (DRAWS + 1))
        assert y[0] == y[-1] == 0
    assert plotting.ranks(Calibration({}, failed=("all",))).get_title() == "No simulation could be fitted"
    plt.close("all")


@pytest.mark.slow
def test_orbit_process_is_calibrated():
    entry = zoo.load("orbit_gp")
    data = entry.data("rotation", 0, size=60, test=2)
    hypothesis = next(h for h in entry.hypotheses(data) if h.label == "rotation")
    found = calibrate(hypothesis, data, simulations=200)
    assert found.passed, (found.outside, found.failed)
