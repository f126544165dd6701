"""Any Pyro model and guide as InferenceData: dimensions written by hand, densities known in closed form."""

import math
from collections.abc import Callable

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, init_to_median
from pyro.nn import PyroModule, PyroParam, PyroSample
from scipy import stats
from torch import Tensor

from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.inference_data import _Reader, to_arviz
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.typing import BadInput

DRAWS = 12
Y = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)
PAIRS = torch.arange(8, dtype=torch.float64).reshape(4, 2) / 4


def no_plate(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 2.0))
    pyro.sample("y", dist.Normal(mean.expand(len(y)), 1.0).to_event(1), obs=y)


def one_plate(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 2.0))
    with pyro.plate("items", len(y)):
        local = pyro.sample("local", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(local, 1.0), obs=y)


def nested_plates(y: Tensor) -> None:
    groups, items = pyro.plate("groups", 2, dim=-1), pyro.plate("items", 4, dim=-2)
    with groups:
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 2.0))
    with items:
        shift = pyro.sample("shift", dist.Normal(torch.tensor(0.0), 2.0))
    with groups, items:
        total = pyro.deterministic("total", mean + shift)
        pyro.sample("y", dist.Normal(total, 1.0), obs=y)


def subsampled(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 2.0))
    with pyro.plate("items", len(y), subsample_size=3) as chosen:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[chosen])


def enumerated(y: Tensor) -> None:
    share = pyro.sample("share", dist.Beta(torch.tensor(2.0), 2.0))
    with pyro.plate("kinds", 2):
        level = pyro.sample("level", dist.Normal(torch.tensor(0.0), 2.0))
    with pyro.plate("items", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(share), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(level[..., kind.long()], 1.0), obs=y)


def event_dimensions(y: Tensor) -> None:
    centre = pyro.sample("centre", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    matrix = pyro.sample("matrix", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    with pyro.plate("items", len(y)):
        pyro.sample("y", dist.Normal(centre + matrix.sum(), 1.0).to_event(1), obs=y)


def size_one_plates(y: Tensor) -> None:
    with pyro.plate("one", 1, dim=-2):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 2.0))
        with pyro.plate("items", len(y), dim=-1):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


