"""Modes, upper sides and Laplace approximations."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import EXACT, linear, scale
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.laplace import EDGE, laplace, maximise
from pyro_invariance.guides import SkewNormal

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("local_parameters"),
]


def test_mode_of_a_gaussian_posterior():
    problem = linear()
    log_joint = LogJoint(problem.model)
    mode = maximise(log_joint, torch.zeros(3), gtol=1e-8)
    mean, _ = problem.posterior
    torch.testing.assert_close(mode.z, mean, rtol=0, atol=1e-6)
    assert mode.value == pytest.approx(float(sum(log_joint.terms(mean))), abs=1e-9)
    assert mode.path == sorted(mode.path)
    assert mode.path[-1] == pytest.approx(mode.value)
    again = maximise(log_joint, torch.zeros(3), gtol=1e-8, inverse_hessian=problem.posterior[1].numpy())
    torch.testing.assert_close(again.z, mean, rtol=0, atol=1e-6)
    assert len(again.path) < len(mode.path)  # the inverse Hessian was put to use


def test_gradient_tolerance_is_honoured():
    log_joint = LogJoint(linear().model)
    z = maximise(log_joint, torch.zeros(3), gtol=0.3).z.requires_grad_()
    (gradient,) = torch.autograd.grad(sum(log_joint.terms(z)), z)
    assert float(gradient.abs().max()) <= 0.3


def test_largest_likelihood_is_least_squares():
    problem = linear()
    found = maximise(LogJoint(problem.model), torch.zeros(3), prior=False, gtol=1e-8)
    best = torch.linalg.lstsq(problem.x, problem.y[:, None]).solution[:, 0]
    torch.testing.assert_close(found.z, best, rtol=0, atol=1e-6)
    assert found.value == pytest.approx(float(Normal(problem.x @ best, 0.5).log_prob(problem.y).sum()))


@pytest.mark.parametrize("seed", range(5))
def test_largest_likelihood_is_above_the_evidence(seed):
    for problem in (linear(seed), scale(0.1 + seed)):
        log_joint = LogJoint(problem.model)
        assert maximise(log_joint, torch.zeros(log_joint.size), prior=False).value > problem.exact


def test_failed_cholesky_is_a_wall_for_the_search():
    calls = {"beyond": 0}

    def model(wall: list[float]) -> None:
        s = pyro.sample("s", dist.Normal(torch.tensor(0.0), 1.0))
        if s > wall[0]:
            calls["beyond"] += 1
            raise torch.linalg.LinAlgError("no covariance here")
        pyro.sample("y", dist.Normal(s, 0.1), obs=torch.tensor(0.4))

    wall = [math.inf]
    log_joint = LogJoint(model, (wall,))
    wall[0] = 0.5
    mode = maximise(log_joint, torch.tensor([-0.2]), gtol=1e-6)
    assert calls["beyond"] > 0  # the first step has length one
    assert float(mode.z) == pytest.approx(0.4 / 1.01, abs=1e-4)


def test_search_stays_finite_where_the_density_rises_for_ever():
    def model() -> None:
        s = pyro.sample("s", dist.Uniform(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(s, 0.01), obs=torch.tensor(3.0))  # as far up as the interval goes

    mode = maximise(LogJoint(model), torch.tensor([0.0]), prior=False)
    assert math.isfinite(mode.value)
    value = torch.sigmoid(mode.z.clamp(-EDGE, EDGE))
    assert float(value) > 0.99


def test_laplace_is_exact_for_a_gaussian_posterior():
    problem = linear()
    log_joint = LogJoint(problem.model)
    mean, covariance = problem.posterior
    mode, cholesky = laplace(log_joint, mean + 0.05)  # one Newton step suffices
    torch.testing.assert_close(mode, mean, **EXACT)
    torch.testing.assert_close(cholesky @ cholesky.T, covariance, rtol=1e-7, atol=1e-10)
    volume = 1.5 * math.log(2 * math.pi) + float(cholesky.diagonal().log().sum())
    assert float(sum(log_joint.terms(mode))) + volume == pytest.approx(problem.exact, abs=1e-7)


def test_laplace_exists_where_the_density_is_flat():
    def model() -> None:
        pyro.sample("flat", dist.Normal(torch.tensor(0.0), 1e4))
        pyro.sample("sharp", dist.Normal(torch.tensor(0.0), 0.1))

    _, cholesky = laplace(LogJoint(model), torch.zeros(2))
    assert bool(cholesky.isfinite().all())
    assert float(cholesky[1, 1]) == pytest.approx(0.1)
    assert 1.0 <= float(cholesky[0, 0]) <= 10.0


def test_guide_starts_at_the_laplace_approximation():
    problem = linear()
    mean, covariance = problem.posterior
    guide = SkewNormal(problem.model, mean, torch.linalg.cholesky(covariance))
    guide()
    z = torch.randn(5, 3)
    density = MultivariateNormal(mean, covariance).log_prob(z)
    torch.testing.assert_close(guide.get_posterior().log_prob(z), density)


@pytest.mark.parametrize("start", [-60.0, -26.0, 60.0])
def test_climb_comes_back_from_beyond_the_edge(start):
    log_joint = LogJoint(lambda: pyro.sample("site", dist.LogNormal(torch.tensor(-1.0), 2.0)))
    mode = maximise(log_joint, torch.tensor([start]))
    assert float(mode.z) == pytest.approx(-1.0, abs=0.8)


def test_climbs_reach_as_far_as_a_site_on_the_line_does():
    def far(y: Tensor) -> None:
        place = pyro.sample("place", dist.Normal(torch.tensor(100.0), 10.0))
        pyro.sample("y", dist.Normal(place, torch.ones(3)).to_event(1), obs=y)

    log_joint = LogJoint(far, (torch.full((3,), 90.0),))
    assert float(maximise(log_joint, torch.zeros(1), gtol=1e-6).z) == pytest.approx(90.0, abs=0.1)
    assert float(maximise(log_joint, torch.zeros(1), prior=False, gtol=1e-6).z) == pytest.approx(90.0, abs=1e-3)
