"""A training run and its folder: what it was asked for, on which data, and what came of it.

runs/{game}__{exp_name}__{seed}__{time}/
    config.json      everything the run depends on, the data's segments included
    command.txt      the command line
    metrics.jsonl    scalars, one line each; TensorBoard events beside them
    checkpoints/     {updates}.safetensors; best.safetensors with --save-best
    eval.csv         episodes played by `wsa eval`
    lock             held while a process trains the run
    videos/          with --video
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import filelock
import msgspec
import numpy as np
import torch

from wsa.encode import checkpoint
from wsa.encode.live import LiveEncoder
from wsa.encode.lookup import read_spec
from wsa.encode.models import known_aliases
from wsa.encode.register import open_model
from wsa.learn import env as games
from wsa.learn.adapters import Inputs
from wsa.learn.bc import BCConfig
from wsa.learn.dqn import DQNConfig
from wsa.learn.evaluate import Episode, GreedyPolicy, Policy, RandomPolicy, play, write_csv
from wsa.learn.features import LiveStacks
from wsa.learn.heads import NetworkConfig, QNetwork, Torso
from wsa.learn.offline import Trained, train
from wsa.learn.warm import transfer
from wsa.store import keys, names, publish, records
from wsa.store.errors import ConflictError, MissingError, UsageError
from wsa.store.flat import FlatMap, materialise
from wsa.store.reader import Snapshot, take_snapshot
from wsa.store.records import Protocol
from wsa.store.root import open_store
from wsa.store.writer import command_line

EVAL_SEED = 10_000
MEAN_CONTEXT = "mean"


class RunConfig(msgspec.Struct, frozen=True):
    """What a run is.

    Attributes:
        store: The store's URL.
        game: ALE game id.
        models: Model keys.
        context: Key of the model that gives WSA's context, one of them or another; or `mean`.
        seed: Of initialisation and draws.
        segments: Segments of the data, so that a continued run sees what it began with.
        protocol: How the data was played, and evaluation is.
        network: What is trained.
        hyperparameters: As the learner takes them; which they are is the algorithm.
        init: Checkpoint of another run whose network this one begins from, or "".
    """

    store: str
    game: str
    models: tuple[str, ...]
    context: str
    seed: int
    segments: tuple[str, ...]
    protocol: Protocol
    network: NetworkConfig
    hyperparameters: DQNConfig | BCConfig
    init: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys of the models that the network reads: those fused, then one for the context alone."""
        alone = self.context != MEAN_CONTEXT and self.context not in self.models
        return (*self.models, self.context) if alone else self.models


def inputs_of(
    config: RunConfig, shapes: Sequence[tuple[int, ...]], windows: Sequence[int]
) -> Inputs:
    """What a run's network reads of a state.

    Args:
        config: The run.
        shapes: Of an embedding by each of `config.inputs`.
        windows: Frames that each of them looks at. One that looks at several gives one embedding
            for the whole state.
    """
    stacked = tuple(
        (
            config.network.frame_stack if window == 1 else 1,
            *(shape if len(shape) == 3 else (math.prod(shape),)),
        )
        for shape, window in zip(shapes, windows, strict=True)
    )
    context = None if config.context == MEAN_CONTEXT else config.inputs.index(config.context)
    return Inputs(stacked, context, len(config.models))


def choose_models(snapshot: Snapshot, game: str, asked: Sequence[str]) -> list[str]:
    """Model keys for what was asked, by alias or key; all that encoded the game if nothing was.

    Raises:
        MissingError: No frames, or a model has not encoded them all; says which command to run.
        UsageError: An alias fits several models.
    """
    url = snapshot.backend.url
    if game not in snapshot.games:
        raise MissingError(
            "no-frames",
            f"The store {url} has no frames of {game}. Collect some: wsa collect --game {game}",
        )
    ready = snapshot.models_of(game)
    if not asked:
        if not ready:
            raise MissingError(
                "not-encoded",
                f"No model has encoded {game} in {url}. Run: wsa encode --game {game} "
                "--models vit,resnet,clip",
            )
        return ready
    return list(dict.fromkeys(_choose(snapshot, game, ready, name) for name in asked))


