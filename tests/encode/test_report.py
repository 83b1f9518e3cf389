"""Events, the report, and the memory of an encoding."""

import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dask import config

from wsa.encode.jobs import cluster, dry_run
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.report import EncodeReport, run_values, summary, write_report
from wsa.encode.jobs.run import encode_on
from wsa.encode.jobs.workers import Workers
from wsa.encode.models.registry import Request
from wsa.store.common.errors import StorageError
from wsa.store.format.records import SegmentMeta
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot

Ask = Callable[..., Request]
Fill = Callable[..., list[SegmentMeta]]
RunWsa = Callable[..., tuple[int, str, str]]
PEAK = str(Path(__file__).with_name("peak_worker.py"))


def encode_command(store, report):
    where = ("--store", store.url, "--report", str(report), "--scheduler", "inproc")
    return ("encode", *where, "--models", "timm:test_resnet:random", "--output", "pooled")


def test_a_full_disk_leaves_the_previous_report(tmp_path):
    report = EncodeReport((), (), (), 0, 1.0)
    write_report(tmp_path, report)
    before = (tmp_path / "run.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(StorageError):
            write_report(tmp_path, report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_report_of_one_of_each_is_in_the_singular():
    text = summary(run_values(EncodeReport((), (), (), 1, 1.0, workers=1, threads=1)))
    assert "1 object was there already" in text and "1 worker, 1 thread, device" in text


def test_events_are_json_and_the_report_repeats_them(store, fill, damage_frames, run_wsa, tmp_path):
    metas = fill(store, [[0, 1, 2], [2, 3], [5, 6]])
    damage_frames(store, metas[2])
    command = encode_command(store, tmp_path / "report")
    code, out, err = run_wsa(*command, "--json", "--tries", "2")
    assert code == 5
    assert [one["segment"] for one in json.loads(out)["set_aside"]] == [metas[2].segment]
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    kinds = [event["event"] for event in events]
    assert kinds[:3] == ["Started", "ModelReady", "Planned"]
    assert kinds.count("SegmentDone") == 2
    failed = [event["error"]["kind"] for event in events if event["event"] == "AttemptFailed"]
    assert failed == ["bad-bytes", "bad-bytes"]
    (ready,) = [event for event in events if event["event"] == "ModelReady"]
    assert ready["spec"]["identity"]["output"] == "pooled" and ready["choice"]["rate"] > 0
    run = json.loads((tmp_path / "report" / "run.json").read_text())
    (model,) = run["models"]
    assert (model["passes"], model["copied"], model["set_aside"]) == (4, 1, 1)
    assert set(model["seconds"]) == {"reading", "running", "writing"}
    assert all(seconds > 0 for seconds in model["seconds"].values())
    assert model["passes_a_second_of_a_worker"] > 0
    assert [attempt["attempt"] for attempt in run["failed_attempts"]] == [1, 2]
    assert run["versions"]["torch"] and run["machine"]["cores"] and run["command"]
    summary = (tmp_path / "report" / "summary.md").read_text()
    assert model["model"] in summary and metas[2].segment in summary and "wsa verify" in summary
    code, out, err = run_wsa(*command)
    assert code == 5 and "Skipped" in out and "{" not in err
    assert "(Attempt 1; this run tries it again.)" in err
    assert "(Attempt 3; it is skipped.)" in err
    assert err.splitlines()[-1].startswith("wsa encode: 1 object was skipped after")


def test_a_report_that_cannot_be_written_is_refused_at_once(store, fill, run_wsa, tmp_path):
    fill(store, [[0]])
    (tmp_path / "file").touch()
    code, _, err = run_wsa(*encode_command(store, tmp_path / "file" / "x"))
    assert code == 6 and str(tmp_path / "file" / "x") in err
    assert take_snapshot(store).models == []


MEASURE_AND_ENCODE = """
import sys
from wsa.encode.jobs import dry_run
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.run import encode
from wsa.encode.models.registry import parse_request
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

store = open_store(sys.argv[1])
request = parse_request("timm:test_vit:random", {}, "pooled")
snapshot = take_snapshot(store)
encoding = Encoding([request], ["Pong"], "cpu", "torch")
sized = dry_run.measure_on_worker(snapshot, encoding, "inproc")
estimate = dry_run.worker_bytes(snapshot, encoding, sized, [0])
encode(store, encoding, scheduler="inproc")
print(sized.peak, dry_run.peak_bytes(), estimate)
"""


def test_an_encoding_takes_no_more_memory_than_the_dry_run_says(store, make_segment, warm):
    """P19, in one process, with long segments that repeat a few screens of the real size."""
    for number in range(4):
        screens = np.zeros((10, 210, 160, 3), np.uint8)
        screens[np.arange(10), number, np.arange(10)] = 255
        writer.commit_segment(store, *make_segment(number, [*np.tile(screens, (60, 1, 1, 1))]))
    command = ["-c", MEASURE_AND_ENCODE, store.url]
    output = warm.run(command, capture_output=True, text=True, check=True).stdout
    at_start, peak, estimate = map(int, output.split())
    assert at_start < peak <= estimate


@pytest.mark.slow
def test_no_worker_takes_more_memory_than_estimated(
    store, make_segment, tiny, tmp_path, monkeypatch
):
    """P19, with screens of the real size."""
    rng = np.random.default_rng(0)
    for number in range(4):
        frames = [rng.integers(0, 256, (210, 160, 3), np.uint8) for _ in range(400)]
        writer.commit_segment(store, *make_segment(number, frames))
    requests = [tiny("resnet", "grid:2+pca:32"), tiny("vit")]
    snapshot = take_snapshot(store)
    encoding = Encoding(requests, ["Pong"], "cpu")
    sized = dry_run.measure_on_worker(snapshot, encoding)
    fit_frames = [832, 0]
    estimate = dry_run.worker_bytes(snapshot, encoding, sized, fit_frames)
    monkeypatch.setenv("WSA_TEST_PEAKS", str(tmp_path))
    with (
        config.set({"distributed.worker.preload": [PEAK]}),
        cluster.connect("local", 2, "cpu") as (client, threads),
    ):
        workers = Workers(client, "cpu", print, threads)
        report = encode_on(workers, snapshot, encoding)
    assert report.passes == 2 * 1600 and report.failures == ()
    peaks = [int(file.read_text()) for file in tmp_path.glob("peak-*")]
    assert len(peaks) == 2
    assert max(peaks) <= estimate <= 2 * max(peaks), (estimate, peaks)
