"""What is wrong with a Pyro model or guide, said with the name of the site, before anything is computed from it."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, ImproperUniform
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_invariance.evidence.base import require_no_parameters
from pyro_invariance.traces import Trace, is_data, samples
from pyro_invariance.typing import BadInput


def checked_model(model: Callable, args: tuple) -> Trace:
    """Run a model once and return the trace, or raise `BadInput` with what is wrong with it.

    Refused are: parameters, sites scaled by other than their plates, single precision, values or densities that are
    NaN, data that would be broadcast, improper priors, and models without data.
    """
    if isinstance(model, torch.nn.Module):
        require_no_parameters(name for name, value in model.named_parameters() if value.requires_grad)
    with _named("model"), torch.no_grad(), poutine.seed(rng_seed=0):
        trace = poutine.trace(model).get_trace(*args)
        trace.compute_log_prob()
    require_no_parameters(name for name, site in trace.nodes.items() if site["type"] == "param")
    for name, site in _plain(trace).items():
        fn, value, scale, of_plates = site["fn"], site["value"], _mean(site["scale"]), _of_plates(trace, site)
        if not math.isclose(scale, of_plates, rel_tol=1e-9):
            raise BadInput(
                f"model: site {name!r} is scaled by {scale:g}, its plates by {of_plates:g}; a tempered density has no "
                "evidence"
            )
        _require_numbers("model", name, value, site["log_prob"])
        if is_data(site):
            shape = torch.broadcast_shapes(fn.shape(), value.shape)
            if shape != value.shape:
                raise BadInput(
                    f"model: site {name!r} has data of shape {tuple(value.shape)} and a distribution of shape "
                    f"{tuple(fn.shape())}; broadcast to {tuple(shape)}, each datum would count more than once"
                )
        elif not site["is_observed"] and _improper(site):
            raise BadInput(f"model: site {name!r} has an improper prior; evidence needs one that integrates to one")
    if not any(is_data(site) for site in samples(trace).values()):
        raise BadInput("model: no site observes data (obs=...), so that there is no evidence to compute")
    return trace


def checked_guide(guide: Callable, args: tuple, model: Trace) -> Trace:
    """Run a guide once and return the trace, or raise `BadInput` with what is wrong with it.

    Refused are: guides that were never set up, sites that the model lacks, continuous ones that the guide lacks,
    other shapes, wider supports, single precision, values or densities that are NaN, and point masses.
    """
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise BadInput("guide: it was never run; train it first, or give none")
    with _named("guide"), torch.no_grad(), poutine.seed(rng_seed=0):
        trace = poutine.trace(guide).get_trace(*args)
        trace.compute_log_prob()
    wanted, drawn = latent(model), latent(trace)
    auxiliary = {name for name, site in drawn.items() if (site["infer"] or {}).get("is_auxiliary")}
    if stray := sorted(drawn.keys() - wanted.keys() - auxiliary):
        raise BadInput(f"guide: site {stray[0]!r} is no latent site of the model, which has {sorted(wanted)}")
    if missing := sorted(name for name in wanted.keys() - drawn.keys() if not is_finite(wanted[name])):
        raise BadInput(f"guide: lacks the model's site {missing[0]!r}; it has {sorted(drawn.keys() - auxiliary)}")
    for name, site in drawn.items():
        _require_numbers("guide", name, site["value"], site["log_prob"])
        if name in wanted:
            _require_same("guide", name, site, wanted[name])
    random = sum(_size(site) for site in drawn.values() if not isinstance(_base(site["fn"]), Delta))
    needed = sum(_size(site) for name, site in wanted.items() if name in drawn)
    if random < needed:
        masses = ", ".join(sorted(name for name, site in drawn.items() if isinstance(_base(site["fn"]), Delta)))
        raise BadInput(f"guide: draws {random} of {needed} numbers; a point mass ({masses}) has no density")
    return trace


def latent(trace: Trace) -> dict[str, Any]:
    """Sites that are drawn."""
    return {name: site for name, site in _plain(trace).items() if not site["is_observed"]}


def is_finite(site: Any) -> bool:
    """Whether a site takes finitely many values, so that it can be summed out."""
    return bool(site["fn"].has_enumerate_support)


def subsampled(trace: Trace) -> str | None:
    """Name of a plate that takes a part of the data only."""
    for name, site in samples(trace).items():
        if site_is_subsample(site) and (site["fn"].subsample_size or site["fn"].size) < site["fn"].size:
            return name
    return None


class _Watch(Messenger):
    """Remembers which site is being run."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.inside = "", False

    def _pyro_sample(self, msg: Any) -> None:
        self.site, self.inside = msg["name"], True

    def _pyro_post_sample(self, msg: Any) -> None:
        self.inside = False

    def where(self) -> str:
        """Where an error came up, in words."""
        if not self.site:
            return "before its first site"
        return f"at site {self.site!r}" if self.inside else f"after site {self.site!r}"


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn whatever a run raises into an error that names the site."""
    watch = _Watch()
    try:
        with pyro.validation_enabled(True), watch:
            yield
    except BadInput:
        raise
    except Exception as error:
        said = " ".join(str(error).split("Trace Shapes")[0].split())[:300]
        raise BadInput(f"{what}: {watch.where()}: {type(error).__name__}: {said}") from error


def _plain(trace: Trace) -> dict[str, Any]:
    return {name: site for name, site in samples(trace).items() if not site_is_subsample(site)}


def _mean(scale: Any) -> float:
    return float(torch.as_tensor(scale, dtype=torch.float64).mean())


def _of_plates(trace: Trace, site: Any) -> float:
    """What the plates of a site scale it by."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.name in trace.nodes]
    return math.prod(trace.nodes[frame.name]["fn"].size / max(1, frame.size) for frame in frames)


