"""Run the selection benchmarks: `python -m benchmarks [CASE ...] [--seeds N] [--nodes 128] [--scale 0.5]`.

Others are modules of their own: `python -m benchmarks.scaling` for the sparse path, `python -m benchmarks.device` for a
GPU, and those beside them.
"""

import argparse
import dataclasses
import hashlib
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import pyro_invariance
from benchmarks.cases import CASES, Absent, PermutedPolar
from pyro_invariance import zoo
from pyro_invariance.representations import Polar
from pyro_invariance.results import Selection

ROOT = Path(__file__).parents[1]


def code() -> str:
    """Digest of all code that a row depends on; a row of other code is computed again."""
    sources = sorted(
        p for folder in ("pyro_invariance", "models", "benchmarks") for p in (ROOT / folder).glob("**/*.py")
    )
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:12]


def row_of(result: Selection) -> dict:
    """What is kept of a selection."""
    return {
        "best": result.best.label,
        "verdicts": {s: dataclasses.asdict(v) for s, v in result.verdicts.items()},
        "hypotheses": {
            f.label: {
                "base": f.base,
                "evidence": dataclasses.asdict(f.evidence),
                "upper": f.upper,
                "other_optima": f.other_optima,
                "contains": sorted(f.contains),
                "extents": {k: dataclasses.asdict(r) for k, r in f.extents.items()},
                "scores": result.test_scores(f),
                "steps": len(f.path),
                "cpu_seconds": f.cpu_seconds,
            }
            for f in result.fits
        },
        "failed": result.failed,
    }


def run(name: str, seed: int, nodes: int, scale: float, out: Path) -> dict:
    """One case and seed; what the same code has finished is read back."""
    path = out / f"{name} {seed} nodes={nodes} scale={scale}.json"
    if path.is_file() and (row := json.loads(path.read_text()))["code"] == code():
        return row
    case, entry = CASES[name], zoo.load("orbit_gp")
    data = case.data(seed)
    try:
        entry.Polar = partial(PermutedPolar, seed=seed) if name == "permuted polar" else Polar
        every = entry.hypotheses(data, nodes=nodes, scale=scale)
    finally:
        entry.Polar = Polar
    wanted = {h.label for h in zoo.choose(data, "orbit_gp", case.hypotheses)}
    start = time.perf_counter()
    result = pyro_invariance.select(data, hypotheses=[h for h in every if h.label in wanted], seed=seed)
    row = {"code": code(), "wall_seconds": time.perf_counter() - start, **row_of(result)}
    path.write_text(json.dumps(row, indent=1))
    return row


def flips(row: dict, base: dict) -> list[str]:
    """Verdicts of the base run, supported or refused, that another setting changes."""
    return [
        f"{s} was {v['verdict']}, is {row['verdicts'][s]['verdict']}"
        for s, v in base["verdicts"].items()
        if v["verdict"] != "undecided" and row["verdicts"][s]["verdict"] != v["verdict"]
    ]


def line(row: dict) -> str:
    """A row in words."""
    top = row["hypotheses"][row["best"]]
    shown = [
        f"{s}:{v['verdict'][:3]}" + ("" if v["gap"] is None else f"({v['gap']:+.0f})")
        for s, v in row["verdicts"].items()
    ]
    ranges = [f"{k} {r['mean']:.2f}" for h in row["hypotheses"].values() for k, r in h["extents"].items()]
    cpu = sum(h["cpu_seconds"] for h in row["hypotheses"].values())
    scores = " ".join(f"{k} {v:.4f}" for k, v in top["scores"].items() if k in ("accuracy", "rmse"))
    return f"{row['wall_seconds']:.0f} s wall {cpu:.0f} s cpu, best {row['best']} {scores}, {ranges} {' '.join(shown)}"


def main() -> int:
    """Run, print a line per run and a summary per case; exit 1 if anything fell short."""
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--seeds", type=int, help="how many seeds; those of the case by default")
    parser.add_argument("--nodes", type=int, default=64, help="quadrature nodes of the circle")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every prior scale")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    plain, failed = (chosen.nodes, chosen.scale) == (64, 1.0), 0
    for name in chosen.cases or CASES:
        case, rows, wrong = CASES[name], [], []
        for seed in range(chosen.seeds or case.seeds):
            try:
                row = run(name, seed, chosen.nodes, chosen.scale, chosen.out)
                wrong = [f"{k}: {v}" for k, v in row["failed"].items()]
                wrong += case.check(row) if plain else flips(row, run(name, seed, 64, 1.0, chosen.out))
            except Absent as reason:
                print(f"{name:24} skipped: {reason}")
                break
            rows.append(row | {"wrong": wrong})
            print(f"{name:24} seed {seed}: {line(row)}  {wrong or 'as expected'}", flush=True)
        if not rows:
            continue
        good, wall = sum(not r["wrong"] for r in rows), statistics.median(r["wall_seconds"] for r in rows)
        scores = [r["hypotheses"][r["best"]]["scores"].get("accuracy", 0.0) for r in rows]
        short = plain and statistics.mean(scores) < case.accuracy
        failed += good < len(rows) or short
        said = f", below {case.accuracy}" if short else ""
        print(
            f"{name:24} {good} of {len(rows)} as expected, median {wall:.1f} s wall, "
            f"mean accuracy {statistics.mean(scores):.4f}{said}",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
