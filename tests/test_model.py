"""Names, reading and attaching: the one module that knows what a hooked model is."""

import copy
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mi_ablate import (
    Ablate,
    Add,
    Fitter,
    Subspace,
    attached,
    collect,
    fit,
    gated,
    last_residual,
    linear,
    sites,
    stream,
    writers,
)
from mi_ablate._types import HookedModel
from mi_ablate.model import default_batch_size, layer_of, split
from models import (
    BRIDGE_FAMILIES,
    FAMILIES,
    family,
    family_bridge,
    gpt2_bridge,
    has_bridge,
    has_hooked_transformer,
    logits_with,
    random_gpt2,
    tiny,
    tokens_for,
    word_tokenizer,
)

POST = "blocks.0.hook_resid_post"
EDIT = Ablate(Subspace.random(16, 3, seed=1))
SHIFT = Add(torch.linspace(-1, 2, 16, dtype=torch.float64) ** 2)
"""Not a constant vector: LayerNorm would not see it."""


def hooks_on(model) -> int:
    points = {id(point): point for point in model.hook_dict.values()}  # a bridge has several names for a point
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in points.values())


def run_inside(model, hooks, tokens: Tensor | None = None, fail: bool = False, **kw) -> Tensor | None:
    """Attach, run where there are tokens, and fail inside the block where asked."""
    with attached(model, hooks), torch.no_grad():
        out = None if tokens is None else model(tokens, **kw)
        if fail:
            raise ZeroDivisionError
    return out


# Names


@pytest.mark.compat
def test_the_model_speaks_the_protocol(model) -> None:
    assert isinstance(model, HookedModel)


NAMES = {
    "resid_post": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"),
    "hook_resid_post": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"),
    "resid_mid": ("blocks.0.hook_resid_mid", "blocks.1.hook_resid_mid"),
    "attn_out": ("blocks.0.hook_attn_out", "blocks.1.hook_attn_out"),
    "z": ("blocks.0.attn.hook_z", "blocks.1.attn.hook_z"),
    "pattern": ("blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"),
    "post": ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"),
    "mlp.hook_post": ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"),
    "blocks.*.hook_mlp_out": ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"),
    "blocks.1.hook_mlp_out": ("blocks.1.hook_mlp_out",),
    "embed": ("hook_embed",),
    "hook_pos_embed": ("hook_pos_embed",),
}


@pytest.mark.compat
@pytest.mark.parametrize("pattern", sorted(NAMES))
def test_a_pattern_resolves_to_names_in_layer_order(model, pattern: str) -> None:
    assert sites(model, pattern) == NAMES[pattern]


@pytest.mark.compat
def test_layers_are_chosen_and_negative_ones_count_from_the_last(model) -> None:
    assert sites(model, "resid_post", layers=-1) == ("blocks.1.hook_resid_post",)
    assert sites(model, "resid_post", layers=[1, 0]) == NAMES["resid_post"]
    with pytest.raises(IndexError, match=r"Layer 2 is out of range: the model has 2, so 0 to 1 \(or -2 to -1\)"):
        sites(model, "resid_post", layers=2)


def test_layer_order_is_by_number_not_by_letter() -> None:
    model = tiny(n_layers=11, d_model=4, n_heads=1, d_mlp=4)
    found = sites(model, "blocks.*.hook_resid_post")
    assert [layer_of(name) for name in found] == list(range(11))


@pytest.mark.compat
@pytest.mark.parametrize("name", ["blocks.0.hook_resid_pots", "resid_pots", "blocks.7.hook_resid_post", "nothing.*"])
def test_an_unknown_name_raises_with_the_nearest(model, tokens, name: str) -> None:
    for ask in (lambda: sites(model, name), lambda: collect(model, tokens, name)):
        with pytest.raises(KeyError, match=r"No hook point matches .*Nearest names: "):
            ask()
    before = hooks_on(model)
    with pytest.raises(KeyError, match="Nearest names"):
        run_inside(model, EDIT.at(POST, name))
    assert hooks_on(model) == before
    if "pots" in name:
        with pytest.raises(KeyError, match="resid_post"):
            sites(model, name)


