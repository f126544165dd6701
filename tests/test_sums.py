"""A sum of priors: its kernel is the sum of single kernels, its shares find what was planted, its climb is kept."""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from pyro import poutine

from pyro_invariance import plotting, zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.fitting import _shares
from pyro_invariance.kernels import BLOCK
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.report import report, sentences
from pyro_invariance.results import Selection, load
from pyro_invariance.selection import select
from pyro_invariance.sums import SumKernel, composition
from pyro_invariance.typing import BadInput
from pyro_invariance.verdict import of_sums
from pyro_invariance.zoo import Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

LABELS = ["trivial-polar", "mirror", "C4", "rotation", "translation", "convolution"]
SCALES = torch.tensor([0.3, 0.9, 0.2, 0.7, 0.5, 0.4], dtype=torch.float64)
EXTENTS = {"rotation": 0.8, "rows": 0.3, "columns": 0.2, "location": 0.6}
LENGTHSCALE = 0.7


@pytest.fixture(scope="module")
def data(float64: None) -> Dataset:
    return zoo.load("orbit_gp").data("mirror", size=12, test=5, side=8)


@pytest.fixture(scope="module")
def parts(data: Dataset) -> list[Hypothesis]:
    found = {h.label: h for h in zoo.load("orbit_gp").hypotheses(data)}
    return [found[label] for label in LABELS]


@pytest.fixture(scope="module")
def kernel(parts: list[Hypothesis], data: Dataset) -> SumKernel:
    return composition(parts).prepare(data)[0]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sum") / "run"


@pytest.fixture(scope="module")
def summed(kept: Path, float64: None) -> Selection:
    planted = zoo.load("orbit_gp").data("mirror", size=101, test=4, side=8)
    return select(planted, hypotheses=["composition"], seed=0, out=kept, jobs=1)


def point() -> list[torch.Tensor]:
    return [torch.tensor(LENGTHSCALE), *SCALES, *(torch.tensor(v) for v in EXTENTS.values())]


def expected(parts: list[Hypothesis], data: Dataset) -> torch.Tensor:
    """Sum the Gram matrices of the single kernels, each at its own extents."""
    total = torch.zeros(len(data.x), len(data.x))
    for part, s in zip(parts, SCALES, strict=True):
        total += s**2 * part.prepare(data)[0].gram(
            torch.tensor(LENGTHSCALE), *(torch.tensor(EXTENTS[k]) for k in part.extents)
        )
    return total


