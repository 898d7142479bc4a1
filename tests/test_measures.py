"""The measures of one trained toy: planted models whose numbers are known, agreement with the core, and hard cases."""

import functools
import json
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate.measures import MEASURES, VERSION, Subject, measure
from mi_ablate.measures.plain import plain
from mi_ablate.measures.subject import HELD_OUT
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.evaluation import Data
from mi_ablate.toys.forward import parameter_shapes
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.stepper import initial_state

TINY: dict[str, Any] = {"modulus": 11, "d_model": 16, "d_mlp": 24, "n_heads": 2}
HARD = {
    "two layers, LayerNorm": TrainConfig(ToyConfig(**TINY)),
    "one layer": TrainConfig(ToyConfig(**TINY, n_layers=1), split_seed=None, seed=3),
    "no norm": TrainConfig(ToyConfig(**TINY, n_layers=1, normalization=None, act_fn="relu")),
    "RMS norm, no biases": TrainConfig(ToyConfig(**TINY, normalization="RMS", biases="none")),
    "two operations": TrainConfig(ToyConfig(**TINY, n_layers=1, operations=("add", "mul")), train_fraction=0.5),
    "missing answers": TrainConfig(ToyConfig(modulus=19, d_model=48, d_mlp=96, n_layers=1), train_fraction=0.05),
    "two training pairs": TrainConfig(ToyConfig(**TINY, n_layers=1), train_fraction=0.02),
    "two held-out pairs": TrainConfig(ToyConfig(**TINY, n_layers=1), train_fraction=0.99),
    "two tokens": TrainConfig(ToyConfig(**TINY, n_layers=1, layout="a b")),
    "subtraction, modulus 5": TrainConfig(
        ToyConfig(modulus=5, d_model=16, d_mlp=24, n_heads=2, n_layers=1, operations=("sub",)), train_fraction=0.6
    ),
    "three operations, one without held-out pairs": TrainConfig(
        ToyConfig(**TINY, n_layers=1, normalization=None, operations=("add", "sub", "mul")),
        train_fraction=0.99,
        seed=8,
        split_seed=None,
    ),
    "modulus 3": TrainConfig(
        ToyConfig(modulus=3, d_model=16, d_mlp=24, n_heads=2, operations=("add", "mul")), train_fraction=0.5
    ),
}


def untrained(config: TrainConfig) -> Subject:
    return Subject(config, initial_state(config.config, "log", config.seed), 0, False)


P, K, SIZE = 7, 2, 10.0


def planted(train_fraction: float = 0.8) -> Subject:
    """A model that adds mod 7 with one neuron a pair, its answers on one circle of frequency 2 and radius 10."""
    config = ToyConfig(
        modulus=P, layout="a b =", n_layers=1, d_model=20, n_heads=2, d_mlp=P * P, act_fn="relu", normalization=None
    )
    state = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    one_hot = torch.arange(P)
    state["embed.W_E"][one_hot, one_hot] = 1.0
    state["pos_embed.W_pos"][[0, 1, 2], [14, 15, 16]] = 1.0
    for head in (0, 1):  # "=" reads a through one head and b through the other
        state["blocks.0.attn.W_Q"][head, 16, 0] = 1000.0
        state["blocks.0.attn.W_K"][head, 14 + head, 0] = 1.0
        state["blocks.0.attn.W_V"][head, one_hot, one_hot] = 1.0
        state["blocks.0.attn.W_O"][head, one_hot, P * head + one_hot] = 1.0
    a, b = torch.arange(P).repeat_interleave(P), torch.arange(P).repeat(P)
    # position "=" has a in coordinates 0-6 and b in 7-13
    pair = torch.arange(P * P)
    state["blocks.0.mlp.W_in"][a, pair] = 1.0
    state["blocks.0.mlp.W_in"][P + b, pair] = 1.0
    state["blocks.0.mlp.b_in"][:] = -1.0
    state["blocks.0.mlp.W_out"][:, 17:19] = SIZE * circle()[(a + b) % P]
    state["unembed.W_U"][17:19] = circle().T
    return Subject(TrainConfig(config, train_fraction=train_fraction), state, 100, True)


def circle() -> Tensor:
    angle = 2 * math.pi * K * torch.arange(P) / P
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return {name: value["add"] for name, value in measure(planted()).items()}


# A planted model


