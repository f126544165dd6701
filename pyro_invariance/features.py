"""Nystroem features of an RBF kernel [williams2001using], and maps of them over patches that turn with the image."""

import math

import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from pyro_invariance.representations import Pixels, Polar, cosines
from pyro_invariance.typing import BadInput, Images

VIEWS = 20_000  # vectors that centres are looked for among
WIDTH = 0.5  # lengthscale, as a share of the median distance of busy vectors


class Nystroem:
    r"""Features :math:`\phi(x) = W k(c, x)` of an RBF kernel at k-means centres `c`.

    Parameters
    ----------
    vectors : Tensor `[n, D]`
        Examples, in any order; those that hardly vary (empty ground) are passed over where enough others are left.
    count : int
        Number of centres; fewer where there are fewer examples.
    generator : torch.Generator
        Draws the examples.

    Attributes
    ----------
    centres, whiten : Tensor `[count, D]`, `[count, kept]`
        Features are `similar(x) @ whiten`.
    length : float
        Lengthscale: half the median distance of examples.
    """

    def __init__(self, vectors: Tensor, count: int, generator: torch.Generator) -> None:
        vectors = vectors[torch.randperm(len(vectors), generator=generator)[:VIEWS]]
        busy = vectors[vectors.var(-1) > 1e-3 * vectors.var()]
        busy = busy if len(busy) >= 2 * count else vectors
        apart = torch.pdist(busy[:500])
        if not (apart > 0).any():
            raise BadInput("images: all are constant, there are no patches to tell apart")
        means = MiniBatchKMeans(min(count, len(busy)), random_state=0, n_init=1, batch_size=2048).fit(busy.numpy())
        self.centres = torch.as_tensor(means.cluster_centers_, dtype=vectors.dtype)
        self.length = WIDTH * float(apart[apart > 0].median())
        eigenvalues, basis = torch.linalg.eigh(self.similar(self.centres))
        keep = eigenvalues > 1e-10 * eigenvalues[-1]
        self.whiten = basis[:, keep] / eigenvalues[keep].sqrt()

    def similar(self, vectors: Tensor) -> Tensor:
        """RBF kernel `[n, count]` of vectors `[n, D]` with the centres."""
        scale = -0.5 / self.length**2
        table = torch.addmm(self.centres.square().sum(1) * scale, vectors, self.centres.T, alpha=-2 * scale)
        return table.add_(vectors.square().sum(1, keepdim=True), alpha=scale).clamp_max_(0).exp_()


class PolarPatches(Polar):
    r"""Features of patches around polar points, each in the frame of its radius: convolution composed with turns.

    .. math:: c_{bf}(x) \propto e^{-s^2 (b^2 + f^2) / 2}
        \sum_{ra} \sqrt{r}\, \cos(\pi b (r + 1/2) / R)\, e^{-2 \pi i f a / A}\, \phi(\text{patch}_{ra}(x))

    with Nystroem features :math:`\phi`, back in `order` angles: an array `[N, kept, modes, order]` of what is
    where, up to the blur :math:`s`.  A turn of the image is a roll of the array, so that everything built on a polar
    array (a range of turns, the full group) serves patches that turn as well.

    Parameters
    ----------
    pixels : Pixels
        Pooling before patches are cut.
    images : Tensor `[N, C, H, W]`
        Examples that the features are chosen for.
    order : int
        Angles of the array; half as many frequencies are kept.
    rings : int
        Radii at which patches are cut, at 32 angles or more.
    size, reach : int, float
        Side of a patch, pixels, which lie a little more than one apart; the rings are `reach (r + 1/2) / R`.
    count, modes : int
        Nystroem centres, and cosine modes over the rings.
    blur : float
        How far a feature may move unnoticed.
    """

    STEP = 1.25  # pixels between the points of a patch

    def __init__(
        self,
        pixels: Pixels,
        images: Images,
        order: int = 16,
        *,
        rings: int = 8,
        size: int = 5,
        reach: float = 0.8,
        count: int = 96,
        modes: int = 6,
        blur: float = 0.4,
    ) -> None:
        super().__init__(rings, order)
        self.pixels, self.blur = pixels, blur
        angles = max(32, 2 * order)
        side = pixels(images[:1]).shape[-1]
        radius = (torch.arange(rings) + 0.5) / rings * reach
        angle = torch.arange(angles) * (2 * math.pi / angles)
        outward = torch.stack([angle.cos(), -angle.sin()], -1)[:, None, None]  # (x, y), y down
        across = torch.stack([-angle.sin(), -angle.cos()], -1)[:, None, None]
        offset = (torch.arange(size) - (size - 1) / 2) * self.STEP * 2 / side
        patch = offset[:, None, None] * outward + offset[:, None] * across  # [A, size, size, 2]
        self.places = (radius[:, None, None, None, None] * outward + patch).flatten(2, 3)  # [R, A, size^2, 2]
        self.area = (radius / radius.mean()).sqrt()
        basis = cosines(modes, rings, images)
        self.cosines = basis / basis.norm(dim=1, keepdim=True) * self.area
        generator = torch.Generator().manual_seed(0)
        some = images[torch.randperm(len(images), generator=generator)[:300]]
        self.features = Nystroem(self._patches(pixels(some)).flatten(0, -2), count, generator)

    __eq__, __hash__ = object.__eq__, object.__hash__  # two of the same sizes may hold other features

    def _patches(self, pooled: Images) -> Tensor:
        """Patches `[N, R, A, C * size^2]`."""
        grid = self.places.flatten(0, 1).to(pooled).expand(len(pooled), -1, -1, -1)
        cut = F.grid_sample(pooled, grid, align_corners=False).transpose(1, 2).flatten(2)
        return cut.unflatten(1, self.places.shape[:2])

    def __call__(self, images: Images) -> Tensor:
        """Feature maps `[N, kept, modes, order]` of images `[N, C, H, W]`."""
        kept = (self.angles - 1) // 2 + 1
        blur = torch.exp(-0.5 * self.blur**2 * torch.arange(len(self.cosines)).square())[:, None]
        around = torch.exp(-0.5 * self.blur**2 * torch.arange(kept).square())
        blocks = []
        for block in images.split(max(1, 2**25 // (8 * self.places.shape[:2].numel() * len(self.features.centres)))):
            patches = self._patches(self.pixels(block))
            maps = self.features.similar(patches.flatten(0, -2)).view(*patches.shape[:3], -1)
            spectrum = torch.fft.rfft(torch.einsum("br,nrak->nbak", self.cosines, maps), dim=2)[:, :, :kept]
            white = torch.einsum("nbfk,kj->njbf", spectrum, self.features.whiten.to(spectrum)) * (blur * around)
            blocks.append(torch.fft.irfft(white, n=self.angles))
        return torch.cat(blocks)

    def mirror(self, x: Tensor) -> Tensor:
        """Not a move of places: a mirror changes what is seen in a patch."""
        raise BadInput("mirror: patches that turn have no mirror; use a plain polar array")
