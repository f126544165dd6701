r"""Hypotheses on images in an unknown pose, which entries with decoders of different kinds share.

    noise    ~ LogNormal(log 0.01, 2)    variance above a floor, mean square of x = 1
    rotation ~ Uniform(0, pi)            half-widths of the range of poses, of the hypotheses that turn or shift
    rows, columns ~ Uniform(0, 0.5)      within a range; the image is [-1, 1]

What the image of an upright thing is and how its pose is summed out is the entry's own.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_invariance import priors
from pyro_invariance.datasets import Dataset
from pyro_invariance.orbit_process import moved_by_name
from pyro_invariance.representations import Polar
from pyro_invariance.typing import BadInput, Images
from pyro_invariance.zoo import Extent, Hypothesis, Kind

NODES = {"learned": 256, "evidence": 1024}  # of a turn that is summed out
FLOOR = 2.5e-3  # of the noise then: with less of it poses lie between the nodes, and densities are off by 0.1 nats
SHIFTS = ("rows", "columns")
ALL = ("rotation", *SHIFTS)
RANGES = {"rotation": ("rotation",), "translation": SHIFTS, "rotation-translation": ALL, "SO2-translation": SHIFTS}
AXES = RANGES | {"null": (), "trivial": (), "SO2": ("rotation",), "SO2-translation": ALL}  # of the pose, not all ranged
FARTHEST = {"rotation": math.pi, "rows": 0.5, "columns": 0.5}
NARROW = {"rotation": math.radians(10), "rows": 0.05, "columns": 0.05}  # where ranges begin
WIDE = {"rotation": math.radians(150), "rows": 0.4, "columns": 0.4}

Given = Callable[..., Any]  # of (parameters, unit, kind, sites, count), the distribution of that many images


def hyperparameters(kind: str, scale: float = 1.0) -> dict[str, Tensor]:
    """Sites of a hypothesis: noise, in mean squares of the images, and its ranges, radians or grid units; scalars."""
    sites = {"noise": pyro.sample("noise", priors.log_normal("noise", scale))}
    return sites | {axis: pyro.sample(axis, priors.extent(FARTHEST[axis])) for axis in RANGES.get(kind, ())}


def polar_arrays(images: Images, most: int = 32) -> tuple[Tensor, Tensor, Polar]:
    """Images as polar arrays `[N, D]`, of no more numbers than the disk has pixels; their mean square; the grid.

    There are at most so many angles, an odd number of them if `most` is odd.
    """
    side = images.shape[-1]
    polar = Polar(max(2, min(8, side // 3)), min(most, 2 * side - most % 2))
    x = polar(images.mean(1, keepdim=True)).flatten(1)
    return x, x.square().mean(), polar


def best_posed(selection: Any, given: Given, axis: str | None = None) -> tuple[Any, Tensor, str] | None:
    """Of a `Selection`: the best hypothesis with a pose at the mean of its sites, its images `[N, D]`, and its label.

    With an axis: the best whose poses have that one.

    The first is the distribution that `given` of the entry returns; None if no hypothesis with a pose was fitted.
    """
    posed = [f for f in selection.fits if AXES.get(f.name)]
    found = next((f for f in posed if axis is None or axis in AXES[f.name]), None)
    if found is None:
        return None
    x, parameters, unit = selection.hypothesis(found.label).prepare(selection.data)
    sites = {name: values.mean() for name, values in found.draws.items()}
    return given(parameters, unit, found.name, sites, len(x)), x, found.label


def model(given: Given, x: Tensor, parameters: Any, unit: Tensor, *, kind: str, scale: float = 1.0) -> Tensor:
    """Pyro model of images `[N, D]`, given what was learned of them; `kind` is the hypothesis."""
    sites = hyperparameters(kind, scale)
    with pyro.plate("images", len(x)):
        return pyro.sample("x", given(parameters, unit, kind, sites, len(x)), obs=x)


def log_density(
    given: Given,
    arrays: Callable[[Images], tuple],
    args: tuple,
    draws: list[dict[str, Tensor]],
    inputs: Tensor,
    targets: Tensor,
    *,
    kind: str,
) -> Tensor:
    """Log density `[D, M]` of new images, in the arrays that the entry makes of them first."""
    _, parameters, unit = args
    x = arrays(inputs)[0].flatten(1)
    return torch.stack([given(parameters, unit, kind, sites, len(x)).log_prob(x) for sites in draws])


def hypotheses(
    data: Dataset,
    entry: str,
    model: Callable,
    log_density: Callable,
    prepare: Callable[[str, Dataset, Mapping[str, Tensor]], tuple],
    learn: Callable[[str, Dataset, int], dict[str, Tensor]],
    memory: Callable[[str, Dataset], int],
    *,
    noise: float,
    scale: float,
    base: str = "polar",
) -> list[Hypothesis]:
    """Null, trivial, rotation within a range and SO2; functions of an entry take which of them as their `kind`.

    Arrays that can be shifted, a base other than polar ones, have translation and turns with it as well.

    Raises
    ------
    BadInput
        If the data are no images.
    """
    if data.kind != "images":
        raise BadInput(f"data: {data.name!r} holds {data.kind}; {entry} takes images [N, H, W] or [N, H, W, C]")
    extents = {"rotation": Extent("rotation", "rad", math.pi, 0.95 * math.pi, whole=True, resolution=math.radians(2))}
    extents |= {axis: Extent(axis, "grid", FARTHEST[axis], 0.95 * FARTHEST[axis], False, 0.02) for axis in SHIFTS}
    told = {"noise": priors.describe(scale)["noise"]}

    def make(name: str, kind: Kind, *contains: str) -> Hypothesis:
        ranges = RANGES.get(name, ())
        turns = tuple(axis for axis in ranges if axis not in SHIFTS)
        starts = [{axis: begin[axis] for axis in ranges} for begin in (NARROW, WIDE)] if ranges else [{}]
        return Hypothesis(
            name=name,
            kind=kind,
            base="none" if name == "null" else base,
            model=partial(model, kind=name, scale=scale),
            prepare=partial(prepare, name),
            starts=tuple({"noise": noise} | start for start in starts),
            contains=frozenset(contains),
            saturated=frozenset({"SO2", *contains} if "rotation" in ranges else ()),
            ranges_of={"translation": SHIFTS, "rotation": turns, "SO2": turns},
            extents={axis: extents[axis] for axis in ranges},
            log_density=partial(log_density, kind=name),
            moved=partial(moved_by_name, name=name),
            memory=partial(memory, name),
            priors=told | {axis: f"Uniform(0, {FARTHEST[axis]:.4g})" for axis in ranges},
            learn=partial(learn, name),
            density=True,
        )

    shifted = [
        make("translation", "augmentation", "translation"),
        make("rotation-translation", "augmentation", "rotation", "translation"),
        make("SO2-translation", "augmentation", "SO2", "rotation", "translation"),
    ]
    return [
        make("null", "null"),
        make("trivial", "none"),
        make("rotation", "augmentation", "rotation"),
        make("SO2", "group", "SO2", "rotation"),
        *(shifted if base != "polar" else []),
    ]
