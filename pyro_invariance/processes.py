r"""Gaussian processes with the function marginalised exactly, and the classes they predict.

Class labels are coded by orthonormal contrasts of the one-hot vectors, centred and scaled to unit variance on average
over outputs: `C - 1` outputs whose inner products are those of centred one-hot vectors (which are linearly dependent
and would count the data twice); two classes give one output, -1 and +1 if they are equally frequent.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_invariance.numerics import one_by_one


def class_codes(frequencies: Tensor) -> Tensor:
    r"""Target vectors `[C, C - 1]` of classes of given frequencies `[C]`.

    .. math:: t_c = s\, H^T (e_c - p), \quad s^2 = (C - 1) / (1 - \textstyle\sum_c p_c^2)

    with the orthonormal contrasts `H` `[C, C - 1]` (Helmert): of mean zero and of mean square one per output, over
    the classes.
    """
    share = frequencies.to(torch.float64) / frequencies.sum()
    classes = len(share)
    helmert = torch.zeros(classes - 1, classes).to(share)
    for k in range(1, classes):
        helmert[k - 1, :k], helmert[k - 1, k] = -1.0, float(k)
    contrasts = (helmert / helmert.norm(dim=1, keepdim=True)).T
    scale = math.sqrt((classes - 1) / float(1 - share.square().sum()))
    return scale * (contrasts - share @ contrasts)


def code_log_density(mean: Tensor, variance: Tensor, codes: Tensor) -> Tensor:
    """Log density `[M, C]` of target codes under a mixture of D Gaussian predictives.

    Normalised over the classes it is the class posterior of the very model: Bayes' rule, given that one of them is
    true.

    Parameters
    ----------
    mean, variance : Tensor `[D, M, O]`, `[D, M]`
        Predictives of D draws of the hyperparameters, noise included.
    codes : Tensor `[C, O]` or `[M, C, O]`
        Targets at which the density is wanted.
    """
    squared = (mean[:, :, None, :] - codes).square().sum(-1)
    spread = variance[..., None]
    logs = -0.5 * (squared / spread + mean.shape[-1] * (2 * math.pi * spread).log())
    return logs.logsumexp(0) - math.log(len(mean))


def mixed(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Moments `[M, O]`, `[M]` of an equal mixture of D predictives; the variance is averaged over outputs."""
    between = (mean - mean.mean(0)).square().mean((0, 2))
    return mean.mean(0), variance.mean(0) + between


class Kernel(Protocol):
    """What makes a Gaussian process given hyperparameters (scalar tensors); conditioned on N inputs when it is made."""

    @property
    def width(self) -> int:
        """Numbers that a comparison with one new input takes."""

    @property
    def gram(self) -> Callable[..., Tensor]:
        """`(*hyperparameters) -> [N, N]`: correlations of the inputs."""

    @property
    def compared(self) -> Callable[[Tensor], Any]:
        """New inputs as `cross` takes them: what the hyperparameters do not change is done once."""

    @property
    def cross(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """`(compared, *hyperparameters) -> [M, N], [M]`: correlations of new inputs with the old, and themselves."""


class _LogEvidence(torch.autograd.Function):
    r""":math:`\log N(Y; 0, \Sigma = vK + \sigma^2 I)`, and its gradient in closed form."""

    @staticmethod
    def forward(gram, variance, noise, targets):  # type: ignore[no-untyped-def]
        n, outputs = targets.shape
        covariance = gram * variance
        covariance.diagonal().add_(noise)
        cholesky, info = torch.linalg.cholesky_ex(covariance)
        if info:
            raise torch.linalg.LinAlgError(
                f"Cholesky of a {n} x {n} covariance failed at row {int(info)}: variance {float(variance):.3g}, noise "
                f"{float(noise):.3g}, {gram.dtype}"
            )
        solved = torch.cholesky_solve(targets, cholesky)
        quadratic = (solved * targets).sum()
        value = -0.5 * (quadratic + n * outputs * math.log(2 * math.pi)) - outputs * cholesky.diagonal().log().sum()
        return value, cholesky, solved

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _, cholesky, solved = output
        ctx.mark_non_differentiable(cholesky, solved)
        ctx.save_for_backward(*inputs[:2], cholesky, solved)

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        return one_by_one(_LogEvidence, info, in_dims, inputs), (0, 0, 0)

    @staticmethod
    def backward(ctx, grad, *_):  # type: ignore[no-untyped-def]
        gram, variance, cholesky, solved = ctx.saved_tensors
        by_covariance = torch.addmm(
            torch.cholesky_inverse(cholesky),
            solved,
            solved.T,
            beta=-0.5 * float(grad) * solved.shape[1],
            alpha=0.5 * float(grad),
        )
        by_variance = torch.dot(by_covariance.flatten(), gram.flatten())
        by_noise = by_covariance.diagonal().sum()
        return by_covariance.mul_(variance), by_variance, by_noise, None


class GaussianProcess(TorchDistribution):
    r"""Noisy values of independent Gaussian processes of one kernel, :math:`y_{\cdot c} \sim N(0, vK + \sigma^2 I)`.

    Parameters
    ----------
    gram : Tensor `[N, N]`, or None for no function at all (noise only)
        Prior correlation of the function at the N inputs.
    signal, noise : Tensor
        Prior variance `v` of the function, noise variance.
    shape : tuple of int
        `(N, outputs)`, the event shape.
    """

    arg_constraints = {"signal": constraints.positive, "noise": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, gram: Tensor | None, signal: Tensor, noise: Tensor, shape: tuple[int, ...]) -> None:
        if gram is not None:
            signal, noise = signal.to(gram), noise.to(gram)
        self.gram, self.signal, self.noise = gram, signal, noise
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log evidence of targets `[N, outputs]`, nats, summed over all of them."""
        if self.gram is None:
            return torch.distributions.Normal(0.0, self.noise.sqrt()).log_prob(value).sum()
        return _LogEvidence.apply(self.gram, self.signal, self.noise, value)[0]

    @cached_property
    def _cholesky(self) -> Tensor:
        assert self.gram is not None
        covariance = self.gram * self.signal
        covariance.diagonal().add_(self.noise)
        return torch.linalg.cholesky(covariance)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw targets `[*sample_shape, N, outputs]`."""
        eps = torch.randn(self._extended_shape(sample_shape), dtype=self.noise.dtype, device=self.noise.device)
        return eps * self.noise.sqrt() if self.gram is None else self._cholesky @ eps

    def leave_one_out(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Predict each of the targets `[N, outputs]` from all the others [rasmussen2006gaussian, section 5.4.2].

        Returns
        -------
        Tensor `[N, outputs]`, Tensor `[N]`
            Predictive mean and variance (noise included).
        """
        if self.gram is None:
            return torch.zeros_like(value), self.noise.to(value).expand(len(value))
        precision = torch.cholesky_inverse(self._cholesky)
        variance = 1 / precision.diagonal()
        return value - variance[:, None] * (precision @ value), variance

    def condition(self, value: Tensor, cross: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Predict at new inputs: targets `[N, outputs]`, correlations `[M, N]` with the old and `[M]` with themselves.

        Returns
        -------
        Tensor `[M, outputs]`, Tensor `[M]`
            Predictive mean and variance (noise included).
        """
        half = torch.linalg.solve_triangular(self._cholesky, cross.T, upper=False).mul_(self.signal)  # [N, M]
        white = torch.linalg.solve_triangular(self._cholesky, value, upper=False)
        return half.T @ white, (self.signal * prior - half.square().sum(0)).clamp_min(0) + self.noise
