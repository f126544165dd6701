"""Where a posterior has its modes: climbs from the declared starts and, where evaluating is cheap, from the prior."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.incremental import Points
from pyro_invariance.evidence.laplace import Mode, distinct, laplace, maximise, valley
from pyro_invariance.zoo import Hypothesis

SCOUT = 300  # items on which the starts are compared first
ALL, STEPS = 2, 30  # climbs on all data, at most; steps of each on a few items where there are more starts than that
CLOSE, VALLEY = 5.0, 0.5  # nats that a mode may be worse and still count, and that lie between two of them at least
SURPRISE, TALL = 2.0, 10.0  # nats above what known modes explain, and below the best of them


def few(data: Dataset, seed: int) -> Dataset:
    """A few items, or all where the values of a few do not vary."""
    small = data.subset(SCOUT, seed)
    return small if torch.isfinite(small.targets).all() else data


def others(log_joint: LogJoint, hypothesis: Hypothesis) -> np.ndarray:
    """Where the sites that are no extents lie in the unconstrained vector."""
    parts = [np.r_[s] for name, s in log_joint.slices.items() if name not in hypothesis.extents]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=int)


def climbed(hypothesis: Hypothesis, data: Dataset, log_joint: LogJoint, seed: int) -> list[Mode]:
    """Climb from every start, on a few items first and then on all of them: positions are those of both climbs.

    Of many starts, the two that end highest on a few items are climbed on all of them.
    """
    found = []
    for visited, covariance in _scout(hypothesis, data, seed):
        guess = 0.01 * np.eye(log_joint.size)  # a tenth of a unit for the extents
        rest = np.arange(log_joint.size) if len(covariance) == len(guess) else others(log_joint, hypothesis)
        guess[np.ix_(rest, rest)] = covariance
        before = torch.stack([log_joint.pack(values) for values in visited])
        mode = maximise(log_joint, before[-1], inverse_hessian=guess)
        found.append(replace(mode, positions=torch.cat([before[:-1], mode.positions])))
    return found


def sought(log_joint: LogJoint, modes: Sequence[Mode], prior: Points) -> list[Mode]:
    """Climb from the likeliest draw of the prior that Laplace approximations of the known modes do not explain."""
    explained = torch.full_like(prior.log_joint, max(m.value for m in modes) - TALL)
    for mode in distinct(log_joint, modes, CLOSE, VALLEY):
        centre, cholesky = laplace(log_joint, mode.z)
        away = torch.linalg.solve_triangular(cholesky, (prior.z - centre).T, upper=False)
        explained = explained.maximum(mode.value - 0.5 * away.square().sum(0) + SURPRISE)
    left = prior.log_joint.where(prior.log_joint > explained, torch.tensor(-torch.inf))
    return [maximise(log_joint, prior.z[left.argmax()])] if float(left.max()) > -torch.inf else []


def meet(mode: Mode, best: Mode, log_joint: LogJoint, hypothesis: Hypothesis) -> bool:
    """Whether a start was climbed to the basin of the best mode."""
    here, centre = log_joint.unpack(mode.z), log_joint.unpack(best.z)
    apart = max((abs(float(here[k] - centre[k])) / e.upper for k, e in hypothesis.extents.items()), default=0.0)
    return best.value - mode.value < (10.0 if apart < 0.05 else 1.0)


def optimum(mode: Mode, best: Mode, log_joint: LogJoint, hypothesis: Hypothesis) -> dict:
    """What another start found: its extents and how many nats worse."""
    here = log_joint.unpack(mode.z)
    return {"below_best": best.value - mode.value, "extents": {k: float(here[k]) for k in hypothesis.extents}}


def _scout(hypothesis: Hypothesis, data: Dataset, seed: int) -> list[tuple[list[dict[str, Tensor]], np.ndarray]]:
    """Fit all but the extents on a few images, from every start: site values on the way, a guess of their covariance.

    The extents of one start or two stay where they start, because a few images may prefer another basin than all of
    them do; those of many starts do not.  Where nothing is held, starts that meet are one.
    """
    small, many = few(data, seed), len(hypothesis.starts) > ALL
    climb = partial(maximise, gtol=0.5, max_iter=STEPS) if many else maximise
    args, ratio = hypothesis.prepare(small), len(small.y) / len(data.y)
    begins: list[tuple[list[dict[str, Tensor]], np.ndarray]] = []
    reached: list[Mode] = []
    for start in hypothesis.starts:
        held = {} if many else {name: torch.tensor(start[name]) for name in hypothesis.extents}
        log_joint = LogJoint(poutine.condition(hypothesis.model, data=held), args)
        if log_joint.size == 0:
            begins.append(([held], np.zeros((0, 0))))
            continue
        mode = climb(log_joint, log_joint.pack({k: v for k, v in start.items() if k not in held}))
        if not held and any(_same(log_joint, mode, other) for other in reached):
            continue
        reached.append(mode)
        visited = [held | log_joint.unpack(z) for z in (*mode.positions, mode.z)]
        begins.append((visited, mode.inverse_hessian * ratio))
    highest = sorted(range(len(reached)), key=lambda i: -reached[i].value)[:ALL]
    return [begins[i] for i in highest] if many else begins


def _same(log_joint: LogJoint, mode: Mode, other: Mode) -> bool:
    return abs(mode.value - other.value) < 0.5 and valley(log_joint, mode, other) < VALLEY
