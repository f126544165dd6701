"""Mode of a log joint density, and the normal approximation there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from pyro_invariance.evidence.base import LogJoint

EDGE = 25.0  # of unconstrained space: exp(-25) is zero for every purpose, exp(-750) is zero in float64


@dataclass(frozen=True)
class Mode:
    """A local maximum.

    Attributes
    ----------
    z : Tensor `[D]`
        Where, in unconstrained space.
    value : float
        The objective there, nats.
    inverse_hessian : ndarray `[D, D]`
        Quasi-Newton estimate of the inverse of the negative Hessian.
    path : list of float
        Objective after each iteration.
    """

    z: Tensor
    value: float
    inverse_hessian: np.ndarray
    path: list[float]


def _objective(log_joint: LogJoint, prior: bool) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(z, requires_grad=True)
        beyond = point - point.detach().clamp(-EDGE, EDGE)
        try:  # beyond the edge, the value there and its slope, and a way back
            log_prior, log_likelihood = log_joint.terms(point - beyond.detach())
        except torch.linalg.LinAlgError:  # a line search reached too far: a wall, with the way back
            return 1e12, z
        value = (log_likelihood + log_prior if prior else log_likelihood) - 0.5 * beyond.square().sum()
        (gradient,) = torch.autograd.grad(value, point)
        return -float(value.detach()), -gradient.numpy()

    return negative


def maximise(
    log_joint: LogJoint,
    start: Tensor,
    *,
    prior: bool = True,
    inverse_hessian: np.ndarray | None = None,
    gtol: float = 0.2,
    max_iter: int = 60,
) -> Mode:
    """Climb by BFGS from `start` `[D]`; `prior=False` maximises the likelihood alone (type II).

    Stops when every component of the gradient is below `gtol` nats per unit of unconstrained space.
    """
    negative, path = _objective(log_joint, prior), []
    options: dict = {"gtol": gtol, "maxiter": max_iter}
    if inverse_hessian is not None:
        values, vectors = np.linalg.eigh((inverse_hessian + inverse_hessian.T) / 2)
        half = vectors * np.sqrt(values.clip(1e-6))
        options["hess_inv0"] = half @ half.T
    result = minimize(
        negative,
        start.detach().numpy(),
        jac=True,
        method="BFGS",
        options=options,
        callback=lambda intermediate_result: path.append(-float(intermediate_result.fun)),
    )
    return Mode(torch.tensor(result.x).clamp(-EDGE, EDGE), -float(result.fun), result.hess_inv, path)


def laplace(log_joint: LogJoint, mode: Tensor, step: float = 0.02) -> tuple[Tensor, Tensor]:
    """Polish a mode by one Newton step and return it with a Cholesky factor of the Laplace covariance.

    The Hessian comes from forward differences of the gradient.  The density need not be normal: along each axis of
    the covariance the standard deviation is shrunk until one step of it, either way, loses no more than 2 nats
    (a normal density loses 1/2), and it is 4 at most (a saturated extent is nearly flat).
    """
    negative = _objective(log_joint, prior=True)
    z = mode.numpy()
    value, gradient = negative(z)
    hessian = np.stack([(negative(z + offset)[1] - gradient) / step for offset in step * np.eye(len(z))])
    curvature, axes = np.linalg.eigh((hessian + hessian.T) / 2)
    sd = curvature.clip(1 / 16) ** -0.5
    moved = z - (axes * sd**2) @ (axes.T @ gradient)
    polished = negative(moved)[0]
    if polished < value:
        z, value = moved, polished
    with torch.no_grad():
        for i, axis in enumerate(axes.T):
            for _ in range(8):
                loss = max(_value(log_joint, z + side * sd[i] * axis) for side in (-1, 1)) - value
                if loss <= 2.0:
                    break
                sd[i] *= max(0.1, loss**-0.5)
    root = torch.tensor(axes * sd)
    return torch.tensor(z), torch.linalg.cholesky(root @ root.T)


def _value(log_joint: LogJoint, z: np.ndarray) -> float:
    try:
        return -float(sum(log_joint.terms(torch.tensor(z).clamp(-EDGE, EDGE))))
    except torch.linalg.LinAlgError:
        return 1e12
