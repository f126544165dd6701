"""What a fit looks like to ArviZ, and how good the predicted probabilities are."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import arviz as az
import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import Fit
from pyro_invariance.inference_data import Named, dataset
from pyro_invariance.numerics import float64
from pyro_invariance.traces import Free
from pyro_invariance.zoo import Hypothesis

PRIOR_ITEMS, PRIOR_DRAWS = 200, 50
SITE_UNITS = {"lengthscale": "mean distance of two images", "variance": "target variance", "noise": "target variance"}
UNITS = {"rad": "radians", "grid": "image grid, side 2", "log": "log scale", "level": "black 0, white 1"}


@float64()
@torch.no_grad()
def inference_data(
    fit: Fit, hypothesis: Hypothesis, data: Dataset, attributes: Mapping[str, Any] | None = None, seed: int = 0
) -> az.InferenceData:
    """All that is known of a fitted hypothesis as `InferenceData`.

    `posterior` and `prior` have draws of the posterior and of the prior, one chain, angles in degrees too.  The first
    of those posterior draws are the guide's own, independent, and the ones that the evidence comes from:
    `log_likelihood`, `log_prior`, `posterior_predictive` and `sample_stats` (`lp` in unconstrained space, `log_q`,
    `log_weight`) are of them and have their `draw` coordinates.  For few data the others are resampled by importance
    weights.  For a Gaussian process the pointwise densities and replicates are leave-one-out.
    `prior_predictive` is of a subset of the items; `climb` has the log joint density at each step of the ascent from
    each start (for few data perhaps from a draw of the prior too), a chain each, padded with NaN, and the lower bound
    at each step of SVI.

    Parameters
    ----------
    fit, hypothesis, data
        The fit, what was fitted, and to what.
    attributes : mapping, optional
        Further attributes (versions, seed, data).
    seed : int
        Of the prior predictive draws.
    """
    ranges = [name for name, extent in fit.extents.items() if extent.unit == "rad"]

    def named(values: Mapping[str, Tensor]) -> dict[str, Named]:
        """Arrays `[draw, ...]`, the first other axis named `item` if it is as long as there are data."""
        made: dict[str, Named] = {}
        for name, value in values.items():
            dims = [f"{name}_dim_{axis}" for axis in range(value.dim() - 1)]
            if dims and value.shape[1] == len(data.y):
                dims[0] = "item"
            made[name] = ["chain", "draw", *dims], value.double().numpy()[None]
        return made | {f"{n}_degrees": (made[n][0], np.degrees(made[n][1])) for n in ranges if n in made}

    log_prior, log_likelihood, log_q = fit.weighted[:, -3:].T
    weights = {"lp": log_prior + log_likelihood, "log_q": log_q, "log_weight": log_prior + log_likelihood - log_q}
    one_draw = named({name: value[None] for name, value in fit.observed.items()})
    groups = {
        "posterior": named(fit.draws),
        "prior": named(fit.prior),
        "posterior_predictive": named(fit.replicates),
        "prior_predictive": named(_prior_predictive(hypothesis, data, seed)),
        "log_likelihood": named(fit.pointwise),
        "log_prior": {k: v for k, v in named(fit.site_log_prior).items() if not k.endswith("_degrees")},
        "sample_stats": named(weights),
        "observed_data": {k: (dims[2:], v[0, 0]) for k, (dims, v) in one_draw.items()},
        "constant_data": {
            "label": (["item", *(f"label_dim_{axis}" for axis in range(data.y.dim() - 1))], data.y.numpy())
        },
        "climb": _climb(fit),
    }
    attributes = {
        "hypothesis": fit.label,
        **fit.evidence.attributes,
        "log_evidence_upper": fit.upper,
        **(attributes or {}),
    }
    made: dict[str, Any] = {name: dataset(values, {}, attributes) for name, values in groups.items() if values}
    units = ({} if attributes.get("entry") == "custom" else SITE_UNITS) | {
        name: UNITS[extent.unit] for name, extent in fit.extents.items()
    }
    units |= {f"{name}_degrees": "degrees" for name in ranges}
    for group in ("posterior", "prior"):
        for name, variable in made[group].data_vars.items():
            variable.attrs["units"] = units.get(str(name), "")
    for group in ("log_likelihood", "log_prior", "sample_stats", "climb"):
        for variable in made.get(group, {}).values():
            variable.attrs["units"] = "nats"
    return az.InferenceData(attrs=attributes, **made)


def _prior_predictive(hypothesis: Hypothesis, data: Dataset, seed: int) -> dict[str, Tensor]:
    """Data drawn from the model alone, for a few items."""
    args = hypothesis.prepare(data.subset(PRIOR_ITEMS, seed))
    rows: dict[str, list[Tensor]] = defaultdict(list)
    with poutine.seed(rng_seed=seed):
        for _ in range(PRIOR_DRAWS):
            sites: dict[str, Any] = dict(poutine.trace(Free()(hypothesis.model)).get_trace(*args).nodes)
            for name, site in sites.items():
                if site["type"] == "sample" and site["infer"].get("was_observed"):
                    rows[name].append(site["value"])
    return {name: torch.stack(values) for name, values in rows.items()}


def _climb(fit: Fit) -> dict[str, Named]:
    steps = max(map(len, fit.climbs), default=0)
    padded = np.full((len(fit.climbs), steps), np.nan)
    for row, path in zip(padded, fit.climbs, strict=True):
        row[: len(path)] = path
    return {"log_joint": (["chain", "step"], padded), "elbo": (["svi_step"], np.array(fit.path))}


def expected_calibration_error(log_probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence [guo2017calibration].

    `log_probs` `[M, C]`, `labels` `[M]`.
    """
    confidence, guess = log_probs.exp().max(-1)
    correct = (guess == labels).to(confidence)
    which = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=confidence.dtype).index_add(0, which, confidence - correct)
    return float(gaps.abs().sum() / len(labels))
