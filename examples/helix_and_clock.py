# %% [markdown]
# # Numbers in GPT-2 or Pythia: spectrum, helix, and what writing a number back does
#
# Runs from top to bottom on `gpt2` (downloaded from the Hugging Face Hub) or any other name that TransformerLens knows: set the
# environment variable MI_ABLATE_EXAMPLE_MODEL to "pythia-2.8b", to a folder, or to "adder", the shipped GPT-2 that adds, which
# needs no network. Where a model answers nothing right (GPT-2 cannot add), the representation is shown and the causal part is
# left out. The tests run it on "adder", about 20 seconds on one thread; the released weights of GPT-2 and Pythia were never run
# by us. On "adder": Expect the last line:
# `adder: helix of free periods r2 0.49, of base 10 0.25, polynomial 0.39; logit difference 16.25 of 22.51 (shuffled -2.52)`

# %% Install, where it is not there yet (Colab). MI_ABLATE_SOURCE may be a wheel, a folder or a git address.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("mi_ablate") is None:
    source = os.environ.get("MI_ABLATE_SOURCE", "mi_ablate")
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", source])

# %% The model and its prompts. "{a}+{b}=" has both operands bare in every tokenizer; " {a} + {b} =" has both after a space.
import torch

import mi_ablate as mi
from mi_ablate import arithmetic

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
name = os.environ.get("MI_ABLATE_EXAMPLE_MODEL", "gpt2")
model = mi.load_model(name)
sums = arithmetic.problems(model, "add", template="{a}+{b}=", limit=2000)
asked = arithmetic.asked(model, sums)
print(sums, asked, sep="\n")

# %% Every layer in one pass: the mean activation of each value of a, on a's token.
means = arithmetic.number_means(model, sums, "resid_pre", of="a")
site = means.sites[min(1, len(means.sites) - 2)]  # entering layer 1; 0 of a model of two layers
spectrum = arithmetic.number_spectra(means, of_interest=(2, 5, 10))
print(spectrum)

# %% Which periods? None is assumed; each stands beside the same search over shuffled numbers.
free = arithmetic.free_periods(means, site, 4)
for row in free.table():
    print(row)

# %% The helix of these periods, that of base 10, a polynomial of as many columns, and shuffled numbers.
fits = arithmetic.helix_fits(means, free.periods)
base10 = arithmetic.helix_fits(means)
polynomial = arithmetic.method_fits(means, "polynomial", free.periods)
shuffled = arithmetic.method_fits(means, "shuffled", free.periods)
i = means.index(site)
for label, found in (("free", fits), ("base 10", base10), ("polynomial", polynomial), ("shuffled", shuffled)):
    print(f"{label:<11} R² {float(found.r2_means[i]):.3f}, of numbers left out {float(found.loo[i]):.3f}")

# %% Where the numbers lie in the fit's own coordinates; turn it with the mouse.
at = arithmetic.projected(means, fits.fit(site), site)
column = fits.labels.index
circles = {T: at[:, [column(f"a:cos {T:g}"), column(f"a:sin {T:g}")]] for T in fits.periods}
mi.figures.helix(means.values, circles, at[:, column("a:linear")], f"{name}, {site}")

# %% What writing does: on the token of a, the value that each method has for another prompt's a. Numbers are held out in five
# parts: no fit has seen the number that it writes. "full" is the ceiling, "shuffled" the floor.
if asked.n_correct:
    pairs = arithmetic.pairs(asked.right, 100, fixed="b")
    swaps = arithmetic.swap(model, pairs, arithmetic.reconstructions(means, free.periods), site, at="a")
    gain = {method: float(swaps.mean()[m, 0]) for m, method in enumerate(swaps.methods)}
    print(swaps)

# %% The Clock, or what there is of it: heads that bring the operands, heads and MLPs that write the answer. `mi-ablate clock
# MODEL` has all of it, with neurons and the heuristics beside it.
if asked.n_correct:
    both = arithmetic.pairs(asked.right, 100)
    heads = arithmetic.component_effects(model, both, "heads")
    mlps = arithmetic.component_effects(model, both, "mlps")
    print(heads, mlps, sep="\n")

# %%
r2 = [float(found.r2_means[i]) for found in (fits, base10, polynomial)]
what = f"{name}: helix of free periods r2 {r2[0]:.2f}, of base 10 {r2[1]:.2f}, polynomial {r2[2]:.2f}"
if asked.n_correct:
    what += f"; logit difference {gain['helix']:.2f} of {gain['full']:.2f} (shuffled {gain['shuffled']:.2f})"
print(what)
