"""Options of `wsa pretrain`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import arg

from wsa.store.common.ranges import COUNT, NOT_NEGATIVE, OPTIONAL_COUNT, SEED, SHARE, Range
from wsa.store.configs import Games, LocalPath, Names, StoreOptions, Switch


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """Which frames to train encoders on, and how."""

    policies: Names = ()
    """Use only frames of these policies ('wsa list' shows them); all if not given."""
    epochs: Annotated[float, NOT_NEGATIVE] = 0.0
    """Instead of --steps: number of passes over all training frames."""
    batch_size: Annotated[int, OPTIONAL_COUNT] = 0
    """Samples in a batch; 0 for the authors' number."""
    learning_rate: Annotated[float, SHARE] = 0.0
    """Initial learning rate for Adam; 0 for the authors'."""
    held_out: Annotated[float, Range(0, 1, above=True, below=True)] = 0.2
    """Share of each game's episodes held out for validation."""
    validate_frequency: Annotated[int, OPTIONAL_COUNT] = 0
    """Gradient steps between validations; 0 for a hundredth of --steps."""
    patience: Annotated[int, OPTIONAL_COUNT] = 15
    """Stop after this many validations without improvement; 0 for never."""


@dataclasses.dataclass(frozen=True)
class PretrainComputeOptions:
    """Where to train encoders, in which precision, and with how much memory."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Precision of the passes: bf16 is faster on a CPU with AMX or a GPU with tensor cores.
    The encoder stdim does not learn in bf16 and always uses fp32."""
    half: Switch = False
    """Write weights in half precision: half the size, and a different model than in full precision."""
    memory_gb: Annotated[float, NOT_NEGATIVE] = 0.0
    """Memory for frames in GB; if the frames need more, fewer segments are read. 0 for half of the machine's."""
    threads: Annotated[int, COUNT] = 1
    """Threads on a CPU; the number may change the last bits of the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """What to train."""

    encoder: Names = ("ae", "stdim", "transporter", "segmentation")
    """Encoders to train: ae (the context), stdim, mae, transporter, segmentation."""
    games: Annotated[Games, arg(aliases=["--game"])] = ("Seaquest",)
    """ALE games, all sampled equally."""
    steps: Annotated[int, OPTIONAL_COUNT] = 0
    """Maximum number of gradient steps; 0 for the authors' number."""
    seed: Annotated[int, SEED] = 1
    """Seed for weight initialization and sampling."""
    run_dir: LocalPath = ""
    """Folder of the run; an existing one continues. runs/pretrain__SEED__TIME if not given."""


@dataclasses.dataclass(frozen=True)
class PretrainOptions(StoreOptions, Pretraining):
    """Options of `wsa pretrain`."""

    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print which frames would be used and how long training would take, then stop."""
    recipe: Annotated[RecipeOptions, arg(name="training")] = RecipeOptions()
    compute: PretrainComputeOptions = PretrainComputeOptions()
