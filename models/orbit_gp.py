r"""Orbit Gaussian process on images: which symmetry do the labels of these images have?

A function averaged over an orbit of the image does not change when the image moves along the orbit.  Each hypothesis
is a prior over such functions; the exact marginal likelihood of the labels, integrated over the few hyperparameters
by SVI, says which one the data support and how far its range reaches.

Generative process, for class contrasts :math:`y_{nc}` of unit variance (`pyro_invariance.processes`):

    lengthscale ~ LogNormal(0, 1)             in units of the mean distance between two images
    variance    ~ LogNormal(0, 1.5)
    noise       ~ LogNormal(log 0.01, 2)      variance above a floor of 1e-4
    extent      ~ Uniform(0, upper)           of each learned range
    g_c         ~ GP(0, variance * RBF(lengthscale))
    f_c(x)      = sum_v w_v(extent) g_c(v),   v in orbit(x)
    y_nc        ~ Normal(f_c(x_n), sqrt(1e-4 + noise))

Three bases, each with its own `trivial`: **polar** arrays for turns and reflections, zero-padded **pixels** for
shifts, location-weighted **patches** for convolution.  Symmetries are contrasts within a base.

The `composition` is the sum of six of these functions, :math:`f = \sum_b s_b f_b`, with a scale each in place of the
variance, `scale_b ~ HalfNormal(1)`: the data say how much of each there is (`pyro_invariance.sums`).

Limitations: Gaussian likelihood on class codes, so evidence rewards sharpness; function averaging learns an
insensitivity, so the best extent for images turned by +-45 degrees is wider than 45; turns see the inscribed disk
only; shifts reach 3 nodes each way; exact inference, 2,000 images at most.

References: [vanderwilk2018learning], [haasdonk2007invariant], [vanderwilk2017convolutional], [rasmussen2006gaussian].
"""

import math
from functools import partial
from typing import Any

from torch import Tensor

from pyro_invariance.datasets import Dataset
from pyro_invariance.densities import SoftUniform
from pyro_invariance.kernels import OrbitKernel, PatchKernel
from pyro_invariance.orbit_process import hypothesis, model, predict, simulate
from pyro_invariance.orbits import Shifts, Turns
from pyro_invariance.representations import Pixels, Polar
from pyro_invariance.sums import composition
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Card, Extent, Hypothesis

__all__ = ["CARD", "PLANTED", "data", "hypotheses", "model", "predict"]

NAMES = ("null", "trivial", "mirror", "C4", "D4", "SO2", "O2", "rotation", "translation", "convolution", "composition")
PARTS = ("trivial-polar", "mirror", "C4", "rotation", "translation", "convolution")  # of the composition
NODES = 64  # turns of the full circle
REACH = 3  # shifts each way, in pooled pixels
PATCH = 5  # side of a patch, in pixels (pooled above 32)

CARD = Card(
    name="orbit_gp",
    title="Orbit Gaussian process on images",
    task="classification or regression of images, up to 2,000 of them exactly",
    kind="images",
    hypotheses=NAMES,
    symmetries={
        "mirror": "a mirror that exchanges left and right",
        "C4": "quarter turns",
        "SO2": "any turn",
        "rotation": "turns",
        "translation": "shifts",
        "convolution": "patches wherever they are",
    },
    data=("digits", "mnist", "fashion_mnist", "any .npz of images", "simulated-...: data(planted) of this file"),
    sites={
        "lengthscale": "[]",
        "variance": "[]",
        "noise": "[]",
        "rotation | rows, columns | location": "[] each",
        "scale_trivial, scale_mirror, scale_C4, scale_rotation, scale_translation, scale_convolution": "[] each",
    },
    evidence=("lower (SVI over hyperparameters, f exact)", "upper (type-II maximum)"),
    references=("vanderwilk2018learning", "haasdonk2007invariant", "vanderwilk2017convolutional"),
    licence="digits: CC BY 4.0 [alpaydin1998optical]; mnist: CC BY-SA 3.0 as redistributed [lecun1998gradient]; "
    "fashion_mnist: MIT [xiao2017fashion]; simulated: none needed",
    limitations=(
        "Gaussian likelihood on class codes",
        "learned extents are insensitivities, wider than the range of poses in the data",
        "turns act on the inscribed disk, shifts reach 3 pooled pixels",
        "composition is fitted when asked for by name only: it takes longer than all the others together",
    ),
)


