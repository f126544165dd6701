"""Densities integrate to one, their draws follow them, their nodes integrate them, and extents have gradients."""

import inspect
import math

import pytest
import torch
from pyro.distributions import TorchDistribution
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Independent

from pyro_invariance import densities
from pyro_invariance.densities import FiniteWeights, Haar, Histogram, MovingUniform, SoftUniform
from pyro_invariance.groups import SO2, Cyclic, Dihedral, GridTranslation
from pyro_invariance.orbits import Shifts, Turns
from pyro_invariance.representations import Pixels, Polar
from pyro_invariance.typing import BadInput

ALPHA = 1e-4  # of each statistical check
Z = stats.norm.ppf(1 - ALPHA / 2)

CONTINUOUS = {
    "narrow": lambda: SoftUniform(0.05),
    "soft": lambda: SoftUniform(0.6),
    "wide": lambda: SoftUniform(2.9),
    "whole circle": lambda: SoftUniform(math.pi),
    "asymmetric": lambda: SoftUniform(1.2, 0.3),
    "past the seam": lambda: SoftUniform(4.0, 0.5),
    "line": lambda: SoftUniform(2.0, period=None, edge=0.3),
    "moving": lambda: MovingUniform(0.8),
    "haar": lambda: Haar(),
    "histogram": lambda: Histogram(Haar().nodes(16)[0], torch.linspace(-1, 1, 16)),
    "histogram of a range": lambda: Histogram(MovingUniform(math.pi / 4).nodes(16)[0], torch.linspace(-1, 1, 16)),
}
WITH_NODES = [name for name in CONTINUOUS if name != "line"]


def grid(density: TorchDistribution, count: int = 40_000) -> tuple[Tensor, float]:
    """Midpoints of equal cells that cover the support, and the width of a cell."""
    edge = {"circle": math.pi, "line": 10.0}["line" if getattr(density, "period", 0) is None else "circle"]
    edge = float(density.extent) if isinstance(density, MovingUniform) else edge
    cell = 2 * edge / count
    return -edge + cell * (torch.arange(count) + 0.5), cell


def check_normalised(density: TorchDistribution) -> None:
    points, cell = grid(density)
    assert float(density.log_prob(points).exp().sum() * cell) == pytest.approx(1, abs=1e-9)


def check_draws(density: TorchDistribution) -> None:
    """Draws follow the density (Kolmogorov-Smirnov test)."""
    draws = density.sample(torch.Size([20_000]))
    points, cell = grid(density)
    cumulative = density.log_prob(points).exp().cumsum(0).numpy() * cell
    edges = points.numpy() + cell / 2
    position = edges.searchsorted(draws.numpy()).clip(max=len(edges) - 1)
    assert stats.kstest(cumulative[position], "uniform").pvalue > ALPHA


def check_nodes(density: TorchDistribution) -> None:
    """Means of smooth functions over the nodes are those of the density."""
    points, cell = grid(density)
    truth = density.log_prob(points).exp() * cell
    nodes, log_weights = density.nodes(512)
    assert float(log_weights.logsumexp(0)) == pytest.approx(0, abs=1e-12)
    for function in (lambda t: torch.cos(3 * t), torch.sin, lambda t: torch.exp(torch.cos(t))):
        mean = (log_weights.exp() * function(nodes)).sum()
        assert float(mean) == pytest.approx(float((truth * function(points)).sum()), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", [Haar(), MovingUniform(0.5)], ids=["circle", "range"])
def test_a_histogram_holds_the_ends_of_its_support(place, dtype):
    """Rounding does not push them out, in either precision; a circle may be cut anywhere."""
    for cut in (0, 256) if isinstance(place, Haar) else (0,):
        points = place.nodes(512)[0].roll(cut).to(dtype)
        histogram = Histogram(points, torch.zeros(512, dtype=dtype))
        support = histogram.support
        ends = torch.stack([torch.as_tensor(end, dtype=dtype) for end in (support.lower_bound, support.upper_bound)])
        width = 1.0 if isinstance(place, MovingUniform) else 2 * math.pi
        torch.testing.assert_close(histogram.log_prob(ends).exp() * width, torch.ones_like(ends), rtol=1e-5, atol=0)


def test_every_density_has_an_instance():
    defined = {c for _, c in inspect.getmembers(densities, inspect.isclass) if c.__module__ == densities.__name__}
    assert defined == {type(make()) for make in CONTINUOUS.values()} | {FiniteWeights}


@pytest.mark.parametrize("make", CONTINUOUS.values(), ids=CONTINUOUS)
@pytest.mark.parametrize("check", [check_normalised, check_draws])
def test_density(check, make):
    check(make())


@pytest.mark.parametrize("name", WITH_NODES)
def test_nodes_integrate_the_density(name: str):
    check_nodes(CONTINUOUS[name]())


class WrongNormalisation(SoftUniform):
    def log_prob(self, value):
        return super().log_prob(value) + (self.extent / math.pi).log()


class HardDraws(SoftUniform):
    def rsample(self, sample_shape=()):
        return (2 * torch.rand(self._extended_shape(sample_shape)) - 1) * self.extent


class ForgetsWeights(SoftUniform):
    def nodes(self, count):
        points, log_weights = super().nodes(count)
        return points, torch.full_like(log_weights, -math.log(count))


class Unnormalised(SoftUniform):
    def log_weights(self, points):
        return self.log_prob(points)


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        (check_normalised, WrongNormalisation),
        (check_draws, HardDraws),
        (check_nodes, ForgetsWeights),
        (check_nodes, Unnormalised),
    ],
)
def test_mutant_fails(check, mutant: type):
    with pytest.raises(AssertionError):
        check(mutant(0.6))


