"""What an evidence is of: a Pyro model, its arguments and perhaps a guide, looked over before anything is computed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.checks import checked_guide, checked_model
from pyro_invariance.evidence.sitewise import is_finite, latent, subsampled
from pyro_invariance.evidence.watched import named, run
from pyro_invariance.numerics import float64
from pyro_invariance.traces import Free, Trace, enumerable, observed, samples
from pyro_invariance.typing import BadInput, checked_seed


@dataclass(frozen=True)
class Problem:
    """A Pyro model, the data that it is given and, if there is one, a guide.

    Finite discrete sites of the model are summed out, whether marked for enumeration or not, unless the guide draws
    them.  Everything wrong with the model or the guide raises `BadInput`, with the name of the site, when an estimator
    is called.

    Parameters
    ----------
    model : callable
        A Pyro model with proper priors, observed data (`obs=`) and no parameters to be learned.  It may offer a closed
        form, `model.log_evidence(*args)`.
    args : tuple
        Its arguments, float64.
    guide : callable, optional
        A trained Pyro guide.  An estimator that needs one and gets none fits its own.
    """

    model: Callable
    args: tuple = ()
    guide: Callable | None = None

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise BadInput(f"model: got {type(self.model).__name__}; a Pyro model, that is a callable, is accepted")
        if not isinstance(self.args, tuple):
            raise BadInput(f"args: got {type(self.args).__name__}; a tuple is accepted, (x,) for a single argument")
        if self.guide is not None and not callable(self.guide):
            raise BadInput(f"guide: got {type(self.guide).__name__}; a Pyro guide, that is a callable, is accepted")

    @cached_property
    def trace(self) -> Trace:
        """One run of the model, looked over."""
        with float64():
            return checked_model(self.model, self.args)

    @cached_property
    def guide_trace(self) -> Trace:
        """One run of the guide, looked over."""
        if self.guide is None:
            raise BadInput("guide: got none; a trained Pyro guide is accepted")
        with float64():
            return checked_guide(self.guide, self.args, self.trace)

    @cached_property
    def log_joint(self) -> LogJoint:
        """Log joint density over the continuous sites, unconstrained; finite sites are summed out.

        Raises
        ------
        BadInput
            Also where a discrete site has no finite support, or a plate takes a part of the data.
        """
        self.require_all_data()
        finite = {name for name, site in latent(self.trace).items() if is_finite(site)}
        for name, site in latent(self.trace).items():
            if name not in finite and site["fn"].support.is_discrete:
                raise BadInput(f"model: site {name!r} is discrete without a finite support; it cannot be summed out")
        with float64(), torch.no_grad(), poutine.seed(rng_seed=0), named("model"):
            log_joint = LogJoint(enumerable(self.model, finite) if finite else self.model, self.args)
            drawn = {name: latent(self.trace)[name]["value"] for name in log_joint.transforms}
            if any(torch.isnan(term) for term in log_joint.terms(log_joint.pack(drawn))):
                raise BadInput(f"model: log density of NaN where the sites {', '.join(finite)} are summed out")
        return log_joint

    @cached_property
    def digest(self) -> str:
        """Digest of all observed values, whatever their sites are called and in whatever order they come."""

        def of(site: Any) -> str:
            masks = [m for m in (site["mask"], getattr(site["fn"], "_mask", None)) if m is not None]
            seen = [torch.as_tensor(m).expand(site["fn"].batch_shape).flatten().double() for m in masks]
            plain = torch.cat([site["value"].detach().cpu().double().flatten(), *seen])
            return hashlib.sha256(str(tuple(site["value"].shape)).encode() + plain.numpy().tobytes()).hexdigest()

        values = sorted(of(site) for site in observed(self.trace).values())
        return hashlib.sha256("".join(values).encode()).hexdigest()[:16]

    def require_all_data(self) -> None:
        """Raise where a plate takes a part of the data: only a lower bound is fair to minibatches."""
        if plate := subsampled(self.trace):
            raise BadInput(
                f"model: plate {plate!r} takes a part of the data; evidence needs them all (elbo with one of Pyro's "
                "losses is the exception)"
            )

    def simulate(self, seed: int) -> tuple["Problem", dict[str, Tensor]]:
        """Draw latent sites and data from the model: a problem of those data, and the truth behind them.

        The truth is an exact draw from the posterior of that problem.
        """
        names = observed(self.trace)
        if factors := [name for name, site in samples(self.trace).items() if isinstance(site["fn"], Unit)]:
            raise BadInput(f"model: site {factors[0]!r} is a factor, under which nothing can be drawn")
        with float64(), torch.no_grad():
            drawn: dict[str, Any] = run("model", Free()(self.model), self.args, checked_seed(seed)).nodes
        data = {name: drawn[name]["value"] for name in names}
        truth = {name: drawn[name]["value"] for name in latent(self.trace)}
        return replace(self, model=poutine.condition(Free()(self.model), data=data)), truth


def checked_call(problem: Problem, seed: int, **counts: int) -> None:
    """Raise `BadInput` unless an estimator was given a problem, a seed and whole numbers of 2 or more."""
    if not isinstance(problem, Problem):
        raise BadInput(f"problem: got {type(problem).__name__}; a Problem(model, args, guide) is accepted")
    checked_seed(seed)
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 2:
            raise BadInput(f"{name}: got {count!r}; a whole number, 2 or more, is accepted")
