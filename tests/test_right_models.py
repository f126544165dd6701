"""No call that is right is refused: models and guides as Pyro users write them."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import ESTIMATORS, WEIGHTED, drawn, smalls
from pyro import poutine
from pyro.infer import autoguide
from torch import nn

from pyro_invariance.densities import SoftUniform
from pyro_invariance.evidence.problem import Problem
from pyro_invariance.sites import Marginalised

pytestmark = pytest.mark.usefixtures("local_parameters")

SAFE = settings(drawn, max_examples=40)


@SAFE
@given(small=smalls(), estimator=st.sampled_from(WEIGHTED))
def test_right_problems_give_a_number(small, estimator):
    pyro.clear_param_store()
    assert math.isfinite(ESTIMATORS[estimator](small.problem()).value)


X = torch.linspace(-1, 1, 6, dtype=torch.float64)
Y = torch.tensor([0.3, -0.1, 0.4, 0.9, 1.2, 0.8], dtype=torch.float64)
RIGHT: dict[str, Callable] = {}


def right(model: Callable) -> Callable:
    """Register a model without arguments that is right."""
    RIGHT[model.__name__] = model
    return model


@right
def scalar_likelihood_without_a_plate():
    pyro.sample("y", dist.Normal(pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0), obs=Y)


@right
def scalar_likelihood_in_a_plate():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Normal(w, 1.0), obs=Y)


@right
def rows_of_a_vector():
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", 2):
        pyro.sample("y", dist.MultivariateNormal(w, torch.eye(3)), obs=Y.reshape(2, 3))


@right
def crossed_plates():
    rows, columns = pyro.plate("rows", 3, dim=-1), pyro.plate("columns", 2, dim=-2)
    with rows:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with columns:
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with rows, columns:
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=Y.reshape(2, 3))


@right
def plate_one_by_one():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", 6):
        pyro.sample(f"y_{i}", dist.Normal(w, 1.0), obs=Y[i])


@right
def plate_with_all_of_its_indices():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6, subsample_size=6) as ids:
        pyro.sample("y", dist.Normal(w, 1.0), obs=Y[ids])


@right
def deterministic_sites():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.deterministic("single", w.float())
    pyro.sample("y", dist.Normal(pyro.deterministic("twice", 2 * w), 1.0).expand([6]).to_event(1), obs=Y)


@right
def masked_likelihood():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6), poutine.mask(mask=Y > 0):
        pyro.sample("y", dist.Normal(w, 1.0), obs=Y)


@right
def whole_numbers_as_data():
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Poisson(rate), obs=torch.arange(6))


@right
def hierarchy_of_several_plates():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(torch.tensor(1.0)))
    with pyro.plate("groups", 3, dim=-1):
        a = pyro.sample("a", dist.Normal(mu, tau + 0.1))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 0.3))
        with pyro.plate("members", 2, dim=-2):
            pyro.sample("y", dist.Normal(a, noise), obs=Y.reshape(2, 3))


@right
def constrained_sites():
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    r = pyro.sample("r", dist.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0])).to_event(1))
    chol = pyro.sample("chol", dist.LKJCholesky(2, torch.tensor(2.0)))
    with pyro.plate("rows", 3):
        pyro.sample("y", dist.MultivariateNormal(p[:2] + r, scale_tril=chol), obs=Y.reshape(3, 2))


@right
def scaled_and_folded_priors():
    shift = dist.transforms.AffineTransform(1.0, 2.0)
    w = pyro.sample("w", dist.TransformedDistribution(dist.Normal(torch.tensor(0.0), 1.0), [shift]))
    s = pyro.sample("s", dist.FoldedDistribution(dist.Normal(torch.tensor(0.0), 1.0)))
    pyro.sample("y", dist.Normal(w, s + 0.1).expand([6]).to_event(1), obs=Y)


@right
def a_density_of_the_users_own():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", -w.square())
    pyro.sample("y", dist.Normal(w, 1.0).expand([6]).to_event(1), obs=Y)


class Frozen(pyro.nn.PyroModule):
    """Weights that are sampled, and others that are fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.w = pyro.nn.PyroSample(dist.Normal(torch.tensor(0.0), 1.0))
        self.fixed = nn.Linear(1, 1).double().requires_grad_(False)

    def forward(self) -> None:
        mean = self.w + self.fixed(X[:, None])[:, 0]
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=Y)


