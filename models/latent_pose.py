r"""Images in an unknown pose: does it help to say that they were turned, and how far are they?

What is at stake: no label, only images.  A linear decoder makes an upright image of a code, and an unknown turn, drawn
anew for each image, makes of it what is seen.  If poses vary, a decoder without a pose has to spend its code on them.

Generative process, for images as polar arrays :math:`x_n \in R^D` [tipping1999probabilistic, frey2003transformation]:

    noise    ~ LogNormal(log 0.01, 2)          variance above a floor of 2.5e-3, mean square of x = 1
    rotation ~ Uniform(0, pi)                  half-width of the range of poses, of the hypothesis of that name
    theta_n  ~ SoftUniform(-rotation, rotation)    pose: summed over 1,024 nodes of the circle
    z_n      ~ Normal(0, I)                    code of 6 numbers: integrated out
    x_n      ~ Normal(T_theta_n (m + W^T z_n), sqrt(noise))

The decoder `m`, `W` is learned from half of the images; the evidence is of the other half, given the decoder.
**SO2** turns by any angle and **rotation** within a range, with the same decoder, which was learned with any pose
allowed and then turned so that poses are centred; **trivial** does not turn and has a decoder of its own, and the
**null** says that images are their mean and noise.

Limitations: linear decoder; turns about the middle of the image only; one noise variance of polar arrays, which hold
less than their number of coordinates near the middle; a range is the half-width at half maximum of a density whose
edges are soft by up to 0.1 rad, or outliers would widen it; images of several classes turn one into the other, so that
the range of their poses is not known; noise is taken to be 5 % of the images' rms at least, or their poses would lie
between the nodes; nothing is certified, as a decoder may have been learned better than another.

References: [tipping1999probabilistic], [frey2003transformation].
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from pyro_invariance import posed_process
from pyro_invariance.blobs import PLANTED, angles, draw
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.densities import SoftUniform
from pyro_invariance.posed import PosedLinear, turned
from pyro_invariance.posed_process import FLOOR, NODES, best_posed, polar_arrays
from pyro_invariance.representations import Pixels, Polar
from pyro_invariance.trained import train
from pyro_invariance.zoo import Card, Hypothesis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_invariance.results import Selection

__all__ = ["CARD", "PICTURES", "PLANTED", "data", "hypotheses", "log_density", "model", "poses"]

CODE = 6  # numbers
STEPS = 400  # that a decoder is learned in
SHOWN = 8  # images of a picture

CARD = Card(
    name="latent_pose",
    title="Linear decoder in an unknown pose",
    task="density of images; labels play no part",
    kind="images",
    hypotheses=("null", "trivial", "rotation", "SO2"),
    symmetries={"rotation": "turns", "SO2": "any turn"},
    data=("digits", "mnist", "any .npz of images", "latent_pose-...: data(planted) of this file"),
    sites={"noise": "[]", "rotation": "[]"},
    evidence=(
        "lower (SVI over hyperparameters; pose and code integrated out), given a decoder learned from other images",
    ),
    references=("tipping1999probabilistic", "frey2003transformation"),
    licence="digits: CC BY 4.0 [alpaydin1998optical]; mnist: CC BY-SA 3.0 as redistributed [lecun1998gradient]; "
    "simulated: none needed",
    limitations=(
        "linear decoder",
        "turns only",
        "the range has soft edges: it ends at half maximum",
        "noise is 5 % of the images' rms at least, or their poses would lie between the nodes",
        "of several classes in one data set the range is not known: one class turns into another",
        "the error of a range does not know how well the decoder was learned; learned from some hundred images, ranges "
        "come out some degrees wide",
        "never certified: a decoder may have been learned better than another",
    ),
)


def given(
    decoder: tuple[Tensor, Tensor],
    unit: Tensor,
    kind: str,
    sites: Mapping[str, Tensor],
    count: int,
    nodes: int = NODES["evidence"],
) -> Any:
    """Distribution of images `[N, D]` given the decoder and values of the sites; noise is measured in `unit`."""
    noise = unit * (FLOOR + sites["noise"])
    if kind == "null":
        return Normal(decoder[0].flatten().expand(count, -1), noise.sqrt()).to_event(1)
    extent = {"trivial": None, "SO2": torch.full_like(unit, math.pi)}.get(kind, sites.get("rotation"))
    return PosedLinear(*decoder, noise, extent, SoftUniform, count=count, nodes=nodes)


model = partial(posed_process.model, given)
log_density = partial(posed_process.log_density, given, polar_arrays)


class Decoder(PyroModule):
    """The model with its decoder as parameters, which begins at the mean and the principal directions."""

    def __init__(self, x: Tensor, polar: Polar, kind: str) -> None:
        super().__init__()
        self.kind, shape = kind, (polar.rings, polar.angles)
        self.mean = PyroParam(x.mean(0).reshape(shape))
        _, lengths, directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        scaled = lengths[:CODE, None] / math.sqrt(len(x)) * directions[:CODE]
        self.directions = PyroParam(
            torch.nn.functional.pad(scaled, (0, 0, 0, CODE - len(scaled))).reshape(CODE, *shape)
        )

    def forward(self, x: Tensor, unit: Tensor) -> Tensor:
        """Images `[N, D]` as they are observed."""
        few = partial(given, nodes=NODES["learned"])
        return posed_process.model(few, x, (self.mean, self.directions), unit, kind=self.kind)

    def fixed(self) -> tuple[Tensor, Tensor]:
        """Mean and directions as they are."""
        return self.mean.detach(), self.directions.detach()  # type: ignore[attr-defined]

    def turn(self, angle: Tensor) -> None:
        """Turn what is upright."""
        for name, array in zip(("mean", "directions"), self.fixed(), strict=True):
            setattr(self, name, turned(array, angle.expand(array.shape[:-2])))


def learn(kind: str, data: Dataset, seed: int) -> dict[str, Tensor]:
    """Learn a decoder from the earlier images: the same for all hypotheses with a pose."""
    assert data.x_earlier is not None
    x, unit, polar = polar_arrays(data.x_earlier)
    x, one = x / unit.sqrt(), torch.ones_like(unit)  # steps are of one size whatever images are measured in
    posed = kind in ("rotation", "SO2")
    decoder = Decoder(x, polar, "SO2" if posed else kind)
    decoder.load_state_dict(train(decoder, (x, one), start={"noise": one}, steps=STEPS, seed=seed))
    if posed:  # what is upright is anybody's guess: poses are centred, or their range would be too wide
        centre = given(decoder.fixed(), one, "SO2", {"noise": 0.01 * one}, len(x)).pose(x)[0]
        decoder.turn(torch.polar(torch.ones_like(centre), centre).mean().angle())
    return {name: unit.sqrt() * value.detach() for name, value in decoder.state_dict().items()}


def prepare(kind: str, data: Dataset, parameters: Mapping[str, Tensor]) -> tuple:
    """Images of the evidence as polar arrays, the decoder and the unit of the noise."""
    assert data.x_earlier is not None
    before, unit, polar = polar_arrays(data.x_earlier)
    decoder = Decoder(before[:2], polar, kind)
    decoder.load_state_dict(parameters)
    return polar_arrays(data.x)[0], tuple(a.to(before) for a in decoder.fixed()), unit


def memory(kind: str, data: Dataset) -> int:
    """Bytes of densities by pose, with what their gradient keeps."""
    each = {"null": 0, "trivial": 1}.get(kind, NODES["evidence"])
    return 8 * 8 * (CODE + 1) * each * len(data.x)


def hypotheses(data: Dataset, scale: float = 1.0) -> list[Hypothesis]:
    """All hypotheses for images of any size."""
    return posed_process.hypotheses(data, CARD.name, model, log_density, prepare, learn, memory, noise=0.1, scale=scale)


PLACES = np.array([[-0.5, -0.1], [-0.2, 0.45], [0.1, -0.4], [0.35, 0.25], [0.55, -0.15]])  # of blobs, upright


def data(planted: str = "rotation", seed: int = 0, size: int = 600, test: int = 200, side: int = 16) -> Dataset:
    """Simulated images of one thing of five blobs, of varying heights, in poses that `planted` says.

    The values are the angles (radians) that images were turned by, which no hypothesis looks at.

    Parameters
    ----------
    planted : str
        One of `none` (upright), `rotation` (turned by +-45 degrees, soft edges), `SO2` (by any angle).
    seed, size, test, side : int
        Seed, training images (half of them for the decoder), test images, pixels per side.
    """
    rng, angle = np.random.default_rng(seed), angles(planted, size + test, seed)
    heights = 1 + 0.3 * rng.normal(size=(len(angle), len(PLACES)))
    images = draw(np.broadcast_to(PLACES, (*heights.shape, 2)), heights, angle, side)
    images += 0.05 * rng.normal(size=images.shape)
    values = angle if planted != "none" else rng.normal(size=len(angle))
    return from_arrays(f"latent_pose-{planted}", images[:size], values[:size], images[size:], values[size:])


def upright(selection: "Selection", axes: "Axes | None" = None) -> "Axes":
    """Above images as they are, below turned back by the pose that the best hypothesis with a pose expects."""
    from pyro_invariance.plotting.posed import bare, moved_back

    axes = bare(known := best_posed(selection, given), axes)
    if known is None:
        return axes
    posed, x, label = known
    images = selection.data.x[:SHOWN].mean(1, keepdim=True)
    return moved_back(axes, images[:, 0], Pixels().rotate(images, -posed.pose(x)[0][:SHOWN])[:, 0], label)


def poses(selection: "Selection") -> tuple[Tensor, Tensor, str] | None:
    """Mean pose of each image `[N]`, radians, its mean resultant length, and the hypothesis that says so."""
    if (known := best_posed(selection, given)) is None:
        return None
    posed, x, label = known
    return *posed.pose(x), label


PICTURES: dict[Callable[..., Any], str] = {upright: "What do the images look like upright?"}
