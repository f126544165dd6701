r"""Gaussian process on the sphere, SO(3)/SO(2): by which turns, and about which axis, do these values not change?

By the addition theorem a stationary kernel is a sum over the harmonics :math:`H_{lm}` around any axis, and to average
it over a group is to keep some of them: orders m that are multiples of n for `C_n`, m = 0 for all turns, even degrees l
for opposites, l = 0 for all rotations.  A hypothesis is a set I of harmonics, around an axis that is learned.

Generative process, for values :math:`y_n` of unit variance at latitudes and longitudes (`pyro_invariance.processes`):

    lengthscale ~ LogNormal(0, 1)             in radians
    variance    ~ LogNormal(0, 1.5)           mean over the sphere
    noise       ~ LogNormal(log 0.01, 2)      variance above a floor of 1e-4
    east, north ~ Normal(0, 1)                normal scores of an axis that is uniform over all axes
    w_lm        ~ Normal(0, variance a_l / sum_I a_l),   a_l = (3 / lengthscale^2 + l (l + 1))^(-5/2)
    f(x)        = sum_I w_lm H_lm(x; axis),   l <= 24    (Matern of smoothness 3/2, averaged over the group)
    y_n         ~ Normal(f(x_n), sqrt(1e-4 + noise))

`zonal-residual` is the sum of a zonal and a stationary function of one lengthscale, each with a scale ~ HalfNormal(1)
in place of the variance: the share of the stationary one says how much of what is seen is more than the latitude.

Limitations: one axis for all turns, known up to its sign; Gaussian likelihood on class codes; nothing finer than degree
24, some 7 degrees; the constant of SO3 hardly differs from noise alone; exact inference, 2,000 values at most.

References: [borovitskiy2020matern], [schoenberg1942positive], [haasdonk2007invariant], [rasmussen2006gaussian].
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor
from torch.special import ndtri

from pyro_invariance import orbit_process, priors
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.numerics import float64
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.sphere import SphereKernel, frame, harmonics, positions, spectrum
from pyro_invariance.sums import SumKernel
from pyro_invariance.typing import BadInput, nearest
from pyro_invariance.zoo import Card, Hypothesis, Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_invariance.results import Selection

__all__ = ["CARD", "PICTURES", "PLANTED", "data", "hypotheses", "model", "predict"]

AXIS, DEGREE = ("east", "north"), 24  # sites; degree of the finest harmonics
SEEN, AXES, COARSE = 300, 256, 8  # values, axes and degree that starts are chosen with
SETS = {  # degrees, of what the orders are multiples (where it takes an axis), symmetries
    "trivial": (range(DEGREE + 1), None, set()),
    "C2": (range(DEGREE + 1), 2, {"C2"}),
    "C3": (range(DEGREE + 1), 3, {"C3"}),
    "C4": (range(DEGREE + 1), 4, {"C2", "C4"}),
    "zonal": (range(DEGREE + 1), DEGREE + 1, {"C2", "C3", "C4", "zonal"}),
    "antipodal": (range(0, DEGREE + 1, 2), None, {"antipodal"}),
    "SO3": (range(1), None, {"C2", "C3", "C4", "zonal", "antipodal", "SO3"}),
}

CARD = Card(
    name="sphere_gp",
    title="Gaussian process on the sphere",
    task="values or classes at places on the sphere, up to 2,000 of them",
    kind="sphere",
    hypotheses=("null", *SETS, "zonal-residual"),
    symmetries={
        "C2": "half turns about an axis",
        "C3": "third turns about an axis",
        "C4": "quarter turns about an axis",
        "zonal": "any turn about an axis",
        "antipodal": "exchange of opposite positions",
        "SO3": "any rotation",
    },
    data=("any .npz of places [N, 2] and kind sphere", "sphere_gp-...: data(planted) of this file"),
    sites={
        "lengthscale, variance, noise": "[] each",
        "east, north": "[] each, of an axis",
        "scale_zonal, scale_trivial": "[] each, of zonal-residual",
    },
    evidence=("lower (SVI over hyperparameters and axis, f exact)", "upper (type-II maximum)"),
    references=("borovitskiy2020matern", "schoenberg1942positive", "haasdonk2007invariant"),
    licence="simulated: none needed",
    limitations=("Gaussian likelihood on class codes", "one axis, up to its sign", "nothing finer than degree 24"),
)


def model(
    kernel: SphereKernel | SumKernel | None, targets: Tensor, sites: tuple[str, ...], scale: float = 1.0
) -> Tensor:
    """Pyro model of targets `[N, O]` with these latent sites, those of the kernel in order; `scale` widens priors."""
    values = {site: pyro.sample(site, _prior(site, scale)) for site in sites}
    noise, variance = priors.NOISE_FLOOR + values.pop("noise"), values.pop("variance", torch.ones(()))
    lengthscale = values.pop("lengthscale", torch.ones(()))
    gram = kernel.gram(lengthscale, *values.values()) if kernel else None
    return pyro.sample("targets", GaussianProcess(gram, variance, noise, targets.shape), obs=targets)


def predict(
    args: tuple, draws: list[dict[str, Tensor]], x: Tensor, *, ranges: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Predictive mean `[D, M, O]` and variance `[D, M]` (noise included) at new places for draws of the sites."""
    return orbit_process.predict(args, [{"lengthscale": torch.ones(())} | draw for draw in draws], x, ranges=ranges)


