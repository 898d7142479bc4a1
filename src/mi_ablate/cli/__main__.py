"""``python -m mi_ablate.cli``."""

from mi_ablate.cli import main

main()
