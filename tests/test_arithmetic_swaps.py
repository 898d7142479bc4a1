"""Causal tests of numbers: what is written, in which manner, what comes back; on a grokked toy and an exact helix."""

import itertools
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

import mi_ablate as mi
from mi_ablate.arithmetic import (
    number_means,
    pair_reconstructions,
    pairs,
    period_effects,
    problems,
    problems_of,
    reconstructions,
    swap,
)
from mi_ablate.arithmetic.writing.written import METHODS, written_by_fits
from models import loaded_family, tiny
from test_arithmetic_problems import speaking

EMBED, FIRST = "hook_embed", "blocks.0.hook_resid_pre"
KEPT: dict[str, Any] = {}
PERIODS = [97 / k for k in (44, 6, 11, 16)]
"""Of the frequencies that hold most of the embedding of the toy."""


def toy(helical: bool = False) -> Any:
    """A toy that adds modulo 97, its pairs with one b and per-number means; ``helical``: its embedding is exactly a helix."""
    if helical not in KEPT:
        model = mi.toys.load("add97").model
        found = problems_of(mi.toys.load("add97"))
        rows = found[::13]
        if helical:
            rows_of = torch.arange(97)
            design = mi.helix(rows_of, PERIODS)
            with torch.no_grad():
                W = model.W_E[:97].double()
                model.embed.W_E[:97] = mi.fit(W, design).predict(design).float()
        given = {"model": model, "pairs": pairs(found, 40, fixed="b"), "means": number_means(model, rows, FIRST)}
        KEPT[helical] = {**given, "problems": found}
    return KEPT[helical]


@pytest.mark.compat
def test_the_order_of_merit_on_a_model_that_adds() -> None:
    k = toy()
    found = swap(k["model"], k["pairs"], reconstructions(k["means"], PERIODS))
    full, pca, helix, circle, polynomial, shuffled, random = found.mean()[:, 0].tolist()
    assert found.methods == METHODS
    assert full > 8
    assert full > helix > 0.75 * full
    assert pca > 0.9 * full
    assert abs(circle - helix) < 0.5  # a number modulo 97 has no line
    assert max(abs(shuffled), abs(polynomial)) < 0.15 * full
    assert random < pca
    low, high = found.intervals()
    assert bool((low <= found.mean()).all() and (found.mean() <= high).all())
    assert found.best()["helix"]["site"] == FIRST
    share = found.share("helix")
    assert share[1, 0] < share[0, 0] < share[2, 0]
    assert "helix" in repr(found)


@pytest.mark.parametrize("folds", [0, 5])
def test_a_helix_writes_exactly_helical_states_as_they_are(folds: int) -> None:
    k = toy(helical=True)
    written = reconstructions(k["means"], PERIODS, methods=("full", "helix", "shuffled"), folds=folds)
    for manner in ("whole", "subspace", "rest mean", "add"):
        found = swap(k["model"], k["pairs"], written, manner=manner)
        full, helix, shuffled = found.values["gain"][:, 0]
        torch.testing.assert_close(helix, full, rtol=0, atol=1e-4)  # the model is float32: logits of 20
        assert (shuffled - full).abs().mean() > 1, manner
    site = k["means"].sites[0]
    acts = mi.collect(k["model"], k["pairs"].clean.tokens, site, pos=-4)[site]
    made = written["helix"].write(site, k["pairs"].clean.inputs, acts)
    torch.testing.assert_close(made, acts.double(), rtol=0, atol=1e-6)


