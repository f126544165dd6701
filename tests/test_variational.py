"""The evidence lower bound of trained guides: below the evidence, and by how much."""

import math
from dataclasses import replace

import pyro
import pytest
import torch
from conjugate import ALPHA, FlippedJacobian, check_lower_bound, fitted, linear, scale
from pyro.infer import Trace_ELBO
from scipy import stats
from torch.distributions import MultivariateNormal

from pyro_invariance.evidence.base import Evidence, LogJoint
from pyro_invariance.evidence.laplace import laplace, maximise
from pyro_invariance.evidence.variational import Draws, draw, elbo, train
from pyro_invariance.guides import SkewNormal

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("local_parameters"),
]


def test_elbo_with_the_exact_posterior_is_the_evidence():
    problem = linear()
    mean, covariance = problem.posterior
    guide = SkewNormal(problem.model, mean, torch.linalg.cholesky(covariance))
    evidence = elbo(draw(guide, LogJoint(problem.model), count=40, seed=0))
    assert evidence.value == pytest.approx(problem.exact, abs=1e-8)
    assert evidence.std_error < 1e-9
    assert evidence.looseness < 1e-8
    assert evidence.khat is None  # all weights are equal
    check_lower_bound(evidence, problem.exact, loose=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_elbo_of_a_wrong_guide_is_below_by_its_divergence(seed):
    problem = linear(seed)
    mean, covariance = problem.posterior
    shifted, wide = mean + torch.tensor([0.1, 0.0, -0.1]), 2.25 * covariance
    guide = SkewNormal(problem.model, shifted, torch.linalg.cholesky(wide))
    evidence = elbo(draw(guide, LogJoint(problem.model), count=1000, seed=seed))
    divergence = torch.distributions.kl_divergence(
        MultivariateNormal(shifted, wide), MultivariateNormal(mean, covariance)
    )
    assert evidence.value < problem.exact
    gap = problem.exact - evidence.value - float(divergence)
    assert abs(gap) < stats.norm.ppf(1 - ALPHA / 2) * evidence.std_error
    with pytest.raises(AssertionError):
        check_lower_bound(evidence, problem.exact)  # a poor bound is told from a good one


@pytest.mark.parametrize("make", [linear, lambda: scale(0.05), lambda: scale(30.0)], ids=["linear", "small", "large"])
def test_elbo_of_a_trained_guide(make):
    problem = make()
    guide, log_joint = fitted(problem)
    draws = draw(guide, log_joint, count=400, seed=1)
    evidence = elbo(draws)
    check_lower_bound(evidence, problem.exact)
    sampled = evidence.value + evidence.looseness  # importance sampling
    weights = (draws.log_weights - draws.log_weights.max()).exp()
    relative = float(weights.std() / weights.mean()) / math.sqrt(400)
    assert abs(sampled - problem.exact) < 4 * relative + 1e-6


@pytest.mark.parametrize("make", [linear, lambda: scale(0.05), lambda: scale(30.0)], ids=["linear", "small", "large"])
def test_dropped_guide_density_is_caught(make):
    problem = make()
    guide, log_joint = fitted(problem, steps=20)
    draws = draw(guide, log_joint, count=400, seed=1)
    with pytest.raises(AssertionError):
        check_lower_bound(elbo(replace(draws, log_guide=torch.zeros(400))), problem.exact)


@pytest.mark.parametrize("size", [0.05, 30.0])
def test_flipped_jacobian_is_caught(size):
    problem = scale(size)
    guide, _ = fitted(problem, steps=20)
    with pytest.raises(AssertionError):
        check_lower_bound(elbo(draw(guide, FlippedJacobian(problem.model), count=400, seed=1)), problem.exact)


@pytest.mark.parametrize("term", ["log_prior", "log_likelihood"])
def test_dropped_terms_are_caught(term):
    problem = linear()
    guide, log_joint = fitted(problem, steps=20)
    draws = draw(guide, log_joint, count=400, seed=1)
    with pytest.raises(AssertionError):
        check_lower_bound(elbo(replace(draws, **{term: torch.zeros(400)})), problem.exact)


@pytest.mark.parametrize("make", [linear, lambda: scale(30.0)], ids=["linear", "scale"])
def test_fresh_draws_agree_with_pyro(make):
    problem = make()
    log_joint = LogJoint(problem.model)
    mode, cholesky = laplace(log_joint, maximise(log_joint, torch.zeros(log_joint.size)).z)
    guide = SkewNormal(problem.model, mode, 1.5 * cholesky)
    ours = elbo(draw(guide, log_joint, count=500, seed=1))
    pyro.set_rng_seed(2)
    with torch.no_grad():
        theirs = torch.tensor([-Trace_ELBO().loss(problem.model, guide) for _ in range(500)])
    error = math.hypot(ours.std_error, float(theirs.std()) / math.sqrt(500))
    assert abs(ours.value - float(theirs.mean())) < stats.norm.ppf(1 - ALPHA / 2) * error


def test_training_depends_on_the_seed_only():
    problem = linear()
    mean, covariance = problem.posterior

    def run(seed: int) -> tuple[list[float], Draws]:
        guide = SkewNormal(problem.model, mean + 0.3, torch.linalg.cholesky(covariance))
        path, _ = train(guide, LogJoint(problem.model), steps=10, particles=2, seed=seed)
        return path, draw(guide, LogJoint(problem.model), count=5, seed=seed)

    (path, draws), (again, repeated), (other, _) = run(1), run(1), run(2)
    assert path == again != other
    assert torch.equal(draws.log_weights, repeated.log_weights)
    assert len(path) == 10


def test_elbo_of_few_draws():
    one = Draws(torch.zeros(1, 2), torch.tensor([-1.0]), torch.tensor([-3.0]), torch.tensor([-2.0]))
    assert elbo(one) == Evidence(-2.0, 0.0, "lower", None, 0.0, None, ess=1.0, draws=1)
    two = replace(one, log_prior=torch.tensor([-1.0, 1.0]))
    evidence = elbo(replace(two, log_likelihood=torch.zeros(2), log_guide=torch.zeros(2)))
    assert evidence.value == 0.0
    assert evidence.std_error == pytest.approx(1.0)  # sd sqrt(2) over the root of two draws
    assert evidence.looseness == pytest.approx(math.log(math.cosh(1.0)))
    assert evidence.drift is None
