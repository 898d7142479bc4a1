"""Path patching and the lens of components: brute force with bare hooks, and cases whose paths are known."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import mi_ablate.arithmetic as arithmetic
from mi_ablate.arithmetic.circuit.components import component_effects
from mi_ablate.arithmetic.circuit.lens import number_lens
from mi_ablate.arithmetic.circuit.parts import Component, components_of
from mi_ablate.arithmetic.circuit.paths import path_effects
from mi_ablate.arithmetic.problem_sets.pairing import Pairs, pairs
from mi_ablate.metrics import logit_diff
from models import family, has_hooked_transformer, logits_with, random_state, tiny
from number_parts import sums

ALL = ["heads", "mlps"]


@pytest.fixture(scope="module")
def some() -> Pairs:
    return pairs(sums(), 6)


def by_hand(model: Any, given: Pairs, sender: Component, receiver: Component) -> tuple[Tensor, Tensor]:
    """The effect of one path, and of the sender with everything later frozen, by bare hooks on whole passes."""
    with torch.no_grad():
        clean, corrupted = (model.run_with_cache(x.tokens)[1] for x in (given.clean, given.corrupted))
    where = {c: (slice(None), -1) if c.head is None else (slice(None), -1, c.head) for c in (sender, receiver)}
    seen: dict[str, Tensor] = {}

    def put(c: Component, values: Tensor) -> Any:
        def write(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            x[where[c]] = values[where[c]]
            return x

        return c.site, write

    def freeze(name: str) -> Any:
        def write(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            x[:, -1] = corrupted[name][:, -1]
            return x

        return name, write

    def record(x: Tensor, hook: Any) -> None:
        seen["x"] = x.clone()

    later = [f"blocks.{i}.hook_attn_out" for i in range(sender.layer + 1, model.cfg.n_layers)]
    first_mlp = sender.layer + (1 if sender.kind == "MLP" else 0)
    later += [f"blocks.{i}.hook_mlp_out" for i in range(first_mlp, model.cfg.n_layers)]
    hooks = [put(sender, clean[sender.site]), (receiver.site, record), *map(freeze, later)]
    base, frozen = (logits_with(model, given.corrupted.tokens, h)[:, -1] for h in ([], hooks))
    after = logits_with(model, given.corrupted.tokens, [put(receiver, seen["x"])])[:, -1]
    picked = given.clean.answers[:, None]
    return tuple((x.gather(1, picked) - base.gather(1, picked))[:, 0].double() for x in (after, frozen))  # type: ignore[return-value]


@pytest.mark.compat
def test_every_path_equals_brute_force(some) -> None:
    model = tiny(n_layers=3, seed=1)
    found = path_effects(model, some, ["heads", "attention 1", "MLP 0"], ALL)
    there = 0
    for i, sender in enumerate(found.senders):
        for j, receiver in enumerate(found.receivers):
            if not sender.before(receiver, parallel=False):
                assert found.values[i, j].isnan().all()
                continue
            there += 1
            wanted, frozen = by_hand(model, some, sender, receiver)
            assert torch.allclose(found.values[i, j], wanted, atol=1e-10), (sender, receiver)
            assert torch.allclose(found.frozen[i], frozen, atol=1e-10)
    assert there == 2 * (7 + 4 + 1) + 4 + 6
    assert (found.matrix.nan_to_num() != 0).sum() == there
    direct = component_effects(model, some, ["heads", "attention 1", "MLP 0"], norm="live", draws=0).direct
    assert torch.allclose(found.frozen, direct, atol=1e-10)


@pytest.mark.skipif(not has_hooked_transformer(), reason="families are HookedTransformers")
def test_blocks_in_parallel_have_no_path_within_a_layer(some) -> None:
    model = family("parallel")
    found = path_effects(model, some, "attention", ALL)
    names = [r.name for r in found.receivers]
    gone = {names[j] for j in range(len(names)) if found.values[0, j].isnan().all()}
    assert gone == {"L0H0", "L0H1", "MLP 0"}
    assert found.values[1].isnan().all()
    with torch.no_grad():
        clean, corrupted = (model.run_with_cache(x.tokens)[1] for x in (some.clean, some.corrupted))
    seen: dict[str, Tensor] = {}

    def sends(x: Tensor, hook: Any) -> Tensor:
        return torch.cat([x[:, :-1], clean["blocks.0.hook_attn_out"][:, -1:]], dim=1)

    def writes(x: Tensor, hook: Any) -> Tensor:
        return torch.cat([x[:, :-1], seen["x"][:, -1:]], dim=1)

    # nothing else of layer 0 follows the sender, so layer 1 needs no freezing before it reads
    logits_with(
        model,
        some.corrupted.tokens,
        [("blocks.0.hook_attn_out", sends), ("blocks.1.hook_mlp_out", lambda x, hook: seen.update(x=x.clone()))],
    )
    edited, base = (
        logits_with(model, some.corrupted.tokens, h)[:, -1] for h in ([("blocks.1.hook_mlp_out", writes)], [])
    )
    picked = some.clean.answers[:, None]
    wanted = (edited.gather(1, picked) - base.gather(1, picked))[:, 0]
    assert torch.allclose(found.values[0, names.index("MLP 1")], wanted, atol=1e-10)
    assert not torch.allclose(corrupted["blocks.0.hook_attn_out"], clean["blocks.0.hook_attn_out"])


def test_without_a_final_norm_total_is_direct_plus_the_one_path_that_there_is(some) -> None:
    """A head of the last layer reaches the logits straight and through its own layer's MLP, and nowhere else."""
    for norm, exact in ((None, True), ("LN", False)):
        model = tiny(norm=norm)
        found = path_effects(model, some, ["L1H0", "L1H1"], "MLP 1")
        total = component_effects(model, some, ["L1H0", "L1H1"], draws=0).total
        assert torch.allclose(found.values[:, 0] + found.frozen, total, atol=1e-10) is exact
        assert found.values.abs().max() > 1e-3


