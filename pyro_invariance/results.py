"""The outcome of a run: ranking, verdicts, test scores, predictions; as plain values and back from its folder."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_invariance import carrying, zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.diagnostics import expected_calibration_error, inference_data
from pyro_invariance.evidence.comparison import probabilities
from pyro_invariance.fitting import PREDICTIVE, Fit
from pyro_invariance.numerics import float64
from pyro_invariance.processes import code_log_density
from pyro_invariance.runs import SOURCE, RunFolder, identity, read_json, read_tensors, versions
from pyro_invariance.scrutiny import Scrutiny
from pyro_invariance.sparse_fitting import SparseFit
from pyro_invariance.typing import BadInput, nearest
from pyro_invariance.verdict import Verdict, best, verdicts
from pyro_invariance.zoo import Hypothesis

FITTED = (  # keys of a hypothesis in `selection.json` that are null unless it was fitted
    *("representation", "method", "log_evidence", "bound", "std_error", "upper", "seed_spread", "drift", "khat"),
    *("looseness", "contains", "own_trivial_lift", "shares", "extent", "other_optima", "probability", "test"),
    *("paired_vs_best", "cpu_seconds", "wall_seconds"),
)


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
    scrutiny : Scrutiny, optional
        What the fits were held against, if that was asked for.
    carried : SparseFit or str, optional
        The best hypothesis fitted to all data, where the evidence is of a subset, or why that failed; its bound is
        never ranked.
    """

    data: Dataset
    hypotheses: tuple[Hypothesis, ...]
    fits: tuple[Fit, ...]
    failed: dict[str, str]
    entry: str
    seed: int
    scrutiny: Scrutiny | None = None
    carried: SparseFit | str | None = None

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """What the data say about each symmetry."""
        return self.judge(list(self.fits))

    @cached_property
    def probabilities(self) -> dict[str, float] | None:
        """Posterior probability of each hypothesis, all equally probable before; None where bounds leave it open.

        That is, unless every evidence is exact or sandwiched to within 1 nat.
        """
        return None if self.failed or self.omitted else probabilities({f.label: f.evidence for f in self.fits})

    @property
    def ranking(self) -> str:
        """What the order of the hypotheses is by, in words."""
        if self.probabilities is not None:
            return "posterior probabilities of the hypotheses"
        sides = sorted({f.evidence.bound for f in self.fits})
        if sides == ["exact"]:
            return "a ranking by exact evidence of the hypotheses that were fitted"
        return f"a ranking by {' and '.join(sides)} bounds, which may be loose: no posterior probabilities"

    def judge(self, fits: list[Fit]) -> dict[str, Verdict]:
        """Verdicts from these fits of the run's hypotheses, mindful of those that were not fitted."""
        return verdicts(fits, self.omitted, [h for h in self.hypotheses if h.label in self.failed])

    @cached_property
    def omitted(self) -> tuple[Hypothesis, ...]:
        """Hypotheses that run by default and were not asked for: the verdicts know nothing of them."""
        if self.entry == "custom":
            return ()
        asked = {h.label for h in self.hypotheses}
        return tuple(h for h in zoo.choose(self.data, self.entry, None) if h.label not in asked)

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
            row |= {} if self.probabilities is None else {"probability": self.probabilities[f.label]}
            rows.append(row | self.test_scores(f) | {"cpu_seconds": f.cpu_seconds})
        return pd.DataFrame(rows).set_index("hypothesis")

    def test_scores(self, f: Fit | SparseFit) -> dict[str, float]:
        """Scores on the test data by the model whose evidence is ranked.

        Log densities are nats per datum: of the class codes, or of values in the unit of the labels.
        """
        if len(f.test_log_density) == 0:
            return {}
        scores = {"log_density": float(self._test_log_density(f).mean())}
        if self.data.classes is None:
            if len(f.test_mean) == 0:
                return scores
            truth = self.data.encode(self.data.y_test)
            rmse = float((f.test_mean - truth).square().mean().sqrt()) * float(self.data.unit[1])
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

    def paired(self, f: Fit) -> tuple[float, float] | None:
        """Mean test log density minus that of the best hypothesis, nats per datum, and its standard error."""
        if min(len(f.test_log_density), len(self.best.test_log_density)) < 2:
            return None
        difference = self._test_log_density(f) - self._test_log_density(self.best)
        return float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))

    def _test_log_density(self, f: Fit | SparseFit) -> Tensor:
        if self.data.classes is None:
            return f.test_log_density[:, 0] - self.data.targets.shape[1] * self.data.unit[1].log()
        return f.test_log_density.gather(1, self.data.y_test[:, None])[:, 0]

    def inference_data(self, label: str | None = None) -> az.InferenceData:
        """All that is known of the best hypothesis, or of the one named, for ArviZ."""
        chosen = self._fit(label)
        said = {"entry": self.entry, "data": self.data.name, "seed": self.seed, **versions()}
        return inference_data(chosen, self.hypothesis(label), self.data, said, self.seed)

    def _fit(self, label: str | None) -> Fit:
        if label is None:
            return self.best
        for f in self.fits:
            if f.label == label:
                return f
        raise BadInput(f"hypothesis: got {label!r}; {nearest(label, [f.label for f in self.fits])}")

    def hypothesis(self, label: str | None = None) -> Hypothesis:
        """The best hypothesis, or the one named, with the parameters that it learned.

        Its `model` takes what its `prepare` makes of data.

        Raises
        ------
        BadInput
            If none of that name was fitted.
        """
        chosen = self._fit(label)
        return next(h for h in self.hypotheses if h.label == chosen.label).given(chosen.learned)

    @float64()
    def predict(self, images: Tensor, label: str | None = None) -> Tensor:
        """Class probabilities `[M, C]` (or means `[M, ...]`) of new inputs `[M, ...]`.

        By the best hypothesis or a named one, averaged over the same draws of the hyperparameters as the test scores.
        """
        chosen = self._fit(label)
        hypothesis = self.hypothesis(label)
        if hypothesis.predict is None:
            raise BadInput(f"hypothesis: {chosen.label!r} offers no predictions")
        item = str(list(self.data.x.shape[1:]))[1:]
        if images.shape[1:] != self.data.x.shape[1:]:
            raise BadInput(f"images: got shape {tuple(images.shape)}; the run was on [M, {item}")
        if len(images) == 0:
            raise BadInput(f"images: got none; one or more of [M, {item} are accepted")
        if not torch.isfinite(images).all():
            raise BadInput("images: got NaN or infinite values; finite ones are accepted")
        sites = [{k: v[i] for k, v in chosen.draws.items()} for i in range(PREDICTIVE)]
        mean, variance = hypothesis.predict(hypothesis.prepare(self.data), sites, images.to(torch.float64))
        codes = self.data.codes
        if codes is None:
            centre, scale = self.data.unit
            return (mean.mean(0) * scale + centre).reshape(-1, *self.data.y.shape[1:])
        return code_log_density(mean, variance, codes).softmax(-1)

    def _plain_carried(self, c: SparseFit | str) -> dict[str, Any]:
        if isinstance(c, str):
            return {"failed": c}
        e = c.evidence
        return {
            "name": c.label,
            "method": f"sparse bound through {c.inducing} inducing values",
            "n": c.count,
            **{"log_evidence": e.value, "bound": e.bound, "std_error": e.std_error, "drift": e.drift},
            "test": self.test_scores(c),
            "cpu_seconds": c.cpu_seconds,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything in plain values, by the schema of `selection.json`."""
        fits = {f.label: f for f in self.fits}
        first, second = best(list(self.fits))
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
            paired, e = self.paired(f), f.evidence
            rows.append(
                {
                    **head,
                    "representation": f.base,
                    "method": "SVI over the latent sites from their mode",
                    "status": "done",
                    "log_evidence": e.value,
                    "bound": e.bound,
                    "std_error": e.std_error,
                    "upper": f.upper,
                    "seed_spread": e.restart_spread,
                    "drift": e.drift,
                    "khat": e.khat,
                    "looseness": e.looseness,
                    "contains": sorted(f.contains),
                    "own_trivial_lift": None if trivial is None else e.value - trivial.evidence.value,
                    "shares": f.shares,
                    "extent": {h.extents[k].generator: _plain_range(r) for k, r in f.extents.items()},
                    "other_optima": f.other_optima,
                    "probability": None if self.probabilities is None else self.probabilities[h.label],
                    "test": self.test_scores(f),
                    "paired_vs_best": paired and dict(zip(("mean", "se"), paired, strict=True)),
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
            "not_fitted": [h.label for h in self.omitted],
            "scrutiny": self.scrutiny and self.scrutiny.to_json(),
            "carried": self.carried and self._plain_carried(self.carried),
            "symmetries": {s: vars(v) for s, v in self.verdicts.items()},
            "best": {
                "name": first.label,
                "runner_up": second.label if second else None,
                "gap": first.evidence.value - second.evidence.value if second else None,
            },
        }


def _plain_range(r: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(r).items() if k not in ("zero", "whole")}


def describe_extents(f: Fit) -> str:
    """Learned ranges in words, those shut off last: degrees for turns, the unit of the extent for the rest."""
    words, shut = [], []
    for name, r in f.extents.items():
        value, sd, unit = (np.degrees(r.mean), np.degrees(r.sd), " deg") if r.unit == "rad" else (r.mean, r.sd, "")
        digits = 0 if r.unit == "rad" else 2
        at_least = np.degrees(r.lower) if r.unit == "rad" else r.lower  # the mean is not the least that it may be
        if r.undetermined:
            words.append(f"{name} undetermined")
        elif r.saturated:
            words.append(f"{name} at least {at_least:.{digits}f}{unit}")
        elif r.zero:
            shut.append(name)
        else:
            words.append(f"{name} {value:.{digits}f} +- {sd:.{max(digits, 1)}f}{unit}")
    closed = [f"shut off: {', '.join(shut)}"] if shut else []
    return "; ".join([", ".join(words), *closed] if words else closed)


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
    data = Dataset(x_test=tensors["x"][:0], **(read_json(path / "data.json") | tensors))
    hypotheses = {h.label: h for h in zoo.load(content["entry"]).hypotheses(data)}
    made = read_json(path / "run.json")
    for what, value in identity(data, content["entry"], content["seed"], []).items():
        if what in ("version", SOURCE) and made[what] != value:
            raise BadInput(f"run: {str(path)!r} was made by another {what}; select again into another folder")
    folder, rows = RunFolder(path, made), content["hypotheses"]
    found = {row["label"]: folder.load(row["label"]) for row in rows if row["status"] == "done"}
    fits = [f for f in found.values() if f is not None]
    if lost := [label for label, f in found.items() if f is None]:
        raise BadInput(f"run: {str(path)!r} has lost the fits of {', '.join(lost)}; select again to restore them")
    failed = {row["label"]: row["reason"] for row in rows if row["status"] != "done"}
    fits.sort(key=lambda f: -f.evidence.value)
    chosen = tuple(hypotheses[row["label"]] for row in rows)
    seed, checked = content["seed"], Scrutiny.read(path)
    said = content["carried"]  # none where it was left out, though an earlier run may have stored one
    carried = said and (said.get("failed") or carrying.read(path))
    return Selection(data, chosen, tuple(fits), failed, content["entry"], seed, checked, carried)
