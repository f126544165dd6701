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
so that a field refuses them too; histograms over pairs and triples do not tell all molecules apart, nor hands
of molecules of one element (E3 and SE3 are the same there); z is the one axis; errors of smooth energies are smaller
than predicted, two thirds of it from 60 molecules and 0.9 from 400; exact inference, 2,000 molecules.

References: [huo2022unified], [villar2021scalars], [bartok2013representing], [rupp2012fast].
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.force_field import PLANTED, energies, simulated, term
from pyro_invariance.molecular import BLOCKS, CHAIN, MoleculeKernel, elements_in, moved
from pyro_invariance.orbit_process import hypothesis, model, predict
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Card, Hypothesis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_invariance.results import Selection

__all__ = ["CARD", "PICTURES", "PLANTED", "data", "energies", "hypotheses", "model", "predict", "term"]

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
    data=("qm7", "any .npz of molecules [N, P, 4] and kind points", "molecules-...: data(planted) of this file"),
    sites={"lengthscale": "[]", "variance": "[]", "noise": "[]"},
    evidence=("lower (SVI over hyperparameters, f exact)", "upper (type-II maximum)"),
    references=("huo2022unified", "villar2021scalars", "bartok2013representing", "rupp2012fast"),
    licence="simulated: none needed; qm7: free with citation [rupp2012fast, blum2009million]",
    limitations=(
        "noise of at least 1 % of the spread of the energies",
        "a field refuses all mirrors, those that leave it alone as well",
        "histograms of pairs and triples do not tell all molecules apart",
        "hands of molecules of one element are not told apart: E3 and SE3 are the same there",
        "errors of smooth energies are smaller than predicted, two thirds of it from 60 molecules and 0.9 from 400",
    ),
)


def hypotheses(data: Dataset, scale: float = 1.0) -> list[Hypothesis]:
    """All hypotheses for molecules `[N, P, 4]`: nuclear charge (0 where there is no atom), position in angstrom."""
    if data.kind != "points":
        raise BadInput(f"data: {data.name!r} holds {data.kind}; molecules takes points [N, P, 4], charge and position")
    data.require_values()
    elements = len(elements_in(data.x, data.x_test))

    def on(name: str, kind: str, blocks: int) -> Hypothesis:
        contains = CHAIN[: CHAIN.index(name) + 1] if name in CHAIN else ()
        kernel, table = partial(MoleculeKernel, blocks), partial(MoleculeKernel.bytes, blocks, elements)
        mover = partial(moved, contains=contains)
        made = hypothesis(name, kind, "atoms", kernel, scale=scale, table=table, contains=contains, moved=mover)
        return replace(made, sparse=False)  # inducing values are of images

    null = hypothesis("null", "null", "none", None, scale=scale, moved=partial(moved, contains=()))
    groups = (on(name, "group", len(BLOCKS) - 1 - i) for i, name in enumerate(CHAIN))
    return [null, on("trivial", "none", len(BLOCKS)), *groups]


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
    x, y = simulated(planted, seed, size + test)
    return from_arrays(f"molecules-{planted}", x[:size], y[:size], x[size:], y[size:], kind="points")


def residuals(selection: "Selection") -> "Axes":
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
