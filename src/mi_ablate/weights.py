"""The same edit in weight space: bake an intervention into everything that writes to the residual stream.

An affine edit g(x) = L x + c of what a module writes equals L applied to each written vector of its weights (the last
axis in TransformerLens's layouts) and g applied to its bias:

    hook_embed      W_E  rows through g            hook_attn_out   W_O through L, b_O through g
    hook_pos_embed  W_pos rows through g           hook_mlp_out    W_out through L, b_out through g

An edit alone, f(x) = L x + c, is baked as L at every writer and c once, at the embedding: the stream is the sum of what
the writers write, and L of each part plus one c is f of the sum. c at each of the 2 L + 2 writers would be as many too many.

Omitting one of the writers, the biases among them, gives another model (the tests demand that the logits differ by more
than 1 % of their size for each one omitted). `verify_baked` measures the difference between hooks and weights instead of
trusting the algebra. Partial strength at the writers is one removal of that strength; on the stream it compounds.

``norms="kept"`` scales every written vector back to the length it had, w' = |w| u / |u| with u = g(w) (norm-preserving
abliteration): the removal stays exact because the scaling is along the stream axis, and no hook equals it.

Not bakeable: edits at some positions only, per-example or gated edits, reading sites such as resid_post, and writers
with a norm between weight and stream (Gemma 2 and 3, OLMo 2, BLOOM's embedding): there the hook is the right form.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mi_ablate import _writers
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.interventions import Ablate, Add, Erase, Intervention, Placed, Rotate
from mi_ablate.model import attached, run, writers

Edit = Intervention | FwdHooks
_CHUNK = 2**17
"""Numbers that are widened to float64 at once."""


def bake_(model: HookedModel, edit: Edit, *, norms: str = "free", untie: bool = False) -> Callable[[], None]:
    """Write the edit into the weights, in place, and return a function that undoes it exactly.

    Computed in float64 and rounded once to the weights' dtype. The undo function holds a copy of every weight that was
    edited (for GPT-2 small 300 MB in float32); drop it where the edit is to stay. It raises RuntimeError, and changes
    nothing, where the weights are not those that this call wrote: undo a later edit first. A second call does nothing.

    Args:
        model: any hooked model whose writers are those of `writers`; its weights change. It is run once, on three
            tokens, to see that what its hook points see is what its weights write.
        edit: an intervention alone means all writers, with its constant (of ``to``, ``centre`` or `Add`) written once, at
            the embedding. A list ``edit.at(...)`` is baked at its own sites, constants and all.
        norms: "free", or "kept": every written vector keeps its length (for zero-ablation of a subspace; biases do
            not). Vectors inside the subspace become zero. Different from the hooks: `verify_baked` says by how much.
        untie: give an unembedding that shares the embedding's storage a copy of its own first; undo ties them again.

    Raises:
        ValueError: an edit, a site or a model that weights cannot express, or tied embeddings. Nothing is changed then.

    """
    kept = _bake(model, edit, norms, untie)
    kept.remember()
    return kept.undo


@contextmanager
def baked(model: HookedModel, edit: Edit, *, norms: str = "free", untie: bool = False) -> Iterator[HookedModel]:
    """Bake the edit for the length of a block; the weights come back on leaving, whatever happens inside."""
    kept = _bake(model, edit, norms, untie)
    try:
        yield model
    finally:
        kept.restore()


def verify_baked(
    model: HookedModel,
    edit: Edit,
    tokens: Int[Tensor, "n p"],
    *,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    norms: str = "free",
    untie: bool = False,
) -> float:
    """Return the largest difference of logits between hooks and baked weights, relative to the largest logit.

    Rounding gives about 1e-6 in float32 and 1e-15 in float64; more means that the two are not the same edit, as with
    ``norms="kept"``. With a mask, ``[n p]``, real tokens alone are compared. The weights are left as they were.
    """
    with torch.no_grad():
        with attached(model, as_hooks(model, edit)):
            hooked = run(model, tokens, attention_mask).double()
        with baked(model, edit, norms=norms, untie=untie):
            weights = run(model, tokens, attention_mask).double()
    if attention_mask is not None:
        real = attention_mask.bool().to(hooked.device)
        hooked, weights = hooked[real], weights[real]
    return float((hooked - weights).abs().max() / hooked.abs().max().clamp(min=1e-300))


def as_hooks(model: HookedModel, edit: Edit) -> FwdHooks:
    """Return the placed hooks that `bake_` writes into the weights, after refusing what it cannot."""
    hooks = _alone(edit, writers(model)) if isinstance(edit, Intervention) else list(edit)
    out: FwdHooks = []
    for name, hook in hooks:
        if not isinstance(hook, Placed):
            raise ValueError(f"The hook at {name} is a function; only interventions can be baked (edit.at(name)).")
        if not hook.everywhere:
            raise ValueError(
                f"{hook!r} at {name} acts at some positions, heads or units; weights act at all. Keep the hook."
            )
        out.append((name, hook.with_intervention(_bakeable(hook.intervention))))
    return out


def _alone(edit: Intervention, names: Sequence[str]) -> FwdHooks:
    """The linear part L x at all writers, and the constant c = f(0) once, at the embedding."""
    edit = _bakeable(edit)
    if isinstance(edit, Add):
        return edit.at(names[0])
    if "linear" in edit.laws:
        return edit.at(*names)
    linear: Intervention
    if isinstance(edit, Ablate):
        linear, target = replace(edit, to=None), edit.to
    elif isinstance(edit, (Erase, Rotate)):
        linear, target = replace(edit, centre=None), edit.centre
    else:
        raise ValueError(
            f"{edit!r} is not linear, so written by every writer it is not the edit of the stream. Say where it is to act: "
            "edit.at('hook_embed', ...)."
        )
    zero = torch.zeros(1, 1, target.shape[-1], dtype=torch.float64)  # type: ignore[union-attr]
    return linear.at(*names) + Add(edit(zero)[0, 0]).at(names[0])


def _bakeable(edit: Intervention) -> Intervention:
    """The edit with numbers of other libraries and 0-dim tensors as plain ones, refused where weights cannot express it."""
    for name in ("strength", "gate"):
        value: Any = getattr(edit, name, None)
        if not isinstance(value, (int, float)) and getattr(value, "ndim", None) == 0:
            edit = replace(edit, **{name: float(value)})
    if isinstance(edit, Ablate) and isinstance(edit.gate, (int, float)) and isinstance(edit.strength, (int, float)):
        edit = replace(edit, strength=edit.strength * edit.gate, gate=None)
    if "bakeable" not in edit.laws:
        raise ValueError(f"{edit!r} depends on the input or the example; weights cannot. Keep the hook.")
    return edit


def _bake(model: HookedModel, edit: Edit, norms: str, untie: bool) -> _writers.Kept:
    """See `bake_`; returns the weights as they were."""
    hooks = as_hooks(model, edit)
    placed = [(name, hook.intervention) for name, hook in hooks if isinstance(hook, Placed)]
    _refuse_norms(norms, [edit for _, edit in placed])
    plan = {name: _writers.parameters(model, name) for name, _ in placed}
    if "hook_embed" in plan and _writers.tied(model) and not untie:
        raise ValueError(
            "W_E and W_U share their storage, so editing the embedding would edit the readout too. untie=True gives "
            "W_U a copy of its own, mi_ablate.load_model(name) loads them so; or bake without hook_embed and keep that hook."
        )
    scale = _writers.scales(model, plan)
    _refuse_constants(placed, plan)
    every = {id(p): p for pair in plan.values() for p in pair if p is not None}
    before = [(p, p.detach().clone()) for p in every.values()]
    kept = _writers.Kept(before, _writers.untie(model) if "hook_embed" in plan else None)
    try:
        with torch.no_grad():
            for name, intervention in placed:
                _bake_one(name, intervention, *plan[name], scale[name], norms == "kept")
    except BaseException:
        kept.restore()
        raise
    return kept


def _bake_one(
    name: str, edit: Intervention, weight: Tensor, bias: Tensor | None, scale: float, keep_norms: bool
) -> None:
    """Write g(s w) / s for each row an embedding writes; its linear part for the others, and g(s b) / s for biases."""
    constant = None
    if name not in ("hook_embed", "hook_pos_embed"):
        constant = edit(torch.zeros(weight.shape[-1], dtype=torch.float64, device=weight.device))

    def change(rows: Tensor) -> Tensor:
        new = edit(rows if scale == 1 else scale * rows)
        new = new if constant is None or not constant.any() else new - constant
        return new if scale == 1 else new / scale

    _rewrite(weight, partial(_at_its_norm, change, torch.finfo(weight.dtype).eps) if keep_norms else change)
    if bias is not None:
        _rewrite(bias[None], lambda row: edit(scale * row) / scale)


def _rewrite(parameter: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Write change(w) over each last-axis vector w, a part at a time."""
    rows = max(1, _CHUNK // max(1, parameter[0].numel()))
    for part in parameter.split(rows):
        new = change(part.detach().to(torch.float64)).to(part.dtype)
        if not torch.isfinite(new).all():
            raise ValueError(f"The edit gives weights that are NaN or infinite in {part.dtype}.")
        part.copy_(new)


def _at_its_norm(change: Callable[[Tensor], Tensor], eps: float, w: Tensor) -> Tensor:
    """The changed vectors at the length of the old ones; what is left by rounding alone is not blown up."""
    left = change(w)
    before, after = w.norm(dim=-1, keepdim=True), left.norm(dim=-1, keepdim=True)
    return torch.where(after > 10 * eps * before, left * (before / after.clamp(min=1e-300)), torch.zeros_like(left))


def _refuse_norms(norms: str, edits: list[Intervention]) -> None:
    if norms not in ("free", "kept"):
        raise ValueError(f"norms={norms!r} must be 'free' or 'kept'.")
    for edit in edits if norms == "kept" else ():
        if not isinstance(edit, Ablate) or edit.subspace is None or edit.to is not None or edit.keep:
            raise ValueError(
                f"{edit!r} with norms='kept': only zero-ablation of a subspace keeps the written vectors' norms, "
                "Ablate(subspace, strength=...). Bake this edit with norms='free'."
            )


def _refuse_constants(placed: list[tuple[str, Intervention]], plan: dict[str, _writers.Parameters]) -> None:
    for name, edit in placed:
        weight, bias = plan[name]
        if bias is not None or name in ("hook_embed", "hook_pos_embed"):
            continue
        zero = torch.zeros(weight.shape[-1], dtype=torch.float64, device=weight.device)
        if edit(zero).abs().max() > 0:
            raise ValueError(
                f"The edit at {name} adds a constant, and this model has no bias there to hold it. Keep the hook."
            )
