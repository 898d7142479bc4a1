"""More ways to a subspace: means, singular vectors, probes, erasure, and all places at once.

Every finder is a function ``finder(acts [n d], labels, ..., name="") -> Subspace``: ordered, signed, and with
``source`` saying how it was found. `FINDERS` lists them by name.
"""

from collections.abc import Callable

from mi_ablate.find.grid import Candidates, candidates
from mi_ablate.find.means import difference_of_means
from mi_ablate.find.robust import geometric_median, winsorised
from mi_ablate.subspace import Subspace

FINDERS: dict[str, Callable[..., Subspace]] = {
    "difference_of_means": difference_of_means,
}
"""Every finder by name, to compare them in a loop."""

__all__ = [
    "FINDERS",
    "Candidates",
    "candidates",
    "difference_of_means",
    "geometric_median",
    "winsorised",
]
