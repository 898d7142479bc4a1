"""Models by name, folder and file: Hugging Face's logits, untied weights, errors instead of time-outs."""

import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch

from mi_ablate import loading, toys
from mi_ablate.loading import load_model
from mi_ablate.toys import ToyConfig
from mi_ablate.toys.stepper import initial_state
from models import data_folder, has_hooked_transformer

pytestmark = pytest.mark.compat
TEXT = "The quick brown fox"
TOY = ToyConfig(7, d_model=16, n_heads=2, d_mlp=24)


def hugging_face(kind, vocab=60):
    """Return a random two-layer GPT-2 or GPT-NeoX with non-zero biases."""
    import transformers

    torch.manual_seed(0)
    special = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, **special)
        model = transformers.GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        config = transformers.GPTNeoXConfig(**sizes, rotary_pct=0.5, max_position_embeddings=32, **special)
        model = transformers.GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model.eval()


def small_tokenizer():
    """Return a word-level tokenizer of 60 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|endoftext|>", *TEXT.split(), *(f"w{i}" for i in range(55))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {f"{k}_token": words[0] for k in ("bos", "eos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


@pytest.fixture(scope="module", params=["gpt2", "neox"])
def saved(request, tmp_path_factory):
    """A folder with config, weights and tokenizer, and the model that was saved there."""
    folder = tmp_path_factory.mktemp("t5-llama-bert") / request.param  # names that mislead TransformerLens
    model = hugging_face(request.param)
    model.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder, model


@pytest.fixture
def tokens():
    return torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [None, "float64", torch.bfloat16])
@torch.no_grad()
def test_folder_raw(saved, tokens, dtype):
    folder, hf = saved
    model = load_model(folder, dtype=dtype)
    logits = model(tokens)
    assert logits.dtype == model.cfg.dtype
    assert logits.dtype == {None: torch.float32, "float64": torch.float64}.get(dtype, torch.bfloat16)
    assert not model.training
    assert model.cfg.model_name == folder.name
    scale = hf(tokens).logits.abs().max()
    if dtype is torch.bfloat16:
        assert (logits - hf(tokens).logits).abs().max() < 0.05 * scale
    else:
        torch.testing.assert_close(logits.float(), hf(tokens).logits, rtol=0, atol=float(5e-6 * scale))
    assert model.to_tokens(TEXT, prepend_bos=False).tolist() == [[1, 2, 3, 4]]


@torch.no_grad()
def test_folder_processed(saved, tokens):
    folder, hf = saved
    model = load_model(str(folder), process=True, device="cpu")
    expected = hf(tokens).logits.log_softmax(-1)
    torch.testing.assert_close(model(tokens).log_softmax(-1), expected, rtol=0, atol=2e-5)
    centred = model.W_U.mean(-1).abs().max()
    raw = load_model(folder).W_U.mean(-1).abs().max()
    assert centred < 1e-5 < raw


@torch.no_grad()
def test_embedding_and_unembedding_are_two_weights(saved, tokens):
    folder, hf = saved
    model, reference = load_model(folder), copy.deepcopy(hf)
    reference.lm_head = getattr(reference, "lm_head", None) or reference.embed_out
    reference.lm_head.weight = torch.nn.Parameter(reference.lm_head.weight.clone())
    unembedding = model.W_U.clone()
    model.W_E.mul_(0.5)
    reference.get_input_embeddings().weight.mul_(0.5)
    assert torch.equal(model.W_U, unembedding)
    torch.testing.assert_close(model(tokens), reference(tokens).logits, rtol=0, atol=1e-4)
    embedding = model.W_E.clone()
    model.W_U.mul_(2)
    assert torch.equal(model.W_E, embedding)
    torch.testing.assert_close(model(tokens), 2 * reference(tokens).logits, rtol=0, atol=2e-4)


@torch.no_grad()
def test_folder_without_tokenizer(saved, tokens, tmp_path):
    from transformers import AutoTokenizer

    folder, hf = saved
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    model = load_model(tmp_path)
    expected = hf(tokens).logits
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=float(5e-6 * expected.abs().max()))
    hooks = [("blocks.0.attn.hook_pattern", lambda pattern, hook: pattern * 0)]
    assert not torch.allclose(model.run_with_hooks(tokens, fwd_hooks=hooks), expected, atol=1e-3)
    assert model.tokenizer is None
    told = load_model(tmp_path, tokenizer=AutoTokenizer.from_pretrained(folder))
    assert told.to_tokens(TEXT, prepend_bos=False).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
@torch.no_grad()
def test_a_model_in_memory(kind, tokens):
    hf = hugging_face(kind)
    expected = hf(tokens).logits
    model = load_model("any name", hf_model=hf)
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=float(5e-6 * expected.abs().max()))


@pytest.mark.parametrize(("kind", "vocab", "ids"), [("gpt2", 50257, [464, 2068]), ("pythia", 50304, [510, 3158])])
@torch.no_grad()
def test_the_real_tokenizers(kind, vocab, ids, tmp_path):
    source = data_folder() / "tokenizers" / kind
    for file in source.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    classes = {"gpt2": "GPT2Tokenizer", "pythia": "GPTNeoXTokenizer"}
    end = '"<|endoftext|>"'
    (tmp_path / "tokenizer_config.json").write_text(
        f'{{"tokenizer_class": "{classes[kind]}", "bos_token": {end}, "eos_token": {end}}}'
    )
    hf = hugging_face("gpt2" if kind == "gpt2" else "neox", vocab)
    hf.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    found = model.to_tokens("The quick brown fox", prepend_bos=False)
    assert found[0, :2].tolist() == ids
    expected = hf(found).logits
    torch.testing.assert_close(model(found), expected, rtol=0, atol=float(5e-6 * expected.abs().max()))


@torch.no_grad()
def test_names_from_the_local_cache(tmp_path):
    """A hand-filled cache of the Hub stands for the network: names, aliases and revisions resolve there."""
    for kind, name in (("gpt2", "models--gpt2"), ("neox", "models--EleutherAI--pythia-70m")):
        root = tmp_path / "hub" / name
        commit = "0" * 40
        for ref in ("main", "step3000"):
            (root / "refs").mkdir(parents=True, exist_ok=True)
            (root / "refs" / ref).write_text(commit)
        hf = hugging_face(kind)
        hf.config.n_ctx = 32  # the published config of GPT-2 has it
        hf.save_pretrained(root / "snapshots" / commit)
        small_tokenizer().save_pretrained(root / "snapshots" / commit)
    code = """
