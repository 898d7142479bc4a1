"""Figures of studies as PNG files, drawn by headless Chromium from plotly's own page, 900 pixels wide."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

WIDTH, SCALE = 900, 1.5
_STYLE = "<style>body{margin:0;background:white}</style>"


def draw(figure: Any, path: Path) -> Path:
    """Write a plotly figure to a PNG file and return its path.

    Raises:
        RuntimeError: there is no Chromium.

    """
    height = int(figure.layout.height)
    figure.update_layout(width=WIDTH, paper_bgcolor="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        drawn = figure.to_html(include_plotlyjs=True, full_html=False, config={"staticPlot": True})
        page.write_text(_STYLE + drawn)
        browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        size = [f"--window-size={WIDTH},{height}", f"--force-device-scale-factor={SCALE}", "--virtual-time-budget=5000"]
        where = [f"--user-data-dir={folder}/profile", f"--screenshot={path.resolve()}", str(page)]
        try:
            subprocess.run([*browser, *size, *where], check=True, capture_output=True)
        except FileNotFoundError:
            raise RuntimeError(
                "Figures are drawn by Chromium, which is not here; install the package chromium."
            ) from None
    return path
