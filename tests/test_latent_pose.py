"""The range of poses is found from images alone, and a pose is refused where there is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.cases import FOLDER
from pyro_invariance import from_arrays, select
from pyro_invariance.fitting import fit
from pyro_invariance.posed_process import best_posed
from pyro_invariance.profiles import profile
from pyro_invariance.report import report
from pyro_invariance.representations import Pixels
from pyro_invariance.results import load as load_run
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import load

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ENTRY = load("latent_pose")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("planted", ENTRY.PLANTED)
def test_planted_poses_are_selected(planted, seed):
    run = select(ENTRY.data(planted, seed), "latent_pose", seed=seed)
    held = {name for name, v in run.verdicts.items() if v.verdict == "supported"}
    assert held == {"none": set(), "rotation": {"rotation"}, "SO2": {"rotation", "SO2"}}[planted]
    if planted == "rotation":
        (found,) = (f for f in run.fits if f.label == "rotation")
        assert np.degrees(found.extents["rotation"].mean) == pytest.approx(45, abs=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    data = ENTRY.data("rotation", size=120, test=20)
    return select(data, "latent_pose", ["rotation"], jobs=1, out=folder), folder


def test_a_pose_is_worth_something_and_the_angles_are_found(run):
    selection, _ = run
    assert selection.best.label == "rotation"
    assert selection.verdicts["rotation"].verdict == "supported"
    assert set(selection.test_scores(selection.best)) == {"log_density"}
    mean, error = selection.paired(next(f for f in selection.fits if f.name == "trivial"))
    assert mean + 4 * error < 0
    posed, x, label = best_posed(selection, ENTRY.given)
    assert label == "rotation"
    assert float(posed.pose(x)[1].median()) > 0.95


def test_report_and_stored_run(run):
    selection, folder = run
    page = report(selection, folder).read_text(encoding="utf-8")
    assert "What do the images look like upright?" in page
    assert "were learned from other items" in page
    again = load_run(folder)
    torch.testing.assert_close(again.best.learned, selection.best.learned)
    assert best_posed(again, ENTRY.given)[0].pose(best_posed(again, ENTRY.given)[1])[0].shape == (60,)
    with pytest.raises(BadInput, match="'rotation' offers no predictions"):
        selection.predict(selection.data.x)


def test_range_has_a_profile():
    (h,) = (h for h in ENTRY.hypotheses(ENTRY.data("rotation", size=40, test=0)) if h.name == "rotation")
    data = ENTRY.data("rotation", size=120, test=0).itself().halved(0)  # of 30, some are upright at 90 degrees
    found = profile(h, data, points=6)
    assert found.extent[int(np.argmax(found.log_density))] == pytest.approx(np.radians(45), abs=np.radians(31))


def test_images_may_be_in_any_unit():
    data = ENTRY.data("SO2", size=40, test=0).itself().halved(0)
    x = ENTRY.learn("SO2", data, 0)
    bright = ENTRY.learn("SO2", replace(data, x_earlier=255 * data.x_earlier), 0)
    torch.testing.assert_close(bright, {name: 255 * value for name, value in x.items()}, rtol=1e-4, atol=1e-4)


def test_half_a_turn_is_no_more_in_any_precision(float64):
    decoder = torch.zeros(3, 8, dtype=torch.float64), torch.ones(1, 3, 8, dtype=torch.float64)
    torch.set_default_dtype(torch.float32)
    posed = ENTRY.given(decoder, torch.ones((), dtype=torch.float64), "SO2", {"noise": torch.tensor(0.1)}, 2)
    assert posed.log_prob(torch.zeros(2, 24, dtype=torch.float64)).isfinite().all()


def test_a_circle_that_wins_has_its_pictures(tmp_path):
    run = select(ENTRY.data("SO2", size=60, test=4), "latent_pose", ["SO2"], jobs=1)
    page = report(run, tmp_path).read_text(encoding="utf-8")
    assert "The images come in poses that differ by any turn" in page


def test_labels_play_no_part():
    images = ENTRY.data("rotation", size=40, test=4).x[:, 0].numpy()
    data = from_arrays("mine", images, np.zeros(40) + (np.arange(40) > 19))
    trivial = {h.label: h for h in ENTRY.hypotheses(data)}["trivial-polar"]
    fits = (fit(trivial, replace(data, y=y).itself().halved(0)) for y in (data.y, data.y.flip(0)))
    assert len({f.evidence.value for f in fits}) == 1


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER and (FOLDER / "mnist.npz").is_file()), reason="PYRO_INVARIANCE_DATA has no mnist.npz")
@pytest.mark.parametrize(("degrees", "least"), [(2, 10), (45, 40), (180, 70)])
def test_held_out_gain_of_a_pose_on_digits(degrees, least):
    raw = np.load(FOLDER / "mnist.npz")
    chosen = np.flatnonzero(raw["train_labels"] == 3)[:4200]
    smooth = gaussian_filter(raw["train_images"][chosen] / 255.0, (0, 1, 1))  # or turns of pixels would be noise
    x = torch.as_tensor(smooth)[:, None]
    angle = torch.as_tensor(np.random.default_rng(0).uniform(-1, 1, len(x)) * np.radians(degrees))
    x = Pixels().rotate(x, angle)[:, 0].numpy()
    data = from_arrays(f"threes-{degrees}", x[:1200], np.arange(1200) % 2, x[1200:], np.arange(3000) % 2)
    run = select(data, "latent_pose")
    mean, error = run.paired(next(f for f in run.fits if f.name == "trivial"))
    assert -mean - 2.3 * error > least  # alpha = 1 %
