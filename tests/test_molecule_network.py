"""Learned features of molecules are invariant where they say so; the evidence refuses to be shown coordinates."""

from functools import partial

import numpy as np
import pytest
import torch
from real_molecules import qm7
from scipy.spatial.transform import Rotation
from torch import Tensor

from pyro_invariance.datasets import from_arrays
from pyro_invariance.fitting import fit
from pyro_invariance.molecular import FeatureKernel
from pyro_invariance.numerics import float64 as precisely
from pyro_invariance.selection import select
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import load

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ENTRY = load("molecule_network")
GROUPS = ("trivial", "T", "T-SO2", "E3")  # each larger than those before it
ELEMENTS = torch.tensor([1.0, 6.0, 8.0])


@pytest.fixture(scope="module")
def x(float64: None) -> Tensor:
    return ENTRY.data(size=20, test=0).x


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return ENTRY.Network(name, ELEMENTS.double())


def moved(x: Tensor, group: str) -> Tensor:
    """Molecules under one element of a subgroup: the last is a turn with a mirror."""
    matrix = {"E3": -Rotation.random(random_state=1).as_matrix(), "T-SO2": Rotation.from_euler("z", 1.1).as_matrix()}
    shift = torch.tensor([0.3, -1.2, 0.7]) * (group != "trivial")
    positions = x[..., 1:] @ torch.as_tensor(matrix.get(group, np.eye(3))).mT + shift
    return torch.cat([x[..., :1], positions * (x[..., :1] > 0)], -1)


def changes(features: Tensor, others: Tensor) -> float:
    return float((others - features).abs().max() / features.std())


def held(found: "partial[Tensor]", x: Tensor) -> list[str]:
    """Subgroups, in order, that leave features alone."""
    return [group for group in GROUPS if changes(found(x), found(moved(x, group))) < 1e-10]


@torch.no_grad()
@pytest.mark.parametrize("name", GROUPS)
def test_features_are_invariant_under_the_subgroup_and_not_under_more(x, name):
    assert held(network(name).features, x) == list(GROUPS[: GROUPS.index(name) + 1])


@torch.no_grad()
def test_mutant_that_reads_coordinates_is_found_out(x):
    mutant = network("E3")
    torch.manual_seed(1)
    mutant.layers[1] = ENTRY.Messages("T-SO2").double()
    assert held(mutant.features, x) == ["trivial", "T", "T-SO2"]


@torch.no_grad()
@pytest.mark.parametrize("name", GROUPS)
def test_order_of_atoms_and_empty_places_do_not_matter(x, name):
    found = network(name).features
    padded = torch.cat([x, torch.zeros(20, 2, 4)], 1)[:, [3, 9, 0, 5, 2, 8, 4, 1, 6, 7]]
    assert changes(found(x), found(padded)) < 1e-10
    alone = torch.cat([found(one) for one in x.split(1)])
    assert changes(found(x), alone) < 1e-10


@torch.no_grad()
def test_messages_are_those_of_the_equations(x):
    """Against loops over the atoms of one molecule."""
    layer, molecule = network("T-SO2").layers[0], x[1][x[1, :, 0] > 0]
    count = len(molecule)
    h, r = torch.randn(count, ENTRY.HIDDEN), molecule[:, 1:]
    edges = torch.tensor([[i, j] for i in range(count) for j in range(count) if i != j]).T
    features, positions = layer(h, r, edges, torch.full((count, 1), 1 / count))
    lengths, along = ENTRY.LENGTHS, ENTRY.STEPS_ALONG
    for i in range(count):
        total, shift = torch.zeros(ENTRY.HIDDEN), torch.zeros(3)
        for j in range(count):
            if i != j:
                d = r[i] - r[j]
                across = (-0.5 * ((d[:2].norm().log() - lengths) / (lengths[1] - lengths[0])) ** 2).exp()
                height = (-0.5 * ((d[2] - along) / (along[1] - along[0])) ** 2).exp()
                m = layer.message(torch.cat([h[i], h[j], across, height]))
                total, shift = total + m, shift + d * layer.step(m)
        torch.testing.assert_close(features[i], h[i] + layer.update(torch.cat([h[i], total])))
        torch.testing.assert_close(positions[i], r[i] + shift / count)


