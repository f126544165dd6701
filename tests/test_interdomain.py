"""Values of the base function against the double sum: covariances, bounds below the evidence, values of the average."""

import pytest
import torch
from torch import Tensor

from pyro_invariance.collapsed import collapsed
from pyro_invariance.interdomain import InterDomainKernel
from pyro_invariance.matrix_groups import Affine
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.quadrature import SobolOrbit
from pyro_invariance.representations import Pixels
from pyro_invariance.sparse import Inducing, SparseProcess

N, M, OUTPUTS, SIDE = 24, 12, 2, 9
EXTENTS = (0.1, 0.2, 0.8, 0.1, 0.05, 0.02)
NOISE, VARIANCE = 0.1, 1.4


@pytest.fixture(scope="module")
def images(float64: None) -> Tensor:
    return torch.rand(N, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def at(float64: None) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(v) for v in (0.8, *EXTENTS))


def kernel(images: Tensor, unit: bool = True) -> InterDomainKernel:
    return InterDomainKernel(SobolOrbit(Affine(), 8), Pixels(1), images, unit=unit)


def joint(made: InterDomainKernel, x: Tensor, at: tuple[Tensor, ...]) -> Tensor:
    """Covariance `[M + N, M + N]` of base values and averaged values from all pairs of views, as the kernel scales."""
    lengthscale, *extents = at
    plain, views = made.centres, made.views(made.pixels(x), *extents)
    count, each = views.shape[:2]
    every = torch.cat([plain, views.flatten(0, 1)])
    base = torch.exp(-0.5 * torch.cdist(every, every).square() / lengthscale**2)
    mean = torch.block_diag(torch.eye(len(plain)), torch.kron(torch.eye(count), torch.full((1, each), 1 / each)))
    own = made.views(made.x, *extents)
    unit = torch.exp(-0.5 * torch.cdist(own, own).square() / lengthscale**2).mean()
    scale = torch.cat([torch.ones(len(plain)), torch.full((count,), 1 / float(unit) ** 0.5)])
    return scale[:, None] * (mean @ base @ mean.T) * scale


@pytest.mark.parametrize("unit", [True, False])
def test_covariances_are_those_of_all_pairs_of_views(unit, images, at):
    made = kernel(images[:M], unit)
    whole = joint(made, images, at)
    torch.testing.assert_close(made.gram(*at), whole[:M, :M], rtol=1e-9, atol=1e-9)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            cross, variance = made.cross(made.compared(images), *at)
        torch.testing.assert_close(cross, whole[M:, :M], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(variance, whole.diagonal()[M:], rtol=1e-7, atol=1e-7)  # cdist of equals


def check_below(made: InterDomainKernel, images: Tensor, at: tuple[Tensor, ...]) -> float:
    """Nats by which the bound is below the evidence."""
    whole = joint(made, images, at)[len(made.centres) :, len(made.centres) :]
    targets = torch.linalg.cholesky(whole + 0.1 * torch.eye(N)) @ torch.randn(N, OUTPUTS, generator=generator())
    truth = GaussianProcess(whole, torch.tensor(VARIANCE), torch.tensor(NOISE), (N, OUTPUTS)).log_prob(targets)
    process = SparseProcess(made, images, targets, Inducing.prior(len(made.centres), OUTPUTS), N)
    bound = collapsed(process, [at])[0].bound(torch.tensor(NOISE), torch.tensor(VARIANCE))
    gap = float(truth - bound)
    assert gap > -1e-6 * abs(float(truth))
    return gap


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_bound_is_below_the_evidence_and_rises_with_the_inducing_values(images, at):
    gaps = [check_below(kernel(images[:m]), images, at) for m in (6, M, N)]
    assert gaps[0] > gaps[2]


def test_values_of_nothing_but_the_image_itself_are_values_of_the_function(images):
    still = tuple(torch.tensor(v) for v in (0.8, *[0.0] * 6))  # all views are copies: g = f
    assert check_below(kernel(images), images, still) == pytest.approx(0.0, abs=1e-4)


def test_covariance_with_the_image_alone_is_caught(images, at, monkeypatch):
    made = kernel(images[:M])
    monkeypatch.setattr(InterDomainKernel, "similar", lambda self, x, length, *extents: self.gram(length))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(made.cross(made.compared(images[:M]), *at)[0], joint(made, images[:M], at)[M:, :M])


def test_gradients_in_all_scalars(images, at):
    made = kernel(images[:5])
    arguments = [a.clone().requires_grad_() for a in at]
    assert torch.autograd.gradcheck(lambda *p: made.cross(made.compared(images[5:8]), *p), arguments, atol=1e-6)
