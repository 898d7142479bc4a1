"""What `tune` varies: a strength for each layer and component and a direction, and the hooks of a choice."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mi_ablate._judging import Named, key_of, listed
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.find import Candidates
from mi_ablate.find.grid import Key
from mi_ablate.interventions import Ablate
from mi_ablate.layers import layer_kernel
from mi_ablate.model import layer_of, writers
from mi_ablate.subspace import Subspace

STRONGEST = 1.5
"""The largest strength that is tried; 1 removes, 2 would reflect."""


@dataclass(frozen=True, eq=False)
class Space:
    """What can be varied, and the hooks of a choice."""

    model: Any
    directions: dict[int, Subspace]
    start: int

    @property
    def parts(self) -> tuple[str, ...]:
        """The kinds of writers in a block."""
        return ("attention", "mlp") if any("mlp" in name for name in writers(self.model)) else ("attention",)

    @property
    def plain(self) -> dict[str, Any]:
        """The direction of the start, removed at full strength everywhere."""
        kernel = {"peak": 1.0, "floor": 1.0, "position": 0.5, "distance": float(self.model.cfg.n_layers)}
        chosen = {f"{part} {key}": value for part in self.parts for key, value in kernel.items()}
        own = {"scope": "one", "layer": float(self.start)} if len(self.directions) > 1 else {}
        return {**own, **chosen, "embed": 1.0}

    def check_names(self, objectives: Iterable[str]) -> None:
        """Refuse objectives that are called what a trial's row already holds."""
        taken = sorted({"left", "kl", "trial", "run", "scope", "layer", *self.plain} & set(objectives))
        if taken:
            raise ValueError(f"also names {taken}, which a trial's row already has; give these objectives other names.")

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Ask optuna for a choice."""
        found: dict[str, Any] = {}
        if len(self.directions) > 1:
            found["scope"] = trial.suggest_categorical("scope", ["one", "each layer"])
            if found["scope"] == "one":
                found["layer"] = trial.suggest_float("layer", min(self.directions), max(self.directions))
        for part in self.parts:
            for key, low, high in (
                ("peak", 0.0, STRONGEST),
                ("floor", 0.0, 1.0),
                ("position", 0.0, 1.0),
                ("distance", 0.5, float(self.model.cfg.n_layers)),
            ):
                found[f"{part} {key}"] = trial.suggest_float(f"{part} {key}", low, high)
        return {**found, "embed": trial.suggest_float("embed", 0.0, STRONGEST)}

    def hooks(self, chosen: Mapping[str, Any]) -> FwdHooks:
        """The edit of a choice; ``floor`` is a share of the peak."""
        n, hooks = self.model.cfg.n_layers, []
        kernels = {
            part: layer_kernel(
                n,
                distance=chosen[f"{part} distance"],
                position=chosen[f"{part} position"],
                peak=chosen[f"{part} peak"],
                floor=chosen[f"{part} floor"] * chosen[f"{part} peak"],
            )
            for part in self.parts
        }
        for name in writers(self.model):
            layer = layer_of(name)
            strength = chosen["embed"] if layer is None else kernels["mlp" if "mlp" in name else "attention"][layer]
            if strength:
                hooks += Ablate(self._direction(chosen, layer), strength=strength).at(name)
        return hooks

    def hash(self) -> str:
        """A name for the directions, to know them again."""
        return hashed(*(s.basis.float() for s in self.directions.values()))

    def _direction(self, chosen: Mapping[str, Any], layer: int | None) -> Subspace:
        """One for all, mixed of the layers around a real-valued one; or that of the layer or of the nearest that has one."""
        if chosen.get("scope") == "each layer":
            return self.directions[min(self.directions, key=lambda other: abs(other - (layer or 0)))]
        at = chosen.get("layer", self.start)
        below, above = max(l for l in self.directions if l <= at), min(l for l in self.directions if l >= at)
        if below == above:
            return self.directions[below]
        share = (at - below) / (above - below)
        mix = (1 - share) * self.directions[below].basis + share * self.directions[above].basis
        return Subspace.span(mix.T, f"layer {at:.2f}")


def space_of(model: HookedModel, found: Candidates | Mapping[Named, Subspace], start: Named) -> Space:
    """The directions by layer that belong with the start."""
    first, among = key_of(start), listed(found, None).subspaces

    def alike(key: Key) -> bool:
        return (key.pos, key.head) == (first.pos, None) and key.site.split(".")[2:] == first.site.split(".")[2:]

    same = {key: s for key, s in among.items() if alike(key)}
    directions = {layer: s for key, s in same.items() if (layer := layer_of(key.site)) is not None}
    if first not in same or layer_of(first.site) is None:
        raise KeyError(f"start={start!r} is no candidate in a block; there are {[tuple(key) for key in among][:4]} ...")
    wrong = next((s for s in directions.values() if s.rank != 1 or s.d != model.cfg.d_model), None)
    if wrong is not None:
        raise ValueError(f"tune takes one direction of the residual stream a layer; {wrong!r} is another thing.")
    return Space(model, dict(sorted(directions.items())), layer_of(first.site) or 0)


def hashed(*tensors: Tensor) -> str:
    """Return a short name for the values of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(json.dumps(list(tensor.shape)).encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
