"""The grid of a bench: which runs it has, what they share, and how far each is.

BENCH/
    bench.json          the options that all runs share, and the segments they learn from
    runs/{game}__{fusion}__{models}__{seed}/
                        a run as of `wsa learn`, evaluated as of `wsa eval`, and:
        result.json     what came of it; there when the run is trained and judged
        error.txt       where it failed, if the error was unexpected
    results.csv table.csv table.md curves.csv curves-{game}.png
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from wsa.learn.configs.bench import BenchOptions
from wsa.learn.configs.fusions import FUSIONS, PIXELS, as_preset, check_own_or
from wsa.learn.configs.learn import (
    PRESET_OPTIONS,
    ComputeOptions,
    LiveOptions,
    PlayOptions,
    RunRequest,
    Training,
    check_combination,
    flat_options,
    preset_defaults,
)
from wsa.learn.configs.network import NetworkConfig, PixelNetworkConfig
from wsa.learn.envs import atari
from wsa.learn.fusion.base import Fusion
from wsa.learn.fusion.build import fusion_class
from wsa.learn.runs.config import MEAN_CONTEXT
from wsa.learn.training import checkpoint
from wsa.store.common import atomic_files, hashing, user_code
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.common.ranges import check_ranges
from wsa.store.format import records
from wsa.store.objects.snapshot import Snapshot

SETTINGS, RESULT = "bench.json", "result.json"
LONGEST = 80


class Judging(msgspec.Struct, frozen=True):
    """How runs are judged.

    Attributes:
        episodes: Games that each plays.
        epsilon: Probability of a random action.
        seed: Environment i is seeded with seed + i.
        num_envs: Environments side by side, which share the games.
    """

    episodes: int
    epsilon: float
    seed: int
    num_envs: int


class Settings(msgspec.Struct, frozen=True):
    """What all runs of a bench share.

    Attributes:
        options: Of `wsa learn`, by name.
        segments: The data, by game; of offline runs.
    """

    options: dict[str, Any]
    segments: dict[str, tuple[str, ...]]


class Result(msgspec.Struct, frozen=True):
    """What came of a run.

    Attributes:
        game: ALE game id.
        fusion: How models were fused.
        models: Which, as they were named; none where the network saw pixels.
        seed: Of the run.
        judging: How it was judged.
        summary: As `wsa.learn.runs.evaluate.Evaluation.summary`.
    """

    game: str
    fusion: str
    models: tuple[str, ...]
    seed: int
    judging: Judging
    summary: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run of the grid.

    Attributes:
        request: What it is asked to be.
        folder: Its folder.
        judging: How it is judged.
        compute: Where and how it is trained.
        segments: The data that it learns from, if it is offline.
        label: What it is called, where its request does not tell it from others.
    """

    request: RunRequest
    folder: Path
    judging: Judging
    compute: ComputeOptions = ComputeOptions()
    segments: tuple[str, ...] = ()
    label: str = ""

    @property
    def total(self) -> int:
        """Updates, or online steps, that it is trained for."""
        learner: Any = self.request.algorithm
        return int(learner.total_timesteps if self.request.online else learner.updates)

    def __str__(self) -> str:
        """As it is spoken of."""
        r = self.request
        models = f", {'+'.join(r.models)}" if r.models else ""
        if self.label:
            return f"{r.game}, {self.label}, seed {r.seed}"
        return f"{r.game}, {r.fusion}{models}, seed {r.seed}"

    def result(self) -> Result | None:
        """What came of it, if it was trained, and judged in this way."""
        found = read_result(self.folder)
        return found if found is not None and found.judging == self.judging else None

    def done(self) -> int:
        """Updates, or steps, of its newest checkpoint."""
        saved = checkpoint.all_of(self.folder / "checkpoints")
        return int(saved[-1].stem) if saved else 0


def read_result(folder: Path) -> Result | None:
    """What came of the run in `folder`, if it was judged.

    Raises:
        DamagedError: The file is damaged.
    """
    path = folder / RESULT
    return records.read_json(path.read_bytes(), Result, str(path)) if path.exists() else None


def cells(o: BenchOptions, settings: Settings) -> list[Cell]:
    """The grid.

    Args:
        o: The options.
        settings: As `settle` gives them; its store is where all runs read.
    """
    judging = Judging(o.episodes, o.epsilon, o.eval_seed, o.eval_num_envs)
    compute = ComputeOptions(o.device, o.compile)
    methods = list(dict.fromkeys(_methods(o)))
    found = []
    for game, (fusion, models), seed in itertools.product(
        dict.fromkeys(o.games), methods, dict.fromkeys(o.seeds)
    ):
        request = dataclasses.replace(
            request_for(o, fusion),
            game=game,
            models=models,
            seed=seed,
            store=str(settings.options["store"]),
        )
        folder = Path(o.bench_dir) / "runs" / f"{game}__{fusion}__{spelled_models(models)}__{seed}"
        segments = settings.segments.get(game, ())
        found.append(Cell(request, folder.absolute(), judging, compute, segments))
    return found


