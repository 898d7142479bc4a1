"""Batch size: exponents and verdicts on planted runs, what is not run, and what the runs share."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_ablate.studies import batch_size
from mi_ablate.studies.batch_arms import DECAY, PLAIN, RATE, Arms, arm_of, batch_of, exponent, pairs
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.cost import cost_rows
from mi_ablate.studies.spread import Value
from mi_ablate.studies.study import Findings
from mi_ablate.sweep import GRIDS
from mi_ablate.sweep.grids import key_of
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.train import train
from recorded import record, write

STUDY = batch_size.STUDY
GrokAt = Callable[[str, int, int], int | None]
"""Arm, batch and seed -> the grok step of a planted run; 0 leaves the cell out."""


def planted(groks: GrokAt, seeds: int = 3, quick: bool = False) -> Cells:
    """The study's cells with runs that grok when told."""
    declared = not_run(quick)
    usual, found = Arms.of(declared).usual, []
    for cell in declared:
        config = cell.config
        arm = batch_size.PLAIN if cell.grid == "weight-decay" else arm_of(config, usual)
        mine = cell.grid == "batch-size" or config.weight_decay == 1.0
        step = groks(arm, batch_of(config), config.seed) if mine and config.seed < seeds else 0
        found.append(cell if step == 0 else Cell(config, cell.grid, made(config, step), cell.results))
    return Cells(tuple(found))


@functools.cache
def not_run(quick: bool) -> Cells:
    return Cells.load(STUDY.declared(quick), "nowhere")


def made(config: TrainConfig, grok: int | None) -> dict[str, Any]:
    """A record of these settings that never groks where the step lies after its end."""
    reached = grok is not None and grok <= config.steps
    history = [[s, 0.0, 1.0, 0.0, float(reached and s >= (grok or 0))] for s in range(0, config.steps + 1, 100)]
    training = {"steps": config.steps, "grok_step": grok if reached else None, "history": history}
    return {
        "key": key_of(config),
        "status": "done",
        "weights": [],
        "metrics": {"training": training, "checkpoints": []},
    }


def found(groks: GrokAt, **options: Any) -> Findings:
    return batch_size.find(planted(groks, **options), {})


def verdicts(groks: GrokAt, **options: Any) -> dict[str, str]:
    return {one.of: one.verdict for one in found(groks, **options).verdicts}


def law(plain: float, decay: float, rate: float = 0.0, usual: int = 2000, fall: float = 0.0) -> GrokAt:
    """Grok steps that go as a power of the batch, by arm; ``fall``: how much the power changes a seed."""
    powers = {PLAIN: plain, DECAY: decay, RATE: rate}
    return lambda arm, batch, seed: round(usual * (batch / 512) ** (powers[arm] - fall * seed))


def table(findings: Findings, title: str) -> dict[str, dict[str, Any]]:
    rows = next(t.rows for t in findings.tables if t.title == title)
    return {row["batch"]: row for row in rows}


