"""Games that a study plays; each set is played once, saved, and found again.

STUDY/games/{identity}.json    returns of the games of one network in one condition
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.envs.variants import Variant
from wsa.learn.evaluation.episodes import Episode, play
from wsa.learn.evaluation.random_games import RandomGames
from wsa.learn.evaluation.scores import (
    Interval,
    mean_score,
    percentile_interval,
    resample,
    stratified_interval,
)
from wsa.learn.runs.player import Player
from wsa.learn.runs.presence import Mask
from wsa.learn.study.trained_runs import TrainedRun
from wsa.store.common import atomic_files, hashing
from wsa.store.common.terminal import plural
from wsa.store.format import records

Key = TypeVar("Key")

SIGNIFICANCE = 0.05  # Level of the test whether a run beats the random policy.
RANDOM = "random"  # Name of the random policy, in place of a network.
NO_BETTER_THAN_RANDOM = (
    "As trained, the run plays no better than a random policy, so removing something cannot lower its "
    "return. These games do not support any other conclusion."
)


class PlayedGames(msgspec.Struct, frozen=True):
    """Games of one network in one condition: raw returns, by environment and in the order played,
    steps, and frames that went through a model.
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
        """Mean return with its 95% bootstrap interval over the games."""
        return stratified_interval(np.array(self.returns)[:, None], mean_score)


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a study changes before a run plays.

    Attributes:
        name: Identifies the condition; together with the network and the settings it identifies
            the games.
        models: Whether each of the run's models is present; None if all are.
        variant: Variant that is played instead of the game.
        intervene: Changes the network until its block ends.
    """

    name: str
    models: Mask | None = None
    variant: Variant | None = None
    intervene: Callable[[Any], AbstractContextManager[object]] = contextlib.nullcontext


UNCHANGED = Condition("none")  # Studies share the games of a run as it is.


class Games:
    """Plays games that have not been played before, and saves them."""

    def __init__(self, folder: Path, evaluation: EvaluationSettings) -> None:
        self._folder, self._evaluation = folder / "games", evaluation

    def find(self, run: TrainedRun, condition: Condition) -> PlayedGames | None:
        """Find saved games of a run in a condition; None if there are none."""
        return _read(self._path(run, run.network, condition.name))

    def left(self, run: TrainedRun, conditions: Iterable[Condition]) -> list[Condition]:
        """Conditions in which a run has not been played."""
        return [condition for condition in conditions if self.find(run, condition) is None]

    def play_all(
        self,
        run: TrainedRun,
        conditions: Mapping[Key, Condition],
        open_player: Callable[[], Player],
        on_games: Callable[[int, int], None],
    ) -> dict[Key, PlayedGames]:
        """Games of a run in every condition; those that are not saved are played now.

        Args:
            run: The run.
            conditions: The conditions.
            open_player: Opens the run; called only if there are games to play.
            on_games: Called with (games played, games to play).
        """
        episodes = self._evaluation.episodes
        total = len(self.left(run, conditions.values())) * episodes
        player, done = functools.cache(open_player), 0
        played: dict[Key, PlayedGames] = {}
        for key, condition in conditions.items():
            found = self.find(run, condition)
            if found is None:

                def on_step(_: int, finished: int, before: int = done) -> None:
                    on_games(before + finished, total)

                # Frames of one condition must not be remembered in the next.
                fresh = player().with_models(condition.models)
                with condition.intervene(fresh.network):
                    found = self.play(run, condition, fresh, on_step)
                done += episodes
            played[key] = found
        return played

    def play(
        self,
        run: TrainedRun,
        condition: Condition,
        player: Player,
        on_step: Callable[[int, int], None] = lambda steps, episodes: None,
    ) -> PlayedGames:
        """Play games of a run in a condition, and save them.

        Args:
            run: The run.
            condition: The condition, which `player` is in already except for the variant.
            player: The run's network.
            on_step: Called with (steps played, games finished).
        """
        e, config = self._evaluation, run.config
        policy = player.policy(e.num_envs, e.epsilon, e.seed)
        before = player.embedder.passes
        episodes = play(
            config.game, config.protocol, policy, e, variant=condition.variant, on_step=on_step
        )
        path = self._path(run, run.network, condition.name)
        return _save(path, episodes, player.embedder.passes - before)

    def random(self, run: TrainedRun, variant: Variant | None = None) -> PlayedGames:
        """Games of a random policy in the same environments; played now if they are not saved."""
        path = self.random_path(run, variant)
        if (saved := _read(path)) is not None:
            return saved
        games = RandomGames(run.config.game, run.config.protocol, self._evaluation, variant)
        return _save(path, games.play(), 0)

    def random_path(self, run: TrainedRun, variant: Variant | None) -> Path:
        """Where the games of `random` are saved.

        A random policy ignores frames. If a variant changes nothing else, its games are those of
        the unchanged game, and are not played again.
        """
        changed = variant is not None and not variant.keeps_rules
        return self._path(run, RANDOM, variant_condition(variant).name if changed else "")

    def _path(self, run: TrainedRun, network: str, condition: str) -> Path:
        identity = [run.config.game, run.config.protocol, network, condition, self._evaluation]
        return self._folder / f"{hashing.identity(identity)[:24]}.json"


def _read(path: Path) -> PlayedGames | None:
    return records.read_json(path.read_bytes(), PlayedGames, str(path)) if path.exists() else None


def _save(path: Path, episodes: Sequence[Episode], passes: int) -> PlayedGames:
    returns = tuple(e.returned for e in episodes)
    played = PlayedGames(returns, sum(e.steps for e in episodes), passes)
    atomic_files.replace(path, msgspec.json.encode(played))
    return played


def variant_condition(variant: Variant | None) -> Condition:
    """The condition of playing a variant, or the unchanged game."""
    return Condition(f"variant {variant.spec}", variant=variant) if variant else UNCHANGED


def env_seeds(evaluation: EvaluationSettings) -> list[int]:
    """Seed of each game's environment, in the order of `PlayedGames.returns`."""
    count = min(evaluation.num_envs, evaluation.episodes)
    return [evaluation.seed + i for i in range(count) for _ in range(i, evaluation.episodes, count)]


