"""Kills, corners, overlaps and orderings, and the studies of two operations on planted runs: numbers flip verdicts."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_ablate.studies import Findings, Spread, Study, along_training, capacity, operations, too_small, two_tasks
from mi_ablate.studies.cells import Cells, Checkpoint
from mi_ablate.studies.last_checkpoint import last_only
from mi_ablate.studies.orderings import lower, share_lower, signs, trend
from mi_ablate.studies.overlaps import overlap_at, reference_at, relative_at
from mi_ablate.studies.selective import (
    KEPT,
    KILLED,
    LEARNT,
    corners,
    k_alone,
    kills_selectively,
    mean_kill,
    over_seeds,
    selective_kill,
)
from mi_ablate.toys.recipes import TrainConfig
from planted_runs import MOST, Course, Plan, Same, by_seed, planted

LOG = Plan()
ALONE = Plan(k=11)
STUDIES = [study.STUDY for study in (two_tasks, along_training, capacity, too_small, operations)]
accuracies = st.lists(st.sampled_from([0.01, 0.04, 0.3, 0.49, 0.5, 0.9, 0.98, 0.995, 1.0]), min_size=1, max_size=8)


def checkpoint(own: list[float], *others: list[float]) -> Checkpoint:
    """A checkpoint with the curves of one operation and of what its removal does to others."""
    curve = {name: {"mean": {"edited": [1.0, *values]}} for name, values in zip(("mul", "sub"), others)}
    live = {"directions": {"live": {"mean": {"edited": [1.0, *own]}}}}
    measures = {"last_residual": {"add": live}, "collateral": {"add": curve}}
    return Checkpoint({"step": 1, "target": 1, "stable": True, "measures": measures})


def found(study: Study, cells: Cells) -> Findings:
    return study.find(cells, {})


def verdicts(study: Study, cells: Cells) -> dict[str, str]:
    return {one.of: one.verdict for one in found(study, cells).verdicts}


def two(*plans: Plan | None, single: tuple[Plan | None, ...] = (ALONE, ALONE)) -> Cells:
    """Cells of the two-task study: runs of both operations, and of addition alone at weight decay 1."""
    lone = by_seed(*single)
    return planted({"two-tasks": by_seed(*plans), "weight-decay": lambda c: lone(c) if c.weight_decay == 1 else None})


@given(accuracies, accuracies, accuracies)
def test_a_selective_kill_is_the_first_k_that_kills_and_spares_every_other(
    own: list[float], one: list[float], other: list[float]
) -> None:
    n = min(map(len, (own, one, other)))
    kill = selective_kill(checkpoint(own[:n], one[:n], other[:n]), "add")
    points = list(zip([1.0, *own[:n]], [1.0, *one[:n]], [1.0, *other[:n]]))
    spared = {k: a for k, (a, b, c) in enumerate(points) if min(b, c) >= KEPT}
    assert kill is not None
    assert kill.k == next((k for k, a in spared.items() if a < KILLED), None)
    assert kill.least == min(spared.values())
    assert spared[kill.at] == kill.least
    assert (kill.k is None) == (kill.least >= KILLED)
    lower_bar = selective_kill(checkpoint(own[:n], one[:n], other[:n]), "add", killed=0.05)
    assert lower_bar is not None
    assert lower_bar.k is None or (kill.k is not None and kill.k <= lower_bar.k)


@given(accuracies)
def test_what_falls_together_is_never_killed_apart(curve: list[float]) -> None:
    kill = selective_kill(checkpoint(curve, curve), "add")
    assert kill is not None
    assert kill.k is None
    assert kill.least >= KEPT


def test_nothing_is_killed_that_was_not_learnt_or_has_no_neighbour() -> None:
    curve = {"mean": {"edited": [LEARNT - 0.01, 0.0]}}
    measures = {"last_residual": {"add": {"directions": {"live": curve}}}, "collateral": {"add": {"mul": curve}}}
    entry = {"step": 1, "target": 1, "stable": True, "measures": measures}
    assert selective_kill(Checkpoint(entry), "add") is None
    assert selective_kill(checkpoint([0.0]), "add") is None
    for empty in ({}, {"collateral": {"add": {"mul": None}}, "last_residual": {"add": None}}):
        assert selective_kill(Checkpoint(entry | {"measures": empty}), "add") is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"k": 11}, (True, True, True)),
        ({"k": 10}, (True, False, True)),
        ({"k": 11, "spares": 11}, (False, True, True)),
        ({"k": 11, "spares": 12}, (True, True, True)),
        ({"k": 11, "rank": 12}, (True, True, False)),
        ({"k": 11, "rank": 13}, (True, True, True)),
    ],
)
def test_each_corner_has_its_own_number(changes: dict[str, Any], expected: tuple[bool, ...]) -> None:
    cells = two(replace(LOG, **changes))
    corner = corners(cells.where(grid="two-tasks").done[0], k_alone(cells))
    assert corner is not None
    assert (corner.separable, corner.robust, corner.efficient) == expected
    assert corner.held == sum(expected)
    assert corner.filled == pytest.approx(2 * changes.get("rank", 20) / 128)


def test_corners_need_stable_steps_and_robust_needs_addition_alone() -> None:
    cells = two(replace(LOG, stable=False), LOG, single=(ALONE,))
    never, once = cells.where(grid="two-tasks").done
    assert k_alone(cells) is None
    assert corners(never, 3.0) is None
    corner = corners(once, k_alone(cells))
    assert corner is not None
    assert corner.robust is None
    assert corner.held == 2
    assert over_seeds(cells.where(grid="two-tasks"), lambda c: kills_selectively(c, "add")) == "1 of 1"
    assert over_seeds(Cells((never,)), lambda c: kills_selectively(c, "add")) == "no stable step"
    assert over_seeds(Cells(cells.missing), lambda c: kills_selectively(c, "add")) == "not run"


@pytest.mark.parametrize(("kept", "expected"), [(20_000, None), (25_000, None), (30_000, 12.0)])
def test_a_seed_kills_where_most_of_its_checkpoints_do(kept: int, expected: float | None) -> None:
    cell = planted({"two-tasks": lambda c: lambda step: Plan(spares=MOST if step <= kept else 5)}).done[0]
    assert mean_kill(cell, "add") == expected
    assert kills_selectively(cell, "add") is (expected is not None)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=4), st.lists(st.integers(0, 9), min_size=2, max_size=4))
def test_one_group_is_lower_or_the_other_or_neither(a: list[int], b: list[int]) -> None:
    below, above = Spread.of(map(float, a)), Spread.of(map(float, b))
    ab, ba = share_lower(below, above), share_lower(above, below)
    assert ab is not None
    assert ba is not None
    assert ab + ba <= 1
    assert not (lower(below, above) and lower(above, below))
    assert lower(below, Spread.of(x + 10.0 for x in a)) is True
    assert lower(above, Spread.of(x - 10.0 for x in b)) is False
    assert lower(Spread.of([1.0]), above) is None
    assert share_lower(below, Spread.of([])) is None


def test_three_seeds_of_which_one_is_higher_are_unclear() -> None:
    assert lower(Spread.of([1.0, 2.0, 9.0]), Spread.of([5.0, 6.0, 7.0])) is None
    assert lower(Spread.of([5.0, 6.0, 7.0]), Spread.of([1.0, 2.0, 9.0])) is None


def test_signs_agree_or_do_not() -> None:
    assert [signs(x) for x in ([-0.1, None, -1.0], [0.5, 0.1], [0.5, -0.1], [0.0, -1.0], [1.0, None], [])] == [
        -1, 1, 0, 0, None, None,
    ]  # fmt: skip


def test_a_trend_is_over_stable_checkpoints_that_have_the_number() -> None:
    def course(step: int) -> Plan:
        return Plan(overlap=0.5 - step / 100_000, stable=step < 40_000)

    cell = planted({"two-tasks": lambda c: course}).done[0]
    assert trend(cell, lambda at: overlap_at(at, 10)) == pytest.approx(-1)
    assert trend(cell, lambda at: at.step if at.step > 20_000 else None) == pytest.approx(1)
    assert trend(cell, lambda at: at.step if at.step > 25_000 else None) is None
    assert trend(cell, lambda at: 3.0) is None


def test_overlaps_are_read_with_their_references() -> None:
    at = two(LOG).where(grid="two-tasks").done[0].checkpoints[0]
    assert [reference_at(at, 10, which) for which in ("isotropic", "covariance-drawn")] == [0.08, 0.4]
    assert reference_at(at, 5, "split half", "cosine") == pytest.approx(0.95)
    assert overlap_at(at, 10, "squared", ("mul", "add")) == 0.2
    assert relative_at(at, 10) == pytest.approx(0.5)
    assert overlap_at(at, 7) is None
    assert relative_at(at, 7) is None


@pytest.mark.parametrize(
    ("changes", "of", "expected"),
    [
        ({}, "C4", "reproduced"), ({}, "C5", "reproduced"), ({}, "C6", "reproduced"),
        ({"k": 7}, "C4", "different size"), ({"k": 11}, "C4", "not reproduced"), ({"k": 20}, "C4", "not reproduced"),
        ({"overlap": 0.45}, "C5", "different size"), ({"overlap": 0.5}, "C5", "not reproduced"),
        ({"dies": 40, "control_dies": 60}, "C6", "different size"), ({"control_dies": 12}, "C6", "different size"),
        ({"control_dies": 13}, "C6", "reproduced"), ({"spares": 5}, "C6", "not reproduced"),
    ],
)  # fmt: skip
def test_each_claim_of_two_tasks_follows_its_number(changes: dict[str, Any], of: str, expected: str) -> None:
    plan = replace(LOG, **changes)
    assert verdicts(two_tasks.STUDY, two(plan, plan))[of] == expected


def test_seeds_that_disagree_decide_nothing() -> None:
    other = replace(LOG, k=20, overlap=0.6, spares=5)
    assert verdicts(two_tasks.STUDY, two(LOG, other)) == dict.fromkeys(("C4", "C5", "C6"), "undecided")
    assert verdicts(two_tasks.STUDY, two(LOG)) == dict.fromkeys(("C4", "C5", "C6"), "not run")
    assert verdicts(two_tasks.STUDY, two(LOG, LOG, single=(ALONE,)))["C4"] == "not run"


def test_the_last_stable_checkpoint_is_told_beside_the_mean() -> None:
    def course(step: int) -> Plan:
        return Plan(k=2 if step == 35_000 else 30, stable=step <= 35_000)

    cells = planted({"two-tasks": lambda c: course, "weight-decay": lambda c: Same(ALONE)})
    claim = next(one for one in found(two_tasks.STUDY, cells).verdicts if one.of == "C4")
    assert claim.verdict == "not reproduced"
    assert "Last checkpoint (reproduced): zero 11 -> 2" in claim.ours
    late = last_only(cells.where(grid="two-tasks"))
    assert {next(at.step for at in cell.checkpoints) for cell in late.done} == {35_000}
    assert not last_only(two(replace(LOG, stable=False)).where(grid="two-tasks")).done


def falling(first: float, last: float, null: float = 0.0, bump: float = 0.0) -> Any:
    """An overlap that goes from one value to another; the null follows at ``null`` times the slope."""

    def course(step: int) -> Plan:
        share = (step - 15_000) / 25_000
        rise = bump * (step == 30_000)
        return Plan(overlap=first + share * (last - first) + rise, null=0.6 + null * share * (last - first))

    return lambda config: course


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        (falling(0.5, 0.3), ("reproduced", "yes", "yes")),
        (falling(0.3, 0.5), ("not reproduced", "no", "no")),
        (falling(0.5, 0.47), ("different size", "yes", "yes")),
        (falling(0.5, 0.4, null=4), ("reproduced", "yes", "no")),
        (falling(0.5, 0.3, bump=0.1), ("reproduced", "no", "yes")),
    ],
)
def test_separation_follows_the_overlap_along_training(course: Any, expected: tuple[str, ...]) -> None:
    cells = planted({"two-tasks": course})
    assert tuple(verdicts(along_training.STUDY, cells).values()) == expected
    for draw in found(along_training.STUDY, cells).figures.values():
        assert len(draw().data) > 2


def test_seeds_that_separate_and_that_do_not() -> None:
    cells = planted({"two-tasks": lambda c: falling(0.5, 0.3)(c) if c.seed else falling(0.3, 0.5)(c)})
    assert set(verdicts(along_training.STUDY, cells).values()) == {"undecided"}


NEVER_KILLED = {f"L{layers}d{width}": replace(LOG, spares=5) for layers in (1, 2) for width in (48, 64, 96, 128)}


def shapes(**plans: Plan | None) -> Cells:
    """Cells of the capacity study by "L1d128"; the others as the log's baseline."""

    def told(config: TrainConfig) -> Course | None:
        plan = plans.get(f"L{config.config.n_layers}d{config.config.d_model}", LOG)
        return None if plan is None else Same(plan)

    lone = by_seed(ALONE, ALONE)
    return planted(
        {"two-tasks": told, "capacity": told, "weight-decay": lambda c: lone(c) if c.weight_decay == 1 else None}
    )


