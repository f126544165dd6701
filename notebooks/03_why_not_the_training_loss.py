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
# # Why not the training loss?
#
# A range of rotations is one more parameter of a model. Why not learn it like all the others, by gradients of the
# training loss? Because that loss cannot want it. Here are three curves on the same real images: training loss,
# held-out loss and log evidence, against the range.


# %%
import math
import os
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import pyro_invariance
from pyro_invariance.densities import SoftUniform
from pyro_invariance.kernels import OrbitKernel
from pyro_invariance.orbits import Turns
from pyro_invariance.priors import NOISE_FLOOR
from pyro_invariance.processes import GaussianProcess, code_log_density
from pyro_invariance.representations import Pixels, Polar

short = "PYRO_INVARIANCE_SHORT" in os.environ  # a quick run for the tests
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
data = pyro_invariance.load("digits", seed=0).subset(60 if short else 500, seed=0)
print(len(data.y), "images to learn from,", len(data.y_test), "held out")

turns = (0, 25, 60, 90, 180)
_, axes = plt.subplots(3, len(turns), figsize=(6, 3.8), layout="constrained")
for row, digit in zip(axes, (2, 4, 6), strict=True):
    image = data.x[data.y == digit][0]
    for axis, degrees in zip(row, turns, strict=True):
        axis.imshow(Pixels().rotate(image, torch.tensor(math.radians(degrees)))[0], cmap="gray")
        axis.set_axis_off()
        axis.set_title(f"{degrees} degrees", size=9)

# %% [markdown]
# ## The model
#
# A function averaged over the turns of an image within `extent` to either side, with a Gaussian process prior: small
# extent, no invariance; 180 degrees, full invariance. It is fitted to the class codes (nine outputs, each of variance
# one). Besides the extent there are a lengthscale and a variance; the noise is held at the library's floor, 1e-4, where
# the evidence takes it if it is free: these labels have no errors.
#
# Two settings, each the same for all three curves, so that only the judge differs. **Shared**: lengthscale and
# variance where the evidence is largest over everything, for every extent; only the extent moves. **Refitted**: where
# the evidence is largest at this very extent. (The library integrates them instead. The function itself is integrated
# exactly in all of them.)


# %%
def process(data, kernel, extent, logs):
    lengthscale, variance = logs.exp()
    return GaussianProcess(kernel.gram(lengthscale, extent), variance, torch.tensor(NOISE_FLOOR), data.targets.shape)


