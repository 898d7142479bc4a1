"""The trainer: its forward pass against HookedTransformer, exact resumption, recipes and their errors."""

import importlib.util
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mi_ablate import _files
from mi_ablate.toys import evaluation, recipes, stepper, tasks
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.forward import is_bias, last_logits, parameter_shapes, trained_names
from mi_ablate.toys.recipes import RECIPES, TrainConfig, load_recipe
from mi_ablate.toys.train import main, train
from mi_ablate.toys.transformer import build

SMALL = ToyConfig(modulus=7, operations=("add", "mul"), d_model=16, n_heads=2, d_mlp=24)
RUN = TrainConfig(SMALL, seed=3, steps=130, batch_size=16, evaluate_every=20, train_fraction=0.5)
CONFIGS = [
    ToyConfig(modulus=7, d_model=24, n_heads=4, d_mlp=20),
    ToyConfig(modulus=7, operations=("add", "mul"), d_model=24, n_heads=2, d_mlp=20, act_fn="gelu_new"),
    ToyConfig(modulus=5, operations=("mul", "sub", "add"), n_layers=3, d_model=12, n_heads=3, d_mlp=20),
    ToyConfig(modulus=7, n_layers=1, d_model=24, n_heads=1, d_mlp=20, normalization="RMS", act_fn="relu"),
    ToyConfig(modulus=7, layout="a b =", n_layers=1, d_model=24, d_mlp=20, normalization=None, biases="mlp"),
    ToyConfig(modulus=7, layout="a b =", n_layers=3, d_model=8, d_mlp=20, normalization="RMS", biases="none"),
    ToyConfig(modulus=7, layout="a b", n_layers=2, d_model=24, d_mlp=20, act_fn="relu", biases="none"),
    ToyConfig(modulus=7, layout="a b =", d_model=16, d_mlp=20, d_vocab_out=8, normalization=None),
]


