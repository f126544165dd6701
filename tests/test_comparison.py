"""Comparisons of evidences: decided only by more than every error, certified only by sides, refused where unlike."""

import math
from dataclasses import replace

import pytest

from pyro_invariance.evidence import Evidence, compare, probabilities
from pyro_invariance.evidence.comparison import FLOOR, clears
from pyro_invariance.typing import BadInput

LOW = Evidence(-100.0, 0.1, "lower")


def better_by(gap: float, **said: object) -> Evidence:
    return replace(LOW, value=LOW.value + gap, **said)


@pytest.mark.parametrize(("gap", "word"), [(10.1, "first"), (9.9, "undecided"), (-9.9, "undecided"), (-10.1, "second")])
def test_the_gap_must_exceed_the_floor(gap, word):
    found = compare(better_by(gap), LOW)
    assert (found.better, found.gap, found.margin) == (word, pytest.approx(gap), FLOOR)
    assert bool(found.reason) == (word == "undecided")


@pytest.mark.parametrize(
    "error", [{"drift": 30.0}, {"looseness": 30.0}, {"restart_spread": 30.0}, {"std_error": 15.0}], ids=str
)
@pytest.mark.parametrize("loser", [True, False])
def test_the_gap_must_exceed_every_error(error, loser):
    for gap, word in ((29.0, "undecided"), (31.0, "first")):
        first, second = better_by(gap, **({} if loser else error)), replace(LOW, **(error if loser else {}))
        assert compare(first, second).better == word


@pytest.mark.parametrize("loser", [True, False])
def test_a_guide_that_misses_a_tail_decides_nothing(loser):
    lies = {"khat": 0.9, "draws": 10_000}
    first, second = better_by(1000.0, **({} if loser else lies)), replace(LOW, **(lies if loser else {}))
    found = compare(first, second)
    assert (found.better, found.certified) == ("undecided", False)
    assert "k-hat 0.90" in found.reason


def test_certified_is_the_lower_side_above_the_upper_side():
    assert not compare(better_by(50.0), LOW).certified  # no upper side
    assert compare(better_by(50.0), replace(LOW, upper=-60.0)).certified
    assert not compare(better_by(50.0), replace(LOW, upper=-50.2)).certified  # within three standard errors
    assert not compare(better_by(50.0), replace(LOW, upper=-60.0, upper_error=5.0)).certified
    assert compare(better_by(50.0, bound="exact"), replace(LOW, bound="exact")).certified
    assert not clears(Evidence(0.0, 0.0, "estimate"), Evidence(-100.0, 0.0, "exact"))


def test_unlike_evidences_are_refused():
    with pytest.raises(BadInput, match="'estimate' minus side 'lower'"):
        compare(Evidence(0.0, 0.1, "estimate"), LOW)
    with pytest.raises(BadInput, match="different data"):
        compare(better_by(50.0, data="a"), replace(LOW, data="b"))


def test_probabilities_need_values_that_are_known():
    exact = {"a": Evidence(-10.0, 0.0, "exact"), "b": Evidence(-10.0 - math.log(3), 0.0, "exact")}
    assert probabilities(exact) == pytest.approx({"a": 0.75, "b": 0.25})
    narrow = {"a": replace(LOW, upper=-99.5), "b": replace(LOW, upper=-99.4)}
    assert probabilities(narrow) == pytest.approx({"a": 0.5, "b": 0.5})
    assert probabilities(narrow | {"b": LOW}) is None
    assert probabilities(narrow | {"b": replace(LOW, upper=-98.9)}) is None
    assert probabilities(narrow | {"b": replace(LOW, upper=-99.5, upper_error=0.5)}) is None  # not known well
    assert probabilities({"a": Evidence(0.0, 0.0, "estimate")}) is None


def test_an_upper_side_says_nothing_good_of_its_model():
    found = compare(Evidence(0.0, 0.0, "upper"), Evidence(-100.0, 0.0, "lower"))
    assert found.better == "undecided"
    assert compare(Evidence(-100.0, 0.0, "upper"), Evidence(0.0, 0.0, "lower")).better == "second"


@pytest.mark.parametrize("wrong", [{"value": math.nan}, {"bound": "bogus"}, {"std_error": math.nan}], ids=str)
def test_an_evidence_is_a_number_with_a_side(wrong):
    with pytest.raises(BadInput, match="finite nats"):
        replace(LOW, **wrong)
    with pytest.raises(BadInput, match="two Evidence"):
        compare(LOW, 1.0)


def test_sides_that_cross_are_said_to():
    assert "cross" in " ".join(replace(LOW, upper=-105.0).cautions)
    assert replace(LOW, upper=-99.0).cautions == []
    other = {"a": Evidence(0.0, 0.0, "exact", data="a"), "b": Evidence(0.0, 0.0, "exact", data="b")}
    assert probabilities(other) is None
    assert probabilities({}) is None
