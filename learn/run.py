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
from wsa.encode.register import open_model
from wsa.learn.config import RunConfig, inputs_of
from wsa.learn.evaluate import Episode, GreedyPolicy, Policy, RandomPolicy, play, write_csv
from wsa.learn.features import LiveStacks
from wsa.learn.heads import QNetwork
from wsa.learn.offline import Trained, train
from wsa.learn.warm import transfer
from wsa.store import keys, names, publish, records
from wsa.store.errors import ConflictError, MissingError, UsageError
from wsa.store.flat import FlatMap, materialise
from wsa.store.reader import Snapshot, take_snapshot
from wsa.store.root import open_store
from wsa.store.writer import command_line

EVAL_SEED = 10_000


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
                inputs_of(config, flat.windows, flat.shapes),
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
    inputs = inputs_of(config, flat.windows, flat.shapes)
    network = QNetwork(inputs, actions, config.network)
    checkpoints = folder / "checkpoints"
    path = checkpoint.latest(checkpoints) if which == "final" else checkpoint.best(checkpoints)
    updates, _ = checkpoint.load(path, {"online": network})
    encoders = [
        open_model(snapshot, key, weights=weights, device=device, engine=engine)
        for key in config.inputs
    ]
    live = LiveEncoder(flat, encoders)
    stacks = LiveStacks(live, num_envs, inputs.depth)
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
