# %% [markdown]
# # A circuit removed from a toy that does two things
#
# The shipped addmul97 adds and multiplies mod 97. Directions of the answers of each operation are found on half of the prompts
# and removed, and both operations are scored on the other half: was that the circuit of one, or a part of both? One thread:
# about 20 seconds. Expect the last line:
# `addition's edit costs addition 0.99, multiplication 0.02 (drawn 0.87, 0.03); multiplication's 0.14, 0.25`

# %%
import torch

import mi_ablate as mi

torch.set_num_threads(1)
toy = mi.toys.load("addmul97")
site = mi.last_residual(toy.model)
operation = toy.inputs["operation"]
names = {"additions": 0, "multiplications": 1}

# %% Find on a random half, score on the other.
half = torch.rand(len(toy.tokens), generator=torch.Generator().manual_seed(0)) < 0.5
acts = mi.collect(toy.model, toy.tokens, site)[site]
directions = {
    name: mi.find.class_means(acts[half & (operation == i)], toy.answers[half & (operation == i)], rank=16, name=name)
    for name, i in names.items()
}
print(directions)

# %% How many directions does each need? Beside covariance-drawn subspaces and the top principal components.
tests = {name: ~half & (operation == i) for name, i in names.items()}
for name, rows in tests.items():
    metric = mi.accuracy(toy.answers[rows])
    curve = mi.removal_curve(toy.model, toy.tokens[rows], directions[name], metric, at=site, draws=3, ablation="mean")
    print(f"{name}: {curve}; dead (at most 5 %) from k = {curve.k_kill()}")

# %% Two operations, two removals: does each hit its own? Addition dies and multiplication does not notice; but subspaces drawn
# from the covariance of addition's activations do the same, so the selectivity is that of where these activations are large,
# not of these directions. And it is no double dissociation: multiplication resists its own removal.
tasks = {name: (toy.tokens[rows], mi.accuracy(toy.answers[rows])) for name, rows in tests.items()}
means = {name: acts[half & (operation == i)].double().mean(0) for name, i in names.items()}
edits = {name: mi.Ablate(directions[name], to=means[name]).at(site, pos=-1) for name in names}
found = mi.double_dissociation(toy.model, tasks, edits, draws=3)
print(found)
rows = {row["edit"]: row for row in found.table()}
own, other = rows["additions"], rows["multiplications"]
costs = [own["drop of additions"], own["drop of multiplications"]]
drawn = [own[f"covariance: drop of {name}"]["mean"] for name in names]
theirs = [other["drop of additions"], other["drop of multiplications"]]
print(
    f"addition's edit costs addition {costs[0]:.2f}, multiplication {costs[1]:.2f} (drawn {drawn[0]:.2f}, {drawn[1]:.2f}); "
    f"multiplication's {theirs[0]:.2f}, {theirs[1]:.2f}"
)
