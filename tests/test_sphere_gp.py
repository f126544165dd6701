"""What the walk over the zoo does not cover of this entry: harmonics, groups, axes, planted truths, fields."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from scipy.spatial.transform import Rotation
from scipy.special import eval_legendre
from scipy.stats import norm
from torch import Tensor

from benchmarks.cases import FOLDER
from pyro_invariance import from_arrays, select
from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.results import Selection
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis, load

ENTRY = load("sphere_gp")
SCORES = torch.tensor([0.4, -0.9], dtype=torch.float64)  # of an axis like any other
LENGTHSCALE, ALPHA = 0.5, 1e-3
AXES = {"zonal": (0.0, 0.0, 1.0), "zonal-x": (1.0, 0.0, 0.0)}


def places(count: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    x = np.stack([np.arcsin(rng.uniform(-1, 1, count)), rng.uniform(-np.pi, np.pi, count)], 1)
    return torch.as_tensor(np.rad2deg(x))


def found(data: Dataset, scale: float = 1.0) -> dict[str, Hypothesis]:
    return {h.name: h for h in ENTRY.hypotheses(data, scale)}


def gram(data: Dataset, name: str, *sites: Tensor, lengthscale: float = LENGTHSCALE) -> Tensor:
    return found(data)[name].prepare(data)[0].gram(torch.tensor(lengthscale), *sites)


def test_harmonics_add_up_to_legendre_polynomials():
    points = ENTRY.positions(places(30))
    harmonics, degrees = ENTRY.harmonics(points, 24)
    assert degrees.long().bincount().tolist() == [2 * l + 1 for l in range(25)]  # noqa: E741
    for degree in (0, 1, 7, 24):
        chosen = harmonics[:, degrees == degree]
        expected = (2 * degree + 1) * eval_legendre(degree, (points @ points.T).clamp(-1, 1).numpy())
        np.testing.assert_allclose((chosen @ chosen.T).numpy(), expected, atol=1e-10)


def matern(cosine: np.ndarray) -> np.ndarray:
    """Sum of Legendre polynomials, one by one."""
    weights = [(2 * l + 1) * (3 / LENGTHSCALE**2 + l * (l + 1)) ** -2.5 for l in range(25)]  # noqa: E741
    return sum(w * eval_legendre(l, cosine.clip(-1, 1)) for l, w in enumerate(weights))  # noqa: E741


def averaged(name: str, x: np.ndarray) -> np.ndarray:
    """Stationary kernel averaged over all elements of a group, divided by its mean variance."""
    axis, order = ENTRY.frame(*SCORES)[2].numpy(), {"C2": 2, "C3": 3, "C4": 4, "zonal": 64}.get(name, 1)
    g = Rotation.from_rotvec(2 * np.pi / order * np.arange(order)[:, None] * axis).as_matrix()
    g = np.concatenate([g, -g]) if name == "antipodal" else g
    heights, weights = leggauss(25)  # with 50 longitudes, exact for squares of degree 24
    z, turn = (part.ravel() for part in np.meshgrid(heights, 2 * np.pi * np.arange(50) / 50, indexing="ij"))
    nodes = np.stack([np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], 1)
    variance = weights.repeat(50) / 100 @ matern(np.einsum("pi,gij,pj->pg", nodes, g, nodes)).mean(1)
    return matern(np.einsum("ni,gij,mj->gnm", x, g, x)).mean(0) / variance


@pytest.fixture(scope="module")
def few(float64: None) -> Dataset:
    return from_arrays("few", places(12).numpy(), np.arange(12) / 12, kind="sphere")


GROUPS = ["trivial", "C2", "C3", "C4", "zonal", "antipodal"]


@pytest.mark.parametrize("name", GROUPS)
def test_kernels_are_averages_over_all_turns(name, few):
    sites = SCORES if found(few)[name].predict.keywords["ranges"] else ()
    kernel, x = gram(few, name, *sites), ENTRY.positions(few.x).numpy()
    np.testing.assert_allclose(kernel.numpy(), averaged(name, x), atol=1e-10)
    for other in set(GROUPS) - {name}:  # the mutants: another group's
        assert np.abs(kernel.numpy() - averaged(other, x)).max() > 0.05


def test_all_rotations_leave_a_constant(few):
    torch.testing.assert_close(gram(few, "SO3"), torch.ones(12, 12))


def test_covariances_of_new_places_are_those_of_all_places(few):
    for name in ("trivial", "C3"):
        kernel, sites = found(few)[name].prepare(few)[0], (SCORES if name == "C3" else ())
        covariances, variances = kernel.cross(kernel.compared(few.x), torch.tensor(LENGTHSCALE), *sites)
        torch.testing.assert_close(covariances, gram(few, name, *sites))
        torch.testing.assert_close(variances, covariances.diagonal())


def test_gradients_in_lengthscale_and_axis(few):
    kernel = found(few)["C2"].prepare(few)[0]
    at = (torch.tensor(LENGTHSCALE, requires_grad=True), *(score.clone().requires_grad_() for score in SCORES))
    assert torch.autograd.gradcheck(kernel.gram, at)


def test_axes_are_last_rows_of_rotations():
    frames = ENTRY.frame(*torch.randn(2, 50))
    torch.testing.assert_close(frames @ frames.mT, torch.eye(3).expand(50, 3, 3))
    torch.testing.assert_close(torch.linalg.det(frames), torch.ones(50))
    for planted, axis in AXES.items():
        found_axis = ENTRY.frame(*torch.tensor(ENTRY.PLANTED[planted][1]))[2]
        torch.testing.assert_close(found_axis, torch.tensor(axis), atol=1e-3, rtol=0)


def uneven(axes: Tensor) -> float:
    """Largest z-score of second and fourth moments of axes along seven directions, which uniform ones have alike."""
    along = axes @ torch.nn.functional.normalize(torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)[:13]).T
    count = math.sqrt(len(axes))
    second, fourth = (along**2).mean(0) - 1 / 3, (along**4).mean(0) - 1 / 5
    scores = torch.stack([second * count / math.sqrt(1 / 5 - 1 / 9), fourth * count / math.sqrt(1 / 9 - 1 / 25)])
    return float(scores.abs().max())


def test_all_axes_are_alike_before_the_data():
    scores = torch.randn(2, 20_000)
    limit = norm.isf(ALPHA / (2 * 26))
    assert uneven(ENTRY.frame(*scores)[:, 2]) < limit
    assert uneven(ENTRY.frame(*scores * torch.tensor([[1.0], [0.8]]))[:, 2]) > limit  # the mutant: not enough north


def test_integral_over_scores_is_that_over_axes():
    """Density of the values at fixed hyperparameters, by the model over wide scores and by hand over even axes."""
    data, count = ENTRY.data("zonal", size=12, test=0), 361
    h = found(data, scale=2.0)["zonal"]
    log_joint = LogJoint(h.model, h.prepare(data))
    known = {"noise": torch.tensor(0.5), "variance": torch.tensor(1.0), "lengthscale": torch.tensor(LENGTHSCALE)}
    middle = torch.special.ndtri((torch.arange(19) + 0.5) / 19)

    def by_model(scale: float) -> float:
        rows = [dict(zip(("east", "north"), scale * s, strict=True)) for s in torch.cartesian_prod(middle, middle)]
        logs = [log_joint.terms(log_joint.pack(known | row))[1] for row in rows]
        return float(torch.stack(logs).logsumexp(0)) - math.log(count)

    height, turn = (2 * torch.arange(count) + 1) / count - 1, math.pi * (5**0.5 - 1) * torch.arange(count)
    ring = (1 - height**2).sqrt()
    along = torch.stack([ring * turn.cos(), ring * turn.sin(), height], 1) @ ENTRY.positions(data.x).T
    weights = [(3 / LENGTHSCALE**2 + l * (l + 1)) ** -2.5 for l in range(25)]  # noqa: E741
    waves = [torch.as_tensor(eval_legendre(l, along.numpy())) * math.sqrt(2 * l + 1) for l in range(25)]  # noqa: E741
    covariances = sum(w / sum(weights) * f[:, :, None] * f[:, None] for w, f in zip(weights, waves, strict=True))
    normal = torch.distributions.MultivariateNormal(torch.zeros(12), covariances + 0.5001 * torch.eye(12))
    by_hand = float(normal.log_prob(data.targets[:, 0]).logsumexp(0)) - math.log(count)
    assert by_model(2.0) == pytest.approx(by_hand, abs=0.02)
    assert abs(by_model(1.0) - by_hand) > 0.05  # the mutant: scores that are too close


@pytest.mark.parametrize("planted", list(AXES))
def test_climbs_start_near_the_planted_axis(planted):
    for seed in range(3):
        data = ENTRY.data(planted, seed, size=150, test=0)
        starts = found(data)["zonal"].starts
        axes = ENTRY.frame(*(torch.tensor([start[name] for start in starts]) for name in ("east", "north")))[:, 2]
        cosines = (axes @ torch.tensor(AXES[planted])).abs()
        assert float(cosines[0]) > math.cos(math.radians(15))
        assert float(cosines[1]) < math.cos(math.radians(15))  # one far away as well


def density(data: Dataset, name: str, scores: tuple[float, ...]) -> float:
    """Log density of the values at the hyperparameters that they were drawn with."""
    sites = torch.tensor(scores) if found(data)[name].predict.keywords["ranges"] else ()
    process = GaussianProcess(gram(data, name, *sites), torch.tensor(1.0), torch.tensor(0.01), (len(data.y), 1))
    return float(process.log_prob(data.y[:, None]))


@pytest.mark.parametrize("planted", ["zonal", "zonal-x", "C4", "antipodal"])
def test_planted_symmetry_is_in_the_values(planted):
    """The truth beats trivial; once broken, it loses."""
    functions, scores = ENTRY.PLANTED[planted]
    for truth, sign in ((planted, 1), ("none", -1)):
        data = ENTRY.data(truth, seed=1, size=150, test=0)
        assert sign * (density(data, *functions, scores) - density(data, "trivial", scores)) > 10


@pytest.fixture(scope="module")
def run(float64: None) -> Selection:
    data = ENTRY.data("zonal-x", size=110, test=40)
    return select(data, hypotheses=[found(data)["zonal"], found(data)["trivial"]], jobs=1)


def test_axis_is_learned_and_values_stay_the_same_around_it(run):
    frames = ENTRY.frame(run.best.draws["east"], run.best.draws["north"])
    assert float(frames[:, 2, 0].abs().mean()) > math.cos(math.radians(5))
    sites, zonal = [{name: values[0] for name, values in run.best.draws.items()}], run.hypotheses[0]
    points, axis = ENTRY.positions(run.data.x_test), frames[0, 2].numpy()
    for turned, same in (([0.0, 0.0, 1.0], False), (axis, True)):  # the mutant: around another axis
        moved = points @ torch.as_tensor(Rotation.from_rotvec(2.0 * np.asarray(turned)).as_matrix()).T
        x = torch.stack([moved[:, 2].asin(), torch.atan2(moved[:, 1], moved[:, 0])], 1).rad2deg()
        here, there = (zonal.predict(zonal.prepare(run.data), sites, at)[0] for at in (run.data.x_test, x))
        assert torch.allclose(here, there, atol=1e-8) is same


def test_pictures_are_drawn(run, tmp_path, figures):
    for draw, asks in ENTRY.PICTURES.items():
        axes = draw(run)
        assert asks.endswith("?") and draw.__doc__  # noqa: PT018
        axes.get_figure().savefig(tmp_path / f"{draw.__name__}.png")
    (cloud,) = axes.collections  # of the one with an axis
    longitude, latitude = cloud.get_offsets().T
    assert float(np.abs(np.cos(latitude) * np.cos(longitude)).mean()) > math.cos(math.radians(5))


def test_bad_places_and_values_are_refused():
    x, y = places(5).numpy(), np.arange(5.0)
    missing = np.where(y == 2, np.nan, y)
    bad = {"latitudes": (x[:, ::-1], y), "latitude and longitude": (x[:, :1], y), "1 values": (x, missing)}
    for message, given in bad.items():
        with pytest.raises(BadInput, match=message):
            from_arrays("bad", *given, kind="sphere")
    with pytest.raises(BadInput, match=r"got values of shape \(3,\); one float per item"):
        ENTRY.hypotheses(from_arrays("wind", x, np.stack([y] * 3, 1), kind="sphere"))


@pytest.mark.slow
@pytest.mark.parametrize("planted", [*ENTRY.PLANTED, "noise"])
def test_what_was_planted_is_selected(planted):
    data = ENTRY.data("none" if planted == "noise" else planted, size=150, test=0)
    if planted == "noise":
        data = from_arrays("noise", data.x.numpy(), torch.randn(150).numpy(), kind="sphere")
    selection = select(data, "sphere_gp", jobs=1)
    truth = {"none": "trivial-sphere", "zonal-x": "zonal", "noise": "null"}.get(planted, planted)
    assert selection.best.label == truth
    held = {s for s, v in selection.verdicts.items() if v.verdict == "supported"}
    assert held == selection.best.contains
    assert (planted == "noise") == all(v.verdict == "undecided" for v in selection.verdicts.values())


def earth(field: str) -> Dataset:
    """Values of a real field in 300 places, equally many for equal areas."""
    if not (FOLDER / "earth_latlon.npz").is_file():
        pytest.skip(f"{FOLDER} holds no earth_latlon.npz")
    with np.load(FOLDER / "earth_latlon.npz") as held:
        grid, values = {
            "temperature": ("cru", held["cru_temp_monthly"].mean(0)),
            "height": ("era", held["era_z"][0, 0]),  # of 200 hPa in January
            "land": ("landsea", (held["landsea_mask"] == 1) * 1.0),
        }[field]
        x = np.stack(np.meshgrid(held[f"{grid}_lat"], held[f"{grid}_lon"], indexing="ij"), -1)
    x = x.reshape(-1, 2).astype(float)
    share = np.cos(np.deg2rad(x[:, 0])).clip(0)
    chosen = np.random.default_rng(0).choice(len(x), 300, replace=False, p=share / share.sum())
    return from_arrays(field, x[chosen], values.ravel()[chosen].astype(float), kind="sphere")


@pytest.mark.slow
@pytest.mark.parametrize("field", ["temperature", "height", "land"])
def test_real_fields_are_not_zonal_alone(field):
    run = select(earth(field), "sphere_gp", ["zonal", "trivial", "zonal-residual"])
    assert run.verdicts["zonal"].verdict == "refused"
    fits = {f.name: f for f in run.fits}
    evidence = {name: f.evidence.value for name, f in fits.items()}
    assert evidence["trivial"] > evidence["zonal"] + 10
    if field != "land":
        assert evidence["zonal-residual"] - 10 > evidence["trivial"]
        assert 0.05 < fits["zonal-residual"].shares["trivial"] < 0.4
        axes = ENTRY.frame(*(fits["zonal-residual"].draws[name] for name in ("east", "north")))[:, 2]
        assert float(axes[:, 2].abs().mean()) > math.cos(math.radians(10))  # it is the Earth's
