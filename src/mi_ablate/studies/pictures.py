"""Figures of studies as PNG files, drawn by headless Chromium from plotly's own page.

Each file carries a hash of the numbers and names that it shows, so that a picture of older records is found without drawing
it again.
"""

import hashlib
import json
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any

from mi_ablate import _files

WIDTH, SCALE = 900, 1.15
_STYLE = "<style>body{margin:0;background:white}</style>"
_SIGNATURE, _KEYWORD = b"\x89PNG\r\n\x1a\n", b"mi_ablate\0"
_HEAD = len(_SIGNATURE) + 25
"""Where the chunks after a PNG's first one begin."""
_SHOWN = ("name", "x", "y", "z", "text", "error_y")


def draw(figure: Any, path: Path, width: int = WIDTH, scale: int | float = SCALE) -> Path:
    """Write a plotly figure with its own height to a PNG file and return its path.

    Args:
        figure: what is drawn; it is left as it is.
        path: where to.
        width: of the picture, in CSS pixels.
        scale: pixels of the file for each of these.

    Raises:
        RuntimeError: there is no Chromium, or it drew nothing.

    """
    drawn = type(figure)(figure).update_layout(width=width, paper_bgcolor="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder) / "figure.html", Path(folder) / "figure.png"
        page.write_text(_STYLE + drawn.to_html(include_plotlyjs=True, full_html=False, config={"staticPlot": True}))
        browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        size = [f"--window-size={width},{int(drawn.layout.height)}", f"--force-device-scale-factor={scale}"]
        where = ["--virtual-time-budget=5000", f"--user-data-dir={folder}/profile", f"--screenshot={shot}", str(page)]
        try:
            subprocess.run([*browser, *size, *where], check=True, capture_output=True)
        except FileNotFoundError:
            raise RuntimeError(
                "Figures are drawn by Chromium, which is not here; install the package chromium."
            ) from None
        except subprocess.CalledProcessError as error:
            last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"Chromium drew no figure: {' '.join(last)}") from None
        data = shot.read_bytes()
    _files.replace(path, data[:_HEAD] + _chunk(b"tEXt", _KEYWORD + fingerprint(figure).encode()) + data[_HEAD:])
    return path


def fingerprint(figure: Any) -> str:
    """Return 16 hexadecimal digits of the numbers that a figure shows, to six digits, and of the names beside them."""
    shown = [[_plain(trace[key]) for key in _SHOWN if key in trace] for trace in figure.data]
    words = [_plain(note.text) for note in figure.layout.annotations]
    return hashlib.sha256(json.dumps([shown, words]).encode()).hexdigest()[:16]


def is_of(path: Path, figure: Any) -> bool:
    """Whether a PNG file shows the numbers of this figure."""
    chunk = _chunk(b"tEXt", _KEYWORD + fingerprint(figure).encode())
    return path.is_file() and path.read_bytes()[_HEAD : _HEAD + len(chunk)] == chunk


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _plain(value: Any) -> Any:
    """Numbers as text of six digits, whatever holds them."""
    if hasattr(value, "to_plotly_json"):
        return {key: _plain(inner) for key, inner in sorted(value.to_plotly_json().items())}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.6g}"
    return value if value is None or isinstance(value, bool) else str(value)
