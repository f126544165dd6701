"""A run is at home in ArviZ: every group is there, and ArviZ's own functions take it."""

import math

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

GROUPS = {
    *("posterior", "prior", "posterior_predictive", "prior_predictive", "log_likelihood", "log_prior"),
    *("observed_data", "constant_data", "sample_stats", "climb"),
}
SCORED = 32  # draws that the evidence comes from

pytestmark = [
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping:DeprecationWarning"),  # ArviZ's own
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # az.compare with pandas 3
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning"),  # a tiny data set
]


@pytest.fixture(scope="module")
def data(run):
    return run.inference_data("rotation")


@pytest.fixture(scope="module")
def scored(data):
    return data.sel(draw=slice(0, SCORED - 1), groups=["posterior", "log_prior", "log_likelihood", "sample_stats"])


def test_all_groups_are_there(data):
    assert set(data.groups()) == GROUPS
    assert data.posterior.sizes["chain"] == 1  # draws of one guide are one chain
    assert data.posterior.sizes["draw"] == 1000
    for group in ("log_likelihood", "log_prior", "posterior_predictive", "sample_stats"):
        assert list(data[group]["draw"].values) == list(range(SCORED))
        assert all(np.isfinite(v.values).all() for v in data[group].data_vars.values())
    assert dict(data.log_likelihood["targets"].sizes) == {"chain": 1, "draw": SCORED, "item": 40}
    assert data.observed_data["targets"].dims == ("item", "targets_dim_1")
    assert data.posterior_predictive["targets"].sizes["item"] == 40
    assert data.climb.sizes["chain"] in (2, 3)  # a narrow and a wide start, perhaps a draw of the prior
    assert {"log_evidence", "log_evidence_bound", "seed", "torch", "pyro", "entry"} <= set(data.attrs)


def test_scored_draws_are_the_first_of_the_posterior(run, data):
    f = next(f for f in run.fits if f.label == "rotation")
    weights = data.sample_stats["log_weight"].values
    assert weights.mean() == pytest.approx(f.evidence.value)
    u = f.weighted[:, :-3].numpy()
    columns = np.stack([data.posterior[k].values[0, :SCORED] for k in f.draws], 1)
    assert columns.shape == u.shape
    lengths = list(f.draws).index("lengthscale")
    np.testing.assert_allclose(np.log(columns[:, lengths]), u[:, lengths])
    assert data.sample_stats["lp"].values - data.sample_stats["log_q"].values == pytest.approx(weights)


def test_log_prior_is_that_of_the_draws(data):
    draws = data.posterior["lengthscale"].values[0, :SCORED]
    np.testing.assert_allclose(data.log_prior["lengthscale"].values[0], stats.lognorm.logpdf(draws, 1.0))
    np.testing.assert_allclose(data.log_prior["rotation"].values[0], -math.log(math.pi))
    assert "rotation_degrees" not in data.log_prior


def test_left_out_densities_are_calibrated(data):
    observed, drawn = data.observed_data["targets"].values, data.posterior_predictive["targets"].values[0]
    z = (observed - drawn.mean(0)) / drawn.std(0)
    assert 0.3 < np.square(z).mean() < 3  # each label is predicted from the others, neither copied nor lost


def test_prior_predictive_has_the_variance_of_the_prior(data):
    drawn = data.prior_predictive["targets"].values
    assert drawn.shape[:2] == (1, 50)
    assert 0.1 < np.median(np.square(drawn)) < 10


def test_units_are_said(data):
    assert data.posterior["rotation"].attrs["units"] == "radians"
    assert data.posterior["rotation_degrees"].attrs["units"] == "degrees"
    assert data.sample_stats["lp"].attrs["units"] == data.log_likelihood["targets"].attrs["units"] == "nats"


def test_round_trip(data, tmp_path):
    data.to_netcdf(str(tmp_path / "run.nc"))
    back = az.from_netcdf(str(tmp_path / "run.nc"))
    assert back.groups() == data.groups()
    assert all(back[group].equals(data[group]) for group in data.groups())
    assert back.posterior["rotation"].attrs["units"] == "radians"


def test_summary(data):
    summary = az.summary(data, kind="stats")
    assert {"rotation", "rotation_degrees", "lengthscale", "variance", "noise"} <= set(summary.index)
    mean = summary.loc["rotation_degrees", "mean"]
    assert mean == pytest.approx(float(data.posterior["rotation_degrees"].mean()), abs=0.01)


def test_loo_and_compare(run, data):
    loo = az.loo(data, pointwise=True)
    pointwise = data.log_likelihood["targets"].values[0]
    assert loo.n_data_points == 40
    assert loo.elpd_loo == pytest.approx(pointwise.mean(0).sum(), abs=3.0)
    compared = az.compare({f.label: run.inference_data(f.label) for f in run.fits if f.kind != "null"})
    assert set(compared.index) == {"trivial-polar", "mirror", "rotation"}


def test_power_scaling_sensitivity(scored):
    found = az.psens(scored, component="prior", var_names=["rotation"])
    assert 0 <= float(found) < 2


@pytest.mark.parametrize(
    "draw",
    [
        lambda d: az.plot_posterior(d, var_names=["rotation_degrees"]),
        lambda d: az.plot_trace(d, var_names=["rotation_degrees", "noise"]),
        lambda d: az.plot_forest(d, var_names=["lengthscale", "variance"]),
        lambda d: az.plot_pair(d, var_names=["rotation_degrees", "lengthscale"]),
        lambda d: az.plot_ppc(d, num_pp_samples=10, random_seed=0),
        lambda d: az.plot_khat(az.loo(d, pointwise=True)),
        lambda d: az.plot_dist_comparison(d, var_names=["noise"]),
    ],
    ids=["posterior", "trace", "forest", "pair", "ppc", "khat", "prior and posterior"],
)
def test_plots(draw, data):
    assert draw(data) is not None
    figures = plt.get_fignums()
    plt.close("all")
    assert figures