def test_accuracy_and_margins_of_a_planted_model(known) -> None:
    found = known["accuracy"]
    assert [found[name]["n"] for name in ("train", "held_out", "all")] == [39, 10, 49]
    assert [found[name]["accuracy"] for name in ("train", "held_out", "all")] == [1, 1, 1]
    margin = SIZE * (1 - math.cos(2 * math.pi / P))
    assert found["margin"] == pytest.approx([margin] * 5, rel=1e-4)
    logits = SIZE * (circle() @ circle()[0])
    assert found["all"]["loss"] == pytest.approx(float(logits.logsumexp(0) - logits[0]), rel=1e-3)


def test_class_means_of_a_planted_model_are_one_circle(known) -> None:
    found = known["class_means"]["all"]
    radius = SIZE * math.sqrt(P / 2)
    assert found["singular_values"][:2] == pytest.approx([radius, radius], rel=1e-4)
    assert max(found["singular_values"][2:]) < 1e-4
    assert (found["rank99"], found["dims95"], found["answers"]) == (2, 2, P)
    assert found["participation"] == pytest.approx(2, rel=1e-4)
    assert found["shares"] == pytest.approx([0, 1, 0], abs=1e-6)


def test_spectra_and_norms_of_a_planted_model(known) -> None:
    found = known["embedding"]
    assert found["W_E"]["shares"] == pytest.approx([1 / 3] * 3, rel=1e-4)  # one-hot
    assert found["W_U"]["shares"] == pytest.approx([0, 1, 0], abs=1e-6)
    assert found["W_U"]["frequencies"][0] == K
    assert found["W_U"]["top5"] == {"share": pytest.approx(1), "random": pytest.approx(1)}  # there are three in all
    assert found["rank99"] == P - 1
    assert found["norms"]["W_E"] == pytest.approx(math.sqrt(P), rel=1e-4)
    assert found["norms"]["W_U"] == pytest.approx(math.sqrt(P), rel=1e-4)
    every = sum(float((w**2).sum()) for w in planted().state.values())
    assert found["norms"]["all"] == pytest.approx(math.sqrt(every), rel=1e-4)


def test_variances_of_a_planted_model(known) -> None:
    subject, found = planted(), known["variance"]
    x = subject.operations["add"].acts["blocks.0.hook_resid_post"].double()
    # "=" has a 1 of its own position in coordinate 16, and one of each operand
    assert found["mean_norm"] == pytest.approx(float(x.mean(0).norm()), rel=1e-4)
    assert found["mean_norm"] > 1
    assert found["total"] == pytest.approx(float(x.var(0, correction=0).sum()), rel=1e-4)
    values = subject.operations["add"].values
    means = torch.stack([x[values == v].mean(0) for v in range(P)])
    within = x - means[values]
    assert found["within"] == pytest.approx(float((within**2).sum(1).mean()), rel=1e-4)
    assert sum(found["within_eigenvalues"]) == pytest.approx(found["within"], rel=1e-3)
    lead = {name: sum(numbers[:2]) for name, numbers in found["directions"].items() if name != "gain"}
    assert lead["variance"] == pytest.approx(SIZE**2, rel=0.05)
    assert lead["within"] < 0.05
    assert found["directions"]["gain"][:2] == pytest.approx([math.sqrt(P / 2)] * 2, rel=0.01)
    assert max(found["directions"]["gain"][2:]) < 0.2
    assert set(found["sites"]) == {"blocks.0.hook_resid_mid", "blocks.0.hook_resid_post"}


def test_the_planted_circle_is_removed_by_its_plane_and_written(known) -> None:
    curves = known["last_residual"]["directions"]["live"]
    curve = curves["mean"]
    assert curves["ks"] == [0, 1, 2, 3, 4, 5, 6]
    assert curve["edited"][0] == 1
    assert max(curve["edited"][2:]) < 0.5
    assert curves["variance_removed"]["edited"][2] > 0.95
    assert curve["k"]["edited"]["0.95"]["first"]["relative"]["censored"] is False
    assert known["last_residual"]["planes"]["mean"]["edited"] == [1.0, *curve["edited"][2::2]]
    found = known["writing"]
    assert found["5"] is None
    assert found["all"]["edited"] == 1
    assert found["all"]["clean"] == 0
    assert found["all"]["controls"]["shuffled labels"]["mean"] < 0.5
    assert found["all"]["ablated"]["clean"] == 1
    assert found["all"]["ablated"]["edited"] < 0.5
    assert known["collateral"] is None
    assert known["overlap"] is None


