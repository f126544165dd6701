"""Many fits side by side: memory, workers that die."""

import os
import random
import signal
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_invariance import sweep, zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.report import report
from pyro_invariance.results import load
from pyro_invariance.runs import read_json
from pyro_invariance.selection import select
from pyro_invariance.zoo import Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def test_hypotheses_that_do_not_fit_in_memory_are_refused(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "available_memory", lambda: 1e8)
    result = select(tiny, hypotheses=["mirror"], out=tmp_path / "run", jobs=1)
    assert [f.label for f in result.fits] == ["null"]
    assert result.failed.keys() == {"mirror", "trivial-polar"}
    assert result.failed["mirror"] == "refused: needs 0.5 GB, 0.1 GB are free"
    content = read_json(tmp_path / "run" / "selection.json")
    assert [row["status"] for row in content["hypotheses"]] == ["done", "refused", "refused"]
    assert content["best"] == {"name": "null", "runner_up": None, "gap": None}
    assert content["symmetries"] == {}
    loaded = load(tmp_path / "run")
    assert loaded.failed == result.failed
    assert report(loaded, tmp_path).is_file()  # nothing to draw is no reason to fail


@pytest.mark.parametrize(
    ("available", "jobs", "expected"),
    [(1e12, 1, [1]), (1e12, 2, [2]), (1.4e9, 8, [2]), (7e8, 8, [2, 2, 2]), (1e12, 8, [3])],
)
def test_workers_are_as_many_as_memory_allows(available, jobs, expected, tiny, monkeypatch):
    hypotheses = zoo.choose(tiny, "orbit_gp", ["mirror"])
    assert 5.3e8 < max(h.memory(tiny) for h in hypotheses) < 6.7e8
    asked = []

    class Serial:
        def __init__(self, n_jobs: int, return_as: str = "list") -> None:
            asked.append(n_jobs)

        def __call__(self, calls: object) -> list:
            return [(args[0].label, "not fitted") for _, args, _ in calls]

    monkeypatch.setattr(sweep, "available_memory", lambda: available)
    monkeypatch.setattr(sweep.joblib, "Parallel", Serial)
    done, failed = sweep.sweep(hypotheses, tiny, 0, None, jobs)
    assert asked == expected  # memory for one: each alone in a pool of its own, one after the other
    assert done == []
    assert failed.keys() == {h.label for h in hypotheses}


def test_free_memory_is_a_number():
    assert sweep.available_memory() > 1e6


def test_available_memory_is_the_least_of_what_the_system_and_its_containers_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "SYSTEM", tmp_path)

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal:  900 kB\nMemFree:  100 kB\nMemAvailable:  600 kB\n")
    assert sweep.available_memory() == 600 * 1024  # cached files give way
    group = "sys/fs/cgroup"
    write(f"{group}/memory.max", "max\n")
    write(f"{group}/memory.current", "5000\n")
    write(f"{group}/memory.stat", "anon 4000\ninactive_file 1000\n")
    assert sweep.available_memory() == 600 * 1024
    write(f"{group}/memory.max", "9000\n")
    assert sweep.available_memory() == 5000
    write(f"{group}/memory/memory.limit_in_bytes", "9000\n")
    write(f"{group}/memory/memory.usage_in_bytes", "7000\n")
    write(f"{group}/memory/memory.stat", "inactive_file 0\n")
    assert sweep.available_memory() == 2000


def level(y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.sample("y", dist.Normal(b.expand(len(y)), 0.5).to_event(1), obs=y)


def killed(data: Dataset) -> tuple[Tensor]:
    """As the system does to the largest process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    return (data.targets[:, 0],)


def test_killed_worker_does_not_sink_the_others(line, tmp_path, capsys):
    def made(name: str, prepare: Callable) -> Hypothesis:
        return Hypothesis(name, "none", "own", level, prepare, starts=({"b": 0.0},))

    good = [made(f"good {k}", lambda d: (d.targets[:, 0],)) for k in range(3)]
    result = select(line, hypotheses=[good[0], made("deadly", killed), *good[1:]], jobs=2, out=tmp_path / "run")
    assert {f.label for f in result.fits} == {h.label for h in good}
    assert result.failed.keys() == {"deadly"}
    assert "killed by the system" in result.failed["deadly"]
    assert "the pool broke (TerminatedWorkerError)" in capsys.readouterr().err
    assert {row["status"] for row in result.to_json()["hypotheses"]} == {"done", "failed"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_random_numbers_of_the_caller_go_on(jobs, line):
    hypothesis = Hypothesis("level", "none", "own", level, lambda d: (d.targets[:, 0],), starts=({"b": 0.0},))
    pyro.set_rng_seed(3)
    torch.rand(1)
    expected = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    pyro.set_rng_seed(3)
    torch.rand(1)
    select(line, hypotheses=[hypothesis], jobs=jobs)
    zoo.load("orbit_gp").data("mirror", size=10, test=2, side=8)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected  # noqa: NPY002
