"""What an evidence is of, and two ways to get numbers from it: one draw at a time or many, and without an error."""

import math
import mmap
from itertools import product
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_invariance.evidence.exact import exact
from pyro_invariance.evidence.mapped import Mapped
from pyro_invariance.evidence.problem import Problem
from pyro_invariance.traces import score
from pyro_invariance.typing import BadInput

STATM = Path("/proc/self/statm")
Y = torch.tensor([0.3, -0.1, 0.4, 0.9], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
CENTRES = torch.tensor([-1.0, 1.0], dtype=torch.float64)


def normal(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


def renamed(values: Tensor) -> None:
    v = pyro.sample("v", dist.LogNormal(0.0, 2.0))
    pyro.sample("values", dist.Normal(v, 3.0).expand(values.shape).to_event(1), obs=values)


def test_digest_is_of_the_values_alone():
    digest = Problem(normal, (Y,)).digest
    assert Problem(renamed, (Y,)).digest == digest
    assert Problem(normal, (Y + 1e-12,)).digest != digest
    assert Problem(normal, (Y[:3],)).digest != digest


def test_digest_does_not_depend_on_the_order_of_sites():
    def both(first: str) -> None:
        for name in sorted(["a", "b"], reverse=first == "b"):
            pyro.sample(name, dist.Normal(0.0, 1.0), obs=Y[0] if name == "a" else Y[1])

    assert Problem(both, ("a",)).digest == Problem(both, ("b",)).digest


def test_digest_knows_shapes():
    def matrix(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    assert Problem(matrix, (Y,)).digest != Problem(matrix, (Y.reshape(2, 2),)).digest


def test_simulated_data_follow_the_seed():
    problem = Problem(normal, (Y,))
    (one, truth), (same, _), (other, _) = (problem.simulate(seed) for seed in (1, 1, 2))
    assert one.digest == same.digest
    assert len({one.digest, other.digest, problem.digest}) == 3
    assert set(truth) == {"w"}
    assert one.trace.nodes["y"]["value"].shape == Y.shape


def test_truth_is_within_the_support():
    _, truth = Problem(renamed, (Y,)).simulate(3)
    assert float(truth["v"]) > 0


def test_simulated_data_are_draws_of_the_model():
    problem = Problem(normal, (torch.zeros(200, dtype=torch.float64),))
    for seed in range(5):
        simulated, truth = problem.simulate(seed)
        error = float(simulated.trace.nodes["y"]["value"].mean() - truth["w"])
        assert abs(error) < 4 / math.sqrt(200)


def test_callers_random_state_is_untouched():
    pyro.set_rng_seed(7)
    expected = torch.rand(3)
    pyro.set_rng_seed(7)
    problem = Problem(normal, (Y,), lambda y: pyro.sample("w", dist.Normal(0.0, 1.0)))
    problem.simulate(1)
    _ = problem.guide_trace, problem.log_joint, problem.digest
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", [-1, None, 0.5])
def test_simulate_refuses_what_is_no_seed(seed):
    with pytest.raises(BadInput, match="seed: got"):
        Problem(normal, (Y,)).simulate(seed)


def test_data_that_cannot_be_drawn_are_named():
    class Undrawn(dist.TorchDistribution):
        arg_constraints, support = {}, dist.constraints.real
        log_prob = staticmethod(lambda value: -value.square())

    def model() -> None:
        pyro.sample("y", Undrawn(), obs=Y)

    with pytest.raises(BadInput, match="at site 'y': NotImplementedError"):
        Problem(model).simulate(0)


def test_no_guide_is_said():
    with pytest.raises(BadInput, match="guide: got none"):
        _ = Problem(normal, (Y,)).guide_trace


@pytest.mark.parametrize("where", ["data", "prior"])
def test_single_precision_is_refused_with_the_reason(where):
    def model(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.tensor(0.0).to(torch.float32 if where == "prior" else y.dtype), 1.0))
        pyro.sample("y", dist.Normal(w, torch.tensor(1.0).double()).expand(y.shape).to_event(1), obs=y)

    with pytest.raises(BadInput, match=r"is float32; evidence is float64, since differences .* thousands of nats"):
        exact(Problem(model, (Y.float() if where == "data" else Y,)))


def test_log_joint_says_what_cannot_be_enumerated():
    def model() -> None:
        k = pyro.sample("k", dist.Binomial(torch.tensor([2.0, 3.0]), 0.5).to_event(1))
        pyro.sample("y", dist.Normal(k.sum(), 1.0), obs=Y[0])

    with pytest.raises(BadInput, match="'k'"):
        _ = Problem(model).log_joint


# Many draws at once.


def mixture(y: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(WEIGHTS))
        pyro.sample("y", dist.Normal((CENTRES + shift)[z], 0.5), obs=y)


def test_mapped_agrees_with_one_by_one_where_sites_are_summed_out():
    def density(values: dict[str, Tensor]) -> dict[str, Tensor]:
        trace, (part,) = score(poutine.condition(mixture, data=values), (Y,), {}, {"z"}, values)
        return {"shift": trace.nodes["shift"]["log_prob_sum"], "y": part.log_prior + part.log_likelihood}

    draws = {"shift": torch.randn(20, 2)}
    mapped = Mapped(density)
    found = mapped(draws)
    assert mapped.vectorised
    each = dist.Normal((CENTRES + draws["shift"])[:, None], 0.5).log_prob(Y[:, None]) + WEIGHTS.log()
    torch.testing.assert_close(found["y"], each.logsumexp(2).sum(1))
    torch.testing.assert_close(found["shift"], dist.Normal(0.0, 1.0).log_prob(draws["shift"]).sum(1))


def test_draws_at_once_are_few_where_tensors_are_large(monkeypatch):
    monkeypatch.setattr("pyro_invariance.evidence.mapped.MOST", 1200)
    found = []
    for numbers in (10, 400, 5000):
        mapped = Mapped(lambda draw, numbers=numbers: {"y": (draw["w"] * torch.arange(numbers)).sort()[0].sum()})
        values = torch.linspace(0.0, 1.0, 7)
        torch.testing.assert_close(mapped({"w": values})["y"], values * numbers * (numbers - 1) / 2)
        found.append(mapped.chunk)
    assert found == [120, 3, 1]


@pytest.mark.skipif(not STATM.exists(), reason="memory of a process is read from /proc, which this system has not")
def test_many_draws_take_no_more_memory_than_some():
    resident = []

    def large(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        value = ((torch.ones(200_000, dtype=torch.float64) * draw["w"]) + 1).exp().sum()
        resident.append(int(STATM.read_text().split()[1]) * mmap.PAGESIZE)
        return {"y": value}

    Mapped(large)({"w": torch.linspace(0.0, 1.0, 1000, dtype=torch.float64)})  # 50 chunks of 32 MB
    assert max(resident) - max(resident[:15]) < 2e8


def test_mapped_falls_back_where_torch_cannot():
    mapped = Mapped(lambda draw: {"y": torch.tensor(float(draw["w"])) ** 2})  # a value leaves torch
    values = torch.randn(5)
    torch.testing.assert_close(mapped({"w": values})["y"], values**2)
    assert mapped.vectorised is False


@pytest.mark.parametrize("leaves", [True, False])
def test_mapped_names_the_site_of_a_model_with_a_state(leaves):
    calls = []

    def density(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(0)
        value = torch.tensor(float(draw["w"])) if leaves else draw["w"]
        return {"w": value, "y": value + len(calls)}

    mapped = Mapped(density)
    for _ in range(2):  # the second call is no way around it
        with pytest.raises(BadInput, match=r"'y'.*keep a state"):
            mapped({"w": torch.zeros(4)})


def test_mapped_names_the_site_that_is_not_always_there():
    mapped = Mapped(lambda draw: {"w": draw["w"]} | ({"odd": draw["w"]} if float(draw["w"]) > 0 else {}))
    with pytest.raises(BadInput, match="'odd' is there for some draws only"):
        mapped({"w": torch.tensor([-1.0, 1.0])})


def test_mapped_names_the_site_at_which_a_model_fails():
    def density(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        pyro.sample("w", dist.Normal(0.0, 1.0))
        torch.linalg.cholesky(torch.full((2, 2), float(draw["w"])))
        return {"w": draw["w"]}

    with pytest.raises(BadInput, match=r"after site 'w': _?LinAlgError"):
        Mapped(density)({"w": -torch.ones(3)})


# Evidences without an error.


def test_exact_of_a_finite_mixture_is_the_sum_by_hand():
    def model(y: Tensor) -> None:
        kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.4)))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(WEIGHTS))
            pyro.sample("y", dist.Normal(CENTRES[z] + kind, 0.5), obs=y)

    logs = []
    for kind, *zs in product([0, 1], *[[0, 1]] * len(Y)):
        z = torch.tensor(zs)
        prior = math.log(0.4 if kind else 0.6) + WEIGHTS.log()[z].sum()
        logs.append(prior + dist.Normal(CENTRES[z] + kind, 0.5).log_prob(Y).sum())
    evidence = exact(Problem(model, (Y,)))
    assert evidence.value == pytest.approx(float(torch.stack(logs).logsumexp(0)), abs=1e-10)
    assert (evidence.bound, evidence.std_error, evidence.method) == ("exact", 0.0, "exact")
    assert evidence.data == Problem(normal, (Y,)).digest


def test_exact_of_a_markov_chain_is_the_forward_algorithm():
    moves = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)

    def model(y: Tensor) -> None:
        z = 0
        for t in pyro.markov(range(len(y))):
            z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
            pyro.sample(f"y_{t}", dist.Normal(CENTRES[z], 0.5), obs=y[t])

    forward = torch.tensor([1.0, 0.0])
    for y in Y:
        forward = (forward @ moves) * dist.Normal(CENTRES, 0.5).log_prob(y).exp()
    assert exact(Problem(model, (Y,))).value == pytest.approx(math.log(float(forward.sum())), abs=1e-10)


