"""Write docs/research_log.md from the records: ``python -m mi_ablate.studies [--figures]`` (figures need Chromium)."""

import argparse
from pathlib import Path

from mi_ablate.studies.page import page
from mi_ablate.sweep import RESULTS

PAGE = Path("docs") / "research_log.md"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    options = parser.parse_args()
    options.out.write_text(page(options.results))
    print(options.out)
