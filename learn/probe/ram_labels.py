"""State variables of Atari games: the byte of the console's memory that holds each.

The addresses come from the Atari Annotated RAM Interface (Anand et al. 2019,
https://arxiv.org/abs/1906.08226, appendix). Only those are listed that behaved as their names say
when the games of ale-py 0.12.1 were played: players move with the actions, scores with rewards,
lives with the emulator's count, and positions by a few pixels per step. Bytes are left out if they
did not, never varied, or hold a position in the format of the console's chip (coarse and fine steps
in one byte), such as the horizontal positions of Asteroids and Demon Attack.

A byte holds a number even if its object is not on the screen. `ABSENT` says when that is so: the
values at which the game parks the object, found by comparing screens and memory in play of ale-py
0.12.1. An object without a rule counts as always on the screen.
"""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np
from numpy.typing import NDArray

from wsa.store.common.errors import UsageError

VARIABLES: dict[str, dict[str, int]] = {
    "Asteroids": {
        "score": 62,
        **{f"asteroid {i} y": byte for i, byte in enumerate((*range(3, 8), *range(12, 17)), 1)},
    },
    "Bowling": {
        "ball x": 30,
        "ball y": 41,
        "player x": 29,
        "player y": 40,
        "frame": 36,
        "score": 33,
    },
    "Boxing": {
        "player x": 32,
        "player y": 34,
        "enemy x": 33,
        "enemy y": 35,
        "player score": 18,
        "enemy score": 19,
        "clock": 17,
    },
    "Breakout": {
        "ball x": 99,
        "ball y": 101,
        "player x": 72,
        "blocks hit": 77,
        "score": 84,
        "lives": 57,
    },
    "DemonAttack": {
        "enemy 1 y": 69,
        "enemy 2 y": 70,
        "enemy 3 y": 71,
        "missile y": 21,
        "lives": 114,
    },
    "Freeway": {
        "player y": 14,
        "score": 103,
        **{f"car {i} x": byte for i, byte in enumerate(range(108, 118), 1)},
    },
    "Frostbite": {
        "player x": 102,
        "player y": 100,
        "floe 1 x": 34,
        "floe 2 x": 33,
        "floe 3 x": 32,
        "floe 4 x": 31,
        "blocks built": 77,
        "lives": 76,
        **{f"enemy {i} x": byte for i, byte in enumerate(range(84, 88), 1)},
    },
    "MontezumaRevenge": {
        "player x": 42,
        "player y": 43,
        "skull x": 47,
        "lives": 58,
    },
    "MsPacman": {
        "player x": 10,
        "player y": 16,
        "sue x": 6,
        "sue y": 12,
        "inky x": 7,
        "inky y": 13,
        "pinky x": 8,
        "pinky y": 14,
        "blinky x": 9,
        "blinky y": 15,
        "player direction": 56,
        "dots eaten": 119,
        "score": 120,
        "lives": 123,
    },
    "Pitfall": {
        "player x": 97,
        "player y": 105,
        "logs x": 98,
        "scorpion x": 99,
        "seconds": 89,
    },
    "Pong": {
        "ball x": 49,
        "ball y": 54,
        "player y": 51,
        "enemy y": 50,
        "player score": 14,
        "enemy score": 13,
    },
    "Qbert": {
        "player x": 43,
        "player y": 67,
        "column": 35,
        "red column": 69,
        "green column": 105,
    },
    "Riverraid": {
        "player x": 51,
        "missile x": 117,
        "missile y": 50,
        "fuel": 55,
    },
    "Seaquest": {
        "player x": 70,
        "player y": 97,
        "player direction": 86,
        "oxygen": 102,
        "enemy 1 x": 30,
        "enemy 2 x": 31,
        "enemy 3 x": 32,
        "enemy 4 x": 33,
        **{f"diver or missile {i} x": byte for i, byte in enumerate(range(71, 75), 1)},
        "missile x": 103,
        "divers": 62,
        "score, high digits": 57,
        "score, low digits": 58,
        "lives": 59,
    },
    "Skiing": {
        "player x": 25,
        "seconds": 105,
        "hundredths": 106,
        "gates left": 107,
        **{f"object {i} y": byte for i, byte in enumerate(range(87, 94), 1)},
    },
    "SpaceInvaders": {
        "player x": 28,
        "invaders left": 17,
        "invaders x": 26,
        "invaders y": 24,
        "missile y": 9,
        "score": 104,
        "lives": 73,
    },
    "Tennis": {
        "ball x": 16,
        "ball y": 17,
        "player x": 26,
        "player y": 24,
        "enemy x": 27,
        "enemy y": 25,
        "player score": 69,
        "enemy score": 70,
    },
    "VideoPinball": {
        "ball x": 67,
        "ball y": 68,
        "left flipper": 98,
        "right flipper": 102,
        "score 1": 48,
        "score 2": 50,
    },
}


