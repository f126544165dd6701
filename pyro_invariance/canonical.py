r"""Images of any decoder in an unknown pose: turned back first, then encoded, and the code refined.

An encoder that sees images as they are has to learn every pose of every code.  One that sees them turned back by the
pose in which they are most like the decoder's middle, :math:`\hat\theta = \arg\max_\theta \langle x, T_\theta m
\rangle`, does not; and where it is a little off, steps of Gauss and Newton on code and pose together are cheap.
"""

import math
from collections.abc import Callable

import torch
from pyro.distributions import Independent, MultivariateNormal, Normal, TorchDistribution, constraints
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import jacfwd, vmap
from torch.quasirandom import SobolEngine

from pyro_invariance.densities import Haar
from pyro_invariance.posed import PosedNormal, turned

NODES = 512  # of the pose: that the largest correlation is sought on, and that it is summed over
ROUNDS, STEPS = 10, 4  # of aligning images with their mean; of Gauss and Newton
HIDDEN, SMALL = 48, 0.1  # units of a network; how far from linear it begins
LEARNING, DRAWS = 4, 32  # draws of the code of an image, while an encoder learns and then
TURNS = 100.0  # of the torus that an image shifts its draws by: those that look alike have others
WIDER = 2.0  # covariance of the draws over that of the normal approximation, whose tails are too thin

Decoded = tuple[Tensor, Tensor]  # images `[S, N, R, A]` of codes that were drawn, and their log ratios `[S, N]`


def peak(x: Tensor, template: Tensor) -> Tensor:
    """Pose `[N]`, radians, in which a template `[R, A]` is most like each image `[N, R, A]`."""
    poses = Haar().nodes(NODES)[0].to(x)
    return poses[PosedNormal(template, 1.0, poses[:, None]).log_prob(x.flatten(1)).argmax(0)]


def aligned(x: Tensor) -> Tensor:
    """Images `[N, R, A]` turned to be alike, by generalised Procrustes analysis [gower1975generalized].

    They begin as they are turned to the first, and end in poses that are centred on those in which they came.
    """
    mean = x[0]
    for _ in range(ROUNDS):
        pose = peak(x, mean)
        mean = turned(x, -pose).mean(0)
    centre = torch.polar(torch.ones_like(pose), pose).mean().angle()
    return turned(x, centre - pose)


def code_posterior(
    view: Callable[[Tensor], Tensor], x: Tensor, begin: Tensor, precision: Tensor, variance: Tensor
) -> MultivariateNormal:
    r"""Normal approximation of the posterior of code and pose, by steps of Gauss and Newton.

    .. math:: u \mid x \approx N(\hat u, (\Lambda + J^T J / \sigma^2)^{-1}), \quad
        x \sim N(f(u), \sigma^2 I), \quad u \sim N(0, \Lambda^{-1}), \quad J = f'(\hat u)

    Parameters
    ----------
    view : callable
        `[d] -> [D]`, what an image is made of to the image.
    x, begin : Tensor `[N, D]`, Tensor `[N, d]`
        Images, and where the steps begin.
    precision : Tensor `[d]`
        Of the prior; 0 for what is uniform.
    variance : Tensor `[N]`
        Of the noise of each image.
    """

    def misfit(u: Tensor) -> Tensor:
        return (x - vmap(view)(u)).square().sum(-1) / variance + (precision * u.square()).sum(-1)

    u, curvature = begin, torch.zeros(0)
    for step in range(STEPS + 1):
        jacobian = vmap(jacfwd(view))(u)  # [N, D, d]
        curvature = precision.diag() + jacobian.mT @ jacobian / variance[:, None, None]
        if step == STEPS:
            break
        pull = (jacobian.mT @ (x - vmap(view)(u))[..., None])[..., 0] / variance[:, None] - precision * u
        ahead = u + torch.linalg.solve(curvature, pull)
        u = torch.where((misfit(ahead) < misfit(u))[:, None], ahead, u)
    return MultivariateNormal(u, precision_matrix=curvature)


