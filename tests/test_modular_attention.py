"""Periodic attention and circles of vectors: planted truth, chance levels, the zoo's and third-party models."""

import math

import pytest
import torch

from mi_ablate import toys
from mi_ablate.modular import (
    Grid,
    attention_periodicity,
    cyclic_geometry,
    cyclic_scores,
    effective_maps,
    grid,
    spectrum,
)
from models import data_folder


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_pattern(pattern: torch.Tensor) -> Grid:
    """A grid whose first layer's attention is the given pattern."""

    class Fixed(Grid):
        def patterns(self, layer: int = 0) -> torch.Tensor:
            return pattern

    index = torch.arange(len(pattern))
    model = toys.load("nanda113").model
    return Fixed(model, torch.zeros(len(pattern) ** 2, 3).long(), "add", len(pattern), index, index, index, None)


@pytest.mark.parametrize("n", [13, 12])
def test_planted_patterns_have_their_shares(n: int) -> None:
    w = 2 * math.pi / n
    i, j = torch.arange(n)[:, None].double(), torch.arange(n)[None].double()
    one, two = torch.cos(3 * w * i) + 0 * j, 2 * torch.sin(3 * w * j) + 0 * i
    three, four = torch.cos(5 * w * (i + j)), 2 * torch.cos(5 * w * (i - j))
    heads = [
        0.5 + 0.1 * (one + two),
        0.5 + 0.1 * (one + three),
        0.5 + 0.1 * (one + four),
        torch.full((n, n), 0.3).double(),
    ]
    pattern = torch.stack([torch.stack([x, 1 - x], -1) for x in heads], 2)
    found = attention_periodicity(with_pattern(pattern))
    assert found.frequency.tolist() == [3, 3, 3, 0]
    assert found.operand[:, 2].tolist() == pytest.approx([1, 1 / 2, 1 / 5, 0])
    assert found.sums[:, 4].tolist() == pytest.approx([0, 1 / 2, 0, 0], abs=1e-12)
    assert found.differences[:, 4].tolist() == pytest.approx([0, 0, 4 / 5, 0], abs=1e-12)
    assert found.variance.tolist() == pytest.approx([0.05, 0.02, 0.05, 0])
    rows = found.table()
    assert [row["frequency"] for row in rows] == [3, 3, 3, None]
    assert rows[1]["one operand, any frequency"] == pytest.approx(1 / 2)
    assert math.isnan(rows[3]["one operand"])
    assert repr(found) == "Periodicity(layer 0, frequency and share a head: 3 1.00, 3 0.50, 3 0.20, constant 0.00)"
    assert torch.allclose(found.mean[3], torch.tensor([0.3, 0.7], dtype=torch.float64))


def test_heads_of_the_published_models() -> None:
    folder = data_folder() / "third_party_models"
    nanda = attention_periodicity(grid(toys.load(folder / "nanda_mod113.safetensors")))
    assert nanda.frequency.tolist() == [23, 23, 6, 6]
    assert float(nanda.operand.max(1).values.min()) > 0.82
    assert float(nanda.sums.sum(1).max()) < 0.02, "the transform is sparse: rows and columns of the constant"
    assert float(nanda.mean[:, -1].max()) < 0.01, "the last position hardly looks at itself"
    clock = grid(toys.load(folder / "zhong_model_b.safetensors"))
    assert attention_periodicity(clock).frequency.tolist() == [13, 16, 16, 13]
    pizza = attention_periodicity(grid(toys.load(folder / "zhong_model_a.safetensors")))
    assert pizza.frequency.tolist() == [0, 0, 0, 0], "constant attention has no frequency"


def test_heads_of_multiplication_are_periodic_in_the_exponents() -> None:
    toy = toys.load("addmul97")
    mul, add = (attention_periodicity(grid(toy, op)) for op in ("mul", "add"))
    assert mul.frequency[[0, 3]].tolist() == [44, 44]
    assert float(mul.operand[[0, 3]].max(1).values.min()) > 0.95
    assert float(mul.operand[[1, 2]].max()) < 0.1, "the other two heads follow the residues, not their exponents"
    assert float(add.operand[[1, 2]].max(1).values.min()) > 0.5


