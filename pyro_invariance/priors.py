"""Proper priors on the hyperparameters, the same for every hypothesis of a run, so that evidences are comparable.

Each scale is the standard deviation of a logarithm; `scale` multiplies all of them, for sensitivity checks.
Targets have unit variance on average over outputs and distances mean one, which is what makes 1 the centre.
"""

import math

import torch
from pyro.distributions import HalfNormal, LogNormal, Uniform

NOISE_FLOOR = 1e-4  # variance; labels without noise would let the density of the targets grow without limit
SITES = {"lengthscale": (0.0, 1.0), "variance": (0.0, 1.5), "noise": (math.log(0.01), 2.0)}


def log_normal(site: str, scale: float = 1.0) -> LogNormal:
    """Log-normal prior of `lengthscale` (mean distance = 1), `variance` or `noise` (target variance = 1).

    `noise` is the noise variance above `NOISE_FLOOR`.
    """
    centre, width = SITES[site]
    return LogNormal(torch.tensor(centre), torch.tensor(width * scale))


def half_normal(scale: float = 1.0) -> HalfNormal:
    """Prior of the scale (standard deviation) of a part of a sum: it may well be nothing."""
    return HalfNormal(torch.tensor(scale))


def extent(upper: float) -> Uniform:
    """Uniform prior of a range, from a point mass to the whole of what the orbit can reach."""
    return Uniform(torch.tensor(0.0), torch.tensor(upper))


def describe(scale: float = 1.0) -> dict[str, str]:
    """Say the priors in words, for cards and run files."""
    return {k: f"LogNormal(log {math.exp(c):.3g}, {w * scale:.3g})" for k, (c, w) in SITES.items()}
