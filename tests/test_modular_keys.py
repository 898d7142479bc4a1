"""Key frequencies by every published rule, spectra and cosine shares: on the zoo's and on third-party models."""

from dataclasses import replace

import pytest
import torch

from mi_ablate import toys
from mi_ablate.modular import (
    RULES,
    Grid,
    cosine_share,
    embedding_spectrum,
    grid,
    key_frequencies,
    logit_spectrum,
    neuron_frequencies,
    neuron_logit_spectrum,
    neuron_spectrum,
    spectrum,
    unembedding_spectrum,
)
from models import data_folder


@pytest.fixture(scope="module")
def nanda() -> Grid:
    return grid(toys.load(data_folder() / "third_party_models" / "nanda_mod113.safetensors"))


@pytest.fixture(scope="module")
def small() -> Grid:
    return grid(toys.load("nanda113"))


def test_the_published_model_has_its_published_frequencies(nanda: Grid) -> None:
    keys = key_frequencies(nanda)
    assert list(keys) == list(RULES)
    assert keys["energy"].frequencies == (23, 6, 39, 3, 35)
    assert keys["energy"].values == pytest.approx((0.341, 0.230, 0.216, 0.090, 0.073), abs=1e-3)
    assert keys["tl_demo"].frequencies == keys["nanda_eye"].frequencies == (23, 6, 39, 3, 35)
    assert set(keys["neurons"].frequencies) == {23, 6, 39, 3}, "no neuron follows 35"
    assert set(keys["nanda_text"].frequencies) == {39, 23, 6, 3, 9, 46}, "what the readout has: 9, and not 35"
    neurons = neuron_frequencies(nanda.acts("blocks.0.mlp.hook_post"))
    assert {k: len(members) for k, members in neurons.clusters().items()} == {6: 106, 23: 194, 39: 105}
    assert len(neurons.unassigned()) == 107


@pytest.mark.compat
def test_our_nanda_model_has_three_frequencies_by_every_rule_but_the_count(small: Grid) -> None:
    keys = key_frequencies(small)
    assert keys["energy"].frequencies[:3] == (8, 21, 1)
    for rule in RULES[1:]:
        assert set(keys[rule].frequencies) == {1, 8, 21}, rule
    assert sum(keys["neurons"].values) == 512
    assert repr(keys["nanda_eye"]) == "Keys(nanda_eye: 8, 21, 1)"
    share = cosine_share(small.logits)
    assert share.top(3) == [8, 21, 1]
    assert float(share.fve[[7, 20, 0]].sum()) == pytest.approx(0.513, abs=2e-3)
    shares = {f.__name__: f(small) for f in (embedding_spectrum, unembedding_spectrum, neuron_logit_spectrum)}
    assert all(set(x.top(3)) == {1, 8, 21} for x in shares.values())
    for found in (neuron_spectrum(small), logit_spectrum(small)):
        assert set((found.sums.argsort(descending=True)[:3] + 1).tolist()) == {1, 8, 21}


def test_a_run_that_never_generalised_gets_no_frequencies(small: Grid) -> None:
    wrong = replace(small, c=small.c.roll(1))
    for rule, found in key_frequencies(wrong).items():
        assert found.rule == rule
        assert found.frequencies == ()
        assert found.reason == "accuracy 0.000 on test pairs is below 0.9: the model has not generalised"
    assert key_frequencies(wrong, least=0.0)["energy"].frequencies, "the level is the caller's"
    # a network that knows its training pairs by heart has not generalised either, however many these are
    learnt = replace(small, train=torch.rand(113, 113, generator=torch.Generator().manual_seed(0)) < 0.95)
    learnt.__dict__["all_logits"] = small.all_logits.clone()
    learnt.all_logits[~learnt.train] = 0
    assert learnt.accuracy > 0.94
    assert not key_frequencies(learnt)["energy"].frequencies


def test_addition_mod_97_by_energy_and_by_neurons() -> None:
    add = grid(toys.load("add97"))
    keys = key_frequencies(add, count=4)
    assert keys["energy"].frequencies == (44, 6, 11, 16)
    assert keys["neurons"].frequencies == (44, 6, 11, 16)
    assert keys["energy"].threshold is None
    with pytest.raises(ValueError, match="0 frequencies were asked for; Z_97 has 1 to 48"):
        key_frequencies(add, count=0)


def test_multiplication_is_sparse_only_after_the_discrete_log() -> None:
    toy = toys.load("addmul97")
    mul = grid(toy, "mul")
    logs = neuron_frequencies(mul.acts("blocks.1.mlp.hook_post"))
    assert logs.frequencies == [15, 17, 39, 44, 48]
    assert logs.by("arena").frequencies == [15, 17, 39, 44], "48 = n // 2 is out of its reach"
    with pytest.raises(ValueError, match="variant='np' is one of nanda_text"):
        logs.by("np")
    order = mul.a.argsort()  # the non-zero residues 1 .. 96 as they stand
    raw = mul.logits[order][:, order][..., order]
    assert float(cosine_share(mul.logits).fve.sum()) > 0.55
    assert float(cosine_share(raw).fve.sum()) < 0.05
    means = torch.stack([mul.logits[mul.answers == c].mean(0) for c in range(96)])
    top5 = {
        name: spectrum(x).share(*spectrum(x).top(5)) for name, x in {"log": means, "residues": means[order]}.items()
    }
    assert top5["log"] > 2 * top5["residues"]


@pytest.mark.parametrize("p", [2, 3, 4])
def test_the_smallest_groups_have_frequencies_too(p: int) -> None:
    toy = toys.load("nanda113")
    keep = (toy.inputs["a"] < p) & (toy.inputs["b"] < p)
    inputs = {name: x[keep] for name, x in toy.inputs.items()}
    answers = (inputs["a"] + inputs["b"]) % p
    tiny = replace(toy, tokens=toy.tokens[keep], answers=answers, modulus=p, inputs=inputs, train=None)
    keys = key_frequencies(grid(tiny), count=1, least=0.0)
    assert len(keys["energy"].frequencies) == 1
    assert keys["tl_demo"].frequencies
    assert keys["nanda_eye"].frequencies
    if p < 4:
        assert keys["arena"].reason == f"it looks at the frequencies below 1, and Z_{p} has none"
    assert cosine_share(grid(tiny).logits).coefficients.shape == (p // 2,)


def test_no_neurons_and_no_variation_are_said(small: Grid) -> None:
    from types import SimpleNamespace

    class AttentionOnly:
        """The same model, said to have no neurons."""

        cfg = SimpleNamespace(attn_only=True, n_layers=1)

        def __getattr__(self, name: str) -> object:
            return getattr(small.model, name)

        def __call__(self, *args: object, **kwargs: object) -> object:
            return small.model(*args, **kwargs)

    bare = Grid(AttentionOnly(), small.tokens, "add", 113, small.a, small.b, small.c, None)  # type: ignore[arg-type]
    bare.__dict__["all_logits"] = small.all_logits
    keys = key_frequencies(bare)
    assert keys["neurons"].reason == "the model has no neurons"
    assert set(keys["tl_demo"].frequencies) == {1, 8, 21}
