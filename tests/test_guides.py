"""The guide nests the normal, is normalised, and leans on a bound where the normal cannot."""

import math
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_invariance.evidence import Problem, fitted, psis
from pyro_invariance.evidence import elbo as elbo_of
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.laplace import laplace, lean, maximise
from pyro_invariance.evidence.variational import draw, elbo, train
from pyro_invariance.guides import SinhArcsinh, SkewNormal
from pyro_invariance.typing import BadInput


@pytest.fixture(autouse=True)
def local_parameters(fresh_state: None) -> Iterator[None]:
    with pyro.settings.context(module_local_params=True):
        yield


def plane() -> None:
    pyro.sample("site", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def guide(skew: list[float], tail: list[float]) -> SkewNormal:
    cholesky = torch.tensor([[1.0, 0.0], [0.5, 0.8]])
    made = SkewNormal(plane, torch.tensor([0.3, -1.0]), cholesky, torch.tensor(skew), torch.tensor(tail))
    made()
    return made


def test_without_skew_it_is_the_normal():
    made = guide([0.0, 0.0], [1.0, 1.0])
    z = 3 * torch.randn(50, 2)
    normal = MultivariateNormal(made.mode, scale_tril=made.cholesky)
    torch.testing.assert_close(made.get_posterior().log_prob(z), normal.log_prob(z))
    bent = guide([0.2, 0.0], [1.0, 1.0]).get_posterior().log_prob(z)
    assert not torch.allclose(bent, normal.log_prob(z), atol=0.1)


@pytest.mark.parametrize(("skew", "tail"), [(0.0, 1.0), (1.2, 1.2), (-0.8, 0.6), (0.3, 1.8)])
def test_density_is_normalised(skew, tail):
    shape = SinhArcsinh(torch.tensor(0.5), torch.tensor(2.0), torch.tensor(skew), torch.tensor(tail))
    density = dist.TransformedDistribution(dist.Normal(0.0, 2.0), [shape])
    edges = shape(torch.linspace(-14.0, 14.0, 40_001))  # as dense as the mass is
    assert float(torch.trapezoid(density.log_prob(edges).exp(), edges)) == pytest.approx(1.0, abs=1e-5)
    y = 2 * torch.randn(100)
    torch.testing.assert_close(shape.inv(shape(y)), y)
    assert float(shape(torch.tensor(0.0))) == pytest.approx(0.5)  # the median stays


def test_normalised_in_two_dimensions():
    made, normal = guide([0.7, -0.3], [1.1, 0.9]), MultivariateNormal(torch.tensor([1.0, -1.5]), 6 * torch.eye(2))
    z = normal.sample(torch.Size([100_000]))
    weights = (made.get_posterior().log_prob(z) - normal.log_prob(z)).exp()
    assert float(weights.mean()) == pytest.approx(1.0, abs=4 * float(weights.std()) / math.sqrt(len(z)))


def test_pyro_may_vectorise_it():
    made = guide([0.7, -0.3], [1.1, 0.9])
    loss = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=0).loss(plane, made)
    draws = draw(made, LogJoint(plane), count=4000, seed=1).log_weights
    assert -loss == pytest.approx(float(draws.mean()), abs=6 * float(draws.std()) / math.sqrt(4000))


def test_earlier_guide_stays_as_it_was():
    made = guide([0.7, -0.3], [1.1, 0.9])
    before, z = made.get_posterior(), torch.randn(5, 2)
    density = before.log_prob(z)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1
    assert torch.equal(before.log_prob(z), density)


def test_gradient_has_no_noise_where_the_guide_is_right():
    made = SkewNormal(plane, torch.zeros(2), torch.eye(2))
    path, _ = train(made, LogJoint(plane), steps=5, particles=1, seed=0)
    assert path == pytest.approx([0.0] * 5, abs=1e-12)
    torch.testing.assert_close(made.loc.detach(), torch.zeros(2))


# A posterior that leans on its bound.


def flat_above(threshold: float) -> None:
    """Turns of which the data say that they reach some angle at least."""
    extent = pyro.sample("extent", dist.Uniform(torch.tensor(0.0), math.pi))
    short = (threshold - extent).clamp_min(0.0) / 0.1
    pyro.factor("data", -0.5 * short.square())


