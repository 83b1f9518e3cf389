"""Shared options and output of the studies of trained runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsa.encode.configs import weights_files
from wsa.encode.inference.cores import threads_for
from wsa.encode.inference.encoder import choose_device
from wsa.learn.bench.grid import EvaluationSettings, evaluation_settings
from wsa.learn.configs.study import RunsOptions
from wsa.learn.evaluation.greedy_policy import GreedyPolicy
from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.learn.runs.moved_store import find_store
from wsa.learn.runs.network import parameters_of, windows_and_shapes
from wsa.learn.runs.player import Player, open_player
from wsa.learn.study.output import PAGE
from wsa.store.common import terminal
from wsa.store.common.errors import MissingError, StorageError, UsageError
from wsa.store.common.ranges import check_ranges
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot


def runs_of(o: RunsOptions) -> list[Path]:
    """Folders of the runs, without duplicates.

    Raises:
        UsageError: If no run is named, or an option is out of range.
    """
    check_ranges(o)
    if not o.runs:
        raise UsageError(
            "bad-option", f"wsa study {o.kind}: name the folders of one or more trained runs."
        )
    return [Path(run) for run in dict.fromkeys(o.runs)]


def evaluation_of(o: RunsOptions) -> EvaluationSettings:
    """The settings of evaluation games, from the options."""
    return evaluation_settings(o.episodes, o.final_games)


def open_run(o: RunsOptions, run: Path) -> Player:
    """Open a run's network and models, as the options say."""
    return open_player(
        run,
        weights=weights_files(o.live.weights),
        device=choose_device(o.live.device),
        engine=o.live.engine,
        threads=threads_for(o.live.threads),
    )


def policy_of(o: RunsOptions, player: Player) -> GreedyPolicy:
    """A run's network as the policy of a study's games."""
    final = o.final_games
    return player.policy(final.eval_num_envs, final.epsilon, final.eval_seed)


def trained_parameters(config: OfflineRun | OnlineRun) -> int | None:
    """Number of trainable parameters of a run's network.

    Returns:
        The number; None for a run on stored data whose store, which has the shapes, is out of reach.
    """
    if isinstance(config, OnlineRun):
        return parameters_of(config, config.model_windows, config.shapes).total
    try:
        config = find_store(config)
        snapshot = take_snapshot(open_store(config.store))
        return parameters_of(config, *windows_and_shapes(config, snapshot)).total
    except (MissingError, StorageError):
        return None


def in_text(parameters: int | None) -> str:
    """The number of trainable parameters in a sentence."""
    return f"{'unknown' if parameters is None else f'{parameters:,}'} trainable parameters"


def print_results(o: RunsOptions, text: str, values: dict[str, Any]) -> int:
    """Print a study's results and the path of its page; return exit code 0."""
    if o.json:
        return terminal.result(True, values)
    print(text)
    terminal.say(f"{Path(o.study_dir) / PAGE}")
    return 0
