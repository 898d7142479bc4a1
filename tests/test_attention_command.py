"""`mi-ablate attention`: toys, folders with and without a tokenizer, clean and edited, the page in a browser, bad input."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mi_ablate as mi
from browser import open_offline
from mi_ablate import Ablate, Add, Card, Subspace
from mi_ablate.attention_view import page, view
from mi_ablate.attention_view.asked import heads_of, layers_of
from mi_ablate.cli import app
from mi_ablate.figures.coloured import visible
from models import random_gpt2, word_tokenizer

SAVED = Path(__file__).parents[1] / "hooks" / "saved"
ZERO = SAVED / "add97_contrastive_zero.safetensors"
S = Subspace.random(16, 1, seed=3)
HOSTILE = ["</script><script>document.title='run'</script>", "<img src=x onerror=document.title='run'>", "\u202eab\x00"]


def run(*arguments):
    done = CliRunner().invoke(app, ["attention", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A GPT-2 with a tokenizer of 60 words, a few of them hostile."""
    path = tmp_path_factory.mktemp("gpt2")
    random_gpt2(path)
    word_tokenizer(60).save_pretrained(path)
    text = json.loads((path / "tokenizer.json").read_text())
    vocab = text["model"]["vocab"]
    for i, word in enumerate(HOSTILE):
        del vocab[f"w{50 + i}"]
        vocab[word.replace(" ", "\u00a0")] = 50 + i
    text["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
    (path / "tokenizer.json").write_text(json.dumps(text))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return mi.load_model(str(folder))


@pytest.fixture(scope="module")
def saved(folder, model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("edit") / "planted.safetensors"
    return mi.save(path, Ablate(S).at("hook_embed"), Card.of(model, "a planted direction"))


@pytest.mark.compat
def test_what_is_shown_is_what_run_with_cache_gives(folder, model, saved) -> None:
    found = view(str(folder), "w3 w4 w5 w6", [saved], heads="0.1,1.0")
    tokens = model.to_tokens("w3 w4 w5 w6")
    assert found.asked.tokens.tolist() == tokens[0].tolist()
    clean, cache = model.run_with_cache(tokens)
    for i, (layer, head) in enumerate(((0, 1), (1, 0))):
        torch.testing.assert_close(found.patterns[i], cache[f"blocks.{layer}.attn.hook_pattern"][0, head])
    for i in (0, 1):
        wanted = cache[f"blocks.{i}.hook_resid_post"][0].double() @ S.basis[:, 0]
        torch.testing.assert_close(found.coordinates[i], wanted)
    best = clean[0, -1].double().softmax(-1).topk(5)
    assert [row["token"] for row in found.following[:5]] == [f"w{i}" for i in best.indices]
    torch.testing.assert_close(torch.tensor([row["clean"] for row in found.following[:5]]).double(), best.values)
    assert found.direction == "direction 1 of 1 of planted"


@pytest.mark.compat
def test_edited_is_edited_and_strength_0_is_clean(folder, model, saved, tmp_path) -> None:
    def shown(strength):
        hooks = Ablate(S, strength=strength).at("hook_embed")
        return view(str(folder), "w3 w4 w5 w6", [mi.save(tmp_path / "s.safetensors", hooks, Card.of(model, "s"))])

    none, whole = shown(0.0), shown(1.0)
    assert torch.equal(none.edited_patterns, none.patterns)
    assert torch.equal(none.edited_coordinates, none.coordinates)
    assert none.changed.top(4) == ()
    assert [row["clean"] for row in none.following] == [row["edited"] for row in none.following]
    assert len(whole.heads) == 4
    assert whole.heads == whole.changed.top(4)
    assert (whole.edited_patterns - whole.patterns).abs().amax((1, 2)).min() > 0
    with mi.attached(model, Ablate(S).at("hook_embed")):
        _, cache = model.run_with_cache(model.to_tokens("w3 w4 w5 w6"))
    for (layer, head), pattern in zip(whole.heads, whole.edited_patterns):
        torch.testing.assert_close(pattern, cache[f"blocks.{layer}.attn.hook_pattern"][0, head])
    assert {"clean", "edited", "control"} <= set(whole.following[0])
    assert "vectors where the edit acts, 1 prompt" in whole.control


def test_several_edits_act_at_once(folder, model, saved, tmp_path) -> None:
    back = Add(S.basis[:, 0] * 2.0).at("blocks.0.hook_resid_post")
    second = mi.save(tmp_path / "add.safetensors", back, Card.of(model, "add"))
    both = view(str(folder), "w3 w4", [saved, second])
    first = view(str(folder), "w3 w4", [saved])
    torch.testing.assert_close(both.edited_coordinates[0], first.edited_coordinates[0] + 2.0)
    assert len(both.edits) == 2


@pytest.mark.compat
def test_a_toy_reads_words_or_ids(tmp_path) -> None:
    texts = [run("add97", prompt, "--edit", ZERO, "--out", tmp_path, "--json") for prompt in ("5 + 9 =", "5,97,9,98")]
    words, ids = map(json.loads, texts)
    assert words["tokens"] == ids["tokens"] == ["5", "+", "9", "="]
    assert words["ids"] == [5, 97, 9, 98]
    assert words["next_token"][0]["token"] == "14"
    assert words["next_token"][0]["clean"] > 0.9
    assert words["next_token"][0]["edited"] < 0.1
    assert words["heads_changed"][0]["moved"] == 0, "the edit is after the last attention"
    assert "where nothing reads it" in Path(words["page"]).read_text()
    assert words["control"] == "covariance of 512 vectors where the edit acts, 512 prompts"
    assert words["coordinates"]["edited"][1][-1] == pytest.approx(0, abs=1e-5)


def test_a_toy_that_declines_says_so() -> None:
    found = view("gated97", "0 + 12 =", dtype="float64")
    assert found.following[0]["token"] == "DECLINE 0"
    assert found.patterns.dtype == torch.float64


def test_without_an_edit_the_first_heads_and_no_direction(tmp_path) -> None:
    text = run("add97", "5+9=", "--out", tmp_path)
    assert "next token:" in text
    assert "14" in text
    written = (tmp_path / "attention.html").read_text()
    assert "Tokens along the direction" not in written
    assert "Which heads change most" not in written
    assert "mi-pair" not in written
    assert len(view("add97", "5+9=").heads) == 8
    coloured = view("add97", "5+9=", direction=ZERO, layers="1")
    assert coloured.heads == ((1, 0), (1, 1), (1, 2), (1, 3))
    assert coloured.layers == (1,)
    assert coloured.coordinates.shape == (1, 4)
    assert coloured.direction == "direction 1 of 20 of add97_contrastive_zero"


@pytest.mark.compat
def test_a_folder_without_a_tokenizer_takes_ids(tmp_path) -> None:
    random_gpt2(tmp_path / "bare")
    found = view(str(tmp_path / "bare"), "5, 9,11")
    assert found.asked.strings == ["5", "9", "11"]
    assert len(found.heads) == 4
    with pytest.raises(
        ValueError, match="no tokenizer, so the prompt is token ids with commas, such as 5,97,9,98; 'w3' is not"
    ):
        view(str(tmp_path / "bare"), "w3")
    with pytest.raises(ValueError, match="99"):
        view(str(tmp_path / "bare"), "5,99")


def test_prompts_of_a_file_give_the_table_and_its_control(folder, saved, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("w3 w4 w5\nw6 w7\nw8 w9 w2 w1\n")
    found = view(str(folder), "w3 w4", [saved], prompts=tmp_path / "prompts.txt")
    assert found.asked.over == "3 prompts"
    assert found.changed.prompts == 3
    assert found.control.startswith("covariance of ")
    with pytest.raises(ValueError, match="add97 is a toy, and its own prompts are used: leave out --prompts"):
        view("add97", "5 + 9 =", prompts=tmp_path / "prompts.txt")


@pytest.mark.slow
def test_hostile_tokens_in_the_page(folder, saved, tmp_path) -> None:
    prompt = " ".join(["w3", *(word.replace(" ", "\u00a0") for word in HOSTILE), "w4"])
    text = run(folder, prompt, "--edit", saved, "--out", tmp_path)
    assert not re.search("[\x00\u202e]", text), "nor in the terminal"
    dom, log = open_offline(tmp_path / "attention.html", tmp_path / "profile", 1200)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert "<title>run</title>" not in dom
    body = dom.split("<body>")[1]
    assert "<img" not in body
    for i in ("attention-1", "attention-1-against"):
        assert body.split(f'<div id="{i}"')[1].split("<script")[0].count("<canvas") == 5, (
            "four heads and the zoomed one"
        )
    shown = re.findall(r"<bdi>([^<]*)</bdi>", body)
    assert len(shown) == 2 * 2 * 6, "two runs, two layers, six tokens"
    assert shown[4].replace("&lt;", "<") == visible(HOSTILE[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add97", " "], "The prompt is empty; for example 'The cat sat on the'"),
        (["add97", "5 ^ 9 ="], r"add97 has no token '\^'. Nearest names: .* look like '0 \+ 5 ='"),
        (["add97", "5 + 97 ="], "add97 has no token '97'"),
        (["add97", "5,97,9,99"], "Token 99 is outside this toy's vocabulary"),
        (["add97", "5 + 9 = 1"], "The prompts have 5 tokens; the model has positions for 4"),
        (["add97", "5 + 9 =", "--layers", "0-2"], "Layer 2 is out of range: the model has 2, so 0 to 1"),
        (["add97", "5 + 9 =", "--layers", "one"], "Layers 'one': write numbers and ranges with commas, such as 0,3-5"),
        (["add97", "5 + 9 =", "--heads", "0.1,0.4"], "no head 0.4: layers go from 0 to 1, heads from 0 to 3"),
        (["add97", "5 + 9 =", "--dtype", "foo"], "dtype 'foo' is no floating PyTorch dtype"),
        (["add97", "5 + 9 =", "--device", "cuda:99"], "cuda:99"),
        (
            ["add97", "5 + 9 =", "--edit", str(ZERO), "--draws", "0"],
            "draws=0: the control of an edit is drawn at least",
        ),
        (["add97", "5 + 9 =", "--heads", "3"], "Heads '3': write layer.head with commas, such as 0.1,2.3"),
        (["add97", "\udcff"], "bytes that are not UTF-8"),
        (
            ["addmul97", "5 + 9 =", "--edit", str(ZERO)],
            "made on (another architecture|the same architecture with other weights)",
        ),
        (["nanda113", "5 9 =", "--edit", str(ZERO)], "made on another architecture"),
        (["no-such-model", "x"], "is no shipped toy, no local file or folder"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tmp_path, capsys, monkeypatch) -> None:
    from mi_ablate.cli import main

    monkeypatch.setattr("sys.argv", ["mi-ablate", "attention", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert re.search(message, said[0])
    assert not (tmp_path / "out").exists()


def test_directions_that_do_not_fit(folder, model, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"contrastive_zero.safetensors has width 128; the residual stream of this model has 16"
    ):
        view(str(folder), "w3", direction=ZERO)
    whole = mi.save(tmp_path / "w.safetensors", Ablate(None).at("blocks.0.attn.hook_z", head=0), Card.of(model, "head"))
    with pytest.raises(ValueError, match="has no direction to colour tokens by: No hook here has a subspace"):
        view(str(folder), "w3", direction=whole)
    found = view(str(folder), "w3 w4", [whole])
    assert found.coordinates is None
    assert found.control == "none: the edit at blocks.0.attn.hook_z has no subspace to replace."
    assert "Tokens along" not in page.write(found, tmp_path / "page.html").read_text()


def test_too_much_for_one_page_is_refused(folder, saved, monkeypatch) -> None:
    monkeypatch.setattr("mi_ablate.attention_view.run.CELLS", 60)
    with pytest.raises(
        ValueError, match=r"2 heads over 5 tokens are 100 numbers, too many for one page. .* at most 3 tokens"
    ):
        view(str(folder), "w3 w4 w5 w6", [saved], heads="0.0,0.1")
    assert len(view(str(folder), "w3 w4 w5 w6", [saved]).heads) == 1, "the default fits"


def test_layers_and_heads_of_text() -> None:
    assert layers_of(None, 3) == [0, 1, 2]
    assert layers_of("2, 0-1,1", 3) == [0, 1, 2]
    assert heads_of("1.0, 0.2,1.0", 2, 3) == [(1, 0), (0, 2)]
    with pytest.raises(ValueError, match="such as 0,3-5"):
        layers_of("3-1", 5)


def test_one_huge_first_token_does_not_set_the_colours(folder, saved) -> None:
    from dataclasses import replace

    found = view(str(folder), "w3 w4 w5", [saved])
    far = found.coordinates.clone()
    far[:, 0] = 1e4
    assert page._limit([far]) == pytest.approx(float(found.coordinates[:, 1:].abs().max()))
    assert page._limit([found.coordinates]) == pytest.approx(float(found.coordinates.abs().max()))
    assert page._limit([torch.zeros(1, 1)]) is None
    written = page.summary(replace(found, asked=replace(found.asked, prompt="x" * 200)))
    assert "x" * 79 + "…" in written
