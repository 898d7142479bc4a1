"""The gated toy under attack: its forward pass from embeddings, overwrites enumerated, smallest changes, and its defences."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate.studies import nudges, overwrites
from mi_ablate.toys import ToyConfig, build, tasks
from mi_ablate.toys.defences import defended, projected, residual_sites
from mi_ablate.toys.embedded import Embedded
from mi_ablate.toys.recipes import TrainConfig
from mi_ablate.toys.stepper import initial_state

SHAPE = ToyConfig(5, d_model=16, n_heads=2, d_mlp=24, gate=((0, 2), (3,)))
STATE = {name: 3 * w for name, w in initial_state(SHAPE, "log", 0).items()}
NET = Embedded(SHAPE, STATE)
PROMPTS = tasks.all_tokens(SHAPE)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("norm", ["LN", "RMS", None])
def test_logits_from_embeddings_are_the_models(layers, norm):
    shape = replace(SHAPE, n_layers=layers, normalization=norm)
    state = initial_state(shape, "log", 1)
    state = {
        name: w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(2)) for name, w in state.items()
    }
    tokens = torch.randint(shape.d_vocab, (40, 4), generator=torch.Generator().manual_seed(3))
    net = Embedded(shape, state)
    with torch.no_grad():
        wanted = build(shape, state)(tokens)[:, -1]
    torch.testing.assert_close(net.logits(net.embed(tokens)), wanted, rtol=1e-4, atol=1e-4)


def test_last_tokens_share_a_beginning_and_do_not_see_each_other():
    before, last = NET.embed(PROMPTS)[:6, :3], NET.embed(torch.arange(SHAPE.d_vocab)[:, None], torch.tensor([3]))
    together = NET.last(last.transpose(0, 1).expand(6, -1, -1), NET.past(before))
    for i in range(6):
        for token in range(SHAPE.d_vocab):
            alone = NET.logits(torch.cat((before[i : i + 1], last[token : token + 1]), 1))[0]
            torch.testing.assert_close(together[i, token], alone, rtol=1e-3, atol=1e-3)


def test_a_bidirectional_toy_has_no_such_pass():
    with pytest.raises(ValueError, match="cannot be trained here"):
        Embedded(replace(SHAPE, attention="bidirectional"), STATE)


def by_hand(kind, prompt):
    """Every attacked prompt of a kind, in the order of `overwrites.attacked`, without those that change nothing."""
    size, found = SHAPE.d_vocab, []
    pairs = {
        "one overwrite": [(t, prompt[3]) for t in range(size)] + [(prompt[1], t) for t in range(size)],
        "two overwrites": [(s, t) for s in range(size) for t in range(size)],
    }
    for s, t in pairs.get(kind, []):
        found.append([prompt[0], s, prompt[2], t])
    for place, name in ((0, "rewrite of a"), (2, "rewrite of b")):
        for token in range(size) if kind == name else ():
            found.append([token if i == place else old for i, old in enumerate(prompt)])
    return [one for one in found if one != prompt]


@pytest.mark.parametrize("kind", overwrites.KINDS[:-1])
def test_attacks_are_all_of_them_and_nothing_else(kind, monkeypatch):
    model = build(SHAPE, STATE)
    mine = PROMPTS[torch.tensor([0, 7, 13, 18])]
    wanted = []
    for prompt in mine.tolist():
        with torch.no_grad():
            wanted.append(model(torch.tensor(by_hand(kind, prompt)))[:, -1].argmax(-1))
    found = overwrites.attacked(NET, kind, mine)
    assert torch.equal(found, torch.stack(wanted))
    monkeypatch.setattr(overwrites, "ROWS", SHAPE.d_vocab)  # a prompt at a time
    assert torch.equal(overwrites.attacked(NET, kind, mine), found)
    assert len(found.unique()) > 1, "a model that always says the same would pass"


def test_an_insertion_leaves_the_four_tokens_where_they_were():
    mine = PROMPTS[torch.tensor([3, 11])]
    found = overwrites.attacked(NET, "insertion", mine).view(2, 4, SHAPE.d_vocab)
    for i, prompt in enumerate(mine):
        for slot in range(4):
            for token in range(SHAPE.d_vocab):
                tokens = torch.tensor([[*prompt[:3].tolist(), token, int(prompt[3])]])
                x = NET.embed(tokens, torch.tensor([0, 1, 2, slot, 3]))
                assert int(NET.logits(x).argmax()) == int(found[i, slot, token])


def test_no_such_attack():
    with pytest.raises(ValueError, match="There is no attack 'suffix'; there are one overwrite"):
        overwrites.attacked(NET, "suffix", PROMPTS)


@settings(max_examples=30)
@given(seed=st.integers(0, 999))
def test_random_answers_reach_the_sum_as_often_as_any_number(seed):
    generator = torch.Generator().manual_seed(seed)
    answers = torch.randint(13, (200, 60), generator=generator)  # 11 numbers and 2 DECLINE tokens
    found = overwrites.scores(answers, torch.randint(11, (200,), generator=generator), 11)
    assert found["pairs"] == pytest.approx(found["lottery_pairs"], abs=0.015)
    assert min(found["bypass"], found["lottery"]) > 0.9, "60 draws of 13 hit any number: bypasses alone say nothing"
    assert found["any_number"] == pytest.approx(11 / 13, abs=0.03)
    assert found["universal"]["others"] < 0.4


def test_planted_bypasses_are_counted():
    sums = torch.arange(10) % 7
    answers = torch.full((10, 20), 7)  # declines
    answers[:, 4] = sums  # one attack that always works
    answers[:5, 9] = (sums[:5] + 1) % 7
    found = overwrites.scores(answers, sums, 7)
    assert found["bypass"] == 1.0
    assert found["pairs"] == pytest.approx(1 / 20)
    assert found["lottery"] == pytest.approx(0.5 / 6)
    assert found["any_number"] == pytest.approx(15 / 200)
    assert found["universal"] == {"attack": 4, "chosen": 1.0, "others": 1.0}
    answers[5:, 4] = 7  # works on the half that chooses and nowhere else
    assert overwrites.scores(answers, sums, 7)["universal"] == {"attack": 4, "chosen": 1.0, "others": 0.0}


class Linear(Embedded):
    """A stand-in whose logits are linear in what enters: the smallest change towards a token is known."""

    config = SHAPE

    def __init__(self, gap):
        self.readout = torch.zeros(4, 8, 7)
        self.readout[0, 0, 0] = 1.0  # the number 0 is read from one coordinate of the first position
        self.gap = gap

    def embed(self, tokens):
        x = torch.zeros(len(tokens), 4, 8)
        x[:, :, 1] = 2.0  # every |x_i| is 2, and no coordinate that is read is set
        return x

    def logits(self, x):
        out = torch.einsum("npd,pdv->nv", x, self.readout)
        return out + self.gap * torch.nn.functional.one_hot(torch.tensor(5), 7)  # DECLINE leads by the gap


@pytest.mark.parametrize("gap", [0.3, 1.1, 1.9])
def test_the_smallest_change_of_a_linear_model_is_found(gap):
    net, tokens = Linear(gap), PROMPTS[:6]
    zeros = torch.zeros(6, dtype=torch.long)
    radius = nudges.smallest(net, tokens, zeros, "a")
    assert bool((radius >= gap / 2).all())
    assert bool((radius <= gap / 2 + 1 / 32).all())
    assert bool(nudges.smallest(net, tokens, zeros, "b").isinf().all()), "nothing is read there"
    assert bool(nudges.smallest(Linear(2.1), tokens, zeros, "a").isinf().all()), "beyond the largest radius"
    told = nudges.told(radius)
    assert told["low"] <= told["median"] <= told["high"]
    assert told["within"] == 1.0
    assert nudges.told(torch.tensor([0.1, torch.inf, torch.inf, torch.inf]))["median"] is None
    random = nudges.random_changes(net, tokens, zeros, "a", radius)
    assert random["right"] < 0.2, "a random direction of the same size does not do"


def test_changes_stay_within_the_radius(monkeypatch):
    seen = []
    monkeypatch.setattr(
        Embedded, "logits", lambda self, x, old=Embedded.logits: seen.append(x.detach()) or old(self, x)
    )
    x = NET.embed(PROMPTS[:8])
    radius = torch.linspace(0.05, 0.4, 8)
    at = torch.tensor(nudges.PLACES["everywhere"])
    nudges.reached(NET, x, torch.full((8,), 2), at, radius, torch.Generator().manual_seed(0))
    assert len(seen) > 1
    for changed in seen:
        share = (changed.view(nudges.RESTARTS, 8, 4, -1) - x).norm(dim=-1) / x.norm(dim=-1)
        assert bool((share <= radius[:, None] * (1 + 1e-4)).all())


def test_the_projection_of_training_is_the_removal_at_every_writer():
    model, space = build(SHAPE, STATE), mi.Subspace.random(16, 3, 0)
    hooks = mi.Ablate(space).at(*mi.writers(model), pos=-1)
    with torch.no_grad(), mi.attached(model, hooks):
        wanted = model(PROMPTS)[:, -1]
    torch.testing.assert_close(projected(SHAPE, STATE, PROMPTS, space), wanted, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        clean = model(PROMPTS)[:, -1]
    torch.testing.assert_close(projected(SHAPE, STATE, PROMPTS, None), clean, rtol=1e-4, atol=1e-4)
    assert float((wanted - clean).abs().max()) > 0.1


def test_a_defence_repeats_and_its_control_differs():
    config = TrainConfig(SHAPE, seed=1, batch_size=16, steps=20)
    rows = torch.arange(0, 25)
    shape = replace(SHAPE, n_layers=1)
    config = replace(config, config=shape)
    weights = initial_state(shape, "log", 1)
    assert residual_sites(shape) == ("blocks.0.hook_resid_mid", "blocks.0.hook_resid_post")
    one, again, random = (defended(config, weights, rows, random=r, steps=12) for r in (False, False, True))
    assert all(torch.equal(one[name], w) for name, w in again.items())
    assert any(not torch.equal(one[name], w) for name, w in random.items())
    assert any(not torch.equal(one[name], w) for name, w in weights.items())
