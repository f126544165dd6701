"""A run's outcome: plain values, ArviZ, predictions, and back from its folder."""

import json
import math
from dataclasses import replace

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from scipy import stats

from pyro_invariance.fitting import Range
from pyro_invariance.results import describe_extents, load
from pyro_invariance.runs import read_json, write_json
from pyro_invariance.typing import BadInput

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

LABELS = ["null", "trivial-polar", "mirror", "rotation"]
NUMBERS = {"log_evidence", "std_error", "upper", "seed_spread", "drift", "khat", "looseness", "own_trivial_lift"}
WORDS = {"name", "kind", "base", "representation", "method", "status", "bound", "contains", "priors"}
OTHERS = {"extent", "other_optima", "probability", "test", "paired_vs_best", "cpu_seconds", "wall_seconds"}


def test_selection_json_has_every_key_and_no_nan(run, folder):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in selection.json")

    text = (folder / "selection.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=refuse)
    assert content["schema"] == 1
    assert {"command", "versions", "entry", "data", "seed", "hypotheses", "symmetries", "best"} <= content.keys()
    assert {"pyro_invariance", "torch", "pyro", "numpy", "python"} <= content["versions"].keys()
    data = content["data"]
    assert {"name", "sha256", "n", "n_evidence", "shape", "target_coding"} <= data.keys()
    assert (data["name"], data["n"], data["n_evidence"], data["shape"]) == ("tiny", 40, 40, [1, 8, 8])
    assert data["sha256"] == run.data.sha256
    assert (content["entry"], content["seed"]) == ("orbit_gp", 0)
    assert [row["label"] for row in content["hypotheses"]] == LABELS
    fits = {f.label: f for f in run.fits}
    for row in content["hypotheses"]:
        assert row["status"] == "done"
        assert row.keys() >= NUMBERS | WORDS | OTHERS
        f = fits[row["label"]]
        for key in ("log_evidence", "bound", "std_error", "drift", "khat", "looseness"):
            assert row[key] == getattr(f.evidence, "value" if key == "log_evidence" else key)
        assert (row["upper"], row["seed_spread"], row["base"]) == (f.upper, f.evidence.restart_spread, f.base)
        assert row["contains"] == sorted(f.contains)
        assert row["priors"].keys() == f.draws.keys()
        assert {"accuracy", "log_density"} <= row["test"].keys()
        assert row["paired_vs_best"].keys() == {"mean", "se"}
    rows = {row["label"]: row for row in content["hypotheses"]}
    lift = fits["mirror"].evidence.value - fits["trivial-polar"].evidence.value
    assert rows["mirror"]["own_trivial_lift"] == pytest.approx(lift)
    assert rows["null"]["own_trivial_lift"] is None
    assert rows[run.best.label]["paired_vs_best"] == {"mean": 0.0, "se": 0.0}
    turn = rows["rotation"]["extent"]["rotation"]
    assert turn.keys() == {"mean", "sd", "lower", "upper", "unit", "saturated"}
    assert 0 < turn["lower"] < turn["mean"] < turn["upper"] < math.pi
    assert turn["unit"] == "rad"
    assert rows["mirror"]["extent"] == {}
    assert content["symmetries"].keys() == {"mirror", "C4", "SO2", "rotation"}
    for symmetry in content["symmetries"].values():
        assert {"verdict", "certified", "gap", "base", "reason"} <= symmetry.keys()
        assert symmetry["verdict"] in {"supported", "refused", "undecided"}
    first, second = run.fits[0], run.fits[1]
    gap = first.evidence.value - second.evidence.value
    assert content["best"] == {"name": first.label, "runner_up": second.label, "gap": pytest.approx(gap)}


def test_folder_holds_nothing_half_written(folder, run):
    assert [p for p in folder.rglob("*") if p.suffix == ".part"] == []
    assert {p.name for p in folder.iterdir()} == {
        "run.json",
        "data.json",
        "data.pt",
        "fits",
        "selection.json",
        "posterior.nc",
    }
    for path in folder.rglob("*.pt"):
        torch.load(path, weights_only=True)


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping:DeprecationWarning")  # ArviZ's own
def test_posterior_file_is_read_by_arviz(run, folder):
    stored = az.from_netcdf(folder / "posterior.nc")
    assert {"posterior", "prior"} <= set(stored.groups())
    assert stored.attrs["hypothesis"] == run.best.label
    assert stored.attrs["log_evidence"] == pytest.approx(run.best.evidence.value)
    assert stored.attrs["log_evidence_bound"] == "lower"
    assert stored.attrs["data"] == "tiny"
    for name, draws in run.best.draws.items():
        assert np.array_equal(stored.posterior[name].values, draws.numpy()[None])
        assert np.array_equal(stored.prior[name].values, run.best.prior[name].numpy()[None])
    summary = az.summary(stored, kind="stats")
    assert set(run.best.draws) <= set(summary.index)
    axes = az.plot_posterior(stored, var_names=sorted(run.best.draws))
    assert all(isinstance(a, Axes) for a in np.ravel(axes))
    plt.close("all")


def test_inference_data_carry_units(run):
    data = run.inference_data("rotation")
    units = {name: data.posterior[name].attrs["units"] for name in data.posterior.data_vars}
    assert units["rotation"] == "radians"
    assert units["rotation_degrees"] == "degrees"
    assert "distance" in units["lengthscale"]
    assert units["variance"] == units["noise"] == "target variance"
    turned = data.posterior["rotation_degrees"].values
    np.testing.assert_allclose(turned, np.degrees(data.posterior["rotation"].values))
    assert 0 < turned.min() <= turned.max() < 180
    assert data.posterior.sizes == {"chain": 1, "draw": 1000}
    assert data.prior["rotation"].attrs["units"] == "radians"
    uniform = stats.kstest(data.prior["rotation"].values.ravel() / math.pi, "uniform")
    assert uniform.pvalue > 1e-4
    with pytest.raises(BadInput, match="did you mean 'rotation'"):
        run.inference_data("rotations")


def test_loaded_run_is_the_run(run, folder, same):
    loaded = load(folder)
    assert all(same(a, b) for a, b in zip(loaded.fits, run.fits, strict=True))
    assert torch.equal(loaded.data.x, run.data.x)
    assert torch.equal(loaded.data.targets, run.data.targets)
    assert (loaded.entry, loaded.seed, loaded.failed) == (run.entry, run.seed, run.failed)
    assert loaded.verdicts == run.verdicts
    assert list(loaded.table.index) == list(run.table.index)  # without test scores: test data are not stored
    new = run.data.x_test
    for label in (None, *LABELS):
        probability = run.predict(new, label)
        assert torch.equal(loaded.predict(new, label), probability)
        assert probability.shape == (10, 2)
        torch.testing.assert_close(probability.sum(1), torch.ones(10))
        assert probability.dtype == torch.float64
    assert torch.equal(run.predict(new), run.predict(new, run.best.label))
    assert torch.equal(run.predict(new.float()), run.predict(new.float().double()))
    assert torch.allclose(run.predict(new, "null"), torch.tensor(0.5))
    with pytest.raises(BadInput, match="did you mean 'mirror'"):
        run.predict(new, "miror")


def test_predictions_are_float64_whatever_the_default_is(run):
    expected = run.predict(run.data.x_test, "rotation")
    torch.set_default_dtype(torch.float32)
    assert torch.equal(run.predict(run.data.x_test, "rotation"), expected)


def test_extents_in_words_say_which_are_shut_off(run):
    kept = Range(0.5, 0.01, 0.48, 0.52, "grid", saturated=False, zero=False)
    shut = replace(kept, mean=0.02, zero=True)
    turned = Range(3.0, 0.05, 2.9, 3.1, "rad", saturated=True, zero=False)

    def words(**extents: Range) -> str:
        return describe_extents(replace(run.best, extents=extents))

    assert words(rows=kept, columns=kept) == "rows 0.50 +- 0.01, columns 0.50 +- 0.01"
    assert words(rows=shut, rotation=turned, shear=shut) == "rotation at least 166 deg; shut off: rows, shear"
    assert words(rotation=replace(turned, lower=0.1), rows=shut) == "rotation undetermined; shut off: rows"
    assert words(rows=shut) == "shut off: rows"
    assert words() == ""


def test_load_says_what_is_wrong(copy, tmp_path):
    with pytest.raises(BadInput, match=r"holds no selection\.json"):
        load(tmp_path / "nowhere")
    (copy / "data.pt").write_bytes(b"half a")
    with pytest.raises(BadInput, match=r"data\.pt' cannot be read"):
        load(copy)
    (copy / "selection.json").write_text('{"schema": 1, ', encoding="utf-8")
    with pytest.raises(BadInput, match=r"selection\.json' cannot be read"):
        load(copy)


def test_predictions_on_the_test_images_are_those_that_were_scored(run):
    for f in run.fits:
        torch.testing.assert_close(run.predict(run.data.x_test, f.label), f.test_log_density.softmax(-1))


def test_predictions_of_nothing_are_refused(run):
    with pytest.raises(BadInput, match="images: got none"):
        run.predict(run.data.x_test[:0])


def test_nothing_is_omitted_from_models_of_ones_own(run):
    assert replace(run, entry="custom").omitted == ()


def test_images_that_are_not_finite_are_refused(run):
    new = run.data.x_test.clone()
    new[0, 0, 0, 0] = math.nan
    with pytest.raises(BadInput, match="NaN"):
        run.predict(new)


def test_lost_fits_are_missed(copy, run):
    (copy / "fits" / f"{run.best.label}.json").unlink()
    with pytest.raises(BadInput, match=f"lost the fits of {run.best.label}"):
        load(copy)


@pytest.mark.parametrize("what", ["version", "entry's source"])
def test_runs_of_other_code_are_refused(what, copy):
    made = read_json(copy / "run.json")
    write_json(copy / "run.json", {**made, what: "another"})
    with pytest.raises(BadInput, match=f"was made by another {what}"):
        load(copy)
