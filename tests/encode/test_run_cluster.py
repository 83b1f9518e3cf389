"""Workers through SLURM, the report of a run, and what a worker takes of the memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dask import config

from wsa import cli
from wsa.encode.jobs import cluster, dry_run
from wsa.encode.jobs.run import encode, encode_on
from wsa.encode.jobs.slurm import JobKeeper, SlurmOptions
from wsa.encode.jobs.workers import Workers
from wsa.encode.models.registry import Request
from wsa.store.backends.base import Backend
from wsa.store.common.errors import MissingError, StorageError
from wsa.store.format.records import SegmentMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import take_snapshot

Ask = Callable[..., Request]
Fill = Callable[..., list[SegmentMeta]]

# What SLURM's own command does, on this machine: start the script, and say its number.
SBATCH = """#!{python}
import pathlib, subprocess, sys
script = pathlib.Path(sys.argv[-1]).read_text()
kept = pathlib.Path({folder!r}) / "job.sh"
kept.write_text(script)
process = subprocess.Popen(["bash", str(kept)], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, start_new_session=True)
print("Submitted batch job", process.pid)
"""
SCANCEL = """#!{python}
import contextlib, os, signal, sys
with contextlib.suppress(ProcessLookupError):
    os.killpg(int(sys.argv[1]), signal.SIGTERM)
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`sbatch` and `scancel` that start and stop jobs here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL}.items():
        file = folder / name
        file.write_text(text.format(python=sys.executable, folder=str(folder)))
        file.chmod(file.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    yield folder


def test_slurm_starts_the_workers(store: Backend, fill: Fill, tiny: Ask, slurm: Path) -> None:
    fill(store, [[0, 1], [1, 2], [3]])
    jobs = SlurmOptions(
        "gpu", slurm_cores=1, slurm_memory="2GB", slurm_extra=("--constraint=a100",)
    )
    report = encode(store, [tiny("resnet")], scheduler="slurm", device="cpu", jobs=jobs)
    assert (report.passes, report.failed, report.workers) == (4, (), 1)
    script = (slurm / "job.sh").read_text()
    assert "#SBATCH -p gpu" in script and "#SBATCH --constraint=a100" in script
    assert "distributed.cli.dask_worker tcp://" in script
    assert verify(store).damage == ()


def test_jobs_that_slurm_refuses_end_the_command_with_its_words(
    store: Backend, fill: Fill, tiny: Ask, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'invalid partition: gpuu' >&2; exit 1\n")
    monkeypatch.setattr("wsa.encode.jobs.slurm.LOOK_EVERY_S", 0.2)
    fill(store, [[0]])
    with pytest.raises(StorageError, match=r"SLURM refused the jobs \(invalid partition: gpuu\)"):
        encode(store, [tiny("resnet")], scheduler="slurm", workers=2, jobs=SlurmOptions("gpuu"))


class Jobs:
    """What a keeper sees of `SLURMCluster`: jobs of two workers each."""

    def __init__(self) -> None:
        self.worker_spec: dict[str, dict[str, list[str]]] = {}
        self.workers: dict[str, Any] = {}
        self.scheduler_info: dict[str, Any] = {"workers": {}}
        self.submitted = 0

    def scale(self, jobs: int) -> None:
        while len(self.worker_spec) < jobs:
            name = f"SLURMCluster-{self.submitted}"
            self.worker_spec[name] = {"group": ["-0", "-1"]}
            self.workers[name] = SimpleNamespace(refusal="")
            self.submitted += 1

    def here(self, *names: str) -> None:
        self.scheduler_info["workers"] = {name: {"name": name} for name in names}


def test_a_job_that_is_over_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("wsa.encode.jobs.slurm.time.monotonic", lambda: now[0])
    jobs = Jobs()
    keep = JobKeeper(jobs, 2)
    keep()
    assert jobs.submitted == 2
    now[0] = 1e5
    keep()
    assert jobs.submitted == 2, "it may stand in the queue for as long as it likes"
    jobs.here("SLURMCluster-0-0", "SLURMCluster-0-1", "SLURMCluster-1-1")
    keep()
    jobs.here("SLURMCluster-1-1")
    now[0] += 50
    keep()
    assert jobs.submitted == 2, "its workers may come back"
    now[0] += 11
    keep()
    assert list(jobs.worker_spec) == ["SLURMCluster-1", "SLURMCluster-2"]
    jobs.workers["SLURMCluster-2"].refusal = "not now"
    keep()
    now[0] += 61
    keep()
    assert list(jobs.worker_spec) == ["SLURMCluster-1", "SLURMCluster-3"]


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