def test_a_receiver_that_cannot_read_the_sender_has_no_path() -> None:
    """The first layer's head 0 writes where only the second layer's head 1 reads."""
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_mlp": 24, "n_ctx": 12, "vocab": 11, "norm": None}
    w = random_state(**shape, seed=3)
    for name in ("blocks.0.attn.W_O", "blocks.1.attn.W_O"):
        w[name][..., 12:] = 0
    w["embed.W_E"][:, 12:], w["pos_embed.W_pos"][:, 12:] = 0, 0
    w["blocks.0.attn.W_O"][0] = 0
    w["blocks.0.attn.W_O"][0, :4, 12:] = torch.eye(4, dtype=torch.float64)
    for name in ("blocks.0.mlp.W_in", "blocks.1.mlp.W_in", "unembed.W_U"):
        w[name][12:] = 0
    for part in "QK":
        w[f"blocks.1.attn.W_{part}"][:, 12:] = 0
    w["blocks.1.attn.W_V"][0, 12:] = 0
    given = pairs(sums(), 6)
    found = path_effects(tiny(**shape, weights=w), given, "L0H0", ["L1H0", "L1H1", "MLP 0", "MLP 1"])
    sizes = found.values[0].abs().amax(-1)
    assert sizes[[0, 2, 3]].max() < 1e-10
    assert sizes[1] > 1e-3
    assert found.frozen.abs().max() < 1e-10
    assert float(found.matrix[0, 1]) in [row["effect"] for row in found.table() if row["receiver"] == "L1H1"]
    assert "L0H0 -> " in repr(found)


def test_batches_metrics_and_progress_of_paths(model, some) -> None:
    seen: list[tuple[int, int]] = []
    metric = logit_diff(some.clean.answers, some.corrupted.answers)
    whole = path_effects(model, some, "heads", "mlps", metric=metric, progress=lambda *x: seen.append(x))
    parts = path_effects(model, some, "heads", "mlps", metric=metric, batch_size=4)
    assert torch.allclose(whole.values, parts.values, atol=1e-12, equal_nan=True)
    assert torch.allclose(whole.frozen, parts.frozen, atol=1e-12)
    assert seen == [(i + 1, 6) for i in range(6)]
    rows = whole.table()
    assert len(rows) == 6 + 4
    assert [row["effect"] for row in rows] == sorted((row["effect"] for row in rows), reverse=True)
    with pytest.raises(ValueError, match="No receiver comes after a sender"):
        path_effects(model, some, "MLP 1", "heads")


