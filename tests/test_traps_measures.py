"""Traps of measuring, each named for its symptom, with the size of the wrong way beside the right one."""

from typing import Any

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Subspace, accuracy, collect, effect, kl, logit_diff, patch
from mi_ablate.metrics import noise_floor
from models import has_hooked_transformer, logits_with, random_state, tiny, tokens_for

SITE = "blocks.0.hook_resid_post"


def reader(bos: float = 0.0, gain: float = 1.0) -> Any:
    """A model without attention or MLP: the logits at a position name the token there. Token 10 is BOS, of norm ``bos``."""
    shape = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 24, "n_ctx": 12, "vocab": 11, "norm": None, "seed": 0}
    w = {name: torch.zeros_like(x) for name, x in random_state(**shape).items()}
    w["embed.W_E"][:, :11] = torch.eye(11, dtype=torch.float64)
    w["embed.W_E"][10] = 0.0
    w["embed.W_E"][10, 15] = bos
    w["unembed.W_U"][:11] = gain * torch.eye(11, dtype=torch.float64)
    return tiny(n_layers=1, norm=None, weights=w)


def padded(rows: list[list[int]], left: bool, pad: int = 9) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    tokens, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        tokens[i, where], mask[i, where] = torch.tensor(row), 1
    return tokens, mask


# Precision


def test_a_kl_of_bf16_arithmetic_is_a_fifth_off_and_the_packages_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(64, 1, 1000, generator=generator, dtype=torch.float64).bfloat16()
    edited = (clean.double() + 0.05 * torch.randn(64, 1, 1000, generator=generator, dtype=torch.float64)).bfloat16()
    p, q = clean.double()[:, 0].log_softmax(-1), edited.double()[:, 0].log_softmax(-1)
    true = float((p.exp() * (p - q)).sum(-1).mean())
    p, q = clean[:, 0].log_softmax(-1), edited[:, 0].log_softmax(-1)
    wrong = float((p.exp() * (p - q)).sum(-1).float().mean())
    right = float(kl()(edited, clean, torch.arange(64)).mean())
    assert abs(wrong / true - 1) > 0.2, "the wrong way"
    assert abs(right / true - 1) < 1e-4


def test_a_kl_of_a_bf16_model_below_its_floor_is_rounding() -> None:
    """An edit whose true KL is 1.4e-7 is reported at about the floor of 2.6e-6: twenty times too large."""
    prompts = tokens_for(tiny(), 40, 5)
    edit = Ablate(Subspace.random(16, 1, seed=1), strength=0.001).at(SITE, pos=-1)
    true = float(effect(tiny(), prompts, edit, kl(), controls={}).edited.mean())
    found = effect(tiny(dtype=torch.bfloat16), prompts, edit, kl(), controls={})
    wrong = float(found.edited.mean())
    assert true < found.floor / 10
    assert 10 * true < wrong < 3 * found.floor, "the wrong way: reading the number without its floor"
    assert f"rounding alone makes {found.floor:.1e}" in repr(found)


