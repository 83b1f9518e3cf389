"""Games that a study plays; each set is played once, saved, and found again.

STUDY/games/{identity}.json    returns of the games of one network in one condition
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from wsa.learn.bench.grid import EvaluationSettings
from wsa.learn.envs.policies import Policy, RandomPolicy
from wsa.learn.envs.variants import Variant
from wsa.learn.evaluation.rollout import play
from wsa.learn.evaluation.scores import Interval, mean_score, stratified_interval
from wsa.learn.runs.config import RunConfig
from wsa.store.common import atomic_files, hashing
from wsa.store.format import records

Z_95 = 1.96  # Standard errors in a 95 % interval.
RANDOM = "random"  # Name of the random policy, in place of a network.
NO_BETTER_THAN_RANDOM = (
    "As trained, the run plays no better than a random policy, so removing something cannot lower its "
    "return. These games do not support any other conclusion."
)


class PlayedGames(msgspec.Struct, frozen=True):
    """Games of one network in one condition.

    Attributes:
        returns: Raw returns, by environment and in the order played.
        steps: Total number of steps.
        passes: Number of frames that went through a model.
    """

    returns: tuple[float, ...]
    steps: int
    passes: int

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def interval(self) -> Interval:
        """Mean return with its 95 % bootstrap interval over the games."""
        return stratified_interval(np.array(self.returns)[:, None], mean_score)


class Games:
    """Plays games that have not been played before, and saves them.

    Args:
        folder: The study's folder.
        evaluation: Settings of the games.
    """

    def __init__(self, folder: Path, evaluation: EvaluationSettings) -> None:
        self._folder, self._evaluation = folder / "games", evaluation

    def find(self, config: RunConfig, network: str, condition: str) -> PlayedGames | None:
        """Find saved games of this network in this condition; None if there are none."""
        path = self._path(config, network, condition)
        return (
            records.read_json(path.read_bytes(), PlayedGames, str(path)) if path.exists() else None
        )

    def play(
        self,
        config: RunConfig,
        network: str,
        condition: str,
        policy: Policy,
        embedder: Any = None,
        on_step: Callable[[int, int], None] = lambda steps, episodes: None,
        variant: Variant | None = None,
    ) -> PlayedGames:
        """Play games, and save them.

        Args:
            config: The run, whose game and protocol are used.
            network: First 12 hex digits of the checkpoint's hash.
            condition: Name of the intervention. Together with the network and the settings it
                identifies the games.
            policy: Policy that plays.
            embedder: Embedder that counts passes.
            on_step: Called with (steps played, games finished).
            variant: Variant to play instead of the game; the condition must name it.
        """
        settings = self._evaluation
        before = embedder.passes if embedder else 0
        episodes = play(
            config.game, config.protocol, policy, settings.episodes, settings.seed,
            num_envs=settings.num_envs, make_env=variant.make_env if variant else None,
            on_step=on_step,
        )  # fmt: skip
        played = PlayedGames(
            tuple(e.returned for e in episodes),
            sum(e.steps for e in episodes),
            embedder.passes - before if embedder else 0,
        )
        atomic_files.replace(self._path(config, network, condition), msgspec.json.encode(played))
        return played

    def random(self, config: RunConfig, variant: Variant | None = None) -> PlayedGames:
        """Games of a random policy in the same environments; played now if they are not saved."""
        policy = RandomPolicy(len(config.protocol.actions), self._evaluation.seed)
        condition = random_condition(variant)
        saved = self.find(config, RANDOM, condition)
        return saved or self.play(config, RANDOM, condition, policy, variant=variant)

    def _path(self, config: RunConfig, network: str, condition: str) -> Path:
        identity = [config.game, config.protocol, network, condition, self._evaluation]
        return self._folder / f"{hashing.identity(identity)[:24]}.json"


def condition_of(variant: Variant) -> str:
    """Name of the condition of playing a variant."""
    return f"variant {variant.spec}"


def random_condition(variant: Variant | None) -> str:
    """Name of the condition of playing a variant with a random policy, which ignores frames.

    If a variant only changes frames, the random policy's games are those of the unchanged game, and
    are not played again.
    """
    return "" if variant is None or variant.keeps_rules else condition_of(variant)


def env_seeds(evaluation: EvaluationSettings) -> list[int]:
    """Seed of each game's environment, in the order of `PlayedGames.returns`."""
    count = min(evaluation.num_envs, evaluation.episodes)
    return [evaluation.seed + i for i in range(count) for _ in range(i, evaluation.episodes, count)]


def evaluation_note(evaluation: EvaluationSettings) -> str:
    """Describe how games were played."""
    return (
        f"{evaluation.episodes} full games each (epsilon {evaluation.epsilon:g}, "
        f"{evaluation.num_envs} environments seeded from {evaluation.seed}, the same for all); raw "
        "returns; means with 95 % bootstrap intervals over the games"
    )


def better_than_random(summary: Mapping[str, Any]) -> bool:
    """Whether a run plays better than the random policy, by a 95 % interval of the difference.

    The interval uses Welch's standard error of the difference of two means.

    Args:
        summary: From `wsa.learn.runs.evaluate.Evaluation.summary`.
    """
    spreads = summary["return_std"] ** 2 + summary["random_return_std"] ** 2
    gain = summary["return_mean"] - summary["random_return_mean"]
    return bool(gain > Z_95 * math.sqrt(spreads / summary["episodes"]))


def difference(one: PlayedGames, other: PlayedGames, *, resamples: int = 2000) -> Interval:
    """Difference of two mean returns, with its 95 % bootstrap interval over the games."""
    generator = np.random.default_rng(0)
    means = [_means(generator, p.returns, resamples) for p in (one, other)]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return Interval(one.mean - other.mean, float(low), float(high))


def _means(generator: np.random.Generator, returns: Sequence[float], resamples: int) -> Any:
    values = np.array(returns)
    return values[generator.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
