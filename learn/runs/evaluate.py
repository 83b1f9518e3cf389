"""Evaluate a run: full games played by its network, and by a random policy for comparison."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.envs.variants import parse_variant
from wsa.learn.evaluation.attention_log import WeightLog
from wsa.learn.evaluation.episodes import (
    Episode,
    Watcher,
    play,
    write_csv,
)
from wsa.learn.evaluation.greedy_policy import GreedyPolicy
from wsa.learn.evaluation.random_games import RandomGames
from wsa.learn.evaluation.scores import (
    Interval,
    human_normalized,
    mean_score,
    stratified_interval,
)
from wsa.learn.evaluation.video import Films
from wsa.learn.networks.parameters import count_parameters
from wsa.learn.runs.config import RunConfig, read_config
from wsa.learn.runs.player import Player, open_player
from wsa.store.common import atomic_files, names

OnStep = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation: games of the network, and of a random policy with the same seeds.

    `which` is the final network, or the best on held-out episodes; `variant` is a SPEC, "" for the
    unchanged game; `seconds` is the wall time of the network's games.
    """

    player: Player
    which: str
    variant: str
    episodes: list[Episode]
    random: list[Episode]
    seconds: float

    @property
    def live(self) -> Any:
        """The live encoder, or grayscale pixels, with its counts."""
        return self.player.embedder

    def summary(self) -> dict[str, Any]:
        """The evaluation as JSON values.

        Returns are raw. `return_low` and `return_high` are the ends of a 95% bootstrap interval of
        the mean, None for a single game. Human-normalized scores are None for a game without a
        published human score.
        """
        game = self.player.config.game
        mean, spread = mean_return(self.episodes)
        random_mean, random_spread = mean_return(self.random)
        interval = mean_interval(self.episodes)
        return {
            "trained": self.player.trained,
            "unit": self.player.config.unit,
            "checkpoint": self.which,
            "present": tuple(names.labels(self.player.present)),
            "variant": self.variant or None,
            **count_parameters(self.player.network).named(),
            "episodes": len(self.episodes),
            "return_mean": mean,
            "return_std": spread,
            "return_low": interval.low,
            "return_high": interval.high,
            "human_normalized": human_normalized(game, mean),
            "random_return_mean": random_mean,
            "random_return_std": random_spread,
            "random_human_normalized": human_normalized(game, random_mean),
            "frames": self.live.frames,
            "found_in_store": self.live.found,
            "seen_before_live": self.live.remembered,
            "hit_rate": round(self.live.hit_rate, 4),
            "backbone_passes": self.live.passes,
            "seconds": self.seconds,
        }


def evaluate_run(
    folder: Path,
    request: EvaluationRequest,
    *,
    store: str = "",
    weights: dict[str, str] | None = None,
    video: bool = False,
    threads: int | None = None,
    out: Path | None = None,
    on_step: OnStep = lambda player, steps, episodes: None,
) -> Evaluation:
    """Play a run's network on live embeddings; append to `eval.csv`, and write `eval_weights.npz`.

    Args:
        request: Which network plays, and how.
        store: Path or URL of the run's store if it has moved; see `find_store`.
        weights: Paths of weights files by alias, if this machine keeps them elsewhere.
        video: Whether to record the first environment, with the fusion's weights if it has any.
        threads: Number of threads that embed in parallel. By default, as many as torch uses.
        out: Folder for the results; by default, the run's own.
        on_step: Called with the player, `run` and then `random`, its steps, and its finished games.

    Raises:
        StorageError: If the results cannot be written; raised before the first game.
        UsageError: If the run needs the models that are left out, or the game has no such variant.
        MissingError: If the run, its checkpoint, the weights, or the data are missing.
        ConflictError: If a model's embeddings differ from those in the store.
        DamagedError: If the newest checkpoint or the data is damaged.
    """
    # Check before opening models, which is slow.
    results = out or folder
    atomic_files.require_writable(results)
    variant = parse_variant(request.variant, read_config(folder).game) if request.variant else None
    player = open_player(folder, request, store=store, weights=weights, threads=threads)
    config = player.config
    greedy = player.policy(request.num_envs, request.epsilon, request.seed)
    started = time.perf_counter()
    with _watching(results, player, greedy, video) as watchers:
        played = play(
            config.game,
            config.protocol,
            greedy,
            request,
            variant=variant,
            watchers=watchers,
            on_step=functools.partial(on_step, "run"),
        )
    seconds = time.perf_counter() - started
    random = random_games(config, request).play(functools.partial(on_step, "random"))
    name = "run" if request.which == "final" else "best"
    games = {name: played, "random": random}
    present = names.labels(player.present)
    spec = variant.spec if variant else ""
    csv = results / "eval.csv"
    write_csv(csv, player.trained, player.digest, request.epsilon, games, present, spec)
    return Evaluation(player, request.which, spec, played, random, seconds)


def random_games(config: RunConfig, request: EvaluationRequest) -> RandomGames:
    """The random policy's games with which an evaluation is compared.

    Raises:
        UsageError: If the game has no such variant.
    """
    variant = parse_variant(request.variant, config.game) if request.variant else None
    return RandomGames(config.game, config.protocol, request, variant)


@contextlib.contextmanager
def _watching(
    folder: Path, player: Player, policy: GreedyPolicy, video: bool
) -> Iterator[list[Watcher]]:
    """Open the logs and videos that follow the games of a run's network."""
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
    """Mean of raw returns with its 95% bootstrap interval over the episodes, if several."""
    returns = np.array([[episode.returned] for episode in episodes])
    return stratified_interval(returns, mean_score)
