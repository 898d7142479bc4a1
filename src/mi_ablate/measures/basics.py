"""What a model scores, and how its embedding and unembedding are spread over frequencies.

Accuracy saturates: a model that answers everything may do so by any margin, so margins stand beside it. A frequency with
a large share need not be used, and a random matrix has shares too: its top 5 and top 10 stand beside the model's.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate.measures.geometry import dimensions
from mi_ablate.measures.subject import Operation
from mi_ablate.measures.task import number_embedding
from mi_ablate.modular import spectrum

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TOP, RANDOM_DRAWS = (5, 10), 20


def accuracy(one: Operation) -> dict[str, Any]:
    """Accuracy and loss on training, held-out and all prompts, zero operands included; margins on held-out ones.

    The margin is the answer's logit minus the largest other logit; "margin" holds its 5, 25, 50, 75 and 95 % quantiles.
    """
    rows, toy = one.everything, one.subject.toy
    logits, answers, train = one.subject.logits[rows].double(), toy.answers[rows], toy.train[rows]  # type: ignore[index]
    right = (logits.argmax(-1) == answers).double()
    loss = torch.nn.functional.cross_entropy(logits, answers, reduction="none")
    found: dict[str, Any] = {}
    for name, mask in {"train": train, "held_out": ~train, "all": train | ~train}.items():
        found[name] = {"accuracy": float(right[mask].mean()), "loss": float(loss[mask].mean()), "n": int(mask.sum())}
    own = logits.gather(1, answers[:, None])
    margin = (own - logits.scatter(1, answers[:, None], -torch.inf).amax(1, keepdim=True))[~train, 0]
    points = torch.tensor(QUANTILES, dtype=torch.float64)
    found["margin"] = torch.quantile(margin, points) if len(margin) else None
    return found


def embedding(one: Operation) -> dict[str, Any]:
    """Fourier shares of W_E's numbers and W_U's answers over the operation's group, Rank99 and norms."""
    numbers = number_embedding(one.task)
    weights = one.subject.weights
    columns = weights["unembed.W_U"].T[one.task.tokens_of]
    centred = numbers.double() - numbers.double().mean(0)
    norms = {"W_E": weights["embed.W_E"], "W_U": weights["unembed.W_U"]}
    squares = sum(float((w.double() ** 2).sum()) for w in weights.values())
    return {
        "W_E": _shares(numbers),
        "W_U": _shares(columns),
        "rank99": dimensions(torch.linalg.svdvals(centred))["rank99"],
        "norms": {name: float(w.double().norm()) for name, w in norms.items()} | {"all": squares**0.5},
    }


def _shares(x: Float[Tensor, "n d"]) -> dict[str, Any]:
    found = spectrum(x)
    count = len(found.shares)
    blind = [spectrum(draw) for draw in _random(x)]
    top = {}
    for most in TOP:
        k = min(most, count)
        share = found.share(*found.top(k))
        reference = sum(draw.share(*draw.top(k)) for draw in blind) / len(blind)
        top[f"top{most}"] = {"share": share, "random": reference}
    return {"shares": found.shares, "frequencies": found.top(min(max(TOP), count)), **top}


def _random(x: Tensor) -> list[Float[Tensor, "n d"]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(x.shape, dtype=torch.float64, generator=generator) for _ in range(RANDOM_DRAWS)]
