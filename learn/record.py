"""What an online run plays, as segments with their embeddings, so that nobody embeds it again.

`--record` commits ordinary segments, cut like those of `wsa collect`, and for each model the
embeddings that the run has in its table. At every checkpoint what has been played is cut and
committed first, so a run that is continued begins its next segment where its checkpoint stands, and
what a killed process had committed beyond it is found to be there already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.learn import env as games
from wsa.learn.collect import CollectPlan, Writer, gaps
from wsa.learn.colours import Colours
from wsa.learn.recorder import Recorder
from wsa.learn.table import Table
from wsa.store import names
from wsa.store.backends import Backend
from wsa.store.reader import take_objects
from wsa.store.records import EmbeddingMeta, Protocol, SegmentMeta
from wsa.store.writer import commit_embedding, embedding_dtype

SEGMENT_STEPS = 1024


class Recording:
    """Watches a stage and commits what it shows.

    Args:
        backend: The store.
        table: The run's, which has seen every frame that is shown.
        models: Key and embedding shape of each model, in the order of a row; none for grey pixels.
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
        models: Sequence[tuple[str, tuple[int, ...]]],
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

    def rewind(self, played: int, shown: NDArray[np.int64], episodes: NDArray[np.int64]) -> None:
        """Record from `played` steps on; each environment is about to be shown some before again.

        Args:
            played: Steps that each has played.
            shown: (n,) of these, how many will be shown again.
            episodes: (n,) episodes that had ended before them.
        """
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
        self, which: NDArray[np.bool_], observations: NDArray[np.uint8], lives: NDArray[Any]
    ) -> None:
        """Take the first frames of episodes."""
        wanted = which & [recorder.wants(recorder.played) for recorder in self._recorders]
        screens = self._colours.screens(observations, wanted)
        for i in np.flatnonzero(which):
            self._recorders[i].begin(screens[i], int(lives[i]))

    def step(
        self,
        which: NDArray[np.bool_],
        actions: NDArray[np.int64],
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        observations: NDArray[np.uint8],
        lives: NDArray[Any],
    ) -> None:
        """Take a step of some environments, and the true frames that followed."""
        wanted = which & [recorder.wants(recorder.played + 1) for recorder in self._recorders]
        screens = self._colours.screens(observations, wanted)
        for i in np.flatnonzero(which):
            recorder = self._recorders[i]
            if recorder.full:  # Once its last frame has been through the table.
                self._writer.write(int(i), recorder.take())
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
    """Commits the embeddings of what it has committed."""

    def __init__(
        self,
        plan: CollectPlan,
        backend: Backend,
        colours: Colours,
        emulator: tuple[str, str],
        table: Table,
        models: Sequence[tuple[str, tuple[int, ...]]],
    ) -> None:
        super().__init__(plan, backend, colours, emulator)
        self._table = table
        self._models = list(models)
        self._rows: dict[tuple[int, int], NDArray[Any]] = {}

    def write(self, env: int, cut: Any) -> None:
        # Here, not in the thread that commits: the table grows meanwhile.
        digests = list({row.screen.digest: None for row in cut.rows})
        if self._models:
            rows = self._table.find(digests)
            self._rows[env, cut.start] = self._table.gather(rows).numpy()
        super().write(env, cut)

    def _commit(self, env: int, cut: Any) -> tuple[SegmentMeta, bool]:
        meta, visible = super()._commit(env, cut)
        rows = self._rows.pop((env, cut.start), None)
        if rows is None:
            return meta, visible
        if not visible:  # By a process that was killed since. Did it play what we did?
            path = names.segment_path(meta.game, meta.segment)
            there = take_objects(self._backend, [path]).read_digests(meta)
            ours = list({row.screen.digest: None for row in cut.rows})
            if there.tobytes() != b"".join(ours):
                return meta, visible
        at = 0
        for key, shape in self._models:
            part = rows[:, at : at + math.prod(shape)].reshape(len(rows), *shape)
            part = part.astype(embedding_dtype(part))
            at += math.prod(shape)
            about = EmbeddingMeta(
                game=meta.game,
                segment=meta.segment,
                model=key,
                shape=part.shape,
                dtype=part.dtype.name,
                passes=0,
                copied=len(part),
                seconds=0.0,
            )
            commit_embedding(self._backend, about, part)
        return meta, visible
