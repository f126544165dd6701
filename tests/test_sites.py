"""One model, three ways to run it: the pose enumerated, integrated by quadrature, or sampled."""

import math
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Normal, TorchDistribution, Uniform
from pyro.infer import MCMC, NUTS, SVI, Predictive, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, infer_discrete
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.stats import effective_sample_size
from scipy import stats
from torch import Tensor
from torch.distributions import constraints

from pyro_invariance import sites
from pyro_invariance.densities import FiniteWeights, Haar, MovingUniform, SoftUniform
from pyro_invariance.groups import SO2, Cyclic, Dihedral, Group
from pyro_invariance.representations import Polar
from pyro_invariance.sites import Marginalised
from pyro_invariance.typing import BadInput

ALPHA = 1e-4  # of each statistical check
Z = stats.norm.ppf(1 - ALPHA / 2)
POLAR = Polar(3, 16)
TURNS = SO2(POLAR)


def template() -> Tensor:
    """A lopsided picture on polar points `[1, 3, 16]`, smooth enough for a posterior of a few degrees."""
    angle = torch.arange(16) * (2 * math.pi / 16)
    rings = torch.stack([torch.exp(2 * torch.cos(angle - ring)) for ring in range(3)])
    return POLAR._drop_nyquist(rings[None] / 3)


class Posed(PyroModule):
    """x_n ~ Normal(g_n . template, sigma), g_n ~ density(extent): the pose is one line."""

    def __init__(
        self,
        density: Callable[..., TorchDistribution],
        extent: float | PyroParam | PyroSample | Tensor,
        group: Group = TURNS,
        sigma: float = 0.5,
    ) -> None:
        super().__init__()
        self.density, self.group, self.sigma = density, group, sigma
        self.extent = torch.as_tensor(extent) if isinstance(extent, float) else extent
        self.register_buffer("template", template())

    def forward(self, x: Tensor) -> Tensor:
        extent = self.extent
        with pyro.plate("images", len(x)):
            pose = pyro.sample("pose", self.density(extent))
            view = self.group.act(pose, self.template)
            pyro.sample("x", Normal(view, self.sigma).to_event(3), obs=x)
        return pose


def planted(poses: Tensor, sigma: float = 0.5, group: Group = TURNS) -> Tensor:
    return group.act(poses, template()) + sigma * torch.randn(len(poses), 1, 3, 16)


def learnable(start: float) -> PyroParam:
    return PyroParam(torch.tensor(start), constraints.interval(0.02, math.pi - 0.001))


def empty(*args: object) -> None:
    """Guide of a model without other latent sites."""


def log_likelihood(x: Tensor, poses: Tensor, group: Group = TURNS, sigma: float = 0.5) -> Tensor:
    """Log density `[N, Q]` of each image under each pose, by hand."""
    return Normal(group.act(poses, template()), sigma).log_prob(x[:, None]).sum((-1, -2, -3))


def direct(density: TorchDistribution, x: Tensor, count: int = 64) -> Tensor:
    """Log evidence `[N]` of each image, by hand."""
    points, log_weights = density.nodes(count)
    return (log_likelihood(x, points) + log_weights).logsumexp(1)


def log_evidence(model: Callable, *args: object) -> float:
    return -TraceEnum_ELBO(max_plate_nesting=1).loss(model, empty, *args)


DENSITIES = {
    "soft": (SoftUniform, 0.7),
    "moving": (MovingUniform, 0.7),
    "group": (lambda extent: Haar(), math.pi),
    "asymmetric": (lambda extent: SoftUniform(extent, extent / 3), 1.0),
}


def check_quadrature(density: Callable, extent: float) -> None:
    x = planted(torch.tensor([0.1, -0.6, 0.5]))
    evidence = log_evidence(Marginalised(Posed(density, extent)), x)
    assert evidence == pytest.approx(float(direct(density(torch.tensor(extent)), x).sum()), abs=1e-9)


@pytest.mark.parametrize(("density", "extent"), DENSITIES.values(), ids=DENSITIES)
def test_quadrature_is_a_sum_over_nodes(density: Callable, extent: float):
    check_quadrature(density, extent)


def test_mutant_that_forgets_the_log_weights_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sites, "Categorical", lambda logits: pyro.distributions.Categorical(logits=0 * logits))
    with pytest.raises(AssertionError):
        check_quadrature(*DENSITIES["soft"])


