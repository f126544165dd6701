"""The zoo: what a hypothesis and an entry are, and where entries are found.

An entry is one file in `models/`; the directory is scanned, nothing else is edited.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from torch import Tensor

from pyro_invariance import datasets, downloads
from pyro_invariance.datasets import Dataset
from pyro_invariance.typing import BadInput, nearest

SIMULATOR = "orbit_gp"  # the entry whose simulated images have names: a name means the same data for every entry

Kind = Literal["null", "none", "convolution", "group", "augmentation", "composition"]


@dataclass(frozen=True)
class Extent:
    """A learned range: a latent site of the model.

    Attributes
    ----------
    generator : str
        What is ranged over, in words (`rotation`, `rows`, `columns`, `location`).
    unit : str
        `rad`, `grid` (the image is [-1, 1]), `log` or `level` (black is 0, white 1).
    upper : float
        Largest value that the prior allows.
    reach : float
        From here on the range cannot be told from a wider one: it is reported as "at least".
    whole : bool
        Whether `upper` is the whole group (a full turn) rather than the end of what was looked at.
    resolution : float
        Below this the range cannot be told from a point.
    """

    generator: str
    unit: Literal["rad", "grid", "log", "level"]
    upper: float
    reach: float
    whole: bool
    resolution: float


@dataclass(frozen=True)
class Hypothesis:
    """One way in which the data may be symmetric: a Pyro model and what it claims.

    Attributes
    ----------
    name, kind, base : str
        `base` names the representation and base kernel that contrasts are made within.
    model : callable
        A Pyro model `model(*args)`; its latent sites continuous or enumerated in parallel, the data observed.
    prepare : callable
        `Dataset -> args`, run once per data set (distances and the like); with parameters `(Dataset, dict) -> args`.
    starts : tuple of dict
        Values of every latent site to start from, narrow and wide.
    contains : frozenset of str
        Elementary symmetries that the hypothesis holds.
    saturated : frozenset of str
        Those it holds as well when every extent that ends in a whole group reaches it.
    extents : mapping of str to Extent
        Sites that are learned ranges.
    ranges_of : mapping of str to tuple of str
        Extents of a symmetry, which is no longer held when all of them went to zero; none for one that has no range.
        All extents are those of a symmetry that is not named.
    predict : callable, optional
        `(args, draws, inputs) -> (mean [D, M, O], variance [D, M])` for draws of the sites.
    log_density : callable, optional
        `(args, draws, inputs, targets [M, O]) -> [D, M]`: of new targets, where the moments of `predict` are not all.
    memory : callable
        `(dataset) -> bytes` needed at the peak, an estimate.
    priors : mapping of str to str
        The priors in words.
    moved : callable, optional
        `(inputs, extents) -> {caption: inputs}`: what the hypothesis takes to be the same, at values of its ranges.
    learn : callable, optional
        `(Dataset, seed) -> dict of tensors`: parameters that the model has beside its sites, learned from the earlier
        items of the data set, so that the evidence is of items that they have not seen.
    density : bool
        Whether it explains the inputs themselves: labels then play no part.
    sparse : bool
        Whether `sparse_fitting.fit_sparse` can fit it to any number of data.
    parts : mapping of str to Hypothesis
        Of a sum of priors: sites that are scales (standard deviations), and what each of them is the scale of.
    default : bool
        Whether it is run when no names are given.
    """

    name: str
    kind: Kind
    base: str
    model: Callable[..., Any]
    prepare: Callable[..., tuple]
    starts: tuple[Mapping[str, float], ...]
    contains: frozenset[str] = frozenset()
    saturated: frozenset[str] = frozenset()
    extents: Mapping[str, Extent] = field(default_factory=dict)
    ranges_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    predict: Callable[[tuple, list[dict[str, Tensor]], Tensor], tuple[Tensor, Tensor]] | None = None
    log_density: Callable[[tuple, list[dict[str, Tensor]], Tensor, Tensor], Tensor] | None = None
    memory: Callable[[Dataset], int] = lambda data: 0
    priors: Mapping[str, str] = field(default_factory=dict)
    moved: Callable[[Tensor, Mapping[str, float]], Mapping[str, Tensor]] | None = None
    learn: Callable[[Dataset, int], dict[str, Tensor]] | None = None
    density: bool = False
    sparse: bool = False
    parts: Mapping[str, "Hypothesis"] = field(default_factory=dict)
    default: bool = True

    def given(self, parameters: Mapping[str, Tensor]) -> "Hypothesis":
        """Return the hypothesis with its parameters as learned; itself if it has none."""
        return replace(self, learn=None, prepare=partial(self.prepare, parameters=parameters)) if self.learn else self

    def shares(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Share of the prior variance that each part of a sum has, at values of its scales."""
        squares = {name: sites[name].square() for name in self.parts}
        total = sum(squares.values())
        return {part.label: squares[name] / total for name, part in self.parts.items()}

    @property
    def label(self) -> str:
        """Name that is unique within a run: `trivial` carries its base."""
        return f"{self.name}-{self.base}" if self.name == "trivial" else self.name


