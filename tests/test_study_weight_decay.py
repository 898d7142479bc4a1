"""E2: verdicts and tables on planted records, the arms matched on decay and on time, and the helpers over seeds."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_ablate.measures import Subject
from mi_ablate.studies import isotropic, pictures, weight_decay
from mi_ablate.studies import weight_decay_arms as arms
from mi_ablate.studies import weight_decay_claims as claims
from mi_ablate.studies.cells import Cell, Cells
from mi_ablate.studies.groups import band, certain, rank_correlation, said, told, told_anyway
from mi_ablate.studies.spread import Value
from mi_ablate.studies.study import Findings
from mi_ablate.sweep.grids import key_of
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.train import initial_state

STUDY = weight_decay.STUDY
DECLARED = Cells.load(STUDY.declared(), "nowhere")
K = Callable[[float, int, str], int]
"""Weight decay, seed and ablation -> the planted k."""


def removal_of(k: int, most: int = 64) -> dict[str, Any]:
    """A curve that falls from 1 to 0.2 after k, its covariance-drawn control after 2 k, its PCA after k + 1."""

    def values(last: int) -> list[float]:
        return [1.0 if i <= last else 0.2 for i in range(most + 1)]

    def read(last: int) -> dict[str, Any]:
        one = {"k": min(last, most), "upper": last, "censored": last >= most}
        return {
            tau: {rule: {"relative": one, "absolute": one} for rule in ("first", "hull")} for tau in ("0.95", "0.5")
        }

    ends = {"edited": k, "covariance": 2 * k, "pca": k + 1}
    controls = {run: {"mean": values(last)} for run, last in ends.items() if run != "edited"}
    return {"edited": values(k), "controls": controls, "k": {run: read(last) for run, last in ends.items()}}


def measures(config: TrainConfig, k: K, rank: float) -> dict[str, Any]:
    curves: dict[str, Any] = {
        a: removal_of(k(config.weight_decay, config.seed, a)) for a in ("zero", "mean", "resample")
    }
    ks = list(range(65))
    shared = {"ks": ks, "variance_removed": {key: [i / 100 for i in ks] for key in ("edited", "covariance", "pca")}}
    curves |= shared
    share = {"share": 0.5, "random": 0.12}
    written = {"edited": 1.0, "controls": {"shuffled labels": {"mean": 0.0}, "covariance-drawn": {"mean": 0.3}}}
    written["ablated"] = {"edited": 0.6, "controls": {"covariance": {"mean": 0.7}, "pca": {"mean": 0.4}}}
    found = {
        "class_means": {"all": {"rank99": rank, "dims95": rank / 2}},
        "embedding": {"W_E": {"top5": share, "top10": share}},
        "variance": {"mean_norm": 30.0, "total": 4.0, "directions": {"mean": [-20.0], "variance": [4.0]}},
        "last_residual": {"directions": {"live": curves, "frozen": curves}, "planes": curves},
        "every_site": {"live": curves, "frozen": curves},
        "writing": dict.fromkeys(("5", "10", "20", "all"), written),
    }
    return {name: {"add": value} for name, value in found.items()}


def planted(
    k: K = lambda decay, seed, ablation: 10,
    rank: Callable[[float, int], float] = lambda decay, seed: 50,
    seeds: int = 3,
    grok: int | None = 1_000,
    steps: tuple[int, ...] = (2_000, 3_000),
    also: str = "",
) -> Cells:
    """The study's cells; those of the main grid (and one other) have records, with these k and ranks at stable steps."""
    found = []
    for cell in DECLARED:
        if cell.grid not in ("weight-decay", also) or cell.config.seed >= seeds:
            found.append(cell)
            continue
        of = measures(cell.config, k, rank(cell.config.weight_decay, cell.config.seed))
        entries = [{"target": s, "step": s, "stable": grok is not None, "measures": of} for s in steps]
        training = {"steps": 5_000, "grok_step": grok, "accuracy": {"held_out": float(grok is not None)}}
        record = {"key": key_of(cell.config), "weights": [], "metrics": {"training": training, "checkpoints": entries}}
        found.append(Cell(cell.config, cell.grid, record, cell.results))
    return Cells(tuple(found))


