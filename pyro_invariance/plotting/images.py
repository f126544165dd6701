"""The user's own images, moved as each symmetry would have it."""

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from pyro_invariance.plotting.base import VERDICTS, new_axes
from pyro_invariance.results import Selection


def gallery(selection: Selection, axes: Axes | None = None) -> Axes:
    """Your own images under what each supported or refused symmetry takes to be the same."""
    data, count = selection.data, 6
    chosen = _one_of_each(data.y.tolist(), count) if data.classes else list(range(min(count, len(data.y))))
    rows = [("as given", "black", data.x[chosen])]
    for kind in ("supported", "refused"):
        for symmetry in (s for s, v in selection.verdicts.items() if v.verdict == kind):
            for caption, moved in _moved(selection, symmetry, kind, data.x[chosen]).items():
                rows.append((f"{symmetry}: {caption}", VERDICTS[kind], moved))
    axes = new_axes(axes, 0.5 + 0.55 * len(rows))
    axes.imshow(_montage([images for _, _, images in rows]), cmap="gray", aspect="equal")
    height = data.x.shape[-2] + 1
    axes.set_yticks([(row + 0.5) * height for row in range(len(rows))], [caption for caption, _, _ in rows])
    for label, (_, colour, _) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(colour)
    axes.set_xticks([])
    axes.set_title("green: survived; red: not")
    return axes


def _one_of_each(labels: list[int], count: int) -> list[int]:
    """The first item of each class, then the second of each, until there are enough."""
    rank = [labels[:i].count(label) for i, label in enumerate(labels[:200])]
    return sorted(range(len(rank)), key=lambda i: (rank[i], labels[i]))[:count]


def _moved(selection: Selection, symmetry: str, verdict: str, images: Tensor) -> dict[str, Tensor]:
    """Images moved by the hypothesis that stands for a symmetry: a supported range at its median and its end."""
    fits = {f.label: f for f in selection.fits}
    candidates = [h for h in selection.hypotheses if h.label in fits and symmetry in h.contains | h.saturated]
    if not candidates:
        return {}
    h = next((h for h in candidates if h.name == symmetry), candidates[0])
    if h.moved is None:
        return {}
    if not h.extents:
        return dict(h.moved(images, {}))
    if verdict == "refused":
        return dict(h.moved(images, {name: e.upper for name, e in h.extents.items()}))
    draws = fits[h.label].draws
    at_end = list(h.moved(images, {name: float(draws[name].quantile(0.975)) for name in h.extents}).items())
    return {**h.moved(images, {name: float(draws[name].median()) for name in h.extents}), **dict(at_end[-1:])}


def _montage(rows: list[Tensor]) -> np.ndarray:
    """Rows of images `[n, C, H, W]` as one picture `[h, w]` or `[h, w, 3]`, scaled to [0, 1]."""
    shown = np.stack([row.numpy() for row in rows])  # [rows, n, C, H, W]
    if shown.shape[2] != 3:
        shown = shown.mean(2, keepdims=True)
    low, high = rows[0].min().item(), rows[0].max().item()
    padded = np.pad(((shown - low) / (high - low)).clip(0, 1), [(0, 0)] * 3 + [(0, 1), (0, 1)], constant_values=1.0)
    tall = padded.transpose(0, 3, 1, 4, 2)  # [rows, H, n, W, C]
    return tall.reshape(tall.shape[0] * tall.shape[1], tall.shape[2] * tall.shape[3], -1).squeeze()
