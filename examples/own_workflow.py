# %% [markdown]
# # Adding mi_ablate's hooks to a workflow that you already have
#
# A 2-core laptop-class machine, one thread: about 15 seconds. Expect the last line: `turned 0.949, control 0.015`.

# %%
import mi_ablate as mi

toy = mi.toys.load("add97")
model, tokens = toy.model, toy.tokens

# %% An intervention prints, and becomes a list of (name, hook) with .at(...)
site = mi.last_residual(model)
acts = mi.collect(model, tokens, site)[site]
directions = mi.fit(acts, mi.classes(toy.answers)).subspace(rank=20)
remove = mi.Ablate(directions, to=acts.double().mean(0))
print(remove, remove.at(site, pos=-1))

# %% Your own TransformerLens code takes that list as it is ...
logits = model.run_with_hooks(tokens[:100], fwd_hooks=remove.at(site, pos=-1))

# %% ... and `attached` does the same, but raises when a name is wrong or a hook did not fire.
with mi.attached(model, remove.at(site, pos=-1)) as firings:
    same = model(tokens[:100])
print("fired", [f.fired for f in firings], "largest difference", float((same - logits).detach().abs().max()))

# %% Heads are addressed before W_O, neurons by number, several edits compose with +.
edits = mi.Ablate(None).at("blocks.0.attn.hook_z", head=2) + mi.Ablate(None).at("blocks.1.mlp.hook_post", unit=[3, 17])
with mi.attached(model, edits) as firings:
    model(tokens[:100])
print("fired", [f.fired for f in firings])

# %% The same projection in the weights of every writer, with the proof.
everywhere = mi.Ablate(directions[:2])
print("hooks and weights differ by", mi.verify_baked(model, everywhere, tokens[:200]), "of the largest logit")

# %% A saved intervention loads in one line; its card says what it was claimed to do.
from pathlib import Path

saved = Path(__file__).parents[1] / "hooks" / "saved" / "add97_turn_answer_by_5.safetensors"
turn = mi.load(saved, model)
found = mi.effect(model, tokens, turn, mi.accuracy((toy.answers + 5) % 97))
rows = {row["run"]: row["mean"] for row in found.table()}
print(f"turned {rows['edited']:.3f}, control {rows['covariance']:.3f}")
