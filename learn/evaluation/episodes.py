"""Play full games with a policy, and report raw returns.

A policy on live embeddings looks up every frame, and runs the frozen models only on a cache miss,
with the same function that filled the store. Each environment plays a fixed number of the episodes,
so short games are not counted more often than long ones. Returns are unclipped scores of whole
games: losing a life does not end an episode.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.envs import atari as games
from wsa.learn.envs.policies import Policy
from wsa.learn.envs.variants import Variant
from wsa.store.common import atomic_files
from wsa.store.common.errors import UsageError
from wsa.store.format import records

COLUMNS = ("trained", "policy", "checkpoint", "epsilon", "env", "seed", "return", "steps",
           "truncated", "present", "variant")  # fmt: skip
# An older wsa called `trained` `updates`, even where it counted the steps of an online run.
_OLD_HEADER = ",".join(("updates", *COLUMNS[1:])).encode()


@dataclasses.dataclass(frozen=True)
class Episode:
    """One game played to its end.

    Attributes:
        env: Number of the environment.
        seed: Seed of the environment.
        returned: Sum of raw rewards.
        steps: Number of agent steps, each of four emulator frames.
        truncated: Whether the step limit ended the game.
    """

    env: int
    seed: int
    returned: float
    steps: int
    truncated: bool


@dataclasses.dataclass(frozen=True)
class Moment:
    """One step of the environments that still have games to play.

    Attributes:
        frames: Frames that the policy saw, (n, H, W, 3) uint8 RGB.
        envs: Numbers of the environments, (n,).
        episodes: Number of games that each environment had finished, (n,).
        steps: Number of steps played before in this game, (n,).
        actions: Actions that the policy chose, (n,).
        rewards: Raw rewards, (n,).
        ended: Whether the game ended with this step, (n,).
    """

    frames: NDArray[np.uint8]
    envs: NDArray[np.int64]
    episodes: NDArray[np.int64]
    steps: NDArray[np.int64]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    ended: NDArray[np.bool_]


class Watcher(Protocol):
    """Observes games, for example to log or record them."""

    def see(self, moment: Moment) -> None:
        """Observe one step."""
        ...


def play(
    game: str,
    protocol: records.Protocol,
    policy: Policy,
    settings: EvaluationSettings,
    *,
    variant: Variant | None = None,
    watchers: Sequence[Watcher] = (),
    on_step: Callable[[int, int], None] = lambda steps, episodes: None,
) -> list[Episode]:
    """Play full games.

    Args:
        settings: Number of games, and their environments, of which at most one per game is used.
        variant: Variant of the game; None for the unchanged game.
        on_step: Called with (steps played, episodes finished).

    Returns:
        The episodes, sorted by environment, each environment's in the order played.

    Raises:
        UsageError: If there are no games, or no environments.
    """
    if settings.episodes < 1 or settings.num_envs < 1:
        raise UsageError("--episodes and --num-envs must be at least 1.")
    count = min(settings.num_envs, settings.episodes)
    shares = np.array(games.group_sizes(settings.episodes, count))
    make_env = variant.make_env if variant else games.make_env
    games_done, lengths = np.zeros((2, count), np.int64)
    returns, first = np.zeros(count), np.ones(count, np.bool_)
    finished: list[Episode] = []
    steps = 0
    with contextlib.closing(make_env(game, protocol, count)) as env:
        observations, _ = env.reset(seed=settings.seed)
        while (playing := np.flatnonzero(games_done < shares)).size:
            frames = games.rgb_frames(observations)[playing]
            actions = np.zeros(count, np.int64)
            actions[playing] = policy(frames, first[playing], playing)
            observations, rewards, terminated, truncated, _ = env.step(actions)
            first = terminated | truncated
            moment = Moment(
                frames=frames,
                envs=playing,
                episodes=games_done[playing],
                steps=lengths[playing],
                actions=actions[playing],
                rewards=rewards[playing].astype(np.float64),
                ended=first[playing],
            )
            returns += rewards
            lengths += 1
            for i in playing[first[playing]]:
                games_done[i] += 1
                finished.append(
                    Episode(
                        env=int(i),
                        seed=settings.seed + int(i),
                        returned=float(returns[i]),
                        steps=int(lengths[i]),
                        truncated=bool(truncated[i]),
                    )
                )
            returns[first], lengths[first] = 0, 0
            steps += len(playing)
            for watcher in watchers:
                watcher.see(moment)
            on_step(steps, len(finished))
    return sorted(finished, key=lambda episode: episode.env)  # Stable: keeps the order played.


def write_csv(
    path: Path,
    trained: int,
    checkpoint: str,
    epsilon: float,
    played: dict[str, list[Episode]],
    present: Sequence[str] = (),
    variant: str = "",
) -> None:
    """Add episodes to a CSV table, one per line, atomically.

    Lines that the table already has are not added again, so repeating an evaluation adds nothing. A
    table with other columns is renamed to `eval-1.csv`, or the next free number.

    Games are by policy: `run` is the run's final network, `best` the one with the best validation
    score, `random` the random baseline. `trained` counts updates, or steps of an online run;
    `present` names the models that the network uses; `variant` is a SPEC, "" for the unchanged
    game.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    existing = path.read_bytes() if path.exists() else b""
    header = existing.splitlines()[0] if existing else b""
    if header == _OLD_HEADER:
        existing = existing.replace(b"updates", b"trained", 1)
    elif header not in (b"", ",".join(COLUMNS).encode()):
        # From an older wsa: keep it under another name.
        number = next(n for n in itertools.count(1) if not _aside(path, n).exists())
        path.rename(_aside(path, number))
        existing = b""
    if not existing:
        writer.writerow(COLUMNS)
    # Two games of an environment may give equal lines, so count them.
    unmatched = Counter(existing.decode().splitlines())
    for policy, episodes in played.items():
        models = "" if policy == "random" else "+".join(present)
        for e in episodes:
            played_by = (trained, policy, checkpoint, epsilon, e.env, e.seed)
            line = io.StringIO(newline="")
            csv.writer(line).writerow(
                [*played_by, e.returned, e.steps, e.truncated, models, variant]
            )
            unmatched[line.getvalue().rstrip()] -= 1
            if unmatched[line.getvalue().rstrip()] < 0:
                table.write(line.getvalue())
    atomic_files.replace(path, existing + table.getvalue().encode())


def _aside(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number}")
