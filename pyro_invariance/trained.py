"""Parameters of a model, learned by the gradient of its evidence, with the latent sites at their mode."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.nn import PyroModule
from torch import Tensor
from tqdm import tqdm

from pyro_invariance.numerics import float64
from pyro_invariance.typing import BadInput


@float64()
def train(
    module: PyroModule,
    args: tuple,
    *,
    starts: Sequence[Mapping[str, Tensor]] = ({},),
    steps: int = 300,
    rate: float = 0.02,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Climb :math:`\max_{w, \theta} \log p(D, \theta \mid w)` by Adam, the rate falling to zero as a cosine.

    Constraints are kept by the parameters themselves (`PyroParam`, `torch.nn.utils.parametrizations`).

    Parameters
    ----------
    module : PyroModule
        A Pyro model with parameters, where they start; latent sites continuous.
    args : tuple
        What the model takes: the data to learn from.
    starts : sequence of mappings of str to Tensor
        Values of latent sites to start from, those not named from the middle of their prior; the best end is kept.
    steps, rate : int, float
        Of Adam.
    seed : int
        Of whatever the model draws.

    Returns
    -------
    dict of str to Tensor
        The state of the module, for `load_state_dict`.

    Raises
    ------
    BadInput
        If the module has no parameters.
    """
    if not list(module.parameters()):
        raise BadInput(f"module: {type(module).__name__} has no parameters to learn")
    ends = [_climb(deepcopy(module), args, start, steps, rate, seed) for start in starts]
    good = [end for end in ends if math.isfinite(end[0])]
    if not good:
        raise FloatingPointError(f"the parameters of {type(module).__name__} diverged from every start; a lower rate?")
    return min(good, key=lambda end: end[0])[1]


def _climb(
    module: PyroModule, args: tuple, start: Mapping[str, Tensor], steps: int, rate: float, seed: int
) -> tuple[float, dict[str, Tensor]]:
    """Where a climb ends: the loss, and the state of the module."""
    with pyro.get_param_store().scope(), poutine.seed(rng_seed=seed):  # the caller's parameters stay as they are
        elbo: Any = Trace_ELBO()(module, AutoDelta(module, init_loc_fn=init_to_value(values=dict(start))))
        elbo(*args)  # makes the parameters of the guide
        optimiser = torch.optim.Adam(elbo.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in tqdm(range(steps), desc="parameters", disable=None, leave=False):
            optimiser.zero_grad()
            elbo(*args).backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            loss = float(elbo(*args))
    return loss, {name: value.detach().clone() for name, value in module.state_dict().items()}
