"""The prediction of removal curves as a study: its errors, its registration and its verdict, on planted runs."""

import copy
import math
from pathlib import Path

import pytest
import torch

from mi_ablate.measures import Subject
from mi_ablate.studies import foretelling, foretold
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.foretelling import Foretelling
from mi_ablate.studies.foretold import (
    ABLATIONS,
    EVERY,
    LAST,
    Errors,
    curve_gap,
    fitted_line,
    read_curve,
    slope_with_interval,
    stretched,
)
from mi_ablate.studies.own import load_own
from mi_ablate.studies.prediction import KNOWN, STUDY, find, items, runs_of
from mi_ablate.studies.registering import PAGE, text
from mi_ablate.studies.registration import KEY, foretell, passes, register
from mi_ablate.sweep.grids import key_of
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.train import initial_state
from study_records import record_of

RECORDS = Path(__file__).parents[1] / "benchmarks" / "results" / "studies"
KS, SPARSE = list(range(41)), [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40]


def falling(k, ks=KS):
    """A curve that stands at 1 up to k and falls to 0 over the next eight."""
    return [min(1.0, max(0.0, 1 - (at - k) / 8)) for at in ks]


def recorded(k, half):
    """Curves as the measures write them: k@95% of k at the last residual, half of the accuracy gone at ``half`` everywhere."""
    read = {"0.95": {"first": {"relative": {"k": k, "censored": False, "upper": k}}}}
    ks = {run: read for run in ("edited", "covariance", "pca")}
    last = {"ks": KS} | {a: {"edited": falling(k), "k": ks} for a in ABLATIONS}
    every = {"ks": SPARSE} | {a: {"edited": [2.0 ** (-at / half) for at in SPARSE], "k": ks} for a in ABLATIONS}
    return last, every


def planted(k, *, grid="weight-decay", p=97, decay=0.1, seed=0, told=None, half=None):
    """A cell with a recorded k, and the line of its prediction, which says ``told`` (the truth by default)."""
    config = TrainConfig(ToyConfig(p, d_model=16), seed, weight_decay=decay, steps=400)
    record = copy.deepcopy(record_of(config, grid))
    last, every = recorded(k, (1 + k) ** 0.5 if half is None else half)
    measures = record["metrics"]["checkpoints"][-1]["measures"]
    measures["last_residual"] = {"add": {"directions": {"live": last}}}
    measures["every_site"] = {"add": {"live": every}}
    curve = falling(k if told is None else told)
    predicted = {name: dict.fromkeys(ABLATIONS, curve) for name in ("means", "gaussian", "activations")}
    result = {"modulus": p, "weight_decay": decay, "ks": KS, "predicted": predicted, "margin": 5.0 + seed * 5 % 8,
              "participation": 10.0 + seed * 3 % 8, "rank99": 20}  # fmt: skip
    key = f"{key_of(config)}@400"
    line = {"about": {"grid": grid}, "result": result}
    return Cell(config, grid, record, Path("nowhere")), {key: line}


def study_of(runs, registered=True):
    """Cells and own measurements of planted runs, with the registration of those of the fitted grid."""
    cells, own = Cells(tuple(cell for cell, _ in runs)), {}
    for _, line in runs:
        own |= line
    if registered:
        known = [run for run in runs_of(cells, own) if run.group == "weight-decay"]
        own[KEY] = {"about": {}, "result": register(known)}
    return cells, own


SIZES = (1, 2, 4, 7, 11, 16, 20, 26)
FITTED = [planted(k, seed=i, decay=(1.0, 0.1)[i % 2]) for i, k in enumerate(SIZES)]


def others_of(told=lambda k: k, half=lambda k: None, moduli=(59, 113), sizes=SIZES):
    return [planted(k, grid="other-moduli", p=moduli[i % len(moduli)], seed=i, told=told(k), half=half(k))
            for i, k in enumerate(sizes)]  # fmt: skip


def verdict_of(runs):
    return find(*study_of(runs)).verdicts[0]


