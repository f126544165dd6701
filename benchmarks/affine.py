"""Do learned ranges of six transformations at once find the planted one?  `python -m benchmarks.affine [--images N]`.

MNIST digits that are turned, shifted or scaled, or as they are, or with their slant taken out, and mirrored clothes.
At the mode of the best hypothesis of `augmentation_gp` in the plane: every range as a share of its upper end, what
ranges gain by Laplace's estimate of the evidence, and what fell short.  The planted range has to be the largest in its
unit and at least 60 % of the planted width; any other at most 1.5 times what it is on upright digits, or 10 % of its
upper end; on upright digits, all at most 25 %.  Rows are JSON lines, and what is there already is not fitted again.
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
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.comparison import FLOOR
from pyro_invariance.evidence.laplace import laplace, maximise
from pyro_invariance.matrix_groups import Affine
from pyro_invariance.modes import climbed
from pyro_invariance.numerics import float64
from pyro_invariance.representations import centres
from pyro_invariance.zoo import load

Planted = dict[str, float]
CASES: dict[str, tuple[str, Planted]] = {
    "upright": ("mnist.npz", {}),
    "without slant": ("mnist.npz", {}),
    "scaled by 2": ("mnist.npz", {"scale": math.log(2)}),
    "turned by 180": ("mnist.npz", {"rotation": math.pi}),
    "turned by 45": ("mnist.npz", {"rotation": math.pi / 4}),
    "shifted by 6": ("mnist.npz", {"rows": 6 / 14, "columns": 6 / 14}),  # pixels of 28
    "mirrored": ("fashion_mnist.npz", {}),
}
FOUND, OTHER, SMALL, UPRIGHT = 0.6, 1.5, 0.1, 0.25
FEW = 500  # images on which every start is climbed


def images(name: str, n: int) -> Dataset:
    """The first `n` training images, moved by coefficients that are uniform on the planted ranges."""
    file, planted = CASES[name]
    raw, rng, group = _arrays(file), np.random.default_rng(0), Affine()
    x = torch.as_tensor(raw["train_images"][:n] / 255.0)[:, None]
    if planted:
        widths = torch.tensor([planted.get(axis, 0.0) for axis in group.extents])
        x = group.act(group.exp(torch.as_tensor(rng.uniform(-1, 1, (n, len(widths)))) * widths), x)
    if name == "without slant":
        x = group.act(group.exp(slants(x)[:, None] * torch.eye(6)[list(group.extents).index("shear")]), x)
    if name == "mirrored":
        x = torch.where(torch.as_tensor(rng.integers(0, 2, n) == 1)[:, None, None, None], x.flip(-1), x)
    return from_arrays(name, x[:, 0].numpy(), raw["train_labels"][:n].astype(np.int64))


def slants(x: torch.Tensor) -> torch.Tensor:
    """How much further to the left the ink of images `[N, 1, H, W]` is for each row higher up: second moments."""
    place = centres(x.shape[-1], x)
    ink = x[:, 0] / x.sum((1, 2, 3))[:, None, None]
    across = place - (ink.sum(1) @ place)[:, None]
    down = place - (ink.sum(2) @ place)[:, None]
    return torch.einsum("nrc,nr,nc->n", ink, down, across) / torch.einsum("nrc,nr->n", ink, down.square())


@float64()
def row(name: str, n: int) -> dict:
    """The modes of a data set; hypotheses with a mirror are for the mirrored one only."""
    begin, data, values, modes = time.perf_counter(), images(name, n), {}, {}
    for h in load("augmentation_gp").hypotheses(data):
        if h.default and h.base == "plane" and (name == "mirrored" or "mirror" not in h.name):
            log_joint, some = LogJoint(h.model, h.prepare(data)), data.subset(FEW, seed=0)
            begun = climbed(h, some, LogJoint(h.model, h.prepare(some)), seed=0)  # then only the best of them on all
            first = max(begun, key=lambda mode: mode.value)
            guess = first.inverse_hessian * len(some.y) / n
            best = maximise(log_joint, first.z, inverse_hessian=guess)
            centre, cholesky = laplace(log_joint, best.z)
            height = float(sum(log_joint.terms(centre)))
            values[h.label] = height + float(cholesky.diagonal().log().sum()) + len(centre) / 2 * math.log(2 * math.pi)
            modes[h.label] = h, log_joint.unpack(centre)
    label = max((label for label, (h, _) in modes.items() if h.extents), key=lambda label: values[label])
    h, sites = modes[label]
    return {
        "data": name,
        "images": n,
        "best": label,
        "log_evidence": values,
        "ranges": {axis: float(sites[axis]) for axis in h.extents},
        "shares": {axis: float(sites[axis]) / e.upper for axis, e in h.extents.items()},
        "units": {axis: e.unit for axis, e in h.extents.items()},
        "shut": [axis for axis, e in h.extents.items() if sites[axis] < e.resolution],
        "seconds": time.perf_counter() - begin,
    }


def wrong(found: dict, upright: dict) -> list[str]:
    """What fell short of the figures that are asked for."""
    planted, ranges, shares, said = CASES[found["data"]][1], found["ranges"], found["shares"], []
    for axis, width in planted.items():
        rivals = [
            e for other, e in ranges.items() if other not in planted and found["units"][other] == found["units"][axis]
        ]
        if ranges[axis] < FOUND * width or ranges[axis] < max(rivals, default=0.0):
            said.append(f"{axis} is {ranges[axis]:.2f} of {width:.2f}")
    if found["data"] == "mirrored":
        said += [] if gain(found, "mirror") > FLOOR else ["mirror is not kept"]
        return said + ([f"rotation is {ranges['rotation']:.2f}"] if shares["rotation"] > SMALL else [])
    for axis, share in shares.items():
        limit = max(OTHER * upright["shares"][axis], SMALL) if planted else UPRIGHT
        said += [f"{axis} is {share:.0%} of its upper end"] if axis not in planted and share > limit else []
    return said


def gain(found: dict, symmetry: str) -> float:
    """Best evidence with a symmetry minus best without, nats."""
    values = found["log_evidence"]
    having = [value for label, value in values.items() if symmetry in label.split("-")]
    return max(having) - max(value for label, value in values.items() if symmetry not in label.split("-"))


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
        found, short = rows[name], wrong(rows[name], rows["upright"])
        missed += bool(short)
        shares = "".join(f"{found['shares'][axis]:10.0%}" for axis in Affine().extents)
        mirror = f", mirror {gain(found, 'mirror'):+.0f} nats" if "mirror" in found["log_evidence"] else ""
        said = f"  {'; '.join(short) or 'as expected'} (shut off: {', '.join(found['shut']) or 'none'}{mirror})"
        print(f"{name:14}{gain(found, 'affine'):+8.0f}{shares}{found['seconds']:9.0f}{said}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
