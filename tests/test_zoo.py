"""Every entry of the zoo keeps the contract: nothing is left out, priors are proper, bases have their own trivial."""

import functools
import inspect
import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch.distributions import biject_to

from pyro_invariance import models, zoo
from pyro_invariance.datasets import Dataset
from pyro_invariance.evidence.base import LogJoint
from pyro_invariance.processes import GaussianProcess
from pyro_invariance.typing import BadInput
from pyro_invariance.zoo import Card, Extent, Hypothesis

# Torch scripts its forward-mode decompositions the first time that they are asked for, and deprecates its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = zoo.names()
BROKEN = "none"  # the planted case whose symmetry is broken
UNITS = {"rad", "grid", "log", "level"}
KINDS = {"null", "none", "convolution", "group", "augmentation", "composition"}


def small(entry: ModuleType, planted: str = BROKEN, seed: int = 0) -> Dataset:
    return entry.data(planted, seed=seed, size=24, test=4)


def function(entry: ModuleType, name: str) -> object:
    """A part of an entry, or the function that it is made of with `functools.partial`; None if it is neither."""
    found = getattr(entry, name, None)
    found = found.func if isinstance(found, functools.partial) else found
    return found if inspect.isfunction(found) else None


def missing_parts(entry: ModuleType) -> list[str]:
    """Name the parts of the contract that an entry lacks, without running its models."""
    missing = []
    name = entry.__name__.rpartition(".")[2]
    text = entry.__doc__ or ""
    missing += [
        f"docstring: {word}" for word in ("Generative process", "Limitations", "References") if word not in text
    ]
    if " ~ " not in text:
        missing.append("docstring: sampling notation")
    for part in ("data", "model", "hypotheses"):
        if not function(entry, part):
            missing.append(part)
    if not any(function(entry, part) for part in ("predict", "log_density")):
        missing.append("predict or log_density")
    for part in ("data", "model", "hypotheses"):
        if not inspect.getdoc(function(entry, part)):
            missing.append(f"{part}: docstring")
    planted = getattr(entry, "PLANTED", {})
    if BROKEN not in planted:
        missing.append("PLANTED: a falsification case")
    if len(planted) < 2:
        missing.append("PLANTED: a case whose truth is known")
    card = getattr(entry, "CARD", None)
    if not isinstance(card, Card):
        return [*missing, "CARD"]
    if card.name != name:
        missing.append("CARD: name")
    missing += [f"CARD: {field}" for field, value in vars(card).items() if not value]
    missing += [f"docstring: [{key}]" for key in card.references if f"[{key}]" not in text]
    return missing


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_has_every_part(name):
    assert missing_parts(zoo.load(name)) == []


def test_entries_are_the_files_of_the_folder():
    files = {p.stem for p in (ROOT / "models").glob("*.py") if not p.stem.startswith("_")}
    assert set(ENTRIES) == files
    assert len(ENTRIES) >= 1
    assert sorted(ENTRIES) == ENTRIES
    assert Path(models.__path__[0]).resolve() == ROOT / "models"


def test_unknown_entry_is_refused():
    with pytest.raises(BadInput, match=r"model: got 'orbitgp', did you mean 'orbit_gp'\?"):
        zoo.load("orbitgp")
    with pytest.raises(BadInput, match="accepted: "):
        zoo.load("os")
    with pytest.raises(BadInput):
        zoo.load("__init__")


PARTS = ["CARD", "data", "model", "hypotheses", "predict or log_density", "PLANTED", "__doc__"]


def without(name: str, part: str) -> ModuleType:
    """Return a copy of an entry that lacks one part."""
    whole = zoo.load(name)
    copy = ModuleType(whole.__name__)
    vars(copy).update({k: v for k, v in vars(whole).items() if k not in part.split(" or ")})
    if part == "__doc__":
        copy.__doc__ = "An entry."
    return copy


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ENTRIES)
def test_entry_that_lacks_a_part_is_reported(name, part):
    reports = missing_parts(without(name, part))
    assert reports
    word = "docstring" if part == "__doc__" else part
    assert any(word in report for report in reports)


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_without_a_falsification_case_is_reported(name):
    copy = without(name, "PLANTED")
    copy.PLANTED = {k: v for k, v in zoo.load(name).PLANTED.items() if k != BROKEN}
    assert missing_parts(copy) == ["PLANTED: a falsification case"]


