"""A model on every pair (a, b) of one operation, with the pairs in the order of the group.

Everything in this package is Fourier analysis on a cyclic group Z_n. Addition mod n is that group as it stands; subtraction
is addition of -b; multiplication mod a prime p is addition of exponents mod p - 1, once 0 is left out and residues are put in
the order g^0, g^1, ... of a primitive root g (`discrete_log`). A `Grid` does this bookkeeping once: row i, column j and
answer c of its arrays are elements of Z_n with c = i + j, whatever the operation, and `a`, `b` and `c` say which residue each
element is.

The frequencies of multiplication depend on the root; the order of a character, n / gcd(k, n), does not.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.model import collect, run, sites, split
from mi_ablate.modular.characters import discrete_log, primitive_root


@runtime_checkable
class ToyLike(Protocol):
    """What `grid` asks of a toy: `mi_ablate.toys.Toy` has it."""

    @property
    def model(self) -> HookedModel: ...  # noqa: D102

    @property
    def tokens(self) -> Int[Tensor, "m p"]: ...  # noqa: D102

    @property
    def answers(self) -> Int[Tensor, " m"]: ...  # noqa: D102

    @property
    def modulus(self) -> int: ...  # noqa: D102

    @property
    def inputs(self) -> dict[str, Int[Tensor, " m"]]: ...  # noqa: D102

    @property
    def train(self) -> Bool[Tensor, " m"] | None: ...  # noqa: D102

    @property
    def card(self) -> dict[str, Any]: ...  # noqa: D102


@dataclass(frozen=True, eq=False, repr=False)
class Grid:
    """A model and its prompts for all pairs of Z_n; arrays ``[n n ...]`` have i on the first axis and j on the second."""

    model: HookedModel
    tokens: Int[Tensor, "pairs p"]
    """Prompts, pair (i, j) at row i * n + j."""
    operation: str
    modulus: int
    a: Int[Tensor, " n"]
    """The residue (and input token) of element i as the first operand."""
    b: Int[Tensor, " n"]
    """The residue of element j as the second operand."""
    c: Int[Tensor, " n"]
    """The residue (and output token) of answer i + j mod n."""
    train: Bool[Tensor, "n n"] | None
    """Which pairs were trained on; None where nobody knows."""
    root: int | None = None
    """The primitive root, for multiplication."""

    @property
    def n(self) -> int:
        """The order of the group: p for addition and subtraction, p - 1 for multiplication."""
        return len(self.a)

    @property
    def answers(self) -> Int[Tensor, "n n"]:
        """The answer of each pair as an element of the group: (i + j) mod n."""
        index = torch.arange(self.n)
        return (index[:, None] + index) % self.n

    @cached_property
    def all_logits(self) -> Float[Tensor, "n n v"]:
        """Logits at the last position in float64, every output of the model."""
        with torch.no_grad():
            parts = [
                run(self.model, part)[:, -1].to("cpu", torch.float64) for part, _ in split(self.model, self.tokens)
            ]
        return torch.cat(parts).unflatten(0, (self.n, self.n))

    @property
    def logits(self) -> Float[Tensor, "n n n"]:
        """Logits of the group's answers, element c on the last axis; outputs that are no answer are left out."""
        return self.all_logits[..., self.c]

    @property
    def accuracy(self) -> float:
        """The share of all pairs whose largest logit, over every output of the model, is the answer's."""
        return float((self.all_logits.argmax(-1) == self.c[self.answers]).double().mean())

    def loss(self, logits: Float[Tensor, "n n n"] | None = None) -> Float[Tensor, "n n"]:
        """Return the cross-entropy of each pair in float64, over the group's answers; of the model's logits by default."""
        x = self.logits if logits is None else logits
        picked = x.gather(-1, self.answers[..., None].to(x.device))[..., 0]
        return x.logsumexp(-1) - picked

    def acts(self, site: str) -> Float[Tensor, "n n *d"]:
        """Return activations at the last position in float64; hook_z and its like keep their head axis."""
        (name,) = sites(self.model, site)
        found = collect(self.model, self.tokens, name, pos=-1)[name]
        return found.to("cpu", torch.float64).unflatten(0, (self.n, self.n))

    def patterns(self, layer: int = 0) -> Float[Tensor, "n n head p"]:
        """Return the attention of the last query to every key."""
        (name,) = sites(self.model, "pattern", layers=layer)
        found = collect(self.model, self.tokens, name, pos=-1)[name]
        return found.to("cpu", torch.float64).unflatten(0, (self.n, self.n))

    @property
    def embedding(self) -> Float[Tensor, "n d"]:
        """Rows of W_E in the order of the first operand."""
        return self._weight("embed", "W_E")[self.a]

    @property
    def unembedding(self) -> Float[Tensor, "d n"]:
        """Columns of W_U in the order of the answers."""
        return self._weight("unembed", "W_U")[:, self.c]

    def neuron_logits(self, layer: int = -1) -> Float[Tensor, "d_mlp n"]:
        """Return W_out W_U, the direct effect of a layer's neurons on the answers (the final norm left out)."""
        mlp: Any = self.model.blocks[layer].mlp  # type: ignore[attr-defined]
        return mlp.W_out.detach().to("cpu", torch.float64) @ self.unembedding

    def split_mask(self, which: str) -> Bool[Tensor, "n n"]:
        """Return the pairs of a split: "all", "train" or "test".

        Raises:
            ValueError: "train" or "test" of a model whose split nobody knows.

        """
        if which == "all":
            return torch.ones(self.n, self.n, dtype=torch.bool)
        if which not in ("train", "test"):
            raise ValueError(f"which={which!r} is 'all', 'train' or 'test'.")
        if self.train is None:
            raise ValueError(
                f"Nobody knows which pairs {self!r} was trained on, so there is no {which!r} split; use 'all'."
            )
        return self.train if which == "train" else ~self.train

    def _weight(self, module: str, name: str) -> Tensor:
        return getattr(getattr(self.model, module), name).detach().to("cpu", torch.float64)

    def __repr__(self) -> str:
        root = "" if self.root is None else f", exponents of {self.root}"
        return f"Grid({self.operation} mod {self.modulus}: Z_{self.n}{root}, {self.n**2} pairs)"


