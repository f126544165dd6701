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
# # A large space of augmentations
#
# Which of these may be done to your images: shift, turn, scale, stretch, slant? By how much, and all at once? Usually a
# grid search over a validation set answers, or a habit. Here every range is a latent site, and the evidence shuts off
# what the labels do not support.
#
# The data have an answer to be found: handwritten digits, each turned by an angle anywhere in the full circle, and
# nothing else. No model is told.


# %%
import math
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import pyro_invariance
from pyro_invariance import plotting, zoo
from pyro_invariance.export import export
from pyro_invariance.matrix_groups import Affine
from pyro_invariance.report import cautions, sentences
from pyro_invariance.sparse_fitting import fit_sparse

short = "PYRO_INVARIANCE_SHORT" in os.environ  # a quick run for the tests
jobs = 1 if short else 2  # hypotheses fitted at the same time
torch.set_num_threads(1)
runs = Path(tempfile.mkdtemp())
turns, rng = Affine(["rotation"]), np.random.default_rng(0)


def turned(images):
    angles = torch.as_tensor(rng.uniform(-math.pi, math.pi, (len(images), 1)))
    return turns.act(turns.exp(angles), images)[:, 0].numpy()


digits = pyro_invariance.load("digits", seed=0)
x, x_test = turned(digits.x), turned(digits.x_test)
every = pyro_invariance.from_arrays("turned digits", x, digits.y.numpy(), x_test, digits.y_test.numpy())
data = every.subset(20 if short else 200, seed=0)

_, axes = plt.subplots(1, 10, figsize=(10, 1.4), layout="constrained")
for axis, image, label in zip(axes, data.x, data.y.tolist(), strict=False):
    axis.imshow(image[0], cmap="gray")
    axis.set_title(label, size=9)
    axis.axis("off")

# %% [markdown]
# ## Six ranges at once
#
# `affine` of the entry `augmentation_gp` is a Gaussian process averaged over a box of affine maps: a node of the box is
# one coefficient for each of six generators, and each of them is scaled by an extent of its own. The model is plain
# Pyro, an extent is `pyro.sample(name, Uniform(0, upper))`, and the function is integrated out in closed form.
# `null`, noise alone, and `trivial`, the same process without a range, come along to be beaten.


# %%
result = pyro_invariance.select(data, "augmentation_gp", hypotheses=["affine"], seed=0, jobs=jobs, out=runs / "affine")
result.table[["log_evidence", "upper", "std_error", "accuracy"]].round(2)

# %% [markdown]
# Now watch them. Climbs begin with all ranges narrow, with all of them wider, and with each of them wide by itself,
# since basins lie far apart; all nine sites climb the log joint density together, along its gradient. Here is the climb
# that ended highest. On the right is what SVI says around the mode: posterior means, with central 95 % intervals. A
# range below half a pixel cannot be told from none, and is called shut off.

# %%
affine = next(h for h in result.hypotheses if h.label == "affine")
fit = next(f for f in result.fits if f.label == "affine")
_, (climb, bars) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for row, (name, extent) in enumerate(affine.extents.items()):
    learned, colour = fit.extents[name], f"C{row}"
    climb.plot(fit.positions[name] / extent.upper, color=colour, label=name)
    bars.barh(row, learned.mean / extent.upper, color=colour, alpha=0.3 if learned.zero else 1.0)
    bars.plot([learned.lower / extent.upper, learned.upper / extent.upper], [row, row], color="black")
climb.set_xlabel("step of the climb")
climb.set_ylabel("extent, share of its upper end")
climb.legend(fontsize=8)
names = [f"{name}{' (shut off)' if fit.extents[name].zero else ''}" for name in affine.extents]
bars.set_yticks(range(len(names)), names)
bars.invert_yaxis()
_ = bars.set_xlabel("posterior of the extent, share of its upper end")

# %% [markdown]
# In words, with the gap to the same process without any range:

# %%
for verdict, sentence in sentences(result):
    print(f"{verdict:10}", sentence)

# %% [markdown]
# ## What the model takes to be the same
#
# `Hypothesis.moved` shows your own images at given values of the ranges. Black: as given. Green: along the range that
# was kept, at its ends and half way. Red: where each of the others would have ended had its range been kept whole.

