"""`wsa encode --scheduler slurm` with a real SLURM, where one answers.

`benchmarks/slurm_single_node.sh` makes one of this machine.

Other jobs are left alone: only those are looked at whose working directory is the test's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> None:
    """Skip the tests where no SLURM answers; `sinfo` takes seconds to find that out."""
    asked = shutil.which("sbatch") and subprocess.run(
        ["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, check=False
    )
    states = asked.stdout if asked and asked.returncode == 0 else ""
    if not any(state in states for state in ("idle", "mix", "alloc")):
        pytest.skip("no SLURM answers: benchmarks/slurm_single_node.sh")


WSA = [sys.executable, "-m", "wsa.cli"]
JOB = ["--scheduler", "slurm", "--slurm-cores", "1", "--slurm-memory", "2GB",
       "--slurm-walltime", "00:20:00"]  # fmt: skip
MODEL = ["--models", "timm:test_vit.r160_in1k:random", "--engine", "torch", "--json"]
SEGMENTS = 16
WAIT_S = 900.0  # A busy machine imports torch for a minute, and gives a job little of its cores.


def until(true: Callable[[], object], what: str, wait_s: float = WAIT_S) -> None:
    end = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.3)


class Encode:
    """`wsa encode` as a process of its own group."""

    def __init__(self, folder: Path, store: Path, output: str, workers: int, *more: str) -> None:
        self.folder = folder
        where = ["--store", str(store), "--output", output, "--workers", str(workers)]
        self.said = folder / "stderr"
        with self.said.open("w") as err, (folder / "stdout").open("w") as out:
            self.process = subprocess.Popen(
                [*WSA, "encode", *MODEL, *JOB, *where, *more],
                stdout=out,
                stderr=err,
                cwd=folder,
                start_new_session=True,
                env={**os.environ, "WSA_CACHE": str(folder / "cache")},
            )

    def jobs(self) -> list[str]:
        """Jobs that wait or run."""
        return self._in_state("PD,CF,R,CG")

    def submitted(self) -> list[str]:
        """Jobs that wait, run, or are over."""
        return self._in_state("all")

    def _in_state(self, states: str) -> list[str]:
        asked = ["squeue", "-h", "--name", "wsa", "-t", states, "-o", "%i %Z"]
        lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        return [i for i, place in map(str.split, lines.splitlines()) if place == str(self.folder)]

    def done(self) -> int:
        return self.said.read_text().count('"SegmentDone"')

    def begun(self) -> None:
        until(lambda: self.done() or self.process.poll() is not None, "nothing was encoded")
        assert self.process.poll() is None, self.said.read_text()

    def ends(self) -> int:
        return self.process.wait(WAIT_S)

    def result(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.folder / "stdout").read_text())
        return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm") / "store"
    play = ["--game", "Pong", "--steps", "1600", "--num-envs", "4", "--segment-steps", "100"]
    subprocess.run([*WSA, "collect", *play, "--store", str(folder)], check=True)
    return folder


@pytest.fixture
def encode(tmp_path, store):
    started: list[Encode] = []

    def start(output: str, workers: int, *more: str) -> Encode:
        started.append(Encode(tmp_path, store, output, workers, *more))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        for job in one.jobs():
            subprocess.run(["scancel", job], check=False)


@pytest.mark.parametrize(("workers", "output"), [(1, "pooled"), (2, "cls")])
def test_jobs_encode_and_are_gone(encode, workers, output):
    run = encode(output, workers)
    run.begun()
    assert len(run.jobs()) == workers
    assert run.ends() == 0, run.said.read_text()
    assert (run.result()["objects"], run.result()["set_aside"]) == (SEGMENTS, [])
    until(lambda: not run.jobs(), "jobs are left", 30)
    assert len(list((run.folder / "cache" / "slurm").glob("*.out"))) == workers
    assert not list(run.folder.glob("slurm-*")), "nothing is left where the command was given"


def test_a_job_that_is_cancelled_in_the_queue_is_replaced(encode):
    # It cannot begin before tomorrow, as long as it is not cancelled.
    run = encode("grid:5", 1, "--slurm-extra=--begin=now+1day")
    until(run.jobs, "no job was submitted")
    (first,) = run.jobs()
    subprocess.run(["scancel", first], check=True)
    began = time.monotonic()
    until(lambda: len(run.submitted()) > 1, "no other job was submitted")
    print(f"another was submitted after {time.monotonic() - began:.0f} s")
    (second,) = run.jobs()
    subprocess.run(["scontrol", "update", f"jobid={second}", "starttime=now"], check=True)
    assert run.ends() == 0, run.said.read_text()
    assert "is over (cancelled) and had no worker" in run.said.read_text()


def test_jobs_that_cannot_start_end_the_command_and_say_where_to_look(encode):
    run = encode("grid:4", 1, "--slurm-extra=--output=/no/such/folder/%j.out")
    assert run.ends() == 6
    assert "ended before they had a worker" in run.said.read_text()


@pytest.mark.parametrize(("cores", "output"), [("1", "grid:7"), ("2", "grid:6")])
def test_a_job_that_is_cancelled_costs_an_attempt_and_is_replaced(encode, cores, output):
    # With several workers in a job dask-jobqueue does nothing about it: JobKeeper must.
    run = encode(output, 1, "--slurm-cores", cores, "--slurm-memory", f"{2 * int(cores)}GB")
    run.begun()
    (first,) = run.jobs()
    subprocess.run(["scancel", first], check=True)
    began = time.monotonic()
    until(lambda: len(run.submitted()) > 1, "no other job was submitted")
    print(
        f"with {cores} workers a job, another was submitted after {time.monotonic() - began:.0f} s"
    )
    # It can finish only if another job came.
    assert run.ends() == 0, run.said.read_text()
    assert (run.result()["objects"], run.result()["set_aside"]) == (SEGMENTS, [])
    assert run.said.read_text().count('"worker-died"') >= 1
    until(lambda: not run.jobs(), "jobs are left", 30)


@pytest.mark.parametrize(
    ("number", "code", "output"), [(signal.SIGINT, 130, "grid:2"), (signal.SIGTERM, 143, "grid:3")]
)
def test_who_stops_the_driver_stops_its_jobs(encode, number, code, output):
    run = encode(output, 2)
    run.begun()
    run.process.send_signal(number)
    assert run.ends() == code, run.said.read_text()
    assert 0 < run.done() < SEGMENTS
    until(lambda: not run.jobs(), "jobs are left", 30)


def test_what_slurm_refuses_ends_the_command(encode):
    run = encode("pooled+rp:8", 1, "--slurm-memory", "900000GB")
    assert run.ends() == 6
    assert "SLURM refused the jobs" in run.said.read_text()
