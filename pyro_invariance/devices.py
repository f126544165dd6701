"""Where tensors are: data, and all that grows with them, on a device; hyperparameters and results on the CPU.

A climb evaluates a handful of numbers and a covariance of thousands of images: the numbers stay where NumPy sees them,
and each kernel takes them to its images.
"""

import re
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_invariance.typing import BadInput

LAUNCHED = 64  # times what a CPU does at once is enough elsewhere

Record = TypeVar("Record", bound=Any)


def checked_device(name: str) -> torch.device:
    """Return a device by name: `cpu`, `cuda` or `cuda:N`.

    Raises
    ------
    BadInput
        For any other name, and for a device that is not there.
    """
    accepted, count = "cpu, cuda and cuda:N are accepted", torch.cuda.device_count()
    if name == "mps":
        raise BadInput(f"device: got 'mps', which has no float64, and evidence in float32 can be wrong; {accepted}")
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(name))
    if not found:
        raise BadInput(f"device: got {name!r}; {accepted}")
    if name != "cpu" and int(found[1] or 0) >= count:
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise BadInput(f"device: got {name!r}, which is not there; what torch can use here is {here}")
    return torch.device(name)


def at_once(x: Tensor, cached: int) -> int:
    """How much to do in one step, given what stays in the cache of a CPU: elsewhere each step has to be launched."""
    return cached if x.device.type == "cpu" else LAUNCHED * cached


def moved(record: Record, device: torch.device | str) -> Record:
    """Copy of a dataclass whose tensors, those in dicts too, are on a device."""

    def to(value: Any) -> Any:
        if torch.is_tensor(value):
            return value.to(device)
        return {name: to(v) for name, v in value.items()} if isinstance(value, dict) else value

    return replace(record, **{f.name: to(getattr(record, f.name)) for f in fields(record) if f.init})
