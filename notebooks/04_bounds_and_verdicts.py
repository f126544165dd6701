# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bounds and verdicts
#
# A verdict is a difference of two evidences, and worth what they are worth. Evidence is rarely exact: it comes from
# below, from above, or as an estimate on neither side, and from a guide that may be wrong. Three short experiments on
# what the numbers say about themselves. Any Pyro model will do; none here has a symmetry.


# %%
import math
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_invariance import BadInput
from pyro_invariance.evidence import Problem, bdmc, compare, elbo, exact, iwae, laplace, psis, smooth, weigh

short = "PYRO_INVARIANCE_SHORT" in os.environ  # a quick run for the tests
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
pyro.set_rng_seed(0)

# %% [markdown]
# ## A sandwich
#
# Annealing from the prior to the posterior gives a lower side in expectation. Annealing backwards, from an exact draw
# of the posterior, gives an upper one; and there is such a draw when the data are simulated from the model: the truth
# behind them. That is bidirectional Monte Carlo [grosse2015sandwiching], `bdmc`. More chains, and the sides close.


# %%
def logistic(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(5), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


x = torch.randn(100, 5)
problem = Problem(logistic, (x, (x[:, 0] > 0).double()))
counts = [2, 8] if short else [2, 8, 32, 128]
sides = [bdmc(problem, seed=0, chains=count) for count in counts]
pd.DataFrame(
    {
        "lower": [e.value for e in sides],
        "std_error": [e.std_error for e in sides],
        "upper": [e.upper for e in sides],
        "upper_error": [e.upper_error for e in sides],
        "width": [e.width for e in sides],
    },
    index=pd.Index(counts, name="chains"),
).round(2)

# %% [markdown]
# The temperatures are chosen by a pilot run so that little would be left between the sides if every chain mixed
# perfectly; the rest is chance, which more chains average out. Each side holds in expectation, not in every run: within
# their errors the two may cross, and a width below zero means just that. An error from two chains is a rough guess.
#
# What the sandwich is for:
# other estimators, run on the very data that it was made of (`problem.simulate` with the same seed). Without a guide of
# ours, each fits a normal one with full covariance.

# %%
simulated, truth = problem.simulate(0)
others = [estimator(simulated, seed=0) for estimator in (elbo, psis, laplace)]
assert others[0].data == sides[0].data  # the same data, so that the numbers can be compared

_, axis = plt.subplots(figsize=(6, 3), layout="constrained")
place = np.arange(len(counts))
axis.errorbar(place - 0.05, [e.value for e in sides], [e.std_error for e in sides], fmt="^", label="bdmc, lower side")
axis.errorbar(place + 0.05, [e.upper for e in sides], [e.upper_error for e in sides], fmt="v", label="bdmc, upper side")
axis.set_xticks(place, counts)
for evidence, style in zip(others, ("-", "--", ":"), strict=True):
    axis.axhline(evidence.value, color="0.4", linestyle=style, label=evidence.method)
axis.set_xlabel("chains")
axis.set_ylabel("log evidence, nats")
axis.legend(fontsize=8)
for evidence in others:
    print(f"{evidence.method:8} {evidence.value:.3f} +- {evidence.std_error:.3f}, {evidence.bound}")

# %% [markdown]
# One run is one draw. So once more on data of several seeds, 32 chains each, against `psis` on the same data:

# %%
seeds = range(2 if short else 5)
reference = [psis(problem.simulate(seed)[0], seed=0) for seed in seeds]
again = [bdmc(problem, seed=seed, chains=32) for seed in seeds]
plt.figure(figsize=(6, 2.8), layout="constrained")
for name, value, error, style in (
    ("lower side", "value", "std_error", "^"),
    ("upper side", "upper", "upper_error", "v"),
):
    off = [getattr(e, value) - r.value for e, r in zip(again, reference, strict=True)]
    plt.errorbar(np.arange(len(off)), off, [getattr(e, error) for e in again], fmt=style, label=name)
plt.axhline(0, color="0.4", label="psis")
plt.xticks(seeds)
plt.xlabel("seed of the data")
plt.ylabel("nats from psis")
_ = plt.legend(fontsize=8)

# %% [markdown]
# ## A guide that lies
#
# Eight standard normal numbers, of which only the sum is seen. Their posterior is a thin slab: any of them may be
# anything if the others make up for it. The usual guide, `AutoNormal`, knows no correlations. This is conjugate, so the
# model can offer its evidence in closed form; `exact` asks for it, or refuses.


# %%
class Summed:
    def __init__(self, noise=0.1):
        self.noise = noise  # variance

    def __call__(self, y):
        z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1), math.sqrt(self.noise)), obs=y)

    def log_evidence(self, y):
        return dist.Normal(0.0, math.sqrt(8 + self.noise)).log_prob(y)


