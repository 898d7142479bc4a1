"""Neurons: the exact fit of pre-activations, effects against their slow definitions, and kept neurons."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate import Ablate, helix, toys
from mi_ablate.arithmetic.circuit.components import component_effects
from mi_ablate.arithmetic.neuron_level._final_norm import FinalNorm, final_norm, gains
from mi_ablate.arithmetic.neuron_level._neuron_sites import neurons_of, written
from mi_ablate.arithmetic.neuron_level.kept_neurons import fitted_accuracy
from mi_ablate.arithmetic.neuron_level.neuron_effects import (
    NeuronEffects,
    neuron_attribution,
    neuron_direct_effects,
    neuron_patching,
)
from mi_ablate.arithmetic.neuron_level.neurons import NeuronSums, fit_neurons, neuron_design, neuron_fits
from mi_ablate.arithmetic.problem_sets.pairing import pairs
from mi_ablate.arithmetic.problem_sets.toy_problems import problems_of
from mi_ablate.model import collect
from models import family, gpt2_bridge, has_bridge, has_hooked_transformer, logits_with, tiny
from number_parts import draw, sums


def grid(n: int = 100) -> dict[str, Tensor]:
    a, b = (x.flatten() for x in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
    return {"a": a, "b": b, "answer": a + b}


GRID = grid()


@given(seed=st.integers(0, 100))
def test_the_parameters_of_the_paper_come_back_exactly(seed: int) -> None:
    """c_T, d_T, slopes and constant of eq. 3 as planted, for every term and period."""
    generator = torch.Generator().manual_seed(seed)
    inputs, periods = grid(20), torch.tensor([5.0, 10.0, 20.0]).double()
    amplitude = 0.2 + torch.rand(3, 3, 4, generator=generator, dtype=torch.float64)
    phase = torch.rand(3, 3, 4, generator=generator, dtype=torch.float64) * periods[None, :, None]
    acts = 3 + torch.outer(inputs["a"].double(), draw(4, seed=seed)) - 0.1 * inputs["b"].double()[:, None]
    for i, t in enumerate(("a", "b", "answer")):
        angle = 2 * math.pi * (inputs[t].double()[:, None, None] - phase[i]) / periods[:, None]
        acts = acts + (amplitude[i] * angle.cos()).sum(1)
    found = fit_neurons(acts, inputs, (5, 10, 20))
    for i, t in enumerate(("a", "b", "answer")):
        c, d = found.circles(t)
        assert torch.allclose(c, amplitude[i], atol=1e-8)
        turned = torch.remainder(d - phase[i] + periods[:, None] / 2, periods[:, None]) - periods[:, None] / 2
        assert turned.abs().max() < 1e-6
    assert torch.allclose(found.coef[found.labels.index("a:linear")], draw(4, seed=seed), atol=1e-9)
    assert (1 - found.r2).max() < 1e-12
    assert found.nrmse.max() < 1e-7
    assert torch.allclose(found.predict(inputs), acts, atol=1e-8)
    squares = (amplitude**2).sum(1)
    assert torch.allclose(found.answer_fraction("amplitude"), squares[2] / squares.sum(0), atol=1e-8)


def test_the_design_has_24_independent_columns_with_the_constant_and_no_column_twice() -> None:
    design = neuron_design(GRID)
    with_constant = torch.cat([design.matrix, torch.ones(10000, 1).double()], dim=1)
    assert torch.linalg.matrix_rank(with_constant) == 24
    used = design.matrix[:, design.matrix.norm(dim=0) > 0]
    scaled = (used - used.mean(0)) / (used - used.mean(0)).norm(dim=0)
    assert scaled.shape[1] == 23
    assert torch.linalg.cond(scaled) < 4
    with pytest.raises(ValueError, match="values of 'a', 'b' or 'answer' are needed"):
        neuron_design({"c": GRID["a"]})


def test_batches_do_not_matter_and_shuffled_inputs_explain_what_noise_explains() -> None:
    acts = draw(10000, 30)
    whole, sums_of = fit_neurons(acts, GRID), NeuronSums(GRID)
    for rows in torch.randperm(10000, generator=torch.Generator().manual_seed(1)).split(3333):
        sums_of.update(acts[rows].float(), rows)
    parts = sums_of.result()
    assert torch.allclose(whole.coef, parts.coef, atol=1e-6)
    for name in ("r2", "shuffled_r2", "nrmse", "spread", "sum_means"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-5), name
    assert abs(float(whole.r2.mean()) - 23 / 9999) < 5e-4  # 23 columns fit so much of nothing
    assert abs(float(whole.shuffled_r2.mean()) - 23 / 9999) < 5e-4
    expected = acts.std(0, correction=0) / (acts.max(0).values - acts.min(0).values)
    assert torch.allclose(whole.nrmse, expected * (1 - whole.r2).sqrt())
    constant = fit_neurons(torch.ones(10000, 1), GRID)
    assert constant.r2.isnan().all()
    again = NeuronSums(GRID)
    again.update(acts[:9], torch.arange(9))
    with pytest.raises(ValueError, match="9 rows were fed of 10000 prompts; every prompt once"):
        again.result()
    with pytest.raises(ValueError, match="1 rows were fed of 1 prompts; every prompt once is needed, two at least"):
        fit_neurons(acts[:1], {"a": GRID["a"][:1]})
    with pytest.raises(ValueError, match="3 rows of pre-activations, inputs of 10000 prompts: one row a prompt"):
        fit_neurons(acts[:3], GRID)


def test_a_neuron_without_circles_has_no_answer_fraction_and_no_period_and_not_a_share_of_rounding() -> None:
    inputs, acts = grid(10), torch.stack([grid(10)["a"], grid(10)["answer"] ** 2, torch.ones(100).long()], dim=1)
    for x in (acts.double(), acts.float() * 0.37 + 1):
        found = fit_neurons(x, inputs, (5, 10))
        for rule in ("variance", "amplitude"):
            assert found.answer_fraction(rule).isnan().tolist() == [True, False, True], rule
        periods, shares = found.dominant_periods()
        assert periods.isnan().tolist() == shares.isnan().tolist() == [True, False, True]


def test_as_many_columns_as_prompts_fit_anything_and_a_warning_says_so() -> None:
    few = {name: x[:12] for name, x in grid(10).items()}
    with pytest.warns(UserWarning, match="12 prompts and 20 columns beside the constant: any neuron is fitted exactly"):
        found = fit_neurons(draw(12, 2), few, (5, 10, 20))
    assert found.r2.min() > 0.9
    with pytest.warns(UserWarning, match="any neuron is fitted exactly, shuffled or not"):
        fit_neurons(draw(2, 2), {name: x[:2] for name, x in few.items()})


def test_each_neuron_equals_an_ordinary_least_squares_of_its_own() -> None:
    acts = draw(400, 5, seed=3) + helix(torch.arange(400) % 20).matrix @ draw(9, 5)
    inputs = grid(20)
    found, matrix = fit_neurons(acts, inputs), neuron_design(inputs).matrix
    matrix = torch.cat([matrix, torch.ones(400, 1).double()], dim=1)
    for j in range(5):
        predicted = matrix @ torch.linalg.lstsq(matrix, acts[:, j : j + 1], driver="gelsd", rcond=1e-6).solution
        assert torch.allclose(predicted[:, 0], found.predict(inputs)[:, j], atol=1e-8)
    with pytest.raises(ValueError, match="The fit has the columns"):
        found.predict({"a": inputs["a"]})
    with pytest.raises(ValueError, match="The fit has no term 'c'"):
        found.circles("c")
    with pytest.raises(ValueError, match="is 'variance' or 'amplitude'"):
        found.answer_fraction("size")


def test_the_answer_fraction_is_all_none_or_a_third() -> None:
    a, b, answer = (helix(GRID[t]).matrix[:, 1:] @ draw(8, 3, seed=4) for t in ("a", "b", "answer"))
    slope = GRID["a"].double()[:, None] * 5
    for rule in ("variance", "amplitude"):
        assert fit_neurons(answer + slope, GRID).answer_fraction(rule).min() > 1 - 1e-9  # linear terms are left out
        assert fit_neurons(a + b, GRID).answer_fraction(rule).max() < 1e-9
        assert (fit_neurons(a + b + answer, GRID).answer_fraction(rule) - 1 / 3).abs().max() < 1e-9
    noise = fit_neurons(draw(10000, 200, seed=5), GRID)
    assert (
        abs(float(noise.answer_fraction(shuffled=True).mean()) - 1 / 3) < 0.05
    )  # a little less: sin T = 100 leans on the line


def test_the_dominant_period_comes_from_per_sum_means_not_from_an_fft_over_unsorted_sums() -> None:
    """The published code takes the FFT of the neuron over the flattened grid, where sums jump back every 100 prompts."""
    planted = [50.0, 10.0, 5.0, 2.0, 100 / 7]
    acts = torch.stack([torch.cos(2 * math.pi * (GRID["answer"] - 3).double() / T) for T in planted], dim=1)
    found = fit_neurons(acts + 0.02 * GRID["answer"].double()[:, None], GRID)
    periods, share = found.dominant_periods()
    assert torch.allclose(periods, torch.tensor(planted).double())
    assert share.min() > 0.95
    order = torch.randperm(10000, generator=torch.Generator().manual_seed(2))
    mixed = {name: x[order] for name, x in GRID.items()}
    assert torch.allclose(fit_neurons(acts[order], mixed).dominant_periods()[0], torch.tensor(planted).double())
    power = torch.fft.rfft(acts[order], dim=0)[1:].abs() ** 2
    naive = 10000 / (power.argmax(0) + 1)
    assert naive.tolist() != planted
    assert (power.max(0).values / power.sum(0)).max() < 0.01
    gaps = {name: x[GRID["answer"] % 7 > 0] for name, x in GRID.items()}
    with pytest.raises(ValueError, match="a spectrum over them needs four or more without a gap"):
        fit_neurons(acts[GRID["answer"] % 7 > 0], gaps).dominant_periods()


@pytest.mark.compat
def test_fits_of_a_model_are_those_of_its_collected_preactivations() -> None:
    model, problems = tiny(), sums()
    chosen, seen = [(1, 3), (0, 23), (1, 0)], []
    found = neuron_fits(
        model, problems, chosen, periods=(2, 5), batch_size=7, progress=lambda i, n: seen.append((i, n))
    )
    acts = collect(model, problems.tokens, ["blocks.0.mlp.hook_pre", "blocks.1.mlp.hook_pre"])
    picked = torch.stack([acts[f"blocks.{layer}.mlp.hook_pre"][:, i] for layer, i in chosen], dim=1)
    direct = fit_neurons(picked, problems.inputs, (2, 5))
    assert torch.allclose(found.coef, direct.coef)
    assert torch.allclose(found.shuffled_r2, direct.shuffled_r2)
    assert seen[-1] == (25, 25)
    assert [(row["layer"], row["neuron"]) for row in found.table()] == chosen
    assert "3 neurons, n 25: median r2" in repr(found)
    assert len(neuron_fits(model, problems, layers=1).neurons) == 24
    with pytest.raises(IndexError, match="Neuron 24 of layer 0 is not there: the model has layers 0 to 1 with 24 each"):
        neuron_fits(model, problems, [(0, 24)])
    with pytest.raises(ValueError, match="The same neuron is given twice"):
        neuron_fits(model, problems, [(0, 2), (0, 2)])
    with pytest.raises(ValueError, match=r"pairs \(layer, neuron\) are needed"):
        neuron_fits(model, problems, [])


def slow_direct(model, pair, chosen: Tensor, norm: str) -> Tensor:
    """The definition: two whole passes a neuron, its change added to the last residual stream by a hook."""
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.cfg.n_layers)]
    clean, corrupted = (collect(model, one.tokens, names) for one in (pair.clean, pair.corrupted))
    scale = None
    if norm == "frozen" and model.cfg.normalization_type:
        scale = collect(model, pair.corrupted.tokens, "ln_final.hook_scale")["ln_final.hook_scale"]
    found, rows = [], torch.arange(len(pair))
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    for layer, unit in chosen.tolist():
        name = f"blocks.{layer}.mlp.hook_post"
        change = (clean[name] - corrupted[name])[:, unit, None] * model.blocks[layer].mlp.W_out[unit]

        def add(x: Tensor, hook=None, change: Tensor = change) -> Tensor:
            return torch.cat([x[:, :-1], x[:, -1:] + change[:, None]], dim=1)

        hooks = [(last, add)]
        if scale is not None:
            hooks += Ablate(None, scale).at("ln_final.hook_scale", pos=-1)
        after = logits_with(model, pair.corrupted.tokens, hooks)[:, -1]
        before = logits_with(model, pair.corrupted.tokens)[:, -1]
        found.append((after - before)[rows, pair.clean.answers].mean())
    return torch.stack(found).detach()


@pytest.mark.compat
@pytest.mark.parametrize("norm", ["frozen", "live"])
@pytest.mark.parametrize("kind", ["LN", "RMS", None])
def test_direct_effects_equal_two_full_passes_a_neuron(norm: str, kind: str | None) -> None:
    if kind == "RMS":
        if not has_hooked_transformer():
            pytest.skip("the small RMSNorm model is a HookedTransformer")
        model = family("gated MLP, grouped heads")
    else:
        model = tiny(norm=kind)
    pair, chosen = pairs(sums(), 9), torch.tensor([[1, 5], [0, 0], [0, 23], [1, 2]])
    found = neuron_direct_effects(model, pair, chosen, norm=norm, batch_size=4)
    assert (found.mean - slow_direct(model, pair, chosen, norm)).abs().max() < 1e-9
    assert found.mean.abs().max() > 1e-3
    assert f"direct, {norm} norm, 4 neurons, 9 pairs" in repr(found)


@pytest.mark.skipif(not has_bridge(), reason="needs a bridge")
def test_direct_effects_in_float32_on_a_bridge() -> None:
    model = gpt2_bridge()
    problems = sums(60, 6)
    pair, chosen = pairs(problems, 6), torch.tensor([[1, 5], [0, 60]])
    for norm in ("frozen", "live"):
        found = neuron_direct_effects(model, pair, chosen, norm=norm)
        assert (found.mean - slow_direct(model, pair, chosen, norm)).abs().max() < 1e-4


def test_frozen_effects_add_up_and_live_ones_do_not() -> None:
    model, pair = tiny(), pairs(sums(), 5)
    x = collect(model, pair.corrupted.tokens, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"]
    norm = final_norm(model, pair.corrupted.tokens, x)
    rows, changes = draw(2, 16), draw(5, 2, seed=2)
    both = changes @ rows
    one = torch.ones(5, 1).double()
    for kind, same in (("frozen", True), ("live", False)):
        parts = gains(norm, x, changes, rows, pair.clean.answers, kind).sum(1)
        whole = torch.stack(
            [
                gains(norm, x[i : i + 1], one[:1], both[i : i + 1], pair.clean.answers[i : i + 1], kind)[0, 0]
                for i in range(5)
            ]
        )
        assert torch.allclose(parts, whole) == same
    with pytest.raises(ValueError, match=r"is 'frozen' .the scale of the unchanged run. or 'live'"):
        gains(norm, x, changes, rows, pair.clean.answers, "loose")
    with pytest.raises(ValueError, match=r"is 'frozen' .the corrupted run's scale. or 'live'"):
        neuron_direct_effects(model, pair, [(0, 0)], norm="loose")


def test_a_readout_of_another_kind_is_refused() -> None:
    model, problems = tiny(output_logits_soft_cap=3.0) if has_hooked_transformer() else None, sums()
    if model is None:
        pytest.skip("the capped model is a HookedTransformer")
    with pytest.raises(ValueError, match="The logits are not those of a final LN and W_U"):
        neuron_direct_effects(model, pairs(problems, 4), [(0, 0)])
    assert isinstance(
        final_norm(
            tiny(),
            problems.tokens,
            collect(tiny(), problems.tokens, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"],
        ),
        FinalNorm,
    )


@pytest.mark.compat
def test_attribution_is_the_gradient_times_the_difference() -> None:
    """Exact where the model is linear above the neuron; against central differences elsewhere."""
    model, pair = tiny(), pairs(sums(), 7)
    found = neuron_attribution(model, pair, batch_size=3)
    site, unit, h = "blocks.0.mlp.hook_post", 4, 1e-5
    clean, corrupted = (collect(model, x.tokens, site)[site][:, unit] for x in (pair.clean, pair.corrupted))
    rows = torch.arange(7)
    sides = []
    for step in (h, -h):
        hooks = Ablate(None, (corrupted + step)[:, None]).at(site, pos=-1, unit=unit)
        sides.append(logits_with(model, pair.corrupted.tokens, hooks)[rows, -1, pair.clean.answers])
    expected = ((sides[0] - sides[1]) / (2 * h) * (clean - corrupted)).detach()
    at = found.neurons.tolist().index([0, unit])
    assert abs(float(found.mean[at] - expected.mean())) < 1e-7
    assert abs(float(found.error[at] - expected.std() / 7**0.5)) < 1e-7
    linear = neuron_attribution(tiny(norm=None), pair, layers=1)
    total = neuron_patching(tiny(norm=None), pair, linear.neurons)
    assert torch.allclose(linear.mean, total.mean, atol=1e-9)
    assert torch.allclose(linear.mean, neuron_direct_effects(tiny(norm=None), pair, linear.neurons).mean, atol=1e-9)
    for parameter in model.parameters():
        assert parameter.grad is None


def test_attribution_agrees_with_patching_where_neurons_matter_and_has_a_control() -> None:
    toy = toys.load("add97")
    pair = pairs(problems_of(toy), 40)
    found = neuron_attribution(toy.model, pair)
    total = neuron_patching(toy.model, pair, found.top(25))
    assert total.correlation(found) > 0.7
    assert found.shuffled.abs().mean() < 0.7 * found.mean.abs().mean()
    direct = neuron_direct_effects(toy.model, pair)
    few = direct.carrying(0.8)
    assert 5 < len(few) < 500
    assert len(direct.table(3)) == 3
    assert abs(direct.table(1)[0]["effect"]) == float(direct.mean.abs().max())
    with pytest.raises(ValueError, match="there are effects of 25 neurons"):
        total.top(26)
    with pytest.raises(ValueError, match="the other lacks"):
        found.correlation(total)
    none = NeuronEffects("direct", "live", direct.neurons, -direct.mean.abs(), direct.error, direct.shuffled, 1)
    with pytest.raises(ValueError, match="needs a sum above 0"):
        none.carrying()


@pytest.mark.parametrize("norm", ["live", "frozen"])
def test_direct_effects_of_neurons_and_of_components_are_one_measure(norm: str) -> None:
    """The closed form and the model's own modules: of a frozen norm neurons add up to their MLP, one neuron is one in both."""
    model, given = tiny(), pairs(sums(), 8)
    sizes = model.blocks[1].mlp.W_out.detach().clone()
    sizes[torch.arange(24) != 5] = 0
    alone = tiny(weights={"blocks.1.mlp.W_out": sizes})
    one = component_effects(alone, given, "MLP 1", norm=norm, draws=0).direct[0].mean()
    assert torch.allclose(neuron_direct_effects(alone, given, [(1, 5)], norm=norm).mean[0], one, atol=1e-12)
    whole = component_effects(model, given, "mlps", norm=norm, draws=0).direct.mean(1)
    parts = neuron_direct_effects(model, given, norm=norm).mean.unflatten(0, (2, 24)).sum(1)
    assert torch.allclose(parts, whole, atol=1e-10) == (norm == "frozen")