def _require_numbers(what: str, name: str, value: Any, density: Tensor) -> None:
    if not torch.is_tensor(value):
        raise BadInput(f"{what}: site {name!r} has a value that is a {type(value).__name__}; a tensor is accepted")
    for tensor in (value, density):
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            raise BadInput(
                f"{what}: site {name!r} is {str(tensor.dtype).removeprefix('torch.')}; evidence is float64, because "
                "differences of large sums in single precision have been wrong by thousands of nats (use .double())"
            )
    if not torch.isfinite(value).all():
        raise BadInput(f"{what}: site {name!r} has NaN or infinite values; finite ones are accepted")
    if torch.isnan(density).any() or (density == math.inf).any():
        raise BadInput(f"{what}: site {name!r} has a log density of NaN or infinity")


def _require_same(what: str, name: str, site: Any, wanted: Any) -> None:
    """Raise unless a guide's site has the shape and the support of the model's."""
    shape, other = tuple(site["value"].shape), tuple(wanted["value"].shape)
    if shape != other:
        raise BadInput(f"{what}: site {name!r} has shape {shape}, {other} in the model")
    support, own = wanted["fn"].support, site["fn"].support
    unbounded = _real(own) and not _real(support) and not isinstance(_base(site["fn"]), Delta)
    if unbounded or not support.check(site["value"]).all():
        raise BadInput(f"{what}: site {name!r} is drawn from {own}, which reaches outside of {support} in the model")


def _real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _base(fn: Any) -> Any:
    """The distribution inside of its wrappers."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _improper(site: Any) -> bool:
    masked = [m for m in (site["mask"], getattr(site["fn"], "_mask", None)) if m is not None]
    return isinstance(_base(site["fn"]), ImproperUniform) or any(not torch.as_tensor(m).all() for m in masked)


def _size(site: Any) -> int:
    """How many free numbers a site has."""
    try:
        return int(biject_to(site["fn"].support).inv(site["value"]).numel())
    except NotImplementedError:
        return int(site["value"].numel())
