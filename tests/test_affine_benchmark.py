"""What the benchmark of ranges says fell short, on rows that are made up."""

import math

from benchmarks.affine import gain, wrong

AXES = {"rows": 1.0, "columns": 1.0, "rotation": math.pi, "scale": 1.0, "aspect": 0.7, "shear": 0.7}
UNITS = {"rotation": "rad", "scale": "log", "aspect": "log"}


def row(data: str, evidence: dict[str, float] | None = None, **shares: float) -> dict:
    every = dict.fromkeys(AXES, 0.05) | shares
    return {
        "data": data,
        "ranges": {axis: share * AXES[axis] for axis, share in every.items()},
        "shares": every,
        "units": {axis: UNITS.get(axis, "grid") for axis in AXES},
        "log_evidence": evidence or {},
    }


def test_planted_ranges_have_to_be_found_and_others_shut():
    upright = row("upright")
    assert wrong(upright, upright) == []
    assert wrong(row("upright", shear=0.3), upright) == ["shear is 30% of its upper end"]
    assert wrong(row("turned by 180", rotation=0.7), upright) == []
    assert wrong(row("turned by 180", rotation=0.5), upright) == ["rotation is 1.57 of 3.14"]
    assert wrong(row("scaled by 2", scale=0.9, aspect=0.15), upright) == ["aspect is 15% of its upper end"]
    assert wrong(row("scaled by 2", scale=0.9, aspect=0.15), row("upright", aspect=0.12)) == []
    assert wrong(row("shifted by 6", rows=0.5, columns=0.5, shear=0.8), upright) != []  # a rival in the same unit


def test_mirrored_clothes_have_to_keep_the_mirror_alone():
    values = {"trivial-plane": -500.0, "affine": -510.0, "mirror": -400.0, "mirror-affine": -390.0}
    upright, mirrored = row("upright"), row("mirrored", values)
    assert gain(mirrored, "mirror") == 110.0
    assert gain(mirrored, "affine") == 10.0
    assert wrong(mirrored, upright) == []
    assert wrong(row("mirrored", values, rotation=0.4), upright) == ["rotation is 1.26"]
    assert wrong(row("mirrored", values | {"trivial-plane": -385.0}), upright) == ["mirror is not kept"]
