"""Exact evidence of many images, and its gradient, block by block: `python -m benchmarks.device [--images 60000]`.

The Gram matrix of 60,000 images takes 29 GB in float64, and no table of distances is kept beside it: it is made of
blocks of images compared with all of them, factorised where it stands, and compared once more for the gradient,

.. math:: \\partial \\log p = \\sum_{ij} B_{ij}\\, \\partial \\Sigma_{ij}, \\quad
    B = \\tfrac12 (\\alpha \\alpha^T - O\\, \\Sigma^{-1}), \\quad \\alpha = \\Sigma^{-1} Y

On a GPU if there is one; else it says so and takes 500 images.
"""

import argparse
import math
import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_invariance import zoo
from pyro_invariance.kernels import OrbitKernel
from pyro_invariance.numerics import float64
from pyro_invariance.typing import Images

PANEL = 2048  # columns of the Cholesky factor at a time
MANY, FEW = 60_000, 500


@dataclass
class Clock:
    """Seconds of each part, waited for until the device has done it."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        """Add the time since the last call to a part."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


def cholesky_(matrix: Tensor, panel: int = PANEL) -> Tensor:
    """Overwrite the lower triangle of a symmetric matrix `[N, N]` with its Cholesky factor, panel by panel.

    Raises
    ------
    torch.linalg.LinAlgError
        Where a diagonal block is not positive definite.
    """
    for i in range(0, len(matrix), panel):
        j = min(i + panel, len(matrix))
        done = matrix[i:j, :i]
        matrix[i:j, i:j].addmm_(done, done.T, alpha=-1)
        matrix[i:j, i:j] = torch.linalg.cholesky(matrix[i:j, i:j])
        if j < len(matrix):
            below = matrix[j:, i:j]
            below.addmm_(matrix[j:, :i], done.T, alpha=-1)
            below.copy_(torch.linalg.solve_triangular(matrix[i:j, i:j].T, below, upper=True, left=False))
    return matrix


def log_evidence(
    kernel: OrbitKernel,
    images: Images,
    targets: Tensor,
    variance: Tensor,
    noise: Tensor,
    *shape: Tensor,
    rows: int,
    panel: int = PANEL,
) -> tuple[Tensor, list[Tensor], dict[str, float]]:
    r"""Log evidence :math:`\log N(Y; 0, v K + \sigma^2 I)` with one matrix `[N, N]` in memory.

    Parameters
    ----------
    kernel : OrbitKernel
        Conditioned on the images.
    images, targets : Tensor `[N, C, H, W]`, `[N, O]`
    variance, noise : Tensor
        Prior variance `v` and noise variance.
    shape : Tensor
        Lengthscale and extents.
    rows : int
        Images of a block.

    Returns
    -------
    Tensor, list of Tensor, dict
        Value, nats; its derivatives in variance, noise and each of `shape`; seconds of each part.
    """
    (count, outputs), clock = targets.shape, Clock(targets.device)
    covariance = targets.new_empty(count, count)
    with torch.no_grad():
        for i in range(0, count, rows):
            block = kernel.cross(kernel.compared(images[i : i + rows]), *shape)[0]
            torch.mul(block, variance, out=covariance[i : i + rows])
    covariance.diagonal().add_(noise)
    clock.lap("covariance")
    lower = cholesky_(covariance, panel)
    clock.lap("Cholesky")
    solved = _solve(lower, targets)
    value = -0.5 * ((solved * targets).sum() + count * outputs * math.log(2 * math.pi))
    value = value - outputs * lower.diagonal().log().sum()
    at = [s.detach().clone().requires_grad_() for s in shape]
    slopes = [torch.zeros_like(value) for _ in (variance, noise, *shape)]
    clock.lap("value")
    for i in range(0, count, rows):
        unit = targets.new_zeros(count, len(images[i : i + rows]))
        unit[i : i + rows].fill_diagonal_(1.0)
        weights = torch.addmm(_solve(lower, unit), solved, solved[i : i + rows].T, beta=-0.5 * outputs, alpha=0.5).T
        clock.lap("inverse")
        with torch.enable_grad():
            block = kernel.cross(kernel.compared(images[i : i + rows]), *at)[0]
            by_shape = torch.autograd.grad(block, at, variance * weights)
        parts = (weights * block.detach()).sum(), weights[:, i : i + rows].diagonal().sum(), *by_shape
        slopes = [slope + part for slope, part in zip(slopes, parts, strict=True)]
        clock.lap("derivative of the covariance")
    return value, slopes, clock.seconds


def _solve(lower: Tensor, right: Tensor) -> Tensor:
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    return torch.linalg.solve_triangular(lower.T, half, upper=True)


def operations(count: int) -> dict[str, float]:
    """Operations of the parts that are matrix products."""
    return {"Cholesky": count**3 / 3, "inverse": 2 * count**3}


@float64()
def measure(count: int, device: torch.device, rows: int) -> None:
    """Print the value, its slopes, and where time and memory went."""
    entry = zoo.load("orbit_gp")
    data = entry.data("mirror", size=8, test=1, side=28)
    prepare: Any = next(h for h in entry.hypotheses(data) if h.name == "rotation").prepare
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 28, 28, generator=generator).to(device)
    targets = torch.randn(count, 9, generator=generator).to(device)
    at = [torch.tensor(v) for v in (1.0, 0.1, 0.5, 0.3)]
    for some in (rows, count):  # the first to warm up
        kernel, few, theirs = prepare.args[0](images[:some]), images[:some], targets[:some]
        value, slopes, seconds = log_evidence(kernel, few, theirs, *at, rows=rows)
    names = ("variance", "noise", "lengthscale", "rotation")
    said = ", ".join(f"{name} {float(s):.3f}" for name, s in zip(names, slopes, strict=True))
    print(f"{count} images: log evidence {float(value):.3f} nats; slopes: {said}")
    for part, taken in seconds.items():
        done = f"{operations(count)[part] / taken * 1e-9:10.1f} GFLOP/s" if part in operations(count) else ""
        print(f"{part:30} {taken:10.2f} s {done}")
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {peak / 2**30:.2f} GiB, of which the covariance {8 * count**2 / 2**30:.2f} GiB")


def main() -> int:
    """Measure on what there is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__)
    parser.add_argument("--images", type=int, help=f"{MANY} on a GPU, {FEW} without one")
    parser.add_argument("--rows", type=int, help="images of a block; 256 on a GPU, 50 without one")
    chosen = parser.parse_args()
    there = torch.cuda.is_available()
    print(torch.cuda.get_device_name() if there else "no GPU here: the same code on the CPU, one thread")
    default = (MANY, 256) if there else (FEW, 50)
    measure(chosen.images or default[0], torch.device("cuda" if there else "cpu"), chosen.rows or default[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
