"""Problems whose evidence is known, and a guide that is fitted to them."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_invariance.evidence.base import Evidence, LogJoint
from pyro_invariance.evidence.laplace import laplace, maximise
from pyro_invariance.evidence.variational import train
from pyro_invariance.guides import SkewNormal

ALPHA = 1e-3  # of each statistical check
Z = stats.norm.ppf(1 - ALPHA)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def check_lower_bound(evidence: Evidence, exact: float, loose: float = 0.05) -> None:
    """Raise unless a lower bound is one (a z-test at `ALPHA`) and within `loose` nats (and 3 standard errors)."""
    assert evidence.bound == "lower"
    assert evidence.value <= exact + Z * evidence.std_error + 1e-9, f"{evidence} is above {exact}"
    assert evidence.value >= exact - loose - 3 * evidence.std_error, f"{evidence} is far below {exact}"


# A log joint density against one written by hand.


@dataclass(frozen=True)
class Linear:
    """Bayesian linear regression: posterior and evidence in closed form, `y ~ N(0, X X^T + s^2)`."""

    x: Tensor
    y: Tensor
    noise: float = 0.5

    def model(self) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(self.x.shape[1]), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(self.x @ w, self.noise).to_event(1), obs=self.y)

    @property
    def exact(self) -> float:
        n = len(self.y)
        covariance = self.x @ self.x.T + self.noise**2 * torch.eye(n)
        return float(MultivariateNormal(torch.zeros(n), covariance).log_prob(self.y))

    @property
    def posterior(self) -> tuple[Tensor, Tensor]:
        covariance = torch.linalg.inv(self.x.T @ self.x / self.noise**2 + torch.eye(self.x.shape[1]))
        return covariance @ self.x.T @ self.y / self.noise**2, covariance


def linear(seed: int = 0) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 3, generator=generator)
    return Linear(x, x @ torch.tensor([1.0, -2.0, 0.5]) + 0.5 * torch.randn(20, generator=generator))


@dataclass(frozen=True)
class Scale:
    """An unknown standard deviation: one site on the half line, evidence by quadrature over it."""

    y: Tensor

    def model(self) -> None:
        s = pyro.sample("s", dist.LogNormal(torch.tensor(0.0), 2.0))
        pyro.sample("y", dist.Normal(torch.zeros(len(self.y)), s).to_event(1), obs=self.y)

    @property
    def exact(self) -> float:
        s = torch.linspace(1e-3, 200.0, 400_001) * float(self.y.square().mean().sqrt())
        logs = dist.LogNormal(0.0, 2.0).log_prob(s) + Normal(0.0, s[:, None]).log_prob(self.y).sum(1)
        return float(logs.logsumexp(0) + (s[1] - s[0]).log())


def scale(size: float) -> Scale:
    return Scale(size * torch.linspace(-1.8, 1.9, 20))


def fitted(problem: Linear | Scale, steps: int = 60) -> tuple[SkewNormal, LogJoint]:
    """A trained guide that started half a standard deviation off, a third too wide."""
    log_joint = LogJoint(problem.model)
    mode, cholesky = laplace(log_joint, maximise(log_joint, torch.zeros(log_joint.size)).z)
    guide = SkewNormal(problem.model, mode + 0.5 * cholesky.diagonal(), 1.3 * cholesky)
    train(guide, log_joint, steps=steps, particles=16, seed=0, rate=0.1)
    return guide, log_joint


class FlippedJacobian(LogJoint):
    """A mutant: log determinants are subtracted where they should be added."""

    def evaluate(self, z: Tensor) -> tuple:
        prior, *rest = super().evaluate(z)
        values = self.unpack(z)
        jacobian = sum(
            t.log_abs_det_jacobian(t.inv(values[name]), values[name]).sum() for name, t in self.transforms.items()
        )
        return prior - 2 * jacobian, *rest
