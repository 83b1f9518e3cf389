"""Games with other looks or rules, changed through the emulator's memory.

Bytes are written before each emulator frame, as in HackAtari (Delfosse et al. 2024, arXiv
2406.03997; MIT, https://github.com/k4ntz/HackAtari), whose modifications inspired these. The effect
of each address was checked by playing the games of ale-py 0.12.1; `tests/learn/test_variants.py`
repeats that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import ale_py

from wsa.learn.envs.console import Write


@dataclasses.dataclass(frozen=True)
class MemoryChange:
    """A change of one game.

    Attributes:
        game: ALE game id.
        rules: Whether the game's rules change. If not, only frames differ: the same actions earn
            the same rewards and end the game at the same step.
        addresses: Addresses of the bytes that are written.
        begin: Makes the `Write` at the start of each episode.
    """

    game: str
    rules: bool
    addresses: frozenset[int]
    begin: Callable[[], Write]


def _constant(game: str, rules: bool, values: Mapping[int, int]) -> MemoryChange:
    """Keep bytes at constant values."""

    def write(emulator: ale_py.ALEInterface) -> None:
        for byte, value in values.items():
            emulator.setRAM(byte, value)

    return MemoryChange(game, rules, frozenset(values), lambda: write)


class _StoppedCars:
    """Stops Freeway's cars where they are when an episode begins: at the right edge."""

    CARS_X = range(108, 118)

    def __init__(self) -> None:
        self._places: list[int] = []

    def __call__(self, emulator: ale_py.ALEInterface) -> None:
        if not self._places:
            self._places = emulator.getRAM()[self.CARS_X].tolist()
        for byte, place in zip(self.CARS_X, self._places, strict=True):
            emulator.setRAM(byte, place)


class _LazyEnemy:
    """Stops Pong's enemy while the ball flies away from it, to the right.

    The enemy still jitters, because the game moves it by up to 4 lines per frame from where it is
    put.
    """

    BALL_X, BALL_Y, ENEMY_Y = 49, 54, 21  # Byte 50, which probes read, is a copy of 21.

    def __init__(self) -> None:
        self._ball = 0
        self._away = False
        self._enemy = 0

    def __call__(self, emulator: ale_py.ALEInterface) -> None:
        memory = emulator.getRAM()
        ball = int(memory[self.BALL_X])
        if ball != self._ball:
            self._ball, self._away = ball, ball > self._ball
        if self._away and memory[self.BALL_Y]:  # It is 0 between points.
            emulator.setRAM(self.ENEMY_Y, self._enemy)
        else:
            self._enemy = int(memory[self.ENEMY_Y])


# Colors of the console's palette: black, light gray, red, blue, green.
_COLORS = (0, 12, 48, 113, 200)
_PLAYER, _ROWS = 62, range(64, 70)  # Breakout: player and ball; rows of blocks.


def _recolored(player: int, blocks: int) -> MemoryChange:
    values = {_PLAYER: _COLORS[player]} | dict.fromkeys(_ROWS, _COLORS[blocks])
    return _constant("Breakout", False, values)


CHANGES: dict[str, MemoryChange] = {
    # The paper's 25: one color for the player and the ball, one for all blocks.
    **{f"breakout-p{p}-b{b}": _recolored(p, b) for p in range(5) for b in range(5)},
    "pong-lazy": MemoryChange("Pong", True, frozenset({_LazyEnemy.ENEMY_Y}), _LazyEnemy),
    "freeway-black": _constant("Freeway", False, dict.fromkeys(range(77, 87), 0)),
    "freeway-stopped": MemoryChange("Freeway", True, frozenset(_StoppedCars.CARS_X), _StoppedCars),
    "seaquest-air": _constant("Seaquest", True, {102: 64}),
    "spaceinvaders-unshielded": _constant("SpaceInvaders", True, dict.fromkeys(range(43, 70), 0)),
}
