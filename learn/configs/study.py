"""The command line of `wsa study`: which study, of what, and where its report goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from wsa.encode.configs import Engine
from wsa.encode.jobs.slurm import SlurmOptions
from wsa.learn.configs.bench import CellOptions
from wsa.learn.configs.fusions import check_choice
from wsa.learn.configs.learn import ComputeOptions, Device, Training, training_defaults
from wsa.store.common.ranges import COUNT, OPTIONAL_COUNT, SEED, SHARE
from wsa.store.configs import Pairs, Switch, Text


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Options of every study."""

    kind: Annotated[Positional[Text], arg(metavar="KIND")] = ""
    """combine: which fusion is best.
    scale: what is left of trained runs with fewer models; with --during, what changing models costs.
    generalise: how trained runs play changed games.
    attend: which model gets the attention, and whether that matters.
    wsa study KIND --help shows the options of each."""
    study_dir: str = "study"
    """Folder for tables and index.html, which shows all studies in it."""
    json: Switch = False
    """Print the result as JSON, for scripts."""


@dataclasses.dataclass(frozen=True)
class RunsOptions(StudyOptions):
    """Of which trained runs a study is, and how they are played."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN")] = ()
    """Folders of runs that 'wsa learn' made."""
    episodes: Annotated[int, OPTIONAL_COUNT] = 10
    """Games in each condition; 0 plays none."""
    epsilon: Annotated[float, SHARE] = 0.001
    """Probability of a random action."""
    eval_seed: Annotated[int, SEED] = 10_000
    """Environment i has the seed EVAL_SEED + i; separate from training's."""
    eval_num_envs: Annotated[int, COUNT] = 4
    """Number of parallel environments."""
    weights: Pairs = ()
    """Safetensors files, if they have moved."""
    device: Device = "auto"
    """Where networks and models run."""
    engine: Engine = "auto"
    """Inference engine; auto uses the one that filled the store, if it is available here."""
    threads: Annotated[int, COUNT] | None = None
    """Cores that run models in parallel; all that this process may use if not given."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be done, then stop."""


@dataclasses.dataclass(frozen=True)
class ScaleOptions(RunsOptions):
    """Options of `wsa study scale`."""

    after: Literal["cached", "played"] = "cached"
    """cached: every set of a run's models on held-out stored states, without a pass or a game.
    played: games with every set of up to 4 models; of more, with each alone and each left out."""
    states: Annotated[int, COUNT] = 4096
    """With cached: number of states."""


@dataclasses.dataclass(frozen=True)
class GeneraliseOptions(RunsOptions):
    """Options of `wsa study generalise`."""

    suite: Literal["all", "authors", "modes", "look", "noise", "sticky"] = "all"
    """authors: Breakout in 25 other colors, and Pong's lazy enemy, as the paper meant them.
    modes: the cartridge's own. look: other colors. noise: disturbed frames.
    sticky: the emulator repeats actions."""
    states: Annotated[int, OPTIONAL_COUNT] = 512
    """Number of states in which to compare embeddings and weights with and without each change of looks."""
    quick: Switch = False
    """A first look: at most 3 games and 64 states."""


@dataclasses.dataclass(frozen=True)
class AttendOptions(RunsOptions):
    """Options of `wsa study attend`."""


@dataclasses.dataclass(frozen=True)
class CombineOptions(Training, CellOptions, StudyOptions):
    """Options of `wsa study combine`: the grid's, and those of `wsa learn` that every run shares."""

    quick: Switch = False
    """A first look: one seed, at most 2,000 updates or 20,000 steps, and 5 games."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be done, then stop."""
    compute: ComputeOptions = ComputeOptions()
    slurm: Annotated[SlurmOptions, arg(name="SLURM")] = dataclasses.field(
        default_factory=SlurmOptions
    )


@dataclasses.dataclass(frozen=True)
class DuringOptions(CombineOptions):
    """Options of `wsa study scale --during`: --updates are those of each stage."""

    during: Switch = False
    """Add and drop models while training, in all orders, instead of studying trained runs."""


def scale_options(arguments: Sequence[str]) -> ScaleOptions | DuringOptions:
    """The options that a command line may set, with their defaults.

    Raises:
        UsageError: An option belongs to another algorithm, or to another kind of run.
    """
    if "--during" not in arguments:
        return ScaleOptions()
    return DuringOptions(**training_defaults(arguments, "--fusions", ["wsa"]))


def combine_options(arguments: Sequence[str]) -> CombineOptions:
    """The options that a command line may set, with their defaults.

    Raises:
        UsageError: An option belongs to another algorithm, or to another kind of run.
    """
    return CombineOptions(**training_defaults(arguments, "--fusions", ["wsa"]))


KINDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "combine": combine_options,
    "scale": scale_options,
    "generalise": lambda arguments: GeneraliseOptions(),
    "attend": lambda arguments: AttendOptions(),
}


def study_options(arguments: Sequence[str]) -> Any:
    """The options that a command line may set, with their defaults: those of the study it names.

    Raises:
        UsageError: There is no such study.
    """
    kind = next(iter(arguments), "")
    if kind in ("", "-h", "--help"):
        return StudyOptions()
    check_choice("KIND", kind, list(KINDS))
    return KINDS[kind](arguments)
