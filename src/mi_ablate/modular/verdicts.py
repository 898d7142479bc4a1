"""Clock, Pizza or undecided: gradient symmetricity and distance irrelevance together, after asking whether they may speak.

In this order:

1. **Accuracy.** Below 0.9 on the pairs that were not trained on (on all pairs where nobody knows) there is no algorithm to
   name: undecided.
2. **Circles.** Both measures are about circular embeddings. A run is circular if its circularity is at least 0.9, or if at
   most a quarter of the frequencies holds 90 % of W_E's energy; otherwise it is undecided and says so first. (Untrained
   networks: circularity 0.07 to 0.17, 0.8 of the frequencies.) Zhong et al. kept runs of 0.995 and more; that excludes
   Nanda et al.'s published model (0.945), whose circles of nearly one size share principal components, so from 0.9 to 0.99
   the run is judged and flagged. The second condition is for circles of exactly one size, which components mix freely.
3. **Both measures.** Pizza needs a gradient symmetricity of 0.9 and more *and* a distance irrelevance of 0.4 and less;
   Clock one of 0.75 and less *and* one of 0.6 and more, each by two standard errors. Zhong et al.'s models are at 0.99, 0.17
   and 0.35, 0.85; their bands for distance irrelevance meet at 0.4. Anything else is undecided: both high is what
   untrained networks give, and one measure alone names nothing.
4. **Calibration.** The same two numbers of the model with the entries of each of its weights shuffled. Where these fall into
   the verdict's own bands, the reasons say that the architecture alone gives such numbers: a low symmetricity beside
   a distance irrelevance near 1 is common in untrained networks that treat their operands differently (Model B shuffled:
   0.34 and 0.99), and then accuracy and circles carry the verdict. No untrained network tried came near Pizza's bands.

Measured with 2,000 random triples on the published and the shipped models (circ. = circularity):

    model                    symmetricity   distance irr.   circ.   verdict
    Zhong et al. Model A        0.994          0.172        0.998   pizza
    Zhong et al. Model B        0.343          0.848        0.999   clock
    Nanda et al. mod 113        0.152          0.944        0.945   clock
    nanda113                   -0.051          0.973        0.958   clock
    add97                       0.164          0.944        0.947   clock
    add97-wd0.1                 0.192          0.698        0.496   undecided: not circular
    addmul97, addition          0.044          0.944        0.881   undecided: W_E serves two operations
    addmul97, multiplication    0.615          0.901        0.125   undecided: the same

Misleading: "clock" and "pizza" name how the measures came out, not a proven circuit. Moisescu-Pareja et al. (arXiv 2512.25060)
dispute that the two are different algorithms: networks of both kinds learn the same discs and tori. LayerNorm, several
layers and a skip path from one operand all lower symmetricity without any products. What the model does is shown by
interventions on the circuit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from mi_ablate._types import HookedModel
from mi_ablate.modular.clock_pizza import Circularity, circularity, distance_irrelevance
from mi_ablate.modular.gradients import Symmetricity, gradient_symmetricity
from mi_ablate.modular.grids import Grid
from mi_ablate.modular.keys import LEAST, generalised
from mi_ablate.modular.spectra import spectrum

CIRCULARITY, FLAGGED = 0.9, 0.99
ENERGY, SPARSITY = 0.9, 0.25
"""Circular as well: at most this share of the frequencies holds this share of W_E's energy."""
PIZZA = (0.9, 0.4)
"""Gradient symmetricity at least, distance irrelevance at most."""
CLOCK = (0.75, 0.6)
"""Gradient symmetricity at most, distance irrelevance at least."""
SMALLEST = 11
TRIPLES = 2000
DISPUTE = (
    "Whether these measures tell two algorithms apart is disputed: both kinds of network learn the same manifolds "
    "(Moisescu-Pareja et al., arXiv 2512.25060)."
)


@dataclass(frozen=True)
class Verdict:
    """What the two measures say together, and why."""

    label: str
    """"clock", "pizza" or "undecided"."""
    reasons: tuple[str, ...]
    """In the order of the questions; flags first, the dispute last."""
    accuracy: float
    """On the pairs of ``split``."""
    split: str
    """"test" where the training pairs are known, otherwise "all"."""
    circularity: Circularity
    sparsity: float
    """Share of the frequencies that holds 90 % of W_E's energy."""
    gradient_symmetricity: Symmetricity
    distance_irrelevance: float
    untrained: dict[str, float]
    """Both measures of the same model with shuffled weights."""

    def __repr__(self) -> str:
        return (
            f"Verdict({self.label}: symmetricity {self.gradient_symmetricity.value:.3f}, distance irrelevance "
            f"{self.distance_irrelevance:.3f}, circularity {self.circularity.value:.3f}, accuracy {self.accuracy:.4f})"
        )


