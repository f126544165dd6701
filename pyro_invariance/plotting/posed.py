"""Poses of single items, of entries that say them, and what the items look like without."""

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyro_invariance import zoo
from pyro_invariance.plotting.base import new_axes
from pyro_invariance.results import Selection

SURE = 0.9  # mean resultant length
NONE = "No hypothesis with a pose was fitted"


def poses(selection: Selection, axes: Axes | None = None) -> Axes:
    """Mean pose of each item by the best hypothesis with a pose; items that hardly know theirs are drawn pale."""
    axes = new_axes(axes)
    found = zoo.load(selection.entry).poses(selection)
    if found is None:
        axes.set_title(NONE)
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


def bare(known: object, axes: Axes | None = None) -> Axes:
    """Axes without ticks, which say so where nothing is known of poses."""
    axes = new_axes(axes, 2.4)
    axes.set(xticks=[], yticks=[])
    if known is None:
        axes.set_title(NONE)
    return axes


def moved_back(axes: Axes, images: Tensor, back: Tensor, label: str) -> Axes:
    """Images `[N, H, W]` in a row as they are, and below them as they are when moved back by a hypothesis."""
    axes.imshow(torch.cat([torch.cat(list(row), 1) for row in (images, back)]).cpu().numpy(), cmap="gray")
    axes.set_title(f"as they are, and moved back by {label}")
    return axes
