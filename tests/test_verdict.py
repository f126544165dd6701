"""The rule that turns evidences into verdicts, clause by clause, on hand-made fits."""

import math
from dataclasses import replace

import pytest
from judged import NULL, TRIVIAL, TURNS, judge, made

from pyro_invariance import verdict
from pyro_invariance.fitting import Fit
from pyro_invariance.verdict import FLOOR, best, verdicts
from pyro_invariance.zoo import Hypothesis


def test_supported():
    found = judge("C4", NULL, TRIVIAL, made("C4", 50.0))
    assert (found.verdict, found.gap, found.margin, found.base) == ("supported", 50.0, FLOOR, "polar")
    assert found.certified
    assert found.explained_by is None
    assert "C4 against trivial-polar: +50.0 nats, 10.0 needed" in found.reason


def test_refused():
    found = judge("C4", NULL, TRIVIAL, made("C4", -50.0))
    assert (found.verdict, found.gap, found.certified) == ("refused", -50.0, True)
    assert "-50.0 nats" in found.reason


def test_mirror_is_refused_when_it_adds_nothing_to_turns():
    fits = [NULL, TRIVIAL, made("mirror", 40.0), made("SO2", 300.0), made("O2", 200.0)]
    found = judge("mirror", *fits)  # mirror alone beats trivial, but the best without it beats the best with it
    assert (found.verdict, found.gap) == ("refused", -100.0)
    assert "O2 against SO2" in found.reason
    assert judge("SO2", *fits).verdict == "supported"
    without_turns = judge("mirror", NULL, TRIVIAL, made("mirror", 40.0))
    assert without_turns.verdict == "supported"


def test_symmetries_are_judged_within_their_base():
    fits = [
        NULL,
        TRIVIAL,
        made("C4", 50.0),
        made("trivial", 400.0, base="pixels"),
        made("translation", 380.0, base="pixels"),
    ]
    assert judge("C4", *fits).verdict == "supported"  # although everything in the other base is better
    assert judge("translation", *fits).verdict == "refused"
    assert judge("translation", *fits).base == "pixels"


@pytest.mark.parametrize("sign", [1, -1])
def test_floor(sign):
    at, above = (judge("C4", NULL, TRIVIAL, made("C4", sign * gap)) for gap in (FLOOR, FLOOR + 0.1))
    assert FLOOR == 10.0
    assert (at.verdict, at.certified, at.gap) == ("undecided", False, sign * FLOOR)
    assert above.verdict == ("supported" if sign > 0 else "refused")


SHUFFLED = [
    (0.0, 5.9),
    (0.0, -5.9),
    (-3.0, 2.5),
    (0.0, 0.3),
]  # evidences of trivial and C4 on labels that mean nothing: gaps up to 6 nats


def check_shuffled_labels() -> None:
    """Raise unless gaps such as shuffled labels give leave every symmetry undecided."""
    for trivial, turns in SHUFFLED:
        for below in (-1000.0, -20.0):
            fits = [made("null", below), made("trivial", trivial), made("C4", turns)]
            assert judge("C4", *fits).verdict == "undecided"


def test_shuffled_labels_decide_nothing():
    check_shuffled_labels()


@pytest.mark.parametrize("floor", [0.0, 5.0])
def test_lower_floor_mutant_is_caught(floor, monkeypatch):
    monkeypatch.setattr(verdict, "FLOOR", floor)
    with pytest.raises(AssertionError):
        check_shuffled_labels()


def test_mutant_that_forgets_the_base_is_caught(monkeypatch):
    def one_base(symmetry, fits, null, original=verdict._contrast):
        everything = [made(f.name, f.evidence.value) for f in fits if f.kind != "null"]
        return original(symmetry, everything, null)

    monkeypatch.setattr(verdict, "_contrast", one_base)
    with pytest.raises(AssertionError):
        test_symmetries_are_judged_within_their_base()


@pytest.mark.parametrize(
    "errors",
    [
        {"std_error": 15.0 / math.sqrt(2)},  # of both sides: 2 combined standard errors are 30
        {"spread": 30.0},
        {"drift": 30.0},
        {"looseness": 30.0},
    ],
    ids=["standard error", "spread", "drift", "looseness"],
)
@pytest.mark.parametrize("sides", [("C4",), ("trivial",), ("C4", "trivial")], ids=["with", "without", "both"])
def test_every_measured_error_widens_the_margin(errors, sides):
    if "std_error" in errors and len(sides) == 1:
        errors = {"std_error": 15.0}  # 2 standard errors of one side, next to 0.1 of the other
    of = {name: errors if name in sides else {} for name in ("C4", "trivial")}
    for gap, decided in ((29.0, False), (31.0, True)):
        for sign, word in ((1, "supported"), (-1, "refused")):
            found = judge("C4", NULL, made("trivial", 0.0, **of["trivial"]), made("C4", sign * gap, **of["C4"]))
            assert found.margin == pytest.approx(30.0, abs=0.01)
            assert found.verdict == (word if decided else "undecided")


