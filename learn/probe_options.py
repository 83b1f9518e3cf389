"""What users may set when they probe; see `wsa.encode.configs`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import arg

from wsa.store.configs import Names, StoreOptions


@dataclasses.dataclass(frozen=True)
class ProbeOptions(StoreOptions):
    """Options of `wsa probe`."""

    game: str = "Seaquest"
    """ALE game."""
    models: Names = ()
    """Aliases or keys, MODEL:random for the untrained one; every model that has encoded the game if none is
    named."""
    target: Literal["ram", "reward", "action"] = "ram"
    """What is read out: ball, paddle, score and the like from the emulator's memory; whether a reward
    comes; or what the player did."""
    horizon: Names = ("1", "10")
    """Of reward: steps within which it comes, each a row of the tables."""
    baselines: Names = ()
    """pixels: grey pixels, of as many numbers as each model gives."""
    policies: Names = ()
    """Only what these policies played ('wsa show GAME' lists them); all if none is named."""
    samples: int = 10_000
    """Steps that are learned from and judged, drawn from five times as many."""
    seed: int = 1
    """Of draws, and of which episodes are judged."""
    csv: bool = False
    """Print the result as CSV, a line for each model and variable."""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """Print what would be read and stop."""
