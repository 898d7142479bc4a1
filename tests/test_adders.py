"""The adder: its text and what is held out of it, its forward pass, its training, and that it adds."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mi_ablate as mi
from mi_ablate import adders
from mi_ablate.adders import text
from mi_ablate.adders.shortcut import last_logits

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


# --- the text ---------------------------------------------------------------------------------------------------------


def test_tokens_are_the_tokenizers_own() -> None:
    tokenizer, rows = adders.tokenizer(), adders.tokens()
    a, b = adders.operands()
    assert rows.shape == (10_000, 5)
    for i in (0, 7, 99, 100, 1234, 9999):
        prompt = f"{a[i]}+{b[i]}="
        assert rows[i].tolist() == tokenizer(text.END + prompt).input_ids
        assert tokenizer(f" {a[i]} + {b[i]} =").input_ids == rows[i, 1:].tolist()
        assert tokenizer.decode(rows[i, 1:]) == prompt
        assert tokenizer.decode(adders.answers()[i]) == str(int(a[i] + b[i]))


def test_numbers_to_198_are_one_token_and_no_others() -> None:
    tokenizer = adders.tokenizer()
    found = mi.arithmetic.numerals(tokenizer)
    assert found.values.tolist() == list(range(199))
    assert found.contiguous == 198
    assert [tokenizer.decode(i) for i in tokenizer("199").input_ids] == ["19", "9"]
    assert tokenizer("x").input_ids == [tokenizer.unk_token_id]
    assert len(tokenizer) == len(text.NUMBER) == 203


@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.2, 0.5]))
@settings(max_examples=10)
def test_what_is_held_out_says_nothing_away(seed: int, share: float) -> None:
    apart = adders.held_out(share, seed)
    square = apart.view(100, 100)
    assert float(apart.double().mean()) == pytest.approx(share, abs=2e-4)
    assert torch.equal(square, square.T)  # no sum is shown in the other order
    a, b = adders.operands()
    assert len(a[~apart].unique()) == len(b[~apart].unique()) == 100
    assert len((a + b)[~apart].unique()) == 199
    assert not apart[[0, 1, 100, 9899, 9998, 9999]].any()
    assert torch.equal(apart, adders.held_out(share, seed))
    assert not torch.equal(apart, adders.held_out(share, seed + 1))


def test_holding_everything_out_keeps_one_pair_of_each_answer() -> None:
    kept = ~adders.held_out(1.0, 0).view(100, 100)
    a, b = kept.triu().nonzero().T
    assert (a + b).sort().values.tolist() == list(range(199))


# --- the forward pass and the training --------------------------------------------------------------------------------

SMALL = adders.Settings(steps=120, batch=64, layers=2, width=16, heads=2, lr=1e-2)


@pytest.mark.parametrize(("layers", "rows"), [(1, 3), (2, 200), (3, 1)])
def test_the_shortcut_gives_the_models_logits_and_gradients(layers: int, rows: int) -> None:
    torch.manual_seed(0)
    model = adders.fresh(dataclasses.replace(SMALL, layers=layers)).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)  # biases and norms too
    some = adders.tokens()[torch.randint(10_000, (rows,))]
    full, short = model(some).logits[:, -1], last_logits(dict(model.named_parameters()), 2, some)
    torch.testing.assert_close(short, full, rtol=1e-9, atol=1e-9)
    weights = list(model.parameters())
    wanted, found = (torch.autograd.grad(x.logsumexp(-1).sum() - x[:, 5].sum(), weights) for x in (full, short))
    for x, y in zip(wanted, found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-7)


@pytest.fixture(scope="module")
def trained() -> adders.Trained:
    return adders.train(SMALL)


def test_training_learns_and_a_seed_repeats_it(trained: adders.Trained) -> None:
    told: list[tuple[int, int, float]] = []
    short = dataclasses.replace(SMALL, steps=3)
    first, again = adders.train(short, lambda *now: told.append(now)), adders.train(short)
    assert [row[:2] for row in told] == [(1, 3), (2, 3), (3, 3)]
    for x, y in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(x, y)
    other = adders.train(dataclasses.replace(short, seed=1))
    assert other.scores["held out"].loss != first.scores["held out"].loss
    assert [now.step for now in trained.history] == [100, 120]
    assert trained.scores["held out"].loss < first.scores["held out"].loss - 0.5
    assert trained.scores["training"].problems + trained.scores["held out"].problems == 10_000
    assert trained.history[-1].accuracy == trained.scores["held out"].accuracy
    assert (trained.steps_to(0.0), trained.steps_to(0.999)) == (100, None)


def test_it_never_sees_what_is_held_out(monkeypatch) -> None:
    from mi_ablate.adders import training

    seen = []
    monkeypatch.setattr(
        training, "last_logits", lambda w, heads, rows: seen.append(rows) or last_logits(w, heads, rows)
    )
    adders.train(dataclasses.replace(SMALL, steps=1, batch=3000))
    apart = adders.held_out(SMALL.share, SMALL.split_seed)
    batch = seen[0]
    index = 100 * (batch[:, 1] - text.NUMBER["0"]) + batch[:, 3] - text.NUMBER["0"]
    assert len(batch) == 3000
    assert not apart[index].any()


def test_a_saved_training_loads_and_its_card_says_what_it_is(trained: adders.Trained, tmp_path: Path) -> None:
    folder = adders.save(trained, tmp_path / "mine", command="the command")
    model = mi.load_model(folder)
    rows = adders.tokens()[::997]
    with torch.no_grad():
        torch.testing.assert_close(model(rows), trained.model(rows).logits, rtol=0, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "`the command`" in card
    assert "| 0.99 of the held-out sums right | never |" in card
    held = trained.scores["held out"]
    assert f"| held out | 2000 | {held.accuracy:.4f} | {held.loss:.4f} |" in card
    assert f"{sum(p.numel() for p in trained.model.parameters()):,} parameters (2 layers, d_model 16, 2 heads" in card


# --- the shipped model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adder():
    return mi.load_model("adder")


@pytest.mark.compat
def test_the_shipped_model_adds_what_it_was_never_shown(adder) -> None:
    """Through the hooked model and its tokenizer, and as transformers reads the folder."""
    from transformers import AutoModelForCausalLM

    assert adder.cfg.model_name == "adder"
    tokens = adder.to_tokens(["34+58=", "7+99="])
    assert torch.equal(tokens, adders.tokens()[[3458, 799]])
    apart = adders.held_out(adders.Settings.share, adders.Settings.split_seed)
    rows, right = adders.tokens()[apart], adders.answers()[apart]
    published = AutoModelForCausalLM.from_pretrained(str(adders.FOLDER))
    with torch.no_grad():
        logits = adder(rows)
        torch.testing.assert_close(logits[:50], published(rows[:50]).logits, rtol=0, atol=1e-3)
    assert float((logits[:, -1].argmax(-1) == right).double().mean()) >= 0.99


def test_untrained_it_does_not_add() -> None:
    torch.manual_seed(0)
    every = torch.arange(10_000)
    assert adders.score(adders.fresh(adders.Settings()), every).accuracy < 0.03


def test_problems_are_written_for_it(adder) -> None:
    sums = mi.arithmetic.problems(adder, "add", template="{a}+{b}=", limit=300)
    assert sums.positions == {"a": -4, "b": -2, "answer": -1}
    assert sums.bos
    assert mi.arithmetic.asked(adder, sums).accuracy > 0.98


def test_its_embedding_and_its_sums_share_short_periods_that_are_not_of_base_ten(adder) -> None:
    """What the card says in short; the control is the shuffles of `free_periods`."""
    sums = mi.arithmetic.problems(adder, "add", template="{a}+{b}=", limit=4000)
    numbers = mi.arithmetic.embedding_means(adder, sums.numerals)
    numbers = numbers.kept(numbers.values < 100)
    end = mi.arithmetic.number_means(adder, sums, "blocks.1.hook_resid_post", of="answer")
    for means, count in ((numbers, 6), (end, 2)):
        found = mi.arithmetic.free_periods(means, count=count)
        for short in (3.13, 2.0):
            period, out = min(zip(found.periods, found.stands_out, strict=True), key=lambda row: abs(row[0] - short))
            assert out
            assert period == pytest.approx(short, abs=0.02)
        assert float(mi.arithmetic.helix_fits(means).loo[0]) < 0.3 * found.loo


def test_the_card_holds_the_tables_of_the_results_file(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(PYPROJECT.parent / "benchmarks"))
    report, card = importlib.import_module("adder"), (adders.FOLDER / "README.md").read_text()
    assert report.rendered(card) == card, "run: python benchmarks/adder.py --card"
    assert card.count("seed 2") == card.count("untrained") > 0


# --- where it is listed and packaged ----------------------------------------------------------------------------------


def test_the_files_are_small_and_packaged() -> None:
    files = [path for path in adders.FOLDER.iterdir() if path.is_file()]
    assert {path.name for path in files} >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert sum(path.stat().st_size for path in files) < 4_000_000
    patterns = re.findall(r'"([^"]+)"', re.search(r"mi_ablate = \[(.*)\]", PYPROJECT.read_text())[1])
    package = adders.FOLDER.parents[1]
    assert {*files} <= {path for pattern in patterns for path in package.glob(pattern)}


def test_mi_ablate_models_lists_it(capsys, monkeypatch) -> None:
    from mi_ablate.cli import main

    monkeypatch.setattr("sys.argv", ["mi-ablate", "models"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert adders.description() in capsys.readouterr().out.splitlines()
    assert adders.description().startswith("adder: GPT-2 of 2 layers")


def test_a_misspelt_name_finds_it() -> None:
    with pytest.raises(ValueError, match=r"'addr' is no shipped toy.*adder"):
        mi.load_model("addr")
