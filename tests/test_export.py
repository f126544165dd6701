"""What a run learned leaves it with the right sign and unit, in each library's own convention."""

import ast
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_invariance.cli import main
from pyro_invariance.export import FORMATS, GENERATORS, export, policy, render
from pyro_invariance.results import Selection
from pyro_invariance.runs import write_json
from pyro_invariance.typing import BadInput

LIBRARIES = FORMATS[1:]
SIDE = 32


def learned(mean: float, unit: str, lower: float | None = None, saturated: bool = False) -> dict[str, Any]:
    lower = 0.9 * mean if lower is None else lower
    return {"mean": mean, "sd": 0.1, "lower": lower, "upper": 1.1 * mean, "unit": unit, "saturated": saturated}


def row(label: str, contains: list[str], log_evidence: float = -10.0, **extent: dict[str, Any]) -> dict[str, Any]:
    head = {"label": label, "base": "polar", "status": "done"}
    return {**head, "contains": contains, "log_evidence": log_evidence, "extent": extent}


def verdict(word: str, gap: float | None = 50.0) -> dict[str, Any]:
    return {
        "verdict": word,
        "gap": gap,
        "certified": False,
        "base": "polar",
        "reason": f"this against that: {gap} nats",
    }


def content(symmetries: dict[str, dict[str, Any]], *rows: dict[str, Any], name: str = "blobs") -> dict[str, Any]:
    return {
        "versions": {"pyro_invariance": "0.1.0"},
        "data": {"name": name, "sha256": "0123456789abcdef", "n_evidence": 40, "shape": [1, SIDE, SIDE]},
        "seed": 3,
        "hypotheses": [row("null", []), *rows],
        "symmetries": dict(sorted(symmetries.items())),
        "best": {"name": "null"},
    }


def ranges(found: dict[str, Any]) -> dict[str, Any]:
    return {move["transformation"]: move.get("range") for move in found["policy"]}


def drawn(**values: tuple[float, float] | None) -> dict[str, Any]:
    """Return a document of these transformations; no range is None."""
    found = policy(content({}))
    for name, value in values.items():
        move = {"transformation": name.replace("_", " "), "unit": "", "symmetry": name, "gap": 1.0}
        found["policy"].append(move if value is None else {**move, "range": list(value)})
    return found


def arguments(source: str, call: str) -> dict[str, Any]:
    """Return the literal keyword arguments of a call in a source."""
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and ast.unparse(n.func).endswith(call)]
    literal = [k for k in calls[0].keywords if not isinstance(k.value, ast.Attribute)]
    return {k.arg: ast.literal_eval(k.value) for k in literal if k.arg}


# What enters.


def test_supported_range_enters_in_the_units_of_a_policy():
    rows = [
        row("rotation", ["rotation"], rotation=learned(math.radians(20), "rad")),
        row(
            "translation",
            ["translation"],
            rows=learned(0.2, "grid"),
            columns=learned(0.6, "grid", lower=0.5, saturated=True),
        ),
        row("scale", ["scale"], scale=learned(math.log(2), "log")),
        row("shear", ["shear"], shear=learned(1.0, "grid")),
    ]
    found = policy(content({r["label"]: verdict("supported") for r in rows}, *rows))
    expected = {"rotation": [-20.0, 20.0], "rows": [-0.1, 0.1], "columns": [-0.25, 0.25], "scale": [0.5, 2.0]}
    assert ranges(found) == {**expected, "shear": [-45.0, 45.0]}
    assert found["left_out"] == []
    assert [move["transformation"] for move in found["policy"] if move["at_least"]] == ["columns"]
    source = render(found, "kornia")
    assert "- columns: at least -0.25 to 0.25 of the width" in source
    assert "(translation: +50 nats)" in source


def test_uneven_ranges_keep_their_ends():
    two = {"rows_left": learned(0.1, "grid"), "rows_right": learned(0.4, "grid")}
    shut = {"columns_left": learned(0.001, "grid"), "columns_right": learned(0.002, "grid")}
    found = policy(content({"affine": verdict("supported")}, row("uneven", ["affine"], **two, **shut)))
    assert ranges(found) == {"rows": [-0.05, 0.2]}  # further down than up
    assert [said["why"] for said in found["left_out"]] == ["its range of columns is shut off"]


def test_refused_and_undecided_are_named_with_their_gap():
    symmetries = {
        "mirror": verdict("refused", -12.5),
        "C4": verdict("undecided", 4.0),
        "SO2": verdict("undecided", None),
    }
    found = policy(content(symmetries, row("mirror", ["mirror"])))
    assert found["policy"] == []
    assert [said["symmetry"] for said in found["left_out"]] == ["C4", "SO2", "mirror"]
    source = render(found, "torchvision")
    assert "# - mirror: refused (this against that: -12.5 nats)\n" in source
    assert "# - C4: undecided (this against that: 4.0 nats)\n" in source


