"""Services as processes: on a growing store, two at once, stopped, killed, and without a scheduler."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from wsa.encode.jobs.scheduler import TOO_MANY_IN_A_ROW
from wsa.encode.service.heartbeat import read_heartbeats
from wsa.store.common import names
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

MODELS = ("--models", "timm:test_resnet:random,timm:test_vit:random")
WSA = (sys.executable, "-m", "wsa.cli")


def segments(count, first=0):
    """Segments of six frames, half of which the next one repeats."""
    return [list(range(first + 3 * at, first + 3 * at + 6)) for at in range(count)]


def encoded(store, models=2):
    snapshot = take_snapshot(store)
    metas = snapshot.segments()
    return bool(metas) and len(snapshot.embeddings()) == models * len(metas)


def check(store, frames, models=2):
    """Check that each frame went through each model once and the store is intact."""
    snapshot = take_snapshot(store)
    assert encoded(store, models) and len(snapshot.models) == models
    for key in snapshot.models:
        assert sum(e.passes for e in snapshot.embeddings(model=key)) == frames
    assert verify(store).damage == ()


def heartbeats_and_claims(store):
    return [entry.path for folder in ("services", "claims") for entry in store.list(folder)]


def test_a_service_waits_for_the_store_and_encodes_until_it_is_stopped(tmp_path, fill, service):
    url = str(tmp_path / "later")
    one = service("--store", url, "--models", "timm:test_resnet:random,palette")
    one.until_said("waiting: there is no store")
    store = open_store(url, create=True)
    one.until(lambda: read_heartbeats(store))
    fill(store, segments(4))
    one.until(lambda: encoded(store))
    fill(store, segments(3, 100), "Breakout")
    one.until(lambda: encoded(store) and "waiting" in one.said.splitlines()[-1])
    assert one.end() == 143, one.said[-3000:]
    assert heartbeats_and_claims(store) == []
    snapshot = take_snapshot(store)
    passes = {
        (names.key_alias(key), read_spec(snapshot, key).game): sum(
            e.passes for e in snapshot.embeddings(model=key)
        )
        for key in snapshot.models
    }
    resnet = "test_resnet_r160_in1k"
    # Each game has its own palette, also the game that was added later.
    assert passes == {(resnet, ""): 27, ("palette", "Pong"): 15, ("palette", "Breakout"): 12}
    assert verify(store).damage == () and verify(store).leftovers == 0
    assert one.said.splitlines()[-1].startswith("wsa encode: terminated.")
    assert "Traceback" not in one.said


@pytest.mark.slow
def test_an_error_at_the_start_ends_a_service(store, service, tmp_path):
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
    errors = [one.said.splitlines()[-1] for one in started]
    assert codes == [4, 2, 3], errors
    assert "does not hold the weights" in errors[0]
    assert f"--metrics-port {port}" in errors[1]
    assert "is not a wsa store" in errors[2]
    assert (
        all("Traceback" not in one.said for one in started) and heartbeats_and_claims(store) == []
    )


@pytest.mark.slow
def test_a_service_continues_after_many_failed_segments(store, fill, service, damage_frames):
    """After more of them than end a `wsa encode`."""
    metas = fill(store, [[at] for at in range(TOO_MANY_IN_A_ROW + 4)])
    for meta in metas[:-2]:
        damage_frames(store, meta)
    options = ("--models", "timm:test_resnet:random", "--tries", "1", "--json")
    one = service("--store", store.url, *options)
    one.until(lambda: len(take_snapshot(store).embeddings()) == 2)
    one.until_said("waiting: everything is encoded")
    (stored,) = wait_heartbeats(store, [one])
    (work,) = stored.heartbeat.models.values()
    assert (work.set_aside, work.failed, work.done) == (len(metas) - 2, len(metas) - 2, 2)
    assert one.said.count("skipped: Pong") == len(metas) - 2 and "after 1 attempts" in one.said
    assert one.end() == 143
    events = [json.loads(line) for line in one.said.splitlines() if line.startswith("{")]
    assert [e["event"] for e in events].count("SegmentDone") == 2
    assert {e["error"]["kind"] for e in events if e["event"] == "AttemptFailed"} == {"bad-bytes"}


@pytest.mark.slow
def test_a_precision_is_measured_on_every_new_game(store, make_segment, service):
    """A step of the first game changes everything, a step of the second one pixel."""
    rng = np.random.default_rng(0)
    lively = [rng.integers(0, 256, (42, 32, 3), np.uint8) for _ in range(4)]
    still = [lively[0].copy() for _ in range(4)]
    for at, frame in enumerate(still):
        frame[20, 5 * at] += 1
    writer.commit_segment(store, *make_segment(0, lively, "Pong"))
    options = ("--precision", "bf16", "--max-step-error", "10", "--beat", "0.5")
    one = service("--store", store.url, "--models", "timm:test_resnet:random", *options)
    one.until(lambda: encoded(store, 1))
    writer.commit_segment(store, *make_segment(0, still, "Breakout"))
    one.until_said("skipped: Breakout, until the service is restarted")
    one.until_said("waiting: everything is encoded but Breakout, skipped")
    writer.commit_segment(store, *make_segment(1, lively, "Pong"))
    one.until(lambda: len(take_snapshot(store).embeddings()) == 2)
    assert one.end() == 143
    assert {e.game for e in take_snapshot(store).embeddings()} == {"Pong"}
    assert "errs by" in one.said and "Traceback" not in one.said


@pytest.mark.slow  # Claims are tested in one process, in `test_watch.py`.
@pytest.mark.parametrize("count", [8, 30])
def test_two_services_share_the_work_and_make_each_pass_once(count, store, fill, service):
    both = [service("--store", store.url, *MODELS, "--beat", "5") for _ in range(2)]
    for one in both:
        one.until_said("waiting: no frames of any game yet")
    fill(store, segments(count))
    fill(store, segments(count, 1000), "Breakout")
    frames = 2 * 3 * (count + 1)
    both[0].until(lambda: encoded(store))
    for one in both:
        one.until(lambda one=one: "waiting" in one.said.splitlines()[-1])
    passes = [
        sum(work.passes for work in stored.heartbeat.models.values())
        for stored in wait_heartbeats(store, both)
    ]
    assert len(passes) == 2 and min(passes) > 0, "both had their share"
    for one in both:
        assert one.end(signal.SIGINT) == 130
    check(store, frames)
    assert sum(passes) == 2 * frames, "no forward pass was wasted"
    assert verify(store).leftovers == 0 and heartbeats_and_claims(store) == []


def wait_heartbeats(store, both):
    """The services' heartbeats, as soon as they count every embedding."""

    def complete():
        heartbeats = read_heartbeats(store)
        objects = sum(
            work.done for stored in heartbeats for work in stored.heartbeat.models.values()
        )
        return objects == len(take_snapshot(store).embeddings())

    both[0].until(complete)
    return read_heartbeats(store)


