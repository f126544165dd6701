"""The run folder: finished hypotheses survive an interruption, and a folder belongs to one run.

Tensors only are stored and loaded (`torch.load(weights_only=True)`), the rest is JSON.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import platform
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from pyro_invariance import zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import Evidence
from pyro_invariance.fitting import Fit, Range
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

VERSION = "0.1.0"
SOURCE = "entry's source"
ARRAYS = ("x", "y", "x_test", "y_test", "x_earlier", "y_earlier")  # of a data set
TENSORS = (  # fields of a fit that are stored apart from its JSON
    *("draws", "prior", "weighted", "site_log_prior", "pointwise", "replicates", "observed"),
    *("test_mean", "test_variance", "test_log_density", "positions", "learned"),
)


def versions() -> dict[str, str]:
    """Versions of what a number depends on."""
    return {
        "pyro_invariance": VERSION,
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def identity(data: Dataset, entry: str, seed: int, own: list[Hypothesis]) -> dict[str, Any]:
    """What makes a run this run and no other: data, entry, hypotheses of one's own, seed and version."""
    return {
        "version": VERSION,
        "entry": entry,
        SOURCE: None if own else source(entry),
        "data": _digest(*(_said(getattr(data, name)) for name in ARRAYS)),
        "evidence images": [len(data.y), *data.x.shape[1:]],
        "seed": seed,
        "hypotheses": {h.label: _digest(*(_said(v) for v in vars(h).values())) for h in own},
    }


def source(entry: str) -> str:
    """Digest of the code of an entry, and of the modules of this package that it is made of, directly or not."""
    left, within = {zoo.load(entry).__name__}, set()
    while left:
        within.add(name := left.pop())
        left |= {n for v in vars(sys.modules[name]).values() if (n := _home(v)).startswith("pyro_invariance")} - within
    return _digest(*(inspect.getsource(sys.modules[name]) for name in sorted(within)))


def _home(value: Any) -> str:
    """Name of the module that a value is, or was made in."""
    value = value.func if isinstance(value, partial) else value
    name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _said(value: Any, seen: tuple[int, ...] = ()) -> str:
    """What a value says, the same in every process: code by its source and all it refers to, arrays by content."""
    if id(value) in seen:  # a structure that holds itself
        return type(value).__qualname__
    inside = (*seen, id(value))

    def join(values: Iterable[Any]) -> str:
        return "(" + " ".join(_said(v, inside) for v in values) + ")"

    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().flatten()
        content = flat.contiguous().view(torch.uint8).numpy().tobytes() if len(flat) else b""
        return f"{value.dtype}{tuple(value.shape)}{hashlib.sha256(content).hexdigest()}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, partial):
        return join([value.func, value.args, value.keywords])
    if isinstance(value, Mapping):
        return "".join(sorted(join(item) for item in value.items()))
    if isinstance(value, set | frozenset):
        return "".join(sorted(_said(v, inside) for v in value))
    if isinstance(value, tuple | list):
        return join(value)
    if isinstance(value, types.CodeType):
        return join([value.co_code.hex(), value.co_names, [c for c in value.co_consts if not isinstance(c, str)]])
    if inspect.ismodule(value):
        return value.__name__
    if inspect.isclass(value):
        return _source(value)
    if inspect.isroutine(value):
        return _source(value) + join(_referred(value))
    state = dict(getattr(value, "__dict__", {}))
    state |= {name: getattr(value, name) for name in getattr(value, "__slots__", ()) if hasattr(value, name)}
    if isinstance(value, torch.nn.Module):  # parts under the names that they have, not where torch keeps them
        state = {k: v for k, v in state.items() if not k.startswith("_") and k != "training"}
        state |= {**value.state_dict(), **dict(value.named_children())}
    return _source(type(value)) + _said(state, inside) if state else re.sub(" at 0x[0-9a-f]+", "", repr(value))


