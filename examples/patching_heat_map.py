# %% [markdown]
# # Where does the model keep its first operand? A patching heat map
#
# Pairs of prompts that differ in a alone: (a + b) and (a' + b). One run's activation is written into the other, one place at a
# time; 1 means that the place alone carries all of the difference in the logits. Writes out/patching.html. One thread: about
# 15 seconds. Expect the last line: `the stream: a 1.00, = at the end 1.00; shuffled a 0.50; best head 0.33, shuffled 0.39`.

# %%
import torch

import mi_ablate as mi
from mi_ablate.report import Section, page

torch.set_num_threads(1)
toy = mi.toys.load("add97")
generator = torch.Generator().manual_seed(0)
clean = toy.tokens[torch.randperm(len(toy.tokens), generator=generator)[:128]]
corrupted = clean.clone()
corrupted[:, 0] = (clean[:, 0] + torch.randint(1, 97, (128,), generator=generator)) % 97

# %% The metric: the logit of the clean answer against that of the corrupted one. It does not saturate, as accuracy does.
right, wrong = ((tokens[:, 0] + tokens[:, 2]) % 97 for tokens in (clean, corrupted))
metric = mi.logit_diff(right, wrong)

# %% Denoise: corrupted runs with one clean activation. The stream before each layer and after the last, at every position.
stream = mi.patch(toy.model, clean, corrupted, metric, ["resid_pre", mi.last_residual(toy.model)])
print(stream)

# %% The control is the same patch from another pair. A third operand gives neither answer, so the difference of the two logits
# goes to about 0, half way: 0.5 is what destroying the operand looks like, and 1.0 what moving it looks like.

# %% The same at each head's output, at the last position: each of layer 0 destroys as much as it moves.
heads = mi.patch(toy.model, clean, corrupted, metric, "z", pos=-1, head="each")
for row in heads.top(3):
    print(f"{row['site']} head {row['head']}: {row['normalised']:.2f} (shuffled {row['shuffled']['mean']:.2f})")

# %% Noise: clean runs with one corrupted activation. What is sufficient need not be necessary.
necessary = mi.patch(toy.model, clean, corrupted, metric, "z", pos=-1, head="each", mode="noise")
print(necessary)

# %% The heat maps, as a page that opens offline.
labels = ["a", "+", "b", "="]
pictures = [stream.plot(tokens=labels), heads.plot(), necessary.plot()]
print(page("out/patching.html", "Where is the first operand?", [Section("Patching", content=pictures)]))

first, last = stream.normalised[0, 0, 0], stream.normalised[-1, -1, 0]
shuffled = stream.share(stream.controls["shuffled"]).mean(0)[0, 0, 0]
best = heads.top(1)[0]
print(
    f"the stream: a {first:.2f}, = at the end {last:.2f}; shuffled a {shuffled:.2f}; "
    f"best head {best['normalised']:.2f}, shuffled {best['shuffled']['mean']:.2f}"
)
