"""Choosing a direction: a planted one wins over a decoy, scores equal naive passes, rules never leave nothing."""

import json

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Add, Subspace, choose, find
from mi_ablate._judging import Rules
from mi_ablate.find.grid import Key
from mi_ablate.metrics import accuracy, cross_entropy, kl, logit_diff, noise_floor, refusal_score
from models import has_hooked_transformer, logits_with, tiny, tokens_for, word_tokenizer

D, LAST = 0, "blocks.0.hook_resid_post"
"""The token of the behaviour; the site where the planted direction is written."""
W, V, U = 13, 14, 15
"""Coordinates: what triggers write, what attention makes of it at later positions and D's logit reads, and a decoy."""


def planted(n_layers: int = 3, source: int = W, **extra) -> object:
    """Token 1 or 2 writes ``source``; layer 0 averages it over positions into V, read as token D. 9 / 10 write +-U."""
    g = torch.Generator().manual_seed(3)
    w_e = torch.zeros(12, 16, dtype=torch.float64)
    w_e[:, :12] = 0.3 * torch.randn(12, 12, generator=g, dtype=torch.float64)
    w_e[1:3, source], w_e[9, U], w_e[10, U] = 4.0, 3.0, -3.0
    w_u = torch.zeros(16, 12, dtype=torch.float64)
    w_u[:12] = 0.5 * torch.randn(12, 12, generator=g, dtype=torch.float64)
    w_u[V, D] = 6.0
    w_v, w_o = torch.zeros(2, 16, 8, dtype=torch.float64), torch.zeros(2, 8, 16, dtype=torch.float64)
    w_v[0, source, 0] = w_o[0, 0, V] = 1.5
    weights = {
        "embed.W_E": w_e,
        "pos_embed.W_pos": torch.zeros(12, 16),
        "unembed.W_U": w_u,
        "unembed.b_U": -3.0 * torch.eye(12)[D],
    }
    for i in range(n_layers):
        block = f"blocks.{i}"
        for name, shape in {"W_Q": (2, 16, 8), "W_K": (2, 16, 8), "b_Q": (2, 8), "b_K": (2, 8), "b_V": (2, 8)}.items():
            weights[f"{block}.attn.{name}"] = torch.zeros(shape)
        weights |= {f"{block}.attn.W_V": w_v * (i == 0), f"{block}.attn.W_O": w_o * (i == 0)}
        weights |= {f"{block}.attn.b_O": torch.zeros(16), f"{block}.mlp.b_out": torch.zeros(16)}
        weights |= {f"{block}.mlp.W_out": torch.zeros(24, 16)}
    return tiny(n_layers=n_layers, norm=None, vocab=12, weights=weights, **extra)


