"""What an evidence says of itself; and that of the orbit process against quadrature."""

import math
from dataclasses import replace

import pytest
import torch
from conjugate import check_lower_bound
from torch import Tensor
from torch.distributions import Normal

from pyro_invariance import fitting, priors, zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import Evidence, LogJoint, require_finite
from pyro_invariance.evidence.importance import WORST, smooth
from pyro_invariance.evidence.laplace import laplace, maximise
from pyro_invariance.evidence.variational import Draws, draw, elbo, train
from pyro_invariance.guides import SkewNormal
from pyro_invariance.zoo import Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("local_parameters"),
]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_evidence_is_never_quietly_wrong(bad):
    with pytest.raises(FloatingPointError, match=f"the bound is {bad}"):
        require_finite(bad, "the bound")
    weights = torch.tensor([0.0, bad])
    with pytest.raises(FloatingPointError, match="lower bound"):
        elbo(Draws(torch.zeros(2, 1), weights, torch.zeros(2), torch.zeros(2)))
    assert require_finite(-3.5, "the bound") == -3.5


def test_khat_is_none_where_it_means_nothing():
    assert smooth(torch.randn(24))[1] is None  # too few
    assert smooth(torch.full((100,), -7.0))[1] is None  # all equal
    assert smooth(torch.full((100,), -7.0) + 1e-12 * torch.randn(100))[1] is None
    assert smooth(torch.randn(25))[1] is not None


def test_khat_tells_heavy_tails_from_light_ones():
    exponential = -torch.rand(4000).log()  # exp(a e) of a standard exponential e is a Pareto variable of shape a
    for shape in (0.3, 1.0):
        assert smooth(shape * exponential)[1] == pytest.approx(shape, abs=0.2)
    assert smooth(torch.rand(4000))[1] < 0.0  # bounded weights


def test_khat_is_worst_where_one_draw_is_all_the_weight():
    logs = torch.full((100,), -1000.0) - torch.arange(100.0)
    logs[3] = 0.0
    assert smooth(logs)[1] == WORST


def test_khat_leaves_the_weights_alone():
    weights = torch.randn(100)
    before = weights.clone()
    smooth(weights)
    assert torch.equal(weights, before)


@pytest.mark.parametrize("bound", ["exact", "lower", "upper", "estimate"])
def test_evidence_in_words_says_its_side(bound):
    text = str(Evidence(-123.456, 0.25, bound))
    assert "-123.5 +- 0.25 nats" in text
    assert all((side in text) == (side == bound) for side in ("lower", "upper", "estimate"))


# The orbit Gaussian process against quadrature over all of its hyperparameters.


def axis(site: str, count: int) -> tuple[Tensor, Tensor]:
    """Values of a log-normal site and the log weights of a trapezoid over 4.5 standard deviations each way."""
    centre, width = priors.SITES[site]
    z = torch.linspace(centre - 4.5 * width, centre + 4.5 * width, count)
    return z.exp(), Normal(centre, width).log_prob(z) + (z[1] - z[0]).log()


@torch.no_grad()
def evidence_by_quadrature(hypothesis: Hypothesis, data: Dataset, counts: tuple[int, int, int, int]) -> float:
    """Integrate every hyperparameter over a grid; each Gram matrix is diagonalised once."""
    kernel, targets = hypothesis.prepare(data)
    (lengthscales, a), (variances, b), (noises, c) = (axis(*p) for p in zip(priors.SITES, counts, strict=False))
    uppers = [e.upper for e in hypothesis.extents.values()]
    middles = [((torch.arange(counts[3]) + 0.5) / counts[3] * u) for u in uppers]
    points = torch.cartesian_prod(*middles).reshape(-1, len(uppers)) if uppers else torch.zeros(1, 0)
    parts = []
    for point in points:
        for lengthscale, weight in zip(lengthscales, a, strict=True):
            values, vectors = torch.linalg.eigh(kernel.gram(lengthscale, *point))
            squares = (vectors.T @ targets).square().sum(1)
            total = variances[:, None, None] * values.clamp_min(0) + (priors.NOISE_FLOOR + noises)[:, None]
            logs = -0.5 * (squares / total + targets.shape[1] * (2 * math.pi * total).log()).sum(-1)
            parts.append((logs + b[:, None] + c).flatten().logsumexp(0) + weight)
    return float(torch.stack(parts).logsumexp(0)) - math.log(len(points))


@pytest.mark.parametrize(("label", "loose"), [("trivial-polar", 0.8), ("O2", 0.8), ("rotation", 1.5)])
def test_orbit_process_against_quadrature(label, loose):
    entry = zoo.load("orbit_gp")
    data = entry.data("rotation", size=30, test=0, side=8)
    hypothesis = next(h for h in entry.hypotheses(data) if h.label == label)
    exact = evidence_by_quadrature(hypothesis, data, (30, 40, 50, 20))

    log_joint = LogJoint(hypothesis.model, hypothesis.prepare(data))
    mode, cholesky = laplace(log_joint, maximise(log_joint, log_joint.pack(hypothesis.starts[0])).z)
    guide = SkewNormal(hypothesis.model, mode, cholesky)
    train(guide, log_joint, steps=100, particles=fitting.PARTICLES, seed=0)
    draws = draw(guide, log_joint, count=1000, seed=1)
    evidence = elbo(draws)
    check_lower_bound(evidence, exact, loose)
    sampled = evidence.value + evidence.looseness
    assert sampled < exact + 0.3
    if label != "O2":  # 30 images leave O2 a second mode, nearly noise alone, that a normal guide cannot hold
        assert sampled == pytest.approx(exact, abs=0.3)  # importance sampling closes the gap
    assert maximise(log_joint, mode, prior=False).value > exact
    with pytest.raises(AssertionError):
        check_lower_bound(elbo(replace(draws, log_guide=torch.zeros(1000))), exact, loose)

    fit = fitting.fit(hypothesis, data, seed=0)
    check_lower_bound(fit.evidence, exact, loose)
    assert fit.upper > exact
    prior, likelihood, normal = fit.weighted[:, -3:].T
    assert float((prior + likelihood - normal).mean()) == pytest.approx(fit.evidence.value)
