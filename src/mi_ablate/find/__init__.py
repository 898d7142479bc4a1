"""More ways to a subspace: means, singular vectors, probes, erasure, and all places at once.

Every finder is a function ``finder(acts [n d], labels, ..., name="") -> Subspace``: ordered, signed, and with
``source`` saying how it was found. `FINDERS` lists them by name. What they find differs: means and their singular
vectors say what a concept *writes*, probes what it is *read* by, PCA what is large.
"""

from mi_ablate.find._named import FINDERS
from mi_ablate.find.erasure import Leace, leace, leace_of, leace_subspace
from mi_ablate.find.gradient import optimised
from mi_ablate.find.grid import Candidates, candidates
from mi_ablate.find.means import difference_of_means
from mi_ablate.find.probes import inlp, lda, logistic
from mi_ablate.find.refit import refitted
from mi_ablate.find.robust import geometric_median, winsorised
from mi_ablate.find.spectral import class_means, paired_svd, pca, whitened_svd

__all__ = [
    "FINDERS",
    "Candidates",
    "Leace",
    "candidates",
    "class_means",
    "difference_of_means",
    "geometric_median",
    "inlp",
    "lda",
    "leace",
    "leace_of",
    "leace_subspace",
    "logistic",
    "optimised",
    "paired_svd",
    "pca",
    "refitted",
    "whitened_svd",
    "winsorised",
]
