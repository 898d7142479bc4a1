# %% [markdown]
# # A behaviour of GPT-2: found in two sets of prompts, removed, measured
#
# Runs from top to bottom on `gpt2` (downloaded from the Hugging Face Hub) or any other name that TransformerLens knows: set the
# environment variable MI_ABLATE_EXAMPLE_MODEL to "pythia-70m", to a folder, or to "diary", the shipped language model, which
# needs no network. The tests run it on "diary", about 20 seconds on one thread; the released weights of GPT-2 were never run by
# us. On "diary": Expect the last line:
# `one direction removed: good and bad days differ by 0.02 of what they did (control: 0.79); hooks = weights: True`

# %% Install, where it is not there yet (Colab). MI_ABLATE_SOURCE may be a wheel, a folder or a git address.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("mi_ablate") is None:
    source = os.environ.get("MI_ABLATE_SOURCE", "mi_ablate")
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", source])

# %% The model, and two sets of prompts that differ in one thing. Put your own files in their place:
# `mi.contrasted(model, "yes.txt", "no.txt")`, one prompt a line.
import torch

import mi_ablate as mi

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
name = os.environ.get("MI_ABLATE_EXAMPLE_MODEL", "gpt2")
model = mi.load_model(name)
positive, negative = mi.contrasts.load("mood" if name == "diary" else "sentiment")
prompts = mi.contrasted(model, positive, negative)
print(prompts)
print("+", positive[0])
print("-", negative[0])

# %% Everything in one call: the answers by which the behaviour is seen, a candidate at every layer, the choice on one part of
# the prompts, the effect on another, beside directions as large.
found = mi.abliterate(model, prompts, draws=3)
print(found.answers)
print(found.choice)
found.choice.plot()

# %% What removing the direction does to prompts that took no part. "within" is the control that is blind to the contrast.
for row in found.table():
    print(
        row["prompts"], row["measure"], *(f"{k} {row[k]:.3f}" for k in ("clean", "edited", "within", "pca") if k in row)
    )
found.effects["positive", "preference"].plot()

# %% Against the number of directions.
found.curve.plot()

# %% The same hooks in your own code, and the same edit as weights.
probe = prompts.test.positives[:4]
mask = probe.attention_mask.long()
with torch.no_grad(), mi.attached(model, found.hooks):
    hooked = model(probe.tokens, attention_mask=mask)
print("next tokens:", [model.tokenizer.decode([token]) for token in hooked[:, -1].argmax(-1).tolist()])
difference = mi.verify_baked(model, found.hooks, probe.tokens, attention_mask=probe.attention_mask)
print(f"hooks and weights differ by {difference:.1e} of the largest logit")

# %% Where along a prompt is the direction? Coordinates of every token, layer by layer.
row = prompts.test.positives[0]
sites = mi.sites(model, "resid_post")
coordinates = mi.along(model, row.tokens[row.attention_mask], found.choice.subspace, sites)
mi.figures.tokens(coordinates, row.str_tokens(0), sites, label="coordinate along the direction (units of the stream)")

# %% Keep it: one file with a card. `mi-ablate show`, `apply` and `attention` read it; `mi-ablate apply --export DIR` writes the
# edited model as a Hugging Face folder.
os.makedirs("out", exist_ok=True)
print(found.save("out/edit.safetensors"))
left = {run: found.left(run) for run in ("edited", "within")}
if found.shown:
    kinds = "good and bad days" if name == "diary" else "the two kinds of prompts"
    print(
        f"one direction removed: {kinds} differ by {left['edited']:.2f} of what they did (control: {left['within']:.2f}); "
        f"hooks = weights: {difference < 1e-5}"
    )
else:
    print("the model scores the two kinds of prompts alike: there is nothing to remove")
