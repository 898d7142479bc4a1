"""Published toys: two papers' layout against logits computed from it directly, options and pickles."""

import json
import math
import os
import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file

from mi_ablate import toys
from mi_ablate._files import ArtefactError, read
from mi_ablate.toys import published
from mi_ablate.toys.tasks import answers
from models import data_folder

pytestmark = pytest.mark.compat


def published_tensors(p, n_ctx, n_layers=1, d=16, heads=2, m=24, outputs=None, seed=0):
    """Return random weights in the published layout, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).double() / 3

    vocabulary = p + (n_ctx == 3)
    out = {
        "embed.W_E": draw(d, vocabulary),
        "pos_embed.W_pos": draw(n_ctx, d),
        "unembed.W_U": draw(d, outputs or vocabulary),
    }
    for b in (f"blocks.{i}." for i in range(n_layers)):
        out |= {f"{b}attn.W_{k}": draw(heads, d // heads, d) for k in "QKV"}
        out |= {b + "attn.W_O": draw(d, d // heads * heads), b + "attn.mask": torch.ones(n_ctx, n_ctx).tril()}
        out |= {
            b + "mlp.W_in": draw(m, d),
            b + "mlp.b_in": draw(m),
            b + "mlp.W_out": draw(d, m),
            b + "mlp.b_out": draw(d),
        }
    return out


def published_logits(w, tokens, c=1.0, causal=False, act=torch.relu):
    """Return the last position's logits straight from the published layout, in the papers' einsums."""
    x = w["embed.W_E"].T[tokens] + w["pos_embed.W_pos"]
    n, layers = tokens.shape[1], sum(name.endswith("W_O") for name in w)
    for b in (f"blocks.{i}." for i in range(layers)):
        q, k, v = (torch.einsum("ihd,bpd->biph", w[f"{b}attn.W_{name}"], x) for name in "QKV")
        scores = torch.einsum("biph,biqh->biqp", k, q) / math.sqrt(q.shape[-1])
        if causal:
            scores = scores - 1e10 * (1 - torch.ones(n, n).tril())
        pattern = c * scores.softmax(-1) + (1 - c)
        z = torch.einsum("biph,biqp->biqh", v, pattern).transpose(1, 2).flatten(2)
        x = x + torch.einsum("df,bqf->bqd", w[b + "attn.W_O"], z)
        hidden = act(torch.einsum("md,bpd->bpm", w[b + "mlp.W_in"], x) + w[b + "mlp.b_in"])
        x = x + torch.einsum("dm,bpm->bpd", w[b + "mlp.W_out"], hidden) + w[b + "mlp.b_out"]
    return torch.einsum("dv,bd->bv", w["unembed.W_U"], x[:, -1])


def on_disk(tmp_path, tensors, options=None, name="model"):
    path = tmp_path / f"{name}.safetensors"
    save_file({k: t.contiguous() for k, t in tensors.items()}, path)
    path.with_suffix(".json").unlink(missing_ok=True)
    if options is not None:
        path.with_suffix(".json").write_text(options if isinstance(options, str) else json.dumps(options))
    return path


GELU = torch.nn.functional.gelu
TIMES = "lambda x: (x[0]*x[1])%11"
LAYOUTS = {  # sizes, options, how the logits are computed, operation
    "nanda": ({"p": 11, "n_ctx": 3}, None, {"causal": True}, "add"),
    "subtraction": (
        {"p": 7, "n_ctx": 3, "d": 24, "heads": 3},
        {"fn_name": "subtract"},
        {"causal": True},
        "sub",
    ),
    "model A": (
        {"p": 11, "n_ctx": 2},
        {"attn_coeff": 0, "attention_dir": "casual", "C": 11},
        {"c": 0.0},
        "add",
    ),
    "3 layers": ({"p": 11, "n_ctx": 2, "n_layers": 3}, {"attn_coeff": 1}, {}, "add"),
    "half, with =": (
        {"p": 11, "n_ctx": 3, "n_layers": 2, "outputs": 11},
        {"attn_coeff": 0.5, "eqn_sign": 1, "funcs": TIMES},
        {"c": 0.5},
        "mul",
    ),
    "d_model is no multiple of heads": ({"p": 7, "n_ctx": 2, "d": 21, "heads": 4}, {"attn_coeff": 1}, {}, "add"),
    "gelu": (
        {"p": 5, "n_ctx": 2, "m": 40},
        {"attn_coeff": 0.25, "act_fn": "GeLU", "frac": 0.8},
        {"c": 0.25, "act": GELU},
        "add",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_published_layouts_keep_their_logits(name, tmp_path):
    sizes, options, how, operation = LAYOUTS[name]
    tensors = published_tensors(**sizes)
    toy = toys.load(on_disk(tmp_path, tensors, options), dtype=torch.float64)
    expected = published_logits(tensors, toy.tokens, **how)
    torch.testing.assert_close(toy.model(toy.tokens)[:, -1], expected, rtol=0, atol=1e-11)
    assert toy.modulus == sizes["p"]
    assert toy.config.operations == (operation,)
    assert toy.config.attention == ("causal" if how.get("causal") else "bidirectional")
    assert toy.train is None
    assert toy.card["options"] == (options or {})
    assert torch.equal(toy.answers, answers(toy.config))


@pytest.mark.parametrize(("name", "loss"), [("nanda_mod113", 2.888e-3), ("zhong_model_a", 0), ("zhong_model_b", 0)])
@torch.no_grad()
def test_known_values_of_the_published_models(name, loss):
    toy = toys.load(data_folder() / "third_party_models" / f"{name}.safetensors", dtype=torch.float64)
    logits = toy.model(toy.tokens)[:, -1, : toy.modulus]
    right = (logits.argmax(-1) == toy.answers).double().mean()
    entropy = torch.nn.functional.cross_entropy(logits, toy.answers)
    if name == "nanda_mod113":
        assert toy.config.n_answers == 114
        assert len(toy.tokens) == 12769
        assert round(100 * float(right), 2) == 99.95
        assert abs(float(entropy) - loss) < 5e-7
    else:
        assert right == 1
        assert entropy < 1e-6
    assert toy.config.attention_coefficient == {"zhong_model_a": 0.0}.get(name, 1.0)


@torch.no_grad()
def test_the_published_nanda_run_was_split_with_seed_1(tmp_path):
    tensors, _ = read(data_folder() / "third_party_models" / "nanda_mod113.safetensors")
    toy = toys.load(on_disk(tmp_path, tensors, {"seed": 1, "frac_train": 0.3, "fn_name": "add"}), dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(toy.model(toy.tokens)[:, -1], toy.answers, reduction="none").log()
    train, other = loss[toy.train], loss[~toy.train]
    assert len(train) == 3830
    error = loss.std() * (1 / len(train) + 1 / len(other)) ** 0.5
    assert (train.mean() - other.mean()) / error < -8


def test_wrong_published_tensors_are_named(tmp_path):
    good = published_tensors(7, 3)

    def refused(said, tensors, options=None):
        with pytest.raises(ArtefactError) as error:
            toys.load(on_disk(tmp_path, tensors, options))
        assert said in str(error.value), str(error.value)

    less = {k: t for k, t in good.items() if k not in ("blocks.0.mlp.b_in", "pos_embed.W_pos")}
    refused("missing pos_embed.W_pos; missing blocks.0.mlp.b_in.", less)
    refused("unknown blocks.0.ln1.w_ln [16]", good | {"blocks.0.ln1.w_ln": torch.ones(16)})
    refused("blocks.0.attn.W_K is [3, 8, 16], not [2, 8, 16]", good | {"blocks.0.attn.W_K": torch.ones(3, 8, 16)})
    refused("embed.W_E is [16], not of 2 axes", good | {"embed.W_E": torch.ones(16)})
    refused("missing blocks.1.attn.W_Q", good | {"blocks.1.mlp.b_in": torch.ones(24)})
    refused("unembed.W_U has values that are not finite", good | {"unembed.W_U": good["unembed.W_U"] * math.nan})
    refused("mlp.b_in is torch.int64, not floating", good | {"blocks.0.mlp.b_in": torch.ones(24).long()})
    refused("unembed.W_U is empty", good | {"unembed.W_U": torch.ones(16, 0)})
    refused("has 4 positions", published_tensors(7, 4) | {"embed.W_E": torch.ones(16, 9)})
    refused("8 input tokens and 5 outputs", published_tensors(7, 3, outputs=5))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"C": 11, "attn_coeff": 1}, "C = 11, but the weights have 7"),
        ({"n_layers": 2, "attn_coeff": 1}, "n_layers = 2, but the weights have 1"),
        (
            {"attn_coeff": 1, "diff_vocab": True},
            "diff_vocab is set, and separate tokens for a and b is not read",
        ),
        ({"attn_coeff": 1, "eqn_sign": 1}, "eqn_sign is set, but the weights have 2 positions"),
        ({"attn_coeff": "half"}, "attn_coeff = 'half', which is no finite number"),
        ({"attn_coeff": 1, "act_fn": "Tanh"}, "the activation 'Tanh'; read are ReLU and GeLU"),
        ({"attn_coeff": 1, "funcs": "lambda x: (x[0]+x[1])%11"}, "read are add, sub, mul and"),
        ({"attn_coeff": 1, "funcs": "__import__('os').abort()"}, "read are add, sub, mul and"),
        ("{", "is not readable JSON"),
        ("[1]", "holds a list, not an object"),
        ("[" * 100_000, "is not readable JSON"),
    ],
)
def test_options_that_do_not_fit(options, said, tmp_path):
    with pytest.raises(ArtefactError) as error:
        toys.load(on_disk(tmp_path, published_tensors(7, 2), options))
    assert said in str(error.value)


def test_two_tokens_without_options_warn(tmp_path):
    with pytest.warns(UserWarning, match="attention coefficient: 1 .plain softmax. is assumed"):
        toy = toys.load(on_disk(tmp_path, published_tensors(7, 2)))
    assert toy.config.attention_coefficient == 1


class Bomb:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("form", ["plain", "model", "state_dicts"])
@torch.no_grad()
def test_pickles_are_converted(form, tmp_path):
    tensors = published_tensors(7, 2)
    source, out = tmp_path / "run.pth", tmp_path / "new" / "run.safetensors"
    config = {"attn_coeff": 0.5, "C": 7, "lr": 1e-3, "nan": math.nan, "history": [1, 2]}
    if form == "plain":
        torch.save(tensors, source)
        source.with_suffix(".json").write_text(json.dumps({"attn_coeff": 0.5}))
    else:
        torch.save({form: [tensors] if form == "state_dicts" else tensors, "config": config, "epoch": 3}, source)
    assert published.convert_pickle(source, out) == out
    toy = toys.load(out, dtype=torch.float64)
    expected = published_logits(tensors, toy.tokens, c=0.5)
    torch.testing.assert_close(toy.model(toy.tokens)[:, -1], expected, rtol=0, atol=1e-11)
    options = {"attn_coeff": 0.5} if form == "plain" else {"attn_coeff": 0.5, "C": 7, "lr": 1e-3, "epoch": 3}
    assert json.loads(out.with_suffix(".json").read_text()) == options


def test_pickles_are_not_executed(tmp_path):
    trap, out = tmp_path / "trap", tmp_path / "out.safetensors"
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(Bomb(str(trap))))
    torch.save({"model": published_tensors(7, 2), "extra": Bomb(str(trap))}, tmp_path / "new.pth")
    torch.save(published_tensors(7, 2), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:3000])
    torch.save([1], tmp_path / "list.pth")
    torch.save({"weights": {}}, tmp_path / "key.pth")
    torch.save({"layer": torch.ones(2)}, tmp_path / "foreign.pth")
    for name, said in {
        "old.pkl": "Nothing in it was executed",
        "new.pth": "Nothing in it was executed",
        "cut.pth": "may be truncated",
        "list.pth": "holds a list, not a state dict",
        "key.pth": "has the keys ['weights']; a state dict is sought under ['model', 'state_dict'",
        "foreign.pth": "unknown layer [2]",
        "absent.pth": "There is no file",
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old formats before it refuses them
            with pytest.raises(ArtefactError) as error:
                published.convert_pickle(tmp_path / name, out)
        assert said in str(error.value), str(error.value)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        published.convert_pickle(tmp_path / "new.pth", tmp_path / "out.pt")
    assert not trap.exists()
    assert not out.exists()
    assert not out.with_suffix(".json").exists()
