"""Which positions, heads and units an edit reaches: in one pass, under padding, and while text is generated."""

import pytest
import torch
from torch import Tensor

from mi_ablate import Ablate, Add, Subspace, attached, collect, effect, logit_diff
from mi_ablate._positions import Window, resolve
from models import (
    family_bridge,
    gpt2_bridge,
    has_bridge,
    has_hooked_transformer,
    logits_with,
    tiny,
    tokens_for,
    word_tokenizer,
)

N, P, D = 4, 6, 5
SITE = "blocks.0.hook_resid_post"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def touched(pos: object, **kw: object) -> Tensor:
    """Bool[N, P]: where ``Ablate(None).at(pos=pos)`` wrote zeros."""
    x = draw(N, P, D)
    before = x.clone()
    ((_, hook),) = Ablate(None).at(SITE, pos=pos, **kw)
    out = hook(x)
    assert torch.equal(x, before)
    changed = (out != x).any(-1)
    assert not out[changed].any()
    return changed


def expected(rows_to_positions: list[list[int]]) -> Tensor:
    mask = torch.zeros(N, P, dtype=torch.bool)
    for row, positions in enumerate(rows_to_positions):
        mask[row, positions] = True
    return mask


ALL_ROWS = {
    "int": (2, [2]),
    "negative int": (-1, [5]),
    "slice": (slice(1, 4), [1, 2, 3]),
    "slice from the end": (slice(-2, None), [4, 5]),
    "slice with a step": (slice(None, None, 3), [0, 3]),
    "slice past the end": (slice(4, 99), [4, 5]),
    "list": ([0, -1, 3], [0, 3, 5]),
    "tuple": ((1, 2), [1, 2]),
    "range": (range(2), [0, 1]),
    "None": (None, list(range(6))),
}


@pytest.mark.parametrize("name", sorted(ALL_ROWS))
def test_the_same_positions_in_all_rows(name: str) -> None:
    pos, wanted = ALL_ROWS[name]
    assert torch.equal(touched(pos), expected([wanted] * N))


def test_one_position_an_example() -> None:
    assert torch.equal(touched(torch.tensor([0, 5, -1, 2])), expected([[0], [5], [5], [2]]))


def test_a_mask_and_a_function() -> None:
    mask = draw(N, P, seed=3) > 0
    assert torch.equal(touched(mask), mask)
    seen = []

    def positive(x: Tensor, hook: object) -> Tensor:
        seen.append(x.shape)
        return x[..., 0] > 0

    assert torch.equal(touched(positive), draw(N, P, D)[..., 0] > 0)
    assert seen == [(N, P, D)]
    assert not touched(torch.zeros(N, P, dtype=torch.bool)).any()


@pytest.mark.parametrize("pos", [6, -7, [0, 6], [-7], torch.tensor([0, 1, 2, 6]), torch.tensor([0, 0, 0, -7])], ids=str)
def test_out_of_range_raises(pos: object) -> None:
    with pytest.raises(IndexError, match=r"pos=-?\d is out of range: the sequence has 6 positions, so -6 to 5"):
        touched(pos)


def test_a_slice_that_chooses_nothing_raises() -> None:
    with pytest.raises(IndexError, match="chooses none of the 6 positions"):
        touched(slice(6, 9))


@pytest.mark.parametrize("pos", [torch.tensor([0, 1]), torch.ones(N, P + 1, dtype=torch.bool)], ids=["rows", "mask"])
def test_positions_of_another_batch_raise(pos: Tensor) -> None:
    with pytest.raises(ValueError, match="batch"):
        touched(pos)


@pytest.mark.parametrize(
    ("pos", "to"),
    [
        (-1, (N, D)),
        (slice(1, 3), (N, 2, D)),
        ([0, 4], (N, 2, D)),
        (torch.tensor([1, 2, 3, 0]), (N, D)),
        (None, (N, P, D)),
    ],
    ids=str,
)
def test_what_is_written_lands_at_its_position(pos: object, to: tuple[int, ...]) -> None:
    x, values = draw(N, P, D), draw(*to, seed=9)
    ((_, hook),) = Ablate(None, values).at(SITE, pos=pos)
    out = hook(x)
    got = resolve(pos, out, None, Window()).take(out)
    assert torch.equal(got, values)


