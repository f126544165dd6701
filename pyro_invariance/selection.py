"""Select among symmetry hypotheses by evidence: fit each, rank, judge, keep everything in a run folder."""

import hashlib
import inspect
import math
import os
import platform
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import arviz as az
import joblib
import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_invariance import datasets, zoo
from pyro_invariance.datasets import Dataset, nearest
from pyro_invariance.diagnostics import expected_calibration_error, to_arviz
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.numerics import float64
from pyro_invariance.processes import code_log_density
from pyro_invariance.runs import RunFolder, read_json, read_tensors, write_json, write_tensors
from pyro_invariance.typing import BadInput
from pyro_invariance.verdict import Verdict, best, verdicts
from pyro_invariance.zoo import Hypothesis

VERSION = "0.1.0"
FITTED = (  # keys of a hypothesis in `selection.json` that are null unless it was fitted
    *("representation", "method", "log_evidence", "bound", "std_error", "upper", "seed_spread", "drift", "khat"),
    *("looseness", "contains", "own_trivial_lift", "extent", "other_optima", "probability", "test", "paired_vs_best"),
    *("cpu_seconds", "wall_seconds"),
)


class NothingFitted(RuntimeError):
    """Every hypothesis of a run failed; the message says why each did."""


@dataclass(frozen=True)
class Selection:
    """The outcome of a run.

    Attributes
    ----------
    data : Dataset
        What the evidence was computed on (the subset, if one was drawn).
    hypotheses : tuple of Hypothesis
        What was asked, in order.
    fits : tuple of Fit
        Those that were fitted, best first.
    failed : dict of str to str
        Labels of those that were not, with the reason; `refused: ...` where memory did not allow them.
    entry : str
        Zoo entry, or `custom`.
    seed : int
        Of the run.
    """

    data: Dataset
    hypotheses: tuple[Hypothesis, ...]
    fits: tuple[Fit, ...]
    failed: dict[str, str]
    entry: str
    seed: int

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """What the data say about each symmetry."""
        return verdicts(list(self.fits))

    @property
    def best(self) -> Fit:
        """The hypothesis of largest evidence."""
        return best(list(self.fits))[0]

    @property
    def table(self) -> pd.DataFrame:
        """One row per fitted hypothesis, best first: evidence (nats), its sides and errors, extents, test scores."""
        rows = []
        for f in self.fits:
            row = {"hypothesis": f.label, "base": f.base, "log_evidence": f.evidence.value, "upper": f.upper}
            row |= {"std_error": f.evidence.std_error, "looseness": f.evidence.looseness, "extent": describe_extents(f)}
            rows.append(row | self.test_scores(f) | {"cpu_seconds": f.cpu_seconds})
        return pd.DataFrame(rows).set_index("hypothesis")

    def test_scores(self, f: Fit) -> dict[str, float]:
        """Scores on the test data by the model whose evidence is ranked; log densities are nats per datum."""
        if len(f.test_log_density) == 0:
            return {}
        scores = {"log_density": float(self._test_log_density(f).mean())}
        if self.data.classes is None:
            truth = self.data.encode(self.data.y_test)
            rmse = float((f.test_mean - truth).square().mean().sqrt()) * float(self.data.y.std())
            return {"rmse": rmse, **scores}
        log_probs = f.test_log_density.log_softmax(-1)
        correct = log_probs.argmax(-1) == self.data.y_test
        chosen = log_probs.gather(1, self.data.y_test[:, None])
        return {
            "accuracy": float(correct.double().mean()),
            **scores,
            "log_probability": float(chosen.mean()),
            "calibration_error": expected_calibration_error(log_probs, self.data.y_test),
        }

    def _test_log_density(self, f: Fit) -> Tensor:
        at = self.data.y_test[:, None] if self.data.classes else torch.zeros(len(self.data.y_test), 1, dtype=torch.long)
        return f.test_log_density.gather(1, at)[:, 0]

    def inference_data(self, label: str | None = None) -> az.InferenceData:
        """Posterior and prior of the best hypothesis, or of the one named."""
        chosen = self._fit(label)
        return to_arviz(chosen, {"entry": self.entry, "data": self.data.name, "seed": str(self.seed), **versions()})

    def _fit(self, label: str | None) -> Fit:
        if label is None:
            return self.best
        for f in self.fits:
            if f.label == label:
                return f
        raise BadInput(f"hypothesis: got {label!r}; {nearest(label, [f.label for f in self.fits])}")

    @float64()
    def predict(self, images: Tensor, label: str | None = None, draws: int = 4) -> Tensor:
        """Class probabilities `[M, C]` (or means `[M]`) of new images `[M, C, H, W]` by the best hypothesis."""
        chosen = self._fit(label)
        hypothesis = next(h for h in self.hypotheses if h.label == chosen.label)
        if hypothesis.predict is None:
            raise BadInput(f"hypothesis: {chosen.label!r} offers no predictions")
        if images.shape[1:] != self.data.x.shape[1:]:
            raise BadInput(
                f"images: got shape {tuple(images.shape)}; the run was on [M, {str(list(self.data.x.shape[1:]))[1:]}"
            )
        sites = [{k: v[i] for k, v in chosen.draws.items()} for i in range(draws)]
        mean, variance = hypothesis.predict(hypothesis.prepare(self.data), sites, images.to(torch.float64))
        codes = self.data.codes
        if codes is None:
            return mean.mean(0)[:, 0] * self.data.y.std() + self.data.y.mean()
        return code_log_density(mean, variance, codes).softmax(-1)

    def to_json(self) -> dict[str, Any]:
        """Everything in plain values, by the schema of `selection.json`."""
        fits = {f.label: f for f in self.fits}
        first, second = best(list(self.fits))
        paired = self._test_log_density(first) if len(first.test_log_density) else None
        rows = []
        for h in self.hypotheses:
            head = {"name": h.name, "label": h.label, "kind": h.kind, "base": h.base, "priors": dict(h.priors)}
            f = fits.get(h.label)
            if f is None:
                reason = self.failed[h.label]
                status = "refused" if reason.startswith("refused") else "failed"
                rows.append({**dict.fromkeys(FITTED), **head, "status": status, "reason": reason})
                continue
            trivial = next((t for t in self.fits if t.kind == "none" and t.base == f.base), None)
            difference = None
            if paired is not None and len(paired) > 1 and len(f.test_log_density) > 0:
                difference = self._test_log_density(f) - paired
            e = f.evidence
            rows.append(
                {
                    **head,
                    "representation": f.base,
                    "method": "SVI over hyperparameters, function marginalised exactly",
                    "status": "done",
                    "log_evidence": e.value,
                    "bound": e.bound,
                    "std_error": e.std_error,
                    "upper": f.upper,
                    "seed_spread": f.seed_spread,
                    "drift": e.drift,
                    "khat": e.khat,
                    "looseness": e.looseness,
                    "contains": sorted(f.contains),
                    "own_trivial_lift": None if trivial is None else e.value - trivial.evidence.value,
                    "extent": {h.extents[k].generator: _plain_range(r) for k, r in f.extents.items()},
                    "other_optima": f.other_optima,
                    "probability": None,
                    "test": self.test_scores(f),
                    "paired_vs_best": None
                    if difference is None
                    else {"mean": float(difference.mean()), "se": float(difference.std()) / math.sqrt(len(difference))},
                    "cpu_seconds": f.cpu_seconds,
                    "wall_seconds": f.wall_seconds,
                }
            )
        data = self.data
        return {
            "schema": 1,
            "versions": versions(),
            "entry": self.entry,
            "data": {
                "name": data.name,
                "sha256": data.sha256,
                "n": data.total,
                "n_evidence": len(data.y),
                "n_test": len(data.y_test),
                "shape": list(data.x.shape[1:]),
                "target_coding": data.coding,
            },
            "seed": self.seed,
            "hypotheses": rows,
            "symmetries": {s: vars(v) for s, v in self.verdicts.items()},
            "best": {
                "name": first.label,
                "runner_up": second.label if second else None,
                "gap": first.evidence.value - second.evidence.value if second else None,
            },
        }


