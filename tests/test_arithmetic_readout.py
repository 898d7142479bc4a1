"""Number logits and their periods, wrong answers, and addition along a line."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_ablate import toys
from mi_ablate.arithmetic.neuron_level.errors import AnswerErrors, answer_errors
from mi_ablate.arithmetic.neuron_level.lines import line_addition
from mi_ablate.arithmetic.neuron_level.readout import (
    logit_spectrum,
    neuron_number_logits,
    number_logits,
    spectrum_of,
)
from mi_ablate.arithmetic.problem_sets.asking import Asked
from mi_ablate.arithmetic.problem_sets.toy_problems import problems_of
from mi_ablate.arithmetic.representation._periods import off_bin, on_bin_count, power_of
from models import logits_with, tiny
from number_parts import draw, sums


@given(v=st.integers(4, 60), seed=st.integers(0, 100))
def test_the_energies_of_the_periods_add_up_to_that_of_the_curve(v: int, seed: int) -> None:
    y = draw(v, 3, seed=seed) + 2
    periods, power = power_of(y)
    assert torch.allclose(power.sum(0), ((y - y.mean(0)) ** 2).sum(0))
    assert float(periods[0]) == v
    assert len(periods) == v // 2


@pytest.mark.parametrize("v", [100, 200, 360])
def test_period_2_is_there_for_even_counts(v: int) -> None:
    found = spectrum_of((-1.0) ** torch.arange(v)[None] + 0.03 * torch.arange(v), periods=(2,))
    assert float(found.top) == 2.0
    assert float(found.power[-1]) > 0.999
    masked = torch.fft.fft((-1.0) ** torch.arange(v))[torch.fft.fftfreq(v) > 0]  # what the published mask keeps of it
    assert masked.abs().max() < 1e-4


def test_the_line_is_taken_away_and_told() -> None:
    x = torch.arange(200).double()
    curves = torch.stack([3 * torch.cos(2 * math.pi * x / 10) - 0.5 * x, torch.cos(2 * math.pi * x / 5) + 4 * x])
    found = spectrum_of(curves)
    assert found.top.tolist() == [10.0, 5.0]
    assert torch.allclose(found.slope, torch.tensor([-0.5, 4.0]).double(), atol=2e-3)
    assert found.falling == 0.5
    periods, power = power_of(curves.T)
    assert periods[power.argmax(0)].tolist() == [
        200.0,
        200.0,
    ]  # with the line left in, the longest period is the strongest


def test_a_period_between_two_bins_is_warned_of() -> None:
    curve = torch.cos(2 * math.pi * torch.arange(199) / 10)[None]
    with pytest.warns(UserWarning, match=r"199 numbers have the periods 199 / k, and none of 2, 5, 10, 100"):
        spread = spectrum_of(curve)
    whole = spectrum_of(torch.cos(2 * math.pi * torch.arange(200) / 10)[None])
    assert float(spread.power.max()) < 0.97 < 0.999 < float(whole.power.max())
    assert float(spread.top) == pytest.approx(199 / 20)
    assert off_bin(200, (2, 5, 10, 100, 2.5)) == []
    assert off_bin(361, (2, 361)) == [2]
    assert on_bin_count(199, (2, 5, 10, 100)) == 100
    assert on_bin_count(99, (100,)) is None
    with pytest.raises(ValueError, match="A spectrum takes four or more consecutive numbers"):
        spectrum_of(draw(2, 3))


def test_noise_has_no_common_period_and_shuffling_takes_a_planted_one_away() -> None:
    noise = spectrum_of(draw(400, 100), periods=())
    assert (
        noise.power[1:-1] * 50 - 1
    ).abs().max() < 0.3  # the line takes of the longest period; period 2 is half a bin
    assert max(share for share, _ in noise.shares().values()) < 0.07
    planted = spectrum_of(draw(50, 100) + 2 * torch.cos(2 * math.pi * torch.arange(100) / 10))
    row = planted.table()[0]
    assert row["period"] == 10
    assert row["strongest in"] == 1
    assert row["power"] > 10 * row["shuffled power"]
    assert row["shuffled in"] < 0.1
    assert "strongest period 10 in 1.00" in repr(planted)


def test_flat_curves_have_no_period_and_do_not_count_as_the_longest_one() -> None:
    """A dead neuron adds nothing to any number; so does a line, once it is taken away."""
    wave = torch.cos(2 * math.pi * torch.arange(100) / 10)[None]
    flat = torch.stack([torch.zeros(100), torch.full((100,), 3.7), 0.3 * torch.arange(100) - 5])
    found, alone = spectrum_of(torch.cat([flat.double(), wave.double()])), spectrum_of(wave)
    assert found.top.isnan().tolist() == [True, True, True, False]
    assert list(found.shares()) == [10.0]
    assert found.shares()[10.0][0] == 1.0
    assert torch.allclose(found.power, alone.power, atol=1e-6)
    none = spectrum_of(flat)
    assert none.shares() == {}
    assert "strongest period nan in 0.00" in repr(none)
    for wrong in (torch.zeros(0, 100), torch.full((2, 100), float("nan"))):
        with pytest.raises(ValueError, match="one or more, all finite; these are"):
            spectrum_of(wrong)


def test_rows_of_a_spectrum_have_intervals_that_hold_the_value() -> None:
    curves = draw(60, 100) + 0.5 * torch.cos(2 * math.pi * torch.arange(100) / 10)
    found, more = spectrum_of(curves), spectrum_of(curves.repeat(9, 1))
    for row in found.table():
        assert row["low"] <= row["power"] <= row["high"]
        assert row["in low"] <= row["strongest in"] <= row["in high"]
        assert 0 <= row["low"] < row["high"] <= 1
    assert (more.interval[1] - more.interval[0]).mean() < 0.5 * (found.interval[1] - found.interval[0]).mean()
    assert math.isnan(spectrum_of(curves[:1]).table()[0]["low"])


@pytest.mark.compat
def test_number_logits_are_those_of_the_numbers_at_the_answer() -> None:
    model, problems = tiny(), sums()
    whole = logits_with(model, problems.tokens)[:, -1]
    assert torch.equal(number_logits(model, problems, batch_size=4), whole[:, :9])
    assert torch.equal(number_logits(model, problems, range(2, 6)), whole[:, 2:6])
    with pytest.raises(ValueError, match="no single tokens"):
        number_logits(model, problems, range(20))
    with pytest.warns(UserWarning, match="9 numbers have the periods"):
        assert len(logit_spectrum(model, problems).top) == 25


def test_the_frequencies_of_a_modular_model_are_found_in_its_logits() -> None:
    toy = toys.load("nanda113")
    found = logit_spectrum(toy.model, problems_of(toy)[::29])
    strong = sorted(round(113 / row["period"]) for row in found.table()[:3])
    assert strong == [1, 8, 21]
    assert found.table()[2]["power"] > 5 * found.table()[2]["shuffled power"]


@pytest.mark.compat
@pytest.mark.parametrize("norm", ["skipped", "frozen"])
def test_neuron_logits_are_by_hand_and_hold_no_bias(norm: str) -> None:
    """The published code adds lm_head's bias to every neuron's logits."""
    model, problems = tiny(), sums()
    assert model.unembed.b_U.abs().max() > 0.1
    found = neuron_number_logits(model, problems, [(1, 4), (0, 2)], norm=norm, batch_size=6)
    with torch.no_grad():
        _, cache = model.run_with_cache(problems.tokens)
        for i, (layer, unit) in enumerate([(1, 4), (0, 2)]):
            post = cache[f"blocks.{layer}.mlp.hook_post"][:, -1, unit]
            row = int(post.argmax())
            w = post[row] * model.blocks[layer].mlp.W_out[unit]
            if norm == "frozen":
                w = (w - w.mean()) / cache["ln_final.hook_scale"][row, -1] * model.ln_final.w
            assert torch.allclose(found.logits[i], w @ model.unembed.W_U[:, :9], atol=1e-9)
            assert int(found.prompt[i]) == row
    before = found.logits
    model = tiny(weights={"unembed.b_U": model.unembed.b_U.detach() + draw(11)})
    assert torch.equal(neuron_number_logits(model, problems, [(1, 4), (0, 2)], norm=norm, batch_size=6).logits, before)
    assert found.spectrum(()).of == "neurons"
    with pytest.raises(ValueError, match=r"is 'skipped' .* or 'frozen'"):
        neuron_number_logits(model, problems, [(0, 0)], norm="live")


def answered(differences: list[int], not_numbers: int = 0) -> Asked:
    """Answers to 25 * k problems that are wrong by these differences, then no numbers, then right."""
    problems = sums(200, 9)[torch.arange(200) % 81]
    given = problems.answers + 40
    problems = problems[torch.arange(200)]
    problems.inputs["answer"] = problems.inputs["answer"] + 40
    given[: len(differences)] += torch.tensor(differences, dtype=torch.int64)
    given[len(differences) : len(differences) + not_numbers] = 198  # "+"
    known = {"problems": problems, "given": given, "correct": given == problems.answers + 40}
    others = {field.name: torch.ones(200).double() for field in dataclasses.fields(Asked) if field.name not in known}
    return Asked(**known, **others)


def test_the_differences_of_wrong_answers_are_counted() -> None:
    found = answer_errors(answered([-10] * 40 + [10] * 28 + [3, -7, 20, -20] * 5, not_numbers=6))
    assert (found.n, found.n_right, found.n_not_numbers, len(found.differences)) == (200, 200 - 94, 6, 88)
    assert found.share(-10) == 40 / 88
    assert found.share(10) == 28 / 88
    assert found.multiples_of_ten == 78 / 88
    assert found.too_small == 50 / 88
    row = found.table()[0]
    assert (row["difference"], row["count"]) == (-10, 40)
    assert row["low"] < 40 / 88 < row["high"]
    assert "88 wrong" not in repr(found)
    assert "94 of 200 wrong, 6 of them no numbers; of the numbers -10 in 0.455" in repr(found)


def test_symmetric_errors_pass_the_chi_squared_test_and_forgotten_carries_do_not() -> None:
    even = answer_errors(answered([-10, 10] * 30 + [1, -1] * 10))
    assert even.symmetry() == {"chi2": 0.0, "degrees": 2, "p": 1.0}
    carries = answer_errors(answered([-10] * 60))
    assert carries.symmetry()["p"] < 1e-6
    mixed = answer_errors(answered([-10] * 15 + [10] * 5 + [1, 2, 3, -4]))
    assert math.isclose(mixed.symmetry()["chi2"], 10**2 / 20 + (3 - 1) ** 2 / 4)
    assert mixed.symmetry()["degrees"] == 2  # rare distances together
    drawn = [
        answer_errors(
            answered((torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(s)) * 20 - 10).tolist())
        )
        for s in range(40)
    ]
    assert sum(one.symmetry()["p"] < 0.05 for one in drawn) <= 6
    with pytest.raises(ValueError, match="9 wrong numbers: their symmetry needs 10 or more"):
        answer_errors(answered([-10] * 9)).symmetry()


def test_errors_of_a_modulus_go_the_shorter_way_round_and_years_are_off_by_the_nearest_right_one() -> None:
    one = answered([100, -5])
    found = answer_errors(dataclasses.replace(one, problems=dataclasses.replace(one.problems, modulus=103)))
    assert found.differences.tolist() == [-3, -5]
    later = one.problems.numerals.values > one.problems.inputs["answer"][:, None]
    found = answer_errors(dataclasses.replace(one, problems=dataclasses.replace(one.problems, accepted=later)))
    assert found.differences[1] == -5 - 1  # right is every number above, so 1 more is missing


def test_all_wrong_and_all_right_have_tables_too() -> None:
    every = answer_errors(answered([3] * 200))
    assert isinstance(every, AnswerErrors)
    assert (every.n_right, every.share(3)) == (0, 1.0)
    assert repr(answer_errors(answered([]))) == "AnswerErrors(0 of 200 wrong, 0 of them no numbers)"


def test_an_exact_line_adds_and_a_line_with_the_published_r2_does_not() -> None:
    values = torch.arange(100)
    line = values[:, None].double() * draw(1, 64) + draw(1, 64, seed=1)
    exact = line_addition(line, values, 1)
    with pytest.raises(ValueError, match="whole numbers are needed, not decimals"):
        line_addition(line, values / 2, 1)
    assert exact.accuracy() == 1.0
    assert exact.left_out_r2 > 1 - 1e-9
    rough = line_addition(line + draw(100, 64, seed=2) * 12, values, 2)
    assert 0.99 < rough.r2 < 0.9999
    assert rough.accuracy() < 0.5
    assert rough.accuracy(100, left_out=True) <= rough.accuracy(100) + 0.05
    noise = line_addition(draw(100, 300, seed=3), values, 50)
    assert noise.r2 > 0.3  # fifty components fit noise,
    assert noise.left_out_r2 < 0  # and a number left out shows it
    assert [row["read by"] for row in noise.table()] == ["line", "number left out"]
    assert "100 numbers, 50 components" in repr(noise)


def test_leaving_a_number_out_in_closed_form_is_leaving_it_out() -> None:
    states, values = draw(20, 8, seed=4), torch.arange(20)
    found = line_addition(states, values, 8)
    for i in (0, 7, 19):
        others = torch.arange(20) != i
        design = torch.cat([states, torch.ones(20, 1).double()], dim=1)
        coef = torch.linalg.lstsq(design[others], values[others].double()[:, None]).solution
        assert torch.allclose(design[i] @ coef, found.left_out[i], atol=1e-8)
    with pytest.raises(ValueError, match="fewer components than numbers less one"):
        line_addition(states, values, 19)
    with pytest.raises(ValueError, match="No pair of these numbers has a sum of at most 9"):
        line_addition(states, values + 10, 8).accuracy(9)
