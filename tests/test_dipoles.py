"""Dipoles turn along with their molecules, exactly, and the subgroup that they follow has the largest evidence."""

import math
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation
from torch import Tensor

from pyro_invariance.charges import ChargeKernel, VectorProcess
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.molecular import SHELLS
from pyro_invariance.selection import select
from pyro_invariance.traces import pointwise
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Hypothesis, load

ENTRY = load("dipoles")
WATER = Path(os.environ.get("PYRO_INVARIANCE_DATA", "")) / "water_tensors.npz"  # read before tests unset it
SITES = {"lengthscale": torch.tensor(2.0), "variance": torch.tensor(3.0), "noise": torch.tensor(1e-3)}
SELECTED = {planted: "trivial-charges" if planted == "none" else planted for planted in ENTRY.PLANTED}
ALPHA = 1e-4  # of the statistical test


def found(data: Dataset) -> dict[str, Hypothesis]:
    return {h.label: h for h in ENTRY.hypotheses(data)}


@pytest.fixture(scope="module")
def free(float64: None) -> Dataset:
    return ENTRY.data(size=30, test=20)


def motion(name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Matrix and shift of a random element of a subgroup."""
    rng = np.random.default_rng(seed)
    anything, about = Rotation.random(random_state=seed).as_matrix(), Rotation.from_euler("z", 1.1).as_matrix()
    matrix = {"E3": -anything, "SE3": anything, "T-SO2": about}.get(name, np.eye(3))
    return torch.as_tensor(matrix), torch.as_tensor(rng.standard_normal(3) * (name != "trivial"))


def moved(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    return torch.cat([x[..., :1], (x[..., 1:] @ matrix.mT + shift) * (x[..., :1] > 0)], -1)


@pytest.mark.parametrize("name", ["E3", "SE3", "T-SO2", "T", "trivial"])
def test_what_is_predicted_turns_along_under_the_subgroup_and_not_under_more(name):
    handed = ENTRY.data("SE3", size=30, test=20)
    h = found(handed)["trivial-charges" if name == "trivial" else name]
    args = h.prepare(handed)
    here, covariance = ENTRY.moments(args, [SITES], handed.x_test)
    errors = {}
    for group in ("trivial", "T", "T-SO2", "SE3", "E3"):
        matrix, shift = motion(group)
        there, turned = ENTRY.moments(args, [SITES], moved(handed.x_test, matrix, shift))
        errors[group] = float((there - here @ matrix.mT).abs().max())
        if group == name:
            torch.testing.assert_close(turned, matrix @ covariance @ matrix.mT, atol=1e-10, rtol=0)
    held = list(errors)[: list(errors).index(name) + 1]
    assert all(errors[group] < 1e-10 for group in held)
    assert all(error > 1e-2 for group, error in errors.items() if group not in held)


@pytest.mark.parametrize("planted", [planted for planted, term in ENTRY.PLANTED.items() if term])
def test_terms_break_what_they_should(free, planted):
    """What is planted contains the subgroups, each larger than those before it, that its term turns along under."""
    kept = []
    for group in ("trivial", *ENTRY.CHAIN):
        matrix, shift = motion(group)
        x, dipole = moved(free.x, matrix, shift), free.y @ matrix.mT
        here, there = ENTRY.term(ENTRY.PLANTED[planted], free.x, free.y), ENTRY.term(ENTRY.PLANTED[planted], x, dipole)
        kept += [group] if float((there - here @ matrix.mT).abs().max()) < 1e-12 else []
    assert kept == ["trivial", *ENTRY.CHAIN][: len(kept)]
    assert kept[-1] == ("trivial" if planted == "none" else planted)


def test_order_of_atoms_and_empty_places_do_not_matter(free):
    h = found(free)["E3"]
    padded = torch.cat([free.x_test, torch.zeros(20, 2, 4)], 1)[:, [3, 2, 0, 4, 1]]
    for here, there in zip(*(ENTRY.moments(h.prepare(free), [SITES], x) for x in (free.x_test, padded)), strict=True):
        torch.testing.assert_close(there, here, atol=1e-10, rtol=0)


def vectors(name: str, molecule: Tensor, atom: int) -> np.ndarray:
    """Vectors `[b, 3]` of an atom, from their definition."""
    places = molecule[:, 1:].numpy()
    r, steps = places[atom] - places.mean(0), np.delete(places, atom, 0) - places[atom]
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    inner, outer = ((np.exp(-np.square(lengths / shell)) * steps / lengths).sum(0) for shell in SHELLS)
    turned = np.array([[r[0], r[1], 0.0], [-r[1], r[0], 0.0], [0.0, 0.0, 1.0]])
    return {"E3": r[None], "SE3": np.stack([r, np.cross(inner, outer)]), "T-SO2": turned}.get(name, np.eye(3))


@pytest.mark.parametrize("name", ["E3", "SE3", "T-SO2", "T", "trivial"])
def test_gram_is_a_sum_over_atoms(free, name):
    """Against loops over pairs of atoms, with surroundings as the kernel has them."""
    x = free.x[:4]
    kernel, lengthscale = ChargeKernel(name, x), torch.tensor(1.3)
    features = kernel.features.reshape(4, 3, -1)
    seen = np.array([[vectors(name, a, i) for i in range(3)] for a in x])
    seen /= np.sqrt(np.square(seen).mean((0, 1, 3), keepdims=True)).swapaxes(2, 3).reshape(-1, 1)

    def gram(length: float) -> np.ndarray:
        expected = np.zeros((4, 3, 4, 3))
        for (n, i), (m, j) in product(product(range(4), range(3)), repeat=2):
            if x[n, i, 0] == x[m, j, 0]:
                alike = math.exp(-float((features[n, i] - features[m, j]).square().sum()) / 2 / length**2)
                expected[n, :, m] += alike * seen[n, i].T @ seen[m, j]
        return expected.reshape(12, 12)

    expected = gram(1.3) / gram(1.0).diagonal().mean()
    np.testing.assert_allclose(kernel.gram(lengthscale).numpy(), expected, atol=1e-9)
    cross, own = kernel.cross(kernel.compared(x), lengthscale)
    torch.testing.assert_close(cross, kernel.gram(lengthscale))
    torch.testing.assert_close(own, torch.stack([cross[3 * n : 3 * n + 3, 3 * n : 3 * n + 3] for n in range(4)]))


def test_rigid_molecules_have_one_charge_for_each_element():
    water = torch.tensor([[[8.0, 0, 0, 0], [1, 0.8, 0.6, 0], [1, -0.8, 0.6, 0]]])
    x = torch.cat([moved(water, *motion("E3", seed)) for seed in range(5)])
    kernel = ChargeKernel("E3", x)
    assert float(kernel.squares.max()) == 0
    assert int(torch.linalg.matrix_rank(kernel.gram(torch.tensor(1.0)))) == 1  # places from the middle add up to zero
    hydrogen = ChargeKernel("E3", x[:, 1:])
    assert float(hydrogen.gram(torch.tensor(1.0)).abs().max()) == 0  # no dipole, and no rounding in its place


def test_process_is_that_of_a_gaussian_vector(free):
    h = found(free)["E3"]
    kernel, targets = h.prepare(free)
    log_joint = LogJoint(h.model, (kernel, targets))
    covariance = (3.0 * kernel.gram(torch.tensor(2.0)) + 1.1e-3 * torch.eye(90)).numpy()
    expected = stats.multivariate_normal(cov=covariance).logpdf(targets.flatten().numpy())
    assert float(log_joint.terms(log_joint.pack({k: float(v) for k, v in SITES.items()}))[1]) == pytest.approx(expected)
    process = ENTRY.process(kernel, targets, SITES)
    mean, left_over = process.leave_one_out(targets)
    rest, one = np.delete(np.arange(90), [6, 7, 8]), slice(6, 9)
    weights = covariance[one][:, rest] @ np.linalg.inv(covariance[rest][:, rest])
    np.testing.assert_allclose(mean[2].numpy(), weights @ targets.flatten().numpy()[rest], atol=1e-8)
    left = covariance[one, one] - weights @ covariance[rest][:, one]
    np.testing.assert_allclose(left_over[2].numpy(), left, atol=1e-8)
    site = {"fn": process, "value": targets, "mask": None}
    at_truth = stats.multivariate_normal(mean[2].numpy(), left).logpdf(targets[2].numpy())
    assert float(pointwise(site)[2]) == pytest.approx(at_truth)
    one_variance = left_over.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).sqrt()
    alike = torch.distributions.Normal(mean, one_variance).log_prob(targets).sum(1)
    assert float((pointwise(site) - alike).abs().max()) > 1  # as if coordinates were independent
    null = VectorProcess(None, torch.zeros(()), torch.tensor(0.5), (30, 3))
    expected = stats.norm(0, math.sqrt(0.5)).logpdf(targets.numpy()).sum(1)
    np.testing.assert_allclose(pointwise(site | {"fn": null}).numpy(), expected)


def test_draws_have_the_covariance(free):
    """Sum of squares of whitened draws is chi-squared; alpha = 1e-4, two-sided."""
    kernel, targets = found(free)["E3"].prepare(free)
    process = ENTRY.process(kernel, targets, SITES)
    torch.manual_seed(0)
    draws = process.sample([50])
    assert draws.shape == (50, 30, 3)
    white = torch.linalg.solve_triangular(process._cholesky, draws.reshape(50, 90).T, upper=False)
    share = stats.chi2(50 * 90).cdf(float(white.square().sum()))
    assert ALPHA / 2 < share < 1 - ALPHA / 2
    null = VectorProcess(None, torch.zeros(()), torch.tensor(0.5), (30, 3))
    assert null.sample([2]).shape == (2, 30, 3)


def test_densities_of_new_dipoles(free, monkeypatch):
    h = found(free)["T-SO2"]
    args, truth = h.prepare(free), free.encode(free.y_test)
    mean, covariance = ENTRY.moments(args, [SITES], free.x_test)
    logs = h.log_density(args, [SITES], free.x_test, truth)
    expected = stats.multivariate_normal(mean[0, 3].numpy(), covariance[0, 3].numpy()).logpdf(truth[3].numpy())
    assert float(logs[0, 3]) == pytest.approx(expected)
    monkeypatch.setattr(ENTRY, "BLOCK", 8 * 3 * args[0].width)  # of three molecules each
    torch.testing.assert_close(ENTRY.moments(args, [SITES], free.x_test), (mean, covariance))
    variance = h.predict(args, [SITES], free.x_test)[1]
    assert float(variance[0, 3]) == pytest.approx(np.trace(covariance[0, 3].numpy()) / 3)


@pytest.mark.parametrize("planted", ENTRY.PLANTED)
def test_planted_symmetry_has_the_largest_likelihood(planted):
    data, top = ENTRY.data(planted, seed=3, size=60, test=0), {}
    for label, h in found(data).items():
        log_joint = LogJoint(h.model, h.prepare(data))
        sites = [{"lengthscale": l, "variance": v, "noise": 1e-3} for l, v in ((3.0, 5.0), (8.0, 60.0))]  # noqa: E741
        top[label] = max(float(log_joint.terms(log_joint.pack({k: s[k] for k in h.priors}))[1]) for s in sites)
    truth = top.pop(SELECTED[planted])
    assert truth - max(top.values()) > 5


def test_data_that_are_no_dipoles_are_refused(free):
    scalar = from_arrays("mine", free.x.numpy(), free.y[:, 0].numpy(), kind="points")
    with pytest.raises(BadInput, match=r"y_train: got values of shape \(\); floats of shape \(3,\)"):
        ENTRY.hypotheses(scalar)
    flat = from_arrays("mine", free.x[..., 1:].numpy(), free.y.numpy(), kind="points")
    with pytest.raises(BadInput, match="atoms have 4"):
        ENTRY.hypotheses(flat)
    new = free.x_test.clone()
    new[0, 0, 0] = 7.0
    with pytest.raises(BadInput, match="got nuclear charges 7; the molecules of the run have 1, 8"):
        ChargeKernel("E3", free.x).compared(new)
    with pytest.raises(BadInput, match="x_test: got nuclear charges 7; the molecules of the run have 1, 8"):
        ENTRY.hypotheses(replace(free, x_test=new))


@pytest.mark.slow
@pytest.mark.parametrize("planted", SELECTED)
def test_planted_symmetry_is_selected(planted):
    run = select(ENTRY.data(planted, seed=1, size=150), "dipoles", jobs=1)
    assert run.best.label == SELECTED[planted]
    held = {symmetry for symmetry, verdict in run.verdicts.items() if verdict.verdict == "supported"}
    assert held == set(ENTRY.CHAIN[: ENTRY.CHAIN.index(planted) + 1] if planted != "none" else ())
    assert len(ENTRY.components(run).lines) == 4


def water(kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Molecules `[N, P, 4]` in random poses (published ones are nearly aligned) and dipoles `[N, 3]`, atomic units."""
    if not WATER.is_file():
        pytest.skip("PYRO_INVARIANCE_DATA names no folder with water_tensors.npz")
    rng = np.random.default_rng(0)
    with np.load(WATER) as arrays:
        order = rng.permutation(1000)[:count]
        r, y = (arrays[f"{kind}_{name}"][order].astype(float) for name in ("positions", "dipole"))
        charge = np.broadcast_to(arrays[f"{kind}_atomic_numbers"].astype(float)[:, None], (*r.shape[:2], 1))
    turn = stats.special_ortho_group(3, seed=rng).rvs(count)
    r = (r - r.mean(1, keepdims=True)) @ turn.transpose(0, 2, 1) + rng.standard_normal((count, 1, 3))
    return np.concatenate([charge, r], -1), np.einsum("nij,nj->ni", turn, y)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("monomer", 0.01), ("dimer", 0.06)])
def test_dipoles_of_real_water_turn_along(kind, most):
    """Root mean square error of new dipoles, as a share of theirs, from 150."""
    x, y = water(kind, 450)
    run = select(from_arrays(kind, x[:150], y[:150], x[150:], y[150:], kind="points"), "dipoles", jobs=1)
    assert run.best.label == "E3"
    assert {v.verdict for v in run.verdicts.values()} == {"supported"}
    assert run.test_scores(run.best)["rmse"] < most * float(np.sqrt(np.square(y[150:]).mean()))
    turn = (
        torch.as_tensor(stats.special_ortho_group.rvs(3, random_state=0))
        @ torch.diag(torch.tensor([1.0, 1, -1])).double()
    )
    moved = run.data.x_test.clone()
    moved[..., 1:] = moved[..., 1:] @ turn.T + 5.0
    wanted = run.predict(run.data.x_test) @ turn.T
    torch.testing.assert_close(run.predict(moved), wanted, rtol=0, atol=1e-6)
    trivial = next(f.label for f in run.fits if f.name == "trivial")  # a mutant, that does not turn along
    assert float((run.predict(moved, trivial) - wanted).abs().max()) > 0.1
