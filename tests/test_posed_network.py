"""Poses of things that bend are found from images alone, and a pose is refused where there is none."""

import math

import numpy as np
import pytest
import torch

from benchmarks.cases import FOLDER
from pyro_invariance import from_arrays, select
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.numerics import float64
from pyro_invariance.posed_process import best_posed
from pyro_invariance.report import report
from pyro_invariance.representations import Pixels
from pyro_invariance.results import load as load_run
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import load

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ENTRY = load("posed_network")
TRUTH = {
    "none": set(),
    "rotation": {"rotation"},
    "SO2": {"rotation", "SO2"},
    "translation": {"translation"},
    "rotation-translation": {"rotation", "translation"},
    "SO2-translation": {"rotation", "SO2", "translation"},
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("planted", ENTRY.PLANTED)
def test_planted_poses_are_selected(planted, seed):
    run = select(ENTRY.data(planted, seed), "posed_network", seed=seed)
    assert {name for name, v in run.verdicts.items() if v.verdict == "supported"} == TRUTH[planted]
    for axis, extent in ENTRY.PLANTED[planted].items():
        if "SO2" not in TRUTH[planted]:  # nor is a shift known, but with the distance from the turning point
            assert run.best.extents[axis].mean == pytest.approx(extent, rel=0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    data = ENTRY.data("rotation-translation", size=120, test=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ENTRY, "STEPS", 100)
        patch.setattr(ENTRY, "BEGINNINGS", 1)
        return select(data, "posed_network", ["rotation-translation"], jobs=1, out=folder), folder


def test_poses_are_worth_something_and_are_found(run):
    selection, _ = run
    assert selection.best.label == "rotation-translation"
    assert {selection.verdicts[name].verdict for name in ("rotation", "translation")} == {"supported"}
    mean, error = selection.paired(next(f for f in selection.fits if f.name == "trivial"))
    assert mean + 4 * error < 0
    assert float(ENTRY.poses(selection)[1].median()) > 0.95
    evidence, terms = selection.best.evidence, selection.best.weighted[:, -3:]
    alone = float((terms[:, 0] + terms[:, 1] - terms[:, 2]).std()) / len(terms) ** 0.5
    chosen = selection.hypothesis()
    with float64():
        log_joint = LogJoint(chosen.model, chosen.prepare(selection.data))
        error, loose = log_joint.uncertainty(selection.best.weighted[0, :-3])  # near the mode, where it was told
    assert error > 3 * alone  # most of it is the error of importance
    assert evidence.std_error == pytest.approx(math.hypot(alone, error), rel=0.2)
    assert evidence.looseness == pytest.approx(loose, abs=0.1)
    with pytest.raises(BadInput, match="hypothesis: got 'rotated'"):
        selection.hypothesis("rotated")
    others = ENTRY.data("rotation-translation", seed=1, size=60, test=4)  # whose values are their angles
    with float64():
        found = best_posed(selection, ENTRY.given)[0].pose(ENTRY.arrays(others.x)[0].flatten(1))[0]
    assert np.corrcoef(found, others.y.flatten())[0, 1] > 0.9


def test_report_and_stored_run(run):
    selection, folder = run
    page = report(selection, folder).read_text(encoding="utf-8")
    assert "What do the images look like in one pose?" in page
    assert "were learned from other items" in page
    again = load_run(folder)
    torch.testing.assert_close(again.best.learned, selection.best.learned)
    torch.testing.assert_close(ENTRY.poses(again)[0], ENTRY.poses(selection)[0])
    with pytest.raises(BadInput, match="offers no predictions"):
        selection.predict(selection.data.x)


def test_decoder_draws_what_was_learned(run):
    """Images that the model draws are no less likely than those that it explains, within the spread of either."""
    selection, _ = run
    with float64():
        posed, x, _ = best_posed(selection, ENTRY.given)
        ours, drawn = posed.log_prob(x), posed.log_prob(posed.sample())
    assert abs(float(ours.median() - drawn.median())) < 4 * float(ours.std() + drawn.std())


def test_unknown_plant_and_data_without_images():
    with pytest.raises(BadInput, match="planted: got 'spiral'"):
        ENTRY.data("spiral")
    with pytest.raises(BadInput, match="posed_network takes images"):
        ENTRY.hypotheses(load("dipoles").data("none", size=12, test=4))


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER and (FOLDER / "mnist.npz").is_file()), reason="PYRO_INVARIANCE_DATA has no mnist.npz")
def test_threes_in_any_pose_are_worth_a_pose():
    raw = np.load(FOLDER / "mnist.npz")
    chosen = np.flatnonzero(raw["train_labels"] == 3)[:800]
    x = torch.as_tensor(raw["train_images"][chosen] / 255.0)[:, None]
    angle = torch.as_tensor(np.random.default_rng(0).uniform(-np.pi, np.pi, len(x)))
    x = Pixels().rotate(x, angle)[:, 0].numpy()
    data = from_arrays("threes", x[:600], np.arange(600) % 2, x[600:], np.arange(200) % 2)
    run = select(data, "posed_network", ["trivial", "SO2"])
    mean, error = run.paired(next(f for f in run.fits if f.name == "trivial"))
    assert -mean - 2.6 * error > 10
