"""Everything that `mi_ablate.modular` measures of one model, as numbers, as text and as a page: `mi-ablate fourier`.

Nothing is measured here that is not a function of `mi_ablate.modular`; this package runs them together, once each, and says
which variant, split and frequencies each number is of.
"""

from mi_ablate.fourier_analysis.results import FourierAnalysis, analyse

__all__ = ["FourierAnalysis", "analyse"]
