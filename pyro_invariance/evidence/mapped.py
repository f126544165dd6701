"""A function of one draw, evaluated for many of them at once where the model allows it."""

from collections.abc import Callable

import pyro
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_invariance.devices import at_once
from pyro_invariance.evidence.watched import named
from pyro_invariance.typing import BadInput

Draws = dict[str, Tensor]  # [S, *shape] by name
CHUNK = 1000  # draws at once, at most
MOST = 2**22  # numbers of the largest tensor of those: memory of more of them is slow to come by
CHECKED = 3  # draws that are also evaluated alone


class _Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made under it."""

    numbers = 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **(kwargs or {}))
        tensors = [made] if torch.is_tensor(made) else made if isinstance(made, tuple | list) else []
        self.numbers = max([self.numbers, *(t.numel() for t in tensors if torch.is_tensor(t))])
        return made


class Mapped:
    """A function of one draw, `{name: [*shape]} -> {name: log density}`, mapped over many draws.

    By `torch.vmap`, which needs nothing of the function but operations that torch can batch: dimensions of a model
    cannot be mistaken for draws, as they can where Pyro vectorises particles.  Else one by one.  The first call
    compares a few draws with what they give alone.

    Raises
    ------
    BadInput
        Naming the site whose density differs between the two, or at which the function fails.
    """

    def __init__(self, function: Callable[[Draws], Draws]) -> None:
        self.function = function
        self.vectorised: bool | None = None  # not known yet
        self.chunk = CHUNK

    def __call__(self, draws: Draws) -> Draws:
        """Return `{name: [S]}`."""
        with named("model"):
            if self.vectorised is None:
                few = {name: value[:CHECKED] for name, value in draws.items()}
                with _Largest() as made:
                    alone = self._serial(few)
                most = at_once(next(iter(draws.values())), MOST)
                self.chunk = max(1, min(CHUNK, most // made.numbers))
                try:
                    together, vectorised = self._together(few), True
                except Exception:  # whatever torch cannot batch, a function of the model's own for instance
                    together, vectorised = self._serial(few), False
                _require_equal(alone, together)
                self.vectorised = vectorised
            return self._together(draws) if self.vectorised else self._serial(draws)

    def _together(self, draws: Draws) -> Draws:
        """Gather what each chunk gives in one tensor: many small ones leave holes in the heap, gigabytes of them."""
        found: Draws = {}
        count = len(next(iter(draws.values())))
        for start in range(0, count, self.chunk):
            these = slice(start, start + self.chunk)
            part = {name: value[these] for name, value in draws.items()}
            with pyro.validation_enabled(False):  # it looks at values, which vmap does not allow
                terms = vmap(self.function, randomness="different")(part)
            for name, value in terms.items():
                found.setdefault(name, value.new_empty(count))[these] = value
        return found

    def _serial(self, draws: Draws) -> Draws:
        count = len(next(iter(draws.values())))
        rows = [self.function({name: value[i] for name, value in draws.items()}) for i in range(count)]
        for row in rows:
            _require_same_names(rows[0], row)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _require_same_names(one: Draws, other: Draws) -> None:
    if odd := sorted(one.keys() ^ other.keys()):
        raise BadInput(f"model: site {odd[0]!r} is there for some draws only; accepted are models with fixed sites")


def _require_equal(alone: Draws, together: Draws) -> None:
    _require_same_names(alone, together)
    for name, value in alone.items():
        if not torch.allclose(value, together[name], rtol=1e-8, atol=1e-8, equal_nan=True):
            raise BadInput(
                f"model: site {name!r}: for the same values of all sites, its log density is "
                f"{float(value.flatten()[0]):.6g} evaluated alone and {float(together[name].flatten()[0]):.6g} among "
                "other draws; does the model draw random numbers outside of its sites, or keep a state?"
            )
