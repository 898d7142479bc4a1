"""A planted adder adds, and what was planted in it comes back from the model: helices, roles, effects, neurons."""

import math
import tempfile

import pytest
import torch

import mi_ablate as mi
from mi_ablate import arithmetic
from mi_ablate.arithmetic import planted, problems
from mi_ablate.arithmetic.by_hand.planted_truth import SHARES
from models import data_folder, has_hooked_transformer

SITES = ("hook_embed", *(f"blocks.{i}.hook_resid_{kind}" for i in range(4) for kind in ("pre", "mid", "post")))
CIRCLES = [f"{word} {T}" for T in (2, 5, 10, 100) for word in ("cos", "sin")]


@pytest.fixture(scope="module")
def adder():
    return planted()


@pytest.fixture(scope="module")
def sums(adder):
    """800 problems without a beginning-of-sequence token; every operand occurs."""
    return ask(adder, bos=False, limit=800)


def ask(adder, **options):
    return problems(adder.model, "add", range(100), range(100), template=adder.template, **options)


def last_logits(adder, asked):
    with torch.no_grad():
        parts = [adder.model(rows)[:, -1, asked.numerals.ids].double() for rows in asked.tokens.split(1000)]
    return torch.cat(parts)


def off(adder, asked):
    """Share of right answers, and the largest distance of a number's logit from the equation."""
    found, answer = last_logits(adder, asked), asked.inputs["answer"]
    wanted = adder.truth.logits(answer, asked.numerals.values)
    right = asked.numerals.values[found.argmax(1)] == answer
    return float(right.double().mean()), float((found - wanted).abs().max())


@pytest.mark.compat
@pytest.mark.parametrize("bos", [False, True])
def test_it_adds_and_its_logits_are_the_equation(adder, bos):
    some = ask(adder, bos=bos, limit=150)
    given = arithmetic.asked(adder.model, some)
    assert given.accuracy == 1.0
    accuracy, distance = off(adder, some)
    assert accuracy == 1.0
    assert distance < 1e-4
    wrong = adder.truth.logits(some.inputs["answer"] + 10, some.numerals.values)
    assert (last_logits(adder, some) - wrong).abs().max() > 10


def test_all_sums_below_100_in_float32():
    adder = planted(dtype=torch.float32, seed=5)
    accuracy, distance = off(adder, ask(adder, bos=False))
    assert accuracy == 1.0
    assert distance < 0.2
    assert 1e-6 < adder.truth.mlp_error < 1e-4


@pytest.mark.parametrize(
    ("template", "bos"),
    [("Sum: {a} + {b} =", False), ("Output ONLY a number.\n{a}+{b}=", False), ("The sum of {a} and {b} is", True)],
)
def test_other_templates(template, bos):
    adder = planted(template=template, seed=1)
    some = ask(adder, bos=bos, limit=100)
    assert some.positions == {**adder.words.offsets, "answer": -1}
    assert off(adder, some)[0] == 1.0
    assert some.forms["answer"] == ("bare" if template.endswith("}=") else "spaced")


@pytest.mark.parametrize(("periods", "linear"), [((7, 23.5), 1.0), ((2, 5, 10, 100, 1000), 0), ((3.3,), 2)])
def test_other_periods(periods, linear):
    adder = planted(periods=periods, linear=linear, seed=2)
    some = ask(adder, bos=False, limit=200)
    accuracy, distance = off(adder, some)
    assert accuracy == 1.0
    assert distance < 1e-3
    site = "blocks.1.hook_resid_pre"
    found = arithmetic.helix_fits(arithmetic.number_means(adder.model, ask(adder, bos=False, limit=600), site), periods)
    assert found.fit(site).coef == pytest.approx(adder.truth.coef(site, "a"), abs=1e-6)
    assert adder.truth.coef(site, "a")[0].norm() == pytest.approx(linear / 100)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("of", ["a", "b"])
