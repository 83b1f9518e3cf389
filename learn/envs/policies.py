"""Policies that choose actions during collection and evaluation: random ones, and users' own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsa.store.common import user_code
from wsa.store.common.errors import ConflictError, WsaError


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


class MakesPolicy(Protocol):
    """The callable that `module:callable` names."""

    def __call__(self, actions: Sequence[str], seed: int) -> Policy:
        """Make a policy.

        Args:
            actions: Names of the game's actions; the policy returns indices into them.
            seed: Seed of the collection. The same name and seed must play identically, because
                steps that are already in the store are not written again.
        """
        ...


def load_policy(name: str, actions: Sequence[str], seed: int) -> Policy:
    """Import a user's callable, and make its policy.

    Raises:
        MissingError: If the module or callable cannot be found.
        ConflictError: If it raises an exception, or returns no policy.
    """
    try:
        make: MakesPolicy = user_code.find(name)
        policy = make(actions, seed)
    except WsaError:
        raise
    except user_code.ERRORS as error:
        raise user_code.raised(f"--policy {name}", error) from error
    if not callable(policy):
        raise ConflictError(
            "user-code",
            f"--policy {name}: it returned {type(policy).__name__}, not a policy: a callable that "
            "takes frames, first, and envs, and returns actions.",
        )
    return OwnPolicy(name, policy, len(actions))


class OwnPolicy:
    """A user's policy, with its actions checked before the emulator gets them."""

    def __init__(self, name: str, policy: Policy, actions: int) -> None:
        self._name, self._policy, self._actions = name, policy, actions

    def __call__(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """See `Policy`.

        Raises:
            ConflictError: If it raises an exception, or returns anything but valid actions.
        """
        try:
            actions: NDArray[Any] = np.asarray(self._policy(frames, first, envs))
        except user_code.ERRORS as error:
            raise user_code.raised(f"--policy {self._name}", error) from error
        are_integers = actions.shape == envs.shape and np.issubdtype(actions.dtype, np.integer)
        if not are_integers or actions.min() < 0 or actions.max() >= self._actions:
            raise ConflictError(
                "user-code",
                f"--policy {self._name} returned {actions.dtype} {actions.shape}, not {len(envs)} "
                f"whole numbers from 0 to {self._actions - 1}.",
            )
        return actions.astype(np.int64)
