"""Mean and covariance of the activations that an edit addresses, and the share of their variance that it overwrites."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._positions import Pos
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.interventions import Ablate, Erase, Intervention, Placed, Rotate
from mi_ablate.model import split, stream
from mi_ablate.subspace import Subspace


@dataclass
class Moments:
    """Mean and covariance of vectors, streamed in float64."""

    n: int = 0
    mean: Float[Tensor, " d"] | None = None
    _scatter: Float[Tensor, "d d"] | None = None

    def update(self, x: Float[Tensor, "n d"]) -> "Moments":
        """Add vectors and return self."""
        if len(x) == 0:
            return self
        x = x.detach().to(torch.float64)
        n, mean = len(x), x.mean(0)
        scatter = (x - mean).T @ (x - mean)
        if self.mean is None or self._scatter is None:
            self.n, self.mean, self._scatter = n, mean, scatter
            return self
        delta, total = mean - self.mean, self.n + n
        self._scatter = self._scatter + scatter + torch.outer(delta, delta) * (self.n * n / total)
        self.mean, self.n = self.mean + delta * (n / total), total
        return self

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Σ, with n - 1 in the denominator."""
        if self._scatter is None or self.n < 2:
            raise ValueError(f"A covariance needs at least two vectors; {self.n} were given.")
        return self._scatter / (self.n - 1)

    def share(self, subspace: Subspace) -> float:
        """Return tr(Qᵀ Σ Q) / tr Σ, the share of the variance inside the subspace."""
        q = subspace.basis.to(self.covariance.device)
        total = self.covariance.trace()
        return float((q * (self.covariance @ q)).sum() / total) if total > 0 else 0.0


def site_moments(
    model: HookedModel,
    tokens: Tensor,
    hooks: FwdHooks,
    mask: Tensor | None,
    batch_size: int | None,
    known: Mapping[str, Tensor],
) -> dict[str, Moments]:
    """Return mean and covariance of the clean vectors that each placed hook addresses, one pass a kind of position."""
    placed: dict[str, Placed] = {}
    found: dict[str, Moments] = {}
    for name, hook in hooks:
        if not isinstance(hook, Placed):
            continue
        if name in known:
            found[name] = Moments().update(_part(known[name], hook))
        else:
            placed.setdefault(name, hook)
    groups: dict[int, list[str]] = {}
    readable: dict[int, Pos] = {}
    for name, hook in placed.items():
        pos: Pos = None if callable(hook.pos) or (isinstance(hook.pos, Tensor) and hook.pos.dtype == torch.bool) else hook.pos
        key = next((k for k, p in readable.items() if p is pos or (type(p) is type(pos) is int and p == pos)), len(readable))
        readable[key] = pos
        groups.setdefault(key, []).append(name)
    for key, names in groups.items():
        for rows, acts in stream(model, split(model, tokens, mask, batch_size), names, pos=readable[key]):
            for name in names:
                x, pos = acts[name], placed[name].pos
                if isinstance(pos, Tensor) and pos.dtype == torch.bool:
                    x = x[pos[rows]]
                elif mask is not None and readable[key] is None:
                    x = x[mask[rows].bool()]
                x = _part(x, placed[name])
                found.setdefault(name, Moments()).update(x.reshape(-1, x.shape[-1]))
    return found


def variance_removed(hooks: FwdHooks, moments: dict[str, Moments]) -> float:
    """Return the mean over placed hooks of the share of variance that lies in what they overwrite; NaN where none is known."""
    shares = [_share(hook.intervention, moments[name]) for name, hook in hooks if isinstance(hook, Placed)]
    return sum(shares) / len(shares) if shares else float("nan")


def _part(x: Tensor, hook: Placed) -> Tensor:
    """The heads and units that a hook addresses."""
    if hook.head is not None:
        x = x[..., [hook.head] if isinstance(hook.head, int) else hook.head, :]
    if hook.unit is not None:
        x = x[..., [hook.unit] if isinstance(hook.unit, int) else hook.unit]
    return x


def _share(edit: Intervention, moments: Moments) -> float:
    if isinstance(edit, Ablate):
        if edit.subspace is None:
            return 1.0
        share = moments.share(edit.subspace)
        return 1.0 - share if edit.keep else share
    if isinstance(edit, Erase):
        return moments.share(Subspace.span(edit.reader.T))
    return moments.share(edit.subspace) if isinstance(edit, Rotate) else 0.0
