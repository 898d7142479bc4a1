"""Fourier filters of component logits: the projector, what it keeps, and what it does to models."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_ablate import Ablate, Card, Subspace, bake_, collect, load, save, sites, toys
from mi_ablate.arithmetic.problem_sets.single_tokens import Numerals
from mi_ablate.arithmetic.problem_sets.toy_problems import problems_of
from mi_ablate.arithmetic.writing.filtering import (
    filter_effects,
    frequency_rows,
    logit_filter,
    number_filter,
    removed_frequencies,
)
from mi_ablate.controls import covariance
from models import logits_with, tiny
from number_parts import draw, sums

D = 60


@given(p=st.integers(6, 40), seed=st.integers(0, 200), high=st.booleans())
def test_what_is_left_has_no_power_in_the_removed_bins_and_the_change_is_the_least(
    p: int, seed: int, high: bool
) -> None:
    columns, tau = draw(D, p, seed=seed), max(2, (p - 1) // 4)
    removed = removed_frequencies(p - 1, "high" if high else "low", tau)
    edit = Ablate(number_filter(columns, removed))
    x = draw(3, D, seed=seed + 1)
    y = edit(x)
    angle = 2 * math.pi * torch.outer(torch.tensor(removed).double(), torch.arange(p).double()) / (p - 1)
    logits = y @ columns
    for rows in (angle.cos(), angle.sin()):  # the definition, dead sine and all
        assert (logits @ rows.T).abs().max() < 1e-9 * (x @ columns).norm()
    assert torch.allclose(edit(y), y, atol=1e-12)
    read = frequency_rows(p, removed) @ columns.T
    other = y + draw(3, D, seed=seed + 2) @ (torch.eye(D).double() - torch.linalg.pinv(read) @ read)
    assert (other @ read.T).abs().max() < 1e-8 * read.norm()
    assert ((x - y).norm(dim=1) < (x - other).norm(dim=1)).all()


def test_the_kept_frequencies_and_the_constant_stay_where_the_readout_is_orthonormal() -> None:
    p = 41
    columns = torch.linalg.qr(draw(D, D)).Q[:, :p]
    for keep in ("low", "high"):
        removed = removed_frequencies(p - 1, keep, 10)
        edit = Ablate(number_filter(columns, removed))
        for k in range(21):
            wave = torch.cos(2 * math.pi * k * torch.arange(p).double() / 40)
            left = float((edit(wave[None] @ columns.T) @ columns).norm() / wave.norm())
            assert left < 1e-9 if k in removed else left > 0.85, (keep, k, left)
        assert edit.subspace.source["kept_share"] > 0.9
    assert number_filter(draw(45, p), removed_frequencies(40, "low", 10)).source["kept_share"] < 0.65


def test_frequencies_are_counted_by_k_and_the_dead_sine_is_no_row() -> None:
    assert removed_frequencies(520, "low") == list(range(50, 261))
    assert removed_frequencies(520, "high") == list(range(1, 50))
    assert removed_frequencies(520, 260) == list(range(1, 260))
    assert len(frequency_rows(521, range(50, 261))) == 421  # 211 cosines, 210 sines
    assert len(frequency_rows(521, range(1, 261))) == 519
    printed = torch.cat([torch.ones(1, 521).double() / math.sqrt(520), frequency_rows(521, range(1, 261))])
    assert torch.linalg.matrix_rank(printed) == 520  # Zhou's F without its row of zeros
    assert (
        printed @ printed.T - torch.eye(520)
    ).abs().max() > 1  # and not orthonormal: the last point is the first again
    assert len(frequency_rows(12, [1, 5])) == 4  # an even p has no dead sine


def test_a_stream_that_the_filter_would_use_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"removes 19 rows .* stream has 16 dimensions: no direction would be left"):
        number_filter(draw(16, 21), range(1, 11))
    assert number_filter(draw(16, 21), range(1, 8)).rank == 14
    few = Numerals("bare", torch.tensor([3, 4]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="needs the numbers from 0 on as single tokens; Of 0 to 999, 0 is not"):
        logit_filter(tiny(), few)


@pytest.mark.parametrize(
    ("keep", "tau", "said"),
    [
        (0, 3, "the frequencies of period 8 are 1 to 4"),
        (5, 3, "the frequencies of period 8 are 1 to 4"),
        ("middle", 3, "keep='middle' is 'low'"),
        ("low", 1, "tau=1: 2 to 4 divides the frequencies 1 to 4"),
        ("high", 50, "tau=50: 2 to 4 divides"),
    ],
)
def test_unknown_filters_are_refused(keep: str | int, tau: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        removed_frequencies(8, keep, tau)
    with pytest.raises(ValueError, match="can be removed, of four numbers or more"):
        number_filter(draw(16, 9), [5])
    with pytest.raises(ValueError, match="attn, mlp, both, one filter or more"):
        filter_effects(tiny(), sums(), parts=("heads",))


@pytest.mark.compat
def test_a_filter_at_every_component_takes_the_frequency_from_what_they_add_to_the_logits(tmp_path) -> None:
    model = tiny(norm=None, d_model=24, vocab=13)
    problems = sums(13)
    subspace = logit_filter(model, problems.numerals, keep="low", tau=4)
    assert (subspace.rank, subspace.source["frequencies"]) == (3, [4, 5])
    names = [*sites(model, "attn_out"), *sites(model, "mlp_out")]
    hooks = Ablate(subspace).at(*names, pos=-1)
    acts = collect(model, problems.tokens, names, hooks=hooks)
    rows = frequency_rows(11, [4, 5]) @ model.W_U.detach()[:, :11].double().T
    assert max(float((x @ rows.T).abs().max()) for x in acts.values()) < 1e-10
    save(tmp_path / "filter.safetensors", hooks, Card.of(model, "a filter"))
    again = load(tmp_path / "filter.safetensors", model)
    assert torch.equal(logits_with(model, problems.tokens, again), logits_with(model, problems.tokens, hooks))
    everywhere = logits_with(model, problems.tokens, Ablate(subspace).at(*names))
    undo = bake_(model, Ablate(subspace).at(*names))
    assert (logits_with(model, problems.tokens) - everywhere).abs().max() < 1e-9
    undo()


def test_a_model_that_adds_by_frequencies_loses_them_and_the_filter_of_others_takes_them_along() -> None:
    """The shipped mod 113 model writes its answers with the frequencies 1, 8 and 21."""
    toy = toys.load("nanda113")
    problems = problems_of(toy)[::37]
    columns = toy.model.W_U.detach()[:, :113]
    assert logit_filter(toy.model, problems.numerals, "high", 15, 113).source["frequencies"] == list(range(1, 15))
    found = {}
    for removed in ([1, 8, 21], [14, 35, 41], None):
        subspace = Subspace.random(128, 6) if removed is None else number_filter(columns, removed, period=113)
        hooks = Ablate(subspace).at("blocks.0.hook_mlp_out", "blocks.0.hook_attn_out", pos=-1)
        logits = logits_with(toy.model, problems.tokens, hooks)[:, -1, :113]
        accuracy = float((logits.argmax(-1) == problems.answers).double().mean())
        found[str(removed)] = (accuracy, subspace.source.get("kept_share"))
    assert found["[1, 8, 21]"][0] < 0.02 < 0.9 < found["None"][0]
    assert found["[14, 35, 41]"][0] < 0.2  # not selective,
    assert found["[14, 35, 41]"][1] < found["[1, 8, 21]"][1]  # and it says so


def test_zhous_table_on_a_model() -> None:
    toy = toys.load("nanda113")
    problems = problems_of(toy)[::37]
    found = filter_effects(toy.model, problems, keep=("high", 42), parts=("both", "attn"), tau=43, draws=2)
    rows = {(row["kept"], row["at"]): row for row in found.table()}
    assert (rows["all", ""]["accuracy"], len(rows)) == (1, 5)
    assert rows["high", "both"]["rank"] == 84
    assert rows["high", "both"]["accuracy"] < 0.05
    assert rows["high", "both"]["accuracy random"]["mean"] > rows["high", "both"]["accuracy"] + 0.1
    assert rows["high", "both"]["variance covariance"] > rows["high", "both"]["variance random"] + 0.1
    assert rows["high", "both"]["accuracy covariance"]["mean"] < rows["high", "both"]["accuracy random"]["mean"]
    assert rows[42, "both"]["period"] == 113 / 42
    assert rows[42, "both"]["loss"] > 1
    assert 0 < rows[42, "both"]["kept_share"] < 1
    assert "high at both" in repr(found)


def test_the_table_equals_bare_hooks() -> None:
    model, problems = tiny(), sums()
    found = filter_effects(model, problems, keep=("high",), parts=("attn",), tau=3, draws=1, layers=1)
    site = "blocks.1.hook_attn_out"
    acts = collect(model, problems.tokens, site)[site]
    row, variance = found.table()[1], (acts - acts.mean(0)).square().sum()
    basis = logit_filter(model, problems.numerals, "high", 3).basis
    assert row["variance"] == pytest.approx(float(((acts - acts.mean(0)) @ basis).square().sum() / variance))
    drawn = covariance(acts)(Ablate(Subspace(basis)).at(site, pos=-1), 0)
    right = (logits_with(model, problems.tokens, drawn)[:, -1].argmax(-1) == problems.answers).double()
    assert torch.equal(found.controls["covariance"]["high", "attn"]["accuracy"][0], right)
    assert "covariance" not in filter_effects(model, problems, tau=3, draws=1, controls=("random",)).table()[1]
    subspace = logit_filter(model, problems.numerals, "high", 3)
    logits = logits_with(model, problems.tokens, Ablate(subspace).at("blocks.1.hook_attn_out", pos=-1))[:, -1]
    loss = torch.nn.functional.cross_entropy(logits, problems.answers, reduction="none")
    assert torch.allclose(found.filtered["high", "attn"]["loss"], loss, atol=1e-9)
    assert torch.equal(found.filtered["high", "attn"]["accuracy"], (logits.argmax(-1) == problems.answers).double())
