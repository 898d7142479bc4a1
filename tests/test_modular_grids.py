"""A model on every pair: the bookkeeping of addition, subtraction and multiplication as one cyclic group."""

from dataclasses import replace

import pytest
import torch

from mi_ablate import toys
from mi_ablate.modular import grid
from models import data_folder


@pytest.mark.parametrize(("name", "operation"), [("add97", None), ("addmul97", "add"), ("addmul97", "mul")])
def test_pairs_are_in_the_order_of_the_group(name: str, operation: str | None) -> None:
    toy = toys.load(name)
    found = grid(toy, operation)
    n, p = found.n, found.modulus
    assert n == (p - 1 if operation == "mul" else p)
    i, j = 5, n - 3
    row = found.tokens[i * n + j].tolist()
    assert (row[0], row[2]) == (int(found.a[i]), int(found.b[j]))
    x, y, z = int(found.a[i]), int(found.b[j]), int(found.c[(i + j) % n])
    assert z == (x * y if operation == "mul" else x + y) % p
    assert found.accuracy > 0.999
    assert float((found.logits.argmax(-1) == found.answers).double().mean()) > 0.999
    assert float(found.loss().mean()) < 0.1
    assert found.embedding.shape == (n, 128)
    assert found.unembedding.shape == (128, n)
    assert found.neuron_logits().shape == (512, n)


def test_activations_and_patterns_are_those_of_the_pairs() -> None:
    toy = toys.load("nanda113")
    found = grid(toy)
    acts = found.acts("blocks.0.mlp.hook_post")
    assert acts.shape == (113, 113, 512)
    assert acts.dtype == torch.float64
    patterns = found.patterns()
    assert patterns.shape == (113, 113, 4, 3)
    assert torch.allclose(patterns.sum(-1), torch.ones(113, 113, 4, dtype=torch.float64), atol=1e-5)


def test_subtraction_is_addition_of_the_negative() -> None:
    toy = toys.load("add97")
    p = toy.modulus
    fake = replace(toy, answers=(toy.inputs["a"] - toy.inputs["b"]) % p, card={"config": {"operations": ["sub"]}})
    found = grid(fake)
    assert int(found.b[3]) == p - 3
    i, j = 10, 3
    assert int(found.c[(i + j) % p]) == (int(found.a[i]) - int(found.b[j])) % p


def test_the_published_model_has_its_published_loss() -> None:
    folder = data_folder() / "third_party_models"
    found = grid(toys.load(folder / "nanda_mod113.safetensors"))
    assert found.accuracy == pytest.approx(0.9995, abs=5e-5)
    assert float(found.loss().mean()) == pytest.approx(2.888e-3, rel=1e-3)


def test_splits() -> None:
    found = grid(toys.load("add97"))
    assert int(found.split_mask("all").sum()) == 97**2
    assert int(found.split_mask("train").sum() + found.split_mask("test").sum()) == 97**2
    unknown = replace(found, train=None)
    with pytest.raises(ValueError, match=r"Nobody knows which pairs .* was trained on, so there is no 'test' split"):
        unknown.split_mask("test")
    with pytest.raises(ValueError, match="which='val' is 'all', 'train' or 'test'"):
        found.split_mask("val")


def test_what_is_no_full_grid_says_what_is_missing() -> None:
    toy = toys.load("add97")
    keep = torch.arange(len(toy.tokens)) != 5 * 97 + 7
    part = replace(
        toy,
        tokens=toy.tokens[keep],
        answers=toy.answers[keep],
        inputs={k: v[keep] for k, v in toy.inputs.items()},
        train=None,
    )
    with pytest.raises(ValueError, match=r"1 pairs are missing \(the first: \[\(5, 7\)\]\), 0 are there twice"):
        grid(part)


def test_what_is_not_the_operation_is_refused() -> None:
    toy = toys.load("add97")
    with pytest.raises(ValueError, match="The toy has no operation 'mul'; it has add"):
        grid(toy, "mul")
    wrong = toy.answers.clone()
    wrong[:97] = (wrong[:97] + 1) % 97
    with pytest.raises(
        ValueError, match=r"are not those of add mod 97: 97 of 9409 pairs differ, the first is \(0, 0\)"
    ):
        grid(replace(toy, answers=wrong))
    with pytest.raises(ValueError, match="root=5 is for multiplication; the group of add is Z_97"):
        grid(toy, root=5)
    even = replace(toy, modulus=96, card={"config": {"operations": ["mul"]}})
    with pytest.raises(ValueError, match="96 is not an odd prime"):
        grid(even)
