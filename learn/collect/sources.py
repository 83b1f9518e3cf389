"""What others played, read episode by episode: Minari datasets, and plain arrays.

A source says what it knows of how the game was played and hands out episodes of T steps and T + 1
observations. Only whole RGB screens will do: frozen vision models need colours and shapes that
84x84 grey pictures have lost. What does not fit is refused with what was found.
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
class Facts:
    """How a game was played, as far as it is known; fields as in `wsa.store.format.records.Protocol`."""

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
        screens: From (first, last + 1) to these of the T + 1 observations, (n, H, W, 3) uint8.
        actions: (T,) int16.
        rewards: (T,) float32.
        terminated, truncated: (T,) bool; one of them at the last step and nowhere else.
        lives: (T + 1,) uint8, zeros if unknown.
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
    """Something to import from.

    Attributes:
        game: ALE game id, or "" where the data does not say it.
        policy: Who played, or "".
        facts: How it was played, as far as the data says.
        actions: How many actions there are, or 0 where the data does not say.
        steps: Steps in all.
        lossy: Whether screens went through a JPEG.
    """

    game: str
    policy: str
    facts: Facts
    actions: int
    steps: int
    lossy: bool

    def check_screens(self, game: str) -> None:
        """Refuse observations that are no whole RGB screens of `game`.

        Raises:
            UsageError: They are not.
        """
        ...

    def episodes(self) -> Iterator[Episode]:
        """Every episode, in order, the same each time.

        Raises:
            UsageError: One is not what an episode must be.
        """
        ...


def refuse_screens(what: str, found: str, game: str) -> UsageError:
    """What is said of observations that will not do."""
    height, width = games.screen(game)
    return UsageError(
        "bad-option",
        f"{what}: observations are {found}. wsa needs whole RGB screens of {game}, "
        f"({height}, {width}, 3) uint8: not grayscale, resized, or stacked ones. Record the game again "
        "without those wrappers.",
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
    """Check an episode's columns and bring them into the types that are stored.

    An episode without an end was cut where the data ends: its last step counts as truncated.

    Raises:
        UsageError: They are not what an episode must be; the message names episode and step.
    """
    columns = {"rewards": rewards, "terminations": terminated, "truncations": truncated}
    for name, column in columns.items():
        if column.shape != actions.shape:
            raise UsageError(
                "bad-option", f"{where} has {len(actions)} actions and {len(column)} {name}."
            )
    if not len(actions) or actions.ndim != 1:
        raise UsageError("bad-option", f"{where} has no steps. Leave it out.")
    if actions.dtype.kind not in "iu":
        raise UsageError(
            "bad-option", f"{where}: actions are {actions.dtype}; they must be whole numbers."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        earned = rewards.astype(np.float32)
    if not np.isfinite(earned).all():
        at = int(np.argmin(np.isfinite(earned)))
        raise UsageError("bad-option", f"{where}: the reward of step {at} is {rewards[at]}.")
    died, cut = _flags(where, "terminations", terminated), _flags(where, "truncations", truncated)
    if (died | cut)[:-1].any():
        at = int(np.argmax(died | cut))
        raise UsageError(
            "bad-option",
            f"{where} goes on after its end at step {at} of {len(actions)}. Every episode must be "
            "followed by its last observation, and then by the next episode's first.",
        )
    cut[-1] |= not died[-1]
    left = np.zeros(len(actions) + 1) if lives is None else lives
    if left.shape != (len(actions) + 1,) or left.min() < 0 or left.max() > 255:
        raise UsageError(
            "bad-option", f"{where}: lives must be {len(actions) + 1} numbers from 0 to 255."
        )
    small = np.clip(actions, -2, 32767).astype(np.int16)
    return Episode(screens, small, earned, died, cut, left.astype(np.uint8))


def _flags(where: str, name: str, column: NDArray[Any]) -> NDArray[np.bool_]:
    if not ((column == 0) | (column == 1)).all():
        raise UsageError("bad-option", f"{where}: {name} must be true or false.")
    return column.astype(np.bool_)
