"""P11: a failing bucket causes no false conflict and no lost or double commit, and wsa gives up."""

import datetime
import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from obstore.exceptions import BaseError

from wsa.store.backends.bucket import RemoteBackend
from wsa.store.common import names
from wsa.store.common.errors import StorageError
from wsa.store.maintenance.verify import verify
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_embedding, commit_model

PATH = "commits/ab/record.json"
DATA = bytes(range(256)) * 40
# Temporary faults, which requests survive.
PASSING = ("503", "500", "429", "slow", "lost", "dropped", "409 ConditionalRequestConflict")

FAST_PUTS = [("503", 3), ("lost", 3), ("slow", 1), ("dropped", 1), (PASSING[-1], 1)]


def first(fault, method, times=1):
    """A plan in which the first requests of a method fail."""
    left = [times]

    def plan(request):
        if request.method != method or not left[0]:
            return None
        left[0] -= 1
        return fault

    return plan


@pytest.fixture
def remote(url, faulty):
    return RemoteBackend(url)


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        pytest.param(fault, times, marks=() if (fault, times) in FAST_PUTS else pytest.mark.slow)
        for fault in PASSING
        for times in (1, 3)
    ],
)
def test_a_put_wins_once_despite_faults(remote, faulty, backend, fault, times):
    if fault == "slow":
        times = 1
    faulty.clear(first(fault, "PUT", times))
    assert remote.put_new(PATH, DATA)
    assert backend.get(PATH) == DATA
    faulty.clear(first(fault, "PUT", times))
    assert not remote.put_new(PATH, b"another's")
    assert not remote.put_new(PATH, DATA), (
        "equal bytes of another writer do not count as this writer's"
    )
    assert backend.get(PATH) == DATA


@pytest.mark.variants
@pytest.mark.parametrize("fault", [*PASSING, "cut"])
def test_reads_survive_temporary_faults(remote, faulty, backend, fault):
    times = 1 if fault == "slow" else 2
    backend.put_new(PATH, DATA)
    faulty.clear(first(fault, "GET", times))
    assert remote.get(PATH) == DATA
    faulty.clear(first(fault, "GET", times))
    assert [(e.path, e.bytes) for e in remote.list("commits")] == [(PATH, len(DATA))]
    faulty.clear(first(fault, "HEAD", times))
    assert remote.stat(PATH) == len(DATA)
    faulty.clear(first(fault, "DELETE", times))
    remote.delete(PATH)
    remote.delete(PATH)
    assert backend.stat(PATH) is None


def test_a_lost_reply_of_a_server_without_metadata(remote, faulty, backend):
    lost = first("lost", "PUT", 2)
    faulty.clear(lambda r: lost(r) or ("mute" if r.method in ("GET", "HEAD") else None))
    assert remote.put_new(PATH, DATA)
    assert not remote.put_new(PATH, b"another's")
    assert not remote.put_new(PATH, DATA)
    lost = first("lost", "PUT", 2)
    assert not remote.put_new(PATH, b"another's"), "the bytes tell"
    assert backend.get(PATH) == DATA


def test_a_put_that_lost_needs_one_request(remote, faulty, backend):
    backend.put_new(PATH, DATA)
    faulty.clear()
    assert not remote.put_new(PATH, b"another's")
    assert [request.method for request, _ in faulty.requests] == ["PUT"]


