"""One edit a layer, strengths as a function of depth, and the directions that norms hide."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate import Ablate, Add, Subspace, layer_kernel, per_layer, visible
from mi_ablate._placed import Intervention
from models import family, has_hooked_transformer, logits_with, tiny, tokens_for

D = 16
S, T = Subspace.random(D, 1, seed=1), Subspace.random(D, 2, seed=2)
ONES = torch.ones(D, dtype=torch.float64) / D**0.5


def named(hooks) -> list[tuple[str, str, object]]:
    return [(name, type(hook.intervention).__name__, hook.intervention.strength) for name, hook in hooks]


@pytest.mark.compat
def test_one_edit_for_all_layers_leaves_the_embeddings_alone(model) -> None:
    hooks = per_layer(model, Ablate(S))
    assert [name for name, _ in hooks] == list(mi.writers(model, layers=range(2)))
    both = per_layer(model, Ablate(S), embed=Ablate(T))
    assert [name for name, _ in both] == list(mi.writers(model))
    assert [hook.intervention.subspace.rank for _, hook in both] == [2, 2, 1, 1, 1, 1]


@pytest.mark.compat
@pytest.mark.parametrize("strength", [{0: 0.5, -1: 2}, [0.5, 2], lambda layer: (0.5, 2)[layer], (0.5, 2)])
def test_strengths_by_layer_in_any_form(model, tokens, strength) -> None:
    by_hand = Ablate(S, strength=0.5).at("blocks.0.hook_attn_out", "blocks.0.hook_mlp_out")
    by_hand += Ablate(S, strength=2).at("blocks.1.hook_attn_out", "blocks.1.hook_mlp_out")
    hooks = per_layer(model, Ablate(S), strength=strength)
    assert torch.equal(logits_with(model, tokens, hooks), logits_with(model, tokens, by_hand))


@pytest.mark.compat
def test_each_layer_its_own_edit_at_a_site_of_choice(model) -> None:
    hooks = per_layer(model, {-1: Ablate(T, strength=0.5), 0: Add(ONES)}, strength={1: 0.5, 0: -1}, site="resid_post")
    assert named(hooks) == [("blocks.0.hook_resid_post", "Add", -1), ("blocks.1.hook_resid_post", "Ablate", 0.25)]


@pytest.mark.compat
def test_one_strength_is_for_all_layers(model, tokens) -> None:
    assert named(per_layer(model, Ablate(S, strength=0.5), strength=0.5)) == named(
        per_layer(model, Ablate(S, strength=0.25))
    )
    assert mi.verify_baked(model, per_layer(model, Ablate(S), strength=0.5), tokens) < 1e-12


def test_numbers_of_numpy_and_torch_are_baked_as_plain_ones(unchecked, model, tokens) -> None:
    wanted = logits_with(model, tokens, per_layer(model, Ablate(S), strength=[0.5, 1.0]))
    array = np.array([0.5, 1.0], dtype=np.float32)
    for strength in (array, torch.tensor([0.5, 1.0]), dict(enumerate(array)), lambda layer: array[layer]):
        hooks = per_layer(model, Ablate(S), strength=strength)
        assert torch.equal(logits_with(model, tokens, hooks), wanted)
        assert mi.verify_baked(model, hooks, tokens) < 1e-12
    for strength in (np.float32(0.5), torch.tensor(0.5)):
        assert named(per_layer(model, Ablate(S), strength=strength)) == named(per_layer(model, Ablate(S), strength=0.5))
    with pytest.raises(ValueError, match="edits is a list: give one edit for all layers, or"):
        per_layer(model, [Ablate(S), Ablate(S)])


def test_positions_and_passes_hold_for_every_layer_and_the_embeddings(model, tokens) -> None:
    hooks = per_layer(model, Ablate(S), strength=[0.5, 1], embed=Ablate(T), pos=-1)
    clean = mi.collect(model, tokens, mi.last_residual(model), pos=None)[mi.last_residual(model)]
    got = mi.collect(model, tokens, mi.last_residual(model), pos=None, hooks=hooks)[mi.last_residual(model)]
    assert torch.equal(got[:, :-1], clean[:, :-1])
    assert (got[:, -1] - clean[:, -1]).abs().max() > 0.1
    new = per_layer(model, Ablate(S), when="new", embed=Ablate(T))
    assert {hook.when for _, hook in new} == {"new"}
    with pytest.raises(ValueError, match="weights act at all"):
        mi.bake_(model, hooks)


def test_layers_of_strength_0_and_layers_not_named_get_no_hook(model) -> None:
    assert [name for name, _ in per_layer(model, Ablate(S), strength=[0, 1], site="attn_out")] == [
        "blocks.1.hook_attn_out"
    ]
    assert [name for name, _ in per_layer(model, Ablate(S), strength={0: 1}, site="attn_out")] == [
        "blocks.0.hook_attn_out"
    ]
    with pytest.raises(ValueError, match="per_layer leaves no layer to edit"):
        per_layer(model, Ablate(S), strength=[0, 0])


@pytest.mark.compat
@pytest.mark.parametrize("embed", [None, Ablate(T)])
def test_per_layer_edits_are_baked_as_they_are_hooked(model, tokens, embed) -> None:
    hooks = per_layer(model, {0: Ablate(S), 1: Ablate(T)}, strength=[0.3, 1.0], embed=embed)
    assert mi.verify_baked(model, hooks, tokens) < 1e-12
    whole = logits_with(model, tokens, Ablate(S).at(*mi.writers(model)))
    assert (logits_with(model, tokens, hooks) - whole).abs().max() > 0.05 * whole.abs().max()


@dataclass(frozen=True, eq=False)
class NoStrength(Intervention):
    """An intervention of a user's own, without a strength."""

    laws = frozenset()
    rank = None

    def __call__(self, x, hook=None):
        return -x


