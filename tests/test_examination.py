"""The table of an entry: what is right passes, and each mutant fails its own line."""

from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from pyro_invariance import cli, examination, zoo
from pyro_invariance.calibration import Calibration
from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence import Evidence, iwae
from pyro_invariance.examination import Check, _coverage, _invariance, _ordering, _own_case, examine, table
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def entry() -> ModuleType:
    return zoo.load("orbit_gp")


@pytest.fixture(scope="module")
def fitted(entry, float64) -> tuple[Fit, object]:
    data = entry.data("mirror", 0, size=60, test=200)
    return fit(next(h for h in entry.hypotheses(data) if h.name == "mirror"), data), data


def test_predictions_of_the_right_model_are_calibrated(fitted):
    assert _coverage(*fitted).passed


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_predictions_that_are_too_sure_or_not_sure_enough_fail(fitted, factor):
    f, data = fitted
    check = _coverage(replace(f, test_variance=factor * f.test_variance), data)
    assert not check.passed


def bases(entry: ModuleType, data: Dataset) -> tuple[Hypothesis, Hypothesis]:
    by_label = {h.label: h for h in entry.hypotheses(data)}
    return by_label["mirror"], by_label["trivial-polar"]


def test_a_mirrored_function_is_invariant(entry, fitted):
    check = _invariance(*bases(entry, fitted[1]), fitted[1], 0)
    assert check.passed
    assert check.measured.startswith("0.000")  # a mirror needs no resampling


def test_a_function_moved_by_another_element_is_not(entry, fitted):
    mirror, plain = bases(entry, fitted[1])
    wrong = replace(mirror, moved=lambda images, extents: {"up and down": images.flip(-2)})
    assert not _invariance(wrong, plain, fitted[1], 0).passed


def test_bounds_are_in_order_and_others_are_not(entry, monkeypatch):
    data = entry.data("mirror", 0, size=40, test=2, side=8)
    mirror, _ = bases(entry, data)
    assert _ordering(mirror, data, 0).passed
    for off in (20, -20):

        def wrong(*args: object, off: int = off, **options: int) -> Evidence:
            found = iwae(*args, **options)
            return replace(found, value=found.value + off)

        monkeypatch.setattr(examination, "iwae", wrong)
        assert not _ordering(mirror, data, 0).passed


@pytest.mark.parametrize(("supported", "passed"), [("mirror", True), ("", False), ("mirror, C4", False)])
def test_what_was_planted_is_supported_and_no_more(supported, passed, entry, monkeypatch):
    """In the base of what was planted; a shift may mend what another base lacks."""
    verdicts = {
        name: SimpleNamespace(
            verdict="supported" if name in supported or name == "translation" else "refused", base=base
        )
        for name, base in (("mirror", "polar"), ("C4", "polar"), ("translation", "pixels"))
    }
    monkeypatch.setattr(examination, "select", lambda *args, **options: SimpleNamespace(verdicts=verdicts))
    mirror, _ = bases(entry, entry.data("mirror", 0, size=40, test=2, side=8))
    assert _own_case(entry, "mirror", mirror, 0, 1).passed == passed


def test_table_says_pass_or_fail():
    lines = table([Check("a", "1", "<= 2", True), Check("bc", "3", "<= 2", False)]).split("\n")
    assert lines == ["pass  a   1 (accepted: <= 2)", "FAIL  bc  3 (accepted: <= 2)"]


def test_unknown_names_are_refused():
    with pytest.raises(BadInput, match="orbit_gp"):
        next(examine("orbit_gb"))
    with pytest.raises(BadInput, match="rotation"):
        next(examine("orbit_gp", "rotatoin"))


@pytest.mark.parametrize("passed", [True, False])
def test_command_exits_by_the_table(passed, monkeypatch, tmp_path, capsys):
    ranks = {"noise": np.random.default_rng(0).integers(0, 100, 50)}
    found = [Check("one", "1", "<= 2", True), Calibration(ranks), Check("two", "3", "<= 4", passed)]
    monkeypatch.setattr(cli, "examine", lambda *args, **options: iter(found))
    assert cli.main(["check", "orbit_gp", "--out", str(tmp_path / "c.png")]) == (0 if passed else 1)
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert ("FAIL  two" in capsys.readouterr().out) == (not passed)


@pytest.mark.parametrize("wrong", [["--simulations", "3"], ["--out", "c.gif"], ["--seed", "-1"]])
def test_command_refuses_wrong_input(wrong, capsys):
    assert cli.main(["check", "orbit_gp", *wrong]) == 2
    assert "got" in capsys.readouterr().err


@pytest.mark.slow
def test_the_orbit_process_passes():
    checks = [c for c in examine("orbit_gp") if isinstance(c, Check)]
    assert [c for c in checks if not c.passed] == []
    assert len(checks) >= 8


def test_functions_of_learned_features_are_asked_with_what_was_learned(monkeypatch):
    network = zoo.load("molecule_network")
    monkeypatch.setattr(network, "STEPS", 5)
    data = network.data("E3", 0, size=40, test=10).halved(0)
    named = {h.name: h for h in network.hypotheses(data)}
    assert _invariance(named["E3"], named["trivial"], data, 0).passed
