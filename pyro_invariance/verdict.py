"""From evidences to a verdict: which model predicts best, and which symmetries the data have.

Symmetries are contrasts **within one base**, because representation and base kernel alone are worth more than many a
symmetry.  A range that went to zero is its `trivial`; one that went to the whole group is the group.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from pyro_invariance.evidence.comparison import FLOOR, clears, compare, margin_of
from pyro_invariance.fitting import Fit
from pyro_invariance.zoo import Hypothesis


@dataclass(frozen=True)
class Verdict:
    """What the data say about one symmetry.

    Attributes
    ----------
    symmetry : str
        Its name.
    verdict : str
        `supported`, `refused` or `undecided`.
    certified : bool
        Whether lower sides clear upper sides by three combined standard errors.
    gap : float or None
        Best evidence with the symmetry minus best without, in its base, nats.
    margin : float or None
        What the gap had to exceed, nats.
    base : str
        The base with the largest gap in size.
    explained_by : str or None
        A symmetry of another base that explains these data better by more than the gap.
    reason : str
        The verdict in words.
    """

    symmetry: str
    verdict: Literal["supported", "refused", "undecided"]
    certified: bool
    gap: float | None
    margin: float | None
    base: str
    explained_by: str | None
    reason: str


def verdicts(
    fits: list[Fit], omitted: Collection[Hypothesis] = (), failed: Collection[Hypothesis] = ()
) -> dict[str, Verdict]:
    """Judge every symmetry that a fitted hypothesis claims, or would claim at the end of its range.

    Where a hypothesis that failed might have changed the side that lost, the symmetry is undecided; where one that was
    not asked for might have, nothing is certified.
    """
    null = next((f for f in fits if f.kind == "null"), None)
    symmetries = sorted({s for f in fits for s in (*f.claims, *f.contains)})
    plain = {s: _complete(_contrast(s, fits, null), omitted, failed) for s in symmetries}
    return {s: _explained(v, plain, fits) for s, v in plain.items()}


def best(fits: list[Fit]) -> tuple[Fit, Fit | None]:
    """The hypothesis of largest evidence, and the runner-up that is not the same model at the end of its range."""
    ranked = sorted(fits, key=lambda f: -f.evidence.value)
    first = ranked[0]
    others = [f for f in ranked[1:] if not _same(first, f)]
    return first, others[0] if others else None


def of_sums(fits: list[Fit]) -> list[str]:
    """Say of each sum of priors what it gains on the best single one, and how its parts share the prior variance.

    A sum stands in no contrast, so that nothing is supported or refused by it; where it does not beat noise alone, its
    shares mean nothing.
    """
    null = next((f for f in fits if f.kind == "null"), None)
    single = max((f for f in fits if not f.shares and f is not null), key=lambda f: f.evidence.value, default=None)
    found = []
    for f in fits:
        if not f.shares:
            continue
        words = f"shares of its prior variance: {', '.join(f'{k} {v:.0%}' for k, v in f.shares.items())}"
        if null is None:
            words = f"{words} (the noise-only null was not fitted)"
        elif not _beats(f, null):
            lift = f.evidence.value - null.evidence.value
            words = f"its shares mean nothing, because it beats noise alone by {lift:+.1f} nats only"
        gap = f.evidence.value - single.evidence.value if single else 0.0
        versus = f"{abs(gap):.1f} nats {'more' if gap > 0 else 'less'} than {single.label}; " if single else ""
        found.append(f"{f.label}, a sum of priors: {versus}{words}")
    return found


def _beats(f: Fit, null: Fit) -> bool:
    """Whether a hypothesis explains the data better than noise alone."""
    return f.evidence.value - null.evidence.value > margin_of(f.evidence, null.evidence, floor=FLOOR)


def _same(f: Fit, g: Fit) -> bool:
    """Whether one is the other at an end of its range."""
    a_range = any(h.kind in ("augmentation", "convolution") for h in (f, g))
    return a_range and f.base == g.base and f.contains == g.contains


def _lacks(f: Fit, symmetry: str) -> bool:
    """Whether a hypothesis is without a symmetry.

    On neither side are a range that may have reached the whole group, and a composition whose ranges went to zero: what
    is left of it is another hypothesis of the base.
    """
    may_have = symmetry in f.claims and any(r.saturated and r.whole for r in f.extents.values())
    closed = f.kind == "composition" and bool(f.claims) and not f.contains
    return symmetry not in f.contains and not may_have and not closed


def _contrast(symmetry: str, fits: list[Fit], null: Fit | None) -> Verdict:
    bases = {f.base for f in fits if symmetry in f.claims or symmetry in f.contains}
    for base in sorted(bases):  # an elementary symmetry lives in one base of an entry
        inside = [f for f in fits if f.base == base]
        having = [f for f in inside if symmetry in f.contains]
        lacking = [f for f in inside if _lacks(f, symmetry)]

        def say(verdict, reason, gap=None, margin=None, certified=False, base=base):  # type: ignore[no-untyped-def]
            return Verdict(symmetry, verdict, certified, gap, margin, base, None, reason)

        if not lacking:
            return say("undecided", f"no hypothesis of the {base} base without it was fitted")
        without = max(lacking, key=lambda f: f.evidence.value)
        if not having:
            zero = any(symmetry in f.claims and f.extents and all(r.zero for r in f.extents.values()) for f in inside)
            reason = (
                "its learned range went to zero: it is its own trivial"
                if zero
                else f"nothing in the {base} base has it"
            )
            return say("undecided", reason)
        with_it = max(having, key=lambda f: f.evidence.value)
        outcome = compare(with_it.evidence, without.evidence, FLOOR)
        gap, margin = outcome.gap, outcome.margin
        versus = f"{with_it.label} against {without.label}: {gap:+.1f} nats, {margin:.1f} needed"
        if outcome.better == "undecided":
            return say("undecided", versus if abs(gap) <= margin else f"{versus}; but {outcome.reason}", gap, margin)
        if null is None:
            return say("undecided", f"{versus}; the noise-only null was not fitted", gap, margin)
        winner = with_it if gap > 0 else without
        if not _beats(winner, null):
            lift = winner.evidence.value - null.evidence.value
            return say(
                "undecided", f"{versus}; but {winner.label} beats noise alone by {lift:+.1f} nats only", gap, margin
            )
        certified = all(clears(winner.evidence, f.evidence) for f in (lacking if gap > 0 else having))
        if gap > 0:
            return say("supported", versus + _shut(with_it), gap, margin, certified)
        return say("refused", versus, gap, margin, certified)
    raise AssertionError("a symmetry without a base")


def _shut(f: Fit) -> str:
    """Which of the ranges of a hypothesis the data have closed, and which are left."""
    shut = [name for name, r in f.extents.items() if r.zero]
    kept = [name for name, r in f.extents.items() if not r.zero and not r.undetermined]
    return f"; ranges kept: {', '.join(kept)}; shut off: {', '.join(shut)}" if shut and kept else ""


def _complete(verdict: Verdict, omitted: Collection[Hypothesis], failed: Collection[Hypothesis]) -> Verdict:
    """Say which hypotheses that were not fitted might have changed a verdict."""
    if verdict.verdict == "undecided":
        return verdict

    def rivals(absent: Collection[Hypothesis]) -> str:
        """Those of the base that could stand on the side that lost."""
        without = verdict.verdict == "supported"
        return ", ".join(
            h.label
            for h in absent
            if h.base == verdict.base and without != (verdict.symmetry in h.contains | h.saturated)
        )

    if names := rivals(failed):
        reason = f"{verdict.reason}; but {names} failed, and might have changed it"
        return replace(verdict, verdict="undecided", certified=False, reason=reason)
    if names := rivals(omitted):
        return replace(verdict, certified=False, reason=f"{verdict.reason}; not compared with {names}")
    return verdict


def _explained(verdict: Verdict, plain: dict[str, Verdict], fits: list[Fit]) -> Verdict:
    """Say where a supported symmetry of another base explains the data better by more than the gap.

    By more than twice the gap, support is withdrawn: averaging over turns helps on shifted images too, and only the
    comparison tells.  Patches are never that other base: a patch kernel is better at images whatever their symmetry.
    """
    if verdict.verdict != "supported" or verdict.gap is None:
        return verdict

    def top(base: str) -> float:
        return max(f.evidence.value for f in fits if f.base == base)

    patches = {f.base for f in fits if f.kind == "convolution"}
    rivals = [v for v in plain.values() if v.verdict == "supported" and v.base not in {verdict.base, *patches}]
    ahead = {v.symmetry: top(v.base) - top(verdict.base) for v in rivals}
    other = max(ahead, key=lambda s: (ahead[s], plain[s].gap), default=None)
    if other is None or ahead[other] <= verdict.gap:
        return verdict
    reason = f"{verdict.reason}; but {other} explains these data better by {ahead[other]:.0f} nats"
    if ahead[other] <= 2 * verdict.gap:
        return replace(verdict, explained_by=other, reason=reason)
    return replace(verdict, verdict="undecided", certified=False, explained_by=other, reason=reason)
