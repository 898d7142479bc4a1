"""E1: levers and the verdict on C1, on planted grok steps."""

import math
from collections.abc import Callable

import pytest

from mi_ablate.studies import grokking_sweep
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.study import Verdict
from mi_ablate.toys.recipes import TrainConfig

DECLARED = Cells.load(grokking_sweep.STUDY.declared(), "nowhere")
DECAYS = {0.0: 40_000, 0.01: 30_000, 0.03: 20_000, 0.1: 12_000, 0.3: 4_000, 1.0: 1_500}
GrokAt = Callable[[TrainConfig], int | None]


def planted(at: GrokAt, *, others: bool = True, without: float | None = None, seeds: int = 5) -> Cells:
    """Every cell run but those left out: a grok step, 100 steps apart for each seed; None for a run that never grokked."""
    found = []
    for cell in DECLARED:
        config = cell.config
        left = config.weight_decay == without or config.seed >= seeds or (cell.grid == "grokking" and not others)
        step = at(config)
        grok = None if step is None else step + 100 * config.seed
        training = {"steps": config.steps, "grok_step": grok, "accuracy": {"held_out": float(grok is not None)}}
        record = {"metrics": {"training": training, "checkpoints": []}, "run": {"cpu_seconds": 360.0}, "device": "cpu"}
        found.append(Cell(config, cell.grid, None if left else record, cell.results))
    return Cells(tuple(found))


def by_decay(config: TrainConfig) -> int | None:
    """Grok steps by weight decay; arms on the other axes like the baseline, weight decay 10 never."""
    return None if config.weight_decay == 10.0 else DECAYS[config.weight_decay]


def by_fraction(fractions: dict[float, int | None]) -> GrokAt:
    return lambda config: fractions.get(config.train_fraction, by_decay(config))


def cells_on(device: str) -> Cells:
    cells = planted(by_decay)
    for cell in cells.done:
        cell.record["device"] = device
    return cells


def verdict(cells: Cells) -> Verdict:
    (one,) = grokking_sweep.find(cells, {}).verdicts
    return one


class TestVerdict:
    def test_a_lever_of_the_logs_size(self) -> None:
        one = verdict(planted(by_decay))
        assert one.verdict == "reproduced"
        assert one.ours.startswith("weight decay: 0 over 1 ")

    def test_the_strongest_but_of_another_size(self) -> None:
        steps = DECAYS | {0.0: 9_000, 0.01: 9_000, 0.03: 9_000, 0.1: 9_000}
        assert (
            verdict(planted(lambda c: None if c.weight_decay == 10.0 else steps[c.weight_decay])).verdict
            == "different size"
        )

    def test_another_axis_is_stronger(self) -> None:
        steps = {0.1: 1_500_000, 0.5: 1_000}
        assert verdict(planted(by_fraction(steps))).verdict == "not reproduced"

    def test_an_arm_that_never_grokked_may_be_the_stronger_one(self) -> None:
        one = verdict(planted(by_fraction({0.1: None, 0.5: 1_000})))
        assert one.verdict == "undecided"
        assert "train fraction: 0.1 over 0.5 " in one.ours
        assert "unbounded" in one.ours

    def test_a_lower_bound_leaves_the_size_open(self) -> None:
        """50,000+ over 1,700 is at least 29: as large as the log's 33, or any larger."""
        assert verdict(planted(lambda c: None if c.weight_decay in (0.0, 10.0) else 1_700)).verdict == "undecided"
        fast = planted(lambda c: None if c.weight_decay in (0.0, 10.0) else 100)
        assert verdict(fast).verdict == "different size"

    @pytest.mark.parametrize("cells", [planted(by_decay, others=False), planted(by_decay, seeds=1), DECLARED])
    def test_what_is_not_run(self, cells: Cells) -> None:
        assert verdict(cells).verdict == "not run"


class TestLever:
    def test_it_is_the_ratio_of_medians_with_the_seeds_ends(self) -> None:
        found = grokking_sweep.lever(grokking_sweep.arms_of(planted(by_decay, without=0.0))["weight decay"])
        assert (found.slowest, found.fastest) == ("0.01", "1")
        assert found.ratio.number == pytest.approx(30_100 / 1_700)
        assert (found.low, found.high) == (pytest.approx(30_000 / 1_900), pytest.approx(30_200 / 1_500))

    def test_an_arm_that_never_grokked_is_a_lower_bound(self) -> None:
        cells = planted(lambda config: None if config.weight_decay == 0.0 else by_decay(config))
        found = grokking_sweep.lever(grokking_sweep.arms_of(cells)["weight decay"])
        assert (found.slowest, found.ratio.censored, found.high) == ("0", True, math.inf)
        assert found.ratio.number == pytest.approx(50_000 / 1_700)

    def test_a_fast_arm_with_a_run_that_never_grokked_has_no_least_ratio(self) -> None:
        def at(config: TrainConfig) -> int | None:
            return None if config.weight_decay == 1.0 and config.seed == 4 else by_decay(config)

        found = grokking_sweep.lever(grokking_sweep.arms_of(planted(at))["weight decay"])
        assert (found.fastest, found.low) == ("1", 0.0)

    def test_nothing_grokked(self) -> None:
        arms = grokking_sweep.arms_of(planted(lambda config: None))
        assert all(grokking_sweep.lever(every) is None for every in arms.values())


class TestTables:
    def test_every_configuration_is_an_arm_and_the_baseline_one_of_each_axis(self) -> None:
        arms = grokking_sweep.arms_of(DECLARED)
        assert {axis: len(every) for axis, every in arms.items()} == {"weight decay": 7, "train fraction": 5, "size": 9}
        inside = {cell.key for every in arms.values() for group in every.values() for cell in group}
        assert inside == {cell.key for cell in DECLARED}
        baseline = arms["weight decay"]["1"]
        assert arms["train fraction"]["0.3"] == arms["size"]["2 layers, d 128"] == baseline

    def test_what_never_grokked_and_what_is_not_run(self) -> None:
        found = grokking_sweep.find(planted(by_decay, without=0.0), {})
        rows = {(row["axis"], row["arm"]): row for row in found.tables[0].rows}
        assert rows["weight decay", "10"]["grok step"] == "5,000+"
        assert rows["weight decay", "10"]["grokked"] == 0
        assert rows["weight decay", "0"]["grok step"] == "not run"
        assert rows["weight decay", "0"]["left"].startswith("not run: ")
        assert rows["size", "1 layer, d 64"]["CPU minutes a run"] == "6.0"
        assert grokking_sweep._cpu_seconds(cells_on("cuda")) == []
        assert found.tables[0].note.startswith("The 60 recorded runs of 63 took 6.0 CPU hours")
