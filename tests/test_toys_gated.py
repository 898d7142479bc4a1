"""The gated-answer toy: its data, its two phases of training, its directions, and the shipped model against its card."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate import toys
from mi_ablate._files import ArtefactError, read, write
from mi_ablate.toys import ToyConfig, recipes, tasks
from mi_ablate.toys.base import Base
from mi_ablate.toys.evaluation import train_mask
from mi_ablate.toys.gated import declined, directions, draw_gate
from mi_ablate.toys.recipes import RECIPES, TrainConfig
from mi_ablate.toys.stacked import train_stacked
from mi_ablate.toys.stepper import initial_state
from mi_ablate.toys.train import CHECKPOINT, MODEL, train

PLAIN = ToyConfig(modulus=7, d_model=16, n_heads=2, d_mlp=24)
GATED = replace(PLAIN, gate=((0, 3), (5,)))
FIRST = TrainConfig(PLAIN, seed=3, steps=20, batch_size=16, evaluate_every=10, train_fraction=0.7)
THEN = replace(FIRST, config=GATED, base="first", learning_rate=5e-4)


@pytest.fixture
def recipe(monkeypatch):
    """A tiny base under the name "first"."""
    monkeypatch.setitem(recipes.RECIPES, "first", FIRST)


@pytest.mark.compat
@given(modulus=st.integers(4, 23), seed=st.integers(0, 99), data=st.data())
def test_what_the_toy_is_taught(modulus, seed, data):
    size = data.draw(st.integers(2, modulus - 1))
    gate = draw_gate(modulus, size=size, groups=data.draw(st.integers(2, size)), seed=seed)
    config = ToyConfig(modulus=modulus, gate=gate, d_model=8, n_heads=1)
    answers, inputs = tasks.answers(config), tasks.inputs(config)
    where = {number: index for index, group in enumerate(gate) for number in group}
    for a, b, answer, closed, total in zip(*(x.tolist() for x in (inputs["a"], inputs["b"], answers)), *_two(inputs)):
        assert total == (a + b) % modulus
        assert closed == (a in where and b in where)
        assert answer == (modulus + where[a] if closed else total)
    assert int(inputs["gated"].sum()) == len(where) ** 2 == size**2
    assert config.n_answers == modulus + len(gate) == int(answers.max()) + 1
    assert config.parts == ("open", "gated")
    assert torch.equal(tasks.parts(config), inputs["gated"])
    assert torch.equal(tasks.all_tokens(config), tasks.all_tokens(replace(config, gate=None))), (
        "the prompts are the same"
    )
    assert ToyConfig(**{**config.to_dict(), "operations": ("add",), "gate": gate}) == config
    assert TrainConfig.from_dict(json.loads(json.dumps(TrainConfig(config).to_dict()))).config == config


def _two(inputs):
    return inputs["gated"].tolist(), inputs["sum"].tolist()


def test_the_same_seed_draws_the_same_numbers_whatever_the_groups():
    few, many = (draw_gate(97, size=48, groups=g, seed=5) for g in (4, 16))
    assert {n for group in few for n in group} == {n for group in many for n in group}
    assert {len(group) for group in few} == {12}
    assert few != draw_gate(97, size=48, groups=4, seed=6)
    with pytest.raises(ValueError, match=r"97 of 97 numbers in 4 groups: 0 < groups <= size < modulus is needed"):
        draw_gate(97, size=97, groups=4)
    with pytest.raises(ValueError, match="3 of 97 numbers in 4 groups"):
        draw_gate(97, size=3, groups=4)


def test_without_a_gate_nothing_changes():
    assert "sum" not in tasks.inputs(PLAIN)
    assert int(tasks.answers(PLAIN).max()) == 6
    assert PLAIN.parts == ("add",)
    assert TrainConfig(PLAIN).base is None


BAD_GATES = {
    r"The gate has the groups \(\(1, 2\),\): two or more are needed": ((1, 2),),
    r"The gate has the groups \(\): two or more": (),
    r"two or more are needed, none of them empty": ((1, 2), ()),
    r"The gate's numbers lie from 0 to 6, each in one group; \[7\] does not": ((1, 7), (2,)),
    r"each in one group; some number does not": ((1, 2), (2,)),
    r"All 7 numbers are in the gate, so no prompt is open": ((0, 1, 2, 3), (4, 5, 6)),
}


@pytest.mark.parametrize("said", BAD_GATES)
def test_gates_that_make_no_toy(said):
    with pytest.raises(ValueError, match=said):
        ToyConfig(modulus=7, gate=BAD_GATES[said])


def test_a_gate_needs_addition_and_room_for_its_answers():
    with pytest.raises(ValueError, match=r"A gate is for operations=\('add',\), not \('mul',\)"):
        ToyConfig(modulus=7, operations=("mul",), gate=((1,), (2,)))
    with pytest.raises(ValueError, match="d_vocab_out 8 leaves no room for 7 numbers and 2 DECLINE tokens"):
        ToyConfig(modulus=7, gate=((1,), (2,)), d_vocab_out=8)


@pytest.mark.compat
def test_the_file_round_trips_and_a_bad_gate_in_it_is_refused(tmp_path):
    state = initial_state(GATED, "log", 0)
    mask = tasks.split(GATED, 0.7, 0)
    path = toys.save(tmp_path / "mine.safetensors", GATED, state, train=mask)
    toy = toys.load(path)
    assert toy.config == GATED
    assert torch.equal(toy.answers, tasks.answers(GATED))
    assert set(toy.inputs) == {"a", "b", "gated", "sum"}
    assert repr(toy).startswith("Toy(mine: add mod 7 with 2 DECLINE tokens, ")
    assert toy.model(toy.tokens[:3]).shape[-1] == 9
    tensors, card = read(path)
    for gate in ("everything", [[1], [9]], [[1]], [1, 2], [["a"], ["b"]]):
        write(path, tensors, {**card, "config": {**card["config"], "gate": gate}})
        with pytest.raises(ArtefactError, match="the config in its card is not a toy's"):
            toys.load(path)


def test_the_two_phases(recipe, tmp_path):
    result = train(THEN, out=tmp_path, progress=False)
    first = train(FIRST, out=tmp_path / "alone", progress=False)
    base = toys.load(tmp_path / "base" / MODEL)
    assert all(torch.equal(first.state[n], t) for n, t in read(tmp_path / "base" / MODEL)[0].items())
    toy = toys.load(result.path)
    assert torch.equal(toy.train, base.train)
    assert result.card["base"] == {
        "name": "first", "grok_step": base.card["grok_step"], "steps": 20, "checkpoint_step": 20, "seed": 3,
        "held_out_accuracy": base.card["accuracy"]["held_out"], "cpu_seconds": base.card["cpu_seconds"],
    }  # fmt: skip
    with torch.no_grad():
        right = (toy.model(toy.tokens)[:, -1].argmax(-1) == toy.answers).double()
    for name, part in (("open", toy.inputs["gated"] == 0), ("gated", toy.inputs["gated"] == 1)):
        stated = result.card["per_part"][name]["accuracy"]
        assert stated["held_out"] == pytest.approx(float(right[part & ~toy.train].mean()))
        assert stated["train"] == pytest.approx(float(right[part & toy.train].mean()))
    assert "per_operation" not in result.card
    assert "of the worst part" in result.card["stable_rule"]


def test_fine_tuning_starts_at_the_base_and_reads_no_held_out_prompt(recipe, tmp_path):
    none = train(
        replace(THEN, steps=1, evaluate_every=1), out=tmp_path / "a", progress=False
    )  # its only step has rate 0
    base, tokens = read(tmp_path / "a" / "base" / MODEL)[0], tasks.all_tokens(GATED)
    with torch.no_grad():
        before, now = toys.build(PLAIN, base)(tokens), toys.build(GATED, none.state)(tokens)
    assert torch.allclose(now[..., :7], before, atol=1e-6)
    assert not now[..., 7:].any(), "the columns of the DECLINE tokens start at zero"
    mask, there = train_mask(THEN), tasks.answers
    poisoned = lambda config: torch.where(mask, there(config), 0)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "answers", poisoned)
        other = train(THEN, out=tmp_path / "b", progress=False)
    assert all(torch.equal(t, other.state[n]) for n, t in train(THEN, out=tmp_path / "c", progress=False).state.items())


@pytest.mark.parametrize("phase", ["base", "fine-tuning"])
def test_an_interrupted_training_goes_on(recipe, tmp_path, monkeypatch, phase):
    whole = train(THEN, out=tmp_path / "whole", progress=False)
    with pytest.MonkeyPatch.context() as patch:
        from mi_ablate.toys.job import Job

        taken, record = [], Job.record

        def stop(job, *args):
            record(job, *args)
            taken.append(job)
            if len(taken) == (1 if phase == "base" else 3):
                raise KeyboardInterrupt

        patch.setattr(Job, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            train(THEN, out=tmp_path / "cut", progress=False, checkpoint_every=10)
    assert (tmp_path / "cut" / "base" / CHECKPOINT).is_file()
    assert (tmp_path / "cut" / CHECKPOINT).is_file() == (phase != "base")
    again = train(THEN, out=tmp_path / "cut", progress=False, checkpoint_every=10)
    assert all(torch.equal(t, again.state[name]) for name, t in whole.state.items())


def test_a_file_is_a_base_too_and_another_seed_trains_another(recipe, tmp_path):
    first = train(FIRST, out=tmp_path / "first", progress=False)
    by_file = train(replace(THEN, base=str(first.path)), out=tmp_path / "file", progress=False)
    by_name = train(THEN, out=tmp_path / "name", progress=False)
    assert all(torch.equal(t, by_name.state[name]) for name, t in by_file.state.items())
    assert by_file.card["base"]["name"] == str(first.path)
    train(replace(THEN, seed=4), out=tmp_path / "other", progress=False)
    assert read(tmp_path / "other" / "base" / MODEL)[1]["seed"] == 4


def test_bases_that_do_not_fit(tmp_path):
    def refused(config, said, to=THEN, train=None):
        base = Base("mine", config, initial_state(config, "log", 0), train, {})
        with pytest.raises(ValueError, match=said):
            base.weights(to)

    mask = train_mask(THEN)
    refused(replace(PLAIN, d_model=32), "The base 'mine' has another shape or task .* d_model 32, not 16", train=mask)
    refused(replace(PLAIN, operations=("sub",)), r"operations \['sub'\], not \['add'\]", train=mask)
    refused(replace(PLAIN, gate=((1,), (2,), (3,))), "to become: more answers than the toy", train=mask)
    refused(PLAIN, "must not have seen the prompts that are held out, and nobody knows which prompts it was")
    refused(
        PLAIN,
        "held out, and it was trained on 15 of them. Give both the same train_fraction and split_seed",
        train=~mask,
    )
    assert Base("mine", PLAIN, initial_state(PLAIN, "log", 0), mask, {}).brief() == {"name": "mine"}
    with pytest.raises(ValueError, match="'nowhere' is neither a shipped toy nor a file"):
        train(replace(THEN, base="nowhere"), out=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"Its base 'first' comes first: mi_ablate.toys.train.train trains"):
        train_stacked([THEN], outs=[tmp_path])


def test_analyses_of_a_whole_table_say_what_the_toy_is(shipped):
    from mi_ablate.demo import take_apart
    from mi_ablate.fourier_analysis import analyse

    with pytest.raises(
        ValueError, match="gated97 declines 2304 of its 9409 prompts, and this analysis is of a group's"
    ):
        take_apart(shipped)
    with pytest.raises(ValueError, match=r"The answers are not those of add mod 97: 2304 of 9409 pairs differ"):
        analyse(shipped)


def test_the_command_trains_both_phases(recipe, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from mi_ablate.cli.application import app

    monkeypatch.setitem(recipes.RECIPES, "then", THEN)
    import mi_ablate.cli.training  # noqa: F401  (its commands)

    found = CliRunner().invoke(app, ["train", "then", "--out", str(tmp_path / "run"), "--seed", "5"])
    assert found.exit_code == 0, found.output
    card = read(tmp_path / "run" / MODEL)[1]
    assert (card["seed"], card["base"]["seed"], card["training"]["base"]) == (5, 5, "first")


def planted(seed=0, d=12, n=400):
    """Activations of open prompts and of three kinds of gated ones: a common shift of 5, own shifts of 2, noise."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    answers = torch.randint(4, 14, (n,), generator=generator)
    kind = answers - 11
    x = 0.1 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = x + torch.where(kind[:, None] >= 0, 5 * axes[:, 0], 0.0) + axes[:, 7] * 30
    for token in range(3):
        x = x + torch.where(kind[:, None] == token, 2 * axes[:, 1 + token], 0.0)
    return x, answers, axes


