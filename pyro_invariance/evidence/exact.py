"""Evidences without an error: closed forms that a model offers, sums over finite sites."""

import time

import torch

from pyro_invariance.evidence.base import Evidence, require_finite
from pyro_invariance.evidence.checks import is_finite, latent
from pyro_invariance.evidence.problem import Problem
from pyro_invariance.numerics import float64
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
        Naming the continuous site that is left.
    """
    start = time.perf_counter()
    problem.require_all_data()
    offered = getattr(problem.model, "log_evidence", None)
    if offered is not None:
        value = torch.as_tensor(offered(*problem.args))
        if value.dtype != torch.float64 or value.numel() != 1:
            raise BadInput(f"log_evidence: got {value.dtype} of shape {tuple(value.shape)}; one float64 is accepted")
    else:
        left = [name for name, site in latent(problem.trace).items() if not is_finite(site)]
        if left:
            raise BadInput(
                f"exact: site {left[0]!r} is not finite, and the model offers no log_evidence(*args); elbo, iwae, psis, "
                "laplace, ais and bdmc can serve"
            )
        value = torch.as_tensor(problem.log_joint.terms(torch.zeros(0)))[1]
    return Evidence(
        require_finite(float(value), "the evidence"),
        0.0,
        "exact",
        method="exact",
        data=problem.digest,
        seconds=time.perf_counter() - start,
    )