@pytest.mark.compat
def test_effective_maps_have_the_heads_frequencies() -> None:
    found = grid(toys.load("nanda113"))
    maps = effective_maps(found)
    assert maps["neurons"].shape == (4, 113, 512)
    heads = attention_periodicity(found).frequency.tolist()
    assert [spectrum(scores).top(1)[0] for scores in maps["scores"]] == heads
    # without a norm the difference of the two operands' attention logits is that of their scores, up to the positions'
    pattern = found.patterns()
    logit = (pattern[..., 0].log() - pattern[..., 1].log()).permute(2, 0, 1)
    scores = maps["scores"][..., 0]
    difference = scores[:, :, None] - scores[:, None, :] - logit
    assert float(difference.std((1, 2)).max()) < 1e-3 * float(logit.std((1, 2)).min())
    assert all(set(spectrum(one).top(3)) == {1, 8, 21} for one in maps["neurons"])


@pytest.mark.compat
@pytest.mark.parametrize(("n", "k"), [(12, 1), (12, 5), (97, 1), (97, 23), (24, 3)])
def test_a_planted_circle_is_in_order(n: int, k: int) -> None:
    angle = 2 * math.pi * k * torch.arange(n).double() / n + 0.3
    circle = torch.stack([angle.cos(), angle.sin()], 1) @ torch.linalg.qr(noise(9, 9)).Q[:2]
    found = cyclic_geometry(circle + 4, name="planted")
    assert (found.frequency, found.order, found.alignment) == (k, pytest.approx(1), pytest.approx(1))
    assert found.planar == pytest.approx(1)
    assert found.shares.share(k) == pytest.approx(1)
    assert repr(found).startswith(f"CyclicGeometry(planted, Z_{n}: k {k}, order 1.00, alignment 1.00, share 1.000")
    mirrored = cyclic_geometry(circle.flip(0))
    assert (mirrored.order, mirrored.alignment) == (pytest.approx(1), pytest.approx(1))
    shuffled = cyclic_geometry(circle[torch.randperm(n, generator=torch.Generator().manual_seed(0))])
    assert not shuffled.order > 0.5
    assert shuffled.alignment < 0.8
    noisy = cyclic_geometry(circle + 0.1 * noise(n, 9))
    assert noisy.alignment > 0.95, "noise shuffles neighbours and leaves the circle"
    assert n < 90 or noisy.order < 0.9


def test_noise_is_at_chance() -> None:
    found = [cyclic_geometry(noise(97, 20, seed=seed)) for seed in range(40)]
    assert sum(one.order for one in found) / 40 == pytest.approx(0, abs=0.01)
    assert sum(one.alignment for one in found) / 40 == pytest.approx((math.log(97) / 97) ** 0.5, abs=0.1)
    assert math.isnan(cyclic_geometry(noise(5, 3)).order), "five points say nothing"


def test_coactivation_is_correlated_with_the_dot_products() -> None:
    n = 12
    angle = 2 * math.pi * torch.arange(n).double() / n
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    near = torch.cos(angle[:, None] - angle[None])
    assert cyclic_geometry(circle, near).coactivation == pytest.approx(1)
    assert "co-activation 1.00" in repr(cyclic_geometry(circle, near))
    assert abs(cyclic_geometry(circle, noise(n, n) + 50 * torch.eye(n)).coactivation or 0) < 0.3
    assert cyclic_geometry(circle).coactivation is None


def test_models_with_a_circle_and_with_several() -> None:
    clock = cyclic_scores(grid(toys.load(data_folder() / "third_party_models" / "zhong_model_b.safetensors")))
    assert list(clock) == ["W_E", "W_U", "class means"]
    assert clock["W_E"].frequency == 13
    assert clock["W_E"].order > 0.95
    several = cyclic_scores(grid(toys.load("add97")))
    assert several["W_E"].order < 0.1, "the first two components mix circles of two frequencies"
    assert several["W_E"].shares.share(44) > 0.25


def test_what_cannot_be_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match=r"w has shape \[3, 2\]; a circle needs at least 4 rows of 2 numbers"):
        cyclic_geometry(noise(3, 2))
    with pytest.raises(ValueError, match=r"The 8 rows lie on one line \(or in one point\): there is no plane"):
        cyclic_geometry(noise(8, 1) @ noise(1, 5))
