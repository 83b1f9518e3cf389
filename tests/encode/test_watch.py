"""Files that services leave in a store: claims, heartbeats, and their counters."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.events import AttemptFailed, SegmentDone
from wsa.encode.models.registry import parse_request
from wsa.encode.service.claims import Claims
from wsa.encode.service.counters import Counters
from wsa.encode.service.heartbeat import (
    HeartbeatThread,
    ModelCounters,
    new_service,
    newest_heartbeats,
    read_heartbeats,
)
from wsa.encode.service.service import Service
from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, StorageError
from wsa.store.common.games import GAMES
from wsa.store.maintenance.sweep import sweep
from wsa.store.maintenance.verify import verify
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

RunWsa = Callable[..., tuple[int, str, str]]
KEY = "vit-0123456789ab"
OTHER = "resnet-0123456789ab"
PAIRS = [("Breakout", KEY), ("Breakout", OTHER), ("Pong", KEY)]


def make_heartbeat(service="0" * 16, **values):
    heartbeat = Counters(service, 15.0, ["vit"], ["Pong"]).heartbeat()
    return msgspec.structs.replace(heartbeat, **values)


def set_age(file, seconds):
    os.utime(file, (time.time() - seconds, time.time() - seconds))


def put(store, heartbeat, number=1, age=0.0):
    path = names.heartbeat_path(heartbeat.service, number)
    store.put_new(path, hashing.canonical(heartbeat))
    file = Path(store.url) / path
    set_age(file, age)
    return file


def start_services(store, count):
    """The claims of services that are all alive."""
    services = [f"{number:016x}" for number in range(count)]
    for service in services:
        put(store, make_heartbeat(service))
    return [Claims(store, service, 60.0) for service in services]


def claimed(store):
    return {entry.path for entry in store.list("claims")}


def test_a_single_service_claims_everything_and_releases_it(store):
    (one,) = start_services(store, 1)
    assert one.take(PAIRS) == PAIRS
    assert claimed(store) == {names.claim_path(*pair) for pair in PAIRS}
    one.release()
    assert claimed(store) == set() and not one.held


def test_services_share_the_work_and_never_hold_the_same_claim(store):
    one, other = start_services(store, 2)
    assert one.take(PAIRS) == PAIRS[:2]
    assert other.take(PAIRS) == PAIRS[2:]
    third = Claims(store, "f" * 16, 60.0)
    assert third.take(PAIRS) == []
    third.release()
    one.release()
    assert claimed(store) == {names.claim_path(*PAIRS[2])}, "the claims of others stay"
    assert other.take(PAIRS) == [PAIRS[0], PAIRS[2]]


def test_the_claims_of_a_service_without_heartbeat_are_void(store):
    dead, one = start_services(store, 2)
    dead.take(PAIRS)
    held = set(dead.held)
    for file in [*Path(store.url).rglob("claims/*/*"), put(store, make_heartbeat("0" * 16), 2)]:
        set_age(file, 61)
    set_age(Path(store.url) / names.heartbeat_path("0" * 16, 1), 90)
    assert one.take(PAIRS) == PAIRS
    dead.release()  # It was only slow; it keeps what another service holds now.
    assert len(claimed(store)) == 3 and len(held) == 2


def test_a_claim_of_any_age_is_valid_while_its_holder_sends_heartbeats(store):
    one, other = start_services(store, 2)
    one.take(PAIRS[:1])
    for file in Path(store.url).rglob("claims/*/*"):
        set_age(file, 5000)
    assert other.take(PAIRS[:1]) == []


@pytest.mark.parametrize("junk", [b"", b"[]", b'{"version":2}', b"x" * 100_000])
def test_an_invalid_claim_is_ignored(store, junk):
    store.put_new(names.claim_path(*PAIRS[0]), junk)
    (one,) = start_services(store, 1)
    assert one.take(PAIRS) == PAIRS


def test_a_service_keeps_one_heartbeat_and_removes_it_at_the_end(store):
    counters = Counters(new_service(), 0.1, ["vit"], [])
    beats = threading.Semaphore(0)
    ends = []

    def beat():
        beats.release()
        return counters.heartbeat()

    with HeartbeatThread(store, beat, lambda: ends.append(1)):
        first = newest_heartbeats(store)
        assert len(first) == 1
        for _ in range(3):  # The first one, the next one, and one after that was written.
            assert beats.acquire(timeout=60)
        # A listing may miss a file that is being replaced.
        now = next(found for _ in range(100) if (found := newest_heartbeats(store)))
        assert now.keys() == first.keys() and now != first
        (stored,) = read_heartbeats(store)
        assert stored.heartbeat.asked == ("vit",) and stored.heartbeat.pid == os.getpid()
        assert len(list(store.list("services"))) <= 2
    assert list(store.list("services")) == [] and ends == [1]


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{}",
        b"x" * 100_000,
        hashing.canonical({**json.loads(hashing.canonical(make_heartbeat())), "more": 1}),
    ],
)
def test_an_invalid_heartbeat_is_ignored(store, junk):
    put(store, make_heartbeat())
    store.put_new(names.heartbeat_path("1" * 16, 1), junk)
    store.put_new(names.heartbeat_path("2" * 16, 1), hashing.canonical(make_heartbeat("3" * 16)))
    store.put_new("services/README", b"hello")
    assert [stored.heartbeat.service for stored in read_heartbeats(store)] == ["0" * 16]


def test_heartbeats_and_claims_are_not_part_of_the_data(store, fill, run_wsa, tmp_path):
    fill(store, [[0, 1]])
    young = put(store, make_heartbeat("1" * 16))
    old = put(store, make_heartbeat("2" * 16), age=5000)
    (one,) = start_services(store, 1)
    assert one.take(PAIRS) == PAIRS[:2]
    void = Path(store.url) / names.claim_path(*PAIRS[1])
    set_age(void, 5000)
    before = len(take_snapshot(store).commits)
    report = verify(store)
    assert (report.damage, report.leftovers, report.objects) == ((), 0, before)
    other = open_store(str(tmp_path / "other"), create=True)
    assert run_wsa("merge", store.url, "--store", other.url)[0] == 0
    assert len(take_snapshot(other).commits) == before
    assert not list(other.list("services")) and not list(other.list("claims"))
    assert sweep(store, 3600, dry_run=True).kept_young == 0
    swept = sweep(store, 3600, dry_run=False)
    assert {leftover.path for leftover in swept.leftovers} == {
        names.heartbeat_path("2" * 16, 1),
        names.claim_path(*PAIRS[1]),
    }
    assert (swept.removed, swept.strange) == (2, ())
    assert young.exists() and not old.exists() and not void.exists()
    assert names.claim_path(*PAIRS[0]) in claimed(store)


def finish_segment(passes, copied, model=KEY):
    segment = "0123456789ab-e000-000000000-00012"
    return SegmentDone("Pong", segment, model, passes + copied, passes, copied, 0.5)


def test_a_heartbeat_counts_segments_passes_errors_and_backlog():
    counters = Counters("0" * 16, 15.0, ["vit"], [])
    counters.set_backlog({KEY: (3, 30), OTHER: (1, 10)})
    counters.listen(finish_segment(6, 4))
    counters.listen(finish_segment(10, 0, OTHER))
    error = ConflictError("not-finite", "NaN.")
    for last in (False, True):
        counters.listen(
            AttemptFailed("Pong", finish_segment(0, 0).segment, KEY, 1, last, error, "")
        )
    counters.set_skipped({KEY: ["Pong: NaN."]})
    heartbeat = counters.heartbeat()
    assert heartbeat.models[KEY] == ModelCounters(1, 1, 1, 6, 4, 2, 20)
    assert heartbeat.models[OTHER] == ModelCounters(1, 0, 0, 10, 0, 0, 0)
    assert heartbeat.errors == 2 and heartbeat.set_aside == ("Pong: NaN.",)
    assert heartbeat.frames_per_second > 0 and heartbeat.last_commit > heartbeat.since - 1
    counters.set_state("storage-down", "no answer of https://ann:abcdef@lab/wsa")
    assert "abcdef" not in counters.heartbeat().trouble and counters.heartbeat().errors == 3
    counters.set_state("waiting")
    assert (counters.heartbeat().state, counters.heartbeat().trouble) == ("waiting", "")


@pytest.mark.parametrize(
    "options", [("--poll", "0"), ("--beat", "-1"), ("--beat", "nan"), ("--dry-run",)]
)
def test_invalid_options_of_a_service_are_refused(store, run_wsa, options):
    code, _, err = run_wsa("encode", "--watch", "--store", store.url, *options)
    assert code == 2 and options[0] in err


def test_a_service_refuses_a_game_that_does_not_exist(store, run_wsa):
    code, _, err = run_wsa("encode", "--watch", "--store", store.url, "--game", "Pnog")
    assert code == 2 and "Did you mean Pong" in err


def test_an_idle_service_says_what_it_waits_for(store, fill, monkeypatch):
    monkeypatch.setattr(Service, "_register", lambda *arguments: None)
    empty = idle_service(store)
    empty._round(IDLE_WORKERS)
    assert empty._last_log == "waiting: no frames of any game yet"
    fill(store, [[0]])
    for games, said in [
        (["Breakout"], "no frames of Breakout yet"),
        (["Breakout", "Pong"], "everything is encoded; no frames of Breakout yet"),
        ([], "everything is encoded"),
    ]:
        service = idle_service(store, games)
        service._round(IDLE_WORKERS)
        assert service._last_log == f"waiting: {said}"


def test_a_heartbeat_has_room_for_two_models_of_every_game(store):
    """`palette` and `objects`, the default, are fitted on each game."""
    models = {
        f"{alias}-{number:012x}": ModelCounters(*[10**6] * 7)
        for alias in ("palette", "objects")
        for number in range(len(GAMES))
    }
    put(store, make_heartbeat(models=models, set_aside=("x" * 1000,) * 16, trouble="x" * 1000))
    (stored,) = read_heartbeats(store)
    assert stored.heartbeat.models == models


def idle_service(store, games=()):
    """A service that has no model to register yet."""
    encoding = Encoding([parse_request("palette", {})], games)
    connect: Any = contextlib.nullcontext
    return Service(take_snapshot(store), encoding, asked=["palette"], connect=connect)


IDLE_WORKERS: Any = SimpleNamespace(count=lambda: 1, client=SimpleNamespace(status="running"))


def test_a_service_waits_for_a_store_that_is_moved_away(store, monkeypatch, capsys):
    root = Path(store.url)
    away = root.with_name("away")
    service = idle_service(store)
    states: list[str] = []

    def sleep(seconds):
        states.append(service.counters.heartbeat().state)
        if len(states) == 1:
            root.rename(away)
            with HeartbeatThread(store, service.counters.heartbeat, service.claims.release):
                pass
        elif len(states) == 2:
            assert not root.exists(), "nothing is written in its place"
            root.mkdir()  # The mount point of an unmounted share.
            with HeartbeatThread(store, service.counters.heartbeat, service.claims.release):
                pass
        elif len(states) == 3:
            assert not list(root.iterdir())
            root.rmdir()
            away.rename(root)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("wsa.encode.service.service.time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        service._serve(IDLE_WORKERS)
    assert states == ["waiting", "storage-down", "storage-down", "waiting"]
    assert f"The store {root} is gone" in capsys.readouterr().err


def test_a_service_blames_a_store_that_is_gone_and_not_the_segment(store):
    service = idle_service(store)
    error = StorageError("unavailable", "No answer.")
    failed = AttemptFailed("Pong", finish_segment(0, 0).segment, KEY, 1, False, error, "")
    service._listen(failed)
    Path(store.url).rename(Path(store.url).with_name("away"))
    with pytest.raises(StorageError, match="is gone"):
        service._listen(failed)


def test_a_service_without_frames_yet_waits_out_an_error(store, monkeypatch, capsys):
    """Models that are fitted on a game are registered when the store has one."""
    service = idle_service(store)
    outcomes = iter([None, None, StorageError("unavailable", "No answer."), KeyboardInterrupt()])

    def snapshot(*arguments):
        if outcome := next(outcomes):
            raise outcome
        return take_snapshot(*arguments)

    monkeypatch.setattr("wsa.encode.service.service.take_snapshot", snapshot)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(KeyboardInterrupt):
        service._serve(IDLE_WORKERS)
    assert "storage-down: No answer." in capsys.readouterr().err
