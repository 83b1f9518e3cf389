"""Pages in a real browser, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
HEIGHT = 3000


def look(page: str, folder: Path, width: int) -> Any:
    """A screenshot of a page, (H, width, 3) BGR; the browser's console must stay silent.

    Args:
        page: HTML.
        folder: An empty folder.
        width: Width of the page in pixels.
    """
    (folder / "index.html").write_text(page)
    # A window is at least 500 pixels wide, a frame may be narrower.
    frame = f'<iframe src="index.html" width="{width}" height="{HEIGHT}" style="border:0"></iframe>'
    (folder / "frame.html").write_text(f"<!doctype html><body style='margin:0'>{frame}")
    browser = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--enable-logging=stderr", f"--window-size={max(width, 500)},{HEIGHT}",
         f"--screenshot={folder / 'seen.png'}", (folder / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in browser.stderr
    image = cv2.imread(str(folder / "seen.png"))
    assert image is not None
    return image[:, :width]


def check_width(image: Any) -> None:
    """Check that nothing is wider than the page: its right margin is empty."""
    assert (image[:, -8:] == image[0, -1]).all()


def count_pixels(image: Any, red: int, green: int, blue: int) -> int:
    """The number of pixels of about this color."""
    return int((np.abs(image.astype(int) - (blue, green, red)).sum(axis=2) < 60).sum())
