"""One block of a sparse pass against the matrix products in it, and whether `torch.compile` would help."""

import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
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


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds that the one thread works for a call; others may keep the machine busy."""
    start = time.process_time()
    function()
    return time.process_time() - start


def in_turn(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of a call of each, after one to warm up; in turn, so that all see the same machine."""
    rounds = [[seconds_of(f) for f in functions] for _ in range(1 + REPEATS)]
    return [statistics.median(column) for column in zip(*rounds[1:], strict=True)]


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
    return 2e-9 * size**3 / in_turn(lambda: a @ b)[0]


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
    seconds, alone = in_turn(whole, products.again)
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
def compiled(lags: int = 16, pairs: int = 400_000) -> list[dict[str, Any]]:
    """Time of the weighted exponential over lags, alone and with two derivatives: in chunks as it is, and compiled."""
    if not (shutil.which("g++") or shutil.which("clang++")):
        return [{"compiled": "no C++ compiler here"}]
    distances, lengthscale, found = torch.rand(lags, pairs), torch.tensor(0.6), []

    def value(distances: Tensor, rows: Tensor, lengthscale: Tensor) -> list[Tensor]:
        return [(rows[0][:, None] * torch.exp(distances * (-0.5 / lengthscale.square()))).sum(0)]

    def slopes(distances: Tensor, rows: Tensor, lengthscale: Tensor) -> list[Tensor]:
        e = torch.exp(distances * (-0.5 / lengthscale.square()))
        by_row = [(row[:, None] * e).sum(0) for row in rows]
        return [*by_row, (rows[0][:, None] * e * distances).sum(0) / lengthscale**3]

    for derivatives, plain in ((0, value), (2, slopes)):
        rows = torch.rand(1 + (derivatives > 0), lags)
        fused, begin = torch.compile(plain), time.perf_counter()
        first = fused(distances, rows, lengthscale)
        compiling = time.perf_counter() - begin

        def chunks(rows: Tensor = rows) -> tuple[Tensor, Tensor]:
            return _WeightedExp.forward(len(rows) > 1, distances, rows, lengthscale)  # type: ignore[no-untyped-call]

        torch.testing.assert_close(torch.stack(first)[0], chunks()[0], rtol=1e-12, atol=1e-12)
        usual, fast = in_turn(chunks, partial(fused, distances, rows, lengthscale))
        found.append(
            {"derivatives": derivatives, "in chunks": usual, "compiled": fast, "gain": usual / fast - 1}
            | {"lags": lags, "pairs": pairs, "compiling": compiling}
        )
    return found
