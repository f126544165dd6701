"""Poses of single items, of entries that say them."""

import torch
from matplotlib.axes import Axes

from pyro_invariance import zoo
from pyro_invariance.plotting.base import new_axes
from pyro_invariance.results import Selection

SURE = 0.9  # mean resultant length


def poses(selection: Selection, axes: Axes | None = None) -> Axes:
    """Mean pose of each item by the best hypothesis with a pose; items that hardly know theirs are drawn pale."""
    axes = new_axes(axes)
    found = zoo.load(selection.entry).poses(selection)
    if found is None:
        axes.set_title("No hypothesis with a pose was fitted")
        return axes
    angle, length, label = found
    known = length > SURE
    axes.hist(
        [torch.rad2deg(angle[which]).numpy() for which in (known, ~known)],
        bins=72,
        range=(-180, 180),
        stacked=True,
        color=["C0", "0.8"],
        label=[f"known ({int(known.sum())})", f"mean resultant length below {SURE} ({int((~known).sum())})"],
    )
    axes.set(xlabel=f"pose by {label}, degrees", ylabel=selection.data.kind)
    axes.legend()
    return axes