def _prior(site: str, scale: float) -> TorchDistribution:
    if site in priors.SITES:
        return priors.log_normal(site, scale)
    return Normal(torch.tensor(0.0), torch.tensor(scale)) if site in AXIS else priors.half_normal(scale)


def hypotheses(data: Dataset, scale: float = 1.0) -> list[Hypothesis]:
    """All hypotheses; those with an axis start from two axes around which their harmonics explain the values best."""
    if data.kind != "sphere":
        raise BadInput(f"data: {data.name!r} holds {data.kind}; sphere_gp takes sphere, [N, 2] latitude and longitude")
    if data.classes is None:
        data.require_values()
    words = priors.describe(scale) | dict.fromkeys(AXIS, f"Normal(0, {scale:.3g}), uniform over axes")
    axes = {order: scale * _axes(data, order) for _, order, _ in SETS.values() if order}

    def make(name: str, kind: Kind, variances: dict[str, float], *parts: str) -> Hypothesis:
        waves = any(SETS[part][0][1:] for part in parts)  # a constant has no lengthscale
        begin = {"noise": 0.3} | ({"lengthscale": 0.4} if waves else {}) | variances
        order = next((order for part in parts if (order := SETS[part][1])), None)
        at = [dict(zip(AXIS, axis.tolist(), strict=True)) for axis in axes[order]] if order else [{}]
        wide = [begin | at[0] | {"lengthscale": 1.2}] if waves else []
        sites = (*begin, *at[0])
        return Hypothesis(
            name=name,
            kind=kind,
            base=("none", "sphere", "sum")[len(parts)],
            model=partial(model, sites=sites, scale=scale),
            prepare=partial(_prepare, parts, scale),
            starts=(*(begin | axis for axis in at), *wide),
            contains=frozenset(SETS[name][2] if name in SETS else ()),
            predict=partial(predict, ranges=tuple(site for site in sites if site not in priors.SITES)),
            memory=partial(_memory, parts),
            priors={site: words.get(site, f"HalfNormal({scale:.3g})") for site in sites},
            moved=_opposite if name == "antipodal" else None,
            parts={f"scale_{part}": single[part] for part in parts} if len(parts) > 1 else {},
        )

    single = {name: make(name, "group" if SETS[name][2] else "none", {"variance": 1.0}, name) for name in SETS}
    scales = {"scale_zonal": 0.7, "scale_trivial": 0.7}
    residual = make("zonal-residual", "composition", scales, "zonal", "trivial")
    return [make("null", "null", {}), *single.values(), residual]


def _prepare(parts: tuple[str, ...], scale: float, data: Dataset) -> tuple[SphereKernel | SumKernel | None, Tensor]:
    kernels = [SphereKernel(*SETS[part][:2], scale, data.x) for part in parts]
    if len(kernels) < 2:
        return (kernels[0] if kernels else None), data.targets
    return SumKernel(kernels, [2 if kernel.order else 0 for kernel in kernels]), data.targets


def _memory(parts: tuple[str, ...], data: Dataset) -> int:
    n = len(data.x)  # harmonics with what their gradients keep, and about ten N x N matrices
    return len(parts) * n * (100 * (DEGREE + 1) ** 2 + 80 * n)


def _opposite(x: Tensor, extents: Mapping[str, float]) -> dict[str, Tensor]:
    return {"opposite": torch.stack([-x[:, 0], x[:, 1] % 360 - 180], 1)}


