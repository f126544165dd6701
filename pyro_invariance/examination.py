"""Is a zoo entry right? Posteriors and predictions calibrated, functions invariant, its own cases recognised."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pyro_invariance import zoo
from pyro_invariance.calibration import Calibration, calibrate
from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import KHAT
from pyro_invariance.evidence.fitted import guided
from pyro_invariance.evidence.laplace import maximise
from pyro_invariance.evidence.problem import Problem
from pyro_invariance.evidence.weights import elbo, iwae, psis
from pyro_invariance.fitting import PREDICTIVE, Fit, fit
from pyro_invariance.numerics import float64
from pyro_invariance.selection import select
from pyro_invariance.typing import BadInput, nearest
from pyro_invariance.zoo import Hypothesis

Z = float(stats.norm.isf(1e-4))  # of bounds that are compared
BOUND = 2000  # draws of a bound
ITEMS, TEST = 60, 200  # simulated, to learn from and to predict
CALIBRATED = 0.07  # expected calibration error: half or twice the right standard deviation give 0.1
INVARIANT = 0.2  # share of what a function without the symmetry changes by that an invariant one may


@dataclass(frozen=True)
class Check:
    """One line of the table: what was measured, what is accepted, whether it passed."""

    name: str
    measured: str
    accepted: str
    passed: bool


def examine(
    entry: str, hypothesis: str | None = None, *, simulations: int = 200, seed: int = 0, jobs: int | None = None
) -> Iterator[Check | Calibration]:
    """Check an entry of the zoo on data that it simulates itself; results as they come, the calibration among them.

    Parameters
    ----------
    entry : str
        Of the zoo; its module offers `data(planted, seed, size, test)` and `PLANTED`.
    hypothesis : str, optional
        Whose posteriors and predictions are calibrated; by default the first with a learned range, or that is planted.
    simulations, seed, jobs
        Of the simulation-based calibration.
    """
    module = zoo.load(entry)
    if "none" not in getattr(module, "PLANTED", {}) or len(module.PLANTED) < 2:
        raise BadInput(f"entry: {entry!r} has no PLANTED cases, `none` and a symmetry; see models/README.md")
    every = {planted: module.data(planted, seed, size=ITEMS, test=TEST) for planted in module.PLANTED}
    hypotheses = {h.label: h for h in module.hypotheses(every["none"])}
    if any(h.learn for h in hypotheses.values()):
        every = {planted: module.data(planted, seed, size=2 * ITEMS, test=TEST) for planted in every}
    every = {planted: zoo.taken(data, hypotheses.values(), seed) for planted, data in every.items()}
    claims = [label for label, h in hypotheses.items() if h.extents]
    claims += [label for label, h in hypotheses.items() if h.contains and label in every]
    name = hypothesis or next(iter([*claims, *hypotheses]))
    if name not in hypotheses:
        raise BadInput(f"hypothesis: got {name!r}; {nearest(name, hypotheses)}")
    chosen, data = hypotheses[name], every.get(name, every["none"])
    chosen = chosen.given(fit(chosen, data, seed).learned)
    yield _tails(chosen, data, seed)
    yield _ordering(chosen, data, seed)
    if chosen.predict and data.classes is None:
        yield _coverage(*_usual(module, name, seed))
    for label, h in hypotheses.items():
        plain = next((p for p in hypotheses.values() if p.kind == "none" and p.base == h.base), None)
        whole = h.kind == "group" and not h.extents and h.moved and h.predict
        if whole and plain and plain.predict and label in every:
            yield _invariance(h, plain, every[label], seed)
    symmetric = name if name in every else next(planted for planted in every if planted != "none")
    for planted in ("none", symmetric):
        yield _own_case(module, planted, hypotheses.get(planted), seed, jobs)
    found = calibrate(chosen, data, simulations=simulations, seed=seed, jobs=jobs)
    yield found
    outside = [site for site, out in found.outside.items() if out]
    yield Check(
        f"posteriors of {name} (SBC)",
        f"{', '.join(outside) or 'no site'} outside, {found.simulations} simulations, {len(found.failed)} failed",
        f"no site outside its {found.confidence:.0%} band",
        found.passed,
    )


@float64()
def _tails(hypothesis: Hypothesis, data: Dataset, seed: int) -> Check:
    evidence = psis(Problem(hypothesis.model, hypothesis.prepare(data)), seed=seed)
    khat = evidence.khat or 0.0  # none: the weights are all equal
    name = f"importance weights of a guide of {hypothesis.label} (k-hat)"
    return Check(name, f"{khat:.2f} from {evidence.draws} draws", f"<= {KHAT}", khat <= KHAT)


@float64()
def _ordering(hypothesis: Hypothesis, data: Dataset, seed: int) -> Check:
    """ELBO <= IWAE-20 <= largest likelihood, by z-tests with the same guide."""
    problem = Problem(hypothesis.model, hypothesis.prepare(data))
    tops = [maximise(problem.log_joint, problem.log_joint.pack(s), prior=False).value for s in hypothesis.starts]
    shared, _ = guided(problem, seed)
    low = elbo(shared, seed=seed, draws=BOUND)
    high = iwae(shared, seed=seed, draws=BOUND, particles=20)
    ordered = low.value <= high.value + Z * math.hypot(low.std_error, high.std_error)
    within = high.value <= max(tops) + Z * high.std_error
    measured = f"{low.value:.2f}, {high.value:.2f}, {max(tops):.2f} nats"
    name = f"ELBO, IWAE-20 and largest likelihood of {hypothesis.label}"
    return Check(name, measured, "in that order", ordered and within)


def _usual(module: ModuleType, name: str, seed: int) -> tuple[Fit, Dataset]:
    """A fit to as many items as the entry simulates by default; from few, predictions are those of the prior."""
    data = module.data(name if name in module.PLANTED else "none", seed, test=TEST)
    hypotheses = {h.label: h for h in module.hypotheses(data)}
    data = zoo.taken(data, hypotheses.values(), seed)
    return fit(hypotheses[name], data, seed), data


def _coverage(fitted: Fit, data: Dataset) -> Check:
    """Expected calibration error of the predictive distribution of values.

    Predictions of one function depend on each other, so that the limit is a figure and no test.
    """
    truth = data.encode(data.y_test)
    share = torch.special.ndtr((truth - fitted.test_mean) / fitted.test_variance.sqrt()[:, None]).flatten().numpy()
    error = _gap(share)
    name = f"predictions of {fitted.label} (expected calibration error)"
    return Check(name, f"{error:.3f} of {len(share)} values", f"<= {CALIBRATED}", error <= CALIBRATED)


def _gap(share: np.ndarray) -> float:
    """Mean gap between how often a value lies below a predicted quantile, and how often it should."""
    return float(np.abs(np.sort(share) - (np.arange(len(share)) + 0.5) / len(share)).mean())


@float64()
def _invariance(hypothesis: Hypothesis, plain: Hypothesis, data: Dataset, seed: int) -> Check:
    """How far f(g.x) is from f(x), against the same base without the symmetry: resampling an image is not exact."""
    (error, noise), (without, _) = (_changes(h, hypothesis, data, seed) for h in (hypothesis, plain))
    limit = INVARIANT * without
    measured = f"{error:.3f} +- {noise:.3f} of the spread, {without:.3f} without it"
    return Check(f"invariance error of {hypothesis.label}", measured, f"<= {limit:.3f}", error <= limit)


def _changes(hypothesis: Hypothesis, mover: Hypothesis, data: Dataset, seed: int) -> tuple[float, float]:
    """Root mean square of f(g.x) - f(x) over test items and elements, as a share of the spread of f; its error."""
    fitted, predict = fit(hypothesis, data, seed), hypothesis.predict
    args = hypothesis.given(fitted.learned).prepare(data)
    sites = [{k: v[i] for k, v in fitted.draws.items()} for i in range(PREDICTIVE)]
    assert predict is not None and mover.moved is not None  # noqa: PT018

    def f(inputs: Tensor) -> Tensor:
        return predict(args, sites, inputs)[0].mean(0).detach()

    here, moved = f(data.x_test), mover.moved(data.x_test, {})
    squares = torch.stack([(f(x) - here).square().mean(1) for x in moved.values()]).mean(0) / here.var()
    error = float(squares.mean().sqrt())
    return error, float(squares.std()) / math.sqrt(len(squares)) / (2 * max(error, 1e-12))  # of the root


def _own_case(module: ModuleType, planted: str, true: Hypothesis | None, seed: int, jobs: int | None) -> Check:
    """Does the entry find the symmetries that were planted, and no other of the same base?

    Those of other bases may well be supported: they are approximately what was planted.
    """
    result = select(module.data(planted, seed), module.CARD.name, seed=seed, jobs=jobs)
    held = {s: v.base for s, v in result.verdicts.items() if v.verdict == "supported"}
    said = f"supported: {', '.join(sorted(held)) or 'none'}"
    if planted == "none":
        return Check("no symmetry planted", said, "none", not held)
    wanted = true.contains if true else frozenset({planted})
    others = {s for s, base in held.items() if s not in wanted and true and base == true.base}
    accepted = f"{', '.join(sorted(wanted))}, and no other of the base"
    return Check(f"{planted} planted", said, accepted, wanted <= held.keys() and not others)


def table(checks: list[Check]) -> str:
    """Pass or fail, a line for each."""
    width = max(len(c.name) for c in checks)
    words = {True: "pass", False: "FAIL"}
    return "\n".join(f"{words[c.passed]}  {c.name:{width}}  {c.measured} (accepted: {c.accepted})" for c in checks)