def test_groups_need_no_range():
    found = policy(content({"mirror": verdict("supported"), "C4": verdict("supported")}))
    assert ranges(found) == {"quarter turns": None, "mirror": None}
    assert ranges(policy(content({s: verdict("supported") for s in ("C4", "SO2")}))) == {"rotation": [-180.0, 180.0]}


def test_whole_circle_is_any_turn_unless_that_is_refused():
    rotation = row("rotation", ["rotation"], rotation=learned(3.0, "rad", lower=2.9, saturated=True))
    every = {"rotation": verdict("supported"), "SO2": verdict("undecided")}
    assert ranges(policy(content(every, rotation))) == {"rotation": [-180.0, 180.0]}
    found = policy(content(every | {"SO2": verdict("refused")}, rotation))
    assert ranges(found) == {"rotation": [-166.2, 166.2]}
    assert found["policy"][0]["at_least"]


def test_many_ranges_of_one_symmetry_enter_but_for_those_that_are_shut_off():
    wide, none = learned(math.radians(90), "rad"), learned(0.01, "log", lower=0.0)
    affine = row("affine", ["affine"], rotation=wide, scale=learned(math.log(2), "log"), aspect=none)
    both = row("mirror-affine", ["mirror", "affine"], -20.0, rotation=learned(0.1, "rad"))
    found = policy(content({"affine": verdict("supported")}, both, affine))
    assert ranges(found) == {"rotation": [-90.0, 90.0], "scale": [0.5, 2.0]}
    assert [said["why"] for said in found["left_out"]] == ["its range of aspect is shut off"]
    assert {move["hypothesis"] for move in found["policy"]} == {"affine"}


def test_ranges_of_colour_are_left_to_the_run():
    colour = row("colour", ["colour"], contrast=learned(0.3, "log"))
    found = policy(content({"colour": verdict("supported")}, colour))
    assert found["policy"] == []
    assert "selection.json has the ranges" in found["left_out"][0]["why"]


def test_undetermined_range_stays_out():
    rotation = row("rotation", ["rotation"], rotation=learned(1.5, "rad", lower=0.1, saturated=True))
    found = policy(content({"rotation": verdict("supported")}, rotation))
    assert found["policy"] == []
    assert "- rotation: supported, but its range of rotation is undetermined" in render(found, "kornia")


def test_range_is_that_of_the_best_hypothesis_that_has_it():
    rows = [
        row("rotation", ["rotation"], -20.0, rotation=learned(0.1, "rad")),
        row("pose", ["rotation", "scale"], -15.0, rotation=learned(0.2, "rad"), scale=learned(0.3, "log")),
        row("narrow", [], -5.0, rotation=learned(0.4, "rad")),
        {**row("lost", [], 0.0), "status": "failed", "contains": None, "extent": None, "log_evidence": None},
    ]
    found = policy(content({"rotation": verdict("supported"), "scale": verdict("refused")}, *rows))
    assert ranges(found) == {"rotation": [-11.46, 11.46]}
    assert found["policy"][0]["hypothesis"] == "pose"


def test_convolution_has_no_augmentation():
    rows = [row("convolution", ["convolution"], location=learned(0.3, "grid")), row("odd", ["odd"])]
    found = policy(content({s: verdict("supported") for s in ("convolution", "odd")}, *rows))
    assert found["policy"] == []
    source = render(found, "albumentations")
    assert "- convolution: supported, but no augmentation does this, convolutional layers do" in source
    assert "- odd: supported, but no range of it was learned" in source


def test_names_stay_in_the_comment():
    hostile = content({}, name='x"""\nimport nothing\r\\N')
    for to in LIBRARIES:
        tree = ast.parse(render(policy(hostile), to))
        assert [n for n in ast.walk(tree) if isinstance(n, ast.Import) and n.names[0].name == "nothing"] == []


# Text, wherever the libraries are not.


@pytest.mark.parametrize("to", LIBRARIES)
def test_source_compiles(to):
    everything = drawn(mirror=None, quarter_turns=None, **dict.fromkeys(GENERATORS, (0.5, 0.9)))
    for document in (drawn(), everything, drawn(rows=(-0.1, 0.1)), drawn(aspect=(0.9, 1.1))):
        source = render(document, to)
        compile(source, to, "exec")
        assert max(map(len, source.splitlines())) <= 120
        assert "policy = " in source
    assert "this policy changes nothing" in render(drawn(), to)
    assert "Affine" not in render(drawn(mirror=None), to)


def counter_clockwise(source: str, to: str) -> tuple[float, float]:
    """Return the range of turns that a source asks for: `RandomAffine` turns clockwise, `Affine` does not."""
    if to == "albumentations":
        return arguments(source, "Affine")["rotate"]
    low, high = arguments(source, "RandomAffine")["degrees"]
    return -high, -low


