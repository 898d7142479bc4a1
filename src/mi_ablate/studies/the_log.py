"""What the research log says: its claims, its open questions, its tables and where it contradicts itself.

The log is not public. Its wording is shortened here, and its numbers are as they stand there; `FOOTNOTES` says where it
disagrees with itself. Every number that a study sets beside its own comes from this file.
"""

from typing import Any

CLAIMS: dict[str, str] = {
    "C1": "Weight decay is the strongest lever of grokking speed.",
    "C2": "Weight decay controls abliteration resistance non-monotonically, and 0.1 is best.",
    "C3": "More weight decay, lower rank.",
    "C4": "Training on several tasks concentrates each circuit (addition's k@95% falls from 11 to 2).",
    "C5": "The circuits of two operations are mostly orthogonal.",
    "C6": "One operation can be killed (k = 9 to 14) while the other keeps more than 99 %.",
    "C7": "Less capacity does not force circuits to share.",
    "C8": "Adversarial training spreads the information (about twice the dimensions) and makes it resist removal.",
    "C9": "Longer training separates circuits.",
    "C10": "The training method, not architecture or capacity, decides whether circuits are separable.",
    "C11": "Separable, robust, capacity-efficient: pick two.",
    "C12": "Refusal lies in one direction because many objectives share a finite capacity (a conjecture).",
    "C13": "Robustness to removal in the weights and to attacks at the input are unrelated.",
    "C14": "Weight decay acts per step, as (1 - lr wd)^steps, so a larger batch at the same samples decays less.",
    "C15": "Serial steps, not floating-point operations, govern grokking.",
    "C16": "The noise of small batches regularises.",
}
QUESTIONS: dict[str, str] = {
    "Q1": "Do small batches grok earlier at the same number of samples?",
    "Q2": "Does a batch ten times as large, for a tenth of the steps, never grok?",
    "Q3": "Does the geometry that resists removal also resist attacks at the input?",
    "Q4": "Does adversarial training survive directions that it was not trained on?",
    "Q7": "Is a wider model both separable and robust?",
    "Q8": "Does k@95% of a task fall with the number of tasks?",
    "Q9": "Is separation monotone in training time?",
    "Q10": "Does the adversarial penalty work when it is switched on late?",
}
BEYOND: dict[str, str] = {
    "R1": "What does resistance to removal measure: can every curve be predicted from class means, their spread and W_U?",
    "R2": "Does the separation of two tasks rise or fall with learning rate x weight decay x steps?",
    "R3": "Do the curves carry over to a toy that has learnt to decline?",
}
"""Questions that the log does not ask."""

E1: dict[str, Any] = {
    "grok step at weight decay 1": 1_400,
    "grok step at weight decay 0": 45_700,
    "best train fractions": "0.3 to 0.7",
    "fastest": "1 layer, d 64, step 600",
    "cost": "about 3 USD of T4 time",
}
E2 = (
    {"weight decay": 0.0, "held out": 0.644, "grok step": None, "Rank99": 69, "k@95%": None, "Fourier": 0.26},
    {"weight decay": 0.01, "held out": 1.0, "grok step": 38_100, "Rank99": 69, "k@95%": "3", "Fourier": 0.48},
    {"weight decay": 0.1, "held out": 1.0, "grok step": 11_900, "Rank99": 43, "k@95%": "30+", "Fourier": 0.89},
    {"weight decay": 1.0, "held out": 1.0, "grok step": 1_500, "Rank99": 27, "k@95%": "11", "Fourier": 0.86},
    {"weight decay": 10.0, "held out": 0.091, "grok step": None, "Rank99": 2, "k@95%": None, "Fourier": 0.69},
)
E4 = {
    "add": {"significant": 14, "k@95%": 2, "k@50%": 7, "collateral at 10": 0.999},
    "mul": {"significant": 8, "k@95%": 1, "k@50%": 5, "collateral at 10": 1.0},
    "overlap": {"10": 0.28, "30": 0.78},
    "random overlap": {"10": 0.078, "30": 0.234},
}
E6_TO_E8 = {
    "baseline": {
        "layers": 2,
        "overlap 5": 0.19,
        "overlap 10": 0.28,
        "add": 3,
        "mul": 2,
        "dims add": 13,
        "dims mul": 12,
    },
    "capacity": {
        "layers": 1,
        "overlap 5": 0.17,
        "overlap 10": 0.27,
        "add": 3,
        "mul": 3,
        "dims add": 12,
        "dims mul": 11,
    },
    "adversarial": {
        "layers": 2,
        "overlap 5": 0.36,
        "overlap 10": 0.49,
        "add": 14,
        "mul": 9,
        "dims add": 26,
        "dims mul": 23,
    },
}
E7 = {"add left after 30": 0.29, "k that kills mul": 27, "add then": 0.86}
E8 = {"steps": 65_000, "overlap 10": 0.38, "overlap 10, longer": 0.28}
E9 = {"models": "1 layer, d 64, 48, 32", "accuracy": 0.04, "steps": 115_000}

FOOTNOTES = (
    "Weight decay 0 groks at step 45,700 in one of its tables and never (64.4 %) in another.",
    "Weight decay 1 groks at 1,400 in one place and at 1,500 in another.",
    "The two-task baseline's k@95% is 2 / 1 in one table and 3 / 2 in the next.",
    "Its text calls 26 against 13 k@95%, and its table has them as dimensions for 95 % of the variance.",
    "Weight decay 0.01 has the highest rank and the lowest k@95%, so rank does not predict resistance, as it reads.",
    "One layer of width 64 groks fastest alone and never with two tasks.",
    "The one direction of refusal (the smallest k that kills) is compared with k@95% (the largest k that is survived).",
    "Tables lost their separators: weight decay 0.01 reads 69348% (69, 3, 48 %, or 69, 34, 8 %), weight decay 10 reads 269% "
    "(2, 69 % or 26, 9 %), multiplication's row reads about 815 (8, 1, 5).",
    "What a significant singular value is, when a task counts as killed, where directions are removed, and whether thresholds "
    "are absolute or relative is not said.",
    "How many directions the adversarial penalty removes, and where, is not said.",
)


def text_of(name: str) -> str:
    """Return the claim or question of this name."""
    return {**CLAIMS, **QUESTIONS, **BEYOND}[name]