def test_a_file_removed_while_its_put_is_uncertain_is_put_again(remote, faulty, backend):
    lost = first("lost", "PUT")

    def plan(request):
        if request.method == "HEAD" and request.number < 3:
            backend.delete(PATH)
        return lost(request)

    faulty.clear(plan)
    assert remote.put_new(PATH, DATA)
    assert backend.get(PATH) == DATA


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_one_of_several_writers_wins_despite_faults(url, faulty, backend, seed):
    rng = random.Random(seed)
    faulty.clear(
        lambda r: rng.choice(("503", "lost", "dropped", "cut")) if rng.random() < 0.3 else None
    )
    rounds, writers = 3, 4

    def write(number):
        mine = RemoteBackend(url)
        return [mine.put_new(f"commits/{turn:02x}", b"%d" % number) for turn in range(rounds)]

    with ThreadPoolExecutor(writers) as threads:
        won = list(threads.map(write, range(writers)))
    for turn in range(rounds):
        winners = [number for number in range(writers) if won[number][turn]]
        assert len(winners) == 1
        assert backend.get(f"commits/{turn:02x}") == b"%d" % winners[0]


@pytest.mark.slow
def test_a_long_listing_has_everything_once_despite_faults(remote, faulty, backend):
    paths = {f"commits/{n:04d}" for n in range(1050)}
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda path: backend.put_new(path, b""), paths))
    for turn, fault in enumerate(("503", "cut", "dropped")):
        faulty.clear(lambda r, turn=turn, fault=fault: fault if r.number % 3 == turn else None)
        found = [entry.path for entry in remote.list("commits")]
        assert (len(found), set(found)) == (1050, paths)


def test_a_listing_whose_second_page_keeps_failing_is_given_up(remote, environment, monkeypatch):
    environment.setenv("WSA_RETRY_S", "0.3")

    class TwoPages:
        def list(self, key, chunk_size):
            yield [{"path": "a", "size": 1, "last_modified": datetime.datetime.now(datetime.UTC)}]
            raise BaseError("status code: 503 Service Unavailable")

    monkeypatch.setattr(remote, "_client", lambda **how: TwoPages())
    found = []
    with pytest.raises(StorageError, match=r"kept failing for 0\.3 s"):
        for entry in remote.list(""):
            found.append(entry.path)
    assert found == ["a"]


# Each fault and each verb once; `make nightly` tries all pairs.
GIVEN_UP = [
    ("get", "503"),
    ("put_new", "hang"),
    ("list", "dropped"),
    ("stat", "lost"),
    ("get", "cut"),
]


@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        pytest.param(*pair, marks=() if pair in GIVEN_UP else pytest.mark.slow)
        for pair in itertools.product(
            ["get", "put_new", "list", "stat"], ["503", "hang", "dropped", "lost", "cut"]
        )
    ],
)
def test_wsa_gives_up_after_the_stated_time(remote, faulty, backend, environment, verb, fault):
    backend.put_new(PATH, DATA)
    environment.setenv("WSA_RETRY_S", "0.5")
    faulty.clear(lambda request: fault)
    if fault == "cut" and verb in ("stat", "put_new"):
        pytest.skip("nothing to cut")
    call = {
        "get": lambda: remote.get(PATH),
        "put_new": lambda: remote.put_new(PATH + "2", DATA),
        "list": lambda: list(remote.list("")),
        "stat": lambda: remote.stat(PATH),
    }[verb]
    with pytest.raises(StorageError) as refused:
        call()
    assert (refused.value.kind, refused.value.exit_code) == ("unavailable", 6)
    assert "It kept failing for 0.5 s. Check the network and AWS_ENDPOINT_URL" in str(refused.value)
    assert "127.0.0.1" not in str(refused.value)


def test_an_endpoint_where_nothing_listens(remote, environment):
    environment.setenv("WSA_RETRY_S", "0.2")
    environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="error sending request"):
        remote.get(PATH)


def fill(backend, kit, number):
    """Commit a segment, a model, and its embeddings of the segment; which of them were new."""
    meta, arrays = kit.remember(number)
    won = [kit.writer.commit_segment(backend, meta, arrays)]
    won += [commit_model(backend, kit.ModelMeta(kit.key("vit")), {"spec.json": b"{}"})]
    won += [commit_embedding(backend, *kit.fake_embedding(meta, kit.key("vit")))]
    return meta, won


