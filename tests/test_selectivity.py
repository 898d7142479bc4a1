"""Double dissociation on a model with two planted tasks, whose drops are known by construction."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Subspace, accuracy, cross_entropy, double_dissociation, logit_diff
from mi_ablate.selectivity import Dissociation
from models import random_state, tiny

SITE = "blocks.0.hook_resid_post"
AXES = torch.eye(16, dtype=torch.float64)


def two_tasks(shared: float = 0.0) -> Any:
    """Tokens 1-4 (task "a") write axes 0-3 and tokens 5-8 (task "b") axes 4-7; each axis votes for its own token.

    With ``shared`` both tasks' tokens also write axis 8, and the votes count only as much as that axis is there.
    """
    shape = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 24, "n_ctx": 12, "vocab": 11, "norm": None, "seed": 0}
    w = {name: torch.zeros_like(x) for name, x in random_state(**shape).items()}
    for token in range(1, 9):
        w["embed.W_E"][token, token - 1] = 1.0
        w["embed.W_E"][token, 8] = shared
        w["unembed.W_U"][token - 1, token] = 1.0
    w["unembed.W_U"][8, 0] = -10.0 * (shared > 0)
    w["unembed.b_U"][0] = 0.5 + 9.9 * (shared > 0)
    return tiny(n_layers=1, norm=None, weights=w)


def prompts(first: int) -> Tensor:
    return torch.stack([torch.zeros(4).long(), torch.arange(first, first + 4)], dim=1)


TASKS = {name: (prompts(first), accuracy(torch.arange(first, first + 4))) for name, first in (("a", 1), ("b", 5))}


def removing(*columns: int) -> mi._types.FwdHooks:
    return Ablate(Subspace(AXES[:, list(columns)])).at(SITE, pos=-1)


OWN = {"a": removing(0, 1, 2, 3), "b": removing(4, 5, 6, 7)}


@pytest.mark.compat
def test_edits_of_separate_directions_dissociate_completely() -> None:
    found = double_dissociation(two_tasks(), TASKS, OWN)
    assert torch.equal(found.drops, torch.eye(2, dtype=torch.float64))
    assert found.index == {"a": 1.0, "b": 1.0}
    assert found.intervals() == {"a": (1.0, 1.0), "b": (1.0, 1.0)}
    assert found.clean["a"].tolist() == [1.0] * 4
    assert found.edited["a"]["b"].tolist() == [1.0] * 4


def test_an_edit_of_what_both_share_is_not_selective() -> None:
    both = {"a": removing(8), "b": removing(8)}
    found = double_dissociation(two_tasks(shared=1.0), TASKS, both)
    assert torch.equal(found.drops, torch.ones(2, 2, dtype=torch.float64))
    assert found.index == {"a": 0.0, "b": 0.0}


def test_one_sided_edits_are_a_single_dissociation() -> None:
    """Both edits take task a: the one meant for b has an index of -1, and the first one's 1 alone proves little."""
    found = double_dissociation(two_tasks(), TASKS, {"a": OWN["a"], "b": OWN["a"]})
    assert found.index == {"a": 1.0, "b": -1.0}


def test_partial_drops_and_their_index() -> None:
    edits = {"a": removing(0, 1, 4), "b": removing(12)}
    found = double_dissociation(two_tasks(), TASKS, edits)
    assert found.drops.tolist() == [[0.5, 0.25], [0.0, 0.0]]
    assert found.index == {"a": pytest.approx((0.5 - 0.25) / 0.75), "b": 0.0}
    low, high = found.intervals()["a"]
    assert -1 <= low < 0.25 / 0.75 < high <= 1
    assert found.intervals() == found.intervals()
    assert found.intervals(level=0.5)["a"][0] >= low


def test_the_default_control_is_drawn_from_the_edits_own_task() -> None:
    model = two_tasks()
    found = double_dissociation(model, TASKS, OWN, draws=3)
    assert found.controls["covariance"].shape == (3, 2, 2)
    moments = {name: mi.collect(model, TASKS[name][0], SITE)[SITE] for name in TASKS}
    for seed in range(3):
        for i, edit in enumerate(TASKS):
            hooks = mi.controls.covariance(moments[edit])(OWN[edit], seed)
            for j, task in enumerate(TASKS):
                wanted = mi.effect(model, TASKS[task][0], hooks, TASKS[task][1], controls={})
                drop = float((wanted.clean.mean() - wanted.edited.mean()) / wanted.clean.mean())
                assert float(found.controls["covariance"][seed, i, j]) == pytest.approx(drop, abs=1e-12)
    bare = double_dissociation(model, TASKS, OWN, controls={})
    assert (bare.controls, "no control" in repr(bare)) == ({}, True)


