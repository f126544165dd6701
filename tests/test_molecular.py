"""Invariants of molecules: against loops over their atoms, under the motions that they ignore and those they see."""

import math
from collections.abc import Iterator
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from pyro_invariance import molecular
from pyro_invariance.molecular import BLOCKS, MoleculeKernel, Molecules
from pyro_invariance.typing import BadInput

KEPT = {"E3": 3, "SE3": 4, "T-SO2": 5, "T": 6, "none": 7}  # blocks that are invariant under each subgroup
ELEMENTS = (1, 6, 8)


def molecules(count: int = 3, atoms: int = 5, seed: int = 0) -> Tensor:
    """Atoms at random about the origin, the last place of the first molecule empty; every element in every one."""
    rng = np.random.default_rng(seed)
    charge = rng.permuted(np.tile([1, 6, 8, 1, 6][:atoms], (count, 1)), axis=1).astype(float)
    x = np.concatenate([charge[..., None], 1.3 * rng.standard_normal((count, atoms, 3))], -1)
    empty = np.zeros((count, 1, 4))
    return torch.as_tensor(np.concatenate([x, empty], 1))


def blocks(x: Tensor) -> dict[str, Tensor]:
    found = Molecules(x, torch.tensor(ELEMENTS), torch.zeros(3))
    return {name: getattr(found, name) for name in BLOCKS}


