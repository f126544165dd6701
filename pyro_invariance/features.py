"""Nystroem features of patches [williams2001using], and maps of them where patches turn with the image."""

import math

import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from pyro_invariance.representations import Pixels, Polar, cosines
from pyro_invariance.typing import BadInput, Images

VIEWS = 20_000  # vectors that centres are looked for among
WIDTH = 0.5  # lengthscale on the unit sphere
FAINT, BUSY = 0.05, 0.1  # shares of the longest vector: shorter ones have no direction; centres are of longer ones
EXAMPLES = 500  # images that features are chosen from
LOST = 0.002  # of the variance between images, with the directions in which they hardly differ


class Nystroem:
    r"""Features :math:`\phi(x) = |x|\, W k(c, x / |x|)` of an RBF kernel between directions, at k-means centres `c`.

    Vectors are centred first: of a patch, its contrast counts in proportion and its brightness not at all
    [mairal2014convolutional].

    Parameters
    ----------
    vectors : Tensor `[n, D]`
        Examples, in any order; centres are those of vectors that are not short (empty ground).
    count : int
        Number of centres; fewer where there are fewer examples.
    generator : torch.Generator
        Draws the examples.

    Attributes
    ----------
    centres, whiten : Tensor `[count, D]`, `[count, kept]`
        Features are `similar(x) @ whiten`.
    faint : float
        Length below which a vector has no direction.
    """

    def __init__(self, vectors: Tensor, count: int, generator: torch.Generator) -> None:
        vectors = vectors[torch.randperm(len(vectors), generator=generator)[:VIEWS]]
        vectors = vectors - vectors.mean(-1, keepdim=True)
        length = vectors.norm(dim=-1, keepdim=True)
        if not length.max() > 0:
            raise BadInput("images: all are constant, there are no patches to tell apart")
        busy = (vectors / length)[length[:, 0] > BUSY * length.max()]
        means = MiniBatchKMeans(min(count, len(busy)), random_state=0, n_init=1, batch_size=2048).fit(
            busy.cpu().numpy()
        )
        centres = torch.as_tensor(means.cluster_centers_).to(vectors)
        self.centres, self.faint = F.normalize(centres, dim=-1), FAINT * float(length.max())
        eigenvalues, basis = torch.linalg.eigh(self.similar(self.centres))
        keep = eigenvalues > 1e-10 * eigenvalues[-1]
        self.whiten = basis[:, keep] / eigenvalues[keep].sqrt()

    def similar(self, vectors: Tensor) -> Tensor:
        """Kernel `[n, count]` of vectors `[n, D]` with the centres."""
        vectors = vectors - vectors.mean(-1, keepdim=True)
        length = vectors.norm(dim=-1, keepdim=True)
        short = length.clamp_min(self.faint)
        table = vectors.div_(short) @ (self.centres.T / WIDTH**2)
        table += length.log() - (1 + (length / short).square()) / (2 * WIDTH**2)
        return table.exp_()


def least_variance(variances: Tensor) -> float:
    """Least of the variances `[K]` of directions to keep, so that those dropped are `LOST` of the sum."""
    falling = variances.sort(descending=True).values
    return float(falling[int((falling.cumsum(0) < (1 - LOST) * falling.sum()).sum())])


