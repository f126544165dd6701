"""Images of a few prototypes, turned by unknown angles: which prototype and which angle are summed out."""

import torch
from pyro.distributions import Categorical, TorchDistribution, constraints
from torch import Tensor

from pyro_invariance.densities import SoftUniform
from pyro_invariance.posed import PosedNormal, turned


class PosedPrototypes(TorchDistribution):
    r"""Mixture of transformed prototypes [frey2003transformation], as polar arrays.

    .. math:: x = T_\theta m_k + \sigma \epsilon, \quad k \sim \pi, \quad \theta \sim \text{SoftUniform}(-e, e)

    .. math:: \log p(x) = \log \sum_{k, q} \pi_k w_q\, N(x; T_{\theta_q} m_k, \sigma^2 I)

    Parameters
    ----------
    prototypes : Tensor `[K, R, A]`
        Without a Nyquist coefficient along the angles, as `Polar` makes arrays.
    shares : Tensor `[K]`
        Probability of each prototype.
    noise : Tensor
        Variance of each coordinate.
    extent : Tensor, optional
        Half-width of the range of poses, radians; without it nothing is turned.
    count : int
        Images, N.
    nodes : int
        Quadrature nodes of the pose on the circle; they have to be closer than poses are known.
    """

    arg_constraints = {"noise": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self,
        prototypes: Tensor,
        shares: Tensor,
        noise: Tensor,
        extent: Tensor | None = None,
        *,
        count: int = 1,
        nodes: int = 1024,
    ) -> None:
        self.prototypes, self.shares, self.noise = prototypes, shares, noise
        self.range = None if extent is None else SoftUniform(extent.to(prototypes), validate_args=False)
        one = torch.zeros(1).to(prototypes), torch.zeros(1).to(prototypes)
        self.poses, self.log_weights = one if self.range is None else self.range.nodes(nodes)
        super().__init__(torch.Size([count]), prototypes[0].flatten().shape, validate_args=False)

    @property
    def phase(self) -> Tensor:
        """Poses as points of the unit circle `[Q]`, complex, of which there are means."""
        return torch.polar(torch.ones_like(self.poses), self.poses)

    def joint(self, value: Tensor) -> Tensor:
        """Log density `[N, K, Q]` of images `[N, R A]` together with prototype and pose."""
        posed = PosedNormal(self.prototypes, self.noise.sqrt(), self.poses[:, None, None], validate_args=False)
        density = posed.log_prob(value[:, None]).movedim(0, -1)
        return density + (self.shares.log()[:, None] + self.log_weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density `[N]` of images `[N, R A]`, prototype and pose summed out."""
        return self.joint(value).flatten(1).logsumexp(-1)

    def posterior(self, value: Tensor) -> Tensor:
        """Posterior probability `[N, K, Q]` of each prototype in each pose."""
        joint = self.joint(value)
        return joint.flatten(1).softmax(-1).view_as(joint)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw `[*sample_shape, N, R A]`."""
        shape = (*sample_shape, *self.batch_shape)
        upright = self.prototypes[Categorical(self.shares).sample(shape)]
        if self.range is not None:
            upright = turned(upright, self.range.sample(shape))
        flat = upright.flatten(-2)
        return flat + self.noise.sqrt() * torch.randn_like(flat)