def behaving(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Prompts: decoy, trigger or not, three plain tokens; the label is the trigger's, and the decoy's too."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2 == 0
    first = torch.where(labels, 9, 10)
    second = torch.where(labels, torch.randint(1, 3, (n,), generator=g), torch.randint(3, 5, (n,), generator=g))
    return torch.cat([first[:, None], second[:, None], torch.randint(5, 9, (n, 3), generator=g)], 1), labels


@pytest.fixture(scope="module")
def model():
    return planted()


@pytest.fixture(scope="module")
def found(model):
    return find.candidates(model, *behaving(40, 0), ("resid_post",), pos=[0, -1])


SCORE = refusal_score(torch.tensor([D]))


@pytest.mark.compat
@pytest.mark.parametrize("by", ["bypass", "cosmic"])
def test_the_planted_direction_wins_over_a_decoy_that_separates_the_classes_better(model, found, by: str) -> None:
    assert found.table()[0]["pos"] == 0
    assert found.table()[0]["r2"] > 0.99
    choice = choose(model, found, *behaving(30, 1), SCORE, by=by)
    assert choice.best.pos == -1
    assert abs(float(choice.subspace.basis[V, 0])) > 0.95
    best = choice.table()[0]
    assert best["kept"]
    assert best["why"] == choice.relaxed == ""
    assert best["r2"] < 0.9
    decoy = next(row for row in choice.table() if row["pos"] == 0)
    assert decoy["bypass"] == pytest.approx(choice.clean["bypass"], abs=0.3)
    assert best["bypass"] < choice.clean["bypass"] - 5
    assert best["induce"] > choice.clean["induce"] + 5
    assert best["kl"] < 0.1
    after = logits_with(model, behaving(30, 2)[0], choice.hooks)[behaving(30, 2)[1], -1]
    assert float((after.argmax(-1) == D).double().mean()) < 0.2


@pytest.mark.compat
@pytest.mark.parametrize("dtype", [torch.float64])
def test_the_scores_are_those_of_naive_passes(dtype: torch.dtype) -> None:
    model = tiny(n_layers=3, vocab=11, dtype=dtype)
    tokens, labels = tokens_for(model, 13), torch.arange(13) % 3 == 0
    found = find.candidates(model, tokens, labels, ("resid_pre", "attn_out"), pos=[-2, -1])
    metric = logit_diff(torch.arange(13) % 4, 5 + torch.arange(13) % 4, pos=-2)
    choice = choose(model, found, tokens, labels, metric, kl_max=None, drop_last=0, batch_size=4)
    assert choice.tried == choice.found == len(choice.rows) == len(found) == 12

    up, down = (torch.nonzero(x).flatten() for x in (labels, ~labels))
    posts = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]

    def acts(rows: Tensor, hooks: mi._types.FwdHooks = ()) -> Tensor:
        got = mi.collect(model, tokens[rows], posts, hooks=list(hooks))
        return torch.stack([got[name].mean(0) for name in posts])

    def score(logits: Tensor, rows: Tensor) -> float:
        return float(metric(logits, None, rows).mean())

    clean = logits_with(model, tokens[down])
    cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(acts(up), acts(down), strict=True)]
    layer = cosines.index(min(cosines))
    assert choice.clean["cosmic_layers"] == [layer]
    assert choice.clean["bypass"] == pytest.approx(score(logits_with(model, tokens[up]), up), abs=1e-10)
    assert choice.clean["induce"] == pytest.approx(score(clean, down), abs=1e-10)
    assert choice.clean["kl_floor"] == pytest.approx(noise_floor(clean), rel=1)
    for row in choice.table():
        s = found.subspace(row["site"], row["pos"])
        gone, added = Ablate(s).at(*mi.writers(model)), Add(s.vector).at(row["site"])
        assert row["bypass"] == pytest.approx(score(logits_with(model, tokens[up], gone), up), abs=1e-10)
        assert row["induce"] == pytest.approx(score(logits_with(model, tokens[down], added), down), abs=1e-10)
        moved = float(kl()(logits_with(model, tokens[down], gone), clean, down).mean())
        assert row["kl"] == pytest.approx(moved, abs=1e-10)
        first = torch.cosine_similarity(acts(up, gone)[layer], acts(down)[layer], dim=0)
        second = torch.cosine_similarity(acts(down, added)[layer], acts(up)[layer], dim=0)
        assert row["cosmic"] == pytest.approx(float(first + second), abs=1e-10)


@pytest.mark.parametrize("norm", ["LN", None])
def test_what_is_left_out_of_a_pass_changes_nothing(monkeypatch, norm: str | None) -> None:
    model = tiny(n_layers=3, norm=norm)
    tokens, labels = tokens_for(model, 10), torch.arange(10) % 2 == 0
    found = find.candidates(model, tokens, labels, ("resid_mid", "mlp_out"), pos=-1)
    ran = [0, 0, 0]
    for layer in range(3):
        model.blocks[layer].register_forward_hook(lambda *_, layer=layer: ran.__setitem__(layer, ran[layer] + 1))
    quick = choose(model, found, tokens, labels, SCORE, kl_max=None)
    few, ran[:] = list(ran), [0, 0, 0]
    monkeypatch.setattr("mi_ablate._scores.agree", lambda a, b: False)
    whole = choose(model, found, tokens, labels, SCORE, kl_max=None)
    for a, b in zip(quick.table(), whole.table(), strict=True):
        assert a == pytest.approx(b, abs=1e-10)
    assert few[2] - few[1] == few[1] - few[0] == 3  # two additions begin at each block, and the check that they may
    assert ran[0] == ran[1] == ran[2]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_do_not_matter_and_a_metric_of_its_own_sees_whole_logits(batch_size: int) -> None:
    model = tiny(n_layers=2)
    tokens, labels = tokens_for(model, 9), torch.arange(9) % 2 == 0
    found = find.candidates(model, tokens, labels, ("resid_post",), pos=-1)
    answers = torch.arange(9)

    def own(logits: Tensor, clean: Tensor, rows: Tensor) -> Tensor:
        assert logits.shape[1:] == clean.shape[1:] == (tokens.shape[1], 11)
        return logits[torch.arange(len(rows)), -1, answers[rows]]

    one = choose(model, found, tokens, labels, own, batch_size=batch_size, kl_max=None)
    whole = choose(model, found, tokens, labels, logit_of(answers), batch_size=9, kl_max=None)
    for a, b in zip(one.table(), whole.table(), strict=True):
        assert a == pytest.approx(b, abs=1e-10)


