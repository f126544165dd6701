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
# # Which symmetry do these images have?
#
# The first ten minutes. We give labelled images to `select` and learn which transformations their labels survive, how
# far, and how sure one may be. Nothing is tuned, no validation set is spent: each symmetry is a prior, and the evidence
# of the labels under it decides.


# %%
import os

import arviz as az
import numpy as np

import pyro_invariance
from pyro_invariance import plotting
from pyro_invariance.report import sentences

short = "PYRO_INVARIANCE_SHORT" in os.environ  # a quick run for the tests
digits = pyro_invariance.load("digits", seed=0)
data = digits.subset(100 if short else 400, seed=0)
print(data.name, tuple(data.x.shape), "test", tuple(data.x_test.shape), "-", data.coding)

# %% [markdown]
# ## Ask
#
# Three hypotheses: the label survives a mirror; any turn; turns within a range that is learned. `null` (noise alone)
# and the `trivial` model without a symmetry come along, because a symmetry is judged against the same model without
# it.

# %%
result = pyro_invariance.select(data, hypotheses=["mirror", "SO2", "rotation"], seed=0, jobs=2)
result.table.drop(columns=["cpu_seconds"]).round(2)

# %% [markdown]
# ## The answer
#
# Evidence is in nats: a gap of 10 is odds of 22,000 to 1. Whatever the data cannot tell is called undecided.


# %%
for verdict, sentence in sentences(result):
    print(f"{verdict:10}", sentence)

# %%
_ = plotting.symmetries(result)

# %% [markdown]
# What that means for your own images: green rows are moved as far as the label survives, red ones further.


# %%
_ = plotting.gallery(result)

# %% [markdown]
# ## How far, and how sure?
#
# The range of turns is a latent site with a prior, so it has a posterior. The lower bound comes with its standard
# error, its looseness (what importance sampling still adds) and an upper side.

# %%
_ = plotting.profiles(result)

# %%
rotation = next(f for f in result.fits if f.label == "rotation")
print(rotation.evidence, f"- upper side {rotation.upper:.1f}, loose by {rotation.evidence.looseness:.2f} nats")
posterior = result.inference_data("rotation")
az.summary(posterior, var_names=["rotation_degrees", "lengthscale", "noise"], kind="stats")

# %%
_ = az.plot_posterior(posterior, var_names=["rotation_degrees"])

# %% [markdown]
# ## Is the model any good?
#
# Held-out data never took part. Pairs of hypotheses are compared on the same items.


# %%
_ = plotting.paired(result)

# %%
probability = result.predict(data.x_test[:5])
print("predicted", probability.argmax(-1).tolist(), "true", data.y_test[:5].tolist())

# %% [markdown]
# ## Can it say no?
#
# Labels in random order have no symmetry, and images with a planted one have just that. Try it on both before you
# believe it on yours.


# %%
rng = np.random.default_rng(0)
shuffled = pyro_invariance.from_arrays("shuffled", data.x[:, 0].numpy(), rng.permutation(data.y.numpy()))
for name, d in (("shuffled", shuffled), ("planted", pyro_invariance.load("simulated-mirror"))):
    if short:
        d = d.subset(60, seed=0)
    told = pyro_invariance.select(d, hypotheses=["mirror", "rotation"], seed=0, jobs=2)
    print(name, {s: v.verdict for s, v in told.verdicts.items()})

# %% [markdown]
# On the command line the same is `pyro-invariance select digits`, or `select MY.npz` for images of your own; it
# leaves a report to look at. The next notebook writes a model with a transformation site of its own.
