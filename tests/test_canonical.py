"""A neural decoder in an unknown pose: bounds against exact values, and poses that are found."""

import math

import numpy as np
import pytest
import torch
from pyro.distributions import MultivariateNormal, Normal
from scipy import stats
from torch import Tensor

from benchmarks.pose import Posed
from pyro_invariance.canonical import Autoencoder, PosedDecoded, aligned, code_posterior, peak
from pyro_invariance.densities import SoftUniform
from pyro_invariance.evidence import Problem, elbo, iwae
from pyro_invariance.posed import PosedLinear, turned
from pyro_invariance.sites import Marginalised

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ALPHA = 1e-4  # of each statistical check
Z = stats.norm.ppf(1 - ALPHA)
SHAPE, NOISE, EXTENT = (4, 15), 0.3, 0.8


def templates(count: int = 3) -> Tensor:
    torch.manual_seed(0)
    smooth = torch.fft.irfft(torch.randn(count, 4, 4, dtype=torch.complex128), 15)
    return torch.cat([5 * smooth[:1], smooth[1:]])


@pytest.fixture(scope="module")
def linear(float64: None) -> tuple[Autoencoder, PosedLinear, Tensor]:
    """An autoencoder that knows a linear decoder, the exact density of its images, and some of them."""
    mean, *directions = templates()
    exact = PosedLinear(
        mean, torch.stack(directions), torch.tensor(NOISE), torch.tensor(EXTENT), SoftUniform, count=12, nodes=256
    )
    x = exact.sample()
    found = Autoencoder(x, SHAPE, 2, turns=True, seed=0)
    with torch.no_grad():
        found.decoder.weight.copy_(torch.stack(directions, -1).flatten(0, 1))
        found.decoder.bias.copy_(mean.flatten())
        flat = torch.stack(directions).flatten(1)
        inverse = torch.linalg.inv(NOISE * torch.eye(2) + flat @ flat.T)
        found.encoder.weight.copy_(torch.cat([inverse @ flat, 0 * flat]))
        log_scale = 0.5 * (NOISE * inverse.diagonal()).log()
        found.encoder.bias.copy_(torch.cat([-inverse @ flat @ mean.flatten(), log_scale]))
        for network in (found.bend, found.look_again):
            network[-1].weight.zero_()
    return found.requires_grad_(False).eval(), exact, x


def estimated(autoencoder: Autoencoder, x: Tensor, nodes: int = 128) -> Tensor:
    posed = PosedDecoded(autoencoder, torch.tensor(NOISE), SoftUniform(EXTENT), count=len(x), nodes=nodes)
    autoencoder.kept = None
    return posed.log_prob(x)


def test_evidence_is_a_tight_lower_bound(linear):
    """Of a linear decoder the density is known: over seeds the estimate is below it on average, and near."""
    autoencoder, exact, x = linear
    truth, found = float(exact.log_prob(x).sum()), []
    for seed in range(16):
        autoencoder.seed.fill_(seed)
        found.append(float(estimated(autoencoder, x).sum()))
    mean, error = np.mean(found), np.std(found) / len(found) ** 0.5
    assert mean < truth + Z * error
    assert abs(mean - truth) / len(x) < 0.05


def test_nodes_and_draws_are_enough(linear, monkeypatch):
    autoencoder, exact, x = linear
    monkeypatch.setattr("pyro_invariance.canonical.DRAWS", 256)
    for nodes in (128, 256):
        torch.testing.assert_close(estimated(autoencoder, x, nodes), exact.log_prob(x), rtol=0, atol=0.03)


def test_density_is_of_the_images_that_are_given(linear):
    """What was kept of other images is not taken for theirs."""
    autoencoder, _, x = linear
    posed = PosedDecoded(autoencoder, torch.tensor(NOISE), SoftUniform(EXTENT), count=4)
    torch.testing.assert_close(posed.log_prob(x[4:8]), posed.log_prob(x)[4:8], rtol=1e-12, atol=0)


def test_bounds_of_the_canonicalising_guide_are_in_order(linear):
    """ELBO <= IWAE-64 <= exact in the mean, with the encoder as the guide; a guide that does not turn back is worse."""
    autoencoder, exact, x = linear
    x, truth = x[:8], float(exact.log_prob(x)[:8].sum())
    model = Marginalised(Posed(autoencoder, NOISE, EXTENT), nodes=128)
    problem = Problem(model, (x,), model.model.guide)
    bound, weighted = elbo(problem, seed=0, draws=1280), iwae(problem, seed=1, draws=1280)
    assert weighted.value - bound.value > Z * math.hypot(bound.std_error, weighted.std_error)
    assert truth - weighted.value > -Z * weighted.std_error
    autoencoder.turns = False
    blind = elbo(problem, seed=0, draws=200)
    autoencoder.turns = True
    assert bound.value - blind.value > Z * math.hypot(bound.std_error, blind.std_error)


def test_code_posterior_of_a_linear_view_is_exact():
    view, x, noise = torch.randn(9, 3), torch.randn(5, 9), torch.tensor(0.4)
    found = code_posterior(lambda u: view @ u, x, torch.zeros(5, 3), torch.ones(3), noise.expand(5))
    joint = MultivariateNormal(torch.zeros(9), noise * torch.eye(9) + view @ view.T)
    u = torch.randn(5, 3)
    by_bayes = Normal(u @ view.T, noise.sqrt()).log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(u).sum(-1)
    torch.testing.assert_close(found.log_prob(u), by_bayes - joint.log_prob(x), rtol=0, atol=1e-9)


def test_images_are_turned_back():
    template, angle = templates()[0], torch.tensor([-2.0, 0.3, 1.1, 3.0])
    x = turned(template.expand(4, -1, -1), angle)
    torch.testing.assert_close(peak(x, template), angle, rtol=0, atol=math.pi / 512)
    back = aligned(x)
    assert float((back - back[0]).abs().max()) < 0.05 * float(template.abs().max())


def test_draws_have_the_density(linear):
    """Of draws, the mean ratio of another density to this one is one; both are estimated with many codes."""
    autoencoder, exact, _ = linear
    x = PosedDecoded(autoencoder, torch.tensor(NOISE), SoftUniform(EXTENT), count=4000).sample()
    mean, directions = exact.mean_image, exact.directions
    ours, other = (
        PosedLinear(mean, directions, torch.tensor(n), torch.tensor(e), SoftUniform, count=4000, nodes=128)
        for n, e in ((NOISE, EXTENT), (0.97 * NOISE, 0.7))
    )
    ratio = (other.log_prob(x) - ours.log_prob(x)).exp()
    assert abs(float(ratio.mean()) - 1) < Z * float(ratio.std()) / len(ratio) ** 0.5
