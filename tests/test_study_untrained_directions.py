"""Attacks with directions that were not trained against: the searches on planted readouts, and the verdict on "
"planted curves."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_ablate.controls import isotropic
from mi_ablate.curves import removal_curve
from mi_ablate.measures import Subject
from mi_ablate.studies import untrained_directions
from mi_ablate.studies.attack_tables import Taken, curve_of, halving, key_of, other_there, survived
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.penalties import BASELINE, DRAWN, OWN, name_of
from mi_ablate.studies.study import Findings
from mi_ablate.studies.subspace_attacks import (
    ABLATIONS,
    CHANCE,
    FIXED,
    SEARCHED,
    Prompts,
    attacked,
    best_drawn,
    descended,
)
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.train import initial_state
from two_task_records import Told, two_task_cells

STUDY = untrained_directions.STUDY
D, READ = 16, 3


@cache
def subject(normalization: str | None = "LN") -> Subject:
    shape = ToyConfig(
        7, operations=("add", "mul"), n_layers=1, d_model=D, n_heads=2, d_mlp=16, normalization=normalization
    )
    cell = TrainConfig(shape, 0, train_fraction=0.7)
    return Subject(cell, initial_state(shape, cell.init, 0), 100, True)


@cache
def planted(centre: int = 0, seed: int = 0) -> Prompts:
    """Answers in the first three coordinates, which alone are read, beside more of everything else."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.nn.functional.normalize(torch.randn(7, READ, generator=generator), dim=1)
    answers = torch.arange(210) % 7
    acts = torch.randn(210, D, generator=generator)
    acts[:, :READ] = codes[answers]
    bare = subject(None)
    state = {**bare.state, "unembed.W_U": torch.cat([20 * codes.T, torch.zeros(D - READ, 7)])}
    state["unembed.b_U"] = torch.zeros(7)
    offset = torch.zeros(D)
    offset[READ:] = float(centre)
    return Prompts(Subject(bare.config, state, 100, True), acts + offset, answers)


UNREAD = torch.eye(D).flip(1)
"""Directions of the coordinates that are not read, which vary most, before those that are."""


class TestSearches:
    @pytest.mark.parametrize("ablation", ABLATIONS)
    def test_the_descent_finds_what_is_read_where_the_start_does_nothing(self, ablation: str) -> None:
        prompts = planted()
        found = descended(prompts, ablation, UNREAD, (1, READ), steps=100)
        assert prompts.accuracy(UNREAD[:, :READ], ablation) == prompts.accuracy(UNREAD[:, :0], ablation) == 1.0
        assert prompts.accuracy(found[READ], ablation) < 0.35

    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 3), k=st.integers(1, 4))
    def test_a_search_is_no_worse_than_its_start_and_is_orthonormal(self, seed: int, k: int) -> None:
        prompts = planted(seed=seed)
        start = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed))).Q
        found = descended(prompts, "zero", start, (k,), steps=10)[k]
        assert prompts.accuracy(found, "zero") <= prompts.accuracy(start[:, :k], "zero")
        assert torch.allclose(found.T @ found, torch.eye(k), atol=1e-5)
        again = descended(prompts, "zero", start, (k,), steps=10)[k]
        assert torch.equal(found, again)

    def test_more_draws_never_hurt_less(self) -> None:
        prompts, draw = planted(), isotropic(D)
        scores = [
            prompts.accuracy(best_drawn(prompts, "zero", lambda k, seed: draw.draw("x", k, seed), (6,), n)[6], "zero")
            for n in (1, 4, 16)
        ]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > scores[-1]

    def test_zero_ablation_loses_the_mean_and_mean_ablation_keeps_it(self) -> None:
        prompts, q = planted(centre=5), torch.eye(D)[:, READ:]
        gone, kept = (prompts.logits(q, ablation) for ablation in ABLATIONS)
        assert torch.allclose(gone, kept, atol=1e-4)  # none of it is read
        read = torch.eye(D)[:, :READ]
        assert torch.allclose(
            prompts.logits(read, "mean"), (prompts.mean @ prompts.params["unembed.W_U"]).expand(210, 7), atol=1e-3
        )
        assert float(prompts.logits(read, "zero").abs().max()) < 1e-4


class TestAttacked:
    @pytest.mark.compat
    @pytest.mark.parametrize("ablation", ABLATIONS)
    def test_scores_are_those_of_the_package_s_own_removal(self, ablation: str) -> None:
        one = subject().operations["mul"]
        held = Prompts.of(one, one.held)
        assert one.bases is not None
        basis = one.bases[one.last]
        curve = removal_curve(
            one.task.toy.model, one.held_tokens, {one.last: basis}, one.metric, ablation=ablation, controls={}
        )
        ours = [held.accuracy(basis.basis[:, :k].float(), ablation) for k in curve.ks]
        assert ours == pytest.approx(curve.values.tolist())

    def test_every_attack_is_there_and_starts_from_the_clean_model(self) -> None:
        one = subject().operations["add"]
        found = attacked(one, ks=(0, 1, 3, 6), steps=2)
        assert found is not None
        for ablation in ABLATIONS:
            assert list(found["last"][ablation]) == [*FIXED, *SEARCHED, *CHANCE]
            for kind, curve in found["last"][ablation].items():
                assert curve["ks"] == [0, 1, 3, 6], kind
                assert len(curve["own"]) == len(curve["other"]) == 4, kind
            clean = {curve["own"][0] for curve in found["last"][ablation].values()}
            assert len(clean | {curve["own"][0] for curve in found["every"][ablation].values()}) == 1
        assert attacked(one, ks=(0, 1, 3, 6), steps=2) == found


