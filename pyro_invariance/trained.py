"""Parameters of a model, learned by the gradient of its evidence, with the latent sites at their mode."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_median, init_to_value
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
    start: Mapping[str, Tensor] | None = None,
    steps: int = 300,
    rate: float = 0.02,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Climb :math:`\max_{w, \theta} \log p(D, \theta \mid w)` by Adam, the rate falling to zero as a cosine.

    Constraints are kept by the parameters themselves (`PyroParam`, `torch.nn.utils.parametrizations`).

    Parameters
    ----------
    module : PyroModule
        A Pyro model with parameters, where they start; latent sites continuous.  It is left as it is.
    args : tuple
        What the model takes: the data to learn from.
    start : mapping of str to Tensor, optional
        Values of latent sites to start from, those not named from the middle of their prior.  Where poses are summed
        out, noise may have to begin large: with little of it, each image stays in the pose that it has at first.
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
    module = deepcopy(module)
    with pyro.get_param_store().scope(), poutine.seed(rng_seed=seed):  # the caller's parameters stay as they are
        elbo: Any = Trace_ELBO()(
            module, AutoDelta(module, init_loc_fn=init_to_value(values=dict(start or {}), fallback=init_to_median))
        )
        elbo(*args)  # makes the parameters of the guide
        optimiser = torch.optim.Adam(elbo.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in tqdm(range(steps), desc="parameters", disable=None, leave=False):
            optimiser.zero_grad()
            elbo(*args).backward()
            optimiser.step()
            schedule.step()
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
