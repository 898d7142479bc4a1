# %% [markdown]
# # A toy that has learnt to decline, and what one direction does to it
#
# The shipped gated97 was pretrained to add mod 97 and then fine-tuned to answer one of four DECLINE tokens where both operands
# are among 48 numbers. Directions are found on half of the training prompts and removed at every writer; prompts held out of
# both trainings are scored, beside covariance-drawn directions. One thread: about 15 seconds. Expect the last line:
# `k = 1: declines 0.00 (drawn 0.81), sums recovered 0.93 (0.03), open prompts kept 1.00 (0.66)`

# %%
import torch

import mi_ablate as mi
from mi_ablate.toys.gated import declined, directions

torch.set_num_threads(1)
toy = mi.toys.load("gated97")
print(toy)
gated = toy.inputs["gated"].bool()
half = toy.train & (torch.rand(len(gated), generator=torch.Generator().manual_seed(0)) < 0.5)

# %% The direction that declining writes, in the stream before the first MLP, at the last position.
site = "blocks.0.hook_resid_mid"
acts = mi.collect(toy.model, toy.tokens[half], site)[site]
found = directions(acts, toy.answers[half], toy.modulus, rank=4)
print(found)

# %% Three questions on prompts that no training saw: does it still decline, does it give the sum instead, and does it still add
# what it was allowed to add? The same subspace at every writer, at the last position.
held_out = ~toy.train
asked = {
    "declines": (held_out & gated, declined(toy.modulus)),
    "sums recovered": (held_out & gated, mi.accuracy(toy.inputs["sum"][held_out & gated])),
    "open prompts kept": (held_out & ~gated, mi.accuracy(toy.inputs["sum"][held_out & ~gated])),
}
drawn = {"covariance": mi.controls.covariance(acts)}
curves = {}
for name, (rows, metric) in asked.items():
    curves[name] = mi.removal_curve(
        toy.model, toy.tokens[rows], found, metric, at=mi.writers(toy.model), pos=-1, controls=drawn
    )
    print(name, [round(float(value), 3) for value in curves[name].values], curves[name])
curves["declines"].plot()

# %%
at = {name: (float(c.values[1]), float(c.controls["covariance"][:, 1].mean())) for name, c in curves.items()}
(d, drawn_d), (s, drawn_s), (o, drawn_o) = at.values()
print(
    f"k = 1: declines {d:.2f} (drawn {drawn_d:.2f}), sums recovered {s:.2f} ({drawn_s:.2f}), "
    f"open prompts kept {o:.2f} ({drawn_o:.2f})"
)
