"""Pictures of simulation-based calibration."""

import numpy as np
from matplotlib.axes import Axes

from pyro_invariance.calibration import Calibration
from pyro_invariance.plotting.base import new_axes


def ranks(calibration: Calibration, axes: Axes | None = None) -> Axes:
    """ECDF of the ranks of the true values minus the uniform one, by site, and the band that all should stay in."""
    axes = new_axes(axes)
    if not calibration.ranks:
        axes.set_title("No simulation could be fitted")
        return axes
    expected = np.arange(calibration.draws + 2) / (calibration.draws + 1)
    lower, upper = (np.concatenate([[0.0], end, [1.0]]) - expected for end in calibration.band)
    band = f"{calibration.confidence:.0%} band of all sites at once"
    axes.fill_between(expected, lower, upper, color="0.85", label=band)
    outside = calibration.outside
    for site, ecdf in calibration.ecdf.items():
        axes.plot(expected, np.concatenate([[0.0], ecdf, [1.0]]) - expected, lw=2 if outside[site] else 1, label=site)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xlabel(f"rank of the true value among {calibration.draws} posterior draws, as a share")
    axes.set_ylabel("share up to there minus the expected one")
    axes.legend(loc="lower left", fontsize=8)
    wrong = ", ".join(site for site, out in outside.items() if out)
    verdict = f"posteriors are not calibrated: {wrong}" if wrong else "posteriors are calibrated"
    failed = f", {len(calibration.failed)} failed" if calibration.failed else ""
    axes.set_title(f"{calibration.simulations} simulations{failed}: {verdict}")
    return axes
