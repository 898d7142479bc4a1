"""Stacked training against training one by one, and the weights that a run keeps on its way."""

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mi_ablate import _files
from mi_ablate.toys import evaluation, stepper, tasks
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.forward import last_logits, trained_names
from mi_ablate.toys.kept import file_of, keep, reach
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.stack import ALIGNED, Stack
from mi_ablate.toys.stacked import train_stacked
from mi_ablate.toys.stepper import Stepper, initial_state
from mi_ablate.toys.train import train

SMALL = ToyConfig(modulus=7, operations=("add", "mul"), d_model=16, n_heads=2, d_mlp=24)
RUN = TrainConfig(SMALL, seed=3, steps=70, batch_size=16, evaluate_every=20, train_fraction=0.5)
DIFFERENT = [
    replace(RUN, keep_steps=(20, 60)),
    replace(RUN, seed=4, learning_rate=1e-2, weight_decay=0.1, betas=(0.8, 0.999), warmup_steps=0, split_seed=None),
    replace(RUN, seed=5, steps=40, train_fraction=0.3, init="nanda", weight_decay=0.0, warmup_steps=30),
]
SHAPES = [
    ToyConfig(modulus=7, d_model=24, n_heads=4, d_mlp=20),
    ToyConfig(modulus=5, operations=("mul", "sub", "add"), n_layers=3, d_model=12, n_heads=3, d_mlp=20),
    ToyConfig(modulus=7, n_layers=1, d_model=24, n_heads=1, d_mlp=20, normalization="RMS", act_fn="relu"),
    ToyConfig(modulus=7, layout="a b =", n_layers=1, d_model=24, d_mlp=20, normalization=None, biases="mlp"),
    ToyConfig(modulus=7, layout="a b", d_model=24, d_mlp=20, act_fn="gelu_new", biases="none"),
    ToyConfig(modulus=7, layout="a b =", n_layers=3, d_model=16, d_mlp=20, d_vocab_out=8),
]
QUIET = {"progress": False, "checkpoint_every": 20}


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in float64, where rounding does not grow in a few steps."""
    honest = stepper.initial_state
    monkeypatch.setattr(stepper, "initial_state", lambda *args: {name: t.double() for name, t in honest(*args).items()})


def steppers(settings: Sequence[TrainConfig], dtype: torch.dtype) -> list[Stepper]:
    states = [initial_state(s.config, s.init, s.seed) for s in settings]
    return [Stepper(s, {name: t.to(dtype) for name, t in state.items()}) for s, state in zip(settings, states)]


@pytest.mark.compat
@pytest.mark.parametrize("batch", [1, 40, None])
@pytest.mark.parametrize("config", SHAPES, ids=range(len(SHAPES)))
def test_a_stack_steps_like_its_models_alone(config: ToyConfig, batch: int | None) -> None:
    """Twenty steps with rates, decays, betas and warm-ups of their own; also the second stack of the same steppers."""
    settings = [replace(s, config=config, learning_rate=1e-3, keep_steps=()) for s in DIFFERENT]
    tokens, answers = tasks.all_tokens(config), tasks.answers(config)
    prompts = torch.arange(len(tokens)).expand(20, 3, -1)
    if batch is not None:
        prompts = torch.randint(len(tokens), (20, 3, batch))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        alone, together = steppers(settings, dtype), steppers(settings, dtype)
        first = Stack(together)
        losses = [first.block(tokens, answers, prompts[:11])]
        first.release()
        losses.append(Stack(together).block(tokens, answers, prompts[11:]))
        expected = [[s.step(tokens[i], answers[i]) for s, i in zip(alone, row)] for row in prompts]
        expected = torch.tensor(expected, dtype=dtype)
        torch.testing.assert_close(torch.cat(losses), expected, atol=tolerance, rtol=tolerance)
        for one, other in zip(alone, together):
            assert one.taken == other.taken == 20
            for name, p in one.params.items():
                if dtype == torch.float64 or not name.endswith("b_K"):  # its gradient is rounding alone
                    torch.testing.assert_close(other.params[name], p, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.compat
@pytest.mark.parametrize("config", SHAPES, ids=range(len(SHAPES)))
def test_a_stack_has_the_logits_of_its_models(config: ToyConfig) -> None:
    """On prompts of their own, and all on the same."""
    tokens = tasks.all_tokens(config)
    names = trained_names(config)
    shapes = initial_state(config, "log", 0)
    stack = {name: torch.randn(3, *shapes[name].shape, dtype=torch.float64) * 0.3 for name in names}
    for chosen in (torch.randint(len(tokens), (3, 5)), torch.randint(len(tokens), (3, 60)), torch.arange(40)):
        own = chosen.expand(3, -1)
        expected = [last_logits(config, {n: stack[n][i] for n in names}, tokens[own[i]]) for i in range(3)]
        torch.testing.assert_close(last_logits(config, stack, tokens[chosen]), torch.stack(expected))


def test_a_stack_lends_its_rows() -> None:
    """What reads a stepper sees the stack's numbers; released, the stepper goes on alone as if it had always been."""
    tokens, answers = tasks.all_tokens(SMALL), tasks.answers(SMALL)
    alone, together = steppers(DIFFERENT, torch.float64), steppers(DIFFERENT, torch.float64)
    stack = Stack(together)
    for at, size in stack.places.values():
        assert at % ALIGNED == 0
        assert at + size <= stack.weights.shape[1]
    everything = torch.arange(len(tokens)).expand(5, 3, -1)
    stack.block(tokens, answers, everything)
    for i, one in enumerate(together):
        for name, p in one.params.items():
            assert p.data_ptr() == stack.params[name][i].data_ptr()
    stack.release()
    before = stack.weights.clone()
    for s in alone:
        for _ in range(8):
            s.step(tokens, answers)
    for s in together:
        for _ in range(3):
            s.step(tokens, answers)
    assert torch.equal(stack.weights, before)
    for one, other in zip(alone, together):
        for name, p in one.params.items():
            torch.testing.assert_close(other.params[name], p, atol=1e-10, rtol=0)


