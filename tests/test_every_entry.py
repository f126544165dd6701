"""Every entry of the zoo goes the same way: data, selection, run folder, report, ArviZ, and back from the folder."""

import math

import arviz as az
import pytest

from pyro_invariance import zoo
from pyro_invariance.report import report
from pyro_invariance.results import load
from pyro_invariance.selection import select

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning")  # of so few items that may well be
@pytest.mark.parametrize("name", zoo.names())
def test_every_entry_goes_the_same_way_from_data_to_report(name, tmp_path):
    run = select(zoo.load(name).data("none", size=24, test=4), name, jobs=1, out=tmp_path)
    page = report(run, tmp_path).read_text(encoding="utf-8")
    assert run.best.label in page
    assert page.count("<img") + page.count("<svg") > 3
    kept = az.from_netcdf(tmp_path / "posterior.nc")
    assert set(run.best.draws) <= set(kept.posterior.data_vars)
    assert math.isfinite(az.loo(kept).elpd_loo)
    assert load(tmp_path).best.evidence == run.best.evidence