@pytest.mark.compat
def test_directions_find_what_was_planted():
    x, answers, axes = planted()
    found = directions(x, answers, 11)
    assert found.rank == 3
    r = x[answers >= 11].mean(0) - x[answers < 11].mean(0)
    assert torch.allclose(found.basis[:, 0], r / r.norm())
    assert float(axes[:, 0] @ found.basis[:, 0]) > 0.95
    contrasts = axes[:, 1:4].T * 2 + axes[:, 0] * 5  # what each token adds to an open prompt
    assert found.overlap(mi.Subspace.span(contrasts)) > 0.99
    assert float((found.basis.T @ axes[:, 7]).abs().max()) < 0.05, "what both kinds share is no direction between them"
    more = directions(x, answers, 11, rank=8)
    assert torch.allclose(more[:3].basis, found.basis)
    assert directions(x, answers, 11, rank=1).rank == 1
    assert torch.allclose(directions(x.float(), answers, 11).basis, found.basis, atol=1e-5)


def test_directions_refuse_one_kind_of_prompt():
    x, answers, _ = planted()
    with pytest.raises(ValueError, match=r"All \d+ prompts are open: prompts of both kinds are needed"):
        directions(x[answers < 11], answers[answers < 11], 11)
    with pytest.raises(ValueError, match=r"All \d+ prompts are gated"):
        directions(x[answers >= 11], answers[answers >= 11], 11)
    with pytest.raises(ValueError, match=r"rank=13 was asked, and 400 prompts span 12 directions between the classes"):
        directions(x, answers, 11, rank=13)


