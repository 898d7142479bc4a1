"""Toy files: what is saved comes back, and whatever is wrong with a file is one clear error."""

import math
import re

import pytest
import torch

from mi_ablate import toys
from mi_ablate._files import ArtefactError, read, write
from mi_ablate.toys.tasks import all_tokens, answers, pack_mask
from test_toys_models import CONFIGS, random_state

pytestmark = pytest.mark.compat


@pytest.fixture
def saved(tmp_path):
    config = CONFIGS["rms"]
    train = torch.rand(98, generator=torch.Generator().manual_seed(0)) < 0.3
    path = toys.save(tmp_path / "mine.safetensors", config, random_state(config), train=train, card={"seed": 3})
    return path, config, train


@torch.no_grad()
def test_a_saved_toy_comes_back(saved):
    path, config, train = saved
    toy = toys.load(path)
    assert toy.config == config
    assert toy.modulus == 7
    assert torch.equal(toy.train, train)
    assert torch.equal(toy.tokens, all_tokens(config))
    assert torch.equal(toy.answers, answers(config))
    assert set(toy.inputs) == {"a", "b", "operation"}
    assert toy.card["seed"] == 3
    assert toy.card["name"] == "mine"
    assert repr(toy) == (
        f"Toy(mine: add/mul mod 7, 'a op b =', 2 layers, d_model 16, 98 prompts, {int(train.sum())} trained on)"
    )
    direct = toys.build(config, random_state(config))
    assert torch.equal(toy.model(toy.tokens), direct(toy.tokens))
    assert toys.load(str(path), dtype=torch.float64).model(toy.tokens).dtype == torch.float64
    with pytest.raises(AttributeError):
        toy.modulus = 5


def test_paths(saved, monkeypatch):
    path, *_ = saved
    monkeypatch.setenv("HOME", str(path.parent))
    assert toys.load("~/mine.safetensors").train is not None
    for asked, said in (
        (path.parent, "is a folder. Give one file: mine.safetensors."),
        (path.with_suffix(""), f"but {str(path)!r} is there: write the suffix."),
        (path.with_name("mime.safetensors"), "In its folder: mine.safetensors."),
        ("no_such_toy", "'no_such_toy' is neither a shipped toy nor a file."),
        (path.parent / "no" / "toy.safetensors", "There is no file"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            toys.load(asked)


def test_unknown_id_lists_the_nearest(monkeypatch):
    monkeypatch.setattr(toys.checkpoints, "names", lambda: ("add97", "mul97"))
    with pytest.raises(ValueError, match=r"'add79' is neither a shipped toy.*Nearest names: add97.*toys.names\(\)"):
        toys.load("add79")


def test_every_shipped_toy_loads():
    for name in toys.names():
        toy = toys.load(name)
        assert repr(toy).startswith(f"Toy({name}: ")
        assert len(toy.tokens) == len(toy.answers) == len(toy.inputs["a"]) == len(toy.train)


def test_what_is_saved_is_checked(saved, tmp_path):
    _, config, train = saved
    state = random_state(config)
    with pytest.raises(ValueError, match=r"saved as .safetensors; write '.*x.pt.safetensors'"):
        toys.save(tmp_path / "x.pt", config, state)
    with pytest.raises(ValueError, match="mask has 5 entries, but the task has 98 prompts"):
        toys.save(tmp_path / "x.safetensors", config, state, train=train[:5])
    with pytest.raises(ValueError, match=r"missing embed\.W_E"):
        toys.save(tmp_path / "x.safetensors", config, {k: v for k, v in state.items() if k != "embed.W_E"})
    assert not list(tmp_path.glob("x*"))


BAD_CONFIGS = {
    "modulus is '7'": {"modulus": "7"},
    "modulus is 7.0": {"modulus": 7.0},
    "modulus is True": {"modulus": True},
    "n_layers is -1": {"n_layers": -1},
    "1000000000000 layers in a file of": {"n_layers": 10**12},
    "n_heads is 0": {"n_heads": 0},
    "operations is 'add'": {"operations": "add"},
    "unexpected keyword argument 'os'": {"os": "system"},
    "has more than 100,000,000 prompts": {"modulus": 10**9},
    "attention 'sideways' must be": {"attention": "sideways"},
}


@pytest.mark.parametrize("said", BAD_CONFIGS)
def test_cards_with_a_bad_config(saved, said):
    path, *_ = saved
    tensors, card = read(path)
    write(path, tensors, {**card, "config": {**card["config"], **BAD_CONFIGS[said]}})
    with pytest.raises(ArtefactError) as error:
        toys.load(path)
    assert said in str(error.value)


def test_files_that_are_no_toy(saved, tmp_path):
    path, *_ = saved
    tensors, card = read(path)
    body = path.read_bytes()

    def refused(said, tensors=None, card=None, body=None, name="bad.safetensors"):
        bad = tmp_path / name
        bad.write_bytes(body) if body is not None else write(bad, tensors, card)
        with pytest.raises(ArtefactError) as error:
            toys.load(bad)
        assert said in str(error.value), str(error.value)

    refused("may be truncated", body=body[: len(body) // 2])
    refused("may be truncated", body=b"")
    refused("may be truncated", body=b"\xff" * 64)
    refused(
        "has the format 'mi_ablate toy 2'; this version reads 'mi_ablate toy 1'",
        tensors,
        card | {"format": "mi_ablate toy 2"},
    )
    refused("has the format 'other'", tensors, card | {"format": "other"})
    refused("has the tensors layer.weight: neither a toy of this package", {"layer.weight": torch.ones(2)}, {})
    refused("HookedTransformer state becomes a toy with mi_ablate.toys.save", tensors, {})
    refused("it is a NoneType, not an object", tensors, {"format": card["format"]})
    refused("missing unembed.W_U", {k: v for k, v in tensors.items() if k != "unembed.W_U"}, card)
    refused(
        "98 prompts need 13: it is another task's",
        tensors,
        card | {"train_mask": pack_mask(torch.ones(9).bool())},
    )
    refused("is not base64", tensors, card | {"train_mask": "!"})
    refused(
        "embed.W_E have values that are not finite",
        tensors | {"embed.W_E": tensors["embed.W_E"] * math.inf},
        card,
    )
    refused("is a pickle, which is not read here. Convert it once", body=b"x", name="bad.pth")
