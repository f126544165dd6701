r"""Kernels of functions averaged over an orbit, :math:`\bar k(x, x') = \sum_{vw} w_v w_w\, k(v, w)`.

The squared distances per lag do not depend on any hyperparameter: they are computed once, and each evaluation of
a Gram matrix is an exponential and a weighted sum.  Derivatives are taken in forward mode, so that no graph over
`[lags, N, N]` is ever kept.  Distances are divided by their mean, so that a lengthscale of 1 is the typical
distance between two images whatever the representation.
"""

import math
from collections.abc import Callable

import torch
from pyro.contrib.gp.kernels import Kernel
from torch import Tensor
from torch.func import vjp

from pyro_invariance.devices import at_once
from pyro_invariance.features import EXAMPLES, Nystroem, least_variance
from pyro_invariance.numerics import one_by_one
from pyro_invariance.orbits import Orbit, Patches, SpectralOrbit
from pyro_invariance.representations import Pixels, cosines
from pyro_invariance.typing import BadInput, Images

CHUNK = 2**19  # numbers per step of an evaluation: the temporaries stay in cache
BLOCK = 2**28  # bytes of the largest temporary when images are compared


def double_sum(orbit: Orbit, kernel: Kernel, x: Images, z: Images) -> Tensor:
    """Kernel of the averaged function for any orbit and base kernel, `[N, M]`, at `V^2` base evaluations a pair."""
    p, q, w = orbit.views(x), orbit.views(z), orbit.weights().to(x)
    base = kernel(p.flatten(2).flatten(0, 1), q.flatten(2).flatten(0, 1))
    return torch.einsum("nvmw,v,w->nm", base.view(len(x), len(w), len(z), len(w)), w, w)


