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
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from wsa.learn.collect.palette import Colours, Pictures
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

# For estimates: a step of Seaquest on disk, and how fast recording is beside bare play.
BYTES_A_STEP = 240
RECORDING = 0.5


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

    Args:
        snapshot: The store.
        game: ALE game id.
        protocol: How to play.
        steps: Steps in all.
        num_envs: Environments side by side.
        policy: Who plays: `random`, or a name that no other policy has.
        seed: Environment i is seeded with seed + i.
        segment_steps: Steps in a segment.

    Raises:
        UsageError: A number is out of range.
    """
    for option, value, least, most in (
        ("--steps", steps, 1, 10**9),
        ("--num-envs", num_envs, 1, 999),
        ("--segment-steps", segment_steps, 1, 65536),
        ("--seed", seed, 0, 2**31 - 1000),
    ):
        if not least <= value <= most:
            raise UsageError("bad-option", f"{option} must be from {least} to {most}, not {value}.")
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
    """What to write of the first `end` steps of an environment, as (first step, steps), in order.

    Steps that are in no segment, cut to at most `longest`; and segments whose rows are there
    without their frames, as a repair may leave them: the same steps show the same frames.
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
    """What a plan would take: steps, segments, bytes and minutes, from a second of play."""
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
    policy: Policy | None = None,
) -> list[SegmentMeta]:
    """Play and write every missing segment of a plan.

    Args:
        plan: From `plan_collection`.
        backend: The store.
        on_steps: Called with (steps written, steps to write) now and then.
        policy: Who plays, if it is not `random`; what it does in an environment must not depend on
            how many others there are.

    Returns:
        The segments that this call made visible.
    """
    if not plan.missing:
        return []
    require_writable(backend)
    recorders = [Recorder(pieces) for pieces in plan.pieces]
    act = policy or EachRandom(len(plan.protocol.actions), plan.seed)
    envs = np.arange(plan.num_envs)
    last = max(start + length for pieces in plan.pieces for start, length in pieces[-1:])
    colours = Colours()
    env = games.make_env(plan.game, plan.protocol, plan.num_envs)
    writer = Writer(plan, backend, colours, games.emulator_identity(plan.game))
    try:
        observations, info = env.reset(seed=plan.seed)
        seen = colours.screens(observations, [recorder.wants(0) for recorder in recorders])
        for i, recorder in enumerate(recorders):
            recorder.begin(seen[i], int(info["lives"][i]))
        first = np.ones(plan.num_envs, np.bool_)
        for step in range(last):
            actions = act(games.pictures(observations), first, envs)
            observations, rewards, terminated, truncated, info = env.step(actions)
            wanted = [recorder.wants(step + 1) for recorder in recorders]
            first = ended = terminated | truncated
            seen = colours.screens(observations, wanted)
            final = colours.screens(info["final_obs"], ended & wanted) if ended.any() else seen
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
                    writer.write(i, recorder.take())
                    on_steps(writer.written, plan.missing)
                if ended[i]:
                    recorder.begin(seen[i], int(info["lives"][i]))
            if step % 64 == 0:
                waiting = sum(recorder.steps for recorder in recorders)
                on_steps(writer.written + waiting, plan.missing)
        writer.finish(0)
        on_steps(writer.written, plan.missing)
        return writer.visible
    finally:
        writer.close()
        env.close()


class Writer:
    """Commits segments in a thread of its own, so that play goes on while the disk is waited for.

    Args:
        plan: What the segments belong to.
        backend: The store.
        colours: What made the screens.
        emulator: As `SegmentMeta.emulator`.

    Attributes:
        written: Steps in the store, by this writer or another.
        visible: Segments that this writer made visible.
    """

    def __init__(
        self,
        plan: CollectPlan,
        backend: Backend,
        colours: Colours | Pictures,
        emulator: tuple[str, str],
    ) -> None:
        self._plan = plan
        self._backend = backend
        self._colours = colours
        self._emulator = emulator
        self._thread = ThreadPoolExecutor(1, "commit")
        self._waiting: deque[Future[tuple[SegmentMeta, bool]]] = deque()
        self.written = 0
        self.visible: list[SegmentMeta] = []

    def write(self, env: int, cut: Cut) -> None:
        """Have a segment committed; waits while as many as there are environments are under way."""
        self._waiting.append(self._thread.submit(self._commit, env, cut))
        self.finish(self._plan.num_envs)

    def finish(self, most: int) -> None:
        """Wait until at most `most` segments are under way.

        Raises:
            WsaError: A segment could not be committed.
        """
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            meta, visible = self._waiting.popleft().result()
            self.written += meta.steps
            if visible:
                self.visible.append(meta)

    def close(self) -> None:
        """Finish the segment being written; drop those that wait, which are soon played again."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _commit(self, env: int, cut: Cut) -> tuple[SegmentMeta, bool]:
        plan = self._plan
        distinct = {row.screen.digest: row.screen for row in cut.rows}
        number = {digest: i for i, digest in enumerate(distinct)}
        arrays = self._colours.frames(list(distinct.values()))
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
