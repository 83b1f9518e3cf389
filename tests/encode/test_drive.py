"""How a plan is carried out: what is read, tried again, set aside, and what waits for what."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster, Scheduler, SpecCluster, Worker
from numpy.typing import NDArray

from wsa.cli import main
from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.jobs import scheduler, tasks
from wsa.encode.jobs.events import AttemptFailed, Event, SegmentDone, Started, WorkerUnfit
from wsa.encode.jobs.report import run_values, summary
from wsa.encode.jobs.run import EncodeReport, encode, encode_on
from wsa.encode.jobs.tasks import TaskSettings
from wsa.encode.jobs.workers import TASKS_A_THREAD, Workers
from wsa.encode.models.registry import Request
from wsa.store.backends.base import Backend
from wsa.store.common import names
from wsa.store.common.errors import MissingError, StorageError, UsageError, WsaError
from wsa.store.format.records import SegmentMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import Snapshot, take_snapshot

Ask = Callable[..., Request]
Fill = Callable[..., list[SegmentMeta]]
EncoderOf = Callable[..., Encoder]
Noise = Callable[[int], NDArray[np.uint8]]


def run(store: Backend, *requests: Request, **more: Any) -> EncodeReport:
    return encode(store, requests, scheduler="inproc", device="cpu", **more)


@pytest.fixture(autouse=True)
def _fresh_workers() -> None:
    tasks._models.clear()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Counter[str]]:
    """How often each segment was embedded by each model, counted by the bytes of a file."""
    folder = tmp_path / "tried"
    folder.mkdir()
    real = tasks._run

    def note(settings: Any, item: Any, *rest: Any) -> Any:
        with (folder / "-".join(item.name)).open("ab") as file:
            file.write(b"x")
        return real(settings, item, *rest)

    monkeypatch.setattr(tasks, "_run", note)
    return lambda: Counter({path.name: path.stat().st_size for path in folder.iterdir()})


def damage(store: Backend, meta: SegmentMeta) -> None:
    """Change a byte of a segment's pixels."""
    commit = take_snapshot(store).commit(names.frames_path(meta.game, meta.segment))
    (name,) = [f.name for f in commit.files if f.name.startswith("frames/c")]
    file = Path(store.url) / commit.folder / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)