def test_margin_is_the_largest_error_not_their_sum():
    noisy = {"std_error": 4.0, "spread": 12.0, "drift": 11.0, "looseness": 13.0}
    found = judge("C4", NULL, made("trivial", 0.0, **noisy), made("C4", 14.0, **noisy))
    assert (found.verdict, found.margin) == ("supported", 13.0)


def test_errors_of_models_that_are_not_compared_do_not_count():
    bystander = made("mirror", -100.0, spread=500.0, looseness=500.0)
    assert judge("C4", NULL, TRIVIAL, bystander, made("C4", 50.0)).margin == FLOOR


def test_unknown_drift_and_looseness_count_as_none():
    found = judge("C4", NULL, TRIVIAL, made("C4", 50.0, drift=None, looseness=None))
    assert (found.verdict, found.margin) == ("supported", FLOOR)


@pytest.mark.parametrize("sign", [1, -1])
def test_winner_must_beat_noise_alone(sign):
    trivial, turns = (0.0, 50.0) if sign > 0 else (50.0, 0.0)
    for null, decided in ((50.0 - FLOOR, False), (50.0 - FLOOR - 0.1, True), (60.0, False)):
        found = judge("C4", made("null", null), made("trivial", trivial), made("C4", turns))
        assert found.gap == sign * 50.0
        assert (found.verdict != "undecided") == decided
        if not decided:
            assert "beats noise alone" in found.reason
            assert not found.certified


def test_errors_of_the_null_count():
    null = made("null", 0.0, looseness=80.0)
    found = judge("C4", null, made("trivial", 0.0), made("C4", 60.0))
    assert found.verdict == "undecided"
    assert "beats noise alone by +60.0" in found.reason


def test_undecided_without_null():
    found = judge("C4", TRIVIAL, made("C4", 50.0))
    assert (found.verdict, found.gap, found.certified) == ("undecided", 50.0, False)
    assert "null was not fitted" in found.reason


def test_undecided_without_a_model_that_lacks_it():
    found = judge("C4", NULL, made("C4", 50.0), made("SO2", 30.0), made("trivial", 0.0, base="pixels"))
    assert (found.verdict, found.gap, found.margin) == ("undecided", None, None)
    assert "no hypothesis of the polar base without it" in found.reason


def test_certified_needs_the_lower_side_to_clear_every_upper_side():
    clear = judge("C4", NULL, made("trivial", 0.0, upper=29.0), made("C4", 30.0))
    assert clear.certified
    within = judge("C4", NULL, made("trivial", 0.0, upper=29.0, std_error=0.5), made("C4", 30.0))
    assert within.verdict == "supported"
    assert not within.certified  # 1 nat is less than 3 combined standard errors
    another = judge("C4", NULL, made("trivial", 0.0, upper=1.0), made("mirror", -5.0, upper=45.0), made("C4", 30.0))
    assert another.verdict == "supported"
    assert not another.certified  # mirror lacks C4 too, and may be worth 45


def test_certified_refusal_is_the_other_way_round():
    fits = [NULL, made("trivial", 0.0), made("C4", -30.0, upper=-5.0)]
    assert judge("C4", *fits).certified
    high = judge("C4", *fits, made("SO2", -60.0, upper=2.0))
    assert high.verdict == "refused"
    assert not high.certified


def test_undecided_is_never_certified():
    found = judge("C4", NULL, made("trivial", 0.0, upper=0.0, std_error=0.0), made("C4", 9.0, std_error=0.0))
    assert (found.verdict, found.certified) == ("undecided", False)


def test_certified_needs_an_upper_side_that_was_searched_densely():
    found = judge("C4", NULL, made("trivial", 0.0, dense=False), made("C4", 50.0))
    assert (found.verdict, found.certified) == ("supported", False)


@pytest.mark.parametrize("liar", ["C4", "trivial"])
@pytest.mark.parametrize(("khat", "draws", "word"), [(0.8, 10_000, "undecided"), (0.8, 32, "supported")])
def test_a_guide_that_misses_a_tail_decides_nothing(liar, khat, draws, word):
    said = {"khat": khat, "draws": draws, "dense": False}
    fits = [made(name, value, **(said if name == liar else {"dense": False})) for name, value in GAP.items()]
    found = judge("C4", NULL, *fits)
    assert found.verdict == word
    assert ("k-hat 0.80" in found.reason) == (word == "undecided")


def test_a_certified_gap_needs_no_khat():
    bad = {"khat": 0.9, "draws": 10_000}
    found = judge("C4", NULL, made("trivial", 0.0, upper=2.0, **bad), made("C4", 50.0, **bad))
    assert (found.verdict, found.certified) == ("supported", True)


