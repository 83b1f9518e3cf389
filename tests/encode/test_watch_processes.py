"""Services in processes of their own: on a store that fills, two at once, ended, killed, without
their scheduler."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsa.encode.jobs.scheduler import TOO_MANY_IN_A_ROW
from wsa.encode.service.heartbeat import read_heartbeats
from wsa.store.backends.base import Backend
from wsa.store.common import names
from wsa.store.format.records import SegmentMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

Fill = Callable[..., list[SegmentMeta]]
Start = Callable[..., Any]
MODELS = ("--models", "timm:test_resnet:random,timm:test_vit:random")
WSA = (sys.executable, "-m", "wsa.cli")


def segments(count: int, first: int = 0) -> list[list[int]]:
    """Segments of six frames, half of which the next one repeats."""
    return [list(range(first + 3 * at, first + 3 * at + 6)) for at in range(count)]


def encoded(store: Backend, models: int = 2) -> bool:
    snapshot = take_snapshot(store)
    metas = snapshot.segments()
    return bool(metas) and len(snapshot.embeddings()) == models * len(metas)


def check(store: Backend, frames: int, models: int = 2) -> None:
    """Everything is encoded, each frame went through each model once, no byte is bad."""
    snapshot = take_snapshot(store)
    assert encoded(store, models) and len(snapshot.models) == models
    for key in snapshot.models:
        assert sum(e.passes for e in snapshot.embeddings(model=key)) == frames
    assert verify(store).damage == ()


def left(store: Backend) -> list[str]:
    return [entry.path for folder in ("services", "claims") for entry in store.list(folder)]


def test_a_service_waits_for_the_store_encodes_what_comes_and_leaves_nothing(
    tmp_path: Path, fill: Fill, service: Start
) -> None:
    url = str(tmp_path / "later")
    one = service("--store", url, "--models", "timm:test_resnet:random,palette")
    one.until_said("waiting: there is no store")
    store = open_store(url, create=True)
    one.until(lambda: read_heartbeats(store))
    fill(store, segments(4))
    one.until(lambda: encoded(store))
    fill(store, segments(3, 100), "Breakout")
    one.until(lambda: encoded(store) and "waiting" in one.said.splitlines()[-1])
    began = time.monotonic()
    code = one.end()
    assert code == 143, one.said[-3000:]
    assert time.monotonic() - began < 30
    assert left(store) == []
    snapshot = take_snapshot(store)
    passes = {
        (names.key_alias(key), read_spec(snapshot, key).game): sum(
            e.passes for e in snapshot.embeddings(model=key)
        )
        for key in snapshot.models
    }
    resnet = "test_resnet_r160_in1k"
    # Each game has its own palette, also the one that came later.
    assert passes == {(resnet, ""): 27, ("palette", "Pong"): 15, ("palette", "Breakout"): 12}
    assert verify(store).damage == () and verify(store).leftovers == 0
    assert one.said.splitlines()[-1].startswith("wsa encode: terminated.")
    assert "Traceback" not in one.said


@pytest.mark.slow
def test_what_cannot_be_at_the_start_ends_a_service(
    store: Backend, service: Start, tmp_path: Path
) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    weights = f"test_resnet_r160_in1k={tmp_path}/w.safetensors"
    model = ("--models", "timm:test_resnet", "--weights", weights)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        started = [
            service("--store", store.url, *model),
            service("--store", store.url, *MODELS, "--metrics-port", port),
            service("--store", str(tmp_path), *MODELS),
        ]
        codes = [one.process.wait(120) for one in started]
    said = [one.said.splitlines()[-1] for one in started]
    assert codes == [4, 2, 3], said
    assert "does not hold the weights" in said[0]
    assert f"--metrics-port {port}" in said[1]
    assert "is not a wsa store" in said[2]
    assert all("Traceback" not in one.said for one in started) and left(store) == []


@pytest.mark.slow
def test_segments_that_fail_one_after_the_other_hold_nobody_up(
    store: Backend, fill: Fill, service: Start
) -> None:
    """More of them than end a `wsa encode`; the service goes on behind them."""
    metas = fill(store, [[at] for at in range(TOO_MANY_IN_A_ROW + 4)])
    snapshot = take_snapshot(store)
    for meta in metas[:-2]:
        commit = snapshot.commit(names.frames_path("Pong", meta.segment))
        (name,) = [f.name for f in commit.files if f.name.startswith("frames/c")]
        bad = Path(store.url) / commit.folder / name
        bad.chmod(0o644)
        bad.write_bytes(b"x")
    options = ("--models", "timm:test_resnet:random", "--tries", "1", "--json")
    one = service("--store", store.url, *options)
    one.until(lambda: len(take_snapshot(store).embeddings()) == 2)
    one.until_said("waiting: everything is encoded")
    (stored,) = wait_heartbeats(store, [one])
    (work,) = stored.heartbeat.models.values()
    assert (work.set_aside, work.failed, work.done) == (len(metas) - 2, len(metas) - 2, 2)
    assert one.said.count("set aside: Pong") == len(metas) - 2 and "after 1 attempts" in one.said
    assert one.end() == 143
    events = [json.loads(line) for line in one.said.splitlines() if line.startswith("{")]
    assert [e["event"] for e in events].count("SegmentDone") == 2
    assert {e["error"]["kind"] for e in events if e["event"] == "AttemptFailed"} == {"bad-bytes"}


@pytest.mark.slow
def test_a_precision_is_measured_on_games_that_come_later(
    store: Backend, segment_of: Callable[..., Any], service: Start
) -> None:
    """In the first game everything changes from step to step, in the second one pixel."""
    rng = np.random.default_rng(0)
    lively = [rng.integers(0, 256, (42, 32, 3), np.uint8) for _ in range(4)]
    still = [lively[0].copy() for _ in range(4)]
    for at, frame in enumerate(still):
        frame[20, 5 * at] += 1
    writer.commit_segment(store, *segment_of(0, lively, "Pong"))
    options = ("--precision", "bf16", "--max-step-error", "3", "--beat", "0.5")
    one = service("--store", store.url, "--models", "timm:test_resnet:random", *options)
    one.until(lambda: encoded(store, 1))
    writer.commit_segment(store, *segment_of(0, still, "Breakout"))
    one.until_said("set aside: Breakout, until the service is restarted")
    one.until_said("waiting: everything is encoded but Breakout, set aside")
    writer.commit_segment(store, *segment_of(1, lively, "Pong"))
    one.until(lambda: len(take_snapshot(store).embeddings()) == 2)
    assert one.end() == 143
    assert {e.game for e in take_snapshot(store).embeddings()} == {"Pong"}
    assert "errs by" in one.said and "Traceback" not in one.said


@pytest.mark.slow  # Claims are tested in one process, in `test_watch.py`.
@pytest.mark.parametrize("count", [8, 30])
def test_two_services_share_the_work_and_make_each_pass_once(
    count: int, store: Backend, fill: Fill, service: Start
) -> None:
    both = [service("--store", store.url, *MODELS, "--beat", "5") for _ in range(2)]
    for one in both:
        one.until_said("waiting: everything is encoded")
    fill(store, segments(count))
    fill(store, segments(count, 1000), "Breakout")
    frames = 2 * 3 * (count + 1)
    both[0].until(lambda: encoded(store))
    for one in both:
        one.until(lambda one=one: "waiting" in one.said.splitlines()[-1])
    made = [
        sum(work.passes for work in stored.heartbeat.models.values())
        for stored in wait_heartbeats(store, both)
    ]
    assert len(made) == 2 and min(made) > 0, "both had their share"
    for one in both:
        assert one.end(signal.SIGINT) == 130
    check(store, frames)
    assert sum(made) == 2 * frames, "and no forward pass was wasted"
    assert verify(store).leftovers == 0 and left(store) == []


def wait_heartbeats(store: Backend, both: Sequence[Any]) -> list[Any]:
    """The services' heartbeats once they tell of all that was done."""

    def told() -> bool:
        heartbeats = read_heartbeats(store)
        objects = sum(
            work.done for stored in heartbeats for work in stored.heartbeat.models.values()
        )
        return objects == len(take_snapshot(store).embeddings())

    both[0].until(told)
    return read_heartbeats(store)


