"""Pictures of results; each function takes a result, draws on given or new axes and returns them."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from pyro_invariance.profiles import Profile
from pyro_invariance.selection import Selection, describe_extents

COLOURS = {"none": "0.55", "polar": "C0", "pixels": "C1", "patches": "C2"}


def _axes(axes: Axes | None, height: float = 4.0) -> Axes:
    return plt.subplots(figsize=(7, height), layout="constrained")[1] if axes is None else axes


def evidence(selection: Selection, axes: Axes | None = None) -> Axes:
    """Evidence of every hypothesis above the noise-only model, lower bound to type-II upper side, by base."""
    fits = selection.fits[::-1]
    ground = next((f.evidence.value for f in fits if f.kind == "null"), fits[0].evidence.value)
    axes = _axes(axes, 1.2 + 0.32 * len(fits))
    for row, f in enumerate(fits):
        axes.barh(row, f.evidence.value - ground, color=COLOURS.get(f.base, "C4"), height=0.7)
        axes.plot([f.evidence.value - ground, f.upper - ground], [row, row], color="black", lw=1)
        axes.annotate(describe_extents(f), (0, row), (4, 0), textcoords="offset points", va="center", fontsize=7, color="white")
    axes.set_yticks(range(len(fits)), [f.label for f in fits])
    axes.set_xlabel("log evidence above noise only (nats)")
    axes.set_title(f"{selection.data.name}: which symmetry?")
    bases = dict.fromkeys(f.base for f in selection.fits if f.kind != "null")
    axes.legend([plt.Rectangle((0, 0), 1, 1, color=COLOURS.get(b, "C4")) for b in bases], bases, title="base", loc="lower right")
    return axes


def symmetries(selection: Selection, axes: Axes | None = None) -> Axes:
    """Gap of every symmetry within its base, with the margin that it had to exceed, on a symmetric log scale."""
    judged = [v for v in selection.verdicts.values() if v.gap is not None]
    axes = _axes(axes, 1.4 + 0.4 * len(judged))
    colours = {"supported": "C2", "refused": "C3", "undecided": "0.6"}
    for row, v in enumerate(judged):
        axes.barh(row, v.gap, color=colours[v.verdict], height=0.6)
        note = v.verdict + (f" (better explained by {v.explained_by})" if v.explained_by else "")
        axes.annotate(f" {note} {v.gap:+.0f} ", (0, row), ha="right" if v.gap > 0 else "left", va="center", fontsize=8)
        axes.plot([-v.margin, v.margin], [row, row], color="black", lw=2)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_yticks(range(len(judged)), [v.symmetry for v in judged])
    axes.set_xlabel("best with it minus best without it (nats); black: margin needed")
    axes.set_title("Which symmetries do the data have?")
    return axes


def extents(selection: Selection, axes: Axes | None = None) -> Axes:
    """Posterior of every learned range, as a share of what its orbit reaches."""
    axes = _axes(axes)
    hypotheses = {h.label: h for h in selection.hypotheses}
    for f in selection.fits:
        for name, extent in hypotheses[f.label].extents.items():
            draws = f.draws[name].numpy() / extent.upper
            unit = f"{np.degrees(extent.upper):.0f} deg" if extent.unit == "rad" else f"{extent.upper:.2f} grid units"
            axes.hist(draws, bins=np.linspace(0, 1, 101), density=True, alpha=0.6, label=f"{name} (1 = {unit})")
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
    axes.set_ylabel("log density (nats)")
    axes.legend()
    axes.set_title("What each range would be worth")
    return axes


def save_all(selection: Selection, folder: Path) -> list[Path]:
    """Write the pictures of a selection as PNG and return their paths."""
    paths = []
    for draw in (evidence, symmetries, extents):
        axes = draw(selection)
        paths.append(folder / f"{draw.__name__}.png")
        axes.figure.savefig(paths[-1], dpi=120)
        plt.close(axes.figure)
    return paths
