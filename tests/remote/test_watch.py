"""`wsa encode --watch` on a bucket: two services, an outage, and wrong credentials."""

import pytest

from wsa.encode.service.heartbeat import read_heartbeats
from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import take_snapshot

RESNET = "timm:test_resnet:random"


def encoded(backend, models):
    snapshot = take_snapshot(backend)
    return len(snapshot.embeddings()) == models * len(snapshot.segments())


def check(backend, models):
    """Each frame went through each model once, all bytes are right, and no service left a file."""
    snapshot = take_snapshot(backend)
    assert encoded(backend, models) and len(snapshot.models) == models
    digests = {d.tobytes() for m in snapshot.segments() for d in snapshot.read_digests(m)}
    for key in snapshot.models:
        assert sum(e.passes for e in snapshot.embeddings(model=key)) == len(digests)
    assert verify(backend).damage == ()
    assert [*backend.list("services"), *backend.list("claims")] == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "dropped"])
def test_a_service_waits_for_an_unreachable_bucket(
    faulty, environment, bucket_store, backend, url, kit, service, fault
):
    environment.setenv("WSA_RETRY_S", "1.5")
    one = service("--store", url, "--models", RESNET, "--beat", "0.5")
    kit.add_segment(backend, 0)
    one.until(lambda: encoded(backend, 1))
    faulty.clear(lambda request: fault)  # While it waits,
    one.until_said("storage-down: ")
    for number in range(1, 16):
        kit.add_segment(backend, number)
    faulty.clear()
    one.until(lambda: len(take_snapshot(backend).embeddings()) > 1)
    before = one.said.count("storage-down: ")
    faulty.clear(lambda request: fault)  # and while it works.
    one.until(lambda: one.said.count("storage-down: ") > before)
    assert not encoded(backend, 1)
    faulty.clear()
    one.until(lambda: encoded(backend, 1))
    one.until(lambda: [sign.heartbeat.state for sign in read_heartbeats(backend)] == ["waiting"])
    (sign,) = read_heartbeats(backend)
    assert (
        sign.heartbeat.errors >= 2
        and sign.heartbeat.set_aside == ()
        and sign.heartbeat.trouble == ""
    )
    faulty.clear(lambda request: fault)  # It ends on request even then.
    assert one.end() == 143
    faulty.clear()
    assert "Traceback" not in one.said
    for entry in backend.list("services"):  # It could not remove its heartbeat; `wsa sweep` would.
        backend.delete(entry.path)
    check(backend, 1)


@pytest.mark.slow
def test_wrong_credentials_at_the_start_end_a_service(faulty, bucket_store, url, service):
    faulty.clear(lambda request: "403 InvalidAccessKeyId")
    one = service("--store", url, "--models", RESNET)
    assert one.process.wait(60) == 6
    assert "Check the credentials: AWS_ACCESS_KEY_ID" in one.said.splitlines()[-1]
