"""Start workers with SLURM: options of the command, and a Dask cluster built from them.

Settings beyond these options come from dask-jobqueue's own configuration in `~/.config/dask`, where
a lab can keep those that all its jobs share. A job that SLURM refuses is kept with SLURM's message
and submitted again a minute later. A job that has ended is replaced. Dask is imported only where it
is needed, because `--help` reads these options too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from wsa.store.common import signals, terminal
from wsa.store.common.cache_folder import cache_folder
from wsa.store.common.errors import MissingError, StorageError, UsageError
from wsa.store.common.ranges import COUNT, check_ranges
from wsa.store.configs import Names, Switch, Text

if TYPE_CHECKING:
    from distributed import Client

LOOK_EVERY_S = 5

# A dead worker restarts within its job, and importing torch may take this long.
GONE_S = 60.0

# `squeue` puts load on a cluster, and a job may wait for days.
ASK_EVERY_S = 30.0

# The command gives up after this many jobs without a worker, per job wanted.
TRIES = 3

_FORGOTTEN = "forgotten"
_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
    _FORGOTTEN,
}


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """With --scheduler slurm: what each of --workers jobs asks SLURM for."""

    slurm_queue: Text = ""
    """Partition; SLURM's default if not given."""
    slurm_account: Text = ""
    """Account to charge; yours if not given."""
    slurm_walltime: Text = ""
    """Time limit of a job, such as 04:00:00. A job that reaches it is replaced."""
    slurm_cores: Annotated[int, COUNT] = 4
    """Cores per job: as many workers, or one if it has a GPU."""
    slurm_memory: str = "16GB"
    """Memory per job."""
    slurm_gpu: Switch = False
    """Give each job a GPU."""
    slurm_extra: Names = ()
    """Further #SBATCH directives, such as --constraint=a100,--exclude=node7."""


def check_scheduler(jobs: SlurmOptions, scheduler: str, workers: int = 0) -> None:
    """Check the scheduler, the SLURM options, and the number of workers of a command.

    Raises:
        UsageError: If there is no such scheduler, it starts no workers although a number is given,
            or an option of SLURM is out of range or is given for another scheduler.
    """
    from dask.utils import parse_bytes

    if scheduler not in ("local", "inproc", "slurm") and "://" not in scheduler:
        raise UsageError(
            f"--scheduler {scheduler!r} is not a scheduler; write local, inproc, slurm, or "
            "tcp://HOST:PORT."
        )
    if workers and scheduler == "inproc":
        raise UsageError(
            f"--workers {workers}: --scheduler inproc works in this process alone. Leave out "
            "--workers, or choose --scheduler local."
        )
    if workers and "://" in scheduler:
        raise UsageError(
            f"--workers {workers}: --scheduler {scheduler} has workers of its own. Leave out "
            "--workers; start more workers with 'dask worker'."
        )
    check_ranges(jobs)
    try:
        parse_bytes(jobs.slurm_memory)
    except ValueError:
        raise UsageError(
            f"--slurm-memory {jobs.slurm_memory}: write an amount, such as 16GB."
        ) from None
    for field in dataclasses.fields(SlurmOptions):
        if scheduler != "slurm" and getattr(jobs, field.name) != field.default:
            flag = "--" + field.name.replace("_", "-")
            raise UsageError(f"{flag} is for SLURM; add --scheduler slurm.")


