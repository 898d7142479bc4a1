"""Effects and removal curves: values known by construction, the shortcuts of replay, and the rules of k_at."""

import copy
import json
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mi_ablate as mi
from mi_ablate import (
    Ablate,
    Add,
    Curve,
    Erase,
    Rotate,
    Subspace,
    accuracy,
    attached,
    collect,
    controls,
    cross_entropy,
    effect,
    effect_by_site,
    figures,
    gated,
    interval,
    kl,
    last_residual,
    logit_diff,
    next_token_loss,
    refusal_rate,
    refusal_score,
    removal_curve,
    sites,
)
from mi_ablate._walks import another_row
from mi_ablate.curves import Survived
from mi_ablate.replay import from_layer, replay
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.transformer import build
from models import (
    BRIDGE_FAMILIES,
    FAMILIES,
    family,
    family_bridge,
    gpt2_bridge,
    has_bridge,
    has_hooked_transformer,
    logits_with,
    tiny,
    tokens_for,
    word_tokenizer,
)

LAST = "blocks.1.hook_resid_post"
FIRST = "blocks.0.hook_resid_post"
S = Subspace.random(16, 4, seed=1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def prompts(model) -> Tensor:
    return tokens_for(model, 40, 5)


@pytest.fixture(scope="module")
def answers(model, prompts) -> Tensor:
    """What the model answers, with one in four replaced, so that the clean accuracy is 0.75."""
    found = logits_with(model, prompts)[:, -1].argmax(-1)
    found[::4] = (found[::4] + 1) % 11
    return found


# Replay


METRICS = {
    "accuracy": lambda a: accuracy(a),
    "logit_diff": lambda a: logit_diff(a, (a + 1) % 11),
    "cross_entropy": lambda a: cross_entropy(a),
    "kl": lambda a: kl(),
}
PLACES = {
    "readout": (LAST,),
    "last position": (FIRST, "blocks.1.hook_attn_out"),
    "last position, heads": ("blocks.0.attn.hook_z",),
    "last position, keys": ("blocks.0.attn.hook_k", "blocks.1.attn.hook_v"),
    "last position, embedding": ("hook_embed", "hook_pos_embed"),
}


def whole_scores(model, tokens: Tensor, hooks, metric) -> Tensor:
    clean = logits_with(model, tokens)
    return metric(logits_with(model, tokens, hooks), clean, torch.arange(len(tokens))).double()


@pytest.mark.compat
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize("place", sorted(PLACES))
def test_every_shortcut_gives_the_scores_of_a_whole_pass(model, prompts, answers, place, name, batch_size) -> None:
    metric = METRICS[name](answers)
    edit, where = (Ablate(S), {}) if "heads" not in place and "keys" not in place else (Ablate(None), {"head": 1})
    hooks = edit.at(*PLACES[place], pos=-1, **where)
    runs = replay(model, prompts, hooks, metric, batch_size=batch_size)
    kind = place.split(",")[0]
    assert runs.kind == (kind if kind == "readout" or has_hooked_transformer() else "whole")
    reference = [x for _, x in runs.logits([])]
    assert torch.allclose(runs.score(hooks, metric, reference), whole_scores(model, prompts, hooks, metric), atol=1e-10)
    others = Add(draw(40, edit.subspace.d if edit.subspace else 8), 0.3).at(*PLACES[place], pos=-1, **where)
    assert torch.allclose(
        runs.score(others, metric, reference), whole_scores(model, prompts, others, metric), atol=1e-10
    )
    assert torch.allclose(runs.score([], metric, reference), whole_scores(model, prompts, [], metric), atol=1e-10)


@pytest.mark.compat
def test_patterns_at_the_last_query(model, prompts, answers) -> None:
    """With a frozen cache a pattern has one query, the last, and all keys."""
    hooks = Ablate(None, strength=0.5).at("blocks.1.attn.hook_pattern", head=1, pos=-1, unit=[0, 2])
    metric = logit_diff(answers, (answers + 1) % 11)
    runs = replay(model, prompts, hooks, metric)
    assert torch.allclose(runs.score(hooks, metric), whole_scores(model, prompts, hooks, metric), atol=1e-10)


@pytest.mark.compat
def test_the_frozen_cache_does_not_grow(model, prompts, answers) -> None:
    hooks, metric = Ablate(S).at(FIRST, pos=-1), accuracy(answers)
    runs = replay(model, prompts, hooks, metric)
    first = runs.score(hooks, metric)
    for _ in range(3):
        assert torch.equal(runs.score(hooks, metric), first)


@pytest.mark.skipif(not has_hooked_transformer(), reason="a bridge has no way to start at a block")
def test_the_last_position_runs_from_the_block_of_the_first_edit_on_unless_a_hook_would_act_twice(answers) -> None:
    model, ran = tiny(n_layers=4), []
    for layer in range(4):
        point = f"blocks.{layer}.attn.hook_z"
        model.add_hook(point, lambda x, hook, layer=layer: ran.append((layer, x.shape[1])), is_permanent=True)
    prompts, metric = tokens_for(model, 9, 5), logit_diff(answers[:9], (answers[:9] + 1) % 11)
    sites = {layer: f"blocks.{layer}.hook_mlp_out" for layer in range(4)}
    runs = replay(model, prompts, Ablate(S).at(*sites.values(), pos=-1), metric)
    for layer, mlp in sites.items():
        for site in (mlp, f"blocks.{layer}.hook_resid_pre"):
            hooks = Ablate(S).at(site, pos=-1)
            ran.clear()
            scores = runs.score(hooks, metric)
            assert ran == [(i, 1) for i in range(layer, 4)]
            assert torch.allclose(scores, whole_scores(model, prompts, hooks, metric), atol=1e-10)
    model.add_hook("blocks.3.hook_resid_pre", lambda x, hook: 0.5 * x, is_permanent=True)
    trap(model, prompts, Ablate(S).at("blocks.3.hook_mlp_out", pos=-1))


WHOLE = {
    "another position": ({"pos": 2}, {}),
    "all positions": ({}, {}),
    "the last position by number": ({"pos": 4}, {}),
    "one an example": ({"pos": torch.full((40,), -1)}, {}),
    "metric elsewhere": ({"pos": -1}, {"pos": 3}),
}


@pytest.mark.parametrize("name", sorted(WHOLE))
@pytest.mark.parametrize("site", [LAST, FIRST])
def test_what_the_shortcuts_do_not_cover_runs_whole(model, prompts, answers, name: str, site: str) -> None:
    where, at = WHOLE[name]
    hooks, metric = Ablate(S).at(site, **where), logit_diff(answers, (answers + 1) % 11, **at)
    runs = replay(model, prompts, hooks, metric)
    assert runs.kind == "whole"
    assert torch.allclose(runs.score(hooks, metric), whole_scores(model, prompts, hooks, metric), atol=1e-12)


def test_hooks_and_metrics_of_the_users_own_run_whole(model, prompts, answers) -> None:
    plain = [(LAST, lambda x, hook: 0.5 * x)]
    assert replay(model, prompts, plain, accuracy(answers)).kind == "whole"
    own = lambda logits, clean, rows: logits[:, -1, 0]  # noqa: E731
    assert replay(model, prompts, Ablate(S).at(LAST, pos=-1), own).kind == "whole"
    mask = torch.ones_like(prompts)
    assert replay(model, prompts, Ablate(S).at(LAST, pos=-1), accuracy(answers), attention_mask=mask).kind == "whole"
    reading = gated(Ablate(S).at(LAST, pos=-1), FIRST, lambda x: x[:, -1, :1])
    assert replay(model, prompts, reading, accuracy(answers)).kind == "whole"


def trap(model, prompts: Tensor, hooks) -> None:
    """Whatever way is chosen, the scores must be those of a whole pass."""
    metric = logit_diff(torch.zeros(len(prompts)).long(), torch.ones(len(prompts)).long())
    runs = replay(model, prompts, hooks, metric)
    wanted = whole_scores(model, prompts, hooks, metric)
    assert torch.allclose(runs.score(hooks, metric), wanted, atol=1e-9), runs.kind
    assert not torch.allclose(wanted, whole_scores(model, prompts, [], metric), atol=1e-3)


def test_bidirectional_attention_has_no_frozen_past() -> None:
    """An edit at the last position of layer 0 reaches the earlier positions of layer 1."""
    model = tiny(attention_dir="bidirectional")
    prompts, hooks = tokens_for(model, 9, 5), Ablate(S).at(FIRST, "blocks.1.hook_mlp_out", pos=-1)
    assert replay(model, prompts, hooks, accuracy(prompts[:, 0])).kind == "whole"
    trap(model, prompts, hooks)


@pytest.mark.parametrize("scale", [1.0, 1e-5], ids=["large logits", "small logits"])
@pytest.mark.parametrize("site", [LAST, FIRST])
def test_a_soft_cap_on_the_logits_is_part_of_the_readout(scale: float, site: str) -> None:
    """Small clean logits pass through tanh unchanged; large edited ones do not."""
    if not has_hooked_transformer():
        pytest.skip("HookedTransformer's config has the cap")
    model = tiny(output_logits_soft_cap=3.0, norm=None)
    with torch.no_grad():
        model.unembed.W_U.mul_(scale)
        model.unembed.b_U.mul_(scale)
    trap(model, tokens_for(model, 9, 5), Add(draw(16), 1 / scale).at(site, pos=-1))


def test_other_peoples_permanent_hooks_are_respected(prompts) -> None:
    """A permanent hook after the edited site, on the readout or by position, must act in the replayed part as well."""
    for name, hook in (
        ("ln_final.hook_normalized", lambda x, hook: 0.5 * x),
        ("blocks.1.attn.hook_pattern", lambda x, hook: 0.5 * x + 0.5),
        ("blocks.1.hook_attn_out", lambda x, hook: torch.cat([2 * x[:, :1], x[:, 1:]], 1)),
    ):
        model = tiny()
        model.add_hook(name, hook, is_permanent=True)
        for site in (LAST, FIRST):
            trap(model, prompts, Ablate(S).at(site, pos=-1))


def test_the_norm_and_its_absence_are_replayed(prompts) -> None:
    for norm in ("LN", None):
        trap(tiny(norm=norm), prompts, Ablate(S).at(LAST, pos=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("site", [LAST, FIRST])
def test_lower_precision_is_replayed_as_it_runs(site: str, dtype: torch.dtype) -> None:
    """A shortcut that rounds otherwise than the model is refused; one that is taken agrees to the model's precision."""
    model = tiny(dtype=dtype)
    prompts, metric = tokens_for(model, 30, 5), logit_diff(torch.zeros(30).long(), torch.ones(30).long())
    hooks = Ablate(S).at(site, pos=-1)
    found = effect(model, prompts, hooks, metric, draws=1)
    assert found.edited.dtype == torch.float64
    wanted = whole_scores(model, prompts, hooks, metric)
    assert torch.allclose(found.edited, wanted, atol=1e-4 if dtype == torch.float32 else 0.1)
    exact = whole_scores(tiny(), prompts, hooks, metric)
    assert torch.allclose(found.edited, exact, atol=1e-4 if dtype == torch.float32 else 0.3)


@pytest.mark.parametrize("site", [LAST, FIRST])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_is_replayed_as_it_runs(name: str, site: str) -> None:
    if not has_hooked_transformer():
        pytest.skip("built as HookedTransformers")
    model = family(name)
    trap(model, tokens_for(model, 9, 5), Ablate(S).at(site, pos=-1))


@pytest.mark.compat
@pytest.mark.parametrize("kind", BRIDGE_FAMILIES)
def test_every_bridge_is_replayed_as_it_runs(kind: str) -> None:
    if not has_bridge():
        pytest.skip("TransformerBridge came with TransformerLens 3.0")
    model = family_bridge(kind)
    tokens, metric = tokens_for(model, 9, 5), logit_diff(torch.zeros(9).long(), torch.ones(9).long())
    for hooks in (Ablate(S).at(LAST, pos=-1), Add(draw(16), 1e4).at(LAST, pos=-1), Ablate(S).at(FIRST, pos=-1)):
        with attached(model, hooks), torch.no_grad():
            wanted = metric(model(tokens), None, torch.arange(9)).double()
        assert torch.allclose(replay(model, tokens, hooks, metric).score(hooks, metric), wanted, atol=1e-4)


def test_one_token_prompts() -> None:
    model = tiny()
    trap(model, tokens_for(model, 9, 1), Ablate(S).at(FIRST, pos=-1))


def test_a_metric_of_the_wrong_shape_or_nan_raises(model, prompts, answers) -> None:
    hooks = Ablate(S).at(LAST, pos=-1)
    with pytest.raises(ValueError, match=r"The metric returned \[80\]; one number for each of the 40 examples"):
        replay(model, prompts, hooks, kl()).score(hooks, lambda x, c, r: torch.zeros(2 * len(x)))
    with pytest.raises(ValueError, match=r"The metric is NaN or infinite for 40 examples \(first: \[0, 1, 2, 3, 4\]\)"):
        replay(model, prompts, hooks, kl()).score(hooks, lambda x, c, r: torch.full((len(x),), math.nan))


# Effect


@pytest.mark.compat
@pytest.mark.parametrize("batch_size", [None, 7])
def test_effect_is_clean_edited_and_each_control(model, prompts, answers, batch_size) -> None:
    hooks = Ablate(S).at(LAST, pos=-1)
    found = effect(model, prompts, hooks, accuracy(answers), batch_size=batch_size, draws=3)
    assert float(found.clean.mean()) == 0.75
    assert torch.equal(found.edited, whole_scores(model, prompts, hooks, accuracy(answers)))
    assert {name: tuple(x.shape) for name, x in found.controls.items()} == {"covariance": (3, 40), "pca": (1, 40)}
    acts = collect(model, prompts, LAST)[LAST]
    for name, make in (("covariance", controls.covariance), ("pca", controls.pca)):
        control = make(acts)
        for seed, row in enumerate(found.controls[name]):
            assert torch.equal(row, whole_scores(model, prompts, control(hooks, seed), accuracy(answers))), name
        drawn = [control(hooks, seed)[0][1].intervention.subspace for seed in range(len(found.controls[name]))]
        assert abs(found.variance_removed[name] - sum(share(s, acts) for s in drawn) / len(drawn)) < 1e-10
    table = found.table()
    assert [row["run"] for row in table] == ["clean", "edited", "covariance", "pca"]
    assert table[0]["variance_removed"] == 0
    assert table[2]["draws"] == 3
    assert table[2]["low"] <= table[2]["mean"] <= table[2]["high"]
    assert "no control" not in repr(found)
    assert "Effect(accuracy, n 40: clean 0.750, edited " in repr(found)


def share(s: Subspace, acts: Tensor) -> float:
    cov = acts.T.cov()
    return float((s.basis.T @ cov @ s.basis).trace() / cov.trace())


def test_the_variance_removed_is_that_of_the_edited_vectors(model, prompts, answers) -> None:
    metric = accuracy(answers)
    acts = collect(model, prompts, [LAST, FIRST], pos=-1)
    everywhere = collect(model, prompts, FIRST, pos=None)[FIRST].flatten(0, 1)
    each = torch.arange(40) % 5
    z = collect(model, prompts, "blocks.0.attn.hook_z")["blocks.0.attn.hook_z"][:, 1]
    post = collect(model, prompts, "blocks.0.mlp.hook_post")["blocks.0.mlp.hook_post"][:, [3, 5, 9]]
    small, three = Subspace.random(8, 2), Subspace.random(3, 2)
    cases = [
        (Ablate(S).at(LAST, pos=-1), share(S, acts[LAST])),
        (Ablate(S, keep=True).at(LAST, pos=-1), 1 - share(S, acts[LAST])),
        (Ablate(None).at(LAST, pos=-1), 1.0),
        (Ablate(S).at(FIRST), share(S, everywhere)),
        (Ablate(S).at(LAST, FIRST, pos=-1), (share(S, acts[LAST]) + share(S, acts[FIRST])) / 2),
        (Ablate(S).at(FIRST, pos=each), share(S, collect(model, prompts, FIRST, pos=each)[FIRST])),
        (Ablate(small).at("blocks.0.attn.hook_z", head=1, pos=-1), share(small, z)),
        (Ablate(three).at("blocks.0.mlp.hook_post", unit=[3, 5, 9], pos=-1), share(three, post)),
        (Rotate(S, 0.3).at(LAST, pos=-1), share(S, acts[LAST])),
        (Erase(S.basis, S.basis).at(LAST, pos=-1), share(S, acts[LAST])),
        (Add(draw(16)).at(LAST, pos=-1), 0.0),
    ]
    for hooks, wanted in cases:
        found = effect(model, prompts, hooks, metric, controls={})
        assert abs(found.variance_removed["edited"] - wanted) < 1e-10, hooks


def test_the_variance_removed_at_a_mask_counts_the_masked_positions(model, prompts, answers) -> None:
    mask = draw(40, 5, seed=4) > 0
    mask[3:6] = False
    acts = collect(model, prompts, FIRST, pos=None)[FIRST][mask]
    found = effect(model, prompts, Ablate(S).at(FIRST, pos=mask), accuracy(answers), controls={}, batch_size=3)
    assert abs(found.variance_removed["edited"] - share(S, acts)) < 1e-10


def test_sites_with_different_kinds_of_positions_can_be_mixed(model, prompts, answers) -> None:
    """An int at one site and one position an example at another: comparing them must not trip over the tensor."""
    hooks = Ablate(S).at(LAST, pos=-1) + Ablate(S).at(FIRST, pos=torch.arange(40) % 5)
    found = effect(model, prompts, hooks, accuracy(answers))
    assert torch.equal(found.edited, whole_scores(model, prompts, hooks, accuracy(answers)))
    back = Ablate(S).at(LAST, pos=torch.arange(40) % 5) + Ablate(S).at(FIRST, pos=-1)
    assert effect(model, prompts, back, accuracy(answers)).controls


def test_units_under_an_attention_mask(model, prompts, answers) -> None:
    mask = torch.ones_like(prompts)
    mask[::2, :2] = 0
    three = Subspace.random(3, 2)
    found = effect(
        model,
        prompts,
        Ablate(three).at("blocks.0.mlp.hook_post", unit=[3, 5, 9]),
        accuracy(answers),
        attention_mask=mask,
    )
    post = collect(model, prompts, "blocks.0.mlp.hook_post", pos=None, attention_mask=mask)["blocks.0.mlp.hook_post"]
    wanted = share(three, post[mask.bool()][:, [3, 5, 9]])
    assert abs(found.variance_removed["edited"] - wanted) < 1e-10


def test_heads_under_an_attention_mask(model, prompts, answers) -> None:
    mask = torch.ones_like(prompts)
    mask[::2, :2] = 0
    name, small = "blocks.0.attn.hook_z", Subspace.random(8, 2)
    found = effect(model, prompts, Ablate(small).at(name, head=1), accuracy(answers), attention_mask=mask)
    z = collect(model, prompts, name, pos=None, attention_mask=mask)[name]
    assert abs(found.variance_removed["edited"] - share(small, z[mask.bool()][:, 1])) < 1e-10


def test_two_edits_at_one_site_each_have_their_own_positions(model, prompts, answers) -> None:
    hooks = Ablate(S).at(FIRST, pos=0) + Ablate(S).at(FIRST, pos=-1)
    acts = [collect(model, prompts, FIRST, pos=pos)[FIRST] for pos in (0, -1)]
    found = effect(model, prompts, hooks, accuracy(answers), controls={})
    assert abs(found.variance_removed["edited"] - sum(share(S, a) for a in acts) / 2) < 1e-10


def test_variance_known_by_construction() -> None:
    """A model whose stream is one coordinate a token: removing three of eight equally likely tokens' axes."""
    model = tiny(n_layers=1, d_model=8, n_heads=1, vocab=8, norm=None, n_ctx=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E.copy_(torch.eye(8))
        model.embed.W_E[:, 7] += 1e-3
        model.unembed.W_U.copy_(torch.eye(8))
    tokens = torch.arange(8)[:, None].repeat(1, 2)
    s = Subspace(torch.eye(8, dtype=torch.float64)[:, :3])
    curve = removal_curve(model, tokens, s, accuracy(torch.arange(8)), at="blocks.0.hook_resid_post", draws=2)
    # Tokens 0, 1, 2 lose their coordinate and answer 7 instead, whose coordinate they all have a little of.
    assert torch.allclose(curve.values, 1 - torch.arange(4).double() / 8)
    assert torch.allclose(curve.variance_removed["edited"], torch.arange(4).double() / 8, atol=1e-12)


def test_no_control_is_said_so(model, prompts, answers) -> None:
    found = effect(model, prompts, Ablate(S).at(LAST, pos=-1), accuracy(answers), controls={})
    assert found.controls == {}
    assert repr(found).endswith("; no control)")
    assert effect(model, prompts, Ablate(None).at(LAST, pos=-1), accuracy(answers)).controls == {}


def test_a_plain_function_has_an_effect_and_no_known_variance(model, prompts, answers) -> None:
    found = effect(model, prompts, [(LAST, lambda x, hook: 0.5 * x)], accuracy(answers))
    assert found.controls == {}
    assert math.isnan(found.variance_removed["edited"])
    assert torch.equal(found.edited, whole_scores(model, prompts, [(LAST, lambda x, hook: 0.5 * x)], accuracy(answers)))


def test_a_control_of_ones_own(model, prompts, answers) -> None:
    """Any function (hooks, seed) -> hooks; without the attribute `random` it is drawn as often as asked."""
    seeds = []

    def half(hooks, seed):
        seeds.append(seed)
        return Ablate(S, strength=0.5).at(LAST, pos=-1)

    found = effect(model, prompts, Ablate(S).at(LAST, pos=-1), accuracy(answers), controls={"half": half}, draws=2)
    assert seeds == [0, 1]
    assert found.controls["half"].shape == (2, 40)


def test_a_function_metric_has_its_name(model, prompts) -> None:
    def first_logit(logits, clean, rows):
        return (logits - clean)[:, -1, 0]

    found = effect(model, prompts, Ablate(S).at(LAST, pos=-1), first_logit, controls={})
    assert found.metric == "first_logit"
    assert not found.clean.any(), "the clean run is compared with itself"
    assert found.edited.any()


def test_an_effect_without_hooks_raises(model, prompts, answers) -> None:
    with pytest.raises(ValueError, match=r"effect needs at least one hook: edit.at\("):
        effect(model, prompts, [], accuracy(answers))


def test_an_edit_without_its_place_raises(unchecked, model, prompts, answers) -> None:
    with pytest.raises(ValueError, match=r"effect needs at least one hook: edit.at\("):
        effect(model, prompts, Ablate(S), accuracy(answers))


def test_a_subspace_of_another_width_says_so(model, prompts, answers) -> None:
    """Not a message of matrix multiplication from the bookkeeping of variances."""
    for where in (LAST, FIRST):
        with pytest.raises(ValueError, match=r"rank 2 of 8.* acts on vectors of width 8; these have width 16"):
            effect(model, prompts, Ablate(Subspace.random(8, 2)).at(where, pos=-1), accuracy(answers))


def test_one_prompt_has_an_effect_but_no_variance(model, prompts, answers) -> None:
    hooks, metric = Ablate(S).at(LAST, pos=-1), accuracy(answers[:1])
    found = effect(model, prompts[:1], hooks, metric, controls={})
    assert math.isnan(found.variance_removed["edited"])
    assert torch.equal(found.edited, whole_scores(model, prompts[:1], hooks, metric))
    with pytest.raises(ValueError, match="needs two or more vectors; 1 is edited"):
        effect(model, prompts[:1], hooks, metric)


def test_counts_below_one_raise(model, prompts, answers) -> None:
    hooks, metric = Ablate(S).at(FIRST), accuracy(answers)
    for size in (0, -3):
        with pytest.raises(ValueError, match=f"batch_size={size}: at least 1 row a pass"):
            effect(model, prompts, hooks, metric, batch_size=size)
    with pytest.raises(ValueError, match=r"draws=0: at least 1; controls=\{\} measures none"):
        effect(model, prompts, hooks, metric, draws=0)


@pytest.mark.parametrize("n", [39, 41])
@pytest.mark.parametrize("what", ["to", "strength", "pos", "answers", "mask"])
def test_per_example_values_for_another_number_of_prompts_raise(model, prompts, answers, what: str, n: int) -> None:
    to = draw(n, 16) if what == "to" else None
    strength = torch.ones(n, 1) if what == "strength" else 1.0
    pos = {"pos": torch.zeros(n).long(), "mask": torch.ones(n, 5).bool()}.get(what, -1)
    metric = accuracy(torch.zeros(n).long() if what == "answers" else answers)
    with pytest.raises(ValueError, match=f"{n} .*40|40 .*{n}"):
        effect(model, prompts, Ablate(S, to, strength).at(FIRST, pos=pos), metric, controls={})


# Removal curves


@pytest.mark.compat
def test_a_curve_is_the_effect_at_every_k(model, prompts, answers) -> None:
    metric = logit_diff(answers, (answers + 1) % 11)
    curve = removal_curve(model, prompts, S, metric, at=LAST, draws=2)
    assert (curve.ks, curve.sites, curve.ablation, curve.n, curve.metric) == (
        (0, 1, 2, 3, 4),
        (LAST,),
        "zero",
        40,
        "logit_diff",
    )
    assert curve.replay == "readout"
    acts = collect(model, prompts, LAST)[LAST]
    drawn = controls.covariance(acts)
    for i, k in enumerate(curve.ks):
        hooks = Ablate(S[:k]).at(LAST, pos=-1) if k else []
        assert abs(float(curve.values[i]) - float(whole_scores(model, prompts, hooks, metric).mean())) < 1e-10
        if k:
            assert abs(float(curve.variance_removed["edited"][i]) - share(S[:k], acts)) < 1e-10
            for seed in range(2):
                control = whole_scores(model, prompts, drawn(hooks, seed), metric).mean()
                assert abs(float(curve.controls["covariance"][seed, i]) - float(control)) < 1e-10
    assert curve.controls["pca"].shape == (1, 5)
    assert curve.variance_removed["edited"][0] == 0
    rows = curve.table()
    assert [row["k"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[2]["covariance"]["draws"] == 2
    assert json.dumps(rows)


def test_mean_ablation_writes_the_mean_and_resampling_another_prompts_values(model, prompts, answers) -> None:
    metric, acts = logit_diff(answers, (answers + 1) % 11), collect(model, prompts, LAST)[LAST]
    for ablation in ("mean", "resample"):
        curve = removal_curve(model, prompts, S, metric, at=LAST, ablation=ablation, ks=[4], controls={}, seed=3)
        order = another_row(40, 3)
        to = acts.mean(0) if ablation == "mean" else acts[order]
        wanted = whole_scores(model, prompts, Ablate(S, to).at(LAST, pos=-1), metric).mean()
        assert curve.ks == (0, 4)
        assert abs(float(curve.values[1]) - float(wanted)) < 1e-10, ablation


def test_mean_ablation_at_all_positions_and_per_example_ones(model, prompts, answers) -> None:
    metric = logit_diff(answers, (answers + 1) % 11)
    each = torch.arange(40) % 5
    for pos in (None, each, [0, 2]):
        acts = collect(model, prompts, FIRST, pos=pos)[FIRST]
        curve = removal_curve(model, prompts, S, metric, at=FIRST, pos=pos, ablation="mean", ks=[4], controls={})
        mean = acts.reshape(-1, 16).mean(0)
        wanted = whole_scores(model, prompts, Ablate(S, mean).at(FIRST, pos=pos), metric).mean()
        assert abs(float(curve.values[1]) - float(wanted)) < 1e-10


def test_planes_and_chosen_ks(model, prompts, answers) -> None:
    metric = accuracy(answers)
    assert removal_curve(model, prompts, S, metric, at=LAST, step=2, controls={}).ks == (0, 2, 4)
    assert removal_curve(model, prompts, S, metric, at=LAST, ks=[3, 1], controls={}).ks == (0, 1, 3)
    for kwargs, text in (
        ({"ks": [1], "step": 2}, r"ks \[1\] are not multiples of step=2: planes stay whole"),
        ({"ks": [5]}, r"ks run from 0 to 5; the subspace has rank 4, so 0 to 4"),
        ({"ks": [-1]}, r"ks run from -1 to 0"),
        ({"step": 0}, r"step=0: at least 1; 2 removes planes"),
        ({"ks": []}, r"leave no k above 0 of a subspace of rank 4"),
        ({"step": 5}, r"leave no k above 0 of a subspace of rank 4"),
        ({"ablation": "none"}, r"ablation='none' must be one of \('zero', 'mean', 'resample'\)"),
    ):
        with pytest.raises(ValueError, match=text):
            removal_curve(model, prompts, S, metric, at=LAST, **kwargs)


def test_a_mapping_gives_each_site_its_own_basis(model, prompts, answers) -> None:
    metric, other = logit_diff(answers, (answers + 1) % 11), Subspace.random(16, 2, seed=9)
    curve = removal_curve(model, prompts, {FIRST: S, LAST: other}, metric, draws=2)
    assert curve.sites == (FIRST, LAST)
    for i, k in enumerate(curve.ks[1:], 1):
        hooks = Ablate(S[:k]).at(FIRST, pos=-1) + Ablate(other[: min(k, 2)]).at(LAST, pos=-1)
        assert abs(float(curve.values[i]) - float(whole_scores(model, prompts, hooks, metric).mean())) < 1e-10
    assert "2 sites" in repr(curve)


def test_where_must_be_said_once(model, prompts, answers) -> None:
    metric = accuracy(answers)
    with pytest.raises(ValueError, match=r"One Subspace needs at=: the hook names where it is removed"):
        removal_curve(model, prompts, S, metric)
    with pytest.raises(ValueError, match=r"A mapping names its own sites; leave at= out"):
        removal_curve(model, prompts, {LAST: S}, metric, at=LAST)
    with pytest.raises(ValueError, match="The mapping of sites to subspaces is empty"):
        removal_curve(model, prompts, {}, metric)
    with pytest.raises(KeyError, match="Nearest names"):
        removal_curve(model, prompts, S, metric, at="blocks.9.hook_resid_post")
    with pytest.raises(KeyError, match="'resid_post' is a pattern, not the name of one hook point"):
        removal_curve(model, prompts, S, metric, at="resid_post")
    with pytest.raises(KeyError, match="'resid_post' is a pattern, not the name of one hook point"):
        effect(model, prompts, Ablate(S).at("resid_post"), metric)


def test_progress_counts_every_point(model, prompts, answers) -> None:
    seen = []
    removal_curve(
        model, prompts, S, accuracy(answers), at=LAST, draws=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(i, 16) for i in range(1, 17)]  # 4 points for the treatment, 2 draws and pca


def test_many_sites_at_once(model, prompts, answers) -> None:
    curve = removal_curve(model, prompts, S, accuracy(answers), at=sites(model, "resid_post"), ks=[4], draws=1)
    assert curve.replay == ("last position" if has_hooked_transformer() else "whole")
    assert curve.sites == (FIRST, LAST)
    assert last_residual(model) == LAST


# Norms frozen at the clean run


def frozen_by_hand(model, tokens: Tensor, hooks) -> Tensor:
    """Logits under ``hooks`` with the scale of every norm, at every position, set to that of the clean run."""
    names = [name for name in model.hook_dict if name.endswith("hook_scale")]
    clean: dict[str, Tensor] = {}

    def read(x: Tensor, hook) -> None:
        clean[hook.name] = x.clone()

    logits_with(model, tokens, [(name, read) for name in names])
    return under(model, tokens, [*hooks, *((name, lambda x, hook: clean[hook.name]) for name in names)])


def under(model, tokens: Tensor, hooks) -> Tensor:
    with torch.no_grad(), attached(model, hooks):
        return model(tokens)


FROZEN = {
    "readout": ((LAST,), -1),
    "last position": ((FIRST, "blocks.1.hook_resid_mid"), -1),
    "last position, in the block": (("blocks.0.hook_attn_out",), -1),
    "last position, embedding": (("hook_embed",), -1),
    "whole, an earlier position": (("blocks.0.hook_resid_mid", LAST), 2),
    "whole, all positions": ((FIRST, LAST), None),
}


@pytest.mark.compat
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("place", sorted(FROZEN))
def test_frozen_norms_are_those_of_a_clean_run(model, prompts, answers, place: str, ablation: str, batch_size) -> None:
    (names, pos), metric = FROZEN[place], logit_diff(answers, (answers + 1) % 11)
    arguments = {"at": names, "pos": pos, "ks": [4], "ablation": ablation, "seed": 3, "batch_size": batch_size}
    curve = removal_curve(model, prompts, S, metric, norms="frozen", draws=2, **arguments)
    expected = place.split(",")[0] if has_hooked_transformer() or place == "readout" else "whole"
    assert (curve.replay, curve.norms) == (expected, "frozen")
    acts = collect(model, prompts, list(names), pos=pos)
    order = another_row(40, 3)
    for run, draws in {"edited": curve.values[None], **curve.controls}.items():
        for seed, values in enumerate(draws):
            hooks = []
            for name in names:
                mean = acts[name].flatten(0, -2).mean(0)
                to = {"zero": None, "mean": mean, "resample": acts[name][order]}[ablation]
                hooks += Ablate(S, to).at(name, pos=pos)
            hooks = hooks if run == "edited" else getattr(controls, run)(acts)(hooks, seed)
            logits = frozen_by_hand(model, prompts, hooks)
            hand = metric(logits, None, torch.arange(40)).mean()
            assert abs(float(values[1]) - float(hand)) < 1e-7  # roots of eigenvalues that are zero up to rounding
            live = metric(under(model, prompts, hooks), None, torch.arange(40)).mean()
            assert abs(float(live) - float(hand)) > 1e-6
    assert "norms frozen" in repr(curve)
    unfrozen = removal_curve(model, prompts, S, metric, draws=2, **arguments)
    assert torch.equal(unfrozen.values[:1], curve.values[:1])
    for run, removed in curve.variance_removed.items():
        assert torch.equal(removed, unfrozen.variance_removed[run])


def test_with_a_frozen_final_norm_the_readout_is_affine(model, prompts, answers) -> None:
    """By the formula: logits fall by the removed part, centred, over the clean scale."""
    acts = collect(model, prompts, LAST)[LAST]
    centred = acts - acts.mean(1, keepdim=True)
    scale = ((centred**2).mean(1, keepdim=True) + model.cfg.eps).sqrt()
    part = acts @ S.basis @ S.basis.T
    change = (part - part.mean(1, keepdim=True)) / scale * model.ln_final.w.detach() @ model.unembed.W_U.detach()
    logits = logits_with(model, prompts)[:, -1] - change
    wrong = (answers + 1) % 11
    rows = torch.arange(40)
    curve = removal_curve(model, prompts, S, logit_diff(answers, wrong), at=LAST, ks=[4], norms="frozen", controls={})
    expected = (logits[rows, answers] - logits[rows, wrong]).mean()
    assert abs(float(curve.values[1]) - float(expected)) < 1e-9


@pytest.mark.compat
@pytest.mark.parametrize("at", [LAST, FIRST])
def test_without_norms_frozen_is_live(prompts, answers, at: str) -> None:
    bare = tiny(norm=None)
    live, frozen = (
        removal_curve(bare, prompts, S, cross_entropy(answers), at=at, draws=2, norms=norms)
        for norms in ("live", "frozen")
    )
    assert torch.equal(live.values, frozen.values)
    assert all(torch.equal(live.controls[name], frozen.controls[name]) for name in live.controls)


def test_frozen_norms_where_other_positions_feel_the_edit(answers) -> None:
    both_ways = tiny(attention_dir="bidirectional")
    tokens, metric = tokens_for(both_ways, 40, 5), logit_diff(answers, (answers + 1) % 11)
    curve = removal_curve(both_ways, tokens, S, metric, at=FIRST, ks=[4], norms="frozen", controls={})
    logits = frozen_by_hand(both_ways, tokens, Ablate(S).at(FIRST, pos=-1))
    assert abs(float(curve.values[1]) - float(metric(logits, None, torch.arange(40)).mean())) < 1e-9


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_frozen_norms_of_every_family(name: str, answers) -> None:
    if not has_hooked_transformer():
        pytest.skip("HookedTransformer families")
    other = family(name)
    tokens, metric = tokens_for(other, 40, 5), logit_diff(answers, (answers + 1) % 11)
    for at in (FIRST, "hook_embed", LAST):
        curve = removal_curve(other, tokens, S, metric, at=at, ks=[4], norms="frozen", controls={})
        logits = frozen_by_hand(other, tokens, Ablate(S).at(at, pos=-1))
        assert abs(float(curve.values[1]) - float(metric(logits, None, torch.arange(40)).mean())) < 1e-9


@pytest.mark.compat
def test_a_frozen_rms_norm_keeps_its_scale_and_warns_of_nothing(answers) -> None:
    other = build(ToyConfig(modulus=11, d_model=16, d_mlp=24, n_heads=2, normalization="RMS"))
    tokens, metric = tokens_for(other, 40, 4), logit_diff(answers, (answers + 1) % 11)
    for at in (FIRST, LAST):
        curve = removal_curve(other, tokens, S, metric, at=at, ks=[4], norms="frozen", controls={})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = frozen_by_hand(other, tokens, Ablate(S).at(at, pos=-1))
        assert abs(float(curve.values[1]) - float(metric(logits, None, torch.arange(40)).mean())) < 1e-5


def test_norms_are_live_or_frozen(model, prompts, answers) -> None:
    with pytest.raises(ValueError, match=r"norms='cold' must be 'live' or 'frozen' \(downstream norms keep the scale"):
        removal_curve(model, prompts, S, accuracy(answers), at=LAST, norms="cold")
    assert removal_curve(model, prompts, S, accuracy(answers), at=LAST, ks=[1], controls={}).norms == "live"


# k_at


def curve(values: list[float], ks: list[int] | None = None, **runs: list[list[float]]) -> Curve:
    ks = list(range(len(values))) if ks is None else ks
    x = torch.tensor(values, dtype=torch.float64)
    draws = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in runs.items()}
    removed = dict.fromkeys(["edited", *draws], torch.linspace(0, 1, len(ks), dtype=torch.float64))
    return Curve("accuracy", tuple(ks), x, draws, removed, "zero", (LAST,), 100, "readout", kind="rate")


PIZZA = [1.00, 0.57, 0.999, 0.40]
"""Zhong et al.'s Model A: not monotone, so the rule decides."""


@pytest.mark.parametrize(
    ("values", "kwargs", "k", "upper", "censored", "text"),
    [
        ([1.0, 1.0, 0.96, 0.5], {}, 2, 2, False, "2"),
        ([1.0, 0.5, 0.4, 0.3], {}, 0, 0, False, "0"),
        ([1.0, 1.0, 1.0, 1.0], {}, 3, 3, True, "3+"),
        ([1.0, 0.95, 0.94, 0.94], {}, 1, 1, False, "1"),  # exactly at the threshold passes
        (PIZZA, {}, 0, 0, False, "0"),
        (PIZZA, {"rule": "hull"}, 2, 2, False, "2"),
        ([1.0, 0.5, 1.0], {"rule": "hull"}, 2, 2, True, "2+"),
        ([0.8, 0.77, 0.7], {}, 1, 1, False, "1"),
        ([0.96, 0.955, 0.7], {"scale": "absolute"}, 1, 1, False, "1"),
        ([0.8, 0.77, 0.7], {"tau": 0.75, "scale": "absolute"}, 1, 1, False, "1"),
        ([1.0, 0.9, 0.6], {"tau": 0.5}, 2, 2, True, "2+"),
    ],
)
def test_k_at(values, kwargs, k, upper, censored, text) -> None:
    found = curve(values).k_at(**{"tau": 0.95, **kwargs})
    assert (int(found), found.upper, found.censored, str(found), repr(found)) == (k, upper, censored, text, text)


def test_k_at_is_none_where_the_clean_value_is_below() -> None:
    assert curve([0.9, 0.9]).k_at(0.95, scale="absolute") is None
    assert curve([0.9, 0.99]).k_at(0.95, rule="hull", scale="absolute") is None
    assert "None" not in str(curve([0.9, 0.9]).k_at(0.95))


def test_a_share_of_a_clean_value_that_is_not_positive_means_nothing(model, prompts) -> None:
    """KL is 0 on the clean run: "at least 95 % of 0" would call every edit harmless."""
    assert curve([0.0, 2.0, 3.0]).k_at(0.95) is None
    assert curve([-1.0, -2.0]).k_at(0.95, run="edited") is None
    assert curve([-1.0, -2.0]).k_at(-1.5, scale="absolute") == 0
    measured = removal_curve(model, prompts, S, kl(), at=LAST, controls={})
    assert measured.values[-1] > 0.1
    with pytest.raises(ValueError, match="k_at counts directions until a metric falls, and kl rises with damage"):
        measured.k_at(0.95)


def test_a_metric_that_rises_with_damage_has_no_k(model, prompts, answers) -> None:
    """Of a cross-entropy of 1, 2, 3 the "95 % that are left" would be all of them: nothing would ever fail."""
    measured = removal_curve(model, prompts, S, cross_entropy(answers), at=LAST, draws=1)
    assert measured.better == "lower"
    for ask in (measured.k_at, measured.k_kill):
        with pytest.raises(
            ValueError, match=r"cross_entropy rises with damage\. Measure the curve of accuracy or logit_"
        ):
            ask(0.95)
    ends = f"{measured.clean:.3g} to edited {float(measured.values[-1]):.3g}, covariance "
    assert f"k 0-4: {ends}" in repr(measured)
    figure = measured.plot()
    assert not [t for t in figure.data if "k@" in t.name]
    assert "ring" not in figure.layout.legend.title.text
    assert not figure.layout.shapes


def test_gaps_in_ks_are_not_filled_in() -> None:
    c = curve([1.0, 1.0, 0.2, 0.1], ks=[0, 4, 10, 20])
    found = c.k_at(0.95)
    assert (int(found), found.upper, str(found)) == (4, 9, "4-9")
    assert str(curve([1.0, 0.2], ks=[0, 8]).k_at(0.95)) == "0-7"
    assert str(curve([1.0, 1.0], ks=[0, 8]).k_at(0.95)) == "8+"
    planes = curve([1.0, 1.0, 0.2], ks=[0, 2, 4]).k_at(0.95)
    assert str(planes) == "2-3"


def test_k_at_of_a_control_follows_the_mean_of_its_draws_against_the_same_clean_value() -> None:
    c = curve([1.0, 0.2, 0.1], covariance=[[1.0, 1.0, 0.3], [1.0, 0.92, 0.3]])
    assert c.k_at(0.95, run="covariance") == 1
    assert c.k_at(0.97, run="covariance") == 0
    assert c.k_at(0.95) == 0


def test_k_at_refuses_unknown_rules_and_runs() -> None:
    c = curve([1.0, 0.5], pca=[[1.0, 0.2]])
    with pytest.raises(ValueError, match="rule='last' is 'first' or 'hull'"):
        c.k_at(0.95, rule="last")
    with pytest.raises(ValueError, match="scale='log' is 'relative' or 'absolute'"):
        c.k_at(0.95, scale="log")
    with pytest.raises(KeyError, match=r"The curve has no run 'random'; it has 'edited' and \['pca'\]"):
        c.k_at(0.95, run="random")


@pytest.mark.parametrize(
    ("values", "kwargs", "k", "lower", "censored", "text"),
    [
        ([1.0, 0.5, 0.05, 0.01], {}, 2, 2, False, "2"),  # exactly at the threshold counts
        ([1.0, 0.5, 0.2, 0.1], {}, 3, 3, True, ">3"),
        ([1.0, 0.02, 0.3, 0.01], {}, 1, 1, False, "1"),
        ([1.0, 0.02, 0.3, 0.01], {"rule": "hull"}, 3, 3, False, "3"),
        ([1.0, 0.02, 0.3, 0.3], {"rule": "hull"}, 3, 3, True, ">3"),
        ([1.0, 0.02, 0.0, 0.01], {"rule": "hull"}, 1, 1, False, "1"),
        ([0.3, 0.2, 0.1, 0.09], {"tau": 0.1}, 2, 2, False, "2"),
    ],
)
def test_k_kill(values, kwargs, k, lower, censored, text) -> None:
    found = curve(values).k_kill(**kwargs)
    assert (int(found), found.lower, found.censored, str(found), repr(found)) == (k, lower, censored, text, text)


def test_k_kill_with_gaps_with_controls_and_where_nothing_is_left_to_kill() -> None:
    gaps = curve([1.0, 0.9, 0.01], ks=[0, 4, 10], pca=[[1.0, 0.02, 0.2]])
    assert (str(gaps.k_kill()), gaps.k_kill().lower) == ("5-10", 5)
    assert str(gaps.k_kill(run="pca")) == "1-4"
    assert gaps.k_kill(run="pca", rule="hull").censored
    assert curve([0.05, 0.0]).k_kill() is None
    with pytest.raises(ValueError, match="rule='last' is 'first' or 'hull'"):
        gaps.k_kill(rule="last")
    with pytest.raises(KeyError, match="The curve has no run 'random'"):
        gaps.k_kill(run="random")
    for twin in (copy.deepcopy(gaps.k_kill()), pickle.loads(pickle.dumps(gaps.k_kill()))):
        assert (twin + 1, twin.lower, twin.censored) == (11, 5, False)


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=9), tau=st.floats(0.01, 0.9))
def test_k_kill_is_the_first_or_the_last_crossing(values: list[float], tau: float) -> None:
    c = curve([1.0, *values])
    first, hull = c.k_kill(tau), c.k_kill(tau, rule="hull")
    assert int(first) <= int(hull)
    if not first.censored:
        assert c.values[int(first)] <= tau < c.values[: int(first)].min()
    if not hull.censored:
        assert (c.values[int(hull) :] <= tau).all()
        assert c.values[int(hull) - 1] > tau


def test_survived_is_an_int_that_travels() -> None:
    found = Survived(4, 9, False)
    assert found + 1 == 5
    assert f"{found}" == "4-9"
    assert json.dumps({"k": found}) == '{"k": 4}'
    for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (int(twin), twin.upper, twin.censored) == (4, 9, False)


def test_a_curves_repr_says_what_was_removed_and_beside_what() -> None:
    text = repr(curve([1.0, 0.96, 0.2], pca=[[1.0, 0.2, 0.1]]))
    assert text == "Curve(accuracy, zero, blocks.1.hook_resid_post, k 0-2: k@95% 1, k@50% 1; k@95% of pca 0)"
    assert "no control" in repr(curve([1.0, 0.2]))
    assert curve([0.7, 0.2]).clean == 0.7


# Site by site


@pytest.mark.compat
def test_effects_by_site_are_the_effects_of_each_site(model, prompts, answers) -> None:
    metric = logit_diff(answers, (answers + 1) % 11)
    found = effect_by_site(model, prompts, Ablate(S), "resid_post", metric, draws=2)
    assert list(found) == [FIRST, LAST]
    for name in found:
        alone = effect(model, prompts, Ablate(S).at(name, pos=-1), metric, draws=2)
        assert torch.equal(found[name].edited, alone.edited)
        assert torch.equal(found[name].controls["covariance"], alone.controls["covariance"])
    rows = found.table()
    assert [row["site"] for row in rows] == [FIRST, LAST]
    assert rows[0]["edited"] == pytest.approx(float(found[FIRST].edited.mean()))
    assert rows[0]["covariance"]["draws"] == 2
    assert rows[1]["variance_removed"] == found[LAST].variance_removed["edited"]
    assert repr(found).startswith("Effects(logit_diff, 2 sites: clean ")
    assert ("covariance" in repr(found), "no control" in repr(found)) == (True, False)


def test_one_direction_a_layer(model, prompts, answers) -> None:
    each = {FIRST: Ablate(S), LAST: Ablate(Subspace.random(16, 2, seed=5))}
    found = effect_by_site(model, prompts, each, None, accuracy(answers), controls={})
    assert torch.equal(
        found[LAST].edited, effect(model, prompts, each[LAST].at(LAST, pos=-1), accuracy(answers)).edited
    )
    assert "no control" in repr(found)
    assert list(effect_by_site(model, prompts, each, LAST, accuracy(answers), controls={})) == [LAST]
    with pytest.raises(ValueError, match=r"The mapping has no intervention for \['hook_embed'\]; it has \['blocks"):
        effect_by_site(model, prompts, each, "hook_embed", accuracy(answers))
    with pytest.raises(ValueError, match="One intervention needs names: the sites to try, such as 'resid_post'"):
        effect_by_site(model, prompts, Ablate(S), None, accuracy(answers))
    with pytest.raises(KeyError, match=r"No effect was measured at 'blocks\.2\.hook_resid_post'\. Nearest names"):
        found["blocks.2.hook_resid_post"]


def test_the_figure_by_site_holds_the_means_and_bands(model, prompts, answers) -> None:
    found = effect_by_site(model, prompts, Ablate(S), "resid_post", cross_entropy(answers), draws=3)
    figure = found.plot("A title")
    lines = {trace.name: trace for trace in figure.data}
    assert list(lines["edited"].x) == ["0", "1"]
    assert figure.layout.xaxis.title.text == "layer, hook_resid_post"
    assert list(figures.by_site({FIRST: found[FIRST], "hook_embed": found[LAST]}).data[0].x) == [FIRST, "hook_embed"]
    assert list(lines["edited"].y) == pytest.approx([float(found[s].edited.mean()) for s in found])
    draws = found[LAST].controls["covariance"].mean(1)
    assert lines["covariance, highest"].y[1] == pytest.approx(float(draws.max()))
    assert lines["covariance, lowest"].y[1] == pytest.approx(float(draws.min()))
    mixed = {"a": found[LAST], "b": effect(model, prompts, Ablate(S).at(LAST), accuracy(answers), controls={})}
    with pytest.raises(ValueError, match="by_site draws one metric with the same controls at each site; there are 2"):
        figures.by_site(mixed)


# The noise floor


def test_a_kl_stands_beside_what_rounding_alone_makes(prompts) -> None:
    model = tiny(dtype=torch.bfloat16)
    found = effect(model, prompts, Ablate(S).at(FIRST, pos=-1), kl(), draws=1)
    assert 1e-7 < found.floor < 1e-2
    assert found.table()[-1] == {"run": "rounding of the logits", "mean": found.floor}
    assert f"; rounding alone makes {found.floor:.1e})" in repr(found)
    precise = effect(tiny(), prompts, Ablate(S).at(FIRST, pos=-1), kl(), draws=1)
    assert precise.floor < 1e-12
    assert effect(tiny(), prompts, Ablate(S).at(FIRST), accuracy(prompts[:, 0]), controls={}).floor is None


# Whole sequences


@pytest.mark.compat
def test_the_loss_over_whole_prompts_is_the_models_own(model, prompts) -> None:
    found = effect(model, prompts, Ablate(S).at(FIRST), next_token_loss(prompts), controls={}, batch_size=7)
    x = logits_with(model, prompts)
    wanted = torch.nn.functional.cross_entropy(x[:, :-1].transpose(1, 2), prompts[:, 1:], reduction="none").mean(1)
    assert torch.allclose(found.clean, wanted, atol=1e-10)
    edited = logits_with(model, prompts, Ablate(S).at(FIRST))
    wanted = torch.nn.functional.cross_entropy(edited[:, :-1].transpose(1, 2), prompts[:, 1:], reduction="none").mean(1)
    assert torch.allclose(found.edited, wanted, atol=1e-10)


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_neither_predicted_nor_predicted_from(model, left: bool) -> None:
    rows, longest = [[1, 2, 3, 4, 5], [6, 7, 8]], 5
    tokens, mask = torch.full((2, longest), 9), torch.zeros(2, longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        tokens[i, where], mask[i, where] = torch.tensor(row), 1
    found = effect(model, tokens, Ablate(S).at(FIRST), next_token_loss(tokens, mask), controls={}, attention_mask=mask)
    for i, row in enumerate(rows):
        x = logits_with(model, torch.tensor([row]))[0]
        alone = torch.nn.functional.cross_entropy(x[:-1], torch.tensor(row[1:]))
        if has_hooked_transformer() or not left:
            assert float(found.clean[i]) == pytest.approx(float(alone), abs=1e-10)
    with pytest.raises(ValueError, match=r"Prompts \[1\] have fewer than two real tokens: there is no next token to"):
        next_token_loss(tokens, torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0]]))
    with pytest.raises(ValueError, match="next_token_loss knows 5 tokens a prompt; the logits have 4"):
        effect(model, tokens[:, :4], Ablate(S).at(FIRST), next_token_loss(tokens), controls={})


# What cannot be run


def test_prompts_that_the_model_has_no_positions_for(model) -> None:
    long = torch.zeros(2, 13, dtype=torch.int64)
    for call in (
        lambda: collect(model, long, FIRST),
        lambda: effect(model, long, Ablate(S).at(FIRST), accuracy(long[:, 0])),
    ):
        with pytest.raises(
            ValueError, match=r"The prompts have 13 tokens; the model has positions for 12\. Shorten them"
        ):
            call()
    if has_hooked_transformer():
        alibi = family("alibi")
        assert collect(alibi, long[:, :12], FIRST)[FIRST].shape == (2, 16)


def test_lists_of_tokens_are_refused_in_words(unchecked, model) -> None:
    for call in (
        lambda: collect(model, [[1, 2], [3, 4]], FIRST),
        lambda: effect(model, [[1, 2], [3, 4]], Ablate(S).at(FIRST), accuracy(torch.zeros(2).long())),
    ):
        with pytest.raises(
            ValueError, match=r"tokens are a list: a tensor \[n, pos\] is needed\. torch\.tensor\(rows\)"
        ):
            call()


def test_a_metric_at_a_position_that_is_not_there(model, prompts, answers) -> None:
    for pos in (5, -6):
        with pytest.raises(IndexError, match=rf"accuracy\(pos={pos}\): the logits have 5 positions, so -5 to 4"):
            effect(model, prompts, Ablate(S).at(FIRST), accuracy(answers, pos=pos), controls={})


def test_an_answer_that_is_no_token_is_refused(model, prompts, answers) -> None:
    """An accuracy of 0 would say that the model never gets it right."""
    wrong = answers.clone()
    wrong[3] = 11
    for metric in (accuracy(wrong), cross_entropy(wrong), logit_diff(answers, wrong), logit_diff(-wrong, answers)):
        with pytest.raises(ValueError, match=r"An answer is token -?\d+, but the logits are of 11 tokens, 0 to 10"):
            effect(model, prompts, Ablate(S).at(FIRST), metric, controls={})


# Intervals


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.30849710781876),
        (5, 10, 0.18708602844739, 0.81291397155261),
        (10, 10, 0.69150289218124, 1.0),
        (95, 100, 0.88716533, 0.98356812),
    ],
)
def test_clopper_pearson_known_values(successes: int, n: int, low: float, high: float) -> None:
    values = torch.cat([torch.ones(successes), torch.zeros(n - successes)])
    found = interval(values)
    assert found == pytest.approx((low, high), abs=1e-6)
    assert interval(values.tolist()) == found
    wide = interval(values, level=0.99)
    assert wide[0] <= found[0]
    assert wide[1] >= found[1]


