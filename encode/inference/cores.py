"""How many cores this process may use, whatever the machine has."""

from __future__ import annotations

import os

from wsa.store.common.errors import UsageError


def cores() -> int:
    """Cores that this process may use: of the machine, its affinity, its container and its SLURM job."""
    from dask.system import cpu_count  # It reads affinity and cgroups.

    limits = [cpu_count(), *map(int, filter(str.isdigit, _of_slurm()))]
    return max(1, min(limits))


def _of_slurm() -> list[str]:
    """What SLURM gives a task, or the job where it does not say."""
    said = [os.environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")]
    return [*filter(None, said)][:1]


def threads_for(asked: int | None) -> int:
    """Threads that embed side by side: as many as asked for, or one a core.

    Raises:
        UsageError: More than there are cores.
    """
    most = cores()
    if asked is not None and asked > most:
        raise UsageError(
            "bad-option",
            f"--threads {asked} is more than the {most} core{'s' * (most > 1)} that this process may use. "
            "Leave it out to use them all.",
        )
    return asked or most
