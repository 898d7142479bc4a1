"""Pictures and notebook views of subspaces and effects: the numbers that they hold, and nothing executed."""

import pytest
import torch

from mi_ablate import Ablate, Effect, Subspace, accuracy, effect, interval
from mi_ablate.figures import directions, outcome
from models import tokens_for

LAST = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def found() -> Effect:
    from models import tiny

    model = tiny()
    tokens = tokens_for(model, n=40)
    answers = model(tokens)[:, -1].argmax(-1)
    return effect(model, tokens, Ablate(Subspace.random(16, 4)).at(LAST, pos=-1), accuracy(answers), draws=3)


def test_an_outcome_has_a_row_for_each_run_and_a_point_for_each_draw(found: Effect) -> None:
    figure = outcome(found)
    rows = {trace.name: trace for trace in figure.data}
    assert list(rows) == ["clean", "edited", "covariance", "pca"]
    assert rows["edited"].x == (pytest.approx(float(found.edited.mean())),)
    low, high = interval(found.edited.tolist())
    assert rows["edited"].x[0] + rows["edited"].error_x.array[0] == pytest.approx(high)
    assert rows["edited"].x[0] - rows["edited"].error_x.arrayminus[0] == pytest.approx(low)
    assert rows["covariance"].x == pytest.approx(found.controls["covariance"].mean(1).tolist())
    assert len(rows["pca"].x) == 1
    share = f"{found.variance_removed['edited']:.0%} of variance"
    assert share in rows["edited"].y[0]


def test_directions_show_what_the_source_says_of_sizes() -> None:
    basis = torch.eye(6, dtype=torch.float64)[:, :3]
    sized = Subspace(basis, "s", {"sizes": [3.0, 2.0, 1.0]})
    [bars] = directions(sized).data
    assert bars.y == (3.0, 2.0, 1.0)
    [bars] = directions(Subspace(basis)).data
    assert bars.y == pytest.approx((1.0, 1.0, 1.0)), "one coordinate each"
    flat = Subspace.span(torch.ones(6, dtype=torch.float64))
    assert flat.plot().data[0].y == pytest.approx((6.0,))
    assert directions(flat).layout.yaxis.title.text == "coordinates it is spread over (of 6)"


def test_a_notebook_shows_a_subspace_with_its_source_escaped() -> None:
    s = Subspace.random(5, 2)
    text = Subspace(s.basis, "<script>", {"method": "by <hand>", "long": [1, 2]})._repr_html_()
    assert "&lt;script&gt;" in text
    assert "by &lt;hand&gt;" in text
    assert "<script>" not in text
    assert "(no name)" in Subspace(s.basis)._repr_html_()


def test_a_notebook_shows_the_table_of_an_effect(found: Effect) -> None:
    assert found._repr_html_().count("<tr>") == 5, "a head and four runs"
    assert len(found.plot().data) == 4
