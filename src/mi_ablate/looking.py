"""What a reader looks at beside an edit: which heads attend elsewhere, and where tokens lie along a direction.

A pattern A[q, k] is a distribution over keys for every query, so the change of a head under an edit is how much of it
moved, the total variation ½ Σ_k |A'[q, k] - A[q, k]| in [0, 1], here averaged over prompts and real queries (a sum over
keys of the absolute change, hence comparable between prompts of any length, as the mean over entries is not). 0 is the
clean pattern, 1 a query that reads none of the keys it read before.

Any edit of a stream moves some attention, so each head's change stands beside that of edits of the same size at the same
place along directions drawn from the covariance of the activations there (`covariance_drawn`).

When it misleads: the first token of a language model is often a resting place; attention that leaves it need not carry
anything. Its activations are also a hundred times longer than the others, so that a control drawn from one prompt removes
that difference before all else; draw it from many prompts. Attention says what is read, not what is done with it. A
coordinate along a direction is a projection of the whole stream, whatever later layers read of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._attach import left_padding
from mi_ablate._drawn import NotDrawn, covariance_drawn
from mi_ablate._names import layer_of, resolve_all
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.effects import Controls, draws_of
from mi_ablate.interventions import Ablate
from mi_ablate.model import attached, check_rows, check_tokens, default_batch_size, run, sites, split, stream
from mi_ablate.subspace import Subspace

_PATTERNS = 2**25
"""Floats of attention that one pass may hold; more layers than fit are read in further passes."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class HeadsChanged:
    """How much of each head's attention an edit moves, beside its controls."""

    heads: tuple[tuple[int, int], ...]
    """(layer, head), in order."""
    moved: Float[Tensor, " heads"]
    """Mean total variation over prompts and queries."""
    most: Float[Tensor, " heads"]
    """Of the query where it is largest."""
    controls: dict[str, Float[Tensor, "draws heads"]]
    prompts: int
    note: str
    """What the control was drawn from, or why there is none."""

    def top(self, n: int) -> tuple[tuple[int, int], ...]:
        """Return the ``n`` heads that move most; heads that do not move at all are not among them."""
        return tuple(self.heads[i] for i in self._order[:n] if self.moved[i] > 0)

    def table(self) -> list[dict[str, Any]]:
        """Return one row a head, those that move most first: mean and largest change, and each control's."""
        rows = []
        for i in self._order:
            layer, head = self.heads[i]
            row: dict[str, Any] = {"head": f"{layer}.{head}", "moved": float(self.moved[i])}
            row["most at one query"] = float(self.most[i])
            for name, drawn in self.controls.items():
                values = drawn[:, i]
                row[name] = {"mean": float(values.mean()), "low": float(values.min()), "high": float(values.max())}
            rows.append(row)
        return rows

    @property
    def _order(self) -> list[int]:
        return sorted(range(len(self.heads)), key=lambda i: -float(self.moved[i]))

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table())

    def __repr__(self) -> str:
        first = self.table()[0]
        beside = ", ".join(f"{name} {first[name]['mean']:.3f}" for name in self.controls) or "no control"
        return f"HeadsChanged({len(self.heads)} heads, most {first['head']}: {first['moved']:.3f} moved; {beside})"


