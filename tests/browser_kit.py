"""A real browser that looks at a page, where there is one."""

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
    """What a browser shows of a page at a width, (H, width, 3) BGR; its console must stay silent.

    Args:
        page: HTML.
        folder: An empty folder.
        width: Width of the page in pixels.
    """
    (folder / "index.html").write_text(page)
    # A window is no narrower than 500, a frame is.
    frame = f'<iframe src="index.html" width="{width}" height="{HEIGHT}" style="border:0"></iframe>'
    (folder / "frame.html").write_text(f"<!doctype html><body style='margin:0'>{frame}")
    ended = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--enable-logging=stderr", f"--window-size={max(width, 500)},{HEIGHT}",
         f"--screenshot={folder / 'seen.png'}", (folder / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in ended.stderr
    seen = cv2.imread(str(folder / "seen.png"))
    assert seen is not None
    return seen[:, :width]


def check_width(seen: Any) -> None:
    """Make sure that nothing is wider than the page: its margin is empty all the way down."""
    assert (seen[:, -8:] == seen[0, -1]).all()


def count_pixels(seen: Any, red: int, green: int, blue: int) -> int:
    """Pixels of about this color."""
    return int((np.abs(seen.astype(int) - (blue, green, red)).sum(axis=2) < 60).sum())
