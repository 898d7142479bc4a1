"""Keep, remove or move frequencies: in a residual stream, in neurons, in logits, and attention that no longer looks.

Over all pairs the activations of a site are a function x(i, j). Its component in the frequencies K is the projection on the
functions cos, sin of w_k(i + j), or on larger blocks (`FourierBasis.component`). Then

    keep     mean + component         remove   x - component         move   x - component(i, j) + component(i + δ, j)

"move" writes, for each pair, what the model itself writes in K for the answer + δ. As hooks these are per-example `Add`s for
the prompts of the grid, in their order (Nanda et al. 2023, arXiv 2301.05217, section 4.4 and appendix C: restricted and
excluded losses are losses of such edits).

The edit is a projection over *pairs*: it takes from each coordinate what varies with K. A `Subspace` projection over
*coordinates* (`frequency_subspace` with `Ablate`) is another edit: it also takes whatever else lies along those
directions, and works on any prompt. The two agree only where nothing else does.

It misleads where a site is read at other positions too: only the last one is edited, so with several layers the
operands' positions still carry the frequency past the site.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._types import FwdHooks
from mi_ablate.design import fourier
from mi_ablate.interventions import Ablate, Add
from mi_ablate.model import sites
from mi_ablate.modular.bases import FourierBasis
from mi_ablate.modular.grids import Grid
from mi_ablate.regression import fit
from mi_ablate.subspace import Subspace

MODES = ("keep", "remove", "move")


def edit_frequencies(
    x: Float[Tensor, "n n *d"], mode: str, frequencies: Iterable[int], *, part: str = "sum", shift: int = 0
) -> Float[Tensor, "n n *d"]:
    """Return x over pairs with frequencies kept (and the mean), removed or moved, in float64.

    Args:
        x: logits, neurons, a residual stream over pairs ``[n, n, ...]``.
        mode: "keep", "remove" or "move".
        frequencies: which; none for "remove" changes nothing, none for "keep" leaves the mean.
        part: as in `FourierBasis.component`: "sum", "difference", "2x2" or "3x3".
        shift: for "move": what is added to the answer.

    Raises:
        ValueError: an unknown mode or part, a frequency that Z_n has not, a shift without "move" or "move" without one.

    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is 'keep', 'remove' or 'move'.")
    if (mode == "move") != (shift != 0):
        raise ValueError(f"mode={mode!r} with shift={shift}: 'move' takes a shift, the others take none.")
    y = x.detach().to("cpu", torch.float64)
    found = FourierBasis(len(y)).component(y, frequencies, part)
    if mode == "keep":
        return y.mean((0, 1)) + found
    return y - found if mode == "remove" else y - found + found.roll(-shift, 0)


def frequency_hooks(
    grid: Grid, site: str, mode: str, frequencies: Iterable[int], *, part: str = "sum", shift: int = 0
) -> FwdHooks:
    """Return hooks that make the edit of `edit_frequencies` at a site's last position, for the grid's own prompts.

    Use them with ``grid.tokens``: ``effect(grid.model, grid.tokens, hooks, accuracy(answers))``.

    Args:
        grid: a model on all pairs.
        site: one hook point of width d, such as "blocks.0.mlp.hook_post" or "blocks.0.hook_resid_post".
        mode: "keep", "remove" or "move".
        frequencies: which.
        part: as in `FourierBasis.component`.
        shift: for "move": what is added to the answer.

    Raises:
        ValueError: as `edit_frequencies`; a site with a head axis.

    """
    (name,) = sites(grid.model, site)
    acts = grid.acts(name)
    if acts.ndim != 3:
        raise ValueError(f"{name} has shape {list(acts.shape[2:])} a prompt; choose a site with one vector, [d].")
    change = edit_frequencies(acts, mode, frequencies, part=part, shift=shift) - acts
    return Add(change.flatten(0, 1)).at(name, pos=-1)


def frequency_subspace(grid: Grid, site: str, frequencies: Sequence[int]) -> Subspace:
    """Return the directions that cos and sin of the answer's frequencies write at a site, most variance first.

    Two for each frequency (one for n/2), fewer where the activations do not have them. Coordinates, not pairs: see the
    module for the difference from `frequency_hooks`.
    """
    (name,) = sites(grid.model, site)
    basis = FourierBasis(grid.n)
    basis.check(frequencies)
    design = fourier(grid.answers.flatten(), grid.n, list(frequencies), name="answer")
    listed = ", ".join(map(str, frequencies))
    return fit(grid.acts(name).flatten(0, 1), design).subspace(name=f"frequencies {listed} at {name}")


def pattern_hooks(grid: Grid, to: str = "mean", layer: int = 0, heads: Sequence[int] | None = None) -> FwdHooks:
    """Return hooks that replace the last query's attention by a constant, so that it no longer depends on the operands.

    Args:
        grid: a model on all pairs.
        to: "mean", each head's mean pattern over all pairs; "uniform", the same weight on every position.
        layer: whose attention.
        heads: which heads; all by default.

    Raises:
        ValueError: another ``to``, a head that is not there.

    """
    if to not in ("mean", "uniform"):
        raise ValueError(f"to={to!r} is 'mean' (of each head, over all pairs) or 'uniform'.")
    (name,) = sites(grid.model, "pattern", layers=layer)
    means = grid.patterns(layer).mean((0, 1))
    chosen = range(len(means)) if heads is None else heads
    wrong = [h for h in chosen if not 0 <= h < len(means)]
    if wrong:
        raise ValueError(f"Layer {layer} has the heads 0 to {len(means) - 1}; {wrong} are none of them.")
    if to == "uniform":
        means = torch.full_like(means, 1 / means.shape[1])
    return [hook for h in chosen for hook in Ablate(None, to=means[h]).at(name, pos=-1, head=h)]
