"""Pictures of results; each function takes a result, draws on given or new axes and returns them."""

from collections.abc import Callable

from matplotlib.axes import Axes

from pyro_invariance import zoo
from pyro_invariance.plotting.base import save
from pyro_invariance.plotting.calibrated import ranks
from pyro_invariance.plotting.held_out import calibration, paired, predictive_check
from pyro_invariance.plotting.images import gallery
from pyro_invariance.plotting.learned import (
    evidence,
    extents,
    profile,
    profiles,
    sensitivity,
    shares,
    symmetries,
    traces,
)
from pyro_invariance.plotting.posed import poses
from pyro_invariance.results import Selection

PICTURES: dict[Callable[[Selection], Axes], str] = {  # of every run, in the order of a report, with what each answers
    symmetries: "Which symmetries do the data have?",
    gallery: "What does that mean for these images?",
    evidence: "Which model explains the data best?",
    extents: "How far does each range reach?",
    profiles: "What would another range be worth?",
    paired: "Does held-out data agree?",
    calibration: "Are the probabilities right?",
    predictive_check: "Is the best model any good?",
    sensitivity: "Do the verdicts survive other priors?",
    traces: "Did the optimisation converge?",
}


def pictures(selection: Selection) -> dict[Callable[[Selection], Axes], str]:
    """Pictures of a run that are not empty, with what each answers: shares of a sum, poses, the entry's own."""
    empty = {gallery} if selection.data.kind != "images" else set()
    empty |= set() if any(f.extents for f in selection.fits) else {extents, profiles}
    empty |= {calibration, predictive_check} if any(h.density for h in selection.hypotheses) else set()
    general = {draw: asks for draw, asks in PICTURES.items() if draw not in empty}
    summed = {shares: "Which parts of the sum do the data support?"} if any(f.shares for f in selection.fits) else {}
    if selection.entry == "custom":
        return general | summed
    entry = zoo.load(selection.entry)
    posed = {poses: "In which pose is each item?"} if hasattr(entry, "poses") else {}
    return general | summed | posed | getattr(entry, "PICTURES", {})


__all__ = [
    "PICTURES",
    "calibration",
    "evidence",
    "extents",
    "gallery",
    "paired",
    "pictures",
    "poses",
    "predictive_check",
    "profile",
    "profiles",
    "ranks",
    "save",
    "sensitivity",
    "shares",
    "symmetries",
    "traces",
]