def groups_of(cells: Cells) -> dict[float, Cells]:
    mine = cells.where(grid="weight-decay")
    return {decay: mine.where(weight_decay=decay) for decay in sorted({cell.config.weight_decay for cell in mine})}


def verdicts(cells: Cells) -> dict[str, str]:
    groups = groups_of(cells)
    return {one.of: one.verdict for one in (claims.resistance(groups), claims.rank(groups))}


@cache
def usual() -> Findings:
    """What is found where 0.1 is a sweet spot under every ablation."""
    return weight_decay.find(planted(by(SPOT)), {})


def rows_of(found: Findings, title: str) -> list[dict[str, Any]]:
    (table,) = (table for table in found.tables if table.title.startswith(title))
    return table.rows


SPOT = {0.01: 0, 0.1: 30, 1.0: 10}
FALLING = {0.01: 40, 0.1: 30, 1.0: 10}


def by(decays: dict[float, int], otherwise: int = 5) -> K:
    return lambda decay, seed, ablation: decays.get(decay, otherwise) + seed


class TestSweetSpot:
    def test_under_every_ablation(self) -> None:
        assert verdicts(planted(by(SPOT)))["C2"] == "reproduced"

    def test_under_zero_ablation_only(self) -> None:
        k = by(SPOT), by(FALLING)
        cells = planted(lambda decay, seed, a: k[a != "zero"](decay, seed, a))
        assert verdicts(cells)["C2"] == "different size"
        groups = groups_of(cells)
        assert claims.settled(groups, {}).rows[0]["holds"] == "yes"
        ours = claims.resistance(groups).ours
        assert "zero yes (1 [0, 2], 31 [30, 32], 11 [10, 12])" in ours
        assert "mean no (41 [40, 42]" in ours
        assert ours.endswith("; seeds 3, 3, 3")

    def test_the_head_of_the_page_has_both(self) -> None:
        k = by(SPOT), by(FALLING)
        groups = groups_of(planted(lambda decay, seed, a: k[a != "zero"](decay, seed, a)))
        assert claims.in_short(groups) == [
            "Of weight decays 0.01, 0.1, 1, the median number of directions survived at the last residual (k@95%) is highest "
            "at 0.1 under zero-ablation (0.01: 1, 0.1: 31, 1: 11; seeds apart) and at 0.01 under mean-ablation (0.01: 41, "
            "0.1: 31, 1: 11; seeds apart)."
        ]
        wide = {0: 5, 1: 30, 2: 40}
        mixed = planted(lambda decay, seed, a: wide[seed] if decay == 0.1 else SPOT.get(decay, 5))
        assert "(0.01: 0, 0.1: 30, 1: 10; seeds overlap)" in claims.in_short(groups_of(mixed))[0]
        assert claims.in_short(groups_of(planted(by(SPOT), seeds=1))) == []

    def test_under_the_others_only(self) -> None:
        k = by(FALLING), by(SPOT)
        assert verdicts(planted(lambda decay, seed, a: k[a != "zero"](decay, seed, a)))["C2"] == "not reproduced"

    def test_seeds_that_overlap_do_not_decide(self) -> None:
        wide = {0: 12, 1: 30, 2: 40}
        cells = planted(lambda decay, seed, a: wide[seed] if decay == 0.1 else SPOT.get(decay, 5) + 5)
        assert verdicts(cells)["C2"] == "undecided"

    @pytest.mark.parametrize("beyond", [{0.01: 64}, {0.1: 64, 1.0: 70}])
    def test_curves_that_never_fell_do_not_decide(self, beyond: dict[float, int]) -> None:
        """64+ at 0.01 may be above any 0.1; 64+ at 0.1 and at 1 may be either way round."""
        cells = planted(by(SPOT | {0.1: 80} | beyond))
        assert verdicts(cells)["C2"] == "undecided"
        row = next(r for r in claims.by_reading(groups_of(cells)).rows if r["reading"] == "last residual, zero, k@95%")
        assert row["0.1 above 0.01 and 1?"] == "seeds overlap"

    def test_a_weight_decay_that_the_log_lacks_does_not_decide(self) -> None:
        assert verdicts(planted(by(SPOT | {0.03: 60, 0.3: 60})))["C2"] == "reproduced"


