"""`mi-ablate show`: a saved file in words, on the shipped ones and on a language model with a tokenizer."""

import json
import re
from pathlib import Path

import pytest
import torch

import mi_ablate as mi
from mi_ablate import Ablate, Card, Subspace
from mi_ablate.cli import app
from mi_ablate.shown import show
from models import random_gpt2, word_tokenizer

SAVED = Path(__file__).parents[1] / "hooks" / "saved"
ZERO, CIRCLE = SAVED / "add97_contrastive_zero.safetensors", SAVED / "add97_answer_circle_mean.safetensors"


def test_a_shipped_file_finds_its_model_and_names_tokens_and_inputs() -> None:
    text = str(show(ZERO, against=[CIRCLE], directions=1, top=2))
    assert "add97_contrastive_zero, on the shipped add97" in text
    assert "edited: 0.233, 98% of the variance removed" in text
    assert "on add97:" in text
    assert re.search(r"largest in: '\d+ \+ \d+ =' \+", text)
    assert "cosine 0.9" in text or "cosine +0.9" in text, "the leading contrastive direction lies in the answer circle"


def test_the_command_prints_one_json_object() -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["show", str(ZERO), "--json", "--directions", "1", "--top", "1"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["model"] == "add97"
    assert found["directions"][0]["promotes"][0][1] > 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt2")
    random_gpt2(path)
    word_tokenizer(60).save_pretrained(path)
    return path


@pytest.mark.compat
def test_prompts_of_text_are_read_by_the_models_tokenizer(folder: Path, tmp_path: Path) -> None:
    model = mi.load_model(str(folder))
    hooks = Ablate(Subspace.random(16, 1)).at("blocks.0.hook_resid_post")
    path = mi.save(tmp_path / "x.safetensors", hooks, Card.of(model, "x"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w3 w4 w5\nw6 w7\n")
    shown = show(path, str(folder), prompts=prompts, top=1)
    [one] = shown.explanation.directions
    assert one.promotes[0][0].startswith("w")
    assert {one.highest[0][0].split()[-1], one.lowest[0][0].split()[-1]} <= {"w5", "w7", "w1"}
    prompts.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt: one a line"):
        show(path, str(folder), prompts=prompts)


def test_prompts_that_nothing_can_read_are_refused(tmp_path: Path) -> None:
    random_gpt2(tmp_path / "bare")
    (tmp_path / "prompts.txt").write_text("w3\n")
    with pytest.raises(ValueError, match="has no tokenizer, so prompts of text cannot be read"):
        show(ZERO, str(tmp_path / "bare"), prompts=tmp_path / "prompts.txt")
    with pytest.raises(ValueError, match="add97 is a toy, and all of its own prompts are used: leave out --prompts"):
        show(ZERO, prompts=tmp_path / "prompts.txt")


def test_a_file_of_no_shipped_model_shows_its_card_alone(tmp_path: Path, model) -> None:
    hooks = Ablate(Subspace.random(16, 1)).at("blocks.0.hook_resid_post")
    path = mi.save(tmp_path / "x.safetensors", hooks, Card.of(model, "a title", description="in words"))
    text = str(show(path))
    assert "a title\nin words" in text
    assert "edit: Ablate at blocks.0.hook_resid_post" in text
    assert "no shipped model has these weights" in text
    assert show(path).to_json()["directions"] is None
    with pytest.raises(ValueError, match="need the model that the file was made on: give --model"):
        show(path, against=[ZERO])


def test_per_example_values_are_described_without_their_prompts(tmp_path: Path, model) -> None:
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    hooks = Ablate(None, torch.zeros(3, 16)).at("blocks.0.hook_resid_post", pos=-1)
    path = mi.save(tmp_path / "x.safetensors", hooks, Card.of(model, "rows"), tokens=tokens)
    assert "edit: Ablate at blocks.0.hook_resid_post, pos -1" in str(show(path))
