"""The profile of the evidence over a learned range: the picture that explains a selection."""

import sys
from dataclasses import dataclass

import torch
from pyro import poutine
from tqdm import tqdm

from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.laplace import maximise
from pyro_invariance.numerics import float64
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis


@dataclass(frozen=True)
class Profile:
    """Largest log joint density at each extent, the other hyperparameters optimised.

    A ridge line of the posterior density of the extent under its flat prior, not an evidence: widths are left out.

    Attributes
    ----------
    label : str
        Of the hypothesis.
    unit : str
        Unit of the extent.
    upper : float
        End of what the orbit reaches.
    extent : list of float
        The grid; several ranges of one hypothesis are moved together.
    log_density : list of float
        Log likelihood plus log prior of the other hyperparameters at their optimum, nats.
    images : int
        How many the likelihood is of.
    """

    label: str
    unit: str
    upper: float
    extent: list[float]
    log_density: list[float]
    images: int


@float64()
def profile(hypothesis: Hypothesis, data: Dataset, points: int = 13) -> Profile:
    """Walk the extent from narrow to wide on a grid, optimising everything else at each step.

    Raises
    ------
    BadInput
        If the hypothesis has no learned range.
    """
    if not hypothesis.extents:
        raise BadInput(f"hypothesis: {hypothesis.label!r} has no learned range to profile")
    first = next(iter(hypothesis.extents.values()))
    args = hypothesis.prepare(data)
    shares = (torch.arange(points) + 1) / points * (1 - 1e-6)  # the end itself has no prior density
    values, start = [], dict(hypothesis.starts[0])
    for share in tqdm(shares.tolist(), desc=hypothesis.label, disable=not sys.stderr.isatty()):
        held = {name: torch.tensor(share * e.upper) for name, e in hypothesis.extents.items()}
        log_joint = LogJoint(poutine.condition(hypothesis.model, data=held), args)
        mode = maximise(log_joint, log_joint.pack({k: v for k, v in start.items() if k not in held}), gtol=0.5)
        start |= {k: float(v) for k, v in log_joint.unpack(mode.z).items()}
        values.append(mode.value)
    return Profile(
        hypothesis.label, first.unit, first.upper, [float(s) * first.upper for s in shares], values, len(data.y)
    )
