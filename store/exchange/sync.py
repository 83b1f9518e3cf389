"""Copy to one store the objects that another has and it lacks.

Nothing is ever removed or overwritten. An object is copied after the objects it depends on, each
file is checked against its record, and the record comes last, as in `writer`. So an interrupted copy
leaves complete objects, and the same command continues after them.

Two objects of the same path may still differ: a segment with other frames, or a model that returns
other embeddings. Such an object, and those that depend on it, are not copied but reported.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial

import msgspec
import numpy as np

from wsa.store.backends.base import Backend
from wsa.store.common import names
from wsa.store.common.errors import DamagedError, MissingError, WsaError
from wsa.store.format import records
from wsa.store.format.arrays import Files
from wsa.store.format.records import Commit, EmbeddingMeta, FramesMeta, Meta, ModelMeta, SegmentMeta
from wsa.store.objects.snapshot import Snapshot, read_each, take_snapshot
from wsa.store.objects.writer import (
    PUTS_AT_ONCE,
    committed,
    new_attempt,
    publish_record,
    remove_files,
    require_new,
)

# Each kind depends on those before it. Frames come before rows, so visible rows can be encoded.
ORDER: tuple[type[Meta], ...] = (ModelMeta, FramesMeta, SegmentMeta, EmbeddingMeta)

# Limit on the size of files being copied at the same time, unless a single one is larger.
MAX_HELD_BYTES = 512 << 20


@dataclasses.dataclass(frozen=True)
class Finding:
    """An object or record that was not copied: its path and the reason."""

    path: str
    why: str


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A copy between stores, planned or done.

    Attributes:
        objects: Records of the objects to copy, sorted by `ORDER`; or of those copied.
        present: Number of requested objects that the target already has.
        left: Number of embeddings that are not copied because their segment or model is not.
        damaged: Objects that are not copied because their bytes are not what was committed.
        conflicts: Objects that are not copied because they differ between the two stores.
    """

    objects: tuple[Commit, ...]
    present: int
    left: int
    damaged: tuple[Finding, ...]
    conflicts: tuple[Finding, ...]


def saved(objects: Sequence[Commit]) -> tuple[int, float]:
    """Return the number of passes that the copied objects save, and their duration in seconds."""
    metas = [c.meta for c in objects if isinstance(c.meta, EmbeddingMeta)]
    return sum(m.passes for m in metas), math.fsum(m.seconds for m in metas)


def survey(backend: Backend) -> tuple[Snapshot, tuple[Finding, ...]]:
    """Return a snapshot of the objects with intact records, and the damaged records.

    Raises:
        StorageError: If the store refuses a read.
    """
    with contextlib.suppress(DamagedError):
        return take_snapshot(backend), ()
    commits: dict[str, Commit] = {}
    damaged: list[Finding] = []
    for path, outcome in read_each(backend):
        if isinstance(outcome, DamagedError):
            damaged.append(Finding(path, str(outcome)))
        elif isinstance(outcome, WsaError):
            raise outcome
        elif outcome is not None:
            commits[outcome.path] = outcome
    return Snapshot(backend, commits), tuple(damaged)


def plan_sync(
    source: Snapshot,
    target: Snapshot,
    games: Sequence[str] = (),
    models: Sequence[str] = (),
    frames: bool = True,
    *,
    same_model: Callable[[Files, Files], bool] = lambda ours, theirs: ours == theirs,
    unreadable: Collection[str] = (),
) -> Transfer:
    """Plan to copy what `source` has and `target` lacks.

    Args:
        games: ALE game ids; all games if empty.
        models: Aliases or keys of models; if empty, all that have encoded one of the games.
        frames: Whether to copy frames too, which encoding needs and training does not.
        same_model: Takes the files of two models with the same key, and returns whether they give
            the same embeddings. Called only if the files differ.
        unreadable: Paths of damaged records in `target`; their objects are skipped.

    Raises:
        MissingError: If the source has no such game or model.
    """
    _require_games(source, games)
    wanted = _models(source, games, models)
    plan = _Planner(source, target, frozenset(unreadable))
    same_models = {
        key
        for key in source.models
        if key in wanted and plan.add(names.model_path(key), partial(_model_difference, same_model))
    }
    same_segments = {
        (meta.game, meta.segment)
        for meta in source.segments()
        if (not games or meta.game in games)
        and plan.add(records.meta_path(meta), _frames_difference)
    }
    for frames_meta in source.frames() if frames else ():
        if (frames_meta.game, frames_meta.segment) in same_segments:
            plan.add(records.meta_path(frames_meta))
    left = 0
    for meta in source.embeddings():
        if meta.model not in wanted or (games and meta.game not in games):
            continue
        if meta.model in same_models and (meta.game, meta.segment) in same_segments:
            plan.add(records.meta_path(meta))
        elif records.meta_path(meta) not in target.commits:
            left += 1
    order = sorted(plan.objects, key=lambda commit: ORDER.index(type(commit.meta)))
    return Transfer(tuple(order), plan.present, left, tuple(plan.damaged), tuple(plan.conflicts))