@pytest.fixture(scope="session", params=ENTRIES)
def entry(request: pytest.FixtureRequest, float64: None) -> ModuleType:
    return zoo.load(request.param)


@pytest.fixture(scope="session")
def data(entry: ModuleType) -> Dataset:
    made = small(entry)
    return made.halved(0) if any(h.learn for h in entry.hypotheses(made)) else made


def made(entry: ModuleType, data: Dataset, **options: float) -> list[Hypothesis]:
    """Hypotheses with their parameters learned a little: nothing here is about how well."""
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(getattr(entry, "STEPS", None), int):
            patch.setattr(entry, "STEPS", 20)
        return [h.given(h.learn(data, 0)) if h.learn else h for h in entry.hypotheses(data, **options)]


@pytest.fixture(scope="session")
def hypotheses(entry: ModuleType, data: Dataset) -> list[Hypothesis]:
    return made(entry, data)


def latent(hypothesis: Hypothesis, data: Dataset) -> dict[str, dict]:
    trace = prune_subsample_sites(poutine.trace(hypothesis.model).get_trace(*hypothesis.prepare(data)))
    return {name: trace.nodes[name] for name in trace.stochastic_nodes}


def test_card_names_the_hypotheses(entry, hypotheses):
    assert tuple(dict.fromkeys(h.name for h in hypotheses)) == entry.CARD.hypotheses
    labels = [h.label for h in hypotheses]
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[\w-]+", label) for label in labels)  # they become file names


def test_card_names_the_sites(entry, hypotheses, data):
    found = set().union(*(latent(h, data).keys() for h in hypotheses))
    named = {site for key in entry.CARD.sites for site in re.split(r"[|,\s]+", key)}
    assert named == found
    assert all(re.fullmatch(r"\[.*\].*", shape) for shape in entry.CARD.sites.values())


def test_card_references_are_in_the_bibliography(entry):
    keys = re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(entry.CARD.references) <= set(keys)


def missing_trivials(hypotheses: list[Hypothesis]) -> list[str]:
    """Name the bases whose symmetries have nothing without them to be compared with."""
    bases = {h.base for h in hypotheses if h.kind != "null" and not h.parts}  # a sum stands in no contrast
    return sorted(bases - {h.base for h in hypotheses if h.kind == "none"})


def test_each_base_has_its_own_trivial(hypotheses):
    assert missing_trivials(hypotheses) == []
    for h in hypotheses:
        assert h.kind in KINDS
        if h.kind in ("null", "none"):
            assert (set(h.contains), set(h.saturated), dict(h.extents)) == (set(), set(), {})
        elif h.parts:
            assert (set(h.contains), set(h.saturated)) == (set(), set())
        else:
            assert h.contains
    assert [h.base for h in hypotheses if h.kind == "null"] == ["none"]


def test_base_without_its_trivial_is_reported(hypotheses):
    trivial = next(h for h in hypotheses if h.name == "trivial")
    assert missing_trivials([h for h in hypotheses if h is not trivial]) == [trivial.base]


def check_proper(name: str, fn: dist.Distribution) -> None:
    """Raise unless a prior is continuous and its density integrates to one."""
    assert not fn.has_enumerate_support, name
    assert fn.event_shape == torch.Size(), name
    transform = biject_to(fn.support)
    z = torch.linspace(-40, 40, 20_001)
    x = transform(z)
    logs = fn.log_prob(x) + transform.log_abs_det_jacobian(z, x)
    assert float(torch.trapezoid(logs.exp(), z)) == pytest.approx(1.0, abs=1e-3), name


