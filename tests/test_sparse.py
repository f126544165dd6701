"""The sparse bound against the exact evidence, its natural gradient against its optimum, likelihoods by quadrature."""

import math
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_invariance import sparse, zoo
from pyro_invariance.collapsed import collapsed
from pyro_invariance.datasets import Dataset
from pyro_invariance.kernels import OrbitKernel, PatchKernel
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.sparse import ExpectedCategorical, ExpectedNormal, Inducing, SparseProcess

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

N, M, OUTPUTS = 40, 15, 3
POINTS = {"trivial": (0.6,), "SO2": (0.6,), "rotation": (0.6, 0.9), "translation": (0.6, 0.2, 0.3)}
VARIANCE, NOISE = (torch.tensor(v, dtype=torch.float64) for v in (1.7, 0.05))


@pytest.fixture(scope="module")
def data(float64: None) -> Dataset:
    return zoo.load("orbit_gp").data("SO2", 0, size=N, test=5, side=10)


@pytest.fixture(scope="module")
def targets(data: Dataset) -> Tensor:
    return data.targets + NOISE.sqrt() * torch.randn(N, OUTPUTS, generator=torch.Generator().manual_seed(0))


def kernel_of(data: Dataset, name: str) -> OrbitKernel | PatchKernel:
    return next(h for h in zoo.load("orbit_gp").hypotheses(data) if h.name == name).prepare(data)[0]


def process(data: Dataset, targets: Tensor, name: str, size: int = M, **changes: object) -> SparseProcess:
    some = replace(data, x=data.x[:size], y=data.y[:size])
    made = SparseProcess(kernel_of(some, name), data.x, targets, Inducing.prior(size, OUTPUTS), batch=7)
    return replace(made, **changes)


def point(name: str) -> tuple[Tensor, ...]:
    return (VARIANCE, *(torch.tensor(p) for p in POINTS[name]))


def optimum(made: SparseProcess, variance: Tensor, *shape: Tensor) -> tuple[float, Inducing]:
    found = collapsed(made, [shape])[0]
    return float(found.bound(NOISE, variance)), found.guide(NOISE, variance)


def project(made: SparseProcess, *at: Tensor) -> tuple[Tensor, Tensor]:
    return made.project(made.kernel.compared(made.images), made.factor(*at[1:]), *at)


def exact(made: SparseProcess, name: str) -> float:
    """Log evidence of all data under the same kernel, in the units that the inducing images set."""
    every = OrbitKernel(made.kernel.orbit, made.images)
    every.distances *= every.scale / made.kernel.scale
    every.to_self = made.kernel.to_self
    variance, *at = point(name)
    return float(GaussianProcess(every.gram(*at), variance, NOISE, (N, OUTPUTS)).log_prob(made.targets))


def check_below(found: float, truth: float) -> None:
    assert found < truth + 1e-6 * abs(truth)


@pytest.mark.parametrize("name", POINTS)
def test_bound_is_below_the_evidence_and_closes_with_more_inducing_images(name, data, targets):
    gaps = []
    for size in (5, M, 30, N):
        made = process(data, targets, name, size)
        truth, (bound, _) = exact(made, name), optimum(made, *point(name))
        check_below(bound, truth)
        gaps.append(truth - bound)
    assert gaps[0] > 1.0
    assert gaps[-1] == pytest.approx(0.0, abs=1e-4)


def test_bound_of_patches_is_exact_at_all_images(data, targets):
    made, at = process(data, targets, "convolution", N), (torch.tensor(0.6), torch.tensor(0.5))
    truth = float(GaussianProcess(made.kernel.gram(*at), VARIANCE, NOISE, (N, OUTPUTS)).log_prob(targets))
    assert optimum(made, VARIANCE, *at)[0] == pytest.approx(truth, abs=1e-5)


def test_bound_with_a_wrong_sign_of_what_is_left_is_caught(data, targets, monkeypatch):
    right = SparseProcess.project
    monkeypatch.setattr(SparseProcess, "project", lambda *a: (right(*a)[0], -right(*a)[1]))
    made = process(data, targets, "rotation")
    with pytest.raises(AssertionError):
        check_below(optimum(made, *point("rotation"))[0], exact(made, "rotation"))


def test_inducing_values_that_explain_too_much_are_caught(data, targets, monkeypatch):
    made = process(data, targets, "rotation")
    cross = OrbitKernel.cross
    monkeypatch.setattr(OrbitKernel, "cross", lambda *a: (1.1 * cross(*a)[0], cross(*a)[1]))
    with pytest.raises(FloatingPointError, match="more than there is"):
        optimum(made, *point("rotation"))


def bound_of(made: SparseProcess, name: str, seed: int = 0) -> Tensor:
    """The bound as the Pyro statements have it, from one minibatch."""

    def model() -> None:
        made.observe(lambda loc, spread: ExpectedNormal(loc, spread, NOISE), *point(name))

    with pyro.poutine.seed(rng_seed=seed):
        return pyro.poutine.trace(model).get_trace().log_prob_sum()


def test_one_whole_natural_step_is_the_optimum(data, targets):
    made = process(data, targets, "rotation", batch=N)
    start = float(bound_of(made, "rotation"))
    made.follow(rate=1.0)
    best, guide = optimum(made, *point("rotation"))
    assert float(bound_of(made, "rotation")) == pytest.approx(best, abs=1e-6)
    assert start < best - 1.0
    torch.testing.assert_close(made.inducing.shift, guide.shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made.inducing.precision, guide.precision, rtol=1e-9, atol=1e-9)