class TestRank:
    def test_falls(self) -> None:
        ranks = {0.01: 70, 0.1: 45, 1.0: 27}
        assert verdicts(planted(rank=lambda decay, seed: ranks.get(decay, 80) + seed))["C3"] == "reproduced"

    def test_falls_much_more_steeply(self) -> None:
        ranks = {0.01: 90, 0.1: 45, 1.0: 5}
        assert verdicts(planted(rank=lambda decay, seed: ranks.get(decay, 80) + seed))["C3"] == "different size"

    def test_rises_once(self) -> None:
        ranks = {0.01: 70, 0.1: 75, 1.0: 27}
        assert verdicts(planted(rank=lambda decay, seed: ranks.get(decay, 80) + seed))["C3"] == "not reproduced"

    def test_seeds_that_scatter(self) -> None:
        scattered = {0.01: (10, 69, 90), 0.1: (10, 45, 90), 1.0: (10, 27, 90)}
        cells = planted(rank=lambda decay, seed: scattered.get(decay, (50, 50, 50))[seed])
        assert verdicts(cells)["C3"] == "undecided"


class TestTables:
    def test_a_k_stands_beside_its_controls(self) -> None:
        found = usual()
        row = next(
            r for r in rows_of(found, "Removed at the last") if (r["weight decay"], r["ablation"]) == ("0.1", "mean")
        )
        assert row["k@95%, contrastive"] == "31 [30, 32]"
        assert row["k@95%, covariance-drawn"] == "62 [60, 64+]"
        assert row["k@95%, top PCA"] == "32 [31, 33]"
        assert (row["log's k@95%"], row["seeds"]) == ("30+", "3 of 3, 2 not run")

    def test_the_variance_is_that_at_the_k(self) -> None:
        found = usual()
        row = next(r for r in rows_of(found, "The mean, and") if r["weight decay"] == "0.1")
        assert row["variance removed, contrastive"] == "0.31 [0.30, 0.32]"
        assert row["mean along the first direction, in its sd"] == "10"
        assert row["over the spread"] == "15"

    def test_each_suggestion_can_fail(self) -> None:
        rows = claims.settled(groups_of(planted(by(FALLING))), {}).rows
        holds = {row["suggested"]: row["holds"] for row in rows}
        assert holds["0.1 is a sweet spot under zero-ablation only"] == "no"
        assert holds["Covariance-drawn subspaces remove nearly as much accuracy as contrastive ones"] == (
            "no at 0, 0.03, 0.1, 0.3, 1, 10; open at 0.01"
        ), "twice, and at 0.01 over the end of the curve"
        assert holds["The top principal components give the same k"] == "yes", "one more"
        assert holds["0.1 resists longer than 1 at every site too"] == "yes"

    def test_what_never_grokked_is_a_bound_and_has_no_k(self) -> None:
        found = weight_decay.find(planted(grok=None), {})
        assert {row["grok step"] for row in rows_of(found, "Weight decay and grokking")} == {"5,000+"}
        assert {row["k@95%, contrastive"] for row in rows_of(found, "Removed at the last")} == {"no stable step"}
        assert {row["Rank99"] for row in rows_of(found, "Weight decay, rank")} == {"50 (last step)"}
        assert not found.figures
        assert set(verdicts(planted(grok=None)).values()) == {"not run"}

    @pytest.mark.parametrize("seeds", [0, 1])
    def test_fewer_than_two_seeds_are_no_verdict(self, seeds: int) -> None:
        found = weight_decay.find(planted(seeds=seeds), {})
        assert {one.verdict for one in found.verdicts} == {"not run"}
        grokking = rows_of(found, "Weight decay and grokking")
        assert {row["grok step"] for row in grokking} == ({"not run"} if seeds == 0 else {"1,000"})

    def test_other_norms_say_what_they_would_cost(self) -> None:
        rows = rows_of(usual(), "Other norms")
        left = {(row["norm"], row["weight decay"]): row["left"] for row in rows}
        assert left["RMSNorm", "1"].startswith("not run: ")
        assert len({(row["norm"], row["weight decay"]) for row in rows}) == 12


