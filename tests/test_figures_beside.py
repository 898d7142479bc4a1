"""Panels hold the numbers they are given, one colour a name, and refuse what they cannot draw."""

import pytest
import torch

from mi_ablate.figures import panels

SERIES = {"zero": {"0.1": [1.0, 0.5], "1": [1.0, 0.2, 0.1]}, "mean": {"1": [1.0, 0.9, 0.8]}}


def named(figure, name, panel=None):
    (trace,) = [t for t in figure.data if t.name == name and (panel is None or panel in (t.hovertemplate or ""))]
    return trace


def test_panels_hold_the_numbers_in_one_colour_a_name():
    ends = torch.tensor([[0.9, 0.1, 0.0], [1.0, 0.3, 0.2]])
    figure = panels(
        [0, 1, 2], SERIES, bands={"zero": {"1": ends}}, controls={"mean": {"1": [1.0, 0.7, 0.6]}}, control="drawn"
    )
    zero, mean = named(figure, "1", "zero"), named(figure, "1", "mean")
    assert (list(zero.y), list(mean.y)) == ([1.0, 0.2, 0.1], [1.0, 0.9, 0.8])
    assert zero.line.color == mean.line.color != named(figure, "0.1").line.color
    assert (zero.xaxis, mean.xaxis) == ("x1", "x2") or (zero.xaxis, mean.xaxis) == ("x", "x2")
    assert list(named(figure, "0.1").x) == [0, 1], "a line may be shorter"
    drawn = named(figure, "1, drawn")
    assert (list(drawn.y), drawn.line.dash, drawn.xaxis) == ([1.0, 0.7, 0.6], "dot", "x2")
    assert [t.showlegend for t in (zero, mean)].count(True) == 1
    low = next(t for t in figure.data if t.fill == "tonexty")
    assert list(low.y) == pytest.approx([0.9, 0.1, 0.0])
    assert [note.text for note in figure.layout.annotations] == ["<b>zero</b>", "<b>mean</b>"]


def test_panels_stand_in_a_column_on_a_narrow_screen():
    meta = panels([0, 1, 2], SERIES, level=0.95, title="A title").layout.meta
    assert meta["wide"]["xaxis.domain"][1] < meta["wide"]["xaxis2.domain"][0]
    assert meta["narrow"]["xaxis.domain"] == meta["narrow"]["xaxis2.domain"] == [0, 1]
    assert meta["narrow"]["yaxis2.domain"][1] < meta["narrow"]["yaxis.domain"][0]
    assert meta["narrow"]["height"] > meta["wide"]["height"]


def test_a_level_is_drawn_in_every_panel():
    assert [shape.y0 for shape in panels([0, 1, 2], SERIES, level=0.95).layout.shapes] == [0.95, 0.95]
    assert not panels([0, 1, 2], SERIES).layout.shapes


def test_panels_say_what_they_need():
    with pytest.raises(ValueError, match=r"no line to draw: panels\(ks"):
        panels([0, 1], {"zero": {}})
    with pytest.raises(ValueError, match="'1' in 'zero' has 3 values for 2 places"):
        panels([0, 1], {"zero": {"1": [1.0, 0.5, 0.2]}})
    with pytest.raises(ValueError, match="'2' in 'zero' has no line for its band or control"):
        panels([0, 1], {"zero": {"1": [1.0, 0.5]}}, controls={"zero": {"2": [1.0, 0.5]}})
