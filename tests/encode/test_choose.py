"""`auto` chooses the fastest engine that is accurate enough, measured on the game itself."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from wsa.encode.inference import engines, openvino
from wsa.encode.inference.encoder import stored
from wsa.encode.inference.engines import Eager
from wsa.encode.jobs.dry_run import estimate, measure_model
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.events import ModelReady
from wsa.encode.models.registry import Request
from wsa.encode.registration import engine_choice, probe_frames
from wsa.encode.registration.engine_choice import GAME_PAIRS, game_inputs
from wsa.encode.registration.register import measure_engines, open_model, register
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot

Ask = Callable[..., Request]
Fill = Callable[..., Any]
PROBES = len(probe_frames.probe_inputs())


class Inaccurate(Eager):
    """PyTorch under the name of OpenVINO, with a relative error."""

    name = "openvino"
    error = 0.0

    def __init__(self, trunk, shape, precision, threads=None):
        super().__init__(trunk, torch.device("cpu"), precision)

    def __call__(self, pixels):
        return super().__call__(pixels) * (1 + self.error)


def set_durations(monkeypatch, seconds):
    """Set how long each engine takes per probe frame and core, in the order of measurement.

    Two frames in three take ten times as long, as beside other work. So does, with several
    engines, the whole first turn of the first one.
    """
    durations = [
        duration
        for turn in range(2)
        for number, s in enumerate(seconds)
        for part in range(PROBES // torch.get_num_threads())
        for busy in [part % 3 or (len(seconds) > 1 and turn == number == 0)]
        for duration in (0.0, s * (10 if busy else 1))
    ]
    ticks = itertools.accumulate(durations)
    monkeypatch.setattr(engine_choice.time, "perf_counter", lambda: next(ticks))


@pytest.mark.parametrize(
    ("error", "torch_s", "openvino_s", "chosen"),
    [(0.0, 2, 1, "openvino"), (0.0, 1, 2, "torch"), (0.1, 2, 1, "torch")],
)
def test_auto_is_the_fastest_accurate_engine(
    error, torch_s, openvino_s, chosen, store, small, every_engine, monkeypatch
):
    monkeypatch.setattr(openvino, "OpenVINO", Inaccurate)
    monkeypatch.setattr(Inaccurate, "error", error)
    candidates = measure_engines(take_snapshot(store), small(), "cpu")
    set_durations(monkeypatch, [torch_s, openvino_s])
    choice = candidates.choose("auto", "fp32", 0.1)
    assert choice.engine == chosen
    # If only one engine is accurate, it is not measured again.
    best = 10 * torch_s if error else min(torch_s, openvino_s)
    assert choice.rate == pytest.approx(torch.get_num_threads() / best)
    assert choice.error <= engine_choice.MAX_ENGINE_ERROR
    (other, compiled) = choice.left_out
    assert other.engine == ({"torch", "openvino"} - {chosen}).pop() and other.rate > 0
    assert other.why == ("it errs by more than 0.01" if error else "it is slower")
    assert compiled.engine == "compile" and compiled.error is None


def test_an_inaccurate_engine_is_refused_even_if_named(store, small, monkeypatch):
    monkeypatch.setattr(openvino, "OpenVINO", Inaccurate)
    monkeypatch.setattr(Inaccurate, "error", 0.1)
    with pytest.raises(ConflictError, match=r"in fp32 by openvino errs by .* Use --engine torch\."):
        register(take_snapshot(store), small(), 10, engine="openvino")
    assert take_snapshot(store).models == []


@pytest.mark.parametrize("stage", ["convert", "compile"])
def test_pytorch_runs_what_an_engine_cannot(stage, store, small, every_engine, monkeypatch):
    """A compiler may raise any kind of error; OpenVINO stands for it here."""

    def fail(*args, **options):
        raise ValueError("no such operation") if stage == "convert" else RuntimeError("no graph")

    if stage == "convert":
        monkeypatch.setattr(openvino.openvino, "convert_model", fail)
        match = r"no such operation\). Use --engine torch"
    else:
        monkeypatch.setattr(openvino, "OpenVINO", fail)
        match = "fails when openvino runs it .*no graph"
    choice = register(take_snapshot(store), small("a"), 0.1).choice
    assert choice and choice.engine == "torch"
    if stage == "convert":
        assert "; not openvino: OpenVINO cannot run this model (no such op" in choice.explained
    with pytest.raises(ConflictError, match=match):
        register(take_snapshot(store), small("b"), 0.1, engine="openvino")


def test_a_rate_is_measured_on_full_batches(store, small, monkeypatch):
    """A GPU takes as long for a few frames as for a full batch."""
    candidates = measure_engines(take_snapshot(store), small(), "cpu")
    monkeypatch.setattr(candidates.encoder("torch", "fp32").engine, "batch", 40)
    set_durations(monkeypatch, [2])
    assert candidates.choose("torch", "fp32", 0.1).rate == 40 / 2
    assert candidates.embed("torch", "fp32").shape == (PROBES, 16)


def test_the_engine_that_filled_the_store_is_recorded_and_runs_the_model_live(
    store, fill, noise, tiny, encode_all, every_engine, monkeypatch, caplog
):
    (meta,) = fill(store, [[0, 1, 2, 3, 4]])
    events: list[Any] = []
    encode_all(store, tiny("resnet", "grid:2+rp:8"), engine="openvino", listen=events.append)
    (ready,) = [event for event in events if isinstance(event, ModelReady)]
    assert ready.choice and ready.choice.engine == "openvino" and ready.choice.rate > 0
    key = ready.spec.key
    snapshot = take_snapshot(store)
    assert [record.engine for record in snapshot.embeddings(model=key)] == ["openvino"]
    caplog.set_level("INFO", "wsa")
    live = open_model(snapshot, key)
    assert live.engine.name == "openvino"
    assert caplog.messages == [f"{key}: run by openvino, the engine that filled the store"]
    frames = np.stack([noise(i) for i in (3, 1)])
    cached = snapshot.read_embedding(meta.game, key, meta.segment)
    np.testing.assert_array_equal(stored(live(frames)), cached[[3, 1]])

    monkeypatch.setattr(engines, "offered", lambda device, precision: ["torch"])
    caplog.clear()
    other = open_model(snapshot, key)
    assert other.engine.name == "torch"
    (message,) = caplog.messages
    assert message.startswith(
        f"{key}: the engine that filled the store is not available here; run by torch, "
    )
    np.testing.assert_allclose(other(frames), live(frames), atol=1e-3)


def test_an_estimate_is_that_of_the_requested_engine(store, fill, small):
    fill(store, [[0, 1]])
    job = take_snapshot(store), small(), ["Pong"]
    for engine in ("torch", "openvino"):
        sized, _ = measure_model(*job[:2], Encoding([], ["Pong"], "cpu", engine))
        estimated = estimate(*job, sized)
        assert estimated.engine == engine and estimated.minutes == 2 / sized.rate / 60
        assert estimate(*job, sized, 4).minutes == estimated.minutes / 4
    with pytest.raises(UsageError, match="'tvm' is not one"):
        measure_model(*job[:2], Encoding([], ["Pong"], "cpu", "tvm"))


# A reduced precision is measured on the game.


def test_a_precision_is_refused_for_its_error_on_the_game(store, make_segment, tiny):
    """A step of this game changes one pixel, which is little compared to the error of bf16."""
    still = probe_frames.probe_inputs()[0]
    moved = [still.copy() for _ in range(4)]
    for at, frame in enumerate(moved):
        frame[100, 20 * at] += 40
    writer.commit_segment(store, *make_segment(0, moved))
    request = tiny("vit", precision="bf16")
    snapshot = take_snapshot(store)
    probe_error = register(snapshot, request, 10).spec.step_error
    with pytest.raises(ConflictError) as caught:
        register(take_snapshot(store), request, 2 * probe_error, games=["Pong"])
    message = re.search(
        r"errs by ([\d.]+) of .* one step of Pong .*-error ([\d.]+)\.$", str(caught.value)
    )
    assert message, str(caught.value)
    error, allowed_error = map(float, message.groups())
    assert allowed_error > error > 2 * probe_error
    allowed = register(take_snapshot(store), request, allowed_error, games=["Pong"])
    assert allowed.choice and set(allowed.choice.errors) == {engine_choice.PROBE, "Pong"}
    assert allowed.choice.errors[engine_choice.PROBE] == probe_error


@pytest.mark.parametrize("window", [1, 4])
def test_inputs_of_a_game_are_consecutive_steps_of_one_episode(window, store, fill, noise):
    (meta,) = fill(store, [list(range(60))])
    snapshot = take_snapshot(store)
    first = snapshot.read_array(meta, "is_first")
    inputs = game_inputs(snapshot, ["Pong", "Breakout"], window)
    assert set(inputs) == {"Pong"}
    newest = inputs["Pong"] if window == 1 else inputs["Pong"][:, -1]
    rows = [next(i for i in range(60) if (noise(i) == frame).all()) for frame in newest]
    assert len(rows) == 2 * GAME_PAIRS
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        assert after == before + 1 and not first[after]
    if window > 1:
        assert inputs["Pong"].shape[1:] == (4, 12, 10, 3)


def test_a_game_in_which_nothing_changes_gives_no_inputs(store, fill):
    fill(store, [[0]])
    assert game_inputs(take_snapshot(store), ["Pong"], 1) == {}


def test_a_model_that_no_engine_runs_in_a_precision_is_named(store, small, monkeypatch):
    call = Eager.__call__

    def fail(self, pixels):
        if self._precision == "bf16":
            raise RuntimeError("no such operation")
        return call(self, pixels)

    monkeypatch.setattr(Eager, "__call__", fail)
    request = dataclasses.replace(small(), precision="bf16")
    with pytest.raises(ConflictError, match=r"small_a_1 fails when torch runs it .*no such op"):
        register(take_snapshot(store), request, 0.1)
