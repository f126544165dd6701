r"""A transformation is written once, as a Pyro site; the same model runs with it enumerated, integrated or sampled.

The site is a line of the user's model, inside the plate of the data:

    theta = pyro.sample("pose", SoftUniform(extent))        # a continuous group
    g = pyro.sample("pose", FiniteWeights(group))           # a finite one

The bare model samples it.  `Marginalised(model)` is the same model for `TraceEnum_ELBO` and NUTS: a finite group is
enumerated, a density over a range becomes an enumerated choice among its quadrature nodes,
:math:`p(x) = \sum_q w_q(e)\, p(x \mid \theta_q(e))`, differentiable in the extent.  The model needs no other line if it
takes a pose of shape `[N]` (sampled) as well as `[Q, 1]` (enumerated), as `Group.act` does.  An extent that is itself
a sample is read before the plate.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pyro
import torch
from pyro.distributions import Categorical, Delta, TorchDistribution
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK, Message
from torch import Tensor

from pyro_invariance.densities import FiniteWeights
from pyro_invariance.typing import BadInput


class Marginalised(torch.nn.Module):
    """A Pyro model with one site summed out, for `TraceEnum_ELBO(max_plate_nesting=1)` or `NUTS(max_plate_nesting=1)`.

    The guide leaves the site alone: an empty function where nothing else is latent (the ELBO is then the log
    evidence, up to the quadrature), or for instance `AutoNormal(poutine.block(model, hide=["pose"]))`.  Sites and
    parameters keep the names that they have in the bare model, and `TraceEnum_ELBO(...)(marginalised, guide)` finds
    its parameters.  To sum out two sites, wrap twice.

    Parameters
    ----------
    model : callable
        The bare model; a (Pyro) module if it has parameters.
    site : str
        Name of the transformation: a discrete site or one whose density has `nodes(count)`.
    nodes : int
        Quadrature nodes of a continuous site.  Doubling them must not change the evidence.
    """

    def __init__(self, model: Callable, site: str = "pose", nodes: int = 64) -> None:
        super().__init__()
        self.model, self.site, self.nodes = model, site, nodes

    def forward(self, *args: object, **kwargs: object) -> object:
        """Run the model; what it returns is returned."""
        return self._run(_SumOut(self.site, self.nodes), *args, **kwargs)

    def _run(self, handler: "_SumOut", *args: object, **kwargs: object) -> object:
        with handler:
            result = self.model(*args, **kwargs)
        if self.site not in handler.latent:
            raise BadInput(f"site: the model has no latent site {self.site!r}; it has {handler.latent or 'none'}")
        return result

    @torch.no_grad()
    def posterior(
        self, *args: object, guide: Callable | None = None, max_plate_nesting: int = 1, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Posterior over the transformation of each datum, given one draw of the guide for everything else.

        Parameters
        ----------
        *args, **kwargs
            What the model takes.
        guide : callable, optional
            Guide of the other latent sites; not needed if there are none.
        max_plate_nesting : int
            As for `TraceEnum_ELBO`.

        Returns
        -------
        Tensor `[Q]`, or `[N, Q]` where each datum has its own nodes
            The nodes: elements of the group.
        Tensor `[N, Q]`
            Their probabilities; each row sums to one.
        """
        handler = _SumOut(self.site, self.nodes)
        elbo = TraceEnum_ELBO(max_plate_nesting=max_plate_nesting)
        marginals = elbo.compute_marginals(partial(self._run, handler), guide or _empty, *args, **kwargs)
        marginal = marginals[self.site if handler.points is None else f"{self.site}_node"]
        support = marginal.enumerate_support(expand=False)  # [Q, 1, ...]
        nodes = support if handler.points is None else handler.points
        nodes = nodes.flatten() if nodes.numel() == len(nodes) else nodes.movedim(0, -1)
        return nodes, marginal.log_prob(support).exp().movedim(0, -1)


class _SumOut(Messenger):
    """Has a discrete site enumerated; replaces a continuous one by an enumerated choice among its quadrature nodes.

    The continuous site `NAME` keeps its name and its value, now a function of `NAME_node`, and no longer adds to the
    log density.  This is a reparameterisation, but `poutine.reparam` insists on the shape that a site is initialised
    with, which NUTS does before it enumerates.
    """

    def __init__(self, site: str, count: int) -> None:
        super().__init__()
        self.site, self.count = site, count
        self.latent: list[str] = []  # the sites that the model has
        self.points: Tensor | None = None  # [Q] or [Q, *batch], the nodes of the last run

    def _pyro_sample(self, msg: Message) -> None:
        name, fn = str(msg["name"]), cast(Any, msg["fn"])
        if msg["is_observed"] or type(fn).__name__ == "_Subsample":
            return
        self.latent.append(name)
        if name != self.site:
            return
        if fn.has_enumerate_support:
            if isinstance(fn, FiniteWeights):  # compute_marginals makes the class anew from logits alone
                msg["fn"] = Categorical(logits=fn.logits)
            cast(dict, msg["infer"])["enumerate"] = "parallel"
            return
        if not hasattr(fn, "nodes"):
            raise BadInput(f"site {name!r}: got {type(fn).__name__}, which has neither nodes(count) nor finite support")
        _refuse_values_for(name)
        self.points, log_weights = _compact(fn).nodes(self.count)
        choice = Categorical(logits=log_weights.movedim(0, -1))
        index = pyro.sample(f"{name}_node", choice, infer={"enumerate": "parallel"})
        value = _pick(self.points, index)
        shape = torch.broadcast_shapes(value.shape, fn.batch_shape)
        msg["fn"] = Delta(value).expand(shape).mask(False)
        msg["value"], msg["is_observed"] = value, True
        cast(dict, msg["infer"])["_deterministic"] = True  # as Pyro marks what follows from other sites


def _empty(*args: object, **kwargs: object) -> None:
    """Guide of a model in which nothing is left to guess."""


def _refuse_values_for(site: str) -> None:
    """Raise if a guide or a condition around the model gives a value to a site that is being summed out."""
    for handler in _PYRO_STACK:
        if isinstance(handler, ReplayMessenger) and handler.trace is not None and site in handler.trace:
            given = not handler.trace.nodes[site]["is_observed"]
            who = "the guide samples it too: hide it from the guide"
        else:
            given = isinstance(handler, ConditionMessenger) and site in handler.data
            who = "poutine.condition fixes it: condition the bare model instead"
        if given:
            raise BadInput(f"site {site!r} is summed out, but {who}")


def _compact(density: TorchDistribution) -> TorchDistribution:
    """Undo the `expand` of a plate: a dimension along which every parameter only repeats gets size one."""
    small, shape = copy.copy(density), torch.Size()
    for name in density.arg_constraints:
        value = getattr(density, name)
        for dim, stride in enumerate(value.stride()):
            value = value.narrow(dim, 0, 1) if stride == 0 else value
        setattr(small, name, value)
        shape = torch.broadcast_shapes(shape, value.shape)
    small._batch_shape = shape
    return small


def _pick(points: Tensor, index: Tensor) -> Tensor:
    """Return `points[index]`, each batch index with its own: `[Q, *batch]` and `[*any, *batch]` to `[*any, *batch]`."""
    batch = points.shape[1:]
    own = [torch.arange(n).reshape(-1, *[1] * (len(batch) - 1 - dim)) for dim, n in enumerate(batch)]
    return points[(index, *own)]