class Regression(PyroModule):
    """Weights with a prior, a learned noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        self.noise = PyroParam(torch.tensor(0.7, dtype=torch.float64), dist.constraints.positive)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        mean = x @ self.weight
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


D = ("chain", "draw")
CASES: dict[str, tuple[Callable, tuple, dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]] = {
    # model, arguments, dimensions of the latent sites, of the observed ones
    "none": (no_plate, (Y,), {"mean": ()}, {"y": ("y_dim_0",)}),
    "one": (one_plate, (Y,), {"mean": (), "local": ("items",)}, {"y": ("items",)}),
    "nested": (
        nested_plates,
        (PAIRS,),
        {"mean": ("groups",), "shift": ("items",), "total": ("items", "groups")},
        {"y": ("items", "groups")},
    ),
    "subsampled": (subsampled, (Y,), {"mean": ()}, {"y": ("items",)}),
    "enumerated": (
        enumerated,
        (Y,),
        {"share": (), "level": ("kinds",), "kind": ("items",)},
        {"y": ("items",)},
    ),
    "event dimensions": (
        event_dimensions,
        (PAIRS,),
        {"centre": ("centre_dim_0",), "matrix": ("matrix_dim_0", "matrix_dim_1")},
        {"y": ("items", "y_dim_0")},
    ),
    "size one": (size_one_plates, (Y,), {"mean": ("one",)}, {"y": ("one", "items")}),
    "PyroModule": (Regression(), (PAIRS, PAIRS[:, 0]), {"weight": ("weight_dim_0",)}, {"y": ("rows",)}),
}
POINTWISE = {"none": (), "event dimensions": ("items",)}  # of log_likelihood, where it has not the observed dimensions


def guided(model: Callable, kind: type = AutoNormal, **options: float) -> Callable:
    hidden = ["kind"] if model is enumerated else []

    def plates(*args: Tensor) -> list:
        return [pyro.plate("items", len(Y), subsample_size=3)] if model is subsampled else []

    guide = kind(poutine.block(model, hide=hidden), create_plates=plates, **options)
    guide(*next(args for m, args, *_ in CASES.values() if m is model))
    return guide


def check(case: str, data: az.InferenceData) -> None:
    """Raise unless every variable of every group has the dimensions written by hand."""
    _, _, latent, observed = CASES[case]

    def dims(group: str) -> dict[str, tuple[str, ...]]:
        return {str(name): tuple(map(str, v.dims)) for name, v in data[group].data_vars.items()}

    drawn = {name: (*D, *names) for name, names in latent.items()}
    assert dims("posterior") == dims("prior") == drawn
    assert dims("observed_data") == observed
    predicted = {name: (*D, *names) for name, names in observed.items()}
    assert dims("posterior_predictive") == dims("prior_predictive") == predicted
    assert dims("log_likelihood") == {n: (*D, *POINTWISE.get(case, names)) for n, names in observed.items()}
    plain = {name: tuple(d for d in names if "_dim_" not in d) for name, names in drawn.items() if name != "total"}
    assert dims("log_prior") == plain
    assert dims("sample_stats") == dict.fromkeys(("lp", "log_q", "log_weight"), D)
    for group in data.groups():
        assert all(np.isfinite(v.values).all() for v in data[group].data_vars.values())


@pytest.fixture(scope="session")
def made(float64: None) -> dict[str, az.InferenceData]:
    pyro.set_rng_seed(1)
    return {
        name: to_arviz(model, guided(model), *args, draws=DRAWS, seed=2) for name, (model, args, *_) in CASES.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_plates_become_named_dimensions(case, made):
    check(case, made[case])
    assert made[case].posterior.sizes["draw"] == DRAWS
    assert made[case].posterior.attrs["seed"] == 2


@pytest.mark.parametrize("case", CASES)
def test_mutant_dimensions_are_noticed(case, monkeypatch):
    read = _Reader.read

    def renamed(self: _Reader, name: str, *site: object) -> tuple:
        dims, value = read(self, name, *site)
        return [f"{d}_mutant" for d in dims], value

    monkeypatch.setattr(_Reader, "read", renamed)
    model, args, *_ = CASES[case]
    data = to_arviz(model, guided(model), *args, draws=2)
    with pytest.raises(AssertionError):
        check(case, data)


@pytest.mark.parametrize("case", CASES)
def test_densities_add_up(case, made):
    data = made[case]
    scale = 2.0 if case == "subsampled" else 1.0  # a minibatch stands for all
    marginal = [n for n in data.log_prior.data_vars if n != "kind"]  # the kinds are summed out

    def total(group: str, names: list) -> np.ndarray:
        return sum(data[group][n].sum([d for d in data[group][n].dims if d not in D]).values for n in names)

    expected = total("log_prior", marginal) + scale * total("log_likelihood", list(data.log_likelihood.data_vars))
    np.testing.assert_allclose(data.sample_stats.lp.values, expected)
    stats_ = data.sample_stats
    np.testing.assert_allclose(stats_.log_weight.values, stats_.lp.values - stats_.log_q.values)


def test_pointwise_density_of_a_plate(made):
    posterior = made["one"].posterior
    expected = stats.norm.logpdf(Y.numpy(), posterior["local"].values, 1.0)
    np.testing.assert_allclose(made["one"].log_likelihood["y"].values, expected)
    prior = stats.norm.logpdf(posterior["mean"].values, 0.0, 2.0)
    np.testing.assert_allclose(made["one"].log_prior["mean"].values, prior)
    assert np.array_equal(made["one"].observed_data["y"].values, Y)


def test_minibatch_is_one_and_has_its_indices(made):
    data = made["subsampled"]
    chosen = data.observed_data["items"].values
    assert len(set(chosen)) == 3
    assert np.array_equal(data.observed_data["y"].values, Y.numpy()[chosen])
    assert all(np.array_equal(data[g]["items"].values, chosen) for g in ("log_likelihood", "posterior_predictive"))
    expected = stats.norm.logpdf(Y.numpy()[chosen], data.posterior["mean"].values[..., None], 1.0)
    np.testing.assert_allclose(data.log_likelihood["y"].values, expected)


def test_enumerated_sites_are_summed_out_and_drawn(float64):
    guide = guided(enumerated, AutoDelta, init_loc_fn=init_to_median)
    count = 400
    data = to_arviz(enumerated, guide, Y, draws=count)
    share, (low, high) = (float(data.posterior["share"][0, 0]), data.posterior["level"].values[0, 0])
    parts = np.stack([np.log(1 - share) + stats.norm.logpdf(Y, low), np.log(share) + stats.norm.logpdf(Y, high)])
    np.testing.assert_allclose(data.log_likelihood["y"].values[0, 0], np.logaddexp(*parts))
    responsibility = np.exp(parts[1] - np.logaddexp(*parts))
    drawn = data.posterior["kind"].values[0].mean(0)
    z = (drawn - responsibility) / np.sqrt(responsibility * (1 - responsibility) / count)
    assert np.abs(z).max() < stats.norm.ppf(1 - 1e-4 / (2 * len(Y)))  # alpha = 1e-4 over all items


def test_weights_estimate_the_evidence():
    pyro.set_rng_seed(0)
    y = Y
    guide = AutoMultivariateNormal(no_plate, init_loc_fn=init_to_median)
    guide(y)
    precision = len(y) + 0.25
    guide.loc.data.fill_(float(y.sum()) / precision)  # the exact posterior: all weights are the evidence
    guide.scale = torch.tensor([precision**-0.5])
    covariance = torch.eye(len(y)) + 4.0
    exact = float(dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y))
    weights = to_arviz(no_plate, guide, y, draws=5).sample_stats.log_weight
    np.testing.assert_allclose(weights.values, exact)


def test_restarts_become_chains(float64):
    guides = [guided(one_plate) for _ in range(3)]
    data = to_arviz(one_plate, guides, Y, draws=4)
    assert data.posterior.sizes == {"chain": 3, "draw": 4, "items": 6}
    assert data.sample_stats.lp.shape == (3, 4)
    assert data.prior.sizes["chain"] == 1


def test_draws_are_those_of_the_seed():
    guide = guided(one_plate)
    pyro.set_rng_seed(7)
    expected = torch.rand(3)
    pyro.set_rng_seed(7)
    first, again, other = (to_arviz(one_plate, guide, Y, draws=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert first.posterior.equals(again.posterior)
    assert not first.posterior.equals(other.posterior)


def test_constant_data_are_the_other_tensors(made):
    constant = made["PyroModule"].constant_data
    assert set(constant.data_vars) == {"x"}
    assert np.array_equal(constant["x"].values, PAIRS)
    assert "constant_data" not in made["one"].groups()


def test_masked_data_do_not_count():
    def masked(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 2.0))
        with pyro.plate("items", len(y)), poutine.mask(mask=y > 0):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    guide = AutoDelta(masked)
    guide(Y)
    values = to_arviz(masked, guide, Y, draws=1).log_likelihood["y"].values[0, 0]
    assert np.array_equal(values == 0, Y.numpy() <= 0)


def test_dependent_data_are_left_out_one_by_one():
    gram = torch.exp(-0.5 * (Y[:, None] - Y).square())

    def process(y: Tensor) -> None:
        noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 0.5))
        pyro.sample("y", GaussianProcess(gram, torch.tensor(1.0), noise, y.shape), obs=y)

    guide = AutoDelta(process)
    guide(Y[:, None])
    data = to_arviz(process, guide, Y[:, None], draws=300)
    noise = float(data.posterior["noise"][0, 0])
    covariance = gram + noise * torch.eye(len(Y))
    for i in range(len(Y)):
        rest = [j for j in range(len(Y)) if j != i]
        weights = torch.linalg.solve(covariance[rest][:, rest], covariance[rest, i])
        mean, variance = float(weights @ Y[rest]), float(covariance[i, i] - weights @ covariance[rest, i])
        expected = stats.norm.logpdf(float(Y[i]), mean, math.sqrt(variance))
        assert data.log_likelihood["y"].values[0, 0, i] == pytest.approx(expected)
        z = (data.posterior_predictive["y"].values[0, :, i, 0].mean() - mean) / math.sqrt(variance / 300)
        assert abs(z) < stats.norm.ppf(1 - 1e-5)


@pytest.mark.parametrize("bad", [{"draws": 0}, {"guide": []}])
def test_nothing_to_draw_is_refused(bad):
    with pytest.raises(BadInput, match="1 or more of each"):
        to_arviz(one_plate, bad.get("guide", guided(one_plate)), Y, draws=bad.get("draws", 1))


def test_model_without_latent_sites_is_refused():
    def fixed(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1), obs=y)

    with pytest.raises(BadInput, match="without a latent site"):
        to_arviz(fixed, lambda y: None, Y, draws=1)


def test_netcdf_round_trip(made, tmp_path):
    for case, data in made.items():
        path = str(tmp_path / f"{case}.nc")
        data.to_netcdf(path)
        back = az.from_netcdf(path)
        assert back.groups() == data.groups()
        for group in data.groups():
            assert back[group].equals(data[group])
            assert {k: tuple(v.dims) for k, v in back[group].items()} == {k: v.dims for k, v in data[group].items()}
        check(case, back)


# Discrete sites: what is summed out, and what cannot be.


def sampled_from_the_prior(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
    u = pyro.sample("u", dist.Normal(torch.tensor(0.0), 5.0))
    with pyro.plate("items", len(y)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu + u + z, 1.0), obs=y)


def test_densities_are_of_the_draws_that_are_kept():
    guide = AutoNormal(poutine.block(sampled_from_the_prior, expose=["mu"]))
    guide(Y)
    data = to_arviz(sampled_from_the_prior, guide, Y, draws=6)
    mu, u = (data.posterior[k].values[0, :, None] for k in ("mu", "u"))
    mixture = np.logaddexp(
        np.log(0.7) + stats.norm.logpdf(Y.numpy(), mu + u, 1), np.log(0.3) + stats.norm.logpdf(Y.numpy(), mu + u + 1, 1)
    )
    np.testing.assert_allclose(data.log_likelihood["y"].values[0], mixture)
    prior = stats.norm.logpdf(mu[:, 0], 0, 5) + stats.norm.logpdf(u[:, 0], 0, 5)
    np.testing.assert_allclose(data.sample_stats.lp.values[0], prior + mixture.sum(1))


def latent_below(y: Tensor) -> None:
    with pyro.plate("items", len(y)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
        x = pyro.sample("x", dist.Normal(3 * z, 1.0))
        pyro.sample("y", dist.Normal(x + z, 1.0), obs=y)


def test_priors_are_no_likelihood():
    guide = AutoNormal(poutine.block(latent_below, hide=["z"]))
    guide(Y)
    data = to_arviz(latent_below, guide, Y, draws=5)
    assert set(data.log_likelihood.data_vars) == {"y"}
    x = data.posterior["x"].values[0]
    logs = [np.log(0.5) + stats.norm.logpdf(x, 3 * z, 1) for z in (0, 1)]
    joint = np.logaddexp(*(p + stats.norm.logpdf(Y.numpy(), x + z, 1) for z, p in enumerate(logs)))
    np.testing.assert_allclose(data.log_likelihood["y"].values[0], joint - np.logaddexp(*logs))
    np.testing.assert_allclose(data.sample_stats.lp.values[0], joint.sum(1))
    log_joint = LogJoint(latent_below, (Y,))
    prior, likelihood = log_joint.terms(log_joint.pack({"x": torch.as_tensor(x[0])}))
    assert float(prior) == pytest.approx(np.logaddexp(*logs)[0].sum())
    assert float(likelihood) == pytest.approx((joint - np.logaddexp(*logs))[0].sum())


def shared(y: Tensor) -> None:
    z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
    pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("items", len(y), subsample_size=2) as chosen:
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[chosen])


def without_plate(y: Tensor) -> None:
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(mu[..., z], 1.0).expand([2]) if z.dim() == 0 else dist.Normal(mu[z], 1.0), obs=y[:2])


@pytest.mark.parametrize(("model", "words"), [(shared, "differ in scale"), (without_plate, "outside of plates")])
def test_sums_that_would_be_wrong_are_refused(model, words):
    guide = AutoNormal(poutine.block(model, expose=["mu"]))
    guide(Y)
    with pytest.raises(BadInput, match=words):
        to_arviz(model, guide, Y, draws=1)
    log_joint = LogJoint(model, (Y,))
    with pytest.raises(BadInput, match=words):
        log_joint.terms(torch.zeros(log_joint.size))


def test_masked_priors_do_not_count():
    def masked(y: Tensor) -> None:
        with pyro.plate("items", len(y)), poutine.mask(mask=y > 0):
            x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    guide = AutoNormal(masked)
    guide(Y)
    data = to_arviz(masked, guide, Y, draws=3)
    total = data.log_prior["x"].sum("items") + data.log_likelihood["y"].sum("items")
    np.testing.assert_allclose(data.sample_stats.lp.values, total.values)