def _choose(snapshot: Snapshot, game: str, ready: list[str], name: str) -> str:
    fitting = [key for key in ready if name in (key, names.key_alias(key))]
    if len(fitting) > 1:
        raise _ambiguous(name, fitting)
    if fitting:
        return fitting[0]
    known = [key for key in snapshot.models if name in (key, names.key_alias(key))]
    options = name
    if len(known) == 1:  # Spelled so that it makes this very model, not one of another output.
        spec = read_spec(snapshot, known[0])
        options = spec.alias if spec.alias in known_aliases() else f"timm:{spec.timm_name}"
        options = spec.timm_name if spec.source == "user" else options
        options += ":random" if spec.identity.random else ""
        options += f" --output {spec.identity.output}"
        if spec.source != "user" and spec.identity.preprocessing.geometry != "squash":
            options += f" --geometry {spec.identity.preprocessing.geometry}"
        if spec.identity.precision != "fp32":
            options += f" --precision {spec.identity.precision}"
        if spec.source.startswith("file:"):
            options += f" --weights {spec.alias}={spec.source.removeprefix('file:')}"
    raise MissingError(
        "not-encoded",
        f"{name} has not encoded every segment of {game} in {snapshot.backend.url}. Run: "
        f"wsa encode --game {game} --models {options}",
    )


def _ambiguous(name: str, fitting: list[str]) -> UsageError:
    return UsageError(
        "bad-option",
        f"{name} may be any of {', '.join(fitting)}; give the whole key. 'wsa models' shows how "
        "they differ.",
    )


def make_config(
    snapshot: Snapshot,
    game: str,
    models: Sequence[str],
    context: str,
    seed: int,
    hyperparameters: DQNConfig | BCConfig,
    protocol: str = "",
    network: NetworkConfig | None = None,
    init: str = "",
) -> RunConfig:
    """Settle what a run is.

    Raises:
        MissingError: No frames, or a model has not encoded them.
        UsageError: The fusion cannot take the models, an alias fits several of them, or the game
            was played under several protocols and none of them is named: their scores must not be
            mixed.
    """
    games.check_game(game)
    chosen = choose_models(snapshot, game, models)
    if context != MEAN_CONTEXT:
        fitting = [key for key in chosen if context in (key, names.key_alias(key))]
        if not fitting:  # A model that gives the context alone.
            fitting = choose_models(snapshot, game, [context])
        if len(fitting) > 1:
            raise _ambiguous(f"--context {context}", fitting)
        context = fitting[0]
    segments = [m for m in snapshot.segments(game) if protocol in ("", m.protocol.name)]
    protocols = {meta.protocol for meta in segments}
    if len(protocols) != 1:
        played = ", ".join(sorted({m.protocol.name for m in snapshot.segments(game)}))
        if len({p.name for p in protocols}) == 1:
            raise UsageError(
                "bad-option",
                f"{game} was played in {len(protocols)} ways that are all called "
                f"{protocols.pop().name}; 'wsa show {game}' shows how they differ. Data and "
                "scores of two must not be mixed: collect each into a store of its own.",
            )
        raise UsageError(
            "bad-option",
            f"{game} was played under these protocols: {played}. Data and scores of two must not "
            "be mixed; choose one with --protocol.",
        )
    config = RunConfig(
        store=snapshot.backend.url,
        game=game,
        models=tuple(chosen),
        context=context,
        seed=seed,
        segments=tuple(meta.segment for meta in segments),
        protocol=protocols.pop(),
        network=network or NetworkConfig(),
        hyperparameters=hyperparameters,
        init=init,
    )
    metas = {meta.model: meta for meta in snapshot.embeddings(game)}
    shapes = [metas[key].shape[1:] for key in config.inputs]
    windows = [metas[key].window for key in config.inputs]
    with torch.device("meta"):  # Shapes alone: whether the fusion takes them.
        Torso(inputs_of(config, shapes, windows), config.network)
    return config


