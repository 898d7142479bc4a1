"""Candidates at every position, layer, site and head from one pass: equal to fitting each by itself."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, collect, find
from models import tiny, tokens_for

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "mlp.hook_post")
POST = "blocks.1.hook_resid_post"
Z = "blocks.1.attn.hook_z"
N = 23
LABELS = torch.arange(N) % 3 == 0


@pytest.fixture(scope="module")
def prompts(model) -> Tensor:
    return tokens_for(model, N)


@pytest.mark.compat
def test_each_candidate_is_what_fitting_its_activations_gives(model, prompts) -> None:
    found = find.candidates(model, prompts, LABELS, SITES, pos=[0, -1], batch_size=5)
    for key in found:
        acts = collect(model, prompts, key.site, pos=key.pos)[key.site]
        acts = acts if key.head is None else acts[:, key.head]
        wanted = mi.fit(acts, mi.contrast(LABELS))
        assert torch.allclose(found[key].coef, wanted.coef, atol=1e-12)
        assert torch.allclose(found[key].intercept, wanted.intercept, atol=1e-12)
        assert torch.allclose(found[key].predict(mi.contrast(LABELS)), wanted.predict(mi.contrast(LABELS)), atol=1e-12)
        assert found[key].r2 == pytest.approx(wanted.r2, abs=1e-12)
        assert (found[key].labels, found[key].n) == (wanted.labels, N)


@pytest.mark.compat
def test_the_keys_are_all_positions_layers_sites_and_heads(model, prompts) -> None:
    found = find.candidates(model, prompts, LABELS, SITES, pos=[0, -2, -1])
    with_heads = 3 * 2 * model.cfg.n_heads
    assert len(found) == len(list(found)) == 3 * 2 * 5 + with_heads
    assert {key.head for key in found if key.site == Z} == {0, 1}
    assert {key.head for key in found if key.site == POST} == {None}
    assert {mi.model.layer_of(key.site) for key in found} == {0, 1}
    assert (POST, -2, None) in list(found)
    assert repr(found) == "Candidates(42 at 12 sites, n 23, 2 classes)"


@pytest.mark.compat
@pytest.mark.parametrize("batch_size", [1, 4, 22])
def test_the_batch_size_does_not_matter(model, prompts, batch_size: int) -> None:
    whole = find.candidates(model, prompts, LABELS, SITES, pos=[-2, -1], batch_size=N)
    parts = find.candidates(model, prompts, LABELS, SITES, pos=[-2, -1], batch_size=batch_size, robust=None)
    for key in whole:
        scale = float(whole[key].coef.norm())
        assert float((whole[key].coef - parts[key].coef).norm()) < 1e-10 * scale
        assert whole[key].r2 == pytest.approx(parts[key].r2, abs=1e-10)
    whole, parts = (
        find.candidates(model, prompts, LABELS, batch_size=b, robust="winsor", quantile=0.8) for b in (N, batch_size)
    )
    assert torch.allclose(whole.subspace(POST).vector, parts.subspace(POST).vector, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"standardised": True}, {"against": "reference"}, {"against": torch.ones(16)}])
@pytest.mark.parametrize("robust", [{}, {"robust": "winsor", "quantile": 0.9}], ids=["plain", "winsor"])
def test_the_subspace_is_the_difference_of_means_of_those_activations(model, prompts, options, robust) -> None:
    found = find.candidates(model, prompts, LABELS, "resid_post", pos=-2, batch_size=4, **robust)
    acts = collect(model, prompts, POST, pos=-2)[POST]
    wanted = find.difference_of_means(acts, LABELS, **options, **robust)
    s = found.subspace(POST, -2, **options)
    assert torch.allclose(s.vector, wanted.vector, atol=1e-12)
    assert s.source["coordinates"] == pytest.approx(wanted.source["coordinates"], abs=1e-12)
    assert {key: s.source.get(key) for key in robust} == robust
    assert s.source["n"] == wanted.source["n"] == {"0": 15, "1": 8}
    assert {key: s.source[key] for key in ("site", "pos", "head")} == {"site": POST, "pos": -2, "head": None}
    assert json.loads(json.dumps(s.source)) == s.source
    assert s.name == POST


def test_a_head_is_a_candidate_of_its_own_width(model, prompts) -> None:
    s = find.candidates(model, prompts, LABELS, "z").subspace(Z, head=1)
    acts = collect(model, prompts, Z)[Z][:, 1]
    assert s.d == model.cfg.d_head
    assert torch.allclose(s.vector, find.difference_of_means(acts, LABELS).vector, atol=1e-12)
    assert s.source["head"] == 1


@pytest.mark.compat
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_real_tokens_on_either_side_of_the_padding(model, side: str) -> None:
    lengths = torch.arange(N) % 4 + 3
    prompts = [tokens_for(model, 1, int(n), seed=i)[0] for i, n in enumerate(lengths)]
    width, short = 7, torch.zeros(N, 7, dtype=torch.int64)
    mask = torch.zeros(N, width, dtype=torch.int64)
    for i, row in enumerate(prompts):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        short[i, place], mask[i, place] = row, 1
    found = find.candidates(model, short, LABELS, pos=[0, -1], attention_mask=mask, batch_size=6)
    for pos in (0, -1):
        alone = torch.stack([collect(model, row[None], POST, pos=pos)[POST][0] for row in prompts])
        wanted = find.difference_of_means(alone, LABELS).vector
        assert torch.allclose(found.subspace(POST, pos).vector, wanted, atol=1e-9)


def test_several_classes_give_a_fit_of_one_column_a_class(model, prompts) -> None:
    labels = torch.tensor([2, 5, 9, 9])[torch.arange(N) % 4]
    found = find.candidates(model, prompts, labels, "resid_post", batch_size=4)
    acts = collect(model, prompts, POST)[POST]
    wanted = mi.fit(acts, mi.classes(torch.tensor([0, 1, 2, 2])[torch.arange(N) % 4]))
    fit = found.fit(POST)
    assert torch.allclose(fit.coef, wanted.coef, atol=1e-10)
    assert fit.labels == ("class=2", "class=5", "class=9")
    assert fit.subspace().overlap(wanted.subspace()) > 1 - 1e-10
    assert found.table()[0]["r2"] == pytest.approx(max(found[key].r2 for key in found), abs=1e-12)
    with pytest.raises(ValueError, match=r"takes two classes; here are 3. fit\(site, pos, head\).subspace"):
        found.subspace(POST)


def test_the_table_is_sorted_by_the_share_that_the_classes_explain(model, prompts) -> None:
    planted = tokens_for(model, N)
    planted[:, -1] = torch.where(LABELS, 3, 7)  # the concept is which token comes last
    found = find.candidates(model, planted, LABELS, SITES, pos=[0, -1])
    rows = found.table()
    assert len(rows) == len(found)
    assert [row["r2"] for row in rows] == sorted((row["r2"] for row in rows), reverse=True)
    assert (rows[0]["site"], rows[0]["pos"], rows[0]["layer"]) == ("blocks.0.hook_resid_pre", -1, 0)
    assert rows[0]["r2"] == pytest.approx(1.0)
    assert max(row["r2"] for row in rows if row["pos"] == 0) < 0.5  # causal: position 0 cannot know
    row = next(row for row in rows if row["site"] == Z and row["head"] == 1 and row["pos"] == -1)
    assert row["norm"] == pytest.approx(float(found.subspace(Z, head=1).vector.norm()))
    assert json.loads(json.dumps(rows)) == rows


def test_the_share_and_f_of_classes_that_differ_in_nothing_are_those_that_the_table_names() -> None:
    wide = tiny(n_ctx=4)
    prompts = tokens_for(wide, 200, 4)
    for k in (2, 4):
        rows = []
        for seed in range(12):
            labels = torch.arange(200)[torch.randperm(200, generator=torch.Generator().manual_seed(seed))] % k
            rows += find.candidates(wide, prompts, labels, "resid_post", pos=[-2, -1]).table()
        assert {row["chance"] for row in rows} == {(k - 1) / 199}
        share, ratio = (sum(row[key] for row in rows) / len(rows) for key in ("r2", "F"))
        assert share == pytest.approx((k - 1) / 199, rel=0.3)
        assert ratio == pytest.approx(1, abs=0.3)
    planted = find.candidates(wide, prompts, prompts[:, -1] > 5, "resid_post", pos=[-1]).table()[0]
    assert planted["F"] == pytest.approx(planted["r2"] / ((1 - planted["r2"]) / 198))
    assert planted["F"] > 5
    certain = find.candidates(wide, prompts[:2].repeat(2, 1), [0, 1, 0, 1], "resid_pre").table()[0]
    assert certain["F"] is None  # nothing varies within the classes
    assert certain["r2"] == pytest.approx(1)


def test_winsorised_candidates_give_coordinates_of_the_activations_as_they_are(model, prompts) -> None:
    found = find.candidates(model, prompts, LABELS, "resid_post", robust="winsor", quantile=0.5)
    s, acts = found.subspace(POST), collect(model, prompts, POST)[POST]
    assert s.source["coordinates"]["positive"] == pytest.approx(float(s.coords(acts[LABELS]).mean()), abs=1e-12)
    assert abs(s.source["coordinates"]["positive"] - float(s.coords(find.winsorised(acts[LABELS], 0.5)).mean())) > 1e-2


@pytest.mark.parametrize("pos", [range(-2, 0), (-2, -1)], ids=str)
def test_positions_may_be_any_sequence(model, prompts, pos) -> None:
    assert find.candidates(model, prompts, LABELS, pos=pos).positions == (-2, -1)


@pytest.mark.compat
def test_padding_that_is_read_without_a_mask_is_warned_of() -> None:
    padded = tiny()
    padded.tokenizer = SimpleNamespace(pad_token_id=0, bos_token_id=3, padding_side="right")
    prompts = tokens_for(padded, N).clamp(min=4)
    prompts[:, 0], prompts[:5, -2:] = 3, 0
    warned = "5 of 23 prompts have the tokenizer's padding .token 0. at a position that is read"
    with pytest.warns(UserWarning, match=warned):
        find.candidates(padded, prompts, LABELS, pos=[0, -1])
    with pytest.warns(UserWarning, match=warned):
        find.refitted(padded, prompts, LABELS, POST, "class_means", 1, pos=torch.full((N,), -1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find.candidates(padded, prompts, LABELS, pos=[0, 3])
        find.candidates(padded, prompts, LABELS, pos=-1, attention_mask=(prompts != 0).long())
        padded.tokenizer.pad_token_id = 3  # as GPT-2's: at the start it is no padding
        find.candidates(padded, prompts, LABELS, pos=[0, 1])


def test_numpys_integers_masks_in_lists_and_positions_of_the_wrong_kind(unchecked, model, prompts) -> None:
    found = find.candidates(model, prompts, LABELS, pos=np.int64(-1), attention_mask=[[1] * 7] * N)
    source = found.subspace(POST, np.int64(-1)).source
    assert json.loads(json.dumps(source)) == source
    for pos in (None, slice(-2, None), -1.0, torch.tensor([-2, -1]), "last", True, [True], [-1.0]):
        with pytest.raises(ValueError, match="candidates are at an int or a list of ints"):
            find.candidates(model, prompts, LABELS, pos=pos)


@pytest.mark.compat
def test_half_precision_models_and_edits_that_stay_attached() -> None:
    half = tiny(dtype=torch.bfloat16)
    prompts = tokens_for(half, N)
    found = find.candidates(half, prompts, LABELS, "resid_post", batch_size=4)
    acts = collect(half, prompts, POST, batch_size=4)[POST]
    assert acts.dtype == torch.bfloat16
    assert torch.allclose(
        found.subspace(POST).vector, find.difference_of_means(acts.double(), LABELS).vector, atol=1e-12
    )
    model = tiny()
    first = "blocks.0.hook_resid_post"
    s = find.candidates(model, prompts, LABELS).subspace(first)
    after = find.candidates(model, prompts, LABELS, hooks=Ablate(s).at(first, pos=-1), batch_size=4)
    assert after.fit(first).r2 < 1e-20
    assert after.fit(POST).r2 > 1e-4


def test_progress_counts_prompts_and_one_batch_is_kept_at_a_time(model, prompts) -> None:
    seen: list[tuple[int, int]] = []
    few = find.candidates(model, prompts, LABELS, batch_size=10, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(10, N), (20, N), (23, N)]
    many = find.candidates(model, prompts.repeat(4, 1), LABELS.repeat(4), batch_size=10)

    def kept(found: find.Candidates) -> int:
        return sum(m.mean.numel() + m.square.numel() for m in found.moments.values())

    assert kept(few) == kept(many) == 2 * 2 * 2 * model.cfg.d_model  # mean and square, classes, layers


BAD = {
    "unknown site": (
        lambda c, m, t: c.fit("blocks.0.hook_resid_pots"),
        KeyError,
        "No candidate at 'blocks.0.hook_resid_pots'. Nearest names: blocks.0.hook_resid_post",
    ),
    "unknown position": (lambda c, m, t: c[POST, -3], KeyError, r"No candidate at position -3; collected were \[-1\]"),
    "no heads": (lambda c, m, t: c.subspace(POST, head=0), KeyError, "has no heads: leave head=0 out"),
    "which head": (lambda c, m, t: c.fit(Z), KeyError, "has a candidate for each of 2 heads: head=0 to 1"),
    "head 2": (lambda c, m, t: c.fit(Z, head=2), KeyError, "has a candidate for each of 2 heads"),
    "median": (
        lambda c, m, t: find.candidates(m, t, LABELS, robust="median"),
        ValueError,
        r"robust='median' is None or 'winsor' here. A median needs all activations at once",
    ),
    "one class": (lambda c, m, t: find.candidates(m, t, LABELS | True), ValueError, "a direction needs examples"),
    "labels": (lambda c, m, t: find.candidates(m, t, LABELS[:3]), ValueError, r"labels of shape \[3\] for 23"),
    "twice": (
        lambda c, m, t: find.candidates(m, t, LABELS, pos=[-1, -1]),
        ValueError,
        r"pos=\[-1, -1\] names a position twice",
    ),
    "no positions": (lambda c, m, t: find.candidates(m, t, LABELS, pos=[]), ValueError, r"pos=\[\]: candidates are at"),
    "site": (lambda c, m, t: find.candidates(m, t, LABELS, "resid_pots"), KeyError, "No hook point matches"),
    "out of range": (lambda c, m, t: find.candidates(m, t, LABELS, pos=7), IndexError, "pos=7 is out of range"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_says_what_to_do(model, prompts, case: str) -> None:
    call, kind, message = BAD[case]
    found = find.candidates(model, prompts, LABELS, ("resid_post", "z"))
    with pytest.raises(kind, match=message):
        call(found, model, prompts)


def test_nan_names_the_site_and_the_prompts(prompts) -> None:
    broken = tiny()
    with torch.no_grad():
        broken.embed.W_E[5] = float("nan")
    prompts = torch.where(prompts == 5, 4, prompts)
    prompts[17, -1] = 5
    with pytest.raises(
        ValueError, match=r"NaN or infinite activations at blocks.0.hook_resid_post, in prompts 12 to 17"
    ):
        find.candidates(broken, prompts, LABELS, batch_size=6)


def test_the_picture_holds_the_shares_of_the_table(model, prompts) -> None:
    found = find.candidates(model, prompts, prompts[:, 0] > 5, ("resid_post", "blocks.1.attn.hook_z"), pos=[0, -1])
    figure = found.plot(tokens=["first", "last"])
    rows = {(row["site"], row["head"], row["pos"]): row["r2"] for row in found.table()}
    drawn = figure.data[0].z
    assert len(drawn) == 4, "two sites of the stream and two heads"
    assert drawn[0][1] == pytest.approx(rows["blocks.0.hook_resid_post", None, -1])
    assert drawn[3][0] == pytest.approx(rows["blocks.1.attn.hook_z", 1, 0])
    assert "(chance 0.0" in figure.layout.title.text
    assert found._repr_html_().count("<tr>") == 9