class TestVerdicts:
    def test_steps_govern_and_decay_does_not_matter(self) -> None:
        assert verdicts(law(0, 0)) == {
            "C14": "not reproduced", "C15": "reproduced", "C16": "undecided", "Q1": "yes", "Q2": "yes",
        }  # fmt: skip

    def test_decay_governs(self) -> None:
        """Grokking after a fixed decay: the same steps at one decay, the same samples where decay follows the batch."""
        assert verdicts(law(0, -1)) | {"C16": ""} == {
            "C14": "reproduced", "C15": "reproduced", "C16": "", "Q1": "yes", "Q2": "yes",
        }  # fmt: skip

    def test_samples_govern(self) -> None:
        got = verdicts(law(-1, -1, usual=500))
        assert (got["C15"], got["C14"], got["C16"]) == ("not reproduced", "not reproduced", "not reproduced")
        assert verdicts(law(-1.1, -1.1, usual=500))["Q1"] == "no"

    def test_noise_helps(self) -> None:
        assert verdicts(law(0.4, -0.4))["C16"] == "reproduced"
        assert verdicts(law(0.4, -1.4))["C16"] == "undecided"
        assert verdicts(law(-0.4, -1.4))["C16"] == "not reproduced"

    def test_sizes_between(self) -> None:
        assert verdicts(law(-0.4, -0.4))["C15"] == "different size"
        assert verdicts(law(0, -0.5))["C14"] == "different size"

    def test_seeds_that_disagree(self) -> None:
        got = verdicts(law(-0.3, -0.3, fall=0.2))
        assert (got["C15"], got["Q1"]) == ("undecided", "yes")
        assert verdicts(law(-0.9, -0.9, usual=500, fall=0.2))["Q1"] == "undecided"

    def test_the_tenfold_batch(self) -> None:
        assert verdicts(law(0, 0, usual=500))["Q2"] == "no"

        def some(arm: str, batch: int, seed: int) -> int:
            return 500 if seed == 0 else 700

        outcome = next(one for one in found(some).verdicts if one.of == "Q2")
        assert outcome.verdict == "undecided"
        assert outcome.ours.startswith("1 of 3 grok by step 600; 1 of 3 grok by step 600 with decay")
        assert outcome.ours.endswith("3 of 3 by step 6,000")

    def test_one_seed_decides_nothing_and_none_is_not_run(self) -> None:
        assert set(verdicts(law(0, 0), seeds=1).values()) == {"undecided"}
        assert set(verdicts(law(0, 0), seeds=0).values()) == {"not run"}
        only_usual = verdicts(lambda arm, batch, seed: 2000 if batch == 512 else 0)
        assert set(only_usual.values()) == {"not run"}

    def test_models_that_never_grok(self) -> None:
        got = found(lambda arm, batch, seed: None)
        assert {one.of: one.verdict for one in got.verdicts}["Q2"] == "yes"
        assert table(got, "Batch size alone")["1,024"]["grok step"] == "6,000+"
        small = verdicts(lambda arm, batch, seed: None if batch == 64 else 2000)
        assert small["C15"] == "not run"  # a small batch that never groks leaves the exponent open downwards

    def test_small_models(self) -> None:
        got = found(law(0, 0, usual=1000), quick=True)
        assert [row for row in table(got, "Batch size alone")] == ["13", "27", "53", "214", "588", "1,068"]
        assert {one.of: one.verdict for one in got.verdicts}["C15"] == "reproduced"


class TestTables:
    def test_steps_samples_and_accuracies(self) -> None:
        got = table(found(lambda arm, batch, seed: 4000 if batch == 1024 else 1000 * (seed + 1)), "Batch size alone")
        assert got["64"]["grok step"] == "2,000 [1,000, 3,000]"
        assert got["64"]["samples to grok"] == "128,000 [64,000, 192,000]"
        assert got["1,024"]["samples to grok"] == "4,096,000"
        assert (got["1,024"]["held out after the same samples"], got["1,024"]["after the same steps"]) == (
            "0.000",
            "1.000",
        )

    def test_a_run_that_ends_earlier_says_nothing_about_later(self) -> None:
        got = table(found(law(0, 0)), "Weight decay in proportion to the batch")
        assert (got["5,120"]["after the same steps"], got["5,120"]["held out after the same samples"]) == ("-", "0.000")

    def test_what_is_not_run_has_its_estimate(self) -> None:
        got = table(batch_size.find(planted(law(0, 0), seeds=0), {}), "Batch size alone")
        assert got["64"]["run"].startswith("0 of 3 (left: ")
        assert {row["grok step"] for row in got.values()} == {"not run"}

    def test_the_batch_beyond_the_training_set_is_explained_and_left_out(self) -> None:
        everything = found(law(0, 0))
        assert "A batch of 5,120 is more than the 2,822 training pairs" in everything.tables[0].note
        odd = Arms.of(planted(lambda arm, batch, seed: 5900 if batch == 5120 else 2000))
        assert odd.exponents(PLAIN)[0].number == pytest.approx(0.0)

    def test_the_figure_has_a_line_an_arm_and_the_law(self) -> None:
        assert not found(lambda arm, batch, seed: 2000 if batch == 512 else 0).figures
        (draw,) = found(law(0, -1)).figures.values()
        names = {trace.name for trace in draw().data}
        assert {"batch size alone", "same samples"} <= names