def test_priors_are_continuous_proper_and_equal_where_shared(hypotheses, data):
    words = {}
    for h in hypotheses:
        sites = latent(h, data)
        assert sites.keys() == h.priors.keys()
        for name, site in sites.items():
            check_proper(f"{h.label}: {name}", site["fn"])
            if name not in h.extents:
                assert words.setdefault(name, h.priors[name]) == h.priors[name]


@pytest.mark.parametrize(
    "prior",
    [
        dist.Bernoulli(0.5),
        dist.ImproperUniform(dist.constraints.positive, torch.Size(), torch.Size()),
        dist.LogNormal(0.0, 1.0).mask(False),
        dist.Uniform(torch.tensor([0.0]), torch.tensor([1.0])).to_event(1),
    ],
    ids=["discrete", "improper", "masked", "vector"],
)
def test_bad_priors_are_reported(prior):
    with pytest.raises((AssertionError, NotImplementedError)):
        check_proper("site", prior)


def test_wider_priors_are_told(entry, data, hypotheses):
    wide = made(entry, data, scale=2.0)
    for a, b in zip(hypotheses, wide, strict=True):
        for name, site in latent(b, data).items():
            narrow = latent(a, data)[name]["fn"]
            if name in a.extents:
                assert a.priors[name] == b.priors[name]
            else:
                assert float(site["fn"].scale) == pytest.approx(2 * float(narrow.scale))
                assert a.priors[name] != b.priors[name]


def test_exactly_the_targets_are_observed(hypotheses, data):
    """The targets, or of a density what it makes of the inputs: the same for all hypotheses."""
    seen = []
    for h in hypotheses:
        trace = poutine.trace(h.model).get_trace(*h.prepare(data))
        observed = [trace.nodes[name] for name in trace.observation_nodes]
        assert len(observed) == 1
        seen.append(observed[0]["value"])
        assert torch.equal(seen[-1], seen[0] if h.density else data.targets)
        assert seen[-1].dtype == torch.float64
        assert len(seen[-1]) == len(data.y)
    assert len({h.density for h in hypotheses}) == 1


def test_starts_give_every_site_a_value_inside_its_support(hypotheses, data):
    for h in hypotheses:
        log_joint = LogJoint(h.model, h.prepare(data))
        assert len(h.starts) >= 1
        for start in h.starts:
            assert start.keys() == log_joint.transforms.keys()
            z = log_joint.pack(dict(start))
            assert bool(z.isfinite().all()), h.label
            terms = log_joint.terms(z)
            assert all(math.isfinite(float(t)) for t in terms), h.label
        for name, extent in h.extents.items():
            begun = [start[name] for start in h.starts]
            assert 0 < min(begun) < max(begun) < extent.upper  # narrow and wide, never at zero


def test_extents_are_sites_with_units(hypotheses, data):
    for h in hypotheses:
        sites = latent(h, data)
        assert (h.kind == "augmentation") <= bool(h.extents)
        for name, extent in h.extents.items():
            assert isinstance(extent, Extent)
            assert extent.unit in UNITS
            assert 0 < extent.resolution < extent.reach <= extent.upper
            assert extent.generator
            support = sites[name]["fn"].support
            assert (float(support.lower_bound), float(support.upper_bound)) == (0.0, pytest.approx(extent.upper))
        assert not h.saturated or any(e.whole for e in h.extents.values())


def test_evidence_has_a_gradient_in_every_site(hypotheses, data):
    for h in hypotheses:
        log_joint = LogJoint(h.model, h.prepare(data))
        z = log_joint.pack(dict(h.starts[-1])).requires_grad_()
        (gradient,) = torch.autograd.grad(log_joint.terms(z)[1], z)
        assert bool(gradient.isfinite().all())
        for name, part in log_joint.slices.items():
            assert bool((gradient[part] != 0).all()), f"{h.label}: {name}"


