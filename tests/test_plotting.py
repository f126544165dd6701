"""Pictures show something, and the right numbers."""

import math
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from pyro_invariance import plotting
from pyro_invariance.profiles import Profile
from pyro_invariance.report import report

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def check_picture(path: Path) -> None:
    """Raise unless a PNG shows something: several colours, on more than a sliver of it."""
    pixels = plt.imread(path)[..., :3].reshape(-1, 3)
    colours, counts = np.unique(pixels.round(2), axis=0, return_counts=True)
    assert len(colours) > 10, path
    assert 1 - counts.max() / counts.sum() > 0.02, path
    assert pixels.shape[0] > 200 * 200


def test_pictures_are_written(run, tmp_path):
    report(run, tmp_path)
    for draw in plotting.PICTURES:
        check_picture(tmp_path / f"{draw.__name__}.png")
    assert plt.get_fignums() == []  # nothing is left open


def test_blank_picture_is_caught(tmp_path):
    figure = plt.figure()
    figure.savefig(tmp_path / "blank.png")
    plt.close(figure)
    with pytest.raises(AssertionError):
        check_picture(tmp_path / "blank.png")


@pytest.mark.parametrize("draw", list(plotting.PICTURES))
def test_plots_return_their_axes(draw, run):
    axes = draw(run)
    assert isinstance(axes, Axes)
    assert axes.get_xlabel() or draw is plotting.gallery
    assert axes.get_title()
    _, given = plt.subplots()
    assert draw(run, given) is given
    plt.close("all")


def test_plots_show_the_numbers(run):
    axes = plotting.evidence(run)
    assert [t.get_text() for t in axes.get_yticklabels()] == [f.label for f in run.fits[::-1] if f.kind != "null"]
    drawn = [f for f in run.fits[::-1] if f.kind != "null"]
    lines = [list(line.get_xdata()) for line in axes.lines]
    assert lines[::2] == [pytest.approx([f.evidence.value, f.upper]) for f in drawn]
    assert lines[1::2] == [pytest.approx([f.evidence.value]) for f in drawn]
    judged = [v for v in run.verdicts.values() if v.gap is not None]
    axes = plotting.symmetries(run)
    assert [bar.get_width() for bar in axes.patches[::2]] == pytest.approx([v.gap for v in judged])
    axes = plotting.extents(run)
    mass = sum(bar.get_height() * bar.get_width() for bar in axes.patches)
    assert mass == pytest.approx(1.0)
    plt.close("all")


UNITS = {"rad": "180 deg", "grid": "3.14; image grid", "log": "3.14; log scale", "level": "3.14; black 0, white 1"}


@pytest.mark.parametrize("unit", UNITS)
def test_ranges_are_drawn_in_their_unit(unit, run):
    hypotheses = [replace(h, extents={k: replace(e, unit=unit) for k, e in h.extents.items()}) for h in run.hypotheses]
    told = replace(run, hypotheses=tuple(hypotheses))
    for draw in (plotting.extents, plotting.profiles):
        (label,) = (t.get_text() for t in draw(told).get_legend().get_texts())
        assert label.startswith(f"rotation (1 = {UNITS[unit]}")
    plt.close("all")


@pytest.mark.parametrize("unit", UNITS)
def test_profile_is_drawn(unit, tmp_path):
    result = Profile("rotation", unit, math.pi, [1.0, 2.0, 3.0], [-5.0, -1.0, -3.0], 40)
    axes = plotting.profile(result)
    x, y = axes.lines[0].get_data()
    scale = 180 / math.pi if unit == "rad" else 1.0
    assert list(x) == pytest.approx([scale, 2 * scale, 3 * scale])
    assert list(y) == result.log_density
    assert f"{2 * scale:.3g}" in axes.get_legend().get_texts()[0].get_text()
    assert ("degrees" if unit == "rad" else UNITS[unit].partition("; ")[2]) in axes.get_xlabel()
    assert ("degrees" in axes.get_xlabel()) == (unit == "rad")
    assert "on 40 items" in axes.get_title()
    axes.figure.savefig(tmp_path / "profile.png")
    check_picture(tmp_path / "profile.png")
    assert plotting.profile(result, axes) is axes
    plt.close("all")


def test_predictive_tail_counts_ties(run):
    sure = replace(run.best, test_log_density=torch.tensor([[0.0, -50.0]], dtype=torch.float64).repeat(10, 1))
    told = replace(run, fits=(sure, *run.fits[1:]), data=replace(run.data, y_test=torch.zeros(10, dtype=torch.long)))
    assert plotting.predictive_check(told).get_title().endswith("as the model expects (tail 1.000)")
    told = replace(told, data=replace(run.data, y_test=torch.ones(10, dtype=torch.long)))
    assert plotting.predictive_check(told).get_title().endswith("not what the model expects (tail 0.000)")
    plt.close("all")
