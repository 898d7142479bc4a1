"""Restricted, excluded and trig loss: what the key frequencies do for the answer, in every published definition.

The loss of the model's logits on all pairs after only the key frequencies were kept (restricted, trig) or after they were
taken away (excluded). "Sum directions" of frequency k are the unit functions cos and sin of 2πk(i+j)/n over pairs, the 2 x 2
block the four products of frequency k with itself (it also holds functions of i - j), the 3 x 3 block those and the products
with the constant. Nanda et al. 2023 is arXiv 2301.05217; "code" is its repository, "demo" TransformerLens's Grokking_Demo,
"ARENA" its page 1.5.2. Published names agree, definitions do not:

    measure     variant        level    keeps or removes                                       split   mean over pairs
    restricted  nanda_text     logits   keeps the 2 x 2 blocks (paper's text, "20 terms")      all     kept
    restricted  nanda_text_44  logits   keeps the 3 x 3 blocks (paper, section 4.4)            all     kept
    restricted  nanda_colab    logits   keeps the sum directions (code: "trig loss")           all     put back
    restricted  tl_demo        neurons  keeps the sum directions, through W_out W_U, no skip   test    logits re-centred to it
    excluded    nanda_text     logits   removes the sum directions of all k together           train   kept
    excluded    nanda_colab    logits   removes those of one k, a list over k (code)           train   kept
    excluded    arena          logits   the same as nanda_colab                                train   kept
    excluded    tl_demo        neurons  removes them of all k, the skip path stays (function)  train   kept

The paper's own number for "restricted" (5.54e-8) is nanda_colab's. The projections use the logits of all n² pairs, also where
the loss is read on a split of them. The code casts to float32 in places; here everything is float64 except the read-out of
the neuron level, which runs the model's own last norm and unembedding (live: with a norm, dropping the skip path also
changes its scale, which the demo, a model without norms, does not define).

Misleading: a restricted loss *above* the full loss is no error; it says that the answer uses what the variant drops. On the
low-precision model published by Nanda et al. (23, 6, 39, 3, 35; full loss 2.888e-3) nanda_colab gives 3.4e-3, tl_demo 5.3e-3,
nanda_text 3.7e-2. A loss is dominated by its worst pairs. The frequencies come from elsewhere (`key_frequencies`); a run that
never generalised has none, and nothing is invented for it here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.model import collect, last_residual
from mi_ablate.modular.bases import FourierBasis
from mi_ablate.modular.grids import Grid


@dataclass(frozen=True)
class Rule:
    """How one variant of one measure is defined."""

    level: str
    part: str
    """What of a frequency: see `FourierBasis.component`."""
    keeps: bool
    split: str
    """The split that the publication reads, where it says so; "all" otherwise."""
    bias: str
    """What becomes of the mean over pairs."""
    one: bool = False
    """Whether it takes one frequency at a time."""


LOSSES: dict[tuple[str, str], Rule] = {
    ("restricted", "nanda_text"): Rule("logits", "2x2", True, "all", "mean logits kept"),
    ("restricted", "nanda_text_44"): Rule("logits", "3x3", True, "all", "mean logits kept"),
    ("restricted", "nanda_colab"): Rule("logits", "sum", True, "all", "mean logits put back"),
    ("restricted", "tl_demo"): Rule("neurons", "sum", True, "test", "re-centred to the mean logits"),
    ("excluded", "nanda_text"): Rule("logits", "sum", False, "train", "mean logits kept"),
    ("excluded", "nanda_colab"): Rule("logits", "sum", False, "train", "mean logits kept", one=True),
    ("excluded", "arena"): Rule("logits", "sum", False, "train", "mean logits kept", one=True),
    ("excluded", "tl_demo"): Rule("neurons", "sum", False, "train", "mean logits kept"),
}


@dataclass(frozen=True)
class Loss:
    """One loss, and what exactly it is."""

    measure: str
    """"full", "restricted" or "excluded"."""
    variant: str
    """The name in `LOSSES`; empty for the full loss."""
    value: float
    """Mean cross-entropy in nats over the pairs of the split, among the group's answers."""
    accuracy: float
    """Share of these pairs whose largest logit among the group's answers is the answer's."""
    split: str
    frequencies: tuple[int, ...]
    level: str
    """Where something was kept or removed: "logits" or "neurons" (the last layer's)."""
    rule: str
    bias: str

    def __repr__(self) -> str:
        name = " ".join(part for part in (self.measure, self.variant) if part)
        return f"Loss({name}: {self.value:.3e}, accuracy {self.accuracy:.4f}, {self.split} pairs)"