class TestNoise:
    def result(self, decay: float, seed: int, stable: bool = True, trace: float | None = 512.0) -> dict[str, Any]:
        parts = {"squared_length": 2.0 if decay == 1.0 else 0.0, "trace": trace}
        about = {"weight_decay": decay, "seed": seed, "stable": stable}
        return {"about": about, "result": {**parts, "loss": 0.1, "float32_error": 0.5, "estimated": parts}}

    def with_weights(self) -> Cells:
        cells = planted(lambda arm, batch, seed: 2000 if batch == 512 else 0)
        kept = [{"file": "-", "step": 400, "stable": True}, {"file": "-", "step": 5000, "stable": False}]
        found = []
        for cell in cells:
            if cell.grid == "weight-decay" and cell.record is None and cell.config.weight_decay == 0.1:
                cell = Cell(cell.config, cell.grid, made(cell.config, None), cell.results)
            if cell.record is not None:
                cell.record["weights"] = kept
            found.append(cell)
        return Cells(tuple(found))

    def test_items_are_the_last_kept_weights(self) -> None:
        cells = self.with_weights()
        items = batch_size.items(cells)
        assert len(items) == len(cells.done) == 8
        assert {item.key.split("@")[1] for item in items} == {"5000"}
        assert items[0].about["stable"] is False
        assert len({item.key for item in items}) == len(items)

    def test_the_table_takes_stable_weights_where_there_are_some(self) -> None:
        cells = self.with_weights()
        own = {}
        for item in batch_size.items(cells):
            decay, seed = item.about["weight_decay"], item.about["seed"]
            own[item.key] = self.result(
                decay, seed, stable=decay == 1.0 and seed > 0, trace=[512.0, 1024.0, None][seed % 3]
            )
        rows = batch_size.find(cells, own).tables[-1].rows
        by = {row["weight decay"]: row for row in rows}
        assert by["1"]["runs"] == "1 (stable step)"
        assert (by["1"]["B"], by["1"]["noise at 512"], by["1"]["error in float32"]) == ("512", "50%", "50%")
        assert by["0.1"]["runs"].endswith("(last step)")
        assert by["0.1"]["B"] == "inf"
        assert by["0.01"]["B"] == "not run"
        (note,) = batch_size.find(cells, own).notes
        assert note.endswith("is 50% at weight decay 0.1, 50% at weight decay 1 of its squared length.")
        captions = list(batch_size.find(cells, own).figures)
        assert len(captions) == 1
        assert captions[0].startswith("Gradient noise scale at the last kept weights")
        assert batch_size.find(cells, own).figures[captions[0]]().data

    def test_a_recorded_model_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from mi_ablate.measures import Subject
        from mi_ablate.toys.stepper import initial_state

        config = TrainConfig(ToyConfig(5, n_layers=1, d_model=8, n_heads=2, d_mlp=8), train_fraction=0.5)
        subject = Subject(config, initial_state(config.config, "log", 0), 100, True)
        monkeypatch.setattr(Cell, "subject", lambda self, step: subject)
        result = batch_size.measured(Cell(config, "batch-size", None, Path()), 100)
        assert result["examples"] == 12
        assert result["float32_error"] == pytest.approx(0, abs=1e-3)
        assert result["estimated"]["trace"] == pytest.approx(result["trace"], rel=0.5)
        assert 1.0 < result["loss"] < 3.0