def test_a_logit_difference_has_drops_too_and_padding_is_allowed() -> None:
    tasks = {n: (t, logit_diff(t[:, 1], torch.zeros(4).long())) for n, (t, _) in TASKS.items()}
    found = double_dissociation(two_tasks(), tasks, OWN, controls={})
    assert found.drops[0, 0] == pytest.approx(1 / 0.5)
    assert found.drops[0, 1] == 0
    left = {n: torch.tensor([[0, 1]] * 4) for n in tasks}
    masked = double_dissociation(two_tasks(), tasks, OWN, controls={}, attention_masks=left, batch_size=3)
    assert torch.allclose(masked.drops, found.drops)


def with_drops(own: float, other: float, **more: Any) -> Dissociation:
    """A result whose first edit takes these shares of the tasks."""
    one = {t: torch.ones(3, dtype=torch.float64) for t in "ab"}
    edited = {"a": {"a": one["a"] * (1 - own), "b": one["b"] * (1 - other)}, "b": one}
    return Dissociation(("a", "b"), ("m", "m"), one, edited, {}, **more)


def index(own: float, other: float) -> float:
    return with_drops(own, other).index["a"]


@given(own=st.floats(0, 2), other=st.floats(0, 2), scale=st.floats(0.1, 10))
def test_the_index_is_bounded_odd_and_free_of_scale(own: float, other: float, scale: float) -> None:
    assert -1 - 1e-9 <= index(own, other) <= 1 + 1e-9
    assert index(own, other) == pytest.approx(-index(other, own), abs=1e-6)
    if min(abs(own), abs(other)) > 1e-6:
        assert index(own, other) == pytest.approx(index(scale * own, scale * other), abs=1e-5)


@pytest.mark.parametrize(("own", "other"), [(-0.1, -0.5), (0.0, -0.5), (-0.1, 0.5), (-0.1, 0.0)])
def test_an_edit_that_improves_its_own_task_has_no_index(own: float, other: float) -> None:
    """(-0.1 + 0.5) / 0.6 would be 0.67, and (0 + 0.5) / 0.5 would be 1: an edit that harms nothing is not selective."""
    found = with_drops(own, other)
    assert math.isnan(found.index["a"])
    assert all(math.isnan(end) for end in found.intervals()["a"])
    assert "index none" in repr(found)
    assert "index none" in found.plot().layout.yaxis.ticktext[0]
    assert math.isnan(found.table()[0]["index"])


def test_harm_to_its_own_task_alone_or_to_others_alone_has_one() -> None:
    assert (index(0.3, -0.1), index(0.0, 0.5), index(0.0, 0.0)) == (1.0, -1.0, 0.0)


def test_intervals_where_the_clean_mean_is_near_zero() -> None:
    """A logit difference of 0.15 with a spread of 1: in every fifth resample its mean is below 0 and would flip the drop."""
    g = torch.Generator().manual_seed(0)
    clean = torch.randn(30, generator=g, dtype=torch.float64)
    clean = clean - clean.mean() + 0.15
    other = torch.ones(30, dtype=torch.float64) + 0.1 * torch.randn(30, generator=g, dtype=torch.float64)
    edited = {"a": {"a": clean - 0.12, "b": other * 0.9}, "b": {"a": clean, "b": other * 0.1}}
    found = Dissociation(("a", "b"), ("logit_diff",) * 2, {"a": clean, "b": other}, edited, {})
    (low, high), value = found.intervals()["a"], found.index["a"]
    assert value == pytest.approx((0.8 - 0.1) / 0.9)
    assert value - 0.02 < low <= value <= high < value + 0.02
    flips = sum(float(clean[torch.randint(30, (30,), generator=g)].mean()) <= 0 for _ in range(500))
    assert flips > 50


def test_resamples_without_an_index_are_not_dropped() -> None:
    """The edit helps in as many examples as it harms in, but for one: many resamples have no harm at all."""
    one = torch.ones(9, dtype=torch.float64)
    change = torch.tensor([1.0, -1] * 4 + [1], dtype=torch.float64)
    found = Dissociation(
        ("a", "b"), ("m", "m"), {"a": one, "b": one}, {"a": {"a": one - change, "b": one}, "b": {}}, {}
    )
    found = Dissociation(found.tasks, found.metrics, found.clean, {**found.edited, "b": {"a": one, "b": 0 * one}}, {})
    assert found.index == {"a": 1.0, "b": 1.0}
    assert found.intervals() == {"a": (-1.0, 1.0), "b": (1.0, 1.0)}


