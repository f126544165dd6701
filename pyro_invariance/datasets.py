"""Labelled data, checked on the way in: built-in names and `.npz` files of plain arrays."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_invariance import downloads
from pyro_invariance.arrays import (
    Kind,
    channels_first,
    class_count,
    finite,
    kind_of,
    numbers,
    one_scale,
    read_npz,
    second_halves,
)
from pyro_invariance.devices import moved
from pyro_invariance.processes import class_codes
from pyro_invariance.typing import BadInput, nearest

NAMES = ("digits", *downloads.SOURCES)
LIMIT = 2_000  # images that an exact evidence is computed on


@dataclass(frozen=True)
class Dataset:
    """Training and test data of one task.

    Attributes
    ----------
    name : str
        Built-in name or file stem.
    kind : str
        `images`, `series`, `points`, `pairs` or `sphere`.
    x, y : Tensor
        Inputs the evidence is computed on (images `[N, C, H, W]`, float64) and labels `[N]` (integer classes, or
        float64 values for regression), or values of several numbers each `[N, ...]`.
    x_test, y_test : Tensor
        Held-out data, possibly empty.
    classes : int or None
        Number of classes; None for regression.
    total : int
        Training items before a subset was drawn.
    sha256 : str
        Digest of all arrays as given.
    dtype : str
        Of the inputs as given: new ones must have the same scale.
    item : tuple of int
        Shape of an input as given, the channels of an image last.
    x_earlier, y_earlier : Tensor, optional
        Items that parameters are learned from and no evidence is of; see `halved`.
    """

    name: str
    kind: Kind
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int | None
    total: int
    sha256: str
    dtype: str
    item: tuple[int, ...]
    x_earlier: Tensor | None = None
    y_earlier: Tensor | None = None

    @property
    def codes(self) -> Tensor | None:
        """Target vectors of the classes `[C, C - 1]`, centred by their frequency among the training items."""
        return None if self.classes is None else class_codes(self.y.bincount(minlength=self.classes))

    def encode(self, y: Tensor) -> Tensor:
        """Targets `[n, O]`: class contrasts, or values in `unit`."""
        if self.codes is not None:
            return self.codes[y]
        centre, scale = self.unit
        return ((y - centre) / scale).flatten(1) if y.dim() > 1 else ((y - centre) / scale)[:, None]

    @property
    def unit(self) -> tuple[Tensor, Tensor]:
        """Zero and one of the targets: mean and standard deviation of single values, root mean square of vectors.

        What is like the inputs, in a pair or as an input itself, is left as it is.
        """
        zero, one = torch.zeros(()).to(self.y), torch.ones(()).to(self.y)
        if self.y.shape[1:] == self.x.shape[1:]:
            return zero, one
        if self.y.dim() > 1:  # to centre a vector would prefer a direction
            return zero, self.y.square().mean().sqrt()
        return self.y.mean(), self.y.std()

    def require_values(self, *shape: int) -> None:
        """Raise `BadInput` if targets are classes, or values of another shape."""
        got = f"values of shape {tuple(self.y.shape[1:])}" if self.classes is None else f"{self.classes} classes"
        if self.classes is not None or self.y.shape[1:] != shape:
            accepted = f"floats of shape {shape}" if shape else "one float"
            raise BadInput(f"y_train: got {got}; {accepted} per item is accepted")

    @property
    def targets(self) -> Tensor:
        """Targets `[N, O]` of the evidence."""
        return self.encode(self.y)

    @property
    def coding(self) -> str:
        """The target coding in words."""
        if self.codes is None:
            alike = self.y.shape[1:] == self.x.shape[1:]
            vectors = "values as they are" if alike else "vectors scaled to a mean square of one"
            return vectors if self.y.dim() > 1 else "values centred and scaled to unit variance"
        classes, outputs = self.codes.shape
        if classes == 2:
            return "one output of {:+.3g} and {:+.3g}".format(*self.codes[:, 0].tolist())
        return f"{outputs} orthonormal contrasts of {classes} one-hot classes, centred, of unit variance on average"

    def to(self, device: torch.device | str) -> "Dataset":
        """Put the data on a device; everything that is made of them follows."""
        return moved(self, device)

    def subset(self, size: int, seed: int) -> "Dataset":
        """A random subset of the training items, balanced over classes as far as they allow."""
        if size >= len(self.y):
            return self
        generator = torch.Generator().manual_seed(seed)
        chosen = self._order(generator)[:size].sort().values
        return replace(self, x=self.x[chosen], y=self.y[chosen])

    def itself(self) -> "Dataset":
        """The same inputs as what is to be explained: what a density is of, for which labels play no part."""
        return replace(self, y=self.x, y_test=self.x_test, classes=None)

    def halved(self, seed: int) -> "Dataset":
        """Keep a random half of the training items for the evidence; parameters are learned from the other."""
        order = self._order(torch.Generator().manual_seed(seed))
        earlier, later = (part.sort().values for part in (order[1::2], order[::2]))
        x, y = self.x[earlier], self.y[earlier]
        return replace(self, x=self.x[later], y=self.y[later], x_earlier=x, y_earlier=y)

    def _order(self, generator: torch.Generator) -> Tensor:
        """Training items in random order, every beginning balanced over classes as far as they allow."""
        order = torch.randperm(len(self.y), generator=generator)
        if self.classes is None:
            return order
        labels = self.y[order].cpu()
        rank = torch.zeros_like(labels)  # how many of the same class come before
        for c in range(self.classes):
            rank[labels == c] = torch.arange(int((labels == c).sum()))
        return order[torch.sort(rank, stable=True).indices]


def load(source: str | Path, seed: int = 0) -> Dataset:
    """Load a built-in data set or an `.npz` file.

    Parameters
    ----------
    source : str or Path
        `digits` (scikit-learn's bundled 8 x 8 digits, 1,000 for training by the seed), `mnist` or `fashion_mnist` (all
        60,000 and 10,000 images, downloaded once), `qm7` (the authors' 6,165 and 1,000 molecules, downloaded once; a
        local `qm7.npz` may hold another version, as of 7,101 in all, and the digest tells them apart), or the path
        of an `.npz` with `x_train`, `y_train`, optionally `x_test`, `y_test` and `kind`.
    seed : int
        Draws the training half of `digits`.

    Raises
    ------
    BadInput
        With the argument, what was got and what is accepted.
    """
    if str(source) == "digits":
        return _digits(seed)
    if str(source) in downloads.SOURCES:
        return _downloaded(str(source))
    path = Path(source)
    if path.suffix != ".npz":
        raise unknown(source, NAMES)
    if not path.is_file():
        raise BadInput(f"data: no file {str(source)!r}")
    return from_arrays(path.stem, **read_npz(path, ("x_train", "y_train"), optional=("x_test", "y_test", "kind")))


def unknown(source: str | Path, names: Iterable[str]) -> BadInput:
    """What to raise for data that are neither a name nor an `.npz` file."""
    return BadInput(f"data: got {str(source)!r}; {nearest(str(source), names)}, or the path of an .npz file")


def load_new(source: str | Path, data: Dataset) -> Tensor:
    """Load new inputs `x` (or `x_test`) for predictions, checked against the data of a run."""
    path = Path(source)
    if not path.is_file():
        raise BadInput(f"new: no file {str(source)!r}")
    arrays = read_npz(path, ("x",), ("x_test",))
    raw = numbers("x", arrays["x"] if "x" in arrays else arrays["x_test"])
    if not one_scale(raw.dtype, np.dtype(data.dtype)):
        raise BadInput(f"x: got dtype {raw.dtype}; the run was on {data.dtype}, and so is the scale of its inputs")
    if len(raw) == 0:
        raise BadInput(f"x: got shape {raw.shape}; one item or more is accepted")
    x = finite("x", raw, data.kind)
    if data.kind == "images":
        if x.ndim not in (3, 4):
            raise BadInput(f"x: got shape {x.shape}; images are [N, H, W] or [N, H, W, C]")
        x = x if x.ndim == 4 else x[..., None]
    if x.shape[1:] != tuple(data.item):  # a JSON file has no tuples
        raise BadInput(f"x: items of shape {x.shape[1:]}, those of the run have {tuple(data.item)}")
    return channels_first(x) if data.kind == "images" else torch.as_tensor(x)


def _digits(seed: int) -> Dataset:
    bundle = load_digits()
    order = np.random.default_rng(seed).permutation(len(bundle.target))
    x, y = bundle.images[order] / 16.0, bundle.target[order]
    return from_arrays("digits", x[:1000], y[:1000], x[1000:], y[1000:])


def _downloaded(name: str) -> Dataset:
    own = ("x_train", "y_train", "x_test", "y_test")
    source, path = downloads.SOURCES[name], downloads.local(name)
    arrays = downloads.fetch(name) if path is None else read_npz(path, source.keys, own, optional=("kind",))
    return from_arrays(name, **(arrays if own[0] in arrays else source.split(arrays)))


def from_arrays(
    name: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray | None = None,
    y_test: np.ndarray | None = None,
    kind: object = None,
) -> Dataset:
    """Check plain arrays and make a `Dataset` of them.

    Parameters
    ----------
    name : str
        What to call it.
    x_train, x_test : ndarray
        Images `[N, H, W]` or `[N, H, W, C]` (integers are divided by the maximum of their dtype, floats are used as
        given), series `[N, T]`, points `[N, P, D]`, first halves of pairs `[N, ...]`, or places on a sphere `[N, 2]`:
        latitude and longitude in degrees.
    y_train, y_test : ndarray `[N]`
        Integers 0..C-1 mean classes, floats regression; floats `[N, ...]` are values of several numbers each, as the
        second halves of pairs are.
    kind : str, optional
        `images`, `series`, `points`, `pairs` or `sphere`; without it 2-D arrays are series, 3-D and 4-D images.

    Raises
    ------
    BadInput
        With the argument, what was got and what is accepted.
    """
    x_train, y_train = numbers("x_train", x_train), numbers("y_train", y_train)
    if (x_test is None) != (y_test is None):
        raise BadInput("x_test, y_test: got only one of the two; give both or none")
    x_test = x_train[:0] if x_test is None else numbers("x_test", x_test)
    y_test = y_train[:0] if y_test is None else numbers("y_test", y_test)
    if not one_scale(x_test.dtype, x_train.dtype):
        raise BadInput(f"x_test: got dtype {x_test.dtype}; x_train has {x_train.dtype}, and so is its scale")
    if (y_test.dtype.kind == "f") != (y_train.dtype.kind == "f"):
        raise BadInput(f"y_test: got dtype {y_test.dtype}; y_train has {y_train.dtype}: floats are values, not classes")
    digest = hashlib.sha256()
    for array in (x_train, y_train, x_test, y_test):
        digest.update(str((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    dtype, item = str(x_train.dtype), x_train.shape[1:]
    if str(kind) == "pairs":
        y_train, y_test = second_halves("y_train", y_train, x_train), second_halves("y_test", y_test, x_test)
    x_train, x_test = finite("x_train", x_train, kind), finite("x_test", x_test, kind)
    chosen = kind_of(kind, x_train)
    if chosen != "pairs" and y_train.shape[1:] == (1,) and y_train.dtype.kind == "f":  # a column of single values
        y_train, y_test = y_train[:, 0], y_test.reshape(len(y_test), -1)[:, 0] if y_test.size else y_test.flatten()
    if x_test.shape[1:] != x_train.shape[1:]:
        raise BadInput(f"x_test: items of shape {x_test.shape[1:]}, those of x_train have {x_train.shape[1:]}")
    if x_train.size == 0 or not np.ptp(x_train.reshape(len(x_train), -1), axis=0).any():
        raise BadInput(f"x_train: all {len(x_train)} items are the same, there is nothing to learn from")
    if chosen == "images" and not np.ptp(x_train.reshape(len(x_train), -1), axis=1).any():
        raise BadInput("x_train: every image is constant, there is nothing to learn from")
    if chosen == "images" and len(item) == 2:
        item = (*item, 1)
    classes = class_count(x_train, y_train, x_test, y_test)
    x, new = (channels_first(a) if chosen == "images" else torch.as_tensor(a) for a in (x_train, x_test))
    to = torch.long if classes else torch.float64
    y, y_new = (torch.as_tensor(a.astype(np.int64 if classes else np.float64)).to(to) for a in (y_train, y_test))
    return Dataset(
        name,
        chosen,
        x,
        y,
        new,
        y_new,
        classes,
        len(y),
        digest.hexdigest(),
        dtype,
        (*item, 1) if chosen == "images" and len(item) == 2 else item,
    )
