"""A few small arrays, and the words with which others are refused."""

from collections.abc import Callable

import numpy as np
import pytest

from pyro_invariance.typing import BadInput

N, SIDE = 20, 6
IMAGES = np.random.default_rng(0).random((N, SIDE, SIDE))
LABELS = np.arange(N) % 3
PLACES = np.stack([np.linspace(-80, 80, N), np.linspace(-180, 171, N)], 1)  # latitude, longitude


def changed(array: np.ndarray, where: object, value: float) -> np.ndarray:
    """Return a copy with one entry replaced."""
    copy = array.astype(np.result_type(array, type(value)))
    copy[where] = value
    return copy


def refusal(call: Callable[[], object]) -> str:
    """Return the message with which a call is refused; it is one line."""
    with pytest.raises(BadInput) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message
