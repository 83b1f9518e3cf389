"""Play full games with a trained network and live embeddings, and report raw returns.

Every frame is looked up first and run through the backbones only on a miss, by the same function
that filled the store. Each environment plays a fixed share of the episodes, so that short games are
not counted more often than long ones. Returns are whole games' raw scores, never clipped, and lives
are not episodes.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsa.learn.envs import atari as games
from wsa.learn.envs.policies import Policy
from wsa.store.common import atomic_files
from wsa.store.common.errors import UsageError
from wsa.store.format import records

EPSILON = 0.001  # The field's: probability of a random action.
EVAL_SEED = 10_000  # Environment i is seeded with it + i: apart from training's.
NUM_ENVS = 4

COLUMNS = ("updates", "policy", "checkpoint", "epsilon", "env", "seed", "return", "steps",
           "truncated")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Episode:
    """One game played to its end.

    Attributes:
        env: Environment that played it.
        seed: That environment's seed.
        returned: Sum of raw rewards.
        steps: Agent steps; emulator frames are four times as many.
        truncated: Whether the step limit ended it.
    """

    env: int
    seed: int
    returned: float
    steps: int
    truncated: bool


@dataclasses.dataclass(frozen=True)
class Moment:
    """One step of the environments that are still playing.

    Attributes:
        frames: (n, H, W, 3) uint8 RGB, what the policy saw.
        envs: (n,) which environments they are of.
        episodes: (n,) how many games each had finished.
        steps: (n,) how many steps of this game it had played.
        actions: (n,) what the policy did.
        rewards: (n,) raw, what that earned.
        ended: (n,) whether the game ended with it.
    """

    frames: NDArray[np.uint8]
    envs: NDArray[np.int64]
    episodes: NDArray[np.int64]
    steps: NDArray[np.int64]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    ended: NDArray[np.bool_]


class Watcher(Protocol):
    """Looks on while games are played."""

    def see(self, moment: Moment) -> None:
        """Take a step."""
        ...


def play(
    game: str,
    protocol: records.Protocol,
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    num_envs: int = NUM_ENVS,
    watchers: Sequence[Watcher] = (),
    on_step: Callable[[int, int], None] = lambda steps, episodes: None,
) -> list[Episode]:
    """Play whole games.

    Args:
        game: ALE game id.
        protocol: How to play.
        policy: Who plays.
        episodes: Games to finish.
        seed: Environment i is seeded with seed + i.
        num_envs: Environments side by side, at most one for each episode.
        watchers: Shown every step.
        on_step: Called with (steps played, episodes finished).

    Returns:
        The episodes, by environment and in the order played.

    Raises:
        UsageError: No episodes or no environments.
    """
    if episodes < 1 or num_envs < 1:
        raise UsageError("bad-option", "--episodes and --num-envs must be at least 1.")
    count = min(num_envs, episodes)
    share = np.array([len(range(i, episodes, count)) for i in range(count)])
    finished: list[list[Episode]] = [[] for _ in range(count)]
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    first = np.ones(count, np.bool_)
    total = 0
    env = games.make_env(game, protocol, count)
    try:
        observations, _ = env.reset(seed=seed)
        while (
            playing := np.flatnonzero([len(f) < s for f, s in zip(finished, share, strict=True)])
        ).size:
            frames = games.pictures(observations)
            actions = np.zeros(count, np.int64)
            actions[playing] = policy(frames[playing], first[playing], playing)
            observations, rewards, terminated, truncated, _ = env.step(actions)
            first = terminated | truncated
            moment = Moment(
                frames=frames[playing],
                envs=playing,
                episodes=np.array([len(finished[i]) for i in playing]),
                steps=lengths[playing],
                actions=actions[playing],
                rewards=rewards[playing].astype(np.float64),
                ended=first[playing],
            )
            for watcher in watchers:
                watcher.see(moment)
            returns += rewards
            lengths += 1
            total += len(playing)
            for i in np.flatnonzero(first):
                if len(finished[i]) < share[i]:
                    finished[i].append(
                        Episode(
                            env=int(i),
                            seed=seed + int(i),
                            returned=float(returns[i]),
                            steps=int(lengths[i]),
                            truncated=bool(truncated[i]),
                        )
                    )
                returns[i], lengths[i] = 0, 0
            on_step(total, sum(map(len, finished)))
    finally:
        env.close()
    return [episode for episodes_of_env in finished for episode in episodes_of_env]


def write_csv(
    path: Path, updates: int, checkpoint: str, epsilon: float, played: dict[str, list[Episode]]
) -> None:
    """Add episodes to a table, one a line; all of them or none.

    A table that has other columns is renamed, to `eval-1.csv` or the next number.

    Args:
        path: The table.
        updates: Updates the network had had.
        checkpoint: 12 hex digits of the checkpoint that it was.
        epsilon: Probability of a random action.
        played: Games by policy: `run`, the run's final network; `best`, the one that did best on
            held-out episodes; `random`, which was played beside it.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    there = path.read_bytes() if path.exists() else b""
    if there and there.splitlines()[0] != ",".join(COLUMNS).encode():
        # Of an older wsa: kept as it is, out of the way.
        number = next(n for n in itertools.count(1) if not _aside(path, n).exists())
        path.rename(_aside(path, number))
        there = b""
    if not there:
        writer.writerow(COLUMNS)
    for policy, episodes in played.items():
        for e in episodes:
            about = (updates, policy, checkpoint, epsilon)
            writer.writerow([*about, e.env, e.seed, e.returned, e.steps, e.truncated])
    atomic_files.replace(path, there + table.getvalue().encode())


def _aside(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number}")
