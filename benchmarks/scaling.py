"""How a sparse fit grows with the data, and how tight it is: `python -m benchmarks.scaling [PART ...]`.

- `time`: seconds until the bound is within 0.01 nats per datum of where it ends, and peak memory, a process for each
  number of images; the slope of their logarithms.  Seconds are those of the one thread that works: others may too
- `bound`: how far below the exact evidence of 1,000 images the bound is, in the same units at
  the same hyperparameters, where that bound is largest
- `step`: one block of a pass against the matrix products in it
- `compile`: whether `torch.compile` would make the weighted exponential faster

Nothing is asserted but the side of the bound.  Numbers, versions and machine go to OUT/scaling.json and
OUT/scaling.md, a picture to OUT/scaling.png.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.cases import mnist
from benchmarks.steps import compiled, find, step
from pyro_invariance import priors, sparse_fitting
from pyro_invariance.collapsed import collapsed
from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.interdomain import InterDomainKernel
from pyro_invariance.kernels import OrbitKernel
from pyro_invariance.modes import few
from pyro_invariance.numerics import float64
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.sparse import Inducing, SparseProcess
from pyro_invariance.sparse_fitting import WIDE, Search, fit_sparse, inducing_kernel
from pyro_invariance.zoo import Hypothesis

PARTS = ("time", "bound", "step", "compile")
SIZES, INDUCING = (1_000, 3_000, 10_000, 30_000, 60_000), 500
NEAR = 0.01  # nats per datum
TIGHT, EXACT = (100, 250, 500, 1_000), 1_000  # inducing images, and images
STEPS = (("turning_patches", "SO2"), ("orbit_gp", "SO2"), ("orbit_gp", "convolution"))


def of_base(hypothesis: Hypothesis, chosen: Dataset) -> InterDomainKernel:
    """Kernel of a hypothesis with a spectral orbit through values of its base function."""
    orbit = hypothesis.prepare(chosen)[0].orbit
    return InterDomainKernel(orbit, orbit.representation, chosen.x)


# what the inducing values are of, and the kernel of a hypothesis through them, given the inducing images
DOMAINS: dict[str, Callable[[Hypothesis, Dataset], Any]] = {"u = f(Z)": inducing_kernel, "u = g(Z)": of_base}


def memory(name: str) -> int:
    """Bytes of this process that Linux calls by that name: `VmRSS` now, `VmHWM` at most since it was last reset."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


class Watched(Search):
    """Notes when each pass over the data has ended, how many they are and the bound per datum where it looked first."""

    passes: list[tuple[float, int, float]] = []  # noqa: RUF012

    def _at(self, z: list) -> list:
        found, count = super()._at(z), len(self.process.targets)
        self.passes.append((time.process_time(), count, found[0][-1] / count))
        return found


def timed(count: int, entry: str, label: str, inducing: int) -> dict[str, Any]:
    """Fit `count` images in this process."""
    data = mnist("rotated", 0, n=count, m=10)
    hypothesis, taken = find(data, entry, label), data.x.nbytes
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = memory("VmRSS"), time.process_time()
    sparse_fitting.Search = Watched  # type: ignore[misc]
    found = fit_sparse(hypothesis, data, inducing)
    whole = [(at - begin, bound) for at, n, bound in Watched.passes if n == count]
    final = max(bound for _, bound in whole)
    start = Watched.passes[0][0] - begin
    between = np.diff([0.0, *(at for at, _ in whole)])[1:]
    return {
        "images": count,
        "inducing": inducing,
        "seconds": next(at for at, bound in whole if bound > final - NEAR),
        "until the first pass": start,
        "a pass": float(np.median(between)),
        "passes": len(Watched.passes),
        "bound per datum": final,
        "evidence": found.evidence.value,
        "data, GB": taken * 1e-9,
        "peak beyond them, GB": (memory("VmHWM") - before) * 1e-9,
    }


