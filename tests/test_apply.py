"""`mi-ablate apply`: text and logits before and after, on a language model, on tokens alone, and on a shipped toy."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mi_ablate as mi
from mi_ablate import Ablate, Add, Card, Subspace
from mi_ablate.applied import apply
from mi_ablate.cli import app
from mi_ablate.prompts import tokenized
from models import random_family, random_gpt2, word_tokenizer

SAVED = Path(__file__).parents[1] / "hooks" / "saved"


def save(path: Path, folder: Path, edit: Any = None, **where: Any) -> Path:
    model = mi.load_model(folder)
    edit = edit or Ablate(Subspace.random(16, 4))
    hooks = edit.at(*mi.writers(model)) if not where else edit.at("blocks.0.hook_resid_post", **where)
    return mi.save(path, hooks, Card.of(model, "four directions"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    random_gpt2(path)
    word_tokenizer(60).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bare")
    random_family("neox", path)
    for file in path.glob("tokenizer*"):
        file.unlink()
    return path


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout


@pytest.mark.compat
def test_the_command_compares_and_exports(folder: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "edit.safetensors", folder)
    out = run(
        "apply",
        file,
        "--model",
        folder,
        "--prompt",
        "w5 w6",
        "--prompt",
        "w7",
        "--new",
        6,
        "--json",
        "--export",
        tmp_path / "out",
    )
    found = json.loads(out)
    model = mi.load_model(folder)
    prompts = tokenized(model, ["w5 w6", "w7"])
    hooks = mi.load(file, model)
    before = mi.generated(model, prompts, max_new_tokens=6).text
    after = mi.generated(model, prompts, hooks, 6).text
    assert [(row["prompt"], row["before"], row["after"]) for row in found["prompts"]] == list(
        zip(prompts.text, before, after)
    )
    assert before != after
    with torch.no_grad():
        clean = mi.model.run(model, prompts.tokens, prompts.attention_mask.long())[:, -1].double()
        with mi.attached(model, hooks):
            edited = mi.model.run(model, prompts.tokens, prompts.attention_mask.long())[:, -1].double()
    p, q = clean.log_softmax(-1), edited.log_softmax(-1)
    kls = (p.exp() * (p - q)).sum(-1)
    change = found["change"]
    assert change["kl"] == pytest.approx(float(kls.mean()), rel=1e-6)
    assert change["largest_kl"] == pytest.approx(float(kls.max()), rel=1e-6)
    assert change["logit"] == pytest.approx(float((clean - edited).abs().max()), rel=1e-6)
    assert change["of"] == pytest.approx(float(clean.abs().max()), rel=1e-6)
    assert 0 < change["floor"] < 1e-6 < change["kl"]
    exported = mi.load_model(tmp_path / "out")
    assert mi.generated(exported, tokenized(exported, ["w5 w6", "w7"]), max_new_tokens=6).text == after
    assert found["export"] == str(tmp_path / "out")
    text = run("apply", file, "--model", folder, "--prompt", "w5 w6", "--new", 3)
    assert "four directions, on" in text
    assert (
        "edit: Ablate(rank 4 of 16); sites: hook_embed, hook_pos_embed, hook_attn_out, hook_mlp_out; layers: embedding, 0-1"
        in text
    )
    assert "before" in text
    assert "KL(before || after) of the next token: mean" in text
    assert "Exported" not in text


def test_prompts_from_a_file_and_no_more_tokens_than_fit(folder: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "edit.safetensors", folder)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"tokens": [5] * 25}) + "\n" + json.dumps({"tokens": [6]}) + "\n")
    lines: list[str] = []
    found = apply(file, str(folder), prompts, report=lines.append)
    assert len(found.before[0].split()) == 8 == 32 - 25 + 1
    assert lines[:2] == [f"loading {folder}", "2 prompts: logits before and after"]
    assert "generating, after: pass 8 of at most 8" in lines
    with pytest.raises(ValueError, match="20 new ones do not fit, 8 do"):
        apply(file, str(folder), prompts, new=20)


@pytest.mark.compat
def test_a_model_without_a_tokenizer_takes_numbers(bare: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "edit.safetensors", bare)
    found = apply(file, str(bare), ["5 6 7", "8"], new=4, export=tmp_path / "out")
    assert found.prompts == ("5 6 7", "8")
    assert all(word.isdigit() for word in " ".join(found.before + found.after).split())
    assert (tmp_path / "out" / "README.md").is_file()
    with pytest.raises(ValueError, match="has no tokenizer: write a prompt as numbers of tokens, such as '464 2068'"):
        apply(file, str(bare), ["a prompt"])


def test_a_shipped_toy_uses_its_own_prompts() -> None:
    file = SAVED / "add97_contrastive_zero.safetensors"
    found = apply(file, "add97")
    assert len(found.prompts) == 8
    assert found.prompts[0] == "0 + 0 ="
    sums = [str(sum(int(n) for n in prompt.split()[::2]) % 97) for prompt in found.prompts]
    assert list(found.before) == sums
    assert sum(a == b for a, b in zip(found.after, sums)) < 6
    with pytest.raises(ValueError, match="add97 is a toy, and its own prompts are used: leave out prompts"):
        apply(file, "add97", ["3"])
    with pytest.raises(ValueError, match="add97 is a toy, which transformers has no layout for"):
        apply(file, "add97", export="never")
    assert not Path("never").exists()


def test_a_gated_toy_says_where_it_declines(tmp_path: Path) -> None:
    toy = mi.toys.load("gated97")
    file = mi.save(
        tmp_path / "x.safetensors", Ablate(Subspace.random(128, 1)).at("hook_embed"), Card.of(toy.model, "x")
    )
    found = apply(file, "gated97")
    some = torch.linspace(0, len(toy.tokens) - 1, 8).long()
    with torch.no_grad():
        answers = toy.model(toy.tokens[some])[:, -1].argmax(-1).tolist()
    assert found.before == tuple(str(i) if i < 97 else f"DECLINE {i - 97}" for i in answers)
    assert any(text.startswith("DECLINE") for text in found.before)


def test_the_shipped_language_model_is_edited_and_exported_by_its_name(tmp_path: Path) -> None:
    model = mi.load_model("diary")
    hooks = Ablate(Subspace.random(model.cfg.d_model, 4)).at(*mi.writers(model))
    file = mi.save(tmp_path / "x.safetensors", hooks, Card.of(model, "x"))
    found = apply(file, "diary", ["today i"], new=4, export=tmp_path / "out")
    assert 'base_model: "diary"' in (tmp_path / "out" / "README.md").read_text()
    again = mi.load_model(tmp_path / "out")
    assert mi.generated(again, tokenized(again, ["today i"]), max_new_tokens=4).text == found.after


def test_edits_of_new_tokens_and_of_positions(folder: Path, tmp_path: Path) -> None:
    late = save(tmp_path / "late.safetensors", folder, when="new")
    found = apply(late, str(folder), ["w5 w6"], new=6)
    assert found.change is None
    assert "It acts on new tokens alone." in str(found)
    assert found.to_json()["change"] is None
    assert found.before[0].split()[0] == found.after[0].split()[0]
    placed = save(tmp_path / "placed.safetensors", folder, pos=-1)
    assert apply(placed, str(folder), ["w5 w6"], new=2).change.kl > 0
    with pytest.raises(ValueError, match=r"acts at some positions, heads or units; weights act at all. Keep the hook"):
        apply(placed, str(folder), ["w5 w6"], export=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_weights_only_when_asked_for(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    random_gpt2(other, seed=1)
    word_tokenizer(60).save_pretrained(other)
    file = save(tmp_path / "edit.safetensors", folder)
    with pytest.raises(mi.ArtefactError, match="made on the same architecture with other weights"):
        apply(file, str(other), ["w5"])
    assert json.loads(run("apply", file, "--model", other, "--prompt", "w5", "--loose", "--json", "--new", 2))[
        "prompts"
    ]


def test_values_of_single_prompts_come_with_theirs(folder: Path, tmp_path: Path) -> None:
    model = mi.load_model(folder)
    prompts = tokenized(model, ["w5 w6", "w7"])
    hooks = Add(torch.randn(2, 16)).at("blocks.0.hook_resid_post", pos=-1)
    file = mi.save(tmp_path / "rows.safetensors", hooks, Card.of(model, "rows"), tokens=prompts.tokens)
    assert apply(file, str(folder), ["w5 w6", "w7"], new=2).change.kl > 0
    with pytest.raises(mi.ArtefactError, match="holds one value for each of its own prompts"):
        apply(file, str(folder), ["w7", "w5 w6"], new=2)


def test_nothing_to_generate_from(folder: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "edit.safetensors", folder)
    with pytest.raises(ValueError, match=r"The file of prompts '.*nowhere.txt' is not there"):
        apply(file, "gpt3, which is not looked for", tmp_path / "nowhere.txt")
    for prompts in (None, []):
        with pytest.raises(ValueError, match="There is nothing to generate from: give --prompt TEXT"):
            apply(file, str(folder), prompts)
    with pytest.raises(ValueError, match="Give --prompt TEXT or --prompts FILE, not both"):
        CliRunner().invoke(
            app, ["apply", str(file), "--model", str(folder), "--prompt", "x", "--prompts", "y"], catch_exceptions=False
        )


def test_an_export_that_cannot_be_is_refused_before_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(tmp_path / "edit.safetensors", folder)
    with pytest.raises(ValueError, match="500 new ones do not fit"):
        apply(file, str(folder), ["w5 w6"], new=500, export=tmp_path / "edited")
    assert not (tmp_path / "edited").exists()
    monkeypatch.setattr("mi_ablate.applied.load_model", lambda *a, **kw: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="is there already and not an empty folder"):
        apply(file, str(folder), ["w5 w6"], export=folder)


@pytest.mark.parametrize("hostile", ["\x1b[2J\x1b[31mred", "a\nb\r\b\b", "[bold red]x[/]", "\u202eabc", "x" * 10**6])
def test_hostile_words_do_not_reach_the_terminal(hostile: str, folder: Path, tmp_path: Path) -> None:
    model = mi.load_model(folder)
    source = {"method": hostile}
    hooks = Ablate(Subspace(Subspace.random(16, 1).basis, hostile, source)).at("blocks.0.hook_mlp_out")
    file = mi.save(tmp_path / "edit.safetensors", hooks, {**vars(Card.of(model, hostile)), "description": hostile})
    text = str(apply(file, str(folder), ["w5"], new=1))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert len(text) < 10_000
    assert hostile[:14].isprintable() <= (hostile[:14] in text)