import torch
from mi_ablate.loading import load_model
tokens = torch.arange(12).reshape(2, 6)
shown = [load_model(*a, **k)(tokens).double().sum().item() for a, k in (
    (("gpt2",), {}), (("pythia-70m",), {}), (("EleutherAI/pythia-70m",), {"revision": "step3000"}))]
processed = load_model("gpt2", process=True, dtype="float64")(tokens)
print("RESULT", *(f"{x:.4f}" for x in shown), f"{processed.mean():.4f}")
"""
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    tokens = torch.arange(12).reshape(2, 6)
    expected = [float(hugging_face(kind)(tokens).logits.double().sum()) for kind in ("gpt2", "neox", "neox")]
    found = [float(x) for x in done.stdout.split("RESULT")[1].split()]
    torch.testing.assert_close(torch.tensor(found[:3]), torch.tensor(expected), rtol=1e-4, atol=1e-2)
    assert abs(found[3]) < 1e-3  # a centred unembedding and no bias of the logits


@torch.no_grad()
def test_toys_by_path(tmp_path):
    path = toys.save(tmp_path / "mine.safetensors", TOY, initial_state(TOY, "log", 3))
    tokens = toys.load(path).tokens
    model = load_model(path, dtype="float64")
    assert model(tokens).dtype == torch.float64
    torch.testing.assert_close(model(tokens).float(), toys.build(TOY, seed=3)(tokens))
    with pytest.raises(ValueError, match="takes dtype and device alone, not n_ctx, revision, process"):
        load_model(path, revision="main", process=True, n_ctx=4)
    published = load_model(data_folder() / "third_party_models" / "zhong_model_b.safetensors")
    assert published.cfg.d_vocab == 59


def test_names_that_lead_nowhere(monkeypatch, tmp_path):
    monkeypatch.setattr(loading.checkpoints, "names", lambda: ("add97", "mul97"))
    for asked, said in (
        (
            "gpt3",
            "'gpt3' is no shipped toy, no local file or folder, and no name that TransformerLens lists.",
        ),
        ("add98", "add97"),
        ("./gpt2", "There is no file or folder './gpt2'."),
        ("gpt2.safetensors", "There is no file or folder 'gpt2.safetensors'."),
    ):
        with pytest.raises(ValueError, match=r"no file or folder|Nearest names") as error:
            load_model(asked)
        assert said in str(error.value)
    with pytest.raises((OSError, ValueError), match="Nearest names: EleutherAI/pythia-70m"):
        load_model("EleutherAI/pythia-70")


def test_a_known_name_without_a_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"files of 'gpt2-medium' are neither in the local.*hf download gpt2-medium"):
        load_model("gpt2-medium")


def test_aliases_lead_to_the_published_names():
    assert loading._known("pythia-70m") == "EleutherAI/pythia-70m"
    assert loading._known("EleutherAI/pythia-70m") == "EleutherAI/pythia-70m"
    assert loading._known("gpt2") == loading._known("gpt2-small") == loading._known("GPT2") == "gpt2"


@pytest.mark.parametrize(("name", "legacy"), [("gelu-1l", True), ("gpt2", False)])
@pytest.mark.parametrize("process", [False, True])
def test_arguments_pass_through(name, legacy, process, monkeypatch):
    seen, made = [], toys.build(TOY)
    if has_hooked_transformer():
        from transformer_lens import HookedTransformer as Owner

        at = "from_pretrained" if process else "from_pretrained_no_processing"
    else:
        from transformer_lens.model_bridge import TransformerBridge as Owner

        at = "boot_tl_legacy" if legacy else "boot_transformers"
        monkeypatch.setattr(Owner, "enable_compatibility_mode", lambda self: seen.append("processed"))
    monkeypatch.setattr(Owner, at, lambda *args, **kw: (seen.append((args, kw)), made)[1])
    assert load_model(name, device="cpu", dtype="float64", revision="main", n_ctx=8, process=process) is made
    (asked,), kw = seen[0]
    assert asked in ("gpt2", "NeelNanda/GELU_1L512W_C4_Code")
    assert str(kw.pop("device")) == "cpu"
    assert kw == {"dtype": torch.float64, "revision": "main", "n_ctx": 8}
    assert seen[1:] == (["processed"] if process and not has_hooked_transformer() else [])


def test_folders_that_hold_no_model(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(ValueError, match=r"is a folder without config\.json.*save_pretrained"):
        load_model(tmp_path)
    (tmp_path / "toy.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Give one of its files: toy\.safetensors\."):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match='names no "architectures"'):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="revision='main' names a version on the Hub"):
        load_model(folder, revision="main")


def test_dtypes_and_devices_that_are_not_there(saved, monkeypatch):
    folder, _ = saved
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="dtype 'float31' is no floating PyTorch dtype"):
        load_model(folder, dtype="float31")
    with pytest.raises(ValueError, match=r"dtype torch\.int64 is no floating"):
        load_model(folder, dtype=torch.int64)
    with pytest.raises(ValueError, match='device "cuda" was asked for, but PyTorch sees 0 CUDA devices'):
        load_model(folder, device="cuda")


def test_loading_imports_transformer_lens_only_when_called():
    code = "import sys; from mi_ablate import loading, toys; toys.load; print('transformer_lens' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
