"""Approximate posteriors that Pyro's automatic guides lack."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import (
    Categorical,
    MixtureSameFamily,
    MultivariateNormal,
    TransformedDistribution,
    constraints,
)
from pyro.infer.autoguide import AutoContinuous, init_to_sample
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import Transform


class SinhArcsinh(Transform):
    r"""Skew and tails for each coordinate of a centred normal vector of standard deviations `s` [jones2009sinh].

    .. math:: y = c + s\, \frac{\sinh(t (\operatorname{asinh}(x / s) + k)) - \sinh(t k)}{t \cosh(t k)}

    with the skew :math:`k` (0: none; positive: to the right) and the tails :math:`t > 0` (1: normal; larger: heavier).
    At `x = 0` value and slope are those of :math:`c + x`, so that median and spread do not move with the shape.

    Parameters
    ----------
    centre, scale, skew, tail : Tensor `[D]`
    """

    domain = codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, centre: Tensor, scale: Tensor, skew: Tensor, tail: Tensor) -> None:
        super().__init__()
        self.centre, self.scale, self.skew, self.tail = centre, scale, skew, tail

    def _call(self, x: Tensor) -> Tensor:
        shift, bent = self.tail * self.skew, self.tail * ((x / self.scale).asinh() + self.skew)
        return self.centre + self.scale * (bent.sinh() - shift.sinh()) / (self.tail * shift.cosh())

    def _inverse(self, y: Tensor) -> Tensor:
        shift = self.tail * self.skew
        bent = ((y - self.centre) / self.scale * self.tail * shift.cosh() + shift.sinh()).asinh()
        return self.scale * (bent / self.tail - self.skew).sinh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        shift, u = self.tail * self.skew, x / self.scale
        return (self.tail * (u.asinh() + self.skew)).cosh().log() - shift.cosh().log() - 0.5 * u.square().log1p()


class _Landing(TransformedDistribution):
    """A distribution whose density does not follow its parameters: gradients then come through the draws alone.

    What is left out has mean zero and would be the only noise once guide and posterior agree [roeder2017sticking].
    """

    def __init__(self, moving: TransformedDistribution, fixed: TransformedDistribution) -> None:
        super().__init__(moving.base_dist, moving.transforms)
        self.moving, self.fixed = moving, fixed

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "_Landing":
        return _Landing(self.moving.expand(batch_shape), self.fixed.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.fixed.log_prob(value)


class SkewNormal(AutoContinuous):
    r"""A normal guide in the coordinates of a Laplace approximation, each margin with a skew and tails of its own.

    .. math:: z = \mathrm{SinhArcsinh}(x),\quad x \sim N(0,\ (L S)(L S)^T)

    with the centre :math:`\hat z + L m`; the mode :math:`\hat z` and :math:`L L^T`, the inverse of the negative Hessian
    there, are fixed, in Pyro's unconstrained space; :math:`m` (starts at 0), the lower triangular :math:`S` (starts at
    I), skews and tails are learned.  Steps of one size then suit all directions, where the eigenvalues of the Hessian
    itself span several decades.  Without skew and with normal tails it is the full-covariance normal; with them it can
    lean on a bound of the parameter, where the normal cannot.

    Parameters
    ----------
    model : callable
        A Pyro model whose latent sites are continuous.
    mode : Tensor `[D]`
        Mode of the log joint density in unconstrained space.
    cholesky : Tensor `[D, D]`
        Lower triangular factor of the Laplace covariance.
    skew, tail : Tensor `[D]`, optional
        Where the shapes start; 0 and 1 if absent.
    """

    def __init__(
        self, model: Callable, mode: Tensor, cholesky: Tensor, skew: Tensor | None = None, tail: Tensor | None = None
    ) -> None:
        super().__init__(model, init_loc_fn=init_to_sample)
        self.register_buffer("mode", mode.detach().clone())
        self.register_buffer("cholesky", cholesky.detach().clone())
        self.loc = torch.nn.Parameter(torch.zeros_like(mode))
        self.scale_tril = PyroParam(torch.eye(len(mode)).to(mode), constraints.lower_cholesky)
        self.skew = torch.nn.Parameter(torch.zeros_like(mode) if skew is None else skew.detach().clone())
        self.tail = PyroParam(torch.ones_like(mode) if tail is None else tail.detach().clone(), constraints.positive)

    def get_posterior(self, *args: object, **kwargs: object) -> _Landing:
        """Return the distribution over the unconstrained latent vector."""
        parameters: Any = (self.loc, self.scale_tril, self.skew, self.tail)
        return _Landing(self._at(*parameters), self._at(*(p.detach().clone() for p in parameters)))

    def _at(self, loc: Tensor, scale_tril: Tensor, skew: Tensor, tail: Tensor) -> TransformedDistribution:
        factor = self.cholesky @ scale_tril
        shape = SinhArcsinh(self.mode + self.cholesky @ loc, factor.norm(dim=1), skew, tail)
        return TransformedDistribution(MultivariateNormal(torch.zeros_like(loc), scale_tril=factor), [shape])


def mixture(parts: Sequence[TransformedDistribution], logits: Tensor) -> MixtureSameFamily:
    r"""Frozen posteriors of `SkewNormal` guides side by side, one for each mode, :math:`q(z) = \sum_k \pi_k q_k(z)`.

    Where components do not overlap, the evidence lower bound is largest at shares :math:`\pi_k` proportional to the
    exponential of their own bounds, and tight if these are.

    Parameters
    ----------
    parts : sequence of TransformedDistribution over `[D]`
        What `get_posterior().fixed` is of each.
    logits : Tensor `[K]`
        Log shares, up to a constant.
    """
    shapes: Any = [part.transforms[0] for part in parts]
    factor = torch.stack([part.base_dist.scale_tril for part in parts]).detach()
    names = ("centre", "scale", "skew", "tail")
    bent = SinhArcsinh(*(torch.stack([getattr(shape, name) for shape in shapes]).detach() for name in names))
    normal = MultivariateNormal(torch.zeros_like(bent.centre), scale_tril=factor)
    return MixtureSameFamily(Categorical(logits=logits), TransformedDistribution(normal, [bent]))


def wider(posterior: TransformedDistribution) -> TransformedDistribution:
    """Posterior of a `SkewNormal` guide whose normal vector has twice its scale, of the same shape."""
    normal = posterior.base_dist
    doubled = MultivariateNormal(normal.loc, scale_tril=2 * normal.scale_tril)
    return TransformedDistribution(doubled, posterior.transforms)
