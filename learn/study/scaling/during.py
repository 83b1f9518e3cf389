"""`wsa study scale --during`: add and drop models while training, and measure what that costs.

A change is evaluated twice: before the first update after it, and at the end of its stage.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch

from wsa.encode.configs import weights_files
from wsa.encode.inference.cores import threads_for
from wsa.encode.inference.encoder import choose_device
from wsa.learn.bench import grid, runner
from wsa.learn.bench.run_cell import Failure, expected, say_failed
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.configs.study import DuringOptions
from wsa.learn.data.transitions import moments
from wsa.learn.runs.config import OfflineRun, read_config
from wsa.learn.runs.data import open_data
from wsa.learn.runs.network import make_network
from wsa.learn.runs.player import open_player
from wsa.learn.runs.setup.warm_start import warm_start
from wsa.learn.study.combine_plan import bench_options
from wsa.learn.study.games import Condition, Games, PlayedGames
from wsa.learn.study.scaling import during_report
from wsa.learn.study.scaling.during_plan import Stage, stages
from wsa.learn.study.trained_runs import TrainedRun
from wsa.store.common import terminal
from wsa.store.common.errors import MissingError, UsageError, WsaError
from wsa.store.objects.root import open_snapshot

START = Condition("start")  # A network that has not been trained since its change.


def during(o: DuringOptions) -> int:
    """`wsa study scale --during`; the exit code is that of the first failed run, or 0."""
    if len(dict.fromkeys(o.models)) < 2:
        raise UsageError(
            "--during: name at least two models to add and drop, for example "
            "--models palette,objects."
        )
    if o.online:
        raise UsageError("--during is for runs that learn from stored data. Leave out --online.")
    if o.method.match_parameters:
        raise UsageError(
            "--match-parameters: the number of parameters changes when models are added and dropped. "
            "Leave it out."
        )
    bench = bench_options(o, fusions=("wsa",), bench_dir=str(Path(o.study_dir) / "during"))
    grid.check(bench)
    _, snapshot = open_snapshot(o.store)
    settings = grid.shared_settings(bench, snapshot)
    all_stages = stages(bench, settings)
    left = [stage for stage in all_stages if stage.cell.result() is None]
    terminal.say(f"{len(all_stages) - len(left)} of {len(all_stages)} runs are done; {o.study_dir}")
    if o.dry_run:
        total = {
            "runs": len(all_stages),
            "left": len(left),
            "updates_left": sum(stage.cell.left() for stage in left),
            "games_left": sum((1 + bool(stage.before)) * bench.episodes for stage in left),
        }
        return terminal.result(o.json, total)
    grid.write(bench, settings)
    failures: list[Failure] = []
    # A stage continues from one of the level before.
    for _, level in itertools.groupby(sorted(left, key=_depth), key=_depth):
        ready = []
        for stage in level:
            if stage.before and stage.before.cell.result() is None:
                failures.append(_not_run(stage, stage.before))
            else:
                ready.append(stage.cell)
        failures += runner.run_cells(bench, ready)
    changes = _changes(o, all_stages, failures)
    text = during_report.write(Path(o.study_dir), bench, all_stages, changes, failures)
    if o.json:
        failed = [dataclasses.asdict(failure) for failure in failures]
        table = during_report.as_json(all_stages, changes)
        terminal.result(True, {"runs": len(all_stages), "failed": failed, "table": table})
    else:
        print(text)
    return say_failed(failures)


def _depth(stage: Stage) -> int:
    return 0 if stage.before is None else 1 + _depth(stage.before)


def _not_run(stage: Stage, before: Stage) -> Failure:
    error = MissingError("no-run", f"not run, because the stage before it failed: {before.cell}")
    return expected(stage.cell, error)


def _changes(
    o: DuringOptions, all_stages: list[Stage], failures: list[Failure]
) -> dict[Path, PlayedGames]:
    """Games of changed networks before their first update, by folder of their stage."""
    changes = {}
    for stage in all_stages:
        if stage.before is None or stage.cell.result() is None:
            continue
        games = Games(Path(o.study_dir), stage.cell.evaluation)
        try:
            changes[stage.cell.folder] = _just_changed(o, stage, games)
        except WsaError as error:
            failures.append(expected(stage.cell, error))
    return changes


def _just_changed(o: DuringOptions, stage: Stage, games: Games) -> PlayedGames:
    run = TrainedRun(stage.cell.folder, read_config(stage.cell.folder))
    if (saved := games.find(run, START)) is not None:
        return saved
    terminal.say(f"right after the change: {stage.cell}")
    device = choose_device(o.compute.device)
    player = open_player(
        run.folder,
        EvaluationRequest(device=device, engine=o.live.engine),
        weights=weights_files(o.live.weights),
        threads=threads_for(o.live.threads or 1),
    )
    assert isinstance(run.config, OfflineRun)
    player = dataclasses.replace(player, network=start_of(run.config).to(torch.device(device)))
    return games.play(run, START, player)


def start_of(config: OfflineRun) -> Any:
    """The network that a run starts with, made as in `wsa.learn.offline.trainer`."""
    _, flat = open_data(config)
    assert flat is not None, "an offline run has data"
    torch.manual_seed(config.seed)
    network = make_network(config, flat.windows, flat.shapes)
    if config.network.normalize == "standard":
        network.torso.set_moments(*moments(flat))
    if config.init:
        with torch.no_grad():
            warm_start(config, network)
    return network
