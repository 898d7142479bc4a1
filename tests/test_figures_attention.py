"""Two attention pictures beside each other and coloured tokens: what is drawn, for any token, in a browser too."""

import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from browser import open_offline
from mi_ablate.figures import attention, tokens
from mi_ablate.figures.coloured import colour_of, ink_on, luminance, visible
from mi_ablate.report import Section, page

HOSTILE = [
    "</script><script>document.title='run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    "\"'`&amp;",
    " the",
    "\n\r\n",
    "\x00\x07",
    "\u202egnp\u2066",
    "👩\u200d🔬🏽",
    "\ud800",
    "\u0301e",
    "",
    "שלום",
    "long" * 100,
    "\u200b\ufeff\u00a0",
]
SHOWN = [
    HOSTILE[0][:23] + "…",
    HOSTILE[1][:23].replace(" ", "␣") + "…",
    HOSTILE[2],
    "␣the",
    "↵⟨U+000D⟩↵",
    "⟨U+0000⟩⟨U+0007⟩",
    "⟨U+202E⟩gnp⟨U+2066⟩",
    "👩\u200d🔬🏽",
    "⟨U+D800⟩",
    "◌\u0301e",
    "⟨empty⟩",
    "שלום",
    "longlonglonglonglonglon…",
    "⟨U+200B⟩⟨U+FEFF⟩⟨U+00A0⟩",
]
P = len(HOSTILE)


