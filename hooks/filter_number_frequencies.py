"""Take chosen frequencies out of what a component adds to the logits of the numbers (low-pass and high-pass filters).

Equation: x' = x - R+ R x, R = F W, with W the columns of W_U of the numbers 0 .. p-1 and F the rows cos(2 pi k n / (p-1)),
    sin(2 pi k n / (p-1)) of the frequencies k to remove: the smallest change after which R x' = 0.
Paper: Zhou, Fu, Sharan & Jia 2024, arXiv 2406.03445, Definitions A.3 to A.6 (removed: k >= 50 by the low-pass filter, 1 <= k
    < 50 by the high-pass one, of 260; the constant is never removed).
Shapes: columns [d, p], W_U of the numbers in order; frequencies a list from 1 to (p - 1) // 2; x [batch, pos, d].
Attach at: every hook_attn_out, every hook_mlp_out, or both, at the last position.
Misleads when: R has nearly as many rows as the stream has dimensions: then little of x is left, whatever the frequencies (the
    low-pass filter of 521 numbers removes 421 of GPT-2's 768 directions). The final norm is not in W.
Compare with: as many random directions removed at the same places.
In the package: Ablate(logit_filter(model, numerals, keep="low")).at(...)
"""

import math
from collections.abc import Callable, Sequence

import torch


def filter_number_frequencies(
    columns: torch.Tensor, frequencies: Sequence[int], pos: int | None = -1
) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""
    p = columns.shape[1]
    numbers = torch.arange(p).double()
    angles = [2 * math.pi * ((k * numbers) % (p - 1)) / (p - 1) for k in frequencies]
    rows = torch.stack([f(angle) for angle in angles for f in (torch.cos, torch.sin)])
    rows = rows[rows.norm(dim=1) > 1e-9]  # the sine of 2k = p - 1 is zero
    read = rows @ columns.double().T
    projector = torch.linalg.pinv(read, rtol=1e-9) @ read

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        out, where = x.clone(), slice(None) if pos is None else [pos]
        here = x[:, where].double()
        out[:, where] = (here - here @ projector).to(x.dtype)
        return out

    return hook
