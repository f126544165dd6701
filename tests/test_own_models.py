"""Hypotheses of one's own: plain Pyro models with a known evidence."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_invariance import from_arrays, runs
from pyro_invariance.datasets import Dataset
from pyro_invariance.densities import SoftUniform
from pyro_invariance.groups import SO2
from pyro_invariance.report import report
from pyro_invariance.representations import Polar
from pyro_invariance.results import Selection, load
from pyro_invariance.runs import read_json
from pyro_invariance.selection import select
from pyro_invariance.sites import Marginalised
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Extent, Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

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
        assert f.evidence.value <= exact + stats.norm.ppf(0.999) * f.evidence.std_error + 1e-9
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
    assert "test_own_models.py" in result.failed["broken"]  # where it happened
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
    spread = NOISE * line.y.std()  # the density is that of labels in their own unit
    exact = dist.Normal(result.predict(line.x_test), spread).log_prob(line.y_test).mean()
    assert result.test_scores(result.best)["log_density"] == pytest.approx(float(exact), abs=0.05)
    assert rmse < 0.5 * result.test_scores(result.fits[1])["rmse"]
    assert not torch.equal(result.predict(line.x_test, "constant"), expected)


def test_own_models_of_series_have_a_report(lines, tmp_path):
    page = report(lines[0], tmp_path).read_text(encoding="utf-8")
    assert "What does that mean for these images?" not in page
    assert "broken was not fitted" in page


def test_own_models_cannot_be_restored_from_a_folder(lines):
    with pytest.raises(BadInput, match="hypotheses of its own"):
        load(lines[1])


def test_own_models_resume(lines, line, fitted, same):
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


def prepare_otherwise(data: Dataset) -> tuple[Tensor, Tensor]:
    return data.x, -data.targets[:, 0]


SHIFT = torch.tensor(1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"model": linear, "starts": ({"w": torch.zeros(3)},)},
        {"model": partial(constant)},
        {"prepare": prepare_otherwise},
        {"prepare": lambda data: (data.x, data.targets[:, 0] + SHIFT)},
        {"predict": None},
        {"predict": predict_linear},
        {"starts": ({"b": 1.0},)},
        {"contains": frozenset({"mirror"})},
        {"saturated": frozenset({"mirror"})},
        {"base": "other"},
        {"kind": "group"},
        {"priors": {"b": "Normal(0, 1)"}},
    ],
    ids=lambda c: next(iter(c)),
)
def test_changed_models_do_not_get_the_stored_numbers(change, lines, line, fitted, tmp_path):
    out = Path(shutil.copytree(lines[1], tmp_path / "copy"))
    select(line, hypotheses=[own("constant")], out=out, jobs=1)
    assert fitted == []  # unchanged: read back
    with pytest.raises(BadInput, match="differs in hypotheses"):
        select(line, hypotheses=[replace(own("constant"), **change)], out=out, jobs=1)


def test_what_a_model_says_is_the_same_in_every_process():
    def closed(offset: float) -> Callable:
        return lambda data: (data.x, data.targets[:, 0] + offset)

    class Held:
        def __init__(self, value: Tensor) -> None:
            self.value, self.self = value, self  # a structure that holds itself

        def __call__(self, data: Dataset) -> tuple:
            return data.x, self.value

    def said(prepare: object) -> str:
        return runs._said(prepare)

    assert said(closed(1.0)) == said(closed(1.0)) != said(closed(2.0))
    assert said(Held(torch.ones(2))) == said(Held(torch.ones(2))) != said(Held(torch.zeros(2)))
    assert said(partial(prepare, a=1)) == said(partial(prepare, a=1)) != said(partial(prepare, a=2))
    assert said(torch.nn.Linear(2, 1)) != said(torch.nn.Linear(2, 1))  # weights are drawn
    assert said(np.arange(5000)) != said(np.arange(5000)[::-1])
    assert " at 0x" not in said([closed(1.0), Held(SHIFT), {"a": prepare}, {1, 2}, torch.nn.Linear(2, 1), dist.Normal])


# Hypotheses with a transformation site: the pose of each image is summed out, its range is selected.

ROTOR = Polar(rings=2, angles=16)
TEMPLATE = torch.as_tensor(np.random.default_rng(4).normal(size=(1, 2, 16)))
BLUR, REACH = 0.6, 0.9


def posed(x: Tensor, reach: float | None) -> None:
    """Images of one template; each is turned by its own angle if there is a reach."""
    extent = pyro.sample("extent", dist.Uniform(torch.tensor(0.0), math.pi)) if reach is None else torch.tensor(reach)
    pyro.sample("offset", dist.Normal(torch.tensor(0.0), 0.1))
    with pyro.plate("images", len(x)):
        pose = pyro.sample("pose", SoftUniform(extent)) if reach != 0 else torch.zeros(len(x))
        view = SO2(on=ROTOR).act(pose, TEMPLATE)
        pyro.sample("x", dist.Normal(view, BLUR).to_event(3), obs=x)


def exact_evidence(x: Tensor, extents: Tensor) -> Tensor:
    """Log evidence at each extent, its pose integrated on a fine grid of angles."""
    total = []
    for extent in extents:
        angles, log_weights = SoftUniform(extent).nodes(256)
        views = ROTOR.rotate(TEMPLATE, angles)
        logs = dist.Normal(views[:, None], BLUR).log_prob(x).sum((-3, -2, -1)) + log_weights[:, None]
        total.append(logs.logsumexp(0).sum())
    return torch.stack(total)


@pytest.fixture(scope="session")
def turned(float64: None) -> Dataset:
    rng = np.random.default_rng(0)
    angles = torch.as_tensor(rng.uniform(-REACH, REACH, 60))
    x = ROTOR.rotate(TEMPLATE, angles) + BLUR * torch.as_tensor(rng.normal(size=(60, 1, 2, 16)))
    return from_arrays("turned", x.flatten(1).numpy(), np.arange(60) / 60.0)


def test_range_of_a_pose_is_selected(turned):
    def views(data: Dataset) -> tuple[Tensor]:
        return (data.x.reshape(-1, 1, 2, 16),)

    def hypothesis(name: str, kind: str, reach: float | None, **more: object) -> Hypothesis:
        wrapped = partial(posed, reach=reach)
        model = wrapped if reach == 0 else Marginalised(wrapped, nodes=128)
        starts = tuple({"offset": 0.0} | s for s in more.pop("starts", ({},)))
        return Hypothesis(name, kind, "template", model, views, starts, **more)

    angle = Extent("pose", "rad", upper=math.pi, reach=0.95 * math.pi, whole=True, resolution=0.02)
    result = select(
        turned,
        hypotheses=[
            hypothesis("upright", "none", 0),
            hypothesis(
                "turns",
                "augmentation",
                None,
                starts=({"extent": 0.3}, {"extent": 2.5}),
                extents={"extent": angle},
                contains=frozenset({"turns"}),
            ),
            hypothesis("all turns", "group", math.pi, contains=frozenset({"all turns"})),
        ],
        jobs=1,
    )
    assert result.failed == {}
    found = {f.label: f for f in result.fits}
    x = turned.x.reshape(-1, 1, 2, 16)
    assert result.best.label == "turns"
    assert found["turns"].extents["extent"].mean == pytest.approx(REACH, abs=3 * found["turns"].extents["extent"].sd)
    grid = torch.linspace(0.01, math.pi - 1e-6, 300)
    logs = exact_evidence(x, grid)
    integral = float(torch.trapezoid((logs - logs.max()).exp(), grid) / math.pi)
    exact = {
        "turns": float(logs.max()) + math.log(integral),
        "all turns": float(exact_evidence(x, torch.tensor([math.pi]))),
        "upright": float(dist.Normal(TEMPLATE, BLUR).log_prob(x).sum()),
    }
    for label, f in found.items():
        error = max(f.evidence.std_error, 1e-3)
        assert f.evidence.value <= exact[label] + stats.norm.ppf(1 - 1e-4) * error, label
        assert f.evidence.value >= exact[label] - 1.0, label
    pointwise = found["turns"].pointwise["x"]
    assert pointwise.shape == (32, 60)  # one density for each image, its pose summed out
    likelihood = found["turns"].weighted[:, -2]
    torch.testing.assert_close(pointwise.sum(1), likelihood)


class Bound:
    def __init__(self, level: float) -> None:
        self.level = level

    def model(self, x: Tensor, y: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.tensor(self.level), 1.0))
        pyro.sample("y", dist.Normal(b.expand(len(y)), NOISE).to_event(1), obs=y)


class Slotted:
    __slots__ = ("level",)

    def __init__(self, level: float) -> None:
        self.level = level


class Templated(torch.nn.Module):
    def __init__(self, level: float) -> None:
        super().__init__()
        self.template = torch.full((3,), level)


LEVEL = 1.0


def of_a_global(data: Dataset) -> float:
    return LEVEL


def typed(source: str) -> Callable:
    """A function without a source, as one typed at a prompt."""
    namespace: dict = {}
    exec(source, namespace)
    return namespace["f"]


@pytest.mark.parametrize(
    "make",
    [
        lambda k: Bound(k).model,
        lambda k: lambda data, level=k: level,
        lambda k: Slotted(k),
        lambda k: Templated(k),
        lambda k: [[[[[[Bound(k)]]]]]],
        lambda k: typed(f"def f(data):\n    return {k}"),
        lambda k: {Bound(k), "text", 3},
        lambda k: {torch.float64: k, "text": 1},
        lambda k: torch.tensor([k], dtype=torch.bfloat16),
    ],
    ids=["method", "default", "slots", "module", "nested", "prompt", "set", "mapping", "bfloat16"],
)
def test_what_a_model_refers_to_is_part_of_its_identity(make):
    assert runs._said(make(1.0)) == runs._said(make(1.0)) != runs._said(make(2.0))


def test_globals_are_part_of_the_identity(monkeypatch):
    before = runs._said(of_a_global)
    monkeypatch.setitem(of_a_global.__globals__, "LEVEL", 2.0)
    assert runs._said(of_a_global) != before


class Learned(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.noise = PyroParam(torch.tensor(0.5), dist.constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(b.expand(len(y)), self.noise).to_event(1), obs=y)


def test_parameters_without_a_prior_are_refused(line):
    model = Learned()
    result = select(line, hypotheses=[own("constant"), replace(own("constant"), name="learned", model=model)], jobs=1)
    assert "got parameters (noise" in result.failed["learned"]
    assert "which have no prior" in result.failed["learned"]
    assert float(model.noise.detach()) == 0.5


def reaching(x: Tensor, y: Tensor) -> None:
    reach = pyro.sample("reach", dist.Uniform(torch.tensor(0.0), 3.0))
    pyro.sample("y", dist.Normal(torch.zeros(len(y)), 0.1 + reach).to_event(1), obs=y)


def test_range_may_be_all_that_is_latent(line):
    extent = Extent("reach", "grid", upper=3.0, reach=2.9, whole=False, resolution=0.01)
    ranged = Hypothesis(
        "ranged", "augmentation", "own", reaching, prepare, ({"reach": 0.5},), extents={"reach": extent}
    )
    result = select(line, hypotheses=[ranged], jobs=1)
    y = prepare(line)[1]
    grid = torch.linspace(1e-4, 3 - 1e-4, 2000)
    logs = dist.Normal(0.0, 0.1 + grid[:, None]).log_prob(y).sum(1)
    exact = float(logs.max()) + math.log(float(torch.trapezoid((logs - logs.max()).exp(), grid) / 3))
    assert exact - 0.3 < result.best.evidence.value < exact + 4 * result.best.evidence.std_error
    share, value = result.best.profile
    assert len(share) == len(value) == 12


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "", ".hidden"])
def test_names_that_are_no_file_names_are_refused(name, line, tmp_path):
    with pytest.raises(BadInput, match="hypotheses: got the name"):
        select(line, hypotheses=[replace(own("constant"), name=name)], out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
