r"""Functions on the sphere as sums of harmonics, and the kernels of those that a group of rotations leaves alone.

By the addition theorem a stationary kernel is a sum over the harmonics around any axis, and to average it over a group
is to keep some of them: orders that are multiples of n for n-fold turns about the axis, even degrees for opposites.
"""

import math

import torch
from torch import Tensor
from torch.special import ndtr

SMOOTHNESS = 1.5  # of the Matern spectrum
# Middle, east and north of the half sphere of axes: x, y and z are far from its rim, where scores are infinite.
CHART = torch.nn.functional.normalize(torch.tensor([[1, 1, 1], [0.5, 0.5, -1], [-1, 1, 0]], dtype=torch.float64))


def positions(x: Tensor) -> Tensor:
    """Unit vectors `[N, 3]` of latitudes and longitudes `[N, 2]` in degrees."""
    (latitude, longitude), ring = x.deg2rad().unbind(1), x[:, 0].deg2rad().cos()
    return torch.stack([ring * longitude.cos(), ring * longitude.sin(), latitude.sin()], 1)


def frame(east: Tensor, north: Tensor) -> Tensor:
    """Rotation `[*B, 3, 3]` whose last row is the axis of normal scores `[*B]`, smooth in them.

    The longitude of the axis is uniform over half a circle, and so is the sine of its latitude: all axes are alike.
    """
    turn, height = math.pi * (ndtr(east) - 0.5), 2 * ndtr(north) - 1
    ring = ((north / 2**0.5).erfc() * (-north / 2**0.5).erfc()).sqrt()  # of normal scores that ndtr takes for infinite
    cos, sin, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
    rows = ((-sin, cos, zero), (-height * cos, -height * sin, ring), (ring * cos, ring * sin, height))
    return torch.stack([torch.stack(row, -1) for row in rows], -2) @ CHART.to(turn)


def harmonics(points: Tensor, degree: int, order: int = 1) -> tuple[Tensor, Tensor]:
    r"""Real harmonics `[*B, F]` of mean square one around the third axis, at unit vectors `[*B, 3]`; degrees `[F]`.

    All degrees up to `degree`, orders that are multiples of `order`, by the recursion of normalised Legendre functions;
    :math:`\sum_m H_{lm}(x) H_{lm}(x') = (2l + 1) P_l(x \cdot x')`.
    """
    x, y, z = points[..., None].unbind(-2)
    waves = [torch.complex(torch.ones_like(x), torch.zeros_like(x))]
    for _ in range(degree):
        waves.append(waves[-1] * torch.complex(x, y))
    wave, m = torch.cat(waves[::order], -1), torch.arange(degree + 1).to(x)
    top = ((2 * m + 1) / (2 * m).clamp_min(1)).cumprod(0).sqrt() * (1 + (m > 0)).sqrt()  # of l = m
    m, before, now = m[::order], torch.zeros_like(wave.real), top[::order].expand_as(wave)
    found, degrees = [], []
    for step in range(degree + 1):
        l, count = m + step, (degree - step) // order + 1  # noqa: E741
        found += [(wave.real * now)[..., :count], (wave.imag * now)[..., 1:count]]
        degrees += [l[:count], l[1:count]]
        a, b = ((4 * (l + 1) ** 2 - 1) / ((l + 1) ** 2 - m**2)).sqrt(), ((l**2 - m**2) / (4 * l**2 - 1)).abs().sqrt()
        before, now = now, a * (z * now - b * before)
    return torch.cat(found, -1), torch.cat(degrees)


def spectrum(lengthscale: Tensor, degrees: Tensor) -> Tensor:
    """Shares `[F]` of the variance that harmonics of given degrees have in a Matern function."""
    return (-(SMOOTHNESS + 1) * (2 * SMOOTHNESS / lengthscale**2 + degrees * (degrees + 1)).log()).softmax(0)


class SphereKernel:
    """Kernel, of mean variance one, of a function of harmonics of some degrees and of multiples of an order.

    Their axis has scores of standard deviation `spread`; all orders need no axis.
    """

    compared = staticmethod(positions)

    def __init__(self, degrees: range, order: int | None, spread: float, x: Tensor) -> None:
        self.order, self.spread, self.points = order, spread, positions(x)
        every = harmonics(self.points[:1], degrees[-1], order or 1)[1]
        self.chosen = torch.isin(every, torch.tensor(degrees).to(every))
        self.degrees, self.width = every[self.chosen], len(x)
        self.fixed = None if order else self.features(self.points)

    def features(self, points: Tensor, *axis: Tensor) -> Tensor:
        """Harmonics `[M, F]` at unit vectors `[M, 3]` around an axis; without one, around z."""
        around = points @ frame(*(score / self.spread for score in axis)).to(points).mT if axis else points
        return harmonics(around, int(self.degrees[-1]), self.order or 1)[0][:, self.chosen]

    def cross(self, new: Tensor, lengthscale: Tensor, *axis: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances `[M, N]` and prior variances `[M]` at new unit vectors, differentiable in all scalars."""
        features, weights = self.features(new, *axis), spectrum(lengthscale, self.degrees)
        known = self.features(self.points, *axis) if self.fixed is None else self.fixed
        return (features * weights) @ known.mT, features**2 @ weights

    def gram(self, lengthscale: Tensor, *axis: Tensor) -> Tensor:
        """Gram matrix `[N, N]`, differentiable in all scalars."""
        known = self.features(self.points, *axis) if self.fixed is None else self.fixed
        return (known * spectrum(lengthscale, self.degrees)) @ known.mT
