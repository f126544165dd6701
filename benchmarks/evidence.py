"""Do the estimators of the evidence say what is true?  `python -m benchmarks.evidence [PART ...] [--problems N]`.

- `conjugate`: random problems whose evidence is known; every bound is on its side
- `mean field`: a guide that is 7 nats off is told so
- `sandwich`: both sides of the evidence of simulated data meet
- `nested`: nested sampling, by `dynesty`, agrees on posteriors of few dimensions, one of them with two modes
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dynesty
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from tqdm import tqdm

from pyro_invariance import zoo
from pyro_invariance.densities import SoftUniform
from pyro_invariance.evidence import Evidence, Problem, ais, bdmc, elbo, exact, iwae, laplace, psis
from pyro_invariance.evidence.fitted import guided
from pyro_invariance.groups import SO2
from pyro_invariance.numerics import float64
from pyro_invariance.representations import Polar
from pyro_invariance.sites import Marginalised
from pyro_invariance.traces import observed

ALPHA, ROUNDING = 0.01, 1e-6  # of all tests of a part together; nats
ERROR, GAUSSIAN, WIDTH, SECONDS = 0.05, 0.05, 0.5, 60.0  # nats, nats, nats, and seconds of a sandwich
CHAINS = 512  # for an error of 0.05 nats in 30 dimensions


@dataclass(frozen=True, eq=False)
class Regression:
    """Linear regression, `y ~ N(0, X X^T + s^2)`."""

    x: Tensor
    y: Tensor
    noise: float

    def __call__(self) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(self.x.shape[1]), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(self.x @ w, self.noise).to_event(1), obs=self.y)

    def log_evidence(self) -> Tensor:
        noise = self.noise**2 * torch.eye(len(self.y))
        return MultivariateNormal(torch.zeros(len(self.y)), self.x @ self.x.T + noise).log_prob(self.y)


@dataclass(frozen=True, eq=False)
class Process:
    """A Gaussian process whose values are a sample site."""

    gram: Tensor
    y: Tensor
    noise: float

    def __call__(self) -> None:
        zero = torch.zeros(len(self.y))
        f = pyro.sample("f", dist.MultivariateNormal(zero, self.gram + 1e-6 * torch.eye(len(zero))))
        pyro.sample("y", dist.Normal(f, self.noise).to_event(1), obs=self.y)

    def log_evidence(self) -> Tensor:
        noise = (self.noise**2 + 1e-6) * torch.eye(len(self.y))
        return MultivariateNormal(torch.zeros(len(self.y)), self.gram + noise).log_prob(self.y)


@dataclass(frozen=True, eq=False)
class Clusters:
    """A cluster and a place in it, seen through a matrix: the cluster is summed out, the place is not."""

    shares: Tensor
    means: Tensor  # [K, D]
    x: Tensor  # [N, D]
    y: Tensor
    noise: float

    def __call__(self) -> None:
        k = pyro.sample("k", dist.Categorical(self.shares), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(self.means[k], 0.7).to_event(1))
        pyro.sample("y", dist.Normal(self.x @ z, self.noise).to_event(1), obs=self.y)

    def log_evidence(self) -> Tensor:
        covariance = 0.49 * self.x @ self.x.T + self.noise**2 * torch.eye(len(self.y))
        each = torch.stack([MultivariateNormal(self.x @ mean, covariance).log_prob(self.y) for mean in self.means])
        return (self.shares.log() + each).logsumexp(0)


@dataclass(frozen=True, eq=False)
class Finite:
    """One of several mixtures, and a component of it for each datum: nothing is continuous."""

    kinds: Tensor  # [G], shares
    shares: Tensor  # [G, K]
    means: Tensor  # [K]
    y: Tensor

    def __call__(self) -> None:
        g = pyro.sample("g", dist.Categorical(self.kinds))
        with pyro.plate("data", len(self.y)):
            k = pyro.sample("k", dist.Categorical(self.shares[g]))
            pyro.sample("y", dist.Normal(self.means[k], 0.5), obs=self.y)

    def by_hand(self) -> float:
        component = Normal(self.means, 0.5).log_prob(self.y[:, None])  # [N, K]
        each = [
            float(kind.log() + (s.log() + component).logsumexp(1).sum())
            for kind, s in zip(self.kinds, self.shares, strict=True)
        ]
        return float(np.logaddexp.reduce(each))


def conjugate_problem(seed: int) -> Any:
    """A random problem: four regressions, three processes, two with clusters and a finite one out of ten."""
    rng = np.random.default_rng(seed)
    noise, kind = float(np.exp(rng.uniform(np.log(0.1), 0.0))), seed % 10

    def tensor(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    if kind < 4:
        n, size, rho = rng.integers(5, 61), rng.integers(1, 31), rng.uniform(0, 0.99)
        correlation = rho ** np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
        x = rng.normal(size=(n, size)) @ np.linalg.cholesky(correlation).T
        return Regression(tensor(x), tensor(x @ rng.normal(size=size) + noise * rng.normal(size=n)), noise)
    if kind < 7:
        n, reach = rng.integers(3, 31), rng.uniform(0.2, 1.0)
        x = np.sort(rng.uniform(-1, 1, n))
        gram = np.exp(-0.5 * (np.subtract.outer(x, x) / reach) ** 2)
        f = np.linalg.cholesky(gram + 1e-6 * np.eye(n)) @ rng.normal(size=n)
        return Process(tensor(gram), tensor(f + noise * rng.normal(size=n)), noise)
    shares = rng.dirichlet(2 * np.ones(3), size=3)
    if kind < 9:
        n, size = rng.integers(1, 6), rng.integers(1, 5)
        means, x = rng.normal(size=(3, size)), rng.normal(size=(n, size))
        z = means[rng.choice(3, p=shares[0])] + 0.7 * rng.normal(size=size)
        y = x @ z + noise * rng.normal(size=n)
        return Clusters(tensor(shares[0]), tensor(means), tensor(x), tensor(y), max(noise, 0.3))
    kinds, means = rng.dirichlet(np.ones(3)), rng.normal(size=3)
    y = means[rng.choice(3, p=shares[rng.choice(3, p=kinds)], size=30)] + 0.5 * rng.normal(size=30)
    return Finite(tensor(kinds), tensor(shares), tensor(means), tensor(y))


def conjugate(problems: int = 200) -> bool:
    """Every bound on its side, errors small, elbo <= iwae <= exact in mean."""
    rows: dict[str, list[tuple[float, float]]] = {}  # off the truth towards the wrong side, standard error
    mean: dict[str, list[float]] = {"elbo": [], "iwae-64": []}
    gaussian, seconds = [], {}

    def note(name: str, evidence: Evidence, over: float, error: float, began: float) -> None:
        rows.setdefault(name, []).append((over, error))
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - began

    for seed in tqdm(range(problems), disable=not sys.stderr.isatty()):
        model, began = conjugate_problem(seed), time.process_time()
        problem = Problem(model)
        truth = exact(problem)
        if isinstance(model, Finite):
            note("exact", truth, abs(truth.value - model.by_hand()), 0.0, began)
            continue
        shared, _ = guided(problem, seed)
        for estimator in (elbo, iwae, psis, laplace):
            began = time.process_time()
            found = estimator(shared, seed=seed)
            off = (found - truth).value
            over = off if found.bound == "lower" else 0.0
            note(found.method, found, over, found.std_error, began)
            if found.method in mean:
                mean[found.method].append(off)
            if found.method == "elbo" and not isinstance(model, Clusters):
                gaussian.append(abs(off))
        if seed % 7 == 0:  # of every kind, in turn
            began = time.process_time()
            found = ais(problem, seed=seed, chains=CHAINS)
            note("ais", found, (found - truth).value, found.std_error, began)
            began = time.process_time()
            found = bdmc(problem, seed=seed, chains=CHAINS)
            simulated = replace(model, y=observed(problem.simulate(seed)[0].trace)["y"]["value"])
            other = exact(Problem(simulated))
            note("bdmc, lower", found, (found - other).value, found.std_error, began)
            note("bdmc, upper", found, other.value - float(found.upper or math.nan), found.upper_error, began)
    tests = sum(len(row) for row in rows.values())
    bar = float(stats.norm.ppf(1 - ALPHA / tests))
    print(
        f"{'conjugate':12} {'count':>5} {'median off':>10} {'worst z':>8} {'median se':>9} {'worst se':>8} {'cpu s':>6}"
    )
    good = True
    for name, row in rows.items():
        scores = [(over - ROUNDING) / max(error, 1e-12) if over > ROUNDING else 0.0 for over, error in row]
        errors = [error for _, error in row]
        worst, error = max(scores), max(errors)
        middle = statistics.median(over for over, _ in row)
        fine = worst < bar and error <= ERROR
        good &= fine
        print(
            f"{name:12} {len(row):5} {middle:10.4f} {worst:8.2f} {statistics.median(errors):9.4f} {error:8.4f} "
            f"{seconds[name]:6.0f}{'' if fine else '  missed'}"
        )
    low, high = (statistics.mean(mean[name]) for name in ("elbo", "iwae-64"))
    slack = ROUNDING + 3 * math.sqrt(sum(e**2 for _, e in rows["iwae-64"])) / len(rows["iwae-64"])
    fine = max(gaussian) <= GAUSSIAN, low <= high + slack and high <= slack
    print(f"z may be {bar:.2f}; elbo of a Gaussian posterior off by {max(gaussian):.1e} at most, 0.05 asked for")
    print(f"mean off the truth: elbo {low:.4f} <= iwae-64 {high:.4f} <= 0 (within {slack:.4f})")
    return good and all(fine)


def correlated() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z.sum(), math.sqrt(0.1)), obs=torch.tensor(1.5))


def mean_field(seeds: int = 100) -> bool:
    """A mean-field guide of a correlated posterior, trained by Pyro's SVI, is never presented without a word."""
    truth = float(Normal(0.0, math.sqrt(8.1)).log_prob(torch.tensor(1.5)))
    off, errors, shapes, loose, cautioned, began = [], [], [], [], 0, time.process_time()
    for seed in tqdm(range(seeds), disable=not sys.stderr.isatty()):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = AutoNormal(correlated)
        svi = SVI(correlated, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO(num_particles=4))  # type: ignore
        for _ in range(500):
            svi.step()
        found = elbo(Problem(correlated, guide=guide), seed=seed)
        cautioned += bool(found.cautions)
        off.append(truth - found.value)
        errors.append(found.std_error)
        shapes.append(found.khat or 0.0)
        loose.append(found.looseness or 0.0)
    pyro.clear_param_store()
    good = cautioned >= 0.95 * seeds
    print(
        f"mean field   off by {statistics.median(off):.2f} nats (worst {max(off):.2f}), se {max(errors):.3f}, k-hat "
        f"{statistics.median(shapes):.2f} (least {min(shapes):.2f}), looseness {statistics.median(loose):.2f} (least "
        f"{min(loose):.2f}); cautioned {cautioned} of {seeds}, {time.process_time() - began:.0f} s cpu"
        f"{'' if good else '  missed'}"
    )
    return good


def logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    pyro.sample("y", dist.Bernoulli(logits=x @ w).to_event(1), obs=y)


@dataclass(frozen=True, eq=False)
class Posed:
    """Images of a known template, turned within a range that is to be learned."""

    template: Tensor  # [C, R, A]

    def __call__(self, x: Tensor) -> None:
        extent = pyro.sample("extent", dist.Uniform(torch.tensor(0.01), 3.14))
        noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 1.0))
        group = SO2(on=Polar(6, 32))
        with pyro.plate("images", len(x)):
            pose = pyro.sample("pose", SoftUniform(extent))
            pyro.sample("x", dist.Normal(group.act(pose, self.template), noise).to_event(3), obs=x)


def sandwiches() -> dict[str, Callable[[int], Evidence]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 10, generator=generator)
    template = torch.randn(1, 6, 32, generator=generator)
    entry = zoo.load("orbit_gp")
    data = entry.data("rotation", 0, size=100)
    rotation = next(h for h in entry.hypotheses(data) if h.label == "rotation")
    posed = Problem(Marginalised(Posed(template), nodes=32), (torch.zeros(20, 1, 6, 32),))
    return {
        "logistic": lambda seed: bdmc(Problem(logistic, (x, torch.zeros(100))), seed=seed),
        "posed": lambda seed: bdmc(posed, seed=seed, start="guide", chains=16),
        "orbit_gp": lambda seed: bdmc(
            Problem(rotation.model, rotation.prepare(data)), seed=seed, start="guide", chains=16
        ),
    }


