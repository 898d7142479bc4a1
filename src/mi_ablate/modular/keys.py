"""Key frequencies: which ones a model uses, by every published rule, each under its name.

No publication gives a threshold, and the rules disagree on models with weak lines, so each is a rule of its own:

    energy       the frequencies with the largest share of W_E's energy (how many: ``count``)
    nanda_text   components of the neuron-logit map W_out W_U on the output axis that are not negligible (Nanda et al. 2023,
                 arXiv 2301.05217, appendix C.2). The paper gives no number; here: a norm above a quarter of the largest
    nanda_eye    components of W_E that stand out by eye (section 4.1). Here: those above the largest ratio between
                 neighbours among the sorted norms, so at least one
    nanda_colab  frequencies that some neuron follows, before the cut at 0.85 (the paper's code); range(1, n // 2), so the
                 last frequency n // 2 is never found
    arena        the same rule and the same range, as in ARENA 1.5.2
    neurons      the same rule over all frequencies
    tl_demo      a component of W_E, cos or sin, with a norm above a quarter of the largest (TransformerLens' Grokking_Demo)

A model that never generalised has a largest line too. Below ``least`` accuracy (held-out pairs where the split is known,
all pairs otherwise) every rule returns no frequency and says why.

Agreement of the rules is no proof: they look at weights and activations. Removing a frequency (`causal_table`) is the test.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.modular.grids import Grid
from mi_ablate.modular.neurons import Neurons, neuron_frequencies
from mi_ablate.modular.spectra import Spectrum, embedding_spectrum, neuron_logit_spectrum

RULES = ("energy", "nanda_text", "nanda_eye", "nanda_colab", "arena", "neurons", "tl_demo")
LEAST = 0.9
QUARTER = 0.25


@dataclass(frozen=True)
class Keys:
    """The key frequencies by one rule, with what it compared them with."""

    rule: str
    frequencies: tuple[int, ...]
    """Largest first by the rule's own quantity; for the neuron rules by the number of neurons."""
    values: tuple[float, ...]
    """That quantity of each frequency: share of energy, norm, or number of neurons."""
    threshold: float | None
    """What the quantity had to exceed; None where the rule counts."""
    reason: str = ""
    """Why there is no frequency, where there is none."""

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.frequencies)) if self.frequencies else f"none: {self.reason}"
        return f"Keys({self.rule}: {shown})"


def key_frequencies(grid: Grid, *, count: int = 5, least: int | float = LEAST, layer: int = -1) -> dict[str, Keys]:
    """Return the key frequencies by every rule.

    Args:
        grid: a model on all pairs.
        count: how many the rule "energy" takes.
        least: the accuracy below which a model counts as not generalised.
        layer: whose neurons the neuron rules and "nanda_text" look at; the last by default.

    Raises:
        ValueError: a ``count`` that Z_n does not have.

    """
    embedding = embedding_spectrum(grid)
    energy = embedding.top(count)
    accuracy, split = generalised(grid)
    if accuracy < least:
        reason = f"accuracy {accuracy:.3f} on {split} pairs is below {least}: the model has not generalised"
        return {rule: Keys(rule, (), (), None, reason) for rule in RULES}
    found = {
        "energy": Keys("energy", tuple(energy), tuple(embedding.share(k) for k in energy), None),
        "nanda_eye": _by_gap(embedding),
        "tl_demo": _above("tl_demo", embedding),
    }
    if getattr(grid.model.cfg, "attn_only", False):
        none = "the model has no neurons"
        found |= {rule: Keys(rule, (), (), None, none) for rule in RULES if rule not in found}
    else:
        found["nanda_text"] = _above("nanda_text", neuron_logit_spectrum(grid, layer))
        acts = grid.acts(f"blocks.{layer % grid.model.cfg.n_layers}.mlp.hook_post")
        neurons = neuron_frequencies(acts)
        found["neurons"] = _by_neurons("neurons", neurons)
        short = f"it looks at the frequencies below {grid.n // 2}, and Z_{grid.n} has none"
        for rule in ("nanda_colab", "arena"):
            found[rule] = _by_neurons(rule, neurons.by(rule)) if grid.n > 3 else Keys(rule, (), (), None, short)
    return {rule: found[rule] for rule in RULES}


def generalised(grid: Grid) -> tuple[float, str]:
    """Return the accuracy that shows generalisation, and of which pairs: "test" where the split is known, else "all"."""
    which = "all" if grid.train is None or bool(grid.train.all()) else "test"
    right = grid.all_logits.argmax(-1) == grid.c[grid.answers]
    return float(right[grid.split_mask(which)].double().mean()), which


def _above(rule: str, found: Spectrum) -> Keys:
    """Frequencies with a component, cos or sin, above a quarter of the largest component's norm."""
    norms = _largest_rows(found)
    threshold = QUARTER * float(norms.max())
    order = norms.argsort(descending=True, stable=True)
    order = order[norms[order] > threshold]
    return Keys(rule, tuple((order + 1).tolist()), tuple(norms[order].tolist()), threshold)


def _by_gap(found: Spectrum) -> Keys:
    norms, order = _largest_rows(found).sort(descending=True, stable=True)
    ratios = norms[:-1] / norms[1:].clamp(min=float(norms[0]) * 1e-12)  # none where there is one frequency
    keep = int(ratios.argmax()) + 1 if len(ratios) else 1
    threshold = float(norms[keep]) if keep < len(norms) else 0.0
    return Keys("nanda_eye", tuple((order[:keep] + 1).tolist()), tuple(norms[:keep].tolist()), threshold)


def _by_neurons(rule: str, found: Neurons) -> Keys:
    sizes = torch.bincount(found.frequency, minlength=found.n // 2 + 1)[1:]
    order = sizes.argsort(descending=True, stable=True)
    order = order[sizes[order] > 0]
    return Keys(rule, tuple((order + 1).tolist()), tuple(sizes[order].double().tolist()), None)


def _largest_rows(found: Spectrum) -> Float[Tensor, " k"]:
    """The larger norm of cos k and sin k, for each frequency."""
    rows = found.row_norms
    if rows is None or not float(rows.max()) > 0:
        raise ValueError(f"{found.name or 'The matrix'} has no component that varies over Z_{found.n}.")
    padded = torch.cat([rows, rows.new_zeros(len(rows) % 2)])
    return padded.reshape(-1, 2).amax(1)
