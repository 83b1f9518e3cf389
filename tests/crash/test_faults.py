"""P1: a fault at any call of a writer leaves no torn object, and the next run completes the work."""

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
    FaultyBackend,
    Killed,
    MemoryBackend,
    Work,
    check_store,
    random_plan,
    unnamed,
)

FAULTS = ["fail", "cut", "lose", "late", "full", "kill"]


@pytest.fixture(params=["segment", "embedding", "model"])
def work(request):
    return Work(request.param)


def last_record(work):
    """Path of the record that makes all of the work visible."""
    return names.commit_path(hashing.object_id(work.paths[-1]))


def calls_of(work):
    """The calls of a commit without faults."""
    faulty = FaultyBackend(MemoryBackend())
    assert work.commit(faulty)
    return faulty.calls


def commit_with_fault(work, fault, number, place):
    """Commit with a fault at one call, check, and commit again; whether the writer noticed."""
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
    # A writer that lives removes its files, except one that arrived although its reply was lost, and
    # those of a record that may still arrive.
    if fault != "kill" and not (noticed and at.path.startswith("commits/") and fault != "full"):
        assert {p for p in unnamed(place) if not p.startswith("tmp/")} <= {at.path}
    assert work.commit(place) is not whole, "the next run does what is missing, once"
    assert check_store(place, [work]) == set(work.paths)
    return noticed


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_a_call(work, fault, monkeypatch):
    """At each call about a record, and at some of those about a file; the slow test tries all."""
    monkeypatch.setattr(writer, "PUTS_AT_ONCE", 1)
    calls = calls_of(work)
    for number, verb, _, path in map(dataclasses.astuple, calls):
        if "commits/" in path or number % 12 == FAULTS.index(fault):
            noticed = commit_with_fault(work, fault, number, MemoryBackend())
            assert noticed or (fault, verb) == ("full", "stat")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_each_call(work, fault, at_once, monkeypatch, tmp_path):
    monkeypatch.setattr(writer, "PUTS_AT_ONCE", at_once)
    calls = calls_of(work)
    for number in range(len(calls)):
        root = tmp_path / str(number)
        root.mkdir()
        for place in (MemoryBackend(), LocalBackend(root)):
            noticed = commit_with_fault(work, fault, number, place)
            assert noticed or (fault, calls[number].verb) == ("full", "stat")


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_record_whose_reply_was_lost_keeps_its_files(work, at_once, monkeypatch):
    """The next run finds the work done."""
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
def test_a_writer_that_cannot_tell_whether_it_won_leaves_its_files(work, then):
    """The reply to the record is lost, and then the record cannot be read."""
    place = MemoryBackend()

    def plan(call):
        if call.path != last_record(work) or call.verb == "stat":
            return None
        return "lose" if call.verb == "put_new" else then

    with pytest.raises((StorageError, Killed)):
        work.commit(FaultyBackend(place, plan))
    assert check_store(place, [work]) == set(work.paths)


@pytest.mark.variants
@pytest.mark.parametrize("seed", range(3))
def test_repeated_runs_complete_the_work_despite_many_faults(work, seed):
    """Every tenth call fails."""
    place = MemoryBackend()
    tries = 0
    results = []
    while check_store(place, [work]) != set(work.paths):
        tries += 1
        assert tries < 1000
        with contextlib.suppress(StorageError):
            results.append(work.commit(FaultyBackend(place, random_plan(1000 * seed + tries, 0.1))))
    assert results.count(True) <= 1
    assert work.commit(place) is False


@pytest.mark.parametrize("number", range(14))
def test_of_two_writers_one_wins(work, number):
    """Another writer commits the same object during one call of this one."""
    place = MemoryBackend()
    others = []

    def overtake(call):
        others.append(work.commit(place))

    mine = work.commit(FaultyBackend(place, {number: "stall"}, overtake))
    assert check_store(place, [work]) == set(work.paths)
    assert not unnamed(place), "the loser removed its files"
    if others:
        assert sorted([mine, *others]) == [False, True], "each object is made visible once"


def test_a_reader_gets_what_was_committed_or_an_error(kit):
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
    for number in range(0, len(faulty.calls), 2):
        with pytest.raises(StorageError):
            read(FaultyBackend(place, {number: "fail"}))
        with pytest.raises(StorageError):
            read(FaultyBackend(place, {number: "lose"}))
        with pytest.raises(Killed):
            read(FaultyBackend(place, {number: "kill"}))
        with pytest.raises((DamagedError, StorageError)):
            read(FaultyBackend(place, {number: "cut"}))
        read(FaultyBackend(place, {number: "full"}))  # Reading needs no room.
        read(FaultyBackend(place, {number: "stall"}, lambda call: None))


def test_a_truncated_listing_is_an_error(kit):
    place = MemoryBackend()
    for number in range(4):
        kit.add_segment(place, number)
    for call in (take_snapshot, verify):
        with pytest.raises(StorageError):
            call(FaultyBackend(place, {("list", 0): "cut"}))


def test_verify_reports_what_it_cannot_read():
    place = MemoryBackend()
    work = Work("segment")
    work.commit(place)
    for path in [entry.path for entry in place.list("")]:
        failing = FaultyBackend(place, lambda call, p=path: "fail" if call.path == p else None)
        cutting = FaultyBackend(place, lambda call, p=path: "cut" if call.path == p else None)
        for backend in (failing, cutting):
            (damage,) = verify(backend).damage
            assert path in damage.why
