"""Simulation-based calibration: are the posteriors that `fit` returns right, on average over the prior?

For data simulated with sites drawn from the prior, the rank of each true value among independent draws of its
posterior is uniform [talts2018validating].  Posteriors that are too narrow, too wide or off leave their mark on the
ranks; a posterior that ignores the data does not.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import joblib
import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.util import prune_subsample_sites
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import fit
from pyro_invariance.modes import SCOUT
from pyro_invariance.numerics import float64
from pyro_invariance.traces import Free, samples
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

DRAWS = 99  # of the posterior that a true value is ranked among: a hundred ranks
FAILURES = 0.01  # share of simulations that may fail: they need not be like the others


@dataclass(frozen=True)
class Calibration:
    """Ranks of true values among draws of their posteriors, and whether they are uniform.

    Attributes
    ----------
    ranks : mapping of str to ndarray `[S]`
        From 0 to `draws`, of each scalar site; the coordinates of a vector are `name[0]`, `name[1]`, ...
    draws : int
        Draws that a value is ranked among.
    failed : tuple of str
        Simulations that could not be fitted, with the reason; they have no ranks.
    confidence : float
        Probability that no site leaves its band if all posteriors are right.
    """

    ranks: Mapping[str, np.ndarray]
    draws: int = DRAWS
    failed: tuple[str, ...] = ()
    confidence: float = 0.99

    @property
    def simulations(self) -> int:
        """Those that were fitted."""
        return len(next(iter(self.ranks.values()), ()))

    @property
    def ecdf(self) -> dict[str, np.ndarray]:
        """Share of the ranks up to 0, 1, ..., `draws - 1` of each site; (rank + 1) / (draws + 1) is expected."""
        counts = {name: np.bincount(ranks, minlength=self.draws + 1) for name, ranks in self.ranks.items()}
        return {name: count.cumsum()[:-1] / self.simulations for name, count in counts.items()}

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of what `ecdf` may be, over all ranks and sites at once [sailynoja2022graphical]."""
        each = (1 - self.confidence) / len(self.ranks)  # Bonferroni: the sites of a posterior depend on each other
        return _band(self.simulations, self.draws + 1, each)

    @property
    def outside(self) -> dict[str, bool]:
        """Whether the ranks of a site leave the band."""
        return {name: bool(np.any((e < self.band[0]) | (e > self.band[1]))) for name, e in self.ecdf.items()}

    @property
    def passed(self) -> bool:
        """Whether all sites stay within the band and nearly all simulations were fitted."""
        few = len(self.failed) <= FAILURES * (self.simulations + len(self.failed))
        return few and not any(self.outside.values())


@cache
def _band(size: int, bins: int, miss: float) -> tuple[np.ndarray, np.ndarray]:
    """Band that the ECDF of `size` uniform ranks leaves with probability `miss` at most.

    Pointwise binomial intervals, as narrow as their joint probability allows.  That is exact, unlike the search of
    `arviz.stats.ecdf_utils`, whose tolerance is as large as the pointwise level is with many sites.
    """
    expected = np.arange(1, bins) / bins

    def counts(level: float) -> tuple[np.ndarray, np.ndarray]:
        ends = stats.binom.ppf(level / 2, size, expected), stats.binom.isf(level / 2, size, expected)
        return ends[0].astype(int), ends[1].astype(int)

    low, high = 0.0, miss
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(size, bins, *counts(middle)) >= 1 - miss else (low, middle)
    lower, upper = counts(low)
    return lower / size, upper / size


def _inside(size: int, bins: int, lower: np.ndarray, upper: np.ndarray) -> float:
    """Probability that all cumulated counts of uniform ranks lie within limits, those included.

    Counts are independent Poisson variables given their sum, so that cumulated ones are a walk.
    """
    step = stats.poisson.pmf(np.arange(size + 1), size / bins)
    walk = np.eye(1, size + 1)[0]
    for least, most in zip(lower, upper, strict=True):
        walk = np.convolve(walk, step)[: size + 1]
        walk[:least] = walk[most + 1 :] = 0.0
    return float(np.convolve(walk, step)[size] / stats.poisson.pmf(size, size))