@pytest.mark.parametrize("to", LIBRARIES)
def test_turns_have_the_right_sign(to):
    source = render(drawn(rotation=(-10.0, 35.0)), to)
    assert counter_clockwise(source, to) == (-10.0, 35.0)
    written, flipped = "(-10.0, 35.0)", "(-35.0, 10.0)"
    if to != "albumentations":
        written, flipped = flipped, written
    mutant = source.replace(written, flipped)
    assert mutant != source
    assert counter_clockwise(mutant, to) == (-35.0, 10.0)


@pytest.mark.parametrize("to", ["torchvision", "kornia"])
def test_shifts_come_horizontal_first(to):
    source = render(drawn(rows=(-0.1, 0.1), columns=(-0.3, 0.3)), to)
    assert arguments(source, "RandomAffine")["translate"] == (0.3, 0.1)
    assert arguments(render(drawn(rows=(-0.1, 0.1)), to), "RandomAffine")["translate"] == (0.0, 0.1)


def test_uneven_shifts():
    shifts = drawn(rows=(-0.25, 0.0), columns=(-0.125, 0.5))  # up, and further right than left
    assert arguments(render(shifts, "torchvision"), "RandomCrop")["padding"] == [16, 0, 4, 8]
    wanted = {"translate_x": (-0.125, 0.5), "translate_y": (-0.25, 0.0), "p": 1.0}
    assert arguments(render(shifts, "kornia"), "RandomTranslate") == wanted
    wanted = {"x": (-0.125, 0.5), "y": (-0.25, 0.0)}
    assert arguments(render(shifts, "albumentations"), "Affine")["translate_percent"] == wanted
    assert "RandomAffine" not in render(shifts, "kornia")


# What the libraries do with it.


@pytest.fixture(params=LIBRARIES)
def apply(request: pytest.FixtureRequest) -> Callable[[str | dict[str, Any], np.ndarray], np.ndarray]:
    """Return `source or document, image [H, W] -> image`, by one draw of the policy."""
    to = request.param
    pytest.importorskip(
        to, reason=f"{to} is no dependency; what it does with a policy is checked where it is installed"
    )

    def once(given: str | dict[str, Any], image: np.ndarray) -> np.ndarray:
        names: dict[str, Any] = {}
        exec(compile(given if isinstance(given, str) else render(given, to), to, "exec"), names)
        if to == "albumentations":
            return names["policy"](image=image[..., None])["image"].reshape(image.shape)
        batch = torch.tensor(image)[None, None] if to == "kornia" else torch.tensor(image)[None]
        return names["policy"](batch).reshape(image.shape).numpy()

    torch.manual_seed(0)
    return once


def blob(row: int, column: int) -> np.ndarray:
    """Return a bright square that far below and to the right of the centre."""
    image = np.zeros((SIDE, SIDE), np.float32)
    top, left = SIDE // 2 + row, SIDE // 2 + column
    image[top - 2 : top + 2, left - 2 : left + 2] = 0.5
    return image


def place(image: np.ndarray) -> tuple[float, float]:
    """Return how far below and to the right of the centre the brightness is."""
    at = np.arange(SIDE) - (SIDE - 1) / 2
    return float(image.sum(1) @ at / image.sum()), float(image.sum(0) @ at / image.sum())