class NothingWaits(TorchDispatchMode):
    """Refuse every operation whose result the host would have to wait for on a GPU."""

    waiting = (
        "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "bincount",
        "embedding_dense_backward",
    )  # fmt: skip

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        bools = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name == "index" else []
        if name in self.waiting or bools:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", SHAPES[:4], ids=range(4))
def test_a_block_of_steps_does_not_wait_for_the_device(config: ToyConfig) -> None:
    settings = [replace(s, config=config) for s in DIFFERENT]
    stack, tokens = Stack(steppers(settings, torch.float32)), tasks.all_tokens(config)
    prompts = torch.randint(len(tokens), (4, 3, 16))
    with NothingWaits():
        stack.block(tokens, tasks.answers(config), prompts)
    with pytest.raises(AssertionError, match="nonzero waits"), NothingWaits():
        tokens.nonzero()


@pytest.mark.parametrize("config", SHAPES, ids=range(len(SHAPES)))
def test_a_stack_stays_on_its_device(config: ToyConfig) -> None:
    """On "meta", where a tensor of another device is refused and no value can be read: what a GPU asks of the code."""
    state = initial_state(config, "log", 0)
    several = [Stepper(replace(s, config=config), state, "meta") for s in DIFFERENT]
    tokens, answers = tasks.all_tokens(config).to("meta"), tasks.answers(config).to("meta")
    for members in (several, several[:2]):
        stack = Stack(members)
        losses = stack.block(tokens, answers, torch.zeros(4, len(members), 16, dtype=torch.long, device="meta"))
        assert (losses.device.type, losses.shape) == ("meta", (4, len(members)))
        scored = evaluation.scores(config, stack.params, tokens, answers)
        assert (scored.device.type, scored.shape) == ("meta", (len(members), len(tokens), 2))
        stack.release()
    with pytest.raises(RuntimeError, match="on device cpu"):
        Stack(several).step(tokens[:16].expand(3, -1, -1), answers[:16].expand(3, -1), torch.ones(5, 3, 1))


