"""The command `mi-ablate fourier`: what is planted comes out, in JSON, as text and on a page; nothing is invented."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from mi_ablate import toys
from mi_ablate.fourier_analysis import analyse, page
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.train import train
from models import data_folder

P, KS = 31, [3, 7, 11, 14]


def strict(found):
    """The JSON as another program reads it; NaN and infinity, which JSON does not have, would raise."""
    return json.loads(json.dumps(found.to_json(), allow_nan=False))


@pytest.fixture(scope="module")
def clock():
    return analyse(toys.analytic(P, KS))


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["clock", "pizza"])
def test_a_hand_built_network_gives_what_was_built(kind):
    lines: list[str] = []
    values = strict(analyse(toys.analytic(P, KS, kind), count=4, report=lines.append))
    assert values["accuracy"] == 1.0
    assert values["verdict"] == kind
    assert [row["frequency"] for row in values["key_frequencies"]] == KS
    assert sum(row["share"] for row in values["key_frequencies"]) == pytest.approx(1)
    for rule, keys in values["key_frequencies_by_rule"].items():
        want = KS if rule not in ("nanda_colab", "arena") else [k for k in KS if k < P // 2]
        assert sorted(keys["frequencies"]) == want, rule
    share = 1.0 if kind == "clock" else 2 / 3
    assert values["cosines"]["nanda_text_fve_of_keys"] == pytest.approx(share, abs=0.002)
    assert values["circularity"] == pytest.approx(1, abs=1e-6)
    assert values["restricted_loss"]["nanda_text"] == pytest.approx(values["loss"], abs=1e-3)
    assert values["excluded_loss"]["nanda_text"] > 1
    assert values["causal"]["logits"]["energetic_but_inert"] == []
    assert any("necessity" in line for line in lines)
    assert any("verdict" in line for line in lines)


def test_the_json_names_every_variant(clock):
    values = strict(clock)
    assert set(values) >= {
        "accuracy", "loss", "key_frequencies", "gradient_symmetricity", "distance_irrelevance", "circularity", "verdict",
    }  # fmt: skip
    rules = {"energy", "nanda_text", "nanda_eye", "nanda_colab", "arena", "neurons", "tl_demo"}
    assert set(values["key_frequencies_by_rule"]) == rules
    assert set(values["restricted_loss"]) == {"nanda_text", "nanda_text_44", "nanda_colab", "tl_demo"}
    assert set(values["excluded_loss"]) == {"nanda_text", "nanda_colab", "arena", "tl_demo"}
    assert values["trig_loss"] == values["restricted_loss"]["nanda_colab"]
    for losses in values["losses_by_rule"].values():
        assert all({"value", "split", "frequencies", "rule", "bias", "level"} <= set(x) for x in losses.values())
    assert values["gradient_symmetricity"] == values["gradient_symmetricity_by_draw"]["published"]["value"]
    assert set(values["ranks"]) == {"W_E", "W_U", "logits by answer", "random"}
    assert values["ranks"]["W_E"]["rank99_energy"] == 8
    assert set(values["cyclic_geometry"]) == {"W_E", "W_U", "class means"}
    assert values["cyclic_geometry"]["W_E"]["frequency"] == KS[0]
    assert values["trig_ratio"]["arena"]["logits"] == pytest.approx(1, abs=1e-3)
    assert [row["frequency"] for row in values["attention"]] == [None, None]
    shares = values["representations"]["chughtai"]
    assert set(shares) == {"embedding", "unembedding", "hidden"}
    assert sum(shares["embedding"][str(k)] for k in KS) == pytest.approx(1 - shares["embedding"]["0"], abs=1e-6)
    assert set(shares["hidden"][str(KS[0])]) == {"a", "b", "product"}
    hidden = [sum(shares["hidden"][str(k)].values()) for k in range(1, clock.grid.n // 2 + 1)]
    assert all(0 <= share <= 1 for share in hidden)
    assert min(hidden[k - 1] for k in KS) > max(x for k, x in enumerate(hidden, 1) if k not in KS)
    assert values["cosines"]["trace_similarity"][KS[0] - 1] == pytest.approx(0.5, abs=1e-3)


def test_the_page_and_the_summary_say_the_same(clock, tmp_path, capsys):
    text = page.write(clock, tmp_path / "fourier.html").read_text()
    for heading in ("Key frequencies", "Spectra", "Neuron clusters", "Losses", "Clock or Pizza", "Necessity"):
        assert f"<h2>{heading}" in text, heading
    assert "2512.25060" in text
    page.print_summary(clock)
    out = capsys.readouterr().out
    assert "Verdict: clock." in out
    assert "key frequencies, nanda_text: " in out
    assert "<h2>Progress" not in text
    assert repr(clock) == "FourierAnalysis(clock31, add mod 31: 5 key frequencies, clock)"


SETTINGS = TrainConfig(
    ToyConfig(modulus=13, layout="a b =", n_layers=1, d_model=16, d_mlp=32, n_heads=2, normalization=None),
    steps=40, evaluate_every=20, batch_size=None, train_fraction=0.5, keep_steps=(20, 40),
)  # fmt: skip


def test_a_run_that_never_generalised_gets_no_key_frequencies(tmp_path, capsys):
    train(SETTINGS, out=tmp_path, progress=False)
    found = analyse(toys.load(tmp_path / "model.safetensors"), folder=tmp_path)
    values = strict(found)
    assert values["key_frequencies"] == []
    assert values["generalised"] is False
    assert "the model has not generalised" in values["reasons"]["key_frequencies"]
    assert all(keys["frequencies"] == [] for keys in values["key_frequencies_by_rule"].values())
    assert (values["restricted_loss"], values["excluded_loss"], values["causal"]) == ({}, {}, {})
    assert values["verdict"] == "undecided"
    assert [row["step"] for row in values["progress"]] == [0, 20, 40]
    assert values["phases"]["cleanup"] is None
    text = page.write(found, tmp_path / "fourier.html").read_text()
    assert "No key frequencies: accuracy" in text
    assert "<h2>Progress" in text
    page.print_summary(found)
    out = capsys.readouterr().out
    assert "phases: held-out accuracy never reached" in out
    assert "key frequencies, " not in out


def test_multiplication_is_analysed_in_exponents(tmp_path):
    config = ToyConfig(modulus=13, operations=("add", "mul"), n_layers=1, d_model=16, d_mlp=32, n_heads=2)
    train(replace(SETTINGS, config=config, keep_steps=()), out=tmp_path, progress=False)
    values = strict(analyse(toys.load(tmp_path / "model.safetensors"), "mul"))
    assert (values["group_order"], values["primitive_root"], values["operation"]) == (12, 2, "mul")
    with pytest.raises(ValueError, match="The toy has no operation 'sub'; it has add, mul"):
        analyse(toys.load(tmp_path / "model.safetensors"), "sub")


def test_a_group_too_small_for_a_verdict_is_reported_without_one():
    values = strict(analyse(toys.analytic(7, [1, 2])))
    assert values["verdict"] == "undecided"
    assert "too small for a verdict" in values["verdict_reasons"][0]
    assert values["accuracy"] == 1.0


def test_the_command(tmp_path):
    toy = toys.analytic(P, KS)
    state = {name: tensor for name, tensor in toy.model.state_dict().items() if not name.endswith((".mask", ".IGNORE"))}
    toys.save(tmp_path / "clock.safetensors", toy.config, state)
    command = [sys.executable, "-m", "mi_ablate.cli", "fourier", "clock.safetensors", "--json", "--out", "o"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    values = json.loads(done.stdout)
    assert values["verdict"] == "clock"
    assert (tmp_path / values["page"]).is_file()
    assert "necessity and sufficiency" in done.stderr
    wrong = subprocess.run([*command[:4], "adn97"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert wrong.returncode == 2
    assert "add97" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_the_published_models_give_the_published_numbers():
    folder = data_folder() / "third_party_models"
    nanda = strict(analyse(toys.load(folder / "nanda_mod113.safetensors")))
    assert nanda["loss"] == pytest.approx(2.888e-3, abs=1e-6)
    assert nanda["accuracy"] == pytest.approx(0.9995, abs=5e-5)
    assert [row["frequency"] for row in nanda["key_frequencies"]] == [23, 6, 39, 3, 35]
    assert nanda["trig_loss"] == pytest.approx(3.4e-3, abs=5e-5)
    assert nanda["causal"]["logits"]["energetic_but_inert"] == [35]
    assert nanda["causal"]["logits"]["removed"]["9"]["loss"] == pytest.approx(9.8e-3, abs=1e-4)
    for name, want, label in (("a", (0.9937, 0.1717, 0.9978), "pizza"), ("b", (0.3336, 0.8483, 0.9989), "clock")):
        zhong = strict(analyse(toys.load(folder / f"zhong_model_{name}.safetensors")))
        measured = [zhong[key] for key in ("gradient_symmetricity", "distance_irrelevance", "circularity")]
        assert measured == pytest.approx(want, abs=1e-3)
        assert zhong["verdict"] == label


def test_the_code_of_the_page_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "fourier.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(first, {})
    assert capsys.readouterr().out.splitlines() == ["[3, 17, 22, 31, 45] pizza", "0.0000 of 0.0154", "[]"]
    exec(second, {})
    assert capsys.readouterr().out.splitlines() == ["[0, 20, 40, 60]", "True"]


def test_the_commands_of_the_page_exist():
    from mi_ablate.cli import app

    command = typer.main.get_command(app).commands["fourier"]
    text = (Path(__file__).parents[1] / "docs" / "fourier.md").read_text()
    (lines,) = re.findall(r"```sh\n(.*?)```", text, re.S)
    for line in lines.splitlines():
        program, name, *words = shlex.split(line, comments=True)
        assert (program, name) == ("mi-ablate", "fourier")
        assert command.make_context(name, list(words)).params["model"] == words[0]