@pytest.mark.parametrize(("density", "extent"), DENSITIES.values(), ids=DENSITIES)
def test_quadrature_agrees_with_sampling(density: Callable, extent: float):
    """The mean likelihood over prior draws of the bare model is that of the quadrature (z-test per image)."""
    x = planted(torch.tensor([0.1, -0.6, 0.5]))
    model = Posed(density, extent)
    with pyro.plate("draws", 20_000, dim=-2):
        trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    exact = direct(density(torch.tensor(extent)), x, 128)
    ratio = (trace.nodes["x"]["log_prob"] - exact).exp()  # mean one
    assert ratio.shape == (20_000, 3)
    z = (ratio.mean(0) - 1) / (ratio.std(0) / len(ratio) ** 0.5)
    assert float(z.abs().max()) < Z


def test_importance_weighted_bound_agrees():
    """RenyiELBO on the bare model, the prior as guide: 20,000 particles reach the exact value of one image."""
    x, count = planted(torch.tensor([0.4])), 20_000

    def prior(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("pose", SoftUniform(torch.tensor(0.7)))

    elbo = RenyiELBO(alpha=0, num_particles=count, vectorize_particles=True, max_plate_nesting=1)
    iwae = -elbo.loss(Posed(SoftUniform, 0.7), prior, x)
    points, log_weights = SoftUniform(0.7).nodes(128)
    likelihood = (log_likelihood(x, points)[0] - direct(SoftUniform(0.7), x)).exp()
    variance = float((log_weights.exp() * likelihood.square()).sum()) - 1  # of one relative weight
    exact = log_evidence(Marginalised(Posed(SoftUniform, 0.7)), x)
    assert abs(iwae - exact) < Z * (variance / count) ** 0.5
    assert -Trace_ELBO(num_particles=100).loss(Posed(SoftUniform, 0.7), prior, x) < exact


def test_twice_the_nodes_change_nothing():
    x = planted(torch.linspace(-1, 1, 8))
    model = Posed(SoftUniform, 0.8)
    values = [log_evidence(Marginalised(model, nodes=nodes), x) / len(x) for nodes in (64, 128, 256)]
    assert abs(values[0] - values[1]) < 1e-3  # nats per image
    assert abs(values[1] - values[2]) < 1e-8


def test_error_of_moving_nodes_falls_fourfold():
    """The edge of a hard range is no smooth function: the midpoint rule converges as one over nodes squared."""
    x = planted(torch.linspace(-1, 1, 8))
    model = Posed(MovingUniform, 0.8)
    values = [log_evidence(Marginalised(model, nodes=nodes), x) for nodes in (128, 256, 512)]
    assert (values[0] - values[1]) / (values[1] - values[2]) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("group", [Cyclic(4, POLAR), Dihedral(2, POLAR)], ids=repr)
def test_finite_group_is_enumerated(group: Group):
    logits = torch.tensor([0.5, 0.0, -1.0, 1.0])
    x = planted(torch.tensor([0, 1, 3, 2, 1]), group=group)
    model = Posed(lambda extent: FiniteWeights(group, logits), 0.0, group)
    by_hand = log_likelihood(x, group.elements(), group) + logits.log_softmax(0)
    assert log_evidence(Marginalised(model), x) == pytest.approx(float(by_hand.logsumexp(1).sum()), abs=1e-9)
    elements, probabilities = Marginalised(model).posterior(x)
    assert torch.equal(elements, group.elements())
    assert torch.allclose(probabilities, by_hand.softmax(1))
    bare = poutine.trace(model).get_trace(x).nodes["pose"]["value"]
    assert bare.shape == (5,)


def test_weights_of_a_finite_group_are_learnable():
    group, logits = Cyclic(4, POLAR), torch.tensor([0.5, 0.0, -1.0, 1.0], requires_grad=True)
    x = planted(torch.tensor([0, 1, 3, 2, 1]), group=group)
    model = Marginalised(Posed(lambda extent: FiniteWeights(group, logits), 0.0, group))
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, empty, x)
    by_hand = (log_likelihood(x, group.elements(), group) + logits.log_softmax(0)).logsumexp(1).sum()
    (gradient,), (expected,) = (torch.autograd.grad(value, logits) for value in (loss, -by_hand))
    assert torch.allclose(gradient, expected)


