r"""Images of a linear decoder, turned by unknown angles: angle and code integrated out.

On polar arrays a turn by any real angle is orthogonal, so that one Cholesky factor serves all poses, and an inner
product is a trigonometric polynomial in the angle: after one cross spectrum, any number of nodes is one matrix product.
"""

import math

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_invariance.densities import MovingUniform
from pyro_invariance.representations import Polar


class PosedLinear(TorchDistribution):
    r"""Probabilistic principal components [tipping1999probabilistic] seen in an unknown pose.

    .. math:: x = T_\theta (m + W^T z) + \sigma \epsilon, \quad z \sim N(0, I_d), \quad \theta \sim U(-e, e)

    .. math:: \log p(x) = \log \sum_q w_q\, N(x; T_{\theta_q} m, \sigma^2 I + T_{\theta_q} W^T W T_{\theta_q}^T)

    Parameters
    ----------
    mean, directions : Tensor `[R, A]`, Tensor `[d, R, A]`
        Decoder, with `d >= 1`; without a Nyquist coefficient along the angles, as `Polar` makes arrays.
    noise : Tensor
        Variance of each coordinate.
    extent : Tensor, optional
        Half-width of the range of poses, radians; without it nothing is turned.
    count : int
        Images, N.
    nodes : int
        Quadrature nodes of the pose; they move with the extent, and have to be closer than poses are known.
    """

    arg_constraints = {"noise": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self,
        mean: Tensor,
        directions: Tensor,
        noise: Tensor,
        extent: Tensor | None = None,
        *,
        count: int = 1,
        nodes: int = 512,
    ) -> None:
        extent = None if extent is None else extent.to(mean)
        self.mean_image, self.directions, self.noise, self.extent = mean, directions, noise, extent
        one = torch.zeros(1).to(mean), torch.zeros(1).to(mean)
        self.poses, self.log_weights = one if extent is None else MovingUniform(extent).nodes(nodes)
        super().__init__(torch.Size([count]), mean.flatten().shape, validate_args=False)

    def _matched(self, x: Tensor) -> Tensor:
        r"""Inner products `[N, 1 + d, Q]` of images with mean and directions in each pose."""
        rings, angles = self.mean_image.shape
        templates = torch.cat([self.mean_image[None], self.directions])
        cross = torch.einsum(
            "nrf,trf->ntf", torch.fft.rfft(x.unflatten(-1, (rings, angles))), torch.fft.rfft(templates).conj()
        )
        f = torch.arange(cross.shape[-1]).to(self.poses)
        counted = torch.where((f == 0) | (2 * f == angles), 1.0, 2.0).to(self.poses) / angles
        phase = f[:, None] * self.poses
        waves = torch.cat([phase.cos(), -phase.sin()]) * counted.repeat(2)[:, None]
        return torch.cat([cross.real, cross.imag], -1) @ waves

    def by_pose(self, value: Tensor) -> Tensor:
        """Log density `[N, Q]` of images `[N, R A]` in each pose, the code integrated out."""
        matched = self._matched(value)
        flat, mean, size = self.directions.flatten(1), self.mean_image.flatten(), value.shape[-1]
        inner = self.noise * torch.eye(len(flat)).to(flat) + flat @ flat.T
        cholesky = torch.linalg.cholesky(inner)
        pull = matched[:, 1:] - (flat @ mean)[:, None]  # [N, d, Q]
        explained = torch.linalg.solve_triangular(cholesky, pull, upper=False).square().sum(1)
        squares = value.square().sum(-1, keepdim=True) + mean.square().sum() - 2 * matched[:, 0]
        log_det = (size - len(flat)) * self.noise.log() + 2 * cholesky.diagonal().log().sum()
        return -0.5 * (size * math.log(2 * math.pi) + log_det + (squares - explained) / self.noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density `[N]` of images `[N, R A]`, pose and code integrated out."""
        return (self.by_pose(value) + self.log_weights).logsumexp(-1)

    def pose(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean direction of the pose `[N]`, radians, and mean resultant length `[N]`: 1 where it is known."""
        weights = (self.by_pose(value) + self.log_weights).softmax(-1)
        phase = torch.polar(torch.ones_like(self.poses), self.poses)
        mean = weights.to(phase) @ phase
        return mean.angle(), mean.abs()

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw `[*sample_shape, N, R A]`."""
        shape = (*sample_shape, *self.batch_shape)
        code = torch.randn(*shape, len(self.directions)).to(self.directions)
        upright = self.mean_image + torch.tensordot(code, self.directions, 1)
        if self.extent is not None:
            angle = (2 * torch.rand(shape).to(self.noise) - 1) * self.extent
            upright = Polar(*self.mean_image.shape).rotate(upright[..., None, :, :], angle)[..., 0, :, :]
        flat = upright.flatten(-2)
        return flat + self.noise.sqrt() * torch.randn_like(flat)
