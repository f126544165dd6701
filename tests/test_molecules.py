"""Molecules: planted symmetries have the largest evidence, terms break what they should, real molecules of QM7."""

import math
import operator
from collections.abc import Mapping
from itertools import accumulate

import numpy as np
import pytest
import torch
from real_molecules import qm7
from scipy import stats
from torch import Tensor

from pyro_invariance import datasets
from pyro_invariance.calibration import calibrate
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.fitting import fit
from pyro_invariance.numerics import float64 as precisely
from pyro_invariance.results import Selection
from pyro_invariance.selection import select
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis, load

ENTRY = load("molecules")
SELECTED = {planted: "trivial-atoms" if planted == "none" else planted for planted in ENTRY.PLANTED}
SITES = [{"lengthscale": l, "variance": v, "noise": 1e-3} for l, v in ((1.0, 2.0), (3.0, 10.0), (8.0, 40.0))]  # noqa: E741
ALPHA = 1e-4  # of the statistical test


def found(data: Dataset) -> dict[str, Hypothesis]:
    return {h.label: h for h in ENTRY.hypotheses(data)}


def supported(run: Selection) -> set[str]:
    return {symmetry for symmetry, verdict in run.verdicts.items() if verdict.verdict == "supported"}


def chain(planted: str) -> set[str]:
    """What a subgroup contains."""
    return set() if planted == "none" else set(ENTRY.CHAIN[: ENTRY.CHAIN.index(planted) + 1])


def draw(sites: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in sites.items()}


@pytest.fixture(scope="module")
def free(float64: None) -> Dataset:
    return ENTRY.data("E3", size=120, test=60)


def evidences(data: Dataset) -> dict[str, float]:
    """Largest log likelihood of each hypothesis over a few hyperparameters."""
    top = {}
    for label, h in found(data).items():
        log_joint = LogJoint(h.model, h.prepare(data))
        points = [log_joint.pack({name: sites[name] for name in h.priors}) for sites in SITES]
        top[label] = max(float(log_joint.terms(z)[1]) for z in points)
    return top


@pytest.mark.parametrize("planted", ENTRY.PLANTED)
def test_planted_symmetry_has_the_largest_likelihood(planted):
    top = evidences(ENTRY.data(planted, seed=3, size=250, test=0))
    truth = top.pop(SELECTED[planted])
    assert truth - max(top.values()) > 5
    mutant = dict(zip(top, sorted(top.values()), strict=True)) | {SELECTED[planted]: top["null"]}
    assert max(mutant, key=mutant.__getitem__) != SELECTED[planted]


def test_likelihood_is_that_of_a_gaussian_vector(free):
    h = found(free)["SE3"]
    kernel, targets = h.prepare(free)
    log_joint = LogJoint(h.model, (kernel, targets))
    squares = np.square(kernel.features[:, None].numpy() - kernel.features.numpy()).sum(-1)
    for sites in SITES:
        covariance = sites["variance"] * np.exp(-squares / 2 / sites["lengthscale"] ** 2)
        covariance += (1e-4 + sites["noise"]) * np.eye(len(squares))
        expected = stats.multivariate_normal(cov=covariance).logpdf(targets[:, 0].numpy())
        assert float(log_joint.terms(log_joint.pack(sites))[1]) == pytest.approx(expected, abs=1e-6)


