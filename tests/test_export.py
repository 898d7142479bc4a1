"""Hook = weight = exported folder: transformers gives the same logits, and nothing else changes on the way."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Add, Card, Subspace
from mi_ablate._model_card import edits, model_card, table, text
from mi_ablate.export import exported
from models import random_family, random_gpt2, word_tokenizer

FAMILIES = ("gpt2", "gpt2, untied", "neox", "llama", "qwen2", "mistral")
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}


def saved(kind: str, folder: Path, dtype: torch.dtype) -> Path:
    """A random model of a family in a dtype, no weight zero, with a tokenizer and settings for generation."""
    import transformers as hf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind.startswith("gpt2"):
            model = random_gpt2(folder)
        elif kind == "mistral":
            sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
            config = hf.MistralConfig(
                **sizes, intermediate_size=24, max_position_embeddings=32, vocab_size=60, bos_token_id=0, eos_token_id=0
            )
            torch.manual_seed(0)
            model = hf.MistralForCausalLM(config)
        else:
            random_family(kind, folder)
            model = hf.AutoModelForCausalLM.from_pretrained(folder)
        if kind == "gpt2, untied":
            model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
            model.config.tie_word_embeddings = False
        model.generation_config.max_length = 23
        model.to(dtype).save_pretrained(folder)
    word_tokenizer(60).save_pretrained(folder)
    (folder / "LICENSE.txt").write_text("of the base model")
    return folder


def state(folder: Path, dtype: Any = "auto") -> tuple[dict[str, Tensor], Any]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return {name: value.clone() for name, value in model.state_dict().items()}, model


def logits_of(folder: Path, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return state(folder)[1](tokens).logits.double()


def edits_for(d: int) -> dict[str, Callable[[Any], Any]]:
    """Edits alone and placed, linear and with a constant."""
    mean = torch.linspace(-1, 2, d, dtype=torch.float64)
    return {
        "a subspace alone": lambda model: Ablate(Subspace.random(d, 3)),
        "to a mean": lambda model: Ablate(Subspace.random(d, 2), mean),
        "partial, one direction a layer": lambda model: mi.per_layer(
            model, {i: Ablate(Subspace.random(d, 1, seed=i)) for i in range(2)}, strength=[0.5, 1.3]
        ),
    }


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(1))


CASES = [
    pytest.param(kind, dtype, marks=[pytest.mark.compat] if kind in ("gpt2", "neox") else [], id=f"{kind}, {dtype}")
    for kind in FAMILIES
    for dtype in ROUNDING
    if dtype is torch.float64 or kind in ("gpt2", "neox")
]


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_hooks_weights_and_the_folder_are_the_same_model(
    kind: str, dtype: torch.dtype, tokens: Tensor, tmp_path: Path
) -> None:
    source = saved(kind, tmp_path / "base", dtype)
    model = mi.load_model(source, dtype=dtype)
    before, plain = state(source)
    with torch.no_grad():
        clean = plain(tokens).logits.double()
    for number, (name, make) in enumerate(edits_for(16).items()):
        edit = make(model)
        hooks = (
            edit.at(*mi.writers(model))
            if isinstance(edit, Ablate) and edit.to is None
            else mi.weights.as_hooks(model, edit)
        )
        out = exported(model, edit, source, tmp_path / f"out{number}", card=Card.of(model, name))
        after, written = state(out)
        with torch.no_grad():
            found = written(tokens).logits.double()
            with mi.attached(model, hooks):
                hooked = model(tokens).double()
            with mi.baked(model, edit, untie=True):
                baked = model(tokens).double()
            again = mi.load_model(out, dtype=dtype)(tokens).double()
        own = ROUNDING[dtype] if kind.startswith("gpt2") else 1e-6  # rotary angles and RMSNorm are float32 there
        for reference in (hooked, baked):
            assert (again - reference).abs().max() < ROUNDING[dtype] * reference.abs().max(), name
            assert (found - reference).abs().max() < max(own, ROUNDING[dtype]) * reference.abs().max(), name
        assert (found - clean).abs().max() > 1e-2 * clean.abs().max(), f"{name} changes something"
        assert written.dtype == dtype
        assert set(after) == set(before)
        writing = ("wte", "wpe", "c_proj", "embed_in", "dense.", "dense_4h_to_h", "embed_tokens", "o_proj", "down_proj")
        for key, value in after.items():
            same = torch.equal(value, before[key])
            assert same or any(part in key for part in writing), f"{key} is no writer"
            if number == 0 and any(part in key for part in writing) and "lm_head" not in key:
                assert not same, f"{key} was left out"


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["gpt2", "neox"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_strength_zero_is_the_source_to_the_bit_and_its_files_are_kept(
    kind: str, dtype: torch.dtype, tokens: Tensor, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    source = saved(kind, tmp_path / "base", dtype)
    model = mi.load_model(source)
    out = exported(model, Ablate(Subspace.random(16, 3), strength=0.0), source, tmp_path / "a" / "b", card={})
    before, after = state(source)[0], state(out)[0]
    assert set(before) == set(after)
    assert all(torch.equal(after[name], value) and after[name].dtype == dtype for name, value in before.items())
    assert torch.equal(logits_of(out, tokens), logits_of(source, tokens))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE.txt"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert GenerationConfig.from_pretrained(out).max_length == 23
    assert AutoTokenizer.from_pretrained(out)("w5 w6")["input_ids"] == [5, 6]
    configs = [json.loads((folder / "config.json").read_text()) for folder in (source, out)]
    changed = {key for key in configs[0] | configs[1] if configs[0].get(key) != configs[1].get(key)}
    assert changed <= {"tie_word_embeddings", "transformers_version"}
    assert configs[1]["tie_word_embeddings"] is False
    assert mi.load_model(out, dtype=torch.float64).to_tokens("w5").tolist()[0][-1] == 5
    assert not [path for path in tmp_path.rglob(".*")], "no temporary folder is left"


@pytest.mark.compat
def test_half_precision_rounds_once(tokens: Tensor, tmp_path: Path) -> None:
    """The written weights are the float64 edit of the source's, rounded to its dtype."""
    source = saved("neox", tmp_path / "base", torch.bfloat16)
    edit = Ablate(Subspace.random(16, 3))
    out = exported(mi.load_model(source), edit, source, tmp_path / "out", card={})
    before, after = state(source)[0], state(out)[0]
    name = "gpt_neox.layers.0.mlp.dense_4h_to_h"
    assert torch.equal(after[f"{name}.weight"], edit(before[f"{name}.weight"].double().T).T.to(torch.bfloat16))
    assert torch.equal(after[f"{name}.bias"], edit(before[f"{name}.bias"].double()).to(torch.bfloat16))
    written = float(edit.subspace.coords(after[f"{name}.weight"].double().T).abs().max())
    assert 0 < written < 0.02 * float(after[f"{name}.weight"].abs().max())