def logit_of(answers: Tensor) -> mi.metrics.PositionMetric:
    return mi.metrics.PositionMetric("logit", -1, lambda x, _, rows: x.gather(1, answers[rows][:, None])[:, 0])


@pytest.mark.compat
def test_the_side_of_the_padding_does_not_matter() -> None:
    model = tiny(n_layers=2, norm="LN", weights={"pos_embed.W_pos": torch.zeros(12, 16, dtype=torch.float64)})
    lengths = torch.tensor([7, 5, 6, 7, 4, 7, 5, 6])
    real = torch.arange(7)[None] < lengths[:, None]
    right, labels = torch.where(real, tokens_for(model, 8), 3), torch.arange(8) % 2 == 0
    left = torch.stack([row.roll(7 - n) for row, n in zip(right, lengths.tolist(), strict=True)])
    found = find.candidates(model, right, labels, ("resid_post",), pos=[-2, -1], attention_mask=real.long())
    one = choose(model, found, right, labels, SCORE, attention_mask=real.long(), kl_max=None)
    other = choose(model, found, left, labels, SCORE, attention_mask=real.flip(1).long(), kl_max=None)
    alone = [logits_with(model, row[None, :n])[0, -1] for row, n in zip(right, lengths.tolist(), strict=True)]
    mean = SCORE(torch.stack(alone)[:, None], None, torch.arange(8))[labels].mean()
    assert one.clean["bypass"] == pytest.approx(float(mean), abs=1e-10)
    for a, b in zip(one.table(), other.table(), strict=True):
        assert a == pytest.approx(b, abs=1e-10)


def test_padding_that_the_model_masks_itself_also_where_a_pass_begins_at_a_block() -> None:
    if not has_hooked_transformer():
        pytest.skip("a bridge derives no mask from tokens")
    model = tiny(n_layers=3, vocab=60)
    model.tokenizer = word_tokenizer(60)
    model.tokenizer.padding_side = "left"
    tokens, labels = 2 + tokens_for(model, 12) % 58, torch.arange(12) % 2 == 0
    tokens[6:, :2] = 1
    mask = (tokens != 1).long()
    found = find.candidates(model, tokens, labels, ("resid_pre",), pos=-1, attention_mask=mask)
    options = {"batch_size": 2, "kl_max": None, "induce_min": -1e9}
    told = choose(model, found, tokens, labels, SCORE, attention_mask=mask, **options)
    derived = choose(model, found, tokens, labels, SCORE, **options)
    for a, b in zip(told.table(), derived.table(), strict=True):
        assert a == pytest.approx(b, abs=1e-10)


def test_a_pass_does_not_begin_at_a_block_whose_input_a_hook_of_the_user_changes() -> None:
    if not has_hooked_transformer():
        pytest.skip("a bridge has no way to start at a block")
    model = tiny(n_layers=3)
    model.add_hook("blocks.2.hook_resid_pre", lambda x, hook: 0.5 * x, is_permanent=True)
    tokens, labels = tokens_for(model, 8), torch.arange(8) % 2 == 0
    found = find.candidates(model, tokens, labels, ("mlp_out",), pos=-1)
    down = torch.nonzero(~labels).flatten()
    for row in choose(model, found, tokens, labels, SCORE, kl_max=None, induce_min=-1e9).table():
        added = logits_with(model, tokens[down], Add(found.subspace(row["site"]).vector).at(row["site"]))
        assert row["induce"] == pytest.approx(float(SCORE(added, None, down).mean()), abs=1e-10)


