"""Prompts, answers, splits and masks of the toy tasks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_ablate.toys import tasks
from mi_ablate.toys.config import ToyConfig

THREE = ToyConfig(modulus=7, operations=("sub", "add", "mul"))


def test_every_prompt_is_there_once_in_the_documented_order() -> None:
    tokens, answers = tasks.all_tokens(THREE), tasks.answers(THREE)
    at = {"sub": lambda a, b: a - b, "add": lambda a, b: a + b, "mul": lambda a, b: a * b}
    expected = [
        ([a, 7 + k, b, 10], at[name](a, b) % 7)
        for k, name in enumerate(THREE.operations)
        for a in range(7)
        for b in range(7)
    ]
    assert tokens.tolist() == [row for row, _ in expected]
    assert answers.tolist() == [answer for _, answer in expected]
    assert tokens.max() == THREE.d_vocab - 1
    assert len(tokens) == tasks.n_prompts(THREE) == 147


@pytest.mark.parametrize(("layout", "width"), [("a op b =", 4), ("a b =", 3), ("a b", 2)])
def test_layouts(layout: str, width: int) -> None:
    config = ToyConfig(modulus=5, layout=layout)
    tokens = tasks.all_tokens(config)
    assert tokens.shape == (25, width)
    assert tokens[7, 0] == 1
    assert tokens[7, 2 if "op" in layout else 1] == 2
    assert tasks.answers(config)[7] == 3
    assert set(tasks.inputs(config)) == {"a", "b"}
    for column, (start, size) in zip(tokens.T, tasks.slots(config)):
        assert sorted(set(column.tolist())) == list(range(start, start + size))


def test_inputs_say_which_operation() -> None:
    inputs = tasks.inputs(THREE)
    tokens = tasks.all_tokens(THREE)
    assert torch.equal(inputs["a"], tokens[:, 0])
    assert torch.equal(inputs["b"], tokens[:, 2])
    assert torch.equal(inputs["operation"], tokens[:, 1] - 7)


def test_split_takes_the_same_fraction_of_each_operation() -> None:
    mask = tasks.split(THREE, 0.3, seed=0).reshape(3, 49)
    assert mask.sum(1).tolist() == [14, 14, 14]
    assert not torch.equal(mask[0], mask[1])
    assert torch.equal(tasks.split(THREE, 0.3, seed=0), mask.flatten())
    assert not torch.equal(tasks.split(THREE, 0.3, seed=1), mask.flatten())
    assert tasks.split(ToyConfig(modulus=113), 0.3, 0).sum() == 3830  # Nanda et al.: 3,830 of 12,769


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, 0.001])
def test_split_refuses_fractions_without_pairs(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"of 49 pairs; use one between 0\.02 and 1"):
        tasks.split(ToyConfig(modulus=7), fraction, seed=0)


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_masks_survive_packing(bits: list[bool]) -> None:
    mask = torch.tensor(bits)
    assert torch.equal(tasks.unpack_mask(tasks.pack_mask(mask), len(bits)), mask)


def test_unpacking_refuses_other_masks() -> None:
    text = tasks.pack_mask(tasks.split(THREE, 0.5, seed=0))
    with pytest.raises(ValueError, match="has 19 bytes, but 49 prompts need 7"):
        tasks.unpack_mask(text, 49)
    with pytest.raises(ValueError, match="not base64"):
        tasks.unpack_mask("?!" + text, 147)
    with pytest.raises(ValueError, match="not base64"):
        tasks.unpack_mask("é", 147)


def test_labels() -> None:
    assert tasks.labels(THREE, torch.tensor([6, 7, 0, 10])) == ["6", "-", "0", "="]
    assert tasks.labels(THREE, [6, 9, 0, 10]) == ["6", "*", "0", "="]
    assert tasks.labels(ToyConfig(modulus=113, layout="a b ="), [3, 5, 113]) == ["3", "5", "="]
    for token in (11, -1):
        with pytest.raises(ValueError, match=f"Token {token} is outside this toy's vocabulary 0 .. 10"):
            tasks.labels(THREE, [token])
