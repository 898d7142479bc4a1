"""Records as a table: what is loaded, selected, sorted and shown, and what a reader is told when nothing is there."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from browser import open_offline
from mi_ablate import cli
from mi_ablate.sweep import listing, table
from mi_ablate.sweep.listing import load_records, rows, select, sort, why_none
from mi_ablate.toys.settings import differing, flat, shown
from recorded import failed, record, write

RUNS = [
    record(0),
    record(1, grok=300),
    record(0, weight_decay=0.1, grok=None, steps=500),
    record(1, weight_decay=0.1, grok=400, steps=500),
    failed(2, weight_decay=0.1, steps=500),
]


def seeds(records: list[dict[str, Any]]) -> list[tuple[float, int]]:
    return [(r["config"]["weight_decay"], r["seed"]) for r in records]


def error_of(function: Callable[..., object], *arguments: object) -> str:
    """The text of the ValueError that the call raises."""
    kind = ValueError
    with pytest.raises(kind) as caught:
        function(*arguments)
    return str(caught.value.args[0])


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``mi-ablate runs``."""
    monkeypatch.setattr(sys, "argv", ["mi-ablate", "runs", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


class TestLoading:
    def test_the_latest_line_of_each_cell_counts(self, tmp_path: Path) -> None:
        write(tmp_path, failed(0), record(0), record(1), record(5, grid="other"))
        with (tmp_path / "width.jsonl").open("ab") as file:
            file.write(b'{"format": "mi_abl')
        assert [(r["grid"], r["seed"], r["status"]) for r in load_records((), tmp_path)] == [
            ("other", 5, "done"),
            ("width", 0, "done"),
            ("width", 1, "done"),
        ]
        assert [r["seed"] for r in load_records(["width"], str(tmp_path))] == [0, 1]

    def test_no_file_names_the_folder_what_is_there_and_the_command(self, tmp_path: Path) -> None:
        assert error_of(load_records, (), tmp_path) == (
            f"There is no record file in {tmp_path}. `mi-ablate train weight-decay --results {tmp_path}` makes one."
        )
        write(tmp_path, record(0), record(0, grid="other"))
        assert error_of(load_records, ["width", "widht"], tmp_path) == (
            f"There is no record file {tmp_path}/widht.jsonl; the folder has other, width. "
            f"`mi-ablate train widht --results {tmp_path}` makes one where widht is a grid."
        )
        assert "`mi-ablate train other --quick --results " in error_of(load_records, ["other-quick"], tmp_path)

    def test_the_usual_folder_needs_no_option(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            ValueError, match=r"in benchmarks/results/studies\. `mi-ablate train weight-decay` makes one"
        ):
            load_records()

    def test_a_line_that_is_no_record_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_text("{}\n")
        with pytest.raises(ValueError, match="line 1 is of the format None"):
            load_records((), tmp_path)


class TestSelecting:
    @pytest.mark.parametrize(
        ("conditions", "expected"),
        [
            ([], [0, 1, 2, 3, 4]),
            (["weight_decay=0.1"], [2, 3, 4]),
            (["weight_decay=1"], [0, 1]),
            (["weight_decay==1.0", "seed=1"], [1]),
            (["weight_decay!=1"], [2, 3, 4]),
            (["weight_decay < 1e0"], [2, 3, 4]),
            (["grok_step<300"], [0]),
            (["grok_step<=300"], [0, 1]),
            (["grok_step>300"], [3]),
            (["grok_step>=300"], [1, 3]),
            (["grok_step!=300"], [0, 2, 3, 4]),
            (["grok_step=none"], [2, 4]),
            (["grok_step=None", "status=done"], [2]),
            (["grok_step!=none"], [0, 1, 3]),
            (["config.d_model=16"], [0, 1, 2, 3, 4]),
            (["config.operations=add"], [0, 1, 2, 3, 4]),
            (["config.operations=add+mul"], []),
            (["split_seed=0", "betas=0.9+0.98", "stable_steps=1_000"], [0, 1, 2, 3, 4]),
            (["status=FAILED"], [4]),
            (["status!=failed"], [0, 1, 2, 3]),
            (["error=ValueError: no room"], [4]),
            (["held_out=1.0"], [0, 1, 3]),
            (["trained>400"], [2, 3]),
            (["steps=500"], [2, 3, 4]),
            (["cpu_minutes=1.5"], [0, 1, 2, 3]),
            (["stable_step=400"], [0, 1]),
            (["versions.torch=2.13.0"], [0, 1, 2, 3, 4]),
            (["metrics.training.loss.held_out<0.3"], [0, 1, 2, 3]),
            (["metrics.training.stable=false"], [2]),
            (["run.attempts=3"], [4]),
            ([f"key={RUNS[1]['key']}"], [1]),
            (["grid=width", "seed>=1", "seed<2"], [1, 3]),
        ],
    )
    def test_conditions(self, conditions: list[str], expected: list[int]) -> None:
        assert [RUNS.index(r) for r in select(RUNS, conditions)] == expected

    def test_a_key_of_digits_alone_is_text(self) -> None:
        odd = {**RUNS[0], "key": "12345e678901"}
        assert select([odd, RUNS[1]], ["key=12345e678901"]) == [odd]
        assert select([{**odd, "key": "000000000012"}], ["key=12"]) == []

    @pytest.mark.parametrize("name", ["", "weight_decay", "=1", "weight_decay=", "weight_decay~1", "a b=1"])
    def test_what_is_no_condition(self, name: str) -> None:
        assert error_of(select, RUNS, [name]) == (
            f"The condition {name!r} is no name, sign and value; write weight_decay=0.1, or 'grok_step<3000' in quotes. "
            "The signs are = != < <= > >=."
        )

    def test_an_unknown_name_lists_the_nearest_and_all(self) -> None:
        text = error_of(select, RUNS, ["weigth_decay=1"])
        assert text.startswith("No record has 'weigth_decay'. Nearest names: weight_decay. ")
        assert (
            "There are key, grid, seed, status, trained, grok_step, held_out, stable_step, cpu_minutes, error; " in text
        )
        assert "the settings base, batch_size, betas, config.act_fn, " in text
        assert text.endswith("; and anything else of a record by its path, such as versions.torch.")

    @pytest.mark.parametrize(
        ("condition", "message"),
        [
            ("seed=one", "seed holds numbers (0, 1, 2); 'one' is none."),
            ("weight_decay<low", "weight_decay holds numbers (0.1, 1); 'low' is none."),
            ("seed<none", "seed holds numbers (0, 1, 2); 'none' is none."),
            ("seed<nan", "seed holds numbers (0, 1, 2); 'nan' is none."),
            ("seed=true", "seed holds numbers (0, 1, 2); 'true' is none."),
            ("status<3", "status holds done, failed, which have no order; use = or != instead of <."),
        ],
    )
    def test_values_of_another_kind(self, condition: str, message: str) -> None:
        assert error_of(select, RUNS, [condition]) == message

    def test_no_match_says_what_is_there(self) -> None:
        assert why_none(RUNS, ["weight_decay=0.5", "seed=1"]) == (
            "No record matches. weight_decay=0.5: 0 of 5 (there: 0.1, 1); seed=1: 2 of 5 (there: 0, 1, 2)."
        )
        assert "(there: 200, 300, 400, none)" in why_none(RUNS, ["grok_step=5"])
        many = [record(seed, grok=100 * (1 + seed) if seed else None, steps=1000) for seed in range(8)]
        assert why_none(many, ["seed=9"]).endswith("seed=9: 0 of 8 (there: 0 to 7).")
        assert why_none(many, ["grok_step=9"]).endswith("(there: 200 to 800, none).")
        assert why_none(many, ["key=0"]).endswith("and 2 more).")
        assert why_none([], ["seed=9"]) == "There is no record yet."
        assert select([], ["anything=9"]) == []


class TestSorting:
    def test_by_number_and_by_text_with_none_last(self) -> None:
        assert [r["metrics"]["training"]["grok_step"] for r in sort(RUNS, "grok_step")[:3]] == [200, 300, 400]
        assert seeds(sort(RUNS, "grok_step")[3:]) == [(0.1, 0), (0.1, 2)]
        assert seeds(sort(RUNS, "-grok_step")) == [(0.1, 1), (1.0, 1), (1.0, 0), (0.1, 0), (0.1, 2)]
        assert seeds(sort(RUNS, "weight_decay"))[:3] == [(0.1, 0), (0.1, 1), (0.1, 2)]
        assert sort(RUNS, "-status")[0]["status"] == "failed"

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ValueError, match=r"No record has 'grok'\. Nearest names: grok_step"):
            sort(RUNS, "-grok")


class TestRows:
    def test_only_settings_that_differ_are_columns(self) -> None:
        told = rows(RUNS)
        assert list(told[0]) == [
            "key", "weight_decay", "seed", "status", "trained", "grok_step", "held_out", "stable_step", "cpu_minutes", "error",
        ]  # fmt: skip
        assert told[1] == {
            "key": RUNS[1]["key"], "weight_decay": 1.0, "seed": 1, "status": "done", "trained": 400, "grok_step": 300,
            "held_out": 1.0, "stable_step": 400, "cpu_minutes": 1.5, "error": None,
        }  # fmt: skip
        assert told[2]["stable_step"] is None
        assert (told[4]["error"], told[4]["trained"]) == ("ValueError: no room", None)

    def test_no_error_column_without_errors_and_a_grid_column_for_several(self) -> None:
        assert list(rows(RUNS[:2])[0])[:3] == ["key", "seed", "status"]
        assert "error" not in rows(RUNS[:4])[0]
        mixed = rows([record(0), record(0, grid="other", d_model=32)])
        assert [(r["grid"], r["config.d_model"]) for r in mixed] == [("width", 16), ("other", 32)]
        assert rows([]) == []

    def test_when_a_run_ends_is_a_column_only_where_nothing_else_tells_runs_apart(self) -> None:
        assert "steps" not in rows(RUNS)[0]
        assert rows([record(0), record(0, steps=500)])[1]["steps"] == 500

    def test_settings(self) -> None:
        assert flat(RUNS[0]["config"])["config.d_model"] == 16
        assert differing([]) == []
        assert differing([{"a": 1, "b": 1.0}, {"a": 1.0, "b": 1.0000001}]) == ["b"]
        assert (shown(1e-7), shown(True), shown([0.9, 0.98]), shown(1 / 3)) == (
            "1e-07",
            "true",
            "0.9+0.98",
            repr(1 / 3),
        )


def screen(monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]], width: int) -> list[str]:
    """The lines that a terminal of this width shows."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system=None, highlight=False, markup=False)
    monkeypatch.setattr("rich.console.Console", lambda **options: console)
    table.print_table(records)
    return out.getvalue().splitlines()


class TestTable:
    def test_a_terminal_of_100_columns_shows_one_line_a_cell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = screen(monkeypatch, RUNS, 100)
        assert all(len(line) <= 100 for line in lines)
        (line,) = [line for line in lines if RUNS[1]["key"] in line]
        assert line.split() == [RUNS[1]["key"], "1", "1", "done", "400", "300", "1.0000", "400", "1.5"]
        assert f"{RUNS[4]['key']} failed: ValueError: no room" in lines
        head = " ".join(lines[:3])
        for piece in ("weight_", "decay", "grok_", "step", "minutes"):
            assert piece in head

    def test_settings_that_do_not_fit_share_a_column(self, monkeypatch: pytest.MonkeyPatch) -> None:
        several = [record(0), record(0, d_model=32, learning_rate=0.01, batch_size=None, warmup_steps=3)]
        lines = screen(monkeypatch, several, 100)
        assert all(len(line) <= 100 for line in lines)
        assert "settings" in lines[2]
        text = "".join(line[80:].strip() for line in lines)
        assert "d_model=32" in text
        assert "batch_size=none" in text
        assert screen(monkeypatch, several, 200)[1].count("settings") == 0

    def test_hostile_errors_are_shown_as_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = "OSError: [Errno 28] [red]no[/red] [/] :smile: " + "x" * 200
        lines = screen(monkeypatch, [failed(0, error=text)], 80)
        assert "".join(lines).endswith(f"failed: {text}".replace(":smile:", "")[-200:])
        assert "[red]no[/red] [/]" in "".join(lines)


class TestCommand:
    def test_a_pipe_gets_plain_lines(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = str(write(tmp_path, *RUNS))
        code, out, err = call(
            capsys, monkeypatch, "--results", folder, "--where", "weight_decay=0.1", "--sort", "-seed"
        )
        assert (code, err) == (0, "3 of 5 cells.\n")
        head, *lines = out.splitlines()
        assert head.split() == [
            "key", "seed", "status", "trained", "grok_step", "held_out", "stable_step", "cpu_minutes",
        ]  # fmt: skip
        assert [line.split()[1] for line in lines[:3]] == ["2", "1", "0"]
        assert lines[0].split()[2:] == ["failed", *"-----"]
        assert lines[3] == f"{RUNS[4]['key']} failed: ValueError: no room"
        assert "\x1b" not in out

    def test_several_grids_have_a_table_each(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = str(write(tmp_path, *RUNS[:2], record(0, grid="other")))
        _, out, _ = call(capsys, monkeypatch, "--results", folder)
        assert [line.split()[0] for line in out.splitlines()] == [
            "other", "key", RUNS[0]["key"], "width", "key", RUNS[0]["key"], RUNS[1]["key"],
        ]  # fmt: skip

    def test_json_is_one_list_of_rows(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = str(write(tmp_path, *RUNS))
        _, out, _ = call(capsys, monkeypatch, "width", "--results", folder, "--failed", "--json")
        assert json.loads(out) == rows(RUNS[4:])
        code, out, err = call(capsys, monkeypatch, "--results", folder, "--where", "seed=7", "--json")
        assert (code, json.loads(out)) == (0, [])
        assert err == "No record matches. seed=7: 0 of 5 (there: 0, 1, 2).\n"

    def test_plot_writes_one_page_with_the_figure_and_the_table(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, path = str(write(tmp_path, *RUNS)), tmp_path / "curves.html"
        code, _, err = call(capsys, monkeypatch, "--results", folder, "--plot", str(path), "--by", "seed_")
        assert code == 2
        assert err.startswith("error: 'seed_' is no setting of these records. Nearest names: ")
        assert not path.exists()
        code, _, err = call(capsys, monkeypatch, "--results", folder, "--plot", str(path), "--by", "weight_decay")
        assert (code, err) == (0, f"Page: {path}\n5 of 5 cells.\n")
        text = path.read_text()
        assert "<h1>width: training</h1>" in text
        assert "2 runs, 1 grokked" in text
        assert RUNS[4]["key"] in text
        assert 'src="http' not in text

    @pytest.mark.slow
    @pytest.mark.parametrize("width", [1200, 500])
    def test_the_page_draws_offline_without_console_errors(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, width: int
    ) -> None:
        folder, path = str(write(tmp_path, *RUNS)), tmp_path / "curves.html"
        call(capsys, monkeypatch, "--results", folder, "--plot", str(path))
        dom, log = open_offline(path, tmp_path / "profile", width)
        assert [line for line in log.splitlines() if "CONSOLE" in line] == []
        drawn = dom.split('<div id="figure-1"')[1].split("<script")[0]
        for text in ("weight_decay 0.1", "2 runs, 1 grokked", "steps: log", "training step", "held-out pairs"):
            assert text in drawn, text

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nope"], "error: There is no record file"),
            (["--where", "seed"], "error: The condition 'seed' is no name, sign and value"),
            (["--sort", "nope"], "error: No record has 'nope'."),
            (["--failed", "--plot", "x.html"], "error: None of the 1 records has a training history"),
        ],
    )
    def test_errors_are_one_sentence(
        self, arguments: list[str], message: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = str(write(tmp_path / "records", *RUNS))
        monkeypatch.chdir(tmp_path)
        code, out, err = call(capsys, monkeypatch, "--results", folder, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(message)
        assert not (tmp_path / "x.html").exists()


def test_named_says_none_where_a_record_says_nothing() -> None:
    cell = listing.named(failed(0))
    assert all(cell[name] is None for name in ("trained", "grok_step", "held_out", "stable_step", "cpu_minutes"))
    assert set(listing.RESULTS) <= set(cell)
    assert listing.named(failed(0, error=" \n"))["error"] is None