class PolarPatches(Polar):
    r"""Features of patches around polar points, each in the frame of its radius: convolution composed with turns.

    .. math:: c_{bf}(x) \propto e^{-s^2 (b^2 + f^2) / 2}
        \sum_{ra} \sqrt{r}\, \cos(\pi b (r + 1/2) / R)\, e^{-2 \pi i f a / A}\, \phi(\text{patch}_{ra}(x))

    with Nystroem features :math:`\phi` and the blur :math:`s`, on the principal directions of the examples at each
    frequency `f`, back in `order` angles: an array `[N, kept, 1, order]` of what is where.  A turn of the image is a
    roll of the array, so that everything built on a polar array (a range of turns, the full group) serves patches that
    turn as well.

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
        radius = (torch.arange(rings).to(images) + 0.5) / rings * reach
        angle = torch.arange(angles).to(images) * (2 * math.pi / angles)
        outward = torch.stack([angle.cos(), -angle.sin()], -1)[:, None, None]  # (x, y), y down
        across = torch.stack([-angle.sin(), -angle.cos()], -1)[:, None, None]
        offset = (torch.arange(size).to(images) - (size - 1) / 2) * self.STEP * 2 / side
        patch = offset[:, None, None] * outward + offset[:, None] * across  # [A, size, size, 2]
        self.places = (radius[:, None, None, None, None] * outward + patch).flatten(2, 3)  # [R, A, size^2, 2]
        waves = angle * torch.arange((order - 1) // 2 + 1).to(images)[:, None]
        self.fourier = torch.cat([waves.cos(), -waves.sin()])  # cheaper than a fast transform of which half is dropped
        self.area = (radius / radius.mean()).sqrt()
        basis = cosines(modes, rings, images)
        self.cosines = basis / basis.norm(dim=1, keepdim=True) * self.area
        generator = torch.Generator().manual_seed(0)
        some = images[torch.randperm(len(images), generator=generator)[:EXAMPLES]]
        self.features = Nystroem(self._patches(pixels(some)).flatten(0, -2), count, generator)
        self.directions = self._principal(self._spectrum(some))

    __eq__, __hash__ = object.__eq__, object.__hash__  # two of the same sizes may hold other features

    def _patches(self, pooled: Images) -> Tensor:
        """Patches `[N, R, A, C * size^2]`."""
        grid = self.places.flatten(0, 1).expand(len(pooled), -1, -1, -1)
        cut = F.grid_sample(pooled, grid, align_corners=False).transpose(1, 2).flatten(2)
        return cut.unflatten(1, self.places.shape[:2])

    def _spectrum(self, images: Images) -> Tensor:
        """Fourier coefficients `[F, N, modes * count]`, complex, of maps of the features before they are whitened."""
        modes, count, begin = len(self.cosines), len(self.features.centres), 0
        frequencies = len(self.fourier) // 2
        found = images.new_empty(frequencies, len(images), modes, count, dtype=images.dtype.to_complex())
        for block in images.split(max(1, 2**25 // (8 * self.places.shape[:2].numel() * count))):
            patches = self._patches(self.pixels(block))
            maps = self.features.similar(patches.flatten(0, -2)).view(len(block), len(self.area), -1)
            turned = self.fourier @ (self.cosines @ maps).view(len(block), modes, -1, count)  # [n, modes, 2 F, count]
            here = found[:, begin : begin + len(block)]
            for part, rows in zip((here.real, here.imag), turned.split(frequencies, 2), strict=True):
                part.copy_(rows.permute(2, 0, 1, 3))
            begin += len(block)
        return found.flatten(2)

    def _principal(self, spectrum: Tensor) -> Tensor:
        """Directions `[F, modes * count, kept]` in which examples differ, zero beyond what a frequency needs.

        They whiten and blur as well.  A complex map of each frequency commutes with turns, which change its phase.
        """
        modes, frequencies = torch.arange(len(self.cosines)), torch.arange(len(spectrum))
        blur = torch.exp(-0.5 * self.blur**2 * (modes.square() + frequencies[:, None].square())).to(spectrum.real)
        whiten = torch.einsum("fb,kj,bc->fbkcj", blur, self.features.whiten, torch.eye(len(modes)).to(blur))
        whiten = whiten.flatten(3).flatten(1, 2).to(spectrum)
        if spectrum.shape[1] < EXAMPLES:  # too few to say in which directions others differ
            return whiten
        features = spectrum @ whiten
        features[0] -= features[0].mean(0)  # what does not turn is the same in all distances
        _, values, directions = torch.linalg.svd(features, full_matrices=False)
        variance = values.square()
        variance[1:] *= 2  # a frequency and its negative
        needed = variance >= least_variance(variance.flatten())
        most = int(needed.sum(1).max())
        return whiten @ (directions * needed[..., None])[:, :most].mH

    def __call__(self, images: Images) -> Tensor:
        """Feature maps `[N, kept, 1, order]` of images `[N, C, H, W]`."""
        maps = self._spectrum(images) @ self.directions  # [F, N, kept]
        return torch.fft.irfft(maps.permute(1, 2, 0), n=self.angles)[:, :, None]

    def mirror(self, x: Tensor) -> Tensor:
        """Not a move of places: a mirror changes what is seen in a patch."""
        raise BadInput("mirror: patches that turn have no mirror; use a plain polar array")
