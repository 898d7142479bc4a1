"""Text under hooks: the same token by token as from baked weights, in batches as alone, and as in one pass."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mi_ablate as mi
from mi_ablate import Ablate, Add, Subspace
from mi_ablate.generation import generated
from mi_ablate.prompts import tokenized
from models import (
    data_folder,
    gpt2_bridge,
    has_bridge,
    has_hooked_transformer,
    random_family,
    random_gpt2,
    tiny,
    word_tokenizer,
)

RAGGED = [[5, 6, 7, 8, 9], [5, 7], [30, 31, 32], [40]]
KINDS = ("gpt2", "neox")


@pytest.fixture(scope="module", params=KINDS)
def language_model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `load_model` makes of a random folder without a tokenizer, in float64."""
    folder = tmp_path_factory.mktemp("model") / request.param
    random_gpt2(folder) if request.param == "gpt2" else random_family(request.param, folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return mi.load_model(folder, dtype=torch.float64)


def rank(model: Any, k: int, seed: int = 0) -> Subspace:
    return Subspace.random(model.cfg.d_model, k, seed=seed)


def one_by_one(model: Any, rows: list[list[int]], new: int, hooks: Any = ()) -> list[list[int]]:
    """The slowest way: the whole sequence again for every token, nothing padded, nothing kept."""
    out = []
    for row in rows:
        tokens = list(row)
        for _ in range(new):
            with torch.no_grad(), mi.attached(model, list(hooks)):
                tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        out.append(tokens[len(row) :])
    return out


@pytest.mark.compat
def test_hooks_at_all_writers_generate_what_the_baked_model_generates(language_model: Any) -> None:
    """Ragged prompts in one padded batch; the loop over everything is the reference of both."""
    model, prompts = language_model, tokenized(language_model, RAGGED)
    edit = Ablate(rank(model, 5))
    hooks = edit.at(*mi.writers(model))
    under_hooks = generated(model, prompts, hooks, 12)
    with mi.baked(model, edit, untie=True):
        from_weights = generated(model, prompts, max_new_tokens=12)
        assert from_weights.rows == one_by_one(model, RAGGED, 12)
    assert under_hooks.rows == from_weights.rows
    clean = generated(model, prompts, max_new_tokens=12)
    assert clean.rows == one_by_one(model, RAGGED, 12)
    assert clean.rows != under_hooks.rows, "the edit changes what is written"
    omitted = [pair for pair in hooks if pair[0] != "hook_embed"]
    assert generated(model, prompts, omitted, 12).rows != under_hooks.rows, "hook_embed fires here"


@pytest.mark.compat
def test_padding_and_batches_change_nothing(language_model: Any) -> None:
    model = language_model
    hooks = Ablate(rank(model, 3)).at("blocks.0.hook_resid_post")
    whole = generated(model, tokenized(model, RAGGED), hooks, 8)
    right = tokenized(model, RAGGED, padding_side="right")
    calls: list[tuple[int, int]] = []
    assert generated(model, right, hooks, 8, batch_size=3, progress=lambda *at: calls.append(at)).rows == whole.rows
    assert calls == [(i, 16) for i in range(1, 17)]
    for i in range(len(RAGGED)):
        assert generated(model, tokenized(model, RAGGED)[i], hooks, 8).rows == [whole.rows[i]]
    assert whole.text[0] == " ".join(map(str, whole.rows[0])), "numbers, where there is no tokenizer"
    assert len(generated(model, right, hooks, 8, stop=(whole.rows[0][3],)).rows[0]) <= 3
    assert generated(model, right, max_new_tokens=8).rows == one_by_one(model, RAGGED, 8)


@pytest.mark.compat
@pytest.mark.parametrize(
    "where", [{"when": "new"}, {"when": "prompt"}, {"pos": 2}, {"pos": slice(3, 5)}, {"pos": -1}], ids=str
)
def test_places_count_through_the_text_as_it_grows(language_model: Any, where: dict[str, Any]) -> None:
    """Each row alone, in one pass over prompt and text, with the edit written for that pass."""
    model, rows, new = language_model, [[5, 6, 7, 8, 9], [30, 31, 32]], 6
    edit = Add(6 * torch.linspace(-3, 2, model.cfg.d_model, dtype=torch.float64) ** 2)
    site = "blocks.0.hook_resid_post"
    found = generated(model, tokenized(model, rows), edit.at(site, **where), new).rows
    clean = generated(model, tokenized(model, rows), max_new_tokens=new).rows
    for row, text in zip(rows, found):
        n = len(row)
        spans = {"new": slice(n, None), "prompt": slice(0, n)}
        pos = spans.get(where.get("when", ""), slice(n - 1, None) if where.get("pos") == -1 else where.get("pos"))
        with torch.no_grad(), mi.attached(model, edit.at(site, pos=pos)):
            logits = model(torch.tensor([row + text[:-1]]))
        assert logits[0, n - 1 :].argmax(-1).tolist() == text
    assert found != clean


@pytest.mark.compat
def test_values_of_single_examples_stay_with_their_prompts(language_model: Any) -> None:
    model, rows = language_model, RAGGED[:3]
    vectors = 5 * torch.randn(3, model.cfg.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    last = torch.tensor([4, 1, 2])
    site = "blocks.0.hook_resid_post"
    prompts = tokenized(model, rows)
    together = generated(model, prompts, Add(vectors).at(site, pos=last), 6, batch_size=2).rows
    for i in range(3):
        alone = generated(model, tokenized(model, [rows[i]]), Add(vectors[i]).at(site, pos=int(last[i])), 6).rows
        assert alone == [together[i]]
    with pytest.raises(
        ValueError, match=r"vector at blocks.0.hook_resid_post has one value for each of 3 examples; there are 2"
    ):
        generated(model, prompts[:2], Add(vectors).at(site), 2)
    mask = prompts.attention_mask.clone()
    masked = generated(model, prompts, Add(vectors[0]).at(site, pos=mask), 4).rows
    assert masked == generated(model, prompts, Add(vectors[0]).at(site, when="prompt"), 4).rows
    with pytest.raises(ValueError, match="counts columns, and these prompts are padded on the right"):
        generated(model, tokenized(model, rows, padding_side="right"), Add(vectors[0]).at(site, pos=mask), 4)


@pytest.mark.compat
def test_text_ends_at_the_end_of_text(tmp_path: Path) -> None:
    random_gpt2(tmp_path)
    word_tokenizer(60).save_pretrained(tmp_path)
    model = mi.load_model(tmp_path, dtype=torch.float64)
    prompts = tokenized(model, ["w5 w6 w7", "w8"])
    free = generated(model, prompts, max_new_tokens=10, stop=())
    assert all(len(row) == 10 for row in free.rows)
    second, third = free.rows[0][1], free.rows[1][2]
    model.tokenizer.eos_token = f"w{second}"
    ended = generated(model, prompts, max_new_tokens=10)
    assert ended.rows == [row[: row.index(second)] if second in row else row for row in free.rows]
    assert len(ended.rows[0]) <= 1
    assert ended.text[0] == " ".join(f"w{i}" for i in ended.rows[0])
    assert ended.str_tokens(1) == [f"w{i}" for i in ended.rows[1]]
    both = generated(model, prompts, max_new_tokens=10, stop=(second, third))
    assert all(not {second, third} & set(row) for row in both.rows)
    now = tuple(row[0] for row in free.rows)
    late = Ablate(None).at("blocks.0.hook_resid_post", when="new")
    nothing = generated(model, prompts, late, max_new_tokens=10, stop=now)
    assert nothing.rows == [[], []], "text that ends at once"
    assert nothing.text == ("", "")
    with pytest.raises(RuntimeError, match="ran but never met a position to edit"):
        generated(model, prompts, Ablate(None).at("blocks.0.hook_resid_post", pos=25), max_new_tokens=2, stop=())


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_real_tokenizers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from test_loading import hugging_face

    source, end = data_folder() / "tokenizers" / kind.replace("neox", "pythia"), "<|endoftext|>"
    for file in source.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    name = {"gpt2": "GPT2Tokenizer", "neox": "GPTNeoXTokenizer"}[kind]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": name, "bos_token": end, "eos_token": end})
    )
    hugging_face(kind, len(AutoTokenizer.from_pretrained(tmp_path)) + 3).save_pretrained(tmp_path)
    model = mi.load_model(tmp_path, dtype=torch.float64)
    texts = ["The quick brown fox", "A prompt in another language: żółć", "語"]
    prompts = tokenized(model, texts)
    edit = Ablate(rank(model, 4))
    found = generated(model, prompts, edit.at(*mi.writers(model)), 6)
    with mi.baked(model, edit, untie=True):
        assert generated(model, prompts, max_new_tokens=6).rows == found.rows == one_by_one(model, prompts.rows, 6)
    assert found.text[0] == model.tokenizer.decode(found.rows[0])


def test_what_cannot_be_generated(model: Any) -> None:
    prompts = tokenized(model, [[1, 2, 3, 4], [5]])
    with pytest.raises(
        ValueError, match="have up to 4 tokens and the model positions for 12: 10 new ones do not fit, 9 do"
    ):
        generated(model, prompts, max_new_tokens=10)
    assert len(generated(model, prompts, max_new_tokens=9).rows[0]) == 9
    with pytest.raises(ValueError, match="max_new_tokens=0: at least one"):
        generated(model, prompts, max_new_tokens=0)
    with pytest.raises(ValueError, match="The logits of new token 1 are NaN: the edit is too large"):
        generated(model, prompts, [("blocks.0.hook_resid_post", lambda x, hook: x * float("nan"))], 2)


@pytest.mark.compat
def test_a_bridge_generates_the_same_with_its_own_cache() -> None:
    if not has_bridge():
        pytest.skip("TransformerBridge came with TransformerLens 3.0")
    model = gpt2_bridge().double()
    hooks = Ablate(rank(model, 3)).at("blocks.0.hook_resid_post")
    for attach in ((), hooks):
        found = generated(model, tokenized(model, RAGGED), attach, 8, stop=())
        assert found.rows == one_by_one(model, RAGGED, 8, attach)
    new = generated(
        model, tokenized(model, RAGGED), Ablate(None).at("blocks.0.hook_resid_post", when="new"), 8, stop=()
    )
    assert new.rows != found.rows
    assert [row[0] for row in new.rows] == [row[0] for row in one_by_one(model, RAGGED, 1)]


@pytest.mark.compat
def test_a_native_bridge_generates_without_a_cache() -> None:
    model = tiny()
    rows = [[1, 2, 3, 4], [5, 6]]
    edit = Ablate(Subspace.random(16, 3))
    hooks = edit.at(*mi.writers(model))
    assert generated(model, tokenized(model, rows), hooks, 5).rows == one_by_one(model, rows, 5, hooks)
    placed = edit.at("blocks.0.hook_resid_post", when="new")
    if has_hooked_transformer():
        assert generated(model, tokenized(model, rows), placed, 5).rows
    else:
        with pytest.raises(
            ValueError, match="acts at some positions, and this bridge keeps no cache of what it has read"
        ):
            generated(model, tokenized(model, rows), placed, 5)