def check(o: BenchOptions) -> None:
    """Refuse what cannot be, before anything is run.

    Raises:
        UsageError: Options contradict each other or are out of range.
    """
    for game in o.games:
        atari.check_game(game)
    if not (o.games and o.seeds and o.fusions):
        raise UsageError("bad-option", "--games, --seeds and --fusions must name at least one.")
    check_ranges(o)
    user_code.type_in(o.fusions)
    for fusion in o.fusions:
        check_own_or("--fusions", fusion, [*FUSIONS, PIXELS], "module:Class")
        check_combination(without_judging(request_for(o, fusion)))
    if o.fusions != (PIXELS,) and not (o.models_subsets or o.models):
        raise UsageError(
            "bad-option",
            "Name the models that are fused, as --models-subsets lite0+lite1,lite0.",
        )
    if o.models_subsets and o.models:
        raise UsageError("bad-option", "Give --models or --models-subsets, not both.")
    for subset in o.models_subsets:
        if not all(subset.split("+")):
            raise UsageError(
                "bad-option",
                f"--models-subsets {','.join(o.models_subsets)}: write models with + between them, "
                "and commas between sets, such as lite0+lite1,lite0.",
            )


def settle(o: BenchOptions, snapshot: Snapshot) -> Settings:
    """What all runs of the bench share: as it was begun, or as the options say.

    Offline runs all learn from what the store had of their game when the bench first met it.

    Raises:
        ConflictError: The bench was started with other options.
        DamagedError: Its file is damaged.
    """
    path = Path(o.bench_dir) / SETTINGS
    options = {**flat_options(o), "store": snapshot.backend.url}
    segments: dict[str, tuple[str, ...]] = {}
    kept: dict[str, Any] = {}  # Also what runs of this call have no use for.
    if path.exists():
        before = records.read_json(path.read_bytes(), Settings, str(path))
        segments, kept = before.segments, before.options
        defaults = flat_options(_defaults(o))
        for name, other in options.items():
            one = before.options.get(name)
            # What an older wsa did not know, or left to the algorithm, is as by default.
            one = defaults.get(name) if one is None else one
            if spelled(name, one) != spelled(name, other):
                raise ConflictError(
                    "run-exists",
                    f"{o.bench_dir} was started with {spelled(name, one)}, not {written(other)}: "
                    "its runs would not be comparable. Give that, or another --bench-dir.",
                )
    if not o.online:
        new = {game: snapshot.segments(game) for game in o.games if game in snapshot.games}
        segments = {game: tuple(m.segment for m in metas) for game, metas in new.items()} | segments
    return Settings(kept | options, segments)


def changed(o: BenchOptions) -> list[str]:
    """Options that all runs share and that are not as by default, as they are written."""
    defaults = {
        **flat_options(_defaults(o)),
        "online": False,
        "algo": "cql",
        **dict.fromkeys(PRESET_OPTIONS, "default"),
    }
    return [
        spelled(name, value)
        for name, value in flat_options(o).items()
        if spelled(name, value) != spelled(name, defaults[name])
    ]


def _defaults(o: BenchOptions) -> BenchOptions:
    """The same algorithm and presets, with defaults otherwise."""
    fusion = "wsa" if isinstance(o.network, NetworkConfig) else PIXELS
    presets = {name: getattr(o, name) for name in PRESET_OPTIONS}
    return BenchOptions(
        online=o.online,
        algo=o.algo,
        **presets,
        **preset_defaults(type(o.algorithm), **presets, fusion=fusion),
        data=type(o.data)(),
        live=type(o.live)(),
    )


def write(o: BenchOptions, settings: Settings) -> None:
    """Keep what all runs of a bench share."""
    data = msgspec.json.format(hashing.canonical(settings))
    atomic_files.replace(Path(o.bench_dir) / SETTINGS, data)


def _methods(o: BenchOptions) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each fusion with each subset of the models that it takes."""
    subsets = [tuple(dict.fromkeys(subset.split("+"))) for subset in o.models_subsets]
    for fusion in o.fusions:
        for models in subsets or [o.models]:
            if fusion == PIXELS:
                yield fusion, ()
            elif fusion == "single":
                yield from ((fusion, (model,)) for model in models)
            else:
                yield fusion, models


def without_judging(request: RunRequest) -> RunRequest:
    """A request less how models run, if none runs before the run is judged."""
    playing = request.online or request.evaluation.eval_frequency
    return request if playing else dataclasses.replace(request, live=LiveOptions())


def request_for(o: BenchOptions, fusion: str) -> RunRequest:
    """What all runs of a fusion are asked to be, less what it has no use for."""
    shared = {field.name: getattr(o, field.name) for field in dataclasses.fields(Training)}
    made = Fusion if fusion == PIXELS else fusion_class(fusion)
    if not made.conditioned:
        shared["context"] = MEAN_CONTEXT
    if not made.weighs:
        shared["algorithm"] = msgspec.structs.replace(
            o.algorithm, weight_entropy_coef=0.0, load_balance_coef=0.0
        )
    if fusion == PIXELS:
        shared["network"] = PixelNetworkConfig(frame_stack=o.network.frame_stack)
        return RunRequest(**shared, fusion=fusion)
    if isinstance(o.data, PlayOptions):
        shared["data"] = dataclasses.replace(o.data, parameters=0)
    if isinstance(o.network, NetworkConfig):
        shared["network"] = msgspec.structs.replace(
            o.network, fusion=as_preset(o.network.fusion, o.fusion_preset, fusion)
        )
    return RunRequest(**shared, fusion=fusion)


def written(value: Any) -> Any:
    """A value as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def spelled(name: str, value: Any) -> str:
    """An option as it is written on the command line."""
    return f"--{name.replace('_', '-')} {written(value)}"


def spelled_models(models: tuple[str, ...]) -> str:
    """Models as part of a folder's name."""
    whole = "+".join(models)
    plain = re.sub(r"[^\w.+-]", "_", whole, flags=re.ASCII)
    if plain == whole and len(plain) <= LONGEST:
        return plain or "pixels"
    return f"{plain[:LONGEST]}-{hashing.identity(whole)[:8]}"
