"""One call from data to verdict."""

import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from pyro_invariance import datasets, from_arrays, zoo
from pyro_invariance.fitting import fit
from pyro_invariance.modes import SCOUT
from pyro_invariance.runs import read_json
from pyro_invariance.selection import select
from pyro_invariance.typing import BadInput

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

LABELS = ["null", "trivial-polar", "mirror", "rotation"]


def test_selection_ranks_what_was_asked(run, tiny):
    assert sorted(f.label for f in run.fits) == sorted(LABELS)
    assert [h.label for h in run.hypotheses] == LABELS  # null and the trivial of the base come along
    values = [f.evidence.value for f in run.fits]
    assert values == sorted(values, reverse=True)
    assert run.best is run.fits[0]
    assert run.failed == {}
    assert (run.entry, run.seed, run.data.name) == ("orbit_gp", 0, "tiny")
    assert run.data.x is tiny.x  # below the limit: all of them
    assert set(run.verdicts) == {"mirror", "C4", "SO2", "rotation"}
    for f in run.fits:
        assert f.evidence.bound == "lower"
        assert f.upper >= f.evidence.value
        assert f.test_log_density.shape == (10, 2)
        assert f.draws.keys() == f.prior.keys()


def test_table_is_sorted_by_evidence(run):
    table = run.table
    assert isinstance(table, pd.DataFrame)
    assert table.index.name == "hypothesis"
    assert list(table.index) == [f.label for f in run.fits]
    assert table["log_evidence"].is_monotonic_decreasing
    assert {"base", "log_evidence", "upper", "std_error", "extent", "accuracy", "log_density", "cpu_seconds"} <= set(
        table
    )
    assert table["accuracy"].between(0, 1).all()
    assert table.loc["rotation", "extent"].startswith("rotation ")
    assert "deg" in table.loc["rotation", "extent"]
    assert table.loc["mirror", "extent"] == ""


def test_scores_are_those_of_the_predicted_probabilities(run):
    log_probs = run.best.test_log_density.log_softmax(-1)
    truth = run.data.y_test
    scores = run.test_scores(run.best)
    assert scores["accuracy"] == float((log_probs.argmax(-1) == truth).double().mean())
    assert scores["log_probability"] == pytest.approx(float(log_probs[torch.arange(10), truth].mean()))
    assert scores["log_density"] == pytest.approx(float(run.best.test_log_density[torch.arange(10), truth].mean()))


def test_fits_depend_on_the_seed_only(run, tiny, same):
    pyro.set_rng_seed(99)
    hypothesis = next(h for h in run.hypotheses if h.label == "mirror")
    again = fit(hypothesis, tiny, seed=0)
    stored = next(f for f in run.fits if f.label == "mirror")
    assert same(again, stored)  # alone or among others, in a worker or here
    assert not same(fit(hypothesis, tiny, seed=1), stored)
    assert len(pyro.get_param_store()) == 0


def test_selection_is_float64_whatever_the_default_is(run, tiny, same):
    torch.set_default_dtype(torch.float32)
    result = select(tiny, hypotheses=["mirror"], seed=0, jobs=1)
    assert torch.get_default_dtype() == torch.float32
    for f in result.fits:
        assert same(f, next(g for g in run.fits if g.label == f.label))
    new = tiny.x_test.float()
    assert torch.equal(result.predict(new, "mirror"), run.predict(new, "mirror"))
    scores = result.table.drop(columns="cpu_seconds")
    pd.testing.assert_frame_equal(scores, run.table.loc[scores.index].drop(columns="cpu_seconds"))


def test_workers_give_the_same_numbers(run, tiny, same):
    two = select(tiny, hypotheses=["mirror"], seed=0, jobs=2)
    for f in two.fits:
        assert same(f, next(g for g in run.fits if g.label == f.label))


def test_own_random_numbers_are_those_of_the_seed(tiny, same):
    first, again, other = (select(tiny, hypotheses=["null"], seed=s, jobs=1) for s in (5, 5, 6))
    assert same(first.best, again.best)
    assert first.best.evidence != other.best.evidence


