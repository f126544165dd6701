import os

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib; child processes inherit it

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pytest
import torch

from pyro_invariance import from_arrays, sweep, zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.results import Selection
from pyro_invariance.selection import select
from pyro_invariance.zoo import Hypothesis

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def float64() -> Iterator[None]:
    """Evidence in float32 can be wrong by hundreds of nats; shared fixtures are built under this one too."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


@pytest.fixture(autouse=True)
def fresh_state(float64: None) -> Iterator[None]:
    """No test sees another's parameters, random numbers or default dtype."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="module")
def local_parameters() -> Iterator[None]:
    """Modules keep their parameters to themselves."""
    with pyro.settings.context(module_local_params=True):
        yield


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

    monkeypatch.setattr(sweep, "fit", counted)
    return labels


@pytest.fixture(scope="session")
def same() -> Callable[[Fit, Fit], bool]:
    """Return whether two fits agree to the last bit in everything but the seconds."""

    def same(a: Fit, b: Fit) -> bool:
        plain = [{k: v for k, v in vars(f).items() if not k.endswith("seconds")} for f in (a, b)]

        def equal(u: object, v: object) -> bool:
            if torch.is_tensor(u):
                return torch.equal(u, v)
            if isinstance(u, dict):
                return u.keys() == v.keys() and all(equal(u[k], v[k]) for k in u)
            return u == v

        return equal(*plain)

    return same


@pytest.fixture(scope="session")
def line(float64: None) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y = 5 + 3 * (x @ [1.0, -2.0, 0.5] + 0.5 * rng.normal(size=40))
    return from_arrays("line", x[:30], y[:30], x[30:], y[30:])


@pytest.fixture
def figures() -> Iterator[None]:
    """Close what a test draws."""
    yield
    plt.close("all")
