"""The command line of `wsa bench`: a grid, and what all of its runs have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from wsa.encode.jobs.slurm import SlurmOptions
from wsa.learn.configs.learn import ComputeOptions, Training, training_defaults, values_of
from wsa.store.common.ranges import COUNT, OPTIONAL_COUNT, SEED, SHARE
from wsa.store.configs import Games, Integers, Names


@dataclasses.dataclass(frozen=True)
class CellOptions:
    """What every grid of runs needs: games and seeds, how runs are judged, where they are computed."""

    games: Games = ("Pong", "Breakout")
    """ALE games."""
    seeds: Annotated[Integers, SEED] = (1, 2, 3)
    """Seeds: a run with each."""
    models: Names = ()
    """The models that are fused, where there is only one set of them."""
    episodes: Annotated[int, COUNT] = 100
    """Games that each trained run is evaluated on; a random policy plays as many."""
    epsilon: Annotated[float, SHARE] = 0.001
    """Evaluation: probability of a random action."""
    eval_seed: Annotated[int, SEED] = 10_000
    """Evaluation: environment i is seeded with it + i; apart from training's."""
    eval_num_envs: Annotated[int, COUNT] = 4
    """Evaluation: number of parallel environments."""
    scheduler: str = "inproc"
    """inproc: one run after the other in this process; local: worker processes here; slurm; or
    tcp://HOST:PORT of a Dask scheduler."""
    workers: Annotated[int, OPTIONAL_COUNT] = 0
    """Worker processes of the local scheduler; 0 is one a core, or one a GPU. Jobs of SLURM."""


@dataclasses.dataclass(frozen=True)
class GridOptions(CellOptions):
    """What is compared with what."""

    fusions: Names = ("wsa", "mean", "single")
    """Fusions, as for 'wsa learn'. single: a run with each of the models alone. nature: pixels, online."""
    models_subsets: Names = ()
    """Which models together, with +, as lite0+lite1,lite0; all of --models if not given."""
    bench_dir: str = "bench"
    """Folder of the runs and the tables. The same command again continues; more seeds, games, fusions
    and models are added."""


@dataclasses.dataclass(frozen=True)
class BenchOptions(SlurmOptions, ComputeOptions, Training, GridOptions):
    """Options of `wsa bench`: the grid's, and those of `wsa learn` that every run shares."""

    context: str = ""
    """What WSA's scorer is conditioned on: the newest frame's embedding by a model, fused or not, or
    'mean' of those fused if not given."""


def bench_options(arguments: Sequence[str]) -> BenchOptions:
    """The options that a command line may set, with their defaults.

    Raises:
        UsageError: An option belongs to another algorithm, or to another kind of run.
    """
    fusions = values_of(arguments, "fusions", ",".join(GridOptions.fusions))
    return BenchOptions(**training_defaults(arguments, "--fusions", fusions))
