"""Fit one hypothesis: modes from several starts, SVI at each that counts, the evidence from fresh draws.

Nothing here knows what the model is: any Pyro model will do whose latent sites are continuous or summed out.
"""

import math
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import TransformedDistribution

from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import Evidence, LogJoint, require_no_parameters
from pyro_invariance.evidence.incremental import evaluator, posterior
from pyro_invariance.evidence.laplace import Mode, distinct, laplace, lean, maximise
from pyro_invariance.evidence.variational import Draws, draw, elbo, train
from pyro_invariance.guides import SkewNormal, mixture
from pyro_invariance.modes import CLOSE, VALLEY, climbed, few, meet, optimum, others, sought
from pyro_invariance.numerics import float64
from pyro_invariance.processes import code_log_density, mixed
from pyro_invariance.profiles import walk
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Extent, Hypothesis

FEW, SCOUTS = 100, 1000  # items for which evaluating is cheap; draws of the prior that are evaluated then
RIVAL = 20.0  # nats: more than the priors of two modes differ by, so that a worse mode may have the best likelihood
ROUNDS, TIGHT = 4, 0.5  # of SVI, at most; nats
STEPS, PARTICLES, DRAWS = 10, 2, 32  # of SVI, and fresh ones for the evidence
PREDICTIVE, POSTERIOR = 4, 1000  # draws averaged in predictions, and kept
POINTS = 12  # of the profile, on as many items as the starts are compared on


@dataclass(frozen=True)
class Range:
    """Posterior of a learned range, in the unit of its extent.

    Attributes
    ----------
    mean, sd, lower, upper : float
        Moments and the central 95 % interval.
    saturated : bool
        Whether the interval touches the end of what the orbit reaches: read the range as "at least".
    zero : bool
        Whether the range cannot be told from a point.
    whole : bool
        Whether that end is a whole group.
    """

    mean: float
    sd: float
    lower: float
    upper: float
    unit: str
    saturated: bool
    zero: bool
    whole: bool = True

    @property
    def undetermined(self) -> bool:
        """Whether it may be anything from nearly a point to the end."""
        return self.saturated and self.lower < 0.2 * self.upper


@dataclass(frozen=True)
class Fit:
    """A fitted hypothesis: numbers and tensors only, so that it can be stored and sent between processes.

    Attributes
    ----------
    label, name, kind, base : str
        Of the hypothesis.
    contains : frozenset of str
        Elementary symmetries it holds at its learned extents: none for a range that went to zero, the whole group
        for one that went all the way.
    claims : frozenset of str
        Those that it would hold at some extent.
    evidence : Evidence
        Lower bound on the log evidence; its restart spread is that of the starts that were climbed to the best basin,
        None where only one was, because the starts had met on a few images before.
    upper : float
        Type-II maximum, an upper side up to its optimiser (none, where the likelihood is itself an estimate), nats.
    other_optima : list of dict
        Modes of starts that ended elsewhere: their extents and how many nats worse.
    extents : dict of str to Range
        Posterior of every learned range.
    draws, prior : dict of str to Tensor `[S]`
        Draws of the sites from the posterior and from the prior.  The first of the posterior are the guide's own, those
        that the evidence and the predictions come from; so are the others, but for few data: there they are resampled
        by importance weights (some are equal), so that they are right where the guide is a little off.
    weighted : Tensor `[W, D + 3]`
        Draws that the evidence was computed from (unconstrained), with log prior, likelihood and guide density.
    site_log_prior, pointwise, replicates : dict of str to Tensor `[W, ...]`
        Of the same draws: log prior density of each site; log density of each datum (for a Gaussian process given all
        the others) and replicated data, by observed site.
    observed : dict of str to Tensor
        The data of the observed sites.
    test_mean, test_variance : Tensor `[M, O]`, `[M]`
        Predictive moments of the targets at the test images.
    test_log_density : Tensor `[M, C]` or `[M, 1]`
        Predictive log density of each class's code (of the value, for regression) at the test images.
    path : list of float
        Lower bound at each SVI step.
    climbs : list of list of float
        Log joint density at each step of the climb from each start, on all data; last the climb from the prior.
    profile : list of list of float
        Shares of the extents' upper ends, and the largest log joint density of a few items at each; empty without
        extents.
    positions : dict of str to Tensor `[T]`
        Values of the sites on the climb to the best mode, on a few items first and then on all.
    shares : dict of str to float
        Of a sum of priors: mean share of the prior variance of each part, largest first; a part whose ranges went to
        zero counts as trivial.
    learned : dict of str to Tensor
        Parameters that were learned from the earlier items.
    """

    label: str
    name: str
    kind: str
    base: str
    contains: frozenset[str]
    claims: frozenset[str]
    evidence: Evidence
    upper: float
    other_optima: list[dict]
    extents: dict[str, Range]
    draws: dict[str, Tensor]
    prior: dict[str, Tensor]
    weighted: Tensor
    site_log_prior: dict[str, Tensor]
    pointwise: dict[str, Tensor]
    replicates: dict[str, Tensor]
    observed: dict[str, Tensor]
    test_mean: Tensor
    test_variance: Tensor
    test_log_density: Tensor
    path: list[float]
    climbs: list[list[float]]
    profile: list[list[float]]
    cpu_seconds: float
    wall_seconds: float
    positions: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    learned: dict[str, Tensor] = field(default_factory=dict)


