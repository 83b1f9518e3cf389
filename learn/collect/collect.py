"""Play games with a policy, and commit the steps as segments.

A collection *run* is defined by everything that determines its steps: game, protocol, policy, seed,
and emulator. Environment i of a run always plays the same steps, numbered from 0, and a segment is
an interval of them. Collecting fills the gaps: it plays from the start, at thousands of steps per
second, and commits the steps that are missing. So running the same command again does nothing, an
interrupted one continues, and asking for more steps extends the run.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from wsa.learn.collect.palette import IndexedScreens, RGBScreens
from wsa.learn.collect.recorder import Cut, Recorder
from wsa.learn.envs import atari as games
from wsa.learn.envs.policies import EachRandom, Policy
from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import UsageError
from wsa.store.format import arrays as layout
from wsa.store.format.records import Protocol, SegmentMeta
from wsa.store.objects.root import require_writable
from wsa.store.objects.snapshot import Snapshot
from wsa.store.objects.writer import commit_segment

# For estimates: bytes of a Seaquest step on disk, and speed of recording relative to bare play.
BYTES_A_STEP = 240
RECORDING = 0.5


Converter = TypeVar("Converter", IndexedScreens, RGBScreens)


@dataclasses.dataclass(frozen=True)
class CollectPlan:
    """A collection run and its missing intervals.

    Attributes:
        game: ALE game id.
        protocol: Protocol by which the game is played.
        policy: `random`, or a name that is unique to the policy.
        seed: Environment i is seeded with seed + i.
        run: Name of the run, 12 hex digits.
        num_envs: Number of parallel environments.
        steps: Total number of steps requested, rounded up to a multiple of `num_envs`.
        pieces: Intervals to write for each environment, as (first step, number of steps).
    """

    game: str
    protocol: Protocol
    policy: str
    seed: int
    run: str
    num_envs: int
    steps: int
    pieces: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def missing(self) -> int:
        """Number of steps that the store lacks."""
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
    """Find the intervals of a collection run that are not committed yet.

    The arguments are those of `CollectPlan`; a segment has at most `segment_steps` steps.

    Raises:
        UsageError: If a number is out of range.
    """
    for option, value, least, most in (
        ("--steps", steps, 1, 10**9),
        ("--num-envs", num_envs, 1, 999),
        ("--segment-steps", segment_steps, 1, 65536),
        ("--seed", seed, 0, 2**31 - 1000),
    ):
        if not least <= value <= most:
            raise UsageError(f"{option} must be from {least} to {most}, not {value}.")
    emulator = games.emulator_identity(game)
    run = hashing.identity([game, protocol, policy, seed, emulator])[:12]
    each = -(-steps // num_envs)
    pieces = tuple(
        lacking(snapshot, game, run, env, each, segment_steps) for env in range(num_envs)
    )
    return CollectPlan(game, protocol, policy, seed, run, num_envs, each * num_envs, pieces)


def lacking(
    snapshot: Snapshot, game: str, run: str, env: int, end: int, longest: int
) -> tuple[tuple[int, int], ...]:
    """Return the intervals to write among an environment's first `end` steps, in order.

    Each interval is (first step, number of steps). They cover the steps that are in no segment, in
    pieces of at most `longest` steps, and segments that have rows but no frames, as a repair may
    leave them: playing the same steps shows the same frames.
    """
    own = [m for m in snapshot.segments(game) if m.run == run and m.env == env]
    seen = {m.segment for m in snapshot.frames(game)}
    pieces = list(gaps(sorted((m.start, m.steps) for m in own), end, longest))
    at = 0
    for meta in sorted(own, key=lambda m: m.start):
        if meta.segment not in seen and at <= meta.start and meta.start + meta.steps <= end:
            pieces.append((meta.start, meta.steps))
            at = meta.start + meta.steps
    return tuple(sorted(pieces))


def estimate(plan: CollectPlan) -> dict[str, float]:
    """Estimate a plan's steps, segments, bytes, and minutes by playing for one second."""
    env = games.make_env(plan.game, plan.protocol, plan.num_envs)
    generator = np.random.default_rng(plan.seed)
    env.reset(seed=plan.seed)
    started, played = time.perf_counter(), 0
    while time.perf_counter() - started < 1:
        env.step(generator.integers(len(plan.protocol.actions), size=plan.num_envs))
        played += plan.num_envs
    rate = played / (time.perf_counter() - started)
    env.close()
    last = max((start + length for pieces in plan.pieces for start, length in pieces), default=0)
    return {
        "steps": plan.missing,
        "segments": sum(map(len, plan.pieces)),
        "bytes": BYTES_A_STEP * plan.missing,
        "minutes": last * plan.num_envs / (rate * RECORDING) / 60,
    }


