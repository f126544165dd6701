"""Pictures of how the best model does on held-out data."""

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor

from pyro_invariance.plotting.base import new_axes, of_base
from pyro_invariance.results import Selection


def paired(selection: Selection, axes: Axes | None = None) -> Axes:
    """Held-out log density of every hypothesis minus that of the best, on the same test data."""
    rows = [(f, p) for f in selection.fits[::-1] if f.kind != "null" and (p := selection.paired(f)) is not None]
    axes = new_axes(axes, 1.4 + 0.32 * len(rows))
    for row, (f, (mean, error)) in enumerate(rows):
        axes.errorbar(mean, row, xerr=2 * error, fmt="o", color=of_base(f.base), capsize=3)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [f.label for f, _ in rows])
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("test log density minus that of the best, nats per item (bars: 2 standard errors)")
    axes.set_title("Does the evidence agree with held-out data?" if rows else "No test data")
    return axes


def calibration(selection: Selection, axes: Axes | None = None) -> Axes:
    """Accuracy against confidence of the best hypothesis on the test data; coverage for regression."""
    axes, best, data = new_axes(axes), selection.best, selection.data
    axes.axline((1, 1), slope=1, color="0.6", lw=1)
    if len(best.test_mean) == 0:
        axes.set_title("No predictions of test data")
        return axes
    if data.classes:
        confidence, guess = best.test_log_density.softmax(-1).max(-1)
        right, at = (guess == data.y_test).double().numpy(), confidence.numpy()
        for items in np.array_split(at.argsort(), min(10, max(1, len(at) // 20))):  # as many items at each point
            low, high = stats.beta.ppf([0.025, 0.975], right[items].sum() + 0.5, (1 - right[items]).sum() + 0.5)
            rate = right[items].mean()
            error = [[max(rate - low, 0)], [max(high - rate, 0)]]
            axes.errorbar(at[items].mean(), rate, yerr=error, fmt="o", color="C0", capsize=3, alpha=0.7)
        axes.set_xlabel("confidence of the prediction")
        axes.set_ylabel("share that is right (bars: 95 %)")
        axes.set_xlim(at.min() - 0.02, 1.02)
        gap = selection.test_scores(best)["calibration_error"]
        axes.set_title(f"{best.label}: expected calibration error {gap:.3f}")
        return axes
    nominal = np.linspace(0.05, 0.95, 19)
    inside = _standardised(selection).abs()[:, None] < torch.distributions.Normal(0.0, 1.0).icdf(
        torch.tensor((1 + nominal) / 2)
    )
    axes.plot(nominal, inside.double().mean(0).numpy(), marker="o")
    axes.set_xlabel("nominal coverage of the central interval")
    axes.set_ylabel("share of test values inside")
    axes.set_title(f"{best.label}: are the error bars right?")
    return axes


def _standardised(selection: Selection) -> Tensor:
    """Test residuals of a regression by the best hypothesis, in its own standard deviations."""
    best = selection.best
    truth = selection.data.encode(selection.data.y_test)
    return ((truth - best.test_mean) / best.test_variance.sqrt()[:, None]).flatten()


def predictive_check(selection: Selection, axes: Axes | None = None, replicates: int = 2000) -> Axes:
    """Is the best model any good?  A test statistic of the held-out data among those that the model itself expects."""
    axes, best, data = new_axes(axes), selection.best, selection.data
    if len(best.test_mean) == 0:
        axes.set_title("No predictions of test data")
        return axes
    generator = torch.Generator().manual_seed(selection.seed)
    if data.classes:
        probability, guess = best.test_log_density.softmax(-1).max(-1)
        expected = (torch.rand(replicates, len(guess), generator=generator) < probability).double().mean(1)
        found, words = float((guess == data.y_test).double().mean()), "accuracy on the test data"
    else:
        residuals = _standardised(selection)
        expected = torch.randn(replicates, len(residuals), generator=generator).square().mean(1)
        found, words = float(residuals.square().mean()), "mean squared standardised test residual"
    tail = float(min((expected >= found).double().mean(), (expected <= found).double().mean()))  # ties are in both
    low, high = (float(expected.quantile(q)) for q in (0.025, 0.975))
    axes.hist(expected.numpy(), bins=30, color="0.7", label=f"expected by the model: {low:.3f} to {high:.3f}")
    axes.axvline(found, color="C3", label=f"found: {found:.3f}")
    axes.set_xlabel(words)
    axes.set_yticks([])
    axes.legend()
    verdict = "as the model expects" if low <= found <= high else "not what the model expects"
    axes.set_title(f"{best.label}: {verdict} (tail {tail:.3f})")
    return axes