def hooked(config: ToyConfig, dtype: torch.dtype) -> Any:
    """A HookedTransformer with random weights everywhere, biases that are not trained left at zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from transformer_lens import HookedTransformer, HookedTransformerConfig
        except ImportError:
            pytest.skip("this TransformerLens has no HookedTransformer to compare with")
        shape = HookedTransformerConfig(
            n_layers=config.n_layers, d_model=config.d_model, n_heads=config.n_heads, d_head=config.d_head,
            d_mlp=config.d_mlp, n_ctx=config.n_ctx, d_vocab=config.d_vocab, d_vocab_out=config.n_answers,
            act_fn=config.act_fn, normalization_type=config.normalization, device="cpu", dtype=dtype,
        )  # fmt: skip
        model = HookedTransformer(shape).to(dtype)
    trained = trained_names(config)
    for name, p in model.named_parameters():
        p.data.normal_(std=0.3) if name in trained else p.data.zero_()
    return model


@pytest.mark.compat
@pytest.mark.parametrize("batch", [1, 6, 40, None])
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_loss_and_gradients_are_hooked_transformers(config: ToyConfig, batch: int | None) -> None:
    tokens, answers = tasks.all_tokens(config), tasks.answers(config)
    chosen = torch.arange(len(tokens)) if batch is None else torch.randint(len(tokens), (batch,))
    tokens, answers = tokens[chosen], answers[chosen]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = hooked(config, dtype)
        assert {name: tuple(p.shape) for name, p in model.named_parameters()} == parameter_shapes(config)
        expected = F.cross_entropy(model(tokens)[:, -1], answers)
        expected.backward()
        state = dict(model.named_parameters())
        params = {name: state[name].detach().clone().requires_grad_() for name in trained_names(config)}
        loss = F.cross_entropy(last_logits(config, params, tokens), answers)
        loss.backward()
        size = max(1.0, max(float(p.grad.abs().max()) for p in state.values() if p.grad is not None))
        torch.testing.assert_close(loss, expected, atol=tolerance, rtol=tolerance)
        for name, p in params.items():
            torch.testing.assert_close(p.grad, state[name].grad, atol=tolerance * size, rtol=0, msg=name)


@pytest.mark.compat
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_logits_are_those_of_the_model_that_is_built(config: ToyConfig) -> None:
    """On every TransformerLens version, also where there is no HookedTransformer."""
    state = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    state |= {name: torch.randn(state[name].shape) * 0.3 for name in trained_names(config)}
    tokens = tasks.all_tokens(config)
    expected = build(config, state)(tokens)[:, -1]
    params = {name: state[name] for name in trained_names(config)}
    torch.testing.assert_close(last_logits(config, params, tokens), expected, atol=1e-4, rtol=1e-4)


def test_a_wrong_gradient_would_be_seen() -> None:
    """The comparison above is sharp: tokens of one prompt changed, and gradients differ."""
    config = CONFIGS[0]
    state = stepper.initial_state(config, "nanda", 0)
    grads = []
    for b in (3, 4):
        params = {name: state[name].double().requires_grad_() for name in trained_names(config)}
        tokens = tasks.all_tokens(config)[:40]
        tokens[0, 2] = b
        F.cross_entropy(last_logits(config, params, tokens), tasks.answers(config)[:40]).backward()
        grads.append(params["blocks.0.attn.W_K"].grad)
    assert (grads[0] - grads[1]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "bidirectional"}, "needs attention='causal'"),
        ({"attention_coefficient": 0.5}, "use 1.0"),
        ({"act_fn": "swish"}, "use one of"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], message: str) -> None:
    config = replace(SMALL, **change)
    with pytest.raises(ValueError, match=message):
        last_logits(config, stepper.initial_state(config, "log", 0), tasks.all_tokens(config))
    with pytest.raises(ValueError, match=message):
        TrainConfig(config)


def test_forward_imports_no_transformer_lens() -> None:
    code = "import sys, mi_ablate.toys.train; sys.exit('transformer_lens' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_initial_weights_have_the_stated_scale() -> None:
    config = RECIPES["nanda113"].config
    log, nanda = (stepper.initial_state(config, init, seed=0) for init in ("log", "nanda"))
    for name, shape in parameter_shapes(config).items():
        assert log[name].shape == nanda[name].shape == shape
        if is_bias(name):
            assert not log[name].any()
            assert not nanda[name].any()
        else:
            width = 114 if name == "unembed.W_U" else 128
            assert float(log[name].std()) == pytest.approx(0.5 / 128**0.5, rel=0.08)
            assert float(nanda[name].std()) == pytest.approx(width**-0.5, rel=0.08)
    assert torch.equal(log["embed.W_E"], stepper.initial_state(config, "log", 0)["embed.W_E"])
    norms = stepper.initial_state(SMALL, "log", 0)
    assert bool((norms["ln_final.w"] == 1).all())
    with pytest.raises(ValueError, match="init 'kaiming' must be one of"):
        stepper.initial_state(config, "kaiming", 0)


def test_warm_up_starts_at_rate_zero() -> None:
    settings = replace(RUN, warmup_steps=4, learning_rate=0.5)
    state = stepper.initial_state(SMALL, "log", 0)
    run = stepper.Stepper(settings, state)
    rates = []
    for _ in range(6):
        run.step(tasks.all_tokens(SMALL)[:9], tasks.answers(SMALL)[:9])
        rates.append(run.optimizer.param_groups[0]["lr"])
        if len(rates) == 1:
            assert all(torch.equal(run.params[name], state[name]) for name in run.params)
    assert rates == [0, 0.125, 0.25, 0.375, 0.5, 0.5]


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    step = stepper.Stepper.step

    def stop(self: Any, *batch: Tensor) -> Tensor:
        if self.taken == at:
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(stepper.Stepper, "step", stop)


@pytest.mark.parametrize("batch_size", [16, None])
def test_an_interrupted_run_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int | None
) -> None:
    settings = replace(RUN, batch_size=batch_size)
    whole = train(settings, out=tmp_path / "whole", progress=False, checkpoint_every=40)
    with monkeypatch.context() as patch:
        interrupted(patch, at=95)
        with pytest.raises(KeyboardInterrupt):
            train(settings, out=tmp_path / "parts", progress=False, checkpoint_every=40)
    assert _files.read(tmp_path / "parts" / "checkpoint.safetensors")[1]["step"] == 80
    parts = train(settings, out=tmp_path / "parts", progress=False, checkpoint_every=40)
    assert all(torch.equal(whole.state[name], parts.state[name]) for name in whole.state)
    files = [_files.read(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(t, files[1][0][name]) for name, t in files[0][0].items())
    cards = [{k: v for k, v in run.card.items() if k != "cpu_seconds"} for run in (whole, parts)]
    assert cards[0] == cards[1]
    assert not list((tmp_path / "parts").glob(".*"))


def test_resumption_refuses_another_configuration(tmp_path: Path) -> None:
    settings = replace(RUN, steps=20)
    train(settings, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"seed = 3, not 4; use another folder, or resume=False"):
        train(replace(settings, seed=4), out=tmp_path, progress=False)
    assert train(replace(settings, seed=4), out=tmp_path, progress=False, resume=False).card["seed"] == 4
    _files.write(tmp_path / "checkpoint.safetensors", {"x": torch.zeros(1)}, {"format": "other"})
    with pytest.raises(_files.ArtefactError, match="no training checkpoint"):
        train(settings, out=tmp_path, progress=False)


def test_the_model_file_says_how_it_was_made(tmp_path: Path) -> None:
    result = train(RUN, out=tmp_path, progress=False, command="mi-ablate train small")
    state, card = _files.read(result.path)
    assert {name: tuple(t.shape) for name, t in state.items()} == parameter_shapes(SMALL)
    assert all(t.dtype == torch.float32 for t in state.values())
    assert card == result.card
    assert card["format"] == "mi_ablate toy 1"
    assert card["config"] == card["training"]["config"] == SMALL.to_dict()
    assert TrainConfig.from_dict(card["training"]) == RUN
    assert (card["stable"], card["checkpoint_step"], card["steps"]) == (False, 130, 130)
    assert (card["seed"], card["device"], card["command"]) == (3, "cpu", "mi-ablate train small")
    assert [row[0] for row in card["history"]] == [0, 20, 40, 60, 80, 100, 120, 130]
    mask = tasks.unpack_mask(card["train_mask"], tasks.n_prompts(SMALL))
    assert torch.equal(mask, tasks.split(SMALL, 0.5, 0))
    logits = last_logits(SMALL, state, tasks.all_tokens(SMALL))
    right = (logits.argmax(-1) == tasks.answers(SMALL)).double()
    accuracy = {"train": right[mask].mean(), "held_out": right[~mask].mean(), "all": right.mean()}
    assert card["accuracy"] == pytest.approx({k: float(v) for k, v in accuracy.items()})
    assert card["per_operation"]["mul"]["accuracy"]["all"] == pytest.approx(float(right[49:].mean()))
    loss = F.cross_entropy(logits[mask], tasks.answers(SMALL)[mask])
    assert card["loss"]["train"] == pytest.approx(float(loss), rel=1e-5)
    assert card["history"][-1][1:3] == pytest.approx([card["loss"]["train"], card["accuracy"]["train"]], abs=1e-6)


@pytest.mark.parametrize("biases", ["mlp", "none"])
def test_biases_that_are_not_trained_stay_zero(tmp_path: Path, biases: str) -> None:
    settings = replace(RUN, config=replace(SMALL, biases=biases), steps=20)
    state = train(settings, out=tmp_path, progress=False).state
    for name, tensor in state.items():
        if is_bias(name):
            assert bool(tensor.any()) == (biases == "mlp" and ".mlp." in name), name


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = stepper.Stepper.step

    def spoil(self: Any, *batch: Tensor) -> Tensor:
        if self.taken == 47:
            self.params["embed.W_E"].data[0] = float("nan")
        return step(self, *batch)

    monkeypatch.setattr(stepper.Stepper, "step", spoil)
    with pytest.raises(FloatingPointError, match=r"step 4[78]: lower learning_rate \(0.001\).*is from before it"):
        train(RUN, out=tmp_path, progress=False, checkpoint_every=20)
    assert _files.read(tmp_path / "checkpoint.safetensors")[1]["step"] == 40


def test_weights_that_burst_in_the_last_step_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = stepper.Stepper.step

    def spoil(self: Any, *batch: Tensor) -> Tensor:
        loss = step(self, *batch)
        if self.taken == 20:
            self.params["embed.W_E"].data[0] = float("inf")
        return loss

    monkeypatch.setattr(stepper.Stepper, "step", spoil)
    with pytest.raises(FloatingPointError, match="not finite at step 20"):
        train(RUN, out=tmp_path, progress=False)
    assert not (tmp_path / "model.safetensors").exists()


def rows(*accuracies: float) -> list[list[int | float]]:
    return [[100 * i, 0.0, 1.0, 0.0, a, a] for i, a in enumerate(accuracies)]


def test_stable_needs_a_thousand_steps() -> None:
    assert not evaluation.stable(rows(*[1.0] * 10), 1000)
    assert evaluation.stable(rows(0.0, *[1.0] * 10), 1000)
    assert not evaluation.stable(rows(0.0, *[1.0] * 9, 0.98), 1000)
    assert not evaluation.stable(rows(0.0, 0.98, *[1.0] * 9), 1000)
    two = [[*row, 0.5] for row in rows(0.0, *[1.0] * 10)]
    assert not evaluation.stable(two, 1000)
    wanting = replace(RUN, stop_when_stable_for=2000)
    assert not evaluation.finished(wanting, rows(0.0, *[1.0] * 19))
    assert evaluation.finished(wanting, rows(0.0, *[1.0] * 20))
    assert not evaluation.finished(RUN, rows(0.0, *[1.0] * 100))


def test_the_latest_stable_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = evaluation.Data.row

    def row(self: Any, step: int, params: Any) -> list[float]:
        fake = 1.0 if step <= 1100 else 0.5
        return [*honest(self, step, params)[:4], fake, fake, fake]

    monkeypatch.setattr(evaluation.Data, "row", row)
    tiny = replace(SMALL, modulus=3, n_layers=1, d_model=8)
    settings = replace(RUN, config=tiny, steps=1300, evaluate_every=100, batch_size=4)
    result = train(settings, out=tmp_path, progress=False)
    assert (result.card["stable"], result.card["checkpoint_step"], result.card["grok_step"]) == (
        True,
        1100,
        0,
    )
    short = train(replace(settings, steps=1100), out=tmp_path / "short", progress=False)
    assert all(torch.equal(result.state[name], short.state[name]) for name in short.state)


def test_a_missing_gpu_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"finds no CUDA device; use device='cpu'"):
        train(RUN, out=tmp_path, device="cuda", progress=False)


def test_recipes_survive_json() -> None:
    assert {"add97", "add97-wd0.1", "addmul97", "nanda113"} <= set(RECIPES)
    for name, recipe in RECIPES.items():
        assert load_recipe(name) is recipe
        assert TrainConfig.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_recipe_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"config": {"modulus": 11}, "steps": 7}))
    assert load_recipe(path) == TrainConfig(ToyConfig(modulus=11), steps=7)
    toml = tmp_path / "mine.toml"
    toml.write_text("steps = 7\n[config]\nmodulus = 11\n")
    if importlib.util.find_spec("tomllib"):
        assert load_recipe(str(toml)) == load_recipe(path)
    else:
        with pytest.raises(ValueError, match="write the same keys as JSON"):
            load_recipe(toml)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"config": {"modulus": 11}, "step": 7}', "'step' is no training setting. Nearest names: steps"),
        ('{"config": {"moduls": 11}}', "'moduls' is no model setting. Nearest names: modulus"),
        ('{"steps": 7}', "names no modulus"),
        ('{"steps": ', "cannot be read"),
        ("[1]", "holds a list, not an object"),
        ('{"config": {"modulus": 11}, "steps": 0}', "steps 0 must be at least 1"),
        ('{"config": {"modulus": 11}, "train_fraction": 1.0}', "between 0 and 1, so that pairs are held out"),
        ('{"config": {"modulus": 11}, "init": "zeros"}', "init 'zeros' must be one of"),
    ],
)
def test_recipe_errors_name_what_to_type(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_unknown_recipes_get_the_nearest_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no recipe 'add79'. Nearest names: add97"):
        load_recipe("add79")
    with pytest.raises(ValueError, match=r"no file .*none.json. The recipes are add97"):
        load_recipe(tmp_path / "none.json")


def test_the_module_runs_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(recipes.RECIPES, "small", replace(RUN, steps=20))
    main(["small", "--out", str(tmp_path / "out")])
    assert "model.safetensors: held-out accuracy" in capsys.readouterr().out
    assert _files.read(tmp_path / "out" / "model.safetensors")[1]["command"] == "mi-ablate train small"