@pytest.mark.parametrize(
    "fault", ["mixed", *(pytest.param(fault, marks=pytest.mark.slow) for fault in PASSING)]
)
def test_commits_succeed_once_despite_faults(url, faulty, backend, kit, fault):
    open_store(url, create=True)
    remote = RemoteBackend(url)
    rng = random.Random(1)
    kinds = PASSING if fault == "mixed" else (fault,)
    chance = 0.05 if fault == "slow" else 0.2
    faulty.clear(lambda request: rng.choice(kinds) if rng.random() < chance else None)
    meta, won = fill(remote, kit, 0)
    assert won == [True] * 3
    assert fill(remote, kit, 0)[1] == [False] * 3
    assert kit.check_whole(take_snapshot(remote), [meta], [kit.key("vit")]) == 3
    faulty.clear()
    report = verify(backend)
    assert (report.damage, report.leftovers, report.objects) == ((), 0, 4)


@pytest.mark.slow
def test_a_minute_of_throttling_is_survived(url, faulty, backend, kit, environment):
    open_store(url, create=True)
    environment.setenv("WSA_RETRY_S", "90")
    until = time.monotonic() + 60
    faulty.clear(lambda request: "503" if time.monotonic() < until else None)
    _, won = fill(RemoteBackend(url), kit, 0)
    assert won == [True] * 3
    assert verify(backend).leftovers == 0


@pytest.mark.parametrize(
    ("fault", "last"),
    [
        pytest.param(
            fault,
            last,
            marks=() if (fault, last) == ("lost", 15) else pytest.mark.slow,
        )
        for fault in ("lost", "503")
        for last in range(1, 40, 7)
    ],
)
def test_a_bucket_that_is_silent_loses_nothing(url, faulty, backend, kit, environment, fault, last):
    """From request `last` on nothing is answered, though perhaps done; later the bucket recovers."""
    store = open_store(url, create=True)
    environment.setenv("WSA_RETRY_S", "0.1")
    faulty.clear(lambda request: fault if request.number >= last else None)
    won = []
    try:
        _, won = fill(store, kit, 0)
    except StorageError as error:
        assert error.exit_code == 6
    faulty.clear()
    seen = take_snapshot(backend).commits
    assert verify(backend).damage == ()
    meta, again = fill(backend, kit, 0)
    if won:
        assert again == [False] * 3
    assert kit.check_whole(take_snapshot(backend), [meta], [kit.key("vit")]) == 3
    for path, commit in seen.items():
        assert take_snapshot(backend).commit(path) == commit
    assert verify(backend).damage == ()


def test_a_record_that_may_still_arrive_keeps_its_files(url, faulty, backend, kit, environment):
    """The put of the record may arrive after the writer gave up."""
    store = open_store(url, create=True)
    # Long enough for the requests before it on a busy machine.
    environment.setenv("WSA_RETRY_S", "2")
    records = []

    def plan(request):
        if request.method == "PUT" and "/commits/" in request.path:
            records.append(request)
            return "dropped"
        return None

    faulty.clear(plan)
    with pytest.raises(StorageError):
        kit.add_model(store, kit.key("vit"))
    assert records
    path = names.model_path(kit.key("vit"))
    assert len([e for e in backend.list(path)]) == 2


def test_a_stale_listing_causes_no_second_commit(url, faulty, backend, kit):
    open_store(url, create=True)
    remote = RemoteBackend(url)
    faulty.clear(lambda r: "stale" if r.method == "GET" and "list-type" in r.path else None)
    assert take_snapshot(remote).commits == {}
    meta, won = fill(remote, kit, 0)
    assert won == [True] * 3
    assert take_snapshot(remote).commits == {}, "an old listing"
    assert fill(remote, kit, 0)[1] == [False] * 3
    faulty.clear()
    assert kit.check_whole(take_snapshot(remote), [meta], [kit.key("vit")]) == 3
    assert verify(backend).leftovers == 0
