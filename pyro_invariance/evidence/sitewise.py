"""What can be said of one site of a run: is it finite, proper, whole, in float64; where does its support end?"""

import math
from typing import Any

import pyro
import torch
from pyro.distributions import Delta, ImproperUniform, SineBivariateVonMises, VonMises
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_invariance.evidence.watched import in_words, require_double, require_value
from pyro_invariance.traces import Trace, samples
from pyro_invariance.typing import BadInput

HAIR = 1e-6  # that guides stay away from the ends of an interval


def plain(trace: Trace) -> dict[str, Any]:
    """Sample sites, without those that plates leave behind."""
    return {name: site for name, site in samples(trace).items() if not site_is_subsample(site)}


def latent(trace: Trace) -> dict[str, Any]:
    """Sites that are drawn."""
    return {name: site for name, site in plain(trace).items() if not site["is_observed"]}


def is_finite(site: Any) -> bool:
    """Whether a site takes finitely many values, so that it can be summed out."""
    return bool(site["fn"].has_enumerate_support)


def follows(site: Any) -> bool:
    """Whether a site records what follows from others."""
    return bool((site["infer"] or {}).get("_deterministic"))


def is_point_mass(site: Any) -> bool:
    """Whether the distribution is a Delta, whatever it is wrapped in."""
    return isinstance(_wrapped(site["fn"])[-1], Delta)


def is_periodic(site: Any) -> bool:
    """Whether a density on the circle says that its support is the line."""
    return any(isinstance(fn, VonMises | SineBivariateVonMises) for fn in _wrapped(site["fn"]))


def is_improper(site: Any) -> bool:
    """Whether the density does not integrate to one: a mask leaves a part of it out."""
    masks = [site["mask"], *(getattr(fn, "_mask", None) for fn in _wrapped(site["fn"]))]
    masked = any(mask is not None and not torch.as_tensor(mask).all() for mask in masks)
    return masked or isinstance(_wrapped(site["fn"])[-1], ImproperUniform)


def subsampled(trace: Trace) -> str | None:
    """Name of a plate that takes a part of the data only."""
    frames = [frame for site in plain(trace).values() for frame in site["cond_indep_stack"]]
    return next((frame.name for frame in frames if _weight(frame) != 1), None)


def free_numbers(site: Any) -> int:
    """How many free numbers a site has: of a simplex, one fewer than it shows."""
    try:
        return int(biject_to(site["fn"].support).inv(site["value"]).numel())
    except NotImplementedError:
        return int(site["value"].numel())


def require_unscaled(what: str, name: str, site: Any) -> None:
    """Raise where something other than its plates scales a site."""
    of_plates = math.prod(_weight(frame) for frame in site["cond_indep_stack"])
    given = torch.as_tensor(site["scale"], dtype=torch.float64)
    if not torch.allclose(given, torch.full_like(given, of_plates), rtol=1e-9):
        raise BadInput(
            f"{what}: site {name!r} is scaled by {float(given.mean()):g}, its plates by {of_plates:g}; a tempered "
            "density has no evidence"
        )


def densities(what: str, trace: Trace) -> dict[str, Tensor]:
    """Log densities of all sites, masked; raise where a value or density is no finite float64 number."""
    found = {}
    for name, site in plain(trace).items():
        value = site["value"]
        if follows(site):
            continue
        require_value(what, name, value)
        try:
            with pyro.validation_enabled(True):
                density = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
        except Exception as error:
            raise BadInput(f"{what}: site {name!r}: {in_words(error)}") from error
        found[name] = scale_and_mask(density, mask=site["mask"])
        require_double(what, name, density)
        if torch.isnan(found[name]).any() or (found[name] == math.inf).any():
            raise BadInput(f"{what}: site {name!r} has a log density of NaN or infinity; less is accepted")
    return found


def support(what: str, name: str, site: Any) -> Any:
    """Support of one event, `independent` taken off."""
    try:
        found = site["fn"].support
    except NotImplementedError:
        raise BadInput(f"{what}: site {name!r}: {type(site['fn']).__name__} has no support; use one that has") from None
    while isinstance(found, constraints.independent):
        found = found.base_constraint
    return found


def reached(site: Any) -> Any:
    """Support of one event as its values have it: torch says that an affine map reaches all of the line."""
    declared = support("model", site["name"], site)
    fn = next((fn for fn in _wrapped(site["fn"]) if hasattr(fn, "transforms")), site["fn"])
    steps = [getattr(step, "base_transform", step) for step in getattr(fn, "transforms", ())]
    if declared is not constraints.real or not steps or any(step.domain.event_dim for step in steps):
        return declared
    low_high = ends(support("model", site["name"], {"fn": fn.base_dist}))
    for step in steps:
        low_high = tuple(step(end) for end in low_high)
    low, high = torch.minimum(*low_high), torch.maximum(*low_high)
    return declared if bool((low.isinf() & high.isinf()).all()) else constraints.interval(low, high)


def ends(constraint: Any) -> tuple[Tensor, Tensor]:
    """Lower and upper end of a support on the line, infinite where it has none."""
    if constraint is constraints.boolean:
        return torch.tensor(0.0), torch.tensor(1.0)
    lower, upper = getattr(constraint, "lower_bound", -math.inf), getattr(constraint, "upper_bound", math.inf)
    return torch.as_tensor(lower).detach(), torch.as_tensor(upper).detach()


def reaches_outside(own: Any, wanted: Any) -> bool:
    """Whether a support has values that another one lacks; different kinds that have no ends are told apart only."""
    if own.is_discrete != wanted.is_discrete:
        return True
    if wanted is constraints.real:
        return False
    (low, high), (wanted_low, wanted_high) = ends(own), ends(wanted)
    if all(bool(torch.isinf(end).all()) for end in (wanted_low, wanted_high)):
        return type(own) is not type(wanted)
    return bool((low < wanted_low).any() or (high > wanted_high).any())


def leaves_out(own: Any, wanted: Any) -> bool:
    """Whether a support lacks more than a hair of an interval, or of the line."""
    if wanted.is_discrete:
        return False
    (low, high), (wanted_low, wanted_high) = ends(own), ends(wanted)
    return bool((low > wanted_low + HAIR).any() or (high < wanted_high - HAIR).any())


def _wrapped(fn: Any) -> list[Any]:
    """A distribution and what it is wrapped around, the innermost last."""
    found = [fn]
    while hasattr(found[-1], "base_dist"):
        found.append(found[-1].base_dist)
    return found


def _weight(frame: Any) -> float:
    """What a plate scales its sites by: 1 where it takes all of them, or has no size."""
    return 1.0 if frame.full_size in (None, -1) else frame.full_size / max(1, frame.size)