@torch.no_grad()
def _axes(data: Dataset, order: int) -> Tensor:
    """Scores `[2, 2]` of two axes 30 degrees apart or more, around which multiples of `order` explain most."""
    few, place = data.subset(SEEN, 0), (torch.arange(AXES).to(data.x) + 0.5) / AXES
    tried = ndtri(torch.stack([place, (AXES * place * (5**0.5 - 1) / 2) % 1], 1))  # a lattice of equal areas
    frames = frame(*tried.unbind(1))
    seen, degrees = harmonics(positions(few.x) @ frames.mT, COARSE, order)
    pulls, ridge = seen.mT @ few.targets, (0.1 / spectrum(torch.tensor(0.5).to(few.x), degrees)).diag()
    explained = (pulls * torch.linalg.solve(seen.mT @ seen + ridge, pulls)).sum((1, 2))
    first = explained.argmax()
    far = (frames[:, 2] @ frames[first, 2]).abs() < math.cos(math.pi / 6)
    return tried[torch.stack([first, explained.where(far, 0.0).argmax()])].cpu()


Z, X, SLANTED = (-0.8563, 0.0), (0.5127, -1.0518), (0.3, -0.5)  # scores of axes
PLANTED = {  # standard deviations of functions as hypotheses have them, and their axis
    "none": ({"trivial": 1.0}, Z),
    "zonal": ({"zonal": 1.0}, Z),
    "zonal-x": ({"zonal": 1.0}, X),
    "C4": ({"C4": 1.0}, SLANTED),
    "antipodal": ({"antipodal": 1.0}, Z),
    "zonal-residual": ({"zonal": 1.0, "trivial": 0.3}, Z),
}


@float64()
def data(planted: str = "zonal", seed: int = 0, size: int = 300, test: int = 200) -> Dataset:
    """Simulated values at random positions: a draw of the Gaussian process that `planted` names, noise of sd 0.1.

    Parameters
    ----------
    planted : str
        One of `none`, `zonal` (around z), `zonal-x`, `C4` (slanted), `antipodal`, `zonal-residual` (8 % residual).
    seed, size, test : int
        Seed, training values, test values.
    """
    if planted not in PLANTED:
        raise BadInput(f"planted: got {planted!r}; {nearest(planted, PLANTED)}")
    (functions, axis), rng, count = PLANTED[planted], np.random.default_rng(seed), size + test
    x = np.rad2deg(np.stack([np.arcsin(rng.uniform(-1, 1, count)), rng.uniform(-np.pi, np.pi, count)], 1))
    gram = torch.zeros(count, count)
    for name, sd in functions.items():
        kernel = SphereKernel(*SETS[name][:2], 1.0, torch.as_tensor(x))
        gram += sd**2 * kernel.gram(torch.tensor(0.5), *(torch.tensor(axis) if kernel.order else ()))
    with poutine.seed(rng_seed=seed):  # the caller's random numbers go on as if nothing had been drawn
        values = GaussianProcess(gram, torch.tensor(1.0), torch.tensor(0.01), (count, 1)).sample()[:, 0].numpy()
    return from_arrays(f"sphere_gp-{planted}", x[:size], values[:size], x[size:], values[size:], kind="sphere")


def field(selection: "Selection") -> "Axes":
    """Left the values as they are, right what the best hypothesis expects everywhere, in the same colours."""
    import matplotlib.pyplot as plt

    data, mollweide = selection.data, {"projection": "mollweide"}
    figure, pair = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", subplot_kw=mollweide)
    latitude, longitude = np.arange(-89, 90, 2), np.arange(-179, 180, 2)
    found = selection.predict(torch.cartesian_prod(*(torch.as_tensor(a).to(data.x) for a in (latitude, longitude))))
    expected = (found if data.classes is None else found.argmax(1)).view(len(latitude), len(longitude)).numpy()
    at = np.deg2rad((data.x.numpy() + 180) % 360 - 180)
    dots = pair[0].scatter(at[:, 1], at[:, 0], c=data.y.numpy(), s=8)
    drawn = pair[1].pcolormesh(np.deg2rad(longitude), np.deg2rad(latitude), expected, norm=dots.norm)
    for axes, title in zip(pair, (data.name, f"expected by {selection.best.label}"), strict=True):
        axes.set(title=title, xticklabels=[])
        axes.grid(alpha=0.3)
    figure.colorbar(drawn, ax=pair, shrink=0.8)
    return pair[1]


def axis(selection: "Selection") -> "Axes":
    """Each cloud is where the axis of a hypothesis may be, at both its ends: the smaller, the better it is known."""
    import matplotlib.pyplot as plt

    axes = plt.subplots(figsize=(7, 4), layout="constrained", subplot_kw={"projection": "mollweide"})[1]
    for fit in (fit for fit in selection.fits if "east" in fit.draws):
        ends = frame(*(fit.draws[name] for name in AXIS))[:, 2]
        x, y, z = torch.cat([ends, -ends]).T.numpy()
        axes.scatter(np.arctan2(y, x), np.arcsin(z), s=6, alpha=0.3, label=fit.label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return axes


PICTURES = {field: "What does the best model make of the field?", axis: "About which axis?"}
