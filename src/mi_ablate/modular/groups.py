"""Small finite groups with their real irreducible representations: cyclic, dihedral and symmetric ones.

A representation gives each element g an orthogonal matrix ρ(g) with ρ(a) ρ(b) = ρ(ab). Irreducible ones replace the
frequencies when the group is not cyclic (Chughtai, Chan & Nanda 2023, arXiv 2302.03025): a network that composes a and b may
hold ρ(a), ρ(b), ρ(ab) and read the answer c off tr(ρ(ab) ρ(c)ᵀ). For Z_n the irrep of frequency k turns the plane by 2πk/n,
and that trace is 2 cos(2πk(a + b - c)/n).

Over the reals, the planes of a cyclic group are irreducible but their entries are linearly dependent (cos, -sin, sin,
cos span two dimensions, not four); `Irrep.functions` takes the span, so measures count them rightly. The irreps of D_n and
S_n here stay irreducible over the complex numbers, and their entries are orthogonal (Schur).

S_n is built by Young's orthogonal form: standard tableaux of each shape, adjacent transpositions acting with 1/r and
sqrt(1 - 1/r²), r the distance of contents. Elements of D_n: 0 .. n-1 the rotations, n .. 2n-1 a rotation after the
reflection; of S_n: permutations in lexicographic order, (ab)(x) = a(b(x)).
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate.modular.bases import FourierBasis

LARGEST = 5


@dataclass(frozen=True, eq=False)
class Irrep:
    """A real irreducible representation: one orthogonal matrix an element."""

    name: str
    matrices: Float[Tensor, "g d d"]

    @property
    def dimension(self) -> int:
        """The size d of its matrices."""
        return self.matrices.shape[-1]

    @property
    def character(self) -> Float[Tensor, " g"]:
        """The trace of each element's matrix."""
        return self.matrices.diagonal(dim1=1, dim2=2).sum(-1)

    @cached_property
    def functions(self) -> Float[Tensor, "g r"]:
        """An orthonormal basis of the span of its entries, functions on the group; r = d², or 2 for a plane of Z_n."""
        u, s, _ = torch.linalg.svd(self.matrices.flatten(1), full_matrices=False)
        return u[:, s > 1e-8 * s[0]].contiguous()

    def __repr__(self) -> str:
        return f"Irrep({self.name}, dimension {self.dimension})"


@dataclass(frozen=True, eq=False)
class Group:
    """A finite group as a multiplication table, with all its real irreducible representations."""

    name: str
    table: Int[Tensor, "g g"]
    """The product a b at row a, column b."""
    irreps: tuple[Irrep, ...]

    @property
    def order(self) -> int:
        """How many elements it has."""
        return len(self.table)

    @property
    def inverse(self) -> Int[Tensor, " g"]:
        """The inverse of each element."""
        unit = int(torch.nonzero((self.table == torch.arange(self.order)).all(1))[0])
        return (self.table == unit).int().argmax(1)

    def irrep(self, name: str) -> Irrep:
        """Return the irrep of a name."""
        for found in self.irreps:
            if found.name == name:
                return found
        raise KeyError(f"{self.name} has no irrep {name!r}; it has {', '.join(one.name for one in self.irreps)}.")

    def __repr__(self) -> str:
        return f"Group({self.name}: {self.order} elements, {len(self.irreps)} irreps)"


def cyclic_group(n: int) -> Group:
    """Return Z_n, its irreps named by frequency: "0" (trivial), "1", ..., and the sign "n/2" of an even n."""
    basis, a = FourierBasis(n), torch.arange(n)
    irreps = [Irrep("0", torch.ones(n, 1, 1, dtype=torch.float64))]
    for k in basis.frequencies:
        sign = (1 - 2 * (a % 2)).double()[:, None, None]
        irreps.append(Irrep(str(k), sign if 2 * k == n else _turns(n, k)))
    return Group(f"Z_{n}", (a[:, None] + a) % n, tuple(irreps))