def start(
    jobs: SlurmOptions,
    environment: dict[str, Any],
    submit: bool,
    threads: int = 0,
    **scheduler: Any,
) -> Any:
    """Create a `dask_jobqueue.SLURMCluster` without jobs; `job_script()` is what it would submit.

    Args:
        submit: Whether jobs will be submitted.
        threads: Number of threads of a worker; 0 for the number that suits encoding.
        scheduler: Options of the scheduler, which runs in this process.

    Raises:
        MissingError: If dask-jobqueue is not installed, or SLURM is not on this machine.
        StorageError: If the folder for the jobs' output cannot be created.
    """
    if submit and not shutil.which("sbatch"):
        raise MissingError(
            "no-library",
            "--scheduler slurm: there is no sbatch here. Run this command on a machine that "
            "submits jobs; --dry-run shows the job's script anywhere.",
        )
    from distributed.deploy.spec import ProcessInterface

    from wsa.encode.jobs.workers import GPU, TASKS_A_GPU, THREADS_A_WORKER

    try:
        # It sets a handler of Ctrl-C that ends the process with exit code 0, as if its work were done.
        with signals.restored():
            from dask_jobqueue.slurm import SLURMCluster, SLURMJob
    except ImportError:
        raise MissingError(
            "no-library", "--scheduler slurm needs dask-jobqueue: pip install 'wsa[slurm]'"
        ) from None

    class Job(SLURMJob):
        """A job; `refusal` is SLURM's message if it refused the job."""

        refusal = ""

        async def start(self) -> None:
            submit: Any = super().start  # dask-jobqueue has no types.
            try:
                await submit()
            except (RuntimeError, ValueError, OSError) as error:
                message = str(error)
                self.refusal = " ".join(
                    (message.partition("stderr:")[2].strip() or message).split()
                )
                started: Any = ProcessInterface.start  # Act like a job that never has a worker.
                await started(self)

        async def close(self) -> None:
            cancel: Any = super().close
            if not self.refusal:
                await cancel()
            closed: Any = ProcessInterface.close  # dask-jobqueue does not call it.
            await closed(self)

    numbers = itertools.count()

    class Cluster(SLURMCluster):
        """A cluster of jobs; `fruitless` lists consecutive jobs that ended without a worker."""

        def __init__(self, **options: Any) -> None:
            self.fruitless: list[str] = []
            super().__init__(**options)

        def _new_worker_name(self, worker_number: int) -> str:
            # Dask would reuse the name of a lost job, find that job, and not submit a new one.
            return f"{self._name}-{next(numbers)}"

    output = _output(jobs)
    if submit and output:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                "unavailable",
                f"Cannot make {output.parent} for what jobs print ({error.strerror}). Set WSA_CACHE "
                "to a folder that compute nodes see too, or give "
                "--slurm-extra=--output=/some/folder/%j.out.",
            ) from None
    workers = 1 if jobs.slurm_gpu else jobs.slurm_cores
    asked = {
        "queue": jobs.slurm_queue,
        "account": jobs.slurm_account,
        "walltime": jobs.slurm_walltime,
    }
    directives = [
        *_lab_settings("job-extra-directives"),
        *(["--gpus=1"] if jobs.slurm_gpu else []),
        *([f"--output={shlex.quote(str(output))}"] if output else []),
        *jobs.slurm_extra,
    ]
    return Cluster(
        name="wsa",
        job_cls=Job,
        job_name="wsa",
        python=sys.executable,
        processes=workers,
        # Dask's word for threads; SLURM is asked for `job_cpu`.
        cores=workers * (threads or (TASKS_A_GPU if jobs.slurm_gpu else THREADS_A_WORKER)),
        job_cpu=jobs.slurm_cores,
        memory=jobs.slurm_memory,
        job_extra_directives=directives,
        job_script_prologue=[
            *_lab_settings("job-script-prologue"),
            *(f"export {name}={value}" for name, value in environment.items()),
        ],
        worker_extra_args=[
            *_lab_settings("worker-extra-args"),
            *(["--resources", f"{GPU}=1"] if jobs.slurm_gpu else []),
        ],
        scheduler_options=scheduler,
        **{name: value for name, value in asked.items() if value},
    )


def _lab_settings(setting: str) -> list[str]:
    """Return a list from dask-jobqueue's configuration, which wsa extends instead of replacing."""
    from dask import config

    return list(config.get(f"jobqueue.slurm.{setting}", None) or [])


def _output(jobs: SlurmOptions) -> Path | None:
    """Return SLURM's pattern for output files; None if the user or the lab's settings give one."""
    from dask import config

    if any(extra.startswith(("-o", "--output")) for extra in jobs.slurm_extra):
        return None
    if config.get("jobqueue.slurm.log-directory", None):
        return None
    return cache_folder().absolute() / "slurm" / "%j.out"


