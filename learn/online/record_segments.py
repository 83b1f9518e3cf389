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
from wsa.learn.collect.palette import IndexedScreens, Screen
from wsa.learn.collect.recorder import Cut, Recorder
from wsa.learn.envs import atari as games
from wsa.learn.online.embedding_table import Table
from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.format.records import EmbeddingMeta, SegmentMeta
from wsa.store.format.windows import episode_starts, window_rows
from wsa.store.objects.snapshot import take_objects
from wsa.store.objects.writer import commit_embedding, embedding_dtype

SEGMENT_STEPS = 1024


@dataclasses.dataclass(frozen=True)
class Embedded:
    """One model's part of a table row: its key, the number of frames that it sees, the shape of an
    embedding, and the engine that ran it.
    """

    model: str
    window: int
    shape: tuple[int, ...]
    engine: str


_ModelInput = tuple[Screen, ...]
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
        plan: What is played; every step is recorded, whatever its `pieces`.
        table: The run's embedding table, which has seen every recorded frame.
        models: The models in a table row, in order; empty for grayscale pixels.
    """

    def __init__(
        self, backend: Backend, plan: CollectPlan, table: Table, models: Sequence[Embedded]
    ) -> None:
        self._steps = plan.steps // plan.num_envs
        self._converter = IndexedScreens()
        self._writer = _Writer(
            plan, backend, self._converter, games.emulator_identity(plan.game), table, models
        )
        self._recorders: list[Recorder] = []
        self.rewind(0, *np.zeros((2, plan.num_envs), np.int64))

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
        self._writer.mark_counted()
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
        screens = self._converter.screens(observations, wanted)
        for i in np.flatnonzero(which):
            recorders[i].begin(screens[i], lives[i])

    def step(
        self,
        envs: NDArray[np.int64],
        which: NDArray[np.bool_],
        actions: NDArray[np.int64],
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        final: NDArray[np.uint8],
        observations: NDArray[np.uint8],
        lives: NDArray[Any],
    ) -> None:
        """Record a step in those of `envs` that `which` selects.

        Where an episode ended, `final` has its last frame. `observations` and `lives` are those of
        the next episode, which begins.
        """
        recorders = [self._recorders[env] for env in envs]
        ended = terminated | truncated
        last = np.where(ended[:, None, None, None, None], final, observations)
        left = np.where(ended, 0, lives)
        wanted = which & [recorder.wants(recorder.played + 1) for recorder in recorders]
        screens = self._converter.screens(last, wanted)
        for i in np.flatnonzero(which):
            recorder = recorders[i]
            if recorder.full:  # By now its last frame is in the table.
                self._writer.write(int(envs[i]), recorder.take())
            recorder.step(actions[i], rewards[i], terminated[i], truncated[i], screens[i], left[i])
        self.begin(envs, which & ended, observations, lives)

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


class _Writer(Writer[IndexedScreens]):
    """Commits segments, then their embeddings."""

    def __init__(
        self,
        plan: CollectPlan,
        backend: Backend,
        converter: IndexedScreens,
        emulator: tuple[str, str],
        table: Table,
        models: Sequence[Embedded],
    ) -> None:
        super().__init__(plan, backend, converter, emulator)
        self.passes = 0
        self._table = table
        self._models = list(models)
        # For each window size, whether a segment has counted the pass of each table row.
        self._counted: dict[int, NDArray[np.bool_]] = {}
        self._parts: dict[tuple[int, int], dict[int, _Part]] = {}

    def mark_counted(self) -> None:
        """Mark the passes of all current table rows as counted."""
        if self._models:
            self._counted = {w: np.ones(len(p), np.bool_) for w, p in self._table.parts.items()}

    def write(self, env: int, cut: Cut) -> None:
        # Look up embeddings here, not in the committing thread, because the table grows.
        if self._models:
            windows = {one.window for one in self._models}
            self._parts[env, cut.start] = {window: self._part(window, cut) for window in windows}
        super().write(env, cut)

    def _part(self, window: int, cut: Cut) -> _Part:
        """Return a segment's embeddings by the models with this window size."""
        part, model_inputs = self._table.parts[window], _model_inputs(window, cut)
        digests = [_digest(model_input) for model_input in model_inputs]
        input_of = dict(zip(digests, model_inputs, strict=True))
        distinct = list(input_of)
        rows = part.find(distinct)
        known = rows >= 0
        embeddings = np.empty((len(distinct), part.lookup.width), part.lookup.dtype)
        embeddings[known] = part.gather(rows[known])
        passed = self._count_passes(window, rows[known], [*itertools.compress(distinct, known)])
        if not known.all():
            unknown = [*itertools.compress(distinct, ~known)]
            before = part.lookup.passes, part.lookup.found
            inputs = FrameInputs([self._window(input_of[digest]) for digest in unknown])
            embeddings[~known], _ = part.lookup.begin(unknown, inputs).result()
            self.passes += part.lookup.passes - before[0]
            passed += len(unknown) - (part.lookup.found - before[1])
        index = {digest: i for i, digest in enumerate(distinct)}
        return _Part(embeddings[[index[digest] for digest in digests]], passed)

    def _window(self, model_input: _ModelInput) -> FrameWindow:
        frames = tuple(self._converter.picture(screen) for screen in model_input)
        return FrameWindow(frames, tuple(screen.digest for screen in model_input))

    def _count_passes(self, window: int, rows: NDArray[np.int64], digests: list[bytes]) -> int:
        """Count the rows that needed a pass which no segment has counted, and mark them."""
        part = self._table.parts[window]
        counted = self._counted.get(window, np.zeros(0, np.bool_))
        if len(part) > len(counted):  # Double it, rather than grow by a few rows each time.
            counted = np.append(counted, np.zeros(len(part), np.bool_))
        uncounted = ~counted[rows] & (part.lookup.rows(digests) < 0)
        counted[rows] = True
        self._counted[window] = counted
        return int(uncounted.sum())

    def _commit(self, env: int, cut: Cut) -> tuple[SegmentMeta, bool]:
        meta, visible = super()._commit(env, cut)
        if (env, cut.start) not in self._parts:
            return meta, visible
        parts = self._parts.pop((env, cut.start))
        # A killed process may have committed this segment before, with other frames.
        if not visible and not self._shows_the_same(meta, cut):
            return meta, visible
        begin = dict.fromkeys(parts, 0)
        for model in self._models:
            rows, passed = parts[model.window]
            start = begin[model.window]
            end = begin[model.window] = start + math.prod(model.shape)
            embeddings = rows[:, start:end].reshape(len(rows), *model.shape)
            embeddings = embeddings.astype(embedding_dtype(embeddings))
            embedding_meta = EmbeddingMeta(
                game=meta.game,
                segment=meta.segment,
                model=model.model,
                shape=embeddings.shape,
                dtype=embeddings.dtype.name,
                passes=passed,
                copied=len(embeddings) - passed,
                seconds=passed * self._table.seconds_a_pass,
                window=model.window,
                engine=model.engine,
            )
            commit_embedding(self._backend, embedding_meta, embeddings)
        return meta, visible

    def _shows_the_same(self, meta: SegmentMeta, cut: Cut) -> bool:
        """Return whether the segment in the store has the same frames and episode starts."""
        path = names.segment_path(meta.game, meta.segment)
        rows = take_objects(self._backend, [path]).read_rows(meta)
        shown = rows["digest"][rows["frame"]].tobytes()
        if shown != b"".join(row.screen.digest for row in cut.rows):
            return False
        first: list[bool] = rows["is_first"].tolist()
        return first == [row.is_first for row in cut.rows]


def _model_inputs(window: int, cut: Cut) -> list[_ModelInput]:
    """Return the inputs of models with this window: a segment's distinct frames, or its windows."""
    screens = [row.screen for row in cut.rows]
    if window == 1:
        return [(screen,) for screen in {screen.digest: screen for screen in screens}.values()]
    starts = episode_starts(np.array([row.is_first for row in cut.rows]))
    return [
        tuple(screens[row] for row in rows)
        for rows in window_rows(np.arange(len(screens)), starts, window)
    ]


def _digest(model_input: _ModelInput) -> bytes:
    if len(model_input) == 1:
        return model_input[0].digest
    return hashing.window_digest(b"".join(screen.digest for screen in model_input))
