"""Does the largest share of a sum of priors name the discrete winner?  `python -m benchmarks.composition [CASE ...]`.

On data whose symmetry is planted it must; on labels in random order the sum must not beat noise alone.  Of digits the
shares are shown and nothing is asked.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import pyro_invariance
from benchmarks.cases import Absent, mnist, shuffled_digits, simulated
from pyro_invariance import plotting, zoo
from pyro_invariance.datasets import Dataset, load
from pyro_invariance.fitting import Fit
from pyro_invariance.results import Selection
from pyro_invariance.verdict import of_sums

SUM = "composition"
PLANTED = ("none", "mirror", "C4", "SO2", "rotation", "translation")
SHUFFLED = 500  # images with labels in random order
COLUMNS = ("data", "seed", "winner", "largest share", "others below", "rank", "to the best", "to noise", "CPU-s")
CASES: dict[str, Callable[[int], Dataset]] = {
    **{f"simulated {planted}": simulated(planted) for planted in PLANTED},
    "shuffled digits": lambda seed: shuffled_digits(seed).subset(SHUFFLED, seed),
    "shuffled mnist": partial(mnist, "shuffled", n=SHUFFLED),
    "digits": partial(load, "digits"),
    "rotated mnist": partial(mnist, "rotated", n=500),
    "upright mnist": partial(mnist, "upright", n=500),
}


def part_of(f: Fit) -> str:
    """What a hypothesis of its own is called among the parts of the sum: the full circle is a range at its end."""
    if not f.contains:
        return "trivial"
    return "rotation" if f.label == "SO2" else f.label


def row(name: str, result: Selection) -> tuple[list[str], bool]:
    """One line of the table, and whether it is as it must be."""
    single = [f for f in result.fits if f.label != SUM]
    whole, null = (next(f for f in result.fits if f.label == label) for label in (SUM, "null"))
    winner = part_of(single[0])
    (first, most), (_, next_) = list(whole.shares.items())[:2]
    lift, gap = (whole.evidence.value - f.evidence.value for f in (null, single[0]))
    cells = [name, str(result.seed), winner, f"{first} {most:.0%}", f"{next_:.1%}"]
    cells += [f"{result.fits.index(whole) + 1} of {len(result.fits)}", f"{gap:+.1f}", f"{lift:+.1f}"]
    good = {"simulated": first == winner, "shuffled": "mean nothing" in of_sums(list(result.fits))[0]}
    return [*cells, f"{whole.cpu_seconds:.0f}"], good.get(name.split()[0], True)


def main() -> int:
    """Print the table and write the pictures; 1 if a winner is missed or noise is taken for something."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.composition", description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, help="hypotheses fitted at the same time; as many as cores by default")
    parser.add_argument("--out", type=Path, default=Path("runs/composition"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    print(" ".join(f"{name:>16}" for name in COLUMNS))
    missed = 0
    for name in chosen.cases or CASES:
        for seed in range(chosen.seeds):
            try:
                data = CASES[name](seed)
            except Absent as reason:
                print(f"{name} skipped: {reason}")
                break
            every = zoo.load("orbit_gp").hypotheses(data)
            result = pyro_invariance.select(data, hypotheses=every, seed=seed, jobs=chosen.jobs)
            cells, good = row(name, result)
            missed += not good
            print(" ".join(f"{cell:>16}" for cell in cells), "" if good else " missed", flush=True)
            print("  ".join(of_sums(list(result.fits))), flush=True)
            plotting.save(plotting.shares(result), chosen.out / f"{name} {seed}.png")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
