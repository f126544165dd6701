"""What an evidence is: a value in nats with its bound side and everything that qualifies it."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from pyro import poutine
from pyro.distributions.torch import Independent
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to

from pyro_invariance.traces import Part, free_dim, samples, score
from pyro_invariance.typing import BadInput

Bound = Literal["exact", "lower", "upper", "estimate"]

KHAT = 0.7  # above, importance weights have no usable mean [vehtari2024pareto]
LOOSE = 1.0  # nats that a bound may be off, move or scatter before it deserves a word
ENOUGH = 1000  # draws from which a k-hat means something; 10,000 miss fewer of the guides that are bad

FACTOR = "log Bayes factor"  # what a difference is called

# Side of a difference, by the sides of what is subtracted from what; other pairs cannot be told from each other.
_SIDES: dict[tuple[str, str], Bound] = {
    ("exact", "exact"): "exact",
    ("lower", "lower"): "estimate",
    ("upper", "upper"): "estimate",
    ("estimate", "estimate"): "estimate",
    ("lower", "exact"): "lower",
    ("exact", "upper"): "lower",
    ("lower", "upper"): "lower",
    ("upper", "exact"): "upper",
    ("exact", "lower"): "upper",
    ("upper", "lower"): "upper",
    ("estimate", "exact"): "estimate",
    ("exact", "estimate"): "estimate",
}


@dataclass(frozen=True)
class Evidence:
    """Log evidence of all the data under a model, and everything that qualifies it.

    `a - b` is a log Bayes factor.  It is refused where the sides of `a` and `b` leave it without meaning (a bound and
    an estimate) or where they are of different data.

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
        Importance-sampled evidence minus this lower bound, nats; itself too small where k-hat is large.
    drift : float or None
        Change over the last tenth of the optimisation, nats.
    restart_spread : float or None
        Largest difference among starts that met, nats.
    ess : float or None
        Effective number of independent draws, of importance weights or of annealed chains.
    draws : int
        How many draws there were.
    upper : float or None
        A value on the other side where there is one: of a sandwich, or a type-II maximum from a dense multi-start.
    upper_error : float
        Its standard error, nats.
    method : str
        The estimator.
    data : str
        Digest of the observed values: evidences of different data cannot be compared.
    seconds : float
        Wall time.
    """

    value: float
    std_error: float
    bound: Bound
    khat: float | None = None
    looseness: float | None = None
    drift: float | None = None
    restart_spread: float | None = None
    ess: float | None = None
    draws: int = 0
    upper: float | None = None
    upper_error: float = 0.0
    method: str = ""
    data: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.bound not in get_args(Bound) or not math.isfinite(self.value) or not self.std_error >= 0:
            raise BadInput(
                f"evidence: got {self.value} +- {self.std_error} ({self.bound}); finite nats and one of "
                f"{', '.join(get_args(Bound))} are accepted"
            )

    @property
    def lower_side(self) -> float | None:
        """What the evidence is at least, up to `std_error`."""
        return self.value if self.bound in ("exact", "lower") else None

    @property
    def upper_side(self) -> float | None:
        """What the evidence is at most, up to `upper_error`."""
        return self.value if self.bound in ("exact", "upper") else self.upper

    @property
    def width(self) -> float | None:
        """Distance of the two sides, nats; None where one of them is missing."""
        if self.lower_side is None or self.upper_side is None:
            return None
        return self.upper_side - self.lower_side

    @property
    def cautions(self) -> list[str]:
        """Reasons for which this number deserves no trust, in words; empty if there are none."""
        found = []
        if self.khat is not None and self.khat > KHAT and self.draws >= ENOUGH:
            found.append(f"k-hat {self.khat:.2f}: the guide misses a tail of the posterior, by how much is unknown")
        if self.looseness is not None and self.looseness > LOOSE:
            found.append(f"at least {self.looseness:.1f} nats loose")
        if self.std_error > LOOSE / 2:
            found.append(f"noisy (standard error {self.std_error:.1f} nats)")
        if self.drift is not None and self.drift > LOOSE:
            found.append(f"still moving by {self.drift:.1f} nats")
        if self.restart_spread is not None and self.restart_spread > LOOSE:
            found.append(f"starts differ by {self.restart_spread:.1f} nats")
        if self.upper is not None and self.value - self.upper > 3 * math.hypot(self.std_error, self.upper_error) + 1e-6:
            found.append(f"its two sides cross by {self.value - self.upper:.1f} nats")
        if self.ess is not None and self.ess < 5 and self.draws > 5:
            found.append(f"{self.ess:.1f} effective draws of {self.draws}")
        return found

    def __str__(self) -> str:
        side = {"exact": "", "lower": " (lower bound)", "upper": " (upper bound)", "estimate": " (estimate)"}[
            self.bound
        ]
        digits = 1 if self.std_error >= 0.1 else 2
        other = f", at most {self.upper:.{digits}f}" if self.upper is not None else ""
        said = f": {'; '.join(self.cautions)}" if self.cautions else ""
        what = FACTOR if self.method == FACTOR else "log evidence"
        return f"{what} {self.value:.{digits}f} +- {self.std_error:.2f} nats{side}{other}{said}"

    def __sub__(self, other: "Evidence") -> "Evidence":
        if not isinstance(other, Evidence):
            return NotImplemented
        side = _SIDES.get((self.bound, other.bound))
        if side is None:
            raise BadInput(f"evidence: got side {self.bound!r} minus side {other.bound!r}, which means nothing")
        if self.data and other.data and self.data != other.data:
            raise BadInput("evidence: these are of different data (or of different codings of them): no Bayes factor")
        error = math.hypot(self.std_error, other.std_error)
        return Evidence(self.value - other.value, error, side, method=FACTOR)

    def __lt__(self, other: "Evidence") -> bool:
        return (self - other).value < 0

    @property
    def attributes(self) -> dict[str, float | str]:
        """What applies, for the attributes of an `InferenceData`: `posterior.attrs.update(evidence.attributes)`."""
        found = {("log_evidence" if k == "value" else f"log_evidence_{k}"): v for k, v in vars(self).items()}
        found["log_evidence_cautions"] = "; ".join(self.cautions)
        return {k: v for k, v in found.items() if v is not None}

    def to_json(self) -> dict[str, Any]:
        """Everything in plain values, null where it does not apply, with `cautions`."""
        return {**vars(self), "cautions": self.cautions}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Evidence":
        """Read back what `to_json` gave."""
        return cls(**{k: v for k, v in content.items() if k != "cautions"})


@dataclass
class LogJoint:
    """Log joint density of a Pyro model as a function of one unconstrained vector.

    Sites are concatenated in order of execution, each through `biject_to(support)`, as Pyro's automatic guides do.

    Parameters
    ----------
    model : callable
        A Pyro model whose latent sites are continuous, or enumerated in parallel and then summed out.
    args : tuple
        Its arguments.

    Attributes
    ----------
    transforms, shapes : dict
        Of each continuous site, from unconstrained space, and there.
    summed : set of str
        Sites that are summed out.
    estimated : set of str
        Observed sites whose density is itself an estimate: their distribution has `log_probs`, see `uncertainty`.
    nesting : int
        Depth of the plates.
    """

    model: Callable
    args: tuple = ()
    transforms: dict = field(init=False)
    shapes: dict = field(init=False)
    summed: set[str] = field(init=False)
    estimated: set[str] = field(init=False)
    nesting: int = field(init=False)

    def __post_init__(self) -> None:
        trace = prune_subsample_sites(poutine.trace(self.model).get_trace(*self.args))
        require_no_parameters(name for name, site in trace.nodes.items() if site["type"] == "param")
        self.transforms, self.shapes = {}, {}
        self.summed, self.nesting = set(), -1 - free_dim(trace)
        self.estimated = {name for name in trace.observation_nodes if _estimates(trace.nodes[name]["fn"])}
        for name in trace.stochastic_nodes:
            site: Any = trace.nodes[name]
            if site["infer"].get("enumerate") == "parallel":
                self.summed.add(name)
                continue
            if site["fn"].has_enumerate_support:
                raise BadInput(
                    f"model: site {name!r} is discrete; have it summed out: infer={{'enumerate': 'parallel'}}"
                )
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
        prior, likelihood, _, _ = self.evaluate(z)
        return prior, likelihood

    @torch.no_grad()
    def uncertainty(self, z: Tensor) -> tuple[float, float]:
        r"""Standard error of the log likelihood, and what it is too low by on average, nats.

        Both are zero, but where the density of an observed site is itself an estimate :math:`\hat p`: its distribution
        has `log_probs(value)` `[R, N]`, :math:`\log \hat p_{rn}`, independent over `r`.  They are

        .. math:: \operatorname{sd}_r \sum_n \log \hat p_{rn}, \qquad
            \sum_n \Big(\log \tfrac1R \sum_r \hat p_{rn} - \tfrac1R \sum_r \log \hat p_{rn}\Big)

        of which the second is at most the whole of it, on average [burda2016importance].
        """
        if not self.estimated:
            return 0.0, 0.0
        sites, totals, loose = samples(self.evaluate(z)[2]), torch.zeros(()), 0.0
        for site in (sites[name] for name in self.estimated):
            logs = _estimates(site["fn"])(site["value"])  # type: ignore[misc]  # as one of those
            short = logs.logsumexp(0) - math.log(len(logs)) - logs.mean(0)
            logs, short = (scale_and_mask(values, site["scale"], site["mask"]) for values in (logs, short))
            totals, loose = totals + logs.flatten(1).sum(1), loose + float(short.sum())
        return float(totals.std()), loose

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor, poutine.Trace, list[Part]]:
        """Log prior density and log likelihood as in `terms`, and the run of the model that they come from."""
        values = self.unpack(z)
        trace, parts = score(poutine.condition(self.model, data=values), self.args, {}, self.summed, values)
        inside = {name for part in parts for name in part.names}
        prior, likelihood = torch.zeros(()), torch.zeros(())
        for name, site in samples(trace).items():
            if name in values:
                u = self.transforms[name].inv(values[name])
                prior = prior + self.transforms[name].log_abs_det_jacobian(u, values[name]).sum()
            if name in inside:
                continue
            if name in values:
                prior = prior + site["log_prob_sum"]
            elif not site["is_observed"]:
                raise BadInput(f"model: site {name!r} is there for some values only; fixed sites are accepted")
            else:
                likelihood = likelihood + site["log_prob_sum"]
        for part in parts:
            prior, likelihood = prior + part.log_prior, likelihood + part.log_likelihood
        return prior.to(z), likelihood.to(z), trace, parts


def _estimates(fn: Any) -> Callable[[Tensor], Tensor] | None:
    """What gives independent estimates of the log density of a site, if that is an estimate."""
    while isinstance(fn, ExpandedDistribution | Independent):
        fn = fn.base_dist
    found = getattr(fn, "log_probs", None)
    return found if callable(found) else None


def require_no_parameters(found: Iterable[str]) -> None:
    """Raise if a model has parameters: what has no prior has no evidence."""
    if names := ", ".join(found):
        raise BadInput(f"model: got parameters ({names}), which have no prior; sample or fix them")


def require_finite(value: float, what: str) -> float:
    """Return the value, or raise with its name: an evidence is never quietly NaN."""
    if not math.isfinite(value):
        raise FloatingPointError(f"{what} is {value}")
    return value
