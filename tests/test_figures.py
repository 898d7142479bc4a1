"""Figures hold the numbers they are given, refuse what they cannot draw, and cost nothing to import."""

import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError

from mi_ablate.curves import Curve
from mi_ablate.figures import answer_circle, attention, heads, heat, removal, spectrum, training_curves
from mi_ablate.figures._style import PALETTE
from recorded import failed, record

HOSTILE = "</script><script>alert(1)</script>"


def curve(ablation="zero", metric="accuracy", start=1.0):
    values = torch.tensor([start, 0.97, 0.6, 0.1], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.9, 0.8, 0.7], [1.0, 0.7, 0.4, 0.3]], dtype=torch.float64)
    pca = torch.tensor([[1.0, 0.95, 0.5, 0.2]], dtype=torch.float64)
    shares = torch.tensor([0.0, 0.3, 0.5, 0.8], dtype=torch.float64)
    removed = {"edited": shares, "covariance": shares / 2, "pca": shares * 1.1}
    controls = {"covariance": covariance, "pca": pca}
    return Curve(metric, (0, 2, 4, 6), values, controls, removed, ablation, ("blocks.0.hook_resid_post",), 10, "tail")


def named(figure, name):
    (trace,) = [t for t in figure.data if t.name == name]
    return trace


def test_removal_holds_the_numbers():
    figure = removal({"zero": curve()}, "A title")
    line = named(figure, "zero: k@95% = 2-3")
    assert list(line.x) == [0, 2, 4, 6]
    assert list(line.y) == [1.0, 0.97, 0.6, 0.1]
    assert [row[1] for row in line.customdata] == [0.0, 0.3, 0.5, 0.8]
    mean = named(figure, "zero, covariance (2 draws)")
    assert list(mean.y) == pytest.approx([1.0, 0.8, 0.6, 0.5])
    band = named(figure, "zero, covariance range")
    assert list(band.y) == [1.0, 0.9, 0.8, 0.7, 0.3, 0.4, 0.7, 1.0]
    assert band.legendgroup == mean.legendgroup
    assert named(figure, "zero, pca").line.dash == "dash"
    ring = named(figure, "zero, k@95%")
    assert (list(ring.x), list(ring.y)) == ([2], [0.97])
    assert figure.layout.title.text == "A title"
    assert "last k before the first fall below 95%" in figure.layout.legend.title.text.replace("<br>", " ")


def test_log_odds_have_no_threshold_because_a_share_of_them_means_nothing():
    figure = removal({"zero": replace(curve(), kind="log-odds")})
    assert "k@" not in " ".join(trace.name for trace in figure.data)
    assert "of clean" not in figure.layout.legend.title.text
    assert not figure.layout.shapes, "no line at 95 % of the clean value"


def test_two_drawn_controls_have_lines_of_their_own():
    drawn = curve()
    drawn.controls["within"] = drawn.controls["covariance"] / 2
    figure = removal({"zero": drawn})
    dashes = {named(figure, f"zero, {name} (2 draws)").line.dash for name in ("covariance", "within")}
    assert len(dashes) == 2


def test_removal_switches_to_the_variance():
    figure = removal({"zero": curve(), "mean": curve("mean")})
    to_k, to_variance = figure.layout.updatemenus[0].buttons
    for button in (to_k, to_variance):
        assert len(button.args[0]["x"]) == len(figure.data)
    for trace, x in zip(figure.data, to_k.args[0]["x"]):
        assert list(trace.x) == list(x)
    place = [t.name for t in figure.data].index("mean, covariance (2 draws)")
    assert list(to_variance.args[0]["x"][place]) == pytest.approx([0.0, 0.15, 0.25, 0.4])


def test_removal_has_a_colour_for_each_curve_and_no_ring_without_k():
    many = {f"curve {i}": curve() for i in range(8)}
    figure = removal(many, tau=1.5)
    lines = [t for t in figure.data if t.name.endswith("= none")]
    assert len(lines) == 8
    assert len({t.line.color for t in lines}) == 6
    assert not [t for t in figure.data if t.mode == "markers"]


def test_removal_says_what_it_needs():
    with pytest.raises(ValueError, match=r"no curve to draw: removal\(\{'zero'"):
        removal({})
    with pytest.raises(ValueError, match="accuracy, kl; draw one figure for each"):
        removal({"a": curve(), "b": curve(metric="kl")})
    with pytest.raises((TypeError, TypeCheckError)):
        removal(curve())


