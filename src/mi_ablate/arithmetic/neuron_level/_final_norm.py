"""The final norm and the unembedding in closed form: one logit of many changed residual streams without running them.

    logit(x) = (x̃ · g) / s(x) + constant,   s² = |x̃|² / d + eps,   g = w ⊙ W_U[:, token], centred for LayerNorm

with x̃ = x - mean(x) for LayerNorm and x itself for RMSNorm. Along x + δ u all of it follows from five inner products.
The form is checked against the model's own logits before it is used. It serves neurons, whose changed streams would be too
many to write down; components go through the model's own norm (`direct`), whatever it is.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._norms import NORMS
from mi_ablate.model import run
from mi_ablate.replay import agree


@dataclass(frozen=True, eq=False)
class FinalNorm:
    """Weights of the readout, in float64 on the CPU."""

    kind: str
    """"LN", "RMS" or "none"."""
    eps: float
    weight: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    columns: Tensor
    """The model's W_U ``[d v]``, as it is."""
    constants: Tensor | None

    def centred(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return x in float64 on the CPU, without the mean that a LayerNorm takes away."""
        x = x.detach().to("cpu", torch.float64)
        return x - x.mean(-1, keepdim=True) if self.kind == "LN" else x

    def scale(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return what the norm divides by; 1 where there is none."""
        x = self.centred(x)
        return x.new_ones(len(x)) if self.kind == "none" else ((x**2).mean(-1) + self.eps).sqrt()

    def reads(self, tokens: Int[Tensor, " t"]) -> Float[Tensor, "t d"]:
        """Return g of each token: its logit is (x · g) / scale plus a constant."""
        columns = self.columns.detach()[:, tokens.to(self.columns.device)].T.double().cpu()
        return self.centred(columns * self.weight)

    def logits(self, x: Float[Tensor, "n d"], tokens: Int[Tensor, " t"]) -> Float[Tensor, "n t"]:
        """Return the logits of these tokens, constants included."""
        columns = self.columns.detach()[:, tokens.to(self.columns.device)].double().cpu()
        fixed = self.bias @ columns
        if self.constants is not None:
            fixed = fixed + self.constants.detach()[tokens.to(self.constants.device)].double().cpu()
        return self.centred(x) @ self.reads(tokens).T / self.scale(x)[:, None] + fixed


def final_norm(model: Any, tokens: Int[Tensor, "n p"], last: Float[Tensor, "n d"]) -> FinalNorm:
    """Return the model's readout, after a check on its logits at the last position of some prompts.

    Raises:
        ValueError: logits that are made in another way (a cap, a norm of another kind).

    """
    kind = str(model.cfg.normalization_type or "none").removesuffix("Pre")
    layer, d = getattr(model, "ln_final", None), model.cfg.d_model
    weight, bias = (getattr(layer, name, None) if kind != "none" else None for name in ("w", "b"))
    made = FinalNorm(
        kind=kind,
        eps=float(getattr(model.cfg, "eps", 0.0)),
        weight=torch.ones(d).double() if weight is None else weight.detach().double().cpu(),
        bias=torch.zeros(d).double() if bias is None else bias.detach().double().cpu(),
        columns=model.unembed.W_U,
        constants=getattr(model.unembed, "b_U", None),
    )
    few = slice(0, min(4, len(tokens)))
    with torch.no_grad():
        wanted = run(model, tokens[few])[:, -1].double().cpu()
    found = made.logits(last[few], torch.arange(wanted.shape[1]))
    if kind not in ("LN", "RMS", "none") or not (agree(found, wanted) or _half(model, found, wanted)):
        raise ValueError(
            f"The logits are not those of a final {kind} and W_U on the last residual stream (a cap on logits, or another "
            "kind of norm), so effects on them have no closed form here. neuron_patching runs the model instead."
        )
    return made


def _half(model: Any, found: Tensor, wanted: Tensor) -> bool:
    """Whether a model in half precision agrees as far as its dtype goes."""
    rough = torch.finfo(model.unembed.W_U.dtype).eps
    return rough > 1e-4 and bool((found - wanted).abs().max() <= 8 * rough * wanted.abs().max())


def gains(
    norm: FinalNorm,
    final: Float[Tensor, "n d"],
    changes: Float[Tensor, "n m"],
    rows: Float[Tensor, "m d"],
    answers: Int[Tensor, " n"],
    kind: str,
) -> Float[Tensor, "n m"]:
    """Return how much each answer's logit gains when x + changes[:, j] rows[j] is read in place of x, for each j by itself.

    Args:
        norm: the readout.
        final: last residual streams ``[n d]``.
        changes: how far along each row.
        rows: directions ``[m d]``.
        answers: one token a row of ``final``.
        kind: "frozen" (the scale of x) or "live" (that of the changed stream).

    """
    if kind not in NORMS:
        raise ValueError(f"norm={kind!r} is 'frozen' (the scale of the unchanged run) or 'live'.")
    x, u, reads = norm.centred(final), norm.centred(rows), norm.reads(answers)
    delta, scale = changes.to("cpu", torch.float64), norm.scale(final)[:, None]
    numerator = delta * (reads @ u.T)
    if kind == "frozen" or norm.kind == "none":
        return numerator / scale
    before = (x * reads).sum(1, keepdim=True)
    square = (x**2).sum(1, keepdim=True) + delta * (2 * (x @ u.T) + delta * (u**2).sum(1))
    return (before + numerator) / (square / x.shape[1] + norm.eps).sqrt() - before / scale