def test_float32_logits_of_a_bf16_model_have_the_floor_of_bf16() -> None:
    """Asked of the dtype that they are stored in, the floor is ten thousand times too low."""
    x = torch.randn(32, 1, 500, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    assert noise_floor(x, dtype=torch.bfloat16) > 1e4 * noise_floor(x)


# Positions


ROWS = [[10, 1, 2, 3], [10, 4], [10, 5, 6]]
LAST = torch.tensor([3, 4, 6])


@pytest.mark.compat
@pytest.mark.parametrize("left", [True, False])
def test_the_last_real_token_under_either_padding(left: bool) -> None:
    """-1 without the mask reads padding on the right; length - 1 without it reads a wrong token on the left."""
    if left and not has_hooked_transformer():
        pytest.skip("a bridge of a native model knows no left padding")
    model = reader()
    tokens, mask = padded(ROWS, left)
    lengths = mask.sum(1)
    right = collect(model, tokens, SITE, pos=-1, attention_mask=mask)[SITE]
    assert right.argmax(1).tolist() == LAST.tolist()
    last, by_length = (collect(model, tokens, SITE, pos=pos)[SITE].argmax(1) for pos in (-1, lengths - 1))
    wrong = {True: by_length, False: last}[left]
    assert (wrong == LAST).double().mean() <= 1 / 3, "the wrong way: only the longest row is right"
    assert ({True: last, False: by_length}[left] == LAST).all(), "each of them is right under the other padding"
    each = collect(model, tokens, SITE, pos=lengths - 1, attention_mask=mask)[SITE]
    assert torch.equal(each, right), "with the mask both say the same"
    with pytest.raises(IndexError, match="is out of range: the rows have 2 to 4 tokens"):
        collect(model, tokens, SITE, pos=lengths, attention_mask=mask)


@pytest.mark.compat
@pytest.mark.parametrize("left", [True, False])
def test_a_metric_reads_the_last_real_token(left: bool) -> None:
    """Without the mask an accuracy of 1.00 is measured as 0.33 under right padding: the padding is scored."""
    if left and not has_hooked_transformer():
        pytest.skip("a bridge of a native model knows no left padding")
    tokens, mask = padded(ROWS, left)
    edit = Ablate(Subspace.random(16, 1)).at(SITE, pos=-1)
    right = effect(reader(), tokens, edit, accuracy(LAST), controls={}, attention_mask=mask)
    blind = effect(reader(), tokens, edit, accuracy(LAST), controls={})
    assert float(right.clean.mean()) == 1.0
    assert float(blind.clean.mean()) == pytest.approx(1.0 if left else 1 / 3)


def test_a_large_bos_is_all_of_the_variance() -> None:
    """Over all positions the first principal component is the BOS norm; a control drawn from it removes nothing else."""
    model = reader(bos=100.0)
    tokens = torch.cat(
        [torch.full((40, 1), 10), torch.randint(0, 9, (40, 3), generator=torch.Generator().manual_seed(0))], 1
    )
    metric = accuracy(tokens[:, -1])
    top = {}
    for name, pos in (("all positions", None), ("after BOS", slice(1, None)), ("last", -1)):
        acts = collect(model, tokens, SITE, pos=pos)[SITE]
        control = mi.controls.pca(acts)
        top[name] = float((control.draw(SITE, 1, 0).basis[15] ** 2).sum())
        edit = Ablate(Subspace.random(16, 4, seed=1)).at(SITE, pos=-1)
        hooks = control(edit, 0)
        drawn = effect(model, tokens, hooks, metric, controls={})
        top[name + ", accuracy"] = float(drawn.edited.mean())
    assert top["all positions"] > 0.999, "the wrong way: the component is the BOS"
    assert max(top["after BOS"], top["last"]) < 1e-6
    assert top["all positions, accuracy"] > top["after BOS, accuracy"] + 0.05, "and the control removes less"


def test_the_moments_of_an_effect_leave_padding_out() -> None:
    """The share of the variance removed is that of real tokens: padding of another size would swamp it."""
    model = reader()
    tokens, mask = padded([[1, 2, 3, 4, 5, 6], [3, 4], [5, 6], [7, 8]], left=False)
    pad_axis = Ablate(Subspace(torch.eye(16, dtype=torch.float64)[:, 9:10])).at(SITE)
    metric = accuracy(torch.tensor([6, 4, 6, 8]))
    right = effect(model, tokens, pad_axis, metric, controls={}, attention_mask=mask)
    wrong = effect(model, tokens, pad_axis, metric, controls={})
    assert right.variance_removed["edited"] == pytest.approx(0, abs=1e-12)
    assert wrong.variance_removed["edited"] > 0.3, "the wrong way"


# Saturation


@pytest.mark.compat
def test_accuracy_is_at_its_ceiling_and_a_patch_seems_to_do_nothing() -> None:
    """Half of the vector moves the logit difference by half, and the accuracy by nothing."""
    model = reader()
    clean, corrupted = torch.arange(8).reshape(8, 1), (torch.arange(8).reshape(8, 1) + 1) % 8
    right, wrong = clean[:, 0], corrupted[:, 0]
    half = {
        "controls": {"half": lambda hooks, seed: [(n, h.with_intervention(halved(h.intervention))) for n, h in hooks]}
    }

    def halved(edit: Ablate) -> Ablate:
        return Ablate(None, edit.to, strength=0.49)

    with pytest.warns(
        UserWarning, match=r"accuracy is at its ceiling on the clean prompts \(1\.000\) and at its floor on .*: places"
    ):
        blunt = patch(model, clean, corrupted, accuracy(right), SITE, mode="noise", **half)
    sharp = patch(model, clean, corrupted, logit_diff(right, wrong), SITE, mode="noise", **half)
    assert float(blunt.share(blunt.controls["half"])) == 0.0, "the wrong way: the patch seems to do nothing"
    assert float(sharp.share(sharp.controls["half"])) == pytest.approx(0.49)
    assert "ceiling" in repr(blunt)
    assert "ceiling" not in repr(sharp)


def test_probability_is_at_its_ceiling_too() -> None:
    """A metric of the user's own in [0, 1] is told apart from a logit difference by its values."""
    model = reader(gain=30.0)
    clean, corrupted = torch.arange(8).reshape(8, 1), (torch.arange(8).reshape(8, 1) + 1) % 8

    def probability(logits: Tensor, before: Tensor | None, rows: Tensor) -> Tensor:
        return logits[:, -1].softmax(-1).gather(1, clean[rows])[:, 0]

    with pytest.warns(UserWarning, match="probability is at its ceiling"):
        found = patch(model, clean, corrupted, probability, SITE, controls={})
    assert found.saturated


# Damage that raises the metric


def test_the_share_of_a_loss_that_is_left_calls_every_edit_harmless(model: Any) -> None:
    """ "At least 95 % of the clean cross-entropy" holds at every k, however broken the model is."""
    prompts = tokens_for(model, 30, 5)
    answers = logits_with(model, prompts)[:, -1].argmax(-1)
    found = mi.removal_curve(model, prompts, Subspace.random(16, 14), mi.cross_entropy(answers), at=SITE, controls={})
    passed = found.values >= 0.95 * found.clean
    assert passed[-1], "the wrong way: the last k still counts as survived"
    assert found.values[-1] > 1.5 * found.clean
    with pytest.raises(ValueError, match="cross_entropy rises with damage"):
        found.k_at(0.95)
