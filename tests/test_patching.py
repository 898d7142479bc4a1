"""Patching: runs restored by construction, hand-wired gates, and places that are refused."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Subspace, accuracy, cross_entropy, kl, logit_diff, patch
from mi_ablate._places import Shuffled
from mi_ablate.patching import Patching
from models import FAMILIES, family, has_hooked_transformer, logits_with, random_state, tiny, tokens_for

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*less than two standard errors:UserWarning"
)  # random models and prompts

N, P = 6, 5
RIGHT = torch.arange(N)
DIFF = logit_diff(RIGHT, RIGHT + 1)
FIRST, LAST = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def pairs(model) -> tuple[Tensor, Tensor]:
    return tokens_for(model, N, P), tokens_for(model, N, P, seed=1)


def by_hand(model, base: Tensor, source: Tensor, name: str, pos: int, head: int | None, metric=DIFF) -> Tensor:
    """The same patch with a bare hook that copies from a cache."""
    with torch.no_grad():
        cache = model.run_with_cache(source)[1]

    def write(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        x[(slice(None), pos) if head is None else (slice(None), pos, head)] = cache[name][
            (slice(None), pos) if head is None else (slice(None), pos, head)
        ]
        return x

    return metric(logits_with(model, base, [(name, write)]), None, torch.arange(N)).double()


@pytest.mark.compat
@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize(("names", "head"), [("resid_pre", None), ("attn_out", None), ("z", "each"), ("z", None)])
def test_every_place_equals_a_hook_that_copies_from_a_cache(model, pairs, mode: str, names: str, head: Any) -> None:
    clean, corrupted = pairs
    base, source = (corrupted, clean) if mode == "denoise" else (clean, corrupted)
    found = patch(model, clean, corrupted, DIFF, names, mode=mode, head=head, controls={})
    assert found.values.shape == (2, P, 2 if head else 1, N)
    assert found.sites == mi.sites(model, names)
    for i, name in enumerate(found.sites):
        for j, pos in enumerate(found.positions):
            for h, at in enumerate(found.heads):
                wanted = by_hand(model, base, source, name, pos, at)
                assert torch.allclose(found.values[i, j, h], wanted, atol=1e-10)
    start, end = (found.corrupted, found.clean) if mode == "denoise" else (found.clean, found.corrupted)
    shares = (found.values.mean(-1) - start.mean()) / (end.mean() - start.mean())
    assert torch.allclose(found.normalised, shares)


def test_patterns_are_patched_by_query_and_head(model, pairs) -> None:
    clean, corrupted = pairs
    name = "blocks.1.attn.hook_pattern"
    found = patch(model, clean, corrupted, DIFF, name, head=[1, -2], pos=[-1, 2], controls={})
    assert (found.heads, found.positions) == ((1, 0), (-1, 2))
    cache = model.run_with_cache(clean)[1]

    def write(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        x[:, 1, 2] = cache[name][:, 1, 2]
        return x

    wanted = DIFF(logits_with(model, corrupted, [(name, write)]), None, torch.arange(N))
    assert torch.allclose(found.values[0, 1, 0], wanted, atol=1e-12)


@pytest.mark.compat
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_the_whole_stream_at_all_positions_is_the_other_run(model, pairs, mode: str) -> None:
    for names in ("resid_pre", "resid_mid", "resid_post"):
        found = patch(model, *pairs, DIFF, names, mode=mode, pos=None)
        assert torch.allclose(found.normalised, torch.ones_like(found.normalised), atol=1e-12)
        other = found.clean if mode == "denoise" else found.corrupted
        assert torch.allclose(found.values, other.expand_as(found.values), atol=1e-12)
        assert not torch.allclose(found.share(found.controls["shuffled"]), found.normalised, atol=1e-3)


def test_where_the_prompts_of_a_pair_are_the_same_nothing_happens(model, pairs) -> None:
    """Half the pairs are twins: patching a run with its own activations changes none of their values."""
    clean, corrupted = pairs
    corrupted = torch.cat([clean[:3], corrupted[3:]])
    for names, head in (("resid_pre", None), ("z", "each"), ("mlp_out", None)):
        found = patch(model, clean, corrupted, DIFF, names, head=head, controls={})
        twins = found.values[..., :3] - found.corrupted[:3]
        assert twins.abs().max() < 1e-12
        assert (found.values[..., 3:] - found.corrupted[3:]).abs().max() > 1e-3


def test_causal_positions_before_the_difference_carry_nothing(model, pairs) -> None:
    """With one differing token the stream before it is the same; the embedding carries all of it at that position."""
    clean = pairs[0]
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] + 1) % 11
    found = patch(model, clean, corrupted, DIFF, "resid_pre", controls={})
    assert found.normalised[:, :2].abs().max() < 1e-12
    assert torch.allclose(found.normalised[0, :, 0], torch.tensor([0.0, 0, 1, 0, 0]).double(), atol=1e-12)
    assert (found.normalised[1, 3:, 0].abs() > 1e-6).all()


@given(seed=st.integers(0, 1000), rank=st.integers(1, 16))
def test_a_subspace_patch_is_the_whole_one_at_full_rank_alone(model, pairs, seed: int, rank: int) -> None:
    clean, corrupted = pairs
    full = patch(model, clean, corrupted, DIFF, LAST, pos=-1, controls={})
    part = patch(
        model, clean, corrupted, DIFF, LAST, pos=-1, subspace=Subspace.random(16, 16, seed)[:rank], controls={}
    )
    if rank == 16:
        assert torch.allclose(part.values, full.values, atol=1e-10)
    else:
        assert not torch.allclose(part.values, full.values, atol=1e-6)


def test_a_subspace_of_full_rank_is_the_whole_vector_and_one_a_site_is_allowed(model, pairs) -> None:
    whole = patch(model, *pairs, DIFF, "resid_post", controls={})
    turned = Subspace.random(16, 16, seed=3)
    for parts in (turned, {FIRST: turned, LAST: Subspace.random(16, 16, seed=4)}):
        found = patch(model, *pairs, DIFF, "resid_post", subspace=parts, controls={})
        assert torch.allclose(found.values, whole.values, atol=1e-10)
    small = patch(model, *pairs, DIFF, "resid_post", subspace=turned[:2], controls={})
    assert not torch.allclose(small.values, whole.values, atol=1e-3)
    assert "rank 2 of 16 (random, seed 3)" in repr(small)


@pytest.mark.parametrize("metric", [DIFF, kl(), cross_entropy(RIGHT)], ids=lambda m: m.name)
def test_batched_equals_whole(model, pairs, metric) -> None:
    part = {"pos": [0, -1], "subspace": Subspace.random(16, 3)}
    for options in ({"pos": [2, -1]}, {"pos": None}, {"pos": torch.arange(N) % P}, part):
        whole = patch(model, *pairs, metric, FIRST, **options)
        parts = patch(model, *pairs, metric, FIRST, batch_size=4, **options)
        assert torch.allclose(whole.values, parts.values, atol=1e-10)
        for name, means in whole.controls.items():
            assert torch.allclose(means, parts.controls[name], atol=1e-10)


def test_kl_compares_with_the_clean_run_in_both_modes(model, pairs) -> None:
    for mode in ("denoise", "noise"):
        found = patch(model, *pairs, kl(), "resid_post", mode=mode, pos=None)
        assert found.clean.abs().max() < 1e-12
        assert found.corrupted.min() > 0.01
        assert torch.allclose(found.normalised, torch.ones_like(found.normalised), atol=1e-10)


# Gates: two parts, joined by OR or by AND, wired by hand


def gate(kind: str) -> Any:
    """Heads 0 and 1 copy the bits of positions 0 and 1 to the end, where an MLP joins them; logit 1 is the result."""
    shape = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 24, "n_ctx": 12, "vocab": 11, "norm": None, "seed": 0}
    w = {name: torch.zeros_like(x) for name, x in random_state(**shape).items()}
    w["embed.W_E"][1, 0] = 1.0  # token 1 is a set bit
    for pos in range(2):
        w["pos_embed.W_pos"][pos, 1 + pos] = 1.0
        w["blocks.0.attn.W_K"][pos, 1 + pos, 0] = 1.0
    w["blocks.0.attn.b_Q"][:, 0] = 1000.0  # every query looks for the position of its head
    w["blocks.0.attn.W_V"][:, 0, 1] = 1.0
    for head in range(2):
        w["blocks.0.attn.W_O"][head, 1, 4 + head] = 1.0
    w["blocks.0.mlp.W_in"][4:6, :2] = 1.0
    w["blocks.0.mlp.b_in"][1] = -1.0  # neurons: a + b, and both
    both = {"or": [1.0, -1.0], "and": [0.0, 1.0]}[kind]
    w["blocks.0.mlp.W_out"][:2, 8] = torch.tensor(both, dtype=torch.float64)
    w["unembed.W_U"][8, 1] = 1.0
    return tiny(n_layers=1, norm=None, act_fn="relu", weights=w)


TABLE = {("or", "denoise"): 1.0, ("or", "noise"): 0.0, ("and", "denoise"): 0.0, ("and", "noise"): 1.0}
"""Denoising finds the parts of an OR, noising those of an AND; each is blind to the other."""


@pytest.mark.compat
@pytest.mark.parametrize(("kind", "mode"), sorted(TABLE))
def test_denoising_finds_the_parts_of_an_or_and_noising_those_of_an_and(kind: str, mode: str) -> None:
    clean, corrupted = torch.tensor([[1, 1, 0], [1, 1, 3]]), torch.tensor([[0, 0, 0], [0, 0, 3]])
    metric = logit_diff(torch.ones(2).long(), torch.zeros(2).long())
    found = patch(gate(kind), clean, corrupted, metric, "z", mode=mode, head="each", pos=-1)
    assert (float(found.clean.mean()), float(found.corrupted.mean())) == pytest.approx((1.0, 0.0), abs=1e-9)
    assert found.normalised.flatten().tolist() == pytest.approx([TABLE[kind, mode]] * 2, abs=1e-9)
    whole = patch(gate(kind), clean, corrupted, metric, "z", mode=mode, pos=-1)
    assert float(whole.normalised) == pytest.approx(1.0, abs=1e-9), "both parts together always carry all of it"


# Padding


def padded(rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    out, mask = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        out[i, where], mask[i, where] = torch.tensor(row), 1
    return out, mask


@pytest.mark.parametrize("left", [True, False])
def test_padded_rows_are_swept_from_their_ends(model, left: bool) -> None:
    """Each row of a padded batch gives what it gives alone, and positions count its real tokens."""
    if left and not has_hooked_transformer():
        pytest.skip("positions of left-padded rows start at the first real token in HookedTransformer")
    clean_rows, other_rows = [[1, 2, 3, 4, 5], [6, 7, 8]], [[5, 2, 9, 4, 1], [3, 7, 2]]
    clean, mask = padded(clean_rows, left)
    corrupted, _ = padded(other_rows, left)
    metric = logit_diff(torch.tensor([1, 2]), torch.tensor([3, 4]))
    found = patch(model, clean, corrupted, metric, "resid_pre", attention_mask=mask)
    assert found.positions == (-3, -2, -1)
    for i, (a, b) in enumerate(zip(clean_rows, other_rows)):
        own = logit_diff(torch.tensor([1 + i]), torch.tensor([3 + i]))
        alone = patch(model, torch.tensor([a]), torch.tensor([b]), own, "resid_pre", pos=[-3, -2, -1])
        assert torch.allclose(found.values[..., i], alone.values[..., 0], atol=1e-10)
        assert alone.controls == {}
        assert "no control" in repr(alone)
    everywhere = patch(model, clean, corrupted, metric, "resid_pre", pos=None, attention_mask=mask)
    assert torch.allclose(everywhere.normalised, torch.ones(2, 1, 1).double(), atol=1e-10)
    assert everywhere.controls == {}, "other rows have other lengths, so their positions do not belong to these"


def test_equal_lengths_count_from_the_start(model, pairs) -> None:
    plain = patch(model, *pairs, DIFF, "resid_pre")
    masked = patch(model, *pairs, DIFF, "resid_pre", attention_mask=torch.ones(N, P, dtype=torch.int64))
    assert plain.positions == masked.positions == tuple(range(P))
    assert torch.allclose(plain.values, masked.values, atol=1e-10)


# Controls, tables, texts


def test_the_shuffled_control_writes_another_prompts_activation(model, pairs) -> None:
    clean, corrupted = pairs
    found = patch(model, clean, corrupted, DIFF, FIRST, pos=2, draws=3)
    assert found.controls["shuffled"].shape == (3, 1, 1, 1)
    acts = mi.collect(model, clean, FIRST, pos=2)[FIRST]
    for seed in range(3):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        to = torch.empty_like(acts)
        to[order] = acts[order.roll(1)]
        assert not (to == acts).all(1).any()
        scores = DIFF(logits_with(model, corrupted, Ablate(None, to).at(FIRST, pos=2)), None, torch.arange(N))
        assert float(found.controls["shuffled"][seed, 0, 0, 0]) == pytest.approx(float(scores.mean()), abs=1e-10)
    own = patch(model, clean, corrupted, DIFF, FIRST, pos=2, controls={"nothing": lambda hooks, seed: []})
    assert float(own.share(own.controls["nothing"])) == pytest.approx(0.0, abs=1e-12)


def test_a_subspace_stands_beside_drawn_ones_of_its_rank(model, pairs) -> None:
    found = patch(model, *pairs, DIFF, "z", head="each", pos=[1, -1], subspace=Subspace.random(8, 2), draws=2)
    assert set(found.controls) == {"shuffled", "covariance"}
    assert found.controls["covariance"].shape == (2, 2, 2, 2)
    full = patch(model, *pairs, DIFF, "z", head="each", pos=[1, -1], subspace=Subspace.random(8, 8))
    assert torch.allclose(full.controls["covariance"][0], full.values.mean(-1), atol=1e-10)
    assert not torch.allclose(found.controls["covariance"][0], found.values.mean(-1), atol=1e-4)


def test_tables_tops_and_reprs(model, pairs) -> None:
    found = patch(model, *pairs, DIFF, "z", head="each", pos=[0, -1])
    rows = found.table()
    assert len(rows) == 8
    assert rows[3]["site"] == "blocks.0.attn.hook_z"
    assert (rows[3]["pos"], rows[3]["head"]) == (-1, 1)
    assert rows[3]["normalised"] == pytest.approx(float(found.normalised[0, 1, 1]))
    assert rows[3]["logit_diff"] == pytest.approx(float(found.values[0, 1, 1].mean()))
    top = found.top(3)
    assert [abs(r["normalised"]) for r in top] == sorted((abs(r["normalised"]) for r in rows), reverse=True)[:3]
    text = repr(found)
    assert text.startswith("Patching(denoise, logit_diff, 2 sites x 2 positions x 2 heads, n 6: clean ")
    assert f"most {top[0]['normalised']:.2f} at {top[0]['site']} pos {top[0]['pos']} head {top[0]['head']}" in text
    low, high = mi.interval(found.values[0, 0, 0])
    assert low < float(found.values[0, 0, 0].mean()) < high


def test_a_saturated_metric_warns_and_says_so(model, pairs) -> None:
    clean, corrupted = pairs
    answers = logits_with(model, clean)[:, -1].argmax(-1)
    with pytest.warns(UserWarning, match=r"accuracy is at its ceiling on the clean prompts \(1\.000\)"):
        found = patch(model, clean, corrupted, accuracy(answers), "resid_pre")
    assert found.saturated
    assert "; the metric is at its ceiling" in repr(found)
    assert all(row["saturated"] for row in found.table())
    assert not patch(model, clean, corrupted, DIFF, "resid_pre").saturated


@pytest.mark.parametrize(
    ("clean", "corrupted", "ceiling", "marks"),
    [
        (0.95, 0.0, 1.0, "the metric is at its floor"),
        (1.0, 0.5, 1.0, "the metric is at its ceiling"),
        (1.0, 0.0, 1.0, "the metric is at its ceiling and floor"),
        (0.0, 1.0, 1.0, "the metric is at its ceiling and floor"),
        (0.9, 0.1, 1.0, ""),
        (1.0, 0.0, None, ""),
    ],
)
def test_either_end_of_a_bounded_metric_saturates(clean: float, corrupted: float, ceiling: Any, marks: str) -> None:
    """A place that moves the logits of a run at accuracy 0 by a part of the difference leaves it at 0."""
    scores = [(torch.arange(100) < 100 * share).double() for share in (clean, corrupted)]
    found = Patching(
        "denoise", "accuracy", ("a",), (0,), (None,), torch.zeros(1, 1, 1, 100).double(), *scores, {}, "", ceiling
    )
    assert found.saturated == bool(marks)
    assert repr(found).endswith(f"({'no control'}){'; ' + marks if marks else ''})")
    assert found.table()[0].get("saturated", False) == found.saturated


def test_a_difference_within_its_noise_warns_and_says_so() -> None:
    """Twelve pairs that differ by 1 in both directions, and by 0.1 more in one: shares of 0.1 are noise."""
    zero = torch.zeros(12, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0] * 6, dtype=torch.float64)
    for clean, noisy in ((sign + 0.1, True), (sign + 0.7, False), (zero + 0.1, False), (sign[:1], False)):
        base = torch.zeros(len(clean), dtype=torch.float64)
        values = base.expand(1, 1, 1, -1)
        found = Patching("noise", "logit_diff", ("a",), (0,), (None,), values, clean, base, {}, "", None)
        assert found.noisy == noisy
        assert ("within its noise" in repr(found)) == noisy


def test_patch_warns_of_a_noisy_difference(model, pairs) -> None:
    with pytest.warns(UserWarning, match=r"logit_diff differs by .* less than two standard errors of 6 pairs"):
        assert patch(model, *pairs, DIFF, FIRST, pos=-1, controls={}).noisy


@given(seed=st.integers(0, 100), mode=st.sampled_from(["denoise", "noise"]))
def test_intervals_hold_the_effect_and_are_points_where_every_pair_agrees(seed: int, mode: str) -> None:
    g = torch.Generator().manual_seed(seed)
    clean = 2 + torch.randn(40, generator=g, dtype=torch.float64)
    corrupted = torch.randn(40, generator=g, dtype=torch.float64)
    start, end = (corrupted, clean) if mode == "denoise" else (clean, corrupted)
    noise = torch.randn(40, generator=g, dtype=torch.float64)
    values = torch.stack([start, end, (start + end) / 2, start + noise, start + 0.5 * (end - start) + 0.1 * noise])
    found = Patching(mode, "m", tuple("abcde"), (0,), (None,), values[:, None, None], clean, corrupted, {}, "", None)
    low, high = found.intervals()[..., 0, 0]
    shares = found.normalised[:, 0, 0]
    assert (low <= shares + 1e-12).all()
    assert (high >= shares - 1e-12).all()
    assert torch.allclose(low[:3], torch.tensor([0, 1, 0.5]).double(), atol=1e-12)
    assert torch.allclose(high[:3], low[:3], atol=1e-12)
    assert (high - low)[3] > 3 * (high - low)[4] > 0
    row = found.table()[3]
    assert (row["low"], row["high"]) == (pytest.approx(float(low[3])), pytest.approx(float(high[3])))
    narrow = found.intervals(level=0.5)
    assert (narrow[1] - narrow[0] <= high[:, None, None] - low[:, None, None] + 1e-12).all()


def test_an_interval_covers_the_true_share_as_often_as_it_says() -> None:
    """200 samples of 30 pairs whose true share is 0.3: about 95 % of the intervals hold it."""
    g = torch.Generator().manual_seed(0)
    gap = 1 + torch.randn(200, 30, generator=g, dtype=torch.float64)
    change = 0.3 * gap + 0.5 * torch.randn(200, 30, generator=g, dtype=torch.float64)
    inside = 0
    for c, d in zip(gap, change):
        zero = torch.zeros_like(c)
        found = Patching("denoise", "m", ("a",), (0,), (None,), d.expand(1, 1, 1, -1), c, zero, {}, "", None)
        low, high = found.intervals().flatten().tolist()
        inside += low <= 0.3 <= high
    assert 180 <= inside <= 199


def test_one_pair_has_no_interval(model, pairs) -> None:
    clean, corrupted = (x[:1] for x in pairs)
    found = patch(model, clean, corrupted, logit_diff(RIGHT[:1], RIGHT[:1] + 1), FIRST, controls={})
    assert found.intervals().isnan().all()
    with pytest.raises(ValueError, match="level=95 of an interval lies between 0 and 1"):
        found.intervals(level=95)


@pytest.mark.parametrize("left", [True, False])
def test_the_covariance_control_does_not_see_the_padding(model, left: bool) -> None:
    if left and not has_hooked_transformer():
        pytest.skip("positions of left-padded rows start at the first real token in HookedTransformer")
    clean, mask = padded([[1, 2, 3, 4, 5], [6, 7, 8], [2, 9, 1, 3]], left)
    corrupted, _ = padded([[5, 2, 9, 4, 1], [3, 7, 2], [8, 8, 1, 4]], left)
    metric, drawn = logit_diff(torch.tensor([1, 2, 3]), torch.tensor([3, 4, 5])), []
    for token in (0, 7):
        a, b = (torch.where(mask.bool(), x, token) for x in (clean, corrupted))
        found = patch(
            model, a, b, metric, FIRST, pos=None, subspace=Subspace.random(16, 2), draws=2, attention_mask=mask
        )
        drawn.append(found.controls["covariance"])
    assert torch.allclose(*drawn, atol=1e-10)


def test_progress_counts_every_pass(model, pairs) -> None:
    seen: list[tuple[int, int]] = []
    patch(model, *pairs, DIFF, "resid_pre", draws=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 30) for i in range(30)]


def test_blocks_in_parallel_have_no_point_between(pairs) -> None:
    if not has_hooked_transformer():
        pytest.skip("the families are HookedTransformers")
    model = family("parallel")
    with pytest.raises(KeyError, match="Blocks that run attention and MLP in parallel have no point between them"):
        patch(model, *pairs, DIFF, "resid_mid")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_stream_restores_the_other_run_in_every_family(name: str) -> None:
    if not has_hooked_transformer():
        pytest.skip("the families are HookedTransformers")
    model = family(name)
    found = patch(model, tokens_for(model, N, P), tokens_for(model, N, P, seed=1), DIFF, "resid_post", pos=None)
    assert torch.allclose(found.normalised, torch.ones(2, 1, 1).double(), atol=1e-10)


# Bad input


def test_what_cannot_be_patched_is_refused(model, pairs) -> None:
    clean, corrupted = pairs
    own = (model, clean, corrupted, DIFF)
    with pytest.raises(
        ValueError, match=r"clean \[6, 5\] and corrupted \[5, 5\] are not pairs: patching writes position"
    ):
        patch(model, clean, corrupted[:5], DIFF)
    with pytest.raises(ValueError, match=r"mode='both' must be 'denoise' \(clean into corrupted\) or 'noise'"):
        patch(*own, mode="both")
    with pytest.raises(KeyError, match=r"No hook point matches 'blocks\.2\.hook_resid_pre'"):
        patch(*own, "blocks.2.hook_resid_pre")
    with pytest.raises(IndexError, match="pos=5 is out of range: the sequence has 5 positions, so -5 to 4"):
        patch(*own, pos=[0, 5])
    with pytest.raises(ValueError, match="pos='all': 'each' for one position after another, an int"):
        patch(*own, pos="all")
    with pytest.raises(ValueError, match=r"pos=\[\]: give an int, a slice, a list of ints, Int\[n\]"):
        patch(*own, pos=[])
    with pytest.raises(
        ValueError, match="pos='last': 'each' for one position after another, an int, a list of ints, Int"
    ):
        patch(*own, pos="last")
    with pytest.raises(
        ValueError, match=r"head='each' at blocks\.0\.hook_resid_pre: it has no heads\. Sites that have: 'z', 'q'"
    ):
        patch(*own, head="each")
    with pytest.raises(ValueError, match="head='all': 'each' for one head after another"):
        patch(*own, "z", head="all")
    with pytest.raises(ValueError, match="head=True: 'each' for one head after another, an int"):
        patch(*own, "z", head=True)
    with pytest.raises(IndexError, match="head=2 is out of range: each site has 2 heads, so 0 to 1"):
        patch(*own, "z", head=2)
    with pytest.raises(ValueError, match=r"cannot be patched at blocks\.0\.attn\.hook_z, whose vectors have width 8"):
        patch(*own, "z", subspace=Subspace.random(16, 2))
    with pytest.raises(
        ValueError, match=r"The subspaces and the sites do not match at \['blocks\.1\.hook_resid_post'\]"
    ):
        patch(*own, "resid_post", subspace={FIRST: Subspace.random(16, 2)})
    with pytest.raises(ValueError, match=r"logit_diff is .* on the clean prompts and .*: there is no difference for a"):
        patch(model, clean, clean, DIFF)
    with pytest.raises(ValueError, match="draws=0: at least 1"):
        patch(*own, draws=0)
    mask = torch.ones(N, P, dtype=torch.int64)
    mask[0] = 0
    with pytest.raises(ValueError, match="A row of attention_mask has no real token, so there is no position to patch"):
        patch(*own, attention_mask=mask)
    with pytest.raises(ValueError, match="writes no other run's activations: the shuffled control is one of patches"):
        Shuffled()(mi.Add(torch.ones(16)).at(FIRST))


def test_positions_of_numpy_and_lists_of_tokens(unchecked, model, pairs) -> None:
    import numpy as np

    found = patch(model, *pairs, DIFF, FIRST, pos=np.int64(2), controls={})
    assert found.positions == (2,)
    assert torch.equal(found.values, patch(model, *pairs, DIFF, FIRST, pos=2, controls={}).values)
    assert patch(model, *pairs, DIFF, FIRST, pos=[np.int64(2), 0], controls={}).positions == (2, 0)
    with pytest.raises(ValueError, match=r"tokens are a list: a tensor \[n, pos\] is needed"):
        patch(model, pairs[0].tolist(), pairs[1].tolist(), DIFF)


def test_heads_and_metrics_of_other_types(unchecked, model, pairs) -> None:
    import numpy as np

    own = (model, *pairs, DIFF, "z")
    for head in (torch.tensor([0, 1]), np.array([0, 1]), range(2), [np.int64(0), torch.tensor(1)]):
        assert patch(*own, head=head, pos=-1, controls={}).heads == (0, 1)
    assert patch(*own, head=torch.tensor(1), pos=-1, controls={}).heads == (1,)
    for head in ([0.5], 0.5, torch.tensor([0.5]), torch.tensor([True, False]), [True], ["0"]):
        with pytest.raises(ValueError, match="'each' for one head after another, an int, a list of ints, or None"):
            patch(*own, head=head)
    with pytest.raises(ValueError, match="metric='logit_diff' is a str: make one with its answers, such as logit_diff"):
        patch(model, *pairs, "logit_diff")


def test_sites_with_different_numbers_of_heads_are_patched_apart(pairs) -> None:
    if not has_hooked_transformer():
        pytest.skip("the families are HookedTransformers")
    model = family("gated MLP, grouped heads")
    with pytest.raises(ValueError, match="The sites have different numbers of heads"):
        patch(model, *pairs, DIFF, ["q", "k"], head="each")
    found = patch(model, *pairs, DIFF, "k", head="each", controls={})
    assert found.heads == (0,)


def test_the_heat_map_has_the_sites_by_layer_and_heads_as_columns_or_buttons(model, pairs) -> None:
    found = patch(model, *pairs, DIFF, "resid_pre", pos=[0, 4])
    figure = found.plot(["a", "b"])
    assert [list(row) for row in figure.data[0].z] == found.normalised[..., 0].tolist()
    assert list(figure.layout.yaxis.ticktext) == ["0", "1"]
    assert figure.layout.yaxis.title.text == "layer, hook_resid_pre"
    assert list(figure.layout.xaxis.ticktext) == ["0<br>a", "4<br>b"]
    assert "shuffled" in figure.data[0].hovertext[0][0]
    heads = patch(model, *pairs, DIFF, ["z", "blocks.0.attn.hook_q"], head="each", pos=-1, controls={})
    figure = heads.plot()
    assert [list(row) for row in figure.data[0].z] == heads.normalised[:, 0].tolist()
    assert list(figure.layout.xaxis.ticktext) == ["head 0", "head 1"]
    assert figure.layout.yaxis.title.text == "site"
    buttons = patch(model, *pairs, DIFF, "z", head="each", pos=[0, 4], controls={}).plot().layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["head 0", "head 1"]