def test_only_the_layers_of_the_edit_change_and_the_readout_stays_tied(tmp_path: Path) -> None:
    source = saved("gpt2", tmp_path / "base", torch.float32)
    model = mi.load_model(source)
    hooks = Ablate(Subspace.random(16, 2)).at("blocks.1.hook_mlp_out")
    out = exported(model, hooks, source, tmp_path / "out", card={})
    before, after = state(source)[0], state(out)[0]
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"transformer.h.1.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.bias"}
    assert json.loads((out / "config.json").read_text()).get("tie_word_embeddings", True) is True


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved("gpt2", tmp_path / "base", torch.float32)
    model, edit, out = mi.load_model(source), Ablate(Subspace.random(16, 2)), tmp_path / "out"

    def refused(message: str, error: type[Exception] = ValueError, **given: Any) -> None:
        arguments = {"model": model, "edit": edit, "source": source, "out": out, "card": {}, **given}
        with pytest.raises(error, match=message):
            exported(**arguments)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name not in kept) == ["base"]

    kept = {"other", "opt", "file", "lacking"}
    refused("is there already and not an empty folder", out=source)
    (tmp_path / "file").write_text("")
    refused("is there already and not an empty folder", out=tmp_path / "file")
    refused("acts at some positions, heads or units; weights act at all", edit=edit.at("blocks.0.hook_mlp_out", pos=-1))
    refused("is not a writer, so no weight equals an edit there", edit=edit.at("blocks.0.hook_resid_post"))
    refused("is a function; only interventions can be baked", edit=[("blocks.0.hook_mlp_out", lambda x, hook: x)])
    other = tmp_path / "other"
    random_gpt2(other, seed=1)
    refused("Before any edit the model's logits differ from those of .* it was processed", source=other)
    refused("Before any edit the model's logits differ", model=mi.load_model(source, process=True))
    refused("is no shipped toy, no local file or folder, and no name", source="gtp2")
    refused("Give the local folder that the model was loaded from", OSError, source="gpt2")
    random_family("opt", tmp_path / "opt")
    opt = mi.load_model(tmp_path / "opt")
    refused(
        "type 'opt' cannot be exported yet; these can: gpt2, gpt_neox, llama, mistral, qwen2",
        model=opt,
        source=tmp_path / "opt",
    )
    from safetensors.torch import load_file, save_file

    lacking = tmp_path / "lacking"
    lacking.mkdir()
    weights = load_file(source / "model.safetensors")
    weights["transformer.h.0.mlp.extra"] = weights.pop("transformer.h.0.mlp.c_fc.bias")
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    (lacking / "config.json").write_bytes((source / "config.json").read_bytes())
    refused(r"are not those of its architecture \(missing: .*c_fc.bias; unexpected: .*extra\)", source=lacking)
    monkeypatch.setattr("mi_ablate.export._bake_one", lambda name, *rest: None)
    refused("The written folder's logits differ from the hooked model's by .* It was removed", RuntimeError)


