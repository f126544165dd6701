"""Images on a torus: shifts and turns against images that are drawn moved, orthogonal by any amount."""

import math

import pytest
import torch
from torch import Tensor

from pyro_invariance.representations import Torus

TORUS, SIDE = Torus(), 15


def drawn(angle: float = 0.0, down: float = 0.0, right: float = 0.0, side: int = SIDE) -> Tensor:
    """Two blobs, turned counter-clockwise and then shifted."""
    grid = (2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1
    image = torch.zeros(side, side, dtype=torch.float64)
    for height, x, y in ((1.0, 0.3, 0.2), (0.5, -0.3, -0.1)):
        column = math.cos(angle) * x - math.sin(angle) * y + right
        row = -(math.sin(angle) * x + math.cos(angle) * y) + down
        image += height * (-((grid[:, None] - row).square() + (grid - column).square()) / 0.08).exp()
    return image


@pytest.mark.parametrize("angle", [0.0, 0.3, 0.8, 1.5, 2.2, 3.1, -2.9, -0.7, 4.0])
@pytest.mark.parametrize(("down", "right"), [(0.0, 0.0), (0.1, -0.11)])
def test_a_moved_image_is_the_image_drawn_moved(angle, down, right, float64):
    found = TORUS.move(drawn(), torch.tensor(angle), torch.tensor(down), torch.tensor(right))
    torch.testing.assert_close(found, drawn(angle, down, right), rtol=0, atol=0.02)


@pytest.mark.parametrize("axes", [("rotation",), ("rows",), ("columns",), ("rotation", "rows", "columns")])
def test_every_move_is_orthogonal(axes, float64):
    units = torch.eye(49).view(49, 7, 7)
    for _ in range(5):
        matrix = TORUS.move(units, **{axis: 8 * torch.rand(()) - 4 for axis in axes}).flatten(1)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(49), rtol=0, atol=1e-12)


def test_quarter_turns_and_whole_pixels_are_exact(float64):
    x = torch.randn(3, SIDE, SIDE)
    for k in range(-3, 4):
        turned = TORUS.move(x, torch.tensor(k * math.pi / 2))
        torch.testing.assert_close(turned, x.rot90(k, (-2, -1)), rtol=0, atol=1e-12)
    shifted = TORUS.move(x, None, torch.tensor(4 / SIDE), torch.tensor(-2 / SIDE))
    torch.testing.assert_close(shifted, x.roll((2, -1), (-2, -1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("height", "width", "side"), [(8, 8, 9), (9, 9, 9), (15, 15, 15), (16, 16, 17), (28, 28, 15), (10, 6, 11)]
)
def test_images_of_any_size_are_odd_squares(height, width, side, float64):
    images = 3 + torch.nn.functional.pad(torch.ones(2, 3, height - 2, width - 2), [1] * 4)
    x = TORUS(images)
    assert x.shape == (2, side, side)
    if max(height, width) <= 16:
        assert float(x[0].sum()) == pytest.approx((height - 2) * (width - 2))


@pytest.mark.parametrize("side", [8, 9, 14, 15, 16, 17, 28, 30, 31])
def test_the_middle_of_an_image_is_what_turns_are_about(side, float64):
    image = drawn(side=side)
    x, turned = TORUS(image[None]), TORUS(image.rot90(1, (-2, -1))[None])
    torch.testing.assert_close(TORUS.move(x, torch.tensor(math.pi / 2)), turned, rtol=0, atol=0.01)


@pytest.mark.parametrize(("height", "width"), [(16, 12), (14, 14), (28, 20)])
def test_shares_say_how_far_an_image_reaches(height, width, float64):
    """A shift by part of the image is by that part of its share of the square."""
    image = torch.zeros(height, width)
    image[4:12, 2:10] = drawn(side=8)
    down, right = TORUS.share(image[None])
    x, rolled = TORUS(image[None]), TORUS(image.roll((2, -2), (-2, -1))[None])
    found = TORUS.move(x, None, torch.tensor(4 / height * down), torch.tensor(-4 / width * right))
    torch.testing.assert_close(found, rolled, rtol=0, atol=0.02)