def hypotheses(data: Dataset, nodes: int = NODES, scale: float = 1.0) -> list[Hypothesis]:
    """All hypotheses for images of that size.

    More `nodes` (a multiple of 64) refine the turns, and the pooling of the shifts where pixels are pooled; shifts of
    single pixels are the group itself.
    """
    if data.kind != "images":
        raise BadInput(f"data: {data.name!r} holds {data.kind}; orbit_gp takes images [N, H, W] or [N, H, W, C]")
    side, coarse = data.x.shape[-1], math.ceil(data.x.shape[-1] / 16)
    polar = Polar(min(16, max(8, side // 2)), nodes, normalise=True, window=0.75)
    pool = max(1, coarse * NODES // nodes)
    pixels, reach, pixel = Pixels(pool, normalise=True), REACH * coarse // pool, 2 * pool / side
    fine = Pixels(math.ceil(side / 32), normalise=True)
    patches: dict[str, Any] = {
        "kernel": partial(PatchKernel, fine, min(PATCH, side - 1)),
        "table": partial(PatchKernel.bytes, fine),
    }
    angle = Extent("rotation", "rad", upper=math.pi, reach=0.95 * math.pi, whole=True, resolution=math.pi / nodes)
    shifts = {
        axis: Extent(axis, "grid", upper=reach * pixel, reach=0.95 * reach * pixel, whole=False, resolution=pixel / 2)
        for axis in ("rows", "columns")
    }
    place = Extent("location", "grid", upper=2.0, reach=1.9, whole=True, resolution=0.05)
    turns = {"C4", "SO2", "rotation"}
    make = partial(hypothesis, scale=scale)

    def turned(name: str, order: int, contains: set[str], mirror: bool = False) -> Hypothesis:
        orbit = Turns(polar, order, mirror=mirror)
        return make(name, "group" if contains else "none", "polar", **_on(orbit), contains=contains)

    single = [
        make("null", "null", "none", None),
        turned("trivial", 1, set()),
        turned("mirror", 1, {"mirror"}, mirror=True),
        turned("C4", 4, {"C4"}),
        turned("D4", 4, {"C4", "mirror"}, mirror=True),
        turned("SO2", nodes, turns),
        turned("O2", nodes, turns | {"mirror"}, mirror=True),
        make(
            "rotation",
            "augmentation",
            "polar",
            **_on(Turns(polar, nodes, SoftUniform)),
            extents={"rotation": angle},
            begin=({"rotation": math.radians(20)}, {"rotation": math.radians(150)}),
            contains={"rotation"},
            saturated=turns,
        ),
        make("trivial", "none", "pixels", **_on(Shifts(pixels, 0))),
        make(
            "translation",
            "augmentation",
            "pixels",
            **_on(Shifts(pixels, reach, partial(_along, pixel))),
            extents=shifts,
            begin=tuple(dict.fromkeys(shifts, share * reach * pixel) for share in (0.3, 0.8)),
            contains={"translation"},
        ),
        make("trivial", "none", "patches", **patches),
        make(
            "convolution",
            "convolution",
            "patches",
            **patches,
            extents={"location": place},
            begin=({"location": 0.1}, {"location": 1.0}),
            contains={"convolution"},
        ),
    ]
    return [*single, composition([h for h in single if h.label in PARTS], scale)]


def _on(orbit: Turns | Shifts) -> dict[str, Any]:
    return {"kernel": partial(OrbitKernel, orbit), "table": partial(OrbitKernel.bytes, orbit)}


def _along(pixel: float, extent: Tensor) -> SoftUniform:
    return SoftUniform(extent / pixel, period=None, edge=0.3)


PLANTED = {
    "none": ("trivial", {}),
    "mirror": ("mirror", {}),
    "C4": ("C4", {}),
    "SO2": ("SO2", {}),
    "rotation": ("rotation", {"rotation": math.radians(45)}),
    "translation": ("translation", {"rows": 0.3, "columns": 0.3}),
}


def data(planted: str = "rotation", seed: int = 0, size: int = 300, test: int = 200, side: int = 16) -> Dataset:
    """Simulated images whose labels have a known symmetry; `none` breaks them all.

    Images are sums of six random Gaussian blobs on a dark ground; values are a draw of the Gaussian process that
    `planted` names, with noise of standard deviation 0.1.

    Parameters
    ----------
    planted : str
        One of `none`, `mirror`, `C4`, `SO2`, `rotation` (+-45 degrees), `translation` (+-0.3 grid units).
    seed, size, test, side : int
        Seed, training images, test images, pixels per side.
    """
    return simulate(hypotheses, PLANTED, planted, "simulated", seed=seed, size=size, test=test, side=side)
