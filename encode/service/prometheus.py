"""Serve the counters of a service to Prometheus; each scrape reads their current values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wsa.encode.service.heartbeat import Heartbeat, State
from wsa.store.common.errors import UsageError

HEALTHY: frozenset[State] = frozenset(("waiting", "encoding"))


class _Service(Collector):
    def __init__(self, read: Callable[[], Heartbeat]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        heartbeat = self._read()
        passes = CounterMetricFamily("wsa_passes", "Frames run through a model.", labels=["model"])
        saved = CounterMetricFamily(
            "wsa_passes_saved", "Frames copied instead of run.", labels=["model"]
        )
        segments = CounterMetricFamily(
            "wsa_segments", "Segments by what became of them.", labels=["model", "outcome"]
        )
        backlog = GaugeMetricFamily(
            "wsa_backlog_frames", "Frames still to encode.", labels=["model"]
        )
        aside = GaugeMetricFamily(
            "wsa_segments_set_aside", "Segments that failed every attempt.", labels=["model"]
        )
        for model, work in heartbeat.models.items():
            passes.add_metric([model], work.passes)
            saved.add_metric([model], work.saved)
            segments.add_metric([model, "done"], work.done)
            segments.add_metric([model, "failed"], work.failed)
            backlog.add_metric([model], work.todo_frames)
            aside.add_metric([model], work.set_aside)
        yield from (passes, saved, segments, backlog, aside)
        yield _gauge(
            "wsa_frames_per_second", "Frames encoded in a second.", heartbeat.frames_per_second
        )
        yield _gauge("wsa_up", "1 while nothing is wrong.", heartbeat.state in HEALTHY)
        state = GaugeMetricFamily("wsa_state", "What the service does.", labels=["state"])
        for name in get_args(State):
            state.add_metric([name], name == heartbeat.state)
        yield state
        yield _gauge(
            "wsa_last_commit_timestamp_seconds", "Time of the last commit.", heartbeat.last_commit
        )
        yield CounterMetricFamily("wsa_errors", "Errors since the start.", value=heartbeat.errors)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


@contextlib.contextmanager
def serve(host: str, port: int, read: Callable[[], Heartbeat]) -> Iterator[str]:
    """Serve the metrics and yield their URL.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        read: Returns the current heartbeat.

    Raises:
        UsageError: If the port is in use, or the address is not one of this machine.
    """
    registry = CollectorRegistry()
    registry.register(_Service(read))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise UsageError(
            "bad-option",
            f"--metrics-port {port}: {host}:{port} cannot be served from "
            f"({error.strerror or error}). Give another port, or end what has this one.",
        ) from None
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
