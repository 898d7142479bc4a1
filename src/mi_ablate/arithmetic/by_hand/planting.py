"""A language model that adds by the Clock and was written by hand: ground truth for every measure of numbers.

A GPT-2 of four layers, with the ids of a real tokenizer or of a small one, whose weights hold the algorithm of Kantamneni &
Tegmark 2025 (arXiv 2502.00873, section 5.1) and nothing else:

1. W_E puts each number on a generalized helix, a line and a circle for each period, in random directions;
2. layer 1: one head copies the helix of a to the last token, one that of b (and a decoy copies a where nothing reads
   it); the MLP builds helix(a + b) by the sine and cosine of a sum, cos(x + y) = cos x cos y - sin x sin y, in directions
   that W_U ignores;
3. layers 2 and 3: a head and an MLP each move a stated share of it to where W_U reads; the logit of c is largest at
   c = a + b.

Layer 0 and the other heads are neutral: they move what words hold. `Planted.truth` says all of it in closed form
(`planted_truth`), and `planted_weights` how it is written.

Misleads where: every part has one role and nothing is superposed. A measure that returns the truth here can still fail on a
trained model; one that does not return it here is wrong.
"""

import copy
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.by_hand.planted_truth import (
    N_HEADS,
    SHARES,
    SPARE,
    Truth,
    circles,
    coordinates,
    embedded,
    rotation,
)
from mi_ablate.arithmetic.by_hand.planted_weights import (
    BALANCE,
    GATE,
    adder_units,
    frame,
    language_model,
    readout,
    weights,
)
from mi_ablate.arithmetic.by_hand.planted_words import Words, read_words
from mi_ablate.loading import load_model

_SMALLEST, _WORD, _FORM = 0.6, 0.3, 0.5
_GAP = 0.02
"""Least distance of two answers' logits, in units of one period's cosine."""


