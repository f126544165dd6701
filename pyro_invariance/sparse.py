r"""Gaussian processes of any size: a lower bound on the evidence through M inducing values, from minibatches.

The function is known through its values :math:`u = f(Z)` at inducing images, whitened: :math:`u = L v`,
:math:`L L^T = K_{uu}`.  With :math:`q(v_c) = N(m_c, S_c)` for each output and :math:`a_n = L^{-1} k_{un}`,

.. math:: \log p(Y \mid \theta) \ge \sum_n E_q[\log p(y_n \mid f_n)] - \sum_c KL(q(v_c) \,\|\, N(0, I)), \quad
    f_{nc} \sim N(a_n^T m_c,\; k_{nn} - a_n^T a_n + a_n^T S_c a_n)

[hensman2013gaussian].  Steps of `q` follow its natural gradient: every datum counts as a Gaussian observation with the
slope and the curvature of its expected log density [khan2017conjugate].
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Normal

from pyro_invariance.devices import at_once
from pyro_invariance.typing import Images

BLOCK = 2**25  # bytes of a comparison: larger blocks of memory are not used again but mapped anew, page by page
JITTER = 1e-9  # of inducing values of variance one: they are noisy copies of the function's, and the bound holds
ROUNDING = 1e-6  # share of its prior variance by which what is left of it may come out negative
LOGITS = 64  # draws of the function for the expected log density of a class


class ExpectedNormal(TorchDistribution):
    r""":math:`E[\log N(y; f, \sigma^2)]` under :math:`f_c \sim N(\mu_c, s_c^2)`.

    Parameters
    ----------
    loc, spread : Tensor `[B, O]`, `[B, K]`
        Mean and variance of the function; `K` is 1 where the outputs share it, else `O`.
    noise : Tensor
        Noise variance.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, loc: Tensor, spread: Tensor, noise: Tensor) -> None:
        self.loc, self.spread, self.noise = loc, spread, noise
        super().__init__(loc.shape[:1], loc.shape[1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Expected log density `[B]` of targets `[B, O]`, nats."""
        return (Normal(self.loc, self.noise.sqrt()).log_prob(value) - 0.5 * self.spread / self.noise).sum(-1)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw targets `[*sample_shape, B, O]`."""
        return Normal(self.loc, (self.spread + self.noise).sqrt()).sample(torch.Size(sample_shape))


class ExpectedCategorical(TorchDistribution):
    r""":math:`E[\log \mathrm{softmax}(H f)_y]` under :math:`f_c \sim N(\mu_c, s_c^2)`, by a fixed set of draws.

    Parameters
    ----------
    loc, spread : Tensor `[B, O]`, `[B, K]`
        Mean and variance of the function.
    contrasts : Tensor `[C, O]`
        Logits of the classes per unit of the function.
    draws, seed : int
        How many, and which.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.nonnegative_integer

    def __init__(self, loc: Tensor, spread: Tensor, contrasts: Tensor, draws: int = LOGITS, seed: int = 0) -> None:
        self.loc, self.spread, self.contrasts, self.draws, self.seed = loc, spread, contrasts, draws, seed
        super().__init__(loc.shape[:1], torch.Size(), validate_args=False)

    def _logits(self) -> Tensor:
        sobol = torch.quasirandom.SobolEngine(self.loc.shape[1], scramble=True, seed=self.seed)
        half = Normal(0.0, 1.0).icdf(sobol.draw(self.draws // 2, dtype=self.loc.dtype).clamp(1e-6, 1 - 1e-6))
        half = (half / half.square().mean(0).sqrt()).to(self.loc)
        eps = torch.cat([half, -half])  # of mean zero and variance one, as few draws are not: neither is for free
        f = self.loc + self.spread.sqrt() * eps[:, None]
        return (f @ self.contrasts.T).log_softmax(-1)  # [draws, B, C]

    def log_prob(self, value: Tensor) -> Tensor:
        """Expected log probability `[B]` of classes `[B]`, nats."""
        return self._logits().mean(0).gather(-1, value[:, None])[:, 0]

    @property
    def probabilities(self) -> Tensor:
        """Probabilities `[B, C]` of the classes."""
        return self._logits().exp().mean(0)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw classes `[*sample_shape, B]`."""
        return torch.distributions.Categorical(self.probabilities).sample(torch.Size(sample_shape))


@dataclass
class Inducing:
    """Guide of the whitened inducing values: a normal for each output, in natural parameters.

    Attributes
    ----------
    precision : Tensor `[K, M, M]`
        Inverse covariances; one for all outputs (`K = 1`) where the curvature of the likelihood is the same for all.
    shift : Tensor `[M, O]`
        Precision times mean.
    """

    precision: Tensor
    shift: Tensor
    mean: Tensor = field(init=False)  # [M, O]
    root: Tensor = field(init=False)  # [K, M, M], S = root^T root

    def __post_init__(self) -> None:
        cholesky = torch.linalg.cholesky(self.precision)
        eye = torch.eye(cholesky.shape[-1]).to(cholesky)
        self.root = torch.linalg.solve_triangular(cholesky, eye, upper=False)
        self.mean = torch.cholesky_solve(self.shift.T[..., None], cholesky)[..., 0].T

    @classmethod
    def prior(cls, size: int, outputs: int, *, shared: bool = True) -> "Inducing":
        """Begin at the prior, a standard normal."""
        return cls(torch.eye(size).repeat(1 if shared else outputs, 1, 1), torch.zeros(size, outputs))

    def stepped(self, a: Tensor, weight: Tensor, pull: Tensor, share: float, rate: float) -> "Inducing":
        """Move along the natural gradient of the bound, by a batch in which each datum stands for `share` of them.

        `a` `[M, B]` projects; a datum counts as an observation of precision `weight` `[B, K]`, and `pull` `[B, O]` is
        precision times observation.
        """
        seen = torch.stack([(a * w) @ a.T for w in weight.T])
        precision = (1 - rate) * self.precision + rate * (torch.eye(len(a)).to(a) + share * seen)
        return Inducing(precision, (1 - rate) * self.shift + rate * share * a @ pull)

    def divergence(self) -> Tensor:
        """Kullback-Leibler divergence from the prior, nats, summed over outputs."""
        each = self.root.square().sum((1, 2)) - self.shape[0] - 2 * self.root.diagonal(dim1=1, dim2=2).log().sum(1)
        return 0.5 * (each.sum() * self.shape[1] / len(each) + self.mean.square().sum())

    @property
    def shape(self) -> torch.Size:
        """Inducing values and outputs."""
        return self.shift.shape


Likelihood = Callable[[Tensor, Tensor], ExpectedNormal | ExpectedCategorical]


@dataclass
class SparseProcess:
    """Values of a Gaussian process that is known through inducing images, observed in minibatches.

    Parameters
    ----------
    kernel : OrbitKernel or PatchKernel
        Conditioned on the inducing images.
    images, targets : Tensor `[N, C, H, W]`, Tensor `[N, O]`, or classes `[N]`
        All data.
    inducing : Inducing
        The guide, moved by `follow`.
    batch : int
        Data that are looked at in one step.
    """

    kernel: Any
    images: Images
    targets: Tensor
    inducing: Inducing
    batch: int
    _seen: tuple = field(init=False, default=())

    def factor(self, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Cholesky factor `[M, M]` of the prior correlation of the inducing values."""
        gram = self.kernel.gram(lengthscale, *extents)
        return torch.linalg.cholesky(gram + JITTER * torch.eye(len(gram)).to(gram))

    def project(
        self, compared: Any, cholesky: Tensor, variance: Tensor, lengthscale: Tensor, *extents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Projections `[M, B]` on the inducing values, and what they leave of the prior variance `[B]`.

        `compared` is what the kernel says of the images, `cholesky` what `factor` says of the same point.
        """
        cross, prior = self.kernel.cross(compared, lengthscale, *extents)
        a = torch.linalg.solve_triangular(cholesky, cross.T, upper=False)
        left = prior - a.square().sum(0)
        if float(left.detach().min()) < -ROUNDING:
            raise FloatingPointError(f"inducing values explain {-float(left.detach().min()):.2g} more than there is")
        return variance.sqrt() * a, variance * left.clamp_min(0)

    def moments(self, a: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Mean `[B, O]` and variance `[B, K]` of the function under the guide."""
        return a.T @ self.inducing.mean, left[:, None] + (self.inducing.root @ a).square().sum(1).T

    def observe(self, likelihood: Likelihood, *point: Tensor) -> Tensor:
        """Pyro statements of a minibatch, its expected log density scaled to all data: `point` as in `project`."""
        pyro.factor("divergence", -self.inducing.divergence())
        with pyro.plate("items", len(self.targets), subsample_size=self.batch) as rows:
            _, *shape = point
            a, left = self.project(self.kernel.compared(self.images[rows]), self.factor(*shape), *point)
            moments = self.moments(a, left)
            self._seen = (likelihood, rows, a.detach(), *(m.detach() for m in moments))
            return pyro.sample("targets", likelihood(*moments), obs=self.targets[rows])

    def follow(self, rate: float) -> None:
        """Move the guide along the natural gradient at the minibatch that was observed last."""
        likelihood, rows, a, mean, spread = self._seen
        self.inducing = self.inducing.stepped(
            a, *_counted(likelihood, mean, spread, self.targets[rows]), len(self.targets) / len(rows), rate
        )

    def blocks(self, images: Images) -> tuple[Images, ...]:
        """Images in blocks whose comparisons go through the same memory."""
        return images.split(max(1, at_once(images, BLOCK) // (8 * self.kernel.width)))


def _counted(likelihood: Likelihood, mean: Tensor, spread: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Precision `[B, K]`, and precision times value `[B, O]`, of the Gaussian observations that data count as."""
    with torch.enable_grad():
        at = mean.clone().requires_grad_(), spread.clone().requires_grad_()
        slope, curvature = torch.autograd.grad(likelihood(*at).log_prob(targets).sum(), at)
    weight = (-2 * curvature * spread.shape[1] / mean.shape[1]).clamp_min(0)  # log densities here are concave
    return weight, slope + weight * mean