def refit(data, kernel, extent, logs):
    """Log lengthscale and variance where the evidence of this extent is largest."""
    logs = logs.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([logs], max_iter=40, tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = -process(data, kernel, extent, logs).log_prob(data.targets) / len(data.y)
        loss.backward()
        return loss

    optimiser.step(closure)
    return logs.detach()


@torch.no_grad()
def judged(data, kernel, extent, logs):
    """One row of a table, and the log density of each held-out image's code."""
    gp, lengthscale = process(data, kernel, extent, logs), logs[0].exp()
    fitted, _ = gp.condition(data.targets, kernel.gram(lengthscale, extent), torch.ones(len(data.y)))
    mean, variance = gp.condition(data.targets, *kernel.cross(kernel.compared(data.x_test), lengthscale, extent))
    truth = data.encode(data.y_test)
    scores = code_log_density(mean[None], variance[None], data.codes)  # of all ten classes
    held_out = code_log_density(mean[None], variance[None], truth[:, None])[:, 0]
    row = {
        "training loss": (fitted - data.targets).square().mean().item(),
        "held-out loss": (mean - truth).square().mean().item(),
        "log evidence": gp.log_prob(data.targets).item(),
        "held-out log density": held_out.mean().item(),
        "accuracy": (scores.argmax(1) == data.y_test).double().mean().item(),
        "class log loss": -scores.log_softmax(1)[range(len(truth)), data.y_test].mean().item(),
    }
    return row, held_out


def walk(data, kernel, where):
    """A table over extents in degrees, and the log densities of the held-out codes at each of them."""
    found = {d: judged(data, kernel, torch.tensor(math.radians(d)), logs) for d, logs in where.items()}
    table = pd.DataFrame({d: row for d, (row, _) in found.items()}).T.rename_axis("degrees")
    return table, {d: held_out for d, (_, held_out) in found.items()}


def both(data, grid):
    """The two settings: tables, what they were computed with, and the kernel."""
    kernel = OrbitKernel(Turns(Polar(8, 64, normalise=True, window=0.75), 64, SoftUniform), data.x)
    logs, refitted = torch.tensor([0.4, 0.6]).log(), {}
    for degrees in grid:
        refitted[degrees] = logs = refit(data, kernel, torch.tensor(math.radians(degrees)), logs)
    table, each = walk(data, kernel, refitted)
    best = int(table["log evidence"].idxmax())
    shared, _ = walk(data, kernel, dict.fromkeys(grid, refitted[best]))
    return {"shared": shared, "refitted": table}, refitted, each, kernel


def shown(table):
    digits = {"log evidence": "{:.1f}", "training loss": "{:.1e}"}
    return table.apply(lambda column: column.map(digits.get(column.name, "{:.4f}").format))


grid = [4, 25, 179] if short else [4, 8, 12, 17, 25, 35, 50, 70, 90, 120, 150, 179]
tables, refitted, each, kernel = both(data, grid)
shown(tables["shared"])

# %%
shown(tables["refitted"])


# %% [markdown]
# ## The picture


# %%
def picture(tables):
    judges = {"training loss": "idxmin", "held-out loss": "idxmin", "log evidence": "idxmax"}
    _, axes = plt.subplots(3, 1, figsize=(6, 6.5), sharex=True, layout="constrained")
    for axis, (judge, better) in zip(axes, judges.items(), strict=True):
        for (name, table), style in zip(tables.items(), ("o-", "s--"), strict=True):
            curve, place = table[judge], list(table.index).index(getattr(table[judge], better)())
            curve = curve - curve.max() if judge == "log evidence" else curve
            line = axis.plot(curve.to_numpy(), style, ms=4, label=f"{name}, best at {table.index[place]} degrees")
            axis.plot(place, curve.iloc[place], "o", ms=11, mfc="none", mec=line[0].get_color())
        axis.set_title(judge + ", nats below its best" * (judge == "log evidence"), size=10, loc="left")
        axis.legend(fontsize=8)
    axes[0].set_yscale("log")
    axes[-1].set_yscale("symlog", linthresh=10)
    axes[-1].set_ylim(top=5)
    axes[-1].set_xticks(range(len(table)), table.index)
    axes[-1].set_xlabel("extent of the rotations, degrees to either side")


picture(tables)

# %%
table = tables["refitted"]
best = int(table["log evidence"].idxmax())
for other in (grid[0], 90 if 90 in grid else grid[-1], grid[-1]):
    gain = (each[best] - each[other]).numpy()
    error = gain.std() / math.sqrt(len(gain))
    nats = table["log evidence"][best] - table["log evidence"][other]
    print(f"{best} against {other} degrees: evidence {nats:+.0f} nats;", end=" ")
    print(f"held-out log density {gain.mean():+.3f} +- {error:.3f} an image")

# %% [markdown]
# **Training loss.** Every extent reproduces the training labels almost exactly; mind the exponents, on a linear axis
# both curves are a flat zero. With everything else held, the little that is left grows with the extent, because
# averaging over turns restricts what can be fitted: the best is no invariance. With the rest refitted the curve is
# flat, and which extent comes out first means nothing. In neither setting does it see the middle.
#
# **Held-out loss** is best at 25 degrees in both. It is honest, but it costs images that one could have learned from,
# and for several symmetries a search over a grid of all their ranges.
#
# **Log evidence** is best at 25 degrees in both, from the training labels alone.
#
# **What is not in the picture.** Two more columns of the tables judge the held-out images. Accuracy cannot tell: from
# 4 to 150 degrees it moves by three images in 797. And the log loss of the class posterior has other favourites, 4
# degrees in the shared setting: evidence judges this model, a Gaussian one of codes, and not the classifier made of it.


# %% [markdown]
# ## Gradients do the same
#
# The extent learned by Adam from 70 degrees, everything else held where the evidence liked it best: once by the
# training loss (its logarithm, as it is so small), once by minus the log evidence.


# %%
def path(loss, steps):
    log_extent = torch.tensor(math.log(math.radians(70))).requires_grad_()
    optimiser, seen = torch.optim.Adam([log_extent], lr=0.1), []
    for _ in range(steps):
        optimiser.zero_grad()
        seen.append(math.degrees(log_extent.exp().item()))
        loss(log_extent.exp()).backward()
        optimiser.step()
    return seen


def training_loss(extent):
    lengthscale, variance = refitted[best].exp()
    covariance, noise = variance * kernel.gram(lengthscale, extent), NOISE_FLOOR * torch.eye(len(data.y))
    return (noise @ torch.linalg.solve(covariance + noise, data.targets)).square().mean().log()  # of the residuals


def minus_evidence(extent):
    return -process(data, kernel, extent, refitted[best]).log_prob(data.targets)


steps = 5 if short else 60
by_loss, by_evidence = path(training_loss, steps), path(minus_evidence, steps)
plt.figure(figsize=(6, 2.8), layout="constrained")
plt.plot(by_loss, label="by the training loss")
plt.plot(by_evidence, label="by the evidence")
plt.xlabel("step")
plt.ylabel("extent, degrees")
_ = plt.legend()

# %%
print(f"after {steps} steps: by the training loss {by_loss[-1]:.1f} degrees, by the evidence {by_evidence[-1]:.1f}")

# %% [markdown]
# ## Why the evidence can
#
# By the chain rule, $\log p(y_1 \dots y_N) = \sum_n \log p(y_n \mid y_1 \dots y_{n-1})$. Each label is predicted before
# it is learned from: every image is held out once, and then used. The training loss asks instead how well the model
# recalls what it has been told.


# %%
@torch.no_grad()
def in_turn(degrees, order):
    """Fit and volume of each label given those before it; all of them together are the log evidence."""
    gp = process(data, kernel, torch.tensor(math.radians(degrees)), refitted[degrees])
    covariance = gp.signal * gp.gram[order][:, order] + gp.noise * torch.eye(len(order))
    factor = torch.linalg.cholesky(covariance)
    surprise = torch.linalg.solve_triangular(factor, data.targets[order], upper=False)  # in predicted spreads
    volume = -data.targets.shape[1] * (factor.diagonal() * math.sqrt(2 * math.pi)).log()
    return -0.5 * surprise.square().sum(1), volume


order = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(0))
terms = {degrees: in_turn(degrees, order) for degrees in (grid[0], best, grid[-1])}
totals = {degrees: (fit + volume).cumsum(0) for degrees, (fit, volume) in terms.items()}
plt.figure(figsize=(6, 2.8), layout="constrained")
for degrees, total in totals.items():
    plt.plot(range(1, len(order) + 1), total - totals[grid[0]], label=f"{degrees} degrees")