def test_the_operands_helix_comes_back_at_every_site(adder, of, bos):
    asked = ask(adder, bos=bos, limit=800)
    means = arithmetic.number_means(adder.model, asked, SITES, of=of)
    fits = arithmetic.helix_fits(means)
    for site in SITES:
        fit = fits.fit(site)
        assert tuple(label.removeprefix(f"{of}:") for label in fit.labels) == adder.truth.labels
        assert fit.coef == pytest.approx(adder.truth.coef(site, of, bos=bos), abs=1e-6), site
        assert fit.r2 > 1 - 1e-9
    alone = adder.truth.coef(SITES[-1], of) - adder.truth.coef(SITES[-1], of, bos=True)
    assert (alone.norm() > 1) == (of == "a"), "a first token copies itself"


def test_radii_and_phases_are_those_of_the_embedding(adder, sums):
    truth, numbers = adder.truth, torch.arange(100).double()
    means = arithmetic.embedding_means(adder.model, sums.numerals)
    z = means.at("W_E")[:100] @ truth.directions["number"]
    assert z[:, 0] == pytest.approx(numbers * truth.linear / 100, abs=1e-12)
    column = 1
    for T in truth.periods:
        angle = 2 * math.pi * numbers / T + truth.phases[T]
        assert z[:, column] == pytest.approx(truth.radii[T] * angle.cos(), abs=1e-12)
        if T != 2:
            assert z[:, column + 1] == pytest.approx(truth.radii[T] * angle.sin(), abs=1e-12)
        column += 1 if T == 2 else 2
    assert column == z.shape[1] == 8
    assert sorted(truth.radii.values()) == [truth.radii[T] for T in (2, 5, 10, 100)]
    assert len({round(phase, 6) for phase in truth.phases.values()}) == 4


def test_directions_are_orthonormal_and_the_norms_do_nothing(adder, sums):
    frame = torch.cat(list(adder.truth.directions.values()), dim=1)
    assert frame.T @ frame == pytest.approx(torch.eye(frame.shape[1]).double(), abs=1e-12)
    assert frame.sum(0).abs().max() < 1e-12
    names = ["blocks.1.ln1.hook_scale", "blocks.3.ln2.hook_scale", "ln_final.hook_scale"]
    scales = torch.stack([x[:, 0] for x in mi.collect(adder.model, sums.tokens, names).values()])
    spread = (scales / scales.min() - 1).max()
    assert 1e-10 < spread < adder.truth.norm_error < 1e-7


def test_the_last_token_holds_what_was_copied_and_built(adder, sums):
    sites = ["blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out", "blocks.2.hook_attn_out", "blocks.3.hook_mlp_out"]
    acts = mi.collect(adder.model, sums.tokens, sites)
    for site, basis in zip(sites, ("a,b", "answer", "answer", "answer")):
        design = arithmetic.pair_design(sums.inputs, basis)
        fit = mi.fit(acts[site], design)
        assert fit.r2 > 1 - 1e-9
        for of in basis.split(","):
            rows = [i for i, label in enumerate(fit.labels) if label.startswith(f"{of}:")]
            wanted = adder.truth.coef(site, of, "answer")
            assert fit.coef[rows] == pytest.approx(wanted, abs=1e-6)
            assert wanted.norm() > 0.1
    other = mi.fit(acts["blocks.1.hook_mlp_out"], arithmetic.pair_design(sums.inputs, "a,b"))
    assert other.r2 < 0.35, "the line alone is a function of a plus one of b"
    end = "blocks.3.hook_resid_post"
    fit = mi.fit(mi.collect(adder.model, sums.tokens, end)[end], arithmetic.pair_design(sums.inputs))
    for of in ("a", "b", "answer"):  # the lines of a, b and a + b are one too many
        rows = [i for i, label in enumerate(fit.labels) if label.startswith(f"{of}:") and "linear" not in label]
        assert fit.coef[rows] == pytest.approx(adder.truth.coef(end, of, "answer")[1:], abs=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1.2e-7), (torch.float32, 2e-3)])
