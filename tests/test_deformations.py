"""Deformations follow their formula, move content as they say, and leave everything where coefficients are zero."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from pyro_invariance.deformations import Deformation, Elastic, Warp
from pyro_invariance.matrix_groups import Affine
from pyro_invariance.representations import centres
from pyro_invariance.typing import BadInput

FREQUENCIES = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)]  # the lowest, k^2 + l^2
DEFORMATIONS = [Elastic(), Elastic(1), Warp(), Warp(1)]


def places(height: int, width: int) -> Tensor:
    """The image whose two channels are the row and the column of each pixel, on [-1, 1], `[1, 2, H, W]`."""
    like = torch.ones(())
    return torch.stack(torch.meshgrid(centres(height, like), centres(width, like), indexing="ij"))[None]


def check_unchanged(deformation: Deformation | Affine) -> None:
    """Zero coefficients change nothing, to the last bit, at sizes whose pixels are no binary fractions."""
    for dtype in (torch.float32, torch.float64):
        for side in (7, 29, 49):
            x = torch.randn((2, 3, side, side + 2)[: 1 + deformation.event_dim], dtype=dtype)
            views = deformation.move(torch.zeros(4, deformation.coefficients), x)
            assert views.dtype == dtype
            assert torch.equal(views, x[:, None].expand_as(views))


def check_elastic(deformation: Elastic) -> None:
    """Ramps are read without error, so that they show the place that each pixel came from."""
    x, coefficients = places(40, 50), 0.03 * torch.randn(3, deformation.coefficients)
    down, right = coefficients[:, : deformation.modes], coefficients[:, deformation.modes :]
    r, c = x[0]
    waves = [torch.cos(math.pi * k * (r + 1) / 2) * torch.cos(math.pi * m * (c + 1) / 2) for k, m in FREQUENCIES]
    waves = torch.stack(waves[: deformation.modes])
    expected = x - torch.stack([torch.einsum("vm,mhw->vhw", a, waves) for a in (down, right)], 1)
    middle = (..., slice(10, 30), slice(12, 38))  # nothing comes from outside
    assert torch.allclose(deformation.move(coefficients, x)[0][middle], expected[middle], rtol=0, atol=1e-12)


def check_warp(deformation: Warp) -> None:
    """The ramp shows the time that each sample came from: the speed, summed up finely."""
    c, steps = 0.5 * torch.randn(3, deformation.coefficients), 400
    time = centres(200 * steps, c)
    speed = torch.exp(-sum(a[:, None] * torch.cos(math.pi * k * (time + 1) / 2) for k, a in enumerate(c.T, 1)))
    passed = speed.cumsum(-1)
    expected = (2 * passed / passed[:, -1:] - 1)[:, steps // 2 - 1 :: steps]
    source = deformation.move(c, centres(200, c)[None])[0]
    last = 1 - 1 / 200  # beyond the middle of the last sample the series goes on
    assert torch.allclose(source, expected.clamp(-last, last), rtol=0, atol=1e-3)


def check_monotone(deformation: Warp) -> None:
    c = 2 * torch.randn(50, deformation.coefficients)
    source = deformation.move(c, centres(100, c)[None])[0]
    assert bool((source.diff() >= 0).all()), "what came first is first"
    assert float(source.abs().max()) <= 1


def check_direction(deformation: Deformation) -> None:
    """With a positive coefficient content moves down, to the right, or later."""
    if isinstance(deformation, Warp):
        x = (centres(101, torch.ones(())).abs() < 0.1).double()[None]
        later = deformation.move(torch.eye(deformation.coefficients)[:1], x)
        assert float((later[0, 0] * torch.arange(101)).sum() / later.sum()) > 55
        return
    x = torch.zeros(1, 1, 21, 21)
    x[..., 2, 2] = 1  # where all cosines are positive
    down, right = deformation.move(0.1 * torch.eye(deformation.coefficients)[[0, -deformation.modes]], x)[0, :, 0]
    assert float(down[3:].sum()) > 0.9
    assert float(down[:, 2].sum()) == pytest.approx(float(down.sum()))
    assert float(right[:, 3:].sum()) > 0.9
    assert float(right[2].sum()) == pytest.approx(float(right.sum()))


@pytest.mark.parametrize("deformation", DEFORMATIONS, ids=repr)
@pytest.mark.parametrize("check", [check_unchanged, check_direction])
def test_deformation(check, deformation: Deformation):
    check(deformation)


@pytest.mark.parametrize("modes", [1, 3, 5, 8])
def test_formulas(modes: int):
    check_elastic(Elastic(modes))
    check_warp(Warp(modes))
    check_monotone(Warp(modes))


class AxesExchanged(Elastic):
    def move(self, coefficients, x):
        return super().move(coefficients.roll(self.modes, -1), x)


class Backwards(Elastic):
    def move(self, coefficients, x):
        return super().move(-coefficients, x)


class Early(Warp):
    def move(self, coefficients, x):
        return super().move(-coefficients, x)


class Additive(Warp):
    def move(self, coefficients, x):  # a displacement, not a speed
        return x[:, None] + 0.5 * torch.cos(math.pi * torch.arange(x.shape[-1]) * coefficients.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        (check_unchanged, Affine()),  # reads with rounding
        (check_elastic, AxesExchanged()),
        (check_elastic, Backwards()),
        (check_direction, AxesExchanged()),
        (check_direction, Backwards()),
        (check_direction, Early()),
        (check_warp, Early()),
        (check_monotone, Additive()),
    ],
)
def test_mutant_fails(check, mutant):
    with pytest.raises(AssertionError):
        check(mutant)


def test_one_coefficient_for_each_mode_and_axis():
    assert [d.coefficients for d in DEFORMATIONS] == [10, 2, 3, 1]


def test_below_the_bound_nothing_folds():
    deformation = Elastic()
    slope = math.pi / 2 * torch.tensor([sum(kl) for kl in deformation.frequencies]).repeat(2)
    c = torch.randn(200, deformation.coefficients)
    bound = (c.abs() * slope).sum(1, keepdim=True)

    def least_area(c: Tensor) -> Tensor:
        """Smallest oriented area of a pixel's source, as a share of its own, in the middle."""
        source = deformation.move(c, places(60, 60))[0, ..., 20:40, 20:40]
        rows, columns = source.diff(dim=-2)[..., :-1] * 30, source.diff(dim=-1)[..., :-1, :] * 30
        return (rows[:, 0] * columns[:, 1] - rows[:, 1] * columns[:, 0]).flatten(1).min(1).values

    assert float(least_area(0.9 * c / bound).min()) > 0
    assert float(least_area(3 * c / bound).min()) < 0


@pytest.mark.parametrize("deformation", DEFORMATIONS, ids=repr)
def test_gradients_match_finite_differences(deformation: Deformation):
    c = (0.1 * torch.randn(2, deformation.coefficients)).requires_grad_()
    x = torch.randn((2, 1, 5, 6)[: 1 + deformation.event_dim], requires_grad=True)
    assert gradcheck(deformation.move, (c, x))


def test_bad_input_is_named():
    for kind in (Elastic, Warp):
        with pytest.raises(BadInput, match="modes: got 0, a deformation has 1 or more"):
            kind(0)
