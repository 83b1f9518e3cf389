"""`wsa encode --scheduler slurm` with a real SLURM, if one is available.

`benchmarks/slurm_single_node.sh` sets one up on this machine. The tests only touch jobs whose
working directory is that of the test.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster():
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


def wait_until(condition, failure, wait_s=WAIT_S):
    end = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < end, failure
        time.sleep(0.3)


class Encode:
    """`wsa encode` in a process group of its own."""

    def __init__(self, folder, store, output, workers, *more):
        self.folder = folder
        where = ["--store", str(store), "--output", output, "--workers", str(workers)]
        self.log = folder / "stderr"
        with self.log.open("w") as err, (folder / "stdout").open("w") as out:
            self.process = subprocess.Popen(
                [*WSA, "encode", *MODEL, *JOB, *where, *more],
                stdout=out,
                stderr=err,
                cwd=folder,
                start_new_session=True,
                env={**os.environ, "WSA_CACHE": str(folder / "cache")},
            )

    def jobs(self):
        """Return the jobs that wait or run."""
        return self._in_state("PD,CF,R,CG")

    def submitted(self):
        """Return the jobs that wait, run, or have ended."""
        return self._in_state("all")

    def _in_state(self, states):
        asked = ["squeue", "-h", "--name", "wsa", "-t", states, "-o", "%i %Z"]
        lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        return [i for i, place in map(str.split, lines.splitlines()) if place == str(self.folder)]

    def done(self):
        return self.log.read_text().count('"SegmentDone"')

    def wait_for_segment(self):
        wait_until(lambda: self.done() or self.process.poll() is not None, "nothing was encoded")
        assert self.process.poll() is None, self.log.read_text()

    def wait(self):
        return self.process.wait(WAIT_S)

    def result(self):
        result = json.loads((self.folder / "stdout").read_text())
        return result


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm") / "store"
    play = ["--game", "Pong", "--steps", "1600", "--num-envs", "4", "--segment-steps", "100"]
    subprocess.run([*WSA, "collect", *play, "--store", str(folder)], check=True)
    return folder


@pytest.fixture
def encode(tmp_path, store):
    started = []

    def start(output, workers, *more):
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
def test_jobs_encode_everything_and_end(encode, workers, output):
    run = encode(output, workers)
    run.wait_for_segment()
    assert len(run.jobs()) == workers
    assert run.wait() == 0, run.log.read_text()
    assert (run.result()["objects"], run.result()["set_aside"]) == (SEGMENTS, [])
    wait_until(lambda: not run.jobs(), "jobs are left", 30)
    assert len(list((run.folder / "cache" / "slurm").glob("*.out"))) == workers
    assert not list(run.folder.glob("slurm-*")), "no file is left in the working directory"


def test_a_job_that_is_canceled_in_the_queue_is_replaced(encode):
    # Unless it is canceled, the job begins tomorrow.
    run = encode("grid:5", 1, "--slurm-extra=--begin=now+1day")
    wait_until(run.jobs, "no job was submitted")
    (first,) = run.jobs()
    subprocess.run(["scancel", first], check=True)
    wait_until(lambda: len(run.submitted()) > 1, "no other job was submitted")
    (second,) = run.jobs()
    subprocess.run(["scontrol", "update", f"jobid={second}", "starttime=now"], check=True)
    assert run.wait() == 0, run.log.read_text()
    assert "ended (cancelled) without a worker" in run.log.read_text()


def test_jobs_that_cannot_start_end_the_command(encode):
    run = encode("grid:4", 1, "--slurm-extra=--output=/no/such/folder/%j.out")
    assert run.wait() == 6
    assert "ended before they had a worker" in run.log.read_text()


@pytest.mark.parametrize(("cores", "output"), [("1", "grid:7"), ("2", "grid:6")])
def test_a_job_that_is_canceled_costs_an_attempt_and_is_replaced(encode, cores, output):
    # dask-jobqueue does not replace a job with several workers; `JobKeeper` does.
    run = encode(output, 1, "--slurm-cores", cores, "--slurm-memory", f"{2 * int(cores)}GB")
    run.wait_for_segment()
    (first,) = run.jobs()
    subprocess.run(["scancel", first], check=True)
    wait_until(lambda: len(run.submitted()) > 1, "no other job was submitted")
    # The command only finishes with another job.
    assert run.wait() == 0, run.log.read_text()
    assert (run.result()["objects"], run.result()["set_aside"]) == (SEGMENTS, [])
    assert run.log.read_text().count('"worker-died"') >= 1
    wait_until(lambda: not run.jobs(), "jobs are left", 30)


@pytest.mark.parametrize(
    ("number", "code", "output"), [(signal.SIGINT, 130, "grid:2"), (signal.SIGTERM, 143, "grid:3")]
)
def test_stopping_the_command_ends_its_jobs(encode, number, code, output):
    run = encode(output, 2)
    run.wait_for_segment()
    run.process.send_signal(number)
    assert run.wait() == code, run.log.read_text()
    assert 0 < run.done() < SEGMENTS
    wait_until(lambda: not run.jobs(), "jobs are left", 30)


def test_a_refused_job_ends_the_command(encode):
    run = encode("pooled+rp:8", 1, "--slurm-memory", "900000GB")
    assert run.wait() == 6
    assert "SLURM refused the jobs" in run.log.read_text()
