"""The best hypothesis on all data: said apart, stored, read back, never ranked."""

import json
from pathlib import Path

import pytest

from pyro_invariance import carrying, datasets, results, zoo
from pyro_invariance.cli import describe
from pyro_invariance.datasets import Dataset
from pyro_invariance.report import cautions
from pyro_invariance.results import Selection
from pyro_invariance.selection import select
from pyro_invariance.typing import BadInput

NAMES = ["null", "trivial", "SO2"]


@pytest.fixture(scope="module")
def data(float64: None) -> Dataset:
    return zoo.load("orbit_gp").data("SO2", 0, size=200, test=80, side=10)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(datasets, "LIMIT", 80)
    monkeypatch.setattr(carrying, "INDUCING", 40)


@pytest.fixture
def selected(data, few, tmp_path) -> tuple[Selection, Path]:
    return select(data, hypotheses=NAMES, out=tmp_path / "run", jobs=1), tmp_path / "run"


def test_best_is_carried_and_never_ranked(selected):
    run, folder = selected
    assert (run.carried.label, run.carried.count, run.carried.inducing) == ("SO2", 200, 40)
    assert run.best.label == "SO2"
    assert run.carried.evidence.value not in run.table["log_evidence"].to_numpy()
    assert run.test_scores(run.carried)["rmse"] < 1.2 * run.test_scores(run.best)["rmse"]
    said = json.loads((folder / "selection.json").read_text())["carried"]
    assert (said["name"], said["n"], said["bound"]) == ("SO2", 200, "lower")


def test_it_is_said_that_it_is_another_bound(selected):
    run, _ = selected
    for words in (describe(run), " ".join(cautions(run))):
        assert "carried to all 200 items through 40" in words
        assert "no part of the ranking" in words


def test_a_stored_one_is_read_back(selected, data, monkeypatch):
    run, folder = selected

    def refit(*args: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(carrying, "fit_sparse", refit)
    assert select(data, hypotheses=NAMES, out=folder, jobs=1).carried.evidence == run.carried.evidence
    assert results.load(folder).carried.evidence == run.carried.evidence
    (folder / "carried.json").write_text("{}")
    with pytest.raises(BadInput, match="damaged"):
        results.load(folder)


def test_nothing_is_carried_where_all_data_were_used_or_noise_is_best(data, few, monkeypatch):
    assert select(data, hypotheses=["null"], jobs=1).carried is None
    monkeypatch.setattr(datasets, "LIMIT", 200)
    assert select(data, hypotheses=["SO2"], jobs=1).carried is None
