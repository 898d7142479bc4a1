"""Open a page in headless Chromium without a network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    text = "This test opens the page in a browser. Install one: apt-get install chromium."
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


def open_offline(path: Path, profile: Path, width: int) -> tuple[str, str]:
    """The page's elements after its scripts ran, and the browser's log; no host name resolves."""
    flags = "--headless --no-sandbox --disable-sync --disable-gpu --no-first-run --disable-component-update"
    flags += " --disable-background-networking --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
    rules = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [
        chromium(),
        *flags.split(),
        rules,
        f"--user-data-dir={profile}",
        f"--window-size={width},900",
        path.as_uri(),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return run.stdout, run.stderr
