"""The same edit in weight space: bake an intervention into everything that writes to the residual stream.

An affine edit g(x) = L x + c of what a module writes equals L applied to each written vector of its weights (the last
axis in TransformerLens's layouts) and g applied to its bias:

    hook_embed      W_E  rows through g            hook_attn_out   W_O through L, b_O through g
    hook_pos_embed  W_pos rows through g           hook_mlp_out    W_out through L, b_out through g

Omitting one of the writers, the biases among them, gives another model (the tests demand that the logits differ by more
than 1 % of their size for each one omitted). `verify_baked` measures the difference between hooks and weights instead of
trusting the algebra.

Not bakeable: edits at some positions only, per-example or gated edits, reading sites such as resid_post. With a norm
between writer and stream (Gemma 2) the hook is the right form.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.interventions import Ablate, Add, Intervention, Placed
from mi_ablate.model import attached, layer_of, run, writers

Edit = Intervention | FwdHooks


def bake_(model: HookedModel, edit: Edit) -> Callable[[], None]:
    """Write the edit into the weights, in place, and return a function that undoes it exactly.

    Args:
        model: any hooked model whose writers are those of `writers`; its weights change.
        edit: an intervention alone means all writers (with a constant ``to``: zero-ablation at all writers, plus its
            part inside the subspace once, at the embedding). A list ``edit.at(...)`` is baked at its own sites.

    Raises:
        ValueError: an edit or a site that weights cannot express, or tied embeddings. Nothing is changed then.

    """
    hooks = as_hooks(model, edit)
    plan = [(name, placed, _parameters(model, name)) for name, placed in hooks if isinstance(placed, Placed)]
    _refuse_tied(model, [name for name, _ in hooks])
    kept = {id(p): (p, p.detach().clone()) for _, _, (weight, bias) in plan for p in (weight, bias) if p is not None}

    def undo() -> None:
        with torch.no_grad():
            for parameter, before in kept.values():
                parameter.copy_(before)

    try:
        with torch.no_grad():
            for name, placed, (weight, bias) in plan:
                _bake_one(name, placed.intervention, weight, bias)
    except BaseException:
        undo()
        raise
    return undo


@contextmanager
def baked(model: HookedModel, edit: Edit) -> Iterator[HookedModel]:
    """Bake the edit for the length of a block; the weights come back on leaving, whatever happens inside."""
    undo = bake_(model, edit)
    try:
        yield model
    finally:
        undo()


def verify_baked(model: HookedModel, edit: Edit, tokens: Int[Tensor, "n p"]) -> float:
    """Return the largest difference of logits between hooks and baked weights, relative to the largest logit.

    Rounding gives about 1e-6 in float32 and 1e-15 in float64; more means that the two are not the same edit. The
    weights are left as they were.
    """
    with torch.no_grad():
        with attached(model, as_hooks(model, edit)):
            hooked = run(model, tokens).double()
        with baked(model, edit):
            weights = run(model, tokens).double()
    return float((hooked - weights).abs().max() / hooked.abs().max().clamp(min=1e-300))


def as_hooks(model: HookedModel, edit: Edit) -> FwdHooks:
    """Return the placed hooks that `bake_` writes into the weights, after refusing what it cannot."""
    if isinstance(edit, Intervention):
        names = writers(model)
        constant = edit.to if isinstance(edit, Ablate) and edit.subspace is not None else None
        if isinstance(edit, Ablate) and constant is not None and edit.subspace is not None:
            zero = replace(edit, to=None)
            q = edit.subspace.basis
            inside = constant.to(q.dtype).to(q.device)
            written = q @ (q.T @ inside) if not edit.keep else inside - q @ (q.T @ inside)
            factor = 1.0
            for value in (edit.strength, 1.0 if edit.gate is None else edit.gate):
                factor = factor * value if isinstance(value, (int, float)) else factor
            hooks = [*zero.at(*names), *Add(written, factor).at("hook_embed")]
        else:
            hooks = edit.at(*names)
    else:
        hooks = list(edit)
    for name, hook in hooks:
        if not isinstance(hook, Placed):
            raise ValueError(f"The hook at {name} is a function; only interventions can be baked (edit.at(name)).")
        if not hook.everywhere:
            raise ValueError(
                f"{hook!r} at {name} acts at some positions, heads or units; weights act at all. Keep the hook."
            )
        if "bakeable" not in hook.intervention.laws:
            raise ValueError(
                f"{hook.intervention!r} depends on the input or the example; weights cannot. Keep the hook."
            )
    return hooks


def _parameters(model: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """The weight whose rows a site writes, and its bias."""
    layer = layer_of(name)
    if name == "hook_embed":
        return model.embed.W_E, None
    if name == "hook_pos_embed":
        return model.pos_embed.W_pos, None
    if layer is not None and name.endswith("hook_attn_out"):
        return model.blocks[layer].attn.W_O, getattr(model.blocks[layer].attn, "b_O", None)
    if layer is not None and name.endswith("hook_mlp_out"):
        return model.blocks[layer].mlp.W_out, getattr(model.blocks[layer].mlp, "b_out", None)
    raise ValueError(
        f"{name} is not a writer, so no weight equals an edit there. Writers are hook_embed, hook_pos_embed, "
        "hook_attn_out and hook_mlp_out; writers(model) lists them."
    )


def _bake_one(name: str, edit: Intervention, weight: Tensor, bias: Tensor | None) -> None:
    wide = weight.detach().to(torch.float64)
    if name in ("hook_embed", "hook_pos_embed"):
        _write(weight, edit(wide), name)
        return
    constant = edit(torch.zeros(wide.shape[-1], dtype=torch.float64, device=wide.device))
    _write(weight, edit(wide) - constant, name)
    if bias is not None:
        _write(bias, edit(bias.detach().to(torch.float64)), name)
    elif constant.abs().max() > 0:
        raise ValueError(
            f"The edit at {name} adds a constant, and this model has no bias there to hold it. Keep the hook."
        )


def _write(parameter: Tensor, value: Tensor, name: str) -> None:
    value = value.to(parameter.dtype)
    parameter.copy_(value)
    if not torch.equal(parameter, value):
        raise RuntimeError(
            f"The weights behind {name} did not take the edit; this kind of model stores them elsewhere."
        )


def _refuse_tied(model: Any, names: list[str]) -> None:
    if "hook_embed" not in names:
        return
    unembed = getattr(getattr(model, "unembed", None), "W_U", None)
    if unembed is None:
        return
    if model.embed.W_E.untyped_storage().data_ptr() == unembed.untyped_storage().data_ptr():
        raise ValueError(
            "W_E and W_U share their storage, so editing the embedding would edit the readout too. "
            "mi_ablate.load_model(name) unties them; or bake without hook_embed and keep that hook."
        )