def test_natural_steps_of_minibatches_come_near_the_optimum(data, targets):
    made = process(data, targets, "rotation", batch=10)
    best, _ = optimum(made, *point("rotation"))
    for step in range(200):
        bound_of(made, "rotation", seed=step)
        made.follow(rate=1 / (1 + step))
    near = float(bound_of(replace(made, batch=N), "rotation"))
    assert best - 0.1 * N < near <= best


def test_minibatches_are_unbiased(data, targets):
    made = process(data, targets, "rotation")
    made.inducing = optimum(made, *point("rotation"))[1]
    whole = float(bound_of(replace(made, batch=N), "rotation"))
    each = np.array([float(bound_of(made, "rotation", seed)) for seed in range(300)])
    assert abs(each.mean() - whole) < 2.58 * each.std() / math.sqrt(len(each))  # alpha 0.01


def test_divergence_is_that_of_normals():
    guide = Inducing.prior(4, 2, shared=False)
    assert float(guide.divergence()) == pytest.approx(0.0)
    a = torch.randn(4, 6)
    for shared in (True, False):
        weight, pull = torch.rand(6, 1 if shared else 2) + 0.5, torch.randn(6, 2)
        moved = Inducing.prior(4, 2, shared=shared).stepped(a, weight, pull, 1.5, 0.7)
        prior = MultivariateNormal(torch.zeros(4), torch.eye(4))
        precisions = moved.precision.expand(2, 4, 4)
        normals = [MultivariateNormal(m, precision_matrix=p) for m, p in zip(moved.mean.T, precisions, strict=True)]
        assert float(moved.divergence()) == pytest.approx(float(sum(kl_divergence(n, prior) for n in normals)))


def test_gradient_in_the_hyperparameters(data, targets):
    made = process(data, targets, "translation", batch=N)
    made.inducing = optimum(made, *point("translation"))[1]

    def bound(noise: Tensor, *at: Tensor) -> Tensor:
        moments = made.moments(*project(made, *at))
        return ExpectedNormal(*moments, noise).log_prob(made.targets).sum()

    at = [p.clone().requires_grad_() for p in (NOISE, *point("translation"))]
    assert gradcheck(bound, at, eps=1e-6, atol=1e-4, rtol=1e-5)


def test_expected_density_of_a_normal_is_that_of_its_draws():
    loc, spread, y = torch.randn(5, 2), torch.rand(5, 1) + 0.1, torch.randn(5, 2)
    f = loc + spread.sqrt() * torch.randn(100_000, 5, 2)
    logs = torch.distributions.Normal(f, NOISE.sqrt()).log_prob(y).sum(-1)
    z = (logs.mean(0) - ExpectedNormal(loc, spread, NOISE).log_prob(y)) / (logs.std(0) / math.sqrt(len(logs)))
    assert float(z.abs().max()) < 3.5  # alpha 0.002 over five


def test_expected_density_of_a_class_is_that_of_its_draws():
    contrasts, y = torch.eye(3) - 1 / 3, torch.tensor([0, 2, 1, 1])
    loc, spread = torch.randn(4, 3), torch.rand(4, 3)
    f = loc + spread.sqrt() * torch.randn(100_000, 4, 3)
    drawn = (f @ contrasts.T).log_softmax(-1).mean(0).gather(-1, y[:, None])[:, 0]
    found = ExpectedCategorical(loc, spread, contrasts).log_prob(y)
    torch.testing.assert_close(found, drawn, rtol=0, atol=0.02)  # 64 quasi-random draws


def test_classes_are_learned_by_natural_steps(data):
    labels = (data.y > data.y.median()).long()
    made = process(data, labels, "SO2", inducing=Inducing.prior(M, 1, shared=False), batch=N)
    contrasts = torch.tensor([[-0.5], [0.5]])

    def bound() -> float:
        def model() -> None:
            made.observe(lambda loc, spread: ExpectedCategorical(loc, spread, contrasts), *at)

        return float(pyro.poutine.trace(model).get_trace().log_prob_sum())

    at = (torch.tensor(20.0), torch.tensor(0.6))
    path = [bound()]
    for _ in range(30):
        made.follow(rate=0.5)
        path.append(bound())
    assert path[-1] > path[0] + 5
    assert path[-1] - path[-2] < 1e-3  # it has arrived
    mean, _ = made.moments(*project(made, *at))
    assert float(((mean[:, 0] > 0) == labels).double().mean()) > 0.8


def test_weights_of_classes_are_no_less_than_zero():
    contrasts = torch.eye(4) - 1 / 4
    for spread in (1e-4, 0.01, 1.0):
        loc = 10 * torch.randn(200, 4)
        weight, _ = sparse._counted(
            lambda m, s: ExpectedCategorical(m, s, contrasts), loc, torch.full_like(loc, spread), torch.arange(200) % 4
        )
        assert bool((weight >= 0).all())
        far = loc.topk(2).values.diff(dim=-1)[:, 0] < -12  # of a sure class no class has any curvature
        assert float(weight[far].max()) < 1e-3
