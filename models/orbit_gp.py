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

Limitations: Gaussian likelihood on class codes, so evidence rewards sharpness; function averaging learns an
insensitivity, so the best extent for images turned by +-45 degrees is wider than 45; turns see the inscribed disk
only; shifts reach 3 nodes each way; exact inference, 2,000 images at most.

References: [vanderwilk2018learning], [haasdonk2007invariant], [vanderwilk2017convolutional], [rasmussen2006gaussian].
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_invariance import priors
from pyro_invariance.datasets import Dataset, from_arrays, nearest
from pyro_invariance.densities import SoftUniform
from pyro_invariance.kernels import BLOCK, OrbitKernel, PatchKernel
from pyro_invariance.numerics import float64
from pyro_invariance.orbits import Shifts, Turns
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.representations import Pixels, Polar, ground
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Card, Extent, Hypothesis

NAMES = ("null", "trivial", "mirror", "C4", "D4", "SO2", "O2", "rotation", "translation", "convolution")
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
    sites={"lengthscale": "[]", "variance": "[]", "noise": "[]", "rotation | rows, columns | location": "[] each"},
    evidence=("lower (SVI over hyperparameters, f exact)", "upper (type-II maximum)"),
    references=("vanderwilk2018learning", "haasdonk2007invariant", "vanderwilk2017convolutional"),
    licence="digits: CC BY 4.0 [alpaydin1998optical]; mnist: CC BY-SA 3.0 as redistributed [lecun1998gradient]; "
    "fashion_mnist: MIT [xiao2017fashion]; simulated: none needed",
    limitations=(
        "Gaussian likelihood on class codes",
        "learned extents are insensitivities, wider than the range of poses in the data",
        "turns act on the inscribed disk, shifts reach 3 pooled pixels",
    ),
)

Kernel = OrbitKernel | PatchKernel


def model(kernel: Kernel | None, targets: Tensor, extents: dict[str, float], scale: float = 1.0) -> Tensor:
    """Pyro model of targets `[N, O]`; `extents` maps each learned range to its upper end, `scale` widens priors."""
    noise = priors.NOISE_FLOOR + pyro.sample("noise", priors.log_normal("noise", scale))
    if kernel is None:
        return pyro.sample("targets", GaussianProcess(None, torch.zeros(()), noise, targets.shape), obs=targets)
    lengthscale = pyro.sample("lengthscale", priors.log_normal("lengthscale", scale))
    variance = pyro.sample("variance", priors.log_normal("variance", scale))
    ranges = [pyro.sample(name, priors.extent(upper)) for name, upper in extents.items()]
    gram = kernel.gram(lengthscale, *ranges)
    return pyro.sample("targets", GaussianProcess(gram, variance, noise, targets.shape), obs=targets)


