"""The evidence lower bound of a Pyro model and guide, from fresh draws, with what qualifies it."""

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro.distributions import TransformedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor
from torch.distributions import Distribution

from pyro_invariance.evidence.base import Evidence, LogJoint
from pyro_invariance.evidence.importance import lower_bound
from pyro_invariance.guides import SkewNormal
from pyro_invariance.traces import observed, predictive

CLIP = 1.0  # nats per unit of the guide's coordinates: one draw far out must not throw it off


@dataclass(frozen=True)
class Draws:
    """Independent draws of a guide with their log densities, nats.

    Attributes
    ----------
    z : Tensor `[S, D]`
        Unconstrained latent vectors.
    log_prior, log_likelihood, log_guide : Tensor `[S]`
        The terms of the weights.
    log_before : Tensor `[S]`, optional
        Log density of the guide as it was before the last tenth of its training.
    site_log_prior : dict of str to Tensor `[S, ...]`
        Log prior density of each latent site, in its own space.
    pointwise, replicates : dict of str to Tensor `[S, ...]`
        Log density of each datum of the observed sites, and data replicated by each draw.
    observed : dict of str to Tensor
        The data themselves.
    """

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor
    log_before: Tensor | None = None
    site_log_prior: dict[str, Tensor] = field(default_factory=dict)
    pointwise: dict[str, Tensor] = field(default_factory=dict)
    replicates: dict[str, Tensor] = field(default_factory=dict)
    observed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def log_weights(self) -> Tensor:
        """Log importance weights `[S]`, `log p(D, z) - log q(z)`."""
        return self.log_prior + self.log_likelihood - self.log_guide

    @property
    def drift(self) -> float | None:
        """How much the bound moved over the last tenth of the training, nats.

        The earlier bound is estimated from the same draws, reweighted, so that their noise cancels.
        """
        if self.log_before is None:
            return None
        share = (self.log_before - self.log_guide).softmax(0)
        before = share @ (self.log_prior + self.log_likelihood - self.log_before)
        return abs(float(self.log_weights.mean() - before))


def train(
    guide: SkewNormal, log_joint: LogJoint, *, steps: int, particles: int, seed: int, rate: float = 0.2
) -> tuple[list[float], TransformedDistribution]:
    """SVI: climb the evidence lower bound, from where the guide stands.

    In the guide's coordinates the bound curves alike in all directions, by about one, so that plain gradient steps are
    nearly Newton steps; their length falls to zero, which averages the noise of the draws [robbins1951stochastic].

    Returns
    -------
    list of float, TransformedDistribution
        The (noisy) bound at each step, nats, and the guide before the last tenth of the steps.
    """
    pyro.set_rng_seed(seed)
    guide(*log_joint.args)  # sets up its parameters
    kind, nesting = (TraceEnum_ELBO, log_joint.nesting) if log_joint.summed else (Trace_ELBO, math.inf)
    model: Any = log_joint.model
    elbo = kind(num_particles=particles, max_plate_nesting=nesting)(model, guide)
    parameters = list(guide.parameters())
    optimiser = torch.optim.SGD(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    path, before = [], guide.get_posterior().fixed
    for step in range(steps):
        if step == steps - max(1, steps // 10):
            before = guide.get_posterior().fixed
        optimiser.zero_grad()
        loss = elbo(*log_joint.args)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        schedule.step()
        path.append(-float(loss.detach()))
    return path, before


@torch.no_grad()
def draw(
    guide: SkewNormal | Distribution, log_joint: LogJoint, *, count: int, seed: int, before: Distribution | None = None
) -> Draws:
    """Draw afresh from a fitted guide, or a mixture of them, and evaluate every term of the weights."""
    pyro.set_rng_seed(seed)
    posterior = guide.get_posterior() if isinstance(guide, SkewNormal) else guide
    z = posterior.sample(torch.Size([count]))
    terms, prior, density, replicates = [], defaultdict(list), defaultdict(list), defaultdict(list)
    for row in z:
        *both, trace, parts = log_joint.evaluate(row)
        terms.append(torch.stack(both))
        for name in log_joint.transforms:
            prior[name].append(trace.nodes[name]["log_prob"])
        sites = observed(trace, log_joint.transforms)
        data = {name: site["value"] for name, site in sites.items()}
        for part in (part for part in parts if part.data):
            density["+".join(part.data)].append(part.pointwise)
        for name in sites.keys() - {name for part in parts for name in part.names}:
            site = sites[name]
            of_each = predictive(site)
            density[name].append(scale_and_mask(of_each.log_prob(site["value"]), mask=site["mask"]))
            replicates[name].append(of_each.sample())
    log_prior, log_likelihood = torch.stack(terms).unbind(1)
    return Draws(
        z,
        log_prior,
        log_likelihood,
        posterior.log_prob(z),
        None if before is None else before.log_prob(z),
        _stack(prior),
        _stack(density),
        _stack(replicates),
        data,
    )


def _stack(rows: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack(values) for name, values in rows.items()}


def elbo(draws: Draws) -> Evidence:
    """Lower bound on the log evidence: the mean log weight, with its standard error, k-hat, looseness and drift."""
    return replace(lower_bound(draws.log_weights), drift=draws.drift)
