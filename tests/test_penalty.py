"""Adversarial training: the penalty against the package's own hooks, its schedule, its settings, and whether it works."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mi_ablate import Ablate, Subspace, collect, metrics, removal_curve
from mi_ablate.controls import covariance, pca
from mi_ablate.measures.bases import contrastive
from mi_ablate.sweep.grids import Grid, config_of, key_of, label
from mi_ablate.sweep.listing import rows, select
from mi_ablate.sweep.plans import plan
from mi_ablate.sweep.run import _stacks
from mi_ablate.sweep.work import perform
from mi_ablate.toys import tasks
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.evaluation import train_mask
from mi_ablate.toys.forward import last_residual, parameter_shapes, readout
from mi_ablate.toys.penalty import GAP, Adversary, Leading, Penalty
from mi_ablate.toys.recipes import TrainConfig, load_recipe
from mi_ablate.toys.stacked import train_stacked
from mi_ablate.toys.stepper import Stepper, initial_state
from mi_ablate.toys.train import train
from mi_ablate.toys.transformer import build

TWO = ToyConfig(modulus=7, operations=("add", "mul"), d_model=16, n_heads=2, d_mlp=24)
ONE = replace(TWO, operations=("add",), normalization="RMS", layout="a b =")
GATED = replace(TWO, operations=("add",), gate=((0, 3), (1, 5)))
PENALTY = Penalty(directions=3, weight=0.5, every=5, start=20, sample=40)
RUN = TrainConfig(TWO, seed=3, steps=40, batch_size=16, evaluate_every=20, train_fraction=0.6, penalty=PENALTY)


def weights(config: ToyConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights everywhere, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(s, generator=generator) * 0.5 for name, s in parameter_shapes(config).items()}


def adversary(penalty: Penalty, config: ToyConfig, seed: int = 3) -> Adversary:
    return Adversary(penalty, config, train_mask(replace(RUN, config=config, penalty=None)), seed)


def of_operation(config: ToyConfig, tokens: Tensor, index: int) -> Tensor:
    return tokens[:, 1] == config.modulus + index if len(config.operations) > 1 else torch.full((len(tokens),), True)


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["contrastive", "pca", "covariance", "shuffled"])
@pytest.mark.parametrize("config", [TWO, ONE, GATED], ids=["two operations", "one", "gated"])
def test_the_loss_is_that_of_the_packages_own_removal(config: ToyConfig, kind: str) -> None:
    state, penalty = weights(config), replace(PENALTY, kind=kind)
    found = adversary(penalty, config)
    model, last = build(config, state), f"blocks.{config.n_layers - 1}.hook_resid_post"
    acts = collect(model, found.tokens, [last])[last]
    tokens, answers = tasks.all_tokens(config)[3::4], tasks.answers(config)[3::4]
    bases, logits = found.directions(state, 25), torch.zeros(len(tokens), config.n_answers)
    for index, basis in enumerate(bases):
        mine = of_operation(config, found.tokens, index)
        subspace = Subspace(basis)
        if kind in ("contrastive", "pca"):
            values = found.tokens[mine]
            right = answers_of(config, values)
            whole = contrastive(acts[mine], right, "all") if kind == "contrastive" else None
            expected = whole[:3] if whole else pca(acts[mine]).draw(last, 3, 0)
            assert subspace.overlap(expected) > 1 - 1e-6
            subspace = expected
        rows = of_operation(config, tokens, index)
        logits[rows] = model.run_with_hooks(tokens[rows], fwd_hooks=Ablate(subspace).at(last, pos=-1))[:, -1]
    loss = found.loss(state, last_residual(config, state, tokens), tokens, answers, 25)
    torch.testing.assert_close(loss, 0.5 * F.cross_entropy(logits, answers), atol=1e-4, rtol=1e-4)


def answers_of(config: ToyConfig, tokens: Tensor) -> Tensor:
    every = {tuple(row): answer for row, answer in zip(tasks.all_tokens(config).tolist(), tasks.answers(config))}
    return torch.stack([every[tuple(row)] for row in tokens.tolist()])


class TestControls:
    def test_covariance_drawn_subspaces_remove_what_the_packages_control_removes(self) -> None:
        state, found = weights(ONE), adversary(replace(PENALTY, kind="covariance"), ONE)
        acts = last_residual(ONE, state, found.tokens).double()
        centred, control = acts - acts.mean(0), covariance(acts)

        def removed(q: Tensor) -> float:
            return float((centred @ q).square().sum() / centred.square().sum())

        mine = torch.tensor([removed(found.directions(state, step)[0]) for step in range(100)])
        theirs = torch.tensor([removed(control.draw("", 3, seed).basis) for seed in range(100)])
        error = (mine.var() / 100 + theirs.var() / 100).sqrt()
        assert abs(mine.mean() - theirs.mean()) < 4 * error
        assert mine.mean() - 3 / ONE.d_model > 10 * error  # and not what directions of no size remove

    @pytest.mark.parametrize("kind", ["covariance", "shuffled"])
    def test_draws_are_new_in_every_step_and_the_same_again(self, kind: str) -> None:
        state = weights(TWO)
        one, other = (adversary(replace(PENALTY, kind=kind), TWO) for _ in range(2))
        assert torch.equal(one.directions(state, 25), other.directions(state, 25))
        for changed in (one.directions(state, 30), adversary(one.penalty, TWO, seed=4).directions(state, 25)):
            assert all(Subspace(q).overlap(Subspace(r)) < 0.99 for q, r in zip(changed, other.directions(state, 25)))

    def test_shuffled_answers_have_less_between_them(self) -> None:
        """Their directions hold less of what lies between the true answers' means."""
        state, right = weights(ONE), adversary(PENALTY, ONE)
        wrong = adversary(replace(PENALTY, kind="shuffled"), ONE)
        acts = last_residual(ONE, state, right.tokens).double()
        between = (right.contrasts[0] @ acts).square().sum()
        of_shuffled = [(right.contrasts[0] @ acts @ wrong.directions(state, i)[0]).square().sum() for i in range(20)]
        whole = (right.contrasts[0] @ acts @ right.directions(state, 0)[0]).square().sum()
        assert torch.stack(of_shuffled).mean() < 0.9 * whole < between

    def test_dropout_leaves_the_mean(self) -> None:
        found = adversary(replace(PENALTY, kind="dropout"), TWO)
        ones = torch.ones(4000, TWO.d_model)
        left = found._dropped(ones, 25)
        assert set(left.flatten().tolist()) == {0.0, float(torch.tensor(16 / 13))}
        assert float(left.mean()) == pytest.approx(1, abs=0.01)
        assert torch.equal(left, found._dropped(ones, 25))
        assert not torch.equal(left, found._dropped(ones, 30))


