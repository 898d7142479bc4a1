"""The text of every error that a user of the core can meet: what was asked, what is there, what to type instead.

Each row is the smallest call that raises it. Errors of running models are in test_model.py and test_positions.py, those
of controls, metrics and curves in the files of those names; `test_every_error_of_the_core_has_a_test` keeps count.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mi_ablate as mi
from mi_ablate import (
    Ablate,
    Add,
    Design,
    Erase,
    Fitter,
    Rotate,
    Subspace,
    classes,
    contrast,
    fit,
    fourier,
    gated,
    linear,
)
from mi_ablate._positions import Window, resolve
from mi_ablate.model import split

S = Subspace.random(6, 3)
X = torch.zeros(4, 5, 6)
NAN = torch.tensor([[1.0, float("nan"), float("inf")]])
NUMBERS = torch.arange(8)
FIT = fit(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), linear(NUMBERS) | fourier(NUMBERS, 8, [1]))
Q = "blocks.0.attn.hook_z"

WELL_TYPED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    # subspace.py
    "rank above d": (
        lambda: Subspace.random(3, 4),
        ValueError,
        "A subspace of 3 dimensions has a rank from 1 to 3, not 4.",
    ),
    "rank 0": (
        lambda: Subspace(torch.zeros(3, 0)),
        ValueError,
        "A subspace of 3 dimensions has a rank from 1 to 3, not 0.",
    ),
    "not orthonormal": (
        lambda: Subspace(torch.ones(3, 2)),
        ValueError,
        "The columns are not orthonormal (error 3.0e+00). Subspace.span(vectors) makes them so; it takes the vectors as rows.",
    ),
    "NaN basis": (
        lambda: Subspace(NAN.T),
        ValueError,
        "The basis hold 2 values that are NaN or infinite (shape [3, 1]).",
    ),
    "NaN vectors": (
        lambda: Subspace.span(NAN),
        ValueError,
        "The vectors hold 2 values that are NaN or infinite (shape [1, 3]).",
    ),
    "zero vectors": (
        lambda: Subspace.span(torch.zeros(2, 3)),
        ValueError,
        "The 2 vectors span nothing: all of them are zero.",
    ),
    "full complement": (
        lambda: Subspace.random(3, 3).complement(),
        ValueError,
        "The subspace is all of the 3 dimensions; nothing is left for its complement.",
    ),
    "no such direction": (lambda: S[3], IndexError, "Direction 3 of a subspace of rank 3: count from 0 to 2."),
    "empty choice": (
        lambda: S[3:],
        ValueError,
        "[slice(3, None, None)] chooses no direction of Subspace(rank 3 of 6, 'random, seed 0'); a subspace has at least one.",
    ),
    "wrong width": (
        lambda: Ablate(S)(torch.zeros(2, 8)),
        ValueError,
        "Subspace(rank 3 of 6, 'random, seed 0') acts on vectors of width 6; these have width 8 (shape [2, 8]). "
        "Fit the subspace at the site where it is used (heads at hook_z have width d_head).",
    ),
    "different spaces": (
        lambda: S.overlap(Subspace.random(5, 2)),
        ValueError,
        "Two subspaces of different spaces: d = 6 and d = 5.",
    ),
    # design.py
    "labels and columns": (
        lambda: Design(torch.zeros(4, 2), ("a",)),
        ValueError,
        "A design of shape [4, 2] has 1 labels: one a column is needed.",
    ),
    "label clash": (
        lambda: linear(NUMBERS) | linear(NUMBERS),
        ValueError,
        "Columns of the same name: ['a:linear']. Give one of the designs another name=.",
    ),
    "some labels clash": (
        lambda: linear(NUMBERS) | fourier(NUMBERS, 8, [1]) | linear(NUMBERS),
        ValueError,
        "Columns of the same name: ['a:linear']. Give one of the designs another name=.",
    ),
    "NaN design": (lambda: linear([1.0, float("nan")]), ValueError, "The design holds NaN or infinite values."),
    "lengths differ": (
        lambda: linear(NUMBERS) | linear(NUMBERS[:3], "b"),
        ValueError,
        "Designs of 8 and 3 examples cannot be put side by side.",
    ),
    "one class": (
        lambda: contrast(NUMBERS > 99),
        ValueError,
        "A contrast needs both classes; of 8 examples 0 are positive. An empty class has no mean.",
    ),
    "labels outside": (
        lambda: classes(torch.tensor([0, 5]), of=3),
        ValueError,
        "labels run from 0 to 5, outside the 3 classes 0..2.",
    ),
    "negative label": (lambda: classes([-1, 0]), ValueError, "labels run from -1 to 0, outside the 1 classes 0..0."),
    "empty class": (
        lambda: classes(torch.tensor([0, 2])),
        ValueError,
        "Empty classes [1] (of 3): a class without examples has no mean. Renumber the labels.",
    ),
    "degree 0": (
        lambda: mi.polynomial(NUMBERS, 0),
        ValueError,
        "degree 0: at least 1 (the constant is always part of a fit).",
    ),
    "constant values": (
        lambda: mi.polynomial([2, 2], 1),
        ValueError,
        "The domain 2.0 .. 2.0 is empty: a polynomial needs at least two different values.",
    ),
    "no frequency": (lambda: fourier(NUMBERS, 8, []), ValueError, "fourier needs at least one frequency."),
    "frequencies": (
        lambda: fourier(NUMBERS, 8, [0, 4, 5]),
        ValueError,
        "Frequencies [0, 5] are not whole numbers from 1 to 4 (period 8).",
    ),
    "periods": (
        lambda: mi.helix(NUMBERS, [2, 0]),
        ValueError,
        "periods [2, 0]: give at least one, all of them positive.",
    ),
    "no values": (lambda: linear([]), ValueError, "values have shape [0]; one number an example is needed."),
    # regression.py
    "nothing explained": (
        lambda: fit(torch.ones(8, 6), linear(NUMBERS)).subspace(),
        ValueError,
        "The chosen columns explain nothing of these activations: there is no direction to return.",
    ),
    "rank of a fit": (
        lambda: FIT.subspace(rank=4),
        ValueError,
        "rank 4 was asked for; these columns write 3 directions, so 1 to 3.",
    ),
    "another design": (
        lambda: FIT.predict(linear(NUMBERS)),
        ValueError,
        "The fit has the columns ['a:linear', 'a:cos 1', 'a:sin 1']... (3); the design has ['a:linear']... (1). "
        "Make it with the same call and name=.",
    ),
    "no such column": (
        lambda: FIT.subspace("a:cos 2"),
        KeyError,
        "The fit has no column 'a:cos 2'. Nearest names: a:cos 1, a:sin 1.",
    ),
    "rows differ": (
        lambda: fit(torch.zeros(3, 6), linear(NUMBERS)),
        ValueError,
        "3 activations and 8 rows of the design: one row an example is needed.",
    ),
    "merge": (
        lambda: (
            Fitter()
            .update(torch.zeros(8, 6), linear(NUMBERS))
            .merge(Fitter().update(torch.zeros(8, 6), linear(NUMBERS, "b")))
        ),
        ValueError,
        "Two fitters merge only with the same design columns and the same width of activations.",
    ),
    "merge widths": (
        lambda: Fitter().update(torch.zeros(8, 6), linear(NUMBERS)).update(torch.zeros(8, 5), linear(NUMBERS)),
        ValueError,
        "Two fitters merge only with the same design columns and the same width of activations.",
    ),
    "merge covariance": (
        lambda: Fitter(covariance=True).merge(Fitter().update(torch.zeros(8, 6), linear(NUMBERS))),
        ValueError,
        "The other fitter was made with covariance=False; it has no covariance to merge.",
    ),
    "one example": (
        lambda: fit(torch.zeros(1, 6), linear([3])),
        ValueError,
        "A fit needs at least two examples; 1 were given.",
    ),
    "nothing seen": (lambda: Fitter().result(), ValueError, "A fit needs at least two examples; 0 were given."),
    "NaN activations": (
        lambda: fit(NAN.expand(8, 3), linear(NUMBERS)),
        ValueError,
        "NaN or infinite activations in 8 examples (first: [0, 1, 2, 3, 4]).",
    ),
    # interventions.py
    "no name": (
        lambda: Ablate(S).at(),
        ValueError,
        "at() needs at least one hook name, such as 'blocks.0.hook_resid_post'.",
    ),
    "when": (lambda: Ablate(S).at("x", when="later"), ValueError, "when='later' must be 'all', 'prompt' or 'new'."),
    "keep nothing": (
        lambda: Ablate(None, keep=True),
        ValueError,
        "keep=True needs a subspace: there is nothing to keep of the whole vector.",
    ),
    "width of to": (
        lambda: Ablate(S, torch.zeros(5)),
        ValueError,
        "to has shape [5]; its last axis must be d = 6.",
    ),
    "rows of to": (
        lambda: Ablate(S, torch.zeros(3, 6))(X),
        ValueError,
        "to of shape [3, 1, 6] does not fit activations [4, 5, 6]: [d] is the same for all, and the first axis of "
        "anything larger counts the examples of the batch.",
    ),
    "width of strength": (
        lambda: Ablate(S, strength=torch.ones(4, 2))(X),
        ValueError,
        "strength of shape [4, 1, 2] does not fit activations [4, 5, 1]: [d] is the same for all, and the first axis of "
        "anything larger counts the examples of the batch.",
    ),
    "odd rank": (
        lambda: Rotate(S, 0.5),
        ValueError,
        "Rotate turns planes: Subspace(rank 3 of 6, 'random, seed 0') has an odd rank. Choose pairs of directions.",
    ),
    "angles": (
        lambda: Rotate(S[:2], torch.zeros(3)),
        ValueError,
        "angle has shape [3]: one number, or one for each of the 1 planes.",
    ),
    "oblique width": (
        lambda: Erase(torch.ones(6, 1), torch.ones(6, 1))(torch.zeros(2, 8)),
        ValueError,
        "Erase(rank 1 of 6) acts on vectors of width 6; these have width 8.",
    ),
    "prompt without attached": (
        lambda: Ablate(S).at("x", when="new")[0][1](X),
        ValueError,
        "when='new' at x needs `with attached(model, hooks):` to know the prompt.",
    ),
    "head elsewhere": (
        lambda: Ablate(None).at("blocks.0.hook_attn_out", head=1)[0][1](X),
        ValueError,
        "head=1 at blocks.0.hook_attn_out: heads have an axis at attn.hook_z, hook_q, hook_result ...",
    ),
    "head out of range": (
        lambda: Ablate(None).at(Q, head=[0, 5])[0][1](X),
        IndexError,
        "head=[0, 5] is out of range at blocks.0.attn.hook_z: there are 5, so 0 to 4.",
    ),
    "unit out of range": (
        lambda: Ablate(None).at("blocks.0.mlp.hook_post", unit=-7)[0][1](X),
        IndexError,
        "unit=-7 is out of range at blocks.0.mlp.hook_post: there are 6, so 0 to 5.",
    ),
    "gate of a function": (
        lambda: gated([("x", lambda x, hook: x)], "y", torch.sign),
        ValueError,
        "The hook at x is not a placed Ablate or Erase; only these take a gate.",
    ),
    "gate of Add": (
        lambda: gated(Add(torch.ones(6)).at("x"), "y", torch.sign),
        ValueError,
        "The hook at x is not a placed Ablate or Erase; only these take a gate.",
    ),
    # _positions.py
    "rows of pos": (
        lambda: Ablate(S).at("x", pos=torch.tensor([0, 1]))[0][1](X),
        ValueError,
        "pos gives a position for 2 examples, but the batch has 4. Inside effect and collect they are sliced with the "
        "batch; elsewhere pass hooks for the same rows.",
    ),
    "mask of pos": (
        lambda: Ablate(S).at("x", pos=torch.ones(4, 2, dtype=torch.bool))[0][1](X),
        ValueError,
        "pos has torch.bool [4, 2]; a mask is Bool[batch, pos] = [4, 5] here.",
    ),
    "function of pos": (
        lambda: Ablate(S).at("x", pos=lambda x, hook: [True])[0][1](X),
        ValueError,
        "the function given as pos returned list; a mask is Bool[batch, pos] = [4, 5] here.",
    ),
    "pos out of range": (
        lambda: Ablate(S).at("x", pos=[0, 5])[0][1](X),
        IndexError,
        "pos=5 is out of range: the sequence has 5 positions, so -5 to 4.",
    ),
    "empty slice": (
        lambda: Ablate(S).at("x", pos=slice(5, 7))[0][1](X),
        IndexError,
        "pos=slice(5, 7, None) chooses none of the 5 positions.",
    ),
    "empty slice of padded rows": (
        lambda: resolve(slice(3, 5), X, None, Window(mask=torch.arange(5).expand(4, 5) > 2)),
        IndexError,
        "pos=slice(3, 5, None) chooses no position of rows with 2 to 2 tokens.",
    ),
    "beyond padded rows": (
        lambda: resolve(2, X, None, Window(mask=torch.arange(5).expand(4, 5) > 2)),
        IndexError,
        "pos=2 is out of range: the rows have 2 to 2 tokens.",
    ),
    "mask of another pass": (
        lambda: resolve(0, X, None, Window(mask=torch.ones(4, 6, dtype=torch.bool))),
        ValueError,
        "The attention mask has shape [4, 6]; the tokens so far are [4, 5].",
    ),
    # effects.py
    "one value": (
        lambda: mi.interval([1.0]),
        ValueError,
        "An interval needs at least two values; these have shape [1].",
    ),
}

ILL_TYPED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "half a frequency": (
        lambda: fourier(NUMBERS, 8, [1.0, 1.5]),
        ValueError,
        "Frequencies [1.5] are not whole numbers from 1 to 4 (period 8).",
    ),
    "basis of three axes": (
        lambda: Subspace(torch.zeros(2, 3, 4)),
        ValueError,
        "A basis is a matrix [d, rank]; this one has shape [2, 3, 4].",
    ),
    "contrast of integers": (
        lambda: contrast(NUMBERS),
        ValueError,
        "is_positive holds torch.int64; write a condition, such as labels == 1.",
    ),
    "classes of floats": (
        lambda: classes(NUMBERS.float()),
        ValueError,
        "labels of shape [8] and torch.float32: one integer an example is needed.",
    ),
    "values of two axes": (
        lambda: linear(torch.zeros(2, 3)),
        ValueError,
        "values have shape [2, 3]; one number an example is needed.",
    ),
    "activations of three axes": (
        lambda: fit(torch.zeros(8, 2, 6), linear(NUMBERS)),
        ValueError,
        "Activations of shape [8, 2, 6]: a fit takes [n, d], one vector an example.",
    ),
    "names not unpacked": (
        lambda: Ablate(S).at(["x"]),
        ValueError,
        "A hook name is a string; ['x'] is a list. Unpack lists: at(*names).",
    ),
    "vector for a subspace": (
        lambda: Ablate(torch.ones(6)),
        ValueError,
        "subspace is a Tensor; Subspace.span(vectors) makes one from rows.",
    ),
    "integer vector": (
        lambda: Add(torch.ones(6).long()),
        ValueError,
        "vector has shape [6] and torch.int64; floats [d] or [n, d].",
    ),
    "writer and reader": (
        lambda: Erase(torch.ones(6, 1), torch.ones(6, 2)),
        ValueError,
        "writer [6, 1] and reader [6, 2] must both be [d, r].",
    ),
    "centre": (
        lambda: Erase(torch.ones(6, 1), torch.ones(6, 1), torch.ones(5)),
        ValueError,
        "centre has shape [5]; [d] = [6] is needed.",
    ),
    "gate without a place": (
        lambda: gated(Ablate(S), "y", torch.sign),
        ValueError,
        "gated takes an edit with its place: gated(edit.at('blocks.1.hook_resid_post'), reader, fn).",
    ),
    "pos of floats": (
        lambda: Ablate(S).at("x", pos=torch.zeros(4)),
        ValueError,
        "pos is a tensor of shape [4] and torch.float32. Integers [n] give one position an example, a Boolean [n, pos] "
        "is a mask; for the same positions in all rows give an int, a slice or a list.",
    ),
    "pos of nothing": (
        lambda: Ablate(S).at("x", pos=[]),
        ValueError,
        "pos=[]: give an int, a slice, a list of ints, Int[n], Bool[n, pos], a function or None.",
    ),
    "pos of words": (
        lambda: Ablate(S).at("x", pos="last"),
        ValueError,
        "pos='last': give an int, a slice, a list of ints, Int[n], Bool[n, pos], a function or None.",
    ),
    "pos of True": (
        lambda: Ablate(S).at("x", pos=True),
        ValueError,
        "pos=True: give an int, a slice, a list of ints, Int[n], Bool[n, pos], a function or None.",
    ),
    "mask and tokens": (
        lambda: next(split(None, torch.zeros(2, 3).long(), torch.ones(2, 4).long(), 1)),
        ValueError,
        "attention_mask [2, 4] and tokens [2, 3] must have the same shape.",
    ),
    "tokens of one axis": (
        lambda: next(split(None, NUMBERS)),
        ValueError,
        "tokens have shape [8] and torch.int64: integers [n, pos] are needed, n > 0.",
    ),
    "tokens of floats": (
        lambda: next(split(None, torch.zeros(2, 3))),
        ValueError,
        "tokens have shape [2, 3] and torch.float32: integers [n, pos] are needed, n > 0.",
    ),
}


def check(row: tuple[Callable[[], object], type[Exception], str]) -> None:
    call, kind, text = row
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    assert caught.value.args[0] == text


@pytest.mark.parametrize("name", sorted(WELL_TYPED))
def test_message(name: str) -> None:
    check(WELL_TYPED[name])


@pytest.mark.parametrize("name", sorted(ILL_TYPED))
def test_message_about_the_wrong_type_or_shape(unchecked, name: str) -> None:
    check(ILL_TYPED[name])


def test_a_model_level_message_for_names(model, tokens) -> None:
    for call, text in (
        (
            lambda: mi.collect(model, tokens, "blocks.0.hook_resid_pots"),
            "No hook point matches 'blocks.0.hook_resid_pots'. Nearest names: blocks.0.hook_resid_post, ",
        ),
        (lambda: mi.sites(model, "nope", layers=1), "No hook point matches 'nope' in layers 1. Nearest names: "),
    ):
        with pytest.raises(KeyError) as caught:
            call()
        assert caught.value.args[0].startswith(text)
    with pytest.raises(ValueError, match=r"^No hook point was asked for; sites\(model, 'resid_post'\) lists some\.$"):
        mi.collect(model, tokens, [])


def test_per_example_values_say_how_many_examples_there_are(model, tokens) -> None:
    first, n = "blocks.0.hook_resid_post", len(tokens)
    right, wrong = (mi.accuracy(torch.zeros(k).long()) for k in (n, n + 1))
    hooks = mi.Add(torch.zeros(16)).at(first, pos=-1)
    rows = mi.Add(torch.zeros(n + 1, 16)).at(first, pos=-1)
    for call, text in (
        (lambda: mi.effect(model, tokens, hooks, wrong), "The metric has answers for 7 examples; there are 6 prompts."),
        (
            lambda: mi.effect(model, tokens, rows, right),
            "vector at blocks.0.hook_resid_post has one value for each of 7 examples; there are 6 prompts.",
        ),
        (
            lambda: mi.collect(model, tokens, first, pos=torch.zeros(n + 1).long()),
            "pos gives a position for 7 examples; there are 6 prompts.",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            call()


def test_a_hook_name_is_a_string(unchecked, model) -> None:
    with (
        pytest.raises(
            ValueError, match=r"^A hook name is a string; 3 is not\. sites\(model, 'resid_post'\) lists names"
        ),
        mi.attached(model, [(3, Ablate(S))]),
    ):
        pass


def test_reading_with_a_mask_says_what_to_do(model, tokens) -> None:
    with pytest.raises(ValueError, match=r"^Reading takes pos as an int, .*; index the result with a mask\.$"):
        mi.collect(model, tokens, "hook_embed", pos=torch.ones(6, 7, dtype=torch.bool))


def test_a_missing_writer_is_named() -> None:
    class Cfg:
        n_layers, attn_only = 1, False

    class Model:
        cfg = Cfg()
        hook_dict = {"hook_embed": None, "blocks.0.hook_attn_out": None}  # noqa: RUF012

        def hooks(self, fwd_hooks: object = None) -> object: ...

        def __call__(self, *args: object, **kwargs: object) -> Tensor: ...  # type: ignore[empty-body]

    with pytest.raises(KeyError) as caught:
        mi.writers(Model())  # type: ignore[arg-type]
    assert caught.value.args[0] == "The model has no blocks.0.hook_mlp_out: its writers are not known to this function."


def test_an_unknown_public_name_raises_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'mi_ablate' has no attribute 'obliterate'"):
        _ = mi.obliterate


TESTS = Path(__file__).parent
BEYOND = ("__init__", "cli", "loading", "report", "_page", "weights", "store", "_files")
"""Modules that are not of the core, or whose errors are tested in files of their own."""
CORE = sorted(path.stem for path in (TESTS.parent / "src" / "mi_ablate").glob("*.py") if path.stem not in BEYOND)


def fixed_pieces(node: ast.expr) -> list[str]:
    """The constant pieces of a message: a test must mention one of them to be about it."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def messages(module: str) -> list[list[str]]:
    source = (TESTS.parent / "src" / "mi_ablate" / f"{module}.py").read_text()
    raised = [n.exc for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    return [fixed_pieces(call.args[0]) for call in raised if call.args]


@pytest.mark.parametrize("module", CORE)
def test_every_error_of_the_core_has_a_test(module: str) -> None:
    """Sixteen letters in a row of each message occur in a test, so a new error without a test fails here."""

    def plain(text: str) -> str:
        return re.sub(r"[^a-z]", "", text.lower())

    tested = plain("".join(path.read_text() for path in sorted(TESTS.glob("test_*.py"))))

    def mentioned(piece: str) -> bool:
        letters = plain(piece)
        return len(letters) > 8 and any(letters[i : i + 16] in tested for i in range(max(1, len(letters) - 15)))

    untested = [pieces for pieces in messages(module) if pieces and not any(mentioned(piece) for piece in pieces)]
    assert not untested


def test_the_count_of_errors_works() -> None:
    assert len(messages("subspace")) >= 9
    assert ["fourier needs at least one frequency."] in messages("design")
