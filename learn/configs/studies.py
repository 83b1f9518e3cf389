"""What users may set when they probe; see `wsa.encode.configs`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import arg

from wsa.store.configs import Game, Games, Names, StoreOptions


@dataclasses.dataclass(frozen=True)
class ProbeOptions(StoreOptions):
    """Options of `wsa probe`."""

    game: Game = "Seaquest"
    """ALE game."""
    models: Names = ()
    """Aliases or keys, MODEL:random for the untrained one; every model that has encoded the game if none is
    named."""
    target: Literal["ram", "reward", "action"] = "ram"
    """What is read out: ball, paddle, score and the like from the emulator's memory; whether a reward
    comes; or what the player did."""
    horizon: Names = ("1", "10")
    """Of reward: steps within which it comes, each a row of the tables."""
    policies: Names = ()
    """Only what these policies played ('wsa show GAME' lists them); all if none is named."""
    samples: int = 4_000
    """Steps that are learned from and judged, half of them random play if the store has other play too;
    drawn from five times as many."""
    splits: int = 5
    """Parts that whole episodes are dealt to; each is judged once by probes fitted on the others."""
    untrained: int = 3
    """Untrained networks, each of another seed, beside each network that comes with wsa."""
    f1: bool = False
    """Of ram: also F1 of exact values by logistic regression, which takes a minute or more a model."""
    seed: int = 1
    """Seed for the steps that are drawn and for the intervals."""
    csv: bool = False
    """Print the result as CSV, a line for each model and variable."""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """Print what would be read and stop."""


@dataclasses.dataclass(frozen=True)
class PretrainOptions(StoreOptions):
    """Options of `wsa pretrain`."""

    encoder: Names = ("ae", "stdim", "transporter", "segmentation")
    """Which, one after another: ae (the context), stdim, transporter, segmentation."""
    games: Annotated[Games, arg(aliases=["--game"])] = ("Seaquest",)
    """ALE games, each with the same share of the draws."""
    policies: Names = ()
    """Only frames of these policies ('wsa list' shows them); of all if none is named."""
    steps: int = 0
    """Gradient steps, at most; 0 for as many as the encoder's authors made."""
    epochs: float = 0.0
    """Instead of --steps: passes over all frames that are trained on."""
    batch_size: int = 0
    """Looks at a game in a batch; 0 for the authors' number."""
    learning_rate: float = 0.0
    """Of Adam, at the beginning; 0 for the authors'."""
    held_out: float = 0.2
    """Share of each game's episodes that is held out for validation."""
    validate_frequency: int = 0
    """Gradient steps between validations over all that is held out; 0 for a hundredth of --steps."""
    patience: int = 15
    """Stop after so many validations without a better one; 0 never stops early."""
    seed: int = 1
    """Of initialisation and draws."""
    half: bool = False
    """Write weights in half precision: half the size, and another model than in full precision."""
    memory_gb: float = 0.0
    """Memory for frames; where they need more, fewer segments are read. 0 for half of the machine's."""
    run_dir: str = ""
    """Folder to make; runs/pretrain__SEED__TIME if not given. One that is there continues."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of the passes: bf16 is faster where a CPU has AMX, or a GPU has tensor cores; stdim, which
    does not learn in it, has fp32 all the same."""
    threads: int = 1
    """Threads on a CPU; another number may change the last bits of the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """Print what would be trained on, and how long it would take, and stop."""
