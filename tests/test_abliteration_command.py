"""`mi-ablate ablate` end to end: files in, page, edit and folder out, and every wrong input said in one sentence."""

import json
import shlex
import sys
import warnings

import pytest
import torch

import mi_ablate as mi
from mi_ablate import cli
from mi_ablate.prompts import tokenized

WORDS = [f"w{i}" for i in range(60)]
OPENINGS = [f"{a} {b} {c}" for a in WORDS[:8] for b in WORDS[8:12] for c in WORDS[12:14]]


@pytest.fixture(scope="module", params=["gpt2", "neox"])
def folder(request, tmp_path_factory):
    """A random model of each family with a word-level tokenizer, whose last word decides what it says."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    from test_loading import small_tokenizer

    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    size = len(tokenizer)
    place = tmp_path_factory.mktemp("models") / request.param
    if request.param == "gpt2":
        config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=size, n_positions=24, initializer_range=0.3)
        model = GPT2LMHeadModel(config)
    else:
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=size,
                max_position_embeddings=24, initializer_range=0.3,
            )
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def prompts(words: list[str], last: str) -> list[str]:
    """48 prompts of three to five words of the vocabulary with one ending."""
    generator = torch.Generator().manual_seed(len(last))
    rows = []
    for i in range(48):
        picked = torch.randint(0, len(words), (3 + i % 3,), generator=generator).tolist()
        rows.append(" ".join([*(words[p] for p in picked), last]))
    return list(dict.fromkeys(rows))


@pytest.fixture
def files(folder, tmp_path):
    model = mi.load_model(folder)
    vocabulary = sorted(w for w in model.tokenizer.get_vocab() if w.isalnum())  # of its own it has no order
    plus, minus = tmp_path / "plus.txt", tmp_path / "minus.txt"
    plus.write_text("\n".join(prompts(vocabulary[:20], vocabulary[21])) + "\n", encoding="utf-8")
    minus.write_text("\n".join(prompts(vocabulary[:20], vocabulary[22])) + "\n", encoding="utf-8")
    return plus, minus


def ablate(monkeypatch, capsys, *words) -> tuple[str, str]:
    """stdout and stderr of the command; SystemExit of an error passes through."""
    monkeypatch.setattr(sys, "argv", ["mi-ablate", "ablate", *map(str, words)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise
    out = capsys.readouterr()
    return out.out, out.err


def test_files_in_page_edit_and_folder_out(folder, files, tmp_path, monkeypatch, capsys) -> None:
    plus, minus = files
    given = ("--positive", plus, "--negative", minus, "--out", tmp_path / "out", "--export", tmp_path / "edited")
    out, _ = ablate(monkeypatch, capsys, folder, *given, "--draws", 2, "--new", 3, "--json")
    found = json.loads(out)
    assert found["shown"]
    assert found["gap"]["low"] > 0
    assert found["removed"]["edited"] > 0.3  # a random model: no more is claimed
    assert found["prompts"]["test"]["positive"] >= 10
    assert (tmp_path / "out" / "ablate.html").is_file()
    model = mi.load_model(folder)
    hooks = mi.load(found["edit"], model)
    probe = tokenized(model, plus)[:4]
    mask = probe.attention_mask.long()
    with torch.no_grad(), mi.attached(model, hooks):
        hooked = model(probe.tokens, attention_mask=mask)
    edited = mi.load_model(found["folder"])
    with torch.no_grad():
        weights = edited(probe.tokens, attention_mask=mask)
        clean = model(probe.tokens, attention_mask=mask)
    real = probe.attention_mask
    assert float((hooked - weights)[real].abs().max() / hooked[real].abs().max()) < 1e-4
    assert float((clean - weights)[real].abs().max()) > 1e-2


def test_the_summary_names_the_effect_its_controls_and_the_files(folder, files, tmp_path, monkeypatch, capsys) -> None:
    plus, minus = files
    given = ("--positive", plus, "--negative", minus, "--out", tmp_path / "out", "--draws", 2, "--limit", 2, "--new", 0)
    out, err = ablate(monkeypatch, capsys, folder, *given)
    text = " ".join(out.split())
    assert "of the way to the negative ones" in text
    assert "(controls: " in text
    assert "covariance " in text
    assert f"Page: {tmp_path / 'out' / 'ablate.html'}" in out
    tried = err.split("Try: ")[1].strip()
    monkeypatch.setattr(sys, "argv", [*shlex.split(tried), "--new", "2"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, "what it says to try works"
    assert "KL(before || after)" in capsys.readouterr().out


def test_a_folder_without_a_tokenizer_takes_tokens(folder, tmp_path, monkeypatch, capsys) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / name).read_bytes())
    generator = torch.Generator().manual_seed(0)
    for name, last in (("plus", 41), ("minus", 42)):
        rows = [[*torch.randint(0, 40, (4,), generator=generator).tolist(), last] for _ in range(32)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"tokens": row}) + "\n" for row in rows))
    given = ("--positive", tmp_path / "plus.jsonl", "--negative", tmp_path / "minus.jsonl", "--out", tmp_path / "out")
    out, _ = ablate(monkeypatch, capsys, bare, *given, "--answers", "5", "--against", "7", "--draws", 1, "--json")
    assert [row["id"] for row in json.loads(out)["answers"]] == [5, 7]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--positive", "PLUS"], "Two sets of prompts are needed: --positive FILE and --negative FILE"),
        (["--positive", "PLUS", "--negative", "MINUS", "--contrast", "mood"], "not both"),
        (["--positive", "PLUS", "--negative", "absent.txt"], "absent.txt"),
        (["--positive", "PLUS", "--negative", "MINUS", "--answers", "notaword"], "is no single token of this model"),
        (["--positive", "PLUS", "--negative", "MINUS", "--against", "w1"], "at least one answer that the behaviour"),
        (["--positive", "PLUS", "--negative", "MINUS", "--by", "luck"], "by='luck'"),
        (["--positive", "PLUS", "--negative", "MINUS", "--sites", "resid_past"], "resid_past"),
        (["--positive", "PLUS", "--negative", "MINUS", "--last", "99"], "last=99: the shortest prompt has"),
        (["--positive", "PLUS", "--negative", "MINUS", "--draws", "0"], "draws=0: it has to be 1 or more"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder, files, words, text, tmp_path, monkeypatch, capsys) -> None:
    names = {"PLUS": files[0], "MINUS": files[1]}
    words = [names.get(word, word) for word in words]
    with pytest.raises(SystemExit) as end:
        ablate(monkeypatch, capsys, folder, *words, "--out", tmp_path / "out")
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists(), "nothing is written where something was wrong"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--negative", "absent.txt"], "absent.txt' is not there"),
        (["--negative", "PLUS"], "is given for both kinds"),
        (["--out", "PLUS"], "is a file. Give another folder"),
        (["--export", "HERE"], "is there already and not an empty folder"),
        (["--export", "PLUS/edited"], "is a file. Give another folder"),
    ],
)
def test_what_can_be_known_is_said_before_the_model_is_loaded(words, text, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "PLUS").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "MINUS").write_text("three\nfour\n", encoding="utf-8")
    (tmp_path / "HERE").mkdir()
    (tmp_path / "HERE" / "mine").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mi_ablate.loading.load_model", lambda *a, **kw: pytest.fail("loaded"))
    given = ["--positive", "PLUS", "--negative", "MINUS", "--out", "out", *words]
    with pytest.raises(SystemExit) as end:
        ablate(monkeypatch, capsys, "diary", *given)
    assert end.value.code == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_search_that_cannot_run_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, capsys) -> None:
    for trials, text in (
        (0, "--tune 0: at least one trial"),
        (3, "--tune needs optuna: pip install 'mi_ablate[tune]'"),
    ):
        if trials:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SystemExit) as end:
            ablate(monkeypatch, capsys, "diary", "--contrast", "mood", "--tune", trials, "--out", tmp_path / "out")
        assert end.value.code == 2
        assert text in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
