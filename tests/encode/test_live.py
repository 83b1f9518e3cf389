from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsa.encode.inference import encoder as forward
from wsa.encode.inference.encoder import Encoder
from wsa.encode.jobs.run import encode
from wsa.encode.live.frame_history import FrameInputs, FrameWindow
from wsa.encode.live.live_encoder import LiveEncoder
from wsa.encode.live.shrunk_frames import ShrunkFrames
from wsa.encode.models.registry import Request, parse_request
from wsa.encode.registration.register import open_model
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError
from wsa.store.objects import flat_map, writer
from wsa.store.objects.flat_map import FlatMap
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

Ask = Callable[..., Request]
Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def mapped(
    tmp_path_factory: pytest.TempPathFactory, segment_of: Callable[..., Any]
) -> Callable[..., tuple[FlatMap, list[Encoder]]]:
    """Encode frames with models, and open what a learner would: a flat map and encoders."""

    def make(frames: Frames, requests: Sequence[Request]) -> tuple[FlatMap, list[Encoder]]:
        folder = tmp_path_factory.mktemp("live")
        store = open_store(str(folder / "store"), create=True)
        writer.commit_segment(store, *segment_of(0, list(frames)))
        done = encode(store, requests, scheduler="inproc", device="cpu")
        snapshot = take_snapshot(store)
        keys = [model.spec.key for model in done.models]
        found = flat_map.materialise(snapshot, "Pong", keys, folder / "cache")
        return found, [open_model(snapshot, key) for key in keys]

    return make


class Unknown:
    """A flat map that knows none of its frames, so that every one has to be run."""

    def __init__(self, known: FlatMap) -> None:
        self.digests = np.zeros((0, 16), np.uint8)
        self.embeddings = known.embeddings
        self.models, self.width = known.models, known.width
        self.windows, self.window_width = known.windows, 0
        self.columns, self.places = known.columns, known.places


def check_cached_is_live(found: FlatMap, encoders: list[Encoder], frames: Frames) -> None:
    cached = LiveEncoder(found, encoders)
    rows = cached(frames)
    assert cached.passes == 0 and cached.found == len(frames) and cached.hit_rate == 1
    blank: Any = Unknown(found)
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


def test_cached_is_live_to_the_last_bit(
    mapped: Callable[..., tuple[FlatMap, list[Encoder]]], frames: Frames, tiny: Any
) -> None:
    requests = [parse_request("lite0", {}, "grid:2"), tiny("vit", "grid:2")]
    found, encoders = mapped(frames[:3], requests)
    assert found.width > 2 * 2 * 1280
    check_cached_is_live(found, encoders, frames[:3])


@pytest.mark.slow
@pytest.mark.timeout(1200)  # Three models, 832 frames of the strip each.
def test_cached_is_live_with_the_default_output(
    mapped: Callable[..., tuple[FlatMap, list[Encoder]]], frames: Frames
) -> None:
    found, encoders = mapped(frames, [parse_request(f"lite{i}", {}) for i in range(3)])
    assert found.width == 3 * 512
    check_cached_is_live(found, encoders, frames)


@pytest.fixture(scope="module")
def encoded(
    mapped: Callable[..., tuple[FlatMap, list[Encoder]]], frames: Frames, tiny: Ask
) -> tuple[FlatMap, list[Encoder]]:
    """Two tiny models; frames 0 to 3 are in the store, the rest are not."""
    return mapped(frames[:4], [tiny("resnet"), tiny("vit", "grid:2")])


@pytest.fixture
def played(encoded: tuple[FlatMap, list[Encoder]]) -> tuple[FlatMap, list[Encoder]]:
    """The same, with encoders that have made no passes."""
    for encoder in encoded[1]:
        encoder.passes = 0
    return encoded


def test_every_frame_is_found_remembered_or_run(
    played: tuple[FlatMap, list[Encoder]], frames: Frames, ran: list[int]
) -> None:
    live = LiveEncoder(*played)
    asked = np.array([0, 5, 1, 5, 6, 0, 7, 6])  # 5 and 6 stand twice in one call.
    rows = live(frames[asked])
    assert rows.shape == (8, live.width) and rows.dtype == live.dtype
    assert (live.frames, live.found, live.remembered, live.passes) == (8, 3, 2, 3 * 2)
    again = live(frames[asked])
    np.testing.assert_array_equal(again, rows)
    assert (live.frames, live.found, live.remembered, live.passes) == (16, 6, 7, 3 * 2)
    assert sum(ran) == live.passes
    assert live.hit_rate == (6 + 7) / 16
    for at, picked in enumerate(asked):
        wanted = np.concatenate([e(frames[picked][None]).ravel() for e in played[1]])
        np.testing.assert_array_equal(rows[at], wanted.astype(np.float16))


@pytest.mark.parametrize("remember", [0, 1, 2])
def test_memory_is_bounded_and_never_loses_a_frame_of_this_call(
    remember: int, played: tuple[FlatMap, list[Encoder]], frames: Frames
) -> None:
    live = LiveEncoder(*played, remember=remember)
    wanted = LiveEncoder(*played)(frames)
    for _ in range(2):
        np.testing.assert_array_equal(live(frames[4:7]), wanted[4:7])
        assert len(live.lookups[1]._memory) == remember
    # What is kept is what was seen last, and holds no other frame's embedding in memory.
    live(frames[[5, 8]])
    before = live.passes
    live(frames[8 : 8 + min(remember, 1)])
    assert live.passes == before
    assert sum(
        row.nbytes if row.base is None else 1 << 40 for row in live.lookups[1]._memory.values()
    ) == (remember * live.width * live.dtype.itemsize)