@pytest.mark.slow
def test_a_killed_services_work_is_taken_over(store: Backend, fill: Fill, service: Start) -> None:
    fill(store, segments(60))
    options = ("--store", store.url, *MODELS, "--beat", "0.5")
    killed = service(*options)
    killed.until(lambda: len(take_snapshot(store).embeddings()) > 4)
    killed.kill()
    assert list(store.list("claims")) and not encoded(store)
    other = service(*options)
    other.until(lambda: encoded(store))
    assert other.end() == 143
    check(store, 183)
    out = subprocess.check_output([*WSA, "status", "--store", store.url, "--json"], text=True)
    (gone,) = json.loads(out)["services"]
    assert gone["lost"] and gone["pid"] == killed.process.pid


@pytest.mark.slow
def test_services_that_ignore_claims_do_no_harm(store: Backend, fill: Fill, service: Start) -> None:
    fill(store, segments(20))
    both = [service("--store", store.url, *MODELS, "--beat", "0.1") for _ in range(2)]
    for one in both:  # Nobody hears of them, and whatever is claimed is gone in a moment.
        one.until(lambda: clear(store) or encoded(store))
    for one in both:
        one.until(lambda: clear(store) or encoded(store))
        assert one.end() == 143
    snapshot = take_snapshot(store)
    assert len(snapshot.embeddings()) == 2 * 20 and verify(store).damage == ()