def motion(group: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Matrix and shift of a random element of a subgroup; of `none`, the element that does nothing."""
    rng = np.random.default_rng(seed)
    angle, anything = rng.uniform(0.5, 5), Rotation.random(random_state=seed).as_matrix()
    matrix = {"E3": -anything, "SE3": anything, "T-SO2": Rotation.from_euler("z", angle).as_matrix()}
    shift = np.zeros(3) if group == "none" else rng.standard_normal(3)
    return torch.as_tensor(matrix.get(group, np.eye(3))), torch.as_tensor(shift)


def moved(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    return torch.cat([x[..., :1], (x[..., 1:] @ matrix.mT + shift) * (x[..., :1] > 0)], -1)


def bumps(value: float, grid: Tensor) -> np.ndarray:
    step = float(grid[1] - grid[0])
    return np.array([math.exp(-0.5 * ((value - g) / step) ** 2) for g in grid.tolist()])


def by_loops(molecule: Tensor) -> dict[str, np.ndarray]:
    """All blocks of one molecule, atom by atom, from their definitions."""
    atoms = [(ELEMENTS.index(int(z)), np.array(r)) for z, *r in molecule.tolist() if z > 0]
    count = len(ELEMENTS)
    places = {pair: i for i, pair in enumerate((a, b) for a in range(count) for b in range(a, count))}
    along, shells = molecular.ALONG, molecular.SHELLS
    triples = list(combinations(range(count * len(shells)), 3))
    found = {
        "composition": np.zeros(count),
        "distances": np.zeros((len(places), len(molecular.DISTANCES))),
        "angles": np.zeros((count, len(places), len(molecular.ANGLES))),
        "chirality": np.zeros((count, len(triples))),
        "differences": np.zeros((3, len(places), len(along))),
        "places": np.zeros((count, 3, len(along))),
    }
    for i, (a, r) in enumerate(atoms):
        found["composition"][a] += 1
        for axis in range(3):
            found["places"][a, axis] += bumps(r[axis], along)
        vectors = np.zeros((count * len(shells), 3))
        for j, (b, s) in enumerate(atoms):
            if i == j:
                continue
            d = s - r
            length = math.dist(s, r)
            for n, shell in enumerate(shells):
                vectors[b * len(shells) + n] += math.exp(-((length / shell) ** 2)) * d / length
            if (a, b) in places:
                found["distances"][places[a, b]] += bumps(math.log(length), molecular.DISTANCES) / length
                for axis in range(3):
                    found["differences"][axis, places[a, b]] += bumps(d[axis], along)
        found["chirality"][a] += [np.linalg.det(vectors[list(t)]) for t in triples]
        others = [atom for j, atom in enumerate(atoms) if j != i]
        for (b, s), (c, t) in permutations(others, 2):
            if (b, c) in places:
                u, v = s - r, t - r
                p, q = np.linalg.norm(u), np.linalg.norm(v)
                near = math.exp(-((p / molecular.NEAR) ** 2) - (q / molecular.NEAR) ** 2)
                found["angles"][a, places[b, c]] += near * bumps(math.acos(u @ v / p / q), molecular.ANGLES)
    x, y, z = found.pop("differences")
    found |= {"heights": z, "steps": np.concatenate([x.ravel(), y.ravel()])}
    return {name: values.ravel() for name, values in found.items()}


def test_blocks_are_sums_over_atoms():
    x = molecules()
    found = blocks(x)
    for i, molecule in enumerate(x):
        for name, expected in by_loops(molecule).items():
            np.testing.assert_allclose(found[name][i].numpy(), expected, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("group", KEPT)
def test_each_subgroup_keeps_its_blocks_and_no_other(group):
    x = molecules()
    here, there = blocks(x), blocks(moved(x, *motion(group)))
    changes = {name: float((there[name] - here[name]).abs().max()) for name in BLOCKS}
    assert {name for name in BLOCKS if changes[name] < 1e-8} == set(BLOCKS[: KEPT[group]])
    assert min((changes[name] for name in BLOCKS[KEPT[group] :]), default=1.0) > 0.01


def test_mirror_changes_the_sign_of_chirality():
    x = molecules()
    torch.testing.assert_close(blocks(moved(x, *motion("E3")))["chirality"], -blocks(x)["chirality"])


def test_order_of_atoms_and_empty_places_do_not_matter():
    x = molecules()
    shuffled = torch.cat([x, torch.zeros(3, 2, 4)], 1)[:, [3, 7, 0, 5, 2, 4, 1, 6]]
    for name, block in blocks(x).items():
        torch.testing.assert_close(blocks(shuffled)[name], block, msg=name)


@pytest.mark.parametrize("kept", KEPT.values())
def test_kernel_is_that_of_the_scaled_blocks(kept):
    x, new = molecules(6), molecules(4, seed=1)
    kernel = MoleculeKernel(kept, x)
    origin = x[x[..., 0] > 0, 1:].mean(0)
    shift = [moved(a, torch.eye(3), -origin) for a in (x, new)]
    known, found = (np.stack([np.concatenate(list(rows)) for rows in stacked(a, kept)]) for a in shift)
    widths = [len(block) for block in next(stacked(shift[0], kept))]
    total, blocks_that_differ = np.zeros((4, 6)), 0
    for end, width in zip(np.cumsum(widths), widths, strict=True):
        a, b = found[:, end - width : end], known[:, end - width : end]
        mean = np.mean([[np.sum((r - s) ** 2) for r in b] for s in b])
        if mean > 1e-12:
            total += np.array([[np.sum((r - s) ** 2) for s in b] for r in a]) / mean
            blocks_that_differ += 1
    lengthscale = torch.tensor(0.7)
    expected = np.exp(-total / blocks_that_differ / 2 / 0.7**2)
    cross, prior = kernel.cross(kernel.compared(new), lengthscale)
    np.testing.assert_allclose(cross.numpy(), expected, rtol=1e-9)
    assert bool((prior == 1).all())
    again, _ = kernel.cross(kernel.compared(x), lengthscale)
    gram = kernel.gram(lengthscale)
    torch.testing.assert_close(gram, again)
    assert bool((gram.diagonal() == 1).all())
    assert float(torch.linalg.eigvalsh(gram)[0]) > 0


def stacked(x: Tensor, kept: int) -> Iterator[list[np.ndarray]]:
    for molecule in x:
        found = by_loops(molecule)
        yield [found[name] for name in BLOCKS[:kept]]


def test_gram_is_differentiable_in_the_lengthscale():
    kernel = MoleculeKernel(5, molecules(4))
    assert torch.autograd.gradcheck(kernel.gram, torch.tensor(0.8, requires_grad=True))


def test_far_away_frames_are_as_good_as_near_ones():
    x = molecules(6)
    far = moved(x, torch.eye(3), torch.tensor([300.0, -50.0, 7.0]))
    one = torch.tensor(1.0)
    torch.testing.assert_close(MoleculeKernel(7, far).gram(one), MoleculeKernel(7, x).gram(one))


def test_blocks_in_which_all_agree_count_for_nothing():
    x = molecules(1).repeat(5, 1, 1)
    x = torch.stack([moved(a, *motion("T", seed)) for seed, a in enumerate(x)])
    kernel = MoleculeKernel(7, x)
    assert kernel.weights.gt(0).tolist() == [False] * 6 + [True]
    with pytest.raises(BadInput, match="all 5 molecules have the same composition, distances, angles"):
        MoleculeKernel(3, x)


def test_new_elements_are_refused():
    kernel = MoleculeKernel(3, molecules())
    new = molecules()
    new[0, 0, 0], new[1, 0, 0] = 7, 16
    with pytest.raises(BadInput, match="got nuclear charges 7, 16; the molecules of the run have 1, 6, 8"):
        kernel.compared(new)


@pytest.mark.parametrize("elements", [1, 2, 5])
def test_bytes_hold_the_features(elements):
    x = molecules(6)
    x[..., 0] = torch.where(x[..., 0] > 0, 1.0 + torch.randint(elements, x.shape[:2]), 0)
    x[0, :, 0] = 1.0 + torch.arange(6) % elements
    kernel = MoleculeKernel(7, x)
    features = kernel.features.numel() * 8
    assert features < MoleculeKernel.bytes(7, elements, 6) < 10 * features
