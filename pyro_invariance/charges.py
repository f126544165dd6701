r"""Vectors of molecules as charges times places: a kernel that turns along, and the process of vectors that has it.

With charges of atoms that are Gaussian processes on what surrounds them, and vectors that they multiply,

.. math:: \mu(x) = \sum_i \sum_b q_b(s_i)\, v_{ib}, \qquad
    K(x, x') = \sum_{ij} k(s_i, s'_j) \sum_b v_{ib} v_{jb}'^T \in R^{3 \times 3}

If the surroundings `s` are invariant under a group and the vectors `v` are moved along by it, so is
:math:`\mu` [grisafi2018symmetry, villar2021scalars].

============  ==========================  ================================================================
name          surroundings of an atom     vectors, `r` from the middle of the molecule
============  ==========================  ================================================================
`E3`          distances, of all pairs    `r`
`SE3`         and triple products         `r`, and a cross product of vectors to neighbours
`T-SO2`       and differences of height   `r` across, the same turned by 90 degrees about z, the axis z
`T`           and differences across      x, y, z: three functions that know nothing of each other
`trivial`     and the places themselves   x, y, z
============  ==========================  ================================================================
"""

from functools import cached_property

import torch
from torch import Tensor

from pyro_invariance.molecular import ALONG, DISTANCES, LEAST, Molecules, elements_of, smeared
from pyro_invariance.processes import GaussianProcess

LENGTHS = DISTANCES[::4]  # charges change little along a bump: coarser than energies need
SEEN = {"E3": 1, "SE3": 2, "T-SO2": 3, "T": 4, "trivial": 5}  # kinds of surroundings


