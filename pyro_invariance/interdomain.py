r"""Kernel between a function averaged over an orbit and the values of its base function, :math:`u = g(Z)`.

Where views are sampled the double sum over two orbits is out of reach for a Gram matrix; values of the base function
need none:

.. math:: k_{uu} = k(Z, Z), \quad k_{uf} = \frac{1}{\sqrt c} \sum_v w_v\, k(Z, v), \quad
    k_{ff} = \frac1c \sum_{vw} w_v w_w\, k(v, w)

[vanderwilk2018learning].  They say less of the averaged function than its own values, :math:`u = f(Z)`, which
`OrbitKernel` offers where the double sum is closed.
"""

import torch
from torch import Tensor

from pyro_invariance.averaged import BLOCK, AveragedKernel
from pyro_invariance.orbits import Orbit
from pyro_invariance.representations import Pixels
from pyro_invariance.typing import Images


class InterDomainKernel(AveragedKernel):
    """RBF kernel of a function averaged over an orbit, seen through values of the base function at the images.

    Parameters
    ----------
    orbit, pixels, images, unit
        As of `AveragedKernel`; all images are centres.
    """

    def __init__(self, orbit: Orbit, pixels: Pixels, images: Images, *, unit: bool = False) -> None:
        super().__init__(orbit, pixels, images, centres=len(images), unit=unit)
        self.centres = self._scaled(self.x)  # in order: inducing values belong to images

    def gram(self, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Covariances `[M, M]` of the base function at the images, whatever the extents."""
        squared = self.squared_distances(self.centres[None])[0]
        return torch.exp(-0.5 * squared / lengthscale.square())

    def _variances(self, x: Images, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Prior variances `[N]` of the averaged function, before they are scaled: double sums over the views."""
        weights, rows = self.orbit.weights().to(x), []
        for block in x.split(max(1, BLOCK // (len(weights) * max(len(weights), x[0].numel())))):
            views = self.views(block, *extents)
            between = torch.exp(-0.5 * torch.cdist(views, views).square() / lengthscale.square())
            rows.append(torch.einsum("v,nvw,w->n", weights, between, weights))
        return torch.cat(rows)

    def _old(self, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Mean prior variance over the images of the inducing values."""
        if torch.is_grad_enabled():
            return self._variances(self.x, lengthscale, *extents).mean()
        return self._kept(float(lengthscale), *map(float, extents))

    def _conditioned(self, *point: float) -> Tensor:
        return self._variances(self.x, *(torch.tensor(value, dtype=self.x.dtype) for value in point)).mean()

    def cross(self, compared: Images, lengthscale: Tensor, *extents: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances `[N, M]` of new images with the base function, and their prior variances `[N]`.

        Of mean variance one over the images of the inducing values.
        """
        unit = self._old(lengthscale, *extents)
        similar = self.similar(compared, lengthscale, *extents)
        return similar / unit.sqrt(), self._variances(compared, lengthscale, *extents) / unit
