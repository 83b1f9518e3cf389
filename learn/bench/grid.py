"""The grid of a bench: its runs, their shared settings, and their progress.

BENCH/
    bench.json          the options that all runs share, and the segments they learn from
    runs/{game}__{fusion}__{models}__{seed}/
                        a run as from `wsa learn`, evaluated as by `wsa eval`, and:
        result.json     results; written when the run is trained and evaluated
        error.txt       traceback of an unexpected error
    results.csv table.csv table.md curves.csv curves-{game}.png
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from wsa.encode.configs import require_used, weights_files
from wsa.encode.jobs import slurm
from wsa.encode.models.registry import alias_of
from wsa.learn.configs.bench import BenchOptions
from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.configs.flags import as_flag, differing
from wsa.learn.configs.fusions import FUSIONS, PIXELS, as_preset, check_own_or
from wsa.learn.configs.learn import (
    PRESET_OPTIONS,
    ComputeOptions,
    LiveOptions,
    MethodOptions,
    PlayOptions,
    RunRequest,
    StoredDataOptions,
    Training,
    check_combination,
    flat_options,
    preset_defaults,
)
from wsa.learn.configs.network import NetworkConfig, PixelNetworkConfig, unclipped
from wsa.learn.envs import atari
from wsa.learn.fusion.base import Fusion
from wsa.learn.fusion.build import fusion_class
from wsa.learn.runs.config import MEAN_CONTEXT, rename_options, rename_results
from wsa.learn.runs.data import encoded_part
from wsa.learn.runs.setup.models import StoredModels
from wsa.learn.training import checkpoint
from wsa.store.common import atomic_files, hashing, terminal, user_code
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.common.ranges import check_ranges
from wsa.store.format import records
from wsa.store.objects.snapshot import Snapshot

SETTINGS, RESULT = "bench.json", "result.json"
LONGEST = 80


class Settings(msgspec.Struct, frozen=True):
    """Settings that all runs of a bench share: options of `wsa learn` by name, and by game the
    segments that offline runs learn from.
    """

    options: dict[str, Any]
    segments: dict[str, tuple[str, ...]]


class Result(msgspec.Struct, frozen=True):
    """Result of a run.

    Attributes:
        game: ALE game id.
        fusion: Name of the fusion.
        models: The fused models, as named in the options; empty if the network saw pixels.
        seed: Seed of the run.
        evaluation: Settings of the evaluation; `judging` in the file, whose format is fixed.
        summary: From `wsa.learn.runs.evaluate.Evaluation.summary`.
    """

    game: str
    fusion: str
    models: tuple[str, ...]
    seed: int
    evaluation: EvaluationSettings = msgspec.field(name="judging")
    summary: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run of the grid. Its `label` is its displayed name, if the request does not distinguish it
    from other runs.
    """

    request: RunRequest
    folder: Path
    evaluation: EvaluationSettings
    compute: ComputeOptions = ComputeOptions()
    segments: tuple[str, ...] = ()
    label: str = ""

    @property
    def total(self) -> int:
        """Number of updates, or of online steps, to train for."""
        learner: Any = self.request.algorithm
        return int(learner.last_step if self.request.online else learner.updates)

    def __str__(self) -> str:
        """Name of the run in text."""
        r = self.request
        models = f", {'+'.join(r.models)}" if r.models else ""
        if self.label:
            return f"{r.game}, {self.label}, seed {r.seed}"
        return f"{r.game}, {r.fusion}{models}, seed {r.seed}"

    def result(self) -> Result | None:
        """The run's result, if it was trained, and evaluated with these settings."""
        saved = read_result(self.folder)
        return saved if saved is not None and saved.evaluation == self.evaluation else None

    def done(self) -> int:
        """Number of updates, or of steps, in its newest checkpoint."""
        return checkpoint.newest_step(self.folder / "checkpoints")

    def left(self) -> int:
        """Number of updates, or of steps, that are left to train."""
        return max(0, self.total - self.done())

    def state(self) -> str:
        """The run's progress in tables."""
        return "done" if self.result() else f"{self.done():,} of {self.total:,}"