def verdict(grid: Grid, *, triples: str | int = TRIPLES, seed: int = 0) -> Verdict:
    """Return "clock", "pizza" or "undecided", with the reasons and the numbers that they rest on.

    Args:
        grid: a model on every pair.
        triples: of `gradient_symmetricity`; more than the published 100 by default, whose standard error is 0.04.
        seed: of the random triples and of the shuffled weights.

    Raises:
        ValueError: a group too small for circles to mean anything; a model without gradients.

    """
    if grid.n < SMALLEST:
        raise ValueError(
            f"Z_{grid.n} is too small for a verdict: with {grid.n // 2} frequencies random embeddings look circular. "
            f"At least n = {SMALLEST} is needed."
        )
    accuracy, split = generalised(grid)
    embedding = grid.embedding
    circles = circularity(embedding)
    ordered = spectrum(embedding).shares.sort(descending=True).values.cumsum(0)
    sparsity = min(1.0, (int((ordered < ENERGY).sum()) + 1) / len(ordered))
    symmetricity = gradient_symmetricity(grid, triples, seed)
    irrelevance = distance_irrelevance(grid.logits)
    untrained = shuffled_measures(grid, seed)
    band, why = _band(symmetricity.value, irrelevance, 2 * symmetricity.standard_error)
    flags = _flags(accuracy, split, circles.value, sparsity)
    label = "undecided" if any(refuses for _, refuses in flags) else band
    reasons = [text for text, _ in flags] + [why if label == band else f"The measures alone: {why}"]
    if (
        label != "undecided"
        and _band(untrained["gradient_symmetricity"], untrained["distance_irrelevance"], 0.0)[0] == label
    ):
        reasons.append(
            "With its weights shuffled the same architecture falls into the same bands (symmetricity "
            f"{untrained['gradient_symmetricity']:.3f}, distance irrelevance {untrained['distance_irrelevance']:.3f}): "
            "accuracy and circles carry this verdict, not the two measures."
        )
    return Verdict(label, (*reasons, DISPUTE), accuracy, split, circles, sparsity, symmetricity, irrelevance, untrained)


def shuffled_measures(grid: Grid, seed: int = 0) -> dict[str, float]:
    """Return both measures of the model with the entries of each of its weights in random order: an untrained network.

    The model is used in place and has its own weights again afterwards, whatever happens.
    """
    with _shuffled(grid.model, seed):
        other = replace(grid)  # nothing computed from the model's own weights is kept
        return {
            "gradient_symmetricity": gradient_symmetricity(other, 500, seed).value,
            "distance_irrelevance": distance_irrelevance(other.logits),
        }


@contextmanager
def _shuffled(model: HookedModel, seed: int) -> Iterator[None]:
    parameters = list(model.parameters())  # type: ignore[attr-defined]
    own = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for parameter, before in zip(parameters, own, strict=True):
                order = torch.randperm(before.numel(), generator=generator).to(before.device)
                parameter.copy_(before.flatten()[order].reshape(before.shape))
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, own, strict=True):
                parameter.copy_(before)


def _flags(accuracy: float, split: str, circles: float, sparsity: float) -> list[tuple[str, bool]]:
    """What stands before the measures: a sentence each, and whether it forbids a verdict."""
    found = []
    if accuracy < LEAST:
        pairs = "held-out pairs" if split == "test" else "pairs"
        found.append((f"It answers {accuracy:.3f} of the {pairs}: there is no algorithm to name below {LEAST}.", True))
    text = f"circularity {circles:.3f}, and {sparsity:.2f} of the frequencies hold {ENERGY:.0%} of W_E's energy"
    if not circles >= CIRCULARITY and sparsity > SPARSITY:  # NaN is not circular
        found.append((f"Not circular: {text}; both measures are about circles.", True))
    elif circles < FLAGGED:
        found.append((f"Circles are mixed or imperfect: {text}.", False))
    return found


def _band(symmetricity: float, irrelevance: float, error: float) -> tuple[str, str]:
    """Which algorithm's bands both measures lie in, and the sentence that says so."""
    text = f"gradient symmetricity {symmetricity:.3f}, distance irrelevance {irrelevance:.3f}"
    if symmetricity - error >= PIZZA[0] and irrelevance <= PIZZA[1]:
        return "pizza", f"Operands act alike and their difference matters, as in a Pizza: {text}."
    if symmetricity + error <= CLOCK[0] and irrelevance >= CLOCK[1]:
        return "clock", f"Operands act differently and their difference does not matter, as in a Clock: {text}."
    if symmetricity - error >= PIZZA[0] and irrelevance >= CLOCK[1]:
        return "undecided", f"Both measures are high, as in untrained networks: {text}."
    return "undecided", f"The two measures do not point to one algorithm: {text}."
