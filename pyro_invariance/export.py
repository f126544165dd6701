"""What a run learned, as an augmentation policy for other libraries.

A transformation enters if its symmetry is supported, with the range of the hypothesis that learned it (posterior mean).
Ranges are `(low, high)`, each drawn from by itself: degrees counter-clockwise, shares of the side (down, to the right)
or factors.  A learned range is an insensitivity of the labels, wider than the range of poses in the data.
"""

import json
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from pyro_invariance import zoo
from pyro_invariance.fitting import Range
from pyro_invariance.runs import SOURCE, read_json, source
from pyro_invariance.typing import BadInput, nearest


@dataclass(frozen=True)
class Generator:
    """What is ranged over: its symmetry, the unit of its extent, and how a policy says it."""

    symmetry: str
    unit: str
    convert: Callable[[float], float]
    words: str


GENERATORS = {
    "rotation": Generator("rotation", "rad", math.degrees, "degrees, counter-clockwise"),
    "rows": Generator("translation", "grid", lambda e: e / 2, "of the height, positive down"),  # the image is [-1, 1]
    "columns": Generator("translation", "grid", lambda e: e / 2, "of the width, positive right"),
    "scale": Generator("scale", "log", math.exp, "times the size"),
    "aspect": Generator("aspect", "log", lambda e: math.exp(2 * e), "times width over height"),
    "shear": Generator("shear", "grid", lambda e: math.degrees(math.atan(e)), "degrees, the top to the right"),
}
ANY_TURN = [-180.0, 180.0]
GROUPS: dict[str, dict[str, Any]] = {  # what needs no range
    "mirror": {"transformation": "mirror", "probability": 0.5, "unit": "left and right exchanged, half of the time"},
    "C4": {"transformation": "quarter turns", "degrees": [0, 90, 180, 270], "unit": "each of the four equally often"},
    "SO2": {"transformation": "rotation", "range": ANY_TURN, "unit": GENERATORS["rotation"].words},
}
WITHOUT = {
    "convolution": "no augmentation does this, convolutional layers do",
    "elastic": "a policy moves images as a whole; selection.json has the range",
    "colour": "a policy moves the content of images only; selection.json has the ranges",
}
NOT_DRAWN = {"aspect"}  # the libraries draw width and height apart
AFFINE = ("rotation", "rows", "columns", "scale", "shear")

FORMATS = ("json", "torchvision", "albumentations", "kornia")


def export(run: str | Path, to: str) -> str:
    """The augmentation policy of a finished run: a JSON document, or Python source that defines `policy`.

    Parameters
    ----------
    run : str or Path
        Its folder.
    to : str
        `json`, `torchvision`, `albumentations` or `kornia`.

    Raises
    ------
    BadInput
        With the argument, what was got and what is accepted.
    """
    if to not in FORMATS:
        raise BadInput(f"to: got {to!r}; {nearest(to, FORMATS)}")
    folder = Path(run)
    if not (folder / "selection.json").is_file():
        what = "is unfinished" if (folder / "run.json").is_file() else "holds no selection.json"
        raise BadInput(f"run: {str(run)!r} {what}; name the folder of a finished run")
    content = read_json(folder / "selection.json")
    try:
        if content["entry"] in zoo.names() and source(content["entry"]) != read_json(folder / "run.json")[SOURCE]:
            raise BadInput(f"run: {str(run)!r} was made by another {SOURCE}; select again into another folder")
        if to != "json" and len(content["data"]["shape"]) != 3:
            raise BadInput(f"run: {str(run)!r} is not of images, which every format but json is for")
        document = policy(content)
        return json.dumps(document, indent=1, allow_nan=False) + "\n" if to == "json" else render(document, to)
    except BadInput:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"run: {str(run)!r} is damaged ({type(error).__name__}: {error})") from None


def policy(content: dict[str, Any]) -> dict[str, Any]:
    """What the content of `selection.json` says of augmentation, as a plain document.

    `policy` lists the transformations that are supported, `left_out` what is not, or cannot be drawn from.
    """
    moves: dict[str, dict[str, Any]] = {}
    left_out = []
    for symmetry, verdict in content["symmetries"].items():
        said = {"symmetry": symmetry, **{k: verdict[k] for k in ("verdict", "gap", "certified", "reason")}}
        for move in _moves(symmetry, content) if verdict["verdict"] == "supported" else [{"why": ""}]:
            if "why" in move:
                left_out.append(said | move)
            else:
                moves.setdefault(move["transformation"], move | said)  # SO2 comes before rotation
    if moves.get("rotation", {}).get("range") == ANY_TURN:
        moves.pop("quarter turns", None)  # they are among all turns
    data, best = content["data"], content["best"]["name"]
    return {
        "schema": 1,
        "made_by": f"pyro_invariance {content['versions']['pyro_invariance']}",
        "data": {k: data[k] for k in ("name", "sha256", "n_evidence", "shape")},
        "seed": content["seed"],
        "best": best,
        "log_evidence": {row["label"]: row["log_evidence"] for row in content["hypotheses"]}[best],
        "policy": list(moves.values()),
        "left_out": left_out,
    }


