"""Simulated images of things made of blobs; a thing is turned before it is drawn, so that nothing is interpolated."""

import math

import numpy as np
import torch
from pyro import poutine

from pyro_invariance.densities import EDGE, SoftUniform
from pyro_invariance.numerics import float64
from pyro_invariance.typing import BadInput, nearest

PLANTED = {"none": 0.0, "rotation": math.radians(45), "SO2": math.pi}  # ranges of poses
WIDTH = 0.15  # of a blob; the image is [-1, 1]


@float64()
def within(extent: float, count: int, seed: int, period: float = 2 * math.pi, edge: float = EDGE) -> np.ndarray:
    """Soft-edged uniform values `[N]` of a range, zeros if it is 0; the caller's random numbers go on as they were."""
    if not extent:
        return np.zeros(count)
    with poutine.seed(rng_seed=seed):
        return SoftUniform(torch.tensor(extent), period=period, edge=edge).sample((count,)).numpy()


def angles(planted: str, count: int, seed: int) -> np.ndarray:
    """Angles `[N]` in radians, soft-edged uniform within the range of poses that is planted (`PLANTED`)."""
    if planted not in PLANTED:
        raise BadInput(f"planted: got {planted!r}; {nearest(planted, PLANTED)}")
    return within(PLANTED[planted], count, seed)


def draw(
    places: np.ndarray, heights: np.ndarray, angle: np.ndarray, side: int, shift: np.ndarray | float = 0.0
) -> np.ndarray:
    r"""Images `[N, side, side]`, :math:`\sum_b h_b \exp(-|p - R_\theta q_b - t|^2 / 2 w^2)` at the pixels p.

    Parameters
    ----------
    places, heights : array `[N, B, 2]`, array `[N, B]`
        Where the blobs of each image are, to the right and up, before they are turned; how high.
    angle : array `[N]`
        Radians, anticlockwise.
    side : int
        Pixels per side.
    shift : array `[N, 2]`
        Rows and columns, grid units, by which a thing is shifted after it was turned; not if 0.
    """
    (x, y), cos, sin = np.moveaxis(places, -1, 0), np.cos(angle)[:, None], np.sin(angle)[:, None]
    grid = (np.arange(side) + 0.5) / side * 2 - 1
    rows, columns = np.moveaxis(np.broadcast_to(shift, (len(angle), 2)), -1, 0)[..., None]
    down, right = rows - (sin * x + cos * y), columns + cos * x - sin * y
    tall, broad = (np.exp(-0.5 * ((grid - at[..., None]) / WIDTH) ** 2) for at in (down, right))
    return np.einsum("nb,nbi,nbj->nij", heights, tall, broad)
