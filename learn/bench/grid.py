"""The grid of a bench: which runs it has, what they share, and how far each is.

BENCH/
    bench.json          the options that all runs share, and the segments they learn from
    runs/{game}__{fusion}__{models}__{seed}/
                        a run as of `wsa learn`, evaluated as of `wsa eval`, and:
        result.json     what came of it; there when the run is trained and judged
        error.txt       where it failed, if that was nobody's fault
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
from wsa.learn.configs.checks import check_seed
from wsa.learn.configs.learn import LearnOptions
from wsa.learn.configs.unused_options import FUSION, check_given
from wsa.learn.envs import atari as games
from wsa.learn.fusion.base import Fusion
from wsa.learn.fusion.registry import NAMES
from wsa.learn.runs import online_setup, setup
from wsa.learn.runs.online_config import NATURE
from wsa.learn.runs.origin import MEAN_CONTEXT
from wsa.learn.training import checkpoint
from wsa.store.common import atomic_files, hashing
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.format import records
from wsa.store.objects.snapshot import Snapshot

SETTINGS, RESULT = "bench.json", "result.json"
LONGEST = 80

# What says where and how to compute, and what tells runs of a grid apart; all else is shared.
_HOW = {"device", "weights", "encoder", "engine", "compile", "json", "dry_run"}
_APART = {
    "game",
    "models",
    "fusion",
    "seed",
    "exp_name",
    "run_dir",
    "resume",
    "init",
    "add",
    "drop",
}


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
        options: Its options of `wsa learn`, the folder included.
        judging: How it is judged.
        segments: The data that it learns from, if it is offline.
    """

    options: LearnOptions
    judging: Judging
    segments: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.options.run_dir)

    @property
    def total(self) -> int:
        """Updates, or online steps, that it is trained for."""
        return self.options.total_timesteps if self.options.online else self.options.updates

    def __str__(self) -> str:
        """As it is spoken of."""
        o = self.options
        models = f", {'+'.join(o.models)}" if o.models else ""
        return f"{o.game}, {o.fusion}{models}, seed {o.seed}"

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

    Raises:
        UsageError: Options contradict each other or are out of range.
    """
    judging = Judging(o.episodes, o.epsilon, o.eval_seed, o.eval_num_envs)
    methods = list(dict.fromkeys(_methods(o)))
    found = []
    for game, (fusion, models), seed in itertools.product(
        dict.fromkeys(o.games), methods, dict.fromkeys(map(_seed, o.seeds))
    ):
        options = _of_fusion(o, fusion)
        name = f"{game}__{fusion}__{_spelled(models)}__{seed}"
        options |= {
            "game": game,
            "fusion": fusion,
            "models": models,
            "seed": seed,
            "store": settings.options["store"],
            "run_dir": str((Path(o.bench_dir) / "runs" / name).absolute()),
        }
        found.append(Cell(LearnOptions(**options), judging, settings.segments.get(game, ())))
    return found


def check(o: BenchOptions) -> None:
    """Refuse what cannot be, before anything is run.

    Raises:
        UsageError: Options contradict each other or are out of range.
    """
    for game in o.games:
        games.check_game(game)
    if not (o.games and o.seeds and o.fusions):
        raise UsageError("bad-option", "--games, --seeds and --fusions must name at least one.")
    if o.episodes < 1 or o.eval_num_envs < 1 or not 0 <= o.epsilon <= 1 or o.workers < 0:
        raise UsageError(
            "bad-option",
            "--episodes and --eval-num-envs must be at least 1, --epsilon from 0 to 1, --workers 0 "
            "or more.",
        )
    for word in o.seeds:
        check_seed(_seed(word), "--seeds")
    check_seed(o.eval_seed, "--eval-seed")
    if not o.online and (o.algo == "ppo" or NATURE in o.fusions):
        raise UsageError("bad-option", "--algo ppo and --fusions nature need --online.")
    (online_setup if o.online else setup).hyperparameters_of(o)
    for fusion in o.fusions:
        options = LearnOptions(**_of_fusion(o, fusion), fusion=fusion)  # type: ignore[arg-type]
        if fusion != NATURE:
            setup.network_of(options)
        check_given(without_judging(options))
    if o.fusions != (NATURE,) and not (o.models_subsets or o.models):
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
                "and commas between sets, as lite0+lite1,lite0.",
            )


def settle(o: BenchOptions, snapshot: Snapshot) -> Settings:
    """What all runs of the bench share: as it was begun, or as the options say.

    Offline runs all learn from what the store had of their game when the bench first met it.

    Raises:
        ConflictError: The bench was begun with other options.
        DamagedError: Its file is damaged.
    """
    path = Path(o.bench_dir) / SETTINGS
    shared = {
        field.name: getattr(o, field.name)
        for field in dataclasses.fields(LearnOptions)
        if field.name not in _HOW | _APART
    }
    options = msgspec.json.decode(hashing.canonical({**shared, "store": snapshot.backend.url}))
    defaults = msgspec.json.decode(hashing.canonical(dataclasses.asdict(BenchOptions())))
    segments: dict[str, tuple[str, ...]] = {}
    if path.exists():
        before = records.read_json(path.read_bytes(), Settings, str(path))
        segments = before.segments
        for name, other in options.items():
            # What an older wsa did not know is as by default.
            one = before.options.get(name, defaults[name])
            if one != other:
                raise ConflictError(
                    "run-exists",
                    f"{o.bench_dir} was begun with {spelled(name, one)}, not {other}: "
                    "its runs would not be comparable. Give that, or another --bench-dir.",
                )
    if not o.online:
        new = {game: snapshot.segments(game) for game in o.games if game in snapshot.games}
        segments = {game: tuple(m.segment for m in metas) for game, metas in new.items()} | segments
    return Settings(options, segments)


def write(o: BenchOptions, settings: Settings) -> None:
    """Keep what all runs of a bench share."""
    data = msgspec.json.format(hashing.canonical(settings))
    atomic_files.replace(Path(o.bench_dir) / SETTINGS, data)


def _methods(o: BenchOptions) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each fusion with each subset of the models that it takes."""
    subsets = [tuple(dict.fromkeys(subset.split("+"))) for subset in o.models_subsets]
    for fusion in o.fusions:
        for models in subsets or [o.models]:
            if fusion == NATURE:
                yield fusion, ()
            elif fusion == "single":
                yield from ((fusion, (model,)) for model in models)
            else:
                yield fusion, models


