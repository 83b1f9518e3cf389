"""Interface of import sources: Minari datasets and plain arrays, read episode by episode.

A source states what it knows about how the game was played, and yields episodes of T steps and
T + 1 observations. Observations must be whole RGB screens: frozen vision models need colors and
shapes that 84x84 gray images have lost. Other data is refused, with a message that says what was
found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsa.learn.envs import atari as games
from wsa.store.common.errors import UsageError


@dataclasses.dataclass(frozen=True)
class PartialProtocol:
    """Known facts about how a game was played; fields as in `wsa.store.format.records.Protocol`."""

    frame_skip: int | None = None
    sticky: float | None = None
    full_action_space: bool | None = None
    noop_max: int | None = None
    fire_reset: bool | None = None
    max_pool: bool | None = None
    max_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    Attributes:
        screens: Returns observations start to stop - 1 of the T + 1, (n, H, W, 3) uint8, given
            (start, stop).
        actions: (T,) int16.
        rewards: (T,) float32.
        terminated, truncated: (T,) bool; exactly one of them is true at the last step, and none
            before.
        lives: (T + 1,) uint8; zeros if unknown.
    """

    screens: Callable[[int, int], NDArray[np.uint8]]
    actions: NDArray[np.int16]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    lives: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.actions)


class Source(Protocol):
    """A dataset to import.

    Attributes:
        game: ALE game id; "" if the data does not state it.
        policy: Name of the policy that played; "" if unknown.
        facts: How the game was played, as far as the data states it.
        actions: Number of actions; 0 if the data does not state it.
        steps: Total number of steps.
        lossy: Whether the screens were compressed as JPEG.
    """

    game: str
    policy: str
    facts: PartialProtocol
    actions: int
    steps: int
    lossy: bool

    def check_screens(self, game: str) -> None:
        """Refuse observations that are not whole RGB screens of `game`.

        Raises:
            UsageError: If they are not.
        """
        ...

    def episodes(self) -> Iterator[Episode]:
        """Yield every episode, in the same order each time.

        Raises:
            UsageError: If an episode is invalid.
        """
        ...


def refuse_screens(what: str, found: str, game: str) -> UsageError:
    """Return the error for observations that are not whole RGB screens."""
    height, width = games.screen(game)
    return UsageError(
        f"{what}: observations are {found}. wsa needs whole RGB screens of {game}, "
        f"({height}, {width}, 3) uint8: not grayscale, resized, or stacked ones. Record the game again "
        "without those wrappers."
    )


def make_episode(
    where: str,
    screens: Callable[[int, int], NDArray[np.uint8]],
    actions: NDArray[Any],
    rewards: NDArray[Any],
    terminated: NDArray[Any],
    truncated: NDArray[Any],
    lives: NDArray[Any] | None,
) -> Episode:
    """Check an episode's columns, and convert them to the stored types.

    If no step ends the episode, the data ended first, so its last step counts as truncated.

    Raises:
        UsageError: If the columns are invalid; the message names the episode, and often the step.
    """
    columns = {"rewards": rewards, "terminations": terminated, "truncations": truncated}
    for name, column in columns.items():
        if column.shape != actions.shape:
            raise UsageError(f"{where} has {len(actions)} actions and {len(column)} {name}.")
    if not len(actions) or actions.ndim != 1:
        raise UsageError(f"{where} has no steps. Leave it out.")
    if actions.dtype.kind not in "iu":
        raise UsageError(f"{where}: actions are {actions.dtype}; they must be whole numbers.")
    with np.errstate(over="ignore", invalid="ignore"):
        earned = rewards.astype(np.float32)
    if not np.isfinite(earned).all():
        at = int(np.argmin(np.isfinite(earned)))
        raise UsageError(f"{where}: the reward of step {at} is {rewards[at]}.")
    ended, cut = _flags(where, "terminations", terminated), _flags(where, "truncations", truncated)
    if (ended | cut)[:-1].any():
        at = int(np.argmax(ended | cut))
        raise UsageError(
            f"{where} continues after its end at step {at} of {len(actions)}. Every episode must "
            "be followed by its last observation, and then by the next episode's first."
        )
    cut[-1] |= not ended[-1]
    lives_left = np.zeros(len(actions) + 1) if lives is None else lives
    count = len(actions) + 1
    if lives_left.shape != (count,) or not np.isin(lives_left, np.arange(256)).all():
        raise UsageError(f"{where}: lives must be {count} whole numbers from 0 to 255.")
    clipped = np.clip(actions, -2, 32767).astype(np.int16)
    return Episode(screens, clipped, earned, ended, cut, lives_left.astype(np.uint8))


def _flags(where: str, name: str, column: NDArray[Any]) -> NDArray[np.bool_]:
    if not ((column == 0) | (column == 1)).all():
        raise UsageError(f"{where}: {name} must be true or false.")
    return column.astype(np.bool_)