def test_predictions_are_conditional_moments(free):
    h = found(free)["T"]
    kernel, targets = h.prepare(free)
    mean, variance = h.predict((kernel, targets), [draw(SITES[1])], free.x_test)
    both = torch.cat([kernel.squares, kernel.compared(free.x_test)]).div(-2 * 3.0**2).exp().mul(10.0).numpy()
    weights = both[120:] @ np.linalg.inv(both[:120] + 1.1e-3 * np.eye(120))
    np.testing.assert_allclose(mean[0].numpy(), weights @ targets.numpy(), atol=1e-6)
    expected = 10.0 + 1.1e-3 - (weights * both[120:]).sum(1)
    np.testing.assert_allclose(variance[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("label", ["T", "T-SO2", "SE3", "E3"])
def test_predictions_do_not_change_under_the_subgroup_and_do_under_more(free, label):
    """What a hypothesis takes to be the same, it predicts the same for; what it does not contain, it tells apart."""
    every = found(free)
    h, whole = every[label], every["E3"]
    args, sites = h.prepare(free), [draw(SITES[1])]
    here = h.predict(args, sites, free.x_test)[0]
    own = h.moved(free.x_test, {})
    assert len(own) == len(h.contains)
    changes = {
        caption: float((h.predict(args, sites, x)[0] - here).abs().max())
        for caption, x in whole.moved(free.x_test, {}).items()
    }
    assert all(change < 1e-6 for caption, change in changes.items() if caption in own)
    assert all(change > 1e-3 for caption, change in changes.items() if caption not in own)


def test_terms_break_what_they_should(free):
    """The finest subgroup that leaves a term alone is the one that it is planted as."""
    moves = found(free)["E3"].moved(free.x, {})
    for planted, name in ENTRY.PLANTED.items():
        energy = ENTRY.energies if name is None else lambda x, name=name: ENTRY.term(name, x)
        here = energy(free.x)
        changes = [float((energy(x) - here).abs().max() / here.std()) for x in moves.values()]
        kept = list(accumulate((change < 1e-9 for change in changes), operator.and_))  # with all before them
        assert kept == [subgroup in chain(planted) for subgroup in ENTRY.CHAIN], planted


def test_energies_are_sums_over_bonds_and_bends():
    x = torch.tensor([[[8, 0, 0, 0], [1, 0.97, 0, 0], [1, 0, 0.97, 0], [0, 0, 0, 0.0]]])
    apart = math.sqrt(2) * 0.97 - 0.62
    bonds = 80 * (2 * -1 + (1 - math.exp(-1.5 * apart)) ** 2 - 1)
    near, far = math.exp(-0.97), math.exp(-math.sqrt(2) * 0.97)
    at_hydrogen = near**2 + far**2 + 2 * near * far * math.cos(math.pi / 4)
    assert float(ENTRY.energies(x)) == pytest.approx(bonds + 30 * (2 * near**2 + 2 * at_hydrogen))


def test_symmetric_hypothesis_predicts_new_molecules_better(free):
    """Paired z-test on molecules that were not seen, one-sided, alpha = 1e-4."""
    truth, densities = free.encode(free.y_test), {}
    for label in ("E3", "trivial-atoms", "null"):
        h = found(free)[label]
        mean, variance = h.predict(h.prepare(free), [draw(SITES[1])], free.x_test)
        densities[label] = torch.distributions.Normal(mean[0, :, 0], variance[0].sqrt()).log_prob(truth[:, 0])
    for other in ("trivial-atoms", "null"):
        difference = densities["E3"] - densities[other]
        assert float(difference.mean() / difference.std()) * math.sqrt(60) > stats.norm.isf(ALPHA)


def changed(free: Dataset, column: int, value: float) -> Dataset:
    x = free.x.clone()
    x[2, :, column] = value
    return from_arrays("mine", x.numpy(), free.y.numpy(), kind="points")


def test_data_that_are_no_molecules_are_refused(free):
    flat = from_arrays("flat", free.x[..., 1:].numpy(), free.y.numpy(), kind="points")
    with pytest.raises(BadInput, match="x_train: got points of 3 numbers; atoms have 4"):
        ENTRY.hypotheses(flat)
    for charge, words in ((-1.0, "got the nuclear charge -1; integers"), (0.5, "got the nuclear charge 0.5")):
        with pytest.raises(BadInput, match=words):
            ENTRY.hypotheses(changed(free, 0, charge))
    with pytest.raises(BadInput, match="got a molecule without atoms"):
        ENTRY.hypotheses(changed(free, 0, 0.0))
    numbers = free.y.numpy()
    several = {"6 classes": np.arange(len(numbers)) % 6, r"shape \(3,\)": np.stack([numbers] * 3, 1)}
    for entry in (ENTRY, load("molecule_network")):
        for got, values in several.items():
            with pytest.raises(BadInput, match=f"y_train: got .*{got}; one float per item"):
                entry.hypotheses(from_arrays("mine", free.x.numpy(), values, kind="points"))
    for place in ("x", "x_test"):
        x = getattr(free, place).clone()
        x[1, 1, 1:] = x[1, 0, 1:]
        with pytest.raises(BadInput, match="got two atoms at one place in molecule 1"):
            ENTRY.hypotheses(Dataset(**{**vars(free), place: x}))
    new = free.x_test.clone()
    new[0, 0, 0] = 7.0
    with pytest.raises(BadInput, match="x_test: got nuclear charges 7; the molecules of the run have 1, 6, 8"):
        ENTRY.hypotheses(Dataset(**{**vars(free), "x_test": new}))
    series = from_arrays("series", free.x[..., 0].numpy(), free.y.numpy(), kind="series")
    with pytest.raises(BadInput, match="'series' holds series; molecules takes points"):
        ENTRY.hypotheses(series)


def test_picture_shows_each_hypothesis(free, figures):
    data = Dataset(**{**vars(free), "x": free.x[:40], "y": free.y[:40]})
    with precisely():
        hypotheses = [h for h in ENTRY.hypotheses(data) if h.label in ("null", "trivial-atoms", "E3")]
        fits = tuple(sorted((fit(h, data) for h in hypotheses), key=lambda f: -f.evidence.value))
    axes = ENTRY.residuals(Selection(data, tuple(hypotheses), fits, {}, "molecules", 0))
    labels = [text.get_text().split(",")[0] for text in axes.get_legend().get_texts()]
    assert sorted(labels) == ["E3", "trivial-atoms"]
    assert {ENTRY.residuals} == set(ENTRY.PICTURES)


def test_integers_are_places_as_they_are(free):
    x = (1000 * free.x).round().to(torch.int64)
    x[..., 0] = free.x[..., 0]
    assert torch.equal(from_arrays("mine", x.numpy(), free.y.numpy(), kind="points").x, x.double())


def test_element_that_the_molecules_drawn_lack_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(datasets, "LIMIT", 20)
    monkeypatch.setattr("pyro_invariance.selection.sweep", lambda *args: pytest.fail("hypotheses were fitted"))
    whole = ENTRY.data(size=40, test=4)
    drawn = whole.subset(20, 0).x
    rare = next(i for i, molecule in enumerate(whole.x) if not bool((drawn == molecule).flatten(1).all(1).any()))
    whole.x[rare, 0, 0] = whole.x_test[0, 0, 0] = 16.0
    ENTRY.hypotheses(whole)
    with pytest.raises(BadInput, match="x_test: got nuclear charges 16; the molecules of the run have 1, 6, 8"):
        select(whole, "molecules")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("planted", SELECTED)
def test_planted_symmetry_is_selected(planted, seed):
    run = select(ENTRY.data(planted, seed=seed, test=0), "molecules", seed=seed, jobs=1)
    assert run.best.label == SELECTED[planted]
    assert supported(run) == chain(planted)


@pytest.mark.slow
def test_posteriors_are_calibrated():
    data = ENTRY.data(size=30, test=0)
    assert calibrate(found(data)["E3"], data, simulations=60, jobs=1).passed


@pytest.mark.slow
@pytest.mark.parametrize("planted", SELECTED)
def test_real_molecules_keep_what_a_term_leaves_them(planted):
    """With a term of 20 kcal/mol, a tenth of the spread of the energies."""
    x, y = qm7(400)
    if ENTRY.PLANTED[planted]:
        broken = ENTRY.term(ENTRY.PLANTED[planted], torch.as_tensor(x)).numpy()
        y = y + 20 * (broken - broken.mean()) / broken.std()
    run = select(from_arrays(f"qm7-{planted}", x, y, kind="points"), "molecules", jobs=1)
    assert run.best.label == SELECTED[planted]
    assert supported(run) == chain(planted)


@pytest.mark.slow
def test_energies_of_real_molecules_are_near():
    """Hyperparameters from 1,000 molecules, predictions for 1,101 others from 5,000; mean absolute errors, kcal/mol."""
    x, y = qm7(7101)
    few, many = (from_arrays("qm7", x[:n], y[:n], x[6000:], y[6000:], kind="points") for n in (1000, 5000))
    h = found(few)["E3"]
    fitted = fit(h, few)
    sites = {name: values.mean() for name, values in fitted.draws.items()}
    mean = h.predict(h.prepare(many), [sites], many.x_test)[0][0]
    off = [
        float((found - data.encode(data.y_test)).abs().mean() * data.unit[1])
        for found, data in ((fitted.test_mean, few), (mean, many))
    ]
    assert off[0] < 2.2
    assert off[1] < 1.5
