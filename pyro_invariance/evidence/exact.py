"""Evidences without an error: closed forms that a model offers, sums over finite sites."""

import math
import time
from collections.abc import Callable

import torch

from pyro_invariance.evidence.base import Evidence
from pyro_invariance.evidence.problem import Problem, checked_call
from pyro_invariance.evidence.sitewise import is_finite, latent
from pyro_invariance.evidence.watched import named
from pyro_invariance.numerics import float64
from pyro_invariance.traces import observed
from pyro_invariance.typing import BadInput


@float64()
@torch.no_grad()
def exact(problem: Problem, *, seed: int = 0) -> Evidence:
    """Log evidence in closed form; anything else is refused, not guessed.

    In this order: the model offers `log_evidence(*args)`, a tensor of one float64 number of nats; or every latent site
    has a finite support, and all of them are summed out; or there is none.

    Raises
    ------
    BadInput
        Naming the continuous site that is left, or one whose density is itself an estimate.
    """
    start = time.perf_counter()
    checked_call(problem, seed)  # as for the other estimators; nothing here is random
    problem.require_all_data()
    offered = getattr(problem.model, "log_evidence", None)
    value = _sum(problem) if offered is None else _closed_form(problem, offered)
    if not math.isfinite(value):
        names = ", ".join(observed(problem.trace))
        raise BadInput(f"model: log evidence of {value} for the data of site {names}; accepted are data that can occur")
    return Evidence(value, 0.0, "exact", method="exact", data=problem.digest, seconds=time.perf_counter() - start)


def _closed_form(problem: Problem, offered: Callable) -> float:
    with named("log_evidence"):
        value = torch.as_tensor(offered(*problem.args))
    if value.dtype != torch.float64 or value.numel() != 1:
        raise BadInput(f"log_evidence: got {value.dtype} of shape {tuple(value.shape)}; one float64 is accepted")
    return float(value)


def _sum(problem: Problem) -> float:
    for name, site in latent(problem.trace).items():
        if not is_finite(site):
            raise BadInput(
                f"exact: site {name!r} is not finite, and the model offers no log_evidence(*args); elbo, iwae, psis, "
                "laplace, ais and bdmc can serve"
            )
    if estimated := ", ".join(sorted(problem.log_joint.estimated)):
        raise BadInput(f"exact: the density of site {estimated!r} is an estimate (its distribution has log_probs)")
    with named("model"):
        return float(problem.log_joint.terms(torch.zeros(0))[1])