def dihedral_group(n: int) -> Group:
    """Return D_n, the 2n symmetries of a polygon of n > 2 corners; irreps "trivial", "sign", "even", "odd", "1", "2", ..."""
    if n < 3:
        raise ValueError(f"dihedral_group({n}): a polygon has at least 3 corners.")
    index = torch.arange(2 * n)
    turn, flip = index % n, index // n
    signs = 1 - 2 * flip
    table = (turn[:, None] + signs[:, None] * turn) % n + n * ((flip[:, None] + flip) % 2)
    mirror = torch.tensor([[1.0, 0], [0, -1]], dtype=torch.float64)
    parity = 1 - 2 * (turn % 2)
    lines = {"trivial": signs**2, "sign": signs} | ({} if n % 2 else {"even": parity, "odd": parity * signs})
    irreps = [Irrep(name, values.double()[:, None, None]) for name, values in lines.items()]
    for k in range(1, (n - 1) // 2 + 1):
        turns = _turns(n, k)
        irreps.append(Irrep(str(k), torch.cat([turns, turns @ mirror])))
    return Group(f"D_{n}", table, tuple(irreps))


def symmetric_group(n: int) -> Group:
    """Return S_n for 1 < n < 6, its irreps named by partition, such as "(3, 1, 1)"."""
    if not 2 <= n <= LARGEST:
        raise ValueError(f"symmetric_group({n}): n from 2 to {LARGEST} ({math.factorial(LARGEST)} elements).")
    elements = list(itertools.permutations(range(n)))
    number = {element: i for i, element in enumerate(elements)}
    rows = [[number[tuple(a[b[x]] for x in range(n))] for b in elements] for a in elements]
    words = [_word(element) for element in elements]
    irreps = []
    for shape in _partitions(n, n):
        steps = _young(shape)
        matrices = []
        for word in words:
            product = torch.eye(len(steps[0]), dtype=torch.float64)
            for i in word:
                product = product @ steps[i]
            matrices.append(product)
        irreps.append(Irrep(f"({', '.join(map(str, shape))})", torch.stack(matrices)))
    return Group(f"S_{n}", torch.tensor(rows), tuple(irreps))


def _turns(n: int, k: int) -> Float[Tensor, "n 2 2"]:
    """Rotations of the plane by 2πka/n."""
    angle = (k * torch.arange(n) % n).double() * (2 * math.pi / n)
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)


def _word(element: tuple[int, ...]) -> list[int]:
    """Adjacent transpositions whose product, left to right, is the permutation (bubble sort from the right)."""
    left, word = list(element), []
    for _ in left:
        for i in range(len(left) - 1):
            if left[i] > left[i + 1]:
                left[i], left[i + 1] = left[i + 1], left[i]
                word.append(i)
    return word[::-1]


def _partitions(n: int, most: int) -> list[tuple[int, ...]]:
    if n == 0:
        return [()]
    return [(first, *rest) for first in range(min(n, most), 0, -1) for rest in _partitions(n - first, first)]


def _tableaux(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Standard tableaux, each as the row that holds 0, 1, 2, ..."""
    if sum(shape) == 0:
        return [()]
    found = []
    for row, length in enumerate(shape):
        if length > (shape[row + 1] if row + 1 < len(shape) else 0):
            smaller = (*shape[:row], length - 1, *shape[row + 1 :])
            found += [(*tableau, row) for tableau in _tableaux(smaller)]
    return sorted(found)


def _young(shape: tuple[int, ...]) -> list[Float[Tensor, "d d"]]:
    """The matrices of the adjacent transpositions (i, i + 1) in Young's orthogonal form."""
    tableaux = _tableaux(shape)
    number = {tableau: i for i, tableau in enumerate(tableaux)}
    steps = []
    for i in range(sum(shape) - 1):
        matrix = torch.zeros(len(tableaux), len(tableaux), dtype=torch.float64)
        for here, tableau in enumerate(tableaux):
            contents = [tableau[:m].count(tableau[m]) - tableau[m] for m in (i, i + 1)]
            distance = contents[1] - contents[0]
            matrix[here, here] = 1 / distance
            swapped = list(tableau)
            swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
            if swapped != list(tableau) and tuple(swapped) in number:
                matrix[number[tuple(swapped)], here] = (1 - 1 / distance**2) ** 0.5
        steps.append(matrix)
    return steps
