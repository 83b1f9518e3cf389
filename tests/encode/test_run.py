from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from dask import config
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.jobs import cluster, tasks
from wsa.encode.jobs.events import Event, ModelReady, Planned, SegmentDone
from wsa.encode.jobs.plan import make_plan
from wsa.encode.jobs.run import EncodeReport, encode
from wsa.encode.models import registry
from wsa.encode.models.registry import Request
from wsa.encode.registration import identity, probe_frames
from wsa.encode.registration.register import Registered
from wsa.store.backends.base import Backend
from wsa.store.common.errors import ConflictError, MissingError, StorageError, UsageError, WsaError
from wsa.store.format.records import SegmentMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

Ask = Callable[..., Request]
Fill = Callable[..., list[SegmentMeta]]
PROBES = len(probe_frames.probe_inputs())


def run(store: Backend, *requests: Request, games: Sequence[str] = (), **more: Any) -> EncodeReport:
    return encode(store, requests, games, scheduler="inproc", device="cpu", **more)


@pytest.fixture(autouse=True)
def _fresh_workers() -> None:
    tasks._models.clear()


def check_rows(
    store: Backend,
    numbers: dict[tuple[str, int], list[int]],
    request: Request,
    encoder_of: Callable[..., Encoder],
    noise: Callable[[int], NDArray[np.uint8]],
) -> None:
    """Every stored row is what the model gives for that frame."""
    snapshot = take_snapshot(store)
    spec = identity.find_model(snapshot, request)
    assert spec is not None
    encoder = encoder_of(request)
    metas = {(m.game, m.start): m for m in snapshot.segments()}
    assert len(snapshot.embeddings(model=spec.key)) == len(numbers)
    for (game, start), shown in numbers.items():
        found = snapshot.read_embedding(game, spec.key, metas[game, start].segment)
        wanted = stored(encoder(np.stack([noise(n) for n in shown])))
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == np.float16


def test_the_same_encoding_elsewhere_gives_the_same_bytes(
    store: Backend, tmp_path: Path, fill: Fill, tiny: Ask
) -> None:
    """P20: what differs between two such stores is who wrote when, and the folders' names."""
    other = open_store(str(tmp_path / "other"), create=True)
    for place in (store, other):
        fill(place, [[0, 1, 2, 3], [3, 4, 0]])
        run(place, tiny("resnet"), tiny("vit", "grid:2+pca:32"))
    files = [
        {path: commit.files for path, commit in take_snapshot(place).commits.items()}
        for place in (store, other)
    ]
    assert len(files[0]) == 2 * 2 + 2 + 2 * 2
    assert files[0] == files[1]


def test_it_encodes_each_frame_once_and_tells_what_it_did(
    store: Backend,
    fill: Fill,
    tiny: Ask,
    encoder_of: Callable[..., Encoder],
    noise: Callable[[int], NDArray[np.uint8]],
    ran: list[int],
) -> None:
    pong = [[0, 1, 2, 3], [3, 4, 0], [5, 6, 1], [4, 3]]  # The last has only copies,
    breakout = [[0, 7], [7, 8, 2, 8]]  # and this one repeats a frame.
    fill(store, pong)
    fill(store, breakout, "Breakout")
    events: list[Event] = []
    report = run(store, tiny("resnet"), tiny("vit"), listen=events.append)
    assert report.passes == 9 * 2 and report.copied == (12 + 6 - 9) * 2 and report.present == 0
    # Besides the frames of the plan, each model saw the probe frames when it was registered, after
    # a frame that warmed it up, and when the worker opened it, and no more.
    assert sum(ran) == report.passes + 2 * (2 * PROBES + 1)
    ready = [e for e in events if isinstance(e, ModelReady)]
    (planned,) = [e for e in events if isinstance(e, Planned)]
    done = [e for e in events if isinstance(e, SegmentDone)]
    assert len(ready) == 2 and [e.fitted for e in ready] == [0, 0]
    assert (planned.objects, planned.passes, planned.copies) == (12, report.passes, report.copied)
    assert tuple(done) == report.done and len({(e.game, e.segment, e.model) for e in done}) == 12
    assert sum(e.passes for e in done) == planned.passes
    assert sum(e.copied for e in done) == planned.copies
    snapshot = take_snapshot(store)
    assert sum(e.passes for e in snapshot.embeddings()) == report.passes
    assert sum(e.copied for e in snapshot.embeddings()) == report.copied
    assert all(e.seconds > 0 for e in snapshot.embeddings() if e.passes)
    numbers = {("Pong", at): shown for at, shown in enumerate(pong)}
    numbers |= {("Breakout", at): shown for at, shown in enumerate(breakout)}
    ran.clear()
    for name in ("resnet", "vit"):
        check_rows(store, numbers, tiny(name), encoder_of, noise)
    assert verify(store).damage == () and verify(store).leftovers == 0