def test_any_discrete_site_is_enumerated():
    x = planted(torch.tensor([0, 1, 1]), group=Dihedral(1, POLAR))
    model = Posed(lambda extent: Bernoulli(0.25), 0.0, Dihedral(1, POLAR))
    prior = torch.tensor([0.75, 0.25]).log()
    by_hand = log_likelihood(x, torch.arange(2), Dihedral(1, POLAR)) + prior
    assert log_evidence(Marginalised(model), x) == pytest.approx(float(by_hand.logsumexp(1).sum()), abs=1e-9)
    elements, probabilities = Marginalised(model).posterior(x)
    assert elements.tolist() == [0, 1]
    assert torch.allclose(probabilities, by_hand.softmax(1))


@pytest.mark.parametrize("density", [SoftUniform, MovingUniform])
def test_every_image_may_have_its_own_range(density: Callable):
    x, extents = planted(torch.tensor([0.1, -0.6, 0.5])), torch.tensor([0.3, 0.9, 1.5])
    marginalised = Marginalised(Posed(density, extents))
    expected = torch.cat([direct(density(e), x[n : n + 1]) for n, e in enumerate(extents)])
    assert log_evidence(marginalised, x) == pytest.approx(float(expected.sum()), abs=1e-9)
    nodes, probabilities = marginalised.posterior(x)
    assert nodes.shape == ((64,) if density is SoftUniform else (3, 64))
    assert probabilities.shape == (3, 64)


def test_two_sites_are_summed_out_by_wrapping_twice():
    x = planted(torch.tensor([0.3, -0.2]))

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            flipped = pyro.sample("flip", Bernoulli(0.5))
            turn = pyro.sample("turn", SoftUniform(torch.tensor(0.7)))
            group = Dihedral(1, POLAR)
            view = POLAR.rotate(group.act(flipped, template()), turn)
            pyro.sample("x", Normal(view, 0.5).to_event(3), obs=x)

    points, log_weights = SoftUniform(torch.tensor(0.7)).nodes(64)
    mirrored = Normal(POLAR.rotate(POLAR.mirror(template()), points), 0.5).log_prob(x[:, None]).sum((-1, -2, -3))
    both = torch.stack([log_likelihood(x, points), mirrored]) + log_weights - math.log(2)
    marginalised = Marginalised(Marginalised(model, "turn"), "flip")
    assert log_evidence(marginalised, x) == pytest.approx(float(both.logsumexp((0, 2)).sum()), abs=1e-9)
    assert torch.allclose(marginalised.posterior(x)[1], both.logsumexp(2).T.softmax(1))


@pytest.mark.parametrize("density", [SoftUniform, MovingUniform, lambda extent: SoftUniform(extent, extent / 3)])
def test_gradient_of_the_extent(density: Callable):
    """Autograd through the module of the ELBO equals finite differences, and is not zero."""
    x = planted(torch.linspace(-0.8, 0.8, 6))
    with pyro.settings.context(module_local_params=True):
        model = Posed(density, learnable(0.6))
        elbo = TraceEnum_ELBO(max_plate_nesting=1)(Marginalised(model), empty)
        (unconstrained,) = elbo.parameters()
        (gradient,) = torch.autograd.grad(elbo(x), unconstrained)
        step, values = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                unconstrained += sign * step
            values.append(float(elbo(x).detach()))
            with torch.no_grad():
                unconstrained -= sign * step
    assert abs(float(gradient)) > 0.1
    assert float(gradient) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("start", [0.1, 2.8])
def test_extent_is_learned_as_a_parameter(start: float):
    """Narrow and wide starts reach the maximum of the exact evidence."""
    x = planted(1.2 * (2 * torch.rand(60) - 1))
    with pyro.settings.context(module_local_params=True):
        model = Posed(SoftUniform, learnable(start))
        elbo = TraceEnum_ELBO(max_plate_nesting=1)(Marginalised(model), empty)
        optimiser = torch.optim.Adam(elbo.parameters(), lr=0.1)
        for _ in range(120):
            optimiser.zero_grad()
            elbo(x).backward()
            optimiser.step()
        learned = float(model.extent.detach())
    grid = torch.linspace(0.3, 3.1, 561)
    best = float(grid[torch.stack([direct(SoftUniform(e), x).sum() for e in grid]).argmax()])
    assert 0.9 < best < 1.5
    assert learned == pytest.approx(best, abs=0.01)


