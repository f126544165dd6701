"""What log importance weights say: their mean, how much of it can be trusted, the bounds that they give."""

import math

import arviz as az
import torch
from torch import Tensor

from pyro_invariance.evidence.base import Evidence, require_finite

FEWEST = 25  # draws that a Pareto tail is fitted to
WORST = 10.0  # k-hat where all the weight lies in so few draws that there is no tail to fit


def smooth(logs: Tensor) -> tuple[Tensor, float | None]:
    """Pareto-smoothed log weights `[S]` and their shape k-hat [vehtari2024pareto].

    As they are, and None, where there are fewer than 25 or all are equal; a k-hat of 10 where a few are all the weight.
    """
    if len(logs) < FEWEST or float(logs.max() - logs.min()) < 1e-9:
        return logs, None
    smoothed, khat = az.psislw(logs.numpy().copy(), normalize=False)
    return torch.as_tensor(smoothed), min(float(khat), WORST) if math.isfinite(khat) else WORST


def log_mean(logs: Tensor) -> float:
    """Log of the mean of weights, from their logs `[S]`."""
    return float(logs.logsumexp(0)) - math.log(len(logs))


def effective(logs: Tensor) -> float:
    """Effective number of draws, `1 / sum w^2` of normalised weights, from their logs `[S]`."""
    return float(torch.exp(-(2 * logs.log_softmax(0)).logsumexp(0)))


def jackknife(logs: Tensor) -> float:
    """Standard error of `log_mean` of independent weights, nats, from their logs `[S]`."""
    share = logs.softmax(0)
    without = torch.log1p(-share.clamp(max=1 - 1e-12))  # log of the sum without each, minus that of all
    return float(without.std(correction=0)) * math.sqrt(len(logs) - 1)


def lower_bound(logs: Tensor, particles: int = 1) -> Evidence:
    r"""Lower bound :math:`E[\log \frac1K \sum_k w_k]` from log weights `[S]`, in nats.

    With one particle it is the evidence lower bound.  The looseness is the Pareto-smoothed importance-sampled evidence
    minus the bound.
    """
    bounds = logs.reshape(-1, particles).logsumexp(1) - math.log(particles)
    value, (smoothed, khat) = require_finite(float(bounds.mean()), "the lower bound"), smooth(logs)
    return Evidence(
        value,
        float(bounds.std()) / math.sqrt(len(bounds)) if len(bounds) > 1 else 0.0,
        "lower",
        khat=khat,
        looseness=log_mean(smoothed) - value,
        ess=effective(smoothed),
        draws=len(logs),
    )
