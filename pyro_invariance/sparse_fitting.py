"""Fit one hypothesis to any number of images: hyperparameters by minibatch SVI, the bound from a last pass over all.

A few images say where to start, exactly; the guide of the inducing values follows its natural gradient, that of the
hyperparameters the gradient of the same bound.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal
from tqdm import tqdm

from pyro_invariance import priors
from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import Evidence, LogJoint
from pyro_invariance.evidence.importance import lower_bound
from pyro_invariance.guides import SkewNormal
from pyro_invariance.modes import climbed
from pyro_invariance.numerics import float64
from pyro_invariance.processes import code_log_density, mixed
from pyro_invariance.sparse import Inducing, SparseProcess, optima
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

FEW = 1000  # images that the start is found on, exactly
NOISE = 0.05  # to start with: what inducing values cannot explain looks like noise
STEPS, BATCH, DRAWS = 60, 500, 8
NARROW, WARM = 0.05, 5  # spread and pace of the hyperparameters, in units of their logarithms; steps before they move
CURVED, APART = 2000, 0.1  # images that their curvature is taken from, and how far apart


@dataclass(frozen=True)
class SparseFit:
    """A hypothesis fitted through inducing images.

    Attributes
    ----------
    label : str
        Of the hypothesis.
    evidence : Evidence
        Lower bound on the log evidence of all images, from draws of the hyperparameters with the best guide of the
        inducing values at each.  Not to be compared with the evidence of a subset.
    inducing : int
        Number of inducing images.
    sites : dict of str to Tensor `[S]`
        Draws of the hyperparameters that the evidence comes from.
    path : list of float
        Noisy bound per image at each step.
    test_mean, test_variance, test_log_density : Tensor `[M, O]`, `[M]`, `[M, C]` or `[M, 1]`
        Predictive moments of the targets, and log density of each class's code (of the value), at the test images.
    cpu_seconds : float
        Of everything.
    """

    label: str
    evidence: Evidence
    inducing: int
    sites: dict[str, Tensor]
    path: list[float]
    test_mean: Tensor
    test_variance: Tensor
    test_log_density: Tensor
    cpu_seconds: float


@float64()
@pyro.settings.context(module_local_params=True)
def fit_sparse(
    hypothesis: Hypothesis, data: Dataset, size: int, seed: int = 0, *, steps: int = STEPS, progress: bool = False
) -> SparseFit:
    """Fit a hypothesis of an orbit process to all images of a data set, through `size` of them.

    Parameters
    ----------
    hypothesis : Hypothesis
        One whose model is `orbit_process.model`.
    data : Dataset
        Any number of images.
    size : int
        Inducing images, class-balanced, drawn with the seed; they set the units of the kernel too.  As many as there
        are images make the bound exact at each point of the hyperparameters.
    steps : int
        Of SVI.
    progress : bool
        Show a bar on a terminal.

    Raises
    ------
    BadInput
        For a hypothesis without a function, whose evidence needs no approximation, or fewer than two inducing images.
    """
    if size < 2:
        raise BadInput(f"size: got {size}; two inducing images or more are accepted")
    if hypothesis.kind == "null":
        raise BadInput(f"hypothesis: {hypothesis.label!r} has no function to approximate; use fit, which is fast")
    begin = time.process_time()
    few = data.subset(FEW, seed)
    log_joint = LogJoint(hypothesis.model, hypothesis.prepare(few))
    values = log_joint.unpack(max(climbed(hypothesis, few, log_joint, seed), key=lambda m: m.value).z)
    if size < len(data.y):
        values |= {"noise": values["noise"].clamp_min(NOISE)}
    chosen = data.subset(size, seed)
    guide_of_values = Inducing.prior(len(chosen.y), data.targets.shape[1])
    batch = min(BATCH, len(data.y))
    process = SparseProcess(hypothesis.prepare(chosen)[0], data.x, data.targets, guide_of_values, batch)

    def model() -> Tensor:
        return hypothesis.model(process, data.targets)

    with poutine.seed(rng_seed=seed):
        guide = SkewNormal(model, log_joint.pack(values), NARROW * torch.eye(log_joint.size))
        guide()
        path = _train(guide, model, process, steps, progress)
        centre = guide.get_posterior().fixed.transforms[0].centre
        some = data.subset(CURVED, seed)
        few_seen = replace(process, images=some.x, targets=data.encode(some.y))
        precision = _precision(few_seen, hypothesis, log_joint, centre, len(data.y) / len(some.y))
        posterior = MultivariateNormal(centre, precision_matrix=precision)
        z = posterior.sample(torch.Size([DRAWS]))
        log_guide = posterior.log_prob(z)
    sites = [log_joint.unpack(row) for row in z]
    points = [_point(hypothesis, at) for at in sites]
    best = optima(process, points)
    with torch.no_grad():
        prior = torch.stack([log_joint.terms(row)[0] for row in z])
    bounds = torch.tensor([bound for bound, _ in best])
    mean, variance = _predict(process, points, [guide for _, guide in best], data.x_test)
    middle, spread = mixed(mean, variance)
    codes = data.encode(data.y_test)[:, None] if data.codes is None else data.codes
    return SparseFit(
        label=hypothesis.label,
        evidence=lower_bound(prior + bounds - log_guide),
        inducing=len(chosen.y),
        sites={name: torch.stack([row[name] for row in sites]) for name in log_joint.transforms},
        path=path,
        test_mean=middle,
        test_variance=spread,
        test_log_density=code_log_density(mean, variance, codes),
        cpu_seconds=time.process_time() - begin,
    )


def _point(hypothesis: Hypothesis, at: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Noise variance, variance, lengthscale and extents."""
    noise = priors.NOISE_FLOOR + at["noise"]
    return noise, at["variance"], at["lengthscale"], *(at[name] for name in hypothesis.extents)


