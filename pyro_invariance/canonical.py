r"""Images of a neural decoder in an unknown pose: turned back first, and code and pose refined together.

A guide that sees images as they are has to learn every pose of every code.  One that first seeks the pose in which an
image is most like the decoder's middle, :math:`\hat\theta = \arg\max_\theta \langle x, T_\theta m \rangle`, does not;
from there steps of Gauss and Newton lead to the mode of code and pose, and their curvature is that of the guide.
"""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution, constraints
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import jacfwd, vmap
from torch.quasirandom import SobolEngine

from pyro_invariance.representations import Torus
from pyro_invariance.typing import BadInput, nearest

PERIODS = {"rotation": 2 * math.pi, "rows": 2.0, "columns": 2.0}  # axes of a pose: radians, grid units
TURNS, QUARTERS = 64, 4  # that the largest correlation is sought on; a mode is sought from the best of each quarter
ROUNDS, STEPS = 10, 4  # of aligning images with their mean; of Gauss and Newton
FAR = 10.0  # times the noise, with which the way to a mode has fewer others beside it
HIDDEN = 32  # units of the network
LEARNING, DRAWS = 2, 64  # draws for an image: while a decoder learns; then, from each guide
ANOTHER = 2.0  # times the noise that a guide takes there to be, or less than that by as much: a guide of its own
ROUNDING = 1e-6  # of that noise, that images are taken to leave at least
REPEATED = 8  # sets of draws that say how far the estimates of a density are off
APART = 10_007  # between the seeds of those sets, so that they are not the sets of other seeds
SHARED = 0.25  # of the draws are shared by all modes alike: the range of poses may allow a lesser one only
REFINED, AGAIN = 3, 51  # steps of learning after which modes are refined, and are sought anew
WIDER = 2.0  # covariance of the draws over that of the normal approximation, whose tails are too thin
KNOWN = 12  # a period over the largest standard deviation of a pose in the guide, so that it does not go around
ACROSS = 100.0  # periods of the torus that an image shifts its draws by: those that look alike have others

Modes = tuple[MultivariateNormal, Tensor]  # of images: normals `[N, K]` and log shares
Looked = tuple[Tensor, Tensor, Tensor]  # of draws: squared distances `[S, N]`, poses `[S, N, P]`, log ratios `[S, N]`


