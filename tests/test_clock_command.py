"""`mi-ablate clock`: the planted adder, models that do not add, a toy on the Clock, published numbers, bad input."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mi_ablate as mi
from browser import open_offline
from mi_ablate.arithmetic.by_hand.planted_truth import SHARES
from mi_ablate.cli import app
from mi_ablate.clock_analysis import analyse_clock
from mi_ablate.clock_analysis.bench import dealt, solved
from mi_ablate.clock_analysis.evidence import CLOCK, HEURISTICS, NEITHER, NOTHING, UNDECIDED, Line, verdict_of
from mi_ablate.clock_analysis.neurons import commonest
from mi_ablate.clock_analysis.page import write
from mi_ablate.clock_analysis.readout import strongest
from mi_ablate.helix_analysis import analyse_helix
from mi_ablate.published import compared
from models import tiny
from number_parts import sums

PUBLISHED = Path(__file__).parents[1] / "benchmarks" / "published" / "gpt-j-6b-clock.json"


def run(*arguments: Any) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["clock", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def planted() -> Any:
    return mi.arithmetic.planted()


@pytest.fixture(scope="module")
def found(planted) -> Any:
    problems = mi.arithmetic.problems(planted.model, template=planted.template, limit=500)
    return analyse_clock(planted.model, problems, name="planted", pairs=12)


# The planted adder


@pytest.mark.compat
def test_the_page_names_the_planted_heads_and_mlps_and_nothing_else(planted, found) -> None:
    truth, heads = planted.truth.heads, found.heads
    there = {name: place for name, place in truth.items() if name != "decoy"}
    assert {(c.layer, c.head) for c in heads.named} == set(there.values())
    roles = {(c.layer, c.head): label for c, label in zip(heads.roles.heads, heads.roles.labels)}
    assert {name: roles[place] for name, place in there.items()} == {
        "a": "a,b", "b": "a,b", "a+b 2": "a+b", "a+b 3": "a+b"
    }  # fmt: skip
    assert found.mlps.labels() == {"MLP 1": "builds a+b", "MLP 2": "reads out", "MLP 3": "reads out"}
    assert [c.name for c in found.mlps.circuit] == ["MLP 1"]


def test_the_planted_shares_come_back(found) -> None:
    plain = found.to_json()
    gap = plain["layers"]["gap"]
    for (part, layer), share in SHARES.items():
        kind, name = ("attention", f"attention {layer}") if part == "head" else ("mlps", f"MLP {layer}")
        row = next(row for row in plain["layers"]["by_layer"][kind] if row["component"] == name)
        assert row["direct"] == pytest.approx(share * gap, rel=1e-6)
        assert row["total"] == pytest.approx(share * gap, rel=1e-6)
    direct = plain["layers"]["direct"]
    assert direct["mlps"] == pytest.approx(0.75 * gap, rel=1e-6)
    assert direct["attention"] == pytest.approx(0.25 * gap, rel=1e-6)
    through = {(row["sender"], row["receiver"]): row["effect"] / gap for row in plain["paths"]}
    assert through["MLP 1", "MLP 2"] == pytest.approx(0.45, rel=1e-6)
    assert through["MLP 2", "MLP 3"] == pytest.approx(0, abs=1e-6)


def test_the_last_token_and_the_neurons_of_the_planted_adder(found) -> None:
    swaps = found.last.swaps.mean()
    row = dict(zip(found.last.swaps.methods, swaps))
    assert torch.allclose(row["helix(answer)"][1:], row["full"][1:], rtol=1e-4), "MLP 1 has built the answer"
    assert float(row["helix(answer)"][0]) == pytest.approx(0, abs=1e-6)
    assert row["polynomial(answer)"].max() < 0.5 * row["full"].max()
    assert found.neurons.worth() == pytest.approx(1)
    assert found.neurons.worth("shuffled") < 0.1
    assert found.neurons.worth("other periods") < 0.1
    assert all(abs(T / asked - 1) > 0.05 for T in found.neurons.other_periods for asked in (2, 5, 10, 100))
    by_layer = {row["layer"]: row for row in found.neurons.by_layer()}
    assert by_layer[1]["median answer fraction"] < 1e-6, "what builds a + b reads a and b alone"
    assert by_layer[2]["median answer fraction"] == pytest.approx(1)
    assert found.rival.matches.classified < 0.5
    assert found.readout.errors.n_right == 500


def test_the_verdict_on_the_planted_adder_is_the_clock(found) -> None:
    assert found.evidence.verdict == CLOCK
    assert [line.speaks for line in found.evidence.lines] == [CLOCK] * 4 + [NEITHER]
    assert found.evidence.text.startswith("Verdict: the Clock. For the Clock: a helix of the answer")
    assert "clock" in repr(found)


@pytest.mark.slow
def test_the_page_opens_without_a_network(found, tmp_path) -> None:
    page = write(found, tmp_path / "clock.html", published=compared(found.to_json(), PUBLISHED), source="a paper")
    dom, log = open_offline(page, tmp_path / "profile", 500)
    for heading in ("The last token", "Layers", "Heads", "MLPs", "Paths", "Neurons", "Logits and errors", "The rival"):
        assert f"<h2>{heading}" in dom
    assert "Published numbers" in dom
    figures = re.findall(r'<div id="figure-[^>]*>', dom)
    assert len(figures) >= 10
    assert all("js-plotly-plot" in figure for figure in figures), "each was drawn"
    assert not [line for line in log.splitlines() if "CONSOLE" in line and "Error" in line]


def test_every_published_number_has_its_place(found) -> None:
    plain = found.to_json()
    json.dumps(plain, allow_nan=False)
    rows = {row["what"]: row for row in compared(plain, PUBLISHED)}
    missing = {what for what, row in rows.items() if row["verdict"] == "not measured"}
    assert missing == {
        "share of all heads' effect in the 17 best",
        "share of all heads' effect in the 20 best",
        "wrong answers that are 10 too small",
        "wrong answers that are 10 too large",
    }, "16 heads, and no wrong answers; all else is there"
    assert rows["accuracy on [0, 99]^2"]["here"] == 1
    assert plain["heads"]["share_of"]["16"] == pytest.approx(1)


def test_the_strongest_periods_of_the_logits_are_the_planted_ones(planted, found) -> None:
    problems = mi.arithmetic.problems(planted.model, template=planted.template, limit=100)
    assert sorted(strongest(planted.model, problems, 4, 0, None)) == pytest.approx([2, 5, 10, 100])
    assert found.readout.unasked((2, 5, 10, 100)) == []
    assert found.readout.unasked((2, 3)) == []
    assert found.readout.unasked((3,))[0] == pytest.approx(2)
    with pytest.raises(ValueError, match="free=101: the logits of 200 numbers have 100 periods"):
        strongest(planted.model, problems, 101, 0, None)


# Models that do not add


def test_a_random_model_has_nothing_to_explain(tmp_path) -> None:
    """Of the real tokenizer and architecture, in half precision, through the command line."""
    from test_helix_command import random_checkpoint

    plain = run(random_checkpoint("pythia", tmp_path), "--dtype", "bfloat16", "--limit", 60, "--out", tmp_path)
    assert plain["n_correct"] == 0
    assert not plain["solved"]
    assert plain["evidence"]["verdict"] == NOTHING
    assert all(plain[part] is None for part in ("layers", "heads", "mlps", "paths", "neurons", "heuristics"))
    assert plain["last_token"]["r2"]
    assert plain["last_token"]["swaps"] is None
    assert any("none of the 60 problems right" in text for text in plain["warnings"])
    text = Path(plain["page"]).read_text()
    assert "mi-ablate helix" in text
    assert "<h2>Heads" not in text


@pytest.mark.filterwarnings("ignore:The model gets none:UserWarning")
@pytest.mark.parametrize("kind", ["GPTJ", "Llama"])
def test_parallel_blocks_and_gated_mlps_run_through_every_part_in_half_precision(kind, tmp_path) -> None:
    """Random models on their own answers, so that all are right and every part is asked."""
    import transformers

    torch.manual_seed(0)
    tokenizer = mi.arithmetic.planted().tokenizer
    size = {"vocab_size": len(tokenizer), "initializer_range": 0.5}
    if kind == "GPTJ":
        config = transformers.GPTJConfig(n_layer=2, n_head=2, n_embd=16, rotary_dim=4, n_positions=8, **size)
    else:
        config = transformers.LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
            max_position_embeddings=8, **size,
        )  # fmt: skip
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = mi.load_model(tmp_path, dtype="bfloat16")
    asked = mi.arithmetic.problems(model, "add", range(12), range(12), template="bare")
    own = replace(asked, answers=mi.arithmetic.asked(model, asked).given)
    clock = analyse_clock(model, own, pairs=3, heads=2, periods=(2, 5))
    assert clock.solved
    assert set(clock.reasons) == {"symmetry of the errors", "addition on a line"}
    assert None not in (clock.heads, clock.mlps, clock.paths, clock.neurons, clock.rival, clock.readout)
    json.dumps(clock.to_json(), allow_nan=False)
    helix = analyse_helix(model, own, pairs=3, free=0, periods=(2, 5))
    assert helix.reasons == {}
    assert list(helix.swaps) == list(helix.removals) == ["a"]


def test_answering_one_constant_is_no_calculation() -> None:
    """The right answers of a model that always says the same are no evidence: none of its effects is measured."""
    weights = {"unembed.b_U": torch.zeros(11, dtype=torch.float64), "unembed.W_U": torch.zeros(16, 11).double()}
    weights["unembed.b_U"][4] = 9.0
    found = analyse_clock(tiny(weights=weights), sums(), pairs=4, periods=(2, 5))
    assert found.asked.n_correct == 5
    assert found.asked.accuracy == found.asked.chance
    assert not found.solved
    assert found.evidence.verdict == NOTHING
    assert found.heads is None
    assert "Nothing to explain: the model answers 5 of 25" in found.evidence.text


# A toy, and rules


def test_a_toy_on_the_clock_with_the_periods_of_its_frequencies() -> None:
    from mi_ablate.cli.arithmetic import problems_for

    model, problems, own = problems_for("nanda113", "add", *[None] * 3, 0, *[None] * 4)
    rows = torch.randperm(len(problems), generator=torch.Generator().manual_seed(0))[:800]
    found = analyse_clock(model, problems[rows], periods=own, pairs=12)
    assert all(pytest.approx(round(113 / T)) == 113 / T for T in found.settings["periods"])
    assert found.evidence.verdict == CLOCK
    assert found.readout.line is None
    assert analyse_clock(model, problems[rows], periods=(2, 5), pairs=12).evidence.verdict == UNDECIDED


@pytest.mark.parametrize(
    ("sides", "rival", "verdict"),
    [
        ((CLOCK, CLOCK, CLOCK, NEITHER), NEITHER, CLOCK),
        ((CLOCK, CLOCK, CLOCK), NEITHER, CLOCK),
        ((CLOCK, CLOCK), NEITHER, UNDECIDED),
        ((CLOCK, CLOCK, NEITHER, NEITHER), NEITHER, UNDECIDED),
        ((CLOCK, CLOCK, CLOCK, CLOCK), HEURISTICS, UNDECIDED),
        ((CLOCK, NEITHER, NEITHER, NEITHER), HEURISTICS, HEURISTICS),
        ((NEITHER,) * 4, NEITHER, UNDECIDED),
        ((), NEITHER, UNDECIDED),
    ],
)
def test_the_verdict_counts_lines(sides, rival, verdict) -> None:
    lines = [Line("x", 1.0, 0.0, "a rule", side) for side in sides]
    assert verdict_of(lines, Line("y", 1.0, 0.0, "a rule", rival)) == verdict


def test_problems_are_dealt_apart_where_there_are_enough() -> None:
    asked = mi.arithmetic.asked(tiny(), sums())
    everything = replace(asked, correct=torch.ones(25, dtype=torch.bool))
    few = dealt(everything, 1000, 0)
    assert not few["apart"]
    assert len(few["fitted"]) == len(few["neurons"]) == 25
    assert len(few["pairs"]) == 25**2 - sum(min(s, 8 - s) ** 2 + 2 * min(s, 8 - s) + 1 for s in range(9)), (
        "all there are"
    )
    wide = sums(vocab=60, below=20)
    asked = mi.arithmetic.asked(tiny(vocab=60), wide)
    many = dealt(replace(asked, correct=torch.ones(400, dtype=torch.bool)), 50, 0)
    fitted = {(a, b) for a, b in zip(many["fitted"].inputs["a"].tolist(), many["fitted"].inputs["b"].tolist())}
    for other in (many["judged"], many["pairs"].clean, many["pairs"].corrupted):
        assert fitted.isdisjoint(zip(other.inputs["a"].tolist(), other.inputs["b"].tolist()))
    assert many["apart"]
    assert len(fitted) == 200
    assert len(many["neurons"]) == 200
    assert solved(everything)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["adder", "--pairs", "1"], "two pairs and one head at least"),
        (["adder", "--heads", "0"], "two pairs and one head at least"),
        (["adder", "--periods", "0"], "periods [0.0]: give at least one, each once, all of them finite and 2 or more"),
        (["adder", "--periods", "1.5"], "periods [1.5]: give at least one"),
        (["adder", "--free", "3", "--periods", "5"], "so many of the strongest periods, or periods of your own"),
        (["adder", "--free", "-1"], "so many of the strongest periods, or periods of your own"),
        (["adder", "--norm", "none"], "'live' (the final norm sees the change)"),
        (["nowhere/at/all"], "nowhere/at/all"),
        (["adder", "--published", "none.json"], "none.json"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, capsys, monkeypatch) -> None:
    import sys

    from mi_ablate.cli import main

    monkeypatch.setattr(sys, "argv", ["mi-ablate", "clock", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert "Traceback" not in error


def test_tasks_with_several_right_answers_are_refused() -> None:
    problems = replace(sums(), accepted=torch.ones(25, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="have several right answers, and the Clock is about one"):
        analyse_clock(tiny(), problems)


def test_neurons_without_a_period_are_no_commonest_period() -> None:
    assert commonest([{"period": x} for x in (float("nan"), 10.0, float("nan"), 10.0, 5.0)]) == "10 (2), 5 (1)"
