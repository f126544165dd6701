"""Carry the best hypothesis of a selection from the images that it was selected on to all of them."""

from dataclasses import asdict
from pathlib import Path

from pyro import poutine

from pyro_invariance.datasets import Dataset
from pyro_invariance.devices import moved
from pyro_invariance.evidence.base import Evidence
from pyro_invariance.fitting import Fit
from pyro_invariance.runs import read_json, read_tensors, write_json, write_tensors
from pyro_invariance.sparse_fitting import SparseFit, fit_sparse
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

INDUCING = 2000  # images that stand for all the others
TENSORS = ("sites", "test_mean", "test_variance", "test_log_density")


def carry(
    hypotheses: list[Hypothesis], fits: list[Fit], full: Dataset, seed: int, folder: Path | None = None
) -> SparseFit | str | None:
    """Fit the best hypothesis that can be sparse to all data; None where noise alone is better than those.

    The bound is of other data than the evidence that ranks hypotheses: it is never ranked.  A fit that fails is an
    answer as well: the reason, in words.

    Parameters
    ----------
    hypotheses, fits : list
        Of the selection.
    full : Dataset
        All data.
    seed : int
        Of the run.
    folder : Path, optional
        Run folder; a fit that is there is read back.
    """
    sparse = {h.label: h for h in hypotheses if h.sparse or h.kind == "null"}
    first = max((f for f in fits if f.label in sparse), key=lambda f: f.evidence.value, default=None)
    if first is None or first.kind == "null":
        return None
    if folder is not None and (stored := read(folder)) is not None and stored.label == first.label:
        return stored
    try:
        with poutine.seed(rng_seed=seed):
            carried = moved(fit_sparse(sparse[first.label], full, INDUCING, seed), "cpu")
    except Exception as error:  # the selection stands
        return f"{first.label} could not be carried to all {len(full.y)} items ({type(error).__name__}: {error})"
    if folder is not None:
        plain = asdict(carried)
        write_tensors(folder / "carried.pt", {name: plain.pop(name) for name in TENSORS})
        write_json(folder / "carried.json", plain)
    return carried


def read(folder: Path) -> SparseFit | None:
    """Return what a run folder holds of it."""
    if not (folder / "carried.json").is_file():
        return None
    plain, tensors = read_json(folder / "carried.json"), read_tensors(folder / "carried.pt")
    try:
        return SparseFit(**{**plain, **tensors, "evidence": Evidence(**plain["evidence"])})
    except (KeyError, TypeError):
        raise BadInput(f"run: {str(folder / 'carried.json')!r} is damaged; remove it to fit it again") from None
