"""The profile of a learned range."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_invariance.profiles import profile
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Extent, Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

REACH = Extent("reach", "grid", upper=2.0, reach=1.9, whole=False, resolution=0.01)


def ranged(y: Tensor) -> None:
    reach = pyro.sample("reach", dist.Uniform(torch.tensor(0.0), 2.5))
    w = pyro.sample("w", dist.Normal(torch.tensor(0.0), 0.3))
    pyro.sample("y", dist.Normal((reach + w).expand(len(y)), 0.5).to_event(1), obs=y)


def test_profile_is_the_analytic_one(line):
    y = torch.tensor([1.1, 1.3, 0.9])
    hypothesis = Hypothesis(
        name="ranged",
        kind="augmentation",
        base="own",
        model=ranged,
        prepare=lambda data: (y,),
        starts=({"reach": 0.4, "w": 0.0},),
        extents={"reach": REACH},
    )
    result = profile(hypothesis, line, points=8)
    assert (result.label, result.unit, result.upper, result.images) == ("ranged", "grid", 2.0, 30)
    assert result.extent == pytest.approx([0.25 * k for k in range(1, 9)], rel=1e-5)  # never zero, up to the end
    expected = []
    for reach in result.extent:
        precision = 3 / 0.25 + 1 / 0.09
        w = float((y - reach).sum()) / 0.25 / precision
        expected.append(stats.norm.logpdf(y.numpy(), reach + w, 0.5).sum() + stats.norm.logpdf(w, 0, 0.3))
    above = np.array(result.log_density) - result.log_density[0]
    assert above == pytest.approx(np.array(expected) - expected[0], abs=0.05)  # the search stops near the optimum
    assert int(np.argmax(above)) == 3  # the mean, 1.1, is nearest to 1.0


def test_profile_needs_a_range(run, tiny):
    hypothesis = next(h for h in run.hypotheses if h.label == "mirror")
    with pytest.raises(BadInput, match="'mirror' has no learned range"):
        profile(hypothesis, tiny)
