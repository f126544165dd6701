r"""Deformations: smooth changes of images and of series that form no group, but have a range.

They are made from the cosine modes of lowest frequency, and change nothing, to the last bit, where all coefficients
are zero.  One extent, the amplitude, is the range of every coefficient.
"""

import itertools
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_invariance.representations import Pixels, centres, cosines, interpolate
from pyro_invariance.typing import BadInput, Images, Views


class Deformation(ABC):
    """A smooth change made from modes.

    Parameters
    ----------
    modes : int
        Number of cosine modes.

    Attributes
    ----------
    coefficients : int
        Number of coefficients, G.
    extents : tuple of str
        Names of the ranges that can be learned.
    event_dim : int
        Number of dimensions of one input: 3 for an image `[C, H, W]`, 1 for a series `[T]`.
    """

    coefficients: int
    extents = ("amplitude",)
    event_dim: int

    def __init__(self, modes: int = 5) -> None:
        if modes < 1:
            raise BadInput(f"modes: got {modes}, a deformation has 1 or more")
        self.modes = modes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.modes})"

    @abstractmethod
    def move(self, coefficients: Tensor, x: Tensor) -> Views:
        """Views `[N, V, *event]` of `x` `[N, *event]` under coefficients `[V, G]` or `[N, V, G]`."""


class Elastic(Deformation):
    r"""Elastic maps of the image plane: the content at place :math:`p` comes from :math:`p - d(p)`.

    .. math:: d_a(r, c) = \sum_{m=1}^M a_m \cos\frac{\pi k_m (r + 1)}{2} \cos\frac{\pi l_m (c + 1)}{2}

    for the axes `a` = rows, columns; the modes are those with the smallest :math:`k^2 + l^2 > 0`.  The coefficients are
    the M of the rows (content moves down), then the M of the columns (to the right), in units of the grid [-1, 1].
    Where the sum of :math:`\frac{\pi}{2} |a_m| (k_m + l_m)` over both axes is below one, nothing folds.  Images
    `[N, C, H, W]` are read bilinearly, zero outside.
    """

    event_dim = 3

    def __init__(self, modes: int = 5) -> None:
        super().__init__(modes)
        self.coefficients = 2 * modes
        pairs = itertools.product(range(modes + 1), repeat=2)
        self.frequencies = sorted(pairs, key=lambda kl: kl[0] ** 2 + kl[1] ** 2)[1 : modes + 1]

    def move(self, coefficients: Tensor, x: Images) -> Views:
        rows, columns = (cosines(self.modes + 1, side, x) for side in x.shape[-2:])
        waves = torch.stack([torch.outer(rows[k], columns[m]) for k, m in self.frequencies])  # [M, H, W]
        down, right = torch.tensordot(coefficients.to(x).unflatten(-1, (2, -1)), waves, 1).unbind(-3)  # [*, V, H, W]
        here = torch.stack(torch.meshgrid(*(centres(n, x) for n in x.shape[-2:]), indexing="ij")[::-1], -1)
        moved = Pixels().read(x[:, None], here - torch.stack([right, down], -1))
        # what reading itself changes, by rounding, is taken back; in place, as views are large
        return moved.sub_(Pixels().read(x, here)[:, None]).add_(x[:, None])


class Warp(Deformation):
    r"""Monotone warps of time for series `[N, T]`, whose ends stay in place.

    The view at time `t` is the series at :math:`2 S(t) / S(1) - 1`, where `S` sums the speed

    .. math:: s(t) = \exp\left(-\sum_{k=1}^G c_k \cos\frac{\pi k (t + 1)}{2}\right) > 0

    from the start: a positive first coefficient slows the start down, so that content moves to the right, that is
    later.  Coefficients are log speeds; series are read linearly.
    """

    event_dim = 1

    def __init__(self, modes: int = 3) -> None:
        super().__init__(modes)
        self.coefficients = modes

    def move(self, coefficients: Tensor, x: Tensor) -> Views:
        length = x.shape[-1]
        speed = torch.exp(-(coefficients.to(x) @ cosines(self.modes + 1, length, x)[1:]))  # [*, V, T]
        passed = speed.cumsum(-1)
        source = (2 * passed - speed) / passed[..., -1:] - 1  # at the middle of each sample
        return interpolate(x[:, None], source - centres(length, x))
