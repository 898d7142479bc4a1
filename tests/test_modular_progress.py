"""Progress measures of one checkpoint, the phases of a run, and the trainer's live rows."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_ablate import toys
from mi_ablate.modular import (
    cosine_share,
    excluded_loss,
    gradient_symmetricity,
    grid,
    phases,
    progress_row,
    restricted_loss,
)
from mi_ablate.modular.grids import Grid
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.train import train
from mi_ablate.toys.watch import LIVE, Watch, along, read_rows

P, KS = 29, [2, 5, 9]


def half(n, seed=0):
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < 0.4


@pytest.mark.compat
def test_a_row_has_the_values_of_the_measures_by_their_own_names():
    toy = toys.analytic(P, KS)
    plain = grid(toy)
    noise = torch.randn(P, P, P, generator=torch.Generator().manual_seed(0)).double()
    known = Grid(toy.model, plain.tokens, "add", P, plain.a, plain.b, plain.c, half(P))
    known.__dict__["all_logits"] = plain.logits / 10 + noise
    row = progress_row(7, known.logits, known.embedding, half(P), KS, 3)
    assert (row["step"], row["frequencies"], row["weights"]) == (7, KS, 3.0)
    assert row["restricted_nanda_colab"] == pytest.approx(restricted_loss(known, KS, "nanda_colab").value)
    assert row["excluded_nanda_text"] == pytest.approx(excluded_loss(known, KS).value)
    assert row["cosine_fve"] == pytest.approx(float(cosine_share(known.logits).fve[[k - 1 for k in KS]].sum()))
    mask = known.split_mask("test")
    assert row["test_loss"] == pytest.approx(float(known.loss()[mask].mean()))
    assert row["share_W_E"] == pytest.approx(1.0)
    assert row["restricted_nanda_colab"] < row["test_loss"] < row["excluded_nanda_text"]


@given(shift=st.integers(0, P - 1), seed=st.integers(0, 20))
def test_renaming_the_first_operand_by_a_shift_changes_no_measure(shift, seed):
    logits = torch.randn(P, P, P, generator=torch.Generator().manual_seed(seed)).double()
    logits += grid(toys.analytic(P, KS)).logits / 20 if seed == 0 else 0
    embedding = torch.randn(P, 8, generator=torch.Generator().manual_seed(seed)).double()
    one = progress_row(0, logits, embedding, half(P), KS)
    two = progress_row(0, logits.roll((shift, shift), (0, 2)), embedding.roll(shift, 0), half(P).roll(shift, 0), KS)
    for name in set(one) - {"frequencies", "weights", "distance_irrelevance"}:
        assert one[name] == pytest.approx(two[name], rel=1e-9, abs=1e-9), name


def run_of(steps):
    """Logits along a made-up run: pairs by heart grow until 10 and fade until 50, the circuit grows from 10 to 40."""
    clock = grid(toys.analytic(P, KS)).logits / 60
    answer = torch.eye(P, dtype=torch.float64)[(torch.arange(P)[:, None] + torch.arange(P)) % P]
    noise = torch.randn(P, P, P, generator=torch.Generator().manual_seed(1)).double()
    for t in steps:
        heart = max(0.0, min(1.0, t / 10) - max(0, min(1, (t - 10) / 40)))
        circuit = max(0, min(1, (t - 10) / 30))
        yield t, 15 * heart * answer * half(P)[..., None] + 15 * circuit * clock + 3 * heart * noise


def test_phases_of_a_run_that_is_known():
    embedding = grid(toys.analytic(P, KS)).embedding
    rows = [progress_row(t, x, embedding, half(P), KS) for t, x in run_of(range(0, 60, 2))]
    found = phases(rows[::-1])
    assert found["memorisation"] == 10
    assert 10 < found["circuit_formation"] <= found["cleanup"] <= 50
    assert found["reason"] == ""
    after = next(row for row in rows if row["step"] == found["cleanup"])
    assert after["test_accuracy"] >= 0.99
    assert all(row["test_accuracy"] < 0.99 for row in rows if row["step"] < found["cleanup"])


def test_a_run_that_never_generalised_has_no_invented_phases():
    embedding = grid(toys.analytic(P, KS)).embedding
    rows = [progress_row(t, x, embedding, half(P), KS) for t, x in run_of(range(0, 14, 2))]
    found = phases(rows)
    assert (found["circuit_formation"], found["cleanup"]) == (None, None)
    assert found["memorisation"] in range(2, 12, 2)
    assert "held-out accuracy never reached 0.99" in found["reason"]
    assert phases(rows[:1])["memorisation"] is None


def test_what_cannot_be_measured_is_refused():
    logits, embedding = torch.zeros(7, 7, 7).double(), torch.zeros(7, 4).double()
    with pytest.raises(ValueError, match="Progress compares training with held-out pairs; 49 of 49"):
        progress_row(0, logits, embedding, torch.ones(7, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="There is no row to read phases from"):
        phases([])


SETTINGS = TrainConfig(
    ToyConfig(modulus=13, layout="a b =", n_layers=1, d_model=16, d_mlp=32, n_heads=2, normalization=None),
    steps=60, evaluate_every=20, batch_size=None, train_fraction=0.5, keep_steps=(20, 40, 60),
)  # fmt: skip


@pytest.mark.compat
def test_live_rows_are_those_of_the_kept_weights(tmp_path):
    watch = Watch(SETTINGS, out=tmp_path, every=20, frequencies=[1, 3])
    train(SETTINGS, out=tmp_path, progress=False, watch=watch)
    assert [row["step"] for row in watch.rows] == [0, 20, 40, 60]
    assert read_rows(tmp_path / LIVE) == json.loads(json.dumps(watch.rows))
    kept = along(tmp_path, [1, 3])
    assert [row["step"] for row in kept] == [0, 20, 40, 60]
    for one, two in zip(watch.rows, kept):
        assert one.pop("frequencies") == two.pop("frequencies") == [1, 3]
        assert -1 <= two.pop("gradient_symmetricity") <= 1  # needs a backward pass, so live rows leave it out
        assert one == pytest.approx(two, rel=1e-6)
    toy = toys.load(tmp_path / "model.safetensors")
    assert watch.rows[-1]["restricted_nanda_colab"] == pytest.approx(
        restricted_loss(grid(toy), [1, 3], "nanda_colab").value, rel=1e-5
    )
    want = gradient_symmetricity(grid(toy), 500).value
    assert along(tmp_path)[-1]["gradient_symmetricity"] == pytest.approx(want, abs=1e-6)
    last = along(tmp_path)
    assert last[0]["frequencies"] == sorted(grid_top(toy))
    assert "every 20 steps, 4 rows" in repr(watch)


def grid_top(toy):
    from mi_ablate.modular import spectrum

    return spectrum(grid(toy).embedding).top(5)


def test_a_resumed_run_goes_on_with_its_rows(tmp_path):
    from dataclasses import replace

    def interrupt(step, params):
        watch(step, params)
        if step == 40:
            raise KeyboardInterrupt

    watch = Watch(SETTINGS, out=tmp_path, every=20)
    with pytest.raises(KeyboardInterrupt):
        train(SETTINGS, out=tmp_path, progress=False, watch=interrupt, checkpoint_every=20)
    again = Watch(SETTINGS, out=tmp_path, every=20)
    assert [row["step"] for row in again.rows] == [0, 20, 40]
    train(SETTINGS, out=tmp_path, progress=False, watch=again)
    assert [row["step"] for row in again.rows] == [0, 20, 40, 60]
    assert again.rows[1]["frequencies"] != []
    assert len(Watch(replace(SETTINGS), every=20).rows) == 0


def test_rows_are_as_far_apart_as_was_asked(tmp_path):
    watch = Watch(SETTINGS, every=40)
    train(SETTINGS, out=tmp_path, progress=False, watch=watch)
    assert [row["step"] for row in watch.rows] == [0, 40]
    with pytest.raises(ValueError, match="every=0 must be at least one step"):
        Watch(SETTINGS, every=0)


def test_a_folder_without_kept_weights_has_no_rows(tmp_path):
    from dataclasses import replace

    assert along(tmp_path) == []
    train(replace(SETTINGS, keep_steps=()), out=tmp_path, progress=False)
    assert along(tmp_path) == []


def test_weights_of_another_configuration_in_the_folder_are_left_out(tmp_path):
    from dataclasses import replace

    train(replace(SETTINGS, seed=5, keep_steps=(40,)), out=tmp_path, progress=False)
    train(replace(SETTINGS, keep_steps=(20,)), out=tmp_path, progress=False, resume=False)
    assert [row["step"] for row in along(tmp_path)] == [0, 20, 60]


def test_progress_of_a_model_of_unknown_split_is_refused():
    from mi_ablate.toys.watch import measure

    toy = toys.analytic(13, [1, 3])
    with pytest.raises(ValueError, match="so there is no progress to measure"):
        measure(grid(toy), toy.config, 0, dict(toy.model.state_dict()), None)


def test_multiplication_is_measured_in_the_order_of_exponents(tmp_path):
    config = ToyConfig(modulus=13, operations=("add", "mul"), n_layers=1, d_model=16, d_mlp=32, n_heads=2)
    from dataclasses import replace

    settings = replace(SETTINGS, config=config, steps=20, keep_steps=())
    watch = Watch(settings, operation="mul", every=20)
    train(settings, out=tmp_path, progress=False, watch=watch)
    toy = toys.load(tmp_path / "model.safetensors")
    want = grid(toy, "mul")
    assert watch.rows[-1]["test_loss"] == pytest.approx(float(want.loss()[want.split_mask("test")].mean()), rel=1e-5)
