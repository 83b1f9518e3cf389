"""Variants of a game in each suite."""

from __future__ import annotations

from wsa.learn.envs import atari
from wsa.learn.envs.variants import Variant, parse_variant
from wsa.store.format.records import Protocol

# What the authors intended to play. Their script names 25 recolorings that later versions of
# HackAtari silently ignore, and passes the lazy enemy's name so that it is read letter by letter.
COLORS = ("black", "gray", "red", "blue", "green")
_AUTHORS = {
    "Breakout": [f"ram:breakout-p{p}-b{b}" for p in range(5) for b in range(5)],
    "Pong": ["ram:pong-lazy"],
}
_LOOK = ("look:invert", "look:gray", "look:hue=120", "look:hue=240", "look:palette=1", "look:dim=0.5")  # fmt: skip
_NOISE = ("noise=0.05", "noise=0.2", "occlude=16", "occlude=48", "flicker=0.25", "flicker=0.5")
_STICKY = (0.0, 0.25, 0.5)

SUITES = ("authors", "modes", "look", "noise", "sticky")


def variants_of(suite: str, game: str, stated: Protocol) -> tuple[Variant, ...]:
    """Variants of a game that differ from what a run learned; empty if there are none."""
    match suite:
        case "authors":
            specs = _AUTHORS.get(game, [])
        case "modes":
            specs = _switched(game)
        case "look":
            specs = [*_LOOK]
        case "noise":
            specs = [*_NOISE]
        case _:
            specs = [f"sticky={share:g}" for share in _STICKY if share != stated.sticky]
    return tuple(parse_variant(spec, game) for spec in specs)


def _switched(game: str) -> list[str]:
    """The cartridge's switches, without the mode and difficulty in which the emulator starts."""
    modes, difficulties = atari.switches(game)
    return [
        *(f"mode={mode}" for mode in modes[1:]),
        *(f"difficulty={difficulty}" for difficulty in difficulties[1:]),
    ]
