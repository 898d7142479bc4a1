"""Prompts: every form of a file, tokens as the model's own tokenizer gives them, BOS once, and splits that share nothing."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate.prompts import Prompts, contrasted, padded, read_prompts, tokenized
from models import data_folder, random_family, random_gpt2, tiny, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "w2 {{ m.content }} w3 {% endfor %}{% if add_generation_prompt %}w4{% endif %}"
)


class Speaker:
    """All that `tokenized` asks of a model: a config and a tokenizer, which pads with nothing."""

    hook_dict: Mapping[str, Any] = {}

    def __init__(self, tokenizer: Any, **cfg: Any) -> None:
        self.tokenizer = tokenizer
        tokenizer.pad_token = None
        self.cfg = SimpleNamespace(**cfg)

    def hooks(self, fwd_hooks: Any = ()) -> Any: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


def speaker(bos: str | None = "w0", vocab: int = 60) -> Speaker:
    tokenizer = word_tokenizer(60)
    tokenizer.bos_token = bos
    return Speaker(tokenizer, d_vocab=vocab, n_ctx=12, default_prepend_bos=True)


def words(n: int, start: int = 20, length: int = 3) -> list[str]:
    """Different prompts of the same length."""
    return [" ".join(f"w{start + (i // 7**k) % 7}" for k in range(length)) for i in range(n)]


def wrote(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_every_form_of_a_file_gives_the_same_prompts(tmp_path: Path) -> None:
    texts = [" two  spaces ", "\\n is no line break", "żółć 語 \u2028 one line"]
    as_text = tmp_path / "a.txt"
    for end in ("\n", "\r\n"):
        for last in (end, ""):
            as_text.write_bytes((end.join(texts) + last).encode())
            assert read_prompts(as_text) == texts
    as_text.write_bytes(b"\xef\xbb\xbf" + "\n".join(texts).encode())
    assert read_prompts(str(as_text)) == texts, "a byte order mark is no part of the first prompt"
    assert read_prompts(wrote(tmp_path / "a.jsonl", *texts)) == texts
    assert read_prompts(wrote(tmp_path / "b.jsonl", *[{"prompt": t, "id": 3} for t in texts])) == texts
    assert read_prompts(wrote(tmp_path / "c.JSONL", {"text": texts[0]}, texts[1], {"prompt": texts[2]})) == texts
    assert read_prompts(wrote(tmp_path / "d.json", texts)) == texts
    assert read_prompts(wrote(tmp_path / "e.json", *texts)) == texts
    assert read_prompts(wrote(tmp_path / "f.jsonl", "two\nlines")) == ["two\nlines"]
    bare = tmp_path / "bare"
    bare.write_text("one\n")
    assert read_prompts(bare) == ["one"]
    assert read_prompts(wrote(tmp_path / "g.jsonl", {"tokens": [1, 2]}, {"tokens": [3]})) == [[1, 2], [3]]
    chat = [{"role": "user", "content": "hello"}]
    assert read_prompts(wrote(tmp_path / "h.jsonl", {"messages": chat})) == [chat]


BAD = {
    "a.csv": (b"x", r"prompts are read from .txt \(one a line\) or .jsonl, not from .csv"),
    "empty.txt": (b"", "empty.txt holds no prompt: one a line"),
    "white.txt": (b" \n\t\n", "white.txt holds no prompt: one a line"),
    "gap.txt": (b"a\n\nb\n  \n", r"gap.txt has empty lines \(2: 2, 4\). One prompt a line"),
    "end.jsonl": (b'"a"\n\n', r"end.jsonl has empty lines \(1: 2\)"),
    "many.txt": (b"a" + b"\n" * 9, r"many.txt has empty lines \(8: 2, 3, 4, 5, 6, ...\)"),
    "latin.txt": ("a\nb\ncaf\u00e9".encode("latin-1"), r"latin.txt, line 3: not UTF-8 \(byte 0xe9\). Save it as UTF-8"),
    "cut.jsonl": (b'"a"\n{"prompt": "b', "cut.jsonl, line 2: this is not readable as JSON .*Write"),
    "deep.jsonl": (b"[" * 100_000, "deep.jsonl, line 1: this is not readable as JSON"),
    "array.json": (b"[]", "array.json holds no prompt: its array is empty"),
    "keys.jsonl": (b'{"question": "x", "b": 1}', r"keys.jsonl, line 1: an object with 0 .* \(it has 'b', 'question'\)"),
    "none.jsonl": (b"{}", r"an object with 0 of the known keys \(it has none\)"),
    "both.jsonl": (b'{"prompt": "x", "text": "y"}', "both.jsonl, line 1: an object with 2 of the known keys"),
    "number.jsonl": (b'"a"\n3', "number.jsonl, line 2: a int is no prompt"),
    "prompt.jsonl": (b'{"prompt": 3}', "prompt.jsonl, line 1: a prompt that is a int, not a string"),
    "blank.json": (b'["a", " "]', "blank.json, prompt 2: an empty prompt"),
    "zero.jsonl": (b'{"tokens": []}', "zero.jsonl, line 1: a prompt of no tokens"),
    "silent.jsonl": (b'{"messages": []}', "silent.jsonl, line 1: a prompt of no messages"),
    "float.jsonl": (b'{"tokens": [1, 2.0]}', r"float.jsonl, line 1: tokens are integers, such as \[464, 2068\]"),
    "bool.jsonl": (b'{"tokens": [true]}', "tokens are integers"),
    "role.jsonl": (b'{"messages": [{"content": "x"}]}', "role.jsonl, line 1: each message is an object"),
    "parts.jsonl": (b'{"messages": [{"role": "user", "content": ["x"]}]}', "each message is an object"),
    "mixed.jsonl": (b'"a"\n{"tokens": [1]}', "mixed.jsonl, line 2 is tokens and the first one is text: one kind at a time"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_names_file_and_line(name: str, tmp_path: Path) -> None:
    body, message = BAD[name]
    (tmp_path / name).write_bytes(body)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'a prompt' is not there. \(Prompts themselves go in a list: \['a prompt'\].\)"
    ):
        tokenized(speaker(), "a prompt")
    with pytest.raises(ValueError, match="is a folder"):
        read_prompts(tmp_path)


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=6),
    st.sampled_from(["left", "right"]),
)
def test_padding_is_what_the_mask_says(rows: list[list[int]], side: str) -> None:
    tokens, mask = padded(rows, side)
    assert tokens.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [row[real].tolist() for row, real in zip(tokens, mask)] == rows
    edge = mask[:, -1 if side == "left" else 0]
    assert edge.all(), f"padded on the {side}"
    assert not tokens[~mask].any()


def test_prompts_are_cut_and_joined_without_losing_a_token() -> None:
    model = speaker()
    prompts = tokenized(model, ["w5 w6 w7 w8", "w9", "w20 w21"])
    assert repr(prompts) == "Prompts(3 of 2 to 5 tokens)"
    assert prompts.text[1] == "w9"
    assert prompts.rows == [[0, 5, 6, 7, 8], [0, 9], [0, 20, 21]]
    assert prompts.str_tokens(1) == ["w0", "w9"]
    for index in ([2, 0], torch.tensor([2, 0]), slice(2, None, None), torch.tensor([False, True, True]), 1, -1):
        chosen = prompts[index]
        rows = torch.arange(3)[index].reshape(-1).tolist()
        assert chosen.text == tuple(prompts.text[i] for i in rows)
        assert chosen.rows == [prompts.rows[i] for i in rows]
        assert chosen.tokens.shape[1] == 5, "the padding stays"
    assert len(list(prompts)) == 3
    with pytest.raises(ValueError, match="None of the 3 prompts is chosen"):
        prompts[3:]
    short = tokenized(model, ["w5", "w6 w7"], padding_side="right")
    joined = short + prompts
    assert joined.rows == short.rows + prompts.rows
    assert joined.text == short.text + prompts.text
    assert joined.attention_mask[:, 0].all(), "on the side of the first"
    assert (prompts[1:] + short).tokens.shape == (4, 3)


def test_bos_is_written_once() -> None:
    model = speaker()
    assert tokenized(model, ["w5", "w0 w5"]).rows == [[0, 5], [0, 5]]
    assert tokenized(model, ["w5", "w0 w5"], prepend_bos=True).rows == [[0, 5], [0, 5]]
    assert tokenized(model, ["w5", "w0 w5"], prepend_bos=False).rows == [[5], [0, 5]]
    assert tokenized(model, [[5], [0, 5]]).rows == [[5], [0, 5]], "tokens are complete"
    assert tokenized(model, [torch.tensor([5]), [0, 5]], prepend_bos=True).rows == [[0, 5], [0, 5]]
    model.cfg.default_prepend_bos = False
    assert tokenized(model, ["w5"]).rows == [[5]]
    assert tokenized(speaker(bos=None), ["w5"]).rows == [[5]]
    with pytest.raises(ValueError, match="prepend_bos=True, and no tokenizer says which token that is"):
        tokenized(speaker(bos=None), ["w5"], prepend_bos=True)


def test_a_chat_template_is_complete_and_its_own_bos_counts_once() -> None:
    model = speaker()
    model.tokenizer.chat_template = TEMPLATE
    chat = [{"role": "user", "content": "w5"}]
    begun = [*chat, {"role": "assistant", "content": "w6"}]
    assert tokenized(model, [chat]).rows == [[2, 5, 3, 4]] == tokenized(model, ["w5"], chat=True).rows
    assert tokenized(model, [chat]).text == ("w2 w5 w3 w4",)
    assert tokenized(model, [begun]).rows == [[2, 5, 3, 2, 6]], "an answer that is begun goes on"
    assert tokenized(model, ["w5"]).rows == [[0, 5]], "plain text stays plain"
    assert tokenized(model, [chat], prepend_bos=True).rows == [[0, 2, 5, 3, 4]]
    model.tokenizer.chat_template = "w0 " + TEMPLATE
    for told in (None, True, False):
        assert tokenized(model, [chat], prepend_bos=told).rows == [[0, 2, 5, 3, 4]]
    with pytest.raises(ValueError, match=r"Prompt 2: the chat template refuses it \(no system\)"):
        tokenized(model, [chat, [{"role": "system", "content": "w5"}]])
    with pytest.raises(ValueError, match="chat=False, and the prompts are messages, which need the chat template"):
        tokenized(model, [chat], chat=False)
    with pytest.raises(ValueError, match="chat=True is for text; these prompts are tokens already"):
        tokenized(model, [[5]], chat=True)
    model.tokenizer.chat_template = None
    for prompts, told, named in ((["w5"], True, "chat=True"), ([chat], None, "prompts of messages")):
        with pytest.raises(ValueError, match=f"The tokenizer has no chat template, which {named} needs"):
            tokenized(model, prompts, chat=told)


def test_prompts_that_the_model_cannot_take(tmp_path: Path) -> None:
    model = speaker()
    path = tmp_path / "long.txt"
    path.write_text("w5\n" + " ".join(["w5"] * 12) + "\n")
    with pytest.raises(ValueError, match=r"long.txt, line 2 has 13 tokens; the model has positions for 12. Shorten it"):
        tokenized(model, path)
    assert tokenized(model, path, prepend_bos=False).tokens.shape == (2, 12)
    with pytest.raises(ValueError, match=r"Prompt 1: token 60 is outside the vocabulary of 60 \(0 to 59\)"):
        tokenized(model, [[60]])
    with pytest.raises(ValueError, match="token -1 is outside the vocabulary"):
        tokenized(model, [[-1]])
    with pytest.raises(ValueError, match=r"Prompt 1: token 9 is outside the vocabulary of 8"):
        tokenized(speaker(vocab=8), ["w9"])
    with pytest.raises(ValueError, match=r"The model has no tokenizer, so prompts of text cannot be read. Give tokens"):
        tokenized(tiny(), ["w5"])
    with pytest.raises(ValueError, match="There are no prompts: the list is empty"):
        tokenized(model, [])
    with pytest.raises(ValueError, match="padding_side='top' must be 'left' or 'right'"):
        tokenized(model, ["w5"], padding_side="top")
    with pytest.raises(ValueError, match="Prompt 1: half of a surrogate pair, which is no text"):
        tokenized(model, ["w5 \ud83d"])
    model.tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Replace("x", "")
    with pytest.raises(ValueError, match="Prompt 2: the tokenizer makes no token of it"):
        tokenized(model, ["w5", "xx"], prepend_bos=False)
    assert tokenized(tiny(), [[1, 2], [3]]).text == ("1 2", "3")


@given(
    st.integers(8, 40),
    st.integers(8, 40),
    st.integers(0, 5),
    st.sampled_from([(0.5, 0.25, 0.25), (0.4, 0.3, 0.3), (1 / 3, 1 / 3, 1 / 3)]),
)
def test_a_split_deals_every_prompt_once_and_each_class_by_its_shares(
    n: int, m: int, seed: int, shares: tuple[float, ...]
) -> None:
    model = speaker()
    positive, negative = words(n), words(m, start=40)
    parts = contrasted(model, positive, negative, shares=shares, seed=seed)
    dealt = [parts.find, parts.validation, parts.test]
    for given_, side in ((positive, "positives"), (negative, "negatives")):
        texts = [getattr(part, side).text for part in dealt]
        assert sorted(sum(texts, ())) == sorted(given_), "all of them, none twice"
        for text, share in zip(texts, shares):
            assert abs(len(text) - share * len(given_)) <= 1
            assert len(text) >= 2
    for part in dealt:
        assert part.prompts.tokens.shape[1] == 4
        assert part.prompts.rows == part.positives.rows + part.negatives.rows
        assert len(part.labels) == len(part.prompts)


def test_a_split_is_the_seeds(tmp_path: Path) -> None:
    model, positive, negative = speaker(), words(20), words(20, start=40)
    first = contrasted(model, positive, negative)
    again, other = contrasted(model, positive, negative), contrasted(model, positive, negative, seed=1)
    assert first.find.prompts.text == again.find.prompts.text != other.find.prompts.text
    assert repr(first) == "Contrast(find 10 + 10 prompts, validation 5 + 5 prompts, test 5 + 5 prompts)"
    (tmp_path / "p.txt").write_text("\n".join(positive))
    (tmp_path / "n.txt").write_text("\n".join(negative))
    from_files = contrasted(model, tmp_path / "p.txt", str(tmp_path / "n.txt"))
    assert from_files.test.prompts.text == first.test.prompts.text


def test_what_no_split_can_be_made_of(tmp_path: Path) -> None:
    model, many = speaker(), words(20)
    p, n = tmp_path / "p.txt", tmp_path / "n.txt"
    p.write_text("\n".join(many))
    n.write_text("\n".join([*words(20, start=40), many[4]]))
    with pytest.raises(
        ValueError, match=r"n.txt, line 21 and .*p.txt, line 5 are the same 4 tokens, one prompt to the mod"
    ):
        contrasted(model, p, n)
    with pytest.raises(ValueError, match="Positive prompt 3 and Positive prompt 1 are the same 2 tokens"):
        contrasted(model, ["w5", "w6", " w5 "], many)
    with pytest.raises(
        ValueError, match=r"There are 7 negative prompts; shares .* with at least two in each part need 8"
    ):
        contrasted(model, many, words(7, start=40))
    with pytest.raises(ValueError, match=r"There are 10 positive prompts; .* need 18"):
        contrasted(model, words(10), words(30, start=40), shares=(0.8, 0.1, 0.1))
    assert contrasted(model, words(18), words(18, start=40), shares=(0.8, 0.1, 0.1)).test.prompts.tokens.shape == (4, 4)
    with pytest.raises(ValueError, match="There are no prompts: the list is empty"):
        contrasted(model, many, [])
    for shares in ((0.5, 0.5), (0.5, 0.5, 0), (0.5, 0.3, 0.3)):
        with pytest.raises(ValueError, match=r"three of at least 0.01 that sum to 1, for find, validation and test"):
            contrasted(model, many, words(20, start=40), shares=shares)


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_tokens_are_those_of_the_models_own_method(kind: str, tmp_path: Path) -> None:
    """On every version: BOS or none by default, and padding on either side changes no logits at real tokens."""
    random_gpt2(tmp_path) if kind == "gpt2" else random_family(kind, tmp_path)
    word_tokenizer(60).save_pretrained(tmp_path)
    model = mi.load_model(tmp_path)
    texts = ["w5 w6 w7 w8", "w9", "w20 w21"]
    found = tokenized(model, texts)
    alone = []
    for text, row in zip(texts, found.rows):
        assert [row] == model.to_tokens(text).tolist()
        with torch.no_grad():
            alone.append(model(torch.tensor([row]))[0])
    for side in ("left", "right"):
        prompts = tokenized(model, texts, padding_side=side)
        with torch.no_grad():
            logits = mi.model.run(model, prompts.tokens, prompts.attention_mask.long())
        for row, real, one in zip(logits, prompts.attention_mask, alone):
            torch.testing.assert_close(row[real], one, rtol=0, atol=2e-5 * float(one.abs().max()))


@pytest.mark.parametrize(("kind", "ids"), [("gpt2", [464, 2068, 7586]), ("pythia", [510, 3158, 8516])])
def test_the_real_tokenizers_have_no_padding_token_and_need_none(kind: str, ids: list[int], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for file in (data_folder() / "tokenizers" / kind).iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    name, end = {"gpt2": "GPT2Tokenizer", "pythia": "GPTNeoXTokenizer"}[kind], "<|endoftext|>"
    settings = {"tokenizer_class": name, "bos_token": end, "eos_token": end}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = Speaker(tokenizer, d_vocab=50304, n_ctx=32, default_prepend_bos=kind == "gpt2")
    assert tokenizer.pad_token_id is None
    prompts: Prompts = tokenized(model, ["The quick brown", "The quick brown 語", end + "The quick brown"])
    bos = tokenizer.bos_token_id
    start = [bos] if kind == "gpt2" else []
    assert prompts.rows[0] == [*start, *ids]
    assert prompts.rows[2] == [bos, *ids]
    assert prompts.str_tokens(0)[-3:] == ["The", " quick", " brown"]
    assert tokenizer.decode(prompts.rows[1][len(start) :]) == "The quick brown 語"
