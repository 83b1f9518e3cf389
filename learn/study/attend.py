"""`wsa study attend`: which model a fusion weighs most, when, and whether that matters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from wsa.learn.configs.fusions import PIXELS
from wsa.learn.configs.study import AttendOptions
from wsa.learn.fusion.build import fusion_class, weighing
from wsa.learn.study import attend_report
from wsa.learn.study.attend_report import AttentionResult
from wsa.learn.study.games import UNCHANGED, Condition, Games
from wsa.learn.study.interventions import KINDS, Kind, intervened
from wsa.learn.study.trained_runs import TrainedRun, open_run, print_results, runs_of
from wsa.learn.study.weight_statistics import Log, read_log
from wsa.store.common import terminal
from wsa.store.common.errors import UsageError


def attend(o: AttendOptions) -> int:
    """`wsa study attend`."""
    # Check all runs before playing the first.
    logged = [(run, _read_log(run)) for run in runs_of(o)]
    evaluation = o.final_games.settings(o.episodes)
    games = Games(Path(o.study_dir), evaluation)
    if o.dry_run:
        asked = logged if o.episodes else []
        left = sum(len(games.left(run, _conditions(o, log).values())) for run, log in asked)
        total = {"runs": len(logged), "conditions_left": left, "games_left": left * o.episodes}
        return terminal.result(o.json, total)
    results = []
    for run, log in logged:
        games_each = terminal.plural(o.episodes, "game")
        terminal.say(f"{run.folder}: {games_each} in each of {len(KINDS)} conditions")
        with terminal.Progress(run.folder.name, "games", shown=not o.json) as progress:
            results.append(_study_run(o, run, log, games, progress.update))
    text = attend_report.write(Path(o.study_dir), results, evaluation)
    return print_results(o, text, {"runs": [attend_report.summary(one) for one in results]})


def _read_log(run: TrainedRun) -> Log:
    """Read the weights that a run's newest evaluation logged.

    Raises:
        UsageError: If its fusion gives its models no weights, it has only one model, or some models
            were left out.
        MissingError: If there are none.
        DamagedError: If they cannot be read.
    """
    fusion = run.config.network.fusion.name
    if fusion == PIXELS or not fusion_class(fusion).weighs:
        raise UsageError(
            f"{run.folder}: --fusion {fusion} gives its models no weights. Use a run with one of: "
            f"{', '.join(weighing())}."
        )
    if len(run.models) == 1:
        raise UsageError(
            f"{run.folder}: {run.models[0]} is the run's only model, so it gets all the attention. "
            "Use a run with several models."
        )
    return read_log(run.folder)


def _study_run(
    o: AttendOptions,
    run: TrainedRun,
    log: Log,
    games: Games,
    on_games: Callable[[int, int], None],
) -> AttentionResult:
    """Play a run in every condition not played before."""
    if not o.episodes:
        return AttentionResult(run, log, {}, None)
    played = games.play_all(run, _conditions(o, log), partial(open_run, o, run), on_games)
    return AttentionResult(run, log, played, games.random(run))


def _conditions(o: AttendOptions, log: Log) -> dict[Kind, Condition]:
    """The conditions in which a run plays, named by everything that their games depend on."""
    mean = log.weights.mean(axis=0).tolist()
    weights = "+".join(f"{weight:.6f}" for weight in mean)

    def intervention(kind: Kind) -> Callable[[Any], AbstractContextManager[None]]:
        return lambda network: intervened(network.torso.fusion, kind, mean, o.final_games.eval_seed)

    return {
        "none": UNCHANGED,
        "frozen": Condition(f"frozen {weights}", intervene=intervention("frozen")),
        "uniform": Condition(f"uniform {weights}", intervene=intervention("uniform")),
        "shuffled": Condition("shuffled", intervene=intervention("shuffled")),
    }
