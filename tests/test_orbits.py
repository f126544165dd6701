"""Views of a transformed image are the same views in another order; fast sums over lags equal sums over views."""

import math
from collections.abc import Callable

import pytest
import torch
from pyro.contrib.gp.kernels import RBF
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck

from pyro_invariance.densities import FiniteWeights, Haar, MovingUniform, SoftUniform
from pyro_invariance.groups import SO2, Cyclic, Dihedral, GridTranslation, Group
from pyro_invariance.kernels import OrbitKernel, double_sum
from pyro_invariance.orbits import FiniteOrbit, Orbit, Patches, QuadratureOrbit, SampledOrbit, Shifts, Turns
from pyro_invariance.representations import Pixels, Polar
from pyro_invariance.typing import BadInput

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ALPHA = 1e-4  # of each statistical check
Z = stats.norm.ppf(1 - ALPHA / 2)
POLAR = Polar(3, 24)
FINE = Polar(4, 64)
SIDE = 6


def on_the_line(extent: Tensor) -> SoftUniform:
    return SoftUniform(extent, period=None, edge=0.3)


# The same orbit on the fast path and as the general path sees it: nothing may wrap there, hence the margin.
SPECTRAL = {
    "trivial": (Turns(FINE, 1), Turns(FINE, 1), ()),
    "quarter turns": (Turns(FINE, 4), Turns(FINE, 4), ()),
    "all turns": (Turns(FINE, 64), Turns(FINE, 64), ()),
    "odd order": (Turns(Polar(3, 15), 5), Turns(Polar(3, 15), 5), ()),
    "mirror": (Turns(FINE, 1, mirror=True), Turns(FINE, 1, mirror=True), ()),
    "turns of a square": (Turns(FINE, 4, mirror=True), Turns(FINE, 4, mirror=True), ()),
    "turns and mirrors": (Turns(FINE, 64, mirror=True), Turns(FINE, 64, mirror=True), ()),
    "range": (Turns(FINE, 64, SoftUniform), Turns(FINE, 64, SoftUniform), (0.5,)),
    "coarse range": (Turns(FINE, 4, SoftUniform), Turns(FINE, 4, SoftUniform), (2.0,)),
    "range of odd order": (Turns(Polar(3, 15), 15, SoftUniform), Turns(Polar(3, 15), 15, SoftUniform), (0.7,)),
    "no shifts": (Shifts(Pixels(), 0), Shifts(Pixels(), 0), ()),
    "shifts": (Shifts(Pixels(), 2), Shifts(Pixels(margin=2), 2), ()),
    "range of shifts": (Shifts(Pixels(), 2, on_the_line), Shifts(Pixels(margin=2), 2, on_the_line), (0.6, 1.7)),
    "far shifts": (Shifts(Pixels(), 4, on_the_line), Shifts(Pixels(margin=4), 4, on_the_line), (3.0, 1.0)),
    "pooled shifts": (Shifts(Pixels(2), 1), Shifts(Pixels(2, margin=1), 1), ()),
}


def images(n: int, side: int = SIDE, channels: int = 2) -> Tensor:
    return torch.randn(n, channels, side, side)


def matched(x: Tensor, z: Tensor) -> Tensor:
    """Pair the views `[V, *]` of two images: one-to-one, to rounding."""
    close = torch.cdist(x.flatten(1), z.flatten(1), compute_mode="donot_use_mm_for_euclid_dist") < 1e-10
    assert bool((close.sum(0) == 1).all()), "each view occurs once"
    assert bool((close.sum(1) == 1).all()), "each view occurs once"
    return close.long().argmax(1)


def check_permutes(orbit: Orbit, group: Group, elements: Tensor) -> None:
    x = images(2)
    x = group.on(x) if isinstance(group.on, Polar) else x
    plain = orbit.views(x)
    assert plain.shape[:2] == (2, len(orbit.weights()))
    for g in elements:
        for one, other in zip(plain, orbit.views(group.act(g, x)), strict=True):
            matched(one, other)