def places(
    apply: Callable, document: dict[str, Any], image: np.ndarray, draws: int = 30
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.transpose([place(apply(document, image)) for _ in range(draws)])
    return rows, columns


def turns(apply: Callable, low: float, high: float) -> bool:
    """Return whether turns by 20 to 40 degrees, counter-clockwise, come of a range."""
    rows, columns = places(apply, drawn(rotation=(low, high)), blob(0, 9))
    degrees = np.degrees(np.arctan2(-rows, columns))  # rows run down
    return bool(17 < degrees.min() < 27 and 33 < degrees.max() < 43)


def test_library_turns_counter_clockwise(apply):
    assert turns(apply, 20.0, 40.0)
    assert not turns(apply, -40.0, -20.0)  # mutants: the other way round, further, and only half as far
    assert not turns(apply, 20.0, 60.0)
    assert not turns(apply, 10.0, 20.0)


def test_library_shifts_either_way(apply):
    rows, columns = places(apply, drawn(rows=(-0.05, 0.05), columns=(-0.25, 0.25)), blob(0, 0), 60)
    assert abs(rows).max() < 2.5
    assert columns.min() < -4
    assert columns.max() > 4
    assert abs(columns).max() < 9


def test_library_shifts_further_one_way(apply):
    rows, columns = places(apply, drawn(rows=(-0.25, 0.0), columns=(0.0, 0.25)), blob(0, 0), 60)
    assert -9 < rows.min() < -5
    assert rows.max() < 0.6
    assert 5 < columns.max() < 9
    assert columns.min() > -0.6


def test_library_scales_and_shears(apply):
    _, columns = places(apply, drawn(scale=(1.3, 1.4)), blob(0, 8))
    assert 10 < columns.min() < columns.max() < 11.6
    rows, columns = places(apply, drawn(shear=(20.0, 25.0)), blob(-9, 0))
    assert abs(rows + 9).max() < 1
    assert 2.5 < columns.min() < columns.max() < 5  # the top goes to the right


def test_library_mirrors_and_turns_by_quarters(apply):
    image = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
    flips = [bool((apply(drawn(mirror=None), image) == image[:, ::-1]).all()) for _ in range(40)]
    assert 3 < sum(flips) < 37
    turned = [apply(drawn(quarter_turns=None), image) for _ in range(60)]
    seen = [[bool((t == np.rot90(image, k)).all()) for k in range(4)] for t in turned]
    assert np.sum(seen, 1).tolist() == [1] * 60  # exact
    assert np.sum(seen, 0).min() > 0


def test_library_changes_brightness(apply):
    means = [apply(drawn(brightness=(0.5, 0.8)), blob(0, 0)).mean() / blob(0, 0).mean() for _ in range(30)]
    assert 0.49 < min(means) < 0.6
    assert 0.7 < max(means) < 0.81


def test_library_takes_an_empty_policy(apply):
    assert (apply(drawn(), blob(3, 5)) == blob(3, 5)).all()


# From a run.


@pytest.mark.parametrize("to", FORMATS)
def test_run_is_exported(to, run: Selection, folder: Path, tmp_path, capsys):
    text = export(folder, to)
    assert main(["export", str(folder), "--to", to]) == 0
    assert capsys.readouterr().out == text
    out = tmp_path / f"policy.{'json' if to == 'json' else 'py'}"
    assert main(["export", str(folder), "--to", to, "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == text
    assert capsys.readouterr().out == f"policy in {out}\n"
    if to != "json":
        compile(text, to, "exec")
        assert "Data tiny (sha256" in text
        return
    document = json.loads(text)
    judged = {said["symmetry"]: said["verdict"] for said in document["policy"] + document["left_out"]}
    assert judged == {s: v.verdict for s, v in run.verdicts.items()}
    assert (document["data"]["name"], document["seed"], document["best"]) == ("tiny", 0, run.best.label)


# Bad input.


def test_unknown_format(run, folder):
    with pytest.raises(BadInput, match=r"to: got 'korina'; did you mean 'kornia'\? accepted: json, torchvision"):
        export(folder, "korina")


def test_no_run(tmp_path):
    with pytest.raises(BadInput, match=r"holds no selection\.json; name the folder of a finished run"):
        export(tmp_path / "nowhere", "json")


def test_unfinished_run(tmp_path):
    write_json(tmp_path / "run.json", {})
    with pytest.raises(BadInput, match="is unfinished"):
        export(tmp_path, "json")


@pytest.mark.parametrize("damage", [{}, [], {"symmetries": {}}, {"symmetries": {"mirror": {"verdict": "supported"}}}])
def test_damaged_run(damage, tmp_path):
    write_json(tmp_path / "selection.json", damage)
    with pytest.raises(BadInput, match="is damaged"):
        export(tmp_path, "kornia")
    (tmp_path / "selection.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match="cannot be read"):
        export(tmp_path, "kornia")


def test_command_line_says_so_in_one_line(run, folder, tmp_path, capsys):
    bad = (
        (["export", str(tmp_path / "nowhere"), "--to", "json"], "holds no selection.json"),
        (["export", str(folder), "--to", "keras"], "to: got 'keras'"),
        (["export", str(folder)], "--to"),
        (["export", str(folder), "--to", "json", "--out", str(tmp_path / "policy.py")], "ends in .json"),
        (["export", str(folder), "--to", "kornia", "--out", str(tmp_path / "no" / "policy.py")], "cannot be written"),
    )
    for command, words in bad:
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert words in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_run_of_another_source_is_refused(folder, run, tmp_path):
    for name in ("selection.json", "run.json"):
        write_json(tmp_path / name, json.loads((folder / name).read_text(encoding="utf-8")))
    assert export(tmp_path, "kornia")
    made = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "run.json", made | {"entry's source": "of before the mirror meant another thing"})
    with pytest.raises(BadInput, match="another entry's source"):
        export(tmp_path, "kornia")


def test_run_of_series_is_for_json_alone(folder, run, tmp_path):
    content = json.loads((folder / "selection.json").read_text(encoding="utf-8"))
    content["entry"], content["data"]["shape"] = "custom", [30]
    write_json(tmp_path / "selection.json", content)
    assert export(tmp_path, "json")
    with pytest.raises(BadInput, match="not of images"):
        export(tmp_path, "kornia")