class TestGradients:
    def test_those_of_the_formula_with_constant_directions(self) -> None:
        state, found = weights(TWO), adversary(PENALTY, TWO)
        tokens, answers = tasks.all_tokens(TWO)[::3], tasks.answers(TWO)[::3]
        params = {name: w.double().requires_grad_() for name, w in state.items()}
        found.loss(params, last_residual(TWO, params, tokens), tokens, answers, 25).backward()
        q = found.directions({name: w.double() for name, w in state.items()}, 25)
        other = {name: w.double().requires_grad_() for name, w in state.items()}
        x = last_residual(TWO, other, tokens)
        op = tokens[:, 1] - TWO.modulus
        left = torch.stack([row - q[o] @ (q[o].T @ row) for row, o in zip(x, op.tolist())])
        (0.5 * F.cross_entropy(readout(TWO, other, left), answers)).backward()
        for name, p in params.items():
            torch.testing.assert_close(p.grad, other[name].grad, atol=1e-9, rtol=1e-6, msg=name)

    @pytest.mark.parametrize("kind", ["contrastive", "pca", "covariance", "shuffled"])
    def test_through_the_directions_they_are_finite_differences(self, kind: str) -> None:
        found = adversary(replace(PENALTY, kind=kind, through=True), TWO)
        tokens, answers = tasks.all_tokens(TWO)[::3], tasks.answers(TWO)[::3]
        state = {name: w.double() for name, w in weights(TWO).items()}
        name = "blocks.1.mlp.W_out"

        def loss(w: Tensor) -> Tensor:
            params = {**state, name: w}
            return found.loss(params, last_residual(TWO, params, tokens), tokens, answers, 25)

        w = state[name].clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(w), w)
        constant = adversary(replace(found.penalty, through=False), TWO)
        params = {**state, name: w}
        plain = constant.loss(params, last_residual(TWO, params, tokens), tokens, answers, 25)
        assert (torch.autograd.grad(plain, w)[0] - grad).norm() > 0.05 * grad.norm()  # the directions do matter
        step = 1e-5 * torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            change = loss(w + step) - loss(w - step)
        assert float(change) == pytest.approx(float(2 * (grad * step).sum()), rel=1e-4)

    def test_pairs_of_equal_eigenvalues_inside_and_outside(self) -> None:
        """Where cos and sin of a frequency weigh the same, plain eigenvectors have no gradient; their span has one."""
        q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
        x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        products = (q * torch.tensor([4.0, 4.0, 2.0, 2.0, 1.0, 1.0])) @ q.T
        products = products.expand(2, 6, 6).clone().requires_grad_()

        def left(a: Tensor) -> Tensor:
            basis = Leading.apply((a + a.mT) / 2, 4)
            return x - x @ basis @ basis.mT

        assert torch.autograd.gradcheck(left, products)
        pairs = torch.diag(torch.tensor([4.0, 4.0, 2.0, 2.0, 1.0, 1.0], dtype=torch.float64)).requires_grad_()
        naive = torch.linalg.eigh(pairs).eigenvectors[..., 2:]
        (grad,) = torch.autograd.grad(((x @ naive @ naive.mT) ** 3).sum(), pairs)
        assert not grad.isfinite().all()  # or else this function would not be needed

    def test_a_pair_that_is_cut_has_a_limited_gradient(self) -> None:
        values = torch.tensor([4.0, 2.0, 2.0, 1.0], dtype=torch.float64)
        products = torch.diag(values).requires_grad_()
        basis = Leading.apply(products, 2)
        (basis @ basis.T * torch.arange(16.0, dtype=torch.float64).view(4, 4)).sum().backward()
        assert products.grad.isfinite().all()
        assert 1 < products.grad.abs().max() <= 16 / (4.0 * GAP)


