"""The exact Gaussian process against textbook formulas, and the classes it predicts against Bayes' rule by hand."""

import math

import pytest
import torch
from pyro.distributions import Normal
from scipy import stats
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal

from pyro_invariance import zoo
from pyro_invariance.fitting import fit
from pyro_invariance.numerics import float64
from pyro_invariance.processes import GaussianProcess, class_codes, code_log_density

N, OUTPUTS = 7, 3
ALPHA = 1e-4  # of each statistical check
SIGNAL, NOISE = torch.tensor(1.7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)


def rbf(x: Tensor, z: Tensor) -> Tensor:
    return torch.exp(-0.5 * torch.cdist(x, z).square())


@pytest.fixture
def points() -> Tensor:
    return torch.randn(N, 2)


@pytest.fixture
def targets() -> Tensor:
    return torch.randn(N, OUTPUTS)


def test_log_density_is_that_of_independent_normals(points, targets):
    gram = rbf(points, points)
    dense = MultivariateNormal(torch.zeros(N), SIGNAL * gram + NOISE * torch.eye(N))
    ours = GaussianProcess(gram, SIGNAL, NOISE, targets.shape).log_prob(targets)
    assert ours.shape == ()
    torch.testing.assert_close(ours, sum(dense.log_prob(column) for column in targets.T), rtol=1e-12, atol=0)


def test_log_density_leaves_its_arguments_alone(points, targets):
    gram = rbf(points, points)
    before = gram.clone(), targets.clone()
    process = GaussianProcess(gram, SIGNAL, NOISE, targets.shape)
    assert torch.equal(process.log_prob(targets), process.log_prob(targets))
    process.sample()
    assert torch.equal(gram, before[0])
    assert torch.equal(targets, before[1])


def test_noise_only(targets):
    noise = NOISE.clone().requires_grad_()
    process = GaussianProcess(None, torch.zeros(()), noise, targets.shape)
    expected = Normal(0.0, NOISE.sqrt()).log_prob(targets).sum()
    torch.testing.assert_close(process.log_prob(targets), expected)
    zero = GaussianProcess(torch.zeros(N, N), torch.ones(()), NOISE, targets.shape)
    torch.testing.assert_close(zero.log_prob(targets), expected)
    assert torch.autograd.gradcheck(
        lambda s: GaussianProcess(None, torch.zeros(()), s, targets.shape).log_prob(targets), noise
    )


