"""Double dissociation on a model with two planted tasks, whose drops are known by construction."""

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


@given(own=st.floats(-2, 2), other=st.floats(-2, 2), scale=st.floats(0.1, 10))
def test_the_index_is_bounded_odd_and_free_of_scale(own: float, other: float, scale: float) -> None:
    def index(a: float, b: float) -> float:
        one = {t: torch.ones(3, dtype=torch.float64) for t in "ab"}
        edited = {"a": {"a": one["a"] * (1 - a), "b": one["b"] * (1 - b)}, "b": one}
        return Dissociation(("a", "b"), ("m", "m"), one, edited, {}).index["a"]

    assert -1 - 1e-9 <= index(own, other) <= 1 + 1e-9
    assert index(own, other) == pytest.approx(-index(other, own), abs=1e-6)
    if min(abs(own), abs(other)) > 1e-6:
        assert index(own, other) == pytest.approx(index(scale * own, scale * other), abs=1e-5)


def test_tables_figures_and_reprs() -> None:
    found = double_dissociation(two_tasks(), TASKS, OWN, draws=2)
    first, second = found.table()
    assert (first["edit"], first["drop of a"], first["drop of b"], first["index"]) == ("a", 1.0, 0.0, 1.0)
    assert second["covariance: drop of a"] == pytest.approx(float(found.controls["covariance"].mean(0)[1, 0]))
    figure = found.plot()
    assert [list(row) for row in figure.data[0].z] == [[1.0, 0.0], [0.0, 1.0]]
    assert list(figure.layout.yaxis.ticktext) == ["a (index 1.00)", "b (index 1.00)"]
    assert "covariance" in figure.data[0].hovertext[0][0]
    assert "drop of a" in found._repr_html_()
    text = "Dissociation(a: drops a 1.00, b 0.00, index 1.00; b: drops a 0.00, b 1.00, index 1.00; index of covariance "
    assert repr(found).startswith(text)


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