def test_what_was_seen_elsewhere_is_not_run_again(
    played: tuple[FlatMap, list[Encoder]], frames: Frames
) -> None:
    wanted = LiveEncoder(*played)(frames)

    class Table:
        """Holds the fifth and the sixth frame."""

        def find(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
            known = [hashing.frame_digest(frame) for frame in frames[5:7]]
            return np.array([known.index(d) if d in known else -1 for d in digests])

        def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
            return wanted[5:7][rows]

    live = LiveEncoder(*played, elsewhere={1: Table()})
    before = live.passes
    asked = np.array([0, 6, 5, 7, 6])
    np.testing.assert_array_equal(live(frames[asked]), wanted[asked])
    assert live.passes - before == 2  # The seventh, by both models.
    assert (live.found, live.remembered) == (1, 3)


def test_no_frames_are_no_embeddings(played: tuple[FlatMap, list[Encoder]], frames: Frames) -> None:
    live = LiveEncoder(*played)
    assert live(frames[:0]).shape == (0, live.width)
    assert (live.frames, live.passes, live.hit_rate) == (0, 0, 0)


@pytest.mark.parametrize("bad", [np.nan, 1e6])
def test_what_the_store_would_refuse_is_not_played_with(
    bad: float,
    played: tuple[FlatMap, list[Encoder]],
    frames: Frames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, shown: real(self, shown) * 0 + bad)
    live = LiveEncoder(*played)
    live(frames[:4])
    with pytest.raises(ConflictError, match=played[0].models[0]) as caught:
        live(frames[4:5])
    assert caught.value.kind == "not-finite"


def test_a_screen_in_colour_is_made_small_once_for_models_that_want_it_alike(
    frames: Frames, encoder_of: Callable[..., Encoder], tiny: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    alike = [encoder_of(tiny("resnet")) for _ in range(2)]
    wanted = alike[0](frames[:3])
    made = []
    shrink = forward.shrink

    def counted(some: Any, how: Any) -> Any:
        made.append(len(some))
        return shrink(some, how)

    monkeypatch.setattr(forward, "shrink", counted)
    shrunk = ShrunkFrames(alike, [1, 1])
    windows = [FrameWindow((frame,), (hashing.frame_digest(frame),)) for frame in frames[:3]]
    for encoder in alike:
        np.testing.assert_array_equal(shrunk.embed(encoder, FrameInputs(windows)), wanted)
    assert sum(made) == 3


# Threads.


@pytest.fixture(scope="module")
def windowed(
    mapped: Callable[..., tuple[FlatMap, list[Encoder]]], frames: Frames
) -> tuple[FlatMap, list[Encoder]]:
    """Two models of one way to make screens small, one of whose windows is longer; one in colour."""
    return mapped(frames[:2], [parse_request(f"{alias}:random", {}) for alias in ("ae", "vos")])


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_nothing_depends_on_how_many_threads_embed(
    engine: str, windowed: tuple[FlatMap, list[Encoder]], frames: Frames
) -> None:
    """Nor on whether somebody waits for one batch before the next is begun."""
    known, encoders = windowed
    if engine != "torch":
        encoders = [
            Encoder(e.module, e.preprocessing, e.output, None, "fp32", "cpu", engine, threads=3)
            for e in encoders
        ]
    first, envs = np.zeros(4, np.bool_), np.arange(4)
    played = [frames[i : i + 4] for i in (0, 4, 4, 4, 8)]  # What stands still is seen again.
    blank: Any = Blank(known)
    found = []
    for threads in (1, 2, 3):
        live, waiting = (LiveEncoder(blank, encoders, threads=threads) for _ in range(2))
        found.append(np.stack([live(shown, first, envs) for shown in played]))
        begun = [waiting.embed_later(shown, first, envs) for shown in played]
        found.append(np.stack([one.result() for one in begun]))
        assert waiting.passes == live.passes == 4 * (3 + 4)
        assert waiting.remembered == live.remembered == 4 * (2 + 1)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


class Blank(Unknown):
    """A flat map that knows neither frames nor windows."""

    def __init__(self, known: FlatMap) -> None:
        super().__init__(known)
        self.window_width, self.windowed = known.window_width, known.windowed

    def window_digests(self, window: int) -> NDArray[np.uint8]:
        return self.digests


def test_an_engine_that_dies_is_named_and_stays_dead(
    played: tuple[FlatMap, list[Encoder]], frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*of: Any) -> None:
        raise RuntimeError("out of\nmemory")

    live = LiveEncoder(*played, threads=2)
    monkeypatch.setattr(Encoder, "__call__", die)
    begun = live.embed_later(frames[4:7])
    with pytest.raises(ConflictError):
        begun.result()
    with pytest.raises(ConflictError) as caught:  # Again, whenever it is asked.
        begun.result()
    assert caught.value.kind == "model-failed"
    assert str(caught.value) == (
        f"torch failed in the middle of play when it ran {played[0].models[0]} (RuntimeError: out of "
        "memory). 'wsa learn --resume RUN' continues from the last checkpoint; --engine torch runs "
        "the model without it."
    )
