"""Write docs/research_log.md from the records: ``python -m mi_ablate.studies [--figures]`` (figures need Chromium)."""

import argparse
from pathlib import Path

from mi_ablate.studies.page import found_by, page, picture
from mi_ablate.studies.pictures import draw
from mi_ablate.studies.registry import STUDIES
from mi_ablate.sweep import RESULTS

PAGE = Path("docs") / "research_log.md"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    parser.add_argument("--figures", nargs="*", metavar="STUDY", help="draw the figures, of all studies or of these")
    options = parser.parse_args()
    options.out.write_text(page(options.results))
    print(options.out)
    if options.figures is not None:
        for name, found in found_by(options.results).items():
            for i, figure in enumerate(found.figures.values() if name in (options.figures or STUDIES) else ()):
                print(draw(figure(), options.out.with_suffix("") / picture(STUDIES[name], i)))
