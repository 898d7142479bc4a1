"""Neurons by (layer, number): which there are, where they are read, and what they write."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate._writers import parameters, scales
from mi_ablate.interventions import Ablate
from mi_ablate.model import collect, layer_of, sites


def neurons_of(
    model: HookedModel,
    neurons: Int[Tensor, "m 2"] | Sequence[tuple[int, int]] | None,
    layers: int | Iterable[int] | None = None,
) -> Int[Tensor, "m 2"]:
    """Return (layer, neuron) of the chosen neurons, or of all in the layers, in order.

    Raises:
        IndexError: a neuron that is not there. ValueError: neurons given twice, or not as pairs.

    """
    asked = None if layers is None else [layers] if isinstance(layers, int) else list(layers)
    widths = {layer_of(name): _width(model, name) for name in sites(model, "mlp.hook_post", asked)}
    if neurons is None:
        return torch.cat([torch.tensor([[layer, i] for i in range(width)]) for layer, width in widths.items()])
    chosen = torch.as_tensor(neurons).cpu()
    if chosen.ndim != 2 or chosen.shape[1] != 2 or not len(chosen) or chosen.is_floating_point():
        raise ValueError(f"neurons have shape {list(chosen.shape)}: pairs (layer, neuron) are needed, [m, 2].")
    wrong = [(layer, i) for layer, i in chosen.tolist() if not 0 <= i < widths.get(layer, 0)]
    if wrong:
        there = f"layers {min(widths)} to {max(widths)} with {max(widths.values())} each"  # type: ignore[type-var]
        raise IndexError(f"Neuron {wrong[0][1]} of layer {wrong[0][0]} is not there: the model has {there}.")
    if len(chosen.unique(dim=0)) < len(chosen):
        raise ValueError("The same neuron is given twice; each has one place in the results.")
    return chosen.to(torch.int64)


def _width(model: HookedModel, name: str) -> int:
    return len(parameters(model, f"blocks.{layer_of(name)}.hook_mlp_out")[0])


def places(
    model: HookedModel, chosen: Int[Tensor, "m 2"], point: str
) -> tuple[dict[int, str], dict[int, Int[Tensor, " k"]]]:
    """Return, by layer, the hook point ("mlp.hook_pre", "mlp.hook_post") and the rows of ``chosen`` that are there."""
    layers = chosen[:, 0].unique().tolist()
    names = {layer: sites(model, point, layer)[0] for layer in layers}
    return names, {layer: torch.nonzero(chosen[:, 0] == layer).flatten() for layer in layers}


def values_at(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    names: dict[int, str],
    chosen: Int[Tensor, "m 2"],
    where: dict[int, Int[Tensor, " k"]],
    batch_size: int | None = None,
) -> Float[Tensor, "n m"]:
    """Return the chosen neurons' values at the last position, in float64 on the CPU; names and where are of `places`."""
    acts = collect(model, tokens, list(names.values()), pos=-1, batch_size=batch_size)
    found = torch.empty(len(tokens), len(chosen), dtype=torch.float64)
    for layer, name in names.items():
        found[:, where[layer]] = acts[name][:, chosen[where[layer], 1].to(acts[name].device)].double().cpu()
    return found


def written(model: HookedModel, chosen: Int[Tensor, "m 2"]) -> Float[Tensor, "m d"]:
    """Return what each neuron adds to the residual stream for a value of 1, in float64: its row of W_out, as the hook sees it.

    Raises:
        ValueError: a norm between the MLP and the stream (Gemma 2), where a neuron writes no fixed direction.

    """
    layers = chosen[:, 0].unique().tolist()
    factors = scales(model, [f"blocks.{layer}.hook_mlp_out" for layer in layers])
    found = torch.empty(len(chosen), model.cfg.d_model, dtype=torch.float64)
    for name, factor in factors.items():
        mine = chosen[:, 0] == layer_of(name)
        weight = parameters(model, name)[0].detach()
        found[mine] = factor * weight[chosen[mine, 1].to(weight.device)].double().cpu()
    return found


def all_but(kept: Int[Tensor, "k 2"], means: dict[str, Float[Tensor, " w"]], pos: int) -> FwdHooks:
    """Return hooks that write the means to all neurons of the layers in ``means`` but the kept ones, at one position."""
    hooks: FwdHooks = []
    for name, mean in means.items():
        out = torch.ones(len(mean), dtype=torch.bool)
        out[kept[kept[:, 0] == layer_of(name), 1]] = False
        if out.any():
            hooks += Ablate(None, mean[out]).at(name, pos=pos, unit=torch.nonzero(out).flatten().tolist())
    return hooks