def grid(toy: ToyLike, operation: str | None = None, root: int | None = None) -> Grid:
    """Return the grid of one operation of a toy.

    Args:
        toy: from ``toys.load``, or anything with its fields.
        operation: "add", "sub" or "mul"; the toy's first by default.
        root: the primitive root for multiplication; the smallest by default.

    Raises:
        ValueError: an operation that the toy has not, pairs that are missing or there twice, a modulus that is no prime
            for multiplication, answers that are not the operation's.

    """
    there = tuple(toy.card.get("config", {}).get("operations", ("add",)))
    chosen = there[0] if operation is None else operation
    if chosen not in there:
        raise ValueError(f"The toy has no operation {chosen!r}; it has {', '.join(there)}.")
    p = toy.modulus
    a, b, c, root = _elements(chosen, p, root)
    mine = torch.ones(len(toy.tokens), dtype=torch.bool)
    if "operation" in toy.inputs:
        mine = toy.inputs["operation"] == there.index(chosen)
    rows = _rows(toy.inputs["a"], toy.inputs["b"], mine, p)[a[:, None], b[None, :]].flatten()
    n = len(a)
    index = torch.arange(n)
    wrong = toy.answers[rows].reshape(n, n) != c[(index[:, None] + index) % n]
    if bool(wrong.any()):
        i, j = torch.nonzero(wrong)[0].tolist()
        raise ValueError(
            f"The answers are not those of {chosen} mod {p}: {int(wrong.sum())} of {n * n} pairs differ, the first is "
            f"({int(a[i])}, {int(b[j])}), whose answer here is {int(toy.answers[rows][i * n + j])}."
        )
    train = None if toy.train is None else toy.train[rows].reshape(n, n)
    return Grid(toy.model, toy.tokens[rows], chosen, p, a, b, c, train, root)


def _elements(operation: str, p: int, root: int | None) -> tuple[Tensor, Tensor, Tensor, int | None]:
    """The residues of the group's elements as first operand, second operand and answer."""
    index = torch.arange(p)
    if operation == "mul":
        root = primitive_root(p) if root is None else root
        order = discrete_log(p, root)[1:].argsort() + 1
        return order, order, order, root
    if root is not None:
        raise ValueError(f"root={root} is for multiplication; the group of {operation} is Z_{p} as it stands.")
    return index, (-index) % p if operation == "sub" else index, index, None


def _rows(a: Tensor, b: Tensor, mine: Tensor, p: int) -> Int[Tensor, "p p"]:
    """Which prompt asks each pair."""
    table = torch.full((p * p,), -1, dtype=torch.int64)
    rows = torch.nonzero(mine).flatten()
    pairs = (a * p + b)[rows]
    table[pairs] = rows
    missing = torch.nonzero(table < 0).flatten()
    if len(missing) or len(rows) != p * p:
        first = [(int(m) // p, int(m) % p) for m in missing[:3]]
        raise ValueError(
            f"The prompts are not every pair of 0 .. {p - 1} once: {len(missing)} pairs are missing"
            f"{f' (the first: {first})' if first else ''}, {len(rows) - len(pairs.unique())} are there twice."
        )
    return table.reshape(p, p)
