"""A training run and its folder: what it was asked for, on which data, and what came of it.

runs/{game}__{exp_name}__{seed}__{time}/
    config.json      everything the run depends on, the data's segments included
    command.txt      the command line
    metrics.jsonl    scalars, one line each; TensorBoard events beside them
    checkpoints/     {updates}.safetensors
    eval.csv         episodes played by `wsa eval`
    videos/          with --video
"""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch

from wsa.encode.live import LiveEncoder
from wsa.encode.register import open_model
from wsa.learn import checkpoint, dqn
from wsa.learn import env as games
from wsa.learn.evaluate import Episode, GreedyPolicy, Policy, RandomPolicy, play
from wsa.learn.features import LiveStacks
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
        context: Key of the model that gives WSA's context, or `mean`.
        fusion, algo: Which.
        seed: Of initialisation and draws.
        segments: Segments of the data, so that a continued run sees what it began with.
        protocol: How the data was played, and evaluation is.
        hyperparameters: As the learner takes them.
    """

    store: str
    game: str
    models: tuple[str, ...]
    context: str
    fusion: Literal["wsa"]
    algo: Literal["dqn"]
    seed: int
    segments: tuple[str, ...]
    protocol: Protocol
    hyperparameters: dqn.DQNConfig


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
    chosen = []
    for name in asked:
        fitting = [key for key in ready if name in (key, names.key_alias(key))]
        if not fitting:
            raise MissingError(
                "not-encoded",
                f"{name} has not encoded every segment of {game} in {url}. Run: wsa encode --game "
                f"{game} --models {name}",
            )
        if len(fitting) > 1:
            raise UsageError(
                "bad-option",
                f"{name} may be any of {', '.join(fitting)}; give the whole key. 'wsa models' "
                "shows how they differ.",
            )
        chosen += fitting
    return chosen


def make_config(
    snapshot: Snapshot,
    game: str,
    models: Sequence[str],
    context: str,
    seed: int,
    hyperparameters: dqn.DQNConfig,
    protocol: str = "",
) -> RunConfig:
    """Settle what a run is.

    Raises:
        MissingError: No frames, or a model has not encoded them.
        UsageError: The context is none of the models, or the game was played under several
            protocols and none of them is named: their scores must not be mixed.
    """
    games.check_game(game)
    chosen = choose_models(snapshot, game, models)
    if context != MEAN_CONTEXT:
        fitting = [key for key in chosen if context in (key, names.key_alias(key))]
        if not fitting:
            aliases = ", ".join(names.key_alias(key) for key in chosen)
            raise UsageError(
                "bad-option", f"--context {context}: choose from {aliases}, or {MEAN_CONTEXT}."
            )
        context = fitting[0]
    segments = [m for m in snapshot.segments(game) if protocol in ("", m.protocol.name)]
    protocols = {meta.protocol for meta in segments}
    if len(protocols) != 1:
        played = ", ".join(sorted({m.protocol.name for m in snapshot.segments(game)}))
        raise UsageError(
            "bad-option",
            f"{game} was played under these protocols: {played}. Data and scores of two must not "
            "be mixed; choose one with --protocol.",
        )
    return RunConfig(
        store=snapshot.backend.url,
        game=game,
        models=tuple(chosen),
        context=context,
        fusion="wsa",
        algo="dqn",
        seed=seed,
        segments=tuple(meta.segment for meta in segments),
        protocol=protocols.pop(),
        hyperparameters=hyperparameters,
    )


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
    """The run's data: its segments only, materialised."""
    whole = take_snapshot(open_store(config.store))
    wanted = set(config.segments)
    metas = {
        names.segment_path(m.game, m.segment)
        for m in whole.segments(config.game)
        if m.segment not in wanted
    }
    snapshot = Snapshot(
        whole.backend, {path: c for path, c in whole.commits.items() if path not in metas}
    )
    return snapshot, materialise(snapshot, config.game, config.models)


def learn(
    folder: Path,
    config: RunConfig,
    device: str,
    on_update: Callable[[int, dict[str, float]], None] = lambda step, scalars: None,
) -> dqn.Trained:
    """Train a run, from its beginning or its newest checkpoint."""
    _, flat = open_data(config)
    return dqn.train(
        config.hyperparameters,
        flat,
        len(config.protocol.actions),
        _context(config),
        config.seed,
        folder,
        device,
        on_update,
    )


def _context(config: RunConfig) -> int | None:
    return None if config.context == MEAN_CONTEXT else config.models.index(config.context)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation saw.

    Attributes:
        updates: Updates the network had had.
        episodes: Games played by the run's network.
        random: Games played by a random policy under the same protocol and seeds.
        live: The live encoder, with its counts.
        seconds: Wall time of the network's games.
    """

    updates: int
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
    num_envs: int = 4,
    on_step: Callable[[int, int], None] = lambda steps, episodes: None,
) -> Evaluation:
    """Play a run's newest checkpoint with live embeddings, and write `eval.csv`.

    Args:
        folder: The run's folder.
        episodes: Games to play.
        epsilon: Probability of a random action.
        seed: Of the environments; apart from training's.
        weights: Weights files by alias, where this machine keeps them elsewhere.
        video: Whether to film the first environment.
        device: Where to run the models.
        num_envs: Environments side by side.
        on_step: Called with (steps played, episodes finished).
    """
    if episodes < 1 or not 0 <= epsilon <= 1:
        raise UsageError("bad-option", "--episodes must be at least 1, --epsilon from 0 to 1.")
    config = read_config(folder)
    snapshot, flat = open_data(config)
    actions = len(config.protocol.actions)
    widths = [columns.stop - columns.start for columns in flat.columns]
    network = dqn.make_network(config.hyperparameters, widths, actions, _context(config))
    updates, _ = checkpoint.load(checkpoint.latest(folder / "checkpoints"), {"online": network})
    encoders = [open_model(snapshot, key, weights=weights, device=device) for key in config.models]
    live = LiveEncoder(flat, encoders)
    stacks = LiveStacks(live, num_envs, config.hyperparameters.frame_stack)
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
    _write_csv(folder / "eval.csv", updates, epsilon, played, random)
    return Evaluation(updates, tuple(played), tuple(random), live, seconds)


def _write_csv(
    path: Path, updates: int, epsilon: float, played: list[Episode], random: list[Episode]
) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(
                ["updates", "policy", "epsilon", "env", "seed", "return", "steps", "truncated"]
            )
        for policy, episodes in (("run", played), ("random", random)):
            for e in episodes:
                writer.writerow(
                    [updates, policy, epsilon, e.env, e.seed, e.returned, e.steps, e.truncated]
                )


def mean_return(episodes: Sequence[Episode]) -> tuple[float, float]:
    """Mean and standard deviation of raw returns."""
    returns = np.array([episode.returned for episode in episodes])
    return float(returns.mean()), float(returns.std())
