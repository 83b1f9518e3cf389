"""The engine is the fastest that is right; what is right is measured on the game itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.encode.inference import engines, openvino
from wsa.encode.inference.encoder import stored
from wsa.encode.inference.engines import Eager
from wsa.encode.jobs.dry_run import estimate, measure_model
from wsa.encode.jobs.events import ModelReady
from wsa.encode.jobs.run import encode
from wsa.encode.models.registry import Request
from wsa.encode.registration import engine_choice, probe_frames
from wsa.encode.registration.engine_choice import GAME_PAIRS, game_inputs
from wsa.encode.registration.register import measure_engines, open_model, register
from wsa.store.backends.base import Backend
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot

Ask = Callable[..., Request]
Fill = Callable[..., Any]


class Fast(Eager):
    """PyTorch under another name, off by a share of its numbers."""

    name = "openvino"
    off = 0.0

    def __init__(self, trunk: Any, shape: Any, precision: Any, threads: int | None = None) -> None:
        super().__init__(trunk, torch.device("cpu"), precision)

    def __call__(self, pixels: Tensor) -> Tensor:
        found = super().__call__(pixels)
        return found * (1 + self.off)


def rated(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Let engines take so long for a probe frame on each core, in the order they are measured in.

    Two frames in three take ten times as long, as beside other work; and so does, of several, the
    first engine's whole first turn.
    """
    waits = [
        wait
        for turn in range(2)
        for number, s in enumerate(seconds.values())
        for part in range(16 // torch.get_num_threads())
        for busy in [part % 3 or (len(seconds) > 1 and turn == number == 0)]
        for wait in (0.0, s * (10 if busy else 1))
    ]
    ticks = itertools.accumulate(waits)
    monkeypatch.setattr(engine_choice.time, "perf_counter", lambda: next(ticks))


@pytest.mark.usefixtures("whole_strip")
@pytest.mark.parametrize(
    ("off", "torch_s", "openvino_s", "chosen"),
    [(0.0, 2, 1, "openvino"), (0.0, 1, 2, "torch"), (0.1, 2, 1, "torch")],
)
def test_auto_is_the_fastest_that_is_right(
    off: float, torch_s: float, openvino_s: float, chosen: str,
    store: Backend, tiny: Ask, every_engine: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(openvino, "OpenVINO", Fast)
    monkeypatch.setattr(Fast, "off", off)
    found, _, _ = measure_engines(take_snapshot(store), tiny("resnet"), "cpu")
    rated(monkeypatch, {"torch": torch_s, "openvino": openvino_s})
    choice = found.choose("auto", "fp32", 0.1)
    assert choice.engine == chosen
    # With nobody to choose from there is no second turn.
    best = 10 * torch_s if off else min(torch_s, openvino_s)
    assert choice.rate == pytest.approx(torch.get_num_threads() / best)
    assert choice.error <= engine_choice.MAX_ENGINE_ERROR
    (other, compiled) = choice.left_out
    assert other.engine == ({"torch", "openvino"} - {chosen}).pop() and other.rate > 0
    assert other.why == ("it errs by more than 0.01" if off else "it is slower")
    assert compiled.engine == "compile" and compiled.error is None


def test_an_engine_that_errs_is_refused_by_name(
    store: Backend, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "OpenVINO", Fast)
    monkeypatch.setattr(Fast, "off", 0.1)
    with pytest.raises(ConflictError, match=r"in fp32 by openvino errs by .* Use --engine torch\."):
        register(take_snapshot(store), tiny("resnet"), 10, engine="openvino")
    assert take_snapshot(store).models == []


def test_a_network_that_cannot_be_converted_is_run_by_pytorch(
    store: Backend, tiny: Ask, every_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise ValueError("no such operation")

    monkeypatch.setattr(openvino.openvino, "convert_model", refuse)
    made = register(take_snapshot(store), tiny("resnet"), 0.1)
    assert made.choice and made.choice.engine == "torch"
    assert "; not openvino: OpenVINO cannot run this model (no such op" in made.choice.explained
    with pytest.raises(ConflictError, match=r"no such operation\). Use --engine torch"):
        register(take_snapshot(store), tiny("vit"), 0.1, engine="openvino")


def test_a_network_that_cannot_be_compiled_is_run_by_pytorch(
    store: Backend, tiny: Ask, every_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a compiler raises is of any kind; OpenVINO stands for it here."""

    def refuse(*args: Any) -> None:
        raise RuntimeError("no such graph")

    monkeypatch.setattr(openvino, "OpenVINO", refuse)
    made = register(take_snapshot(store), tiny("resnet"), 0.1)
    assert made.choice and made.choice.engine == "torch"
    with pytest.raises(ConflictError, match=r"fails when openvino runs it .*no such graph"):
        register(take_snapshot(store), tiny("vit"), 0.1, engine="openvino")


@pytest.mark.usefixtures("whole_strip")
def test_a_rate_is_that_of_full_batches(
    store: Backend, tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU fills every batch up, so sixteen frames take it as long as 256."""
    found, _, _ = measure_engines(take_snapshot(store), tiny("resnet"), "cpu")
    engine = found.encoder("torch", "fp32").engine
    monkeypatch.setattr(engine, "batch", 40)
    exact = found.embed("torch", "fp32")
    monkeypatch.undo()
    again, _, _ = measure_engines(take_snapshot(store), tiny("resnet"), "cpu")
    monkeypatch.setattr(again.encoder("torch", "fp32").engine, "batch", 40)
    rated(monkeypatch, {"torch": 2})
    assert again.choose("torch", "fp32", 0.1).rate == 40 / 2
    assert again.embed("torch", "fp32").shape == exact.shape == (16, 96)


def test_what_ran_a_model_is_said_and_recorded_and_runs_it_live(
    store: Backend, fill: Fill, noise: Callable[[int], Any], tiny: Ask, every_engine: None,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (meta,) = fill(store, [[0, 1, 2, 3, 4]])
    events: list[Any] = []
    request = tiny("resnet", "grid:2+pca:8")
    encode(
        store, [request], scheduler="inproc", device="cpu", engine="openvino", listen=events.append
    )
    (ready,) = [event for event in events if isinstance(event, ModelReady)]
    assert ready.choice and ready.choice.engine == "openvino" and ready.choice.rate > 0
    key = ready.spec.key
    snapshot = take_snapshot(store)
    assert [made.engine for made in snapshot.embeddings(model=key)] == ["openvino"]
    caplog.set_level("INFO", "wsa")
    live = open_model(snapshot, key)
    assert live.engine.name == "openvino"
    assert caplog.messages == [f"{key}: run by openvino, the engine that filled the store"]
    shown = np.stack([noise(i) for i in (3, 1)])
    cached = snapshot.read_embedding(meta.game, key, meta.segment)
    np.testing.assert_array_equal(stored(live(shown)), cached[[3, 1]])

    monkeypatch.setattr(engines, "offered", lambda device, precision: ["torch"])
    caplog.clear()
    other = open_model(snapshot, key)
    assert other.engine.name == "torch"
    (said,) = caplog.messages
    assert said.startswith(
        f"{key}: the engine that filled the store is not available here; run by torch, "
    )
    np.testing.assert_allclose(other(shown), live(shown), atol=1e-3)


def test_an_estimate_is_of_the_engine_that_would_be_chosen(
    store: Backend, fill: Fill, tiny: Ask
) -> None:
    fill(store, [[0, 1]])
    for engine in ("torch", "openvino"):
        asked = take_snapshot(store), tiny("vit"), ["Pong"]
        sized, _ = measure_model(*asked, "cpu", engine)
        found = estimate(*asked, sized)
        assert found.engine == engine and found.minutes == 2 / sized.rate / 60
        assert estimate(*asked, sized, 4).minutes == found.minutes / 4
    with pytest.raises(UsageError, match="'tvm' is not one"):
        measure_model(*asked, "cpu", "tvm")


# A precision is measured on the game.


def test_a_precision_is_refused_for_what_it_does_to_the_game(
    store: Backend, segment_of: Callable[..., Any], tiny: Ask
) -> None:
    """In this game a step changes one pixel, which is little beside what bf16 loses."""
    still = probe_frames.probe_inputs()[0]
    moved = [still.copy() for _ in range(4)]
    for at, frame in enumerate(moved):
        frame[100, 20 * at] += 40
    writer.commit_segment(store, *segment_of(0, moved))
    request = tiny("resnet", precision="bf16")
    snapshot = take_snapshot(store)
    strip_error = register(snapshot, request, 10).spec.step_error
    with pytest.raises(ConflictError) as caught:
        register(take_snapshot(store), request, 2 * strip_error, games=["Pong"])
    said = re.search(
        r"errs by ([\d.]+) of .* one step of Pong .*-error ([\d.]+)\.$", str(caught.value)
    )
    assert said, str(caught.value)
    assert float(said[1]) > 2 * strip_error and float(said[2]) > float(said[1])
    allowed = register(take_snapshot(store), request, float(said[2]), games=["Pong"])
    assert allowed.choice and set(allowed.choice.errors) == {engine_choice.PROBE, "Pong"}
    assert allowed.choice.errors[engine_choice.PROBE] == strip_error


@pytest.mark.parametrize("window", [1, 4])
def test_a_games_inputs_are_of_consecutive_steps_of_one_episode(
    window: int, store: Backend, fill: Fill, noise: Callable[[int], NDArray[np.uint8]]
) -> None:
    (meta,) = fill(store, [list(range(60))])
    snapshot = take_snapshot(store)
    first = snapshot.read_array(meta, "is_first")
    found = game_inputs(snapshot, ["Pong", "Breakout"], window)
    assert set(found) == {"Pong"}
    newest = found["Pong"] if window == 1 else found["Pong"][:, -1]
    rows = [next(i for i in range(60) if (noise(i) == frame).all()) for frame in newest]
    assert len(rows) == 2 * GAME_PAIRS
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        assert after == before + 1 and not first[after]
    if window > 1:
        assert found["Pong"].shape[1:] == (4, 12, 10, 3)


def test_a_game_that_stands_still_gives_no_inputs(store: Backend, fill: Fill) -> None:
    fill(store, [[0]])
    assert game_inputs(take_snapshot(store), ["Pong"], 1) == {}
