"""Films of games, with the attention weights of the moment drawn beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from wsa.learn.evaluation.rollout import Moment
from wsa.store.common import names
from wsa.store.common.errors import StorageError

Picture = NDArray[np.uint8]
Weights = NDArray[np.float32]

SCALE = 2
PER_SECOND = 15.0  # Steps, of four emulator frames each: as played.
PANEL = 240
MARGIN = 12
TALLEST_ROW = 48
FONT = cv2.FONT_HERSHEY_SIMPLEX
TEXT, BAR, TRACK = (235, 235, 235), (90, 170, 255), (60, 60, 60)


class Films:
    """Writes `episode_0.mp4`, `episode_1.mp4`, ... of the first environment into a folder.

    Used in a `with`, which closes the last one whatever ends the games.

    Args:
        folder: Where to.
        models: Keys of the models that are weighed; none for films of the game alone.
        weights: Gives the weights (n, models) of the step at hand.
    """

    def __init__(
        self,
        folder: Path,
        models: Sequence[str] = (),
        weights: Callable[[], Weights | None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._labels = labels(models)
        self._weights = weights
        self._writer: Any = None

    def see(self, moment: Moment) -> None:
        """Film a step.

        Raises:
            StorageError: The film cannot be written.
        """
        if moment.envs[0] != 0:
            return
        picture = moment.frames[0].repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        weights = self._weights() if self._labels else None
        if weights is not None:
            beside = panel(self._labels, weights[0], len(picture))
            picture = np.concatenate([picture, beside], axis=1)
        if self._writer is None:
            self._writer = self._begin(int(moment.episodes[0]), picture)
        self._writer.write(np.ascontiguousarray(picture[..., ::-1]))
        if moment.ended[0]:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def _begin(self, episode: int, picture: Picture) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = str(self._folder / f"episode_{episode}.mp4")
        code = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(path, code, PER_SECOND, (picture.shape[1], picture.shape[0]))
        if not writer.isOpened():
            raise StorageError(
                "unavailable",
                f"{path} cannot be written. Check that you may write there and that there is "
                "room, or leave out --video.",
            )
        return writer


def labels(models: Sequence[str]) -> list[str]:
    """What to call models: by their alias, or by their key where several share it."""
    count = Counter(names.key_alias(key) for key in models)
    return [key if count[names.key_alias(key)] > 1 else names.key_alias(key) for key in models]


def panel(called: Sequence[str], weights: Weights, height: int) -> Picture:
    """A bar for each model, with its name and its weight: (height, PANEL, 3) uint8 RGB.

    Args:
        called: The models' names.
        weights: (models,), each from 0 to 1.
        height: Of the game's picture.
    """
    picture = np.zeros((height, PANEL, 3), np.uint8)
    row = min(TALLEST_ROW, height // len(called))
    size = 0.45 * min(1.0, row / TALLEST_ROW + 0.25)
    right = PANEL - MARGIN
    for i, (name, weight) in enumerate(zip(called, weights.tolist(), strict=True)):
        top = i * row
        number = f"{weight:.2f}"
        room = right - MARGIN - _width(number, size) - 8
        while _width(name, size) > room:
            name = name[:-1]
        under = top + row // 2 - 2
        cv2.putText(picture, name, (MARGIN, under), FONT, size, TEXT, 1, cv2.LINE_AA)
        at = (right - _width(number, size), under)
        cv2.putText(picture, number, at, FONT, size, TEXT, 1, cv2.LINE_AA)
        begin, end = top + row // 2 + 2, top + row - 4
        picture[begin:end, MARGIN:right] = TRACK
        filled = round(min(max(weight, 0.0), 1.0) * (right - MARGIN))
        picture[begin:end, MARGIN : MARGIN + filled] = BAR
    return picture


def _width(text: str, size: float) -> int:
    return int(cv2.getTextSize(text, FONT, size, 1)[0][0])
