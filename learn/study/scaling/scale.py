"""`wsa study scale`: trained runs with fewer of their models."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from wsa.encode.configs import refuse
from wsa.encode.inference.encoder import choose_device
from wsa.learn.configs.study import ScaleOptions
from wsa.learn.study.games import Games
from wsa.learn.study.scaling import cached, cached_report, played
from wsa.learn.study.scaling.played import PlayedResult
from wsa.learn.study.trained_runs import TrainedRun, open_run, print_results, runs_of
from wsa.store.common import terminal
from wsa.store.common.errors import UsageError

# Why options of games have no effect.
PLAYS_NONE = "--after cached plays no game; --after played does"


def scale(o: ScaleOptions) -> int:
    """`wsa study scale`."""
    _check(o)
    runs = runs_of(o)
    for run in runs:  # Check all runs before evaluating the first.
        cached.check(run)
    return _cached(o, runs) if o.after == "cached" else _played(o, runs)


def _check(o: ScaleOptions) -> None:
    """Refuse options that would change nothing.

    Raises:
        UsageError: If there is one.
    """
    if o.after == "played":
        refuse(o, ("states",), "it is for --after cached")
        return
    refuse(o, ("episodes",), PLAYS_NONE)
    refuse(o.final_games, ("epsilon", "eval_seed", "eval_num_envs"), PLAYS_NONE)
    refuse(o.live, ("engine", "weights", "threads"), "--after cached runs no model")


def _cached(o: ScaleOptions, runs: list[TrainedRun]) -> int:
    if o.dry_run:
        sets = sum(2 ** len(run.config.models) for run in runs)
        total = {"runs": len(runs), "sets": sets, "backbone_passes": 0, "games": 0}
        return terminal.result(o.json, total)
    device, results = choose_device(o.live.device), []
    for run in runs:
        with terminal.Progress(run.folder.name, "sets of models", shown=not o.json) as progress:
            results.append(cached.measure(run, o.states, device, progress.update))
    text = cached_report.write(Path(o.study_dir), results)
    return print_results(o, text, {"runs": [dataclasses.asdict(one) for one in results]})


def _played(o: ScaleOptions, runs: list[TrainedRun]) -> int:
    if not o.episodes:
        raise UsageError("--episodes must be at least 1 with --after played.")
    evaluation = o.final_games.settings(o.episodes)
    games = Games(Path(o.study_dir), evaluation)
    if o.dry_run:
        sets = sum(len(games.left(run, played.conditions(run).values())) for run in runs)
        total = {"runs": len(runs), "sets_left": sets, "games_left": sets * o.episodes}
        return terminal.result(o.json, total)
    results = []
    for run in runs:
        with terminal.Progress(run.folder.name, "games", shown=not o.json) as progress:
            player = partial(open_run, o, run)
            by_set = games.play_all(run, played.conditions(run), player, progress.update)
            results.append(PlayedResult(run, by_set, games.random(run)))
    text = played.write(Path(o.study_dir), results, evaluation)
    return print_results(o, text, {"runs": [played.summary(one) for one in results]})