@float64()
@pyro.settings.context(module_local_params=True)  # or a second guide would start from the first one's parameters
def fit(hypothesis: Hypothesis, data: Dataset, seed: int = 0) -> Fit:
    """Fit one hypothesis to the evidence images of a data set.

    Modes are sought from every start on a few images first and polished on all of them; the best becomes the centre
    of a full-covariance guide with skewed margins, trained by SVI; the lower bound is re-estimated with fresh draws.
    Where a valley lies between modes of nearly the same height, the guide is a mixture of one such for each of them.

    With so few data that evaluating is cheap, a further climb starts from the prior, if a draw of it is likelier than
    the known modes explain, and posterior draws are corrected by importance weights; see `evidence.incremental`.
    """
    cpu, wall = time.process_time(), time.perf_counter()
    if hypothesis.learn and data.x_earlier is None:
        raise BadInput(
            f"data: {hypothesis.label!r} learns parameters, and not from the items of the evidence; halve them"
        )
    learned = hypothesis.learn(data, seed) if hypothesis.learn else {}
    hypothesis = hypothesis.given(learned)
    model: Any = hypothesis.model
    while isinstance(model, partial):
        model = model.func
    if isinstance(model, torch.nn.Module):
        require_no_parameters(name for name, value in model.named_parameters() if value.requires_grad)
    args = hypothesis.prepare(data)
    log_joint = LogJoint(hypothesis.model, args)
    if log_joint.size == 0:
        raise BadInput(f"model: {hypothesis.label!r} has no latent site; its evidence is its likelihood")
    prior, cheap = _prior_draws(log_joint, seed), len(data.y) <= FEW
    modes = climbed(hypothesis, data, log_joint, seed)
    if cheap:
        evaluate = evaluator(log_joint)
        rows = [log_joint.pack({name: values[i] for name, values in prior.items()}) for i in range(SCOUTS)]
        scouts = evaluate(torch.stack(rows))
        modes += sought(log_joint, modes, scouts)
    best = max(modes, key=lambda m: m.value)
    met = [m for m in modes if m is not best and meet(m, best, log_joint, hypothesis)]
    rivals = [m for m in modes if m is not best and m not in met]
    tops = [
        maximise(log_joint, m.z, prior=False, inverse_hessian=m.inverse_hessian, gtol=0.5, max_iter=30).value
        for m in (best, *rivals)
        if m.value > best.value - RIVAL
    ]

    parts = [_part(hypothesis, log_joint, mode, seed) for mode in distinct(log_joint, modes, CLOSE, VALLEY)]
    guide, before = parts[0].guide, parts[0].before
    if len(parts) > 1:
        shares = torch.stack([part.drawn.log_weights.mean() for part in parts])
        guide, before = (mixture([getattr(part, name) for part in parts], shares) for name in ("guide", "before"))
    drawn = draw(guide, log_joint, count=DRAWS, seed=seed + ROUNDS + 1, before=before)  # fresh: nothing knows of them
    left = POSTERIOR - DRAWS
    more = posterior(evaluate, scouts, guide, left) if cheap else guide.sample(torch.Size([left]))
    draws = _constrained(log_joint, torch.cat([drawn.z, more]))
    ranges = {name: _range(draws[name], extent) for name, extent in hypothesis.extents.items()}
    evidence, (error, loose) = elbo(drawn), log_joint.uncertainty(best.z)
    if error:
        evidence = replace(
            evidence, std_error=math.hypot(evidence.std_error, error), looseness=(evidence.looseness or 0.0) + loose
        )
    mean, variance, density = _predict(hypothesis, args, [log_joint.unpack(z) for z in drawn.z[:PREDICTIVE]], data)
    terms = torch.stack([drawn.log_prior, drawn.log_likelihood, drawn.log_guide], 1)
    return Fit(
        label=hypothesis.label,
        name=hypothesis.name,
        kind=hypothesis.kind,
        base=hypothesis.base,
        contains=_contains(hypothesis, ranges),
        claims=hypothesis.contains | hypothesis.saturated,
        evidence=replace(evidence, restart_spread=max((best.value - m.value for m in met), default=None)),
        upper=max(*tops, float(drawn.log_likelihood.max())),
        other_optima=[optimum(m, best, log_joint, hypothesis) for m in rivals],
        extents=ranges,
        draws=draws,
        prior=prior,
        weighted=torch.cat([drawn.z, terms], 1),
        site_log_prior=drawn.site_log_prior,
        pointwise=drawn.pointwise,
        replicates={name: values.float() for name, values in drawn.replicates.items()},
        observed=drawn.observed,
        test_mean=mean,
        test_variance=variance,
        test_log_density=density,
        path=parts[0].path,
        climbs=[m.path for m in modes],
        profile=_profile(hypothesis, data, seed, log_joint, *parts[0].normal),
        cpu_seconds=time.process_time() - cpu,
        wall_seconds=time.perf_counter() - wall,
        positions=_constrained(log_joint, best.positions),
        shares=_shares(hypothesis, draws, ranges),
        learned=learned,
    )


