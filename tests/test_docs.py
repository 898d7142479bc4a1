"""What is printed for a reader is executed: the README's code, the examples, doctests, and the tables' sources."""

import doctest
import importlib
import io
import json
import os
import pkgutil
import re
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import mi_ablate

ROOT = Path(__file__).parents[1]


def run(path: Path, argv: list[str]) -> str:
    out, old = io.StringIO(), sys.argv
    sys.argv = [str(path), *argv]
    try:
        with redirect_stdout(out):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = old
    return out.getvalue()


def test_readme_code_runs_and_gives_the_numbers_it_states():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    assert len(blocks[0].strip().splitlines()) <= 22
    out = io.StringIO()
    scope: dict = {}
    with redirect_stdout(out):
        exec("\n".join(blocks), scope)
    assert scope["effect"].edited.mean() > 0.98
    assert scope["effect"].controls["shuffled"].mean() < 0.05
    assert "k@95%" in out.getvalue()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def test_the_grid_of_the_sweeps_page_has_the_cells_that_it_states(tmp_path):
    pytest.importorskip("tomllib")
    from mi_ablate.sweep import load_grid

    (text,) = blocks("sweeps.md", "toml")
    (tmp_path / "width.toml").write_text(text)
    grid = load_grid(tmp_path / "width.toml")
    assert (grid.name, grid.keep_weights) == ("width", "last")
    cells = [(cell.weight_decay, cell.config.d_model, cell.seed) for cell in grid.cells]
    assert cells == [*((1.0, d, s) for d in (48, 128) for s in range(3)), (0.1, 48, 0), (0.1, 128, 0)]
    assert len(load_grid(tmp_path / "width.toml", quick=True).cells) == 4


def test_the_commands_of_the_sweeps_page_exist():
    import shlex

    import typer

    from mi_ablate.cli import app

    commands = typer.main.get_command(app).commands
    (text,) = blocks("sweeps.md", "sh")
    parsed = [shlex.split(line, comments=True) for line in text.splitlines()]
    assert {words[1] for words in parsed} == {"train", "runs", "study"}
    used = set()
    for program, name, *words in parsed:
        assert program == "mi-ablate"
        context = commands[name].make_context(name, list(words))
        used |= {key for key in context.params if context.get_parameter_source(key).name == "COMMANDLINE"}
    asked = "dry_run quick budget engine stack measure device where sort failed plot by as_json show page"
    assert set(asked.split()) <= used


def test_the_code_of_the_sweeps_page_reads_records(tmp_path, monkeypatch, capsys):
    from recorded import failed, record, write

    write(tmp_path / "benchmarks/results/studies", record(0), record(1, weight_decay=0.1), failed(2, weight_decay=0.1))
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("sweeps.md", "python")
    exec(code, {})
    assert capsys.readouterr().out == "[200]\n[{'add': {'held_out': 1.0}}]\n"


def test_the_code_of_the_abliteration_page_prints_what_the_page_says(capsys):
    (code,) = blocks("abliteration.md", "python")
    scope: dict = {}
    exec(code, scope)
    effect, difference = capsys.readouterr().out.strip().splitlines()
    numbers = [float(x) for x in re.findall(r"(?:clean|edited|covariance) (\d\.\d+)", effect)]
    assert numbers == pytest.approx([0.999, 0.81, 0.35], abs=0.01)
    assert float(difference) < 1e-5


def test_the_code_of_the_language_model_page_prints_what_the_page_says(capsys):
    code, _ = blocks("language_models.md", "python")
    exec(code, {})
    answers, choice, found = capsys.readouterr().out.strip().splitlines()
    assert "/" in answers
    assert choice.startswith("Choice(")
    shares = [float(x) for x in re.findall(r"-?\d\.\d\d", found)]
    assert shares[0] < 0.1, "of the gap is left"
    assert shares[1] > 0.5, "the control that is blind to the contrast"


def test_the_code_of_the_numbers_page_runs(capsys):
    (code,) = blocks("numbers.md", "python")
    scope: dict = {}
    exec(code, scope)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["helix", "polynomial", "shuffled"]
    assert lines[3].startswith("Swaps(whole at a")


