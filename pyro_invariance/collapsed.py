r"""The sparse bound for Gaussian noise, with the guide of the inducing values at its optimum [titsias2009variational].

With projections `A` `[M, N]` of unit variance, :math:`S = A A^T`, :math:`P = A Y` and what they leave,
:math:`t = \sum_n k_{nn} - |a_n|^2`, the bound is, for each of `O` outputs at noise :math:`\sigma^2` and variance `v`,

.. math:: -\tfrac12 \left[N \log 2 \pi \sigma^2 + \log|I + r S| + \frac{|y|^2 - r P^T (I + r S)^{-1} P + v t}{\sigma^2}
    \right], \quad r = v / \sigma^2

One pass over the data thus serves every noise and every variance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from tqdm import tqdm

from pyro_invariance.sparse import Inducing, SparseProcess

NEWTON, WIDEST = 50, 0.7  # steps to the best noise and variance, at most, and the longest, in their logarithms
FLAT = 1.0  # least curvature: nothing is less certain than to a factor of e


@dataclass
class Collapsed:
    """What a pass over the data says at one `shape` of the kernel: its lengthscale and extents.

    Attributes
    ----------
    shape : tuple of Tensor
        Lengthscale and extents.
    cholesky : Tensor `[M, M]`
        Factor of the prior correlation of the inducing values.
    products, pulls : Tensor `[M, M]`, `[M, O]`
        S and P.
    squares, left : float
        Sum of squared targets, and t.
    count : int
        Data seen.
    """

    shape: tuple[Tensor, ...]
    cholesky: Tensor
    products: Tensor
    pulls: Tensor
    squares: float = 0.0
    left: float = 0.0
    count: int = 0

    def add(self, process: SparseProcess, compared: Any, targets: Tensor) -> None:
        """See more data."""
        a, left = process.project(compared, self.cholesky, torch.ones_like(self.shape[0]), *self.shape)
        self.products.addmm_(a, a.T)
        self.pulls.addmm_(a, targets)
        self.squares, self.left = self.squares + float(targets.square().sum()), self.left + float(left.sum())
        self.count += len(targets)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues `[M]` of S, and the squared length of P along each of its eigenvectors, on the CPU."""
        values, basis = torch.linalg.eigh(self.products)
        return values.clamp_min(0).cpu(), (basis.T @ self.pulls).square().sum(1).cpu()

    def bound(self, noise: Tensor, variance: Tensor) -> Tensor:
        """Largest bound on the log evidence, nats, differentiable in both."""
        values, pulls = self._spectrum
        ratio, outputs = variance / noise, self.pulls.shape[1]
        explained = ratio * (pulls / (1 + ratio * values)).sum()
        wrong = (self.squares - explained + outputs * variance * self.left) / noise
        spread = self.count * (2 * math.pi * noise).log() + torch.log1p(ratio * values).sum()
        return -0.5 * (outputs * spread + wrong)

    def guide(self, noise: Tensor, variance: Tensor) -> Inducing:
        """Guide of the inducing values where the bound is largest."""
        eye = torch.eye(len(self.products)).to(self.products)
        return Inducing((eye + variance / noise * self.products)[None], variance.sqrt() / noise * self.pulls)

    def best(self, floor: float, prior: Callable[[Tensor], Tensor], logs: Tensor) -> tuple[Tensor, Tensor, float]:
        """Logarithms `[2]` of the noise above its floor and of the variance where bound and prior are largest.

        Newton's method from `logs`; also the negative Hessian there `[2, 2]`, and the value.
        """

        def bound(at: Tensor) -> Tensor:
            return self.bound(floor + at[0].exp(), at[1].exp()) + prior(at)

        reached = float(bound(logs))
        for _ in range(NEWTON):
            values, basis = torch.linalg.eigh(-hessian(bound, logs))
            precision = values.abs().clamp_min(FLAT)
            step = basis @ (basis.T @ jacobian(bound, logs) / precision)
            step = step * min(1.0, WIDEST / max(float(step.abs().max()), 1e-12))
            while float(bound(logs + step)) < reached and float(step.abs().max()) > 1e-6:
                step = step / 2
            logs = logs + step
            reached = float(bound(logs))
            if float(step.abs().max()) < 1e-6:
                break
        return logs, basis @ torch.diag(precision) @ basis.T, reached


@torch.no_grad()
def collapsed(process: SparseProcess, shapes: Sequence[tuple[Tensor, ...]]) -> list[Collapsed]:
    """Look at all data once, for several shapes of the kernel: comparing images takes most of the time."""
    size, outputs = process.inducing.shape
    found = []
    for shape in shapes:
        factor = process.factor(*shape)
        found.append(Collapsed(tuple(shape), factor, torch.zeros_like(factor), factor.new_zeros(size, outputs)))
    done = 0
    for images in tqdm(process.blocks(process.images), desc="images", disable=None, leave=False):
        compared = process.kernel.compared(images)
        for each in found:
            each.add(process, compared, process.targets[done : done + len(images)])
        done += len(images)
    return found