# %%
shown = data.x[:8]
rows = [("as given", "black", shown)]
for name, extent in sorted(affine.extents.items(), key=lambda item: fit.extents[item[0]].zero):
    kept = not fit.extents[name].zero
    for part in (-1.0, -0.5, 0.5, 1.0) if kept else (1.0,):
        end = part * (fit.extents[name].mean if kept else extent.upper)
        moved = affine.moved(shown, dict.fromkeys(affine.extents, 0.0) | {name: end})
        (caption,) = (c for c in moved if c.startswith(name))
        rows.append((caption, "C2" if kept else "C3", moved[caption]))
figure, axes = plt.subplots(len(rows), len(shown), figsize=(7, 0.72 * len(rows)), layout="constrained")
for line, (caption, colour, images) in zip(axes, rows, strict=True):
    for axis, image in zip(line, images, strict=True):
        axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
    line[0].set_ylabel(caption, color=colour, rotation=0, ha="right", va="center", size=9)

# %% [markdown]
# A learned range is how far the labels do not care, not how far the images were moved; here the two agree, because the
# whole circle leaves nothing to be careful about. A 6 that may be turned all the way is a 9, and the model has to live
# with that: it can only be unsure of both.
#
# Two limits to know about. Each image is averaged over some dozens of nodes of its own; what they miss is noise to
# the model, so that more of them (`hypotheses(data, nodes=256)` of the entry) may widen a range. And climbs have local
# optima. Of all these starts, the two that end highest on a few images are climbed on all of them; where they do not
# meet, what the worse one found is not hidden:

# %%
for other in fit.other_optima:
    print(f"another start ended {other['below_best']:.0f} nats lower, at")
    print(pd.Series({name: value / affine.extents[name].upper for name, value in other["extents"].items()}).round(3))

# %% [markdown]
# ## Selecting by gradient
#
# The other way to search a large space: put all candidates into one model. `composition` of `orbit_gp` is a sum of six
# Gaussian processes, one without a symmetry and one each for mirror, quarter turns, turns in a learned range, shifts
# and convolution, with a learned scale each. Its share of the prior variance says how much of the function a part
# accounts for. That is automatic relevance determination, over symmetries. A sum takes longer than any one of its
# parts, so `select` fits it only when asked to by name.
#
# Here it is next to its parts, each fitted by itself.


# %%
parts = ["rotation"] if short else ["mirror", "C4", "rotation", "translation", "convolution"]
both = pyro_invariance.select(data, hypotheses=["composition", *parts], seed=0, jobs=jobs)
_ = plotting.shares(both)

# %%
whole = next(f for f in both.fits if f.label == "composition")
single = {f.label: f for f in both.fits}
ranking = pd.DataFrame(
    {
        "alone, log evidence": [single[name].evidence.value for name in parts],
        "share of the sum": [whole.shares[name] for name in parts],
    },
    index=pd.Index(parts, name="part"),
).sort_values("alone, log evidence", ascending=False)
print(f"the sum: {whole.evidence.value:.1f} nats; most of it is {max(whole.shares, key=whole.shares.get)}")
ranking.round(3)

# %% [markdown]
# A part with a range has it held at first here too, so that a lead in the first steps means little. In the end, the
# largest share and the best of the separate fits should name the same part. The rest of the order need not agree: once
# the winner is in the sum, the others are there only for what it leaves unexplained.
#
# That is also what a share does not tell. A sum has a symmetry only if all of its parts do, so it supports and refuses
# nothing; the verdicts come from contrasts between separate fits, within one base. Compare the two evidences as well:
# where a single symmetry explains the data, a sum has to pay for scales that it does not need. And the range of a part
# that has no variance can be anything:

# %%
for name, sentence in sentences(both):
    if name == "sum":
        print(sentence)
print(both.table.loc["composition", "extent"])

# %% [markdown]
# ## More images
#
# Exact inference takes the cube of the number of images, and stops at 2,000. Beyond, `fit_sparse` knows the function
# through its values at some of them, the inducing images. What comes out is a lower bound on the evidence of all. How
# much is lost? On few images we can see it: these bounds are of the same digits as the dashed line, which is not
# sparse. Dotted is the next best of the hypotheses above.