def copy(
    source: Snapshot,
    target: Backend,
    plan: Transfer,
    on_object: Callable[[Commit], None] = lambda commit: None,
) -> Transfer:
    """Execute a plan with several objects at once, but none before those it depends on.

    Args:
        source: The snapshot that the plan was made from.
        on_object: Called after each object, copied or not.

    Returns:
        The result, including what the plan found present, left, damaged, or in conflict.

    Raises:
        DamagedError: If `target` contains a link that leads out of it.
        StorageError: If one of the stores refuses; objects copied before that remain.
    """
    threads = max(PUTS_AT_ONCE, source.backend.at_once, target.at_once)
    objects: list[Commit] = []
    damaged: list[Finding] = []
    failed: set[str] = set()
    present, left = plan.present, plan.left
    for kind in ORDER:
        stage = [commit for commit in plan.objects if isinstance(commit.meta, kind)]
        ready = [
            commit for commit in stage if not failed.intersection(records.dependencies(commit.meta))
        ]
        left += len(stage) - len(ready)
        with contextlib.closing(
            _run_concurrently(partial(_copy_object, source, target), ready, threads)
        ) as copies:
            for commit, outcome in copies:
                if isinstance(outcome, str):
                    damaged.append(Finding(commit.path, outcome))
                    failed.add(commit.path)
                elif outcome:
                    objects.append(commit)
                else:
                    present += 1
                on_object(commit)
    damaged.sort(key=lambda finding: finding.path)
    return Transfer(tuple(objects), present, left, (*plan.damaged, *damaged), plan.conflicts)


class _Planner:
    """Builds a plan, object by object."""

    def __init__(self, source: Snapshot, target: Snapshot, unreadable: frozenset[str]) -> None:
        self._source, self._target, self._unreadable = source, target, unreadable
        self.objects: list[Commit] = []
        self.present = 0
        self.damaged: list[Finding] = []
        self.conflicts: list[Finding] = []
        # By environment: where its segments start, ascending, and the last end of all up to each.
        self._starts: dict[tuple[str, str, int], list[int]] = collections.defaultdict(list)
        self._ends: dict[tuple[str, str, int], list[int]] = collections.defaultdict(list)
        for meta in sorted(target.segments(), key=lambda meta: meta.start):
            env, end = (meta.game, meta.run, meta.env), meta.start + meta.steps
            self._starts[env].append(meta.start)
            self._ends[env].append(max([end, *self._ends[env][-1:]]))

    def _overlaps(self, meta: SegmentMeta) -> bool:
        env = meta.game, meta.run, meta.env
        before = bisect.bisect_left(self._starts[env], meta.start + meta.steps)
        return before > 0 and self._ends[env][before - 1] > meta.start

    def add(
        self,
        path: str,
        compare: Callable[[Snapshot, Snapshot, str], str] = lambda source, target, path: "",
    ) -> bool:
        """Plan to copy the object at `path`, unless the target has it.

        Args:
            compare: Returns how the target's object differs; "" if it is the same.

        Returns:
            Whether the target has the source's object, or will have it.
        """
        commit = self._source.commit(path)
        if names.commit_path(commit.id) in self._unreadable:
            return False
        if path not in self._target.commits:
            if isinstance(commit.meta, SegmentMeta) and self._overlaps(commit.meta):
                why = (
                    f"{self._target.backend.url} has some of these steps in a segment that is cut in "
                    "another way, so they were left alone: they would be there twice. Collect "
                    "with the same --segment-steps in both."
                )
                self.conflicts.append(Finding(path, why))
                return False
            self.objects.append(commit)
            return True
        try:
            difference = compare(self._source, self._target, path)
        except DamagedError as error:
            self.damaged.append(Finding(path, str(error)))
            return False
        if difference:
            self.conflicts.append(Finding(path, difference))
            return False
        self.present += 1
        return True