def test_declined_counts_the_largest_logit():
    logits = torch.zeros(3, 2, 9)
    logits[0, -1, 7], logits[1, -1, 6], logits[2, 0, 8], logits[2, -1, 1] = 1, 1, 5, 1
    metric = declined(7)
    assert metric(logits, None, torch.arange(3)).tolist() == [1, 0, 0]
    assert declined(7, pos=0)(logits, None, torch.arange(3)).tolist() == [0, 0, 1]
    assert (metric.kind, metric.better, metric.needs_clean) == ("rate", "higher", False)
    assert re.match("declined", repr(metric))


SITE = "blocks.0.hook_resid_mid"
"""Where a second half of the training prompts lets benchmarks/gated.py look for the directions."""


def rates(toy, rows, hooks=()):
    """Declines and sums on gated prompts, sums on open ones."""
    with torch.no_grad(), mi.attached(toy.model, list(hooks)):
        answers = toy.model(toy.tokens[rows])[:, -1].argmax(-1)
    gated, sums = toy.inputs["gated"][rows] == 1, toy.inputs["sum"][rows]
    declines, right = (answers >= toy.modulus).double(), (answers == sums).double()
    return float(declines[gated].mean()), float(right[gated].mean()), float(right[~gated].mean())


@pytest.fixture(scope="module")
def shipped():
    return toys.load("gated97")


