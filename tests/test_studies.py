"""The framework of the studies: spreads, cells, own measurements, running, and what is left of a study."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_ablate._files import ArtefactError
from mi_ablate.measures import VERSION
from mi_ablate.studies import (
    Cells,
    Findings,
    Item,
    Spread,
    Study,
    Table,
    Value,
    Verdict,
    run_study,
)
from mi_ablate.studies.own import lacking, load_own, own_file, take_own
from mi_ablate.studies.spread import coverage
from mi_ablate.studies.standing import Standing
from mi_ablate.sweep import GRIDS, RecordFile
from study_records import TINY, record_of, use_tiny

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "studies"


def find(cells: Cells, own: Any) -> Findings:
    rows = [{"cell": cell.label, "held out": cell.held_out} for cell in cells.done]
    return Findings([Table("Cells", rows)], verdicts=[Verdict("Q1", "yes", "-", f"{len(own)} taken", "always")])


def items_of(
    taken: list[str], names: str = "abc", also: Callable[[str], Any] | None = None
) -> Callable[[Cells], list[Item]]:
    """A study's items, which note that they were taken and may do something else."""

    def take(name: str) -> Any:
        taken.append(name)
        return {"value": len(taken), "more": None if also is None else also(name)}

    return lambda cells: [Item(name, {"name": name}, lambda name=name: take(name), 3600.0) for name in names]


def study(**changes: Any) -> Study:
    return replace(Study("tiny", "E0", "Tiny cells", "What do they say?", ("tiny",), find, ("Q1",)), **changes)


def take(one: Study, folder: Path, **options: Any) -> int:
    return take_own(one, one.items(Cells(())), folder, command="a test", report=lambda line: None, **options)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny(monkeypatch)


VALUES = st.lists(st.builds(Value, st.floats(-1e6, 1e6), st.booleans()), min_size=1, max_size=7)


class TestSpread:
    @given(VALUES)
    def test_the_median_lies_in_the_range(self, values: list[Value]) -> None:
        spread = Spread.of([*values, None])
        assert spread.low <= spread.median <= spread.high
        assert spread.n == len(values)
        assert spread.text(count=False) in spread.text()

    @given(VALUES, st.data())
    def test_larger_truths_behind_lower_bounds_move_only_what_is_marked(self, values: list[Value], data: Any) -> None:
        """Whatever the censored numbers really are, an unmarked statistic is that of the truth, a marked one at most it."""
        truth = [Value(v.number + (data.draw(st.floats(0, 1e6)) if v.censored else 0)) for v in values]
        known, real = Spread.of(values), Spread.of(truth)
        centre = known.centre
        assert centre.number <= real.median + 1e-9
        assert centre.censored or centre.number == real.median
        high = known.text(count=False, form=".17g")
        assert any(v.censored for v in values) == ("+" in high)

    def test_marks(self) -> None:
        low, high = Value(40, censored=True), Value(60)
        assert Spread.of([low, Value(50), high]).text() == "50+ [40+, 60+] (n=3)"
        assert Spread.of([Value(30), Value(35), low]).text() == "35 [30, 40+] (n=3)"
        assert Spread.of([low, Value(40)]).text() == "40+ [40, 40+] (n=2)"
        assert (Spread.of([]).text(), Spread.of([None]).n) == ("not run", 0)
        assert Spread.of([3, 3, 3]).text(".1f") == "3.0 (n=3)"
        assert Value.mean([low, Value(20)]) == Value(30, censored=True)

    def test_coverage_is_that_of_draws(self) -> None:
        assert [coverage(n) for n in (0, 1, 2, 3)] == [0, 0, 0.5, 0.75]
        generator = random.Random(0)
        inside = [min(d) < 0.5 < max(d) for d in ([generator.random() for _ in range(5)] for _ in range(4000))]
        assert sum(inside) / 4000 == pytest.approx(coverage(5), abs=0.015)


