"""Find, remove, move and measure what a transformer represents.

>>> import mi_ablate as mi
>>> toy = mi.toys.load("add97")                                              # doctest: +SKIP
>>> acts = mi.collect(toy.model, toy.tokens, "blocks.1.hook_resid_post")     # doctest: +SKIP

Names are imported when first used, so ``import mi_ablate`` loads neither transformer_lens nor a plotting library.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    *("adders", "arithmetic", "contrasts", "controls", "diaries", "find"),
    *("toys", "figures", "metrics", "modular", "others"),
)
_NAMES = {
    "Subspace": "subspace",
    "Design": "design",
    "contrast": "design",
    "classes": "design",
    "linear": "design",
    "polynomial": "design",
    "fourier": "design",
    "helix": "design",
    "Fit": "regression",
    "Fitter": "regression",
    "fit": "regression",
    "Intervention": "interventions",
    "Ablate": "interventions",
    "Add": "interventions",
    "Rotate": "interventions",
    "Erase": "interventions",
    "gated": "gates",
    "per_layer": "layers",
    "layer_kernel": "layers",
    "visible": "layers",
    "sites": "model",
    "writers": "model",
    "stream": "model",
    "collect": "model",
    "attached": "model",
    "last_residual": "model",
    "accuracy": "metrics",
    "logit_diff": "metrics",
    "cross_entropy": "metrics",
    "kl": "metrics",
    "refusal_score": "metrics",
    "refusal_rate": "metrics",
    "next_token_loss": "metrics",
    "Effect": "effects",
    "effect": "effects",
    "Curve": "curves",
    "removal_curve": "curves",
    "interval": "effects",
    "Effects": "effects",
    "effect_by_site": "effects",
    "Overlaps": "overlap",
    "overlaps": "overlap",
    "Patching": "patching",
    "patch": "patching",
    "Dormant": "dormancy",
    "dormant": "dormancy",
    "Dissociation": "selectivity",
    "double_dissociation": "selectivity",
    "bake_": "weights",
    "baked": "weights",
    "verify_baked": "weights",
    "Card": "store",
    "save": "store",
    "load": "store",
    "read_card": "store",
    "Choice": "choosing",
    "choose": "choosing",
    "Tuned": "tuning",
    "tune": "tuning",
    "ArtefactError": "_files",
    "load_model": "loading",
    "Prompts": "prompts",
    "Contrast": "prompts",
    "read_prompts": "prompts",
    "tokenized": "prompts",
    "contrasted": "prompts",
    "generated": "generation",
    "exported": "export",
    "Explanation": "explained",
    "explain": "explained",
    "HeadsChanged": "looking",
    "heads_changed": "looking",
    "along": "looking",
    "Abliteration": "abliteration",
    "abliterate": "abliteration",
}
__all__ = sorted([*_NAMES, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mi_ablate.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"mi_ablate.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mi_ablate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
