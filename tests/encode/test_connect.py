"""Connecting to a scheduler: what is refused, and what is not waited for forever."""

import gc
import logging
import threading

import pytest
from dask import config
from distributed import LocalCluster

from wsa.encode.jobs import cluster, slurm
from wsa.store.common.errors import StorageError, UsageError, WsaError

ADDRESS = "--scheduler .*tcp://HOST:PORT"


@pytest.mark.parametrize("name", ["foo://bar:1", "tcp://", "tcp://localhost", "tcp://127.0.0.1:x"])
def test_a_wrong_address_is_refused(name):
    with pytest.raises(UsageError, match=ADDRESS) as caught, cluster.connect(name, 0):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "inprocess", "pbs"])
def test_an_unknown_scheduler_is_refused(name):
    with pytest.raises(UsageError, match="is not a scheduler; write local, inproc"):
        slurm.check_scheduler(slurm.SlurmOptions(), name)


def test_a_scheduler_that_does_not_answer_is_unavailable(monkeypatch):
    monkeypatch.setattr(cluster, "WAIT_FOR_ANSWER_S", 0.2)
    before = config.get("scheduler", None)
    with (
        pytest.raises(StorageError, match="dask scheduler") as caught,
        cluster.connect("tcp://127.0.0.1:1", 0),
    ):
        pass
    assert caught.value.kind == "unavailable"
    assert config.get("scheduler", None) == before, "the caller's own Dask is unchanged"


@pytest.mark.parametrize(
    "address", ["foo://bar:1", "tls://127.0.0.1:1", "inproc://1.1.1.1/2/3", "tcp://127.0.0.1:1"]
)
def test_a_refused_scheduler_leaves_no_client_to_the_garbage_collector(monkeypatch, address):
    """The collector closes a client at any moment, even where Dask holds the lock of all loops."""
    monkeypatch.setattr(cluster, "WAIT_FOR_ANSWER_S", 0.2)
    loops = _dask_loops()
    with pytest.raises(WsaError), cluster.connect(address, 0):
        pass
    assert _dask_loops() == loops
    closed = []
    monkeypatch.setattr(cluster.Client, "close", lambda client: closed.append(client.status))
    gc.collect()
    assert set(closed) <= {"closed"}


def _dask_loops():
    return [thread for thread in threading.enumerate() if thread.name == "IO loop"]


def test_dask_logs_no_error_of_its_own():
    """A client that lost its scheduler would log a traceback for each attempt to find it."""
    with cluster.connect("inproc", 0):
        pass
    dask = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    loud = [name for name in dask if logging.getLogger(name).isEnabledFor(logging.ERROR)]
    assert "distributed.client" in dask and not loud


def test_worker_processes_that_do_not_start_are_given_up(monkeypatch):
    monkeypatch.setattr(cluster, "WAIT_FOR_PROCESSES_S", 0.1)
    monkeypatch.setattr(cluster, "_keep_scaled", lambda *_: None)
    monkeypatch.setattr(cluster, "_preload_forkserver", lambda _: None)  # It imports for seconds.
    with (
        pytest.raises(StorageError, match="Only 0 of 1 worker processes started"),
        cluster.connect("local", 1, "cpu"),
    ):
        pass


def test_a_scheduler_without_workers_is_unavailable(monkeypatch):
    monkeypatch.setattr(cluster, "WAIT_FOR_WORKERS_S", 0.2)
    with LocalCluster(n_workers=0, dashboard_address=cluster._ANY_PORT) as empty:
        address = empty.scheduler_address  # type: ignore[attr-defined]
        with (
            pytest.raises(StorageError, match=f"dask worker {address}"),
            cluster.connect(address, 0),
        ):
            pass