def test_a_pattern_is_not_the_name_of_one_hook_point(model) -> None:
    with pytest.raises(KeyError, match=r"'resid_post' is a pattern, not the name of one hook point"):
        run_inside(model, EDIT.at("resid_post"))


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_result", "blocks.0.hook_mlp_in", "blocks.0.hook_q_input"])
def test_a_gated_name_says_what_switches_it_on(name: str) -> None:
    if not has_hooked_transformer():
        pytest.skip("native bridges have no such flags")
    model = tiny()
    setter = {"result": "set_use_attn_result", "mlp_in": "set_use_hook_mlp_in", "q_input": "set_use_split_qkv_input"}
    wanted = next(value for key, value in setter.items() if name.endswith(key))
    edit = Ablate(None)
    for ask in (lambda: sites(model, name), lambda: attached(model, edit.at(name)).__enter__()):
        with pytest.raises(ValueError, match=rf"never fires while cfg\.\w+ is off\. Call model\.{wanted}\(True\)"):
            ask()
    getattr(model, wanted)(True)
    assert sites(model, name) == (name,)
    assert name in collect(model, tokens_for(model), name)


@pytest.mark.compat
def test_writers_add_up_to_the_residual_stream(model, tokens) -> None:
    names = writers(model)
    assert names[:2] == ("hook_embed", "hook_pos_embed")
    acts = collect(model, tokens, [*names, last_residual(model)], pos=None)
    total = sum(acts[name] for name in names)
    assert torch.allclose(total, acts[last_residual(model)], atol=1e-12)
    assert writers(model, layers=1) == ("blocks.1.hook_attn_out", "blocks.1.hook_mlp_out")
    assert writers(model, layers=[-1, 0]) == names[2:]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_writers_of_every_family_add_up_and_equal_the_stream(name: str) -> None:
    if not has_hooked_transformer():
        pytest.skip("built as HookedTransformers")
    model = family(name)
    tokens, names = tokens_for(model), writers(model)
    acts = collect(model, tokens, [*names, last_residual(model)], pos=None)
    assert torch.allclose(sum(acts[n] for n in names), acts[last_residual(model)], atol=1e-12)
    points = (
        ("resid_pre", "resid_post")
        if name in ("parallel", "attention only")
        else ("resid_pre", "resid_mid", "resid_post")
    )
    stream_sites = [f"blocks.{i}.hook_{p}" for i in range(2) for p in points]
    at_writers, at_stream = (
        run_inside(model, EDIT.at(*names), tokens),
        run_inside(model, EDIT.at(*stream_sites), tokens),
    )
    assert (at_writers - at_stream).abs().max() < 1e-11


@pytest.mark.compat
@pytest.mark.parametrize("kind", BRIDGE_FAMILIES)
def test_writers_of_every_bridge_add_up_and_equal_the_stream(kind: str) -> None:
    """Bridges of rotary models have a hook_pos_embed that never fires: as a writer it would refuse every ablation."""
    if not has_bridge():
        pytest.skip("TransformerBridge came with TransformerLens 3.0")
    model = family_bridge(kind)
    tokens, names = tokens_for(model), writers(model)
    acts = collect(model, tokens, [*names, last_residual(model)], pos=None)
    assert torch.allclose(sum(acts[n] for n in names), acts[last_residual(model)], atol=1e-5)
    points = ("resid_pre", "resid_mid", "resid_post")[:: 2 if model.cfg.parallel_attn_mlp else 1]
    stream_sites = [f"blocks.{i}.hook_{p}" for i in range(2) for p in points]
    at_writers, at_stream = (
        run_inside(model, EDIT.at(*names), tokens),
        run_inside(model, EDIT.at(*stream_sites), tokens),
    )
    assert (at_writers - at_stream).abs().max() < 2e-5
    assert (at_writers - run_inside(model, [], tokens)).abs().max() > 0.1