@torch.no_grad()
def test_kernel_has_the_mean_distance_as_its_unit(x):
    kernel = network("E3").kernel(x)
    assert isinstance(kernel, FeatureKernel)
    assert float(kernel.squares.mean()) == pytest.approx(1.0)
    cross, prior = kernel.cross(kernel.compared(x), torch.tensor(0.7))
    torch.testing.assert_close(cross, kernel.gram(torch.tensor(0.7)))
    assert bool((prior == 1).all())


def test_evidence_refuses_what_a_symmetry_ignores(monkeypatch):
    monkeypatch.setattr(ENTRY, "STEPS", 30)
    data = ENTRY.data(size=160, test=4).halved(0)
    with precisely():
        fits = {h.label: fit(h, data) for h in ENTRY.hypotheses(data) if h.label in ("E3", "trivial-network", "null")}
    found = {label: f.evidence.value for label, f in fits.items()}
    assert found["E3"] - max(found["trivial-network"], found["null"]) > 5
    assert set(fits["E3"].learned) == set(network("E3").state_dict())


def test_data_that_are_no_molecules_are_refused(x):
    flat = from_arrays("flat", x[..., 1:].numpy(), np.arange(20.0), kind="points")
    with pytest.raises(BadInput, match="x_train: got points of 3 numbers; atoms have 4"):
        ENTRY.hypotheses(flat)
    series = from_arrays("series", x[..., 1].numpy(), np.arange(20.0), kind="series")
    with pytest.raises(BadInput, match="'series' holds series; molecule_network takes points"):
        ENTRY.hypotheses(series)
    with pytest.raises(BadInput, match="planted: got 'SE3'"):
        ENTRY.data("SE3")
    other = x.clone()
    other[0, 0, 0] = 7.0
    with pytest.raises(BadInput, match="x: got nuclear charges 7; the molecules of the run have 1, 6, 8"):
        network("E3").kernel(x).compared(other)
    three = from_arrays("three", x[:3].numpy(), np.arange(3.0), kind="points").halved(0)
    with pytest.raises(BadInput, match="y_train: got 1 equal energies"):
        ENTRY.learn("E3", three, 0)
    data = from_arrays("mine", x.numpy(), np.arange(20.0), other.numpy(), np.arange(20.0), kind="points")
    with pytest.raises(BadInput, match="x_test: got nuclear charges 7"):
        ENTRY.hypotheses(data)


def test_no_hypothesis_is_credited_with_mirrors(x):
    data = from_arrays("mine", x.numpy(), np.arange(20.0), kind="points")
    assert {symmetry for h in ENTRY.hypotheses(data) for symmetry in h.contains} == {"T", "T-SO2", "SE3"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("planted", ENTRY.PLANTED)
def test_planted_symmetry_is_selected(planted, seed):
    run = select(ENTRY.data(planted, seed, test=0), "molecule_network", seed=seed, jobs=1)
    assert run.best.label == ("trivial-network" if planted == "none" else planted)
    assert {name for name, v in run.verdicts.items() if v.verdict == "supported"} == set(ENTRY.CHAIN.get(planted, ()))


@pytest.mark.slow
def test_evidence_of_real_molecules_refuses_what_turns_ignore():
    """150 molecules for the network and 150 for the evidence."""
    x, y = qm7(300)
    data = from_arrays("qm7", x, y, kind="points").halved(0)
    with precisely():
        found = {h.label: fit(h, data).evidence.value for h in ENTRY.hypotheses(data) if h.label in ("E3", "T-SO2")}
    assert found["E3"] - found["T-SO2"] > 50
