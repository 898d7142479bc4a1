"""The ordered bases that removal walks along: contrastive directions, frequency planes, and the sites of "every site".

A contrastive basis is the SVD of the fit of the activations on a one-hot of the answer: the answers' mean activations
minus their mean. A frequency plane is what the cos and sin of one frequency of the answer write.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.design import Design, classes, fourier
from mi_ablate.model import layer_of, sites
from mi_ablate.regression import fit
from mi_ablate.subspace import Subspace

SPARSE = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)
"""The k that are measured at every site."""


def every_site(model: HookedModel) -> list[str]:
    """Return the residual stream after the first attention and after everything later, in the order of the pass."""
    names = [name for pattern in ("resid_mid", "resid_post") for name in sites(model, pattern)]
    return sorted(names, key=lambda name: (layer_of(name) or 0, "post" in name))


def present(values: Int[Tensor, " n"]) -> Design:
    """Return the one-hot of the answers that occur (a small training set may miss some)."""
    return classes(torch.unique(values, return_inverse=True)[1])


def contrastive(acts: Float[Tensor, "n d"], values: Int[Tensor, " n"], name: str) -> Subspace:
    """Return the contrastive directions, those with the most variance between answers first."""
    return fit(acts, present(values)).subspace(name=name)


def planes(acts: Float[Tensor, "n d"], values: Int[Tensor, " n"], period: int, most: int = 24) -> Subspace:
    """Return the answer's frequency planes as one basis, the plane with the most energy first, at most ``most``."""
    found = fit(acts, fourier(values, period, range(1, (period - 1) // 2 + 1), name="answer"))
    pairs = found.coef.unflatten(0, (-1, 2))
    order = torch.argsort((pairs**2).sum((1, 2)), descending=True, stable=True)[:most]
    return Subspace.span(pairs[order].flatten(0, 1), "frequency planes")
