"""What services leave in a store for each other and for people: claims, heartbeats, counters."""

from __future__ import annotations

import html
import io
import json
import os
import re
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import browser_kit
import msgspec
import pytest

from wsa.cli import main
from wsa.encode.jobs.events import AttemptFailed, SegmentDone
from wsa.encode.jobs.run import encode
from wsa.encode.models.registry import Request
from wsa.encode.service import http_server, prometheus
from wsa.encode.service.claims import Claims
from wsa.encode.service.counters import Counters
from wsa.encode.service.heartbeat import (
    Heartbeat,
    HeartbeatThread,
    ModelCounters,
    StoredHeartbeat,
    new_service,
    newest_heartbeats,
    read_heartbeats,
)
from wsa.encode.service.service import Service
from wsa.encode.service.status import StatusReader, is_lost
from wsa.encode.service.status_page import status_page
from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names, terminal
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.maintenance.sweep import sweep
from wsa.store.maintenance.verify import verify
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

KEY = "vit-0123456789ab"
OTHER = "resnet-0123456789ab"
HOSTILE = '<script>alert("1")</script>'
PAIRS = [("Breakout", KEY), ("Breakout", OTHER), ("Pong", KEY)]


def heartbeat(service: str = "0" * 16, **values: object) -> Heartbeat:
    told = Counters(service, 15.0, ["vit"], ["Pong"]).heartbeat()
    return msgspec.structs.replace(told, **values)


def put(store: Backend, told: Heartbeat, number: int = 1, age: float = 0.0) -> Path:
    path = names.sign_path(told.service, number)
    store.put_new(path, hashing.canonical(told))
    file = Path(store.url) / path
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def services(store: Backend, count: int) -> list[Claims]:
    """Claims of services that are all alive."""
    made = [f"{number:016x}" for number in range(count)]
    for name in made:
        put(store, heartbeat(name))
    return [Claims(store, name, 60.0) for name in made]


def claimed(store: Backend) -> set[str]:
    return {entry.path for entry in store.list("claims")}


def test_a_service_that_is_alone_takes_everything_and_gives_it_back(store: Backend) -> None:
    (one,) = services(store, 1)
    assert one.take(PAIRS) == PAIRS
    assert claimed(store) == {names.claim_path(*pair) for pair in PAIRS}
    one.release()
    assert claimed(store) == set() and not one.held


def test_services_share_and_never_hold_the_same(store: Backend) -> None:
    one, other = services(store, 2)
    assert one.take(PAIRS) == PAIRS[:2]
    assert other.take(PAIRS) == PAIRS[2:]
    third = Claims(store, "f" * 16, 60.0)
    assert third.take(PAIRS) == []
    third.release()
    one.release()
    assert claimed(store) == {names.claim_path(*PAIRS[2])}, "of others nothing is given back"
    assert other.take(PAIRS) == [PAIRS[0], PAIRS[2]]


def test_a_claim_is_void_when_its_holder_sends_no_heartbeat(store: Backend) -> None:
    dead, one = services(store, 2)
    dead.take(PAIRS)
    held = set(dead.held)
    for file in [*Path(store.url).rglob("claims/*/*"), put(store, heartbeat("0" * 16), 2)]:
        os.utime(file, (time.time() - 61, time.time() - 61))
    os.utime(Path(store.url) / names.sign_path("0" * 16, 1), (time.time() - 90, time.time() - 90))
    assert one.take(PAIRS) == PAIRS, "the living take all"
    dead.release()  # It was not dead after all, and leaves alone what is another's now.
    assert len(claimed(store)) == 3 and len(held) == 2


def test_a_claim_is_good_while_its_holder_beats_however_old_it_is(store: Backend) -> None:
    one, other = services(store, 2)
    one.take(PAIRS[:1])
    for file in Path(store.url).rglob("claims/*/*"):
        os.utime(file, (time.time() - 5000, time.time() - 5000))
    assert other.take(PAIRS[:1]) == []


@pytest.mark.parametrize("junk", [b"", b"[]", b'{"version":2}', b"x" * 100_000])
def test_what_is_no_claim_holds_nobody_up(store: Backend, junk: bytes) -> None:
    store.put_new(names.claim_path(*PAIRS[0]), junk)
    (one,) = services(store, 1)
    assert one.take(PAIRS) == PAIRS


