"""Which frequencies a model needs: each removed by itself and kept by itself, beside subspaces of the same rank.

For each frequency k, at the logits, the last layer's neurons or the last residual stream:

    necessity    loss and accuracy with the component of k removed, everything else as it is
    sufficiency  loss and accuracy with the mean and the component of k alone; and with all frequencies kept together

beside the mean-ablation (or keeping) of subspaces drawn from the activations' covariance, of the same rank, each with the
share of the site's variance that it holds. The control is over coordinates, the treatment over pairs; both keep the mean.

Energy is no evidence of use. In the published model of addition mod 113 the frequency 35 holds 7 % of W_E's energy and
removing it from the logits changes the loss by less than a hundredth of it, while 9, with 0.9 %, is needed (see `inert`):
the five largest lines of W_E kept alone at the logits give a loss of 3.4e-3, above the full 2.9e-3; with 9 as well 1.4e-3,
below it.

It misleads where two frequencies can stand in for each other: neither is necessary alone. A rise of the loss need not
move the accuracy: margins are large. Loss and accuracy here are over the group's answers, other outputs left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate import controls, metrics
from mi_ablate.interventions import Add
from mi_ablate.model import last_residual
from mi_ablate.modular.bases import FourierBasis
from mi_ablate.modular.grids import Grid
from mi_ablate.modular.keys import key_frequencies
from mi_ablate.modular.spectra import embedding_spectrum
from mi_ablate.replay import replay

LEVELS = ("logits", "neurons", "residual")


@dataclass(frozen=True, eq=False)
class CausalTable:
    """Loss and accuracy without each frequency, with it alone, and with all of them together."""

    level: str
    site: str
    part: str
    split: str
    frequencies: tuple[int, ...]
    clean: dict[str, float]
    removed: dict[int | str, dict[str, float]]
    """By frequency, and under "all" for all of them: "loss", "accuracy", "variance" (the component's share of the site's)."""
    kept: dict[int | str, dict[str, float]]
    energy: dict[int | str, float]
    """Share of W_E's energy."""
    controls: dict[str, dict[int, list[dict[str, float]]]] = field(default_factory=dict)
    """"removed" and "kept": by rank, one result a draw."""
    ranks: dict[int | str, int] = field(default_factory=dict)
    reason: str = ""
    """Why there are no frequencies, where there are none."""

    def change(self, frequency: int | str) -> float:
        """Return how many times the clean loss the loss without this frequency is, minus 1."""
        return self.removed[frequency]["loss"] / self.clean["loss"] - 1

    def inert(self, energy: int | float = 0.05, change: int | float = 0.1) -> list[int]:
        """Return the frequencies with at least this share of W_E's energy whose removal changes the loss by less."""
        return [k for k in self.frequencies if self.energy[k] >= energy and abs(self.change(k)) < change]

    def table(self) -> list[dict[str, Any]]:
        """Return one row a frequency, and one for all of them: necessity, sufficiency, and the means of the controls."""
        rows: list[dict[str, Any]] = []
        for key, rank in self.ranks.items():
            row: dict[str, Any] = {
                "frequency": key,
                "W_E energy": self.energy[key],
                "variance": self.removed[key]["variance"],
            }
            for what, found in (("removed", self.removed[key]), ("kept", self.kept[key])):
                row |= {f"{what} {name}": found[name] for name in ("loss", "accuracy")}
                draws = self.controls.get(what, {}).get(rank, [])
                for name in ("loss", "accuracy", "variance") if draws else ():
                    row[f"{what} at random {name}"] = sum(draw[name] for draw in draws) / len(draws)
            rows.append(row)
        return rows

    def __repr__(self) -> str:
        if not self.frequencies:
            return f"CausalTable({self.level}: no frequencies; {self.reason})"
        losses = ", ".join(f"{k} {self.removed[k]['loss']:.2e}" for k in self.frequencies[:6])
        return f"CausalTable({self.level}, {self.split}: loss {self.clean['loss']:.2e}; without {losses})"