model, y = Summed(), torch.tensor(2.0)
guide = AutoNormal(model)
optimiser = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.998})
svi = SVI(model, guide, optimiser, Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0))
losses = [svi.step(y) for _ in range(200 if short else 1500)]
plt.figure(figsize=(6, 2.5), layout="constrained")
plt.plot([-loss for loss in losses])
plt.axhline(exact(Problem(model, (y,))).value, color="0.4", linestyle="--")
plt.ylim(-20, 0)
plt.xlabel("step of SVI")
_ = plt.ylabel("nats; dashed: exact")

# %% [markdown]
# Converged, by the look of it, and the standard error below agrees. Both are about the bound. Neither says how far it
# is from the evidence.

# %%
ours, none = Problem(model, (y,), guide), Problem(model, (y,))
print("exact:", exact(none), "\n")
for estimator in (elbo, iwae, psis):
    evidence = estimator(ours, seed=0)
    print(f"{evidence.method}: {evidence.value:.2f} +- {evidence.std_error:.2f} ({evidence.bound})")
    for caution in evidence.cautions:
        print("   caution:", caution)

# %% [markdown]
# `elbo` says that something is wrong, and by how much at least. `iwae` and `psis` come closer and are still wrong by
# nats: their cautions are as loud. That is what k-hat is for: importance weights of a guide that misses a tail have no
# usable mean, so that neither their average nor its standard error can be believed.
#
# Without a guide each estimator fits its own, normal with full covariance, and here that is the posterior itself:

# %%
honest = elbo(none, seed=0)
print("elbo:   ", honest)
print("laplace:", laplace(none, seed=0))
draws = {"AutoNormal": weigh(ours, draws=10_000, seed=0)}
posterior = dist.MultivariateNormal(torch.full((8,), 2 / 8.1), torch.eye(8) - 1 / 8.1)
grid = torch.linspace(-3, 3.5, 200)
plt.figure(figsize=(6, 2.8), layout="constrained")
marginal = dist.Normal(posterior.mean[0], posterior.variance[0].sqrt()).log_prob(grid).exp()
plt.plot(grid, marginal, "k--", label="posterior of the first number, exact")
plt.hist(draws["AutoNormal"].values["z"][:, 0], 60, density=True, alpha=0.5, label="AutoNormal")
plt.xlabel("first of the eight numbers")
_ = plt.legend(fontsize=8)

# %% [markdown]
# ## What k-hat sees
#
# The weights are model density over guide density, one for each draw. If the guide is the posterior, they are all the
# evidence. Where the guide is too narrow, a few draws at its rim carry nearly all the weight.


# %%
def wide(y):
    pyro.sample("z", dist.MultivariateNormal(posterior.mean, 1.3 * posterior.covariance_matrix))


draws["normal, a little too wide"] = weigh(Problem(model, (y,), wide), draws=10_000, seed=0)
_, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for name, drawn in draws.items():
    _, khat = smooth(drawn.log)
    left.hist(drawn.log, 80, alpha=0.6, label=name)
    share = drawn.log.softmax(0).sort(descending=True).values.cumsum(0)
    right.plot(np.arange(1, len(share) + 1), share, label=f"k-hat {khat:.2f}")
    print(f"{name}: k-hat {khat:.2f}; ten draws of 10,000 carry {share[9]:.0%} of the weight")
