"""Estimates of the evidence of any Pyro model, each with its bound side and its errors.

An estimator is a function `estimator(problem, *, seed) -> Evidence`.
"""

from pyro_invariance.evidence.annealed import ais, bdmc
from pyro_invariance.evidence.base import Evidence
from pyro_invariance.evidence.comparison import Comparison, compare, probabilities
from pyro_invariance.evidence.exact import exact
from pyro_invariance.evidence.fitted import laplace
from pyro_invariance.evidence.importance import smooth
from pyro_invariance.evidence.problem import Problem
from pyro_invariance.evidence.weights import Weights, elbo, iwae, psis, weigh

__all__ = [
    "Comparison",
    "Evidence",
    "Problem",
    "Weights",
    "ais",
    "bdmc",
    "compare",
    "elbo",
    "exact",
    "iwae",
    "laplace",
    "probabilities",
    "psis",
    "smooth",
    "weigh",
]
