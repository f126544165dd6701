"""Every group satisfies the axioms, and its action on images respects them; some turns are exact."""

import inspect
import math
from collections.abc import Iterator

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_invariance import groups, matrix_groups
from pyro_invariance.groups import O2, SO2, Cyclic, Dihedral, GridTranslation, Group, Mirror, Trivial, wrap
from pyro_invariance.matrix_groups import Affine, Colour, Line, MatrixGroup
from pyro_invariance.representations import Pixels, Polar
from pyro_invariance.typing import BadInput

ALPHA = 1e-4  # of each statistical check
SIDE = (4, 6)  # of the images that pixels groups act on, where the group allows it
POLAR = Polar(3, 24)

INSTANCES = {
    "trivial": Trivial(),
    "C1": Cyclic(1),
    "C4 on pixels": Cyclic(4),
    "C5 on polar": Cyclic(5, POLAR),
    "D3 on polar": Dihedral(3, POLAR),
    "D4 on pixels": Dihedral(4),
    "mirror": Mirror(),
    "mirror on polar": Mirror(POLAR),
    "shifts": GridTranslation(SIDE),
    "SO2": SO2(POLAR),
    "SO2, odd angles": SO2(Polar(2, 15)),
    "O2": O2(POLAR),
}
MATRICES = [Affine(), Affine(("scale", "rotation")), Colour(), Colour(("brightness", "contrast")), Line()]


def concrete(base: type) -> Iterator[type]:
    """Yield the concrete subclasses that the library defines."""
    for cls in base.__subclasses__():
        if cls.__module__ in (groups.__name__, matrix_groups.__name__) and not inspect.isabstract(cls):
            yield cls
        yield from concrete(cls)


def inputs(group: Group) -> Tensor:
    """Two images of two channels, in the representation that the group acts on."""
    if isinstance(group.on, Polar):
        return group.on(torch.randn(2, 2, 9, 9))
    return torch.randn(2, 2, *(SIDE if isinstance(group, GridTranslation) else (5, 5)))


def some(group: Group) -> Tensor:
    """All elements of a finite group, or 16 of a continuous one, with the neutral one first."""
    if isinstance(group, MatrixGroup):
        return torch.cat([group.identity()[None], group.exp(0.5 * torch.randn(15, group.coefficients))])
    return group.elements() if group.order else torch.cat([group.identity()[None], group.sample([15])])


def pairs(group: Group) -> tuple[Tensor, Tensor]:
    g = some(group)
    i, j = torch.cartesian_prod(torch.arange(len(g)), torch.arange(len(g))).T
    return g[i], g[j]


def same(group: Group, g: Tensor, h: Tensor) -> bool:
    """Tell whether elements agree; matrices do so to rounding, angles also modulo 2 pi."""
    if isinstance(group, MatrixGroup):
        return torch.allclose(g, h, rtol=0, atol=1e-12)
    if group.order:
        return torch.equal(g, h)
    difference = g - h
    angle = difference[..., 0] if group.element_shape else difference
    flips_agree = not group.element_shape or bool((difference[..., 1] == 0).all())
    return flips_agree and float(wrap(angle).abs().max()) < 1e-12


def check_axioms(group: Group) -> None:
    (g, h), e = pairs(group), group.identity()
    neutral = e.expand_as(g)
    assert same(group, group.compose(g, neutral), g), "g e = g"
    assert same(group, group.compose(neutral, g), g), "e g = g"
    assert same(group, group.compose(g, group.inverse(g)), neutral), "g g^-1 = e"
    assert same(group, group.compose(group.inverse(g), g), neutral), "g^-1 g = e"
    k = some(group)[torch.randint(len(some(group)), (len(g),))]
    left = group.compose(group.compose(g, h), k)
    right = group.compose(g, group.compose(h, k))
    assert same(group, left, right), "(g h) k = g (h k)"


def check_closure(group: Group) -> None:
    assert group.order is not None
    every = group.elements()
    assert len(every) == group.order
    assert len(every.unique(dim=0)) == group.order
    assert same(group, every[0], group.identity()), "the identity comes first"
    g, h = pairs(group)
    results = torch.cat([group.compose(g, h), group.inverse(g), group.sample([50])]).reshape(-1, *group.element_shape)
    assert len(torch.cat([every, results]).unique(dim=0)) == group.order


