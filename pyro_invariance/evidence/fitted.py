"""What is fitted to a model: its modes, the Laplace approximation, and a guide where the model comes without."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import TransformedDistribution
from pyro.infer.autoguide import AutoContinuous, init_to_sample
from torch import Tensor

from pyro_invariance.evidence.base import Evidence, LogJoint, require_finite
from pyro_invariance.evidence.importance import log_mean
from pyro_invariance.evidence.laplace import Mode, distinct, maximise
from pyro_invariance.evidence.laplace import laplace as normal_at
from pyro_invariance.evidence.problem import Problem, checked_call
from pyro_invariance.evidence.variational import draw, elbo, train
from pyro_invariance.guides import SkewNormal, mixture, wider
from pyro_invariance.numerics import float64
from pyro_invariance.typing import BadInput, checked_seed

STARTS, STEPS, DRAWS = 8, 100, 200
DEFENCE = 0.1  # share of a guide that is wider
TIGHT = 0.01  # nats: an evidence known better needs no training
MET = 0.5  # nats between starts that reached the same mode
FAR, VALLEY = 10.0, 0.05  # nats: a mode that far below the best holds nothing; what lies between two is lower by


class Fitted(AutoContinuous):
    """A guide that is a fixed distribution over the unconstrained vector, whatever Pyro's parameter store holds."""

    def __init__(self, model: Callable, posterior: Any) -> None:
        super().__init__(model, init_loc_fn=init_to_sample)
        self.posterior = posterior

    def get_posterior(self, *args: object, **kwargs: object) -> Any:
        """Return that distribution."""
        return self.posterior


@float64()
def guided(problem: Problem, seed: int, *, defended: bool = False) -> tuple[Problem, dict[str, Any]]:
    """Return the problem with a guide, its own or one fitted here, and what is known of the fit.

    That is the `drift` and the `restart_spread` of an `Evidence`.  The guide is a mixture of one normal, perhaps
    skewed, for each mode that climbs from draws of the prior find.  `defended` gives a tenth of each to one of twice
    its scale, which looks where a guide that fits well never does: weights keep their tails [hesterberg1995weighted].
    """
    if problem.guide is not None:
        return problem, {}
    log_joint = problem.log_joint
    if log_joint.size == 0:
        raise BadInput("guide: the model has no continuous latent site, so that its evidence is exact: use exact")
    found = modes(problem, seed, STARTS)
    hidden: Callable = poutine.block(log_joint.model, hide=sorted(log_joint.summed))
    kept = distinct(log_joint, found, FAR, VALLEY)
    parts = [_part(hidden, log_joint, mode, seed + 1 + k) for k, mode in enumerate(kept)]
    masses = torch.tensor([part.log_mass for part in parts]).nan_to_num(nan=-math.inf)
    shares = masses if masses.isfinite().any() else torch.zeros_like(masses)  # weights will say what is wrong
    posteriors = [part.posterior for part in parts]
    if defended:
        posteriors += [wider(posterior) for posterior in posteriors]
        shares = torch.cat([shares + math.log1p(-DEFENCE), shares + math.log(DEFENCE)])
    guide = Fitted(hidden, mixture(posteriors, shares) if len(posteriors) > 1 else posteriors[0])
    with poutine.seed(rng_seed=seed):
        guide(*log_joint.args)  # sets up its sites
    drifts = [part.drift for part in parts if part.drift is not None]
    return replace(problem, guide=guide), {"drift": max(drifts, default=None), "restart_spread": _spread(found)}


class _Part(NamedTuple):
    """A guide at one mode: its distribution, the log of the mass that it finds there, its last move, nats."""

    posterior: TransformedDistribution
    log_mass: float
    drift: float | None