def test_the_built_coordinates_are_within_the_stated_error(dtype, bound):
    adder = planted(dtype=dtype, seed=1)
    some = ask(adder, bos=False, limit=1000)
    site = "blocks.1.hook_mlp_out"
    built = mi.collect(adder.model, some.tokens, site)[site].double() @ adder.truth.directions["sum"]
    error = float((built - adder.truth.coordinates(some.inputs["answer"], "answer")).abs().max())
    assert adder.truth.mlp_error / 100 < error < bound


def test_heads_attend_where_they_should(adder, sums):
    truth = adder.truth
    patterns = [f"blocks.{i}.attn.hook_pattern" for i in (1, 2, 3)]
    found = {}
    with mi.attached(
        adder.model, [(name, lambda x, hook=None, n=name: found.update({n: x}) or x) for name in patterns]
    ):
        adder.model(sums.tokens[:20])
    for name, key in (("a", 0), ("decoy", 0), ("b", 2), ("a+b 2", 3), ("a+b 3", 3)):
        layer, head = truth.heads[name]
        at = found[f"blocks.{layer}.attn.hook_pattern"][:, head]
        assert at[:, 3, key].min() > 1 - 1e-12, name
        if layer == 1:
            assert at[:, 2, 1].min() > 1 - 1e-12, "a token that does not ask rests on the word before it"
    layer, head = next((1, h) for h in range(4) if truth.role((1, h)) == "neutral")
    assert found["blocks.1.attn.hook_pattern"][:, head, 3].detach() == pytest.approx(torch.full((20, 4), 0.25).double())


PARTS = [(layer, head) for layer in range(4) for head in range(4)] + list(range(4))


def slow_effects(model, pairs, part):
    """Total and direct effect by their definitions: patch and run on; add to the last residual stream."""
    name = f"blocks.{part}.hook_mlp_out" if isinstance(part, int) else f"blocks.{part[0]}.attn.hook_z"
    end = "blocks.3.hook_resid_post"
    clean = mi.collect(model, pairs.clean.tokens, name)[name]
    corrupted = mi.collect(model, pairs.corrupted.tokens, name)[name]

    def gain(hook, site):
        with torch.no_grad(), mi.attached(model, [(site, hook)]):
            after = model(pairs.corrupted.tokens)[:, -1]
        with torch.no_grad():
            before = model(pairs.corrupted.tokens)[:, -1]
        return (after - before)[torch.arange(len(pairs)), pairs.clean.answers]

    def replaced(x, hook=None):
        x = x.clone()
        if isinstance(part, int):
            x[:, -1] = clean
        else:
            x[:, -1, part[1]] = clean[:, part[1]]
        return x

    def added(x, hook=None):
        if isinstance(part, int):
            change = clean - corrupted
        else:
            change = (clean - corrupted)[:, part[1]] @ model.blocks[part[0]].attn.W_O[part[1]]
        x = x.clone()
        x[:, -1] += change
        return x

    return gain(replaced, name), gain(added, end)


def test_effects_are_those_of_the_definition(adder, sums):
    pairs = arithmetic.pairs(sums, 12)
    largest = adder.truth.gain(pairs.clean.inputs["answer"], pairs.corrupted.inputs["answer"]).abs().max()
    roles = {}
    for part in PARTS:
        total, direct = adder.truth.effects(part, pairs.clean.inputs, pairs.corrupted.inputs)
        slow_total, slow_direct = slow_effects(adder.model, pairs, part)
        assert total == pytest.approx(slow_total, abs=1e-4), part
        assert direct == pytest.approx(slow_direct, abs=1e-4), part
        roles.setdefault(adder.truth.role(part), []).append(part)
        has_total, has_direct = bool(total.abs().max() > 0.01 * largest), bool(direct.abs().max() > 0.01 * largest)
        role = adder.truth.role(part)
        assert has_total == (role not in ("neutral", "decoy"))
        assert has_direct == (role == "reads a+b")
    assert len(roles["reads a+b"]) == 4
    assert sum(SHARES.values()) == pytest.approx(1)
    assert [len(roles[name]) for name in ("copies a", "copies b", "decoy", "builds a+b")] == [1, 1, 1, 1]


