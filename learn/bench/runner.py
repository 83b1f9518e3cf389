"""Train and evaluate the runs of a grid, in this process or on workers."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Self

from distributed import KilledWorker, as_completed

from wsa.encode.jobs.cluster import connect
from wsa.encode.models import custom
from wsa.learn.bench.grid import Cell
from wsa.learn.bench.run_cell import (
    Failure,
    attempt,
    attempt_on_worker,
    expected,
    say_failed,
    stop_on_worker,
)
from wsa.learn.configs.bench import BenchOptions
from wsa.learn.runs.setup.models import weights_of
from wsa.store.common import terminal
from wsa.store.common.errors import StorageError

SAVE_S = 60  # Time for runs to save a checkpoint when a bench is interrupted.
TRIES = 3  # Attempts at a run whose worker dies; each continues from the newest checkpoint.

# Every run needs these; torch imports the second for its first optimizer, which takes seconds.
_IMPORTS = ("wsa.learn.bench.run_cell", "torch._dynamo")


def say_failures(verb: str, failures: Sequence[Failure], runs: int) -> int:
    """Print the failed runs of a grid; return the exit code of the first, or 0."""
    code = say_failed(failures)
    if failures:
        rest = "; the others are done" if len(failures) < runs else ""
        terminal.say(
            f"wsa {verb}: {len(failures)} of {terminal.plural(runs, 'run')} failed{rest}. Fix the "
            "errors above, and run the same command again."
        )
    return code


def run_cells(o: BenchOptions, left: list[Cell]) -> Iterator[Failure]:
    """Train and evaluate runs, in this process or on workers; yield those that failed.

    Raises:
        MissingError: If a user's own model cannot be found; raised before the first run.
        ConflictError: If the module of a user's own model raised.
    """
    own = dict.fromkeys(name for cell in left for name in weights_of(cell.request).values())
    custom.find_before_workers(own, o.worker.scheduler)
    run = _run_inproc if o.worker.scheduler == "inproc" else _run_on_workers
    yield from filter(None, run(o, left))


def _run_inproc(o: BenchOptions, left: list[Cell]) -> Iterator[Failure | None]:
    """Run one after the other, in this process."""
    for number, cell in enumerate(left, 1):
        terminal.say(f"{number} of {len(left)}: {cell}")
        with _Bars("steps" if o.online else "updates", not o.json) as bars:
            failure = attempt(cell, bars.tell)
        yield failure


class _Bars:
    """Shows the progress of a run, one bar at a time."""

    def __init__(self, unit: str, shown: bool) -> None:
        self._unit, self._shown = unit, shown
        self._what = ""
        self._bar: terminal.Progress | None = None
        self._open = ExitStack()

    def tell(self, what: str, done: int, total: int) -> None:
        if self._bar is None or what != self._what:
            self._open.close()
            unit = {"learn": self._unit, "eval": "games"}[what]
            self._bar = self._open.enter_context(
                terminal.Progress(what, unit, total, shown=self._shown)
            )
            self._what = what
        self._bar.update(done)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _run_on_workers(o: BenchOptions, left: list[Cell]) -> Iterator[Failure | None]:
    """Run as many at once as there are workers."""
    if not left:
        return
    scheduler, workers = o.worker.scheduler, o.worker.workers
    connected = connect(scheduler, workers, o.compute.device, o.slurm, threads=1, imports=_IMPORTS)
    with (
        connected as (client, _),
        terminal.Progress("bench", "runs", len(left), shown=not o.json) as progress,
    ):
        bench = uuid.uuid4().hex
        pending = {
            client.submit(attempt_on_worker, cell, bench, pure=False): (cell, 1) for cell in left
        }
        completed = as_completed(pending, loop=client.loop)
        done = 0
        try:
            for future in completed:
                cell, tries = pending.pop(future)
                try:
                    failure = future.result()
                except KilledWorker as error:
                    if tries < TRIES:
                        again = client.submit(attempt_on_worker, cell, bench, pure=False)
                        pending[again] = cell, tries + 1
                        completed.add(again)
                        continue
                    failure = _died(cell, error)
                except Exception as error:  # noqa: BLE001  Dask's own: e.g. a worker without wsa.
                    failure = _lost(cell, error)
                done += 1
                progress.update(done)
                yield failure
        finally:
            if pending:
                _save_runs(client, bench, list(pending))


def _save_runs(client: Any, bench: str, futures: list[Any]) -> None:
    """Have workers save and end their runs before they are closed."""
    terminal.say("saving the runs in progress; Ctrl-C again ends at once")
    # Dask raises many kinds if workers are gone or busy; report what ended the bench instead.
    with contextlib.suppress(Exception):
        client.run(stop_on_worker, bench)
        for _ in as_completed(futures, loop=client.loop, timeout=SAVE_S):
            pass


def _died(cell: Cell, error: KilledWorker) -> Failure:
    died = StorageError(
        "worker-died",
        f"{TRIES} workers died during this run; the last was {error.last_worker.address}. The usual "
        "cause is too little memory. See the worker's log.",
    )
    return expected(cell, died)


def _lost(cell: Cell, error: Exception) -> Failure:
    message = " ".join(str(error).split())[:300]
    lost = StorageError(
        "unavailable",
        f"The run's worker failed with {type(error).__name__}: {message}. Workers need this version of "
        "wsa, and the store and the bench's folder at the same paths.",
    )
    return expected(cell, lost)
