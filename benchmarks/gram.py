"""Time of one Gram evaluation against plain torch, and peak memory at N = 2,000: `python -m benchmarks.gram`."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from pyro_invariance.kernels import OrbitKernel
from pyro_invariance.numerics import float64
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.zoo import load

NAMES = ("rotation", "O2", "translation")


def kernel_of(name: str, n: int) -> tuple[OrbitKernel, tuple[torch.Tensor, ...]]:
    """Kernel of a hypothesis on `n` simulated images of 28 x 28, and a value for each extent."""
    entry = load("orbit_gp")
    data = entry.data("mirror", size=8, test=1, side=28)
    chosen = next(h for h in entry.hypotheses(data) if h.name == name)
    images = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return chosen.prepare.args[0](images), tuple(torch.tensor(0.3) for _ in chosen.extents)  # type: ignore[attr-defined]


def median(function: Callable[[], object], repeats: int = 7) -> float:
    """Median wall seconds of a call."""
    seconds = []
    for _ in range(repeats + 1):  # the first is a warm-up
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


@float64()
def compare(name: str, n: int = 1000) -> None:
    """Print the time of one value and of one value with gradient of the evidence, and their ratio to plain torch."""
    kernel, extents = kernel_of(name, n)
    length, distances = torch.tensor(0.5), kernel.distances
    weights = torch.rand(1, len(distances))

    def plain() -> torch.Tensor:
        return weights @ torch.exp(distances * (-0.5 / length**2))

    def value() -> torch.Tensor:
        with torch.no_grad():
            return kernel.gram(length, *extents)

    targets = torch.randn(n, 9)
    hyper = [t.clone().requires_grad_() for t in (length, *extents)]

    def gradient() -> None:
        process = GaussianProcess(kernel.gram(*hyper), torch.tensor(1.0), torch.tensor(0.1), targets.shape)
        process.log_prob(targets).backward()

    base, one, both = median(plain), median(value), median(gradient)
    print(
        f"{name:12} N={n} lags={len(distances)}  plain {base:.3f} s  gram {one:.3f} s ({one / base:.2f}x)  "
        f"evidence and gradient {both:.3f} s ({both / base:.2f}x)",
        flush=True,
    )


@float64()
def peak(name: str, n: int = 2000) -> None:
    """Print the peak memory of a process that evaluates the evidence and its gradient once."""
    kernel, extents = kernel_of(name, n)
    hyper = [t.clone().requires_grad_() for t in (torch.tensor(0.5), *extents)]
    targets = torch.randn(n, 9)
    process = GaussianProcess(kernel.gram(*hyper), torch.tensor(1.0), torch.tensor(0.1), targets.shape)
    process.log_prob(targets).backward()
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{name:12} N={n} lags={len(kernel.distances)}  peak {kib / 2**20:.2f} GiB", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        peak(sys.argv[1])
    else:
        for hypothesis in NAMES:
            compare(hypothesis)
        for hypothesis in NAMES:  # a process each, so that each peak is its own
            subprocess.run([sys.executable, "-m", "benchmarks.gram", hypothesis], check=True)
