r"""Gaussian process averaged over many augmentations at once: which of them do the labels of these images survive?

What is at stake: shifts, turns, changes of scale, aspect and slant act together, each within a range of its own.  All
ranges start open; the evidence shuts off those that the data do not support and says how far the others reach.  So do
the ranges of brightness, contrast, saturation and hue.

Generative process, for class contrasts :math:`y_{nc}` of unit variance (`pyro_invariance.processes`):

    lengthscale ~ LogNormal(0, 1)             in units of the mean distance between two images
    variance    ~ LogNormal(0, 1.5)
    noise       ~ LogNormal(log 0.01, 2)      variance above a floor of 1e-4
    extent_i    ~ Uniform(0, upper_i)         of each transformation i
    g_c         ~ GP(0, variance * RBF(lengthscale)), known through 400 of the images
    f_c(x)      = mean_v g_c(exp(sum_i c_vi G_i) x),   c_vi = extent_i u_vi,   u_v Sobol nodes of x in [-1, 1]^G
    y_nc        ~ Normal(f_c(x_n), sqrt(1e-4 + noise))

Two bases, each with its own `trivial`: in the **plane** each view has norm one, so that content which grows or leaves
is no brighter or darker; **colour** sees pixels as they are.  Two hypotheses are fitted when asked for by name:
**uneven**, whose ranges have a left and a right end each, and **elastic**.  A hypothesis with several ranges is one
symmetry, and what the data say about each of its transformations is its range.

Limitations: Gaussian likelihood on class codes; function averaging learns an insensitivity, so that a range need not be
that of the poses; the box is that of coefficients of one exponential; the function fades far from its centres; exact
inference, 2,000 images at most.  Each image has nodes of its own, so that what few of them miss is noise, which widens
with a range: a range may come out narrower than more nodes would have it.  Climbs have local optima, and a range that
the data hardly know may end narrow or wide: of 2,000 upright MNIST digits, modes whose slant reaches 2 % and 99 % of
its upper end lie 62 nats apart, of 2,700 that all ranges together gain.

References: [vanderwilk2018learning], [benton2020learning], [cranley1976randomization], [williams2001using],
[rasmussen2006gaussian].
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_invariance.averaged import AveragedKernel
from pyro_invariance.datasets import Dataset
from pyro_invariance.deformations import Deformation, Elastic
from pyro_invariance.groups import Mirror, Trivial
from pyro_invariance.matrix_groups import Affine, Colour, MatrixGroup
from pyro_invariance.orbit_process import hypothesis, model, predict, simulate
from pyro_invariance.orbits import FiniteOrbit, Orbit
from pyro_invariance.quadrature import ComposedOrbit, SobolOrbit
from pyro_invariance.representations import Pixels, ground
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Card, Extent, Hypothesis

__all__ = ["CARD", "PLANTED", "data", "hypotheses", "model", "predict"]

NODES = 64  # of the box
LEVEL = 0.02  # change of colour that cannot be told from none; in the plane, it is half a pixel at the rim
PLANE = {"rows": 1.0, "columns": 1.0, "rotation": math.pi, "scale": 1.0, "aspect": 0.7, "shear": 0.7, "amplitude": 0.2}
COLOUR = {"brightness": 0.5, "contrast": 0.7, "saturation": 0.7, "hue": math.pi}
UNITS: dict[str, Any] = {"rotation": "rad", "hue": "rad", "scale": "log", "aspect": "log", "contrast": "log"}
UNITS |= {"saturation": "log", "brightness": "level"}  # all others: grid

CARD = Card(
    name="augmentation_gp",
    title="Gaussian process averaged over many augmentations at once",
    task="classification or regression of images, up to 2,000 of them",
    kind="images",
    hypotheses=("null", "trivial", "mirror", "affine", "mirror-affine", "uneven", "elastic", "colour"),
    symmetries={
        "mirror": "a mirror that exchanges left and right",
        "affine": "shifts, turns, changes of scale, aspect and slant, each within its range",
        "elastic": "smooth deformations of a limited amplitude",
        "colour": "changes of brightness and contrast (of saturation and hue as well), each within its range",
    },
    data=("digits", "mnist", "fashion_mnist", "any .npz of images", "augmentation_gp-...: data(planted) of this file"),
    sites={
        "lengthscale": "[]",
        "variance": "[]",
        "noise": "[]",
        "rows, columns, rotation, scale, aspect, shear": "[] each",
        "rows_left, columns_left, rotation_left, scale_left, aspect_left, shear_left": "[] each, of uneven",
        "rows_right, columns_right, rotation_right, scale_right, aspect_right, shear_right": "[] each, of uneven",
        "amplitude": "[] of elastic",
        "brightness, contrast": "[] each, of colour images saturation and hue as well",
    },
    evidence=("lower (SVI over hyperparameters, f exact)", "upper (type-II maximum)"),
    references=("vanderwilk2018learning", "benton2020learning", "cranley1976randomization", "williams2001using"),
    licence="digits: CC BY 4.0 [alpaydin1998optical]; mnist: CC BY-SA 3.0 as redistributed [lecun1998gradient]; "
    "fashion_mnist: MIT [xiao2017fashion]; simulated: none needed",
    limitations=(
        "Gaussian likelihood on class codes",
        "learned extents are insensitivities; ranges are symmetric but for uneven",
        "function known at 400 images, averaged over 64 views of each: with more, ranges may be wider",
        "all of 60,000 images take hours to carry to: select --no-carry",
    ),
)


def hypotheses(data: Dataset, nodes: int = NODES, scale: float = 1.0) -> list[Hypothesis]:
    """All hypotheses for images of that size; more `nodes` (a power of two) fill the box better."""
    if data.kind != "images":
        raise BadInput(f"data: {data.name!r} holds {data.kind}; augmentation_gp takes images [N, H, W] or [N, H, W, C]")
    side, channels = data.x.shape[-1], data.x.shape[1]
    pool = math.ceil(side / 16)
    plane, level = Affine(), Colour(list(COLOUR)[: None if channels == 3 else 2])
    box, mirror, waves = SobolOrbit(plane, nodes), FiniteOrbit(Mirror()), Elastic()

    def make(
        name: str,
        kind: str,
        base: str,
        orbit: Orbit,
        group: MatrixGroup | Deformation | None = None,
        sides: tuple[str, ...] = ("",),
        contains: Iterable[str] | None = None,
    ) -> Hypothesis:
        ends = {n + end: (PLANE | COLOUR)[n] for end in sides for n in group.extents} if group else {}
        return hypothesis(
            name,
            kind,
            base,
            partial(AveragedKernel, orbit, Pixels(pool, normalise=base == "plane"), unit=base == "plane"),
            scale=scale,
            table=AveragedKernel.bytes,
            extents={n: _range(n, upper, LEVEL if base == "colour" else 1 / side) for n, upper in ends.items()},
            begin=_starts(ends, group) if group else None,
            contains=(name.split("-") if kind != "none" else ()) if contains is None else contains,
            moved=partial(_moved, group, "mirror" in name),
        )

    return [
        hypothesis("null", "null", "none", None, scale=scale),
        make("trivial", "none", "plane", FiniteOrbit(Trivial())),
        make("mirror", "group", "plane", mirror),
        make("affine", "augmentation", "plane", box, plane),
        replace(
            make("mirror-affine", "composition", "plane", ComposedOrbit(mirror, box), plane), ranges_of={"mirror": ()}
        ),
        replace(make("uneven", "augmentation", "plane", box, plane, ("_left", "_right"), {"affine"}), default=False),
        replace(make("elastic", "augmentation", "plane", SobolOrbit(waves, nodes), waves), default=False),
        make("trivial", "none", "colour", FiniteOrbit(Trivial())),
        make("colour", "augmentation", "colour", SobolOrbit(level, nodes), level),
    ]


def _starts(ends: Mapping[str, float], group: MatrixGroup | Deformation) -> tuple[dict[str, float], ...]:
    """All ranges narrow, all wider, and each of several wide while the others are narrow: basins lie far apart."""
    narrow, wider = ({n: share * upper for n, upper in ends.items()} for share in (0.05, 0.2))
    wide = [{n: 0.7 * upper for n, upper in ends.items() if n.partition("_")[0] == axis} for axis in group.extents]
    return narrow, wider, *(narrow | one for one in wide if len(wide) > 1)


def _range(name: str, upper: float, resolution: float) -> Extent:
    return Extent(name, UNITS.get(name.split("_")[0], "grid"), upper, 0.95 * upper, upper == math.pi, resolution)


def _moved(
    group: MatrixGroup | Deformation | None, mirror: bool, images: Tensor, extents: Mapping[str, float]
) -> dict[str, Tensor]:
    """Images exchanged left and right, and at the end of each range by itself, on their own ground."""
    shown = {"left and right exchanged": images.flip(-1)} if mirror else {}
    dark = 0.0 if isinstance(group, Colour) else ground(images)
    for name, extent in extents.items():
        assert group is not None
        name, _, side = name.partition("_")
        end = -extent if side == "left" else extent
        one = [end * (n == name) for n in group.extents]
        coefficients = torch.tensor([one] if len(one) == group.coefficients else [[end] * group.coefficients])
        caption = f"{name} {math.degrees(end):+.0f} degrees" if UNITS.get(name) == "rad" else f"{name} {end:+.2f}"
        shown[caption] = group.move(coefficients.to(images), images - dark)[:, 0] + dark
    return shown


PLANTED = {
    "none": ("trivial", {}),
    "mirror": ("mirror", {}),
    "affine": ("affine", dict.fromkeys(PLANE, 0.0) | {"rotation": math.radians(90), "scale": 0.5}),
}


def data(planted: str = "affine", seed: int = 0, size: int = 300, test: int = 200, side: int = 16) -> Dataset:
    """Simulated images whose values have a known symmetry; `none` breaks them all.

    Images are sums of six random Gaussian blobs on a dark ground; values are a draw of the Gaussian process that
    `planted` names, with noise of standard deviation 0.1.

    Parameters
    ----------
    planted : str
        One of `none`, `mirror`, `affine` (turns of +-90 degrees and scales of e^+-0.5).
    seed, size, test, side : int
        Seed, training images, test images, pixels per side.
    """
    return simulate(hypotheses, PLANTED, planted, "augmentation_gp", seed=seed, size=size, test=test, side=side)