def test_the_decoy_holds_a_helix_that_nothing_reads(adder, sums):
    layer, head = adder.truth.heads["decoy"]
    z = mi.collect(adder.model, sums.tokens, f"blocks.{layer}.attn.hook_z")[f"blocks.{layer}.attn.hook_z"][:, head]
    assert mi.fit(z, mi.helix(sums.inputs["a"])).r2 > 1 - 1e-9
    pairs = arithmetic.pairs(sums, 5)
    assert slow_effects(adder.model, pairs, (layer, head))[0].abs().max() < 1e-4


def test_every_neuron_is_known(adder, sums):
    names = [f"blocks.{i}.mlp.hook_pre" for i in (1, 2, 3)]
    acts = mi.collect(adder.model, sums.tokens, names)
    helices = {of: mi.helix(sums.inputs[of], name=of) for of in ("a", "b", "answer")}
    designs = {"a, b": helices["a"] | helices["b"], "a+b": helices["answer"]}
    columns = {kind: dict(zip(design.labels, design.matrix.T)) for kind, design in designs.items()}
    alive = {(n["layer"], n["neuron"]) for n in adder.truth.neurons}
    assert len(alive) == len(adder.truth.neurons) == 106 + 2 * 16
    for neuron in adder.truth.neurons:
        found = acts[f"blocks.{neuron['layer']}.mlp.hook_pre"][:, neuron["neuron"]]
        terms = columns[neuron["reads"]]
        assert found == pytest.approx(sum(x * terms[label] for label, x in neuron["terms"].items()), abs=1e-6)
        periods = {label.split(" ")[1] for label in neuron["terms"] if " " in label}
        assert periods == ({f"{neuron['period']}"} if neuron["period"] else set())
    for layer, name in enumerate(names, start=1):
        dead = [i for i in range(acts[name].shape[1]) if (layer, i) not in alive]
        assert acts[name][:, dead].abs().max() == 0


def test_shuffled_numbers_hold_the_same_vectors_and_add_nothing(sums):
    control = planted(shuffled=True)
    some = ask(control, bos=False, limit=800)
    assert off(control, some)[0] < 0.02
    means = arithmetic.number_means(control.model, some, "blocks.1.hook_resid_pre")
    assert arithmetic.helix_fits(means).fit(0).r2 < 0.25  # 8 columns of 99: 0.08 on average
    plain, mixed = (x.model.W_E[list(x.words.bare.values())].detach() for x in (planted(), control))
    assert mixed.sort(0).values == pytest.approx(plain.sort(0).values, abs=1e-12)


def test_noise_moves_fits_as_far_as_least_squares_says():
    sigma, scores = 0.01, []
    design = mi.helix(range(521))
    x = torch.cat([torch.ones(521, 1).double(), design.matrix[:, [i for i in range(9) if i != 2]]], dim=1)
    spread = sigma * torch.linalg.inv(x.T @ x).diagonal().sqrt()[1:, None]
    for seed in range(3):
        noisy = planted(noise=sigma, seed=seed)
        rows = noisy.model.W_E[[noisy.words.bare[n] for n in range(521)]].detach()
        error = mi.fit(rows, design).coef - noisy.truth.coef("hook_embed", "a")
        scores.append((error @ noisy.truth.directions["number"])[[i for i in range(9) if i != 2]] / spread)
    z = torch.stack(scores).flatten()
    assert 0.75 < float((z**2).mean()) < 1.25  # 192 squares of standard normals: 1 ± 0.1
    assert z.abs().max() < 5
    assert off(noisy, ask(noisy, bos=False, limit=200))[0] == 1.0


