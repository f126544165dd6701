"""Pictures of what was learned: evidence, symmetries, ranges, and how sure they are."""

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pyro_invariance.diagnostics import UNITS
from pyro_invariance.evidence.comparison import FLOOR
from pyro_invariance.modes import SCOUT
from pyro_invariance.plotting.base import VERDICTS, new_axes, of_base
from pyro_invariance.profiles import Profile
from pyro_invariance.results import Selection, describe_extents
from pyro_invariance.sensitivity import prior_sensitivity
from pyro_invariance.zoo import Extent

FEW = 2  # ranges that there is room for beside a line


def _end(extent: Extent) -> str:
    """The upper end of a range in words."""
    if extent.unit == "rad":
        return f"{np.degrees(extent.upper):.0f} deg"
    return f"{extent.upper:.2f}; {UNITS[extent.unit]}"


def evidence(selection: Selection, axes: Axes | None = None) -> Axes:
    """Evidence of every hypothesis: a dot for the lower bound, a line to the type-II upper side, by base."""
    fits = [f for f in selection.fits[::-1] if f.kind != "null"] or list(selection.fits)
    axes = new_axes(axes, 1.4 + 0.32 * len(fits))
    low, high = min(f.evidence.value for f in fits), max(f.upper for f in fits)
    for row, f in enumerate(fits):
        colour = of_base(f.base)
        axes.plot([f.evidence.value, f.upper], [row, row], color=colour, lw=2)
        axes.plot(f.evidence.value, row, marker="o", color=colour)
        right = f.evidence.value < (low + high) / 2  # there is more room on that side
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "size": 8}
        place["ha"] = "left" if right else "right"
        words = describe_extents(f) if len(f.extents) <= FEW else f"{len(f.extents)} ranges"
        at = f.upper if right else f.evidence.value, row
        axes.annotate(words, at, (8 if right else -8, 0), **place).set_in_layout(False)  # or the axes might vanish
    axes.set_xlim(low - 0.35 * (high - low) - 1, high + 0.05 * (high - low) + 1)
    axes.set_yticks(range(len(fits)), [f.label for f in fits])
    axes.grid(axis="x", alpha=0.3)
    null = next((f for f in selection.fits if f.kind == "null"), None)
    ground = f"; noise alone: {null.evidence.value:.0f}" if null else ""
    axes.set_xlabel(f"log evidence, nats (dot: lower bound, line: to the upper side{ground})")
    axes.set_title(f"{selection.data.name}: which symmetry?")
    bases = dict.fromkeys(f.base for f in fits)
    marks = [Line2D([], [], color=of_base(b), marker="o") for b in bases]
    axes.legend(marks, list(bases), title="base", loc="lower left", bbox_to_anchor=(1, 0))
    return axes


def symmetries(selection: Selection, axes: Axes | None = None) -> Axes:
    """Gap of every symmetry within its base on a symmetric log scale, and the margin that it had to exceed."""
    judged = [(v, v.gap, v.margin or 0.0) for v in selection.verdicts.values() if v.gap is not None]
    axes = new_axes(axes, 1.4 + 0.4 * len(judged))
    for row, (v, gap, margin) in enumerate(judged):
        axes.barh(row, gap, color=VERDICTS[v.verdict], height=0.6)
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
    axes.set_title(f"{selection.data.name}: which symmetries do the data have?")
    return axes


def sensitivity(selection: Selection, axes: Axes | None = None) -> Axes:
    """Gap of every symmetry with all prior scales halved, as they are and doubled."""
    priors = {1.0: selection.verdicts, **prior_sensitivity(selection)}
    judged = [s for s, v in selection.verdicts.items() if v.gap is not None]
    axes = new_axes(axes, 1.4 + 0.4 * len(judged))
    for (factor, verdicts), marker in zip(sorted(priors.items()), "<o>" if len(priors) > 1 else "o", strict=True):
        gaps = [verdicts[s].gap or 0.0 for s in judged]
        colours = [VERDICTS[verdicts[s].verdict] for s in judged]
        rows = np.arange(len(judged)) + 0.2 * np.log2(factor)
        axes.scatter(gaps, rows, c=colours, marker=marker, label=f"prior scales x {factor:g}")
    axes.axvspan(-FLOOR, FLOOR, color="black", alpha=0.08)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_yticks(range(len(judged)), judged)
    axes.set_xlabel("best evidence with it minus best without it (nats)")
    axes.margins(y=0.2)
    if judged:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0)
    axes.set_title("Do the verdicts survive other priors?")
    return axes


