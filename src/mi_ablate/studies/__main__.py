"""Write docs/research_log.md from the records: ``python -m mi_ablate.studies [--figures]`` (figures need Chromium).

With ``--figures`` those pictures are drawn that do not show the numbers of the records yet, and those that no study has any
more are removed.
"""

import argparse
from pathlib import Path

from mi_ablate.studies.page import found_by, page, picture
from mi_ablate.studies.pictures import draw, is_of
from mi_ablate.studies.registry import STUDIES
from mi_ablate.sweep import RESULTS

PAGE = Path("docs") / "research_log.md"


def draw_figures(results: Path, folder: Path) -> None:
    """Bring the pictures of a folder up to date with the records."""
    kept = set()
    for name, found in found_by(results).items():
        for i, make in enumerate(found.figures.values()):
            path, figure = folder / picture(STUDIES[name], i), make()
            kept.add(path)
            if not is_of(path, figure):
                print(draw(figure, path))
    for path in set(folder.glob("*.png")) - kept:
        path.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    parser.add_argument("--figures", action="store_true", help="draw the figures that are not of these records")
    options = parser.parse_args()
    options.out.write_text(page(options.results))
    print(options.out)
    if options.figures:
        draw_figures(options.results, options.out.with_suffix(""))
