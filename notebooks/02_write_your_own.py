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
# # Write your own
#
# You write Pyro models. Here a transformation becomes one line of such a model; we fit it by SVI, explore it with ArviZ
# and let the evidence choose between hypotheses about it.

#
# The data: noisy images of one known template, each turned by an unknown angle of at most 50 degrees.


# %%
import math
import os
from functools import partial

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_invariance import Extent, Hypothesis, from_arrays, select, to_arviz
from pyro_invariance.densities import SoftUniform
from pyro_invariance.groups import SO2
from pyro_invariance.representations import Polar
from pyro_invariance.sites import Marginalised

short = "PYRO_INVARIANCE_SHORT" in os.environ  # a quick run for the tests
torch.set_default_dtype(torch.float64)  # evidence in float32 can be wrong by many nats
pyro.set_rng_seed(0)

polar = Polar(rings=4, angles=32)
rotations = SO2(on=polar)
template = 16 * torch.fft.irfft(torch.randn(1, 4, 5, dtype=torch.complex128), n=32)  # smooth: 5 frequencies of 17
angles = math.radians(50) * (2 * torch.rand(20 if short else 60) - 1)
images = rotations.act(angles, template) + 3.0 * torch.randn(len(angles), 1, 4, 32)

figure, axes = plt.subplots(1, 5, figsize=(10, 2), layout="constrained")
for axis, image, angle in zip(axes, images, angles, strict=False):
    axis.imshow(image[0], aspect="auto")
    axis.set_title(f"{math.degrees(angle):+.0f} degrees")

# %% [markdown]
# ## The model
#
# `pose` is all there is to say about the symmetry: a named site in the plate of the data. Its range is a site as well,
# with a prior. Run as it is, the model samples poses.


# %%
def posed(x):
    extent = pyro.sample("extent", dist.Uniform(torch.tensor(0.0), math.pi))
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor(1.0), 1.0))
    with pyro.plate("images", len(x)):
        pose = pyro.sample("pose", SoftUniform(extent))
        pyro.sample("x", dist.Normal(rotations.act(pose, template), noise).to_event(3), obs=x)


poutine.trace(posed).get_trace(images).nodes["pose"]["value"][:4]

# %% [markdown]
# ## Fit
#
# `Marginalised` is the same model with the pose summed out by quadrature, for `TraceEnum_ELBO`; the guide leaves the
# pose alone. The rest is Pyro as you know it.

# %%
model = Marginalised(posed, site="pose", nodes=128)
guide = AutoNormal(poutine.block(posed, hide=["pose"]), init_scale=0.02)
elbo = TraceEnum_ELBO(max_plate_nesting=1)(model, guide)
elbo(images)  # sets up the parameters of the guide
optimiser = torch.optim.Adam(elbo.parameters(), lr=0.05)
path = []
for _ in range(20 if short else 200):
    optimiser.zero_grad()
    loss = elbo(images)
    loss.backward()
    optimiser.step()
    path.append(-loss.item())
plt.figure(figsize=(6, 2.5))
plt.plot(path)
_ = plt.ylabel("lower bound, nats")

# %% [markdown]
# The quadrature must be fine enough for the template: doubling its nodes must not change the evidence.

# %%
where = {"extent": torch.tensor(0.87), "noise": torch.tensor(3.0)}
for nodes in (128, 256):
    held = poutine.condition(Marginalised(posed, nodes=nodes), data=where)
    minus = TraceEnum_ELBO(max_plate_nesting=1).loss(held, lambda x: None, images)
    print(nodes, "nodes:", round(-minus, 3), "nats")

# %% [markdown]
# ## Explore
#
# `to_arviz` takes any Pyro model and guide. The plate is a named dimension; the pose of every image is drawn from its
# posterior, the pointwise likelihood has it summed out.


# %%
found = to_arviz(model, guide, images, draws=20 if short else 200)
print({name: tuple(v.dims) for name, v in found.posterior.data_vars.items()})
az.summary(found, var_names=["extent", "noise"], kind="stats")

# %%
pose = np.degrees(found.posterior["pose"].mean(("chain", "draw")))
plt.figure(figsize=(4, 4))
plt.scatter(torch.rad2deg(angles), pose)
plt.axline((0, 0), slope=1, color="0.7")
plt.xlabel("true angle, degrees")
_ = plt.ylabel("posterior mean of the pose, degrees")

# %%
_ = az.plot_pair(found, var_names=["extent", "noise"])

# %% [markdown]
# ## Select
#
# Now three hypotheses: no turns, turns within a learned range, all turns. Each is a Pyro model and a few words about
# what it claims. `select` finds modes from every start, runs SVI from the best and estimates the bound afresh.


# %%
def fixed(x, reach):
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor(1.0), 1.0))
    with pyro.plate("images", len(x)):
        pose = pyro.sample("pose", SoftUniform(torch.tensor(reach)))
        pyro.sample("x", dist.Normal(rotations.act(pose, template), noise).to_event(3), obs=x)


def views(data):
    return (data.x.reshape(-1, 1, 4, 32),)


def hypothesis(name, kind, model, **more):
    return Hypothesis(
        name=name, kind=kind, base="template", model=Marginalised(model, nodes=128), prepare=views, **more
    )


turns = Extent("rotation", "rad", upper=math.pi, reach=0.95 * math.pi, whole=True, resolution=0.02)
hypotheses = [
    hypothesis("upright", "none", partial(fixed, reach=0.01), starts=({"noise": 2.0},)),
    hypothesis("all turns", "group", partial(fixed, reach=math.pi), starts=({"noise": 2.0},)),
    hypothesis(
        "turns",
        "augmentation",
        posed,
        starts=({"noise": 2.0, "extent": 0.3}, {"noise": 2.0, "extent": 2.5}),
        extents={"extent": turns},
        contains=frozenset({"turns"}),
    ),
]
labels = np.arange(len(images)) / len(images)  # of no use here: these models explain the images themselves
data = from_arrays("turned templates", images.flatten(1).numpy(), labels)
result = select(data, hypotheses=hypotheses, seed=0, jobs=1)
result.table[["log_evidence", "upper", "std_error", "extent"]].round(2)

# %%
reach = result.inference_data("turns").posterior["extent_degrees"]
low, high = reach.quantile([0.025, 0.975])
print(f"the range is {float(low):.0f} to {float(high):.0f} degrees; the poses were drawn within 50")

# %% [markdown]
# The pose is a property of each image here, so the learned range is the range of poses. In `orbit_gp`, where functions
# are averaged over an orbit, a range is an insensitivity and comes out wider. To make such a model part of the zoo, see
# `models/README.md`.