@dataclass(frozen=True, eq=False, repr=False)
class Planted:
    """A planted adder: the model, its tokenizer and what is in it."""

    model: HookedModel
    truth: Truth
    words: Words
    template: str
    hf_model: Any

    @property
    def tokenizer(self) -> Any:
        """The tokenizer whose ids the numbers have."""
        return self.words.tokenizer

    def save(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder, weights and tokenizer, for `load_model` and the command line."""
        self.hf_model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    def __repr__(self) -> str:
        return f"Planted({self.template!r}, {self.truth!r})"


def planted(
    tokenizer: Any | None = None,
    *,
    periods: Sequence[int | float] = (2, 5, 10, 100),
    template: str = "{a}+{b}=",
    linear: int | float = 1.0,
    seed: int = 0,
    noise: int | float = 0.0,
    dtype: torch.dtype = torch.float64,
    shuffled: bool = False,
) -> Planted:
    """Return a hand-built GPT-2 that completes "12+34=" with "46", for all operands below 100, and what was planted in it.

    Args:
        tokenizer: of transformers; its numbers below 1,000 that are one token, bare or with a space before them, carry
            the helix. None makes a small one with the numbers 0 to 520.
        periods: different numbers of at least 2.
        template: with {a} and {b}, of at most 32 tokens; answers are written as they continue it, "46" after "=", " 46"
            after " =".
        linear: length of the embedding's step of 100 along the line; 0 leaves the line out, also in the logits.
        seed: of directions, phases, places of the heads, words, noise and shuffling.
        noise: standard deviation of what is added to each coordinate of the numbers' embeddings (not along what attention
            reads). Fits of n numbers return C with errors of about this size times the root of 2/n; circles are 0.6 to 1 in
            radius.
        dtype: of the weights. Coordinates of helix(a + b) are within 1.2e-7 of the equation in float64 and 1.1e-3 in float32
            (measured; the MLP by itself: ``truth.mlp_error``). A saved float64 adder also adds when loaded in float32.
        shuffled: Deal the numbers' embeddings out at random: the control that holds the same vectors and adds nothing.
            The truth stays that of the model before it.

    Raises:
        ValueError: periods below 2 or twice, periods that cannot tell two answers apart, a negative ``linear`` or
            ``noise``, and a template whose operands are not one token each at constant places.

    """
    periods = _checked(periods, linear, noise)
    words = read_words(tokenizer, template)
    _apart(periods, linear, max(words.answers))
    generator = torch.Generator().manual_seed(seed)
    epsilon = 0.01 if dtype == torch.float64 else 0.06
    truth = _drawn(periods, float(linear), epsilon, dtype, template.startswith("{a}"), generator)
    lengths = embedded(truth.terms, truth.radii, truth.linear)
    state = weights(truth, {**words.offsets, "answer": -1}, epsilon, lengths, generator)
    embed = _embedding(words, truth, lengths, noise, shuffled, generator)
    ids, values = list(words.answers.values()), torch.tensor(list(words.answers))
    unembed = torch.zeros_like(embed)
    unembed[ids] = readout(truth.directions, truth.terms, values, truth.coordinates(values, "answer"))
    hf_model = language_model(words.size, state, embed, unembed, dtype, words.tokenizer.eos_token_id)
    return Planted(_loaded(hf_model, words.tokenizer, dtype), truth, words, template, hf_model)


def _drawn(
    periods: tuple[int | float, ...],
    linear: float,
    epsilon: float,
    dtype: torch.dtype,
    first: bool,
    generator: torch.Generator,
) -> Truth:
    """Draw phases, directions and the places of the heads; radii rise with the period."""
    turns = torch.rand(len(periods), generator=generator, dtype=torch.float64).tolist()
    phases = {T: 2 * math.pi * turn if T != 2 else 0.0 for T, turn in zip(periods, turns)}
    rise = torch.linspace(_SMALLEST, 1, len(periods), dtype=torch.float64) if len(periods) > 1 else torch.ones(1)
    radii = dict(zip(sorted(periods), rise.tolist()))
    terms = coordinates(periods, linear)
    directions = frame(len(terms), generator)
    drawn = [torch.randperm(N_HEADS, generator=generator).tolist() for _ in range(3)]
    heads = {name: (1, drawn[0][i]) for i, name in enumerate(("a", "b", "decoy"))}
    heads |= {"a+b 2": (2, drawn[1][0]), "a+b 3": (3, drawn[2][0])}
    return Truth(
        periods=periods, radii=radii, phases=phases, linear=linear, directions=directions, heads=heads,
        neurons=_neurons(periods, terms, phases, epsilon), first=first,
        mlp_error=_error(terms, phases, epsilon, dtype), norm_error=_rest(radii, linear) / (4 * BALANCE**2),
    )  # fmt: skip


def _loaded(hf_model: Any, tokenizer: Any, dtype: torch.dtype) -> HookedModel:
    """Load as from a saved folder: TransformerLens reads the tokenizer once more, and a bridge keeps the model it is given."""
    with tempfile.TemporaryDirectory(prefix="mi_ablate-") as temporary:
        folder = Path(temporary) / "planted"
        tokenizer.save_pretrained(str(folder))
        hf_model.config.save_pretrained(str(folder))
        return load_model(folder, hf_model=copy.deepcopy(hf_model), dtype=dtype, device="cpu")


def _checked(periods: Sequence[int | float], linear: int | float, noise: int | float) -> tuple[int | float, ...]:
    asked = tuple(int(T) if float(T).is_integer() else float(T) for T in periods)
    if not asked or len(set(asked)) < len(asked) or not all(math.isfinite(T) and T >= 2 for T in asked):
        raise ValueError(f"periods {list(asked)} must be different numbers of at least 2, and at least one.")
    for name, value in (("linear", linear), ("noise", noise)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value} is a length: give 0 or more.")
    return asked


def _apart(periods: tuple[int | float, ...], linear: int | float, largest: int) -> None:
    step = torch.arange(1, largest + 1, dtype=torch.float64)
    gap = sum(1 - torch.cos(2 * math.pi * step / T) for T in periods) + (linear > 0) * (step / 100) ** 2
    gap = torch.as_tensor(gap)
    if gap.min() < _GAP:
        raise ValueError(
            f"periods {list(periods)} {'with' if linear else 'without'} a line cannot tell answers {int(step[gap.argmin()])} "
            "apart; add a period" + (" or the line, linear=1." if not linear else ".")
        )


def _embedding(
    words: Words, truth: Truth, lengths: Tensor, noise: int | float, shuffled: bool, generator: torch.Generator
) -> Tensor:
    """Words in spare directions, numbers on the helix; spaced ones are moved along a direction that nothing reads."""
    directions = truth.directions
    spare = _WORD * torch.randn(words.size, SPARE, generator=generator, dtype=torch.float64)
    embed = spare @ directions["spare"].T + directions["word"].T
    embed[words.last] += directions["asks"][:, 0]
    for form, offset in ((words.bare, 0.0), (words.spaced, _FORM)):
        ids, values = list(form.values()), torch.tensor(list(form))
        if not ids:
            continue
        if shuffled:
            values = values[torch.randperm(len(values), generator=generator)]
        rows = (truth.coordinates(values) * lengths) @ directions["number"].T + offset * directions["form"].T
        for use in ("number", "copy a", "copy b", "decoy", "sum", "answer", "spare") if noise else ():
            drawn = torch.randn(len(ids), directions[use].shape[1], generator=generator, dtype=torch.float64)
            rows += noise * drawn @ directions[use].T
        embed[ids] = rows
    return embed


def _error(terms: Any, phases: dict[int | float, float], epsilon: float, dtype: torch.dtype) -> float:
    """Largest error of a built coordinate over all pairs below 100, with weights and sums in ``dtype``."""
    grid = torch.cartesian_prod(torch.arange(100), torch.arange(100))
    doubled = {T: 2 * phase for T, phase in phases.items()}
    reads, writes = (w.to(dtype) for w in adder_units(terms, epsilon))
    operands = torch.cat([circles(grid[:, i], terms, phases) for i in (0, 1)], dim=1).to(dtype)
    built = torch.nn.functional.gelu(operands @ reads + GATE - GATE, approximate="tanh") @ writes
    return float((built.double() - circles(grid.sum(1), terms, doubled)).abs().max())


def _rest(radii: dict[int | float, float], linear: int | float) -> float:
    """Bound on the squared norm of all but the constant pair, operands below 100: copies, sum, readout, words, positions."""
    return 5 * len(radii) + (3 + 2 * 4) * max(linear, 1.0) ** 2 + 10


def _neurons(
    periods: tuple[int | float, ...], terms: Any, phases: dict[int | float, float], epsilon: float
) -> list[dict[str, object]]:
    """Pre-activation of every living neuron of the adding and reading MLPs, in the columns of `mi.helix`."""
    reads, k = adder_units(terms, epsilon)[0], len(terms)
    columns = ["linear", *(f"{word} {T:g}" for T in periods for word in ("cos", "sin"))]
    single, double = (rotation(periods, terms, {T: n * p for T, p in phases.items()}) for n in (1, 2))
    found: list[dict[str, object]] = []

    def neuron(layer: int, index: int, kind: str, period: int | float, parts: dict[str, Tensor]) -> None:
        coef = {f"{of}:{label}": float(x) for of, row in parts.items() for label, x in zip(columns, row) if x != 0}
        found.append({"layer": layer, "neuron": index, "reads": kind, "period": period or None, "terms": coef})

    for i, read in enumerate(reads.T):
        period = terms[int(read[:k].abs().argmax())][1]
        neuron(1, i, "a, b", period, {"a": read[:k] @ single, "b": read[k:] @ single})
    for layer in (layer for part, layer in SHARES if part == "mlp"):
        for i in range(2 * k):
            neuron(layer, i, "a+b", terms[i % k][1], {"answer": (1 if i < k else -1) * double[i % k]})
    return found
