"""Record videos of games, with action, return, and fusion weights drawn beside the screen.

The format is VP9 in MP4, which browsers and notebooks play.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from wsa.learn.evaluation.episodes import Moment
from wsa.store.common import names
from wsa.store.common.errors import StorageError

Picture = NDArray[np.uint8]
Weights = NDArray[np.float32]

SCALE = 2
PER_SECOND = 15.0  # Steps of four emulator frames: original speed.
PANEL = 240
MARGIN = 12
LINE = 20  # Height of a line of text.
TALLEST_ROW = 48
HISTORY = PANEL - 2 * MARGIN  # Number of steps whose weights are drawn, one per column.
FONT = cv2.FONT_HERSHEY_SIMPLEX
TEXT, TRACK = (235, 235, 235), (60, 60, 60)
# Okabe and Ito's colors, for color-blind readers; used in turn.
COLORS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
)


class Films:
    """Writes `episode_0.mp4`, `episode_1.mp4`, ... of the first environment into a folder.

    Use it as a context manager. A video gets its name when its game ends; an unfinished one is
    removed.

    Args:
        models: Keys of the fused models; empty for videos without weights.
        weights: Returns the weights of the current step, (n, models).
        actions: Names of the actions; empty to show their numbers.
    """

    def __init__(
        self,
        folder: Path,
        models: Sequence[str] = (),
        weights: Callable[[], Weights | None] = lambda: None,
        actions: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._labels = names.labels(models)
        self._weights = weights
        self._actions = actions
        self._writer: Any = None
        self._path = self._part = folder
        self._history: list[Weights] = []
        self._returned = 0.0

    def see(self, moment: Moment) -> None:
        """Add one step to the video.

        Raises:
            StorageError: If the video cannot be written.
        """
        if moment.envs[0] != 0:
            return
        weights = self._weights() if self._labels else None
        if weights is not None:
            self._history.append(weights[0])
        action = int(moment.actions[0])
        facts = [
            f"step {int(moment.steps[0])}, return {self._returned:g}",
            f"action {self._actions[action] if self._actions else action}",
        ]
        picture = moment.frames[0].repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        beside = panel(self._labels, self._history, facts, len(picture))
        picture = np.concatenate([picture, beside], axis=1)
        writer = self._writer or self._begin(int(moment.episodes[0]), picture)
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
        self._returned += float(moment.rewards[0])
        if moment.ended[0]:
            self._release()
            self._part.replace(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._release()
            self._part.unlink(missing_ok=True)

    def _begin(self, episode: int, picture: Picture) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / f"episode_{episode}.mp4"
        self._part = self._folder / f".episode_{episode}.part.mp4"  # OpenCV reads the suffix.
        code = cv2.VideoWriter.fourcc(*"vp09")
        size = picture.shape[1], picture.shape[0]
        self._writer = cv2.VideoWriter(str(self._part), code, PER_SECOND, size)
        if self._path.is_dir() or not self._writer.isOpened():
            raise StorageError(
                "unavailable",
                f"{self._path} cannot be written. Check that you may write there and that there is "
                "space, or leave out --video.",
            )
        return self._writer

    def _release(self) -> None:
        self._writer.release()
        self._writer = None
        self._history, self._returned = [], 0.0


def panel(
    called: Sequence[str], history: Sequence[Weights], facts: Sequence[str], height: int
) -> Picture:
    """Draw the panel beside the game, (height, PANEL, 3) uint8 RGB.

    It shows lines of text; a bar for each model, with its display name and weight; and, if there is
    room, each model's weight over the last `HISTORY` steps. `history` has the weights of each step
    so far, (models,), from 0 to 1.
    """
    picture = np.zeros((height, PANEL, 3), np.uint8)
    for i, fact in enumerate(facts):
        _write(picture, fact, (MARGIN, LINE * (i + 1)), 0.45, PANEL - 2 * MARGIN)
    top = LINE * len(facts) + MARGIN
    if not called or not len(history):
        return picture
    row = min(TALLEST_ROW, (height - top) // len(called))
    for i, (name, weight) in enumerate(zip(called, history[-1].tolist(), strict=True)):
        _bar(picture[top + i * row : top + (i + 1) * row], name, weight, COLORS[i % len(COLORS)])
    chart = picture[top + row * len(called) + MARGIN : height - MARGIN, MARGIN : PANEL - MARGIN]
    if len(chart) > 2 * LINE:
        _lines(chart, np.stack(history[-HISTORY:]))
    return picture


def _bar(row: Picture, name: str, weight: float, color: tuple[int, int, int]) -> None:
    """Draw a model's name and weight above a bar into `row`, (height, PANEL, 3)."""
    size = 0.45 * min(1.0, len(row) / TALLEST_ROW + 0.25)
    right, under = PANEL - MARGIN, len(row) // 2 - 2
    number = f"{weight:.2f}"
    wide = _width(number, size)
    _write(row, name, (MARGIN, under), size, right - MARGIN - wide - 8)
    _write(row, number, (right - wide, under), size, wide)
    row[len(row) // 2 + 2 : -4, MARGIN:right] = TRACK
    filled = round(min(max(weight, 0.0), 1.0) * (right - MARGIN))
    row[len(row) // 2 + 2 : -4, MARGIN : MARGIN + filled] = color


def _lines(chart: Picture, weights: Weights) -> None:
    """Draw weights (steps, models) as lines into `chart`, the newest step at the right."""
    chart[:] = TRACK
    bottom = len(chart) - 1
    x = np.arange(len(weights)) + chart.shape[1] - len(weights)
    drawn = chart.copy()  # OpenCV needs a contiguous array.
    for i, values in enumerate(np.clip(weights.T, 0, 1)):
        points = np.stack([x, np.rint(bottom * (1 - values))], axis=1).astype(np.int32)
        cv2.polylines(drawn, [points], False, COLORS[i % len(COLORS)], 1, cv2.LINE_AA)
    chart[:] = drawn


def _write(picture: Picture, text: str, at: tuple[int, int], size: float, room: int) -> None:
    """Write text, truncated to a width of `room` pixels."""
    while _width(text, size) > room:
        text = text[:-1]
    drawn = np.ascontiguousarray(picture)
    cv2.putText(drawn, text, at, FONT, size, TEXT, 1, cv2.LINE_AA)
    picture[:] = drawn


def _width(text: str, size: float) -> int:
    return int(cv2.getTextSize(text, FONT, size, 1)[0][0])
