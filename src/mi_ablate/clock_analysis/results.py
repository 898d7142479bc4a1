"""Run the measures of the Clock and of its rival on one model and one set of problems, and hold the results.

Which algorithm answers can be asked of problems that a model solves. Where its accuracy is not above that of one constant
answer, nothing causal is measured: there is nothing to explain. A part that does not apply is left out, and
`ClockAnalysis.reasons` says why.
"""

import time
import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from mi_ablate import arithmetic
from mi_ablate._norms import NORMS
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic import Asked, Problems
from mi_ablate.arithmetic.circuit.components import ComponentEffects
from mi_ablate.arithmetic.circuit.paths import PathEffects
from mi_ablate.arithmetic.representation._periods import as_periods
from mi_ablate.arithmetic.representation.helices import PERIODS
from mi_ablate.clock_analysis import circuit
from mi_ablate.clock_analysis.bench import FITTED, Bench, Progress, Tries, dealt, solved
from mi_ablate.clock_analysis.circuit import Heads, Mlps
from mi_ablate.clock_analysis.evidence import Evidence, weighed
from mi_ablate.clock_analysis.last_token import LastToken, last_token, without_effects
from mi_ablate.clock_analysis.neurons import Neurons, neurons
from mi_ablate.clock_analysis.readout import Readout, readout, strongest
from mi_ablate.clock_analysis.rival import Rival, rival


@dataclass(frozen=True, eq=False, repr=False)
class ClockAnalysis:
    """Every result; a part that was not measured is None or empty, and `reasons` says why."""

    model: str
    asked: Asked
    solved: bool
    """Whether the accuracy lies above that of the best constant answer, with its interval."""
    last: LastToken | None
    layers: dict[str, ComponentEffects]
    """Effects of each layer: "attention", "mlps"."""
    heads: Heads | None
    mlps: Mlps | None
    paths: PathEffects | None
    neurons: Neurons | None
    rival: Rival | None
    readout: Readout | None
    evidence: Evidence
    warnings: list[str]
    reasons: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and words, for ``--json``."""
        from mi_ablate.clock_analysis.plain import to_json

        return to_json(self)

    def __repr__(self) -> str:
        task, accuracy = self.asked.problems.task, self.asked.accuracy
        return f"ClockAnalysis({self.model}, {task}: accuracy {accuracy:.3f}, {self.evidence.verdict})"


def analyse_clock(
    model: HookedModel,
    problems: Problems,
    *,
    name: str = "model",
    periods: Sequence[int | float] | None = None,
    free: int = 0,
    pairs: int = 100,
    heads: int = 20,
    norm: str = "live",
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ClockAnalysis:
    """Return by which way a model comes to the answers of problems.

    Args:
        model: a HookedTransformer or TransformerBridge.
        problems: from `arithmetic.problems` or `arithmetic.problems_of`.
        name: of the model, for the page.
        periods: of the helices; 2, 5, 10 and 100 where None.
        free: so many instead, those of most power in the number logits; 0 for the given ones.
        pairs: of clean and corrupted problems, both solved.
        heads: named, at most.
        norm: of direct effects, "live" or "frozen".
        seed: of samples and controls.
        batch_size: prompts a pass; chosen by memory.
        progress: called with (stage, passes done, in all).

    Raises:
        ValueError: problems with several right answers, and what `check_settings` refuses.

    """
    start = time.perf_counter()
    check_settings(periods, free, pairs, heads, norm)
    _check(problems)
    chosen = as_periods(strongest(model, problems, free, seed, batch_size) if free else periods or PERIODS)
    tries = Tries()
    with python_warnings.catch_warnings(record=True) as said:
        python_warnings.simplefilter("always", UserWarning)
        asked = arithmetic.asked(model, problems, batch_size=batch_size, progress=partial(progress, "answers"))
        given: dict[str, Any] = {"periods": chosen, "norm": norm, "seed": seed, "batch_size": batch_size}
        parts = tries("effects on the answer", lambda: dealt(asked, pairs, seed)) if solved(asked) else None
        bench = None if parts is None else Bench(model=model, progress=progress, **parts, **given)
        found = _measured(bench, heads, tries) if bench is not None else _representation(asked, model, given, tries)
        reads = partial(progress, "readout")
        found["readout"] = readout(model, asked, found["neurons"], chosen, seed, batch_size, reads, tries)
    used = {"pairs": 0, "apart": None} if bench is None else {"pairs": len(bench.pairs), "apart": bench.apart}
    return ClockAnalysis(
        model=name,
        asked=asked,
        solved=solved(asked),
        **found,
        evidence=weighed(asked, **found),
        warnings=list(dict.fromkeys(str(w.message) for w in said if issubclass(w.category, UserWarning))),
        reasons=tries.reasons,
        settings={"periods": list(chosen), "free": free, "heads": heads, "norm": norm, "seed": seed, **used},
        seconds=time.perf_counter() - start,
    )


def check_settings(periods: Sequence[int | float] | None, free: int, pairs: int, heads: int, norm: str) -> None:
    """Refuse what no model could be analysed with, before one is loaded.

    Raises:
        ValueError: periods given twice, below 2 or not finite, or beside ``free``; ``free`` below 0; fewer than two pairs
            or one head; another norm.

    """
    as_periods(periods or PERIODS)
    if free < 0 or (free and periods):
        raise ValueError(f"free={free}, periods={periods}: so many of the strongest periods, or periods of your own.")
    if pairs < 2 or heads < 1:
        raise ValueError(f"pairs={pairs}, heads={heads}: two pairs and one head at least.")
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is 'live' (the final norm sees the change) or 'frozen' (it keeps its scale).")


def _check(problems: Problems) -> None:
    if problems.accepted is not None:
        raise ValueError(
            f"Problems of {problems.task!r} have several right answers, and the Clock is about one. mi-ablate helix, or "
            "analyse_helix, takes them."
        )


def _measured(bench: Bench, count: int, tries: Tries) -> dict[str, Any]:
    """Every part, of a model that calculates."""
    kinds = ("attention",) if getattr(bench.model.cfg, "attn_only", False) else ("attention", "mlps")
    effects = {kind: tries(f"layers: {kind}", partial(circuit.layers, bench, kind)) for kind in kinds}
    layers = {kind: x for kind, x in effects.items() if x is not None}
    last = tries("last token", lambda: last_token(bench))
    heads = tries("heads", lambda: circuit.heads(bench, count))
    mlps = tries("MLPs", lambda: circuit.mlps(bench, layers["mlps"]))
    paths = tries("paths", lambda: circuit.paths(bench, circuit.on_paths(heads, mlps)))
    by_neuron = tries("neurons", lambda: neurons(bench))
    other = None if by_neuron is None else tries("heuristics", lambda: rival(bench, by_neuron.effects, tries))
    parts = {"last": last, "layers": layers, "heads": heads, "mlps": mlps, "paths": paths}
    return {**parts, "neurons": by_neuron, "rival": other}


def _representation(asked: Asked, model: HookedModel, given: dict[str, Any], tries: Tries) -> dict[str, Any]:
    """What can be said of a model that does not calculate."""
    order = torch.randperm(len(asked.correct), generator=torch.Generator().manual_seed(given["seed"]))
    options = {name: given[name] for name in ("periods", "batch_size", "seed")}
    last = tries("last token", lambda: without_effects(model, asked.problems[order[:FITTED]], **options))
    return {"last": last, "layers": {}, **dict.fromkeys(("heads", "mlps", "paths", "neurons", "rival"))}