def test_a_collapsed_model_has_no_directions_and_no_crash() -> None:
    subject = planted()
    subject.state["blocks.0.mlp.W_out"][:] = 0.0
    subject.state["blocks.0.attn.W_O"][:] = 0.0
    found = {name: value["add"] for name, value in measure(subject).items()}
    assert found["last_residual"] is None
    assert found["every_site"] is None
    assert found["writing"] == {"5": None, "10": None, "20": None, "all": None}
    assert found["variance"]["directions"] is None
    assert found["variance"]["total"] == 0
    assert found["class_means"]["all"]["rank99"] is None
    assert found["accuracy"]["all"]["accuracy"] == pytest.approx(1 / P, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_model_has_nothing_to_measure(value: float) -> None:
    subject = planted()
    subject.state["unembed.W_U"][0, 0] = value
    assert measure(subject) == {name: {"add": None} for name in MEASURES}


@pytest.mark.parametrize("norm", ["RMS", "LN"])
def test_activations_too_large_to_square_are_not_measured(norm: str) -> None:
    """The scale of a norm is infinite there, and its output 0, so that the logits look well."""
    config = TrainConfig(ToyConfig(**TINY, n_layers=1, normalization=norm))
    state = {name: w * 1e12 if w.ndim > 1 else w for name, w in initial_state(config.config, "log", 0).items()}
    subject = Subject(config, state, 0, False)
    assert subject.logits.isfinite().all()
    assert measure(subject) == {name: {"add": None} for name in MEASURES}


def test_an_operation_without_held_out_pairs_is_left_out() -> None:
    subject = untrained(HARD["three operations, one without held-out pairs"])
    assert not subject.operations["mul"].measurable
    found = measure(subject, ["collateral", "last_residual", "overlap"])
    assert found["collateral"]["add"]["mul"] is None
    assert set(found["collateral"]["add"]["sub"]) == {"ks", "variance_removed", "zero", "mean"}
    assert found["last_residual"]["mul"] is None
    assert found["overlap"]["add"]["mul"]["5"] is not None


# Agreement with the core


@functools.cache
def two_layers() -> tuple[Subject, Data, dict[str, Any]]:
    """A subject, its data, and its curves of every ablation and norm, which one measuring gives at once."""
    config = HARD["two layers, LayerNorm"]
    subject = untrained(config)
    return subject, Data(config, "cpu"), measure(subject, ["last_residual", "every_site"])


@pytest.mark.parametrize("norms", ["live", "frozen"])
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_curves_are_those_of_removal_curve(ablation: str, norms: str) -> None:
    subject, data, found = two_layers()
    model, last = subject.toy.model, "blocks.1.hook_resid_post"
    train = data.mask.nonzero().flatten()
    held = (~data.mask).nonzero().flatten()
    held = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:1000]]
    names = [f"blocks.{i}.hook_resid_{part}" for i in (0, 1) for part in ("mid", "post")]
    acts = mi.collect(model, data.tokens[train], names)
    index = torch.unique(data.answers[train], return_inverse=True)[1]
    bases = {name: mi.fit(x, mi.classes(index)).subspace() for name, x in acts.items()}
    beside = {"covariance": mi.controls.covariance(acts), "pca": mi.controls.pca(acts)}
    metric = mi.accuracy(data.answers[held])
    for name, places, ks in (
        ("last_residual", {last: bases[last]}, None),
        ("every_site", bases, [k for k in (0, 1, 2, 3, 4, 6, 8, 12, 16) if k <= min(s.rank for s in bases.values())]),
    ):
        curve = mi.removal_curve(
            model, data.tokens[held], places, metric, ks=ks, ablation=ablation, norms=norms, controls=beside
        )
        mine = found[name]["add"]
        shared = (mine["directions"] if name == "last_residual" else mine)[norms]
        mine = shared[ablation]
        assert shared["ks"] == list(curve.ks)
        assert mine["edited"] == pytest.approx(curve.values.tolist(), rel=1e-4)
        for run, removed in curve.variance_removed.items():
            assert shared["variance_removed"][run] == pytest.approx(removed.tolist(), rel=1e-4)
        for control, draws in curve.controls.items():
            assert len(draws) == (5 if control == "covariance" else 1)
            assert mine["controls"][control]["mean"] == pytest.approx(draws.mean(0).tolist(), rel=1e-4)
            assert ("low" in mine["controls"][control]) == (len(draws) > 1)
            if len(draws) == 1:
                continue
            assert mine["controls"][control]["low"] == pytest.approx(draws.min(0).values.tolist(), rel=1e-4)
            assert mine["controls"][control]["high"] == pytest.approx(draws.max(0).values.tolist(), rel=1e-4)
        for run, thresholds in mine["k"].items():
            for tau, rules in thresholds.items():
                for rule, scales in rules.items():
                    for scale, reading in scales.items():
                        k = curve.k_at(float(tau), rule=rule, scale=scale, run=run)
                        expected = None if k is None else {"k": int(k), "upper": k.upper, "censored": k.censored}
                        assert reading == expected