def test_gradient_in_gram_signal_and_noise(points, targets):
    root = torch.randn(N, N, requires_grad=True)  # any symmetric positive matrix, not just kernels
    signal, noise = SIGNAL.clone().requires_grad_(), NOISE.clone().requires_grad_()

    def density(root: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        return GaussianProcess(root @ root.T, signal, noise, targets.shape).log_prob(targets)

    assert torch.autograd.gradcheck(density, (root, signal, noise), atol=1e-7)

    def scaled(root: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        return -2.5 * density(root, signal, noise)  # the gradient from above is not one

    assert torch.autograd.gradcheck(scaled, (root, signal, noise), atol=1e-7)


def test_gradient_equals_that_of_the_dense_density(points, targets):
    gram = rbf(points, points).requires_grad_()
    signal, noise = SIGNAL.clone().requires_grad_(), NOISE.clone().requires_grad_()
    ours = GaussianProcess(gram, signal, noise, targets.shape).log_prob(targets)
    dense = MultivariateNormal(torch.zeros(N), signal * gram + noise * torch.eye(N)).log_prob(targets.T).sum()
    for a, b in zip(
        torch.autograd.grad(ours, (gram, signal, noise)), torch.autograd.grad(dense, (gram, signal, noise)), strict=True
    ):
        torch.testing.assert_close((a + a.mT) / 2 if a.dim() else a, (b + b.mT) / 2 if b.dim() else b)


def whitened(samples: Tensor, covariance: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), samples, upper=False)


def check_standard_normal(z: Tensor) -> None:
    """Raise unless whitened draws `[S, N, O]` are independent standard normals, by three tests at `ALPHA` each."""
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > ALPHA
    flat = z.flatten(1)
    count, size = flat.shape
    squares = (flat.square().mean(0) - 1) * math.sqrt(count / 2)  # N(0, 1) each
    products = (flat.T @ flat / count)[tuple(torch.triu_indices(size, size, 1))] * math.sqrt(count)  # N(0, 1) each
    for scores in (squares, products):
        assert stats.chi2.sf(float(scores.square().sum()), len(scores)) > ALPHA


def test_samples_have_the_stated_covariance(points):
    gram = rbf(points, points)
    samples = GaussianProcess(gram, SIGNAL, NOISE, (N, OUTPUTS)).sample([2000])
    assert samples.shape == (2000, N, OUTPUTS)
    check_standard_normal(whitened(samples, SIGNAL * gram + NOISE * torch.eye(N)))
    nothing = GaussianProcess(None, torch.zeros(()), NOISE, (N, OUTPUTS)).sample([2000])
    check_standard_normal(nothing / NOISE.sqrt())


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_wrong_noise_mutant_is_caught(points, factor):
    gram = rbf(points, points)
    samples = GaussianProcess(gram, SIGNAL, factor * NOISE, (N, OUTPUTS)).sample([2000])
    with pytest.raises(AssertionError):
        check_standard_normal(whitened(samples, SIGNAL * gram + NOISE * torch.eye(N)))


def test_conditioning_equals_that_of_the_joint(points, targets):
    new = torch.randn(4, 2)
    both = torch.cat([points, new])
    joint = SIGNAL * rbf(both, both) + NOISE * torch.eye(N + 4)
    gain = joint[N:, :N] @ torch.linalg.inv(joint[:N, :N])
    process = GaussianProcess(rbf(points, points), SIGNAL, NOISE, targets.shape)
    mean, variance = process.condition(targets, rbf(new, points), torch.ones(4))
    assert (mean.shape, variance.shape) == ((4, OUTPUTS), (4,))
    torch.testing.assert_close(mean, gain @ targets, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(variance, (joint[N:, N:] - gain @ joint[:N, N:]).diagonal(), rtol=1e-9, atol=1e-9)


def test_density_is_a_chain_of_conditionals(points, targets):
    gram = rbf(points, points)
    total = GaussianProcess(gram[:1, :1], SIGNAL, NOISE, (1, OUTPUTS)).log_prob(targets[:1])
    for n in range(1, N):
        process = GaussianProcess(gram[:n, :n], SIGNAL, NOISE, (n, OUTPUTS))
        mean, variance = process.condition(targets[:n], gram[n : n + 1, :n], torch.ones(1))
        total = total + Normal(mean, variance.sqrt()[:, None]).log_prob(targets[n : n + 1]).sum()
    whole = GaussianProcess(gram, SIGNAL, NOISE, targets.shape).log_prob(targets)
    torch.testing.assert_close(total, whole, rtol=1e-10, atol=0)


def test_prediction_at_a_known_point_never_has_negative_variance(points):
    tiny = torch.tensor(1e-12)
    process = GaussianProcess(rbf(points, points), SIGNAL, tiny, (N, 1))
    values = torch.randn(N, 1)
    mean, variance = process.condition(values, rbf(points, points), torch.ones(N))
    torch.testing.assert_close(mean, values, rtol=1e-6, atol=1e-6)
    assert bool((variance >= tiny).all())


def test_failed_cholesky_says_the_numbers():
    gram = torch.ones(3, 3)
    gram[2, 2] = -5.0  # no covariance
    process = GaussianProcess(gram, torch.tensor(2.0), torch.tensor(0.125), (3, 1))
    with pytest.raises(torch.linalg.LinAlgError) as caught:
        process.log_prob(torch.zeros(3, 1))
    message = str(caught.value)
    assert all(word in message for word in ("3 x 3", "row 3", "variance 2", "noise 0.125", "float64")), message
    with pytest.raises(torch.linalg.LinAlgError):
        process.condition(torch.zeros(3, 1), torch.ones(1, 3), torch.ones(1))


def mixture() -> tuple[Tensor, Tensor]:
    """Predictives of three draws at two images, two outputs."""
    return torch.randn(3, 2, 2), torch.rand(3, 2) + 0.2


def test_code_density_is_that_of_a_mixture():
    mean, variance = mixture()
    codes = torch.randn(5, 2)
    spread = variance.sqrt()[..., None].expand(3, 2, 2)
    parts = Independent(Normal(mean.transpose(0, 1), spread.transpose(0, 1)), 1)
    expected = MixtureSameFamily(Categorical(torch.ones(2, 3)), parts)
    for c, code in enumerate(codes):
        torch.testing.assert_close(code_log_density(mean, variance, codes)[:, c], expected.log_prob(code.expand(2, 2)))


def test_code_density_integrates_to_one():
    mean, variance = torch.randn(3, 4, 1), torch.rand(3, 4) + 0.2
    grid = torch.linspace(-12, 12, 4001)
    density = code_log_density(mean, variance, grid[:, None]).exp()
    torch.testing.assert_close(torch.trapezoid(density, grid), torch.ones(4), rtol=0, atol=1e-9)
    plane = torch.linspace(-8, 8, 161)
    square = torch.cartesian_prod(plane, plane)
    flat = code_log_density(*mixture(), square).exp().view(2, 161, 161)
    volume = torch.trapezoid(torch.trapezoid(flat, plane), plane)
    torch.testing.assert_close(volume, torch.ones(2), rtol=0, atol=1e-6)


def test_code_density_takes_one_target_per_image():
    mean, variance = mixture()
    values = torch.randn(2, 2)
    own = code_log_density(mean, variance, values[:, None, :])
    assert own.shape == (2, 1)
    torch.testing.assert_close(own[:, 0], code_log_density(mean, variance, values).diagonal())


@pytest.mark.parametrize("classes", [2, 4])
def test_class_probabilities_are_bayes_rule(classes):
    codes = class_codes(torch.ones(classes))
    mean, variance = torch.randn(3, 2, classes - 1), torch.rand(3, 2) + 0.2
    ours = code_log_density(mean, variance, codes).softmax(-1)
    for m in range(2):
        likelihood = []
        for c in range(classes):
            draws = [
                math.prod(
                    math.exp(-((float(codes[c, o] - mean[d, m, o])) ** 2) / (2 * float(variance[d, m])))
                    / math.sqrt(2 * math.pi * float(variance[d, m]))
                    for o in range(classes - 1)
                )
                for d in range(3)
            ]
            likelihood.append(sum(draws) / 3)
        by_hand = torch.tensor(likelihood) / sum(likelihood)
        torch.testing.assert_close(ours[m], by_hand)


def test_float64_is_lent_and_given_back():
    torch.set_default_dtype(torch.float32)
    threads = torch.get_num_threads()
    with float64():
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == 1
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == threads

    def fails() -> None:
        with float64():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.get_default_dtype() == torch.float32


def test_evidence_is_float64_whatever_the_default_is():
    entry = zoo.load("orbit_gp")
    data = entry.data("mirror", size=30, test=5, side=8)
    results = {}
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        chosen = [h for h in entry.hypotheses(data) if h.name in ("mirror", "convolution")]
        results[dtype] = [fit(h, data, seed=3) for h in chosen]
        assert torch.get_default_dtype() == dtype
    for a, b in zip(results[torch.float64], results[torch.float32], strict=True):
        assert b.evidence == a.evidence  # to the last bit: nothing was computed in float32
        assert b.upper == a.upper
        for t in (b.weighted, b.test_mean, b.test_log_density, *b.draws.values(), *b.prior.values()):
            assert t.dtype == torch.float64
        assert torch.equal(a.weighted, b.weighted)
        assert torch.equal(a.test_log_density, b.test_log_density)
