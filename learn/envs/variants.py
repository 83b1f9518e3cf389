"""Variants of the games that a run was trained on, for `wsa eval --variant SPEC`.

A SPEC is one or more parts, joined with `+`:

    mode=12 difficulty=1        the cartridge's switches
    sticky=0.25                 probability that the emulator repeats the previous action
    ram:pong-lazy               a change through the emulator's memory (`memory_changes.py`)
    look:invert look:gray look:hue=120 look:palette=7 look:dim=0.5
                                colors of the whole frame (`looks.py`)
    noise=0.1 occlude=16 flicker=0.5
                                random distortions of the whole frame

Everything else is as in the unchanged game: the same seed begins with the same no-ops, so a game
and its variant can be compared pairwise. Looks and distortions are applied in the given order,
before the frame's digest is computed, so cached embeddings are those of the frame shown.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from wsa.learn.envs import atari as games
from wsa.learn.envs import looks
from wsa.learn.envs.console import Console, Consoles
from wsa.learn.envs.looks import Look
from wsa.learn.envs.memory_changes import CHANGES, MemoryChange
from wsa.store.common.errors import UsageError
from wsa.store.format.records import Protocol


@dataclasses.dataclass(frozen=True)
class _Number:
    """Range and type of the number that a part takes."""

    least: float
    most: float
    whole: bool

    def read(self, part: str, text: str) -> Any:
        """Parse `text`.

        Raises:
            UsageError: If it is not a number, or is out of range.
        """
        kind = int if self.whole else float
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not self.least <= number <= self.most:
            what = "a whole number" if self.whole else "a number"
            most = "" if self.most == math.inf else f" to {self.most:g}"
            raise UsageError(
                f"--variant {part}: give {what} from {self.least:g}{most}, not {text!r}."
            )
        return number


_SHARE, _SIZE, _SWITCH = _Number(0, 1, False), _Number(1, 1000, True), _Number(0, 255, True)
_SWITCHES = {"mode": _SWITCH, "difficulty": _SWITCH, "sticky": _Number(0, 0.999, False)}
_COLORS: dict[str, Callable[[], Look]] = {"look:invert": looks.invert, "look:gray": looks.gray}
_GRADED: dict[str, tuple[_Number, Callable[[Any], Look]]] = {
    "look:hue": (_Number(-360, 360, False), looks.hue),
    "look:palette": (_Number(0, math.inf, True), looks.palette),
    "look:dim": (_SHARE, looks.dim),
    "noise": (_SHARE, looks.noise),
    "occlude": (_SIZE, looks.occlude),
    "flicker": (_SHARE, looks.flicker),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Changes of a game.

    Attributes:
        spec: The SPEC that the user gave.
        mode, difficulty: The cartridge's switches; None for the defaults.
        sticky: Probability that an action is repeated; None for the protocol's.
        memory: Changes through the emulator's memory.
        looks: Changes of frames, in the order to apply them.
    """

    spec: str
    mode: int | None = None
    difficulty: int | None = None
    sticky: float | None = None
    memory: tuple[MemoryChange, ...] = ()
    looks: tuple[Look, ...] = ()

    @property
    def keeps_rules(self) -> bool:
        """Whether only frames differ, so the same actions earn the same rewards and game ends."""
        switched = (self.mode, self.difficulty, self.sticky) != (None, None, None)
        return not switched and not any(change.rules for change in self.memory)

    def make_env(self, game: str, stated: Protocol, num_envs: int) -> Consoles:
        """Make an environment like that of `atari.make_env`, with the changes."""
        if self.sticky is not None:
            stated = msgspec.structs.replace(stated, sticky=self.sticky)
        begin = [change.begin for change in self.memory]
        kwargs: dict[str, Any] = {"mode": self.mode, "difficulty": self.difficulty, "writes": begin}
        consoles = [Console(game, stated, **kwargs) for _ in range(num_envs)]
        return Consoles(consoles, stated.max_steps, self._show)

    def _show(self, frame: NDArray[np.uint8], seed: int, shown: int) -> NDArray[np.uint8]:
        """Apply the looks to a frame, with randomness from the environment's seed and step."""
        if self.looks:
            generator = np.random.default_rng([seed, shown])
            for look in self.looks:
                frame = look(frame, generator)
        return frame


def parse_variant(spec: str, game: str) -> Variant:
    """Parse a SPEC for a game.

    Raises:
        UsageError: If a part is unknown, given twice, or not for this game.
    """
    numbers: dict[str, Any] = {}
    memory: list[MemoryChange] = []
    frame_looks: list[Look] = []
    parts = [part.strip() for part in spec.split("+")]
    for part in parts:
        name, equals, text = part.partition("=")
        if name in _SWITCHES and equals:
            numbers[name] = _SWITCHES[name].read(part, text)
        elif name in _GRADED and equals:
            number, make = _GRADED[name]
            frame_looks.append(make(number.read(part, text)))
        elif part in _COLORS:
            frame_looks.append(_COLORS[part]())
        elif part.startswith("ram:"):
            memory.append(_memory_change(part, game))
        else:
            _unknown(part)
    names = Counter(part.partition("=")[0] for part in parts)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UsageError(f"--variant {spec}: give {', '.join(twice)} once.")
    for one, other in itertools.combinations(memory, 2):
        if one.addresses & other.addresses:
            raise UsageError(f"--variant {spec}: two changes write the same memory. Choose one.")
    _check_switches(numbers, game)
    return Variant("+".join(parts), **numbers, memory=tuple(memory), looks=tuple(frame_looks))


def _memory_change(part: str, game: str) -> MemoryChange:
    change = CHANGES.get(part.removeprefix("ram:"))
    if change is None:
        _unknown(part)
    if change.game != game:
        own = [f"ram:{name}" for name, other in CHANGES.items() if other.game == game]
        has = f"{game} has {', '.join(own)}" if own else f"{game} has none"
        raise UsageError(
            f"--variant {part} changes {change.game}, and the run plays {game}; {has}."
        )
    return change


def _check_switches(numbers: dict[str, Any], game: str) -> None:
    if numbers.keys() <= {"sticky"}:
        return  # Asking the emulator starts it.
    modes, difficulties = games.switches(game)
    for name, has in (("mode", modes), ("difficulty", difficulties)):
        if name in numbers and numbers[name] not in has:
            raise UsageError(
                f"--variant {name}={numbers[name]}: {game} has {name} {', '.join(map(str, has))}."
            )


def _unknown(part: str) -> NoReturn:
    name, equals, _ = part.partition("=")
    if name in _COLORS and equals:
        raise UsageError(f"--variant {part}: {name} takes no number.")
    if part in _SWITCHES or part in _GRADED:
        raise UsageError(f"--variant {part} takes a number: {part}=NUMBER.")
    known = [*_SWITCHES, *_GRADED, *_COLORS, *(f"ram:{change}" for change in CHANGES)]
    # Also match the name without its prefix, such as invert for look:invert.
    alone = {full.rpartition(":")[2]: full for full in reversed(known)}
    close = difflib.get_close_matches(name.lower(), {*known, *alone}, 3, 0.6)
    near = list(dict.fromkeys(alone.get(one, one) for one in close))
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(known)}."
    raise UsageError(f"--variant {part!r} is unknown. {hint}")
