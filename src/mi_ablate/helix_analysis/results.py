"""Run the measures of `mi_ablate.arithmetic` on one model and one set of problems, and hold the results.

What a model represents can be read whether it calculates or not; what writing a number does to its answers only where it gets
some right. A part that does not apply is left out, and `HelixAnalysis.reasons` says why.
"""

import time
import warnings as python_warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mi_ablate import arithmetic
from mi_ablate._prompt_files import Words
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic import Asked, Numerals, Problems, Swaps
from mi_ablate.arithmetic.problem_sets.single_tokens import FORMS
from mi_ablate.arithmetic.representation._periods import as_periods
from mi_ablate.arithmetic.representation.helices import PERIODS
from mi_ablate.helix_analysis.causal import causal
from mi_ablate.helix_analysis.representation import Operand, Tries, operand

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False, repr=False)
class HelixAnalysis:
    """Every result."""

    model: str
    asked: Asked
    example: list[dict[str, Any]]
    """The tokens of the first problem: "position", "token", "is"."""
    numerals: dict[str, Numerals]
    """By form, which numbers are single tokens."""
    operands: dict[str, Operand]
    """What was measured at the token of "a", "b"."""
    swaps: dict[str, Swaps]
    """What writing another number does, by the token written to; empty where nothing could be asked."""
    removals: dict[str, Swaps]
    """What removing the helix's subspace does to the right answers, beside other subspaces."""
    warnings: list[str]
    reasons: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and words, for ``--json``."""
        from mi_ablate.helix_analysis.plain import to_json

        return to_json(self)

    def __repr__(self) -> str:
        best = "; ".join(f"{x.baselines!r} at {name}" for name, x in self.operands.items())
        return f"HelixAnalysis({self.model}, {self.asked.problems.task}: accuracy {self.asked.accuracy:.3f}, {best})"


def analyse_helix(
    model: HookedModel,
    problems: Problems,
    *,
    name: str = "model",
    periods: Sequence[int | float] | None = None,
    free: int = 4,
    pairs: int = 100,
    at: Sequence[str] = ("a",),
    layers: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> HelixAnalysis:
    """Return how a model represents the operands of problems, and what writing them back does to its answers.

    Args:
        model: a HookedTransformer or TransformerBridge.
        problems: from `arithmetic.problems` or `arithmetic.problems_of`.
        name: of the model, for the page.
        periods: of the helix; 2, 5, 10 and 100 where None.
        free: periods to search without assuming any; 0 for none.
        pairs: pairs of right problems for the causal tests, at most.
        at: the operands looked at.
        layers: whose input is looked at; all by default.
        seed: of samples and controls.
        batch_size: prompts a pass; chosen by memory.
        progress: called with (stage, prompts or passes done, in all).

    Raises:
        ValueError: periods that `check_settings` refuses, fewer than none to search, fewer than two pairs; an operand that
            the problems do not have, a layer that the model lacks, too few numbers for the helix.

    """
    start = time.perf_counter()
    check_settings(periods, free, pairs)
    chosen = as_periods(periods or PERIODS)
    _check_operands(problems, at)
    sites = _sites(model, layers)
    tries = Tries()
    with python_warnings.catch_warnings(record=True) as said:
        python_warnings.simplefilter("always", UserWarning)
        asked = arithmetic.asked(model, problems, batch_size=batch_size, progress=partial(progress, "answers"))
        operands = {
            of: operand(model, problems, of, sites, chosen, free, seed, batch_size, progress, tries) for of in at
        }
        causes = causal(model, asked, operands, chosen, pairs, seed, batch_size, progress, tries)
    return HelixAnalysis(
        model=name,
        asked=asked,
        example=_example(model, problems),
        numerals=_numerals(model, problems),
        operands=operands,
        **causes,
        warnings=[*_of_forms(problems), *_of_others(said)],
        reasons=tries.reasons,
        settings={"periods": list(chosen), "free": free, "pairs": pairs, "seed": seed, "sites": list(sites)},
        seconds=time.perf_counter() - start,
    )


def check_settings(periods: Sequence[int | float] | None, free: int, pairs: int) -> None:
    """Refuse what no model could be analysed with, before one is loaded.

    Raises:
        ValueError: periods given twice, below 2 or not finite; ``free`` below 0; fewer than two pairs.

    """
    as_periods(periods or PERIODS)
    if free < 0 or pairs < 2:
        raise ValueError(f"free={free}, pairs={pairs}: no fewer than 0 periods to search, and two pairs at least.")


def _check_operands(problems: Problems, at: Sequence[str]) -> None:
    if not at or any(x not in problems.operands for x in at):
        raise ValueError(f"at={list(at)}: the operands of {problems.task!r} are {', '.join(problems.operands)}.")


def _of_forms(problems: Problems) -> list[str]:
    """That the operands are different tokens, where they are."""
    forms = {problems.forms[name] for name in problems.operands}
    if len(forms) == 1:
        return []
    said = ", ".join(f"{name} is written {problems.forms[name]}" for name in problems.operands)
    return [f"{said}: these are different tokens with different embeddings, and the two helices are not comparable."]


def _of_others(said: list[python_warnings.WarningMessage]) -> list[str]:
    """What the measures warned of, each once; that nothing is right is said elsewhere."""
    texts = (str(w.message) for w in said if issubclass(w.category, UserWarning))
    return list(dict.fromkeys(text for text in texts if not text.startswith("The model gets none")))


def _sites(model: HookedModel, layers: Sequence[int] | None) -> tuple[str, ...]:
    """The stream entering each layer, and leaving the last."""
    n = model.cfg.n_layers
    asked = range(n) if layers is None else sorted(set(layers))
    beyond = [x for x in asked if not 0 <= x < n]
    if beyond or not asked:
        raise ValueError(f"layers={list(asked)}: the model has layers 0 to {n - 1}.")
    found = tuple(f"blocks.{i}.hook_resid_pre" for i in asked)
    return (*found, f"blocks.{n - 1}.hook_resid_post") if n - 1 in asked else found


def _example(model: HookedModel, problems: Problems) -> list[dict[str, Any]]:
    """The tokens of the first problem, with what stands where."""
    words = Words(getattr(model, "tokenizer", None))
    ids = problems.tokens[0].tolist()
    there = {pos: name for name, pos in problems.positions.items() if name != "answer"}
    rows = []
    for i, (token, text) in enumerate(zip(ids, words(ids))):
        pos = i - len(ids)
        said = [f"operand {there[pos]}, {problems.forms[there[pos]]}"] if pos in there else []
        said += ["beginning of sequence"] if i == 0 and problems.bos else []
        said += ["the answer is predicted here"] if pos == problems.positions["answer"] else []
        rows.append({"position": str(pos), "token": f"`{text!r}`", "id": str(token), "is": "; ".join(said)})
    return rows


def _numerals(model: HookedModel, problems: Problems) -> dict[str, Numerals]:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None or problems.modulus is not None:
        return {problems.numerals.form: problems.numerals}
    return {form: arithmetic.numerals(tokenizer, form) for form in FORMS}
