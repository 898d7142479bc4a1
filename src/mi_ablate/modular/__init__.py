"""Modular arithmetic: spectra over Z_p, key frequencies, the discrete logarithm."""

from mi_ablate.modular.attention import Periodicity, attention_periodicity, effective_maps
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
from mi_ablate.modular.cyclic import CyclicGeometry, cyclic_geometry, cyclic_scores
from mi_ablate.modular.gradients import Symmetricity, gradient_symmetricity, published_triples
from mi_ablate.modular.grids import Grid, grid
from mi_ablate.modular.groups import Group, Irrep, cyclic_group, dihedral_group, symmetric_group
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
from mi_ablate.modular.neurons import Neurons, neuron_frequencies, trig_ratio
from mi_ablate.modular.progress import phases, progress_row
from mi_ablate.modular.ranks import random_baseline, rank_measures
from mi_ablate.modular.representations import (
    Hidden,
    embedding_shares,
    hidden_shares,
    key_representations,
    trace_similarities,
    trace_similarity,
)
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
    "CyclicGeometry",
    "FourierBasis",
    "Grid",
    "Group",
    "Hidden",
    "Irrep",
    "Keys",
    "Loss",
    "Neurons",
    "Periodicity",
    "QShare",
    "Spectrum",
    "Spectrum2",
    "Symmetricity",
    "Verdict",
    "attention_periodicity",
    "causal_table",
    "circularity",
    "cosine_share",
    "cyclic_geometry",
    "cyclic_group",
    "cyclic_scores",
    "dihedral_group",
    "discrete_log",
    "distance_irrelevance",
    "edit_frequencies",
    "effective_maps",
    "embedding_shares",
    "embedding_spectrum",
    "excluded_each",
    "excluded_loss",
    "frequency_hooks",
    "frequency_subspace",
    "full_loss",
    "generalised",
    "gini",
    "gradient_symmetricity",
    "grid",
    "hidden_shares",
    "isolated_circles",
    "key_frequencies",
    "key_representations",
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
    "random_baseline",
    "random_top_share",
    "rank_measures",
    "restricted_loss",
    "shuffled_measures",
    "spectrum",
    "spectrum2",
    "symmetric_group",
    "trace_similarities",
    "trace_similarity",
    "trig_loss",
    "trig_ratio",
    "unembedding_spectrum",
    "verdict",
]
