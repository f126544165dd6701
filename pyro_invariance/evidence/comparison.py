"""What two evidences say about each other: which model is better, by how much, and whether that can be trusted."""

import math
from dataclasses import dataclass
from typing import Literal

from pyro_invariance.evidence.base import ENOUGH, KHAT, Evidence
from pyro_invariance.typing import BadInput

FLOOR = 10.0  # nats; shuffled labels alone give gaps up to 6


@dataclass(frozen=True)
class Comparison:
    """The outcome of `compare`.

    Attributes
    ----------
    better : str
        `first`, `second` or `undecided`.
    gap : float
        Evidence of the first minus that of the second, nats.
    margin : float
        What the gap had to exceed, nats.
    certified : bool
        Whether the lower side of the better one clears the upper side of the other by three combined standard errors.
    reason : str
        Why it is undecided; empty if it is not.
    """

    better: Literal["first", "second", "undecided"]
    gap: float
    margin: float
    certified: bool
    reason: str


def compare(first: Evidence, second: Evidence, floor: float = FLOOR) -> Comparison:
    """Judge which of two models of the same data has the larger evidence.

    The gap must exceed each of: a floor, two combined standard errors, and of either evidence the spread of its starts,
    its drift and its estimated looseness.  A k-hat above 0.7 from enough draws leaves the looseness unknown, and the
    comparison undecided, unless exact sides or certified ones decide it.

    Raises
    ------
    BadInput
        If their sides, or their data, are not comparable; see `Evidence`.
    """
    if not isinstance(first, Evidence) or not isinstance(second, Evidence):
        raise BadInput(f"evidence: got {type(first).__name__} and {type(second).__name__}; two Evidence are accepted")
    gap, margin = (first - second).value, margin_of(first, second, floor=floor)
    ahead, behind = (first, second) if gap > 0 else (second, first)
    certified = clears(ahead, behind)
    blind = [e for e in (first, second) if e.khat is not None and e.khat > KHAT and e.draws >= ENOUGH]
    if blind and not certified:
        worst = max(e.khat or 0.0 for e in blind)
        reason = f"a guide misses a tail of its posterior (k-hat {worst:.2f}), its bound is loose by an unknown amount"
        return Comparison("undecided", gap, margin, False, reason)
    if ahead.bound == "upper":
        return Comparison("undecided", gap, margin, False, "the larger one is known from above only")
    if abs(gap) <= margin:
        return Comparison("undecided", gap, margin, False, f"{abs(gap):.1f} nats, {margin:.1f} needed")
    return Comparison("first" if gap > 0 else "second", gap, margin, certified, "")


def margin_of(*evidences: Evidence, floor: float = FLOOR) -> float:
    """What a gap between these must exceed, nats: the floor and every error that was measured."""
    errors = [floor, 2 * math.hypot(*(e.std_error for e in evidences))]
    for e in evidences:
        errors += [e.restart_spread or 0.0, e.drift or 0.0, e.looseness or 0.0]
    return max(errors)


def clears(ahead: Evidence, behind: Evidence) -> bool:
    """Whether the lower side of one is above the upper side of the other by three combined standard errors."""
    low, high = ahead.lower_side, behind.upper_side
    if low is None or high is None:
        return False
    error = behind.std_error if behind.bound in ("exact", "upper") else behind.upper_error
    return low - high > 3 * math.hypot(ahead.std_error, error)


def probabilities(evidences: dict[str, Evidence]) -> dict[str, float] | None:
    """Posterior probabilities of models that are equally probable before; None unless each is known to within 1 nat.

    That is, exact, or sandwiched so that the sides, two standard errors further apart, are no more than 1 nat apart.
    All must be of the same data.
    """
    if not evidences or len({e.data for e in evidences.values() if e.data}) > 1:
        return None
    for e in evidences.values():
        width = e.width
        if width is None or width + 2 * math.hypot(e.std_error, e.upper_error) > 1.0:
            return None
    top = max(e.value for e in evidences.values())
    shares = {name: math.exp(e.value - top) for name, e in evidences.items()}
    return {name: share / sum(shares.values()) for name, share in shares.items()}