def test_curve_plots_itself():
    assert named(curve("mean").plot(), "mean: k@95% = 2-3").line.width == 2.5


def test_spectrum_parts_chosen_from_the_rest():
    figure = spectrum(torch.arange(1, 5), torch.tensor([0.1, 0.5, 0.3, 0.1]), chosen=[3, 2], title="Energy")
    chosen, rest = figure.data
    assert (list(chosen.x), list(chosen.text)) == ([2, 3], ["2", "3"])
    assert list(chosen.y) == pytest.approx([0.5, 0.3])
    assert list(rest.x) == [1, 4]
    assert len(spectrum([1, 2], [0.5, 0.5]).data) == 1
    with pytest.raises(ValueError, match=r"chosen has \[9\], which are not among the frequencies 1 .. 2"):
        spectrum([1, 2], [0.5, 0.5], chosen=[9])
    with pytest.raises(ValueError, match="2 frequencies but 1 shares"):
        spectrum([1, 2], [0.5])


def circle(p=7, k=3):
    angle = 2 * math.pi * k * torch.arange(p) / p
    return torch.stack([angle.cos(), angle.sin()], 1)


WRITES = [
    {
        "write": "+1",
        "accuracy": 0.99,
        "controls": {"shuffled labels": {"mean": 0.1, "low": 0.0, "high": 0.3}},
    },
    {"write": "+5", "accuracy": 0.97, "low": 0.9, "high": 1.0, "controls": {}},
]


def test_answer_circle_holds_means_predictions_and_bars():
    fitted = torch.tensor([True, True, False, True, False, True, True])
    figure = answer_circle({3: circle() * 1.1, 2: circle(k=2)}, {3: circle(), 2: circle(k=2)}, fitted, WRITES)
    drawn = [t for t in figure.data if t.name == "held-out answers" and t.x[0] is not None]
    assert [len(t.x) for t in drawn] == [2, 2]
    assert drawn[0].x[0] == pytest.approx(1.1 * float(circle()[2, 0]))
    assert [text.split("<br>")[0] for text in drawn[0].hovertext] == ["answer 2", "answer 4"]
    assert list(drawn[0].marker.color) == [6, 5]
    predicted = next(t for t in figure.data if t.name == "prediction, held out" and t.x[0] is not None)
    assert predicted.y[1] == pytest.approx(float(circle()[4, 1]))
    treatment, shuffled = (t for t in figure.data if t.type == "bar")
    assert (list(treatment.x), list(treatment.y)) == (["+1", "+5"], [0.99, 0.97])
    assert list(treatment.error_y.arrayminus) == pytest.approx([0, 0.07])
    assert list(shuffled.y) == [0.1, None]
    assert list(shuffled.error_y.array) == pytest.approx([0.2, 0])


def test_answer_circle_without_bars_or_held_out_answers():
    figure = answer_circle({3: circle()}, {3: circle()}, torch.ones(7, dtype=torch.bool))
    assert {t.type for t in figure.data} == {"scatter"}
    assert "held-out answers" not in {t.name for t in figure.data}


def test_answer_circle_says_what_does_not_fit():
    fitted = torch.ones(7, dtype=torch.bool)
    with pytest.raises(ValueError, match="no plane to draw"):
        answer_circle({}, {}, fitted)
    with pytest.raises(ValueError, match=r"frequencies \[3\], but predicted \[2\]"):
        answer_circle({3: circle()}, {2: circle()}, fitted)
    with pytest.raises(ValueError, match=r"writes\[0\] has \['accuracy'\], without \['write'\]"):
        answer_circle({3: circle()}, {3: circle()}, fitted, [{"accuracy": 1.0}])
    with pytest.raises((ValueError, TypeCheckError)):
        answer_circle({3: circle(5)}, {3: circle(5)}, fitted)


def test_wide_and_narrow_layouts_change_the_same_keys():
    fitted = torch.tensor([True] * 5 + [False] * 2)
    figures = [
        removal({"zero": curve()}),
        spectrum([1], [1.0]),
        answer_circle({3: circle()}, {3: circle()}, fitted, WRITES),
        training_curves([record(0), record(1)]),
    ]
    for figure in figures:
        assert set(figure.layout.meta["wide"]) == set(figure.layout.meta["narrow"])
        assert "height" in figure.layout.meta["wide"]