def _plain_range(r: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(r).items() if k != "zero"}


def describe_extents(f: Fit) -> str:
    """Learned ranges in words: degrees for turns, image grid units for the rest."""
    words = []
    for name, r in f.extents.items():
        value, sd, unit = (np.degrees(r.mean), np.degrees(r.sd), " deg") if r.unit == "rad" else (r.mean, r.sd, "")
        digits = 0 if r.unit == "rad" else 2
        least = "at least " if r.saturated else ""
        words.append("none" if r.zero else f"{name} {least}{value:.{digits}f} +- {sd:.{max(digits, 1)}f}{unit}")
    return ", ".join(words)


def versions() -> dict[str, str]:
    """Versions of what a number depends on."""
    return {
        "pyro_invariance": VERSION,
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def choose(data: Dataset, model: str, names: Iterable[str] | None) -> list[Hypothesis]:
    """Hypotheses of a zoo entry by name; `null` and the `trivial` of each base come along, for the contrasts."""
    every = zoo.load(model).hypotheses(data)
    if names is None:
        return every
    names = list(names)
    known = list(dict.fromkeys(h.name for h in every))
    for name in names:
        if name not in known and name not in [h.label for h in every]:
            raise BadInput(f"hypotheses: got {name!r}; {nearest(name, known)}")
    if not names:
        raise BadInput(f"hypotheses: got none; accepted: {', '.join(known)}")
    chosen = [h for h in every if h.name in names or h.label in names]
    bases = {h.base for h in chosen}
    return [h for h in every if h in chosen or h.kind == "null" or (h.kind == "none" and h.base in bases)]


def select(
    data: Dataset | str | Path = "digits",
    model: str = "orbit_gp",
    hypotheses: Sequence[str | Hypothesis] | None = None,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    jobs: int | None = None,
) -> Selection:
    """Learn which symmetry labelled data support, how far it reaches and how sure one may be.

    Parameters
    ----------
    data : Dataset, str or Path
        A data set, a built-in name or an `.npz` file. More than 2,000 images: the evidence is computed on a
        class-balanced subset of 2,000 drawn with the seed.
    model : str
        Zoo entry.
    hypotheses : sequence, optional
        Names from the entry (all by default), or `Hypothesis` objects of your own.
    seed : int
        Of everything random.
    out : str or Path, optional
        Run folder; finished hypotheses are stored there and an interrupted run resumes.
    jobs : int, optional
        Hypotheses fitted at the same time, one thread each; as many as cores and memory allow by default.

    Returns
    -------
    Selection

    Raises
    ------
    BadInput
        With the argument, what was got and what is accepted.
    """
    if seed < 0:
        raise BadInput(f"seed: got {seed}; 0 or more")
    if jobs is not None and jobs < 1:
        raise BadInput(f"jobs: got {jobs}; 1 or more")
    if not isinstance(data, Dataset | str | Path):
        raise BadInput(f"data: got {type(data).__name__}; a name, a path or what from_arrays(...) returns")
    full = data if isinstance(data, Dataset) else datasets.load(data, seed)
    own = [h for h in hypotheses or () if isinstance(h, Hypothesis)]
    if own and len(own) != len(hypotheses or ()):
        raise BadInput("hypotheses: got names and Hypothesis objects mixed; give one kind")
    chosen = own or choose(full, model, hypotheses)  # type: ignore[arg-type]
    labels = [h.label for h in chosen]
    if len(set(labels)) < len(labels):
        raise BadInput(f"hypotheses: names must differ within a base, got {labels}")
    subset = full.subset(datasets.LIMIT, seed)
    entry = "custom" if own else model
    folder = None if out is None else RunFolder(out, _identity(subset, entry, seed, own))
    if folder is not None:
        folder.open()
        write_tensors(folder.path / "data.pt", {"x": subset.x, "y": subset.y, "y_test": subset.y_test})
        write_json(folder.path / "data.json", {k: v for k, v in vars(subset).items() if not torch.is_tensor(v)})
    done, failed = _fit_all(chosen, subset, seed, folder, jobs)
    if not done:
        raise NothingFitted("every hypothesis failed: " + "; ".join(f"{k}: {v}" for k, v in failed.items()))
    fits = tuple(sorted(done, key=lambda f: -f.evidence.value))
    selection = Selection(subset, tuple(chosen), fits, failed, entry, seed)
    if folder is not None:
        write_json(
            folder.path / "selection.json",
            {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), **selection.to_json()},
        )
        selection.inference_data().to_netcdf(str(folder.path / "posterior.nc"))
    return selection


