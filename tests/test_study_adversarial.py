"""Adversarial training and late penalties: verdicts on planted runs, their controls, and what is not run."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_ablate.studies import adversarial, late_penalty
from mi_ablate.studies.adversarial_claims import resists
from mi_ablate.studies.cells import Cell
from mi_ablate.studies.penalties import BASELINE, DRAWN, OWN, arms, differences, name_of, ratios, starts
from mi_ablate.studies.spread import Value
from mi_ablate.studies.study import Findings
from mi_ablate.sweep import GRIDS
from two_task_records import MOST, Told, two_task_cells

STUDY, LATE = adversarial.STUDY, late_penalty.STUDY
PLAIN, ALONE, RESISTS = Told(), Told(k=8), Told(k=14, dims=25, shared=True)


def runs(
    base: Told | None = PLAIN,
    own: Told | None = RESISTS,
    drawn: Told | None = PLAIN,
    others: Told | None = None,
    alone: Told | None = ALONE,
    seeds: int = 3,
) -> Callable[[Cell], Told | None]:
    """What the runs of each arm hold; ``others`` is of the grid capacity."""

    def told(cell: Cell) -> Told | None:
        if cell.config.seed >= seeds:
            return None
        if cell.grid == "weight-decay":
            return alone if cell.config.weight_decay == 1.0 else None
        if cell.grid == "capacity":
            return others
        return {BASELINE: base, OWN: own, DRAWN: drawn}.get(name_of(cell.config.penalty))

    return told


def found(**given: Told | int | None) -> Findings:
    return adversarial.find(two_task_cells(STUDY, runs(**given)), {})  # type: ignore[arg-type]


def verdicts(**given: Told | int | None) -> dict[str, str]:
    return {one.of: one.verdict for one in found(**given).verdicts}


class TestResists:
    """C8."""

    @settings(max_examples=12, deadline=None)
    @given(k=st.integers(0, 30), dims=st.integers(6, 40))
    def test_the_verdict_follows_from_k_and_dimensions(self, k: int, dims: int) -> None:
        more, wider, twice = k > 3, dims > 12, 1.5 <= dims / 12 <= 2.5
        expected = "not reproduced" if not (more and wider) else "reproduced" if twice else "different size"
        cells = two_task_cells(STUDY, runs(own=Told(k=k, dims=dims), drawn=None, seeds=2))
        assert resists(arms(cells)).verdict == expected

    def test_the_control_stands_beside_and_does_not_decide(self) -> None:
        apart, same = (next(v for v in found(drawn=one).verdicts if v.of == "C8") for one in (Told(), RESISTS))
        assert apart.verdict == same.verdict == "reproduced"
        assert "seed by seed: k +0" in apart.ours
        assert "seed by seed: k +11" in same.ours
        assert "control, seed by seed: not run" in next(v for v in found(drawn=None).verdicts if v.of == "C8").ours

    def test_differences_are_those_of_the_same_seed(self) -> None:
        rows = {row[""]: row for row in found(drawn=Told(k=10, dims=20)).tables[-1].rows}
        k, dims = rows["k@95% last residual, zero"], rows["95 % dims"]
        assert [text.split()[0] for text in list(k.values())[1:]] == ["+11", "+7", "+4"]
        assert [text.split()[0] for text in list(dims.values())[1:]] == ["+13", "+8", "+5"]
        shifted = {seed: Value(float(10 * seed)) for seed in range(3)}
        assert [
            v.number for v in differences({s: Value(v.number + 2) for s, v in shifted.items()}, shifted).values
        ] == [2] * 3

    def test_lower_bounds_are_never_subtracted_or_divided_by(self) -> None:
        exact, bound = {0: Value(4.0)}, {0: Value(40.0, censored=True)}
        assert differences(exact, bound).n == ratios(exact, bound).n == ratios(exact, {0: Value(0.0)}).n == 0
        assert differences(bound, exact).values == (Value(36.0, censored=True),)
        assert (
            "+28" in found(own=Told(k=MOST, dims=25)).verdicts[0].ours
            or "+37+" in found(own=Told(k=MOST)).verdicts[0].ours
        )

    def test_one_seed_is_no_verdict(self) -> None:
        assert verdicts(seeds=1) == {"C8": "not run", "C10": "not run", "C11": "not run"}
        assert verdicts(seeds=2)["C8"] == "reproduced"

    def test_seeds_that_disagree_leave_it_undecided(self) -> None:
        def told(cell: Cell) -> Told | None:
            weak = cell.config.seed == 1 and name_of(cell.config.penalty) == OWN
            return Told(k=1, dims=25) if weak else runs()(cell)

        assert adversarial.find(two_task_cells(STUDY, told), {}).verdicts[0].verdict == "undecided"


class TestMethodDecides:
    """C10."""

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"others": Told()}, "reproduced"),
            ({}, "undecided"),  # no other depth or width
            ({"own": Told(k=14, dims=25), "others": Told()}, "not reproduced"),  # as separable as without
            ({"others": Told(shared=True)}, "not reproduced"),  # less capacity decides
            ({"base": Told(shared=True), "others": Told()}, "undecided"),
            ({"own": None}, "not run"),
            ({"own": Told(learnt=False)}, "not run"),
        ],
    )
    def test_the_verdict_follows_from_who_can_be_killed_alone(self, given: dict[str, Told], expected: str) -> None:
        assert verdicts(**given)["C10"] == expected


class TestTrilemma:
    """C11."""

    def test_a_single_run_with_all_three_refutes_it_and_is_named(self) -> None:
        verdict = found(own=Told(k=14, dims=25)).verdicts[2]
        assert verdict.verdict == "not reproduced"
        assert "refuted by seed 0 of 2 layers, d 128, contrastive, 10" in verdict.ours

    def test_without_it_every_pair_must_have_been_seen(self) -> None:
        robust_efficient = Told(k=14, dims=25, shared=True)
        assert (
            verdicts(base=Told(k=3, dims=25), own=robust_efficient)["C11"] == "undecided"
        )  # separable + robust: never seen
        assert verdicts(base=Told(k=3, dims=25), own=robust_efficient, drawn=Told(k=14, dims=4))["C11"] == "reproduced"

    def test_without_addition_alone_nothing_is_said(self) -> None:
        assert verdicts(alone=None)["C11"] == "not run"


class TestTables:
    def test_every_arm_is_told_and_only_those_run_have_numbers(self) -> None:
        grokking, removal, spread, kills, _ = found().tables
        assert len(grokking.rows) == 9
        assert [row["penalty"] for row in grokking.rows][:3] == [BASELINE, OWN, DRAWN]
        assert sum("core-hours" in row["seeds with a stable step"] for row in grokking.rows) == 6
        assert len(removal.rows) == 3 * 2 * 3
        assert len(kills.rows) == 3 * 2 * 2
        own = next(row for row in removal.rows if row["penalty"] == OWN)
        assert own["last residual"] == "14"
        assert own["last residual, covariance-drawn"] == "5"
        assert own["log"] == 14
        assert next(row for row in spread.rows if row["penalty"] == OWN)["95 % dims"] == "25"

    def test_what_a_kill_does_to_the_other(self) -> None:
        rows = {(row["penalty"], row["killed"], row["ablation"]): row for row in found().tables[3].rows}
        alone, dragged = rows[BASELINE, "addition", "zero"], rows[OWN, "addition", "zero"]
        assert (alone["k that kills"], alone["the other there"], alone["its smallest k"]) == ("4", "1.00", "4")
        assert (dragged["k that kills"], dragged["the other there"], dragged["its smallest k"]) == ("15", "0.01", "-")
        assert alone["seeds with a selective kill"] == "3 of 3"
        assert dragged["seeds with a selective kill"] == "0 of 3"

    def test_nothing_run_and_nothing_learnt(self) -> None:
        nothing = found(base=None, own=None, drawn=None, alone=None)
        unlearnt = found(base=Told(learnt=False), own=Told(learnt=False), drawn=Told(learnt=False))
        for one in (nothing, unlearnt):
            assert {verdict.verdict for verdict in one.verdicts} == {"not run"}
            assert not one.figures

    def test_the_picture_has_a_panel_an_operation_and_a_line_an_arm(self) -> None:
        (draw,) = found().figures.values()
        names = [trace.name for trace in draw().data if trace.name and trace.showlegend]
        assert names == [BASELINE, DRAWN, OWN]


class TestArms:
    def test_arms_are_told_apart_by_what_is_removed(self) -> None:
        names = list(arms(two_task_cells(STUDY, runs())))
        assert names[:3] == [BASELINE, OWN, DRAWN]
        assert len(names) == len(set(names)) == 9
        assert {
            "top PCA, 10",
            "shuffled answers, 10",
            "dropout, 10",
            "contrastive, 5",
            "contrastive, 10, through",
        } < set(names)

    def test_the_grid_is_in_the_order_of_its_seeds(self) -> None:
        cells = GRIDS["adversarial"].cells
        assert [(c.seed, c.penalty.kind) for c in cells if c.penalty] == [
            (seed, kind) for seed in range(3) for kind in ("contrastive", "covariance")
        ]
        twins = [c.config for c in GRIDS["two-tasks"].cells]
        assert all(c.config in twins and c.steps == 40_000 for c in cells)


class TestLate:
    """Q10."""

    @staticmethod
    def verdict(gains: dict[int | None, int | None], seeds: int = 3, early: int = 0) -> str:
        def told(cell: Cell) -> Told | None:
            penalty = cell.config.penalty
            if (penalty is not None and name_of(penalty) != OWN) or cell.config.seed >= seeds:
                return None
            gain = gains.get(None if penalty is None else penalty.start)
            return None if gain is None else Told(k=3 + gain, before=Told(k=3 + early))

        (one,) = late_penalty.find(two_task_cells(LATE, told), {}).verdicts
        return one.verdict

    @settings(max_examples=10, deadline=None)
    @given(usual=st.integers(1, 20), late=st.integers(-3, 20))
    def test_at_least_half_of_the_usual_gain_is_a_yes(self, usual: int, late: int) -> None:
        expected = "yes" if late > 0 and late >= usual / 2 else "no"
        assert self.verdict({None: 0, 10_000: usual, 30_000: late}) == expected

    def test_what_lies_before_the_latest_start_does_not_count(self) -> None:
        same = {None: 0, 10_000: 8, 30_000: 8}
        assert self.verdict(same, early=30) == self.verdict(same) == "yes"

    def test_missing_runs_and_a_penalty_that_never_worked(self) -> None:
        assert self.verdict({None: 0, 10_000: 8}) == "not run"
        assert self.verdict({None: 0, 10_000: 8, 30_000: 8}, seeds=1) == "not run"
        assert self.verdict({None: 0, 10_000: 0, 30_000: 8}) == "undecided"

    def test_a_row_a_start_in_order(self) -> None:
        cells = two_task_cells(LATE, lambda cell: None)
        assert list(starts(cells)) == [None, 0, 10_000, 20_000, 30_000]
        (table,) = late_penalty.find(cells, {}).tables
        assert [row["penalty from step"] for row in table.rows] == ["never", "0", "10,000", "20,000", "30,000"]

    def test_small_models_have_starts_of_their_own(self) -> None:
        cells = two_task_cells(LATE, lambda cell: Told(learnt=False), quick=True)
        found = late_penalty.find(cells, {})
        assert found.verdicts[0].verdict == "not run"
        assert len(found.tables[0].rows) == 5