def test_extent_has_a_posterior_as_a_sample():
    """AutoNormal over the extent, the pose summed out, agrees with exact quadrature over the extent."""
    x = planted(1.2 * (2 * torch.rand(40) - 1))
    with pyro.settings.context(module_local_params=True):
        model = Posed(SoftUniform, PyroSample(Uniform(torch.tensor(0.05), torch.tensor(math.pi))))
        marginalised = Marginalised(model)
        start = init_to_value(values={"extent": torch.tensor(0.5)})
        guide = AutoNormal(poutine.block(model, hide=["pose"]), init_loc_fn=start)
        elbo = TraceEnum_ELBO(max_plate_nesting=1)(marginalised, guide)
        elbo(x)  # the guide makes its parameters when it is first run
        names = {name for name, _ in elbo.named_parameters()}
        assert names == {"guide.locs.extent_unconstrained", "guide.scales.extent_unconstrained"}
        optimiser = torch.optim.Adam(elbo.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.05 ** (1 / 200))
        for _ in range(200):
            optimiser.zero_grad()
            elbo(x).backward()
            optimiser.step()
            schedule.step()
        draws = torch.stack([guide()["extent"].detach() for _ in range(1000)])
        losses = torch.tensor([elbo(x).detach() for _ in range(100)])
        nodes, probabilities = marginalised.posterior(x, guide=guide)
    grid = torch.linspace(0.05, math.pi, 400)
    log_joint = torch.stack([direct(SoftUniform(e), x).sum() for e in grid])
    weights = log_joint.softmax(0)
    mean = float((weights * grid).sum())
    sd = float((weights * (grid - mean).square()).sum().sqrt())
    assert abs(float(draws.mean()) - mean) < 0.3 * sd
    assert 0.6 < float(draws.std()) / sd < 1.5
    exact = float(log_joint.logsumexp(0) - math.log(400))
    bound, error = -float(losses.mean()), float(losses.std()) / 10
    assert bound < exact + Z * error, "the ELBO is a lower bound"
    assert bound > exact - 0.3
    assert probabilities.shape == (40, 64)
    assert nodes.shape == (64,)


def test_extent_has_the_same_posterior_by_nuts():
    x = planted(1.2 * (2 * torch.rand(20) - 1))
    model = Posed(SoftUniform, PyroSample(Uniform(torch.tensor(0.05), torch.tensor(math.pi))))
    kernel = NUTS(Marginalised(model), max_plate_nesting=1)
    chain = MCMC(kernel, num_samples=150, warmup_steps=50, disable_progbar=True)
    chain.run(x)
    draws = chain.get_samples()["extent"]
    assert set(chain.get_samples()) == {"extent"}
    grid = torch.linspace(0.05, math.pi, 400)
    weights = torch.stack([direct(SoftUniform(e), x).sum() for e in grid]).softmax(0)
    mean = (weights * grid).sum()
    sd = (weights * (grid - mean).square()).sum().sqrt()
    size = effective_sample_size(draws[None], chain_dim=0, sample_dim=1)
    assert abs(float((draws.mean() - mean) / (sd / size.sqrt()))) < Z


def test_global_parameter_store_trains_too():
    x, model = planted(torch.linspace(-1, 1, 6)), Posed(SoftUniform, learnable(0.3))
    svi = SVI(Marginalised(model), empty, pyro.optim.Adam({"lr": 0.1}), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(x) for _ in range(20)]
    assert losses[-1] < losses[0] - 1
    assert set(pyro.get_param_store()) == {"extent"}


def test_names_are_those_of_the_bare_model():
    model = Posed(SoftUniform, PyroSample(Uniform(0.1, 2.0)))
    x = planted(torch.zeros(2))
    bare = poutine.trace(model).get_trace(x)
    wrapped = poutine.trace(Marginalised(model)).get_trace(x)
    assert set(wrapped.nodes) - set(bare.nodes) == {"pose_node"}
    assert set(bare.nodes) - set(wrapped.nodes) == set()


def test_particles_in_parallel_are_particles_in_series():
    x = planted(torch.tensor([0.1, -0.6, 0.5]))
    for density in (SoftUniform, MovingUniform):
        model = Posed(density, PyroSample(Uniform(torch.tensor(0.05), torch.tensor(math.pi))))
        guide = AutoDelta(poutine.block(model, hide=["pose"]))
        guide(x)
        losses = [
            TraceEnum_ELBO(max_plate_nesting=1, num_particles=3, vectorize_particles=parallel).loss(
                Marginalised(model), guide, x
            )
            for parallel in (False, True)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)


