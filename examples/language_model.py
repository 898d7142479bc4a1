# %% [markdown]
# # The same calls on a language model
#
# `load_model("gpt2")` where the hub is reachable. Offline, and in the tests, a GPT-2 with random weights stands in: the code
# path is the real one, the numbers mean nothing. One thread: about 10 seconds. Expect the last line to start with
# `hooks = weights to`.

# %%
import os
import sys

import torch

import mi_ablate as mi

torch.set_num_threads(1)
name = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MI_ABLATE_EXAMPLE_MODEL", "gpt2")
model = mi.load_model(name)

# %% Two sets of prompts, padded on the left; positions count real tokens where an attention mask is given.
generator = torch.Generator().manual_seed(0)
tokens = torch.randint(1, model.cfg.d_vocab, (32, 8), generator=generator)
mask = torch.ones_like(tokens)
mask[:16, :3] = 0
concept = torch.arange(32) % 2 == 0

# %% Difference of means at every layer in one pass.
sites = mi.sites(model, "resid_post")
acts = mi.collect(model, tokens, sites, pos=-1, attention_mask=mask)
fits = {site: mi.fit(acts[site], mi.contrast(concept)) for site in sites}
for site, found in fits.items():
    print(site, found)

# %% Directional ablation at every writer, beside its controls, on next-token KL.
direction = fits[sites[len(sites) // 2]].subspace()
hooks = mi.Ablate(direction).at(*mi.writers(model))
print(mi.effect(model, tokens, hooks, mi.kl(), attention_mask=mask, draws=2))

# %% The weight edit is the same edit.
print(f"hooks = weights to {mi.verify_baked(model, mi.Ablate(direction), tokens):.1e} of the largest logit")
