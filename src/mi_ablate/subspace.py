"""Ordered orthonormal bases of activation space, and how two of them compare.

A `Subspace` holds Q, orthonormal float64 columns ``[d, rank]``; its projector is Q Qᵀ, which is never formed. The
columns are ordered, so ``s[:k]`` is the leading k-dimensional part: removal curves walk along that order.

Overlap of two subspaces is the mean squared cosine of their principal angles, ||Uᵀ V||²_F / min(rank); two random
subspaces share max(rank) / d of it on average, so the number says nothing without that reference (and activations are
not isotropic: see `mi_ablate.controls.covariance` for the fairer one). Small angles are taken from the sine, since
the cosine of 1e-8 rounds to 1 (Björck & Golub 1973).
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

_ORTHONORMAL = 1e-8
_A_DIRECTION = ("sizes", "rms", "explained", "correlations")
"""Lists in a source with one number a direction: a part of the subspace keeps its part of them."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """An ordered orthonormal basis ``[d, rank]`` in float64, 1 <= rank <= d.

    ``source`` says where it comes from, in plain JSON values: the method and its options, the number of examples, the
    site and position, and "sizes", how long each direction was before it was made unit (see `vector`). Finders fill it
    in, files keep it, and it plays no part in the algebra.

    Raises:
        ValueError: a basis that is not a matrix, not orthonormal, not finite, or of rank 0 or above d.

    """

    basis: Float[Tensor, "d rank"]
    name: str = ""
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _cast: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        basis = torch.as_tensor(self.basis).detach().to(torch.float64)
        if basis.ndim != 2:
            raise ValueError(f"A basis is a matrix [d, rank]; this one has shape {list(basis.shape)}.")
        d, rank = basis.shape
        if not 1 <= rank <= d:
            raise ValueError(f"A subspace of {d} dimensions has a rank from 1 to {d}, not {rank}.")
        _refuse_nan(basis, "basis")
        error = (basis.T @ basis - torch.eye(rank, dtype=basis.dtype, device=basis.device)).abs().max()
        if error > _ORTHONORMAL:
            raise ValueError(
                f"The columns are not orthonormal (error {error:.1e}). "
                "Subspace.span(vectors) makes them so; it takes the vectors as rows."
            )
        with torch.inference_mode(False):
            object.__setattr__(self, "basis", basis.clone() if basis.is_inference() else basis)

    @classmethod
    def span(cls, vectors: Float[Tensor, "n d"] | Float[Tensor, " d"], name: str = "") -> "Subspace":
        """Return the span of the row vectors, in their order; vectors that depend on earlier ones add nothing.

        Gram-Schmidt, done twice, in float64. A vector counts as dependent when less than 10 eps max(n, d) of its
        own norm is left, with eps that of the dtype it came in.
        """
        rows = torch.as_tensor(vectors)
        eps = torch.finfo(rows.dtype).eps if rows.is_floating_point() else torch.finfo(torch.float64).eps
        rows = torch.atleast_2d(rows).detach().to(torch.float64)
        _refuse_nan(rows, "vectors")
        n, d = rows.shape
        basis = rows.new_zeros(d, min(n, d))
        rank = 0
        for row in rows:
            if rank == d:
                break
            norm = row.norm()
            left = row
            for _ in range(2):
                left = left - basis[:, :rank] @ (basis[:, :rank].T @ left)
            if norm > 0 and left.norm() > 10 * eps * max(n, d) * norm:
                basis[:, rank] = left / left.norm()
                rank += 1
        if rank == 0:
            raise ValueError(f"The {n} vectors span nothing: all of them are zero.")
        return cls(basis[:, :rank].contiguous(), name)

    @classmethod
    def random(cls, d: int, rank: int, seed: int = 0) -> "Subspace":
        """Return an isotropic random subspace: a sanity check, not a control (it removes about rank/d of the variance)."""
        if not 1 <= rank <= d:
            raise ValueError(f"A subspace of {d} dimensions has a rank from 1 to {d}, not {rank}.")
        draws = torch.randn(d, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return cls(torch.linalg.qr(draws).Q, f"random, seed {seed}")

    @property
    def vector(self) -> Float[Tensor, " d"]:
        """The one direction at its own size, ``[d]``: what `Add` takes, such as a whole difference of means.

        Raises:
            ValueError: of rank above 1, or of a source that states no size.

        """
        sizes = self.source.get("sizes")
        if self.rank != 1 or sizes is None:
            reason = f"it has rank {self.rank}" if self.rank != 1 else "its source states no size"
            raise ValueError(f"{self!r} is not one vector: {reason}. basis[:, i] is a unit vector; scale it yourself.")
        return self.basis[:, 0] * sizes[0]

    @property
    def d(self) -> int:
        """Width of the space that the subspace lies in."""
        return self.basis.shape[0]

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.basis.shape[1]

    def columns(self, like: Tensor) -> Float[Tensor, "d rank"]:
        """Return the basis on the device and in the dtype of ``like``, cast once for each pair."""
        key = (like.device, like.dtype)
        cast = self._cast.get(key)
        if cast is None:
            with torch.inference_mode(False):  # generate() runs in inference mode, whose tensors autograd refuses
                cast = self._cast[key] = self.basis.to(like.device, like.dtype)
        return cast

    def coords(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch rank"]:
        """Return the coordinates Qᵀ x."""
        q = self.columns(x)
        if x.shape[-1] != q.shape[0]:
            self._check_width(x)
        return linear(x, q.mT)

    def project(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return Q Qᵀ x, the part of x inside the subspace."""
        q = self.columns(x)
        if x.shape[-1] != q.shape[0]:
            self._check_width(x)
        return linear(linear(x, q.mT), q)

    def complement(self) -> "Subspace":
        """Return the orthogonal complement, of rank d - rank."""
        if self.rank == self.d:
            raise ValueError(f"The subspace is all of the {self.d} dimensions; nothing is left for its complement.")
        full = torch.linalg.qr(self.basis, mode="complete").Q
        return Subspace(full[:, self.rank :].contiguous(), f"complement of {self.name}" if self.name else "")

    def __or__(self, other: "Subspace") -> "Subspace":
        """Return the span of both: this basis first, then what the other adds."""
        self._check_same_space(other)
        name = " | ".join(n for n in (self.name, other.name) if n)
        return Subspace.span(torch.cat([self.basis, other.basis.to(self.basis.device)], dim=1).T, name)

    def __getitem__(self, index: int | slice | list[int]) -> "Subspace":
        """Return the part spanned by the chosen directions; ``s[:k]`` is the leading part."""
        try:
            columns: Any = [operator.index(index)]  # type: ignore[arg-type]
        except TypeError:
            columns = index
        try:
            chosen = self.basis[:, columns]
        except IndexError:
            raise IndexError(
                f"Direction {index} of a subspace of rank {self.rank}: count from 0 to {self.rank - 1}."
            ) from None
        if chosen.shape[1] == 0:
            raise ValueError(f"[{index}] chooses no direction of {self!r}; a subspace has at least one.")
        source = dict(self.source)
        for key in _A_DIRECTION:
            if isinstance(source.get(key), (list, tuple)) and len(source[key]) == self.rank:
                source[key] = torch.tensor(source[key], dtype=torch.float64)[columns].tolist()
        return Subspace(chosen.contiguous(), self.name, source)

    def cosines(self, other: "Subspace") -> Float[Tensor, " k"]:
        """Return the cosines of the principal angles, largest first; k is the smaller rank."""
        self._check_same_space(other)
        return torch.linalg.svdvals(self.basis.T @ other.basis.to(self.basis.device)).clamp(max=1.0)

    def angles(self, other: "Subspace") -> Float[Tensor, " k"]:
        """Return the principal angles in radians, smallest first, exact for small ones too."""
        self._check_same_space(other)
        small, large = sorted((self.basis, other.basis.to(self.basis.device)), key=lambda b: b.shape[1])
        cosines = torch.linalg.svdvals(large.T @ small).clamp(max=1.0)
        sines = torch.linalg.svdvals(small - large @ (large.T @ small)).flip(0).clamp(max=1.0)
        return torch.where(cosines**2 < 0.5, cosines.arccos(), sines.arcsin())

    def overlap(self, other: "Subspace") -> float:
        """Return the mean squared cosine, in [0, 1]. Isotropic random subspaces: max(rank) / d on average."""
        return float((self.cosines(other) ** 2).mean())

    def to(self, device: torch.device | str) -> "Subspace":
        """Return the same subspace with its basis on ``device``."""
        return Subspace(self.basis.to(device), self.name, self.source)

    def plot(self) -> Any:
        """Return the plotly figure of the directions' sizes, or of how many coordinates each is spread over."""
        from mi_ablate.figures import directions

        return directions(self)

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        facts = {key: value for key, value in self.source.items() if isinstance(value, (str, int, float))}
        return html_table([{"subspace": self.name or "(no name)", "rank": self.rank, "of": self.d, **facts}])

    def __repr__(self) -> str:
        name = f", {self.name[:32]!r}" if self.name else ""
        return f"Subspace(rank {self.rank} of {self.d}{name})"

    def _check_width(self, x: Tensor) -> None:
        if x.shape[-1] != self.d:
            raise ValueError(
                f"{self!r} acts on vectors of width {self.d}; these have width {x.shape[-1]} (shape {list(x.shape)}). "
                "Fit the subspace at the site where it is used (heads at hook_z have width d_head)."
            )

    def _check_same_space(self, other: "Subspace") -> None:
        if self.d != other.d:
            raise ValueError(f"Two subspaces of different spaces: d = {self.d} and d = {other.d}.")


def _refuse_nan(x: Tensor, what: str) -> None:
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"The {what} hold {bad} values that are NaN or infinite (shape {list(x.shape)}).")