@dataclasses.dataclass(frozen=True)
class Absence:
    """An object is not on the screen while `byte` of the memory holds one of `values`."""

    byte: int
    values: tuple[int, ...]


# By game and object: the position "ball x" belongs to the object "ball".
ABSENT: dict[str, dict[str, Absence]] = {
    # Asteroids 1 and 6 pass 0 while they move; the others are parked at 0 before they appear.
    "Asteroids": {
        f"asteroid {i}": Absence(byte, (224,) if i in (1, 6) else (0, 224))
        for i, byte in enumerate((*range(3, 8), *range(12, 17)), 1)
    },
    "Breakout": {"ball": Absence(101, (0,))},  # Lost, until FIRE serves the next one.
    "DemonAttack": {"missile": Absence(21, (3,))},  # Not fired.
    "Frostbite": {f"enemy {i}": Absence(byte, (0,)) for i, byte in enumerate(range(84, 88), 1)},
    "Pitfall": {"scorpion": Absence(99, (136,))},  # Rooms with a ladder have a wall there.
    "Pong": {
        "ball": Absence(54, (0,)),  # Between two points.
        "enemy": Absence(50, (0,)),  # At the beginning of a game.
    },
    "Qbert": {"player": Absence(43, (0,))},  # Before a game begins.
    "Riverraid": {"missile": Absence(50, (180,))},  # Not fired.
    # Enemies wait beyond the edges, from 160 up; before a wave they are at 0.
    "Seaquest": {
        **{
            f"enemy {i}": Absence(byte, (0, *range(160, 256)))
            for i, byte in enumerate(range(30, 34), 1)
        },
        **{f"diver or missile {i}": Absence(byte, (0,)) for i, byte in enumerate(range(71, 75), 1)},
        "missile": Absence(103, (0,)),
    },
    # Parked at 13 between two shots; below 20 and from 128 up it is outside the screen.
    "SpaceInvaders": {"missile": Absence(9, (*range(20), *range(128, 256)))},
    "Tennis": {"ball": Absence(16, (2,))},  # Between two rallies.
}


def is_position(name: str) -> bool:
    """Whether a variable is a horizontal or vertical position of an object."""
    return name.endswith((" x", " y"))


def object_of(name: str) -> str:
    """Object that a position belongs to."""
    return name[:-2]


def variables(game: str) -> dict[str, int]:
    """Addresses of a game's state variables, by name.

    Raises:
        UsageError: If the game's memory is not annotated.
    """
    if game in VARIABLES:
        return VARIABLES[game]
    near = difflib.get_close_matches(game, VARIABLES, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UsageError(
        f"The memory of {game} is not annotated{hint}; annotated games are "
        f"{', '.join(VARIABLES)}. Use --target reward or action, which every game has.",
        kind="unknown-game",
    )


def read(game: str, memory: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Read each variable, shape (n,), from the memory of some steps, shape (n, 128)."""
    return {name: memory[:, byte] for name, byte in variables(game).items()}


def on_screen(game: str, memory: NDArray[np.uint8]) -> dict[str, NDArray[np.bool_]]:
    """Whether each variable's object is on the screen, shape (n,), from the memory (n, 128).

    A variable that is not a position, such as the score, always counts as on the screen.
    """
    rules = ABSENT.get(game, {})
    shown = {}
    for name in variables(game):
        rule = rules.get(object_of(name)) if is_position(name) else None
        absent = np.isin(memory[:, rule.byte], rule.values) if rule else np.zeros(len(memory), bool)
        shown[name] = ~absent
    return shown
