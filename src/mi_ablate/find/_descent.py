"""The descent behind `mi_ablate.find.optimised`: the loss of a direction with its gradient, and the steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._broadcast import finished, working
from mi_ablate._positions import Window, resolve
from mi_ablate._types import FwdHooks, Hook
from mi_ablate.metrics import kl
from mi_ablate.model import attached, default_batch_size, run, writers
from mi_ablate.replay import where_read

_KL = kl()


@dataclass
class Problem:
    """The loss of unit directions on batches of prompts."""

    model: Any
    tokens: Int[Tensor, "n p"]
    mask: Tensor | None
    metric: Callable[..., Tensor]
    positive: Bool[Tensor, " n"]
    site: str
    weights: dict[str, float]
    size: float
    low: float = 0.0
    high: float = 0.0

    def set_levels(self, batch_size: int) -> None:
        """Measure the clean means of the metric on both classes."""
        levels = []
        for chosen in (~self.positive, self.positive):
            index, total = torch.nonzero(chosen).flatten(), 0.0
            for rows in index.split(max(batch_size, default_batch_size(self.model, self.tokens.shape[1]))):
                with torch.no_grad():
                    total += float(self._metric(self._logits(rows, []), rows).double().sum())
            levels.append(total / len(index))
        self.low, self.high = levels
        if not self.high > self.low:
            raise ValueError(
                f"The clean metric is {self.high:.3g} on the positive prompts and {self.low:.3g} on the negative ones: the "
                "behaviour is not there to be found. Are the labels the right way round?"
            )

    def terms(self, v: Float[Tensor, " d"], up: Tensor, down: Tensor, clean: Tensor | None) -> dict[str, Tensor]:
        """Return each term whose weight is not 0, for one unit direction; ``clean`` as `clean` gives it."""
        gap, found = self.high - self.low, {}
        if self.weights["ablation"]:
            m = self._metric(self._logits(up, self._removal(v)), up)
            found["ablation"] = ((m - self.low) / gap).clamp(min=0).mean()
        if self.weights["addition"]:
            m = self._metric(self._logits(down, [(self.site, _added(self.size * v))]), down)
            found["addition"] = ((self.high - m) / gap).clamp(min=0).mean()
        if self.weights["retain"]:
            found["retain"] = _KL(self._last(self._logits(down, self._removal(v)), down), clean, down).mean()
        for term, value in found.items():
            if not value.requires_grad:
                raise ValueError(
                    f"The term {term!r} has no gradient in the direction: the metric {self.metric!r} is not differentiable "
                    "(an accuracy is not; logit_diff and refusal_score are), or the site comes after all that it reads."
                )
        return found

    def clean(self, down: Tensor) -> Float[Tensor, "b 1 v"] | None:
        """Return the clean logits of the last real token, where the retain term needs them."""
        with torch.no_grad():
            return self._last(self._logits(down, []), down) if self.weights["retain"] else None

    def _removal(self, v: Tensor) -> FwdHooks:
        return [(name, _removed(v)) for name in writers(self.model)]

    def _logits(self, rows: Tensor, hooks: FwdHooks) -> Tensor:
        with attached(self.model, hooks):
            return run(self.model, self.tokens[rows], None if self.mask is None else self.mask[rows])

    def _metric(self, logits: Tensor, rows: Tensor) -> Tensor:
        mask = None if self.mask is None else self.mask[rows]
        return self.metric(where_read(logits, mask, self.metric), None, rows)

    def _last(self, logits: Tensor, rows: Tensor) -> Float[Tensor, "b 1 v"]:
        mask = None if self.mask is None else self.mask[rows].bool()
        return resolve(-1, logits, None, Window(0, mask)).take(logits)[:, None]


def descend(
    problem: Problem,
    rows: Float[Tensor, "r d"],
    options: dict[str, Any],
    patience: int | None,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None,
) -> tuple[Float[Tensor, "r d"], dict[str, list[float]]]:
    """Return the rows with the smallest smoothed loss, and the terms at every step."""
    leaf = rows.clone().requires_grad_(True)
    optimiser = torch.optim.AdamW([leaf], lr=options["lr"])
    ups, downs = (
        _cycle(torch.nonzero(x).flatten(), options["batch_size"], generator)
        for x in (problem.positive, ~problem.positive)
    )
    history: dict[str, list[float]] = {
        key: [] for key in ("loss", *problem.weights) if key == "loss" or problem.weights[key]
    }
    best, smooth, since, kept = float("inf"), None, 0, rows
    for step in range(options["steps"]):
        up, down = next(ups), next(downs)
        clean = problem.clean(down)
        basis = orthonormal(leaf)
        mixes = torch.rand(options["samples"], len(rows), generator=generator, dtype=basis.dtype)
        directions = [*basis, *(torch.nn.functional.normalize(mix @ basis, dim=0) for mix in mixes)]
        gradient, sums = torch.zeros_like(leaf), dict.fromkeys(history, 0.0)
        for i, v in enumerate(directions):  # one graph at a time
            terms = problem.terms(v, up, down, clean)
            loss = torch.stack([problem.weights[key] * value.cpu().double() for key, value in terms.items()]).sum()
            gradient += torch.autograd.grad(loss / len(directions), leaf, retain_graph=i + 1 < len(directions))[0]
            for key, value in [("loss", loss), *terms.items()]:
                sums[key] += float(value.detach()) / len(directions)
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError(
                f"The gradient is NaN or infinite at step {step + 1}: a smaller lr, or a model in float32."
            )
        for key, total in sums.items():
            history[key].append(total)
        smooth = sums["loss"] if smooth is None else 0.9 * smooth + 0.1 * sums["loss"]
        best, since, kept = (smooth, 0, basis.detach().clone()) if smooth < best else (best, since + 1, kept)
        leaf.grad = gradient
        optimiser.step()
        with torch.no_grad():
            leaf.copy_(orthonormal(leaf))
        if progress is not None:
            progress(step + 1, options["steps"])
        if patience is not None and since >= patience:
            break
    return kept, history


def orthonormal(rows: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """Gram-Schmidt with a gradient; the first row keeps its direction."""
    basis: list[Tensor] = []
    for row in rows:
        for unit in basis:
            row = row - (row @ unit) * unit
        basis.append(row / row.norm())
    return torch.stack(basis)


def _removed(v: Float[Tensor, " d"]) -> Hook:
    def hook(x: Tensor, hook: Any = None) -> Tensor:
        y = working(x)
        unit = v.to(y.dtype).to(y.device)
        return finished(y - (y @ unit)[..., None] * unit, x)

    return hook


def _added(v: Float[Tensor, " d"]) -> Hook:
    def hook(x: Tensor, hook: Any = None) -> Tensor:
        y = working(x)
        return finished(y + v.to(y.dtype).to(y.device), x)

    return hook


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No parameter asks for a gradient inside, so none is computed or kept for it; afterwards each is as it was."""
    asking = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in asking:
            p.requires_grad_(False)
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


def _cycle(index: Int[Tensor, " m"], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of the rows in random order, for ever; every row once before any comes twice."""
    while True:
        yield from index[torch.randperm(len(index), generator=generator)].split(size)