def sandwich(seeds: int = 3) -> bool:
    """Both sides of the evidence of simulated data meet within half a nat and a minute."""
    print(
        f"{'sandwich':12} {'seed':>4} {'lower':>9} {'se':>6} {'upper':>9} {'se':>6} {'width':>6} {'ess':>5} wall  cpu s"
    )
    good = True
    for name, run in sandwiches().items():
        for seed in range(seeds):
            began = time.process_time()
            found = run(seed)
            width, spent = float(found.width or 0.0), time.process_time() - began  # on one thread: wall if quiet
            fine = width <= WIDTH and spent <= SECONDS and max(found.std_error, found.upper_error) <= WIDTH / 2
            good &= fine
            print(
                f"{name:12} {seed:4} {found.value:9.3f} {found.std_error:6.3f} {found.upper:9.3f} "
                f"{found.upper_error:6.3f} {width:6.3f} {found.ess:5.1f} {found.seconds:4.0f} "
                f"{spent:5.0f}{'' if fine else '  missed'}",
                flush=True,
            )
    return good


def folded(y: Tensor) -> None:
    """Only the distance from the origin is seen: two modes, unlike ones since the prior is off centre."""
    z = pyro.sample("z", dist.Normal(torch.tensor([0.3, 0.0]), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z[0].square() + 0.5 * z[1], 0.2).expand(y.shape).to_event(1), obs=y)