def test_a_kl_that_is_no_number_passes_no_rule() -> None:
    rows = [{"layer": 0, "induce": 1.0, "kl": kl_of} for kl_of in (0.01, float("nan"))]
    assert Rules("bypass", 0, 0.1, None).judge(rows, {"bypass": 1.0, "induce": 0.0}, 2) == ""
    assert [row["kept"] for row in rows] == [True, False]


@pytest.mark.compat
@pytest.mark.parametrize("drop_last", [0, 0.2, 0.99])
def test_a_model_of_one_layer_has_candidates(drop_last: float) -> None:
    model = planted(1)
    found = find.candidates(model, *behaving(40, 0), ("resid_pre", "resid_post"), pos=[0, -1])
    choice = choose(model, found, *behaving(30, 1), SCORE, drop_last=drop_last)
    assert choice.best == Key("blocks.0.hook_resid_post", -1, None)
    assert choice.relaxed == ""


def test_the_last_layers_are_dropped_whole(model, found) -> None:
    def dropped(share: float) -> set[int]:
        rows = choose(model, found, *behaving(30, 1), SCORE, drop_last=share).table()
        return {row["layer"] for row in rows if row["why"] == "drop_last"}

    assert [dropped(share) for share in (0, 0.3, 1 / 3, 0.7, 0.999)] == [set(), set(), {2}, {1, 2}, {1, 2}]


@pytest.mark.compat
def test_a_rule_that_nothing_passes_is_dropped_and_said(model, found) -> None:
    given = (model, found, *behaving(30, 1), SCORE)
    strict = choose(*given, kl_max=1e-9)
    assert strict.relaxed == "kl_max dropped: nothing passed"
    assert strict.best == choose(*given).best
    assert strict.table()[0]["why"] == "kl_max"
    assert strict.table()[0]["kept"]
    assert "relaxed" in repr(strict)
    assert strict.subspace.source["chosen"]["relaxed"] == strict.relaxed
    both = choose(*given, kl_max=1e-9, induce_min=50.0)
    assert both.relaxed == "kl_max and induce_min dropped: nothing passed"
    late = {key: found.subspace(*key) for key in found if key.site == "blocks.2.hook_resid_post"}
    assert choose(model, late, *given[2:], drop_last=0.5).relaxed == "drop_last dropped: nothing passed"
    assert choose(*given, kl_max=None).relaxed == choose(*given, induce_min=None).relaxed == ""


def test_where_the_behaviour_is_not_there_the_rule_of_the_induction_is_not_applied_and_that_is_said(
    model, found
) -> None:
    tokens, labels = behaving(30, 1)
    choice = choose(model, found, tokens, ~labels, SCORE)
    assert choice.relaxed == "induce_min does not apply (the clean metric is no higher on the positive prompts)"
    figure = choice.plot()
    assert tuple(figure.layout.xaxis.range) == (-0.5, 1.5), "crosses do not widen it"
    label = figure.layout.coloraxis.colorbar.title.text.replace("<br>", " ")
    assert label.strip() == "metric, below that of no edit"
    assert "share" not in label
    row = next(row for row in choice.table() if (row["layer"], row["pos"]) == (0, -1))
    assert figure.data[0].z[0][1] == pytest.approx(choice.clean["bypass"] - row["bypass"])


def test_the_embeddings_stand_above_the_layers(model) -> None:
    found = find.candidates(model, *behaving(40, 0), ("resid_pre", "hook_embed"), pos=1)
    figure = choose(model, found, *behaving(30, 1), SCORE).plot()
    assert list(figure.layout.yaxis.ticktext) == [
        "hook_embed",
        *(f"blocks.{layer}.hook_resid_pre" for layer in range(3)),
    ]


@pytest.mark.compat
def test_cosmic_needs_no_metric(model, found) -> None:
    tokens, labels = behaving(30, 1)
    choice, beside = (choose(model, found, tokens, labels, m, by="cosmic") for m in (None, SCORE))
    assert choice.best == beside.best
    for row, other in zip(choice.table(), beside.table(), strict=True):
        assert row["bypass"] is row["induce"] is None
        assert (row["kl"], row["cosmic"]) == pytest.approx((other["kl"], other["cosmic"]), abs=1e-12)
    assert choice.clean["bypass"] is choice.clean["induce"] is None
    assert "bypass" not in repr(choice)


