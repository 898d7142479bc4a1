"""What a change of the last residual stream does to the logits at once: the model's own final norm and unembedding.

    direct effect of c = metric(logits(x + δ_c)) - metric(logits(x))      x: the corrupted run's last residual stream

With norm="live" the final norm takes its scale from x + δ_c, as Kantamneni and Tegmark do it (arXiv 2502.00873); with
"frozen" it keeps the scale of x, the logits are then affine in δ, and the direct effects of all parts of a change add up to
that of the whole. Centring and folded weights are done by the model's own `ln_final`.

No pass is run: the residual stream is read once, and each component costs one norm and, where only the answer's logit
is asked for, one column of W_U. The model's own modules do it, so any norm and any metric will do, in the model's dtype: in
half precision x + δ is rounded as the model rounds it. Thousands of neurons, each along one row of W_out, go by the closed form
of `_final_norm` instead, in float64, for LayerNorm and RMSNorm and the answer's logit; a test holds the two together.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._norms import NORMS
from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.circuit.parts import wide
from mi_ablate.metrics import PositionMetric
from mi_ablate.model import attached, run
from mi_ablate.replay import agree

_BUDGET = 2**22
"""Floats of residual streams, or of logits, that are held at once; 2**25 takes twice the time on a CPU."""


@dataclass(frozen=True, eq=False)
class Readout:
    """The way from the last residual stream to the logits, checked against an ordinary pass."""

    model: Any
    cap: float = 0.0
    """Of the logits: cap tanh(logits / cap); 0 for none."""

    def scale(self, x: Float[Tensor, "m d"]) -> Float[Tensor, "m 1"] | None:
        """Return what the final norm divides by; None where the model has none."""
        if self.model.cfg.normalization_type is None:
            return None
        found: list[Tensor] = []

        def keep(scale: Tensor, hook: Any = None) -> None:
            found.append(scale.detach().clone())

        with torch.no_grad(), attached(self.model, [("ln_final.hook_scale", keep)]):  # type: ignore[list-item]
            self.model.ln_final(x[:, None])
        return found[0][:, 0]

    def normed(self, x: Float[Tensor, "m d"], scale: Float[Tensor, "m 1"] | None = None) -> Float[Tensor, "m d"]:
        """Return the final norm's output, with a given scale or its own."""
        if self.model.cfg.normalization_type is None:
            return x
        with torch.no_grad(), _frozen(self.model, scale):
            return self.model.ln_final(x[:, None])[:, 0]

    def logits(self, x: Float[Tensor, "m d"], scale: Float[Tensor, "m 1"] | None = None) -> Float[Tensor, "m v"]:
        """Return the logits of residual streams."""
        with torch.no_grad():
            return self._capped(self.model.unembed(self.normed(x, scale)[:, None])[:, 0])

    def of_tokens(
        self, x: Float[Tensor, "m d"], tokens: Int[Tensor, " m"], scale: Float[Tensor, "m 1"] | None = None
    ) -> Float[Tensor, " m"]:
        """Return one logit a row, in float32 or better, from its column of W_U alone."""
        columns = self.model.unembed.W_U.detach()[:, tokens.to(x.device)].T
        found = (wide(self.normed(x, scale)) * wide(columns)).sum(-1)
        bias = getattr(self.model.unembed, "b_U", None)
        return self._capped(found if bias is None else found + wide(bias.detach()[tokens.to(x.device)]))

    def _capped(self, logits: Tensor) -> Tensor:
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


def readout(model: Any, tokens: Int[Tensor, "n p"], last: Float[Tensor, "n d"]) -> Readout:
    """Return the model's readout, where it gives the logits of these prompts from their last residual streams.

    Raises:
        ValueError: a model whose logits are made in another way.

    """
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0.0
    with torch.no_grad():
        wanted = run(model, tokens[:4])[:, -1]
    for found in (Readout(model), Readout(model, float(cap)) if cap > 0 else None):
        if found is not None and agree(found.logits(last[:4]), wanted):
            return found
    raise ValueError(
        "The logits are not those of ln_final and unembed on the last residual stream (something else lies between), so "
        "direct effects are not defined. joint_effect and smallest_sets work."
    )


def direct_effects(
    reader: Readout,
    base: Float[Tensor, "n d"],
    changes: Iterator[Float[Tensor, "n d"]],
    answers: Int[Tensor, " n"] | PositionMetric,
    norm: str,
) -> Float[Tensor, "c n"]:
    """Return the direct effect of each change of the last residual stream, in float64 on the CPU.

    Args:
        reader: the model's readout.
        base: last residual streams ``[n d]`` of the corrupted run.
        changes: one ``[n d]`` a component.
        answers: tokens, for the gain of their logits; or a metric read at the last position.
        norm: "live" or "frozen" (at the scale of ``base``).

    """
    if norm not in NORMS:
        raise ValueError(
            f"norm={norm!r} is 'live' (the final norm sees the change) or 'frozen' (the corrupted run's scale)."
        )
    scale = reader.scale(base) if norm == "frozen" else None
    columns = isinstance(answers, Tensor)
    before = reader.of_tokens(base, answers) if isinstance(answers, Tensor) else reader.logits(base)
    width = base.shape[1] if columns else before.shape[1]
    size, found = max(1, _BUDGET // (len(base) * width)), []
    for part in _chunks(changes, size):
        x = torch.cat([wide(base) + change.to(base.device) for change in part]).to(base.dtype)
        scales = None if scale is None else scale.repeat(len(part), 1)
        if isinstance(answers, Tensor):
            after = reader.of_tokens(x, answers.repeat(len(part)), scales).unflatten(0, (len(part), -1))
            found.append((after.double() - before.double()).cpu())
            continue
        rows = torch.arange(len(base))
        start = answers(before[:, None], before[:, None], rows)
        for after in reader.logits(x, scales).split(len(base)):
            found.append((answers(after[:, None], before[:, None], rows) - start).double().cpu()[None])
    return torch.cat(found)


def _chunks(changes: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    part: list[Tensor] = []
    for change in changes:
        part.append(change)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


@contextmanager
def _frozen(model: HookedModel, scale: Tensor | None) -> Iterator[None]:
    """The final norm with a scale written to it; as it is where there is none."""
    if scale is None:
        yield
        return

    def write(x: Tensor, hook: Any = None) -> Tensor:
        return scale[:, None].to(x)

    with warnings.catch_warnings():  # a 4.x bridge says that an RMSNorm with a written scale rounds differently
        warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
        with attached(model, [("ln_final.hook_scale", write)]):
            yield
