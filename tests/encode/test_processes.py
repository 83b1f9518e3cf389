"""Encoding in real processes: a cluster, a kill, an interrupt, and two at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.run import encode
from wsa.encode.models.registry import Request
from wsa.store.backends.base import Backend
from wsa.store.format.records import SegmentMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import take_snapshot

Fill = Callable[..., list[SegmentMeta]]
Start = Callable[[str], "subprocess.Popen[str]"]
SCRIPT = Path(__file__).with_name("encode_process.py")
MODEL = "timm:test_resnet:random"


@pytest.fixture
def start(store: Backend, tmp_path: Path, warm: Any) -> Iterator[Start]:
    """Start to encode the store in a process group of its own: `start("inproc")`."""
    started: list[subprocess.Popen[str]] = []

    def run(scheduler: str) -> subprocess.Popen[str]:
        errors = (tmp_path / f"{len(started)}.err").open("w")
        with errors:
            process = warm.start(
                [str(SCRIPT), store.url, scheduler, MODEL],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()


def wait_for_line(process: subprocess.Popen[str], word: str) -> list[psutil.Process]:
    """Read lines until one begins with `word`; return the children of the process."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(word):
            return psutil.Process(process.pid).children(recursive=True)
    raise AssertionError(f"exit code {process.wait()} before {word}")


def all_end(children: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(children, timeout=20)
    return not alive


def overlapping(count: int, each: int = 6) -> list[list[int]]:
    """Segments that repeat earlier frames: one frame in three is new to the store."""
    rng = np.random.default_rng(0)
    return [rng.choice(count * each // 3, each, replace=False).tolist() for _ in range(count)]


def check(
    store: Backend,
    segments: list[list[int]],
    encoder: Encoder,
    noise: Callable[[int], NDArray[np.uint8]],
) -> None:
    """Check that every frame was encoded once, every row is right, and the store is whole."""
    snapshot = take_snapshot(store)
    (key,) = snapshot.models
    embeddings = snapshot.embeddings(model=key)
    assert len(embeddings) == len(segments)
    assert sum(e.passes for e in embeddings) == len({n for shown in segments for n in shown})
    for meta, shown in zip(snapshot.segments("Pong"), segments, strict=True):
        rows = snapshot.read_embedding("Pong", key, meta.segment)
        np.testing.assert_array_equal(rows, stored(encoder(np.stack([noise(n) for n in shown]))))
    report = verify(store)
    assert report.damage == () and report.objects == 3 * len(segments) + 1


@pytest.fixture(scope="module")
def encoder(make_encoder: Callable[..., Encoder], tiny: Callable[..., Request]) -> Encoder:
    return make_encoder(tiny("resnet"))


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "count"), [("inproc", 12), ("local", 24)])
def test_a_killed_encoding_is_completed_by_the_same_command(
    scheduler: str,
    count: int,
    store: Backend,
    fill: Fill,
    start: Start,
    encoder: Encoder,
    noise: Callable[[int], NDArray[np.uint8]],
    tiny: Callable[..., Request],
) -> None:
    segments = overlapping(count)
    fill(store, segments)
    killed = start(scheduler)
    children = wait_for_line(killed, "SegmentDone")
    assert (len(children) >= 2) == (scheduler == "local")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert all_end(children)
    done = take_snapshot(store).embeddings()
    assert 1 <= len(done) < len(segments)
    assert verify(store).damage == ()
    rest = encode(
        store, Encoding([tiny("resnet")], device="cpu", engine="torch"), scheduler="inproc"
    )
    total = len({n for shown in segments for n in shown})
    assert rest.passes == total - sum(e.passes for e in done), "nothing runs twice"
    check(store, segments, encoder, noise)


@pytest.mark.slow
def test_a_cluster_encodes_everything_once_and_logs_nothing(
    store: Backend,
    fill: Fill,
    start: Start,
    encoder: Encoder,
    noise: Callable[[int], NDArray[np.uint8]],
    tmp_path: Path,
) -> None:
    segments = overlapping(40)
    fill(store, segments)
    process = start("local")
    out, _ = process.communicate(timeout=250)
    assert process.returncode == 0, (tmp_path / "0.err").read_text()
    assert f"report {len({n for shown in segments for n in shown})}\n" in out
    check(store, segments, encoder, noise)
    assert verify(store).leftovers == 0
    assert (tmp_path / "0.err").read_text() == "", "the logs of the cluster are silent"


@pytest.mark.slow
def test_an_interrupt_leaves_no_process_and_an_intact_store(
    store: Backend, fill: Fill, start: Start, tmp_path: Path
) -> None:
    for whole_group in (True, False):  # Like a terminal, and like `kill -INT`.
        fill(store, overlapping(60), "Pong" if whole_group else "Breakout")
        process = start("local")
        children = wait_for_line(process, "SegmentDone")
        if whole_group:
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert len(children) >= 2 and all_end(children)
        assert verify(store).damage == ()
    assert "Traceback" not in (tmp_path / "0.err").read_text() + (tmp_path / "1.err").read_text()


@pytest.mark.slow
def test_two_encodings_at_once_make_one_object_each(
    store: Backend,
    fill: Fill,
    start: Start,
    encoder: Encoder,
    noise: Callable[[int], NDArray[np.uint8]],
) -> None:
    segments = overlapping(40)
    fill(store, segments)
    both = [start("inproc") for _ in range(2)]
    for process in both:
        process.communicate(timeout=250)
        assert process.returncode == 0
    check(store, segments, encoder, noise)
    assert verify(store).leftovers == 0
