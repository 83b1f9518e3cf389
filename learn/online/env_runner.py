"""Play for a learner that learns while it plays: environments, stacks of rows, ends, and returns.

Training data and reports are separated here, once for all algorithms: rewards and returns are raw;
an episode is a whole game; `terminated` is the game's end, `truncated` the step limit's; a lost life
is reported separately. The frame that ended an episode is seen like all others, and the first frame
of the next episode is never mistaken for it.

An emulator in ale-py's vector environment cannot be saved, but its play depends on its seed and its
actions alone. So each environment's play is cut into *stretches*: a reset with a seed of its own
begins one, and the first episode that ends after `STRETCH` steps ends it. A checkpoint holds the
actions of the stretch at hand, and continuing plays them again.
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

# A reset with a seed costs 90 ms, one without 4; 5,000 steps are played again in a second or two.
STRETCH = 5_000

_ONLINE = "online "  # What the policies of those who learn while they play are called.


def online_policy(algo: str) -> str:
    """Who plays, for the record of a segment that was played in an online run."""
    return _ONLINE + algo


def is_online(policy: str) -> bool:
    """Whether a segment was played in an online run, in stretches."""
    return policy.startswith(_ONLINE)


def stretch_seed(seed: int, env: int, stretch: int) -> int:
    """What a stretch of an environment begins with."""
    if not stretch:
        return seed + env
    return int(np.random.SeedSequence([seed, env, stretch]).generate_state(1)[0]) >> 1


@dataclasses.dataclass(frozen=True)
class Step:
    """What followed an action in each of n environments, all or a group.

    Attributes:
        rewards: (n,) float32, raw.
        terminated: (n,) bool, the game ended.
        truncated: (n,) bool, the step limit ended it.
        life_lost: (n,) bool, a life was lost and the game goes on.
        final: (n, k) rows, the state that followed: where an episode ended, with its last frame,
            which is worth something only if it was truncated.
        episodes: Raw return and steps of each episode that ended now.
    """

    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    life_lost: NDArray[np.bool_]
    final: NDArray[np.int64]
    episodes: list[tuple[float, int]]

    @property
    def ended(self) -> NDArray[np.bool_]:
        """(n,) whether an episode ended."""
        return self.terminated | self.truncated


class EnvRunner:
    """Environments being played, in one group or several.

    While what one group has seen is embedded, another may be played: frames have rows of the table
    at once, and code that reads a row waits for it.

    Args:
        groups: Environments from `atari.make_env`, those of each group together.
        table: What the frames go into.
        depth: k, frames in a state.
        seed: Environment i begins with seed + i.
        recording: What keeps the steps in the store, if anything does:
            `wsa.learn.online.record_segments.Recording`.

    Attributes:
        table: As given.
        num_envs: n, in all groups together.
        groups: Which of them each group is.
        actions: Number of actions there are.
        stacks: (n, k) rows of the present states, oldest frame first.
        first: (n,) bool, whether each begins an episode.
        steps: Steps played, in all environments together.
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
        # Episodes ended by now, and by when the stretch began.
        self._ended, self._ended_before = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def begin(self) -> None:
        """Begin the first episodes."""
        for env, group in zip(self._played, self.groups, strict=True):
            observations, info = env.reset(seed=self._seed + group.start)
            self._lives[group] = info["lives"]
            envs = self._envs[group]
            seen = self._recent.push(games.pictures(observations), self.first[group], envs)
            self.stacks[group] = self.table.see(seen)[:, None]
            if self._recording:
                all_of_them = np.ones(len(envs), np.bool_)
                self._recording.begin(envs, all_of_them, observations, self._lives[group])

    def step(self, actions: NDArray[np.int64], number: int = 0) -> Step:
        """Take an action in each environment of a group; `stacks` and `first` then follow from them.

        Args:
            actions: One for each environment of the group.
            number: Which group.
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
            final = final.copy()  # A reset may write where it stands.
            observations, lives = self._stretch_anew(number, fresh)
        self._lives[group] = lives
        everywhere = np.ones(len(actions), np.bool_)
        self._show(
            group, everywhere, actions, rewards, terminated, truncated, final, observations, lives
        )
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
        """Push a group's newest frames; returns the states that followed, (n, k)."""
        envs = self._envs[group]
        # A game's last frame too: what is recorded needs it, and plays no other way. Before the
        # next game's first one, which no window reaches beyond.
        last_seen = self._recent.push(
            games.pictures(final)[ended], np.zeros(ended.sum(), np.bool_), envs[ended]
        )
        seen = self._recent.push(games.pictures(observations), ended, envs)
        rows = self.table.see(seen + last_seen)
        newest, last = rows[: len(envs)], rows[: len(envs)].copy()
        last[ended] = rows[len(envs) :]
        following = np.concatenate([self.stacks[group, 1:], last[:, None]], axis=1)
        # Others, not the same ones changed: learners keep the states that they acted in.
        self.stacks, self.first = self.stacks.copy(), self.first.copy()
        self.stacks[group] = np.where(ended[:, None], newest[:, None], following)
        self.first[group] = ended
        return following

    def _stretch_anew(
        self, number: int, fresh: NDArray[np.bool_]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Begin another stretch where `fresh` in a group; observations and lives of all of it."""
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
        """Seed of the stretch at hand."""
        return stretch_seed(self._seed, env, int(self._stretch[env]))

    def state(self) -> dict[str, NDArray[Any]]:
        """All that continuing needs."""
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
        """Continue where `state` was taken: play the stretches at hand again.

        Raises:
            ConflictError: The emulator does not play here as it did.
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
            self._play_again(env, group, counts[group])
            for env, group in zip(self._played, self.groups, strict=True)
        ]
        if (self._lives != state["lives"]).any() or (
            np.concatenate(returns) != self._returns
        ).any():
            raise ConflictError(
                "model-drift",
                "The emulator does not play here as it did when this run was stopped, so the run "
                "cannot be continued exactly. Install the version of ale-py it was started with, or "
                "begin another run; with --init it takes over this one's weights.",
            )

    def _play_again(self, env: Any, group: slice, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Play the stretches at hand of a group again, `counts` actions each; returns by now."""
        envs = self._envs[group]
        # All end together: each begins once as many steps are left as it has played.
        longest = int(counts.max(initial=0))
        returns = np.zeros(len(envs))
        observations, info = env.reset(seed=self._seed + group.start)
        for t in range(longest + 1):
            begins = counts == longest - t
            if begins.any():
                seeds = np.array([self._seed_of(int(i)) for i in envs[begins]])
                observations, info = env.reset(seed=seeds, options={"reset_mask": begins})
                returns[begins] = 0
                self._recall(envs, begins, begins, observations, longest - t)
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
            self._recall(envs, at >= 0, ended, observations, longest - t - 1)
            final = info["final_obs"] if ended.any() else observations
            self._show(
                group, at >= 0, actions, rewards, terminated, truncated, final, observations,
                info["lives"],
            )  # fmt: skip
        self._lives[group] = info["lives"]
        return returns

    def _recall(
        self,
        envs: NDArray[np.int64],
        which: NDArray[np.bool_],
        first: NDArray[np.bool_],
        observations: NDArray[np.uint8],
        left: int,
    ) -> None:
        """Take what some environments show again, if windows reach back to it from `left` steps on."""
        if left < self.table.longest:
            frames = games.pictures(observations)[which]
            self._recent.push(frames, first[which], envs[which])

    def _show(
        self,
        group: slice,
        which: NDArray[np.bool_],
        actions: NDArray[np.int64],
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        final: NDArray[np.uint8],
        observations: NDArray[np.uint8],
        lives: NDArray[Any],
    ) -> None:
        """Record a step of some environments of a group, if anything does."""
        if not self._recording:
            return
        envs = self._envs[group]
        ended = terminated | truncated
        last = np.where(ended[:, None, None, None, None], final, observations)
        left = np.where(ended, 0, lives)
        self._recording.step(envs, which, actions, rewards, terminated, truncated, last, left)
        self._recording.begin(envs, which & ended, observations, lives)
