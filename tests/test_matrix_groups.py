"""Exponentials are the maps that their generators promise; images, colours and series move as the elements say."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from pyro_invariance.groups import SO2, GridTranslation
from pyro_invariance.matrix_groups import Affine, Colour, Line, MatrixGroup
from pyro_invariance.representations import Pixels
from pyro_invariance.typing import BadInput

GROUPS = [Affine(), Colour(), Line()]
SIDE = 96  # of the smooth images

# Linear reading errs by h^2 / 8 times the second derivative for each axis, 0.005 for blobs of width 0.1, in every act.
TOLERANCE = {Affine: 0.025, Colour: 1e-12, Line: 0.015}


def blob(side: int, centre: float, width: float) -> Tensor:
    return torch.exp(-(((2 * torch.arange(side) + 1) / side - 1 - centre) ** 2) / (2 * width**2))


def smooth(group: MatrixGroup) -> Tensor:
    """Two smooth inputs, far from the border and without symmetry."""
    if group.event_dim == 1:
        return torch.stack([blob(SIDE, 0.2, 0.1), blob(SIDE, -0.15, 0.12) - 0.5 * blob(SIDE, 0.2, 0.1)])
    one = torch.outer(blob(SIDE, -0.1, 0.1), blob(SIDE, 0.2, 0.15))
    other = torch.outer(blob(SIDE, 0.2, 0.12), blob(SIDE, -0.15, 0.1))
    return torch.stack([one, other, one - other]).repeat(2, 1, 1, 1) * torch.tensor([1.0, 0.5])[:, None, None, None]


def some(group: MatrixGroup, count: int = 8) -> Tensor:
    return group.exp(0.2 * torch.rand(count, group.coefficients) - 0.1)


def check_action(group: MatrixGroup) -> None:
    x, tolerance = smooth(group), TOLERANCE[next(c for c in TOLERANCE if isinstance(group, c))]
    g, h = some(group)[:, None], some(group)[:, None]
    twice = group.act(g, group.act(h, x))
    once = group.act(group.compose(g, h), x)
    assert once.shape == (8, *x.shape), "a batch of elements broadcasts against a batch of inputs"
    assert float((once - x).abs().max()) > 10 * tolerance, "something moves"
    assert torch.allclose(once, twice, rtol=0, atol=tolerance), "(g h).x = g.(h.x)"
    assert torch.allclose(group.act(group.inverse(g), group.act(g, x)), x.expand_as(once), rtol=0, atol=tolerance)
    assert torch.allclose(group.act(group.identity(), x), x, rtol=0, atol=1e-12), "e.x = x"


def matrix(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


# What exp(c G) is, at c = 0.7.
C, E, COS, SIN = 0.7, math.exp(0.7), math.cos(0.7), math.sin(0.7)
MEAN = torch.full((3, 3), 1 / 3)
CLOSED = {
    (Affine, "rows"): matrix([1, 0, 0], [0, 1, C], [0, 0, 1]),
    (Affine, "columns"): matrix([1, 0, C], [0, 1, 0], [0, 0, 1]),
    (Affine, "rotation"): matrix([COS, SIN, 0], [-SIN, COS, 0], [0, 0, 1]),
    (Affine, "scale"): matrix([E, 0, 0], [0, E, 0], [0, 0, 1]),
    (Affine, "aspect"): matrix([E, 0, 0], [0, 1 / E, 0], [0, 0, 1]),
    (Affine, "shear"): matrix([1, -C, 0], [0, 1, 0], [0, 0, 1]),
    (Colour, "brightness"): matrix([1, 0, 0, C], [0, 1, 0, C], [0, 0, 1, C], [0, 0, 0, 1]),
    (Colour, "contrast"): matrix([E, 0, 0, (1 - E) / 2], [0, E, 0, (1 - E) / 2], [0, 0, E, (1 - E) / 2], [0, 0, 0, 1]),
    (Colour, "saturation"): torch.block_diag(MEAN + E * (torch.eye(3) - MEAN), torch.ones(1, 1)),
    (Colour, "hue"): torch.block_diag(  # Rodrigues' formula
        MEAN + COS * (torch.eye(3) - MEAN) + SIN / 3**0.5 * matrix([0, -1, 1], [1, 0, -1], [-1, 1, 0]),
        torch.ones(1, 1),
    ),
    (Line, "shift"): matrix([1, C], [0, 1]),
    (Line, "stretch"): matrix([E, 0], [0, 1]),
}


def check_closed_form(group: MatrixGroup) -> None:
    for name in group.generators:
        expected = next(value for (cls, known), value in CLOSED.items() if isinstance(group, cls) and known == name)
        element = group.exp(torch.tensor([C * (other == name) for other in group.generators]))
        assert torch.allclose(element, expected.to(element), rtol=0, atol=1e-7), name


# (coefficient, place of a single pixel, place where it goes), (row, column) or (time,)
MOVES = {
    "rows": (2 / 11, (5, 5), (6, 5)),
    "columns": (2 / 11, (5, 5), (5, 6)),
    "rotation": (math.pi / 2, (5, 8), (2, 5)),
    "scale": (math.log(2), (4, 7), (3, 9)),
    "aspect": (math.log(2), (3, 7), (4, 9)),
    "shear": (1.0, (3, 5), (3, 7)),
    "shift": (2 / 11, (5,), (6,)),
    "stretch": (math.log(2), (4,), (3,)),
}


def check_direction(group: MatrixGroup) -> None:
    for name in group.generators:
        coefficient, before, after = MOVES[name]
        x = torch.zeros((11,) * len(before))
        x[before] = 1
        element = group.exp(torch.tensor([coefficient * (other == name) for other in group.generators]))
        moved = group.act(element, x if group.event_dim == 1 else x[None])
        moved = moved if group.event_dim == 1 else moved[0]
        places = torch.cartesian_prod(*[torch.arange(11.0)] * len(before)).reshape(-1, len(before))
        centre = (moved.reshape(-1, 1) * places).sum(0) / moved.sum()
        assert torch.allclose(centre, torch.tensor(after, dtype=centre.dtype), rtol=0, atol=1e-9), name


@pytest.mark.parametrize("group", GROUPS, ids=repr)
@pytest.mark.parametrize("check", [check_action, check_closed_form])
def test_group(check, group: MatrixGroup):
    check(group)


@pytest.mark.parametrize("group", [Affine(), Line()], ids=repr)
def test_content_moves_as_the_generator_says(group: MatrixGroup):
    check_direction(group)


class WrongOrder(Affine):
    def compose(self, g, h):
        return h @ g


class ReadsForwards(Affine):
    def act(self, g, x):
        return super().act(self.inverse(g), x)


class Backwards(Line):
    def act(self, g, x):
        return super().act(self.inverse(g), x)


class WrongShear(Affine):
    known = Affine.known | {"shear": -Affine.known["shear"]}


class Transposed(Affine):
    def exp(self, coefficients):
        return super().exp(coefficients).mT


class Clamped(Colour):
    def act(self, g, x):
        return super().act(g, x).clamp(0, 1)


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        (check_action, WrongOrder()),
        (check_action, ReadsForwards()),
        (check_action, Clamped()),
        (check_closed_form, WrongShear()),
        (check_closed_form, Transposed()),
        (check_direction, WrongShear()),
        (check_direction, ReadsForwards()),
        (check_direction, Backwards()),
    ],
)
def test_mutant_fails(check, mutant: MatrixGroup):
    with pytest.raises(AssertionError):
        check(mutant)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_one_parameter_subgroups(group: MatrixGroup):
    c = torch.randn(5, group.coefficients)
    s, t = torch.randn(2, 5, 1)
    assert torch.allclose(group.compose(group.exp(s * c), group.exp(t * c)), group.exp((s + t) * c))
    assert torch.allclose(group.inverse(group.exp(c)), group.exp(-c))
    assert torch.equal(group.exp(0 * c), group.identity().expand(5, *group.element_shape))
    trace = sum(c[:, i] * g.diagonal().sum() for i, g in enumerate(group.generators.values()))
    assert torch.allclose(torch.linalg.det(group.exp(c)), trace.exp())


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_gradients_match_finite_differences(group: MatrixGroup):
    c = (0.3 * torch.randn(2, group.coefficients)).requires_grad_()
    x = torch.randn(2, 3, 5, 6, requires_grad=True) if group.event_dim == 3 else torch.randn(2, 7, requires_grad=True)
    assert gradcheck(group.exp, c)
    assert gradcheck(group.move, (c, x))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(lambda c: group.move(1.1 * c.detach() + 0 * c, x.detach()), c)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_elements_broadcast_against_inputs(group: MatrixGroup):
    g, x = some(group, 6).unflatten(0, (3, 2)), smooth(group)
    together = group.act(g, x)
    assert together.shape == (3, 2, *x.shape[1:])
    views = group.move(torch.zeros(4, group.coefficients), x)
    assert views.shape == (2, 4, *x.shape[1:])
    assert torch.allclose(views, x[:, None].expand_as(views), rtol=0, atol=1e-12)
    for i in range(3):
        for j in range(2):
            assert torch.allclose(together[i, j], group.act(g[i, j], x[j]), rtol=0, atol=1e-12)
    assert torch.allclose(group.act(g[:, :1], x[:1]), group.act(g[:, 0], x[0])[:, None], rtol=0, atol=1e-12)
    assert group.act(g, x.float()).dtype == torch.float32


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (6, 9)])
def test_rotation_is_that_of_the_plane(height: int, width: int):
    x, angle = torch.randn(3, 2, height, width), torch.tensor([0.3, -1.2, 2.5])
    group = Affine(("rotation",))
    elements = group.exp(angle[:, None])
    assert torch.allclose(group.act(elements, x), SO2().act(angle, x), rtol=0, atol=1e-12)
    assert torch.allclose(group.act(elements, x[:, None]), SO2().act(angle, x[:, None]), rtol=0, atol=1e-12)
    quarter = group.act(group.exp(torch.tensor([math.pi / 2])), x)
    assert height != width or torch.allclose(quarter, x.rot90(1, (-2, -1)), rtol=0, atol=1e-12)


def test_whole_pixels_are_shifts_in_a_margin():
    x = Pixels(margin=3)(torch.randn(2, 3, 5, 7))
    height, width = x.shape[-2:]
    offset = torch.cartesian_prod(torch.arange(-3, 4), torch.arange(-3, 4))
    moved = Affine(("rows", "columns")).move(2 * offset / torch.tensor([height, width]), x)
    assert torch.allclose(moved, GridTranslation((height, width)).act(offset, x[:, None]), rtol=0, atol=1e-12)


def test_read_places_may_differ_between_images():
    x, angle = torch.randn(3, 2, 6, 6), torch.randn(4, 3)
    turned = Pixels().rotate(x, angle)
    for i, row in enumerate(angle):
        for j, a in enumerate(row):
            assert torch.allclose(turned[i, j], Pixels().rotate(x[j], a), rtol=0, atol=1e-12)


def test_grey_has_no_hue_and_no_saturation():
    grey = torch.rand(2, 1, 4, 5).expand(2, 3, 4, 5)
    coefficients = torch.randn(6, 2)
    views = Colour(("saturation", "hue")).move(coefficients, grey)
    assert torch.allclose(views, grey[:, None].expand_as(views), rtol=0, atol=1e-12)
    coloured = Colour(("contrast", "hue")).move(coefficients, grey)
    assert float((coloured - grey[:, None]).abs().max()) > 0.1


def test_a_third_of_a_turn_makes_red_green():
    x = torch.rand(2, 3, 4, 4)
    turned = Colour(("hue",)).move(torch.tensor([[2 * math.pi / 3]]), x)[:, 0]
    assert torch.allclose(turned, x.roll(1, 1), rtol=0, atol=1e-12)


def test_one_channel_is_grey():
    group, x, coefficients = Colour(("brightness", "contrast")), torch.rand(2, 1, 4, 4), torch.randn(5, 2)
    views = group.move(coefficients, x)
    assert views.shape == (2, 5, 1, 4, 4)
    three = group.move(coefficients, x.expand(-1, 3, -1, -1))
    assert torch.allclose(views.expand_as(three), three, rtol=0, atol=1e-12)


def test_series_go_on_beyond_their_ends():
    x = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    moved = Line().move(torch.tensor([[0.5, 0.0], [-1.0, 0.0], [9.0, 0.0]]), x)[0]
    assert moved.tolist() == [[1.0, 1.0, 2.0, 4.0], [4.0, 8.0, 8.0, 8.0], [1.0, 1.0, 1.0, 1.0]]
    assert torch.equal(Line().move(torch.tensor([[0.3, -0.2]]), x[:, :1])[0], x[:, :1])


def test_bad_input_is_named():
    with pytest.raises(BadInput, match=r"names: got \['turn'\]; some of rows, columns, rotation"):
        Affine(("turn",))
    for names in ((), ("scale", "scale")):
        with pytest.raises(BadInput, match="names"):
            Affine(names)
    with pytest.raises(BadInput, match=r"coefficients: got 1; Affine\(rotation, scale\) takes 2"):
        Affine(("rotation", "scale")).exp(torch.zeros(3, 1))
    with pytest.raises(BadInput, match=r"sample: Line.* no Haar distribution, .*; use a density over coefficients"):
        Line().sample([3])
    with pytest.raises(BadInput, match="continuous"):
        Affine().elements()
    for channels, group in ((1, Colour()), (1, Colour(("hue",))), (2, Colour(("contrast",)))):
        with pytest.raises(BadInput, match=rf"x: got {channels} channel"):
            group.act(group.identity(), torch.zeros(1, channels, 4, 4))
