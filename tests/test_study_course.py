"""Each run of two operations by itself: its steepest change, its end beside the log, and what a verdict shows of both."""

from mi_ablate.studies import along_training, operations, two_tasks
from mi_ablate.studies.course import changes, course_rows, halved, nearest_the_log, steepest, with_loss
from mi_ablate.studies.page import LONGEST
from mi_ablate.toys.recipes import TrainConfig
from planted_runs import Course, Plan, Same, planted


def turning(back: bool = False) -> Course:
    """A run that breaks down before 30,000 (not a stable step) and has few dimensions from 35,000 on, or only there."""
    few = Plan(k=0, rank=15, overlap=0.23, loss=0.08, dip=0.4)

    def course(step: int) -> Plan:
        if step == 30_000:
            return Plan(stable=False, dip=0.03)
        return few if step == 35_000 or (step > 35_000 and not back) else Plan(k=16, rank=35, overlap=0.52)

    return course


def test_the_steepest_change_of_each_run_is_told_with_its_end() -> None:
    cells = planted({"two-tasks": lambda c: turning(back=bool(c.seed))})
    first, second, *_ = changes(cells).split("; ")
    told = "step 25,000 -> 35,000 -> 40,000 after held-out accuracy broke down to 0.03: k@95% 16 -> 0 -> 0"
    assert f"seed 0, {told}, 95 % dimensions 33 -> 13 -> 13, overlap of the leading 10 0.52 -> 0.23 -> 0.23" in first
    assert first.endswith("which stays")
    assert second.endswith("which goes back")
    assert "-> 0 -> 16, 95 % dimensions 33 -> 13 -> 33" in second
    assert along_training.STUDY.find(cells, {}).notes[0] == changes(cells)
    assert [halved(cell) for cell in cells.done] == [True, False, False]


def test_a_run_with_one_stable_checkpoint_has_no_change() -> None:
    cells = planted({"two-tasks": lambda c: lambda step: Plan(stable=step == 20_000)})
    assert [steepest(cell) for cell in cells.done] == [None] * 3
    assert [halved(cell) for cell in cells.done] == [None] * 3
    assert "no seed has two" in changes(cells)
    assert "0 of 0 seeds" in nearest_the_log(cells)
    assert nearest_the_log(planted({"two-tasks": lambda c: None})).startswith("No stable checkpoint")


def test_the_checkpoint_nearest_to_the_log_is_the_one_with_its_numbers() -> None:
    cells = planted({"two-tasks": lambda c: turning() if c.seed == 1 else Same(Plan(rank=35, overlap=0.52))})
    said = nearest_the_log(cells)
    assert "seed 1 at step 35,000: 13 / 13, 0 / 0, 0.23" in said
    assert "in 1 of 3 seeds" in said
    assert "in 0 of 3 seeds" in nearest_the_log(planted({"two-tasks": lambda c: turning(back=True)}))


def test_each_run_stands_by_itself_checkpoint_by_checkpoint() -> None:
    cells = planted({"two-tasks": lambda c: turning() if c.seed == 0 else None})
    rows = course_rows(cells)
    assert [row["step"] for row in rows] == ["15,000", "20,000", "25,000", "35,000", "40,000"]
    assert [row["lowest accuracy before"] for row in rows] == ["1.00", "1.00", "1.00", "0.03", "0.40"]
    late = rows[3]
    assert (late["k@95%, add / mul"], late["95 % dims, add / mul"], late["overlap"]) == ("0 / 0", "13 / 13", "0.23")
    assert (late["held-out loss, add / mul"], late["k of a kill, add / mul"]) == ("0.08 / 0.08", "12 / 12")
    assert "addition -1.00; multiplication -1.00" in with_loss(cells)


def test_the_reading_at_the_last_checkpoint_fits_into_the_row_of_the_verdict() -> None:
    def told(config: TrainConfig) -> Course:
        return turning() if config.seed == 0 else Same(Plan(k=16 + config.seed, overlap=0.45, null=0.27))

    cells = planted({"two-tasks": told, "weight-decay": lambda c: Same(Plan(k=7 + c.seed))})
    for study in (two_tasks.STUDY, operations.STUDY):
        for one in study.find(cells, {}).verdicts:
            assert "Last checkpoint (" in one.ours
            assert len(one.ours) <= LONGEST or one.of == "C6"  # kills in every seed are long
