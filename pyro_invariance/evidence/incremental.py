r"""Posterior draws where evaluating is cheap: importance sampling, the proposal amended where weights are large.

Incremental mixture importance sampling [raftery2010estimating]: draws of the prior and of a guide, then, as long as
few of them carry the weight, normal draws around the heaviest one.  All are weighed against the mixture of everything
that they were drawn from,

.. math:: w_i \propto p(D, z_i) \Big/ \sum_k n_k q_k(z_i)

so that the prior bounds the weights wherever the guide has nothing.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import arviz as az
import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor

from pyro_invariance.evidence.base import KHAT, LogJoint
from pyro_invariance.evidence.mapped import Draws, Mapped
from pyro_invariance.typing import BadInput

OWN, AROUND, ROUNDS = 200, 50, 10  # draws of the guide, around the heaviest point, and how often
ENOUGH = 300.0  # effective draws
RIDGE = 1e-6  # share of the prior variances, so that a few points have a covariance


@dataclass(frozen=True)
class Points:
    """Unconstrained vectors `[S, D]` with their log prior density and log likelihood `[S]`, nats."""

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor

    @property
    def log_joint(self) -> Tensor:
        """Unnormalised log posterior density `[S]`."""
        return self.log_prior + self.log_likelihood

    def __add__(self, other: "Points") -> "Points":
        return Points(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in vars(self)))


def evaluator(log_joint: LogJoint) -> Callable[[Tensor], Points]:
    """Function that evaluates the log joint density of many vectors `[S, D]`, at once where the model allows it."""

    def terms(draws: Draws) -> Draws:
        return dict(zip(("prior", "likelihood"), log_joint.terms(draws["z"]), strict=True))

    together = Mapped(terms)

    @torch.no_grad()
    def evaluate(z: Tensor) -> Points:
        try:
            found = together({"z": z})
        except BadInput as error:
            if not isinstance(error.__cause__, torch.linalg.LinAlgError):
                raise
            if len(z) == 1:  # its covariance has no Cholesky factor: infinitely unlikely
                return Points(z, torch.zeros(1), torch.full((1,), -math.inf))
            return functools.reduce(Points.__add__, map(evaluate, z.split(1)))
        prior, likelihood = found["prior"], found["likelihood"]
        none = ~torch.isfinite(prior + likelihood)
        return Points(z, prior.masked_fill(none, 0.0), likelihood.masked_fill(none, -math.inf))

    return evaluate


@torch.no_grad()
def posterior(evaluate: Callable[[Tensor], Points], prior: Points, guide: Any, count: int) -> Tensor:
    """Draw vectors `[count, D]` from the posterior, given draws of the prior and a guide's distribution.

    They are resampled from some hundred weighted ones, so that some are equal.  Where the weights have no usable mean,
    as with very many sites, they are the guide's own.
    """
    z, logs = _weighted(evaluate, prior, guide)
    smoothed, khat = az.psislw(logs.numpy().copy())
    if khat > KHAT:
        return guide.sample(torch.Size([count]))
    at = (torch.arange(count) + torch.rand(())) / count  # systematically, and then in random order
    chosen = torch.searchsorted(torch.as_tensor(smoothed).softmax(0).cumsum(0), at).clamp(max=len(z) - 1)
    return z[chosen[torch.randperm(count)]]


def _weighted(evaluate: Callable[[Tensor], Points], prior: Points, guide: Any) -> tuple[Tensor, Tensor]:
    """Points and their log weights."""
    scale = prior.z.std(0)
    points, proposals = prior + evaluate(guide.sample(torch.Size([OWN]))), [(OWN, guide)]
    for last in [False] * ROUNDS + [True]:
        mixed = [math.log(len(prior.z)) + points.log_prior] + [math.log(n) + q.log_prob(points.z) for n, q in proposals]
        logs = points.log_joint - torch.stack(mixed).logsumexp(0)
        share = logs.softmax(0)
        if last or float(1 / share.square().sum()) > ENOUGH:
            break
        centre = points.z[share.argmax()]
        near = ((points.z - centre) / scale).square().sum(1).argsort()[:AROUND]
        weights, away = share[near] + 1 / len(share), points.z[near] - centre
        covariance = (away.T * weights) @ away / weights.sum() + RIDGE * scale.square().diag()
        around = MultivariateNormal(centre, covariance)
        proposals.append((AROUND, around))
        points = points + evaluate(around.sample(torch.Size([AROUND])))
    return points.z, logs
