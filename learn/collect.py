"""Play a policy and keep what was seen, as segments.

A collection *run* is everything that determines its steps: game, protocol, policy, seed, emulator.
Environment i of a run always plays the same steps, so the steps it has played are a line from 0,
and a segment is an interval of it. Collecting is filling the gaps of that line: the emulator is
played from the start, at thousands of steps a second, and what is not committed yet is written.
The same command again therefore does nothing, an interrupted one continues, and asking for more
steps extends what is there.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsa.learn import env as games
from wsa.store import keys, layout, names
from wsa.store.backends import Backend
from wsa.store.errors import UsageError
from wsa.store.reader import Snapshot
from wsa.store.records import Protocol, SegmentMeta
from wsa.store.writer import commit_segment

NO_ACTION = -1
STACK = 4


@dataclasses.dataclass(frozen=True)
class CollectPlan:
    """What a collection has to do.

    Attributes:
        game: ALE game id.
        protocol: How it is played.
        policy: Who plays.
        seed: Seed of the run.
        run: 12 hex digits that name the run.
        num_envs: Environments played side by side.
        steps: Steps asked for in all, rounded up to the same number for every environment.
        pieces: For each environment the intervals to write, as (first step, steps).
    """

    game: str
    protocol: Protocol
    policy: str
    seed: int
    run: str
    num_envs: int
    steps: int
    pieces: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def missing(self) -> int:
        """Steps not in the store yet."""
        return sum(length for env in self.pieces for _, length in env)


def plan_collection(
    snapshot: Snapshot,
    game: str,
    protocol: Protocol,
    *,
    steps: int,
    num_envs: int,
    policy: str,
    seed: int,
    segment_steps: int,
) -> CollectPlan:
    """Find the intervals that have not been committed.

    Raises:
        UsageError: A number is out of range, or there is no such policy.
    """
    for option, value, least, most in (
        ("--steps", steps, 1, 10**9),
        ("--num-envs", num_envs, 1, 999),
        ("--segment-steps", segment_steps, 1, 65536),
        ("--seed", seed, 0, 2**31 - 1000),
    ):
        if not least <= value <= most:
            raise UsageError("bad-option", f"{option} must be from {least} to {most}, not {value}.")
    if policy != "random":
        raise UsageError(
            "bad-option", f"--policy {policy}: the only policy in this version is 'random'."
        )
    emulator = games.emulator_identity(game)
    run = keys.identity([game, protocol, policy, seed, emulator])[:12]
    each = -(-steps // num_envs)
    pieces = []
    for env in range(num_envs):
        done = sorted(
            (m.start, m.steps) for m in snapshot.segments(game) if m.run == run and m.env == env
        )
        pieces.append(tuple(_gaps(done, each, segment_steps)))
    return CollectPlan(game, protocol, policy, seed, run, num_envs, each * num_envs, tuple(pieces))


def _gaps(done: list[tuple[int, int]], end: int, longest: int) -> Iterator[tuple[int, int]]:
    """Intervals of [0, end) not in `done`, cut to at most `longest` steps."""
    at = 0
    for start, length in [*done, (end, 0)]:
        stop = min(start, end)
        while at < stop:
            piece = min(longest, stop - at)
            yield at, piece
            at += piece
        at = max(at, start + length)


def collect(
    plan: CollectPlan,
    backend: Backend,
    on_steps: Callable[[int, int], None] = lambda done, total: None,
) -> list[SegmentMeta]:
    """Play and write every missing segment of a plan.

    Args:
        plan: From `plan_collection`.
        backend: The store.
        on_steps: Called with (steps written, steps to write) now and then.

    Returns:
        The segments that this call made visible.
    """
    if not plan.missing:
        return []
    written: list[SegmentMeta] = []
    recorders = [_Recorder(plan, env) for env in range(plan.num_envs)]
    generators = [np.random.default_rng([plan.seed, env]) for env in range(plan.num_envs)]
    last = max(start + length for pieces in plan.pieces for start, length in pieces[-1:])
    done = 0
    colours = _Colours()
    env = games.make_env(plan.game, plan.protocol, plan.num_envs)
    try:
        observations, info = env.reset(seed=plan.seed)
        seen = colours.screens(observations)
        for i, recorder in enumerate(recorders):
            recorder.begin(seen[i], int(info["lives"][i]))
        for step in range(last):
            actions = np.array([g.integers(len(plan.protocol.actions)) for g in generators])
            observations, rewards, terminated, truncated, info = env.step(actions)
            ended = terminated | truncated
            seen = colours.screens(observations)
            final = colours.screens(info["final_obs"]) if ended.any() else seen
            for i, recorder in enumerate(recorders):
                recorder.step(
                    int(actions[i]),
                    float(rewards[i]),
                    bool(terminated[i]),
                    bool(truncated[i]),
                    (final if ended[i] else seen)[i],
                    0 if ended[i] else int(info["lives"][i]),
                )
                if recorder.full:
                    meta, arrays = recorder.take(colours)
                    done += meta.steps
                    if commit_segment(backend, meta, arrays):
                        written.append(meta)
                    on_steps(done, plan.missing)
                if ended[i]:
                    recorder.begin(seen[i], int(info["lives"][i]))
            if step % 64 == 0:
                waiting = sum(recorder.steps for recorder in recorders)
                on_steps(done + waiting, plan.missing)
    finally:
        env.close()
    return written


class _Screen(NamedTuple):
    """A frame's identity and its pixels as numbers of colours, (H, W)."""

    digest: bytes
    pixels: NDArray[np.uint16]