def test_writers_without_position_embedding_or_mlp() -> None:
    if not has_hooked_transformer():
        pytest.skip("built as a HookedTransformer")
    import transformer_lens as tl

    common = {"n_layers": 1, "d_model": 8, "n_ctx": 5, "d_head": 4, "n_heads": 2, "d_vocab": 7, "device": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rotary = tl.HookedTransformer(
            tl.HookedTransformerConfig(**common, d_mlp=8, act_fn="gelu", positional_embedding_type="rotary")
        )
        attention = tl.HookedTransformer(tl.HookedTransformerConfig(**common, attn_only=True))
        parallel = tl.HookedTransformer(
            tl.HookedTransformerConfig(**common, d_mlp=8, act_fn="gelu", parallel_attn_mlp=True)
        )
    assert writers(rotary) == ("hook_embed", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out")
    assert writers(attention) == ("hook_embed", "hook_pos_embed", "blocks.0.hook_attn_out")
    assert writers(parallel)[-2:] == ("blocks.0.hook_attn_out", "blocks.0.hook_mlp_out")
    with pytest.raises(KeyError, match="in parallel have no point between them; use resid_pre or resid_post"):
        sites(parallel, "resid_mid")


# Reading


@pytest.mark.compat
def test_collect_reads_what_run_with_cache_reads(model, tokens) -> None:
    names = ["hook_embed", POST, "blocks.1.attn.hook_z", "blocks.0.mlp.hook_post", "blocks.1.attn.hook_pattern"]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    got = collect(model, tokens, names)
    assert list(got) == names
    for name in names[:4]:
        assert torch.equal(got[name], cache[name][:, -1]), name
    assert torch.equal(got[names[4]], cache[names[4]][:, :, -1])
    everywhere = collect(model, tokens, names[:4], pos=None)
    for name in names[:4]:
        assert torch.equal(everywhere[name], cache[name]), name


POSITIONS = {
    "int": (2, lambda x: x[:, 2]),
    "last": (-1, lambda x: x[:, -1]),
    "slice": (slice(1, 4), lambda x: x[:, 1:4]),
    "list": ([0, -1], lambda x: x[:, [0, -1]]),
    "rows": (torch.tensor([0, 6, 1, -1, 3, 2]), lambda x: x[torch.arange(6), [0, 6, 1, 6, 3, 2]]),
    "all": (None, lambda x: x),
}


@pytest.mark.parametrize("batch_size", [None, 1, 4])
@pytest.mark.parametrize("name", sorted(POSITIONS))
def test_collect_at_positions_in_any_batches(model, tokens, name: str, batch_size: int | None) -> None:
    pos, pick = POSITIONS[name]
    whole = collect(model, tokens, POST, pos=None)[POST]
    got = collect(model, tokens, POST, pos=pos, batch_size=batch_size)[POST]
    assert torch.allclose(got, pick(whole), atol=1e-13)


def test_collect_with_edits_attached_slices_them_with_the_batch(model, tokens) -> None:
    values = torch.randn(6, 16, dtype=torch.float64)
    hooks = Ablate(None, values).at(POST, pos=torch.tensor([0, 1, 2, 3, 4, 5]))
    name = "blocks.1.hook_resid_post"
    whole = collect(model, tokens, name, pos=None, hooks=hooks)[name]
    parts = collect(model, tokens, name, pos=None, hooks=hooks, batch_size=4)[name]
    assert torch.allclose(whole, parts, atol=1e-13)
    assert not torch.allclose(whole, collect(model, tokens, name, pos=None)[name])
    edited = collect(model, tokens, POST, pos=torch.arange(6), hooks=hooks)[POST]
    assert torch.equal(edited, values), "what is read at an edited site is the edited value"


@pytest.mark.compat
def test_collect_stops_after_the_last_layer_needed(model, tokens) -> None:
    seen = []
    model.hook_dict["blocks.1.hook_mlp_out"].add_hook(lambda x, hook: seen.append(1))
    try:
        collect(model, tokens, "blocks.0.hook_resid_post")
        assert not seen
        collect(model, tokens, "blocks.0.hook_resid_post", hooks=SHIFT.at("blocks.1.hook_resid_post"))
        assert seen, "an attached edit further on must be reached"
    finally:
        model.reset_hooks()


@pytest.mark.compat
@pytest.mark.parametrize("name", ["ln_final.hook_normalized", "blocks.1.hook_resid_post", "hook_embed"])
def test_every_depth_can_be_read(model, tokens, name: str) -> None:
    assert collect(model, tokens, name)[name].shape == (6, 16)


def test_collect_keeps_dtype_and_no_graph() -> None:
    model = tiny(dtype=torch.float32)
    got = collect(model, tokens_for(model), POST)[POST]
    assert got.dtype == torch.float32
    assert not got.requires_grad


def test_what_was_collected_is_a_copy(model, tokens) -> None:
    first = collect(model, tokens, POST)[POST]
    kept = first.clone()
    first.zero_()
    assert torch.equal(collect(model, tokens, POST)[POST], kept)


def test_nan_activations_raise_and_say_where(tokens) -> None:
    model = tiny()
    with torch.no_grad():
        model.blocks[0].mlp.b_out[0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite activations at blocks.0.hook_resid_post in 6 of 6 examples"):
        collect(model, tokens, POST)


def test_stream_feeds_many_fits_in_one_pass(model, tokens) -> None:
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    design = linear(torch.arange(6))
    fitters = {name: Fitter() for name in names}
    rows_seen = []
    for rows, acts in stream(model, split(model, tokens, None, 4), names):
        rows_seen += rows.tolist()
        for name in names:
            fitters[name].update(acts[name], design[rows])
    assert rows_seen == list(range(6))
    for name in names:
        whole = fit(collect(model, tokens, name)[name], design)
        assert torch.allclose(fitters[name].result().coef, whole.coef, atol=1e-12)


def test_stream_takes_plain_token_batches(model, tokens) -> None:
    parts = [acts[POST] for _, acts in stream(model, [tokens[:2], tokens[2:]], POST)]
    assert torch.allclose(torch.cat(parts), collect(model, tokens, POST)[POST], atol=1e-13)


def test_the_default_batch_bounds_the_memory(model) -> None:
    small, large = default_batch_size(model, 10_000), default_batch_size(model, 7)
    assert 1 <= small < large
    assert [len(t) for t, _ in split(model, torch.zeros(5, 7).long(), None, 2)] == [2, 2, 1]


# Attaching


@pytest.mark.compat
def test_the_same_list_works_bare_and_attached(model, tokens) -> None:
    hooks = EDIT.at(POST, "blocks.1.hook_mlp_out", pos=-1) + SHIFT.at("hook_embed")
    bare = logits_with(model, tokens, hooks)
    with attached(model, hooks) as firings, torch.no_grad():
        inside = model(tokens)
    assert torch.equal(bare, inside)
    assert [(f.name, f.fired, f.edited) for f in firings] == [(name, 1, 1) for name, _ in hooks]
    assert not torch.allclose(bare, logits_with(model, tokens))


@pytest.mark.compat
def test_hooks_run_in_the_order_of_the_list(model, tokens) -> None:
    double, add = Ablate(None, strength=-1), SHIFT
    name = "blocks.1.hook_resid_post"
    clean = collect(model, tokens, name)[name]
    for hooks, wanted in (
        (double.at(name) + add.at(name), 2 * clean + SHIFT.vector),
        (add.at(name) + double.at(name), 2 * (clean + SHIFT.vector)),
    ):
        assert torch.allclose(collect(model, tokens, name, hooks=hooks)[name], wanted, atol=1e-12)


@pytest.mark.compat
def test_other_peoples_hooks_stay(model, tokens) -> None:
    seen = []
    point = model.hook_dict[POST]
    point.add_hook(lambda x, hook: seen.append(1))
    before = list(point.fwd_hooks)
    try:
        with attached(model, EDIT.at(POST)), torch.no_grad():
            model(tokens)
        assert point.fwd_hooks == before
        with torch.no_grad():
            model(tokens)
        assert len(seen) == 2
    finally:
        model.reset_hooks()


@pytest.mark.compat
@pytest.mark.parametrize("pos", [None, -1], ids=["direct", "tracked"])
def test_an_exception_inside_leaves_nothing_behind(model, tokens, pos: int | None) -> None:
    before, clean = hooks_on(model), logits_with(model, tokens)
    hooks = EDIT.at(POST, pos=pos)
    with attached(model, hooks), torch.no_grad():
        assert hooks_on(model) == before + 1
        model(tokens)
    with pytest.raises(ZeroDivisionError):
        run_inside(model, hooks, tokens, fail=True)
    assert hooks_on(model) == before
    assert "forward" not in model.__dict__
    assert torch.equal(logits_with(model, tokens), clean)


@pytest.mark.compat
def test_an_exception_in_a_hook_leaves_nothing_behind(model, tokens) -> None:
    def broken(x: Tensor, hook: object = None) -> Tensor:
        raise ZeroDivisionError

    before = hooks_on(model)
    with pytest.raises(ZeroDivisionError):
        run_inside(model, [*EDIT.at(POST, pos=-1), (POST, broken)], tokens)
    assert hooks_on(model) == before
    assert "forward" not in model.__dict__


@pytest.mark.compat
def test_blocks_nest(model, tokens) -> None:
    one, two = EDIT.at(POST, pos=-1), SHIFT.at("blocks.1.hook_resid_post", pos=0)
    with attached(model, one), attached(model, two), torch.no_grad():
        nested = model(tokens)
    assert torch.equal(nested, logits_with(model, tokens, one + two))
    with attached(model, one), torch.no_grad():
        with pytest.raises(ZeroDivisionError):
            run_inside(model, two, tokens, fail=True)
        after = model(tokens)
    assert torch.equal(after, logits_with(model, tokens, one)), "leaving the inner block took the outer one along"


@pytest.mark.compat
def test_hooks_that_never_fire_raise(model, tokens) -> None:
    before = hooks_on(model)
    with pytest.raises(RuntimeError, match=r"1 hooks never fired \(blocks.0.hook_resid_post\)"):
        run_inside(model, EDIT.at(POST))
    with pytest.raises(RuntimeError, match="stopped before these points"):
        run_inside(model, EDIT.at("blocks.1.hook_mlp_out"), tokens, stop_at_layer=1)
    assert hooks_on(model) == before


def test_hooks_that_meet_no_position_raise(model, tokens) -> None:
    with pytest.raises(RuntimeError, match=r"1 hooks ran but never met a position to edit .*check pos= and when="):
        run_inside(model, EDIT.at(POST, when="new"), tokens)


def test_an_exception_is_not_hidden_by_the_complaint_about_firing(model) -> None:
    with pytest.raises(ZeroDivisionError):
        run_inside(model, EDIT.at(POST), fail=True)


def test_a_hook_that_changes_the_shape_raises(model, tokens) -> None:
    with pytest.raises(ValueError, match=r"turned \[6, 7, 16\] into \[6, 1, 16\]; hooks keep the shape"):
        run_inside(model, [(POST, lambda x, hook: x[:, :1])], tokens)


@pytest.mark.compat
def test_plain_functions_are_welcome(model, tokens) -> None:
    with attached(model, [(POST, lambda x, hook: 2 * x)]), torch.no_grad():
        got = model(tokens)
    assert torch.equal(got, logits_with(model, tokens, [(POST, lambda x, hook: 2 * x)]))
    seen = []
    with attached(model, [(POST, lambda x, hook: seen.append(x.shape))]), torch.no_grad():
        got = model(tokens)
    assert torch.equal(got, logits_with(model, tokens))
    assert seen == [(6, 7, 16)]


@pytest.mark.compat
def test_gradients_reach_the_weights_through_attached_hooks(model, tokens) -> None:
    model.zero_grad()
    with attached(model, EDIT.at(*writers(model)) + EDIT.at("blocks.0.hook_resid_mid", pos=-1)):
        model(tokens).pow(2).sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(g).all() for g in grads)
    model.zero_grad(set_to_none=True)


@pytest.mark.compat
def test_a_copied_model_is_its_own_model(model, tokens) -> None:
    twin = copy.deepcopy(model)
    with attached(model, EDIT.at(POST, pos=-1)), torch.no_grad():
        assert torch.equal(twin(tokens), logits_with(twin, tokens))
        assert not torch.allclose(model(tokens), twin(tokens))


# A gate that reads another site


@pytest.mark.compat
def test_a_gate_reads_another_site(model, tokens) -> None:
    """The edit acts only on prompts whose first-layer activation is positive."""
    target, reader = "blocks.1.hook_resid_post", POST
    chosen = collect(model, tokens, reader, pos=None)[reader][..., :1].sum(1, keepdim=True) > 0
    assert 0 < int(chosen.sum()) < 6
    hooks = gated(EDIT.at(target), reader, lambda x: (x[..., :1].sum(1, keepdim=True) > 0).to(x))
    got = collect(model, tokens, target, pos=None, hooks=hooks)[target]
    clean = collect(model, tokens, target, pos=None)[target]
    assert torch.allclose(got, torch.where(chosen, EDIT(clean), clean), atol=1e-13)
    assert torch.equal(logits_with(model, tokens, hooks), logits_with(model, tokens, hooks))


def test_a_gate_needs_its_reader_first(model, tokens) -> None:
    hooks = gated(EDIT.at(POST), "blocks.1.hook_resid_post", lambda x: x[..., :1])
    with pytest.raises(RuntimeError, match=r"The gate's reader blocks.1.hook_resid_post has not fired yet"):
        logits_with(model, tokens, hooks)


# resid_mid on bridges


def mid_edits() -> list:
    mid = "blocks.0.hook_resid_mid"
    return [
        EDIT.at(mid),
        EDIT.at(mid, pos=-1),
        EDIT.at(mid, "blocks.1.hook_resid_mid", pos=[0, 2]),
        SHIFT.at(mid) + EDIT.at("blocks.0.hook_resid_pre") + EDIT.at("blocks.0.hook_attn_out"),
        EDIT.at(mid) + SHIFT.at(mid),
        [(mid, lambda x, hook: 0.5 * x)],
    ]


@pytest.fixture(scope="module")
def pair():
    """(reference, bridge) of the same weights: HookedTransformer and bridge where both exist, else weights by hand."""
    if not has_bridge():
        pytest.skip("TransformerBridge came with TransformerLens 3.0")
    if not has_hooked_transformer():
        return None, gpt2_bridge()
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading

    bridge = gpt2_bridge()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf = random_gpt2(Path(folder))
        cfg = loading.get_pretrained_model_config(folder, fold_ln=False, device="cpu")
        state = loading.get_pretrained_state_dict(folder, cfg, hf)
        hooked = HookedTransformer(cfg)
        hooked.load_and_process_state_dict(
            state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
        )
    return hooked.eval(), bridge


@pytest.mark.parametrize("index", range(6))
def test_resid_mid_on_a_bridge_is_the_residual_stream(pair, index: int) -> None:
    """Returned from the hook point itself, an edit on a bridge reaches the MLP branch only."""
    hooked, bridge = pair
    if hooked is None:
        pytest.skip("no HookedTransformer to compare with; the native bridge is tested below")
    tokens, hooks = tokens_for(bridge, 4, 6), mid_edits()[index]
    with attached(hooked, hooks), torch.no_grad():
        wanted = hooked(tokens)
    before = hooks_on(bridge)
    with attached(bridge, hooks) as firings, torch.no_grad():
        got = bridge(tokens)
    assert hooks_on(bridge) == before
    assert all(f.fired == f.edited == 1 for f in firings)
    assert (got - wanted).abs().max() < 2e-4
    with torch.no_grad():
        assert (bridge(tokens) - wanted).abs().max() > 1e-2


@pytest.mark.compat
@pytest.mark.parametrize("index", range(6))
def test_resid_mid_equals_the_block_computed_by_hand(model, tokens, index: int) -> None:
    """resid_post = f(resid_mid) + MLP(LN(f(resid_mid))), on every version, in float64."""
    hooks = mid_edits()[index]
    names = ["blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post"]
    earlier = [(name, hook) for name, hook in hooks if name.startswith("blocks.0") and not name.endswith("mid")]
    block = model.blocks[0]
    acts = collect(model, tokens, names[0], pos=None, hooks=earlier)[names[0]]
    for name, hook in hooks:
        if name == names[0]:
            acts = hook(acts, hook=None)
    with torch.no_grad():
        normed = torch.nn.functional.layer_norm(acts, (16,), block.ln2.w, block.ln2.b, model.cfg.eps)
        hidden = torch.nn.functional.gelu(normed @ block.mlp.W_in + block.mlp.b_in)
        wanted = acts + hidden @ block.mlp.W_out + block.mlp.b_out
    seen: dict[str, Tensor] = {}
    reading = [(names[2], lambda x, hook: seen.update(post=x.clone()))]
    with attached(model, hooks + reading), torch.no_grad():
        model(tokens)
    assert (seen["post"] - wanted).abs().max() < 1e-10


@pytest.mark.compat
def test_resid_mid_has_the_same_effect_on_every_version(model, tokens) -> None:
    """Sums of logits as a HookedTransformer of TransformerLens 3.9 gives them; 2.18 and the bridge of 4.3 must agree."""
    for index, golden in GOLDEN_MID.items():
        with attached(model, mid_edits()[index]), torch.no_grad():
            assert abs(float(model(tokens).sum()) - golden) < 1e-8, index


GOLDEN_MID = {
    0: -382.6312211200935,
    1: -389.902743187127,
    2: -314.1634645539817,
    3: -130.82105017632506,
    4: -112.5211091005195,
    5: -388.1294790829838,
}


@pytest.mark.compat
def test_generation_under_all_writers_or_the_whole_stream() -> None:
    """HookedTransformer.generate embeds outside its forward pass, so hook_embed does not fire there: that is said."""
    edit, tokens = Ablate(Subspace.random(16, 3)), torch.tensor([[5, 3, 7, 2]])
    model = tiny()
    if has_hooked_transformer():
        model.tokenizer = word_tokenizer(11)
        with pytest.raises(RuntimeError, match=r"1 hooks never fired \(hook_embed\)"):
            generated(model, edit.at(*writers(model)), tokens)
        names = [f"blocks.{i}.hook_{p}" for i in range(2) for p in ("resid_pre", "resid_mid", "resid_post")]
    else:
        model, names = gpt2_bridge(), list(writers(gpt2_bridge()))
    out = generated(model, edit.at(*names), tokens)
    with attached(model, edit.at(*writers(model))), torch.no_grad():
        full = model(out[:, :-1])
    assert torch.equal(full[:, 3:].argmax(-1), out[:, 4:])


def generated(model, hooks, tokens: Tensor) -> Tensor:
    with attached(model, hooks):
        return model.generate(
            tokens, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens"
        )


@pytest.mark.compat
def test_a_plain_observer_at_resid_mid_changes_nothing(model, tokens) -> None:
    seen = []
    with attached(model, [("blocks.0.hook_resid_mid", lambda x, hook: seen.append(x.clone()))]), torch.no_grad():
        out = model(tokens)
    assert torch.equal(out, logits_with(model, tokens))
    assert torch.allclose(
        seen[0], collect(model, tokens, "blocks.0.hook_resid_mid", pos=None)["blocks.0.hook_resid_mid"]
    )


@pytest.mark.compat
def test_bare_hooks_at_resid_mid_work_or_refuse(model, tokens) -> None:
    hooks = EDIT.at("blocks.0.hook_resid_mid")
    if hasattr(model, "original_model"):
        with pytest.raises(ValueError, match=r"reaches the MLP branch only. `with attached\(model, hooks\):` edits"):
            logits_with(model, tokens, hooks)
        model.reset_hooks()
    else:
        with attached(model, hooks), torch.no_grad():
            inside = model(tokens)
        assert torch.equal(inside, logits_with(model, tokens, hooks))


@pytest.mark.compat
def test_resid_mid_can_be_read_on_every_version(model, tokens) -> None:
    name = "blocks.0.hook_resid_mid"
    parts = collect(model, tokens, ["blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", name], pos=None)
    total = parts["blocks.0.hook_resid_pre"] + parts["blocks.0.hook_attn_out"]
    assert torch.allclose(parts[name], total, atol=1e-13)


@pytest.mark.compat
def test_what_is_read_at_resid_mid_shows_the_edit_made_there(model, tokens) -> None:
    """On every version a reader at an edited site sees the edited value."""
    name = "blocks.0.hook_resid_mid"
    clean = collect(model, tokens, name, pos=None)[name]
    got = collect(model, tokens, name, pos=None, hooks=EDIT.at(name))[name]
    assert torch.allclose(got, EDIT(clean), atol=1e-12)


@pytest.mark.compat
def test_ablating_writers_equals_the_stream_with_resid_mid_in_it(model, tokens) -> None:
    stream_sites = [f"blocks.{i}.hook_{p}" for i in range(2) for p in ("resid_pre", "resid_mid", "resid_post")]
    with attached(model, EDIT.at(*stream_sites)), torch.no_grad():
        at_stream = model(tokens)
    assert (at_stream - logits_with(model, tokens, EDIT.at(*writers(model)))).abs().max() < 1e-12
