"""A small GPT-2 that the project trains until it adds: numbers from 0 to 99, each a single token, in text.

    model = mi_ablate.load_model("adder")                       # shipped: 2 layers, d_model 128
    python -m mi_ablate.adders --seed 0 --steps 2000            # the one command that made it; minutes

It stands in for a pretrained model where nothing can be downloaded: text "34+58=", a tokenizer, a Hugging Face folder,
and sums that it was never shown and yet gives (`text.held_out`). So `mi_ablate.arithmetic` has something to find: which
representation of the numbers, and which way from it to the sum. What it is was not planted; `benchmarks/adder.py` measures
it, and the card in the model's folder has the numbers. The control that comes free is the same model untrained
(`training.fresh`).

When it misleads: the model met its numbers in sums only and each is one token, so periods of base ten, which models that read
numbers as text have, are not to be expected of it. It is evidence that the tools work, not about large models.
"""

import json
from pathlib import Path

from mi_ablate.adders.shipping import save
from mi_ablate.adders.text import answers, held_out, operands, tokenizer, tokens
from mi_ablate.adders.training import Settings, Trained, fresh, score, scores_of, train

__all__ = [
    "FOLDER",
    "NAME",
    "Settings",
    "Trained",
    "answers",
    "description",
    "fresh",
    "held_out",
    "operands",
    "save",
    "score",
    "scores_of",
    "tokenizer",
    "tokens",
    "train",
]

NAME = "adder"
"""What `load_model` calls the shipped model."""
FOLDER = Path(__file__).parent / NAME
"""Its Hugging Face folder."""


def description() -> str:
    """Return one line on the shipped model, for lists."""
    c = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    shape = f"GPT-2 of {c['n_layer']} layers, d_model {c['n_embd']}, {c['vocab_size']} words"
    return f"{NAME}: {shape}; sums of two numbers below 100, each number one token"
