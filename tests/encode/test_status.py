"""`wsa status` and the pages that services serve: status, metrics, and errors."""

import html
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.events import SegmentDone
from wsa.encode.service import http_server, prometheus
from wsa.encode.service.counters import Counters
from wsa.encode.service.heartbeat import ModelCounters, read_heartbeats
from wsa.encode.service.service import Service
from wsa.encode.service.status import StatusReader, is_lost
from wsa.store.common import hashing, names, terminal
from wsa.store.common.errors import StorageError, UsageError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

RunWsa = Callable[..., tuple[int, str, str]]
KEY = "vit-0123456789ab"
HOSTILE = '<script>alert("1")</script>'


def put(store, age=0.0, service="0" * 16, **values):
    """Leave a heartbeat in the store."""
    heartbeat = Counters(service, 15.0, ["vit"], ["Pong"]).heartbeat()
    path = names.heartbeat_path(service, 1)
    store.put_new(path, hashing.canonical(msgspec.structs.replace(heartbeat, **values)))
    os.utime(Path(store.url) / path, (time.time() - age, time.time() - age))


def fetch(url):
    """Return the status and the text of a page, without any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_status_shows_live_and_lost_services(store, run_wsa):
    work = ModelCounters(3, 0, 2, 1234, 66, 1, 100)
    values = {"models": {KEY: work}, "state": "encoding"}
    put(store, service="1" * 16, author="ann@gpu1", **values)
    lost = {"author": "bob\x1b[31m@gpu2", "trouble": "down\x1b[2J", "set_aside": ("x\ny",)}
    put(store, age=100, service="2" * 16, **lost)
    code, out, _ = run_wsa("status", "--store", store.url)
    assert code == 0 and "\x1b" not in out
    (ann,) = [line for line in out.splitlines() if line.startswith("ann@gpu1") and "enc" in line]
    assert ann.split()[2] == "encoding" and "1,234" in ann and "66" in ann and "100" in ann
    (bob,) = [line for line in out.splitlines() if "no sign" in line]
    assert bob.startswith("bob\\x1b[31m@gpu2")
    assert (
        "  trouble: down\\x1b[2J" in out and "  skipped: x\\ny" in out and "  and 1 more" not in out
    )
    code, out, _ = run_wsa("status", "--store", store.url, "--json")
    status = json.loads(out)
    assert [(s["author"][:3], s["lost"]) for s in status["services"]] == [
        ("ann", False),
        ("bob", True),
    ]
    assert status["backlog"] == {}


@pytest.fixture
def key(store, fill, small, encode_all):
    """Key of a model that has encoded the first of three segments."""
    fill(store, [[0, 1, 2]])
    key = encode_all(store, small()).models[0].spec.key
    fill(store, [[2, 3, 4], [4, 5]], first=1)
    return key


def test_status_counts_the_backlog_of_each_model(store, key, run_wsa):
    code, out, _ = run_wsa("status", "--store", store.url, "--json")
    assert code == 0
    backlog = {"objects": 2, "passes": 3, "copies": 2}
    assert json.loads(out)["backlog"] == {key: backlog}
    assert json.loads(out)["games"] == {"Pong": {key: backlog}}
    code, out, _ = run_wsa("status", "--store", store.url)
    assert out.splitlines()[-1].split() == [key, "2", "3", "2"]
    assert "No service keeps this store encoded" in out


def test_the_page_shows_the_numbers_of_status_and_escapes_all_text(store, key, fill, run_wsa):
    fill(store, [[0, 9]], game="Breakout")
    work = ModelCounters(3, 1, 1, 1234, 66, 1, 100)
    values = {"models": {KEY: work}, "trouble": "<b>down</b>", "frames_per_second": 12.5}
    put(store, service="1" * 16, author=HOSTILE, workers=7, state="trouble", **values)
    apps = http_server.status_apps(StatusReader(store.url))
    with http_server.serve("127.0.0.1", 0, apps, "--serve") as url:
        (code, page), (json_code, status) = fetch(f"{url}/"), fetch(f"{url}/status.json")
        assert fetch(f"{url}/other") == (404, "There is no such page.\n")
    assert (code, json_code) == (200, 200)
    _, out, _ = run_wsa("status", "--store", store.url, "--json")
    assert json.loads(status) == json.loads(out)
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in page.split("<tr>")]
    # A frame that both games share is a copy.
    assert ["all", key, "3", "4", "3"] in cells
    assert ["Breakout", key, "1", "1", "1"] in cells and ["Pong", key, "2", "3", "2"] in cells
    (service,) = [row for row in cells if "trouble" in row]
    assert service[3:] == ["7", "12.5", "1,234", "66", "100", "0"]
    # Text from the store is escaped, and the page loads and runs nothing.
    assert HOSTILE not in page and html.escape(HOSTILE) in page
    assert "trouble: &lt;b&gt;down&lt;/b&gt;" in page and "and 1 more" in page
    assert not re.findall(r"<(script|img|iframe|b)\b", page)
    assert re.findall(r'(?:src|href)="([^"]+)"', page) == ["data:,", "status.json"]
    assert '<meta http-equiv="refresh"' in page


def test_a_service_serves_the_status_page_beside_its_metrics(store):
    service = Service(
        take_snapshot(store),
        Encoding([]),
        asked=["vit"],
        connect=lambda: pytest.fail("connected"),
    )
    put(store, author="ann@gpu1")
    with service._serve_pages("127.0.0.1", 0) as url:
        assert "ann@gpu1" in fetch(f"{url}/")[1]
        assert "wsa_workers 0.0" in fetch(f"{url}/metrics")[1]
        assert json.loads(fetch(f"{url}/status.json")[1])["backlog"] == {}


def test_the_page_reports_a_missing_store_and_recovers(tmp_path):
    reader = StatusReader(str(tmp_path / "<store>"))
    apps = http_server.status_apps(reader)
    with http_server.serve("127.0.0.1", 0, apps, "--serve") as url:
        (code, page), (json_code, status) = fetch(f"{url}/"), fetch(f"{url}/status.json")
        assert (code, json_code) == (503, 503)
        assert "&lt;store&gt;" in page and "<store>" not in page
        assert json.loads(status)["error"]["kind"] == "no-store"
        open_store(reader.url, create=True)
        assert "No service keeps this store encoded" in fetch(f"{url}/")[1]


def test_the_page_reports_a_store_that_is_gone(store, key, fill, monkeypatch, tmp_path):
    monkeypatch.setattr("wsa.encode.service.status.REFRESH_S", -1.0)
    fill(store, [[0, 9]])
    reader = StatusReader(store.url)
    assert reader.read().games.keys() == {"Pong"}
    root = Path(store.url)
    root.rename(tmp_path / "away")
    root.mkdir()  # What an unmounted share leaves.
    with pytest.raises(StorageError, match="is gone"):
        reader.read()
    root.rmdir()
    (tmp_path / "away").rename(root)
    assert reader.read().games.keys() == {"Pong"}


def test_status_serves_until_it_is_interrupted(store, run_wsa, monkeypatch):
    replies = []
    say = terminal.say

    def interrupt(text):
        if text.startswith("status at "):
            replies.append(fetch(text.split()[2]))
            raise KeyboardInterrupt
        say(text)

    monkeypatch.setattr(terminal, "say", interrupt)
    code, _, err = run_wsa("status", "--store", store.url, "--serve")
    assert code == 130 and "interrupted" in err
    assert [code for code, _ in replies] == [200]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "add --serve"),
        (("--serve", "1", "2"), "--serve takes one port"),
        (("--serve", "--json"), "no --json"),
        (("--serve", "70000"), "--serve must be from 0 to 65535, not 70000."),
        (("--serve", "--host", "no.such.host.invalid"), "cannot listen on"),
        (("--serve", "--host", "a" * 70), "cannot listen on"),
    ],
)
def test_invalid_options_of_status_are_refused(store, run_wsa, options, message):
    code, _, err = run_wsa("status", "--store", store.url, *options)
    assert code == 2 and message in err


def test_a_heartbeat_with_an_impossible_time_is_shown(store, run_wsa):
    put(store, last_commit=1e12, since=1e12)
    (stored,) = read_heartbeats(store)
    assert not is_lost(stored, time.time())
    assert "at no time" in run_wsa("status", "--store", store.url)[1]


def test_prometheus_gets_the_counters():
    counters = Counters("0" * 16, 15.0, ["vit"], [])
    counters.set_state("encoding")
    counters.set_workers(3)
    counters.set_backlog({KEY: (2, 20)})
    segment = "0123456789ab-e000-000000000-00012"
    counters.listen(SegmentDone("Pong", segment, KEY, 10, 6, 4, 0.5))
    apps = {"/metrics": prometheus.metrics_app(counters.heartbeat)}
    with http_server.serve("127.0.0.1", 0, apps, "--metrics-port") as url:
        metrics = fetch(f"{url}/metrics")[1].splitlines()
        port = int(url.split(":")[2])
        with (
            pytest.raises(UsageError, match=f"--metrics-port {port}: "),
            http_server.serve("127.0.0.1", port, apps, "--metrics-port"),
        ):
            pass
    assert {
        f'wsa_passes_total{{model="{KEY}"}} 6.0',
        f'wsa_passes_saved_total{{model="{KEY}"}} 4.0',
        f'wsa_segments_total{{model="{KEY}",outcome="done"}} 1.0',
        f'wsa_backlog_frames{{model="{KEY}"}} 10.0',
        "wsa_up 1.0",
        "wsa_workers 3.0",
        'wsa_state{state="encoding"} 1.0',
        'wsa_state{state="storage-down"} 0.0',
    } <= set(metrics)
    assert any(line.startswith("wsa_last_commit_timestamp_seconds 1") for line in metrics)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
