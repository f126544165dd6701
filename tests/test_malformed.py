"""Every malformed call is an error that names the site, never a number; and no call that is right is refused.

A random small problem that is right is broken in one of many ways, and given to an estimator drawn at random.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import autoguide
from torch import Tensor, nn

from pyro_invariance.densities import SoftUniform
from pyro_invariance.evidence.annealed import ais, bdmc
from pyro_invariance.evidence.exact import exact
from pyro_invariance.evidence.problem import Problem
from pyro_invariance.evidence.weights import elbo, iwae, psis
from pyro_invariance.sites import Marginalised
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


@pytest.fixture(autouse=True, scope="module")
def local_parameters() -> Any:
    with pyro.settings.context(module_local_params=True):
        yield


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


# Ways to break it: the estimators that they are for, what the message must name, and the broken problem.

Break = tuple[tuple[str, ...], str, Callable[[Small, Callable], Problem]]
BREAKS: dict[str, Break] = {}
ALL = (*SUMMED, "exact")


def breaks(estimators: tuple[str, ...], named: str) -> Callable:
    """Register a way to break a problem, which gets it and the function to draw with."""

    def register(broken: Callable) -> Callable:
        BREAKS[broken.__name__] = (estimators, named, broken)
        return broken

    return register


def spoilt(values: Tensor, with_what: float, draw: Callable) -> Tensor:
    values = values.clone()
    values.view(-1)[draw(st.integers(0, values.numel() - 1))] = with_what
    return values


def unguided(small: Small, **changes: Any) -> Problem:
    """Return the problem without a guide, which many broken models could not be given one for."""
    small = replace(small, **changes)
    return Problem(small.model, small.args)


def hand(small: Small, **changes: Any) -> Problem:
    return replace(small, kind="by_hand", **changes).problem()


NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])


@breaks(ALL, "'y'")
def data_of_another_shape(small, draw):
    n = len(small.y)
    shapes = [small.y[:, None], small.y[0], small.y[:1], small.y[None, :, None], small.y[:-1], torch.cat([small.y] * 2)]
    return unguided(small, y=draw(st.sampled_from([y.reshape(y.shape) for y in shapes if y.shape != (n,)])))


@breaks(ALL, "'y'")
def data_broadcast_against_a_column(small, draw):
    return unguided(small, family="linear", predictor=lambda value: value[:, None], y=small.x[:, 0])


@breaks(ALL, "'y'")
def no_data_at_all(small, draw):
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0).expand([0]).to_event(1), obs=y)

    return Problem(model, (small.x, torch.zeros(0)))


@breaks(ALL, "'data'|after site 'z'")
def plate_of_another_size(small, draw):
    return unguided(small, size=len(small.y) + draw(st.sampled_from([-1, 1, 7])))


@breaks(ALL, "'data'|\"data\"|groups|clash")
def plates_in_one_dimension(small, draw):
    def model(x, y):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("clash", len(y), dim=-1), pyro.plate("data", len(y), dim=-1):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    return Problem(model, small.args)


@breaks(ALL, "'y'")
def data_not_finite(small, draw):
    return unguided(small, y=spoilt(small.y, draw(NOT_FINITE), draw))


@breaks(ALL, "'w'")
def prior_not_finite(small, draw):
    return unguided(small, **{draw(st.sampled_from(["loc", "scale"])): torch.tensor(draw(NOT_FINITE))})


@breaks(ALL, "'w'")
def prior_of_negative_scale(small, draw):
    return unguided(small, scale=torch.tensor(-draw(st.floats(0.1, 9.0))))


@breaks(ALL, "'y'")
def covariate_not_finite(small, draw):
    return unguided(small, x=spoilt(small.x, math.nan, draw), family=draw(st.sampled_from(FAMILIES[:3])))


@breaks(ALL, "'y'")
def data_outside_of_the_support(small, draw):
    family = draw(st.sampled_from(["logistic", "counts"]))
    value = draw(st.sampled_from([-1.0, 0.5] if family == "counts" else [2.0, -1.0, 0.5]))
    return unguided(small, family=family, y=spoilt((small.y > 0).double(), value, draw))


@breaks(ALL, "'y'")
def data_of_numpy_or_none(small, draw):
    return unguided(small, y=draw(st.sampled_from([small.y.numpy(), small.y.tolist(), 1.0])))


@breaks(ALL, "'w'")
def improper_uniform(small, draw):
    support = draw(st.sampled_from([dist.constraints.real, dist.constraints.positive]))
    flat = dist.ImproperUniform(dist.constraints.independent(support, 1), (), (small.x.shape[1],))
    return unguided(small, prior=lambda fn: flat)


@breaks(ALL, "'w'")
def masked_prior(small, draw):
    return unguided(small, prior=lambda fn: fn.mask(False))


@breaks(ALL, "'w'")
def prior_masked_by_a_handler(small, draw):
    return Problem(poutine.mask(small.model, mask=False), small.args)


@breaks(ALL, "'w'")
def prior_without_end(small, draw):
    return unguided(small, prior=lambda fn: dist.Uniform(0.0, math.inf).expand(fn.shape()).to_event(1))


@breaks(ALL, "'w'")
def prior_that_is_a_point(small, draw):
    return unguided(small, prior=lambda fn: dist.Delta(torch.zeros(fn.shape()), event_dim=1))


@breaks(ALL, "'w'")
def prior_with_a_shifted_support(small, draw):
    positive, shift = dist.Exponential(torch.ones(small.x.shape[1])), dist.transforms.AffineTransform(2.0, 1.0)
    return unguided(small, prior=lambda fn: dist.TransformedDistribution(positive, [shift]).to_event(1))


@breaks(ALL, "'b'")
def support_that_depends_on_a_site(small, draw):
    def model(x, y):
        w = pyro.sample("w", dist.LogNormal(0.0, 1.0))
        b = pyro.sample("b", draw_one(w))
        pyro.sample("y", dist.Normal(b, 1.0).expand(y.shape).to_event(1), obs=y)

    draw_one = draw(st.sampled_from([lambda w: dist.Uniform(0.0, w), lambda w: dist.Pareto(w, 2.0)]))
    return Problem(model, small.args)


@breaks(ALL, "weight")
def pyro_param(small, draw):
    kinds = [
        lambda: pyro.param("weight", torch.tensor(1.0)),
        lambda: pyro.param("weight", torch.tensor(1.0), constraint=dist.constraints.positive),
        lambda: pyro.module("net", nn.Linear(2, 2)),
    ]
    return unguided(small, before=draw(st.sampled_from(kinds)))


@breaks(ALL, "weight")
def module_with_parameters(small, draw):
    class Net(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            value = torch.tensor(0.5)
            self.weight = draw(st.sampled_from([nn.Parameter, pyro.nn.PyroParam]))(value)

        def forward(self, x, y):
            small.model(x * self.weight, y)

    return Problem(Net(), small.args)


@breaks(ALL, "'y'")
def parameter_in_a_closure(small, draw):
    weight = nn.Parameter(torch.tensor(0.5))
    return unguided(small, predictor=lambda value: value * weight)


@breaks(ALL, "'w'")
def parameter_in_a_prior(small, draw):
    return unguided(small, loc=nn.Parameter(torch.tensor(0.5)))


@breaks(ALL, "observes data")
def no_observed_site(small, draw):
    return unguided(small, observe=False)


@breaks(ALL, "'w'|'y'")
def a_name_twice(small, draw):
    name = draw(st.sampled_from(["w", "y"]))
    return unguided(small, before=lambda: pyro.sample(name, dist.Normal(0.0, 1.0)))


@breaks(ALL, "'w'|'y'|'a'")
def site_of_some_runs(small, draw):
    def before():
        if pyro.sample("a", dist.Normal(0.0, 1.0), infer={}) > 0:
            pyro.sample("w", dist.Normal(0.0, 1.0))

    return unguided(small, before=before, label="w2", family="linear")


@breaks(ALL, "'y' is float32")
def data_in_single_precision(small, draw):
    return unguided(small, y=small.y.float())


@breaks(ALL, "'w' is float32")
def prior_in_single_precision(small, draw):
    return unguided(small, loc=small.loc.float(), scale=small.scale.float())


@breaks(ALL, "after site 'w'.*dtype")
def covariates_in_single_precision(small, draw):
    return unguided(small, x=small.x.float())


@breaks(ALL, "first site|after site 'w'")
def model_that_raises(small, draw):
    def fail(*_):
        raise draw(st.sampled_from([ValueError, RuntimeError, KeyError, ZeroDivisionError, AssertionError]))("no")

    return unguided(small, **{draw(st.sampled_from(["before", "predictor"])): fail})


@breaks(ALL, "model: got")
def model_not_callable(small, draw):
    return Problem(draw(st.sampled_from([None, 3, "model", small.y])), small.args)


@breaks(ALL, "args: got")
def args_no_tuple(small, draw):
    return Problem(small.model, draw(st.sampled_from([small.y, [small.x, small.y], None, {"x": small.x}])))


@breaks(ALL, "argument")
def another_number_of_args(small, draw):
    return Problem(small.model, draw(st.sampled_from([(), (small.x,), (small.x, small.y, small.y)])))


@breaks(SUMMED, "'k'")
def unbounded_discrete_site(small, draw):
    prior = draw(st.sampled_from([dist.Poisson(torch.tensor(2.0)), dist.Geometric(torch.tensor(0.4))]))
    broken = replace(small, before=lambda: pyro.sample("k", prior))
    return Problem(broken.model, broken.args, draw(st.sampled_from([None, small.by_hand])))


@breaks(ALL, "'k'|'w'")
def continuous_site_marked_for_enumeration(small, draw):
    infer = draw(st.sampled_from([{"enumerate": "parallel"}, {"enumerate": "parallel", "num_samples": 3}]))
    return unguided(small, before=lambda: pyro.sample("k", dist.Normal(0.0, 1.0), infer=infer))


@breaks(ALL, "'data'")
def minibatches(small, draw):
    n = len(small.y)
    plate = draw(st.sampled_from([{"subsample_size": 2}, {"subsample": torch.arange(2)}]))

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", n, **plate) as ids:
            pyro.sample("y", dist.Normal(w, 1.0), obs=y[ids])

    return Problem(model, small.args)


@breaks(ALL, "'data'")
def wrong_subsample_scale(small, draw):
    n = len(small.y)
    return unguided(small, size=draw(st.integers(n + 1, 5 * n)), plate={"subsample": torch.arange(n)})


@breaks(ALL, "'w'|'y'")
def tempered(small, draw):
    n = len(small.y)
    scale = draw(st.sampled_from([0.5, 2.0, torch.tensor(0.1), torch.linspace(0.5, 1.5, n)]))
    if torch.is_tensor(scale) and scale.dim():

        def model(x, y):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", n), poutine.scale(scale=scale):
                pyro.sample("y", dist.Normal(w, 1.0), obs=y)

        return Problem(model, small.args)
    return Problem(poutine.scale(small.model, scale=scale), small.args)


@breaks(ALL, "'y'")
def random_outside_of_sites(small, draw):
    return unguided(small, predictor=lambda value: value + torch.rand(()), family=draw(st.sampled_from(FAMILIES[:3])))


@breaks(ALL, "'y'")
def model_with_a_state(small, draw):
    calls = []

    def counted(value):
        calls.append(0)
        return value + 0.1 * len(calls)

    return unguided(small, predictor=counted)


@breaks(ALL, "'y'")
def site_hidden_by_a_handler(small, draw):
    return Problem(poutine.block(small.model, hide=["w"]), small.args)


@breaks(WEIGHTED, "guide: got")
def guide_not_callable(small, draw):
    return Problem(small.model, small.args, draw(st.sampled_from([3, "guide", small.y])))


@breaks(WEIGHTED, "'extra'")
def guide_with_another_site(small, draw):
    auxiliary = draw(st.booleans())
    infer = {"is_auxiliary": True} if auxiliary else {}
    return hand(small, guide_before=lambda: pyro.sample("extra", dist.Normal(0.0, 1.0), infer=infer))


@breaks(WEIGHTED, "'w'")
def guide_without_a_site(small, draw):
    return hand(small, guide_site=lambda name, fn: name == "w" or pyro.sample(name, fn))


@breaks(WEIGHTED, "'v'")
def guide_with_a_renamed_site(small, draw):
    return hand(small, guide_site=lambda name, fn: pyro.sample({"w": "v"}.get(name, name), fn))


def instead(small: Small, name: str, other: Callable) -> Problem:
    """Return the problem with another distribution at one site of the guide."""
    return hand(small, guide_site=lambda site, fn: pyro.sample(site, other(fn) if site == name else fn))


@breaks(WEIGHTED, "'w'")
def guide_of_another_shape(small, draw):
    d = small.x.shape[1]
    shapes = [[d + 1], [1, d], [d, 1], [2, d]]
    shape = draw(st.sampled_from(shapes))
    return instead(small, "w", lambda fn: dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))


@breaks(WEIGHTED, "'tau'")
def guide_of_another_support(small, draw):
    others = [
        dist.Normal(0.5, 0.1),
        dist.Uniform(-0.1, 3.0),
        dist.StudentT(3.0, 2.0, 0.1),
        dist.Poisson(torch.tensor(2.0)),
        dist.Delta(torch.tensor(-1.0)),
    ]
    other = draw(st.sampled_from(others))
    return instead(replace(small, family="hierarchical"), "tau", lambda fn: other)


@breaks(WEIGHTED, "'r'")
def guide_wider_than_an_interval(small, draw):
    other = draw(st.sampled_from([(0.0, 1.1), (-0.1, 1.0), (-5.0, 5.0)]))

    def model(x, y):
        r = pyro.sample("r", dist.Uniform(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(r, 1.0).expand(y.shape).to_event(1), obs=y)

    return Problem(model, small.args, lambda x, y: pyro.sample("r", dist.Uniform(*other)))


@breaks(WEIGHTED, "'k'")
def guide_with_more_classes(small, draw):
    def model(x, y):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(k.double(), 1.0).expand(y.shape).to_event(1), obs=y)

    others = [dist.Categorical(torch.ones(3)), dist.Poisson(torch.tensor(1.0)), dist.Normal(0.0, 1.0)]
    other = draw(st.sampled_from(others))
    return Problem(model, small.args, lambda x, y: pyro.sample("k", other))


@breaks(WEIGHTED, "'w'|'a'")
def guide_of_point_masses(small, draw):
    if draw(st.booleans()):
        return instead(small, "w", lambda fn: dist.Delta(fn.mean, event_dim=1))
    guide = autoguide.AutoDelta(poutine.block(small.model, hide=["z"]))
    guide(*small.args)
    return Problem(small.model, small.args, guide)


@breaks(WEIGHTED, "'w'")
def point_mass_behind_a_spare_number(small, draw):
    d = small.x.shape[1]
    spare = dist.Normal(torch.zeros(d), 1.0).to_event(1)
    before = lambda: pyro.sample("spare", spare, infer={"is_auxiliary": True})  # noqa: E731
    point = lambda fn: dist.Delta(fn.mean, event_dim=1)  # noqa: E731
    site = lambda name, fn: pyro.sample(name, point(fn) if name == "w" else fn)  # noqa: E731
    return hand(small, guide_before=before, guide_site=site)


@breaks(WEIGHTED, "guide: it was never run")
def guide_never_run(small, draw):
    kinds = ["AutoNormal", "AutoMultivariateNormal", "AutoDiagonalNormal", "AutoLowRankMultivariateNormal"]
    guide = getattr(autoguide, draw(st.sampled_from(kinds)))(small.model)
    return Problem(small.model, small.args, guide)


@breaks(WEIGHTED, "'q'|'w'")
def guide_of_another_model(small, draw):
    def other(x, y):
        q = pyro.sample("q", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(q, 1.0).expand(y.shape).to_event(1), obs=y)

    guide = getattr(autoguide, draw(st.sampled_from(KINDS[1:])))(other)
    guide(*small.args)
    return Problem(small.model, small.args, guide)


@breaks(WEIGHTED, "'w|Normal_latent'")
def guide_not_finite(small, draw):
    if draw(st.booleans()):
        return instead(small, "w", lambda fn: dist.Normal(fn.mean * math.nan, 1.0).to_event(1))
    guide = replace(small, kind=draw(st.sampled_from(KINDS[1:]))).guide()
    with torch.no_grad():
        for value in guide.parameters():
            value.fill_(math.nan)
    return Problem(small.model, small.args, guide)


@breaks(WEIGHTED, "('w.*|'tau.*|Normal_latent') is float32")
def guide_in_single_precision(small, draw):
    guide = replace(small, kind=draw(st.sampled_from(KINDS[1:]))).guide().float()
    return Problem(small.model, small.args, guide)


@breaks(WEIGHTED, "'w'")
def guide_scaled_or_masked(small, draw):
    handler = draw(st.sampled_from([lambda g: poutine.scale(g, scale=0.5), lambda g: poutine.mask(g, mask=False)]))
    return Problem(small.model, small.args, handler(small.by_hand))


@breaks(WEIGHTED, "'bonus'")
def guide_with_a_factor(small, draw):
    return hand(small, guide_before=lambda: pyro.factor("bonus", torch.tensor(1.0), has_rsample=True))


@breaks(WEIGHTED, "guide: .*no")
def guide_that_raises(small, draw):
    def fail():
        raise draw(st.sampled_from([ValueError, RuntimeError, KeyError]))("no")

    return hand(small, guide_before=fail)


@breaks(("exact",), "'w'")
def exact_of_a_continuous_site(small, draw):
    return small.problem()


def check_refused(problem: Callable[[], Problem], named: str, estimator: str) -> None:
    """Raise unless an estimator refuses a problem in one readable line that names what is wrong."""
    pyro.clear_param_store()
    with pytest.raises(BadInput, match=named) as caught:
        ESTIMATORS[estimator](problem())
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 500


drawn = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


EACH = math.ceil(500 / len(BREAKS))  # malformed calls of each kind, 500 in all


@pytest.mark.parametrize("name", sorted(BREAKS))
@settings(drawn, max_examples=EACH)
@given(small=smalls(), data=st.data())
def test_a_malformed_call_names_what_is_wrong(name, small, data):
    estimators, named, broken = BREAKS[name]
    estimator = data.draw(st.sampled_from(estimators))
    check_refused(lambda: broken(small, data.draw), named, estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("seed", [-1, 2**32, None, "a", 0.5])
def test_seeds_that_are_none(estimator, seed):
    small = Small("linear", torch.ones(3, 1), torch.ones(3), torch.tensor(0.0), torch.tensor(1.0), 3)
    if estimator == "exact":
        small.model = lambda x, y: pyro.sample("y", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=y)
    with pytest.raises(BadInput, match="seed: got"):
        ESTIMATORS[estimator](small.problem(), seed=seed)


@pytest.mark.parametrize("draws", [1, 0, -3])
@pytest.mark.parametrize("estimator", [elbo, psis, iwae])
def test_draws_that_are_none(estimator, draws):
    small = Small("linear", torch.ones(3, 1), torch.ones(3), torch.tensor(0.0), torch.tensor(1.0), 3)
    with pytest.raises(BadInput, match=f"got {draws}|of {draws} draws"):
        estimator(small.problem(), seed=0, draws=draws)


# The converse: calls that are right.

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
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", 3):
        pyro.sample("y", dist.MultivariateNormal(w, torch.eye(2)), obs=Y.reshape(3, 2))


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
    if (kind, name) == ("AutoIAFNormal", "rows_of_a_vector"):
        pytest.skip("Pyro's flow needs three numbers or more")
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