def peaks(x: Tensor, template: Tensor, axes: Sequence[str]) -> Tensor:
    """Poses `[N, K, P]` in which a template `[S, S]` is most like each image `[N, S, S]`, one of each quarter turn."""
    if not axes:
        return torch.zeros(len(x), 1, 0).to(x)
    side, turns = x.shape[-1], TURNS if "rotation" in axes else 1
    angle = torch.arange(turns).to(x) * (2 * math.pi / turns) - (math.pi if turns > 1 else 0)
    seen = Torus().move(template.expand(turns, side, side), angle)
    product = torch.fft.rfft2(x)[:, None] * torch.fft.rfft2(seen).conj()
    likeness = torch.fft.irfft2(product, s=(side, side))  # [N, turns, S, S]: of template shifted by rows and columns
    for dim, name in ((-2, "rows"), (-1, "columns")):
        if name not in axes:
            likeness = likeness.narrow(dim, 0, 1)
    best, place = likeness.flatten(2).max(-1)  # [N, turns]
    quarter = best.unflatten(1, (min(QUARTERS, turns), -1)).argmax(-1)
    turn = quarter + torch.arange(quarter.shape[1]).to(quarter) * (turns // quarter.shape[1])  # [N, K]
    place, across = place.gather(1, turn), likeness.shape[-1]
    pixels = {"rows": place // across, "columns": place % across}
    shifts = {name: ((p + side // 2) % side - side // 2) * (2 / side) for name, p in pixels.items()}
    return torch.stack([(angle[turn] if name == "rotation" else shifts[name]).to(x) for name in axes], -1)


def aligned(x: Tensor, axes: Sequence[str]) -> Tensor:
    """Images `[N, S, S]` turned and shifted to be alike, by generalised Procrustes analysis [gower1975generalized]."""
    mean = back = x[0]
    for _ in range(ROUNDS if axes else 0):
        poses = peaks(x, mean, axes)
        torus = Torus()
        several = x[:, None].expand(*poses.shape[:2], *x.shape[1:])
        pose = dict(zip(axes, (-poses).unbind(-1), strict=True))
        shifted = torus.move(several, None, pose.get("rows"), pose.get("columns"))
        turned = torus.move(shifted, pose["rotation"]) if "rotation" in axes else shifted
        best = (turned - mean).square().sum((-2, -1)).argmin(1)
        back = turned[torch.arange(len(x)).to(best), best]
        mean = back.mean(0)
    return back if axes else x


class Decoder(PyroModule):
    r"""Images of codes in poses: a linear map and a network of one hidden layer, then a turn and a shift.

    .. math:: x = T_\theta (m + W z + V \tanh(A z + b)) + \sigma \epsilon, \quad z \sim N(0, I_d)

    It begins at the mean and the principal directions of the images, aligned first.  While it learns, each step refines
    what the guide knew of each image in the step before; once it does not (`eval`), draws of the guide are kept.

    Parameters
    ----------
    x : Tensor `[N, S, S]`
        Images on a `Torus`.
    code : int
        Numbers of a code, d.
    axes : sequence of str
        Of the pose, of `rotation`, `rows` and `columns`.
    share : tuple of float
        Part of the square that images take, in rows and columns: shifts are in units of the image, [-1, 1].
    seed : int
        Of the draws that the evidence takes.
    """

    def __init__(
        self, x: Tensor, code: int, axes: Sequence[str] = (), *, share: tuple[float, float] = (1.0, 1.0), seed: int = 0
    ) -> None:
        super().__init__()
        self.code, self.axes, self.side, size = code, tuple(axes), x.shape[-1], x[0].numel()
        self.step, self.known, self.seen = 0, torch.empty(0), torch.empty(0)
        self.unit = dict(zip(PERIODS, (1.0, *share), strict=True))
        self.guide: MultivariateNormal | None = None
        self.kept: tuple[Tensor, Modes, Looked] | None = None
        self.left: Tensor | None = None  # noise that the images of the evidence leave
        self.register_buffer("centre", torch.zeros(len(axes)).to(x))  # pose of what the network takes to be upright
        self.register_buffer("variance", torch.ones(()).to(x))  # of the noise, that the guide takes it to have
        self.register_buffer("seed", torch.tensor(seed))
        self.linear = nn.Linear(code, size)
        self.bend = nn.Sequential(nn.Linear(code, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, size, bias=False))
        upright = aligned(x, self.axes).flatten(1)
        _, lengths, directions = torch.linalg.svd(upright - upright.mean(0), full_matrices=False)
        scaled = lengths[:code, None] / math.sqrt(len(x)) * directions[:code]
        with torch.no_grad():
            self.linear.bias.copy_(upright.mean(0))
            self.linear.weight.copy_(nn.functional.pad(scaled, (0, 0, 0, code - len(scaled))).T)
        self.to(x)

    @property
    def periods(self) -> Tensor:
        """Of the axes of the pose, `[P]`."""
        return torch.tensor([PERIODS[name] / self.unit[name] for name in self.axes]).to(self.linear.bias)

    def decode(self, z: Tensor) -> Tensor:
        """Upright images `[*B, S, S]` of codes `[*B, d]`."""
        return (self.linear(z) + self.bend(z)).unflatten(-1, (self.side, self.side))

    def view(self, u: Tensor) -> Tensor:
        """Images `[*B, S S]` of codes and poses `[*B, d + P]`."""
        return self._moved(self.decode(u[..., : self.code]), u[..., self.code :])

    def _moved(self, upright: Tensor, pose: Tensor) -> Tensor:
        """Images `[*B, S S]` of upright ones `[*B, S, S]` in poses `[*B, P]`."""
        named = {name: pose[..., i] * self.unit[name] for i, name in enumerate(self.axes)}
        return Torus().move(upright, **named).flatten(-2)

    def _jacobian(self, u: Tensor) -> Tensor:
        """Of `view` `[N, S S, d + P]`; what is moved by a code moves as an image does, at less than half the cost."""
        z, pose = u[:, : self.code], u[:, self.code :]
        by_code = self._moved(vmap(jacfwd(self.decode))(z).movedim(-1, 1), pose[:, None]).mT
        if not self.axes:
            return by_code
        return torch.cat([by_code, vmap(jacfwd(self._moved, 1))(self.decode(z), pose)], -1)

    @torch.no_grad()
    def rescale(self, unit: Tensor) -> None:
        """Multiply its images by a number."""
        for parameter in (self.linear.weight, self.linear.bias, *self.bend[-1].parameters()):
            parameter.mul_(unit)
        self.variance.mul_(unit.square())

    def train(self, mode: bool = True) -> "Decoder":
        """As of any module; draws are kept until then."""
        self.kept = self.left = None
        return super().train(mode)

    def begin(self, x: Tensor) -> Tensor:
        """Where a mode is sought from, `[N, K, d + P]`: the pose of largest correlation, no code."""
        poses = peaks(x.unflatten(-1, (self.side, self.side)), self.decode(torch.zeros(self.code).to(x)), self.axes)
        unit = torch.tensor([self.unit[name] for name in self.axes]).to(x)
        return torch.cat([torch.zeros(*poses.shape[:2], self.code).to(x), poses / unit], -1)

    def refine(self, x: Tensor, u: Tensor, variance: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        r"""Steps of Gauss and Newton towards the mode of codes and poses; curvature before the last, and twice log p.

        .. math:: (\Lambda + J^T J / \sigma^2)\, \Delta u = J^T (x - f(u)) / \sigma^2 - \Lambda u, \quad J = f'(u)

        A step that does not come nearer is not taken.  Images `[N, S S]`, codes and poses `[N, d + P]`.
        """
        precision = torch.cat([torch.ones(self.code).to(x), torch.zeros(len(self.axes)).to(x)])
        least = torch.cat([torch.zeros(self.code).to(x), (KNOWN / self.periods).square()])

        def seen(u: Tensor) -> tuple[Tensor, Tensor]:
            left = x - self.view(u)
            return left, left.square().sum(-1) / variance + (precision * u.square()).sum(-1)

        (left, now), curvature = seen(u), torch.empty(0)
        for _ in range(steps):
            jacobian = self._jacobian(u)
            curvature = jacobian.mT @ jacobian / variance + torch.maximum(precision, least).diag()
            pull = (jacobian.mT @ left[..., None])[..., 0] / variance - precision * u
            ahead = u + torch.linalg.solve(curvature, pull)
            left_ahead, after = seen(ahead)
            nearer = (after < now)[:, None]
            u, left = torch.where(nearer, ahead, u), torch.where(nearer, left_ahead, left)
            now = torch.minimum(after, now)
        return u, curvature, -now

    @torch.no_grad()
    def modes(self, x: Tensor, variance: Tensor) -> Modes:
        """Normal approximations `[N, K]` of the posterior around modes of images `[N, S S]`, and log shares of them."""
        begin = self.begin(x)
        shape, each, u = begin.shape[:2], x.repeat_interleave(begin.shape[1], 0), begin.flatten(0, 1)
        u, _, _ = self.refine(each, u, FAR * variance, STEPS)
        u, curvature, twice = self.refine(each, u, variance, STEPS)
        found = MultivariateNormal(u, precision_matrix=curvature)
        shares = 0.5 * twice + found.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        wide = math.sqrt(WIDER) * found.scale_tril.unflatten(0, shape)
        return MultivariateNormal(u.unflatten(0, shape), scale_tril=wide), shares.view(shape).log_softmax(1)

    def look(self, x: Tensor, variance: Tensor, other: int = 0) -> Looked:
        """Draws of the guide for images `[N, S S]`, and their log ratios of the prior of the code to the guide.

        `other` says which set of draws; each is independent of the others.
        """
        if self.training:
            self.variance = variance.detach()
            return self._learning(x)
        if self.kept is None or not torch.equal(self.kept[0], x):
            found = self._guides(x)
            self.kept = x, found, self._draws(x, found)
        _, found, first = self.kept
        return self._draws(x, found, other) if other else first

    @torch.no_grad()
    def _guides(self, x: Tensor) -> Modes:
        """Modes at the noise of the images that were learned from and, if others leave another one, at that too.

        Those others are the first that are looked at, so that what is said of one image does not hang on which come
        with it.  The same draws serve all values of the noise: one guide alone is too wide or too narrow for far ones.
        """
        learned = self.modes(x, self.variance)
        if self.left is None:
            left = (x - self.view(_best(learned))).square().sum() / (x.numel() - learned[0].loc[:, 0].numel())
            self.left = left.clamp_min(ROUNDING * self.variance)
        if max(self.left / self.variance, self.variance / self.left) < ANOTHER:
            return learned
        (one, its), (other, others) = learned, self.modes(x, self.left)
        loc, scale_tril = torch.cat([one.loc, other.loc], 1), torch.cat([one.scale_tril, other.scale_tril], 1)
        return MultivariateNormal(loc, scale_tril=scale_tril), torch.cat([its, others], 1) - math.log(2)

    def _learning(self, x: Tensor) -> Looked:
        with torch.no_grad():
            if self.step % AGAIN == 0 or x is not self.seen:
                self.known, self.guide, self.seen = self.centred(x), None, x
            if self.step % REFINED == 0 or self.guide is None:
                self.known, curvature, _ = self.refine(x, self.known, self.variance, 1)
                self.guide = MultivariateNormal(self.known, precision_matrix=curvature)
            self.step += 1
            u = self.guide.sample(torch.Size([LEARNING]))
            log_guide = self.guide.log_prob(u)
        return self._looked(x, u, log_guide)

    @torch.no_grad()
    def _draws(self, x: Tensor, found: Modes, other: int = 0) -> Looked:
        """From each mode as many as its share, at scrambled Sobol points, shifted by what each image says at random.

        So the errors of images that differ all but cancel [cranley1976randomization, owen2000safe].
        """
        guide, shares = found
        seed, eps, size = int(self.seed) + APART * other, torch.finfo(x.dtype).eps, self.code + len(self.axes)
        several = shares.shape[1]
        count = DRAWS * several // (QUARTERS if "rotation" in self.axes else 1)
        ladder = ((torch.arange(count).to(x) + 0.5) / count).expand(len(x), -1).contiguous()
        upto = ((1 - SHARED) * shares.exp() + SHARED / several).cumsum(1)
        chosen = torch.searchsorted(upto, ladder).clamp_max(several - 1)  # [N, S]
        counts = nn.functional.one_hot(chosen, several).sum(1)
        points = SobolEngine(size, scramble=True, seed=seed).draw(count, dtype=x.dtype).to(x)
        generator = torch.Generator().manual_seed(seed)
        across = torch.randn(x.shape[1], size, generator=generator, dtype=x.dtype).to(x)
        shift = ACROSS * nn.functional.normalize(x) @ across  # [N, d + P]
        normal = Normal(0.0, 1.0).icdf(((points + shift[:, None]) % 1).clamp(eps, 1 - eps))  # [N, S, d + P]
        image = torch.arange(len(x)).to(chosen)[:, None]
        u = guide.loc[image, chosen] + (guide.scale_tril[image, chosen] @ normal[..., None])[..., 0]
        apart = u[:, :, None] - guide.loc[:, None]  # [N, S, K, d + P]; around the circle the short way
        around = torch.cat([torch.zeros(self.code).to(x), self.periods])
        apart = apart - around * torch.where(around > 0, apart / around, 0.0).round()
        log_guide = MultivariateNormal(torch.zeros(size).to(x), scale_tril=guide.scale_tril[:, None]).log_prob(apart)
        log_guide = (log_guide + (counts / count).log()[:, None]).logsumexp(-1)
        return self._looked(x, u.movedim(1, 0), log_guide.T)

    def _looked(self, x: Tensor, u: Tensor, log_guide: Tensor) -> Looked:
        log_prior = Normal(0.0, 1.0).log_prob(u[..., : self.code]).sum(-1)
        return (x - self.view(u)).square().sum(-1), u[..., self.code :] - self.centre, log_prior - log_guide

    @torch.no_grad()
    def centred(self, x: Tensor) -> Tensor:
        """Codes and poses `[N, d + P]` of images `[N, S S]`; their mean pose is taken for upright, by convention."""
        found = _best(self.modes(x, self.variance))
        angle = found[:, self.code :] * (2 * math.pi / self.periods)
        self.centre = torch.polar(torch.ones_like(angle), angle).mean(0).angle() * (self.periods / (2 * math.pi))
        return found


def _best(modes: Modes) -> Tensor:
    """The mode of the largest share, `[N, d + P]`."""
    guide, shares = modes
    best = shares.argmax(1)
    return guide.loc[torch.arange(len(best)).to(best), best]


class PosedDecoded(TorchDistribution):
    r"""Images of a decoder in an unknown pose: code and pose by importance.

    .. math:: \hat p(x) = \frac{1}{S} \sum_s \frac{p(z_s)\, p(\theta_s)}{q(z_s, \theta_s \mid x)}
        N(x; T_{\theta_s} m(z_s), \sigma^2 I), \quad z_s, \theta_s \sim q(z, \theta \mid x)

    An unbiased estimate of the density of an image, so that its logarithm is a lower bound on average over the draws
    [burda2016importance].

    Parameters
    ----------
    decoder : Decoder
        Images :math:`m(z)`, and the guide `q`.
    noise : Tensor
        Variance of each coordinate.
    ranges : sequence of TorchDistribution
        Prior of each axis of the pose, on its period, about the pose that the decoder takes for upright.
    count : int
        Images, N.
    """

    arg_constraints = {"noise": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self, decoder: Decoder, noise: Tensor, ranges: Sequence[TorchDistribution] = (), *, count: int = 1
    ) -> None:
        self.decoder, self.noise, self.ranges = decoder, noise, tuple(ranges)
        super().__init__(torch.Size([count]), torch.Size([decoder.side**2]), validate_args=False)

    def log_weights(self, value: Tensor, other: int = 0) -> tuple[Tensor, Tensor]:
        """Log importance weights `[S, N]` of a set of draws for images `[N, S S]`, and the poses `[S, N, P]` of it."""
        squares, poses, log_ratios = self.decoder.look(value, self.noise, other)
        size = value.shape[-1]
        log_weights = log_ratios - 0.5 * (squares / self.noise + size * (2 * math.pi * self.noise).log())
        for axis, period, prior in zip(poses.unbind(-1), self.decoder.periods, self.ranges, strict=True):
            log_weights = log_weights + prior.log_prob(axis - period * (axis / period).round())
        return log_weights, poses

    def log_prob(self, value: Tensor) -> Tensor:
        """Estimated log density `[N]` of images `[N, S S]`."""
        return self._estimate(value)

    def log_probs(self, value: Tensor) -> Tensor:
        """Independent estimates `[R, N]` of the log density of images `[N, S S]`; the first is `log_prob`."""
        return torch.stack([self._estimate(value, other) for other in range(REPEATED)])

    def _estimate(self, value: Tensor, other: int = 0) -> Tensor:
        log_weights, _ = self.log_weights(value, other)
        return log_weights.logsumexp(0) - math.log(len(log_weights))

    def pose(self, value: Tensor, axis: str = "rotation") -> tuple[Tensor, Tensor]:
        """Posterior mean `[N]` of an axis of the pose, around its period, and mean resultant length `[N]`."""
        if axis not in self.decoder.axes:
            raise BadInput(f"axis: got {axis!r}; {nearest(axis, self.decoder.axes)}")
        log_weights, poses = self.log_weights(value)
        index = self.decoder.axes.index(axis)
        unit = 2 * math.pi / self.decoder.periods[index]
        angle = poses[..., index] * unit
        mean = (torch.polar(torch.ones_like(angle), angle) * log_weights.softmax(0)).sum(0)
        return mean.angle() / unit, mean.abs()

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw `[*sample_shape, N, S S]`."""
        shape, decoder = torch.Size((*sample_shape, *self.batch_shape)), self.decoder
        pose = [prior.sample(shape) + centre for prior, centre in zip(self.ranges, decoder.centre, strict=True)]
        u = torch.cat([torch.randn(*shape, decoder.code).to(decoder.centre), *[p[..., None] for p in pose]], -1)
        view = decoder.view(u)
        return view + self.noise.sqrt() * torch.randn_like(view)
