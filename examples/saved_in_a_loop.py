# %% [markdown]
# # A saved intervention in somebody else's loop
#
# The loop below knows nothing of mi_ablate: it is the kind of evaluation that people already have. A saved intervention goes
# in by one `with`, or as the `fwd_hooks` that TransformerLens takes. One thread: about 10 seconds. Expect the last line:
# `clean 1.000, turned by five 0.949, weights baked 1.000 of the hooks' answers`.

# %%
from pathlib import Path

import torch

import mi_ablate as mi

torch.set_num_threads(1)
toy = mi.toys.load("add97")


# %% Somebody else's code: batches, logits, a number.
@torch.no_grad()
def evaluate(model, prompts, answers, batch_size=512):
    right = 0
    for start in range(0, len(prompts), batch_size):
        logits = model(prompts[start : start + batch_size])
        right += int((logits[:, -1].argmax(-1) == answers[start : start + batch_size]).sum())
    return right / len(prompts)


clean = evaluate(toy.model, toy.tokens, toy.answers)

# %% The file says what it is, for which model, and what it claims; another model is refused.
saved = Path(__file__).parents[1] / "hooks" / "saved" / "add97_turn_answer_by_5.safetensors"
card = mi.read_card(saved)
print(card["title"], card["claim"]["metric"])
hooks = mi.load(saved, toy.model)

# %% Their loop, unchanged, inside `attached`: every hook is checked to fire, and gone afterwards.
with mi.attached(toy.model, hooks) as firings:
    turned = evaluate(toy.model, toy.tokens, (toy.answers + 5) % 97)
print("fired", [firing.fired for firing in firings], "and afterwards", evaluate(toy.model, toy.tokens, toy.answers))

# %% Or no hooks at all: an edit of every writer becomes weights for the length of a block.
direction = mi.find.difference_of_means(
    mi.collect(toy.model, toy.tokens, "blocks.0.hook_resid_post")["blocks.0.hook_resid_post"], toy.answers < 48
)
everywhere = mi.Ablate(direction)
with torch.no_grad(), mi.attached(toy.model, everywhere.at(*mi.writers(toy.model))):
    hooked = torch.cat([toy.model(part)[:, -1].argmax(-1) for part in toy.tokens.split(512)])
with mi.baked(toy.model, everywhere) as edited:
    same = evaluate(edited, toy.tokens, hooked)
print(f"clean {clean:.3f}, turned by five {turned:.3f}, weights baked {same:.3f} of the hooks' answers")
