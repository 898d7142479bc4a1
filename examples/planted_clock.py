# %% [markdown]
# # Helix and Clock on a transformer that was written by hand
#
# `planted()` is a GPT-2 of four layers whose weights hold the Clock algorithm and nothing else: numbers on a generalized helix,
# one head that copies a's, one that copies b's, an MLP that builds helix(a + b), and a head and an MLP in each of two later
# layers that write the answer. So every measure has a right answer, and here each is compared with it. No training, no
# download; about a minute on one thread of a 2-core machine. Expect the last line:
# `helix r2 1.000 (shuffled numbers 0.09); a,b heads L1H1, L1H3; answer heads L2H2, L3H2; a + b built by L1 mlp`

# %%
from mi_ablate import arithmetic

planted = arithmetic.planted()
model, truth = planted.model, planted.truth
print(planted)

# %% Prompts: one length, operands of one token each at known positions, and what the model answers.
sums = arithmetic.problems(model, "add", template=planted.template, limit=1000)
asked = arithmetic.asked(model, sums)
print(sums, asked, sep="\n")

# %% How a is represented on its own token: one pass, per-number means, then every fit from them.
means = arithmetic.number_means(model, sums, "resid_pre", of="a")
fits = arithmetic.helix_fits(means)
print(fits)
shuffled = arithmetic.method_fits(means, "shuffled")

# %% Writing it: the value of another prompt's a, as each method has it, on the token of a. "full" is the ceiling,
# "shuffled" the floor; "random" is a covariance-drawn subspace of the helix's dimension.
pairs_a = arithmetic.pairs(sums, 50, fixed="b")
swaps = arithmetic.swap(model, pairs_a, arithmetic.reconstructions(means), at="a")
print(swaps)

# %% The Clock at the last token: which heads bring a and b, which write a + b, and which MLP builds it.
pairs = arithmetic.pairs(sums, 100)
heads = arithmetic.head_roles(model, sums, pairs)
mlps = arithmetic.mlp_roles(model, sums, pairs)
print(heads, mlps, sep="\n")

# %% Beside what was planted.
print("planted:", {name: f"L{layer}H{head}" for name, (layer, head) in truth.heads.items()})
moves, writes = (", ".join(sorted(head.name for head in heads.of(label))) for label in ("a,b", "a+b"))
builder = min((row for row in mlps.table() if row["built"] > 0.99), key=lambda row: row["direct share"])
print(
    f"helix r2 {float(fits.r2.max()):.3f} (shuffled numbers {float(shuffled.r2.max()):.2f}); a,b heads {moves}; "
    f"answer heads {writes}; a + b built by L{builder['layer']} mlp"
)