def _referred(routine: Any) -> Iterator[Any]:
    """What else decides what a routine does: its object, defaults, closure, and what it names in its own module."""
    yield getattr(routine, "__self__", None)
    routine = getattr(routine, "__func__", routine)
    yield from (getattr(routine, "__defaults__", None), getattr(routine, "__kwdefaults__", None))
    yield from (cell.cell_contents for cell in getattr(routine, "__closure__", None) or ())
    code, around = getattr(routine, "__code__", None), getattr(routine, "__globals__", {})
    for name in code.co_names if code else ():
        value = around.get(name)
        if getattr(value, "__module__", routine.__module__) == routine.__module__ and not inspect.ismodule(value):
            yield name, value


def _source(code: Any) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):  # typed at a prompt, or compiled
        return getattr(code, "__qualname__", "") + (_said(code.__code__) if hasattr(code, "__code__") else "")


class RunFolder:
    """A folder that holds one run, identified by data, hypotheses, seed and version.

    Parameters
    ----------
    path : str or Path
        Created if needed. Nothing is written before `open`.
    identity : dict
        What makes the run this run; another one is refused.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = Path(path), identity

    def open(self) -> None:
        """Create the folder, or resume the same run in it."""
        marker = self.path / "run.json"
        if marker.is_file():
            found = read_json(marker)
            if not isinstance(found, dict):
                raise BadInput(f"out: {str(marker)!r} is damaged; name another folder")
            differs = sorted(k for k, value in self.identity.items() if not _agree(value, found.get(k)))
            if differs:
                where = ", ".join(differs)
                raise BadInput(f"out: {str(self.path)!r} holds another run (differs in {where}); name another folder")
            if "hypotheses" in self.identity:
                known = {**found["hypotheses"], **self.identity["hypotheses"]}
                write_json(marker, {**self.identity, "hypotheses": known})
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise BadInput(f"out: {str(self.path)!r} exists and is no run folder; name an empty or a new one")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(marker, self.identity)
        except OSError as error:
            raise BadInput(
                f"out: {str(self.path)!r} cannot be written ({error.strerror}); name another folder"
            ) from None

    def save(self, fit: Fit) -> None:
        """Store a finished hypothesis; tensors first, the JSON that marks it finished last."""
        plain = dataclasses.asdict(fit)
        tensors = {k: plain.pop(k) for k in TENSORS}
        plain["contains"], plain["claims"] = sorted(fit.contains), sorted(fit.claims)
        folder = self.path / "fits"
        folder.mkdir(exist_ok=True)
        write_tensors(folder / f"{fit.label}.pt", tensors)
        write_json(folder / f"{fit.label}.json", plain)

    def load(self, label: str) -> Fit | None:
        """Return a stored hypothesis, or None if it was not finished."""
        folder = self.path / "fits"
        if not (folder / f"{label}.json").is_file():
            return None
        plain = read_json(folder / f"{label}.json")
        tensors = read_tensors(folder / f"{label}.pt")
        try:
            plain["evidence"] = Evidence(**plain["evidence"])
            plain["extents"] = {k: Range(**v) for k, v in plain["extents"].items()}
            plain["contains"], plain["claims"] = frozenset(plain["contains"]), frozenset(plain["claims"])
            return Fit(**plain, **tensors)
        except (KeyError, TypeError, AttributeError):
            raise BadInput(f"run: {str(folder / label)!r} is damaged; remove its files to fit it again") from None


def _agree(value: object, found: object) -> bool:
    """Whether two parts of an identity are the same; hypotheses may be added."""
    if isinstance(value, dict) and isinstance(found, dict):
        return all(value[k] == found[k] for k in value.keys() & found.keys())
    return value == found


def write_tensors(path: Path, tensors: dict) -> None:
    """Write tensors so that a reader never sees half of them."""
    part = path.with_suffix(path.suffix + ".part")
    torch.save(tensors, part)
    os.replace(part, path)


def read_tensors(path: Path) -> dict[str, Any]:
    """Read tensors, and nothing but tensors; or say which file is broken."""
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:
        raise BadInput(f"run: {str(path)!r} cannot be read ({type(error).__name__})") from None


def write_json(path: Path, content: object) -> None:
    """Write JSON so that a reader never sees half of it; NaN is refused."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """Read JSON, or say which file is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"run: {str(path)!r} cannot be read ({error})") from None