@torch.no_grad()
def predict(
    args: tuple, draws: list[dict[str, Tensor]], images: Tensor, *, ranges: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Predictive mean `[D, M, O]` and variance `[D, M]` (noise included) at new images for draws of the sites."""
    kernel, targets = args
    if kernel is None:
        mean = torch.zeros(len(draws), len(images), targets.shape[1])
        return mean, torch.stack([(priors.NOISE_FLOOR + d["noise"]).expand(len(images)) for d in draws])
    points = [(d["lengthscale"], *(d[name] for name in ranges)) for d in draws]
    processes = [
        GaussianProcess(kernel.gram(*point), d["variance"], priors.NOISE_FLOOR + d["noise"], targets.shape)
        for d, point in zip(draws, points, strict=True)
    ]
    means, variances = [], []
    for block in images.split(max(1, BLOCK // (8 * kernel.width))):
        compared = kernel.compared(block)
        at_block = [(p, kernel.cross(compared, *point)) for p, point in zip(processes, points, strict=True)]
        moments = [process.condition(targets, *cross) for process, cross in at_block]
        means.append(torch.stack([mean for mean, _ in moments]))
        variances.append(torch.stack([variance for _, variance in moments]))
    return torch.cat(means, 1), torch.cat(variances, 1)


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
    patches = partial(PatchKernel, Pixels(math.ceil(side / 32), normalise=True), min(PATCH, side - 1))
    angle = Extent("rotation", "rad", upper=math.pi, reach=0.95 * math.pi, whole=True, resolution=math.pi / nodes)
    shifts = {
        axis: Extent(axis, "grid", upper=reach * pixel, reach=0.95 * reach * pixel, whole=False, resolution=pixel / 2)
        for axis in ("rows", "columns")
    }
    place = Extent("location", "grid", upper=2.0, reach=1.9, whole=True, resolution=0.05)
    turns = {"C4", "SO2", "rotation"}

    def turned(name: str, order: int, contains: set[str], mirror: bool = False) -> Hypothesis:
        orbit = Turns(polar, order, mirror=mirror)
        return _hypothesis(name, "group" if contains else "none", "polar", _on(orbit), scale, contains=contains)

    return [
        _hypothesis("null", "null", "none", None, scale),
        turned("trivial", 1, set()),
        turned("mirror", 1, {"mirror"}, mirror=True),
        turned("C4", 4, {"C4"}),
        turned("D4", 4, {"C4", "mirror"}, mirror=True),
        turned("SO2", nodes, turns),
        turned("O2", nodes, turns | {"mirror"}, mirror=True),
        _hypothesis(
            "rotation",
            "augmentation",
            "polar",
            _on(Turns(polar, nodes, SoftUniform)),
            scale,
            extents={"rotation": angle},
            begin=({"rotation": math.radians(20)}, {"rotation": math.radians(150)}),
            contains={"rotation"},
            saturated=turns,
        ),
        _hypothesis("trivial", "none", "pixels", _on(Shifts(pixels, 0)), scale),
        _hypothesis(
            "translation",
            "augmentation",
            "pixels",
            _on(Shifts(pixels, reach, partial(_along, pixel))),
            scale,
            extents=shifts,
            begin=tuple(dict.fromkeys(shifts, share * reach * pixel) for share in (0.3, 0.8)),
            contains={"translation"},
        ),
        _hypothesis("trivial", "none", "patches", patches, scale),
        _hypothesis(
            "convolution",
            "convolution",
            "patches",
            patches,
            scale,
            extents={"location": place},
            begin=({"location": 0.1}, {"location": 1.0}),
            contains={"convolution"},
        ),
    ]


def moved(images: Tensor, extents: Mapping[str, float], *, name: str) -> dict[str, Tensor]:
    """Images under elements of a hypothesis's group, or at the ends of its ranges, on their own ground."""
    dark, side = ground(images), images.shape[-1]

    def turned(degrees: float) -> Tensor:
        return Pixels().rotate(images - dark, torch.tensor(math.radians(degrees)).to(images)) + dark

    def shifted(rows: int, columns: int) -> Tensor:
        padded = torch.nn.functional.pad(images - dark, [side] * 4)
        return Pixels().shift(padded, torch.tensor([rows, columns]))[..., side:-side, side:-side] + dark

    if name == "rotation":
        degrees = math.degrees(extents["rotation"])
        return {f"{d:+.0f} degrees": turned(d) for d in (-degrees, degrees)}
    if name == "translation":
        rows, columns = (round(extents[axis] * side / 2) for axis in ("rows", "columns"))
        ends = ((-rows, -columns), (rows, columns))
        return {f"{r:+d}, {c:+d} pixels": shifted(r, c) for r, c in ends}
    turns = {"C4": (90, 180), "D4": (90, 180), "SO2": (60, 150), "O2": (60, 150)}.get(name, ())
    shown = {f"{d} degrees": turned(d) for d in turns}
    return shown | ({"left and right exchanged": Pixels().mirror(images)} if name in ("mirror", "D4", "O2") else {})


def _on(orbit: Turns | Shifts) -> partial[Any]:
    return partial(OrbitKernel, orbit)


def _along(pixel: float, extent: Tensor) -> SoftUniform:
    return SoftUniform(extent / pixel, period=None, edge=0.3)


def _prepare(kernel: Callable[[Tensor], Kernel] | None, data: Dataset) -> tuple[Kernel | None, Tensor]:
    return (kernel(data.x) if kernel else None), data.targets


def _memory(kernel: partial[Any] | None, data: Dataset) -> int:
    if kernel is None:
        return 0
    n = len(data.x)  # the distances, a block of them against new images, and about ten N x N matrices
    make: Any = kernel.func
    return make.bytes(kernel.args[0], n) + BLOCK + 80 * n * n


def _hypothesis(
    name: str,
    kind: str,
    base: str,
    kernel: partial[Any] | None,
    scale: float,
    *,
    extents: dict[str, Extent] | None = None,
    begin: tuple[dict[str, float], ...] | None = None,
    contains: Iterable[str] = (),
    saturated: Iterable[str] = (),
) -> Hypothesis:
    extents = extents or {}
    words = priors.describe(scale) | {k: f"Uniform(0, {e.upper:.4g})" for k, e in extents.items()}
    if begin is None:  # nothing to range over: start from a short and from a long lengthscale
        begin = ({}, {"lengthscale": 1.2})
    starts = tuple({"lengthscale": 0.4, "variance": 1.0, "noise": 0.3} | b for b in begin)
    if kernel is None:
        words, starts = {"noise": words["noise"]}, ({"noise": 0.5},)
    return Hypothesis(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        base=base,
        model=partial(model, extents={k: e.upper for k, e in extents.items()}, scale=scale),
        prepare=partial(_prepare, kernel),
        starts=starts,
        contains=frozenset(contains),
        saturated=frozenset(saturated),
        extents=extents,
        predict=partial(predict, ranges=tuple(extents)),
        memory=partial(_memory, kernel),
        priors=words,
        moved=partial(moved, name=name),
    )


PLANTED = {
    "none": ("trivial", {}),
    "mirror": ("mirror", {}),
    "C4": ("C4", {}),
    "SO2": ("SO2", {}),
    "rotation": ("rotation", {"rotation": math.radians(45)}),
    "translation": ("translation", {"rows": 0.3, "columns": 0.3}),
}


@float64()
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
    if planted not in PLANTED:
        raise BadInput(f"planted: got {planted!r}; {nearest(planted, PLANTED)}")
    rng = np.random.default_rng(seed)
    count = size + test
    grid = (np.arange(side) + 0.5) / side * 2 - 1
    centre, width = rng.uniform(-0.6, 0.6, (2, count, 6, 1)), rng.uniform(0.1, 0.25, (count, 6, 1))
    height = rng.uniform(0.3, 1.0, (count, 6))
    rows, columns = np.exp(-0.5 * ((grid - centre) / width) ** 2)
    images = np.einsum("nb,nbi,nbj->nij", height, rows, columns)
    plain = from_arrays(f"simulated-{planted}", images, np.arange(count) / count)
    name, extents = PLANTED[planted]
    chosen = next(h for h in hypotheses(plain) if h.name == name)
    kernel, _ = chosen.prepare(plain)
    with torch.no_grad():
        gram = kernel.gram(torch.tensor(0.7), *(torch.tensor(extents[k]) for k in chosen.extents))
    noisy = GaussianProcess(gram, torch.tensor(1.0), torch.tensor(0.01), (count, 1))
    with poutine.seed(rng_seed=seed):  # the caller's random numbers go on as if nothing had been drawn
        values = noisy.sample()[:, 0].numpy()
    return from_arrays(plain.name, images[:size], values[:size], images[size:], values[size:])
