"""Symmetry as a latent variable: Pyro models of what data may be indifferent to, selected by their evidence."""

from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.evidence.base import Evidence
from pyro_invariance.inference_data import to_arviz
from pyro_invariance.profiles import profile
from pyro_invariance.results import Selection
from pyro_invariance.runs import VERSION
from pyro_invariance.selection import select
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Card, Extent, Hypothesis
from pyro_invariance.zoo import load_data as load

__version__ = VERSION
__all__ = [
    "BadInput",
    "Card",
    "Dataset",
    "Evidence",
    "Extent",
    "Hypothesis",
    "Selection",
    "from_arrays",
    "load",
    "profile",
    "select",
    "to_arviz",
]
