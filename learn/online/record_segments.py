"""What an online run plays, as segments with their embeddings, so that it is never embedded again.

`--record` commits ordinary segments, cut like those of `wsa collect`, and for each model the
embeddings that the run has in its table. A segment that begins inside an episode first repeats
frames of before; the windows of these rows begin with the earliest at hand (`wsa.store.format.windows`),
which no agent has seen, so models with a window embed them now. At every checkpoint what has been played is cut and
committed first, so a run that is continued begins its next segment where its checkpoint stands, and
what a killed process had committed beyond it is found to be there already.
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
    """What a row of the table holds of a model.

    Attributes:
        model: Its key.
        window: Frames that it looks at.
        shape: Of an embedding.
        engine: Name of what ran it.
    """

    model: str
    window: int
    shape: tuple[int, ...]
    engine: str


_Look = tuple[Screen, ...]
"""The frames that a model looks at, oldest first."""


class _Part(NamedTuple):
    """A segment's embeddings by the models that look at as many frames.

    Attributes:
        rows: (n, width), one a distinct frame, or a row.
        passed: How many went through the models, and are in no segment before.
    """

    rows: NDArray[Any]
    passed: int


class Recording:
    """Commits the steps that an `EnvRunner` plays.

    Args:
        backend: The store.
        table: The run's, which has seen every frame that is shown.
        models: Whose embeddings a row holds, in its order; none if it holds grayscale pixels.
        game: ALE game id.
        protocol: How it is played.
        policy: Who plays, for the record.
        seed: Of the environments.
        run: 12 hex digits that name the run, and no other.
        num_envs: Environments.
        steps: Steps that each will play at most.
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
        """Windows that no agent has seen that went through a model, summed over the models."""
        return self._writer.passes

    def rewind(self, played: int, shown: NDArray[np.int64], episodes: NDArray[np.int64]) -> None:
        """Record from `played` steps on; each environment is about to be shown some before again.

        Args:
            played: Steps that each has played.
            shown: (n,) of these, how many will be shown again.
            episodes: (n,) episodes that had ended before them.
        """
        self._writer.tell_all()
        # The pieces that an uninterrupted run has left: the first of them is cut at `played`.
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
        """Take the first frames of episodes, of environments `envs` where `which` says."""
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
        """Take a step of environments `envs`, where `which` says, and the true frames that followed."""
        recorders = [self._recorders[env] for env in envs]
        wanted = which & [recorder.wants(recorder.played + 1) for recorder in recorders]
        screens = self._colours.screens(observations, wanted)
        for i in np.flatnonzero(which):
            recorder = recorders[i]
            if recorder.full:  # Once its last frame has been through the table.
                self._writer.write(int(envs[i]), recorder.take())
            recorder.step(
                int(actions[i]), float(rewards[i]), bool(terminated[i]), bool(truncated[i]),
                screens[i], int(lives[i]),
            )  # fmt: skip

    def flush(self) -> None:
        """Commit all that has been played, and wait until it is durable.

        Raises:
            WsaError: A segment could not be committed.
        """
        for i, recorder in enumerate(self._recorders):
            cut = recorder.cut()
            if cut:
                self._writer.write(i, cut)
        self._writer.finish(0)

    def close(self) -> None:
        """Finish the segment being written."""
        self._writer.close()


class _Writer(Writer):
    """Commits the embeddings of what it has committed.

    Attributes:
        passes: As `Recording.passes`.
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
        # Of the first rows of each part of the table, whether a segment tells of their passes.
        self._told: dict[int, NDArray[np.bool_]] = {}
        self._parts: dict[tuple[int, int], dict[int, _Part]] = {}

    def tell_all(self) -> None:
        """Take it that segments tell of the passes of all that the table has."""
        if self._models:
            self._told = {w: np.ones(len(p), np.bool_) for w, p in self._table.parts.items()}

    def write(self, env: int, cut: Cut) -> None:
        # Here, not in the thread that commits: the table grows meanwhile.
        if self._models:
            windows = {one.window for one in self._models}
            self._parts[env, cut.start] = {window: self._part(window, cut) for window in windows}
        super().write(env, cut)

    def _part(self, window: int, cut: Cut) -> _Part:
        """What the models that look at so many frames gave for a segment, from the table."""
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
        """How many of these went through the models, and are in no segment before."""
        part = self._table.parts[window]
        told = self._told.get(window, np.zeros(0, np.bool_))
        if len(part) > len(told):  # To twice its size, not by a few rows each time.
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
        if not visible and not self._plays(meta, cut):  # By a process that was killed since.
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
        """Whether the segment that is there shows what this one does."""
        path = names.segment_path(meta.game, meta.segment)
        rows = take_objects(self._backend, [path]).read_rows(meta)
        shown = rows["digest"][rows["frame"]].tobytes()
        if shown != b"".join(row.screen.digest for row in cut.rows):
            return False
        first: list[bool] = rows["is_first"].tolist()
        return first == [row.is_first for row in cut.rows]


def _looks(window: int, cut: Cut) -> list[_Look]:
    """What such models look at in a segment: its distinct frames, or the windows of its rows."""
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
