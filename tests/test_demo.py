"""The main job, on an untrained toy for its shape and on trained ones for its numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mi_ablate as mi
from browser import open_offline
from mi_ablate.demo import page, take_apart
from mi_ablate.demo.circle import answer_circle
from mi_ablate.measures.task import task_of
from models import data_folder


@pytest.fixture(scope="module")
def untrained():
    from mi_ablate.toys.config import ToyConfig
    from mi_ablate.toys.train import initial_state

    def make(operations=("add",), modulus=13, **shape):
        from mi_ablate.toys import tasks
        from mi_ablate.toys.checkpoints import Toy
        from mi_ablate.toys.transformer import build

        config = ToyConfig(modulus=modulus, operations=operations, d_model=32, d_mlp=64, **shape)
        model = build(config, initial_state(config, "log", 0))
        tokens, answers = tasks.all_tokens(config), tasks.answers(config)
        train = tasks.split(config, 0.5, 0)
        card = {"config": config.to_dict(), "name": "untrained"}
        return Toy(model, tokens, answers, modulus, tasks.inputs(config), train, card)

    return make


@pytest.mark.compat
@pytest.mark.parametrize("operations", [("add",), ("sub",), ("add", "mul")])
def test_every_result_has_its_controls(untrained, operations, tmp_path):
    lines: list[str] = []
    found = take_apart(untrained(operations), frequencies=3, draws=2, report=lines.append)
    result = json.loads(json.dumps(found.to_json()))
    assert set(result) >= {"accuracy", "key_frequencies", "removal", "answer_circle"}
    shares = [k["share"] for k in result["key_frequencies"]]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 3
    for row in result["removal"]:
        assert set(row["k_at_95"]) == {"edited", "covariance", "pca"}
        assert row["curve"][0]["variance_removed"] == 0
    assert {row["write"] for row in result["answer_circle"]} >= {"another answer", "+1", "+5", "+20"}
    assert all(row["controls"] for row in result["answer_circle"])
    assert any("every site" in line for line in lines)
    written = page.write(found, tmp_path / "demo.html")
    assert "untrained" in written.read_text()
    page.print_tables(found)


def test_multiplication_is_analysed_in_exponents_of_a_root(untrained):
    task = task_of(untrained(("add", "mul")), "mul")
    p, g = 13, mi.modular.primitive_root(13)
    assert task.period == 12
    assert len(task.rows) == 12 * 12
    a, b = (task.toy.inputs[k][task.rows] for k in "ab")
    assert torch.equal(torch.tensor([pow(g, int(v), p) for v in task.values]), a * b % p)
    assert torch.equal(task.tokens_of[task.values], task.toy.answers[task.rows])


def test_full_prints_an_estimate_first(untrained):
    lines: list[str] = []
    take_apart(untrained(), frequencies=3, draws=1, full=True, report=lines.append)
    assert any("estimate" in line for line in lines)


@pytest.mark.slow
def test_the_page_opens_without_network_and_without_console_errors(untrained, tmp_path):
    """MI_ABLATE_PAGE names a page to open instead of a small one, such as the one that `make demo` wrote."""
    path = Path(
        os.environ.get("MI_ABLATE_PAGE") or page.write(take_apart(untrained(), draws=1), tmp_path / "demo.html")
    )
    dom, log = open_offline(path, tmp_path / "profile", 1200)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert dom.count('class="main-svg"') >= 5
    assert dom.count("<canvas") > 8


@pytest.mark.compat
def test_the_answer_circle_of_the_shipped_model_turns():
    """The README's headline, on the shipped add97; controls as low as it says."""
    toy = mi.toys.load("add97")
    task = task_of(toy, None)
    acts = mi.collect(toy.model, task.tokens, mi.last_residual(toy.model))[mi.last_residual(toy.model)]
    chosen = mi.modular.spectrum(toy.model.embed.W_E.detach()[:97]).top(10)
    rows = {row["write"]: row for row in answer_circle(task, acts, chosen, draws=2)}
    assert rows["+5"]["accuracy"] > 0.95
    assert rows["+5"]["controls"]["shuffled labels"]["high"] < 0.05
    assert rows["turned by +5"]["accuracy"] > 0.94
    assert rows["turned by +5"]["controls"]["covariance-drawn"]["high"] < 0.1


@pytest.mark.parametrize(
    ("name", "top"), [("nanda_mod113", [23, 6, 39, 3, 35]), ("zhong_model_a", None), ("zhong_model_b", None)]
)
def test_published_models_have_known_frequencies_and_circles_that_turn(name, top):
    toy = mi.toys.load(data_folder() / "third_party_models" / f"{name}.safetensors")
    task = task_of(toy, None)
    acts = mi.collect(toy.model, task.tokens, mi.last_residual(toy.model))[mi.last_residual(toy.model)]
    found = mi.modular.spectrum(toy.model.embed.W_E.detach()[: toy.modulus])
    if top:
        assert found.top(5) == top
        assert found.share(*top) == pytest.approx(0.95, abs=0.01)
    rows = {row["write"]: row for row in answer_circle(task, acts, found.top(10), draws=1)}
    for label in ("+1", "+5", "+20"):
        assert rows[label]["accuracy"] > 0.99
        assert rows[label]["controls"]["shuffled labels"]["high"] < 0.11


@pytest.mark.compat
def test_command_line_prints_one_json_object_and_writes_the_page(tmp_path, untrained):
    from mi_ablate.toys.train import initial_state

    config = untrained().config
    path = mi.toys.save(tmp_path / "toy.safetensors", config, initial_state(config, "log", 0))
    done = _cli(
        "demo", "--model", str(path), "--out", str(tmp_path / "out"), "--json", "--draws", "1", "--frequencies", "3"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["key_frequencies"]
    assert (tmp_path / "out" / "demo.html").stat().st_size > 1_000_000


@pytest.mark.compat
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--model", "ad97"), "add97"),
        (("demo", "--model", "nowhere/model.safetensors"), "nowhere/model.safetensors"),
        (("demo", "--operation", "mul"), "trained on"),
        (("train", "ad97"), "add97"),
        (("train", "add97", "--device", "cuda", "--out", "{tmp}"), "cuda"),
        (("convert", "nothing.pth", "out.safetensors"), "nothing.pth"),
    ],
)
def test_bad_input_is_one_sentence_without_a_traceback(arguments, message, tmp_path):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("CUDA is there, so asking for it is no error")
    done = _cli(*(a.format(tmp=tmp_path) for a in arguments))
    assert done.returncode == 2
    assert message.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr


@pytest.mark.compat
def test_training_from_the_command_line_gives_a_model_that_loads(tmp_path):
    config = {
        "config": {"modulus": 7, "n_layers": 1, "d_model": 16, "d_mlp": 32},
        "steps": 20,
        "batch_size": 8,
        "evaluate_every": 10,
    }
    (tmp_path / "mine.json").write_text(json.dumps(config))
    done = _cli("train", str(tmp_path / "mine.json"), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    toy = mi.toys.load(tmp_path / "run" / "model.safetensors")
    assert toy.modulus == 7
    assert toy.train is not None


def _cli(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mi_ablate.cli", *arguments], capture_output=True, text=True, timeout=300
    )
