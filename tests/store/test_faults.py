"""`FaultyBackend` does what its table says; other tests rely on it."""

import pytest

from wsa.store.common.errors import StorageError
from wsa.store.testing import Call, FaultyBackend, Killed, MemoryBackend, random_plan

VERBS = {
    "get": lambda backend: backend.get("games/a"),
    "put_new": lambda backend: backend.put_new("games/new", b"new"),
    "list": lambda backend: sorted(backend.list("games")),
    "delete": lambda backend: backend.delete("games/a"),
    "stat": lambda backend: backend.stat("games/a"),
}


@pytest.fixture
def inner():
    backend = MemoryBackend(clock=lambda: 7.0)
    backend.put_new("games/a", b"0123456789")
    backend.put_new("games/b", b"x")
    return backend


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", ["fail", "lose", "late", "cut", "full", "kill"])
def test_a_fault_has_its_effect_and_no_other(inner, verb, fault):
    before = dict(inner.files)
    faulty = FaultyBackend(inner, {0: fault})
    if (fault, verb) == ("cut", "get"):
        assert VERBS[verb](faulty) == b"01234"
    elif fault == "full" and verb != "put_new":
        expected = MemoryBackend()
        expected.files = dict(before)
        assert VERBS[verb](faulty) == VERBS[verb](expected)
    else:
        with pytest.raises(Killed if fault == "kill" else StorageError) as raised:
            VERBS[verb](faulty)
        if fault != "kill":
            kind = "no-space" if fault == "full" else "unavailable"
            assert getattr(raised.value, "kind", "") == kind
    changed = (fault, verb) in {
        *(("lose", "delete"), ("full", "delete"), ("late", "delete"), ("lose", "put_new"))
    }
    assert (inner.files != before) == changed
    assert faulty.dead == (fault == "kill")
    if fault != "kill":
        faulty.stat("games/b")
        assert (inner.files != before) == changed or (fault, verb) == ("late", "put_new")
        if (fault, verb) == ("late", "put_new"):
            assert inner.get("games/new") == b"new", "a late put arrives after the next call"


def test_a_cut_listing_gives_half_and_then_an_error(inner):
    listing = FaultyBackend(inner, {0: "cut"}).list("games")
    assert next(listing).path == "games/a"
    with pytest.raises(StorageError):
        next(listing)


def test_a_killed_backend_stays_dead(inner):
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
    for verb in (faulty.get, faulty.stat):
        with pytest.raises(StorageError):
            verb("games/a")
    faulty.get("games/a")
    assert faulty.calls[2:4] == [Call(2, "get", 1, "games/a"), Call(3, "stat", 1, "games/a")]


def test_a_stalled_call_waits_for_the_hook(inner):
    stalled = []

    def remove(call):
        stalled.append(call)
        inner.delete(call.path)

    with pytest.raises(FileNotFoundError):
        FaultyBackend(inner, {0: "stall"}, remove).get("games/a")
    assert stalled == [Call(0, "get", 0, "games/a")]


def test_a_random_plan_depends_on_its_seed_alone():
    calls = [Call(number, "get", number, "a") for number in range(1000)]
    plans = [[random_plan(seed, 0.2)(call) for call in calls] for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert 150 < sum(fault is not None for fault in plans[0]) < 250
