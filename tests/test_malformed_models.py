"""Every malformed model is an error that names the site, never a number.

A random small problem that is right is broken in one of many ways, and given to an estimator drawn at random.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import malformed
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import ALL, ESTIMATORS, FAMILIES, NOT_FINITE, SUMMED, Break, Small, drawn, smalls, spoilt
from pyro import poutine
from torch import nn

from pyro_invariance.evidence.problem import Problem
from pyro_invariance.evidence.weights import elbo, iwae, psis
from pyro_invariance.typing import BadInput

pytestmark = pytest.mark.usefixtures("local_parameters")

BREAKS: dict[str, Break] = {}
breaks = partial(malformed.breaks, BREAKS)


def unguided(small: Small, **changes: Any) -> Problem:
    """Return the problem without a guide, which many broken models could not be given one for."""
    small = replace(small, **changes)
    return Problem(small.model, small.args)


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


@breaks(("exact",), "'w'")
def exact_of_a_continuous_site(small, draw):
    return small.problem()


@pytest.mark.parametrize("name", sorted(BREAKS))
@settings(drawn, max_examples=9)
@given(small=smalls(), data=st.data())
def test_a_malformed_model_names_what_is_wrong(name, small, data):
    malformed.check_broken(BREAKS[name], small, data.draw)


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
