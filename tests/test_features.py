"""Nystroem features against their kernel, patches that turn against turned images."""

import math

import pytest
import torch
from torch import Tensor

from pyro_invariance.features import WIDTH, Nystroem, PolarPatches
from pyro_invariance.kernels import OrbitKernel
from pyro_invariance.orbits import Turns
from pyro_invariance.representations import Pixels
from pyro_invariance.typing import BadInput


@pytest.fixture(scope="module")
def images(float64: None) -> Tensor:
    return torch.rand(30, 2, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def maps(images: Tensor) -> PolarPatches:
    return PolarPatches(Pixels(1), images, count=20)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_inner_products_are_the_kernel_at_the_centres():
    features = Nystroem(torch.randn(200, 5), 10, generator())
    phi, kernel = features.similar(features.centres) @ features.whiten, features.similar(features.centres)
    torch.testing.assert_close(phi @ phi.T, kernel, rtol=1e-6, atol=1e-6)
    assert torch.allclose(kernel.diagonal(), torch.ones(10), rtol=1e-9)


def test_more_centres_come_nearer_to_the_kernel():
    vectors = torch.randn(200, 3)
    errors = []
    for count in (3, 10, 60):
        features = Nystroem(vectors, count, generator())
        phi = features.similar(vectors) @ features.whiten
        centred = vectors - vectors.mean(1, keepdim=True)
        length = centred.norm(dim=1, keepdim=True)
        unit = centred / length.clamp_min(features.faint)
        exact = length * length.T * torch.exp(-0.5 * torch.cdist(unit, unit).square() / WIDTH**2)
        errors.append(float((phi @ phi.T - exact).abs().mean()))
    assert errors[0] > 2 * errors[1] > 10 * errors[2]


def test_constant_vectors_have_no_features():
    with pytest.raises(BadInput, match="constant"):
        Nystroem(torch.ones(50, 4), 5, generator())


def check_turns(maps: PolarPatches, images: Tensor) -> None:
    before, size = maps(images), maps(images).abs().max()
    for quarters in range(4):
        after = maps(torch.rot90(images, quarters, (-2, -1)))
        turned = maps.rotate(before, torch.tensor(quarters * math.pi / 2))
        assert float((after - turned).abs().max()) < 1e-10 * float(size)


def test_a_turned_image_has_turned_maps(maps, images):
    check_turns(maps, images)
    assert maps(images).shape == (30, maps.features.whiten.shape[1] * 6, 1, 16)


def test_patches_in_a_frame_that_stays_are_caught(maps, images, monkeypatch):
    upright = maps.places.mean(2, keepdim=True) + (maps.places[:, :1] - maps.places[:, :1].mean(2, keepdim=True))
    monkeypatch.setattr(maps, "places", upright)
    with pytest.raises(AssertionError):
        check_turns(maps, images)


def test_small_turns_of_smooth_images_turn_the_maps():
    grid = (torch.arange(24) + 0.5) / 12 - 1
    centres, angle = torch.rand(20, 5, 2, generator=generator()) - 0.5, torch.tensor(math.radians(20))
    squared = (grid[:, None, None, None] - centres[..., 0]).square() + (grid[:, None, None] - centres[..., 1]).square()
    images = torch.exp(-squared / 0.08).sum(-1).permute(2, 0, 1)[:, None]
    maps = PolarPatches(Pixels(1), images, count=20)
    before, after = maps(images), maps(Pixels().rotate(images, angle))
    turned = maps.rotate(before, angle)
    assert float((after - turned).square().mean()) < 0.02 * float((after - before).square().mean())


def test_kernel_of_patches_that_turn_is_invariant(maps, images):
    kernel = OrbitKernel(Turns(maps, 16), images)
    gram = kernel.gram(torch.tensor(0.5))
    turned, _ = kernel.cross(kernel.compared(torch.rot90(images, 1, (-2, -1))), torch.tensor(0.5))
    torch.testing.assert_close(turned, gram, rtol=0, atol=1e-10)
    assert float(torch.linalg.eigvalsh(gram).min()) > -1e-10


def test_patches_that_turn_have_no_mirror(maps, images):
    with pytest.raises(BadInput, match="mirror"):
        Turns(maps, 16, mirror=True).views(maps(images))


@pytest.mark.parametrize("order", [4, 16, 36, 64])
def test_finer_maps_are_maps_too(order, images):
    maps = PolarPatches(Pixels(1), images, order, count=20)
    assert maps(images[:2]).shape[-1] == order
    check_turns(maps, images[:5])
