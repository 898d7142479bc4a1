"""Progress measures along training, and the three phases that they tell apart.

For one checkpoint, from its logits on every pair [i, j, c] and its embedding (Nanda et al. 2023, arXiv 2301.05217, section 5):

    restricted   loss on all pairs of the mean logits plus the components cos, sin of w_k(i + j), key k only
                 (`restricted_loss`, variant "nanda_colab"): falls when the model works through the key frequencies
    excluded     loss on the training pairs without those components (`excluded_loss`, variant "nanda_text"): low while the
                 model knows its pairs by heart, high once it needs the frequencies

Key frequencies are those of the final model and the same for every checkpoint, as in the paper. A live run does not know them
yet: there they are the top five of W_E at that step, and each row says which.

Phases (the paper names them and reads the borders off its figures; these rules are ours):

    memorisation       from the start to the lowest excluded loss before grokking
    circuit formation  from there to the last step with held-out loss above half of its highest
    cleanup            from there to the first step with held-out accuracy of at least 0.99

Misleads where: checkpoints are few, since every border is a step that was measured; a run whose held-out loss never rose
forms its circuit and cleans up at once; steps that spike. A run that never reaches 0.99 has no phases after the first, and
none are invented.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_ablate.modular.bases import FourierBasis
from mi_ablate.modular.clock_pizza import circularity, distance_irrelevance
from mi_ablate.modular.cosines import cosine_share
from mi_ablate.modular.spectra import spectrum

GROKKED, MEMORISED = 0.99, 0.99
LIVE_KEYS = 5


def progress_row(
    step: int,
    logits: Float[Tensor, "n n n"],
    embedding: Float[Tensor, "n d"],
    train: Bool[Tensor, "n n"],
    frequencies: Iterable[int] | None = None,
    weights: int | float = float("nan"),
) -> dict[str, Any]:
    """Return every progress measure of one checkpoint.

    Args:
        step: of training.
        logits: on every pair, over the group's answers.
        embedding: W_E in the order of the group.
        train: the pairs that are trained on.
        frequencies: the key frequencies; the top five of this checkpoint's W_E by default.
        weights: the sum of squared weights, which the row passes on.

    Raises:
        ValueError: frequencies that Z_n does not have, a split without training or without held-out pairs.

    """
    n = len(logits)
    if not bool(train.any()) or bool(train.all()):
        raise ValueError(
            f"Progress compares training with held-out pairs; {int(train.sum())} of {n * n} are trained on."
        )
    basis, lines = FourierBasis(n), spectrum(embedding)
    keys = lines.top(min(LIVE_KEYS, n // 2)) if frequencies is None else sorted(set(frequencies))
    x = logits.detach().to("cpu", torch.float64)
    part = basis.component(x, keys)
    loss, right = _loss(x), _right(x)
    share = cosine_share(x)
    return {
        "step": step,
        "frequencies": keys,
        "train_loss": float(loss[train].mean()),
        "test_loss": float(loss[~train].mean()),
        "train_accuracy": float(right[train].double().mean()),
        "test_accuracy": float(right[~train].double().mean()),
        "restricted_nanda_colab": float(_loss(part + x.mean((0, 1))).mean()),
        "excluded_nanda_text": float(_loss(x - part)[train].mean()),
        "cosine_fve": float(share.fve[[k - 1 for k in keys]].sum()),
        "share_W_E": lines.share(*keys),
        "gini_W_E": lines.gini,
        "circularity": circularity(embedding).value,
        "distance_irrelevance": distance_irrelevance(x),
        "weights": float(weights),
    }


def phases(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the last step of each phase, None where a phase was not finished, and the reason.

    Keys: "memorisation", "circuit_formation", "cleanup" (steps at which they end) and "reason". Rows as `progress_row` gives
    them, in any order.

    Raises:
        ValueError: no rows.

    """
    if not rows:
        raise ValueError("There is no row to read phases from; phases takes the rows of a run's checkpoints.")
    ordered = sorted(rows, key=lambda row: row["step"])
    found: dict[str, Any] = {"memorisation": None, "circuit_formation": None, "cleanup": None, "reason": ""}
    grok = next((i for i, row in enumerate(ordered) if row["test_accuracy"] >= GROKKED), None)
    if grok is None:
        best = max(row["test_accuracy"] for row in ordered)
        known = next((row["step"] for row in ordered if row["train_accuracy"] >= MEMORISED), None)
        found["reason"] = (
            f"held-out accuracy never reached {GROKKED} (at most {best:.3f}), so there is no circuit to date"
        )
        return found | {"memorisation": known}
    before = ordered[: grok + 1]
    highest = max(row["test_loss"] for row in before)
    formed = max(i for i, row in enumerate(before) if row["test_loss"] > highest / 2)
    lowest = min(range(formed + 1), key=lambda i: before[i]["excluded_nanda_text"])
    steps = (before[lowest]["step"], before[formed]["step"], before[grok]["step"])
    return found | dict(zip(("memorisation", "circuit_formation", "cleanup"), steps))


def _loss(x: Float[Tensor, "n n n"]) -> Float[Tensor, "n n"]:
    return x.logsumexp(-1) - x.gather(-1, _answers(x)[..., None])[..., 0]


def _right(x: Float[Tensor, "n n n"]) -> Bool[Tensor, "n n"]:
    return x.argmax(-1) == _answers(x)


def _answers(x: Float[Tensor, "n n n"]) -> Tensor:
    index = torch.arange(len(x))
    return (index[:, None] + index) % len(x)
