"""What one `encode` does to a store: passes, copies, rows, errors, and repeated commands."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.jobs import tasks
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.events import ModelReady, Planned, SegmentDone
from wsa.encode.jobs.plan import make_plan
from wsa.encode.jobs.run import EncodeReport
from wsa.encode.models import networks
from wsa.encode.models.registry import Request
from wsa.encode.registration import identity, probe_frames
from wsa.encode.registration.register import Registered
from wsa.store.common.errors import ConflictError, MissingError
from wsa.store.format.records import SegmentMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

Ask = Callable[..., Request]
Encode = Callable[..., EncodeReport]
Fill = Callable[..., list[SegmentMeta]]
PROBES = len(probe_frames.probe_inputs())

pytestmark = pytest.mark.usefixtures("fresh_workers")


def check_rows(store, numbers, request, make_encoder, noise):
    """Check that every stored row is what the model gives for that frame."""
    snapshot = take_snapshot(store)
    spec = identity.find_model(snapshot, request)
    assert spec is not None
    encoder = make_encoder(request)
    metas = {(m.game, m.start): m for m in snapshot.segments()}
    assert len(snapshot.embeddings(model=spec.key)) == len(numbers)
    for (game, start), shown in numbers.items():
        embedding = snapshot.read_embedding(game, spec.key, metas[game, start].segment)
        expected = stored(encoder(np.stack([noise(n) for n in shown])))
        np.testing.assert_array_equal(embedding, expected)
        assert embedding.dtype == np.float16


def test_the_same_encoding_elsewhere_gives_the_same_bytes(store, tmp_path, fill, small, encode_all):
    """P20: only authors, times, and names of folders differ between two such stores."""
    other = open_store(str(tmp_path / "other"), create=True)
    for backend in (store, other):
        fill(backend, [[0, 1, 2, 3], [3, 4, 0]])
        encode_all(backend, small("a"), small("b", "grid:2+pca:32"))
    files = [
        {path: commit.files for path, commit in take_snapshot(backend).commits.items()}
        for backend in (store, other)
    ]
    assert len(files[0]) == 2 * 2 + 2 + 2 * 2
    assert files[0] == files[1]


def test_each_frame_goes_through_each_model_once_and_events_count_the_passes(
    store, fill, small, encode_all, make_encoder, noise, batch_sizes
):
    pong = [[0, 1, 2, 3], [3, 4, 0], [5, 6, 1], [4, 3]]  # The last one only copies.
    breakout = [[0, 7], [7, 8, 2, 8]]  # The last one repeats a frame.
    fill(store, pong)
    fill(store, breakout, "Breakout")
    events = []
    report = encode_all(store, small("a"), small("b"), listen=events.append)
    assert report.passes == 9 * 2 and report.copied == (12 + 6 - 9) * 2 and report.present == 0
    # Besides the frames of the plan, each model saw the probe frames when it was registered, when it
    # was built again, and when the worker opened it; the first two times after one more frame.
    assert sum(batch_sizes) == report.passes + 2 * (3 * PROBES + 2)
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
    for name in ("a", "b"):
        check_rows(store, numbers, small(name), make_encoder, noise)
    assert verify(store).damage == () and verify(store).leftovers == 0


def test_a_repeated_command_does_nothing_and_later_encodes_only_the_new_segment(
    store, fill, small, encode_all, tree, batch_sizes
):
    fill(store, [[0, 1, 2], [2, 3]])
    first = encode_all(store, small())
    before = tree()
    batch_sizes.clear()
    events = []
    again = encode_all(store, small(), listen=events.append)
    assert again.passes == again.copied == 0 and again.done == () and again.present == 2
    assert events == [Planned(0, 0, 0)] and not batch_sizes
    assert [m.spec for m in again.models] == [m.spec for m in first.models]
    assert tree() == before
    fill(store, [[3, 4, 0, 5]], first=2)
    later = encode_all(store, small())
    assert (later.passes, later.copied, later.present, len(later.done)) == (2, 2, 2, 1)
    assert before.items() <= tree().items(), "existing files are untouched"


def test_only_the_requested_games_are_encoded(store, fill, small, encode_all):
    fill(store, [[0, 1]])
    fill(store, [[1, 2]], "Breakout")
    assert encode_all(store, small(), games=["Breakout"]).passes == 2
    assert {e.game for e in take_snapshot(store).embeddings()} == {"Breakout"}
    rest = encode_all(store, small())
    assert (rest.passes, rest.copied, rest.present) == (1, 1, 1)


def test_nan_is_set_aside_with_its_segment_and_model_and_the_rest_is_done(
    store, kit, make_segment, fill, small, encode_all, monkeypatch
):
    build = networks.build

    def build_poisoned(request):
        """A model that gives NaN for frames brighter than the probe frames."""
        module = build(request)
        forward = module.forward_features
        module.forward_features = lambda pixels: (
            forward(pixels) * (float("nan") if pixels.mean() > 0.9 else 1)
        )
        return module

    fill(store, [[0, 1]])
    bright, arrays = make_segment(1, [np.full((12, 10, 3), 255, np.uint8)])
    writer.commit_segment(store, bright, arrays)
    monkeypatch.setattr(networks, "build", build_poisoned)
    report = encode_all(store, small())
    (failed,) = report.failed
    assert type(failed.error) is ConflictError
    assert (failed.error.kind, report.exit_code, failed.attempts) == ("not-finite", 4, 3)
    (key,) = take_snapshot(store).models
    assert bright.segment in str(failed.error) and key in str(failed.error)
    assert (failed.model, failed.game, failed.segment) == (key, "Pong", bright.segment)
    assert [done.segment for done in report.done] != [bright.segment] and len(report.done) == 1
    assert not [path for path in kit.paths(store) if f"embeddings/{key}/{bright.segment}" in path]
    assert verify(store).damage == () and verify(store).leftovers == 0


@pytest.mark.parametrize(
    "error", [MissingError("no-weights", "m"), ConflictError("step-error", "m")]
)
def test_a_workers_error_is_raised_as_it_is(error, store, fill, small, encode_all, monkeypatch):
    def fail(request):
        raise error

    fill(store, [[0]])
    monkeypatch.setattr(networks, "build", fail)
    with pytest.raises(type(error)) as caught:
        encode_all(store, small())
    assert (caught.value.kind, str(caught.value)) == (error.kind, "m")


def test_the_same_command_completes_an_interrupted_encoding(store, fill, small, encode_all):
    fill(store, [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(12)])

    def interrupt(event):
        if isinstance(event, SegmentDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_all(store, small(), listen=interrupt)
    assert verify(store).damage == ()
    done = len(take_snapshot(store).embeddings())
    assert 1 <= done < 12
    rest = encode_all(store, small())
    assert rest.passes == 36 - 3 * done and rest.present == done
    assert verify(store).leftovers == 0


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_a_frame_has_one_embedding_in_all_segments(
    scale, store, fill, small, encode_all, monkeypatch
):
    """Also beside a frame whose embedding is too large for half precision."""
    real = Encoder.__call__

    def enlarge(self, frames):
        embedding = real(self, frames)
        bright = frames.reshape(len(frames), -1).mean(axis=1) > 127.5
        return np.where(bright[:, None], scale * embedding, embedding)

    monkeypatch.setattr(Encoder, "__call__", enlarge)
    fill(store, [[0, 1, 2, 3], [4], [5]])
    (key,) = (model.spec.key for model in encode_all(store, small()).models)
    (meta,) = fill(store, [[0, 1, 2, 3, 4, 5]], "Breakout")
    encode_all(store, small())
    snapshot = take_snapshot(store)
    together = snapshot.read_embedding("Breakout", key, meta.segment)
    apart = [snapshot.read_embedding("Pong", key, m.segment) for m in snapshot.segments("Pong")]
    np.testing.assert_array_equal(together, np.concatenate(apart))
    assert together.dtype == (np.float16 if scale == 1 else np.float32)
    too_large = np.abs(together).max(axis=1) > 65504
    assert (scale > 1) == too_large.any() and not too_large.all()
    # Rows that fit into half precision are rounded to it, even beside large ones.
    fitting = together[~too_large]
    np.testing.assert_array_equal(fitting, fitting.astype(np.float16))


def plan_task(store, request):
    """Register a model; the settings of its tasks, the items of each segment, and their passes."""
    registered = tasks.register_model(store.url, request, Encoding([request], device="cpu"), 0)
    assert isinstance(registered, Registered)
    key = registered.spec.key
    plan = make_plan(take_snapshot(store), [key], ["Pong"])
    settings = tasks.TaskSettings(store.url, {key: "random"}, {key: "torch"}, "cpu")
    return settings, [tuple(items) for items in plan.by_segment()], plan.passes


def test_tasks_of_one_worker_may_run_in_several_threads(store, fill, small, batch_sizes):
    fill(store, [[2 * i, 2 * i + 1] for i in range(8)])
    settings, works, passes = plan_task(store, small())
    batch_sizes.clear()
    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(partial(tasks.embed, settings), works)]
    shapes = [
        e.rows.shape for (e,) in results if isinstance(e, tasks.Embedded) and e.rows is not None
    ]
    assert shapes == [(2, 16)] * 8
    assert sum(batch_sizes) == passes + PROBES, "the model was opened once"


def test_committing_twice_writes_once(store, fill, small, batch_sizes):
    fill(store, [[0, 1]])
    settings, (items,), _ = plan_task(store, small())
    embedded = tasks.embed(settings, items)
    (one,), (two,) = (tasks.commit(settings, items, embedded) for _ in range(2))
    assert isinstance(one, SegmentDone) and isinstance(two, SegmentDone)
    assert (one.passes, one.segment) == (two.passes, two.segment)
    batch_sizes.clear()
    (again,) = tasks.encode_segment(settings, items)
    assert isinstance(again, SegmentDone) and again.passes == again.copied == 0
    assert not batch_sizes, "a committed segment does not run again"
    assert len(take_snapshot(store).embeddings()) == 1 and verify(store).leftovers == 0
