"""Workers that SLURM starts: options of the command, and a Dask cluster made of them.

What these options do not say is taken from dask-jobqueue's own settings in `~/.config/dask`, where
a lab may keep what all its jobs have in common.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from typing import Any

from wsa.encode.options import SlurmOptions
from wsa.encode.workers import GPU, TASKS_A_GPU, THREADS_A_WORKER
from wsa.store.errors import MissingError


@dataclasses.dataclass(frozen=True)
class SlurmJobs:
    """What each job asks SLURM for.

    Attributes:
        queue: The partition; SLURM's own default where empty.
        account: Who pays.
        walltime: How long a job may run, as SLURM writes it.
        cores: Cores of a job; on a machine without a GPU, as many single-threaded workers.
        memory: Memory of a job, as 16GB.
        gpu: Whether each job has a GPU; it then has one worker.
        extra: Further `#SBATCH` directives.
    """

    queue: str = ""
    account: str = ""
    walltime: str = ""
    cores: int = 4
    memory: str = "16GB"
    gpu: bool = False
    extra: tuple[str, ...] = ()


def jobs(o: SlurmOptions) -> SlurmJobs:
    """What the `--slurm-*` options ask for."""
    return SlurmJobs(
        queue=o.slurm_queue,
        account=o.slurm_account,
        walltime=o.slurm_walltime,
        cores=o.slurm_cores,
        memory=o.slurm_memory,
        gpu=o.slurm_gpu,
        extra=o.slurm_extra,
    )


def start(
    jobs: SlurmJobs,
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
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError:
        raise MissingError(
            "no-library", "--scheduler slurm needs dask-jobqueue: pip install 'wsa[slurm]'"
        ) from None
    workers = 1 if jobs.gpu else jobs.cores
    asked = {"queue": jobs.queue, "account": jobs.account, "walltime": jobs.walltime}
    cluster: Any = SLURMCluster
    return cluster(
        job_name="wsa",
        python=sys.executable,
        processes=workers,
        # Dask's word for threads; SLURM is asked for `job_cpu`.
        cores=workers * (threads or (TASKS_A_GPU if jobs.gpu else THREADS_A_WORKER)),
        job_cpu=jobs.cores,
        memory=jobs.memory,
        job_extra_directives=[*(["--gpus=1"] if jobs.gpu else []), *jobs.extra],
        job_script_prologue=[f"export {name}={value}" for name, value in environment.items()],
        worker_extra_args=["--resources", f"{GPU}=1"] if jobs.gpu else [],
        scheduler_options=scheduler,
        **{name: value for name, value in asked.items() if value},
    )