def causal_table(
    grid: Grid,
    frequencies: Sequence[int] | None = None,
    level: str = "logits",
    *,
    part: str = "sum",
    which: str = "all",
    draws: int = 5,
    layer: int = -1,
) -> CausalTable:
    """Return what removing and keeping each frequency does.

    Args:
        grid: a model on all pairs.
        frequencies: which; by default the key frequencies by energy of W_E and the first five of the neuron-logit map's
            (`key_frequencies`), none for a model that has not generalised.
        level: "logits", "neurons" (after the nonlinearity of ``layer``) or "residual" (the last one).
        part: what of a frequency: see `FourierBasis.component`.
        which: the pairs whose loss and accuracy count: "all", "train" or "test". Components are taken over all pairs.
        draws: how many covariance-drawn subspaces of each rank; 0 for none.
        layer: the neurons' layer.

    Raises:
        ValueError: an unknown level, part or split, a frequency that Z_n has not.

    """
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is one of {', '.join(LEVELS)}.")
    mask = grid.split_mask(which)
    reason = ""
    if frequencies is None:
        keys = key_frequencies(grid, count=min(5, grid.n // 2), layer=layer)
        frequencies, reason = (
            _default(keys["energy"].frequencies, keys["nanda_text"].frequencies),
            keys["energy"].reason,
        )
    chosen = tuple(dict.fromkeys(frequencies))
    FourierBasis(grid.n).check(chosen)
    at = _level(grid, level, layer, mask)
    basis, read = FourierBasis(grid.n), at.read(at.acts)
    energies = {name: x.sum(-1) for name, x in basis.pair_energies(at.acts).items()}
    shares = embedding_spectrum(grid)
    groups: dict[int | str, list[int]] = {k: [k] for k in chosen}
    if chosen:
        groups["all"] = list(chosen)
    removed, kept, ranks = {}, {}, {}
    for key, ks in groups.items():
        found = basis.component(read, ks, part)
        held = {"variance": _energy(energies, ks, part, grid.n) / at.spread}
        removed[key] = {**at.run(-found), **held}
        kept[key] = {**at.run(found - (read - read.mean((0, 1)))), **held}
        ranks[key] = min(_rank(grid.n, ks, part), at.acts.shape[-1] - 1)
    energy = {key: shares.share(*ks) for key, ks in groups.items()}
    drawn = _drawn(at, sorted(set(ranks.values())), draws)
    return CausalTable(
        level, at.site, part, which, chosen, at.run(torch.zeros_like(read)), removed, kept, energy, drawn, ranks, reason
    )


@dataclass(frozen=True, eq=False)
class _Level:
    """Where the edits are made: activations over pairs, and what a change of what is read of them does."""

    site: str
    acts: Float[Tensor, "n n d"]
    through: Float[Tensor, "d m"] | None
    """What comes after the site is linear up to here: an edit over pairs may be made behind it."""
    run: Callable[[Tensor], dict[str, float]]

    def read(self, x: Tensor) -> Tensor:
        """What is read of a change at the site."""
        return x if self.through is None else x @ self.through

    @cached_property
    def spread(self) -> float:
        """The site's variance over pairs, summed."""
        return float(((self.acts - self.acts.mean((0, 1))) ** 2).sum()) or 1.0


def _level(grid: Grid, level: str, layer: int, mask: Tensor) -> _Level:
    def score(logits: Tensor) -> dict[str, float]:
        right = logits.argmax(-1) == grid.answers
        return {"loss": float(grid.loss(logits)[mask].mean()), "accuracy": float(right[mask].double().mean())}

    if level == "logits":
        logits = grid.logits
        return _Level("logits", logits, None, lambda change: score(logits + change))
    layers, last = grid.model.cfg.n_layers, last_residual(grid.model)
    number = layer % layers
    site = last if level == "residual" else f"blocks.{number}.mlp.hook_post"
    acts, through, edited = grid.acts(site), None, site
    plain = not getattr(grid.model.cfg, "use_normalization_before_and_after", False)
    if level == "neurons" and number == layers - 1 and plain:
        mlp: Any = grid.model.blocks[number].mlp  # type: ignore[attr-defined]
        through, edited = mlp.W_out.detach().to("cpu", torch.float64), last
    width = acts.shape[-1] if through is None else through.shape[1]
    metric = metrics.accuracy(grid.c[grid.answers].flatten())
    runs = replay(grid.model, grid.tokens, Add(torch.zeros(width)).at(edited, pos=-1), metric)

    def run(change: Tensor) -> dict[str, float]:
        hooks = Add(change.flatten(0, 1)).at(edited, pos=-1)
        parts = [logits[:, -1].to("cpu", torch.float64)[:, grid.c] for _, logits in runs.logits(hooks)]
        return score(torch.cat(parts).unflatten(0, (grid.n, grid.n)))

    return _Level(site, acts, through, run)


def _drawn(at: _Level, ranks: list[int], draws: int) -> dict[str, dict[int, list[dict[str, float]]]]:
    """The controls: a drawn subspace set to its mean, and everything else set to its mean."""
    found: dict[str, dict[int, list[dict[str, float]]]] = {"removed": {}, "kept": {}}
    if not draws or not ranks:
        return found
    flat = at.acts.flatten(0, 1)
    control, centred = controls.covariance(flat), flat - flat.mean(0)
    rest = at.read(centred)
    for rank in ranks:
        for what in found:
            found[what][rank] = []
        for seed in range(draws):
            q = control.draw("", rank, seed).basis
            coords = centred @ q
            inside = coords @ at.read(q.T)
            held = {"variance": float((coords**2).sum()) / at.spread}
            for what, change in (("removed", -inside), ("kept", inside - rest)):
                found[what][rank].append({**at.run(change.reshape(*at.acts.shape[:2], -1)), **held})
    return found


def _default(by_energy: Sequence[int], by_readout: Sequence[int]) -> tuple[int, ...]:
    return (*by_energy, *(k for k in by_readout[:5] if k not in by_energy))


def _rank(n: int, ks: list[int], part: str) -> int:
    """How many functions of pairs the edit takes away."""
    size, last = {"sum": (2, 1), "difference": (2, 1), "2x2": (4, 1), "3x3": (8, 3)}[part]
    return sum(last if 2 * k == n else size for k in ks)


def _energy(energies: dict[str, Tensor], ks: list[int], part: str, n: int) -> float:
    """The energy of the component, from `FourierBasis.pair_energies`, which counts the term of n/2 under "sum"."""
    names = {"2x2": ("sum", "difference"), "3x3": tuple(energies)}.get(part, (part,))
    if part == "difference" and n // 2 in ks and n % 2 == 0:
        return _energy(energies, [k for k in ks if 2 * k != n], part, n) + float(energies["sum"][-1])
    return sum((float(energies[name][k - 1]) for name in names for k in ks), 0.0)