def extents(selection: Selection, axes: Axes | None = None) -> Axes:
    """Posterior of every learned range, as a share of what its orbit reaches."""
    axes = new_axes(axes)
    hypotheses = {h.label: h for h in selection.hypotheses}
    for f in selection.fits:
        for name, extent in hypotheses[f.label].extents.items():
            draws = f.draws[name].numpy() / extent.upper
            bins = np.linspace(0, 1, 101).tolist()
            label = name if name == f.label else f"{name} in {f.label}"
            axes.hist(draws, bins=bins, density=True, alpha=0.6, label=f"{label} (1 = {_end(extent)})")
    axes.set_xlim(0, 1)
    axes.set_xlabel("half-width of the range, share of its upper end")
    axes.set_ylabel("posterior density")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    axes.set_title("How far does each range reach?")
    return axes


def profiles(selection: Selection, axes: Axes | None = None) -> Axes:
    """Log joint density along every learned range, the rest optimised, below its top."""
    axes = new_axes(axes)
    ends = {h.label: ", ".join(dict.fromkeys(map(_end, h.extents.values()))) for h in selection.hypotheses}
    for f, marker in zip((f for f in selection.fits if f.profile), cycle("os^vD*"), strict=False):
        share, value = map(np.array, f.profile)
        label = f"{f.label} (1 = {ends[f.label]})"
        axes.plot(share, value - value.max(), marker=marker, color=of_base(f.base), label=label)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_xlabel("half-width of the range, share of its upper end")
    few = min(SCOUT, len(selection.data.y))
    axes.set_ylabel(f"log joint density of {few} items below the top (nats)")
    if axes.lines:
        axes.legend(fontsize="small")
    axes.set_title("What each range would be worth")
    return axes


def profile(result: Profile, axes: Axes | None = None) -> Axes:
    """Log density against one extent, other hyperparameters optimised."""
    axes = new_axes(axes)
    x = np.degrees(result.extent) if result.unit == "rad" else np.array(result.extent)
    axes.plot(x, result.log_density, marker="o")
    top = int(np.argmax(result.log_density))
    axes.axvline(x[top], color="C3", ls=":", label=f"largest at {x[top]:.3g}")
    unit = "degrees" if result.unit == "rad" else UNITS[result.unit]
    axes.set_xlabel(f"{result.label}: half-width of the range ({unit})")
    axes.set_ylabel("log joint density, the rest optimised (nats)")
    axes.legend()
    axes.set_title(f"What each range would be worth, on {result.images} items")
    return axes


def traces(selection: Selection, axes: Axes | None = None) -> Axes:
    """How the best hypothesis was fitted: the climb from each start, then SVI; other optima that were found."""
    axes, best = new_axes(axes), selection.best
    for number, path in enumerate(best.climbs):
        axes.plot(range(1, len(path) + 1), path, marker=".", color=f"C{number}", label=f"climb from start {number + 1}")
    begin = max(map(len, best.climbs), default=0)
    axes.plot(range(begin + 1, begin + 1 + len(best.path)), best.path, color="0.5", label="lower bound in SVI (noisy)")
    axes.axhline(best.evidence.value, color="black", lw=0.8, label=f"evidence {best.evidence.value:.1f}")
    for other in best.other_optima:
        at = ", ".join(f"{k} {v:.2f}" for k, v in other["extents"].items())
        axes.plot([], [], " ", label=f"another optimum, {other['below_best']:.0f} nats below: {at}")
    values = sorted(v for path in (*best.climbs, best.path) for v in path)
    axes.set_ylim(bottom=values[len(values) // 5] - 1 if values else None)
    axes.set_xlabel("step")
    axes.set_ylabel("log joint density, lower bound (nats)")
    axes.legend(fontsize=8)
    axes.set_title(f"Optimisation of {best.label}")
    return axes


def shares(selection: Selection, axes: Axes | None = None) -> Axes:
    """Share of the prior variance of each part of a sum, as it climbs to its mode; dots: posterior means, 95 % bars."""
    axes = new_axes(axes)
    hypotheses = {h.label: h for h in selection.hypotheses}
    for f in selection.fits:
        h = hypotheses[f.label]
        drawn = h.shares(f.draws)
        for number, (label, path) in enumerate(h.shares(f.positions).items()):
            colour, end, mean = f"C{number}", len(path) + number, float(drawn[label].mean())
            low, high = np.quantile(drawn[label].numpy(), [0.025, 0.975])
            axes.plot(path.numpy(), color=colour, label=f"{label} {mean:.0%}")
            axes.vlines(end, low, high, color=colour)
            axes.plot(end, mean, marker="o", color=colour)
    axes.set_ylim(0, 1)
    axes.set_xlabel("step of the climb to the mode; right: the posterior")
    axes.set_ylabel("share of the prior variance")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(f"{selection.data.name}: what is the function made of?")
    return axes
