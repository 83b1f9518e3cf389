"""`wsa study attend`: which model a fusion weighs most, when, and whether that matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from wsa.learn.configs.fusions import FUSIONS, PIXELS
from wsa.learn.configs.study import AttendOptions
from wsa.learn.evaluation.video import labels
from wsa.learn.fusion.build import fusion_class
from wsa.learn.runs.config import read_config
from wsa.learn.study import attend_report
from wsa.learn.study.games import Games, PlayedGames
from wsa.learn.study.interventions import KINDS, Kind, intervened
from wsa.learn.study.trained_runs import (
    evaluation_of,
    open_run,
    policy_of,
    print_results,
    runs_of,
    trained_parameters,
)
from wsa.learn.study.weight_statistics import Log, read_log
from wsa.learn.training import checkpoint
from wsa.store.common import terminal
from wsa.store.common.errors import UsageError

EMULATOR_HZ = 60


def attend(o: AttendOptions) -> int:
    """`wsa study attend`."""
    runs = runs_of(o)
    for run in runs:  # Check all runs before playing the first.
        _check(run)
        read_log(run)
    evaluation = evaluation_of(o)
    games = Games(Path(o.study_dir), evaluation)
    if o.dry_run:
        return _dry(o, runs, games)
    results = []
    for run in runs:
        terminal.say(f"{run}: {o.episodes} games in each of {len(KINDS)} conditions")
        with terminal.Progress(run.name, "games", shown=not o.json) as progress:
            results.append(_study_run(o, run, games, progress.update))
    text = attend_report.write(Path(o.study_dir), results, evaluation)
    return print_results(o, text, {"runs": [attend_report.summary(one) for one in results]})


def _check(folder: Path) -> None:
    """Refuse a run whose fusion gives its models no weights.

    Raises:
        MissingError: If there is no run.
        UsageError: If its fusion gives no weights.
    """
    fusion = read_config(folder).network.fusion.name
    if fusion == PIXELS or not fusion_class(fusion).weighs:
        able = ", ".join(name for name in FUSIONS if fusion_class(name).weighs)
        raise UsageError(
            "bad-option",
            f"{folder}: --fusion {fusion} gives its models no weights. Use a run with one of: {able}.",
        )


def _dry(o: AttendOptions, runs: list[Path], games: Games) -> int:
    left = 0
    for run in runs:
        mean = read_log(run).weights.mean(axis=0).tolist()
        left += len(_left(run, mean, games)) if o.episodes else 0
    total = {"runs": len(runs), "conditions_left": left, "games_left": left * o.episodes}
    return terminal.result(o.json, total)


def _left(run: Path, mean: Sequence[float], games: Games) -> list[Kind]:
    """Conditions in which a run has not been played."""
    config, network = read_config(run), checkpoint.digest(run / "checkpoints")
    return [kind for kind in KINDS if not games.find(config, network, condition(kind, mean))]


def _study_run(
    o: AttendOptions, run: Path, games: Games, on_games: Callable[[int, int], None]
) -> attend_report.AttentionResult:
    """Read a run's weights, and play it in every condition not played before."""
    config, log = read_config(run), read_log(run)
    played = _play(o, run, log, games, on_games) if o.episodes else {}
    steps_per_s = EMULATOR_HZ / config.protocol.frame_skip
    chance = games.random(config) if o.episodes else None
    models = tuple(labels(config.models))
    return attend_report.AttentionResult(
        str(run), config, models, trained_parameters(config), steps_per_s, log, played, chance
    )


def _play(
    o: AttendOptions, run: Path, log: Log, games: Games, on_games: Callable[[int, int], None]
) -> dict[Kind, PlayedGames]:
    mean = log.weights.mean(axis=0).tolist()
    config, network = read_config(run), checkpoint.digest(run / "checkpoints")
    left = _left(run, mean, games)
    games_by_kind: dict[Kind, PlayedGames | None] = {
        kind: games.find(config, network, condition(kind, mean)) for kind in KINDS
    }
    player = open_run(o, run) if left else None
    for done, kind in enumerate(left):

        def on_step(_: int, finished: int, before: int = done * o.episodes) -> None:
            on_games(before + finished, len(left) * o.episodes)

        assert player is not None, "it is opened for what is left"
        # Frames of one condition must not be remembered in the next.
        fresh = player.with_models(None)
        with intervened(player.network.torso.fusion, kind, mean, o.final_games.eval_seed):
            games_by_kind[kind] = games.play(
                config,
                network,
                condition(kind, mean),
                policy_of(o, fresh),
                fresh.embedder,
                on_step,
            )
    played_by_kind: dict[Kind, PlayedGames] = {}
    for kind in KINDS:
        played = games_by_kind[kind]
        if played is not None:
            played_by_kind[kind] = played
    return played_by_kind


def condition(kind: Kind, mean: Sequence[float]) -> str:
    """Name a condition by everything that its games depend on."""
    if kind in ("none", "shuffled"):
        return kind
    return f"{kind} {'+'.join(f'{weight:.6f}' for weight in mean)}"
