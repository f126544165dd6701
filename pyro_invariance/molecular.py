r"""Invariants of molecules under subgroups of E(3), and the kernel that compares them.

A molecule is a set of atoms, nuclear charges `Z_i` at positions `r_i`.  Its features are histograms of an invariant of
its clusters of atoms, one for each choice of elements [huo2022unified]; they are sums over clusters, which do not
depend on the order of the atoms.  What is invariant under a group is so under its subgroups: each keeps all the blocks
of the larger ones, and has one more.

============  ==============================================================  =================
block         histogram of                                                    invariant under
============  ==============================================================  =================
composition   nothing: atoms of each element                                  E(3)
distances     :math:`\log |r_{ij}|`, weighted by :math:`1 / |r_{ij}|`         E(3)
angles        angle of :math:`r_{ij}, r_{ik}`, weighted to near ones          E(3)
chirality     :math:`v_a \cdot (v_b \times v_c)`, vectors to near neighbours  SE(3)
heights       :math:`z_j - z_i`                                               T and SO(2) about z
steps         :math:`x_j - x_i`, :math:`y_j - y_i`                            T
places        :math:`x_i, y_i, z_i`                                           nothing
============  ==============================================================  =================
"""

import math
from collections.abc import Callable, Collection, Mapping
from functools import cached_property

import torch
from torch import Tensor

from pyro_invariance.typing import BadInput

BLOCKS = ("composition", "distances", "angles", "chirality", "heights", "steps", "places")  # larger groups first
DISTANCES = torch.linspace(math.log(0.7), math.log(10.0), 40, dtype=torch.float64)  # log angstrom
ANGLES = torch.linspace(0.0, math.pi, 10, dtype=torch.float64)
ALONG = torch.linspace(-7.5, 7.5, 21, dtype=torch.float64)  # an axis, angstrom: steps of half a bond
NEAR = 2.0  # angstrom: neighbours that angles are between
SHELLS = (1.5, 3.0)  # angstrom: neighbours that vectors lead to
CLOSEST = 1e-3  # angstrom, that atoms have between them at least: directions are of no length otherwise
LEAST = 1e-12  # mean squared distance that is more than rounding
AT_ONCE = 2**23  # numbers
CHAIN = ("T", "T-SO2", "SE3", "E3")  # each contains those before it


def smeared(values: Tensor, grid: Tensor) -> Tensor:
    """Histogram `[*, G]` of each value `[*]`: Gaussian bumps at the points of a grid, as wide as its steps."""
    steps = (values[..., None] - grid.to(values)) / (grid[1] - grid[0]).to(values)
    return steps.square_().mul_(-0.5).exp_()


def elements_of(x: Tensor, known: Tensor | None = None, name: str = "x") -> Tensor:
    """Nuclear charges `[E]` that occur in molecules `[N, P, 4]`: charge (0 where there is no atom), position, angstrom.

    Raises
    ------
    BadInput
        If these, which have this name, are no molecules, have two atoms at one place, or hold an element that is not
        among those `known`.
    """
    if x.shape[-1] != 4:
        raise BadInput(f"{name}: got points of {x.shape[-1]} numbers; atoms have 4, nuclear charge and position")
    charge = x[..., 0]
    if bool(wrong := charge[(charge < 0) | (charge != charge.round())].tolist()):
        raise BadInput(f"{name}: got the nuclear charge {wrong[0]:g}; integers are accepted, 0 where there is no atom")
    if not bool((charge > 0).any(1).all()):
        raise BadInput(f"{name}: got a molecule without atoms; one atom or more has a positive nuclear charge")
    apart = torch.cdist(x[..., 1:], x[..., 1:], compute_mode="donot_use_mm_for_euclid_dist")
    pairs = (charge > 0)[:, :, None] & (charge > 0)[:, None] & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    if at := (pairs & (apart < CLOSEST)).flatten(1).any(1).nonzero().flatten().tolist():
        raise BadInput(
            f"{name}: got two atoms at one place in molecule {at[0]}; atoms are {CLOSEST} angstrom apart or more"
        )
    found = charge[charge > 0].unique()
    if known is not None and len(unknown := found[~torch.isin(found, known)]):
        got, of_run = (", ".join(f"{z:g}" for z in charges.tolist()) for charges in (unknown, known))
        raise BadInput(f"{name}: got nuclear charges {got}; the molecules of the run have {of_run}")
    return found


def elements_in(x_train: Tensor, x_test: Tensor) -> Tensor:
    """Nuclear charges `[E]` of training molecules.

    Raises
    ------
    BadInput
        If any are no molecules, or the test molecules hold another element: before anything is fitted.
    """
    elements = elements_of(x_train, name="x_train")
    elements_of(x_test, elements, "x_test")
    return elements


