"""Averages over Sobol nodes converge to those over the box; extents move the nodes, each to its side."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck

from pyro_invariance.deformations import Elastic, Warp
from pyro_invariance.densities import MovingUniform
from pyro_invariance.groups import SO2
from pyro_invariance.matrix_groups import Affine, Colour, Line
from pyro_invariance.orbits import QuadratureOrbit
from pyro_invariance.quadrature import SobolOrbit
from pyro_invariance.typing import BadInput

KINDS = [Affine(), Affine(("scale",)), Colour(), Line(), Elastic(), Warp()]


def inputs(group, n: int = 2) -> Tensor:
    return torch.randn((n, 3, 6, 7)[: 1 + group.event_dim])


def constant(group, value: float) -> list[Tensor]:
    return [torch.tensor(value)] * len(group.extents)


def average(orbit: SobolOrbit | QuadratureOrbit, x: Tensor, *extents: Tensor) -> Tensor:
    """A smooth function of the views, averaged, `[N]`."""
    return orbit.views(x, *extents).flatten(2).square().mean(-1).exp() @ orbit.weights()


def errors(kind: type[SobolOrbit], count: int) -> Tensor:
    """Errors of an average over two ranges, for eight seeds; the truth is that of 200 x 200 midpoints."""
    extents, x = torch.tensor([0.4, 0.3]), (torch.linspace(0, 3, 20).cos() + torch.linspace(-2, 5, 20).sin())[None]
    middle = (2 * torch.arange(200) + 1) / 200 - 1
    box = torch.cartesian_prod(middle, middle) * extents
    truth = Line().move(box, x).square().mean(-1).exp().mean()
    return torch.stack([average(kind(Line(), count, seed), x, *extents) for seed in range(8)]) - truth


def check_converges(kind: type[SobolOrbit]) -> None:
    """Sixteen times the nodes divide the error by ten; that of independent draws is divided by four."""
    few, many = (float(errors(kind, count).square().mean().sqrt()) for count in (16, 256))
    assert many < few / 10


def check_sides(kind: type[SobolOrbit]) -> None:
    """With a range of the rows to the left of zero alone, and of the columns to the right, content moves up, right."""
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 4] = 1
    orbit = kind(Affine(("rows", "columns")), 64)
    views = orbit.views(x, *torch.tensor([0.6, 0.0, 0.0, 0.6]))[0, :, 0]  # left of both, then right of both
    there = views.sum(0) > 1e-12
    up_and_right = torch.zeros(9, 9, dtype=torch.bool)
    up_and_right[1:5, 4:8] = True
    assert torch.equal(there, up_and_right)


def check_gradient(kind: type[SobolOrbit]) -> None:
    for group in KINDS:
        orbit, x = kind(group, 2), inputs(group, 1)
        for repeat in (1, 2):
            extents = [(0.1 + 0.2 * torch.rand(())).requires_grad_() for _ in range(repeat * len(group.extents))]
            assert gradcheck(lambda *e, orbit=orbit, x=x: orbit.views(x, *e), extents)


class Uncentred(SobolOrbit):
    def nodes(self, x, *extents):
        return (super().nodes(x, *extents) + torch.stack(extents)) / 2


class Independent(SobolOrbit):
    def nodes(self, x, *extents):
        return (2 * torch.rand(len(x), self.count, self.group.coefficients) - 1) * torch.stack(extents)


class Exchanged(SobolOrbit):
    def nodes(self, x, *extents):
        half = len(extents) // 2
        return super().nodes(x, *extents[half:], *extents[:half])


class Stopped(SobolOrbit):
    def nodes(self, x, *extents):
        return super().nodes(x, *[e.detach() + 0 * e for e in extents])


@pytest.mark.parametrize("check", [check_converges, check_sides, check_gradient])
def test_nodes(check):
    check(SobolOrbit)


@pytest.mark.parametrize(
    ("check", "mutant", "error"),
    [
        (check_converges, Uncentred, AssertionError),
        (check_converges, Independent, AssertionError),
        (check_sides, Exchanged, AssertionError),
        (check_gradient, Stopped, RuntimeError),
    ],
)
def test_mutant_fails(check, mutant: type[SobolOrbit], error: type[Exception]):
    with pytest.raises(error):
        check(mutant)


@pytest.mark.parametrize("group", KINDS, ids=repr)
def test_views(group):
    orbit, x = SobolOrbit(group, 16), inputs(group)
    views = orbit.views(x, *constant(group, 0.2))
    assert views.shape == (2, 16, *x.shape[1:])
    assert float((views - x[:, None]).abs().amax(tuple(range(2, views.dim()))).min()) > 0, "each node moves something"
    assert torch.allclose(orbit.views(x[1:], *constant(group, 0.2)), views[1:], rtol=0, atol=1e-12), "in chunks"
    copies = orbit.views(x, *constant(group, 0.0))
    assert torch.allclose(copies, x[:, None].expand_as(copies), rtol=0, atol=1e-12)
    single = orbit.views(x.float(), *constant(group, 0.2))
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), views, rtol=0, atol=1e-4)
    elsewhere = orbit.views(x.to("meta"), *constant(group, 0.2))
    assert elsewhere.is_meta, "views are where the inputs are, wherever the extents are"
    assert float(orbit.weights().sum()) == pytest.approx(1, abs=1e-14)


def test_average_is_that_of_the_same_range_of_turns():
    x, extent = torch.randn(2, 1, 8, 8), torch.tensor(0.7)
    turns = QuadratureOrbit(SO2(), MovingUniform(extent), 2048)
    assert torch.allclose(average(SobolOrbit(Affine(("rotation",)), 1024), x, extent), average(turns, x), rtol=1e-4)


def test_two_sides_are_the_ends_of_a_uniform_range():
    orbit, x = SobolOrbit(Colour(), 32), inputs(Colour())
    extents = list(torch.rand(4))
    assert torch.equal(orbit.nodes(x, *extents), orbit.nodes(x, *extents, *extents))
    uneven = orbit.nodes(x, *extents, *[2 * e for e in extents])
    torch.testing.assert_close(uneven, 1.5 * orbit.nodes(x, *extents) + 0.5 * torch.stack(extents))


def test_one_amplitude_is_the_range_of_every_mode():
    nodes = SobolOrbit(Elastic(), 64).nodes(inputs(Elastic()), torch.tensor(0.3))
    assert nodes.shape == (2, 64, 10)
    assert bool((nodes.abs().amax(1) > 0.27).all())
    assert float(nodes.abs().max()) <= 0.3


def test_nodes_follow_from_the_seed_and_the_image_alone():
    x, extents = inputs(Colour()), torch.ones(4)
    state = torch.random.get_rng_state()
    first, again, other = (SobolOrbit(Colour(), 8, seed).nodes(x, *extents) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert float((first - other).abs().amax((1, 2)).min()) > 0.1
    assert float((first[0] - first[1]).abs().max()) > 0.1, "each image has its own"
    assert torch.equal(state, torch.random.get_rng_state())


def check_independent(kind: type[SobolOrbit]) -> None:
    """Of many images the nodes fill the box evenly together, also where each has two only: alpha = 1e-4."""
    nodes = kind(Line(), 2).nodes(torch.randn(2000, 5), *torch.ones(2))[:, 0]
    for axis in (nodes[:, 0], nodes[:, 1], (nodes.sum(1) + 1) % 2 - 1):  # the last: one says nothing of the other
        assert stats.kstest(axis.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4


class Shared(SobolOrbit):
    def nodes(self, x, *extents):
        return super().nodes(x, *extents)[:1].expand(len(x), -1, -1)


def test_views_of_images_are_independent():
    check_independent(SobolOrbit)
    with pytest.raises(AssertionError):
        check_independent(Shared)


def test_views_are_all_that_is_allocated(monkeypatch: pytest.MonkeyPatch):
    """No image is copied for each of its views."""
    sizes, plain = [], F.grid_sample

    def spy(x: Tensor, places: Tensor, **options: bool) -> Tensor:
        sizes.append((x.untyped_storage().nbytes(), places.untyped_storage().nbytes()))
        return plain(x, places, **options)

    monkeypatch.setattr(F, "grid_sample", spy)
    x = torch.randn(5, 3, 6, 7)
    for group in (Affine(), Elastic()):
        SobolOrbit(group, 16).views(x, *constant(group, 0.1))
        assert max(seen for seen, _ in sizes) == x.nbytes
        assert max(places for _, places in sizes) == 5 * 16 * 6 * 7 * 2 * x.itemsize


def test_bad_input_is_named():
    orbit, extent = SobolOrbit(Affine(("scale", "shear")), 8), torch.tensor(0.1)
    for count in (0, 1, 3):
        with pytest.raises(BadInput, match=rf"extents: got {count}; Affine\(scale, shear\) takes 2, or left and right"):
            orbit.views(torch.zeros(1, 1, 4, 4), *[extent] * count)
    with pytest.raises(BadInput, match=r"x: got shape \[4, 4\]; Affine\(scale, shear\) takes 4 dimensions"):
        orbit.views(torch.zeros(4, 4), extent, extent)
    with pytest.raises(BadInput, match="seed: got -1"):
        SobolOrbit(Line(), 8, -1).nodes(torch.zeros(1, 4), extent, extent)


@pytest.mark.parametrize("group", KINDS, ids=repr)
def test_no_direction_is_preferred(group):
    nodes = SobolOrbit(group, 16).nodes(inputs(group), *constant(group, 0.2))
    torch.testing.assert_close(nodes[:, :8], -nodes[:, 8:], rtol=0, atol=1e-15)
    assert SobolOrbit(group, 7).nodes(inputs(group), *constant(group, 0.2)).shape[1] == 7
