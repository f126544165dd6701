r"""Dipoles of molecules: vectors that turn along with what they belong to.

What is at stake: a dipole turns, mirrors and stays as its molecule turns, mirrors and shifts, unless there is a field,
a wall or something handed around.  A hypothesis is a subgroup of the motions of space, E(3), and says of it that
:math:`\mu(g x) = g \mu(x)` and not that nothing happens.

Generative process, for dipoles :math:`y_n \in R^3` of mean square one, in units of the mean distance between two
surroundings of atoms (`orbit_process.model` has the same hyperparameters):

    lengthscale ~ LogNormal(0, 1)
    variance    ~ LogNormal(0, 1.5)                       of a coordinate on average, at lengthscale 1
    noise       ~ LogNormal(log 0.01, 2)                  variance above a floor of 1e-4
    q_b         ~ GP(0, variance * RBF(lengthscale))      on what surrounds an atom, for each element on its own
    mu(x)       = sum_i sum_b q_b(s_i) v_ib
    y_n         ~ Normal(mu(x_n), sqrt(1e-4 + noise))

The subgroup says what of the surroundings `s_i` of an atom its charges may depend on (invariants), and which vectors
`v_ib` they multiply (covariants); charges are integrated out in closed form (`pyro_invariance.charges`).  **E3** has
distances, and places from the middle of the molecule; **SE3**, which knows left from right, triple products and a cross
product as well; **T-SO2** heights, and vectors that turn along about z; **T** differences across, and each coordinate
a function of its own; **trivial** the places themselves.  To refuse E3 is to say that mirror images differ, to refuse
SE3 that z is a direction of its own, and so on.

Measured on 300 water molecules [grisafi2018symmetry] in random poses: E3 is 63 nats before SE3, which is 606 before
T-SO2, both with errors of 0.2 % of new dipoles (0.8 % with T-SO2, 2.1 % with T, 3.5 % with trivial).

Limitations: the dipole of an ion depends on the origin, here the middle of its atoms; histograms of distances do not
tell all molecules apart; mirrors are those of all space, so that a wall refuses them too; z is the one axis; Gaussian
noise of at least 1 % of the dipoles, so that smaller errors are expected to be larger than they are; molecules in poses
that are nearly alike hardly need a symmetry; exact inference, 3N x 3N: some hundred molecules of few atoms.

References: [grisafi2018symmetry], [glielmo2017accurate], [villar2021scalars], [huo2022unified].
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from scipy.stats import special_ortho_group
from torch import Tensor

from pyro_invariance import priors
from pyro_invariance.charges import ChargeKernel, VectorProcess
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.kernels import BLOCK
from pyro_invariance.molecular import CHAIN, elements_in
from pyro_invariance.orbit_process import hypothesis
from pyro_invariance.typing import BadInput, nearest
from pyro_invariance.zoo import Card, Hypothesis, Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_invariance.results import Selection

__all__ = ["CARD", "PICTURES", "PLANTED", "components", "data", "hypotheses", "log_density", "model", "predict"]

CARD = Card(
    name="dipoles",
    title="Dipoles of molecules, which turn along, under subgroups of E(3)",
    task="regression of a vector per molecule, some hundred of them exactly",
    kind="points",
    hypotheses=("null", "trivial", *CHAIN),
    symmetries={
        "T": "shifts",
        "T-SO2": "shifts, and turns along with the molecule about z",
        "SE3": "shifts, and turns along with the molecule",
        "E3": "shifts, and turns and mirrors along with the molecule",
    },
    data=("any .npz of molecules [N, P, 4] with vectors [N, 3] and kind points", "dipoles-...: data(planted)"),
    sites={"lengthscale": "[]", "variance": "[]", "noise": "[]"},
    evidence=("lower (SVI over hyperparameters, charges exact)", "upper (type-II maximum)"),
    references=("grisafi2018symmetry", "glielmo2017accurate", "villar2021scalars", "huo2022unified"),
    licence="simulated: none needed; the water molecules that the tests read where they are found: LGPL-3.0",
    limitations=(
        "the dipole of an ion depends on the origin, here the middle of its atoms",
        "a wall refuses all mirrors, those that leave it alone as well",
        "histograms of distances do not tell all molecules apart",
        "noise of at least 1 % of the dipoles: smaller errors are expected to be larger",
        "3N x 3N: some hundred molecules",
    ),
)


def model(kernel: ChargeKernel | None, targets: Tensor, scale: float = 1.0) -> Tensor:
    """Pyro model of dipoles `[N, 3]`; no kernel means noise alone, `scale` widens the priors."""
    sites = {name: pyro.sample(name, priors.log_normal(name, scale)) for name in sites_of(kernel)}
    return pyro.sample("targets", process(kernel, targets, sites), obs=targets)


def sites_of(kernel: ChargeKernel | None) -> tuple[str, ...]:
    """Hyperparameters."""
    return ("noise",) if kernel is None else ("noise", "lengthscale", "variance")


def process(kernel: ChargeKernel | None, targets: Tensor, sites: Mapping[str, Tensor]) -> VectorProcess:
    """Distribution of dipoles given hyperparameters."""
    noise = priors.NOISE_FLOOR + sites["noise"]
    if kernel is None:
        return VectorProcess(None, torch.zeros(()), noise, targets.shape)
    return VectorProcess(kernel.gram(sites["lengthscale"]), sites["variance"], noise, targets.shape)


@torch.no_grad()
def moments(args: tuple, draws: list[dict[str, Tensor]], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[D, M, 3]` and covariance `[D, M, 3, 3]` of new dipoles for draws of the sites."""
    kernel, targets = args
    if kernel is None:
        noise = torch.stack([priors.NOISE_FLOOR + d["noise"] for d in draws]).to(targets)
        covariance = noise[:, None, None, None] * torch.eye(3).to(targets)
        return targets.new_zeros(len(draws), len(inputs), 3), covariance.expand(-1, len(inputs), 3, 3)
    processes = [process(kernel, targets, d) for d in draws]
    means, covariances = [], []
    for block in inputs.split(max(1, BLOCK // (8 * kernel.width))):
        compared = kernel.compared(block)
        at_block = ((p, kernel.cross(compared, d["lengthscale"])) for p, d in zip(processes, draws, strict=True))
        found = [p.conditioned(targets, *cross) for p, cross in at_block]
        means.append(torch.stack([mean for mean, _ in found]))
        covariances.append(torch.stack([covariance for _, covariance in found]))
    return torch.cat(means, 1), torch.cat(covariances, 1)


def predict(args: tuple, draws: list[dict[str, Tensor]], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[D, M, 3]` and mean variance of a coordinate `[D, M]`."""
    mean, covariance = moments(args, draws, inputs)
    return mean, covariance.diagonal(dim1=2, dim2=3).mean(2)


def log_density(args: tuple, draws: list[dict[str, Tensor]], inputs: Tensor, targets: Tensor) -> Tensor:
    """Log density `[D, M]` of new dipoles `[M, 3]`: their coordinates depend on each other."""
    return torch.distributions.MultivariateNormal(*moments(args, draws, inputs)).log_prob(targets)


def hypotheses(data: Dataset, scale: float = 1.0) -> list[Hypothesis]:
    """All hypotheses for dipoles `[N, 3]` of molecules `[N, P, 4]`: charge and position."""
    if data.kind != "points":
        raise BadInput(f"data: {data.name!r} holds {data.kind}; dipoles takes points [N, P, 4], charge and position")
    elements_in(data.x, data.x_test)
    data.require_values(3)

    def on(name: str, kind: Kind, contains: tuple[str, ...]) -> Hypothesis:
        kernel = None if name == "null" else partial(ChargeKernel, name)
        table = None if name == "null" else partial(ChargeKernel.bytes, data.x.shape[1])
        base = "none" if name == "null" else "charges"
        made = hypothesis(name, kind, base, kernel, scale=scale, table=table, contains=contains)
        return replace(
            made, model=partial(model, scale=scale), predict=predict, log_density=log_density, moved=None, sparse=False
        )

    groups = (on(name, "group", CHAIN[: i + 1]) for i, name in enumerate(CHAIN))
    return [on("null", "null", ()), on("trivial", "none", ()), *groups]


PLANTED = {"none": "trap", "T": "slanted wall", "T-SO2": "wall", "SE3": "handedness", "E3": None}
CHARGE, BOND, SOFT = 0.33, 0.97, 0.4  # of a hydrogen; angstrom; charge per angstrom
TWIST = 4.0  # charge per angstrom squared
BREAK, NOISE = 0.5, 0.02  # shares of what breaks a symmetry, and of the root mean square


def term(name: str, x: Tensor, dipole: Tensor) -> Tensor:
    r"""What a surrounding adds to dipoles `[N, 3]`.

    A `wall` mirrors their part along its normal `e`, :math:`e (e \cdot \mu)`, along z or along (1, 1, 1); a `trap`
    pulls charges towards the origin, by the place of the molecule's middle.  `handedness` is across both bonds,
    :math:`4\, (a \times b) (|a| - |b|)`: a mirror in their plane leaves them alone, and would turn it round.
    """
    if name == "trap":
        return -CHARGE * x[..., 1:].mean(1)
    if name == "handedness":
        a, b = (x[..., 1:, 1:] - x[..., :1, 1:]).unbind(1)
        return TWIST * a.cross(b, dim=-1) * (a.norm(dim=-1) - b.norm(dim=-1))[:, None]
    normal = torch.tensor([0.0, 0.0, 1.0] if name == "wall" else [3**-0.5] * 3).to(x)
    return (dipole @ normal)[:, None] * normal


def data(planted: str = "E3", seed: int = 0, size: int = 200, test: int = 100) -> Dataset:
    r"""Simulated molecules of water in any pose, bent and stretched, and dipoles of point charges at their atoms.

    The charge of a hydrogen is :math:`0.33 + 0.4 (|r_{OH}| - 0.97)`, that of the oxygen makes the molecule neutral.

    Parameters
    ----------
    planted : str
        What is left: `none` (in a trap), `T` (at a slanted wall), `T-SO2` (at a wall across z), `SE3` (with
        handedness), `E3`.
    seed, size, test : int
        Seed, training molecules, test molecules.
    """
    if planted not in PLANTED:
        raise BadInput(f"planted: got {planted!r}; {nearest(planted, PLANTED)}")
    rng, count = np.random.default_rng(seed), size + test
    length = BOND + 0.06 * rng.standard_normal((count, 2))
    angle = np.radians(104.5 + 8 * rng.standard_normal(count))[:, None] * np.array([0.5, -0.5])
    arms = length[..., None] * np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], -1)
    arms = np.einsum("nij,naj->nai", special_ortho_group(3, seed=rng).rvs(count), arms)
    places = rng.standard_normal((count, 1, 3)) + np.concatenate([np.zeros((count, 1, 3)), arms], 1)
    x = np.concatenate([np.broadcast_to([[8.0], [1.0], [1.0]], (count, 3, 1)), places], -1)
    y = ((CHARGE + SOFT * (length - BOND))[..., None] * arms).sum(1)
    if breaks := PLANTED[planted]:
        y = y + BREAK * term(breaks, torch.as_tensor(x), torch.as_tensor(y)).numpy()
    y = y + NOISE * np.sqrt(np.square(y).mean()) * rng.standard_normal(y.shape)
    return from_arrays(f"dipoles-{planted}", x[:size], y[:size], x[size:], y[size:], kind="points")


def components(selection: "Selection") -> "Axes":
    """Each dot is a coordinate of a test molecule's dipole: on the line it is right."""
    import matplotlib.pyplot as plt

    data, best = selection.data, selection.best
    axes = plt.subplots(figsize=(5, 5), layout="constrained")[1]
    for truth, found, name in zip(data.y_test.T, best.test_mean.T * data.unit[1], "xyz", strict=False):
        axes.plot(truth.numpy(), found.numpy(), ".", label=name)
    axes.axline((0, 0), slope=1, color="k", linewidth=0.5)
    axes.set(xlabel="dipole", ylabel=f"predicted by {best.label}", title=data.name)
    axes.legend()
    return axes


PICTURES: dict[Callable[..., Any], str] = {components: "Are predicted dipoles right, in length and direction?"}
