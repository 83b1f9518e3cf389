"""Execute a plan on the workers: submit tasks, retry failures, skip what keeps failing.

A segment is one task for all of its models. If it copies rows from a segment in progress, it is two
tasks, `embed` and `commit`, so that no model waits for a commit. A few segments per thread are in
flight. Each failure counts as an attempt. An object that fails every attempt is skipped; objects
that copy from it are left out for another plan, which runs the frames for one of them. Committed
objects never run again.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from distributed import Future, KilledWorker, as_completed

from wsa.encode.jobs import tasks
from wsa.encode.jobs.encoding import TRIES
from wsa.encode.jobs.events import AttemptFailed, SegmentDone
from wsa.encode.jobs.plan import Item, Name
from wsa.encode.jobs.tasks import Failed, TaskSettings
from wsa.encode.jobs.workers import Workers
from wsa.store.common.errors import StorageError

# If this many segments in a row are skipped, the cause is not in the segments.
TOO_MANY_IN_A_ROW = 20

Segment = tuple[str, str]


@dataclasses.dataclass
class _SegmentWork:
    """Objects to write for one segment, and their progress.

    Attributes:
        segment: Game and segment.
        items: Objects left to write, at most one per model.
        attempts: Number of attempts so far.
        killed: Whether a worker died in an attempt; the segment is then a suspect.
        alone: Whether no other suspect runs during this attempt.
        embedded: Task that embeds the segment, if a separate task commits it.
    """

    segment: Segment
    items: tuple[Item, ...]
    attempts: int = 0
    killed: bool = False
    alone: bool = False
    embedded: Future | None = None


class Driver:
    """Executes plans.

    Args:
        workers: Workers, whose listener gets an event for every segment.
        tries: Number of attempts per segment.

    Attributes:
        done: Committed objects.
        failures: All attempts that failed, in order.
        skipped: Objects that failed every attempt.
    """

    def __init__(self, workers: Workers, settings: TaskSettings, tries: int = TRIES) -> None:
        self._workers = workers
        self._settings = settings
        self._tries = tries
        self.done: list[SegmentDone] = []
        self.failures: list[AttemptFailed] = []
        self._failed_in_a_row = 0
        self._retries: list[_SegmentWork] = []
        # Segments that were started and are neither committed nor skipped.
        self._unfinished: dict[Segment, _SegmentWork] = {}
        self._in_flight: dict[Any, _SegmentWork] = {}
        self._dependents: dict[Segment, list[_SegmentWork]] = defaultdict(list)
        self.skipped: set[Name] = set()
        self._left_out: set[Name] = set()  # Objects of this plan that copy from a skipped one.

    def run(self, works: Sequence[Sequence[Item]]) -> set[Name]:
        """Execute a plan.

        Args:
            works: Items of each segment, in an order in which copies refer to earlier items.

        Returns:
            Objects left out because they copy from one that was skipped. They need a new plan
            without `skipped`.

        Raises:
            WsaError: If no worker can open a model, the store is full or not writable, or too many
                segments fail in a row.
        """
        self._left_out = set()
        self._completed = as_completed(loop=self._workers.client.loop)
        pending = iter(works)
        self._submit_more(pending)
        for batch in self._completed.batches():
            for future, result in zip(batch, self._results(batch), strict=True):
                self._on_result(future, result)
            self._submit_more(pending)
        return self._left_out

    def _results(self, batch: list[Future]) -> list[Any]:
        """Fetch the results of tasks together; None for a task that failed."""
        try:
            if all(future.status == "finished" for future in batch):
                results: Any = self._workers.client.gather(batch)
                return list(results)
        except Exception:  # noqa: BLE001, S110  A worker took a result with it.
            pass
        return [self._result(future) for future in batch]

    def _result(self, future: Future) -> Any:
        try:
            return future.result()
        except Exception:  # noqa: BLE001  The future keeps the error.
            return None

    def _submit_more(self, pending: Iterator[Sequence[Item]]) -> None:
        again, self._retries = self._retries, []
        for work in again:
            # The last attempt of a suspect runs without other suspects, so that it is not blamed
            # for a worker that another one killed.
            last = work.killed and work.attempts + 1 >= self._tries
            if last and any(other.alone for other in self._unfinished.values()):
                self._retries.append(work)
            else:
                work.alone = last
                self._start(work)
        slots = self._workers.task_slots()
        while len(self._unfinished) < slots and (items := next(pending, None)) is not None:
            if kept := self._keep_runnable(items):
                work = _SegmentWork(kept[0].name[1:], kept)
                self._unfinished[work.segment] = work
                self._start(work)

    def _keep_runnable(self, items: Sequence[Item]) -> tuple[Item, ...]:
        """Return the items that copy from no skipped or left-out object; leave out the others."""
        for item in items:
            if not all(item.sources.isdisjoint(gone) for gone in (self._left_out, self.skipped)):
                self._left_out.add(item.name)
        return tuple(item for item in items if item.name not in self._left_out)

    def _start(self, work: _SegmentWork) -> None:
        sources = self._pending_sources(work)
        if sources:
            work.embedded = self._submit(work, tasks.embed)
            for segment in sources:
                self._dependents[segment].append(work)
        else:
            self._track(work, self._submit(work, tasks.encode_segment))

    def _pending_sources(self, work: _SegmentWork) -> set[Segment]:
        """Return the unfinished segments from which the work copies."""
        return {name[1:] for item in work.items for name in item.sources} & self._unfinished.keys()

    def _submit(self, work: _SegmentWork, task: Callable[..., Any], *embedded: Future) -> Future:
        future: Future = self._workers.client.submit(
            task,
            self._settings,
            work.items,
            *embedded,
            pure=False,
            priority=len(embedded),  # Commit before starting more segments.
            **self._workers.options(model=not embedded),
        )
        return future

    def _track(self, work: _SegmentWork, future: Future) -> None:
        """Wait for a task. An `embed` is not tracked, so its large result stays on the workers."""
        self._in_flight[future.key] = work
        self._completed.add(future)

    def _on_result(self, future: Future, result: Any) -> None:
        """Handle the result or the error of a task."""
        work = self._in_flight.pop(future.key)
        if result is not None:
            self._record(work, result)
        elif future.status == "error":
            error: Any = future.exception()  # Typed as if it were asynchronous.
            self._on_error(work, error)
        else:
            raise scheduler_lost()

    def _commit(self, work: _SegmentWork) -> bool:
        """Submit the commit of an embedded segment; return whether anything is left to commit."""
        work.items, embedded, work.embedded = self._keep_runnable(work.items), work.embedded, None
        assert embedded is not None
        if work.items:
            self._track(work, self._submit(work, tasks.commit, embedded))
        return bool(work.items)

    def _on_error(self, work: _SegmentWork, error: BaseException) -> None:
        """Handle a task that failed without returning outcomes."""
        if isinstance(error, ImportError) and self._workers.exclude_without_wsa():
            self._retries.append(work)
            return
        where = "", ""
        if isinstance(error, KilledWorker):
            work.killed = True
            # A cluster that wsa did not start may have Dask retry too; count those attempts.
            work.attempts += error.allowed_failures
            where = error.last_worker.address, error.last_worker.host
            error = worker_died(" ".join(work.segment), error)
        self._record(work, [tasks.as_failed(item, error, where=where) for item in work.items])

    def _record(self, work: _SegmentWork, outcomes: Sequence[SegmentDone | Failed]) -> None:
        """Record the outcome of each object of a segment, then retry or finish the segment."""
        if not all(isinstance(o, Failed) and o.unfit for o in outcomes):
            work.attempts += 1
        again = []
        for item, outcome in zip(work.items, outcomes, strict=True):
            if isinstance(outcome, SegmentDone):
                done = dataclasses.replace(outcome, attempts=work.attempts)
                self.done.append(done)
                self._workers.listen(done)
            elif outcome.unfit:
                self._workers.exclude(outcome)
                again.append(item)
            elif self._record_failure(work, item, outcome):
                again.append(item)
        self._check_failures_in_a_row(work, outcomes)
        work.items, work.alone = tuple(again), False
        if again:
            self._retries.append(work)
        else:
            self._finish(work)

    def _check_failures_in_a_row(
        self, work: _SegmentWork, outcomes: Sequence[SegmentDone | Failed]
    ) -> None:
        """Count consecutive segments of which an object was skipped; raise if there are too many."""
        if any(isinstance(outcome, SegmentDone) for outcome in outcomes):
            self._failed_in_a_row = 0
        elif not self.skipped.isdisjoint(item.name for item in work.items):
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= TOO_MANY_IN_A_ROW:
                raise next(outcome.error for outcome in outcomes if isinstance(outcome, Failed))

    def _record_failure(self, work: _SegmentWork, item: Item, outcome: Failed) -> bool:
        """Record and announce a failed attempt; return whether there will be another.

        A store that is full or not writable ends the run instead.
        """
        # A suspect is blamed only if it ran without others.
        blamed = work.alone or not work.killed
        last = work.attempts >= self._tries and blamed
        failed = AttemptFailed(
            game=item.meta.game,
            segment=item.meta.segment,
            model=item.model,
            attempts=work.attempts,
            last=last,
            error=outcome.error,
            worker=outcome.worker,
        )
        self.failures.append(failed)
        self._workers.listen(failed)
        if outcome.error.kind in ("no-space", "no-permission"):
            raise outcome.error
        if last:
            self.skipped.add(item.name)
        return not last

    def _finish(self, work: _SegmentWork) -> None:
        """Mark a segment as finished, and commit the segments that waited for its rows."""
        over = [work]
        while over:
            segment = over.pop().segment
            del self._unfinished[segment]
            for other in self._dependents.pop(segment, []):
                # A segment that waited for several may already be committing.
                ready = other.embedded is not None and not self._pending_sources(other)
                if ready and not self._commit(other):
                    over.append(other)


def scheduler_lost() -> StorageError:
    """Create the error for tasks that were lost with the scheduler."""
    return StorageError(
        "unavailable",
        "The Dask scheduler went away. Nothing committed is lost; run the same command again when it "
        "is back.",
    )


def worker_died(of: str, error: KilledWorker) -> StorageError:
    """Create the error for a worker that died while it worked on `of`."""
    return StorageError(
        "worker-died",
        f"The worker {error.last_worker.address} died over {of}. Often it ran out of memory "
        "('wsa encode --dry-run' says how much a worker takes); the worker's own log says more. Run "
        "the same command again.",
    )