@pytest.mark.parametrize(
    ("plans", "expected"),
    [
        ({}, ("reproduced", "no")),
        ({"L1d128": replace(LOG, spares=5)}, ("not reproduced", "no")),
        ({"L1d128": replace(LOG, overlap=0.3)}, ("not reproduced", "no")),
        ({"L2d48": replace(LOG, spares=5)}, ("different size", "no")),
        ({"L2d256": replace(LOG, k=11)}, ("reproduced", "yes")),
        ({"L2d256": replace(LOG, k=11, spares=5)}, ("reproduced", "no")),
        ({"L2d256": None}, ("reproduced", "undecided")),
        ({"L2d256": None, "L2d192": replace(LOG, k=12)}, ("reproduced", "yes")),
        ({"L1d128": None, "L2d256": None, "L2d192": None}, ("not run", "not run")),
        (NEVER_KILLED, ("reproduced", "no")),
        (NEVER_KILLED | {"L1d128": replace(LOG, spares=5, overlap=0.3)}, ("not reproduced", "no")),
        ({"L2d128": None}, ("not run", "no")),
        ({"L2d48": None, "L2d64": None, "L2d96": None}, ("not run", "no")),
    ],
)
def test_capacity_follows_kills_overlaps_and_k(plans: dict[str, Plan | None], expected: tuple[str, str]) -> None:
    assert tuple(verdicts(capacity.STUDY, shapes(**plans)).values()) == expected