class Molecules:
    """Pairs of atoms of molecules `[B, P, 4]`, which blocks of features are made of, by elements `[E]`.

    Positions are relative to `origin`.
    """

    def __init__(self, x: Tensor, elements: Tensor, origin: Tensor) -> None:
        charge, self.positions = x[..., 0], x[..., 1:] - origin
        self.kinds = (charge[..., None] == elements).to(x)  # [B, P, E]
        real = (charge > 0).to(x)
        self.pairs = real[:, :, None] * real[:, None] * (1 - torch.eye(x.shape[1]).to(x))  # [B, P, P]
        self.between = self.positions[:, None] - self.positions[:, :, None]  # r_j - r_i
        self.lengths = self.between.norm(dim=-1) + (1 - self.pairs)  # 1 where there is no pair
        self.directions = self.between / self.lengths[..., None]
        self.unordered = torch.triu_indices(len(elements), len(elements))

    def around(self, seen: Tensor) -> Tensor:
        """Sum what each atom sees of others `[B, P, P, G]` over those of each element, `[B, P, E G]`."""
        return torch.einsum("bijg,bjc->bicg", seen, self.kinds).flatten(2)

    def by_pair(self, seen: Tensor) -> Tensor:
        """Sum what is seen of pairs of atoms `[B, P, P, G]` over those of each pair of elements."""
        once = torch.einsum("bia,bijg->bajg", self.kinds, seen)
        return torch.einsum("bajg,bjc->bacg", once, self.kinds)[:, *self.unordered].flatten(1)

    @property
    def composition(self) -> Tensor:
        """Atoms of each element."""
        return self.kinds.sum(1)

    @property
    def distances(self) -> Tensor:
        """Distances of each pair of elements; energies fall off with them."""
        return self.by_pair(smeared(self.lengths.log(), DISTANCES) * (self.pairs / self.lengths)[..., None])

    @property
    def angles(self) -> Tensor:
        """Angles at each element between neighbours of each pair of elements."""
        cosines = (self.directions @ self.directions.mT).clamp(-1, 1)  # [B, P, P, P]: at the first
        near = self.pairs * (-(self.lengths / NEAR).square()).exp()
        both = near[..., :, None] * near[..., None, :] * (1 - torch.eye(near.shape[1]).to(near))
        seen = smeared(cosines.acos(), ANGLES).mul_(both[..., None])
        once = torch.einsum("bijkg,bkc->bijcg", seen, self.kinds)
        twice = torch.einsum("bijcg,bja->biacg", once, self.kinds)[:, :, *self.unordered]
        return torch.einsum("bitg,bie->betg", twice, self.kinds).flatten(1)

    @property
    def neighbours(self) -> Tensor:
        """Mean vectors `[B, P, E, shells, 3]` from each atom to its neighbours, by their element and shell."""
        shells = [self.pairs * (-(self.lengths / shell).square()).exp() for shell in SHELLS]
        return torch.stack([torch.einsum("bij,bijx,bja->biax", w, self.directions, self.kinds) for w in shells], 3)

    @property
    def handed(self) -> Tensor:
        """Triple products `[B, P, T]` of the vectors from each atom to its neighbours."""
        vectors = self.neighbours.flatten(2, 3)
        first, second, third = torch.combinations(torch.arange(vectors.shape[2]), 3).T
        return (vectors[:, :, first].cross(vectors[:, :, second], dim=-1) * vectors[:, :, third]).sum(-1)

    @property
    def chirality(self) -> Tensor:
        """Triple products at each element."""
        return torch.einsum("bit,bie->bet", self.handed, self.kinds).flatten(1)

    def _along(self, axis: int) -> Tensor:
        return self.by_pair(smeared(self.between[..., axis], ALONG) * self.pairs[..., None])

    @property
    def heights(self) -> Tensor:
        """Differences of height of each pair of elements, signed where they differ."""
        return self._along(2)

    @property
    def steps(self) -> Tensor:
        """Differences across of each pair of elements."""
        return torch.cat([self._along(0), self._along(1)], 1)

    @property
    def places(self) -> Tensor:
        """Coordinates of the atoms of each element."""
        return torch.einsum("bixg,bie->bexg", smeared(self.positions, ALONG), self.kinds).flatten(1)