def _moves(symmetry: str, content: dict[str, Any]) -> list[dict[str, Any]]:
    """The transformations that a supported symmetry stands for, with a range, or with `why` there is none."""
    if symmetry in GROUPS:
        return [GROUPS[symmetry]]
    fitted = [row for row in content["hypotheses"] if row["status"] == "done" and symmetry in row["contains"]]
    fitted.sort(key=lambda row: -row["log_evidence"])
    refused = content["symmetries"].get("SO2", {}).get("verdict") == "refused"
    half_pixel = 1 / content["data"]["shape"][-1]  # of the grid [-1, 1]; at the rim, of turns and scales as well
    moves = []
    for name, generator in GENERATORS.items():
        stands = symmetry in (generator.symmetry, "affine")  # all of them are affine
        sides = {name, f"{name}_left"}
        row = next((row for row in fitted if stands and sides & row["extent"].keys()), None)
        if row is None:
            continue
        names = (name, name) if name in row["extent"] else (f"{name}_left", f"{name}_right")
        learned = [Range(**row["extent"][side], zero=False) for side in names]
        move = {"transformation": name, "unit": generator.words, "hypothesis": row["label"]}
        if any(r.unit != generator.unit or r.undetermined for r in learned):
            moves.append(move | {"why": f"its range of {name} is undetermined"})
            continue
        if max(r.mean for r in learned) < half_pixel:
            moves.append(move | {"why": f"its range of {name} is shut off"})
            continue
        left, right = (r.lower if r.saturated else r.mean for r in learned)  # a mean is not the least that it may be
        ends = [float(f"{generator.convert(end):.4g}") for end in (-left, right)]
        saturated = [r.saturated for r in learned]
        whole = name == "rotation" and all(saturated) and not refused
        moves.append(move | {"range": ANY_TURN if whole else ends, "at_least": any(saturated) and not whole})
    return moves or [{"why": WITHOUT.get(symmetry, "no range of it was learned")}]


def render(document: dict[str, Any], to: str) -> str:
    """Python source of a policy for `torchvision`, `albumentations` or `kornia`; a comment says where it is from."""
    moves = {move["transformation"]: move for move in document["policy"]}
    values = {name: (generator.convert(0.0),) * 2 for name, generator in GENERATORS.items()}  # no change
    values |= {name: tuple(move["range"]) for name, move in moves.items() if "range" in move}
    (left, right), (up, down), (low, high) = values["columns"], values["rows"], values["rotation"]
    uneven = (left, up) != (-right, -down)
    height, width = document["data"]["shape"][-2:]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "policies"),
        line_statement_prefix="%",
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    source = environment.get_template(f"{to}.jinja").render(
        values,
        moves=moves,
        clockwise=(0.0 - high, 0.0 - low),
        translate=(0.0, 0.0) if uneven else (right, down),
        affine=any(name in moves for name in AFFINE if not (uneven and name in ("rows", "columns"))),
        uneven=uneven,
        size=(height, width),
        padding=[round(right * width), round(down * height), round(-left * width), round(-up * height)],
    )
    return _comment(document) + "\n" + source


def _comment(document: dict[str, Any]) -> str:
    """Where a policy is from, what is in it and what is not, in lines of comment."""
    data, moves = document["data"], document["policy"]
    lines = [
        f"Augmentation policy, learned from the labels of {data['n_evidence']} images by {document['made_by']}.",
        f"Data {data['name']} (sha256 {data['sha256'][:12]}), seed {document['seed']}; best model {document['best']}, "
        f"log evidence {document['log_evidence']:.1f} nats.",
        "",
        "Supported by the evidence:" if moves else "No augmentation is supported: this policy changes nothing.",
    ]
    for move in moves:
        reach = "{} to {} ".format(*move["range"]) if "range" in move else ""
        more = "at least " if move.get("at_least") else ""
        more += "not drawn here, " if move["transformation"] in NOT_DRAWN else ""
        gap = f"{move['symmetry']}: {move['gap']:+.0f} nats"
        lines.append(f"- {move['transformation']}: {more}{reach}{move['unit']} ({gap})")
    lines += ["Left out:"] if document["left_out"] else []
    for said in document["left_out"]:
        why = f", but {said['why']}" if said["why"] else ""
        lines.append(f"- {said['symmetry']}: {said['verdict']}{why} ({said['reason']})")
    if any("range" in move for move in moves):
        lines += ["", "A learned range is how far the labels do not care, wider than the range of poses in the data."]
    if any(move["transformation"] in AFFINE for move in moves):
        lines.append("Black moves in from outside: name another fill where the ground is not black.")
    wrapped = [
        part
        for line in lines
        for part in textwrap.wrap(line, 118, subsequent_indent="  ", break_on_hyphens=False) or [""]
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in wrapped)
