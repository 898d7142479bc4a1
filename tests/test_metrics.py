"""Metrics against values worked out by hand or by another route."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate import accuracy, cross_entropy, kl, logit_diff, refusal_rate, refusal_score
from mi_ablate.metrics import noise_floor

B, P, V = 4, 3, 5
ROWS = torch.tensor([5, 0, 2, 2])
"""Which examples of a set of six the batch holds: a metric must look its answers up by these."""


def logits(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, P, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


ANSWERS = torch.tensor([4, 3, 2, 1, 0, 1])
OTHER = torch.tensor([0, 0, 1, 2, 3, 4])
METRICS = {
    "accuracy": lambda pos: accuracy(ANSWERS, pos),
    "logit_diff": lambda pos: logit_diff(ANSWERS, OTHER, pos),
    "cross_entropy": lambda pos: cross_entropy(ANSWERS, pos),
    "kl": lambda pos: kl(pos),
    "refusal_score": lambda pos: refusal_score(torch.tensor([1, 3]), pos),
    "preference": lambda pos: refusal_score(torch.tensor([1, 3]), pos, against=torch.tensor([0])),
}


def by_hand(name: str, x: Tensor, clean: Tensor, row: int) -> float:
    p = [math.exp(v) for v in x.tolist()]
    p = [v / sum(p) for v in p]
    q = [math.exp(v) for v in clean.tolist()]
    q = [v / sum(q) for v in q]
    right, wrong = int(ANSWERS[row]), int(OTHER[row])
    return {
        "accuracy": float(max(range(V), key=lambda i: x[i]) == right),
        "logit_diff": float(x[right] - x[wrong]),
        "cross_entropy": -math.log(p[right]),
        "kl": sum(b * math.log(b / a) for a, b in zip(p, q)),
        "refusal_score": math.log((p[1] + p[3]) / (1 - p[1] - p[3])),
        "preference": math.log((p[1] + p[3]) / p[0]),
    }[name]


@pytest.mark.parametrize("pos", [-1, 0, 1])
@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_equals_the_formula(name: str, pos: int) -> None:
    x, clean = logits(), logits(1)
    found = METRICS[name](pos)(x, clean, ROWS)
    assert found.shape == (B,)
    wanted = [by_hand(name, x[i, pos], clean[i, pos], int(ROWS[i])) for i in range(B)]
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_name_position_and_short_repr(name: str) -> None:
    metric = METRICS[name](1)
    assert (metric.name, metric.pos, metric.needs_clean) == (name, 1, name == "kl")
    assert repr(metric) == f"{name}(pos=1)"


@pytest.mark.parametrize("name", sorted(METRICS))
def test_which_way_is_up(name: str) -> None:
    assert METRICS[name](0).better == ("lower" if name in ("cross_entropy", "kl") else "higher")
    assert METRICS[name](0).ceiling == (1.0 if name == "accuracy" else None)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_last_position_is_the_default(name: str) -> None:
    default = {
        "accuracy": accuracy(ANSWERS),
        "logit_diff": logit_diff(ANSWERS, OTHER),
        "cross_entropy": cross_entropy(ANSWERS),
        "kl": kl(),
        "refusal_score": refusal_score(torch.tensor([1, 3])),
        "preference": refusal_score(torch.tensor([1, 3]), against=torch.tensor([0])),
    }[name]
    assert default.pos == -1
    assert torch.equal(default(logits(), logits(1), ROWS), METRICS[name](-1)(logits(), logits(1), ROWS))


def test_kl_of_nearly_equal_distributions_is_not_negative() -> None:
    x = torch.randn(200, 1, 50, generator=torch.Generator().manual_seed(0))
    found = kl()(x * (1 + 1e-7), x, torch.arange(200))
    assert (found >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(METRICS))
def test_half_precision_logits_are_scored_in_float32(name: str, dtype: torch.dtype) -> None:
    x, clean = logits(0, dtype), logits(1, dtype)
    metric = METRICS[name](-1)
    found = metric(x, clean, ROWS)
    assert found.dtype == (torch.float64 if name == "kl" else torch.float32)
    assert torch.equal(found, metric(x.float(), clean.float(), ROWS))


def test_kl_in_bf16_would_be_far_off() -> None:
    """A true KL of about 2e-4 comes out a quarter off, or worse, when the softmax is taken in bf16."""
    g = torch.Generator().manual_seed(0)
    clean = torch.randn(64, 1, 1000, generator=g, dtype=torch.float64)
    x = clean + 0.02 * torch.randn(64, 1, 1000, generator=g, dtype=torch.float64)
    rows = torch.arange(64)
    true = float(kl()(x, clean, rows).mean())
    assert 1e-4 < true < 4e-4
    assert abs(float(kl()(x.float(), clean.float(), rows).mean()) - true) < 1e-7
    p, q = clean[:, 0].bfloat16().log_softmax(-1), x[:, 0].bfloat16().log_softmax(-1)
    low = float((p.exp() * (p - q)).sum(-1).float().mean())
    assert abs(low - true) > 0.1 * true


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 30))
def test_kl_is_zero_for_the_same_and_never_negative(seed: int, scale: float) -> None:
    x, clean = scale * logits(seed), scale * logits(seed + 1)
    assert (kl()(x, clean, ROWS) >= 0).all()
    assert kl()(x, x, ROWS).abs().max() < 1e-12
    shifted = kl()(x + 7, clean - 3, ROWS)
    assert torch.allclose(shifted, kl()(x, clean, ROWS), atol=1e-9)


def test_kl_is_of_the_clean_from_the_edited_one() -> None:
    """KL(clean || edited), not the other way round: a token that the edit forbids costs much, one it adds costs little."""
    clean, edited = torch.zeros(1, 1, 2), torch.tensor([[[0.0, -20.0]]])
    row = torch.tensor([0])
    assert float(kl()(edited, clean, row)) > 9
    assert float(kl()(clean, edited, row)) < 1


def test_kl_needs_the_clean_logits() -> None:
    with pytest.raises(ValueError, match="kl compares with the clean logits, and none were given"):
        kl()(logits(), None, ROWS)
    assert accuracy(ANSWERS)(logits(), None, ROWS).shape == (B,)


def test_accuracy_takes_the_largest_logit() -> None:
    x = torch.zeros(2, 1, 3)
    x[0, 0, 1], x[1, 0, 2] = 1, 1
    assert accuracy(torch.tensor([1, 1]))(x, None, torch.tensor([0, 1])).tolist() == [1.0, 0.0]


def test_refusal_score_survives_extreme_logits() -> None:
    """log p - log(1 - p) by two logsumexps: 1 - p would be exactly 0 in float32."""
    x = torch.zeros(1, 1, 4)
    x[0, 0, 1] = 80.0
    found = refusal_score(torch.tensor([1]))(x, None, torch.tensor([0]))
    assert abs(float(found) - (80 - math.log(3))) < 1e-4
    twice = refusal_score(torch.tensor([1, 1]))(x, None, torch.tensor([0]))
    assert torch.equal(twice, found), "a token named twice counts once"


def test_gradients_reach_the_logits() -> None:
    for name in ("logit_diff", "cross_entropy", "kl", "refusal_score"):
        x = logits().requires_grad_()
        METRICS[name](-1)(x, logits(1), ROWS).sum().backward()
        assert x.grad[:, -1].any()
        assert not x.grad[:, :-1].any()


@pytest.mark.parametrize("answers", [torch.zeros(3), torch.zeros(3, 1).long(), torch.tensor(1)], ids=str)
def test_answers_are_one_token_an_example(unchecked, answers: Tensor) -> None:
    for make in (accuracy, cross_entropy, lambda a: logit_diff(a, ANSWERS), lambda a: logit_diff(ANSWERS, a)):
        with pytest.raises(ValueError, match=r"answers have shape .*: one token an example is needed"):
            make(answers)


def test_the_noise_floor_is_the_kl_of_rounding() -> None:
    """Rounding float64 logits to bf16 makes a KL of the size that the floor says, at every scale of the logits."""
    for scale in (1.0, 3.0):
        x = scale * torch.randn(64, 2, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        rounded = float(kl()(x.bfloat16().double(), x, torch.arange(64)).mean())
        floor = noise_floor(x, dtype=torch.bfloat16)
        assert 0.7 < floor / rounded < 1.4
        assert noise_floor(x.bfloat16()) == pytest.approx(floor, rel=0.3)
        assert noise_floor(x) < 1e-25
        assert 40 < floor / noise_floor(x, dtype=torch.float16) < 100, "three bits more: a 64th"


def test_the_noise_floor_is_the_same_for_the_same_seed_and_moves_no_logit_by_more_than_half_a_unit() -> None:
    assert noise_floor(logits(), dtype=torch.float16) == noise_floor(logits(), dtype=torch.float16)
    assert noise_floor(logits(), dtype=torch.float16) != noise_floor(logits(), dtype=torch.float16, seed=1)
    assert noise_floor(torch.zeros(2, 1, 5)) < 1e-40, "zero is exact"
    pair = torch.tensor([[[0.0, 256.0]]])  # a unit in the last place of bf16 at 256 is 2; half of it 1
    assert noise_floor(pair - 256, dtype=torch.bfloat16) < 1e-30, "the token that has all the probability keeps it"


def test_the_noise_floor_reads_the_position_of_the_metric() -> None:
    x, half = torch.cat([logits(), 50 * logits(1)], 1), torch.bfloat16
    assert noise_floor(x, pos=0, dtype=half) == noise_floor(logits(), pos=0, dtype=half)
    assert noise_floor(x, pos=-1, dtype=half) != noise_floor(logits(), pos=-1, dtype=half)


# Regressions of a review


def test_kl_of_float32_logits_is_computed_in_float64() -> None:
    """In float32 a log-softmax is off by 5e-8 itself, millions of times what rounding the logits makes."""
    x = torch.randn(20, 1, 113, generator=torch.Generator().manual_seed(0))
    moved = x + 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    p, q = x.double().log_softmax(-1), moved.double().log_softmax(-1)
    true = (p.exp() * (p - q)).sum(-1)[:, 0]
    wrong = x.log_softmax(-1).exp() * (x.log_softmax(-1) - moved.log_softmax(-1))
    assert float((wrong.sum(-1)[:, 0] - true).abs().max()) > 1e-9
    assert torch.allclose(kl()(moved, x, torch.arange(20)), true, atol=1e-15)
    assert float(kl()(x + 7.25, x, torch.arange(20)).max()) < 1e-12


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_broken_are_no_accuracy(value: float) -> None:
    x = torch.zeros(3, 2, 5)
    x[1, -1, 2] = value
    for metric in (
        accuracy(torch.zeros(3, dtype=torch.int64)),
        logit_diff(torch.zeros(3).long(), torch.ones(3).long()),
    ):
        with pytest.raises(ValueError, match="are NaN or infinite in 1 of 3 examples of a batch"):
            metric(x, x, torch.arange(3))
    x[1, -1, 2] = float("-inf")
    assert float(accuracy(torch.zeros(3, dtype=torch.int64))(x, x, torch.arange(3)).sum()) == 3


def test_a_rate_is_the_probability_of_the_set() -> None:
    x = torch.randn(4, 1, 9, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.arange(4)
    rate, score = refusal_rate(torch.tensor([2, 5]))(x, x, rows), refusal_score(torch.tensor([2, 5]))(x, x, rows)
    assert torch.allclose(rate, x.softmax(-1)[:, 0, [2, 5]].sum(-1))
    assert torch.allclose(torch.sigmoid(score), rate)
    assert (refusal_rate(torch.tensor([1])).kind, refusal_score(torch.tensor([1])).kind) == ("rate", "log-odds")


@pytest.mark.parametrize("tokens", [[-1], [9], list(range(9))])
def test_a_set_of_tokens_is_some_of_the_vocabulary(tokens: list[int]) -> None:
    x = torch.zeros(1, 1, 9)
    for factory in (refusal_rate, refusal_score):
        with pytest.raises(ValueError, match="must be some, not all, of the 9 tokens 0 to 8"):
            factory(torch.tensor(tokens))(x, x, torch.arange(1))
    with pytest.raises(ValueError, match="the ids of one or more tokens are needed"):
        refusal_rate(torch.tensor([], dtype=torch.int64))


def test_what_a_metric_is_made_of_is_checked_when_it_is_made(unchecked) -> None:
    with pytest.raises(ValueError, match=r"accuracy reads one position: pos=.-1. must be an int, such as -1"):
        accuracy(torch.zeros(3).long(), pos=[-1])  # type: ignore[arg-type]


def test_right_and_wrong_answers_come_in_pairs(unchecked) -> None:
    with pytest.raises(ValueError, match="logit_diff got 6 right and 5 wrong answers: one of each an example"):
        logit_diff(torch.arange(6), torch.arange(5))


def test_a_token_of_both_sets_has_no_preference() -> None:
    with pytest.raises(ValueError, match=r"Tokens \[3\] are in both sets, tokens and against"):
        refusal_score(torch.tensor([1, 3]), against=torch.tensor([3, 4]))