@float64()
@torch.no_grad()
def simulated(hypothesis: Hypothesis, data: Dataset, seed: int) -> tuple[Hypothesis, dict[str, Tensor]]:
    """Draw sites from the prior of a hypothesis and data given them, at the inputs of a data set.

    Returns
    -------
    Hypothesis, dict of str to Tensor
        The same hypothesis observing these data instead of its own, and the true value of each continuous site.

    Raises
    ------
    BadInput
        If there are too many items, or the model has data that cannot be drawn.
    """
    if len(data.y) > SCOUT:
        raise BadInput(f"data: got {len(data.y)} items; {SCOUT} or fewer can be simulated, as more are fitted in parts")
    with poutine.seed(rng_seed=seed):  # the caller's random numbers go on as if nothing had been drawn
        trace = poutine.trace(Free()(hypothesis.model)).get_trace(*hypothesis.prepare(data))
    sites = samples(prune_subsample_sites(trace))
    drawn = {name: site["value"] for name, site in sites.items() if site["infer"].get("was_observed")}
    if not drawn or any(isinstance(site["fn"], Unit) for site in sites.values()):
        raise BadInput("model: got no observed site, or a bare factor; data of neither can be drawn")
    truth = {
        name: site["value"]
        for name, site in sites.items()
        if name not in drawn and not site["is_observed"] and not site["fn"].has_enumerate_support
    }
    model = poutine.condition(hypothesis.model, data=drawn)
    return replace(hypothesis, model=model, predict=None, moved=None), truth


def calibrate(
    hypothesis: Hypothesis, data: Dataset, *, simulations: int = 200, seed: int = 0, jobs: int | None = None
) -> Calibration:
    """Simulate data from the prior of a hypothesis, fit it to them, and rank the true values, many times.

    Parameters
    ----------
    hypothesis, data
        What is fitted, and the inputs that it sees; of the labels only their number matters.
    simulations, seed : int
        How many; what they are drawn from.
    jobs : int, optional
        Processes, one thread each; as many as there are cores by default, 1 for this very process.
    """
    seeds = (np.random.SeedSequence(seed).generate_state(3 * simulations) >> 1).reshape(-1, 3).tolist()
    parallel = joblib.Parallel(n_jobs=jobs or joblib.cpu_count(), return_as="generator")
    made = parallel(joblib.delayed(_attempt)(hypothesis, data, *row) for row in seeds)
    results = list(tqdm(made, total=simulations, desc="simulations", disable=not sys.stderr.isatty()))
    failed = tuple(f"simulation {i}: {result}" for i, result in enumerate(results) if isinstance(result, str))
    ranked = [result for result in results if not isinstance(result, str)]
    names = ranked[0] if ranked else ()
    return Calibration({name: np.array([row[name] for row in ranked]) for name in names}, DRAWS, failed)


def _attempt(hypothesis: Hypothesis, data: Dataset, truths: int, fits: int, ties: int) -> dict[str, int] | str:
    """Rank the true values of one simulation, from three seeds; a failure is an answer, bad input is not."""
    try:
        made, truth = simulated(hypothesis, data, truths)
        with poutine.seed(rng_seed=fits):
            return _ranks(truth, fit(made, data, fits).draws, np.random.default_rng(ties))
    except BadInput:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _ranks(truth: Mapping[str, Tensor], draws: Mapping[str, Tensor], rng: np.random.Generator) -> dict[str, int]:
    ranks = {}
    for name, values in truth.items():
        kept = draws[name][torch.linspace(0, len(draws[name]) - 1, DRAWS).long()]
        for index in np.ndindex(*values.shape):
            among, true = kept[(slice(None), *index)], values[index]
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            ranks[label] = int((among < true).sum()) + int(rng.integers(int((among == true).sum()) + 1))
    return ranks
