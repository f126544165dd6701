"""Posteriors of two modes: found from one start, held in their shares; one mode is held as if nothing else existed."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_invariance import fitting
from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.laplace import laplace, lean, maximise
from pyro_invariance.evidence.variational import draw, train
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.guides import SinhArcsinh, SkewNormal, mixture
from pyro_invariance.modes import climbed, distinct
from pyro_invariance.zoo import Hypothesis

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def folded(y: Tensor, centre: float = 0.1) -> None:
    """Data that know the square of a number; its prior knows a little about the sign."""
    level = pyro.sample("level", dist.Normal(torch.tensor(centre), 1.0))
    with pyro.plate("items", len(y)):
        pyro.sample("y", dist.Normal(level.square(), 0.7), obs=1 + 0 * y)


def known(y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(torch.tensor(0.1), 1.0))
    with pyro.plate("items", len(y)):
        pyro.sample("y", dist.Normal(level, 1.5), obs=y)


def own(model: object, *starts: float) -> Hypothesis:
    begin = tuple({"level": start} for start in starts)
    return Hypothesis("level", "none", "own", model, lambda data: (data.targets[:, 0],), starts=begin)


def by_quadrature(data: Dataset) -> tuple[float, float]:
    """Log evidence, and the share of the mode above zero."""
    log_joint = LogJoint(folded, (data.targets[:, 0],))
    z = torch.linspace(-4.0, 4.0, 2001)
    logs = torch.stack([sum(log_joint.terms(row)) for row in z[:, None]])
    return float(logs.logsumexp(0) + (z[1] - z[0]).log()), float(logs.softmax(0)[z > 0].sum())


def check_guide(found: Fit, data: Dataset) -> None:
    """The density of the guide is nearly that of the posterior at its draws, on both sides."""
    exact, _ = by_quadrature(data)
    prior, likelihood, guide = found.weighted[:, -3:].T
    assert found.evidence.value == pytest.approx(exact, abs=0.1)
    for side in (found.weighted[:, 0] > 0, found.weighted[:, 0] < 0):
        assert float((prior + likelihood - guide)[side].median()) == pytest.approx(exact, abs=0.1)


def alone(log_joint: LogJoint, modes: list, close: float, deep: float) -> list:
    """A mutant: the best mode is all there is."""
    return distinct(log_joint, modes, close, deep)[:1]


@pytest.mark.parametrize("starts", [(1.0,), (-1.0,), (1.0, -0.5)])
def test_second_mode_is_found_and_held_in_its_share(line, starts):
    found, (_, share) = fit(own(folded, *starts), line), by_quadrature(line)
    check_guide(found, line)
    above = found.draws["level"] > 0
    assert float(above.double().mean()) == pytest.approx(share, abs=0.1)
    assert float((found.weighted[:, 0] > 0).double().mean()) == pytest.approx(share, abs=0.3)


def test_unimodal_guide_is_caught(line, monkeypatch):
    monkeypatch.setattr(fitting, "distinct", alone)
    found = fit(own(folded, 1.0, -0.5), line)
    with pytest.raises(AssertionError):
        check_guide(found, line)


def test_declared_modes_are_held_where_data_are_many(line, monkeypatch):
    monkeypatch.setattr(fitting, "FEW", 0)
    check_guide(fit(own(folded, 1.0, -1.0), line), line)


def test_resampling_repairs_the_draws_of_a_unimodal_guide(line, monkeypatch):
    monkeypatch.setattr(fitting, "distinct", alone)
    _, share = by_quadrature(line)
    for few, repaired in ((100, True), (0, False)):
        monkeypatch.setattr(fitting, "FEW", few)
        above = (fit(own(folded, 1.0, -1.0), line).draws["level"] > 0).double().mean()
        assert (abs(float(above) - share) < 0.1) == repaired


def waves(y: Tensor) -> None:
    """Data that know the cosine of a number; its prior prefers one of the peaks."""
    level = pyro.sample("level", dist.Normal(torch.tensor(2.3), 1.5))
    with pyro.plate("items", len(y)):
        pyro.sample("y", dist.Normal((3 * level).cos(), 0.7), obs=1 + 0 * y)


@pytest.mark.parametrize("starts", [(-2.0, 0.1, 4.3, 2.2), (2.2, 4.3, 0.1, -2.0), (0.1, 2.2, 2.0, 4.3)])
def test_of_many_starts_the_two_that_end_highest_are_climbed(line, starts):
    found = climbed(own(waves, *starts), line, LogJoint(waves, (line.targets[:, 0],)), seed=0)
    peaks = sorted(float(mode.z) for mode in found)
    assert peaks == pytest.approx([2 * math.pi / 3, 4 * math.pi / 3], abs=0.1)  # the prior pulls a little


def test_single_mode_is_held_by_the_plain_guide(line):
    found = fit(own(known, 0.0), line)
    log_joint = LogJoint(known, (line.targets[:, 0],))
    with pyro.settings.context(module_local_params=True):
        guide = SkewNormal(known, *lean(log_joint, *laplace(log_joint, maximise(log_joint, torch.zeros(1)).z), []))
        train(guide, log_joint, steps=fitting.STEPS, particles=fitting.PARTICLES, seed=0)
        drawn = draw(guide, log_joint, count=fitting.DRAWS, seed=fitting.ROUNDS + 1)
    torch.testing.assert_close(found.weighted[:, :1], drawn.z)
    torch.testing.assert_close(found.weighted[:, -1], drawn.log_guide)
    assert float(found.evidence.value) == pytest.approx(float(drawn.log_weights.mean()))
    y = line.targets[:, 0]
    precision = 1 + len(y) / 1.5**2
    exact = stats.norm((0.1 + float(y.sum()) / 1.5**2) / precision, precision**-0.5)
    assert stats.kstest(found.draws["level"].numpy()[::10], exact.cdf).pvalue > 1e-3


def test_mixture_draws_what_its_density_says():
    def part(place: float, scale: float) -> dist.TransformedDistribution:
        factor, none = scale * torch.eye(2), torch.zeros(2)
        shape = SinhArcsinh(torch.tensor([place, 0.0]), factor.diagonal(), none, none + 1)
        return dist.TransformedDistribution(dist.MultivariateNormal(none, scale_tril=factor), [shape])

    both = mixture([part(-1.0, 0.5), part(2.0, 1.0)], torch.tensor([0.3, 0.7]).log() + 5.0)
    z = both.sample(torch.Size([20_000]))
    assert z.shape == (20_000, 2)
    assert both.sample().shape == (2,)
    assert float(z[:, 0].mean()) == pytest.approx(0.3 * -1.0 + 0.7 * 2.0, abs=0.05)
    wide = dist.MultivariateNormal(torch.tensor([1.0, 0.0]), scale_tril=3 * torch.eye(2))
    z = wide.sample(torch.Size([20_000]))
    weights = (both.log_prob(z) - wide.log_prob(z)).exp()
    error = 4 * float(weights.std()) / math.sqrt(len(z))
    assert float(weights.mean()) == pytest.approx(1.0, abs=error)
    assert float(weights @ z[:, 0]) / len(z) == pytest.approx(0.3 * -1.0 + 0.7 * 2.0, abs=4 * error)
