"""Axes, colours and files that all pictures share."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

VERDICTS = {"supported": "C2", "refused": "C3", "undecided": "0.6"}
BASES = {"none": "0.55", "polar": "C0", "pixels": "C1", "patches": "C2", "plane": "C5", "colour": "C6", "sum": "C8"}


def new_axes(axes: Axes | None, height: float = 4.0) -> Axes:
    """Given axes, or new ones of that height in inches."""
    return plt.subplots(figsize=(7, height), layout="constrained")[1] if axes is None else axes


def of_base(base: str) -> str:
    """Colour of a base."""
    return BASES.get(base, "C4")


def save(axes: Axes, path: Path) -> None:
    """Write the figure of these axes as a PNG, and close it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=120)
    plt.close(figure)
