"""Toroidal subgroups whose W is learned: planes, weights and phases are found from pairs alone, and only from pairs."""

import math

import pytest
import torch
from torch import Tensor

from pyro_invariance import plotting
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.selection import select
from pyro_invariance.toroidal import Action, LearnedAction, TransformedPair, fourier, multiples
from pyro_invariance.zoo import Hypothesis, load

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ENTRY = load("toroidal_subgroups")
RINGS, ANGLES = 2, 6  # of the small arrays
ALPHA = 1e-4


def true_action() -> Action:
    """Turns seen in another basis, that of no Fourier transform."""
    generator = torch.Generator().manual_seed(1)
    turn = fourier(RINGS, ANGLES, "angles")
    basis = torch.linalg.qr(torch.randn(len(turn.planes), len(turn.planes), generator=generator))[0]
    return Action(basis.to(turn.planes) @ turn.planes, turn.weights)


def pairs(count: int, turned: bool = True) -> tuple[Dataset, Tensor]:
    """Small arrays of noise, one of them the other turned in an unknown basis, and by how much; or unrelated ones."""
    generator, action = torch.Generator().manual_seed(0), true_action()
    x, other, noise = torch.randn(3, count, RINGS * ANGLES, generator=generator)
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    moved = action.scale(x, torch.polar(torch.ones(()), angle[:, None] * action.weights))
    y = (moved if turned else other) + 0.1 * noise
    first, second = (a.reshape(count, RINGS, ANGLES).numpy() for a in (x, y))
    return from_arrays("small", first[:-100], second[:-100], first[-100:], second[-100:], kind="pairs"), angle


def found(data: Dataset) -> dict[str, Hypothesis]:
    return {h.label: h for h in ENTRY.hypotheses(data)}


@pytest.fixture(scope="module")
def turned(float64: None) -> tuple[Dataset, Tensor, dict[str, Tensor]]:
    data, angle = pairs(500)
    data = data.halved(0)
    return data, angle, ENTRY.learn(data, 0)


def density(data: Dataset, action: Action, noise: float = 0.01) -> Tensor:
    """Log density `[N]` of the later pairs."""
    return TransformedPair(data.x.flatten(1), torch.tensor(noise), torch.tensor(0.0), action).log_prob(data.targets)


def test_learned_planes_explain_later_pairs_as_well_as_the_true_ones(turned):
    data, _, learned = turned
    action = Action(**learned)
    columns = torch.cat([action.planes.real, action.planes.imag], 1)
    torch.testing.assert_close(columns.T @ columns, torch.eye(columns.shape[1]), rtol=0, atol=1e-10)
    truth, here = true_action(), density(data, action)
    assert sorted(action.weights.tolist()) == sorted(truth.weights.tolist())
    assert float((density(data, truth) - here).mean()) < 0.5
    still = Action(action.planes[:, :0], action.weights[:0])
    assert float((here - density(data, still, 1.0)).mean()) > 20
    for weight in (1, 2):  # the spaces are the same, whatever their bases
        a, b = (which.planes[:, which.weights == weight] for which in (action, truth))
        overlap = (torch.cat([b, b.conj()], 1).mH @ a) / 2
        assert float(overlap.abs().square().sum()) == pytest.approx(a.shape[1], abs=0.02)


def test_planes_learned_from_unrelated_pairs_explain_nothing(turned):
    data = pairs(160, turned=False)[0].halved(0)

    def best(action: Action) -> float:
        return max(float(density(data, action, noise).mean()) for noise in (0.3, 1.0, 2.0, 4.0))

    learned = Action(**ENTRY.learn(data, 0))
    assert best(learned) < float(density(turned[0], Action(**turned[2])).mean()) - 20
    y = data.encode(data.y)  # what the pairs have in common is their population
    alone = torch.distributions.MultivariateNormal(y.mean(0), y.T.cov()).log_prob(y).mean()
    assert best(learned) < float(alone)


