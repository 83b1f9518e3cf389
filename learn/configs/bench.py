"""What users may set of `wsa bench`: a grid, and what all of its runs have in common."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from tyro.conf import Fixed, Suppress

from wsa.encode.configs import SlurmOptions
from wsa.learn.configs.learn import LearnOptions
from wsa.store.configs import Names


@dataclasses.dataclass(frozen=True)
class GridOptions:
    """What is compared with what, and where that is computed."""

    games: Names = ("Pong", "Breakout")
    """ALE games."""
    seeds: Names = ("1", "2", "3")
    """Seeds: a run with each."""
    fusions: Names = ("wsa", "mean", "single")
    """Fusions, as of 'wsa learn'. single: a run with each of the models alone. nature: pixels, online."""
    models_subsets: Names = ()
    """Which models together, with +, as lite0+lite1,lite0; all of --models if not given."""
    bench_dir: str = "bench"
    """Folder of the runs and the tables. The same command again continues; more seeds, games, fusions
    and models are added."""
    episodes: int = 100
    """Games that each run is judged by when it is trained; and as many by a random policy."""
    epsilon: float = 0.001
    """Of the judging: probability of a random action."""
    eval_seed: int = 10_000
    """Of the judging: environment i is seeded with it + i; apart from training's."""
    eval_num_envs: int = 4
    """Of the judging: environments side by side."""
    scheduler: str = "inproc"
    """inproc: one run after the other in this process; local: worker processes here; slurm; or
    tcp://HOST:PORT of a Dask scheduler."""
    workers: int = 0
    """Worker processes of the local scheduler; 0 is one a core, or one a GPU. Jobs of SLURM."""


@dataclasses.dataclass(frozen=True)
class BenchOptions(LearnOptions, SlurmOptions, GridOptions):
    """Options of `wsa bench`: the grid's, and those of `wsa learn` that every run shares."""

    models: Names = ()
    """The models that are fused, where there is but one set of them."""
    context: str = ""
    """What WSA's scorer is conditioned on: the newest frame's embedding by a model, fused or not, or
    'mean' of those fused if not given."""

    # Of a run what the grid says, or what a grid has no use for.
    game: Annotated[str, Fixed, Suppress] = ""
    fusion: Annotated[str, Fixed, Suppress] = "wsa"  # type: ignore[assignment]
    seed: Annotated[int, Fixed, Suppress] = 1
    exp_name: Annotated[str, Fixed, Suppress] = "bench"
    run_dir: Annotated[str, Fixed, Suppress] = ""
    resume: Annotated[str, Fixed, Suppress] = ""
    init: Annotated[str, Fixed, Suppress] = ""
    add: Annotated[Names, Fixed, Suppress] = ()
    drop: Annotated[Names, Fixed, Suppress] = ()