def gaps(done: list[tuple[int, int]], end: int, longest: int) -> Iterator[tuple[int, int]]:
    """Yield the intervals of [0, end) that are not in `done`, cut to at most `longest` steps."""
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
    policy: Policy | None = None,
) -> list[SegmentMeta]:
    """Play, and commit every missing segment of a plan.

    Args:
        plan: Result of `plan_collection`.
        on_steps: Called from time to time with (steps written, steps to write).
        policy: Policy to play; None for `random`. Its actions in an environment must not depend on
            the number of environments.

    Returns:
        The segments that this call committed.
    """
    if not plan.missing:
        return []
    require_writable(backend)
    recorders = [Recorder(pieces) for pieces in plan.pieces]
    act = policy or EachRandom(len(plan.protocol.actions), plan.seed)
    envs = np.arange(plan.num_envs)
    last = max(start + length for pieces in plan.pieces for start, length in pieces[-1:])
    converter = IndexedScreens()
    env = games.make_env(plan.game, plan.protocol, plan.num_envs)
    writer = Writer(plan, backend, converter, games.emulator_identity(plan.game))
    try:
        observations, info = env.reset(seed=plan.seed)
        seen = converter.screens(observations, [recorder.wants(0) for recorder in recorders])
        for i, recorder in enumerate(recorders):
            recorder.begin(seen[i], info["lives"][i])
        first = np.ones(plan.num_envs, np.bool_)
        for step in range(last):
            actions = act(games.rgb_frames(observations), first, envs)
            observations, rewards, terminated, truncated, info = env.step(actions)
            wanted = [recorder.wants(step + 1) for recorder in recorders]
            first = ended = terminated | truncated
            seen = converter.screens(observations, wanted)
            final = converter.screens(info["final_obs"], ended & wanted) if ended.any() else seen
            for i, recorder in enumerate(recorders):
                screen, lives = (final[i], 0) if ended[i] else (seen[i], info["lives"][i])
                recorder.step(actions[i], rewards[i], terminated[i], truncated[i], screen, lives)
                if recorder.full:
                    writer.write(i, recorder.take())
                    on_steps(writer.written, plan.missing)
                if ended[i]:
                    recorder.begin(seen[i], info["lives"][i])
            if step % 64 == 0:
                waiting = sum(recorder.steps for recorder in recorders)
                on_steps(writer.written + waiting, plan.missing)
        writer.finish(0)
        on_steps(writer.written, plan.missing)
        return writer.visible
    finally:
        writer.close()
        env.close()


class Writer(Generic[Converter]):
    """Commits segments in a background thread, so play continues during disk writes.

    Attributes:
        written: Number of steps whose segments are now in the store, from any writer.
        visible: Segments that this writer committed.
    """

    def __init__(
        self,
        plan: CollectPlan,
        backend: Backend,
        converter: Converter,
        emulator: tuple[str, str],
    ) -> None:
        self._plan = plan
        self._backend = backend
        self._converter: Converter = converter
        self._emulator = emulator
        self._thread = ThreadPoolExecutor(1, "commit")
        self._waiting: deque[Future[tuple[SegmentMeta, bool]]] = deque()
        self.written = 0
        self.visible: list[SegmentMeta] = []

    def write(self, env: int, cut: Cut) -> None:
        """Queue a segment for commit. Block while more than `num_envs` segments are queued."""
        self._waiting.append(self._thread.submit(self._commit, env, cut))
        self.finish(self._plan.num_envs)

    def finish(self, most: int) -> None:
        """Wait until at most `most` segments are queued.

        Raises:
            WsaError: If a segment cannot be committed.
        """
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            meta, visible = self._waiting.popleft().result()
            self.written += meta.steps
            if visible:
                self.visible.append(meta)

    def close(self) -> None:
        """Finish the current commit, and drop queued segments, which are quickly played again."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _commit(self, env: int, cut: Cut) -> tuple[SegmentMeta, bool]:
        plan = self._plan
        distinct = {row.screen.digest: row.screen for row in cut.rows}
        number = {digest: i for i, digest in enumerate(distinct)}
        arrays = self._converter.frames(list(distinct.values()))
        digests = np.frombuffer(b"".join(distinct), np.uint8)
        arrays["digest"] = digests.reshape(-1, hashing.DIGEST_BYTES)
        arrays["frame"] = np.array([number[row.screen.digest] for row in cut.rows], np.int32)
        for name, kind in layout.ROW_FIELDS.items():
            if name != "frame":
                arrays[name] = np.array([getattr(row, name) for row in cut.rows], kind)
        meta = SegmentMeta(
            game=plan.game,
            segment=names.make_segment(plan.run, env, cut.start, cut.steps),
            run=plan.run,
            env=env,
            start=cut.start,
            rows=len(cut.rows),
            steps=cut.steps,
            frames=len(distinct),
            episodes=tuple(cut.episodes),
            protocol=plan.protocol,
            policy=plan.policy,
            seed=plan.seed,
            emulator=self._emulator,
        )
        return meta, commit_segment(self._backend, meta, arrays)
