"""One call from data to verdict: ranking, resuming, refusing, storing, drawing."""

import json
import math
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_invariance import datasets, from_arrays, plotting, selection, zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.profiles import Profile, profile
from pyro_invariance.runs import RunFolder, read_json, write_json
from pyro_invariance.selection import Selection, load, select
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Extent, Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

LABELS = ["null", "trivial-polar", "mirror", "rotation"]
NUMBERS = {"log_evidence", "std_error", "upper", "seed_spread", "drift", "khat", "looseness", "own_trivial_lift"}
WORDS = {"name", "kind", "base", "representation", "method", "status", "bound", "contains", "priors"}
OTHERS = {"extent", "other_optima", "probability", "test", "paired_vs_best", "cpu_seconds", "wall_seconds"}


@pytest.fixture(scope="session")
def tiny(float64: None) -> Dataset:
    """Forty images of two classes, ten for testing."""
    values = zoo.load("orbit_gp").data("mirror", size=40, test=10, side=8)
    y, y_test = ((v > values.y.median()).long().numpy() for v in (values.y, values.y_test))
    return from_arrays("tiny", values.x[:, 0].numpy(), y, values.x_test[:, 0].numpy(), y_test)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("selection") / "run"


@pytest.fixture(scope="session")
def run(tiny: Dataset, folder: Path) -> Selection:
    return select(tiny, hypotheses=["mirror", "rotation"], seed=0, out=folder, jobs=1)


@pytest.fixture
def copy(run: Selection, folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the run folder, to break."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the labels of hypotheses fitted from now on."""
    labels = []

    def counted(hypothesis: Hypothesis, data: Dataset, seed: int) -> Fit:
        labels.append(hypothesis.label)
        return fit(hypothesis, data, seed)

    monkeypatch.setattr(selection, "fit", counted)
    return labels


def same(a: Fit, b: Fit) -> bool:
    """Whether two fits agree to the last bit in everything but the seconds."""
    plain = [{k: v for k, v in vars(f).items() if not k.endswith("seconds")} for f in (a, b)]

    def equal(u: object, v: object) -> bool:
        if torch.is_tensor(u):
            return torch.equal(u, v)
        if isinstance(u, dict):
            return u.keys() == v.keys() and all(equal(u[k], v[k]) for k in u)
        return u == v

    return equal(*plain)


# One call.


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


def test_fits_depend_on_the_seed_only(run, tiny):
    pyro.set_rng_seed(99)
    hypothesis = next(h for h in run.hypotheses if h.label == "mirror")
    again = fit(hypothesis, tiny, seed=0)
    stored = next(f for f in run.fits if f.label == "mirror")
    assert same(again, stored)  # alone or among others, in a worker or here
    assert not same(fit(hypothesis, tiny, seed=1), stored)
    assert len(pyro.get_param_store()) == 0


def test_selection_is_float64_whatever_the_default_is(run, tiny):
    torch.set_default_dtype(torch.float32)
    result = select(tiny, hypotheses=["mirror"], seed=0, jobs=1)
    assert torch.get_default_dtype() == torch.float32
    for f in result.fits:
        assert same(f, next(g for g in run.fits if g.label == f.label))
    new = tiny.x_test.float()
    assert torch.equal(result.predict(new, "mirror"), run.predict(new, "mirror"))
    scores = result.table.drop(columns="cpu_seconds")
    pd.testing.assert_frame_equal(scores, run.table.loc[scores.index].drop(columns="cpu_seconds"))


def test_workers_give_the_same_numbers(run, tiny):
    two = select(tiny, hypotheses=["mirror"], seed=0, jobs=2)
    for f in two.fits:
        assert same(f, next(g for g in run.fits if g.label == f.label))


def test_own_random_numbers_are_those_of_the_seed(tiny):
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
    by_name = selection.choose(tiny, "orbit_gp", ["trivial"])
    assert [h.label for h in by_name] == ["null", "trivial-polar", "trivial-pixels", "trivial-patches"]
    by_label = selection.choose(tiny, "orbit_gp", ["trivial-pixels"])
    assert [h.label for h in by_label] == ["null", "trivial-pixels"]
    assert [h.label for h in selection.choose(tiny, "orbit_gp", ["convolution"])] == [
        "null",
        "trivial-patches",
        "convolution",
    ]


# Hypotheses of one's own: plain Pyro models with a known evidence.

NOISE = 0.5


def prepare(data: Dataset) -> tuple[Tensor, Tensor]:
    return data.x, data.targets[:, 0]


def linear(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, NOISE).to_event(1), obs=y)


