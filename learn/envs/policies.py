"""Policies that choose actions during collection and evaluation."""

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
            frames: Newest screens, (n, H, W, 3) uint8 RGB.
            first: Whether each frame begins an episode, (n,).
            envs: Numbers of the frames' environments, (n,).

        Returns:
            Actions, (n,).
        """
        ...


class RandomPolicy:
    """Uniform random actions, the baseline for other policies' returns."""

    def __init__(self, actions: int, seed: int) -> None:
        self._actions = actions
        self._generator = np.random.default_rng(seed)

    def __call__(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Draw (n,) actions."""
        return self._generator.integers(self._actions, size=len(envs))


class EachRandom:
    """Uniform random actions, with one generator per environment."""

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
