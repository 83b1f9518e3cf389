"""Options of `wsa study`: the study, the runs or grid that it is about, and its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from wsa.encode.jobs.slurm import SlurmOptions
from wsa.learn.configs.bench import CellOptions, FinalGames
from wsa.learn.configs.fusions import FUSIONS, check_choice
from wsa.learn.configs.learn import ComputeOptions, RunModelsOptions, Training, training_defaults
from wsa.store.common.ranges import COUNT, OPTIONAL_COUNT
from wsa.store.configs import LocalPath, Switch, Text, Words


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Options of every study. A study replaces the verb's name and example in the help."""

    VERB: ClassVar[str] = "study"
    EXAMPLE: ClassVar[str] = "wsa study scale runs/Pong__wsa__1__1700000000 --study-dir study"

    kind: Annotated[Positional[Text], arg(metavar="KIND")] = ""
    """combine: which fusion is best.
    scale: what trained runs can do with fewer models; with --during, what adding and dropping models costs.
    generalize: how trained runs play changed games.
    attend: which model gets the attention, and whether that matters.
    wsa study KIND --help shows the options of each."""
    study_dir: LocalPath = "study"
    """Folder for tables and index.html, which shows all studies in it."""
    json: Switch = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class RunsOptions(StudyOptions):
    """The trained runs that a study is about, and how they play."""

    runs: Annotated[Positional[Words], arg(metavar="RUN")] = ()
    """Folders of runs that 'wsa learn' made."""
    episodes: Annotated[int, OPTIONAL_COUNT] = 10
    """Full games in each condition; 0 for none."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be done, then stop."""
    final_games: Annotated[FinalGames, arg(name="evaluation games")] = dataclasses.field(
        default_factory=FinalGames
    )
    live: Annotated[RunModelsOptions, arg(name="live models")] = dataclasses.field(
        default_factory=RunModelsOptions
    )


@dataclasses.dataclass(frozen=True)
class ScaleOptions(RunsOptions):
    """Options of `wsa study scale`."""

    VERB = "study scale"

    after: Literal["cached", "played"] = "cached"
    """cached: every set of a run's models, on held-out stored states, without a pass or a game.
    played: games with every set of up to 4 models; with more models, each alone and each left out."""
    states: Annotated[int, COUNT] = 4096
    """With cached: number of states."""


@dataclasses.dataclass(frozen=True)
class GeneralizeOptions(RunsOptions):
    """Options of `wsa study generalize`."""

    VERB = "study generalize"
    EXAMPLE = "wsa study generalize runs/Breakout__wsa__1__1700000000 --suite authors"

    suite: Literal["all", "authors", "modes", "look", "noise", "sticky"] = "all"
    """authors: the paper's 25 colors of Breakout and lazy enemy of Pong. modes: the cartridge's modes.
    look: other colors. noise: disturbed frames. sticky: repeated actions."""
    states: Annotated[int, OPTIONAL_COUNT] = 512
    """States in which to compare embeddings and weights with and without a change of looks."""
    quick: Switch = False
    """A first look: at most 3 games and 64 states."""


@dataclasses.dataclass(frozen=True)
class AttendOptions(RunsOptions):
    """Options of `wsa study attend`."""

    VERB = "study attend"
    EXAMPLE = "wsa study attend runs/Pong__wsa__1__1700000000 --episodes 10"


@dataclasses.dataclass(frozen=True)
class CombineOptions(StudyOptions, Training, CellOptions):
    """Options of `wsa study combine`: the grid's, and those of `wsa learn` that every run shares."""

    VERB = "study combine"
    EXAMPLE = "wsa study combine --games Pong --models palette,objects --quick"
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

    VERB = "study scale --during"
    EXAMPLE = "wsa study scale --during --games Pong --models palette,objects --updates 2000"
    during: Switch = False
    """Add and drop models while training, in all orders, instead of studying trained runs."""


KINDS: dict[str, type[StudyOptions]] = {
    "combine": CombineOptions,
    "scale": ScaleOptions,  # With --during: `DuringOptions`.
    "generalize": GeneralizeOptions,
    "attend": AttendOptions,
}


def study_options(arguments: Sequence[str]) -> StudyOptions:
    """Return the options of the study that a command line names, with their defaults.

    Raises:
        UsageError: If there is no such study, or an option belongs to another algorithm or kind of
            run.
    """
    kind = next(iter(arguments), "")
    if kind in ("", "-h", "--help"):
        return StudyOptions()
    check_choice("KIND", kind, list(KINDS))
    study = DuringOptions if kind == "scale" and "--during" in arguments else KINDS[kind]
    if issubclass(study, CombineOptions):
        fusions = ["wsa"] if study is DuringOptions else list(FUSIONS)
        return study(**training_defaults(arguments, "--fusions", fusions))
    return study()
