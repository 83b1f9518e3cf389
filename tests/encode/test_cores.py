"""The number of threads that embed: as requested, but no more than the process may use."""

import dask.system
import pytest

from wsa.encode.inference.cores import cores, threads_for
from wsa.store.common.errors import UsageError

SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    """A machine or a container with eight cores."""
    monkeypatch.setattr(dask.system, "cpu_count", lambda: 8)
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("of_task", "of_job", "expected"),
    [("", "", 8), ("3", "", 3), ("", "4", 4), ("2", "6", 2), ("16", "", 8), ("all", "", 8)],
)
def test_slurm_limits_the_cores(of_task, of_job, expected, monkeypatch):
    for name, value in zip(SLURM, (of_task, of_job), strict=True):
        monkeypatch.setenv(name, value)
    assert cores() == threads_for(None) == expected


def test_more_threads_than_cores_are_refused():
    assert [threads_for(asked) for asked in (1, 3, 8, None)] == [1, 3, 8, 8]
    with pytest.raises(UsageError) as refused:
        threads_for(9)
    assert str(refused.value) == (
        "--threads 9 is more than the 8 cores that this process may use. Leave it out to use them "
        "all."
    )
