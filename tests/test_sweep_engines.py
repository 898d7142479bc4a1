"""The command line of grids, and what needs real processes: kills, Ray, stacks."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mi_ablate.cli import app
from mi_ablate.design import linear
from mi_ablate.regression import fit
from mi_ablate.sweep import RecordFile, load_grid, merged, plan, run_grid
from mi_ablate.sweep.records import comparable

TINY: dict[str, Any] = {
    "name": "tiny", "seeds": [0, 1],
    "base": {
        "steps": 600, "batch_size": 32, "train_fraction": 0.5, "split_seed": "seed", "keep_steps": [300, 600],
        "config": {"modulus": 7, "n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 16},
    },
}  # fmt: skip
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(TINY))
    return path


def invoke(folder: Path, *words: str) -> Any:
    places = ["--results", str(folder / "results"), "--out", str(folder / "runs"), "--measure", "accuracy"]
    return CliRunner().invoke(app, ["train", *words, *places])


def comparables(folder: Path) -> dict[str, Any]:
    return {key: comparable(r) for key, r in RecordFile(folder / "results" / "tiny.jsonl").latest().items()}


def test_a_dry_run_lists_cells_and_trains_nothing(tmp_path: Path, grid: Path) -> None:
    done = invoke(tmp_path, str(grid), "--dry-run", "--workers", "2")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert len(lines) == 3
    assert all("0 of    600 steps  to train" in line for line in lines[:2])
    assert "Plan(tiny: 2 to train): 1,200 steps left" in lines[2]
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "runs").exists()


def test_the_command_trains_resumes_and_lists(tmp_path: Path, grid: Path) -> None:
    stopped = invoke(tmp_path, str(grid), "--budget", "0")
    assert "Outcome(0 recorded, 0 failed, 2 left)" in stopped.output
    assert "The same command goes on" in stopped.output
    done = invoke(tmp_path, str(grid), "--workers", "1", "--stack", "2")
    assert "Outcome(2 recorded, 0 failed, 0 left)" in done.output, done.output
    assert "to train" not in invoke(tmp_path, str(grid), "--dry-run").output
    listed = CliRunner().invoke(app, ["runs", "tiny", "--results", str(tmp_path / "results"), "--json"])
    assert [row["seed"] for row in json.loads(listed.stdout)] == [0, 1]


def test_a_failed_cell_is_the_exit_status(tmp_path: Path, grid: Path) -> None:
    broken = {**TINY, "base": {**TINY["base"], "learning_rate": 1e30, "warmup_steps": 0}}
    grid.write_text(json.dumps(broken))
    done = invoke(tmp_path, str(grid))
    assert done.exit_code == 1
    assert "failed" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("weight-decay", "--seed", "1"), "'weight-decay' is a grid; --seed is for a recipe"),
        (("add97", "--stack", "2"), "'add97' is a recipe; --stack is for a grid"),
        (("add97",), "'add97' is a recipe; --measure is for a grid"),
        (("weight-decay", "--dry-run", "--workers", "0"), "workers=0: at least 1"),
        (("weight-decay", "--stack", "0"), "stack=0: at least 1"),
        (("weight-decay", "--gpu-share", "2"), "gpu_share=2.0: above 0"),
        (("weight-decay", "--budget", "-5"), "budget=-5.0: minutes, at least 0"),
        (("weight-decay", "--device", "gpu"), "There is no device 'gpu'"),
        (("weight-decya",), "There is no recipe or grid 'weight-decya'. Nearest names: weight-decay"),
        (("weight-decay", "--engine", "spark"), "There is no engine 'spark'"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = invoke(tmp_path, *words)
    assert message in str(done.exception)


@pytest.mark.slow
def test_random_kills_change_no_record(tmp_path: Path) -> None:
    """A short form of benchmarks/kills.py, which kills a quick grid 20 times."""
    spec = importlib.util.spec_from_file_location("kills", BENCHMARKS / "kills.py")
    assert spec is not None
    assert spec.loader is not None
    kills = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kills)
    grid = {**TINY, "base": {**TINY["base"], "steps": 3000, "keep_steps": [1500, 3000]}}
    found = kills.compare(tmp_path, grid, ("accuracy",), kills=5, seed=1, wait=(2.5, 7))
    assert found["cells"] == 2
    assert found["kills"] > 1
    assert found["equal"]
    assert found["recorded_once"]


@pytest.fixture(scope="module")
def ray() -> Any:
    """Ray on this machine, where it is installed; its workers are as nice as this process, not nicer."""
    module = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield module
    module.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_gives_the_records_of_the_local_engine(tmp_path: Path, grid: Path, ray: Any, capfd: Any) -> None:
    for engine in ("local", "ray"):
        todo = plan(
            load_grid(grid),
            results=tmp_path / engine / "results",
            runs=tmp_path / engine / "runs",
            measures=["accuracy"],
        )
        outcome = run_grid(todo, engine=engine, workers=2, progress=False)
        assert (outcome.recorded, outcome.failed) == (2, {})
    assert comparables(tmp_path / "local") == comparables(tmp_path / "ray")
    broken = {**TINY, "base": {**TINY["base"], "learning_rate": 1e30, "warmup_steps": 0}}
    grid.write_text(json.dumps(broken))
    todo = plan(
        load_grid(grid), results=tmp_path / "b" / "results", runs=tmp_path / "b" / "runs", measures=["accuracy"]
    )
    failed = run_grid(todo, engine="ray", workers=2, progress=False).failed
    assert len(failed) == 2
    assert all("The loss was not finite" in error for error in failed.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_starts_a_task_again_when_its_worker_dies(
    tmp_path: Path, grid: Path, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mi_ablate.sweep import on_ray

    deaths = {0: 1, 1: 99}

    def dying(texts: list[str]) -> Any:
        """Seed 0 dies once, seed 1 whenever it is tried."""
        import os

        from mi_ablate.sweep.on_ray import _performed as real  # in the worker it is not patched

        seed = json.loads(texts[0])["settings"]["seed"]
        before = sorted(tmp_path.glob(f"died-{seed}-*"))
        if len(before) < deaths[seed]:
            (tmp_path / f"died-{seed}-{len(before)}").touch()
            os._exit(1)
        return real(texts)

    monkeypatch.setattr(on_ray, "_performed", dying)
    todo = plan(load_grid(grid), results=tmp_path / "results", runs=tmp_path / "runs", measures=["accuracy"])
    outcome = run_grid(todo, engine="ray", workers=2, progress=False)
    assert outcome.recorded == 1
    assert "its worker died, 3 times in all" in next(iter(outcome.failed.values()))
    assert len(list(tmp_path.glob("died-1-*"))) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_fitters_merge_over_ray(ray: Any) -> None:
    import torch

    from sweep_parts import acts_of, fit_part

    result = merged(fit_part, [range(0, 30), range(30, 80)], engine="ray", workers=2).result()
    acts, values = acts_of(range(80))
    torch.testing.assert_close(result.coef, fit(acts, linear(values)).coef, atol=1e-10, rtol=1e-10)
