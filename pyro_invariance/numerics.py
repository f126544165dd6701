"""Precision: evidence is float64 on one thread, whatever the caller's defaults are; functions mapped over draws."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def float64() -> Iterator[None]:
    """Make float64 the default dtype within, and use one torch thread; both are restored."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # small matrices and busy cores: two threads are slower than one
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def one_by_one(function: Any, info: Any, in_dims: tuple, inputs: tuple) -> tuple:
    """Rule of `torch.vmap` for an `autograd.Function` that is bound by arithmetic: a call for each, outputs stacked."""
    rows = [
        function.apply(*(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))
