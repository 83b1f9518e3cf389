"""What an online run plays, as segments with their embeddings, so that nobody embeds it again.

`--record` commits ordinary segments, cut like those of `wsa collect`, and for each model the
embeddings that the run has in its table. At every checkpoint what has been played is cut and
committed first, so a run that is continued begins its next segment where its checkpoint stands, and
what a killed process had committed beyond it is found to be there already.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
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


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What a row of the table holds of a model.

    Attributes:
        model: Its key.
        shape: Of an embedding.
        engine: Name of what ran it.
    """

    model: str
    shape: tuple[int, ...]
    engine: str


class Recording:
    """Watches a stage and commits what it shows.

    Args:
        backend: The store.
        table: The run's, which has seen every frame that is shown.
        models: Whose embeddings a row holds, in its order; nobody's if it holds grey pixels.
        knows: Tells of digests whether the store had them when the run was begun.
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
        knows: Callable[[Sequence[bytes]], NDArray[np.bool_]],
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
            plan, backend, self._colours, games.emulator_identity(game), table, models, knows
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
        self._writer.told = np.ones(len(self._writer.table), np.bool_)
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
    """Commits the embeddings of what it has committed.

    Attributes:
        table: The run's.
        told: (N,) of its first rows, whether a segment tells of their passes.
    """

    def __init__(
        self,
        plan: CollectPlan,
        backend: Backend,
        colours: Colours,
        emulator: tuple[str, str],
        table: Table,
        models: Sequence[Embedded],
        knows: Callable[[Sequence[bytes]], NDArray[np.bool_]],
    ) -> None:
        super().__init__(plan, backend, colours, emulator)
        self.table = table
        self.told = np.zeros(0, np.bool_)
        self._models = list(models)
        self._knows = knows
        self._rows: dict[tuple[int, int], tuple[NDArray[Any], int]] = {}

    def write(self, env: int, cut: Any) -> None:
        # Here, not in the thread that commits: the table grows meanwhile.
        if self._models:
            digests = list({row.screen.digest: None for row in cut.rows})
            rows = self.table.find(digests)
            passed = self._passed(rows, digests)
            self._rows[env, cut.start] = self.table.gather(rows).numpy(), passed
        super().write(env, cut)

    def _passed(self, rows: NDArray[np.int64], digests: list[bytes]) -> int:
        """How many of these frames went through the models, and are in no segment before."""
        if len(self.table) > len(self.told):  # To twice its size, not by a few rows each time.
            self.told = np.append(self.told, np.zeros(len(self.table), np.bool_))
        fresh = ~self.told[rows] & ~self._knows(digests)
        self.told[rows] = True
        return int(fresh.sum())

    def _commit(self, env: int, cut: Any) -> tuple[SegmentMeta, bool]:
        meta, visible = super()._commit(env, cut)
        if (env, cut.start) not in self._rows:
            return meta, visible
        rows, passed = self._rows.pop((env, cut.start))
        if not visible:  # By a process that was killed since. Did it play what we did?
            path = names.segment_path(meta.game, meta.segment)
            there = take_objects(self._backend, [path]).read_digests(meta)
            ours = list({row.screen.digest: None for row in cut.rows})
            if there.tobytes() != b"".join(ours):
                return meta, visible
        at = 0
        for one in self._models:
            part = rows[:, at : at + math.prod(one.shape)].reshape(len(rows), *one.shape)
            part = part.astype(embedding_dtype(part))
            at += math.prod(one.shape)
            about = EmbeddingMeta(
                game=meta.game,
                segment=meta.segment,
                model=one.model,
                shape=part.shape,
                dtype=part.dtype.name,
                passes=passed,
                copied=len(part) - passed,
                seconds=passed * self.table.seconds_a_pass,
                engine=one.engine,
            )
            commit_embedding(self._backend, about, part)
        return meta, visible