def test_only_the_best_of_so_many_are_run_and_that_is_said(model, found) -> None:
    choice = choose(model, found, *behaving(30, 1), SCORE, limit=2)
    assert (choice.tried, choice.found, len(choice.rows)) == (2, 6, 2)
    assert {row["pos"] for row in choice.table()} == {0}
    assert choice.subspace.source["chosen"]["tried"] == 2
    assert choice.plot().data[0].z.count(None) == 0


def test_equal_class_means_are_no_candidate(model) -> None:
    tokens, labels = behaving(40, 0)
    tokens[:, 0] = 9
    found = find.candidates(model, tokens, labels, ("resid_post",), pos=[0, -1])
    choice = choose(model, found, *behaving(30, 1), SCORE)
    assert (choice.tried, choice.found) == (3, 6)
    assert [row["why"] for row in choice.table()[3:]] == ["equal means"] * 3
    assert choice.table()[-1]["bypass"] is None
    assert sum(z is None for line in choice.plot().data[0].z for z in line) == 3
    nothing = find.candidates(model, tokens, labels, ("resid_post",), pos=0)
    with pytest.raises(ValueError, match="The class means are equal at all 3 candidates: there is no direction"):
        choose(model, nothing, *behaving(30, 1), SCORE)


def test_what_it_shows(model, found) -> None:
    calls = []
    choice = choose(model, found, *behaving(30, 1), SCORE, batch_size=7, progress=lambda *at: calls.append(at))
    assert calls[-1][0] == calls[-1][1] == len(calls) == 3 * (1 + 6) + 3 * (1 + 6 + 6)
    assert len(repr(choice)) < 120
    assert "of 6: bypass" in repr(choice)
    assert "induce" in choice._repr_html_()
    chosen = json.loads(json.dumps(choice.subspace.source))["chosen"]
    assert chosen["prompts"] == {"positive": 15, "negative": 15}
    assert (chosen["by"], chosen["tried"], chosen["bypass"]) == ("bypass", 6, choice.table()[0]["bypass"])
    figure = choice.plot()
    assert len(figure.data[0].z) == 3
    assert len(figure.data[1].x) == sum(not row["kept"] for row in choice.table())
    assert set(figure.data[1].text) == {"refused: induce_min"}
    assert list(figure.layout.yaxis.ticktext) == [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    removed = figure.data[0].z[0][1]
    row = next(row for row in choice.table() if (row["layer"], row["pos"]) == (0, -1))
    up, down = choice.clean["bypass"], choice.clean["induce"]
    assert removed == pytest.approx((up - row["bypass"]) / (up - down))
    assert abs(choose(model, found, *behaving(30, 1), None, by="cosmic").plot().data[0].z[0][1]) <= 1


def test_heads_and_other_edits(model) -> None:
    tokens, labels = behaving(40, 0)
    found = find.candidates(model, tokens, labels, ("z", "resid_post"), pos=-1)
    with pytest.raises(ValueError, match="has width 8, and the residual stream, where it would be removed, 16"):
        choose(model, found, *behaving(30, 1), SCORE)
    one = {key: found.subspace(*key) for key in found if key.head == 0 and key.site.startswith("blocks.0")}
    choice = choose(
        model, one, *behaving(30, 1), SCORE, edit=lambda s: Ablate(s).at(s.source["site"], head=s.source["head"])
    )
    assert choice.best == Key("blocks.0.attn.hook_z", -1, 0)
    assert choice.table()[0]["bypass"] < 1
    assert choice.table()[0]["induce"] > 5
    assert choice.hooks[0][0] == "blocks.0.attn.hook_z"
    assert "head 0" in repr(choice)


def test_several_directions_and_those_of_no_size_are_removed_only(model) -> None:
    pair = {("blocks.0.hook_resid_post", -1): Subspace(torch.eye(16, dtype=torch.float64)[:, [V, U]])}
    choice = choose(model, pair, *behaving(30, 1), SCORE, induce_min=None)
    assert choice.table()[0]["induce"] is choice.table()[0]["cosmic"] is choice.table()[0]["r2"] is None
    assert choice.table()[0]["bypass"] < 1
    with pytest.raises(ValueError, match="is not one vector with a size, so it cannot be added"):
        choose(model, pair, *behaving(30, 1), SCORE)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"labels": torch.ones(30, dtype=torch.bool)}, ValueError, "All 30 labels are [True]"),
        ({"labels": torch.ones(29, dtype=torch.bool)}, ValueError, "labels of shape [29]"),
        (
            {"metric": accuracy(torch.zeros(29, dtype=torch.int64))},
            ValueError,
            "has answers for 29 examples; there are 30",
        ),
        ({"metric": cross_entropy(torch.zeros(30, dtype=torch.int64))}, ValueError, "is a loss, lower where the model"),
        ({"metric": None}, ValueError, "by='bypass' needs a metric that is higher where the behaviour is there"),
        ({"metric": lambda x, c, rows: x[:, -1]}, ValueError, "for a batch of 15 prompts, 0 of them NaN or infinite"),
        ({"metric": lambda x, c, rows: x[:, -1, 0] * torch.inf}, ValueError, "one finite number a prompt is needed"),
        ({"by": "luck"}, ValueError, "by='luck' is 'bypass' (a metric decides) or 'cosmic'"),
        ({"kl_max": 0}, ValueError, "kl_max=0: a KL above 0, in nats, or None"),
        ({"kl_max": float("nan")}, ValueError, "kl_max=nan: a KL above 0, in nats, or None"),
        ({"induce_min": float("nan")}, ValueError, "induce_min=nan: a share of the way to the positive prompts"),
        ({"drop_last": 1}, ValueError, "drop_last=1: a share of the layers from 0 to below 1."),
        ({"limit": 0}, ValueError, "limit=0: at least one candidate must be run, or None for all."),
        ({"found": {}}, ValueError, "There is no candidate to choose from: the mapping is empty."),
        ({"found": {("blocks.9.hook_resid_post", -1): "sized"}}, KeyError, "blocks.9.hook_resid_post"),
        ({"found": {(LAST, -1): "sized"}, "limit": 1}, ValueError, "limit keeps the candidates with the highest r2"),
        ({"found": {(LAST, -1): "narrow"}}, ValueError, "has width 9, and the residual stream"),
        ({"found": {(LAST, -1): "sized", (LAST, -1, None): "sized"}}, ValueError, "mapping names a candidate twice"),
        ({"found": {("block.0.hook_resid_post", -1): "sized"}, "induce_min": None}, KeyError, LAST),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
    ],
)
def test_bad_input(model, found, change: dict, error: type[Exception], text: str) -> None:
    tokens, labels = behaving(30, 1)
    given = {"found": found, "tokens": tokens, "labels": labels, "metric": SCORE} | change
    if isinstance(given["found"], dict):
        widths = {"sized": 16, "narrow": 9}
        given["found"] = {
            key: Subspace(torch.eye(widths[what], 1, dtype=torch.float64), source={"sizes": [1.0]})
            for key, what in given["found"].items()
        }
    with pytest.raises(error) as caught:
        choose(model, **given)
    assert text in str(caught.value)


def test_tokens_and_masks_of_other_shapes(unchecked, model, found) -> None:
    tokens, labels = behaving(30, 1)
    with pytest.raises(ValueError, match=r"attention_mask \[30, 4\] and tokens \[30, 5\]"):
        choose(model, found, tokens, labels, SCORE, attention_mask=torch.ones(30, 4))
    with pytest.raises(ValueError, match=r"names no candidate: \(site, pos\) is needed, such as"):
        choose(model, {LAST: found.subspace(LAST)}, tokens, labels, SCORE)
    with pytest.raises(ValueError, match="tokens are a list"):
        choose(model, found, [[1, 2]], labels, SCORE)


def test_candidates_of_three_classes_are_refused(model) -> None:
    tokens, labels = behaving(30, 1)
    three = find.candidates(model, tokens, torch.arange(30) % 3, ("resid_post",))
    with pytest.raises(ValueError, match="choose takes candidates of two classes; these have 3"):
        choose(model, three, tokens, labels, SCORE)
