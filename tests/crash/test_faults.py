"""P1: a writer meets each kind of fault at each of its calls; nothing torn is seen, and all resumes."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest

from wsa.store.backends.local import LocalBackend
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, StorageError
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing import (
    Fault,
    FaultyBackend,
    Killed,
    MemoryBackend,
    Work,
    check_store,
    random_plan,
    unnamed,
)

FAULTS: list[Fault] = ["fail", "cut", "lose", "late", "full", "kill"]


@pytest.fixture(params=["segment", "embedding", "model"])
def work(request):
    return Work(request.param)


def last_record(work):
    """Where the record is whose publication makes all of it visible."""
    return names.commit_path(hashing.object_id(work.paths[-1]))


def calls_of(work):
    """The calls that a commit makes when nothing goes wrong."""
    faulty = FaultyBackend(MemoryBackend())
    assert work.commit(faulty)
    return faulty.calls


def meet(work, fault, number, place):
    """Commit with a fault at one call, look, and commit again; whether the writer noticed."""
    faulty = FaultyBackend(place, {number: fault})
    acknowledged = noticed = False
    try:
        acknowledged = work.commit(faulty)
    except (Killed, StorageError) as error:
        noticed = True
        expected = {"kill": None, "full": "no-space"}.get(fault, "unavailable")
        assert getattr(error, "kind", None) == expected
    faulty.settle()
    seen = check_store(place, [work])
    whole = seen == set(work.paths)
    assert seen <= set(work.paths) and whole >= acknowledged
    at = faulty.calls[number]
    # Who lives takes its files away, but for one that came after all though the reply was lost; and
    # those of a record that may still come.
    if fault != "kill" and not (noticed and at.path.startswith("commits/") and fault != "full"):
        assert {p for p in unnamed(place) if not p.startswith("tmp/")} <= {at.path}
    assert work.commit(place) is not whole, "the next run does what is missing, once"
    assert check_store(place, [work]) == set(work.paths)
    return noticed


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_a_call(work, fault, monkeypatch):
    """At each call about a record, at some of those about a file; all of them in the slow test."""
    monkeypatch.setattr(writer, "PUTS_AT_ONCE", 1)
    calls = calls_of(work)
    for number, verb, _, path in map(dataclasses.astuple, calls):
        if "commits/" in path or number % 6 == FAULTS.index(fault):
            noticed = meet(work, fault, number, MemoryBackend())
            assert noticed or (fault, verb) == ("full", "stat")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_each_call(work, fault, at_once, monkeypatch, tmp_path):
    monkeypatch.setattr(writer, "PUTS_AT_ONCE", at_once)
    calls = calls_of(work)
    for number in range(len(calls)):
        for place in (MemoryBackend(), LocalBackend(tmp_path / str(number))):
            noticed = meet(work, fault, number, place)
            assert noticed or (fault, calls[number].verb) == ("full", "stat")


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_lost_reply_to_the_record_is_no_false_result(work, at_once, monkeypatch):
    """The record is there: its files stay, and the next run finds the work done."""
    monkeypatch.setattr(writer, "PUTS_AT_ONCE", at_once)
    place = MemoryBackend()

    def plan(call):
        return "lose" if (call.verb, call.path) == ("put_new", last_record(work)) else None

    with pytest.raises(StorageError):
        work.commit(FaultyBackend(place, plan))
    assert check_store(place, [work]) == set(work.paths)
    assert not unnamed(place)
    assert work.commit(place) is False


@pytest.mark.parametrize("then", ["fail", "lose", "cut", "kill"])
def test_whoever_cannot_tell_whether_it_won_leaves_its_files(work, then):
    """The reply to the record is lost, and so is the answer to the question whether it is there."""
    place = MemoryBackend()

    def plan(call):
        if call.path != last_record(work) or call.verb == "stat":
            return None
        return "lose" if call.verb == "put_new" else then

    with pytest.raises((StorageError, Killed)):
        work.commit(FaultyBackend(place, plan))
    assert check_store(place, [work]) == set(work.paths)


@pytest.mark.parametrize("seed", range(3))
def test_many_faults_end_in_a_whole_store(work, seed):
    """A run is repeated until nothing is missing, on a place that fails at every tenth call."""
    place = MemoryBackend()
    tries = 0
    won = []
    while check_store(place, [work]) != set(work.paths):
        tries += 1
        assert tries < 1000
        with contextlib.suppress(StorageError):
            won.append(work.commit(FaultyBackend(place, random_plan(1000 * seed + tries, 0.1))))
    assert won.count(True) <= 1
    assert work.commit(place) is False


@pytest.mark.parametrize("number", range(14))
def test_another_writer_at_each_call(work, number):
    """Somebody commits the same object while this writer waits: one of them wins, and both end."""
    place = MemoryBackend()
    others = []

    def overtake(call):
        others.append(work.commit(place))

    mine = work.commit(FaultyBackend(place, {number: "stall"}, overtake))
    assert check_store(place, [work]) == set(work.paths)
    assert not unnamed(place), "the loser took its files away"
    if others:
        assert sorted([mine, *others]) == [False, True], "each object is made visible once"


def test_reads_that_fail_say_so(kit, tmp_path):
    """Whatever happens to a reader's calls, it is told, or gets what was committed."""
    place = MemoryBackend()
    meta, arrays = kit.add_segment(place)
    array = kit.add_embedding(place, meta, kit.key())
    kit.add_model(place, kit.key())

    def read(backend):
        snapshot = take_snapshot(backend)
        assert len(snapshot.commits) == 4
        for name, found in snapshot.read_rows(meta).items():
            np.testing.assert_array_equal(found, arrays[name])
        frames = snapshot.read_frames(meta)
        np.testing.assert_array_equal(frames, arrays["palette"][arrays["frames"]])
        found = snapshot.read_embedding(meta.game, kit.key(), meta.segment)
        np.testing.assert_array_equal(found, array)
        snapshot.read_model(kit.key())

    faulty = FaultyBackend(place)
    read(faulty)
    for number in range(len(faulty.calls)):
        with pytest.raises(StorageError):
            read(FaultyBackend(place, {number: "fail"}))
        with pytest.raises(StorageError):
            read(FaultyBackend(place, {number: "lose"}))
        with pytest.raises(Killed):
            read(FaultyBackend(place, {number: "kill"}))
        with pytest.raises((DamagedError, StorageError)):
            read(FaultyBackend(place, {number: "cut"}))
        read(FaultyBackend(place, {number: "full"}))  # Reading takes no room.
        read(FaultyBackend(place, {number: "stall"}, lambda call: None))


def test_a_listing_cut_short_is_an_error(kit):
    place = MemoryBackend()
    for number in range(4):
        kit.add_segment(place, number)
    for call in (take_snapshot, verify):
        with pytest.raises(StorageError):
            call(FaultyBackend(place, {("list", 0): "cut"}))


def test_verify_reports_what_it_could_not_read():
    place = MemoryBackend()
    work = Work("segment")
    work.commit(place)
    for path in [entry.path for entry in place.list("")]:
        failing = FaultyBackend(place, lambda call, p=path: "fail" if call.path == p else None)
        cutting = FaultyBackend(place, lambda call, p=path: "cut" if call.path == p else None)
        for backend in (failing, cutting):
            (damage,) = verify(backend).damage
            assert path in damage.why
