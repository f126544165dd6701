"""The bound at the best guide: many shapes in one pass, any noise and variance after it, and the best of them."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal, Normal

from pyro_invariance import zoo
from pyro_invariance.collapsed import Collapsed, collapsed
from pyro_invariance.datasets import Dataset
from pyro_invariance.sparse import Inducing, SparseProcess

N, M, OUTPUTS, FLOOR = 40, 15, 3, 1e-4
SHAPES = [(0.6, 0.9), (0.4, 2.0)]


@pytest.fixture(scope="module")
def process(float64: None) -> SparseProcess:
    data = zoo.load("orbit_gp").data("SO2", 0, size=N, test=5, side=10)
    rotation = next(h for h in zoo.load("orbit_gp").hypotheses(data) if h.name == "rotation")
    some = Dataset(**{**vars(data), "x": data.x[:M], "y": data.y[:M]})
    targets = data.targets + 0.3 * torch.randn(N, OUTPUTS, generator=torch.Generator().manual_seed(0))
    return SparseProcess(rotation.prepare(some)[0], data.x, targets, Inducing.prior(M, OUTPUTS), batch=7)


@pytest.fixture(scope="module")
def seen(process: SparseProcess) -> list[Collapsed]:
    return collapsed(process, [tuple(torch.tensor(v) for v in shape) for shape in SHAPES])


def dense(process: SparseProcess, shape: tuple[float, ...], noise: Tensor, variance: Tensor) -> Tensor:
    """The bound from its definition: a normal of low rank, and the trace of what is left."""
    at = [torch.tensor(v) for v in shape]
    a, left = process.project(process.kernel.compared(process.images), process.factor(*at), variance, *at)
    normal = MultivariateNormal(torch.zeros(N), a.T @ a + noise * torch.eye(N))
    return normal.log_prob(process.targets.T).sum() - 0.5 * OUTPUTS * left.sum() / noise


def check_definition(process: SparseProcess, seen: list[Collapsed]) -> None:
    for shape, found in zip(SHAPES, seen, strict=True):
        for noise, variance in ((0.1, 1.0), (0.5, 3.0), (0.01, 0.2)):
            at = torch.tensor(noise), torch.tensor(variance)
            torch.testing.assert_close(found.bound(*at), dense(process, shape, *at), rtol=1e-8, atol=1e-6)


def test_one_pass_says_the_bound_at_any_noise_and_variance(process, seen):
    check_definition(process, seen)


def test_forgetting_what_is_left_is_caught(process, seen):
    mutants = [Collapsed(s.shape, s.cholesky, s.products, s.pulls, s.squares, 0.0, s.count) for s in seen]
    with pytest.raises(AssertionError):
        check_definition(process, mutants)


def test_bound_has_the_right_gradient(seen):
    at = [torch.tensor(0.2, requires_grad=True), torch.tensor(1.5, requires_grad=True)]
    assert gradcheck(seen[0].bound, at)


def test_guide_attains_the_bound(process, seen):
    noise, variance = torch.tensor(0.1), torch.tensor(1.3)
    guide, shape = seen[0].guide(noise, variance), seen[0].shape
    a, left = process.project(process.kernel.compared(process.images), process.factor(*shape), variance, *shape)
    mean, spread = SparseProcess(process.kernel, process.images, process.targets, guide, batch=N).moments(a, left)
    fit = -0.5 * ((process.targets - mean).square() + spread) / noise - 0.5 * torch.log(2 * math.pi * noise)
    torch.testing.assert_close(fit.sum() - guide.divergence(), seen[0].bound(noise, variance), rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("start", [(-2.0, 0.0), (-6.0, 3.0), (1.0, -2.0)])
def test_best_noise_and_variance_are_found_from_anywhere(seen, start):
    def prior(logs: Tensor) -> Tensor:
        return Normal(0.0, 2.0).log_prob(logs).sum()

    def value(found: Collapsed, logs: Tensor) -> float:
        return float(found.bound(FLOOR + logs[0].exp(), logs[1].exp()) + prior(logs))

    for found in seen:
        logs, precision, best = found.best(FLOOR, prior, torch.tensor(start))
        assert best == pytest.approx(value(found, logs), rel=1e-12)
        for step in 0.05 * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1], [1, -1], [-1, 1]]):
            assert value(found, logs + step) < best
        sharp = torch.linalg.eigh(precision)
        lost = best - value(found, logs + 0.05 * sharp.eigenvectors[:, 1])
        assert lost == pytest.approx(0.5 * 0.05**2 * float(sharp.eigenvalues[1]), rel=0.2)
