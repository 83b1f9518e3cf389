"""Workers that SLURM starts: options of the command, and a Dask cluster made of them.

What these options do not say is taken from dask-jobqueue's own settings in `~/.config/dask`, where
a lab may keep what all its jobs have in common. A job that SLURM refuses is kept with SLURM's words,
and a job that is over, or was refused, is followed by another a minute later. Dask is imported where
it is needed: the options are read for `--help` too.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

from wsa.store.common import terminal
from wsa.store.common.errors import MissingError, StorageError, UsageError
from wsa.store.common.ranges import COUNT, check_ranges
from wsa.store.configs import Names

if TYPE_CHECKING:
    from distributed import Client

LOOK_EVERY_S = 5

# A worker that died is started anew within its job, which may take so long to import torch.
GONE_S = 60.0


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """What `--scheduler slurm` asks SLURM for, for each of `--workers` jobs."""

    slurm_queue: str = ""
    """Partition; SLURM's default if not given."""
    slurm_account: str = ""
    """Account that pays; yours if not given."""
    slurm_walltime: str = ""
    """Time a job may run, as 04:00:00. Jobs whose time is up are followed by others."""
    slurm_cores: Annotated[int, COUNT] = 4
    """Cores of a job: as many workers, or one where it has a GPU."""
    slurm_memory: str = "16GB"
    """Memory of a job."""
    slurm_gpu: bool = False
    """Give each job a GPU."""
    slurm_extra: Names = ()
    """Further #SBATCH directives, as --constraint=a100,--exclude=node7."""


def jobs(options: SlurmOptions, scheduler: str) -> SlurmOptions:
    """The SLURM options alone of a command's options.

    Raises:
        UsageError: A value cannot be, or one is given that this scheduler has no use for.
    """
    from dask.utils import parse_bytes

    fields = dataclasses.fields(SlurmOptions)
    found = SlurmOptions(**{field.name: getattr(options, field.name) for field in fields})
    check_ranges(found)
    try:
        parse_bytes(found.slurm_memory)
    except ValueError:
        raise UsageError(
            "bad-option", f"--slurm-memory {found.slurm_memory}: write an amount, as 16GB."
        ) from None
    for field in fields:
        if scheduler != "slurm" and getattr(found, field.name) != field.default:
            flag = "--" + field.name.replace("_", "-")
            raise UsageError("bad-option", f"{flag} is for SLURM; add --scheduler slurm.")
    return found


def start(
    jobs: SlurmOptions,
    environment: dict[str, Any],
    submit: bool,
    threads: int = 0,
    **scheduler: Any,
) -> Any:
    """A `dask_jobqueue.SLURMCluster` without jobs yet; `job_script()` is what it would submit.

    Args:
        jobs: What each job asks for.
        environment: Variables that workers start with.
        submit: Whether jobs will be submitted.
        threads: Of a worker; 0 for as many as encoding keeps busy.
        scheduler: Options of the scheduler, which runs in this process.

    Raises:
        MissingError: dask-jobqueue is not installed, or SLURM is not on this machine.
    """
    if submit and not shutil.which("sbatch"):
        raise MissingError(
            "no-library",
            "--scheduler slurm: there is no sbatch here. Run it on a machine that submits jobs; "
            "--dry-run shows the job's script anywhere.",
        )
    from distributed.deploy.spec import ProcessInterface

    from wsa.encode.jobs.workers import GPU, TASKS_A_GPU, THREADS_A_WORKER

    try:
        from dask_jobqueue.slurm import SLURMCluster, SLURMJob
    except ImportError:
        raise MissingError(
            "no-library", "--scheduler slurm needs dask-jobqueue: pip install 'wsa[slurm]'"
        ) from None

    class Job(SLURMJob):
        """A job; `refusal` is what SLURM said where it did not take it."""

        refusal = ""

        async def start(self) -> None:
            submit: Any = super().start  # dask-jobqueue has no types.
            try:
                await submit()
            except (RuntimeError, ValueError, OSError) as error:
                said = str(error)
                self.refusal = " ".join((said.partition("stderr:")[2].strip() or said).split())
                started: Any = ProcessInterface.start  # As one that will never have a worker.
                await started(self)

        async def close(self) -> None:
            cancel: Any = super().close
            if not self.refusal:
                await cancel()
            closed: Any = ProcessInterface.close  # dask-jobqueue does not say so by itself.
            await closed(self)

    workers = 1 if jobs.slurm_gpu else jobs.slurm_cores
    asked = {
        "queue": jobs.slurm_queue,
        "account": jobs.slurm_account,
        "walltime": jobs.slurm_walltime,
    }
    cluster: Any = SLURMCluster
    return cluster(
        job_cls=Job,
        job_name="wsa",
        python=sys.executable,
        processes=workers,
        # Dask's word for threads; SLURM is asked for `job_cpu`.
        cores=workers * (threads or (TASKS_A_GPU if jobs.slurm_gpu else THREADS_A_WORKER)),
        job_cpu=jobs.slurm_cores,
        memory=jobs.slurm_memory,
        job_extra_directives=[*(["--gpus=1"] if jobs.slurm_gpu else []), *jobs.slurm_extra],
        job_script_prologue=[f"export {name}={value}" for name, value in environment.items()],
        worker_extra_args=["--resources", f"{GPU}=1"] if jobs.slurm_gpu else [],
        scheduler_options=scheduler,
        **{name: value for name, value in asked.items() if value},
    )


class JobKeeper:
    """Keeps so many jobs submitted: another one for each that is over or was refused.

    dask-jobqueue does so itself, but only where a job has a single worker.

    Args:
        cluster: From `start`.
        count: Jobs.
    """

    def __init__(self, cluster: Any, count: int) -> None:
        self._cluster = cluster
        self._count = count
        self._seen: dict[str, float] = {}

    def __call__(self) -> None:
        """Look once; to be called every few seconds, where the cluster's loop runs."""
        now = time.monotonic()
        here = {worker["name"] for worker in self._cluster.scheduler_info["workers"].values()}
        for name, spec in list(self._cluster.worker_spec.items()):
            job = self._cluster.workers.get(name)
            if here & {f"{name}{of}" for of in spec.get("group", [""])}:
                self._seen[name] = now
            elif job is not None and job.refusal:
                self._seen.setdefault(name, now)
            if now - self._seen.get(name, now) > GONE_S:
                del self._cluster.worker_spec[name], self._seen[name]
        self._cluster.scale(jobs=self._count)


def await_worker(client: Client, cluster: Any) -> None:
    """Wait for the first worker: a job may stand in the queue for as long as it likes.

    Raises:
        StorageError: SLURM refused every job.
    """
    said = False
    while True:
        try:
            client.wait_for_workers(1, timeout=LOOK_EVERY_S)
            return
        except TimeoutError:
            jobs = list(cluster.workers.values())
            refused = [job.refusal for job in jobs if job.refusal]
            if refused and len(refused) == len(jobs):
                raise StorageError(
                    "unavailable",
                    f"SLURM refused the jobs ({refused[0]}). 'wsa encode --dry-run' shows the job's "
                    "script; put right what the --slurm options ask for.",
                ) from None
            if not said:
                refusal = f"; it refused {len(refused)} ({refused[0]})" if refused else ""
                terminal.say(f"waiting for SLURM to start a job, which squeue shows{refusal}")
            said = True
