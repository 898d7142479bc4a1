"""Every study of the package stands nothing run, small records and one seed, and the page is what the records say."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from mi_ablate.studies import (
    STUDIES,
    Findings,
    Study,
    load_study,
    the_log,
)
from mi_ablate.studies import page as markdown_page
from mi_ablate.studies.pictures import fingerprint, is_of
from mi_ablate.studies.standing import Standing
from mi_ablate.studies.study import VERDICTS
from study_records import write_quick

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "studies"


@cache
def recorded(name: str) -> Findings:
    """What a study finds in the committed records."""
    return STUDIES[name].findings(RECORDS)


@cache
def whole_page() -> str:
    """The page of the committed records."""
    return markdown_page.page(RECORDS)


class TestEveryStudy:
    def test_names(self) -> None:
        assert all(name == one.name and name.replace("-", "").isalnum() for name, one in STUDIES.items())
        assert load_study("weight-decay") is STUDIES["weight-decay"]
        with pytest.raises(
            ValueError, match=r"There is no study 'wieght-decay'\. Nearest names: weight-decay.* All: .*weight-decay"
        ):
            load_study("wieght-decay")

    def test_each_claim_and_question_is_decided_once(self) -> None:
        decided = Counter(of for one in STUDIES.values() for of in one.decides)
        named = {**the_log.CLAIMS, **the_log.QUESTIONS, **the_log.BEYOND}
        assert set(decided.values()) <= {1}, decided
        assert set(decided) == set(named)

    @pytest.mark.parametrize("name", STUDIES)
    def test_nothing_is_run(self, name: str, tmp_path: Path) -> None:
        one = STUDIES[name]
        for quick in (False, True):
            found = one.findings(tmp_path, quick)
            self.sound(one, found)
            assert {verdict.verdict for verdict in found.verdicts} <= {"not run"}
            standing = Standing.of(one, tmp_path, quick)
            assert len(standing.missing()) > 0 or standing.items > 0
            assert standing.cells.done == ()

    @pytest.mark.parametrize("grok", [200, None])
    @pytest.mark.parametrize("name", STUDIES)
    def test_small_records_of_models_that_know_nothing(self, name: str, grok: int | None, tmp_path: Path) -> None:
        one = STUDIES[name]
        write_quick(one, tmp_path, grok)
        self.sound(one, one.findings(tmp_path, quick=True))
        assert Standing.of(one, tmp_path, quick=True).cells.missing == ()

    @pytest.mark.parametrize("name", [name for name, one in STUDIES.items() if one.grids])
    def test_one_seed_is_no_verdict(self, name: str, tmp_path: Path) -> None:
        one = STUDIES[name]
        write_quick(one, tmp_path, leave_out=1)
        found = one.findings(tmp_path, quick=True)
        self.sound(one, found)
        assert {verdict.verdict for verdict in found.verdicts} <= {"not run", "undecided"}

    def test_recorded_measurements_belong_to_studies(self) -> None:
        assert {path.stem for path in (RECORDS / "own").glob("*.jsonl")} <= set(STUDIES)

    @pytest.mark.parametrize("name", STUDIES)
    def test_the_recorded_results(self, name: str) -> None:
        self.sound(STUDIES[name], recorded(name))

    def sound(self, one: Study, found: Findings) -> None:
        """Tables that can be printed, figures that can be drawn, verdicts with numbers and a rule."""
        for table in found.tables:
            assert all(list(row) == list(table.rows[0]) for row in table.rows), table.title
            assert table.rows == [] or len(table.rows[0]) <= 10, table.title
            text = markdown_page.markdown(table.rows) if table.rows else ""
            assert "nan" not in text.lower().split(), table.title
            assert "Value(" not in text, table.title
        for caption, draw in found.figures.items():
            assert caption.endswith(".")
            assert draw().to_plotly_json()["data"], caption
        for verdict in found.verdicts:
            assert verdict.verdict in VERDICTS
            assert verdict.rule
            assert verdict.ours
            assert "nan" not in verdict.ours.lower().split()


class TestPage:
    def test_it_is_what_the_records_say(self) -> None:
        """Every number of docs/research_log.md comes from the records: the page is made again and must be the same."""
        text = (ROOT / "docs" / "research_log.md").read_text()
        assert whole_page() == text, "run `python -m mi_ablate.studies --figures`, and commit the page"

    @pytest.mark.parametrize("name", STUDIES)
    def test_pictures_show_the_numbers_of_the_records(self, name: str) -> None:
        for i, make in enumerate(recorded(name).figures.values()):
            path = ROOT / "docs" / "research_log" / markdown_page.picture(STUDIES[name], i)
            assert is_of(path, make()), "run `python -m mi_ablate.studies --figures`, and commit the pictures"
            assert path.stat().st_size < 150 * 1024

    def test_pictures_of_other_numbers_are_found(self, tmp_path: Path) -> None:
        import plotly.graph_objects as go

        one, same = go.Figure(go.Scatter(x=[0, 1], y=[1, 2.0])), go.Figure(go.Scatter(x=(0, 1.0), y=(1, 2 + 1e-12)))
        assert fingerprint(one) == fingerprint(same)
        others = [go.Figure(go.Scatter(x=[0, 1], y=[1, 2.01])), go.Figure(go.Scatter(x=[0, 1], y=[1, 2.0], name="b"))]
        assert len({fingerprint(figure) for figure in [one, *others]}) == 3
        assert not is_of(tmp_path / "none.png", one)

    def test_it_says_what_is_run_and_what_is_not(self, tmp_path: Path) -> None:
        nothing = markdown_page.page(tmp_path)
        assert f"- Of {len(the_log.CLAIMS)} claims of the log: {len(the_log.CLAIMS)} not run." in nothing
        assert "## What we find different" not in nothing
        assert "grid weight-decay | 27 of 27 cells" in nothing
        full = whole_page()
        assert "grid weight-decay | 27 of 27 cells" not in full
        for name in (*the_log.CLAIMS, *the_log.QUESTIONS, *the_log.BEYOND):
            assert full.count(f"| {name} |") + full.count(f"| [{name}](#") == 1
        assert all(line in full for line in the_log.FOOTNOTES)

    def test_links_lead_to_sections(self) -> None:
        text = whole_page()
        heads = {
            re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
            for head in re.findall(r"^#+ (.*)$", text, flags=re.M)
        }
        linked = set(re.findall(r"\]\(#([^)]+)\)", text))
        assert linked
        assert linked <= heads

    def test_cells_cannot_break_a_table(self) -> None:
        assert markdown_page.markdown([{"a": "x|y\n z", "b": None}]) == "| a | b |\n|---|---|\n| x\\|y z | - |\n"
