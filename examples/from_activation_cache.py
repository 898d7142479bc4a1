# %% [markdown]
# # From an ActivationCache that you already have
#
# You ran `model.run_with_cache` long ago and kept the cache. Everything between reading and editing is linear algebra on two
# matrices, so nothing has to run again to find a direction. One thread: about 10 seconds. Expect the last line:
# `removed 0.222, covariance-drawn 0.389`.

# %%
import torch
from transformer_lens import ActivationCache

import mi_ablate as mi

torch.set_num_threads(1)
toy = mi.toys.load("add97")
model = toy.model

# %% This part is yours: a cache of some prompts, here a third of them.
mine = torch.randperm(len(toy.tokens), generator=torch.Generator().manual_seed(0))[:3136]
logits, cache = model.run_with_cache(toy.tokens[mine], names_filter=lambda name: name.endswith("hook_resid_post"))
assert isinstance(cache, ActivationCache)

# %% A cache's activations are [batch, pos, d_model]; a finder takes one vector an example, and labels.
site = "blocks.1.hook_resid_post"
acts = cache["resid_post", 1][:, -1]
found = mi.find.class_means(acts, toy.answers[mine], rank=20, name="answers")
print(found, "by", found.source["method"], "of", len(acts), "examples")

# %% What the leading direction promotes, and which prompts hold most of it.
print(mi.explain(found, model, site=site, tokens=toy.tokens[mine], directions=1, top=4))

# %% Remove it where it was read, on prompts that the cache never held, beside its controls.
rest = torch.ones(len(toy.tokens), dtype=torch.bool)
rest[mine] = False
answers = mi.accuracy(toy.answers[rest])
effect = mi.effect(model, toy.tokens[rest], mi.Ablate(found).at(site, pos=-1), answers)
print(effect)
rows = {row["run"]: row["mean"] for row in effect.table()}
print(f"removed {rows['edited']:.3f}, covariance-drawn {rows['covariance']:.3f}")
