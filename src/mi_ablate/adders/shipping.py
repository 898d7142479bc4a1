"""Write a trained adder as a Hugging Face folder with a card, which `transformers` and `load_model` read."""

from pathlib import Path

from mi_ablate._shipped import facts, write_folder
from mi_ablate.adders.text import tokenizer
from mi_ablate.adders.training import EVERY, Trained

REPORT = "\n## What it holds the numbers as\n"
"""The heading in the card of what `benchmarks/adder.py` measured; everything from it on is that script's."""
_CARD = """\
# The adder

A GPT-2 of {parameters:,} parameters ({layers} layers, d_model {width}, {heads} heads, {context} positions) over {words} tokens,
trained from scratch to answer `a+b=` for a and b from 0 to 99. Each number from 0 to 198 is one token; "199" is "19" and "9".
A prompt begins with `<|endoftext|>`, which `to_tokens` of TransformerLens writes by itself. The loss was that of the answer
alone: what the model says at other positions means nothing, and so do the positions after the answer's.

It is a test object that knows sums of two numbers below 100. Its numbers are single tokens that it met in sums only, so that
periods of base ten are not to be expected of it: what it does says nothing about models that learnt numbers from text.

| | |
|---|---|
| made by | `{command}` |
| seed | {seed} |
| held out | {share:.0%} of the 10,000 problems, drawn with seed {split_seed}; both orders of a pair on one side |
| training | {steps} batches of {batch} prompts, AdamW, lr {lr}, weight decay {weight_decay}, initial weights of sd {init} |
| 0.99 of the held-out sums right | {reached} |
| time | {seconds:.0f} seconds on one thread of a shared machine |
| versions | {versions} |

| problems | number | right | loss of the answer, nats |
|---|---|---|---|
"""


def save(trained: Trained, folder: str | Path, command: str) -> Path:
    """Write config.json, model.safetensors, the tokenizer and README.md to ``folder`` and return it.

    Args:
        trained: what `train` gives.
        folder: made where it is missing; files of these names are replaced.
        command: what made it, for the card.

    """
    return write_folder(trained.model, tokenizer(), folder, _card(trained, command))


def _card(trained: Trained, command: str) -> str:
    reached = trained.steps_to(0.99)
    said = "never" if reached is None else f"for the first time after {reached} steps (looked at every {EVERY})"
    common = facts(trained.model, command, trained.seconds)
    filled = _CARD.format(**common, reached=said, **vars(trained.settings))
    return filled + "".join(
        f"| {name} | {found.problems} | {found.accuracy:.4f} | {found.loss:.4f} |\n"
        for name, found in trained.scores.items()
    )
