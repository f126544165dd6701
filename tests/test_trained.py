"""Parameters learned from earlier items; the evidence is of the others, for every hypothesis of a run."""

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.nn.utils.parametrizations import orthogonal

from pyro_invariance import from_arrays
from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import fit
from pyro_invariance.report import cautions
from pyro_invariance.results import load
from pyro_invariance.selection import select
from pyro_invariance.trained import train
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


class Line(PyroModule):
    """Values along a line whose slope is a parameter; the noise is a latent site."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = PyroParam(torch.tensor(0.0))

    def forward(self, x: Tensor, y: Tensor) -> None:
        noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 1.0))
        with pyro.plate("items", len(x)):
            pyro.sample("y", dist.Normal(self.slope * x, noise), obs=y)


class Scaled(PyroModule):
    """Covariances with an orthogonal matrix and positive scales, both parameters; no latent site."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = orthogonal(torch.nn.Linear(2, 2, bias=False))
        self.scales = PyroParam(torch.ones(2), constraints.positive)

    def forward(self, x: Tensor) -> None:
        root = self.turn.weight * self.scales
        with pyro.plate("items", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), root @ root.T), obs=x)


def arrays(n: int = 80) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2))
    return from_arrays("line", x, 2 * x[:, 0] + 0.3 * rng.normal(size=n), x[:5], 2 * x[:5, 0])


def learn(data: Dataset, seed: int) -> dict[str, Tensor]:
    assert data.x_earlier is not None
    assert data.y_earlier is not None
    return train(Line(), (data.x_earlier[:, 0], data.encode(data.y_earlier)[:, 0]), steps=200, rate=0.1, seed=seed)


def slope(parameters: dict[str, Tensor]) -> Tensor:
    line = Line()
    line.load_state_dict(parameters)
    return line.slope.detach()


def prepare(data: Dataset, parameters: dict[str, Tensor]) -> tuple:
    return slope(parameters), data.x[:, 0], data.targets[:, 0]


def along(rise: Tensor, x: Tensor, y: Tensor) -> None:
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 1.0))
    with pyro.plate("items", len(x)):
        pyro.sample("y", dist.Normal(rise * x, noise), obs=y)


def predict(args: tuple, draws: list[dict[str, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    noise = torch.stack([d["noise"] for d in draws])
    return (args[0] * x[:, :1]).expand(len(draws), -1, -1), noise[:, None].square().expand(-1, len(x))


def flat(data: Dataset) -> tuple:
    return torch.tensor(0.0), data.x[:, 0], data.targets[:, 0]


def spread(y: Tensor) -> None:
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 1.0))
    with pyro.plate("items", len(y)):
        pyro.sample("y", dist.Normal(0.0, noise).expand(y.shape[1:]).to_event(1), obs=y)


def spread_out(args: tuple, draws: list[dict[str, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    noise = torch.stack([d["noise"] for d in draws])
    return torch.zeros(len(draws), len(x), 2), noise[:, None].square().expand(-1, len(x))


LEARNED = Hypothesis("line", "group", "own", along, prepare, ({"noise": 0.3},), learn=learn, predict=predict)
NULL = Hypothesis("null", "null", "none", along, flat, ({"noise": 0.3},), predict=predict)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    return select(arrays(), hypotheses=[LEARNED, NULL], jobs=1, out=folder), folder


def test_slope_is_that_of_least_squares(float64):
    data = arrays()
    x, y = data.x[:, 0], data.targets[:, 0]
    found = slope(train(Line(), (x, y), steps=400, rate=0.1))
    assert float(found) == pytest.approx(float(x @ y / (x @ x)), abs=1e-3)


def test_constraints_are_kept(float64):
    torch.manual_seed(0)
    x = torch.randn(500, 2) @ torch.tensor([[2.0, 0.0], [1.5, 0.5]]).T
    module = Scaled()
    module.load_state_dict(train(module, (x,), steps=500, rate=0.05))
    root = module.turn.weight * module.scales
    torch.testing.assert_close(module.turn.weight @ module.turn.weight.T, torch.eye(2))
    torch.testing.assert_close(root @ root.T, x.T @ x / len(x), rtol=1e-2, atol=1e-2)


def test_halves_share_nothing_and_are_all():
    data = arrays()
    halves = data.halved(0)
    assert len(halves.y) == len(halves.y_earlier) == 40
    assert set(halves.y.tolist()) | set(halves.y_earlier.tolist()) == set(data.y.tolist())
    assert torch.equal(halves.subset(7, 0).x_earlier, halves.x_earlier), "what is learned from stays"


def test_evidence_is_of_items_that_the_parameters_have_not_seen(run):
    result, _ = run
    assert len(result.data.y) == 40
    best = result.best
    assert best.label == "line"
    grid = torch.linspace(-5, 2, 4001, dtype=torch.float64)  # log noise
    residual = result.data.targets[:, 0] - slope(best.learned) * result.data.x[:, 0]
    logs = dist.Normal(0.0, grid.exp()[:, None]).log_prob(residual).sum(1) + dist.Normal(-1.0, 1.0).log_prob(grid)
    exact = float(logs.logsumexp(0)) + math.log(float(grid[1] - grid[0]))
    assert best.evidence.value == pytest.approx(exact, abs=0.1)
    assert best.evidence.value - result.fits[1].evidence.value > 40
    assert any("line were learned from other items" in caution for caution in cautions(result))


def test_predictions_use_what_was_learned(run):
    result, _ = run
    centre, scale = result.data.unit
    expected = slope(result.best.learned) * result.data.x_test[:, 0] * scale + centre
    torch.testing.assert_close(result.predict(result.data.x_test), expected)


def test_what_was_learned_is_stored(run):
    result, folder = run
    again = select(arrays(), hypotheses=[LEARNED, NULL], jobs=1, out=folder)
    assert torch.equal(slope(again.best.learned), slope(result.best.learned))
    with pytest.raises(BadInput, match="hypotheses of its own"):
        load(folder)


def test_the_same_items_do_not_serve_twice(float64):
    with pytest.raises(BadInput, match="'line' learns parameters, and not from the items of the evidence"):
        fit(LEARNED, arrays())
    with pytest.raises(BadInput, match="module: PyroModule has no parameters to learn"):
        train(PyroModule(), ())


def test_density_of_vectors_is_in_their_own_unit(float64):
    """Of twice the values in twice the unit, each of two outputs loses log 2."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    found = []
    for factor in (1, 2):
        data = from_arrays("vectors", x, factor * y, x[:4], factor * y[:4])
        whole = replace(NULL, model=spread, prepare=lambda data: (data.targets,), predict=spread_out)
        found.append(select(data, hypotheses=[whole], jobs=1))
    one, two = (run.test_scores(run.best)["log_density"] for run in found)
    assert one - two == pytest.approx(2 * math.log(2), abs=1e-6)
