r"""Kernels of functions averaged over any orbit, through features: ranges of many transformations at once.

The features of an image are the average over its views of its similarity to M centres, whitened:

.. math:: \bar\phi(x) = L^{-1} \sum_v w_v\, k(Z, v), \quad L L^T = k(Z, Z), \quad \bar k(x, x') = \bar\phi(x)^T
    \bar\phi(x')

[williams2001using] with the base function known through its values at the centres [vanderwilk2018learning].  An
evaluation costs `N V M` base kernels instead of the `N^2 V^2` of the double sum.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pyro_invariance.numerics import one_by_one
from pyro_invariance.orbits import Orbit
from pyro_invariance.representations import Pixels
from pyro_invariance.typing import BadInput, Images

BLOCK = 2**19  # base kernels per step of an evaluation: the temporaries stay in cache
JITTER = 1e-6  # of the values at the centres, of variance one
KEPT = 8  # points in hyperparameter space whose features of the conditioned images are kept while predicting


class _Similarity(torch.autograd.Function):
    r""":math:`\sum_v w_v \exp(-|v - z_m|^2 / 2 l^2)`, `[N, M]`, block by block, made again where a gradient is wanted.

    Nothing is kept of a view, so that memory does not grow with their number.
    """

    @staticmethod
    def forward(kernel, images, lengthscale, *extents):  # type: ignore[no-untyped-def]
        weights, rows = kernel.orbit.weights().to(images), []
        for block in kernel.blocks(images):
            squared = kernel.squared_distances(kernel.views(block, *extents))
            rows.append(weights @ squared.mul_(-0.5 / lengthscale.square()).exp_())
        return (torch.cat(rows),)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.kernel, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        kernel, (images, lengthscale, *extents) = ctx.kernel, ctx.saved_tensors
        weights, size = kernel.orbit.weights().to(images)[:, None], len(kernel.centres)
        extents = [e.detach().requires_grad_() for e in extents]
        by_lengthscale, by_extents = torch.zeros_like(lengthscale), [torch.zeros_like(e) for e in extents]
        begin = 0
        for block in kernel.blocks(images):
            with torch.enable_grad():
                views = kernel.views(block, *extents)
            squared = kernel.squared_distances(views.detach())  # [n, V, M]
            slope = torch.exp(squared * (-0.5 / lengthscale.square()))
            slope *= weights
            slope *= grad[begin : begin + len(block), None]
            begin += len(block)
            by_lengthscale = by_lengthscale + torch.dot(slope.flatten(), squared.flatten()).to(by_lengthscale)
            if not extents:
                continue
            by_views = (slope.view(-1, size) @ kernel.centres).view_as(views)
            by_views -= slope.sum(-1, keepdim=True) * views.detach()
            for total, part in zip(by_extents, torch.autograd.grad(views, extents, by_views), strict=True):
                total += part
        shares = (total / lengthscale.square() for total in by_extents)
        return None, None, by_lengthscale / lengthscale**3, *shares

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        return one_by_one(_Similarity, info, in_dims, inputs), (0,)


class AveragedKernel:
    r"""RBF kernel of a function averaged over an orbit, through features, of mean variance one over the images.

    .. math:: \bar k(x, x') = \frac1c\, \bar\phi(x)^T \bar\phi(x'), \quad c = \frac1N \sum_n |\bar\phi(x_n)|^2

    `c` is there because averaging over a wide range leaves little of the variance of the base function.  Distances are
    divided by their mean between centres, so that a lengthscale of 1 is the typical distance of two images.

    Parameters
    ----------
    orbit : Orbit
        Its views may take extents.
    pixels : Pixels
        How images are pooled and normalised before they are moved.
    images : Tensor `[N, C, H, W]`
        The images to condition on; some of them, drawn at random, are the centres.
    centres : int
        Number of centres, M.
    unit : bool
        Whether each view is divided by its norm: content that grows or leaves is then no brighter or darker.

    Raises
    ------
    BadInput
        If the representation makes all images the same.

    Notes
    -----
    The evidence is exact for these views and these features.  Where the lengthscale is short they are not those of the
    double sum: the base function fades far from the centres, so that views near the images as they are count most.
    """

    def __init__(self, orbit: Orbit, pixels: Pixels, images: Images, centres: int = 400, *, unit: bool = False) -> None:
        self.orbit, self.pixels, self.unit = orbit, pixels, unit
        self.x, self.scale = pixels(images), 1.0
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(images), generator=generator)[:centres].to(images.device)
        plain = self._scaled(self.x[chosen])
        self.scale = float(torch.pdist(plain).square().mean().sqrt())
        if not self.scale > 1e-6 * float(plain.norm(dim=1).mean()):  # what rounding leaves
            raise BadInput(f"images: all {len(images)} are the same once their brightness and contrast are normalised")
        self.centres = plain / self.scale
        self._kept = lru_cache(maxsize=KEPT)(self._conditioned)

    @staticmethod
    def bytes(n: int, centres: int = 400) -> int:
        """Memory that features of `n` images take, those kept for predictions included."""
        return 8 * (KEPT + 4) * n * min(n, centres)

    def _scaled(self, views: Tensor) -> Tensor:
        """Views `[*B, C, H, W]` as vectors `[*B, D]`, in units of the mean distance."""
        flat = views.flatten(-3)
        return flat / (self.scale * flat.norm(dim=-1, keepdim=True).clamp_min(1e-6) if self.unit else self.scale)

    def views(self, x: Images, *extents: Tensor) -> Tensor:
        """Views `[N, V, D]` of represented images, in units of the mean distance."""
        return self._scaled(self.orbit.views(x, *extents))

    def squared_distances(self, views: Tensor) -> Tensor:
        """Squared distances `[N, V, M]` of views `[N, V, D]` to the centres."""
        flat = views.flatten(0, 1)
        table = torch.addmm(self.centres.square().sum(1), flat, self.centres.T, alpha=-2)
        return table.add_(flat.square().sum(1, keepdim=True)).clamp_min_(0).view(*views.shape[:2], -1)

    def blocks(self, x: Images) -> tuple[Tensor, ...]:
        """Represented images in blocks that are evaluated at once."""
        return x.split(max(1, BLOCK // (len(self.orbit.weights()) * len(self.centres))))

    def similar(self, x: Images, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Similarity `[N, M]` of represented images to the centres, averaged over their views."""
        return _Similarity.apply(self, x, lengthscale, *extents)[0]

    def features(self, x: Images, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Whitened features `[N, M]` of represented images, differentiable in the scalars."""
        similar = self.similar(x, lengthscale, *extents)
        between = self.squared_distances(self.centres[None])[0]
        base = torch.exp(-0.5 * between / lengthscale.square()) + JITTER * torch.eye(len(between)).to(between)
        return torch.linalg.solve_triangular(torch.linalg.cholesky(base), similar.T, upper=False).T

    def gram(self, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Gram matrix `[N, N]` of the images, differentiable in all arguments (scalars)."""
        features = self.features(self.x, lengthscale, *extents)
        return features @ features.T / features.square().sum(1).mean()

    @property
    def width(self) -> int:
        """Numbers that a comparison with one new image takes: its pixels, features and covariances."""
        return self.x[0].numel() + len(self.centres) + len(self.x)

    def compared(self, images: Images) -> Images:
        """New images, represented: what they are compared by depends on the extents."""
        return self.pixels(images)

    def cross(self, compared: Images, lengthscale: Tensor, *extents: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances `[M, N]` and prior variances `[M]` of new images, differentiable in all scalars."""
        old = self._old(lengthscale, *extents)
        new, mean = self.features(compared, lengthscale, *extents), old.square().sum(1).mean()
        return new @ old.T / mean, new.square().sum(1) / mean

    def scaled_features(self, x: Images, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Features `[N, M]` of represented images, of mean square length one over the conditioned ones."""
        mean = self._old(lengthscale, *extents).square().sum(1).mean()
        return self.features(x, lengthscale, *extents) / mean.sqrt()

    def _old(self, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Features of the conditioned images: without gradients, the same for every block of new ones."""
        if torch.is_grad_enabled():
            return self.features(self.x, lengthscale, *extents)
        return self._kept(float(lengthscale), *map(float, extents))

    def _conditioned(self, *point: float) -> Any:
        return self.features(self.x, *(torch.tensor(value, dtype=self.x.dtype) for value in point))


class FeatureKernel:
    r"""An averaged function through the weights of its features, :math:`f = c^{-1/2}\, \bar\phi^T u,\ u \sim N(0, I)`.

    The weights are inducing values that know the function exactly: a sparse bound is the evidence of the very prior
    that `AveragedKernel` has, for any number of images.

    Parameters
    ----------
    kernel : AveragedKernel
        Conditioned on the images that set centres and units.
    """

    def __init__(self, kernel: AveragedKernel) -> None:
        self.kernel = kernel
        self.count, self.width, self.compared = len(kernel.centres), kernel.width, kernel.compared

    def gram(self, lengthscale: Tensor, *extents: Tensor) -> Tensor:
        """Covariances `[M, M]` of the weights, whatever the hyperparameters."""
        return torch.eye(self.count).to(self.kernel.x)

    def cross(self, compared: Images, lengthscale: Tensor, *extents: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances `[N, M]` of new images with the weights, and their prior variances `[N]`."""
        features = self.kernel.scaled_features(compared, lengthscale, *extents)
        return features, features.square().sum(1)