def check_sum(kernel: SumKernel, parts: list[Hypothesis], data: Dataset) -> None:
    """Raise unless a kernel is the sum of the single ones, whether a gradient is wanted or not."""
    torch.testing.assert_close(kernel.gram(*point()), expected(parts, data), rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(kernel.gram(*point()), expected(parts, data), rtol=0, atol=1e-12)


class Mixed(SumKernel):
    """Gives two kernels each other's scale."""

    def _points(self, lengthscale, hyperparameters):
        first, second, *rest = hyperparameters
        return super()._points(lengthscale, [second, first, *rest])


class Turned(SumKernel):
    """Gives the extents of the columns to the rows."""

    def _points(self, lengthscale, hyperparameters):
        *before, rows, columns, last = hyperparameters
        return super()._points(lengthscale, [*before, columns, rows, last])


class Unsquared(SumKernel):
    """Takes scales for variances."""

    def _points(self, lengthscale, hyperparameters):
        return [(s.sqrt(), point) for s, point in super()._points(lengthscale, hyperparameters)]


def test_gram_is_the_sum_of_single_kernels(kernel, parts, data):
    check_sum(kernel, parts, data)


@pytest.mark.parametrize("mutant", [Mixed, Turned, Unsquared])
def test_kernel_that_mixes_scales_is_caught(mutant, kernel, parts, data):
    with pytest.raises(AssertionError):
        check_sum(mutant(kernel.kernels, kernel.ranges), parts, data)


def test_gradients_agree_with_finite_differences(kernel):
    inputs = [t.clone().requires_grad_() for t in point()]
    assert torch.autograd.gradcheck(kernel.gram, inputs, atol=1e-7)
    some = kernel.compared(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.autograd.gradcheck(lambda *p: kernel.cross(some, *p), inputs, atol=1e-7)


def test_cross_agrees_with_gram(kernel, data):
    covariance, variance = kernel.cross(kernel.compared(data.x), *point())
    gram = kernel.gram(*point())
    torch.testing.assert_close(covariance, gram, rtol=0, atol=1e-10)
    torch.testing.assert_close(variance, gram.diagonal(), rtol=0, atol=1e-10)
    assert kernel.width == sum(k.width for k in kernel.kernels)


def test_scales_are_standard_deviations_over_the_images(kernel, parts):
    assert float(kernel.gram(*point()).diagonal().mean()) == pytest.approx(float(SCALES.square().sum()))
    h = composition(parts)
    shares = h.shares(dict(zip(h.parts, SCALES, strict=True)))
    assert list(shares) == LABELS
    assert [float(s) for s in shares.values()] == pytest.approx((SCALES**2 / SCALES.square().sum()).tolist())
    assert parts[0].shares({}) == {}  # of what is no sum


def test_model_is_that_of_the_sum(parts, data):
    h = composition(parts)
    args, start = h.prepare(data), h.starts[0]
    assert [start[name] for name in h.parts] == pytest.approx([6**-0.5] * 6)  # equal shares of one
    sites = start | dict(zip(h.parts, SCALES.tolist(), strict=True)) | EXTENTS | {"lengthscale": LENGTHSCALE}
    held = {name: torch.tensor(value) for name, value in sites.items()}
    trace = poutine.trace(poutine.condition(h.model, data=held)).get_trace(*args)
    process = GaussianProcess(
        expected(parts, data), torch.tensor(1.0), torch.tensor(1e-4 + start["noise"]), data.targets.shape
    )
    assert float(trace.nodes["targets"]["fn"].log_prob(data.targets)) == pytest.approx(
        float(process.log_prob(data.targets)), abs=1e-9
    )
    assert all(trace.nodes[name]["fn"].log_prob(torch.tensor(1e-9)).isfinite() for name in h.parts)  # mass at zero


@pytest.mark.parametrize("chosen", [[], [1], [1, 1], [3, 3]], ids=["none", "one", "twice", "one range twice"])
def test_bad_parts_are_refused(chosen, parts):
    with pytest.raises(BadInput, match="parts: got"):
        composition([parts[i] for i in chosen])
    if chosen == [3, 3]:
        with pytest.raises(BadInput, match="extents all differ"):
            composition([parts[3], replace(parts[3], name="another")])


def test_memory_is_that_of_all_tables(parts, data, kernel):
    tables = sum(k.distances.numel() * 8 for k in kernel.kernels)
    work = sum(80 * len(data.x) ** 2 for _ in parts) + 2 * BLOCK
    assert tables + work <= composition(parts).memory(data) <= 1.05 * (2 * tables + work)


def test_sums_run_when_asked_for_by_name(data):
    default = [h.label for h in zoo.choose(data, "orbit_gp", None)]
    assert "composition" not in default
    assert set(LABELS) < set(default)
    assert [h.label for h in zoo.choose(data, "orbit_gp", ["composition"])] == ["null", "composition"]
    assert "composition" not in [h.label for h in zoo.choose(data, "orbit_gp", ["rotation"])]


def test_a_sum_that_was_not_asked_for_is_not_missed(run):
    assert "composition" not in [h.label for h in run.omitted]
    assert plotting.pictures(run) == plotting.PICTURES
    assert of_sums(list(run.fits)) == []


def test_largest_share_is_what_was_planted(summed):
    shares = summed.best.shares
    assert next(iter(shares)) == "mirror"
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert max(share for label, share in shares.items() if label != "mirror") < 0.1
    assert set(shares) == {"trivial", *LABELS[1:]}


def test_a_sum_has_no_symmetry_of_its_own(summed):
    assert summed.best.label == "composition"
    assert (summed.best.contains, summed.best.claims) == (frozenset(), frozenset())
    assert summed.verdicts == {}
    assert sentences(summed) == [("sum", f"C{of_sums(list(summed.fits))[0][1:]}.")]


def test_climb_is_stored_and_drawn(summed, kept, tmp_path):
    again = load(kept)
    fit, h = again.best, next(h for h in again.hypotheses if h.parts)
    assert fit.positions.keys() == summed.best.positions.keys() == h.priors.keys()
    assert all(torch.equal(fit.positions[name], summed.best.positions[name]) for name in fit.positions)
    assert fit.shares == summed.best.shares
    axes = plotting.shares(again)
    drawn = [line.get_ydata() for line in axes.lines[::2]]
    for path, share in zip(drawn, h.shares(fit.positions).values(), strict=True):
        assert path == pytest.approx(share.numpy())
        assert path[0] == pytest.approx(1 / 6)  # equal at the start
    assert sum(path[-1] for path in drawn) == pytest.approx(1.0)
    plt.close("all")
    report(again, tmp_path)
    assert (tmp_path / "shares.png").is_file()
    assert 'alt="simulated-mirror: what is the function made of?' in (tmp_path / "report.html").read_text()


def test_climb_ends_at_the_mode(summed):
    """The last position is no worse than any other: likelihood and prior, seen anew."""
    fit = summed.best
    h = next(h for h in summed.hypotheses if h.parts)
    args, (first, last) = h.prepare(summed.data), (0, -1)
    densities = []
    for at in (first, last):
        held = {name: path[at] for name, path in fit.positions.items()}
        trace = poutine.trace(poutine.condition(h.model, data=held)).get_trace(*args)
        densities.append(float(trace.log_prob_sum()))
    assert densities[1] > densities[0] + 10


def test_words_of_a_sum(summed):
    whole, null = (next(f for f in summed.fits if f.label == label) for label in ("composition", "null"))
    single = replace(null, label="mirror", name="mirror", kind="group", evidence=replace(null.evidence, value=-90.0))
    said = of_sums([single, whole, null])[0]
    assert f"{-90.0 - whole.evidence.value:.1f} nats less than mirror; shares of its prior variance: mirror" in said
    assert "null was not fitted" in of_sums([whole])[0]
    noise = replace(null, evidence=replace(null.evidence, value=whole.evidence.value - 9.0))
    assert "mean nothing, because it beats noise alone by +9.0 nats only" in of_sums([whole, noise])[0]


def test_ranges_at_zero_count_as_trivial(summed, parts):
    h = next(h for h in summed.hypotheses if h.parts)
    fit = summed.best
    shut = {name: replace(r, zero=name in ("rows", "columns")) for name, r in fit.extents.items()}
    found = _shares(h, fit.draws, shut)
    assert "translation" not in found
    assert found["trivial"] == pytest.approx(fit.shares["trivial"] + fit.shares["translation"])
    assert sum(found.values()) == pytest.approx(1.0)
