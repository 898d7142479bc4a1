"""Every finder by name, to compare them in a loop."""

from collections.abc import Callable

from mi_ablate.find.erasure import leace_subspace
from mi_ablate.find.means import difference_of_means
from mi_ablate.find.probes import inlp, lda, logistic
from mi_ablate.find.spectral import class_means, paired_svd, pca, whitened_svd
from mi_ablate.subspace import Subspace

FINDERS: dict[str, Callable[..., Subspace]] = {
    "difference_of_means": difference_of_means,
    "class_means": class_means,
    "paired_svd": paired_svd,
    "whitened_svd": whitened_svd,
    "pca": pca,
    "logistic": logistic,
    "lda": lda,
    "inlp": inlp,
    "leace": leace_subspace,
}
