"""Effects of components: slow definitions by bare hooks, identities that hold exactly, and where they must not hold."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_ablate.arithmetic.circuit.circuits import smallest_sets
from mi_ablate.arithmetic.circuit.components import component_effects, joint_effect
from mi_ablate.arithmetic.circuit.direct import direct_effects, readout
from mi_ablate.arithmetic.circuit.parts import Component, components_of
from mi_ablate.arithmetic.problem_sets.pairing import Pairs, pairs
from mi_ablate.metrics import logit_diff
from mi_ablate.model import collect
from models import (
    family,
    family_bridge,
    has_bridge,
    has_hooked_transformer,
    logits_with,
    random_state,
    tiny,
    tokens_for,
)
from number_parts import sums

ALL = ["heads", "mlps"]


@pytest.fixture(scope="module")
def some() -> Pairs:
    return pairs(sums(), 8)


class Slow:
    """The definitions by bare hooks on whole passes."""

    def __init__(self, model: Any, given: Pairs) -> None:
        self.model, self.given = model, given
        with torch.no_grad():
            self.clean, self.corrupted = (model.run_with_cache(x.tokens)[1] for x in (given.clean, given.corrupted))
        self.plain = self.picked([])

    def picked(self, hooks: Any) -> Tensor:
        logits = logits_with(self.model, self.given.corrupted.tokens, hooks)[:, -1]
        return logits.gather(1, self.given.clean.answers[:, None])[:, 0].double()

    def total(self, c: Component) -> Tensor:
        def write(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            where = (slice(None), -1) if c.head is None else (slice(None), -1, c.head)
            x[where] = self.clean[c.site][where]
            return x

        return self.picked([(c.site, write)]) - self.plain

    def direct(self, c: Component, frozen: bool = False) -> Tensor:
        """The difference of the two runs' writes, added at the last residual stream."""
        change = self.clean[c.site][:, -1] - self.corrupted[c.site][:, -1]
        if c.head is not None:
            change = change[:, c.head] @ self.model.blocks[c.layer].attn.W_O[c.head]

        def add(x: Tensor, hook: Any) -> Tensor:
            return torch.cat([x[:, :-1], x[:, -1:] + change[:, None]], dim=1)

        hooks: list[Any] = [(f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post", add)]
        if frozen:
            hooks.append(("ln_final.hook_scale", lambda x, hook: self.corrupted["ln_final.hook_scale"]))
        return self.picked(hooks) - self.plain


def agrees(model: Any, given: Pairs, what: Any = ALL, tolerance: float = 1e-10) -> None:
    live, frozen = (component_effects(model, given, what, norm=norm, draws=0) for norm in ("live", "frozen"))
    assert (live.norm, frozen.norm) == ("live", "frozen")
    slow = Slow(model, given)
    for i, c in enumerate(live.components):
        assert torch.allclose(live.total[i], slow.total(c), atol=tolerance), c
        assert torch.allclose(live.direct[i], slow.direct(c), atol=tolerance), c
        if model.cfg.normalization_type is not None:
            assert torch.allclose(frozen.direct[i], slow.direct(c, frozen=True), atol=tolerance), c
    assert torch.equal(live.total, frozen.total)
    assert torch.equal(live.indirect, live.total - live.direct)
    assert live.direct.abs().max() > 1e-3


@pytest.mark.compat
def test_effects_equal_their_slow_definitions(model, some) -> None:
    agrees(model, some, [*ALL, "attention"])


@pytest.mark.compat
@pytest.mark.parametrize("norm", [None, "LNPre", "RMSPre"])
def test_effects_equal_their_slow_definitions_with_other_final_norms(norm: str | None, some) -> None:
    agrees(tiny(norm=norm), some)


def test_effects_in_float32_equal_their_slow_definitions_to_1e_4(some) -> None:
    agrees(tiny(dtype=torch.float32), some, tolerance=1e-4)


@pytest.mark.skipif(not has_hooked_transformer(), reason="families are HookedTransformers")
@pytest.mark.parametrize("kind", ["parallel", "rotary", "gated MLP, grouped heads"])
def test_effects_in_other_architectures_equal_their_slow_definitions(kind: str, some) -> None:
    agrees(family(kind), some)


@pytest.mark.skipif(not has_hooked_transformer(), reason="families are HookedTransformers")
def test_a_model_of_attention_alone_has_heads_and_no_mlps(some) -> None:
    model = family("attention only")
    agrees(model, some, "heads")
    with pytest.raises(KeyError, match="it is of attention alone"):
        component_effects(model, some, "mlps")


@pytest.mark.compat
@pytest.mark.skipif(not has_bridge(), reason="no TransformerBridge in this version")
@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale")  # by the slow definition
@pytest.mark.parametrize("kind", ["neox", "llama"])
def test_effects_on_bridges_equal_their_slow_definitions(kind: str) -> None:
    agrees(family_bridge(kind), pairs(sums(60), 6), tolerance=1e-4)


@pytest.mark.skipif(not has_bridge(), reason="no TransformerBridge in this version")
def test_heads_with_a_norm_behind_them_are_refused_and_layers_are_not() -> None:
    model, given = family_bridge("gemma2"), pairs(sums(60), 6)
    with pytest.raises(ValueError, match="not the sum of z W_O over its heads"):
        component_effects(model, given, "heads")
    assert joint_effect(model, given, "heads").abs().max() > 1e-3


def test_a_stream_that_grows_by_something_else_is_refused(some) -> None:
    model = tiny()
    handle = model.blocks[0].hook_resid_post
    handle.add_perma_hook(lambda x, hook: 1.5 * x)
    with pytest.raises(ValueError, match="residual stream does not grow by hook_attn_out and hook_mlp_out"):
        component_effects(model, some)
    assert joint_effect(model, some, "heads").shape == (8,)


def test_logits_that_the_readout_does_not_make_are_refused(some) -> None:
    model = tiny()
    model.unembed.register_forward_hook(lambda module, inputs, out: out.cos() if len(out[0]) > 1 else out)
    with pytest.raises(ValueError, match="not those of ln_final and unembed"):
        component_effects(model, some)


def anything(n: int = 8) -> Pairs:
    """Pairs whose last tokens differ too, so that the embedding has a part of its own."""
    given = pairs(sums(), n)
    first, second = tokens_for(tiny(), n, 4), tokens_for(tiny(), n, 4, seed=1)
    return Pairs(replace(given.clean, tokens=first), replace(given.corrupted, tokens=second))


def test_frozen_direct_effects_add_up_to_the_last_residual_without_the_embeddings_part(model) -> None:
    given = anything()
    last = "blocks.1.hook_resid_post"
    clean, corrupted = (collect(model, x.tokens, [last, "hook_embed"]) for x in (given.clean, given.corrupted))
    change = [clean[name] - corrupted[name] for name in (last, "hook_embed")]
    reader = readout(model, given.corrupted.tokens, corrupted[last])
    for norm, exact in (("frozen", True), ("live", False)):
        parts = component_effects(model, given, ALL, norm=norm, draws=0).direct.sum(0)
        whole, embedding = direct_effects(reader, corrupted[last], iter(change), given.clean.answers, norm)
        assert torch.allclose(parts, whole - embedding, atol=1e-10) is exact
        assert embedding.abs().max() > 0.01
    assert torch.allclose(whole, component_effects(model, given, draws=0).gap, atol=1e-10)  # the whole is the clean run


def test_the_total_effect_of_the_last_mlp_is_its_live_direct_effect_alone(model, some) -> None:
    for norm, same in (("live", True), ("frozen", False)):
        found = component_effects(model, some, ["MLP 0", "MLP 1"], norm=norm)
        assert torch.allclose(found.of("MLP 1"), found.of("MLP 1", "direct"), atol=1e-12) is same
        assert not torch.allclose(found.of("MLP 0"), found.of("MLP 0", "direct"), atol=1e-3)


def test_what_the_unembedding_cannot_read_has_no_direct_effect(some) -> None:
    """The last MLP writes into the null space of centring, norm weights and W_U; the live norm still notices its size."""
    state = random_state(2, 16, 2, 24, 12, 11, "LN", 0)
    centred = state["ln_final.w"][:, None] * state["unembed.W_U"]
    centred = centred - centred.mean(0)
    left = torch.linalg.svd(centred, full_matrices=True).U[:, 11:]
    written = state["blocks.1.mlp.W_out"] @ left @ left.T
    model = tiny(weights={"blocks.1.mlp.W_out": written})
    frozen, live = (component_effects(model, some, "MLP 1", norm=norm) for norm in ("frozen", "live"))
    assert frozen.direct.abs().max() < 1e-12
    assert live.direct.abs().max() > 1e-5
    before = component_effects(tiny(), some, "MLP 1", norm="frozen")
    assert before.direct.abs().max() > 1e-2


def test_all_heads_of_a_layer_together_are_its_attention(model, some) -> None:
    for layer in range(2):
        heads = joint_effect(model, some, [f"L{layer}H0", f"L{layer}H1"])
        assert torch.allclose(heads, component_effects(model, some, f"attention {layer}").total[0], atol=1e-12)
        assert torch.allclose(heads, joint_effect(model, some, f"blocks.{layer}.attn.hook_z"), atol=1e-12)
    everything = joint_effect(model, some, [*ALL])
    assert torch.allclose(everything, component_effects(model, some).gap, atol=1e-10)  # the last tokens are the same


def test_other_vectors_take_the_place_of_the_clean_ones(model, some) -> None:
    names = [f"blocks.{i}.{x}" for i in range(2) for x in ("attn.hook_z", "hook_mlp_out")]
    clean, corrupted = (collect(model, x.tokens, names) for x in (some.clean, some.corrupted))
    found = component_effects(model, some, ALL, draws=0)
    same = component_effects(model, some, ALL, draws=0, written=clean)
    assert torch.equal(found.total, same.total)
    assert torch.allclose(found.direct, same.direct)
    assert (found.written, same.written) == ("clean", "other")
    nothing = component_effects(model, some, ALL, draws=0, written=corrupted)
    assert max(nothing.total.abs().max(), nothing.direct.abs().max()) < 1e-12
    half = {name: (clean[name] + corrupted[name]) / 2 for name in names}
    frozen, part = (
        component_effects(model, some, ALL, draws=0, norm="frozen", written=w).direct for w in (clean, half)
    )
    assert torch.allclose(part, frozen / 2, atol=1e-12)
    assert "other vectors" in repr(same)
    with pytest.raises(KeyError, match="written has no vectors for"):
        component_effects(model, some, written={names[0]: clean[names[0]]})
    with pytest.raises(ValueError, match="is needed"):
        component_effects(model, some, "MLP 0", written={names[1]: clean[names[1]][:3]})


def test_batches_and_another_metric_change_nothing(model, some) -> None:
    metric = logit_diff(some.clean.answers, some.corrupted.answers)
    some_of = ["L0H1", "MLP 1"]
    for given in ({}, {"metric": metric}):
        whole = component_effects(model, some, some_of, draws=0, **given)
        parts = component_effects(model, some, some_of, draws=0, batch_size=3, **given)
        assert torch.allclose(whole.total, parts.total, atol=1e-12)
        assert torch.allclose(whole.direct, parts.direct, atol=1e-12)
        assert torch.allclose(whole.gap, parts.gap, atol=1e-12)
    before = metric(logits_with(model, some.corrupted.tokens), None, torch.arange(8)).double()
    after = metric(logits_with(model, some.clean.tokens), None, torch.arange(8)).double()
    assert torch.allclose(whole.gap, after - before)
    # two tokens of one run: the gain of one minus the gain of the other
    swapped = component_effects(model, some, some_of, draws=0, norm="frozen", metric=metric).direct
    first = component_effects(model, some, some_of, draws=0, norm="frozen").direct
    second = component_effects(
        model,
        Pairs(replace(some.clean, answers=some.corrupted.answers), some.corrupted),
        some_of,
        draws=0,
        norm="frozen",
    )
    assert torch.allclose(swapped, first - second.direct, atol=1e-10)


def test_another_position_has_total_effects_and_no_direct_ones(model, some) -> None:
    found = component_effects(model, some, ["L0H0", "L1H0", "MLP 0"], pos=0, batch_size=3)
    slow = Slow(model, some)

    def write(x: Tensor, hook: Any) -> Tensor:
        return torch.cat([slow.clean["blocks.0.hook_mlp_out"][:, :1], x[:, 1:]], dim=1)

    wanted = slow.picked([("blocks.0.hook_mlp_out", write)]) - slow.plain
    assert torch.allclose(found.of("MLP 0"), wanted, atol=1e-12)
    assert found.pos == -4
    assert found.direct.abs().max() == 0
    assert found.of("L0H0").abs().max() > 1e-6
    assert found.of("L1H0").abs().max() < 1e-12  # nothing later reads it
    with pytest.raises(IndexError, match="out of range: the prompts have 4 tokens"):
        component_effects(model, some, pos=4)


def test_the_control_writes_another_pairs_output(model, some) -> None:
    """Where all clean prompts are the same, another pair's output is as good; otherwise it is not."""
    found = component_effects(model, some, "heads", draws=3)
    assert found.controls["another pair"].shape == (3, 4)
    assert not torch.allclose(found.controls["another pair"][0], found.total.mean(1), atol=1e-3)
    same = Pairs(some.clean[[0] * 8], some.corrupted)
    found = component_effects(model, same, "heads")
    assert torch.allclose(found.controls["another pair"][0], found.total.mean(1), atol=1e-12)
    assert component_effects(model, some, "heads", draws=0).controls == {}


def test_tables_and_sums(model, some) -> None:
    seen: list[tuple[int, int]] = []
    found = component_effects(model, some, ALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 12) for i in range(12)]
    rows = found.table()
    totals = [row["total"] for row in rows]
    assert totals == sorted(totals, reverse=True)
    assert [row["component"] for row in rows] == [c.name for c in found.ranked()]
    assert all(row["direct low"] <= row["direct"] <= row["direct high"] for row in rows)
    heads, mlps = found.summed()
    assert (heads["kind"], heads["components"], mlps["kind"]) == ("head", 4, "MLP")
    assert mlps["direct"] == pytest.approx(float(found.direct[4:].sum(0).mean()))
    assert "norm live" in repr(found)
    one = component_effects(model, some[:1], ALL)
    assert one.controls == {}
    assert all(row["total low"] != row["total low"] for row in one.table())  # no interval of one pair
    with pytest.raises(KeyError, match="No effect was measured of MLP 5"):
        found.of("MLP 5")
    with pytest.raises(ValueError, match="An effect is 'total', 'direct' or 'indirect'"):
        found.ranked("both")


def test_names_of_components(model) -> None:
    mixed = components_of(model, ["L1H0", "MLP 0", "attention 1", "blocks.0.attn.hook_z", "L1H0", Component(1, "MLP")])
    assert [c.name for c in mixed] == ["L1H0", "MLP 0", "attention 1", "L0H0", "L0H1", "MLP 1"]
    assert [c.site for c in mixed[:3]] == ["blocks.1.attn.hook_z", "blocks.0.hook_mlp_out", "blocks.1.hook_attn_out"]
    assert components_of(model, "blocks.1.hook_mlp_out") == (Component(1, "MLP"),)
    for wrong, error, text in (
        ("neurons", KeyError, "is no component"),
        ("L2H0", IndexError, "out of range: the model has 2 layers of 2 heads"),
        ("L0H2", IndexError, "out of range: the model has 2 layers"),
        ([], ValueError, "No component was asked for"),
    ):
        with pytest.raises(error, match=text):
            components_of(model, wrong)


def test_what_cannot_be_measured_is_refused(model, some) -> None:
    with pytest.raises(ValueError, match="are not pairs"):
        component_effects(model, Pairs(some.clean, some.corrupted[:3]))
    with pytest.raises(ValueError, match="Effects of components are measured at the last position"):
        component_effects(model, some, metric=logit_diff(some.clean.answers, some.corrupted.answers, pos=0))
    with pytest.raises(ValueError, match=r"'live' \(the final norm sees the change\) or 'frozen'"):
        component_effects(model, some, norm="warm")


# Circuits


def copying(sizes: list[float]) -> Any:
    """Heads that look everywhere alike and copy the tokens that they see to the logits, each with a size of its own."""
    heads = len(sizes)
    shape = {"n_layers": 1, "d_model": 12 * heads, "n_heads": heads, "d_mlp": 4, "n_ctx": 12, "vocab": 11, "norm": None}
    w = {name: torch.zeros_like(x) for name, x in random_state(**shape, seed=0).items()}
    d_head = 12
    w["embed.W_E"][:, :11] = torch.eye(11)
    for head, size in enumerate(sizes):
        w["blocks.0.attn.W_V"][head, :11, :11] = torch.eye(11, dtype=torch.float64)
        w["blocks.0.attn.W_O"][head, :11, d_head : d_head + 11] = size * torch.eye(11, dtype=torch.float64)
    w["unembed.W_U"][d_head : d_head + 11] = torch.eye(11, dtype=torch.float64)
    return tiny(**shape, weights=w)


@pytest.fixture(scope="module")
def told() -> Pairs:
    """Pairs of prompts whose answer is a, so that copying is right."""
    given = sums()
    return pairs(replace(given, answers=given.inputs["a"]), 10)


def test_smallest_sets_of_heads_whose_shares_are_known(told) -> None:
    model = copying([0.05, 0.5, 0.15, 0.3])
    found = smallest_sets(model, told, shares=(0.49, 0.7, 0.79, 0.9, 0.94, 0.99))
    assert found.searches == ("rank", "contiguous", "greedy", "pruned", "exhaustive")
    assert [c.name for c in found.components] == ["L0H1", "L0H3", "L0H2", "L0H0"]
    assert torch.allclose(found.shares_of_curve(), torch.tensor([0.5, 0.8, 0.95, 1.0]).double(), atol=1e-6)
    sizes = [len(chosen) for chosen in found.sets if chosen is not None]
    assert sizes == [1, 2, 2, 3, 3, 4]
    assert [c.name for c in found[0.79]] == ["L0H1", "L0H3"]
    rows = found.table()
    assert rows[2]["share"] == pytest.approx(0.8)
    assert rows[2]["random"] < 0.8
    none = smallest_sets(model, told, shares=(0.7,), draws=0).table()[0]
    assert (none["size"], none["random"] == none["random"]) == (2, False)  # NaN without a control, and no traceback
    assert rows[5]["random"] == pytest.approx(1.0)  # there is one set of all heads
    assert torch.allclose(found.whole, joint_effect(model, told, "heads"))
    assert found.tried <= 15
    with pytest.raises(KeyError, match="No set was asked for the share"):
        found[0.33]


def joined() -> Any:
    """Heads 1 and 3 of four copy a bit each; the MLP writes where both are there. Heads 0 and 2 are idle."""
    shape = {"n_layers": 1, "d_model": 16, "n_heads": 4, "d_mlp": 4, "n_ctx": 4, "vocab": 11, "norm": None}
    w = {name: torch.zeros_like(x) for name, x in random_state(**shape, seed=0).items()}
    w["embed.W_E"][1:, 0] = 1.0
    for head, pos in ((1, 0), (3, 2)):
        w["pos_embed.W_pos"][pos, 1 + head] = 1.0
        w["blocks.0.attn.W_K"][head, 1 + head, 0] = 1.0
        w["blocks.0.attn.b_Q"][head, 0] = 1000.0
        w["blocks.0.attn.W_V"][head, 0, 1] = 1.0
        w["blocks.0.attn.W_O"][head, 1, 8] = 1.0
    w["blocks.0.mlp.W_in"][8, 0], w["blocks.0.mlp.b_in"][0], w["blocks.0.mlp.W_out"][0, 9] = 1.0, -1.0, 1.0
    w["unembed.W_U"][9, :] = 1.0
    return tiny(**shape, act_fn="relu", weights=w)


def test_only_the_exhaustive_search_finds_two_heads_that_work_together_apart_from_each_other() -> None:
    given = sums()
    clean, corrupted = given[[6, 12, 18]], given[[0, 0, 0]]  # both operands set, and 0 + 0
    found = {}
    for search in ("rank", "contiguous", "exhaustive"):
        found[search] = smallest_sets(joined(), Pairs(clean, corrupted), shares=[0.9], search=search)
    assert [c.name for c in found["exhaustive"][0.9]] == ["L0H1", "L0H3"]
    assert [len(x[0.9]) for x in found.values()] == [4, 3, 2]
    assert found["exhaustive"].by == ("exhaustive",)
    assert found["contiguous"].alone.abs().max() < 1e-12
    greedy = smallest_sets(joined(), Pairs(clean, corrupted), shares=[0.9], search="greedy")
    assert len(greedy[0.9]) > 2


def test_shares_of_an_effect_within_its_noise_are_warned_of(model, some) -> None:
    with pytest.warns(UserWarning, match="components together move logit_gain by"):
        smallest_sets(model, some)


def test_searches_that_cannot_be_made_are_refused(model, told) -> None:
    with pytest.raises(ValueError, match="is one of rank, contiguous"):
        smallest_sets(model, told, search="all")
    with pytest.raises(ValueError, match="subsets, above the limit"):
        smallest_sets(model, told, search="exhaustive", limit=10)
    with pytest.raises(ValueError, match="lie above 0 and up to 1"):
        smallest_sets(model, told, shares=(0.5, 80))
    with pytest.raises(ValueError, match="there is no difference"):
        smallest_sets(copying([0.0, 0.0]), told)


def test_a_share_that_no_set_reaches_has_no_set(told) -> None:
    """Head 0 takes away what head 1 gives, so all of them together do less than one; the rank finds it at once."""
    found = smallest_sets(copying([-0.5, 1.0]), told, search="rank", shares=(0.7, 1.0))
    assert [len(x) for x in found.sets] == [1, 1]
    lost = smallest_sets(copying([-1.0, 0.9]), told, search="rank", shares=(0.5, 1.0))
    assert lost[1.0] is not None
    assert "SmallestSets(2 components" in repr(lost)