def test_a_service_leaves_one_heartbeat_and_takes_it_away(store: Backend) -> None:
    counters = Counters(new_service(), 0.1, ["vit"], [])
    farewells: list[int] = []
    with HeartbeatThread(store, counters.heartbeat, lambda: farewells.append(1)):
        first = newest_heartbeats(store)
        assert len(first) == 1
        end = time.monotonic() + 20
        while newest_heartbeats(store) == first and time.monotonic() < end:
            time.sleep(0.05)
        assert newest_heartbeats(store).keys() == first.keys() and newest_heartbeats(store) != first
        (told,) = read_heartbeats(store)
        assert told.heartbeat.asked == ("vit",) and told.heartbeat.pid == os.getpid()
        assert len(list(store.list("services"))) <= 2
    assert list(store.list("services")) == [] and farewells == [1]


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{}",
        b"x" * 100_000,
        hashing.canonical({**json.loads(hashing.canonical(heartbeat())), "more": 1}),
    ],
)
def test_what_is_no_heartbeat_is_passed_over(store: Backend, junk: bytes) -> None:
    put(store, heartbeat())
    store.put_new(names.sign_path("1" * 16, 1), junk)
    store.put_new(names.sign_path("2" * 16, 1), hashing.canonical(heartbeat("3" * 16)))
    store.put_new("services/README", b"hello")
    assert [found.heartbeat.service for found in read_heartbeats(store)] == ["0" * 16]


def test_heartbeats_and_claims_are_no_part_of_the_data(
    store: Backend, fill: Callable[..., object], tmp_path: Path
) -> None:
    fill(store, [[0, 1]])
    young = put(store, heartbeat("1" * 16))
    old = put(store, heartbeat("2" * 16), age=5000)
    (one,) = services(store, 1)
    assert one.take(PAIRS) == PAIRS[:2]
    void = Path(store.url) / names.claim_path(*PAIRS[1])
    os.utime(void, (time.time() - 5000, time.time() - 5000))
    before = len(take_snapshot(store).commits)
    report = verify(store)
    assert (report.damage, report.leftovers, report.objects) == ((), 0, before)
    other = open_store(str(tmp_path / "other"), create=True)
    assert run("merge", store.url, "--store", other.url)[0] == 0
    assert len(take_snapshot(other).commits) == before
    assert not list(other.list("services")) and not list(other.list("claims"))
    assert sweep(store, 3600, dry_run=True).kept_young == 0
    found = sweep(store, 3600, dry_run=False)
    assert {leftover.path for leftover in found.leftovers} == {
        names.sign_path("2" * 16, 1),
        names.claim_path(*PAIRS[1]),
    }
    assert (found.removed, found.strange) == (2, ())
    assert young.exists() and not old.exists() and not void.exists()
    assert names.claim_path(*PAIRS[0]) in claimed(store)


def done(passes: int, copied: int, model: str = KEY) -> SegmentDone:
    segment = "0123456789ab-e000-000000000-00012"
    return SegmentDone("Pong", segment, model, passes + copied, passes, copied, 0.5)


def test_what_a_service_counts(store: Backend) -> None:
    counters = Counters("0" * 16, 15.0, ["vit"], [])
    counters.set_backlog({KEY: (3, 30), OTHER: (1, 10)})
    counters.listen(done(6, 4))
    counters.listen(done(10, 0, OTHER))
    wrong = ConflictError("not-finite", "NaN.")
    for last in (False, True):
        counters.listen(AttemptFailed("Pong", done(0, 0).segment, KEY, 1, last, wrong, ""))
    counters.set_skipped({KEY: ["Pong: NaN."]})
    told = counters.heartbeat()
    assert told.models[KEY] == ModelCounters(1, 1, 1, 6, 4, 2, 20)
    assert told.models[OTHER] == ModelCounters(1, 0, 0, 10, 0, 0, 0)
    assert told.errors == 2 and told.set_aside == ("Pong: NaN.",)
    assert told.frames_per_second > 0 and told.last_commit > told.since - 1
    counters.set_state("storage-down", "no answer of https://ann:abcdef@lab/wsa")
    assert "abcdef" not in counters.heartbeat().trouble and counters.heartbeat().errors == 3
    counters.set_state("waiting")
    assert (counters.heartbeat().state, counters.heartbeat().trouble) == ("waiting", "")