def test_overlap_and_collateral_are_those_of_the_core() -> None:
    config = HARD["two operations"]
    subject = untrained(config)
    found = measure(subject, ["overlap", "collateral"])
    add, mul = subject.operations["add"], subject.operations["mul"]
    last, model = "blocks.0.hook_resid_post", subject.toy.model
    for k in (5, 10):
        one = found["overlap"]["add"]["mul"][str(k)]
        s, t = add.bases[last][:k], mul.bases[last][:k]
        if min(s.rank, t.rank) < k:
            continue
        assert one["squared"] == pytest.approx(s.overlap(t), rel=1e-4)
        assert one["cosine"] == pytest.approx(float(s.cosines(t).mean()), rel=1e-4)
        assert one["isotropic"]["squared_expected"] == pytest.approx(k / 16, rel=1e-4)
        assert one["covariance"]["squared"]["low"] <= one["covariance"]["squared"]["high"] <= 1
        assert set(one["split_half"]) == {"add", "mul"}
    assert found["overlap"]["add"]["mul"] == found["overlap"]["mul"]["add"]
    assert found["overlap"]["add"]["mul"]["20"] is None
    for ablation in ("zero", "mean"):
        curve = mi.removal_curve(
            model, mul.held_tokens, {last: add.bases[last]}, mul.metric, ablation=ablation, controls=add.controls
        )
        mine = found["collateral"]["add"]["mul"][ablation]
        assert mine["edited"] == pytest.approx(curve.values.tolist(), rel=1e-4)
        assert mine["controls"]["pca"]["mean"] == pytest.approx(curve.controls["pca"][0].tolist(), rel=1e-4)


@pytest.mark.parametrize("name", ["two layers, LayerNorm", "RMS norm, no biases", "no norm"])
def test_the_gain_is_what_the_readout_makes_of_a_direction(name: str) -> None:
    """At a fixed scale of the final norm, moving by a unit vector moves the centred logits by the gain."""
    subject = untrained(HARD[name])
    if "ln_final.w" in subject.state:
        subject.state["ln_final.w"] += torch.randn(16)
    one, model = subject.operations["add"], subject.toy.model
    bases = one.bases
    assert bases is not None
    q = bases[one.last].basis.T.float()
    norm = getattr(model, "ln_final", None)
    unit = [] if norm is None else [("ln_final.hook_scale", lambda x, hook: torch.ones_like(x))]
    with torch.no_grad(), mi.attached(model, unit):
        x = torch.cat([torch.zeros(1, 16), q])[:, None]
        logits = model.unembed(x if norm is None else norm(x))[:, 0]
    moved = logits[1:] - logits[:1]
    expected = (moved - moved.mean(1, keepdim=True)).norm(dim=1)
    assert measure(subject, ["variance"])["variance"]["add"]["directions"]["gain"] == pytest.approx(
        expected.tolist(), rel=1e-3
    )


def test_variances_by_hand() -> None:
    """Sums over training pairs, along each contrastive direction and in all."""
    subject = untrained(HARD["two layers, LayerNorm"])
    one, found = subject.operations["add"], measure(subject, ["variance"])["variance"]["add"]
    bases = one.bases
    assert bases is not None
    x, n, q = one.acts[one.last].double(), len(one.values), bases[one.last].basis
    residual = torch.stack([row - x[one.values == v].mean(0) for row, v in zip(x, one.values)])
    assert found["directions"]["mean"] == pytest.approx((x.mean(0) @ q).tolist(), rel=1e-3)
    assert found["directions"]["variance"] == pytest.approx(((x @ q).var(0, correction=0)).tolist(), rel=1e-3)
    assert found["directions"]["within"] == pytest.approx(((residual @ q).square().sum(0) / n).tolist(), rel=1e-3)
    spread = torch.linalg.svdvals(residual).square() / n
    assert found["within_eigenvalues"][:8] == pytest.approx(spread[:8].tolist(), rel=1e-3)
    assert found["within"] < found["total"]
    assert list(found["sites"]) == [f"blocks.{i}.hook_resid_{part}" for i in (0, 1) for part in ("mid", "post")]
    for name, numbers in found["sites"].items():
        acts = mi.collect(subject.toy.model, subject.toy.tokens[subject.toy.train], name)[name].double()
        assert numbers["mean_norm"] == pytest.approx(float(acts.mean(0).norm()), rel=1e-3)
        assert numbers["total"] == pytest.approx(float((acts - acts.mean(0)).square().sum() / n), rel=1e-3)


