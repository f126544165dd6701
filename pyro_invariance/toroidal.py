r"""Arrays that come in pairs, one of them the other moved by an unknown element of a torus: phases integrated out.

A commutative group of rotations, in the right basis, turns planes of coordinates by phases.  Von Mises priors of the
phases are conjugate to Gaussian noise [cohen2014learning]; of a one-parameter subgroup, whose planes turn by integer
multiples of one phase, prior and posterior are generalised von Mises densities.
"""

import math
from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution, VonMises, constraints
from torch import Tensor
from torch.nn.utils.parametrizations import orthogonal

from pyro_invariance.numerics import one_by_one

BLOCK = 2**20  # numbers at once
NARROWEST = math.radians(0.5)  # range of a phase


class _LogPartition(torch.autograd.Function):
    """The gradient of a log partition function is its moments, so that nothing on the nodes is kept for it."""

    @staticmethod
    def forward(natural):  # type: ignore[no-untyped-def]
        harmonics = natural.shape[-1]
        if harmonics == 1:  # von Mises
            size = natural.abs()[..., 0]
            ratio = torch.special.i1e(size) / torch.special.i0e(size)
            return torch.special.i0e(size).log() + size, ratio[..., None] * natural.sgn()
        rows = natural.reshape(-1, harmonics)
        k = torch.arange(1, harmonics + 1, device=natural.device)
        curvature = float((natural.abs() * k.square()).sum(-1).max())  # at most
        count = 2 ** math.ceil(math.log2(max(8 * math.sqrt(curvature), 32 * harmonics)))  # then exact to rounding
        log_z, moments = [], []
        for block in rows.split(max(1, BLOCK // count)):
            spectrum = torch.nn.functional.pad(block.conj(), (1, count // 2 - harmonics))
            exponent = torch.fft.irfft(spectrum, count, norm="forward") / 2
            log_z.append(exponent.logsumexp(-1) - math.log(count))
            moments.append(torch.fft.rfft(exponent.softmax(-1))[:, 1 : harmonics + 1].conj())
        return torch.cat(log_z).reshape(natural.shape[:-1]), torch.cat(moments).reshape(natural.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        return one_by_one(_LogPartition, info, in_dims, inputs), (0, 0)

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        return grad[..., None] * ctx.saved_tensors[0]


def log_partition(natural: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log partition function `[...]` of generalised von Mises densities on the circle, and their moments `[..., K]`.

    .. math:: Z(\eta) = \frac{1}{2\pi} \int_0^{2\pi} \exp \sum_{k=1}^K \mathrm{Re}\, \bar\eta_k e^{i k s}\, ds,
        \quad m_k = E\, e^{i k s}

    Natural parameters are complex, `[..., K]`.  The trapezoid rule takes as many nodes as the sharpest density needs.
    """
    return _LogPartition.apply(natural)


@dataclass(frozen=True)
class Action:
    """How phases move an array: the planes that they turn.

    Attributes
    ----------
    planes : complex Tensor `[D, J]`
        Real and imaginary parts are orthonormal columns of W; what is orthogonal to all of them stays.
    weights : Tensor `[J]`
        Multiples of the phase that planes are turned by, 1 or more.
    coupled : bool
        Whether there is one phase for all planes; else each plane has its own.
    """

    planes: Tensor
    weights: Tensor
    coupled: bool = True

    @property
    def harmonics(self) -> int:
        """Largest weight, or 1."""
        return max(self.weights.tolist(), default=1)

    def scale(self, x: Tensor, factors: Tensor) -> Tensor:
        """Multiply the planes of `x` `[N, D]` by complex `factors` `[..., N, J]`."""
        return x + ((x.to(factors) @ self.planes * (factors - 1)) @ self.planes.mH).real

    def compare(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""Inner products of what stays `[N]`, and :math:`\sum_j \bar u_j v_j` by phase and weight `[N, T, K]`."""
        u, v = (a.to(self.planes) @ self.planes for a in (x, y))
        product = u.conj() * v
        stays = (x * y).sum(-1) - product.real.sum(-1)
        if not self.coupled:
            return stays, product[..., None]
        return stays, product.new_zeros(len(x), self.harmonics).index_add(1, self.weights - 1, product)[:, None]

    def principal(self, x: Tensor) -> "Action":
        """Return the same action of one phase with planes in which `x` `[N, D]` is uncorrelated, the strongest first.

        Planes of one weight are known up to a unitary mixture: the phase turns all that they span alike.
        """
        weights, counts = self.weights.unique(return_counts=True)
        parts = [self.planes[:, self.weights == weight] for weight in weights]
        seen = [x.to(part) @ part for part in parts]
        mixtures = [torch.linalg.eigh(u.mH @ u)[1].flip(1) for u in seen]
        planes = torch.cat([part @ mixed for part, mixed in zip(parts, mixtures, strict=True)], 1)
        return Action(planes, weights.repeat_interleave(counts))


def fourier(rings: int, angles: int, axis: str) -> Action:
    """Action of turns (along "angles") or of cyclic shifts (along "rings") on polar arrays."""
    length, across = (angles, rings) if axis == "angles" else (rings, angles)
    k, place = torch.arange(1, (length + 1) // 2), torch.arange(length, dtype=torch.float64)
    waves = math.sqrt(2 / length) * torch.exp(2j * math.pi / length * place[:, None] * k)
    to = "ak,rs->raks" if axis == "angles" else "rk,as->raks"
    planes = torch.einsum(to, waves, torch.eye(across).to(waves)).reshape(rings * angles, -1)
    return Action(planes, k.repeat_interleave(across))


def multiples(products: Tensor, highest: int) -> Tensor:
    r"""Weights `[J]`, some negative, of planes of a one-parameter subgroup, by :math:`\bar u_j v_j` `[N, J]` of pairs.

    At phases :math:`s_n` weight w of plane j explains :math:`\sum_n \mathrm{Re}\, \bar u_{nj} v_{nj} e^{-i w s_n}`.
    The phases are those of the plane with which all planes together explain most.
    """
    weights = torch.arange(-highest, highest + 1, device=products.device)
    weights = weights[weights != 0]

    def explained(phase: Tensor) -> Tensor:
        back = -phase[:, None] * weights
        return (products.mT @ torch.polar(torch.ones_like(back), back)).real

    each = [explained(phase) for phase in products.angle().T]
    return weights[max(each, key=lambda found: float(found.amax(1).sum())).argmax(1)]


class LearnedAction(torch.nn.Module):
    """An action whose W is a parameter, orthogonal whatever its value is; it begins at random.

    First each of the planes `[D, J]` has its own phase, so that no plane is in another's way; `couple` makes one phase
    of them when they are known.
    """

    basis: torch.nn.Linear

    def __init__(self, x: Tensor, planes: int) -> None:
        super().__init__()
        linear = torch.nn.Linear(x.shape[-1], x.shape[-1], bias=False).to(x)
        self.basis = orthogonal(linear, orthogonal_map="cayley")  # type: ignore[assignment]
        self.weights = torch.ones(planes, dtype=torch.long, device=x.device)
        self.coupled = False

    def forward(self) -> Action:
        """Return the action of W as it is."""
        real, imaginary, _ = self.basis.weight.tensor_split([len(self.weights), 2 * len(self.weights)], 1)
        return Action(torch.complex(real, imaginary), self.weights, self.coupled)

    @torch.no_grad()
    def couple(self, x: Tensor, y: Tensor, highest: int) -> None:
        """Read off pairs `[N, D]` by which multiples of one phase planes turn; those that turn back are reversed."""
        found = multiples(self().compare(x, y)[1][..., 0], highest)
        sign = torch.ones(x.shape[-1]).to(x)
        sign[len(found) : 2 * len(found)] = found.sign().to(x)
        self.basis.weight = self.basis.weight * sign
        self.weights, self.coupled = found.abs(), True


class TransformedPair(TorchDistribution):
    r"""`y` given `x`: moved by unknown phases, and noisy [cohen2014learning].

    With :math:`u = W^T x`, :math:`v = W^T y`, planes as complex numbers and :math:`u_0, v_0` what stays, the posterior
    of phase `t` has natural parameters :math:`\hat\eta_t`, the prior :math:`\eta`, and

    .. math:: \hat\eta_{tk} = \eta_k + \sigma^{-2} \sum_{j \in t: w_j = k} \bar u_j v_j,

    .. math:: \log p(y | x) = -\tfrac{D}{2} \log 2\pi\sigma^2 - \frac{|x|^2 + |y|^2 - 2 u_0^T v_0}{2 \sigma^2}
        + \sum_t \log Z(\hat\eta_t) - \log Z(\eta)

    Parameters
    ----------
    x : Tensor `[N, D]`
        What is moved.
    noise, concentration : Tensor
        Noise variance; concentration of the von Mises prior of each phase, about zero.
    action : Action
        What is moved by which phase.
    """

    arg_constraints = {"noise": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, x: Tensor, noise: Tensor, concentration: Tensor, action: Action) -> None:
        self.x, self.noise, self.concentration, self.action = x, noise, concentration, action
        super().__init__(x.shape[:1], x.shape[1:], validate_args=False)

    @property
    def prior(self) -> Tensor:
        """Natural parameters `[K]` of the prior of a phase."""
        return self.concentration * torch.eye(1, self.action.harmonics).to(self.action.planes)[0]

    def posterior(self, value: Tensor) -> Tensor:
        """Natural parameters `[N, T, K]` of the posterior of the phases."""
        return self.action.compare(self.x, value)[1] / self.noise + self.prior

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density `[N]` of `value` `[N, D]`, phases integrated out."""
        stays, moved = self.action.compare(self.x, value)
        log_z = log_partition(moved / self.noise + self.prior)[0] - log_partition(self.prior)[0]
        squares = self.x.square().sum(-1) + value.square().sum(-1)
        constant = self.x.shape[-1] / 2 * (2 * math.pi * self.noise).log()
        return log_z.sum(-1) + (stays - squares / 2) / self.noise - constant

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw `[*sample_shape, N, D]`."""
        phases = 1 if self.action.coupled else len(self.action.weights)
        prior = VonMises(self.x.new_zeros(len(self.x), phases), self.concentration.clamp_min(1e-4))
        angle = prior.sample(torch.Size(sample_shape)) * self.action.weights
        moved = self.action.scale(self.x, torch.polar(torch.ones_like(angle), angle))
        return moved + self.noise.sqrt() * torch.randn_like(moved)

    @property
    def mean(self) -> Tensor:
        """Mean `[N, D]`."""
        return self.action.scale(self.x, log_partition(self.prior)[1][self.action.weights - 1])

    @property
    def variance(self) -> Tensor:
        """Variance `[N, 1]`, averaged over coordinates."""
        return self.noise + (self.x.square() - self.mean.square()).mean(-1, keepdim=True)


def concentration(extent: Tensor) -> Tensor:
    """Concentration of the von Mises with the mean cosine of a uniform range of +-`extent` [banerjee2005clustering].

    Zero (a uniform density) at half a turn; an approximation that becomes exact for narrow ranges.
    """
    cosine = torch.sinc(extent.clamp_min(NARROWEST) / math.pi)
    return cosine * (2 - cosine.square()) / (1 - cosine.square())
