"""Run the selection benchmarks: `python -m benchmarks [CASE ...] [--seeds N] [--nodes 128] [--scale 0.5]`."""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import pyro_invariance
from benchmarks.cases import CASES, Absent, PermutedPolar
from pyro_invariance.representations import Polar
from pyro_invariance.selection import choose, describe_extents
from pyro_invariance.zoo import load as load_entry


def run(name: str, seed: int, nodes: int, scale: float, out: Path) -> dict:
    """One case and seed; finished ones are read back."""
    variant = "" if (nodes, scale) == (64, 1.0) else f" nodes={nodes} scale={scale}"
    path = out / f"{name} {seed}{variant}.json"
    if path.is_file():
        return json.loads(path.read_text())
    case, entry = CASES[name], load_entry("orbit_gp")
    data = case.data(seed)
    entry.Polar = PermutedPolar if name == "permuted polar" else Polar
    every = entry.hypotheses(data, nodes=nodes, scale=scale)
    wanted = {h.label for h in choose(data, "orbit_gp", case.hypotheses)}
    start = time.perf_counter()
    result = pyro_invariance.select(data, hypotheses=[h for h in every if h.label in wanted], seed=seed)
    best = result.best
    row = {
        "case": name,
        "seed": seed,
        "variant": variant.strip(),
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": sum(f.cpu_seconds for f in result.fits),
        "failures": case.check(result) + [f"{k}: {v}" for k, v in result.failed.items()],
        "best": best.label,
        "scores": result.test_scores(best),
        "extents": {f.label: describe_extents(f) for f in result.fits if f.extents},
        "evidence": {f.label: f.evidence.value for f in result.fits},
        "accuracy": {f.label: result.test_scores(f).get("accuracy") for f in result.fits},
        "verdicts": {s: [v.verdict, v.gap, v.explained_by] for s, v in result.verdicts.items()},
        "cpu": {f.label: f.cpu_seconds for f in result.fits},
        "optima": {f.label: f.other_optima for f in result.fits if f.other_optima},
    }
    path.write_text(json.dumps(row, indent=1))
    return row


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
    failed = 0
    for name in chosen.cases or CASES:
        rows = []
        for seed in range(chosen.seeds or CASES[name].seeds):
            try:
                row = run(name, seed, chosen.nodes, chosen.scale, chosen.out)
            except Absent as reason:
                print(f"{name:24} skipped: {reason}")
                break
            rows.append(row)
            judged = " ".join(
                f"{s}:{v[0][:3]}({v[1]:+.0f})" if v[1] is not None else f"{s}:{v[0][:3]}"
                for s, v in row["verdicts"].items()
            )
            accuracy = row["scores"].get("accuracy", float("nan"))
            print(
                f"{name:24} seed {seed} {row['wall_seconds']:6.1f} s wall {row['cpu_seconds']:6.1f} s cpu  "
                f"best {row['best']} {accuracy:.4f} {row['extents']} {judged}  {row['failures'] or 'as expected'}",
                flush=True,
            )
        if rows:
            good = sum(not r["failures"] for r in rows)
            failed += good < len(rows)
            accuracies = [r["scores"]["accuracy"] for r in rows if "accuracy" in r["scores"]]
            mean = f", mean accuracy {statistics.mean(accuracies):.4f}" if accuracies else ""
            wall = statistics.median(r["wall_seconds"] for r in rows)
            print(f"{name:24} {good} of {len(rows)} as expected, median {wall:.1f} s wall{mean}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
