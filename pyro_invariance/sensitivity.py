"""Do the verdicts survive other priors?"""

import inspect
import math
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_invariance import zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import Fit
from pyro_invariance.numerics import float64
from pyro_invariance.results import Selection
from pyro_invariance.verdict import Verdict
from pyro_invariance.zoo import Hypothesis

FACTORS = (0.5, 2.0)
FEW = 20  # items: priors of hyperparameters do not look at them


@float64()
@torch.no_grad()
def prior_sensitivity(selection: Selection) -> dict[float, dict[str, Verdict]]:
    r"""Verdicts with every prior scale halved and doubled, by reweighting the posterior draws.

    .. math:: \log p'(D) = \log p(D) + \log E_{p(\theta | D)}[\pi'(\theta) / \pi(\theta)]

    with draws of the guide for those of the posterior.  Empty for an entry whose `hypotheses` take no `scale`.
    """
    entry = None if selection.entry == "custom" else zoo.load(selection.entry).hypotheses
    if entry is None or "scale" not in inspect.signature(entry).parameters:
        return {}
    few = selection.data.subset(FEW, selection.seed)
    asked = {h.label: h for h in selection.hypotheses}
    found = {}
    for factor in FACTORS:
        scaled = {h.label: h for h in entry(selection.data, scale=factor)}
        shifted = [_reweighted(f, asked[f.label], scaled[f.label], few) for f in selection.fits]
        found[factor] = selection.judge(shifted)
    return found


def _reweighted(fit: Fit, plain: Hypothesis, scaled: Hypothesis, few: Dataset) -> Fit:
    after, before = (_log_prior(h.given(fit.learned), fit.draws, few) for h in (scaled, plain))
    ratio = after - before
    shift = float(ratio.logsumexp(0)) - math.log(len(ratio))
    return replace(fit, evidence=replace(fit.evidence, value=fit.evidence.value + shift))


def _log_prior(hypothesis: Hypothesis, draws: dict[str, Tensor], few: Dataset) -> Tensor:
    """Log prior density `[S]` of draws of sites that do not depend on each other."""
    nodes: dict[str, Any] = dict(poutine.trace(hypothesis.model).get_trace(*hypothesis.prepare(few)).nodes)
    total = torch.zeros(len(next(iter(draws.values()))))
    for name, values in draws.items():
        density = nodes[name]["fn"].log_prob(values)
        total = total + density.reshape(len(values), -1).sum(1)
    return total
