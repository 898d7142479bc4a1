"""Candidates: the class means at every position x layer x site x head, from one pass over the prompts.

    found = candidates(model, tokens, labels, ("resid_post", "z"), pos=[-2, -1])
    found.table()[:3]                      # where the classes differ most, as a share of the variance
    found.subspace("blocks.1.hook_resid_post", pos=-1)

Only per-class counts, means and centred squares are kept, in float64 (`mi_ablate.find.classwise`): memory is
O(classes d) a candidate whatever the number of prompts, and the batch size does not matter. Layer 0 and the last layer
are candidates like any other, and one-layer models have them too.

The table is of the prompts that the means come from. Classes that differ in nothing still explain (k - 1) / (n - 1) of
the variance on average, so that number stands beside each share, and F = (r2 / (k - 1)) / ((1 - r2) / (n - k)), which is
near 1 then (Anderson 2001, the pseudo-F of PERMANOVA). Neither is a p-value: how far F strays from 1 by chance depends
on how many dimensions the activations fill, and the best of many places is above 1 anyway. The place where classes
differ most need not be where the model uses the difference: choose by an effect on other prompts.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, Hook, HookedModel, nearest
from mi_ablate.find._inputs import Labels, numbered, warn_of_padding
from mi_ablate.find.classwise import ClassMoments
from mi_ablate.find.means import between_means
from mi_ablate.find.robust import winsorised
from mi_ablate.model import check_rows, check_tokens, layer_of, split, stream
from mi_ablate.regression import Fit
from mi_ablate.subspace import Subspace


class Key(NamedTuple):
    """One candidate: hook name, position, and head where the site has heads."""

    site: str
    pos: int
    head: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Candidates:
    """The class moments of each site, ``[k p d]`` or ``[k p head d]``; iterate over keys, index with one for its `Fit`."""

    moments: dict[str, ClassMoments]
    positions: tuple[int, ...]
    labels: tuple[int, ...]
    """The labels of the classes, in rising order."""
    options: dict[str, Any]
    means: dict[str, ClassMoments]
    """Of the activations as they are; ``moments`` are of the bounded ones where ``robust`` is "winsor"."""

    def fit(self, site: str, pos: int = -1, head: int | None = None) -> Fit:
        """Return the fit of one candidate: one column "concept" of two classes, else one a class.

        Raises:
            KeyError: a site, position or head that was not collected.

        """
        names = ("concept",) if len(self.labels) == 2 else tuple(f"class={label}" for label in self.labels)
        return self._at(Key(site, pos, head)).fit(names)

    def subspace(
        self,
        site: str,
        pos: int = -1,
        head: int | None = None,
        *,
        against: str | Float[Tensor, " m"] | Sequence[float] | None = None,
        standardised: bool = False,
        name: str = "",
    ) -> Subspace:
        """Return the difference of means of one candidate, as `difference_of_means` does of its activations.

        Raises:
            KeyError: a site, position or head that was not collected. ValueError: more than two classes.

        """
        if len(self.labels) != 2:
            raise ValueError(
                f"A difference of means takes two classes; here are {len(self.labels)}. "
                "fit(site, pos, head).subspace(rank=...) gives the directions of several."
            )
        key = plain_key(Key(site, pos, head))
        moments, means = self._at(key), self._at(key, self.means).mean
        n = {str(label): int(count) for label, count in zip(self.labels, moments.n, strict=True)}
        options = {**key._asdict(), **self.options, "n": n}
        return between_means(moments, means, against, standardised, name or site, options)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a candidate, the largest share of variance explained (r2) first.

        ``norm`` is the size of the difference of means; with more than two classes, the root of the mean square of the
        class means about the mean. ``chance`` is the r2 to expect of classes that differ in nothing, ``F`` the ratio of
        the variance between to that within the classes, 1 for such classes (None where nothing varies within them). No
        p-values: see the head of this module.
        """
        rows: list[dict[str, Any]] = []
        k = len(self.labels)
        for site, moments in self.moments.items():
            between, total = moments.shares()
            r2 = torch.where(total > 0, between / total.clamp(min=1e-300), 0.0)
            n = int(moments.n.sum())
            norm = between.sqrt() if len(self.labels) != 2 else (moments.mean[1] - moments.mean[0]).norm(dim=-1)
            for key in self._keys(site):
                i = (self.positions.index(key.pos), *([] if key.head is None else [key.head]))
                row: dict[str, Any] = {"site": site, "layer": layer_of(site), "pos": key.pos, "head": key.head}
                row |= {"norm": float(norm[i]), "r2": float(r2[i]), "chance": (k - 1) / (n - 1)}
                left = (1 - row["r2"]) / (n - k) if n > k else 0.0
                rows.append({**row, "F": row["r2"] / (k - 1) / left if left > 1e-15 else None})
        return sorted(rows, key=lambda row: -row["r2"])

    def plot(self, tokens: Sequence[str] | None = None) -> Any:
        """Return the heat map of r2, site by position; sites with heads are a row a head. ``tokens``: text of positions."""
        from mi_ablate.figures import heat

        by_key = {(row["site"], row["head"], row["pos"]): row["r2"] for row in self.table()}
        places = list(dict.fromkeys((key.site, key.head) for key in self))
        values = torch.tensor([[[by_key[(*place, pos)]] for pos in self.positions] for place in places])
        names = [site if head is None else f"{site} head {head}" for site, head in places]
        chance = self.table()[0]["chance"]
        title = f"Where {len(self.labels)} classes differ: share of variance between their means (chance {chance:.2g})"
        columns = [str(pos) for pos in self.positions]
        return heat(values, names, columns, tokens=tokens, label="share of variance", title=title)

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table()[:20])

    def __getitem__(self, key: Key | tuple[str, int] | tuple[str, int, int | None]) -> Fit:
        """Return the fit of the candidate ``(site, pos)`` or ``(site, pos, head)``."""
        return self.fit(*key)

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys (site, pos, head), in the order of the sites asked for."""
        return (key for site in self.moments for key in self._keys(site))

    def __len__(self) -> int:
        """Return the number of candidates."""
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        n = int(next(iter(self.moments.values())).n.sum())
        return f"Candidates({len(self)} at {len(self.moments)} sites, n {n}, {len(self.labels)} classes)"

    def _keys(self, site: str) -> list[Key]:
        heads = _heads(self.moments[site])
        return [Key(site, p, h) for p in self.positions for h in ([None] if heads is None else range(heads))]

    def _at(self, key: Key, among: dict[str, ClassMoments] | None = None) -> ClassMoments:
        key = plain_key(key)
        if key.site not in self.moments:
            raise KeyError(f"No candidate at {key.site!r}. {nearest(key.site, self.moments)}")
        if key.pos not in self.positions:
            raise KeyError(f"No candidate at position {key.pos}; collected were {list(self.positions)}.")
        heads = _heads(self.moments[key.site])
        if heads is None and key.head is not None:
            raise KeyError(f"{key.site} has no heads: leave head={key.head} out.")
        if heads is not None and (key.head is None or not 0 <= key.head < heads):
            raise KeyError(f"{key.site} has a candidate for each of {heads} heads: head=0 to {heads - 1}.")
        place = self.positions.index(key.pos)
        return (among or self.moments)[key.site][(place,) if key.head is None else (place, key.head)]


def candidates(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    labels: Labels,
    names: str | Sequence[str] = ("resid_post",),
    *,
    pos: int | Sequence[int] = -1,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
    robust: str | None = None,
    quantile: int | float = 0.995,
    hooks: FwdHooks | Sequence[tuple[str, Hook]] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Run the prompts once and return the class means at all the sites, positions and heads.

    Args:
        model: a hooked model.
        tokens: prompts; padded ones with their ``attention_mask``.
        labels: True where the concept is present, or whole numbers (classes), one a prompt.
        names: sites, as `sites` takes them; each head of a site with heads (hook_z) is a candidate of width d_head.
        pos: one or several positions, the same for all prompts; with an attention mask they count real tokens, on either
            side of the padding. Padding that is read without a mask is warned of.
        attention_mask: 1 for real tokens.
        batch_size: prompts a forward pass; None chooses by memory. The means do not depend on it.
        robust: None, or "winsor" to bound each vector by its own quantile of magnitudes, as in `difference_of_means`.
        quantile: the quantile of "winsor".
        hooks: edits that stay attached meanwhile.
        progress: called with (prompts done, prompts in all).

    Raises:
        KeyError: an unknown site. IndexError: a position out of range. ValueError: one class only, NaN.

    """
    index, values = numbered(labels, len(tokens))
    options = _options(robust, quantile)
    check_tokens(tokens)
    check_rows(list(hooks), len(tokens))
    positions = _positions(pos)
    if attention_mask is None:
        warn_of_padding(model, tokens, torch.tensor([positions]))
    plain: dict[str, ClassMoments] = {}
    found: dict[str, ClassMoments] = {}
    batches = split(model, tokens, None if attention_mask is None else torch.as_tensor(attention_mask), batch_size)
    for rows, acts in stream(model, batches, names, pos=positions, hooks=hooks):
        for site, x in acts.items():
            x = x.to(torch.float64)
            if robust is not None:
                plain.setdefault(site, ClassMoments(len(values))).update(x, index[rows])
                x = winsorised(x, quantile)
            part = ClassMoments(len(values)).update(x, index[rows])
            if not bool(torch.isfinite(part.mean).all()):
                raise ValueError(
                    f"NaN or infinite activations at {site}, in prompts {int(rows[0])} to {int(rows[-1])}."
                )
            found.setdefault(site, ClassMoments(len(values))).merge(part)
        if progress is not None:
            progress(int(rows[-1]) + 1, len(tokens))
    return Candidates(found, tuple(positions), tuple(values), options, plain or found)