def test_clopper_pearson_ends_are_where_the_tails_are_a_fortieth() -> None:
    from scipy.stats import binom

    low, high = interval([1.0] * 7 + [0.0] * 13)
    assert binom.sf(6, 20, low) == pytest.approx(0.025, abs=1e-9)
    assert binom.cdf(7, 20, high) == pytest.approx(0.025, abs=1e-9)


def test_the_bootstrap_covers_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        low, high = interval(draw(40, seed=seed) + 3, seed=seed)
        covered += low < 3 < high
    assert 50 <= covered <= 60
    assert interval(draw(40), seed=1) == interval(draw(40), seed=1)
    low, high = interval(draw(400))
    assert high - low == pytest.approx(2 * 1.96 * float(draw(400).std()) / 20, rel=0.1)


def test_a_mean_of_equal_values_has_no_spread() -> None:
    assert interval([0.0, 1.0])[0] == pytest.approx(1 - 0.975**0.5, abs=1e-9)
    assert interval([0.3, 0.3, 0.3]) == (0.3, 0.3)
    with pytest.raises(ValueError, match="An interval needs at least two values; these have shape"):
        interval([0.3])


# From a layer on


@pytest.mark.parametrize("left", [None, True, False])
@pytest.mark.parametrize("name", sorted(METRICS))
def test_from_a_layer_on_gives_the_scores_of_a_whole_pass(model, prompts, answers, name: str, left) -> None:
    if not has_hooked_transformer():
        pytest.skip("a bridge has no way to start at a block")
    mask = None
    if left is not None:
        mask = torch.ones_like(prompts)
        mask[::3, : (2 if left else 0)] = 0
        mask[::3, 5 if left else 3 :] = 0
    metric, options = METRICS[name](answers), {"attention_mask": mask, "batch_size": 7}
    upper = from_layer(model, prompts, 1, metric, **options)
    whole = replay(model, prompts, [], metric, **options)
    assert upper.kind == "from layer 1"
    reference = [x for _, x in whole.logits([])]
    for hooks in (Ablate(S).at("blocks.1.hook_resid_pre", pos=1), Ablate(None).at("blocks.1.attn.hook_z", head=1)):
        wanted = whole.score(hooks, metric, reference)
        assert torch.allclose(upper.score(hooks, metric, reference), wanted, atol=1e-10)
        assert not torch.allclose(wanted, whole.score([], metric, reference)) or name == "accuracy"


