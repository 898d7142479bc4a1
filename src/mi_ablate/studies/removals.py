"""Removing directions from a toy that declines: where they are found, which site is chosen, and the curves with their controls.

Directions (`toys.gated.directions`) are found on one half of the training prompts; the site of one subspace that is removed at
every writer is chosen on the other half, by the largest, over sites and k, of

    open prompts kept - declines - 0.01 k,

so that of equal ones the fewest directions win. Everything reported is on prompts held out of every phase. A removal
is read by three rates at once (`gated_toys.Prompts.scores`), which one metric would not say: a model that is broken declines no
more, and gives no sums.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate import controls
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate._walks import removal_of
from mi_ablate.model import collect
from mi_ablate.moments import Moments
from mi_ablate.replay import replay
from mi_ablate.studies.gated_toys import Prompts
from mi_ablate.subspace import Subspace
from mi_ablate.toys.defences import residual_sites
from mi_ablate.toys.gated import declined, directions
from mi_ablate.weights import writers

MOST, DRAWS = 8, 5
"""Directions of the longest removal; draws of each random control."""
PRICE = 0.01
"""Of a direction, in the choice of a site."""
Run = Callable[[FwdHooks], dict[str, float]]


@dataclass(frozen=True, eq=False)
class Found:
    """Declining directions at every site, the activations that they were found in, and what half b says of them."""

    directions: dict[str, Subspace]
    acts: dict[str, Float[Tensor, "n d"]]
    """Of half a, at every site and every writer."""
    site: str
    """The chosen one."""
    gain_on_b: dict[str, float]
    below_on_b: int | None
    """The first k of the chosen site that leaves at most 0.05 of the declines on half b."""


def runner(model: HookedModel, prompts: Prompts, rows: Int[Tensor, " m"], sites: Sequence[str]) -> Run:
    """Return a function hooks -> scores on these prompts, for hooks at the last position of these sites."""
    anything = Subspace.random(model.cfg.d_model, 1, 0)
    runs = replay(
        model, prompts.tokens[rows], removal_of(dict.fromkeys(sites, anything), 1, -1, None), declined(prompts.modulus)
    )

    def run(hooks: FwdHooks) -> dict[str, float]:
        predicted = torch.empty(len(rows), dtype=torch.long)
        for index, logits in runs.logits(hooks):
            predicted[index] = logits[:, -1].argmax(-1)
        return prompts.scores(predicted, rows)

    return run


def found_in(model: HookedModel, prompts: Prompts, most: int = MOST) -> Found:
    """Return the declining directions of half a at every site, and the site that half b chooses for every writer."""
    at, sites = writers(model), residual_sites(prompts.settings.config)
    acts = collect(model, prompts.tokens[prompts.a], list(dict.fromkeys([*sites, *at])), pos=-1)
    found = {s: directions(acts[s], prompts.answers[prompts.a], prompts.modulus, rank=most) for s in sites}
    run = runner(model, prompts, prompts.b, at)
    tried = {s: [run(removal_of(dict.fromkeys(at, found[s]), k, -1, None)) for k in range(1, most + 1)] for s in sites}
    gain = {s: max(r["kept"] - r["declines"] - PRICE * k for k, r in enumerate(rows, 1)) for s, rows in tried.items()}
    site = max(gain, key=gain.__getitem__)
    below = next((k for k, row in enumerate(tried[site], 1) if row["declines"] <= 0.05), None)
    return Found(found, acts, site, gain, below)


def spaces_of(
    found: Found, prompts: Prompts, site: str, draws: int = DRAWS, within: bool = True
) -> dict[str, Subspace]:
    """Return a site's declining directions and, of the same rank, what they are compared with.

    "pca" and "covariance" see gated and open prompts together; "within" is drawn about the mean of each kind,
    as large as activations are and blind to the contrast.
    """
    x, own = found.acts[site], found.directions[site]
    spaces = {"directions": own, "pca": controls.pca(x).draw(site, own.rank, 0)}
    drawn = {"covariance": controls.covariance(x)}
    if within:
        gated = prompts.gated[prompts.a]
        kinds = torch.where(gated[:, None], x[gated].double().mean(0), x[~gated].double().mean(0))
        drawn["within"] = controls.covariance(x - kinds)
    for name, control in drawn.items():
        spaces |= {f"{name} {i}": control.draw(site, own.rank, i) for i in range(draws)}
    return spaces


def curves(
    run: Run, spaces: Mapping[str, Mapping[str, Subspace]], targets: Mapping[str, Tensor] | None, ks: Sequence[int]
) -> dict[str, list[dict[str, float]]]:
    """Return the scores at each k of each run's subspaces ``{run: {site: subspace}}``, its targets by site (None: zero)."""
    to = None if targets is None else dict(targets)
    clean = run([])
    return {
        name: [run(removal_of(dict(places), k, -1, to)) if k else clean for k in ks] for name, places in spaces.items()
    }


def variances(acts: Float[Tensor, "n d"], spaces: Mapping[str, Subspace], ks: Sequence[int]) -> dict[str, list[float]]:
    """Return the share of the variance at a site that each run's leading k directions hold."""
    moments = Moments().update(acts)
    return {name: [moments.share(space[:k]) if k else 0.0 for k in ks] for name, space in spaces.items()}


def targets_of(
    ablation: str, model: HookedModel, prompts: Prompts, found: Found, rows: Int[Tensor, " m"], sites: Sequence[str]
) -> dict[str, Tensor] | None:
    """Return what takes the place of what is removed: nothing, the mean of half a, or what another, open prompt has there.

    Were the others drawn from all prompts, those that are declined themselves would leave their share of the declines.
    """
    if ablation == "zero":
        return None
    if ablation == "mean":
        return {name: found.acts[name].double().mean(0) for name in sites}
    acts = collect(model, prompts.tokens[rows], list(sites), pos=-1)
    others = donors(~prompts.gated[rows])
    return {name: acts[name][others] for name in sites}


def donors(is_open: Bool[Tensor, " n"], seed: int = 0) -> Int[Tensor, " n"]:
    """Return for each prompt the number of another one that is open, drawn at random."""
    usable = is_open.nonzero()[:, 0]
    place = torch.randint(len(usable), is_open.shape, generator=torch.Generator().manual_seed(seed))
    own = usable[place] == torch.arange(len(is_open))
    return usable[(place + own) % len(usable)]


def k_kill(curve: Sequence[Mapping[str, float]], tau: float = 0.05) -> int | None:
    """Return the first k at which declines are at most ``tau``; None where none is."""
    return next((k for k, point in enumerate(curve) if point["declines"] <= tau), None)


def left(curve: Sequence[Mapping[str, float]]) -> float:
    """Return the mean share of declines over k = 1 .. the last: resistance to removal, without ties or an end."""
    return sum(point["declines"] for point in curve[1:]) / max(1, len(curve) - 1)


def brief(found: Found) -> dict[str, Any]:
    """Return the choice as plain JSON."""
    return {"site": found.site, "gain_on_b": found.gain_on_b, "k_below_0.05_on_b": found.below_on_b}
