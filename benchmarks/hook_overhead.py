"""What 60 rank-1 ablations cost on a model of GPT-2 small's size, and 5 on a one-layer toy at batch 1.

Answer first: our hooks and plain TransformerLens hooks must give the same logits. Ratios are to the model's own forward
pass without hooks. Peers: ``run_with_hooks`` with hand-written projections, and the same with a d x d projector.
Random weights (time does not depend on them).
"""

import torch
from _timing import arguments, interleaved, record
from transformer_lens import HookedTransformer, HookedTransformerConfig

import mi_ablate as mi

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def gpt2_small() -> tuple[HookedTransformer, torch.Tensor]:
    config = HookedTransformerConfig(
        n_layers=12, d_model=768, d_head=64, n_heads=12, n_ctx=128, d_vocab=50257, act_fn="gelu_new",
        normalization_type="LN", seed=0,
    )  # fmt: skip
    return HookedTransformer(config).eval(), torch.randint(
        0, 50257, (1, 32), generator=torch.Generator().manual_seed(0)
    )


def toy() -> tuple[HookedTransformer, torch.Tensor]:
    config = HookedTransformerConfig(
        n_layers=1, d_model=128, d_head=32, n_heads=4, n_ctx=3, d_mlp=512, d_vocab=114, act_fn="relu",
        normalization_type=None, seed=0,
    )  # fmt: skip
    return HookedTransformer(config).eval(), torch.tensor([[3, 5, 113]])


def measure(name: str, model: HookedTransformer, tokens: torch.Tensor, loops: int, rounds: int) -> dict[str, object]:
    names = [site for pattern in SITES for site in mi.sites(model, pattern)]
    subspace = mi.Subspace.random(model.cfg.d_model, 1, seed=0)
    d = subspace.basis[:, 0].float()
    projector = torch.outer(d, d)
    ours = mi.Ablate(subspace).at(*names)
    plain = [(n, lambda x, hook: x - (x @ d)[..., None] * d) for n in names]
    dense = [(n, lambda x, hook: x - x @ projector) for n in names]

    def loop(forward):
        def run():
            with torch.no_grad():
                for _ in range(loops):
                    out = forward()
            return out

        return run

    def attached_once():
        with torch.no_grad(), mi.attached(model, ours):
            for _ in range(loops):
                out = model(tokens)
        return out

    runs = {
        "no hooks": loop(lambda: model(tokens)),
        "mi_ablate.attached": attached_once,
        "run_with_hooks, ours": loop(lambda: model.run_with_hooks(tokens, fwd_hooks=ours)),
        "run_with_hooks, hand-written": loop(lambda: model.run_with_hooks(tokens, fwd_hooks=plain)),
        "run_with_hooks, d x d projector": loop(lambda: model.run_with_hooks(tokens, fwd_hooks=dense)),
    }
    reference = runs["run_with_hooks, hand-written"]()
    assert (reference - runs["no hooks"]()).abs().max() > 1e-3 * reference.abs().max(), "the hooks change nothing"
    for key, run in list(runs.items())[1:]:
        error = float((run() - reference).abs().max() / reference.abs().max())
        assert error < 1e-5, f"{key} gives other logits: {error}"
    table = interleaved(runs, rounds, "no hooks")
    return {"model": name, "hooks": len(names), "tokens": list(tokens.shape), "rounds": rounds, "table": table}


if __name__ == "__main__":
    options = arguments()
    torch.set_num_threads(1)
    record("hook_overhead", measure("1-layer toy", *toy(), 100, options.rounds or 25), options.write)
    record("hook_overhead", measure("GPT-2 small size", *gpt2_small(), 1, options.rounds or 21), options.write)
