"""Names of the shapes that the library passes around, and the one error a user can mend."""

from typing import TypeAlias

from torch import Tensor

Images: TypeAlias = Tensor  # [N, C, H, W], channels first; H x W is the square [-1, 1] x [-1, 1]
Views: TypeAlias = Tensor  # [N, V, *event], V = number of views in the orbit
Elements: TypeAlias = Tensor  # [*batch, *element], one group element per batch index


class BadInput(ValueError):
    """What the user gave cannot be used; the message names the argument, what was got and what is accepted."""