class TestReadings:
    def test_k_is_the_last_before_the_first_failure(self):
        assert read_curve(LAST, [0, 1, 2, 3], [1.0, 0.96, 0.5, 1.0]) == pytest.approx(math.log(2))
        assert read_curve(LAST, [0, 1, 2], [1.0, 0.99, 0.98]) == pytest.approx(math.log(3))
        assert read_curve(LAST, [0, 1], [0.5, 0.4]) == 0

    def test_half_is_crossed_between_the_measured_k(self):
        assert read_curve(EVERY, [0, 1, 2, 4], [1.0, 1.0, 0.75, 0.25]) == pytest.approx(math.log(3))
        assert read_curve(EVERY, [0, 8], [1.0, 0.9]) == math.log(8)

    def test_a_stretched_curve_crosses_half_where_it_was_told_to(self):
        curve = (KS, falling(10))
        assert read_curve(EVERY, *stretched(curve, 3.5)) == pytest.approx(math.log(3.5))
        assert curve_gap(stretched(curve, 14.0), curve) == pytest.approx(0)
        assert curve_gap(stretched(curve, 7.0), curve) > 0.1

    def test_errors_are_of_the_middle_run_and_rank_all(self):
        found = Errors.of([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 9.0, 10.0])
        assert (found.ratio, found.rank) == (1.0, 1.0)
        assert found.text() == "1.00 (1.00 [1.00, 1.00])"
        upside = Errors.of([3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0])
        assert (upside.rank, upside.text()[-3:]) == (-1, "(-)")
        assert Errors.of([1.0, 1.0], [2.0, 3.0]).text() == f"{math.exp(1.5):.2f} (-)"

    def test_a_slope_that_is_there_is_found_and_one_that_is_not_is_not(self):
        x = torch.linspace(-3, 3, 30).tolist()
        noise = torch.randn(30, generator=torch.Generator().manual_seed(0)).tolist()
        slope, low, high = slope_with_interval(x, [2 * a + b / 5 for a, b in zip(x, noise)])
        assert low < 2 < high
        assert low > 1.5
        assert slope == pytest.approx(fitted_line(x, [2 * a + b / 5 for a, b in zip(x, noise)])[1])
        assert slope_with_interval(x, noise)[1] < 0 < slope_with_interval(x, noise)[2]
        assert slope_with_interval([1.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) is None
        assert slope_with_interval(x[:4], noise[:4]) is None


class TestRegistration:
    def test_too_few_runs_are_no_fit(self):
        with pytest.raises(ValueError, match="too few to fit a prediction on: at least three are needed"):
            register([])

    def test_the_line_for_every_site_is_the_planted_one(self):
        cells, own = study_of(FITTED)
        found = own[KEY]["result"]
        for run in runs_of(cells, own):
            assert foretell(found, run, LAST, "mean", "gaussian") == run.reading(LAST, "mean")
            off = foretell(found, run, EVERY, "mean", "gaussian") - run.reading(EVERY, "mean")
            assert abs(off) < 0.3
            assert foretell(found, run, EVERY, "mean", "Rank99") == pytest.approx(
                found[EVERY]["mean"]["lines"]["Rank99"][0]
            )

    def test_what_is_not_known_of_a_run_falls_back_to_the_mean(self):
        runs = [*FITTED, planted(3, decay=0.0, seed=40)]
        cells, own = study_of(runs)
        last = runs_of(cells, own)[-1]
        lines = own[KEY]["result"][LAST]["zero"]["lines"]
        assert foretell(own[KEY]["result"], last, LAST, "zero", "weight decay") == lines["mean of the grid"][0]

    def test_later_runs_change_no_constant(self):
        cells, own = study_of(FITTED)
        more = planted(30, seed=50)
        grown = Cells((*cells, more[0]))
        found = find(grown, own | more[1])
        assert found.tables[1].rows[0]["set"] == f"{KNOWN} ({len(FITTED)})"
        assert f"On the {len(FITTED)} known runs (mod 97), which it was chosen on" in found.notes[0]
        assert "exactly in so many of 9 runs: 9 under zero, 9 under mean" in found.notes[1]

    def test_the_page_is_that_of_the_records(self):
        cells, own = Cells.load(STUDY.declared(), RECORDS), load_own(STUDY, RECORDS)
        registered = own[KEY]["result"]
        known = [run for run in runs_of(cells, own) if run.key in registered["runs"]]
        assert (Path(__file__).parents[1] / PAGE).read_text() == text(registered, known)


@pytest.fixture
def few_draws(monkeypatch):
    """Intervals from fewer draws: enough for runs as clear as these."""
    monkeypatch.setattr(foretold, "DRAWS", 60)


@pytest.mark.usefixtures("few_draws")
class TestVerdict:
    def test_true_predictions_answer_yes(self):
        found = verdict_of([*FITTED, *others_of()])
        assert found.verdict == "yes", found.ours
        assert found.ours.startswith("8 test runs, factor (rank correlation): last residual, zero: 1.00 (1.00")

    @pytest.mark.parametrize(
        ("told", "half", "fails"),
        [
            (lambda k: 2 * k + 2, lambda k: None, "last residual, zero"),
            (lambda k: 28 - k, lambda k: None, "rank"),
            (lambda k: 10, lambda k: None, "interval"),
            (lambda k: k, lambda k: 20 / (1 + k), "every site, zero"),
        ],
    )
    def test_false_predictions_answer_no(self, told, half, fails):
        found = verdict_of([*FITTED, *others_of(told, half)])
        assert found.verdict == "no"
        assert fails in found.ours
        assert "fails" in found.ours

    def test_a_prediction_no_better_than_weight_decay_fails(self):
        runs = [planted(k, seed=i, decay=(1 + k) ** -2.0) for i, k in enumerate(SIZES)]
        later = [
            planted(k, grid="other-moduli", p=59, seed=i, decay=(1 + k) ** -2.0, told=k + 1)
            for i, k in enumerate(SIZES)
        ]
        cells, own = study_of([*runs, *later])
        test = [run for run in runs_of(cells, own) if run.group == "other-moduli"]
        assert not passes(own[KEY]["result"], test, LAST, "mean")["baselines"]

    def test_too_few_or_one_modulus_are_undecided(self):
        assert verdict_of([*FITTED, *others_of(sizes=SIZES[:6])]).verdict == "undecided"
        assert verdict_of([*FITTED, *others_of(moduli=(59,))]).verdict == "undecided"

    def test_no_test_run_and_no_registration_are_not_run(self):
        assert verdict_of(FITTED).verdict == "not run"
        found = find(*study_of([*FITTED, *others_of()], registered=False))
        assert found.verdicts[0].verdict == "not run"
        assert "registering" in found.notes[0]
        assert find(Cells(()), {}).verdicts[0].verdict == "not run"

    def test_what_weight_decay_leaves_over(self):
        """k follows weight decay in all runs; a prediction that knows it leaves nothing over, one that does not leaves all."""
        known = [planted(k, seed=i, decay=(1 + k) ** -2.0) for i, k in enumerate(SIZES)]
        blind = [planted(k, seed=i, decay=(1 + k) ** -2.0, told=5) for i, k in enumerate(SIZES)]
        for runs, left in ((known, "-0.50"), (blind, "-0.50")):
            row = find(*study_of(runs)).tables[-1].rows[0]
            assert row["mean, measured"].startswith("-0.5")
            assert row["mean, left over"].startswith(left if runs is blind else "0.00")


@pytest.fixture(scope="module")
def small():
    shape = ToyConfig(5, n_layers=1, d_model=8, n_heads=2, d_mlp=8)
    cell = TrainConfig(shape, 0, train_fraction=0.5)
    return Foretelling(Subject(cell, initial_state(shape, cell.init, 0), 100, True).operations["add"].task)


class TestItems:
    def test_the_own_activations_of_scored_pairs_give_the_measured_curves(self, small):
        told, real = small.predictions(0.1), small.measured()
        for ablation in ABLATIONS:
            assert told["predicted"]["activations"][ablation].tolist() == real[LAST][ablation]["edited"].tolist()
        assert told["ks"] == real[LAST]["ks"]
        assert set(told["predicted"]) == {"means", "gaussian", "activations"}, "no pairs are left over for unseen"
        assert (told["modulus"], told["weight_decay"]) == (5, 0.1)
        assert real[EVERY]["ks"][:3] == [0, 1, 2]
        assert set(real[EVERY]["mean"]["controls"]) == {"covariance", "pca"}

    def test_one_a_stable_cell_whose_weights_are_kept(self, monkeypatch):
        monkeypatch.delenv("MI_ABLATE_DATA", raising=False)
        (cell, own), (other, _) = FITTED[0], planted(3, seed=30)
        gone = Cell(other.config, other.grid, other.record | {"weights": []}, other.results)
        found = items(Cells((cell, cell, gone)))
        assert [item.key for item in found] == list(own)

    def test_published_models_where_they_are(self, monkeypatch, tmp_path):
        monkeypatch.setenv("MI_ABLATE_DATA", str(tmp_path))
        assert foretelling.third_party() == {}
        (tmp_path / "third_party_models").mkdir()
        (tmp_path / "third_party_models" / "zhong_model_b.safetensors").touch()
        assert list(foretelling.third_party()) == ["zhong_model_b"]
        assert [item.key for item in items(Cells(()))] == ["zhong_model_b"]
