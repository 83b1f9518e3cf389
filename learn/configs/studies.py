"""What users may set when they probe; see `wsa.encode.configs`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import arg

from wsa.store.configs import Game, Games, Names, StoreOptions, Switch, Text


@dataclasses.dataclass(frozen=True)
class ProbeOptions(StoreOptions):
    """Options of `wsa probe`."""

    game: Game = "Seaquest"
    """ALE game."""
    models: Names = ()
    """Aliases or keys, MODEL:random if untrained; every model that has encoded the game if not given."""
    target: Literal["ram", "reward", "action"] = "ram"
    """What to predict: variables of the emulator's memory, such as ball, paddle, and score; rewards; or actions."""
    horizon: Names = ("1", "10")
    """With reward: numbers of steps to look ahead; a row each."""
    policies: Names = ()
    """Use only play by these policies ('wsa show GAME' lists them); all if not given."""
    samples: int = 4_000
    """Steps to fit and test on, drawn from five times as many.
    Half of them are random play if the store has other play too."""
    splits: int = 5
    """Number of parts to split whole episodes into; probes fitted on the others test each once."""
    untrained: int = 3
    """Number of untrained networks, with different seeds, for each network that ships with wsa."""
    f1: Switch = False
    """With ram: also F1 of exact values by logistic regression, a minute or more per model."""
    seed: int = 1
    """Seed for drawing steps and for the intervals."""
    csv: Switch = False
    """Print the result as CSV, a line for each model and variable."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be read, then stop."""


@dataclasses.dataclass(frozen=True)
class PretrainOptions(StoreOptions):
    """Options of `wsa pretrain`."""

    encoder: Names = ("ae", "stdim", "transporter", "segmentation")
    """Encoders to train, one after another: ae (the context), stdim, stdim84, transporter, segmentation."""
    games: Annotated[Games, arg(aliases=["--game"])] = ("Seaquest",)
    """ALE games, all sampled equally."""
    policies: Names = ()
    """Use only frames of these policies ('wsa list' shows them); all if not given."""
    steps: int = 0
    """Maximum number of gradient steps; 0 for as many as the encoder's authors made."""
    epochs: float = 0.0
    """Instead of --steps: number of passes over all training frames."""
    batch_size: int = 0
    """Samples in a batch; 0 for the authors' number."""
    learning_rate: float = 0.0
    """Initial learning rate for Adam; 0 for the authors'."""
    held_out: float = 0.2
    """Share of each game's episodes held out for validation."""
    validate_frequency: int = 0
    """Gradient steps between validations; 0 for a hundredth of --steps."""
    patience: int = 15
    """Stop after this many validations without improvement; 0 for never."""
    seed: int = 1
    """Seed for weight initialization and sampling."""
    half: Switch = False
    """Write weights in half precision: half the size, and a different model than in full precision."""
    memory_gb: float = 0.0
    """Memory for frames in GB; if they need more, fewer segments are read. 0 for half of the machine's."""
    run_dir: Text = ""
    """Folder of the run; runs/pretrain__SEED__TIME if not given. An existing run continues."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Precision of the passes: bf16 is faster on a CPU with AMX or a GPU with tensor cores.
    The encoder stdim does not learn in bf16 and always uses fp32."""
    threads: int = 1
    """Threads on a CPU; the number may change the last bits of the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be trained on and how long it would take, then stop."""
