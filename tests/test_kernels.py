"""Gram matrices against their definition, their gradients against finite differences, new images against old ones."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from pyro_invariance import kernels
from pyro_invariance.densities import SoftUniform
from pyro_invariance.features import WIDTH
from pyro_invariance.kernels import OrbitKernel, PatchKernel
from pyro_invariance.orbits import Shifts, SpectralOrbit, Turns
from pyro_invariance.representations import Pixels, Polar
from pyro_invariance.typing import BadInput

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

N, SIDE = 6, 8
LENGTH = torch.tensor(0.8, dtype=torch.float64)


def on_the_line(extent: Tensor) -> SoftUniform:
    return SoftUniform(extent, period=None, edge=0.3)


def on_the_circle(extent: Tensor) -> SoftUniform:
    return SoftUniform(extent)


POLAR, PIXELS = Polar(4, 16), Pixels(1, margin=4)
ORBITS: dict[str, tuple[SpectralOrbit, tuple[float, ...]]] = {
    "trivial": (Turns(POLAR, 1), ()),
    "mirror": (Turns(POLAR, 1, mirror=True), ()),
    "C4": (Turns(POLAR, 4), ()),
    "D4": (Turns(POLAR, 4, mirror=True), ()),
    "odd order": (Turns(Polar(3, 15), 5), ()),
    "O2": (Turns(POLAR, 16, mirror=True), ()),
    "rotation": (Turns(POLAR, 16, on_the_circle), (0.9,)),
    "all shifts": (Shifts(PIXELS, 2), ()),
    "translation": (Shifts(PIXELS, 2, on_the_line), (0.7, 1.6)),
}
LEARNED = ["rotation", "translation"]


def extents_of(name: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(e) for e in ORBITS[name][1])


@pytest.fixture(scope="module")
def images(float64: None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(N, 2, SIDE, SIDE, generator=generator)


@pytest.fixture(scope="module")
def others(float64: None) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(4, 2, SIDE, SIDE, generator=generator)


@pytest.fixture(scope="module")
def patch(images: Tensor) -> PatchKernel:
    return PatchKernel(Pixels(1), 3, images, features=12)


def by_views(kernel: OrbitKernel, x: Tensor, z: Tensor, lengthscale: Tensor, *extents: Tensor) -> Tensor:
    """Average the kernel over all pairs of views, with nothing but tensors."""
    orbit = kernel.orbit
    p, q = orbit.views(orbit.representation(x)).flatten(2), orbit.views(orbit.representation(z)).flatten(2)
    squared = (p[:, None, :, None] - q[None, :, None, :]).square().sum(-1)  # [N, M, V, V]
    w = orbit.weights(*extents)
    sums = torch.einsum("nmvw,v,w->nm", torch.exp(-0.5 * squared / kernel.scale / lengthscale**2), w, w)
    return sums / kernel._mean_variance(lengthscale, *extents)


@pytest.mark.parametrize("name", ORBITS)
def test_gram_is_the_average_over_pairs_of_views(name, images):
    kernel, extents = OrbitKernel(ORBITS[name][0], images), extents_of(name)
    gram = kernel.gram(LENGTH, *extents)
    torch.testing.assert_close(gram, by_views(kernel, images, images, LENGTH, *extents), rtol=1e-9, atol=1e-12)
    assert torch.equal(gram, gram.T)
    torch.testing.assert_close(gram.diagonal().mean(), torch.tensor(1.0))
    assert float(torch.linalg.eigvalsh(gram).min()) > -1e-12


def test_lengthscale_is_in_units_of_the_mean_distance(images):
    kernel = OrbitKernel(ORBITS["trivial"][0], images)
    gram = kernel.gram(LENGTH)
    distances = -2 * LENGTH**2 * gram.log()
    pairs = distances[tuple(torch.triu_indices(N, N, 1))]
    torch.testing.assert_close(pairs.mean(), torch.tensor(1.0))
    torch.testing.assert_close(
        gram, OrbitKernel(ORBITS["trivial"][0], 7 * images).gram(LENGTH)
    )  # brightness is no matter


@pytest.mark.parametrize("name", ORBITS)
def test_gram_has_the_right_gradient(name, images):
    kernel = OrbitKernel(ORBITS[name][0], images)
    arguments = [LENGTH.clone().requires_grad_(), *(e.requires_grad_() for e in extents_of(name))]
    assert gradcheck(kernel.gram, arguments, eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_value_is_the_same_with_and_without_gradient(name, images):
    kernel, extents = OrbitKernel(ORBITS[name][0], images), extents_of(name)
    plain = kernel.gram(LENGTH, *extents)
    learned = kernel.gram(LENGTH, *(e.requires_grad_() for e in extents))
    torch.testing.assert_close(plain, learned.detach(), rtol=1e-14, atol=0)
    with torch.no_grad():
        assert not kernel.gram(LENGTH, *extents).requires_grad


@pytest.mark.parametrize("name", LEARNED)
def test_gradient_wrong_in_one_extent_is_caught(name, images):
    kernel = OrbitKernel(ORBITS[name][0], images)
    arguments = [LENGTH.clone().requires_grad_(), *(e.requires_grad_() for e in extents_of(name))]

    def forgets(lengthscale: Tensor, first: Tensor, *rest: Tensor) -> Tensor:
        return kernel.gram(lengthscale, 0.99 * first.detach() + 0.01 * first, *rest)

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(forgets, arguments, eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 7, N * N])
@pytest.mark.parametrize("name", LEARNED)
def test_chunks_change_nothing(name, chunk, images, monkeypatch):
    kernel = OrbitKernel(ORBITS[name][0], images)

    def value_and_gradient() -> list[Tensor]:
        arguments = [LENGTH.clone().requires_grad_(), *(e.requires_grad_() for e in extents_of(name))]
        gram = kernel.gram(*arguments)
        return [gram.detach(), *torch.autograd.grad((gram * torch.arange(N)).sum(), arguments)]

    whole = value_and_gradient()
    monkeypatch.setattr(kernels, "CHUNK", chunk)
    for a, b in zip(whole, value_and_gradient(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [1, kernels.BLOCK])
@pytest.mark.parametrize("name", ORBITS)
def test_new_images_are_compared_like_old_ones(name, block, images, others, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", block)  # one image at a time, or all at once
    kernel, extents = OrbitKernel(ORBITS[name][0], images), extents_of(name)
    for draw in ((LENGTH, *extents), (2 * LENGTH, *(e / 2 for e in extents))):
        gram, (covariance, variance) = kernel.gram(*draw), kernel.cross(kernel.compared(images), *draw)
        assert (covariance.shape, variance.shape) == ((N, N), (N,))
        torch.testing.assert_close(covariance, gram, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(variance, gram.diagonal(), rtol=1e-9, atol=1e-10)
        covariance, variance = kernel.cross(kernel.compared(others), *draw)
        within = by_views(kernel, others, others, *draw).diagonal()
        torch.testing.assert_close(covariance, by_views(kernel, others, images, *draw), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(variance, within, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ORBITS)
def test_covariance_with_new_images_has_the_right_gradient(name, images, others):
    kernel = OrbitKernel(ORBITS[name][0], images)
    arguments = [LENGTH.clone().requires_grad_(), *(e.requires_grad_() for e in extents_of(name))]
    compared = kernel.compared(others)
    assert gradcheck(lambda *at: kernel.cross(compared, *at), arguments, eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", ORBITS)
@pytest.mark.parametrize("count", [3, 5])
def test_memory_is_what_the_distances_take(name, count, images):
    orbit = ORBITS[name][0]
    assert OrbitKernel.bytes(orbit, count) == OrbitKernel(orbit, images[:count]).distances.nbytes


@pytest.mark.parametrize("side", [12, 16, 20])
def test_memory_of_patches_is_an_upper_estimate(side):
    kernel = PatchKernel(Pixels(1), 5, torch.rand(N, 1, side, side))
    estimate = PatchKernel.bytes(Pixels(1), N, kernel.modes)
    taken = kernel.distances.nbytes + kernel.x.nbytes
    assert taken <= estimate <= 1.5 * taken
    assert PatchKernel.bytes(Pixels(1), N) >= estimate


def test_distances_that_are_not_kept_are_the_same(patch, images, monkeypatch):
    monkeypatch.setattr(PatchKernel, "KEPT", 0)
    anew = PatchKernel(Pixels(1), 3, images, features=12)
    assert anew.distances is None
    for reach in (torch.tensor(0.0), torch.tensor(0.7)):
        torch.testing.assert_close(anew.gram(LENGTH, reach), patch.gram(LENGTH, reach), rtol=1e-9, atol=1e-9)
    arguments = [LENGTH.clone().requires_grad_(), torch.tensor(0.3, requires_grad=True)]
    assert gradcheck(anew.gram, arguments, eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("block", [1, kernels.BLOCK])
@pytest.mark.parametrize("name", ORBITS)
def test_distances_of_views_that_are_not_kept_are_the_same(name, block, images, monkeypatch):
    kept, extents = OrbitKernel(ORBITS[name][0], images), extents_of(name)
    monkeypatch.setattr(OrbitKernel, "KEPT", 0)
    monkeypatch.setattr(kernels, "BLOCK", block)
    anew = OrbitKernel(ORBITS[name][0], images)
    assert anew.distances is None
    torch.testing.assert_close(anew.gram(LENGTH, *extents), kept.gram(LENGTH, *extents), rtol=1e-9, atol=1e-10)
    arguments = [LENGTH.clone().requires_grad_(), *(e.requires_grad_() for e in extents)]
    found, expected = (torch.autograd.grad(k.gram(*arguments).tril().sum(), arguments) for k in (anew, kept))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_directions_in_which_images_hardly_differ_are_dropped(monkeypatch):
    images = torch.rand(40, 1, 9, 9).cumsum(-1).cumsum(-2)  # smooth
    every = PatchKernel(Pixels(1), 3, images, features=30)
    monkeypatch.setattr(kernels, "EXAMPLES", 40)
    fewer = PatchKernel(Pixels(1), 3, images, features=30)
    assert fewer.x.shape[1] < 0.5 * every.x.shape[1]
    for reach in (0.0, 0.5):
        change = fewer.gram(LENGTH, torch.tensor(reach)) - every.gram(LENGTH, torch.tensor(reach))
        assert 0 < float(change.abs().max()) < 0.02


def test_patch_gram_has_the_right_gradient(patch):
    for reach in (0.0, 0.3, 1.5):
        arguments = [LENGTH.clone().requires_grad_(), torch.tensor(reach, requires_grad=True)]
        assert gradcheck(patch.gram, arguments, eps=1e-6, atol=1e-7, rtol=1e-5)
    assert gradcheck(patch.gram, [LENGTH.clone().requires_grad_()], eps=1e-6, atol=1e-7, rtol=1e-5)


def test_patch_gram_is_a_kernel(patch):
    for reach in (0.0, 0.3, 2.0):
        gram = patch.gram(LENGTH, torch.tensor(reach))
        torch.testing.assert_close(gram, gram.T, rtol=0, atol=1e-14)
        torch.testing.assert_close(gram.diagonal(), torch.ones(N), rtol=0, atol=1e-7)  # sqrt of rounding in |x - x|
        assert float(torch.linalg.eigvalsh(gram).min()) > -1e-7


def directions(views: Tensor, kernel: PatchKernel) -> tuple[Tensor, Tensor]:
    """Centred views on the unit sphere, those that are nearly flat within it, and their length."""
    views = views - views.mean(-1, keepdim=True)
    length = views.norm(dim=-1, keepdim=True)
    return views / length.clamp_min(kernel.features.faint), length


def similar(views: Tensor, kernel: PatchKernel) -> Tensor:
    unit, length = directions(views, kernel)
    return length * torch.exp(-0.5 * (unit[..., None, :] - kernel.features.centres).square().sum(-1) / WIDTH**2)


def feature_maps(kernel: PatchKernel, x: Tensor) -> Tensor:
    """Nystroem features of every patch, `[N, P, kept]`."""
    return similar(kernel.patches.views(kernel.pixels(x)).flatten(2), kernel) @ kernel.features.whiten


def squared_distances(features: Tensor) -> Tensor:
    return (features[:, None] - features).square().sum(-1)


def recovered(kernel: PatchKernel, reach: float) -> Tensor:
    """Squared distances that the kernel was computed from, in its own scale."""
    return -2 * LENGTH**2 * kernel.gram(LENGTH, torch.tensor(reach)).log()


def test_features_are_those_of_an_rbf_kernel_on_patches(patch, images):
    phi = feature_maps(patch, images).flatten(0, 1)
    centres = torch.exp(-0.5 * squared_distances(patch.features.centres) / WIDTH**2)
    between = similar(patch.patches.views(images).flatten(2).flatten(0, 1), patch)
    nystroem = between @ torch.linalg.pinv(centres, rtol=1e-10) @ between.T
    torch.testing.assert_close(phi @ phi.T, nystroem, rtol=1e-6, atol=1e-8)


def test_location_zero_weights_every_place_equally(patch, images):
    torch.testing.assert_close(patch.mode_weights(0.0), torch.ones(len(patch.group_of)))
    torch.testing.assert_close(patch.gram(LENGTH), patch.gram(LENGTH, torch.tensor(0.0)))
    assert patch.modes == SIDE - 2  # all modes are kept: the transform loses nothing
    places = squared_distances(feature_maps(patch, images).flatten(1))
    expected = places / places.mean() * recovered(patch, 0.0).mean()
    torch.testing.assert_close(recovered(patch, 0.0), expected, rtol=1e-6, atol=1e-9)


def test_weights_follow_the_stated_formula(patch):
    for reach in (0.2, 1.0):
        weights = patch.mode_weights(torch.tensor(reach))
        torch.testing.assert_close(weights @ patch.mean, torch.tensor(1.0))  # whatever the reach
        on_the_map = reach * SIDE / (SIDE - 2)
        ratio = torch.exp(-(math.pi**2) * patch.group_of * on_the_map**2 / 8)
        torch.testing.assert_close(weights / weights[0], ratio / ratio[0])
        assert int(patch.group_of[0]) == 0


def test_large_location_is_a_bag_of_patches(patch, images):
    weights = patch.mode_weights(20.0)
    torch.testing.assert_close(weights[0], 1 / patch.mean[0])
    assert float(weights[1:].sum() / weights[0]) < 1e-12
    bags = squared_distances(feature_maps(patch, images).sum(1))
    ours = recovered(patch, 20.0)
    torch.testing.assert_close(ours, bags / bags.mean() * ours.mean(), rtol=1e-6, atol=1e-9)


def test_bag_of_patches_ignores_where_the_content_stands():
    images = torch.zeros(N, 1, 12, 12)
    images[:, :, 4:7, 4:7] = torch.rand(N, 1, 3, 3)
    images[1] = images[0].roll((2, -1), (-2, -1))
    kernel = PatchKernel(Pixels(1), 3, images, features=12)
    far, near = (kernel.gram(LENGTH, torch.tensor(r)) for r in (20.0, 0.0))
    torch.testing.assert_close(far[0, 1], torch.tensor(1.0), rtol=0, atol=1e-8)
    assert float(near[0, 1]) < 0.9
    torch.testing.assert_close(far[0, 2:], far[1, 2:], rtol=0, atol=1e-7)


@pytest.mark.parametrize("reach", [None, 0.0, 0.4, 2.0])
def test_new_images_have_the_patch_kernel_of_old_ones(reach, patch, images, others):
    draw = (LENGTH,) if reach is None else (LENGTH, torch.tensor(reach))
    covariance, variance = patch.cross(patch.compared(images), *draw)
    assert (covariance.shape, variance.shape) == ((N, N), (N,))
    torch.testing.assert_close(covariance, patch.gram(*draw), rtol=1e-9, atol=1e-9)
    assert torch.equal(variance, torch.ones(N))
    new = patch.cross(patch.compared(others), *draw)[0]
    assert new.shape == (4, N)
    one_by_one = torch.cat([patch.cross(patch.compared(others[i : i + 1]), *draw)[0] for i in range(4)])
    torch.testing.assert_close(new, one_by_one, rtol=1e-12, atol=1e-12)


def test_patch_kernel_draws_its_own_random_numbers(images):
    torch.manual_seed(1)
    first = PatchKernel(Pixels(1), 3, images, features=12).distances
    state = torch.random.get_rng_state()
    again = PatchKernel(Pixels(1), 3, images, features=12).distances
    assert torch.equal(first, again)
    assert torch.equal(state, torch.random.get_rng_state())


def test_images_that_differ_in_brightness_only_are_refused():
    flat = torch.linspace(0.1, 1, N)[:, None, None, None].expand(N, 1, SIDE, SIDE)
    same = torch.rand(1, 1, SIDE, SIDE) * flat  # one picture, at several contrasts
    polar = Polar(4, 16, normalise=True)
    for make in (
        lambda x: OrbitKernel(Turns(polar, 16), x),
        lambda x: OrbitKernel(Shifts(Pixels(normalise=True), 2), x),
        lambda x: PatchKernel(Pixels(normalise=True), 3, x, features=4),
    ):
        for images in (flat, same):
            with pytest.raises(BadInput, match=r"all (6 )?are "):
                make(images)


def test_few_patches_make_few_features():
    kernel = PatchKernel(Pixels(1), 5, torch.rand(3, 1, 6, 6))  # 12 patches in all, 96 centres wanted
    assert len(kernel.features.centres) <= 12
    assert torch.isfinite(kernel.gram(LENGTH, torch.tensor(0.4))).all()
