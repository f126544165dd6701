r"""Matrix groups: augmentations as elements :math:`\exp(\sum_i c_i G_i)` made from learned coefficients.

An element is a square matrix in homogeneous coordinates; a named generator says what one coefficient does, in the
unit of its docstring [benton2020learning].  Coefficients are those of one exponential, not of a chain of steps:
generators that do not commute act at the same time.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pyro_invariance.groups import Group
from pyro_invariance.representations import Pixels, centres, interpolate
from pyro_invariance.typing import BadInput, Elements, Images, Views


class MatrixGroup(Group):
    """A group of invertible matrices `[*S, D, D]` that acts on images or series.

    Parameters
    ----------
    names : sequence of str, optional
        Which of the generators the coefficients are of; all by default.

    Attributes
    ----------
    generators : dict of str to Tensor
        Generators `[D, D]` of the Lie algebra by name, in the order of the coefficients.
    """

    known: ClassVar[dict[str, Tensor]]

    def __init__(self, names: Sequence[str] | None = None) -> None:
        super().__init__()
        names = list(self.known) if names is None else list(names)
        if not names or len(set(names)) < len(names) or not set(names) <= set(self.known):
            raise BadInput(f"names: got {names}; some of {', '.join(self.known)} are accepted, each once")
        self.generators = {name: self.known[name] for name in names}
        self.element_shape = self.generators[names[0]].shape

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.generators)})"

    @property
    def coefficients(self) -> int:
        """Number of coefficients, G."""
        return len(self.generators)

    @property
    def extents(self) -> tuple[str, ...]:
        """Names of the ranges that can be learned: one of each coefficient."""
        return tuple(self.generators)

    def exp(self, coefficients: Tensor) -> Elements:
        r"""Return :math:`\exp(\sum_i c_i G_i)`, `[*S, D, D]`, of coefficients `[*S, G]`."""
        if coefficients.shape[-1] != self.coefficients:
            raise BadInput(f"coefficients: got {coefficients.shape[-1]}; {self!r} takes {self.coefficients}")
        basis = torch.stack(list(self.generators.values())).to(coefficients)
        return torch.matrix_exp(torch.tensordot(coefficients, basis, 1))

    def identity(self) -> Elements:
        return torch.eye(self.element_shape[0])

    def compose(self, g: Elements, h: Elements) -> Elements:
        return g @ h

    def inverse(self, g: Elements) -> Elements:
        return torch.linalg.inv(g)

    def move(self, coefficients: Tensor, x: Tensor) -> Views:
        """Views `[N, V, *event]` of `x` `[N, *event]` under the elements with coefficients `[V, G]` or `[N, V, G]`."""
        return self.act(self.exp(coefficients), x[:, None])

    def sample(self, shape: Sequence[int] = ()) -> Elements:
        raise BadInput(f"sample: {self!r} has no Haar distribution, not being compact; use a density over coefficients")


def _matrix(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


class Affine(MatrixGroup):
    r"""Affine maps of the image plane; they move the content: what was at a place :math:`p` is then at :math:`g p`.

    A place is (column, row, 1) on the grid [-1, 1], rows run downwards.  Images `[*B, C, H, W]` are read bilinearly,
    zero outside, so that two actions are the action of the product up to a second blur.

    - `rows`, `columns`: content moves down, to the right; the side of the image is 2
    - `rotation`: radians, counter-clockwise, as in `SO2`
    - `scale`: log; width and height grow by :math:`e^c`
    - `aspect`: log; the width grows by :math:`e^c`, the height by :math:`e^{-c}`
    - `shear`: content moves to the right by `c` times its height above the middle, as in italics
    """

    known: ClassVar[dict[str, Tensor]] = {
        "rows": _matrix([0, 0, 0], [0, 0, 1], [0, 0, 0]),
        "columns": _matrix([0, 0, 1], [0, 0, 0], [0, 0, 0]),
        "rotation": _matrix([0, 1, 0], [-1, 0, 0], [0, 0, 0]),
        "scale": _matrix([1, 0, 0], [0, 1, 0], [0, 0, 0]),
        "aspect": _matrix([1, 0, 0], [0, -1, 0], [0, 0, 0]),
        "shear": _matrix([0, -1, 0], [0, 0, 0], [0, 0, 0]),
    }

    def act(self, g: Elements, x: Images) -> Images:
        return Pixels().affine(x, self.inverse(g)[..., :2, :])  # what stands at p came from g^-1 p


# Orthonormal axes of the plane of colours, which is orthogonal to grey; red lies on the first.
_RED = _matrix([2, -1, -1])[0] / 6**0.5
_GREEN_BLUE = _matrix([0, 1, -1])[0] / 2**0.5


def _colour(linear: Tensor, offset: float) -> Tensor:
    r"""The generator of :math:`x \mapsto A x + b`, with the same `b` for all three channels, `[4, 4]`."""
    matrix = linear.new_zeros(4, 4)
    matrix[:3, :3], matrix[:3, 3] = linear, offset
    return matrix


class Colour(MatrixGroup):
    r"""Affine maps of the colour (red, green, blue, 1) of each pixel, channels in [0, 1].

    Images are `[*B, 3, H, W]`, or `[*B, 1, H, W]` for brightness and contrast alone.  Nothing is clamped: colours that
    are clamped once do not come back, which no element of a group may do.

    - `brightness`: added to every channel
    - `contrast`: log; differences from mid-grey, 0.5, grow by :math:`e^c`
    - `saturation`: log; differences between channels grow by :math:`e^c`
    - `hue`: radians, a turn about the grey axis from red to green to blue
    """

    known: ClassVar[dict[str, Tensor]] = {
        "brightness": _colour(torch.zeros(3, 3, dtype=torch.float64), 1.0),
        "contrast": _colour(torch.eye(3, dtype=torch.float64), -0.5),
        "saturation": _colour(torch.outer(_RED, _RED) + torch.outer(_GREEN_BLUE, _GREEN_BLUE), 0.0),
        "hue": _colour(torch.outer(_GREEN_BLUE, _RED) - torch.outer(_RED, _GREEN_BLUE), 0.0),
    }

    def act(self, g: Elements, x: Images) -> Images:
        channels = x.shape[-3]
        if channels not in (1, 3) or (channels == 1 and {"saturation", "hue"} & set(self.generators)):
            raise BadInput(
                f'x: got {channels} channel(s); {self!r} takes 3, Colour(("brightness", "contrast")) also takes 1'
            )
        linear, offset = g[..., :3, :3].to(x), g[..., :3, 3:].to(x)
        if channels == 1:  # a grey image has three equal channels
            linear, offset = linear[..., :1, :].sum(-1, keepdim=True), offset[..., :1, :]
        moved = torch.einsum("...ij,...jp->...ip", linear, x.flatten(-2))  # unlike matmul, copies no image for each g
        return moved.add_(offset).unflatten(-1, x.shape[-2:])


class Line(MatrixGroup):
    r"""Affine maps of time, which move the content of series `[*B, T]`: what was at `t` is then at `g t`.

    A time is (t, 1) on the grid [-1, 1].  Series are read linearly and go on beyond their ends.

    - `shift`: content moves to the right, that is later; the length of the series is 2
    - `stretch`: log; distances from the middle grow by :math:`e^c`, so that everything takes longer
    """

    event_dim = 1
    known: ClassVar[dict[str, Tensor]] = {
        "shift": _matrix([0, 1], [0, 0]),
        "stretch": _matrix([1, 0], [0, 0]),
    }

    def act(self, g: Elements, x: Tensor) -> Tensor:
        slope, offset = (self.inverse(g) - self.identity().to(g))[..., :1, :].to(x).unbind(-1)  # [*S, 1] each
        return interpolate(x, slope * centres(x.shape[-1], x) + offset)
