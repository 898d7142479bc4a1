"""What a study needs to know about one trained toy, as JSON: scores, spectra, geometry, removal, overlap, writing.

One protocol for all measures. Bases, and the controls' covariances, are fitted on **training pairs**; edits are scored
on **1,000 held-out pairs** (a seeded draw; all where there are fewer), at the last position. Random controls have 5
draws. "Every site" is the residual stream after the first attention and after everything later, each with a basis of its
own. Multiplication lives on exponents of a primitive root, pairs with a zero apart (accuracy counts them). Every value
is ``{operation: ...}``, floats have five digits, and None stands for what cannot be computed: no basis in a collapsed
model, no group spectrum where answers are missing, nothing at all of weights that are not finite.

Shapes, below ``{measure: {operation: ...}}``; "effect" is `plain.effect_json`; "curves" is `plain.curves_json`, ks,
variance_removed: {run: [K]} and one curve an ablation (zero, mean, resample; collateral: zero, mean):

    accuracy       train, held_out, all: {accuracy, loss, n}; margin [5]
    embedding      W_E, W_U: {shares, frequencies, top5, top10: {share, random}}; rank99; norms: {W_E, W_U, all}
    class_means    all, train: {answers, singular_values, rank99, dims95, participation, shares}
    variance       mean_norm, total, within, within_eigenvalues; directions: {variance, within, gain, mean}; sites
    last_residual  directions: {live, frozen: curves}; planes: curves
    every_site     live, frozen: curves
    collateral     other operation: curves
    overlap        other operation: {"5", "10", "20", "30": {squared, cosine, isotropic, covariance, split_half}}
    writing        "5", "10", "20", "all": effect | {frequencies, rank, ablated: effect}

When these mislead: thresholds on a curve depend on the ablation, on whether the norms' scales may react, and on what the
threshold is a share of, so each k is given in all of these readings, beside the k of its controls. Training pairs that
were memorised span other directions than held-out ones. One checkpoint is one sample: intervals belong over seeds.
"""

from mi_ablate.measures.registry import MEASURES, VERSION, measure
from mi_ablate.measures.subject import Subject

__all__ = ["MEASURES", "VERSION", "Subject", "measure"]