def _tangents(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """Value and the derivative in each scalar argument.

    By differentiating `J^T u` in `u`: torch's dual numbers take ten times as long for small tensors.
    """
    if not arguments:
        return function(), []
    value, pull = vjp(function, *arguments)  # type: ignore[misc]
    _, back = vjp(lambda u: torch.stack(pull(u)), torch.zeros_like(value))  # type: ignore[misc]
    return value, [back(row)[0] for row in torch.eye(len(arguments), dtype=value.dtype, device=value.device)]


class _WeightedExp(torch.autograd.Function):
    r""":math:`\sum_s w_s(e)\, \exp(-d_s / 2 l^2)`, `[P]`, from one pass over the distances `[S, P]`.

    `rows` holds the weights and, where a gradient is wanted, their derivative in each extent: `[1 + E, S]`.  The second
    output is the derivatives of the first.
    """

    @staticmethod
    def forward(differentiate, distances, rows, lengthscale, *extents):  # type: ignore[no-untyped-def]
        count = distances.shape[1]
        sums = distances.new_empty(len(rows) + differentiate, count)
        chunk = max(1, at_once(distances, CHUNK) // len(distances))
        buffer = distances.new_empty(len(distances), min(chunk, count))
        scale = -0.5 / lengthscale.square()
        for i in range(0, count, chunk):
            d = distances[:, i : i + chunk]
            e = torch.mul(d, scale, out=buffer[:, : d.shape[1]]).exp_()
            sums[: len(rows), i : i + chunk] = rows @ e
            if differentiate:
                sums[-1, i : i + chunk] = rows[0] @ e.mul_(d)
        if differentiate:
            sums[-1] /= lengthscale**3
        return sums[0], sums[1:]

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        (tangents,) = ctx.saved_tensors
        *by_extent, by_lengthscale = (tangents @ grad).unbind()
        return None, None, None, by_lengthscale, *by_extent

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        return one_by_one(_WeightedExp, info, in_dims, inputs), (0, 0)


def _checked_scale(scale: float, x: Tensor) -> float:
    """Return the mean squared distance of represented images `[N, *]`, unless it is only what rounding leaves."""
    if not scale > 1e-12 * float(x.flatten(1).square().sum(1).mean()):
        raise BadInput(f"images: all {len(x)} are the same once their brightness and contrast are normalised")
    return scale


def _triangle(n: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Whether `i >= j` `[N, N]`, and the places in a matrix of those that are, row by row, `[P]`."""
    lower = torch.ones(n, n, dtype=torch.bool, device=x.device).tril_()
    return lower, lower.flatten().nonzero()[:, 0]


def _symmetric(pairs: Tensor, places: Tensor, n: int) -> Tensor:
    """Matrix `[N, N]` of the values `[P]` of its lower triangle, row by row, and their places in the matrix `[P]`."""
    matrix = pairs.new_zeros(n * n).scatter(0, places, pairs).view(n, n)
    return matrix + matrix.tril(-1).T


class OrbitKernel:
    r"""RBF kernel of a function averaged over a spectral orbit, of mean variance one over the images.

    .. math:: \bar k(x, x') = \frac1c \sum_s W_s(e) \exp\left(-|x - T_s x'|^2 / 2 l^2\right), \quad W = w \star w

    with `c` the mean of the sum at `x = x'`: averaging over a wide range leaves little of the variance of the base
    function, and without `c` the prior on the variance would mean another thing for every extent.

    Parameters
    ----------
    orbit : SpectralOrbit
        Lags and their weights.
    images : Tensor `[N, C, H, W]`
        The images to condition on; they are represented here, once.

    Raises
    ------
    BadInput
        If the representation makes all images the same.

    Notes
    -----
    A Gram matrix is symmetric: its lower triangle, `P = N (N + 1) / 2` pairs, is kept and evaluated.  Memory:
    `8 L P` bytes for `L` lags; time of one evaluation: `L P` exponentials.  Beyond `KEPT` bytes nothing is kept, and
    all `N^2` pairs are compared anew for each.
    """

    KEPT = 2**32

    def __init__(self, orbit: SpectralOrbit, images: Images) -> None:
        self.orbit = orbit
        self.x = orbit.representation(images)
        distinct = 2 * self.x.flatten(1).var(0, correction=min(1, len(images) - 1)).sum()
        self.scale = _checked_scale(float(distinct), self.x)
        self.x = self.x / self.scale**0.5
        self.to_self = orbit.self_distances(self.x)
        self.distances = None
        if self.bytes(orbit, len(images)) <= self.KEPT:
            self.lower, self.places = _triangle(len(images), self.x)
            self.distances = self._pairs()

    def _pairs(self) -> Tensor:
        """Squared distances `[L, P]` of the pairs `i >= j` per lag, row by row, in blocks of rows."""
        n, lags = len(self.x), self.orbit.count
        table = self.x.new_empty(lags, n * (n + 1) // 2)
        rows = max(1, BLOCK // (16 * lags * n))
        for i in range(0, n, rows):
            j = min(i + rows, n)
            block = self._squared_distances(self.x[i:j], self.x[:j])
            table[:, i * (i + 1) // 2 : j * (j + 1) // 2] = block[:, self.lower[i:j, :j]]
        return table

    @staticmethod
    def bytes(orbit: SpectralOrbit, n: int) -> int:
        """Memory that the distances of `n` images take, if they are kept."""
        return 4 * orbit.count * n * (n + 1)

    def _squared_distances(self, x: Tensor, z: Tensor) -> Tensor:
        return self.orbit.squared_distances(x, z, torch.arange(self.orbit.count))

    def gram(self, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Gram matrix `[N, N]` of the images, differentiable in all arguments (scalars)."""
        if self.distances is None:
            blocks = self.x.split(max(1, BLOCK // (8 * self.width)))
            return torch.cat([self.cross(self._compared(x), lengthscale, *extents)[0] for x in blocks])
        pairs = self._weighted(self.distances, lengthscale, *extents) / self._mean_variance(lengthscale, *extents)
        return _symmetric(pairs, self.places, len(self.lower))

    def _weighted(self, distances: Tensor, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Weighted sum `[P]` over lags of the base kernel at distances `[L, P]`."""
        differentiate = torch.is_grad_enabled()
        if differentiate:
            weights, tangents = _tangents(self.orbit.lag_weights, tuple(e.detach() for e in extents))
            rows = torch.stack([weights, *tangents])
        else:
            rows = self.orbit.lag_weights(*extents)[None]
        scalars = (t.to(distances) for t in (lengthscale, *extents))
        return _WeightedExp.apply(differentiate, distances, rows.to(distances), *scalars)[0]

    def _mean_variance(self, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        views = torch.exp(-0.5 * self.to_self / lengthscale.to(self.x).square()).mean(1)
        return self.orbit.lag_weights(*extents).to(views) @ views

    @property
    def count(self) -> int:
        """Number of images conditioned on."""
        return len(self.x)

    @property
    def width(self) -> int:
        """Numbers that a comparison with one new image takes, its representation (made of others) among them."""
        return self.orbit.count * len(self.x) + 4 * self.x[0].numel()

    def compared(self, images: Images) -> tuple[Tensor, Tensor]:
        """Distances of new images to the conditioned ones `[L, M, N]` and to their own views `[L, M]`."""
        return self._compared(self.orbit.representation(images) / self.scale**0.5)

    def _compared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._squared_distances(x, self.x), self.orbit.self_distances(x)

    def cross(self, compared: tuple[Tensor, Tensor], lengthscale: Tensor, *extents: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances `[M, N]` and prior variances `[M]` of new images, differentiable in all scalars."""
        to_old, to_self = compared
        unit = self._mean_variance(lengthscale, *extents)
        covariance = self._weighted(to_old.flatten(1), lengthscale, *extents) / unit
        return covariance.view(to_old.shape[1:]), self._weighted(to_self, lengthscale, *extents) / unit


class PatchKernel:
    r"""RBF kernel on the distance that a location-weighted patch kernel induces: convolution as a prior.

    .. math:: k_1(x, x') = \sum_{pq} k_{loc}(p - q)\, \phi(x_p)^T \phi(x'_q)
        \approx \sum_b S_b\, c_b(x)^T c_b(x'), \quad S_b \propto e^{-\pi^2 |b|^2 r^2 / 8}

    with Nystroem features :math:`\phi` of patches [williams2001using], :math:`c_b` the cosine transform of the feature
    map over locations, on the principal directions of the images, and `r` the location length on the grid [-1, 1].  As
    `r` grows the weights are shared by all places (an orbit of patches with uniform weights,
    [vanderwilk2017convolutional]); at `r = 0` every place has its own, as far as the modes kept tell places apart: no
    symmetry at all.  Distances are divided by their mean under the weights, for every `r`.  The evidence is exact for
    these features.

    Parameters
    ----------
    pixels : Pixels
        Pooling before patches are cut.
    size : int
        Side of a patch, pooled pixels.
    images : Tensor `[N, C, H, W]`
        The images to condition on.
    features : int
        Number of Nystroem centres (k-means of patches).
    modes : int
        Cosine modes per axis.

    Notes
    -----
    Up to `KEPT` bytes, distances by groups of modes of the same weight are kept for the pairs of a Gram matrix; beyond,
    or where the kernel is made without gradients, the features are multiplied anew for each.
    """

    KEPT = 2**30

    def __init__(self, pixels: Pixels, size: int, images: Images, features: int = 96, modes: int = 8) -> None:
        self.pixels = pixels
        images = pixels(images)
        side = images.shape[-1] - size + 1
        self.modes = min(modes, side)
        self.patches = Patches(size, side**2)
        generator = torch.Generator().manual_seed(0)
        some = images[torch.randperm(len(images), generator=generator)[:EXAMPLES]]
        self.features = Nystroem(self.patches.views(some).flatten(2).flatten(0, 1), features, generator)
        basis = cosines(self.modes, side, images)
        basis = basis / basis.norm(dim=1, keepdim=True)
        self.cosines = basis
        order = torch.arange(self.modes, device=images.device)
        self.group_of, self.index = (order[:, None] ** 2 + order**2).flatten().unique(return_inverse=True)
        self.stretch = images.shape[-1] / side  # a location length in units of the image, on the map of patches
        self.directions = self._directions(self._maps(some))
        widths = torch.tensor([d.shape[1] for d in self.directions])
        self.group = torch.arange(len(widths)).repeat_interleave(widths).to(images.device)
        self.x = self._represented(images)
        by_group = self.x.new_zeros(len(widths)).index_add_(0, self.group, 2 * self.x.var(0))
        scale = _checked_scale(float(by_group.sum()), self.x)
        self.x /= scale**0.5
        self.directions = [d / scale**0.5 for d in self.directions]  # new images are scaled alike
        self.mean = by_group / scale
        self.distances = None
        if torch.is_grad_enabled() and 4 * len(widths) * len(images) * (len(images) + 1) <= self.KEPT:
            self.lower, self.places = _triangle(len(images), self.x)
            self.distances = self._pair_distances()

    @classmethod
    def bytes(cls, pixels: Pixels, n: int, modes: int = 8) -> int:
        """Memory that the features and the distances of `n` images take (at most, whatever the pooling)."""
        table = 2 * n * (n + 1) * modes * (modes + 1)
        return (table if table <= cls.KEPT else 0) + 8 * 96 * n * modes**2

    def _maps(self, images: Images) -> Tensor:
        """Cosine transforms `[N, modes^2, count]` of maps of the features before they are whitened."""
        side, count = self.cosines.shape[1], len(self.features.centres)
        rows = max(1, 2**25 // (8 * self.patches.count * count))  # 32 MB: more cost page faults
        blocks = []
        for block in images.split(rows):
            maps = self.features.similar(self.patches.views(block).flatten(2).flatten(0, 1))  # [n * P, count]
            down = self.cosines @ maps.view(len(block), side, side * count)
            blocks.append(self.cosines @ down.view(len(block), self.modes, side, count))
        return torch.cat(blocks).flatten(1, 2)

    def _directions(self, maps: Tensor) -> list[Tensor]:
        """Directions `[modes * count, kept]` of each group of modes in which examples differ; they whiten as well."""
        whiten = self.features.whiten
        white = [torch.block_diag(*[whiten] * int((self.index == g).sum())) for g in range(len(self.group_of))]
        if len(maps) < EXAMPLES:  # too few to say in which directions others differ
            return white
        found = []
        for g, w in enumerate(white):
            features = maps[:, self.index == g].flatten(1) @ w
            found.append(torch.linalg.svd(features - features.mean(0), full_matrices=False)[1:])
        least = least_variance(torch.cat([values.square() for values, _ in found]))
        return [w @ rows[values.square() >= least].T for w, (values, rows) in zip(white, found, strict=True)]

    def _represented(self, images: Images) -> Tensor:
        """Features `[N, K]` of pooled images, group by group of modes."""
        blocks = []
        for block in images.split(max(1, BLOCK // (8 * self.modes**2 * len(self.features.centres)))):
            maps = self._maps(block)
            by_group = (maps[:, self.index == g].flatten(1) @ d for g, d in enumerate(self.directions))
            blocks.append(torch.cat(list(by_group), 1))
        return torch.cat(blocks)

    def _pair_distances(self) -> Tensor:
        """Squared distances of the pairs `i >= j` by group of modes, `[G, P]`."""
        table = self.x.new_empty(len(self.group_of), len(self.places))
        for row, x in zip(table, self.x.split([d.shape[1] for d in self.directions], 1), strict=True):
            norms = x.square().sum(1)
            row.copy_(torch.addmm(norms[:, None] + norms, x, x.T, alpha=-2)[self.lower])
        return table.clamp_min_(0)

    def mode_weights(self, location_length: Tensor | float) -> Tensor:
        """Weights `[G]` of the groups of modes; the mean distance under them is one for every location length."""
        reach = self.stretch * torch.as_tensor(location_length).to(self.x)
        s = torch.exp(-(math.pi**2) / 8 * self.group_of * reach**2)
        return s / (s @ self.mean)

    def _kernel(self, new: Tensor, lengthscale: Tensor, location_length: Tensor | float) -> Tensor:
        """Kernel `[M, N]` of represented images with the conditioned ones."""
        roots = self.mode_weights(location_length).sqrt()[self.group]
        new, old = new * roots, self.x * roots
        squared = new.square().sum(1, keepdim=True) + old.square().sum(1) - 2 * new @ old.T
        return torch.exp(-0.5 * squared.clamp_min(0) / lengthscale.to(new).square())

    def gram(self, lengthscale: Tensor, location_length: Tensor | float = 0.0) -> Tensor:
        """Gram matrix `[N, N]`, differentiable in both arguments (scalars)."""
        if self.distances is None:
            return self._kernel(self.x, lengthscale, location_length)
        distance = self.mode_weights(location_length) @ self.distances
        return _symmetric(torch.exp(-0.5 * distance / lengthscale.to(self.x).square()), self.places, len(self.lower))

    @property
    def count(self) -> int:
        """Number of images conditioned on."""
        return len(self.x)

    @property
    def width(self) -> int:
        """Numbers that a comparison with one new image takes."""
        return self.x.shape[1] + 3 * len(self.x)

    def compared(self, images: Images) -> Tensor:
        """Features of new images, `[M, K]`."""
        return self._represented(self.pixels(images))

    def cross(
        self, compared: Tensor, lengthscale: Tensor, location_length: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Covariances `[M, N]` and prior variances `[M]` of new images, differentiable in both scalars."""
        covariance = self._kernel(compared, lengthscale, location_length)
        return covariance, torch.ones_like(covariance[:, 0])
