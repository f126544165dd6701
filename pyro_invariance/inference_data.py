"""What a posterior looks like to ArviZ: any Pyro model and guide, with its plates as named dimensions.

The only place that knows ArviZ's data structures.
"""

import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import arviz as az
import numpy as np
import pyro
import torch
import xarray as xr
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import infer_discrete
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor
from tqdm import tqdm

from pyro_invariance.traces import Free, Trace, enumerable, free_dim, observed, pointwise, predictive, samples, score
from pyro_invariance.typing import BadInput

Named = tuple[list[str], np.ndarray]  # names of the dimensions behind chain and draw, values


def dataset(values: Mapping[str, Named], coords: Mapping[str, Any], attributes: Mapping[str, Any]) -> xr.Dataset:
    """Data set of named arrays; all dimensions without coordinates are counted from 0."""
    made = xr.Dataset(dict(values), attrs=dict(attributes))
    return made.assign_coords({dim: coords.get(str(dim), np.arange(size)) for dim, size in made.sizes.items()})


@torch.no_grad()
def to_arviz(
    model: Callable, guide: Callable | list[Callable], *args: Any, draws: int = 1000, seed: int = 0, **kwargs: Any
) -> az.InferenceData:
    """Everything that a Pyro model and a guide fitted by SVI say, as `InferenceData`.

    Groups: posterior and prior (latent and deterministic sites), posterior and prior predictive and observed data,
    pointwise `log_likelihood`, `log_prior` of each site, `constant_data` (tensors among the arguments) and
    `sample_stats`: `lp` = log p(x, z), `log_q`, `log_weight` in nats.  Plates become named dimensions, the indices of a
    minibatch their coordinates; other dimensions are called `SITE_dim_0`, `SITE_dim_1`, ...

    Discrete sites that the guide leaves to enumeration are summed out of `lp` and `log_likelihood` (one value for
    observed sites that share one) and drawn from their conditional posterior.  A subsampled plate keeps one
    minibatch for all draws.  Where data depend on each other and their distribution offers `leave_one_out`, the
    density of each is that given all the others.

    Parameters
    ----------
    model, guide : callable
        As given to an ELBO.  A list of guides, fitted from independent restarts, becomes the chains.
    *args, **kwargs
        What the model is called with, the data among them.
    draws : int
        Independent draws from each guide, and from the prior.
    seed : int
        Of the draws; the caller's random numbers go on as if nothing had been drawn.

    Raises
    ------
    BadInput
        If the model has no latent site, or there is nothing to draw.
    """
    guides = guide if isinstance(guide, list) else [guide]
    if draws < 1 or not guides:
        raise BadInput(f"draws, guide: got {draws} draws of {len(guides)} guides; 1 or more of each")
    with poutine.seed(rng_seed=seed):
        first = poutine.trace(model).get_trace(*args, **kwargs)
        minibatch = Trace()
        for name, site in first.nodes.items():
            if site["type"] == "sample" and site_is_subsample(site):
                minibatch.add_node(name, **site)
        reader = _Reader(poutine.replay(model, trace=minibatch), args, kwargs)
        posterior = [reader.posterior(poutine.replay(g, trace=minibatch), draws) for g in guides]
        prior = reader.prior(draws)
    if not posterior[0]["posterior"]:
        raise BadInput("model: got one without a latent site; there is no posterior of it")
    groups: dict[str, dict[str, Named]] = {}
    for chains in (posterior, [prior]):
        for group in chains[0]:
            groups[group] = {
                name: (["chain", "draw", *dims], np.stack([np.stack([d[1] for d in c[group][name]]) for c in chains]))
                for name, ((dims, _), *_) in chains[0][group].items()
            }
    groups["observed_data"] = {n: reader.read(n, site, site["value"]) for n, site in observed(first).items()}
    groups["constant_data"] = _constants(model, args, kwargs, groups["observed_data"])
    nodes: dict[str, Any] = dict(minibatch.nodes)
    coords = {name: site["value"].cpu().numpy() for name, site in nodes.items()}
    attributes = {"inference_library": "pyro", "inference_library_version": pyro.__version__, "seed": seed}
    made: dict[str, Any] = {g: dataset(values, coords, attributes) for g, values in groups.items() if values}
    return az.InferenceData(attrs=attributes, **made)