def test_phases_are_the_angles_but_for_their_sign(turned):
    data, angle, learned = turned
    args = found(data)["learned"].given(learned).prepare(data)
    pose, length = ENTRY.phases(args, [{"noise": torch.tensor(0.01)}], data.x_test, data.encode(data.y_test))
    off = [torch.remainder(sign * pose - angle[-100:] + math.pi, 2 * math.pi) - math.pi for sign in (1, -1)]
    assert min(float(o.rad2deg().abs().median()) for o in off) < 4
    assert float(length.median()) > 0.99


def test_weights_are_read_off_phases(float64):
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([2, 1, -3, 4, -1])
    angle = 2 * math.pi * torch.rand(200, 1, generator=generator)
    size = torch.rand(200, 5, generator=generator) + 0.1
    read = multiples(torch.polar(size, angle * truth), 4)
    assert read.tolist() in (truth.tolist(), (-truth).tolist())  # the sign of the phase is anyone's
    assert multiples(torch.polar(size, angle * truth), 3).tolist()[3] not in (4, -4)


def test_coupled_action_reverses_planes_that_turn_back(float64):
    turn = fourier(RINGS, ANGLES, "angles")
    back = torch.tensor([1.0, -1, 1, 1])  # one plane turns the other way round
    x = torch.randn(200, RINGS * ANGLES)
    angle = 2 * math.pi * torch.rand(200, 1)
    y = turn.scale(x, torch.polar(torch.ones(()), angle * turn.weights * back))
    learned = LearnedAction(x, 4)
    rest = torch.linalg.qr(torch.cat([turn.planes.real, turn.planes.imag, torch.randn(len(x[0]), 4)], 1))[0][:, 8:]
    learned.basis.weight = torch.cat([turn.planes.real, turn.planes.imag, rest], 1)
    learned.couple(x, y, turn.harmonics)
    density = TransformedPair(x, torch.tensor(1e-3), torch.tensor(0.0), learned()).log_prob(y).detach()
    assert learned().weights.tolist() == turn.weights.tolist()
    assert float(density.min()) > 12 / 2 * math.log(1 / (2 * math.pi * 1e-3)) - 10
    assert float(TransformedPair(x, torch.tensor(1e-3), torch.tensor(0.0), turn).log_prob(y).median()) < -100


def test_principal_planes_are_the_same_action_sorted_by_strength(float64):
    x, y = torch.randn(2, 50, RINGS * ANGLES) * torch.linspace(0.2, 2, RINGS * ANGLES)
    turn = fourier(RINGS, ANGLES, "angles")
    principal = turn.principal(x)
    for mine, theirs in zip(turn.compare(x, y), principal.compare(x, y), strict=True):
        torch.testing.assert_close(mine, theirs)
    for weight in (1, 2):
        seen = x.to(turn.planes) @ principal.planes[:, principal.weights == weight]
        covariance = seen.mH @ seen
        torch.testing.assert_close(covariance, covariance.diag().diag(), rtol=0, atol=1e-9)
        assert float(covariance[0, 0].real) > float(covariance[1, 1].real)


@pytest.mark.slow
@pytest.mark.parametrize("planted", ["SO2", "none"])
def test_learned_planes_are_selected_on_digits(planted, tmp_path, figures):
    run = select(ENTRY.data(planted, test=100), "toroidal_subgroups", ["learned", "trivial", "SO2"], jobs=1)
    fits = {f.label: f for f in run.fits}
    if planted == "none":
        assert run.best.label == "null"
        assert all(v.verdict == "undecided" for v in run.verdicts.values())
        return
    each = {label: f.evidence.value / len(run.data.y) for label, f in fits.items()}
    assert each["trivial-learned"] == pytest.approx(each["trivial-polar"], abs=0.01)
    assert each["learned"] > each["trivial-learned"] + 100
    assert abs(each["learned"] - each["SO2"]) < 12
    assert {run.verdicts[s].verdict for s in ("SO2", "learned")} == {"supported"}
    assert plotting.poses(run).get_xlabel() and ENTRY.filters(run).collections  # noqa: PT018