def check_action(group: Group) -> None:
    g, h = pairs(group)
    g, h, x = g[:300, None], h[:300, None], inputs(group)
    twice = group.act(g, group.act(h, x))
    once = group.act(group.compose(g, h), x)
    assert once.shape == (len(g), *x.shape), "a batch of elements broadcasts against a batch of images"
    assert torch.allclose(once, twice, rtol=0, atol=1e-12), "(g h).x = g.(h.x)"
    assert torch.allclose(group.act(group.inverse(g), group.act(g, x)), x.expand_as(once), rtol=0, atol=1e-12)
    assert torch.allclose(group.act(group.identity(), x), x, rtol=0, atol=1e-13), "e.x = x"
    norms = once.square().sum((-1, -2))
    assert torch.allclose(norms, x.square().sum((-1, -2)).expand_as(norms), rtol=1e-12), "orthogonal in each channel"


def check_haar(group: Group) -> None:
    """Draws are uniform: each element, or each of 12 arcs, equally often (chi-square test)."""
    draws = group.sample([4800])
    assert draws.shape == (4800, *group.element_shape)
    if group.order:
        counts = (draws[:, None] == group.elements()).reshape(4800, group.order, -1).all(-1).sum(0)
    else:
        angle, flip = (draws, torch.zeros(())) if not group.element_shape else draws.unbind(-1)
        assert float(angle.abs().max()) <= math.pi
        cell = ((angle + math.pi) / (2 * math.pi) * 12).long().clamp_max(11) + 12 * flip.long()
        counts = torch.bincount(cell, minlength=12 * (1 + len(group.element_shape) // 2))
    assert int(counts.sum()) == 4800
    assert len(counts) == 1 or stats.chisquare(counts.numpy()).pvalue > ALPHA


def test_every_group_has_an_instance():
    assert set(concrete(Group)) - {type(group) for group in [*INSTANCES.values(), *MATRICES]} == set()
    assert {Cyclic, Affine} < set(concrete(Group))


@pytest.mark.parametrize("group", INSTANCES.values(), ids=INSTANCES)
@pytest.mark.parametrize("check", [check_axioms, check_action, check_haar])
def test_group(check, group: Group):
    check(group)


@pytest.mark.parametrize("group", MATRICES, ids=repr)
def test_group_of_matrices(group: MatrixGroup):
    check_axioms(group)


@pytest.mark.parametrize("group", [g for g in INSTANCES.values() if g.order], ids=repr)
def test_finite_group_is_closed(group: Group):
    check_closure(group)


class BrokenInverse(Dihedral):
    def inverse(self, g):
        a, m = self._split(g)
        return -a % self.n + self.n * m  # wrong for reflections


class WrongOrder(Dihedral):
    def act(self, g, x):  # turns first
        turn, reflected = self._split(g)
        turned = self.on.rotate(x, turn.to(x.dtype) * (2 * math.pi / self.n))
        return torch.where(reflected[..., None, None, None] == 1, self.on.mirror(turned), turned)


class NotAssociative(Cyclic):
    def compose(self, g, h):
        return (g + h + (g * h == 4)) % self.order


class ElementwiseInverse(Affine):
    def inverse(self, g):
        return 1 / g


class Uneven(SO2):
    def sample(self, shape=()):
        return super().sample(shape).abs().sqrt()


class Leaky(Cyclic):
    def elements(self):
        return torch.arange(self.order - 1)


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        (check_axioms, BrokenInverse(4)),
        (check_axioms, NotAssociative(5)),
        (check_axioms, ElementwiseInverse()),
        (check_action, WrongOrder(4)),
        (check_action, SO2()),  # bilinear turns of pixels by any angle compose only roughly
        (check_haar, Uneven(POLAR)),
        (check_closure, Leaky(4)),
    ],
)
def test_mutant_fails(check, mutant: Group):
    with pytest.raises(AssertionError):
        check(mutant)


