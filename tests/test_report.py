"""The page is one file that works offline: bundles once, text inert, the same bytes for the same sections."""

import os
import re

import pytest
import torch
from jaxtyping import TypeCheckError

from browser import open_offline
from mi_ablate.effects import Effect
from mi_ablate.figures import attention, removal, spectrum
from mi_ablate.report import Section, page
from test_figures import HOSTILE, curve, patterns

PLOTLY = re.compile(r"plotly\.js v\d")
CIRCUITSVIS = "var CircuitsVis="


def sections():
    plots = [spectrum([1, 2], [0.4, 0.6], [2], f"Energy {i} {HOSTILE}") for i in range(2)]
    plots.append(removal({"zero": curve(), HOSTILE: curve()}, "Removal"))
    heads = [attention(patterns(), [HOSTILE, "b", "="]) for _ in range(3)]
    rows = [
        {"k": 1, "accuracy": torch.tensor(0.123456), "site": HOSTILE},
        {"k": 2, "accuracy": None, "site": "`x`"},
    ]
    return [
        Section("Figures", f"Text with `code`, & {HOSTILE}.\n\nSecond.", plots),
        Section(f"Attention {HOSTILE}", "", ["A paragraph.", *heads]),
        Section("Tables", "", [rows, curve()]),
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return page(path, f"Title {HOSTILE}", sections(), footer={"command": "mi-ablate demo", "torch": HOSTILE})


@pytest.fixture(scope="module")
def text(written):
    return written.read_text(encoding="utf-8")


def test_each_bundle_is_there_once(text):
    assert len(PLOTLY.findall(text)) == 1
    assert text.count(CIRCUITSVIS) == 1
    assert text.count("<figure>") == 6


def test_a_page_without_figures_has_no_bundle(tmp_path):
    path = page(tmp_path / "small.html", "Small", [Section("Only text", "Nothing else.")])
    assert path.stat().st_size < 10_000
    only_plotly = page(tmp_path / "plotly.html", "Plotly", [Section("One", "", [spectrum([1], [1.0])])]).read_text()
    assert PLOTLY.search(only_plotly)
    assert CIRCUITSVIS not in only_plotly


def test_nothing_is_fetched(text):
    assert "https://unpkg" not in text
    assert not re.search(r"<(script|img|iframe)[^>]*\ssrc=", text)
    assert not re.search(r"<link[^>]*href=\"(?!data:)", text)
    assert "default-src 'none'" in text


def test_hostile_text_stays_inert(text):
    assert HOSTILE not in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_the_same_sections_give_the_same_bytes(written, tmp_path):
    again = page(
        tmp_path / "again.html",
        f"Title {HOSTILE}",
        sections(),
        footer={"command": "mi-ablate demo", "torch": HOSTILE},
    )
    assert again.read_bytes() == written.read_bytes()


def test_tables_round_and_name_their_columns(text):
    assert '<td class="number">0.123</td>' in text
    assert '<td class="number">–</td>' in text
    assert "<td><code>x</code></td>" in text
    assert '<th class="number">covariance low</th>' in text


def test_an_effect_is_a_table(tmp_path):
    ones = torch.ones(4)
    effect = Effect("accuracy", ones, ones * 0.25, {"pca": ones[None] * 0.5}, {"edited": 0.9, "pca": 0.1})
    html = page(tmp_path / "effect.html", "Effect", [Section("One", "", [effect])]).read_text()
    assert '<td>edited</td><td class="number">0.250</td>' in html


def test_contents_appear_with_more_than_three_sections(tmp_path):
    def contents(n):
        return "<nav" in page(tmp_path / "c.html", "C", [Section(f"Part {i}") for i in range(n)]).read_text()

    assert [contents(n) for n in (1, 3, 4)] == [False, False, True]


def test_what_a_page_cannot_show(tmp_path):
    with pytest.raises(TypeError, match=r"Section 'One' holds a Tensor. A page shows text, a list of row dicts"):
        page(tmp_path / "x.html", "X", [Section("One", "", [torch.ones(2)])])
    with pytest.raises(ValueError, match=r"write '.*report.html' instead of"):
        page(tmp_path / "report", "X", [])
    with pytest.raises((TypeError, TypeCheckError), match="str"):
        page(tmp_path / "x.html", "X", ["text"])
    with pytest.raises((TypeError, TypeCheckError)):
        page(tmp_path / "x.html", "X", [Section("One", "", spectrum([1], [1.0]))])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = page(tmp_path / "page.html", "Old", [Section("One")])
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        page(path, "New", [Section("One")])
    assert "Old" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_draws_offline_without_console_errors(written, tmp_path, width):
    dom, log = open_offline(written, tmp_path / "profile", width)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert dom.count('class="main-svg"') >= 3
    for i in (1, 2, 3):
        after = dom.split(f'<div id="attention-{i}"')[1].split("<script")[0]
        assert after.count("<canvas") == 3, "two small heads and the zoomed one"
    body = dom.split("<body>")[1]
    assert body.count("<h2") >= 3
    assert HOSTILE not in body.replace("\\u003c", "")


@pytest.mark.slow
def test_a_notebook_shows_attention_offline(tmp_path):
    cells = [attention(patterns(seed), [HOSTILE, "b", "="])._repr_html_() for seed in range(2)]
    notebook = tmp_path / "cells.html"
    notebook.write_text("<!doctype html><meta charset=utf-8>" + "".join(cells), encoding="utf-8")
    dom, log = open_offline(notebook, tmp_path / "profile", 1200)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert dom.count("<canvas role") == 2 * 3


@pytest.mark.slow
def test_the_console_check_sees_errors(tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<!doctype html><script>undefinedFunction()</script>")
    _, log = open_offline(broken, tmp_path / "profile", 800)
    assert "CONSOLE" in log
    assert "undefinedFunction" in log
