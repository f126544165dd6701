"""Select among symmetry hypotheses by evidence: fit each, rank, judge, keep everything in a run folder."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pyro_invariance import carrying, datasets, zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.devices import checked_device
from pyro_invariance.results import Selection
from pyro_invariance.runs import ARRAYS, RunFolder, identity, write_json, write_tensors
from pyro_invariance.scrutiny import Scrutiny, scrutinise
from pyro_invariance.sweep import sweep
from pyro_invariance.typing import BadInput, checked_seed
from pyro_invariance.zoo import Hypothesis


class NothingFitted(RuntimeError):
    """Every hypothesis of a run failed; the message says why each did."""


def select(
    data: Dataset | str | Path = "digits",
    model: str = "orbit_gp",
    hypotheses: Sequence[str | Hypothesis] | None = None,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    jobs: int | None = None,
    check: bool = False,
    carry: bool = True,
    device: str = "cpu",
) -> Selection:
    """Learn which symmetry labelled data support, how far it reaches and how sure one may be.

    Parameters
    ----------
    data : Dataset, str or Path
        A data set, a built-in name or an `.npz` file. More than 2,000 images: the evidence is computed on a
        class-balanced subset of 2,000 drawn with the seed, and the best hypothesis is then carried to all of them by
        a sparse bound, if it is a Gaussian process (`Selection.carried`).
    model : str
        Zoo entry.
    hypotheses : sequence, optional
        Names from the entry, or `Hypothesis` objects of your own.  Without them, those that run by default: what takes
        long, as `composition` of `orbit_gp` does, is asked for by name.
    seed : int
        Of everything random.
    out : str or Path, optional
        Run folder; finished hypotheses are stored there and an interrupted run resumes.
    jobs : int, optional
        Hypotheses fitted at the same time, one thread each; as many as cores and memory allow by default.
    check : bool
        Search densely for upper sides, without which nothing is certified, and hold posteriors against NUTS.
    carry : bool
        Whether the best hypothesis is fitted to all data, where the evidence is of a subset; the run is stored before.
    device : str
        Where the data are while hypotheses are fitted, `cpu`, `cuda` or `cuda:N`; one hypothesis at a time on a GPU,
        unless `jobs` says otherwise.  What is returned and stored is on the CPU.

    Returns
    -------
    Selection

    Raises
    ------
    BadInput
        With the argument, what was got and what is accepted.
    """
    checked_seed(seed)
    if jobs is not None and jobs < 1:
        raise BadInput(f"jobs: got {jobs}; 1 or more")
    place = checked_device(device)
    jobs = 1 if jobs is None and place.type != "cpu" else jobs
    if not isinstance(data, Dataset | str | Path):
        raise BadInput(f"data: got {type(data).__name__}; a name, a path or what from_arrays(...) returns")
    full = data if isinstance(data, Dataset) else zoo.load_data(data, seed)
    own = [h for h in hypotheses or () if isinstance(h, Hypothesis)]
    if own and len(own) != len(hypotheses or ()):
        raise BadInput("hypotheses: got names and Hypothesis objects mixed; give one kind")
    chosen = own or zoo.choose(full, model, hypotheses)  # type: ignore[arg-type]
    labels = [h.label for h in chosen]
    if len(set(labels)) < len(labels):
        raise BadInput(f"hypotheses: names must differ within a base, got {labels}")
    if bad := [label for label in labels if not re.fullmatch(r"\w[\w .+-]*", label)]:
        raise BadInput(f"hypotheses: got the name {bad[0]!r}; letters, digits, spaces and . + - are accepted")
    subset = full.subset(datasets.LIMIT, seed)
    if not own and subset is not full:  # what was drawn may lack what the rest has: said before hours of work
        zoo.choose(subset, model, hypotheses)  # type: ignore[arg-type]
    subset = zoo.taken(subset, chosen, seed)
    if subset.classes is None and float(subset.y.std()) == 0:
        raise BadInput(f"y_train: all values of the {len(subset.y)} items drawn are {float(subset.y[0])}; try a seed")
    entry = "custom" if own else model
    folder = None if out is None else RunFolder(out, identity(subset, entry, seed, own))
    if folder is not None:
        folder.open()
        kept = {name: getattr(subset, name) for name in ARRAYS if name != "x_test"}
        write_tensors(folder.path / "data.pt", kept)
        write_json(folder.path / "data.json", {k: v for k, v in vars(subset).items() if not torch.is_tensor(v)})
    done, failed = sweep(list(chosen), subset.to(place), seed, folder, jobs)
    if not done:
        raise NothingFitted("every hypothesis failed: " + "; ".join(f"{k}: {v}" for k, v in failed.items()))
    checked = None
    if check:
        done, checked = scrutinise(list(chosen), done, subset.to(place), seed, folder, jobs)
    elif folder is not None:
        checked = Scrutiny.read(folder.path)
    fits = tuple(sorted(done, key=lambda f: -f.evidence.value))
    selection = Selection(subset, tuple(chosen), fits, failed, entry, seed, checked)
    if folder is not None:
        _write(selection, folder.path)
        selection.inference_data().to_netcdf(str(folder.path / "posterior.nc"))
    if carry and subset.x_earlier is None and len(full.y) > len(subset.y):
        carried = carrying.carry(list(chosen), done, full.to(place), seed, None if folder is None else folder.path)
        selection = replace(selection, carried=carried)
        if folder is not None:
            _write(selection, folder.path)
    return selection


def _write(selection: Selection, folder: Path) -> None:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    write_json(folder / "selection.json", {"command": command, **selection.to_json()})
