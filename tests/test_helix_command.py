"""`mi-ablate helix`: the planted model, toys, random checkpoints with the real tokenizers, published numbers, bad input."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mi_ablate as mi
from browser import open_offline
from mi_ablate.cli import app
from mi_ablate.helix_analysis import analyse_helix
from mi_ablate.helix_analysis.page import _verdict, write
from mi_ablate.helix_analysis.plain import finite
from mi_ablate.published import compared, read_published
from models import data_folder

PUBLISHED = Path(__file__).parents[1] / "benchmarks" / "published"


def run(*arguments):
    done = CliRunner().invoke(app, ["helix", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def real_tokenizer(kind: str, folder: Path) -> None:
    """The files of a published tokenizer, as a checkpoint has them."""
    for file in (data_folder() / "tokenizers" / kind).iterdir():
        shutil.copyfile(file, folder / file.name)
    name, end = {"gpt2": "GPT2Tokenizer", "pythia": "GPTNeoXTokenizer"}[kind], "<|endoftext|>"
    settings = {"tokenizer_class": name, "bos_token": end, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def random_checkpoint(kind: str, folder: Path) -> Path:
    """A small GPT-2 or Pythia with random weights, the full vocabulary and the real tokenizer."""
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=50257)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.GPTNeoXConfig(
            num_hidden_layers=2, num_attention_heads=2, hidden_size=16, intermediate_size=32,
            max_position_embeddings=32, vocab_size=50304,
        )  # fmt: skip
        model = transformers.GPTNeoXForCausalLM(config)
    model.save_pretrained(folder)
    real_tokenizer(kind, folder)
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """The hand-built adder as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("planted")
    mi.arithmetic.planted().save(folder)
    return folder


@pytest.mark.compat
def test_the_planted_helix_comes_back(planted, tmp_path) -> None:
    found = json.loads(run(planted, "--limit", 2500, "--pairs", 12, "--out", tmp_path, "--json"))
    assert found["accuracy"] == 1
    assert found["template"] == "{a}+{b}=", "the first whose words the tokenizer knows"
    a = found["operands"]["a"]
    assert a["helix"]["rank"] == 8
    assert min(a["r2"]["helix"].values()) > 1 - 1e-9
    assert max(a["r2"]["polynomial"].values()) < 0.6
    assert max(a["r2"]["shuffled"].values()) < 0.15
    assert a["held_out"][a["best"]] > 1 - 1e-9
    assert sorted(a["spectrum"]["stream"]["peaks"][a["best"]]) == pytest.approx([2, 5, 10, 100])
    periods = [row["period"] for row in a["free_periods"][a["best"]]["found"] if row["stands out"]]
    assert sorted(periods) == pytest.approx([2, 5, 10, 100], rel=1e-3)
    swaps, lost = found["swaps"]["a"], found["removals"]["a"]
    assert swaps["max"]["helix"] == pytest.approx(swaps["max"]["full"], rel=1e-2)
    assert swaps["max"]["shuffled"] < 0.2 * swaps["max"]["full"]
    assert swaps["max"]["polynomial"] < 0.5 * swaps["max"]["full"]
    assert lost["min"]["helix"] == pytest.approx(lost["min"]["full"], rel=1e-2)
    assert lost["min"]["helix"] < -10
    read = [swaps["by_site"]["full"][f"blocks.{i}.hook_resid_pre"] for i in (0, 1, 2, 3)]
    assert min(read[:2]) > 10 > 1e-3 > max(abs(x) for x in read[2:]), "the second layer's heads read the operands"
    written = Path(found["page"]).read_text()
    for heading in (
        "Spectrum at a",
        "Residues at a",
        "The helix at a",
        "Writing a number at a",
        "Removing the helix at a",
    ):
        assert f"<h2>{heading}</h2>" in written
    assert found["reasons"] == {}


def test_the_same_vectors_dealt_out_at_random_give_no_helix() -> None:
    control = mi.arithmetic.planted(shuffled=True).model
    asked = mi.arithmetic.problems(control, "add", limit=1200, template="bare")
    found = analyse_helix(control, asked, free=2, pairs=5, layers=[0])
    assert found.asked.accuracy < 0.1
    assert float(found.operands["a"].baselines.r2["helix"].max()) < 0.25
    assert float(found.operands["a"].separability.kappa.max()) < 0.4
    pca = float(found.operands["a"].baselines.r2["pca"].min())
    assert pca > 0.99, "all in eight dimensions, as before"


