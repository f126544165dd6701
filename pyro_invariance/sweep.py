"""Fit many hypotheses side by side; one that fails, or whose worker dies, does not sink the others."""

import math
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from pyro import poutine
from tqdm import tqdm

from pyro_invariance.datasets import Dataset
from pyro_invariance.devices import moved
from pyro_invariance.fitting import Fit, fit
from pyro_invariance.runs import RunFolder
from pyro_invariance.zoo import Hypothesis


def sweep(
    hypotheses: list[Hypothesis], data: Dataset, seed: int, folder: RunFolder | None = None, jobs: int | None = None
) -> tuple[list[Fit], dict[str, str]]:
    """Fit every hypothesis that memory allows, through joblib; those in the folder are read back.

    With `jobs=1` they are fitted in this very process, where a debugger sees them and nothing survives its death.

    Returns
    -------
    list of Fit
        Those that were fitted.
    dict of str to str
        Labels of those that were not, with the reason; `refused: ...` where memory did not allow them.
    """
    stored = {h.label: None if folder is None else folder.load(h.label) for h in hypotheses}
    done, failed = [f for f in stored.values() if f is not None], {}
    rest, available = [], available_memory()
    for h in sorted(hypotheses, key=lambda h: -h.memory(data)):  # the largest first: they take longest
        if stored[h.label] is None and h.memory(data) > available:
            failed[h.label] = f"refused: needs {h.memory(data) / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"
        elif stored[h.label] is None:
            rest.append(h)
    if not rest:
        return done, failed
    largest = max(h.memory(data) for h in rest)
    fitting_in_memory = max(1, int(available // largest)) if largest else len(rest)
    workers = min(jobs or joblib.cpu_count(), fitting_in_memory, len(rest))
    bar = tqdm(total=len(rest), desc="hypotheses", disable=not sys.stderr.isatty())
    for label, result in _run(rest, data, seed, folder, workers, here=jobs == 1):
        bar.set_postfix_str(label)
        bar.update()
        if isinstance(result, str):
            failed[label] = result
        else:
            done.append(result)
    bar.close()
    return done, failed


def _run(
    rest: list[Hypothesis], data: Dataset, seed: int, folder: RunFolder | None, workers: int, here: bool
) -> Iterator[tuple[str, Fit | str]]:
    """Results as they come.  When a worker dies, each of the rest is tried again in a process of its own."""
    left = {h.label: h for h in rest}
    if here or workers > 1:
        parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
        try:
            for label, result in parallel(joblib.delayed(_attempt)(h, data, seed, folder) for h in rest):
                del left[label]
                yield label, result
        except Exception as died:  # a fit that raises is an answer: this is the pool itself
            print(f"the pool broke ({type(died).__name__}); {len(left)} hypotheses one at a time", file=sys.stderr)
    for label, h in left.items():
        if folder is not None and (stored := folder.load(label)) is not None:
            yield label, stored
            continue
        try:  # one task for a pool of two: joblib runs a pool of one in this very process
            yield joblib.Parallel(n_jobs=2)([joblib.delayed(_attempt)(h, data, seed, folder)])[0]
        except TerminatedWorkerError:
            yield label, "its process was killed by the system, as happens when memory runs out"
        except Exception as error:
            yield label, f"{type(error).__name__}: {error}"


def _attempt(hypothesis: Hypothesis, data: Dataset, seed: int, folder: RunFolder | None) -> tuple[str, Fit | str]:
    """Fit one hypothesis; a failure is an answer, so that the others stand."""
    try:
        with poutine.seed(rng_seed=seed):  # the caller's random numbers go on as if nothing had been drawn
            result = moved(fit(hypothesis, data, seed), "cpu")
        if folder is not None:
            folder.save(result)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return hypothesis.label, f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    return hypothesis.label, result


SYSTEM = Path("/")
CGROUPS = (  # limit, use and its parts: of the second version and of the first
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def available_memory() -> float:
    """Bytes that this process may still use: what the system says is available, within the limit of its container."""
    free = [_meminfo(), *(_left(*names) for names in CGROUPS)]
    if min(free) < math.inf:
        return min(free)
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not every system says
        return math.inf


def _meminfo() -> float:
    try:
        lines = dict(line.split(":", 1) for line in (SYSTEM / "proc/meminfo").read_text().splitlines())
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return math.inf


def _left(*names: str) -> float:
    """What the limit of a control group leaves; cached files count as used there, but give way."""
    try:
        limit, use, parts = ((SYSTEM / "sys/fs/cgroup" / name).read_text() for name in names)
        return float(limit) - float(use) + float(dict(line.split() for line in parts.splitlines())["inactive_file"])
    except (OSError, KeyError, ValueError):  # no such group, or its limit is "max"
        return math.inf
