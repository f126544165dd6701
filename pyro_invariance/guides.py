"""Approximate posteriors that Pyro's automatic guides lack."""

from collections.abc import Callable

import torch
from pyro.distributions import MultivariateNormal, constraints
from pyro.infer.autoguide import AutoContinuous, init_to_sample
from pyro.nn import PyroParam
from torch import Tensor


class LaplaceNormal(AutoContinuous):
    r"""A full-covariance normal guide in the coordinates of a Laplace approximation.

    .. math:: q(z) = N(z;\ \hat z + L m,\ (L S)(L S)^T)

    with the mode :math:`\hat z` and :math:`L L^T` the inverse of the negative Hessian there, both fixed, in Pyro's
    unconstrained space; :math:`m` (starts at 0) and the lower triangular :math:`S` (starts at I) are learned.  Steps
    of one size then suit all directions, where the eigenvalues of the Hessian itself span several decades.

    Parameters
    ----------
    model : callable
        A Pyro model whose latent sites are continuous.
    mode : Tensor `[D]`
        Mode of the log joint density in unconstrained space.
    cholesky : Tensor `[D, D]`
        Lower triangular factor of the Laplace covariance.
    """

    def __init__(self, model: Callable, mode: Tensor, cholesky: Tensor) -> None:
        super().__init__(model, init_loc_fn=init_to_sample)
        self.register_buffer("mode", mode.detach().clone())
        self.register_buffer("cholesky", cholesky.detach().clone())
        self.loc = torch.nn.Parameter(torch.zeros_like(mode))
        self.scale_tril = PyroParam(torch.eye(len(mode), dtype=mode.dtype), constraints.lower_cholesky)

    def get_posterior(self, *args: object, **kwargs: object) -> MultivariateNormal:
        """Return the normal distribution over the unconstrained latent vector."""
        return MultivariateNormal(self.mode + self.cholesky @ self.loc, scale_tril=self.cholesky @ self.scale_tril)