def patterns(seed=0, heads=2, p=P):
    x = torch.rand(heads, p, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tril()
    return x / x.sum(-1, keepdim=True)


def drawn(props):
    return json.loads(props.replace("\\u003c", "<"))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_what_cannot_be_seen_is_drawn_or_named():
    assert [cut if len(cut) <= 24 else cut[:23] + "…" for cut in map(visible, HOSTILE)] == SHOWN
    assert visible("two words", spaces=False) == "two words"
    assert visible("a\nb", spaces=False) == "a↵b"
    assert visible("", spaces=False) == ""


@given(st.text())
def test_any_text_is_visible_and_encodable(text):
    shown = visible(text)
    shown.encode()
    assert shown
    assert not re.search(r"[\x00-\x20\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown)


@given(st.floats(-10, 10), st.floats(0.1, 10))
def test_ink_is_legible_on_every_colour(value, full):
    colour = colour_of(value, full)
    assert contrast(colour, ink_on(colour)) >= 4.5
    opposite = colour_of(-value, full)
    assert (colour == opposite) == (colour == (255, 255, 255)), "the sign has a colour of its own"


def test_the_scale_is_symmetric_and_the_numbers_are_printed():
    picture = tokens(torch.tensor([-2.0, 0.0, 1.0, float("nan")]), ["a", "b", "c", "pad"], label="logits")
    html, bundled = picture.fragment("here")
    assert not bundled
    assert '<div id="here"' in html
    assert re.findall(r"<small>([^<]*)</small>", html) == ["-2.00", "0.00", "+1.00", "–"]
    assert re.findall(r'<li style="background:(#\w+)', html) == ["#0072b2", "#ffffff", "#eaae80", "#e0e0e0"]
    assert "<span>-2.00</span>" in html
    assert "<span>+2.00</span><span>logits</span>" in html
    assert 'title="position 0: a -2"' in html
    assert 'title="position 3: pad no value"' in html
    assert "full colour" not in html
    assert "<script" not in picture._repr_html_()
    assert repr(picture) == "TokenPicture(4 tokens coloured by logits)"


def test_rows_have_names_and_a_limit_clips():
    values = torch.tensor([[100.0, 1.0], [0.5, -1.0]])
    html = tokens(values, ["a", "b"], ["resid 0", "<b>"], limit=1, title="One <i>line</i>").fragment()[0]
    assert re.findall(r'class="name">([^<]*)<', html) == ["resid 0", "&lt;b&gt;"]
    assert "values beyond the ends have the full colour" in html
    assert "<p>One &lt;i&gt;line&lt;/i&gt;</p>" in html
    assert html.count("#d55e00") == 3, "two tokens and the scale"
    assert tokens(values, ["a", "b"]).body.count("layer 1") == 3
    assert tokens(torch.zeros(2), ["a", "b"]).body.count("background:#ffffff") == 2, "all zero has a scale too"


@pytest.mark.parametrize(
    ("values", "texts", "more", "message"),
    [
        (torch.zeros(3), ["a"], {}, r"values has shape \[3\]; \[p\] or \[layer p\] for p = 1 tokens is needed"),
        (torch.zeros(0), [], {}, "is needed"),
        (torch.tensor([float("inf")]), ["a"], {}, "values has 1 infinite entries"),
        (torch.zeros(1), ["a"], {"limit": 0}, "limit=0 must be positive"),
        (torch.zeros(1), ["a"], {"limit": float("nan")}, "limit=nan must be positive"),
        (torch.zeros(2, 1), ["a"], {"names": ["one"]}, "There are 2 rows but 1 names"),
    ],
)
def test_tokens_say_what_does_not_fit(values, texts, more, message):
    with pytest.raises(ValueError, match=message):
        tokens(values, texts, **more)


def test_tokens_refuse_one_string():
    with pytest.raises((ValueError, TypeCheckError), match="tokens"):
        tokens(torch.zeros(2), "ab")


def test_both_runs_are_drawn_with_the_numbers_given():
    clean, edited = patterns(0), patterns(1)
    picture = attention(clean, HOSTILE, ["0.0", "0.1"], against=edited)
    for props, values in ((picture.props, clean), (picture.against, edited)):
        found = drawn(props)
        torch.testing.assert_close(torch.tensor(found["attention"], dtype=torch.float64), values, rtol=0, atol=6e-5)
        assert found["tokens"] == SHOWN
        assert found["attentionHeadNames"] == ["0.0", "0.1"]
        assert found["maskUpperTri"] is True
    html, bundled = picture.fragment("here")
    assert bundled
    assert html.count("<script") == html.count("</script") == 3
    assert re.findall(r'<div id="([^"]+)"', html) == ["here", "here-against"]
    assert re.findall(r"<p>(\w+)</p>", html) == ["clean", "edited"]
    assert HOSTILE[0] not in html


def test_one_run_that_looks_ahead_shows_both_above_the_diagonal():
    ahead = torch.full((2, 3, 3), 1 / 3)
    for pair in ((patterns(0, 2, 3).float(), ahead), (ahead, patterns(0, 2, 3).float())):
        picture = attention(pair[0], list("ab="), against=pair[1])
        assert not drawn(picture.props)["maskUpperTri"]
        assert not drawn(picture.against)["maskUpperTri"]


def test_the_second_run_must_have_the_same_heads():
    with pytest.raises(ValueError, match="patterns has 2 heads and against has 1: give the same heads of both runs"):
        attention(patterns(), HOSTILE, against=patterns(heads=1))
    with pytest.raises(ValueError, match="not finite"):
        attention(patterns(), HOSTILE, against=patterns() * float("nan"))


def test_a_page_of_many_heads_stays_small():
    many = patterns(0, 144, 64)
    picture = attention(many, ["token"] * 64, against=patterns(1, 144, 64))
    assert len(picture.fragment()[0]) < 6_500_000


def test_a_page_with_tokens_alone_has_no_bundle(tmp_path):
    path = page(tmp_path / "page.html", "\ud800 title", [Section("One", "", [tokens(torch.zeros(1), ["\ud800"])])])
    text = path.read_text(encoding="utf-8")
    assert "var CircuitsVis=" not in text
    assert '<div id="tokens-1"' in text
    assert "\\ud800 title" in text


CHOOSE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const zoomed = (id) => [...document.querySelectorAll("#" + id + " h2")].map((h) => h.textContent).join();
  const say = (word) => document.body.append(document.createElement("output"), word + ":" +
    zoomed("attention-1") + "/" + zoomed("attention-1-against") + ";");
  const point = (id, kind) => document.querySelectorAll("#" + id + " h4")[1].dispatchEvent(
    new MouseEvent(kind, {bubbles: true}));
  say("start");
  point("attention-1", "mouseover");
  setTimeout(() => { say("left"); point("attention-1", "mouseout");
  setTimeout(() => { say("gone"); point("attention-1-against", "click");
  setTimeout(() => say("right"), 300); }, 300); }, 300);
}, 300));
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 500])
def test_hostile_tokens_are_inert_and_a_head_is_chosen_on_both_sides(tmp_path, width):
    picture = attention(patterns(0), HOSTILE, ["head A", "head B"], against=patterns(1))
    rows = tokens(torch.linspace(-1, 1, P), HOSTILE, title=HOSTILE[0])
    path = page(tmp_path / "page.html", "Look", [Section("One", "", [picture, rows])])
    path.write_text(path.read_text().replace("</body>", CHOOSE + "</body>"))
    dom, log = open_offline(path, tmp_path / "profile", width)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert "<title>Look</title>" in dom, "no token's script ran"
    said = re.sub(r"<[^>]*>", "", dom.split("<output>", 1)[1]).replace("\n", "")
    wanted = "start:head A/head A;left:head B/head B;gone:head A/head A;right:head B/head B;"
    assert said.startswith(wanted), said
    body = dom.split("<body>")[1]
    assert "<img" not in body
    shown = re.findall(r"<bdi>([^<]*)</bdi>", body)
    assert [text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for text in shown] == SHOWN


@pytest.mark.slow
def test_a_notebook_shows_both_runs_and_tokens_offline(tmp_path):
    small = attention(patterns(0, 2, 3), list("ab="), against=patterns(1, 2, 3))
    cells = [small._repr_html_(), small._repr_html_(), tokens(torch.ones(3), list("ab="))._repr_html_()]
    notebook = tmp_path / "cells.html"
    notebook.write_text("<!doctype html><meta charset=utf-8>" + "".join(cells), encoding="utf-8")
    dom, log = open_offline(notebook, tmp_path / "profile", 1200)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert dom.count("<canvas role") == 2 * 2 * 3, "two heads and the zoomed one, of two runs, in two cells"
    assert dom.count("<bdi>") == 3