def test_a_segment_is_read_once_for_all_models(
    store: Backend, fill: Fill, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    metas = fill(store, [[0, 1, 2], [2, 3], [0, 3]])  # The last needs no frames at all.
    read: list[str] = []
    real = Snapshot.read_pictures

    def note(self: Snapshot, meta: SegmentMeta) -> Any:
        read.append(meta.segment)
        return real(self, meta)

    monkeypatch.setattr(Snapshot, "read_pictures", note)
    report = run(store, tiny("resnet"), tiny("vit"), tiny("efficientnet"))
    assert len(report.done) == 9
    assert sorted(read) == [m.segment for m in metas[:2]]
    # A model that comes later reads them again, and once.
    run(store, tiny("resnet"), tiny("convnext"))
    assert sorted(read) == sorted(2 * [m.segment for m in metas[:2]])


def test_attempts_are_exactly_those_of_the_fault_table(
    store: Backend,
    fill: Fill,
    tiny: Ask,
    tried: Callable[[], Counter[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P4: segment i fails i times; four times is once too often."""
    metas = fill(store, [[2 * i, 2 * i + 1] for i in range(5)])
    table = {meta.segment: times for times, meta in enumerate(metas)}
    left = dict(table)
    real = tasks._commit

    def fail(settings: TaskSettings, item: Any, embedded: Any) -> Any:
        if item.model.startswith("test_resnet") and left[item.meta.segment]:
            left[item.meta.segment] -= 1
            raise RuntimeError("a fault")
        return real(settings, item, embedded)

    monkeypatch.setattr(tasks, "_commit", fail)
    events: list[Event] = []
    report = run(store, tiny("resnet"), tiny("vit"), tries=4, listen=events.append)
    keys = {m.spec.alias: m.spec.key for m in report.models}
    bad, good = keys["test_resnet_r160_in1k"], keys["test_vit_r160_in1k"]
    for segment, times in table.items():
        assert tried()[f"{bad}-Pong-{segment}"] == min(times + 1, 4)
        assert tried()[f"{good}-Pong-{segment}"] == 1, "the other model's row is not made again"
        failed = [e for e in events if isinstance(e, AttemptFailed) and e.segment == segment]
        assert [e.attempts for e in failed] == [*range(1, times + 1)]
        assert [e.last for e in failed] == [n == 4 for n in range(1, times + 1)]
        assert all(e.error.kind == "model-failed" and "a fault" in str(e.error) for e in failed)
    attempts = {d.segment: d.attempts for d in report.done if d.model == bad}
    assert attempts == {s: n + 1 for s, n in table.items() if n < 4}
    assert {d.attempts for d in report.done if d.model == good} == {1}
    (aside,) = report.failed
    assert (aside.segment, aside.attempts, report.exit_code) == (metas[4].segment, 4, 4)
    assert report.summary()["set_aside"][0]["segment"] == metas[4].segment
    # The cause is gone: the same command does the rest.
    left.update(dict.fromkeys(left, 0))
    rest = run(store, tiny("resnet"), tiny("vit"))
    assert (rest.passes, rest.present, rest.exit_code) == (2, 9, 0)
    assert verify(store).damage == () and verify(store).leftovers == 0


@pytest.mark.parametrize(
    "poisoned",
    [{0, 1}, *(pytest.param(p, marks=pytest.mark.slow) for p in ({0}, {1}, {0, 1, 2, 3}))],
)
def test_what_copies_from_a_segment_set_aside_runs_those_frames_itself(
    poisoned: set[int],
    store: Backend,
    fill: Fill,
    tiny: Ask,
    encoder_of: EncoderOf,
    noise: Noise,
) -> None:
    shown = [[0, 1, 2], [2, 3, 0], [3, 4, 0], [4, 0, 2], [5]]  # Each repeats what went before.
    metas = fill(store, shown)
    for number in poisoned:
        damage(store, metas[number])
    report = run(store, tiny("resnet"))
    assert [f.segment for f in report.failed] == [metas[n].segment for n in sorted(poisoned)]
    assert {f.error.kind for f in report.failed} == {"bad-bytes"} and report.exit_code == 5
    assert {f.attempts for f in report.failed} == {3}
    whole = [n for n in range(len(shown)) if n not in poisoned]
    assert report.passes == len({i for n in whole for i in shown[n]}), "each frame once"
    snapshot, encoder = take_snapshot(store), encoder_of(tiny("resnet"))
    (key,) = snapshot.models
    assert len(snapshot.embeddings()) == len(whole)
    for number in whole:
        found = snapshot.read_embedding("Pong", key, metas[number].segment)
        wanted = stored(encoder(np.stack([noise(i) for i in shown[number]])))
        np.testing.assert_array_equal(found, wanted)


def test_one_segment_after_the_other_failing_stops_the_run(
    store: Backend, fill: Fill, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise StorageError("unavailable", "the share is gone")

    monkeypatch.setattr(tasks, "_commit", fail)
    monkeypatch.setattr(scheduler, "TOO_MANY_IN_A_ROW", 4)
    fill(store, [[i] for i in range(16)])
    events: list[Event] = []
    with pytest.raises(StorageError, match="the share is gone"):
        run(store, tiny("resnet"), tiny("vit"), listen=events.append)
    aside = [e.segment for e in events if isinstance(e, AttemptFailed) and e.last]
    assert len(set(aside)) == 4 and len(aside) == 8, "segments are counted, not their models"


def test_a_full_disk_stops_the_run_at_once(
    store: Backend, fill: Fill, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise StorageError("no-space", "full")

    monkeypatch.setattr(tasks, "_commit", fail)
    fill(store, [[i] for i in range(12)])
    events: list[Event] = []
    reports: list[EncodeReport] = []
    with pytest.raises(StorageError, match="full"):
        run(store, tiny("resnet"), listen=events.append, on_stop=reports.append)
    assert sum(isinstance(e, AttemptFailed) for e in events) == 1
    (report,) = reports
    assert (report.stopped, len(report.failures)) == ("full", 1)
    assert "Stopped before all was tried: full" in summary(run_values(report))


def test_the_model_runs_while_others_read_and_write(
    store: Backend, fill: Fill, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward pass of each segment but the last waits till the next one's frames are read, and
    the commit of each but the last till the model runs again: both only happen side by side."""
    count = 6
    fill(store, [[2 * i, 2 * i + 1] for i in range(count)])
    read, ran = threading.Semaphore(0), threading.Semaphore(0)
    busy = threading.Lock()
    passed: list[str] = []
    reading, running, committing = tasks._read, Encoder.__call__, tasks._commit

    def read_one(*args: Any) -> Any:
        shown = reading(*args)
        read.release()
        return shown

    def forward(self: Encoder, frames: Any) -> Any:
        if len(frames) != 2:  # Of the strip.
            return running(self, frames)
        assert busy.acquire(blocking=False), "one model runs at a time"
        ran.release()
        try:
            passed.append("forward")
            if len(passed) == 1:
                assert read.acquire(timeout=30), "its own frames"
            if passed.count("forward") < count:
                assert read.acquire(timeout=30), "the next frames are read meanwhile"
            return running(self, frames)
        finally:
            busy.release()

    def write(settings: TaskSettings, item: Any, embedded: Any) -> Any:
        with write_lock:
            writes.append(item.meta.segment)
            number = len(writes)
        for _ in range(2 if number == 1 else 1):
            if number < count:
                assert ran.acquire(timeout=30), "the model runs meanwhile"
        return committing(settings, item, embedded)

    write_lock, writes = threading.Lock(), list[str]()
    monkeypatch.setattr(tasks, "_read", read_one)
    monkeypatch.setattr(Encoder, "__call__", forward)
    monkeypatch.setattr(tasks, "_commit", write)
    report = run(store, tiny("resnet"))
    assert report.failures == () and len(report.done) == count


@pytest.mark.slow
def test_a_bounded_number_of_tasks_is_in_flight(
    store: Backend, fill: Fill, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [[2 * i, 2 * i + 1] for i in range(24)])
    most = [0]
    started: list[Event] = []
    real = scheduler.Driver._submit

    def submit(self: Any, *args: Any) -> Any:
        future = real(self, *args)
        most[0] = max(most[0], len(self._unfinished))
        return future

    monkeypatch.setattr(scheduler.Driver, "_submit", submit)
    run(store, tiny("resnet"), listen=started.append)
    (threads,) = [e.threads for e in started if isinstance(e, Started)]
    assert most[0] == TASKS_A_THREAD * threads < 24


@pytest.fixture
def mixed() -> Iterator[Client]:
    """A worker that says it has a GPU and two that do not, all in this process."""
    options = {"nthreads": 2, "dashboard": False}
    gpu: dict[str, Any] = {"cls": Worker, "options": {**options, "resources": {"GPU": 1}}}
    plain: dict[str, Any] = {"cls": Worker, "options": options}
    cluster = SpecCluster(
        workers={"gpu": gpu, "a": plain, "b": plain},
        scheduler={
            "cls": Scheduler,
            "options": {"protocol": "inproc", "dashboard": False, "dashboard_address": ":0"},
        },
    )
    with cluster, Client(cluster) as client:
        client.wait_for_workers(3)
        yield client


def test_models_run_where_a_gpu_is_and_commits_anywhere(
    store: Backend, fill: Fill, tiny: Ask, mixed: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [[i, i + 1] for i in range(12)])  # Each copies from the one before.
    monkeypatch.setattr(tasks, "choose_device", lambda device: {"cuda": "cpu"}[device])
    ran: set[str] = set()
    asked: list[tuple[str, Any]] = []
    real, submit = tasks._run, mixed.submit

    def note(*args: Any) -> Any:
        ran.add(tasks._this_worker()[0])
        return real(*args)

    def ask(task: Any, *args: Any, **options: Any) -> Any:
        asked.append((task.__name__, options.get("resources")))
        return submit(task, *args, **options)

    monkeypatch.setattr(tasks, "_run", note)
    monkeypatch.setattr(mixed, "submit", ask)
    events: list[Event] = []
    snapshot = take_snapshot(store)
    gpus = Workers(mixed, "auto", events.append, 1)
    report = encode_on(gpus, snapshot, [tiny("resnet")], ["Pong"])
    assert report.passes == 13 and report.device == "cuda"
    workers = mixed.scheduler_info(n_workers=-1)["workers"]
    assert ran == {address for address, one in workers.items() if one["resources"]}
    share = {"GPU": 0.25}
    assert {resources for name, resources in asked if name == "commit"} == {None}
    assert all(resources == share for name, resources in asked if name != "commit")
    assert {name for name, _ in asked} == {"register_model", "encode_segment", "embed", "commit"}
    assert {d.worker for d in events if isinstance(d, SegmentDone)} <= workers.keys()


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(mixed: Client) -> None:
    assert Workers(mixed, "auto", lambda event: None).device == "cuda"
    assert Workers(mixed, "cpu", lambda event: None).device == "cpu"
    with Client(processes=False, n_workers=1, dashboard_address=":0") as client:
        assert Workers(client, "auto", lambda event: None).device == "cpu"
        with pytest.raises(UsageError, match="--resources GPU=1"):
            Workers(client, "cuda", lambda event: None)


@pytest.mark.slow
def test_a_scheduler_that_goes_away_while_models_are_registered(
    store: Backend, fill: Fill, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [[0]])
    with (
        LocalCluster(
            n_workers=1, processes=False, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as there,
        Client(there) as client,
    ):
        workers = Workers(client, "cpu", lambda event: None, 1)
        submit = client.submit

        def lose(*args: Any, **options: Any) -> Any:
            future = submit(time.sleep, 60)
            client.cancel(future)
            return future

        monkeypatch.setattr(client, "submit", lose)
        with pytest.raises(StorageError, match="scheduler went away") as caught:
            encode_on(workers, take_snapshot(store), [tiny("resnet")], ["Pong"])
    assert caught.value.kind == "unavailable"


def test_one_model_by_two_names_is_encoded_once(store: Backend, fill: Fill, tiny: Ask) -> None:
    fill(store, [[0, 1]])
    name = "timm:test_resnet:random"
    key = run(store, tiny("resnet")).models[0].spec.key
    fill(store, [[2, 3]], first=1)
    command = ("encode", "--store", store.url, "--scheduler", "inproc", "--output", "pooled")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*command, "--models", f"{name},{key}", "--json"]) == 0
    assert list(json.loads(said.getvalue())["models"]) == [key]
    assert json.loads(said.getvalue())["passes"] == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UsageError("bad-option", "no bf16 on this CPU"), "bad-option"),
        (MissingError("no-library", "no OpenVINO"), "no-library"),
    ],
)
def test_a_worker_that_lacks_the_engine_gets_no_work(
    error: WsaError, kind: str, store: Backend, fill: Fill, tiny: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def lack(*args: Any, **options: Any) -> Any:
        raise error

    fill(store, [[0, 1]])
    monkeypatch.setattr(tasks, "open_model", lack)
    events: list[Event] = []
    with pytest.raises(type(error), match=str(error)) as caught:
        run(store, tiny("resnet"), listen=events.append)
    assert caught.value.kind == kind and any(isinstance(e, WorkerUnfit) for e in events)
    assert not any(isinstance(e, AttemptFailed) for e in events), "that is no attempt"


def test_as_many_models_stay_open_as_an_encoding_has(
    store: Backend, fill: Fill, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = tasks.open_model

    def note(snapshot: Any, key: str, **options: Any) -> Any:
        opened.append(key)
        return real(snapshot, key, **options)

    monkeypatch.setattr(tasks, "open_model", note)
    monkeypatch.setattr(tasks, "MODELS_KEPT", 2)
    fill(store, [[0], [1], [2]])
    report = run(store, tiny("resnet"), tiny("vit"), tiny("convnext"))
    assert len(report.done) == 9 and len(opened) == len(set(opened)) == 3
    run(store, tiny("resnet", "grid:2"))
    assert len(tasks._models) == 2, "of former ones a few stay"


def test_errors_of_workers_travel_whole() -> None:
    failed = tasks.as_failed(
        "m", ImportError("No module named 'openvino'"), where=("tcp://w:1", "w")
    )
    assert (failed.error.kind, failed.worker, failed.host) == ("no-library", "tcp://w:1", "w")
    failed = tasks.as_failed("m", MemoryError(), where=("tcp://w:1", "w"))
    assert failed.error.kind == "no-memory" and failed.error.exit_code == 6
    assert isinstance(failed.error, WsaError) and "on w" in str(failed.error)