def _identity(data: Dataset, entry: str, seed: int, own: list[Hypothesis]) -> dict[str, Any]:
    size = [len(data.y), *data.x.shape[1:]]
    identity = {"version": VERSION, "entry": entry, "data": data.sha256, "evidence images": size, "seed": seed}
    return identity | {"hypotheses": {h.label: _fingerprint(h) for h in own}}


def _fingerprint(hypothesis: Hypothesis) -> str:
    """Digest of what a hypothesis of the user's own says and of its model's source."""
    model: Any = hypothesis.model
    bound = ""
    while isinstance(model, partial):
        model, bound = model.func, bound + repr((model.args, model.keywords))
    try:
        source = inspect.getsource(model if inspect.isroutine(model) else type(model))
    except (OSError, TypeError):  # typed at a prompt
        source = getattr(model, "__qualname__", type(model).__qualname__)
    said = (source, bound, hypothesis.starts, sorted(hypothesis.priors.items()), sorted(hypothesis.extents.items()))
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _fit_all(
    hypotheses: list[Hypothesis], data: Dataset, seed: int, folder: RunFolder | None, jobs: int | None
) -> tuple[list[Fit], dict[str, str]]:
    done = [f for h in hypotheses if folder is not None and (f := folder.load(h.label)) is not None]
    finished, failed, rest = {f.label for f in done}, {}, []
    available = _available_memory()
    for h in sorted(hypotheses, key=lambda h: -h.memory(data)):  # the largest first: they take longest
        if h.label in finished:
            continue
        if h.memory(data) > available:
            failed[h.label] = f"refused: needs {h.memory(data) / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"
        else:
            rest.append(h)
    if not rest:
        return done, failed
    largest = max(h.memory(data) for h in rest)
    fitting_in_memory = max(1, int(available // largest)) if largest else len(rest)
    workers = min(jobs or joblib.cpu_count(), fitting_in_memory, len(rest))
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
    results = parallel(joblib.delayed(_attempt)(h, data, seed, folder) for h in rest)
    bar = tqdm(results, total=len(rest), desc="hypotheses", disable=not sys.stderr.isatty())
    for label, result in bar:
        bar.set_postfix_str(label)
        if isinstance(result, str):
            failed[label] = result
        else:
            done.append(result)
    return done, failed


def _attempt(hypothesis: Hypothesis, data: Dataset, seed: int, folder: RunFolder | None) -> tuple[str, Fit | str]:
    """Fit one hypothesis; a failure is an answer, so that the others stand."""
    try:
        result = fit(hypothesis, data, seed)
        if folder is not None:
            folder.save(result)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return hypothesis.label, f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    return hypothesis.label, result


def _available_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not every system says
        return math.inf


def load(run: str | Path) -> Selection:
    """Read a finished run from its folder (of the test data, the labels only are stored)."""
    path = Path(run)
    if not (path / "selection.json").is_file():
        raise BadInput(f"run: {str(run)!r} holds no selection.json; name the folder of a finished run")
    content = read_json(path / "selection.json")
    try:
        return _restore(path, content)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"run: {str(run)!r} is damaged ({type(error).__name__}: {error})") from None


def _restore(path: Path, content: dict[str, Any]) -> Selection:
    if content["entry"] == "custom":
        raise BadInput(f"run: {str(path)!r} used hypotheses of its own, which a folder cannot restore; use the object")
    tensors = read_tensors(path / "data.pt")
    x, y, y_test = tensors["x"], tensors["y"], tensors["y_test"]
    data = Dataset(x=x, y=y, x_test=x[:0], y_test=y_test, **read_json(path / "data.json"))
    hypotheses = {h.label: h for h in zoo.load(content["entry"]).hypotheses(data)}
    folder = RunFolder(path, read_json(path / "run.json"))
    rows = content["hypotheses"]
    fits = [f for row in rows if row["status"] == "done" and (f := folder.load(row["label"])) is not None]
    failed = {row["label"]: row["reason"] for row in rows if row["status"] != "done"}
    fits.sort(key=lambda f: -f.evidence.value)
    chosen = tuple(hypotheses[row["label"]] for row in rows)
    return Selection(data, chosen, tuple(fits), failed, content["entry"], content["seed"])