def test_a_second_run_does_nothing_and_a_new_segment_only_itself(
    store: Backend, fill: Fill, tiny: Ask, tree: Callable[[], dict[str, str]], ran: list[int]
) -> None:
    fill(store, [[0, 1, 2], [2, 3]])
    first = run(store, tiny("resnet"))
    before = tree()
    ran.clear()
    events: list[Event] = []
    again = run(store, tiny("resnet"), listen=events.append)
    assert again.passes == again.copied == 0 and again.done == () and again.present == 2
    assert events == [Planned(0, 0, 0)] and not ran
    assert [m.spec for m in again.models] == [m.spec for m in first.models]
    assert tree() == before
    fill(store, [[3, 4, 0, 5]], first=2)
    later = run(store, tiny("resnet"))
    assert (later.passes, later.copied, later.present, len(later.done)) == (2, 2, 2, 1)
    assert before.items() <= tree().items(), "what was there is untouched"


def test_only_the_games_asked_for_are_encoded(store: Backend, fill: Fill, tiny: Ask) -> None:
    fill(store, [[0, 1]])
    fill(store, [[1, 2]], "Breakout")
    assert run(store, tiny("resnet"), games=["Breakout"]).passes == 2
    assert {e.game for e in take_snapshot(store).embeddings()} == {"Breakout"}
    rest = run(store, tiny("resnet"))
    assert (rest.passes, rest.copied, rest.present) == (1, 1, 1)


def test_without_frames_it_says_how_to_get_some(store: Backend, fill: Fill, tiny: Ask) -> None:
    with pytest.raises(MissingError, match="wsa collect") as caught:
        run(store, tiny("resnet"))
    assert caught.value.kind == "no-frames"
    fill(store, [[0]])
    with pytest.raises(MissingError, match="wsa collect --game Seaquest"):
        run(store, tiny("resnet"), games=["Seaquest"])
    assert take_snapshot(store).models == []


class Poisoned:
    """`models.build` of a model that gives NaN for bright frames once it is registered."""

    def __init__(self) -> None:
        self._build = registry.build

    def __call__(self, request: Request) -> Any:
        module = self._build(request)
        forward = module.forward_features

        def poisoned(pixels: Any) -> Any:
            features = forward(pixels)
            return features * float("nan") if pixels.mean() > 0.9 else features

        module.forward_features = poisoned
        return module


