"""R3, C12, Q3 and C13: what the two studies of declining toys say of planted measurements, and what they measure."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate.measures.plain import plain
from mi_ablate.studies import declining, gated_toys, input_attacks, nudges, removals
from mi_ablate.studies.cells import Cells
from mi_ablate.studies.declining_tables import ABLATIONS, PLACES
from mi_ablate.studies.gated_toys import ADDING, METHODS, PLAIN, SPREAD, Prompts, Taught
from mi_ablate.studies.nudges import PLACES as AT
from mi_ablate.studies.overwrites import KINDS
from mi_ablate.studies.within import pooled, within
from mi_ablate.toys import ToyConfig
from mi_ablate.toys.base import Base
from mi_ablate.toys.checkpoints import Toy
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.stepper import initial_state

KS = 9
NONE = Cells(())


def falling(k: int | None) -> list[float]:
    """Declines that are gone from k on; None never."""
    return [1.0 if k is None or i < k else 0.0 for i in range(KS)]


def curve(k: int | None) -> dict[str, list[float]]:
    gone = [1 - rate for rate in falling(k)]
    return {"declines": falling(k), "recovered": gone, "kept": [1 - 0.1 * i for i in range(KS)]}


def declined(own: int | None, drawn: int | None, sums: int = 12) -> dict:
    """One measurement of the study of curves."""
    runs = {"directions": curve(own), "covariance": curve(drawn), "within": curve(None), "pca": curve(own)}
    k = {"0.95": {"first": {"relative": {"k": sums, "censored": False}}}}
    each = {
        ablation: {"edited": [0.99, 0.5], "k": dict.fromkeys(("edited", "covariance", "pca"), k)}
        for ablation in ABLATIONS
    }
    return {"declines": {place: dict.fromkeys(ABLATIONS, runs) for place in PLACES}, "sums": each}


def attacked(left: float, radius: float | None, pairs: float = 0.1) -> dict:
    """One measurement of the study of attacks."""
    points = [
        {"declines": 1.0, "recovered": 0.0, "kept": 1.0},
        *[{"declines": left, "recovered": 0.5, "kept": 1.0}] * 8,
    ]
    token = {"attacks": 9, "prompts": 4, "bypass": 0.5, "lottery": 0.1, "pairs": pairs, "lottery_pairs": 0.01,
             "any_number": 0.3, "universal": {"attack": 3, "chosen": 0.5, "others": 0.25}}  # fmt: skip
    size = {"low": 0.1, "median": radius, "high": None, "within": 0.5, "prompts": 4}
    near = {"sum": size, "other": size, "random": {"right": 0.0, "any_number": 0.1}}
    known = {"declines": 1.0, "recovered": 0.0, "kept": 0.98, "embedding_norm": 0.3}
    return {
        "held_out": known, "removal": {"zero": points, "mean": points},
        "tokens": dict.fromkeys(KINDS, token), "embedding": dict.fromkeys(AT, near),
    }  # fmt: skip


def own(results: dict[str, list[dict]]) -> dict:
    return {
        f"{method}/{seed}": {"about": {"method": method, "seed": seed}, "result": one}
        for method, each in results.items()
        for seed, one in enumerate(each)
    }


def verdicts(study, results) -> dict[str, str]:
    return {one.of: one.verdict for one in study.find(NONE, own(results)).verdicts}


def test_nothing_is_run():
    for study in (declining.STUDY, input_attacks.STUDY):
        found = study.find(NONE, {})
        assert {one.of: one.verdict for one in found.verdicts} == dict.fromkeys(study.decides, "not run")
        assert all(not table.rows for table in found.tables)
        assert not found.figures


@pytest.mark.parametrize(
    ("own_k", "drawn_k", "verdict"),
    [(1, 4, "no"), (1, None, "no"), (4, 4, "yes"), (None, 4, "yes"), (3, 4, "undecided")],
)
def test_directions_that_beat_drawn_ones_do_not_carry_over(own_k, drawn_k, verdict):
    assert verdicts(declining, {m: [declined(own_k, drawn_k)] * 3 for m in (PLAIN, SPREAD)})["R3"] == verdict


def test_one_training_that_differs_leaves_it_open():
    mixed = {PLAIN: [declined(1, 8)] * 3, SPREAD: [declined(8, 8)] * 3}
    assert verdicts(declining, mixed)["R3"] == "undecided"
    assert verdicts(declining, {PLAIN: [declined(1, 8)], SPREAD: [declined(1, 8)]})["R3"] == "undecided", "one seed"


def test_one_direction_decides_nothing_and_several_refute_it():
    assert verdicts(declining, {PLAIN: [declined(1, 8)] * 4 + [declined(3, 8)], SPREAD: []})["C12"] == "undecided"
    assert (
        verdicts(declining, {PLAIN: [declined(2, 8)] * 3 + [declined(1, 8)] * 2, SPREAD: []})["C12"] == "not reproduced"
    )


def test_the_table_of_curves_says_what_was_planted():
    found = declining.find(NONE, own({PLAIN: [declined(1, 4), declined(3, None)], SPREAD: [declined(2, 2)] * 2}))
    assert "plain 2 [1, 3] its own directions, 6+ [4, 8+] covariance-drawn ones" in found.notes[0]
    assert "spread 2 its own directions, 2 covariance-drawn ones" in found.notes[0]
    row = found.tables[0].rows[0]
    assert (row["training"], row["removed"], row["seeds"]) == (PLAIN, "every writer, zero", 2)
    assert row["k_kill"] == "2 [1, 3]"
    assert row["drawn"] == "6+ [4, 8+]"
    assert row["drawn within"] == "8+"
    assert row["k@95%"] == "1 [0, 2]"
    assert row["sums recovered"] == "1"
    assert row["open kept"] == "0.8 [0.7, 0.9]"
    assert len(found.tables[0].rows) == 2 * 3 * 3
    assert found.tables[1].rows[0]["k@95%"] == "12"
    (draw,) = found.figures.values()
    assert len(draw().data) > 4


def together(sign: int, paired: float, seeds: int = 5) -> dict[str, list[dict]]:
    """Removal and input robustness that go together within methods (1), opposed (-1) or not at all (0)."""
    order = {1: range(seeds), -1: range(seeds)[::-1], 0: [2, 0, 4, 1, 3][:seeds]}[sign]
    found = {}
    for i, method in enumerate(METHODS):
        base = 0.3 + (paired if method == "adversarial" else 0.0)
        gain = 0.4 if method == "adversarial" else 0.05 * (i < 2)
        found[method] = [attacked(gain + 0.01 * seed, base + 0.01 * place) for seed, place in enumerate(order)]
    return found


def test_the_rule_of_the_attacks():
    assert verdicts(input_attacks, together(1, 0.2)) == {"Q3": "yes", "C13": "not reproduced"}
    assert verdicts(input_attacks, together(0, -0.2)) == {"Q3": "no", "C13": "reproduced"}
    assert verdicts(input_attacks, together(1, -0.2)) == {"Q3": "undecided", "C13": "undecided"}
    assert verdicts(input_attacks, together(0, 0.2)) == {"Q3": "undecided", "C13": "undecided"}
    assert verdicts(input_attacks, together(-1, -0.2)) == {"Q3": "no", "C13": "reproduced"}
    assert verdicts(input_attacks, together(1, 0.2, seeds=2)) == {"Q3": "undecided", "C13": "undecided"}
    mixed = together(0, -0.2)
    mixed["adversarial"][3] = attacked(0.9, 0.9)
    assert verdicts(input_attacks, mixed) == {"Q3": "undecided", "C13": "undecided"}, "seeds disagree in sign"
    some = together(1, 0.2)
    del some["plain"]
    assert verdicts(input_attacks, some) == {"Q3": "not run", "C13": "not run"}


def test_the_tables_of_the_attacks_say_what_was_planted():
    results = {method: [attacked(0.2, 0.25), attacked(0.4, None)] for method in METHODS}
    results[ADDING] = [{"tokens": attacked(0, 0)["tokens"]}]
    found = input_attacks.find(NONE, own(results))
    removal, tokens, embedding, related, paired = found.tables
    assert [row["training"] for row in removal.rows] == list(METHODS)
    assert removal.rows[0]["declines left, k 1-8"] == "0.3 [0.2, 0.4]"
    assert removal.rows[0]["k_kill, zero"] == "8+"
    assert len(tokens.rows) == 5 * len(KINDS)
    assert tokens.rows[-1]["training"] == ADDING
    assert tokens.rows[0]["the best one"] == "0.25"
    assert embedding.rows[0]["smallest change, to the sum"].endswith("[0.25, 1+]")
    assert not related.rows, "two seeds have no rank correlation"
    assert len(paired.rows) == 2
    assert found.notes[0].endswith("random projections 0.5 and 0.25.")
    for table in found.tables:
        assert all(row.keys() == table.rows[0].keys() for row in table.rows)
        assert all(len(row) <= 10 for row in table.rows)


@given(st.integers(0, 10**6))
def test_groups_that_differ_are_no_correlation_within(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 6, 2, generator=generator, dtype=torch.float64)
    groups = {str(i): [(float(a + 10 * i), float(b + 10 * i)) for a, b in row] for i, row in enumerate(x)}
    found, over = within(groups, draws=400), pooled(groups)
    assert found is not None
    assert over is not None
    assert over > 0.8, "pooled, the groups make it"
    assert found.mean == pytest.approx(sum(found.groups.values()) / 4)
    shifted = {name: [(a - 10 * int(name), b) for a, b in pairs] for name, pairs in groups.items()}
    assert within(shifted, draws=400) == found, "what a group adds does not matter"


def test_a_correlation_within_is_found_and_its_p_is_that_of_orders():
    pairs = [(float(i), float(i)) for i in range(5)]
    found = within(
        {"a": pairs, "b": pairs, "c": [(b, -a) for a, b in pairs], "few": pairs[:2], "same": [(1.0, 2.0)] * 5}
    )
    assert found is not None
    assert found.groups == pytest.approx({"a": 1.0, "b": 1.0, "c": -1.0})
    one = within({"a": pairs})
    assert one is not None
    assert one.p == pytest.approx(2 / 120, abs=0.004)
    assert within({"few": pairs[:2]}) is None
    assert pooled({"few": pairs[:2]}) is None
    assert one.text() == f"1.00 (p = {one.p:.2g})"


SHAPE = ToyConfig(23, n_layers=1, d_model=16, n_heads=2, d_mlp=24, gate=((0, 2, 4, 6), (5, 7, 9, 11)))


@pytest.fixture
def toy() -> Taught:
    settings = TrainConfig(SHAPE, seed=1, train_fraction=0.6)
    return Taught(PLAIN, settings, initial_state(SHAPE, "log", 0), Base("", SHAPE, {}, None, {}))


def test_an_untrained_toy_is_measured_whole(toy, monkeypatch):
    for module, name, value in (
        (declining, "MOST", 2), (input_attacks, "MOST", 2), (nudges, "STEPS", 2), (nudges, "ROUNDS", 1), (nudges, "RANDOM", 2),
        (declining, "spaces_of", partial(removals.spaces_of, draws=1)), (declining, "DRAWS", 1),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    got = json.loads(json.dumps(plain(declining._measured(toy)), allow_nan=False))
    assert set(got["declines"]) == set(PLACES)
    assert len(got["declines"]["every site"]["mean"]["covariance"]["kept"]) == 3
    results = {method: [got, got] for method in (PLAIN, SPREAD)}
    assert set(verdicts(declining, results)) == {"R3", "C12"}
    monkeypatch.setattr(input_attacks, "taught", lambda *_: toy)
    got = json.loads(json.dumps(plain(input_attacks._method(PLAIN, 1, Path(), True)), allow_nan=False))
    tables = input_attacks.find(NONE, own({method: [got] * 3 for method in METHODS})).tables
    assert len(tables[1].rows) == len(METHODS) * len(KINDS)


def test_drawn_runs_are_means_over_their_draws():
    got = declining._over_draws({"covariance 0": [1.0, 0.5], "covariance 1": [0.0, 0.5], "pca": [1.0, 1.0]})
    assert got == {"covariance": [0.5, 0.5], "pca": [1.0, 1.0]}


def test_scores_and_halves(toy):
    prompts = Prompts(toy.settings)
    parts = torch.cat((prompts.a, prompts.b, prompts.held_out))
    assert sorted(parts.tolist()) == list(range(23**2))
    right = prompts.answers[prompts.held_out]
    assert prompts.scores(right, prompts.held_out) == {"declines": 1.0, "recovered": 0.0, "kept": 1.0}
    assert prompts.scores(prompts.sums[prompts.held_out], prompts.held_out) == {
        "declines": 0.0,
        "recovered": 1.0,
        "kept": 1.0,
    }
    few = prompts.asked(3)
    assert len(few) == 3
    assert bool(prompts.gated[few].all())
    assert set(few.tolist()) <= set(prompts.held_out.tolist())


@given(st.lists(st.booleans(), min_size=3, max_size=30).filter(lambda some: sum(some) > 1), st.integers(0, 99))
def test_donors_are_other_open_prompts(some, seed):
    is_open = torch.tensor(some)
    found = removals.donors(is_open, seed)
    assert bool(is_open[found].all())
    assert not bool((found == torch.arange(len(some))).any())


def test_every_space_of_a_site_has_one_rank_and_within_is_blind_to_the_kinds(toy):
    found = removals.found_in(toy.model, toy.prompts)
    spaces = removals.spaces_of(found, toy.prompts, found.site)
    assert {space.rank for space in spaces.values()} == {removals.MOST}
    assert len(spaces) == 2 + 2 * removals.DRAWS
    assert len(removals.spaces_of(found, toy.prompts, found.site, 1, within=False)) == 3
    again = removals.spaces_of(found, toy.prompts, found.site)
    assert torch.equal(again["within 1"].basis, spaces["within 1"].basis)


def test_what_a_curve_is_read_as():
    assert removals.k_kill([{"declines": 1.0}, {"declines": 0.04}]) == 1
    assert removals.k_kill([{"declines": 1.0}, {"declines": 0.06}]) is None
    assert removals.left([{"declines": 1.0}, {"declines": 0.5}, {"declines": 0.1}]) == pytest.approx(0.3)


def test_a_way_of_training_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match="There is no way of training 'kind'; there are plain, spread, adversarial"):
        gated_toys.taught("kind", 0, tmp_path)


def test_toys_are_trained_once_and_another_training_is_refused(tmp_path, monkeypatch):
    small = TrainConfig(
        ToyConfig(23, n_layers=1, d_model=16, n_heads=2, d_mlp=24), train_fraction=0.8, steps=20, evaluate_every=10
    )
    monkeypatch.setitem(gated_toys.RECIPES, "add97-0.8", small)
    monkeypatch.setattr(gated_toys, "defended", lambda settings, weights, rows, random: weights)
    monkeypatch.setitem(gated_toys.RECIPES, "gated97", TrainConfig(
        small.config, train_fraction=0.8, steps=20, evaluate_every=10, base="add97-0.8", batch_size=32))  # fmt: skip
    for method in METHODS:
        one = gated_toys.taught(method, 0, tmp_path)
        file = tmp_path / "seed0" / method.replace(" ", "-") / "model.safetensors"
        assert isinstance(mi.toys.load(file), Toy)
        assert len(one.settings.config.gate) == (4 if method == PLAIN else 5)
        again = gated_toys.taught(method, 0, tmp_path)
        assert all(torch.equal(again.state[name], w) for name, w in one.state.items())
        assert repr(one) == f"Taught({method}, seed 0, p = 23)"
    gates = {frozenset(n for g in gated_toys.taught(m, 0, tmp_path).settings.config.gate for n in g) for m in METHODS}
    assert len(gates) == 1, "the same numbers are declined by all"
    file = tmp_path / "seed0" / "adversarial" / "model.safetensors"
    file.write_bytes((tmp_path / "seed0" / "random-projections" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds another training than adversarial, seed 0; move it away"):
        gated_toys.taught("adversarial", 0, tmp_path)


def test_items_are_stable_and_quick_ones_are_fewer():
    for study, each in ((declining.STUDY, 2), (input_attacks.STUDY, 5)):
        full, quick = study.items(NONE), study.items(Cells((), quick=True))
        assert len(full) == 5 * each
        assert len(quick) == 2 * each
        assert len({item.key for item in full}) == len(full)
        assert full[0].key == ("plain/0" if study is declining.STUDY else "adding model/0")