GUIDES = (
    "AutoNormal",
    "AutoMultivariateNormal",
    "AutoDiagonalNormal",
    "AutoLowRankMultivariateNormal",
    "AutoIAFNormal",
    "AutoStructured",
    "AutoGaussian",
    "AutoNormalMessenger",
)


def automatic(kind: str, model: Callable) -> Callable:
    """Return a guide of a kind, as it starts."""
    pyro.clear_param_store()
    guide = getattr(autoguide, kind)(model)
    guide()
    return guide


@pytest.mark.parametrize("name", RIGHT)
def test_right_models_give_a_number(name):
    model = RIGHT[name]
    assert math.isfinite(ESTIMATORS["psis"](Problem(model, (), automatic("AutoNormal", model))).value)


def test_modules_without_parameters_give_a_number():
    model = Frozen()
    assert math.isfinite(ESTIMATORS["psis"](Problem(model, (), automatic("AutoNormal", model))).value)


@pytest.mark.parametrize("name", ["crossed_plates", "hierarchy_of_several_plates", "constrained_sites"])
def test_right_models_are_annealed(name):
    assert math.isfinite(ESTIMATORS["ais"](Problem(RIGHT[name])).value)


@pytest.mark.parametrize("kind", GUIDES)
@pytest.mark.parametrize("name", ["rows_of_a_vector", "hierarchy_of_several_plates", "constrained_sites"])
def test_automatic_guides_give_a_number(name, kind):
    model = RIGHT[name]
    assert math.isfinite(ESTIMATORS["elbo"](Problem(model, (), automatic(kind, model))).value)


def laplace_guide(model: Callable) -> Callable:
    return automatic("AutoLaplaceApproximation", model).laplace_approximation()


def listed_guide(model: Callable) -> Callable:
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, expose=["mu", "tau"])))
    guide.append(autoguide.AutoDiagonalNormal(poutine.block(model, expose=["a", "noise"])))
    guide()
    return guide


@pytest.mark.parametrize("make", [laplace_guide, listed_guide])
def test_put_together_guides_give_a_number(make):
    pyro.clear_param_store()
    model = RIGHT["hierarchy_of_several_plates" if make is listed_guide else "scalar_likelihood_in_a_plate"]
    assert math.isfinite(ESTIMATORS["iwae"](Problem(model, (), make(model))).value)


def switching() -> None:
    """Run a mixture; its finite sites are in plates, and one depends on the other."""
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.4)))
    with pyro.plate("data", 6):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("y", dist.Normal(loc[z] + kind, 0.5), obs=Y)


def test_finite_sites_are_summed_out_or_drawn():
    continuous = automatic("AutoNormal", poutine.block(switching, hide=["kind", "z"]))

    def drawing() -> None:
        pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 0.3).to_event(1))
        pyro.sample("kind", dist.Bernoulli(torch.tensor(0.5)))
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))

    for guide in (continuous, drawing):
        assert math.isfinite(ESTIMATORS["elbo"](Problem(switching, (), guide)).value)
    only = poutine.condition(switching, data={"loc": torch.tensor([-1.0, 1.0], dtype=torch.float64)})
    assert math.isfinite(ESTIMATORS["exact"](Problem(only)).value)


def posed() -> None:
    extent = pyro.sample("extent", dist.Uniform(torch.tensor(0.1), 1.0))
    with pyro.plate("data", 6):
        pose = pyro.sample("pose", SoftUniform(extent))
        pyro.sample("y", dist.Normal(torch.sin(X + pose), 0.3), obs=Y)


def test_marginalised_models_give_a_number():
    model = Marginalised(posed, nodes=8)
    guide = automatic("AutoNormal", poutine.block(posed, hide=["pose"]))
    assert math.isfinite(ESTIMATORS["psis"](Problem(model, (), guide)).value)
    assert math.isfinite(ESTIMATORS["ais"](Problem(model)).value)


def test_unbounded_discrete_sites_may_be_drawn():
    def model() -> None:
        k = pyro.sample("k", dist.Poisson(torch.tensor(2.0)))
        pyro.sample("y", dist.Normal(0.1 * k, 1.0).expand([6]).to_event(1), obs=Y)

    guide = lambda: pyro.sample("k", dist.Poisson(torch.tensor(2.5)))  # noqa: E731
    assert math.isfinite(ESTIMATORS["psis"](Problem(model, (), guide)).value)