class TestCells:
    def load(self, folder: Path, *records: dict[str, Any]) -> Cells:
        with RecordFile(folder / "tiny.jsonl") as file:
            for one in records:
                file.append(one)
        return Cells.load([TINY], folder)

    def test_cells_know_their_records(self, tmp_path: Path) -> None:
        failed = record_of(TINY.cells[1], "tiny") | {"status": "failed", "error": "ValueError: no room\nmore"}
        cells = self.load(tmp_path, record_of(TINY.cells[0], "tiny"), failed)
        assert repr(cells) == "Cells(1 of 4 run)"
        first, second = list(cells)[:2]
        assert (first.grok_step, first.held_out, second.error) == (200, 1.0, "ValueError: no room\nmore")
        assert [at.step for at in first.stable] == [40, 60]
        assert first.last.step == 60
        assert cells.missing[0] is second
        assert first.mean(lambda at: at.step) == Value(50)
        assert first.mean(lambda at: None) is None
        assert cells.values(lambda cell: cell.grok_step) == [Value(200)]
        for cell in (second, cells.missing[-1]):
            with pytest.raises(ValueError, match=r"not run\): take numbers from cells that are run, `Cells\.done`\."):
                cell.checkpoints

    def test_k_is_read_as_recorded(self, tmp_path: Path) -> None:
        [cell] = self.load(tmp_path, record_of(TINY.cells[0], "tiny", full=True)).done
        at, where = cell.last, "last_residual.directions.live"
        for ablation in ("zero", "mean", "resample"):
            for run in ("edited", "covariance", "pca"):
                told = at.get("last_residual", "add", f"directions.live.{ablation}.k")[run]["0.95"]["first"]["relative"]
                assert at.k("add", where, ablation, run=run) == Value(told["k"], told["censored"])
        assert at.k("add", "every_site.live", "zero") is not None
        assert at.k("mul", where, "zero") is None
        assert at.get("accuracy", "add", "held_out.accuracy.nothing.below") is None
        assert at.get("no measure", "add") is None

    def test_choosing(self, tmp_path: Path) -> None:
        cells = Cells.load([TINY, GRIDS["two-tasks"], GRIDS["adversarial"]], tmp_path)
        assert len(cells.where(grid="tiny", weight_decay=0.1)) == 2
        assert len(cells.where(config__operations=("add", "mul"))) == len(cells) - 4
        assert {cell.grid for cell in cells.where(penalty__kind=None)} == {"tiny", "two-tasks"}
        assert {cell.grid for cell in cells.where(penalty__kind="contrastive")} == {"adversarial"}
        with pytest.raises(ValueError, match=r"No cell has a setting 'weigth_decay'\. Nearest names: weight_decay"):
            cells.where(weigth_decay=1)
        assert len(Cells(()).where(anything=1)) == 0

    def test_records_of_two_versions_are_refused(self, tmp_path: Path) -> None:
        old = record_of(TINY.cells[1], "tiny") | {"measures_version": VERSION + 1}
        text = rf"tiny\.jsonl holds measures of version {VERSION + 1}, and this is version {VERSION}: the two are not mixed\. "
        with pytest.raises(ArtefactError, match=text + "`mi-ablate train tiny` measures them again"):
            self.load(tmp_path, record_of(TINY.cells[0], "tiny"), old)

    def test_a_file_that_grew_is_read_again(self, tmp_path: Path) -> None:
        assert len(self.load(tmp_path, record_of(TINY.cells[0], "tiny")).done) == 1
        assert len(self.load(tmp_path, record_of(TINY.cells[1], "tiny")).done) == 2

    def test_weights_that_are_not_kept(self, tmp_path: Path) -> None:
        [cell] = self.load(tmp_path, record_of(TINY.cells[0], "tiny")).done
        with pytest.raises(ValueError, match=r"keeps the weights of step 60, not of 40\."):
            cell.subject(40)
        with pytest.raises(ArtefactError, match=r"There is no file .*safetensors"):
            cell.subject()

    def test_the_recorded_weights_give_the_recorded_accuracy(self) -> None:
        cells = Cells.load([GRIDS["weight-decay"]], RECORDS)
        cell = next(cell for cell in cells.done if cell.config.weight_decay == 1)
        one = cell.subject().operations["add"]
        right = (
            cell.subject().logits[one.everything].argmax(-1) == cell.subject().toy.answers[one.everything]
        ).double()
        assert float(right.mean()) == pytest.approx(cell.training["accuracy"]["all"], abs=1e-3)

    def test_estimates_are_of_the_size_of_recorded_times(self) -> None:
        done = Cells.load([GRIDS["weight-decay"]], RECORDS).done
        ratios = sorted(60 * cell.estimate / cell.record["run"]["cpu_seconds"] for cell in done)
        assert 0.7 < ratios[len(ratios) // 2] < 1.4
        assert all(0.4 < ratio < 2.5 for ratio in ratios)


class TestOwnMeasurements:
    def test_they_are_taken_once_in_order_and_read_back(self, tmp_path: Path) -> None:
        taken: list[str] = []
        one = study(items=items_of(taken))
        lines: list[str] = []
        assert load_own(one, tmp_path) == {}
        assert take_own(one, one.items(Cells(())), tmp_path, command="a test", report=lines.append) == 0
        assert take(one, tmp_path) == 0
        assert taken == ["a", "b", "c"]
        assert lines[1].startswith("tiny: b, 2 of 3, ")
        assert load_own(one, tmp_path)["b"] == {"about": {"name": "b"}, "result": {"value": 2, "more": None}}
        assert load_own(one, tmp_path, quick=True) == {}

    def test_stopped_in_between_it_goes_on(self, tmp_path: Path) -> None:
        def stop(name: str) -> None:
            if name == "b" and taken.count("b") == 1:
                raise KeyboardInterrupt

        taken: list[str] = []
        one = study(items=items_of(taken, also=stop))
        with pytest.raises(KeyboardInterrupt):
            take(one, tmp_path)
        path = own_file(one, tmp_path).path
        with path.open("ab") as file:
            file.write(b'{"format": "mi_ablate rec')  # as a kill leaves it
        assert list(load_own(one, tmp_path)) == ["a"]
        assert take(one, tmp_path) == 0
        assert taken == ["a", "b", "b", "c"]
        assert list(load_own(one, tmp_path)) == ["a", "b", "c"]

    def test_a_deadline_leaves_the_rest(self, tmp_path: Path) -> None:
        taken: list[str] = []
        one = study(items=items_of(taken))
        assert take(one, tmp_path, deadline=time.monotonic() - 1) == 3
        assert taken == []
        assert [item.key for item in lacking(one, one.items(Cells(())), tmp_path)] == ["a", "b", "c"]

    def test_another_version_is_refused_until_it_is_taken_again(self, tmp_path: Path) -> None:
        taken: list[str] = []
        take(study(items=items_of(taken)), tmp_path)
        newer = study(items=items_of(taken, names="ab"), version=2)
        text = r"tiny\.jsonl holds 3 measurements of another version than 2 \(a\); the two are not mixed\. "
        with pytest.raises(ArtefactError, match=text + "`mi-ablate study tiny` takes them again"):
            load_own(newer, tmp_path)
        assert take(newer, tmp_path) == 0
        assert {key: line["result"]["value"] for key, line in load_own(newer, tmp_path).items()} == {"a": 4, "b": 5}
        assert len(own_file(newer, tmp_path).lines()) == 6, "appended, never changed; c is withdrawn"

    def test_a_withdrawn_measurement_can_come_back(self, tmp_path: Path) -> None:
        taken: list[str] = []
        for version, names in ((1, "ab"), (2, "a"), (2, "ab")):
            take(study(items=items_of(taken, names), version=version), tmp_path)
        assert taken == ["a", "b", "a", "b"]
        assert set(load_own(study(version=2), tmp_path)) == {"a", "b"}

    def test_what_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match="The study tiny has two measurements with the key 'a'; each needs its own"
        ):
            take(study(items=items_of([], "aba")), tmp_path)
        one = study(items=items_of([]))
        with (
            own_file(one, tmp_path),
            pytest.raises(RuntimeError, match=r"Another process is writing .*own/tiny\.jsonl"),
        ):
            take(one, tmp_path)
        take(one, tmp_path)
        (tmp_path / "own" / "tiny.jsonl").rename(tmp_path / "own" / "other.jsonl")
        with pytest.raises(
            ArtefactError, match=r"other\.jsonl holds 'a', no measurement of other; put the right file there"
        ):
            load_own(study(name="other"), tmp_path)
        (tmp_path / "own" / "tiny.jsonl").write_text('{"format": "another"}\n')
        with pytest.raises(ArtefactError, match=r"own/tiny\.jsonl, line 1 is of the format 'another'"):
            load_own(one, tmp_path)


