"""How a plan is executed: reads, retries, segments skipped, and the order of tasks."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster, Scheduler, SpecCluster, Worker

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.jobs import scheduler, tasks
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.events import AttemptFailed, SegmentDone, Started, WorkerUnfit
from wsa.encode.jobs.report import run_values, summary
from wsa.encode.jobs.run import encode_on
from wsa.encode.jobs.workers import TASKS_A_THREAD, Workers
from wsa.store.common.errors import MissingError, StorageError, UsageError, WsaError
from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import Snapshot, take_snapshot

pytestmark = pytest.mark.usefixtures("fresh_workers")


@pytest.fixture
def attempts(monkeypatch):
    """How often each segment went through each model."""
    counts = Counter()
    real = tasks._run

    def run(settings, item, *rest):
        counts[item.name] += 1
        return real(settings, item, *rest)

    monkeypatch.setattr(tasks, "_run", run)
    return counts


def test_a_segment_is_read_once_for_all_models(store, fill, small, encode_all, monkeypatch):
    metas = fill(store, [[0, 1, 2], [2, 3], [0, 3]])  # The last one only copies.
    reads = []
    real = Snapshot.read_pictures

    def read(self, meta):
        reads.append(meta.segment)
        return real(self, meta)

    monkeypatch.setattr(Snapshot, "read_pictures", read)
    assert len(encode_all(store, small("a"), small("b"), small("c")).done) == 9
    assert sorted(reads) == [meta.segment for meta in metas[:2]]
    # A model that is added later reads them once more.
    encode_all(store, small("a"), small("d"))
    assert sorted(reads) == sorted(2 * [meta.segment for meta in metas[:2]])


def test_a_segment_is_tried_a_fixed_number_of_times_and_then_set_aside(
    store, fill, small, encode_all, attempts, monkeypatch
):
    """P4: the commit of segment i fails i times; four times is one too many."""
    metas = fill(store, [[2 * i, 2 * i + 1] for i in range(5)])
    faults = {meta.segment: times for times, meta in enumerate(metas)}
    left = dict(faults)
    real = tasks._commit

    def commit(settings, item, embedded):
        if item.model.startswith("small_bad") and left[item.meta.segment]:
            left[item.meta.segment] -= 1
            raise RuntimeError("a fault")
        return real(settings, item, embedded)

    monkeypatch.setattr(tasks, "_commit", commit)
    events = []
    report = encode_all(store, small("bad"), small("good"), tries=4, listen=events.append)
    bad, good = (model.spec.key for model in report.models)
    for segment, times in faults.items():
        assert attempts[bad, "Pong", segment] == min(times + 1, 4)
        assert attempts[good, "Pong", segment] == 1, "the other model does not run again"
        failed = [e for e in events if isinstance(e, AttemptFailed) and e.segment == segment]
        assert [e.attempts for e in failed] == [*range(1, times + 1)]
        assert [e.last for e in failed] == [n == 4 for n in range(1, times + 1)]
        assert all(e.error.kind == "model-failed" and "a fault" in str(e.error) for e in failed)
    tries = {done.segment: done.attempts for done in report.done if done.model == bad}
    assert tries == {segment: times + 1 for segment, times in faults.items() if times < 4}
    assert {done.attempts for done in report.done if done.model == good} == {1}
    (failure,) = report.failed
    assert (failure.segment, failure.attempts, report.exit_code) == (metas[4].segment, 4, 4)
    assert report.summary()["set_aside"][0]["segment"] == metas[4].segment
    # Once the cause is gone, the same command does the rest.
    left.clear()
    left.update(dict.fromkeys(faults, 0))
    rest = encode_all(store, small("bad"), small("good"))
    assert (rest.passes, rest.present, rest.exit_code) == (2, 9, 0)
    assert verify(store).damage == () and verify(store).leftovers == 0


@pytest.mark.variants
@pytest.mark.parametrize("damaged", [{0, 1}, {0}, {1}, {0, 1, 2, 3}])
def test_frames_that_a_damaged_segment_shares_run_in_the_next_segment_that_has_them(
    damaged, store, fill, small, encode_all, make_encoder, noise, damage_frames
):
    shown = [[0, 1, 2], [2, 3, 0], [3, 4, 0], [4, 0, 2], [5]]  # Each repeats earlier frames.
    metas = fill(store, shown)
    for number in damaged:
        damage_frames(store, metas[number])
    report = encode_all(store, small())
    assert [f.segment for f in report.failed] == [metas[n].segment for n in sorted(damaged)]
    assert {f.error.kind for f in report.failed} == {"bad-bytes"} and report.exit_code == 5
    assert {f.attempts for f in report.failed} == {3}
    intact = [n for n in range(len(shown)) if n not in damaged]
    assert report.passes == len({i for n in intact for i in shown[n]}), "each frame once"
    snapshot, encoder = take_snapshot(store), make_encoder(small())
    (key,) = snapshot.models
    assert len(snapshot.embeddings()) == len(intact)
    for number in intact:
        embedding = snapshot.read_embedding("Pong", key, metas[number].segment)
        expected = stored(encoder(np.stack([noise(i) for i in shown[number]])))
        np.testing.assert_array_equal(embedding, expected)


def test_many_failed_segments_in_a_row_stop_the_run(store, fill, small, encode_all, monkeypatch):
    def fail(*args):
        raise StorageError("unavailable", "the share is gone")

    monkeypatch.setattr(tasks, "_commit", fail)
    monkeypatch.setattr(scheduler, "TOO_MANY_IN_A_ROW", 4)
    fill(store, [[i] for i in range(16)])
    events = []
    with pytest.raises(StorageError, match="the share is gone"):
        encode_all(store, small("a"), small("b"), listen=events.append)
    failed = [e.segment for e in events if isinstance(e, AttemptFailed) and e.last]
    assert len(set(failed)) == 4 and len(failed) == 8, "segments are counted, not their models"


def test_a_model_that_calls_exit_fails_like_any_other(store, fill, small, encode_all, monkeypatch):
    monkeypatch.setattr(Encoder, "embed_inputs", lambda *of: sys.exit(0))
    fill(store, [[0]])
    (failure,) = encode_all(store, small(), tries=2).failed
    assert failure.attempts == 2 and "SystemExit: 0" in str(failure.error)


def test_a_full_disk_stops_the_run_at_once(store, fill, small, encode_all, monkeypatch):
    def fail(*args):
        raise StorageError("no-space", "full")

    monkeypatch.setattr(tasks, "_commit", fail)
    fill(store, [[i] for i in range(6)])
    events = []
    reports = []
    with pytest.raises(StorageError, match="full"):
        encode_all(store, small(), listen=events.append, on_stop=reports.append)
    assert sum(isinstance(event, AttemptFailed) for event in events) == 1
    (report,) = reports
    assert (report.stopped, len(report.failures)) == ("full", 1)
    assert "Stopped before all was tried: full" in summary(run_values(report))


def test_the_model_runs_beside_reads_and_writes(store, fill, small, encode_all, monkeypatch):
    """Each forward pass but the last waits until the next segment is read, and each commit but the
    last until the model runs again. Both can only happen concurrently."""
    count = 6
    fill(store, [[2 * i, 2 * i + 1] for i in range(count)])
    reads, passes = threading.Semaphore(0), threading.Semaphore(0)
    model_lock, write_lock = threading.Lock(), threading.Lock()
    passed, written = [], list[str]()
    real_read, real_call, real_commit = tasks._read, Encoder.__call__, tasks._commit

    def read(*args):
        frames = real_read(*args)
        reads.release()
        return frames

    def forward(self, frames):
        if len(frames) != 2:  # Probe frames.
            return real_call(self, frames)
        assert model_lock.acquire(blocking=False), "one model runs at a time"
        passes.release()
        try:
            passed.append(len(frames))
            if len(passed) == 1:
                assert reads.acquire(timeout=60), "its own frames"
            if len(passed) < count:
                assert reads.acquire(timeout=60), "the next frames are read meanwhile"
            return real_call(self, frames)
        finally:
            model_lock.release()

    def commit(settings, item, embedded):
        with write_lock:
            written.append(item.meta.segment)
            number = len(written)
        for _ in range(2 if number == 1 else 1):
            if number < count:
                assert passes.acquire(timeout=60), "the model runs meanwhile"
        return real_commit(settings, item, embedded)

    monkeypatch.setattr(tasks, "_read", read)
    monkeypatch.setattr(Encoder, "__call__", forward)
    monkeypatch.setattr(tasks, "_commit", commit)
    report = encode_all(store, small())
    assert report.failures == () and len(report.done) == count


def test_a_bounded_number_of_tasks_is_in_flight(store, fill, small, encode_all, monkeypatch):
    fill(store, [[i] for i in range(24)])
    unfinished, events = [], []
    real = scheduler.Driver._submit

    def submit(self, *args):
        future = real(self, *args)
        unfinished.append(len(self._unfinished))
        return future

    monkeypatch.setattr(scheduler.Driver, "_submit", submit)
    encode_all(store, small(), listen=events.append)
    (threads,) = [event.threads for event in events if isinstance(event, Started)]
    assert max(unfinished) == TASKS_A_THREAD * threads < 24


@pytest.fixture
def mixed_cluster():
    """A worker that says it has a GPU and two that do not, all in this process."""
    options = {"nthreads": 2, "dashboard": False}
    gpu: dict[str, Any] = {"cls": Worker, "options": {**options, "resources": {"GPU": 1}}}
    cpu: dict[str, Any] = {"cls": Worker, "options": options}
    cluster = SpecCluster(
        workers={"gpu": gpu, "a": cpu, "b": cpu},
        scheduler={
            "cls": Scheduler,
            "options": {"protocol": "inproc", "dashboard": False, "dashboard_address": ":0"},
        },
    )
    with cluster, Client(cluster) as client:
        client.wait_for_workers(3)
        yield client


def test_models_run_beside_a_gpu_and_any_worker_commits(
    store, fill, small, mixed_cluster, monkeypatch
):
    fill(store, [[i, i + 1] for i in range(6)])  # Each copies from the one before.
    monkeypatch.setattr(tasks, "choose_device", lambda device: {"cuda": "cpu"}[device])
    addresses = set()
    submitted: list[tuple[str, Any]] = []
    real_run, real_submit = tasks._run, mixed_cluster.submit

    def run(*args):
        addresses.add(tasks._this_worker()[0])
        return real_run(*args)

    def submit(task, *args, **options):
        submitted.append((task.__name__, options.get("resources")))
        return real_submit(task, *args, **options)

    monkeypatch.setattr(tasks, "_run", run)
    monkeypatch.setattr(mixed_cluster, "submit", submit)
    events = []
    workers = Workers(mixed_cluster, "auto", events.append, 1)
    report = encode_on(workers, take_snapshot(store), Encoding([small()], ["Pong"]))
    assert report.passes == 7 and report.device == "cuda"
    known = mixed_cluster.scheduler_info(n_workers=-1)["workers"]
    assert addresses == {address for address, one in known.items() if one["resources"]}
    assert {resources for name, resources in submitted if name == "commit"} == {None}
    assert all(share == {"GPU": 0.25} for name, share in submitted if name != "commit")
    names = {name for name, _ in submitted}
    assert names == {"register_model", "encode_segment", "embed", "commit"}
    assert {event.worker for event in events if isinstance(event, SegmentDone)} <= known.keys()


def test_auto_is_cuda_only_with_a_gpu_and_cuda_without_one_is_refused(mixed_cluster):
    assert Workers(mixed_cluster, "auto", lambda event: None).device == "cuda"
    assert Workers(mixed_cluster, "cpu", lambda event: None).device == "cpu"
    with Client(processes=False, n_workers=1, dashboard_address=":0") as client:
        assert Workers(client, "auto", lambda event: None).device == "cpu"
        with pytest.raises(UsageError, match="--resources GPU=1"):
            Workers(client, "cuda", lambda event: None)


@pytest.mark.slow
def test_a_scheduler_that_goes_away_during_registration_is_reported(
    store, fill, small, monkeypatch
):
    fill(store, [[0]])
    with (
        LocalCluster(
            n_workers=1, processes=False, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        workers = Workers(client, "cpu", lambda event: None, 1)
        real_submit = client.submit

        def submit(*args, **options):
            future = real_submit(time.sleep, 60)
            client.cancel(future)
            return future

        monkeypatch.setattr(client, "submit", submit)
        with pytest.raises(StorageError, match="scheduler went away") as caught:
            encode_on(workers, take_snapshot(store), Encoding([small()], ["Pong"]))
    assert caught.value.kind == "unavailable"


@pytest.mark.parametrize(
    "error",
    [UsageError("no bf16 on this CPU"), MissingError("no-library", "no OpenVINO")],
)
def test_a_worker_without_the_engine_is_unfit(error, store, fill, small, encode_all, monkeypatch):
    def fail(*args, **options):
        raise error

    fill(store, [[0, 1]])
    monkeypatch.setattr(tasks, "open_model", fail)
    events = []
    with pytest.raises(type(error), match=str(error)) as caught:
        encode_all(store, small(), listen=events.append)
    assert caught.value.kind == error.kind and any(isinstance(e, WorkerUnfit) for e in events)
    assert not any(isinstance(e, AttemptFailed) for e in events), "that is no attempt"


def test_few_models_of_earlier_encodings_stay_open(store, fill, small, encode_all, monkeypatch):
    opened = []
    real = tasks.open_model

    def open_model(snapshot, key, **options):
        opened.append(key)
        return real(snapshot, key, **options)

    monkeypatch.setattr(tasks, "open_model", open_model)
    monkeypatch.setattr(tasks, "MODELS_KEPT", 2)
    fill(store, [[0], [1], [2]])
    report = encode_all(store, small("a"), small("b"), small("c"))
    assert len(report.done) == 9 and len(opened) == len(set(opened)) == 3
    encode_all(store, small("a", "grid:2"))
    assert len(tasks._models) == 2, "few of the earlier models stay open"


def test_errors_of_a_worker_keep_their_kind_and_name_the_worker():
    failed = tasks.as_failed(
        "m", ImportError("No module named 'openvino'"), where=("tcp://w:1", "w")
    )
    assert (failed.error.kind, failed.worker, failed.host) == ("no-library", "tcp://w:1", "w")
    failed = tasks.as_failed("m", MemoryError(), where=("tcp://w:1", "w"))
    assert failed.error.kind == "no-memory" and failed.error.exit_code == 6
    assert isinstance(failed.error, WsaError) and "on w" in str(failed.error)
    allocator = RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    assert tasks.as_failed("m", allocator, where=("tcp://w:1", "w")).error.kind == "no-memory"
    # Its message speaks of memory, as the errors of libraries that ran out of it do.
    died = StorageError("worker-died", "The worker died. Often it ran out of memory.")
    assert tasks.as_failed("m", died, where=("tcp://w:1", "w")).error is died
