"""Direction candidates at all layers and sites of a model of GPT-2 small's size: time and peak memory.

Answer first: the differences of means of `find.candidates` and of the loop must agree, and the loop's in float64. Times
are CPU seconds, the ratio is to the bare forward passes that any method needs (the same batches, up to the last block).
The peer is what FailSpy's abliterator does, re-written here: run_with_cache on every batch, keep all activations of the
sites, concatenate, take the mean at the last position. Peak memory is the growth of the resident set in a fresh process,
for two numbers of prompts. Random weights (time and memory do not depend on them).
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from _timing import arguments, interleaved, record
from transformer_lens import HookedTransformer, HookedTransformerConfig

import mi_ablate as mi

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")
BATCH = 8


def gpt2_small() -> HookedTransformer:
    config = HookedTransformerConfig(
        n_layers=12, d_model=768, d_head=64, n_heads=12, n_ctx=128, d_vocab=50257, act_fn="gelu_new",
        normalization_type="LN", seed=0,
    )  # fmt: skip
    return HookedTransformer(config).eval()


def prompts(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 50257, (n, 32), generator=torch.Generator().manual_seed(0)), torch.arange(n) % 2 == 0


def bare(model, tokens, labels) -> None:
    with torch.no_grad():
        for batch in tokens.split(BATCH):
            model(batch, return_type=None, stop_at_layer=model.cfg.n_layers)


def ours(model, tokens, labels) -> mi.find.Candidates:
    return mi.find.candidates(model, tokens, labels, SITES, batch_size=BATCH)


def cache_then_mean(model, tokens, labels) -> dict[str, torch.Tensor]:
    names = {name for site in SITES for name in mi.sites(model, site)}
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for batch in tokens.split(BATCH):
        with torch.no_grad():
            _, cache = model.run_with_cache(batch, names_filter=lambda name: name in names)
        for name in names:
            kept[name].append(cache[name].cpu())
    acts = {name: torch.cat(parts)[:, -1] for name, parts in kept.items()}
    return {name: x[labels].mean(0) - x[~labels].mean(0) for name, x in acts.items()}


RUNS = {"bare forward passes": bare, "find.candidates": ours, "cache everything, then mean": cache_then_mean}


def check(model, tokens, labels) -> tuple[int, float]:
    """How many candidates, and the largest relative difference from the loop and from float64 means of collected acts."""
    found, loop = ours(model, tokens, labels), cache_then_mean(model, tokens, labels)
    worst = 0.0
    exact = mi.collect(model, tokens, SITES, batch_size=BATCH)
    for key in found:
        vector, theirs = found.subspace(*key).vector, loop[key.site]
        x = exact[key.site].double()
        wanted = x[labels].mean(0) - x[~labels].mean(0)
        if key.head is not None:
            theirs, wanted = theirs[key.head], wanted[key.head]
        assert float((vector - wanted).norm() / wanted.norm()) < 1e-12, key
        worst = max(worst, float((vector - theirs).norm() / wanted.norm()))
    assert worst < 1e-4, f"other directions than the loop's: {worst}"
    return len(found), worst


def measure(rounds: int) -> dict[str, object]:
    model, (tokens, labels) = gpt2_small(), prompts(2 * BATCH)
    count, worst = check(model, tokens, labels)
    runs = {name: lambda run=run: run(model, tokens, labels) for name, run in RUNS.items()}
    table = interleaved(runs, rounds, "bare forward passes")
    return {
        "what": "time",
        "candidates": count,
        "prompts": list(tokens.shape),
        "rounds": rounds,
        "largest_difference": worst,
        "table": table,
    }


def resident(field: str) -> float:
    """A line of /proc/self/status in MiB: VmRSS is now, VmHWM the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def peak(name: str, n: int) -> None:
    """Print by how many MiB the resident set grew at its peak; for a fresh process."""
    torch.set_num_threads(1)
    model, (tokens, labels) = gpt2_small(), prompts(n)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    RUNS[name](model, tokens, labels)
    print(json.dumps(resident("VmHWM") - before))


def memory(counts: tuple[int, ...]) -> dict[str, object]:
    grown: dict[str, dict[str, float]] = {}
    for name in RUNS:
        for n in counts:
            command = [sys.executable, __file__, "--peak", name, str(n)]
            out = subprocess.run(command, capture_output=True, text=True, check=True)
            grown.setdefault(name, {})[str(n)] = float(out.stdout.splitlines()[-1])
    return {"what": "growth of the resident set at its peak, MiB, by number of prompts", "grown": grown}


if __name__ == "__main__":
    if "--peak" in sys.argv:
        peak(sys.argv[2], int(sys.argv[3]))
    else:
        options = arguments()
        torch.set_num_threads(1)
        record("candidates", measure(options.rounds or 11), options.write)
        record("candidates", memory((32, 96)), options.write)
