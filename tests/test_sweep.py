"""Grids, their records, and the local engine: what is trained, what survives, what is refused."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import mi_ablate.sweep.run
from mi_ablate import _files, toys
from mi_ablate.measures import VERSION
from mi_ablate.sweep import GRIDS, Grid, RecordFile, check_options, is_grid, load_grid, merged, plan, run_grid
from mi_ablate.sweep import local as engine
from mi_ablate.sweep.grids import config_hash, key_of, label
from mi_ablate.sweep.records import FORMAT, comparable
from mi_ablate.sweep.tasks import FULL_DISK, Task
from mi_ablate.sweep.work import perform
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.recipes import TrainConfig

BASE: dict[str, Any] = {
    "steps": 60, "evaluate_every": 20, "batch_size": 16, "train_fraction": 0.5, "split_seed": None, "keep_steps": [40, 60],
    "config": {"modulus": 7, "n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 16},
}  # fmt: skip
SOME = ("accuracy", "embedding")


def tiny(**changes: Any) -> Grid:
    return Grid.product("tiny", {**BASE, **changes}, axes={"weight_decay": [1.0, 0.1]}, seeds=(0, 1))


def run(grid: Grid, folder: Path, measures: tuple[str, ...] = ("accuracy",), **options: Any) -> Any:
    todo = plan(grid, results=folder / "results", runs=folder / "runs", measures=measures)
    return run_grid(todo, progress=False, workers=1, **options)


def records(folder: Path, name: str = "tiny") -> dict[str, dict[str, Any]]:
    return RecordFile(folder / "results" / f"{name}.jsonl").latest()


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run here, without the seconds that a process takes to start, except in tests that ask for `processes`."""

    def here(groups: Any, workers: int) -> Any:
        for group in groups:
            yield None
            for task in group:
                task.clear()
            perform(group)
            yield from [task.ended() for task in group]

    if "processes" not in request.fixturenames:
        monkeypatch.setattr(mi_ablate.sweep.run, "local", here)


@pytest.fixture
def processes() -> None:
    """The engine's own processes."""


