"""Embedding during play: found in the store, remembered, or run, always with the same bits."""

import numpy as np
import pytest
import torch

from wsa.encode.inference import encoder as forward
from wsa.encode.inference.encoder import Encoder
from wsa.encode.live.frame_history import FrameHistory, FrameInputs, FrameWindow, window_inputs
from wsa.encode.live.live_encoder import LiveEncoder, scatter_columns
from wsa.encode.live.shrunk_frames import ShrunkFrames
from wsa.encode.models.registry import parse_request
from wsa.encode.registration.register import open_model
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError
from wsa.store.objects import flat_map, writer
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot


@pytest.fixture(scope="module")
def encode_frames(tmp_path_factory, make_segment, encode_all):
    """Encode frames with models, and open what a learner opens: a flat map and encoders."""

    def run(frames, requests):
        folder = tmp_path_factory.mktemp("live")
        store = open_store(str(folder / "store"), create=True)
        writer.commit_segment(store, *make_segment(0, list(frames)))
        report = encode_all(store, *requests)
        snapshot = take_snapshot(store)
        keys = [model.spec.key for model in report.models]
        known = flat_map.materialize(snapshot, "Pong", keys, folder / "cache")
        return known, [open_model(snapshot, key) for key in keys]

    return run


def check_cached_is_live(known, blank, encoders, frames):
    cached = LiveEncoder(known, encoders)
    rows = cached(frames)
    assert cached.passes == 0 and cached.found == len(frames) and cached.hit_rate == 1
    for threads in (1, 2):
        torch.set_num_threads(threads)
        live = LiveEncoder(blank, encoders)
        before = live.passes
        alone = np.concatenate([live(frame[None]) for frame in frames])
        np.testing.assert_array_equal(alone, rows)
        assert alone.dtype == rows.dtype == np.float16
        assert live.passes - before == len(frames) * len(encoders)
        assert (live.frames, live.found, live.remembered) == (len(frames), 0, 0)
    together = LiveEncoder(blank, encoders)(frames[::-1])
    np.testing.assert_array_equal(together[::-1], rows)


def test_cached_embeddings_equal_live_ones_to_the_last_bit(encode_frames, frames, tiny, emptied):
    requests = [tiny("efficientnet", "grid:2"), tiny("vit", "grid:2")]
    known, encoders = encode_frames(frames[:3], requests)
    assert known.width == 2 * 2 * (256 + 64)
    check_cached_is_live(known, emptied(known), encoders, frames[:3])


@pytest.mark.slow
@pytest.mark.timeout(1200)  # Three models, 832 probe frames each.
@pytest.mark.usefixtures("all_probe_frames")
def test_cached_embeddings_of_lite_models_equal_live_ones(encode_frames, frames, emptied):
    known, encoders = encode_frames(frames, [parse_request(f"lite{i}", {}) for i in range(3)])
    assert known.width == 3 * 512
    check_cached_is_live(known, emptied(known), encoders, frames)


@pytest.fixture(scope="module")
def _opened(encode_frames, frames, small, tiny):
    return encode_frames(frames[:4], [small(), tiny("vit", "grid:2")])


@pytest.fixture
def opened(_opened):
    """The map and the encoders, without passes, of two models. The store has frames 0 to 3."""
    for encoder in _opened[1]:
        encoder.passes = 0
    return _opened


def test_every_frame_is_found_or_remembered_or_run_once(opened, frames, batch_sizes):
    live = LiveEncoder(*opened)
    asked = np.array([0, 5, 1, 5, 6, 0, 7, 6])  # 5 and 6 occur twice in one call.
    rows = live(frames[asked])
    assert rows.shape == (8, live.width) and rows.dtype == live.dtype
    assert (live.frames, live.found, live.remembered, live.passes) == (8, 3, 2, 3 * 2)
    again = live(frames[asked])
    np.testing.assert_array_equal(again, rows)
    assert (live.frames, live.found, live.remembered, live.passes) == (16, 6, 7, 3 * 2)
    assert sum(batch_sizes) == live.passes
    assert live.hit_rate == (6 + 7) / 16
    for at, picked in enumerate(asked):
        expected = np.concatenate([e(frames[picked][None]).ravel() for e in opened[1]])
        np.testing.assert_array_equal(rows[at], expected.astype(np.float16))


@pytest.mark.parametrize("remember", [0, 1, 2])
def test_the_memory_is_bounded_but_keeps_the_frames_of_the_current_call(remember, opened, frames):
    live = LiveEncoder(*opened, remember=remember)
    expected = LiveEncoder(*opened)(frames)
    for _ in range(2):
        np.testing.assert_array_equal(live(frames[4:7]), expected[4:7])
        assert len(live.lookups[1]._memory) == remember
    # It keeps the last frames, as copies that keep no larger array alive.
    live(frames[[5, 8]])
    before = live.passes
    live(frames[8 : 8 + min(remember, 1)])
    assert live.passes == before
    assert sum(
        row.nbytes if row.base is None else 1 << 40 for row in live.lookups[1]._memory.values()
    ) == (remember * live.width * live.dtype.itemsize)