def new_folder(runs: Path, config: RunConfig, exp_name: str) -> Path:
    """`runs/{game}__{exp_name}__{seed}__{time}`."""
    return runs / f"{config.game}__{exp_name}__{config.seed}__{int(time.time())}"


def begin(folder: Path, config: RunConfig) -> None:
    """Start a run in `folder`, or make sure that the run there is this one.

    Raises:
        ConflictError: Another run is there.
    """
    path = folder / "config.json"
    if path.exists():
        if read_config(folder) != config:
            raise ConflictError(
                "run-exists",
                f"{folder} holds another run. Give another --run-dir, or continue that run as it "
                f"was begun: wsa learn --resume {folder}",
            )
        return
    publish.replace(path, msgspec.json.format(keys.canonical(config)))
    publish.replace(folder / "command.txt", (command_line() + "\n").encode())


def read_config(folder: Path) -> RunConfig:
    """What the run in `folder` is.

    Raises:
        MissingError: There is no run.
    """
    path = folder / "config.json"
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(
            "no-run", f"{folder} is not the folder of a run: it has no config.json."
        ) from None
    return records.read_json(data, RunConfig, str(path))


def open_data(config: RunConfig) -> tuple[Snapshot, FlatMap]:
    """The run's data: its segments only, materialised.

    Raises:
        MissingError: The store has lost some of them.
        DamagedError: Stored bytes are not what was committed.
    """
    whole = take_snapshot(open_store(config.store))
    present = {
        m.segment: names.segment_path(m.game, m.segment) for m in whole.segments(config.game)
    }
    lost = len(set(config.segments) - present.keys())
    if lost:
        raise MissingError(
            "no-frames",
            f"The store {config.store} lacks {lost} of the {len(config.segments)} segments of "
            f"{config.game} that this run was begun with. Bring them back (the same 'wsa collect' "
            "and 'wsa encode' make the same ones; 'wsa list' shows what is there), or begin "
            "another run.",
        )
    others = {present[segment] for segment in present.keys() - set(config.segments)}
    snapshot = Snapshot(
        whole.backend, {path: c for path, c in whole.commits.items() if path not in others}
    )
    return snapshot, materialise(snapshot, config.game, config.inputs)


def learn(
    folder: Path,
    config: RunConfig,
    device: str,
    on_update: Callable[[int, dict[str, float]], None] = lambda step, scalars: None,
    *,
    compiled: bool = False,
) -> Trained:
    """Train a run, from its beginning or its newest checkpoint.

    Raises:
        ConflictError: Another process is training it.
        MissingError: Data of the run is gone.
        DamagedError: The newest checkpoint or the data is damaged.
    """
    _, flat = open_data(config)
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            return train(
                config.hyperparameters,
                config.network,
                flat,
                inputs_of(config, flat.shapes, flat.windows),
                len(config.protocol.actions),
                config.seed,
                folder,
                device,
                warm=functools.partial(_warm, config),
                compiled=compiled,
                on_update=on_update,
            )
    except filelock.Timeout:
        raise ConflictError(
            "run-exists",
            f"Another process is training {folder}. Wait for it, or give another --run-dir.",
        ) from None


