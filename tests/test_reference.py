"""Chains against a posterior in closed form; wrong approximations are told from right ones."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_invariance import zoo
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.laplace import laplace, maximise
from pyro_invariance.fitting import fit
from pyro_invariance.reference import compare, nuts

ALPHA = 1e-3
PRECISION, SUM = 1.0 + 4 / 0.25, 4 * 0.7 / 0.25  # of four observations, 0.7 on average, of variance 1/4


def conjugate() -> None:
    """A normal mean, and a variance that no datum informs."""
    w = pyro.sample("w", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.sample("free", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    pyro.sample("y", dist.Normal(w, 0.5).expand([4]).to_event(1), obs=torch.tensor([0.2, 0.6, 0.9, 1.1]))


@pytest.fixture(scope="module")
def chains(float64: None) -> dict[str, np.ndarray]:
    log_joint = LogJoint(conjugate)
    mode, cholesky = laplace(log_joint, maximise(log_joint, torch.zeros(3)).z)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    drawn = nuts(log_joint, mode, 1.5 * cholesky, draws=300, warmup=100)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers go on
    return drawn


def test_chains_have_the_moments_of_a_conjugate_posterior(chains):
    assert chains["w"].shape == (2, 300)
    assert chains["free"].shape == (2, 300, 2)
    own = {name: torch.tensor(values).flatten(0, 1) for name, values in chains.items()}
    found = compare(own, chains)["w"]
    assert found.rhat < 1.02
    assert found.ess > 100
    assert found.difference == pytest.approx(0.0, abs=1e-12)
    sd = PRECISION**-0.5
    z = (chains["w"].mean() - SUM / PRECISION) / (sd / math.sqrt(found.ess))
    assert abs(z) < stats.norm.ppf(1 - ALPHA / 2)
    assert (chains["w"].mean() - SUM / 4 / PRECISION) > 10 * sd / math.sqrt(found.ess)  # a mutant: one datum of four
    assert np.log(chains["free"]).std() == pytest.approx(0.5, rel=0.15)


def test_chains_start_apart_and_repeat(chains):
    log_joint = LogJoint(conjugate)
    again = nuts(log_joint, torch.zeros(3), torch.eye(3), draws=5, warmup=5)
    repeated = nuts(log_joint, torch.zeros(3), torch.eye(3), draws=5, warmup=5)
    assert all(np.array_equal(again[name], repeated[name]) for name in again)
    assert not np.array_equal(again["w"][0], again["w"][1])


def test_failed_cholesky_is_infinitely_unlikely():
    def model(wall: list[float]) -> None:
        if pyro.sample("s", dist.Normal(torch.tensor(0.0), 1.0)) > wall[0]:
            raise torch.linalg.LinAlgError("no covariance here")

    wall = [math.inf]
    log_joint = LogJoint(model, (wall,))
    wall[0] = 0.5
    drawn = nuts(log_joint, torch.zeros(1), torch.eye(1), draws=100, warmup=50, chains=1)["s"]
    assert drawn.max() <= 0.5
    assert drawn.min() < -0.5


@pytest.mark.parametrize(
    ("shift", "stretch", "agrees"), [(0.0, 1.0, True), (0.3, 1.0, False), (0.0, 1.3, False), (0.0, 0.7, False)]
)
def test_wrong_posterior_is_told_from_a_right_one(chains, shift, stretch, agrees):
    mean, sd = torch.tensor(SUM / PRECISION), PRECISION**-0.5
    u = torch.tensor(stats.norm.ppf((np.arange(1000) + 0.5) / 1000))
    draws = {"w": mean + sd * (shift + stretch * u)}
    found = compare(draws, {"w": chains["w"]})["w"]
    assert found.agrees is agrees
    assert found.difference == pytest.approx(shift, abs=0.2)
    assert found.ratio == pytest.approx(stretch, rel=0.15)


@pytest.mark.slow
def test_orbit_process_agrees_with_chains():
    entry = zoo.load("orbit_gp")
    data = entry.data("rotation", 0, size=150)
    hypothesis = next(h for h in entry.hypotheses(data) if h.label == "rotation")
    log_joint = LogJoint(hypothesis.model, hypothesis.prepare(data))
    mode, cholesky = laplace(log_joint, maximise(log_joint, log_joint.pack(hypothesis.starts[0])).z)
    found = compare(fit(hypothesis, data).draws, nuts(log_joint, mode, cholesky))["rotation"]
    assert found.rhat < 1.02
    assert found.ess > 200
    assert found.agrees, str(found)
