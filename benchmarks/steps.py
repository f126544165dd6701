"""One block of a sparse pass against the matrix products in it, and whether `torch.compile` would help."""

import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import mnist
from pyro_invariance import zoo
from pyro_invariance.collapsed import Collapsed
from pyro_invariance.kernels import _WeightedExp
from pyro_invariance.numerics import float64
from pyro_invariance.sparse import Inducing, SparseProcess
from pyro_invariance.sparse_fitting import inducing_kernel
from pyro_invariance.zoo import Hypothesis

aten = torch.ops.aten
SOLVE = aten.linalg_solve_triangular.default
PRODUCTS = {
    aten.mm.default,
    aten.mm.out,
    aten.bmm.default,
    aten.bmm.out,
    aten.addmm.default,
    aten.addmm_.default,
    SOLVE,
}
REPEATS, LISTED = 7, 8


def median(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall seconds of a call, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def find(data: Any, entry: str, label: str) -> Hypothesis:
    """Return the hypothesis of an entry by its label."""
    return next(h for h in zoo.load(entry).hypotheses(data) if h.label == label)


class Products(TorchDispatchMode):
    """Notes the matrix products that are carried out within, with their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.calls.append((func, args, kwargs or {}))
        return found

    def again(self) -> None:
        """Carry them out once more, and nothing else."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)

    def flops(self) -> float:
        """Operations on real numbers: two for a product and a sum, eight where they are complex."""
        total = 0.0
        for func, args, _ in self.calls:
            a, b = args[-2:]
            each = 1 if func is SOLVE else 8 if a.is_complex() else 2
            total += each * a.numel() * b.shape[-1]
        return total


def shapes(calls: list[tuple[Any, tuple, dict]]) -> dict[str, int]:
    """How often products of which shapes are carried out, the largest first."""
    found: dict[str, int] = {}
    for func, args, _ in sorted(calls, key=lambda c: -c[1][-2].numel() * c[1][-1].shape[-1]):
        a, b = args[-2:]
        word = f"{func.overloadpacket.__name__} {list(a.shape)} {list(b.shape)} {str(a.dtype).removeprefix('torch.')}"
        found[word] = found.get(word, 0) + 1
    return found


def rate(size: int = 1024) -> float:
    """GFLOP/s of a square product in float64."""
    a, b = torch.randn(2, size, size)
    return 2e-9 * size**3 / median(lambda: a @ b)


@float64()
@torch.no_grad()
def step(entry: str, label: str, inducing: int, images: int = 1000) -> dict[str, Any]:
    """Time of comparing a block of images, projecting and summing, against that of its products alone."""
    data = mnist("rotated", 0, n=max(images, 2 * inducing), m=10)
    hypothesis = find(data, entry, label)
    kernel: Any = inducing_kernel(hypothesis, data.subset(inducing, 0))
    process = SparseProcess(kernel, data.x, data.targets, Inducing.prior(inducing, data.targets.shape[1]), len(data.y))
    block = process.blocks(data.x[:images])[0]
    targets, shape = data.targets[: len(block)], (torch.tensor(0.6), *(torch.tensor(0.5) for _ in hypothesis.extents))
    factor = process.factor(*shape)
    seen = Collapsed(shape, factor, torch.zeros_like(factor), factor.new_zeros(process.inducing.shape))

    def whole() -> None:
        seen.add(process, kernel.compared(block), targets)

    whole()
    with Products() as products:
        whole()
    # in turn, so that both see the same machine
    pairs = [(median(whole, 1), median(products.again, 1)) for _ in range(REPEATS)]
    seconds, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        begin = time.perf_counter()
        whole()
        wall = time.perf_counter() - begin
    events = sorted(watched.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return {
        "hypothesis": f"{entry} {label}",
        "images": len(block),
        "inducing": inducing,
        "seconds": seconds,
        "products": alone,
        "ratio": seconds / alone,
        "gflops": products.flops() * 1e-9,
        "achieved": products.flops() * 1e-9 / alone,
        "rate": rate(),
        "outside operators": max(0.0, 1 - total * 1e-6 / wall),
        "operators": {e.key: e.self_cpu_time_total / total for e in events[:LISTED]},
        "shapes": dict(list(shapes(products.calls).items())[:LISTED]),
    }


@float64()
@torch.no_grad()
def compiled(lags: int = 16, pairs: int = 400_000) -> dict[str, Any]:
    """Time of the weighted exponential over lags: in chunks as it is, and compiled as a whole."""
    if not (shutil.which("g++") or shutil.which("clang++")):
        return {"compiled": "no C++ compiler here"}
    distances, rows, lengthscale = torch.rand(lags, pairs), torch.rand(1, lags), torch.tensor(0.6)

    def weighted(distances: Tensor, rows: Tensor, lengthscale: Tensor) -> Tensor:
        return (rows[0][:, None] * torch.exp(distances * (-0.5 / lengthscale.square()))).sum(0)

    fused = torch.compile(weighted)
    expected = _WeightedExp.forward(False, distances, rows, lengthscale)[0]  # type: ignore[no-untyped-call]
    torch.testing.assert_close(fused(distances, rows, lengthscale), expected, rtol=1e-12, atol=1e-12)
    plain = median(lambda: _WeightedExp.forward(False, distances, rows, lengthscale))  # type: ignore[no-untyped-call]
    fast = median(lambda: fused(distances, rows, lengthscale))
    return {"lags": lags, "pairs": pairs, "in chunks": plain, "compiled": fast, "gain": plain / fast - 1}
