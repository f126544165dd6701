"""What a learned range says of the symmetries that its hypothesis holds, and on which side of verdicts it is."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from judged import NULL, TRIVIAL, TURNS, judge, made

from pyro_invariance import fitting
from pyro_invariance.fitting import Range
from pyro_invariance.verdict import verdicts
from pyro_invariance.zoo import Extent, Hypothesis

WHOLE = Extent("rotation", "rad", upper=3.0, reach=2.8, whole=True, resolution=0.05)


def ranged(**extents: Extent) -> Hypothesis:
    return Hypothesis(
        name="rotation",
        kind="augmentation",
        base="polar",
        model=print,
        prepare=lambda data: (),
        starts=({},),
        contains=frozenset({"rotation"}),
        saturated=frozenset(TURNS),
        extents=extents,
    )


def posterior(low: float, high: float) -> torch.Tensor:
    return torch.linspace(low, high, 1001)


def test_range_is_read_off_its_posterior():
    found = fitting._range(posterior(1.0, 2.0), WHOLE)
    assert (found.mean, found.lower, found.upper, found.unit) == pytest.approx((1.5, 1.025, 1.975, "rad"))
    assert found.sd == pytest.approx(12**-0.5, rel=1e-2)
    assert (found.saturated, found.zero) == (False, False)
    assert fitting._range(posterior(2.0, 2.9), WHOLE).saturated  # 97.5 % of it lies at 2.8775, within reach of the end
    assert not fitting._range(posterior(2.0, 2.8), WHOLE).saturated
    assert fitting._range(posterior(0.0, 0.09), WHOLE).zero
    assert not fitting._range(posterior(0.0, 0.11), WHOLE).zero


@pytest.mark.parametrize(
    ("whole", "draws", "held"),
    [
        (True, (0.0, 0.01), set()),
        (True, (1.0, 2.0), {"rotation"}),
        (True, (2.4, 3.0), TURNS),
        (True, (2.0, 3.0), {"rotation"}),  # saturated, but two thirds of the circle are as likely
        (False, (2.0, 3.0), {"rotation"}),  # the end of what was looked at is no group
    ],
)
def test_range_holds_what_it_has_become(whole, draws, held):
    extent = Extent("rotation", "rad", upper=3.0, reach=2.8, whole=whole, resolution=0.05)
    hypothesis = ranged(rotation=extent)
    ranges: dict[str, Range] = {"rotation": fitting._range(posterior(*draws), extent)}
    assert fitting._contains(hypothesis, ranges) == held


def test_two_ranges_are_gone_or_whole_together():
    hypothesis = ranged(a=WHOLE, b=WHOLE)
    gone, half, full = (fitting._range(posterior(*d), WHOLE) for d in ((0.0, 0.01), (1.0, 2.0), (2.4, 3.0)))
    for a, b, held in (
        (gone, gone, set()),
        (gone, half, {"rotation"}),
        (full, half, {"rotation"}),
        (full, full, TURNS),
    ):
        assert fitting._contains(hypothesis, {"a": a, "b": b}) == held


def test_a_range_that_ends_in_no_group_does_not_keep_another_from_being_whole():
    """Any turn, and shifts within a range."""
    shift = Extent("rows", "grid", upper=0.5, reach=0.48, whole=False, resolution=0.02)
    hypothesis, some = ranged(rotation=WHOLE, rows=shift), fitting._range(posterior(0.2, 0.3), shift)
    for turn, held in (((1.0, 2.0), {"rotation"}), ((2.4, 3.0), TURNS)):
        found = {"rotation": fitting._range(posterior(*turn), WHOLE), "rows": some}
        assert fitting._contains(hypothesis, found) == held


def test_what_is_no_range_stays_when_all_ranges_are_closed():
    """Any turn, and shifts that went to zero: any turn, and on that side of its verdict."""
    shift = Extent("rows", "grid", upper=0.5, reach=0.48, whole=False, resolution=0.02)
    names = frozenset({*TURNS, "translation"})
    hypothesis = replace(ranged(rows=shift), contains=names, ranges_of=dict.fromkeys(TURNS, ()))
    shut = fitting._range(posterior(0.0, 0.01), shift)
    held = fitting._contains(hypothesis, {"rows": shut})
    assert held == TURNS
    closed = replace(
        made("SO2", 40.5, contains=set(held)), label="SO2-translation", claims=names, extents={"rows": shut}
    )
    fits = NULL, TRIVIAL, made("SO2", 40.0), closed
    assert judge("SO2", *fits).verdict == "supported"
    assert "went to zero" in judge("translation", *fits).reason


def test_symmetry_whose_own_range_was_closed_is_not_held():
    """Turns and shifts with a range each: what is left is credited to those that are left."""
    shift = Extent("rows", "grid", upper=0.5, reach=0.48, whole=False, resolution=0.02)
    of = {"rotation": ("rotation",), "SO2": ("rotation",), "C4": ("rotation",), "translation": ("rows",)}
    both = replace(ranged(rotation=WHOLE, rows=shift), contains=frozenset({"rotation", "translation"}), ranges_of=of)
    turns = {name: fitting._range(posterior(*d), WHOLE) for name, d in (("shut", (0.0, 0.01)), ("some", (1.0, 2.0)))}
    turns["any"] = fitting._range(posterior(2.4, 3.0), WHOLE)
    shifts = {name: fitting._range(posterior(*d), shift) for name, d in (("shut", (0.0, 0.01)), ("some", (0.2, 0.3)))}
    for turn, rows, held in (
        ("some", "some", {"rotation", "translation"}),
        ("shut", "some", {"translation"}),
        ("some", "shut", {"rotation"}),
        ("any", "shut", TURNS),
        ("any", "some", {*TURNS, "translation"}),
        ("shut", "shut", set()),
    ):
        assert fitting._contains(both, {"rotation": turns[turn], "rows": shifts[rows]}) == held


@pytest.mark.parametrize(("saturated", "verdict"), [(True, "supported"), (False, "undecided")])
def test_range_that_may_be_whole_is_on_neither_side(saturated, verdict):
    ends = Range(2.9, 0.2, 2.3, 3.1, "rad", saturated=saturated, zero=False)
    may_be = dataclasses.replace(made("rotation", 40.0), extents={"rotation": ends})
    fits = (NULL, TRIVIAL, made("SO2", 41.0), may_be)
    assert judge("SO2", *fits).verdict == verdict
    assert judge("rotation", *fits).verdict == "supported"


@pytest.mark.parametrize("whole", [False, True])
def test_a_range_of_shifts_that_ends_where_it_may_is_no_turn(whole):
    """Some turns and shifts up to their end lack the other turns; any turn with them is then worse."""
    ends = {
        "rotation": Range(0.8, 0.05, 0.7, 0.9, "rad", saturated=False, zero=False),
        "rows": Range(0.48, 0.01, 0.46, 0.5, "grid", saturated=True, zero=False, whole=whole),
    }
    names = frozenset({*TURNS, "translation"})
    some = replace(made("rotation", 90.0, contains={"rotation", "translation"}), claims=names, extents=ends)
    found = judge("SO2", NULL, TRIVIAL, some, made("SO2", 60.0))
    assert found.verdict == ("supported" if whole else "refused")  # a mutant: the end taken for a group


def test_range_that_went_to_zero_is_its_trivial():
    shut = {"rotation": fitting._range(posterior(0.0, 0.01), WHOLE)}
    gone = replace(made("rotation", -2.0, contains=set()), extents=shut)
    found = judge("rotation", NULL, TRIVIAL, gone)
    assert (found.verdict, found.gap) == ("undecided", None)
    assert "went to zero" in found.reason
    assert judge("C4", NULL, TRIVIAL, gone, made("C4", 50.0)).gap == 50.0
    on_top = made("rotation", 45.0, contains=set())  # as good as a model without turns can be
    assert judge("C4", NULL, TRIVIAL, on_top, made("C4", 50.0)).verdict == "undecided"


def test_range_that_went_all_the_way_is_the_group():
    full = made("rotation", 100.0, contains=TURNS)
    fits = [NULL, TRIVIAL, full, made("mirror", 20.0)]
    for symmetry in TURNS:
        found = judge(symmetry, *fits)
        assert (found.verdict, found.gap) == ("supported", 80.0)
    worse_group = judge("SO2", *fits, made("SO2", 60.0))
    assert (worse_group.verdict, worse_group.gap) == ("supported", 80.0)  # the learned range stands for the group


def test_range_that_stopped_half_way_is_no_group():
    half = made("rotation", 100.0)
    fits = [NULL, TRIVIAL, half, made("SO2", 60.0)]
    assert judge("rotation", *fits).verdict == "supported"
    refused = judge("SO2", *fits)
    assert (refused.verdict, refused.gap) == ("refused", -40.0)
    assert judge("C4", *fits).verdict == "refused"


def test_reason_says_which_ranges_are_left():
    kept, shut = (Range(m, 0.01, 0.9 * m, 1.1 * m, "grid", saturated=False, zero=m < 0.1) for m in (0.5, 0.02))
    fits = [made("null", -900.0), made("trivial", -500.0), made("translation", -400.0, base="polar")]

    def reason(**extents: Range) -> str:
        return verdicts([*fits[:2], replace(fits[2], extents=extents)])["translation"].reason

    assert reason(rows=kept, columns=shut).endswith("10.0 needed; ranges kept: rows; shut off: columns")
    assert reason(rows=kept, columns=kept).endswith("10.0 needed")


def test_composition_whose_ranges_went_to_zero_takes_no_side():
    """What is left of it has the mirror: were it taken to lack it, the mirror would lose to itself."""
    plain = [made("null", -900.0), made("trivial", -500.0), made("mirror", -400.0)]
    closed = replace(made("D4", -395.0, contains=set()), kind="composition")
    assert verdicts([*plain, closed])["mirror"].verdict == "supported"
    assert verdicts([*plain, replace(closed, kind="group")])["mirror"].verdict != "supported"
