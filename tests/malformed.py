"""Random small problems that are right, what breaks them, and the estimators that they are given to."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import autoguide
from torch import Tensor

from pyro_invariance.evidence.annealed import ais, bdmc
from pyro_invariance.evidence.exact import exact
from pyro_invariance.evidence.problem import Problem
from pyro_invariance.evidence.weights import elbo, iwae, psis
from pyro_invariance.typing import BadInput

DRAWS = 26

ESTIMATORS: dict[str, Callable] = {
    "elbo": lambda problem, seed=0: elbo(problem, seed=seed, draws=DRAWS),
    "iwae": lambda problem, seed=0: iwae(problem, seed=seed, draws=DRAWS, particles=2),
    "psis": lambda problem, seed=0: psis(problem, seed=seed, draws=DRAWS),
    "ais": lambda problem, seed=0: ais(problem, seed=seed, chains=8),
    "bdmc": lambda problem, seed=0: bdmc(problem, seed=seed, chains=8),
    "exact": lambda problem, seed=0: exact(problem, seed=seed),
}
WEIGHTED = ("elbo", "iwae", "psis")
SUMMED = (*WEIGHTED, "ais", "bdmc")

# A small problem that is right, and everything about it that can be broken.


@dataclass
class Small:
    """One of some models with sites `w` and `y`, `tau` and `a` in one of them, and a guide of one of some kinds."""

    family: str
    x: Tensor
    y: Tensor
    loc: Any  # of the prior of w
    scale: Any
    size: int  # of the plate of the data
    kind: str = "by_hand"  # of the guide
    prior: Callable = lambda fn: fn
    before: Callable = lambda: None  # runs first
    predictor: Callable = lambda value: value
    label: str = "w"  # name of the first site
    observe: bool = True
    plate: dict = field(default_factory=dict)
    guide_site: Callable = lambda name, fn: pyro.sample(name, fn)
    guide_before: Callable = lambda: None

    def model(self, x: Tensor, y: Tensor) -> None:
        self.before()
        d = x.shape[1]
        w = pyro.sample(self.label, self.prior(dist.Normal(self.loc, self.scale).expand([d]).to_event(1)))
        predictor = self.predictor(x @ w)
        if self.family == "hierarchical":
            tau = pyro.sample("tau", dist.LogNormal(torch.tensor(0.0), 0.5))
            with pyro.plate("groups", 3):
                a = pyro.sample("a", dist.Normal(torch.tensor(0.0), tau))
            predictor = predictor + a[torch.arange(len(x)) % 3]
        with pyro.plate("data", self.size, **self.plate):
            if self.family == "mixture":
                z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
                predictor = predictor + torch.tensor([-1.0, 1.0])[z]
            pyro.sample("y", self.likelihood(predictor), obs=y if self.observe else None)

    def likelihood(self, predictor: Tensor) -> Any:
        if self.family == "logistic":
            return dist.Bernoulli(logits=predictor)
        if self.family == "counts":
            return dist.Poisson(predictor.clamp(max=5).exp())
        return dist.Normal(predictor, 0.5)

    @property
    def args(self) -> tuple:
        return self.x, self.y

    def by_hand(self, x: Tensor, y: Tensor) -> None:
        self.guide_before()
        d = x.shape[1]
        self.guide_site("w", dist.Normal(0.1 * torch.ones(d), 0.4).to_event(1))
        if self.family == "hierarchical":
            self.guide_site("tau", dist.LogNormal(torch.tensor(-0.1), 0.3))
            with pyro.plate("groups", 3):
                self.guide_site("a", dist.Normal(torch.zeros(3), 0.5))

    def guide(self) -> Callable:
        if self.kind == "by_hand":
            return self.by_hand
        found = getattr(autoguide, self.kind)(poutine.block(self.model, hide=["z"]), init_scale=0.3)
        found(*self.args)
        return found

    def problem(self) -> Problem:
        return Problem(self.model, self.args, self.guide())


KINDS = ("by_hand", "AutoNormal", "AutoMultivariateNormal")
FAMILIES = ("linear", "logistic", "counts", "mixture", "hierarchical")


@st.composite
def smalls(draw: Callable, families: tuple = FAMILIES, kinds: tuple = KINDS) -> Small:
    n, d = draw(st.integers(3, 7)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = torch.randn(n, d, generator=generator)
    family = draw(st.sampled_from(families))
    y = x.sum(1) + 0.5 * torch.randn(n, generator=generator)
    y = {"logistic": (y > 0).double(), "counts": y.clamp(0, 4).exp().round()}.get(family, y)
    return Small(family, x, y, torch.tensor(0.0), torch.tensor(1.0), n, kind=draw(st.sampled_from(kinds)))


Break = tuple[tuple[str, ...], str, Callable[[Small, Callable], Problem]]
ALL = (*SUMMED, "exact")


def breaks(kinds: dict[str, Break], estimators: tuple[str, ...], named: str) -> Callable:
    """Register a way to break a problem: the estimators that it is for, and what the message must name."""

    def register(broken: Callable[[Small, Callable], Problem]) -> Callable:
        kinds[broken.__name__] = (estimators, named, broken)
        return broken

    return register


def spoilt(values: Tensor, with_what: float, draw: Callable) -> Tensor:
    values = values.clone()
    values.view(-1)[draw(st.integers(0, values.numel() - 1))] = with_what
    return values


def hand(small: Small, **changes: Any) -> Problem:
    return replace(small, kind="by_hand", **changes).problem()


NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])


def check_refused(problem: Callable[[], Problem], named: str, estimator: str) -> None:
    """Raise unless an estimator refuses a problem in one readable line that names what is wrong."""
    pyro.clear_param_store()
    with pytest.raises(BadInput, match=named) as caught:
        ESTIMATORS[estimator](problem())
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 500


def check_broken(kind: Break, small: Small, draw: Callable) -> None:
    """Raise unless an estimator drawn at random refuses a problem that is broken in a way."""
    estimators, named, broken = kind
    check_refused(lambda: broken(small, draw), named, draw(st.sampled_from(estimators)))


drawn = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
