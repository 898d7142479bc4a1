"""A small language model that the project trains itself, in which a mood that is told once chooses many later words.

    model = mi_ablate.load_model("diary")                       # shipped: 2 layers, d_model 96
    python -m mi_ablate.diaries --seed 0 --steps 2000           # the one command that made it; minutes

It stands in for a pretrained model where nothing can be downloaded: text, a tokenizer, a Hugging Face folder, and an
attribute whose effect on the next word is known exactly (`entries`). 56 words depend on the mood, 96 ways of
telling what happened set it, and nothing else depends on it, so what an edit of the mood costs elsewhere can be counted
by kind of word (`compare`); `mi_ablate.diaries.planted.planted` measures how far the mood is one direction. It is a model
of 211 words: what holds here is evidence that the tools work, not that moods of large models lie in one direction.
"""

import json
from pathlib import Path

from mi_ablate.diaries.entries import FIDELITY, Entry, entry
from mi_ablate.diaries.shipping import save
from mi_ablate.diaries.text import held_out, prompts, tokenizer, tokens
from mi_ablate.diaries.training import Settings, Trained, compare, train
from mi_ablate.diaries.words import BAD_WORDS, DEEDS, EVENTS, GOOD_WORDS, MOOD, vocabulary

__all__ = [
    "BAD_WORDS",
    "DEEDS",
    "EVENTS",
    "FIDELITY",
    "FOLDER",
    "GOOD_WORDS",
    "MOOD",
    "NAME",
    "Entry",
    "Settings",
    "Trained",
    "compare",
    "description",
    "entry",
    "held_out",
    "prompts",
    "save",
    "tokenizer",
    "tokens",
    "train",
    "vocabulary",
]

NAME = "diary"
"""What `load_model` calls the shipped model."""
FOLDER = Path(__file__).parent / NAME
"""Its Hugging Face folder."""


def description() -> str:
    """Return one line on the shipped model, for lists."""
    c = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    shape = f"GPT-2 of {c['n_layer']} layers, d_model {c['n_embd']}, {c['vocab_size']} words"
    return f"{NAME}: {shape}; diary entries in which a mood, told once, chooses later words"
