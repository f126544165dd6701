"""What the walk over the zoo does not cover of this entry: ranges and their units, pictures, planted truths."""

import math

import pytest
import torch

from pyro_invariance import from_arrays
from pyro_invariance.datasets import Dataset
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.zoo import Hypothesis, choose, load

ENTRY = load("augmentation_gp")
SIDE = 32


@pytest.fixture(scope="module")
def coloured(float64: None) -> Dataset:
    values = torch.rand(6, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0)).numpy()
    return from_arrays("coloured", values, torch.arange(6).numpy() / 6)


def found(data: Dataset) -> dict[str, Hypothesis]:
    return {h.label: h for h in ENTRY.hypotheses(data)}


def test_a_range_is_shut_off_where_it_moves_nothing_by_half_a_pixel(coloured):
    ranges = found(coloured)["affine"].extents
    assert list(ranges) == ["rows", "columns", "rotation", "scale", "aspect", "shear"]
    assert {e.resolution for e in ranges.values()} == {1 / SIDE}  # the image is 2 wide
    assert {name: e.unit for name, e in ranges.items() if e.unit != "grid"} == {
        "rotation": "rad",
        "scale": "log",
        "aspect": "log",
    }
    assert [name for name, e in ranges.items() if e.whole] == ["rotation"]


def test_images_without_colour_have_no_hue(coloured):
    assert list(found(coloured)["colour"].extents) == ["brightness", "contrast", "saturation", "hue"]
    assert list(found(ENTRY.data(size=6, test=0))["colour"].extents) == ["brightness", "contrast"]


def test_composition_brings_what_it_is_made_of(coloured):
    labels = [h.label for h in choose(coloured, "augmentation_gp", ["mirror-affine"])]
    assert labels == ["null", "trivial-plane", "mirror", "affine", "mirror-affine"]


def test_pictures_show_the_ends_of_the_ranges():
    data = ENTRY.data(size=6, test=0)
    ends = dict.fromkeys(found(data)["affine"].extents, 0.0) | {"rows": 0.5, "rotation": math.pi / 2}
    shown = found(data)["mirror-affine"].moved(data.x, ends)
    assert list(shown)[:2] == ["left and right exchanged", "rows +0.50"]
    torch.testing.assert_close(shown["left and right exchanged"], data.x.flip(-1))
    torch.testing.assert_close(shown["rows +0.50"][..., 4:, :], data.x[..., :-4, :])  # a quarter of 16 pixels, down
    torch.testing.assert_close(shown["rotation +90 degrees"], data.x.rot90(1, (-2, -1)))
    for name in ("columns", "scale", "aspect", "shear"):
        torch.testing.assert_close(shown[f"{name} +0.00"], data.x)
    assert found(data)["trivial-plane"].moved(data.x, {}) == {}
    brighter = found(data)["colour"].moved(data.x, {"brightness": 0.2, "contrast": 0.0})
    torch.testing.assert_close(brighter["brightness +0.20"], data.x + 0.2)
    torch.testing.assert_close(brighter["contrast +0.00"], data.x)


def density(h: Hypothesis, data: Dataset, planted: str) -> float:
    """Log density of the values at the hyperparameters that they were drawn with, by the ranges that were planted."""
    kernel, _ = h.prepare(data)
    extents = ENTRY.PLANTED[planted][1] if h.extents else {}
    gram = kernel.gram(torch.tensor(0.7), *(torch.tensor(extents[name]) for name in h.extents))
    process = GaussianProcess(gram, torch.tensor(1.0), torch.tensor(0.01), data.targets.shape)
    return float(process.log_prob(data.y[:, None]))


@pytest.mark.parametrize("planted", ["mirror", "affine"])
def test_planted_symmetry_is_in_the_values(planted):
    """The truth beats its trivial; once broken, it loses."""
    gaps = {}
    for truth in (planted, "none"):
        data = ENTRY.data(truth, seed=1, size=150, test=0)
        symmetric = found(data)[planted]
        trivial = found(data)[f"trivial-{symmetric.base}"]
        gaps[truth] = density(symmetric, data, planted) - density(trivial, data, planted)
    assert gaps[planted] > 10
    assert gaps["none"] < -10


def test_ranges_may_have_two_ends_and_deformations_are_asked_for_by_name(coloured):
    assert {"uneven", "elastic"} & {h.label for h in choose(coloured, "augmentation_gp", None)} == set()
    uneven = found(coloured)["uneven"]
    assert list(uneven.extents)[::6] == ["rows_left", "rows_right"]
    assert uneven.extents["rotation_left"].unit == "rad"
    kernel, _ = uneven.prepare(coloured)
    even = found(coloured)["affine"].prepare(coloured)[0]
    ends = [torch.tensor(0.1 * (i + 1)) for i in range(6)]
    torch.testing.assert_close(kernel.gram(torch.tensor(0.5), *ends, *ends), even.gram(torch.tensor(0.5), *ends))
    shown = uneven.moved(coloured.x, dict.fromkeys(uneven.extents, 0.25))
    assert {"rows -0.25", "rows +0.25", "rotation -14 degrees", "rotation +14 degrees"} < shown.keys()
    torch.testing.assert_close(shown["rows -0.25"][..., :-4, :], coloured.x[..., 4:, :])  # up
    waves = found(coloured)["elastic"].moved(coloured.x, {"amplitude": 0.05})
    assert float((waves["amplitude +0.05"] - coloured.x).abs().max()) > 0.01
