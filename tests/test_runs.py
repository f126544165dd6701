"""The run folder: what is in it belongs to one run, survives an interruption and is never executed."""

import inspect
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_invariance import runs, sweep, zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.results import load
from pyro_invariance.runs import RunFolder, read_json, write_json
from pyro_invariance.selection import select
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["data.pt", "fits/mirror.pt"])
def test_pickles_in_a_run_folder_are_never_executed(name, copy, tmp_path):
    torch.save({"x": Bomb(tmp_path / "executed")}, copy / name)
    with pytest.raises((BadInput, pickle.UnpicklingError)):
        load(copy)
    assert not (tmp_path / "executed").exists()


def test_finished_hypotheses_are_not_fitted_again(run, tiny, copy, fitted, same):
    before = {p: p.stat().st_mtime_ns for p in (copy / "fits").iterdir()}
    again = select(tiny, hypotheses=["mirror", "rotation"], seed=0, out=copy, jobs=1)
    assert fitted == []
    assert {p: p.stat().st_mtime_ns for p in (copy / "fits").iterdir()} == before
    assert all(same(a, b) for a, b in zip(again.fits, run.fits, strict=True))
    assert again.to_json() == run.to_json()


def test_unfinished_hypotheses_are_fitted_again(run, tiny, copy, fitted, same):
    (copy / "fits" / "mirror.json").rename(copy / "fits" / "mirror.json.part")  # interrupted just before the end
    (copy / "fits" / "trivial-polar.json").unlink()
    (copy / "fits" / "trivial-polar.pt").rename(copy / "fits" / "trivial-polar.pt.part")
    (copy / "fits" / "trivial-polar.pt.part").write_bytes(b"half a")  # and in the middle
    (copy / "selection.json").unlink()
    again = select(tiny, hypotheses=["mirror", "rotation"], seed=0, out=copy, jobs=1)
    assert sorted(fitted) == ["mirror", "trivial-polar"]
    assert all(same(a, b) for a, b in zip(again.fits, run.fits, strict=True))
    assert [p for p in copy.rglob("*") if p.suffix == ".part"] == []


def test_interrupted_run_resumes(tiny, tmp_path, monkeypatch):
    calls = []

    def interrupted(hypothesis: Hypothesis, data: Dataset, seed: int) -> Fit:
        calls.append(hypothesis.label)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(hypothesis, data, seed)

    monkeypatch.setattr(sweep, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        select(tiny, hypotheses=["mirror"], out=tmp_path / "run", jobs=1)
    assert not (tmp_path / "run" / "selection.json").exists()
    result = select(tiny, hypotheses=["mirror"], out=tmp_path / "run", jobs=1)
    assert len(calls) == 4  # the first was kept, the second done again, the third done
    assert calls.count(calls[0]) == 1
    assert len(result.fits) == 3


def test_more_hypotheses_may_be_asked_later(tiny, copy, fitted):
    more = select(tiny, hypotheses=["mirror", "C4"], seed=0, out=copy, jobs=1)
    assert fitted == ["C4"]
    assert {f.label for f in more.fits} == {"null", "trivial-polar", "mirror", "C4"}


@pytest.mark.parametrize("change", ["seed", "data", "entry", "entry's source", "version"])
def test_folder_of_another_run_is_refused(change, tiny, copy, fitted, monkeypatch):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    data, seed, hypotheses = tiny, 0, ["mirror"]
    if change == "seed":
        seed = 1
    elif change == "data":
        data = replace(tiny, x_test=tiny.x_test.flip(0))  # scores would be of other images
    elif change == "entry's source":
        monkeypatch.setattr(runs.inspect, "getsource", lambda code: "another model")
    elif change == "version":
        monkeypatch.setattr(runs, "VERSION", "0.0.0")
    else:
        hypotheses = [replace(h, name="mine") for h in zoo.choose(tiny, "orbit_gp", ["null"])]
    with pytest.raises(BadInput) as caught:
        select(data, hypotheses=hypotheses, seed=seed, out=copy, jobs=1)
    message = str(caught.value)
    assert message.startswith("out: ")
    assert f"differs in {change}" in message
    assert "another folder" in message
    assert fitted == []
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("entry", "module"),
    [
        ("posed_network", "priors"),  # imported as a module
        ("latent_pose", "posed_process"),  # as partial functions
        ("latent_pose", "priors"),  # by another module
        ("orbit_gp", "kernels"),
    ],
)
def test_identity_covers_what_an_entry_is_made_of(entry, module, monkeypatch):
    before, getsource = runs.source(entry), inspect.getsource
    other = f"pyro_invariance.{module}"
    monkeypatch.setattr(runs.inspect, "getsource", lambda m: "another" if m.__name__ == other else getsource(m))
    assert runs.source(entry) != before
    monkeypatch.setattr(runs.inspect, "getsource", lambda m: "another" if "report" in m.__name__ else getsource(m))
    assert runs.source(entry) == before


def test_folder_that_holds_something_else_is_refused(tiny, tmp_path, fitted):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "diary.txt").write_text("private", encoding="utf-8")
    (tmp_path / "file").write_text("text", encoding="utf-8")
    for name in ("letters", "file"):
        with pytest.raises(BadInput, match="is no run folder"):
            select(tiny, hypotheses=["null"], out=tmp_path / name, jobs=1)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["diary.txt", "file", "letters"]
    assert fitted == []
    (tmp_path / "empty").mkdir()
    select(tiny, hypotheses=["null"], out=tmp_path / "empty", jobs=1)
    assert (tmp_path / "empty" / "selection.json").is_file()


def test_run_folder_writes_nothing_before_it_is_opened(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run", {"seed": 1})
    assert folder.load("mirror") is None
    assert not (tmp_path / "deep").exists()
    folder.open()
    folder.open()
    assert read_json(tmp_path / "deep" / "run" / "run.json") == {"seed": 1}


def test_json_is_never_half_written_nor_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    for bad in ({"a": math.nan}, {"a": math.inf}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, bad)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
