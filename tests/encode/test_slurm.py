"""Workers that SLURM starts: job scripts, jobs that end or wait, and how the command reacts."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from command_kit import wait_until
from dask import config

from wsa.encode.jobs import cluster
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.run import encode
from wsa.encode.jobs.slurm import JobKeeper, SlurmOptions, start
from wsa.encode.models.registry import Request
from wsa.store.common import signals
from wsa.store.common.errors import MissingError, StorageError
from wsa.store.format.records import SegmentMeta
from wsa.store.maintenance.verify import verify

with signals.restored():
    import_module("dask_jobqueue")  # Its defaults must be there before a test sets others.

Ask = Callable[..., Request]
Fill = Callable[..., list[SegmentMeta]]

# What SLURM's own commands do, on this machine. A file in `jobs`, named by a job's number, has its
# state.
SBATCH = """#!{python}
import os, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
script = pathlib.Path(sys.argv[-1]).read_text()
(folder / "job.sh").write_text(script)
own = folder / f"{{os.getpid()}}.sh"
own.write_text(script)
number = subprocess.Popen(["bash", str(own)], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, start_new_session=True).pid
(folder / "jobs" / str(number)).write_text("RUNNING")
print("Submitted batch job", number)
"""
SCANCEL = """#!{python}
import contextlib, os, pathlib, signal, sys
file = pathlib.Path({folder!r}) / "jobs" / sys.argv[1]
if file.read_text() == "RUNNING":
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(file.name), signal.SIGTERM)
file.write_text("CANCELLED")
"""
SQUEUE = """#!{python}
import pathlib
for file in (pathlib.Path({folder!r}) / "jobs").iterdir():
    print(file.name, file.read_text())
"""
FAILS = "#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n"


class FakeSlurm:
    """`sbatch`, `scancel`, and `squeue` in a folder, which start and stop jobs on this machine."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)
        for name, text in {"sbatch": SBATCH, "scancel": SCANCEL, "squeue": SQUEUE}.items():
            self.command(name, text.format(python=sys.executable, folder=str(folder)))

    def command(self, name, text):
        file = self.folder / name
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IEXEC)

    def jobs(self):
        """States of all jobs ever submitted, by number."""
        return {file.name: file.read_text() for file in (self.folder / "jobs").iterdir()}

    def cancel(self, job):
        subprocess.run([self.folder / "scancel", job], check=True)

    def script(self):
        """Return the last script that was submitted."""
        return (self.folder / "job.sh").read_text()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    yield fake
    for job in fake.jobs():
        fake.cancel(job)


@pytest.fixture
def short_intervals(monkeypatch):
    """Look at jobs often."""
    monkeypatch.setattr(cluster, "SCALE_EVERY_S", 0.2)
    for name, seconds in {"LOOK_EVERY_S": 0.2, "ASK_EVERY_S": 0.2, "GONE_S": 3.0}.items():
        monkeypatch.setattr(f"wsa.encode.jobs.slurm.{name}", seconds)


@pytest.mark.slow
def test_slurm_starts_the_workers(store, fill, tiny, slurm):
    fill(store, [[0, 1], [1, 2], [3]])
    jobs = SlurmOptions(
        "gpu", slurm_cores=1, slurm_memory="2GB", slurm_extra=("--constraint=a100",)
    )
    encoding = Encoding([tiny("resnet")], device="cpu", engine="torch")
    report = encode(store, encoding, scheduler="slurm", jobs=jobs)
    assert (report.passes, report.failed, report.workers) == (4, (), 1)
    script = slurm.script()
    assert "#SBATCH -p gpu" in script and "#SBATCH --constraint=a100" in script
    assert "distributed.cli.dask_worker tcp://" in script
    assert verify(store).damage == ()


def test_refused_jobs_end_the_command_with_slurms_message(store, fill, tiny, slurm, monkeypatch):
    slurm.command("sbatch", "#!/bin/sh\necho 'invalid partition: gpuu' >&2; exit 1\n")
    monkeypatch.setattr("wsa.encode.jobs.slurm.LOOK_EVERY_S", 0.2)
    fill(store, [[0]])
    with pytest.raises(StorageError, match=r"SLURM refused the jobs \(invalid partition: gpuu\)"):
        encode(
            store,
            Encoding([tiny("resnet")]),
            scheduler="slurm",
            workers=2,
            jobs=SlurmOptions("gpuu"),
        )


PAIR = SlurmOptions(slurm_cores=2, slurm_memory="1GB")


@pytest.mark.slow
@pytest.mark.parametrize("squeue", ["answers", "fails"])
def test_a_job_that_ends_is_replaced(slurm, short_intervals, monkeypatch, squeue):
    """A job of several workers, the default. Dask itself replaces none of these."""
    if squeue == "fails":
        slurm.command("squeue", FAILS)
    else:
        monkeypatch.setattr("wsa.encode.jobs.slurm.GONE_S", 1e6)
    with cluster.connect("slurm", 1, jobs=PAIR) as (client, _):
        client.wait_for_workers(2, timeout=60)
        (first,) = slurm.jobs()
        slurm.cancel(first)
        wait_until(lambda: len(slurm.jobs()) > 1)
        wait_until(lambda: not any("-0-" in w["name"] for w in workers(client)))
        client.wait_for_workers(2, timeout=60)
        assert {w["name"].partition("-")[2] for w in workers(client)} == {"1-0", "1-1"}
    assert sorted(slurm.jobs().values()) == ["CANCELLED", "CANCELLED"], "no third; none is left"


