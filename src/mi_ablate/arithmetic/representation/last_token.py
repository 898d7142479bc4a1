"""Fits of helices of both operands and of the answer to activations of the prompts, at the last token or any other.

    helix(a,b) = helix(a) + helix(b),    helix(a+b),    helix(a,b,a+b)         (Kantamneni & Tegmark 2025, §5.1)

These depend on two numbers, so the rows are the prompts; one pass accumulates the products of the widest design, and every
basis is fitted from a part of them. The constant is part of every fit: in the published notebooks the design of helix(a,b)
repeats b's linear column in its place, which biases the comparison against it (see the regression test).

The ranks are not the numbers of columns: each number's sine of period 2 is zero on integers, and a + b is the sum of a and
b, so "a,b,answer" with the default periods has 27 columns and rank 23 (24 of 28 with the constant).

When it misleads: with 27 columns R² is high for smooth functions of any kind. PCA of the same rank is the most that any
linear subspace of that rank holds, so it is an upper bound and no null; fits to shuffled prompts are the null.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._types import HookedModel, nearest
from mi_ablate.arithmetic.representation.helices import PERIODS
from mi_ablate.arithmetic.representation.products import basis_of
from mi_ablate.arithmetic.representation.states import by_head
from mi_ablate.design import Design, helix
from mi_ablate.model import default_batch_size, split, stream
from mi_ablate.regression import Fit, Fitter

if TYPE_CHECKING:
    from mi_ablate.arithmetic.problem_sets.prompting import Problems

BASES = ("a,b", "answer", "a,b,answer")


def pair_design(
    inputs: Mapping[str, Tensor], basis: str = "a,b,answer", periods: Sequence[int | float] = PERIODS
) -> Design:
    """Return the helix columns of the numbers that ``basis`` names, labelled "a:linear", "a:cos 10", "answer:sin 2" ...

    `mi.fit` centres, so the constant is never among the columns and never lost.

    Args:
        inputs: the numbers of each prompt, as in ``Problems.inputs``.
        basis: names joined by commas: "a", "b", "a,b", "answer", "a,b,answer".
        periods: of the circles of each.

    Raises:
        KeyError: a name that the inputs do not have.

    """
    names = [name.strip() for name in basis.split(",")]
    missing = [name for name in names if name not in inputs]
    if missing:
        raise KeyError(f"The basis {basis!r} needs {missing}; the prompts have {sorted(inputs)}.")
    parts = [helix(inputs[name].cpu(), periods, name) for name in names]
    return Design(torch.cat([part.matrix for part in parts], 1), sum((part.labels for part in parts), ()))


@dataclass(frozen=True, eq=False, repr=False)
class PairFits:
    """Fits of each basis at each site.

    Attributes:
        sites: hook names; heads are sites of their own, "blocks.0.attn.hook_z[3]".
        bases: such as "a,b", "answer", "a,b,answer".
        r2: ``[bases sites]``, share of the variance over prompts.
        ranks: independent columns of each basis, the constant not counted.
        pca: ``[bases sites]``, share that so many leading principal components hold, of ``pca_rows`` prompts.
        n: prompts. chance: rank / (n - 1) of each basis, the R² of unrelated numbers.

    """

    sites: tuple[str, ...]
    bases: tuple[str, ...]
    periods: tuple[int | float, ...]
    r2: Float[Tensor, "bases sites"]
    ranks: tuple[int, ...]
    pca: Float[Tensor, "bases sites"]
    pca_rows: int
    n: int
    _fitters: dict[str, Fitter]
    _labels: dict[str, tuple[str, ...]]

    @property
    def chance(self) -> tuple[float, ...]:
        """The mean R² of a fit to unrelated numbers, for each basis."""
        return tuple(rank / (self.n - 1) for rank in self.ranks)

    def fit(self, site: str, basis: str = "a,b,answer") -> Fit:
        """Return the fit of one site: that of `mi.fit` on all prompts with `pair_design` (inputs, basis, periods).

        Raises:
            KeyError: a site or basis that was not fitted.

        """
        for what, asked, there in (("site", site, self.sites), ("basis", basis, self.bases)):
            if asked not in there:
                raise KeyError(f"The {what} {asked!r} was not fitted. {nearest(asked, there)}")
        return _part(self._fitters[site], self._labels[basis])

    def table(self) -> list[dict[str, object]]:
        """Return a row a site and basis."""
        return [
            {
                "site": site,
                "basis": basis,
                "rank": self.ranks[i],
                "r2": float(self.r2[i, j]),
                "pca": float(self.pca[i, j]),
                "chance": self.chance[i],
            }
            for j, site in enumerate(self.sites)
            for i, basis in enumerate(self.bases)
        ]

    def __repr__(self) -> str:
        best = ", ".join(f"{basis} {float(r2.max()):.2f}" for basis, r2 in zip(self.bases, self.r2))
        return f"PairFits({len(self.sites)} sites, n {self.n}, best R²: {best})"


def pair_fits(
    model: HookedModel,
    problems: "Problems",
    names: str | Sequence[str] = "resid_post",
    bases: Sequence[str] = BASES,
    periods: Sequence[int | float] = PERIODS,
    *,
    of: str = "answer",
    batch_size: int | None = None,
    pca_rows: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> PairFits:
    """Run the prompts once and fit every basis at every site (and head).

    Args:
        model: a HookedTransformer or TransformerBridge.
        problems: the prompts.
        names: sites or patterns; with "z" each head is fitted in its own space.
        bases: see `pair_design`. periods: of the circles.
        of: whose position is read; "answer" is the last token.
        batch_size: prompts a pass; by memory where None.
        pca_rows: components of a random sample of so many prompts; the fewer, the more they overstate what they hold.
        progress: called with (prompts done, prompts) after each pass.

    Raises:
        KeyError: an unknown site, a basis the prompts lack. ValueError: no more prompts than columns, no such token, NaN.

    """
    _check(problems, bases, of, pca_rows)
    designs = {basis: pair_design(problems.inputs, basis, periods) for basis in bases}
    needed = sorted({name.strip() for basis in bases for name in basis.split(",")})
    widest, n = pair_design(problems.inputs, ",".join(needed), periods), len(problems.tokens)
    ranks = tuple(_rank(design) for design in designs.values())
    sample = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:pca_rows].sort().values
    fitters: dict[str, Fitter] = {}
    held: dict[str, list[Tensor]] = {}
    size = batch_size or min(n, default_batch_size(model, problems.tokens.shape[1]))
    for rows, acts in stream(model, split(model, problems.tokens, None, size), names, pos=problems.positions[of]):
        picked = sample[(sample >= rows[0]) & (sample <= rows[-1])] - rows[0]
        for site, x in by_head(acts).items():
            fitters.setdefault(site, Fitter()).update(x.cpu(), widest[rows])
            held.setdefault(site, []).append(x.cpu()[picked].float())
        if progress is not None:
            progress(int(rows[-1]) + 1, n)
    labels = {basis: design.labels for basis, design in designs.items()}
    r2 = [[_part(fitter, labels[basis]).r2 for fitter in fitters.values()] for basis in bases]
    pca = [_leading(torch.cat(rows), ranks) for rows in held.values()]
    return PairFits(
        sites=tuple(fitters),
        bases=tuple(bases),
        periods=tuple(periods),
        r2=torch.tensor(r2, dtype=torch.float64),
        ranks=ranks,
        pca=torch.tensor(pca, dtype=torch.float64).T.contiguous(),
        pca_rows=len(sample),
        n=n,
        _fitters=fitters,
        _labels=labels,
    )


def _check(problems: "Problems", bases: Sequence[str], of: str, pca_rows: int) -> None:
    if of not in problems.positions or not bases or pca_rows < 2:
        raise ValueError(
            f"of={of!r}, bases={list(bases)}, pca_rows={pca_rows}: a token of the prompts ({', '.join(problems.positions)}), "
            "at least one basis and at least two rows are needed."
        )


def _part(fitter: Fitter, labels: tuple[str, ...]) -> Fit:
    """The fit of some columns, from the products of all."""
    columns = [fitter.labels.index(label) for label in labels]  # type: ignore[union-attr]
    part = Fitter()
    part.__dict__.update(fitter.__dict__)
    part.labels, part._mean_d = labels, fitter._mean_d[columns]
    part._gram, part._cross = fitter._gram[columns][:, columns], fitter._cross[columns]
    return part.result()


def _rank(design: Design) -> int:
    rank = basis_of(design.matrix, torch.ones(len(design), dtype=torch.float64)).shape[1]
    if len(design) < rank + 2:
        raise ValueError(
            f"{len(design)} prompts for columns of rank {rank} and a constant: any activations would be fitted exactly. "
            "Give more prompts, or fewer periods or bases."
        )
    return rank


def _leading(x: Tensor, ranks: Sequence[int]) -> list[float]:
    """Share of the variance in the leading components, for each rank."""
    x = x.to(torch.float64) - x.to(torch.float64).mean(0)
    variances = torch.linalg.eigvalsh(x @ x.T if len(x) < x.shape[1] else x.T @ x).clamp(min=0).flip(0)
    return [float(variances[:rank].sum() / variances.sum().clamp(min=1e-300)) for rank in ranks]
