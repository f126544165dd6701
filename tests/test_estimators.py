"""Every estimator on problems whose evidence is known: on its side, close, and wrong ones are caught."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_invariance import zoo
from pyro_invariance.evidence import Evidence, Problem, ais, annealed, bdmc, elbo, exact, iwae, laplace, psis, weights
from pyro_invariance.evidence.fitted import guided, negative_hessian
from pyro_invariance.evidence.importance import effective, jackknife, smooth
from pyro_invariance.evidence.laplace import maximise
from pyro_invariance.evidence.mapped import Mapped
from pyro_invariance.evidence.weights import weigh
from pyro_invariance.traces import observed
from pyro_invariance.typing import BadInput

ALPHA = 1e-4  # of each statistical check
Z = float(stats.norm.ppf(1 - ALPHA))
ROUNDING = 1e-6  # nats


@dataclass(frozen=True, eq=False)
class Regression:
    x: Tensor
    y: Tensor

    def __call__(self) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(self.x.shape[1]), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(self.x @ w, 0.5).to_event(1), obs=self.y)

    def log_evidence(self) -> Tensor:
        covariance = self.x @ self.x.T + 0.25 * torch.eye(len(self.y))
        return MultivariateNormal(torch.zeros(len(self.y)), covariance).log_prob(self.y)

    def posterior(self) -> tuple[Tensor, Tensor]:
        covariance = torch.linalg.inv(4 * self.x.T @ self.x + torch.eye(self.x.shape[1]))
        return 4 * covariance @ self.x.T @ self.y, covariance


@dataclass(frozen=True, eq=False)
class Clusters:
    """A cluster that is summed out, and a place in it."""

    y: Tensor

    def __call__(self) -> None:
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        z = pyro.sample("z", dist.Normal(torch.tensor([-1.0, 1.0])[k], 0.8))
        with pyro.plate("data", len(self.y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=self.y)

    def log_evidence(self) -> Tensor:
        covariance = 0.64 * torch.ones(len(self.y), len(self.y)) + torch.eye(len(self.y))
        each = [MultivariateNormal(m * torch.ones(len(self.y)), covariance).log_prob(self.y) for m in (-1.0, 1.0)]
        return (torch.tensor([0.3, 0.7]).log() + torch.stack(each)).logsumexp(0)


@dataclass(frozen=True, eq=False)
class Folded:
    """Two modes of unlike mass, evidence by quadrature."""

    y: Tensor

    def __call__(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.tensor(0.2), 1.0))
        pyro.sample("y", dist.Normal(z.square(), 0.3).expand(self.y.shape).to_event(1), obs=self.y)

    def log_evidence(self) -> Tensor:
        z = torch.linspace(-8, 8, 20_001)
        terms = dist.Normal(0.2, 1.0).log_prob(z) + dist.Normal(z.square()[:, None], 0.3).log_prob(self.y).sum(1)
        return terms.logsumexp(0) + (z[1] - z[0]).log()


def regression(size: int = 3, seed: int = 0) -> Regression:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(15, size, generator=generator)
    return Regression(x, x.sum(1) + 0.5 * torch.randn(15, generator=generator))


MODELS: dict[str, Callable[[], Any]] = {
    "one": lambda: regression(1),
    "three": regression,
    "clusters": lambda: Clusters(torch.tensor([-0.2, 0.4, 0.1])),
    "folded": lambda: Folded(torch.tensor([1.2, 0.9, 1.1])),
}
ESTIMATORS = {f.__name__: f for f in (elbo, iwae, psis, laplace, ais, bdmc)}


def of_simulated(model: Any, seed: int) -> Problem:
    """The same model of the data that `bdmc` draws."""
    simulated, _ = Problem(model).simulate(seed)
    return Problem(replace(model, y=observed(simulated.trace)["y"]["value"]))


def check(estimator: Callable[..., Evidence], model: Any, seed: int = 0, mode: float = 0.5) -> Evidence:
    """Raise unless an estimator is on its side, by z-tests; an estimate is close, a mode `mode` nats off at most."""
    name = estimator.__name__
    found = estimator(Problem(model), seed=seed)
    sandwich = found.upper is not None
    truth = exact(of_simulated(model, seed) if sandwich else Problem(model)).value
    over = found.value - truth
    if found.bound == "estimate":
        far = Z * found.std_error + (mode if found.std_error == 0 else ROUNDING)
        assert abs(over) < far, f"{name}: {found} is not {truth}"
    else:
        assert over < Z * found.std_error + ROUNDING, f"{name}: {found} is above {truth}"
    if sandwich:
        below = truth - found.upper
        assert below < Z * found.upper_error + ROUNDING, f"{name}: upper side {found.upper} is below {truth}"
    assert found.std_error < 0.1, f"{name}: {found} says nothing"
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_on_its_side(name, model):
    found = check(ESTIMATORS[name], MODELS[model](), mode=1.0)
    assert found.seconds > 0
    assert found.method.startswith(name)
    if name in ("elbo", "iwae", "psis", "laplace"):
        assert found.restart_spread is not None
    if name != "laplace":
        assert 1 <= found.ess <= found.draws * (1 + 1e-9)
    if name == "elbo" and model == "folded":
        assert found.drift is not None


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.parametrize("seed", range(3))
def test_annealing_from_either_start(start, seed):
    def from_start(problem: Problem, *, seed: int) -> Evidence:
        return (ais if seed else bdmc)(problem, seed=seed, start=start)

    check(from_start, regression(4, seed), seed)


def test_bounds_are_ordered_in_mean():
    below = {"elbo": 0.0, "iwae-8": 0.0, "iwae-64": 0.0}
    for seed in range(4):
        model = Clusters(dist.Normal(0.0, 1.0).sample((3,)))
        shared, _ = guided(Problem(model), seed)
        truth = exact(Problem(model))
        for found in (elbo(shared, seed=seed), *(iwae(shared, seed=seed, particles=k) for k in (8, 64))):
            below[found.method] += (found - truth).value / 4
    assert below["elbo"] <= below["iwae-8"] <= below["iwae-64"] < 0.01


def wide(model: Regression) -> Callable[[], None]:
    """A mean-field guide that is too wide."""
    mean, covariance = model.posterior()
    return lambda: pyro.sample("w", dist.Normal(mean, 1.4 * covariance.diagonal().sqrt()).to_event(1))


def agree(one: Evidence, value: float, error: float) -> None:
    assert abs(one.value - value) < float(stats.norm.ppf(1 - ALPHA / 2)) * math.hypot(one.std_error, error)


def test_iwae_is_what_pyro_estimates():
    model = regression()
    guide = wide(model)
    pyro.set_rng_seed(1)
    loss = RenyiELBO(alpha=0, num_particles=8)
    theirs = torch.tensor([-loss.loss(model, guide) for _ in range(300)])
    agree(iwae(Problem(model, guide=guide), seed=0, particles=8), float(theirs.mean()), float(theirs.std()) / 300**0.5)


@pytest.mark.parametrize("loss", [TraceMeanField_ELBO, TraceGraph_ELBO])
def test_losses_of_pyro_agree_with_elbo(loss):
    model = regression()
    problem = Problem(model, guide=wide(model))
    other = elbo(problem, seed=1, draws=400, loss=loss)
    agree(elbo(problem, seed=0), other.value, other.std_error)
    assert loss.__name__ in other.method


def test_enumerating_loss_agrees_with_elbo():
    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.tensor(0.2), 0.7))

    problem = Problem(MODELS["clusters"](), guide=guide)
    other = elbo(problem, seed=1, draws=400, loss=lambda: TraceEnum_ELBO(max_plate_nesting=1))
    agree(elbo(problem, seed=0), other.value, other.std_error)


@pytest.mark.parametrize("model", MODELS)
def test_curvature_is_that_of_autograd(model):
    log_joint = Problem(MODELS[model]()).log_joint
    z = 0.3 * torch.ones(log_joint.size)
    theirs = -torch.autograd.functional.hessian(lambda z: sum(log_joint.terms(z)), z)
    torch.testing.assert_close(negative_hessian(log_joint, z), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_laplace_is_exact_on_a_gaussian_posterior(size):
    problem = Problem(regression(size))
    assert laplace(problem, seed=0).value == pytest.approx(exact(problem).value, abs=1e-5)
    assert elbo(problem, seed=0).value == pytest.approx(exact(problem).value, abs=1e-3)


def test_both_modes_are_found():
    problem = Problem(Folded(torch.tensor([1.2, 0.9, 1.1])))
    assert elbo(problem, seed=0).value > exact(problem).value - 0.1  # log 2 is missed with either of them alone


def test_fitted_guides_are_apart():
    first = guided(Problem(regression(3)), 0)[0]
    before = elbo(first, seed=0).value
    guided(Problem(regression(3, seed=1)), 0)
    guided(Problem(regression(5)), 0)
    assert elbo(first, seed=0).value == before
    assert not list(pyro.get_param_store())


def test_sandwich_is_of_simulated_data():
    problem = Problem(regression())
    found = bdmc(problem, seed=3, chains=8)
    assert found.data == problem.simulate(3)[0].digest == of_simulated(problem.model, 3).digest != problem.digest
    assert (found - exact(of_simulated(problem.model, 3))).bound == "lower"
    with pytest.raises(BadInput, match="different data"):
        found - exact(problem)


@pytest.mark.parametrize("model", ["three", "clusters"])
def test_many_at_once_or_one_by_one(model, monkeypatch):
    problem, _ = guided(Problem(MODELS[model]()), 0)

    def numbers() -> list[float]:
        assert weigh(problem, draws=50, seed=0).log.shape == (50,)
        found = [elbo(problem, seed=0, draws=50), iwae(problem, seed=0, draws=50, particles=5)]
        return [f.value for f in (*found, ais(problem, seed=0, chains=4, start="guide"))]

    together = numbers()

    def refuse(self: Mapped, draws: dict) -> dict:
        raise RuntimeError("no batches here")

    monkeypatch.setattr(Mapped, "_together", refuse)
    assert numbers() == pytest.approx(together, abs=1e-6)


# Wrong estimators.


def dropped_kl(problem: Problem, *, seed: int) -> Evidence:
    """Only the likelihood is averaged."""
    shared, _ = guided(problem, seed)
    likelihood = [problem.log_joint.terms(w)[1] for w in weigh(shared, draws=200, seed=seed).values["w"]]
    logs = torch.stack(likelihood)
    return Evidence(float(logs.mean()), float(logs.std()) / math.sqrt(200), "lower")


def wrong_sign_of_the_determinant(problem: Problem, *, seed: int) -> Evidence:
    found, mode = laplace(problem, seed=seed), problem.model.posterior()[0]
    return replace(found, value=found.value + float(torch.logdet(negative_hessian(problem.log_joint, mode))))


def density_of_other_draws(problem: Problem, *, seed: int) -> Evidence:
    with pytest.MonkeyPatch.context() as patch:
        right = weights.weigh
        patch.setattr(weights, "weigh", lambda *a, **k: replace(w := right(*a, **k), log_q=w.log_q.roll(1)))
        return iwae(problem, seed=seed)


def swapped_direction(problem: Problem, *, seed: int) -> Evidence:
    with pytest.MonkeyPatch.context() as patch:
        right, other = annealed._run, {"forward": "backward", "backward": "forward"}
        patch.setattr(annealed, "_run", lambda path, plan, z, direction: right(path, plan, z, other[direction]))
        return bdmc(problem, seed=seed)


def swapped_sides(problem: Problem, *, seed: int) -> Evidence:
    with pytest.MonkeyPatch.context() as patch:  # so few temperatures that the sides are apart
        patch.setattr(annealed, "MOST", 3)
        found = bdmc(problem, seed=seed, chains=1000)
    return replace(found, value=found.upper, upper=found.value)


MUTANTS = [dropped_kl, wrong_sign_of_the_determinant, density_of_other_draws, swapped_direction, swapped_sides]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda f: f.__name__)
def test_mutant_is_caught(mutant):
    with pytest.raises(AssertionError, match=f"{mutant.__name__}: "):
        check(mutant, regression(), mode=0.05)


def scaled() -> Any:
    return poutine.scale(regression(), 1.5)


def single_precision() -> Any:
    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=torch.float32), 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=torch.tensor(0.3, dtype=torch.float32))

    return model


@pytest.mark.parametrize(("broken", "said"), [(scaled, "scaled by 1.5"), (single_precision, "float32")])
@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "bdmc"])
def test_broken_model_is_refused(name, broken, said):
    with pytest.raises(BadInput, match=said):
        ESTIMATORS[name](Problem(broken()), seed=0)


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "laplace"])
def test_same_seed_same_evidence(name):
    model = regression()
    problem = Problem(model, guide=wide(model))
    few = {"chains": 4} if name in ("ais", "bdmc") else {"draws": 200}
    one, again, other = (ESTIMATORS[name](problem, seed=seed, **few) for seed in (0, 0, 1))
    assert replace(one, seconds=0.0) == replace(again, seconds=0.0)
    assert one.value != other.value


# Pieces.


def test_pieces_of_the_weights():
    logs = torch.tensor([0.0, math.log(3.0)])
    assert effective(logs) == pytest.approx(16 / 10)
    assert jackknife(torch.zeros(10)) == pytest.approx(0.0, abs=1e-12)
    many = 0.1 * torch.randn(4000)
    assert jackknife(many) == pytest.approx(float(many.exp().std() / many.exp().mean()) / math.sqrt(4000), rel=0.02)
    same, khat = smooth(torch.full((100,), -3.0))
    assert khat is None
    assert torch.equal(same, torch.full((100,), -3.0))
    assert smooth(torch.randn(10_000).square() * 0.45)[1] == pytest.approx(0.9, abs=0.2)


SIDES = ("exact", "lower", "upper", "estimate")
MEANING = {
    ("exact", "exact"): "exact",
    ("exact", "lower"): "upper",
    ("exact", "upper"): "lower",
    ("exact", "estimate"): "estimate",
    ("lower", "exact"): "lower",
    ("lower", "lower"): "estimate",
    ("lower", "upper"): "lower",
    ("upper", "exact"): "upper",
    ("upper", "lower"): "upper",
    ("upper", "upper"): "estimate",
    ("estimate", "exact"): "estimate",
    ("estimate", "estimate"): "estimate",
}


@pytest.mark.parametrize(("a", "b"), list(itertools.product(SIDES, SIDES)))
def test_difference_of_every_pair_of_sides(a, b):
    one, other = Evidence(3.0, 0.3, a), Evidence(1.0, 0.4, b)
    if (a, b) not in MEANING:
        with pytest.raises(BadInput, match="means nothing"):
            one - other
        return
    assert (one - other).bound == MEANING[a, b]
    assert (one - other).value == 2.0
    assert (one - other).std_error == pytest.approx(0.5)
    assert other < one


def test_evidences_are_sorted_and_kept():
    some = [Evidence(v, 0.1, "lower", khat=0.2, upper=v + 1, data="a", method="elbo", draws=5) for v in (2.0, 1.0, 3.0)]
    assert [e.value for e in sorted(some)] == [1.0, 2.0, 3.0]
    for evidence in some:
        assert Evidence.from_json(json.loads(json.dumps(evidence.to_json()))) == evidence
        assert evidence.width == 1.0
    with pytest.raises(TypeError):
        some[0] - 1.0


def test_evidence_in_one_honest_line():
    poor = Evidence(-3.0, 0.6, "lower", khat=0.9, looseness=2.0, drift=3.0, restart_spread=4.0, ess=1.5, draws=10_000)
    said = str(poor)
    assert "\n" not in said
    assert "lower bound" in said
    assert len(poor.cautions) == 6
    assert all(caution in said for caution in poor.cautions)
    assert not Evidence(-3.0, 0.01, "lower", khat=0.3, looseness=0.01, ess=900.0, draws=10_000).cautions


# The zoo.


def check_hypotheses(entry: str, wanted: Callable[[str], bool]) -> None:
    loaded = zoo.load(entry)
    data = loaded.data(size=40, test=2, side=8) if entry == "orbit_gp" else loaded.data()
    data = zoo.taken(data, loaded.hypotheses(data), seed=0)
    for hypothesis in loaded.hypotheses(data):
        if not wanted(hypothesis.label):
            continue
        hypothesis = hypothesis.given(hypothesis.learn(data, 0)) if hypothesis.learn else hypothesis
        problem = Problem(hypothesis.model, hypothesis.prepare(data))
        shared, _ = guided(problem, 0)
        low, high = elbo(shared, seed=0, draws=2000), iwae(shared, seed=0, draws=2000, particles=20)
        error = Z * math.hypot(low.std_error, high.std_error)
        assert low.value <= high.value + error, hypothesis.label
        tops = [maximise(problem.log_joint, problem.log_joint.pack(s), prior=False).value for s in hypothesis.starts]
        assert high.value < max(tops) + Z * high.std_error, hypothesis.label
        assert psis(shared, seed=0, draws=2000).value < max(tops), hypothesis.label


@pytest.mark.parametrize("entry", zoo.names())
def test_bounds_of_two_hypotheses(entry):
    check_hypotheses(entry, lambda label: label in ("null", "mirror"))


@pytest.mark.slow
@pytest.mark.parametrize("entry", zoo.names())
def test_bounds_of_every_hypothesis(entry):
    check_hypotheses(entry, lambda label: True)


@pytest.mark.parametrize("estimator", [elbo, iwae, psis, ais, bdmc], ids=lambda e: e.__name__)
@pytest.mark.parametrize("count", [1, 0, -3, 2.5, "10", None], ids=str)
def test_counts_are_whole_and_two_or_more(estimator, count):
    name = "chains" if estimator in (ais, bdmc) else "draws"
    with pytest.raises(BadInput, match=name):
        estimator(Problem(lambda: None), seed=0, **{name: count})


@pytest.mark.parametrize("estimator", [elbo, iwae, psis, laplace, ais, bdmc, exact], ids=lambda e: e.__name__)
def test_a_model_is_no_problem(estimator):
    with pytest.raises(BadInput, match="problem: got function"):
        estimator(lambda: None, seed=0)


def test_draws_outside_of_the_support_are_refused():
    def positive(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Exponential(torch.tensor(1.0)))
        pyro.sample("y", dist.Poisson(rate), obs=y)

    def guide(y: Tensor) -> None:
        rate = pyro.sample("any", dist.Normal(torch.tensor(3.0), 1.5), infer={"is_auxiliary": True})
        pyro.sample("rate", dist.Delta(rate))

    with pytest.raises(BadInput, match="'rate'"):
        psis(Problem(positive, (torch.tensor(2.0),), guide), seed=0)
