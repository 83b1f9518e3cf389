"""Games otherwise than a run learned them: what `wsa eval --variant SPEC` plays.

A SPEC is one or more parts, joined with `+`:

    mode=12 difficulty=1        the cartridge's switches
    sticky=0.25                 probability that the emulator repeats the action before
    ram:pong-lazy               a change through the emulator's memory (`memory_changes.py`)
    look:invert look:grey look:hue=120 look:palette=7 look:dim=0.5
                                colours of the whole frame (`looks.py`)
    noise=0.1 occlude=16 flicker=0.5
                                distortions of the whole frame, drawn at random

Everything else is as in plain play: the same seeds begin with the same no-ops, so a game and its
variant can be compared pair by pair. Looks and distortions are applied in the order given, before
anything takes a frame's digest: an embedding that is found in a store is that of the frame shown.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
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
    """The number that a part takes."""

    least: float
    most: float
    whole: bool

    def read(self, part: str, text: str) -> Any:
        """The number that `text` says.

        Raises:
            UsageError: It says none, or one out of range.
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
                "bad-option",
                f"--variant {part}: give {what} from {self.least:g}{most}, not {text!r}.",
            )
        return number


_SHARE, _SIZE, _SWITCH = _Number(0, 1, False), _Number(1, 1000, True), _Number(0, 255, True)
_SWITCHES = {"mode": _SWITCH, "difficulty": _SWITCH, "sticky": _Number(0, 0.999, False)}
_COLOURS: dict[str, Callable[[], Look]] = {"look:invert": looks.invert, "look:grey": looks.grey}
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
    """What is different.

    Attributes:
        spec: As it was asked for.
        mode, difficulty: The cartridge's switches.
        sticky: Probability that an action is repeated.
        memory: Changes through the emulator's memory.
        looks: Changes of frames, in their order.
    """

    spec: str
    mode: int | None = None
    difficulty: int | None = None
    sticky: float | None = None
    memory: tuple[MemoryChange, ...] = ()
    looks: tuple[Look, ...] = ()

    @property
    def keeps_rules(self) -> bool:
        """Whether frames alone differ: the same actions earn the same rewards and end the same games."""
        switched = (self.mode, self.difficulty, self.sticky) != (None, None, None)
        return not switched and not any(change.rules for change in self.memory)

    def make_env(self, game: str, stated: Protocol, num_envs: int) -> Consoles:
        """What `atari.make_env` would give, with the changes."""
        if self.sticky is not None:
            stated = msgspec.structs.replace(stated, sticky=self.sticky)
        begin = [change.begin for change in self.memory]
        how: dict[str, Any] = {"mode": self.mode, "difficulty": self.difficulty, "writes": begin}
        consoles = [Console(game, stated, **how) for _ in range(num_envs)]
        return Consoles(consoles, stated.max_steps, self._show)

    def _show(self, frame: NDArray[np.uint8], seed: int, shown: int) -> NDArray[np.uint8]:
        """A frame as it looks; what is random follows from the environment's seed and the step."""
        if self.looks:
            generator = np.random.default_rng([seed, shown])
            for look in self.looks:
                frame = look(frame, generator)
        return frame


def parse_variant(spec: str, game: str) -> Variant:
    """What a SPEC asks of a game.

    Raises:
        UsageError: A part is unknown, given twice, or not for this game.
    """
    numbers: dict[str, Any] = {}
    memory: list[MemoryChange] = []
    shown: list[Look] = []
    parts = [part.strip() for part in spec.split("+")]
    for part in parts:
        name, equals, text = part.partition("=")
        if name in _SWITCHES and equals:
            numbers[name] = _SWITCHES[name].read(part, text)
        elif name in _GRADED and equals:
            number, make = _GRADED[name]
            shown.append(make(number.read(part, text)))
        elif part in _COLOURS:
            shown.append(_COLOURS[part]())
        elif part.startswith("ram:"):
            memory.append(_memory_change(part, game))
        else:
            _unknown(part)
    names = Counter(part.partition("=")[0] for part in parts)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UsageError("bad-option", f"--variant {spec}: give {', '.join(twice)} once.")
    for one, other in itertools.combinations(memory, 2):
        if one.addresses & other.addresses:
            raise UsageError(
                "bad-option", f"--variant {spec}: two changes write the same memory. Choose one."
            )
    _check_switches(numbers, game)
    return Variant("+".join(parts), **numbers, memory=tuple(memory), looks=tuple(shown))


def _memory_change(part: str, game: str) -> MemoryChange:
    change = CHANGES.get(part.removeprefix("ram:"))
    if change is None:
        _unknown(part)
    if change.game != game:
        own = [f"ram:{name}" for name, other in CHANGES.items() if other.game == game]
        has = f"{game} has {_listed(own)}" if own else f"{game} has none"
        raise UsageError(
            "bad-option",
            f"--variant {part} changes {change.game}, and the run plays {game}; {has}.",
        )
    return change


def _check_switches(numbers: dict[str, Any], game: str) -> None:
    modes, difficulties = games.switches(game)
    for name, has in (("mode", modes), ("difficulty", difficulties)):
        if name in numbers and numbers[name] not in has:
            raise UsageError(
                "bad-option",
                f"--variant {name}={numbers[name]}: {game} has {name} {_listed(map(str, has))}.",
            )


def _unknown(part: str) -> NoReturn:
    name, equals, _ = part.partition("=")
    if name in _COLOURS and equals:
        raise UsageError("bad-option", f"--variant {part}: {name} takes no number.")
    if part in _SWITCHES or part in _GRADED:
        raise UsageError("bad-option", f"--variant {part} takes a number: {part}=NUMBER.")
    known = [*_SWITCHES, *_GRADED, *_COLOURS, *(f"ram:{change}" for change in CHANGES)]
    # Also by the name alone: invert is look:invert.
    alone = {full.rpartition(":")[2]: full for full in reversed(known)}
    close = difflib.get_close_matches(name.lower(), {*known, *alone}, 3, 0.6)
    near = list(dict.fromkeys(alone.get(one, one) for one in close))
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {_listed(known)}."
    raise UsageError("bad-option", f"--variant {part!r} is unknown. {hint}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
