"""What an evidence is: a value in nats with its bound side and everything that qualifies it."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.distributions import Normal, Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to

from pyro_invariance.typing import BadInput

Bound = Literal["exact", "lower", "upper", "estimate"]


@dataclass(frozen=True)
class Evidence:
    """Log evidence of all the data under a model.

    Attributes
    ----------
    value : float
        Nats, total over the data.
    std_error : float
        Monte Carlo standard error from independent draws, nats; 0 for exact values.
    bound : str
        `exact`, `lower`, `upper` (in expectation) or `estimate`.
    khat : float or None
        Pareto shape of the importance weights, a rough figure below some hundred draws; None where there are none.
    looseness : float or None
        Importance-sampled evidence minus this lower bound, nats.
    drift : float or None
        Change over the last tenth of the optimisation, nats.
    """

    value: float
    std_error: float
    bound: Bound
    khat: float | None = None
    looseness: float | None = None
    drift: float | None = None

    def __str__(self) -> str:
        side = {"exact": "", "lower": " (lower bound)", "upper": " (upper bound)", "estimate": " (estimate)"}[
            self.bound
        ]
        return f"log evidence {self.value:.1f} +- {self.std_error:.2f} nats{side}"


@dataclass
class LogJoint:
    """Log joint density of a Pyro model as a function of one unconstrained vector.

    Sites are concatenated in order of execution, each through `biject_to(support)`, as Pyro's automatic guides do.

    Parameters
    ----------
    model : callable
        A Pyro model whose latent sites are continuous.
    args : tuple
        Its arguments.
    """

    model: Callable
    args: tuple = ()
    transforms: dict = field(init=False)
    shapes: dict = field(init=False)

    def __post_init__(self) -> None:
        trace = prune_subsample_sites(poutine.trace(self.model).get_trace(*self.args))
        self.transforms, self.shapes = {}, {}
        for name in trace.stochastic_nodes:
            site: Any = trace.nodes[name]
            if site["fn"].has_enumerate_support:
                raise BadInput(f"model: site {name!r} is discrete; marginalise it first")
            self.transforms[name] = biject_to(site["fn"].support)
            self.shapes[name] = self.transforms[name].inv(site["value"]).shape

    @property
    def size(self) -> int:
        """Length of the unconstrained vector."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def slices(self) -> dict[str, slice]:
        """Where each site lies in the unconstrained vector."""
        ends = list(itertools.accumulate(shape.numel() for shape in self.shapes.values()))
        return {
            name: slice(end - shape.numel(), end) for (name, shape), end in zip(self.shapes.items(), ends, strict=True)
        }

    def pack(self, values: Mapping[str, float | Tensor]) -> Tensor:
        """Unconstrained vector `[D]` of given (constrained) values of all sites."""
        missing = self.transforms.keys() - values.keys()
        if missing:
            raise BadInput(f"values: no value for the sites {sorted(missing)}")
        like = torch.get_default_dtype()
        parts = [t.inv(torch.as_tensor(values[name], dtype=like)).reshape(-1) for name, t in self.transforms.items()]
        return torch.cat(parts) if parts else torch.zeros(0)

    def unpack(self, z: Tensor) -> dict[str, Tensor]:
        """Site values from an unconstrained vector `[D]`."""
        return {name: self.transforms[name](z[part].reshape(self.shapes[name])) for name, part in self.slices.items()}

    def terms(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior density of `z` (Jacobian included) and log likelihood, nats."""
        return self.evaluate(z)[:2]

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor, poutine.Trace]:
        """Log prior density and log likelihood as in `terms`, and the trace of the model that they come from."""
        values = self.unpack(z)
        trace = poutine.trace(poutine.condition(self.model, data=values)).get_trace(*self.args)
        trace = prune_subsample_sites(trace)
        trace.compute_log_prob()
        prior, likelihood = torch.zeros(()), torch.zeros(())
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or name in ("_INPUT", "_RETURN"):
                continue
            if name in values:
                u = self.transforms[name].inv(values[name])
                jacobian = self.transforms[name].log_abs_det_jacobian(u, values[name]).sum()
                prior = prior + site["log_prob_sum"] + jacobian
            else:
                likelihood = likelihood + site["log_prob_sum"]
        return prior, likelihood, trace


def is_data(site: Any) -> bool:
    """Whether a site is observed data, neither deterministic nor a bare factor."""
    return bool(
        site["type"] == "sample"
        and site["is_observed"]
        and not (site["infer"] or {}).get("_deterministic")
        and not isinstance(site["fn"], Unit)
    )


def observed(trace: poutine.Trace, latent: Collection[str] = ()) -> dict[str, Any]:
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


def require_finite(value: float, what: str) -> float:
    """Return the value, or raise with its name: an evidence is never quietly NaN."""
    if not math.isfinite(value):
        raise FloatingPointError(f"{what} is {value}")
    return value