def test_nothing_happens_but_in_its_steps() -> None:
    """Before ``start`` and between ``every`` a run with the penalty has the very bits of one without."""
    found = adversary(PENALTY, TWO)
    assert [taken for taken in range(40) if found.due(taken)] == [20, 25, 30, 35]
    state = initial_state(TWO, "log", 0)
    plain, other = Stepper(replace(RUN, penalty=None), state), Stepper(RUN, state)
    tokens, answers = tasks.all_tokens(TWO)[::2], tasks.answers(TWO)[::2]
    for taken in range(23):
        same = all(torch.equal(w, other.params[name]) for name, w in plain.params.items())
        assert same == (taken <= 20), taken
        losses = plain.step(tokens, answers), other.step(tokens, answers)
        assert torch.equal(*losses) == (taken < 20), taken
    with torch.no_grad():  # the step after 23 has none
        expected = F.cross_entropy(readout(TWO, other.params, last_residual(TWO, other.params, tokens)), answers)
    assert torch.equal(other.step(tokens, answers), expected)


@pytest.mark.parametrize("kind", ["contrastive", "covariance", "pca", "dropout"])
def test_a_loss_that_is_not_finite_is_left_to_the_trainer(kind: str) -> None:
    stepper = Stepper(replace(RUN, penalty=replace(PENALTY, kind=kind, start=0)), weights(TWO))
    stepper.params["embed.W_E"].data[0] = float("nan")
    assert not stepper.step(tasks.all_tokens(TWO)[::2], tasks.answers(TWO)[::2]).isfinite()


def test_held_out_prompts_are_never_sampled() -> None:
    settings = replace(RUN, config=replace(TWO, modulus=13), penalty=None)
    mask = train_mask(settings)
    for sample, count in ((40, 20), (5000, int(0.6 * 169))):
        found = Adversary(replace(PENALTY, sample=sample), settings.config, mask, 0)
        rows = {tuple(row) for row in found.tokens.tolist()}
        assert len(rows) == len(found.tokens) == 2 * count
        assert rows <= {tuple(row) for row in tasks.all_tokens(settings.config)[mask].tolist()}
        assert all(of_operation(settings.config, found.tokens, i).sum() == count for i in (0, 1))
    drawn = [Adversary(PENALTY, settings.config, mask, seed).tokens for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["contrastive", "covariance", "dropout"])
def test_resumed_runs_are_the_uninterrupted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    settings = replace(RUN, penalty=replace(PENALTY, kind=kind, start=10))
    whole = train(settings, out=tmp_path / "whole", progress=False)
    step = Stepper.step

    def killed(self: Any, *batch: Tensor) -> Tensor:
        if self.taken == 32:
            raise KeyboardInterrupt
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings, out=tmp_path / "parts", progress=False, checkpoint_every=20)
    parts = train(settings, out=tmp_path / "parts", progress=False)
    assert all(torch.equal(w, parts.state[name]) for name, w in whole.state.items())
    assert TrainConfig.from_dict(whole.card["training"]) == settings


