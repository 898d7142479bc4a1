"""Every saved intervention loads in one line on the shipped model and still does what its card claims."""

from pathlib import Path

import pytest

import mi_ablate as mi

SAVED = sorted((Path(__file__).parents[1] / "hooks" / "saved").glob("*.safetensors"))
ANSWERS = {"a + b + 5": 5, "a + b": 0}


@pytest.fixture(scope="module")
def toy():
    return mi.toys.load("add97")


def test_there_are_saved_interventions():
    assert {p.stem for p in SAVED} >= {"add97_turn_answer_by_5", "add97_answer_circle_mean", "add97_contrastive_zero"}


@pytest.mark.parametrize("path", SAVED, ids=lambda p: p.stem)
def test_the_claimed_effect_is_measured_again(toy, path):
    card = mi.read_card(path)
    shift = next(s for words, s in ANSWERS.items() if f"{words} mod" in card["description"])
    found = mi.effect(toy.model, toy.tokens, mi.load(path, toy.model), mi.accuracy((toy.answers + shift) % toy.modulus))
    claimed = {row["run"]: row["mean"] for row in card["claim"]["rows"]}
    assert set(claimed) == {"clean", "edited", "covariance", "pca"}
    for row in found.table():
        # Another processor may round differently; 20 of the 9,409 prompts may change sides.
        assert row["mean"] == pytest.approx(claimed[row["run"]], abs=20 / len(toy.tokens))
