"""Names of the shapes that the library passes around, and the one error a user can mend."""

import difflib
from collections.abc import Iterable
from numbers import Integral
from typing import TypeAlias

from torch import Tensor

Images: TypeAlias = Tensor  # [N, C, H, W], channels first; H x W is the square [-1, 1] x [-1, 1]
Views: TypeAlias = Tensor  # [N, V, *event], V = number of views in the orbit
Elements: TypeAlias = Tensor  # [*batch, *element], one group element per batch index


class BadInput(ValueError):
    """What the user gave cannot be used; the message names the argument, what was got and what is accepted."""


def checked_seed(seed: int) -> int:
    """Return a seed that every random number generator takes, and a few after it."""
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32 - 100:
        raise BadInput(f"seed: got {seed!r}; a whole number from 0 to {2**32 - 101} is accepted")
    return int(seed)


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which names are accepted, the nearest one first."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}accepted: {', '.join(known)}"
