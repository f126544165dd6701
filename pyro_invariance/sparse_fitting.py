"""Fit one hypothesis to any number of images through inducing images: hyperparameters, evidence, predictions.

A few images say where to start, exactly; Newton's method on the bound with the best guide of the inducing values does
the rest, in a few passes over the data; draws around the best hyperparameters give the evidence.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_invariance import priors
from pyro_invariance.averaged import AveragedKernel, FeatureKernel
from pyro_invariance.collapsed import FLAT, Collapsed, collapsed
from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import Evidence, LogJoint
from pyro_invariance.evidence.importance import lower_bound
from pyro_invariance.modes import climbed
from pyro_invariance.numerics import float64
from pyro_invariance.processes import code_log_density, mixed
from pyro_invariance.sparse import Inducing, SparseProcess
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis

FEW = 1000  # images that the start is found on, exactly
SOME = 10_000  # images that are enough to come near the best hyperparameters
WIDE, APART, ROUNDS = 0.3, 0.1, 6  # how far apart slope and curvature are looked for, first and then; how many times
ENOUGH, DRAWS = 1e-3, 5  # nats per image that a step must promise; hyperparameters for the evidence


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
    count, inducing : int
        Number of images, and of inducing values.
    sites : dict of str to Tensor `[S]`
        Draws of the hyperparameters that the evidence comes from.
    path : list of float
        Bound, with the prior of noise and variance, per image at each step of Newton's method.
    test_mean, test_variance, test_log_density : Tensor `[M, O]`, `[M]`, `[M, C]` or `[M, 1]`
        Predictive moments of the targets, and log density of each class's code (of the value), at the test images.
    cpu_seconds : float
        Of everything.
    """

    label: str
    evidence: Evidence
    count: int
    inducing: int
    sites: dict[str, Tensor]
    path: list[float]
    test_mean: Tensor
    test_variance: Tensor
    test_log_density: Tensor
    cpu_seconds: float


@float64()
@pyro.settings.context(module_local_params=True)
def fit_sparse(hypothesis: Hypothesis, data: Dataset, size: int, seed: int = 0) -> SparseFit:
    """Fit a hypothesis of an orbit process to all images of a data set, through `size` of them.

    Parameters
    ----------
    hypothesis : Hypothesis
        One whose model is `orbit_process.model`.
    data : Dataset
        Any number of images.
    size : int
        Inducing images, class-balanced, drawn with the seed; they set the units of the kernel too.  As many as there
        are images make the bound exact at each point of the hyperparameters.  A kernel of finitely many features
        takes its centres from them, and its bound is exact.

    Raises
    ------
    BadInput
        For a hypothesis whose `sparse` is false, or fewer than two inducing images.
    """
    if size < 2:
        raise BadInput(f"size: got {size}; two inducing images or more are accepted")
    if not hypothesis.sparse:
        raise BadInput(f"hypothesis: {hypothesis.label!r} is no single Gaussian process; fit takes any hypothesis")
    begin = time.process_time()
    few = data.subset(FEW, seed)
    log_joint = LogJoint(hypothesis.model, hypothesis.prepare(few))
    z, width = max(climbed(hypothesis, few, log_joint, seed), key=lambda m: m.value).z, WIDE
    chosen = data.subset(size, seed)
    kernel = inducing_kernel(hypothesis, chosen)
    unknown = Inducing.prior(kernel.count, data.targets.shape[1])
    process = SparseProcess(kernel, data.x, data.targets, unknown, len(data.y))
    names = ("lengthscale", *hypothesis.extents)
    if len(data.y) > 2 * SOME:
        some = data.subset(SOME, seed)
        part = replace(process, images=some.x, targets=data.encode(some.y))
        z, width = Search(part, log_joint, names).top(z, width)[0], APART
    search = Search(process, log_joint, names)
    with poutine.seed(rng_seed=seed):
        draws = search.draws(*search.top(z, width))
    mean, variance = _predict(process, draws, data.x_test)
    middle, spread = mixed(mean, variance)
    codes = data.encode(data.y_test)[:, None] if data.codes is None else data.codes
    return SparseFit(
        label=hypothesis.label,
        evidence=replace(lower_bound(draws.log_weights), drift=search.drift),
        count=len(data.y),
        inducing=kernel.count,
        sites={name: torch.stack([row[name] for row in draws.sites]) for name in log_joint.transforms},
        path=search.path,
        test_mean=middle,
        test_variance=spread,
        test_log_density=code_log_density(mean, variance, codes),
        cpu_seconds=time.process_time() - begin,
    )


@torch.no_grad()  # few Gram matrices are needed: their distances are not kept
def inducing_kernel(hypothesis: Hypothesis, chosen: Dataset) -> Any:
    """Kernel of the inducing values: of the function itself, or of the weights where it has finitely many features."""
    kernel = hypothesis.prepare(chosen)[0]
    return FeatureKernel(kernel) if isinstance(kernel, AveragedKernel) else kernel


@dataclass(frozen=True)
class _Draws:
    """Draws of the hyperparameters, what a pass over the data said at each, and their log importance weights `[S]`."""

    sites: list[dict[str, Tensor]]
    seen: list[Collapsed]
    log_weights: Tensor