GAP = {"trivial": 0.0, "C4": 50.0}


def elsewhere(shift: float) -> list[Fit]:
    """Turns worth 50 nats in their base; shifts supported in a base that is better by `shift`."""
    pixels = [made("trivial", shift - 50.0, base="pixels"), made("translation", 50.0 + shift, base="pixels")]
    return [NULL, TRIVIAL, made("C4", 50.0), *pixels]


def test_explained_by_another_base():
    found = judge("C4", *elsewhere(51.0))
    assert (found.verdict, found.explained_by) == ("supported", "translation")  # said, not withdrawn
    assert "translation explains these data better by 51 nats" in found.reason
    found = judge("C4", *elsewhere(101.0))
    assert (found.verdict, found.certified, found.explained_by) == ("undecided", False, "translation")
    assert "translation explains these data better by 101 nats" in found.reason
    assert found.gap == 50.0
    assert judge("translation", *elsewhere(51.0)).verdict == "supported"


def test_not_explained_by_less_than_the_gap():
    found = judge("C4", *elsewhere(50.0))
    assert (found.verdict, found.explained_by) == ("supported", None)
    assert "better" not in found.reason


def test_not_explained_by_a_base_whose_symmetry_is_not_supported():
    pixels = [made("trivial", 500.0, base="pixels"), made("translation", 505.0, base="pixels")]
    assert judge("C4", NULL, TRIVIAL, made("C4", 50.0), *pixels).verdict == "supported"


def test_not_explained_by_patches():
    patches = [made("trivial", 500.0, base="patches"), made("convolution", 600.0, base="patches")]
    fits = [NULL, TRIVIAL, made("C4", 50.0), *patches]
    assert judge("convolution", *fits).verdict == "supported"
    assert judge("C4", *fits).verdict == "supported"


def test_refusals_stand_whatever_other_bases_say():
    pixels = [made("trivial", 300.0, base="pixels"), made("translation", 500.0, base="pixels")]
    assert judge("C4", NULL, TRIVIAL, made("C4", -50.0), *pixels).verdict == "refused"


def test_symmetries_are_those_that_anybody_claims():
    assert set(verdicts([NULL, TRIVIAL])) == set()
    assert set(verdicts([NULL, TRIVIAL, made("D4", 0.0)])) == {"C4", "mirror"}
    assert set(verdicts([NULL, TRIVIAL, made("rotation", 0.0, contains=set())])) == TURNS
    assert list(verdicts([NULL, TRIVIAL, made("O2", 0.0)])) == sorted(TURNS | {"mirror"})


def test_best_is_the_largest_evidence():
    first, second = best([TRIVIAL, made("C4", 50.0), NULL])
    assert (first.label, second.label) == ("C4", "trivial-polar")
    assert best([TRIVIAL]) == (TRIVIAL, None)


def test_runner_up_is_another_model():
    full, group, third = made("rotation", 100.0, contains=TURNS), made("SO2", 99.0), made("C4", 50.0)
    assert best([third, group, full]) == (full, third)  # SO2 is what the range has become
    half = made("rotation", 100.0)
    assert best([third, group, half]) == (half, group)
    zero = made("rotation", 100.0, contains=set())
    assert best([TRIVIAL, zero, third]) == (zero, third)
    same_in_another_base = made("trivial", 99.0, base="pixels")
    assert best([made("trivial", 100.0), same_in_another_base])[1] == same_in_another_base
    assert best([full, group])[1] is None


def absent(name: str, contains: set[str]) -> Hypothesis:
    return Hypothesis(name, "group", "polar", print, tuple, ({},), contains=frozenset(contains))


@pytest.mark.parametrize(
    ("value", "missing", "changes"),
    [
        (50.0, absent("mirror", {"mirror"}), True),  # without quarter turns, and perhaps better still
        (50.0, absent("SO2", TURNS), False),  # more evidence for what is supported
        (-50.0, absent("SO2", TURNS), True),  # with quarter turns, and perhaps better after all
        (-50.0, absent("mirror", {"mirror"}), False),
        (5.0, absent("mirror", {"mirror"}), False),  # undecided as it is
        (50.0, replace(absent("mirror", {"mirror"}), base="pixels"), False),
    ],
)
def test_what_was_not_fitted_might_have_changed_it(value, missing, changes):
    fits = [NULL, TRIVIAL, made("C4", value)]
    plain = judge("C4", *fits)
    failed = verdicts(fits, failed=[missing])["C4"]
    omitted = verdicts(fits, omitted=[missing])["C4"]
    if not changes:
        assert failed == omitted == plain
        return
    assert (failed.verdict, failed.certified) == ("undecided", False)
    assert f"{missing.label} failed, and might have changed it" in failed.reason
    assert (omitted.verdict, omitted.certified) == (plain.verdict, False)
    assert f"not compared with {missing.label}" in omitted.reason