def test_a_frame_in_another_table_does_not_run(opened, frames):
    expected = LiveEncoder(*opened)(frames)

    class Table:
        """Has frames 5 and 6."""

        def find(self, digests):
            known = [hashing.frame_digest(frame) for frame in frames[5:7]]
            return np.array([known.index(d) if d in known else -1 for d in digests])

        def gather(self, rows):
            return expected[5:7][rows]

    live = LiveEncoder(*opened, elsewhere={1: Table()})
    before = live.passes
    asked = np.array([0, 6, 5, 7, 6])
    np.testing.assert_array_equal(live(frames[asked]), expected[asked])
    assert live.passes - before == 2  # Frame 7, by both models.
    assert (live.found, live.remembered) == (1, 3)


def test_no_frames_are_no_embeddings(opened, frames):
    live = LiveEncoder(*opened)
    assert live(frames[:0]).shape == (0, live.width)
    assert (live.frames, live.passes, live.hit_rate) == (0, 0, 0)


@pytest.mark.parametrize("bad", [np.nan, 1e6])
def test_an_embedding_that_the_store_would_refuse_ends_play(bad, opened, frames, monkeypatch):
    real = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, inputs: real(self, inputs) * 0 + bad)
    live = LiveEncoder(*opened)
    live(frames[:4])
    with pytest.raises(ConflictError, match=opened[0].models[0]) as caught:
        live(frames[4:5])
    assert caught.value.kind == "not-finite"


def test_a_frame_is_resized_once_for_models_with_one_input(
    frames, make_encoder, small, monkeypatch
):
    encoders = [make_encoder(small()) for _ in range(2)]
    expected = encoders[0](frames[:3])
    resized = []
    shrink = forward.shrink

    def count(pixels, preprocessing):
        resized.append(len(pixels))
        return shrink(pixels, preprocessing)

    monkeypatch.setattr(forward, "shrink", count)
    shrunk = ShrunkFrames(encoders, [1, 1])
    windows = [FrameWindow((frame,), (hashing.frame_digest(frame),)) for frame in frames[:3]]
    for encoder in encoders:
        np.testing.assert_array_equal(shrunk.embed(encoder, FrameInputs(windows)), expected)
    assert sum(resized) == 3


# Threads.


@pytest.fixture(scope="module")
def windowed(encode_frames, frames):
    """Two models with the same resized frames, one of which sees two of them."""
    return encode_frames(
        frames[:2], [parse_request(f"{alias}:random", {}) for alias in ("ae", "vos")]
    )


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_embeddings_and_passes_do_not_depend_on_threads(engine, windowed, frames, emptied):
    """Nor on whether the caller waits for one batch before the next one begins."""
    known, encoders = windowed
    if engine != "torch":
        encoders = [
            Encoder(e.module, e.preprocessing, e.output, None, "fp32", "cpu", engine, threads=3)
            for e in encoders
        ]
    first, envs = np.zeros(4, np.bool_), np.arange(4)
    steps = [frames[i : i + 4] for i in (0, 4, 4, 4, 8)]  # A game that stands still for two steps.
    blank = emptied(known)
    results = []
    for threads in (1, 2, 3):
        live, waiting = (LiveEncoder(blank, encoders, threads=threads) for _ in range(2))
        results.append(np.stack([live(step_frames, first, envs) for step_frames in steps]))
        history = FrameHistory(max(waiting.lookups))
        seen = [history.push(step_frames, first, envs) for step_frames in steps]
        begun = [
            [lookup.begin(*window_inputs(each, w)) for w, lookup in waiting.lookups.items()]
            for each in seen
        ]
        out = np.zeros_like(results[0])
        for row, parts in zip(out, begun, strict=True):
            for part, lookup in zip(parts, waiting.lookups.values(), strict=True):
                scatter_columns(part.result()[0], lookup.places, row)
        results.append(out)
        assert waiting.passes == live.passes == 4 * (3 + 4)
        assert waiting.remembered == live.remembered == 4 * (2 + 1)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_an_engine_that_fails_is_named_every_time_the_result_is_read(opened, frames, monkeypatch):
    def fail(*of):
        raise RuntimeError("out of\nmemory")

    live = LiveEncoder(*opened, threads=2)
    monkeypatch.setattr(Encoder, "__call__", fail)
    windows = [FrameWindow((frame,), (hashing.frame_digest(frame),)) for frame in frames[4:7]]
    begun = live.lookups[1].begin(*window_inputs(windows, 1))
    with pytest.raises(ConflictError):
        begun.result()
    with pytest.raises(ConflictError) as caught:
        begun.result()
    assert caught.value.kind == "model-failed"
    assert str(caught.value) == (
        f"torch failed during play when it ran {opened[0].models[0]} (RuntimeError: out of "
        "memory). 'wsa learn --resume RUN' continues from the last checkpoint; --engine torch runs "
        "the model without it."
    )
