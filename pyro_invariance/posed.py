r"""Images in a pose: turned by a known, a sampled, an enumerated or an unknown angle.

On polar arrays a turn by any real angle is orthogonal, so that one Cholesky factor serves all poses, and an inner
product is a trigonometric polynomial in the angle: after one cross spectrum, any number of nodes is one matrix product.

The same line of a model, `pyro.sample("x", PosedNormal(decoder(z), sigma, theta), obs=x)`, serves a pose that is
sampled and one that is summed out (`sites.Marginalised`); `PosedLinear` has pose and code of a linear decoder summed
out.
"""

import math
from collections.abc import Callable

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution, constraints
from torch import Tensor

from pyro_invariance.densities import Histogram, MovingUniform
from pyro_invariance.representations import Polar
from pyro_invariance.typing import BadInput

Shape = torch.Size | list[int] | tuple[int, ...]


def _cross(x: Tensor, template: Tensor) -> Tensor:
    """Cross spectrum `[*B, 2 F]` of images and templates `[*B, R, A]`: real and imaginary parts, as `_waves` counts.

    As products with the few waves of a ring: with its gradient that is twice as fast as transforms so short.
    """
    angles = x.shape[-1]
    waves = _waves(torch.arange(angles).to(x) * (2 * math.pi / angles), angles)
    (real, imaginary), (of_template, against) = ((t @ waves).chunk(2, -1) for t in (x, template))
    f = torch.arange(real.shape[-1]).to(x)
    counted = torch.where((f == 0) | (2 * f == angles), 1.0, 2.0).to(x) / angles
    cosines = (real * of_template + imaginary * against).sum(-2) * counted
    return torch.cat([cosines, (imaginary * of_template - real * against).sum(-2) * counted], -1)


