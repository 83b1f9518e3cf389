"""Games that a study plays, each set of them once: what was played is kept, and found again.

STUDY/games/{identity}.json    returns of the games of one network in one condition
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from wsa.learn.bench.grid import Judging
from wsa.learn.envs.policies import Policy, RandomPolicy
from wsa.learn.envs.variants import Variant
from wsa.learn.evaluation.rollout import play
from wsa.learn.evaluation.scores import Interval, mean_score, stratified_interval
from wsa.learn.runs.config import RunConfig
from wsa.store.common import atomic_files, hashing
from wsa.store.format import records

SURE = 1.96  # Standard errors of a 95 % interval.
RANDOM = "random"  # Who plays, where it is no network.
NOTHING_TO_LOSE = (
    "As it was trained the run plays no better than chance, so nothing that you take away "
    "can lower its return. Conclude nothing else from these games."
)


class Played(msgspec.Struct, frozen=True):
    """Games of one network in one condition.

    Attributes:
        returns: Raw, by environment and in the order played.
        steps: Of all of them.
        passes: Frames that went through a model for them.
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
    """Plays what has not been played in this way, and remembers it.

    Args:
        folder: The study's.
        judging: How games are played.
    """

    def __init__(self, folder: Path, judging: Judging) -> None:
        self._folder, self._judging = folder / "games", judging

    def find(self, config: RunConfig, network: str, condition: str) -> Played | None:
        """Games that were played in this way."""
        path = self._path(config, network, condition)
        return records.read_json(path.read_bytes(), Played, str(path)) if path.exists() else None

    def play(
        self,
        config: RunConfig,
        network: str,
        condition: str,
        policy: Policy,
        embedder: Any = None,
        on_step: Callable[[int, int], None] = lambda steps, episodes: None,
        variant: Variant | None = None,
    ) -> Played:
        """Play, and remember.

        Args:
            config: The run, whose game and protocol are played.
            network: 12 hex digits of the checkpoint.
            condition: What is done to it; with the network and how games are played it tells them
                apart.
            policy: Who plays.
            embedder: What counts its passes.
            on_step: Called with (steps played, games finished).
            variant: What is played in the game's place; the condition must name it.
        """
        how = self._judging
        before = embedder.passes if embedder else 0
        episodes = play(
            config.game, config.protocol, policy, how.episodes, how.seed, num_envs=how.num_envs,
            make_env=variant.make_env if variant else None, on_step=on_step,
        )  # fmt: skip
        played = Played(
            tuple(e.returned for e in episodes),
            sum(e.steps for e in episodes),
            embedder.passes - before if embedder else 0,
        )
        atomic_files.replace(self._path(config, network, condition), msgspec.json.encode(played))
        return played

    def random(self, config: RunConfig, variant: Variant | None = None) -> Played:
        """Games of a random policy, in the same environments; played if they were not."""
        policy = RandomPolicy(len(config.protocol.actions), self._judging.seed)
        condition = random_condition(variant)
        found = self.find(config, RANDOM, condition)
        return found or self.play(config, RANDOM, condition, policy, variant=variant)

    def _path(self, config: RunConfig, network: str, condition: str) -> Path:
        of = [config.game, config.protocol, network, condition, self._judging]
        return self._folder / f"{hashing.identity(of)[:24]}.json"


def condition_of(variant: Variant) -> str:
    """The condition that a variant is."""
    return f"variant {variant.spec}"


def random_condition(variant: Variant | None) -> str:
    """The condition that a variant is for a random policy, which does not look.

    Where frames alone differ, its games are those of the game as it is, and are not played again.
    """
    return "" if variant is None or variant.keeps_rules else condition_of(variant)


def seeds(how: Judging) -> list[int]:
    """Seed of the environment that played each game, in the order of `Played.returns`."""
    count = min(how.num_envs, how.episodes)
    return [how.seed + i for i in range(count) for _ in range(i, how.episodes, count)]


def judged(how: Judging) -> str:
    """How games were played, in words."""
    return (
        f"{how.episodes} full games each (epsilon {how.epsilon:g}, {how.num_envs} environments seeded "
        f"from {how.seed}, the same for all), raw returns, means with 95 % bootstrap interval over "
        "the games"
    )


def better_than_random(summary: Mapping[str, Any]) -> bool:
    """Whether a run plays better than the random policy beside it, by 95 % of the difference.

    Welch's standard error of the difference of two means.

    Args:
        summary: As `wsa.learn.runs.evaluate.Evaluation.summary`.
    """
    spreads = summary["return_std"] ** 2 + summary["random_return_std"] ** 2
    gain = summary["return_mean"] - summary["random_return_mean"]
    return bool(gain > SURE * math.sqrt(spreads / summary["episodes"]))


def difference(one: Played, other: Played, *, resamples: int = 2000) -> Interval:
    """Mean return of one less the other's, with its 95 % bootstrap interval over the games."""
    generator = np.random.default_rng(0)
    means = [_means(generator, p.returns, resamples) for p in (one, other)]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return Interval(one.mean - other.mean, float(low), float(high))


def _means(generator: np.random.Generator, returns: Sequence[float], resamples: int) -> Any:
    values = np.array(returns)
    return values[generator.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