def test_predictions_have_the_stated_shapes(hypotheses, data):
    for h in hypotheses:
        args = h.prepare(data)
        draws = [{k: torch.as_tensor(v) for k, v in start.items()} for start in h.starts]
        if h.log_density:
            logs = h.log_density(args, draws, data.x_test, data.encode(data.y_test))
            assert logs.shape == (len(draws), 4), h.label
            assert bool(logs.isfinite().all())
            again = h.log_density(args, draws[:1], data.x_test[2:], data.encode(data.y_test[2:]))
            torch.testing.assert_close(again[0], logs[0, 2:])
        if h.predict is None:
            assert h.log_density
            continue
        mean, variance = h.predict(args, draws, data.x_test)
        assert mean.shape == (len(draws), 4, data.targets.shape[1]), h.label
        assert variance.shape == (len(draws), 4), h.label
        assert mean.dtype == variance.dtype == torch.float64
        assert bool(mean.isfinite().all())
        assert bool((variance > 0).all())
        again, _ = h.predict(args, draws[:1], data.x_test[2:])
        torch.testing.assert_close(again[0], mean[0, 2:])


def test_memory_grows_with_the_data(entry, hypotheses, data):
    more = entry.data(BROKEN, size=48, test=4)
    larger = {h.label: h.memory(more) for h in entry.hypotheses(more)}
    for h in hypotheses:
        if h.kind == "null":
            assert h.memory(data) == 0
        else:
            assert 0 < h.memory(data) < larger[h.label] < 1e9


def test_entry_refuses_data_that_it_does_not_take(entry, data):
    kind = "series" if entry.CARD.kind == "points" else "points"
    other = replace(data, name="mine", kind=kind)
    with pytest.raises(BadInput, match=rf"'mine' holds {kind}"):
        entry.hypotheses(other)
    with pytest.raises(BadInput, match=r"planted: got 'nones'.*did you mean 'none'"):
        entry.data("nones")


def test_planted_data_are_finite_and_depend_on_the_seed_only(entry):
    assert inspect.signature(entry.data).parameters["planted"].default in entry.PLANTED
    seen = set()
    for planted in entry.PLANTED:
        one, again, other = (small(entry, planted, seed) for seed in (0, 0, 1))
        for tensor in (one.x, one.y, one.x_test, one.y_test):
            assert bool(tensor.isfinite().all())
            assert tensor.dtype == torch.float64
        assert (len(one.y), len(one.y_test), one.total) == (24, 4, 24)
        assert one.sha256 == again.sha256 != other.sha256
        assert torch.equal(one.x, again.x)
        assert planted in one.name
        seen.add(one.sha256)
    assert len(seen) == len(entry.PLANTED)


def test_planted_data_do_not_depend_on_the_default_dtype(entry):
    one = small(entry)
    torch.set_default_dtype(torch.float32)
    assert small(entry).sha256 == one.sha256


@pytest.mark.parametrize("planted", ["mirror", "C4", "SO2", "translation"])
def test_planted_symmetry_is_in_the_values(planted):
    """With the hyperparameters that the data were drawn with, the truth beats its trivial; once broken, it loses."""
    entry = zoo.load("orbit_gp")
    gaps = {}
    for truth in (planted, BROKEN):
        data = entry.data(truth, seed=1, size=100, test=0)
        found = {h.label: h for h in entry.hypotheses(data)}
        symmetric = found[planted]
        densities = []
        for h in (symmetric, found[f"trivial-{symmetric.base}"]):
            kernel, _ = h.prepare(data)
            extents = entry.PLANTED[planted][1] if h is symmetric else {}
            gram = kernel.gram(torch.tensor(0.7), *(torch.tensor(extents[k]) for k in h.extents))
            process = GaussianProcess(gram, torch.tensor(1.0), torch.tensor(0.01), (100, 1))
            densities.append(float(process.log_prob(data.y[:, None])))
        gaps[truth] = densities[0] - densities[1]
    assert gaps[planted] > 0
    assert gaps[BROKEN] < 0


def test_hypotheses_are_labelled_apart():
    def made(name: str, base: str) -> Hypothesis:
        return Hypothesis(name=name, kind="none", base=base, model=pyro.sample, prepare=lambda data: (), starts=({},))

    assert made("trivial", "polar").label == "trivial-polar"
    assert made("mirror", "polar").label == "mirror"
    assert made("mine", "own").memory(None) == 0
