"""Densities over group elements with a learnable extent, as Pyro distributions.

`extent` is the half-width of the range.  Every density offers `log_prob`, `sample` and `nodes(count)`: quadrature
nodes with normalised log weights, differentiable in the extent, so that the same site can be sampled or integrated.
"""

import math
from typing import TypeAlias

import torch
from pyro.distributions import Categorical, TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import softplus

from pyro_invariance.groups import Group, wrap
from pyro_invariance.typing import BadInput

Shape: TypeAlias = torch.Size | list[int] | tuple[int, ...]

EDGE = 0.1  # softest edge of SoftUniform, as a share of 1 (radians on the circle)


class SoftUniform(TorchDistribution):
    r"""A uniform range with soft (logistic) edges; by default on the circle.

    With :math:`\sigma` the logistic function and :math:`\tau` the width of the edge,

    .. math:: p(\theta) = \frac{1}{2 e} \left[ \sigma\frac{\theta + e}{\tau} - \sigma\frac{\theta - e}{\tau} \right]

    (an exactly uniform variable plus a logistic one).  On the circle the wrapped density is summed, so that
    `extent = pi` is **exactly** the Haar measure; :math:`\tau = \tau_0 \tanh(e / 4\tau_0)` shrinks with the extent,
    so that `extent = 0` is a point mass.  Everything between is smooth in the extent.

    Parameters
    ----------
    extent : Tensor
        Half-width at half maximum, > 0, radians on the circle; of narrow ranges, whose edges nearly meet, where the
        density is within 4 % of the maximum from its half. The range to the right of zero if `left` is given.
    left : Tensor, optional
        Half-width of the range to the left of zero, for an asymmetric range `[-left, extent]`.
    period : float or None
        Period of the circle; None for the real line.
    edge : float
        Largest edge width :math:`\tau_0`, in the unit of the extent.
    """

    arg_constraints = {"extent": constraints.positive, "left": constraints.positive}  # noqa: RUF012
    has_rsample = True

    def __init__(
        self,
        extent: Tensor | float,
        left: Tensor | float | None = None,
        *,
        period: float | None = 2 * math.pi,
        edge: float = EDGE,
        validate_args: bool | None = None,
    ) -> None:
        extent = torch.as_tensor(extent, dtype=None if torch.is_tensor(extent) else torch.get_default_dtype())
        left = extent if left is None else torch.as_tensor(left).to(extent)
        self.extent, self.left = torch.broadcast_tensors(extent, left)
        self.period, self.edge = period, edge
        width = self.extent + self.left
        looked_at = self._validate_args if validate_args is None else validate_args  # torch.vmap allows no look
        if looked_at and period is not None and bool((width > period * (1 + 1e-9)).any()):
            raise BadInput(f"extent: got a range of {float(width.detach().max()):.4g}, wider than {period:.4g}")
        super().__init__(self.extent.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The circle `[-period/2, period/2]`, or the real line."""
        return constraints.real if self.period is None else constraints.interval(-self.period / 2, self.period / 2)

    @property
    def tau(self) -> Tensor:
        """Width of the edge: `edge` for wide ranges, a quarter of the extent for narrow ones."""
        half = (self.extent + self.left) / 2
        return self.edge * torch.tanh(half / (4 * self.edge))

    def expand(self, batch_shape: Shape, _instance: object = None) -> "SoftUniform":
        shape = torch.Size(batch_shape)
        return SoftUniform(
            self.extent.expand(shape), self.left.expand(shape), period=self.period, edge=self.edge, validate_args=False
        )

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        like = {"dtype": self.extent.dtype, "device": self.extent.device}
        uniform, v = torch.rand(shape, **like), torch.rand(shape, **like).clamp(1e-12, 1 - 1e-12)
        x = -self.left + uniform * (self.left + self.extent) + self.tau * torch.logit(v)
        return x if self.period is None else torch.remainder(x + self.period / 2, self.period) - self.period / 2

    def log_prob(self, value: Tensor) -> Tensor:
        images = [0.0] if self.period is None else [k * self.period for k in (-2, -1, 0, 1, 2)]
        logs = torch.stack([self._log_box(value + shift) for shift in images])
        return logs.logsumexp(0)

    def _log_box(self, x: Tensor) -> Tensor:
        # log[s(b) - s(a)] = log s(b) + log s(-a) + log(1 - exp(a - b)), stable in both tails
        tau = self.tau
        a, b = (x - self.extent) / tau, (x + self.left) / tau
        width = self.extent + self.left
        # log s(x) = -softplus(-x), whose forward derivative torch need not make up in Python (40 times faster)
        outside = softplus(-b, threshold=40.0) + softplus(a, threshold=40.0)
        return torch.log(-torch.expm1(-width / tau)) - width.log() - outside

    def nodes(self, count: int) -> tuple[Tensor, Tensor]:
        """Equispaced nodes `[count]` on the circle, zero among them, and log weights `[count, *batch]`."""
        if self.period is None:
            raise BadInput("nodes: a range on the real line has no natural grid; use log_weights(points)")
        points = torch.arange(count, dtype=self.extent.dtype, device=self.extent.device) * (self.period / count)
        points = torch.where(points >= self.period / 2, points - self.period, points)
        return points, self.log_weights(points)

    def log_weights(self, points: Tensor) -> Tensor:
        """Normalised log weights `[P, *batch]` of the density on given points `[P]` (equal cells assumed)."""
        log_p = self.log_prob(points.reshape(-1, *[1] * len(self.batch_shape)))
        return log_p.log_softmax(0)


class MovingUniform(TorchDistribution):
    r"""A hard uniform range whose quadrature nodes move with it: :math:`\theta_q = e (2q + 1 - Q) / Q`.

    The choice when the exact width is wanted (its maximum-likelihood extent is the largest angle, so outliers drive
    it).  Log weights are equal; the gradient in the extent flows through the nodes.

    Parameters
    ----------
    extent : Tensor
        Half-width of the range, > 0.
    """

    arg_constraints = {"extent": constraints.positive}  # noqa: RUF012
    has_rsample = True

    def __init__(self, extent: Tensor | float, validate_args: bool | None = None) -> None:
        self.extent = torch.as_tensor(extent)
        super().__init__(self.extent.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The range itself."""
        return constraints.interval(-self.extent, self.extent)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "MovingUniform":
        return MovingUniform(self.extent.expand(torch.Size(batch_shape)), validate_args=False)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return (2 * torch.rand(shape, dtype=self.extent.dtype, device=self.extent.device) - 1) * self.extent

    def log_prob(self, value: Tensor) -> Tensor:
        inside = (value.abs() <= self.extent).to(self.extent.dtype)
        return inside.log() - (2 * self.extent).log()

    def nodes(self, count: int) -> tuple[Tensor, Tensor]:
        """Midpoint nodes `[count, *batch]` and equal log weights of the same shape."""
        q = torch.arange(count, dtype=self.extent.dtype, device=self.extent.device)
        unit = ((2 * q + 1 - count) / count).reshape(-1, *[1] * len(self.batch_shape))
        points = unit * self.extent
        return points, torch.full_like(points, -math.log(count))


class Haar(TorchDistribution):
    """The Haar measure of SO(2): uniform on the circle (for a finite group use `FiniteWeights(group)`)."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.interval(-math.pi, math.pi)

    def __init__(self, batch_shape: torch.Size = torch.Size()) -> None:
        super().__init__(batch_shape, validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "Haar":
        return Haar(torch.Size(batch_shape))

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        return wrap(2 * math.pi * torch.rand(self._extended_shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return value.new_full(shape, -math.log(2 * math.pi))

    def nodes(self, count: int) -> tuple[Tensor, Tensor]:
        """Equispaced nodes `[count]` and equal log weights."""
        points = wrap(torch.arange(count) * (2 * math.pi / count))
        return points, torch.full_like(points, -math.log(count))


class Histogram(TorchDistribution):
    r"""Constant over equal cells of the circle, or of a range of it: what nodes weigh, as a density to draw from.

    .. math:: p(\theta) = w_q / c \quad \text{where}\ |\theta - \theta_q| < c / 2

    Parameters
    ----------
    points : Tensor `[Q]`
        Middles of the cells, a step of `c` radians apart: nodes as other densities place them.
    logits : Tensor `[*batch, Q]`
        Unnormalised log weights.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012

    def __init__(self, points: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        self.points, self.logits = points, logits.log_softmax(-1)
        self.cell = torch.remainder(points[-1] - points[0], 2 * math.pi) / (len(points) - 1)
        self.hair = 16 * torch.finfo(points.dtype).eps  # share of the range that rounding may move its ends by
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The circle, or the range of the cells but for a hair: rounding must not reach past its ends."""
        half = 0.5 * len(self.points) * self.cell * (1 - self.hair)
        if float(half) > math.pi * (1 - 4 * self.hair):
            return constraints.interval(-math.pi, math.pi)
        middle = self.points.mean()
        return constraints.interval(middle - half, middle + half)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "Histogram":
        return Histogram(self.points, self.logits.expand(*batch_shape, -1), validate_args=False)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        index = Categorical(logits=self.logits).sample(torch.Size(sample_shape))
        return wrap(self.points[index] + (torch.rand(index.shape).to(self.points) - 0.5) * self.cell)

    def log_prob(self, value: Tensor) -> Tensor:
        place = torch.remainder(value - self.points[0] + self.cell / 2, 2 * math.pi) / self.cell
        index = place.detach().long().clamp(max=len(self.points) - 1)[..., None]
        logits = self.logits.expand(*torch.broadcast_shapes(value.shape, self.batch_shape), -1)
        inside = (place <= len(self.points) * (1 + self.hair)).to(logits)
        return logits.gather(-1, index.expand(*logits.shape[:-1], 1))[..., 0] - self.cell.log() + inside.log()

    def nodes(self, count: int) -> tuple[Tensor, Tensor]:
        """Midpoints `[count]` of finer cells and log weights `[count, *batch]`."""
        step = (torch.arange(count).to(self.points) + 0.5) * (len(self.points) / count)
        points = wrap(self.points[0] + (step - 0.5) * self.cell)
        return points, self.log_prob(points.reshape(-1, *[1] * len(self.batch_shape))).log_softmax(0)


class FiniteWeights(Categorical):
    """A distribution over the elements of a finite group; equal weights (Haar) unless logits are given.

    Parameters
    ----------
    group : Group
        A finite group; the support is its element index.
    logits : Tensor `[*batch, order]`, optional
        Unnormalised log weights, learnable.
    """

    def __init__(self, group: Group, logits: Tensor | None = None, validate_args: bool | None = None) -> None:
        if group.order is None or group.element_shape:
            raise BadInput(f"group: got {group!r}, weights need a finite group whose elements are integers")
        logits = torch.zeros(group.order) if logits is None else logits
        if logits.shape[-1] != group.order:
            raise BadInput(f"logits: got {logits.shape[-1]} weights for a group of order {group.order}")
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "FiniteWeights":
        return super().expand(batch_shape, _instance=self._get_checked_instance(FiniteWeights, _instance))

    def nodes(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """All elements `[order]` and their log weights `[order, *batch]`."""
        elements = torch.arange(self.logits.shape[-1], device=self.logits.device)
        return elements, self.logits.log_softmax(-1).movedim(-1, 0)