def test_few_right_answers_do_not_make_an_interval_of_nothing() -> None:
    """One of five right: a third of the resamples have none, and a share of 0 would be NaN."""
    clean, one = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    edited = {"a": {"a": 0 * clean, "b": one}, "b": {"a": clean, "b": 0 * one}}
    found = Dissociation(("a", "b"), ("accuracy",) * 2, {"a": clean, "b": one}, edited, {})
    assert found.intervals() == {"a": (0.0, 1.0), "b": (1.0, 1.0)}


def test_a_task_of_two_answers_is_lost_at_chance() -> None:
    """Guessing scores 0.5: an edit that leaves 0.5 of it takes all, not half."""
    model, tokens = two_tasks(), TASKS["b"][0]

    def pick(logits: Tensor, clean: Tensor | None, rows: Tensor) -> Tensor:
        right, wrong = logits[rows * 0 + torch.arange(len(rows)), -1, tokens[rows, 1]], logits[:, -1, 0]
        return 0.5 + 0.5 * (right > wrong).double()

    tasks = {"a": TASKS["a"], "b": (tokens, pick)}
    bare = double_dissociation(model, tasks, OWN, controls={})
    assert bare.drops.tolist() == [[1.0, 0.0], [0.0, 0.5]]
    for chance in ({"b": 0.5}, {"a": 0, "b": 0.5}):
        found = double_dissociation(model, tasks, OWN, chance=chance, draws=2)
        assert found.drops.tolist() == [[1.0, 0.0], [0.0, 1.0]]
        assert found.intervals()["b"] == (1.0, 1.0)
        plain = double_dissociation(model, tasks, OWN, draws=2)
        assert torch.allclose(found.controls["pca"][..., 1], 2 * plain.controls["pca"][..., 1])
    with pytest.raises(
        ValueError, match=r"accuracy of task 'a' is 1 on the clean run, not above its chance of 1: a share"
    ):
        double_dissociation(model, tasks, OWN, chance=1.0)


def test_controls_stand_beside_the_variance_that_they_remove() -> None:
    model = two_tasks()
    found = double_dissociation(model, TASKS, OWN, draws=4)
    assert set(found.controls) == {"covariance", "pca"}
    assert (len(found.controls["covariance"]), len(found.controls["pca"])) == (4, 1)
    for edit in TASKS:
        hooks, (tokens, metric) = OWN[edit], TASKS[edit]
        wanted = mi.effect(model, tokens, hooks, metric, draws=4).variance_removed
        assert found.variance_removed[edit] == pytest.approx(wanted)
    row = found.table()[0]
    assert row["variance removed"] == pytest.approx(1.0)
    assert row["pca: variance removed"] == pytest.approx(1.0)
    drawn = found.controls["covariance"][:, 0]
    assert row["covariance: drop of b"] == pytest.approx(
        {"mean": float(drawn[:, 1].mean()), "low": float(drawn[:, 1].min()), "high": float(drawn[:, 1].max())}
    )
    single = [
        Dissociation(found.tasks, found.metrics, found.clean, found.edited, {"one": x[None]}).table()[0]["one: index"][
            "mean"
        ]
        for x in found.controls["covariance"]
    ]
    there = [x for x in single if x == x]
    assert row["covariance: index"]["low"] == pytest.approx(min(there))
    assert row["covariance: index"]["high"] == pytest.approx(max(there))
    assert "a: drops a 1.00, b 0.00, index 1.00, 100% of the variance" in repr(found)
    assert "pca" in repr(found)


def test_tables_figures_and_reprs() -> None:
    found = double_dissociation(two_tasks(), TASKS, OWN, draws=2)
    first, second = found.table()
    assert (first["edit"], first["drop of a"], first["drop of b"], first["index"]) == ("a", 1.0, 0.0, 1.0)
    assert second["covariance: drop of a"]["mean"] == pytest.approx(float(found.controls["covariance"].mean(0)[1, 0]))
    figure = found.plot()
    assert [list(row) for row in figure.data[0].z] == [[1.0, 0.0], [0.0, 1.0]]
    assert list(figure.layout.yaxis.ticktext) == ["a (index 1.00)", "b (index 1.00)"]
    assert "covariance" in figure.data[0].hovertext[0][0]
    assert "drop of a" in found._repr_html_()
    text = "Dissociation(a: drops a 1.00, b 0.00, index 1.00, 100% of the variance; b: drops a 0.00, b 1.00, index 1.00"
    assert repr(found).startswith(text)
    assert "; index of covariance " in repr(found)


