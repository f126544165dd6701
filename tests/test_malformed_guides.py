"""Every malformed guide is an error that names the site, never a number."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import malformed
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import KINDS, WEIGHTED, Break, Small, drawn, hand, smalls
from pyro import poutine
from pyro.infer import autoguide

from pyro_invariance.evidence.problem import Problem

pytestmark = pytest.mark.usefixtures("local_parameters")

BREAKS: dict[str, Break] = {}
breaks = partial(malformed.breaks, BREAKS)


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


@pytest.mark.parametrize("name", sorted(BREAKS))
@settings(drawn, max_examples=9)
@given(small=smalls(), data=st.data())
def test_a_malformed_guide_names_what_is_wrong(name, small, data):
    malformed.check_broken(BREAKS[name], small, data.draw)
