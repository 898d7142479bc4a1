"""Problems as prompts, what models answer, pairs: positions verified, what does not fit refused, chance beside accuracy."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate.arithmetic import TASKS, Asked, Problems, Task, asked, count_pairs, pairs, problems, problems_of
from models import tiny
from test_arithmetic_numerals import numbers_tokenizer, published

MODELS: dict[str, Any] = {}


def speaking(name: str) -> Any:
    """A small random model with a published tokenizer, or one of whole words."""
    if name not in MODELS:
        tokenizer = numbers_tokenizer() if name == "words" else published(name)
        MODELS[name] = tiny(vocab=len(tokenizer), n_ctx=24, dtype=torch.float32, d_model=8, d_mlp=8)
        MODELS[name].tokenizer = tokenizer
    return MODELS[name]


def check(found: Problems, tokenizer: Any) -> None:
    """What every set of problems promises."""
    n = len(found)
    assert found.tokens.shape[0] == len(found.text) == len(found.answers) == n
    for name in found.operands:
        at = tokenizer.batch_decode(found.tokens[:, found.positions[name], None])
        assert [int(text) for text in at] == found.inputs[name].tolist()
        assert all(text.startswith(" ") == (found.forms[name] == "spaced") for text in at) or "bos" in str(tokenizer)
    assert [int(text) for text in tokenizer.batch_decode(found.answers[:, None])] == found.inputs["answer"].tolist()
    shown = tokenizer.batch_decode(found.tokens[:, found.bos :])
    assert shown == list(found.text)


@pytest.mark.compat
@pytest.mark.parametrize("name", ["gpt2", "pythia"])
@pytest.mark.parametrize("template", ["kt", "bare", "spaced", "kt llama", "The sum of {a} and {b} is"])
def test_operands_stand_where_it_says_with_the_published_tokenizers(name: str, template: str) -> None:
    model = speaking(name)
    found = problems(model, template=template, limit=60)
    check(found, model.tokenizer)
    assert found.positions == {"a": -4, "b": -2, "answer": -1}
    assert found.tokens.shape[1] - found.bos == {"kt": 10, "bare": 4, "spaced": 4, "kt llama": 14}.get(template, 7)
    form = "bare" if template in ("kt", "bare", "kt llama") else "spaced"
    assert found.forms == {"a": form, "b": form, "answer": form}
    assert torch.equal(found.inputs["a"] + found.inputs["b"], found.inputs["answer"])


def test_two_forms_of_operands_are_warned_of() -> None:
    """The template with a space for the line break: a is " 12", b is "34", two embeddings."""
    with pytest.warns(
        UserWarning, match=r"writes a spaced and b bare: these are different tokens .* helix\(b\) are not comparable"
    ):
        found = problems(speaking("pythia"), template="kt space", limit=5)
    assert found.forms == {"a": "spaced", "b": "bare", "answer": "bare"}
    assert found.tokens.shape[1] == 9
    with pytest.warns(UserWarning, match="writes a bare and b spaced"):
        assert problems(speaking("gpt2"), template="{a} + {b} =", limit=5).forms["answer"] == "spaced"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problems(speaking("words"), template="{a} + {b} =", limit=5)  # one token for both forms


def test_an_operand_that_occurs_twice_stands_where_it_occurs_last() -> None:
    with pytest.warns(UserWarning, match="writes a spaced and b bare"):
        found = problems(speaking("gpt2"), template="Question: What is {a}+{b}? Answer: {a}+{b}=", limit=20)
    assert found.positions == {"a": -4, "b": -2, "answer": -1}
    assert found.template == TASKS["add"].templates["question"]
    at = speaking("gpt2").tokenizer.batch_decode(found.tokens[:, found.positions["b"], None])
    assert [int(text) for text in at] == found.inputs["b"].tolist()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_with_its_own_numbers(task: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = problems(speaking("gpt2"), task, limit=80)
    check(found, speaking("gpt2").tokenizer)
    a, b = found.inputs["a"], found.inputs.get("b", torch.zeros(()))
    right = {"add": a + b, "sub": a - b, "times": a * b, "equation": a, "greater": a + 1}
    if task in right:
        assert torch.equal(found.inputs["answer"], right[task].long())
    elif task == "mod":
        assert torch.equal(found.inputs["answer"], a % b)
    else:
        assert torch.equal(found.inputs["answer"], a // b)
    assert ("b" in found.inputs) == ("b" in found.positions) == (task not in ("equation", "greater"))


def test_a_constant_is_no_operand() -> None:
    found = problems(speaking("gpt2"), "sub", b=23)
    assert (found.task, found.operands, sorted(found.inputs)) == ("a - 23", ("a",), ["a", "answer"])
    assert found.inputs["a"].tolist() == list(range(23, 100))  # those below leave a negative answer
    half = problems(speaking("gpt2"), "times", range(0, 100, 2), 1.5)
    assert (half.task, half.text[1]) == ("a * 1.5", "Output ONLY a number.\n2*1.5=")
    assert half.inputs["answer"].tolist() == list(range(0, 150, 3))
    check(half, speaking("gpt2").tokenizer)


def test_a_task_of_ones_own() -> None:
    larger = Task("max", "max(a, b)", torch.maximum, {"bare": "{a} {b} ="})
    found = problems(speaking("words"), larger, range(5), range(5))
    assert torch.equal(found.inputs["answer"], torch.maximum(found.inputs["a"], found.inputs["b"]))
    assert repr(found) == "Problems(max(a, b), n 25, '{a} {b} =', a at -3, b at -2, with BOS)"


def test_years() -> None:
    """Hanna et al.: every later year of the century is right; 1700 is one token in GPT-2, so it cannot be asked of."""
    model = speaking("gpt2")
    found = problems(model, "greater")
    assert (len(found), found.forms["a"], found.forms["answer"]) == (97, "bare", "bare")
    assert found.accepted.shape == (97, 100)
    for i in (0, 50, 96):
        assert found.numerals.values[found.accepted[i]].tolist() == list(range(int(found.inputs["a"][i]) + 1, 100))
    with pytest.raises(
        ValueError, match=r"1 values of a do not fit the template \(0\): .*' 1700'.* 0 is no single token"
    ):
        problems(model, "greater", range(5))
    assert problems(model, "greater", range(5), outside="drop").inputs["a"].tolist() == [1, 2, 3, 4]
    assert len(problems(speaking("pythia"), "greater", range(5))) == 5
    baseline = pairs(found, 50, against=problems(model, "greater", [1]))
    assert baseline.corrupted.inputs["a"].unique().tolist() == [1]
    assert torch.equal(baseline.clean.tokens[:, -4:], baseline.corrupted.tokens[:, -4:])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"a": range(519, 525)}, r"1 values of a do not fit the template \(521\): 'Output ONLY a number.\\n521\+"),
        ({"task": "sub", "a": range(9), "b": range(9)}, r"36 of 81 answers of a - b cannot be read as one token: 36 negative"),
        ({"task": "times", "a": range(4), "b": 1.5}, r"2 of 4 answers of a \* b .*: 2 not whole \(such as 1.5, of a = 1\)"),
        ({"task": "floordiv", "a": [8], "b": [0, 2]}, r"1 of 2 answers of a // b cannot be .*: 1 undefined"),
        ({"task": "times", "a": [99], "b": [99, 1]}, r"1 no single bare token \(such as 9801, of a = 99, b = 99\)"),
        ({"a": [300], "b": [62], "outside": "drop", "template": "spaced"}, r"no single spaced token"),
        ({"a": [-1, 2]}, r"The values of a must be whole numbers from 0, at least one; found \[-1\]"),
        ({"a": []}, r"The values of a must be whole numbers from 0, at least one; found none"),
        ({"template": "{a}+{b}= "}, r"ends in a space, which would become a token of its own"),
        ({"template": "{a}{b}="}, r"has no token of its own: the tokenizer reads"),
        ({"template": "{a}+3="}, r"'\{a\}\+3=' has no \{b\}, and the task 'a \+ b' has the operands a and b"),
        ({"template": "nothing"}, r"template='nothing' has no \{a\}, and is none of those by name \(kt, "),
        ({"task": "equation", "template": "{a}{b}"}, r"has \{b\}, and the task 'x - a = 0' has the operand a alone"),
        ({"task": "equation", "b": 4}, r"has the operand a alone; b=4 was given"),
        ({"task": "ad"}, r"There is no task 'ad'\. Nearest names: add"),
        ({"answer_form": "plain"}, r"answer_form='plain' must be 'bare', 'spaced' or None"),
        ({"outside": "keep"}, r"outside='keep' must be 'raise', 'drop' or None"),
        ({"template": "{a}+{b}={c}"}, r"has \{c\}, which nothing fills: it has the places \{a\} and \{b\} only"),
        ({"limit": 0}, r"limit=0: at least 1 problem, or None for all 10000"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        problems(speaking("gpt2"), **arguments)


def test_numbers_come_from_ranges_tensors_arrays_or_alone(unchecked) -> None:
    model = speaking("gpt2")
    want = problems(model, a=[5], b=range(3)).text
    for five, three in ((5, torch.arange(3)), (np.array([5]), np.arange(3)), (np.int64(5), (b for b in range(3)))):
        assert problems(model, a=five, b=three).text == want
    for b in (np.int64(23), torch.tensor(23)):
        assert problems(model, "sub", b=b).task == "a - 23"
    with pytest.raises(ValueError, match=r"The values of a must be whole numbers .*; found \[0\.0, 1\.0\]"):
        problems(model, a=torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"found \[1\.5\]"):  # it was read as 1
        mi.arithmetic.numeral_states(model, [1.5, 2])


def test_answers_are_whole_although_their_floats_are_not_quite() -> None:
    """50 * 1.1 is 55.00000000000001: such problems were dropped, or refused as not whole."""
    found = problems(speaking("gpt2"), "times", range(0, 100, 10), 1.1)
    assert found.inputs["answer"].tolist() == list(range(0, 110, 11))


def test_a_constant_takes_the_place_of_the_word_b_alone() -> None:
    task = Task("distance", "abs(a - b)", lambda a, b: (a - b).abs(), {"bare": "|{a}-{b}|="})
    assert problems(speaking("gpt2"), task, range(3), 23).task == "abs(a - 23)"


def test_a_model_whose_logits_are_nan_answers_nothing() -> None:
    """It counted as wrong answers, with a probability of NaN."""
    model = tiny(vocab=99, n_ctx=4, dtype=torch.float32)
    with torch.no_grad():
        model.unembed.b_U[7] = float("nan")
    with pytest.raises(ValueError, match="The model's logits are NaN or infinite, so it gives no answer"):
        asked(model, problems_of(mi.toys.load("add97"))[:3])


def test_without_a_tokenizer_or_words() -> None:
    with pytest.raises(ValueError, match="The model has no tokenizer, so no problem can be written for it"):
        problems(tiny())
    with pytest.raises(ValueError, match="The tokenizer does not know all words of 'Output ONLY a number"):
        problems(speaking("words"))


def test_a_trailing_space_would_change_the_operands_neighbour() -> None:
    """Why it is refused: the space is a token of its own (220 in GPT-2), and the answer then has no space."""
    tokenizer = published("gpt2")
    assert tokenizer("12 + 34 = ")["input_ids"][-1] == 220
    assert tokenizer("12 + 34 = 46")["input_ids"][-2:] == [
        *tokenizer(" =")["input_ids"],
        *tokenizer(" 46")["input_ids"],
    ]


@pytest.mark.compat
def test_the_beginning_of_the_sequence_is_explicit_and_moves_no_position() -> None:
    model = speaking("gpt2")
    plain, marked = (problems(model, limit=9, bos=bos) for bos in (False, True))
    assert (plain.bos, marked.bos, problems(model, limit=9).bos) == (False, True, True)
    assert torch.equal(plain.tokens, marked.tokens[:, 1:])
    assert plain.positions == marked.positions
    assert "no BOS" in repr(plain)
    assert not problems(speaking("pythia"), limit=9).bos  # its file names no such token
    with pytest.raises(ValueError, match="prepend_bos=True, and no tokenizer says which token that is"):
        problems(speaking("pythia"), limit=9, bos=True)


@pytest.mark.parametrize(("limit", "seed"), [(1, 0), (13, 1), (13, 2), (30, 3)])
def test_a_sample_is_of_the_cross_product_without_repetition(limit: int, seed: int) -> None:
    model = speaking("words")
    every, some = (
        problems(model, "add", range(6), range(5), template="bare", limit=n, seed=seed) for n in (None, limit)
    )
    assert len(every) == 30
    assert len(some) == limit == len(set(some.text))
    assert set(some.text) <= set(every.text)
    again = every[[every.text.index(text) for text in some.text]]
    assert torch.equal(again.tokens, some.tokens)
    assert torch.equal(again.inputs["answer"], some.inputs["answer"])


def test_problems_are_chosen_by_rows() -> None:
    found = problems(speaking("words"), template="bare", limit=20)
    assert found[3].text == (found.text[3],)
    assert found[found.inputs["a"] > 50].inputs["a"].min() > 50
    assert len(found[5:8]) == 3
    with pytest.raises(ValueError, match="None of the 20 problems is chosen"):
        found[found.inputs["a"] > 500]


@pytest.mark.compat
@pytest.mark.parametrize(("name", "positions"), [("add97", (-4, -2)), ("addmul97", (-4, -2)), ("nanda113", (-3, -2))])
def test_the_problems_of_a_toy_are_those_that_it_solves(name: str, positions: tuple[int, int]) -> None:
    toy = mi.toys.load(name)
    found = problems_of(toy, toy.config.operations[-1])
    assert (found.positions["a"], found.positions["b"]) == positions
    for operand in ("a", "b"):
        assert torch.equal(found.tokens[:, found.positions[operand]], found.inputs[operand])
    found = found[torch.randperm(len(found))[:1500]]
    result = asked(toy.model, found)
    assert result.accuracy > 0.99
    assert result.chance < 0.03
    assert torch.equal(result.numbers[result.correct], found.inputs["answer"][result.correct])


def test_a_toys_operation_is_named_where_there_are_several_and_gates_are_refused() -> None:
    configs = [mi.toys.ToyConfig(5, ("add", "sub")), mi.toys.ToyConfig(5, gate=((0,), (1,)))]
    texts = [
        "operation=None: this toy has add, sub. Name one of them.",
        "The toy has a gate, so some of its answers are",
    ]
    for config, text in zip(configs, texts):
        toy = replace(mi.toys.load("add97"), card={"config": config.to_dict()})
        with pytest.raises(ValueError, match=text):
            problems_of(toy)


@pytest.mark.compat
def test_none_right_is_a_warning_and_everything_goes_on() -> None:
    model = speaking("words")
    found = problems(model, "add", range(20), range(20), template="bare")
    with torch.no_grad():
        chosen = model(found.tokens)[:, -1].argmax(-1)
    wrong = found[chosen != found.answers]
    with pytest.warns(UserWarning, match=f"The model gets none of the {len(wrong)} problems right"):
        result = asked(model, wrong)
    assert result.n_correct == 0
    assert result.representation_only
    assert len(result.right) == len(wrong)
    assert "representation only" in repr(result)
    assert result.interval[0] == 0 < result.interval[1] < 0.05


def test_what_is_asked_is_what_a_plain_pass_gives() -> None:
    model = speaking("words")
    found = problems(model, "add", range(30), range(30), template="bare")
    with torch.no_grad():
        logits = model(found.tokens)[:, -1]
    chosen = logits.argmax(-1)
    some = torch.cat([torch.nonzero(chosen == found.answers)[:, 0], torch.arange(50)]).unique()
    found, seen = found[some], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = asked(model, found, batch_size=16, progress=lambda done, n: seen.append((done, n)))
    assert torch.equal(result.given, chosen[some])
    torch.testing.assert_close(
        result.probability.float(),
        logits[some].softmax(-1).gather(1, found.answers[:, None])[:, 0],
        rtol=1e-4,
        atol=1e-7,
    )
    assert seen[-1] == (len(found), len(found))
    row = result.table()[0]
    assert (row["n"], row["n_correct"]) == (len(found), result.n_correct)


def test_accuracy_stands_beside_chance_and_falls_apart_by_operand() -> None:
    found = problems(speaking("words"), "add", range(4), range(4), template="bare")
    correct = found.inputs["a"] > 1
    result = Asked(found, found.answers, correct, torch.ones(16).double(), torch.ones(16).double())
    assert result.accuracy == 0.5
    assert result.chance == 4 / 16  # 3 is the most common of the sums
    assert result.interval == mi.interval(correct.double())
    assert result.by_operand()["accuracy"].tolist() == [[0.0] * 4] * 2 + [[1.0] * 4] * 2
    assert result.right.inputs["a"].unique().tolist() == [2, 3]
    holes = Asked(
        found[[0, 5]], found.answers[[0, 5]], torch.tensor([True, False]), *torch.ones(2, 2).double()
    ).by_operand()
    assert holes["accuracy"].isnan().tolist() == [[False, True], [True, False]]
    years = problems(speaking("gpt2"), "greater")
    assert (
        Asked(years, years.answers, torch.ones(97, dtype=torch.bool), *torch.ones(2, 97).double()).chance == 1.0
    )  # 99 is never wrong
    assert Asked(found[0], found.answers[:1], torch.tensor([True]), *torch.ones(2, 1).double()).interval == (0.0, 1.0)


@given(n=st.integers(1, 40), fixed=st.sampled_from([None, "a", "b"]), seed=st.integers(0, 9))
def test_pairs_differ_in_answer_and_share_what_is_fixed(n: int, fixed: str | None, seed: int) -> None:
    if "few" not in MODELS:
        MODELS["few"] = problems(speaking("words"), "add", range(5), range(4), template="bare")
    found = MODELS["few"]
    drawn = pairs(found, n, fixed=fixed, seed=seed)
    assert len(drawn) == n
    assert (drawn.clean.answers != drawn.corrupted.answers).all()
    if fixed:
        assert torch.equal(drawn.clean.inputs[fixed], drawn.corrupted.inputs[fixed])
    assert len(set(zip(drawn.clean.text, drawn.corrupted.text))) == n
    again = pairs(found, n, fixed=fixed, seed=seed)
    assert again.clean.text == drawn.clean.text
    assert drawn[: n // 2 + 1].clean.text == drawn.clean.text[: n // 2 + 1]


def test_the_number_of_pairs_is_exact_and_all_of_them_can_be_drawn() -> None:
    found = problems(speaking("words"), "add", range(4), range(3), template="bare")
    x = found.inputs
    for fixed in (None, "a", "b"):
        differ = found.answers[:, None] != found.answers[None]
        differ &= torch.ones_like(differ) if fixed is None else x[fixed][:, None] == x[fixed][None]
        there = int(differ.sum())
        assert count_pairs(found, fixed=fixed) == there
        drawn = pairs(found, there, fixed=fixed)
        rows = {(drawn.clean.text[i], drawn.corrupted.text[i]) for i in range(there)}
        assert rows == {(found.text[i], found.text[j]) for i, j in torch.nonzero(differ).tolist()}
        with pytest.raises(ValueError, match=rf"^{there + 1} pairs were asked for; {there} have different answers"):
            pairs(found, there + 1, fixed=fixed)


def test_pairs_of_many_problems_are_drawn_without_listing_all() -> None:
    found = problems(speaking("words"), template="bare", limit=3000)
    drawn = pairs(found, 1000)
    assert len(set(zip(drawn.clean.text, drawn.corrupted.text))) == 1000
    assert abs(float(drawn.clean.inputs["a"].double().mean()) - 49.5) < 3
    assert repr(pairs(found, 7, fixed="b")) == "Pairs(a + b, n 7, the same b)"


def test_what_is_no_pair() -> None:
    model = speaking("words")
    found = problems(model, template="bare", limit=9)
    with pytest.raises(ValueError, match=r"are no pairs: patching needs prompts of one length"):
        pairs(found, 3, against=problems(model, template="bare", limit=9, bos=False))
    with pytest.raises(ValueError, match=r"fixed='c': the operands are a, b, or None for no condition"):
        pairs(found, 3, fixed="c")


@pytest.mark.compat
def test_years_later_less_earlier() -> None:
    """The metric of Hanna et al., and the same of `asked`."""
    model = speaking("gpt2")
    found = problems(model, "greater")[::9]
    with torch.no_grad():
        odds = model(found.tokens)[:, -1].double().softmax(-1)[:, found.numerals.ids]
    sign = torch.where(found.numerals.values[None] > found.inputs["a"][:, None], 1.0, -1.0)
    edit = mi.Add(torch.zeros(8)).at("blocks.1.hook_resid_post", pos=-1)
    plain = mi.effect(model, found.tokens, edit, mi.arithmetic.probability_difference(found), controls={})
    torch.testing.assert_close(plain.clean, (odds * sign).sum(-1), rtol=1e-4, atol=1e-8)
    with pytest.warns(UserWarning, match="gets none of the"):
        torch.testing.assert_close(asked(model, found).difference, plain.clean, rtol=1e-4, atol=1e-8)


def digit_model() -> Any:
    """A model whose tokens are digits, each a random vector: no number is represented anywhere."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({c: i for i, c in enumerate("0123456789#?:")}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    model = tiny(vocab=13, dtype=torch.float32)
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="#", unk_token="?")
    return model


