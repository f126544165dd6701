"""A neural decoder in an unknown pose: bounds against exact values, and poses that are found."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Normal, TorchDistribution
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_invariance import evidence
from pyro_invariance.canonical import PERIODS, Decoder, PosedDecoded, aligned, peaks
from pyro_invariance.densities import SoftUniform
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.problem import Problem
from pyro_invariance.representations import Torus
from pyro_invariance.typing import BadInput

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ALPHA = 1e-4  # of each statistical check
Z = stats.norm.ppf(1 - ALPHA)
SIDE, NOISE = 9, torch.tensor(0.05, dtype=torch.float64)
CASES = {(): (), ("rotation",): (0.8,), ("rows", "columns"): (0.2, 0.3)}
NODES = {"rotation": 720, "rows": 120, "columns": 120}


def blob(right: float, down: float) -> Tensor:
    grid = (2 * torch.arange(SIDE, dtype=torch.float64) + 1) / SIDE - 1
    return (-((grid[:, None] - down).square() + (grid - right).square()) / 0.18).exp()


MEAN = 3 * blob(0.4, -0.1) + 2 * blob(-0.3, 0.3)
DIRECTIONS = torch.stack([blob(0.4, -0.1), blob(-0.3, 0.3)]).flatten(1)


def linear(axes: tuple[str, ...]) -> Decoder:
    """A decoder that is linear, so that the density of its images is known."""
    found = Decoder(torch.randn(5, SIDE, SIDE), 2, axes).eval().requires_grad_(False)
    found.linear.bias.copy_(MEAN.flatten())
    found.linear.weight.copy_(DIRECTIONS.T)
    found.bend[-1].weight.zero_()
    found.centre.zero_()
    found.variance = NOISE
    return found


def ranges(axes: tuple[str, ...]) -> list[TorchDistribution]:
    return [
        SoftUniform(torch.tensor(extent), period=PERIODS[axis], edge=0.1 if axis == "rotation" else 0.03)
        for axis, extent in zip(axes, CASES[axes], strict=True)
    ]


def exact(x: Tensor, axes: tuple[str, ...], noise: Tensor = NOISE) -> Tensor:
    """Log density of images by a sum over poses, each of them moved as a matrix moves."""
    normal = MultivariateNormal(MEAN.flatten(), noise * torch.eye(SIDE**2) + DIRECTIONS.T @ DIRECTIONS)
    if not axes:
        return normal.log_prob(x)
    cells = {axis: PERIODS[axis] / NODES[axis] for axis in axes}
    nodes = [(torch.arange(NODES[axis]) + 0.5) * cells[axis] - PERIODS[axis] / 2 for axis in axes]
    mesh = [m.flatten() for m in torch.meshgrid(*nodes, indexing="ij")]
    weights = sum(
        prior.log_prob(m) + math.log(cells[axis]) for axis, prior, m in zip(axes, ranges(axes), mesh, strict=True)
    )
    near = weights > weights.max() - 40  # the rest of the prior is nothing
    mesh, weights = [m[near] for m in mesh], weights[near]
    units = torch.eye(SIDE**2).view(-1, 1, SIDE, SIDE).expand(-1, len(weights), -1, -1)
    matrices = Torus().move(units, **dict(zip(axes, mesh, strict=True))).flatten(2)  # orthogonal: back is transposed
    back = torch.einsum("iqo,no->nqi", matrices, x)
    return (normal.log_prob(back) + weights).logsumexp(-1)


@pytest.mark.parametrize("axes", CASES)
def test_evidence_is_a_tight_lower_bound(axes, float64):
    """ELBO <= IWAE-64 <= exact on average over seeds, the latter within 0.05 nats per image."""
    decoder = linear(axes)
    torch.manual_seed(1)
    posed = PosedDecoded(decoder, NOISE, ranges(axes), count=8)
    x = posed.sample()
    truth, bounds, weighted = float(exact(x, axes).sum()), [], []
    for seed in range(16):
        decoder.seed.fill_(seed)
        decoder.kept = None
        bounds.append(float(posed.log_weights(x)[0].mean(0).sum()))
        weighted.append(float(posed.log_prob(x).sum()))
    error = np.std(weighted) / len(weighted) ** 0.5
    assert np.mean(weighted) < truth + Z * error
    assert abs(np.mean(weighted) - truth) / len(x) < 0.05
    assert np.mean(weighted) - np.mean(bounds) > Z * np.std(np.subtract(weighted, bounds)) / len(bounds) ** 0.5


@pytest.mark.parametrize("times", [0.03, 10])
def test_noise_that_others_images_have_is_known(times, monkeypatch, float64):
    """The guide that was learned is far too wide or too narrow for them, and has to have another beside it."""
    axes = ("rotation",)

    def off() -> float:
        posed = PosedDecoded(linear(axes), times * NOISE, ranges(axes), count=20)
        torch.manual_seed(4)
        x = posed.sample()
        return float((posed.log_prob(x) - exact(x, axes, times * NOISE)).mean())

    assert abs(off()) < 0.05
    monkeypatch.setattr("pyro_invariance.canonical.ANOTHER", math.inf)
    assert off() < -0.3


@pytest.mark.parametrize(("axes", "times"), [((), 1), (("rotation",), 1), (("rotation",), 10)])
def test_error_of_importance_is_known(axes, times, float64):
    """The spread of the log likelihood over seeds is the error that one seed tells, of equal images as well.

    What is loose is part of the bias.
    """
    decoder, posed = linear(axes), PosedDecoded(linear(axes), NOISE, ranges(axes), count=40 // times)
    torch.manual_seed(3)
    x = posed.sample().repeat(times, 1)

    def model() -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("x", PosedDecoded(decoder, NOISE, ranges(axes), count=len(x)), obs=x)

    log_joint = LogJoint(model)
    totals, told = [], []
    for seed in range(32):
        decoder.seed.fill_(10 * seed)
        decoder.kept = None
        told.append(log_joint.uncertainty(torch.zeros(0)))
        totals.append(float(log_joint.terms(torch.zeros(0))[1]))
    errors, loose = np.array(told).T
    ratio = np.var(totals, ddof=1) / np.mean(errors**2)
    low, high = stats.f(len(totals) - 1, 7 * len(totals)).ppf([ALPHA / 2, 1 - ALPHA / 2])
    assert low < ratio < high
    for mutant in (1 / 3, 3):  # times the error
        assert not low < ratio / mutant**2 < high
    error = np.std(totals) / len(totals) ** 0.5
    assert 0 < loose.mean() < float(exact(x, axes).sum()) - np.mean(totals) + Z * error


def test_density_that_is_no_estimate_has_no_error(float64):
    log_joint = LogJoint(lambda: pyro.sample("x", Normal(0.0, 1.0), obs=torch.tensor(1.0)))
    assert log_joint.estimated == set()
    assert log_joint.uncertainty(torch.zeros(0)) == (0.0, 0.0)


def test_error_of_what_is_scaled_masked_or_wrapped(float64):
    decoder = linear(("rotation",))
    x = PosedDecoded(decoder, NOISE, ranges(("rotation",)), count=6).sample()

    def told(handler: Callable = lambda model: model, events: int = 0) -> tuple[float, float]:
        def model() -> None:
            posed = PosedDecoded(decoder, NOISE, ranges(("rotation",)), count=6)
            pyro.sample("x", posed.to_event(events), obs=x)

        return LogJoint(handler(model)).uncertainty(torch.zeros(0))

    plain = told()
    assert plain[0] > 0
    assert told(events=1) == pytest.approx(plain)
    assert told(partial(poutine.scale, scale=3.0)) == pytest.approx((3 * plain[0], 3 * plain[1]))
    assert told(partial(poutine.mask, mask=torch.tensor(False))) == (0.0, 0.0)


def test_an_estimate_is_not_exact(float64):
    x = PosedDecoded(linear(()), NOISE, count=4).sample()

    def model() -> None:
        with pyro.plate("images", 4):
            pyro.sample("x", PosedDecoded(linear(()), NOISE, count=4), obs=x)

    with pytest.raises(BadInput, match="exact: the density of site 'x' is an estimate"):
        evidence.exact(Problem(model, ()))


def test_a_guide_that_goes_around_counts_no_pose_twice(float64):
    """Two modes that are one pose, a period apart, share its mass."""
    axes = ("rotation",)
    decoder = linear(axes)
    posed = PosedDecoded(decoder, NOISE, [SoftUniform(torch.tensor(math.pi))], count=6)
    torch.manual_seed(2)
    x = posed.sample()
    truth, modes = posed.log_prob(x), decoder.modes

    def around(x: Tensor, variance: Tensor) -> tuple:
        guide, shares = modes(x, variance)
        far = guide.loc.clone()
        far[..., -1] += 2 * math.pi * torch.arange(far.shape[1])
        return torch.distributions.MultivariateNormal(far, scale_tril=guide.scale_tril), shares

    decoder.modes, decoder.kept = around, None
    torch.testing.assert_close(posed.log_prob(x), truth, rtol=0, atol=0.1)


def test_density_is_of_the_images_that_are_given(float64):
    """What was kept of other images is not taken for theirs."""
    posed = PosedDecoded(linear(("rotation",)), NOISE, ranges(("rotation",)), count=6)
    x = posed.sample()
    whole = posed.log_prob(x)
    torch.testing.assert_close(posed.log_prob(x[2:4]), whole[2:4], rtol=0, atol=1e-9)
    torch.testing.assert_close(posed.log_prob(x), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("share", [0.49, 0.52, 0.56])
def test_a_lesser_mode_that_the_range_allows_is_drawn_from(share, monkeypatch, float64):
    """An image that would rather stand upside down, where that is not allowed."""
    decoder, axes = linear(("rotation",)), ("rotation",)
    down = Torus().move(MEAN, torch.tensor(math.pi))
    x = ((1 - share) * MEAN + share * down).flatten()[None] + 0.1 * torch.randn(4, SIDE**2)
    found = PosedDecoded(decoder, NOISE, ranges(axes), count=4).log_prob(x)
    torch.testing.assert_close(found, exact(x, axes), rtol=0, atol=0.5)
    if share == 0.52:  # else none of the draws of some images is there
        monkeypatch.setattr("pyro_invariance.canonical.SHARED", 0.0)
        assert float((PosedDecoded(linear(axes), NOISE, ranges(axes), count=4).log_prob(x) - found).min()) < -5


def test_an_image_that_the_decoder_makes_has_a_density(float64):
    decoder, axes = linear(("rotation",)), ("rotation",)
    x = decoder.view(torch.tensor([[0.3, -0.2, 0.5]]))
    found = PosedDecoded(decoder, NOISE, ranges(axes), count=1).log_prob(x)
    torch.testing.assert_close(found, exact(x, axes), rtol=0, atol=0.1)


def test_unknown_axis(float64):
    with pytest.raises(BadInput, match="axis: got 'rows'"):
        PosedDecoded(linear(("rotation",)), NOISE, ranges(("rotation",))).pose(torch.zeros(1, SIDE**2), "rows")


def test_the_guide_is_refined(float64):
    """Without steps towards the mode, the same draws are a far poorer bound."""
    decoder = linear(("rotation",))
    posed = PosedDecoded(decoder, NOISE, ranges(("rotation",)), count=8)
    x = posed.sample()
    good, refine = posed.log_prob(x).sum(), decoder.refine
    decoder.refine = lambda x, u, variance, steps: (u, *refine(x, u, variance, 1)[1:])
    decoder.kept = None
    assert float(good - posed.log_prob(x).sum()) > 5


def test_peaks_and_alignment(float64):
    angle, down = torch.tensor([-2.0, 0.3, 1.1, 3.0]), torch.tensor([0.2, 0.0, -0.3, 0.1])
    axes = ("rotation", "rows", "columns")
    x = Torus().move(MEAN.expand(4, -1, -1), angle, down, -down)
    found = peaks(x, MEAN, axes)  # [N, K, P]
    apart = torch.stack([angle, down, -down], -1)[:, None] - found
    apart[..., 0] = torch.remainder(apart[..., 0] + math.pi, 2 * math.pi) - math.pi
    best = apart.abs().amin(1)
    assert float(best[:, 0].max()) < 2 * math.pi / 64
    assert float(best[:, 1:].max()) <= 1.01 / SIDE
    back = aligned(Torus().move(MEAN.expand(4, -1, -1), angle), ("rotation",))
    assert float((back - back[0]).abs().max()) < 0.1 * float(MEAN.max())


def test_draws_have_the_density(float64):
    """Of draws, the mean ratio of another density to this one is one."""
    axes = ("rotation",)
    decoder = linear(axes)
    x = PosedDecoded(decoder, NOISE, ranges(axes), count=2000).sample()
    ours = exact(x, axes)
    other = PosedDecoded(decoder, 0.97 * NOISE, [SoftUniform(torch.tensor(0.7))], count=2000).log_prob(x)
    ratio = (other - ours).exp()
    assert abs(float(ratio.mean()) - 1) < Z * float(ratio.std()) / len(ratio) ** 0.5
