"""Play full games with a trained network and live embeddings, and report raw returns.

Every frame is looked up first and run through the backbones only on a miss, by the same function
that filled the store. Each environment plays a fixed share of the episodes, so that short games are
not counted more often than long ones. Returns are whole games' raw scores, never clipped, and lives
are not episodes.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
           "truncated", "present", "variant")  # fmt: skip


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
    make_env: Callable[[str, records.Protocol, int], Any] | None = None,
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
        make_env: Makes them, as `atari.make_env` does, which is taken if not given.
        watchers: Shown every step.
        on_step: Called with (steps played, episodes finished).

    Returns:
        The episodes, by environment and in the order played.

    Raises:
        UsageError: No episodes or no environments.
    """
    if episodes < 1 or num_envs < 1:
        raise UsageError("bad-option", "--episodes and --num-envs must be at least 1.")
    make_env = make_env or games.make_env
    count = min(num_envs, episodes)
    # While what one group has seen is embedded, the other is played.
    sizes = games.group_sizes(count, min(2, count) if isinstance(policy, Embedding) else 1)
    ends = [0, *itertools.accumulate(sizes)]
    shares = [len(range(i, episodes, count)) for i in range(count)]
    with contextlib.ExitStack() as stack:
        groups = []
        for begin, end in itertools.pairwise(ends):
            env = stack.enter_context(contextlib.closing(make_env(game, protocol, end - begin)))
            groups.append(_Group(env, begin, shares[begin:end], policy, seed))
        total = 0
        while any(group.playing for group in groups):
            for group in groups:
                if group.playing:
                    moment = group.step()
                    total += len(moment.envs)
                    for watcher in watchers:
                        watcher.see(moment)
                    on_step(total, sum(len(group.finished) for group in groups))
    played = [episode for group in groups for episode in group.finished]
    return sorted(played, key=lambda episode: episode.env)  # Each one's in the order played.


@runtime_checkable
class Embedding(Protocol):
    """A policy that may be played on without, while it embeds what it has seen."""

    def begin(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> Callable[[], NDArray[np.int64]]:
        """Begin to embed what is seen; what comes back waits for it, and gives (n,) actions."""
        ...


class _Group:
    """Environments that are played together.

    Args:
        env: The environments.
        begin: Number of the first of them.
        shares: How many games each finishes.
        policy: Who plays.
        seed: That of environment 0.

    Attributes:
        finished: The games that were played to their ends.
    """

    def __init__(
        self, env: Any, begin: int, shares: Sequence[int], policy: Policy, seed: int
    ) -> None:
        self._env, self._begin, self._policy, self._seed = env, begin, policy, seed
        self._shares = np.array(shares)
        self._episodes = np.zeros(len(shares), np.int64)
        self._returns, self._lengths = np.zeros(len(shares)), np.zeros(len(shares), np.int64)
        self._first = np.ones(len(shares), np.bool_)
        self.finished: list[Episode] = []
        observations, _ = env.reset(seed=seed + begin)
        self._look(observations)

    @property
    def playing(self) -> bool:
        """Whether any of them has a game to finish."""
        return len(self._which) > 0

    def _look(self, observations: NDArray[np.uint8]) -> None:
        """Show the policy the newest frames of those that play on."""
        self._which = np.flatnonzero(self._episodes < self._shares)
        if self.playing:
            self._frames = games.pictures(observations)[self._which]
            seen = self._frames, self._first[self._which], self._begin + self._which
            policy = self._policy
            self._actions = (
                policy.begin(*seen)
                if isinstance(policy, Embedding)
                else functools.partial(policy, *seen)
            )

    def step(self) -> Moment:
        """Act, once what was seen is embedded; and look at what follows."""
        which, frames = self._which, self._frames
        actions = np.zeros(len(self._shares), np.int64)
        actions[which] = self._actions()
        observations, rewards, terminated, truncated, _ = self._env.step(actions)
        self._first = terminated | truncated
        moment = Moment(
            frames=frames,
            envs=self._begin + which,
            episodes=self._episodes[which],
            steps=self._lengths[which],
            actions=actions[which],
            rewards=rewards[which].astype(np.float64),
            ended=self._first[which],
        )
        self._returns += rewards
        self._lengths += 1
        for i in np.flatnonzero(self._first):
            if self._episodes[i] < self._shares[i]:
                self._episodes[i] += 1
                self.finished.append(
                    Episode(
                        env=self._begin + int(i),
                        seed=self._seed + self._begin + int(i),
                        returned=float(self._returns[i]),
                        steps=int(self._lengths[i]),
                        truncated=bool(truncated[i]),
                    )
                )
            self._returns[i], self._lengths[i] = 0, 0
        self._look(observations)
        return moment


def write_csv(
    path: Path,
    updates: int,
    checkpoint: str,
    epsilon: float,
    played: dict[str, list[Episode]],
    present: Sequence[str] = (),
    variant: str = "",
) -> None:
    """Add episodes to a table, one a line; all of them or none.

    What the table has already is not added again, so the same evaluation twice is there once. A table
    that has other columns is renamed, to `eval-1.csv` or the next number.

    Args:
        path: The table.
        updates: Updates the network had had.
        checkpoint: 12 hex digits of the checkpoint that it was.
        epsilon: Probability of a random action.
        played: Games by policy: `run`, the run's final network; `best`, the one that did best on
            held-out episodes; `random`, which was played beside it.
        present: Names of the models that the network had; none where it sees pixels.
        variant: Of the game, as a SPEC says it; "" if it was the game as it is.
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
    # Two games of an environment may be alike, so lines are counted.
    known = Counter(there.decode().splitlines())
    for policy, episodes in played.items():
        for e in episodes:
            about = (updates, policy, checkpoint, epsilon)
            having = "" if policy == "random" else "+".join(present)
            how = (e.env, e.seed, e.returned, e.steps, e.truncated, having, variant)
            line = io.StringIO(newline="")
            csv.writer(line).writerow([*about, *how])
            known[line.getvalue().rstrip()] -= 1
            if known[line.getvalue().rstrip()] < 0:
                table.write(line.getvalue())
    atomic_files.replace(path, there + table.getvalue().encode())


def _aside(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number}")