@dataclass
class Search:
    """The largest bound over all data, by Newton's method in what the kernel takes; noise and variance cost nothing.

    `z` are unconstrained values of all sites; `shape` names those that the kernel takes.
    """

    process: SparseProcess
    log_joint: LogJoint
    shape: tuple[str, ...]
    drift: float = 0.0  # gained by the last step, as far as a parabola says, where it was a long one
    path: list[float] = field(default_factory=list)  # bound per image

    def __post_init__(self) -> None:
        nodes = poutine.trace(self.log_joint.model).get_trace(*self.log_joint.args).nodes
        self._priors: list[Any] = [nodes[name]["fn"] for name in ("noise", "variance")]

    def _prior(self, logs: Tensor) -> Tensor:
        return torch.stack([p.log_prob(at.exp()) + at for p, at in zip(self._priors, logs, strict=True)]).sum()

    def _at(self, z: list[Tensor]) -> list[tuple[Collapsed, Tensor, Tensor, float]]:
        """What a pass says at each `z`; the best noise and variance there, their precision, bound and prior."""
        sites = [self.log_joint.unpack(row) for row in z]
        found = collapsed(self.process, [tuple(at[name] for name in self.shape) for at in sites])
        logs = [torch.stack([at["noise"].log(), at["variance"].log()]) for at in sites]
        return [(c, *c.best(priors.NOISE_FLOOR, self._prior, at)) for c, at in zip(found, logs, strict=True)]

    def top(self, z: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Values `[D]` with the largest bound near `z`, and the curvature `[E]` of the shapes there, axis by axis.

        Slope and curvature are those of a parabola in unconstrained space, the first one `width` to either side.
        """
        rows = [self.log_joint.slices[name].start for name in self.shape]
        for apart in (width, *[APART] * (ROUNDS - 1)):
            moves = apart * torch.eye(len(z))[rows]
            here, *around = self._at([z, *(z + moves), *(z - moves)])
            up, down = (torch.tensor([a[-1] for a in side]) for side in (around[: len(rows)], around[len(rows) :]))
            slope, curvature = (up - down) / (2 * apart), (2 * here[-1] - up - down) / apart**2
            step = torch.where(curvature > FLAT, slope / curvature, 3 * apart * slope.sign()).clamp(
                -3 * apart, 3 * apart
            )
            z = self._with(z, here[1])
            z[rows] += step
            self.path.append(here[-1] / len(self.process.targets))
            gained, far = float((slope * step - 0.5 * curvature * step.square()).sum()), float(step.abs().max()) > APART
            self.drift = gained if far else 0.0
            if not far or gained < ENOUGH * len(self.process.targets):
                break
        return z, curvature.clamp_min(FLAT)

    def _with(self, z: Tensor, logs: Tensor) -> Tensor:
        sites = self.log_joint.unpack(z)
        return self.log_joint.pack(sites | {"noise": logs[0].exp(), "variance": logs[1].exp()})

    def draws(self, z: Tensor, curvature: Tensor) -> _Draws:
        """Draw shapes around `z`, noise and variance around their best for each shape."""
        rows = [self.log_joint.slices[name].start for name in self.shape]
        shapes = Normal(z[rows], curvature.rsqrt())
        drawn = shapes.sample(torch.Size([DRAWS]))
        moved = z.repeat(DRAWS, 1)
        moved[:, rows] = drawn
        sites, seen, weights = [], [], []
        for row, at, (found, logs, precision, _) in zip(moved, drawn, self._at(list(moved)), strict=True):
            around = MultivariateNormal(logs, precision_matrix=precision)
            chosen = around.sample()
            full = self._with(row, chosen)
            sites.append(self.log_joint.unpack(full))
            seen.append(found)
            bound = found.bound(priors.NOISE_FLOOR + sites[-1]["noise"], sites[-1]["variance"])
            log_guide = shapes.log_prob(at).sum() + around.log_prob(chosen)
            weights.append(self.log_joint.terms(full)[0] + bound - log_guide)
        return _Draws(sites, seen, torch.stack(weights).detach())


@torch.no_grad()
def _predict(process: SparseProcess, draws: _Draws, images: Tensor) -> tuple[Tensor, Tensor]:
    """Predictive mean `[S, M, O]` and variance `[S, M]`, noise included, at each draw of the hyperparameters."""
    if len(images) == 0:
        count = len(draws.sites)
        return process.targets.new_zeros(count, 0, process.targets.shape[1]), process.targets.new_zeros(count, 0)
    noises = [priors.NOISE_FLOOR + at["noise"] for at in draws.sites]
    guides = [c.guide(n, at["variance"]) for c, n, at in zip(draws.seen, noises, draws.sites, strict=True)]
    means, variances = [], []
    for block in process.blocks(images):
        compared = process.kernel.compared(block)
        moments = []
        for found, guide, noise, at in zip(draws.seen, guides, noises, draws.sites, strict=True):
            a, left = process.project(compared, found.cholesky, at["variance"], *found.shape)
            mean, spread = replace(process, inducing=guide).moments(a, left)
            moments.append((mean, spread[:, 0] + noise))
        means.append(torch.stack([mean for mean, _ in moments]))
        variances.append(torch.stack([spread for _, spread in moments]))
    return torch.cat(means, 1), torch.cat(variances, 1)
