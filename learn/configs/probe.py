"""Options of `wsa probe`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import arg

from wsa.store.common.ranges import SEED, Range
from wsa.store.configs import Game, Names, StoreOptions, Switch


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """The steps that probes are fitted and tested on."""

    policies: Names = ()
    """Use only play by these policies ('wsa show GAME' lists them); all if not given."""
    samples: Annotated[int, Range(100, 100_000)] = 4_000
    """Steps to fit and test on, drawn from five times as many.
    Half of them are random play if the store has other play too."""
    splits: Annotated[int, Range(3, 20)] = 5
    """Number of parts to split the episodes into; each part tests probes fitted on the others, once."""
    untrained: Annotated[int, Range(0, 10)] = 3
    """Number of untrained networks, with different seeds, for each network that ships with wsa."""
    f1: Switch = False
    """With ram: also F1 of exact values by logistic regression; takes a minute or more per model."""
    seed: Annotated[int, SEED] = 1
    """Seed for drawing steps and for the intervals."""


@dataclasses.dataclass(frozen=True)
class Probing:
    """What to probe, and for what."""

    game: Game = "Seaquest"
    """ALE game."""
    models: Names = ()
    """Aliases or keys, MODEL:random if untrained; all that have encoded the game if not given."""
    target: Literal["ram", "reward", "action"] = "ram"
    """What to predict: variables of the emulator's memory, such as ball and score; rewards; or actions."""
    horizon: Names = ("1", "10")
    """With reward: numbers of steps to look ahead; one row for each."""


@dataclasses.dataclass(frozen=True)
class ProbeOptions(StoreOptions, Probing):
    """Options of `wsa probe`."""

    csv: Switch = False
    """Print the result as CSV, with a line for each model and variable."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be read, then stop."""
    fit: Annotated[FitOptions, arg(name="probe")] = FitOptions()
