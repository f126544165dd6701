"""What a run of a Pyro model says: its data, the density of each datum, discrete sites summed out."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal, Normal, Unit
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_invariance.typing import BadInput

Trace = poutine.Trace


@dataclass(frozen=True)
class Part:
    """Discrete sites that are summed out together, and the sites that share the sum.

    Attributes
    ----------
    names, data : list of str
        The sites, and those of them that are data.
    pointwise : Tensor
        Log density of the data, one value for each cell of the plates, nats; zero without data.
    plates : list of str
        Names of its dimensions.
    log_prior : Tensor
        Log density of the other sites of the part, discrete ones summed out, all cells together.
    scale : float or Tensor
        What a cell counts for, where plates are subsampled.
    """

    names: list[str]
    data: list[str]
    pointwise: Tensor
    plates: list[str]
    log_prior: Tensor
    scale: Any

    @property
    def log_likelihood(self) -> Tensor:
        """Of all cells together."""
        return (self.pointwise * self.scale).sum()


def score(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any] | None = None,
    summed: Collection[str] = (),
    latent: Collection[str] = (),
) -> tuple[Trace, list[Part]]:
    """Run a model and compute all its log densities; `summed` sites are enumerated in parallel and summed out.

    The density of a site that belongs to no part is in the trace.  `latent` sites are no data, though conditioned on.

    Raises
    ------
    BadInput
        If a sum cannot be told from a batch dimension without a plate, or its sites differ in scale.
    """
    trace = prune_subsample_sites(poutine.trace(model).get_trace(*args, **(kwargs or {})))
    if not summed:
        trace.compute_log_prob()
        return trace, []
    for name, site in samples(trace).items():
        declared = {frame.dim for frame in site["cond_indep_stack"]}
        undeclared = [size for dim, size in enumerate(reversed(site["fn"].batch_shape), 1) if -dim not in declared]
        if any(size > 1 for size in undeclared):
            raise BadInput(
                f"model: site {name!r} has batch shape {tuple(site['fn'].batch_shape)} outside of plates; where sites "
                "are summed out, each dimension needs a plate or to_event"
            )
    enumerated = _Enumerate(first_available_dim=free_dim(trace))(enumerable(model, summed))
    trace = prune_subsample_sites(poutine.trace(enumerated).get_trace(*args, **(kwargs or {})))
    trace.compute_log_prob()
    return trace, _parts(trace, set(observed(trace, latent)))


class _Enumerate(EnumMessenger):
    """Pyro's handler, which looks at `value.data`, within `torch.vmap` too: it is shown a shape without data there."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if torch.is_tensor(value):
            msg["value"] = torch.empty(value.shape, device="meta")
        super()._pyro_post_sample(msg)
        msg["value"] = value


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


def _parts(trace: Trace, data: set[str]) -> list[Part]:
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
        scales = [nodes[name]["scale"] for name in names]
        if any(float(scale) != float(scales[0]) for scale in scales):
            raise BadInput(f"model: the sites {', '.join(names)} are summed out together and differ in scale")
        (joint,) = _summed(trace, names, dims)
        others = _summed(trace, [name for name in names if name not in data], dims)
        alike = [term for term in others if term._pyro_dims == joint._pyro_dims]  # type: ignore[attr-defined]
        if len(alike) == len(others):
            pointwise = joint - sum(alike)
        else:  # a prior of fewer cells: no cell of the joint has a share of its own
            pointwise = joint - sum(term.sum() for term in others) / joint.numel()
        shown = [plates[d] for d in joint._pyro_dims]  # type: ignore[attr-defined]
        prior = sum((term.sum() for term in others), start=joint.new_zeros(())) * scales[0]
        parts.append(Part(names, [n for n in names if n in data], pointwise, shown, prior, scales[0]))
    return parts


def _summed(trace: Trace, names: list[str], dims: set[str]) -> list[Tensor]:
    """Log of the sum, over some enumerated dimensions, of the joint density of some sites: its independent terms."""
    nodes = samples(trace)
    factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    for site in (nodes[name] for name in names):
        inside = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        masked = packed.scale_and_mask(site["packed"]["unscaled_log_prob"], mask=site["packed"]["mask"])
        factors.setdefault(inside, []).append(masked)
    return [term for terms in contract_tensor_tree(factors, dims, ring=_LogSum()).values() for term in terms]


class _LogSum(LogRing):
    """Pyro's sum of products in log space, by operations that `torch.vmap` knows: one dimension after the other."""

    def sumproduct(self, terms: list[Tensor], dims: Collection[str]) -> Tensor:
        """Add all terms and sum out the dimensions."""
        left = list(terms)
        for dim in dims:
            total = _total([term for term in left if dim in term._pyro_dims])  # type: ignore[attr-defined]
            names = total._pyro_dims  # type: ignore[attr-defined]
            summed = total.logsumexp(names.index(dim))
            summed._pyro_dims = names.replace(dim, "")  # type: ignore[attr-defined]
            rest = [term for term in left if dim not in term._pyro_dims]  # type: ignore[attr-defined]
            left = [*rest, summed]
        return _total(left)


def _total(terms: list[Tensor]) -> Tensor:
    aligned = packed.broadcast_all(*terms)
    total = sum(aligned[1:], start=aligned[0].clone())
    total._pyro_dims = aligned[0]._pyro_dims
    return total


def is_data(site: Any) -> bool:
    """Whether a site is observed data, neither deterministic nor a bare factor."""
    return bool(
        site["type"] == "sample"
        and site["is_observed"]
        and not (site["infer"] or {}).get("_deterministic")
        and not isinstance(site["fn"], Unit)
    )


class Free(UnconditionMessenger):
    """Draws the data as well, and leaves alone what follows from the latent sites."""

    def _pyro_sample(self, msg: Any) -> None:
        if is_data(msg):
            super()._pyro_sample(msg)


def observed(trace: Trace, latent: Collection[str] = ()) -> dict[str, Any]:
    """Sites of a trace that are data, but for latent ones that are conditioned on."""
    return {name: site for name, site in trace.nodes.items() if name not in latent and is_data(site)}


def predictive(site: Any) -> Any:
    """Distribution of each datum of an observed site: its own or, where data depend on each other, given all others.

    Such a distribution offers `leave_one_out(value) -> mean [N, outputs], variance [N]`, or covariance
    `[N, outputs, outputs]` where the outputs of a datum depend on each other.
    """
    if not hasattr(site["fn"], "leave_one_out"):
        return site["fn"]
    mean, variance = site["fn"].leave_one_out(site["value"])
    if variance.dim() > mean.dim():
        return MultivariateNormal(mean, variance)
    return Normal(mean, variance.sqrt()[..., None]).to_event(1)


def pointwise(site: Any) -> Tensor:
    """Log density of each datum of an observed site, in the batch shape of its `predictive`, nats."""
    return scale_and_mask(predictive(site).log_prob(site["value"]), mask=site["mask"])
