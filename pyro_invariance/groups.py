"""Groups of transformations of the plane, as objects: identity, compose, inverse, act, sample.

Elements are tensors: an integer for finite groups, radians for SO(2), `(radians, reflected)` for O(2), whole pixels
for translations.  `act` works on any representation that offers the transformation, and broadcasts a batch of
elements `[*S, *element]` against a batch of images `[*B, C, H, W]`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_invariance.representations import Pixels, Polar
from pyro_invariance.typing import BadInput, Elements, Images

Representation = Pixels | Polar


class Group(ABC):
    """A group acting on images or series.

    Attributes
    ----------
    order : int or None
        Number of elements; None for a continuous group.
    element_shape : tuple of int
        Shape of one element.
    event_dim : int
        Number of dimensions of one input: 3 for an image `[C, H, W]`, 1 for a series `[T]`.
    """

    order: int | None = None
    element_shape: tuple[int, ...] = ()
    event_dim: int = 3

    def __init__(self, on: Representation | None = None) -> None:
        self.on: Representation = on if on is not None else Pixels()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(on={self.on})"

    def identity(self) -> Elements:
        """Return the neutral element."""
        return torch.zeros(self.element_shape, dtype=torch.long if self.order else None)

    @abstractmethod
    def compose(self, g: Elements, h: Elements) -> Elements:
        """Return `g h`: first `h`, then `g`."""

    @abstractmethod
    def inverse(self, g: Elements) -> Elements:
        """Return the element that undoes `g`."""

    @abstractmethod
    def act(self, g: Elements, x: Images) -> Images:
        """Return `g.x`, shape `broadcast(S, B) + event` for `g` `[*S, *element]` and `x` `[*B, *event]`."""

    def elements(self) -> Elements:
        """All elements `[order, *element]` of a finite group, the identity first."""
        if self.order is None:
            raise BadInput(f"elements(): {self!r} is continuous and cannot be listed; use sample or quadrature")
        return torch.arange(self.order)

    def sample(self, shape: Sequence[int] = ()) -> Elements:
        """Draw from the Haar measure, `[*shape, *element]`."""
        assert self.order is not None
        return torch.randint(self.order, tuple(shape))


class Trivial(Group):
    """The group of one element, which leaves everything as it is."""

    order = 1

    def compose(self, g: Elements, h: Elements) -> Elements:
        return g + h

    def inverse(self, g: Elements) -> Elements:
        return g

    def act(self, g: Elements, x: Images) -> Images:
        return x.expand(*torch.broadcast_shapes(g.shape, x.shape[:-3]), *x.shape[-3:])


class Cyclic(Group):
    """C_n: turns by multiples of 360/n degrees; element `k` is the turn by `2 pi k / n`, counter-clockwise."""

    def __init__(self, n: int, on: Representation | None = None) -> None:
        super().__init__(on)
        if n < 1:
            raise BadInput(f"n: got {n}, a cyclic group has order 1 or more")
        self.order: int = n

    def compose(self, g: Elements, h: Elements) -> Elements:
        return (g + h) % self.order

    def inverse(self, g: Elements) -> Elements:
        return -g % self.order

    def act(self, g: Elements, x: Images) -> Images:
        return self.on.rotate(x, g.to(x.dtype) * (2 * math.pi / self.order))


class Dihedral(Group):
    """D_n of order 2n: element `k + n m` is the reflection (if `m = 1`), then the turn by `2 pi k / n`."""

    def __init__(self, n: int, on: Representation | None = None) -> None:
        super().__init__(on)
        if n < 1:
            raise BadInput(f"n: got {n}, a dihedral group has n = 1 or more")
        self.n = n
        self.order: int = 2 * n

    def _split(self, g: Elements) -> tuple[Tensor, Tensor]:
        return g % self.n, g // self.n

    def compose(self, g: Elements, h: Elements) -> Elements:
        (a, m), (b, k) = self._split(g), self._split(h)
        return (a + torch.where(m == 1, -b, b)) % self.n + self.n * ((m + k) % 2)

    def inverse(self, g: Elements) -> Elements:
        a, m = self._split(g)
        return torch.where(m == 1, a, -a % self.n) + self.n * m

    def act(self, g: Elements, x: Images) -> Images:
        turn, reflected = self._split(g)
        flipped = torch.where(reflected[..., None, None, None] == 1, self.on.mirror(x), x)
        return self.on.rotate(flipped, turn.to(x.dtype) * (2 * math.pi / self.n))


class Mirror(Dihedral):
    """The group of the identity and one reflection, D_1."""

    def __init__(self, on: Representation | None = None) -> None:
        super().__init__(1, on)

    def act(self, g: Elements, x: Images) -> Images:
        return torch.where(g[..., None, None, None] == 1, self.on.mirror(x), x)  # exact: nothing is turned


class GridTranslation(Group):
    """Translations by whole pixels `(rows, columns)` of an `h` x `w` torus; pad the pixels so that nothing wraps."""

    element_shape = (2,)

    def __init__(self, shape: tuple[int, int], on: Pixels | None = None) -> None:
        super().__init__(on)
        self.shape = torch.as_tensor(shape)
        self.order: int = int(shape[0] * shape[1])

    def compose(self, g: Elements, h: Elements) -> Elements:
        return (g + h) % self.shape

    def inverse(self, g: Elements) -> Elements:
        return -g % self.shape

    def act(self, g: Elements, x: Images) -> Images:
        assert isinstance(self.on, Pixels)
        return self.on.shift(x, g)

    def elements(self) -> Elements:
        h, w = self.shape.tolist()
        return torch.cartesian_prod(torch.arange(h), torch.arange(w))

    def sample(self, shape: Sequence[int] = ()) -> Elements:
        return torch.stack([torch.randint(int(n), tuple(shape)) for n in self.shape], -1)


def wrap(angle: Tensor) -> Tensor:
    """Bring an angle (radians) into `[-pi, pi)`."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


class SO2(Group):
    """Rotations of the plane; an element is an angle in radians, counter-clockwise."""

    def compose(self, g: Elements, h: Elements) -> Elements:
        return wrap(g + h)

    def inverse(self, g: Elements) -> Elements:
        return wrap(-g)

    def act(self, g: Elements, x: Images) -> Images:
        return self.on.rotate(x, g)

    def sample(self, shape: Sequence[int] = ()) -> Elements:
        return (2 * torch.rand(tuple(shape)) - 1) * math.pi


class O2(Group):
    """Rotations and reflections of the plane; an element is `(radians, m)`: the reflection if `m = 1`, then a turn."""

    element_shape = (2,)

    def compose(self, g: Elements, h: Elements) -> Elements:
        sign = 1 - 2 * g[..., 1]
        return torch.stack([wrap(g[..., 0] + sign * h[..., 0]), (g[..., 1] + h[..., 1]) % 2], -1)

    def inverse(self, g: Elements) -> Elements:
        sign = 1 - 2 * g[..., 1]
        return torch.stack([wrap(-sign * g[..., 0]), g[..., 1]], -1)

    def act(self, g: Elements, x: Images) -> Images:
        flipped = torch.where(g[..., 1, None, None, None] == 1, self.on.mirror(x), x)
        return self.on.rotate(flipped, g[..., 0])

    def sample(self, shape: Sequence[int] = ()) -> Elements:
        angle = (2 * torch.rand(tuple(shape)) - 1) * math.pi
        return torch.stack([angle, torch.randint(2, tuple(shape)).to(angle)], -1)
