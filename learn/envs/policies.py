"""Who chooses actions, while runs are judged and games collected."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Policy(Protocol):
    """Chooses actions for some of the environments."""

    def __call__(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Choose actions.

        Args:
            frames: (n, H, W, 3) uint8 RGB, the newest screens.
            first: (n,) whether each begins an episode.
            envs: (n,) numbers of their environments.

        Returns:
            (n,) actions.
        """
        ...


class RandomPolicy:
    """Uniform random actions: what the returns of others are compared with."""

    def __init__(self, actions: int, seed: int) -> None:
        self._actions = actions
        self._generator = np.random.default_rng(seed)

    def __call__(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Draw (n,) actions."""
        return self._generator.integers(self._actions, size=len(envs))


class EachRandom:
    """Uniform random actions, for each environment from a generator of its own."""

    def __init__(self, actions: int, seed: int) -> None:
        self._actions = actions
        self._seed = seed
        self._generators: dict[int, np.random.Generator] = {}

    def __call__(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Draw (n,) actions."""
        for env in set(map(int, envs)) - self._generators.keys():
            self._generators[env] = np.random.default_rng([self._seed, env])
        return np.array([self._generators[int(env)].integers(self._actions) for env in envs])