def by_quadrature(threshold: float) -> tuple[float, float]:
    x = (torch.arange(200_000) + 0.5) / 200_000 * math.pi
    weights = (-0.5 * ((threshold - x).clamp_min(0.0) / 0.1).square()).softmax(0)
    mean = float(weights @ x)
    return mean, math.sqrt(float(weights @ (x - mean).square()))


class Plain(SkewNormal):
    """A mutant: the full-covariance normal."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args[:3])
        self.skew.requires_grad_(False)
        self.tail_unconstrained.requires_grad_(False)


def moments(kind: type[SkewNormal], threshold: float, steps: int) -> tuple[float, float, Tensor]:
    """Mean and standard deviation of a fitted extent, and its looseness."""
    log_joint = LogJoint(flat_above, (threshold,))
    begin = laplace(log_joint, maximise(log_joint, torch.zeros(1)).z)
    made = kind(lambda t: flat_above(t), *lean(log_joint, *begin, [0]))
    train(made, log_joint, steps=steps, particles=2, seed=0)
    z = made.get_posterior().sample(torch.Size([20_000]))[:, 0]
    x = log_joint.transforms["extent"](z)
    return float(x.mean()), float(x.std()), elbo(draw(made, log_joint, count=400, seed=1)).looseness


def check_moments(kind: type[SkewNormal], threshold: float, steps: int) -> None:
    mean, sd, _ = moments(kind, threshold, steps)
    true_mean, true_sd = by_quadrature(threshold)
    assert abs(mean - true_mean) < 0.15 * true_sd, f"mean {mean:.3f} for {true_mean:.3f}"
    assert abs(sd / true_sd - 1) < 0.15, f"sd {sd:.3f} for {true_sd:.3f}"


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.0, 2.8])
@pytest.mark.parametrize("steps", [10, 100])
def test_posterior_that_leans_on_its_bound(threshold, steps):
    check_moments(SkewNormal, threshold, steps)


@pytest.mark.parametrize("threshold", [2.0, 2.8])
def test_normal_cannot_lean(threshold):
    with pytest.raises(AssertionError, match=r"sd|mean"):
        check_moments(Plain, threshold, 400)


def test_skew_tightens_the_bound():
    assert moments(SkewNormal, 2.8, 10)[2] < 0.05 < 0.2 < moments(Plain, 2.8, 400)[2]


def test_ridge_of_a_normal_density_changes_nothing():
    precise = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    normal = dist.MultivariateNormal(torch.tensor([1.0, -1.0]), precision_matrix=precise)
    mode, cholesky = torch.tensor([1.0, -1.0]), torch.linalg.cholesky(torch.linalg.inv(precise))
    found = lean(LogJoint(lambda: pyro.sample("site", normal)), mode, cholesky, [0, 1])
    for value, expected in zip(found, (mode, cholesky, torch.zeros(2), torch.ones(2)), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0.01)


def rare() -> None:
    """A rate of which hardly anything is known: its posterior reaches far below what a normal guide draws."""
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(0.2), 1.0))
    pyro.sample("count", dist.Poisson(rate + 1e-3), obs=torch.tensor(0.0))


def test_a_wider_part_keeps_the_tails_of_weights(monkeypatch):
    found = psis(Problem(rare, ()), seed=0)
    assert found.khat < 0.7
    assert found.value == pytest.approx(-0.2 * math.log(2) - 1e-3, abs=5 * found.std_error)
    monkeypatch.setattr(fitted, "DEFENCE", 1e-9)
    assert psis(Problem(rare, ()), seed=0).khat > 0.7


def impossible() -> None:
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(0.02), 1.0))
    pyro.sample("count", dist.Poisson(rate + 1e-3), obs=torch.tensor(0.0))


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")
def test_draws_of_density_zero_are_said_by_all_estimators():
    for estimator in (elbo_of, psis):
        with pytest.raises(BadInput, match="density of zero"):
            estimator(Problem(impossible, ()), seed=0)
