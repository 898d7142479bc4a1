"""Modular arithmetic: spectra over Z_p, key frequencies, the discrete logarithm."""

from mi_ablate.modular.bases import FourierBasis
from mi_ablate.modular.causal import CausalTable, causal_table
from mi_ablate.modular.characters import discrete_log, primitive_root
from mi_ablate.modular.clock_pizza import (
    Circularity,
    QShare,
    circularity,
    distance_irrelevance,
    isolated_circles,
    q_share,
)
from mi_ablate.modular.components import edit_frequencies, frequency_hooks, frequency_subspace, pattern_hooks
from mi_ablate.modular.cosines import CosineShare, cosine_share
from mi_ablate.modular.gradients import Symmetricity, gradient_symmetricity, published_triples
from mi_ablate.modular.grids import Grid, grid
from mi_ablate.modular.keys import RULES, Keys, generalised, key_frequencies
from mi_ablate.modular.losses import (
    Loss,
    excluded_each,
    excluded_loss,
    full_loss,
    progress_losses,
    restricted_loss,
    trig_loss,
)
from mi_ablate.modular.neurons import Neurons, explained, neuron_frequencies
from mi_ablate.modular.progress import phases, progress_row
from mi_ablate.modular.spectra import (
    Spectrum,
    Spectrum2,
    embedding_spectrum,
    gini,
    logit_spectrum,
    neuron_logit_spectrum,
    neuron_spectrum,
    random_top_share,
    spectrum,
    spectrum2,
    unembedding_spectrum,
)
from mi_ablate.modular.verdicts import Verdict, shuffled_measures, verdict

__all__ = [
    "RULES",
    "CausalTable",
    "Circularity",
    "CosineShare",
    "FourierBasis",
    "Grid",
    "Keys",
    "Loss",
    "Neurons",
    "QShare",
    "Spectrum",
    "Spectrum2",
    "Symmetricity",
    "Verdict",
    "causal_table",
    "circularity",
    "cosine_share",
    "discrete_log",
    "distance_irrelevance",
    "edit_frequencies",
    "embedding_spectrum",
    "excluded_each",
    "excluded_loss",
    "explained",
    "frequency_hooks",
    "frequency_subspace",
    "full_loss",
    "generalised",
    "gini",
    "gradient_symmetricity",
    "grid",
    "isolated_circles",
    "key_frequencies",
    "logit_spectrum",
    "neuron_frequencies",
    "neuron_logit_spectrum",
    "neuron_spectrum",
    "pattern_hooks",
    "phases",
    "primitive_root",
    "progress_losses",
    "progress_row",
    "published_triples",
    "q_share",
    "random_top_share",
    "restricted_loss",
    "shuffled_measures",
    "spectrum",
    "spectrum2",
    "trig_loss",
    "unembedding_spectrum",
    "verdict",
]