@pytest.mark.usefixtures("tiny")
class TestRunning:
    @pytest.mark.compat
    def test_cells_then_measurements_and_nothing_twice(self, tmp_path: Path) -> None:
        taken: list[str] = []

        def items(cells: Cells) -> list[Item]:
            return [Item(c.key, {}, lambda c=c: taken.append(c.key) or c.subject().step) for c in cells.done]

        one = study(items=items)
        places: dict[str, Any] = {
            "results": tmp_path / "results",
            "runs": tmp_path / "runs",
            "progress": False,
            "workers": 1,
        }
        assert repr(run_study(one, **places)) == "Outcome(4 recorded, 0 failed, 0 left)"
        assert len(taken) == 4
        found = one.findings(places["results"])
        assert found.verdicts[0].ours == "4 taken"
        assert len(found.tables[0].rows) == 4
        assert repr(run_study(one, **places)) == "Outcome(0 recorded, 0 failed, 0 left)"
        assert len(taken) == 4

    def test_a_budget_counts_for_all_of_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        taken: list[str] = []
        one = study(items=items_of(taken))
        places: dict[str, Any] = {"results": tmp_path / "results", "runs": tmp_path / "runs", "progress": False}
        assert repr(run_study(one, budget=0, **places)) == "Outcome(0 recorded, 0 failed, 7 left)"
        assert taken == []

    def test_options_reach_the_engine(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"There is no engine 'rya'\. Nearest names: ray"):
            run_study(study(), results=tmp_path, runs=tmp_path / "runs", engine="rya")