def constant(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.sample("y", dist.Normal(b.expand(len(y)), NOISE).to_event(1), obs=y)


def broken(x: Tensor, y: Tensor) -> None:
    raise ZeroDivisionError("no such model")


def discrete(x: Tensor, y: Tensor) -> None:
    pyro.sample("coin", dist.Bernoulli(torch.tensor(0.5)))


def predict_linear(args: tuple, draws: list[dict[str, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    w = torch.stack([d["w"] for d in draws])
    return (w @ x.T)[..., None], torch.full((len(draws), len(x)), NOISE**2)


def predict_constant(args: tuple, draws: list[dict[str, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    b = torch.stack([d["b"] for d in draws])
    return b[:, None, None].expand(-1, len(x), 1), torch.full((len(draws), len(x)), NOISE**2)


def own(name: str) -> Hypothesis:
    model, site, predict = {
        "linear": (linear, {"w": torch.zeros(3)}, predict_linear),
        "constant": (constant, {"b": 0.0}, predict_constant),
        "broken": (broken, {}, None),
        "discrete": (discrete, {}, None),
    }[name]
    return Hypothesis(name=name, kind="none", base=name, model=model, prepare=prepare, starts=(site,), predict=predict)


@pytest.fixture(scope="session")
def line(float64: None) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y = 5 + 3 * (x @ [1.0, -2.0, 0.5] + 0.5 * rng.normal(size=40))
    return from_arrays("line", x[:30], y[:30], x[30:], y[30:])


@pytest.fixture(scope="session")
def lines(line: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Selection, Path]:
    out = tmp_path_factory.mktemp("own") / "run"
    return select(line, hypotheses=[own(n) for n in ("constant", "broken", "linear", "discrete")], out=out, jobs=1), out


def test_own_models_are_ranked_by_their_evidence(lines, line):
    result, _ = lines
    assert [f.label for f in result.fits] == ["linear", "constant"]
    assert result.entry == "custom"
    x, y = prepare(line)
    covariances = {"linear": x @ x.T, "constant": torch.ones(30, 30)}
    for f in result.fits:
        covariance = covariances[f.label] + NOISE**2 * torch.eye(30)
        exact = float(MultivariateNormal(torch.zeros(30), covariance).log_prob(y))
        assert f.evidence.value <= exact + stats.norm.ppf(0.999) * f.evidence.std_error
        assert f.evidence.value >= exact - 0.15 - 3 * f.evidence.std_error  # a few steps of SVI cost this much
        assert f.upper > exact
    posterior = torch.linalg.inv(x.T @ x / NOISE**2 + torch.eye(3))
    mean = posterior @ x.T @ y / NOISE**2
    z = (result.best.draws["w"].mean(0) - mean) / posterior.diagonal().sqrt()
    assert float(z.abs().max()) < 0.3  # the guide is trained by a noisy gradient


def test_failed_hypotheses_do_not_sink_the_others(lines):
    result, out = lines
    assert result.failed.keys() == {"broken", "discrete"}
    assert "ZeroDivisionError: no such model" in result.failed["broken"]
    assert "test_selection.py" in result.failed["broken"]  # where it happened
    assert "'coin' is discrete" in result.failed["discrete"]
    rows = {row["label"]: row for row in read_json(out / "selection.json")["hypotheses"]}
    assert list(rows) == ["constant", "broken", "linear", "discrete"]  # in the order asked
    assert [rows[k]["status"] for k in rows] == ["done", "failed", "done", "failed"]
    assert rows["broken"]["reason"] == result.failed["broken"]
    assert sorted(p.name for p in (out / "fits").iterdir()) == [
        f"{n}.{s}" for n in ("constant", "linear") for s in ("json", "pt")
    ]


def test_own_models_predict_in_the_units_of_the_labels(lines, line):
    result, _ = lines
    draws = result.best.draws["w"][:4]
    expected = (line.x_test @ draws.mean(0)) * line.y.std() + line.y.mean()
    torch.testing.assert_close(result.predict(line.x_test), expected)
    rmse = result.test_scores(result.best)["rmse"]
    residual = result.best.test_mean[:, 0] * line.y.std() + line.y.mean() - line.y_test
    assert rmse == pytest.approx(float(residual.square().mean().sqrt()))
    assert rmse < 0.5 * result.test_scores(result.fits[1])["rmse"]
    assert not torch.equal(result.predict(line.x_test, "constant"), expected)


def test_own_models_cannot_be_restored_from_a_folder(lines):
    with pytest.raises(BadInput, match="hypotheses of its own"):
        load(lines[1])


def test_own_models_resume(lines, line, fitted):
    result, out = lines
    again = select(line, hypotheses=[own(n) for n in ("constant", "linear")], out=out, jobs=1)
    assert fitted == []
    assert all(same(a, b) for a, b in zip(again.fits, result.fits, strict=True))


def test_own_models_must_have_names_of_their_own(line):
    with pytest.raises(BadInput, match="names must differ"):
        select(line, hypotheses=[own("linear"), own("linear")])
    with pytest.raises(BadInput, match="mixed"):
        select(line, hypotheses=[own("linear"), "mirror"])


def test_run_without_any_success_says_why(line):
    with pytest.raises(RuntimeError, match=r"every hypothesis failed.*broken: ZeroDivisionError"):
        select(line, hypotheses=[own("broken")], jobs=1)


def test_missing_start_is_named(line):
    result = select(line, hypotheses=[own("linear"), replace(own("constant"), starts=({},))], jobs=1)
    assert "no value for the sites ['b']" in result.failed["constant"]


# The run folder.


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
        assert (row["upper"], row["seed_spread"], row["base"]) == (f.upper, f.seed_spread, f.base)
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


def test_loaded_run_is_the_run(run, folder):
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


def test_load_says_what_is_wrong(copy, tmp_path):
    with pytest.raises(BadInput, match=r"holds no selection\.json"):
        load(tmp_path / "nowhere")
    (copy / "data.pt").write_bytes(b"half a")
    with pytest.raises(BadInput, match=r"data\.pt' cannot be read"):
        load(copy)
    (copy / "selection.json").write_text('{"schema": 1, ', encoding="utf-8")
    with pytest.raises(BadInput, match=r"selection\.json' cannot be read"):
        load(copy)


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


def test_finished_hypotheses_are_not_fitted_again(run, tiny, copy, fitted):
    before = {p: p.stat().st_mtime_ns for p in (copy / "fits").iterdir()}
    again = select(tiny, hypotheses=["mirror", "rotation"], seed=0, out=copy, jobs=1)
    assert fitted == []
    assert {p: p.stat().st_mtime_ns for p in (copy / "fits").iterdir()} == before
    assert all(same(a, b) for a, b in zip(again.fits, run.fits, strict=True))
    assert again.to_json() == run.to_json()


def test_unfinished_hypotheses_are_fitted_again(run, tiny, copy, fitted):
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

    monkeypatch.setattr(selection, "fit", interrupted)
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


@pytest.mark.parametrize("change", ["seed", "data", "entry", "version"])
def test_folder_of_another_run_is_refused(change, tiny, copy, fitted, monkeypatch):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    data, seed, hypotheses = tiny, 0, ["mirror"]
    if change == "seed":
        seed = 1
    elif change == "data":
        data = replace(tiny, sha256="0" * 64)
    elif change == "version":
        monkeypatch.setattr(selection, "VERSION", "0.0.0")
    else:
        hypotheses = [replace(h, name="mine") for h in selection.choose(tiny, "orbit_gp", ["null"])]
    with pytest.raises(BadInput) as caught:
        select(data, hypotheses=hypotheses, seed=seed, out=copy, jobs=1)
    message = str(caught.value)
    assert message.startswith("out: ")
    assert f"differs in {change}" in message
    assert "another folder" in message
    assert fitted == []
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


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


# Memory.


def test_hypotheses_that_do_not_fit_in_memory_are_refused(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(selection, "_available_memory", lambda: 1e8)
    result = select(tiny, hypotheses=["mirror"], out=tmp_path / "run", jobs=1)
    assert [f.label for f in result.fits] == ["null"]
    assert result.failed.keys() == {"mirror", "trivial-polar"}
    assert result.failed["mirror"] == "refused: needs 0.3 GB, 0.1 GB are free"
    content = read_json(tmp_path / "run" / "selection.json")
    assert [row["status"] for row in content["hypotheses"]] == ["done", "refused", "refused"]
    assert content["best"] == {"name": "null", "runner_up": None, "gap": None}
    assert content["symmetries"] == {}
    loaded = load(tmp_path / "run")
    assert loaded.failed == result.failed
    assert len(plotting.save_all(loaded, tmp_path)) == 3  # nothing to draw is no reason to fail


@pytest.mark.parametrize(
    ("available", "jobs", "expected"), [(1e12, 1, 1), (1e12, 2, 2), (7e8, 8, 2), (3.5e8, 8, 1), (1e12, 8, 3)]
)
def test_workers_are_as_many_as_memory_allows(available, jobs, expected, tiny, monkeypatch):
    hypotheses = selection.choose(tiny, "orbit_gp", ["mirror"])
    assert 2.6e8 < max(h.memory(tiny) for h in hypotheses) < 3.4e8
    asked = []

    class Serial:
        def __init__(self, n_jobs: int, return_as: str) -> None:
            asked.append(n_jobs)

        def __call__(self, calls: object) -> list:
            return [(args[0].label, "not fitted") for _, args, _ in calls]

    monkeypatch.setattr(selection, "_available_memory", lambda: available)
    monkeypatch.setattr(selection.joblib, "Parallel", Serial)
    done, failed = selection._fit_all(hypotheses, tiny, 0, None, jobs)
    assert asked == [expected]
    assert done == []
    assert failed.keys() == {h.label for h in hypotheses}


def test_free_memory_is_a_number():
    assert selection._available_memory() > 1e6


# Pictures.


def check_picture(path: Path) -> None:
    """Raise unless a PNG shows something: several colours, on more than a sliver of it."""
    pixels = plt.imread(path)[..., :3].reshape(-1, 3)
    colours, counts = np.unique(pixels.round(2), axis=0, return_counts=True)
    assert len(colours) > 10, path
    assert 1 - counts.max() / counts.sum() > 0.02, path
    assert pixels.shape[0] > 200 * 200


def test_pictures_are_written(run, tmp_path):
    paths = plotting.save_all(run, tmp_path)
    assert [p.name for p in paths] == ["evidence.png", "symmetries.png", "extents.png"]
    for path in paths:
        check_picture(path)
    assert plt.get_fignums() == []  # nothing is left open


def test_blank_picture_is_caught(tmp_path):
    figure = plt.figure()
    figure.savefig(tmp_path / "blank.png")
    plt.close(figure)
    with pytest.raises(AssertionError):
        check_picture(tmp_path / "blank.png")


@pytest.mark.parametrize("draw", [plotting.evidence, plotting.symmetries, plotting.extents])
def test_plots_return_their_axes(draw, run):
    axes = draw(run)
    assert isinstance(axes, Axes)
    assert axes.get_xlabel()
    assert axes.get_title()
    _, given = plt.subplots()
    assert draw(run, given) is given
    plt.close("all")


def test_plots_show_the_numbers(run):
    axes = plotting.evidence(run)
    assert [t.get_text() for t in axes.get_yticklabels()] == [f.label for f in run.fits[::-1] if f.kind != "null"]
    drawn = [f for f in run.fits[::-1] if f.kind != "null"]
    lines = [list(line.get_xdata()) for line in axes.lines]
    assert lines[::2] == [pytest.approx([f.evidence.value, f.upper]) for f in drawn]
    assert lines[1::2] == [pytest.approx([f.evidence.value]) for f in drawn]
    judged = [v for v in run.verdicts.values() if v.gap is not None]
    axes = plotting.symmetries(run)
    assert [bar.get_width() for bar in axes.patches[::2]] == pytest.approx([v.gap for v in judged])
    axes = plotting.extents(run)
    mass = sum(bar.get_height() * bar.get_width() for bar in axes.patches)
    assert mass == pytest.approx(1.0)
    plt.close("all")


# Profiles.

REACH = Extent("reach", "grid", upper=2.0, reach=1.9, whole=False, resolution=0.01)


def ranged(y: Tensor) -> None:
    reach = pyro.sample("reach", dist.Uniform(torch.tensor(0.0), 2.5))
    w = pyro.sample("w", dist.Normal(torch.tensor(0.0), 0.3))
    pyro.sample("y", dist.Normal((reach + w).expand(len(y)), 0.5).to_event(1), obs=y)


def test_profile_is_the_analytic_one(line):
    y = torch.tensor([1.1, 1.3, 0.9])
    hypothesis = Hypothesis(
        name="ranged",
        kind="augmentation",
        base="own",
        model=ranged,
        prepare=lambda data: (y,),
        starts=({"reach": 0.4, "w": 0.0},),
        extents={"reach": REACH},
    )
    result = profile(hypothesis, line, points=8)
    assert (result.label, result.unit, result.upper) == ("ranged", "grid", 2.0)
    assert result.extent == pytest.approx([0.25 * k for k in range(1, 9)], rel=1e-5)  # never zero, up to the end
    expected = []
    for reach in result.extent:
        precision = 3 / 0.25 + 1 / 0.09
        w = float((y - reach).sum()) / 0.25 / precision
        expected.append(stats.norm.logpdf(y.numpy(), reach + w, 0.5).sum() + stats.norm.logpdf(w, 0, 0.3))
    above = np.array(result.log_density) - result.log_density[0]
    assert above == pytest.approx(np.array(expected) - expected[0], abs=0.05)  # the search stops near the optimum
    assert int(np.argmax(above)) == 3  # the mean, 1.1, is nearest to 1.0


def test_profile_needs_a_range(run, tiny):
    hypothesis = next(h for h in run.hypotheses if h.label == "mirror")
    with pytest.raises(BadInput, match="'mirror' has no learned range"):
        profile(hypothesis, tiny)


@pytest.mark.parametrize("unit", ["rad", "grid"])
def test_profile_is_drawn(unit, tmp_path):
    result = Profile("rotation", unit, math.pi, [1.0, 2.0, 3.0], [-5.0, -1.0, -3.0])
    axes = plotting.profile(result)
    x, y = axes.lines[0].get_data()
    scale = 180 / math.pi if unit == "rad" else 1.0
    assert list(x) == pytest.approx([scale, 2 * scale, 3 * scale])
    assert list(y) == result.log_density
    assert f"{2 * scale:.3g}" in axes.get_legend().get_texts()[0].get_text()
    assert ("degrees" in axes.get_xlabel()) == (unit == "rad")
    axes.figure.savefig(tmp_path / "profile.png")
    check_picture(tmp_path / "profile.png")
    assert plotting.profile(result, axes) is axes
    plt.close("all")
