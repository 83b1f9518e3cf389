"""Start a Dask cluster in this process, on this machine or with SLURM, or join a running one."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from typing import Any

import torch
from dask import config
from dask.system import cpu_count
from distributed import Client, LocalCluster
from distributed.comm.addressing import get_address_host_port
from distributed.utils import get_mp_context
from tornado.ioloop import IOLoop, PeriodicCallback

from wsa.encode.jobs import slurm, tasks
from wsa.encode.jobs.slurm import SlurmOptions
from wsa.encode.jobs.workers import GPU, TASKS_A_GPU, THREADS_A_WORKER
from wsa.store.common import signals, terminal
from wsa.store.common.errors import StorageError, UsageError

WAIT_FOR_ANSWER_S = 20
WAIT_FOR_WORKERS_S = 60
WAIT_FOR_PROCESSES_S = 300  # Workers import torch first, which is slow on a busy machine.
SCALE_EVERY_S = 5

# A scheduler serves HTTP even without a dashboard, by default on port 8787, and warns if another
# encode or a notebook uses that port.
_ANY_PORT = "127.0.0.1:0"

# Dask makes workers return freed memory to the system at once. A model allocates and frees
# megabytes for each layer, and was 2.3 times slower with that setting (22,000 page faults per
# frame).
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": 256 << 20,
    "MALLOC_MMAP_THRESHOLD_": 32 << 20,
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
}

# Outside Linux, forking a process with these libraries is unsafe or impossible.
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


def models_at_once(scheduler: str, workers: int, device: str, jobs: SlurmOptions) -> int:
    """Return how many workers of `connect` can run a model at once; 1 for a running scheduler."""
    if scheduler == "local":
        return workers or _gpus_for(device) or cpu_count()
    if scheduler == "slurm":
        return max(1, workers) * (1 if jobs.slurm_gpu else jobs.slurm_cores)
    return 1


def _gpus_for(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.device_count()


@contextlib.contextmanager
def connect(
    scheduler: str,
    workers: int,
    device: str = "auto",
    jobs: SlurmOptions | None = None,
    threads: int = 0,
    option: str = "--scheduler",
    imports: Sequence[str] = (),
) -> Iterator[tuple[Client, int]]:
    """Yield a Dask client, and the number of cores torch may use in a task (0: the worker's own).

    Args:
        scheduler: `local` starts one worker process per core, which is faster than one process on
            all cores (measured), or one per GPU. `inproc` works in this process, `slurm` has SLURM
            start the workers, and `tcp://host:port` uses a running scheduler.
        workers: Number of worker processes for `local`, 0 for one per core or GPU; number of jobs
            for `slurm`. Other schedulers ignore it.
        device: `cpu`, `cuda` or `auto`, which is the GPU if there is one.
        threads: Number of tasks that a worker process started here runs at once; 0 for the number
            that suits encoding.
        option: Name of the option that gave the scheduler, for messages.
        imports: Modules that tasks need, and that all worker processes of `local` share.

    Raises:
        UsageError: If the scheduler is not an address.
        MissingError: If dask-jobqueue is not installed.
        StorageError: If the running scheduler or SLURM does not answer, or no workers start.
    """
    for name in ("distributed", "distributed.client", "distributed.gc"):  # Each has its own level.
        logging.getLogger(name).setLevel(logging.CRITICAL)  # Errors are raised here.
    if "://" in scheduler:
        with _join(scheduler, option) as client:
            yield client, 0
        return
    jobs = jobs or SlurmOptions()
    count = models_at_once(scheduler, workers, device, jobs)

    def start(stack: contextlib.ExitStack) -> Client:
        if scheduler == "slurm":
            return _submit(workers, jobs, threads, stack)
        gpus = _gpus_for(device)
        options: dict[str, Any] = {
            "threads_per_worker": threads or (TASKS_A_GPU if gpus else THREADS_A_WORKER),
            "resources": {GPU: 1} if gpus else {},
            "dashboard_address": _ANY_PORT,
        }
        if scheduler == "local":
            return _start_processes(count, imports, options, stack)
        options["scheduler_kwargs"] = {"dashboard": False}
        return stack.enter_context(_client(processes=False, n_workers=1, **options))

    with _running_client(start) as client:
        if scheduler == "slurm":
            slurm.await_worker(client, client.cluster, jobs)
        elif scheduler == "local":
            _await_processes(client, count)
        yield client, int(scheduler != "inproc")


@contextlib.contextmanager
def _join(scheduler: str, option: str) -> Iterator[Client]:
    """Yield a client of a running scheduler once it has a worker."""
    try:
        if scheduler.startswith(("tcp:", "tls:")):  # Dask's client does not check the address.
            get_address_host_port(scheduler)
        client = _client(scheduler, timeout=WAIT_FOR_ANSWER_S)
    except OSError as error:
        raise StorageError(
            "unavailable",
            f"No Dask scheduler answers at {scheduler} ({error}). Start one with 'dask "
            f"scheduler' and workers with 'dask worker', or leave {option} out.",
        ) from None
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{option} {scheduler}: {error}. Write tcp://HOST:PORT, as 'dask scheduler' says "
            "when it starts."
        ) from None
    with client:
        started: Any = client.nthreads()
        if not started:
            terminal.say(
                f"{scheduler} has no workers yet; waiting up to {WAIT_FOR_WORKERS_S} s for "
                f"some: dask worker {scheduler}"
            )
        try:
            client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS_S)
        except TimeoutError:
            raise StorageError(
                "unavailable",
                f"The Dask scheduler at {scheduler} has no workers. Start some: dask worker "
                f"{scheduler}",
            ) from None
        yield client


class _Client(Client):  # type: ignore[misc]  # distributed has no types.
    """A client that leaves nothing behind if it cannot connect.

    Dask leaves such a client, and the thread of its event loop, to the garbage collector. It closes
    the client at any moment, for example while Dask holds the lock that closing needs: a deadlock.
    """

    def start(self, **options: Any) -> None:
        try:
            super().start(**options)
        except BaseException:
            self.close()
            self._loop_runner.stop()
            raise


def _client(*where: Any, **options: Any) -> Client:
    """Create a client without making it the caller's default, even if no scheduler answers."""
    return _Client(*where, set_as_default=False, **options)


@contextlib.contextmanager
def _running_client(start: Callable[[contextlib.ExitStack], Client]) -> Iterator[Client]:
    """Yield a client of a cluster that is started for it and always shut down."""
    stack = contextlib.ExitStack()
    try:
        with _defer_signals():
            client = start(stack)
        yield client
    finally:
        with _defer_signals():
            stack.close()


def _start_processes(
    count: int, imports: Sequence[str], options: dict[str, Any], stack: contextlib.ExitStack
) -> Client:
    """Start worker processes on this machine."""
    stack.enter_context(_dask_settings())
    _preload_forkserver(imports)
    try:
        local = _Local(
            n_workers=0,
            memory_limit=1 / count,
            silence_logs=logging.CRITICAL,
            scheduler_kwargs=_dashboard(),
            **options,
        )
        cluster: Any = stack.enter_context(local)  # Typed as if it were asynchronous.
    except (OSError, RuntimeError) as error:
        place = config.get("temporary-directory", None) or tempfile.gettempdir()
        raise StorageError(
            "unavailable",
            f"Dask cannot start workers here ({error}). It needs free ports, and space in {place}: "
            "set DASK_TEMPORARY_DIRECTORY to a folder that you can write to.",
        ) from None
    _keep_scaled(lambda: cluster.scale(count), cluster.loop, stack)
    return stack.enter_context(_client(cluster))


def _await_processes(client: Client, count: int) -> None:
    """Wait until all worker processes have started. Signals work meanwhile."""
    try:
        client.wait_for_workers(count, timeout=WAIT_FOR_PROCESSES_S)
    except TimeoutError:
        started: Any = client.nthreads()
        raise StorageError(
            "unavailable",
            f"Only {len(started)} of {count} worker processes started within "
            f"{WAIT_FOR_PROCESSES_S} s. Use fewer (--workers 1), or none (--scheduler inproc), "
            "which shows why one cannot start. If your own script called wsa, put the call under "
            "if __name__ == '__main__', because workers import the script.",
        ) from None


def _keep_scaled(scale: Callable[[], Any], loop: IOLoop, stack: contextlib.ExitStack) -> None:
    """Start workers, and keep replacing those that are gone for good."""
    scale()
    again = PeriodicCallback(scale, 1000 * SCALE_EVERY_S)
    loop.add_callback(again.start)
    stack.callback(loop.add_callback, again.stop)


def _preload_forkserver(imports: Sequence[str]) -> None:
    """Start the process that workers are forked from, which imports their libraries once.

    Importing torch and timm takes a core seconds, which each worker would need, even one that
    replaces a dead one. The process lives until this one ends. It keeps the environment that it
    started with, including variables that libraries read on import and those that are removed later.
    """
    if _METHOD != "forkserver":
        return
    get_mp_context().set_forkserver_preload([tasks.__name__, *imports])
    # Without this, the process of Python 3.11 imports modules from the current folder first.
    environment = {**WORKER_ENVIRONMENT, "PYTHONSAFEPATH": 1}
    added = {name: str(value) for name, value in environment.items() if name not in os.environ}
    os.environ.update(added)
    try:
        forkserver.ensure_running()
    finally:
        for name in added:
            del os.environ[name]


class _Local(LocalCluster):  # type: ignore[misc]  # distributed has no types.
    """Worker processes on this machine; with GPUs, each worker sees only its own."""

    def new_worker_spec(self) -> dict[int, Any]:
        spec: dict[int, Any] = super().new_worker_spec()
        for name, worker in spec.items():
            # Pass variables that were set after the fork server started.
            environment = dict(os.environ)
            if worker["options"].get("resources"):
                environment["CUDA_VISIBLE_DEVICES"] = _gpus()[name % len(_gpus())]
            worker["options"] = {**worker["options"], "env": environment}
        return spec


def _gpus() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    seen = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    return seen or [str(number) for number in range(torch.cuda.device_count())]


def _submit(workers: int, jobs: SlurmOptions, threads: int, stack: contextlib.ExitStack) -> Client:
    stack.enter_context(_dask_settings())
    options = {"dashboard_address": _ANY_PORT, **_dashboard()}
    cluster = stack.enter_context(slurm.start(jobs, WORKER_ENVIRONMENT, True, threads, **options))
    _keep_scaled(slurm.JobKeeper(cluster, workers or 1), cluster.loop, stack)
    return stack.enter_context(_client(cluster))


def job_script(jobs: SlurmOptions) -> str:
    """Return the script that would be submitted to SLURM, for `wsa encode --dry-run`."""
    options: dict[str, Any] = {"dashboard_address": _ANY_PORT, "dashboard": False}
    with slurm.start(jobs, WORKER_ENVIRONMENT, False, **options) as cluster:
        script: str = cluster.job_script()
        return script


def _dask_settings() -> config.set:
    """Return Dask's settings for workers that wsa starts."""
    return config.set(
        {
            "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
            "distributed.worker.multiprocessing-method": _METHOD,
            # A worker's death counts as an attempt of its segment, and the driver counts attempts.
            "distributed.scheduler.allowed-failures": 0,
            # A restarted worker imports torch, which on a busy machine takes longer than Dask's
            # 15 s. Dask would then close the worker, and others would be blamed.
            "distributed.deploy.lost-worker-timeout": "120s",
            # Dask pauses a worker that holds much memory, forever if a model needs that memory. The
            # number of task slots already bounds the memory of tasks.
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": False,
        }
    )


def _dashboard() -> dict[str, Any]:
    """Return options that enable Dask's dashboard if bokeh is installed."""
    return {"dashboard": importlib.util.find_spec("bokeh") is not None}


@contextlib.contextmanager
def _defer_signals() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM to the end, and block Ctrl-C in processes started meanwhile.

    A terminal sends Ctrl-C to workers too. They must not print tracebacks; this process ends them
    with SIGTERM. And Dask cannot recover from an interrupt while it starts or closes.
    """
    resource_tracker.ensure_running()  # Starting it later would unblock SIGINT.
    asked: list[KeyboardInterrupt] = []
    with signals.handled_by(asked.append):
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if asked:
        raise asked[0]
