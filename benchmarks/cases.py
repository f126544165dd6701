"""Data sets whose symmetry is known, planted or broken, and what a selection must say of each."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pyro_invariance.datasets import Dataset, from_arrays, load
from pyro_invariance.representations import Pixels, Polar
from pyro_invariance.zoo import load as load_entry

FOLDER = Path(os.environ.get("PYRO_INVARIANCE_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Absent(Exception):
    """A data file that this machine does not have."""


@dataclass(frozen=True)
class Case:
    """A data set by seed, the hypotheses to run (all if None) and what must hold of a row: `check -> failures`.

    `accuracy` is what the mean over seeds must reach.
    """

    data: Callable[[int], Dataset]
    check: Callable[[dict], list[str]]
    seeds: int = 3
    hypotheses: tuple[str, ...] | None = None
    accuracy: float = 0.0


def _arrays(name: str) -> dict[str, np.ndarray]:
    path = FOLDER / name
    if not path.is_file():
        raise Absent(f"{path} is absent (set PYRO_INVARIANCE_DATA)")
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def mnist(transform: str, seed: int, n: int = 1000, m: int = 2000) -> Dataset:
    """The first `n` training and `m` test images of MNIST, transformed alike."""
    raw, rng = _arrays("mnist.npz"), np.random.default_rng(seed)
    x = torch.as_tensor(np.concatenate([raw["train_images"][:n], raw["test_images"][:m]]) / 255.0)[:, None]
    if transform == "rotated":
        x = Pixels().rotate(x, torch.as_tensor(rng.uniform(-math.pi, math.pi, n + m)))
    elif transform == "tilted":
        x = Pixels().rotate(x, torch.as_tensor(rng.uniform(-math.pi / 4, math.pi / 4, n + m)))
    elif transform == "quarter turns":
        x = Pixels().rotate(x, torch.as_tensor(rng.integers(0, 4, n + m) * (math.pi / 2)))
    elif transform == "shifted":
        margin = torch.nn.functional.pad(x, [6] * 4)
        x = Pixels().shift(margin, torch.as_tensor(rng.integers(-6, 7, (n + m, 2))))
    elif transform == "permuted":
        x = x.flatten(2)[..., torch.as_tensor(rng.permutation(28 * 28))].view_as(x)
    images, y = x[:, 0].numpy(), np.concatenate([raw["train_labels"][:n], raw["test_labels"][:m]]).astype(np.int64)
    if transform == "shuffled":
        y = rng.permutation(y)
    return from_arrays(f"mnist {transform}", images[:n], y[:n], images[n:], y[n:])


def shuffled_digits(seed: int) -> Dataset:
    """Digits with labels in random order."""
    data, generator = load("digits", seed), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.y), generator=generator)
    return replace(data, name="digits shuffled", y=data.y[order], sha256=f"shuffled-{seed}")


def galaxies(seed: int) -> Dataset:
    """Clockwise against anticlockwise spirals, 680 to train and 170 to test."""
    raw, rng = _arrays("galaxyzoo1_small_64.npz"), np.random.default_rng(seed)
    chosen = rng.permutation(np.flatnonzero(np.isin(raw["labels"], (1, 2))))
    x, y = raw["images"][chosen], raw["labels"][chosen].astype(np.int64) - 1
    return from_arrays("galaxies", x[:680], y[:680], x[680:850], y[680:850])


@dataclass(frozen=True)
class PermutedPolar(Polar):
    """A polar array whose points are permuted: no turn acts on it."""

    seed: int = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        arrays = super().__call__(images)
        order = torch.randperm(self.rings * self.angles, generator=torch.Generator().manual_seed(self.seed))
        return self._drop_nyquist(arrays.flatten(-2)[..., order].view_as(arrays))


def simulated(planted: str) -> Callable[[int], Dataset]:
    """Images with a planted symmetry from the zoo entry itself."""
    return lambda seed: load_entry("orbit_gp").data(planted, seed)


def expect(
    supported: tuple[str, ...] = (),
    refused: tuple[str, ...] = (),
    best: tuple[str, ...] = (),
    accuracy: float = 0.0,
    only: bool = False,
    allowed: tuple[str, ...] = (),
    **extents: tuple[float, float],
) -> Callable[[dict], list[str]]:
    """Make a check: verdicts, the best model, its accuracy, ranges of mean extents (degrees, pixels of 28).

    With `only`, nothing else may be supported, but for what is `allowed`.
    """

    def check(row: dict) -> list[str]:
        verdicts, wrong = {s: v["verdict"] for s, v in row["verdicts"].items()}, []
        wrong += [f"{s} is {verdicts.get(s)}" for s in supported if verdicts.get(s) != "supported"]
        wrong += [f"{s} is {verdicts.get(s)}" for s in refused if verdicts.get(s) != "refused"]
        if only:
            known = {*supported, *allowed}
            wrong += [f"{s} is supported" for s, v in verdicts.items() if v == "supported" and s not in known]
        top = row["hypotheses"][row["best"]]
        if best and row["best"] not in best:
            wrong.append(f"best is {row['best']}")
        for name, (low, high) in extents.items():
            found = next((h["extents"][name]["mean"] for h in row["hypotheses"].values() if name in h["extents"]), None)
            value = math.nan if found is None else math.degrees(found) if name == "rotation" else found * 14
            if not low <= value <= high:
                wrong.append(f"{name} is {value:.1f}")
        if accuracy and top["scores"]["accuracy"] < accuracy:
            wrong.append(f"accuracy is {top['scores']['accuracy']:.4f}")
        return wrong

    return check


def _digits(row: dict) -> list[str]:
    wrong = expect(("rotation", "translation"), ("mirror", "C4", "SO2"), accuracy=0.98)(row)
    top = row["hypotheses"][row["best"]]
    own = row["hypotheses"][f"trivial-{top['base']}"]["scores"]["accuracy"]
    wrong += [f"accuracy is below {own:.4f} of its trivial"] if top["scores"]["accuracy"] < own else []
    return wrong + ([f"took {row['wall_seconds']:.0f} s"] if row["wall_seconds"] > 120 else [])


def _rotation_alone(row: dict) -> list[str]:
    wrong, h = expect(accuracy=0.90, rotation=(170, 180))(row), row["hypotheses"]["rotation"]
    met = h["evidence"]["restart_spread"] is not None and not h["other_optima"]
    wrong += [] if met else ["the two starts did not meet"]
    return wrong + ([f"took {h['cpu_seconds']:.0f} CPU-s"] if h["cpu_seconds"] > 60 else [])


def _rotated(row: dict) -> list[str]:
    wrong = expect(("rotation", "SO2"), ("mirror",), ("SO2", "rotation"))(row)
    saturated = row["hypotheses"]["rotation"]["extents"]["rotation"]["saturated"]
    return wrong + ([] if saturated else ["rotation does not reach the full circle"])


def _shifted(row: dict) -> list[str]:
    wrong = expect(("translation",), best=("translation", "convolution"))(row)
    ranges = row["hypotheses"]["translation"]["extents"].values()
    wrong += [] if all(r["saturated"] for r in ranges) else ["the range of shifts does not saturate"]
    return wrong + ([] if row["verdicts"]["rotation"]["explained_by"] else ["rotation is not marked"])


def _permuted(row: dict) -> list[str]:
    wrong = expect(only=True)(row)
    for label, h in row["hypotheses"].items():
        zero = h["extents"] and all(r["zero"] for r in h["extents"].values())
        wrong += [f"{label} is at zero and not merged with trivial"] if zero and h["contains"] else []
    return wrong


def _galaxies(row: dict) -> list[str]:
    wrong = expect(("rotation", "SO2"), ("mirror",))(row)
    gaps = {s: row["verdicts"][s]["gap"] or 0.0 for s in ("SO2", "mirror")}
    return wrong + [f"{s} by {gap:.0f} nats only" for s, gap in gaps.items() if abs(gap) < 30]


CASES = {
    "digits": Case(lambda seed: load("digits", seed), _digits),
    "rotated, rotation alone": Case(lambda seed: mnist("rotated", seed), _rotation_alone, hypotheses=("rotation",)),
    "rotated": Case(lambda seed: mnist("rotated", seed), _rotated),
    "upright": Case(
        lambda seed: mnist("upright", seed),
        expect(
            ("rotation", "translation"),
            ("mirror", "C4", "SO2"),
            accuracy=0.94,
            rotation=(10, 60),
            rows=(1, 6),
            columns=(1, 6),
        ),
    ),
    "quarter turns": Case(lambda seed: mnist("quarter turns", seed), expect(("C4",), ("mirror",))),
    "shifted": Case(lambda seed: mnist("shifted", seed), _shifted),
    "permuted": Case(lambda seed: mnist("permuted", seed), _permuted),
    "permuted polar": Case(
        lambda seed: mnist("upright", seed),
        _permuted,
        hypotheses=("mirror", "C4", "D4", "SO2", "O2", "rotation"),
    ),
    "shuffled mnist": Case(lambda seed: mnist("shuffled", seed), expect(only=True), seeds=10),
    "shuffled digits": Case(shuffled_digits, expect(only=True), seeds=10),
    "galaxies": Case(galaxies, _galaxies, seeds=5, accuracy=0.72),
    **{
        f"simulated {planted}": Case(simulated(planted), expect(claims, only=True, allowed=allowed), seeds=10)
        for planted, claims, allowed in (
            ("none", (), ()),
            ("mirror", ("mirror",), ()),
            ("C4", ("C4",), ()),
            ("SO2", ("SO2", "C4", "rotation"), ()),
            ("rotation", ("rotation",), ()),
            ("translation", ("translation",), ("convolution",)),  # convolution is shifts, of patches
        )
    },
}
