"""What a run is held against when more than a glance is wanted: a dense search for upper sides, NUTS for posteriors."""

import dataclasses
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.fitted import prior_draws
from pyro_invariance.evidence.laplace import maximise
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.numerics import float64
from pyro_invariance.reference import Agreement, compare, nuts
from pyro_invariance.runs import RunFolder, read_json, write_json
from pyro_invariance.zoo import Hypothesis

STARTS, POLISHED, APART = 12, 4, 0.5  # draws of the prior; climbs on all data; unconstrained units between two tops
FEW = 300  # items on which the starts are climbed first
ITEMS = 150  # that NUTS is run on: its cost grows with the cube of their number
DRAWS = 500  # of the fit, for the scales that NUTS moves by


@dataclass(frozen=True)
class Scrutiny:
    """What was found.

    Attributes
    ----------
    agreement : dict of str to dict of str to Agreement
        How far the posterior of each site is from chains of NUTS on a few items, by hypothesis.
    items : int
        How many items these were.
    """

    agreement: dict[str, dict[str, Agreement]]
    items: int

    @property
    def passed(self) -> bool:
        """Whether the posteriors of all sites agree with chains that can be trusted."""
        return all(a.agrees and a.meaningful for sites in self.agreement.values() for a in sites.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self) | {"passed": self.passed}

    @classmethod
    def read(cls, folder: Path) -> "Scrutiny | None":
        """What a run folder holds, if anything."""
        path = folder / "scrutiny.json"
        if not path.is_file():
            return None
        content = read_json(path)
        agreement = {h: {s: Agreement(**a) for s, a in sites.items()} for h, sites in content["agreement"].items()}
        return cls(agreement, content["items"])


def scrutinise(
    hypotheses: list[Hypothesis], fits: list[Fit], data: Dataset, seed: int, folder: RunFolder | None, jobs: int | None
) -> tuple[list[Fit], Scrutiny]:
    """Give every fit a densely searched upper side, and hold the posteriors of the best and of all ranges against NUTS.

    What a folder holds already is read back.
    """
    of, best = {h.label: h for h in hypotheses}, max(fits, key=lambda f: f.evidence.value)
    known = Scrutiny.read(folder.path) if folder is not None else None
    agreement = dict(known.agreement) if known else {}
    parallel = joblib.Parallel(n_jobs=jobs or min(joblib.cpu_count(), len(fits)), return_as="generator")
    todo = [(f, f.evidence.upper is None, (f is best or bool(f.extents)) and f.label not in agreement) for f in fits]
    work = parallel(
        joblib.delayed(_scrutinise)(of[f.label].given(f.learned), f, data, seed, *wanted) for f, *wanted in todo
    )
    done = []
    for f, found in tqdm(work, total=len(fits), desc="scrutiny", disable=not sys.stderr.isatty()):
        done.append(f)
        agreement |= {f.label: found} if found else {}
        if folder is not None:
            folder.save(f)
            write_json(folder.path / "scrutiny.json", Scrutiny(agreement, min(ITEMS, len(data.y))).to_json())
    return done, Scrutiny(agreement, min(ITEMS, len(data.y)))


def _scrutinise(
    hypothesis: Hypothesis, f: Fit, data: Dataset, seed: int, upper: bool, posterior: bool
) -> tuple[Fit, dict[str, Agreement]]:
    top = upper_side(hypothesis, data, seed) if upper and not f.learned else None  # nothing learned is at its best
    if top is not None:
        top = max(f.upper, top)
        f = replace(f, upper=top, evidence=replace(f.evidence, upper=top))
    return f, posterior_agreement(hypothesis, data, seed) if posterior else {}


@float64()
def upper_side(hypothesis: Hypothesis, data: Dataset, seed: int) -> float | None:
    """Largest log likelihood over the hyperparameters that a dense search finds, nats (type II).

    Under a proper prior the evidence is no larger; None where the likelihood is an estimate.  Climbs from draws of
    the prior on a few items first; the best distinct tops are climbed again on all of them.
    """
    small = data.subset(FEW, seed)
    small = small if torch.isfinite(small.targets).all() else data
    few, every = (LogJoint(hypothesis.model, hypothesis.prepare(part)) for part in (small, data))
    if every.estimated:
        return None
    starts = [few.pack(dict(start)) for start in hypothesis.starts] + list(prior_draws(few, STARTS, seed))
    climbed = [maximise(few, z, prior=False, gtol=0.5, max_iter=40) for z in starts]
    tops: list[Tensor] = []
    for mode in sorted(climbed, key=lambda m: -m.value):
        if len(tops) < POLISHED and all(float((mode.z - top).abs().max()) > APART for top in tops):
            tops.append(mode.z)
    return max(maximise(every, top, prior=False, gtol=0.05, max_iter=100).value for top in tops)


@float64()
def posterior_agreement(hypothesis: Hypothesis, data: Dataset, seed: int) -> dict[str, Agreement]:
    """Fit a few items, draw from the same posterior by NUTS, and compare the two at each site."""
    small = data.subset(ITEMS, seed)
    small = small if torch.isfinite(small.targets).all() else data
    found = fit(replace(hypothesis, predict=None), small, seed)
    log_joint = LogJoint(hypothesis.model, hypothesis.prepare(small))
    rows = [{name: draws[i] for name, draws in found.draws.items()} for i in range(DRAWS)]
    z = torch.stack([log_joint.pack(row) for row in rows])
    cholesky = torch.linalg.cholesky(z.T.cov().reshape(log_joint.size, -1) + 1e-6 * torch.eye(log_joint.size))
    return compare(found.draws, nuts(log_joint, z.mean(0), cholesky, seed=seed))
