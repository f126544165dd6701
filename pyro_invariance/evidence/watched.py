"""Runs of a Pyro model or guide that say at which site they failed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyro_invariance.traces import Trace, samples
from pyro_invariance.typing import BadInput


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Turn whatever is raised within into `BadInput` with the name of the site that was reached."""
    watch = _Watch()
    try:
        with watch:
            yield
    except Exception as error:
        raise _told(what, watch.where(), error) from error


def run(what: str, fn: Callable, args: tuple, seed: int) -> Trace:
    """Trace one run of a model or guide under Pyro's validation, or raise `BadInput` with the name of the site.

    Distributions are made before the site that they are for: where one cannot be made, a second run without validation
    tells which site it would have been.
    """
    watch, tracer = _Watch(), poutine.trace(fn)
    try:
        with pyro.validation_enabled(True), poutine.seed(rng_seed=seed), watch:
            return tracer.get_trace(*args)
    except Exception as error:
        for name, site in samples(tracer.trace).items():
            require_value(what, name, site["value"])  # an earlier one is the likely cause
        unchecked = _Watch()
        with contextlib.suppress(Exception), pyro.validation_enabled(False), poutine.seed(rng_seed=seed), unchecked:
            fn(*args)
        following = unchecked.names[len(watch.names) :]
        where = f"before site {following[0]!r}" if following and not watch.inside else watch.where()
        raise _told(what, where, error) from error


def require_double(what: str, name: str, value: Any) -> None:
    """Raise where a value or density of a site is in less than double precision."""
    if torch.is_tensor(value) and value.is_floating_point() and value.dtype != torch.float64:
        raise BadInput(
            f"{what}: site {name!r} is {str(value.dtype).removeprefix('torch.')}; evidence is float64, since "
            "differences of large sums in single precision have been wrong by thousands of nats (use .double())"
        )


def require_value(what: str, name: str, value: Any) -> None:
    """Raise unless the value of a site is a tensor of finite numbers in double precision."""
    if not torch.is_tensor(value):
        raise BadInput(f"{what}: site {name!r} has a value that is a {type(value).__name__}; a tensor is accepted")
    if not torch.isfinite(value).all():
        raise BadInput(f"{what}: site {name!r} has NaN or infinite values; finite ones are accepted")
    require_double(what, name, value)


class Fixed(Messenger):
    """Gives latent sites, and plates that take a part of the data, the values that they have in another run."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.trace and not msg["is_observed"]:
            msg["value"], msg["done"] = self.trace.nodes[msg["name"]]["value"], True


class _Watch(Messenger):
    """Remembers the sites that were reached, plates aside, and whether a run is inside of the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.inside = False

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self.names.append(msg["name"])
            self.inside = True

    def _pyro_post_sample(self, msg: Any) -> None:
        self.inside = False

    def where(self) -> str:
        """Where the run is, in words."""
        if not self.names:
            return "before its first site"
        return f"{'at' if self.inside else 'after'} site {self.names[-1]!r}"


def _told(what: str, where: str, error: Exception) -> BadInput:
    if isinstance(error, BadInput):
        return error
    said = in_words(error)  # a density is computed after the run: Pyro says of which site
    return BadInput(f"{what}: {said}" if "log_prob at site" in said else f"{what}: {where}: {said}")


def in_words(error: Exception) -> str:
    """Return an error as one readable line: without the tensors and tables that torch and Pyro append."""
    said = str(error).split("Trace Shapes")[0].split(", but found invalid values")[0]
    return f"{type(error).__name__}: {' '.join(said.split())[:300]}".removesuffix(": ")
