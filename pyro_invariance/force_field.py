"""Random molecules with energies of a toy force field, and terms that break each subgroup of the motions of space."""

import numpy as np
import torch
from torch import Tensor

from pyro_invariance.molecular import Molecules
from pyro_invariance.numerics import float64
from pyro_invariance.typing import BadInput, nearest

ELECTRONEGATIVITY = {1: 2.20, 6: 2.55, 7: 3.04, 8: 3.44, 9: 3.98, 16: 2.58, 17: 3.16}  # Pauling's
RADIUS = {1: 0.31, 6: 0.76, 8: 0.66}  # angstrom
DEPTH, STEEPNESS, BEND = 80.0, 1.5, 30.0  # kcal/mol, 1 / angstrom, kcal/mol
BREAK, NOISE = 0.5, 0.02  # shares of the spread of the energies
PLANTED = {"none": "trap", "T": "slanted field", "T-SO2": "field", "SE3": "handedness", "E3": None}


def term(name: str, x: Tensor) -> Tensor:
    r"""Energy `[N]` of something that breaks a symmetry, in a unit of its own; `q` is the electronegativity above H's.

    `trap` :math:`\sum_i q_i |r_i|^2`; `field` :math:`\sum_i q_i (z_i - \bar z)`, and `slanted field` along (1, 1, 1);
    `handedness` :math:`\sum_i u_i \cdot (v_i \times w_i)`, vectors from `i` to its near neighbours weighted by q, to
    hydrogens, and to far neighbours that are heavy.
    """
    charge, positions = x[..., 0], x[..., 1:]
    elements = torch.tensor(list(ELECTRONEGATIVITY)).to(x)
    molecules = Molecules(x, elements, torch.zeros(3).to(x))
    q = molecules.kinds @ (torch.tensor(list(ELECTRONEGATIVITY.values())).to(x) - ELECTRONEGATIVITY[1])
    if name == "trap":
        return (q * positions.square().sum(-1)).sum(1)
    if name == "handedness":
        near = molecules.pairs * (-molecules.lengths).exp()
        far = molecules.pairs * (-molecules.lengths / 3).exp()
        weights = (near * q[:, None], near * (charge == 1)[:, None], far * (charge > 1)[:, None])
        u, v, w = ((weight[..., None] * molecules.directions).sum(2) for weight in weights)
        return (u * v.cross(w, dim=-1)).sum((1, 2))
    real = (charge > 0).to(x)
    along = positions[..., 2] if name == "field" else positions.sum(-1) / 3**0.5
    middle = (along * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
    return (q * (along - middle) * real).sum(1)


def energies(x: Tensor) -> Tensor:
    """Energies `[N]` of bonds between all pairs of atoms (Morse) and of bends between near neighbours, kcal/mol."""
    molecules = Molecules(x, torch.tensor(list(RADIUS)).to(x), torch.zeros(3).to(x))
    radius = molecules.kinds @ torch.tensor(list(RADIUS.values())).to(x)
    stretch = STEEPNESS * (molecules.lengths - radius[:, :, None] - radius[:, None])
    bonds = DEPTH / 2 * (((1 - (-stretch).exp()).square() - 1) * molecules.pairs).sum((1, 2))
    towards = (molecules.pairs * (-molecules.lengths).exp())[..., None] * molecules.directions
    return bonds + BEND * towards.sum(2).square().sum((1, 2))


@float64()
def simulated(planted: str, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Molecules `[N, P, 4]` of 4 to 8 atoms of H, C and O in any pose, and energies `[N]` with a term of `PLANTED`."""
    if planted not in PLANTED:
        raise BadInput(f"planted: got {planted!r}; {nearest(planted, PLANTED)}")
    rng = np.random.default_rng(seed)
    x = np.stack([_molecule(rng) for _ in range(count)])
    y = energies(torch.as_tensor(x)).numpy()
    spread, breaks = y.std(), PLANTED[planted]
    if breaks is not None:
        broken = term(breaks, torch.as_tensor(x)).numpy()
        y = y + BREAK * spread * (broken - broken.mean()) / broken.std()
    y = y + NOISE * spread * rng.standard_normal(len(y))
    return x, y


def _molecule(rng: np.random.Generator, most: int = 8) -> np.ndarray:
    """One molecule `[most, 4]`, atom by atom, each next to another one; about 1 angstrom from the origin."""
    count, found = rng.integers(4, most + 1), rng.standard_normal((1, 3))
    while len(found) < count:
        step = rng.standard_normal(3)
        place = found[rng.integers(len(found))] + rng.uniform(1.0, 1.6) * step / np.linalg.norm(step)
        if np.linalg.norm(found - place, axis=1).min() > 0.9:
            found = np.concatenate([found, place[None]])
    x = np.zeros((most, 4))
    x[:count] = np.concatenate([rng.choice(list(RADIUS), (count, 1)), found], 1)
    return x
