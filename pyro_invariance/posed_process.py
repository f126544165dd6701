r"""Hypotheses on images in an unknown pose, which entries with decoders of different kinds share.

    noise    ~ LogNormal(log 0.01, 2)    variance above a floor of 1e-4, mean square of x = 1
    rotation ~ Uniform(0, pi)            half-width of the range of poses, of the hypothesis of that name

What the image of an upright thing is and how its pose is summed out is the entry's own.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import pyro
from torch import Tensor

from pyro_invariance import priors
from pyro_invariance.datasets import Dataset
from pyro_invariance.orbit_process import moved_by_name
from pyro_invariance.representations import Polar
from pyro_invariance.typing import BadInput, Images
from pyro_invariance.zoo import Extent, Hypothesis, Kind

NARROW, WIDE = math.radians(10), math.radians(150)  # where the range begins


def hyperparameters(kind: str, scale: float = 1.0) -> dict[str, Tensor]:
    """Sites of a hypothesis: noise, in mean squares of the images, and the range of `rotation`, radians; scalars."""
    sites = {"noise": pyro.sample("noise", priors.log_normal("noise", scale))}
    if kind == "rotation":
        sites["rotation"] = pyro.sample("rotation", priors.extent(math.pi))
    return sites


def polar_arrays(images: Images, most: int = 32) -> tuple[Tensor, Tensor, Polar]:
    """Images as polar arrays `[N, D]`, of no more numbers than the disk has pixels; their mean square; the grid.

    There are at most so many angles, an odd number of them if `most` is odd.
    """
    side = images.shape[-1]
    polar = Polar(max(2, min(8, side // 3)), min(most, 2 * side - most % 2))
    x = polar(images.mean(1, keepdim=True)).flatten(1)
    return x, x.square().mean(), polar


def hypotheses(
    data: Dataset,
    entry: str,
    model: Callable,
    prepare: Callable[[str, Dataset, Mapping[str, Tensor]], tuple],
    learn: Callable[[str, Dataset, int], dict[str, Tensor]],
    log_density: Callable,
    memory: Callable[[str, Dataset], int],
    *,
    noise: float,
    scale: float,
) -> list[Hypothesis]:
    """Null, trivial, rotation within a range and SO2; functions of an entry take which of them as their `kind`.

    Raises
    ------
    BadInput
        If the data are no images.
    """
    if data.kind != "images":
        raise BadInput(f"data: {data.name!r} holds {data.kind}; {entry} takes images [N, H, W] or [N, H, W, C]")
    extent = Extent("rotation", "rad", math.pi, 0.95 * math.pi, whole=True, resolution=math.radians(2))
    told = {"noise": priors.describe(scale)["noise"]}

    def make(name: str, kind: Kind, *contains: str) -> Hypothesis:
        ranged = name == "rotation"
        starts = [{"noise": noise, "rotation": begin} for begin in (NARROW, WIDE)] if ranged else [{"noise": noise}]
        return Hypothesis(
            name=name,
            kind=kind,
            base="none" if name == "null" else "polar",
            model=partial(model, kind=name, scale=scale),
            prepare=partial(prepare, name),
            starts=tuple(starts),
            contains=frozenset(contains),
            saturated=frozenset({"SO2", "rotation"} if ranged else ()),
            extents={"rotation": extent} if ranged else {},
            log_density=partial(log_density, kind=name),
            moved=partial(moved_by_name, name=name),
            memory=partial(memory, name),
            priors=told | ({"rotation": f"Uniform(0, {math.pi:.4g})"} if ranged else {}),
            learn=partial(learn, name),
            density=True,
        )

    return [
        make("null", "null"),
        make("trivial", "none"),
        make("rotation", "augmentation", "rotation"),
        make("SO2", "group", "SO2", "rotation"),
    ]
