"""Claim: on a CPU four toys in a stack take no less time than four steps of the toy trainer, so that stays the default.

Stacking is for GPUs, whose times this does not measure. The models are two-layer ones of the recipe ``add97`` (d_model
128, 4 heads, LayerNorm, GELU, all biases, p = 97) with seeds, weight decays and learning rates of their own, the batch 512
random prompts a model. Compared, per model and step: the stack, the trainer's `Stepper`, and HookedTransformer with
autograd and fused AdamW (the baseline of train_step.py). All start from the same weights and see the same batches; the
losses of the first steps must agree before anything is timed. Then they are timed in shuffled turns, in CPU seconds of the
process, and the medians of the rounds' ratios are printed as one JSON line.

    python benchmarks/stacked_step.py [--rounds 40] [--write]
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from _timing import arguments, interleaved, record
from torch import Tensor
from train_step import BATCH, CONFIG, Step, baseline

from mi_ablate.toys import tasks
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.stack import Stack
from mi_ablate.toys.stepper import Stepper, initial_state

MODELS, STEPS, ROUNDS = 4, 3, 40
SETTINGS = [
    TrainConfig(CONFIG, seed=i, weight_decay=wd, learning_rate=rate, warmup_steps=0, batch_size=BATCH)
    for i, (wd, rate) in enumerate(((1.0, 1e-3), (0.3, 1e-3), (0.1, 5e-4), (0.0, 5e-4)))
]


class Engines:
    """The three engines on the same weights; each call of one takes `STEPS` steps of every model on one set of batches."""

    def __init__(self) -> None:
        self.tokens, self.answers = tasks.all_tokens(CONFIG), tasks.answers(CONFIG)
        states = [initial_state(CONFIG, s.init, s.seed) for s in SETTINGS]
        self.models = [baseline(CONFIG, state, s) for s, state in zip(SETTINGS, states)]
        self.steppers = [Stepper(s, state) for s, state in zip(SETTINGS, states)]
        self.stack = Stack([Stepper(s, state) for s, state in zip(SETTINGS, states)])
        self.generator = torch.Generator().manual_seed(1)
        self.draw()

    def draw(self) -> None:
        """Other prompts for all three."""
        self.prompts = torch.randint(len(self.tokens), (STEPS, MODELS, BATCH), generator=self.generator)

    def stacked(self) -> Tensor:
        """All models at once."""
        return self.stack.block(self.tokens, self.answers, self.prompts)

    def trainer(self) -> Tensor:
        """The package's engine for one model."""
        return self._one_by_one([s.step for s in self.steppers])

    def hooked_transformer(self) -> Tensor:
        """TransformerLens's model and autograd."""
        return self._one_by_one(self.models)

    def _one_by_one(self, steps: list[Step]) -> Tensor:
        losses = [
            [step(self.tokens[chosen], self.answers[chosen]) for chosen in rows]
            for step, rows in zip(steps, self.prompts.transpose(0, 1))
        ]
        return torch.tensor(losses).T


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    engines, gaps = Engines(), []
    for _ in range(4):
        engines.draw()
        expected = engines.hooked_transformer()
        gaps += [float((losses - expected).abs().max()) for losses in (engines.stacked(), engines.trainer())]
    if max(gaps) > 1e-4:
        sys.exit(f"The losses differ by up to {max(gaps):.1e} in the first {4 * STEPS} steps, so nothing was timed.")
    names = ("stacked", "trainer", "hooked_transformer")
    table = interleaved({name: getattr(engines, name) for name in names}, args.rounds or ROUNDS, "stacked")
    ratios = {
        name: {key: round(table[name][key], 3) for key in ("ratio", "ratio_low", "ratio_high")} for name in names[1:]
    }
    result = {
        "models": MODELS, "batch": BATCH, "rounds": args.rounds or ROUNDS, "steps": STEPS,
        "times_faster_than": ratios, "largest_loss_gap": max(gaps), "threads": torch.get_num_threads(),
        "ms_per_model_step": {name: round(1e3 * table[name]["median_s"] / (MODELS * STEPS), 3) for name in names},
        "machine_cores": os.cpu_count(),
    }  # fmt: skip
    record("stacked_step", result, args.write)


if __name__ == "__main__":
    main()