BASE = {"config": {"modulus": 97}, "steps": 40_000}


class TestSettings:
    def test_a_table_in_a_file(self, tmp_path: Path) -> None:
        told = {"config": {"modulus": 97}, "steps": 20_000, "penalty": {"kind": "pca", "weight": 1, "through": True}}
        (tmp_path / "a.json").write_text(json.dumps(told))
        settings = load_recipe(tmp_path / "a.json")
        assert settings.penalty == Penalty(kind="pca", weight=1.0, through=True)
        assert TrainConfig.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
        assert TrainConfig.from_dict({**told, "penalty": {}}).penalty == Penalty()
        assert TrainConfig.from_dict({**told, "penalty": None}).penalty is None

    def test_nested_and_flat_names_make_the_same_cells(self) -> None:
        nested = Grid.product("g", BASE, arms=[{"penalty": {"kind": k, "directions": 5}} for k in ("pca", "shuffled")])
        flat = Grid.product("g", {**BASE, "penalty.directions": 5}, axes={"penalty.kind": ["pca", "shuffled"]})
        mixed = Grid.product("g", {**BASE, "penalty": {"directions": 5}}, axes={"penalty.kind": ["pca", "shuffled"]})
        assert nested == flat == mixed
        assert [cell.penalty for cell in flat.cells] == [Penalty("pca", 5), Penalty("shuffled", 5)]

    def test_none_in_a_grid_is_no_penalty(self) -> None:
        for nothing in ("none", None):
            grid = Grid.product("g", {**BASE, "penalty": {"every": 5}}, axes={"penalty.kind": [nothing, "pca"]})
            assert [cell.penalty for cell in grid.cells] == [None, Penalty("pca", every=5)]

    def test_keys_and_labels(self) -> None:
        plain, usual, other = Grid.product(
            "g", BASE, arms=[{}, {"penalty.kind": "contrastive"}, {"penalty": {"kind": "pca", "directions": 5}}]
        ).cells
        assert len({key_of(cell) for cell in (plain, usual, other)}) == 3
        assert key_of(replace(usual, penalty=Penalty(weight=1))) == key_of(replace(usual, penalty=Penalty(weight=1.0)))
        assert key_of(replace(plain, penalty=None)) == key_of(plain)
        assert "penalty" not in label(plain)
        assert "penalty=contrastive" in label(usual)
        assert "penalty.directions" not in label(usual)
        assert "penalty=pca penalty.directions=5" in label(other)

    def test_records_show_what_tells_them_apart(self) -> None:
        arms = [{"penalty.kind": "none"}, {"penalty.kind": "pca"}, {"penalty.kind": "pca", "penalty.start": 20_000}]
        cells = Grid.product("g", BASE, arms=arms).cells
        records = [{"key": str(i), "grid": "g", "seed": 0, "status": "done", "config": config_of(cell)}
                   for i, cell in enumerate(cells)]  # fmt: skip
        del records[0]["config"]["penalty"]  # as in records from before there were penalties
        for some, names in ((records, {"penalty.kind", "penalty.start"}), (records[:2], {"penalty.kind"})):
            assert {name for name in rows(some)[0] if "penalty" in name} == names
        assert rows(records)[1]["penalty.kind"] == "pca"
        assert select(records, ["penalty.start>10_000"]) == records[2:]
        with pytest.raises(ValueError, match=r"penalty\.directions"):
            select(records, ["penalty.direction=3"])

    def test_quick_grids_have_it_on_for_the_same_part_of_the_steps(self) -> None:
        base = {**BASE, "penalty": {"directions": 60}}
        quick = Grid.product("g", base, axes={"penalty.start": [0, 10_000, 39_000]}).quick()
        assert [cell.penalty.start for cell in quick.cells if cell.penalty] == [0, 600, 2340]
        assert {cell.penalty.directions for cell in quick.cells if cell.penalty} == {28}

    @pytest.mark.parametrize(
        ("penalty", "message"),
        [
            ({"direction": 3}, r"'direction' is no penalty setting.*directions"),
            ({"directions": 3.0}, "directions = 3.0 must be int"),
            ({"through": 1}, "through = 1 must be bool"),
            ({"weight": True}, "weight = True must be int or float"),
            (5, "penalty = 5 must hold the penalty's settings"),
            ({"kind": "contrast"}, r"penalty.kind 'contrast' must be one of .'contrastive'"),
            ({"every": 0}, "penalty.every 0 must be at least 1"),
            ({"weight": 0}, "penalty.weight 0.0 must be above 0; penalty = None trains without one"),
            ({"kind": "dropout", "through": True}, "is for directions, and kind 'dropout' has none"),
            ({"start": 20_000}, "penalty.start 20000 leaves none of the 20000 steps a penalty"),
            ({"directions": 97}, "penalty.directions 97 of d_model 128 and 97 answers: at most 96"),
            ({"directions": 128, "kind": "pca"}, "penalty.directions 128 of d_model 128: at most 127"),
            (
                {"sample": 10},
                "penalty.sample 10 gives 10 of 2822 training pairs of each operation; 10 directions need more",
            ),
        ],
    )
    def test_refusals(self, penalty: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TrainConfig.from_dict({"config": {"modulus": 97}, "steps": 20_000, "penalty": penalty})

    @pytest.mark.parametrize(
        ("base", "message"),
        [
            ({"penalty.direction": 3}, r"'penalty.direction' is no setting of a training run.*penalty.directions"),
            ({"penalty": {}}, "penalty = {} must hold the penalty's settings"),
            ({"penalty": "pca"}, "penalty = 'pca' must hold the penalty's settings"),
        ],
    )
    def test_refusals_of_grids(self, base: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Grid.product("g", {**BASE, **base})

    def test_stacks_have_none(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a stack has several: mi_ablate.toys.train.train runs them one by one"):
            train_stacked([replace(RUN, penalty=None), RUN], outs=[tmp_path / "a", tmp_path / "b"], progress=False)
        assert not list(tmp_path.iterdir())

    def test_sweeps_train_such_cells_alone(self, tmp_path: Path) -> None:
        base = {**RUN.to_dict(), "config": TWO.to_dict(), "penalty": {"directions": 3, "start": 20, "sample": 40}}
        del base["seed"]
        grid = Grid.product("g", base, axes={"penalty.kind": ["none", "pca"]}, seeds=2)
        todo = plan(grid, results=tmp_path / "results", runs=tmp_path / "runs", measures=["accuracy"]).todo
        assert [[cell.task.cell.penalty is None for cell in group] for group in _stacks(todo, 4)] == [
            [True, True],
            [False],
            [False],
        ]
        tasks_ = [cell.task for cell in todo[2:]]
        perform(tasks_)  # together all the same
        told = [task.finished() for task in tasks_]
        assert [record["config"]["penalty"]["kind"] for record in told if record] == ["pca", "pca"]


def test_the_model_learns_to_do_without_its_directions() -> None:
    """100 steps with the penalty against 100 without it, from the same weights: what removal costs, and how soon."""
    config = ToyConfig(modulus=13, n_layers=1, d_model=32, n_heads=2, d_mlp=64)
    penalty = Penalty(directions=3, weight=1.0, every=2, start=0)
    settings = TrainConfig(config, learning_rate=3e-3, weight_decay=0.1, steps=250, train_fraction=0.8, penalty=penalty)
    mask = train_mask(settings)
    tokens, answers = tasks.all_tokens(config)[mask], tasks.answers(config)[mask]
    with_it = Stepper(settings, initial_state(config, "log", 0))
    found, with_it.adversary = with_it.adversary, None
    for _ in range(150):
        with_it.step(tokens, answers)
    without, with_it.adversary = copy.deepcopy(with_it), found
    assert found is not None
    losses, ks = [], []
    for stepper in (with_it, without):
        for _ in range(100):
            stepper.step(tokens, answers)
        state, last = stepper.state(), "blocks.0.hook_resid_post"
        losses.append(float(found.loss(state, last_residual(config, state, tokens), tokens, answers, 0)))
        model = build(config, state)
        basis = contrastive(collect(model, tokens, [last])[last], answers, "all")
        curve = removal_curve(model, tokens, basis, metrics.accuracy(answers), at=last, ks=range(9), controls={})
        ks.append(curve.k_at(0.95))
        assert float(curve.values[0]) > 0.98  # of the training pairs, both
    assert losses[0] < losses[1] / 2
    assert ks[0] > ks[1]
