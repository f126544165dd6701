"""Averaged features against their definition, gradients against finite differences, blocks, and what they cost."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from pyro_invariance import averaged
from pyro_invariance.averaged import AveragedKernel, FeatureKernel
from pyro_invariance.collapsed import collapsed
from pyro_invariance.groups import Mirror, Trivial
from pyro_invariance.matrix_groups import Affine, Colour
from pyro_invariance.orbits import FiniteOrbit, Orbit
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.quadrature import ComposedOrbit, SobolOrbit
from pyro_invariance.representations import Pixels
from pyro_invariance.sparse import Inducing, SparseProcess
from pyro_invariance.typing import BadInput

N, CENTRES, SIDE = 7, 5, 8
LENGTH = torch.tensor(0.8, dtype=torch.float64)
BOX = SobolOrbit(Affine(), 8)
ORBITS: dict[str, tuple[Orbit, tuple[float, ...]]] = {
    "trivial": (FiniteOrbit(Trivial()), ()),
    "mirror": (FiniteOrbit(Mirror()), ()),
    "affine": (BOX, (0.1, 0.2, 0.9, 0.3, 0.1, 0.2)),
    "mirrored affine": (ComposedOrbit(FiniteOrbit(Mirror()), BOX), (0.1, 0.2, 0.9, 0.3, 0.1, 0.2)),
    "colour": (SobolOrbit(Colour(["brightness", "contrast"]), 8), (0.2, 0.3)),
}


def extents_of(name: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(e) for e in ORBITS[name][1])


@pytest.fixture(scope="module")
def images(float64: None) -> Tensor:
    return torch.rand(N, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def others(float64: None) -> Tensor:
    return torch.rand(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def made(kind: type[AveragedKernel], name: str, images: Tensor) -> AveragedKernel:
    return kind(ORBITS[name][0], Pixels(1, normalise=True), images, CENTRES, unit=name != "colour")


def by_definition(kernel: AveragedKernel, name: str, x: Tensor, z: Tensor, *, unit: bool) -> Tensor:
    """Average over all pairs of views of the base kernel that the centres leave, with loops and an inverse."""
    orbit, extents = ORBITS[name][0], extents_of(name)

    def flat(views: Tensor) -> Tensor:
        rows = views.flatten(1)
        return rows / rows.norm(dim=1, keepdim=True) if unit else rows

    generator = torch.Generator().manual_seed(0)
    centres = flat(kernel.x[torch.randperm(N, generator=generator)[:CENTRES]])
    scale = torch.pdist(centres).square().mean().sqrt()

    def base(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((a[:, None] - b) / scale / LENGTH).square().sum(-1))

    known = torch.linalg.inv(base(centres, centres) + averaged.JITTER * torch.eye(CENTRES))
    rows = []
    for a in x:
        cells = []
        for b in z:
            left, right = (base(flat(orbit.views(image[None], *extents)[0]), centres) for image in (a, b))
            cells.append(orbit.weights() @ left @ known @ right.T @ orbit.weights())
        rows.append(torch.stack(cells))
    return torch.stack(rows)


def check_definition(kind: type[AveragedKernel], name: str, images: Tensor, others: Tensor) -> None:
    """Gram, cross and prior variances are the double sums, divided by the mean variance of the images."""
    kernel, unit, extents = made(kind, name, images), name != "colour", extents_of(name)
    x, z = kernel.x, kernel.compared(others)
    plain = by_definition(kernel, name, x, x, unit=unit)
    mean = plain.diagonal().mean()
    torch.testing.assert_close(kernel.gram(LENGTH, *extents), plain / mean, rtol=1e-7, atol=1e-7)
    with torch.no_grad():
        cross, prior = kernel.cross(z, LENGTH, *extents)
    torch.testing.assert_close(cross, by_definition(kernel, name, z, x, unit=unit) / mean, rtol=1e-7, atol=1e-7)
    own = by_definition(kernel, name, z, z, unit=unit).diagonal()
    torch.testing.assert_close(prior, own / mean, rtol=1e-7, atol=1e-7)


def check_gradient(kind: type[AveragedKernel], name: str, images: Tensor, others: Tensor) -> None:
    """Derivatives in the lengthscale and in every extent are those of finite differences."""
    kernel = made(kind, name, images)
    scalars = [t.clone().requires_grad_() for t in (LENGTH, *extents_of(name))]
    assert gradcheck(kernel.gram, scalars)
    assert gradcheck(lambda *point: kernel.cross(kernel.compared(others[:1]), *point), scalars)


def check_new_images(kind: type[AveragedKernel], name: str, images: Tensor, others: Tensor) -> None:
    """Conditioned images taken for new ones have their rows of the Gram matrix, at one point after the other."""
    kernel = made(kind, name, images)
    with torch.no_grad():
        for length in (LENGTH, 2 * LENGTH, LENGTH):
            gram = kernel.gram(length, *extents_of(name))
            cross, prior = kernel.cross(kernel.compared(images), length, *extents_of(name))
            torch.testing.assert_close(cross, gram)
            torch.testing.assert_close(prior, gram.diagonal())


class Unscaled(AveragedKernel):
    """Forgets the mean variance."""

    def gram(self, lengthscale, *extents):
        features = self.features(self.x, lengthscale, *extents)
        return features @ features.T


class Blurred(AveragedKernel):
    """Does not move new images."""

    def cross(self, compared, lengthscale, *extents):
        return super().cross(compared, lengthscale, *(torch.zeros_like(e) for e in extents))


class Detached(AveragedKernel):
    """Loses the way back to the lengthscale through the centres."""

    def features(self, x, lengthscale, *extents):
        return super().features(x, lengthscale.detach(), *extents) + 0 * lengthscale


class Stale(AveragedKernel):
    """Keeps the features of the conditioned images of the first point for all."""

    def _conditioned(self, *point):
        self.first = getattr(self, "first", None) or point
        return super()._conditioned(*self.first)


CHECKS = [check_definition, check_gradient, check_new_images]
MUTANTS = {check_definition: [Unscaled, Blurred], check_gradient: [Detached], check_new_images: [Stale, Unscaled]}


@pytest.mark.parametrize("name", ORBITS)
@pytest.mark.parametrize("check", CHECKS)
def test_averaged_kernel(check, name, images, others):
    check(AveragedKernel, name, images, others)


@pytest.mark.parametrize(("check", "mutant"), [(c, m) for c, mutants in MUTANTS.items() for m in mutants])
def test_mutant_is_caught(check, mutant, images, others):
    with pytest.raises((AssertionError, RuntimeError)):
        check(mutant, "affine", images, others)


def test_blocks_are_as_good_as_one(images, monkeypatch):
    scalars = [t.clone().requires_grad_() for t in (LENGTH, *extents_of("affine"))]
    found = []
    for block in (1, averaged.BLOCK):
        monkeypatch.setattr(averaged, "BLOCK", block)
        gram = made(AveragedKernel, "affine", images).gram(*scalars)
        found.append([gram, *torch.autograd.grad(gram.square().sum(), scalars)])
    torch.testing.assert_close(found[0], found[1])


def test_draws_may_be_mapped(images):
    kernel, extents = made(AveragedKernel, "affine", images), extents_of("affine")
    lengths = torch.tensor([0.5, 1.0, 2.0])
    together = torch.func.vmap(lambda length: kernel.gram(length, *extents))(lengths)
    torch.testing.assert_close(together, torch.stack([kernel.gram(length, *extents) for length in lengths]))


def test_no_range_is_no_average(images):
    zero = (torch.tensor(0.0),) * 6
    affine, trivial = (made(AveragedKernel, name, images) for name in ("affine", "trivial"))
    torch.testing.assert_close(affine.gram(LENGTH, *zero), trivial.gram(LENGTH))
    both, mirror = (made(AveragedKernel, name, images) for name in ("mirrored affine", "mirror"))
    torch.testing.assert_close(both.gram(LENGTH, *zero), mirror.gram(LENGTH))


def test_composed_orbit_moves_the_image_and_its_mirror_image(images):
    extents = extents_of("affine")
    composed, _ = ORBITS["mirrored affine"]
    both = torch.cat([BOX.views(images, *extents), BOX.views(images.flip(-1), *extents)], 1)
    torch.testing.assert_close(composed.views(images, *extents), both)
    torch.testing.assert_close(composed.weights(), torch.full((16,), 1 / 16))


def test_mirrored_images_have_equal_values(images):
    kernel = made(AveragedKernel, "mirror", images)
    with torch.no_grad():
        cross, _ = kernel.cross(kernel.compared(images.flip(-1)), LENGTH)
    torch.testing.assert_close(cross, kernel.gram(LENGTH))


def test_content_that_grows_is_no_brighter(images):
    for name, one in (("affine", True), ("colour", False)):
        kernel = made(AveragedKernel, name, images)
        norms = kernel.views(kernel.x, *extents_of(name)).norm(dim=-1) * kernel.scale
        assert torch.allclose(norms, torch.ones(())) == one


def test_memory_counts_what_is_kept():
    assert AveragedKernel.bytes(1000) == 1000 * AveragedKernel.bytes(400) // 400
    assert AveragedKernel.bytes(2000) > 8 * averaged.KEPT * 2000 * 400


def test_images_that_are_all_the_same_are_refused():
    with pytest.raises(BadInput, match=r"images: all 3 are the same"):
        AveragedKernel(ORBITS["trivial"][0], Pixels(1), torch.ones(3, 1, SIDE, SIDE))


def check_weights(kernel: AveragedKernel, name: str, images: Tensor, others: Tensor) -> None:
    through, at = FeatureKernel(kernel), (LENGTH, *extents_of(name))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            new, variance = through.cross(through.compared(others), *at)
            old, _ = through.cross(through.compared(images), *at)
            covariance, prior = kernel.cross(kernel.compared(others), *at)
        torch.testing.assert_close(new @ through.gram(*at) @ old.T, covariance, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(variance, prior, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ORBITS)
def test_weights_of_the_features_know_the_function(name, images, others):
    kernel = made(AveragedKernel, name, images)
    check_weights(kernel, name, images, others)
    at, targets = (LENGTH, *extents_of(name)), torch.randn(N, 2, generator=torch.Generator().manual_seed(3))
    process = SparseProcess(FeatureKernel(kernel), images, targets, Inducing.prior(CENTRES, 2), N)
    variance, noise = torch.tensor(1.3), torch.tensor(0.2)
    truth = GaussianProcess(kernel.gram(*at), variance, noise, (N, 2)).log_prob(targets)
    assert float(collapsed(process, [at])[0].bound(noise, variance)) == pytest.approx(float(truth), abs=1e-6)


def test_weights_without_units_are_caught(images, others, monkeypatch):
    monkeypatch.setattr(AveragedKernel, "scaled_features", AveragedKernel.features)
    with pytest.raises(AssertionError):
        check_weights(made(AveragedKernel, "affine", images), "affine", images, others)
