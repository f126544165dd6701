"""Does SVI find the posterior that chains find?  `python -m benchmarks.posterior [--images N]`.

The range of turns on MNIST digits that are turned at will, upright or tilted by up to 45 degrees; agreement within
`reference.MEAN` standard deviations of the mean and `reference.SD` of the standard deviation is asked for.
"""

import argparse
import sys
import time

import torch

from benchmarks.cases import mnist
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.laplace import laplace, maximise
from pyro_invariance.fitting import fit
from pyro_invariance.numerics import float64
from pyro_invariance.reference import compare, nuts
from pyro_invariance.zoo import choose

RHAT, ESS = 1.02, 400  # beyond them the chains themselves say too little
COLUMNS = ("data", "SVI mean", "sd", "NUTS mean", "sd", "difference", "sd ratio", "R-hat", "ESS", "SVI s", "NUTS s")


@float64()
def row(transform: str, images: int) -> tuple[list[str], bool]:
    """One line of the table, and whether both posteriors agree."""
    data = mnist(transform, 0, n=images, m=10)
    hypothesis = next(h for h in choose(data, "orbit_gp", ["rotation"]) if h.label == "rotation")
    begin = time.perf_counter()
    fitted = fit(hypothesis, data)
    middle = time.perf_counter()
    log_joint = LogJoint(hypothesis.model, hypothesis.prepare(data))
    best = max((maximise(log_joint, log_joint.pack(s)) for s in hypothesis.starts), key=lambda mode: mode.value)
    chains = nuts(log_joint, *laplace(log_joint, best.z))
    end = time.perf_counter()
    found = compare(fitted.draws, chains)["rotation"]
    learned, reference = fitted.extents["rotation"], chains["rotation"]
    numbers = [learned.mean, learned.sd, reference.mean(), reference.std(), found.difference, found.ratio, found.rhat]
    cells = [transform, *(f"{number:.4f}" for number in numbers), f"{found.ess:.0f}"]
    cells += [f"{middle - begin:.0f}", f"{end - middle:.0f}"]
    return cells, found.agrees and found.rhat < RHAT and found.ess >= ESS


def main() -> int:
    """Print the table; 1 if a posterior is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posterior", description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    images = parser.parse_args().images
    torch.set_num_threads(1)
    print(" ".join(f"{name:>10}" for name in COLUMNS))
    missed = 0
    for transform in ("rotated", "upright", "tilted"):
        cells, good = row(transform, images)
        missed += not good
        print(" ".join(f"{cell:>10}" for cell in cells), "" if good else " missed", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