def workers(client):
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return list(found.values())


@pytest.mark.timeout(100)
def test_jobs_that_end_without_a_worker_end_the_command(slurm, short_intervals, monkeypatch):
    slurm.command(
        "sbatch", f"#!/bin/sh\necho FAILED > {slurm.folder}/jobs/$$\necho Submitted batch job $$\n"
    )
    with (
        pytest.raises(StorageError, match=r"jobs ended before.*\(job \d+ failed.*cache.*slurm"),
        cluster.connect("slurm", 1, jobs=PAIR),
    ):
        pass
    assert 3 <= len(slurm.jobs()) < 10


def test_a_job_may_wait_and_is_replaced_only_when_its_workers_stay_away(slurm, monkeypatch):
    """With Dask's own cluster and pretended workers."""
    now = [0.0]
    monkeypatch.setattr("wsa.encode.jobs.slurm.time", SimpleNamespace(monotonic=lambda: now[0]))
    slurm.command("sbatch", "#!/bin/sh\necho PENDING > jobs/$$\necho Submitted batch job $$\n")
    (slurm.folder.parent / "jobs").symlink_to(slurm.folder / "jobs")
    with start(PAIR, {}, True, dashboard_address=":0", dashboard=False) as jobs:
        keep = JobKeeper(jobs, 2)

        def look(seconds, *names):
            """Names of the jobs, after the cluster has done what the keeper asks."""
            now[0] += seconds
            jobs.scheduler_info["workers"] = {name: {"name": name} for name in names}
            jobs.sync(at_once, keep)
            wait_until(lambda: jobs.workers.keys() == jobs.worker_spec.keys())
            return [name.removeprefix("wsa-") for name in jobs.worker_spec]

        async def at_once(call: Callable[[], None]) -> None:
            call()

        assert look(0) == ["0", "1"]
        assert look(1e5) == ["0", "1"], "they may wait in the queue forever"
        first = "wsa-0-0", "wsa-0-1"
        assert look(5, *first, "wsa-1-1") == ["0", "1"]
        assert look(50, "wsa-1-1") == ["0", "1"], "its workers may come back"
        slurm.command("sbatch", "#!/bin/sh\necho 'not now' >&2; exit 1\n")
        assert look(11, "wsa-1-1") == ["1", "2"]
        assert jobs.workers["wsa-2"].refusal == "not now"
        assert look(5, "wsa-1-1") == ["1", "2"]
        assert look(61, "wsa-1-1") == ["1", "3"], "it is asked for again"
        jobs.scheduler_info["workers"] = {}


@pytest.mark.parametrize(
    ("extra", "config_folder", "kept"),
    [
        ((), None, True),
        (("--output=/logs/%j",), None, False),
        (("-o/logs/%j",), None, False),
        ((), "logs", False),
    ],
)
def test_logs_go_to_the_cache_unless_a_folder_is_given(
    tmp_path, monkeypatch, extra, config_folder, kept
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSA_CACHE", str(tmp_path / "my cache"))
    with config.set({"jobqueue.slurm.log-directory": config_folder}):
        script = cluster.job_script(SlurmOptions(slurm_extra=extra))
    assert (f"#SBATCH --output='{tmp_path}/my cache/slurm/%j.out'\n" in script) == kept
    assert script.count("/%j") == int(kept or bool(extra))


def test_ctrl_c_still_interrupts_after_dask_jobqueue_is_imported(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("dask_jobqueue")]:
        monkeypatch.delitem(sys.modules, name)
    before = signal.getsignal(signal.SIGINT)
    with signals.restored():
        import_module("dask_jobqueue")
    assert "dask_jobqueue.runner" in sys.modules and signal.getsignal(signal.SIGINT) is before


def test_settings_of_dask_jobqueue_apply_to_every_job():
    """dask-jobqueue itself drops a setting for which wsa passes an argument."""
    settings = {
        "job-script-prologue": ["module load cuda"],
        "job-extra-directives": ["--constraint=avx512"],
        "worker-extra-args": ["--lifetime", "55m"],
    }
    with config.set({f"jobqueue.slurm.{name}": value for name, value in settings.items()}):
        script = cluster.job_script(SlurmOptions(slurm_gpu=True, slurm_extra=("--exclude=node7",)))
    lines = script.splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert {"#SBATCH --constraint=avx512", "#SBATCH --exclude=node7"} <= {*directives}
    exports = [i for i, line in enumerate(lines) if line.startswith("export ")]
    assert exports and lines.index("module load cuda") < exports[0]
    assert "--lifetime 55m" in lines[-1] and "--resources GPU=1" in lines[-1]


def test_the_job_script_requests_the_resources_of_the_options(monkeypatch):
    monkeypatch.setenv("PATH", "")
    jobs = SlurmOptions("gpu", "lab", "04:00:00", 6, "32GB", True, ("--exclude=node7",))
    script = cluster.job_script(jobs)
    for line in (
        "#SBATCH -p gpu",
        "#SBATCH -A lab",
        "#SBATCH -t 04:00:00",
        "#SBATCH --cpus-per-task=6",
        "#SBATCH --gpus=1",
        "#SBATCH --exclude=node7",
        "export OMP_NUM_THREADS=1",
    ):
        assert f"{line}\n" in script
    assert re.search(r"--nthreads 4 .*--resources GPU=1", script)
    assert "--nworkers" not in script, "one worker a GPU"
    with pytest.raises(MissingError, match="sbatch"), cluster.connect("slurm", 1, jobs=jobs):
        pass