@pytest.mark.compat
def test_a_saved_adder_is_an_ordinary_folder(adder, sums):
    some = sums[:20]
    with tempfile.TemporaryDirectory() as folder:
        adder.save(folder)
        loaded = mi.load_model(folder, dtype="float64")
    assert type(loaded) is type(adder.model)
    assert has_hooked_transformer() == (type(loaded).__name__ == "HookedTransformer")
    torch.testing.assert_close(loaded(some.tokens), adder.model(some.tokens), rtol=0, atol=1e-9)
    assert (
        loaded.to_tokens("12+34=", prepend_bos=False).tolist()
        == adder.model.to_tokens("12+34=", prepend_bos=False).tolist()
    )


def test_the_small_tokenizer_has_gpt2s_range(adder, sums):
    for form in ("bare", "spaced"):
        assert arithmetic.numerals(adder.tokenizer, form).contiguous == 520
        assert len(arithmetic.numerals(adder.tokenizer, form)) == 521
    assert adder.tokenizer.decode(adder.tokenizer("12 + 521=")["input_ids"]) == "12 + 521="
    assert len(adder.tokenizer("521")["input_ids"]) == 2


@pytest.mark.parametrize(("kind", "ids"), [("gpt2", {"34": 2682, " 34": 4974}), ("pythia", {"34": 1706, " 34": 5910})])
def test_the_real_tokenizers(kind, ids):
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    folder = data_folder() / "tokenizers" / kind
    if kind == "gpt2":
        files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
        tokenizer = GPT2TokenizerFast(**files, vocab_file=files["vocab"], merges_file=files["merges"])
    else:
        end = "<|endoftext|>"
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token=end, eos_token=end)
    adder = planted(tokenizer, dtype=torch.float32)
    assert adder.model.W_E.shape[0] == len(tokenizer) > 50000
    assert [adder.words.bare[34], adder.words.spaced[34]] == list(ids.values())
    some = ask(adder, bos=False, limit=40)
    assert arithmetic.asked(adder.model, some).accuracy == 1.0
    fits = arithmetic.helix_fits(arithmetic.embedding_means(adder.model, some.numerals))
    assert fits.fit(0).coef == pytest.approx(adder.truth.coef("hook_embed", "a"), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"periods": (2, 1.5)}, "periods [2, 1.5] must be different numbers of at least 2, and at least one."),
        ({"periods": (10, 10.0)}, "must be different numbers of at least 2"),
        ({"periods": ()}, "must be different numbers of at least 2"),
        ({"linear": 0}, "without a line cannot tell answers 100 apart; add a period or the line, linear=1."),
        ({"periods": (1000,)}, "with a line cannot tell answers 1 apart; add a period."),
        ({"linear": -1}, "linear=-1 is a length: give 0 or more."),
        ({"noise": math.nan}, "noise=nan is a length: give 0 or more."),
        ({"template": "{a}+="}, "template '{a}+=' must hold {a} and {b} once each, as in \"{a}+{b}=\"."),
        (
            {"template": "={a}+{b}"},
            "must have one token for each operand and end after them; with 12 and 34 it becomes",
        ),
        ({"template": "{a}+{b}= "}, "and no space at the end, which a tokenizer joins"),
        ({"template": "is " * 40 + "{a}+{b}="}, "has 44 tokens: at most 32, and no space at the end"),
        ({"template": "{a}{b}="}, "must have one token for each operand and end after them"),
    ],
)
def test_what_cannot_be_planted(options, message):
    with pytest.raises(ValueError, match=r"\w") as error:
        planted(**options)
    assert message in str(error.value)


def test_there_is_no_planted_helix_at_other_sites(adder):
    with pytest.raises(ValueError, match="is no site with a planted helix; take hook_embed"):
        adder.truth.coef("blocks.1.attn.hook_z", "a")
    assert repr(adder) == "Planted('{a}+{b}=', Truth(periods 2, 5, 10, 100, MLP error 2e-08))"
