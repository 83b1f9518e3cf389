"""Count the cores that this process may use, which can be fewer than the machine has."""

from __future__ import annotations

import os

from wsa.store.common.errors import UsageError


def cores() -> int:
    """Return the smallest limit set by the machine, CPU affinity, the container and SLURM."""
    from dask.system import cpu_count  # It reads affinity and cgroups.

    # Cores of the task, or else of the job on this node.
    slurm = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or ""
    return max(1, min(cpu_count(), int(slurm))) if slurm.isdigit() else cpu_count()


def threads_for(asked: int | None) -> int:
    """Return the number of threads that embed in parallel: `asked`, or one per core.

    Raises:
        UsageError: If `asked` exceeds the number of cores.
    """
    most = cores()
    if asked is not None and asked > most:
        raise UsageError(
            f"--threads {asked} is more than the {most} core{'s' * (most > 1)} that this process may use. "
            "Leave it out to use them all."
        )
    return asked or most