def result(k: int, clean: float = 1.0, **ks: int) -> dict[str, Any]:
    """An attack of every kind that is survived up to k, or up to the k named for its kind (spaces as underscores)."""
    at = {name: ks.get(name.replace(" ", "_").replace("-", "_"), k) for name in (*FIXED, *SEARCHED, *CHANCE)}
    curves = {
        name: {"ks": list(range(31)), "own": [clean if i <= last else 0.2 for i in range(31)], "other": [1.0] * 31}
        for name, last in at.items()
    }
    return {"last": dict.fromkeys(ABLATIONS, curves), "every": dict.fromkeys(ABLATIONS, curves)}


def found(results: dict[str, dict[str, Any] | None], seeds: int = 3) -> Findings:
    """What is found when the runs of each arm have these results."""
    cells = two_task_cells(STUDY, lambda cell: Told() if cell.config.seed < seeds else None)
    own = {
        key_of(cell, one): {"about": {}, "result": given}
        for cell in cells.done
        for one in ("add", "mul")
        if (given := results.get(name_of(cell.config.penalty))) is not None
    }
    return untrained_directions.find(cells, own)


class TestVerdict:
    @settings(max_examples=8, deadline=None)
    @given(trained=st.integers(4, 25), other=st.integers(0, 25))
    def test_half_of_the_advantage_must_be_left(self, trained: int, other: int) -> None:
        other = min(other, trained)
        given_ = {BASELINE: result(3), OWN: result(trained, gradient=other)}
        expected = "yes" if other - 3 >= (trained - 3) / 2 else "no"
        assert found(given_, seeds=2).verdicts[0].verdict == expected

    def test_the_strongest_attack_of_each_model_counts(self) -> None:
        weak = {BASELINE: result(8, gradient=2), OWN: result(20, gradient=9)}
        (verdict,) = found(
            weak
        ).verdicts  # 12 directions ahead under what it was trained against, 7 under the strongest
        assert verdict.verdict == "yes"
        assert "strongest, by seed and operation: gradient 6" in verdict.ours

    @pytest.mark.parametrize(
        ("results", "seeds", "expected"),
        [
            ({}, 3, "not run"),
            ({BASELINE: result(3)}, 3, "not run"),
            ({BASELINE: result(3), OWN: result(20)}, 1, "not run"),
            ({BASELINE: result(20), OWN: result(3)}, 3, "undecided"),  # it does not resist what it was trained against
            ({BASELINE: result(3, clean=0.1), OWN: result(20)}, 3, "not run"),  # the baseline has learnt nothing
            ({BASELINE: result(3), OWN: None}, 3, "not run"),
        ],
    )
    def test_missing_and_unlearnt_models(self, results: dict[str, Any], seeds: int, expected: str) -> None:
        assert found(results, seeds).verdicts[0].verdict == expected

    def test_chance_is_shown_and_is_no_attack(self) -> None:
        unlucky = result(20, isotropic=0, covariance_drawn=0)
        one = found({BASELINE: result(3), OWN: unlucky, DRAWN: unlucky})
        assert one.verdicts[0].verdict == "yes"
        rows = {row["directions"]: row for row in one.tables[0].rows}
        assert rows["isotropic"][f"{OWN}: add"] == "0; 1"
        assert rows["probe"][f"{OWN}: add"] == "20; 21"
        (draw,) = one.figures.values()
        assert draw().layout.yaxis.title.text == "held-out accuracy"


class TestReadings:
    def test_k_before_the_first_fall_and_at_half(self) -> None:
        curve = {"ks": [0, 2, 5, 9], "own": [1.0, 0.96, 0.7, 0.5], "other": [1.0, 0.9, 0.8, 0.7]}
        assert (survived(curve), halving(curve), other_there(curve)) == (survived(curve, 0.96), halving(curve), 0.7)
        assert survived(curve).number == 2
        assert halving(curve).number == 9
        whole = {**curve, "own": [1.0] * 4}
        assert survived(whole).censored
        assert halving(whole).censored
        assert other_there(whole) is None
        assert survived(None) is halving(None) is other_there(None) is None

    def test_what_was_not_learnt_is_not_read(self) -> None:
        cells = two_task_cells(STUDY, lambda cell: Told())
        cell = cells.done[0]
        for clean, there in ((1.0, True), (0.5, False)):
            taken = Taken({key_of(cell, "add"): {"result": result(3, clean)}})
            assert (curve_of(taken, cell, "add", "zero", "pca") is not None) == there
        assert curve_of(Taken({}), cell, "add", "zero", "pca") is None


def test_an_item_an_operation_of_every_run_with_keys_of_their_own(tmp_path: Path) -> None:
    cells = two_task_cells(STUDY, lambda cell: Told() if cell.config.seed == 0 else None, quick=True)
    items = untrained_directions.items(cells)
    assert len({item.key for item in items}) == len(items) == 2 * len(cells.done) > 0
    assert untrained_directions.items(Cells(cells.missing)) == []
    assert isinstance(cells.done[0], Cell)
    assert STUDY.findings(tmp_path, quick=True).verdicts[0].verdict == "not run"