@pytest.mark.parametrize("way", [neuron_attribution, neuron_direct_effects])
def test_the_control_of_another_pair_does_not_depend_on_the_batches(way) -> None:
    model, given = tiny(), pairs(sums(), 8)
    whole, parts, ones = (way(model, given, batch_size=size) for size in (8, 3, 1))
    for other in (parts, ones):
        assert torch.allclose(whole.shuffled, other.shuffled, atol=1e-12)
        assert torch.allclose(whole.error, other.error, atol=1e-12)
    assert (whole.shuffled - whole.mean).abs().max() > 1e-3
    assert way(model, given[:1]).shuffled.isnan().all()


def test_patched_neurons_have_the_control_of_another_pair() -> None:
    model, given, neurons = tiny(), pairs(sums(), 8), [(0, 3), (1, 20)]
    found, order = neuron_patching(model, given, neurons), torch.arange(-1, 7)
    swapped = replace(given, clean=replace(given.clean, tokens=given.clean.tokens[order]))
    assert torch.allclose(found.shuffled, neuron_patching(model, swapped, neurons).mean, atol=1e-12)
    assert (found.shuffled - found.mean).abs().max() > 1e-4
    assert neuron_patching(model, given[:1], neurons).shuffled.isnan().all()


def test_kept_neurons_with_fits_do_as_well_as_true_values_and_shuffled_fits_do_not() -> None:
    toy = toys.load("add97")
    problems = problems_of(toy)
    order = neuron_attribution(toy.model, pairs(problems, 40)).top(300)
    found = fitted_accuracy(toy.model, problems[::41], neuron_fits(toy.model, problems[::2], order), ks=(20, 300))
    at = {name: float(x[-1].mean()) for name, x in found.accuracy.items()}
    assert at["true"] > 0.95
    assert at["fitted"] > 0.95
    assert at["live"] > 0.5 > at["random"]
    assert at["shuffled"] < 0.1
    assert float(found.accuracy["fitted"][0].mean()) < 0.5  # a curve, not a constant
    rows = found.table()
    assert [row["method"] for row in rows[:2]] == ["whole model", "empty"]
    assert (len(rows), rows[1]["ld"], rows[0]["accuracy"]) == (12, 0.0, 1.0)
    assert "accuracy at k = 300" in repr(found)
    with pytest.raises(ValueError, match="1 to 300 neurons, and some of"):
        fitted_accuracy(toy.model, problems, neuron_fits(toy.model, problems[::20], order), ks=(301,))


