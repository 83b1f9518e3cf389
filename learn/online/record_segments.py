"""Commit an online run's steps as segments, together with the embeddings the run has computed.

`--record` commits ordinary segments, cut like those of `wsa collect`, and each model's embeddings
from the run's table, so nothing is embedded twice. A segment that begins inside an episode first
repeats a few earlier frames. The windows of these rows start at the segment's earliest frame
(`wsa.store.format.windows`), so the agent never saw them, and models with a window embed them when
the segment is written. Before every checkpoint, all steps so far are cut and committed. A resumed
run therefore begins its next segment at its checkpoint, and finds later segments that a killed
process had committed already there.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsa.encode.live.frame_history import FrameInputs, FrameWindow
from wsa.learn.collect.collect import CollectPlan, Writer, gaps
from wsa.learn.collect.palette import Colours, Screen
from wsa.learn.collect.recorder import Cut, Recorder
from wsa.learn.envs import atari as games
from wsa.learn.online.embedding_table import Table
from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.format.records import EmbeddingMeta, Protocol, SegmentMeta
from wsa.store.format.windows import episode_starts, window_rows
from wsa.store.objects.snapshot import take_objects
from wsa.store.objects.writer import commit_embedding, embedding_dtype

SEGMENT_STEPS = 1024


@dataclasses.dataclass(frozen=True)
class Embedded:
    """One model's part of a table row.

    Attributes:
        model: Key of the model.
        window: Number of frames that the model sees.
        shape: Shape of an embedding.
        engine: Name of the engine that ran the model.
    """

    model: str
    window: int
    shape: tuple[int, ...]
    engine: str


_Look = tuple[Screen, ...]
"""One model input: a frame or a window of frames, oldest first."""


class _Part(NamedTuple):
    """A segment's embeddings by the models with one window size.

    Attributes:
        rows: Embeddings, (n, width), one per distinct frame (window 1) or per step row.
        passed: Number of passes behind them that no earlier segment has counted.
    """

    rows: NDArray[Any]
    passed: int


class Recording:
    """Commits the steps that an `EnvRunner` plays.

    Args:
        backend: The store.
        table: The run's embedding table, which has seen every recorded frame.
        models: The models in a table row, in order; empty for grayscale pixels.
        game: ALE game id.
        protocol: Protocol by which the game is played.
        policy: Name of the policy, stored in each segment's record.
        seed: Seed of the environments.
        run: Unique name of the run, 12 hex digits.
        num_envs: Number of environments.
        steps: Maximum number of steps of each environment.
    """

    def __init__(
        self,
        backend: Backend,
        table: Table,
        models: Sequence[Embedded],
        *,
        game: str,
        protocol: Protocol,
        policy: str,
        seed: int,
        run: str,
        num_envs: int,
        steps: int,
    ) -> None:
        self._steps = steps
        plan = CollectPlan(
            game, protocol, policy, seed, run, num_envs, steps * num_envs, ((),) * num_envs
        )
        self._colours = Colours()
        self._writer = _Writer(
            plan, backend, self._colours, games.emulator_identity(game), table, models
        )
        self._recorders: list[Recorder] = []
        self.rewind(0, np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64))

    @property
    def passes(self) -> int:
        """Passes of windows that the agent never saw, summed over the models."""
        return self._writer.passes

    def rewind(self, played: int, shown: NDArray[np.int64], episodes: NDArray[np.int64]) -> None:
        """Continue recording at step `played`, before some earlier steps are replayed.

        Args:
            played: Number of steps that each environment has played.
            shown: Number of these steps that will be replayed, (n,).
            episodes: Number of episodes that ended before the replayed steps, (n,).
        """
        self._writer.tell_all()
        # The remaining pieces of an uninterrupted run, the first one cut at `played`.
        grid = gaps([], self._steps, SEGMENT_STEPS)
        pieces = [
            (max(start, played), start + length - max(start, played))
            for start, length in grid
            if start + length > played
        ]
        self._recorders = [
            Recorder(pieces, played - int(again), int(ended))
            for again, ended in zip(shown, episodes, strict=True)
        ]

    def begin(
        self,
        envs: NDArray[np.int64],
        which: NDArray[np.bool_],
        observations: NDArray[np.uint8],
        lives: NDArray[Any],
    ) -> None:
        """Record the first frames of episodes in those of `envs` that `which` selects."""
        recorders = [self._recorders[env] for env in envs]
        wanted = which & [recorder.wants(recorder.played) for recorder in recorders]
        screens = self._colours.screens(observations, wanted)
        for i in np.flatnonzero(which):
            recorders[i].begin(screens[i], int(lives[i]))

    def step(
        self,
        envs: NDArray[np.int64],
        which: NDArray[np.bool_],
        actions: NDArray[np.int64],
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        observations: NDArray[np.uint8],
        lives: NDArray[Any],
    ) -> None:
        """Record a step, with the true next frames, in those of `envs` that `which` selects."""
        recorders = [self._recorders[env] for env in envs]
        wanted = which & [recorder.wants(recorder.played + 1) for recorder in recorders]
        screens = self._colours.screens(observations, wanted)
        for i in np.flatnonzero(which):
            recorder = recorders[i]
            if recorder.full:  # By now its last frame is in the table.
                self._writer.write(int(envs[i]), recorder.take())
            recorder.step(
                int(actions[i]), float(rewards[i]), bool(terminated[i]), bool(truncated[i]),
                screens[i], int(lives[i]),
            )  # fmt: skip

    def flush(self) -> None:
        """Commit all steps so far, and wait until they are on disk.

        Raises:
            WsaError: If a segment cannot be committed.
        """
        for i, recorder in enumerate(self._recorders):
            cut = recorder.cut()
            if cut:
                self._writer.write(i, cut)
        self._writer.finish(0)

    def close(self) -> None:
        """Finish the segment that is being written."""
        self._writer.close()


class _Writer(Writer):
    """Commits segments, then their embeddings.

    Attributes:
        passes: See `Recording.passes`.
    """

    def __init__(
        self,
        plan: CollectPlan,
        backend: Backend,
        colours: Colours,
        emulator: tuple[str, str],
        table: Table,
        models: Sequence[Embedded],
    ) -> None:
        super().__init__(plan, backend, colours, emulator)
        self.passes = 0
        self._screens = colours
        self._table = table
        self._models = list(models)
        # For each window size, whether a segment has counted the pass of each table row.
        self._told: dict[int, NDArray[np.bool_]] = {}
        self._parts: dict[tuple[int, int], dict[int, _Part]] = {}

    def tell_all(self) -> None:
        """Mark the passes of all current table rows as counted."""
        if self._models:
            self._told = {w: np.ones(len(p), np.bool_) for w, p in self._table.parts.items()}

    def write(self, env: int, cut: Cut) -> None:
        # Look up embeddings here, not in the committing thread, because the table grows.
        if self._models:
            windows = {one.window for one in self._models}
            self._parts[env, cut.start] = {window: self._part(window, cut) for window in windows}
        super().write(env, cut)

    def _part(self, window: int, cut: Cut) -> _Part:
        """Return a segment's embeddings by the models with this window size."""
        part, looks = self._table.parts[window], _looks(window, cut)
        ids = [_identity(look) for look in looks]
        look_of = dict(zip(ids, looks, strict=True))
        distinct = list(look_of)
        rows = part.find(distinct)
        seen = rows >= 0
        found = np.empty((len(distinct), part.lookup.width), part.lookup.dtype)
        found[seen] = part.gather(rows[seen])
        passed = self._fresh(window, rows[seen], [*itertools.compress(distinct, seen)])
        if not seen.all():
            unseen = [*itertools.compress(distinct, ~seen)]
            before = part.lookup.passes, part.lookup.found
            inputs = FrameInputs([self._window(look_of[name]) for name in unseen])
            found[~seen], _ = part.lookup.begin(unseen, inputs).result()
            self.passes += part.lookup.passes - before[0]
            passed += len(unseen) - (part.lookup.found - before[1])
        number = {name: i for i, name in enumerate(distinct)}
        return _Part(found[[number[name] for name in ids]], passed)

    def _window(self, look: _Look) -> FrameWindow:
        frames = tuple(self._screens.picture(screen) for screen in look)
        return FrameWindow(frames, tuple(screen.digest for screen in look))

    def _fresh(self, window: int, rows: NDArray[np.int64], digests: list[bytes]) -> int:
        """Count the rows that needed a pass which no segment has counted, and mark them."""
        part = self._table.parts[window]
        told = self._told.get(window, np.zeros(0, np.bool_))
        if len(part) > len(told):  # Double it, rather than grow by a few rows each time.
            told = np.append(told, np.zeros(len(part), np.bool_))
        fresh = ~told[rows] & (part.lookup.rows(digests) < 0)
        told[rows] = True
        self._told[window] = told
        return int(fresh.sum())

    def _commit(self, env: int, cut: Cut) -> tuple[SegmentMeta, bool]:
        meta, visible = super()._commit(env, cut)
        if (env, cut.start) not in self._parts:
            return meta, visible
        parts = self._parts.pop((env, cut.start))
        # A killed process may have committed this segment before, with other frames.
        if not visible and not self._plays(meta, cut):
            return meta, visible
        begin = dict.fromkeys(parts, 0)
        for one in self._models:
            rows, passed = parts[one.window]
            at, begin[one.window] = begin[one.window], begin[one.window] + math.prod(one.shape)
            own = rows[:, at : begin[one.window]].reshape(len(rows), *one.shape)
            own = own.astype(embedding_dtype(own))
            about = EmbeddingMeta(
                game=meta.game,
                segment=meta.segment,
                model=one.model,
                shape=own.shape,
                dtype=own.dtype.name,
                passes=passed,
                copied=len(own) - passed,
                seconds=passed * self._table.seconds_a_pass,
                window=one.window,
                engine=one.engine,
            )
            commit_embedding(self._backend, about, own)
        return meta, visible

    def _plays(self, meta: SegmentMeta, cut: Cut) -> bool:
        """Return whether the segment in the store has the same frames and episode starts."""
        path = names.segment_path(meta.game, meta.segment)
        rows = take_objects(self._backend, [path]).read_rows(meta)
        shown = rows["digest"][rows["frame"]].tobytes()
        if shown != b"".join(row.screen.digest for row in cut.rows):
            return False
        first: list[bool] = rows["is_first"].tolist()
        return first == [row.is_first for row in cut.rows]


def _looks(window: int, cut: Cut) -> list[_Look]:
    """Return the inputs of models with this window: a segment's distinct frames, or its windows."""
    screens = [row.screen for row in cut.rows]
    if window == 1:
        return [(screen,) for screen in {screen.digest: screen for screen in screens}.values()]
    starts = episode_starts(np.array([row.is_first for row in cut.rows]))
    return [
        tuple(screens[row] for row in rows)
        for rows in window_rows(np.arange(len(screens)), starts, window)
    ]


def _identity(look: _Look) -> bytes:
    if len(look) == 1:
        return look[0].digest
    return hashing.window_digest(b"".join(screen.digest for screen in look))