@pytest.mark.slow
def test_the_work_of_a_killed_service_is_taken_over(store, fill, service):
    fill(store, segments(60))
    options = ("--store", store.url, *MODELS, "--beat", "0.5")
    killed = service(*options)
    # A service holds no claim between two batches.
    killed.until(lambda: len(take_snapshot(store).embeddings()) > 4 and any(store.list("claims")))
    killed.kill()
    assert any(store.list("claims")) and not encoded(store)
    other = service(*options)
    other.until(lambda: encoded(store))
    assert other.end() == 143
    check(store, 183)
    out = subprocess.check_output([*WSA, "status", "--store", store.url, "--json"], text=True)
    (lost,) = json.loads(out)["services"]
    assert lost["lost"] and lost["pid"] == killed.process.pid


@pytest.mark.slow
def test_services_that_ignore_claims_do_no_harm(store, fill, service):
    fill(store, segments(20))
    both = [service("--store", store.url, *MODELS, "--beat", "0.1") for _ in range(2)]
    for one in both:  # Remove all heartbeats and claims as soon as they appear.
        one.until(lambda: clear(store) or encoded(store))
    for one in both:
        one.until(lambda: clear(store) or encoded(store))
        assert one.end() == 143
    snapshot = take_snapshot(store)
    assert len(snapshot.embeddings()) == 2 * 20 and verify(store).damage == ()


def clear(store):
    for path in heartbeats_and_claims(store):
        store.delete(path)


@contextmanager
def dask_cluster(port):
    """A `dask scheduler` and a `dask worker`, started like a user starts them."""
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
def test_a_service_finds_a_restarted_scheduler(store, fill, service):
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
    assert "Traceback" not in one.said, one.said[-5000:]
    assert heartbeats_and_claims(store) == []