left.axvline(exact(none).value, color="k", linestyle="--", label="exact log evidence")
left.set_xlabel("log weight")
right.set_xscale("log")
right.set_xlabel("draws, heaviest first")
right.set_ylabel("share of the weight")
left.legend(fontsize=8)
_ = right.legend(fontsize=8)

# %% [markdown]
# k-hat is an estimate itself, of a tail that is seldom visited. Here for best uncorrelated guides (known in closed form
# for this model) of three noise variances, twenty times for each number of draws. Above 0.7 it warns.


# %%
def uncorrelated(noise):
    spread, mean = (1 + 1 / noise) ** -0.5, torch.full((8,), 2 / (8 + noise))
    return lambda y: pyro.sample("z", dist.Normal(mean, spread).to_event(1))


counts, repeats = [100, 1000, 10_000], range(3 if short else 20)
_, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
for axis, noise in zip(axes, (0.1, 0.3, 1.0), strict=True):
    looked = Problem(Summed(noise), (y,), uncorrelated(noise))
    for place, count in enumerate(counts):
        found = np.array([elbo(looked, seed=seed, draws=count).khat for seed in repeats])
        axis.plot(place + np.linspace(-0.2, 0.2, len(found)), found, ".", color="tab:blue")
        axis.text(place, 1.95, f"{np.mean(found > 0.7):.0%}", ha="center")
    loose = exact(looked).value - elbo(looked, seed=0).value
    off = psis(looked, seed=0).value - exact(looked).value
    print(f"noise {noise}: the bound is {loose:.2f} nats loose, psis from 10,000 draws is off by {off:+.2f}")
    axis.axhline(0.7, color="tab:red")
    axis.set_title(f"noise {noise}", size=10)
    axis.set_xticks(range(3), counts)
    axis.set_xlabel("draws")
axes[0].set_ylim(-0.5, 2.2)
_ = axes[0].set_ylabel("k-hat; on top, share above 0.7")

# %% [markdown]
# From 100 draws the warning is often missed, from 1,000 sometimes. 10,000 are the default; from fewer than 1,000 an
# `Evidence` makes no caution of its k-hat. The right panel is no failure: as a bound that guide costs 1.7 nats, but its
# tails are fat enough for its weights to be averaged, so that `psis` is right. k-hat says whether weights can repair
# a bound; that it is loose, `looseness` says.
#
# ## What arithmetic refuses
#
# A difference of two evidences is a log Bayes factor, and it has a side if the two leave it one. Two lower bounds leave
# none: whichever is looser, nobody knows.

# %%
loose, bound, estimate, closed = elbo(ours, seed=0), elbo(none, seed=0), psis(none, seed=0), exact(none)
for what, factor in (("exact - loose bound", closed - loose), ("lower bound - loose bound", bound - loose)):
    print(f"{what}: {factor.value:.2f} +- {factor.std_error:.2f} nats, {factor.bound}")

# %% [markdown]
# The true factor is 0, as both are the same model. The first line says at most 7.5, which is right. The second is how
# ELBOs are often compared, and would crown a model for its guide. `compare` looks at the cautions before it believes a
# gap:


# %%
print(compare(bound, loose, floor=3))

# %% [markdown]
# A bound and an estimate are not subtracted at all, and evidences of different data have no Bayes factor.

# %%
elsewhere = exact(Problem(model, (torch.tensor(2.5),)))
for what, one, other in (("estimate - bound", estimate, bound), ("other data", closed, elsewhere)):
    try:
        print(one - other)
    except BadInput as error:
        print(f"{what}: {error}")

# %% [markdown]
# So much for a verdict. `select` needs a gap of 10 nats that also exceeds every measured error: standard errors,
# looseness, drift, starts that differ. What no number shows is a mode that no draw has visited. Where it matters, hold
# the estimator against a sandwich on data simulated from your model.
