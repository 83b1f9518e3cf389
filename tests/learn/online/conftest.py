"""A small game with the manners of ale-py's vector environment, and an encoder that counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from wsa.learn.networks.nature import Ready

STATES = 5


class Walk:
    """A walk of five states, a colour each. 1, 2 or 3 begins, by the seed.

    Actions go left, go right, stay. 0 ends it with nothing, 4 with a reward of 3; after `limit`
    steps it is truncated; staying costs a life, of three, and nothing else.
    """

    def __init__(self, num_envs: int, limit: int = 8) -> None:
        self.num_envs, self.limit = num_envs, limit
        self.single_action_space = gymnasium.spaces.Discrete(3)
        self.generators = [np.random.default_rng(0) for _ in range(num_envs)]
        self.state = np.zeros(num_envs, np.int64)
        self.played = np.zeros(num_envs, np.int64)
        self.lives = np.zeros(num_envs, np.int32)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        which = np.flatnonzero(mask)
        if isinstance(seed, int):
            seed = seed + np.arange(len(which))
        for at, i in enumerate(which):
            if seed is not None:
                self.generators[i] = np.random.default_rng(int(seed[at]))
            self._begin(int(i))
        return self._see(), {"lives": self.lives.copy()}

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.state += np.array([-1, 1, 0])[actions]
        self.lives -= actions == 2
        self.played += 1
        terminated = (self.state == 0) | (self.state == STATES - 1)
        truncated = ~terminated & (self.played >= self.limit)
        rewards = 3 * (self.state == STATES - 1).astype(np.int32)
        info: dict[str, Any] = {}
        if (terminated | truncated).any():
            info["final_obs"] = self._see()
        for i in np.flatnonzero(terminated | truncated):
            self._begin(int(i))
        return self._see(), rewards, terminated, truncated, {**info, "lives": self.lives.copy()}

    def close(self) -> None:
        pass

    def _begin(self, i: int) -> None:
        self.state[i] = self.generators[i].integers(1, STATES - 1)
        self.played[i], self.lives[i] = 0, 3

    def _see(self) -> NDArray[np.uint8]:
        return picture(self.state)[:, None]


def picture(states: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(n, 4, 5, 3) screens of states."""
    frames = np.zeros((len(states), 4, 5, 3), np.uint8)
    frames[..., 0] = 40 * states[:, None, None]
    return frames


class Looking:
    """A model of the walk: a screen as a one-hot state, or the states of a window, oldest first."""

    dtype, found = np.dtype(np.float16), 0

    def __init__(self, window: int, begin: int) -> None:
        self.window, self.passes = window, 0
        self.width = STATES if window == 1 else window
        self.places = (slice(begin, begin + self.width),)

    def begin(self, digests: Any, inputs: Any) -> Ready:
        self.passes += len(digests)
        return Ready(self.of(inputs(list(range(len(digests))))))

    def of(self, frames: NDArray[np.uint8]) -> NDArray[Any]:
        states = frames[..., 0, 0, 0] // 40
        return np.eye(STATES, dtype=np.float16)[states] if self.window == 1 else states


class Counting:
    """Models of the walk's screens, and how often they were run; by default one, of single frames."""

    dtype = np.dtype(np.float16)

    def __init__(self, windows: tuple[int, ...] = (1,)) -> None:
        self.lookups: dict[int, Looking] = {}
        self.width = 0
        for window in windows:
            self.lookups[window] = Looking(window, self.width)
            self.width += self.lookups[window].width

    @property
    def passes(self) -> int:
        return sum(model.passes for model in self.lookups.values())

    def __call__(self, frames: NDArray[np.uint8], *which: Any) -> NDArray[Any]:
        return self.lookups[1].of(frames)


@pytest.fixture(scope="session")
def walk() -> SimpleNamespace:
    """`Walk`, `Counting` and `picture`."""
    return SimpleNamespace(Walk=Walk, Counting=Counting, picture=picture, states=STATES)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics without what a clock gave."""
    import json

    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "charts/SPS", "cache/live_encode_ms")
    return [{k: v for k, v in line.items() if k not in clock} for line in found]


@pytest.fixture(scope="session")
def read_metrics() -> Any:
    """`metrics_of`."""
    return metrics_of
