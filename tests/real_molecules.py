"""Molecules of QM7, from the folder that PYRO_INVARIANCE_DATA names."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

QM7 = Path(os.environ.get("PYRO_INVARIANCE_DATA", "")) / "qm7_positions.npz"  # read before tests unset it


def qm7(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Molecules `[N, P, 4]` in random frames and in random order, and their atomisation energies, kcal/mol."""
    if not QM7.is_file():
        pytest.skip("PYRO_INVARIANCE_DATA names no folder with qm7_positions.npz")
    with np.load(QM7) as arrays:
        order = np.random.default_rng(seed).permutation(len(arrays["n_atoms"]))[:count]
        charge, positions = arrays["atomic_numbers"][order].astype(float)[..., None], arrays["positions"][order]
        energy = arrays["atomization_energy_pbe0"][order].astype(float)
    rng, real = np.random.default_rng(seed + 1), charge > 0
    turn = stats.special_ortho_group(3, seed=rng).rvs(count)
    centred = positions - (positions * real).sum(1, keepdims=True) / real.sum(1, keepdims=True)
    placed = centred @ turn.transpose(0, 2, 1) + rng.standard_normal((count, 1, 3))
    return np.concatenate([charge, placed * real], -1), energy
