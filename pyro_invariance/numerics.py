"""Precision: evidence is float64 on one thread, whatever the caller's defaults are."""

from collections.abc import Iterator
from contextlib import contextmanager

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