def test_constants_need_a_bias(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "base", torch.float32)
    model = mi.load_model(source)
    vector = torch.ones(16, dtype=torch.float64)
    with pytest.raises(ValueError, match="adds a constant, and this model has no bias there to hold it"):
        exported(model, Add(vector).at("blocks.0.hook_mlp_out"), source, tmp_path / "out", card={})
    exported(model, Add(vector), source, tmp_path / "out", card={})
    found = state(tmp_path / "out")[0]["model.embed_tokens.weight"] - state(source)[0]["model.embed_tokens.weight"]
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-6)


def test_an_empty_folder_is_filled_and_weights_may_be_in_several_files(tmp_path: Path, tokens: Tensor) -> None:
    from transformers import GPT2LMHeadModel

    source = saved("gpt2", tmp_path / "base", torch.float32)
    for file in source.glob("*.safetensors"):
        file.unlink()
    random_gpt2(tmp_path / "whole")
    GPT2LMHeadModel.from_pretrained(tmp_path / "whole").save_pretrained(source, max_shard_size="10KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    model, out = mi.load_model(source), tmp_path / "out"
    out.mkdir()
    assert exported(model, Ablate(Subspace.random(16, 2)), source, out, card={}, tokens=tokens) == out
    assert (out.stat().st_mode & 0o777) == 0o755
    assert "on 27 tokens is" in (out / "README.md").read_text()


CLAIM = {
    "metric": "preference of two answers",
    "rows": [
        {"run": "clean", "mean": 3.25, "variance_removed": 0.0},
        {"run": "edited", "mean": 0.5, "variance_removed": 0.0123},
        {"run": "covariance", "mean": 3.0, "low": 2.5, "high": 3.5, "draws": 5, "variance_removed": 0.5},
    ],
    "collateral": {"kl": [{"run": "edited", "mean": 0.01}, {"run": "rounding of the logits", "mean": 1e-12}]},
}


def test_the_model_card_names_edit_effect_control_and_collateral(tmp_path: Path) -> None:
    source = saved("gpt2", tmp_path / "base", torch.float32)
    model = mi.load_model(source)
    subspace = Subspace(
        Subspace.random(16, 1).basis, "mood", {"method": "difference of means", "site": "blocks.1.hook_resid_pre"}
    )
    card = Card.of(
        model,
        "mood",
        description="Two words.",
        claim=CLAIM,
        fit={"candidates": 12, "none": None, "rule": {"kl": {"a": 0.1, "b": "x", "c": None}, "both": [], "n": [1, 2]}},
        seeds={"split": 3},
        command="mi-ablate ablate",
    )
    hooks = Ablate(subspace).at(*mi.writers(model))
    path = mi.save(tmp_path / "edit.safetensors", hooks, card)
    out = exported(model, mi.load(path, model), source, tmp_path / "out", card=mi.read_card(path))
    said = (out / "README.md").read_text()
    for part in (
        'base_model: "base"', "# base, edited: mood", "Two words.", "difference of means", "blocks.1.hook\\_resid\\_pre",
        "embedding, 0-1", "- candidates: 12", "- split: 3", "- rule: kl (a 0.1, b x), n (1, 2)",
        "preference of two answers:", "| covariance | 3 | 2.5 | 3.5 | 5 | 0.5 |",
        "## Collateral", "kl:", "rounding of the logits", "of the largest logit", "transformers", "Made by: mi-ablate ablate",
        "fine-tuning may bring it back",
    ):  # fmt: skip
        assert part in said, part
    assert str(tmp_path) not in said
    assert "removal-proof" not in said
    import yaml

    assert yaml.safe_load(said.split("---")[1])["base_model"] == "base"


def test_a_card_that_says_nothing_is_said_to_say_nothing() -> None:
    hooks = Ablate(Subspace.random(4, 1)).at("hook_embed", "blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out")
    bare = model_card("x", hooks, {}, "Checked.", {})
    assert "an edit without a title" in bare
    assert "None was recorded with this edit: measure it" in bare
    row = {"sites": "hook_embed, hook_mlp_out", "layers": "embedding, 0, 2", "different ones": None, "found by": None}
    assert edits(hooks) == [{"edit": "Ablate(rank 1 of 4)", **row}]
    two = Ablate(Subspace.random(4, 1, seed=1)).at("blocks.1.hook_mlp_out")
    assert edits(hooks + two) == [
        {"edit": "Ablate(rank 1 of 4)", **row, "layers": "embedding, 0-2", "different ones": 2}
    ]
    alone = model_card("x", hooks, {"claim": {"rows": CLAIM["rows"][:2]}}, "Checked.", {})
    assert "No control was recorded" in alone
    assert "None was recorded: what else the edit changes is not known" in alone
    assert table([]) == table([3]) == []
    wrong = dict.fromkeys(("title", "description", "fit", "claim", "seeds", "command", "versions"), 3)
    for card in (wrong, {"claim": {"rows": 3, "collateral": 3}}, {"claim": {"rows": [3], "collateral": {"k": [3]}}}):
        assert "Checked." in model_card("x", hooks, card, "Checked.", {}), "whatever a card holds"


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "a\n# heading\n| b |",
        "[x](javascript:y)",
        "![x](http://y)",
        "\x1b[2J`x`",
        "x" * 10**6,
        {"a": ["b"] * 99},
        {"a": {"a": {"a": {"a": {"a": "b"}}}}},
    ],
)
def test_hostile_cards_are_plain_text(hostile: Any) -> None:
    card = {
        "title": hostile,
        "description": hostile,
        "fit": {"k": hostile},
        "claim": {"metric": hostile, "rows": [{"run": hostile, "mean": hostile}], "collateral": {"k": hostile}},
        "seeds": {"s": hostile},
        "command": hostile,
        "versions": {"v": hostile},
    }
    hooks = Ablate(Subspace(torch.eye(4, 1, dtype=torch.float64), "n", {"k": hostile})).at("hook_embed")
    said = model_card("base", hooks, card, "Checked.", {"torch": "2"})
    plain = model_card(
        "base",
        hooks,
        {
            **card,
            **dict.fromkeys(("title", "description"), "t"),
            "fit": {"k": "t"},
            "claim": {"metric": "t", "rows": [{"run": "t", "mean": 1}], "collateral": {"k": "t"}},
            "seeds": {"s": "t"},
            "command": "t",
            "versions": {"v": "t"},
        },
        "Checked.",
        {"torch": "2"},
    )
    assert len(said.splitlines()) == len(plain.splitlines()), "one line stays one line"
    assert [line.count(" | ") for line in said.splitlines()] == [line.count(" | ") for line in plain.splitlines()]
    assert "<script" not in said
    assert "\x1b" not in said
    assert not re.search(r"(?<!\\)(\]\(|`)", said), "no link, picture or code"
    assert len(said) < 40_000
    assert "\n" not in text(hostile)
