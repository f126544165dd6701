"""Importance weights of a guide's draws, and the estimators that are means of them: `elbo`, `iwae`, `psis`."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import Tensor

from pyro_invariance.evidence.base import Evidence, require_finite
from pyro_invariance.evidence.fitted import guided
from pyro_invariance.evidence.importance import effective, jackknife, log_mean, lower_bound, smooth
from pyro_invariance.evidence.mapped import Draws, Mapped
from pyro_invariance.evidence.problem import Problem, checked_call
from pyro_invariance.evidence.sitewise import is_finite, latent
from pyro_invariance.numerics import float64
from pyro_invariance.traces import Trace, enumerable, free_dim, samples, score
from pyro_invariance.typing import BadInput, checked_seed

DRAWS = 10_000  # from fewer, k-hat misses more of the guides that are bad


@dataclass(frozen=True)
class Weights:
    """Independent draws of a guide.

    Attributes
    ----------
    values : dict of str to Tensor `[S, ...]`
        Latent sites.
    log_p, log_q : Tensor `[S]`
        Log joint density of the model and log density of the guide, nats.
    """

    values: Draws
    log_p: Tensor
    log_q: Tensor

    @property
    def log(self) -> Tensor:
        """Log importance weights `[S]`."""
        return self.log_p - self.log_q


@float64()
def elbo(problem: Problem, *, seed: int, draws: int = DRAWS, loss: Callable[[], Any] | None = None) -> Evidence:
    r"""Lower bound on the log evidence, :math:`E_q[\log p(D, z) - \log q(z)]`, from fresh draws of the guide.

    With k-hat, and the looseness: the Pareto-smoothed importance-sampled evidence minus the bound, itself too small
    where k-hat is large.  Finite sites that the guide leaves alone are summed out.

    Parameters
    ----------
    problem : Problem
        Without a guide, one is fitted: a normal at each mode, given skew and tails by SVI where that helps.
    seed : int
    draws : int
        10,000, or 1,000 losses.
    loss : callable, optional
        One of Pyro's, where its variant of the estimator is wanted: `TraceMeanField_ELBO` (divergences in closed form),
        `TraceGraph_ELBO` (Rao-Blackwellised), `TraceEnum_ELBO` (sites enumerated in the guide).  These do not weigh
        single draws, so that there are no k-hat and looseness.

    Raises
    ------
    BadInput
        Naming the site that is wrong, see `Problem`.
    """
    start = time.perf_counter()
    checked_call(problem, seed, draws=draws)
    if loss is not None:
        values = _losses(problem, seed, min(draws, 1000), loss)
        found = Evidence(float(values.mean()), float(values.std()) / math.sqrt(len(values)), "lower", draws=len(values))
        return replace(found, method=f"elbo ({_name(loss)})", data=problem.digest, seconds=time.perf_counter() - start)
    problem, fitted = guided(problem, seed)
    found = lower_bound(weigh(problem, draws=draws, seed=seed).log)
    return replace(found, method="elbo", data=problem.digest, seconds=time.perf_counter() - start, **fitted)


@float64()
def iwae(problem: Problem, *, seed: int, particles: int = 64, draws: int = DRAWS) -> Evidence:
    r"""Importance-weighted lower bound, :math:`E[\log \frac1K \sum_k w_k]` [burda2016importance].

    What Pyro's `RenyiELBO(alpha=0, num_particles=K)` estimates, averaged over `draws / K` independent groups; the
    standard error is theirs.
    """
    start = time.perf_counter()
    checked_call(problem, seed, particles=particles, draws=draws)
    groups = draws // particles
    if groups < 2:
        raise BadInput(f"particles: got {particles} of {draws} draws; at least two groups of them are needed")
    problem, fitted = guided(problem, seed)
    found = lower_bound(weigh(problem, draws=groups * particles, seed=seed).log, particles)
    name = f"iwae-{particles}"
    return replace(found, method=name, data=problem.digest, seconds=time.perf_counter() - start, **fitted)


@float64()
def psis(problem: Problem, *, seed: int, draws: int = DRAWS) -> Evidence:
    r"""Importance-sampled evidence, :math:`\log \frac1S \sum_s w_s` of Pareto-smoothed weights [vehtari2024pareto].

    An estimate, on neither side: consistent, low on average before, and worthless where k-hat exceeds 0.7.  The
    standard error is a jackknife.  A guide that is fitted here has a tenth of its draws from one twice as wide, for
    otherwise k-hat would tell of tails that hold nothing [hesterberg1995weighted].
    """
    start = time.perf_counter()
    checked_call(problem, seed, draws=draws)
    problem, fitted = guided(problem, seed, defended=True)
    smoothed, khat = smooth(weigh(problem, draws=draws, seed=seed).log)
    return Evidence(
        require_finite(log_mean(smoothed), "the importance-sampled evidence"),
        jackknife(smoothed),
        "estimate",
        khat=khat,
        ess=effective(smoothed),
        draws=draws,
        method="psis",
        data=problem.digest,
        seconds=time.perf_counter() - start,
        **fitted,
    )


def _losses(problem: Problem, seed: int, draws: int, loss: Callable[[], Any]) -> Tensor:
    """Independent values `[draws]` of one of Pyro's bounds."""
    guide, finite = problem.guide, {name for name, site in latent(problem.trace).items() if is_finite(site)}
    _ = problem.guide_trace
    model = enumerable(problem.model, finite - latent(problem.guide_trace).keys())
    estimator = None if isinstance(loss, ELBO) or not callable(loss) else loss()
    if not isinstance(estimator, Trace_ELBO | TraceGraph_ELBO | TraceEnum_ELBO):
        raise BadInput("loss: got no lower bound; TraceMeanField_ELBO, TraceGraph_ELBO or TraceEnum_ELBO are accepted")
    with poutine.seed(rng_seed=checked_seed(seed)):
        values = torch.tensor([-estimator.loss(model, guide, *problem.args) for _ in range(draws)])
    if not torch.isfinite(values).all():
        raise FloatingPointError("one of the losses is not finite")
    return values


