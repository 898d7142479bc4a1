"""Shipped contrast sets: two lists of harmless prompts that differ in one attribute, line i of one with line i of the other.

    mood        for the shipped model ``diary`` (`mi_ablate.diaries`): entries of a good and of a bad day, drawn by its
                generator from numbers that no training uses; the next word is one that the mood chooses
    sentiment   for small pretrained models, English: something good or bad happened, and the next word depends on it

A difference of class means is of everything in which the sides differ. Here the partners share
topic, sentence, ending and nearly the length (0.01 tokens between the means of "sentiment" in GPT-2's tokens), but the
72 pairs of "sentiment" were written by one hand, so a direction may be of its habits too: measure it on prompts of your
own. The released weights of GPT-2 and Pythia were never run on these sets here; whether those models hold a linear
direction of sentiment that decides the next word is for the user's own run to say.
"""

from pathlib import Path

from mi_ablate._types import nearest

__all__ = ["load", "names"]
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the shipped sets.

    >>> names()
    ['mood', 'sentiment']
    """
    return sorted(entry.name for entry in _FOLDER.iterdir() if (entry / "positive.txt").is_file())


def load(name: str) -> tuple[list[str], list[str]]:
    """Return the prompts with the attribute and those without, in pairs.

    Raises:
        ValueError: an unknown name.

    """
    if name not in names():
        raise ValueError(f"There is no shipped contrast set {name!r}. {nearest(name, names())}")
    texts = [(_FOLDER / name / f"{side}.txt").read_text(encoding="utf-8") for side in ("positive", "negative")]
    return texts[0].splitlines(), texts[1].splitlines()
