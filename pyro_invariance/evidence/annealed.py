r"""Annealed importance sampling, and both sides of the evidence on data drawn from the model.

Chains follow the densities :math:`f_\beta = q^{1-\beta} p^{\beta}` from a start `q` that can be sampled (the prior, or
an automatic guide) to the joint density `p` of model and data, by Hamiltonian Monte Carlo at each temperature
[neal2001annealed].  The mean weight estimates the evidence without bias, so that its logarithm is low on average: a
stochastic lower bound.  Run backwards from an exact posterior draw, which data drawn from the model come with, it is a
stochastic upper bound [grosse2015sandwiching].
"""

import math
import sys
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor
from tqdm import tqdm

from pyro_invariance.evidence.base import Evidence, LogJoint, require_finite
from pyro_invariance.evidence.fitted import guided, prior_draws
from pyro_invariance.evidence.mapped import Draws, Mapped
from pyro_invariance.evidence.problem import Problem
from pyro_invariance.evidence.weights import effective, jackknife, log_mean
from pyro_invariance.numerics import float64
from pyro_invariance.typing import BadInput, checked_seed

LEAPS = 2  # of a trajectory
ACCEPT = 0.8  # share of proposals that the step size aims at
PILOT, CHAINS = 32, 32  # temperatures of the first run, chains
FINE, MOST = 0.1, 2000  # nats that the two sides may differ by were mixing perfect, temperatures at most

Start = Literal["prior", "guide"]


@float64()
def ais(problem: Problem, *, seed: int, start: Start = "prior", chains: int = CHAINS) -> Evidence:
    r"""Stochastic lower bound by annealed importance sampling, :math:`\log \frac1C \sum_c w_c` [neal2001annealed].

    A short run comes first: it sets the step size at each temperature, and the temperatures so that the weights grow
    as evenly as they can; all of that is fixed before the run that counts.

    Parameters
    ----------
    problem : Problem
    seed : int
    start : str
        What to anneal from: the `prior`, or, faster, an equal mixture of it and a `guide` (the problem's, if it is an
        automatic one over all sites, else one fitted here).
    chains : int
        Independent ones; the standard error is a jackknife over them.
    """
    begin, seed = time.perf_counter(), checked_seed(seed)
    path = _Path.of(problem, seed, start)
    with poutine.seed(rng_seed=seed):
        plan = _plan(path, seed, chains)
        logs = _run(path, plan, path.sample(chains, seed + 1), "forward")
    return _evidence(logs, problem, begin, "ais")


@float64()
def bdmc(problem: Problem, *, seed: int, start: Start = "prior", chains: int = CHAINS) -> Evidence:
    r"""Both sides of the evidence of data drawn from the model: bidirectional Monte Carlo [grosse2015sandwiching].

    The result is of the simulated data, not of the problem's own: it says how far annealing, or another estimator on
    `problem.simulate(seed)`, can be trusted on data like these.  `value` is the lower side, `upper` the upper one;
    `data` is the digest of the simulated data.

    Parameters
    ----------
    problem, seed, start, chains
        As for `ais`; a guide is fitted to the simulated data.
    """
    begin, seed = time.perf_counter(), checked_seed(seed)
    simulated, truth = problem.simulate(seed)
    path = _Path.of(replace(simulated, guide=None), seed, start)
    with poutine.seed(rng_seed=seed):
        plan = _plan(path, seed, chains)
        logs = _run(path, plan, path.sample(chains, seed + 1), "forward")
        exact = path.log_joint.pack({name: truth[name] for name in path.log_joint.transforms})
        back = _run(path, plan, exact.expand(chains, -1).clone(), "backward")
    lower = _evidence(logs, simulated, begin, "bdmc")
    return replace(lower, upper=require_finite(-log_mean(back), "the upper side"), upper_error=jackknife(back))


def _evidence(logs: Tensor, problem: Problem, begin: float, method: str) -> Evidence:
    return Evidence(
        require_finite(log_mean(logs), "the annealed evidence"),
        jackknife(logs),
        "lower",
        ess=effective(logs),
        draws=len(logs),
        method=method,
        data=problem.digest,
        seconds=time.perf_counter() - begin,
    )