def patterns(seed=0):
    return torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(seed)).tril()


def test_attention_rounds_and_keeps_tokens_inert():
    picture = attention(patterns() / 3, [HOSTILE, "<!--", "="], names=["0.0", "0.1"])
    html, needs_bundle = picture.fragment("here")
    assert needs_bundle
    assert HOSTILE not in html
    assert "<!--" not in html
    assert html.count("<script") == html.count("</script") == 1
    assert '<div id="here"' in html
    assert all(len(number) <= 6 for number in re.findall(r"\d\.\d+", picture.props))
    assert "unpkg" not in picture._repr_html_()
    assert HOSTILE not in picture._repr_html_()


def test_attention_masks_only_causal_patterns():
    assert '"maskUpperTri": true' in attention(patterns(), list("ab=")).props
    assert '"maskUpperTri": false' in attention(torch.full((2, 3, 3), 1 / 3), list("ab=")).props


def test_attention_takes_half_precision_and_gradients():
    half = patterns().bfloat16().requires_grad_()
    assert attention(half, list("ab=")).props == attention(half.detach().float(), list("ab=")).props


def test_equal_pictures_have_equal_html():
    first, second = (attention(patterns(), list("ab=")).fragment() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("values", "tokens", "names", "message"),
    [
        (
            patterns()[None],
            "ab=",
            None,
            r"shape \[1, 2, 3, 3\], with a batch axis; give one prompt: patterns\[0\]",
        ),
        (patterns()[0], "ab=", None, r"For one head: patterns\[None\]"),
        (patterns(), "ab", None, "3 queries and 3 keys, but there are 2 tokens"),
        (patterns()[:, :2], "ab=", None, "2 queries and 3 keys"),
        (patterns() * float("nan"), "ab=", None, r"not finite in heads \[0, 1\]"),
        (patterns(), "ab=", ["one"], "2 heads but 1 names"),
        (patterns()[:0], "ab=", None, "nothing to draw"),
    ],
)
def test_attention_says_what_does_not_fit(values, tokens, names, message):
    with pytest.raises(ValueError, match=message):
        attention(values, list(tokens), names)


def test_attention_refuses_one_string():
    with pytest.raises((ValueError, TypeCheckError), match="tokens"):
        attention(patterns(), "ab=")


def test_the_bundle_is_one_script():
    script = heads.bundle()
    assert "CircuitsVis" in script
    for opens in ("</script", "<!--", "sourceMappingURL"):
        assert opens not in script