def times(sizes: list[int], entry: str, label: str, inducing: int) -> dict[str, Any]:
    """Fit each number of images in a process of its own; the slope is that of the logarithms."""
    rows = []
    for count in sizes:
        command = ["-m", "benchmarks.scaling", "--one", str(count), "--model", entry, "--hypothesis", label]
        done = subprocess.run(
            [sys.executable, *command, "--inducing", str(inducing)], check=True, stdout=subprocess.PIPE, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    slopes = {}
    for name in ("seconds", "a pass"):
        at, value = (np.log([row[key] for row in rows]) for key in ("images", name))
        slopes[name] = float(np.polyfit(at, value, 1)[0]) if len(rows) > 1 else math.nan
    return {"hypothesis": f"{entry} {label}", "inducing": inducing, "rows": rows, "slopes": slopes}


@float64()
def bounds(count: int, sizes: list[int], entry: str, label: str) -> list[dict[str, Any]]:
    """Bound and exact evidence of the same images, each at the hyperparameters where that bound is largest.

    Raises
    ------
    AssertionError
        If a bound is above the evidence by more than rounding.
    """
    data = mnist("rotated", 0, n=count, m=10)
    hypothesis = find(data, entry, label)
    log_joint = LogJoint(hypothesis.model, hypothesis.prepare(few(data, 0)))
    start, names = log_joint.pack(hypothesis.starts[0]), ("lengthscale", *hypothesis.extents)
    rows = []
    for domain, make in DOMAINS.items():
        for size in sizes:
            chosen = data.subset(size, 0)
            kernel, unknown = make(hypothesis, chosen), Inducing.prior(size, data.targets.shape[1])
            process = SparseProcess(kernel, data.x, data.targets, unknown, count)
            at = log_joint.unpack(Search(process, log_joint, names).top(start, WIDE)[0])
            noise, variance, shape = priors.NOISE_FLOOR + at["noise"], at["variance"], [at[name] for name in names]
            with torch.no_grad():
                bound = float(collapsed(process, [tuple(shape)])[0].bound(noise, variance))
                gram = exact(hypothesis.prepare(chosen)[0], data).gram(*shape)
                truth = float(GaussianProcess(gram, variance, noise, data.targets.shape).log_prob(data.targets))
            assert bound < truth + 1e-6 * abs(truth), f"{domain}, {size}: {bound} is above {truth}"
            rows.append({"domain": domain, "inducing": size, "noise": float(noise), "bound": bound, "evidence": truth})
            rows[-1]["below per datum"] = (truth - bound) / count
            print(rows[-1], flush=True)
    return rows


def exact(kernel: OrbitKernel, data: Dataset) -> OrbitKernel:
    """Return the same kernel of all images, in the units that the inducing images set."""
    every = OrbitKernel(kernel.orbit, data.x)
    assert every.distances is not None
    every.distances *= every.scale / kernel.scale
    every.to_self = kernel.to_self
    return every


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].splitlines()[0]
    cores = len([line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")])
    return {"cpu": cpu, "cores": cores, "threads": 1, "torch": torch.__version__, "python": platform.python_version()}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as markdown; nested ones are left to the JSON."""
    keys = [k for k, v in rows[0].items() if not isinstance(v, dict)]
    cells = [[f"{v:.4g}" if isinstance(v := row[k], float) else str(v) for k in keys] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [keys, ["---"] * len(keys), *cells])


def draw(found: dict[str, Any], path: Path) -> None:
    """Time against images on logarithmic axes, and the gap against inducing images, as far as they were measured."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    if "time" in found:
        rows = found["time"]["rows"]
        for name, style in (("seconds", "o-"), ("a pass", "s--")):
            label = f"{name}, slope {found['time']['slopes'][name]:.2f}"
            left.loglog([r["images"] for r in rows], [r[name] for r in rows], style, label=label)
        left.set(xlabel="images", ylabel="seconds", title=found["time"]["hypothesis"])
        left.legend()
    for domain in dict.fromkeys(row["domain"] for row in found.get("bound", [])):
        rows = [row for row in found["bound"] if row["domain"] == domain]
        right.plot([r["inducing"] for r in rows], [r["below per datum"] for r in rows], "o-", label=domain)
        right.set(xlabel="inducing images", ylabel="nats per datum below the evidence")
        right.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    """Measure the parts asked for; those of before are kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS), metavar="PART")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="images of `time`")
    parser.add_argument("--inducing", type=int, default=INDUCING)
    parser.add_argument("--model", default="turning_patches")
    parser.add_argument("--hypothesis", default="SO2")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    which = (chosen.model, chosen.hypothesis)
    if chosen.one:
        print(json.dumps(timed(chosen.one, *which, chosen.inducing)))
        return 0
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "scaling.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    measure: dict[str, Callable[[], Any]] = {
        "time": lambda: times(chosen.sizes, *which, chosen.inducing),
        "bound": lambda: bounds(EXACT, list(TIGHT), *which),
        "step": lambda: [step(*s, chosen.inducing) for s in STEPS],
        "compile": compiled,
    }
    for part in chosen.parts or PARTS:
        found |= {part: measure[part](), "machine": machine()}
        path.write_text(json.dumps(found, indent=1))
        rows = found[part]["rows"] if part == "time" else found[part]
        print(f"{part}\n{table(rows if isinstance(rows, list) else [rows])}\n", flush=True)
    parts = {p: found[p]["rows"] if p == "time" else found[p] for p in PARTS if p in found}
    tables = [f"## {p}\n\n{table(rows if isinstance(rows, list) else [rows])}\n" for p, rows in parts.items()]
    (chosen.out / "scaling.md").write_text("\n".join([table([found["machine"]]), "", *tables]))
    draw(found, chosen.out / "scaling.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
