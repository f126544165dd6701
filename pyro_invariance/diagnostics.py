"""What a posterior looks like to ArviZ, and how good the predicted probabilities are.

The only place that knows ArviZ's data structures.
"""

import arviz as az
import numpy as np
import torch
from torch import Tensor

from pyro_invariance.fitting import Fit

UNITS = {"rad": "radians", "grid": "image grid, side 2", "log": "log scale"}


def to_arviz(fit: Fit, attributes: dict[str, str] | None = None) -> az.InferenceData:
    """Posterior and prior of a fitted hypothesis as `InferenceData`.

    Draws are independent draws of the guide, one chain; every variable carries its unit, angles are also given in
    degrees.

    Parameters
    ----------
    fit : Fit
        A fitted hypothesis.
    attributes : dict, optional
        Further attributes (versions, seed, data).
    """

    def group(draws: dict[str, Tensor]) -> dict[str, np.ndarray]:
        named = {name: values.numpy()[None] for name, values in draws.items()}
        for name, extent in fit.extents.items():
            if extent.unit == "rad":
                named[f"{name}_degrees"] = np.degrees(named[name])
        return named

    evidence = fit.evidence
    data = az.from_dict(
        posterior=group(fit.draws),
        prior=group(fit.prior),
        attrs={
            "hypothesis": fit.label,
            "log_evidence": evidence.value,
            "log_evidence_bound": evidence.bound,
            "log_evidence_std_error": evidence.std_error,
            **(attributes or {}),
        },
    )
    units = {"lengthscale": "mean distance of two images", "variance": "target variance", "noise": "target variance"}
    for part in (data.posterior, data.prior):
        for name in part.data_vars:
            extent = fit.extents.get(str(name))
            degrees = "degrees" if str(name).removesuffix("_degrees") in fit.extents else ""
            part[name].attrs["units"] = UNITS[extent.unit] if extent else units.get(str(name), degrees)
    return data


def expected_calibration_error(log_probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence [guo2017calibration].

    `log_probs` `[M, C]`, `labels` `[M]`.
    """
    confidence, guess = log_probs.exp().max(-1)
    correct = (guess == labels).to(confidence)
    which = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=confidence.dtype).index_add(0, which, confidence - correct)
    return float(gaps.abs().sum() / len(labels))
