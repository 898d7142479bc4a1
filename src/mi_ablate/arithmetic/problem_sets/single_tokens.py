"""Which whole numbers are one token of a tokenizer, and which tokens they are.

A number is written in one of two forms, with a space before it (" 34") or without ("34"), and most tokenizers have two
different tokens for them, hence two different embeddings and two different ranges: GPT-2 has 0 to 520 without a gap
bare, 0 to 361 spaced; Pythia 0 to 530 and 0 to 557. Tokenizers that split text at spaces have one token for both.

Beyond the gapless range some numbers are single tokens and others are not (819 of 0 to 999 in GPT-2, bare). A sample of
numbers up to 999 is therefore no uniform sample, and a spectrum over them needs the gapless range.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

FORMS = ("bare", "spaced")


@dataclass(frozen=True, eq=False, repr=False)
class Numerals:
    """The numbers from 0 to ``upto`` - 1 that are one token each in one form."""

    form: str
    """"bare" ("34") or "spaced" (" 34")."""
    values: Int[Tensor, " v"]
    """In rising order."""
    ids: Int[Tensor, " v"]
    upto: int = 1000
    digits: int = 0
    """Numbers are written with at least so many digits, zeros first: 2 for the years 00 to 99 of a century."""

    @property
    def contiguous(self) -> int:
        """The largest m such that 0 to m are all single tokens; -1 where 0 is none."""
        steps = self.values == torch.arange(len(self.values))
        return int(steps.to(torch.int64).cumprod(0).sum()) - 1

    @property
    def first_failure(self) -> int | None:
        """The smallest number that is no single token; None where all of those looked at are."""
        return self.contiguous + 1 if self.contiguous + 1 < self.upto else None

    def ids_of(self, values: Int[Tensor, " n"] | Sequence[int]) -> Int[Tensor, " n"]:
        """Return the token of each number.

        Raises:
            ValueError: numbers that are no single token, with the range that is.

        """
        wanted = _whole(values)
        found = self._rows(self.values, wanted)
        if (found < 0).any():
            wrong = wanted[found < 0].unique().tolist()
            more = ", ..." if len(wrong) > 6 else ""
            raise ValueError(
                f"{', '.join(map(str, wrong[:6]))}{more} ({len(wrong)} numbers): no single tokens of this tokenizer, "
                f"written {self.form}. {self.range_text}"
            )
        return self.ids[found]

    def values_of(self, ids: Int[Tensor, " n"] | Sequence[int]) -> Int[Tensor, " n"]:
        """Return the number of each token, -1 where the token is none of these."""
        order = self.ids.argsort()
        found = self._rows(self.ids[order], _whole(ids))
        return torch.where(found < 0, -1, self.values[order][found]) if len(order) else found

    @property
    def range_text(self) -> str:
        """A sentence that says which numbers are single tokens."""
        if not len(self.values):
            return f"None of 0 to {self.upto - 1} is."
        gapless = f"0 to {self.contiguous} are, without a gap" if self.contiguous >= 0 else "0 is not"
        return f"Of 0 to {self.upto - 1}, {gapless}, and {len(self.values)} in all."

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Numerals({self.form}, {len(self)} of 0 to {self.upto - 1}, 0 to {self.contiguous} without a gap)"

    @staticmethod
    def _rows(there: Tensor, wanted: Tensor) -> Tensor:
        """Where the wanted numbers stand among rising ones, -1 where they do not."""
        if not len(there):
            return torch.full_like(wanted, -1)
        at = torch.searchsorted(there, wanted).clamp(max=len(there) - 1)
        return torch.where(there[at] == wanted, at, -1)


def numerals(tokenizer: Any, form: str = "bare", upto: int = 1000, digits: int = 0) -> Numerals:
    """Return which of the numbers 0 to ``upto`` - 1 are one token of the tokenizer.

    Args:
        tokenizer: of Hugging Face's kind; a model's is ``model.tokenizer``.
        form: "bare" or "spaced".
        upto: the first number that is not looked at.
        digits: write numbers with at least so many digits ("07" for 2).

    Raises:
        ValueError: another form, an empty range, no tokenizer.

    """
    if tokenizer is None:
        raise ValueError(
            "Which numbers are single tokens is the tokenizer's to say, and there is none. Load the model from a folder "
            "with its tokenizer, or give load_model(..., tokenizer=...)."
        )
    if form not in FORMS:
        raise ValueError(f"form={form!r} must be 'bare' (as in '34') or 'spaced' (as in ' 34').")
    if upto < 1:
        raise ValueError(f"upto={upto}: the numbers 0 to upto - 1 are looked at, so at least 1.")
    texts = [f"{v:0{digits}d}" for v in range(upto)]
    rows = encoded(tokenizer, [" " + text for text in texts] if form == "spaced" else texts)
    single = [v for v, row in enumerate(rows) if len(row) == 1]
    said = tokenizer.batch_decode([rows[v] for v in single], clean_up_tokenization_spaces=False) if single else []
    single = [v for v, text in zip(single, said) if text.strip() == texts[v]]  # not the token of unknown words
    ids = torch.tensor([rows[v][0] for v in single], dtype=torch.int64)
    return Numerals(form, torch.tensor(single, dtype=torch.int64), ids, upto, digits)


def encoded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the tokens of texts as they stand, nothing put before or after."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def whole_numbers(what: str, values: Iterable[int] | int) -> Int[Tensor, " v"]:
    """Return numbers from a list, range, tensor or array, or one number, each once and in rising order.

    Raises:
        ValueError: none, or some that are negative or not whole.

    """
    raw = values.tolist() if hasattr(values, "tolist") else values  # tensors, arrays, numbers of numpy
    listed = list(raw) if isinstance(raw, Iterable) else [raw]
    if not listed or any(not isinstance(v, Integral) or isinstance(v, bool) or v < 0 for v in listed):
        wrong = [v for v in listed if not isinstance(v, Integral) or isinstance(v, bool) or v < 0]
        raise ValueError(f"{what} must be whole numbers from 0, at least one; found {wrong[:5] if wrong else 'none'}.")
    return torch.tensor([int(v) for v in listed], dtype=torch.int64).unique()


def _whole(values: Tensor | Sequence[int]) -> Tensor:
    x = torch.as_tensor(values).to("cpu")
    if x.ndim != 1 or x.dtype == torch.bool or (x.is_floating_point() and len(x)):
        raise ValueError(f"Numbers of shape {list(x.shape)} and {x.dtype}: one integer an entry is needed.")
    return x.to(torch.int64)
