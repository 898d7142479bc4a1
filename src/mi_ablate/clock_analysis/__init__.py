"""By which algorithm a model calculates with numbers, the Clock weighed against its rival: `mi-ablate clock`.

Nothing is measured here that is not a function of `mi_ablate.arithmetic`; this package runs them together, draws a
conclusion by stated rules (`evidence`) and writes the page.
"""

from mi_ablate.clock_analysis.results import ClockAnalysis, analyse_clock

__all__ = ["ClockAnalysis", "analyse_clock"]
