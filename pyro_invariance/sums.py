r"""A sum of priors over functions with a learned scale each: continuous selection, through the gradient.

.. math:: f = \sum_b s_b f_b, \quad f_b \sim GP(0, \bar k_b), \quad s_b \sim \text{HalfNormal}(1)

Every :math:`\bar k_b` has mean variance one over the images, so that :math:`s_b^2 / \sum_c s_c^2` is the share of the
prior variance that part `b` has: automatic relevance determination [mackay1992bayesian] over symmetries.  The prior has
mass at zero; a climb of the log joint density drives the scales of unsupported parts there, where discrete selection
climbs once for each hypothesis.

The largest share names the discrete winner.  A range at zero is its `trivial` and counts as such; one that went to the
whole group is that group, which needs no part of its own.  A sum has no symmetry where two of its parts differ in it:
it is ranked with the others, and stands in no contrast.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from itertools import islice

import pyro
import torch
from torch import Tensor

from pyro_invariance import priors
from pyro_invariance.datasets import Dataset
from pyro_invariance.kernels import BLOCK
from pyro_invariance.orbit_process import predict
from pyro_invariance.processes import GaussianProcess, Kernel
from pyro_invariance.typing import BadInput, Images
from pyro_invariance.zoo import Hypothesis


class SumKernel:
    r"""Kernel of a sum of independent functions, :math:`\sum_b s_b^2\, \bar k_b`.

    Parameters
    ----------
    kernels : sequence of Kernel
        Of the same images, each of mean variance one over them.
    ranges : sequence of int
        How many extents each of them takes.

    Notes
    -----
    `gram` and `cross` take one lengthscale, a scale for each kernel, and the extents of all of them in order.
    Distances are in units of their mean in each representation; with a lengthscale of its own a kernel could take a
    share of the variance for a function that hardly varies.  Time and memory are the sums of those of the kernels.
    """

    def __init__(self, kernels: Sequence[Kernel], ranges: Sequence[int]) -> None:
        self.kernels, self.ranges = tuple(kernels), tuple(ranges)

    def _points(self, lengthscale: Tensor, hyperparameters: Sequence[Tensor]) -> list[tuple[Tensor, tuple]]:
        """The scale of each kernel, and what else it takes."""
        scales, extents = hyperparameters[: len(self.kernels)], iter(hyperparameters[len(self.kernels) :])
        return [(s, (lengthscale, *islice(extents, count))) for s, count in zip(scales, self.ranges, strict=True)]

    def gram(self, lengthscale: Tensor, *hyperparameters: Tensor) -> Tensor:
        """Gram matrix `[N, N]` of the images, differentiable in all arguments (scalars)."""
        points = self._points(lengthscale, hyperparameters)
        grams = (s.square() * kernel.gram(*point) for kernel, (s, point) in zip(self.kernels, points, strict=True))
        return reduce(torch.add, grams)

    @property
    def width(self) -> int:
        """Numbers that a comparison with one new image takes."""
        return sum(kernel.width for kernel in self.kernels)

    def compared(self, images: Images) -> list:
        """What each kernel needs to know of new images."""
        return [kernel.compared(images) for kernel in self.kernels]

    def cross(self, compared: list, lengthscale: Tensor, *hyperparameters: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances `[M, N]` and prior variances `[M]` of new images, differentiable in all scalars."""
        points = self._points(lengthscale, hyperparameters)
        found = [
            [s.square() * moment for moment in kernel.cross(known, *point)]
            for kernel, known, (s, point) in zip(self.kernels, compared, points, strict=True)
        ]
        covariances, variances = zip(*found, strict=True)
        return torch.stack(covariances).sum(0), torch.stack(variances).sum(0)


def model(
    kernel: SumKernel, targets: Tensor, scales: Sequence[str], extents: Mapping[str, float], scale: float = 1.0
) -> Tensor:
    """Pyro model of targets `[N, O]`; a site for each of `scales`, `extents` maps each range to its upper end."""
    noise = priors.NOISE_FLOOR + pyro.sample("noise", priors.log_normal("noise", scale))
    lengthscale = pyro.sample("lengthscale", priors.log_normal("lengthscale", scale))
    weights = [pyro.sample(name, priors.half_normal(scale)) for name in scales]
    ranges = [pyro.sample(name, priors.extent(upper)) for name, upper in extents.items()]
    gram = kernel.gram(lengthscale, *weights, *ranges)
    return pyro.sample("targets", GaussianProcess(gram, torch.ones_like(noise), noise, targets.shape), obs=targets)


def composition(parts: Sequence[Hypothesis], scale: float = 1.0) -> Hypothesis:
    """Make the hypothesis that the function is a sum of what hypotheses of `orbit_process` say, a scale for each.

    Parameters
    ----------
    parts : sequence of Hypothesis
        Two or more, of different names and with extents of different names; each prepares an exact kernel.
    scale : float
        Factor on every prior scale.

    Raises
    ------
    BadInput
        If names meet.
    """
    names, extents = [p.name for p in parts], {k: e for p in parts for k, e in p.extents.items()}
    if len(set(names)) < max(2, len(names)) or len(extents) < sum(len(p.extents) for p in parts):
        raise BadInput(f"parts: got {', '.join(names)}; two or more hypotheses whose names and extents all differ")
    scales, words = {f"scale_{part.name}": part for part in parts}, priors.describe(scale)
    start = {"lengthscale": 0.4, "noise": 0.3} | dict.fromkeys(scales, 1 / math.sqrt(len(parts)))
    return Hypothesis(
        name="composition",
        kind="composition",
        base="sum",
        model=partial(model, scales=tuple(scales), extents={k: e.upper for k, e in extents.items()}, scale=scale),
        prepare=partial(_prepare, tuple(parts)),
        starts=tuple(start | {k: p.starts[end][k] for p in parts for k in p.extents} for end in (0, -1)),
        extents=extents,
        predict=partial(predict, ranges=(*scales, *extents)),
        memory=partial(_memory, tuple(parts)),
        priors={k: words[k] for k in ("lengthscale", "noise")}
        | dict.fromkeys(scales, f"HalfNormal({scale:.3g})")
        | {k: f"Uniform(0, {e.upper:.4g})" for k, e in extents.items()},
        parts=scales,
        default=False,
    )


def _prepare(parts: Sequence[Hypothesis], data: Dataset) -> tuple[SumKernel, Tensor]:
    kernels = [part.prepare(data)[0] for part in parts]
    return SumKernel(kernels, [len(part.extents) for part in parts]), data.targets


def _memory(parts: Sequence[Hypothesis], data: Dataset) -> int:
    return sum(part.memory(data) for part in parts) - (len(parts) - 1) * 2 * BLOCK  # new images go by the same blocks
