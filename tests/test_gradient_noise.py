"""The gradient noise scale: planted covariances, the paper's identities, and the trainer's own loss."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate.toys import tasks
from mi_ablate.toys.config import ToyConfig
from mi_ablate.toys.evaluation import Data, train_mask
from mi_ablate.toys.example_gradients import squared_lengths
from mi_ablate.toys.forward import trained_names
from mi_ablate.toys.gradient_noise import (
    GradientNoise,
    estimated_noise,
    float32_error,
    gradient_noise,
    squared_length,
    toy_noise,
    training_loss,
)
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.stepper import Stepper, initial_state

SETTINGS = TrainConfig(
    ToyConfig(5, n_layers=1, d_model=8, n_heads=2, d_mlp=8), train_fraction=0.5, batch_size=None, warmup_steps=0
)


def planted(gradients: Tensor):
    """A loss whose gradient at every point is, for example i, row i: linear in the weights, which are split in two."""

    def loss(params, rows):
        return (gradients[rows].mean(0) * torch.cat((params["a"], params["b"]))).sum()

    d = gradients.shape[1]
    return loss, {"a": torch.zeros(1, dtype=torch.float64), "b": torch.ones(d - 1, dtype=torch.float64)}, len(gradients)


@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 2**16), st.floats(0, 5))
@settings(max_examples=25, deadline=None)
def test_planted_covariances_are_found(n: int, d: int, seed: int, spread: float) -> None:
    drawn = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    noise = spread * (drawn - drawn.mean(0))
    mean = torch.arange(1.0, d + 1, dtype=torch.float64)
    found = gradient_noise(*planted(mean + noise))
    sigma = noise.T @ noise / n
    assert found.squared_length == pytest.approx(float(mean @ mean))
    assert found.trace == pytest.approx(float(sigma.trace()), abs=1e-9)
    assert found.scale == pytest.approx(float(sigma.trace() / (mean @ mean)), abs=1e-9)


def test_linear_regression_has_the_covariance_that_is_on_paper() -> None:
    """y = x w + e at the true w: g_i = -2 e_i x_i, whose mean is zero only over infinitely many examples."""
    generator = torch.Generator().manual_seed(0)
    x, e = (torch.randn(400, k, dtype=torch.float64, generator=generator) for k in (3, 1))
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    y = x @ w + e[:, 0]

    def loss(params, rows):
        return (x[rows] @ params["w"] - y[rows]).square().mean()

    found = gradient_noise(loss, {"w": w}, 400)
    gradients = -2 * e * x
    assert found.trace == pytest.approx(float(gradients.var(0, unbiased=False).sum()))
    assert found.scale > 50  # at the minimum of the population nearly all is noise
    away = gradient_noise(loss, {"w": w + 5}, 400)
    assert away.scale < 20  # and far from it little


def test_a_batch_drawn_with_replacement_has_the_length_that_the_two_parts_say() -> None:
    gradients = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    task = planted(gradients)
    found = gradient_noise(*task)
    for size in (1, 2, 3):
        lengths = [squared_length(*task[:2], torch.tensor(rows)) for rows in itertools.product(range(4), repeat=size)]
        mean = sum(lengths) / len(lengths)
        assert mean == pytest.approx(found.squared_length + found.trace / size)
        assert found.share(size) == pytest.approx(1 - found.squared_length / mean)


def test_two_batch_sizes_estimate_what_all_examples_give() -> None:
    generator = torch.Generator().manual_seed(2)
    task = planted(1 + torch.randn(50, 4, dtype=torch.float64, generator=generator))
    exact, seen = gradient_noise(*task), estimated_noise(*task, sizes=(2, 30), draws=800)
    assert seen.trace == pytest.approx(exact.trace, rel=0.15)
    assert seen.squared_length == pytest.approx(exact.squared_length, rel=0.1)
    assert estimated_noise(*task, draws=3) == estimated_noise(*task, draws=3) != estimated_noise(*task, draws=3, seed=1)
    with pytest.raises(ValueError, match="must be a small batch and a larger one"):
        estimated_noise(*task, sizes=(64, 64))


def test_no_noise_and_no_signal() -> None:
    same = gradient_noise(*planted(torch.ones(5, 3, dtype=torch.float64)))
    assert (same.trace, same.scale, same.share(1)) == (0.0, 0.0, 0.0)
    opposite = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    lost = gradient_noise(*planted(opposite))
    assert (lost.squared_length, lost.trace, lost.scale, lost.share(512)) == (0.0, 5.0, float("inf"), 1.0)
    assert GradientNoise(0.0, 0.0).share(4) == 0.0


@pytest.mark.compat
def test_a_toys_mean_gradient_is_the_trainers() -> None:
    """A full-batch step hands the optimiser G; its examples' gradients are those of batches of one."""
    state = initial_state(SETTINGS.config, "log", 0)
    loss, params, examples = training_loss(SETTINGS, state)
    assert examples == 12
    assert sorted(params) == sorted(trained_names(SETTINGS.config))
    found = gradient_noise(loss, params, examples)
    everything = torch.arange(examples)
    assert found.squared_length == pytest.approx(squared_length(loss, params, everything))

    data, stepper = Data(SETTINGS, "cpu"), Stepper(SETTINGS, state)
    before = stepper.step(data.train_tokens, data.train_answers)
    taught = sum(float(p.grad.double().square().sum()) for p in stepper.params.values() if p.grad is not None)
    assert taught == pytest.approx(found.squared_length, rel=1e-4)
    assert float(before) == pytest.approx(float(loss(params, everything)), rel=1e-5)
    alone = [squared_length(loss, params, torch.tensor([i])) for i in range(examples)]
    assert found.trace == pytest.approx(sum(alone) / examples - found.squared_length)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_layers": 2, "operations": ("add", "mul"), "act_fn": "gelu_new"},
        {"layout": "a b =", "normalization": "RMS", "act_fn": "relu"},
        {"layout": "a b", "normalization": None, "biases": "none"},
        {"gate": ((0, 1), (2,)), "biases": "mlp", "n_layers": 2},
    ],
)
def test_all_examples_at_once_are_each_of_them_alone(changes: dict) -> None:
    """One pass with zeros at the outputs, against a backward pass of the trainer's forward for every pair."""
    run = replace(SETTINGS, config=replace(SETTINGS.config, **changes))
    state = initial_state(run.config, "log", 3)
    state = {name: w + 0.1 * torch.randn_like(w) if w.ndim == 1 else w for name, w in state.items()}
    loss, params, examples = training_loss(run, state)
    mask = train_mask(run)
    prompts = tasks.all_tokens(run.config)[mask], tasks.answers(run.config)[mask]
    alone = torch.tensor(
        [squared_length(loss, params, torch.tensor([i])) for i in range(examples)], dtype=torch.float64
    )
    for chunk in (512, 5):
        found = squared_lengths(run.config, params, *prompts, chunk=chunk)
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=0)
    exact, fast = gradient_noise(loss, params, examples), toy_noise(run, state)
    assert fast.squared_length == pytest.approx(exact.squared_length)
    assert fast.trace == pytest.approx(exact.trace)


