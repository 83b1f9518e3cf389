"""Step the environments of an online learner, and track states, episode ends, and returns.

Training data and reports are separated here, once for all algorithms: rewards and returns are raw;
an episode is a full game; `terminated` means that the game ended, `truncated` that the step limit
was reached; a lost life is reported separately. The last frame of an episode is seen like all
others, and is never confused with the first frame of the next episode.

An emulator in ale-py's vector environment cannot be saved, but its play depends only on its seed
and its actions. So each environment's play is cut into *stretches*: a reset with its own seed
begins one, and the first episode that ends after `STRETCH` steps ends it. A checkpoint holds the
actions of the current stretch, and resuming replays them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.encode.live.frame_history import FrameHistory
from wsa.learn.envs import atari as games
from wsa.learn.online.embedding_table import Table
from wsa.store.common.errors import ConflictError

# A reset with a seed costs 90 ms, one without 4 ms; replaying 5,000 steps takes one to two seconds.
STRETCH = 5_000

_ONLINE = "online "  # Prefix of the policy names of online runs.


def online_policy(algo: str) -> str:
    """Return the policy name that the segments of an online run record."""
    return _ONLINE + algo


def is_online(policy: str) -> bool:
    """Return whether a policy name is that of an online run, which plays in stretches."""
    return policy.startswith(_ONLINE)


def stretch_seed(seed: int, env: int, stretch: int) -> int:
    """Return the seed of an environment's stretch."""
    if not stretch:
        return seed + env
    return int(np.random.SeedSequence([seed, env, stretch]).generate_state(1)[0]) >> 1


