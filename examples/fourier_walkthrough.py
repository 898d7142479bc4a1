# %% [markdown]
# # Nanda et al.'s analysis of modular addition, on the shipped model
#
# The steps of "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217) on nanda113: one layer,
# ReLU, no LayerNorm, mod 113, trained here with the settings of the paper. One thread: about 15 seconds.
# Expect the last line: `without 8 the loss is 14.32, without 42 0.00; 3 frequencies alone: 0.00; clock, gs -0.05, di 0.97`
#
# Nanda et al. publish weights of their own as PyTorch pickles with the paper's code, at
# github.com/mechanistic-interpretability-grokking/progress-measures-paper. `mi-ablate convert FILE.pth nanda.safetensors` reads
# such a pickle without executing it. Then put "nanda.safetensors" in place of "nanda113" below, or run
# `mi-ablate fourier nanda.safetensors`, which writes everything below, and more, as a page.

# %%
import torch

import mi_ablate as mi
from mi_ablate.modular import (
    causal_table,
    cosine_share,
    embedding_spectrum,
    excluded_loss,
    full_loss,
    grid,
    key_frequencies,
    neuron_frequencies,
    neuron_spectrum,
    restricted_loss,
    verdict,
)

torch.set_num_threads(1)
pairs = grid(mi.toys.load("nanda113"))
print(pairs, f"accuracy {pairs.accuracy:.4f}, loss {full_loss(pairs).value:.2e}")

# %% The embedding is sparse in frequencies (section 4.1). Which are the key ones? Every published rule under its own name; here
# they agree on 8, 21 and 1, and "energy" takes five whatever happens.
print(embedding_spectrum(pairs))
keys = key_frequencies(pairs)
for rule in keys.values():
    print(rule)
chosen = list(keys["nanda_text"].frequencies)

# %% Neurons compute products of two waves of one frequency: clusters, and how much is a function of a + b (section 4.2).
print(neuron_frequencies(pairs.acts("blocks.0.mlp.hook_post")))
print(neuron_spectrum(pairs))

# %% The logits are a sum of cos(w(a + b - c)): one pass over them gives every coefficient (section 4.3).
share = cosine_share(pairs.logits)
print(share, f"residual of the key frequencies {share.residual(chosen):.3f}")

# %% Restricted and excluded loss (section 5). Definitions differ between paper, code and demo; every one has its name.
for variant in ("nanda_text", "nanda_colab", "tl_demo"):
    print(restricted_loss(pairs, chosen, variant))
for variant in ("nanda_text", "tl_demo"):
    print(excluded_loss(pairs, chosen, variant))

# %% What is needed: each frequency removed, beside subspaces drawn from the covariance. 42 and 16 are
# the fourth and fifth of W_E and do nothing.
table = causal_table(pairs, keys["energy"].frequencies, draws=3)
for row in table.table():
    print(f"{row['frequency']}: energy {row['W_E energy']:.3f}, loss without it {row['removed loss']:.2e}", end="; ")
    print(f"without drawn subspaces of its rank {row['removed at random loss']:.2e}")

# %% Clock or Pizza (Zhong et al. 2023)? Two measures, calibrated against shuffled weights, and a dispute about what they show.
said = verdict(pairs)
print("\n".join(said.reasons))
alone = restricted_loss(pairs, chosen, "nanda_colab", which="all").value
lost, gs = {k: table.removed[k]["loss"] for k in (8, 42)}, said.gradient_symmetricity.value
print(
    f"without 8 the loss is {lost[8]:.2f}, without 42 {lost[42]:.2f}; {len(chosen)} frequencies alone: {alone:.2f}; "
    f"{said.label}, gs {gs:.2f}, di {said.distance_irrelevance:.2f}"
)
