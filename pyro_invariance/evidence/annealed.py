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
from pyro_invariance.evidence.fitted import guided, modes, prior_draws
from pyro_invariance.evidence.importance import effective, jackknife, log_mean
from pyro_invariance.evidence.laplace import laplace
from pyro_invariance.evidence.mapped import Draws, Mapped
from pyro_invariance.evidence.problem import Problem, checked_call
from pyro_invariance.numerics import float64
from pyro_invariance.typing import BadInput

LEAPS = 3  # of a trajectory
QUARTER = math.pi / 2  # of a period: a normal density sends longer trajectories back to where they came from
ACCEPT = 0.8  # share of proposals that the step size aims at
PILOT, SETTLE = 20, 3  # temperatures of the first run, transitions at each
CHAINS = 128  # as many as one evaluation takes without being much slower than a single one
FINE, MOST = 0.1, 2000  # nats that the two sides may differ by were mixing perfect, temperatures at most
CLIMBS = 2  # to a mode, for the shape of the steps
BROAD = 0.05  # share of the prior in a start from a guide

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
        What to anneal from: the `prior`, or, faster, a `guide` with a share of the prior that covers what the guide
        misses: the problem's, if it is an automatic one over all sites, or one fitted here.
    chains : int
        Independent ones; the standard error is a jackknife over them.
    """
    begin = time.perf_counter()
    checked_call(problem, seed, chains=chains)
    path = _Path.of(problem, seed, start)
    with poutine.seed(rng_seed=seed):
        plan = _plan(path, problem, seed + 1, chains)
        logs = _run(path, plan, path.sample(chains, seed + 5), "forward")
    return _evidence(logs, problem, begin, "ais")


@float64()
def bdmc(problem: Problem, *, seed: int, start: Start = "prior", chains: int = CHAINS) -> Evidence:
    r"""Both sides of the evidence of data drawn from the model: bidirectional Monte Carlo [grosse2015sandwiching].

    The result is of the simulated data, not of the problem's own: it says how far annealing, or another estimator on
    `problem.simulate(seed)`, can be trusted on data like these.  `value` is the lower side, `upper` the upper one;
    `data` is the digest of the simulated data.  All backward chains begin at the one exact draw that comes with the
    data: the upper side is one on average over such draws, and `upper_error`, a jackknife over the chains, knows
    nothing of what another draw would have given.

    Parameters
    ----------
    problem, seed, start, chains
        As for `ais`; a guide is fitted to the simulated data.
    """
    begin = time.perf_counter()
    checked_call(problem, seed, chains=chains)
    simulated, truth = problem.simulate(seed)
    simulated = replace(simulated, guide=None)
    path = _Path.of(simulated, seed + 1, start)  # another seed: nothing that is fixed now may know the truth
    with poutine.seed(rng_seed=seed + 2):
        plan = _plan(path, simulated, seed + 3, chains)
        logs = _run(path, plan, path.sample(chains, seed + 7), "forward")
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
    guide: Any  # distribution over [D] that is most of the start, or None: the start is the prior
    both: Mapped  # log densities of either end at [C, D]

    @classmethod
    def of(cls, problem: Problem, seed: int, start: Start) -> "_Path":
        if start not in get_args(Start):
            raise BadInput(f"start: got {start!r}; accepted: {', '.join(get_args(Start))}")
        log_joint = problem.log_joint
        if log_joint.size == 0:
            raise BadInput("model: it has no continuous latent site, so that its evidence is exact: use exact")
        density = None
        if problem.guide is not None:
            _ = problem.guide_trace  # looked over
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
            begin = prior
            if density is not None:
                own = density.log_prob(draw["z"]) + math.log(1 - BROAD)
                begin = torch.logaddexp(prior + math.log(BROAD), own)
            return {"begin": begin, "end": prior + likelihood}

        return cls(log_joint, density, Mapped(both))

    def sample(self, count: int, seed: int) -> Tensor:
        """Draw `[count, D]` from the start."""
        if self.guide is None:
            return prior_draws(self.log_joint, count, seed)
        with torch.no_grad(), poutine.seed(rng_seed=seed):
            z, broad = self.guide.sample(torch.Size([count])), torch.rand(count) < BROAD
        if broad.any():
            z[broad] = prior_draws(self.log_joint, int(broad.sum()), seed + 1)
        return z

    def precisions(self, problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
        """Inverse covariances `[D, D]` of the start and of the posterior, roughly: the steps are made for them."""
        if self.guide is not None:
            with torch.no_grad(), poutine.seed(rng_seed=seed):
                both = _inverse(self.guide.sample(torch.Size([100 + 10 * self.log_joint.size])))
            return both, both
        begin = _inverse(prior_draws(self.log_joint, 100 + 10 * self.log_joint.size, seed))
        _, cholesky = laplace(self.log_joint, modes(problem, seed, CLIMBS)[0].z)
        return begin, torch.cholesky_inverse(cholesky)

    def at(self, z: Tensor) -> "_Point":
        """Both log densities at `[C, D]`, and their slopes."""
        lost = ~torch.isfinite(z).all(1)  # diverged: no density there
        z = torch.where(lost[:, None], 0.0, z.detach()).requires_grad_()
        try:
            terms = self.both({"z": z})
        except (torch.linalg.LinAlgError, ValueError) as error:  # a singular matrix somewhere: look at each point
            if isinstance(error, BadInput) and error.__cause__ is None:
                raise  # the model itself is wrong
            if len(z) == 1:
                nothing = torch.full((1,), -math.inf)
                return _Point(nothing, nothing, torch.zeros_like(z), torch.zeros_like(z))
            rows = [self.at(row[None]) for row in z]
            return _Point(*(torch.cat(column) for column in zip(*rows, strict=True)))
        (first,) = torch.autograd.grad(terms["begin"].sum(), z, retain_graph=True)
        (last,) = torch.autograd.grad(terms["end"].sum(), z)
        return _Point(terms["begin"].detach(), torch.where(lost, -math.inf, terms["end"].detach()), first, last)


def _inverse(draws: Tensor) -> Tensor:
    size = draws.shape[1]
    return torch.linalg.inv(draws.detach().T.cov().reshape(size, size))


class _Point(NamedTuple):
    """Log densities `[C]` of the start and of the joint, and their slopes `[C, D]`."""

    begin: Tensor
    end: Tensor
    first: Tensor
    last: Tensor

    def between(self, beta: float) -> Tensor:
        """Log density in between, minus infinity where there is none."""
        value = (1 - beta) * self.begin + beta * self.end
        return torch.where(torch.isfinite(value), value, -math.inf)

    def slope(self, beta: float) -> Tensor:
        """Slope of the log density in between."""
        return (1 - beta) * self.first + beta * self.last


class _Plan(NamedTuple):
    """What is fixed before the run that counts: temperatures; at each a step size and the factor of a covariance."""

    betas: list[float]
    steps: list[float]
    factors: list[Tensor]


def _leap(
    path: _Path, z: Tensor, here: _Point, beta: float, step: float, factor: Tensor
) -> tuple[Tensor, _Point, float]:
    """One transition that keeps the density at `beta`: new points, what holds there, share accepted."""
    momentum, step, there = torch.randn_like(z), step * float(0.8 + 0.4 * torch.rand(())), here
    new, moving = z, momentum
    for _ in range(LEAPS):
        moving = moving + step / 2 * there.slope(beta) @ factor
        new = new + step * moving @ factor.T
        there = path.at(new)
        moving = moving + step / 2 * there.slope(beta) @ factor
    gain = there.between(beta) - here.between(beta) + 0.5 * (momentum.square() - moving.square()).sum(1)
    chance = torch.nan_to_num(gain, nan=-math.inf).clamp(max=0.0).exp()
    accepted = torch.rand(len(z)) < chance
    kept = _Point(
        *(torch.where(accepted.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(there, here, strict=True))
    )
    return torch.where(accepted[:, None], new, z), kept, float(chance.mean())


def _plan(path: _Path, problem: Problem, seed: int, chains: int) -> _Plan:
    """Run a few chains to learn step sizes, and temperatures that are equally far apart in the spread of weights."""
    first, last = path.precisions(problem, seed)

    def factor(beta: float) -> Tensor:
        return torch.linalg.cholesky(torch.linalg.inv((1 - beta) * first + beta * last))

    z, step, steps, spread = path.sample(max(8, chains // 4), seed + 2), 0.8, [], []
    point = path.at(z)
    coarse = [(t / PILOT) ** 4 for t in range(PILOT + 1)]
    for beta in coarse:
        for _ in range(SETTLE):
            z, point, chance = _leap(path, z, point, beta, step, factor(beta))
            step = min(step * math.exp((chance - ACCEPT) / 2), QUARTER / LEAPS)
        steps.append(step)
        low, high = (point.end - point.begin).quantile(torch.tensor([0.25, 0.75])).tolist()
        spread.append((high - low) / 1.35)  # of a normal, its standard deviation; some chains may be far out
    length = np.concatenate([[0.0], np.cumsum((np.array(spread[1:]) + spread[:-1]) / 2 * np.diff(coarse))])
    count = int(np.clip(length[-1] ** 2 / FINE, PILOT, MOST))
    betas = np.interp(np.linspace(0, length[-1], count + 1), length, coarse).tolist()
    return _Plan(betas, np.interp(betas, coarse, steps).tolist(), [factor(beta) for beta in betas])


def _run(path: _Path, plan: _Plan, z: Tensor, direction: Literal["forward", "backward"]) -> Tensor:
    """Log weights `[C]`; backwards from the joint to the start they are those of the reverse."""
    betas, point = plan.betas, path.at(z)
    order = list(range(len(betas)))[:: 1 if direction == "forward" else -1]
    if direction == "backward":  # exact draws stay exact, and chains that begin alike part
        for _ in range(PILOT):
            z, point, _ = _leap(path, z, point, 1.0, plan.steps[-1], plan.factors[-1])
    logs = torch.zeros(len(z))
    for now, following in tqdm(list(pairwise(order)), desc=f"annealing {direction}", disable=not sys.stderr.isatty()):
        logs = logs + (betas[following] - betas[now]) * (point.end - point.begin)
        if following != order[-1]:
            z, point, _ = _leap(path, z, point, betas[following], plan.steps[following], plan.factors[following])
    return logs
