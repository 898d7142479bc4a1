"""Mean and covariance of the activations that an edit addresses, and the share of their variance that it overwrites."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._names import checked
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
        """Return tr(Qᵀ Σ Q) / tr Σ, the share of the variance inside the subspace; NaN of fewer than two vectors."""
        if self.n < 2 or self.mean is None:
            return float("nan")
        subspace._check_width(self.mean)
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
    found: dict[str, Moments] = {}
    unknown: FwdHooks = []
    for key, hook in keyed(hooks):
        checked(model, hook.name, model.hook_dict)
        if hook.name in known:
            found[key] = Moments().update(_part(known[hook.name], hook))
        else:
            unknown.append((key, hook))
    for key, x in addressed(model, tokens, unknown, mask, batch_size):
        found.setdefault(key, Moments()).update(x)
    return found


def addressed(
    model: HookedModel, tokens: Tensor, placed: FwdHooks, mask: Tensor | None, batch_size: int | None = None
) -> Iterator[tuple[str, Float[Tensor, "m d"]]]:
    """Yield (key, the clean vectors that its placed hook addresses), batch by batch, one pass a kind of position.

    ``placed`` are the hooks as `keyed` names them. Of positions given as a function, all real positions are taken.
    """
    hooks: dict[str, Placed] = dict(placed)  # type: ignore[arg-type]
    groups: list[tuple[Pos, list[str]]] = []
    for key, hook in hooks.items():
        readable: Pos = None if callable(hook.pos) or _is_mask(hook.pos) else hook.pos
        group = next(
            (keys for p, keys in groups if p is readable or (type(p) is type(readable) is int and p == readable)), None
        )
        if group is None:
            groups.append((readable, [key]))
        else:
            group.append(key)
    for pos, keys in groups:
        names = [hooks[key].name for key in keys]
        for rows, acts in stream(model, split(model, tokens, mask, batch_size), names, pos=pos):
            for key in keys:
                x, own = acts[hooks[key].name], hooks[key].pos
                if isinstance(own, Tensor) and _is_mask(own):
                    x = x[own[rows]]
                elif mask is not None and pos is None:
                    x = x[mask[rows].bool()]
                x = _part(x, hooks[key])
                yield key, x.reshape(-1, x.shape[-1])


def variance_removed(hooks: FwdHooks, moments: dict[str, Moments]) -> float:
    """Return the mean over placed hooks of the share of variance that lies in what they overwrite; NaN where none is known."""
    shares = [_share(hook.intervention, moments[key]) for key, hook in keyed(hooks)]
    return sum(shares) / len(shares) if shares else float("nan")


def keyed(hooks: FwdHooks) -> list[tuple[str, Placed]]:
    """Return placed hooks by site; the second edit of one site, "site (2)", is told apart, since its positions may differ."""
    found: dict[str, Placed] = {}
    for name, hook in hooks:
        if isinstance(hook, Placed):
            earlier = sum(other.name == name for other in found.values())
            found[f"{name} ({earlier + 1})" if earlier else name] = hook
    return list(found.items())


def _is_mask(pos: Pos) -> bool:
    return isinstance(pos, Tensor) and pos.dtype == torch.bool


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