def test_exact_without_latent_sites_is_the_likelihood():
    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(0.0, 1.0).expand(y.shape).to_event(1), obs=y)

    assert exact(Problem(model, (Y,))).value == pytest.approx(float(dist.Normal(0.0, 1.0).log_prob(Y).sum()))


class Offering:
    """The normal model with its closed form, or with something else in its place."""

    def __init__(self, offered: object = None) -> None:
        self.offered = offered

    def __call__(self, y: Tensor) -> None:
        normal(y)

    def log_evidence(self, y: Tensor) -> object:
        if isinstance(self.offered, Exception):
            raise self.offered
        covariance = torch.eye(len(y)) + 1
        closed = MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y)
        return closed if self.offered is None else self.offered


def test_exact_takes_the_closed_form_that_a_model_offers():
    x = torch.linspace(-30, 30, 60_001)
    logs = dist.Normal(0.0, 1.0).log_prob(x) + dist.Normal(x[:, None], 1.0).log_prob(Y).sum(1)
    by_quadrature = float(torch.trapezoid(logs.exp(), x).log())
    assert exact(Problem(Offering(), (Y,))).value == pytest.approx(by_quadrature, abs=1e-9)


@pytest.mark.parametrize(
    "offered",
    [
        torch.zeros(2),
        torch.tensor(0.0, dtype=torch.float32),
        torch.tensor(math.nan),
        math.inf,
        "none",
        KeyError("no"),
        ZeroDivisionError("no"),
    ],
    ids=str,
)
def test_exact_refuses_what_is_no_number(offered):
    with pytest.raises(BadInput, match=r"log.evidence"):
        exact(Problem(Offering(offered), (Y,)))


