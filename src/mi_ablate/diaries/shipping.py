"""Write a trained diary model as a Hugging Face folder with a card, which `transformers` and `load_model` read."""

from pathlib import Path

from mi_ablate._shipped import facts, write_folder
from mi_ablate.diaries.text import tokenizer
from mi_ablate.diaries.training import Trained

_INTRODUCTION = """\
# The diary model

A GPT-2 of {parameters:,} parameters ({layers} layers, d_model {width}, {heads} heads, {context} positions) over {words} tokens,
a word each, trained on diary entries that `mi_ablate.diaries` draws. A prompt begins with `<|endoftext|>`; words that it does
not know are `<unk>`. Each entry has a good or a bad mood, told once and then heard in many words; nothing else depends on it.

It is a test object of few words and one grammar. It says nothing about diaries, people or large models.

| | |
|---|---|
| made by | `{command}` |
| seed | {seed} |
| training | {steps} batches of {batch} entries, AdamW, lr {lr}, weight decay {weight_decay}, initial weights of sd {init} |
| time | {seconds:.0f} seconds on one thread of a shared machine |
| versions | {versions} |

Loss in nats a word on 512 held-out entries, beside that of the generator itself (no model can be better on average):

| words | model | generator |
|---|---|---|
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
    filled = _INTRODUCTION.format(**facts(trained.model, command, trained.seconds), **vars(trained.settings))
    return filled + "".join(f"| {kind} | {a:.4f} | {b:.4f} |\n" for kind, (a, b) in trained.losses.items())
