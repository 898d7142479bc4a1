"""Saved interventions come back the same, on the right model only, and hostile files execute nothing."""

import json
import struct

import pytest
import torch

import mi_ablate as mi
from mi_ablate import _files
from models import tiny, tokens_for

pytestmark = pytest.mark.compat

D = 16
S = mi.Subspace.random(D, 4, seed=2)
ROWS = torch.randn(6, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LAST = "blocks.1.hook_resid_post"
HOOKS = {
    "zero": mi.Ablate(S).at(LAST, pos=-1),
    "mean, keep, strength": mi.Ablate(S, ROWS[0], strength=0.3, keep=True).at(LAST, pos=slice(1, None, 2)),
    "gate tensor": mi.Ablate(S, gate=torch.tensor(0.4)).at(LAST),
    "whole vector of a head": mi.Ablate(None).at("blocks.0.attn.hook_z", head=[0, 1], pos=[0, 2]),
    "units": mi.Add(torch.ones(2)).at("blocks.0.mlp.hook_post", unit=[3, 5]),
    "add": mi.Add(ROWS[1], 2.0).at("hook_embed", when="prompt"),
    "rotate": mi.Rotate(S, torch.tensor([0.1, 0.2]), centre=ROWS[3]).at(LAST),
    "erase": mi.Erase(S.basis, S.basis, ROWS[2]).at(LAST),
}


@pytest.mark.parametrize("name", HOOKS)
def test_loaded_hooks_do_what_the_saved_ones_did(tmp_path, model, tokens, name):
    path = mi.save(tmp_path / "x.safetensors", HOOKS[name], mi.Card.of(model, name))
    loaded = mi.load(path, model)
    assert repr(loaded) == repr(HOOKS[name])
    with torch.no_grad():
        outputs = []
        for hooks in (HOOKS[name], loaded):
            with mi.attached(model, hooks):
                outputs.append(model(tokens))
        assert torch.allclose(*outputs, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(outputs[0], model(tokens))


def test_equal_tensors_are_stored_once(tmp_path, model):
    names = mi.writers(model)
    one = mi.save(tmp_path / "one.safetensors", mi.Ablate(S).at(names[0]), mi.Card.of(model, "one"))
    many = mi.save(tmp_path / "many.safetensors", mi.Ablate(S).at(*names), mi.Card.of(model, "many"))
    assert list(_files.read(many)[0]) == list(_files.read(one)[0])


def test_card_tells_operation_site_model_and_claim(tmp_path, model):
    claim = {"accuracy": 0.1, "control": {"covariance": 0.9}}
    card = mi.Card.of(model, "a title", claim=claim, command="a command", seeds={"basis": 3})
    found = mi.read_card(mi.save(tmp_path / "x.safetensors", HOOKS["zero"], card))
    assert found["title"] == "a title"
    assert found["claim"] == claim
    assert found["hooks"][0]["operation"] == "Ablate"
    assert found["hooks"][0]["site"] == LAST
    assert found["hooks"][0]["pos"] == -1
    assert found["model"]["architecture"]["d_model"] == D
    assert found["versions"]["mi_ablate"] == mi.__version__


def test_another_architecture_is_an_error_and_other_weights_unless_not_strict(tmp_path, model):
    path = mi.save(tmp_path / "x.safetensors", HOOKS["zero"], mi.Card.of(model, "x"))
    with pytest.raises(mi.ArtefactError, match=r"another architecture: n_layers 2 \(this model: 3\)"):
        mi.load(path, tiny(n_layers=3), strict=False)
    other = tiny(seed=5)
    with pytest.raises(mi.ArtefactError, match=r"other weights.*strict=False"):
        mi.load(path, other)
    assert len(mi.load(path, other, strict=False)) == 1


def test_fingerprint_does_not_depend_on_the_dtype_of_exact_weights(model):
    from mi_ablate.store import fingerprint

    assert fingerprint(tiny(dtype=torch.float32)) == fingerprint(tiny(dtype=torch.float32))
    assert fingerprint(tiny(seed=1))["weights"] != fingerprint(model)["weights"]


def test_per_example_values_belong_to_their_tokens(tmp_path, model, tokens):
    hooks = mi.Ablate(S, ROWS).at(LAST, pos=-1)
    with pytest.raises(ValueError, match="tokens="):
        mi.save(tmp_path / "x.safetensors", hooks, mi.Card.of(model, "x"))
    path = mi.save(tmp_path / "x.safetensors", hooks, mi.Card.of(model, "x"), tokens=tokens)
    assert len(mi.load(path, model, tokens=tokens)) == 1
    for others in (None, tokens_for(model, seed=9)):
        with pytest.raises(mi.ArtefactError, match="the same tokens"):
            mi.load(path, model, tokens=others)


@pytest.mark.parametrize(
    "hooks",
    [
        [(LAST, lambda x, hook: x)],
        mi.Ablate(S, gate=lambda x: x[..., :1]).at(LAST),
        mi.Ablate(S).at(LAST, pos=lambda x, hook: x[..., 0] > 0),
    ],
)
def test_functions_cannot_be_saved(tmp_path, model, hooks):
    with pytest.raises(ValueError, match="is a function"):
        mi.save(tmp_path / "x.safetensors", hooks, mi.Card.of(model, "x"))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, model, monkeypatch):
    path = mi.save(tmp_path / "x.safetensors", HOOKS["zero"], mi.Card.of(model, "old"))
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        mi.save(path, HOOKS["add"], mi.Card.of(model, "new"))
    monkeypatch.undo()
    assert mi.read_card(path)["title"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def _hostile(body: bytes, header: dict) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a file",
        b"\x80\x04\x95",
        struct.pack("<Q", 2**62) + b"{}",
        _hostile(b"", {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        _hostile(b"", {"__metadata__": {"card": "{"}}),
        _hostile(b"", {"__metadata__": {"card": "[" * 100_000}}),
        _hostile(b"", {"__metadata__": {"card": '["a list"]'}}),
        _hostile(b"", {"__metadata__": {"card": '{"format": "another"}'}}),
        _hostile(
            b"",
            {
                "__metadata__": {
                    "card": '{"format": "mi_ablate interventions 1", "hooks": [{"operation": "os.system"}]}'
                }
            },
        ),
        _hostile(b"", {"__metadata__": {"card": '{"format": "mi_ablate interventions 1", "hooks": [3]}'}}),
        _hostile(b"", {"__metadata__": {"card": '{"format": "mi_ablate interventions 1", "hooks": []}'}}),
    ],
)
def test_truncated_and_hostile_files_are_one_clear_error(tmp_path, model, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(mi.ArtefactError, match=r"x\.safetensors"):
        mi.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis": torch.ones(16, 2)}, "not orthonormal"),
        ({"basis": torch.eye(16)[:, :1], "operation": "Rotate"}, "usable hooks"),
        ({"basis": torch.eye(9)[:, :2]}, "its last axis must be d = 9"),
        ({"basis": torch.full((16, 2), float("nan"))}, "NaN or infinite"),
        ({"basis": torch.eye(16)}, None),
    ],
)
def test_a_card_that_disagrees_with_its_tensors_is_refused(tmp_path, change, message):
    entry = {"site": "blocks.0.hook_resid_post", "operation": change.get("operation", "Ablate"), "when": "all"}
    entry |= {"pos": None, "head": None, "unit": None, "per_example": False}
    values = {"subspace": {"subspace": "a", "name": ""}, "to": {"tensor": "b"}, "strength": 1.0, "keep": False}
    card = {"format": "mi_ablate interventions 1", "hooks": [{**entry, "values": {**values, "gate": None}}]}
    path = _files.write(tmp_path / "x.safetensors", {"a": change["basis"].double(), "b": torch.zeros(16)}, card)
    if message is None:
        assert mi.load(path)[0][1].intervention.rank == 16
        return
    with pytest.raises(mi.ArtefactError, match=message):
        mi.load(path)


def test_a_truncated_artefact_is_refused(tmp_path, model):
    path = mi.save(tmp_path / "x.safetensors", HOOKS["zero"], mi.Card.of(model, "x"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(mi.ArtefactError, match="truncated"):
        mi.load(path)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(mi.ArtefactError, match="There is no file"):
        mi.load(tmp_path / "nothing.safetensors")
