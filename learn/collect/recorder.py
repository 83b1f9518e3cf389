"""Cuts the steps of one environment into segments, while it is played."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from wsa.learn.collect.palette import Screen
from wsa.store.format.stacks import MAX_STACK_FRAMES

NO_ACTION = -1


@dataclasses.dataclass
class _Row:
    """One row in the making; fields as in `layout.ROW_FIELDS`."""

    screen: Screen
    lives: int
    episode: int
    is_first: bool
    context: bool = False
    action: int = NO_ACTION
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False


class Cut(NamedTuple):
    """What a segment is made of: its place in the run, its rows, the episodes that ended in it."""

    start: int
    steps: int
    rows: list[_Row]
    episodes: list[tuple[int, float]]


class Recorder:
    """Cuts the steps of one environment into segments.

    Args:
        pieces: Intervals to cut out, as (first step, steps), in order.
        played: Steps of the environment before those that will be shown.
        episodes: Episodes of it before those.

    Attributes:
        steps: Steps in the segment in the making.
        played: Steps of the environment by now.
    """

    def __init__(
        self, pieces: Sequence[tuple[int, int]], played: int = 0, episodes: int = 0
    ) -> None:
        self._pieces = deque(pieces)
        self.played = played
        self._episode = episodes - 1
        self._length = 0
        self._return = 0.0
        self._recent: deque[_Row] = deque(
            maxlen=MAX_STACK_FRAMES
        )  # last rows of the current episode
        self._rows: list[_Row] = []
        self._episodes: list[tuple[int, float]] = []
        self.steps = 0

    @property
    def full(self) -> bool:
        """Whether the segment in the making has all its steps."""
        return bool(self._pieces) and self.steps == self._pieces[0][1]

    def wants(self, at: int) -> bool:
        """Whether the frame after `at` steps will stand in a segment, be it as context."""
        return bool(self._pieces) and at > self._pieces[0][0] - MAX_STACK_FRAMES

    def begin(self, screen: Screen, lives: int) -> None:
        """Take the first frame of an episode."""
        self._episode += 1
        self._length, self._return = 0, 0.0
        self._recent.clear()
        self._recent.append(_Row(screen, lives, self._episode, is_first=True))

    def step(
        self,
        action: int,
        reward: float,
        terminated: bool,
        truncated: bool,
        screen: Screen,
        lives: int,
    ) -> None:
        """Take an action and what followed: reward, end, and the true next frame."""
        now = self._recent[-1]
        following = _Row(screen, lives, self._episode, is_first=False)
        self._length += 1
        self._return += reward
        if self._pieces and self.played >= self._pieces[0][0]:
            if not self.steps:
                past = list(self._recent)[:-1]
                self._rows = [dataclasses.replace(row, context=True) for row in past]
            self._rows.append(
                dataclasses.replace(
                    now, action=action, reward=reward, terminated=terminated, truncated=truncated
                )
            )
            self.steps += 1
            if terminated or truncated:
                self._episodes.append((self._length, self._return))
            if terminated or truncated or self.full:
                self._rows.append(following)
        self.played += 1
        self._recent.append(following)

    def take(self) -> Cut:
        """The finished segment; the next one begins."""
        cut = Cut(*self._pieces.popleft(), self._rows, self._episodes)
        self._rows, self._episodes, self.steps = [], [], 0
        return cut

    def cut(self) -> Cut | None:
        """The steps since the last segment as one, if there are any; the next piece is shortened."""
        if not self.steps:
            return None
        if self._rows[-1].action != NO_ACTION:
            self._rows.append(self._recent[-1])
        start, length = self._pieces.popleft()
        if length > self.steps:
            self._pieces.appendleft((start + self.steps, length - self.steps))
        cut = Cut(start, self.steps, self._rows, self._episodes)
        self._rows, self._episodes, self.steps = [], [], 0
        return cut