@pytest.mark.parametrize(
    ("ks", "expected"),
    [
        ((11, 5, 2), "yes"),
        ((11, 5, 5), "undecided"),
        ((3, 9, 4), "no"),
        ((11, 5, None), "undecided"),
        ((11, None, 2), "not run"),
    ],
)
def test_more_operations_leave_fewer_directions_or_do_not(ks: tuple[int | None, ...], expected: str) -> None:
    plans = [None if k is None else Same(Plan(k=k)) for k in ks]
    grids = dict(zip(("weight-decay", "two-tasks", "three-tasks"), plans))
    cells = planted({name: lambda c, plan=plan: plan for name, plan in grids.items()})  # type: ignore[misc]
    assert verdicts(operations.STUDY, cells) == {"Q8": expected}


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_what_is_missing_is_not_run_and_what_never_grokked_has_no_stable_step(study: Study) -> None:
    missing = planted({grid: lambda c: None for grid in study.grids})
    assert set(verdicts(study, missing).values()) <= {"not run"}
    never = planted({grid: lambda c: Same(Plan(stable=False)) for grid in study.grids})
    assert set(verdicts(study, never).values()) <= {"not run"}
    for cells, words in ((missing, "not run"), (never, "no stable step")):
        told = found(study, cells)
        assert not told.figures
        if study is not too_small.STUDY or words == "not run":
            assert any(words in str(table.rows) or "0 of 3" in str(table.rows) for table in told.tables)
        assert all(len({tuple(row) for row in table.rows}) <= 1 for table in told.tables)