def test_the_sae_recipe_runs(capsys):
    pytest.importorskip("sae_lens", reason="needs the extra sae")
    _, code = blocks("language_models.md", "python")
    exec(code, {})
    effect, choice = capsys.readouterr().out.strip().splitlines()
    assert effect.startswith("Effect(")
    assert choice.startswith("Choice(")


def test_the_commands_of_the_readme_and_the_language_model_page_exist():
    import shlex

    import typer

    from mi_ablate.cli import app

    commands = typer.main.get_command(app).commands
    text = "\n".join([*blocks("language_models.md", "sh"), *blocks("numbers.md", "sh"), *blocks("../README.md", "sh")])
    lines = [line for line in text.splitlines() if line.startswith("mi-ablate")]
    assert len(lines) > 10
    for line in lines:
        _, name, *words = shlex.split(line, comments=True)
        commands[name].make_context(name, list(words))


LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    """Relative links are files, and a fragment of a test file is a test in it."""
    for link in LINK.findall(page.read_text()):
        if link.startswith("http"):
            continue
        file, _, fragment = link.partition("#")
        assert (page.parent / file).exists(), link
        if fragment and file.endswith(".py"):
            assert f"def {fragment}(" in (page.parent / file).read_text(), link


STAND_INS = {"helix_and_clock.py": "adder"}
EXPECTED = re.compile(r"Expect the last line:\s+#?\s*`([^`]+)`")
STATED = {
    path.name: found.group(1)
    for path in sorted((ROOT / "examples").glob("*.py"))
    if (found := EXPECTED.search(path.read_text()))
}


@pytest.mark.parametrize("name", STATED)
def test_an_example_prints_what_its_header_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages go to out/
    monkeypatch.setenv("MI_ABLATE_EXAMPLE_MODEL", STAND_INS.get(name, "diary"))  # no hub is reachable
    last = run(ROOT / "examples" / name, []).strip().splitlines()[-1]
    number = r"-?\d+\.\d+"
    assert re.sub(number, "#", last) == re.sub(number, "#", STATED[name])
    said = [float(x) for x in re.findall(number, STATED[name])]
    assert [float(x) for x in re.findall(number, last)] == pytest.approx(said, abs=0.005)


def test_every_example_is_run():
    scripts = {path.name for path in (ROOT / "examples").glob("[!_]*.py")}
    assert scripts == set(STATED)


def test_notebooks_are_their_scripts(monkeypatch):
    """The code cells, one after another, are the script that is run; so they need no run of their own."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    made = importlib.import_module("_notebooks")
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == set(made.SCRIPTS)
    for name in made.SCRIPTS:
        script = (ROOT / "examples" / f"{name}.py").read_text()
        kept = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text())
        assert kept == made.notebook(script), "run: python examples/_notebooks.py"
        code = [
            line
            for cell in kept["cells"]
            if cell["cell_type"] == "code"
            for line in "".join(cell["source"]).split("\n")
        ]
        wanted = [line for line in script.split("\n") if line and not line.startswith("#")]
        assert [line for line in code if line and not line.startswith("#")] == wanted


def test_readme_tables_are_those_of_the_results_files():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        readme = importlib.import_module("readme")
        for page in readme.PAGES:
            assert readme.rendered(page) == page.read_text(), "run: python benchmarks/readme.py"
        assert (readme.ZOO / "README.md").read_text() == readme.zoo(), "run: python benchmarks/readme.py"
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def _modules() -> list[str]:
    found = pkgutil.walk_packages(mi_ablate.__path__, "mi_ablate.")
    return ["mi_ablate", *(module.name for module in found)]


@pytest.mark.parametrize("name", _modules())
def test_doctests(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_every_public_name_has_a_docstring():
    for name in mi_ablate.__all__:
        assert (getattr(mi_ablate, name).__doc__ or "").strip(), name


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text(), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_no_test_needs_a_network():
    assert os.environ.get("HF_HUB_OFFLINE") == "1"
