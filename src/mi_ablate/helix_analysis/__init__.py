"""How one model represents numbers, and whether it calculates with that: `mi-ablate helix`.

Nothing is measured here that is not a function of `mi_ablate.arithmetic`; this package runs them together and writes the page.
"""

from mi_ablate.helix_analysis.results import HelixAnalysis, Operand, analyse_helix

__all__ = ["HelixAnalysis", "Operand", "analyse_helix"]