def test_the_model_groks_both_operations_when_the_later_one_has() -> None:
    cells = two(LOG, LOG)
    for cell in cells.where(grid="two-tasks").done:
        cell.training["per_operation"]["mul"]["grok_step"] = 700
    assert found(two_tasks.STUDY, cells).tables[0].rows[0]["both"] == "700"


def test_tables_hold_the_planted_numbers_beside_the_logs() -> None:
    cells = two(LOG, LOG)
    tables = {table.title: table.rows for table in found(two_tasks.STUDY, cells).tables}
    row = tables["Directions that can be removed, by operation, place and ablation"][0]
    assert (row["k@95%"], row["k@95%, covariance-drawn"], row["log, 95 / 50"]) == ("2", "20", "2 / 7")
    kill = tables[next(title for title in tables if title.startswith("Selective kill"))]
    assert [r["smallest k, under 50%"] for r in kill[:3]] == ["12", "40", "40"]
    assert kill[0]["seeds, under 5%"] == "2 of 2"
    overlap = tables["Overlap of the two operations' leading directions"][1]
    assert (overlap["overlap"], overlap["covariance-drawn"], overlap["log (its random)"]) == (
        "0.20",
        "0.40",
        "0.28 (0.078)",
    )
    for draw in found(two_tasks.STUDY, cells).figures.values():
        assert draw().data
    small = planted({"too-small": lambda c: Same(LOG)})
    assert found(too_small.STUDY, small).tables[0].rows[0]["held out, add / mul"] == "0.990 / 0.990"
