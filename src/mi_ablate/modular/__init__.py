"""Modular arithmetic: spectra over Z_p, key frequencies, the discrete logarithm."""

from mi_ablate.modular.characters import discrete_log, primitive_root
from mi_ablate.modular.grids import Grid, grid
from mi_ablate.modular.spectra import Spectrum, spectrum

__all__ = ["Grid", "Spectrum", "discrete_log", "grid", "primitive_root", "spectrum"]
