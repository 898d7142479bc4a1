"""Which frequency each neuron follows, and the clusters of neurons that share one.

A neuron over all pairs (i, j), its mean removed, has the share

    share_k = energy of its products of {const, cos k, sin k} with {const, cos k, sin k} / its energy

in the frequency k: functions of i, of j and of both with one frequency. The neuron's frequency is the k with the largest
share, and it belongs to the cluster of k when the share is above 0.85 (Nanda et al. 2023, arXiv 2301.05217, section 4.3
and its code). In their main model 433 of 512 neurons do.

Variants differ in the frequencies that they look at: "nanda_colab" and "arena" loop over range(1, n // 2), so that the
last frequency n // 2, (n - 1) / 2 for odd n, can never be chosen; "tl_demo" and "nanda_text" look at all of them.

A neuron that is never active has no frequency (0). One that is nearly constant has shares too, of almost nothing, so
`Neurons.energy` stands beside them. A cluster says what a neuron varies with, not that the model needs it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate.modular.bases import FourierBasis

CLUSTER = 0.85
SHORT = ("nanda_colab", "arena")
VARIANTS = ("nanda_text", "tl_demo", *SHORT)


@dataclass(frozen=True, eq=False)
class Neurons:
    """The frequency of each neuron and how much of its variance over pairs that frequency explains."""

    n: int
    variant: str
    frequency: Int[Tensor, " m"]
    """0 for a neuron that does not vary."""
    share: Float[Tensor, " m"]
    energy: Float[Tensor, " m"]
    """The variance of each neuron over the pairs."""
    shares: Float[Tensor, "k m"]
    """The share of every frequency 1 .. n // 2."""

    def clusters(self, threshold: int | float = CLUSTER) -> dict[int, list[int]]:
        """Return the neurons of each frequency with a share above ``threshold``; those of no frequency are `unassigned`."""
        members = self._members(threshold)
        return {k: torch.nonzero(members & (self.frequency == k)).flatten().tolist() for k in self._chosen(members)}

    def unassigned(self, threshold: int | float = CLUSTER) -> list[int]:
        """Return the neurons whose largest share is not above ``threshold``."""
        return torch.nonzero(~self._members(threshold)).flatten().tolist()

    @property
    def frequencies(self) -> list[int]:
        """The frequencies that some neuron follows, before any threshold: NP's and ARENA's key frequencies."""
        return self._chosen(self.frequency > 0)

    def by(self, variant: str) -> "Neurons":
        """Return the same neurons by another variant, without computing their shares again."""
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r} is one of {', '.join(VARIANTS)}.")
        return _best(self.n, variant, self.shares, self.energy)

    def _members(self, threshold: int | float) -> Bool[Tensor, " m"]:
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold} is a share of a neuron's variance: from 0 to below 1.")
        return (self.share > threshold) & (self.frequency > 0)

    def _chosen(self, members: Bool[Tensor, " m"]) -> list[int]:
        return sorted(set(self.frequency[members].tolist()))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{k}: {len(members)}" for k, members in list(self.clusters().items())[:6])
        return (
            f"Neurons({self.variant}, {len(self.frequency)}: {sizes or 'no cluster'}; {len(self.unassigned())} in none)"
        )


def neuron_frequencies(acts: Float[Tensor, "n n m"], variant: str = "nanda_text") -> Neurons:
    """Return the frequency of each neuron.

    Args:
        acts: activations over pairs, such as ``grid.acts("blocks.0.mlp.hook_post")``.
        variant: see the module; "nanda_text" and "tl_demo" look at every frequency, "nanda_colab" and "arena" at all
            but the last.

    Raises:
        ValueError: an unknown variant, activations that are not [n, n, neurons].

    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is one of {', '.join(VARIANTS)}.")
    if acts.ndim != 3:
        raise ValueError(f"Neurons over pairs have shape [n, n, neurons]; these have {list(acts.shape)}.")
    n = len(acts)
    basis = FourierBasis(n)
    y = acts.detach().to("cpu", torch.float64)
    y = y - y.mean((0, 1))
    total = (y**2).sum((0, 1))
    energies = torch.stack(list(basis.pair_energies(y).values())).sum(0)
    alive = total > 1e-20 * (acts.detach().to("cpu", torch.float64) ** 2).sum((0, 1))
    shares = torch.where(alive, energies / torch.where(alive, total, 1), 0)
    return _best(n, variant, shares, total / n**2)


def _best(n: int, variant: str, shares: Float[Tensor, "k m"], energy: Float[Tensor, " m"]) -> Neurons:
    looked = shares[: n // 2 - 1] if variant in SHORT else shares
    if len(looked) == 0:
        raise ValueError(f"Variant {variant!r} looks at the frequencies below {n // 2}: there is none in Z_{n}.")
    share, index = looked.max(0)
    return Neurons(n, variant, torch.where(shares.sum(0) > 0, index + 1, 0), share, energy, shares)


def trig_ratio(acts: Float[Tensor, "n n m"], frequencies: list[int]) -> Float[Tensor, " m"]:
    """Return each unit's share of variance in cos and sin of w_k(i + j), ARENA's and the Colab's trig ratio.

    Published for pre-activations, post-activations and logits as the mean over units; units that do not vary are NaN,
    so take ``.nanmean()``.
    """
    y = acts.detach().to("cpu", torch.float64)
    y = y - y.mean((0, 1))
    basis = FourierBasis(len(y))
    basis.check(frequencies)
    found = basis.pair_energies(y)["sum"][[k - 1 for k in sorted(set(frequencies))]].sum(0)
    return found / (y**2).sum((0, 1))
