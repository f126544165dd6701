r"""Molecules: which motions of space leave their energy alone?

What is at stake: an energy belongs to a molecule and not to its pose, unless there is a field, a wall or something
handed around.  Each hypothesis is a subgroup of the motions of space, E(3), and a Gaussian process on what is
invariant under it (`pyro_invariance.molecular`): sums over clusters of atoms of the same kind for all.  A subgroup has
all invariants of the larger groups and some more, so that hypotheses differ in what they may look at only.

Generative process, for energies :math:`y_n` of unit variance (`pyro_invariance.processes`):

    lengthscale ~ LogNormal(0, 1)             in units of the mean distance between two molecules
    variance    ~ LogNormal(0, 1.5)
    noise       ~ LogNormal(log 0.01, 2)      variance above a floor of 1e-4
    f           ~ GP(0, variance * RBF(lengthscale)) on the invariants of the subgroup
    y_n         ~ Normal(f(x_n), sqrt(1e-4 + noise))

One base and a chain of subgroups, each named for what it adds: **E3** has composition, distances and angles; **SE3**,
which knows left from right, triple products as well; **T-SO2** (shifts, turns about z) differences of height; **T**
differences across; **trivial** the places themselves.  To refuse E3 is to say that mirror images differ, to refuse SE3
that z is a direction of its own, and so on.

Limitations: Gaussian noise of one variance, at least 1 % of the spread of the energies; mirrors are those of all space,
so that a field refuses them too; histograms over pairs and triples do not tell all molecules apart; z is the one axis;
errors of smooth energies are about two thirds of what is predicted; exact inference, 2,000 molecules.

References: [huo2022unified], [villar2021scalars], [bartok2013representing], [rupp2012fast].
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.molecular import BLOCKS, MoleculeKernel, Molecules
from pyro_invariance.numerics import float64
from pyro_invariance.orbit_process import hypothesis, model, predict
from pyro_invariance.results import Selection
from pyro_invariance.typing import BadInput, nearest
from pyro_invariance.zoo import Card, Hypothesis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CARD", "PICTURES", "PLANTED", "data", "energies", "hypotheses", "model", "predict", "term"]

CHAIN = ("T", "T-SO2", "SE3", "E3")  # each contains those before it
ELECTRONEGATIVITY = {1: 2.20, 6: 2.55, 7: 3.04, 8: 3.44, 9: 3.98, 16: 2.58, 17: 3.16}  # Pauling's
RADIUS = {1: 0.31, 6: 0.76, 8: 0.66}  # angstrom
DEPTH, STEEPNESS, BEND = 80.0, 1.5, 30.0  # kcal/mol, 1 / angstrom, kcal/mol
BREAK, NOISE = 0.5, 0.02  # shares of the spread of the energies

CARD = Card(
    name="molecules",
    title="Energies of molecules under subgroups of E(3)",
    task="regression of a number per molecule, 2,000 of them exactly",
    kind="points",
    hypotheses=("null", "trivial", *CHAIN),
    symmetries={
        "T": "shifts",
        "T-SO2": "turns about z, and shifts",
        "SE3": "any turn, and shifts",
        "E3": "mirrors, any turn, and shifts",
    },
    data=("any .npz of molecules [N, P, 4] and kind points", "molecules-...: data(planted) of this file"),
    sites={"lengthscale": "[]", "variance": "[]", "noise": "[]"},
    evidence=("lower (SVI over hyperparameters, f exact)", "upper (type-II maximum)"),
    references=("huo2022unified", "villar2021scalars", "bartok2013representing", "rupp2012fast"),
    licence="simulated: none needed; QM7, which the tests read where it is found: MIT as redistributed",
    limitations=(
        "noise of at least 1 % of the spread of the energies",
        "a field refuses all mirrors, those that leave it alone as well",
        "histograms of pairs and triples do not tell all molecules apart",
        "errors of smooth energies are about two thirds of what is predicted",
    ),
)


def hypotheses(data: Dataset, scale: float = 1.0) -> list[Hypothesis]:
    """All hypotheses for molecules `[N, P, 4]`: nuclear charge (0 where there is no atom), position in angstrom."""
    if data.kind != "points":
        raise BadInput(f"data: {data.name!r} holds {data.kind}; molecules takes points [N, P, 4], charge and position")
    if data.x.shape[-1] != 4:
        raise BadInput(f"x_train: got points of {data.x.shape[-1]} numbers; atoms have 4, nuclear charge and position")
    charge = data.x[..., 0]
    if bool(wrong := charge[(charge < 0) | (charge != charge.round())].tolist()):
        raise BadInput(f"x_train: got the nuclear charge {wrong[0]:g}; integers are accepted, 0 where there is no atom")
    if not bool((charge > 0).any(1).all()):
        raise BadInput("x_train: got a molecule without atoms; one atom or more has a positive nuclear charge")
    elements = len(charge[charge > 0].unique())

    def on(name: str, kind: str, blocks: int) -> Hypothesis:
        contains = CHAIN[: CHAIN.index(name) + 1] if name in CHAIN else ()
        kernel, table = partial(MoleculeKernel, blocks), partial(MoleculeKernel.bytes, blocks, elements)
        moved = partial(_moved, contains=contains)
        made = hypothesis(name, kind, "atoms", kernel, scale=scale, table=table, contains=contains, moved=moved)
        return replace(made, sparse=False)  # inducing values are of images

    null = hypothesis("null", "null", "none", None, scale=scale, moved=partial(_moved, contains=()))
    groups = (on(name, "group", len(BLOCKS) - 1 - i) for i, name in enumerate(CHAIN))
    return [null, on("trivial", "none", len(BLOCKS)), *groups]


def _moved(x: Tensor, extents: Mapping[str, float], *, contains: tuple[str, ...]) -> dict[str, Tensor]:
    """Molecules under elements of each subgroup that a hypothesis contains."""
    c, s = 0.28, 0.96
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]).to(x)
    elements = {
        "T": ("1 angstrom up and aside", torch.eye(3).to(x), 1.0),
        "T-SO2": ("74 degrees about z", turn, 0.0),
        "SE3": ("74 degrees about x", turn.roll((1, 1), (0, 1)), 0.0),
        "E3": ("mirrored", torch.diag(torch.tensor([-1.0, 1.0, 1.0])).to(x), 0.0),
    }
    moved = {}
    for caption, matrix, shift in (elements[name] for name in contains):
        positions = (x[..., 1:] @ matrix.mT + shift) * (x[..., :1] > 0)
        moved[caption] = torch.cat([x[..., :1], positions], -1)
    return moved


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
def data(planted: str = "E3", seed: int = 0, size: int = 500, test: int = 200) -> Dataset:
    """Simulated molecules of 4 to 8 atoms of H, C and O in any pose, and their energies with a term that breaks them.

    Parameters
    ----------
    planted : str
        What is left: `none` (in a trap), `T` (in a slanted field), `T-SO2` (in a field along z), `SE3` (with
        handedness), `E3`.
    seed, size, test : int
        Seed, training molecules, test molecules.
    """
    if planted not in PLANTED:
        raise BadInput(f"planted: got {planted!r}; {nearest(planted, PLANTED)}")
    rng = np.random.default_rng(seed)
    x = np.stack([_molecule(rng) for _ in range(size + test)])
    y = energies(torch.as_tensor(x)).numpy()
    spread, breaks = y.std(), PLANTED[planted]
    if breaks is not None:
        broken = term(breaks, torch.as_tensor(x)).numpy()
        y = y + BREAK * spread * (broken - broken.mean()) / broken.std()
    y = y + NOISE * spread * rng.standard_normal(len(y))
    return from_arrays(f"molecules-{planted}", x[:size], y[:size], x[size:], y[size:], kind="points")


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


def residuals(selection: Selection) -> "Axes":
    """Dots are test molecules: nearer to zero is better; bars are two standard deviations and should reach zero."""
    import matplotlib.pyplot as plt

    data = selection.data
    unit, truth = float(data.unit[1]), data.y_test.numpy()
    axes = plt.subplots(figsize=(6, 4), layout="constrained")[1]
    for fit in sorted((f for f in selection.fits if f.kind != "null"), key=lambda f: f is selection.best):
        error = unit * (fit.test_mean - data.encode(data.y_test))[:, 0].numpy()
        label = f"{fit.label}, mean {np.abs(error).mean():.3g}" if len(error) else fit.label
        if fit is selection.best:
            sd = unit * fit.test_variance.sqrt().numpy()
            axes.errorbar(truth, error, 2 * sd, fmt=".", color="k", elinewidth=0.5, label=label)
        else:
            axes.plot(truth, error, ".", alpha=0.4, markersize=3, label=label)
    axes.axhline(0, color="k", linewidth=0.5)
    axes.set(xlabel="energy", ylabel="predicted minus true", title=data.name)
    axes.legend(fontsize=8)
    return axes


PICTURES = {residuals: "How far off are predicted energies?"}