def compare(alone: Path, together: Path, tolerance: float) -> None:
    """The same files, formats, cards and generators; numbers to the tolerance (b_K's gradient is rounding alone)."""
    names = sorted(path.name for path in alone.iterdir())
    assert names == sorted(path.name for path in together.iterdir())
    for name in names:
        (one, card), (other, same) = (_files.read(folder / name) for folder in (alone, together))
        for key in ("loss", "accuracy", "per_operation", "history"):
            assert nested(same.pop(key, {}), tolerance) == card.pop(key, {})
        assert same.pop("cpu_seconds", 1.0) >= 0
        card.pop("cpu_seconds", None)
        assert same == card
        assert list(one) == list(other)
        for key, t in one.items():
            assert t.dtype == other[key].dtype
            if tolerance < 1e-8 or not key.endswith("b_K"):
                own = 100 * tolerance if key.endswith("b_K") else tolerance
                torch.testing.assert_close(other[key], t, atol=own, rtol=own, msg=f"{name} {key}")


def nested(value: Any, tolerance: float) -> Any:
    if isinstance(value, dict):
        return {key: nested(each, tolerance) for key, each in value.items()}
    if isinstance(value, list):
        return [nested(each, tolerance) for each in value]
    return pytest.approx(value, abs=max(tolerance, 2e-6)) if isinstance(value, float) else value


@pytest.mark.compat
@pytest.mark.parametrize("batch_size", [16, None])
@pytest.mark.usefixtures("double")
def test_every_folder_is_as_train_would_leave_it(tmp_path: Path, batch_size: int | None) -> None:
    configs = [replace(c, batch_size=batch_size) for c in DIFFERENT]
    if batch_size is None:
        configs = [replace(c, train_fraction=0.5) for c in configs]
    outs = [tmp_path / str(i) for i in range(3)]
    results = train_stacked(configs, outs=[outs[0], str(outs[1]), outs[2]], command="same", **QUIET)
    for config, out, result in zip(configs, outs, results):
        train(config, out=tmp_path / "alone" / out.name, command="same", **QUIET)
        compare(tmp_path / "alone" / out.name, out, 1e-10)
        state, card = _files.read(out / "model.safetensors")
        assert (result.path, result.card) == (out / "model.safetensors", card)
        assert all(torch.equal(state[name], t) for name, t in result.state.items())
    assert sorted(path.name for path in outs[0].glob("kept*")) == ["kept-20.safetensors", "kept-60.safetensors"]


@pytest.mark.compat
def test_every_folder_is_so_in_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [replace(c, learning_rate=1e-3) for c in DIFFERENT]
    train_stacked(configs, outs=[tmp_path / str(i) for i in range(3)], checkpoint_every=20, command="same")
    assert "180/180" in capsys.readouterr().err
    for i, config in enumerate(configs):
        train(config, out=tmp_path / "alone" / str(i), command="same", **QUIET)
        compare(tmp_path / "alone" / str(i), tmp_path / str(i), 1e-4)


