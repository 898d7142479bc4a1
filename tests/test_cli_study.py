"""``mi-ablate study``: what it lists, shows, runs and refuses."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from browser import open_offline
from mi_ablate import cli
from mi_ablate.measures import VERSION
from mi_ablate.studies import STUDIES, Cells, Findings, Item, Study, Table, Verdict, printed, running
from mi_ablate.studies.interactive import write_page
from mi_ablate.studies.standing import Standing
from mi_ablate.sweep import RecordFile
from study_records import TINY, record_of, use_tiny, write_quick

LONG = "a verdict of many words " * 20


def find(cells: Cells, own: Any) -> Findings:
    import plotly.graph_objects as go

    rows = [
        {"weight decay": cell.config.weight_decay, "seed": cell.config.seed, "grok step": cell.grok_step}
        for cell in cells.done
    ]
    told = Verdict("Q1", "yes" if cells.done else "not run", "-", LONG, "yes where anything is run")
    return Findings(
        [Table("Cells of the study", rows, "A note below.")], {"A line.": lambda: go.Figure(go.Scatter(y=[1, 2]))}, [told],
        [f"{len(cells.done)} cells, {len(own)} measurements."],
    )  # fmt: skip


def items(cells: Cells) -> list[Item]:
    return [Item(f"{cell.key}@60", {"seed": cell.config.seed}, lambda: 1.0, 30.0) for cell in cells.done]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of four small cells that are trained in this process."""
    use_tiny(monkeypatch)
    one = Study("tiny", "E0", "Tiny cells", "What do small cells say?", ("tiny",), find, ("Q1",), items)
    monkeypatch.setitem(STUDIES, "tiny", one)
    return one


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Exit status, stdout and stderr of ``mi-ablate study``, with folders of its own."""

    def run(*arguments: str) -> tuple[int, str, str]:
        places = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
        monkeypatch.setattr(sys, "argv", ["mi-ablate", "study", *arguments, *places])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


def record(folder: Path, *cells: int, **changes: Any) -> None:
    with RecordFile(folder / "results" / "tiny.jsonl") as file:
        for i in cells:
            file.append(record_of(TINY.cells[i], "tiny") | changes)


class TestReading:
    def test_all_studies_are_listed(self, call: Any, tmp_path: Path) -> None:
        record(tmp_path, 0, 1)
        status, out, err = call()
        lines = out.splitlines()
        assert (status, len(lines)) == (0, 1 + len(STUDIES))
        assert [line.split()[0] for line in lines[1:]] == list(STUDIES)
        assert "2 of 4 cells, 0 of 2 measurements" in lines[-1]
        assert lines[-1].rstrip().endswith("Q1 yes")
        assert "--dry-run says what is left" in err
        assert not (tmp_path / "runs").exists()

    def test_one_study_is_shown_and_nothing_trained(self, call: Any, tmp_path: Path) -> None:
        record(tmp_path, 0, 1)
        status, out, _ = call("tiny", "--show")
        assert status == 0
        lines = [line.rstrip() for line in out.splitlines()]
        assert lines[:2] == ["E0. Tiny cells", "What do small cells say?"]
        at = lines.index("Cells of the study")
        assert [line.split() for line in lines[at + 1 : at + 4]] == [
            ["weight", "decay", "seed", "grok", "step"],
            ["1.0", "0", "200"],
            ["1.0", "1", "200"],
        ]
        assert "A note below." in lines
        at = next(i for i, line in enumerate(lines) if line.startswith("Q1 yes: Do small batches grok earlier"))
        assert lines[at + 2] == f"  here: {LONG}".rstrip(), "a pipe gets whole lines"
        assert lines[at + 3] == "  rule: yes where anything is run"
        at = lines.index("Not run: 2 of 4 cells")
        assert "weight_decay=0.1" in lines[at + 2]
        assert "0 1" in lines[at + 2]
        assert lines[at + 2].endswith("mi-ablate train tiny")
        assert lines[-2:] == [
            "2 of 2 measurements are not taken yet.",
            "`mi-ablate study tiny` does all of it, or goes on with it.",
        ]
        assert not (tmp_path / "runs").exists()

    def test_nothing_is_run_yet(self, call: Any) -> None:
        status, out, _ = call("tiny", "--show")
        assert status == 0
        assert "Nothing is run yet." in out
        assert "Not run: 4 of 4 cells" in out

    def test_json_is_one_object_or_a_list(self, call: Any, tmp_path: Path) -> None:
        record(tmp_path, 0)
        one = json.loads(call("tiny", "--show", "--json")[1])
        assert (one["study"], one["cells"], one["cells_run"], one["measurements"], one["measurements_taken"]) == (
            "tiny", 4, 1, 1, 0,
        )  # fmt: skip
        assert one["tables"][0]["rows"] == [{"weight decay": 1.0, "seed": 0, "grok step": 200}]
        assert one["verdicts"][0]["verdict"] == "yes"
        assert one["figures"] == ["A line."]
        assert [row["seeds"] for row in one["missing"]] == ["1", "0 1"]
        assert [row["study"] for row in json.loads(call("--json")[1])] == list(STUDIES)

    def test_a_terminal_gets_lines_that_fit(self, tiny: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        record(tmp_path, 0, 1)
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=80, color_system=None, highlight=False, markup=False)
        monkeypatch.setattr("rich.console.Console", lambda **options: console)
        printed.print_findings(Standing.of(tiny, tmp_path / "results"), tiny.findings(tmp_path / "results"))
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= 80
        assert any("weight_decay=0.1" in line.replace(" ", "") for line in lines)

    def test_what_is_left(self, call: Any, tmp_path: Path) -> None:
        record(tmp_path, 0)
        status, out, _ = call("tiny", "--dry-run", "--workers", "2")
        assert status == 0
        assert out.count("to train") == 4
        assert "Plan(tiny: 1 recorded, 3 to train): 180 steps left" in out
        assert "with 2 workers" in out
        key = next(iter(RecordFile(tmp_path / "results" / "tiny.jsonl").latest()))
        assert f"tiny: measurement {key}@60  about 30 seconds of one core" in out
        assert "Standing(tiny: 1 of 4 cells, 0 of 1 measurements" in out
        assert not (tmp_path / "runs").exists()

    @pytest.mark.slow
    def test_the_page_draws_its_figures_in_a_browser(self, call: Any, tmp_path: Path) -> None:
        record(tmp_path, 0)
        path = tmp_path / "tiny.html"
        assert f"Page: {path}" in call("tiny", "--show", "--page", str(path))[2]
        for width in (500, 1200):
            elements, log = open_offline(path, tmp_path / f"profile-{width}", width)
            assert "Uncaught" not in log
            assert elements.count('class="main-svg"') >= 1
        for text in (
            "Tiny cells",
            "A line.",
            "A note below.",
            "E0: what came out",
            "E0: Cells of the study",
            "E0: not run",
            "mi-ablate train tiny",
        ):
            assert text in elements
        status, _, err = call("tiny", "--show", "--page", str(tmp_path / "tiny.txt"))
        assert status == 2
        assert "A page is written as .html" in err

    def test_a_page_of_all_studies(self, tmp_path: Path) -> None:
        standings = [Standing.of(one, tmp_path) for one in STUDIES.values()]
        found = {name: one.findings(tmp_path) for name, one in STUDIES.items()}
        text = write_page(tmp_path / "all.html", standings, found, "a test").read_text()
        assert "The research log, study by study" in text
        assert all(f"{one.log}. " in text for one in STUDIES.values())


class TestRunning:
    def test_it_says_how_much_then_trains_measures_and_prints(self, call: Any, tmp_path: Path) -> None:
        status, out, err = call("tiny", "--workers", "1")
        assert status == 0
        assert err.startswith(
            "tiny: 4 of 4 cells to train, about 0.0 core-hours (0.0 hours with 1 workers), then its measurements."
        )
        assert err.count("recorded ") == 4
        assert err.count("CPU seconds") == 4
        assert "- 4 cells, 4 measurements." in out
        assert "Not run" not in out
        status, out, err = call("tiny")
        assert (status, err.count("recorded "), err.count("CPU seconds")) == (0, 0, 0)
        assert err.startswith("tiny: 0 of 4 cells to train")
        one = RecordFile(tmp_path / "results" / "own" / "tiny.jsonl").lines()[0]
        assert one["command"].startswith("mi-ablate study tiny --workers 1")

    def test_no_train_measures_what_is_recorded_and_trains_nothing(self, call: Any, tmp_path: Path) -> None:
        record(tmp_path, 0, 1)
        status, out, err = call("tiny", "--no-train")
        assert status == 0
        assert err.startswith("tiny: its own measurements; 2 of its cells stay untrained.")
        assert (err.count("recorded "), err.count("CPU seconds")) == (0, 2)
        assert "- 2 cells, 2 measurements." in out
        assert not (tmp_path / "runs").exists()

    def test_an_interrupt_is_no_error_of_ours(self, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*arguments: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(running, "run_grid", interrupt)
        status, out, err = call("tiny")
        assert (status, out) == (130, "")
        assert "Interrupted. The same command goes on from the last checkpoints." in err

    def test_a_budget_leaves_the_rest_and_prints_what_is_there(self, call: Any) -> None:
        status, out, err = call("tiny", "--budget", "0")
        assert status == 0
        assert "0 recorded, 0 failed, 4 left): the same command goes on where this one stopped." in err
        assert "Not run: 4 of 4 cells" in out

    def test_failed_cells_end_it_with_status_1(self, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*arguments: Any, **options: Any) -> None:
            raise ValueError("it is broken")

        monkeypatch.setattr("mi_ablate.sweep.work.train", broken)
        status, out, err = call("tiny")
        assert status == 1
        assert err.count("failed ") == 4
        assert "failed: ValueError: it is broken" in out

    @pytest.mark.slow
    def test_a_whole_study_on_small_models(self, tmp_path: Path) -> None:
        """``too-small`` has the fewest small cells: two, trained and measured by the command itself."""
        command = [sys.executable, "-m", "mi_ablate.cli", "study", "too-small", "--quick", "--workers", "2"]
        places = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
        done = subprocess.run(
            [*command, *places, "--json"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["cells"] == told["cells_run"] == 2
        assert told["missing"] == []
        assert told["tables"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["tyni"], "There is no study 'tyni'. Nearest names: tiny"),
            (["tiny", "--show", "--workers", "2"], "--workers is for a run; this one only reads records."),
            (["--budget", "3"], "--budget is for a run; this one only reads records. Name a study, without --show."),
            (["tiny", "--engine", "rya"], "There is no engine 'rya'. Nearest names: ray"),
            (["tiny", "--workers", "0"], "workers=0: at least 1"),
            (["tiny", "--device", "tpu"], "There is no device 'tpu'; use 'cpu' or 'cuda'."),
        ],
    )
    def test_what_cannot_be_meant(self, call: Any, arguments: list[str], text: str) -> None:
        status, out, err = call(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: {text}")

    def test_records_of_two_versions(self, call: Any, tmp_path: Path) -> None:
        record(tmp_path, 0)
        record(tmp_path, 1, measures_version=VERSION + 1)
        status, out, err = call("tiny", "--show")
        assert (status, out) == (2, "")
        assert f"results/tiny.jsonl holds measures of version {VERSION + 1}, and this is version {VERSION}" in err
        assert "`mi-ablate train tiny` measures them again." in err

    def test_a_file_that_is_no_record_file(self, call: Any, tmp_path: Path) -> None:
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "tiny.jsonl").write_text("nothing\n{}\n")
        status, _, err = call("tiny", "--show")
        assert status == 2
        assert "tiny.jsonl, line 1 is not JSON" in err

    def test_small_models_are_other_records(self, call: Any, tiny: Study, tmp_path: Path) -> None:
        write_quick(tiny, tmp_path / "results")
        assert "4 cells, 0 measurements" in call("tiny", "--show", "--quick")[1]
        assert "0 cells, 0 measurements" in call("tiny", "--show")[1]