class TestArms:
    def test_equal_decay_takes_the_checkpoint_near_that_step(self) -> None:
        cells = planted(by(SPOT), steps=(1_900, 6_500, 20_500))
        rows = {row["weight decay"]: row for row in arms.matched_decay(groups_of(cells), cells).rows}
        assert [rows[d]["steps"] for d in ("1", "0.3", "0.1")] == ["2,000", "6,667", "20,000"]
        assert [rows[d]["seeds"] for d in ("1", "0.3", "0.1")] == ["3 of 5"] * 3
        assert rows["0.1"]["k@95% zero"] == "31 [30, 32]"
        assert rows["0.01"]["seeds"].startswith("not run: ")
        assert rows["0.01"]["k@95% zero"] == "-"

    def test_a_seed_counts_once_in_two_grids(self) -> None:
        cells = planted(by(SPOT), steps=(66_700,), also="matched-decay")
        row = next(r for r in arms.matched_decay(groups_of(cells), cells).rows if r["weight decay"] == "0.03")
        assert row["seeds"] == "3 of 3"

    def test_equal_time_since_grokking(self) -> None:
        cells = planted(steps=(2_000, 2_900, 9_000))
        rows = arms.matched_after(groups_of(cells)).rows
        near = {row["steps after grokking"] for row in rows if row["wanted"] == "2,000"}
        far = {row["steps after grokking"] for row in rows if row["wanted"] == "4,000"}
        assert (near, far) == ({"1,900"}, {"-"})


class TestOverSeeds:
    numbers = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.lists(numbers, min_size=2, max_size=5), min_size=2, max_size=4))
    def test_rank_correlation_is_spearmans(self, values: list[list[float]]) -> None:
        from scipy.stats import spearmanr

        groups = {float(i): list(map(Value, row)) for i, row in enumerate(values)}
        found = rank_correlation(groups, draws=50)
        flat = [(i, v) for i, row in enumerate(values) for v in row]
        if len({v for _, v in flat}) == 1:
            assert found is None
            return
        assert found is not None
        assert found[0] == pytest.approx(spearmanr(*zip(*flat)).statistic, abs=1e-9)
        assert -1 <= found[1] <= found[2] <= 1

    def test_its_interval_follows_the_seeds(self) -> None:
        apart = {1.0: [Value(1.0), Value(2.0)], 2.0: [Value(3.0), Value(4.0)]}
        mixed = {1.0: [Value(1.0), Value(4.0)], 2.0: [Value(2.0), Value(3.0)]}
        assert rank_correlation(apart)[1] > 0.5
        low, high = rank_correlation(mixed)[1:]
        assert low < 0 < high
        assert rank_correlation({1.0: [Value(1.0)], 2.0: [Value(2.0), Value(3.0)]}) is None

    def test_a_band_holds_every_seed(self) -> None:
        cells = planted(by(SPOT)).where(grid="weight-decay", weight_decay=0.1)
        path = "directions.live.zero.edited"
        found = band(cells, weight_decay._ks, lambda at: at.get("last_residual", "add", path))
        assert found.x == list(range(65))
        assert found.median.tolist() == removal_of(31)["edited"]
        assert found.ends.tolist() == [removal_of(30)["edited"], removal_of(32)["edited"]]
        assert band(planted(grok=None), weight_decay._ks, lambda at: None) is None

    @pytest.mark.parametrize(
        ("a", "b", "held"),
        [(Value(1), Value(2), True), (Value(2), Value(1, True), None), (Value(1), Value(2, True), True),
         (Value(3, True), Value(2), False), (Value(1, True), Value(2, True), None)],
    )  # fmt: skip
    def test_a_lower_bound_may_leave_it_open(self, a: Value, b: Value, held: bool | None) -> None:
        assert certain(lambda x, y: x < y, a, b) is held

    def test_a_lower_bound_may_also_be_the_other_number(self) -> None:
        """Neither 45 nor an endless number is within one of 50, and 50 is."""
        assert certain(lambda x, y: abs(x - y) <= 1, Value(45, True), Value(50)) is None
        assert certain(lambda x, y: abs(x - y) <= 1, Value(52, True), Value(50)) is False

    def test_texts(self) -> None:
        cells = planted().where(grid="weight-decay", weight_decay=0.1)
        assert told(cells, lambda at: at.step) == "2.5e+03"
        assert told(cells, lambda at: None) == "-"
        assert told(Cells(()), lambda at: 1.0) == "not run"
        assert told_anyway(planted(grok=None).where(grid="weight-decay"), lambda at: None) == "-"
        assert said({0.1: True, 1.0: False}) == "yes at 0.1; no at 1"
        assert said({0.1: False, 1.0: None}) == "no at 0.1; open at 1"
        assert (said({}), said({0.1: True}), said({0.1: False})) == ("not run", "yes", "no")