@pytest.mark.usefixtures("tiny")
class TestStanding:
    def test_what_is_there_and_what_is_not(self, tmp_path: Path) -> None:
        one = study(items=items_of([]))
        with RecordFile(tmp_path / "tiny.jsonl") as file:
            file.append(record_of(TINY.cells[0], "tiny"))
            file.append(record_of(TINY.cells[1], "tiny") | {"status": "failed", "error": "ValueError: no room\nmore"})
        standing = Standing.of(one, tmp_path)
        assert standing.done() == "1 of 4 cells, 0 of 3 measurements"
        first, second = standing.missing()
        assert (first["seeds"], first["state"], first["command"]) == (
            "1",
            "failed: ValueError: no room",
            "mi-ablate train tiny",
        )
        assert (second["seeds"], second["state"]) == ("0 1", "not run")
        assert "weight_decay=0.1" in second["configuration"]
        grid, own = standing.by_grid()
        assert (grid["what"], grid["not run"]) == ("grid tiny", "3 of 4 cells")
        assert (own["not run"], own["core-hours"], own["command"]) == (
            "3 of 3 measurements",
            "3.0",
            "mi-ablate study tiny",
        )
        assert standing.minutes == pytest.approx(180, abs=1)
        take(one, tmp_path)
        assert Standing.of(one, tmp_path).untaken == ()

    def test_the_commands_of_small_grids_say_so(self, tmp_path: Path) -> None:
        standing = Standing.of(study(items=items_of([])), tmp_path, quick=True)
        assert {row["command"] for row in standing.by_grid()} == {"mi-ablate study tiny --quick"}
        assert {row["command"] for row in standing.missing()} == {"mi-ablate study tiny --quick"}


def test_what_a_verdict_can_be() -> None:
    with pytest.raises(ValueError, match=r"The verdict 'maybe' of C1 must be one of reproduced, different size, "):
        Verdict("C1", "maybe", "-", "-", "-")
    silent = study(find=lambda cells, own: Findings())
    with pytest.raises(ValueError, match=r"The study tiny decides Q1, and gave verdicts on \[\]\."):
        replace(silent, grids=("two-tasks",)).findings("nowhere")
