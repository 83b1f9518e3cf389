"""What a run is worth: games played by its network, and by a random policy beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsa.learn.envs.policies import RandomPolicy
from wsa.learn.envs.variants import parse_variant
from wsa.learn.evaluation.attention_log import WeightLog
from wsa.learn.evaluation.greedy_policy import GreedyPolicy
from wsa.learn.evaluation.rollout import (
    EPSILON,
    EVAL_SEED,
    NUM_ENVS,
    Episode,
    Watcher,
    play,
    write_csv,
)
from wsa.learn.evaluation.scores import (
    Interval,
    human_normalised,
    mean_score,
    stratified_interval,
)
from wsa.learn.evaluation.video import Films, labels
from wsa.learn.networks.parameters import count_parameters
from wsa.learn.runs.config import read_config
from wsa.learn.runs.player import Player, open_player
from wsa.store.common import atomic_files
from wsa.store.common.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation saw.

    Attributes:
        game: ALE game id.
        updates: Updates the network had had; of an online run, steps.
        which: Whether it is the run's final network, or the best on held-out episodes.
        episodes: Games played by the run's network.
        random: Games played by a random policy under the same protocol and seeds.
        live: The live encoder, or grey pixels, with its counts.
        seconds: Wall time of the network's games.
        present: Names of the models that were fused.
        parameters: Numbers that the network learned, those of models that were left out among them.
        variant: Of the game, as a SPEC says it; "" if it was the game as it is.
        weighed: Whether the fusion's weights were kept.
    """

    game: str
    updates: int
    which: str
    episodes: tuple[Episode, ...]
    random: tuple[Episode, ...]
    live: Any
    seconds: float
    present: tuple[str, ...]
    parameters: int
    variant: str = ""
    weighed: bool = False

    def summary(self) -> dict[str, Any]:
        """The evaluation as JSON values.

        Returns are raw; low and high are the ends of a 95 % bootstrap interval of their mean. Human-
        normalised scores are None for a game without a published human score.
        """
        mean, spread = mean_return(self.episodes)
        random_mean, random_spread = mean_return(self.random)
        interval = mean_interval(self.episodes)
        return {
            "updates": self.updates,
            "checkpoint": self.which,
            "present": self.present,
            "variant": self.variant or None,
            "parameters": self.parameters,
            "episodes": len(self.episodes),
            "return_mean": mean,
            "return_std": spread,
            "return_low": interval.low,
            "return_high": interval.high,
            "human_normalised": human_normalised(self.game, mean),
            "random_return_mean": random_mean,
            "random_return_std": random_spread,
            "random_human_normalised": human_normalised(self.game, random_mean),
            "frames": self.live.frames,
            "found_in_store": self.live.found,
            "seen_before_live": self.live.remembered,
            "hit_rate": round(self.live.hit_rate, 4),
            "backbone_passes": self.live.passes,
            "seconds": self.seconds,
        }


