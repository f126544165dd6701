"""Prototypes in unknown poses: densities against dense sums, poses that were planted, a pose refused where none is."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from benchmarks.cases import FOLDER
from pyro_invariance import from_arrays, select
from pyro_invariance.posed_process import best_posed, polar_arrays
from pyro_invariance.prototypes import PosedPrototypes
from pyro_invariance.representations import Pixels, Polar
from pyro_invariance.results import Selection
from pyro_invariance.zoo import load

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ENTRY = load("transformed_prototypes")
POLAR = Polar(4, 16)
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def prototypes() -> Tensor:
    torch.manual_seed(0)
    return 3 * torch.fft.irfft(torch.randn(3, 4, 4, dtype=torch.complex128), 16)


def dense(mixture: PosedPrototypes, x: Tensor) -> Tensor:
    """Log density `[N]`, a Gaussian for each prototype in each pose, by matrices of all pixels."""
    total = torch.zeros(len(x))
    for share, prototype in zip(SHARES, prototypes(), strict=True):
        for pose, weight in zip(mixture.poses, mixture.log_weights.exp(), strict=True):
            mean = POLAR.rotate(prototype[None], pose).flatten()
            total += share * weight * MultivariateNormal(mean, mixture.noise * torch.eye(64)).log_prob(x).exp()
    return total.log()


class Unshared(PosedPrototypes):
    """A mutant whose prototypes are equally frequent."""

    def joint(self, value: Tensor) -> Tensor:
        return super().joint(value) - (3 * self.shares).log()[:, None]


class Backwards(PosedPrototypes):
    """A mutant that weighs poses as if turned the other way."""

    def joint(self, value: Tensor) -> Tensor:
        return super().joint(value) - self.log_weights + self.log_weights.roll(1)


def check_dense(kind: type[PosedPrototypes]) -> None:
    mixture = kind(prototypes(), SHARES, torch.tensor(0.7), torch.tensor(1.1), count=4, nodes=6)
    x = mixture.sample()
    torch.testing.assert_close(mixture.log_prob(x), dense(mixture, x), rtol=0, atol=1e-9)


def test_density_is_that_of_dense_sums():
    check_dense(PosedPrototypes)
    for mutant in (Unshared, Backwards):
        with pytest.raises(AssertionError):
            check_dense(mutant)


def test_draws_have_the_density():
    """Of draws, the mean ratio of another density to this one is one: alpha = 1e-4."""
    ours = PosedPrototypes(prototypes(), SHARES, torch.tensor(0.5), torch.tensor(0.7), count=4_000)
    other = PosedPrototypes(prototypes(), SHARES.flip(0), torch.tensor(0.49), torch.tensor(0.6), count=4_000)
    x = ours.sample()
    ratio = (other.log_prob(x) - ours.log_prob(x)).exp()
    assert abs(float(ratio.mean()) - 1) < 3.9 * float(ratio.std()) / math.sqrt(len(ratio))


@pytest.mark.parametrize("extent", [0.3, math.pi])
def test_prototype_and_pose_are_known(extent):
    thing, angle = torch.tensor([0, 1, 2, 1]), torch.tensor([-0.25, 0.0, 0.2, 0.1])
    mixture = PosedPrototypes(prototypes(), SHARES, torch.tensor(0.01), torch.tensor(extent), count=4)
    weights = mixture.posterior(POLAR.rotate(prototypes()[thing][:, None], angle).flatten(1))
    torch.testing.assert_close(weights.sum(-1), torch.nn.functional.one_hot(thing, 3).to(weights))
    torch.testing.assert_close(weights.sum(1) @ mixture.poses, angle, rtol=0, atol=0.02)


def test_a_narrow_range_is_no_pose():
    narrow, none = (
        PosedPrototypes(prototypes(), SHARES, torch.tensor(0.5), extent, count=6)
        for extent in (torch.tensor(1e-4), None)
    )
    x = none.sample()
    torch.testing.assert_close(narrow.log_prob(x), none.log_prob(x))


@pytest.fixture(scope="module")
def run() -> Selection:
    return select(ENTRY.data("rotation", size=48, test=20), "transformed_prototypes", ["rotation"], jobs=1)


def test_a_pose_is_worth_something(run):
    assert run.verdicts["rotation"].verdict == "supported"
    mean, error = run.paired(next(f for f in run.fits if f.name == "trivial"))
    assert mean + 4 * error < 0


@pytest.mark.parametrize(("nodes", "enough"), [(256, True), (64, False)])
def test_nodes_are_close_enough(run, nodes, enough):
    mixture, x, _ = best_posed(run, ENTRY.given)
    extent = torch.tensor(math.pi)
    some, twice = (
        PosedPrototypes(mixture.prototypes, mixture.shares, mixture.noise, extent, count=len(x), nodes=n)
        for n in (nodes, 2 * nodes)
    )
    gap = float((some.log_prob(x) - twice.log_prob(x)).sum())
    assert (abs(gap) < 0.5) == enough, gap


def test_poses_are_centred_for_each_prototype(run):
    """Turned anyhow, prototypes come back to where the poses of their images have mean zero."""
    mixture, x, _ = best_posed(run, ENTRY.given)
    polar, unit = Polar(*mixture.prototypes.shape[1:]), x.square().mean()
    anyhow = polar.rotate(mixture.prototypes[:, None], torch.linspace(-3, 3, len(mixture.shares)))[:, 0]
    found = [ENTRY.centred(x, (start, mixture.shares), unit) for start in (mixture.prototypes, anyhow)]
    used = ENTRY.given((found[0], mixture.shares), unit, "SO2", {"noise": torch.tensor(0.1)}, len(x)).posterior(x)
    used = used.sum((0, 2)) > 1  # who has no images may point anywhere
    torch.testing.assert_close(found[0][used], found[1][used], rtol=0, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("planted", ENTRY.PLANTED)
def test_planted_poses_are_selected(planted, seed):
    selection = select(ENTRY.data(planted, seed), "transformed_prototypes", seed=seed)
    held = {name for name, v in selection.verdicts.items() if v.verdict == "supported"}
    assert held == {"none": set(), "rotation": {"rotation"}, "SO2": {"rotation", "SO2"}}[planted]


def purity(selection: Selection, label: str, images: Tensor, classes: np.ndarray) -> float:
    """Share of images of the most frequent class of their prototype."""
    (found,) = (f for f in selection.fits if f.label == label)
    (chosen,) = (h for h in selection.hypotheses if h.label == label)
    _, learned, unit = chosen.given(found.learned).prepare(selection.data)
    sites, x = {name: values.mean() for name, values in found.draws.items()}, polar_arrays(images)[0]
    which = ENTRY.given(learned, unit, found.name, sites, len(x)).posterior(x).sum(-1).argmax(1).numpy()
    return sum(np.bincount(classes[which == k]).max() for k in np.unique(which)) / len(classes)


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER and (FOLDER / "mnist.npz").is_file()), reason="PYRO_INVARIANCE_DATA has no mnist.npz")
def test_prototypes_of_turned_digits_are_classes():
    raw, rng = np.load(FOLDER / "mnist.npz"), np.random.default_rng(0)
    chosen = rng.permutation(len(raw["train_labels"]))[:1600]
    x = torch.as_tensor(raw["train_images"][chosen] / 255.0)[:, None]
    x = Pixels().rotate(x, torch.as_tensor(rng.uniform(-math.pi, math.pi, len(x))))
    halves = x[:1200, 0].numpy(), x[1200:, 0].numpy()
    data = from_arrays("turned", halves[0], np.arange(1200) % 2, halves[1], np.arange(400) % 2)
    selection, classes = select(data, "transformed_prototypes"), raw["train_labels"][chosen][1200:].astype(int)
    mean, error = selection.paired(next(f for f in selection.fits if f.name == "trivial"))
    assert -mean + 2.3 * error > 40  # nats per image, alpha = 1 %
    assert purity(selection, "SO2", x[1200:], classes) > purity(selection, "trivial-polar", x[1200:], classes) + 0.1