def _options(robust: str | None, quantile: int | float) -> dict[str, Any]:
    if robust not in (None, "winsor"):
        raise ValueError(
            f"robust={robust!r} is None or 'winsor' here. A median needs all activations at once: collect them at the "
            "sites of interest and use difference_of_means(robust='median')."
        )
    return {} if robust is None else {"robust": robust, "quantile": quantile}


def _positions(pos: object) -> list[int]:
    """The positions as a list of ints, each named once."""
    given: list[Any] = list(pos) if isinstance(pos, Sequence) and not isinstance(pos, str) else [pos]
    try:
        positions = [operator.index(p) for p in given if not isinstance(p, (bool, Tensor))]
    except TypeError:
        positions = []
    if not given or len(positions) < len(given):
        raise ValueError(
            f"pos={pos!r}: candidates are at an int or a list of ints, the same for all prompts, such as pos=[-2, -1] or "
            "range(-4, 0). For one position a prompt, collect the activations and use difference_of_means."
        )
    if len(set(positions)) < len(positions):
        raise ValueError(f"pos={pos} names a position twice.")
    return positions


def plain_key(key: Key) -> Key:
    """The key with numpy's integers as ints, so that it goes into a file."""
    return Key(key.site, operator.index(key.pos), None if key.head is None else operator.index(key.head))


def _heads(moments: ClassMoments) -> int | None:
    """How many heads a site has; its moments are [k p d] or [k p head d]."""
    return moments.mean.shape[2] if moments.mean.ndim == 4 else None