class _Reader:
    """Draws of a model as named arrays."""

    def __init__(self, model: Callable, args: tuple, kwargs: dict) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs

    def trace(self, fn: Callable) -> Trace:
        """One run."""
        return prune_subsample_sites(poutine.trace(fn).get_trace(*self.args, **self.kwargs))

    def read(self, name: str, site: Any, value: Tensor, event_dim: int | None = None) -> Named:
        """Value of a site, or its density if `event_dim` is 0, without padding for the plates that it is not in."""
        event = site["fn"].event_dim if event_dim is None else event_dim
        plates = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
        batch = value.shape[: value.dim() - event]
        if not (site["infer"] or {}).get("_deterministic"):
            batch = torch.broadcast_shapes(site["fn"].batch_shape, batch)
            value = value.expand(batch + value.shape[value.dim() - event :])
        elif event == value.dim() and all(
            value.dim() >= -dim and value.shape[dim] in (1, frame.size) for dim, frame in plates.items()
        ):  # unless told otherwise, Pyro takes all axes of these for events
            batch = value.shape if plates else batch
        dims, shape = [], []
        for axis, size in enumerate(value.shape):
            plate = plates.get(axis - len(batch)) if axis < len(batch) else None
            if plate is not None:
                dims.append(plate.name)
            elif axis >= len(batch) or size > 1:
                dims.append(f"{name}_dim_{sum(d.startswith(f'{name}_dim_') for d in dims)}")
            else:
                continue
            shape.append(size)
        return dims, value.reshape(shape).detach().cpu().numpy()

    def latent(self, trace: Trace, deterministic: bool = False) -> dict[str, Any]:
        """Sites that were drawn; with `deterministic`, also those that follow from them."""
        return {
            name: site
            for name, site in trace.nodes.items()
            if site["type"] == "sample"
            and (not site["is_observed"] or (deterministic and (site["infer"] or {}).get("_deterministic")))
        }

    def posterior(self, guide: Callable, draws: int) -> dict[str, dict[str, list[Named]]]:
        """Draws of the guide, and what the model says of each."""
        groups: dict[str, Any] = {
            g: defaultdict(list)
            for g in ("posterior", "posterior_predictive", "log_likelihood", "log_prior", "sample_stats")
        }
        for _ in _progress(draws, "posterior"):
            guided = self.trace(guide)
            plain = self.trace(poutine.replay(self.model, trace=guided))
            summed = {n for n, s in self.latent(plain).items() if n not in guided and s["fn"].has_enumerate_support}
            if summed:
                log_p, density, plain = self.enumerated(plain, guided, summed)
            else:
                log_p = float(plain.log_prob_sum())
                density = {n: self.read(n, site, pointwise(site), 0) for n, site in observed(plain).items()}
            plain.compute_log_prob()
            drawn = self.latent(plain)
            log_q = float(guided.log_prob_sum())  # what the guide leaves out, Pyro draws from the prior
            log_q += sum(float(s["log_prob_sum"]) for n, s in drawn.items() if n not in guided and n not in summed)
            replicated = self.trace(
                poutine.condition(Free()(self.model), data={n: s["value"] for n, s in drawn.items()})
            )
            for name, site in self.latent(plain, deterministic=True).items():
                groups["posterior"][name].append(self.read(name, site, site["value"]))
            for name, site in drawn.items():
                counted = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
                groups["log_prior"][name].append(self.read(name, site, counted, 0))
            for name, site in observed(plain).items():
                left_out = hasattr(site["fn"], "leave_one_out")
                new: Any = predictive(site).sample() if left_out else replicated.nodes[name]["value"]
                groups["posterior_predictive"][name].append(self.read(name, site, new))
            for name, named in density.items():
                groups["log_likelihood"][name].append(named)
            for name, value in (("lp", log_p), ("log_q", log_q), ("log_weight", log_p - log_q)):
                groups["sample_stats"][name].append(([], np.array(value)))
        return groups

    def enumerated(self, plain: Trace, guided: Trace, summed: set[str]) -> tuple[float, dict[str, Named], Trace]:
        """Log density and pointwise likelihood with some discrete sites summed out, and a trace with them drawn."""
        held = {n: s["value"] for n, s in self.latent(plain).items() if n not in summed}
        model = poutine.condition(self.model, data=held)
        trace, parts = score(model, self.args, self.kwargs, summed, held)
        inside = {name for part in parts for name in part.names}
        log_p, density, data = 0.0, {}, observed(trace, held)
        for name, site in samples(trace).items():
            if name not in inside:
                log_p += float(site["log_prob_sum"])
                if name in data:
                    density[name] = self.read(name, site, pointwise(site), 0)
        for part in parts:
            log_p += float(part.log_prior + part.log_likelihood)
            if part.data:
                density["+".join(part.data)] = part.plates, part.pointwise.cpu().numpy()
        marked = enumerable(model, summed)
        chosen = self.trace(infer_discrete(marked, first_available_dim=free_dim(plain), temperature=1))
        both = guided.copy()
        for name in summed | (held.keys() - set(guided.nodes)):
            both.add_node(name, **(chosen if name in summed else plain).nodes[name])
        return log_p, density, self.trace(poutine.replay(self.model, trace=both))

    def prior(self, draws: int) -> dict[str, dict[str, list[Named]]]:
        """Draws of all sites from the model alone."""
        groups: dict[str, Any] = {"prior": defaultdict(list), "prior_predictive": defaultdict(list)}
        data = observed(self.trace(self.model))
        for _ in _progress(draws, "prior"):
            for name, site in self.latent(self.trace(Free()(self.model)), deterministic=True).items():
                group = "prior_predictive" if name in data else "prior"
                groups[group][name].append(self.read(name, site, site["value"]))
        return groups


def _progress(draws: int, what: str) -> tqdm:
    return tqdm(range(draws), desc=what, disable=not sys.stderr.isatty())


def _constants(model: Any, args: tuple, kwargs: dict, data: Mapping[str, Named]) -> dict[str, Named]:
    """Tensors among the arguments that are not the observed data themselves."""
    signature = inspect.signature(model.forward if isinstance(model, torch.nn.Module) else model)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:  # wrapped by a handler that hides the names
        return {}
    tensors = {name: value.detach().cpu().numpy() for name, value in given.items() if torch.is_tensor(value)}
    return {
        name: ([f"{name}_dim_{axis}" for axis in range(value.ndim)], value)
        for name, value in tensors.items()
        if not any(np.array_equal(value, other) for _, other in data.values())
    }