@pytest.mark.compat
def test_full_in_the_whole_manner_is_patching() -> None:
    k = toy()
    model, clean, corrupted = k["model"], k["pairs"].clean, k["pairs"].corrupted
    right = {"logit_diff": mi.logit_diff(clean.answers, corrupted.answers), "accuracy": mi.accuracy(clean.answers)}
    for at, names in (("a", [FIRST, "blocks.1.hook_resid_pre"]), ("answer", ["blocks.0.hook_resid_post"])):
        pos, means = clean.positions[at], number_means(model, k["problems"][::30], names, of=at)
        found = swap(model, k["pairs"], reconstructions(means, PERIODS, methods=("full",)), names, at=at)
        for measure, metric in right.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # accuracy is at its ceiling
                plain = mi.patch(model, clean.tokens, corrupted.tokens, metric, names, pos=pos, controls={})
            for mine, theirs in (
                (found.values[measure][0], plain.values[:, 0, 0]),
                (found.before[measure], plain.corrupted),
                (found.clean[measure], plain.clean),
            ):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)
        edit = mi.Ablate(None, mi.collect(model, clean.tokens, names[0], pos=pos)[names[0]]).at(names[0], pos=pos)
        gain = mi.effect(model, corrupted.tokens, edit, mi.metrics.logit_gain(clean.answers), controls={})
        torch.testing.assert_close(found.values["gain"][0, 0], gain.edited, rtol=0, atol=1e-3)
        assert gain.clean.abs().max() == 0


def test_the_manners_are_what_they_say() -> None:
    """Each against its equation, by a hook written out."""
    k = toy()
    clean, corrupted = k["pairs"].clean, k["pairs"].corrupted
    written = reconstructions(k["means"], PERIODS, folds=0)
    x, y = (mi.collect(k["model"], p.tokens, FIRST, pos=-4)[FIRST].double() for p in (corrupted, clean))
    mean, base = k["means"].grand[0], {}
    for side, tokens in (("clean", clean.tokens), ("corrupted", corrupted.tokens)):
        with torch.no_grad():
            base[side] = k["model"](tokens)[:, -1].double().gather(1, clean.answers[:, None])[:, 0]
    for name in ("full", "helix", "pca"):
        w = written[name]
        new, old = w.write(FIRST, clean.inputs, y), w.write(FIRST, corrupted.inputs, x)
        part = w.subspace(FIRST)
        q = torch.eye(128).double() if part is None else part.basis
        inside = {"subspace": x + (new - x) @ q @ q.T, "rest mean": mean + (new - mean) @ q @ q.T}
        inside |= {"whole": new, "add": x + new - old, "ablate": y - (y - mean) @ q @ q.T}
        want = {manner: (v, "clean" if manner == "ablate" else "corrupted") for manner, v in inside.items()}
        for manner, (vectors, side) in want.items():

            def hook(act: torch.Tensor, hook: Any = None, vectors: torch.Tensor = vectors) -> torch.Tensor:
                act = act.clone()
                act[:, -4] = vectors.to(act)
                return act

            tokens = clean.tokens if side == "clean" else corrupted.tokens
            with torch.no_grad():
                logits = k["model"].run_with_hooks(tokens, fwd_hooks=[(FIRST, hook)])[:, -1].double()
            plain = logits.gather(1, clean.answers[:, None])[:, 0] - base[side]
            found = swap(k["model"], k["pairs"], {name: w}, manner=manner)
            torch.testing.assert_close(found.values["gain"][0, 0], plain, rtol=0, atol=2e-3)
            odds = logits.softmax(-1).gather(1, clean.answers[:, None])[:, 0]
            torch.testing.assert_close(found.values["probability"][0, 0], odds, rtol=0, atol=1e-4)


def test_ablation_hurts_the_model_own_answers_and_a_shuffled_subspace_less() -> None:
    k = toy()
    found = swap(
        k["model"],
        k["pairs"],
        reconstructions(k["means"], PERIODS[:2], methods=("full", "helix", "random", "shuffled")),
        manner="ablate",
    )
    full, helix, _, shuffled = found.mean("gain")[:, 0].tolist()
    assert full < -5
    assert helix < -3
    assert shuffled > helix
    assert found.best()["helix"]["mean"] == pytest.approx(helix)
    assert float(found.before["accuracy"].mean()) == 1.0
    assert found.before["gain"].abs().max() == 0


