"""Play full games with a trained network and live embeddings, and report raw returns.

Every frame is looked up first and run through the backbones only on a miss, by the same function
that filled the store. Each environment plays a fixed share of the episodes, so that short games are
not counted more often than long ones. Returns are whole games' raw scores, never clipped, and lives
are not episodes.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.learn import env as games
from wsa.learn.policies import Policy
from wsa.store import records
from wsa.store.errors import StorageError, UsageError


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


def play(
    game: str,
    protocol: records.Protocol,
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    num_envs: int = 4,
    video: Path | None = None,
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
        video: Folder for films of the first environment's episodes.
        on_step: Called with (steps played, episodes finished).

    Returns:
        The episodes, by environment and in the order played.

    Raises:
        UsageError: No episodes or no environments.
        StorageError: Films cannot be written.
    """
    if episodes < 1 or num_envs < 1:
        raise UsageError("bad-option", "--episodes and --num-envs must be at least 1.")
    count = min(num_envs, episodes)
    share = np.array([len(range(i, episodes, count)) for i in range(count)])
    finished: list[list[Episode]] = [[] for _ in range(count)]
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    first = np.ones(count, np.bool_)
    total = 0
    films = _Films(video)
    env = games.make_env(game, protocol, count)
    try:
        observations, _ = env.reset(seed=seed)
        while (
            playing := np.flatnonzero([len(f) < s for f, s in zip(finished, share, strict=True)])
        ).size:
            frames = games.pictures(observations)
            actions = np.zeros(count, np.int64)
            actions[playing] = policy(frames[playing], first[playing], playing)
            if playing[0] == 0:
                films.frame(frames[0])
            observations, rewards, terminated, truncated, _ = env.step(actions)
            first = terminated | truncated
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
                    if i == 0:
                        films.end()
                returns[i], lengths[i] = 0, 0
            on_step(total, sum(map(len, finished)))
    finally:
        films.end()
        env.close()
    return [episode for episodes_of_env in finished for episode in episodes_of_env]


def write_csv(path: Path, updates: int, epsilon: float, played: dict[str, list[Episode]]) -> None:
    """Append episodes to a table, one a line.

    Args:
        path: The table.
        updates: Updates the network had had.
        epsilon: Probability of a random action.
        played: Games by policy: `run`, the run's final network; `best`, the one that did best on
            held-out episodes; `random`.
    """
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(
                ["updates", "policy", "epsilon", "env", "seed", "return", "steps", "truncated"]
            )
        for policy, episodes in played.items():
            for e in episodes:
                writer.writerow(
                    [updates, policy, epsilon, e.env, e.seed, e.returned, e.steps, e.truncated]
                )


class _Films:
    """Writes `episode_0.mp4`, `episode_1.mp4`, ... into a folder, 15 steps a second as played."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._count = 0
        self._writer: Any = None

    def frame(self, picture: NDArray[np.uint8]) -> None:
        if self._folder is None:
            return
        import cv2

        height, width = picture.shape[:2]
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = str(self._folder / f"episode_{self._count}.mp4")
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(path, code, 15.0, (2 * width, 2 * height))
            if not self._writer.isOpened():
                raise StorageError(
                    "unavailable",
                    f"{path} cannot be written. Check that you may write there and that there is "
                    "room, or leave out --video.",
                )
        large = np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1)
        self._writer.write(np.ascontiguousarray(large[..., ::-1]))

    def end(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            self._count += 1