@pytest.mark.parametrize(
    ("kind", "template", "ranges"), [("gpt2", "kt", (520, 361)), ("pythia", "kt space", (530, 557))]
)
def test_a_random_checkpoint_in_half_precision_is_a_run_on_representation(kind, template, ranges, tmp_path) -> None:
    folder = random_checkpoint(kind, tmp_path)
    bos = "--bos" if kind == "gpt2" else "--no-bos"
    given = ["--template", template, bos, "--limit", 900, "--free", 1, "--dtype", "bfloat16", "--out", tmp_path]
    found = json.loads(run(folder, *given, "--json"))
    assert (found["accuracy"], found["representation_only"]) == (0, True)
    assert tuple(found["single_tokens"][form]["contiguous"] for form in ("bare", "spaced")) == ranges
    assert found["bos"] == (kind == "gpt2")
    assert list(found["operands"]["a"]["sites"])[-1] == "blocks.1.hook_resid_post"
    assert max(found["operands"]["a"]["left_out"]["helix"].values()) < 0.1
    assert found["swaps"] == found["removals"] == {}
    assert list(found["reasons"]) == ["causal tests"]
    assert "representation only" in found["reasons"]["causal tests"]
    said = Path(found["page"]).read_text()
    assert "This is a run on representation alone" in said
    different = "a is written spaced, b is written bare: these are different tokens"
    assert (different in said) == (kind == "pythia")
    assert any(different in text for text in found["warnings"]) == (kind == "pythia")


def test_years_have_one_operand_and_many_right_answers(tmp_path) -> None:
    model = mi.load_model(str(random_checkpoint("gpt2", tmp_path)))
    found = analyse_helix(model, mi.arithmetic.problems(model, "greater"), free=0, layers=[1], pairs=20)
    assert list(found.operands) == ["a"]
    assert not found.asked.problems.numerals.contiguous < 99
    json.dumps(found.to_json(), allow_nan=False)


def test_a_toy_has_the_periods_of_its_key_frequencies(tmp_path) -> None:
    found = json.loads(
        run("add97", "--pairs", 6, "--free", 2, "--layers", 0, "--limit", 3000, "--out", tmp_path, "--json")
    )
    chosen = found["settings"]["periods"]
    assert all(pytest.approx(round(97 / T)) == 97 / T for T in chosen)
    a = found["operands"]["a"]
    assert a["helix"]["rank"] == 1 + 2 * len(chosen)
    assert a["r2"]["helix"]["blocks.0.hook_resid_pre"] > 0.8
    assert a["r2"]["polynomial"]["blocks.0.hook_resid_pre"] < 0.5
    assert "No period is a whole number" in found["reasons"]["separability at a"]
    swaps = found["swaps"]["a"]["max"]
    assert swaps["helix"] > 0.8 * swaps["full"] > 2 * swaps["shuffled"]


