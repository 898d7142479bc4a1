"""Modular arithmetic: spectra over Z_p, key frequencies, the discrete logarithm."""

from mi_ablate.modular.characters import discrete_log, primitive_root
from mi_ablate.modular.spectra import Spectrum, spectrum

__all__ = ["Spectrum", "discrete_log", "primitive_root", "spectrum"]