plt.xlabel("images seen")
plt.ylabel(f"nats more than {grid[0]} degrees")
_ = plt.legend()

# %%
sums = {degrees: {"fit": fit.sum().item(), "volume": volume.sum().item()} for degrees, (fit, volume) in terms.items()}
parts = pd.DataFrame(sums).T.rename_axis("degrees").assign(evidence=lambda t: t.fit + t.volume)
assert np.allclose(parts.evidence, table["log evidence"][parts.index])
parts.round(1)

# %% [markdown]
# The last curves end at the differences of the table. Split the evidence into what depends on the labels (*fit*) and
# what does not (*volume*: how widely the prior spreads over label vectors). With the variance at its best the fits are
# all alike; the volume decides. A prior without invariance pays for functions that change under a small turn, which
# these labels never use; one that averages over 25 degrees does not spend on them. One that averages over all turns has
# too few functions left, as a turned 6 is a 9, and must buy the fit by a larger variance and strange functions.
#
# ## Can it say otherwise?
#
# If 25 degrees were a habit of the evidence and not a fact about the images, it would also find them in images that lie
# any way up. So turn each image, training and held out, at random.

# %%
generator = torch.Generator().manual_seed(0)


def any_way_up(images):
    return Pixels().rotate(images, math.pi * (2 * torch.rand(len(images), generator=generator) - 1))


some = data.subset(300, seed=0)
turned = replace(some, x=any_way_up(some.x), x_test=any_way_up(some.x_test))
picture(both(turned, grid if short else [4, 12, 25, 50, 90, 120, 150, 179])[0])

# %% [markdown]
# Now held-out loss and evidence want the widest range; the training loss still wants none.
#
# That the loss collapses is why Augerino [benton2020learning], which learns the range by gradients of a training loss,
# needs a regulariser that rewards width, and a strength for it. The evidence needs neither: van der Wilk et al.
# [vanderwilk2018learning] learned invariances by the marginal likelihood of a Gaussian process, and that is what
# `orbit_gp` does, with the other hyperparameters integrated and the errors of it all measured (next notebook).
#
# What was not shown: one data set, one kind of kernel, evidences at the best hyperparameters. And evidence is only as
# good as its number: where it can be computed merely as a bound, the bound may prefer something else than the evidence
# does.