def test_one_circle_of_the_helix_moves_less_than_all() -> None:
    k = toy()
    helix = reconstructions(k["means"], PERIODS, methods=("helix",))["helix"]
    first = f"{PERIODS[0]:g}"
    one = helix.only(f"*:cos {first}", f"*:sin {first}")
    assert one.subspace(FIRST).rank == 2
    for manner in ("subspace", "rest mean"):
        gain = swap(k["model"], k["pairs"], {"all": helix, "one": one}, manner=manner).mean()[:, 0]
        assert gain[1] < gain[0], manner
    whole = swap(k["model"], k["pairs"], {"all": helix, "one": one}).mean()[:, 0]
    assert whole[0] == whole[1]  # the manner without a subspace
    with pytest.raises(KeyError, match=r"The fit has no column '\*:cos 3'"):
        helix.only("*:cos 3")
    with pytest.raises(ValueError, match="The method 'pca' is no fit, so it has no columns to choose from"):
        reconstructions(k["means"], PERIODS, methods=("pca",))["pca"].only("a:linear")


def test_fits_that_have_seen_the_numbers_leak_them() -> None:
    """Numbers are held out, not prompts: a shuffled helix that has seen a number writes some of it back."""
    k = toy()
    seen, held = (
        swap(
            k["model"], k["pairs"], reconstructions(k["means"], PERIODS, methods=("shuffled", "helix"), folds=folds)
        ).mean()[:, 0]
        for folds in (0, 5)
    )
    assert seen[0] > 3 * abs(held[0])
    assert seen[1] > held[1] > 0.9 * seen[1]
    w = reconstructions(k["means"], PERIODS, methods=("helix",), folds=97)["helix"]
    means = k["means"]
    for a in (0, 50, 96):
        rows = torch.repeat_interleave(torch.arange(97), means.counts)
        rows = rows[rows != a]
        fit = mi.fit(means.at(0)[rows], mi.helix(rows, PERIODS))
        made, want = w.write(FIRST, {"a": torch.tensor([a])}, torch.zeros(1, 128)), fit.predict(mi.helix([a], PERIODS))
        torch.testing.assert_close(made, want, rtol=1e-6, atol=1e-8)


def test_at_the_last_token_fits_of_ones_own_take_part() -> None:
    k = toy()
    site = "blocks.1.hook_resid_post"
    rows = k["problems"][::7]
    acts = mi.collect(k["model"], rows.tokens, site)[site]
    written = reconstructions(
        number_means(k["model"], rows, site, of="answer"), PERIODS, methods=("full", "helix", "shuffled")
    )

    def both(inputs: Any) -> mi.Design:
        return mi.helix(inputs["a"], PERIODS, "a") | mi.helix(inputs["b"], PERIODS, "b")

    written |= written_by_fits({site: mi.fit(acts, both(rows.inputs))}, both, "a,b")
    drawn = pairs(k["problems"], 40)
    full, answer, shuffled, operands = swap(k["model"], drawn, written, at="answer").mean()[:, 0].tolist()
    assert full > answer > 0.6 * full
    assert max(abs(shuffled), abs(operands)) < 0.3 * full  # the sum is there, its operands are not


def test_best_periods_are_the_ones_with_the_largest_mean_not_the_last_tried() -> None:
    """The public code's selection never updates its best, so that it returns the last set of each size."""
    k = toy()
    periods = [*PERIODS[:2], 97 / 30, 97 / 20]  # two that the model uses, two that it does not
    found = period_effects(k["model"], k["pairs"], k["means"], periods)
    assert found.periods == tuple(s for n in range(1, 5) for s in itertools.combinations(periods, n))
    assert len(found.periods) == 15
    assert found.best(2) == tuple(periods[:2])  # tried first, of six
    for count in (1, 2, 3):
        sets = [s for s in found.periods if len(s) == count]
        gains = found.gain[[found.periods.index(s) for s in sets]]
        assert found.best(count) == sets[int(gains.argmax())]
    assert [row["periods"] for row in found.table() if row["best"]][1] == "{" + ", ".join(
        f"{T:g}" for T in periods[:2]
    ) + "}"
    with pytest.raises(ValueError, match="No set has 5 periods; they have 1 to 4"):
        found.best(5)