@pytest.mark.usefixtures("double")
def test_either_engine_goes_on_from_the_others_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model 0 starts alone and stops at 40, 1 stops at 20, 2 is fresh; together they stop; each ends in either."""
    configs = [replace(c, steps=70) for c in DIFFERENT]
    outs = [tmp_path / str(i) for i in range(3)]
    for i, at in ((0, 45), (1, 25)):
        with monkeypatch.context() as patch:
            interrupted(patch, Stepper, lambda s, at=at: s.taken == at)
            with pytest.raises(KeyboardInterrupt):
                train(configs[i], out=outs[i], **QUIET)
    with monkeypatch.context() as patch:
        steps: list[int] = []
        interrupted(patch, Stack, lambda s: steps.append(1) or len(steps) == 35)
        with pytest.raises(KeyboardInterrupt):
            train_stacked(configs, outs=outs, **QUIET)
    at = [_files.read(out / "checkpoint.safetensors")[1]["step"] for out in outs]
    assert at == [70, 40, 20]
    train(configs[1], out=outs[1], command="same", **QUIET)
    train_stacked(configs, outs=outs, command="same", **QUIET)
    for config, out in zip(configs, outs):
        train(config, out=tmp_path / "alone" / out.name, command="same", **QUIET)
        compare(tmp_path / "alone" / out.name, out, 1e-10)


def interrupted(patch: pytest.MonkeyPatch, cls: type, when: Callable[[Any], bool]) -> None:
    honest = cls.step

    def step(self: Any, *args: Tensor) -> Tensor:
        if when(self):
            raise KeyboardInterrupt
        return honest(self, *args)

    patch.setattr(cls, "step", step)


def test_an_interrupted_stack_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: [tmp_path / name / str(i) for i in range(3)] for name in ("whole", "parts")}
    train_stacked(DIFFERENT, outs=folders["whole"], **QUIET)
    with monkeypatch.context() as patch:
        interrupted(patch, Stack, lambda s: s.steppers[0].taken == 20)
        with pytest.raises(KeyboardInterrupt):
            train_stacked(DIFFERENT, outs=folders["parts"], **QUIET)
    train_stacked(DIFFERENT, outs=folders["parts"], **QUIET)
    for whole, parts in zip(*folders.values()):
        for path in whole.iterdir():
            state, again = _files.read(path)[0], _files.read(parts / path.name)[0]
            assert all(torch.equal(t, again[name]) for name, t in state.items())


@pytest.mark.usefixtures("double")
def test_a_model_may_stop_early_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "STABLE", 0.0)
    configs = [RUN, replace(RUN, stop_when_stable_for=30, keep_steps=(20, 70))]
    early = train_stacked(configs, outs=[tmp_path / "a", tmp_path / "b"], command="same", **QUIET)
    assert [result.card["steps"] for result in early] == [70, 40]
    assert not file_of(tmp_path / "b", 70).exists()
    for name, config in zip("ab", configs):
        train(config, out=tmp_path / "alone" / name, command="same", **QUIET)
        compare(tmp_path / "alone" / name, tmp_path / name, 1e-10)


@pytest.mark.usefixtures("double")
def test_a_model_that_bursts_leaves_the_others_alone(tmp_path: Path) -> None:
    configs = [RUN, replace(RUN, learning_rate=1e300, warmup_steps=25), replace(RUN, seed=9)]
    outs = [tmp_path / name for name in ("good", "bad", "well")]
    message = r"^1 of 3 models failed, the others are trained. \S+bad: The loss was not finite at step \d+: lower "
    with pytest.raises(
        FloatingPointError, match=message + r"learning_rate \(1e\+300\) or take more warmup_steps \(25\)"
    ):
        train_stacked(configs, outs=outs, command="same", **QUIET)
    assert not (tmp_path / "bad" / "model.safetensors").exists()
    with pytest.raises(FloatingPointError, match="not finite at step"):
        train(configs[1], out=tmp_path / "alone" / "bad", **QUIET)
    for i in (0, 2):
        train(configs[i], out=tmp_path / "alone" / outs[i].name, command="same", **QUIET)
        compare(tmp_path / "alone" / outs[i].name, outs[i], 1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": replace(SMALL, d_mlp=32)}, r"^d_mlp is 24 and 32, but a stack has one: \S+ runs them one by one"),
        ({"config": replace(SMALL, modulus=11)}, "^modulus is 7 and 11, but"),
        ({"batch_size": 17}, "^batch_size is 16 and 17, but"),
        ({"batch_size": None}, "^batch_size is 16 and None, but"),
        ({"evaluate_every": 10}, "^evaluate_every is 20 and 10, but"),
    ],
)
def test_models_that_do_not_stack_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_stacked([RUN, replace(RUN, **change)], outs=[tmp_path / "a", tmp_path / "b"], **QUIET)
    assert not list(tmp_path.iterdir())


def test_folders_and_devices_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [replace(RUN, batch_size=None), replace(RUN, batch_size=None, train_fraction=0.3)]
    with pytest.raises(
        ValueError, match=r"train_fraction is 0.5 and 0.3, but with batch_size None .* must have one size"
    ):
        train_stacked(whole, outs=[tmp_path / "a", tmp_path / "b"], **QUIET)
    with pytest.raises(ValueError, match=r"^Two models would write to the same folder \S+a; give each its own"):
        train_stacked([RUN, RUN], outs=[tmp_path / "a", tmp_path / "b" / ".." / "a"], **QUIET)
    with pytest.raises(ValueError, match=r"^2 models need as many folders in outs, not 1\.$"):
        train_stacked([RUN, RUN], outs=[tmp_path / "a"], **QUIET)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no CUDA device"):
        train_stacked([RUN], outs=[tmp_path / "a"], device="cuda", **QUIET)
    assert train_stacked([], outs=[], **QUIET) == []
    assert not list(tmp_path.iterdir())


def full_disk(patch: pytest.MonkeyPatch, name: str, nth: int) -> None:
    """The nth time that a file of this name is written there is no room."""
    honest, seen = _files.replace, []

    def replace_(path: str | Path, body: bytes) -> Path:
        def fsync(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if Path(path).name == name and (seen.append(1) or len(seen) == nth):
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(_files.os, "fsync", fsync)
                return honest(path, body)
        return honest(path, body)

    patch.setattr(_files, "replace", replace_)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    ("name", "nth", "message"),
    [
        (
            "checkpoint.safetensors",
            1,
            r"Step 20 could not .*No space left.*of checkpoints, none is there yet. Make room",
        ),
        (
            "checkpoint.safetensors",
            3,
            r"Step 60 could not .*; of checkpoints, that of step 40 is still there. Make room",
        ),
        ("kept-60.safetensors", 1, r"Step 60 could not .*; of checkpoints, that of step 40 is still there. Make room"),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stacked: bool, name: str, nth: int, message: str
) -> None:
    def go(out: Path) -> Any:
        if stacked:
            return train_stacked([DIFFERENT[0]], outs=[out], **QUIET)[0]
        return train(DIFFERENT[0], out=out, **QUIET)

    with monkeypatch.context() as patch:
        full_disk(patch, name, nth)
        with pytest.raises(OSError, match=message) as caught:
            go(tmp_path / "full")
    assert caught.value.errno == errno.ENOSPC
    assert not list((tmp_path / "full").glob(".*"))
    assert (tmp_path / "full" / "checkpoint.safetensors").exists() == (nth == 3 or name.startswith("kept"))
    state = go(tmp_path / "full").state
    assert all(torch.equal(t, state[key]) for key, t in go(tmp_path / "whole").state.items())


def nearest(targets: tuple[int, ...], target: int, stable: list[int]) -> tuple[int, bool]:
    """The rule in other words: of the stable steps within reach the nearest, of two the earlier, or the step itself."""
    inside = [s for s in stable if abs(s - target) <= reach(targets, target)]
    return (min(inside, key=lambda s: (abs(s - target), s)), True) if inside else (target, False)


@pytest.mark.parametrize("targets", [(30,), (100,), (30, 50, 60), (10, 40, 100), (100, 10), (50, 50)])
def test_the_nearest_stable_step_is_kept(tmp_path: Path, targets: tuple[int, ...]) -> None:
    config = replace(RUN, steps=100, evaluate_every=10, keep_steps=targets)
    draw = random.Random(0)
    for trial in range(10):
        out, stable, share = tmp_path / str(trial), [], draw.choice((0.1, 0.3, 0.8))
        run = stepper.Run(Stepper(RUN, initial_state(SMALL, "log", 0)), torch.Generator())
        for step in range(10, 101, 10):
            state = {"step": torch.tensor(float(step))}
            run.step, run.stepper.state = step, lambda state=state: state
            is_stable = draw.random() < share
            keep(config, out, run, is_stable)
            if is_stable:
                run.stable_step, run.stable_state = step, state
                stable.append(step)
        assert len(list(out.iterdir())) == len(set(targets))
        for target in targets:
            state, card = _files.read(file_of(out, target))
            assert (card["step"], card["stable"]) == nearest(targets, target, stable)
            assert (int(state["step"]), card["target"]) == (card["step"], target)
            assert TrainConfig.from_dict(card["training"]) == config


def fake_accuracy(patch: pytest.MonkeyPatch, good: Sequence[int]) -> None:
    honest = evaluation.Data.row_of

    def row_of(self: Any, step: int, *sums: Tensor) -> list[int | float]:
        fake = 1.0 if step in good else 0.5
        return [*honest(self, step, *sums)[:4], fake, fake, fake]

    patch.setattr(evaluation.Data, "row_of", row_of)


@pytest.mark.parametrize("stacked", [False, True])
def test_kept_weights_are_those_of_their_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stacked: bool) -> None:
    """Targets 20 (30 is stable and near), 50 (40 too), 90 (nothing near), 120 (the last step, 110 is stable)."""
    good = (30, 40, 110)
    config = replace(RUN, steps=120, evaluate_every=10, stable_steps=1, keep_steps=(20, 50, 90, 120))

    def go(out: Path) -> None:
        if stacked:
            train_stacked([config, replace(config, seed=8)], outs=[out, out / "other"], **QUIET)
        else:
            train(config, out=out, **QUIET)

    fake_accuracy(monkeypatch, good)
    go(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupted(patch, Stack if stacked else Stepper, steps_taken(75, stacked))
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "parts")
    file_of(tmp_path / "parts", 20).unlink()  # a file that somebody moved away is not asked for
    go(tmp_path / "parts")
    assert not file_of(tmp_path / "parts", 20).exists()
    found = {}
    for target in config.keep_steps:
        state, card = _files.read(file_of(tmp_path / "whole", target))
        found[target] = (card["step"], card["stable"])
        if target > 20:
            again, same = _files.read(file_of(tmp_path / "parts", target))
            assert card == same
            assert all(torch.equal(t, again[name]) for name, t in state.items())
        train(replace(config, steps=card["step"], keep_steps=()), out=tmp_path / f"to{target}", **QUIET)
        short = _files.read(tmp_path / f"to{target}" / "checkpoint.safetensors")[0]
        torch.testing.assert_close(short["params/embed.W_E"], state["embed.W_E"], atol=1e-5, rtol=0)
    assert found == {20: (30, True), 50: (40, True), 90: (90, False), 120: (110, True)}


def steps_taken(at: int, stacked: bool) -> Callable[[Any], bool]:
    seen: list[int] = []
    return lambda s: (seen.append(1) or len(seen) == at) if stacked else s.taken == at


@pytest.mark.parametrize("stacked", [False, True])
def test_a_finished_folder_run_again_changes_nothing(tmp_path: Path, stacked: bool) -> None:
    def go() -> dict[str, bytes]:
        if stacked:
            train_stacked([DIFFERENT[0]], outs=[tmp_path], command="same", **QUIET)
        else:
            train(DIFFERENT[0], out=tmp_path, command="same", **QUIET)
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    first = go()
    assert set(first) == {f"{n}.safetensors" for n in ("checkpoint", "model", "kept-20", "kept-60")}
    assert go() == first


@pytest.mark.parametrize("steps", [(15,), (0,), (20, 80), (-20,), (70, 75)])
def test_kept_steps_must_be_evaluated(steps: tuple[int, ...]) -> None:
    wrong = [k for k in steps if k not in (20, 40, 60, 70)]
    with pytest.raises(
        ValueError, match=r"keep_steps .* must be evaluated steps: multiples of evaluate_every \(20\)"
    ) as e:
        replace(RUN, keep_steps=steps)
    assert f"keep_steps {wrong} must" in str(e.value)
    assert "up to steps (70)" in str(e.value)
    loaded = TrainConfig.from_dict({**RUN.to_dict(), "keep_steps": [20, 70]})
    assert loaded == replace(RUN, keep_steps=(20, 70))


def test_a_split_of_none_follows_the_seed() -> None:
    masks = {seed: evaluation.train_mask(replace(RUN, seed=seed, split_seed=None)) for seed in (0, 1)}
    assert not torch.equal(masks[0], masks[1])
    for seed, mask in masks.items():
        assert torch.equal(mask, evaluation.train_mask(replace(RUN, seed=5, split_seed=seed)))


def test_a_checkpoint_from_before_a_setting_was_added_goes_on(tmp_path: Path) -> None:
    """It counts as made with the setting's default."""
    train(replace(RUN, steps=20), out=tmp_path, **QUIET)
    tensors, card = _files.read(tmp_path / "checkpoint.safetensors")
    for name in ("stable_steps", "keep_steps"):
        del card["training"][name]
    _files.write(tmp_path / "checkpoint.safetensors", tensors, card)
    with pytest.raises(ValueError, match="made with stable_steps = 1000, not 300"):
        train(replace(RUN, steps=20, stable_steps=300), out=tmp_path, **QUIET)
    assert train(replace(RUN, steps=20), out=tmp_path, **QUIET).card["steps"] == 20