def clear(store: Backend) -> None:
    for path in left(store):
        store.delete(path)


@pytest.mark.slow
def test_collect_encode_and_learn_at_once(
    tmp_path: Path, service: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training takes a game that is encoded, while another comes in."""
    url = str(tmp_path / "store")
    monkeypatch.setenv("WSA_STORE", url)
    one = service("--models", "timm:test_resnet:random", "--beat", "0.5")
    play = [*WSA, "collect", "--num-envs", "2", "--segment-steps", "50", "--steps"]
    subprocess.run([*play, "100", "--game", "Pong"], check=True)
    store = open_store(url)
    one.until(lambda: encoded(store, 1))
    learn = [*WSA, "learn", "--game", "Pong", "--batch-size", "4", "--updates", "20"]
    running = [
        subprocess.Popen([*play, "1000", "--game", "Breakout"]),
        subprocess.Popen([*learn, "--run-dir", str(tmp_path / "run")]),
    ]
    try:
        status = subprocess.check_output([*WSA, "status", "--json"], text=True)
        codes = [process.wait(100) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert codes == [0, 0]
    (told,) = json.loads(status)["services"]
    assert not told["lost"] and told["pid"] == one.process.pid
    assert sum(work["passes"] for work in told["models"].values()) > 0
    one.until(lambda: encoded(store, 1))
    assert one.end() == 143
    snapshot = take_snapshot(store)
    assert snapshot.games == ["Breakout", "Pong"]
    rows = (digest.tobytes() for m in snapshot.segments() for digest in snapshot.read_digests(m))
    check(store, len(set(rows)), 1)


@contextmanager
def dask_cluster(port: int) -> Iterator[None]:
    """`dask scheduler` and a `dask worker`, as a user starts them."""
    dask = [sys.executable, "-m", "dask"]
    address = f"tcp://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [*dask, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    started = [
        subprocess.Popen(command, start_new_session=True, **quiet)  # type: ignore[call-overload]
        for command in (scheduler, worker)
    ]
    try:
        yield
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_a_scheduler_that_is_started_anew_is_found_again(
    store: Backend, fill: Fill, service: Start
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fill(store, segments(200))
    options = ("--store", store.url, *MODELS, "--beat", "0.5")
    early = service(*options, scheduler=f"tcp://127.0.0.1:{port}")
    assert early.process.wait(60) == 6 and "No Dask scheduler answers" in early.said
    with dask_cluster(port):
        one = service(*options, scheduler=f"tcp://127.0.0.1:{port}")
        one.until(lambda: len(take_snapshot(store).embeddings()) > 4)
    one.until(lambda: [s.heartbeat.state for s in read_heartbeats(store)] == ["no-workers"])
    assert not encoded(store) and "Dask scheduler" in one.said
    with dask_cluster(port):
        one.until(lambda: encoded(store), 120)
        assert one.end() == 143
    check(store, 603)
    assert "Traceback" not in one.said and left(store) == []