@dataclasses.dataclass(frozen=True)
class Step:
    """Result of one action in each of n environments, all of them or one group.

    Attributes:
        rewards: Raw rewards, (n,) float32.
        terminated: Whether the game ended, (n,) bool.
        truncated: Whether the step limit ended the episode, (n,) bool.
        life_lost: Whether a life was lost and the game continues, (n,) bool.
        final: Table rows of the next states, (n, k). If the episode ended, its true last state,
            from which a value is bootstrapped only if the episode was truncated.
        episodes: Raw return and number of steps of each episode that just ended.
    """

    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    life_lost: NDArray[np.bool_]
    final: NDArray[np.int64]
    episodes: list[tuple[float, int]]

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Whether the episode ended, (n,) bool."""
        return self.terminated | self.truncated


class EnvRunner:
    """Steps vector environments, in one group or several.

    While one group's frames are embedded, another group can be stepped: a frame gets its table row
    at once, and only reading the row waits for the embedding.

    Args:
        groups: One vector environment from `atari.make_env` per group.
        table: Embedding table for the frames.
        depth: Number of frames in a state, k.
        seed: Environment i begins with seed + i.
        recording: `wsa.learn.online.record_segments.Recording`, which commits the steps to the
            store; None to keep none.

    Attributes:
        table: The embedding table.
        num_envs: Number of environments in all groups, n.
        groups: Slice of the environments that forms each group.
        actions: Number of actions.
        stacks: Table rows of the current states, (n, k), oldest frame first.
        first: Whether each current state begins an episode, (n,) bool.
        steps: Number of steps played, summed over the environments.
    """

    def __init__(
        self, groups: Sequence[Any], table: Table, depth: int, seed: int, recording: Any = None
    ) -> None:
        self._played = list(groups)
        ends = list(itertools.accumulate((env.num_envs for env in groups), initial=0))
        self.groups = [slice(*both) for both in itertools.pairwise(ends)]
        self.table = table
        self._seed = seed
        self._recording = recording
        n = self.num_envs = int(ends[-1])
        self.actions = int(groups[0].single_action_space.n)
        self.stacks = np.zeros((n, depth), np.int64)
        self.first = np.ones(n, np.bool_)
        self.steps = 0
        self._envs = np.arange(n)
        self._recent = FrameHistory(table.longest)
        self._returns, self._lengths = np.zeros(n), np.zeros(n, np.int64)
        self._lives = np.zeros(n, np.int64)
        self._stretch = np.zeros(n, np.int64)
        self._actions: list[list[int]] = [[] for _ in range(n)]
        # Number of episodes ended so far, and before the current stretch.
        self._ended, self._ended_before = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def begin(self) -> None:
        """Reset all environments and begin their first episodes."""
        for env, group in zip(self._played, self.groups, strict=True):
            observations, info = env.reset(seed=self._seed + group.start)
            self._lives[group] = info["lives"]
            envs = self._envs[group]
            seen = self._recent.push(games.rgb_frames(observations), self.first[group], envs)
            self.stacks[group] = self.table.see(seen)[:, None]
            if self._recording:
                all_envs = np.ones(len(envs), np.bool_)
                self._recording.begin(envs, all_envs, observations, self._lives[group])

    def step(self, actions: NDArray[np.int64], number: int = 0) -> Step:
        """Step the environments of one group, and update `stacks` and `first`.

        Args:
            actions: One action per environment of the group.
            number: Index of the group.
        """
        env, group = self._played[number], self.groups[number]
        observations, rewards, terminated, truncated, info = env.step(actions)
        ended = terminated | truncated
        taken_before = self._actions[group]
        for taken, action in zip(taken_before, actions, strict=True):
            taken.append(int(action))
        self.steps += len(actions)
        returns, lengths = self._returns[group], self._lengths[group]  # Views.
        returns += rewards
        lengths += 1
        episodes = [(float(returns[i]), int(lengths[i])) for i in np.flatnonzero(ended)]
        returns[ended], lengths[ended] = 0, 0
        self._ended[group] += ended
        lives = np.array(info["lives"])
        life_lost = ~ended & (lives < self._lives[group])
        final = info["final_obs"] if ended.any() else observations
        fresh = ended & (np.array([len(taken) for taken in taken_before]) >= STRETCH)
        if fresh.any():
            final = final.copy()  # The reset may overwrite this buffer.
            observations, lives = self._begin_stretch(number, fresh)
        self._lives[group] = lives
        if self._recording:
            all_envs = np.ones(len(actions), np.bool_)
            self._recording.step(
                self._envs[group], all_envs, actions, rewards, terminated, truncated, final,
                observations, lives,
            )  # fmt: skip
        following = self._see(group, observations, final, ended)
        return Step(
            rewards.astype(np.float32), terminated, truncated, life_lost, following, episodes
        )

    def _see(
        self,
        group: slice,
        observations: NDArray[np.uint8],
        final: NDArray[np.uint8],
        ended: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """Push a group's newest frames, and return the rows of the next states, (n, k)."""
        envs = self._envs[group]
        # Also push each game's last frame: a recording needs it, and a run plays the same with or
        # without one. It comes before the next game's first frame, where new windows begin.
        last_seen = self._recent.push(
            games.rgb_frames(final)[ended], np.zeros(ended.sum(), np.bool_), envs[ended]
        )
        seen = self._recent.push(games.rgb_frames(observations), ended, envs)
        rows = self.table.see(seen + last_seen)
        newest, last = rows[: len(envs)], rows[: len(envs)].copy()
        last[ended] = rows[len(envs) :]
        following = np.concatenate([self.stacks[group, 1:], last[:, None]], axis=1)
        # New arrays, because learners keep references to the states in which they acted.
        self.stacks, self.first = self.stacks.copy(), self.first.copy()
        self.stacks[group] = np.where(ended[:, None], newest[:, None], following)
        self.first[group] = ended
        return following

    def _begin_stretch(
        self, number: int, fresh: NDArray[np.bool_]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Begin a new stretch where `fresh`; return the whole group's observations and lives."""
        group = self.groups[number]
        envs = self._envs[group][fresh]
        self._stretch[envs] += 1
        self._ended_before[envs] = self._ended[envs]
        for i in envs:
            self._actions[i] = []
        seeds = np.array([self._seed_of(int(i)) for i in envs])
        observations, info = self._played[number].reset(seed=seeds, options={"reset_mask": fresh})
        return observations, np.array(info["lives"])

    def _seed_of(self, env: int) -> int:
        """Return the seed of an environment's current stretch."""
        return stretch_seed(self._seed, env, int(self._stretch[env]))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all arrays that resuming needs."""
        longest = max(map(len, self._actions))
        actions = np.full((self.num_envs, longest), -1, np.int16)
        for row, taken in zip(actions, self._actions, strict=True):
            row[: len(taken)] = taken
        return {
            "actions": actions,
            "stacks": self.stacks,
            "first": self.first,
            "returns": self._returns,
            "lengths": self._lengths,
            "lives": self._lives,
            "stretch": self._stretch,
            "ended": self._ended,
            "ended_before": self._ended_before,
            "steps": np.array(self.steps),
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what `state` returned, by replaying the current stretches.

        Raises:
            ConflictError: If the emulator now plays differently.
        """
        self.stacks, self.first = state["stacks"].copy(), state["first"].copy()
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()
        self._stretch, self.steps = state["stretch"].copy(), state["steps"].item()
        self._ended, self._ended_before = state["ended"].copy(), state["ended_before"].copy()
        counts = (state["actions"] >= 0).sum(axis=1)
        self._actions = [
            row[:count].tolist() for row, count in zip(state["actions"], counts, strict=True)
        ]
        if self._recording:
            self._recording.rewind(self.steps // self.num_envs, counts, self._ended_before)
        returns = [
            self._replay(env, group, counts[group])
            for env, group in zip(self._played, self.groups, strict=True)
        ]
        if (self._lives != state["lives"]).any() or (
            np.concatenate(returns) != self._returns
        ).any():
            raise ConflictError(
                "model-drift",
                "The emulator does not play here as it did when this run was stopped, so the run "
                "cannot be continued exactly. Install the version of ale-py it was started with, "
                "or start a new run; use --init to keep this run's weights.",
            )

    def _replay(self, env: Any, group: slice, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Replay a group's current stretches, `counts` actions each; return the returns so far."""
        envs = self._envs[group]
        # All replays end together: each begins when the steps left equal its number of actions.
        longest = int(counts.max(initial=0))
        returns = np.zeros(len(envs))
        observations, info = env.reset(seed=self._seed + group.start)
        for t in range(longest + 1):
            begins = counts == longest - t
            if begins.any():
                seeds = np.array([self._seed_of(int(i)) for i in envs[begins]])
                observations, info = env.reset(seed=seeds, options={"reset_mask": begins})
                returns[begins] = 0
                self._push_replayed(envs, begins, begins, observations, longest - t)
                if self._recording:
                    self._recording.begin(envs, begins, observations, info["lives"])
            if t == longest:
                break
            at = counts - (longest - t)
            taken_before = self._actions[group]
            actions = np.array(
                [taken[i] if i >= 0 else 0 for taken, i in zip(taken_before, at, strict=True)]
            )
            observations, rewards, terminated, truncated, info = env.step(actions)
            ended = terminated | truncated
            returns += rewards
            returns[ended] = 0
            self._push_replayed(envs, at >= 0, ended, observations, longest - t - 1)
            if self._recording:
                final = info["final_obs"] if ended.any() else observations
                self._recording.step(
                    envs, at >= 0, actions, rewards, terminated, truncated, final, observations,
                    info["lives"],
                )  # fmt: skip
        self._lives[group] = info["lives"]
        return returns

    def _push_replayed(
        self,
        envs: NDArray[np.int64],
        which: NDArray[np.bool_],
        first: NDArray[np.bool_],
        observations: NDArray[np.uint8],
        left: int,
    ) -> None:
        """Push replayed frames if a window reaches back to them from `left` steps later."""
        if left < self.table.longest:
            frames = games.rgb_frames(observations)[which]
            self._recent.push(frames, first[which], envs[which])
