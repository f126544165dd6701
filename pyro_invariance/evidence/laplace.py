"""Mode of a log joint density, and the normal approximation there."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor
from torch.distributions import identity_transform

from pyro_invariance.evidence.base import LogJoint

EDGE = 25.0  # of a coordinate that is a logarithm or a logit: exp(-25) is zero for every purpose


@dataclass(frozen=True, eq=False)  # one is not another of equal values
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
    positions : Tensor `[T, D]`
        The start, and where each iteration ended.
    """

    z: Tensor
    value: float
    inverse_hessian: np.ndarray
    path: list[float]
    positions: Tensor


def _inside(log_joint: LogJoint, z: Tensor) -> Tensor:
    """The nearest point within the edge of the coordinates that have one; a site on the whole line has none."""
    edges = torch.full_like(z, EDGE)
    for name, part in log_joint.slices.items():
        transform = log_joint.transforms[name]
        if getattr(transform, "base_transform", transform) == identity_transform:
            edges[part] = torch.inf
    return z.clamp(-edges, edges)


def _objective(log_joint: LogJoint, prior: bool) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(z, requires_grad=True)
        beyond = point - _inside(log_joint, point.detach())
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
    negative, path, positions = _objective(log_joint, prior), [], [start.detach()]
    options: dict = {"gtol": gtol, "maxiter": max_iter}
    if inverse_hessian is not None:
        values, vectors = np.linalg.eigh((inverse_hessian + inverse_hessian.T) / 2)
        half = vectors * np.sqrt(values.clip(1e-6))
        options["hess_inv0"] = half @ half.T

    def record(intermediate_result: OptimizeResult) -> None:
        path.append(-float(intermediate_result.fun))
        positions.append(torch.tensor(intermediate_result.x))

    result = minimize(
        negative,
        start.detach().numpy(),
        jac=True,
        method="BFGS",
        options=options,
        callback=record,
    )
    visited = _inside(log_joint, torch.stack(positions))
    return Mode(_inside(log_joint, torch.tensor(result.x)), -float(result.fun), result.hess_inv, path, visited)


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


def valley(log_joint: LogJoint, one: Mode, other: Mode) -> float:
    """How far the density falls below both modes on the straight way from one to the other, nats."""
    with torch.no_grad():
        between = [_value(log_joint, torch.lerp(one.z, other.z, share).numpy()) for share in (0.25, 0.5, 0.75)]
    return min(one.value, other.value) + max(between)


def distinct(log_joint: LogJoint, modes: Sequence[Mode], close: float, deep: float) -> list[Mode]:
    """Modes within `close` nats of the best, with a valley `deep` nats or more between any two, best first."""
    ranked = sorted(modes, key=lambda m: -m.value)
    kept: list[Mode] = []
    for mode in ranked:
        if mode.value > ranked[0].value - close and all(valley(log_joint, mode, other) > deep for other in kept):
            kept.append(mode)
    return kept


def lean(
    log_joint: LogJoint, mode: Tensor, cholesky: Tensor, coordinates: Iterable[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Give some coordinates of a Laplace approximation the margins that the density has along its ridges.

    .. math:: p(z_i) \approx p(D, \hat z + C_{\cdot i} (z_i - \hat z_i) / C_{ii}),\quad C = L L^T

    Each ridge costs six gradients; between them the log density is a cubic spline, beyond them a line.  The others keep
    their regression on the coordinate and their spread given it.

    Returns
    -------
    mode, cholesky, skew, tail : Tensor `[D]`, `[D, D]`, `[D]`, `[D]`
        Parameters of a `guides.SkewNormal`.
    """
    centre, covariance = mode.clone(), cholesky @ cholesky.T
    skew, tail = torch.zeros_like(mode), torch.ones_like(mode)
    for i in coordinates:
        ridge, sd = covariance[:, i] / covariance[i, i], float(covariance[i, i].sqrt())
        shift, scale, skew[i], tail[i] = _margin(_along(log_joint, centre, ridge * sd))
        centre = centre + ridge * sd * shift
        covariance = covariance + (scale**2 - 1) * sd**2 * torch.outer(ridge, ridge)
    return centre, torch.linalg.cholesky(covariance), skew, tail


def _along(log_joint: LogJoint, mode: Tensor, ridge: Tensor) -> Callable[[np.ndarray], np.ndarray]:
    """Log density at shares of a ridge, from three points each way: about one nat down, three and six."""
    negative, direction = _objective(log_joint, prior=True), ridge.numpy()

    def knot(t: float) -> tuple[float, float, float]:
        value, gradient = negative(mode.numpy() + t * direction)
        return t, -value, -float(gradient @ direction)

    top = knot(0.0)
    knots = [top]
    for side in (-1.0, 1.0):
        t = side
        for _ in range(3):
            found = knot(t)
            knots.append(found)
            down = max(top[1] - found[1], 0.1)
            t *= math.sqrt(1.0 / down) if down > 8.0 else min(6.0, max(1.4, math.sqrt(5.0 / down)))
    t, value, slope = np.array(sorted(knots)).T
    spline, (left, right) = CubicHermiteSpline(t, value, slope), (top[1] - value[[0, -1]]) / np.abs(t[[0, -1]])
    ends = max(slope[0], left, 1e-3), min(slope[-1], -right, -1e-3)  # no less steep than from the mode: it falls

    def density(at: np.ndarray) -> np.ndarray:
        below, above = np.minimum(at - t[0], 0.0), np.maximum(at - t[-1], 0.0)
        return spline(at.clip(t[0], t[-1])) + ends[0] * below + ends[1] * above

    return density


def _margin(log_density: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Centre, scale, skew and tail that are nearest to a density on the line, in Kullback-Leibler divergence."""
    u = np.linspace(-5.0, 5.0, 201)
    weights = np.exp(-0.5 * u**2) / np.exp(-0.5 * u**2).sum()

    def divergence(parameters: np.ndarray) -> float:
        centre, log_scale, skew, log_tail = parameters
        tail = math.exp(log_tail)
        shift, bent = tail * skew, tail * (np.arcsinh(u) + skew)
        z = centre + math.exp(log_scale) * (np.sinh(bent) - math.sinh(shift)) / (tail * math.cosh(shift))
        stretch = np.log(np.cosh(bent)) - math.log(math.cosh(shift)) + log_scale
        return -float(weights @ (log_density(z) + stretch))

    bounds = [(-5, 5), (-3, 3), (-2, 2), (-1, 1)]
    centre, log_scale, skew, log_tail = minimize(divergence, np.zeros(4), method="L-BFGS-B", bounds=bounds).x
    return np.array([centre, math.exp(log_scale), skew, math.exp(log_tail)])


def _value(log_joint: LogJoint, z: np.ndarray) -> float:
    try:
        return -float(sum(log_joint.terms(_inside(log_joint, torch.tensor(z)))))
    except torch.linalg.LinAlgError:
        return 1e12