def scaled(y: Tensor) -> None:
    """Place and spread of a sample."""
    place = pyro.sample("place", dist.Normal(torch.tensor(0.0), 3.0))
    spread = pyro.sample("spread", dist.LogNormal(torch.tensor(0.0), 1.0))
    pyro.sample("y", dist.Normal(place, spread).expand(y.shape).to_event(1), obs=y)


def nested_sampling(problem: Problem, transform: Callable[[np.ndarray], np.ndarray], seed: int) -> Evidence:
    """Evidence by nested sampling over the unit cube, which `transform` maps to the unconstrained space."""
    begin, log_joint = time.perf_counter(), problem.log_joint

    @float64()
    @torch.no_grad()
    def likelihood(z: np.ndarray) -> float:
        return float(log_joint.terms(torch.tensor(z))[1])

    rng = np.random.default_rng(seed)
    sampler = dynesty.NestedSampler(likelihood, transform, log_joint.size, nlive=500, sample="rwalk", rstate=rng)
    sampler.run_nested(dlogz=0.01, print_progress=False)
    found = sampler.results
    return Evidence(
        float(found.logz[-1]), float(found.logzerr[-1]), "estimate", data=problem.digest,
        seconds=time.perf_counter() - begin,
    )  # fmt: skip


def nested() -> bool:
    """Importance sampling and annealing agree with nested sampling, within three combined standard errors."""
    rng, good = np.random.default_rng(0), True
    cases = {
        "two modes": (folded, torch.tensor(2.0 + 0.2 * rng.normal(size=5)), [0.3, 0.0], [1.0, 1.0]),
        "scale": (scaled, torch.tensor(1.0 + 0.5 * rng.normal(size=20)), [0.0, 0.0], [3.0, 1.0]),
    }
    print(f"{'nested':12} {'dynesty':>9} {'se':>6}   estimator     value     se     z")
    for name, (model, y, centre, width) in cases.items():
        problem, began = Problem(model, (y,)), time.process_time()
        normal = partial(stats.norm.ppf, loc=centre, scale=width)
        reference = nested_sampling(problem, normal, seed=0)
        spent = time.process_time() - began
        for estimator in (psis, ais):
            began = time.process_time()
            found = estimator(problem, seed=0)
            z = (found.value - reference.value) / math.hypot(found.std_error, reference.std_error)
            good &= abs(z) < 3
            print(
                f"{name:12} {reference.value:9.3f} {reference.std_error:6.3f}   {found.method:9} {found.value:9.3f} "
                f"{found.std_error:6.3f} {z:5.2f}   cpu {spent:.0f} s, {time.process_time() - began:.0f} s"
                f"{'' if abs(z) < 3 else '  missed'}",
                flush=True,
            )
    return good


PARTS = {"conjugate": conjugate, "mean field": mean_field, "sandwich": sandwich, "nested": nested}


@float64()
def main() -> int:
    """Run the parts; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--problems", type=int, default=200, help="of `conjugate`")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    parts = PARTS | {"conjugate": partial(conjugate, chosen.problems)}
    missed = [name for name in chosen.parts or parts if not parts[name]()]
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
