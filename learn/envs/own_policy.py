"""A user's own policy, from `wsa collect --policy module:callable`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsa.learn.envs.policies import Policy
from wsa.store.common import user_code
from wsa.store.common.errors import ConflictError, WsaError


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
    except Exception as error:
        raise user_code.raised(f"--policy {name}", error) from error
    if not callable(policy):
        raise ConflictError(
            "user-code",
            f"--policy {name}: it returned {type(policy).__name__}, not a policy: a callable that "
            "takes frames, first and envs, and returns actions.",
        )
    return OwnPolicy(name, policy, len(actions))


class OwnPolicy:
    """A user's policy, with its actions checked before the emulator gets them.

    Args:
        name: Name that the user typed.
        policy: The user's policy.
        actions: Number of actions.
    """

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
        except Exception as error:
            raise user_code.raised(f"--policy {self._name}", error) from error
        are_integers = actions.shape == envs.shape and np.issubdtype(actions.dtype, np.integer)
        if not are_integers or actions.min() < 0 or actions.max() >= self._actions:
            raise ConflictError(
                "user-code",
                f"--policy {self._name} returned {actions.dtype} {actions.shape}, not {len(envs)} "
                f"whole numbers from 0 to {self._actions - 1}.",
            )
        return actions.astype(np.int64)