def test_prometheus_reads_the_counters() -> None:
    counters = Counters("0" * 16, 15.0, ["vit"], [])
    counters.set_state("encoding")
    counters.set_workers(3)
    counters.set_backlog({KEY: (2, 20)})
    counters.listen(done(6, 4))
    apps = {"/metrics": prometheus.metrics_app(counters.heartbeat)}
    with http_server.serve("127.0.0.1", 0, apps, "--metrics-port") as url:
        said = fetch(f"{url}/metrics")[1].splitlines()
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
    } <= set(said)
    assert any(line.startswith("wsa_last_commit_timestamp_seconds 1") for line in said)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass


def fetch(url: str) -> tuple[int, str]:
    """Status and text of an answer, without any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def test_status_shows_who_is_there_and_who_was(store: Backend) -> None:
    work = ModelCounters(3, 0, 2, 1234, 66, 1, 100)
    values = {"models": {KEY: work}, "state": "encoding"}
    put(store, heartbeat("1" * 16, author="ann@gpu1", **values))
    gone = heartbeat(
        "2" * 16, author="bob\x1b[31m@gpu2", trouble="down\x1b[2J", set_aside=("x\ny",)
    )
    put(store, gone, age=100)
    code, out, _ = run("status", "--store", store.url)
    assert code == 0 and "\x1b" not in out
    (ann,) = [line for line in out.splitlines() if line.startswith("ann@gpu1") and "enc" in line]
    assert ann.split()[2] == "encoding" and "1,234" in ann and "66" in ann and "100" in ann
    (bob,) = [line for line in out.splitlines() if "no sign" in line]
    assert bob.startswith("bob\\x1b[31m@gpu2")
    assert (
        "  trouble: down\\x1b[2J" in out
        and "  set aside: x\\ny" in out
        and "  and 1 more" not in out
    )
    code, out, _ = run("status", "--store", store.url, "--json")
    found = json.loads(out)
    assert [(s["author"][:3], s["lost"]) for s in found["services"]] == [
        ("ann", False),
        ("bob", True),
    ]
    assert found["backlog"] == {}


def test_status_counts_what_each_model_lacks(
    store: Backend, fill: Callable[..., object], tiny: Callable[..., Request]
) -> None:
    fill(store, [[0, 1, 2]])
    report = encode(store, [tiny("resnet")], scheduler="inproc", device="cpu")
    fill(store, [[2, 3, 4], [4, 5]], first=1)
    key = report.models[0].spec.key
    code, out, _ = run("status", "--store", store.url, "--json")
    assert code == 0
    left = {"objects": 2, "passes": 3, "copies": 2}
    assert json.loads(out)["backlog"] == {key: left}
    assert json.loads(out)["games"] == {"Pong": {key: left}}
    code, out, _ = run("status", "--store", store.url)
    assert out.splitlines()[-1].split() == [key, "2", "3", "2"]
    assert "No service keeps this store encoded" in out


def test_the_page_shows_the_numbers_of_status(
    store: Backend, fill: Callable[..., object], tiny: Callable[..., Request]
) -> None:
    fill(store, [[0, 1, 2]])
    key = encode(store, [tiny("resnet")], scheduler="inproc", device="cpu").models[0].spec.key
    fill(store, [[2, 3, 4], [4, 5]], first=1)
    fill(store, [[0, 9]], game="Breakout")
    work = ModelCounters(3, 1, 1, 1234, 66, 1, 100)
    values = {"models": {KEY: work}, "trouble": "<b>down</b>", "frames_per_second": 12.5}
    put(store, heartbeat("1" * 16, author=HOSTILE, workers=7, state="trouble", **values))
    apps = http_server.status_apps(StatusReader(store.url))
    with http_server.serve("127.0.0.1", 0, apps, "--serve") as url:
        (code, page), (json_code, told) = fetch(f"{url}/"), fetch(f"{url}/status.json")
        assert fetch(f"{url}/other") == (404, "There is no such page.\n")
    assert (code, json_code) == (200, 200)
    _, out, _ = run("status", "--store", store.url, "--json")
    assert json.loads(told) == json.loads(out)
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in page.split("<tr>")]
    # Made for no other model: a frame that both games share is a copy.
    assert ["all", key, "3", "4", "3"] in cells
    assert ["Breakout", key, "1", "1", "1"] in cells and ["Pong", key, "2", "3", "2"] in cells
    (service,) = [row for row in cells if "trouble" in row]
    assert service[3:] == ["7", "12.5", "1,234", "66", "100", "0"]
    # What anybody wrote stays text, and the page fetches and runs nothing.
    assert HOSTILE not in page and html.escape(HOSTILE) in page
    assert "trouble: &lt;b&gt;down&lt;/b&gt;" in page and "and 1 more" in page
    assert not re.findall(r"<(script|img|iframe|b)\b", page)
    assert re.findall(r'(?:src|href)="([^"]+)"', page) == ["data:,", "status.json"]
    assert '<meta http-equiv="refresh"' in page


def test_a_service_shows_the_status_beside_its_metrics(store: Backend) -> None:
    service = Service(
        store,
        take_snapshot(store),
        [],
        asked=["vit"],
        connect=lambda: pytest.fail("none is asked for"),
    )
    put(store, heartbeat(author="ann@gpu1"))
    with service._serve_pages("127.0.0.1", 0) as url:
        assert "ann@gpu1" in fetch(f"{url}/")[1]
        assert "wsa_workers 0.0" in fetch(f"{url}/metrics")[1]
        assert json.loads(fetch(f"{url}/status.json")[1])["backlog"] == {}


def test_a_store_that_is_away_is_said_on_the_page(tmp_path: Path) -> None:
    reader = StatusReader(str(tmp_path / "<store>"))
    apps = http_server.status_apps(reader)
    with http_server.serve("127.0.0.1", 0, apps, "--serve") as url:
        (code, page), (json_code, told) = fetch(f"{url}/"), fetch(f"{url}/status.json")
        assert (code, json_code) == (503, 503)
        assert "&lt;store&gt;" in page and "<store>" not in page
        assert json.loads(told)["error"]["kind"] == "no-store"
        open_store(reader.url, create=True)
        assert "No service keeps this store encoded" in fetch(f"{url}/")[1]


def test_a_client_that_goes_away_is_no_error(
    store: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    apps = http_server.status_apps(StatusReader(store.url))
    with http_server.serve("127.0.0.1", 0, apps, "--serve") as url:
        port = int(url.rpartition(":")[2])
        client = socket.create_connection(("127.0.0.1", port))
        # Closing with a linger of 0 resets the connection.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert fetch(f"{url}/status.json")[0] == 200
    assert capsys.readouterr().err == ""


def test_status_serves_until_it_is_told_to_end(
    store: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    say = terminal.say

    def interrupt(text: str) -> None:
        if text.startswith("status at "):
            told.append(fetch(text.split()[2]))
            raise KeyboardInterrupt
        say(text)

    monkeypatch.setattr(terminal, "say", interrupt)
    code, _, err = run("status", "--store", store.url, "--serve")
    assert code == 130 and "interrupted" in err
    assert [code for code, _ in told] == [200]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "add --serve"),
        (("--serve", "1", "2"), "--serve takes one port"),
        (("--serve", "--json"), "no --json"),
        (("--serve", "70000"), "--serve must be from 0 to 65535, not 70000."),
        (("--serve", "--host", "no.such.host.invalid"), "cannot listen on"),
        (("--serve", "--host", "a" * 70), "cannot listen on"),
    ],
)
def test_what_status_cannot_serve(store: Backend, options: tuple[str, ...], said: str) -> None:
    code, _, err = run("status", "--store", store.url, *options)
    assert code == 2 and said in err


@pytest.mark.slow
@browser_kit.needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_the_status(store: Backend, tmp_path: Path, width: int) -> None:
    put(store, heartbeat(author=HOSTILE, trouble="no answer", state="trouble"))
    folder = tmp_path / "browser"
    folder.mkdir()
    seen = browser_kit.look(status_page(StatusReader(store.url).read()), folder, width)
    assert browser_kit.count_pixels(seen, 0xB3, 0x26, 0x1E) > 20  # Trouble is red.
    browser_kit.check_width(seen)


def test_a_heartbeat_far_from_any_clock_is_shown(store: Backend) -> None:
    told = heartbeat(last_commit=1e12, since=1e12)
    assert not is_lost(StoredHeartbeat(told, time.time()), time.time())
    put(store, told)
    assert "at no time" in run("status", "--store", store.url)[1]


@pytest.mark.parametrize(
    "options", [("--poll", "0"), ("--beat", "-1"), ("--beat", "nan"), ("--dry-run",)]
)
def test_what_a_service_cannot_be_asked(store: Backend, options: tuple[str, ...]) -> None:
    code, _, err = run("encode", "--watch", "--store", store.url, *options)
    assert code == 2 and options[0] in err
