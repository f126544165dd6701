"""Resampled draws are those of the posterior, whatever the guide is, and the guide's own where weights fail."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.incremental import Points, evaluator, posterior

Z = torch.arange(60.0).reshape(30, 2)


def normal(size: int, sd: float) -> LogJoint:
    """Prior N(0, 1), a single observation of zero with this noise in every coordinate."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, sd).to_event(1), obs=torch.full((size,), 0.5))

    return LogJoint(model)


def drawn(log_joint: LogJoint, centre: float, sd: float) -> Tensor:
    """Draws that begin at a guide of this centre and spread."""
    evaluate, size = evaluator(log_joint), log_joint.size
    guide = dist.MultivariateNormal(torch.full((size,), centre), scale_tril=sd * torch.eye(size))
    return posterior(evaluate, evaluate(torch.randn(200, size)), guide, 1000)


@pytest.mark.parametrize(("centre", "sd"), [(0.4, 0.45), (0.0, 0.2), (-1.0, 0.3), (0.4, 3.0)])
def test_wrong_guides_are_repaired(centre, sd):
    z, exact = drawn(normal(2, 0.5), centre, sd), math.sqrt(0.2)  # N(0.4, 0.2)
    assert z.mean(0).numpy() == pytest.approx(0.4, abs=5 * exact / math.sqrt(300))
    assert (z.std(0) / exact).numpy() == pytest.approx(1.0, abs=0.2)
    assert z.unique(dim=0).shape[0] > 200


def test_where_weights_fail_the_draws_are_those_of_the_guide():
    z = drawn(normal(60, 0.1), 0.0, 0.3)
    assert z.unique(dim=0).shape[0] == 1000
    assert z.std(0).numpy() == pytest.approx(0.3, rel=0.15)


def test_points_without_a_density_have_no_weight():
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        factor = torch.linalg.cholesky(torch.eye(2) * (z + 0.5))  # none below -0.5
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=torch.ones(2))

    evaluate = evaluator(LogJoint(model))
    points = evaluate(torch.tensor([[-1.0], [0.3], [1.0], [-2.0]]))
    assert torch.isfinite(points.log_joint).tolist() == [False, True, True, False]
    assert torch.isfinite(points.log_prior).all()


def test_points_are_joined():
    both = Points(Z, Z[:, 0], Z[:, 1]) + Points(Z, Z[:, 1], Z[:, 0])
    assert both.z.shape == (60, 2)
    torch.testing.assert_close(both.log_joint, Z.sum(1).repeat(2))