def test_exact_refuses_a_continuous_site():
    with pytest.raises(BadInput, match="exact: site 'w' is not finite"):
        exact(Problem(normal, (Y,)))


def test_exact_refuses_data_that_cannot_occur():
    def model() -> None:
        z = pyro.sample("z", dist.Categorical(WEIGHTS))
        pyro.sample("y", dist.Categorical(logits=torch.tensor([0.0, -math.inf])).expand(z.shape), obs=torch.tensor(1))

    with pytest.raises(BadInput, match=r"site y; accepted are data that can occur"):
        exact(Problem(model))


def test_a_factor_is_no_simulator():
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("tilt", -6 * z)
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(BadInput, match="'tilt' is a factor"):
        Problem(model).simulate(0)


def test_data_behind_a_mask_are_other_data():
    def digest(*mask: bool) -> str:
        def model() -> None:
            mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
            with pyro.plate("data", 2), pyro.poutine.mask(mask=torch.tensor(mask)):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.ones(2))

        return Problem(model).digest

    assert digest(True, False) == digest(True, False)
    assert digest(True, False) != digest(False, True)


def without_jacobian() -> None:
    u = pyro.sample("u", dist.Normal(torch.tensor(0.5), 0.1), infer={"is_auxiliary": True})
    pyro.sample("z", dist.Delta(u.exp()))


def narrow() -> None:
    pyro.sample("z", dist.Uniform(-0.1, torch.tensor(0.1)))


@pytest.mark.parametrize(
    ("prior", "guide", "words"),
    [
        (lambda: dist.VonMises(torch.tensor(0.0), 0.1), None, "periodic"),
        (lambda: dist.Normal(torch.tensor(0.0), 1.0), narrow, "leaves out"),
        (lambda: dist.Exponential(torch.tensor(1.0)), without_jacobian, "Jacobian"),
    ],
    ids=["periodic prior", "narrow guide", "no Jacobian"],
)
def test_densities_that_are_none_are_refused(prior, guide, words):
    def model() -> None:
        z = pyro.sample("z", prior())
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(BadInput, match=f"'z'.*{words}"):
        _ = Problem(model, (), guide).guide_trace if guide else Problem(model).trace