def test_a_start_that_would_change_the_result_is_not_taken(prompts, answers) -> None:
    assert from_layer(tiny(), prompts, 0, kl()) is None, "nothing is below the first block"
    if not has_hooked_transformer():
        return
    halved = tiny()
    halved.add_hook("blocks.1.hook_resid_pre", lambda x, hook: 0.5 * x, is_permanent=True)
    assert from_layer(halved, prompts, 1, accuracy(answers)) is None, "the permanent hook would act twice"
    if has_bridge():
        bridge = gpt2_bridge()
        assert from_layer(bridge, prompts, 1, kl()) is None


def test_a_start_sees_the_padding_that_the_model_masks_itself() -> None:
    if not has_hooked_transformer():
        pytest.skip("a bridge derives no mask from tokens")
    model, metric = tiny(vocab=60), refusal_score(torch.tensor([0]))
    model.tokenizer = word_tokenizer(60)
    model.tokenizer.padding_side = "left"
    prompts, hooks = 2 + tokens_for(model, 6) % 58, Ablate(S).at("blocks.1.hook_resid_pre")
    prompts[3:, :2] = 1
    upper = from_layer(model, prompts, 1, metric, batch_size=3)
    assert torch.allclose(upper.score(hooks, metric), whole_scores(model, prompts, hooks, metric), atol=1e-10)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_can_start_at_a_layer_or_does_not(name: str) -> None:
    if not has_hooked_transformer():
        pytest.skip("the families are HookedTransformers")
    model = family(name)
    prompts, metric = tokens_for(model, 9, 5), logit_diff(torch.zeros(9).long(), torch.ones(9).long())
    upper = from_layer(model, prompts, 1, metric)
    hooks = Ablate(S).at("blocks.1.hook_resid_pre", pos=2)
    if upper is not None:
        assert torch.allclose(upper.score(hooks, metric), whole_scores(model, prompts, hooks, metric), atol=1e-10)
    assert (upper is None) == (name == "shortformer")