@pytest.mark.parametrize("make", CONTINUOUS.values(), ids=CONTINUOUS)
def test_expand_and_batches(make):
    density = make().expand(torch.Size([3, 2]))
    draws = density.sample(torch.Size([7]))
    assert draws.shape == (7, 3, 2)
    assert torch.allclose(density.log_prob(draws), make().log_prob(draws))
    assert Independent(density, 1).log_prob(draws).shape == (7, 3)


def test_batch_of_extents_has_a_column_each():
    extents = torch.tensor([0.3, 1.0, math.pi])
    points, log_weights = SoftUniform(extents).nodes(64)
    assert points.shape == (64,)
    for column, extent in zip(log_weights.T, extents, strict=True):
        assert torch.allclose(column, SoftUniform(extent).nodes(64)[1])
    points, log_weights = MovingUniform(extents).nodes(8)
    assert points.shape == log_weights.shape == (8, 3)
    assert torch.allclose(points[:, 1], MovingUniform(extents[1]).nodes(8)[0])
    assert torch.allclose(log_weights.logsumexp(0), torch.zeros(3), atol=1e-14)


def test_at_its_upper_bound_a_range_is_exactly_the_group():
    density = SoftUniform(math.pi)
    angles = torch.linspace(-math.pi, math.pi, 1001)
    assert torch.allclose(density.log_prob(angles), Haar().log_prob(angles), rtol=0, atol=1e-12)
    points, log_weights = density.nodes(64)
    haar_points, haar_log_weights = Haar().nodes(64)
    assert torch.allclose(points, haar_points, rtol=0, atol=1e-14)
    assert torch.allclose(log_weights, haar_log_weights, rtol=0, atol=1e-12)
    uneven = SoftUniform(4.0, 2 * math.pi - 4.0)
    assert torch.allclose(uneven.log_prob(angles), Haar().log_prob(angles), rtol=0, atol=1e-12)


@pytest.mark.parametrize("extent", [1e-2, 1e-4, 1e-8])
def test_towards_zero_a_range_is_a_point_mass(extent: float):
    value = torch.tensor(extent, requires_grad=True)
    points, log_weights = SoftUniform(value).nodes(64)
    (gradient,) = torch.autograd.grad((log_weights.exp() * points.square()).sum(), value)
    assert float(points[0]) == 0
    assert float(log_weights[0].detach().exp()) == pytest.approx(1, abs=1e-14)
    assert torch.isfinite(log_weights).all()
    assert torch.isfinite(gradient)
    assert float(SoftUniform(extent).sample(torch.Size([1000])).abs().max()) < 10 * extent


@pytest.mark.parametrize(
    ("right", "left", "tolerance"),
    [(0.7, 0.7, 1e-3), (1.5, 1.5, 1e-3), (2.4, 2.4, 1e-3), (1.5, 0.5, 1e-3), (1.8, 1.0, 1e-3), (0.01, 0.01, 0.04)],
)
def test_extent_is_the_half_width_at_half_maximum(right: float, left: float, tolerance: float):
    density = SoftUniform(right, left)
    top = density.log_prob(torch.tensor((right - left) / 2)).exp()
    for end in (right, -left):
        assert float(density.log_prob(torch.tensor(end)).exp() / top) == pytest.approx(0.5, abs=tolerance)


def test_asymmetric_range_is_shifted():
    points, log_weights = SoftUniform(1.2, 0.3).nodes(256)
    assert float((log_weights.exp() * points).sum()) == pytest.approx(0.45, abs=1e-9)
    swapped = SoftUniform(0.3, 1.2).log_prob(-points)
    assert torch.allclose(SoftUniform(1.2, 0.3).log_prob(points), swapped, rtol=0, atol=1e-12)


