"""The whole of `mi-ablate ablate` on a model of GPT-2 small's size: its time against bare forward passes, its memory.

128 + 128 prompts of 32 random tokens, random weights (neither time nor memory depends on them). The answer is checked
first: the chosen direction is the difference of means of collected activations, and its scores are those of a loop of
run_with_hooks over the same prompts. The base is as many prompts as went through the model, in ordinary forward passes
with logits, of the batch size that the pipeline takes; they run before and after. Peak memory is the growth of the
resident set in a fresh process, for two numbers of prompts, four a pass, with one candidate, with glibc told to give freed
memory back (MALLOC_MMAP_THRESHOLD_); as it comes, its fragments make the process grow with the number of passes.
"""

import json
import os
import subprocess
import sys
import time

import torch
from _timing import arguments, record
from candidates import gpt2_small, resident

import mi_ablate as mi
from mi_ablate.abliteration import abliterate
from mi_ablate.model import default_batch_size
from mi_ablate.prompts import Contrast, contrasted


def prompts(model, n: int) -> Contrast:
    tokens = torch.randint(0, 50257, (2 * n, 32), generator=torch.Generator().manual_seed(0)).tolist()
    return contrasted(model, tokens[:n], tokens[n:])


def bare(model, tokens: torch.Tensor, count: int) -> float:
    """CPU seconds of ordinary forward passes of ``count`` prompts."""
    size = default_batch_size(model, tokens.shape[1])
    start = time.process_time()
    with torch.no_grad():
        for first in range(0, count, size):
            model(tokens[torch.arange(first, min(first + size, count)) % len(tokens)])
    return time.process_time() - start


def check(model) -> float:
    """The largest difference of the chosen candidate's scores from a plain loop's."""
    contrast = prompts(model, 8)
    found = abliterate(model, contrast, ks=(), draws=1, limit=2, new_tokens=0)
    best = found.choice.best
    x = mi.collect(model, contrast.find.prompts.tokens, best.site, pos=best.pos)[best.site].double()
    wanted = x[contrast.find.labels].mean(0) - x[~contrast.find.labels].mean(0)
    assert float((found.choice.subspace.vector - wanted).norm() / wanted.norm()) < 1e-6
    r = (wanted / wanted.norm()).float()
    hooks = [(name, lambda y, hook: y - (y @ r)[..., None] * r) for name in mi.writers(model)]
    tokens = contrast.validation.positives.tokens
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    naive = float(found.answers.metric(logits.detach(), None, torch.arange(len(tokens))).mean())
    difference = abs(found.choice.table()[0]["bypass"] - naive)
    assert difference < 1e-3, f"bypass is {difference} off the loop's"
    return difference


def measure() -> dict[str, object]:
    model = gpt2_small()
    difference = check(model)
    contrast = prompts(model, 128)
    tokens = contrast.find.prompts.tokens
    before = bare(model, tokens, 300)
    start = time.process_time()
    found = abliterate(model, contrast, new_tokens=0)
    seconds = time.process_time() - start
    after = bare(model, tokens, 300)
    base = found.passes * (before + after) / 600
    return {
        "what": "time",
        "prompts": "128 + 128 x 32 tokens",
        "candidates": found.choice.tried,
        "prompt_passes": found.passes,
        "seconds": seconds,
        "forward_passes_seconds": base,
        "forward_passes_before_and_after": [before, after],
        "ratio": seconds / base,
        "largest_difference": difference,
    }


def peak(n: int) -> None:
    """Print by how many MiB the resident set grew at its peak; for a fresh process."""
    from pathlib import Path

    torch.set_num_threads(1)
    model = gpt2_small()
    contrast = prompts(model, n)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    abliterate(model, contrast, ks=(1,), draws=1, limit=1, new_tokens=0, batch_size=4)
    print(json.dumps(resident("VmHWM") - before))


def memory(counts: tuple[int, ...]) -> dict[str, object]:
    grown = {}
    for n in counts:
        command = [sys.executable, __file__, "--peak", str(n)]
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        grown[str(2 * n)] = float(out.stdout.splitlines()[-1])
    return {"what": "growth of the resident set at its peak, MiB, by number of prompts", "grown": grown}


if __name__ == "__main__":
    if "--peak" in sys.argv:
        peak(int(sys.argv[2]))
    else:
        options = arguments()
        torch.set_num_threads(1)
        record("ablate", measure(), options.write)
        record("ablate", memory((16, 48)), options.write)
