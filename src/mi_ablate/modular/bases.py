"""The real Fourier basis of Z_n, for odd and even n, and its products on pairs.

    const  1 / √n        cos k  √(2/n) cos(2πka/n)        sin k  √(2/n) sin(2πka/n)        0 < k < n/2
    cos n/2 = ±1/√n      the alternating row of an even n, whose sine is zero

n orthonormal rows in all. Nanda et al. 2023 (arXiv 2301.05217) order them const, cos 1, sin 1, ...; the TransformerLens
demo puts sin before cos, and a builder that loops to n//2 adds the sine of n/2 for even n, a row of rounding errors made
unit. So rows are asked for by frequency here, ``basis.cos(3)``, never by number.

On pairs (i, j) the products of two rows are an orthonormal basis of functions. Of the four products of frequency k with
itself, two combinations are functions of i + j, (cos cos - sin sin)/√2 and (sin cos + cos sin)/√2, the normalised cos
and sin of 2πk(i+j)/n, and two are functions of i - j. A model that adds mod n needs the first two only; the "2 x 2 block"
that some published measures keep holds the other two as well (see `FourierBasis.component`).

Energy in a frequency says that something varies with it, not that anything reads it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

PARTS = ("sum", "difference", "2x2", "3x3")


@dataclass(frozen=True)
class FourierBasis:
    """The orthonormal real Fourier basis of Z_n, n > 1; rows are addressed by frequency 0 (the constant) .. n // 2."""

    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 2:
            raise ValueError(f"FourierBasis({self.n!r}): Z_n needs a whole number n > 1.")

    @property
    def frequencies(self) -> range:
        """The frequencies 1 .. n // 2; the constant is none of them."""
        return range(1, self.n // 2 + 1)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """What each row of `matrix` is: "const", "cos 1", "sin 1", ..."""
        return ("const", *(f"{kind} {k}" for k in self.frequencies for kind in ("cos", "sin")[: self._size(k)]))

    @cached_property
    def matrix(self) -> Float[Tensor, "n n"]:
        """The basis, row r the function `labels`[r] of a = 0 .. n - 1."""
        a = torch.arange(self.n)
        rows = [torch.full((self.n,), self.n**-0.5, dtype=torch.float64)]
        for k in self.frequencies:
            angle = (k * a % self.n).double() * (2 * math.pi / self.n)
            if 2 * k == self.n:
                rows.append((1 - 2 * (a % 2)).double() * self.n**-0.5)
            else:
                rows += [angle.cos() * (2 / self.n) ** 0.5, angle.sin() * (2 / self.n) ** 0.5]
        return torch.stack(rows)

    @property
    def const(self) -> Float[Tensor, " n"]:
        """The constant row."""
        return self.matrix[0]

    def cos(self, k: int) -> Float[Tensor, " n"]:
        """Return the unit cosine of frequency k; for k = n/2 the alternating row."""
        return self.block(k)[0]

    def sin(self, k: int) -> Float[Tensor, " n"]:
        """Return the unit sine of frequency k."""
        rows = self.block(k)
        if len(rows) == 1:
            raise ValueError(f"Frequency {k} of Z_{self.n} has no sine: it is zero on every element.")
        return rows[1]

    def block(self, k: int) -> Float[Tensor, "rows n"]:
        """Return both rows of frequency k, cosine first; one row for k = n/2."""
        return self.matrix[self.rows(k)]

    def rows(self, *frequencies: int) -> Int[Tensor, " rows"]:
        """Return where the rows of these frequencies stand in `matrix` and in what `transform` returns."""
        self.check(frequencies)
        return torch.nonzero(torch.isin(self._of_row, torch.tensor(frequencies, dtype=torch.int64))).flatten()

    def order(self, k: int) -> int:
        """Return n / gcd(k, n), after how many steps frequency k repeats; it does not depend on a primitive root."""
        self.check([k])
        return self.n // math.gcd(k, self.n)

    def transform(self, x: Float[Tensor, "*shape"], dim: int = 0) -> Float[Tensor, "*shape"]:
        """Return the coefficients along ``dim`` (of length n), in the order of `labels`, in float64."""
        return self._along(self.matrix, x, dim)

    def inverse(self, coefficients: Float[Tensor, "*shape"], dim: int = 0) -> Float[Tensor, "*shape"]:
        """Return what has these coefficients along ``dim``."""
        return self._along(self.matrix.T, coefficients, dim)

    def energies(self, x: Float[Tensor, "n *d"]) -> Float[Tensor, "k *d"]:
        """Return the energy of frequency 0 (the constant), 1, ..., n // 2 along the first axis; they add up to that of x."""
        power = self.transform(x) ** 2
        return power.new_zeros(self.n // 2 + 1, *power.shape[1:]).index_add(0, self._of_row, power)

    def transform2(self, x: Float[Tensor, "n n *d"]) -> Float[Tensor, "n n *d"]:
        """Return the coefficients of the n² products of rows over pairs (i, j), first axis i."""
        return self.transform(self.transform(x, 0), 1)

    def inverse2(self, coefficients: Float[Tensor, "n n *d"]) -> Float[Tensor, "n n *d"]:
        """Return the function of pairs that has these coefficients."""
        return self.inverse(self.inverse(coefficients, 0), 1)

    def energies2(self, x: Float[Tensor, "n n *d"]) -> Float[Tensor, "k k *d"]:
        """Return the energy of each pair of frequencies (0 .. n//2, 0 .. n//2); they add up to that of x."""
        power = self.transform2(x) ** 2
        half = power.new_zeros(self.n // 2 + 1, *power.shape[1:]).index_add(0, self._of_row, power)
        return half.new_zeros(self.n // 2 + 1, *half.shape[:1], *half.shape[2:]).index_add(
            0, self._of_row, half.transpose(0, 1)
        ).transpose(0, 1)  # fmt: skip

    def sum_directions(self, k: int) -> Float[Tensor, "rows n n"]:
        """Return the unit functions cos and sin of 2πk(i+j)/n (one function for k = n/2)."""
        return self.block(k)[:, self._index(1)] * self.n**-0.5

    def difference_directions(self, k: int) -> Float[Tensor, "rows n n"]:
        """Return the unit functions cos and sin of 2πk(i-j)/n (for k = n/2 the same one as of the sum)."""
        return self.block(k)[:, self._index(-1)] * self.n**-0.5

    def component(
        self, x: Float[Tensor, "n n *d"], frequencies: Iterable[int], part: str = "sum"
    ) -> Float[Tensor, "n n *d"]:
        """Return the orthogonal projection of x, as a function of pairs, on terms of the given frequencies.

        Args:
            x: anything over pairs: logits, neurons, a residual stream.
            frequencies: each once or more; none gives zero.
            part: "sum" (2 terms a frequency: cos, sin of w(i+j)), "difference" (of w(i-j)), "2x2" (the 4 products of a
                frequency with itself, sum and difference together) or "3x3" (those and the 4 products with the constant,
                cos and sin of wi and of wj). The overall mean belongs to no part.

        Raises:
            ValueError: a frequency outside 1 .. n // 2, an unknown part, or x that is not over n x n pairs.

        """
        chosen = sorted(set(frequencies))
        y = self._pairs(x)
        if part not in PARTS:
            raise ValueError(f"part={part!r} is one of {', '.join(PARTS)}.")
        rows = self.matrix[self.rows(*chosen)]
        if part in ("sum", "difference"):
            sign = 1 if part == "sum" else -1
            function = rows.T @ (rows @ self.diagonals(y, sign).reshape(self.n, -1)) / self.n
            return function.reshape(self.n, *y.shape[2:])[self._index(sign)]
        names = self._of_row[self.rows(*chosen)]
        if part == "3x3":
            rows, names = torch.cat([self.const[None], rows]), torch.cat([names.new_zeros(1), names])
        same = names[:, None] == names
        mask = (same | (names == 0) | (names[:, None] == 0)) & ((names[:, None] + names) > 0)
        found = torch.einsum("ri,sj,ij...->rs...", rows, rows, y)
        return torch.einsum("ri,sj,rs...->ij...", rows, rows, found * mask.reshape(*mask.shape, *[1] * (y.ndim - 2)))

    def pair_energies(self, x: Float[Tensor, "n n *d"]) -> dict[str, Float[Tensor, "k *d"]]:
        """Return the energies of the frequencies 1 .. n // 2 in four parts, without the n² coefficients.

        "first" and "second" (functions of i alone, of j alone), "sum" and "difference" (of i + j, of i - j; for k = n/2
        they are the same term, counted under "sum"). Together they are the 3 x 3 block of each frequency.
        """
        y = self._pairs(x)
        lines = {
            "first": y.sum(1),
            "second": y.sum(0),
            "sum": self.diagonals(y, 1),
            "difference": self.diagonals(y, -1),
        }
        found = {name: self.energies(line)[1:] / self.n for name, line in lines.items()}
        if self.n % 2 == 0:
            found["difference"][-1] = 0
        return found

    def diagonals(self, x: Float[Tensor, "n n *d"], sign: int) -> Float[Tensor, "n *d"]:
        """Return, for each s, the sum of x over the pairs with i + sign j = s mod n."""
        y = self._pairs(x)
        return y.new_zeros(self.n, *y.shape[2:]).index_add(0, self._index(sign).flatten(), y.flatten(0, 1))

    def check(self, frequencies: Iterable[int]) -> None:
        """Raise for what is no frequency of Z_n."""
        wrong = [k for k in frequencies if k not in self.frequencies]
        if wrong:
            raise ValueError(f"Z_{self.n} has the frequencies 1 to {self.n // 2}; {wrong[:5]} are none of them.")

    @cached_property
    def _of_row(self) -> Int[Tensor, " n"]:
        """The frequency of each row."""
        return (torch.arange(self.n) + 1) // 2

    def _index(self, sign: int) -> Int[Tensor, "n n"]:
        index = torch.arange(self.n)
        return (index[:, None] + sign * index) % self.n

    def _size(self, k: int) -> int:
        return 1 if 2 * k == self.n else 2

    def _along(self, matrix: Tensor, x: Tensor, dim: int) -> Tensor:
        if not -x.ndim <= dim < x.ndim or x.shape[dim] != self.n:
            raise ValueError(f"x has shape {list(x.shape)}; its axis {dim} must have the length {self.n}.")
        y = x.detach().to("cpu", torch.float64).movedim(dim, 0)
        return (matrix @ y.reshape(self.n, -1)).reshape(y.shape).movedim(0, dim)

    def _pairs(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[:2] != (self.n, self.n):
            raise ValueError(f"x has shape {list(x.shape)}; functions of pairs have [{self.n}, {self.n}, ...].")
        return x.detach().to("cpu", torch.float64)

    def __repr__(self) -> str:
        return f"FourierBasis({self.n})"
