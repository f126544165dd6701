"""All benchmarks by one command: `python -m benchmarks.every [NAME ...]`, some hours for all of them.

Each runs in a process of its own, so that its time and its peak memory are its own. What it printed is kept in
OUT/NAME.log; a table of all, with the machine and what each printed, goes to OUT/benchmarks.md. One that ran before
with the same code is not run again.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.__main__ import ROOT, code
from benchmarks.scaling import machine, table

MODULES = {  # shortest first
    "gram": "benchmarks.gram",
    "device": "benchmarks.device",
    "posterior": "benchmarks.posterior",
    "pose": "benchmarks.pose",
    "evidence": "benchmarks.evidence",
    "scaling": "benchmarks.scaling",
    "composition": "benchmarks.composition",
    "augmentation": "benchmarks.augmentation",
    "affine": "benchmarks.affine",
    "selection": "benchmarks",
}
SAID = {0: "as expected", 1: "fell short", 2: "did not run: data or a library is missing"}


def asks(module: str) -> str:
    """The question of a benchmark: the first sentence of its file, without the command."""
    path = ROOT / module.replace(".", "/")
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("`python")[0].split("\n\n")[0].strip().rstrip(":")


def run(name: str, out: Path) -> dict[str, Any]:
    """Run one benchmark, its words to a file; how it ended, how long it took and its peak memory."""
    path = out / f"{name}.json"
    if path.is_file():
        row = json.loads(path.read_text())
        if row["code"] == code() and row["outcome"] in (SAID[0], SAID[1]):  # the others may be mended
            return row
    begin = time.perf_counter()
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", MODULES[name]], stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    ended = process.returncode = os.waitstatus_to_exitcode(status)
    row = {
        "code": code(),
        "outcome": SAID.get(ended, f"failed with status {ended}"),
        "minutes": (time.perf_counter() - begin) / 60,
        "CPU minutes": (usage.ru_utime + usage.ru_stime) / 60,
        "peak GiB": usage.ru_maxrss / 2**20,  # not less than what this process takes: it begins as a copy
    }
    path.write_text(json.dumps(row))
    return row


def main() -> int:
    """Run what was asked for and write the table; 1 if anything fell short or failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.every", description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(MODULES), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/every"))
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in MODULES]:
        parser.error(f"names: got {unknown[0]!r}; accepted: {', '.join(MODULES)}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in chosen.names or MODULES:
        row = run(name, chosen.out)
        rows.append({"benchmark": name, "what it asks": asks(MODULES[name])} | {k: row[k] for k in row if k != "code"})
        words = [
            f"# {row['benchmark']}\n\n```\n{(chosen.out / (row['benchmark'] + '.log')).read_text()}```" for row in rows
        ]
        (chosen.out / "benchmarks.md").write_text("\n\n".join([table([machine()]), table(rows), *words]) + "\n")
        print(f"{name:14}{row['minutes']:8.1f} minutes {row['peak GiB']:6.2f} GiB  {row['outcome']}", flush=True)
    return 1 if any(row["outcome"] not in (SAID[0], SAID[2]) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
