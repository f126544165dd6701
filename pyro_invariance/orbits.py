r"""Orbits: from an image to its views and their weights, :math:`f(x) = \sum_v w_v g(v)`.

Every orbit offers `views(x) -> [N, V, C, H, W]` and `weights() -> [V]`.  A spectral orbit belongs to a commutative
group of orthogonal maps; then :math:`|T_s x - T_t x'|` depends on :math:`s - t` alone, and the double sum of an
invariant kernel becomes a sum over **lags** with autocorrelated weights [haasdonk2007invariant].
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_invariance.densities import FiniteWeights, MovingUniform, SoftUniform
from pyro_invariance.devices import at_once
from pyro_invariance.groups import Group
from pyro_invariance.representations import Pixels, Polar
from pyro_invariance.typing import BadInput, Images, Views

CROSS = 2**22  # numbers of a cross-spectrum at a time, 32 MB


class Orbit(ABC):
    """Views of an image and their weights."""

    @abstractmethod
    def views(self, x: Images) -> Views:
        """Return the views `[N, V, C, H, W]` of `x` `[N, C, H, W]`."""

    @abstractmethod
    def weights(self) -> Tensor:
        """Return the weights `[V]`, which sum to one."""


@dataclass(frozen=True)
class FiniteOrbit(Orbit):
    """All images under a finite group, with Haar or learnable weights.

    Parameters
    ----------
    group : Group
        A finite group.
    density : FiniteWeights, optional
        Weights over the elements; equal by default.
    """

    group: Group
    density: FiniteWeights | None = None

    def views(self, x: Images) -> Views:
        return self.group.act(self.group.elements().to(x.device), x[:, None])

    def weights(self) -> Tensor:
        order = len(self.group.elements())
        return torch.full((order,), 1 / order) if self.density is None else self.density.nodes()[1].exp()


@dataclass(frozen=True)
class Patches(Orbit):
    """All `size` x `size` patches of an image: convolution as an orbit; the view is the patch.

    Parameters
    ----------
    size : int
        Side of a patch, pixels.
    count : int
        Number of patches, `(H - size + 1) (W - size + 1)`.
    """

    size: int
    count: int

    def views(self, x: Images) -> Views:
        patches = F.unfold(x, self.size).transpose(1, 2)  # [N, V, C * size * size]
        return patches.unflatten(-1, (x.shape[1], self.size, self.size))

    def weights(self) -> Tensor:
        return torch.full((self.count,), 1 / self.count)


@dataclass(frozen=True)
class QuadratureOrbit(Orbit):
    """Views at the quadrature nodes of a density over a continuous group.

    Parameters
    ----------
    group : Group
        A continuous group whose element is one number.
    density : SoftUniform or MovingUniform
        The range; its extent stays differentiable in the weights (or nodes).
    count : int
        Number of nodes.
    """

    group: Group
    density: SoftUniform | MovingUniform
    count: int = 64

    def views(self, x: Images) -> Views:
        return self.group.act(self.density.nodes(self.count)[0].to(x.device), x[:, None])

    def weights(self) -> Tensor:
        return self.density.nodes(self.count)[1].exp()


@dataclass(frozen=True)
class SampledOrbit(Orbit):
    """Views at fresh draws of a density, the same for all images of a call; weights are equal.

    Averages over these views are unbiased estimates of averages over the orbit.
    """

    group: Group
    density: SoftUniform | MovingUniform | FiniteWeights
    count: int = 64

    def views(self, x: Images) -> Views:
        draw = self.density.rsample if self.density.has_rsample else self.density.sample
        return self.group.act(draw(torch.Size([self.count])).to(x.device), x[:, None])

    def weights(self) -> Tensor:
        return torch.full((self.count,), 1 / self.count)


class SpectralOrbit(ABC):
    """An orbit of a commutative orthogonal group, known through its lags."""

    representation: Pixels | Polar

    @abstractmethod
    def lag_weights(self, *extents: Tensor) -> Tensor:
        """Weights `[L]` of the lags, autocorrelation of the weights of the nodes; they sum to one."""

    @abstractmethod
    def inner_products(self, x: Tensor, z: Tensor, lags: Tensor) -> Tensor:
        r""":math:`\langle x_i, T_s z_j \rangle`, `[len(lags), N, M]`, of represented images; `lags` ascend."""

    @abstractmethod
    def self_products(self, x: Tensor) -> Tensor:
        r""":math:`\langle x_i, T_s x_i \rangle` for all lags, `[L, N]`."""

    @abstractmethod
    def views(self, x: Tensor) -> Views:
        """Views `[N, V, C, *]` of represented images (what the general path sees)."""

    @abstractmethod
    def weights(self, *extents: Tensor) -> Tensor:
        """Weights `[V]` of the views."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of lags, L."""

    @property
    @abstractmethod
    def identity(self) -> int:
        """Index of the lag that does nothing."""

    def squared_distances(self, x: Tensor, z: Tensor, lags: Tensor) -> Tensor:
        r""":math:`|x_i - T_s z_j|^2`, `[len(lags), N, M]`, >= 0."""
        table = self.inner_products(-2 * x, z, lags)
        table += x.flatten(1).square().sum(1)[:, None] + z.flatten(1).square().sum(1)
        return table.clamp_min_(0)

    def self_distances(self, x: Tensor) -> Tensor:
        """Distances of each image to its own views, `[L, N]`."""
        return (2 * (x.flatten(1).square().sum(1) - self.self_products(x))).clamp_min_(0)