def test_importing_figures_imports_no_plotting_library():
    code = (
        "import sys, mi_ablate.figures, mi_ablate.report\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'plotly', 'circuitsvis', 'transformer_lens'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def curves_of(*grok_steps, weight_decay=1.0):
    return [record(seed, grok=grok, weight_decay=weight_decay) for seed, grok in enumerate(grok_steps)]


def column(run, index):
    return [row[index] for row in run["metrics"]["training"]["history"]]


def test_training_curves_hold_the_histories_and_their_medians():
    runs = curves_of(100, 300, None)
    figure = training_curves(runs, title="A title")
    name = "3 runs, 2 grokked"
    for run in runs:
        for index, what in ((1, "train loss"), (2, "train accuracy"), (3, "held-out loss"), (4, "held-out accuracy")):
            line = named(figure, f"{name}, seed {run['seed']}, {what}")
            assert (list(line.x), list(line.y)) == (column(run, 0), column(run, index))
            assert line.yaxis == ("y2" if "loss" in what else "y")
            assert line.line.dash == ("dot" if "train" in what else "solid")
    median = named(figure, name)
    assert (list(median.x), list(median.y)) == ([0, 100, 200, 300, 400], [0, 0, 0, 1, 1])
    assert list(named(figure, f"{name}, held-out loss").y) == pytest.approx([3.1, 3.1, 3.1, 0.6, 0.6])
    assert median.line.width == 2.5
    assert [trace.name for trace in figure.data if trace.showlegend] == [name]
    groks = named(figure, f"{name}, grok steps")
    assert (list(groks.x), list(groks.customdata)) == ([100, 300], [0, 1])
    assert figure.layout.yaxis2.type == "log"
    assert figure.layout.title.text == "A title"


def test_training_curves_have_a_colour_and_a_name_for_each_configuration():
    runs = [*curves_of(100, 200), *curves_of(300, weight_decay=0.1), *curves_of(None, weight_decay=10.0)]
    figure = training_curves(runs)
    told = [(t.name, t.line.color) for t in figure.data if t.showlegend]
    names = [
        "weight_decay 0.1<br>1 run, 1 grokked",
        "weight_decay 1<br>2 runs, 2 grokked",
        "weight_decay 10<br>1 run, 0 grokked",
    ]
    assert told == list(zip(names, PALETTE))
    alone = [t for t in figure.data if t.legendgroup == names[0]]
    assert len(alone) == 5, "two accuracies, two losses and the grok step: one run is its own median"
    assert "seed 0" in alone[0].hovertemplate


def test_training_curves_pool_what_is_not_asked_for():
    runs = [record(0, d_model=16), record(0, d_model=32), record(0, d_model=16, weight_decay=0.1, grok=None)]
    by = {
        name: [t.name for t in training_curves(runs, name).data if t.showlegend]
        for name in ("weight_decay", "config.d_model", "seed")
    }
    assert by["weight_decay"] == ["weight_decay 0.1<br>1 run, 0 grokked", "weight_decay 1<br>2 runs, 2 grokked"]
    assert by["config.d_model"] == ["d_model 16<br>2 runs, 1 grokked", "d_model 32<br>1 run, 1 grokked"]
    widths = {t.line.width for t in training_curves(runs, "weight_decay").data if t.mode == "lines"}
    assert widths == {2.5, 1.6}, "each run is a configuration of its own, so none is thin"
    assert by["seed"] == ["seed 0<br>3 runs, 2 grokked"]
    configs = [t.name for t in training_curves(runs).data if t.showlegend]
    assert configs[0] == "weight_decay 0.1, d_model 16<br>1 run, 0 grokked"


def test_training_curves_take_medians_over_seeds_alone():
    runs = [*curves_of(100, 300), *curves_of(None, None, weight_decay=0.1)]
    figure = training_curves(runs, "config.modulus")
    (name,) = {t.legendgroup for t in figure.data}
    assert name == "modulus 7<br>4 runs, 2 grokked"
    thick = [t for t in figure.data if t.mode == "lines" and t.line.width == 2.5 and t.yaxis == "y"]
    assert [list(t.y) for t in thick] == [[0, 0.5, 0.5, 1, 1], [0, 0, 0, 0, 0]]
    assert [t.showlegend for t in thick] == [True, False]


def test_training_curves_of_many_configurations_go_from_dark_to_light():
    runs = [record(0, weight_decay=float(i)) for i in range(8)]
    colours = [t.line.color for t in training_curves(runs).data if t.showlegend]
    assert len(set(colours)) == 8
    brightness = [sum(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in colours]
    assert brightness == sorted(brightness)


def test_medians_of_training_curves_stand_where_all_runs_have_a_step():
    short, long = record(0), record(1)
    long["metrics"]["training"]["history"] = long["metrics"]["training"]["history"][::2]
    figure = training_curves([short, long])
    assert list(named(figure, "2 runs, 2 grokked").x) == [0, 200, 400]


def test_training_curves_switch_the_axis_of_steps():
    linear_button, log = training_curves(curves_of(100)).layout.updatemenus[0].buttons
    assert [b.args[0]["xaxis.type"] for b in (linear_button, log)] == ["linear", "log"]
    assert all(b.args[0]["xaxis2.autorange"] and b.args[0]["xaxis.autorange"] for b in (linear_button, log))


def test_training_curves_say_what_the_lines_mean():
    one, three = (training_curves(curves_of(*steps)).layout.legend.title.text for steps in ([100], [100, 200, 300]))
    assert "median" not in one
    assert "triangle: grok step" in one.replace("<br>", " ")
    assert "thin: one run; thick: median over seeds" in three.replace("<br>", " ")


def test_training_curves_leave_out_failed_cells_and_say_what_they_need():
    figure = training_curves([*curves_of(100), failed(1)])
    assert [t.name for t in figure.data if t.showlegend] == ["1 run, 1 grokked"]
    with pytest.raises(ValueError, match=r"^None of the 1 records has a training history; failed cells have none\.$"):
        training_curves([failed(1)])
    with pytest.raises(
        ValueError, match=r"^'wight_decay' is no setting of these records\. Nearest names: weight_decay"
    ):
        training_curves(curves_of(100), "wight_decay")


def test_heat_holds_the_numbers_and_their_controls():
    values = torch.tensor([[[0.5], [-0.25]], [[1.75], [0.0]]], dtype=torch.float64)
    figure = heat(values, ["layer 0", "layer 1"], ["0", "1"], controls={"shuffled": values / 2}, title="A title")
    (trace,) = figure.data
    assert [list(row) for row in trace.z] == [[0.5, -0.25], [1.75, 0.0]]
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-1, 1)
    assert figure.layout.coloraxis.colorscale[1] == (0.5, "#FFFFFF")
    assert trace.hovertext[1][0] == "<b>layer 1</b><br>0<br>normalised effect 1.750<br>shuffled 0.875"
    assert trace.texttemplate == "%{z:.2f}%{text}"
    assert trace.text[1][0] == "<br><i>0.88</i>", "the control below the number"
    assert figure.layout.title.text == "A title"
    assert list(figure.layout.yaxis.ticktext) == ["layer 0", "layer 1"]
    assert not figure.layout.updatemenus
    assert figure.layout.meta["narrow"]["coloraxis.showscale"] is False
    assert "blue -1, white 0, orange 1" in figure.layout.meta["narrow"]["xaxis.title.text"]


def test_heat_has_a_button_for_each_panel():
    values = torch.arange(12, dtype=torch.float64).reshape(2, 3, 2) / 12
    figure = heat(values, ["a", "b"], ["0", "1", "2"], ["head 0", "head 1"])
    first, second = figure.layout.updatemenus[0].buttons
    assert [list(row) for row in figure.data[0].z] == values[..., 0].tolist() == first.args[0]["z"][0]
    assert second.args[0]["z"][0] == values[..., 1].tolist()
    assert second.args[0]["hovertext"][0][1][2] == "<b>b</b><br>2, head 1<br>normalised effect 0.917"
    many = heat(torch.zeros(1, 1, 9, dtype=torch.float64), ["a"], ["0"], [f"head {i}" for i in range(9)])
    assert many.layout.updatemenus[0].type == "dropdown"


def test_heat_shows_token_text_as_it_is():
    tokens = [HOSTILE, " the", "\n", "&amp;"]
    figure = heat(torch.zeros(1, 4, 1, dtype=torch.float64), ["<b>r</b>"], list("0123"), tokens=tokens)
    shown = list(figure.layout.xaxis.ticktext)
    assert shown[0].startswith("0<br>&lt;/script")
    assert [text.split("<br>")[1] for text in shown[1:]] == ["␣the", "\\n", "&amp;amp;"]
    written = figure.to_json()
    assert "<script" not in written.replace("\\u003c", "<")
    assert figure.data[0].hovertext[0][0].startswith("<b>&lt;b&gt;r&lt;/b&gt;</b><br>0, “&lt;/script&gt;")


def test_heat_thins_the_labels_of_long_prompts():
    n = 130
    figure = heat(torch.zeros(2, n, 1, dtype=torch.float64), ["a", "b"], [str(i) for i in range(n)], tokens=["x"] * n)
    assert list(figure.layout.xaxis.tickvals) == list(range(0, n, 3))
    assert figure.layout.xaxis.ticktext[1] == "3 x"
    assert figure.layout.xaxis.tickangle == -90
    assert len(figure.layout.meta["narrow"]["xaxis.tickvals"]) <= 24
    assert figure.data[0].texttemplate == ""


def test_heat_says_what_it_needs():
    x = torch.zeros(2, 2, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"values have shape \[2, 2, 1\]; the names are of \[2, 3, 1\]"):
        heat(x, ["a", "b"], ["0", "1", "2"])
    with pytest.raises(ValueError, match="tokens are the text of each of the 2 columns, as a list"):
        heat(x, ["a", "b"], ["0", "1"], tokens=["x"])
    with pytest.raises(ValueError, match="3 of the values are NaN or infinite; a heat map has no colour for them"):
        heat(torch.where(torch.arange(4).reshape(2, 2, 1) > 0, float("nan"), x), ["a", "b"], ["0", "1"])
    with pytest.raises(ValueError, match=r"values have shape \[2, 0, 1\]: there is nothing to draw"):
        heat(x[:, :0], ["a", "b"], [])
