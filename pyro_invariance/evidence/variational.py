"""The evidence lower bound of a Pyro model and guide, from fresh draws, with what qualifies it."""

import math
from dataclasses import dataclass
from typing import Any

import arviz as az
import pyro
import torch
from pyro.distributions import MultivariateNormal
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_invariance.evidence.base import Evidence, LogJoint, require_finite
from pyro_invariance.guides import LaplaceNormal


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
    """

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor
    log_before: Tensor | None = None

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
    guide: LaplaceNormal, model: Any, args: tuple, *, steps: int, particles: int, seed: int, rate: float = 0.05
) -> tuple[list[float], MultivariateNormal]:
    """SVI: climb the evidence lower bound with Adam, from where the guide stands.

    Returns
    -------
    list of float, MultivariateNormal
        The (noisy) bound at each step, nats, and the guide before the last tenth of the steps.
    """
    pyro.set_rng_seed(seed)
    guide(*args)  # sets up its parameters
    elbo = Trace_ELBO(num_particles=particles)(model, guide)
    optimiser = torch.optim.Adam(elbo.parameters(), lr=rate, betas=(0.8, 0.99))
    path, before = [], guide.get_posterior()
    for step in range(steps):
        if step == steps - max(1, steps // 10):
            before = guide.get_posterior()
        optimiser.zero_grad()
        loss = elbo(*args)
        loss.backward()
        optimiser.step()
        path.append(-float(loss.detach()))
    return path, before


@torch.no_grad()
def draw(
    guide: LaplaceNormal, log_joint: LogJoint, *, count: int, seed: int, before: MultivariateNormal | None = None
) -> Draws:
    """Draw afresh from a fitted guide and evaluate every term of the weights."""
    pyro.set_rng_seed(seed)
    posterior = guide.get_posterior()
    z = posterior.sample(torch.Size([count]))
    prior, likelihood = (torch.stack(t) for t in zip(*(log_joint.terms(row) for row in z), strict=True))
    return Draws(z, prior, likelihood, posterior.log_prob(z), None if before is None else before.log_prob(z))


def elbo(draws: Draws) -> Evidence:
    """Lower bound on the log evidence: the mean log weight, with its standard error, k-hat and looseness."""
    logs = draws.log_weights
    count = len(logs)
    value = require_finite(float(logs.mean()), "the evidence lower bound")
    sampled = float(logs.logsumexp(0)) - math.log(count)
    return Evidence(
        value,
        float(logs.std()) / math.sqrt(count) if count > 1 else 0.0,
        "lower",
        khat=pareto_khat(logs),
        looseness=sampled - value,
        drift=draws.drift,
    )


def pareto_khat(log_weights: Tensor) -> float | None:
    """Pareto shape of importance weights [vehtari2024pareto]; None for fewer than 25 or all-equal draws."""
    if len(log_weights) < 25 or float(log_weights.std()) < 1e-9:
        return None
    khat = float(az.psislw(log_weights.numpy().copy())[1])
    return khat if math.isfinite(khat) else None
