"""Do learned ranges of six transformations at once find the planted one?  `python -m benchmarks.affine [--images N]`.

MNIST digits that are turned, shifted or scaled, or as they are, and mirrored clothes: every range that the best
hypothesis of `augmentation_gp` in the plane learned, as a share of its upper end, what it gains over no range, and what
fell short.  The planted range has to be the largest in its unit and at least 60 % of the planted width; any other at
most 1.5 times what it is on upright digits, or 10 % of its upper end; on upright digits, all at most 25 %.  Rows are
JSON lines, and what is there already is not fitted again.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import Absent, _arrays
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.fitting import fit
from pyro_invariance.matrix_groups import Affine
from pyro_invariance.numerics import float64
from pyro_invariance.verdict import verdicts
from pyro_invariance.zoo import load

Planted = dict[str, float]
CASES: dict[str, tuple[str, Planted]] = {
    "upright": ("mnist.npz", {}),
    "scaled by 2": ("mnist.npz", {"scale": math.log(2)}),
    "turned by 180": ("mnist.npz", {"rotation": math.pi}),
    "turned by 45": ("mnist.npz", {"rotation": math.pi / 4}),
    "shifted by 6": ("mnist.npz", {"rows": 6 / 14, "columns": 6 / 14}),  # pixels of 28
    "mirrored": ("fashion_mnist.npz", {}),
}
FOUND, OTHER, SMALL, UPRIGHT = 0.6, 1.5, 0.1, 0.25


def images(name: str, n: int) -> Dataset:
    """The first `n` training images, moved by coefficients that are uniform on the planted ranges."""
    file, planted = CASES[name]
    raw, rng, group = _arrays(file), np.random.default_rng(0), Affine()
    x = torch.as_tensor(raw["train_images"][:n] / 255.0)[:, None]
    if planted:
        widths = torch.tensor([planted.get(axis, 0.0) for axis in group.extents])
        x = group.act(group.exp(torch.as_tensor(rng.uniform(-1, 1, (n, len(widths)))) * widths), x)
    if name == "mirrored":
        x = torch.where(torch.as_tensor(rng.integers(0, 2, n) == 1)[:, None, None, None], x.flip(-1), x)
    return from_arrays(name, x[:, 0].numpy(), raw["train_labels"][:n].astype(np.int64))


@float64()
def row(name: str, n: int) -> dict:
    """What was learned of a data set; hypotheses with a mirror are fitted to the mirrored one only."""
    begin, data = time.perf_counter(), images(name, n)
    plane = [h for h in load("augmentation_gp").hypotheses(data) if h.base in ("none", "plane")]
    fits = [fit(h, data) for h in plane if name == "mirrored" or "mirror" not in h.name]
    best = max((f for f in fits if f.extents), key=lambda f: f.evidence.value)
    upper = next(h.extents for h in plane if h.label == best.label)
    return {
        "data": name,
        "images": n,
        "best": best.label,
        "log_evidence": {f.label: f.evidence.value for f in fits},
        "verdicts": {symmetry: v.verdict for symmetry, v in verdicts(fits).items()},
        "ranges": {axis: (r.mean, r.sd, r.mean / upper[axis].upper) for axis, r in best.extents.items()},
        "units": {axis: r.unit for axis, r in best.extents.items()},
        "shut": [axis for axis, r in best.extents.items() if r.zero],
        "seconds": time.perf_counter() - begin,
    }


def wrong(found: dict, upright: dict) -> list[str]:
    """What fell short of the figures that are asked for."""
    planted, said = CASES[found["data"]][1], []
    ranges = {axis: mean for axis, (mean, _, _) in found["ranges"].items()}
    for axis, width in planted.items():
        rivals = [
            e for other, e in ranges.items() if other not in planted and found["units"][other] == found["units"][axis]
        ]
        if ranges[axis] < FOUND * width or ranges[axis] < max(rivals, default=0.0):
            said.append(f"{axis} is {ranges[axis]:.2f} of {width:.2f}")
    if found["data"] == "mirrored":
        said += [f"mirror is {found['verdicts']['mirror']}"] if found["verdicts"]["mirror"] != "supported" else []
        return said + ([f"rotation is {ranges['rotation']:.2f}"] if found["ranges"]["rotation"][2] > SMALL else [])
    for axis, (_, _, share) in found["ranges"].items():
        limit = max(OTHER * upright["ranges"][axis][2], SMALL) if found["data"] != "upright" else UPRIGHT
        said += [f"{axis} is {share:.0%} of its upper end"] if axis not in planted and share > limit else []
    return said


def main() -> int:
    """Fit what is missing and print the table; 1 if anything fell short, 2 if the data are not there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.affine", description=__doc__)
    parser.add_argument("--data", choices=CASES, action="append", help="all by default; upright digits come first")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/affine/rows.jsonl"))
    chosen = parser.parse_args()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict] = {}
    if chosen.out.is_file():
        done = [json.loads(line) for line in chosen.out.read_text().splitlines()]
        rows = {found["data"]: found for found in done if found["images"] == chosen.images}
    print(f"{'data':14}{'nats':>8}" + "".join(f"{axis:>10}" for axis in Affine().extents) + f"{'seconds':>9}")
    missed = 0
    for name in dict.fromkeys(["upright", *(chosen.data or CASES)]):
        try:
            if name not in rows:
                rows[name] = row(name, chosen.images)
                with chosen.out.open("a") as file:
                    file.write(json.dumps(rows[name]) + "\n")
        except Absent as error:
            print(error, file=sys.stderr)
            return 2
        found, values = rows[name], rows[name]["log_evidence"]
        short = wrong(found, rows["upright"])
        missed += bool(short)
        gain = values[found["best"]] - values["trivial-plane"]
        shares = "".join(f"{found['ranges'][axis][2]:10.0%}" for axis in Affine().extents)
        said = f"  {found['best']}, {found['verdicts']}, {'; '.join(short) or 'as expected'}"
        print(f"{name:14}{gain:+8.0f}{shares}{found['seconds']:9.0f}{said}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
