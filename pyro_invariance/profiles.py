"""The profile of the evidence over a learned range: the picture that explains a selection."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from tqdm import tqdm

from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.laplace import maximise
from pyro_invariance.numerics import float64
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

GRADIENT = 1.0  # nats per unit of unconstrained space: with curvatures of ten and more, a twentieth of a nat in height


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
    hypothesis = hypothesis.given(hypothesis.learn(data, 0)) if hypothesis.learn else hypothesis
    first = next(iter(hypothesis.extents.values()))
    bar = tqdm(total=points, desc=hypothesis.label, disable=not sys.stderr.isatty())
    shares, values = walk(hypothesis, hypothesis.prepare(data), hypothesis.starts[0], points, step=bar.update)
    bar.close()
    return Profile(hypothesis.label, first.unit, first.upper, [s * first.upper for s in shares], values, len(data.y))


def walk(
    hypothesis: Hypothesis,
    args: tuple,
    start: Mapping[str, float | Tensor],
    points: int,
    inverse_hessian: np.ndarray | None = None,
    step: Callable[[], object] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Largest log joint density at each share of the extents' upper ends, from `start`, a guess of the rest."""
    shares = ((torch.arange(points) + 1) / points * (1 - 1e-6)).tolist()  # the end itself has no prior density
    values, rest = [], {name: value for name, value in start.items() if name not in hypothesis.extents}
    for share in shares:
        held = {name: torch.tensor(share * e.upper) for name, e in hypothesis.extents.items()}
        log_joint = LogJoint(poutine.condition(hypothesis.model, data=held), args)
        if log_joint.size == 0:
            values.append(float(sum(log_joint.terms(torch.zeros(0)))))
            continue
        mode = maximise(log_joint, log_joint.pack(rest), inverse_hessian=inverse_hessian, gtol=GRADIENT)
        rest = {name: value.detach() for name, value in log_joint.unpack(mode.z).items()}
        values.append(mode.value)
        step()
    return shares, values