class FeatureKernel:
    r"""RBF kernel :math:`\exp(-|\phi - \phi'|^2 / 2 l^2)` on features `[N, F]`; `see` makes them of new molecules."""

    def __init__(self, features: Tensor, see: Callable[[Tensor], Tensor]) -> None:
        self.features, self.see, self.width = features, see, sum(features.shape)

    def compared(self, new: Tensor) -> Tensor:
        """Squared distances `[M, N]` of new molecules `[M, P, 4]`."""
        return self._squares(self.see(new))

    def _squares(self, features: Tensor) -> Tensor:
        lengths, own = features.square().sum(1, keepdim=True), self.features.square().sum(1)
        return torch.addmm(lengths + own, features, self.features.mT, alpha=-2).clamp_min_(0)

    def cross(self, compared: Tensor, lengthscale: Tensor) -> tuple[Tensor, Tensor]:
        """Correlations `[M, N]` with the molecules of the run, and of new ones with themselves `[M]`."""
        return (compared * (-0.5 / lengthscale.square())).exp(), compared.new_ones(len(compared))

    @cached_property
    def squares(self) -> Tensor:
        """Squared distances `[N, N]`."""
        return self._squares(self.features).fill_diagonal_(0)

    def gram(self, lengthscale: Tensor) -> Tensor:
        """Gram matrix `[N, N]`, differentiable in the lengthscale."""
        return (self.squares * (-0.5 / lengthscale.square())).exp()


class MoleculeKernel(FeatureKernel):
    r"""RBF kernel of molecules on the first of the `BLOCKS`, conditioned on `x` `[N, P, 4]`: charges and positions.

    .. math:: k(x, x') = \exp(-d^2 / 2 l^2), \quad
        d^2 = \frac1B \sum_b |\phi_b(x) - \phi_b(x')|^2 / \overline{|\phi_b - \phi_b'|^2}

    so that a lengthscale of 1 is the typical distance between two molecules, whatever is looked at.  Blocks in which
    all `x` agree are left out.

    Raises
    ------
    BadInput
        If there is nothing in which molecules differ; of new ones, if they hold an element that is not in `x`.
    """

    def __init__(self, blocks: int, x: Tensor) -> None:
        self.names, charge = BLOCKS[:blocks], x[..., 0]
        self.elements, self.origin = elements_of(x), x[charge > 0, 1:].mean(0)
        found = self._blocks(x)
        spread = torch.stack([2 * (block - block.mean(0)).square().sum() / len(x) for block in found])
        if not spread.max() > LEAST:
            raise BadInput(f"x_train: all {len(x)} molecules have the same {', '.join(self.names)}")
        self.weights = (spread * (spread > LEAST).sum()).rsqrt().where(spread > LEAST, 0)
        super().__init__(self._weighted(found), lambda new: self._weighted(self._blocks(new)))

    @staticmethod
    def bytes(blocks: int, elements: int, count: int) -> int:
        """Bytes that features of that many molecules of that many elements and their comparison take."""
        one = Molecules(torch.zeros(1, 1, 4), torch.arange(elements) + 1, torch.zeros(3))
        return 8 * count * (3 * sum(getattr(one, name).shape[1] for name in BLOCKS[:blocks]) + count)

    def _blocks(self, x: Tensor) -> list[Tensor]:
        elements_of(x, self.elements)
        parts = []
        for part in x.split(max(1, AT_ONCE // (x.shape[1] ** 3 * len(ANGLES)))):
            molecules = Molecules(part, self.elements, self.origin)
            parts.append([getattr(molecules, name) for name in self.names])
        return [torch.cat(block) for block in zip(*parts, strict=True)]

    def _weighted(self, blocks: list[Tensor]) -> Tensor:
        return torch.cat([weight * block for weight, block in zip(self.weights, blocks, strict=True)], 1)


def moved(x: Tensor, extents: Mapping[str, float], *, contains: Collection[str]) -> dict[str, Tensor]:
    """Molecules `[N, P, 4]` under an element of each subgroup that a hypothesis contains, by caption."""
    c, s = 0.28, 0.96
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]).to(x)
    elements = {
        "T": ("1 angstrom up and aside", torch.eye(3).to(x), 1.0),
        "T-SO2": ("74 degrees about z", turn, 0.0),
        "SE3": ("74 degrees about x", turn.roll((1, 1), (0, 1)), 0.0),
        "E3": ("mirrored", torch.diag(torch.tensor([-1.0, 1.0, 1.0])).to(x), 0.0),
    }
    moved = {}
    for caption, matrix, shift in (elements[name] for name in CHAIN if name in contains):
        positions = (x[..., 1:] @ matrix.mT + shift) * (x[..., :1] > 0)
        moved[caption] = torch.cat([x[..., :1], positions], -1)
    return moved
