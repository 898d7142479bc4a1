"""The parts of a removal curve: where and how much is removed, what is put in its place, and the walk along k."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._positions import Pos
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.interventions import Ablate
from mi_ablate.model import collect
from mi_ablate.moments import Moments, variance_removed
from mi_ablate.replay import Replay
from mi_ablate.subspace import Subspace

ABLATIONS = ("zero", "mean", "resample")


@dataclass
class Walks:
    """Measures one list of edits after another, and says how far it is."""

    runs: Replay
    metric: Callable[..., Tensor]
    reference: list[Tensor] | None
    moments: dict[str, Moments]
    progress: Callable[[int, int], None] | None
    frozen: FwdHooks = field(default_factory=list)
    """Norm scales that stay at those of the clean run; they are no edit and have no variance."""
    total: int = 0
    done: int = 0

    def walk(self, edits: Iterable[FwdHooks]) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
        """Return the mean metric and the variance removed, clean first."""
        values, removed = [self._score([])], [0.0]
        for edit in edits:
            with warnings.catch_warnings():  # a 4.x bridge says that an RMSNorm with a written scale rounds differently
                warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
                values.append(self._score(edit + self.frozen))
            removed.append(variance_removed(edit, self.moments))
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        return torch.tensor(values, dtype=torch.float64), torch.tensor(removed, dtype=torch.float64)

    def drawn(
        self, control: Callable[[FwdHooks, int], FwdHooks], edits: Sequence[FwdHooks], draws: int
    ) -> tuple[Float[Tensor, "draws K"], Float[Tensor, " K"]]:
        """Return the mean metric of each draw of a control in the place of the edits, and the mean variance removed."""
        walks = [self.walk(control(edit, seed) for edit in edits) for seed in range(draws)]
        return torch.stack([walk[0] for walk in walks]), torch.stack([walk[1] for walk in walks]).mean(0)

    def _score(self, edit: FwdHooks) -> float:
        return float(self.runs.score(edit, self.metric, self.reference).mean())


def places_of(subspace: Subspace | Mapping[str, Subspace], at: str | Sequence[str] | None) -> dict[str, Subspace]:
    """Return the subspace of each site."""
    if isinstance(subspace, Mapping):
        if at is not None:
            raise ValueError("A mapping names its own sites; leave at= out, or give one Subspace.")
        if not subspace:
            raise ValueError("The mapping of sites to subspaces is empty.")
        return dict(subspace)
    if at is None:
        raise ValueError(
            "One Subspace needs at=: the hook names where it is removed, such as 'blocks.1.hook_resid_post'."
        )
    return dict.fromkeys([at] if isinstance(at, str) else list(at), subspace)


def ks_of(places: dict[str, Subspace], ks: Sequence[int] | None, step: int) -> list[int]:
    """Return the k to measure, 0 first."""
    most = max(s.rank for s in places.values())
    if step < 1:
        raise ValueError(f"step={step}: at least 1; 2 removes planes.")
    chosen = sorted({0, *(range(0, most + 1, step) if ks is None else ks)})
    if chosen[0] < 0 or chosen[-1] > most:
        raise ValueError(f"ks run from {chosen[0]} to {chosen[-1]}; the subspace has rank {most}, so 0 to {most}.")
    if any(k % step for k in chosen):
        raise ValueError(
            f"ks {[k for k in chosen if k % step][:4]} are not multiples of step={step}: planes stay whole."
        )
    if len(chosen) < 2:
        raise ValueError(f"ks={ks!r} and step={step} leave no k above 0 of a subspace of rank {most}.")
    return chosen


def removal_of(places: dict[str, Subspace], k: int, pos: Pos, targets: dict[str, Tensor] | None) -> FwdHooks:
    """Return the removal of the leading k directions at every site."""
    hooks: FwdHooks = []
    for name, s in places.items():
        to = None if targets is None else targets[name]
        hooks += Ablate(s[: min(k, s.rank)], to).at(name, pos=pos)
    return hooks


def targets_of(
    model: HookedModel,
    tokens: Tensor,
    places: dict[str, Subspace],
    ablation: str,
    pos: Pos,
    mask: Tensor | None,
    batch_size: int | None,
    moments: dict[str, Moments],
    seed: int,
) -> dict[str, Tensor] | None:
    """Return what is put in the place of what is removed, by site; None for zero."""
    if ablation not in ABLATIONS:
        raise ValueError(f"ablation={ablation!r} must be one of {ABLATIONS}.")
    if ablation == "zero":
        return None
    if ablation == "mean":
        return {name: moments[name].mean for name in places}  # type: ignore[misc]
    if pos is None and mask is not None and len(mask.sum(1).unique()) > 1:
        raise ValueError(
            "ablation='resample' at all positions would write padding into real tokens: the prompts have different "
            "lengths. Give pos=-1 (or one position an example), or prompts of one length."
        )
    order = another_row(len(tokens), seed)
    acts = collect(model, tokens, list(places), pos=pos, attention_mask=mask, batch_size=batch_size)
    return {name: acts[name][order] for name in places}


def another_row(n: int, seed: int) -> Int[Tensor, " n"]:
    """Return a seeded permutation of n rows that leaves none in its place: a random one, its fixed points moved round."""
    if n < 2:
        raise ValueError("ablation='resample' takes activations from another prompt, and there is one prompt only.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    fixed = torch.nonzero(order == torch.arange(n)).flatten()
    if len(fixed) == 1:
        fixed = torch.cat([fixed, (fixed + 1) % n])
    order[fixed] = order[fixed.roll(1)]
    return order


def kind_of(metric: Callable[..., Tensor], values: Float[Tensor, " K"]) -> str:
    """Return what a metric's numbers are; a function that does not say is a rate where its means lie in 0 to 1."""
    known = getattr(metric, "kind", None)
    if isinstance(known, str):
        return known
    return "rate" if bool(((values >= 0) & (values <= 1)).all()) else "difference"