@pytest.mark.compat
def test_the_last_sub_token_makes_period_10_of_digits_that_mean_nothing() -> None:
    """Ten random vectors come round every ten numbers: all of the power at 10 / k; half of it under the mean; none at first."""
    model, shares = digit_model(), {}
    for pooling in ("last", "mean", "first"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if pooling == "last" else "error")
            means = mi.arithmetic.numeral_states(model, range(100, 200), "hook_embed", pooling=pooling)
        x = means.centred(0)
        power = torch.fft.rfft(x, dim=0).abs().square().sum(1)
        shares[pooling] = float(power[[10, 20, 30, 40, 50]].sum() / power.sum()) if power.sum() > 1e-6 else 0.0
    assert shares["last"] == pytest.approx(1.0)
    assert 0.2 < shares["mean"] < 0.8
    assert shares["first"] == 0.0  # the hundreds digit is the same
    with pytest.warns(
        UserWarning, match=r"90 of 100 numbers are several tokens \(10 is 2\), and the state at the last"
    ):
        mi.arithmetic.numeral_states(model, range(100), "hook_embed")


def test_numbers_of_several_tokens_are_pooled_over_their_own_tokens() -> None:
    model, seen = digit_model(), []
    site, values = "blocks.1.hook_resid_pre", [105, 7, 42, 8]
    for pooling, before, bos in (("mean", "", None), ("first", ":", False), ("mean", ":", True)):
        means = mi.arithmetic.numeral_states(
            model, values, site, pooling=pooling, before=before, bos=bos, progress=lambda *x: seen.append(x)
        )
        assert means.values.tolist() == sorted(values)
        for i, v in enumerate(sorted(values)):
            start = len(before) + (bos is not False)
            tokens = model.tokenizer(("" if bos is False else "#") + before + str(v), add_special_tokens=False)[
                "input_ids"
            ]
            x = mi.collect(model, torch.tensor([tokens]), site, pos=None)[site][0, start:]
            want = x.double().mean(0) if pooling == "mean" else x[0].double()
            torch.testing.assert_close(means.at(0)[i], want, rtol=1e-4, atol=1e-5)
    assert seen[-1] == (4, 4)
    for arguments, text in (
        ({"pooling": "sum"}, r"pooling='sum', form='bare': one of \('last', 'mean', 'first'\)"),
        ({"values": []}, r"^values must be whole numbers from 0, at least one; found none"),
        ({"values": [-3, 2]}, r"at least one; found \[-3\]"),
    ):
        with pytest.raises(ValueError, match=text):
            mi.arithmetic.numeral_states(model, **{"values": values, **arguments})
    with pytest.raises(ValueError, match="The model has no tokenizer to write numbers with"):
        mi.arithmetic.numeral_states(tiny(), [3])
    with pytest.raises(ValueError, match="before='x1' and the number share a token"):
        mi.arithmetic.numeral_states(speaking("gpt2"), [23], before="x1")