def _warm(config: RunConfig, network: QNetwork) -> None:
    """Let a network begin as `config.init` says."""
    if config.init:
        path = Path(config.init)
        before = read_config(path.parent.parent).inputs
        transfer(network, network.torso, config.inputs, path, before)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation saw.

    Attributes:
        updates: Updates the network had had.
        which: Whether it is the run's final network, or the best on held-out episodes.
        episodes: Games played by the run's network.
        random: Games played by a random policy under the same protocol and seeds.
        live: The live encoder, with its counts.
        seconds: Wall time of the network's games.
    """

    updates: int
    which: str
    episodes: tuple[Episode, ...]
    random: tuple[Episode, ...]
    live: LiveEncoder
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The evaluation as JSON values; returns are raw."""
        mean, spread = mean_return(self.episodes)
        random_mean, random_spread = mean_return(self.random)
        return {
            "updates": self.updates,
            "checkpoint": self.which,
            "episodes": len(self.episodes),
            "return_mean": mean,
            "return_std": spread,
            "random_return_mean": random_mean,
            "random_return_std": random_spread,
            "frames": self.live.frames,
            "found_in_store": self.live.found,
            "seen_before_live": self.live.remembered,
            "hit_rate": round(self.live.hit_rate, 4),
            "backbone_passes": self.live.passes,
            "seconds": self.seconds,
        }


def evaluate(
    folder: Path,
    episodes: int,
    *,
    epsilon: float = 0.001,
    seed: int = EVAL_SEED,
    weights: dict[str, str] | None = None,
    video: bool = False,
    device: str = "cpu",
    engine: str = "auto",
    num_envs: int = 4,
    which: Literal["final", "best"] = "final",
    on_step: Callable[[int, int], None] = lambda steps, episodes: None,
) -> Evaluation:
    """Play a run's network with live embeddings, and write `eval.csv`.

    Args:
        folder: The run's folder.
        episodes: Games to play.
        epsilon: Probability of a random action.
        seed: Of the environments; apart from training's.
        weights: Weights files by alias, where this machine keeps them elsewhere.
        video: Whether to film the first environment.
        device: Where to run the models.
        engine: What runs them; `auto` is what filled the store.
        num_envs: Environments side by side.
        which: The newest checkpoint, or the one that did best on held-out episodes.
        on_step: Called with (steps played, episodes finished).

    Raises:
        UsageError: A number is out of range.
        MissingError: No run, no checkpoint, no weights, or data that is gone.
        ConflictError: A model does not give here what it gave when the store was filled.
        DamagedError: The newest checkpoint or the data is damaged.
    """
    if episodes < 1 or num_envs < 1 or not 0 <= epsilon <= 1:
        raise UsageError(
            "bad-option",
            "--episodes and --num-envs must be at least 1, --epsilon from 0 to 1.",
        )
    config = read_config(folder)
    snapshot, flat = open_data(config)
    actions = len(config.protocol.actions)
    network = QNetwork(inputs_of(config, flat.shapes, flat.windows), actions, config.network)
    checkpoints = folder / "checkpoints"
    path = checkpoint.latest(checkpoints) if which == "final" else checkpoint.best(checkpoints)
    updates, _ = checkpoint.load(path, {"online": network})
    encoders = [
        open_model(snapshot, key, weights=weights, device=device, engine=engine)
        for key in config.inputs
    ]
    live = LiveEncoder(flat, encoders)
    stacks = LiveStacks(live, num_envs, config.network.frame_stack)
    greedy = GreedyPolicy(network.to(torch.device(device)), stacks, actions, epsilon, seed)

    def run(policy: Policy, films: Path | None) -> list[Episode]:
        return play(
            config.game,
            config.protocol,
            policy,
            episodes,
            seed,
            num_envs=num_envs,
            video=films,
            on_step=on_step,
        )

    started = time.perf_counter()
    played = run(greedy, folder / "videos" if video else None)
    seconds = time.perf_counter() - started
    random = run(RandomPolicy(actions, seed), None)
    name = "run" if which == "final" else "best"
    write_csv(folder / "eval.csv", updates, epsilon, {name: played, "random": random})
    return Evaluation(updates, which, tuple(played), tuple(random), live, seconds)


def mean_return(episodes: Sequence[Episode]) -> tuple[float, float]:
    """Mean and standard deviation of raw returns."""
    returns = np.array([episode.returned for episode in episodes])
    return float(returns.mean()), float(returns.std())