@pyro.settings.context(module_local_params=True)
def _part(model: Callable, log_joint: LogJoint, mode: Mode, seed: int) -> _Part:
    """Fit a guide that starts at the Laplace approximation; training that does not help is taken back."""
    with poutine.seed(rng_seed=checked_seed(seed)):
        guide = SkewNormal(model, *normal_at(log_joint, mode.z))
        guide(*log_joint.args)
        begin = guide.get_posterior().fixed
        drawn = draw(guide, log_joint, count=DRAWS, seed=seed)
        if (elbo(drawn).looseness or 0.0) <= TIGHT:
            return _Part(begin, log_mean(drawn.log_weights), None)
        _, last = train(guide, log_joint, steps=STEPS, particles=2, seed=seed)
        after = draw(guide, log_joint, count=DRAWS, seed=seed, before=last)
    if after.log_weights.mean() < drawn.log_weights.mean():
        return _Part(begin, log_mean(drawn.log_weights), 0.0)
    return _Part(guide.get_posterior().fixed, log_mean(after.log_weights), after.drift)


@float64()
def laplace(problem: Problem, *, seed: int, starts: int = STARTS) -> Evidence:
    r"""Laplace's estimate, :math:`\log p(D, \hat z) + \frac D2 \log 2\pi - \frac12 \log\det H` [mackay1992bayesian].

    At the best mode of the log joint density in unconstrained space that climbs from `starts` draws of the prior reach;
    `H` is the negative Hessian there, by central differences of the gradient.  On neither side, and blind to all but
    that mode; exact where the posterior is normal.

    Raises
    ------
    FloatingPointError
        If `H` is not positive definite: the climb ended on a ridge.
    """
    begin = time.perf_counter()
    checked_call(problem, seed)
    log_joint = problem.log_joint
    if log_joint.size == 0:
        raise BadInput("model: it has no continuous latent site, so that its evidence is exact: use exact")
    found = modes(problem, seed, starts)
    curvature = torch.linalg.eigvalsh(negative_hessian(log_joint, found[0].z))
    if not float(curvature[0]) > 0:
        raise FloatingPointError(f"laplace: the curvature at the mode is {float(curvature[0]):.3g} along one direction")
    value = sum(log_joint.terms(found[0].z)) + 0.5 * (math.log(2 * math.pi) - curvature.log()).sum()
    return Evidence(
        require_finite(float(value), "the Laplace estimate"),
        0.0,
        "estimate",
        restart_spread=_spread(found),
        method="laplace",
        data=problem.digest,
        seconds=time.perf_counter() - begin,
    )


def negative_hessian(log_joint: LogJoint, z: Tensor, step: float = 1e-4) -> Tensor:
    """Negative second derivatives `[D, D]` of the log joint density, by central differences of its gradient."""

    def gradient(at: Tensor) -> Tensor:
        point = at.requires_grad_()
        return torch.autograd.grad(sum(log_joint.terms(point)), point)[0]  # type: ignore[arg-type]

    rows = [(gradient(z - offset) - gradient(z + offset)) / (2 * step) for offset in step * torch.eye(len(z))]
    hessian = torch.stack(rows)
    return (hessian + hessian.T) / 2


def _spread(found: list[Mode]) -> float:
    """How far apart the starts ended that reached the best mode, nats."""
    return max(found[0].value - mode.value for mode in found if found[0].value - mode.value < MET)


def modes(problem: Problem, seed: int, starts: int) -> list[Mode]:
    """Local maxima of the log joint density reached from draws of the prior, best first."""
    begins = prior_draws(problem.log_joint, starts, seed)
    climbed = [maximise(problem.log_joint, z, gtol=1e-3, max_iter=200) for z in begins]
    return sorted(climbed, key=lambda mode: -mode.value)


@torch.no_grad()
def prior_draws(log_joint: LogJoint, count: int, seed: int) -> Tensor:
    """Independent draws `[count, D]` from the prior, unconstrained."""
    with poutine.seed(rng_seed=checked_seed(seed)):
        traces: list[Any] = [poutine.trace(log_joint.model).get_trace(*log_joint.args).nodes for _ in range(count)]
    return torch.stack([log_joint.pack({n: t[n]["value"] for n in log_joint.transforms}) for t in traces])
