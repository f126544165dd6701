"""How an image is laid out so that a transformation of the plane acts on it without loss.

A rotation is a phase on a polar array, a shift moves zero-padded pixels.  All images of a run pass through the same
resampling once, so that blur cannot tell rotated images from upright ones; inside a model nothing is interpolated.
Contrast is normalised in a way that commutes with the transformation: brightness is not what the kernel should see.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_invariance.typing import Images


@dataclass(frozen=True)
class Pixels:
    """Average-pooled pixels `[N, C, h, w]`, optionally with a zero margin that lets shifts move freely.

    Parameters
    ----------
    pool : int
        Side of the square that is averaged into one pixel.
    margin : int
        Zero pixels (after pooling) added on every side.
    normalise : bool
        Subtract the ground (the median of the border pixels), halve the differences between channels, then divide
        each image by its norm; shifts on that ground change none of these.
    """

    pool: int = 1
    margin: int = 0
    normalise: bool = False

    def __call__(self, images: Images) -> Tensor:
        """Pool and pad `[..., C, H, W]`."""
        flat = images.flatten(0, -4) if images.dim() > 3 else images[None]
        pooled = F.avg_pool2d(flat, self.pool, ceil_mode=True) if self.pool > 1 else flat
        if self.normalise:
            pooled = _unit(_half_colour(pooled - ground(pooled)), pooled)
        padded = F.pad(pooled, [self.margin] * 4)
        return padded.reshape(*images.shape[:-2], *padded.shape[-2:])

    def rotate(self, x: Tensor, angle: Tensor) -> Tensor:
        """Turn `[..., C, H, W]` counter-clockwise by `angle` (radians, broadcast against the batch), bilinearly.

        Multiples of 90 degrees are exact on square images (`align_corners=False` everywhere).
        """
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        # image rows run downwards, so a counter-clockwise turn reads its source at the clockwise-turned place
        return self.affine(x, torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], -2))

    def affine(self, x: Tensor, source: Tensor) -> Tensor:
        """Read `[*B, C, H, W]` at the places `source (column, row, 1)` on the grid [-1, 1], `source` `[*S, 2, 3]`."""
        row, column = torch.meshgrid(*(centres(n, x) for n in x.shape[-2:]), indexing="ij")
        grid = torch.stack([column, row, torch.ones_like(row)])
        places = source.to(x).reshape(-1, 3) @ grid.flatten(1)  # one product, where an affine_grid has one for each
        return self.read(x, places.reshape(*source.shape[:-1], *x.shape[-2:]).movedim(-3, -1))

    def read(self, x: Tensor, places: Tensor) -> Tensor:
        """Bilinear values of `[*B, C, H, W]` at `places` `[*S, H, W, 2]`, (column, row) on [-1, 1]; zero outside."""
        dims = max(x.dim(), places.dim()) - 3
        x = x[(None,) * (dims + 3 - x.dim())]
        places = places[(None,) * (dims + 3 - places.dim())]
        # images that are read at the same places pass as channels of one, and places that one image is read at as more
        # rows, so that views are all that is allocated
        shared = [d for d in range(dims) if places.shape[d] == 1]
        several = [d for d in range(dims) if x.shape[d] == 1 and places.shape[d] > 1]
        each = [d for d in range(dims) if d not in shared + several]
        sizes = [torch.broadcast_shapes(x.shape[d : d + 1], places.shape[d : d + 1])[0] for d in range(dims)]
        count = math.prod(sizes[d] for d in each)
        flat = x.permute(*each, *shared, *several, -3, -2, -1).reshape(count, -1, *x.shape[-2:])
        grid = places.permute(*each, *several, *shared, -3, -2, -1).reshape(count, -1, *places.shape[-2:])
        values = F.grid_sample(flat, grid, align_corners=False)
        order = [*each, *shared, dims, *several]  # as they lie there; `dims` stands for the channels
        values = values.reshape([[*sizes, x.shape[-3]][d] for d in order] + list(places.shape[-3:-1]))
        return values.permute(*(order.index(d) for d in range(dims + 1)), -2, -1)

    def mirror(self, x: Tensor) -> Tensor:
        """Exchange left and right, the reflection that maps a polar angle `a` to `pi - a`."""
        return x.flip(-1)

    def shift(self, x: Tensor, offset: Tensor) -> Tensor:
        """Roll `[..., C, H, W]` by integer `offset[..., 2]` (rows, columns) on the padded torus."""
        h, w = x.shape[-2:]
        batch = torch.broadcast_shapes(x.shape[:-3], offset.shape[:-1])
        rows = (torch.arange(h, device=x.device) - offset[..., :1]) % h  # [..., h]
        cols = (torch.arange(w, device=x.device) - offset[..., 1:]) % w  # [..., w]
        index = (rows[..., :, None] * w + cols[..., None, :]).flatten(-2)  # [..., h*w]
        index = index[..., None, :].expand(*batch, x.shape[-3], h * w)
        return x.expand(*batch, *x.shape[-3:]).flatten(-2).gather(-1, index).unflatten(-1, (h, w))


@dataclass(frozen=True)
class Polar:
    """Images on `rings` x `angles` polar points, `[N, C, R, A]`, where a turn by any real angle is a phase.

    Each ring is weighted by the root of its area, so that the squared norm approximates that of the pixels on the
    disk; the Nyquist coefficient is dropped once, which makes `rotate` exactly orthogonal for every real angle.

    Parameters
    ----------
    rings, angles : int
        Radii `(i + 1/2) / rings` of the inscribed disk and angles `2 pi k / angles`, counter-clockwise from the
        right.
    normalise : bool
        Halve the differences between channels, subtract the mean over the disk from each, then divide each image by
        its norm; turns change none of these.
    window : float
        Rings are weighted by `1 - window r^2`: at the rim of the disk an image holds background and neighbours.
    """

    rings: int
    angles: int
    normalise: bool = False
    window: float = 0.0

    def __call__(self, images: Images) -> Tensor:
        """Resample `[..., C, H, W]` bilinearly (`align_corners=False`, the border goes on outside)."""
        flat = images.flatten(0, -4) if images.dim() > 3 else images[None]
        like: dict[str, Any] = {"dtype": images.dtype, "device": images.device}
        radius = (torch.arange(self.rings, **like) + 0.5) / self.rings
        angle = torch.arange(self.angles, **like) * (2 * math.pi / self.angles)
        grid = torch.stack([radius[:, None] * angle.cos(), -radius[:, None] * angle.sin()], -1)
        grid = grid.expand(len(flat), -1, -1, -1)
        sampled = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
        pixels_on_disk = math.pi / 4 * images.shape[-1] * images.shape[-2]
        area = radius / radius.sum() / self.angles  # sums to one over the disk
        if self.normalise:
            sampled = _half_colour(sampled)
            sampled = sampled - (sampled * area[:, None]).sum((-2, -1), keepdim=True)
        weight = (area * pixels_on_disk).sqrt() * (1 - self.window * radius.square())
        arrays = self._drop_nyquist(sampled * weight[:, None])
        arrays = _unit(arrays, flat) if self.normalise else arrays
        return arrays.reshape(*images.shape[:-2], self.rings, self.angles)

    def _drop_nyquist(self, x: Tensor) -> Tensor:
        if self.angles % 2:
            return x
        sign = 1 - 2 * (torch.arange(self.angles, device=x.device) % 2).to(x.dtype)
        return x - (x * sign).mean(-1, keepdim=True) * sign

    def rotate(self, x: Tensor, angle: Tensor) -> Tensor:
        """Turn `[..., C, R, A]` counter-clockwise by `angle` (radians, broadcast against the batch), exactly."""
        frequency = torch.arange(self.angles // 2 + 1, dtype=x.dtype, device=x.device)
        phase = torch.polar(torch.ones_like(frequency), -frequency * angle[..., None])[..., None, None, :]
        return torch.fft.irfft(torch.fft.rfft(x) * phase, n=self.angles)

    def mirror(self, x: Tensor) -> Tensor:
        """Map the angle `a` to `pi - a`: left and right are exchanged, exactly where the number of angles is even."""
        flipped = x.flip(-1).roll(1, -1)
        if self.angles % 2:
            return self.rotate(flipped, torch.tensor(math.pi).to(x))
        return flipped.roll(self.angles // 2, -1)


@dataclass(frozen=True)
class Torus:
    """Square images `[..., S, S]` of an odd side, periodic, where a shift and a turn by any real amount is orthogonal.

    A shift is a phase; a turn is a quarter turn and three shears, which shift every row or column by an amount of its
    own [unser1995convolution].  What leaves on one side comes in on the other, so things have to keep off the sides.

    Parameters
    ----------
    most : int
        Images of more pixels per side, and one to fill up an even number, are pooled.
    """

    most: int = 15  # 3 x 5: transforms of a prime length are slow

    def __call__(self, images: Images) -> Tensor:
        """Grey images `[..., C, H, W]` without their ground, pooled and filled up to an odd square, `[..., S, S]`.

        The middle of the image, which turns are about, is that of the square.
        """
        grey = (images - ground(images)).mean(-3, keepdim=True)
        pool, (height, width) = self._pool(grey.shape), grey.shape[-2:]
        pooled = Pixels(pool)(F.pad(grey, [0, -width % pool, 0, -height % pool]))[..., 0, :, :]
        side = max(pooled.shape[-2:]) // 2 * 2 + 1
        filled = F.pad(pooled, [0, side - pooled.shape[-1], 0, side - pooled.shape[-2]])
        down, right = (torch.tensor(1 - n / pool / side).to(filled) for n in (height, width))
        return self.move(filled, None, down, right)

    def share(self, images: Images) -> tuple[float, float]:
        """What part of the square an image `[..., C, H, W]` takes, in rows and columns."""
        pool, sides = self._pool(images.shape), images.shape[-2:]
        side = math.ceil(max(sides) / pool) // 2 * 2 + 1
        return sides[0] / pool / side, sides[1] / pool / side

    def _pool(self, shape: torch.Size) -> int:
        return math.ceil(max(shape[-2:]) / (self.most + 1))

    def move(
        self, x: Tensor, rotation: Tensor | None = None, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """Turn `[*B, S, S]` counter-clockwise by `rotation` (radians), then shift it down and right (grid units)."""
        side = x.shape[-1]
        down, right = (torch.zeros(()).to(x) if s is None else s * (side / 2) for s in (rows, columns))
        if rotation is None:
            moved = x if columns is None else _slide(x, right[..., None])
            return moved if rows is None else _slide(moved.mT, down[..., None]).mT
        quarters = (rotation / (math.pi / 2)).round().detach()
        rest, quarters = rotation - quarters * (math.pi / 2), quarters[..., None, None] % 4
        x = torch.where(quarters % 2 == 1, x.rot90(1, (-2, -1)), x)
        x = torch.where(quarters >= 2, x.flip(-2, -1), x)
        from_middle = torch.arange(side).to(x) - side // 2
        lean = (rest / 2).tan()[..., None]
        x = _slide(x, lean * from_middle)
        x = _slide(x.mT, down[..., None] - rest.sin()[..., None] * from_middle).mT
        return _slide(x, right[..., None] + lean * (from_middle - down[..., None]))


def _slide(x: Tensor, offset: Tensor) -> Tensor:
    """Shift each row of `[*B, S, S]` to the right by `offset` `[*B, S]` (pixels), around and exactly."""
    frequency = torch.arange(x.shape[-1] // 2 + 1).to(x) * (2 * math.pi / x.shape[-1])
    phase = frequency * offset[..., None]
    return torch.fft.irfft(torch.fft.rfft(x) * torch.complex(phase.cos(), -phase.sin()), n=x.shape[-1])


def centres(count: int, like: Tensor) -> Tensor:
    """Centres of `count` pixels of a row (or samples of a series) on the grid [-1, 1], `[count]`."""
    return (2 * torch.arange(count, dtype=like.dtype, device=like.device) + 1) / count - 1


def cosines(modes: int, count: int, like: Tensor) -> Tensor:
    r"""Modes :math:`\cos(\pi k (t + 1) / 2)`, `k` half waves from side to side, at pixel centres, `[modes, count]`."""
    k = torch.arange(modes, dtype=like.dtype, device=like.device)
    return torch.cos(math.pi / 2 * k[:, None] * (centres(count, like) + 1))


def interpolate(x: Tensor, offset: Tensor) -> Tensor:
    """Linear values of series `[*B, T]` at `offset` `[*S, T]` (grid units) from each sample; the border goes on."""
    length, shape = x.shape[-1], torch.broadcast_shapes(x.shape, offset.shape)
    place = torch.arange(length, device=x.device) + offset * (length / 2)  # in samples: exact where nothing moves
    place = place.clamp(0, length - 1)
    before = place.detach().long()
    after, x = (before + 1).clamp_max(length - 1), x.expand(shape)
    return torch.lerp(x.gather(-1, before.expand(shape)), x.gather(-1, after.expand(shape)), place - before)


def ground(images: Images) -> Tensor:
    """Median of the border pixels of each channel, `[..., C, 1, 1]`: what a shift would move in from outside."""
    sides = (images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1])
    return torch.cat(sides, -1).median(-1).values[..., None, None]


def _unit(x: Tensor, raw: Tensor) -> Tensor:
    """Images `[..., C, *, *]` of norm one; what is only the rounding of `raw` images is zero."""
    norm, floor = (t.flatten(-3).norm(dim=-1)[..., None, None, None] for t in (x, 1e-12 * raw))
    return torch.where(norm > floor, x / norm.clamp_min(torch.finfo(x.dtype).tiny ** 0.5), 0.0)


def _half_colour(x: Tensor) -> Tensor:
    """Differences between channels `[..., C, *, *]` count half: they vary more between pictures than they tell."""
    grey = x.mean(-3, keepdim=True)
    return (x + grey) / 2
