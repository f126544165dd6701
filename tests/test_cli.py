"""The command line: exit status 0, 1 or 2, one line on stderr for bad input, nothing half-written."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyro_invariance import cli, datasets, results, sweep, zoo
from pyro_invariance.cli import describe, main
from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.runs import read_json
from pyro_invariance.zoo import Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(scope="session")
def arrays(float64: None) -> dict[str, np.ndarray]:
    values = zoo.load("orbit_gp").data("mirror", size=40, test=10, side=8)
    y, y_test = ((v > values.y.median()).long().numpy() for v in (values.y, values.y_test))
    images = (values.x[:, 0].numpy(), values.x_test[:, 0].numpy())
    return {"x_train": images[0], "y_train": y, "x_test": images[1], "y_test": y_test}


@pytest.fixture(scope="session")
def data(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with every option named."""
    out = tmp_path_factory.mktemp("runs") / "run"
    command = ["select", str(data), "--model", "orbit_gp", "--hypotheses", "mirror", "--seed", "3", "--jobs", "1"]
    assert main([*command, "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, so that whatever is written by default can be seen."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture, elsewhere: Path) -> Callable[..., str]:
    """Run a command that must be refused, and return its one line; nothing may have been written."""

    def run(*arguments: object) -> str:
        assert main([str(a) for a in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("pyro-invariance: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        assert list(elsewhere.iterdir()) == []
        return err

    return run


# Bad input.


def test_unknown_commands(refused):
    message = refused("selekt")
    assert "'selekt'" in message
    assert "select" in message
    assert "--help" in message
    assert "COMMAND" in refused()
    assert "--speed" in refused("list", "--speed", "9")
    assert "name" in refused("card")


@pytest.mark.parametrize("value", ["many", "1.5", ""])
def test_numbers_must_be_numbers(value, refused, data):
    for option in ("--seed", "--jobs"):
        message = refused("select", data, option, value)
        assert option in message
        assert "invalid int value" in message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("miror", ("'miror'", "did you mean 'mirror'")),
        ("mirror,C5", ("'C5'", "did you mean 'C4'")),
        ("", ("got none", "accepted: null, trivial")),
        (",", ("got none", "accepted: null, trivial")),
    ],
)
def test_unknown_hypotheses(given, words, refused, data, tmp_path):
    message = refused("select", data, "--hypotheses", given, "--out", tmp_path / "run")
    assert all(word in message for word in ("hypotheses", *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["select", "profile"])
def test_unknown_models(command, refused, data):
    message = refused(command, data, "--model", "orbit_gb")
    assert "'orbit_gb'" in message
    assert "did you mean 'orbit_gp'" in message
    assert "did you mean 'orbit_gp'" in refused("card", "orbit-gp")


@pytest.mark.parametrize("command", ["select", "profile"])
def test_unknown_data(command, refused, tmp_path):
    assert "did you mean 'digits'" in refused(command, "digit")
    message = refused(command, tmp_path / "missing.npz")
    assert "no file" in message
    assert str(tmp_path / "missing.npz") in message
    assert ".npz" in refused(command, tmp_path / "table.csv")


@pytest.mark.parametrize("command", ["select", "profile"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_train": np.full((40, 8, 8), np.nan)}, ("x_train", "2560", "NaN")),
        ({"y_train": np.arange(40) - 1}, ("y_train", "-1", "0, 1, ..., C-1")),
        ({"x_train": np.zeros((40, 8, 8))}, ("x_train", "40 items are the same")),
        ({"x_train": np.random.default_rng(0).random((40, 8))}, ("x_test", "(8, 8)", "(8,)")),
        ({"y_train": np.array([None] * 40)}, ("object arrays", "blobs.npz")),
    ],
)
def test_bad_arrays(command, change, words, refused, arrays, tmp_path):
    np.savez(tmp_path / "blobs.npz", **{**arrays, **change})
    message = refused(command, tmp_path / "blobs.npz")
    assert all(word in message for word in words)


def test_bad_archive(refused, tmp_path):
    (tmp_path / "blobs.npz").write_text("x_train\n", encoding="utf-8")
    assert "blobs.npz" in refused("select", tmp_path / "blobs.npz", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_model_that_does_not_take_the_data(refused, tmp_path):
    np.savez(tmp_path / "waves.npz", x_train=np.random.default_rng(0).random((9, 5)), y_train=np.arange(9) % 3)
    assert "'waves' holds series; orbit_gp takes images" in refused("select", tmp_path / "waves.npz")


def test_folder_of_another_run(refused, data, finished):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    message = refused("select", data, "--hypotheses", "mirror", "--seed", "4", "--out", finished)
    assert "holds another run (differs in seed)" in message
    assert str(finished) in message
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_folder_of_something_else(refused, data, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "diary.txt").touch()
    assert "is no run folder" in refused("select", data, "--out", tmp_path / "letters")
    assert [p.name for p in (tmp_path / "letters").iterdir()] == ["diary.txt"]


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_jobs_below_one(jobs, refused, data):
    message = refused("select", data, f"--jobs={jobs}")
    assert f"jobs: got {jobs}; 1 or more" in message


def test_predicting_without_a_run(refused, data, tmp_path):
    message = refused("predict", tmp_path / "nowhere", data)
    assert "holds no selection.json" in message
    assert str(tmp_path / "nowhere") in message


def test_predicting_images_that_do_not_fit(refused, finished, tmp_path):
    before = sorted(finished.rglob("*"))
    new = tmp_path / "new.npz"
    assert "no file" in refused("predict", finished, new)
    np.savez(new, x=np.ones((2, 9, 9)))
    message = refused("predict", finished, new)
    assert "(9, 9, 1)" in message
    assert "(8, 8, 1)" in message
    np.savez(new, x=np.ones((2, 8, 8, 3)))
    assert "(8, 8, 3)" in refused("predict", finished, new)
    np.savez(new, images=np.ones((2, 8, 8)))
    assert "lacks x or x_test; it holds images" in refused("predict", finished, new)
    np.savez(new, x=np.ones((2, 8, 8)))
    assert "did you mean 'mirror'" in refused("predict", finished, new, "--hypothesis", "mirrors")
    np.savez(new, x=np.ones((2, 8, 8), np.uint8))
    assert "x: got dtype uint8; the run was on float64" in refused("predict", finished, new)
    np.savez(new, x=np.ones((0, 8, 8)))
    assert "x: got shape (0, 8, 8); one item or more" in refused("predict", finished, new)
    np.savez(new, x=np.ones((2, 8, 8)))
    assert "name a file in a folder that exists" in refused("predict", finished, new, "--out", "nowhere/p.npz")
    assert sorted(finished.rglob("*")) == before


def test_predictions_are_not_made_before_they_can_be_written(finished, refused, tmp_path, monkeypatch):
    np.savez(tmp_path / "new.npz", x=np.ones((2, 8, 8)))
    monkeypatch.setattr(results.Selection, "predict", lambda *a: pytest.fail("work was done"))
    assert "ends in .npz" in refused("predict", finished, tmp_path / "new.npz", "--out", tmp_path / "p.txt")


def test_profile_needs_a_range(refused, data):
    assert "'mirror' has no learned range" in refused("profile", data, "--hypothesis", "mirror")
    assert "did you mean 'rotation'" in refused("profile", data, "--hypothesis", "rotations")


# Good input.


def test_select_writes_a_run_folder(finished, data, capsys):
    content = read_json(finished / "selection.json")
    assert [row["label"] for row in content["hypotheses"]] == ["null", "trivial-polar", "mirror"]
    assert (content["seed"], content["data"]["name"], content["data"]["n"]) == (3, "blobs", 40)
    assert content["command"]
    names = {p.name for p in finished.iterdir()}
    assert {"selection.json", "posterior.nc", "evidence.png", "symmetries.png", "traces.png"} <= names
    assert [p for p in finished.rglob("*") if p.suffix == ".part"] == []
    arguments = ["--hypotheses", "mirror", "--seed", "3", "--jobs", "1", "--out", str(finished)]
    assert main(["select", str(data), *arguments]) == 0  # a finished run may be asked for again
    out = capsys.readouterr().out
    assert "blobs: evidence on 40 images; one output of -1 and +1" in out
    assert all(f"\n{label} " in out for label in ("null", "trivial-polar", "mirror"))
    assert f"best model: {content['best']['name']}, log evidence" in out
    assert "(lower bound)" in out
    assert str(finished) in out


def test_select_ends_by_saying_where_to_look(finished, data, capsys):
    arguments = ["--hypotheses", "mirror", "--seed", "3", "--jobs", "1", "--out", str(finished)]
    assert main(["select", str(data), *arguments]) == 0
    assert capsys.readouterr().out.endswith(f"look at {finished / 'report.html'}\n")
    assert "which symmetry?" in (finished / "report.html").read_text(encoding="utf-8")


def test_report_is_written_again(finished, tmp_path, capsys):
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    before = (copy / "report.html").read_text(encoding="utf-8")
    for name in ("report.html", "evidence.png"):
        (copy / name).unlink()
    assert main(["report", str(copy)]) == 0
    assert capsys.readouterr().out == f"look at {copy / 'report.html'}\n"
    again = (copy / "report.html").read_text(encoding="utf-8")
    text = re.compile(r"data:image/png;base64,[^\"]*")
    assert text.sub("", again) == text.sub("", before)
    assert (copy / "evidence.png").is_file()


def test_report_needs_a_run(refused, tmp_path):
    assert "holds no selection.json" in refused("report", tmp_path / "nowhere")


def test_select_has_a_folder_of_its_own_by_default(data, elsewhere, capsys):
    assert main(["select", str(data), "--hypotheses", "null", "--jobs", "1"]) == 0
    (folder,) = (elsewhere / "runs").iterdir()
    assert folder.name.startswith("blobs-orbit_gp-seed0-")
    assert read_json(folder / "data.json")["sha256"].startswith(folder.name[-8:])
    assert f"in runs/{folder.name}: selection.json" in capsys.readouterr().out


def test_failed_hypothesis_is_status_one(data, tmp_path, monkeypatch, capsys):
    def fails(hypothesis: Hypothesis, given: Dataset, seed: int) -> Fit:
        if hypothesis.name == "mirror":
            raise FloatingPointError("the evidence lower bound is nan")
        return fit(hypothesis, given, seed)

    monkeypatch.setattr(sweep, "fit", fails)
    out = tmp_path / "run"
    assert main(["select", str(data), "--hypotheses", "mirror", "--jobs", "1", "--out", str(out)]) == 1
    printed, err = capsys.readouterr()
    assert "FloatingPointError: the evidence lower bound is nan" in printed
    assert "Traceback" not in err
    assert "best model: " in printed
    rows = {row["label"]: row["status"] for row in read_json(out / "selection.json")["hypotheses"]}
    assert rows == {"null": "done", "trivial-polar": "done", "mirror": "failed"}
    monkeypatch.undo()
    assert main(["select", str(data), "--hypotheses", "mirror", "--jobs", "1", "--out", str(out)]) == 0  # mended


def test_refused_hypothesis_is_status_one(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "available_memory", lambda: 1e8)
    out = tmp_path / "run"
    assert main(["select", str(data), "--hypotheses", "mirror", "--jobs", "1", "--out", str(out)]) == 1
    assert "refused: needs 0.5 GB, 0.1 GB are free" in capsys.readouterr().out


def test_subset_is_said(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "LIMIT", 30)
    assert main(["select", str(data), "--hypotheses", "null", "--jobs", "1", "--out", str(tmp_path / "run")]) == 0
    said = "blobs: evidence on 30 images, a class-balanced subset of 40 drawn with seed 0;"
    assert said in capsys.readouterr().out


def test_what_was_not_fitted_is_said(finished, capsys):
    run = results.load(finished)
    omitted = [h.label for h in run.omitted]
    assert {"C4", "O2", "translation"} <= set(omitted)
    assert not {"null", "trivial-polar", "mirror"} & set(omitted)
    assert f"know nothing of them: {', '.join(omitted)}" in describe(run)
    assert read_json(finished / "selection.json")["not_fitted"] == omitted


def test_exit_statuses_are_said(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "exit status: 0 done" in capsys.readouterr().out


def test_verdicts_are_said(finished, monkeypatch):
    run = results.load(finished)
    (verdict,) = run.verdicts.values()
    assert f"{verdict.verdict}" in describe(run)
    assert f"({verdict.base}: {verdict.reason})" in describe(run)
    certified = dict.fromkeys(
        run.verdicts, type(verdict)("mirror", "supported", True, 99.0, 10.0, "polar", None, "why")
    )
    run.__dict__["verdicts"] = certified
    assert "supported , certified (polar: why)" in describe(run)


def test_predictions_are_those_of_the_run(finished, arrays, tmp_path, capsys):
    run = results.load(finished)
    new = tmp_path / "new.npz"
    for key, options, label in (("x", [], None), ("x_test", ["--hypothesis", "mirror"], "mirror")):
        np.savez(new, **{key: arrays["x_test"]})
        out = tmp_path / "predictions.npz"
        assert main(["predict", str(finished), str(new), "--out", str(out), *options]) == 0
        assert f"10 predictions by {label or run.best.label} in {out}" in capsys.readouterr().out
        with np.load(out) as written:
            expected = run.predict(torch.tensor(arrays["x_test"])[:, None], label).numpy()
            assert np.array_equal(written["probability"], expected)
            assert np.array_equal(written["label"], expected.argmax(1))


def test_predictions_go_to_the_run_by_default(finished, arrays, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    np.savez(tmp_path / "new.npz", x=arrays["x_test"][:3])
    assert main(["predict", str(copy), str(tmp_path / "new.npz")]) == 0
    with np.load(copy / "predictions.npz") as written:
        assert written["probability"].shape == (3, 2)


def test_predictions_of_a_regression_are_values(arrays, tmp_path):
    values = {**arrays, "y_train": 100 + arrays["y_train"] * 7.0, "y_test": arrays["y_test"] * 7.0}
    np.savez(tmp_path / "values.npz", **values)
    run = ["--hypotheses", "trivial-polar", "--jobs", "1", "--out", str(tmp_path / "run")]
    assert main(["select", str(tmp_path / "values.npz"), *run]) == 0
    np.savez(tmp_path / "new.npz", x=arrays["x_train"])
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new.npz"), "--hypothesis", "null"]) == 0
    with np.load(tmp_path / "run" / "predictions.npz") as written:
        assert written.files == ["value"]
        np.testing.assert_allclose(written["value"], values["y_train"].mean())


def test_list_names_every_entry(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == zoo.names()
    assert all(zoo.load(line.split()[0]).CARD.title in line for line in lines)


@pytest.mark.parametrize("name", zoo.names())
def test_card_says_what_an_entry_is(name, capsys):
    assert main(["card", name]) == 0
    out = capsys.readouterr().out
    card = zoo.load(name).CARD
    assert out.startswith(card.title)
    for part in (*card.hypotheses, *card.references, *card.sites, *card.limitations, card.licence):
        assert part in out


def test_interruption_is_no_traceback(data, tmp_path, monkeypatch, capsys):
    def interrupted(*args: object) -> Fit:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "fit", interrupted)
    assert main(["select", str(data), "--hypotheses", "null", "--jobs", "1", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "pyro-invariance: interrupted; the same command resumes\n"


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("select", "predict", "profile", "list", "card"))


def test_module_runs_as_a_program(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "pyro_invariance.cli", "select", "digit", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pyro-invariance: data: got 'digit'; did you mean 'digits'?")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "here"]


def test_nothing_is_shown_on_a_screen():
    assert plt.get_backend().lower() == "agg"
    assert cli.matplotlib.get_backend().lower() == "agg"
