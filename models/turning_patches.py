r"""Patches that turn: convolution composed with turns, as a Gaussian process on images.

What is at stake: whether a label survives any turn of the image, quarter turns, or turns up to a learned angle, where
the function sees local patterns rather than pixels.  Patches are cut around polar points in the frame of their radius,
so that a turn of the image is a shift of the map of their features; averaging over that shift is a prior over functions
of turned patches, a composition of two orbits.

Generative process, for class contrasts :math:`y_{nc}` of unit variance (`pyro_invariance.processes`):

    lengthscale ~ LogNormal(0, 1)             in units of the mean distance between two maps of features
    variance    ~ LogNormal(0, 1.5)
    noise       ~ LogNormal(log 0.01, 2)      variance above a floor of 1e-4
    rotation    ~ Uniform(0, pi)              where the range is learned
    g_c         ~ GP(0, variance * RBF(lengthscale)) on maps of features
    f_c(x)      = sum_v w_v(rotation) g_c(v),   v in turns of the map of x
    y_nc        ~ Normal(f_c(x_n), sqrt(1e-4 + noise))

One base, `turning`, with its own `trivial`: the same features, no averaging.

Limitations: those of `orbit_gp`; features are Nystroem's, chosen by the data, blurred by a fixed amount; patches are
cut at radii up to three quarters of the inscribed disk; no reflections.

References: [vanderwilk2017convolutional], [vanderwilk2018learning], [williams2001using], [rasmussen2006gaussian].
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from pyro_invariance.datasets import Dataset
from pyro_invariance.densities import SoftUniform
from pyro_invariance.features import PolarPatches
from pyro_invariance.kernels import OrbitKernel
from pyro_invariance.orbit_process import hypothesis, model, predict, simulate
from pyro_invariance.orbits import Turns
from pyro_invariance.representations import Pixels
from pyro_invariance.typing import BadInput, Images
from pyro_invariance.zoo import Card, Extent, Hypothesis

__all__ = ["CARD", "PLANTED", "data", "hypotheses", "model", "predict"]

Density = Callable[[Tensor], SoftUniform]
NODES = 16  # turns of the full circle: a map of features holds seven frequencies

CARD = Card(
    name="turning_patches",
    title="Gaussian process on patches that turn with the image",
    task="classification or regression of images, up to 2,000 of them exactly",
    kind="images",
    hypotheses=("null", "trivial", "C4", "SO2", "rotation"),
    symmetries={"C4": "quarter turns", "SO2": "any turn", "rotation": "turns"},
    data=("digits", "mnist", "fashion_mnist", "any .npz of images", "turning_patches-...: data(planted) of this file"),
    sites={"lengthscale": "[]", "variance": "[]", "noise": "[]", "rotation": "[]"},
    evidence=("lower (SVI over hyperparameters, f exact)", "upper (type-II maximum)"),
    references=("vanderwilk2017convolutional", "vanderwilk2018learning", "williams2001using"),
    licence="digits: CC BY 4.0 [alpaydin1998optical]; mnist: CC BY-SA 3.0 as redistributed [lecun1998gradient]; "
    "fashion_mnist: MIT [xiao2017fashion]; simulated: none needed",
    limitations=("Gaussian likelihood on class codes", "features chosen by the data", "no reflections"),
)


def hypotheses(data: Dataset, nodes: int = NODES, scale: float = 1.0) -> list[Hypothesis]:
    """All hypotheses for images of that size; more `nodes` (a multiple of 4) keep finer maps."""
    if data.kind != "images":
        raise BadInput(f"data: {data.name!r} holds {data.kind}; turning_patches takes images [N, H, W] or [N, H, W, C]")
    pixels = Pixels(math.ceil(data.x.shape[-1] / 32), normalise=True)
    angle = Extent("rotation", "rad", upper=math.pi, reach=0.95 * math.pi, whole=True, resolution=math.pi / nodes)
    turns = {"C4", "SO2", "rotation"}

    def make(name: str, kind: str, order: int, density: Density | None = None, **more: Any) -> Hypothesis:
        kernel = partial(_kernel, pixels, nodes, order, density)
        return hypothesis(name, kind, "turning", kernel, scale=scale, table=partial(_bytes, order, nodes), **more)

    return [
        hypothesis("null", "null", "none", None, scale=scale),
        make("trivial", "none", 1),
        make("C4", "group", 4, contains={"C4"}),
        make("SO2", "group", nodes, contains=turns),
        make(
            "rotation",
            "augmentation",
            nodes,
            SoftUniform,
            extents={"rotation": angle},
            begin=({"rotation": math.radians(20)}, {"rotation": math.radians(150)}),
            contains={"rotation"},
            saturated=turns,
        ),
    ]


def _kernel(pixels: Pixels, nodes: int, order: int, density: Density | None, images: Images) -> OrbitKernel:
    return OrbitKernel(Turns(PolarPatches(pixels, images, nodes), order, density), images)


def _bytes(order: int, nodes: int, n: int) -> int:
    return 4 * order * n * (n + 1) + 4 * 8 * 96 * 6 * nodes * n  # distances; maps of features and their spectra


PLANTED = {
    "none": ("trivial", {}),
    "C4": ("C4", {}),
    "SO2": ("SO2", {}),
    "rotation": ("rotation", {"rotation": math.radians(60)}),
}


def data(planted: str = "rotation", seed: int = 0, size: int = 300, test: int = 200, side: int = 16) -> Dataset:
    """Simulated images whose values have a known symmetry; `none` breaks them all.

    Images are sums of six random Gaussian blobs on a dark ground; values are a draw of the Gaussian process that
    `planted` names, with noise of standard deviation 0.1.

    Parameters
    ----------
    planted : str
        One of `none`, `C4`, `SO2`, `rotation` (+-60 degrees).
    seed, size, test, side : int
        Seed, training images, test images, pixels per side.
    """
    return simulate(hypotheses, PLANTED, planted, "turning_patches", seed=seed, size=size, test=test, side=side)