@dataclass(frozen=True)
class _Path:
    """Densities from the start to the joint."""

    log_joint: LogJoint
    guide: Any  # distribution over [D] that is half of the start, or None: the start is the prior
    both: Mapped  # log densities of either end at [C, D]

    @classmethod
    def of(cls, problem: Problem, seed: int, start: Start) -> "_Path":
        if start not in get_args(Start):
            raise BadInput(f"start: got {start!r}; accepted: {', '.join(get_args(Start))}")
        log_joint = problem.log_joint
        if log_joint.size == 0:
            raise BadInput("model: it has no continuous latent site, so that its evidence is exact: use exact")
        density = None
        if start == "guide":
            guide = guided(problem, seed)[0].guide
            if not isinstance(guide, AutoContinuous):
                raise BadInput(
                    f"guide: got {type(guide).__name__}; annealing starts from an automatic guide of one density over "
                    "all sites, such as AutoMultivariateNormal, or from the prior"
                )
            density = guide.get_posterior()

        def both(draw: Draws) -> Draws:
            prior, likelihood = log_joint.terms(draw["z"])
            begin = prior if density is None else torch.logaddexp(prior, density.log_prob(draw["z"])) - math.log(2)
            return {"begin": begin, "end": prior + likelihood}

        return cls(log_joint, density, Mapped(both))

    def sample(self, count: int, seed: int) -> Tensor:
        """Draw `[count, D]` from the start."""
        if self.guide is None:
            return prior_draws(self.log_joint, count, seed)
        with torch.no_grad(), poutine.seed(rng_seed=seed):
            half = self.guide.sample(torch.Size([count // 2]))
        return torch.cat([half, prior_draws(self.log_joint, count - count // 2, seed)])

    def at(self, z: Tensor, beta: float) -> "_Point":
        """Both log densities at `[C, D]`, and the slope of the one in between."""
        lost = ~torch.isfinite(z).all(1)  # diverged: no density there
        z = torch.where(lost[:, None], 0.0, z.detach()).requires_grad_()
        try:
            terms = self.both({"z": z})
        except (torch.linalg.LinAlgError, ValueError):  # a singular matrix somewhere: look at each point
            if len(z) == 1:
                nothing = torch.full((1,), -math.inf)
                return _Point(nothing, nothing, torch.zeros_like(z))
            rows = [self.at(row[None], beta) for row in z]
            return _Point(*(torch.cat(column) for column in zip(*rows, strict=True)))
        value = (1 - beta) * terms["begin"] + beta * terms["end"]
        (slope,) = torch.autograd.grad(value.sum(), z)
        return _Point(terms["begin"].detach(), torch.where(lost, -math.inf, terms["end"].detach()), slope)


class _Point(NamedTuple):
    """Log densities `[C]` of the start and of the joint, and the slope `[C, D]` of the one in between."""

    begin: Tensor
    end: Tensor
    slope: Tensor

    def between(self, beta: float) -> Tensor:
        """Log density in between, minus infinity where there is none."""
        value = (1 - beta) * self.begin + beta * self.end
        return torch.where(torch.isfinite(value), value, -math.inf)


class _Plan(NamedTuple):
    """What is fixed before the run that counts: temperatures, a step size at each, the factor of the covariance."""

    betas: list[float]
    steps: list[float]
    factor: Tensor


def _leap(path: _Path, z: Tensor, beta: float, step: float, factor: Tensor) -> tuple[Tensor, _Point, float]:
    """One transition that keeps the density at `beta`: new points, what holds there, share accepted."""
    here = path.at(z, beta)
    momentum, step = torch.randn_like(z), step * float(0.8 + 0.4 * torch.rand(()))
    new, there, moving = z, here, momentum
    for _ in range(LEAPS):
        moving = moving + step / 2 * there.slope @ factor
        new = new + step * moving @ factor.T
        there = path.at(new, beta)
        moving = moving + step / 2 * there.slope @ factor
    gain = there.between(beta) - here.between(beta) + 0.5 * (momentum.square() - moving.square()).sum(1)
    chance = torch.nan_to_num(gain, nan=-math.inf).clamp(max=0.0).exp()
    accepted = torch.rand(len(z)) < chance
    kept = _Point(*(torch.where(accepted.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(there, here, strict=True)))
    return torch.where(accepted[:, None], new, z), kept, float(chance.mean())


def _plan(path: _Path, seed: int, chains: int) -> _Plan:
    """Run a few chains to learn the step sizes, and temperatures that are equally far apart in the spread of weights."""
    size = path.log_joint.size
    with poutine.seed(rng_seed=seed):
        scale = path.sample(50 * size, seed) if path.guide is None else path.guide.sample(torch.Size([50 * size]))
    factor = torch.linalg.cholesky(scale.detach().T.cov().reshape(size, size))
    z, step, steps, spread = path.sample(max(8, chains // 4), seed), 0.5, [], []
    coarse = [(t / PILOT) ** 4 for t in range(PILOT + 1)]
    for beta in coarse:
        z, point, chance = _leap(path, z, beta, step, factor)
        step *= math.exp(chance - ACCEPT)
        steps.append(step)
        low, high = (point.end - point.begin).quantile(torch.tensor([0.25, 0.75])).tolist()
        spread.append((high - low) / 1.35)  # of a normal, its standard deviation; some chains may be far out
    length = np.concatenate([[0.0], np.cumsum((np.array(spread[1:]) + spread[:-1]) / 2 * np.diff(coarse))])
    count = int(np.clip(length[-1] ** 2 / FINE, 2 * PILOT, MOST))
    betas = np.interp(np.linspace(0, length[-1], count + 1), length, coarse)
    return _Plan(betas.tolist(), np.interp(betas, coarse, steps).tolist(), factor)


def _run(path: _Path, plan: _Plan, z: Tensor, direction: Literal["forward", "backward"]) -> Tensor:
    """Log weights `[C]`; backwards from the joint to the start they are those of the reverse."""
    betas = plan.betas
    order = list(range(len(betas)))[:: 1 if direction == "forward" else -1]
    if direction == "backward":  # exact draws stay exact, and chains that begin alike part
        for _ in range(PILOT // 4):
            z, _, _ = _leap(path, z, 1.0, plan.steps[-1], plan.factor)
    point, logs = path.at(z, betas[order[0]]), torch.zeros(len(z))
    for now, following in tqdm(list(pairwise(order)), desc=f"annealing {direction}", disable=not sys.stderr.isatty()):
        logs = logs + (betas[following] - betas[now]) * (point.end - point.begin)
        if following != order[-1]:
            z, point, _ = _leap(path, z, betas[following], plan.steps[following], plan.factor)
    return logs
