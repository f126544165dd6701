"""Toroidal subgroups: the closed form against sums over all phases, planted transformations, poses, pictures."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import ive
from torch import Tensor

from pyro_invariance import plotting
from pyro_invariance.calibration import calibrate
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.fitting import fit
from pyro_invariance.numerics import float64 as precisely
from pyro_invariance.representations import Polar
from pyro_invariance.results import Selection
from pyro_invariance.selection import select
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis, load

ENTRY = load("toroidal_subgroups")
SELECTED = {"none": "null", "identical": "trivial-polar", "SO2": "SO2", "rotation": "rotation", "radial": "radial"}
ALPHA = 1e-4  # of each statistical test, shared among its comparisons


def found(data: Dataset) -> dict[str, Hypothesis]:
    return {h.label: h for h in ENTRY.hypotheses(data) if h.default}


@pytest.fixture(scope="module")
def turned(float64: None) -> Dataset:
    return ENTRY.data("SO2", size=40, test=20)


def gaussian(y: Tensor, mean: Tensor, noise: float) -> Tensor:
    return torch.distributions.Normal(mean, math.sqrt(noise)).log_prob(y).sum(-1)


@pytest.mark.parametrize("size", [0.3, 30.0, 3000.0])
def test_partition_function_is_the_integral(size):
    generator = torch.Generator().manual_seed(0)
    natural = size * torch.randn(3, 4, generator=generator, dtype=torch.complex128)
    log_z, moments = ENTRY.log_partition(natural)
    for eta, value, moment in zip(natural.numpy(), log_z, moments.numpy(), strict=True):

        def exponent(s: float, eta: np.ndarray = eta) -> float:
            return float((eta.conj() * np.exp(1j * np.arange(1, 5) * s)).real.sum())

        nodes = np.linspace(0, 2 * math.pi, 4097)
        top = nodes[np.argmax([exponent(s) for s in nodes])]
        peak = exponent(top)

        def density(s: float, exponent=exponent, peak: float = peak) -> float:
            return math.exp(exponent(s) - peak)

        ends = top - math.pi, top + math.pi
        integral = integrate.quad(density, *ends, points=[top], limit=500, epsabs=0, epsrel=1e-12)[0]
        assert float(value) == pytest.approx(math.log(integral / (2 * math.pi)) + peak, abs=1e-10)
        angle = top + 2 * math.pi * np.arange(2**16) / 2**16
        weights = np.array([density(s) for s in angle])
        for k, m in enumerate(moment, start=1):
            assert m == pytest.approx((weights * np.exp(1j * k * angle)).sum() / weights.sum(), abs=1e-10)


def test_partition_function_of_one_harmonic_is_a_bessel_function():
    kappa = torch.tensor([[0.0], [0.7], [50.0], [1e5]], dtype=torch.complex128)
    log_z, moments = ENTRY.log_partition(kappa)
    size = kappa.real[:, 0].numpy()
    np.testing.assert_allclose(log_z.numpy(), np.log(ive(0, size)) + size, rtol=1e-13)
    two, more = ENTRY.log_partition(torch.cat([kappa, torch.zeros_like(kappa)], -1))  # by the nodes
    torch.testing.assert_close(two, log_z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(more[:, :1], moments, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("harmonics", [1, 3])
def test_moments_are_the_gradient(harmonics):
    natural = torch.randn(2, harmonics, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda eta: ENTRY.log_partition(eta)[0], natural)
    many = torch.randn(3, 2, harmonics, dtype=torch.complex128)
    mapped = torch.func.vmap(lambda eta: ENTRY.log_partition(eta)[0])(many)
    torch.testing.assert_close(mapped, ENTRY.log_partition(many)[0])


def over_turns(x: Tensor, y: Tensor, noise: float, kappa: float) -> Tensor:
    """Log density of pairs `[N, R, A]` by a sum over 4,096 turns of a polar array, which know nothing of planes."""
    angle = 2 * math.pi * torch.arange(4096) / 4096
    turns = Polar(*x.shape[1:]).rotate(x[:, None, None], angle)[:, :, 0]
    prior = kappa * angle.cos() - math.log(ive(0, kappa)) - kappa - math.log(4096)
    return (gaussian(y.flatten(1)[:, None], turns.flatten(2), noise) + prior).logsumexp(1)


def error(action: object, kappa: float) -> float:
    x, y = (torch.as_tensor(a) for a in ENTRY.simulate("rotation", 0, 12)[:2])
    pair = ENTRY.TransformedPair(x.flatten(1), torch.tensor(1e-3), torch.tensor(kappa), action)
    return float((pair.log_prob(y.flatten(1)) - over_turns(x, y, 1e-3, kappa)).abs().max())


@pytest.mark.parametrize("kappa", [0.0, 2.0, 40.0])
def test_density_of_a_subgroup_is_the_sum_over_its_turns(kappa):
    assert error(ENTRY.fourier(5, 16, "angles"), kappa) < 1e-10


def test_density_with_a_mistake_is_no_sum_over_turns():
    right = ENTRY.fourier(5, 16, "angles")
    wrong = {
        "weights": ENTRY.Action(right.planes, 8 - right.weights),
        "left out": ENTRY.Action(right.planes[:, 1:], right.weights[1:]),
        "direction": ENTRY.Action(right.planes * (1 + 0.1 * (right.weights == 3)), right.weights),
        "coupled": ENTRY.Action(right.planes, torch.ones_like(right.weights), coupled=False),
    }
    assert {name for name, action in wrong.items() if error(action, 2.0) < 1e-3} == set()


def test_density_of_the_torus_is_the_sum_over_all_its_phases():
    waves = ENTRY.fourier(1, 5, "angles")  # two planes
    torus = ENTRY.Action(waves.planes, torch.ones(2, dtype=torch.long), coupled=False)
    x, y = torch.randn(2, 6, 5)
    phase = 2 * math.pi * torch.arange(200) / 200
    both = torch.cartesian_prod(phase, phase)
    moved = torch.stack([torus.scale(x, torch.polar(torch.ones(2), angle)) for angle in both])
    prior = 1.5 * both.cos().sum(-1) - 2 * (math.log(ive(0, 1.5)) + 1.5) - 2 * math.log(200)
    expected = (gaussian(y, moved, 0.3) + prior[:, None]).logsumexp(0)
    pair = ENTRY.TransformedPair(x, torch.tensor(0.3), torch.tensor(1.5), torus)
    torch.testing.assert_close(pair.log_prob(y), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("rings", "angles"), [(5, 16), (4, 7)])
def test_planes_are_orthonormal_and_phases_turn_and_shift(rings, angles):
    x = torch.randn(2, rings, angles)
    x = x - x.unflatten(1, (-1,)).mul((-1.0) ** torch.arange(angles)).mean(-1, keepdim=True) * (-1.0) ** torch.arange(
        angles
    ) * (angles % 2 == 0)  # the fastest wave stays
    for axis, dim, length in (("angles", 2, angles), ("rings", 1, rings)):
        action = ENTRY.fourier(rings, angles, axis)
        columns = torch.cat([action.planes.real, action.planes.imag], 1)
        torch.testing.assert_close(columns.T @ columns, torch.eye(columns.shape[1]))
        if axis == "rings" and rings % 2 == 0:
            continue
        step = torch.polar(torch.ones(len(action.weights)), 2 * math.pi / length * action.weights)
        torch.testing.assert_close(action.scale(x.flatten(1), step).reshape(x.shape), x.roll(1, dim))


@pytest.mark.parametrize("label", ["trivial-polar", "SO2", "rotation", "radial", "torus", "null"])
def test_samples_have_the_stated_moments(turned, label):
    args = found(turned)[label].prepare(turned)
    sites = {"noise": torch.tensor(0.1)} | ({"rotation": torch.tensor(1.2)} if label == "rotation" else {})
    pair = ENTRY.given(turned.x.flatten(1), *args[2:], sites)
    drawn = pair.sample((2000,))  # [S, N, D]
    z = (drawn.mean(0) - pair.mean) / (drawn.std(0) / math.sqrt(2000))
    assert float(z.abs().max()) < stats.norm.isf(ALPHA / 2 / z.numel())
    spread = (drawn - pair.mean).square().mean(-1)  # [S, N]
    z = (spread.mean(0) - pair.variance.mean(-1)) / (spread.std(0) / math.sqrt(2000))
    assert float(z.abs().max()) < stats.norm.isf(ALPHA / 2 / z.numel())
    mean, variance = found(turned)[label].predict(args, [sites], turned.x)
    torch.testing.assert_close(mean[0], pair.mean)
    torch.testing.assert_close(variance[0], pair.variance.mean(-1))


def test_concentration_is_that_of_a_uniform_range():
    degrees = torch.tensor([1.0, 20.0, 45.0, 90.0, 150.0, 180.0])
    kappa = ENTRY.concentration(torch.deg2rad(degrees))
    cosine = ENTRY.log_partition(kappa[:, None].to(torch.complex128))[1][:, 0].real
    torch.testing.assert_close(cosine, torch.sinc(degrees / 180), rtol=0.02, atol=1e-12)
    assert float(kappa[-1]) == pytest.approx(0, abs=1e-9)
    narrow = torch.tensor(1e-9)
    assert math.isfinite(ENTRY.concentration(narrow).item())


def test_null_is_the_population_of_x(turned):
    null = found(turned)["null"]
    draw = {"noise": torch.tensor(0.05)}
    density = null.log_density(null.prepare(turned), [draw], turned.x_test, turned.encode(turned.y_test))
    x = turned.x.flatten(1).numpy()
    covariance = np.cov(x.T) + np.mean(x**2) * (1e-4 + 0.05) * np.eye(80)
    expected = stats.multivariate_normal(x.mean(0), covariance).logpdf(turned.y_test.flatten(1).numpy())
    np.testing.assert_allclose(density[0].numpy(), expected, rtol=1e-9)


def test_model_is_the_sum_of_the_densities_of_pairs(turned):
    for h in found(turned).values():
        log_joint = LogJoint(h.model, h.prepare(turned))
        start = {name: torch.tensor(value) for name, value in h.starts[0].items()}
        together = log_joint.terms(log_joint.pack(start))[1]
        each = h.log_density(h.prepare(turned), [start], turned.x, turned.targets)
        torch.testing.assert_close(each.sum(), together)


@pytest.mark.parametrize("planted", SELECTED)
def test_planted_transformation_has_the_largest_likelihood(planted):
    """Over a grid of noise and range; a learned range loses to its ends on data without one."""
    data = ENTRY.data(planted, seed=5, size=60, test=0)
    grid = [{"noise": torch.tensor(n), "rotation": torch.tensor(r)} for n in (0.01, 0.03, 0.1, 0.5) for r in (0.35, 1)]
    grid += [{"noise": torch.tensor(1e-6), "rotation": torch.tensor(0.35)}]
    top = {}
    for h in found(data).values():
        draws = [{name: sites[name] for name in h.priors} for sites in grid]
        top[h.label] = float(h.log_density(h.prepare(data), draws, data.x, data.targets).sum(1).max())
    truth = top.pop(SELECTED[planted])
    assert truth - max(top.values()) > 30


def test_phases_are_the_angles_that_were_planted(turned):
    angle = torch.as_tensor(ENTRY.simulate("SO2", 0, 60)[2][40:])
    so2, draws = found(turned)["SO2"], [{"noise": torch.tensor(0.03)}]
    pose, length = ENTRY.phases(so2.prepare(turned), draws, turned.x_test, turned.encode(turned.y_test))
    off = torch.rad2deg(torch.remainder(pose - angle + math.pi, 2 * math.pi) - math.pi).abs()
    assert float(off.median()) < 1.5
    assert float(off.max()) < 8
    assert float(length.min()) > 0.9
    other = ENTRY.data("none", size=40, test=20)
    unsure = ENTRY.phases(so2.prepare(other), [{"noise": torch.tensor(0.6)}], other.x_test, other.encode(other.y_test))
    assert float(unsure[1].mean()) < float(length.mean())


def test_data_of_another_kind_are_refused(turned):
    flat = from_arrays("flat", *(a.flatten(1).numpy() for a in (turned.x, turned.y)), kind="pairs")
    with pytest.raises(BadInput, match=r"'flat' holds pairs \[80\]; toroidal_subgroups takes pairs of polar arrays"):
        ENTRY.hypotheses(flat)
    few = from_arrays("few", *(a[..., :2].numpy() for a in (turned.x, turned.y)), kind="pairs")
    with pytest.raises(BadInput, match="x_train: got polar arrays of 2 angles; 3 or more"):
        ENTRY.hypotheses(few)


def test_of_two_rings_nothing_is_shifted(turned):
    two = from_arrays("two", *(a[:, :2].numpy() for a in (turned.x, turned.y)), kind="pairs")
    assert set(found(turned)) - set(found(two)) == {"radial"}


@pytest.fixture(scope="module")
def selection(turned) -> Selection:
    with precisely():
        hypotheses = [h for h in ENTRY.hypotheses(turned) if h.label in ("null", "trivial-polar", "SO2")]
        fits = sorted((fit(h, turned) for h in hypotheses), key=lambda f: -f.evidence.value)
    return Selection(turned, tuple(hypotheses), tuple(fits), {}, "toroidal_subgroups", 0)


def test_pictures_show_all_pairs_and_all_weights(selection, figures):
    bars = plotting.poses(selection).patches
    assert sum(bar.get_height() for bar in bars) == 40
    assert len(ENTRY.filters(selection).collections) == 2 * 2 * 7
    assert {plotting.poses, ENTRY.filters} <= set(plotting.pictures(selection))


def test_arviz_knows_the_density_of_each_pair(selection):
    found = selection.inference_data("SO2")
    values = found.log_likelihood["targets"]
    assert values.shape == (1, 32, 40)
    best = next(f for f in selection.fits if f.label == "SO2")
    torch.testing.assert_close(torch.as_tensor(values.values[0]).sum(1), best.weighted[:, -2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("planted", SELECTED)
def test_planted_transformation_is_selected(planted, seed):
    run = select(ENTRY.data(planted, seed=seed, test=0), "toroidal_subgroups", seed=seed, jobs=1)
    assert run.best.label == SELECTED[planted]
    held = {s for s, v in run.verdicts.items() if v.verdict == "supported"}
    assert held == {"SO2": {"SO2", "rotation"}, "rotation": {"rotation"}, "radial": {"radial"}}.get(planted, set())


@pytest.mark.slow
def test_posteriors_of_noise_and_range_are_calibrated():
    data = ENTRY.data(size=12, test=0)
    assert calibrate(found(data)["rotation"], data, simulations=60, jobs=1).passed
