"""The best hypothesis on all data: said apart, stored, read back, never ranked."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyro_invariance import carrying, datasets, results, zoo
from pyro_invariance.cli import describe
from pyro_invariance.datasets import Dataset
from pyro_invariance.report import cautions
from pyro_invariance.results import Selection
from pyro_invariance.selection import select
from pyro_invariance.typing import BadInput

NAMES = ["null", "SO2"]


@pytest.fixture(scope="module")
def data(float64: None) -> Dataset:
    return zoo.load("orbit_gp").data("SO2", 0, size=200, test=80, side=10)


@pytest.fixture(scope="module")
def few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "LIMIT", 120)
        patch.setattr(carrying, "INDUCING", 40)
        yield


@pytest.fixture(scope="module")
def selected(data, few, tmp_path_factory) -> tuple[Selection, Path]:
    folder = tmp_path_factory.mktemp("carried") / "run"
    return select(data, hypotheses=NAMES, out=folder, jobs=1), folder


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
        assert "carried to all 200 items through 40 inducing values" in words
        assert "no part of the ranking" in words


def test_a_stored_one_is_read_back(selected, data, monkeypatch):
    run, folder = selected

    def refit(*args: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(carrying, "fit_sparse", refit)
    assert select(data, hypotheses=NAMES, out=folder, jobs=1).carried.evidence == run.carried.evidence
    assert results.load(folder).carried.evidence == run.carried.evidence
    assert select(data, hypotheses=NAMES, out=folder, jobs=1, carry=False).carried is None
    assert results.load(folder).carried is None  # as the run that was made last says
    assert select(data, hypotheses=NAMES, out=folder, jobs=1).carried is not None


def test_a_damaged_one_is_named(selected, tmp_path):
    _, folder = selected
    for name in ("carried.json", "carried.pt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert carrying.read(tmp_path) is not None
    (tmp_path / "carried.json").write_text("{}")
    with pytest.raises(BadInput, match=r"carried.json.*damaged"):
        carrying.read(tmp_path)


def test_one_that_fails_is_said_and_the_selection_stands(data, few, monkeypatch, tmp_path):
    def failing(*args: object) -> None:
        raise FloatingPointError("inducing values explain too much")

    with monkeypatch.context() as patch:
        patch.setattr(carrying, "fit_sparse", failing)
        run = select(data, hypotheses=NAMES, out=tmp_path / "run", jobs=1)
    words = "SO2 could not be carried to all 200 items (FloatingPointError: inducing values explain too much)"
    for found in (run, results.load(tmp_path / "run")):
        assert words in describe(found)
        assert found.best.label == "SO2"
    assert results.load(tmp_path / "run").carried == words


def test_an_interrupted_carry_leaves_the_run(data, few, monkeypatch, tmp_path):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(carrying, "fit_sparse", interrupted)
        with pytest.raises(KeyboardInterrupt):
            select(data, hypotheses=NAMES, out=tmp_path / "run", jobs=1)
    assert results.load(tmp_path / "run").carried is None
    assert select(data, hypotheses=NAMES, out=tmp_path / "run", jobs=1).carried is not None


def test_nothing_is_carried_where_all_data_were_used_or_noise_is_best(data, few, monkeypatch):
    assert select(data, hypotheses=["null"], jobs=1).carried is None
    assert select(data, hypotheses=["SO2"], jobs=1, carry=False).carried is None
    monkeypatch.setattr(datasets, "LIMIT", 200)
    assert select(data, hypotheses=["SO2"], jobs=1).carried is None
