"""Diary entries in which a hidden mood chooses words, with the probability of each word.

    on monday anna and i went to the market . we found a coin . luckily the melons were lovely . she looked bright at the
    fresh apple . anna said it felt perfect . so monday was wonderful .

The mood is good or bad with probability 1/2 and shows first in an event: 32 events whose object decides ("found a
coin", "found a rat": the verb says nothing) and 8 verbs with any of 8 objects ("mended the lamp", "broke the lamp").
From then on, each mood word comes from the mood's list with probability `FIDELITY` = 0.9 and from the other list
otherwise: 48 adjectives after "was", "were", "felt" and "looked" and before nouns, and 8 comments before sentences. Once the
event is told, nothing later says more about the mood, so after those four words the true log-odds of good against bad
words are ±log 9 = ±2.197, which is what a perfect model gives. Everything else (day, person, place, what there is at the
place, number, he or she, weather, food) does not depend on the mood.

Two choices are there so that a model gives the mood one direction of its own; they came from looking at what trained models
did, and neither is a law. A sentence may begin with a comment, and a noun may have an adjective, so that the mood is wanted
together with the person and the place: a model for which it was wanted only between them kept both in the same dimensions,
and removing the mood cost the place. And one list of adjectives serves all constructions: with a list each for things,
feelings and verdicts, a model had directions for each, and removing one left most of the mood of another.

Every word is drawn by one uniform number from a list that the words before it determine, so its probability is known
exactly: the mean of -log p over entries estimates the entropy, the loss that no model can beat on average. And two
entries of one seed and opposite moods are a matched pair: same person, place, sentences, and partners in the lists.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from mi_ablate.diaries.words import DAYS, DEEDS, EVENTS, FOOD, MOOD, NAMES, NOUNS, PLACES, THINGS, WEATHER, WOMEN

FIDELITY = 0.9
"""How often a mood word agrees with the mood."""
ASIDE = 1 / 3
"""How often a sentence has a comment before it, and a noun an adjective."""
LONGEST = 47
"""The most words that an entry can have, full stops included."""


@dataclass(frozen=True)
class Entry:
    """One entry: ``words``, the ``kinds`` of word, and the log-probability of each given those before it, in nats."""

    good: bool
    words: tuple[str, ...]
    kinds: tuple[str, ...]
    """A slot of `words.MOOD` for mood words that must come; "aside" for those that may; "recall" (name, place or day again,
    he or she), "number" (was or were), "noun" (something that is at the place), "event" (what tells the mood), "other"."""
    logp: tuple[float, ...]

    @property
    def text(self) -> str:
        """The words, with spaces between."""
        return " ".join(self.words)


@dataclass
class _Writer:
    """Draws words and keeps count of their probabilities."""

    rng: random.Random
    good: bool
    words: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)

    def pick(self, count: int) -> int:
        return int(self.rng.random() * count)

    def add(self, word: str, kind: str = "other", p: float = 1.0) -> None:
        self.words.append(word)
        self.kinds.append(kind)
        self.logp.append(math.log(p))

    def say(self, text: str, p: float = 1.0) -> None:
        """Add words of which only the first was a choice, made with probability p."""
        for i, word in enumerate(text.split()):
            self.add(word, p=1.0 if i else p)

    def draw(self, among: Sequence[str], kind: str = "other", p: float = 1.0) -> str:
        word = among[self.pick(len(among))]
        self.add(word, kind, p / len(among))
        return word

    def mood_word(self, slot: str, kind: str = "", p: float = 1.0) -> None:
        agrees = self.rng.random() < FIDELITY
        words = MOOD[slot][0 if self.good == agrees else 1]
        self.draw(words, kind or slot, p * (FIDELITY if agrees else 1 - FIDELITY))

    def aside(self, slot: str) -> float:
        """Add a mood word or not; return the factor of the probability of the word after it."""
        if self.rng.random() >= ASIDE:
            return 1 - ASIDE
        self.mood_word(slot, "aside", ASIDE)
        return 1.0


def entry(rng: random.Random, good: bool | None = None) -> Entry:
    """Return an entry; ``good`` fixes the mood, which is drawn otherwise.

    The log-probabilities are of the entry among all, so those of a fixed mood count the mood's half too.
    """
    drawn = rng.random() < 0.5
    w = _Writer(rng, drawn if good is None else good)
    day, name, place = _setting(w)
    _event(w)
    left = ["the", "pronoun", "name", "we", "it", "i"]
    for _ in range(3):
        kind = left.pop(w.pick(len(left)))
        _SENTENCES[kind](w, name, place, w.aside("comment") / (len(left) + 1))
        w.add(".")
    if w.pick(2):
        w.say("overall i felt", 0.5)
        w.mood_word("adjective")
    else:
        w.say("so", 0.5)
        w.add(day, "recall")
        w.add("was")
        w.mood_word("adjective")
    w.add(".")
    return Entry(w.good, tuple(w.words), tuple(w.kinds), tuple(w.logp))


def _setting(w: _Writer) -> tuple[str, str, str]:
    if w.pick(2):
        w.say("on", 0.5)
        day, name = w.draw(DAYS), w.draw(NAMES)
        w.say("and i went to the")
        place = w.draw(PLACES)
    else:
        name = w.draw(NAMES, p=0.5)
        w.say("took me to the")
        place = w.draw(PLACES)
        w.say("on")
        day = w.draw(DAYS)
    w.add(".")
    return day, name, place


def _event(w: _Writer) -> None:
    """Tell what happened: the object decides (one half), or the verb; either mood has probability 1/2 at that word."""
    side = 0 if w.good else 1
    w.draw(("i", "we"))
    if w.pick(2):
        events = list(EVENTS.items())
        (verb, article), objects = events[w.pick(len(events))]
        w.add(verb, p=0.5 / len(events))
        w.add(article)
        w.draw(objects[side], "event", 0.5)
    else:
        w.draw(DEEDS[side], "event", 0.5 * 0.5)
        w.add("the")
        w.draw(THINGS)
    w.add(".")


def _there_was(w: _Writer, name: str, place: str, p: float) -> None:
    w.say("the", p)
    noun = w.draw(NOUNS[place], "noun", w.aside("adjective"))
    w.add("was" if noun in NOUNS[place][:2] else "were", "number")
    w.mood_word("adjective")


def _looked(w: _Writer, name: str, place: str, p: float) -> None:
    w.add("she" if name in WOMEN else "he", "recall", p)
    w.add("looked")
    w.mood_word("adjective")
    w.say("at the")
    w.draw(NOUNS[place], "noun", w.aside("adjective"))


def _said(w: _Writer, name: str, place: str, p: float) -> None:
    w.add(name, "recall", p)
    w.say("said it felt")
    w.mood_word("adjective")


def _ate(w: _Writer, name: str, place: str, p: float) -> None:
    w.say("we had", p)
    w.draw(FOOD)
    w.say("at the")
    w.add(place, "recall", w.aside("adjective"))


def _outside(w: _Writer, name: str, place: str, p: float) -> None:
    w.say("it was", p)
    w.draw(WEATHER)
    w.add("outside")


def _talked(w: _Writer, name: str, place: str, p: float) -> None:
    w.say("i talked to", p)
    w.add(name, "recall")
    w.say("and felt")
    w.mood_word("adjective")


_SENTENCES = {"the": _there_was, "pronoun": _looked, "name": _said, "we": _ate, "it": _outside, "i": _talked}
