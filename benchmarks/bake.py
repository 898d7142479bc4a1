"""What it costs to write the removal of one direction into all the weights of a model of GPT-2 small's size, and to undo it.

Answer first: each way must give the same weights, to the rounding of its own dtype, and the logits must differ from the
model's own. Ours is computed in float64, keeps what it needs to undo, and checks on three tokens that the hook points see
what the weights write. Peers, which do none of the three: the loop that is usually written, W <- W - (W r) rᵀ in the
weights' own dtype; the same with a d x d projector, in float32 and in float64. All edit W_E, W_pos, W_O, b_O, W_out and
b_out. One thread, random weights (time does not depend on them).
"""

from collections.abc import Callable

import torch
from _timing import arguments, interleaved, record
from hook_overhead import gpt2_small

import mi_ablate as mi


def weights_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Every weight and bias that writes to the stream."""
    found = [model.embed.W_E, model.pos_embed.W_pos]
    for block in model.blocks:
        found += [block.attn.W_O, block.attn.b_O, block.mlp.W_out, block.mlp.b_out]
    return found


def measure(rounds: int) -> dict[str, object]:
    model, tokens = gpt2_small()
    subspace = mi.Subspace.random(model.cfg.d_model, 1, seed=0)
    r = subspace.basis[:, 0]
    before = [w.detach().clone() for w in weights_of(model)]

    def restore() -> None:
        for weight, old in zip(weights_of(model), before):
            weight.copy_(old)

    def loop(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                for weight in weights_of(model):
                    weight.copy_(change(weight))

        return run

    direction = r.float()
    dense = torch.eye(len(r), dtype=torch.float64) - torch.outer(r, r)
    dense32 = dense.float()
    undo: list[Callable[[], None]] = []
    runs = {
        "mi_ablate.bake_": lambda: undo.append(mi.bake_(model, mi.Ablate(subspace))),
        "rank-1 loop, float32": loop(lambda w: w - (w @ direction)[..., None] * direction),
        "d x d projector, float32": loop(lambda w: w @ dense32),
        "d x d projector, float64": loop(lambda w: (w.double() @ dense).float()),
    }
    with torch.no_grad():
        clean = model(tokens)
        runs["mi_ablate.bake_"]()
        expected = [w.detach().clone() for w in weights_of(model)]
        assert (model(tokens) - clean).abs().max() > 1e-3 * clean.abs().max(), "the edit changes nothing"
        left = {"mi_ablate.bake_": left_over(model, r)}
        undo.pop()()
        assert all(torch.equal(w, old) for w, old in zip(weights_of(model), before)), "undo is not exact"
        for name, run in list(runs.items())[1:]:
            run()
            left[name] = left_over(model, r)
            error = max(float((w - e).abs().max() / e.abs().max()) for w, e in zip(weights_of(model), expected))
            assert error < 2e-6, f"{name} gives other weights: {error}"
            restore()

        def ours() -> None:
            undo.clear()
            runs["mi_ablate.bake_"]()

        undoing = {"bake_ and undo": lambda: mi.bake_(model, mi.Ablate(subspace))()}
        table = interleaved({**runs, "mi_ablate.bake_": ours, **undoing}, rounds, "rank-1 loop, float32")
        restore()
    numbers = sum(w.numel() for w in before)
    return {
        "model": "GPT-2 small size",
        "numbers_edited": numbers,
        "left_over": left,
        "rounds": rounds,
        "table": table,
    }


def left_over(model: torch.nn.Module, r: torch.Tensor) -> float:
    """The largest share of a written vector that still lies along the direction."""
    share = 0.0
    for weight in weights_of(model):
        if weight.ndim > 1:
            wide = weight.detach().double()
            share = max(share, float(((wide @ r).abs() / wide.norm(dim=-1).clamp(min=1e-30)).max()))
    return share


if __name__ == "__main__":
    options = arguments()
    torch.set_num_threads(1)
    record("bake", measure(options.rounds or 11), options.write)