@dataclass(frozen=True)
class Card:
    """What an entry is, for people and tables; `symmetries` says each in words: the label survives ..."""

    name: str
    title: str
    task: str
    kind: str
    hypotheses: tuple[str, ...]
    symmetries: Mapping[str, str]
    data: tuple[str, ...]
    sites: Mapping[str, str]
    evidence: tuple[str, ...]
    references: tuple[str, ...]
    licence: str
    limitations: tuple[str, ...]


def names() -> list[str]:
    """Names of all entries, by a scan of `models/`."""
    package = importlib.import_module("pyro_invariance.models")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def load(name: str) -> ModuleType:
    """Import the entry of that name."""
    if name not in names():
        raise BadInput(f"model: got {name!r}, {nearest(name, names())}")
    return importlib.import_module(f"pyro_invariance.models.{name}")


def simulated() -> dict[str, tuple[str, str]]:
    """Entry and planted symmetry of each data set that is simulated, by its name."""
    every = {f"{entry}-{planted}": (entry, planted) for entry in names() for planted in load(entry).PLANTED}
    return {f"simulated-{planted}": (SIMULATOR, planted) for planted in load(SIMULATOR).PLANTED} | every


def load_data(source: str | Path, seed: int = 0) -> Dataset:
    """Load a data set by name, or an `.npz` file.

    Parameters
    ----------
    source : str or Path
        `digits` (scikit-learn's bundled 8 x 8 digits, 1,000 for training by the seed), `mnist` or `fashion_mnist` (all
        60,000 and 10,000 images, downloaded once), `qm7` (molecules, downloaded once), `simulated-mirror` and the like
        (images whose labels have that symmetry), `augmentation_gp-affine` and the like (what that entry simulates), or
        the path of an `.npz` with `x_train`, `y_train`, optionally `x_test`, `y_test` and `kind`.
    seed : int
        Draws the training half of `digits`, and the simulated images.

    Raises
    ------
    BadInput
        With the argument, what was got and what is accepted.
    """
    if str(source) in datasets.NAMES or Path(source).suffix == ".npz":
        return datasets.load(source, seed)
    planted = simulated()
    if str(source) not in planted:
        raise datasets.unknown(source, [*datasets.NAMES, *planted])
    entry, symmetry = planted[str(source)]
    return load(entry).data(symmetry, seed)


def catalogue() -> list[tuple[str, str, str, str, str]]:
    """Name, content, size, licence and whereabouts of every data set that has a name."""
    rows = [("digits", "handwritten digits, 8 x 8, 10 classes", "1,000 + 797", "CC BY 4.0", "bundled")]
    for name, source in downloads.SOURCES.items():
        where = f"to be downloaded ({source.megabytes} MB)"
        if downloads.local(name):
            where = "local folder"
        elif downloads.cached(name):
            where = "cached"
        rows.append((name, source.title, source.size, source.licence, where))
    for name, (entry, planted) in simulated().items():
        symmetry = "no symmetry" if planted == "none" else f"symmetry {planted}"
        counts = inspect.signature(load(entry).data).parameters
        size = " + ".join(str(counts[count].default) for count in ("size", "test"))
        rows.append((name, f"{load(entry).CARD.kind}, {symmetry}", size, "none needed", "bundled"))
    return rows


def taken(data: Dataset, hypotheses: Iterable[Hypothesis], seed: int) -> Dataset:
    """The data as all of these hypotheses take them, whose evidences would not compare otherwise.

    A density explains the inputs themselves; where one of them learns parameters, half of the items are for that.
    """
    hypotheses = list(hypotheses)
    if any(h.density for h in hypotheses):
        data = data.itself()
    return data.halved(seed) if any(h.learn for h in hypotheses) else data


def choose(data: Dataset, model: str, names: Iterable[str] | None) -> list[Hypothesis]:
    """Hypotheses of a zoo entry by name, and what their contrasts need.

    That is `null`, the `trivial` of each base, and every default hypothesis with some of the symmetries of a chosen
    one: O2 alone would be credited with a mirror where the data have only turns.  Without names, all that run by
    default.
    """
    every = load(model).hypotheses(data)
    if names is None:
        return [h for h in every if h.default]
    names = list(names)
    known = list(dict.fromkeys(h.name for h in every))
    for name in names:
        if name not in known and name not in [h.label for h in every]:
            raise BadInput(f"hypotheses: got {name!r}; {nearest(name, known)}")
    if not names:
        raise BadInput(f"hypotheses: got none; accepted: {', '.join(known)}")
    chosen = [h for h in every if h.name in names or h.label in names]
    held = {h.base: [c.contains for c in chosen if c.base == h.base] for h in chosen}
    return [
        h
        for h in every
        if h.kind == "null"
        or h in chosen
        or (h.base in held and h.kind == "none")
        or (h.default and any(h.contains <= c for c in held.get(h.base, ())))
    ]