# Regressions of a review


def test_resampling_leaves_no_prompt_its_own_activation() -> None:
    for n in (2, 3, 4, 8, 50):
        for seed in range(20):
            order = another_row(n, seed)
            assert sorted(order.tolist()) == list(range(n))
            assert not bool((order == torch.arange(n)).any()), (n, seed)
    with pytest.raises(ValueError, match="takes activations from another prompt, and there is one prompt only"):
        another_row(1, 0)


def test_resampling_does_not_write_padding_into_real_tokens(model, prompts, answers) -> None:
    mask = torch.ones_like(prompts)
    mask[0, :2] = 0
    with pytest.raises(ValueError, match="would write padding into real tokens: the prompts have different lengths"):
        removal_curve(
            model,
            prompts,
            S,
            accuracy(answers),
            at=FIRST,
            pos=None,
            ablation="resample",
            controls={},
            attention_mask=mask,
        )


def test_kl_keeps_the_clean_logits_of_its_position_alone(model, prompts) -> None:
    from mi_ablate.effects import clean_logits
    from mi_ablate.replay import replay

    runs = replay(model, prompts, Ablate(S).at(FIRST), kl(pos=1), batch_size=5)
    kept = clean_logits(runs, kl(pos=1))
    assert kept is not None
    assert {x.shape[1] for x in kept} == {1}
    found = effect(model, prompts, Ablate(S).at(FIRST), kl(pos=1), controls={}, batch_size=5)
    before, after = logits_with(model, prompts)[:, 1], logits_with(model, prompts, Ablate(S).at(FIRST))[:, 1]
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    assert torch.allclose(found.edited, (p.exp() * (p - q)).sum(-1), atol=1e-12)