def full_loss(grid: Grid, which: str = "all") -> Loss:
    """Return the loss of the model as it is, on "all", "train" or "test" pairs."""
    return _read(grid, grid.logits, "full", "", which, (), Rule("logits", "", True, "all", "kept"))


def restricted_loss(
    grid: Grid, frequencies: Iterable[int], variant: str = "nanda_text", *, which: str | None = None
) -> Loss:
    """Return the loss when only the key frequencies are kept.

    Args:
        grid: a model on every pair.
        frequencies: the key frequencies, from 1 to n // 2.
        variant: "nanda_text", "nanda_text_44", "nanda_colab" or "tl_demo" (see the table of this module).
        which: the split to read, "all", "train" or "test"; by default the publication's own.

    Raises:
        ValueError: an unknown variant or frequency, none at all, or a split that nobody knows (give ``which="all"``).

    """
    return _measure(grid, "restricted", variant, frequencies, which, {})


def trig_loss(grid: Grid, frequencies: Iterable[int], *, which: str | None = None) -> Loss:
    """Return the trig loss of Nanda et al.'s code, which is `restricted_loss` in the variant "nanda_colab"."""
    return restricted_loss(grid, frequencies, "nanda_colab", which=which)


def excluded_loss(
    grid: Grid, frequencies: Iterable[int], variant: str = "nanda_text", *, which: str | None = None
) -> Loss:
    """Return the loss when the key frequencies are removed, all together.

    Args:
        grid: a model on every pair.
        frequencies: the key frequencies, from 1 to n // 2.
        variant: "nanda_text" or "tl_demo"; "nanda_colab" and "arena" remove one at a time, see `excluded_each`.
        which: the split to read; by default the publication's own, the training pairs.

    Raises:
        ValueError: an unknown variant or frequency, none at all, several for a variant that removes one at a time, or a
            split that nobody knows (give ``which="all"``).

    """
    return _measure(grid, "excluded", variant, frequencies, which, {})