def _name(loss: Any) -> str:
    return getattr(loss, "__name__", None) or _name(loss.func)


@float64()
@torch.no_grad()
def weigh(problem: Problem, *, draws: int, seed: int) -> Weights:
    """Draw from the guide and evaluate both densities, many draws at once where model and guide allow it."""
    problem.require_all_data()
    guided = {name for name in latent(problem.guide_trace) if name in problem.trace}
    summed = {name for name, site in latent(problem.trace).items() if is_finite(site)} - guided

    def density(values: Draws) -> Draws:
        conditioned = poutine.condition(problem.model, data=values)
        trace, parts = score(conditioned, problem.args, {}, summed, values)
        inside = {name for part in parts for name in part.names}
        single = {name: site["log_prob_sum"] for name, site in samples(trace).items() if name not in inside}
        return single | {"+".join(part.names): part.log_prior + part.log_likelihood for part in parts}

    with poutine.seed(rng_seed=checked_seed(seed)):
        values, log_q = _draw(problem, draws)
        values = {name: value for name, value in values.items() if name in guided}
        for name, value in values.items():
            if not latent(problem.trace)[name]["fn"].support.check(value).all():
                raise BadInput(f"guide: site {name!r} has draws outside of its support in the model")
        terms = Mapped(density)(values)
    for name, term in terms.items():
        if not torch.isfinite(term).all():
            raise BadInput(f"site {name!r}: the model gives draws of the guide a density of zero, or none")
    return Weights(values, torch.stack(list(terms.values())).sum(0), log_q)


def _draw(problem: Problem, count: int) -> tuple[Draws, Tensor]:
    """Draws of every site of the guide and their log density `[S]`; one by one where particles cannot be a plate."""
    single, guide = latent(problem.guide_trace), problem.guide
    assert guide is not None
    nesting = -1 - min(free_dim(problem.trace), free_dim(problem.guide_trace))

    def together(*args: object) -> object:
        with pyro.plate("_draws", count, dim=-1 - nesting):
            return guide(*args)

    try:
        nodes = latent(_scored(together, problem.args))
        values = {name: nodes[name]["value"].reshape(count, *site["value"].shape) for name, site in single.items()}
        log_q = torch.stack([nodes[name]["log_prob"].reshape(count, -1).sum(1) for name in single]).sum(0)
        few = [_again(problem, {name: value[i] for name, value in values.items()}) for i in range(2)]
        if torch.allclose(torch.stack(few), log_q[:2], rtol=1e-8, atol=1e-8):
            return values, log_q
    except Exception:  # the guide does not broadcast
        pass
    rows = [latent(_scored(guide, problem.args)) for _ in range(count)]
    values = {name: torch.stack([row[name]["value"] for row in rows]) for name in single}
    return values, torch.stack([sum(site["log_prob_sum"] for site in row.values()) for row in rows])


def _scored(fn: Callable, args: tuple) -> Trace:
    trace = poutine.trace(fn).get_trace(*args)
    trace.compute_log_prob()
    return trace


def _again(problem: Problem, values: Draws) -> Any:
    """Log density of one draw by the guide alone; NaN where it computes other values from it."""
    drawn = {n: v for n, v in values.items() if not isinstance(problem.guide_trace.nodes[n]["fn"], Delta)}
    guide: Any = problem.guide
    nodes = samples(_scored(poutine.condition(guide, data=drawn), problem.args))
    same = all(torch.allclose(nodes[name]["value"], value) for name, value in values.items())
    return sum(nodes[name]["log_prob_sum"] for name in values) if same else torch.tensor(math.nan)