def test_nan_is_set_aside_with_its_segment_and_model_and_the_rest_is_done(
    store: Backend,
    kit: ModuleType,
    segment_of: Callable[..., Any],
    fill: Fill,
    tiny: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wsa.store.objects import writer

    fill(store, [[0, 1]])
    bright = np.full((12, 10, 3), 255, np.uint8)
    bad, arrays = segment_of(1, [bright])
    writer.commit_segment(store, bad, arrays)
    monkeypatch.setattr(registry, "build", Poisoned())
    report = run(store, tiny("resnet"))
    (failed,) = report.failed
    assert type(failed.error) is ConflictError
    assert (failed.error.kind, report.exit_code, failed.attempts) == ("not-finite", 4, 3)
    (key,) = take_snapshot(store).models
    assert bad.segment in str(failed.error) and key in str(failed.error)
    assert (failed.model, failed.game, failed.segment) == (key, "Pong", bad.segment)
    assert [d.segment for d in report.done] != [bad.segment] and len(report.done) == 1
    assert not [p for p in kit.paths(store) if f"embeddings/{key}/{bad.segment}" in p]
    assert verify(store).damage == () and verify(store).leftovers == 0


@pytest.mark.parametrize(
    "error", [MissingError("no-weights", "m"), ConflictError("step-error", "m")]
)
def test_an_error_of_a_worker_arrives_as_itself(
    error: WsaError, store: Backend, fill: Fill, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: Request) -> Any:
        raise error

    fill(store, [[0]])
    monkeypatch.setattr(registry, "build", fail)
    with pytest.raises(type(error)) as caught:
        run(store, tiny("resnet"))
    assert (caught.value.kind, str(caught.value)) == (error.kind, "m")


def test_an_interrupt_leaves_the_store_whole_and_the_rest_for_next_time(
    store: Backend, fill: Fill, tiny: Ask
) -> None:
    fill(store, [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(12)])

    def interrupt(event: Event) -> None:
        if isinstance(event, SegmentDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, tiny("resnet"), listen=interrupt)
    assert verify(store).damage == ()
    done = len(take_snapshot(store).embeddings())
    assert 1 <= done < 12
    rest = run(store, tiny("resnet"))
    assert rest.passes == 36 - 3 * done and rest.present == done
    assert verify(store).leftovers == 0


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_a_frame_has_one_embedding_in_whichever_segment_it_stands(
    scale: float, store: Backend, fill: Fill, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another frame's is too large for half precision."""
    real = Encoder.__call__

    def large(self: Encoder, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = real(self, frames)
        bright = frames.reshape(len(frames), -1).mean(axis=1) > 127.5
        return np.where(bright[:, None], scale * found, found)

    monkeypatch.setattr(Encoder, "__call__", large)
    fill(store, [[0, 1, 2, 3], [4], [5]])
    report = run(store, tiny("resnet"))
    (key,) = (m.spec.key for m in report.models)
    segments = fill(store, [[0, 1, 2, 3, 4, 5]], "Breakout")
    run(store, tiny("resnet"))
    snapshot = take_snapshot(store)
    joined = snapshot.read_embedding("Breakout", key, segments[0].segment)
    apart = [snapshot.read_embedding("Pong", key, m.segment) for m in snapshot.segments("Pong")]
    np.testing.assert_array_equal(joined, np.concatenate(apart))
    assert joined.dtype == (np.float16 if scale == 1 else np.float32)
    large_rows = np.abs(joined).max(axis=1) > 65504
    assert (scale > 1) == large_rows.any() and not large_rows.all()
    # The others are rounded as ever, although they stand beside large ones.
    small = joined[~large_rows]
    np.testing.assert_array_equal(small, small.astype(np.float16))


def registered(store: Backend, request: Request) -> str:
    made = tasks.register_model(store.url, request, 0.1, "cpu", 0)
    assert isinstance(made, Registered)
    return made.spec.key


def test_tasks_of_one_worker_may_run_in_several_threads(
    store: Backend, fill: Fill, tiny: Ask, ran: list[int]
) -> None:
    fill(store, [[2 * i, 2 * i + 1] for i in range(8)])
    key = registered(store, tiny("resnet"))
    plan = make_plan(take_snapshot(store), [key], ["Pong"])
    settings = tasks.TaskSettings(store.url, {key: "random"}, {key: "torch"}, "cpu")
    ran.clear()
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(partial(tasks.embed, settings), plan.by_segment())]
    shapes = [
        e.rows.shape for (e,) in found if isinstance(e, tasks.Embedded) and e.rows is not None
    ]
    assert shapes == [(2, 96)] * 8
    assert sum(ran) == plan.passes + PROBES, "the model was opened once"


def test_committing_twice_writes_once(
    store: Backend, fill: Fill, tiny: Ask, ran: list[int]
) -> None:
    fill(store, [[0, 1]])
    key = registered(store, tiny("resnet"))
    (items,) = make_plan(take_snapshot(store), [key], ["Pong"]).by_segment()
    settings = tasks.TaskSettings(store.url, {key: "random"}, {key: "torch"}, "cpu")
    embedded = tasks.embed(settings, items)
    (one,), (two,) = (tasks.commit(settings, items, embedded) for _ in range(2))
    assert isinstance(one, SegmentDone) and isinstance(two, SegmentDone)
    assert (one.passes, one.segment) == (two.passes, two.segment)
    ran.clear()
    (again,) = tasks.encode_segment(settings, items)
    assert isinstance(again, SegmentDone) and again.passes == again.copied == 0
    assert not ran, "what is committed does not run again"
    assert len(take_snapshot(store).embeddings()) == 1 and verify(store).leftovers == 0


@pytest.mark.parametrize("name", ["", "inprocess", "pbs"])
def test_an_unknown_scheduler_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="inproc"), cluster.connect(name, 0):
        pass


@pytest.mark.parametrize("name", ["foo://bar:1", "tcp://", "tcp://localhost", "tcp://127.0.0.1:x"])
def test_what_is_no_address_is_refused(name: str) -> None:
    said = f"--scheduler {name}: .*tcp://HOST:PORT"
    with pytest.raises(UsageError, match=said) as caught, cluster.connect(name, 0):
        pass
    assert "\n" not in str(caught.value)


def test_a_scheduler_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WAIT_FOR_ANSWER_S", 1)
    before = config.get("scheduler", None)
    with (
        pytest.raises(StorageError, match="dask scheduler") as caught,
        cluster.connect("tcp://127.0.0.1:1", 0),
    ):
        pass
    assert caught.value.kind == "unavailable"
    assert config.get("scheduler", None) == before, "the caller's own Dask is as it was"


@pytest.mark.parametrize("name", ["inproc", "tcp://127.0.0.1:1"])
def test_a_number_of_workers_that_nobody_heeds_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--workers 3"), cluster.connect(name, 3):
        pass


def test_workers_that_do_not_start_are_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "WAIT_FOR_PROCESSES_S", 0.1)
    monkeypatch.setattr(cluster, "_keep_scaled", lambda *_: None)
    with (
        pytest.raises(StorageError, match="Of 1 worker processes here 0 started"),
        cluster.connect("local", 1, "cpu"),
    ):
        pass


def test_a_scheduler_without_workers_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "WAIT_FOR_WORKERS_S", 0.5)
    with LocalCluster(n_workers=0, dashboard_address=cluster._ANY_PORT) as empty:
        where: str = empty.scheduler_address  # type: ignore[attr-defined]
        with (
            pytest.raises(StorageError, match=f"dask worker {where}"),
            cluster.connect(where, 0),
        ):
            pass