# The lens


def by_name(model: Any, tokens: Tensor, layer: int, head: int | None) -> Tensor:
    """What a component writes at the last position, read by the raw unembedding."""
    with torch.no_grad():
        cache = model.run_with_cache(tokens)[1]
        if head is None:
            return cache[f"blocks.{layer}.hook_mlp_out"][:, -1] @ model.W_U
        return cache[f"blocks.{layer}.attn.hook_z"][:, -1, head] @ model.blocks[layer].attn.W_O[head] @ model.W_U


@pytest.mark.compat
def test_the_lens_of_a_head_takes_the_layer_from_the_layer_and_the_head_from_the_head() -> None:
    """The public notebook indexed the layer with the head's number; three heads in four layers are told apart."""
    model, given = tiny(n_layers=4, d_model=18, n_heads=3), sums()
    found = number_lens(model, given, ALL, norm="skipped")
    assert found.logits.shape == (16, 9)
    assert found.values.tolist() == list(range(9))
    for c, logits in zip(found.components, found.logits):
        wanted = by_name(model, given.tokens, c.layer, c.head).mean(0)[given.numerals.ids]
        assert torch.allclose(logits, wanted.double(), atol=1e-10), c
        if c.head is not None and c.head != c.layer:
            swapped = by_name(model, given.tokens, c.head, min(c.layer, 2)).mean(0)[given.numerals.ids]
            assert not torch.allclose(logits, swapped.double(), atol=1e-3)
    assert [row["component"] for row in found.table()][:4] == ["L0H0", "L0H1", "L0H2", "L1H0"]
    assert "norm skipped" in repr(found)


def test_frozen_lenses_add_up_to_the_number_logits_without_embeddings_and_biases(model) -> None:
    given = sums()[[7]]
    found = number_lens(model, given, ["attention", "mlps"], norm="frozen")
    with torch.no_grad():
        logits, cache = model.run_with_cache(given.tokens)
    first = cache["blocks.0.hook_resid_pre"][0, -1]
    scale = cache["ln_final.hook_scale"][0, -1]
    embedded = ((first - first.mean()) / scale * model.ln_final.w) @ model.W_U
    wanted = logits[0, -1] - embedded - model.ln_final.b @ model.W_U - model.b_U
    assert torch.allclose(found.logits.sum(0), wanted[given.numerals.ids].double(), atol=1e-10)
    skipped = number_lens(model, given, ["attention", "mlps"], norm="skipped")
    assert not torch.allclose(skipped.logits.sum(0), wanted[given.numerals.ids].double(), atol=1e-2)
    with pytest.raises(ValueError, match="of the lens is 'frozen'"):
        number_lens(model, given, norm="live")


def test_the_lens_shows_the_numbers_that_a_component_raises() -> None:
    """An MLP that writes the unembedding row of number 4, whatever it reads."""
    w = random_state(1, 16, 2, 24, 12, 11, None, 0)
    w["blocks.0.mlp.W_out"] = torch.zeros(24, 16, dtype=torch.float64)
    w["blocks.0.mlp.b_out"] = w["unembed.W_U"][:, 4].clone()
    found = number_lens(tiny(n_layers=1, norm=None, weights=w), sums(), "mlps")
    assert found.table(top=1)[0]["top"] == [4]
    other = replace(sums(), numerals=arithmetic.Numerals("bare", torch.tensor([3, 40]), torch.tensor([3, 4]), 3))
    assert number_lens(tiny(n_layers=1, norm=None, weights=w), other, "mlps").table(top=1)[0]["top"] == [40]
    assert components_of(tiny(n_layers=1), "mlps") == found.components
