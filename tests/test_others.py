"""Directions of other tools: each with the site, layer and sign that the tool means by it, and refused where it cannot be."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_ablate import Ablate, Subspace, others
from models import logits_with

D = 16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sae(rows: Tensor, site: str = "blocks.0.hook_resid_post", old: bool = False) -> SimpleNamespace:
    cfg = SimpleNamespace(hook_name=site) if old else SimpleNamespace(metadata=SimpleNamespace(hook_name=site))
    return SimpleNamespace(W_dec=torch.nn.Parameter(rows), cfg=cfg)


def test_a_refusal_direction_belongs_to_the_input_of_its_block(tmp_path: Path) -> None:
    r = draw(D)
    torch.save(r, tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"pos": -2, "layer": 1}))
    found = others.refusal_direction(tmp_path / "direction.pt")
    assert list(found) == ["blocks.1.hook_resid_pre"]
    s = found["blocks.1.hook_resid_pre"]
    assert torch.allclose(s.vector, r.double(), atol=1e-6), "sign and size are kept"
    assert (s.source["layer"], s.source["pos"], s.source["sign"]) == (1, -2, "harmful minus harmless")


def test_every_candidate_of_a_tensor_of_mean_differences(tmp_path: Path) -> None:
    means = draw(3, 2, D)
    torch.save(means, tmp_path / "mean_diffs.pt")
    found = others.refusal_direction(tmp_path / "mean_diffs.pt")
    assert list(found) == ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]
    assert torch.allclose(found["blocks.1.hook_resid_pre"].vector, means[-1, 1].double(), atol=1e-6)
    [(site, one)] = others.refusal_direction(means, layer=0, pos=-3).items()
    assert site == "blocks.0.hook_resid_pre"
    assert torch.allclose(one.vector, means[0, 0].double(), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "site"),
    [("decoder_block", "hook_resid_post"), ("self_attn", "hook_attn_out"), ("mlp", "hook_mlp_out")],
)
def test_a_steering_vector_belongs_to_the_output_of_what_it_was_read_from(kind: str, site: str) -> None:
    vector = SimpleNamespace(layer_activations={0: draw(D), 1: 3 * draw(D, seed=1)}, layer_type=kind)
    found = others.steering_vectors(vector)
    assert list(found) == [f"blocks.0.{site}", f"blocks.1.{site}"]
    assert torch.allclose(found[f"blocks.1.{site}"].vector, 3 * draw(D, seed=1).double(), atol=1e-6)


@pytest.mark.compat
def test_repengs_last_layer_was_read_after_the_final_norm(model) -> None:
    found = others.repeng(SimpleNamespace(directions={0: draw(D).numpy(), 1: draw(D).numpy()}), model=model)
    assert "caution" not in found["blocks.0.hook_resid_post"].source
    assert found["blocks.1.hook_resid_post"].source["caution"] == "repeng read it after the final norm"


@pytest.mark.parametrize("old", [False, True])
def test_decoder_rows_keep_their_hook_name_and_order(old: bool) -> None:
    rows = draw(8, D)
    [(site, s)] = others.sae_lens(sae(rows, old=old), [5, 2]).items()
    assert (site, s.rank, s.source["features"]) == ("blocks.0.hook_resid_post", 2, [5, 2])
    assert torch.allclose(s.basis[:, 0] * rows[5].double().norm(), rows[5].double(), atol=1e-6)
    [one] = others.sae_lens(sae(rows, old=old), [3]).values()
    assert torch.allclose(one.vector, rows[3].double(), atol=1e-6)


def test_an_untrained_sae_of_saelens_itself() -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="needs the extra sae")
    config = sae_lens.StandardSAEConfig(d_in=D, d_sae=32)
    config.metadata.hook_name = "blocks.0.hook_resid_post"
    real = sae_lens.StandardSAE(config)
    with torch.no_grad():
        real.W_dec[4] = 3 * torch.eye(D)[7]  # planted
    [(site, s)] = others.sae_lens(real, 4).items()
    assert site == "blocks.0.hook_resid_post"
    assert torch.allclose(s.vector, 3 * torch.eye(D)[7].double(), atol=1e-6)


def test_features_come_as_one_number_a_list_an_array_or_the_indices_of_topk() -> None:
    rows = draw(8, D)
    wanted = others.sae_lens(sae(rows), [5, 2])["blocks.0.hook_resid_post"]
    for features in (torch.tensor([5, 2]), np.array([5, 2])):
        found = others.sae_lens(sae(rows), features)["blocks.0.hook_resid_post"]
        assert torch.equal(found.basis, wanted.basis)
        assert json.dumps(found.source)
    assert others.sae_lens(sae(rows), 5)["blocks.0.hook_resid_post"].source["features"] == [5]


def test_a_layer_whose_class_means_are_equal_is_left_out_with_a_warning() -> None:
    means = draw(1, 3, D)
    means[0, 0] = 0  # a token of the template, before anything was read
    with pytest.warns(UserWarning, match=r"No direction at layers \[0\]: the class means are equal there"):
        assert list(others.refusal_direction(means)) == ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]
    with pytest.raises(ValueError, match="all of them are zero"):
        others.refusal_direction(means, layer=0)


def test_an_array_is_a_direction_too() -> None:
    r = np.arange(1.0, 5.0)
    assert torch.allclose(others.refusal_direction(r, layer=2)["blocks.2.hook_resid_pre"].vector, torch.tensor(r))


def test_an_interchange_basis_has_columns() -> None:
    q = torch.linalg.qr(draw(D, 3)).Q
    learned = SimpleNamespace(basis=q, hook_name="blocks.1.hook_resid_post")
    [(site, s)] = others.interchange_basis(learned).items()
    assert site == "blocks.1.hook_resid_post"
    assert torch.allclose(s.basis, q.double(), atol=1e-6), "order and sign of the columns are kept"
    assert s.overlap(others.interchange_basis(q, "x")["x"]) == pytest.approx(1)


@pytest.mark.compat
def test_an_imported_direction_is_ablated_at_its_own_site(model, tokens) -> None:
    found = others.refusal_direction(draw(2, D)[None], model=model)
    hooks = [hook for site, s in found.items() for hook in Ablate(s).at(site)]
    assert not torch.allclose(logits_with(model, tokens, hooks), logits_with(model, tokens))


NOTHING = SimpleNamespace()
Q = torch.linalg.qr(draw(D, 3)).Q
WRONG = {
    "no layer": (lambda: others.refusal_direction(draw(D)), ValueError, "does not say its layer: give layer="),
    "two axes": (
        lambda: others.refusal_direction(draw(2, D)),
        ValueError,
        r"shape \[2, 16\]; \[d\] or \[pos, layer, d\] is expected",
    ),
    "position": (lambda: others.refusal_direction(draw(2, 3, D), pos=0), IndexError, "the last 2 positions, -2 to -1"),
    "negative layer": (
        lambda: others.refusal_direction(draw(D), layer=-1),
        IndexError,
        "layer=-1: the tool counts blocks from 0",
    ),
    "layer": (
        lambda: others.refusal_direction(draw(2, 3, D), layer=3),
        IndexError,
        "is out of range: the tensor holds layers 0 to 2",
    ),
    "no vector": (lambda: others.steering_vectors(NOTHING), ValueError, "has no layer_activations"),
    "after a norm": (
        lambda: others.steering_vectors(SimpleNamespace(layer_activations={}, layer_type="input_layernorm")),
        ValueError,
        "'input_layernorm' is read after a norm",
    ),
    "no control vector": (lambda: others.repeng(NOTHING), ValueError, "has no directions; a repeng"),
    "no SAE": (lambda: others.sae_lens(NOTHING, [0]), ValueError, "is no SAELens SAE: it needs W_dec"),
    "heads": (
        lambda: others.sae_lens(sae(draw(4, D), "blocks.0.attn.hook_z"), [0]),
        ValueError,
        "reads all heads of blocks.0.attn.hook_z",
    ),
    "no such feature": (lambda: others.sae_lens(sae(draw(4, D)), [4]), IndexError, "choose from 0 to 3"),
    "no feature": (lambda: others.sae_lens(sae(draw(4, D)), []), IndexError, "choose from 0 to 3"),
    "copies": (
        lambda: others.sae_lens(sae(torch.ones(4, D)), [0, 1]),
        ValueError,
        "2 decoder rows span 1 directions only",
    ),
    "rows": (lambda: others.interchange_basis(Q.T, "x"), ValueError, "is no basis of columns"),
    "no basis": (lambda: others.interchange_basis(NOTHING, "x"), ValueError, "SimpleNamespace is no basis of columns"),
    "no site": (lambda: others.interchange_basis(Q), ValueError, "does not say where it belongs: give site="),
    "skew": (lambda: others.interchange_basis(2 * Q, "x"), ValueError, "not orthonormal .error 3.0e"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_says_too_little_is_refused(name: str) -> None:
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_a_direction_of_another_model_is_refused(model) -> None:
    with pytest.raises(
        ValueError, match=r"is of another model: its vectors at blocks\.1\.hook_resid_pre have width 16"
    ):
        others.refusal_direction(draw(8), layer=1, model=model)
    with pytest.raises(IndexError, match=r"has no blocks\.7\.hook_resid_pre: it has 2 layers, 0 to 1"):
        others.refusal_direction(draw(D), layer=7, model=model)


def test_a_pickle_that_is_not_a_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"direction": draw(D)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds a dict, not a tensor"):
        others.refusal_direction(tmp_path / "x.pt")


def test_what_is_imported_can_be_saved(tmp_path: Path, model) -> None:
    from mi_ablate import Card, load, save

    [(site, s)] = others.refusal_direction(draw(D), layer=1).items()
    path = save(tmp_path / "r.safetensors", Ablate(s).at(site), Card.of(model, "imported"))
    [(name, hook)] = load(path, model)
    back: Subspace = hook.intervention.subspace
    assert (name, back.source["from"]) == (site, "refusal_direction")
    assert torch.equal(back.vector, s.vector)