def _waves(pose: Tensor, angles: int) -> Tensor:
    r"""Waves `[*P, 2 F]` at poses `[*P]`, so that `_cross @ _waves` is :math:`\langle x, T_\theta m \rangle`."""
    phase = pose[..., None] * torch.arange(angles // 2 + 1).to(pose)
    return torch.cat([phase.cos(), phase.sin()], -1)


def turned(template: Tensor, pose: Tensor) -> Tensor:
    """Arrays `[*B, R, A]` turned by `[*B]`."""
    return Polar(*template.shape[-2:]).rotate(template[..., None, :, :], pose)[..., 0, :, :]


class PosedNormal(TorchDistribution):
    r"""Image in a given pose, with noise: :math:`x = T_\theta m + \sigma \epsilon`.

    .. math:: \log N(x; T_\theta m, \sigma^2 I) = -\frac{D}{2} \log 2 \pi \sigma^2
        - \frac{|x|^2 + |m|^2 - 2 \langle x, T_\theta m \rangle}{2 \sigma^2}

    No template is turned: nodes of an enumerated pose, `[Q, 1]`, cost one matrix product for all images and all nodes.

    Parameters
    ----------
    template : Tensor `[*T, R, A]`
        Images upright; without a Nyquist coefficient along the angles, as `Polar` makes arrays (or `A` odd).
    scale : Tensor
        Standard deviation of each coordinate.
    pose : Tensor `[*P]`
        Counter-clockwise angles, radians; `*T`, `*P` and the shape of `scale` are broadcast.
    """

    arg_constraints = {"scale": constraints.positive, "pose": constraints.real}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self, template: Tensor, scale: Tensor | float, pose: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.template, self.scale, self.pose = template, torch.as_tensor(scale).to(template), pose.to(template)
        batch = torch.broadcast_shapes(template.shape[:-2], self.scale.shape, pose.shape)
        super().__init__(batch, torch.Size([template.shape[-2:].numel()]), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of images `[*B, R A]`."""
        size, squares = value.shape[-1], value.square().sum(-1) + self.template.square().sum((-2, -1))
        variance = self.scale.square()
        # without nodes of the pose, which only what is matched has: one pass over them
        rest = -0.5 * (size * (2 * math.pi * variance).log() + squares / variance)
        return self._matched(value) / variance + rest

    def _matched(self, value: Tensor) -> Tensor:
        """Inner products of images with their template in their pose."""
        rings, angles = self.template.shape[-2:]
        cross, waves = _cross(value.unflatten(-1, (rings, angles)), self.template), _waves(self.pose, angles)
        if self.pose.dim() < cross.dim() or self.pose.shape[1:].numel() > 1:
            return (cross * waves).sum(-1)
        found = (cross @ waves.reshape(-1, waves.shape[-1]).T).movedim(-1, 0)  # nodes, of all images the same
        return found.reshape(-1, *[1] * (self.pose.dim() - cross.dim()), *cross.shape[:-1])

    @torch.no_grad()
    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        """Draw `[*sample_shape, *batch, R A]`."""
        shape = self._extended_shape(sample_shape)
        view = turned(self.template.expand(*self.batch_shape, *self.template.shape[-2:]), self.pose).flatten(-2)
        return view + self.scale[..., None] * torch.randn(shape).to(view)


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
    density : callable
        Range of the poses given its extent: `MovingUniform`, the exact width, or `SoftUniform`.
    count : int
        Images, N.
    nodes : int
        Quadrature nodes of the pose, which have to be closer than poses are known: where the noise is too small for
        that, it comes out too large.
    """

    arg_constraints = {"noise": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self,
        mean: Tensor,
        directions: Tensor,
        noise: Tensor,
        extent: Tensor | None = None,
        density: Callable[[Tensor], TorchDistribution] = MovingUniform,
        /,
        *,
        count: int = 1,
        nodes: int = 512,
    ) -> None:
        self.mean_image, self.directions, self.noise = mean, directions, noise
        self.density = None if extent is None else density(extent.to(mean))
        one = torch.zeros(1).to(mean), torch.zeros(1).to(mean)
        found: tuple[Tensor, Tensor] = one if self.density is None else self.density.nodes(nodes)
        self.poses, self.log_weights = found
        super().__init__(torch.Size([count]), mean.flatten().shape, validate_args=False)

    def _matched(self, x: Tensor) -> Tensor:
        r"""Inner products `[N, 1 + d, Q]` of images with mean and directions in each pose."""
        templates = torch.cat([self.mean_image[None], self.directions])
        cross = _cross(x.unflatten(-1, self.mean_image.shape)[:, None], templates)
        return cross @ _waves(self.poses, templates.shape[-1]).T

    def _inner(self) -> tuple[Tensor, Tensor]:
        r"""Cholesky factor of :math:`\sigma^2 I + W W^T` and products of the directions with the mean, `[d]`."""
        flat = self.directions.flatten(1)
        inner = self.noise * torch.eye(len(flat)).to(flat) + flat @ flat.T
        return torch.linalg.cholesky(inner), flat @ self.mean_image.flatten()

    def by_pose(self, value: Tensor) -> Tensor:
        """Log density `[N, Q]` of images `[N, R A]` in each pose, the code integrated out."""
        matched, size, code = self._matched(value), value.shape[-1], len(self.directions)
        cholesky, offset = self._inner()
        pull = matched[:, 1:] - offset[:, None]  # [N, d, Q]
        explained = torch.linalg.solve_triangular(cholesky, pull, upper=False).square().sum(1)
        squares = value.square().sum(-1, keepdim=True) + self.mean_image.square().sum() - 2 * matched[:, 0]
        log_det = (size - code) * self.noise.log() + 2 * cholesky.diagonal().log().sum()
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

    def pose_posterior(self, value: Tensor) -> Histogram:
        """Posterior of the pose `[N]` of images `[N, R A]`, constant over the cells of the nodes: a proposal."""
        if self.density is None:
            raise BadInput("extent: got None, and the pose is known to be 0; a posterior takes a range of poses")
        return Histogram(self.poses.detach(), self.by_pose(value) + self.log_weights)

    def code_posterior(self, value: Tensor, pose: Tensor) -> MultivariateNormal:
        r"""Posterior of the code `[*S, N, d]` of images `[N, R A]` given their poses `[*S, N]`, exact.

        .. math:: z \mid x, \theta \sim N(M^{-1} W (T_{-\theta} x - m),\ \sigma^2 M^{-1}), \quad M = \sigma^2 I + W W^T
        """
        cholesky, offset = self._inner()
        cross = _cross(value.unflatten(-1, self.mean_image.shape)[:, None], self.directions)
        pull = (cross * _waves(pose, self.mean_image.shape[-1])[..., None, :]).sum(-1) - offset  # [*S, N, d]
        mean = torch.cholesky_solve(pull[..., None], cholesky)[..., 0]
        return MultivariateNormal(mean, precision_matrix=cholesky @ cholesky.T / self.noise)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        """Draw `[*sample_shape, N, R A]`."""
        shape = (*sample_shape, *self.batch_shape)
        code = torch.randn(*shape, len(self.directions)).to(self.directions)
        upright = self.mean_image + torch.tensordot(code, self.directions, 1)
        if self.density is not None:
            upright = turned(upright, self.density.sample(torch.Size(shape)))
        flat = upright.flatten(-2)
        return flat + self.noise.sqrt() * torch.randn_like(flat)