def test_accuracy_and_loss_are_those_of_the_trainer() -> None:
    config = HARD["two operations"]
    subject, data = untrained(config), Data(config, "cpu")
    loss, right = data.evaluate(subject.state)
    for i, name in enumerate(("add", "mul")):
        found = measure(subject, ["accuracy"])["accuracy"][name]
        for j, part in enumerate(("held_out", "train")):
            assert found[part]["n"] == int(data.sizes[i, j])
            assert found[part]["loss"] == pytest.approx(float(loss[i, j] / data.sizes[i, j]), rel=1e-4)
            assert found[part]["accuracy"] == pytest.approx(float(right[i, j] / data.sizes[i, j]), rel=1e-4)


@pytest.mark.parametrize("subject", [planted(), untrained(HARD["two layers, LayerNorm"])], ids=["planted", "untrained"])
def test_writing_by_hand(subject: Subject) -> None:
    """Least squares, a projector and bare hooks give the same share of written answers."""
    one, model = subject.operations["add"], subject.toy.model
    p = subject.toy.modulus
    found = measure(subject, ["writing"])["writing"]["add"]["all"]

    def columns(values: Tensor) -> Tensor:
        angle = 2 * math.pi / p * values[:, None] * torch.tensor(found["frequencies"])
        return torch.cat([angle.cos(), angle.sin()], 1).double()

    d, x = columns(one.values), one.acts[one.last].double()
    coef = torch.linalg.lstsq(d - d.mean(0), x - x.mean(0)).solution
    u, s, _ = torch.linalg.svd(coef.T @ (d - d.mean(0)).T, full_matrices=False)
    q = u[:, s > 1e-5 * s[0]]
    target = (one.task.values[one.held] + 5) % p
    to = x.mean(0) + (columns(target) - d.mean(0)) @ coef
    assert found["rank"] == q.shape[1]

    def edit(resid: Tensor, hook: Any) -> Tensor:
        resid[:, -1] += ((to - resid[:, -1]) @ q @ q.T).float()
        return resid

    with torch.no_grad():
        logits = model.run_with_hooks(one.held_tokens, fwd_hooks=[(one.last, edit)])[:, -1]
    assert found["edited"] == pytest.approx(float((logits.argmax(-1) == target).double().mean()), rel=1e-4)


def test_a_shipped_model_has_the_numbers_of_its_kind() -> None:
    """The shipped add97: its circle of ten frequencies writes, five do not, and controls stay low."""
    from importlib import resources

    from mi_ablate import _files

    with resources.as_file(resources.files("mi_ablate.toys").joinpath("zoo", "add97.safetensors")) as path:
        state, card = _files.read(path)
    subject = Subject(TrainConfig.from_dict(card["training"]), state, card["checkpoint_step"], card["stable"])
    found = {name: value["add"] for name, value in measure(subject, ["accuracy", "class_means", "writing"]).items()}
    assert found["accuracy"]["held_out"]["accuracy"] == pytest.approx(card["accuracy"]["held_out"], abs=1e-4)
    assert found["accuracy"]["held_out"]["loss"] == pytest.approx(card["loss"]["held_out"], rel=1e-3)
    assert found["class_means"]["all"]["rank99"] == 21
    assert found["writing"]["10"]["edited"] > 0.98
    assert found["writing"]["5"]["edited"] < 0.05
    assert found["writing"]["10"]["controls"]["shuffled labels"]["high"] < 0.05


def test_bases_come_from_training_pairs_and_scores_from_held_out_ones() -> None:
    config = TrainConfig(ToyConfig(modulus=37, d_model=16, d_mlp=24, n_heads=2, n_layers=1), split_seed=None, seed=4)
    subject = untrained(config)
    one, mask = subject.operations["add"], Data(config, "cpu").mask
    assert len(one.held) == 37 * 37 - int(mask.sum()) < HELD_OUT
    assert not bool(mask[one.task.rows[one.held]].any())
    assert torch.equal(one.train, mask)
    again = untrained(config).operations["add"]
    assert torch.equal(one.held, again.held)
    many = untrained(TrainConfig(ToyConfig(modulus=41, d_model=16, d_mlp=24, n_heads=2, n_layers=1)))
    assert len(many.operations["add"].held) == HELD_OUT


