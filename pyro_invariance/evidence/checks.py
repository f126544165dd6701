"""What is wrong with a Pyro model or guide, said with the name of the site, before anything is computed from it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import constraints

from pyro_invariance.evidence.base import require_no_parameters
from pyro_invariance.evidence.sitewise import (
    densities,
    ends,
    follows,
    free_numbers,
    is_finite,
    is_improper,
    is_periodic,
    is_point_mass,
    latent,
    leaves_out,
    plain,
    reached,
    reaches_outside,
    require_unscaled,
    support,
)
from pyro_invariance.evidence.watched import Fixed, run
from pyro_invariance.traces import Trace, is_data, samples
from pyro_invariance.typing import BadInput

RUNS = 5  # of a model, to see what changes from run to run


def checked_model(model: Callable, args: tuple) -> Trace:
    """Run a model and return the trace, or raise `BadInput` with what is wrong with it.

    Refused are: parameters, sites scaled by other than their plates, single precision, values or densities that are
    NaN, data that would be broadcast, improper priors, and models without data.  Then whatever changes from run to
    run: sites, their shapes and supports, densities of the same values.
    """
    if isinstance(model, torch.nn.Module):
        require_no_parameters(name for name, value in model.named_parameters() if value.requires_grad)
    with torch.enable_grad():  # a density that has a gradient depends on parameters
        trace, *others = (run("model", model, args, seed) for seed in range(RUNS))
        require_no_parameters(name for name, site in trace.nodes.items() if _is_learned(site))
        for other in others:
            _require_same_sites(plain(trace), plain(other))
        found = densities("model", trace)
        for name, site in plain(trace).items():
            if name in found and found[name].requires_grad:
                raise BadInput(
                    f"model: site {name!r} depends on tensors that require a gradient; parameters have no prior: "
                    "sample them, or fix them by .detach()"
                )
            require_unscaled("model", name, site)
            if is_data(site):
                _require_each_once(name, site)
            elif not site["is_observed"]:
                _require_prior(name, site, plain(other)[name])
        if not any(is_data(site) for site in samples(trace).values()):
            raise BadInput("model: no site observes data (obs=...), so that there is no evidence to compute")
        again = run("model", Fixed(other)(model), args, seed=RUNS)
        _require_same_densities(densities("model", other), densities("model", again))
    return trace


def checked_guide(guide: Callable, args: tuple, model: Trace) -> Trace:
    """Run a guide and return the trace, or raise `BadInput` with what is wrong with it.

    Refused are: guides that were never set up, sites that the model lacks, continuous ones that the guide lacks,
    other shapes, wider supports, single precision, values or densities that are NaN, scales, masks, factors, point
    masses, and random numbers that the model has no use for.
    """
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise BadInput("guide: it was never run; train it first, or give none")
    with torch.no_grad():
        trace, other = run("guide", guide, args, seed=0), run("guide", guide, args, seed=1)
        for each in (trace, other):
            densities("guide", each)
    wanted, drawn = latent(model), latent(trace)
    auxiliary = {name for name, site in drawn.items() if (site["infer"] or {}).get("is_auxiliary")} - wanted.keys()
    if stray := sorted(drawn.keys() - wanted.keys() - auxiliary):
        raise BadInput(f"guide: site {stray[0]!r} is no latent site of the model, which has {sorted(wanted)}")
    if missing := sorted(name for name in wanted.keys() - drawn.keys() if not is_finite(wanted[name])):
        raise BadInput(f"guide: lacks the model's site {missing[0]!r}; it has {sorted(drawn.keys() - auxiliary)}")
    for name, site in plain(trace).items():
        require_unscaled("guide", name, site)
        if site["is_observed"] and not follows(site) and name not in model:  # a GuideMessenger runs the model
            raise BadInput(f"guide: site {name!r} is observed, or a factor; a guide is accepted that only draws")
        if name in drawn and is_improper(site):
            raise BadInput(f"guide: site {name!r} is masked or improper; a density that integrates to one is accepted")
        if name in wanted:
            _require_fit(name, site, wanted[name], plain(other)[name]["value"])
    _require_a_density(drawn, wanted, latent(other))
    return trace


def _is_learned(site: Any) -> bool:
    """Whether a site is a parameter that is not frozen."""
    return bool(site["type"] == "param" and site["value"].requires_grad)


def _require_same_sites(sites: dict[str, Any], others: dict[str, Any]) -> None:
    """Raise unless two runs have the same sites, of the same shapes."""
    if odd := sorted(sites.keys() ^ others.keys()):
        raise BadInput(f"model: site {odd[0]!r} is there in some runs only; accepted are models with fixed sites")
    for name, site in sites.items():
        shapes = [getattr(each["value"], "shape", None) for each in (site, others[name])]
        if shapes[0] != shapes[1]:
            raise BadInput(f"model: site {name!r} has shape {shapes[0]}, then {shapes[1]}; a fixed one is accepted")


def _require_same_densities(once: dict[str, Tensor], again: dict[str, Tensor]) -> None:
    """Raise unless the same values of all sites have the same density in two runs."""
    for name in once | again:
        values = [float(found[name].sum()) if name in found else math.nan for found in (once, again)]
        if not math.isclose(*values, rel_tol=1e-8, abs_tol=1e-8):
            raise BadInput(
                f"model: site {name!r} has log density {values[0]:.6g}, then {values[1]:.6g} for the same values of "
                "all sites; does the model draw random numbers outside of its sites, or keep a state?"
            )


def _require_each_once(name: str, site: Any) -> None:
    """Raise where data would be broadcast against their distribution."""
    shape, own = torch.broadcast_shapes(site["fn"].shape(), site["value"].shape), site["value"].shape
    if shape != own or not own.numel():
        raise BadInput(
            f"model: site {name!r} has data of shape {tuple(own)} and a distribution of shape "
            f"{tuple(site['fn'].shape())}; accepted are data of the shape of their distribution: broadcast to "
            f"{tuple(shape)}, each would count more than once"
        )


def _require_prior(name: str, site: Any, other: Any) -> None:
    """Raise unless a latent site has a proper prior on a support that is the same in another run."""
    if is_improper(site):
        raise BadInput(f"model: site {name!r} has an improper prior; evidence needs one that integrates to one")
    if is_point_mass(site):
        raise BadInput(f"model: site {name!r} has a point mass for its prior; use pyro.deterministic")
    if is_periodic(site):
        raise BadInput(
            f"model: site {name!r} has a periodic prior, which does not integrate to one over the line that it says to "
            "be its support; draw from densities.SoftUniform or from an interval of one period"
        )
    infer = site["infer"] or {}
    if infer.get("num_samples") or (infer.get("enumerate") and not is_finite(site)):
        raise BadInput(f"model: site {name!r} is marked for enumeration, which takes all values of a finite support")
    if support("model", name, site) is constraints.real and (own := reached(site)) is not constraints.real:
        raise BadInput(
            f"model: site {name!r} has values in {own} only, but a distribution that says all of the line; draw it "
            "without the shift, and shift it"
        )
    both = zip(*(ends(support("model", name, each)) for each in (site, other)), strict=True)
    if not all(torch.equal(here, there) for here, there in both):
        raise BadInput(
            f"model: site {name!r} has a support that changes from run to run; draw it from a fixed interval, and "
            "rescale it"
        )


def _require_fit(name: str, site: Any, wanted: Any, other: Tensor) -> None:
    """Raise unless a guide's site has the shape and the support of the model's."""
    shape, accepted = tuple(site["value"].shape), tuple(wanted["value"].shape)
    if shape != accepted:
        raise BadInput(f"guide: site {name!r} has shape {shape}, {accepted} in the model")
    own, whole = reached(site), support("model", name, wanted)
    inside = all(bool(wanted["fn"].support.check(value).all()) for value in (site["value"], other))
    if not inside or (not is_point_mass(site) and reaches_outside(own, whole)):
        raise BadInput(f"guide: site {name!r} is drawn from {own}, which reaches outside of {whole} in the model")
    if not is_point_mass(site) and leaves_out(own, whole):
        raise BadInput(f"guide: site {name!r} is drawn from {own}, which leaves out a part of {whole} in the model")


def _require_a_density(drawn: dict[str, Any], wanted: dict[str, Any], others: dict[str, Any]) -> None:
    """Raise where a guide draws fewer or more random numbers than the model's sites have: it is no density then."""
    masses = sorted(name for name, site in drawn.items() if is_point_mass(site))
    fixed = [name for name in masses if torch.equal(drawn[name]["value"], others[name]["value"])]
    random = sum(free_numbers(site) for name, site in drawn.items() if name not in masses)
    needed = sum(free_numbers(site) for name, site in wanted.items() if name in drawn)
    if random < needed or fixed:
        raise BadInput(
            f"guide: site {(fixed or masses)[0]!r} is a point mass, which has no density; the guide draws {random} of "
            f"{needed} numbers"
        )
    numbers = torch.cat([site["value"].double().flatten() for name, site in drawn.items() if name not in masses])
    for name in masses:
        fn, value = drawn[name]["fn"], drawn[name]["value"]
        if not torch.isin(value.double(), numbers).all() and not fn.log_prob(value).any():
            raise BadInput(
                f"guide: site {name!r} is a function of what was drawn; accepted with the Jacobian, "
                "Delta(value, log_density=...)"
            )
    if random > needed:
        extra = ", ".join(sorted(drawn.keys() - wanted.keys()))
        raise BadInput(f"guide: site {extra!r} is of no use to the model; {random} numbers are drawn, {needed} needed")