def excluded_each(
    grid: Grid, frequencies: Iterable[int] | None = None, variant: str = "nanda_colab", *, which: str | None = None
) -> dict[int, Loss]:
    """Return for each frequency the loss when this one alone is removed ("nanda_colab"; "arena" is the same).

    All n // 2 by default: the largest of these is the paper's measure that needs no key frequencies (its footnote 3).
    """
    chosen = range(1, grid.n // 2 + 1) if frequencies is None else frequencies
    return {k: _measure(grid, "excluded", variant, [k], which, {}) for k in chosen}


def progress_losses(grid: Grid, frequencies: Iterable[int], *, which: str | None = None) -> dict[str, Loss]:
    """Return every measure in every variant that takes all frequencies at once, and the full loss, by name.

    The names are "full" and "restricted_nanda_text" and so on; one-at-a-time variants are in `excluded_each`. ``which``
    is the split of all of them, by default the publications' own; models of unknown split need "all".
    """
    chosen, held = tuple(frequencies), dict[str, Tensor]()
    found = {"full": full_loss(grid, which or "all")}
    for (measure, variant), rule in LOSSES.items():
        if not rule.one:
            found[f"{measure}_{variant}"] = _measure(grid, measure, variant, chosen, which, held)
    return found


def _measure(
    grid: Grid, measure: str, variant: str, frequencies: Iterable[int], which: str | None, held: dict[str, Tensor]
) -> Loss:
    rule = LOSSES.get((measure, variant))
    if rule is None:
        there = ", ".join(v for m, v in LOSSES if m == measure)
        raise ValueError(f"There is no variant {variant!r} of the {measure} loss; there are {there}.")
    chosen = tuple(sorted(set(frequencies)))
    if not chosen:
        raise ValueError(
            f"The {measure} loss of no frequencies was asked for. A run without key frequencies has its full loss only: "
            "full_loss(grid)."
        )
    if rule.one and len(chosen) > 1:
        raise ValueError(
            f"{variant} removes one frequency at a time, not {len(chosen)}; excluded_each(grid, {list(chosen)}) gives a "
            "loss each."
        )
    split = which or rule.split
    grid.split_mask(split)  # an unknown split is refused before anything runs
    basis = FourierBasis(grid.n)
    basis.check(chosen)
    logits = (_from_logits if rule.level == "logits" else _from_neurons)(grid, basis, chosen, rule, held)
    return _read(grid, logits, measure, variant, split, chosen, rule)


def _from_logits(
    grid: Grid, basis: FourierBasis, ks: tuple[int, ...], rule: Rule, held: dict[str, Tensor]
) -> Float[Tensor, "n n n"]:
    logits = grid.logits
    part = basis.component(logits, ks, rule.part)
    return part + logits.mean((0, 1)) if rule.keeps else logits - part


def _from_neurons(
    grid: Grid, basis: FourierBasis, ks: tuple[int, ...], rule: Rule, held: dict[str, Tensor]
) -> Float[Tensor, "n n n"]:
    """The same at the last layer's neurons, read through the model's own norm and unembedding."""
    model: object = grid.model
    block = f"blocks.{grid.model.cfg.n_layers - 1}"
    post, out, last = f"{block}.mlp.hook_post", f"{block}.hook_mlp_out", last_residual(grid.model)
    if not held:
        found = collect(grid.model, grid.tokens, (post, out, last), pos=-1)
        held |= {name: x.to("cpu", torch.float64).unflatten(0, (grid.n, grid.n)) for name, x in found.items()}
    acts = held[post]
    part = basis.component(acts, ks, rule.part)
    w_out = model.blocks[-1].mlp.W_out.detach().to("cpu", torch.float64)  # type: ignore[attr-defined]
    if not rule.keeps:
        return _read_out(grid, held[last] - part @ w_out)
    kept = _read_out(grid, held[out] - (acts - acts.mean((0, 1)) - part) @ w_out)
    return kept + grid.logits.mean((0, 1)) - kept.mean((0, 1))


def _read_out(grid: Grid, x: Float[Tensor, "n n d"]) -> Float[Tensor, "n n n"]:
    """The last norm and the unembedding of a residual stream, in the model's own precision."""
    model: object = grid.model
    weight = model.unembed.W_U  # type: ignore[attr-defined]
    norm = model.ln_final if grid.model.cfg.normalization_type is not None else None  # type: ignore[attr-defined]
    y = x.flatten(0, 1)[:, None].to(weight.device, weight.dtype)
    with torch.no_grad():
        logits = model.unembed(y if norm is None else norm(y))[:, 0]  # type: ignore[attr-defined]
    return logits.to("cpu", torch.float64)[:, grid.c].unflatten(0, (grid.n, grid.n))


def _read(grid: Grid, logits: Tensor, measure: str, variant: str, which: str, ks: tuple[int, ...], rule: Rule) -> Loss:
    mask = grid.split_mask(which)
    if not bool(mask.any()):
        raise ValueError(f"The {which!r} split of {grid!r} is empty; read another.")
    right = (logits.argmax(-1) == grid.answers)[mask].double().mean()
    verb = "keeps" if rule.keeps else "removes"
    text = f"{verb} the {rule.part} terms" if rule.part else "as it is"
    value = float(grid.loss(logits)[mask].mean())
    return Loss(measure, variant, value, float(right), which, ks, rule.level, text, rule.bias)