def read_result(folder: Path) -> Result | None:
    """Read the result of the run in `folder`; None if it has none.

    Raises:
        DamagedError: If the file is damaged.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    result = records.read_json(path.read_bytes(), Result, str(path))
    return msgspec.structs.replace(result, summary=rename_results(result.summary))


def print_grid(
    as_json: bool,
    total: dict[str, Any],
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    **further: Any,
) -> int:
    """Print a planned grid and its cost; return exit code 0."""
    if as_json:
        grid = [dict(zip(columns, row, strict=True)) for row in rows]
        return terminal.result(True, {**total, **further, "grid": grid})
    terminal.table("", columns, rows)
    print()
    return terminal.result(False, total)


def cells(o: BenchOptions, settings: Settings) -> list[Cell]:
    """All runs of the grid.

    Args:
        settings: From `shared_settings`; all runs read the store named there.
    """
    evaluation = o.final_games.settings(o.episodes)
    methods = list(dict.fromkeys(_methods(o)))
    grid = []
    for game, (fusion, models), seed in itertools.product(
        dict.fromkeys(o.games), methods, dict.fromkeys(o.seeds)
    ):
        request = with_models(request_for(o, fusion), models)
        store = str(settings.options["store"])
        request = dataclasses.replace(request, game=game, seed=seed, store=store)
        folder = Path(o.bench_dir) / "runs" / f"{game}__{fusion}__{folder_part(models)}__{seed}"
        segments = settings.segments.get(game, ())
        grid.append(Cell(request, folder.absolute(), evaluation, o.compute, segments))
    return grid


def check(o: BenchOptions) -> None:
    """Refuse impossible options, before anything is run.

    Raises:
        UsageError: If options contradict each other or are out of range.
    """
    for game in o.games:
        atari.check_game(game)
    if not (o.games and o.seeds and o.fusions):
        raise UsageError("--games, --seeds, and --fusions need at least one value each.")
    check_ranges(o)
    slurm.check_scheduler(o.slurm, o.worker.scheduler, o.worker.workers)
    user_code.type_in(o.fusions)
    for fusion in o.fusions:
        check_own_or("--fusions", fusion, [*FUSIONS, PIXELS], "module:Class")
        check_combination(without_live_options(request_for(o, fusion)))
    if o.fusions != (PIXELS,) and not (o.models_subsets or o.models):
        raise UsageError("Name the models to fuse, for example --models-subsets lite0+lite1,lite0.")
    named = _named_models(o)
    for name in o.method.decode:
        if name not in {*named, o.method.context}:
            raise UsageError(
                f"--decode {name}: no run has this model. Name one of {', '.join(sorted(named))}, "
                "as it is named there."
            )
    if weights := weights_files(o.live.weights):
        models = {*named, o.method.context}
        require_used(weights, [*models, *map(alias_of, models)])
    if o.models_subsets and o.models:
        raise UsageError("Give --models or --models-subsets, not both.")
    for subset in o.models_subsets:
        if not all(subset.split("+")):
            raise UsageError(
                f"--models-subsets {','.join(o.models_subsets)}: write models with + between them, "
                "and commas between sets, such as lite0+lite1,lite0."
            )


def shared_settings(o: BenchOptions, snapshot: Snapshot) -> Settings:
    """Settings that all runs share: those the bench was started with, or else those of the options.

    All offline runs learn from the segments that the store had of their game when the bench first
    included it; with --encoded-only, from those that all models of the bench had encoded.

    Raises:
        ConflictError: If the bench was started with other options.
        MissingError: If all models have encoded no segment, with --encoded-only.
        DamagedError: If its file is damaged.
    """
    path = Path(o.bench_dir) / SETTINGS
    options = {**flat_options(o), "store": snapshot.backend.url}
    segments: dict[str, tuple[str, ...]] = {}
    saved: dict[str, Any] = {}  # Includes options that the runs of this call do not use.
    if path.exists():
        before = records.read_json(path.read_bytes(), Settings, str(path))
        segments, saved = before.segments, rename_options(before.options)
        defaults = flat_options(_defaults(o))
        started_with = saved
        if "normalize" in saved:  # Benches from before clipping do not name it.
            started_with = {"clip_embeddings": unclipped(saved["normalize"]), **saved}
        for name, new_value in options.items():
            old = started_with.get(name)
            # An option that an older wsa did not know, or left to the algorithm, has its default
            # value.
            old = defaults.get(name) if old is None else old
            if as_flag(name, old) != as_flag(name, new_value):
                raise ConflictError(
                    "run-exists",
                    f"{o.bench_dir} was started with {differing(name, old, new_value)}, so "
                    "the runs would not be comparable. Use the same value, or another --bench-dir.",
                )
    if not o.online:
        new = [game for game in o.games if game in snapshot.games and game not in segments]
        segments = segments | {game: _segments_of(o, snapshot, game) for game in new}
    return Settings(saved | options, segments)


def _segments_of(o: BenchOptions, snapshot: Snapshot, game: str) -> tuple[str, ...]:
    """The segments of a game that all offline runs learn from."""
    if isinstance(o.data, StoredDataOptions) and o.data.encoded_only:
        context = {o.method.context} - {"", MEAN_CONTEXT}
        names_of_all = sorted(_named_models(o) | context)
        keys = StoredModels(snapshot, game, partly=True).keys_of(names_of_all)
        snapshot = encoded_part(snapshot, game, keys)
    return tuple(meta.segment for meta in snapshot.segments(game))


def _named_models(o: BenchOptions) -> set[str]:
    """Names of all models that the runs fuse."""
    return {*o.models, *itertools.chain(*(subset.split("+") for subset in o.models_subsets))}


def changed(o: BenchOptions) -> list[str]:
    """Shared options that differ from their defaults, as written on the command line."""
    defaults = {
        **flat_options(_defaults(o)),
        "online": False,
        "algo": "cql",
        **dict.fromkeys(PRESET_OPTIONS, "default"),
    }
    return [
        as_flag(name, value)
        for name, value in flat_options(o).items()
        if as_flag(name, value) != as_flag(name, defaults[name])
    ]


def _defaults(o: BenchOptions) -> BenchOptions:
    """The same algorithm and presets, with defaults otherwise."""
    fusion = "wsa" if isinstance(o.network, NetworkConfig) else PIXELS
    presets = {name: getattr(o.method, name) for name in PRESET_OPTIONS}
    return BenchOptions(
        online=o.online,
        algo=o.algo,
        method=MethodOptions(**presets),
        **preset_defaults(type(o.algorithm), **presets, fusion=fusion),
        data=type(o.data)(),
        live=type(o.live)(),
    )


def write(o: BenchOptions, settings: Settings) -> None:
    """Save the settings that all runs of a bench share."""
    data = msgspec.json.format(hashing.canonical(settings))
    atomic_files.replace(Path(o.bench_dir) / SETTINGS, data)


def _methods(o: BenchOptions) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each fusion with each set of models that it takes."""
    subsets = [tuple(dict.fromkeys(subset.split("+"))) for subset in o.models_subsets]
    for fusion in o.fusions:
        for models in subsets or [o.models]:
            if fusion == PIXELS:
                yield fusion, ()
            elif fusion == "single":
                yield from ((fusion, (model,)) for model in models)
            else:
                yield fusion, models