def test_narrow_range_is_a_scaled_copy():
    """The edge shrinks with the extent, so that all narrow ranges have one shape."""
    x = torch.linspace(-2, 2, 101)
    small, smaller = (SoftUniform(e).log_prob(e * x) + math.log(e) for e in (1e-3, 1e-5))
    assert torch.allclose(small, smaller, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_moving_uniform_is_exact(count: int):
    extent = torch.tensor(0.8)
    points, log_weights = MovingUniform(extent).nodes(count)
    assert torch.equal(log_weights, torch.full((count,), -math.log(count)))
    assert float(points.mean()) == pytest.approx(0, abs=1e-15)
    assert float(points.square().mean()) == pytest.approx(0.8**2 / 3 * (1 - 1 / count**2), rel=1e-12)
    inside = MovingUniform(extent, validate_args=False).log_prob(torch.tensor([-0.81, -0.79, 0.79, 0.81])).exp()
    assert inside.tolist() == pytest.approx([0, 1 / 1.6, 1 / 1.6, 0])


def test_twice_the_nodes_change_nothing():
    for density in (SoftUniform(0.3), SoftUniform(1.0), SoftUniform(1.2, 0.4), Haar()):
        few, many = (density.nodes(count) for count in (64, 128))
        means = [(log_weights.exp() * torch.cos(2 * points)).sum() for points, log_weights in (few, many)]
        assert float(means[0] - means[1]) == pytest.approx(0, abs=1e-4)


def test_gradients_match_finite_differences():
    extent, left = (torch.tensor(v, requires_grad=True) for v in (0.9, 0.4))
    for e in (0.05, 0.9, 3.0):
        assert gradcheck(lambda t: SoftUniform(t).nodes(16)[1].exp(), torch.tensor(e, requires_grad=True))
        assert gradcheck(lambda t: SoftUniform(t).log_prob(torch.tensor(0.3)), torch.tensor(e, requires_grad=True))
    assert gradcheck(lambda r, s: SoftUniform(r, s).nodes(16)[1].exp(), (extent, left))
    assert gradcheck(lambda t: MovingUniform(t).nodes(9)[0], extent)
    polar = Polar(2, 16)
    assert gradcheck(lambda t: Turns(polar, 16, SoftUniform).lag_weights(t), extent)
    shifts = Shifts(Pixels(), 2, lambda t: SoftUniform(t, period=None, edge=0.3))
    assert gradcheck(shifts.lag_weights, (extent, left))


@pytest.mark.parametrize("make", [SoftUniform, MovingUniform])
def test_draws_carry_the_gradient_of_the_extent(make: type):
    extent = torch.tensor(0.9, requires_grad=True)
    points, log_weights = make(extent).nodes(512)
    (exact,) = torch.autograd.grad((log_weights.exp() * points.square()).sum(), extent)
    extents = extent.detach().expand(40_000).clone().requires_grad_()
    (slopes,) = torch.autograd.grad(make(extents).rsample().square().sum(), extents)
    z = (slopes.mean() - exact) / (slopes.std() / len(slopes) ** 0.5)
    assert abs(float(z)) < Z


def test_finite_weights_nest_the_haar_measure():
    group = Dihedral(4)
    elements, log_weights = FiniteWeights(group).nodes()
    assert torch.equal(elements, group.elements())
    assert torch.allclose(log_weights.exp(), torch.full((8,), 1 / 8))
    logits = torch.randn(3, 8)
    _, log_weights = FiniteWeights(group, logits).nodes()
    assert torch.allclose(log_weights, logits.log_softmax(-1).T)


def test_finite_weights_are_a_categorical():
    logits = torch.randn(4)
    density = FiniteWeights(Cyclic(4), logits)
    draws = density.sample(torch.Size([8000]))
    counts = torch.bincount(draws, minlength=4)
    assert stats.chisquare(counts.numpy(), 8000 * logits.softmax(0).numpy()).pvalue > ALPHA
    in_a_plate = density.expand(torch.Size([5]))
    assert isinstance(in_a_plate, FiniteWeights)
    assert in_a_plate.sample().shape == (5,)
    assert in_a_plate.nodes()[1].shape == (4, 5)
    assert torch.allclose(in_a_plate.log_prob(torch.tensor(2)), logits.log_softmax(0)[2].expand(5))


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="extent: got a range of 8, wider than"):
        SoftUniform(torch.tensor(4.0, requires_grad=True))
    with pytest.raises(BadInput, match="wider than"):
        SoftUniform(torch.tensor([0.5, 5.0]), torch.tensor([0.5, 1.5]))
    for make in (SoftUniform, MovingUniform):
        for extent in (-0.1, 0.0, math.nan):
            with pytest.raises(ValueError, match="extent"):
                make(extent)
    with pytest.raises(ValueError, match="left"):
        SoftUniform(1.0, -0.5)
    with pytest.raises(BadInput, match="real line"):
        SoftUniform(1.0, period=None).nodes(8)
    with pytest.raises(BadInput, match="logits: got 3 weights for a group of order 4"):
        FiniteWeights(Cyclic(4), torch.zeros(3))
    for group in (SO2(), GridTranslation((2, 2))):
        with pytest.raises(BadInput, match="finite group"):
            FiniteWeights(group)