def heads_changed(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    hooks: FwdHooks,
    *,
    layers: int | Sequence[int] | None = None,
    controls: Controls | None = None,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    batch_size: int | None = None,
    draws: int = 5,
    progress: Progress | None = None,
) -> HeadsChanged:
    """Return how much of each head's attention the hooks move, as total variation, beside controls.

    The prompts stream: what is held is one batch of patterns, clean and edited.

    Args:
        model: the model; patterns are read at ``blocks.L.attn.hook_pattern``.
        tokens: prompts ``[n p]``.
        hooks: the edit, ``edit.at(...)``.
        layers: whose heads; all by default, negative counts from the last.
        controls: by name, functions ``(hooks, seed) -> hooks``; by default `covariance_drawn` from these prompts, where
            they hold enough vectors and the edit has a subspace (``note`` says so where not).
        attention_mask: 1 for real tokens; only their queries count.
        batch_size: rows a pass; chosen by memory by default.
        draws: seeds of each random control.
        progress: called with (passes done, passes in all).

    Raises:
        ValueError: no hooks; patterns that are NaN; an edit of patterns on a model that ignores it (a native bridge of
            TransformerLens 3.x). KeyError, IndexError: layers that the model lacks.

    """
    hooks = list(hooks)
    if not hooks:
        raise ValueError("heads_changed needs at least one hook: edit.at('blocks.0.hook_resid_post').")
    check_tokens(tokens, model)
    check_rows(hooks, len(tokens))
    names = sites(model, "pattern", layers if layers is None or isinstance(layers, int) else list(layers))
    _refuse_ignored(model, tokens[:1], hooks)
    attention_mask = left_padding(model, tokens, False) if attention_mask is None else attention_mask
    options: dict[str, Any] = {"attention_mask": attention_mask, "batch_size": batch_size}
    note = ""
    if controls is None:
        controls = {}
        try:
            control = covariance_drawn(model, tokens, hooks, draws=draws, **options)
            controls, note = {"covariance": control}, control.name
        except NotDrawn as reason:
            note = f"No control: {reason}"
    runs = {("edited", 0): hooks}
    for name, make in controls.items():
        runs |= {(name, seed): make(hooks, seed) for seed in range(draws_of(make, draws))}
    moved, most = _moved(model, tokens, names, runs, attention_mask, batch_size, progress)
    edited = moved.pop(("edited", 0))
    drawn = {name: torch.stack([x for key, x in moved.items() if key[0] == name]) for name in controls}
    count = len(edited) // len(names)
    heads = tuple((int(layer_of(name) or 0), head) for name in names for head in range(count))
    return HeadsChanged(heads, edited, most, drawn, len(tokens), note)


def along(
    model: HookedModel,
    tokens: Int[Tensor, "*n p"],
    subspace: Subspace,
    names: str | Sequence[str] = "resid_post",
    *,
    hooks: FwdHooks | Sequence[Any] = (),
    attention_mask: Int[Tensor, "*n p"] | Bool[Tensor, "*n p"] | None = None,
    batch_size: int | None = None,
) -> Float[Tensor, "*n site p"]:
    """Return the coordinate of every token along the first direction of a subspace, at each site, in float64.

    Args:
        model: the model.
        tokens: one prompt ``[p]`` or several ``[n p]``.
        subspace: ``subspace[i]`` takes another of its directions. The unit is that of the activations.
        names: sites as `sites` takes them, of the subspace's width.
        hooks: edits that stay attached meanwhile.
        attention_mask: 1 for real tokens; the others get NaN.
        batch_size: rows a pass.

    Raises:
        ValueError: a site of another width, or one with several vectors a position (heads). KeyError: an unknown site.

    """
    rows = tokens if tokens.ndim == 2 else tokens[None]
    mask = attention_mask if attention_mask is None or attention_mask.ndim == 2 else attention_mask[None]
    wanted = resolve_all(model, names)
    check_rows(list(hooks), len(rows))
    parts = []
    for _, acts in stream(model, split(model, rows, mask, batch_size), wanted, pos=None, hooks=hooks):
        odd = next((name for name in wanted if acts[name].ndim != 3), None)
        if odd is not None:
            raise ValueError(
                f"{odd} has several vectors a position; along reads the residual stream or a layer's output."
            )
        coords = [subspace[0].coords(acts[name].to(torch.float64))[..., 0] for name in wanted]
        parts.append(torch.stack(coords, 1).cpu())
    found = torch.cat(parts)
    if mask is not None:
        found = found.masked_fill(~mask.bool().cpu()[:, None], float("nan"))
    return found if tokens.ndim == 2 else found[0]