def _precision(
    process: SparseProcess, hypothesis: Hypothesis, log_joint: LogJoint, centre: Tensor, share: float
) -> Tensor:
    """Negative Hessian `[D, D]` of the best bound, by differences; nothing is less certain than to a factor of e."""
    size = len(centre)
    steps = APART * torch.eye(size)
    pairs = [(i, j) for i in range(size) for j in range(i)]
    at = [centre, *(centre + steps), *(centre - steps), *(centre + steps[i] + steps[j] for i, j in pairs)]
    found = optima(process, [_point(hypothesis, log_joint.unpack(z)) for z in at])
    middle, *rest = torch.tensor([bound for bound, _ in found])
    up, down, both = rest[:size], rest[size : 2 * size], rest[2 * size :]
    hessian = torch.diag(torch.stack(up) + torch.stack(down) - 2 * middle)
    for (i, j), value in zip(pairs, both, strict=True):
        hessian[i, j] = hessian[j, i] = value - up[i] - up[j] + middle
    values, basis = torch.linalg.eigh(-share * hessian / APART**2)
    return basis @ torch.diag(values.clamp_min(1.0)) @ basis.T


def _train(guide: SkewNormal, model: Any, process: SparseProcess, steps: int, progress: bool) -> list[float]:
    """Move both guides by minibatches; the bound per image at each step."""
    elbo = Trace_ELBO()(model, guide)
    optimiser = torch.optim.Adam([guide.loc], lr=1.0)  # in units of the spread
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps - WARM))
    path = []
    for step in tqdm(range(steps), disable=None if progress else True, leave=False):
        optimiser.zero_grad()
        loss = elbo()
        loss.backward()
        if step >= WARM:
            optimiser.step()
            schedule.step()
        process.follow(max(1 / (step + 1), process.batch / len(process.targets), 0.05))
        path.append(-float(loss.detach()) / len(process.targets))
    return path


@torch.no_grad()
def _predict(
    process: SparseProcess, points: list[tuple[Tensor, ...]], guides: list[Inducing], images: Tensor
) -> tuple[Tensor, Tensor]:
    """Predictive mean `[S, M, O]` and variance `[S, M]`, noise included, at each point."""
    if len(images) == 0:
        outputs = process.targets.shape[1]
        return torch.zeros(len(points), 0, outputs), torch.zeros(len(points), 0)
    factors = [process.factor(*shape) for _, _, *shape in points]
    rows = []
    for block in process.blocks(images):
        compared = process.kernel.compared(block)
        for (noise, *at), cholesky, guide in zip(points, factors, guides, strict=True):
            a, left = process.project(compared, cholesky, *at)
            mean, spread = replace(process, inducing=guide).moments(a, left)
            rows.append((mean, spread[:, 0] + noise))
    means, variances = (
        torch.stack([torch.cat(column[i :: len(points)]) for i in range(len(points))])
        for column in zip(*rows, strict=True)
    )
    return means, variances