class _Colours:
    """Turns RGB screens into numbers of colours, as many as a run shows."""

    def __init__(self) -> None:
        self._number = np.full(1 << 24, -1, np.int32)
        self._packed = np.zeros(0, np.int32)

    def screens(self, observations: NDArray[np.uint8]) -> list[_Screen]:
        """(n, 1, H, W, 3) uint8 to n screens; new colours are numbered as they appear."""
        frames = games.pictures(observations)
        wide = frames.astype(np.int32)
        packed = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
        numbers = self._number[packed]
        if numbers.min() < 0:
            new = np.unique(packed[numbers < 0])
            self._number[new] = len(self._packed) + np.arange(len(new))
            self._packed = np.concatenate([self._packed, new])
            numbers = self._number[packed]
        compact = np.uint8 if len(self._packed) <= 256 else np.uint16
        return [
            _Screen(keys.frame_digest(frame), pixels)
            for frame, pixels in zip(frames, numbers.astype(compact), strict=True)
        ]

    def frames(self, screens: list[_Screen]) -> layout.Arrays:
        """`frames` as palette indices with their `palette`, or as RGB where 256 do not suffice.

        The palette is sorted by colour, so that the same screens give the same bytes whatever
        was seen before them.
        """
        numbers = np.stack([screen.pixels for screen in screens])
        used = np.unique(numbers)
        packed = np.sort(self._packed[used])
        rgb = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
        place = np.zeros(len(self._packed), np.int64)
        place[used] = np.searchsorted(packed, self._packed[used])
        indices = place[numbers]
        if len(used) > 256:
            return {"frames": rgb[indices]}
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(used)] = rgb
        return {"frames": indices.astype(np.uint8), "palette": palette}


@dataclasses.dataclass
class _Row:
    """One row in the making; fields as in `layout.ROW_FIELDS`."""

    screen: _Screen
    lives: int
    episode: int
    is_first: bool
    context: bool = False
    action: int = NO_ACTION
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False


class _Recorder:
    """Turns the steps of one environment into segments."""

    def __init__(self, plan: CollectPlan, env: int) -> None:
        self._plan = plan
        self._env = env
        self._pieces = deque(plan.pieces[env])
        self._played = 0
        self._episode = -1
        self._length = 0
        self._return = 0.0
        self._recent: deque[_Row] = deque(maxlen=STACK)  # last rows of the current episode
        self._rows: list[_Row] = []
        self._episodes: list[tuple[int, float]] = []
        self.steps = 0

    @property
    def full(self) -> bool:
        """Whether the segment in the making has all its steps."""
        return bool(self._pieces) and self.steps == self._pieces[0][1]

    def begin(self, screen: _Screen, lives: int) -> None:
        """Take the first frame of an episode."""
        self._episode += 1
        self._length, self._return = 0, 0.0
        self._recent.clear()
        self._recent.append(_Row(screen, lives, self._episode, is_first=True))

    def step(
        self,
        action: int,
        reward: float,
        terminated: bool,
        truncated: bool,
        screen: _Screen,
        lives: int,
    ) -> None:
        """Take an action and what followed: reward, end, and the true next frame."""
        now = self._recent[-1]
        following = _Row(screen, lives, self._episode, is_first=False)
        self._length += 1
        self._return += reward
        if self._pieces and self._played >= self._pieces[0][0]:
            if not self.steps:
                past = list(self._recent)[:-1]
                self._rows = [dataclasses.replace(row, context=True) for row in past]
            self._rows.append(
                dataclasses.replace(
                    now, action=action, reward=reward, terminated=terminated, truncated=truncated
                )
            )
            self.steps += 1
            if terminated or truncated:
                self._episodes.append((self._length, self._return))
            if terminated or truncated or self.full:
                self._rows.append(following)
        self._played += 1
        self._recent.append(following)

    def take(self, colours: _Colours) -> tuple[SegmentMeta, layout.Arrays]:
        """The finished segment; the next one begins."""
        plan, (start, steps) = self._plan, self._pieces.popleft()
        rows, self._rows, self.steps = self._rows, [], 0
        episodes, self._episodes = self._episodes, []
        distinct = {row.screen.digest: row.screen for row in rows}
        number = {digest: i for i, digest in enumerate(distinct)}
        arrays = colours.frames(list(distinct.values()))
        arrays["digest"] = np.frombuffer(b"".join(distinct), np.uint8).reshape(
            -1, keys.DIGEST_BYTES
        )
        arrays["frame"] = np.array([number[row.screen.digest] for row in rows], np.int32)
        for name, kind in layout.ROW_FIELDS.items():
            if name != "frame":
                arrays[name] = np.array([getattr(row, name) for row in rows], kind)
        height, width = arrays["frames"].shape[1:3]
        meta = SegmentMeta(
            game=plan.game,
            segment=names.make_segment(plan.run, self._env, start),
            run=plan.run,
            env=self._env,
            start=start,
            rows=len(rows),
            steps=steps,
            frames=len(distinct),
            height=height,
            width=width,
            indexed="palette" in arrays,
            episodes=tuple(episodes),
            protocol=plan.protocol,
            policy=plan.policy,
            seed=plan.seed,
            emulator=games.emulator_identity(plan.game),
        )
        return meta, arrays
