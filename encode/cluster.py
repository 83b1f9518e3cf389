"""Where encoding runs: in this process, on this machine's cores, or on a cluster somebody runs."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

from dask import config
from distributed import Client, LocalCluster

from wsa.store.errors import StorageError, Terminated, UsageError

WAIT_FOR_WORKERS_S = 60

# Even without a dashboard a scheduler serves HTTP, by default on port 8787, with a warning where
# somebody else has that: another encode, or a notebook.
_ANY_PORT = "127.0.0.1:0"
_NO_DASHBOARD = {"dashboard": False}

# Dask has its workers give memory back to the system at every chance. A model takes and returns
# megabytes for each layer, and was 2.3 times slower for it (22 000 page faults a frame).
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": 256 << 20,
    "MALLOC_MMAP_THRESHOLD_": 32 << 20,
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
}


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def connect(scheduler: str, workers: int) -> Iterator[tuple[Client, int]]:
    """A Dask client, and how many threads torch may use in a task (0: as the worker has it).

    Args:
        scheduler: `local` starts one single-threaded worker process a core, measured faster than
            one process on all cores; `inproc` works in this process; `tcp://host:port` uses a
            running scheduler.
        workers: Worker processes for `local`; 0 is one for each core.

    Raises:
        UsageError: The scheduler is none of these.
        StorageError: The running scheduler does not answer.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # Errors are raised here.
    if scheduler in ("inproc", "local"):
        stack = contextlib.ExitStack()
        try:
            with _interrupts_wait():
                client, threads = _start(scheduler, workers, stack)
            yield client, threads
        finally:
            with _interrupts_wait():
                stack.close()
    elif "://" in scheduler:
        try:
            client = Client(scheduler, timeout=20)
        except OSError as error:
            raise StorageError(
                "unavailable",
                f"No Dask scheduler answers at {scheduler} ({error}). Start one with 'dask "
                "scheduler' and workers with 'dask worker', or leave --scheduler out.",
            ) from None
        with client:
            try:
                client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS_S)
            except TimeoutError:
                raise StorageError(
                    "unavailable",
                    f"The Dask scheduler at {scheduler} has no workers. Start some: dask worker "
                    f"{scheduler}",
                ) from None
            yield client, 0
    else:
        raise UsageError(
            "bad-option",
            f"--scheduler {scheduler!r} is not one; write local, inproc, or tcp://host:port.",
        )


def _start(scheduler: str, workers: int, stack: contextlib.ExitStack) -> tuple[Client, int]:
    if scheduler == "inproc":
        client = Client(
            processes=False,
            n_workers=1,
            threads_per_worker=1,
            dashboard_address=_ANY_PORT,
            scheduler_kwargs=_NO_DASHBOARD,
        )
        return stack.enter_context(client), 0
    stack.enter_context(config.set({"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}))
    cluster = LocalCluster(
        n_workers=workers or cores(),
        threads_per_worker=1,
        dashboard_address=_ANY_PORT,
        silence_logs=logging.CRITICAL,
        scheduler_kwargs=_NO_DASHBOARD,
    )
    return stack.enter_context(Client(stack.enter_context(cluster))), 1


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait till the end; Ctrl-C never reaches what is started meanwhile.

    A terminal sends it to workers too, which shall not print where they were: this process ends
    them, by SIGTERM. And Dask, half started or half closed, can neither go on nor back.
    """
    resource_tracker.ensure_running()  # It would lift the block below where it is started later.
    asked: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before if main else ():
        signal.signal(number, lambda number, frame: asked.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items() if main else ():
            signal.signal(number, handler)
    if asked:
        raise Terminated if asked[0] == signal.SIGTERM else KeyboardInterrupt
