"""A guide for a model that has none: a full-covariance normal at the best mode, trained by SVI while that helps."""

from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.laplace import Mode, laplace, maximise
from pyro_invariance.evidence.problem import Problem
from pyro_invariance.evidence.variational import draw, elbo, train
from pyro_invariance.guides import SkewNormal
from pyro_invariance.numerics import float64
from pyro_invariance.typing import BadInput, checked_seed

STARTS, STEPS, DRAWS = 4, 100, 200
TIGHT = 0.01  # nats: an evidence known better needs no training
MET = 0.5  # nats between starts that reached the same mode


@float64()
@pyro.settings.context(module_local_params=True)
def guided(problem: Problem, seed: int) -> tuple[Problem, dict[str, Any]]:
    """Return the problem with a guide, its own or one fitted here, and what is known of the fit.

    That is the `drift` and the `restart_spread` of an `Evidence`.
    """
    if problem.guide is not None:
        return problem, {}
    log_joint = problem.log_joint
    if log_joint.size == 0:
        raise BadInput("guide: the model has no continuous latent site, so that its evidence is exact: use exact")
    with poutine.seed(rng_seed=checked_seed(seed)):
        found = modes(problem, seed, STARTS)
        best = found[0]
        guide = SkewNormal(poutine.block(log_joint.model, hide=sorted(log_joint.summed)), *laplace(log_joint, best.z))
        guide(*log_joint.args)
        before = draw(guide, log_joint, count=DRAWS, seed=seed)
        drift = None
        if (elbo(before).looseness or 0.0) > TIGHT:
            state = {name: value.clone() for name, value in guide.state_dict().items()}
            _, last = train(guide, log_joint, steps=STEPS, particles=4, seed=seed)
            after = draw(guide, log_joint, count=DRAWS, seed=seed, before=last)
            drift = after.drift
            if after.log_weights.mean() < before.log_weights.mean():
                guide.load_state_dict(state)
                drift = 0.0
    spread = [best.value - mode.value for mode in found if best.value - mode.value < MET]
    return replace(problem, guide=guide), {"drift": drift, "restart_spread": max(spread)}


def modes(problem: Problem, seed: int, starts: int) -> list[Mode]:
    """Local maxima of the log joint density reached from draws of the prior, best first."""
    climbed = [maximise(problem.log_joint, z, gtol=1e-3, max_iter=200) for z in prior_draws(problem.log_joint, starts, seed)]
    return sorted(climbed, key=lambda mode: -mode.value)


@torch.no_grad()
def prior_draws(log_joint: LogJoint, count: int, seed: int) -> Tensor:
    """Independent draws `[count, D]` from the prior, unconstrained."""
    with poutine.seed(rng_seed=checked_seed(seed)):
        traces = [poutine.trace(log_joint.model).get_trace(*log_joint.args).nodes for _ in range(count)]
    return torch.stack([log_joint.pack({n: t[n]["value"] for n in log_joint.transforms}) for t in traces])
