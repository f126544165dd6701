"""The evidence of many images, block by block, against the one that keeps everything; the products that are counted."""

import math

import pytest
import torch
from torch import Tensor

from benchmarks import device, scaling, steps
from pyro_invariance.densities import SoftUniform
from pyro_invariance.kernels import OrbitKernel
from pyro_invariance.orbits import Turns
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.representations import Polar

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

N = 60
POINT = (1.7, 0.05, 0.8, 0.6)  # variance, noise, lengthscale, extent


@pytest.fixture
def problem(float64: None) -> tuple[OrbitKernel, Tensor, Tensor]:
    images = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
    return OrbitKernel(Turns(Polar(4, 16, normalise=True), 16, SoftUniform), images), images, targets


def whole(kernel: OrbitKernel, targets: Tensor) -> list[Tensor]:
    variance, noise, *shape = at = [torch.tensor(v, requires_grad=True) for v in POINT]
    value = GaussianProcess(kernel.gram(*shape), variance, noise, targets.shape).log_prob(targets)
    return [value.detach(), *torch.autograd.grad(value, at)]


@pytest.mark.parametrize(("rows", "panel"), [(17, 13), (1, 60), (N, 7)])
def test_blocks_give_the_evidence_and_its_gradient(rows, panel, problem):
    kernel, images, targets = problem
    at = [torch.tensor(v) for v in POINT]
    value, slopes, seconds = device.log_evidence(kernel, images, targets, *at, rows=rows, panel=panel)
    torch.testing.assert_close([value, *slopes], whole(kernel, targets), rtol=1e-8, atol=1e-8)
    assert all(s >= 0 for s in seconds.values())


def test_a_block_left_out_is_caught(problem, monkeypatch):
    kernel, images, targets = problem
    cross = OrbitKernel.cross

    def forgets(*args: Tensor) -> tuple[Tensor, Tensor]:
        covariance, variance = cross(*args)
        return (0.99 * covariance if torch.is_grad_enabled() else covariance), variance

    monkeypatch.setattr(OrbitKernel, "cross", forgets)
    value, slopes, _ = device.log_evidence(kernel, images, targets, *(torch.tensor(v) for v in POINT), rows=20)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        torch.testing.assert_close([value, *slopes], whole(kernel, targets), rtol=1e-8, atol=1e-8)


def test_a_covariance_that_is_none_is_refused():
    with pytest.raises(torch.linalg.LinAlgError):
        device.cholesky_(torch.ones(5, 5) - 2 * torch.eye(5), panel=2)


def test_products_are_noted_with_their_operations():
    a, b, c = torch.randn(3, 4), torch.randn(4, 5), torch.randn(2, 6, 4, dtype=torch.complex128)
    with steps.Products() as products:
        a @ b
        c @ c.mT
        a.exp()
        torch.linalg.solve_triangular(torch.eye(4), b, upper=False)
    assert len(products.calls) == 3
    assert products.flops() == 2 * 3 * 4 * 5 + 8 * 2 * 6 * 4 * 6 + 4 * 4 * 5
    products.again()
    assert next(iter(steps.shapes(products.calls))) == "bmm [2, 6, 4] [2, 4, 6] complex128"


def test_tables_and_pictures_take_what_was_measured(tmp_path):
    rows = [{"images": n, "seconds": 1.5 * n, "a pass": 0.5 * n} for n in (10, 100)]
    found = {"time": {"hypothesis": "SO2", "rows": rows, "slopes": {"seconds": 1.0, "a pass": math.nan}}}
    found["bound"] = [{"domain": "u = f(Z)", "inducing": m, "below per datum": 1 / m} for m in (10, 20)]
    scaling.draw(found, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 1000
    assert scaling.table(rows).splitlines() == [
        "| images | seconds | a pass |",
        "| --- | --- | --- |",
        "| 10 | 15 | 5 |",
        "| 100 | 150 | 50 |",
    ]