@pytest.mark.parametrize("side", [6, 7])
def test_quarter_turns_of_pixels_are_exact(side: int):
    x = torch.randn(2, 3, side, side)
    for k in range(4):
        expected = torch.rot90(x, k, (-2, -1))  # counter-clockwise, as displayed
        assert torch.allclose(Cyclic(4).act(torch.tensor(k), x), expected, rtol=0, atol=1e-14 * side)
        assert torch.allclose(SO2().act(torch.tensor(k * math.pi / 2), x), expected, rtol=0, atol=1e-14 * side)


@pytest.mark.parametrize("side", [6, 7])
def test_mirror_and_shifts_of_pixels_are_exact(side: int):
    x = torch.randn(2, 3, side, side)
    assert torch.equal(Mirror().act(torch.tensor(1), x), x.flip(-1))
    shifted = GridTranslation((side, side)).act(torch.tensor([2, -1]), x)
    assert torch.equal(shifted, x.roll((2, -1), (-2, -1)))
    padded = Pixels(margin=2)(x)
    assert torch.equal(Pixels().shift(padded, torch.tensor([-2, 2]))[..., :side, 4:], x), "nothing wraps in a margin"


@pytest.mark.parametrize("angles", [24, 15])
def test_polar_turns_are_orthogonal_for_any_real_angle(angles: int):
    polar = Polar(4, angles)
    x, z = polar(torch.randn(2, 5, 3, 11, 11))
    theta = 10 * torch.randn(50, 1)
    turned_x, turned_z = polar.rotate(x, theta), polar.rotate(z, theta)
    products = (turned_x * turned_z).sum((-1, -2))
    assert torch.allclose(products, (x * z).sum((-1, -2)).expand_as(products), rtol=1e-12, atol=1e-12)
    whole = polar.rotate(x, torch.tensor(3 * 2 * math.pi / angles))
    assert torch.allclose(whole, x.roll(3, -1), rtol=0, atol=1e-12), "by whole steps a turn is a roll"


@pytest.mark.parametrize("side", [8, 9])
def test_turns_and_mirrors_of_pixels_commute_with_polar_resampling(side: int):
    polar, x = Polar(5, 32), torch.randn(3, 2, side, side)
    for k in range(4):
        turned = polar(torch.rot90(x, k, (-2, -1)))
        assert torch.allclose(turned, polar.rotate(polar(x), torch.tensor(k * math.pi / 2)), rtol=0, atol=1e-12)
    assert torch.allclose(polar(Pixels().mirror(x)), polar.mirror(polar(x)), rtol=0, atol=1e-12)


def test_polar_norm_is_that_of_the_pixels_on_the_disk():
    ones = torch.ones(1, 1, 16, 16)
    assert float(Polar(8, 32)(ones).square().sum()) == pytest.approx(math.pi / 4 * 16**2, rel=1e-12)


@pytest.mark.parametrize("shape", [(9, 9), (3, 9, 9), (2, 4, 3, 9, 9)])
def test_representations_keep_leading_dimensions(shape: tuple[int, ...]):
    x = torch.randn(1, *shape) if len(shape) == 2 else torch.randn(shape)
    assert Polar(4, 8)(x).shape == (*x.shape[:-2], 4, 8)
    assert Pixels(pool=2, margin=1)(x).shape == (*x.shape[:-2], 7, 7)


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="n: got 0"):
        Cyclic(0)
    with pytest.raises(BadInput, match="n: got -1"):
        Dihedral(-1)
    with pytest.raises(BadInput, match="continuous"):
        SO2().elements()


def test_white_ground_is_as_good_as_black():
    x = torch.zeros(3, 2, 12, 12)
    x[..., 4:8, 3:9] = torch.rand(3, 2, 4, 6)
    for pixels in (Pixels(normalise=True), Pixels(2, margin=1, normalise=True)):
        torch.testing.assert_close(pixels(1 - x), -pixels(x))
        torch.testing.assert_close(pixels(0.5 + 2 * x), pixels(x))
        moved = pixels.shift(Pixels(pixels.pool, 3, normalise=True)(1 - x), torch.tensor([1, -1]))
        torch.testing.assert_close(
            moved, Pixels(pixels.pool, 3, normalise=True)(1 - x.roll((pixels.pool, -pixels.pool), (-2, -1)))
        )
    polar = Polar(6, 32, normalise=True)
    torch.testing.assert_close(polar(1 - x), -polar(x))
