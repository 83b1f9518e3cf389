"""Options of `wsa bench`: the grid, and the options that all of its runs share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from tyro.conf import arg

from wsa.encode.jobs.slurm import SlurmOptions
from wsa.learn.configs.evaluation import EPISODES, EPSILON, EVAL_SEED, NUM_ENVS, EvaluationSettings
from wsa.learn.configs.learn import ComputeOptions, Training, training_defaults, values_of
from wsa.store.common.ranges import COUNT, OPTIONAL_COUNT, SEED, SHARE, check_ranges
from wsa.store.configs import Games, Integers, LocalPath, Names, Switch


@dataclasses.dataclass(frozen=True)
class FinalGames:
    """How evaluation games are played. A random policy plays as many games."""

    epsilon: Annotated[float, SHARE] = EPSILON
    """Probability of a random action; otherwise, the action with the highest value or probability."""
    eval_seed: Annotated[int, SEED] = EVAL_SEED
    """Environment i has the seed EVAL_SEED + i; separate from training's."""
    eval_num_envs: Annotated[int, COUNT] = NUM_ENVS
    """Number of parallel environments."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def settings(self, episodes: int) -> EvaluationSettings:
        """Return the settings of a number of games."""
        return EvaluationSettings(episodes, self.epsilon, self.eval_seed, self.eval_num_envs)


@dataclasses.dataclass(frozen=True)
class GridWorkers:
    """Which processes train and evaluate the runs."""

    scheduler: str = "inproc"
    """inproc: this process, one run at a time; local: worker processes; slurm; or tcp://HOST:PORT (Dask)."""
    workers: Annotated[int, OPTIONAL_COUNT] = 0
    """With --scheduler local or slurm: worker processes or jobs; 0 for one per core or GPU."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class CellOptions:
    """Options of every grid of runs: games, seeds, evaluation, and workers."""

    games: Games = ("Pong", "Breakout")
    """ALE games."""
    seeds: Annotated[Integers, SEED] = (1, 2, 3)
    """Seeds; one run for each."""
    models: Names = ()
    """Models to fuse, if there is only one set of them."""
    episodes: Annotated[int, COUNT] = EPISODES
    """Full games to evaluate each run on."""
    final_games: Annotated[FinalGames, arg(name="evaluation games")] = FinalGames()
    worker: GridWorkers = GridWorkers()


@dataclasses.dataclass(frozen=True)
class GridOptions(CellOptions):
    """What a bench compares, and where it writes."""

    fusions: Names = ("wsa", "mean", "single")
    """Fusions of 'wsa learn'; single: a run for each model alone; nature: pixels, only online."""
    models_subsets: Names = ()
    """Several sets of models, such as lite0+lite1,lite0."""
    bench_dir: LocalPath = "bench"
    """Folder of the runs. The same command continues; more games, seeds, or methods add to it."""


@dataclasses.dataclass(frozen=True)
class BenchOptions(Training, GridOptions):
    """Options of `wsa bench`: the grid's, and those of `wsa learn` that every run shares."""

    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be done, then stop."""
    compute: ComputeOptions = ComputeOptions()
    slurm: Annotated[SlurmOptions, arg(name="SLURM")] = dataclasses.field(
        default_factory=SlurmOptions
    )


def bench_options(arguments: Sequence[str]) -> BenchOptions:
    """Return the options that a command line may set, with their defaults.

    Raises:
        UsageError: If an option belongs to another algorithm, or to another kind of run.
    """
    fusions = values_of(arguments, "fusions", ",".join(GridOptions.fusions))
    return BenchOptions(**training_defaults(arguments, "--fusions", fusions))