# %%
rotation = next(h for h in both.hypotheses if h.label == "rotation")
runner_up = next(f for f in both.fits if f.label not in ("rotation", "composition"))
counts = [10, 20] if short else [25, 50, 100, 150, 200]
bounds = [fit_sparse(rotation, data, size=count).evidence for count in counts]
_, axis = plt.subplots(figsize=(8, 3), layout="constrained")
axis.errorbar(counts, [e.value for e in bounds], [e.std_error for e in bounds], fmt="o-", label="rotation, sparse")
for f, colour, style in ((single["rotation"], "0.4", "--"), (runner_up, "C3", ":")):
    axis.axhline(f.evidence.value, color=colour, linestyle=style, label=f"{f.label}, not sparse")
axis.set_xlabel("inducing images")
axis.set_ylabel("log evidence, nats")
_ = axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# The bound arrives when every image is an inducing one, and not much before. Through too few, the right hypothesis
# loses to a worse one that is not sparse, for the sake of an approximation. That is why a sparse bound is never ranked
# with exact evidence, not even on the same data.
#
# What it is for is prediction, and there it takes far fewer. Three thousand simulated images, sums of six blobs, whose
# values do not change under quarter turns. We select on few of them, and carry the winner to all:


# %%
simulated = zoo.load("orbit_gp").data("C4", size=200 if short else 3000)
few = simulated.subset(60 if short else 300, seed=0)
chosen = pyro_invariance.select(few, hypotheses=["C4"], seed=0, jobs=jobs)
best = next(h for h in chosen.hypotheses if h.label == chosen.best.label)
carried = [fit_sparse(best, simulated, size=count) for count in ([20, 60] if short else [50, 100, 200, 400, 800])]
_, (left, right) = plt.subplots(1, 2, figsize=(11, 3), layout="constrained")
sizes = [c.inducing for c in carried]
left.plot(sizes, [c.evidence.value for c in carried], "o-")
left.set_ylabel(f"lower bound of all {len(simulated.y)}, nats")
right.plot(sizes, [chosen.test_scores(c)["rmse"] for c in carried], "o-", label=f"{best.label}, all images")
for f, style in ((chosen.best, "--"), (next(f for f in chosen.fits if f.kind == "none"), ":")):
    label = f"{f.label}, {len(few.y)} images"
    right.axhline(chosen.test_scores(f)["rmse"], color="0.4", linestyle=style, label=label)
right.axhline(0.1, color="C2", linewidth=0.8, label="noise in the values")
right.set_ylabel("root mean square error, held out")
for axis in (left, right):
    axis.set_xscale("log")
    axis.set_xticks(sizes, sizes)
    axis.minorticks_off()
    axis.set_xlabel("inducing images")
right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
print(f"CPU seconds: {', '.join(f'{c.inducing}: {c.cpu_seconds:.1f}' for c in carried)}")

# %% [markdown]
# With more than 2,000 images `select` does these two steps by itself: it ranks on a subset of 2,000, drawn with the
# seed, then carries the best to all images through 2,000 inducing ones. What comes of it is in `Selection.carried`,
# beside the ranking and not in it, and the report says so; its test scores are those of all the data. `carry=False`, on
# the command line `--no-carry`, leaves it out. Here nothing was left to carry, as `select` saw few images only:

# %%
print(chosen.carried)
for caution in cautions(chosen):
    print("-", caution)

# %% [markdown]
# ## Take it elsewhere
#
# What was learned is of use to networks as well. `export` writes the supported ranges of a finished run as an
# augmentation policy, here of the first one above, with a comment that says where it is from and what was left out.


# %%
print(export(runs / "affine", "torchvision"))

# %% [markdown]
# `kornia`, `albumentations` and `json` are the other formats; on the command line it is
# `pyro-invariance export RUN --to torchvision`. Two caveats travel with it. A range that a Gaussian process learned
# from a few hundred images is a good start for your network, not a proof. And the symmetry is that of your labels:
# change the labels, and ask again.