def without_live_options(request: RunRequest) -> RunRequest:
    """A request without the options for running models, if no game is played during training."""
    playing = request.online or request.evaluation.eval_frequency
    return request if playing else dataclasses.replace(request, live=LiveOptions())


def request_for(o: BenchOptions, fusion: str) -> RunRequest:
    """The request of all runs with a fusion, without options that the fusion does not use."""
    shared = {field.name: getattr(o, field.name) for field in dataclasses.fields(Training)}
    fusion_type = Fusion if fusion == PIXELS else fusion_class(fusion)
    if not fusion_type.conditioned:
        shared["method"] = dataclasses.replace(o.method, context=MEAN_CONTEXT)
    if not fusion_type.weighs:
        shared["algorithm"] = msgspec.structs.replace(
            o.algorithm, weight_entropy_coef=0.0, load_balance_coef=0.0
        )
    if isinstance(o.data, StoredDataOptions):
        shared["data"] = dataclasses.replace(o.data, encoded_only=False)  # The bench has chosen.
    if fusion == PIXELS:
        shared["network"] = PixelNetworkConfig(frame_stack=o.network.frame_stack)
        return RunRequest(**shared, fusion=fusion)
    if isinstance(o.data, PlayOptions):
        shared["data"] = dataclasses.replace(o.data, parameters=0)
    if isinstance(o.network, NetworkConfig):
        shared["network"] = msgspec.structs.replace(
            o.network, fusion=as_preset(o.network.fusion, o.method.fusion_preset, fusion)
        )
    return RunRequest(**shared, fusion=fusion)


def with_models(request: RunRequest, models: tuple[str, ...]) -> RunRequest:
    """The request of a run with these models; it decodes only those that it has."""
    own = {*models, request.method.context}
    decode = tuple(name for name in request.method.decode if name in own)
    method = dataclasses.replace(request.method, decode=decode)
    return dataclasses.replace(request, models=models, method=method)


def folder_part(models: tuple[str, ...]) -> str:
    """Write models as part of a folder's name."""
    joined = "+".join(models)
    plain = re.sub(r"[^\w.+-]", "_", joined, flags=re.ASCII)
    if plain == joined and len(plain) <= LONGEST:
        return plain or "pixels"
    return f"{plain[:LONGEST]}-{hashing.identity(joined)[:8]}"