def next_token(
    model: HookedModel, tokens: Int[Tensor, " p"], hooks: FwdHooks | Sequence[Any] = ()
) -> Float[Tensor, " v"]:
    """Return the probability of every token after the prompt, in float64."""
    check_tokens(tokens[None], model)
    with torch.no_grad(), attached(model, list(hooks)):
        logits = run(model, tokens[None])
    return logits[0, -1].to("cpu", torch.float64).softmax(-1)


def _moved(
    model: HookedModel,
    tokens: Tensor,
    names: tuple[str, ...],
    runs: Mapping[tuple[str, int], FwdHooks],
    mask: Tensor | None,
    batch_size: int | None,
    progress: Progress | None,
) -> tuple[dict[tuple[str, int], Float[Tensor, " heads"]], Float[Tensor, " heads"]]:
    """Mean total variation of each run, and its largest value in the first."""
    one = int(model.cfg.n_heads) * tokens.shape[1] ** 2
    size = min(batch_size or default_batch_size(model, tokens.shape[1]), max(1, _PATTERNS // one))
    held = max(1, _PATTERNS // (one * min(size, len(tokens))))
    groups = [names[i : i + held] for i in range(0, len(names), held)]
    total = len(groups) * -(-len(tokens) // size) * (1 + len(runs))
    count = float(tokens.numel() if mask is None else mask.bool().sum())
    parts: dict[tuple[str, int], list[Tensor]] = {key: [] for key in runs}
    peaks, done, first = [], 0, next(iter(runs))
    for group in groups:
        sums: dict[Any, Tensor] = {}
        reads = {
            key: stream(model, split(model, tokens, mask, size), group, pos=None, hooks=h) for key, h in runs.items()
        }
        for rows, clean in stream(model, split(model, tokens, mask, size), group, pos=None):
            done += 1
            padding = None if mask is None else ~mask[rows].bool().cpu()[..., None]
            for name in group:
                _refuse_broken(name, clean[name].sum(-1).cpu(), padding)
            for key, read in reads.items():
                _, other = next(read)
                for name in group:
                    far = (other[name].double() - clean[name].double()).abs().sum(-1).cpu() / 2
                    far = far if padding is None else far.masked_fill(padding, 0.0)
                    sums[key, name] = sums.get((key, name), 0.0) + far.sum((0, 1))
                    if key == first:
                        sums[name] = torch.maximum(sums.get(name, far.amax((0, 1))), far.amax((0, 1)))
                done += 1
                if progress is not None:
                    progress(done, total)
        for key in runs:
            parts[key] += [sums[key, name] / count for name in group]
        peaks += [sums[name] for name in group]
    moved = {key: torch.cat(values) for key, values in parts.items()}
    return moved, torch.cat(peaks)


def _refuse_broken(name: str, total: Float[Tensor, "b q h"], padding: Bool[Tensor, "b q one"] | None) -> None:
    """Refuse real queries that attend to nothing: TransformerLens writes 0 where the softmax gave NaN."""
    broken = ~torch.isfinite(total) | (total == 0)
    if bool((broken if padding is None else broken & ~padding).any()):
        raise ValueError(
            f"Queries at {name} attend to nothing: their scores are NaN. Half precision overflows there, or the weights "
            "are broken."
        )


def _refuse_ignored(model: HookedModel, prompt: Int[Tensor, "one p"], hooks: FwdHooks) -> None:
    """Refuse an edit of patterns that the model reads and then leaves out."""
    names = sorted({name for name, _ in hooks if name.endswith(("hook_pattern", "hook_attn_scores"))})
    if not names or not hasattr(model, "original_model"):
        return
    with torch.no_grad():
        clean = run(model, prompt)
        for name in names:
            with attached(model, Ablate(None).at(name)):
                if torch.equal(clean, run(model, prompt)):
                    raise ValueError(
                        f"This model ignores edits at {name}, as a native bridge of TransformerLens 3.x does; "
                        "use a HookedTransformer, or TransformerLens 4.x."
                    )
