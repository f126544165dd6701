"""Simulated images of things made of blobs; a thing is turned before it is drawn, so that nothing is interpolated."""

import math

import numpy as np
import torch
from pyro import poutine

from pyro_invariance.densities import SoftUniform
from pyro_invariance.numerics import float64
from pyro_invariance.typing import BadInput, nearest

PLANTED = {"none": 0.0, "rotation": math.radians(45), "SO2": math.pi}  # ranges of poses
WIDTH = 0.15  # of a blob; the image is [-1, 1]


@float64()
def angles(planted: str, count: int, seed: int) -> np.ndarray:
    """Angles `[N]` in radians, soft-edged uniform within the range of poses that is planted (`PLANTED`)."""
    if planted not in PLANTED:
        raise BadInput(f"planted: got {planted!r}; {nearest(planted, PLANTED)}")
    if not PLANTED[planted]:
        return np.zeros(count)
    with poutine.seed(rng_seed=seed):  # the caller's random numbers go on as if nothing had been drawn
        return SoftUniform(torch.tensor(PLANTED[planted])).sample((count,)).numpy()


def draw(places: np.ndarray, heights: np.ndarray, angle: np.ndarray, side: int) -> np.ndarray:
    r"""Images `[N, side, side]`, :math:`\sum_b h_b \exp(-|p - R_\theta q_b|^2 / 2 w^2)` at the pixels p.

    Parameters
    ----------
    places, heights : array `[N, B, 2]`, array `[N, B]`
        Where the blobs of each image are, to the right and up, before they are turned; how high.
    angle : array `[N]`
        Radians, anticlockwise.
    side : int
        Pixels per side.
    """
    (x, y), cos, sin = np.moveaxis(places, -1, 0), np.cos(angle)[:, None], np.sin(angle)[:, None]
    grid = (np.arange(side) + 0.5) / side * 2 - 1
    down, right = -(sin * x + cos * y), cos * x - sin * y
    rows, columns = (np.exp(-0.5 * ((grid - at[..., None]) / WIDTH) ** 2) for at in (down, right))
    return np.einsum("nb,nbi,nbj->nij", heights, rows, columns)