@dataclass(frozen=True)
class _Part:
    """The guide at one mode, before the last tenth of its training too, with the Laplace approximation it began at."""

    normal: tuple[Tensor, Tensor]
    guide: TransformedDistribution
    before: TransformedDistribution
    drawn: Draws
    path: list[float]


def _part(hypothesis: Hypothesis, log_joint: LogJoint, mode: Mode, seed: int) -> _Part:
    """Train a guide that starts at one mode."""
    normal = laplace(log_joint, mode.z)
    ranged = [i for name in hypothesis.extents for i in range(log_joint.size)[log_joint.slices[name]]]
    begin = lean(log_joint, *normal, ranged)
    guide = SkewNormal(poutine.block(hypothesis.model, hide=sorted(log_joint.summed)), *begin)
    path: list[float] = []
    for rounds in range(ROUNDS):  # twice the steps each time, until fresh draws say that the bound is tight
        more, before = train(guide, log_joint, steps=STEPS * 2**rounds, particles=PARTICLES, seed=seed + rounds)
        path += more
        drawn = draw(guide, log_joint, count=DRAWS // 2, seed=seed + ROUNDS, before=before)
        evidence = elbo(drawn)
        if (evidence.looseness or 0.0) < TIGHT and evidence.std_error < TIGHT / 2:
            break
    return _Part(normal, guide.get_posterior().fixed, before, drawn, path)


def _profile(
    hypothesis: Hypothesis, data: Dataset, seed: int, log_joint: LogJoint, mode: Tensor, cholesky: Tensor
) -> list[list[float]]:
    """Walk the extents on a few items, the rest optimised from the mode of all of them with its curvature."""
    if not hypothesis.extents or hypothesis.parts:  # ranges of a sum have nothing to do with each other
        return []
    small, rest = few(data, seed), others(log_joint, hypothesis)
    precision = torch.cholesky_inverse(cholesky).numpy()[np.ix_(rest, rest)] * len(small.y) / len(data.y)
    return list(walk(hypothesis, hypothesis.prepare(small), log_joint.unpack(mode), POINTS, np.linalg.inv(precision)))


def _constrained(log_joint: LogJoint, z: Tensor) -> dict[str, Tensor]:
    """Site values `[S]` of unconstrained draws `[S, D]`."""
    rows = [log_joint.unpack(row) for row in z]
    return {name: torch.stack([row[name] for row in rows]) for name in log_joint.transforms}


def _range(draws: Tensor, extent: Extent) -> Range:
    lower, upper = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    mean, sd = float(draws.mean()), float(draws.std())
    reached, closed = upper >= extent.reach, mean < extent.resolution
    return Range(mean, sd, lower, upper, extent.unit, reached, closed, extent.whole)


def _contains(hypothesis: Hypothesis, ranges: dict[str, Range]) -> frozenset[str]:
    held = hypothesis.contains
    wholes = [name for name in ranges if hypothesis.extents[name].whole]  # a shift has no end that is a group
    if wholes and all(_whole(ranges[name], hypothesis.extents[name]) for name in wholes):
        held = hypothesis.contains | hypothesis.saturated
    closed = {name for name, r in ranges.items() if r.zero}
    of = {symmetry: set(hypothesis.ranges_of.get(symmetry, ranges)) for symmetry in held}
    return frozenset(symmetry for symmetry in held if not of[symmetry] or of[symmetry] - closed)


def _shares(hypothesis: Hypothesis, draws: dict[str, Tensor], ranges: dict[str, Range]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part, share in zip(hypothesis.parts.values(), hypothesis.shares(draws).values(), strict=True):
        held = _contains(part, {name: ranges[name] for name in part.extents})
        label = part.label if held else "trivial"
        found[label] = found.get(label, 0.0) + float(share.mean())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _whole(learned: Range, extent: Extent) -> bool:
    """Whether a range is the whole group: its interval ends there and holds nothing much narrower."""
    return extent.whole and learned.saturated and learned.lower >= 0.8 * extent.upper


@torch.no_grad()
def _prior_draws(log_joint: LogJoint, seed: int) -> dict[str, Tensor]:
    """Draws `[S]` of each site from the prior; site by site where no site depends on another one."""
    pyro.set_rng_seed(seed)
    first, second = (_latent(log_joint) for _ in range(2))
    same = all(
        torch.equal(first[name]["fn"].log_prob(first[name]["value"]), second[name]["fn"].log_prob(first[name]["value"]))
        for name in first
    )
    if same:
        return {name: site["fn"].sample(torch.Size([POSTERIOR])) for name, site in first.items()}
    runs = [_latent(log_joint) for _ in range(POSTERIOR // 5)]
    return {name: torch.stack([run[name]["value"] for run in runs]) for name in first}


def _latent(log_joint: LogJoint) -> dict[str, Any]:
    trace = poutine.trace(log_joint.model).get_trace(*log_joint.args)
    return {name: trace.nodes[name] for name in log_joint.transforms}


@torch.no_grad()
def _predict(
    hypothesis: Hypothesis, args: tuple, sites: list[dict[str, Tensor]], data: Dataset
) -> tuple[Tensor, Tensor, Tensor]:
    """Predictive moments `[M, O]`, `[M]` and log density of the codes, a mixture over draws of the hyperparameters."""
    codes = data.codes if data.codes is not None else data.encode(data.y_test)
    mean, variance = torch.zeros(0, codes.shape[-1]), torch.zeros(0)
    density = torch.zeros(0, len(codes) if data.classes else 1)
    if len(data.y_test) and hypothesis.predict is not None:
        moments = hypothesis.predict(args, sites, data.x_test)
        mean, variance = mixed(*moments)
        density = code_log_density(*moments, codes if data.classes else codes[:, None, :])
    if len(data.y_test) and hypothesis.log_density is not None:
        logs = hypothesis.log_density(args, sites, data.x_test, data.encode(data.y_test))
        density = (logs.logsumexp(0) - math.log(len(sites)))[:, None]
    return mean, variance, density
