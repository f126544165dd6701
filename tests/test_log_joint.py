"""The log joint density of a Pyro model against its analytic form."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import EXACT, FlippedJacobian
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import TransformedDistribution, biject_to

from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.typing import BadInput

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("local_parameters"),
]


VALUES = {
    "location": torch.tensor([0.3, -1.2], dtype=torch.float64),
    "scale": torch.tensor(0.7, dtype=torch.float64),
    "share": torch.tensor(0.2, dtype=torch.float64),
    "range": torch.tensor(2.5, dtype=torch.float64),
}
OBSERVED = torch.tensor([0.1, -0.4, 1.0], dtype=torch.float64)


def mixed(y: Tensor) -> None:
    """Sites on the line, the half line and two intervals."""
    location = pyro.sample("location", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.5), 0.4))
    share = pyro.sample("share", dist.Beta(torch.tensor(2.0), 3.0))
    reach = pyro.sample("range", dist.Uniform(torch.tensor(1.0), 4.0))
    pyro.sample("y", dist.Normal(location.sum() + share * reach, scale).expand(y.shape).to_event(1), obs=y)


def by_hand(values: dict[str, Tensor]) -> tuple[float, float]:
    """Log prior density in unconstrained space and log likelihood, from textbook formulas."""
    a, b = values["location"].tolist()
    s, p, r = (float(values[k]) for k in ("scale", "share", "range"))
    normal = stats.norm.logpdf([a, b], 0, 2).sum()
    on_log_scale = stats.norm.logpdf(math.log(s), 0.5, 0.4)  # log s is normal: no Jacobian is left
    beta = stats.beta.logpdf(p, 2, 3) + math.log(p * (1 - p))
    uniform = -math.log(3) + math.log((r - 1) * (4 - r) / 3)
    likelihood = stats.norm.logpdf(OBSERVED.numpy(), a + b + p * r, s).sum()
    return normal + on_log_scale + beta + uniform, likelihood


def test_log_joint_is_the_analytic_one():
    log_joint = LogJoint(mixed, (OBSERVED,))
    for _ in range(5):
        z = torch.randn(log_joint.size)
        terms = torch.stack(log_joint.terms(z))
        torch.testing.assert_close(terms, torch.tensor(by_hand(log_joint.unpack(z))), **EXACT)


def test_log_joint_packs_and_unpacks():
    log_joint = LogJoint(mixed, (OBSERVED,))
    assert log_joint.size == 5
    ends = {"location": (0, 2), "scale": (2, 3), "share": (3, 4), "range": (4, 5)}
    assert log_joint.slices == {name: slice(*end) for name, end in ends.items()}
    z = log_joint.pack(VALUES)
    torch.testing.assert_close(z, torch.tensor([0.3, -1.2, math.log(0.7), math.log(0.25), 0.0]), **EXACT)
    back = log_joint.unpack(z)
    assert list(back) == list(VALUES)
    for name, value in VALUES.items():
        torch.testing.assert_close(back[name], value)
    assert torch.equal(log_joint.pack({k: v.tolist() for k, v in VALUES.items()}), z)  # plain numbers do as well


def test_log_joint_names_what_is_missing():
    log_joint = LogJoint(mixed, (OBSERVED,))
    with pytest.raises(BadInput, match=r"range.*share"):
        log_joint.pack({k: VALUES[k] for k in ("location", "scale")})


def test_log_joint_refuses_discrete_sites():
    with pytest.raises(BadInput, match="'coin' is discrete"):
        LogJoint(lambda: pyro.sample("coin", dist.Bernoulli(0.5)))


def test_log_joint_has_the_right_gradient():
    log_joint = LogJoint(mixed, (OBSERVED,))
    z = torch.randn(log_joint.size, requires_grad=True)
    assert gradcheck(lambda z: torch.stack(log_joint.terms(z)), z, check_undefined_grad=False)  # Pyro reads them all


def test_log_joint_on_a_simplex():
    prior = dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0]))
    log_joint = LogJoint(lambda: pyro.sample("weights", prior))
    assert log_joint.size == 2  # three weights that sum to one
    z = torch.randn(2)
    pulled_back = TransformedDistribution(prior, biject_to(prior.support).inv).log_prob(z)
    torch.testing.assert_close(torch.stack(log_joint.terms(z)), torch.stack([pulled_back, torch.zeros(())]), **EXACT)


def check_prior_mass(kind: type[LogJoint], prior: Callable) -> None:
    """Raise unless the density of a prior in unconstrained space integrates to one."""
    log_joint = kind(lambda: pyro.sample("site", prior()))
    grid = torch.linspace(-30, 30, 601)
    density = torch.stack([log_joint.terms(z[None])[0] for z in grid]).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-4)


PRIORS = {
    "LogNormal": lambda: dist.LogNormal(torch.tensor(-1.0), 2.0),
    "Uniform": lambda: dist.Uniform(torch.tensor(1.0), 4.0),
    "Gamma": lambda: dist.Gamma(torch.tensor(2.0), 0.5),
    "Beta": lambda: dist.Beta(torch.tensor(0.9), 2.0),
    "StudentT": lambda: dist.StudentT(torch.tensor(4.0)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_prior_keeps_its_mass_in_unconstrained_space(name):
    check_prior_mass(LogJoint, PRIORS[name])


@pytest.mark.parametrize("name", [n for n in PRIORS if n != "StudentT"])
def test_flipped_jacobian_loses_the_mass(name):
    with pytest.raises(AssertionError):
        check_prior_mass(FlippedJacobian, PRIORS[name])


# Models whose evidence is known.
