r"""Images of a neural decoder in an unknown pose: were they turned, shifted or both, and how far?

What is at stake: no label, only images of a thing that bends, so that no linear decoder of few numbers makes them.  A
network makes an upright image of a code, and an unknown turn and shift, drawn anew for each image, what is seen.

Generative process, for images on a torus of pixels :math:`x_n \in R^{S \times S}` [bepler2019explicitly]:

    noise         ~ LogNormal(log 0.01, 2)    variance above a floor of 1e-4, mean square of x = 1
    rotation      ~ Uniform(0, pi)            half-widths of the ranges of poses, of the hypotheses of that name;
    rows, columns ~ Uniform(0, 0.5)           the image is [-1, 1]
    theta_n       ~ SoftUniform(-range, range), one for each axis of the pose
    z_n           ~ Normal(0, I)              code of 4 numbers
    x_n           ~ Normal(T_theta_n dec(z_n), sqrt(noise)),    dec(z) = m + W z + V tanh(A z + b),  V ~ Normal(0, 0.1)

Code and pose are integrated by importance, from a guide that turns an image back before it seeks its code
(`canonical`), so that what is estimated is a bound on the density of the image itself.  The decoder is learned from
half of the images together with the ranges, which begin wide; the evidence is of the other half, given the decoder.
**trivial** does not move and has a decoder of its own, and the **null** says that images are their mean and noise.

Limitations: one network of one hidden layer; turns and shifts are exact for smooth images on a torus, so that things
have to keep off the sides, and where they are not smooth a turn jumps at 45 degrees, by 4 % of the energy of digits;
ranges are half-widths at half maximum of densities with soft edges; images of several classes turn one into the other,
so that the range of their poses is not known; the bound is on average over draws of a guide that knows one mode for
each quarter turn, and moves by some nats with them, which is in its standard error; nothing is certified, as a decoder
may have been learned better than another.

References: [bepler2019explicitly], [frey2003transformation], [unser1995convolution], [burda2016importance].
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from pyro_invariance import posed_process, priors
from pyro_invariance.blobs import draw, within
from pyro_invariance.canonical import DRAWS, PERIODS, QUARTERS, Decoder, PosedDecoded
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.densities import SoftUniform
from pyro_invariance.posed_process import AXES, FARTHEST, RANGES, WIDE, best_posed
from pyro_invariance.representations import Torus
from pyro_invariance.trained import train
from pyro_invariance.typing import BadInput, Images, nearest
from pyro_invariance.zoo import Card, Hypothesis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_invariance.results import Selection

__all__ = ["CARD", "PICTURES", "PLANTED", "data", "hypotheses", "log_density", "model", "poses"]

CODE, SPREAD = 4, 0.1  # numbers of a code; prior standard deviation of what the network adds
STEPS, BEGINNINGS = 300, 2  # that a decoder is learned in; that the best is chosen from
EDGE = {"rotation": 0.1, "rows": 0.03, "columns": 0.03}  # softest edges of ranges
SHOWN = 8  # images of a picture
PLANTED: dict[str, dict[str, float]] = {
    "none": {},
    "rotation": {"rotation": math.radians(45)},
    "SO2": {"rotation": math.pi},
    "translation": {"rows": 0.2, "columns": 0.2},
    "rotation-translation": {"rotation": math.radians(45), "rows": 0.2, "columns": 0.2},
    "SO2-translation": {"rotation": math.pi, "rows": 0.2, "columns": 0.2},
}

CARD = Card(
    name="posed_network",
    title="Neural decoder in an unknown pose",
    task="density of images; labels play no part",
    kind="images",
    hypotheses=("null", "trivial", "rotation", "SO2", "translation", "rotation-translation", "SO2-translation"),
    symmetries={"rotation": "turns", "SO2": "any turn", "translation": "shifts"},
    data=("digits", "mnist", "any .npz of images", "posed_network-...: data(planted) of this file"),
    sites={"noise": "[]", "rotation": "[]", "rows, columns": "[] each"},
    evidence=(
        "lower (SVI over hyperparameters; pose and code by importance), given a decoder learned from other images",
    ),
    references=("bepler2019explicitly", "frey2003transformation", "unser1995convolution", "burda2016importance"),
    licence="digits: CC BY 4.0 [alpaydin1998optical]; mnist: CC BY-SA 3.0 as redistributed [lecun1998gradient]; "
    "simulated: none needed",
    limitations=(
        "one hidden layer",
        "a torus: things have to keep off the sides; of images that are not smooth, a turn jumps at 45 degrees",
        "importance: the draws of the guide alone move the evidence of 300 images by some nats, as its error says",
        "ranges have soft edges: they end at half maximum",
        "with any turn, a range of shifts is wider by how far from the turning point a thing was learned",
        "of several classes in one data set the range is not known: one class turns into another",
        "the error of a range does not know how well the decoder was learned; learned from some hundred images, ranges "
        "come out some degrees wide",
        "never certified: a decoder may have been learned better than another",
    ),
)


def given(decoder: Decoder, unit: Tensor, kind: str, sites: Mapping[str, Tensor], count: int) -> Any:
    """Distribution of images `[N, S S]` given the decoder and values of the sites; noise is measured in `unit`."""
    noise = unit * (priors.NOISE_FLOOR + sites["noise"])
    if kind == "null":
        return Normal(decoder.linear.bias.expand(count, -1), noise.sqrt()).to_event(1)
    ranges = [
        SoftUniform(
            sites[axis] if axis in sites else torch.full_like(unit, FARTHEST[axis]),
            period=float(period),
            edge=EDGE[axis],
            validate_args=False,
        )
        for axis, period in zip(AXES[kind], decoder.periods, strict=True)
    ]
    return PosedDecoded(decoder, noise, ranges, count=count)


class Learned(PyroModule):
    """The model with its decoder as parameters, and a prior on its network."""

    def __init__(self, decoder: Decoder, kind: str) -> None:
        super().__init__()
        self.decoder, self.kind = decoder, kind

    def forward(self, x: Tensor, unit: Tensor) -> None:
        """Images `[N, S S]` as they are observed."""
        pyro.factor("network", Normal(0.0, SPREAD).log_prob(self.decoder.bend[-1].weight).sum())
        posed_process.model(given, x, self.decoder, unit, kind=self.kind)


def arrays(images: Images) -> tuple[Tensor, Tensor]:
    """Images on a torus `[N, S, S]`, and their mean square."""
    x = Torus()(images)
    return x, x.square().mean()


model = partial(posed_process.model, given)


def log_density(args: tuple, draws: list[dict[str, Tensor]], inputs: Images, targets: Tensor, *, kind: str) -> Tensor:
    """Log density `[D, M]` of new images; guides are made for the noise of those of the evidence."""
    x, decoder, unit = args
    if kind != "null" and decoder.left is None:
        decoder.look(x, unit)
    return posed_process.log_density(given, arrays, args, draws, inputs, targets, kind=kind)


def learn(kind: str, data: Dataset, seed: int) -> dict[str, Tensor]:
    """Learn the decoder of a hypothesis from the earlier images: the best of several, by the bound on those images."""
    assert data.x_earlier is not None
    x, unit = arrays(data.x_earlier)
    x, one = x / unit.sqrt(), torch.ones_like(unit)  # steps are of one size whatever images are measured in
    start = {"noise": one} | {axis: WIDE[axis] * one for axis in RANGES.get(kind, ())}
    found: list[tuple[float, Decoder]] = []
    for begin in range(1 if kind == "null" else BEGINNINGS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(BEGINNINGS * seed + begin)
            decoder = Decoder(x, CODE, AXES[kind], share=Torus().share(data.x), seed=seed)
        if kind != "null":
            learned = Learned(decoder, kind)
            learned.load_state_dict(train(learned, (x.flatten(1), one), start=start, steps=STEPS, seed=seed))
        decoder.eval().requires_grad_(False)
        found.append((0.0 if kind == "null" else _bound(decoder, x.flatten(1), kind, start), decoder))
    decoder = max(found, key=lambda f: f[0])[1]
    decoder.rescale(unit.sqrt())
    return dict(decoder.state_dict())


def _bound(decoder: Decoder, x: Tensor, kind: str, start: Mapping[str, Tensor]) -> float:
    """Log density of images at the noise that their modes leave, in the ranges that learning began with.

    On the way the decoder learns that noise, and which pose to take for upright.
    """
    decoder.variance = (x - decoder.view(decoder.centred(x))).square().mean()
    sites = {**start, "noise": decoder.variance}
    return float(given(decoder, start["noise"], kind, sites, len(x)).log_prob(x).sum())


def prepare(kind: str, data: Dataset, parameters: Mapping[str, Tensor]) -> tuple:
    """Images of the evidence on a torus, the decoder and the unit of the noise."""
    assert data.x_earlier is not None
    before, unit = arrays(data.x_earlier)
    decoder = Decoder(before[:2], CODE, AXES[kind], share=Torus().share(data.x))
    decoder.load_state_dict(parameters)
    return arrays(data.x)[0].flatten(1), decoder.to(before).requires_grad_(False).eval(), unit


def memory(kind: str, data: Dataset) -> int:
    """Bytes of the Jacobians of code and pose, and of the draws."""
    each = 0 if kind == "null" else 4 * QUARTERS * (CODE + len(AXES[kind])) + 4 * DRAWS
    return 8 * Torus.most**2 * each * len(data.x)


def hypotheses(data: Dataset, scale: float = 1.0) -> list[Hypothesis]:
    """All hypotheses for images of any size."""
    entry = (CARD.name, model, log_density, prepare, learn, memory)
    return posed_process.hypotheses(data, *entry, noise=0.1, scale=scale, base="torus")


BODY = np.array([[-0.45, -0.1], [-0.1, -0.35], [0.1, 0.1]])  # of blobs, upright
ARM, BEND = (0.25, 0.45), math.radians(30)  # how far its blobs are from the last one of the body; by how much it bends


def data(planted: str = "rotation", seed: int = 0, size: int = 500, test: int = 200, side: int = 15) -> Dataset:
    """Simulated images of a thing of five blobs with an arm that bends, in poses that `planted` says.

    The values are the angles (radians) that images were turned by, if they were; no hypothesis looks at them.

    Parameters
    ----------
    planted : str
        One of `none` (upright), `rotation` (turned by +-45 degrees, soft edges), `SO2` (by any angle), `translation`
        (shifted by +-0.2 of [-1, 1]), `rotation-translation`, `SO2-translation`.
    seed, size, test, side : int
        Seed, training images (half of them for the decoder), test images, pixels per side.
    """
    if planted not in PLANTED:
        raise BadInput(f"planted: got {planted!r}; {nearest(planted, PLANTED)}")
    rng, count = np.random.default_rng(seed), size + test
    pose = {
        axis: within(PLANTED[planted].get(axis, 0.0), count, 3 * seed + i, PERIODS[axis], EDGE[axis])
        for i, axis in enumerate(PERIODS)
    }
    bent = math.radians(40) + BEND * rng.uniform(-1, 1, count)
    arm = BODY[-1] + np.multiply.outer(np.stack([np.cos(bent), np.sin(bent)], -1), ARM).transpose(0, 2, 1)
    places = np.concatenate([np.broadcast_to(BODY, (count, *BODY.shape)), arm], 1)
    heights = np.ones(places.shape[:2])
    heights[:, 0] += rng.uniform(-0.5, 0.5, count)
    images = draw(places, heights, pose["rotation"], side, np.stack([pose["rows"], pose["columns"]], -1))
    images += 0.05 * rng.normal(size=images.shape)
    values = pose["rotation"] if pose["rotation"].any() else rng.normal(size=count)
    return from_arrays(f"posed_network-{planted}", images[:size], values[:size], images[size:], values[size:])


def upright(selection: "Selection", axes: "Axes | None" = None) -> "Axes":
    """Above images as they are, below moved back by the pose that the best hypothesis with a pose expects."""
    from pyro_invariance.plotting.posed import bare, moved_back

    axes = bare(known := best_posed(selection, given), axes)
    if known is None:
        return axes
    posed, x, label = known
    images, torus = x[:SHOWN].unflatten(-1, (posed.decoder.side,) * 2), Torus()
    back = {axis: -posed.pose(x, axis)[0][:SHOWN] * posed.decoder.unit[axis] for axis in posed.decoder.axes}
    shifted = torus.move(images, None, back.get("rows"), back.get("columns"))
    return moved_back(axes, images, torus.move(shifted, back.get("rotation")), label)


def poses(selection: "Selection") -> tuple[Tensor, Tensor, str] | None:
    """Mean angle of each image `[N]`, radians, its mean resultant length, and the hypothesis that says so."""
    if (known := best_posed(selection, given, "rotation")) is None:
        return None
    posed, x, label = known
    return *posed.pose(x), label


PICTURES: dict[Callable[..., Any], str] = {upright: "What do the images look like in one pose?"}