@pytest.mark.compat
def test_true_values_of_all_neurons_are_the_model_itself() -> None:
    model, problems = tiny(), sums()
    fits = neuron_fits(model, problems, periods=(2, 5))
    found = fitted_accuracy(model, problems, fits, ks=(48,), methods=("live", "true", "fitted"))
    assert torch.allclose(found.logit["true"][0], found.intact["logit"], atol=1e-9)
    assert torch.allclose(found.logit["live"][0], found.intact["logit"], atol=1e-9)
    assert not torch.allclose(found.logit["fitted"][0], found.intact["logit"], atol=1e-3)
    hooks = Ablate(None, fits.predict(problems.inputs)[:, :24]).at("blocks.0.mlp.hook_pre", pos=-1)
    hooks += Ablate(None, fits.predict(problems.inputs)[:, 24:]).at("blocks.1.mlp.hook_pre", pos=-1)
    by_hand = logits_with(model, problems.tokens, hooks)[torch.arange(25), -1, problems.answers]
    assert torch.allclose(found.logit["fitted"][0], by_hand, atol=1e-9)


def test_what_a_neuron_writes_is_its_row_of_w_out() -> None:
    model = tiny()
    assert torch.allclose(written(model, neurons_of(model, [(1, 7)])), model.blocks[1].mlp.W_out[7:8].detach())