def _require_games(source: Snapshot, games: Sequence[str]) -> None:
    for game in games:
        if game not in source.games:
            close = difflib.get_close_matches(game, source.games, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise MissingError(
                "no-frames",
                f"The store {source.backend.url} has nothing of {game}. {hint}It has "
                f"{', '.join(source.games) or 'no game at all'}: name these with --game.",
            )


def _models(source: Snapshot, games: Sequence[str], wanted: Sequence[str]) -> set[str]:
    """Return the keys of the requested models."""
    if not wanted:
        encoded = {e.model for e in source.embeddings() if not games or e.game in games}
        return encoded if games else encoded.union(source.models)
    keys = set()
    for name in wanted:
        found = names.keys_named(source.models, name)
        if not found:
            raise MissingError(
                "not-encoded",
                f"The store {source.backend.url} has no model {name!r}. It has "
                f"{', '.join(source.models) or 'none at all'}: name these, or their aliases, with "
                "--models.",
            )
        keys.update(found)
    return keys


def _model_difference(
    same_model: Callable[[Files, Files], bool], source: Snapshot, target: Snapshot, path: str
) -> str:
    source_commit, target_commit = source.commit(path), target.commit(path)
    if source_commit.files == target_commit.files or same_model(
        source.read_files(source_commit), target.read_files(target_commit)
    ):
        return ""
    return (
        f"As a model of {source.backend.url} it returns other embeddings than in "
        f"{target.backend.url}, so what it encoded there was left alone. Encode in one of the two "
        "with the library versions of the other."
    )


def _frames_difference(source: Snapshot, target: Snapshot, path: str) -> str:
    source_commit, target_commit = source.commit(path), target.commit(path)
    # The same digests give the same files, unless different library versions encoded them.
    if _digest_files(source_commit) == _digest_files(target_commit):
        return ""
    source_meta, target_meta = source_commit.meta, target_commit.meta
    assert isinstance(source_meta, SegmentMeta)
    assert isinstance(target_meta, SegmentMeta)
    if np.array_equal(source.read_digests(source_meta), target.read_digests(target_meta)):
        return ""
    return (
        f"In {source.backend.url} this segment has other frames than in {target.backend.url}, so it "
        "and its embeddings were left alone. Collect these steps again in one of the two with "
        "another --seed."
    )


def _digest_files(commit: Commit) -> list[records.File]:
    return [file for file in commit.files if file.name.startswith("digest/")]


def _run_concurrently(
    work: Callable[[Commit], bool | str], objects: Sequence[Commit], threads: int
) -> Generator[tuple[Commit, bool | str]]:
    """Run `work` on objects in threads, and yield each object with its result, in no order.

    The number of objects in progress is limited, and so is the total size of their largest files,
    since each has one file in memory.
    """
    waiting = collections.deque(objects)
    running: dict[Future[bool | str], Commit] = {}
    pool = ThreadPoolExecutor(threads)
    try:
        while waiting or running:
            while waiting and len(running) < 2 * threads:
                held_bytes = sum(map(_largest, running.values()))
                if running and held_bytes + _largest(waiting[0]) > MAX_HELD_BYTES:
                    break
                commit = waiting.popleft()
                running[pool.submit(work, commit)] = commit
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _largest(commit: Commit) -> int:
    return max((file.bytes for file in commit.files), default=0)


def _copy_object(source: Snapshot, target: Backend, commit: Commit) -> bool | str:
    """Copy one object as a new attempt, since a sweep may remove an older attempt's folder.

    Returns:
        True if this call made it visible, False if it already was; the reason if it was not copied
        because the source's bytes are not what was committed.
    """
    if committed(target, commit.path):
        return False
    new_commit = msgspec.structs.replace(commit, attempt=new_attempt())
    written: list[str] = []
    complete = False
    try:
        for file in commit.files:
            try:
                data = source.read_file(commit, file)
            except DamagedError as error:
                return str(error)
            path = f"{new_commit.folder}/{file.name}"
            written.append(path)
            require_new(path, target.put_new(path, data))
        complete = True
    finally:
        if not complete:
            remove_files(target, written)
    return publish_record(target, new_commit, written)