def test_what_has_no_meaning_is_refused() -> None:
    model = two_tasks()
    with pytest.raises(ValueError, match=r"tasks \['a', 'b'\] and edits \['a'\] must have the same names, two or more"):
        double_dissociation(model, TASKS, {"a": OWN["a"]})
    with pytest.raises(ValueError, match="must have the same names, two or more: one edit for each task"):
        double_dissociation(model, {"a": TASKS["a"]}, {"a": OWN["a"]})
    tokens = TASKS["a"][0]
    rising = {**TASKS, "a": (tokens, cross_entropy(tokens[:, 1]))}
    with pytest.raises(ValueError, match="cross_entropy of task 'a' rises with damage: use accuracy or logit_diff for"):
        double_dissociation(model, rising, OWN)
    negative = {**TASKS, "a": (tokens, logit_diff(torch.zeros(4).long(), tokens[:, 1]))}
    with pytest.raises(
        ValueError, match=r"logit_diff of task 'a' is -0\.5 on the clean run: a share of it means nothing"
    ):
        double_dissociation(model, negative, OWN)
    with pytest.raises(ValueError, match="level=95 of an interval lies between 0 and 1"):
        double_dissociation(model, TASKS, OWN, controls={}).intervals(level=95)


def test_what_is_no_task_and_no_edit_is_refused() -> None:
    model, mask = two_tasks(), torch.ones(4, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"attention_masks names \['A'\], and the tasks are \['a', 'b'\]"):
        double_dissociation(model, TASKS, OWN, attention_masks={"A": mask})
    with pytest.raises(ValueError, match=r"chance names \['c'\], and the tasks are"):
        double_dissociation(model, TASKS, OWN, chance={"c": 0.5})
    with pytest.raises(ValueError, match=r"The edit for 'b' is empty: give edit\.at\("):
        double_dissociation(model, TASKS, {**OWN, "b": []})


def test_tasks_and_edits_of_other_types(unchecked) -> None:
    model, tokens = two_tasks(), TASKS["a"][0]
    with pytest.raises(ValueError, match="The edit for 'a' is of type Ablate, without a place: give edit"):
        double_dissociation(model, TASKS, {**OWN, "a": Ablate(Subspace(AXES[:, :1]))})
    with pytest.raises(ValueError, match=r"Task 'a' is a Tensor: give \(tokens \[n p\], metric\), such as accuracy"):
        double_dissociation(model, {**TASKS, "a": tokens}, OWN)
    with pytest.raises(ValueError, match="metric='accuracy' is a str: make one with its answers"):
        double_dissociation(model, {**TASKS, "a": (tokens, "accuracy")}, OWN)


def test_addition_and_multiplication_of_one_trained_model() -> None:
    """A single dissociation: addition's directions leave multiplication, not the other way round.

    And subspaces drawn from addition's activations are as selective, so the pattern is not the found directions' merit.
    """
    toy = mi.toys.load("addmul97")
    site = mi.last_residual(toy.model)
    order = torch.randperm(len(toy.answers), generator=torch.Generator().manual_seed(0))
    tasks, edits = {}, {}
    for name, number in (("addition", 0), ("multiplication", 1)):
        rows = order[toy.inputs["operation"][order] == number]
        fitted, held = rows[:4000], rows[4000:4400]
        acts = mi.collect(toy.model, toy.tokens[fitted], site)[site]
        directions = mi.fit(acts, mi.classes(toy.answers[fitted])).subspace()
        edits[name] = Ablate(directions[:20], acts.mean(0)).at(site, pos=-1)
        tasks[name] = (toy.tokens[held], accuracy(toy.answers[held]))
    found = double_dissociation(toy.model, tasks, edits, draws=2)
    assert found.drops[0, 0] > 0.9
    assert found.drops[0, 1] < 0.1
    assert found.index["addition"] > 0.8
    assert found.index["multiplication"] < 0.4
    low, high = found.intervals()["addition"]
    assert 0.8 < low < found.index["addition"] < high < 1
    assert "covariance 0.9" in repr(found)
