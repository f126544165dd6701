"""Quadrature over a box of coefficients: few views stand for ranges of many transformations at once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from pyro_invariance.deformations import Deformation
from pyro_invariance.matrix_groups import MatrixGroup
from pyro_invariance.orbits import FiniteOrbit, Orbit
from pyro_invariance.typing import BadInput, Images, Views, checked_seed

TURNS = 100.0  # of the torus that an image shifts the nodes by: those that look alike have others


@dataclass(frozen=True)
class SobolOrbit(Orbit):
    r"""Views at the nodes of a scrambled Sobol sequence in a box of coefficients, in pairs; weights are equal.

    The sequence is shifted, on the torus, by what the image itself says at random [cranley1976randomization].  So the
    views of two images are independent, and what the nodes miss is noise rather than something that extents can be
    fitted to.  With each node goes its opposite, so that no direction is preferred.  The nodes :math:`u \in [-1, 1]^G`
    move with the extents, :math:`c_g = e_g u_g`, so that the gradient in the extents flows through the views.  With two
    extents each, :math:`l_g` and :math:`r_g`, they are uniform on :math:`[-l_g, r_g]`.  Where all extents are zero the
    views are copies.

    Parameters
    ----------
    group : MatrixGroup or Deformation
        What the coefficients are of.
    count : int
        Number of nodes, V; powers of two are balanced best.
    seed : int
        Of the scrambling and the shifts; the same image has the same nodes wherever it is met.
    """

    group: MatrixGroup | Deformation
    count: int
    seed: int = 0

    def nodes(self, x: Images, *extents: Tensor) -> Tensor:
        """Coefficients `[N, V, G]`; extents: one for each of `group.extents`, or all to the left, then to the right."""
        names, size = self.group.extents, self.group.coefficients
        if len(extents) not in (len(names), 2 * len(names)):
            raise BadInput(f"extents: got {len(extents)}; {self.group!r} takes {len(names)}, or left and right of each")
        flat = torch.nn.functional.normalize(x.detach().flatten(1).to(torch.float64), dim=1)  # whatever its unit
        left, right = (torch.stack(e).to(flat) for e in (extents[: len(names)], extents[-len(names) :]))
        engine = SobolEngine(size, scramble=True, seed=checked_seed(self.seed))
        generator = torch.Generator().manual_seed(self.seed)
        shift = flat @ (TURNS * torch.randn(flat.shape[1], size, generator=generator, dtype=torch.float64)).to(flat)
        u = 2 * ((engine.draw((self.count + 1) // 2, dtype=torch.float64).to(flat) + shift[:, None]) % 1) - 1
        u = torch.cat([u, -u], 1)[:, : self.count]
        return (right - left) / 2 + u * (right + left) / 2

    def views(self, x: Images, *extents: Tensor) -> Views:
        """Views `[N, V, *event]` of `x` `[N, *event]`."""
        if x.dim() != 1 + self.group.event_dim:
            raise BadInput(f"x: got shape {list(x.shape)}; {self.group!r} takes {1 + self.group.event_dim} dimensions")
        return self.group.move(self.nodes(x, *extents).to(x), x)

    def weights(self) -> Tensor:
        return torch.full((self.count,), 1 / self.count)


@dataclass(frozen=True)
class ComposedOrbit(Orbit):
    """Views of views: those under a finite group, each of them moved within a box; weights are products.

    Parameters
    ----------
    first : FiniteOrbit
        What is done first.
    then : SobolOrbit
        What is done to each of its views.
    """

    first: FiniteOrbit
    then: SobolOrbit

    def views(self, x: Images, *extents: Tensor) -> Views:
        """Views `[N, V W, *event]` of `x` `[N, *event]`; extents are those of `then`."""
        first = self.first.views(x)
        return self.then.views(first.flatten(0, 1), *extents).unflatten(0, first.shape[:2]).flatten(1, 2)

    def weights(self) -> Tensor:
        return torch.outer(self.first.weights(), self.then.weights()).flatten()