@pytest.mark.compat
def test_the_one_token_difference_moves_with_center_unembed_and_the_two_token_one_does_not() -> None:
    found = {}
    for process in (False, True):
        model = loaded_family("gpt2", process=process)
        tokens = torch.randint(2, 60, (2, 12, 6), generator=torch.Generator().manual_seed(0))
        clean, corrupted = tokens
        answers, others = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(1))
        for name, metric in (("one", mi.metrics.logit_gain(answers)), ("two", mi.logit_diff(answers, others))):
            edit = mi.Ablate(None, mi.collect(model, clean, "blocks.1.hook_mlp_out")["blocks.1.hook_mlp_out"])
            plain = mi.effect(model, corrupted, edit.at("blocks.1.hook_mlp_out", pos=-1), metric, controls={})
            found[name, process] = plain.edited - plain.clean
    torch.testing.assert_close(found["two", True], found["two", False], rtol=1e-4, atol=1e-5)
    assert (found["one", True] - found["one", False]).abs().max() > 0.01


def test_years_are_measured_over_all_that_are_right() -> None:
    model = speaking("gpt2")
    years = problems(model, "greater")
    drawn = pairs(years, 8, against=problems(model, "greater", [1]))
    means = number_means(model, years, "resid_pre")
    found = swap(model, drawn, reconstructions(means, (10, 100), methods=("full", "helix")))
    for name in ("clean", "before"):
        side = drawn.clean if name == "clean" else drawn.corrupted
        with torch.no_grad():
            logits = model(side.tokens)[:, -1].double()
        odds, ids, accepted = logits.softmax(-1), years.numerals.ids, drawn.clean.accepted
        later = (odds[:, ids] * accepted).sum(-1)
        torch.testing.assert_close(getattr(found, name)["probability"], later, rtol=1e-3, atol=1e-7)
        earlier = (odds[:, ids] * ~accepted).sum(-1)
        torch.testing.assert_close(getattr(found, name)["logit_diff"], (later / earlier).log(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.values["probability"][0, 0], found.clean["probability"], rtol=1e-3, atol=1e-7)


def test_the_table_the_progress_and_what_is_refused() -> None:
    k = toy()
    written = reconstructions(k["means"], PERIODS, methods=("full", "helix"))
    seen: list[tuple[int, int]] = []
    found = swap(k["model"], k["pairs"], written, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(1, 2), (2, 2)]
    rows = found.table()
    assert [(row["method"], row["n"]) for row in rows] == [("full", 40), ("helix", 40)]
    assert rows[0]["low"] <= rows[0]["gain"] <= rows[0]["high"]
    one = swap(k["model"], k["pairs"][:1], written)
    assert bool(one.intervals().isnan().all())
    other = tiny(vocab=99, n_ctx=4)
    stray = written_by_fits({"nowhere": mi.fit(torch.randn(9, 4), mi.linear(range(9)))}, lambda inputs: mi.linear([0]))
    for call, text in (
        (lambda: swap(k["model"], k["pairs"], written, manner="patch"), "manner='patch' must be one of 'whole', "),
        (lambda: swap(k["model"], k["pairs"], written, at="c"), "at='c': the prompts have 'a', 'b', 'answer'"),
        (lambda: swap(k["model"], k["pairs"], {}), "written is empty: reconstructions"),
        (lambda: swap(k["model"], k["pairs"], written, "mlp_out"), "'helix' was not made for 'blocks.0.hook_mlp_out'"),
        (lambda: swap(k["model"], k["pairs"], written, "z"), "has an axis of heads: what is written are whole vectors"),
        (lambda: swap(other, k["pairs"], stray), "None of the sites ['nowhere'] is a hook point"),
        (lambda: reconstructions(k["means"], methods=("spline",)), "methods=['spline']: choose among full, pca"),
        (lambda: reconstructions(k["means"], folds=1), "folds=1: 0 holds nothing out, 2 to 97 parts"),
        (lambda: found.mean("odds"), "There is no measure 'odds'; there are gain, logit_diff"),
        (lambda: found.share("circles"), "There is no method 'circles'."),
    ):  # fmt: skip
        with pytest.raises((ValueError, KeyError)) as caught:
            call()
        assert text in str(caught.value)


@pytest.mark.parametrize("folds", [0, 4])
def test_numbers_that_no_fit_has_seen_are_written_by_the_fit_of_all(folds: int) -> None:
    """They were an IndexError above the largest, and below it the shuffled control wrote the number 0 for all of them."""
    k = toy()
    some = k["means"].kept((k["means"].values % 2 == 1) & (k["means"].values < 90))
    written, whole = reconstructions(some, PERIODS, folds=folds), reconstructions(some, PERIODS, folds=0)
    new, acts = {"a": torch.tensor([0, 4, 96])}, torch.zeros(3, 128)
    fit = mi.arithmetic.helix_fits(some, PERIODS).fit(FIRST)
    for name in ("helix", "shuffled"):
        made = written[name].write(FIRST, new, acts)
        assert torch.equal(made, whole[name].write(FIRST, new, acts))
        assert len(made.unique(dim=0)) == 3
    helix = mi.helix(new["a"], PERIODS)
    torch.testing.assert_close(written["helix"].write(FIRST, new, acts), fit.predict(helix), rtol=0, atol=1e-9)
    assert torch.isfinite(swap(k["model"], k["pairs"], written).mean()).all()


def test_what_was_made_of_one_operand_is_not_written_at_another() -> None:
    """Helices of a were written at the token of b, without a word."""
    k = toy()
    drawn = pairs(k["problems"], 5, fixed="a")
    for methods in (("full",), ("pca",), ("helix",)):
        with pytest.raises(ValueError, match="was made of the means of 'a' and cannot be written at 'b'"):
            swap(k["model"], drawn, reconstructions(k["means"], PERIODS, methods=methods), at="b")


def test_pairs_that_differ_in_both_operands_cannot_get_their_answer_from_one() -> None:
    k = toy()
    written = reconstructions(k["means"], PERIODS, methods=("full",))
    drawn = pairs(k["problems"], 20)
    with pytest.warns(UserWarning, match=r"b differs within the pairs too, so that even the whole vector at a"):
        swap(k["model"], drawn, written)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swap(k["model"], drawn, written, manner="ablate")  # the clean prompts alone


@pytest.mark.compat
def test_at_the_last_token_the_answers_helix_beats_the_operands() -> None:
    k = toy()
    site = "blocks.1.hook_resid_post"
    written = pair_reconstructions(k["model"], k["problems"][::5], site, periods=PERIODS, rows=800)
    drawn = pairs(k["problems"], 40)
    found = swap(k["model"], drawn, written, at="answer")
    assert found.methods == ("full", "pca", "helix(a,b)", "helix(answer)", "helix(a,b,answer)", "shuffled", "random")
    gain = dict(zip(found.methods, found.mean()[:, 0].tolist()))
    assert gain["full"] > gain["helix(a,b,answer)"] > 0.6 * gain["full"]
    assert gain["helix(answer)"] > 0.6 * gain["full"] > 2 * gain["helix(a,b)"]
    assert abs(gain["shuffled"]) < 0.3 * gain["full"]
    assert gain["pca"] > 0.8 * gain["full"]
    assert written["pca"].subspace(site).rank == 27
    turned = pair_reconstructions(k["model"], k["problems"][::20], site, ("a,b,answer", "a,b"), PERIODS, rows=200)
    assert (turned["pca"].subspace(site).rank, len(turned["shuffled"].fits[site].labels)) == (27, 27)
    with pytest.raises(ValueError, match="has an axis of heads: pair_fits fits each head"):
        pair_reconstructions(k["model"], k["problems"][::20], "blocks.0.attn.hook_z", periods=PERIODS)


def test_equal_vectors_leave_nothing_to_reconstruct() -> None:
    means = number_means(toy()["model"], toy()["problems"][::30], "blocks.0.hook_resid_post", of="a")
    same = replace(means, means=torch.ones_like(means.means))
    with pytest.raises(ValueError, match="the same: there is nothing to reconstruct there"):
        reconstructions(same, PERIODS, methods=("pca",))