@pytest.mark.parametrize(
    ("edits", "strength", "error", "message"),
    [
        ({2: Ablate(S)}, None, IndexError, r"edits names layer 2; the model has 2, so 0 to 1 \(or -2 to -1\)\."),
        ({-3: Ablate(S)}, None, IndexError, "edits names layer -3"),
        ({0: Ablate(S), -2: Ablate(S)}, None, ValueError, "edits names layer 0 twice, once counted from the end"),
        (Ablate(S), [1.0], ValueError, "strength has 1 numbers; the model has 2 layers, and each needs one"),
        (Ablate(S), {5: 1}, IndexError, "strength names layer 5"),
        ({}, None, ValueError, "leaves no layer to edit"),
        (Ablate(S), [0.5, float("nan")], ValueError, "A strength of nan is not a number to multiply by"),
        (NoStrength(), [0.5, 1], ValueError, "has no strength to multiply"),
    ],
)
def test_wrong_layers_and_lengths_are_refused(model, edits, strength, error, message) -> None:
    with pytest.raises(error, match=message):
        per_layer(model, edits, strength=strength)


def test_the_kernel_peaks_falls_and_ends() -> None:
    assert layer_kernel(5, distance=2, peak=1.0, position=0.5, floor=0.5) == (0.5, 0.75, 1.0, 0.75, 0.5)
    assert layer_kernel(5, distance=1, peak=1.0, position=1, floor=0.2) == pytest.approx((0, 0, 0, 0.2, 1.0))
    assert layer_kernel(1, distance=0.1, peak=1.2, position=0.7) == (1.2,)


@given(st.integers(1, 40), st.floats(0.1, 30), st.floats(0, 1), st.floats(-2, 2), st.floats(-2, 2))
def test_the_kernel_stays_between_peak_and_floor_and_never_runs_past_the_end(
    n, distance, position, peak, floor
) -> None:
    found = layer_kernel(n, distance=distance, peak=peak, position=position, floor=floor)
    centre = position * (n - 1)
    assert len(found) == n
    for layer, s in enumerate(found):
        inside = abs(layer - centre) <= distance
        assert (min(peak, floor) - 1e-9 <= s <= max(peak, floor) + 1e-9) if inside else s == 0


@pytest.mark.parametrize("wrong", [{"n_layers": 0}, {"distance": 0}, {"position": 1.2}, {"position": -1}])
def test_a_kernel_that_means_nothing_is_refused(wrong) -> None:
    with pytest.raises(
        ValueError, match=r"layer_kernel got .*a distance above 0 and a position from 0 to 1 are needed"
    ):
        layer_kernel(**{"n_layers": 4, "distance": 2, **wrong})


@pytest.mark.compat
def test_visible_takes_the_mean_off_for_layernorm_and_nothing_else(model) -> None:
    seen = visible(model, T)
    assert (seen.basis.sum(0)).abs().max() < 1e-13
    assert seen.rank == 2
    assert seen.overlap(Subspace.span((T.basis - T.basis.mean(0)).T)) == pytest.approx(1)
    assert visible(tiny(norm=None), T) is T
    assert visible(model, seen).overlap(seen) == pytest.approx(1)


def test_visible_loses_the_direction_of_all_ones_and_says_when_nothing_is_left(model) -> None:
    with_ones = Subspace.span(torch.stack([ONES, *S.basis.T]))
    assert visible(model, with_ones).rank == 1
    hidden_in_a_mix = Subspace.span(torch.stack([ONES + S.basis[:, 0], ONES - S.basis[:, 0]]))
    assert visible(model, hidden_in_a_mix).rank == 1
    with pytest.raises(ValueError, match="lies along the direction of all ones, which LayerNorm subtracts"):
        visible(model, Subspace.span(ONES))
    with pytest.raises(ValueError, match="is no subspace of the residual stream, whose width is 16"):
        visible(model, Subspace.random(8, 1))


def test_visible_keeps_where_a_direction_comes_from_and_the_size_that_is_seen(model) -> None:
    raw = 3 * (0.6 * ONES + 0.8 * visible(model, S).basis[:, 0])
    direction = Subspace(raw[:, None] / 3, "mine", {"site": "resid", "sizes": [3.0]})
    seen = visible(model, direction)
    assert seen.name == "mine"
    assert seen.source["site"] == "resid"
    assert torch.allclose(seen.vector, raw - raw.mean(), atol=1e-12)
    assert "sizes" not in visible(model, Subspace(T.basis, source={"sizes": [1.0, 2.0]})).source


@pytest.mark.compat
def test_readers_of_a_layernorm_model_do_not_see_the_direction_of_all_ones(model, tokens) -> None:
    """Removing it everywhere changes no logit; removing any other direction does."""
    stream = [name for part in ("resid_pre", "resid_post") for name in mi.sites(model, part)]
    clean = logits_with(model, tokens)
    hidden = logits_with(model, tokens, Ablate(Subspace.span(ONES)).at(*stream))
    other = logits_with(model, tokens, Ablate(visible(model, S)).at(*stream))
    assert (hidden - clean).abs().max() < 1e-12 < 1e-2 < (other - clean).abs().max()


def test_models_without_layernorm_see_it() -> None:
    models = [tiny(norm=None), *([family("gated MLP, grouped heads")] if has_hooked_transformer() else [])]
    for model in models:
        tokens = tokens_for(model)
        hidden = logits_with(model, tokens, Ablate(Subspace.span(ONES)).at(*mi.sites(model, "resid_post")))
        assert (hidden - logits_with(model, tokens)).abs().max() > 1e-2
        assert visible(model, Subspace.span(ONES)).rank == 1