def test_attention_both_ways_is_refused() -> None:
    config = replace(SETTINGS.config, attention="bidirectional")
    with pytest.raises(ValueError, match="cannot be trained here"):
        squared_lengths(config, {}, tasks.all_tokens(config), tasks.answers(config))


def test_float32_loses_the_gradient_of_a_confident_model() -> None:
    """Why everything is float64: where every answer is sure, float32's softmax rounds the gradient to zero."""
    state = initial_state(SETTINGS.config, "log", 0)
    loss, params, examples = training_loss(SETTINGS, state)
    for _ in range(300):
        leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
        loss(leaves, torch.arange(examples)).backward()
        params = {n: p.detach() - 0.5 * p.grad for n, p in leaves.items()}  # type: ignore[operator]
    sure = {**params, "unembed.W_U": 60 * params["unembed.W_U"], "unembed.b_U": 60 * params["unembed.b_U"]}
    everything = torch.arange(examples)
    full, single = (training_loss(SETTINGS, sure, dtype) for dtype in (torch.float64, torch.float32))
    lengths = [squared_length(one.loss, one.params, everything) for one in (full, single)]
    assert 0 < lengths[0] < 1e-12
    assert lengths[1] < 0.5 * lengths[0]
    error = float32_error(SETTINGS, sure)
    assert error is not None
    assert (1 - (lengths[1] / lengths[0]) ** 0.5) ** 2 <= error  # the triangle inequality
    assert float32_error(SETTINGS, state) == pytest.approx(0, abs=1e-6)
    still = {name: torch.zeros_like(p) for name, p in params.items()}
    assert float32_error(replace(SETTINGS, config=replace(SETTINGS.config, biases="none")), still) is None
