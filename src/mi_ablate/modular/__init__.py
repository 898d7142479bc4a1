"""Modular arithmetic: spectra over Z_p, key frequencies, the discrete logarithm."""

from mi_ablate.modular.bases import FourierBasis
from mi_ablate.modular.characters import discrete_log, primitive_root
from mi_ablate.modular.cosines import CosineShare, cosine_share
from mi_ablate.modular.grids import Grid, grid
from mi_ablate.modular.keys import RULES, Keys, generalised, key_frequencies
from mi_ablate.modular.neurons import Neurons, explained, neuron_frequencies
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

__all__ = [
    "RULES",
    "CosineShare",
    "FourierBasis",
    "Grid",
    "Keys",
    "Neurons",
    "Spectrum",
    "Spectrum2",
    "cosine_share",
    "discrete_log",
    "embedding_spectrum",
    "explained",
    "generalised",
    "gini",
    "grid",
    "key_frequencies",
    "logit_spectrum",
    "neuron_frequencies",
    "neuron_logit_spectrum",
    "neuron_spectrum",
    "primitive_root",
    "random_top_share",
    "spectrum",
    "spectrum2",
    "unembedding_spectrum",
]
