"""The turnable helix and the lines of several methods: what is drawn is what was given."""

import math

import pytest
import torch

import mi_ablate as mi
from mi_ablate import arithmetic
from mi_ablate.figures import helix, lines


def circle(period: float, n: int = 20) -> torch.Tensor:
    angle = 2 * math.pi * torch.arange(n) / period
    return torch.stack([angle.cos(), angle.sin()], dim=1).double()


def test_each_period_has_a_button_that_draws_its_own_circle() -> None:
    values = list(range(20))
    figure = helix(values, {10: circle(10), 4: circle(4)}, torch.arange(20.0), "two periods")
    buttons = figure.layout.updatemenus[0].buttons
    assert [b.label for b in buttons] == ["period 10", "period 4"]
    points = figure.data[1]
    assert list(points.z) == values
    assert points.x[5] == pytest.approx(-1)
    assert buttons[1].args[0]["x"][1][2] == pytest.approx(-1)  # 2 of 4 is half a turn
    assert max(figure.data[0].z) == 19
    assert figure.data[0].x[0] == 1


def test_the_fits_curve_passes_through_the_numbers_of_a_perfect_helix() -> None:
    figure = helix(range(20), {10: circle(10)}, torch.arange(20.0))
    curve, points = figure.data[:2]
    for i in range(20):
        away = min(math.dist((points.x[i], points.y[i], points.z[i]), p) for p in zip(curve.x, curve.y, curve.z))
        assert away < 0.25, "between two steps of the curve at most"


def test_held_out_numbers_are_diamonds() -> None:
    figure = helix(range(20), {10: circle(10)}, torch.zeros(20), held_out=[3, 13])
    assert [t.name for t in figure.data] == ["the fit", "numbers", "held-out numbers"]
    assert len(figure.data[1].x) == 18
    assert figure.data[2].marker.symbol == "diamond"
    assert set(figure.data[0].z) == {0.0}


def test_coordinates_that_do_not_fit_the_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="20 numbers need"):
        helix(range(20), {10: circle(10, 19)}, torch.zeros(20))
    with pytest.raises(ValueError, match="no period to draw"):
        helix(range(20), {}, torch.zeros(20))


def test_lines_have_bands_and_controls_are_grey() -> None:
    band = torch.tensor([[0.5, 1.5], [1.5, 2.5]])
    figure = lines(["L0", "L1"], {"helix": [1.0, 2.0], "shuffled": [0.0, float("nan")]}, bands={"helix": band},
                   controls=["shuffled"], axes=("layer", "logit difference"))  # fmt: skip
    named = {t.name: t for t in figure.data if t.name}
    assert list(named["helix"].y) == [1, 2]
    assert list(named["shuffled"].y) == [0, None]
    assert named["shuffled"].line.color == "#767676"
    assert named["helix"].customdata[0] == "<br>0.5 to 1.5"


def test_lines_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="no line to draw"):
        lines([1], {})
    with pytest.raises(ValueError, match="2 values for 3 places"):
        lines([1, 2, 3], {"a": [1.0, 2.0]})
    with pytest.raises(ValueError, match="'b' has no line"):
        lines([1], {"a": [1.0]}, controls=["b"])


def test_results_of_numbers_draw_themselves() -> None:
    """A helix to turn with the numbers that it has not seen, a spectrum beside its shuffles, a line a method."""
    values = torch.arange(100)
    design = mi.helix(values, (5, 10)).matrix
    acts = design @ torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = arithmetic.means_of(acts, values)
    held = arithmetic.held_out_fit(means, values % 10 == 3, (5, 10))
    figure = held.plot()
    assert [t.name for t in figure.data] == ["the fit", "numbers", "held-out numbers"]
    assert list(figure.data[2].z) == pytest.approx([a for a in range(100) if a % 10 == 3])
    assert len(figure.layout.updatemenus[0].buttons) == 2
    assert arithmetic.helix_fits(means, (2, 10)).planes() == {10: [3, 4]}, "period 2 has no sine"

    spectrum = arithmetic.number_spectra(means, of_interest=(10,))
    drawn = spectrum.plot({spectrum.sites[0]: "planted"})
    assert [t.name for t in drawn.data] == ["planted", "shuffled numbers"]
    assert drawn.data[0].x[max(range(50), key=lambda i: drawn.data[0].y[i])] in (5, 10, 100)
    assert float(spectrum.null_shares.sum()) == pytest.approx(1)