def own_answers(folder: Path, n_layer: int) -> tuple:
    """A random model on its own answers, so that they are all right."""
    import transformers

    torch.manual_seed(0)
    tokenizer = mi.arithmetic.planted().tokenizer
    config = transformers.GPT2Config(
        n_layer=n_layer, n_head=1, n_embd=8, n_positions=8, vocab_size=len(tokenizer), initializer_range=0.5
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = mi.load_model(folder)
    asked = mi.arithmetic.problems(model, "add", range(24), range(24), template="bare", limit=300)
    with pytest.warns(UserWarning, match="none of the 300 problems right"):
        given = mi.arithmetic.asked(model, asked).given
    return model, replace(asked, answers=given)


@pytest.mark.parametrize("n_layer", [2, pytest.param(28, marks=pytest.mark.slow)])
def test_every_published_number_is_measured(n_layer, tmp_path) -> None:
    model, asked = own_answers(tmp_path / "model", n_layer)
    layers = [x for x in (0, 1, 2, 4, 6, 8, 10, 12, 13, 14, 17) if x < n_layer]
    found = analyse_helix(model, asked, at=("a", "b"), layers=layers, pairs=3, free=0)
    assert found.reasons == {}
    plain = found.to_json()
    for file in sorted(PUBLISHED.glob("*-helix.json")):
        text = file.read_text()
        there = tmp_path / file.name
        there.write_text(text if n_layer == 28 else re.sub(r"blocks\.\d+\.", "blocks.1.", text))
        rows = compared(plain, there)
        assert {row["verdict"] for row in rows} <= {"passes", "differs"}, file.name
    assert len(compared(plain, PUBLISHED / "gpt-j-6b-helix.json")) > 60
    source = read_published(PUBLISHED / "gpt-j-6b-helix.json")["source"]
    written = write(found, tmp_path / "helix.html", published=rows, source=source).read_text()
    assert "<h2>Published numbers</h2>" in written
    assert "Numbers of Kantamneni and Tegmark 2025" in written
    assert "<h2>Writing a number at b</h2>" in written


def test_what_does_not_apply_is_left_out_with_its_reason(tmp_path) -> None:
    model, asked = own_answers(tmp_path, 2)
    rows: dict[int, int] = {}  # each a and each b once, so that no two problems share b
    for row, (a, b) in enumerate(zip(asked.inputs["a"].tolist(), asked.inputs["b"].tolist())):
        if a in (*range(12), 15) and a not in rows and b not in asked.inputs["b"][list(rows.values())]:
            rows[a] = row
    found = analyse_helix(model, asked[list(rows.values())], layers=[1], periods=[5], free=9)
    assert "equally spaced" in found.reasons["spectra at a"]
    assert "consecutive" in found.reasons["separability at a"]
    assert "0 have different answers and the same b" in found.reasons["causal tests at a"]
    assert any("9 periods of 13 numbers" in text for text in found.reasons.values())
    assert found.swaps == {}
    assert found.operands["a"].means.sites == ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post")
    assert "HelixAnalysis(model, a + b: accuracy 1.000" in repr(found)


def test_numbers_too_few_to_hold_some_out_leave_the_representation(tmp_path) -> None:
    model, asked = own_answers(tmp_path, 2)
    found = analyse_helix(model, asked[asked.inputs["a"] < 11], layers=[1], pairs=3, free=0)
    why = "A number is written from a fit that has not seen it. 8 numbers leave nothing over for 9 columns"
    assert found.reasons["causal tests at a"].startswith(why)
    assert found.swaps == found.removals == {}
    assert found.operands["a"].fits.rank == 8


def test_json_has_no_number_that_is_not_finite() -> None:
    assert finite({"x": [float("nan"), (1.5, float("inf"))], 3: "y"}) == {"x": [None, [1.5, None]], "3": "y"}


@pytest.mark.slow
def test_the_page_on_a_narrow_screen(planted, tmp_path) -> None:
    run(planted, "--limit", 1500, "--pairs", 4, "--out", tmp_path)
    dom, log = open_offline(tmp_path / "helix.html", tmp_path / "profile", 500)
    said = [line for line in log.splitlines() if "CONSOLE" in line]
    assert [line for line in said if any(word in line for word in ("Uncaught", "Refused", "Error"))] == []
    figures = re.findall(r'<div id="figure-[^>]*>', dom)
    assert len(figures) >= 10
    assert all("js-plotly-plot" in figure for figure in figures), "each was drawn"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-model"], "is no shipped toy, no local file or folder"),
        (["PLANTED", "--task", "divide"], "There is no task 'divide'"),
        (["PLANTED", "--template", "sum"], "template='sum' has no {a}"),
        (["PLANTED", "--template", "{a}{b}="], "{a} of '{a}{b}=' has no token of its own"),
        (["PLANTED", "--upto", "600"], "--upto 600: 521 is no single token"),
        (["PLANTED", "--upto", "6"], "6 numbers leave nothing over for 9 columns"),
        (["PLANTED", "--limit", "0"], "--limit 0: at least 1 problem"),
        (["add97", "--limit", "-3"], "--limit -3: at least 1 problem"),
        (["no-such-model", "--free", "-1"], "free=-1, pairs=100: no fewer than 0 periods to search"),
        (["no-such-model", "--pairs", "1"], "free=4, pairs=1: no fewer than 0 periods to search, and two pairs"),
        (["no-such-model", "--periods", "inf"], "periods [inf]: give at least one, each once, all of them finite"),
        (["no-such-model", "--periods", "nan"], "periods [nan]: give at least one, each once, all of them finite"),
        (["no-such-model", "--periods", "2", "--periods", "2"], "periods [2.0, 2.0]: give at least one, each once"),
        (["no-such-model", "--out", "README.md"], "README.md"),
        (["add97", "--revision", "main"], "leave out --template, --upto, --bos, --no-bos and --revision"),
        (["PLANTED", "--at", "c"], "at=['c']: the operands of 'a + b' are a, b"),
        (["PLANTED", "--layers", "7"], "Layer 7 is out of range"),
        (["PLANTED", "--layers", "one"], "Layers 'one': write numbers and ranges"),
        (
            ["PLANTED", "--periods", "0"],
            "periods [0.0]: give at least one, each once, all of them finite and 2 or more",
        ),
        (["PLANTED", "--dtype", "foo"], "dtype 'foo' is no floating PyTorch dtype"),
        (["PLANTED", "--published", "nowhere.json"], "nowhere.json is no readable JSON of published numbers"),
        (["addmul97", "--task", "mul"], "circles of discrete logarithms"),
        (["add97", "--task", "sub"], "this toy has add"),
        (["add97", "--upto", "9"], "add97 is a toy with problems of its own"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, planted, tmp_path, capsys, monkeypatch) -> None:
    from mi_ablate.cli import main

    there = {"PLANTED": str(planted), "README.md": str(Path(__file__).parents[1] / "README.md")}
    given = [there.get(word, word) for word in arguments]
    monkeypatch.setattr("sys.argv", ["mi-ablate", "helix", "--out", str(tmp_path), *given])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*.html"))


def test_the_summary_says_what_speaks_against_the_helix() -> None:
    assert _verdict(0.9, 0.3) == ""
    assert "nothing here speaks for these periods" in _verdict(0.3, 0.5)
    assert "better than the mean" in _verdict(-0.1, -0.2)
    assert "better than the mean" in _verdict(float("nan"), float("nan"))