def _parts(x: Tensor, order: int) -> list[Tensor]:
    """Real and imaginary parts `[F, N, R]` over the turns that there are; angles between them count as rings."""
    folded = x.flatten(1, -2).unflatten(-1, (order, -1)).mT.flatten(1, 2)
    spectrum = torch.fft.rfft(folded).permute(2, 0, 1)
    return [spectrum.real, spectrum.imag][: 1 + (order > 2)]  # of one turn or two there is nothing imaginary


@lru_cache(maxsize=2)  # block after block of images is compared with the same ones
def _right(polar: Polar, z: Tensor, order: int, reflected: bool) -> Tensor:
    """Right sides `[F, 2 R, M]` of the products with images, or with their mirror images."""
    return torch.cat(_parts(polar.mirror(z) if reflected else z, order), 2).mT


class Turns(SpectralOrbit):
    """Turns of a polar image, with or without reflections.

    Parameters
    ----------
    polar : Polar
        The representation, A angles.
    order : int
        Nodes on the circle; the turns are by multiples of `2 pi / order`, `order` divides A.
    density : callable, optional
        `extent -> distribution` with `nodes`; equal weights (Haar) if None.
    mirror : bool
        Whether the group also holds the reflections (equal weights).
    """

    representation: Polar

    def __init__(
        self, polar: Polar, order: int, density: Callable[[Tensor], SoftUniform] | None = None, mirror: bool = False
    ) -> None:
        if polar.angles % order:
            raise BadInput(f"order: got {order}, which does not divide the {polar.angles} angles of the representation")
        if density is not None and mirror:
            raise BadInput("density: a learned range goes without reflections; leave it out or set mirror=False")
        self.representation, self.order, self.density, self.mirror = polar, order, density, mirror

    @property
    def count(self) -> int:
        return self.order * (1 + self.mirror)

    @property
    def identity(self) -> int:
        return 0

    def weights(self, *extents: Tensor) -> Tensor:
        if self.density is None:
            return torch.full((self.count,), 1 / self.count)
        return self.density(*extents).nodes(self.order)[1].exp()

    def lag_weights(self, *extents: Tensor) -> Tensor:
        if self.density is None:
            return self.weights()
        spectrum = torch.fft.rfft(self.weights(*extents))
        return torch.fft.irfft(spectrum * spectrum.conj(), n=self.order)

    def views(self, x: Tensor) -> Views:
        angles = torch.arange(self.order, device=x.device) * (2 * math.pi / self.order)
        turned = self.representation.rotate(x[:, None], angles)
        if not self.mirror:
            return turned
        return torch.cat([turned, self.representation.rotate(self.representation.mirror(x)[:, None], angles)], 1)

    def _phases(self, lags: Tensor, x: Tensor) -> Tensor:
        # <x, T_s z> = (1/Q) sum_f c_f Re(x_f conj(z_f) e^{i f s}), c_f = 2 where there is an imaginary part, else 1
        f = torch.arange(self.order // 2 + 1, dtype=x.dtype, device=x.device)
        angle = lags.to(x)[:, None] * (2 * math.pi / self.order) * f
        share = torch.ones_like(f)
        share[self._turning] = 2.0
        phases = torch.cat([angle.cos() * share, -2 * angle.sin()[:, self._turning]], 1)
        return phases / self.order

    @property
    def _turning(self) -> slice:
        """Frequencies whose coefficients have an imaginary part."""
        return slice(1, (self.order + 1) // 2)

    def inner_products(self, x: Tensor, z: Tensor, lags: Tensor) -> Tensor:
        table = torch.empty(len(lags), len(x), len(z), dtype=x.dtype, device=x.device)
        parts = _parts(x, self.order)
        real = torch.cat(parts, 2)
        imaginary = torch.cat([parts[-1], -parts[0]][: len(parts)], 2)[self._turning]
        plain = int((lags < self.order).sum())
        for rows, reflected in ((slice(plain), False), (slice(plain, None), True)):
            if len(lags[rows]):
                right = _right(self.representation, z, self.order, reflected)
                self._correlate(real, imaginary, right, self._phases(lags[rows] % self.order, x), table[rows])
        return table

    def _correlate(self, real: Tensor, imaginary: Tensor, right: Tensor, phases: Tensor, table: Tensor) -> None:
        """Write the inner products of some lags to `table` `[L, N, M]`, in blocks of rows."""
        (frequencies, count, _), size = real.shape, right.shape[2]
        rows = max(1, at_once(table, CROSS) // (self.order * size))
        for i in range(0, count, rows):
            j = min(i + rows, count)
            cross = table.new_empty(self.order, j - i, size)
            torch.bmm(real[:, i:j], right, out=cross[:frequencies])
            torch.bmm(imaginary[:, i:j], right[self._turning], out=cross[frequencies:])
            torch.mm(phases, cross.flatten(1), out=table.flatten(1)[:, i * size : j * size])

    def self_products(self, x: Tensor) -> Tensor:
        lags = torch.arange(self.order, device=x.device)
        parts, tables = _parts(x, self.order), []
        for moved in (x, self.representation.mirror(x)) if self.mirror else (x,):
            others = _parts(moved, self.order)
            real = torch.stack([(p * q).sum(2) for p, q in zip(parts, others, strict=True)]).sum(0)
            imaginary = (parts[-1] * others[0] - parts[0] * others[-1]).sum(2)[self._turning]
            tables.append(self._phases(lags, x) @ torch.cat([real, imaginary]))
        return torch.cat(tables)


class Shifts(SpectralOrbit):
    """Shifts of zero-padded pixels by up to `reach` pixels each way; nothing wraps.

    Parameters
    ----------
    pixels : Pixels
        The representation; its margin is what `views` need, distances work on the unpadded image.
    reach : int
        Largest shift in (pooled) pixels, along rows and along columns.
    density : callable, optional
        `extent -> distribution on the line` with `log_weights`, used for each axis, in pooled pixels; equal weights
        if None.
    """

    representation: Pixels

    def __init__(self, pixels: Pixels, reach: int, density: Callable[[Tensor], SoftUniform] | None = None) -> None:
        self.representation, self.reach, self.density = pixels, reach, density
        side = torch.arange(-2 * reach, 2 * reach + 1)
        self.offsets = torch.cartesian_prod(side, side)  # lag s: T_s moves content by +offset (rows, columns)

    @property
    def count(self) -> int:
        return len(self.offsets)

    @property
    def identity(self) -> int:
        return len(self.offsets) // 2

    def _axes(self, extents: tuple[Tensor, ...]) -> list[Tensor]:
        points = torch.arange(-self.reach, self.reach + 1, dtype=torch.get_default_dtype())
        if self.density is None:
            return [torch.full_like(points, 1 / len(points))] * 2
        return [self.density(e).log_weights(points.to(e)).exp() for e in extents]

    def weights(self, *extents: Tensor) -> Tensor:
        rows, columns = self._axes(extents)
        return torch.outer(rows, columns).flatten()

    def lag_weights(self, *extents: Tensor) -> Tensor:
        # the weights of an axis are symmetric, so that convolution is autocorrelation
        axes = self._axes(extents)
        rows, columns = (F.conv1d(w[None, None], w[None, None], padding=2 * self.reach)[0, 0] for w in axes)
        return torch.outer(rows, columns).flatten()

    def views(self, x: Tensor) -> Views:
        nodes = torch.arange(-self.reach, self.reach + 1, device=x.device)
        return self.representation.shift(x[:, None], torch.cartesian_prod(nodes, nodes))

    def _overlap(self, x: Tensor, z: Tensor, lag: int) -> tuple[Tensor, Tensor]:
        """The pixels of `x` that the moved `z` covers, and those of `z` that land there; empty if it left."""
        dy, dx = self.offsets[lag].tolist()
        h, w = x.shape[-2:]
        seen = x[..., max(dy, 0) : max(h + min(dy, 0), 0), max(dx, 0) : max(w + min(dx, 0), 0)]
        moved = z[..., max(-dy, 0) : max(h + min(-dy, 0), 0), max(-dx, 0) : max(w + min(-dx, 0), 0)]
        return seen.flatten(1), moved.flatten(1)

    def inner_products(self, x: Tensor, z: Tensor, lags: Tensor) -> Tensor:
        table = torch.empty(len(lags), len(x), len(z), dtype=x.dtype, device=x.device)
        for row, lag in zip(table, lags.tolist(), strict=True):
            seen, moved = self._overlap(x, z, lag)
            torch.mm(seen, moved.T, out=row)
        return table

    def self_products(self, x: Tensor) -> Tensor:
        pairs = (self._overlap(x, x, lag) for lag in range(self.count))
        return torch.stack([(seen * moved).sum(1) for seen, moved in pairs])
