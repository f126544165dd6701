"""Plain arrays, checked on the way in: what they may hold, and what is said if they do not."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_invariance.representations import ground
from pyro_invariance.typing import BadInput, nearest

Kind = Literal["images", "series", "points", "pairs", "sphere"]
KINDS = get_args(Kind)


def read_npz(path: Path, *accepted: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Arrays of an archive that holds at least one of the accepted sets of keys."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise BadInput(f"data: {str(path)!r} is not an .npz archive of arrays")
            if not any(set(keys) <= set(archive.files) for keys in accepted):
                found = ", ".join(archive.files) or "nothing"
                wanted = " or ".join(" and ".join(keys) for keys in accepted)
                raise BadInput(f"data: {str(path)!r} lacks {wanted}; it holds {found}")
            wanted_keys = {*(k for keys in accepted for k in keys), *optional}
            return {k: archive[k] for k in archive.files if k in wanted_keys}
    except BadInput:
        raise
    except ValueError:  # numpy's word for a pickle
        raise BadInput(f"data: {str(path)!r} holds object arrays or is no .npz; pickles are never loaded") from None
    except Exception as error:
        raise BadInput(f"data: {str(path)!r} is not an .npz archive of arrays ({type(error).__name__})") from None


def one_scale(a: np.dtype, b: np.dtype) -> bool:
    """Whether numbers of two dtypes are read alike: floats as they are, integers by their own maximum."""
    return a == b or (a.kind == "f" and b.kind == "f")


def numbers(name: str, values: object) -> np.ndarray:
    """One or more items of integers or floats."""
    if np.ma.is_masked(values):
        count = int(np.ma.count_masked(values))
        raise BadInput(f"{name}: got {count} masked values; leave out items whose value is missing")
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        raise BadInput(f"{name}: got lists of different lengths; arrays of numbers are accepted") from None
    if array.dtype.kind not in "fiub":
        raise BadInput(f"{name}: got dtype {array.dtype}; integers and floats are accepted")
    if array.ndim == 0:
        raise BadInput(f"{name}: got a single value; arrays with one item per row are accepted")
    return array


def finite(name: str, x: np.ndarray, kind: object = None) -> np.ndarray:
    """Inputs as finite floats, latitudes within 90 degrees.

    Integers are divided by the maximum of their dtype, but where they are places.
    """
    if x.dtype.kind in "iu" and str(kind) not in ("sphere", "points"):
        x = x / np.iinfo(x.dtype).max
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        raise BadInput(
            f"{name}: got {int((~np.isfinite(x)).sum())} values that are NaN or infinite; finite ones are accepted"
        )
    if str(kind) == "sphere" and x.ndim == 2 and x.size and abs(x[:, 0]).max() > 90:
        raise BadInput(f"{name}: got latitudes to {abs(x[:, 0]).max():g}; the first column is degrees, -90 to 90")
    return x


def kind_of(kind: object, x: np.ndarray) -> Kind:
    """The kind that was given, or that the axes say; they have to fit."""
    inferred = {2: "series", 3: "images", 4: "images"}.get(x.ndim)
    chosen = inferred if kind is None else str(np.asarray(kind))
    if chosen not in KINDS:
        got = f"an array of shape {x.shape}" if kind is None else repr(chosen)
        raise BadInput(f"kind: got {got}; {nearest(str(chosen), KINDS)}")
    if chosen == "images":
        if x.ndim not in (3, 4):
            raise BadInput(f"x_train: got shape {x.shape}; images are [N, H, W] or [N, H, W, C]")
        if min(x.shape[1:3]) < 4:
            raise BadInput(f"x_train: got images of {x.shape[1]} x {x.shape[2]} pixels; 4 x 4 is the least")
        if x.ndim == 4 and x.shape[3] > 4:
            raise BadInput(f"x_train: got {x.shape[3]} channels in shape {x.shape}; channels come last, 4 at most")
    elif chosen == "sphere":
        if x.ndim != 2 or x.shape[1] != 2:
            raise BadInput(f"x_train: got shape {x.shape}; places on a sphere are [N, 2], latitude and longitude")
    elif chosen == "pairs":
        if x.ndim < 2:
            raise BadInput(f"x_train: got shape {x.shape}; first halves of pairs are [N, ...], several numbers each")
    elif x.ndim != (2 if chosen == "series" else 3):
        raise BadInput(f"x_train: got shape {x.shape}; series are [N, T], points [N, P, D]")
    return chosen  # type: ignore[return-value]


def second_halves(name: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Second halves of pairs, read as the first ones are."""
    if y.shape != x.shape:
        raise BadInput(f"{name}: got shape {y.shape}; the halves of a pair have one shape, here {x.shape}")
    if not one_scale(y.dtype, x.dtype):
        raise BadInput(f"{name}: got dtype {y.dtype}; the halves of a pair have one scale, here that of {x.dtype}")
    return finite(name, y)


def class_count(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> int | None:
    """Number of classes of labels that fit their inputs; None for values."""
    for name, inputs, labels in (("y_train", x, y), ("y_test", x_test, y_test)):
        if len(labels) != len(inputs) or (labels.ndim != 1 and labels.dtype.kind != "f"):
            got = f"integers of shape {labels.shape}" if labels.dtype.kind != "f" else f"shape {labels.shape}"
            accepted = "one label per item, or floats of one shape"
            raise BadInput(f"{name}: got {got} for {len(inputs)} items; {accepted}")
        if 0 in labels.shape[1:]:
            raise BadInput(f"{name}: got shape {labels.shape}; one number or more per item")
        if labels.shape[1:] != y.shape[1:]:
            raise BadInput(f"{name}: values of shape {labels.shape[1:]}, those of y_train have {y.shape[1:]}")
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise BadInput(
                f"{name}: got {int((~np.isfinite(labels)).sum())} values that are NaN or infinite; finite ones are "
                "accepted: leave out items whose value is missing"
            )
    if y.dtype.kind == "f":
        if np.ptp(y) == 0:
            raise BadInput(f"y_train: all values are {y.flat[0]}, there is nothing to learn")
        return None
    found = np.unique(y.astype(np.int64))
    if found[0] < 0:
        raise BadInput(f"y_train: got the negative label {found[0]}; classes are 0, 1, ..., C-1")
    if len(found) < 2:
        raise BadInput(f"y_train: got one class only ({found[0]}); two or more are needed")
    if found[-1] != len(found) - 1:
        gap = sorted(set(range(int(found[-1]))) - set(found.tolist()))[0]
        raise BadInput(f"y_train: labels go to {found[-1]} but {gap} does not occur; classes are 0, 1, ..., C-1")
    if len(y_test) and (y_test.min() < 0 or y_test.max() >= len(found)):
        raise BadInput(f"y_test: got labels {y_test.min()} to {y_test.max()}; training has classes 0 to {found[-1]}")
    return len(found)


def channels_first(x: np.ndarray) -> Tensor:
    """Images `[N, C, S, S]` of `[N, H, W]` or `[N, H, W, C]`; what is not square is padded with its ground."""
    images = torch.as_tensor(x)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    h, w = images.shape[-2:]
    if h == w:
        return images.contiguous()
    side = max(h, w)  # a turn needs a square: the short side is padded with the ground
    top, left = (side - h) // 2, (side - w) // 2
    square = ground(images).repeat(1, 1, side, side)
    square[..., top : top + h, left : left + w] = images
    return square