class JobKeeper:
    """Keeps a number of jobs submitted: replaces each job that has ended or was refused.

    dask-jobqueue does this too, but only for a job with a single worker that has already started.
    """

    def __init__(self, cluster: Any, count: int) -> None:
        self._cluster = cluster
        self._count = count
        self._seen: dict[str, float] = {}  # When a job last had a worker, or was refused.
        self._states: dict[str, str] = {}  # Last state that SLURM reported, by job number.
        self._asked = -ASK_EVERY_S

    def __call__(self) -> None:
        """Check all jobs once; call this every few seconds in the cluster's event loop."""
        now = time.monotonic()
        worker_names = {
            worker["name"] for worker in self._cluster.scheduler_info["workers"].values()
        }
        ask = False
        for name, spec in list(self._cluster.worker_spec.items()):
            job = self._cluster.workers.get(name)
            if worker_names & {f"{name}{of}" for of in spec.get("group", [""])}:
                self._seen[name] = now
                self._cluster.fruitless.clear()
                continue
            if job is None:  # Submission is in progress.
                continue
            state = self._states.get(job.job_id, "")
            if job.refusal:
                self._seen.setdefault(name, now)
            elif state not in _OVER:
                ask = True
            elif name not in self._seen:
                self._cluster.fruitless.append(f"{job.job_id} {state.lower()}")
                terminal.say(
                    f"SLURM job {job.job_id} ended ({state.lower()}) without a worker; submitting "
                    "another"
                )
            if state in _OVER or now - self._seen.get(name, now) > GONE_S:
                del self._cluster.worker_spec[name]
                self._seen.pop(name, None)
        if ask and now - self._asked >= ASK_EVERY_S:
            self._asked = now
            self._cluster.loop.add_callback(self._ask)
        self._cluster.scale(jobs=self._count)

    async def _ask(self) -> None:
        """Ask SLURM for the states of the jobs; keep the old ones if it is silent."""
        states = await asyncio.to_thread(_job_states)
        if states is None:
            return
        # Leave alone a job that SLURM has never reported; it may be on another cluster.
        known = {number: _FORGOTTEN for number in self._states} | states
        own_jobs = {job.job_id for job in self._cluster.workers.values()}
        self._states = {number: known[number] for number in own_jobs & known.keys()}


def _job_states() -> dict[str, str] | None:
    """Return the states of the user's jobs, with recently ended ones; None if SLURM is silent."""
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--states=all", "--format=%A %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    words = [line.split() for line in done.stdout.splitlines()]
    return {number: state for number, state in (pair for pair in words if len(pair) == 2)}


def await_worker(client: Client, cluster: Any, jobs: SlurmOptions) -> None:
    """Wait for the first worker, without a time limit, since jobs may queue for long.

    Raises:
        StorageError: If SLURM refused every job, or too many ended without a worker.
    """
    output = _output(jobs)
    announced = False
    while True:
        try:
            client.wait_for_workers(1, timeout=LOOK_EVERY_S)
            return
        except TimeoutError:
            submitted = list(cluster.workers.values())
            refused = [job.refusal for job in submitted if job.refusal]
            if refused and len(refused) == len(submitted):
                raise StorageError(
                    "unavailable",
                    f"SLURM refused the jobs ({refused[0]}). 'wsa encode --dry-run' shows the job's "
                    "script; correct the --slurm options.",
                ) from None
            if len(cluster.fruitless) >= TRIES * max(1, len(submitted)):
                where = f" in {output.parent}" if output else ""
                raise StorageError(
                    "unavailable",
                    f"{len(cluster.fruitless)} of SLURM's jobs ended before they had a worker (job "
                    f"{cluster.fruitless[-1]}). See their output{where}. A job that cannot write "
                    "its output fails too; --slurm-extra=--output=/some/folder/%j.out chooses "
                    "another place.",
                ) from None
            if not announced:
                refusal = f"; it refused {len(refused)} ({refused[0]})" if refused else ""
                kept = f"; what jobs print is kept in {output.parent}" if output else ""
                terminal.say(f"waiting for SLURM to start a job, which squeue shows{refusal}{kept}")
            announced = True
