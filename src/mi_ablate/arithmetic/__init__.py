"""Numbers in language models: prompts with numbers, how a model represents them, and how it calculates.

>>> import mi_ablate as mi
>>> model = mi.load_model("gpt2")                                            # doctest: +SKIP
>>> sums = mi.arithmetic.problems(model, "add", limit=1000)                  # doctest: +SKIP
>>> mi.arithmetic.asked(model, sums)                                         # doctest: +SKIP

Names are imported when first used.
"""

import importlib
from typing import Any

_NAMES = {
    "Numerals": "single_tokens",
    "numerals": "single_tokens",
    "Task": "tasks",
    "TASKS": "tasks",
    "Problems": "prompting",
    "problems": "prompting",
    "problems_of": "toy_problems",
    "Asked": "asking",
    "asked": "asking",
    "Pairs": "pairing",
    "pairs": "pairing",
    "Written": "written",
    "reconstructions": "written",
    "written_by_fits": "written",
    "pair_reconstructions": "written_pairs",
    "numeral_states": "pooling",
    "probability_difference": "asking",
    "Swaps": "swaps",
    "swap": "swaps",
    "PeriodEffects": "period_sets",
    "period_effects": "period_sets",
    "NumberMeans": "states",
    "NumberSums": "states",
    "number_means": "states",
    "means_of": "states",
    "embedding_means": "states",
    "HelixFits": "helices",
    "helix_fits": "helices",
    "design_fits": "helices",
    "subsets": "helices",
    "held_out_fit": "helices",
    "projected": "helices",
    "polar": "helices",
    "cartesian": "helices",
    "PeriodSubsets": "helices",
    "HeldOut": "helices",
    "pair_design": "last_token",
    "PairFits": "last_token",
    "pair_fits": "last_token",
    "Baselines": "comparisons",
    "baselines": "comparisons",
    "method_design": "comparisons",
    "method_fits": "comparisons",
    "method_subspaces": "comparisons",
    "FreePeriods": "period_search",
    "free_periods": "period_search",
    "NumberSpectra": "spectra",
    "number_spectra": "spectra",
    "number_spectrum": "spectra",
    "Linearity": "spectra",
    "linearity": "spectra",
    "Separability": "separability",
    "residue_separability": "separability",
    "cohen_kappa": "separability",
    "CircularProbes": "digit_probes",
    "circular_probes": "digit_probes",
    "SinusoidalProbes": "digit_probes",
    "sinusoidal_probes": "digit_probes",
    "Irreducibility": "reducibility",
    "irreducibility": "reducibility",
    "plane_irreducibility": "reducibility",
    "separability_index": "reducibility",
    "mixture_index": "reducibility",
    "Planted": "planting",
    "planted": "planting",
    "Truth": "planted_truth",
    "FilterEffects": "filtering",
    "filter_effects": "filtering",
    "logit_filter": "filtering",
    "number_filter": "filtering",
    "removed_frequencies": "filtering",
    "Component": "parts",
    "ComponentEffects": "components",
    "component_effects": "components",
    "joint_effect": "components",
    "SmallestSets": "circuits",
    "smallest_sets": "circuits",
    "PathEffects": "paths",
    "path_effects": "paths",
    "NumberLens": "lens",
    "number_lens": "lens",
    "HeadRoles": "heads",
    "head_roles": "heads",
    "MlpRoles": "mlps",
    "mlp_roles": "mlps",
    "NeuronFits": "neurons",
    "NeuronSums": "neurons",
    "fit_neurons": "neurons",
    "neuron_design": "neurons",
    "neuron_fits": "neurons",
    "NeuronEffects": "neuron_effects",
    "neuron_attribution": "neuron_effects",
    "neuron_direct_effects": "neuron_effects",
    "neuron_patching": "neuron_effects",
    "KeptNeurons": "kept_neurons",
    "fitted_accuracy": "kept_neurons",
    "NumberSpectrum": "readout",
    "NeuronLogits": "readout",
    "logit_spectrum": "readout",
    "neuron_number_logits": "readout",
    "number_logits": "readout",
    "spectrum_of": "readout",
    "AnswerErrors": "errors",
    "answer_errors": "errors",
    "LineAddition": "lines",
    "line_addition": "lines",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