def test_per_example_vectors_go_to_every_chosen_position_of_their_row() -> None:
    x, values = draw(N, P, D), draw(N, D, seed=9)
    ((_, hook),) = Ablate(None, values).at(SITE, pos=[0, 4])
    assert torch.equal(hook(x)[:, [0, 4]], values[:, None].expand(N, 2, D))


def test_rows_slices_positions_and_values_together() -> None:
    x, index = draw(N, P, D), torch.tensor([2, 0])
    hooks = Add(draw(N, D, seed=9)).at(SITE, pos=torch.tensor([1, 2, 3, 0]))
    hooks += Ablate(None).at(SITE, pos=draw(N, P, seed=3) > 0)
    for _, hook in hooks:
        assert torch.equal(hook.rows(index)(x[index]), hook(x)[index])


Z = "blocks.0.attn.hook_z"


@pytest.mark.parametrize("head", [0, -1, [0, 2], [2, 0, 1]], ids=str)
@pytest.mark.parametrize("unit", [None, 1, [0, -1]], ids=str)
@pytest.mark.parametrize(
    "pos",
    [None, 1, [0, 3], torch.tensor([0, 5, -1, 2]), draw(N, P, seed=3) > 0],
    ids=["None", "int", "list", "rows", "mask"],
)
def test_heads_units_and_positions_are_addressed_together(pos: object, head: object, unit: object) -> None:
    x = draw(N, P, 3, 4)
    ((_, hook),) = Ablate(None).at(Z, pos=pos, head=head, unit=unit)
    where = torch.zeros(N, P, dtype=torch.bool) if pos is not None else torch.ones(N, P, dtype=torch.bool)
    if isinstance(pos, Tensor) and pos.dtype != torch.bool:
        where[torch.arange(N), pos] = True
    elif isinstance(pos, Tensor):
        where = pos
    elif pos is not None:
        where[:, pos] = True
    heads, units = torch.zeros(3, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    heads[head] = True
    units[slice(None) if unit is None else unit] = True
    wanted = where[:, :, None, None] & heads[:, None] & units
    assert torch.equal(hook(x), x.masked_fill(wanted, 0.0))


def test_one_head_sees_vectors_and_several_see_a_head_axis() -> None:
    shapes = []

    def gate(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x[..., :1]

    for head in (1, [1], [0, 2]):
        ((_, hook),) = Ablate(None, gate=gate).at(Z, pos=-1, head=head)
        hook(draw(N, P, 3, 4))
    assert shapes == [(N, 4), (N, 1, 4), (N, 2, 4)]


def test_a_subspace_of_some_units_leaves_the_others() -> None:
    x = draw(N, P, D)
    s = Subspace.span(draw(2, seed=4))
    ((_, hook),) = Ablate(s).at("blocks.0.mlp.hook_post", unit=[4, 1])
    out = hook(x)
    assert torch.allclose(out[..., [4, 1]], Ablate(s)(x[..., [4, 1]]))
    assert torch.equal(out[..., [0, 2, 3]], x[..., [0, 2, 3]])


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_attn_scores"])
def test_patterns_have_heads_on_axis_1_and_positions_are_queries(name: str) -> None:
    x = draw(N, 3, P, P)
    ((_, hook),) = Ablate(None).at(name, head=1, pos=4, unit=[0, 2])
    wanted = x.clone()
    wanted[:, 1, 4, [0, 2]] = 0
    assert torch.equal(hook(x), wanted)


@pytest.mark.compat
def test_a_pattern_that_was_collected_can_be_written_back(model, tokens) -> None:
    """Six positions and two heads, or as many positions as heads: the axes must not be taken for each other."""
    name = "blocks.0.attn.hook_pattern"
    for length in (7, 2):
        part = tokens[:, :length]
        pattern = collect(model, part, name, pos=None)[name]
        hooks = Ablate(None, pattern).at(name)
        clean = logits_with(model, part)
        assert torch.equal(logits_with(model, part, hooks), clean)
        with attached(model, hooks), torch.no_grad():
            assert torch.equal(model(part), clean)
        last = collect(model, part, name, pos=-1)[name]
        assert last.shape == (len(part), 2, length)
        assert torch.equal(logits_with(model, part, Ablate(None, last).at(name, pos=-1)), clean)


@pytest.mark.compat
@pytest.mark.parametrize("pos", [None, -1, 2])
def test_a_head_is_ablated_before_w_o(model, tokens, pos: int | None) -> None:
    """Zeroing head 1 of hook_z takes exactly its z W_O out of attn_out."""
    name = "blocks.0.hook_attn_out"
    z = collect(model, tokens, "blocks.0.attn.hook_z", pos=None)["blocks.0.attn.hook_z"]
    clean = collect(model, tokens, name, pos=None)[name]
    w_o = model.blocks[0].attn.W_O.detach()
    out = collect(model, tokens, name, pos=None, hooks=Ablate(None).at("blocks.0.attn.hook_z", head=1, pos=pos))[name]
    wanted = clean.clone()
    chosen = slice(None) if pos is None else [pos]
    wanted[:, chosen] -= z[:, chosen, 1] @ w_o[1]
    assert torch.allclose(out, wanted, atol=1e-12)
    assert (wanted - clean).abs().max() > 0.01


@pytest.mark.compat
def test_units_are_neurons(model, tokens) -> None:
    name = "blocks.1.hook_mlp_out"
    post = collect(model, tokens, "blocks.1.mlp.hook_post", pos=None)["blocks.1.mlp.hook_post"]
    clean = collect(model, tokens, name, pos=None)[name]
    out = collect(model, tokens, name, pos=None, hooks=Ablate(None).at("blocks.1.mlp.hook_post", unit=[3, 20]))[name]
    w_out = model.blocks[1].mlp.W_out.detach()
    assert torch.allclose(out, clean - post[..., [3, 20]] @ w_out[[3, 20]], atol=1e-12)


# Padding


LENGTHS = [7, 3, 5, 4]


def padded(model: object, side: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    rows = [tokens_for(model, 1, length, seed=length)[0] for length in LENGTHS]
    tokens, mask = torch.zeros(4, 7, dtype=torch.int64), torch.zeros(4, 7, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(7 - len(row), None) if side == "left" else slice(0, len(row))
        tokens[i, where], mask[i, where] = row, 1
    return tokens, mask, rows


POSITIONS = {
    "first": 0,
    "second": 1,
    "last": -1,
    "before the last": -2,
    "one an example": torch.tensor([6, 2, 0, -1]),
}


@pytest.mark.compat
@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", sorted(POSITIONS))
def test_collect_under_padding_equals_the_unpadded_runs(model, name: str, side: str, batch_size: int | None) -> None:
    tokens, mask, rows = padded(model, side)
    pos, site = POSITIONS[name], "blocks.1.hook_resid_post"
    got = collect(model, tokens, site, pos=pos, attention_mask=mask, batch_size=batch_size)[site]
    for i, row in enumerate(rows):
        one = pos if isinstance(pos, int) else int(pos[i])
        alone = collect(model, row[None], site, pos=one)[site]
        assert torch.allclose(got[i], alone[0], atol=1e-12), f"row {i}"


EDITED = POSITIONS | {"list": [0, -1], "slice": slice(1, 3), "slice from the end": slice(-2, None), "all": None}


@pytest.mark.compat
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", sorted(EDITED))
def test_an_edit_under_padding_equals_the_unpadded_runs(model, name: str, side: str) -> None:
    tokens, mask, rows = padded(model, side)
    pos, site = EDITED[name], "blocks.1.hook_resid_post"
    edit = Ablate(Subspace.random(16, 4))
    hooks = edit.at("blocks.0.hook_resid_post", pos=pos)
    got = collect(model, tokens, site, pos=None, attention_mask=mask, hooks=hooks)[site]
    for i, row in enumerate(rows):
        one = pos[i : i + 1] if isinstance(pos, Tensor) else pos
        alone = collect(model, row[None], site, pos=None, hooks=edit.at("blocks.0.hook_resid_post", pos=one))[site]
        assert torch.allclose(got[i][mask[i].bool()], alone[0], atol=1e-12), f"row {i}"


@pytest.mark.compat
@pytest.mark.parametrize("side", ["left", "right"])
def test_effect_under_padding_equals_the_unpadded_runs(model, side: str) -> None:
    """The metric's position counts real tokens too: with padding on the right, [-1] would be a padding token."""
    tokens, mask, rows = padded(model, side)
    hooks = Ablate(Subspace.random(16, 4)).at("blocks.0.hook_resid_post", pos=-1)
    right, wrong = torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8])
    for metric_pos in (-1, 0):
        together = effect(
            model, tokens, hooks, logit_diff(right, wrong, pos=metric_pos), controls={}, attention_mask=mask
        )
        for i, row in enumerate(rows):
            metric = logit_diff(right[i : i + 1], wrong[i : i + 1], pos=metric_pos)
            two = row[None].expand(2, -1)
            alone = effect(model, two, hooks, lambda x, c, r, m=metric: m(x, c, 0 * r), controls={})
            assert torch.allclose(together.clean[i], alone.clean[0], atol=1e-12)
            assert torch.allclose(together.edited[i], alone.edited[0], atol=1e-12)
    assert not torch.allclose(together.clean, together.clean[0])


def test_a_position_beyond_a_short_row_raises(model) -> None:
    tokens, mask, _ = padded(model, "left")
    with pytest.raises(IndexError, match=r"pos=3 is out of range: the rows have 3 to 7 tokens"):
        collect(model, tokens, SITE, pos=3, attention_mask=mask)
    with pytest.raises(IndexError, match="out of range"):
        collect(model, tokens, SITE, pos=-4, attention_mask=mask)


def test_reading_several_positions_under_padding(model) -> None:
    tokens, mask, rows = padded(model, "right")
    got = collect(model, tokens, SITE, pos=[0, -1], attention_mask=mask)[SITE]
    for i, row in enumerate(rows):
        assert torch.allclose(got[i], collect(model, row[None], SITE, pos=[0, -1])[SITE][0], atol=1e-12)
    with pytest.raises(ValueError, match="different number of positions"):
        collect(model, tokens, SITE, pos=slice(2, None), attention_mask=mask)


# Generation with a KV cache


PROMPT, NEW = 4, 5
GROWING = {
    "a prompt token": {"pos": 1},
    "the last prompt token": {"pos": PROMPT - 1},
    "a generated token": {"pos": PROMPT + 2},
    "slice in the prompt": {"pos": slice(1, 3)},
    "slice across": {"pos": slice(PROMPT - 1, PROMPT + 2)},
    "slice of what is generated": {"pos": slice(PROMPT + 1, PROMPT + 3)},
    "slice to the end": {"pos": slice(PROMPT, None)},
    "list": {"pos": [0, PROMPT, PROMPT + 1]},
    "one an example": {"pos": torch.tensor([0, PROMPT, PROMPT + 3])},
    "mask": {"pos": draw(3, PROMPT + NEW - 1, seed=5) > 0},
    "mask of the prompt": {"pos": draw(3, PROMPT, seed=6) > 0},
    "all": {},
    "prompt": {"when": "prompt"},
    "new": {"when": "new"},
    "prompt, one position": {"when": "prompt", "pos": 2},
}


def in_one_pass(where: dict) -> dict:
    """The same places written for one pass over the whole sequence, which has no prompt and no new tokens."""
    when, pos = where.get("when"), where.get("pos")
    if isinstance(pos, Tensor) and pos.dtype == torch.bool:
        return {"pos": torch.nn.functional.pad(pos, (0, PROMPT + NEW - 1 - pos.shape[1]))}
    if when is None:
        return where
    span = slice(0, PROMPT) if when == "prompt" else slice(PROMPT, None)
    return {"pos": where.get("pos", span)}


def check_generation(model, name: str, tolerance: float, generate) -> None:
    prompt = tokens_for(model, 3, PROMPT, seed=3)
    prompt[prompt == 1] = 2  # 1 is the padding token
    where = GROWING[name]
    edit = Add(4 * torch.randn(16, generator=torch.Generator().manual_seed(8)))
    site = "blocks.0.hook_resid_post"
    seen: list[Tensor] = []
    with attached(model, edit.at(site, **where)), torch.no_grad():
        out = generate(model, prompt, seen)
    assert out.shape == (3, PROMPT + NEW)
    with attached(model, edit.at(site, **in_one_pass(where))), torch.no_grad():
        full = model(out[:, :-1])
    stepwise = torch.cat(seen, 1)
    assert (stepwise - full).abs().max() < tolerance
    assert torch.equal(full[:, PROMPT - 1 :].argmax(-1), out[:, PROMPT:])
    with torch.no_grad():
        assert (model(out[:, :-1]) - full).abs().max() > 0.01, "the edit did nothing"


def generate(model, prompt: Tensor, seen: list[Tensor]) -> Tensor:
    """The model's own generate, with the logits of every pass written down."""
    wrapped, outer = model.__dict__.get("forward"), model.forward

    def forward(*args, **kwargs):
        out = outer(*args, **kwargs)
        seen.append(out if isinstance(out, Tensor) else out.logits)
        return out

    model.__dict__["forward"] = forward
    try:
        return model.generate(
            prompt, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens"
        )
    finally:
        del model.__dict__["forward"]
        if wrapped is not None:
            model.__dict__["forward"] = wrapped


@pytest.fixture(scope="module")
def speaker():
    """A HookedTransformer with a tokenizer: without one its own `generate` gives new tokens the wrong positions."""
    if not has_hooked_transformer():
        pytest.skip("HookedTransformer ended with TransformerLens 3.9; the bridge has its own test below")
    model = tiny()
    model.tokenizer = word_tokenizer(11)
    return model


@pytest.mark.compat
@pytest.mark.parametrize("name", sorted(GROWING))
def test_generation_with_a_cache_edits_the_same_positions_as_one_pass(speaker, name: str) -> None:
    check_generation(speaker, name, 1e-10, generate)
    assert "forward" not in speaker.__dict__


@pytest.fixture(scope="module")
def bridge():
    if not has_bridge():
        pytest.skip("TransformerBridge came with TransformerLens 3.0")
    return gpt2_bridge()


@pytest.mark.compat
@pytest.mark.parametrize("name", sorted(GROWING))
def test_generation_on_a_bridge_edits_the_same_positions_as_one_pass(bridge, name: str) -> None:
    check_generation(bridge, name, 2e-3, generate)
    assert "forward" not in bridge.__dict__


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["neox", "gemma2"])
@pytest.mark.parametrize("name", ["list", "new", "slice across"])
def test_generation_on_bridges_of_other_families(kind: str, name: str) -> None:
    if not has_bridge():
        pytest.skip("TransformerBridge came with TransformerLens 3.0")
    check_generation(family_bridge(kind), name, 2e-3, generate)


def test_a_window_shows_a_part_and_positions_count_from_the_start() -> None:
    x = draw(2, 2, D)
    window = Window(offset=3, growing=True)
    assert resolve(4, x, None, window).take(x).shape == (2, D)
    assert resolve(0, x, None, window).kind == "none"
    assert resolve(9, x, None, window).kind == "none"
    assert resolve(-1, x, None, window).index == -1
    assert resolve(slice(0, 3), x, None, window).kind == "none"
    assert resolve(slice(7, 9), x, None, window).kind == "none", "these positions may still come"
    with pytest.raises(IndexError, match="out of range"):
        resolve(-6, x, None, window)


def test_after_a_prompt_of_one_token_the_rest_is_new() -> None:
    x = draw(2, 1, D)
    ((_, prompt),) = Ablate(None).at(SITE, when="prompt")
    ((_, new),) = Ablate(None).at(SITE, when="new")
    first, second = Window(growing=True), Window(offset=1, growing=True)
    assert prompt.edit(x, None, second) is new.edit(x, None, first) is None
    assert not prompt.edit(x, None, first).any()
    assert not new.edit(x, None, second).any()


def test_when_needs_attached(model, tokens) -> None:
    with pytest.raises(ValueError, match=r"when='new' at blocks.0.hook_resid_post needs `with attached"):
        logits_with(model, tokens, Ablate(None).at(SITE, when="new"))


@pytest.mark.compat
def test_generation_from_left_padded_prompts(model) -> None:
    """Positions count real tokens of each row, in the cached passes too."""
    if not has_hooked_transformer():
        pytest.skip("the cache is built by hand here, as HookedTransformer's")
    from mi_ablate.replay import _cache_class

    tokens, mask, rows = padded(model, "left")
    new = tokens_for(model, 4, 2, seed=77)
    for pos in (1, -1, 4, slice(2, 5)):
        edit = Add(3 * draw(16, seed=8))  # a constant vector would be invisible to LayerNorm
        cache = _cache_class().init_cache(model.cfg, "cpu", 4)
        with attached(model, edit.at(SITE, pos=pos)), torch.no_grad():
            model(tokens, past_kv_cache=cache, attention_mask=mask)
            got = torch.cat(
                [model(new[:, i : i + 1], past_kv_cache=cache, attention_mask=torch.ones(4, 1).long()) for i in (0, 1)],
                1,
            )
        if pos == -1:  # the last token of every pass: prompt's last and each new one
            pos_of = {i: [len(r) - 1, len(r), len(r) + 1] for i, r in enumerate(rows)}
        for i, row in enumerate(rows):
            whole = torch.cat([row, new[i]])[None]
            one = pos_of[i] if pos == -1 else pos
            alone = logits_with(model, whole, edit.at(SITE, pos=one))[0, -2:]
            assert torch.allclose(got[i], alone, atol=1e-10), f"pos {pos}, row {i}"


def test_the_next_prompt_starts_counting_again(model) -> None:
    """A second call inside `attached` is a new sequence, not the continuation of the first."""
    tokens = tokens_for(model, 2, 5)
    hooks = Ablate(None).at(SITE, pos=1)
    with attached(model, hooks), torch.no_grad():
        first, second = model(tokens), model(tokens)
    assert torch.equal(first, second)
    assert torch.equal(first, logits_with(model, tokens, hooks))


def test_tiny_models_are_the_same_on_every_version() -> None:
    """The sum of the logits, from the first run of this test; a change means other weights or another architecture."""
    model = tiny()
    assert abs(float(logits_with(model, tokens_for(model)).sum()) - GOLDEN) < 1e-8


GOLDEN = -350.56658160266977


@pytest.mark.compat
@pytest.mark.parametrize("pad", [1, 0], ids=["a token of its own", "the BOS token"])
def test_left_padding_that_the_model_finds_by_itself(pad: int) -> None:
    """A HookedTransformer masks leading pad tokens of a left-padding tokenizer; a bridge without a mask reads them."""
    model = tiny()
    model.tokenizer = word_tokenizer(11)
    model.tokenizer.padding_side = "left"
    model.tokenizer.pad_token = f"w{pad}"
    rows = [torch.tensor(row) for row in ([0, 3, 7, 2, 9], [0, 2, 3], [0, 4, 2, 5])]
    tokens = torch.full((3, 5), pad)
    for i, row in enumerate(rows):
        tokens[i, 5 - len(row) :] = row
    site = "blocks.1.hook_resid_post"
    hooks = Ablate(Subspace.random(16, 4)).at(SITE, pos=1)
    whole = collect(model, tokens, site, pos=None, hooks=hooks)[site]
    for pos in (0, 1, -1):
        got = collect(model, tokens, site, pos=pos, hooks=hooks)[site]
        for i, row in enumerate(rows):
            if hasattr(model, "original_model"):
                assert torch.equal(got[i], whole[i, pos]), "what the model reads as a token counts as one"
            else:
                alone = collect(model, row[None], site, pos=pos, hooks=hooks)[site][0]
                assert torch.allclose(got[i], alone, atol=1e-12), f"row {i}, pos {pos}"


@pytest.mark.compat
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_text_that_the_model_pads_by_itself(kind: str, side: str) -> None:
    """Several texts in one call: with padding on the left, position 1 of the short one is not position 1 of the tensor."""
    if not (has_hooked_transformer() if kind == "hooked" else has_bridge()):
        pytest.skip(f"this version has no {kind} model")
    model = tiny() if kind == "hooked" else gpt2_bridge()
    if kind == "hooked":
        model.tokenizer = word_tokenizer(11)
        model.cfg.tokenizer_prepends_bos = False
    model.tokenizer.padding_side = side
    texts = ["w3 w4 w5 w6", "w3 w7"]
    hooks = Add(3 * draw(16, seed=8).to(model.cfg.dtype)).at(SITE, pos=1)
    with attached(model, hooks), torch.no_grad():
        together, alone = model(texts), model(texts[1])
    n = alone.shape[1]
    got = together[1, -n:] if side == "left" else together[1, :n]
    assert (got - alone[0]).abs().max() < 1e-4


@pytest.mark.compat
@pytest.mark.parametrize("pos", [1, 6, slice(2, 6)], ids=str)
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_texts_of_different_lengths_generated_together(kind: str, pos: object) -> None:
    if not has_bridge():
        pytest.skip("TransformerLens 2.18 generates from padded prompts without masking the padding")
    if kind == "hooked" and not has_hooked_transformer():
        pytest.skip("HookedTransformer ended with TransformerLens 3.9")
    model = tiny() if kind == "hooked" else gpt2_bridge()
    if kind == "hooked":
        model.tokenizer = word_tokenizer(11)
        model.cfg.tokenizer_prepends_bos = False
    texts = ["w3 w4 w5 w6", "w3 w7"]
    arguments = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
    hooks = Add(6 * torch.linspace(-3, 2, 16).to(model.cfg.dtype) ** 2).at(SITE, pos=pos)
    with attached(model, hooks):
        together = model.generate(texts, return_type="tokens", **arguments)[:, -5:]
    for row, text in zip(together, texts):
        with attached(model, hooks):
            alone = model.generate(text, return_type="tokens", **arguments)[0, -5:]
        assert torch.equal(row, alone)


@pytest.mark.compat
def test_generation_in_inference_mode_leaves_nothing_that_autograd_refuses(model, tokens) -> None:
    """generate() runs in inference mode; a basis cast there once must still be usable for gradients."""
    edit = Ablate(Subspace.random(16, 3))
    with torch.inference_mode():
        edit(torch.randn(2, 16))
    x = torch.randn(2, 16, requires_grad=True)
    edit(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    with torch.inference_mode():
        made_there = Subspace.random(16, 3)
    x = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    Ablate(made_there)(x).sum().backward()
    assert x.grad.any()


def test_integers_of_numpy_are_integers(unchecked, model, tokens) -> None:
    import numpy as np

    first = "blocks.0.hook_resid_post"
    for pos, same in ((np.int64(2), 2), ([np.int32(0), np.int64(-1)], [0, -1])):
        assert torch.equal(
            collect(model, tokens, first, pos=pos)[first], collect(model, tokens, first, pos=same)[first]
        )
        (_, placed) = Ablate(None).at(first, pos=pos)[0]
        assert placed.pos == same
    with pytest.raises(ValueError, match="give an int, a slice, a list of ints"):
        Ablate(None).at(first, pos=np.float64(2.0))