class TestExponents:
    @given(st.floats(-2, 2), st.integers(100, 10_000), st.integers(0, 2**16))
    @settings(max_examples=30, deadline=None)
    def test_a_power_law_gives_its_power(self, power: float, at: int, seed: int) -> None:
        sizes = sorted({int(2 ** (4 + 8 * x)) for x in torch.rand(5, generator=torch.Generator().manual_seed(seed))})
        found = exponent({size: Value(at * size**power) for size in sizes})
        assert (
            found is None if len(sizes) < 3 else found is not None and math.isclose(found.number, power, abs_tol=1e-9)
        )

    def test_lower_bounds(self) -> None:
        known = {64: Value(100.0), 256: Value(100.0), 1024: Value(100.0)}
        large = exponent({**known, 1024: Value(200.0, censored=True)})
        assert large is not None
        assert large.censored
        assert large.number > 0
        assert exponent({**known, 64: Value(200.0, censored=True)}) is None
        assert exponent({64: Value(1.0), 128: Value(1.0)}) is None


class TestDeclared:
    def test_no_run_is_declared_twice(self) -> None:
        """The usual batch is the weight-decay grid's, and one run serves the same samples and the same steps."""
        cells = GRIDS["batch-size"].cells
        assert not {key_of(c) for c in cells} & {key_of(c) for c in GRIDS["weight-decay"].cells}
        told = {(c.batch_size, c.weight_decay, c.learning_rate, c.seed) for c in cells}
        assert len(told) == len(cells) == 45
        assert 512 not in {c.batch_size for c in cells}
        for cell in cells:
            assert cell.batch_size is not None
            assert 512 * 6_000 // cell.batch_size in cell.keep_steps
            if cell.weight_decay != 1.0:
                assert cell.weight_decay * cell.steps == pytest.approx(6_000)
            elif cell.learning_rate == 1e-3:
                assert 6_000 in cell.keep_steps

    def test_quick_cells_stay_apart_and_in_order(self) -> None:
        full, quick = GRIDS["batch-size"].cells, GRIDS["batch-size"].quick().cells
        assert len(quick) == len(full)
        for a, b in zip(full, quick):
            assert b.batch_size is not None
            assert b.batch_size / pairs(b) == pytest.approx(batch_of(a) / pairs(a), rel=0.05)
        assert {c.batch_size for c in GRIDS["weight-decay"].quick().cells} == {None}

    def test_a_longer_run_begins_as_the_shorter_one(self, tmp_path: Path) -> None:
        """Why one run serves both: steps and keep_steps say when it ends, and change nothing before."""
        shape = ToyConfig(5, n_layers=1, d_model=8, n_heads=2, d_mlp=8)
        options: dict[str, Any] = {"train_fraction": 0.5, "batch_size": 4, "evaluate_every": 10}
        histories = [
            train(
                TrainConfig(shape, steps=steps, keep_steps=keep, **options), out=tmp_path / str(steps), progress=False
            )
            for steps, keep in ((20, (20,)), (40, (20, 40)))
        ]
        short, long = (result.card["history"] for result in histories)
        assert long[: len(short)] == short
        assert len(long) == len(short) + 2


def test_what_the_records_cost(tmp_path: Path) -> None:
    assert cost_rows(tmp_path) == []
    gpu = {**record(5, grid="norms"), "device": "cuda"}
    write(tmp_path, record(0, grid="norms"), record(1, grid="norms"), gpu, record(0, grid="unheard-of"))
    rows = cost_rows(tmp_path)
    assert [row[""] for row in rows] == ["`norms`", "together"]
    assert rows[0]["recorded"] == "3 of 24 runs, 1 on a GPU, time not measured"
    assert (rows[0]["training steps"], rows[0]["ms a step"], rows[0]["CPU hours"]) == ("800", "225", "0.05")
    own = {**record(0, grid="batch-size"), "run": {"cpu_seconds": 3600.0}}
    write(tmp_path / "own", own, {**own, "grid": "batch-size-quick"})
    rows = cost_rows(tmp_path)
    assert rows[1][""] == "measurements of `batch-size`"
    assert (rows[1]["CPU hours"], rows[2]["CPU hours"]) == ("1.00", "1.05")
