"""How a model holds numbers: per-number means, spectra, helices and their rivals, probes, free periods."""
