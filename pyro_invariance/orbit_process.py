"""The Pyro model of an orbit Gaussian process, and hypotheses made of it: what entries of images have in common."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_invariance import priors
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.kernels import BLOCK
from pyro_invariance.numerics import float64
from pyro_invariance.processes import GaussianProcess, Kernel
from pyro_invariance.representations import Pixels, ground
from pyro_invariance.typing import BadInput, nearest
from pyro_invariance.zoo import Extent, Hypothesis


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
        mean = targets.new_zeros(len(draws), len(images), targets.shape[1])
        return mean, torch.stack([(priors.NOISE_FLOOR + d["noise"]).to(mean).expand(len(images)) for d in draws])
    points = [(d["lengthscale"], *(d[name] for name in ranges)) for d in draws]
    one = torch.ones(())  # the kernel of a sum holds the variances of its parts
    processes = [
        GaussianProcess(kernel.gram(*point), d.get("variance", one), priors.NOISE_FLOOR + d["noise"], targets.shape)
        for d, point in zip(draws, points, strict=True)
    ]
    means, variances = [], []
    for block in images.split(max(1, BLOCK // (8 * kernel.width))):
        compared = kernel.compared(block)
        at_block = ((p, kernel.cross(compared, *point)) for p, point in zip(processes, points, strict=True))
        moments = [process.condition(targets, *cross) for process, cross in at_block]
        means.append(torch.stack([mean for mean, _ in moments]))
        variances.append(torch.stack([variance for _, variance in moments]))
    return torch.cat(means, 1), torch.cat(variances, 1)


def hypothesis(
    name: str,
    kind: str,
    base: str,
    kernel: Callable[[Tensor], Kernel] | None,
    *,
    scale: float = 1.0,
    table: Callable[[int], int] | None = None,
    extents: dict[str, Extent] | None = None,
    begin: tuple[dict[str, float], ...] | None = None,
    contains: Iterable[str] = (),
    saturated: Iterable[str] = (),
    moved: Callable[[Tensor, Mapping[str, float]], dict[str, Tensor]] | None = None,
) -> Hypothesis:
    """Make a hypothesis of a kernel, which is given the images when they are known; None for noise alone.

    `table(n)` is the bytes that the kernel keeps of `n` images; `moved` shows what its name does not say.
    """
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
        memory=partial(_memory, table),
        priors=words,
        sparse=kernel is not None,
        moved=moved or partial(moved_by_name, name=name),
    )


def moved_by_name(images: Tensor, extents: Mapping[str, float], *, name: str) -> dict[str, Tensor]:
    """Images under elements of a hypothesis's group, or at the ends of its ranges, on their own ground."""
    dark, side = ground(images), images.shape[-1]

    def turned(degrees: float) -> Tensor:
        return Pixels().rotate(images - dark, torch.tensor(math.radians(degrees)).to(images)) + dark

    def shifted(images: Tensor, rows: int, columns: int) -> Tensor:
        padded = torch.nn.functional.pad(images - dark, [side] * 4)
        return Pixels().shift(padded, torch.tensor([rows, columns]))[..., side:-side, side:-side] + dark

    degrees = math.degrees(extents.get("rotation", 0.0))
    rows, columns = (round(extents.get(axis, 0.0) * side / 2) for axis in ("rows", "columns"))
    if name == "rotation":
        return {f"{d:+.0f} degrees": turned(d) for d in (-degrees, degrees)}
    if name == "translation":
        ends = ((-rows, -columns), (rows, columns))
        return {f"{r:+d}, {c:+d} pixels": shifted(images, r, c) for r, c in ends}
    if name == "rotation-translation":
        return {
            f"{s * degrees:+.0f} degrees, {s * rows:+d}, {s * columns:+d} pixels": shifted(
                turned(s * degrees), s * rows, s * columns
            )
            for s in (-1, 1)
        }
    angles = {(90, 180): ("C4", "D4"), (60, 150): ("SO2", "O2", "SO2-translation")}
    turns = next((of for of, names in angles.items() if name in names), ())
    shown = {f"{d} degrees": turned(d) for d in turns}
    return shown | ({"left and right exchanged": Pixels().mirror(images)} if name in ("mirror", "D4", "O2") else {})


@float64()
def simulate(
    hypotheses: Callable[[Dataset], list[Hypothesis]],
    cases: Mapping[str, tuple[str, dict[str, float]]],
    planted: str,
    prefix: str,
    *,
    seed: int,
    size: int,
    test: int,
    side: int,
) -> Dataset:
    """Simulated images whose values are a draw of the Gaussian process of one hypothesis at given extents.

    `cases` names the hypothesis and the extents of everything that can be planted.  Images are sums of six random
    Gaussian blobs on a dark ground; the lengthscale is 0.7, the noise has standard deviation 0.1.
    """
    if planted not in cases:
        raise BadInput(f"planted: got {planted!r}; {nearest(planted, cases)}")
    name, extents = cases[planted]
    rng = np.random.default_rng(seed)
    count = size + test
    grid = (np.arange(side) + 0.5) / side * 2 - 1
    centre, width = rng.uniform(-0.6, 0.6, (2, count, 6, 1)), rng.uniform(0.1, 0.25, (count, 6, 1))
    height = rng.uniform(0.3, 1.0, (count, 6))
    rows, columns = np.exp(-0.5 * ((grid - centre) / width) ** 2)
    images = np.einsum("nb,nbi,nbj->nij", height, rows, columns)
    plain = from_arrays(f"{prefix}-{planted}", images, np.arange(count) / count)
    chosen = next(h for h in hypotheses(plain) if h.name == name)
    kernel, _ = chosen.prepare(plain)
    with torch.no_grad():
        gram = kernel.gram(torch.tensor(0.7), *(torch.tensor(extents[k]) for k in chosen.extents))
    noisy = GaussianProcess(gram, torch.tensor(1.0), torch.tensor(0.01), (count, 1))
    with poutine.seed(rng_seed=seed):  # the caller's random numbers go on as if nothing had been drawn
        values = noisy.sample()[:, 0].numpy()
    return from_arrays(plain.name, images[:size], values[:size], images[size:], values[size:])


def _prepare(kernel: Callable[[Tensor], Kernel] | None, data: Dataset) -> tuple[Kernel | None, Tensor]:
    return (kernel(data.x) if kernel else None), data.targets


def _memory(table: Callable[[int], int] | None, data: Dataset) -> int:
    if table is None:
        return 0
    n = len(data.x)  # what the kernel keeps, blocks of new images, and about ten N x N matrices
    return table(n) + 2 * BLOCK + 80 * n * n
