"""Choosing among candidates on a model of GPT-2 small's size: CPU time a pass, and peak memory by number of prompts.

Answer first: bypass, induce and KL of `choose` must be those of a naive loop to 1e-4. The loop runs three whole passes a
candidate (both classes with it removed, the negatives with it added) under bare hooks, and one clean one. The unit is one
whole forward pass of one candidate's prompts, so the loop is near 1 by construction, and `choose` is below 1 by what it
leaves out: logits at positions that nothing reads, and the blocks below an addition. Peak memory is the growth of the
resident set in a fresh process. Random weights (time and memory do not depend on them).
"""

import json
import subprocess
import sys

import torch
from _timing import arguments, interleaved, record
from candidates import gpt2_small, prompts, resident

import mi_ablate as mi

LAYERS = range(0, 12, 2)
ROWS = 4
METRIC = mi.refusal_score(torch.tensor([1, 2, 3]))


def found(model, tokens, labels, layers=LAYERS) -> mi.find.Candidates:
    names = [f"blocks.{layer}.hook_resid_post" for layer in layers]
    return mi.find.candidates(model, tokens, labels, names, batch_size=ROWS)


def ours(model, tokens, labels, grid) -> mi.Choice:
    return mi.choose(model, grid, tokens, labels, METRIC, kl_max=None, drop_last=0, batch_size=ROWS)


def passes(model, tokens, labels, grid) -> None:
    """One whole clean pass of what each candidate needs: the positives once, the negatives twice."""
    with torch.no_grad():
        for _ in range(len(grid)):
            for part in (tokens[labels], tokens[~labels], tokens[~labels]):
                for batch in part.split(ROWS):
                    model(batch)


def naive(model, tokens, labels, grid) -> dict[str, tuple[float, float, float]]:
    def logits(part: torch.Tensor, hooks) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model.run_with_hooks(b, fwd_hooks=hooks)[:, -1:] for b in part.split(ROWS)])

    up, down, scores = tokens[labels], tokens[~labels], {}
    clean = logits(down, [])
    for key in grid:
        s = grid.subspace(*key)
        gone, added = mi.Ablate(s).at(*mi.writers(model)), mi.Add(s.vector).at(key.site)
        kl = mi.kl()(logits(down, gone), clean, torch.arange(len(down))).mean()
        means = [
            METRIC(logits(part, edit), None, torch.arange(len(part))).mean()
            for part, edit in ((up, gone), (down, added))
        ]
        scores[key.site] = (*map(float, means), float(kl))
    return scores


RUNS = {"whole forward passes": passes, "choose": ours, "naive loop": naive}


def measure(rounds: int) -> dict[str, object]:
    model, (tokens, labels) = gpt2_small(), prompts(2 * ROWS)
    grid = found(model, tokens, labels)
    theirs = naive(model, tokens, labels, grid)
    worst = 0.0
    for row in ours(model, tokens, labels, grid).table():
        for a, b in zip((row["bypass"], row["induce"], row["kl"]), theirs[row["site"]]):
            worst = max(worst, abs(a - b))
    assert worst < 1e-4, f"other scores than the loop's: {worst}"
    runs = {name: lambda run=run: run(model, tokens, labels, grid) for name, run in RUNS.items()}
    table = interleaved(runs, rounds, "whole forward passes")
    shape = {"candidates": len(grid), "prompts": list(tokens.shape), "rounds": rounds}
    return {"what": "time", **shape, "largest_difference": worst, "table": table}


def peak(n: int) -> None:
    """Print by how many MiB the resident set grew at its peak; for a fresh process."""
    torch.set_num_threads(1)
    model, (tokens, labels) = gpt2_small(), prompts(n)
    grid = found(model, tokens[: 2 * ROWS], labels[: 2 * ROWS], (5,))
    before = resident("VmRSS")
    ours(model, tokens, labels, grid)
    print(json.dumps(resident("VmHWM") - before))


def memory(counts: tuple[int, ...]) -> dict[str, object]:
    grown = {}
    for n in counts:
        command = [sys.executable, __file__, "--peak", str(n)]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[str(n)] = float(out.stdout.splitlines()[-1])
    return {"what": "growth of the resident set at its peak, MiB, by number of prompts", "grown": grown}


if __name__ == "__main__":
    if "--peak" in sys.argv:
        peak(int(sys.argv[2]))
    else:
        options = arguments()
        torch.set_num_threads(1)
        record("choosing", measure(options.rounds or 3), options.write)
        record("choosing", memory((32, 96)), options.write)
