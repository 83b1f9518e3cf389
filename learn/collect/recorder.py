"""Cut the steps of one environment into segments while it is played."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, SupportsFloat, SupportsInt

import numpy as np

from wsa.learn.collect.palette import Screen
from wsa.store.format.stacks import MAX_STACK_FRAMES

NO_ACTION = -1


@dataclasses.dataclass
class _Row:
    """One row of a segment; fields as in `layout.ROW_FIELDS`."""

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
    """A segment's interval, its rows, and (length, return) of each episode that ended in it."""

    start: int
    steps: int
    rows: list[_Row]
    episodes: list[tuple[int, float]]


class Recorder:
    """Cuts the steps of one environment into segments.

    Args:
        pieces: Intervals to record, as (first step, number of steps), in order.
        played: Number of steps that the environment has played before.
        episodes: Number of episodes that it has played before.

    Attributes:
        steps: Number of steps in the current segment.
        played: Number of steps that the environment has played.
    """

    def __init__(
        self, pieces: Sequence[tuple[int, int]], played: int = 0, episodes: int = 0
    ) -> None:
        self._pieces = deque(pieces)
        self.played = played
        self._episode = episodes - 1
        self._length = 0
        self._return = 0.0
        # The last rows of the current episode.
        self._recent: deque[_Row] = deque(maxlen=MAX_STACK_FRAMES)
        self._rows: list[_Row] = []
        self._episodes: list[tuple[int, float]] = []
        self.steps = 0

    @property
    def full(self) -> bool:
        """Whether the current segment has all its steps."""
        return bool(self._pieces) and self.steps == self._pieces[0][1]

    def wants(self, at: int) -> bool:
        """Return whether the frame after `at` steps will be in a segment, maybe as context."""
        return bool(self._pieces) and at > self._pieces[0][0] - MAX_STACK_FRAMES

    def begin(self, screen: Screen, lives: SupportsInt) -> None:
        """Begin an episode with its first frame."""
        self._episode += 1
        self._length, self._return = 0, 0.0
        self._recent.clear()
        self._recent.append(_Row(screen, int(lives), self._episode, is_first=True))

    def step(
        self,
        action: SupportsInt,
        reward: SupportsFloat,
        terminated: bool | np.bool_,
        truncated: bool | np.bool_,
        screen: Screen,
        lives: SupportsInt,
    ) -> None:
        """Record an action, its reward, whether the episode ended, and the true next frame."""
        now = self._recent[-1]
        following = _Row(screen, int(lives), self._episode, is_first=False)
        self._length += 1
        self._return += float(reward)
        if self._pieces and self.played >= self._pieces[0][0]:
            if not self.steps:
                past = list(self._recent)[:-1]
                self._rows = [dataclasses.replace(row, context=True) for row in past]
            self._rows.append(
                dataclasses.replace(
                    now,
                    action=int(action),
                    reward=float(reward),
                    terminated=bool(terminated),
                    truncated=bool(truncated),
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
        """Return the finished segment, and begin the next one."""
        cut = Cut(*self._pieces.popleft(), self._rows, self._episodes)
        self._rows, self._episodes, self.steps = [], [], 0
        return cut

    def cut(self) -> Cut | None:
        """End the current segment early and return it, or None if it has no steps."""
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
