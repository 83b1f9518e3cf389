"""Estimate how many steps a number of games will take, for the progress of an evaluation."""

from __future__ import annotations

from collections import deque


class Pace:
    """Progress of one policy's games in parallel environments.

    Games that began together end together, so steps divided by finished games is up to `num_envs`
    times too long for the first of them. The mean length of the finished games is not. An
    environment has as many steps behind it in finished games as it had when its last one ended; the
    last `num_envs` ends are taken for these, which is exact if games are equally long.
    """

    def __init__(self, games: int, num_envs: int) -> None:
        self._games = games
        self._ends: deque[int] = deque(maxlen=min(num_envs, games))
        self._now = self._finished = 0

    def seen(self, steps: int, finished: int) -> int:
        """Estimate the total number of steps; 0 until a game has ended.

        Call it after every step of the environments.
        """
        self._now += 1
        self._ends.extend([self._now] * (finished - self._finished))
        self._finished = finished
        if not finished:
            return 0
        if finished == self._games:
            return steps
        return max(steps, round(self._games * sum(self._ends) / finished))