class TestGrids:
    def test_arms_axes_and_seeds_multiply_in_order(self) -> None:
        arms = [{"weight_decay": 1.0}, {"weight_decay": 0.1, "steps": 100, "seeds": [7]}]
        grid = Grid.product("g", BASE, arms=arms, axes={"config.d_model": [16, 32]}, seeds=2)
        told = [(c.weight_decay, c.config.d_model, c.seed, c.steps) for c in grid.cells]
        assert told == [
            (1, 16, 0, 60),
            (1, 16, 1, 60),
            (1, 32, 0, 60),
            (1, 32, 1, 60),
            (0.1, 16, 7, 100),
            (0.1, 32, 7, 100),
        ]
        assert repr(grid) == "Grid(g: 6 cells, 440 steps)"

    def test_the_weight_decay_grid_is_the_one_that_was_asked_for(self) -> None:
        grid = GRIDS["weight-decay"]
        seeds: dict[float, int] = {}
        for cell in grid.cells:
            seeds[cell.weight_decay] = seeds.get(cell.weight_decay, 0) + 1
            assert (cell.config, cell.train_fraction, cell.batch_size) == (ToyConfig(modulus=97), 0.3, 512)
        assert seeds == {1.0: 5, 0.3: 5, 0.1: 5, 10.0: 3, 0.03: 3, 0.01: 3, 0.0: 3}
        assert {c.weight_decay: c.steps for c in grid.cells} == {
            1.0: 6000, 0.3: 12000, 0.1: 20000, 10.0: 5000, 0.03: 35000, 0.01: 50000, 0.0: 50000,
        }  # fmt: skip
        two = GRIDS["two-tasks"].cells
        assert [(c.seed, c.steps, c.config.operations) for c in two] == [(s, 40_000, ("add", "mul")) for s in range(3)]
        assert two[0].keep_steps == (15_000, 20_000, 25_000, 30_000, 35_000, 40_000)

    def test_keys_do_not_change_with_the_package(self) -> None:
        """A record must find its cell again: these keys are written in record files."""
        cell = GRIDS["weight-decay"].cells[0]
        assert key_of(cell) == "8334dc1277b3"
        assert config_hash(cell) == "46fecc816877"
        assert config_hash(cell) == config_hash(replace(cell, seed=9)) != key_of(cell)
        assert key_of(cell) != key_of(replace(cell, seed=9))
        assert key_of(replace(cell, weight_decay=1)) == key_of(cell)
        assert key_of(TrainConfig(ToyConfig(modulus=97))) != key_of(TrainConfig(ToyConfig(modulus=59)))

    def test_files_say_the_same_as_python(self, tmp_path: Path) -> None:
        text = """
            name = "tiny"
            seeds = [0, 1]
            axes = {weight_decay = [1.0, 0.1]}
            [base]
            steps = 60
            evaluate_every = 20
            batch_size = 16
            train_fraction = 0.5
            split_seed = "seed"
            keep_steps = [40, 60]
            config = {modulus = 7, n_layers = 1, d_model = 16, n_heads = 2, d_mlp = 16}
        """
        (tmp_path / "a.json").write_text(json.dumps({"base": BASE, "axes": {"weight_decay": [1.0, 0.1]}, "seeds": 2}))
        assert load_grid(tmp_path / "a.json") == replace(tiny(), name="a")
        assert is_grid(tmp_path / "a.json")
        assert is_grid("two-tasks")
        assert not is_grid("add97")
        (tmp_path / "recipe.json").write_text(json.dumps({"config": {"modulus": 7}}))
        assert not is_grid(tmp_path / "recipe.json")
        pytest.importorskip("tomllib")
        (tmp_path / "t.toml").write_text(text)
        assert load_grid(tmp_path / "t.toml") == tiny()

    def test_both_ways_of_naming_the_models_settings(self) -> None:
        nested = Grid.product("g", {"config": {"modulus": 7}}, arms=[{"config": {"n_layers": 1}}])
        assert Grid.product("g", {"config.modulus": 7}, arms=[{"config.n_layers": 1}]) == nested
        assert nested.cells[0].config == ToyConfig(modulus=7, n_layers=1)

    def test_one_and_one_point_zero_are_one_cell(self) -> None:
        one, other = (Grid.product("g", BASE, axes={"weight_decay": [value]}).cells[0] for value in (10, 10.0))
        assert (one, key_of(one), config_hash(one)) == (other, key_of(other), config_hash(other))

    def test_quick_grids_fit_whatever_the_grid_says(self) -> None:
        odd = Grid.product("g", {"config": {"modulus": 97, "n_heads": 3, "d_model": 48}, "evaluate_every": 500})
        assert odd.quick().cells[0].config.n_heads == 4

    def test_quick_grids_are_small_and_keep_what_is_compared(self) -> None:
        quick = load_grid("weight-decay", quick=True)
        assert quick.name == "weight-decay-quick"
        assert len(quick.cells) == len(GRIDS["weight-decay"].cells)
        assert {c.config.modulus for c in quick.cells} == {29}
        assert {c.weight_decay for c in quick.cells} == {c.weight_decay for c in GRIDS["weight-decay"].cells}
        two = load_grid("two-tasks", quick=True)
        assert two.cells[0].config.operations == ("add", "mul")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"arms": [{"weight_decai": 1}]}, r"'weight_decai' is no setting of a training run.*weight_decay"),
            ({"axes": {"config.d_modl": [1]}}, r"'config.d_modl' is no setting.*config.d_model"),
            ({"axes": {"weight_decay": 1.0}}, "a list of at least one value is needed"),
            ({"axes": {"weight_decay": []}}, "a list of at least one value is needed"),
            ({"seeds": "01"}, "must be a list of whole numbers, or how many"),
            ({"seeds": [0.5]}, "must be a list of whole numbers, or how many"),
            ({"seeds": []}, "has no cells"),
            ({"seeds": [1, 1]}, r"has the same cell twice \(seed 1\)"),
            ({"name": "a/b"}, "makes no file name"),
            ({"keep_weights": "all"}, "keep_weights 'all' must be one of"),
            ({"bases": {}}, r"'bases' is no key of a grid.*base"),
            ({"base": {**BASE, "steps": "60"}}, "steps = '60' must be int"),
            ({"base": {**BASE, "steps": 60.0}}, "steps = 60.0 must be int"),
            ({"base": {**BASE, "keep_steps": 40}}, "keep_steps = 40 must be tuple"),
            ({"base": {**BASE, "betas": [0.9]}}, "betas = .* must be tuple"),
            ({"base": {**BASE, "weight_decay": float("inf")}}, "weight_decay = inf must be .* finite"),
            ({"base": {**BASE, "config": {"modulus": "7"}}}, "modulus = '7' must be int"),
            ({"base": {**BASE, "config": 97}}, "config = 97 must hold the model's settings"),
            ({"base": {**BASE, "seed": 7}}, "a grid's seeds stand in its list seeds"),
            ({"base": [1]}, r"base = \[1\] and axes = {} must be tables"),
            ({"arms": {"weight_decay": 1.0}}, "must be a list of tables"),
            ({"arms": [1.0]}, "must be a list of tables"),
            ({"axes": ["weight_decay"]}, "must be tables of settings"),
            ({"seeds": 1.5}, "must be a list of whole numbers, or how many"),
            ({"name": 5}, "name = 5 must be text"),
            (
                {"arms": [{"weight_decay": 1.0}], "axes": {"weight_decay": [0.1]}},
                "weight_decay is set by an arm and by an axis",
            ),
        ],
    )
    def test_what_makes_no_grid(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        path = tmp_path / "g.json"
        path.write_text(json.dumps({"base": BASE, **change}))
        with pytest.raises(ValueError, match=message):
            load_grid(path)

    def test_unknown_names(self) -> None:
        with pytest.raises(ValueError, match=r"There is no grid 'weight-decai'.*weight-decay"):
            load_grid("weight-decai")
        with pytest.raises(ValueError, match=r"There is no measure 'acuracy'.*accuracy"):
            plan(tiny(), measures=["acuracy"])


def line(key: str = "a", **more: Any) -> dict[str, Any]:
    return {"format": FORMAT, "key": key, "status": "done", **more}


class TestRecordFile:
    def test_the_last_line_of_a_cell_counts(self, tmp_path: Path) -> None:
        with RecordFile(tmp_path / "r.jsonl") as file:
            for number, key in enumerate("aba"):
                file.append(line(key, number=number))
        assert [r["number"] for r in file.lines()] == [0, 1, 2]
        assert {key: r["number"] for key, r in file.latest().items()} == {"a": 2, "b": 1}
        assert repr(file) == "RecordFile(r.jsonl: 2 done, 0 failed)"
        assert RecordFile(tmp_path / "none.jsonl").lines() == []

    def test_a_line_cut_off_by_a_kill_is_skipped_and_then_cut(self, tmp_path: Path) -> None:
        path = tmp_path / "r.jsonl"
        path.write_text(json.dumps(line("a")) + "\n" + json.dumps(line("b"))[:20])
        assert list(RecordFile(path).latest()) == ["a"]
        with RecordFile(path) as file:
            file.append(line("c"))
        assert [r["key"] for r in file.lines()] == ["a", "c"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{oops}", "line 2 is not JSON"),
            ('{"format": "mi_ablate record 0"}', "does not mix the two"),
            ("[]", "format None"),
        ],
    )
    def test_foreign_lines_are_refused(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "tiny.jsonl"
        path.write_text(json.dumps(line()) + "\n" + text + "\n")
        with pytest.raises(_files.ArtefactError, match=message):
            plan(tiny(), results=tmp_path)

    def test_a_last_line_that_lacks_only_its_newline_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "r.jsonl"
        path.write_text(json.dumps(line("a")) + "\n" + json.dumps(line("b")))
        assert list(RecordFile(path).latest()) == ["a", "b"]
        with RecordFile(path) as file:
            file.append(line("c"))
        assert [r["key"] for r in file.lines()] == ["a", "b", "c"]

    def test_two_writers(self, tmp_path: Path) -> None:
        file = RecordFile(tmp_path / "r.jsonl")
        with pytest.raises(RuntimeError, match="is not open for writing"):
            file.append(line())
        with (
            RecordFile(tmp_path / "r.jsonl"),
            pytest.raises(RuntimeError, match="Another process is writing"),
            RecordFile(tmp_path / "r.jsonl"),
        ):
            pass
        with RecordFile(tmp_path / "r.jsonl"):
            pass

    def test_a_full_disk_leaves_the_old_lines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write = os.write

        def full(handle: int, data: bytes) -> int:
            if data.startswith(b'{"format"'):
                return write(handle, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        with RecordFile(tmp_path / "r.jsonl") as file:
            file.append(line("a"))
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", full)
                with pytest.raises(OSError, match="Nothing is lost: free some space"):
                    file.append(line("b"))
            assert [r["key"] for r in file.lines()] == ["a"]
            file.append(line("b"))
        assert [r["key"] for r in file.lines()] == ["a", "b"]


class TestRunning:
    def test_a_plan_that_is_out_of_date_repeats_nothing(self, tmp_path: Path) -> None:
        todo = plan(tiny(), results=tmp_path / "results", runs=tmp_path / "runs", measures=("accuracy",))
        assert [run_grid(todo, progress=False).recorded for _ in range(2)] == [4, 0]

    def test_two_grids_in_one_folder_of_runs(self, tmp_path: Path) -> None:
        held = FileLock(tmp_path / "runs" / "tiny" / ".lock")
        (tmp_path / "runs" / "tiny").mkdir(parents=True)
        with held, pytest.raises(RuntimeError, match=r"Another process trains in .*tiny.*--out"):
            run(tiny(), tmp_path)
        assert run(tiny(), tmp_path).recorded == 4

    def test_a_disk_too_full_to_say_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mi_ablate.sweep.run, "local", engine.local)
        dying = [sys.executable, "-c", f"import os; os.read(0, 1); os._exit({FULL_DISK})"]
        monkeypatch.setattr(engine, "_start", lambda: subprocess.Popen(dying, stdin=subprocess.PIPE))
        with pytest.raises(OSError, match="the disk is full in"):
            run(tiny(), tmp_path)
        assert records(tmp_path) == {}

    def test_a_worker_of_another_version_does_not_hang(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mi_ablate.sweep.work, "VERSION", VERSION + 1)
        outcome = run(tiny(), tmp_path)
        assert all("another version of mi_ablate" in error for error in outcome.failed.values())

    def test_one_unreadable_checkpoint_of_a_stack(self, tmp_path: Path) -> None:
        spoilt = tmp_path / "runs" / "tiny" / key_of(tiny().cells[1]) / "checkpoint.safetensors"
        spoilt.parent.mkdir(parents=True)
        spoilt.write_bytes(b"no checkpoint")
        outcome = run(tiny(), tmp_path, stack=4)
        assert (outcome.recorded, list(outcome.failed)) == (3, [key_of(tiny().cells[1])])
        assert "not a readable safetensors file" in next(iter(outcome.failed.values()))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"workers": 0}, "workers=0: at least 1"),
            ({"budget": -1}, "budget=-1: minutes, at least 0"),
            ({"budget": float("nan")}, "budget=nan: minutes"),
            ({"gpu_share": 0}, "gpu_share=0: above 0"),
        ],
    )
    def test_options_that_cannot_be_meant(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            check_options(**options)

    def test_devices_that_are_not_there(self) -> None:
        with pytest.raises(ValueError, match="There is no device 'gpu'"):
            plan(tiny(), device="gpu")
        if not torch.cuda.is_available():
            with pytest.raises(ValueError, match="finds no CUDA device"):
                plan(tiny(), device="cuda")

    @pytest.mark.usefixtures("processes")
    def test_every_cell_is_recorded_once(self, tmp_path: Path) -> None:
        lines: list[str] = []
        outcome = run(tiny(), tmp_path, SOME, report=lines.append)
        assert repr(outcome) == "Outcome(4 recorded, 0 failed, 0 left)"
        assert len(lines) == 4
        assert lines[0].startswith("recorded")
        found = records(tmp_path)
        assert list(found) == [key_of(c) for c in tiny().cells]
        for cell, record in zip(tiny().cells, found.values()):
            assert TrainConfig.from_dict({**record["config"], "seed": record["seed"]}) == cell
            assert record["metrics"]["training"]["history"][-1][0] == 60
            assert [(e["target"], e["step"], set(e["measures"])) for e in record["metrics"]["checkpoints"]] == [
                (40, 40, set(SOME)), (60, 60, set(SOME)),
            ]  # fmt: skip
            assert record["run"]["attempts"] == 1
            toy = toys.load(tmp_path / "results" / "weights" / record["weights"][0]["file"])
            assert toy.card["checkpoint_step"] == 60
            assert torch.equal(toy.train, toys_split(cell))
        again = run(tiny(), tmp_path, SOME)
        assert (again.recorded, again.left) == (0, 0)
        assert len(RecordFile(tmp_path / "results" / "tiny.jsonl").lines()) == 4
        todo = plan(tiny(), results=tmp_path / "results", runs=tmp_path / "runs", measures=SOME)
        assert repr(todo) == "Plan(tiny: 4 recorded)"
        assert todo.seconds() == 0

    def test_a_record_that_was_not_yet_appended_is_not_trained_again(self, tmp_path: Path) -> None:
        run(tiny(), tmp_path)
        before = records(tmp_path)
        (tmp_path / "results" / "tiny.jsonl").unlink()
        for file in (tmp_path / "runs").rglob("*.safetensors"):
            file.unlink()
        todo = plan(tiny(), results=tmp_path / "results", runs=tmp_path / "runs", measures=("accuracy",))
        assert repr(todo) == "Plan(tiny: 4 to record)"
        assert run_grid(todo, progress=False).recorded == 4
        assert {k: comparable(r) for k, r in records(tmp_path).items()} == {k: comparable(r) for k, r in before.items()}

    @pytest.mark.usefixtures("processes")
    def test_a_worker_that_dies_is_started_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        take, deaths = engine._Worker.take, [0]

        def doomed(self: Any, *order: Any) -> None:
            take(self, *order)
            if deaths[0] < 2:
                deaths[0] += 1
                self.process.kill()

        monkeypatch.setattr(engine._Worker, "take", doomed)
        assert run(tiny(), tmp_path).recorded == 4
        assert [r["run"]["attempts"] for r in records(tmp_path).values()] == [3, 1, 1, 1]

    @pytest.mark.usefixtures("processes")
    def test_one_that_always_dies_is_recorded_as_failed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        take, doomed = engine._Worker.take, key_of(tiny().cells[1])

        def kill(self: Any, tasks: Any, attempt: int) -> None:
            take(self, tasks, attempt)
            if tasks[0].key == doomed:
                self.process.kill()

        with monkeypatch.context() as patch:
            patch.setattr(engine._Worker, "take", kill)
            outcome = run(tiny(), tmp_path)
        assert (outcome.recorded, list(outcome.failed)) == (3, [doomed])
        record = records(tmp_path)[doomed]
        assert record["status"] == "failed"
        assert "was killed by signal 9, 3 times in all" in record["error"]
        assert run(tiny(), tmp_path).recorded == 1
        assert records(tmp_path)[doomed]["status"] == "done"

    def test_an_error_is_recorded_and_not_tried_again_at_once(self, tmp_path: Path) -> None:
        outcome = run(tiny(learning_rate=1e30, warmup_steps=0), tmp_path)
        assert len(outcome.failed) == 4
        record = next(iter(records(tmp_path).values()))
        assert (record["status"], record["run"]["attempts"]) == ("failed", 1)
        assert "FloatingPointError: The loss was not finite" in record["error"]

    def test_a_full_disk_stops_the_grid(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ended = Task.ended

        def full(self: Task) -> Any:
            end = ended(self)
            return end and end._replace(record=None, error="OSError: no space", errno=errno.ENOSPC)

        with monkeypatch.context() as patch:
            patch.setattr(Task, "ended", full)
            with pytest.raises(OSError, match="the disk is full in"):
                run(tiny(), tmp_path)
        assert records(tmp_path) == {}
        assert run(tiny(), tmp_path).recorded == 4

    def test_a_spent_budget_leaves_the_rest_for_later(self, tmp_path: Path) -> None:
        outcome = run(tiny(), tmp_path, budget=0)
        assert (outcome.recorded, outcome.left) == (0, 4)
        assert run(tiny(), tmp_path).recorded == 4

    def test_unknown_engines_and_missing_ones(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match=r"There is no engine 'locall'.*local"):
            run(tiny(), tmp_path, engine="locall")
        with pytest.raises(ValueError, match="stack=0: at least 1"):
            run(tiny(), tmp_path, stack=0)
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ValueError, match=r"pip install 'mi_ablate\[ray\]'"):
            run(tiny(), tmp_path, engine="ray")

    def test_stacked_cells_have_the_same_records_to_rounding(self, tmp_path: Path) -> None:
        for name, stack in (("one", 1), ("all", 4)):
            assert run(tiny(), tmp_path / name, stack=stack).recorded == 4
        for key, record in records(tmp_path / "one").items():
            histories = [r["metrics"]["training"]["history"] for r in (record, records(tmp_path / "all")[key])]
            torch.testing.assert_close(torch.tensor(histories[0]), torch.tensor(histories[1]), atol=1e-3, rtol=1e-3)


class TestMeasuringLater:
    def test_another_training_of_the_cell_is_not_taken_for_the_records(self, tmp_path: Path) -> None:
        run(tiny(), tmp_path)
        run(tiny(), tmp_path / "other", SOME)
        for path in (tmp_path / "runs").rglob("*.safetensors"):
            state, card = _files.read(path)
            _files.write(path, {name: t + 0.1 if "W_E" in name else t for name, t in state.items()}, card)
        assert run(tiny(), tmp_path, SOME).recorded == 4
        for key, record in records(tmp_path).items():
            first, last = record["metrics"]["checkpoints"]
            assert set(first["measures"]) == {"accuracy"}
            assert last["half_precision"] == ["embedding"]
            theirs = records(tmp_path / "other")[key]["metrics"]["checkpoints"][-1]["measures"]["embedding"]["add"]
            mine = last["measures"]["embedding"]["add"]
            assert mine["norms"]["W_E"] == pytest.approx(theirs["norms"]["W_E"], rel=1e-3)

    def test_measures_of_another_version_are_all_taken_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(tiny(), tmp_path, SOME)
        for module in (mi_ablate.sweep.work, mi_ablate.sweep.tasks):
            monkeypatch.setattr(module, "VERSION", VERSION + 1)
        assert run(tiny(), tmp_path, ("accuracy",)).recorded == 4
        for record in records(tmp_path).values():
            assert (record["measures"], record["measures_version"]) == (list(SOME), VERSION + 1)
            assert all(set(e["measures"]) == set(SOME) for e in record["metrics"]["checkpoints"])

    def test_records_elsewhere_bring_their_weights(self, tmp_path: Path) -> None:
        run(tiny(), tmp_path)
        todo = plan(tiny(), results=tmp_path / "else", runs=tmp_path / "runs", measures=("accuracy",))
        assert repr(todo) == "Plan(tiny: 4 to resume)"
        assert run_grid(todo, progress=False).recorded == 4
        assert len(list((tmp_path / "else" / "weights" / "tiny").glob("*.safetensors"))) == 4

    @pytest.mark.compat
    def test_measures_are_added_without_training(self, tmp_path: Path) -> None:
        run(tiny(), tmp_path / "a")
        run(tiny(), tmp_path / "b", SOME)
        todo = plan(tiny(), results=tmp_path / "a" / "results", runs=tmp_path / "a" / "runs", measures=SOME)
        assert repr(todo) == "Plan(tiny: 4 to measure)"
        assert todo.seconds() == 0
        assert run(tiny(), tmp_path / "a", SOME).recorded == 4
        later, at_once = records(tmp_path / "a"), records(tmp_path / "b")
        assert {k: comparable(r) for k, r in later.items()} == {k: comparable(r) for k, r in at_once.items()}

    def test_from_the_weights_beside_the_records(self, tmp_path: Path) -> None:
        run(tiny(), tmp_path)
        shutil.rmtree(tmp_path / "runs")
        assert run(tiny(), tmp_path, SOME).recorded == 4
        for record in records(tmp_path).values():
            first, last = record["metrics"]["checkpoints"]
            assert (set(first["measures"]), "half_precision" in first) == ({"accuracy"}, False)
            assert (set(last["measures"]), last["half_precision"]) == (set(SOME), ["embedding"])

    def test_weights_that_are_not_the_records(self, tmp_path: Path) -> None:
        run(tiny(), tmp_path)
        shutil.rmtree(tmp_path / "runs")
        folder = tmp_path / "results" / "weights" / "tiny"
        one, two, three, four = sorted(folder.glob("*.safetensors"))
        body = two.read_bytes()
        one.write_bytes(body)
        state, card = _files.read(two)
        _files.write(two, {name: t + 1 for name, t in state.items()}, card)
        three.unlink()
        four.write_bytes(b"short")
        outcome = run(tiny(), tmp_path, SOME)
        assert outcome.recorded == 0
        told = " | ".join(outcome.failed.values())
        for words in (
            "put the right file there",
            "has changed since its record was written",
            "no file",
            "not a readable",
        ):
            assert words in told
        assert {r["status"] for r in records(tmp_path).values()} == {"done"}

    def test_a_checkpoint_of_another_run_is_refused(self, tmp_path: Path) -> None:
        run(tiny(), tmp_path)
        one, two = sorted(p for p in (tmp_path / "runs" / "tiny").iterdir() if p.is_dir())[:2]
        (one / "kept-40.safetensors").write_bytes((two / "kept-40.safetensors").read_bytes())
        outcome = run(tiny(), tmp_path, SOME)
        assert outcome.recorded == 3
        assert "has other settings than the cell" in next(iter(outcome.failed.values()))


def toys_split(cell: TrainConfig) -> torch.Tensor:
    return toys.tasks.split(cell.config, cell.train_fraction, cell.seed)


def test_labels_tell_cells_apart() -> None:
    assert label(GRIDS["weight-decay"].cells[0]) == "p=97 steps=6000 stable_steps=300 weight_decay=1"


def test_fitters_merge_across_processes() -> None:
    from mi_ablate.design import linear
    from mi_ablate.regression import fit
    from sweep_parts import acts_of, fit_part

    parts = [range(0, 30), range(30, 35), range(35, 80)]
    result = merged(fit_part, parts, workers=2).result()
    acts, values = acts_of(range(80))
    whole = fit(acts, linear(values))
    torch.testing.assert_close(result.coef, whole.coef, atol=1e-10, rtol=1e-10)
    with pytest.raises(ValueError, match="no parts to merge"):
        merged(fit_part, [])
    with pytest.raises(ValueError, match="There is no engine 'spark'"):
        merged(fit_part, parts, engine="spark")
