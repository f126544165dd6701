"""What a run of a Pyro model says: its data, the density of each datum, discrete sites summed out."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.distributions import Normal, Unit
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

Trace = poutine.Trace


@dataclass(frozen=True)
class Part:
    """Discrete sites that are summed out together, and the sites that depend on them.

    Attributes
    ----------
    names : list of str
        The sites.
    log_density : Tensor
        Log of the sum of their joint density, one value for each cell of the plates, nats.
    plates : list of str
        Names of its dimensions.
    scale : float or Tensor
        What a cell counts for, where plates are subsampled.
    """

    names: list[str]
    log_density: Tensor
    plates: list[str]
    scale: Any


def score(
    model: Callable, args: tuple, kwargs: Mapping[str, Any] | None = None, summed: Collection[str] = ()
) -> tuple[Trace, list[Part]]:
    """Run a model and compute all its log densities; `summed` sites are enumerated in parallel and summed out.

    The density of a site that belongs to no part is in the trace.
    """
    trace = prune_subsample_sites(poutine.trace(model).get_trace(*args, **(kwargs or {})))
    if summed:
        enumerated = poutine.enum(enumerable(model, summed), first_available_dim=free_dim(trace))
        trace = prune_subsample_sites(poutine.trace(enumerated).get_trace(*args, **(kwargs or {})))
    trace.compute_log_prob()
    return trace, _parts(trace) if summed else []


def enumerable(model: Callable, summed: Collection[str]) -> Callable:
    """The model with these sites marked for parallel enumeration."""
    return poutine.infer_config(model, lambda site: {"enumerate": "parallel"} if site["name"] in summed else {})


def free_dim(trace: Trace) -> int:
    """First dimension, counted from the right, that no plate uses."""
    frames = [f for site in samples(trace).values() for f in site["cond_indep_stack"] if f.vectorized]
    return min([f.dim for f in frames], default=0) - 1


def samples(trace: Trace) -> dict[str, Any]:
    """All sample sites."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def _parts(trace: Trace) -> list[Part]:
    trace.pack_tensors()
    plates, nodes = {symbol: name for name, symbol in trace.plate_to_symbol.items()}, samples(trace)
    groups: list[tuple[set[str], list[str]]] = []  # enumerated dimensions, and the sites that have any of them
    for name, site in nodes.items():
        dims = set(site["packed"]["log_prob"]._pyro_dims) - set(plates)
        if dims:
            together = [group for group in groups if group[0] & dims]
            groups = [group for group in groups if not group[0] & dims]
            groups.append((dims.union(*(d for d, _ in together)), [*(n for _, ns in together for n in ns), name]))
    parts = []
    for dims, names in groups:
        factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
        for site in (nodes[name] for name in names):
            inside = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
            masked = packed.scale_and_mask(site["packed"]["unscaled_log_prob"], mask=site["packed"]["mask"])
            factors.setdefault(inside, []).append(masked)
        ((_, (term,)),) = contract_tensor_tree(factors, dims).items()
        parts.append(Part(names, term, [plates[d] for d in term._pyro_dims], nodes[names[0]]["scale"]))
    return parts


def is_data(site: Any) -> bool:
    """Whether a site is observed data, neither deterministic nor a bare factor."""
    return bool(
        site["type"] == "sample"
        and site["is_observed"]
        and not (site["infer"] or {}).get("_deterministic")
        and not isinstance(site["fn"], Unit)
    )


def observed(trace: Trace, latent: Collection[str] = ()) -> dict[str, Any]:
    """Sites of a trace that are data, but for latent ones that are conditioned on."""
    return {name: site for name, site in trace.nodes.items() if name not in latent and is_data(site)}


def pointwise(site: Any) -> tuple[Tensor, Tensor]:
    """Log density of each datum of an observed site, nats, and a replicate of all of them.

    A distribution whose data depend on each other may offer `leave_one_out(value) -> mean, variance`; each datum is
    then predicted from the others.
    """
    fn, value = site["fn"], site["value"]
    if not hasattr(fn, "leave_one_out"):
        return scale_and_mask(fn.log_prob(value), mask=site["mask"]), fn.sample()
    mean, variance = fn.leave_one_out(value)
    predictive = Normal(mean, variance.sqrt()[..., None])
    return predictive.log_prob(value).sum(-1), predictive.sample()
