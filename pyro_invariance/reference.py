"""What SVI is held against: Hamiltonian Monte Carlo on the same density, and how far two posteriors are apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import arviz as az
import numpy as np
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.numerics import float64

MEAN, SD = 0.15, 0.15  # posterior standard deviations, share of one


@float64()
def nuts(
    log_joint: LogJoint,
    mode: Tensor,
    cholesky: Tensor,
    *,
    draws: int = 500,
    warmup: int = 100,
    chains: int = 2,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    r"""Draw from a posterior by Pyro's No-U-Turn sampler [hoffman2014no].

    .. math:: z = \hat z + L w,\quad w \sim \exp(-U(w)),\quad U(w) = -\log p(D, z)

    In the coordinates `w` of a Laplace approximation the scales are alike, so that trees are short.  Each chain starts
    at twice its spread.  A covariance that has no Cholesky factor is infinitely unlikely.  The caller's random numbers
    go on as if nothing had been drawn.

    Parameters
    ----------
    mode, cholesky : Tensor `[D]`, `[D, D]`
        As from `laplace`.

    Returns
    -------
    dict of str to ndarray `[chains, draws, ...]`
        Values of each site, in its own space.
    """

    def potential(params: dict[str, Tensor]) -> Tensor:
        try:
            return -sum(log_joint.terms(mode + cholesky @ params["w"]), start=torch.zeros(()))
        except torch.linalg.LinAlgError:
            return params["w"].sum() * 0 + math.inf

    rows = []
    for chain in range(chains):
        with poutine.seed(rng_seed=seed + chain):
            start = 2 * torch.randn(len(mode))
            while not potential({"w": start}).isfinite():
                start = start / 2
            sampler = MCMC(
                NUTS(potential_fn=potential),
                num_samples=draws,
                warmup_steps=warmup,
                initial_params={"w": start},
                disable_progbar=True,
            )
            sampler.run()
            rows.append([log_joint.unpack(mode + cholesky @ w) for w in sampler.get_samples()["w"]])
    return {name: np.stack([[row[name].numpy() for row in chain] for chain in rows]) for name in log_joint.transforms}


@dataclass(frozen=True)
class Agreement:
    """How far the draws of an approximation are from those of chains, at the worst component of a site.

    Attributes
    ----------
    difference : float
        Of the means, in standard deviations of the chains.
    ratio : float
        Standard deviation over that of the chains.
    rhat, ess : float
        Of the chains: they say whether the comparison means anything.
    """

    difference: float
    ratio: float
    rhat: float
    ess: float

    @property
    def meaningful(self) -> bool:
        """Whether the chains met and are long enough."""
        return self.rhat < 1.05 and self.ess > 100

    @property
    def words(self) -> str:
        """The outcome in words."""
        if not self.meaningful:
            return "chains did not meet"
        return "agrees" if self.agrees else "differs"

    @property
    def agrees(self) -> bool:
        """Whether mean and standard deviation are within `MEAN` and `SD`."""
        return abs(self.difference) < MEAN and abs(self.ratio - 1) < SD


def compare(draws: Mapping[str, Tensor], chains: Mapping[str, np.ndarray]) -> dict[str, Agreement]:
    """Compare draws `[S, ...]` of each site with chains `[C, S', ...]` of it."""
    rhat, ess, found = az.rhat(dict(chains)), az.ess(dict(chains)), {}
    for name, reference in chains.items():
        mean, sd = reference.mean((0, 1)), reference.std((0, 1))
        differences = np.ravel((draws[name].numpy().mean(0) - mean) / sd)
        ratios = np.ravel(draws[name].numpy().std(0) / sd)
        found[name] = Agreement(
            float(differences[np.abs(differences).argmax()]),
            float(ratios[np.abs(np.log(ratios)).argmax()]),
            float(rhat[name].max()),
            float(ess[name].min()),
        )
    return found