def test_one_vector_has_no_default_controls_and_the_way_out_is_named(model, prompts, answers) -> None:
    hooks, metric = Ablate(S).at(FIRST, pos=-1), accuracy(answers[:1])
    with pytest.raises(ValueError, match=r"needs two or more vectors; 1 is edited\. Give more prompts, or controls="):
        effect(model, prompts[:1], hooks, metric)
    with pytest.raises(ValueError, match="needs two or more vectors; 1 is edited"):
        removal_curve(model, prompts[:1], S, metric, at=FIRST)
    assert effect(model, prompts[:1], hooks, metric, controls={}).clean.shape == (1,)


def test_k_kill_is_for_rates_and_a_share_of_log_odds_means_nothing(model, prompts, answers) -> None:
    given = {"at": FIRST, "controls": {}, "ks": [1, 2]}
    tokens = torch.tensor([1, 2])
    odds = removal_curve(model, prompts, S, refusal_score(tokens), **given)
    assert "k@95%" not in repr(odds), "a share of log-odds means nothing in the repr either"
    with pytest.raises(ValueError, match=r"k_kill asks when a rate is at most 0\.05, and refusal_score is a log-odds"):
        odds.k_kill()
    with pytest.raises(ValueError, match="A share of refusal_score means nothing: it is 0 at 50 %"):
        odds.k_at(0.95)
    assert odds.k_at(-100, scale="absolute") == 2
    rate = removal_curve(model, prompts, S, refusal_rate(tokens), **given)
    assert torch.allclose(torch.sigmoid(odds.values[0]), rate.values[0], atol=0.2)
    assert rate.k_kill(1e-9).censored
    difference = removal_curve(model, prompts, S, logit_diff(answers, (answers + 1) % 11), **given)
    with pytest.raises(ValueError, match="and logit_diff is a difference"):
        difference.k_kill()

    def share(x: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        return (x[:, -1].argmax(-1) == answers[rows]).double()

    assert removal_curve(model, prompts, S, share, **given).kind == "rate"


def test_values_that_are_not_finite_have_no_interval() -> None:
    with pytest.raises(ValueError, match="1 of the 3 values are NaN or infinite: they have no interval"):
        interval([0.5, float("nan"), 1.0])


def test_masked_attention_scores_can_be_collected(model, prompts) -> None:
    name = "blocks.0.attn.hook_attn_scores"
    scores = mi.collect(model, prompts, name, pos=None)[name]
    assert bool((scores == float("-inf")).any() | (scores < -1e4).any())
