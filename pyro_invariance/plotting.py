"""Pictures of results; each function takes a result, draws on given or new axes and returns them."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pyro_invariance.profiles import Profile
from pyro_invariance.results import Selection, describe_extents

COLOURS = {"none": "0.55", "polar": "C0", "pixels": "C1", "patches": "C2"}


def _axes(axes: Axes | None, height: float = 4.0) -> Axes:
    return plt.subplots(figsize=(7, height), layout="constrained")[1] if axes is None else axes


def evidence(selection: Selection, axes: Axes | None = None) -> Axes:
    """Evidence of every hypothesis: a dot for the lower bound, a line to the type-II upper side, by base."""
    fits = [f for f in selection.fits[::-1] if f.kind != "null"] or list(selection.fits)
    axes = _axes(axes, 1.4 + 0.32 * len(fits))
    for row, f in enumerate(fits):
        colour = COLOURS.get(f.base, "C4")
        axes.plot([f.evidence.value, f.upper], [row, row], color=colour, lw=2)
        axes.plot(f.evidence.value, row, marker="o", color=colour)
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "ha": "right", "size": 8}
        axes.annotate(describe_extents(f), (f.evidence.value, row), (-8, 0), **place)
    low, high = min(f.evidence.value for f in fits), max(f.upper for f in fits)
    axes.set_xlim(low - 0.35 * (high - low) - 1, high + 0.05 * (high - low) + 1)
    axes.set_yticks(range(len(fits)), [f.label for f in fits])
    axes.grid(axis="x", alpha=0.3)
    null = next((f for f in selection.fits if f.kind == "null"), None)
    ground = f"; noise alone: {null.evidence.value:.0f}" if null else ""
    axes.set_xlabel(f"log evidence, nats (dot: lower bound, line: to the upper side{ground})")
    axes.set_title(f"{selection.data.name}: which symmetry?")
    bases = dict.fromkeys(f.base for f in fits)
    marks = [Line2D([], [], color=COLOURS.get(b, "C4"), marker="o") for b in bases]
    axes.legend(marks, list(bases), title="base", loc="lower right")
    return axes


def symmetries(selection: Selection, axes: Axes | None = None) -> Axes:
    """Gap of every symmetry within its base on a symmetric log scale, and the margin that it had to exceed."""
    judged = [(v, v.gap, v.margin or 0.0) for v in selection.verdicts.values() if v.gap is not None]
    axes = _axes(axes, 1.4 + 0.4 * len(judged))
    colours = {"supported": "C2", "refused": "C3", "undecided": "0.6"}
    for row, (v, gap, margin) in enumerate(judged):
        axes.barh(row, gap, color=colours[v.verdict], height=0.6)
        axes.barh(row, 2 * margin, left=-margin, color="black", alpha=0.15, height=0.8)
        note = v.verdict + (f" ({v.explained_by} explains more)" if v.explained_by else "")
        side = -1 if gap > 0 else 1
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "size": 9}
        place["ha"] = "right" if gap > 0 else "left"
        axes.annotate(f"{note} {gap:+.0f}", (side * margin, row), (4 * side, 0), **place)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xscale("symlog", linthresh=10)
    widest = max([100.0, *(abs(gap) for _, gap, _ in judged)])
    axes.set_xlim(-2 * widest, 2 * widest)
    axes.set_yticks(range(len(judged)), [v.symmetry for v, _, _ in judged])
    axes.set_xlabel("best evidence with it minus best without it (nats); grey: margin that it had to exceed")
    axes.set_title(f"{selection.data.name}: which symmetries do the labels have?")
    return axes


def extents(selection: Selection, axes: Axes | None = None) -> Axes:
    """Posterior of every learned range, as a share of what its orbit reaches."""
    axes = _axes(axes)
    hypotheses = {h.label: h for h in selection.hypotheses}
    for f in selection.fits:
        for name, extent in hypotheses[f.label].extents.items():
            draws = f.draws[name].numpy() / extent.upper
            unit = f"{np.degrees(extent.upper):.0f} deg" if extent.unit == "rad" else f"{extent.upper:.2f} grid units"
            axes.hist(
                draws, bins=np.linspace(0, 1, 101).tolist(), density=True, alpha=0.6, label=f"{name} (1 = {unit})"
            )
    axes.set_xlim(0, 1)
    axes.set_xlabel("half-width of the range, share of its upper end")
    axes.set_ylabel("posterior density")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    axes.set_title("How far does each range reach?")
    return axes


def profile(result: Profile, axes: Axes | None = None) -> Axes:
    """Log density against the extent, other hyperparameters optimised."""
    axes = _axes(axes)
    x = np.degrees(result.extent) if result.unit == "rad" else np.array(result.extent)
    axes.plot(x, result.log_density, marker="o")
    top = int(np.argmax(result.log_density))
    axes.axvline(x[top], color="C3", ls=":", label=f"largest at {x[top]:.3g}")
    unit = "degrees" if result.unit == "rad" else "image grid, side 2"
    axes.set_xlabel(f"{result.label}: half-width of the range ({unit})")
    axes.set_ylabel("log joint density, the rest optimised (nats)")
    axes.legend()
    axes.set_title(f"What each range would be worth, on {result.images} items")
    return axes


def save(axes: Axes, path: Path) -> None:
    """Write the figure of these axes as a PNG, and close it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_all(selection: Selection, folder: Path) -> list[Path]:
    """Write the pictures of a selection as PNG and return their paths."""
    paths = []
    for draw in (evidence, symmetries, extents):
        axes = draw(selection)
        paths.append(folder / f"{draw.__name__}.png")
        save(axes, paths[-1])
    return paths