class ChargeKernel:
    r"""Kernel of vectors, conditioned on `x` `[N, P, 4]`: charges of atoms, similar where surroundings are.

    Distances have mean square one between two atoms of an element; vectors of each kind have one mean square, which
    makes the mean variance of a coordinate one at lengthscale 1, so that a variance means the same to all hypotheses.
    What does not vary in the surroundings and what vanishes of the vectors is left out.
    """

    def __init__(self, name: str, x: Tensor) -> None:
        self.name, self.elements = name, elements_of(x)
        self.origin = x[x[..., 0] > 0, 1:].mean(0)
        self.kinds, vectors, found = self._seen(x)
        count = self.kinds.sum(0)
        spread = torch.stack([2 * self._from_mean(block, count).square().sum() / count.sum() for block in found])
        self.weights = (spread * (spread > LEAST).sum()).rsqrt().where(spread > LEAST, 0)
        self.features = self._weighted(found)
        self.units = inverse_root(vectors.square().mean((0, 1, 2)))
        self.vectors = vectors * self.units
        self.units = self.units * inverse_root(self.gram(torch.ones(()).to(x)).diagonal().mean())
        self.vectors = vectors * self.units
        self.width = len(x) * x.shape[1] * (4 * x.shape[1] + 9)

    @staticmethod
    def bytes(atoms: int, count: int) -> int:
        """Bytes that atoms of that many molecules and their comparison take, and matrices of all coordinates."""
        return 8 * count * atoms * (3 * 200 + 4 * count * atoms + 9 * count) + 720 * count * count

    def _from_mean(self, block: Tensor, count: Tensor) -> Tensor:
        """What surrounds an atom `[N P, F]`, less the mean over atoms of its element."""
        mean = self.kinds.mT @ block / count[:, None]
        return (block - self.kinds @ mean) * self.kinds.sum(1, keepdim=True)

    def _seen(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Elements `[N P, E]`, vectors `[N, P, 3, b]` and surroundings `[N P, F]` of all atoms."""
        molecules, real = Molecules(x, self.elements, self.origin), (x[..., :1] > 0).to(x)
        pairs, r = molecules.pairs[..., None], molecules.positions
        lengths = smeared(molecules.lengths.log(), LENGTHS) * pairs / molecules.lengths[..., None]
        whole = molecules.by_pair(lengths)[:, None].expand(-1, x.shape[1], -1)  # or charges see pairs with them only
        near = torch.cat([molecules.around(lengths), whole], -1)
        right, back, above = (molecules.around(smeared(step, ALONG) * pairs) for step in molecules.between.unbind(-1))
        across = torch.cat([right, back], -1)
        found = (near, molecules.handed, above, across, smeared(r, ALONG).flatten(2))[: SEEN[self.name]]
        r = (r - (r * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)) * real
        axes = torch.eye(3).to(x) * real[..., None]
        vectors = axes
        if self.name == "E3":
            vectors = r[..., None]
        elif self.name == "SE3":
            inner, outer = molecules.neighbours.sum(2).unbind(2)
            vectors = torch.stack([r, inner.cross(outer, dim=-1)], -1)
        elif self.name == "T-SO2":
            across, axis = r * torch.tensor([1.0, 1.0, 0.0]).to(x), axes[..., 2]
            vectors = torch.stack([across, axis.cross(across, dim=-1), axis], -1)
        return molecules.kinds.flatten(0, 1), vectors, [block.flatten(0, 1) for block in found]

    def _weighted(self, blocks: list[Tensor]) -> Tensor:
        return torch.cat([weight * block for weight, block in zip(self.weights, blocks, strict=True)], -1)

    def compared(self, new: Tensor) -> tuple[Tensor, ...]:
        """New molecules `[M, P, 4]`: distances to atoms of the run, to their own, whether alike, and vectors."""
        elements_of(new, self.elements)
        kinds, vectors, found = self._seen(new)
        features, atoms = self._weighted(found), new.shape[1]
        own, own_kinds = features.unflatten(0, (-1, atoms)), kinds.unflatten(0, (-1, atoms))
        there = squared(features, self.features), kinds @ self.kinds.mT
        return *there, squared(own, own), own_kinds @ own_kinds.mT, vectors * self.units

    def cross(self, compared: tuple[Tensor, ...], lengthscale: Tensor) -> tuple[Tensor, Tensor]:
        """Correlations `[3M, 3N]` with the molecules of the run, and of new ones with themselves `[M, 3, 3]`."""
        squares, same, own_squares, own_same, vectors = compared
        within = rbf(own_squares, lengthscale) * own_same
        own = torch.einsum("mpxb,mpq,mqyb->mxy", vectors, within, vectors)
        return self._summed(rbf(squares, lengthscale) * same, vectors), own

    def _summed(self, alike: Tensor, vectors: Tensor) -> Tensor:
        """Sum over the atoms `[M P, N P]` of two molecules each, with their vectors: `[3M, 3N]`."""
        (m, p), (n, q) = vectors.shape[:2], self.vectors.shape[:2]
        charged = torch.einsum("anq,nqyb->anyb", alike.reshape(m * p, n, q), self.vectors)
        return torch.einsum("mpxb,mpnyb->mxny", vectors, charged.unflatten(0, (m, p))).reshape(3 * m, 3 * n)

    @cached_property
    def squares(self) -> Tensor:
        """Squared distances `[N P, N P]` of what surrounds atoms."""
        return squared(self.features, self.features).fill_diagonal_(0)

    def gram(self, lengthscale: Tensor) -> Tensor:
        """Gram matrix `[3N, 3N]`, differentiable in the lengthscale."""
        return self._summed(rbf(self.squares, lengthscale) * (self.kinds @ self.kinds.mT), self.vectors)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of rows `[..., A, F]` and `[..., B, F]`."""
    lengths, others = (rows.square().sum(-1) for rows in (a, b))
    return (lengths[..., None] + others[..., None, :] - 2 * a @ b.mT).clamp_min(0)


def inverse_root(squares: Tensor) -> Tensor:
    """What to multiply by for a mean square of one; 0 for what is rounding only."""
    return squares.rsqrt().where(squares > LEAST, 0)


def rbf(squares: Tensor, lengthscale: Tensor) -> Tensor:
    """Correlations at squared distances."""
    return (squares * (-0.5 / lengthscale.square())).exp()


class VectorProcess(GaussianProcess):
    """Noisy vectors `[N, 3]` whose function has a Gram matrix `[3N, 3N]`; None for noise alone."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log evidence of vectors, nats."""
        return super().log_prob(value.reshape(-1, 1))

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw vectors `[*sample_shape, N, 3]`."""
        if self.gram is None:
            return super().sample(sample_shape)
        eps = torch.randn(*sample_shape, len(self.gram), 1, dtype=self.gram.dtype, device=self.gram.device)
        return (self._cholesky @ eps).reshape(self._extended_shape(sample_shape))

    def leave_one_out(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean `[N, 3]` and covariance `[N, 3, 3]` of each vector given all others."""
        if self.gram is None:
            mean, variance = super().leave_one_out(value)
            return mean, variance[:, None, None] * torch.eye(3).to(value)
        precision = torch.cholesky_inverse(self._cholesky)
        blocks = precision.reshape(len(value), 3, len(value), 3).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(blocks))
        off = covariance @ (precision @ value.reshape(-1, 1)).reshape(-1, 3, 1)
        return value - off[..., 0], covariance

    def conditioned(self, value: Tensor, cross: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Predict mean `[M, 3]` and covariance `[M, 3, 3]`, noise included, of new vectors."""
        half = torch.linalg.solve_triangular(self._cholesky, cross.mT, upper=False) * self.signal
        white = torch.linalg.solve_triangular(self._cholesky, value.reshape(-1, 1), upper=False)
        known = half.reshape(-1, len(prior), 3)
        left = self.signal * prior - torch.einsum("imx,imy->mxy", known, known)
        return (half.mT @ white).reshape(-1, 3), left + self.noise * torch.eye(3).to(prior)