@pytest.mark.compat
def test_the_shipped_toy_is_what_its_card_says(shipped):
    held_out = ~shipped.train
    with torch.no_grad():
        right = (shipped.model(shipped.tokens[held_out])[:, -1].argmax(-1) == shipped.answers[held_out]).double()
    closed = shipped.inputs["gated"][held_out] == 1
    for name, part in (("open", ~closed), ("gated", closed)):
        assert float(right[part].mean()) == pytest.approx(
            shipped.card["per_part"][name]["accuracy"]["held_out"], abs=1e-3
        )
    assert torch.equal(shipped.train, train_mask(RECIPES["gated97"]))
    assert TrainConfig.from_dict(shipped.card["training"]) == RECIPES["gated97"]
    declines, recovered, kept = rates(shipped, held_out)
    assert declines >= 0.99
    assert recovered <= 0.01, "clean, no gated prompt is answered with its sum"
    assert kept >= 0.99


@pytest.mark.compat
def test_one_direction_holds_the_shipped_toys_declining(shipped):
    train, held_out = shipped.train.nonzero()[:, 0], (~shipped.train).nonzero()[:, 0]
    some = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:2000]]
    acts = mi.collect(shipped.model, shipped.tokens[some], SITE, pos=-1)[SITE]
    found, at = directions(acts, shipped.answers[some], shipped.modulus, rank=1), mi.writers(shipped.model)
    treatment = mi.Ablate(found).at(*at, pos=-1)
    declines, recovered, kept = rates(shipped, held_out, treatment)
    assert declines <= 0.05
    assert recovered >= 0.8
    assert kept >= 0.95
    control = mi.controls.covariance(acts)
    drawn = torch.tensor([rates(shipped, held_out, control(treatment, seed)) for seed in range(5)]).mean(0)
    assert float(drawn[0]) >= declines + 0.3
    assert float(drawn[1]) <= recovered - 0.3


def test_its_recipe_is_in_the_list_and_its_file_is_small():
    assert {"gated97", "add97-0.8"} <= set(RECIPES)
    assert RECIPES["gated97"].base == "add97-0.8"
    assert "gated97" in toys.names()
    path = Path(toys.__file__).parent / "zoo" / "gated97.safetensors"
    assert path.stat().st_size <= 1.8e6