@pytest.mark.parametrize("density", [SoftUniform, MovingUniform])
def test_posterior_recovers_planted_poses(density: Callable):
    truth = torch.linspace(-1.5, 1.5, 30)
    x = planted(truth, sigma=0.2)
    nodes, probabilities = Marginalised(Posed(density, 2.0, sigma=0.2), nodes=256).posterior(x)
    assert nodes.shape == (256,)
    assert probabilities.shape == (30, 256)
    assert torch.allclose(probabilities.sum(1), torch.ones(30))
    mean = probabilities @ nodes
    sd = (probabilities * (nodes - mean[:, None]).square()).sum(1).sqrt()
    assert float(sd.max()) < 0.15
    statistic = float(((mean - truth) / sd).square().sum())  # calibrated: chi-square with 30 degrees of freedom
    assert ALPHA < stats.chi2.sf(statistic, 30) < 1 - ALPHA


def test_posterior_is_exact():
    x, extent = planted(torch.tensor([0.1, -0.6, 0.5])), torch.tensor(0.7)
    points, log_weights = SoftUniform(extent).nodes(64)
    nodes, probabilities = Marginalised(Posed(SoftUniform, 0.7)).posterior(x)
    assert torch.equal(nodes, points)
    assert torch.allclose(probabilities, (log_likelihood(x, points) + log_weights).softmax(1), rtol=1e-9, atol=1e-300)


def test_poses_are_drawn_from_the_posterior():
    x = planted(torch.tensor([0.9, -0.9]), sigma=0.2)
    marginalised = Marginalised(Posed(SoftUniform, 2.0, sigma=0.2), nodes=128)
    poses = infer_discrete(marginalised, first_available_dim=-2, temperature=1)(x)
    assert poses.shape == (2,)
    assert torch.allclose(poses, torch.tensor([0.9, -0.9]), atol=0.3)


def test_prior_draws_fall_on_nodes():
    x = torch.zeros(5, 1, 3, 16)
    draws = Predictive(Marginalised(Posed(SoftUniform, 0.7), nodes=16), num_samples=200)(x)["pose_node"]
    assert draws.shape[0] == 200
    weights = SoftUniform(0.7).nodes(16)[1].exp()
    counts = torch.bincount(draws.flatten(), minlength=16)
    keep = weights > 5e-3
    observed = torch.cat([counts[keep], counts[~keep].sum()[None]])
    expected = torch.cat([weights[keep], weights[~keep].sum()[None]]) * int(counts.sum())
    assert stats.chisquare(observed.numpy(), expected.numpy()).pvalue > ALPHA


def test_nodes_keep_the_size_that_the_plate_hides():
    """One range for all images costs `[Q, 1]` poses, not `[Q, N]`."""
    shapes = []

    class Watched(Posed):
        def forward(self, x: Tensor) -> Tensor:
            shapes.append(super().forward(x).shape)

    for density in (SoftUniform, MovingUniform, lambda extent: Haar()):
        log_evidence(Marginalised(Watched(density, 0.7)), torch.zeros(7, 1, 3, 16))
    assert shapes == [(64, 1)] * 3


def test_observed_pose_is_left_alone():
    x, known = planted(torch.tensor([0.1, -0.6])), torch.tensor([0.1, -0.6])
    conditioned = poutine.condition(Posed(SoftUniform, 0.7), data={"pose": known})
    with pytest.raises(BadInput, match="no latent site 'pose'; it has none"):
        Marginalised(conditioned)(x)


def test_bad_input_is_named():
    x = planted(torch.zeros(2))
    with pytest.raises(BadInput, match=r"no latent site 'turn'; it has \['pose'\]"):
        Marginalised(Posed(SoftUniform, 0.7), site="turn")(x)
    with pytest.raises(BadInput, match="site 'pose': got Normal, which has neither"):
        Marginalised(Posed(lambda extent: Normal(0.0, extent), 0.7))(x)
    with pytest.raises(BadInput, match="real line"):
        Marginalised(Posed(lambda extent: SoftUniform(extent, period=None), 0.7))(x)


def test_pose_given_from_outside_is_refused():
    x, marginalised = planted(torch.zeros(2)), Marginalised(Posed(SoftUniform, 0.7))

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("pose", SoftUniform(torch.tensor(0.7)))

    with pytest.raises(BadInput, match="the guide samples it too"):
        TraceEnum_ELBO(max_plate_nesting=1).loss(marginalised, guide, x)
    with pytest.raises(BadInput, match="condition the bare model"):
        poutine.condition(marginalised, data={"pose": torch.zeros(2)})(x)