def evaluation_note(evaluation: EvaluationSettings) -> str:
    """Describe how games were played."""
    shown = "means with 95% bootstrap intervals over the games"
    if evaluation.episodes == 1:
        shown = "a single game has no interval"
    return (
        f"{plural(evaluation.episodes, 'full game')} each (epsilon {evaluation.epsilon:g}, "
        f"{plural(evaluation.num_envs, 'environment')} seeded from {evaluation.seed}, the same for all); raw "
        f"returns; {shown}"
    )


def better_than_random(summary: Mapping[str, Any]) -> bool:
    """Whether a run plays better than the random policy, by Welch's t-test at 5%.

    False after one game, which has no spread.

    Args:
        summary: From `wsa.learn.runs.evaluate.Evaluation.summary`.
    """
    from scipy.stats import ttest_ind_from_stats

    games, mean, chance = (summary[k] for k in ("episodes", "return_mean", "random_return_mean"))
    if games < 2 or mean <= chance:
        return False
    # The summary has the standard deviations of these games, not estimates for all games.
    correction = math.sqrt(games / (games - 1))
    spread, random_spread = (correction * summary[k] for k in ("return_std", "random_return_std"))
    if spread == random_spread == 0:
        return True
    test = ttest_ind_from_stats(mean, spread, games, chance, random_spread, games, equal_var=False)
    return bool(test.pvalue < SIGNIFICANCE)


def beats_random(played: PlayedGames, chance: PlayedGames) -> bool:
    """Whether games are better than the random policy's, by a 95% bootstrap interval.

    False after one game, which has no interval.
    """
    return difference(played, chance).above_zero


def difference(one: PlayedGames, other: PlayedGames) -> Interval:
    """Difference of two mean returns, with its 95% bootstrap interval over the games.

    Single games have no interval.
    """
    if len(one.returns) == len(other.returns) == 1:
        return Interval(one.mean - other.mean)
    generator = np.random.default_rng(0)
    one_means, other_means = (
        mean_score(resample(generator, np.array(played.returns)[:, None]))
        for played in (one, other)
    )
    return percentile_interval(one.mean - other.mean, one_means - other_means)