def test_subset_is_drawn_and_said(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "LIMIT", 30)
    result = select(tiny, hypotheses=["null"], seed=4, out=tmp_path / "run", jobs=1)
    assert torch.equal(result.data.x, tiny.subset(30, 4).x)
    content = read_json(tmp_path / "run" / "selection.json")["data"]
    assert (content["n"], content["n_evidence"], content["n_test"]) == (40, 30, 10)
    counts = torch.bincount(result.data.y)
    assert int(counts.max() - counts.min()) <= 1
    with pytest.raises(BadInput, match="seed"):
        select(tiny, hypotheses=["null"], seed=5, out=tmp_path / "run", jobs=1)
    monkeypatch.setattr(datasets, "LIMIT", 35)
    with pytest.raises(BadInput, match="evidence images"):
        select(tiny, hypotheses=["null"], seed=4, out=tmp_path / "run", jobs=1)


@pytest.mark.parametrize(
    ("hypotheses", "words"),
    [
        (["mirro"], ("'mirro'", "did you mean 'mirror'")),
        (["mirror", "C5"], ("'C5'", "did you mean 'C4'")),
        ([], ("none", "null, trivial, mirror")),
        (["trivial-polr"], ("'trivial-polr'", "did you mean 'trivial'")),
    ],
)
def test_unknown_hypotheses_are_refused(hypotheses, words, tiny, tmp_path):
    with pytest.raises(BadInput) as caught:
        select(tiny, hypotheses=hypotheses, out=tmp_path / "run")
    assert all(word in str(caught.value) for word in ("hypotheses", *words))
    assert not (tmp_path / "run").exists()


def test_unknown_entry_is_refused(tiny, tmp_path):
    with pytest.raises(BadInput, match=r"model: got 'orbit_gq', did you mean 'orbit_gp'\?"):
        select(tiny, model="orbit_gq", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_entry_refuses_data_of_another_kind(tmp_path):
    series = from_arrays("waves", np.random.default_rng(0).random((9, 5)), np.arange(9) % 2)
    with pytest.raises(BadInput, match="'waves' holds series; orbit_gp takes images"):
        select(series, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trivial_comes_by_name_or_label(tiny):
    by_name = zoo.choose(tiny, "orbit_gp", ["trivial"])
    assert [h.label for h in by_name] == ["null", "trivial-polar", "trivial-pixels", "trivial-patches"]
    by_label = zoo.choose(tiny, "orbit_gp", ["trivial-pixels"])
    assert [h.label for h in by_label] == ["null", "trivial-pixels"]
    assert [h.label for h in zoo.choose(tiny, "orbit_gp", ["convolution"])] == [
        "null",
        "trivial-patches",
        "convolution",
    ]


def test_symmetries_of_a_chosen_group_are_isolated(tiny):
    def labels(*names: str) -> set[str]:
        return {h.label for h in zoo.choose(tiny, "orbit_gp", names)}

    plain = {"null", "trivial-polar"}
    assert labels("D4") == {*plain, "mirror", "C4", "D4"}
    assert labels("O2") == {*plain, "mirror", "C4", "D4", "SO2", "rotation", "O2"}
    assert labels("mirror") == {*plain, "mirror"}


def test_turns_are_not_taken_for_a_mirror():
    data = zoo.load("orbit_gp").data("SO2", 0, size=150, test=0, side=12)
    result = select(data, hypotheses=["O2"], jobs=1)
    assert result.verdicts["SO2"].verdict == "supported"
    assert result.verdicts["mirror"].verdict != "supported"  # O2 alone beats trivial by 52 nats


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_seeds_that_no_generator_takes_are_refused(seed, tiny):
    with pytest.raises(BadInput, match=r"seed: got .*; a whole number from 0 to 4294967195"):
        select(tiny, hypotheses=["null"], seed=seed)


def test_values_that_do_not_vary_among_a_few_items():
    x, y = np.random.default_rng(0).random((400, 6, 6)), np.zeros(400)
    y[next(i for i in range(400) if i not in _drawn(400, SCOUT))] = 1.0
    data = from_arrays("rare", x, y)
    result = select(data, hypotheses=["null"], jobs=1)
    assert math.isfinite(result.best.evidence.value)


def _drawn(count: int, size: int) -> set[int]:
    """Items of a subset drawn with seed 0."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return set(order[:size].tolist())


def test_values_that_do_not_vary_among_those_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "LIMIT", 20)
    y = np.zeros(400)
    y[next(i for i in range(400) if i not in _drawn(400, 20))] = 1.0
    with pytest.raises(BadInput, match="all values of the 20 items drawn are 0"):
        select(from_arrays("rare", np.random.default_rng(0).random((400, 6, 6)), y), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
