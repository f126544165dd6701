"""Classes themselves, not their codes: a sparse process under a softmax, by minibatch SVI in Pyro.

The Gaussian bound on the class codes says where the hyperparameters start; then the guide of the inducing values
follows its natural gradient, and that of the hyperparameters the gradient of the same bound.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor
from tqdm import tqdm

from pyro_invariance import priors
from pyro_invariance.datasets import Dataset
from pyro_invariance.devices import moved
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.evidence.importance import lower_bound
from pyro_invariance.guides import SkewNormal
from pyro_invariance.numerics import float64
from pyro_invariance.sparse import ExpectedCategorical, Inducing, SparseProcess
from pyro_invariance.sparse_fitting import SparseFit, fit_sparse, inducing_kernel
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Extent, Hypothesis

STEPS, BATCH = 200, 500
NARROW, PACE, WARM = 0.02, 0.2, 50  # spread of the hyperparameters, pace in units of it; steps before they move
FASTEST, SLOWEST = 0.3, 0.05  # rates of the natural gradient: whole steps overshoot under a softmax
DRAWS, EVERY, BLOCK = 3, 1024, 1000  # hyperparameters for the evidence; draws of the function there, of images at once


def model(process: SparseProcess, contrasts: Tensor, extents: dict[str, Extent]) -> Tensor:
    """Pyro model of classes `[N]` with logits `contrasts @ f`, the contrasts `[C, C - 1]`."""
    lengthscale = pyro.sample("lengthscale", priors.log_normal("lengthscale"))
    variance = pyro.sample("variance", priors.log_normal("variance"))
    ranges = [pyro.sample(name, priors.extent(e.upper)) for name, e in extents.items()]
    return process.observe(partial(ExpectedCategorical, contrasts=contrasts), variance, lengthscale, *ranges)


@float64()
@pyro.settings.context(module_local_params=True)
def fit_classes(hypothesis: Hypothesis, data: Dataset, size: int, seed: int = 0, steps: int = STEPS) -> SparseFit:
    """Fit a hypothesis to the classes of all images of a data set, through `size` of them.

    Its evidence is that of the labels, and not to be compared with any of their codes.

    Parameters
    ----------
    hypothesis, data, size, seed
        As `fit_sparse` takes them.
    steps : int
        Of SVI.

    Returns
    -------
    SparseFit
        `test_log_density` holds log probabilities of the classes, `test_mean` and `test_variance` moments of the
        function.

    Raises
    ------
    BadInput
        For data without classes, and as `fit_sparse`.
    """
    if data.codes is None:
        raise BadInput(f"data: {data.name!r} has values, not classes; fit_sparse takes those")
    begin = time.process_time()
    normal = fit_sparse(hypothesis, replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0]), size, seed)
    start = {name: values.mean() for name, values in normal.sites.items() if name != "noise"}
    chosen = data.subset(size, seed)
    outputs = data.codes.shape[1]
    kernel = inducing_kernel(hypothesis, chosen)
    values = moved(Inducing.prior(kernel.count, outputs, shared=False), data.x.device)
    process = SparseProcess(kernel, data.x, data.y, values, min(BATCH, len(data.y)))
    statement = partial(model, process, data.codes, dict(hypothesis.extents))
    log_joint = LogJoint(partial(model, _few(process), data.codes, dict(hypothesis.extents)), ())
    with poutine.seed(rng_seed=seed):
        guide = SkewNormal(statement, log_joint.pack(start), NARROW * torch.eye(log_joint.size))
        guide()
        path = _train(guide, statement, process, steps)
        fixed = guide.get_posterior().fixed
        z = fixed.sample(torch.Size([DRAWS]))
    sites = [log_joint.unpack(row) for row in z]
    points = [(at["variance"], at["lengthscale"], *(at[name] for name in hypothesis.extents)) for at in sites]
    likelihood = partial(ExpectedCategorical, contrasts=data.codes, draws=EVERY, seed=1)  # others than in training
    with torch.no_grad():
        expected = _expected(process, likelihood, points)
        prior = torch.stack([log_joint.terms(row)[0] for row in z])
        test = _moments(process, points, data.x_test)
    logs = prior + (expected - process.inducing.divergence()).to(z) - fixed.log_prob(z)
    probabilities = torch.stack(
        [torch.cat([likelihood(*part).probabilities for part in zip(*_split(at), strict=True)]) for at in test]
    )
    return SparseFit(
        label=hypothesis.label,
        evidence=lower_bound(logs.detach()),
        count=len(data.y),
        inducing=kernel.count,
        sites={name: torch.stack([row[name] for row in sites]) for name in log_joint.transforms},
        path=path,
        test_mean=torch.stack([mean for mean, _ in test]).mean(0),
        test_variance=torch.stack([spread.mean(1) for _, spread in test]).mean(0),
        test_log_density=probabilities.mean(0).log(),
        cpu_seconds=time.process_time() - begin,
    )


def _few(process: SparseProcess) -> SparseProcess:
    """The same process with hardly any data: what priors are read from."""
    return replace(process, images=process.images[:1], targets=process.targets[:1], batch=1)


def _train(guide: SkewNormal, statement: Any, process: SparseProcess, steps: int) -> list[float]:
    """Move both guides by minibatches; the bound per image at each step."""
    elbo = Trace_ELBO()(statement, guide)
    optimiser = torch.optim.Adam([guide.loc], lr=PACE)  # in units of the spread
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps - WARM))
    path = []
    for step in tqdm(range(steps), desc="steps", disable=None, leave=False):
        optimiser.zero_grad()
        loss = elbo()
        loss.backward()
        if step >= WARM:
            optimiser.step()
            schedule.step()
        process.follow(max(FASTEST / (step + 1) ** 0.5, SLOWEST))
        path.append(-float(loss.detach()) / len(process.targets))
    return path


def _moments(process: SparseProcess, points: list[tuple[Tensor, ...]], images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean `[M, O]` and variance `[M, O]` of the function at images, for each `(variance, lengthscale, *extents)`."""
    if len(images) == 0:
        return [(process.inducing.mean[:0], process.inducing.mean[:0]) for _ in points]
    factors = [process.factor(*shape) for _, *shape in points]
    found: list[list] = [[] for _ in points]
    for block in process.blocks(images):
        compared = process.kernel.compared(block)
        for rows, at, factor in zip(found, points, factors, strict=True):
            rows.append(process.moments(*process.project(compared, factor, *at)))
    return [tuple(torch.cat(columns) for columns in zip(*rows, strict=True)) for rows in found]  # type: ignore[misc]


def _expected(process: SparseProcess, likelihood: Any, points: list[tuple[Tensor, ...]]) -> Tensor:
    """Expected log likelihood `[S]` of all data at each point."""
    sums = []
    for at in _moments(process, points, process.images):
        parts = zip(*_split(at), process.targets.split(BLOCK), strict=True)
        sums.append(torch.stack([likelihood(mean, spread).log_prob(y).sum() for mean, spread, y in parts]).sum())
    return torch.stack(sums)


def _split(moments: tuple[Tensor, Tensor]) -> list[tuple[Tensor, ...]]:
    return [each.split(BLOCK) for each in moments]
