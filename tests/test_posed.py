"""A linear decoder in an unknown pose: densities against dense matrices, ranges that were planted, known poses."""

import math
from functools import partial

import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import MultivariateNormal

from benchmarks.pose import linear
from pyro_invariance.densities import MovingUniform
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.laplace import maximise
from pyro_invariance.posed import PosedLinear
from pyro_invariance.posed_process import polar_arrays
from pyro_invariance.representations import Polar
from pyro_invariance.zoo import load

POLAR = Polar(4, 16)


def decoder(rings: int = 4, angles: int = 16, code: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    smooth = torch.fft.irfft(torch.randn(1 + code, rings, 4, dtype=torch.complex128), angles)
    return 6 * smooth[0], smooth[1:]


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Arrays `[n, R, A]` turned, as vectors."""
    return POLAR.rotate(x[:, None], angle.expand(len(x)))[:, 0].flatten(1)


def dense(posed: PosedLinear, x: Tensor) -> Tensor:
    """Log density by pose, by matrices of all pixels."""
    found = []
    for pose in posed.poses:
        mean, directions = turned(posed.mean_image[None], pose)[0], turned(posed.directions, pose)
        covariance = posed.noise * torch.eye(len(mean)) + directions.T @ directions
        found.append(MultivariateNormal(mean, covariance).log_prob(x))
    return torch.stack(found, 1)


class Mirrored(PosedLinear):
    """A mutant that turns the other way."""

    def _matched(self, x: Tensor) -> Tensor:
        return super()._matched(x).flip(-1)


class Unturned(PosedLinear):
    """A mutant whose code is that of the upright image."""

    def _matched(self, x: Tensor) -> Tensor:
        found = super()._matched(x)
        return torch.cat([found[:, :1], found[:, 1:, :1].expand_as(found[:, 1:])], 1)


def check_dense(kind: type[PosedLinear]) -> None:
    posed = kind(*decoder(), torch.tensor(0.3), torch.tensor(1.1), count=5, nodes=12)
    x = posed.sample()
    torch.testing.assert_close(posed.by_pose(x), dense(posed, x), rtol=0, atol=1e-10)
    whole = dense(posed, x).logsumexp(1) - math.log(12)
    torch.testing.assert_close(posed.log_prob(x), whole, rtol=0, atol=1e-10)


def test_density_is_that_of_dense_matrices(float64):
    check_dense(PosedLinear)
    for mutant in (Mirrored, Unturned):
        with pytest.raises(AssertionError):
            check_dense(mutant)


def test_without_a_range_nothing_is_turned(float64):
    posed = PosedLinear(*decoder(), torch.tensor(0.3), count=5)
    x = posed.sample()
    covariance = 0.3 * torch.eye(64) + posed.directions.flatten(1).T @ posed.directions.flatten(1)
    expected = MultivariateNormal(posed.mean_image.flatten(), covariance).log_prob(x)
    torch.testing.assert_close(posed.log_prob(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("nodes", "enough"), [(None, True), (64, False)])
def test_nodes_are_close_enough(nodes, enough, float64):
    """Of the images that the entry simulates, with a decoder that was learned, whatever the pose."""
    entry = load("latent_pose")
    data = entry.data("SO2", size=120, test=0).itself().halved(0)
    (hypothesis,) = (h for h in entry.hypotheses(data) if h.name == "SO2")
    x, decoder, unit = hypothesis.given(hypothesis.learn(data, 0)).prepare(data)
    noise, extent = 0.01 * unit, torch.tensor(math.pi)
    some = PosedLinear(*decoder, noise, extent, count=len(x), **({} if nodes is None else {"nodes": nodes}))
    twice = PosedLinear(*decoder, noise, extent, count=len(x), nodes=2 * len(some.poses))
    gap = float((some.log_prob(x) - twice.log_prob(x)).sum())
    assert (abs(gap) < 1) == enough, gap


def test_draws_have_the_density(float64):
    """Of draws, the mean ratio of another density to this one is one: alpha = 1e-4."""
    ours = PosedLinear(*decoder(), torch.tensor(0.5), torch.tensor(0.7), count=20_000)
    other = PosedLinear(*decoder(), torch.tensor(0.48), torch.tensor(0.6), count=20_000)
    x = ours.sample()
    ratio = (other.log_prob(x) - ours.log_prob(x)).exp()
    assert abs(float(ratio.mean()) - 1) < 3.9 * float(ratio.std()) / math.sqrt(len(ratio))


def test_poses_are_known(float64):
    """The pose of a clear image is found, and that of one that is the same all around is not."""
    angle = torch.tensor([-0.9, 0.0, 0.4, 1.0])
    mean, directions = decoder()
    posed = PosedLinear(mean, directions, torch.tensor(0.01), torch.tensor(1.2), count=4)
    x = torch.cat([turned(mean[None], a) for a in angle])
    found, length = posed.pose(x)
    torch.testing.assert_close(found, angle, rtol=0, atol=0.05)
    assert float(length.min()) > 0.99
    around = mean.mean(1, keepdim=True).expand_as(mean).reshape(1, -1)
    _, length = PosedLinear(mean, directions, torch.tensor(1e3), torch.tensor(math.pi), count=1).pose(around)
    assert float(length) < 0.1


@pytest.mark.parametrize(("degrees", "within"), [(2, 1), (45, 3), (180, 6)])
def test_planted_range_is_found_from_narrow_and_wide(degrees, within, float64):
    """By the density of the exact width, whatever the entry takes."""
    mean, directions = decoder(8, 32, 6)
    noise = torch.tensor(1.0)
    x = PosedLinear(mean, directions, noise, torch.tensor(math.radians(degrees)), count=600).sample()
    log_joint = LogJoint(partial(linear, density=MovingUniform), (x, (mean, directions), x.square().mean()))
    for begin in (10, 150):
        start = log_joint.pack({"noise": 0.1, "rotation": math.radians(begin)})
        found = log_joint.unpack(maximise(log_joint, start).z)["rotation"]
        assert math.degrees(float(found)) == pytest.approx(degrees, abs=within)


def test_a_decoder_is_a_module_that_learns(float64):
    entry = load("latent_pose")
    data = entry.data("rotation", size=60, test=0).halved(0)
    x, _, polar = polar_arrays(data.x_earlier)
    decoder = entry.Decoder(x, polar, "rotation")
    assert isinstance(decoder, PyroModule)
    assert len(list(decoder.parameters())) == 2