class TestFigure:
    def test_it_holds_the_medians_and_the_drawn_controls(self) -> None:
        (draw,) = usual().figures.values()
        traces = [t for t in draw().data if t.hovertemplate]
        line = next(t for t in traces if t.name == "0.1" and "mean-ablation" in t.hovertemplate)
        drawn = next(t for t in traces if t.name.startswith("0.1, ") and "mean-ablation" in t.hovertemplate)
        assert list(line.y) == removal_of(31)["edited"]
        assert list(drawn.y) == removal_of(62)["edited"]
        assert drawn.line.dash == "dot"

    def test_without_a_browser_it_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (draw,) = usual().figures.values()
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(RuntimeError, match="Figures are drawn by Chromium"):
            pictures.draw(draw(), tmp_path / "figure.png")


class Known(Cell):
    """A cell whose weights are those of a tiny untrained model."""

    def subject(self, step: int | None = None) -> Subject:
        shape = ToyConfig(7, n_layers=1, d_model=16, n_heads=2, d_mlp=16)
        config = TrainConfig(shape, 0, train_fraction=0.7)
        return Subject(config, initial_state(shape, config.init, 0), 100, True)


class TestIsotropic:
    def test_they_hold_about_k_over_d_of_the_variance(self) -> None:
        found = isotropic.take(Known(DECLARED.cells[0].config, "weight-decay", None, Path()), 100)
        assert found is not None
        share = float(torch.as_tensor(found["variance_removed"])[found["ks"].index(4)])
        assert 0.05 < share < 0.6
        assert math.isclose(4 / 16, share, abs_tol=0.2)
        assert found["ks"] == [0, 4]
        assert set(found["k"]) == {"edited", "isotropic"}

    def test_items_need_weights_of_a_stable_step(self) -> None:
        assert isotropic.isotropic_items(planted()) == []
        cells = planted()
        for cell in cells.done:
            kept = {"file": "x", "step": 3_000, "stable": cell.config.weight_decay != 10.0}
            cell.record["weights"].append(kept)
        items = isotropic.isotropic_items(cells)
        assert len(items) == len({item.key for item in items}) == 18
        assert all(item.key.endswith("@3000") for item in items)

    @pytest.mark.parametrize(("k", "holds"), [(20, "yes"), (19, "no")])
    def test_the_row_compares_with_drawn_ones(self, k: int, holds: str) -> None:
        one = {"0.95": {"first": {"relative": {"k": k, "upper": k, "censored": False}}}}
        result = {"ks": [0, 20], "variance_removed": [0.0, 0.16], "k": {"isotropic": one}}
        own = {str(i): {"about": {"weight_decay": 0.1}, "result": result} for i in range(2)}
        row = isotropic.isotropic_k(groups_of(planted(lambda decay, seed, ablation: 5)), own)
        assert row["holds"] == holds
        assert f"0.1: 10 / {k} / 0.16" in row["numbers"]
