"""The dormant pathway: a planted illusion fires the warning, honest directions do not."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Subspace, dormant, logit_diff, patch
from mi_ablate.dormancy import Dormant
from models import random_state, tiny

N = 8
POST = "blocks.0.mlp.hook_post"
METRIC = logit_diff(torch.ones(N).long(), torch.zeros(N).long())


def planted(d_mlp: int = 24) -> Any:
    """Neuron 0 follows the feature and writes nothing; 1 is constant and writes the answer; 2 follows and writes.

    The feature is axis 0 (token 1 has it, token 2 has its opposite, beside a bias of 2 that keeps ReLU open).
    """
    shape = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": d_mlp, "n_ctx": 12}
    shape |= {"vocab": 11, "norm": None, "seed": 0}
    w = {name: torch.zeros_like(x) for name, x in random_state(**shape).items()}
    w["embed.W_E"][1, 0], w["embed.W_E"][2, 0] = 1.0, -1.0
    w["blocks.0.mlp.W_in"][0, [0, 2]] = 1.0
    w["blocks.0.mlp.b_in"][:3] = 2.0
    w["blocks.0.mlp.W_out"][1, 8] = w["blocks.0.mlp.W_out"][2, 9] = 1.0
    w["unembed.W_U"][[8, 9], 1] = 1.0
    return tiny(n_layers=1, norm=None, act_fn="relu", d_mlp=d_mlp, weights=w)


def runs() -> tuple[Tensor, Tensor]:
    clean = torch.tensor([[3 + i, 1] for i in range(N)])
    corrupted = clean.clone()
    corrupted[:, 1] = 2
    return clean, corrupted


def along(*neurons: int, d: int = 24) -> Subspace:
    v = torch.zeros(d, dtype=torch.float64)
    v[list(neurons)] = 1.0
    return Subspace.span(v)


@pytest.mark.compat
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_the_planted_illusion_fires_the_warning(mode: str) -> None:
    """Neurons 0 + 1: read off the disconnected one, written into the constant one. Half of the effect, all of it spurious."""
    with pytest.warns(UserWarning, match="its active part alone 0.00: it works through a dormant pathway"):
        found = dormant(planted(), *runs(), METRIC, POST, along(0, 1), mode=mode)
    assert found.whole == pytest.approx(0.5)
    assert (found.active, found.dormant) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert found.share == pytest.approx(0.5)
    assert (found.illusion, found.split, found.ranks) == (True, "W_out", (1, 1, 1))
    assert repr(found).endswith("50% of it dormant; works through a dormant pathway)")


@pytest.mark.compat
def test_honest_directions_do_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        honest = dormant(planted(), *runs(), METRIC, POST, along(2))
        noisy = dormant(planted(), *runs(), METRIC, POST, along(2, 5))
        idle = dormant(planted(), *runs(), METRIC, POST, along(0))
    assert (honest.whole, honest.active, honest.share) == (
        pytest.approx(1),
        pytest.approx(1),
        pytest.approx(0, abs=1e-12),
    )
    assert honest.ranks == (1, 1, 0)
    assert (noisy.whole, noisy.active, noisy.share) == (pytest.approx(0.5), pytest.approx(1), pytest.approx(0.5))
    assert (idle.whole, idle.active, idle.ranks) == (0, 0, (1, 0, 1))


def test_the_whole_is_what_patch_gives() -> None:
    two = Subspace.span(torch.cat([along(0, 1, 2).basis.T, along(2, 3).basis.T]))
    found = dormant(planted(), *runs(), METRIC, POST, two)
    alone = patch(planted(), *runs(), METRIC, POST, pos=-1, subspace=two, controls={})
    assert found.whole == pytest.approx(float(alone.normalised))
    rows = found.table()
    assert [row["part"] for row in rows] == ["whole", "active", "dormant"]
    assert [row["rank"] for row in rows] == [2, 2, 2]
    assert rows[1]["share of length"] + rows[2]["share of length"] == pytest.approx(1.0)


def test_in_the_stream_the_split_is_by_what_varies() -> None:
    """Axis 0 follows the feature (loosely) and is not read, axis 9 is constant and votes; axis 10 is the true pathway."""
    shape = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 24, "n_ctx": 12, "vocab": 11, "norm": None, "seed": 0}
    w = {name: torch.zeros_like(x) for name, x in random_state(**shape).items()}
    for token in range(1, 9):
        w["embed.W_E"][token, 10] = 1.0 if token < 5 else -1.0
        w["embed.W_E"][token, 0] = w["embed.W_E"][token, 10] * (0.5 + token % 4)
    w["unembed.W_U"][[9, 10], 0] = -1.0
    model, last = tiny(n_layers=1, norm=None, weights=w), torch.arange(N) % 4 + 1
    clean = torch.stack([torch.zeros(N).long(), last], 1)
    corrupted = torch.stack([torch.zeros(N).long(), last + 4], 1)
    metric = logit_diff(torch.full((N,), 9), torch.zeros(N).long())
    pre = "blocks.0.hook_resid_pre"
    with pytest.warns(UserWarning, match="split by 99% of the variance; Makelov"):
        found = dormant(model, clean, corrupted, metric, pre, along(0, 9, d=16))
    assert found.whole > 0.4
    assert found.active == pytest.approx(0, abs=1e-9)
    assert (found.split, found.ranks) == ("99% of the variance", (1, 1, 1))
    honest = dormant(model, clean, corrupted, metric, pre, along(10, d=16))
    assert (honest.whole, honest.active, honest.ranks) == (pytest.approx(1), pytest.approx(1), (1, 1, 0))


@pytest.mark.filterwarnings("ignore:.*less than two standard errors:UserWarning")  # random prompts
def test_a_head_is_read_by_its_own_weight(model) -> None:
    clean, corrupted = (torch.randint(0, 11, (N, 5), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    space = Subspace.random(8, 2)
    found = dormant(model, clean, corrupted, METRIC, "blocks.0.attn.hook_z", space, head=1, pos=2)
    assert found.split == "W_O"
    assert (found.ranks, found.share) == ((2, 2, 0), pytest.approx(0, abs=1e-12))
    assert found.active == pytest.approx(found.whole)
    assert "pos 2 head 1" in repr(found)
    with pytest.raises(ValueError, match=r"dormant at blocks\.0\.attn\.hook_z needs head=: each head is read by a W_O"):
        dormant(model, clean, corrupted, METRIC, "blocks.0.attn.hook_z", space)
    same = mi.Subspace.random(16, 2)
    twin = torch.cat([clean[:1]] * N)
    other = twin.clone()
    other[:, 4] = (other[:, 4] + 1) % 11
    with pytest.raises(
        ValueError, match="The activations of both runs are the same at that place: there is nothing to"
    ):
        dormant(model, twin, other, METRIC, "blocks.0.hook_resid_pre", same, pos=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_planted_illusion_shows_in_half_precision(dtype: torch.dtype) -> None:
    """A wide MLP: eps of the dtype times the width would be above 1, and no direction of W_out left."""
    model = planted(d_mlp=1024).to(dtype)
    with pytest.warns(UserWarning, match=r"works through a dormant pathway \(split by W_out"):
        found = dormant(model, *runs(), METRIC, POST, along(0, 1, d=1024))
    assert found.whole == pytest.approx(0.5, abs=1e-2)
    assert (found.active, found.ranks) == (pytest.approx(0, abs=1e-2), (1, 1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dormant(model, *runs(), METRIC, POST, along(2, d=1024)).active == pytest.approx(1, abs=1e-2)


def test_a_weight_that_is_zero_makes_everything_dormant() -> None:
    """Axis 0 reaches the answer past the MLP, whose W_out is zero: no neuron is read."""
    model = planted()
    with torch.no_grad():
        model.blocks[0].mlp.W_out.zero_()
        model.unembed.W_U[0, 1] = 1.0
    found = dormant(model, *runs(), METRIC, POST, along(0, 1))
    assert (found.split, found.ranks, found.share) == ("W_out", (1, 0, 1), pytest.approx(1))
    assert (found.whole, found.active, found.dormant) == (0, 0, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_active_part_of_the_other_sign_is_an_illusion(sign: int) -> None:
    def found(active: float) -> bool:
        return Dormant("s", -1, None, "denoise", "W_out", sign * 0.5, sign * active, 0.0, 0.5, (1, 1, 1)).illusion

    assert [found(a) for a in (-0.6, -0.1, 0.0, 0.2, 0.3, 0.6)] == [True, True, True, True, False, False]


def test_a_head_that_is_not_there(model) -> None:
    for head in (2, -3):
        with pytest.raises(IndexError, match=f"head={head} is out of range: each site has 2 heads, so 0 to 1"):
            dormant(model, *runs(), METRIC, "blocks.0.attn.hook_z", Subspace.random(8, 2), head=head)
