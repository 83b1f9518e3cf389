"""Workers through SLURM, the report of a run, and what a worker takes of the memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask_jobqueue  # noqa: F401  Its defaults must be there before a test sets others.
import pytest
from dask import config

from wsa import cli
from wsa.encode.jobs import cluster, dry_run
from wsa.encode.jobs.run import encode, encode_on
from wsa.encode.jobs.slurm import JobKeeper, SlurmOptions, start
from wsa.encode.jobs.workers import Workers
from wsa.encode.models.registry import Request
from wsa.store.backends.base import Backend
from wsa.store.common.errors import MissingError, StorageError
from wsa.store.format.records import SegmentMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import take_snapshot

Ask = Callable[..., Request]
Fill = Callable[..., list[SegmentMeta]]

# What SLURM's own commands do, on this machine. A job's state is a file of its number in `jobs`; with
# a file `hold` in the folder the next job stays in the queue.
SBATCH = """#!{python}
import os, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
script = pathlib.Path(sys.argv[-1]).read_text()
(folder / "job.sh").write_text(script)
own = folder / f"{{os.getpid()}}.sh"
own.write_text(script)
try:
    (folder / "hold").unlink()
    number, state = os.getpid(), "PENDING"
except FileNotFoundError:
    number = subprocess.Popen(["bash", str(own)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, start_new_session=True).pid
    state = "RUNNING"
(folder / "jobs" / str(number)).write_text(state)
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
    """`sbatch`, `scancel` and `squeue` in a folder, which start and stop jobs here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)
        for name, text in {"sbatch": SBATCH, "scancel": SCANCEL, "squeue": SQUEUE}.items():
            self.command(name, text.format(python=sys.executable, folder=str(folder)))

    def command(self, name: str, text: str) -> None:
        file = self.folder / name
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IEXEC)

    def hold(self) -> None:
        """Let the next job stay in the queue."""
        (self.folder / "hold").touch()

    def jobs(self) -> dict[str, str]:
        """States of all jobs ever submitted, by number."""
        return {file.name: file.read_text() for file in (self.folder / "jobs").iterdir()}

    def cancel(self, job: str) -> None:
        subprocess.run([self.folder / "scancel", job], check=True)

    def script(self) -> str:
        """What was submitted last."""
        return (self.folder / "job.sh").read_text()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    yield fake
    for job in fake.jobs():
        fake.cancel(job)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are looked at often."""
    monkeypatch.setattr(cluster, "SCALE_EVERY_S", 0.2)
    for name, seconds in {"LOOK_EVERY_S": 0.2, "ASK_EVERY_S": 0.2, "GONE_S": 3.0}.items():
        monkeypatch.setattr(f"wsa.encode.jobs.slurm.{name}", seconds)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_slurm_starts_the_workers(store: Backend, fill: Fill, tiny: Ask, slurm: FakeSlurm) -> None:
    fill(store, [[0, 1], [1, 2], [3]])
    jobs = SlurmOptions(
        "gpu", slurm_cores=1, slurm_memory="2GB", slurm_extra=("--constraint=a100",)
    )
    report = encode(
        store, [tiny("resnet")], scheduler="slurm", device="cpu", engine="torch", jobs=jobs
    )
    assert (report.passes, report.failed, report.workers) == (4, (), 1)
    script = slurm.script()
    assert "#SBATCH -p gpu" in script and "#SBATCH --constraint=a100" in script
    assert "distributed.cli.dask_worker tcp://" in script
    assert verify(store).damage == ()


def test_jobs_that_slurm_refuses_end_the_command_with_its_words(
    store: Backend, fill: Fill, tiny: Ask, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.command("sbatch", "#!/bin/sh\necho 'invalid partition: gpuu' >&2; exit 1\n")
    monkeypatch.setattr("wsa.encode.jobs.slurm.LOOK_EVERY_S", 0.2)
    fill(store, [[0]])
    with pytest.raises(StorageError, match=r"SLURM refused the jobs \(invalid partition: gpuu\)"):
        encode(store, [tiny("resnet")], scheduler="slurm", workers=2, jobs=SlurmOptions("gpuu"))


PAIR = SlurmOptions(slurm_cores=2, slurm_memory="1GB")


@pytest.mark.slow
@pytest.mark.parametrize("squeue", ["tells", "fails"])
def test_a_job_that_is_over_is_followed_by_another(
    slurm: FakeSlurm, quickly: None, monkeypatch: pytest.MonkeyPatch, squeue: str
) -> None:
    """Of several workers, as by default: Dask itself replaces none of these."""
    if squeue == "fails":
        slurm.command("squeue", FAILS)
    else:
        monkeypatch.setattr("wsa.encode.jobs.slurm.GONE_S", 1e6)
    with cluster.connect("slurm", 1, jobs=PAIR) as (client, _):
        client.wait_for_workers(2, timeout=60)
        (first,) = slurm.jobs()
        slurm.cancel(first)
        until(lambda: len(slurm.jobs()) > 1)
        until(lambda: not any("-0-" in w["name"] for w in workers(client)))
        client.wait_for_workers(2, timeout=60)
        assert {w["name"].partition("-")[2] for w in workers(client)} == {"1-0", "1-1"}
    assert sorted(slurm.jobs().values()) == ["CANCELLED", "CANCELLED"], "no third; none is left"


def workers(client: Any) -> list[Any]:
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return list(found.values())


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_a_job_that_is_cancelled_in_the_queue_is_followed_by_another(
    slurm: FakeSlurm, quickly: None, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.hold()

    def cancel() -> None:
        until(lambda: "PENDING" in slurm.jobs().values())
        slurm.cancel(*slurm.jobs())

    thread = threading.Thread(target=cancel)
    thread.start()
    with cluster.connect("slurm", 1, jobs=PAIR) as (client, _):
        assert {w["name"][:-2] for w in workers(client)} == {"wsa-1"}
        assert len(slurm.jobs()) == 2
    thread.join()
    said = capsys.readouterr().err
    assert "is over (cancelled) and had no worker; another is submitted" in said


@pytest.mark.timeout(100)
def test_jobs_that_end_one_after_the_other_without_a_worker_end_the_command(
    slurm: FakeSlurm, quickly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.command(
        "sbatch",
        f"#!/bin/sh\necho FAILED > {slurm.folder}/jobs/$$\necho Submitted batch job $$\n",
    )
    with (
        pytest.raises(StorageError, match=r"jobs ended before.*\(job \d+ failed.*cache.*slurm"),
        cluster.connect("slurm", 1, jobs=PAIR),
    ):
        pass
    assert 3 <= len(slurm.jobs()) < 10


def test_jobs_may_wait_and_their_workers_may_come_back(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Dask's own cluster, and workers that are only said to be there."""
    now = [0.0]
    monkeypatch.setattr("wsa.encode.jobs.slurm.time", SimpleNamespace(monotonic=lambda: now[0]))
    slurm.command("sbatch", "#!/bin/sh\necho PENDING > jobs/$$\necho Submitted batch job $$\n")
    (slurm.folder.parent / "jobs").symlink_to(slurm.folder / "jobs")
    with start(PAIR, {}, True, dashboard_address=":0", dashboard=False) as jobs:
        keep = JobKeeper(jobs, 2)

        def look(seconds: float, *names: str) -> list[str]:
            """Names of the jobs, once the cluster has done what the keeper asked of it."""
            now[0] += seconds
            jobs.scheduler_info["workers"] = {name: {"name": name} for name in names}
            jobs.sync(at_once, keep)
            until(lambda: jobs.workers.keys() == jobs.worker_spec.keys())
            return [name.removeprefix("wsa-") for name in jobs.worker_spec]

        async def at_once(call: Callable[[], None]) -> None:
            call()

        assert look(0) == ["0", "1"]
        assert look(1e5) == ["0", "1"], "they may stand in the queue for as long as they like"
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
def test_what_jobs_print_is_kept_in_the_cache_unless_somebody_says_where(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: tuple[str, ...],
    config_folder: str | None,
    kept: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSA_CACHE", str(tmp_path / "my cache"))
    with config.set({"jobqueue.slurm.log-directory": config_folder}):
        script = cluster.job_script(SlurmOptions(slurm_extra=extra))
    assert (f"#SBATCH --output='{tmp_path}/my cache/slurm/%j.out'\n" in script) == kept
    assert script.count("/%j") == int(kept or bool(extra))


def test_what_a_lab_says_of_all_its_jobs_stays_in_them() -> None:
    """dask-jobqueue drops its own settings where an argument says something else."""
    own = {
        "job-script-prologue": ["module load cuda"],
        "job-extra-directives": ["--constraint=avx512"],
        "worker-extra-args": ["--lifetime", "55m"],
    }
    with config.set({f"jobqueue.slurm.{name}": value for name, value in own.items()}):
        script = cluster.job_script(SlurmOptions(slurm_gpu=True, slurm_extra=("--exclude=node7",)))
    lines = script.splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert {"#SBATCH --constraint=avx512", "#SBATCH --exclude=node7"} <= {*directives}
    exports = [i for i, line in enumerate(lines) if line.startswith("export ")]
    assert exports and lines.index("module load cuda") < exports[0]
    assert "--lifetime 55m" in lines[-1] and "--resources GPU=1" in lines[-1]


def test_a_dry_run_shows_the_job_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
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


def wsa(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return code, out.getvalue(), err.getvalue()


def test_events_are_lines_of_json_and_the_report_says_all_of_it(
    store: Backend, fill: Fill, tmp_path: Path
) -> None:
    metas = fill(store, [[0, 1, 2], [2, 3], [5, 6]])
    commit = take_snapshot(store).commit(f"games/Pong/frames/{metas[2].segment}")
    (name,) = [f.name for f in commit.files if f.name.startswith("frames/c")]
    bad = Path(store.url) / commit.folder / name
    bad.chmod(0o644)
    bad.write_bytes(b"x")
    command = ("encode", "--store", store.url, "--models", "timm:test_resnet:random")
    more = ("--output", "pooled", "--scheduler", "inproc", "--report", str(tmp_path / "report"))
    code, out, err = wsa(*command, *more, "--json", "--tries", "2")
    assert code == 5
    result = json.loads(out)
    assert [s["segment"] for s in result["set_aside"]] == [metas[2].segment]
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    kinds = [e["event"] for e in events]
    assert kinds[:3] == ["Started", "ModelReady", "Planned"]
    assert kinds.count("SegmentDone") == 2 and kinds.count("AttemptFailed") == 2
    assert [e["error"]["kind"] for e in events if e["event"] == "AttemptFailed"] == 2 * [
        "bad-bytes"
    ]
    run = json.loads((tmp_path / "report" / "run.json").read_text())
    (ready,) = [e for e in events if e["event"] == "ModelReady"]
    assert ready["spec"]["identity"]["output"] == "pooled" and ready["choice"]["rate"] > 0
    (model,) = run["models"]
    assert (model["passes"], model["copied"], model["set_aside"]) == (4, 1, 1)
    assert set(model["seconds"]) == {"reading", "running", "writing"}
    assert all(seconds > 0 for seconds in model["seconds"].values())
    assert model["passes_a_second_of_a_worker"] > 0
    assert [f["attempt"] for f in run["failed_attempts"]] == [1, 2]
    assert run["versions"]["torch"] and run["machine"]["cores"] and run["command"]
    words = (tmp_path / "report" / "summary.md").read_text()
    assert model["model"] in words and metas[2].segment in words and "wsa verify" in words
    code, out, err = wsa(*command, *more)
    assert code == 5 and "Set aside" in out and "{" not in err
    assert "(Attempt 1; this run tries it again.)" in err
    assert "(Attempt 3; it is set aside.)" in err
    assert err.splitlines()[-1].startswith("wsa encode: 1 objects were set aside")


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_done(
    store: Backend, fill: Fill, tmp_path: Path
) -> None:
    fill(store, [[0]])
    (tmp_path / "file").touch()
    command = ("encode", "--store", store.url, "--models", "timm:test_resnet:random")
    more = ("--output", "pooled", "--scheduler", "inproc", "--report", str(tmp_path / "file/x"))
    code, _, err = wsa(*command, *more)
    assert code == 6 and str(tmp_path / "file/x") in err
    assert take_snapshot(store).models == []


PEAK = str(Path(__file__).with_name("peak_worker.py"))


def peaks(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in folder.glob("peak-*")]


@pytest.mark.slow
def test_no_worker_takes_more_memory_than_the_dry_run_says(
    store: Backend,
    segment_of: Callable[..., Any],
    tiny: Ask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P19, with screens as large as real ones."""
    import numpy as np

    from wsa.store.objects import writer

    rng = np.random.default_rng(0)
    for number in range(4):
        frames = [rng.integers(0, 256, (210, 160, 3), np.uint8) for _ in range(400)]
        writer.commit_segment(store, *segment_of(number, frames))
    requests = [tiny("resnet", "grid:2+pca:32"), tiny("vit")]
    asked = take_snapshot(store), requests, ["Pong"]
    sized = dry_run.measure_on_worker(*asked, "cpu", "auto")
    fitted = [832, 0]  # Frames of the strip.
    stated = dry_run.worker_bytes(asked[0], ["Pong"], "cpu", sized, fitted)
    monkeypatch.setenv("WSA_TEST_PEAKS", str(tmp_path))
    with (
        config.set({"distributed.worker.preload": [PEAK]}),
        cluster.connect("local", 2, "cpu") as (client, threads),
    ):
        report = encode_on(Workers(client, "cpu", print, threads), *asked)
    assert report.passes == 2 * 1600 and report.failures == ()
    found = peaks(tmp_path)
    print("stated", stated, "found", found)
    assert len(found) == 2
    assert max(found) <= stated <= 2 * max(found)
