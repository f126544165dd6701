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
# # A tour of the zoo
#
# A temperature on the globe, two pictures of the same thing, the energy of a molecule, a heap of unlabelled images.
# They have little in common but the question: what may be done to them that changes nothing? The entries of the zoo
# ask it in the same way. Each is a file with a generative model and a list of symmetry hypotheses; the library fits,
# compares, and says what the data support.


# %%
import os

import pandas as pd
import torch

import pyro_invariance
from pyro_invariance import plotting, zoo
from pyro_invariance.report import sentences

short = "PYRO_INVARIANCE_SHORT" in os.environ  # a quick run for the tests
jobs = 1 if short else 2  # hypotheses fitted at the same time
torch.set_num_threads(1)


def tour(entry, planted, size, hypotheses=None):
    """Select on data of an entry in which a symmetry was planted, and say what came of it."""
    data = zoo.load(entry).data(planted, seed=0, size=24 if short else size, test=10 if short else 100)
    run = pyro_invariance.select(data, entry, hypotheses=hypotheses, seed=0, jobs=jobs)
    for verdict, sentence in sentences(run):
        print(f"{verdict:10}", sentence)
    return run


cards = [zoo.load(name).CARD for name in zoo.names()]
pd.DataFrame({"what it is": [c.title for c in cards], "data": [c.kind for c in cards]}, [c.name for c in cards])

# %% [markdown]
# ## A function on the sphere
#
# Surface temperature depends on the latitude, mostly. Is that all? `sphere_gp` averages a Gaussian process on the
# sphere over turns about an axis that is a latent site. Simulated below: a zonal part and a weaker one that is
# not, measured in 300 places. A purely zonal function has to be refused, and the sum of both says how much is left.

# %%
sphere = zoo.load("sphere_gp")
field = tour("sphere_gp", "zonal-residual", 300, ["zonal", "zonal-residual", "antipodal", "SO3"])
field.table[["log_evidence", "std_error", "rmse"]].round(2)

# %%
_ = sphere.field(field)

# %% [markdown]
# The axis was not told to any hypothesis. Where may it be?

# %%
_ = sphere.axis(field)
share = next(f for f in field.fits if f.name == "zonal-residual").shares
print({name: f"{value:.0%}" for name, value in share.items()}, "of the prior variance")

# %% [markdown]
# ## Pairs, one of which is the other transformed
#
# A pair of digits, of which the second is the first one turned. An orthogonal map is a turn in each of some planes, and
# one phase turns them all, each as many times as its weight says [cohen2014learning]. With a von Mises prior the phase
# is integrated out in closed form. Here the angle was drawn from +-20 degrees.

# %%
pairs = tour("toroidal_subgroups", "rotation", 300)
pairs.table[["log_evidence", "std_error", "extent"]].round(2)

# %% [markdown]
# The posterior of the phase is an estimator of the angle, pair by pair, and it knows when it does not know.

# %%
_ = plotting.poses(pairs)

# %% [markdown]
# ## Molecules
#
# An energy belongs to a molecule, not to its pose. `molecules` has a chain of subgroups of E(3) and a Gaussian process
# on what is invariant under each. Two sets of the same molecules: energies of bonds and bends, and the same with a term
# that tells left from right. Only mirrors may be refused for the second.

# %%
molecules = zoo.load("molecules")
plain = tour("molecules", "E3", 300)
print()
handed = tour("molecules", "SE3", 300)
evidence = {"bonds and bends": plain.table["log_evidence"], "and handedness": handed.table["log_evidence"]}
(pd.DataFrame(evidence) - pd.DataFrame(evidence).max()).round(1)

# %%
_ = molecules.residuals(handed)

# %% [markdown]
# A vector turns along. `dipoles` says so by its kernel: to turn the molecule is to turn the prediction, exactly.

# %%
dipoles = tour("dipoles", "E3", 90)
x = dipoles.data.x_test
turn = torch.as_tensor([[0.28, -0.96, 0.0], [0.96, 0.28, 0.0], [0.0, 0.0, 1.0]]).to(x)
turned = torch.cat([x[..., :1], x[..., 1:] @ turn.T], -1)
worst = (dipoles.predict(turned) - dipoles.predict(x) @ turn.T).abs().max()
print(f"turned molecules against turned predictions: {worst:.0e} apart at most")

# %% [markdown]
# ## Images in an unknown pose
#
# No labels now: the images themselves are what is explained, by a decoder, and by a turn that is drawn anew for each
# image. The decoder is learned from half of the images; the evidence is of the other half, so that a decoder cannot
# earn it by heart. Images of five blobs, turned by up to 45 degrees:

# %%
pose = zoo.load("latent_pose")
posed = tour("latent_pose", "rotation", 300)
posed.table[["log_evidence", "std_error", "extent"]].round(2)

# %%
_ = pose.upright(posed)

# %%
_ = plotting.poses(posed)

# %% [markdown]
# With several things in one heap the decoder is a mixture of prototypes [frey2003transformation], each with its
# own pose.

# %%
prototypes = zoo.load("transformed_prototypes")
mixed = tour("transformed_prototypes", "rotation", 300)
for draw in list(prototypes.PICTURES)[:2]:
    draw(mixed)

# %% [markdown]
# A thing that bends is no linear decoder's: `posed_network` has a small network in its place, and shifts beside turns.
# What is integrated out then has no closed form; a guide that turns an image back before it seeks its code
# [bepler2019explicitly] serves as the proposal of an importance estimate, which is a bound on the density of the image
# itself.

# %%
network = zoo.load("posed_network")
bent = tour("posed_network", "rotation-translation", 240, ["rotation-translation"])
_ = network.upright(bent)

# %% [markdown]
# ## What is not there must not be found
#
# A tool that always finds a symmetry is no evidence for any. Every entry has a data set in which none was planted.

# %%
found = {}
for name in ["sphere_gp", "toroidal_subgroups", "molecules", "latent_pose"]:
    print(f"\n{name}")
    run = tour(name, "none", 200)
    said = [verdict.verdict for verdict in run.verdicts.values()]
    found[name] = {word: said.count(word) for word in ("supported", "undecided", "refused")}
pd.DataFrame(found).T

# %% [markdown]
# Your own system is one file more: `models/README.md` says what it has to have, and notebook 02 writes one. Then
# `pyro-invariance check` puts it through simulations before you trust it.
