"""The figure of progress along training: the numbers of its rows, and the phases where they end."""

import pytest

from mi_ablate import figures

ROWS = [
    {
        "step": step, "train_loss": 4.0 / (1 + step), "test_loss": 5.0 - step / 100, "restricted_nanda_colab": 3.0,
        "excluded_nanda_text": 2.0, "test_accuracy": step / 400, "cosine_fve": 0.1, "share_W_E": 0.2, "gini_W_E": 0.3,
        "circularity": 0.4, "distance_irrelevance": 0.9, "weights": 100.0 + step,
    }
    for step in (0, 100, 300)
]  # fmt: skip


def test_the_figure_shows_the_rows_and_the_phases():
    ends = {"memorisation": 100, "circuit_formation": 300, "cleanup": None, "reason": ""}
    figure = figures.training_progress(ROWS, ends, "A run")
    drawn = {trace.name: (tuple(trace.x), tuple(trace.y)) for trace in figure.data}
    assert drawn["held-out pairs"] == ((0, 100, 300), (5.0, 4.0, 2.0))
    assert drawn["sum of squared weights"][1] == (100.0, 200.0, 400.0)
    assert len(drawn) == 11  # live rows have no gradient symmetricity
    kept = figures.training_progress([{**row, "gradient_symmetricity": 0.5} for row in ROWS])
    assert len(kept.data) == 12
    assert {(shape.x0, shape.x1) for shape in figure.layout.shapes} == {(0, 100), (100, 300)}
    assert {note.text for note in figure.layout.annotations} == {"memorisation", "circuit formation"}
    assert figure.layout.yaxis.type == "log"


def test_without_phases_nothing_is_shaded():
    assert figures.training_progress(ROWS).layout.shapes == ()
    with pytest.raises(ValueError, match="There is no row to draw"):
        figures.training_progress([])
