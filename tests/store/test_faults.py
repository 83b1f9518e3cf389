"""The faulty place does what its table says: tests that rest on it would otherwise prove nothing."""

from __future__ import annotations

import pytest

from wsa.store.common.errors import StorageError
from wsa.store.testing import Call, FaultyBackend, Killed, MemoryBackend, random_plan


@pytest.fixture
def inner():
    place = MemoryBackend()
    place.put_new("games/a", b"0123456789")
    place.put_new("games/b", b"x")
    return place


VERBS = {
    "get": lambda backend: backend.get("games/a"),
    "put_new": lambda backend: backend.put_new("games/new", b"new"),
    "list": lambda backend: sorted(backend.list("games")),
    "delete": lambda backend: backend.delete("games/a"),
    "stat": lambda backend: backend.stat("games/a"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", ["fail", "lose", "late", "cut", "full", "kill"])
def test_a_fault(inner, verb, fault):
    before = dict(inner.files)
    faulty = FaultyBackend(inner, {0: fault})
    answers = {("cut", "get"): b"01234"}
    if fault == "full" and verb != "put_new":
        answers[fault, verb] = VERBS[verb](copy_of(inner))
    if (fault, verb) in answers:
        assert VERBS[verb](faulty) == answers[fault, verb]
    else:
        with pytest.raises(Killed if fault == "kill" else StorageError) as met:
            VERBS[verb](faulty)
        if fault != "kill":
            assert getattr(met.value, "kind", "") == (
                "no-space" if fault == "full" else "unavailable"
            )
    done = fault in ("lose", "full") and verb == "delete"
    done |= (fault, verb) in (("lose", "put_new"), ("late", "delete"))
    assert (inner.files != before) == done
    assert faulty.dead == (fault == "kill")
    if fault != "kill":
        faulty.stat("games/b")
        done |= (fault, verb) == ("late", "put_new")
        assert (inner.files != before) == done, "what was late has arrived"


def copy_of(place):
    """What the verb would answer, asked of a place that may change."""
    copy = MemoryBackend()
    copy.files = dict(place.files)
    return copy


def test_half_a_listing_comes_before_the_error(inner):
    listing = FaultyBackend(inner, {0: "cut"}).list("games")
    assert next(listing).path == "games/a"
    with pytest.raises(StorageError):
        next(listing)


def test_the_dead_stay_dead(inner):
    faulty = FaultyBackend(inner, {("put_new", 1): "kill"})
    assert faulty.put_new("games/c", b"")
    faulty.get("games/a")
    for verb in ("put_new", *VERBS):
        with pytest.raises(Killed):
            VERBS[verb](faulty)
    assert set(inner.files) == {"games/a", "games/b", "games/c"}


def test_calls_are_counted_by_number_and_by_verb(inner):
    faulty = FaultyBackend(inner, {("get", 1): "fail", 3: "fail"})
    faulty.get("games/a")
    faulty.stat("games/a")
    with pytest.raises(StorageError):
        faulty.get("games/a")
    with pytest.raises(StorageError):
        faulty.stat("games/a")
    faulty.get("games/a")
    assert faulty.calls[2:4] == [Call(2, "get", 1, "games/a"), Call(3, "stat", 1, "games/a")]


def test_a_stalled_call_waits_for_the_hook(inner):
    seen = []

    def remove(call):
        seen.append(call)
        inner.delete(call.path)

    faulty = FaultyBackend(inner, {0: "stall"}, remove)
    with pytest.raises(FileNotFoundError):
        faulty.get("games/a")
    assert seen == [Call(0, "get", 0, "games/a")]


def test_a_random_plan_is_the_same_for_a_seed():
    calls = [Call(n, "get", n, "a") for n in range(1000)]
    plans = [[random_plan(seed, 0.2)(call) for call in calls] for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert 150 < sum(fault is not None for fault in plans[0]) < 250
