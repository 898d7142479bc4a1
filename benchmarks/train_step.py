"""Claim: a training step of the toy trainer costs at most 1/2.4 of the same step through HookedTransformer.

The model is the two-layer one of the recipe ``add97`` (d_model 128, 4 heads, LayerNorm, GELU, all biases, p =
97), the batch 512 random prompts. Baseline: ``F.cross_entropy(model(tokens)[:, -1], answers)``, backward and
fused AdamW. Both start from the same weights and see the same batches; the losses of the first steps must
agree before anything is timed. Then both are timed in turn, in CPU seconds of the process, and the medians'
ratio is printed as one JSON line.

    python benchmarks/train_step.py [--rounds 60] [--steps 5] [--write]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
import torch.nn.functional as F
from torch import Tensor

from mi_ablate.toys import stepper
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.recipes import TrainConfig

RESULTS = Path(__file__).parent / "results" / "train_step.jsonl"
CONFIG = ToyConfig(modulus=97)
BATCH = 512
Step = Callable[[Tensor, Tensor], Tensor]


def baseline(config: ToyConfig, state: dict[str, Tensor], settings: TrainConfig) -> Step:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        shape = HookedTransformerConfig(
            n_layers=config.n_layers, d_model=config.d_model, n_heads=config.n_heads, d_head=config.d_head,
            d_mlp=config.d_mlp, n_ctx=config.n_ctx, d_vocab=config.d_vocab, d_vocab_out=config.n_answers,
            act_fn=config.act_fn, normalization_type=config.normalization, device="cpu",
        )  # fmt: skip
        model = HookedTransformer(shape)
    model.load_state_dict(state, strict=False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=settings.betas,
        weight_decay=settings.weight_decay, fused=True,
    )  # fmt: skip

    def step(tokens: Tensor, answers: Tensor) -> Tensor:
        loss = F.cross_entropy(model(tokens)[:, -1], answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def engine(config: ToyConfig, state: dict[str, Tensor], settings: TrainConfig) -> Step:
    return stepper.Stepper(settings, state).step


def batches(config: ToyConfig, n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(config.modulus, (2, n, BATCH), generator=generator)
    op, equals = torch.full_like(a, config.modulus), torch.full_like(a, config.modulus + 1)
    return list(zip(torch.stack((a, op, b, equals), -1), (a + b) % config.modulus))


def seconds(step: Step, data: list[tuple[Tensor, Tensor]]) -> float:
    start = time.process_time()
    for tokens, answers in data:
        step(tokens, answers)
    return (time.process_time() - start) / len(data)


def measure(rounds: int, steps: int) -> dict[str, object]:
    settings = TrainConfig(config=CONFIG, warmup_steps=0, weight_decay=1.0, batch_size=BATCH)
    state = stepper.initial_state(CONFIG, "log", seed=0)
    old, new = baseline(CONFIG, state, settings), engine(CONFIG, state, settings)
    gaps = [abs(float(old(*batch) - new(*batch))) for batch in batches(CONFIG, 10, seed=1)]
    if max(gaps) > 1e-4:
        sys.exit(f"The losses differ by up to {max(gaps):.1e} in the first 10 steps, so nothing was timed.")
    times: dict[str, list[float]] = {"old": [], "new": []}
    for turn in range(rounds):
        data = batches(CONFIG, steps, seed=2 + turn)
        order = [("old", old), ("new", new)][:: 1 if turn % 2 else -1]
        for name, step in order:
            times[name].append(seconds(step, data))
    ratios = [a / b for a, b in zip(times["old"], times["new"])]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "benchmark": "train_step",
        "ratio": round(middle, 3), "ratio_quartiles": [round(low, 3), round(high, 3)],
        "hooked_transformer_ms": round(1e3 * statistics.median(times["old"]), 3),
        "trainer_ms": round(1e3 * statistics.median(times["new"]), 3),
        "largest_loss_gap": max(gaps), "rounds": rounds, "steps": steps, "threads": torch.get_num_threads(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{n: version(n) for n in ("torch", "transformer-lens")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"append the line to {RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = measure(args.rounds, args.steps)
    record |= {"versions": versions(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    record["command"] = f"python benchmarks/train_step.py --rounds {args.rounds} --steps {args.steps} --write"
    print(json.dumps(record))
    if args.write:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