def reference(
    orbit: Turns | Shifts, x: Tensor, z: Tensor, scale: float, lengthscale: float, *extents: Tensor
) -> Tensor:
    """Double sum of an RBF kernel over the views of represented images, `[N, M]`."""
    p, q = orbit.views(x).flatten(2), orbit.views(z).flatten(2)
    w = orbit.weights(*extents)
    squared = torch.cdist(p.flatten(0, 1), q.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist").square()
    base = torch.exp(-0.5 * squared / scale / lengthscale**2).view(len(x), len(w), len(z), len(w))
    return torch.einsum("nvmw,v,w->nm", base, w, w)


def check_agrees(fast: Turns | Shifts, general: Turns | Shifts, extents: tuple[float, ...]) -> None:
    x, new = images(5), images(3)
    arguments = tuple(torch.tensor(e) for e in extents)
    kernel = OrbitKernel(fast, x)
    seen, seen_new = general.representation(x), general.representation(new)
    expected = reference(general, seen, seen, kernel.scale, 0.7, *arguments)
    gram = kernel.gram(torch.tensor(0.7), *arguments)
    assert torch.allclose(gram, expected / expected.diagonal().mean(), rtol=0, atol=1e-10)
    assert torch.linalg.eigvalsh(gram)[0] > -1e-12
    compared = kernel.compared(new)
    for lengthscale in (0.7, 1.3):
        covariance, variance = kernel.cross(compared, torch.tensor(lengthscale), *arguments)
        unit = reference(general, seen, seen, kernel.scale, lengthscale, *arguments).diagonal().mean()
        between = reference(general, seen_new, seen, kernel.scale, lengthscale, *arguments) / unit
        within = reference(general, seen_new, seen_new, kernel.scale, lengthscale, *arguments) / unit
        assert torch.allclose(covariance, between, rtol=0, atol=1e-10)
        assert torch.allclose(variance, within.diagonal(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "group",
    [Cyclic(4), Dihedral(4), Dihedral(1), GridTranslation((SIDE, SIDE)), Cyclic(6, POLAR), Dihedral(3, POLAR)],
    ids=repr,
)
def test_finite_group_permutes_its_views(group: Group):
    check_permutes(FiniteOrbit(group), group, group.elements())


@pytest.mark.parametrize("make", [Haar, lambda: SoftUniform(math.pi), lambda: SoftUniform(0.5)])
def test_turns_by_node_angles_permute_the_views_of_the_circle(make):
    group, density = SO2(POLAR), make()
    check_permutes(QuadratureOrbit(group, density, 16), group, density.nodes(16)[0])


class MissingElement(Cyclic):
    def elements(self):
        return torch.arange(self.order - 1)


class PlainWeights(Turns):
    def lag_weights(self, *extents):
        return self.weights(*extents)  # not the autocorrelation


class MissingLag(Turns):
    def lag_weights(self, *extents):
        weights = super().lag_weights(*extents)
        return weights[:-1].sum() ** -1 * torch.cat([weights[:-1], torch.zeros(1)])


class WrongSign(Shifts):
    def inner_products(self, x, z, lags):
        return super().inner_products(x, z.flip(-1), lags)


def test_mutant_orbits_do_not_permute():
    with pytest.raises(AssertionError, match="occurs once"):
        check_permutes(FiniteOrbit(MissingElement(4)), Cyclic(4), torch.arange(4))
    with pytest.raises(AssertionError, match="occurs once"):  # between the nodes
        check_permutes(QuadratureOrbit(SO2(POLAR), Haar(), 16), SO2(POLAR), torch.tensor([0.1]))


@pytest.mark.parametrize(("fast", "general", "extents"), SPECTRAL.values(), ids=SPECTRAL)
def test_sums_over_lags_equal_sums_over_views(fast, general, extents: tuple[float, ...]):
    check_agrees(fast, general, extents)


@pytest.mark.parametrize(
    ("mutant", "general", "extents"),
    [
        (PlainWeights(FINE, 64, SoftUniform), Turns(FINE, 64, SoftUniform), (0.5,)),
        (MissingLag(FINE, 4), Turns(FINE, 4), ()),
        (WrongSign(Pixels(), 2), Shifts(Pixels(margin=2), 2), ()),
        (Shifts(Pixels(), 2), Shifts(Pixels(), 2), ()),  # without a margin the views wrap
    ],
    ids=["weights of lags", "missing lag", "sign", "margin"],
)
def test_mutant_sums_disagree(mutant, general, extents: tuple[float, ...]):
    with pytest.raises(AssertionError):
        check_agrees(mutant, general, extents)


def test_double_sum_of_any_kernel_agrees_with_the_lags():
    x, z = POLAR(images(4)), POLAR(images(3))
    orbit = FiniteOrbit(Cyclic(4, POLAR))
    expected = reference(Turns(POLAR, 4), x, z, 1.0, 2.0)
    kernel = RBF(x[0].numel(), lengthscale=torch.tensor(2.0))
    assert torch.allclose(double_sum(orbit, kernel, x, z), expected, rtol=0, atol=1e-10)


def test_spectral_views_are_those_of_the_group():
    x = FINE(images(2))
    assert torch.allclose(Turns(FINE, 8).views(x), FiniteOrbit(Cyclic(8, FINE)).views(x), rtol=0, atol=1e-12)
    both = Turns(FINE, 8, mirror=True).views(x)
    assert torch.allclose(both, FiniteOrbit(Dihedral(8, FINE)).views(x), rtol=0, atol=1e-12)
    extent = torch.tensor(0.6)
    quadrature = QuadratureOrbit(SO2(FINE), SoftUniform(extent), 32)
    assert torch.allclose(Turns(FINE, 32, SoftUniform).views(x), quadrature.views(x), rtol=0, atol=1e-12)
    assert torch.allclose(Turns(FINE, 32, SoftUniform).weights(extent), quadrature.weights())


@pytest.mark.parametrize(("fast", "general", "extents"), SPECTRAL.values(), ids=SPECTRAL)
def test_weights_sum_to_one(fast, general, extents: tuple[float, ...]):
    arguments = tuple(torch.tensor(e) for e in extents)
    assert float(fast.weights(*arguments).sum()) == pytest.approx(1, abs=1e-12)
    lags = fast.lag_weights(*arguments)
    assert lags.shape == (fast.count,)
    assert float(lags.sum()) == pytest.approx(1, abs=1e-12)


def test_identity_is_the_lag_that_does_nothing():
    x = images(4)
    for fast, _, _ in SPECTRAL.values():
        represented = fast.representation(x)
        same = fast.squared_distances(represented, represented, torch.tensor([fast.identity]))[0]
        expected = torch.cdist(represented.flatten(1), represented.flatten(1)).square()
        assert torch.allclose(same, expected, rtol=0, atol=1e-9)
        assert float(fast.self_distances(represented)[fast.identity].abs().max()) < 1e-10


def test_range_nests_point_and_group():
    x, lengthscale = images(5), torch.tensor(0.7)
    kernel = OrbitKernel(Turns(FINE, 64, SoftUniform), x)
    group, trivial = OrbitKernel(Turns(FINE, 64), x), OrbitKernel(Turns(FINE, 1), x)
    whole, point = kernel.gram(lengthscale, torch.tensor(math.pi)), kernel.gram(lengthscale, torch.tensor(1e-6))
    assert torch.allclose(whole, group.gram(lengthscale), rtol=0, atol=1e-12)
    assert torch.allclose(point, trivial.gram(lengthscale), rtol=0, atol=1e-12)


def test_finite_orbit_takes_learned_weights():
    logits = torch.randn(4)
    assert torch.allclose(FiniteOrbit(Cyclic(4), FiniteWeights(Cyclic(4), logits)).weights(), logits.softmax(0))
    assert torch.allclose(FiniteOrbit(Dihedral(4)).weights(), torch.full((8,), 1 / 8))


def test_patches_are_the_windows_of_the_image():
    x = images(2, side=7, channels=3)
    orbit = Patches(3, 25)
    views = orbit.views(x)
    assert views.shape == (2, 25, 3, 3, 3)
    for v in range(25):
        row, column = divmod(v, 5)
        assert torch.equal(views[:, v], x[:, :, row : row + 3, column : column + 3])
    assert torch.allclose(orbit.weights(), torch.full((25,), 1 / 25))


def patch_mean(x: Tensor) -> Tensor:
    orbit = Patches(3, (x.shape[-1] - 2) ** 2)
    return orbit.views(x).square().sum((2, 3, 4)) @ orbit.weights()


def test_average_over_patches_ignores_where_the_content_stands():
    x = torch.zeros(1, 1, 12, 12)
    x[..., 4:7, 4:7] = torch.randn(3, 3)
    assert torch.allclose(patch_mean(x), patch_mean(x.roll((2, -1), (-2, -1))))


@pytest.mark.parametrize(
    "make", [lambda: SoftUniform(0.7), lambda: SoftUniform(1.2, 0.3), lambda: MovingUniform(0.9), Haar]
)
def test_sampled_orbit_is_unbiased(make):
    x, direction, density = POLAR(images(3)), POLAR(images(1)), make()

    def average(orbit: Orbit) -> Tensor:
        return (orbit.views(x) * direction).sum((2, 3, 4)).square() @ orbit.weights()

    exact = average(QuadratureOrbit(SO2(POLAR), density, 1024))
    draws = torch.stack([average(SampledOrbit(SO2(POLAR), density, 8)) for _ in range(400)])
    z = (draws.mean(0) - exact) / (draws.std(0) / 400**0.5)
    assert float(z.abs().max()) < Z
    biased = 1.2 * draws
    z = (biased.mean(0) - exact) / (biased.std(0) / 400**0.5)
    assert float(z.abs().max()) > Z, "a biased estimate is told apart"


def test_sampled_orbit_of_a_finite_group_is_unbiased():
    group = Cyclic(4, POLAR)
    density = FiniteWeights(group, torch.tensor([1.0, 0.0, -1.0, 0.5]))
    x, direction = POLAR(images(3)), POLAR(images(1))
    exact = (FiniteOrbit(group, density).views(x) * direction).sum((2, 3, 4)).exp() @ density.probs
    orbits = [SampledOrbit(group, density, 8) for _ in range(400)]
    draws = torch.stack([(o.views(x) * direction).sum((2, 3, 4)).exp() @ o.weights() for o in orbits])
    assert float(((draws.mean(0) - exact) / (draws.std(0) / 400**0.5)).abs().max()) < Z


GRADIENTS = {name: case for name, case in SPECTRAL.items() if name in {"all turns", "range", "range of shifts"}}


def check_gradients(function: Callable[..., Tensor], *values: float) -> None:
    """Reverse-mode gradients in all arguments match central finite differences."""
    assert gradcheck(function, tuple(torch.tensor(v, requires_grad=True) for v in values), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("fast", "general", "extents"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_of_the_gram_matrix(fast, general, extents: tuple[float, ...]):
    check_gradients(OrbitKernel(fast, images(4)).gram, 0.7, *extents)
    for e in extents:  # also where the range nearly vanishes and where it nearly closes
        check_gradients(OrbitKernel(fast, images(4)).gram, 0.3, *[min(2 * e, 2.0)] * len(extents))


def test_gradient_mutant_fails():
    kernel = OrbitKernel(Turns(FINE, 64, SoftUniform), images(4))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        check_gradients(lambda length, extent: kernel.gram(length, extent.detach() * 1.1 + 0 * extent), 0.7, 0.5)


def test_quadrature_orbit_has_a_gradient_in_the_extent():
    x, direction = POLAR(images(1)), POLAR(images(1))

    def average(density: Callable, extent: Tensor) -> Tensor:
        orbit = QuadratureOrbit(SO2(POLAR), density(extent), 32)
        return (orbit.views(x) * direction).sum((2, 3, 4)).square() @ orbit.weights()

    for density in (SoftUniform, MovingUniform):
        check_gradients(lambda extent, density=density: average(density, extent), 0.8)


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="order: got 5, which does not divide the 24 angles"):
        Turns(POLAR, 5)
    with pytest.raises(BadInput, match="density: a learned range goes without reflections"):
        Turns(POLAR, 4, SoftUniform, mirror=True)
