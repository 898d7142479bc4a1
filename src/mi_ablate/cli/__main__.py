"""``python -m mi_ablate.cli``."""

from mi_ablate.cli import main

if __name__ == "__main__":
    main()