def without_judging(o: LearnOptions) -> LearnOptions:
    """A run's options less what runs models, if none runs before it is judged."""
    playing = o.online or o.eval_frequency
    return o if playing else dataclasses.replace(o, weights=(), engine="auto")


def _of_fusion(o: BenchOptions, fusion: str) -> dict[str, Any]:
    """Options of `wsa learn`, less what a fusion has no use for."""
    taken = {
        field.name: getattr(o, field.name)
        for field in dataclasses.fields(LearnOptions)
        if field.name != "fusion"
    }
    made = NAMES.get(fusion, Fusion)
    if not made.conditioned:
        taken["context"] = MEAN_CONTEXT
    if not made.weighs:
        taken |= {"weight_entropy_coef": 0.0, "load_balance_coef": 0.0}
    if fusion == NATURE:
        own = {field.name: field.default for field in dataclasses.fields(LearnOptions)}
        taken |= {name: own[name] for name in (*FUSION, "hidden")}
    else:
        taken["parameters"] = 0
    return taken


def spelled(name: str, value: Any) -> str:
    """An option as it is written on the command line."""
    word = ",".join(value) if isinstance(value, list | tuple) else value
    return f"--{name.replace('_', '-')} {word}"


def _seed(word: str) -> int:
    if not word.isdecimal():
        raise UsageError("bad-option", f"--seeds {word}: give numbers, for example 1,2,3.")
    return int(word)


def _spelled(models: tuple[str, ...]) -> str:
    """Models as part of a folder's name."""
    whole = "+".join(models)
    plain = re.sub(r"[^\w.+-]", "_", whole, flags=re.ASCII)
    if plain == whole and len(plain) <= LONGEST:
        return plain or "pixels"
    return f"{plain[:LONGEST]}-{hashing.identity(whole)[:8]}"
