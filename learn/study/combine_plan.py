"""The grid of `wsa study combine`: its runs, the ones left out and why, and its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec

from wsa.encode.models.registry import parse_request
from wsa.learn.bench import grid
from wsa.learn.bench.grid import Cell, Settings, without_live_options
from wsa.learn.configs.bench import BenchOptions
from wsa.learn.configs.fusions import PIXELS
from wsa.learn.configs.learn import RunRequest
from wsa.learn.configs.study import CombineOptions
from wsa.learn.runs import dry_run
from wsa.learn.runs.config import MEAN_CONTEXT, OfflineRun, OnlineRun
from wsa.learn.runs.data import only
from wsa.learn.runs.network import parameters_of, windows_and_shapes
from wsa.learn.runs.setup.configure import configure
from wsa.learn.runs.setup.models import NotInStoreError
from wsa.learn.study.costs import seconds_per_step, steps_per_game
from wsa.store.common.errors import MissingError, UsageError, WsaError
from wsa.store.objects.snapshot import Snapshot

PAPER = ("wsa", "lin", "fix", "cnn", "mix", "res", "dpa")
CONTROLS = ("mean", "uniform", "unshared", "moe", "single")
UNTRAINED = ":random"
QUICK = {"updates": 2000, "total_timesteps": 20_000}
QUICK_GAMES = 5


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run of the study. Its `config` and `parameters` are None if the store lacks a model of an
    online run so far.
    """

    cell: Cell
    method: str
    config: OfflineRun | OnlineRun | None
    parameters: int | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The grid, also as options of a bench, and the runs that are impossible with the reasons."""

    bench: BenchOptions
    settings: Settings
    runs: tuple[Planned, ...]
    left_out: dict[str, str]


def method_of(request: RunRequest) -> str:
    """Name of a run's method in tables."""
    if request.fusion == PIXELS:
        return "pixels"
    return f"single {request.models[0]}" if request.fusion == "single" else request.fusion


def untrained(models: Sequence[str]) -> tuple[str, ...]:
    """The same models with random weights, if they have weights; empty if none has."""
    renamed = tuple(_untrained(name) for name in models)
    return () if renamed == tuple(models) else renamed


def _untrained(name: str) -> str:
    """A model with random weights; the model itself if it has none or is random already."""
    if name.endswith(UNTRAINED):
        return name
    try:
        parse_request(name + UNTRAINED, {})
    except UsageError:  # It has no weights; or it is a key, which already identifies them.
        return name
    return name + UNTRAINED


def bench_options(o: CombineOptions, **changes: object) -> BenchOptions:
    """Turn the study's options into those of a bench."""
    named = {f.name for f in dataclasses.fields(BenchOptions)}
    shared = {f.name: getattr(o, f.name) for f in dataclasses.fields(o) if f.name in named}
    fusions = (*PAPER, *CONTROLS, *((PIXELS,) if o.online else ()))
    if _equals_uniform(o):
        fusions = tuple(name for name in fusions if name != "mean")
    folder = str(Path(o.study_dir) / "combine")
    options = BenchOptions(**{**shared, "fusions": fusions, "bench_dir": folder, **changes})
    if not o.quick:
        return options
    learner = options.algorithm
    short = {k: min(n, getattr(learner, k)) for k, n in QUICK.items() if hasattr(learner, k)}
    return dataclasses.replace(
        options,
        seeds=options.seeds[:1],
        episodes=min(QUICK_GAMES, options.episodes),
        algorithm=msgspec.structs.replace(learner, **short),
    )


def _equals_uniform(o: CombineOptions) -> bool:
    """Whether the fusion `mean` is `uniform`: the context is the mean of the models itself."""
    return o.method.context in ("", MEAN_CONTEXT)


def plan(o: CombineOptions, snapshot: Snapshot, device: str) -> Plan:
    """Plan the possible runs of the grid.

    Raises:
        UsageError: If options contradict each other, or there are fewer than two models to combine.
        MissingError: If there are no frames, or a model has not encoded them.
        ConflictError: If the study was started with other options.
    """
    bench = bench_options(o)
    if len(dict.fromkeys(o.models)) < 2:
        raise UsageError(
            "name at least two models to combine, for example --models palette,objects."
        )
    grid.check(bench)
    settings = grid.shared_settings(bench, snapshot)
    cells = [(cell, method_of(cell.request)) for cell in grid.cells(bench, settings)]
    if control := untrained(o.models):
        # Each run decodes those that it has; the context keeps its weights.
        decode = (*bench.method.decode, *map(_untrained, bench.method.decode))
        options = dataclasses.replace(bench.method, decode=tuple(dict.fromkeys(decode)))
        untrained_bench = dataclasses.replace(
            bench, fusions=("wsa",), models=control, method=options
        )
        cells += [(cell, "wsa, untrained models") for cell in grid.cells(untrained_bench, settings)]
    runs: list[Planned] = []
    left_out: dict[str, str] = {}
    if _equals_uniform(o):
        left_out["mean"] = "It equals uniform, since no --context names a model."
    for cell, method in cells:
        planned = _planned(cell, method, snapshot, device, o.dry_run)
        if isinstance(planned, Planned):
            runs.append(planned)
        elif method == "wsa":
            raise planned  # An error here occurs in every run.
        else:
            left_out.setdefault(f"{cell.request.game}, {method}", str(planned))
    return Plan(bench, settings, tuple(runs), left_out)


def _planned(
    cell: Cell, method: str, snapshot: Snapshot, device: str, dry: bool
) -> Planned | WsaError:
    """Plan a run, or return the error that makes it impossible."""
    request = without_live_options(cell.request)
    if not request.online:
        snapshot = only(snapshot, request.game, cell.segments)
    try:
        config = configure(request, snapshot, device, dry_run=dry)
    except (UsageError, MissingError) as error:
        if request.online and isinstance(error, NotInStoreError):
            return Planned(cell, method, None, None)
        return error
    parameters = parameters_of(config, *windows_and_shapes(config, snapshot)).total
    return Planned(cell, method, config, parameters)


def costs(
    grid_plan: Plan, left: Sequence[Planned], snapshot: Snapshot, device: str
) -> dict[str, float]:
    """Estimate the remaining cost: runs, updates or steps, games, and minutes.

    Updates are timed on noise. The time of a game step is estimated from each model's forward
    passes when the store was filled, as if every frame needed a pass.
    """
    unit = "steps" if grid_plan.bench.online else "updates"
    todo = [run.cell.left() for run in left]
    totals: dict[str, float] = {
        "runs": len(grid_plan.runs),
        "left": len(left),
        f"{unit}_left": sum(todo),
        "games_left": len(left) * grid_plan.bench.episodes,
    }
    training = playing = 0.0
    rates: dict[tuple[str, str], float] = {}
    for run, steps in zip(left, todo, strict=True):
        config = run.config
        per_step = seconds_per_step(snapshot, config.inputs if config else ())
        per_game = steps_per_game(snapshot, run.cell.request.game) * per_step
        playing += grid_plan.bench.episodes * per_game
        if isinstance(config, OfflineRun):
            key = run.cell.request.game, run.method
            if key not in rates:
                data = only(snapshot, config.game, config.segments)
                rates[key] = dry_run.estimate(data, config, device)["minutes"] / config.total
            training += steps * rates[key]
        else:
            training += steps * per_step / 60
    return totals | {"minutes_training": training, "minutes_playing": playing / 60}
