"""Options of `wsa probe` and `wsa pretrain`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import arg

from wsa.store.configs import Game, Games, Names, StoreOptions, Switch, Text


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """The steps that probes are fitted and tested on."""

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
    """With reward: numbers of steps to look ahead; a row each."""


@dataclasses.dataclass(frozen=True)
class ProbeOptions(StoreOptions, Probing):
    """Options of `wsa probe`."""

    csv: Switch = False
    """Print the result as CSV, a line for each model and variable."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be read, then stop."""
    fit: Annotated[FitOptions, arg(name="probe")] = FitOptions()


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """On which frames encoders are trained, and how."""

    policies: Names = ()
    """Use only frames of these policies ('wsa list' shows them); all if not given."""
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


@dataclasses.dataclass(frozen=True)
class PretrainComputeOptions:
    """Where encoders are trained, in which precision, and with how much memory."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Precision of the passes: bf16 is faster on a CPU with AMX or a GPU with tensor cores.
    The encoder stdim does not learn in bf16 and always uses fp32."""
    half: Switch = False
    """Write weights in half precision: half the size, and a different model than in full precision."""
    memory_gb: float = 0.0
    """Memory for frames in GB; if they need more, fewer segments are read. 0 for half of the machine's."""
    threads: int = 1
    """Threads on a CPU; the number may change the last bits of the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """What to train."""

    encoder: Names = ("ae", "stdim", "transporter", "segmentation")
    """Encoders to train: ae (the context), stdim, stdim84, transporter, segmentation."""
    games: Annotated[Games, arg(aliases=["--game"])] = ("Seaquest",)
    """ALE games, all sampled equally."""
    steps: int = 0
    """Most gradient steps; 0 for the authors' number."""
    seed: int = 1
    """Seed for weight initialization and sampling."""
    run_dir: Text = ""
    """Folder of the run; an existing one continues. runs/pretrain__SEED__TIME if not given."""


@dataclasses.dataclass(frozen=True)
class PretrainOptions(StoreOptions, Pretraining):
    """Options of `wsa pretrain`."""

    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be trained on and how long it would take, then stop."""
    recipe: Annotated[RecipeOptions, arg(name="training")] = RecipeOptions()
    compute: PretrainComputeOptions = PretrainComputeOptions()
