"""What an effect is compared with: the treatment's own hooks, with another subspace or other written values.

A control is a function ``(hooks, seed) -> hooks``. It keeps the treatment's class, sites, positions and strength.

- `covariance`: random directions that are as large as the activations are, the orthonormalised columns of Σ^(1/2) Z
  with Z standard normal. The fair null of an ablation: it removes about as much variance as a subspace can by chance.
- `pca`: the top principal components; what "large directions" alone achieve, without any concept.
- `shuffled`: for a writing, the same fit on shuffled rows; what the values of a fit to nothing achieve.
- `isotropic`: random directions in all of space. They remove about rank / d of the variance, so almost any effect looks
  special beside them: a sanity check only.

The same seed gives nested subspaces for different ranks, so a control curve is one walk, as the treatment's is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._types import FwdHooks
from mi_ablate.design import Design
from mi_ablate.interventions import Ablate, Add, Erase, Intervention, Placed, Rotate
from mi_ablate.moments import Moments, keyed
from mi_ablate.regression import fit
from mi_ablate.subspace import Subspace

Acts = Float[Tensor, "*n d"] | Mapping[str, Float[Tensor, "*n d"]]


@dataclass(frozen=True, eq=False)
class Control:
    """A way to draw subspaces of any rank at any site; callable as ``control(hooks, seed)``."""

    name: str
    draw: Callable[[str, int, int], Subspace]
    """(site, rank, seed) -> subspace; the second edit of one site asks for "site (2)" """
    rank: int | None = None
    random: bool = True
    """Whether different seeds differ."""

    def __call__(self, hooks: FwdHooks, seed: int = 0) -> FwdHooks:
        """Return the treatment's hooks with their subspaces replaced."""
        return _replaced(hooks, lambda name, edit: self._other(name, edit, seed))

    def _other(self, name: str, edit: Intervention, seed: int) -> Intervention:
        if isinstance(edit, (Ablate, Rotate)) and edit.subspace is not None:
            return replace(edit, subspace=self.draw(name, self.rank or edit.subspace.rank, seed))
        if isinstance(edit, Add):
            direction = self.draw(name, 1, seed).basis[:, 0].to(edit.vector)
            return replace(edit, vector=direction * edit.vector.norm(dim=-1, keepdim=True))
        if isinstance(edit, Erase):
            q = self.draw(name, self.rank or edit.writer.shape[1], seed).basis
            return replace(edit, writer=q, reader=q)
        raise ValueError(f"{edit!r} at {name} has no subspace to replace; pass controls={{}} or a control of your own.")

    def __repr__(self) -> str:
        return f"controls.{self.name}"


def covariance(acts: Acts, rank: int | None = None) -> Control:
    """Return the control that draws from the covariance of ``acts`` ``[n d]``, or of each site's in a mapping.

    ``rank`` is the treatment's own by default.
    """
    return from_moments("covariance", _moments(acts), rank)


def pca(acts: Acts, rank: int | None = None) -> Control:
    """Return the control that takes the top principal components of ``acts``; it has one draw."""
    return from_moments("pca", _moments(acts), rank)


def isotropic(d: int, rank: int | None = None) -> Control:
    """Return random directions of R^d: a sanity check, not a fair comparison (see the module)."""
    return Control("isotropic", lambda site, k, seed: Subspace.random(d, d, seed)[:k], rank)


def from_moments(kind: str, moments: Moments | Mapping[str, Moments], rank: int | None = None) -> Control:
    """Return the "covariance" or "pca" control of streamed `Moments`, one for all sites or one a site."""
    walks: dict[tuple[str, int], Subspace] = {}

    def draw(site: str, k: int, seed: int) -> Subspace:
        key = (site if isinstance(moments, Mapping) else "", seed if kind == "covariance" else 0)
        if key not in walks:
            walks[key] = _walk(kind, _of(moments, site), key[1])
        if k > walks[key].rank:
            raise ValueError(f"Rank {k} was asked of activations of width {walks[key].rank} at {site}.")
        return walks[key][:k]

    return Control(kind, draw, rank, random=kind == "covariance")


def shuffled(acts: Float[Tensor, "n d"], design: Design, target: Design) -> Callable[[FwdHooks, int], FwdHooks]:
    """Return the control of a writing: its ``to`` replaced by the prediction of a fit to shuffled rows.

    Args:
        acts: the activations that the treatment's fit was made from.
        design: its design, the same rows.
        target: the design of the values that the treatment writes, one row an example that it is applied to.

    """
    if len(acts) != len(design):
        raise ValueError(f"{len(acts)} activations and {len(design)} rows of the design: one row an example is needed.")
    return Shuffled(acts, design, target)


@dataclass(frozen=True, eq=False)
class Shuffled:
    """See `shuffled`."""

    acts: Float[Tensor, "n d"]
    design: Design
    target: Design
    name: str = field(default="shuffled", init=False)
    random: bool = field(default=True, init=False)

    def __call__(self, hooks: FwdHooks, seed: int = 0) -> FwdHooks:
        """Return the treatment's hooks with what they write replaced."""
        order = torch.randperm(len(self.design), generator=torch.Generator().manual_seed(seed))
        wrong = fit(self.acts, self.design[order]).predict(self.target)

        def other(name: str, edit: Intervention) -> Intervention:
            if not isinstance(edit, Ablate) or edit.to is None:
                raise ValueError(
                    f"{edit!r} at {name} writes no values (Ablate with to=); shuffled has nothing to replace."
                )
            return replace(edit, to=wrong.to(edit.to))

        return _replaced(hooks, other)

    def __repr__(self) -> str:
        return "controls.shuffled"


def _replaced(hooks: FwdHooks, other: Callable[[str, Intervention], Intervention]) -> FwdHooks:
    for name, hook in hooks:
        if not isinstance(hook, Placed):
            raise ValueError(
                f"The hook at {name} is a plain function, so its subspace is not known; use edit.at(name)."
            )
    changed = [hook.with_intervention(other(key, hook.intervention)) for key, hook in keyed(hooks)]
    return [(name, hook) for (name, _), hook in zip(hooks, changed)]


def _walk(kind: str, moments: Moments, seed: int) -> Subspace:
    values, vectors = torch.linalg.eigh(moments.covariance.cpu())
    if kind == "pca":
        return Subspace(vectors.flip(1).contiguous(), "top principal components")
    draws = torch.randn(len(values), len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows = vectors @ (values.clamp(min=0).sqrt()[:, None] * draws)
    return Subspace(torch.linalg.qr(rows).Q, f"covariance-drawn, seed {seed}")


def _moments(acts: Acts) -> Moments | dict[str, Moments]:
    if isinstance(acts, Mapping):
        return {name: Moments().update(x.flatten(0, -2)) for name, x in acts.items()}
    return Moments().update(acts.flatten(0, -2))


def _of(moments: Moments | Mapping[str, Moments], site: str) -> Moments:
    if not isinstance(moments, Mapping):
        return moments
    if site not in moments:
        site = site.partition(" (")[0]  # a mapping by sites alone serves every edit of a site
    if site not in moments:
        raise KeyError(f"The control has no activations at {site}; it has {_few(moments)}. Collect them there too.")
    return moments[site]


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
