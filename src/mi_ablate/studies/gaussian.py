"""Removal curves at the last residual, predicted from class means and their spread: no prompt is run.

The activations x of the prompts with answer c are taken for x = m_c + e, with e ~ N(0, W): m_c the mean of the class, W
the covariance within classes, pooled. Draws from it lose the first k directions as in `mi_ablate.curves` (zero, the mean of
the draws, or the coordinates of another draw), pass the model's own final norm and unembedding, and the share of draws
whose largest logit is the right one is the predicted accuracy. Nothing is fitted to a curve. With W = 0 the class means alone
predict.

When it misleads: real activations within a class are not Gaussian and their covariance differs between classes; training
pairs that were memorised lie closer to their mean than held-out ones, so a curve predicted from them falls late. And at the
last residual a removal acts through the readout alone, so a good prediction says what the curve measures, and nothing about
the layers before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate._walks import ABLATIONS, another_row

Read = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n v"]]


@dataclass(frozen=True, eq=False)
class ClassGaussian:
    """Means of classes ``[c d]`` and the covariance within them ``[d d]``, float64."""

    means: Float[Tensor, "c d"]
    within: Float[Tensor, "d d"]

    @classmethod
    def of(cls, acts: Float[Tensor, "n d"], values: Int[Tensor, " n"], classes: int) -> "ClassGaussian":
        """Return the means of ``classes`` classes and their pooled covariance, with n - classes in the denominator.

        Args:
            acts: activations ``[n d]``, any dtype.
            values: the class of each, 0 to ``classes`` - 1.
            classes: how many there are.

        Raises:
            ValueError: a class without activations, or no more activations than classes.

        """
        counts = torch.bincount(values, minlength=classes)
        if len(acts) <= classes or int(counts.min()) == 0:
            raise ValueError(
                f"{len(acts)} activations of {int((counts > 0).sum())} of {classes} classes: every class needs one, and "
                "their spread needs more than one a class."
            )
        x = acts.detach().to("cpu", torch.float64)
        means = torch.zeros(classes, x.shape[1], dtype=torch.float64).index_add_(0, values, x) / counts[:, None]
        rest = x - means[values]
        return cls(means, rest.T @ rest / (len(x) - classes))

    @property
    def still(self) -> "ClassGaussian":
        """The same means without any spread."""
        return replace(self, within=torch.zeros_like(self.within))

    def draw(self, n: int, seed: int = 0) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """Return n draws, the classes in turn, and their classes."""
        values, vectors = torch.linalg.eigh(self.within)
        root = vectors * values.clamp(min=0).sqrt()
        answers = torch.arange(n) % len(self.means)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n, len(root), dtype=torch.float64, generator=generator)
        return self.means[answers] + noise @ root.T, answers

    def __repr__(self) -> str:
        return f"ClassGaussian({len(self.means)} classes, d {self.means.shape[1]})"


def readout_of(model: HookedModel) -> Read:
    """Return the model's final norm and unembedding as a function of the last residual stream ``[n d]``."""
    inside: Any = model
    norm = inside.ln_final if inside.cfg.normalization_type is not None else torch.nn.Identity()
    kind = next(inside.unembed.parameters())

    def read(x: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        with torch.no_grad():
            return inside.unembed(norm(x.to(kind)[:, None]))[:, 0]

    return read


def removed_curves(
    x: Float[Tensor, "n d"],
    tokens: Int[Tensor, " n"],
    basis: Float[Tensor, "d r"],
    read: Read,
    ks: Sequence[int],
    seed: int = 0,
) -> dict[str, Float[Tensor, " K"]]:
    """Return the share of right answers after the first k columns of a basis are removed from x, by ablation.

    Args:
        x: activations ``[n d]``.
        tokens: the right answer's column of the logits, ``[n]``.
        basis: orthonormal columns in the order of removal.
        read: activations -> logits.
        ks: how many columns.
        seed: of the rows that resample-ablation takes coordinates from.

    """
    targets = {"zero": torch.zeros_like(x[0]), "mean": x.mean(0), "resample": x[another_row(len(x), seed)]}
    q, found = basis.to(x), {}
    for ablation in ABLATIONS:
        step = (targets[ablation] - x) @ q
        right = [read(x + step[:, :k] @ q[:, :k].T).argmax(-1).cpu() == tokens for k in ks]
        found[ablation] = torch.stack(right).double().mean(1)
    return found