def test_multiplication_is_measured_on_exponents_and_scored_with_zeros() -> None:
    subject = untrained(HARD["two operations"])
    found = measure(subject, ["accuracy", "embedding", "class_means"])
    assert found["accuracy"]["mul"]["all"]["n"] == 121
    assert len(found["embedding"]["mul"]["W_E"]["shares"]) == 5
    exponents = mi.modular.discrete_log(11)
    rows = subject.state["embed.W_E"][:11][torch.argsort(exponents)[1:]]
    assert found["embedding"]["mul"]["W_E"]["shares"] == pytest.approx(
        mi.modular.spectrum(rows).shares.tolist(), rel=1e-3
    )
    assert found["class_means"]["mul"]["all"]["answers"] == 10


# Hard cases


@pytest.mark.compat
@pytest.mark.parametrize("name", sorted(HARD))
def test_every_measure_is_json_without_nan_and_the_same_twice(name: str) -> None:
    config, seen = HARD[name], []
    found = measure(untrained(config), progress=seen.append)
    assert seen == list(MEASURES)
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert all(set(value) == set(config.config.operations) for value in found.values())
    if name in ("one layer", "two operations"):
        again, skip = untrained(config), ("last_residual", "every_site") if name == "two operations" else ()
        names = [n for n in reversed(MEASURES) if n not in skip]
        assert {n: MEASURES[n](again) for n in names} == {n: found[n] for n in names}


def test_the_shapes_are_those_of_the_docstring() -> None:
    """Every key that the package's docstring lists is there, and no other at the top of a measure."""
    import mi_ablate.measures

    lines = mi_ablate.measures.__doc__.split("collateral: zero, mean):")[1].split("When these mislead")[0].splitlines()
    said = {words[0]: " ".join(words[1:]) for words in map(str.split, lines) if words}
    assert list(said) == list(MEASURES)
    subject = untrained(HARD["two operations"])
    curves = {"ks", "variance_removed", "zero", "mean"}
    effect = {"clean", "edited", "variance_removed", "controls"}
    for name, value in measure(subject).items():
        found, text = value["add"], said[name].replace("other operation", "mul")
        outer = re.sub(r"\{[^{}]*\}", "", re.sub(r"\{[^{}]*\}", "", text.replace("[5]", "")))
        assert set(re.findall(r"\w+", outer)) - {"curves", "effect"} == set(found), name
        assert set(re.findall(r"\w+", text)) - {"curves", "effect"} <= keys(found) | {"5"}, name
        if "curves" in text:
            assert any(curves == set(inner) - {"resample"} for inner in dicts(found))
        if "effect" in text:
            assert any(effect == set(inner) for inner in dicts(found))
            assert effect < set(found["all"])


def dicts(value: Any) -> list[dict[str, Any]]:
    inner = [d for item in value.values() for d in dicts(item)] if isinstance(value, dict) else []
    return [value, *inner] if isinstance(value, dict) else inner


def keys(value: Any) -> set[str]:
    return {key for inner in dicts(value) for key in inner}


def test_missing_answers_leave_no_spectrum() -> None:
    found = measure(untrained(HARD["missing answers"]), ["class_means"])["class_means"]["add"]
    assert found["train"]["answers"] < 19
    assert found["train"]["shares"] is None
    assert len(found["all"]["shares"]) == 9


def test_without_norms_frozen_is_live() -> None:
    found = measure(untrained(HARD["no norm"]), ["last_residual"])["last_residual"]["add"]["directions"]
    assert found["live"] == found["frozen"]


def test_the_number_of_threads_is_left_alone() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        measure(untrained(HARD["one layer"]), ["accuracy"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_unknown_measures_name_the_nearest() -> None:
    subject = untrained(HARD["one layer"])
    with pytest.raises(
        ValueError, match=r"There is no measure 'acuracy'\. Nearest names: accuracy.* All: accuracy, emb"
    ):
        measure(subject, ["embedding", "acuracy"])
    assert measure(subject, []) == {}
    assert isinstance(VERSION, int)


def test_plain_rounds_and_drops_what_is_not_finite() -> None:
    value = {"a": torch.tensor([1.23456789, float("nan")]), 2: (float("inf"), 7, True, None, "x", 123456.7)}
    assert plain(value) == {"a": [1.2346, None], "2": [None, 7, True, None, "x", 123460.0]}