def evaluate_run(
    folder: Path,
    episodes: int,
    *,
    epsilon: float = EPSILON,
    seed: int = EVAL_SEED,
    store: str = "",
    weights: dict[str, str] | None = None,
    video: bool = False,
    device: str = "cpu",
    engine: str = "auto",
    threads: int | None = None,
    num_envs: int = NUM_ENVS,
    which: Literal["final", "best"] = "final",
    without: Sequence[str] = (),
    only: Sequence[str] = (),
    variant: str = "",
    out: Path | None = None,
    on_step: Callable[[int, int], None] = lambda steps, episodes: None,
) -> Evaluation:
    """Play a run's network with live embeddings; add to `eval.csv`, and write `eval_weights.npz`.

    Args:
        folder: The run's folder.
        episodes: Games to play.
        epsilon: Probability of a random action.
        seed: Of the environments; apart from training's.
        store: Where the run's store is now, if it has moved; as `find_store` takes it.
        weights: Weights files by alias, where this machine keeps them elsewhere.
        video: Whether to film the first environment, with the fusion's weights if it has any.
        device: Where to run the models.
        engine: What runs them; `auto` is what filled the store.
        threads: Cores that embed side by side; as many as torch uses if not given.
        num_envs: Environments side by side.
        which: The newest checkpoint, or the one that did best on held-out episodes.
        without: Models to leave out, which are then not run at all.
        only: Models to keep, instead.
        variant: Of the game; a SPEC, see `wsa.learn.envs.variants`.
        out: Folder for the results; the run's own if not given.
        on_step: Called with (steps played, episodes finished).

    Raises:
        StorageError: The results cannot be written; nothing has been played.
        UsageError: A number is out of range, the run cannot do without these models, or the game has no
            such variant.
        MissingError: No run, no checkpoint, no weights, or data that is gone.
        ConflictError: A model does not give here what it gave when the store was filled.
        DamagedError: The newest checkpoint or the data is damaged.
    """
    if episodes < 1 or num_envs < 1 or not 0 <= epsilon <= 1:
        raise UsageError(
            "bad-option",
            "--episodes and --num-envs must be at least 1, --epsilon from 0 to 1.",
        )
    # Before anything is opened, which takes long.
    results = out or folder
    read_config(folder)
    _require_writable(results)
    changed = parse_variant(variant, read_config(folder).game) if variant else None
    player = open_player(
        folder,
        which=which,
        store=store,
        without=without,
        only=only,
        weights=weights,
        device=device,
        engine=engine,
        threads=threads,
    )
    config = player.config
    actions = len(config.protocol.actions)
    greedy = player.policy(num_envs, epsilon, seed)

    make_env = changed.make_env if changed else None
    how: dict[str, Any] = {"num_envs": num_envs, "make_env": make_env, "on_step": on_step}
    started = time.perf_counter()
    with _watching(results, player, greedy, video) as watchers:
        played = play(
            config.game, config.protocol, greedy, episodes, seed, watchers=watchers, **how
        )
    seconds = time.perf_counter() - started
    random = play(config.game, config.protocol, RandomPolicy(actions, seed), episodes, seed, **how)
    name = "run" if which == "final" else "best"
    games = {name: played, "random": random}
    present = tuple(labels(player.present))
    spec = changed.spec if changed else ""
    csv = results / "eval.csv"
    write_csv(csv, player.updates, player.digest, epsilon, games, present, spec)
    return Evaluation(
        config.game,
        player.updates,
        which,
        tuple(played),
        tuple(random),
        player.embedder,
        seconds,
        present,
        count_parameters(player.network).total,
        spec,
        player.weighs,
    )


def _require_writable(folder: Path) -> None:
    """Make sure that results can be written, before games are played.

    Raises:
        StorageError: They cannot.
    """
    with atomic_files.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


@contextlib.contextmanager
def _watching(
    folder: Path, player: Player, policy: GreedyPolicy, video: bool
) -> Iterator[list[Watcher]]:
    """What looks on while a run's network plays."""
    weighed = list(player.config.models) if player.weighs else []
    watchers: list[Watcher] = []
    with contextlib.ExitStack() as stack:
        if weighed:
            log = WeightLog(folder, weighed, lambda: policy.weights)
            watchers.append(stack.enter_context(log))
        if video:
            actions = player.config.protocol.actions
            films = Films(folder / "videos", weighed, lambda: policy.weights, actions)
            watchers.append(stack.enter_context(films))
        yield watchers


def mean_return(episodes: Sequence[Episode]) -> tuple[float, float]:
    """Mean and standard deviation of raw returns."""
    returns = np.array([episode.returned for episode in episodes])
    return float(returns.mean()), float(returns.std())


def mean_interval(episodes: Sequence[Episode]) -> Interval:
    """Mean of raw returns with its 95 % bootstrap interval over the episodes."""
    returns = np.array([[episode.returned] for episode in episodes])
    return stratified_interval(returns, mean_score)