class PosedDecoded(TorchDistribution):
    r"""Images of an autoencoder in an unknown pose: the pose summed over nodes, the code by importance.

    .. math:: \hat p(x) = \frac{1}{S} \sum_s \frac{p(z_s)}{q(z_s \mid x)}
        \sum_q w_q N(x; T_{\theta_q} m(z_s), \sigma^2 I), \quad z_s \sim q(z \mid x)

    An unbiased estimate of the density of an image, so that its logarithm is a lower bound on average over the codes
    [burda2016importance].

    Parameters
    ----------
    source : Autoencoder
        The decoder `m`, and the guide `q`.
    noise : Tensor
        Variance of each coordinate.
    density : TorchDistribution, optional
        Of the pose, with `nodes(count)`; without it nothing is turned.
    count : int
        Images, N.
    nodes : int
        Quadrature nodes of the pose, which have to be closer than poses are known: where the noise is too small for
        that, it comes out too large.
    """

    arg_constraints = {"noise": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self,
        source: "Autoencoder",
        noise: Tensor,
        density: TorchDistribution | None = None,
        *,
        count: int = 1,
        nodes: int = NODES,
    ) -> None:
        self.source, self.noise, self.density = source, noise, density
        one = torch.zeros(1).to(noise), torch.zeros(1).to(noise)
        found: tuple[Tensor, Tensor] = one if density is None else density.nodes(nodes)
        self.poses, self.log_weights = found
        super().__init__(torch.Size([count]), torch.Size([math.prod(source.shape)]), validate_args=False)

    def by_pose(self, value: Tensor) -> Tensor:
        """Log density `[Q, S, N]` of images `[N, R A]` together with each pose and code, up to the draws of codes."""
        poses, log_weights = (t[:, None, None] for t in (self.poses, self.log_weights))
        templates, log_ratios = self.source.look(value)
        given = PosedNormal(templates, self.noise.sqrt(), poses).log_prob(value)
        return given + log_weights + log_ratios - math.log(len(templates))

    def log_prob(self, value: Tensor) -> Tensor:
        """Estimated log density `[N]` of images `[N, R A]`."""
        return self.by_pose(value).flatten(0, 1).logsumexp(0)

    def pose(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean direction of the pose `[N]`, radians, and mean resultant length `[N]`: 1 where it is known."""
        weights = self.by_pose(value).logsumexp(1).softmax(0)  # [Q, N]
        phase = torch.polar(torch.ones_like(self.poses), self.poses)
        mean = phase @ weights.to(phase)
        return mean.angle(), mean.abs()

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw `[*sample_shape, N, R A]`."""
        shape = torch.Size((*sample_shape, *self.batch_shape))
        pose = torch.zeros(()) if self.density is None else self.density.sample(shape)
        return PosedNormal(self.source.prior(shape), self.noise.sqrt(), pose).sample()


class Autoencoder(PyroModule):
    r"""Decoder and canonicalising encoder: each a linear map and a network of one hidden layer.

    They begin at the mean and the principal directions of images, aligned first if they turn.  Codes are drawn by the
    encoder while it learns, and by a refined guide once it does not (`eval`).

    Parameters
    ----------
    x : Tensor `[N, R A]`
        Images, of an odd number of angles.
    shape : tuple of int
        Rings and angles.
    code : int
        Numbers of a code.
    turns : bool
        Whether images are turned back before they are encoded.
    seed : int
        Of the draws that the evidence takes.
    """

    def __init__(self, x: Tensor, shape: tuple[int, int], code: int, *, turns: bool, seed: int) -> None:
        super().__init__()
        self.shape, self.code, self.turns, size = shape, code, turns, x.shape[1]
        self.kept: tuple[Tensor, Decoded] | None = None
        self.register_buffer("centre", torch.zeros(()))  # pose of what the network takes to be upright
        self.register_buffer("seed", torch.tensor(seed))
        self.decoder, self.encoder = nn.Linear(code, size), nn.Linear(size, 2 * code)
        self.bend = nn.Sequential(nn.Linear(code, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, size, bias=False))
        self.look_again = nn.Sequential(nn.Linear(size, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * code, bias=False))
        upright = aligned(x.unflatten(-1, shape)).flatten(1) if turns else x
        mean = upright.mean(0)
        _, lengths, directions = torch.linalg.svd(upright - mean, full_matrices=False)
        scaled = lengths[:code, None] / math.sqrt(len(x)) * directions[:code]
        inverse = scaled / scaled.square().sum(1, keepdim=True)
        with torch.no_grad():
            self.decoder.weight.copy_(scaled.T)
            self.decoder.bias.copy_(mean)
            self.encoder.weight.copy_(torch.cat([inverse, 0 * inverse]))
            self.encoder.bias.copy_(torch.cat([-inverse @ mean, torch.full((code,), -2.0).to(x)]))
            for network in (self.bend, self.look_again):
                network[-1].weight.mul_(SMALL)  # type: ignore[operator]

    def decode(self, z: Tensor) -> Tensor:
        """Upright images `[*B, R, A]` of codes `[*B, d]`."""
        return (self.decoder(z) + self.bend(z)).unflatten(-1, self.shape)

    def encode(self, x: Tensor) -> tuple[Independent, Tensor]:
        """Canonicalising guide of the codes `[N, d]` of images `[N, R A]`; the poses `[N]` they were turned back by."""
        pose = torch.zeros(len(x)).to(x)
        if self.turns:
            with torch.no_grad():
                arrays = x.unflatten(-1, self.shape)
                pose = peak(arrays, self.decode(torch.zeros(self.code).to(x)))
                x = turned(arrays, -pose).flatten(1)
        mean, log_scale = (self.encoder(x) + self.look_again(x)).chunk(2, -1)
        return Normal(mean, log_scale.exp()).to_event(1), pose

    def refined(self, x: Tensor) -> MultivariateNormal:
        """Normal around the mode of the code `[N, d]`, which is sought from what the encoder guesses."""
        guess, pose = self.encode(x)

        def view(u: Tensor) -> Tensor:
            upright = self.decode(u[: self.code])
            return (turned(upright, u[self.code]) if self.turns else upright).flatten()

        begin = torch.cat([guess.mean, pose[:, None]], 1) if self.turns else guess.mean
        precision = torch.tensor([1.0] * self.code + [0.0] * self.turns).to(x)
        for _ in range(2):  # what a guess leaves of an image says its noise, then what the mode leaves
            variance = (x - vmap(view)(begin)).square().mean(-1)
            found = code_posterior(view, x, begin, precision, variance)
            begin = found.mean
        within = slice(self.code)
        return MultivariateNormal(found.mean[:, within], WIDER * found.covariance_matrix[:, within, within])

    def look(self, x: Tensor) -> Decoded:
        """Decoded draws of the codes of images `[N, R A]`, and their log ratios of prior to guide."""
        if self.training:
            guide: TorchDistribution = self.encode(x)[0]
            return self._decoded(guide, guide.rsample(torch.Size([LEARNING])))
        if self.kept is None or not torch.equal(self.kept[0], x):
            self.kept = x, self._refined_draws(x)
        return self.kept[1]

    @torch.no_grad()
    def _refined_draws(self, x: Tensor) -> Decoded:
        """At scrambled Sobol points, shifted by what each image says at random [cranley1976randomization].

        So the errors of two images are independent, and the product of their densities is unbiased as well.
        """
        guide, seed, eps = self.refined(x), int(self.seed), torch.finfo(x.dtype).eps
        points = SobolEngine(self.code, scramble=True, seed=seed).draw(DRAWS, dtype=x.dtype).to(x)
        generator = torch.Generator().manual_seed(seed)
        across = torch.randn(x.shape[1], self.code, generator=generator, dtype=x.dtype).to(x)
        shift = TURNS * nn.functional.normalize(x) @ across  # [N, d]
        normal = Normal(0.0, 1.0).icdf(((points[:, None] + shift) % 1).clamp(eps, 1 - eps))
        return self._decoded(guide, guide.mean + (guide.scale_tril @ normal[..., None])[..., 0])

    def _decoded(self, guide: TorchDistribution, codes: Tensor) -> Decoded:
        log_ratios = Normal(0.0, 1.0).log_prob(codes).sum(-1) - guide.log_prob(codes)
        return turned(self.decode(codes), self.centre), log_ratios

    @torch.no_grad()
    def prior(self, shape: torch.Size) -> Tensor:
        """Decoded codes `[*shape, R, A]` of the prior."""
        return turned(self.decode(torch.randn(*shape, self.code).to(self.centre)), self.centre)
