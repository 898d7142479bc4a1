"""Erase everything linear about a label, with the least change of the activations (LEACE, an oblique projector).

Equation: x' = x - A (x - m), with A = W+ U UT W; W = S^(-1/2) of the covariance S of the activations X with mean m, and U
    the left singular vectors of W C, C the covariance of X with the columns of the labels Z.
Paper: Belrose et al. 2023, arXiv 2306.03819.
Shapes: acts [n, d] and labels [n, k] of the same n examples, n well above d; x [batch, pos, d].
Attach at: where acts were collected, at the same positions; fitted anew at each site where it is used.
Misleads when: it is read as "the model no longer knows": a nonlinear reader, and a later layer, can recompute the label; and
    when n is near d: the fit then erases noise (the covariance must be invertible here).
Compare with: the difference of means removed orthogonally, and LEACE of shuffled labels.
In the package: Erase(writer, reader, centre=mean).at(...)
"""

from collections.abc import Callable

import torch


def erase_concept(acts: torch.Tensor, labels: torch.Tensor, pos: int | None = None) -> Callable[..., torch.Tensor]:
    """Return a hook for ``model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])``; ``pos=None`` means all positions."""
    mean = acts.double().mean(0)
    x_c, z_c = acts.double() - mean, labels.double() - labels.double().mean(0)
    values, vectors = torch.linalg.eigh(x_c.T @ x_c / len(acts))
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    whiten = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    u, size, _ = torch.linalg.svd(whiten @ x_c.T @ z_c / len(acts), full_matrices=False)
    u = u[:, size > 1e-9 * size[0]]
    oblique = root @ u @ u.T @ whiten

    def hook(x: torch.Tensor, hook: object = None) -> torch.Tensor:
        edited = x.double() - (x.double() - mean) @ oblique.T
        out = x.clone()
        where = slice(None) if pos is None else [pos]
        out[:, where] = edited[:, where].to(x.dtype)
        return out

    return hook
