import os

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib; child processes inherit it

from collections.abc import Iterator

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def float64() -> Iterator[None]:
    """Evidence in float32 can be wrong by hundreds of nats; shared fixtures are built under this one too."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


@pytest.fixture(autouse=True)
def fresh_state(float64: None) -> Iterator[None]:
    """No test sees another's parameters, random numbers or default dtype."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(torch.float64)
